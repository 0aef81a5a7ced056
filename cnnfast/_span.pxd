# cython: language_level=3
"""Which positions of a strided walk lie inside an axis: the bounds that keep tests out of loops.

A walk visits ``offset, offset + stride, offset + 2*stride, ...``; an output position walks along
the input with the stride of the operation, a tap of a window with its dilation.
"""


cdef inline Py_ssize_t first_inside(Py_ssize_t offset, Py_ssize_t stride,
                                    Py_ssize_t count) noexcept nogil:
    """The first of `count` steps that is not before the axis, `count` if there is none."""
    if offset >= 0:
        return 0
    return min(count, (stride - 1 - offset) // stride)


cdef inline Py_ssize_t end_inside(Py_ssize_t offset, Py_ssize_t stride, Py_ssize_t count,
                                  Py_ssize_t size) noexcept nogil:
    """One past the last of `count` steps that is before the end of an axis of `size`."""
    if offset >= size:
        return 0
    return min(count, (size - 1 - offset) // stride + 1)
