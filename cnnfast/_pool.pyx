# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, freethreading_compatible=True
"""Max and average pooling over any window, and their gradients.

Arrays are C-contiguous, sizes are trusted, outputs are written completely. Output sizes are those
of `y`; `pt`, `pb`, `pl` and `pr` pad above, below, left and right.

A window is a rectangle, so it is reduced along one axis and then along the other, a whole row of
the image at a time: overlapping windows share the first step, and both steps are loops over rows
without a test of bounds in them. Only the few outputs at the left and right whose window leaves
the image are computed one by one.
"""

from libc.math cimport INFINITY
from libc.stdint cimport INT32_MAX, int32_t, int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from cnnfast._span cimport end_inside, first_inside

ctypedef fused real:
    float
    double

# An offset inside a window, as wide as the values beside it so that both fill the same lanes. The
# wide one is a double, exact up to 2**53, because plain x86-64 cannot choose between 64-bit
# integers in vectors; float takes it for windows that span 2**31 elements.
ctypedef fused offset:
    int32_t
    double


# Rows are joined into one as long as the results stay in the first-level cache.
cdef enum:
    JOINED = 2048


cdef struct Axis:
    Py_ssize_t size  # of the input
    Py_ssize_t count  # of the output
    Py_ssize_t taps
    Py_ssize_t stride
    Py_ssize_t before  # padding
    Py_ssize_t dilation
    Py_ssize_t inner0, inner1  # the outputs whose window lies inside the input


cdef Axis axis(Py_ssize_t size, Py_ssize_t count, Py_ssize_t taps, Py_ssize_t stride,
               Py_ssize_t before, Py_ssize_t dilation) noexcept nogil:
    cdef Axis a
    a.size = size
    a.count = count
    a.taps = taps
    a.stride = stride
    a.before = before
    a.dilation = dilation
    a.inner0 = first_inside(-before, stride, count)
    a.inner1 = max(a.inner0, end_inside((taps - 1) * dilation - before, stride, count, size))
    return a


cdef inline Py_ssize_t start(const Axis *a, Py_ssize_t o) noexcept nogil:
    return o * a.stride - a.before


cdef inline bint whole(const Axis *a, Py_ssize_t o) noexcept nogil:
    return a.inner0 <= o < a.inner1


cdef inline Py_ssize_t first_tap(const Axis *a, Py_ssize_t o) noexcept nogil:
    return 0 if whole(a, o) else first_inside(start(a, o), a.dilation, a.taps)


cdef inline Py_ssize_t end_tap(const Axis *a, Py_ssize_t o) noexcept nogil:
    return a.taps if whole(a, o) else end_inside(start(a, o), a.dilation, a.taps, a.size)


cdef inline bint tiles(const Axis *a) noexcept nogil:
    """Whether the windows lie side by side and fill the input, so that rows can be joined."""
    return a.before == 0 and a.inner1 == a.count and a.count * a.stride == a.size


cdef inline bint wins(real v, real m) noexcept nogil:
    """Whether v replaces m, the maximum so far: a tie stays with the first, a NaN always wins."""
    return (v > m) | (v != v)


cdef inline real larger(real m, real v) noexcept nogil:
    return v if wins(v, m) else m


cdef inline void fill(real *y, Py_ssize_t n, real value) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        y[i] = value


cdef inline void copy_strided(real *y, const real *x, Py_ssize_t n,
                              Py_ssize_t step) noexcept nogil:
    cdef Py_ssize_t i
    if step == 1:
        memcpy(y, x, n * sizeof(real))
    else:
        for i in range(n):
            y[i] = x[i * step]


