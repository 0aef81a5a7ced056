# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, freethreading_compatible=True
"""Batch normalisation over (N, C, P): moments, scale and shift, and the gradient.

Arrays are C-contiguous, sizes are trusted, outputs are written completely. Sums run in double, a
row at a time in the order of memory, so that a large array is read as one stream; the eight
partial sums of a row are a fixed order that the compiler may put into vectors.
"""

from libc.stdlib cimport free, malloc
from libc.string cimport memset

ctypedef fused real:
    float
    double


cdef inline double total(const double *s) noexcept nogil:
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]))


cdef inline double square(double x) noexcept nogil:
    return x * x


cdef inline double row_sum(const real *x, Py_ssize_t n) noexcept nogil:
    cdef double[8] s = [0, 0, 0, 0, 0, 0, 0, 0]
    cdef Py_ssize_t i, whole = n & ~7
    cdef int j
    for i in range(0, whole, 8):
        for j in range(8):
            s[j] += x[i + j]
    for i in range(whole, n):
        s[0] += x[i]
    return total(s)


cdef inline double row_squares(const real *x, Py_ssize_t n, double mean) noexcept nogil:
    cdef double[8] s = [0, 0, 0, 0, 0, 0, 0, 0]
    cdef Py_ssize_t i, whole = n & ~7
    cdef int j
    for i in range(0, whole, 8):
        for j in range(8):
            s[j] += square(x[i + j] - mean)
    for i in range(whole, n):
        s[0] += square(x[i] - mean)
    return total(s)


cdef inline double row_products(const real *dy, const real *x, Py_ssize_t n,
                                double mean) noexcept nogil:
    cdef double[8] s = [0, 0, 0, 0, 0, 0, 0, 0]
    cdef Py_ssize_t i, whole = n & ~7
    cdef int j
    for i in range(0, whole, 8):
        for j in range(8):
            s[j] += dy[i + j] * (x[i + j] - mean)
    for i in range(whole, n):
        s[0] += dy[i] * (x[i] - mean)
    return total(s)


cdef inline void gradient_row(real *dx, const real *dy, const real *x, Py_ssize_t n, real centre,
                              real average, real slope, real factor) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        dx[i] = factor * ((dy[i] - average) - (x[i] - centre) * slope)


def moments(const real[:, :, ::1] x, double[::1] mean, double[::1] var):
    """Write the mean and the biased variance of every channel, in two passes.

    x (N, C, P); mean, var (C,) float64. With N*P = 0 both are NaN.
    """
    cdef Py_ssize_t N = x.shape[0], C = x.shape[1], P = x.shape[2]
    cdef Py_ssize_t n, c
    cdef double count = <double> N * <double> P
    cdef const real *row
    cdef double *m
    cdef double *v
    if C == 0:
        return
    m = &mean[0]
    v = &var[0]
    with nogil:
        memset(m, 0, C * sizeof(double))
        memset(v, 0, C * sizeof(double))
        if N > 0 and P > 0:
            row = &x[0, 0, 0]
            for n in range(N):
                if P == 1:
                    for c in range(C):
                        m[c] += row[c]
                else:
                    for c in range(C):
                        m[c] += row_sum(row + c * P, P)
                row += C * P
        for c in range(C):
            m[c] /= count
        if N > 0 and P > 0:
            # Backwards: the end of x is what the first pass has left in the cache.
            for n in range(N - 1, -1, -1):
                row -= C * P
                if P == 1:
                    for c in range(C):
                        v[c] += square(row[c] - m[c])
                else:
                    for c in range(C - 1, -1, -1):
                        v[c] += row_squares(row + c * P, P, m[c])
        for c in range(C):
            v[c] /= count


