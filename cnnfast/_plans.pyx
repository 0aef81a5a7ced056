# cython: language_level=3, freethreading_compatible=True
"""Plans of calls that were seen before, found again without the checks that led to them.

Which method serves a call, and with which sizes, follows from the shapes and the dtype of its
arrays and from its parameters. So the second call that looks like the first needs no check but
that it does: its arrays are plain NumPy arrays of one dtype, float32 or float64, or int64 indices.
"""

import numpy as np

cdef object ndarray = np.ndarray
cdef object float32 = np.dtype(np.float32)
cdef object float64 = np.dtype(np.float64)
cdef object int64 = np.dtype(np.int64)

# Operations that take indices. Anywhere else integers are converted first, so there is no plan.
cdef frozenset INDEXED = frozenset({"max_pool1d_backward", "max_pool2d_backward"})

# A program that goes through more shapes than this starts again.
cdef enum:
    MOST_PLANS = 4096


cdef object exact(object parameter):
    """The parameter as it goes into a key, or None if there must be none.

    Keys are compared with ``==``, to which 1, 1.0 and True are the same, as they are not to the
    checks of a first call.
    """
    kind = type(parameter)
    if kind is int or kind is str:
        return parameter
    if kind is bool:
        return "bool", <int>parameter
    if parameter is None:
        return "None", 0
    if kind is float:
        return "float", parameter if parameter else str(parameter)  # -0.0 is not 0.0
    if kind is tuple:
        items = []
        for item in <tuple>parameter:
            item = exact(item)
            if item is None:
                return None
            items.append(item)
        return tuple(items)
    return None


cdef object key(object op, object method, tuple arrays, tuple parameters):
    """What two calls must have in common to be served alike; None for a call without a plan."""
    cdef object dtype = None, found
    cdef list parts = [op, exact(method)]
    for array in arrays:
        if array is None:
            parts.append(None)
            continue
        if type(array) is not ndarray:
            return None
        found = array.dtype
        if found is int64 and op in INDEXED:
            parts.append("int64")
        elif dtype is None:
            if found is float32:
                parts.append(32)
            elif found is float64:
                parts.append(64)
            else:
                return None
            dtype = found
        elif found is not dtype:
            return None
        parts.append(array.shape)
    for parameter in parameters:
        if type(parameter) is not int:
            parameter = exact(parameter)
            if parameter is None:
                return None
        parts.append(parameter)
    return tuple(parts)


cdef class Plans:
    """Plans by what their calls have in common.

    `state` gives what surrounds a call (a forced method, a log); plans are for calls around which
    it gives `plain`, the very object.
    """

    cdef object state
    cdef object plain
    cdef dict known

    def __init__(self, state, plain):
        self.state = state
        self.plain = plain
        self.known = {}

    def again(self, op, method, tuple arrays, tuple parameters, out=None):
        """The result of a call by its plan; None where it has none, or the plan cannot serve."""
        if self.state() is not self.plain:
            return None
        wanted = key(op, method, arrays, parameters)
        if wanted is None:
            return None
        plan = self.known.get(wanted)
        if plan is None:
            return None
        return plan(arrays, out)

    def remember(self, op, method, tuple arrays, tuple parameters, plan):
        """Serve calls like this one by `plan`, a function of the arrays and of ``out``."""
        if self.state() is not self.plain:
            return
        wanted = key(op, method, arrays, parameters)
        if wanted is not None:
            if len(self.known) >= MOST_PLANS:
                self.known.clear()
            self.known[wanted] = plan

    def forget(self):
        """Drop all plans, because the choice among methods has changed."""
        self.known.clear()
