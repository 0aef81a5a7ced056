# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, freethreading_compatible=True
"""The binding of the C engine. Built once per instruction-set level, from the same sources.

Arrays are contiguous, of one length and dtype; the callers have checked that.
"""

ctypedef fused real:
    float
    double

cdef extern from "engine.h" nogil:
    void relu_forward_f32(Py_ssize_t n, const float *x, float *y)
    void relu_forward_f64(Py_ssize_t n, const double *x, double *y)
    void relu_backward_f32(Py_ssize_t n, const float *dy, const float *x, float *dx)
    void relu_backward_f64(Py_ssize_t n, const double *dy, const double *x, double *dx)

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


def relu(const real[::1] x, real[::1] y):
    """Write y = max(x, 0); a NaN stays a NaN."""
    cdef Py_ssize_t n = x.shape[0]
    if n == 0:
        return
    with nogil:
        if real is float:
            relu_forward_f32(n, &x[0], &y[0])
        else:
            relu_forward_f64(n, &x[0], &y[0])


def relu_backward(const real[::1] dy, const real[::1] x, real[::1] dx):
    """Write dx = dy where the gradient of max(x, 0) is 1, and 0 elsewhere."""
    cdef Py_ssize_t n = x.shape[0]
    if n == 0:
        return
    with nogil:
        if real is float:
            relu_backward_f32(n, &dy[0], &x[0], &dx[0])
        else:
            relu_backward_f64(n, &dy[0], &x[0], &dx[0])