def scale_shift(const real[:, :, ::1] x, const real[::1] centre, const real[::1] scale,
                const real[::1] shift, real[:, :, ::1] y):
    """Write y[n, c, p] = (x[n, c, p] - centre[c]) * scale[c] + shift[c].

    x, y (N, C, P); centre, scale, shift (C,); all float32 or all float64.
    """
    cdef Py_ssize_t N = x.shape[0], C = x.shape[1], P = x.shape[2]
    cdef Py_ssize_t n, c, p
    cdef const real *src
    cdef const real *m
    cdef const real *a
    cdef const real *b
    cdef real *dst
    cdef real mc, ac, bc
    if N == 0 or C == 0 or P == 0:
        return
    src = &x[0, 0, 0]
    dst = &y[0, 0, 0]
    m = &centre[0]
    a = &scale[0]
    b = &shift[0]
    with nogil:
        for n in range(N):
            if P == 1:
                for c in range(C):
                    dst[c] = (src[c] - m[c]) * a[c] + b[c]
                src += C
                dst += C
                continue
            for c in range(C):
                mc = m[c]
                ac = a[c]
                bc = b[c]
                for p in range(P):
                    dst[p] = (src[p] - mc) * ac + bc
                src += P
                dst += P


def batch_norm_backward(const real[:, :, ::1] dy, const real[:, :, ::1] x,
                        const double[::1] mean, const double[::1] rstd, const real[::1] weight,
                        real[:, :, ::1] dx, double[::1] dw, double[::1] db):
    """Write the gradients of training-mode batch normalisation.

    With xhat = (x - mean) * rstd and sums and averages over n and p of each channel:
    db = sum(dy), dw = sum(dy * xhat), dx = weight * rstd * (dy - avg(dy) - xhat * avg(dy * xhat)).
    dy, x, dx (N, C, P) and weight (C,) of one dtype; mean, rstd, dw, db (C,) float64.
    """
    cdef Py_ssize_t N = x.shape[0], C = x.shape[1], P = x.shape[2]
    cdef Py_ssize_t n, c
    cdef double count = <double> N * <double> P
    cdef const real *g
    cdef const real *src
    cdef const real *w
    cdef real *dst
    cdef const double *m
    cdef const double *r
    cdef double *sum_gx
    cdef double *sum_g
    cdef real *centre
    cdef real *average
    cdef real *slope
    cdef real *factor
    if C == 0:
        return
    sum_gx = &dw[0]
    sum_g = &db[0]
    memset(sum_gx, 0, C * sizeof(double))
    memset(sum_g, 0, C * sizeof(double))
    if N == 0 or P == 0:
        return
    centre = <real *> malloc(4 * C * sizeof(real))
    if centre == NULL:
        raise MemoryError
    average = centre + C
    slope = average + C
    factor = slope + C
    m = &mean[0]
    r = &rstd[0]
    w = &weight[0]
    g = &dy[0, 0, 0]
    src = &x[0, 0, 0]
    dst = &dx[0, 0, 0]
    with nogil:
        for n in range(N):
            if P == 1:
                for c in range(C):
                    sum_g[c] += g[c]
                    sum_gx[c] += g[c] * (src[c] - m[c])
            else:
                for c in range(C):
                    sum_g[c] += row_sum(g + c * P, P)
                    sum_gx[c] += row_products(g + c * P, src + c * P, P, m[c])
            g += C * P
            src += C * P
        for c in range(C):
            sum_gx[c] *= r[c]
            centre[c] = <real> m[c]
            average[c] = <real> (sum_g[c] / count)
            slope[c] = <real> (r[c] * sum_gx[c] / count)
            factor[c] = <real> (w[c] * r[c])
        dst += N * C * P
        for n in range(N):  # backwards, as in moments
            if P == 1:
                g -= C
                src -= C
                dst -= C
                for c in range(C):
                    dst[c] = factor[c] * ((g[c] - average[c]) - (src[c] - centre[c]) * slope[c])
            else:
                for c in range(C - 1, -1, -1):
                    g -= P
                    src -= P
                    dst -= P
                    gradient_row(dst, g, src, P, centre[c], average[c], slope[c], factor[c])
        free(centre)
