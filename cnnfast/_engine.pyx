# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, freethreading_compatible=True
"""The binding of the C engine. Built once per instruction-set level, from the same sources.

Each operation is a class that is made for the sizes and the dtype of a call, and called with
arrays, as often as wanted: a *plan*. The callers have checked shapes and dtypes; a plan looks only
at what memory safety needs, the number of bytes. Where an array is not in C order, or `out` cannot
be written, a call returns None and has done nothing.

The arrays are taken through the buffer protocol, by hand: a memoryview costs a microsecond each.
"""

from cpython.buffer cimport (
    PyBUF_SIMPLE,
    PyBUF_WRITABLE,
    PyBuffer_FillInfo,
    PyBuffer_Release,
    PyObject_GetBuffer,
)

import numpy as np

from cnnfast.threads import get_num_threads

cdef object empty = np.empty
cdef object ndarray = np.ndarray
cdef object float32 = np.dtype(np.float32)
cdef object float64 = np.dtype(np.float64)

# Results from this size on are recycled (memory.h); smaller ones the C library recycles itself.
cdef Py_ssize_t LARGE = 1 << 20

cdef extern from "memory.h" nogil:
    void *memory_take(size_t bytes)
    void memory_give(void *block)
    size_t memory_kept()
    size_t memory_used()
    size_t memory_limit()
    void memory_release()

cdef extern from *:
    """
    #define CNNFAST_TEXT_OF(name) #name
    #define CNNFAST_TEXT(name) CNNFAST_TEXT_OF(name)
    static const char compiled_level[] = CNNFAST_TEXT(CNNFAST_LEVEL);
    """
    const char *compiled_level


def level() -> str:
    """The instruction-set level that this extension was compiled for."""
    return compiled_level.decode().replace("_", "-")


def memory() -> dict:
    """Bytes of the engine's memory: kept for later, in use, and the most that is kept."""
    return {"kept": memory_kept(), "used": memory_used(), "limit": memory_limit()}


def release() -> None:
    """Return the memory that is kept for later to the system."""
    memory_release()


cdef class Block:
    """Recycled memory, as the base of an array; it goes back when the last array on it is gone."""

    cdef void *start
    cdef Py_ssize_t bytes

    def __cinit__(self, Py_ssize_t bytes):
        self.start = memory_take(bytes)
        self.bytes = bytes
        if self.start is NULL:
            raise MemoryError(f"no {bytes} bytes for a result")

    def __dealloc__(self):
        memory_give(self.start)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.start, self.bytes, 0, flags)


cdef object fresh(tuple shape, object dtype, Py_ssize_t bytes):
    """An array to be filled."""
    if bytes < LARGE:
        return empty(shape, dtype)
    return ndarray(shape, dtype, Block(bytes))


def new(tuple shape, dtype):
    """An array with arbitrary contents, in recycled memory if it is large."""
    dtype = np.dtype(dtype)
    cdef Py_ssize_t bytes = dtype.itemsize
    for n in shape:
        bytes *= n
    return fresh(shape, dtype, bytes)


cdef enum:
    MOST_ARRAYS = 10


