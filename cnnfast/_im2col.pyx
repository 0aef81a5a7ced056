# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, freethreading_compatible=True
"""im2col and col2im: the columns of a convolution, and the sum that is its adjoint.

Arrays are C-contiguous, sizes are trusted, outputs are written completely. `pt` and `pl` are the
padding above and to the left; what lies below and to the right follows from `OH` and `OW`.
"""

from libc.string cimport memcpy, memset

from cnnfast._span cimport end_inside, first_inside

ctypedef fused real:
    float
    double


cdef inline void copy_strided(real *dst, const real *src, Py_ssize_t n,
                              Py_ssize_t step) noexcept nogil:
    cdef Py_ssize_t i
    if step == 1:
        memcpy(dst, src, n * sizeof(real))
    elif step == 2:  # spelled out, so that the compiler can load whole vectors and shuffle
        for i in range(n):
            dst[i] = src[2 * i]
    else:
        for i in range(n):
            dst[i] = src[i * step]


cdef inline void add_strided(real *dst, const real *src, Py_ssize_t n,
                             Py_ssize_t step) noexcept nogil:
    cdef Py_ssize_t i
    if step == 1:
        for i in range(n):
            dst[i] += src[i]
    else:
        for i in range(n):
            dst[i * step] += src[i]


cdef void fill_tap(const real *plane, real *col, Py_ssize_t H, Py_ssize_t W,
                   Py_ssize_t OH, Py_ssize_t OW, Py_ssize_t sh, Py_ssize_t sw,
                   Py_ssize_t top, Py_ssize_t left) noexcept nogil:
    """Write one row of the columns: the (OH, OW) pixels seen by the tap at (top, left)."""
    cdef Py_ssize_t oh0 = first_inside(top, sh, OH)
    cdef Py_ssize_t oh1 = max(oh0, end_inside(top, sh, OH, H))
    cdef Py_ssize_t ow0 = first_inside(left, sw, OW)
    cdef Py_ssize_t ow1 = max(ow0, end_inside(left, sw, OW, W))
    cdef Py_ssize_t oh
    memset(col, 0, oh0 * OW * sizeof(real))
    memset(col + oh1 * OW, 0, (OH - oh1) * OW * sizeof(real))
    if oh0 == oh1:
        return
    plane += (oh0 * sh + top) * W + ow0 * sw + left
    col += oh0 * OW
    if sh == 1 and sw == 1 and OW == W and ow0 == 0 and ow1 == OW:
        memcpy(col, plane, (oh1 - oh0) * OW * sizeof(real))
        return
    for oh in range(oh1 - oh0):
        memset(col, 0, ow0 * sizeof(real))
        copy_strided(col + ow0, plane, ow1 - ow0, sw)
        memset(col + ow1, 0, (OW - ow1) * sizeof(real))
        col += OW
        plane += sh * W


cdef void add_tap(const real *col, real *plane, Py_ssize_t H, Py_ssize_t W,
                  Py_ssize_t OH, Py_ssize_t OW, Py_ssize_t sh, Py_ssize_t sw,
                  Py_ssize_t top, Py_ssize_t left) noexcept nogil:
    """Add one row of the columns to the pixels that its tap at (top, left) saw."""
    cdef Py_ssize_t oh0 = first_inside(top, sh, OH)
    cdef Py_ssize_t oh1 = end_inside(top, sh, OH, H)
    cdef Py_ssize_t ow0 = first_inside(left, sw, OW)
    cdef Py_ssize_t ow1 = end_inside(left, sw, OW, W)
    cdef Py_ssize_t oh
    if ow0 >= ow1:
        return
    for oh in range(oh0, oh1):
        add_strided(plane + (oh * sh + top) * W + ow0 * sw + left, col + oh * OW + ow0,
                    ow1 - ow0, sw)


def im2col(const real[:, :, :, ::1] x, real[:, :, ::1] cols,
           Py_ssize_t KH, Py_ssize_t KW, Py_ssize_t sh, Py_ssize_t sw,
           Py_ssize_t pt, Py_ssize_t pl, Py_ssize_t dh, Py_ssize_t dw,
           Py_ssize_t OH, Py_ssize_t OW):
    """Write cols[n, (c*KH + kh)*KW + kw, oh*OW + ow] = x[n, c, oh*sh - pt + kh*dh, ...], 0 outside.

    x (N, C, H, W), cols (N, C*KH*KW, OH*OW), both float32 or both float64.
    """
    cdef Py_ssize_t planes = x.shape[0] * x.shape[1], H = x.shape[2], W = x.shape[3]
    cdef Py_ssize_t p, kh, kw
    cdef const real *plane
    cdef real *col
    if planes == 0:
        return
    plane = &x[0, 0, 0, 0]
    col = &cols[0, 0, 0]
    with nogil:
        for p in range(planes):
            for kh in range(KH):
                for kw in range(KW):
                    fill_tap(plane, col, H, W, OH, OW, sh, sw, kh * dh - pt, kw * dw - pl)
                    col += OH * OW
            plane += H * W


def col2im(const real[:, :, ::1] cols, real[:, :, :, ::1] x,
           Py_ssize_t KH, Py_ssize_t KW, Py_ssize_t sh, Py_ssize_t sw,
           Py_ssize_t pt, Py_ssize_t pl, Py_ssize_t dh, Py_ssize_t dw,
           Py_ssize_t OH, Py_ssize_t OW):
    """Write in every pixel of x the sum of the columns' elements that im2col copies from it.

    cols (N, C*KH*KW, OH*OW), x (N, C, H, W), both float32 or both float64. The taps are added in
    row-major order, so the rounding does not depend on anything but the geometry.
    """
    cdef Py_ssize_t planes = x.shape[0] * x.shape[1], H = x.shape[2], W = x.shape[3]
    cdef Py_ssize_t p, kh, kw
    cdef const real *col
    cdef real *plane
    if planes == 0:
        return
    col = &cols[0, 0, 0]
    plane = &x[0, 0, 0, 0]
    with nogil:
        for p in range(planes):
            memset(plane, 0, H * W * sizeof(real))
            for kh in range(KH):
                for kw in range(KW):
                    add_tap(col, plane, H, W, OH, OW, sh, sw, kh * dh - pt, kw * dw - pl)
                    col += OH * OW
            plane += H * W
