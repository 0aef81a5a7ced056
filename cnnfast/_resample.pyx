# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, freethreading_compatible=True
"""Dilating an image with zeros and keeping every f-th pixel; each is the other's gradient.

Arrays are C-contiguous, sizes are trusted, outputs are written completely.
"""

from libc.string cimport memcpy, memset

ctypedef fused real:
    float
    double


cdef inline void spread(const real *src, real *dst, Py_ssize_t n, Py_ssize_t size,
                        Py_ssize_t step) noexcept nogil:
    """Write src[i] to dst[i*step] for i < n, and zeros to the rest of dst's `size` elements."""
    cdef Py_ssize_t i
    if step == 1:
        memcpy(dst, src, n * sizeof(real))
        memset(dst + n, 0, (size - n) * sizeof(real))
    elif step == 2:
        for i in range(n - 1):
            dst[2 * i] = src[i]
            dst[2 * i + 1] = 0
        dst[2 * n - 2] = src[n - 1]
        memset(dst + 2 * n - 1, 0, (size - 2 * n + 1) * sizeof(real))
    else:
        memset(dst, 0, size * sizeof(real))
        for i in range(n):
            dst[i * step] = src[i]


cdef inline void gather(const real *src, real *dst, Py_ssize_t n, Py_ssize_t step) noexcept nogil:
    cdef Py_ssize_t i
    if step == 1:
        memcpy(dst, src, n * sizeof(real))
    elif step == 2:
        for i in range(n):
            dst[i] = src[2 * i]
    else:
        for i in range(n):
            dst[i] = src[i * step]


def dilate(const real[:, :, :, ::1] x, real[:, :, :, ::1] y, Py_ssize_t fh, Py_ssize_t fw):
    """Write y[n, c, h*fh, w*fw] = x[n, c, h, w] and zeros everywhere else in y.

    x (N, C, H, W), y (N, C, OH, OW) with OH >= (H-1)*fh + 1 and OW >= (W-1)*fw + 1.
    """
    cdef Py_ssize_t planes = x.shape[0] * x.shape[1], H = x.shape[2], W = x.shape[3]
    cdef Py_ssize_t OH = y.shape[2], OW = y.shape[3]
    cdef Py_ssize_t p, h, gap
    cdef const real *src
    cdef real *dst
    if planes == 0 or OH == 0 or OW == 0:
        return
    dst = &y[0, 0, 0, 0]
    if H == 0 or W == 0:
        memset(dst, 0, planes * OH * OW * sizeof(real))
        return
    src = &x[0, 0, 0, 0]
    with nogil:
        for p in range(planes):
            for h in range(H):
                spread(src, dst, W, OW, fw)
                src += W
                dst += OW
                gap = fh - 1 if h + 1 < H else OH - 1 - (H - 1) * fh
                memset(dst, 0, gap * OW * sizeof(real))
                dst += gap * OW


def subsample(const real[:, :, :, ::1] x, real[:, :, :, ::1] y, Py_ssize_t fh, Py_ssize_t fw):
    """Write y[n, c, h, w] = x[n, c, h*fh, w*fw].

    x (N, C, H, W), y (N, C, OH, OW) with (OH-1)*fh < H and (OW-1)*fw < W.
    """
    cdef Py_ssize_t planes = x.shape[0] * x.shape[1], H = x.shape[2], W = x.shape[3]
    cdef Py_ssize_t OH = y.shape[2], OW = y.shape[3]
    cdef Py_ssize_t p, h
    cdef const real *src
    cdef real *dst
    if planes == 0 or OH == 0 or OW == 0:
        return
    src = &x[0, 0, 0, 0]
    dst = &y[0, 0, 0, 0]
    with nogil:
        for p in range(planes):
            for h in range(OH):
                gather(src + (p * H + h * fh) * W, dst, OW, fw)
                dst += OW