cdef inline void larger_rows(real *y, const real *a, const real *b, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        y[i] = larger(a[i], b[i])


cdef inline void keep_larger(real *y, const real *x, Py_ssize_t n,
                             Py_ssize_t step) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        y[i] = larger(y[i], x[i * step])


cdef inline void largest_of_2(real *y, const real *x, Py_ssize_t n, Py_ssize_t step,
                              Py_ssize_t gap) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        y[i] = larger(x[i * step], x[i * step + gap])


cdef inline void largest_of_3(real *y, const real *x, Py_ssize_t n, Py_ssize_t step,
                              Py_ssize_t gap) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        y[i] = larger(larger(x[i * step], x[i * step + gap]), x[i * step + 2 * gap])


cdef inline void largest(real *y, const real *x, Py_ssize_t n, Py_ssize_t taps, Py_ssize_t step,
                         Py_ssize_t gap) noexcept nogil:
    """Write the largest tap of each of n windows that lie inside x, `step` apart."""
    cdef Py_ssize_t k
    if taps == 1:
        copy_strided(y, x, n, step)
    elif taps == 2:
        largest_of_2(y, x, n, step, gap)
    else:
        largest_of_3(y, x, n, step, gap)
        for k in range(3, taps):
            keep_larger(y, x + k * gap, n, step)


cdef void largest_at_edge(real *y, const real *x, const Axis *a, Py_ssize_t o0,
                          Py_ssize_t o1) noexcept nogil:
    """The same for the outputs from o0 to o1, whose windows may leave x on either side."""
    cdef Py_ssize_t o, k
    cdef real m
    for o in range(o0, o1):
        m = -INFINITY
        for k in range(first_tap(a, o), end_tap(a, o)):
            m = larger(m, x[start(a, o) + k * a.dilation])
        y[o] = m


cdef void max_along(real *y, const real *x, Py_ssize_t n, const Axis *a) noexcept nogil:
    # The usual steps as constants: the compiler makes loops of their own for each.
    if a.stride == 1 and a.dilation == 1:
        largest(y, x, n, a.taps, 1, 1)
    elif a.stride == 2 and a.dilation == 1:
        largest(y, x, n, a.taps, 2, 1)
    else:
        largest(y, x, n, a.taps, a.stride, a.dilation)


cdef void max_along_row(real *y, const real *x, const Axis *a) noexcept nogil:
    if a.inner0 < a.inner1:
        max_along(y + a.inner0, x + start(a, a.inner0), a.inner1 - a.inner0, a)
    largest_at_edge(y, x, a, 0, a.inner0)
    largest_at_edge(y, x, a, a.inner1, a.count)


cdef void max_plane(const real *x, real *y, const Axis *rows, const Axis *cols,
                    real *columns) noexcept nogil:
    """Pool one image: down its columns into the row `columns`, then along that row."""
    cdef Py_ssize_t step = rows.dilation * cols.size
    cdef Py_ssize_t oh, k, k0, k1
    cdef const real *row
    for oh in range(rows.count):
        k0 = first_tap(rows, oh)
        k1 = end_tap(rows, oh)
        if k0 >= k1:
            fill(y, cols.count, <real> -INFINITY)
        else:
            row = x + start(rows, oh) * cols.size
            if k1 - k0 == 1:
                max_along_row(y, row + k0 * step, cols)
            else:
                larger_rows(columns, row + k0 * step, row + (k0 + 1) * step, cols.size)
                for k in range(k0 + 2, k1):
                    keep_larger(columns, row + k * step, cols.size, 1)
                max_along_row(y, columns, cols)
        y += cols.count


cdef inline void argmax_of_1(real *y, offset *at, const real *x, Py_ssize_t n,
                             Py_ssize_t step) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        y[i] = x[i * step]
        at[i] = 0


cdef inline void argmax_of_2(real *y, offset *at, const real *x, Py_ssize_t n, Py_ssize_t step,
                             Py_ssize_t gap) noexcept nogil:
    cdef Py_ssize_t i
    cdef real a, b
    cdef offset zero = 0, one = <offset> gap
    for i in range(n):
        a = x[i * step]
        b = x[i * step + gap]
        y[i] = larger(a, b)
        at[i] = one if wins(b, a) else zero


cdef inline void argmax_of_3(real *y, offset *at, const real *x, Py_ssize_t n, Py_ssize_t step,
                             Py_ssize_t gap) noexcept nogil:
    cdef Py_ssize_t i
    cdef real a, b, c
    cdef offset zero = 0, one = <offset> gap, two = <offset> (2 * gap), here
    for i in range(n):
        a = x[i * step]
        b = x[i * step + gap]
        c = x[i * step + 2 * gap]
        here = one if wins(b, a) else zero
        a = larger(a, b)
        y[i] = larger(a, c)
        at[i] = two if wins(c, a) else here


cdef inline void keep_argmax(real *y, offset *at, const real *x, Py_ssize_t n, Py_ssize_t step,
                             offset here) noexcept nogil:
    cdef Py_ssize_t i
    cdef real m, v
    cdef offset there
    for i in range(n):
        m = y[i]
        v = x[i * step]
        there = at[i]  # read in any case: a read under a condition keeps the loop from vectors
        y[i] = larger(m, v)
        at[i] = here if wins(v, m) else there


cdef inline void argmax(real *y, offset *at, const real *x, Py_ssize_t n, Py_ssize_t taps,
                        Py_ssize_t step, Py_ssize_t gap) noexcept nogil:
    """As `largest`, and in `at` how far from its window's start each maximum lies."""
    cdef Py_ssize_t k
    if taps == 1:
        argmax_of_1(y, at, x, n, step)
    elif taps == 2:
        argmax_of_2(y, at, x, n, step, gap)
    else:
        argmax_of_3(y, at, x, n, step, gap)
        for k in range(3, taps):
            keep_argmax(y, at, x + k * gap, n, step, <offset> (k * gap))


cdef void argmax_at_edge(real *y, offset *at, const real *x, const Axis *a, Py_ssize_t o0,
                         Py_ssize_t o1) noexcept nogil:
    cdef Py_ssize_t o, k, k0, best
    cdef real m, v
    for o in range(o0, o1):
        # Starting from the first tap inside, not from -inf: a window of -inf has its index too.
        k0 = first_tap(a, o)
        best = k0
        m = -INFINITY
        for k in range(k0, end_tap(a, o)):
            v = x[start(a, o) + k * a.dilation]
            if wins(v, m):
                m = v
                best = k
        y[o] = m
        at[o] = <offset> (best * a.dilation)


cdef void argmax_along(real *y, offset *at, const real *x, Py_ssize_t n,
                       const Axis *a) noexcept nogil:
    if a.stride == 1 and a.dilation == 1:
        argmax(y, at, x, n, a.taps, 1, 1)
    elif a.stride == 2 and a.dilation == 1:
        argmax(y, at, x, n, a.taps, 2, 1)
    else:
        argmax(y, at, x, n, a.taps, a.stride, a.dilation)


cdef void argmax_along_row(real *y, offset *at, const real *x, const Axis *a) noexcept nogil:
    cdef Py_ssize_t i = a.inner0, n = a.inner1 - a.inner0
    if n > 0:
        argmax_along(y + i, at + i, x + start(a, i), n, a)
    argmax_at_edge(y, at, x, a, 0, a.inner0)
    argmax_at_edge(y, at, x, a, a.inner1, a.count)


cdef inline void one_row(real *y, offset *at, const real *v, const offset *v_at, Py_ssize_t n,
                         offset base) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        y[i] = v[i]
        at[i] = v_at[i] + base


cdef inline void two_rows(real *y, offset *at, const real *u, const offset *u_at, offset u_base,
                          const real *v, const offset *v_at, offset v_base,
                          Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    cdef real a, b
    cdef offset here, there
    for i in range(n):
        a = u[i]
        b = v[i]
        there = u_at[i] + u_base
        here = v_at[i] + v_base
        y[i] = larger(a, b)
        at[i] = here if wins(b, a) else there


cdef inline void next_row(real *y, offset *at, const real *v, const offset *v_at, Py_ssize_t n,
                          offset base) noexcept nogil:
    cdef Py_ssize_t i
    cdef real a, b
    cdef offset here, there
    for i in range(n):
        a = y[i]
        b = v[i]
        there = at[i]
        here = v_at[i] + base
        y[i] = larger(a, b)
        at[i] = here if wins(b, a) else there


cdef void argmax_plane(const real *x, real *y, int64_t *indices, const Axis *rows,
                       const Axis *cols, Py_ssize_t depth, Py_ssize_t *held, real *kept,
                       offset *kept_at, offset *at) noexcept nogil:
    """Pool one image with indices: along its rows, then down the results.

    Row-major order is this order, so a strict comparison in both steps finds the first of the
    largest. Row h of the image, reduced, is kept in slot h modulo depth until another takes the
    slot: windows that overlap vertically share it.
    """
    cdef Py_ssize_t W = cols.size, OW = cols.count
    cdef Py_ssize_t oh, ow, k, k0, k1, h, slot
    cdef int64_t origin
    cdef real *u = kept
    cdef real *v
    cdef offset *u_at = kept_at
    cdef offset *v_at
    cdef offset u_base = 0, base
    if depth >= rows.size and tiles(cols):  # all rows are one long row
        argmax_along(kept, kept_at, x, rows.size * OW, cols)
        for slot in range(rows.size):
            held[slot] = slot
    else:
        for slot in range(depth):
            held[slot] = -1
    for oh in range(rows.count):
        k0 = first_tap(rows, oh)
        k1 = end_tap(rows, oh)
        if k0 >= k1:
            fill(y, OW, <real> -INFINITY)
            for ow in range(OW):
                indices[ow] = -1
        else:
            for k in range(k0, k1):
                h = start(rows, oh) + k * rows.dilation
                slot = h & (depth - 1)
                if held[slot] != h:
                    argmax_along_row(kept + slot * OW, kept_at + slot * OW, x + h * W, cols)
                    held[slot] = h
                base = <offset> (k * rows.dilation * W)
                v = kept + slot * OW
                v_at = kept_at + slot * OW
                if k == k0:
                    u = v
                    u_at = v_at
                    u_base = base
                elif k == k0 + 1:
                    two_rows(y, at, u, u_at, u_base, v, v_at, base, OW)
                else:
                    next_row(y, at, v, v_at, OW, base)
            if k0 + 1 == k1:
                one_row(y, at, u, u_at, OW, u_base)
            origin = start(rows, oh) * W - cols.before
            for ow in range(OW):
                indices[ow] = origin + ow * cols.stride + <int64_t> at[ow]
            for ow in range(cols.inner0):
                if first_tap(cols, ow) >= end_tap(cols, ow):
                    indices[ow] = -1
            for ow in range(cols.inner1, OW):
                if first_tap(cols, ow) >= end_tap(cols, ow):
                    indices[ow] = -1
        y += OW
        indices += OW


cdef int argmax_planes(const real *x, real *y, int64_t *indices, Py_ssize_t planes,
                       const Axis *rows, const Axis *cols, offset zero) except -1 nogil:
    """Pool every image; `zero` only says how wide the offsets are."""
    cdef Py_ssize_t OW = cols.count
    cdef Py_ssize_t needed = min(rows.size, (rows.taps - 1) * rows.dilation + 1), depth = 1
    cdef Py_ssize_t p
    if tiles(cols) and rows.size * OW <= JOINED:
        needed = rows.size
    while depth < needed:
        depth *= 2
    cdef Py_ssize_t *held = <Py_ssize_t *> malloc(depth * sizeof(Py_ssize_t))
    cdef real *kept = <real *> malloc(depth * OW * sizeof(real))
    cdef offset *at = <offset *> malloc((depth + 1) * OW * sizeof(offset))
    try:
        if held == NULL or kept == NULL or at == NULL:
            raise MemoryError
        for p in range(planes):
            argmax_plane(x, y, indices, rows, cols, depth, held, kept, at + OW, at)
            x += rows.size * cols.size
            y += rows.count * OW
            indices += rows.count * OW
    finally:
        free(held)
        free(kept)
        free(at)
    return 0


def max_pool(const real[:, :, :, ::1] x, real[:, :, :, ::1] y,
             Py_ssize_t KH, Py_ssize_t KW, Py_ssize_t sh, Py_ssize_t sw,
             Py_ssize_t pt, Py_ssize_t pl, Py_ssize_t dh, Py_ssize_t dw):
    """Write the maximum of every window; NaN if it holds one, -inf if it holds no element.

    x (N, C, H, W), y (N, C, OH, OW), both float32 or both float64.
    """
    cdef Py_ssize_t planes = x.shape[0] * x.shape[1], H = x.shape[2], W = x.shape[3]
    cdef Py_ssize_t OH = y.shape[2], OW = y.shape[3]
    cdef Axis rows = axis(H, OH, KH, sh, pt, dh), cols = axis(W, OW, KW, sw, pl, dw)
    cdef Py_ssize_t p
    cdef const real *src
    cdef real *dst
    cdef real *columns
    if planes == 0:
        return
    src = &x[0, 0, 0, 0]
    dst = &y[0, 0, 0, 0]
    columns = <real *> malloc(W * sizeof(real))
    if columns == NULL:
        raise MemoryError
    with nogil:
        for p in range(planes):
            max_plane(src + p * H * W, dst + p * OH * OW, &rows, &cols, columns)
        free(columns)


def max_pool_indices(const real[:, :, :, ::1] x, real[:, :, :, ::1] y,
                     int64_t[:, :, :, ::1] indices,
                     Py_ssize_t KH, Py_ssize_t KW, Py_ssize_t sh, Py_ssize_t sw,
                     Py_ssize_t pt, Py_ssize_t pl, Py_ssize_t dh, Py_ssize_t dw):
    """As max_pool, and write where in its image (as h*W + w) each maximum stands.

    Of equal maxima the first in row-major order counts, of several NaNs the last; -1 stands for a
    window without an element. indices (N, C, OH, OW) int64.
    """
    cdef Py_ssize_t planes = x.shape[0] * x.shape[1], H = x.shape[2], W = x.shape[3]
    cdef Py_ssize_t OH = y.shape[2], OW = y.shape[3]
    cdef Axis rows = axis(H, OH, KH, sh, pt, dh), cols = axis(W, OW, KW, sw, pl, dw)
    cdef double span = (KH - 1.0) * dh * W + (KW - 1.0) * dw
    cdef const real *src
    cdef real *dst
    cdef int64_t *at
    if planes == 0:
        return
    src = &x[0, 0, 0, 0]
    dst = &y[0, 0, 0, 0]
    at = &indices[0, 0, 0, 0]
    with nogil:
        if real is float and span <= INT32_MAX:
            argmax_planes(src, dst, at, planes, &rows, &cols, <int32_t> 0)
        else:
            argmax_planes(src, dst, at, planes, &rows, &cols, <double> 0)


def max_pool_backward(const real[:, ::1] dy, const int64_t[:, ::1] indices, real[:, ::1] dx):
    """Write the sum of the dy whose index points there to each element of dx.

    dy, indices (M, P), dx (M, Q). Indices outside [0, Q) are skipped; returns False if there was
    one other than -1.
    """
    cdef Py_ssize_t M = dx.shape[0], P = dy.shape[1], Q = dx.shape[1]
    cdef Py_ssize_t m, p
    cdef const real *g
    cdef const int64_t *at
    cdef real *dst
    cdef bint valid = True
    if M == 0 or Q == 0:
        return True
    dst = &dx[0, 0]
    if P == 0:
        memset(dst, 0, M * Q * sizeof(real))
        return True
    g = &dy[0, 0]
    at = &indices[0, 0]
    with nogil:
        for m in range(M):
            memset(dst, 0, Q * sizeof(real))
            for p in range(P):
                if 0 <= at[p] < Q:
                    dst[at[p]] += g[p]
                elif at[p] != -1:
                    valid = False
            g += P
            at += P
            dst += Q
    return valid


cdef inline void add_rows(real *y, const real *a, const real *b, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        y[i] = a[i] + b[i]


cdef inline void add_to(real *y, const real *x, Py_ssize_t n, Py_ssize_t step) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        y[i] += x[i * step]


cdef inline void sum_of_2(real *y, const real *x, Py_ssize_t n, Py_ssize_t step) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        y[i] = x[i * step] + x[i * step + 1]


cdef inline void sum_of_3(real *y, const real *x, Py_ssize_t n, Py_ssize_t step) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        y[i] = x[i * step] + x[i * step + 1] + x[i * step + 2]


cdef inline void sums(real *y, const real *x, Py_ssize_t n, Py_ssize_t taps,
                      Py_ssize_t step) noexcept nogil:
    """Write the sum of each of n windows that lie inside x, `step` apart."""
    cdef Py_ssize_t k
    if taps == 1:
        copy_strided(y, x, n, step)
    elif taps == 2:
        sum_of_2(y, x, n, step)
    else:
        sum_of_3(y, x, n, step)
        for k in range(3, taps):
            add_to(y, x + k, n, step)


cdef inline Py_ssize_t extent(const Axis *a, Py_ssize_t after, bint padded,
                              Py_ssize_t o) noexcept nogil:
    """How many elements of a window count in the average: inside the input, or also its padding."""
    if padded:
        return min(start(a, o) + a.taps, a.size + after) - start(a, o)
    return end_tap(a, o) - first_tap(a, o)


cdef void average_at_edge(real *y, const real *x, const Axis *cols, Py_ssize_t right, bint padded,
                          Py_ssize_t height, Py_ssize_t divisor, Py_ssize_t o0,
                          Py_ssize_t o1) noexcept nogil:
    cdef Py_ssize_t o, k, k0, k1
    cdef real total
    for o in range(o0, o1):
        total = 0
        k0 = first_tap(cols, o)
        k1 = end_tap(cols, o)
        for k in range(k0, k1):
            total += x[start(cols, o) + k]
        if k0 < k1:
            total /= divisor if divisor else height * extent(cols, right, padded, o)
        y[o] = total


cdef void average_along_row(real *y, const real *x, const Axis *cols, Py_ssize_t right,
                            bint padded, Py_ssize_t height, Py_ssize_t divisor) noexcept nogil:
    cdef Py_ssize_t n = cols.inner1 - cols.inner0, i
    cdef real *inner = y + cols.inner0
    cdef real count = divisor if divisor else height * cols.taps
    if n > 0:
        x += start(cols, cols.inner0)
        if cols.stride == 1:
            sums(inner, x, n, cols.taps, 1)
        elif cols.stride == 2:
            sums(inner, x, n, cols.taps, 2)
        else:
            sums(inner, x, n, cols.taps, cols.stride)
        for i in range(n):
            inner[i] /= count
        x -= start(cols, cols.inner0)
    average_at_edge(y, x, cols, right, padded, height, divisor, 0, cols.inner0)
    average_at_edge(y, x, cols, right, padded, height, divisor, cols.inner1, cols.count)


cdef void average_plane(const real *x, real *y, const Axis *rows, const Axis *cols,
                        Py_ssize_t below, Py_ssize_t right, bint padded, Py_ssize_t divisor,
                        real *columns) noexcept nogil:
    """Pool one image: sum its columns into the row `columns`, then average along that row."""
    cdef Py_ssize_t W = cols.size
    cdef Py_ssize_t oh, k, k0, k1, height
    cdef const real *row
    for oh in range(rows.count):
        k0 = first_tap(rows, oh)
        k1 = end_tap(rows, oh)
        if k0 >= k1:
            fill(y, cols.count, <real> 0)
        else:
            height = extent(rows, below, padded, oh)
            row = x + start(rows, oh) * W
            if k1 - k0 == 1:
                average_along_row(y, row + k0 * W, cols, right, padded, height, divisor)
            else:
                add_rows(columns, row + k0 * W, row + (k0 + 1) * W, W)
                for k in range(k0 + 2, k1):
                    add_to(columns, row + k * W, W, 1)
                average_along_row(y, columns, cols, right, padded, height, divisor)
        y += cols.count


cdef inline void spread_strided(real *dx, const real *g, Py_ssize_t n,
                                Py_ssize_t step) noexcept nogil:
    cdef Py_ssize_t i
    if step == 1:
        for i in range(n):
            dx[i] += g[i]
    else:
        for i in range(n):
            dx[i * step] += g[i]


cdef void spread_along_row(real *dx, const real *g, const Axis *cols) noexcept nogil:
    """Write to each element of a row the sum of g over the windows that it belongs to."""
    cdef Py_ssize_t k, left, o0, o1, i
    if cols.taps == 2 and cols.stride == 2 and cols.before == 0:
        o1 = min(cols.count, cols.size // 2)  # a window cut off at the right: below
        for i in range(o1):
            dx[2 * i] = g[i]
            dx[2 * i + 1] = g[i]
        for i in range(2 * o1, cols.size):
            dx[i] = g[o1] if o1 < cols.count else 0
        return
    memset(dx, 0, cols.size * sizeof(real))
    # Only the taps that some window has inside the row: there may be billions of others.
    for k in range(max(0, cols.before - (cols.count - 1) * cols.stride),
                   min(cols.taps, cols.before + cols.size)):
        left = k - cols.before
        o0 = first_inside(left, cols.stride, cols.count)
        o1 = end_inside(left, cols.stride, cols.count, cols.size)
        if o0 < o1:
            spread_strided(dx + o0 * cols.stride + left, g + o0, o1 - o0, cols.stride)


cdef void average_plane_backward(const real *dy, real *dx, const Axis *rows, const Axis *cols,
                                 Py_ssize_t below, Py_ssize_t right, bint padded,
                                 Py_ssize_t divisor, real *g, real *columns) noexcept nogil:
    cdef Py_ssize_t W = cols.size, OW = cols.count
    cdef Py_ssize_t oh, ow, k, h, height, written = 0
    cdef real count
    for oh in range(rows.count):
        if first_tap(rows, oh) < end_tap(rows, oh):
            height = extent(rows, below, padded, oh)
            count = divisor if divisor else height * cols.taps
            for ow in range(OW):
                g[ow] = dy[ow] / count
            if not divisor:
                for ow in range(cols.inner0):
                    g[ow] = dy[ow] / (height * extent(cols, right, padded, ow))
                for ow in range(cols.inner1, OW):
                    g[ow] = dy[ow] / (height * extent(cols, right, padded, ow))
            spread_along_row(columns, g, cols)
            for k in range(first_tap(rows, oh), end_tap(rows, oh)):
                h = start(rows, oh) + k
                if h < written:
                    add_to(dx + h * W, columns, W, 1)
                else:  # the first window to reach this row: nothing to add to yet
                    memset(dx + written * W, 0, (h - written) * W * sizeof(real))
                    memcpy(dx + h * W, columns, W * sizeof(real))
                    written = h + 1
        dy += OW
    memset(dx + written * W, 0, (rows.size - written) * W * sizeof(real))


def avg_pool(const real[:, :, :, ::1] x, real[:, :, :, ::1] y,
             Py_ssize_t KH, Py_ssize_t KW, Py_ssize_t sh, Py_ssize_t sw,
             Py_ssize_t pt, Py_ssize_t pb, Py_ssize_t pl, Py_ssize_t pr,
             bint count_include_pad, Py_ssize_t divisor):
    """Write the average of every window: its sum over `divisor`, or over its size if that is 0.

    The size counts the elements inside the image, with count_include_pad those of the padding
    too. x (N, C, H, W), y (N, C, OH, OW), both float32 or both float64.
    """
    cdef Py_ssize_t planes = x.shape[0] * x.shape[1], H = x.shape[2], W = x.shape[3]
    cdef Py_ssize_t OH = y.shape[2], OW = y.shape[3]
    cdef Axis rows = axis(H, OH, KH, sh, pt, 1), cols = axis(W, OW, KW, sw, pl, 1)
    cdef Py_ssize_t p
    cdef const real *src
    cdef real *dst
    cdef real *columns
    if planes == 0:
        return
    src = &x[0, 0, 0, 0]
    dst = &y[0, 0, 0, 0]
    columns = <real *> malloc(W * sizeof(real))
    if columns == NULL:
        raise MemoryError
    with nogil:
        for p in range(planes):
            average_plane(src + p * H * W, dst + p * OH * OW, &rows, &cols, pb, pr,
                          count_include_pad, divisor, columns)
        free(columns)


def avg_pool_backward(const real[:, :, :, ::1] dy, real[:, :, :, ::1] dx,
                      Py_ssize_t KH, Py_ssize_t KW, Py_ssize_t sh, Py_ssize_t sw,
                      Py_ssize_t pt, Py_ssize_t pb, Py_ssize_t pl, Py_ssize_t pr,
                      bint count_include_pad, Py_ssize_t divisor):
    """Write the gradient of avg_pool: every window's dy, divided as there, to its elements.

    dy (N, C, OH, OW), dx (N, C, H, W), both float32 or both float64.
    """
    cdef Py_ssize_t planes = dx.shape[0] * dx.shape[1], H = dx.shape[2], W = dx.shape[3]
    cdef Py_ssize_t OH = dy.shape[2], OW = dy.shape[3]
    cdef Axis rows = axis(H, OH, KH, sh, pt, 1), cols = axis(W, OW, KW, sw, pl, 1)
    cdef Py_ssize_t p
    cdef const real *src
    cdef real *dst
    cdef real *scratch
    if planes == 0:
        return
    src = &dy[0, 0, 0, 0]
    dst = &dx[0, 0, 0, 0]
    scratch = <real *> malloc((W + OW) * sizeof(real))
    if scratch == NULL:
        raise MemoryError
    with nogil:
        for p in range(planes):
            average_plane_backward(src + p * OH * OW, dst + p * H * W, &rows, &cols, pb, pr,
                                   count_include_pad, divisor, scratch + W, scratch)
        free(scratch)