cdef class Plan:
    """What all plans do: hold the arrays of one call while the kernel runs.

    `inputs` and `outputs` are the elements of the operands, -1 where an operand of this plan is
    never there; `shapes` are those of the results. Operand i is written to, too, if bit i of
    `written` is set.
    """

    cdef int inputs, outputs, written
    cdef Py_ssize_t bytes[MOST_ARRAYS]
    cdef tuple shapes, dtypes
    cdef bint double

    cdef void settle(self, bint double, tuple inputs, tuple shapes, tuple dtypes=(), int written=0):
        cdef object itemsize = 8 if double else 4
        cdef object real = float64 if double else float32
        cdef Py_ssize_t elements
        self.double = double
        self.inputs = len(inputs)
        self.outputs = len(shapes)
        self.written = written
        self.shapes = shapes
        self.dtypes = tuple(real if d is None else d for d in dtypes) or (real,) * len(shapes)
        for i, n in enumerate(inputs):
            self.bytes[i] = n * itemsize
        for i, shape in enumerate(shapes):
            elements = 1
            for n in shape:
                elements *= n
            self.bytes[self.inputs + i] = elements * self.dtypes[i].itemsize

    cdef int run(self, char **at, int threads) noexcept nogil:
        """Compute: `at` has the inputs and then the outputs, NULL for an input that is None."""
        return 0

    def __call__(self, tuple arrays, out=None):
        cdef Py_buffer views[MOST_ARRAYS]
        cdef char *at[MOST_ARRAYS]
        cdef int all_arrays = self.inputs + self.outputs
        cdef int held = 0, i, j, status, flags, threads
        cdef object array
        cdef list results = []
        threads = get_num_threads()
        for i in range(self.outputs):
            array = None if out is None else out if self.outputs == 1 else (<tuple>out)[i]
            if array is None:
                array = fresh(self.shapes[i], self.dtypes[i], self.bytes[self.inputs + i])
            elif not (type(array) is ndarray and array.dtype is self.dtypes[i]
                      and array.shape == self.shapes[i]):
                return None
            results.append(array)
        for i in range(MOST_ARRAYS):
            views[i].buf = NULL
            at[i] = NULL
        try:
            for i in range(all_arrays):
                array = arrays[i] if i < self.inputs else results[i - self.inputs]
                held = i
                if array is None:
                    continue
                flags = PyBUF_SIMPLE
                if i >= self.inputs or self.written >> i & 1:
                    flags = PyBUF_WRITABLE
                if not hold(array, &views[i], self.bytes[i], flags):
                    return None
                at[i] = <char *>views[i].buf
                held = i + 1
            if out is not None:
                for i in range(self.inputs, all_arrays):
                    for j in range(i):
                        if at[j] is not NULL and not apart(&views[i], &views[j]):
                            return None
            with nogil:
                status = self.run(at, threads)
        finally:
            for i in range(held):
                if at[i] is not NULL:
                    PyBuffer_Release(&views[i])
        if status < 0:
            raise MemoryError("no memory for the scratch of a kernel")
        if status > 0:
            raise ValueError("an index points outside its image")
        return results[0] if self.outputs == 1 else tuple(results)


cdef bint hold(object array, Py_buffer *view, Py_ssize_t bytes, int flags) except -1:
    """Take hold of an array's memory; False where it is not as the kernels need it."""
    try:
        PyObject_GetBuffer(array, view, flags)
    except (BufferError, ValueError):
        return False
    if view.len != bytes:
        PyBuffer_Release(view)
        raise ValueError(f"an array of {view.len} bytes came where {bytes} were due")
    return True


cdef bint apart(Py_buffer *a, Py_buffer *b) noexcept nogil:
    """Whether two arrays share no byte."""
    return <char *>a.buf + a.len <= <char *>b.buf or <char *>b.buf + b.len <= <char *>a.buf


cdef extern from "engine.h" nogil:
    void relu_forward_f32(Py_ssize_t n, const float *x, float *y)
    void relu_forward_f64(Py_ssize_t n, const double *x, double *y)
    void relu_backward_f32(Py_ssize_t n, const float *dy, const float *x, float *dx)
    void relu_backward_f64(Py_ssize_t n, const double *dy, const double *x, double *dx)


cdef class Relu(Plan):
    """y of (x,)."""

    def __init__(self, tuple shape, bint double):
        n = np.prod(shape, dtype=object)
        self.settle(double, (n,), (shape,))

    cdef int run(self, char **at, int threads) noexcept nogil:
        if self.double:
            relu_forward_f64(self.bytes[0] // 8, <double *>at[0], <double *>at[1])
        else:
            relu_forward_f32(self.bytes[0] // 4, <float *>at[0], <float *>at[1])
        return 0


cdef class ReluBackward(Plan):
    """dx of (dy, x)."""

    def __init__(self, tuple shape, bint double):
        n = np.prod(shape, dtype=object)
        self.settle(double, (n, n), (shape,))

    cdef int run(self, char **at, int threads) noexcept nogil:
        if self.double:
            relu_backward_f64(self.bytes[0] // 8, <double *>at[0], <double *>at[1],
                              <double *>at[2])
        else:
            relu_backward_f32(self.bytes[0] // 4, <float *>at[0], <float *>at[1], <float *>at[2])
        return 0
