# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, freethreading_compatible=True
"""The binding of the C engine. Built once per instruction-set level, from the same sources.

Each operation is a class that is made for the sizes and the dtype of a call, and called with
arrays, as often as wanted: a *plan*. The callers have checked shapes and dtypes; a plan looks only
at what memory safety needs, the number of bytes. Where an array is not in C order, `out` cannot be
written, or an index points nowhere, a call returns None: there is no result.

The arrays are taken through the buffer protocol, by hand: a memoryview costs a microsecond each.
"""

from cpython.buffer cimport (
    PyBUF_SIMPLE,
    PyBUF_WRITABLE,
    PyBuffer_FillInfo,
    PyBuffer_Release,
    PyObject_GetBuffer,
)

from cpython.ref cimport PyObject

from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport calloc, free

from math import prod

import numpy as np

from cnnfast.threads import get_num_threads

cdef object empty = np.empty
cdef object ndarray = np.ndarray
cdef object float32 = np.dtype(np.float32)
cdef object float64 = np.dtype(np.float64)
cdef object int64 = np.dtype(np.int64)
cdef object uint8 = np.dtype(np.uint8)

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
    MOST_ARRAYS = 12


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
        if out is not None and self.outputs > 1:
            if type(out) is not tuple or len(<tuple>out) != self.outputs:
                return None
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
                if i >= self.inputs:
                    array = results[i - self.inputs]
                else:
                    array = arrays[i] if i < len(arrays) else None
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
            return None
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


cdef enum:
    # Where an operand of a step in a row is, if not in the row's scratch memory.
    GIVEN = -1  # x
    RESULT = -2
    FIXED = -3


cdef struct step_of_row:
    PyObject *plan
    int operands
    Py_ssize_t places[MOST_ARRAYS]
    char *fixed[MOST_ARRAYS]  # NULL where there is None


cdef class Row(Plan):
    """y of (x,): plans one after the other, by one call.

    Each step is a plan of one result and its operands: arrays, which are held from now on, None, or
    numbers, 0 for x and i for the result of step i. Results that steps hand on are in scratch
    memory, where one takes the place of another that is not needed any more. A step that is None
    has no result.
    """

    cdef list plans
    cdef int count
    cdef step_of_row *steps
    cdef Py_buffer *views
    cdef int held
    cdef Py_ssize_t scratch

    def __cinit__(self, list steps):
        self.steps = <step_of_row *>calloc(len(steps), sizeof(step_of_row))
        self.views = <Py_buffer *>calloc(len(steps) * MOST_ARRAYS, sizeof(Py_buffer))
        if self.steps is NULL or self.views is NULL:
            raise MemoryError("no memory for a row of plans")

    def __init__(self, list steps):
        cdef Plan plan, last = steps[len(steps) - 1][0]
        cdef step_of_row *step
        cdef Py_ssize_t place, due, size = 8 if last.double else 4
        cdef list bytes = [None]  # of each value
        cdef list live = []  # where it is in the scratch memory, and its last use
        self.plans = [each and each[0] for each in steps]
        self.count = len(steps)
        uses = {o: i for i, each in enumerate(steps) if each for o in each[1] if type(o) is int}
        for i, each in enumerate(steps):
            step = &self.steps[i]
            if each is None:
                bytes.append(None)
                live.append((0, 0, -1))
                continue
            plan, operands = each
            if plan.outputs != 1 or plan.written or len(operands) > plan.inputs:
                raise ValueError("a row is of plans of one result")
            step.plan = <PyObject *>plan
            step.operands = plan.inputs + 1
            for j in range(plan.inputs):
                operand = operands[j] if j < len(operands) else None
                due = plan.bytes[j]
                if type(operand) is int:
                    if operand == 0 and bytes[0] is None:
                        bytes[0] = due
                    if bytes[operand] != due:
                        raise ValueError(f"{bytes[operand]} bytes came where {due} were due")
                    step.places[j] = live[operand - 1][0] if operand else GIVEN
                    continue
                step.places[j] = FIXED
                if operand is not None:
                    if not hold(operand, &self.views[self.held], due, PyBUF_SIMPLE):
                        raise ValueError("arrays of a row must be in C order")
                    step.fixed[j] = <char *>self.views[self.held].buf
                    self.held += 1
            due = (plan.bytes[plan.inputs] + 63) // 64 * 64
            place = 0
            for start, end, use in sorted(live):
                if use >= i and start < place + due:
                    place = max(place, end)
            step.places[plan.inputs] = place if i < self.count - 1 else RESULT
            live.append((place, place + due, uses.get(i + 1, -1)))
            bytes.append(plan.bytes[plan.inputs])
            if i < self.count - 1:
                self.scratch = max(self.scratch, place + due)
        self.settle(last.double, ((bytes[0] or 0) // size,), last.shapes)

    def __dealloc__(self):
        for i in range(self.held):
            PyBuffer_Release(&self.views[i])
        free(self.views)
        free(self.steps)

    cdef int run(self, char **at, int threads) noexcept nogil:
        cdef char *operands[MOST_ARRAYS]
        cdef char *scratch = <char *>memory_take(self.scratch)
        cdef step_of_row *step
        cdef Py_ssize_t place
        cdef int i, j, status = 0
        if scratch is NULL:
            return -1
        for i in range(self.count):
            step = &self.steps[i]
            if step.plan is NULL:
                continue
            for j in range(step.operands):
                place = step.places[j]
                if place >= 0:
                    operands[j] = scratch + place
                elif place == FIXED:
                    operands[j] = step.fixed[j]
                else:
                    operands[j] = at[0] if place == GIVEN else at[1]
            status = (<Plan>step.plan).run(operands, threads)
            if status:
                break
        memory_give(scratch)
        return status


cdef extern from "elementwise.h" nogil:
    void relu_forward_f32(Py_ssize_t n, const float *x, float *y, int threads)
    void sigmoid_forward_f32(Py_ssize_t n, const float *x, float *y, int threads)
    void tanh_forward_f32(Py_ssize_t n, const float *x, float *y, int threads)
    void relu_backward_f32(Py_ssize_t n, const float *dy, const float *x, float *dx,
                    int threads)
    void sigmoid_backward_f32(Py_ssize_t n, const float *dy, const float *x, float *dx,
                    int threads)
    void tanh_backward_f32(Py_ssize_t n, const float *dy, const float *x, float *dx,
                    int threads)
    void leaky_relu_forward_f32(Py_ssize_t n, const float *x, double slope, float *y,
                                int threads)
    void leaky_relu_backward_f32(Py_ssize_t n, const float *dy, const float *x,
                                 double slope, float *dx, int threads)
    void add_forward_f32(Py_ssize_t n, const float *a, const float *b, int relu, float *y,
                         int threads)
    int bias_gradient_f32(Py_ssize_t N, Py_ssize_t C, Py_ssize_t P, const float *dy,
                          float *db, int threads)
    void relu_forward_f64(Py_ssize_t n, const double *x, double *y, int threads)
    void sigmoid_forward_f64(Py_ssize_t n, const double *x, double *y, int threads)
    void tanh_forward_f64(Py_ssize_t n, const double *x, double *y, int threads)
    void relu_backward_f64(Py_ssize_t n, const double *dy, const double *x, double *dx,
                    int threads)
    void sigmoid_backward_f64(Py_ssize_t n, const double *dy, const double *x, double *dx,
                    int threads)
    void tanh_backward_f64(Py_ssize_t n, const double *dy, const double *x, double *dx,
                    int threads)
    void leaky_relu_forward_f64(Py_ssize_t n, const double *x, double slope, double *y,
                                int threads)
    void leaky_relu_backward_f64(Py_ssize_t n, const double *dy, const double *x,
                                 double slope, double *dx, int threads)
    void add_forward_f64(Py_ssize_t n, const double *a, const double *b, int relu, double *y,
                         int threads)
    int bias_gradient_f64(Py_ssize_t N, Py_ssize_t C, Py_ssize_t P, const double *dy,
                          double *db, int threads)

cdef extern from "loss.h" nogil:
    double cross_entropy_f32(Py_ssize_t N, Py_ssize_t K, const float *scores,
                             const int64_t *labels, double smoothing, float *dscores,
                             int threads)
    void softmax_forward_f32(Py_ssize_t N, Py_ssize_t K, const float *x, float *y, int threads)
    void log_softmax_forward_f32(Py_ssize_t N, Py_ssize_t K, const float *x, float *y, int threads)
    void softmax_backward_f32(Py_ssize_t N, Py_ssize_t K, const float *dy, const float *y,
                    float *dx, int threads)
    void log_softmax_backward_f32(Py_ssize_t N, Py_ssize_t K, const float *dy, const float *y,
                    float *dx, int threads)
    double cross_entropy_f64(Py_ssize_t N, Py_ssize_t K, const double *scores,
                             const int64_t *labels, double smoothing, double *dscores,
                             int threads)
    void softmax_forward_f64(Py_ssize_t N, Py_ssize_t K, const double *x, double *y, int threads)
    void log_softmax_forward_f64(Py_ssize_t N, Py_ssize_t K, const double *x, double *y, int threads)
    void softmax_backward_f64(Py_ssize_t N, Py_ssize_t K, const double *dy, const double *y,
                    double *dx, int threads)
    void log_softmax_backward_f64(Py_ssize_t N, Py_ssize_t K, const double *dy, const double *y,
                    double *dx, int threads)


cdef enum elements_code:
    RELU
    RELU_BACKWARD
    LEAKY_RELU
    LEAKY_RELU_BACKWARD
    SIGMOID
    SIGMOID_BACKWARD
    TANH
    TANH_BACKWARD
    ADD
    ADD_RELU

cdef dict ELEMENTS_CODES = {
    "relu": RELU,
    "relu_backward": RELU_BACKWARD,
    "leaky_relu": LEAKY_RELU,
    "leaky_relu_backward": LEAKY_RELU_BACKWARD,
    "sigmoid": SIGMOID,
    "sigmoid_backward": SIGMOID_BACKWARD,
    "tanh": TANH,
    "tanh_backward": TANH_BACKWARD,
    "add": ADD,
    "add_relu": ADD_RELU,
}


cdef class Elementwise(Plan):
    """An operation on each element of (x,), (dy, x) or (a, b), by its name."""

    cdef int code
    cdef double slope
    cdef Py_ssize_t n

    def __init__(self, str op, tuple shape, bint double, double slope=0):
        self.code = ELEMENTS_CODES[op]
        self.slope = slope
        n = np.prod(shape, dtype=object)
        self.n = n
        pair = op.endswith("_backward") or op.startswith("add")
        self.settle(double, (n, n) if pair else (n,), (shape,))

    cdef void run_f32(self, char **at, int threads) noexcept nogil:
        cdef float *a = <float *>at[0]
        cdef float *b = <float *>at[1]  # the result, if there is but one operand
        cdef float *c = <float *>at[2]
        if self.code == RELU:
            relu_forward_f32(self.n, a, b, threads)
        elif self.code == RELU_BACKWARD:
            relu_backward_f32(self.n, a, b, c, threads)
        elif self.code == LEAKY_RELU:
            leaky_relu_forward_f32(self.n, a, self.slope, b, threads)
        elif self.code == LEAKY_RELU_BACKWARD:
            leaky_relu_backward_f32(self.n, a, b, self.slope, c, threads)
        elif self.code == SIGMOID:
            sigmoid_forward_f32(self.n, a, b, threads)
        elif self.code == SIGMOID_BACKWARD:
            sigmoid_backward_f32(self.n, a, b, c, threads)
        elif self.code == TANH:
            tanh_forward_f32(self.n, a, b, threads)
        elif self.code == TANH_BACKWARD:
            tanh_backward_f32(self.n, a, b, c, threads)
        else:
            add_forward_f32(self.n, a, b, self.code == ADD_RELU, c, threads)

    cdef void run_f64(self, char **at, int threads) noexcept nogil:
        cdef double *a = <double *>at[0]
        cdef double *b = <double *>at[1]  # the result, if there is but one operand
        cdef double *c = <double *>at[2]
        if self.code == RELU:
            relu_forward_f64(self.n, a, b, threads)
        elif self.code == RELU_BACKWARD:
            relu_backward_f64(self.n, a, b, c, threads)
        elif self.code == LEAKY_RELU:
            leaky_relu_forward_f64(self.n, a, self.slope, b, threads)
        elif self.code == LEAKY_RELU_BACKWARD:
            leaky_relu_backward_f64(self.n, a, b, self.slope, c, threads)
        elif self.code == SIGMOID:
            sigmoid_forward_f64(self.n, a, b, threads)
        elif self.code == SIGMOID_BACKWARD:
            sigmoid_backward_f64(self.n, a, b, c, threads)
        elif self.code == TANH:
            tanh_forward_f64(self.n, a, b, threads)
        elif self.code == TANH_BACKWARD:
            tanh_backward_f64(self.n, a, b, c, threads)
        else:
            add_forward_f64(self.n, a, b, self.code == ADD_RELU, c, threads)

    cdef int run(self, char **at, int threads) noexcept nogil:
        if self.double:
            self.run_f64(at, threads)
        else:
            self.run_f32(at, threads)
        return 0


cdef class BiasGradient(Plan):
    """db of (dy,), the sums over everything but the second axis of `shape`."""

    cdef Py_ssize_t N, C, P

    def __init__(self, tuple shape, bint double):
        self.N, self.C = shape[:2]
        self.P = np.prod(shape[2:], dtype=object)
        self.settle(double, (<object>self.N * self.C * self.P,), ((self.C,),))

    cdef int run(self, char **at, int threads) noexcept nogil:
        if self.double:
            return bias_gradient_f64(self.N, self.C, self.P, <double *>at[0], <double *>at[1],
                                     threads)
        return bias_gradient_f32(self.N, self.C, self.P, <float *>at[0], <float *>at[1], threads)


cdef class Softmax(Plan):
    """Softmax or its logarithm over the last axis of `shape`: y of (x,), or dx of (dy, y)."""

    cdef Py_ssize_t N, K
    cdef bint log, backward

    def __init__(self, str op, tuple shape, bint double):
        n = np.prod(shape, dtype=object)
        self.K = shape[len(shape) - 1]
        self.N = n // self.K
        self.log = op.startswith("log")
        self.backward = op.endswith("_backward")
        self.settle(double, (n, n) if self.backward else (n,), (shape,))

    cdef int run(self, char **at, int threads) noexcept nogil:
        cdef Py_ssize_t N = self.N, K = self.K
        if self.double:
            if self.backward and self.log:
                log_softmax_backward_f64(N, K, <double *>at[0], <double *>at[1],
                                         <double *>at[2], threads)
            elif self.backward:
                softmax_backward_f64(N, K, <double *>at[0], <double *>at[1], <double *>at[2],
                                     threads)
            elif self.log:
                log_softmax_forward_f64(N, K, <double *>at[0], <double *>at[1], threads)
            else:
                softmax_forward_f64(N, K, <double *>at[0], <double *>at[1], threads)
        elif self.backward and self.log:
            log_softmax_backward_f32(N, K, <float *>at[0], <float *>at[1], <float *>at[2],
                                     threads)
        elif self.backward:
            softmax_backward_f32(N, K, <float *>at[0], <float *>at[1], <float *>at[2], threads)
        elif self.log:
            log_softmax_forward_f32(N, K, <float *>at[0], <float *>at[1], threads)
        else:
            softmax_forward_f32(N, K, <float *>at[0], <float *>at[1], threads)
        return 0


cdef class CrossEntropy(Plan):
    """(dscores, loss) of (scores, labels), with labels of int64 and the loss in a float64 ()."""

    cdef Py_ssize_t N, K
    cdef double smoothing

    def __init__(self, tuple shape, bint double, double smoothing):
        self.N, self.K = shape
        self.smoothing = smoothing
        self.settle(double, (<object>self.N * self.K, self.N), (shape, ()), (None, float64))
        self.bytes[1] = self.N * 8

    cdef int run(self, char **at, int threads) noexcept nogil:
        cdef double *loss = <double *>at[3]
        if self.double:
            loss[0] = cross_entropy_f64(self.N, self.K, <double *>at[0], <int64_t *>at[1],
                                        self.smoothing, <double *>at[2], threads)
        else:
            loss[0] = cross_entropy_f32(self.N, self.K, <float *>at[0], <int64_t *>at[1],
                                        self.smoothing, <float *>at[2], threads)
        return 0


cdef extern from "conv.h" nogil:
    struct conv:
        Py_ssize_t N, C, H, W, F, KH, KW, OH, OW, SH, SW, PT, PL, DH, DW, G

cdef conv sizes_of(tuple sizes):
    """The members of ``struct conv``, in order."""
    cdef conv g
    (g.N, g.C, g.H, g.W, g.F, g.KH, g.KW, g.OH, g.OW, g.SH, g.SW, g.PT, g.PL, g.DH, g.DW,
     g.G) = sizes
    return g


cdef extern from "families.h" nogil:
    struct family_f32:
        int (*forward)(const conv *g, const float *x, const float *w, const float *b,
                       double ceiling, float *y, const float *packed, int threads) nogil
        size_t (*forward_scratch)(const conv *g, int threads) nogil
        int (*backward_input)(const conv *g, const float *dy, const float *w, const float *b,
                              float *dx, int threads) nogil
        size_t (*backward_input_scratch)(const conv *g, int threads) nogil
        int (*backward_weights)(const conv *g, const float *dy, const float *x, float *dw,
                                int threads) nogil
        size_t (*backward_weights_scratch)(const conv *g, int threads) nogil
        int (*pack)(const conv *g, const float *w, float *packed, int threads) nogil
        size_t (*packed)(const conv *g) nogil

    struct family_f64:
        int (*forward)(const conv *g, const double *x, const double *w, const double *b,
                       double ceiling, double *y, const double *packed, int threads) nogil
        size_t (*forward_scratch)(const conv *g, int threads) nogil
        int (*backward_input)(const conv *g, const double *dy, const double *w, const double *b,
                              double *dx, int threads) nogil
        size_t (*backward_input_scratch)(const conv *g, int threads) nogil
        int (*backward_weights)(const conv *g, const double *dy, const double *x, double *dw,
                                int threads) nogil
        size_t (*backward_weights_scratch)(const conv *g, int threads) nogil
        int (*pack)(const conv *g, const double *w, double *packed, int threads) nogil
        size_t (*packed)(const conv *g) nogil

    const family_f32 *find_f32 "family_f32"(const char *name)
    const family_f64 *find_f64 "family_f64"(const char *name)
    const family_f32 *find_half_f32 "family_f32_half"(const char *name)
    const family_f64 *find_half_f64 "family_f64_half"(const char *name)


cdef class Product(Plan):
    """One of the products of a convolution, by one family of kernels.

    `sizes` are the members of ``struct conv``, `shape` is the result's, which may have fewer axes
    than the kernel's, but as many elements. `half`: with vectors half as wide as the level's, if it
    has such kernels.
    """

    cdef conv g
    cdef const family_f32 *f32
    cdef const family_f64 *f64

    def __cinit__(self, str family, tuple sizes, bint double, tuple shape, bint half, *args):
        cdef bytes name = family.encode()
        self.g = sizes_of(sizes)
        self.f32 = find_half_f32(name) if half else find_f32(name)
        self.f64 = find_half_f64(name) if half else find_f64(name)
        if self.f32 is NULL:
            raise ValueError(f"there is no family {family!r}")

    cdef object x(self):
        return self.g.N * self.g.C * self.g.H * self.g.W

    cdef object y(self):
        return self.g.N * self.g.F * self.g.OH * self.g.OW

    cdef object w(self):
        return self.g.F * (self.g.C // self.g.G) * self.g.KH * self.g.KW


cdef class Forward(Product):
    """y of (x, w, b, packed), where b may be None, and packed may be left out.

    Unless `ceiling` is 0, y is cut off at 0 and at `ceiling`.
    """

    cdef double ceiling

    def __init__(self, str family, tuple sizes, bint double, tuple shape, bint half,
                 double ceiling=0):
        packed = self.packed(double) // (8 if double else 4)
        self.settle(double, (self.x(), self.w(), self.g.F, packed), (shape,))
        self.ceiling = ceiling

    def scratch(self, int threads) -> int:
        """Bytes of memory that a call takes beside its result."""
        if self.double:
            return self.f64.forward_scratch(&self.g, threads)
        return self.f32.forward_scratch(&self.g, threads)

    cdef object packed(self, bint double):
        if self.f32.packed is NULL:
            return 0
        return self.f64.packed(&self.g) if double else self.f32.packed(&self.g)

    def prepare(self, w):
        """The weights as the kernel wants them, for `packed`; None where it has no such form."""
        cdef Py_buffer from_view, to_view
        cdef int status, threads = get_num_threads()
        cdef bint double = self.double
        if self.packed(double) == 0:
            return None
        packed = fresh((self.bytes[3] // (8 if double else 4),), self.dtypes[0], self.bytes[3])
        if not hold(w, &from_view, self.bytes[1], PyBUF_SIMPLE):
            raise ValueError("weights to be prepared must be in C order")
        try:
            hold(packed, &to_view, self.bytes[3], PyBUF_WRITABLE)
            with nogil:
                if double:
                    status = self.f64.pack(&self.g, <double *>from_view.buf,
                                           <double *>to_view.buf, threads)
                else:
                    status = self.f32.pack(&self.g, <float *>from_view.buf,
                                           <float *>to_view.buf, threads)
            PyBuffer_Release(&to_view)
        finally:
            PyBuffer_Release(&from_view)
        if status < 0:
            raise MemoryError("no memory for the scratch of a kernel")
        return packed

    cdef int run(self, char **at, int threads) noexcept nogil:
        if self.double:
            return self.f64.forward(&self.g, <double *>at[0], <double *>at[1], <double *>at[2],
                                    self.ceiling, <double *>at[4], <double *>at[3], threads)
        return self.f32.forward(&self.g, <float *>at[0], <float *>at[1], <float *>at[2],
                                self.ceiling, <float *>at[4], <float *>at[3], threads)


cdef class BackwardInput(Product):
    """dx of (dy, w, b), where b, with an element for each channel of dx, may be None."""

    def __init__(self, str family, tuple sizes, bint double, tuple shape, bint half):
        self.settle(double, (self.y(), self.w(), self.g.C), (shape,))

    def scratch(self, int threads) -> int:
        """Bytes of memory that a call takes beside its result."""
        if self.double:
            return self.f64.backward_input_scratch(&self.g, threads)
        return self.f32.backward_input_scratch(&self.g, threads)

    cdef int run(self, char **at, int threads) noexcept nogil:
        if self.double:
            return self.f64.backward_input(&self.g, <double *>at[0], <double *>at[1],
                                           <double *>at[2], <double *>at[3], threads)
        return self.f32.backward_input(&self.g, <float *>at[0], <float *>at[1], <float *>at[2],
                                       <float *>at[3], threads)


cdef class BackwardWeights(Product):
    """dw of (dy, x)."""

    def __init__(self, str family, tuple sizes, bint double, tuple shape, bint half):
        self.settle(double, (self.y(), self.x()), (shape,))

    def scratch(self, int threads) -> int:
        """Bytes of memory that a call takes beside its result."""
        if self.double:
            return self.f64.backward_weights_scratch(&self.g, threads)
        return self.f32.backward_weights_scratch(&self.g, threads)

    cdef int run(self, char **at, int threads) noexcept nogil:
        if self.double:
            return self.f64.backward_weights(&self.g, <double *>at[0], <double *>at[1],
                                             <double *>at[2], threads)
        return self.f32.backward_weights(&self.g, <float *>at[0], <float *>at[1],
                                         <float *>at[2], threads)


cdef extern from "blocked.h" nogil:
    Py_ssize_t blocked_lanes_f32()
    Py_ssize_t blocked_lanes_f64()
    bint blocked_serves_f32(const conv *g)
    bint blocked_serves_f64(const conv *g)
    size_t blocked_packed_f32(const conv *g)
    size_t blocked_packed_f64(const conv *g)
    void blocked_pack_f32(const conv *g, const float *w, const float *b, float *packed)
    void blocked_pack_f64(const conv *g, const double *w, const double *b, double *packed)
    void blocked_forward_f32(const conv *g, const float *x, const float *packed,
                             const float *term, double ceiling, float *y, int threads)
    void blocked_forward_f64(const conv *g, const double *x, const double *packed,
                             const double *term, double ceiling, double *y, int threads)
    bint blocked_pair_serves_f32(const conv *first, const conv *second)
    bint blocked_pair_serves_f64(const conv *first, const conv *second)
    int blocked_pair_forward_f32(const conv *first, const conv *second, const float *x,
                                 const float *packed, const float *weights, double ceiling,
                                 double last_ceiling, float *y, int threads)
    int blocked_pair_forward_f64(const conv *first, const conv *second, const double *x,
                                 const double *packed, const double *weights, double ceiling,
                                 double last_ceiling, double *y, int threads)
    void blocked_block_f32(Py_ssize_t N, Py_ssize_t C, Py_ssize_t plane, const float *x,
                           float *blocked, int threads)
    void blocked_block_f64(Py_ssize_t N, Py_ssize_t C, Py_ssize_t plane, const double *x,
                           double *blocked, int threads)
    void blocked_unblock_f32(Py_ssize_t N, Py_ssize_t C, Py_ssize_t plane, const float *blocked,
                             float *x, int threads)
    void blocked_unblock_f64(Py_ssize_t N, Py_ssize_t C, Py_ssize_t plane, const double *blocked,
                             double *x, int threads)


cdef tuple blocked_shape(tuple shape, bint double):
    """The shape of images (N, C, H, W) whose channels lie in blocks."""
    cdef object lanes = blocked_lanes_f64() if double else blocked_lanes_f32()
    N, C, H, W = shape
    return N, -(-C // lanes), H, W, lanes


def blocked_serves(tuple sizes, bint double) -> bool:
    """Whether `Blocked` computes convolutions of these sizes."""
    cdef conv g = sizes_of(sizes)
    return blocked_serves_f64(&g) if double else blocked_serves_f32(&g)


cdef class Blocked(Plan):
    """y of (x, packed, term): a convolution of 1x1, or of single channels, on blocked images.

    These are arrays (N, blocks, H, W, lanes), whose lanes are neighbouring channels. `packed` comes
    from `prepare`. `term` is added and may be left out. Unless `ceiling` is 0,
    y is cut off at 0 and at `ceiling`.
    """

    cdef conv g
    cdef double ceiling

    def __init__(self, tuple sizes, bint double, double ceiling):
        cdef conv g = sizes_of(sizes)
        packed = blocked_packed_f64(&g) if double else blocked_packed_f32(&g)
        x = prod(blocked_shape((g.N, g.C, g.H, g.W), double))
        y = blocked_shape((g.N, g.F, g.OH, g.OW), double)
        self.g, self.ceiling = g, ceiling
        self.settle(double, (x, packed, prod(y)), (y,))

    def prepare(self, w, b):
        """Weights and bias, which may be None, as the kernel wants them."""
        cdef Py_buffer w_view, b_view, to_view
        cdef Py_ssize_t size = 8 if self.double else 4
        packed = fresh((self.bytes[1] // size,), self.dtypes[0], self.bytes[1])
        views = self.g.F * (self.g.C // self.g.G) * self.g.KH * self.g.KW * size, self.g.F * size
        b_view.buf = NULL
        if not hold(w, &w_view, views[0], PyBUF_SIMPLE):
            raise ValueError("weights to be prepared must be in C order")
        try:
            if b is not None and not hold(b, &b_view, views[1], PyBUF_SIMPLE):
                raise ValueError("a bias to be prepared must be in C order")
            hold(packed, &to_view, self.bytes[1], PyBUF_WRITABLE)
            with nogil:
                if self.double:
                    blocked_pack_f64(&self.g, <double *>w_view.buf, <double *>b_view.buf,
                                     <double *>to_view.buf)
                else:
                    blocked_pack_f32(&self.g, <float *>w_view.buf, <float *>b_view.buf,
                                     <float *>to_view.buf)
            PyBuffer_Release(&to_view)
            if b is not None:
                PyBuffer_Release(&b_view)
        finally:
            PyBuffer_Release(&w_view)
        return packed

    cdef int run(self, char **at, int threads) noexcept nogil:
        if self.double:
            blocked_forward_f64(&self.g, <double *>at[0], <double *>at[1], <double *>at[2],
                                self.ceiling, <double *>at[3], threads)
        else:
            blocked_forward_f32(&self.g, <float *>at[0], <float *>at[1], <float *>at[2],
                                self.ceiling, <float *>at[3], threads)
        return 0


def blocked_pair(first, second):
    """One plan in place of two of `Blocked` without terms, or None where that would not be faster."""
    cdef Blocked a, b
    if not (isinstance(first, Blocked) and isinstance(second, Blocked)):
        return None
    a, b = first, second
    if a.double:
        serves = blocked_pair_serves_f64(&a.g, &b.g)
    else:
        serves = blocked_pair_serves_f32(&a.g, &b.g)
    return BlockedPair(a, b) if serves else None


cdef class BlockedPair(Plan):
    """y of (x, packed, packed): a convolution of 1x1, and one of single channels behind it.

    Of what is between them there are a few rows at a time, in the cache.
    """

    cdef conv first, second
    cdef double ceiling, last_ceiling

    def __init__(self, Blocked first, Blocked second):
        cdef Py_ssize_t size = 8 if first.double else 4
        if first.double != second.double or first.bytes[first.inputs] != second.bytes[0]:
            raise ValueError("the second does not take what the first gives")
        self.first, self.second = first.g, second.g
        self.ceiling, self.last_ceiling = first.ceiling, second.ceiling
        elements = first.bytes[0], first.bytes[1], second.bytes[1]
        self.settle(first.double, tuple(n // size for n in elements), second.shapes)

    cdef int run(self, char **at, int threads) noexcept nogil:
        if self.double:
            return blocked_pair_forward_f64(
                &self.first, &self.second, <double *>at[0], <double *>at[1], <double *>at[2],
                self.ceiling, self.last_ceiling, <double *>at[3], threads)
        return blocked_pair_forward_f32(
            &self.first, &self.second, <float *>at[0], <float *>at[1], <float *>at[2],
            self.ceiling, self.last_ceiling, <float *>at[3], threads)


cdef class ToBlocks(Plan):
    """(x,), images of this shape (N, C, H, W), blocked."""

    cdef Py_ssize_t N, C, plane

    def __init__(self, tuple shape, bint double):
        self.N, self.C, self.plane = shape[0], shape[1], shape[2] * shape[3]
        self.settle(double, (prod(shape),), (blocked_shape(shape, double),))

    cdef int run(self, char **at, int threads) noexcept nogil:
        if self.double:
            blocked_block_f64(self.N, self.C, self.plane, <double *>at[0], <double *>at[1], threads)
        else:
            blocked_block_f32(self.N, self.C, self.plane, <float *>at[0], <float *>at[1], threads)
        return 0


cdef class FromBlocks(Plan):
    """(blocked,) as images of this shape (N, C, H, W)."""

    cdef Py_ssize_t N, C, plane

    def __init__(self, tuple shape, bint double):
        self.N, self.C, self.plane = shape[0], shape[1], shape[2] * shape[3]
        self.settle(double, (prod(blocked_shape(shape, double)),), (shape,))

    cdef int run(self, char **at, int threads) noexcept nogil:
        if self.double:
            blocked_unblock_f64(self.N, self.C, self.plane, <double *>at[0], <double *>at[1],
                                threads)
        else:
            blocked_unblock_f32(self.N, self.C, self.plane, <float *>at[0], <float *>at[1],
                                threads)
        return 0


cdef extern from "pool.h" nogil:
    struct pool:
        Py_ssize_t planes, H, W, KH, KW, OH, OW, SH, SW, PT, PL, PB, PR, DH, DW

    int max_pool_forward_f32(const pool *g, const float *x, float *y, int64_t *indices,
                             int threads)
    int max_pool_forward_f64(const pool *g, const double *x, double *y, int64_t *indices,
                             int threads)
    int max_pool_backward_f32(const pool *g, const float *dy, const int64_t *indices, float *dx,
                              int threads)
    int max_pool_backward_f64(const pool *g, const double *dy, const int64_t *indices,
                              double *dx, int threads)
    int max_pool_forward_taps_f32(const pool *g, const float *x, float *y, uint8_t *taps,
                                  int threads)
    int max_pool_forward_taps_f64(const pool *g, const double *x, double *y, uint8_t *taps,
                                  int threads)
    int max_pool_backward_taps_f32(const pool *g, const float *dy, const uint8_t *taps,
                                   float *dx, int threads)
    int max_pool_backward_taps_f64(const pool *g, const double *dy, const uint8_t *taps,
                                   double *dx, int threads)
    int avg_pool_forward_f32(const pool *g, const float *x, float *y, int count_include_pad,
                             Py_ssize_t divisor, int threads)
    int avg_pool_forward_f64(const pool *g, const double *x, double *y, int count_include_pad,
                             Py_ssize_t divisor, int threads)
    int avg_pool_backward_f32(const pool *g, const float *dy, float *dx, int count_include_pad,
                              Py_ssize_t divisor, int threads)
    int avg_pool_backward_f64(const pool *g, const double *dy, double *dx,
                              int count_include_pad, Py_ssize_t divisor, int threads)


cdef class Pooling(Plan):
    """What the plans of pooling share; `sizes` are the members of ``struct pool``.

    `x_shape` and `y_shape` are the user's shapes.
    """

    cdef pool g

    def __cinit__(self, tuple sizes, bint double, tuple x_shape, tuple y_shape, *args):
        (self.g.planes, self.g.H, self.g.W, self.g.KH, self.g.KW, self.g.OH, self.g.OW,
         self.g.SH, self.g.SW, self.g.PT, self.g.PL, self.g.PB, self.g.PR, self.g.DH,
         self.g.DW) = sizes

    cdef object x(self):
        return self.g.planes * self.g.H * self.g.W

    cdef object y(self):
        return self.g.planes * self.g.OH * self.g.OW


cdef class MaxPool(Pooling):
    """y of (x,), or (y, indices)."""

    cdef bint indices

    def __init__(self, tuple sizes, bint double, tuple x_shape, tuple y_shape, bint indices):
        self.indices = indices
        if indices:
            self.settle(double, (self.x(),), (y_shape, y_shape), (None, int64))
        else:
            self.settle(double, (self.x(),), (y_shape,))

    cdef int run(self, char **at, int threads) noexcept nogil:
        cdef int64_t *indices = <int64_t *>at[2] if self.indices else NULL
        if self.double:
            return max_pool_forward_f64(&self.g, <double *>at[0], <double *>at[1], indices,
                                        threads)
        return max_pool_forward_f32(&self.g, <float *>at[0], <float *>at[1], indices, threads)


cdef class MaxPoolBackward(Pooling):
    """dx of (dy, indices)."""

    def __init__(self, tuple sizes, bint double, tuple x_shape, tuple y_shape):
        self.settle(double, (self.y(), self.y()), (x_shape,))
        self.bytes[1] = self.y() * 8

    cdef int run(self, char **at, int threads) noexcept nogil:
        if self.double:
            return max_pool_backward_f64(&self.g, <double *>at[0], <int64_t *>at[1],
                                         <double *>at[2], threads)
        return max_pool_backward_f32(&self.g, <float *>at[0], <int64_t *>at[1],
                                     <float *>at[2], threads)


cdef class MaxPoolTaps(Pooling):
    """(y, taps) of (x,): which tap of its window a maximum is, in one byte each."""

    def __init__(self, tuple sizes, bint double, tuple x_shape, tuple y_shape):
        self.settle(double, (self.x(),), (y_shape, y_shape), (None, uint8))

    cdef int run(self, char **at, int threads) noexcept nogil:
        if self.double:
            return max_pool_forward_taps_f64(&self.g, <double *>at[0], <double *>at[1],
                                             <uint8_t *>at[2], threads)
        return max_pool_forward_taps_f32(&self.g, <float *>at[0], <float *>at[1],
                                         <uint8_t *>at[2], threads)


cdef class MaxPoolTapsBackward(Pooling):
    """dx of (dy, taps)."""

    def __init__(self, tuple sizes, bint double, tuple x_shape, tuple y_shape):
        self.settle(double, (self.y(), self.y()), (x_shape,))
        self.bytes[1] = self.y()

    cdef int run(self, char **at, int threads) noexcept nogil:
        if self.double:
            return max_pool_backward_taps_f64(&self.g, <double *>at[0], <uint8_t *>at[1],
                                              <double *>at[2], threads)
        return max_pool_backward_taps_f32(&self.g, <float *>at[0], <uint8_t *>at[1],
                                          <float *>at[2], threads)


cdef class AvgPool(Pooling):
    """y of (x,)."""

    cdef int padding_counts
    cdef Py_ssize_t divisor

    def __init__(self, tuple sizes, bint double, tuple x_shape, tuple y_shape, bint padding_counts,
                 Py_ssize_t divisor):
        self.settle(double, (self.x(),), (y_shape,))
        self.padding_counts = padding_counts
        self.divisor = divisor

    cdef int run(self, char **at, int threads) noexcept nogil:
        if self.double:
            return avg_pool_forward_f64(&self.g, <double *>at[0], <double *>at[1], self.padding_counts,
                                        self.divisor, threads)
        return avg_pool_forward_f32(&self.g, <float *>at[0], <float *>at[1], self.padding_counts,
                                    self.divisor, threads)


cdef class AvgPoolBackward(Pooling):
    """dx of (dy,)."""

    cdef int padding_counts
    cdef Py_ssize_t divisor

    def __init__(self, tuple sizes, bint double, tuple x_shape, tuple y_shape, bint padding_counts,
                 Py_ssize_t divisor):
        self.settle(double, (self.y(),), (x_shape,))
        self.padding_counts = padding_counts
        self.divisor = divisor

    cdef int run(self, char **at, int threads) noexcept nogil:
        if self.double:
            return avg_pool_backward_f64(&self.g, <double *>at[0], <double *>at[1],
                                         self.padding_counts, self.divisor, threads)
        return avg_pool_backward_f32(&self.g, <float *>at[0], <float *>at[1], self.padding_counts,
                                     self.divisor, threads)


cdef extern from "matmul.h" nogil:
    int linear_forward_f32(Py_ssize_t N, Py_ssize_t I, Py_ssize_t O, const float *x,
                           const float *w, const float *b, int relu, float *y, int threads)
    int linear_forward_f64(Py_ssize_t N, Py_ssize_t I, Py_ssize_t O, const double *x,
                           const double *w, const double *b, int relu, double *y, int threads)
    int linear_backward_input_f32(Py_ssize_t N, Py_ssize_t I, Py_ssize_t O, const float *dy,
                                  const float *w, float *dx, int threads)
    int linear_backward_input_f64(Py_ssize_t N, Py_ssize_t I, Py_ssize_t O, const double *dy,
                                  const double *w, double *dx, int threads)
    int linear_backward_weights_f32(Py_ssize_t N, Py_ssize_t I, Py_ssize_t O, const float *dy,
                                    const float *x, float *dw, float *db, int threads)
    int linear_backward_weights_f64(Py_ssize_t N, Py_ssize_t I, Py_ssize_t O, const double *dy,
                                    const double *x, double *dw, double *db, int threads)
    size_t linear_forward_scratch_f32(Py_ssize_t N, Py_ssize_t I, Py_ssize_t O, int threads)
    size_t linear_forward_scratch_f64(Py_ssize_t N, Py_ssize_t I, Py_ssize_t O, int threads)
    size_t linear_backward_input_scratch_f32(Py_ssize_t N, Py_ssize_t I, Py_ssize_t O,
                                             int threads)
    size_t linear_backward_input_scratch_f64(Py_ssize_t N, Py_ssize_t I, Py_ssize_t O,
                                             int threads)
    size_t linear_backward_weights_scratch_f32(Py_ssize_t N, Py_ssize_t I, Py_ssize_t O,
                                               int threads)
    size_t linear_backward_weights_scratch_f64(Py_ssize_t N, Py_ssize_t I, Py_ssize_t O,
                                               int threads)


cdef class MatrixProduct(Plan):
    """What the plans of a linear layer share: N rows, I inputs, O outputs."""

    cdef Py_ssize_t N, I, O

    def __cinit__(self, Py_ssize_t N, Py_ssize_t I, Py_ssize_t O, bint double, tuple shape, *args):
        self.N, self.I, self.O = N, I, O


cdef class Linear(MatrixProduct):
    """y of (x, w, b), where b may be None."""

    cdef int relu

    def __init__(self, Py_ssize_t N, Py_ssize_t I, Py_ssize_t O, bint double, tuple shape,
                 bint relu=False):
        self.settle(double, (<object>N * I, <object>O * I, O), (shape,))
        self.relu = relu

    def scratch(self, int threads) -> int:
        """Bytes of memory that a call takes beside its result."""
        if self.double:
            return linear_forward_scratch_f64(self.N, self.I, self.O, threads)
        return linear_forward_scratch_f32(self.N, self.I, self.O, threads)

    cdef int run(self, char **at, int threads) noexcept nogil:
        if self.double:
            return linear_forward_f64(self.N, self.I, self.O, <double *>at[0], <double *>at[1],
                                      <double *>at[2], self.relu, <double *>at[3], threads)
        return linear_forward_f32(self.N, self.I, self.O, <float *>at[0], <float *>at[1],
                                  <float *>at[2], self.relu, <float *>at[3], threads)


cdef class LinearBackwardInput(MatrixProduct):
    """dx of (dy, w)."""

    def __init__(self, Py_ssize_t N, Py_ssize_t I, Py_ssize_t O, bint double, tuple shape):
        self.settle(double, (<object>N * O, <object>O * I), (shape,))

    def scratch(self, int threads) -> int:
        """Bytes of memory that a call takes beside its result."""
        if self.double:
            return linear_backward_input_scratch_f64(self.N, self.I, self.O, threads)
        return linear_backward_input_scratch_f32(self.N, self.I, self.O, threads)

    cdef int run(self, char **at, int threads) noexcept nogil:
        if self.double:
            return linear_backward_input_f64(self.N, self.I, self.O, <double *>at[0],
                                             <double *>at[1], <double *>at[2], threads)
        return linear_backward_input_f32(self.N, self.I, self.O, <float *>at[0],
                                         <float *>at[1], <float *>at[2], threads)


cdef class LinearBackwardWeights(MatrixProduct):
    """(dw, db) of (dy, x), or dw alone."""

    cdef bint bias

    def __init__(self, Py_ssize_t N, Py_ssize_t I, Py_ssize_t O, bint double, tuple shape,
                 bint bias):
        self.settle(double, (<object>N * O, <object>N * I), (shape, (O,)) if bias else (shape,))
        self.bias = bias

    def scratch(self, int threads) -> int:
        """Bytes of memory that a call takes beside its result."""
        if self.double:
            return linear_backward_weights_scratch_f64(self.N, self.I, self.O, threads)
        return linear_backward_weights_scratch_f32(self.N, self.I, self.O, threads)

    cdef int run(self, char **at, int threads) noexcept nogil:
        cdef char *db = at[3] if self.bias else NULL
        if self.double:
            return linear_backward_weights_f64(self.N, self.I, self.O, <double *>at[0],
                                               <double *>at[1], <double *>at[2], <double *>db,
                                               threads)
        return linear_backward_weights_f32(self.N, self.I, self.O, <float *>at[0],
                                           <float *>at[1], <float *>at[2], <float *>db, threads)


cdef extern from "math.h" nogil:
    double sqrt(double)

cdef extern from "norm.h" nogil:
    void batch_norm_forward_f32(Py_ssize_t N, Py_ssize_t C, Py_ssize_t P, const float *x,
                                const double *mean, const double *var, const float *weight,
                                const float *bias, double eps, int relu, float *y, int threads)
    void batch_norm_forward_f64(Py_ssize_t N, Py_ssize_t C, Py_ssize_t P, const double *x,
                                const double *mean, const double *var, const double *weight,
                                const double *bias, double eps, int relu, double *y,
                                int threads)
    void batch_norm_forward_training_f32(Py_ssize_t N, Py_ssize_t C, Py_ssize_t P,
                                         const float *x, const float *weight, const float *bias,
                                         double eps, int relu, float *y, double *mean,
                                         double *var, int threads)
    void batch_norm_forward_training_f64(Py_ssize_t N, Py_ssize_t C, Py_ssize_t P,
                                         const double *x, const double *weight,
                                         const double *bias, double eps, int relu, double *y,
                                         double *mean, double *var, int threads)
    void batch_norm_backward_f32(Py_ssize_t N, Py_ssize_t C, Py_ssize_t P, const float *dy,
                                 const float *x, const double *mean, const double *rstd,
                                 const float *weight, const float *bias, int relu, float *dx,
                                 double *dweight, double *dbias, int threads)
    void batch_norm_backward_f64(Py_ssize_t N, Py_ssize_t C, Py_ssize_t P, const double *dy,
                                 const double *x, const double *mean, const double *rstd,
                                 const double *weight, const double *bias, int relu, double *dx,
                                 double *dweight, double *dbias, int threads)


cdef double element(const char *array, bint double_, Py_ssize_t i) noexcept nogil:
    return (<const double *>array)[i] if double_ else (<const float *>array)[i]


cdef void put(char *array, bint double_, Py_ssize_t i, double value) noexcept nogil:
    if double_:
        (<double *>array)[i] = value
    else:
        (<float *>array)[i] = <float>value


cdef class BatchNorm(Plan):
    """y of (x, running_mean, running_var, weight, bias), or (y, mean, rstd) with `stats`.

    All but x may be None; when not training, the running statistics may not. When training, those
    that are there are updated in place. `sizes` is (N, C, P), with P the values per channel of one
    example. With `relu` y is set to 0 where it is negative.
    """

    cdef Py_ssize_t N, C, P
    cdef bint training
    cdef int relu
    cdef double momentum, eps

    def __init__(self, tuple sizes, bint double, tuple shape, bint training, double momentum,
                 double eps, bint stats, bint relu=False):
        self.N, self.C, self.P = sizes
        C = self.C
        self.settle(double, (sizes[0] * sizes[1] * sizes[2], C, C, C, C),
                    (shape, (C,), (C,)) if stats else (shape,), (), 0b110 if training else 0)
        self.training = training
        self.momentum = momentum
        self.eps = eps
        self.relu = relu

    cdef int run(self, char **at, int threads) noexcept nogil:
        cdef double *mean = <double *>memory_take(2 * self.C * sizeof(double))
        cdef double *var = mean + self.C
        cdef double count = <double>self.N * self.P
        cdef double unbiased, old
        cdef Py_ssize_t i
        if mean is NULL:
            return -1
        if not self.training:
            for i in range(self.C):
                mean[i] = element(at[1], self.double, i)
                var[i] = element(at[2], self.double, i)
            if self.double:
                batch_norm_forward_f64(self.N, self.C, self.P, <double *>at[0], mean, var,
                                       <double *>at[3], <double *>at[4], self.eps, self.relu,
                                       <double *>at[5], threads)
            else:
                batch_norm_forward_f32(self.N, self.C, self.P, <float *>at[0], mean, var,
                                       <float *>at[3], <float *>at[4], self.eps, self.relu,
                                       <float *>at[5], threads)
        elif self.double:
            batch_norm_forward_training_f64(self.N, self.C, self.P, <double *>at[0],
                                            <double *>at[3], <double *>at[4], self.eps,
                                            self.relu, <double *>at[5], mean, var, threads)
        else:
            batch_norm_forward_training_f32(self.N, self.C, self.P, <float *>at[0],
                                            <float *>at[3], <float *>at[4], self.eps, self.relu,
                                            <float *>at[5], mean, var, threads)
        if self.training and count:
            # r += momentum * (batch - r) with the unbiased variance, as PyTorch has it.
            for i in range(self.C):
                if at[1] is not NULL:
                    old = element(at[1], self.double, i)
                    put(at[1], self.double, i,
                        old * (1 - self.momentum) + mean[i] * self.momentum)
                if at[2] is not NULL:
                    old = element(at[2], self.double, i)
                    unbiased = var[i] * (count / (count - 1))
                    put(at[2], self.double, i,
                        old * (1 - self.momentum) + unbiased * self.momentum)
        if self.outputs == 3:
            for i in range(self.C):
                put(at[6], self.double, i, mean[i])
                put(at[7], self.double, i, 1 / sqrt(var[i] + self.eps))
        memory_give(mean)
        return 0


cdef class BatchNormBackward(Plan):
    """(dx, dweight, dbias) of (dy, x, mean, rstd, weight, bias), when training.

    weight may be None. bias is read only with `relu`, where dy is the gradient by the ReLU's
    output.
    """

    cdef Py_ssize_t N, C, P
    cdef int relu

    def __init__(self, tuple sizes, bint double, tuple shape, bint relu=False):
        self.N, self.C, self.P = sizes
        C, n = self.C, sizes[0] * sizes[1] * sizes[2]
        self.settle(double, (n, n, C, C, C, C), (shape, (C,), (C,)))
        self.relu = relu

    cdef int run(self, char **at, int threads) noexcept nogil:
        cdef double *mean = <double *>memory_take(4 * self.C * sizeof(double))
        cdef double *rstd = mean + self.C
        cdef double *dweight = rstd + self.C
        cdef double *dbias = dweight + self.C
        cdef Py_ssize_t i
        if mean is NULL:
            return -1
        for i in range(self.C):
            mean[i] = element(at[2], self.double, i)
            rstd[i] = element(at[3], self.double, i)
        if self.double:
            batch_norm_backward_f64(self.N, self.C, self.P, <double *>at[0], <double *>at[1],
                                    mean, rstd, <double *>at[4], <double *>at[5], self.relu,
                                    <double *>at[6], dweight, dbias, threads)
        else:
            batch_norm_backward_f32(self.N, self.C, self.P, <float *>at[0], <float *>at[1],
                                    mean, rstd, <float *>at[4], <float *>at[5], self.relu,
                                    <float *>at[6], dweight, dbias, threads)
        for i in range(self.C):
            put(at[7], self.double, i, dweight[i])
            put(at[8], self.double, i, dbias[i])
        memory_give(mean)
        return 0


def unchanged(list held) -> bool:
    """Whether what was held is the same still: tuples of a dictionary, a name in it and the object.

    Arrays among the objects must still be read-only, too.
    """
    cdef tuple entry
    cdef dict own
    cdef object value
    for entry in held:
        own = entry[0]
        value = entry[2]
        if own.get(entry[1]) is not value:
            return False
        if isinstance(value, ndarray) and value.flags.writeable:
            return False
    return True


cdef extern from "checksum.h" nogil:
    unsigned long long checksum_bytes "checksum"(const void *start, size_t bytes, int threads)
    unsigned long long checksum_join(unsigned long long a, unsigned long long b)


def checksum(tuple arrays) -> int:
    """A number that depends on every bit of the arrays, and on which of them are None."""
    cdef Py_buffer view
    cdef unsigned long long total = 0, one
    cdef int threads = get_num_threads()
    for array in arrays:
        one = 0
        if array is not None:
            try:
                PyObject_GetBuffer(array, &view, PyBUF_SIMPLE)
            except (BufferError, ValueError):  # not in C order
                PyObject_GetBuffer(np.ascontiguousarray(array), &view, PyBUF_SIMPLE)
            try:
                with nogil:
                    one = checksum_bytes(view.buf, view.len, threads)
            finally:
                PyBuffer_Release(&view)
        total = checksum_join(total, one)
    return total


cdef extern from "peak.h" nogil:
    float peak_fma_32 "peak_fma_f32"(Py_ssize_t iterations, int threads)
    double peak_fma_64 "peak_fma_f64"(Py_ssize_t iterations, int threads)
    Py_ssize_t flops_32 "peak_fma_flops_f32"()
    Py_ssize_t flops_64 "peak_fma_flops_f64"()
    void copy_32 "peak_copy_f32"(Py_ssize_t n, const float *x, float *y, int streaming,
                                 int threads)


def peak_fma_f32(Py_ssize_t iterations, int threads) -> float:
    """Multiply-adds in registers alone (peak.h)."""
    cdef float result
    with nogil:
        result = peak_fma_32(iterations, threads)
    return result


def peak_fma_f64(Py_ssize_t iterations, int threads) -> float:
    """Multiply-adds in registers alone (peak.h)."""
    cdef double result
    with nogil:
        result = peak_fma_64(iterations, threads)
    return result


def peak_fma_flops_f32() -> int:
    """Floating-point operations in one iteration of `peak_fma_f32` on one thread."""
    return flops_32()


def peak_fma_flops_f64() -> int:
    """Floating-point operations in one iteration of `peak_fma_f64` on one thread."""
    return flops_64()


def peak_copy_f32(source, target, bint streaming, int threads) -> None:
    """Copy a float32 array to another, by stores that bypass the caches if `streaming`."""
    cdef Py_buffer x, y
    PyObject_GetBuffer(source, &x, PyBUF_SIMPLE)
    try:
        PyObject_GetBuffer(target, &y, PyBUF_WRITABLE)
        try:
            if y.len != x.len:
                raise ValueError(f"{x.len} bytes do not fit {y.len}")
            with nogil:
                copy_32(x.len // 4, <float *>x.buf, <float *>y.buf, streaming, threads)
        finally:
            PyBuffer_Release(&y)
    finally:
        PyBuffer_Release(&x)


cdef extern from "update.h" nogil:
    void sgd_update_f32(Py_ssize_t n, const float *g, float *p, float *buffer, double lr,
                        double momentum, double dampening, double weight_decay, int nesterov,
                        Py_ssize_t steps, int threads)
    void sgd_update_f64(Py_ssize_t n, const double *g, double *p, double *buffer, double lr,
                        double momentum, double dampening, double weight_decay, int nesterov,
                        Py_ssize_t steps, int threads)
    void rmsprop_update_f32(Py_ssize_t n, const float *g, float *p, float *square,
                            float *average, float *buffer, double lr, double alpha, double eps,
                            double weight_decay, double momentum, int threads)
    void rmsprop_update_f64(Py_ssize_t n, const double *g, double *p, double *square,
                            double *average, double *buffer, double lr, double alpha,
                            double eps, double weight_decay, double momentum, int threads)
    void adam_update_f32(Py_ssize_t n, const float *g, float *p, float *average, float *square,
                         float *largest, double lr, double beta1, double beta2, double eps,
                         double weight_decay, int decoupled, Py_ssize_t steps, int threads)
    void adam_update_f64(Py_ssize_t n, const double *g, double *p, double *average,
                         double *square, double *largest, double lr, double beta1, double beta2,
                         double eps, double weight_decay, int decoupled, Py_ssize_t steps,
                         int threads)


cdef class Update(Plan):
    """A step of an optimiser on `n` parameters: (g, p) and its state are the arrays."""

    cdef Py_ssize_t n, steps
    cdef double lr, weight_decay

    def __init__(self, Py_ssize_t n, bint double, int states):
        self.n = n
        # All but the gradient are written to.
        self.settle(double, (n,) * (2 + states), (), (), 0b111110)


cdef class SgdUpdate(Update):
    """SGD on (g, p, momentum buffer), of which the buffer may be None."""

    cdef double momentum, dampening
    cdef int nesterov

    def __init__(self, Py_ssize_t n, bint double):
        super().__init__(n, double, 1)

    def step(self, tuple arrays, Py_ssize_t steps, double lr, double momentum, double dampening,
             double weight_decay, bint nesterov) -> bool:
        """Take step number `steps`; False, with nothing done, if an array does not suit."""
        self.steps, self.lr, self.weight_decay = steps, lr, weight_decay
        self.momentum, self.dampening, self.nesterov = momentum, dampening, nesterov
        return self(arrays) is not None

    cdef int run(self, char **at, int threads) noexcept nogil:
        if self.double:
            sgd_update_f64(self.n, <double *>at[0], <double *>at[1], <double *>at[2], self.lr,
                           self.momentum, self.dampening, self.weight_decay, self.nesterov,
                           self.steps, threads)
        else:
            sgd_update_f32(self.n, <float *>at[0], <float *>at[1], <float *>at[2], self.lr,
                           self.momentum, self.dampening, self.weight_decay, self.nesterov,
                           self.steps, threads)
        return 0


cdef class RmspropUpdate(Update):
    """RMSprop on (g, p, square, average, momentum buffer), of which the last two may be None."""

    cdef double alpha, eps, momentum

    def __init__(self, Py_ssize_t n, bint double):
        super().__init__(n, double, 3)

    def step(self, tuple arrays, double lr, double alpha, double eps, double weight_decay,
             double momentum) -> bool:
        """Take a step; False, with nothing done, if an array does not suit."""
        self.lr, self.weight_decay = lr, weight_decay
        self.alpha, self.eps, self.momentum = alpha, eps, momentum
        return self(arrays) is not None

    cdef int run(self, char **at, int threads) noexcept nogil:
        if self.double:
            rmsprop_update_f64(self.n, <double *>at[0], <double *>at[1], <double *>at[2],
                               <double *>at[3], <double *>at[4], self.lr, self.alpha, self.eps,
                               self.weight_decay, self.momentum, threads)
        else:
            rmsprop_update_f32(self.n, <float *>at[0], <float *>at[1], <float *>at[2],
                               <float *>at[3], <float *>at[4], self.lr, self.alpha, self.eps,
                               self.weight_decay, self.momentum, threads)
        return 0


cdef class AdamUpdate(Update):
    """Adam on (g, p, average, square, largest square), of which the last may be None."""

    cdef double beta1, beta2, eps
    cdef int decoupled

    def __init__(self, Py_ssize_t n, bint double):
        super().__init__(n, double, 3)

    def step(self, tuple arrays, Py_ssize_t steps, double lr, double beta1, double beta2,
             double eps, double weight_decay, bint decoupled) -> bool:
        """Take step number `steps`; False, with nothing done, if an array does not suit."""
        self.steps, self.lr, self.weight_decay = steps, lr, weight_decay
        self.beta1, self.beta2, self.eps, self.decoupled = beta1, beta2, eps, decoupled
        return self(arrays) is not None

    cdef int run(self, char **at, int threads) noexcept nogil:
        if self.double:
            adam_update_f64(self.n, <double *>at[0], <double *>at[1], <double *>at[2],
                            <double *>at[3], <double *>at[4], self.lr, self.beta1, self.beta2,
                            self.eps, self.weight_decay, self.decoupled, self.steps, threads)
        else:
            adam_update_f32(self.n, <float *>at[0], <float *>at[1], <float *>at[2],
                            <float *>at[3], <float *>at[4], self.lr, self.beta1, self.beta2,
                            self.eps, self.weight_decay, self.decoupled, self.steps, threads)
        return 0
