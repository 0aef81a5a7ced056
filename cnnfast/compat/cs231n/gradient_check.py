"""The course's ``gradient_check``, and the `rel_error` that its notebooks define.

Arrays must be float64: a step of 1e-5 is lost in the rounding of float32. The variants for Caffe's
blobs and nets, which no notebook calls, are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cnnfast import gradcheck
from cnnfast.compat.cs231n.chance import global_rng

__all__ = [
    "eval_numerical_gradient",
    "eval_numerical_gradient_array",
    "grad_check_sparse",
    "rel_error",
]

Array = NDArray[Any]


def eval_numerical_gradient(
    f: Callable[[Array], Any], x: Array, verbose: bool = True, h: float = 0.00001
) -> Array:
    """The gradient by x of f, which gives a number, by central differences.

    `verbose` prints every element. f may get at x in its own way: x is changed in place, and put
    back. See `cnnfast.gradcheck.numeric_gradient`.
    """
    gradient = gradcheck.numeric_gradient(f, x, h=h)
    if verbose:
        for i in np.ndindex(x.shape):
            print(i, gradient[i])
    return gradient


def eval_numerical_gradient_array(
    f: Callable[[Array], Array], x: Array, df: ArrayLike, h: float = 1e-5
) -> Array:
    """The gradient by x of ``sum(f(x) * df)``, where f gives an array, by central differences.

    Examples
    --------
    >>> import numpy as np
    >>> eval_numerical_gradient_array(np.square, np.array([1.0, 3.0]), np.ones(2)).round(6)
    array([2., 6.])
    """
    return gradcheck.numeric_gradient(f, x, df, h)


def grad_check_sparse(
    f: Callable[[Array], Any],
    x: Array,
    analytic_grad: Array,
    num_checks: int = 10,
    h: float = 1e-5,
) -> None:
    """Print the numeric and the analytic gradient of f at some elements of x, chosen at random."""
    rng = global_rng()
    for _ in range(num_checks):
        i = tuple(int(rng.integers(n)) for n in x.shape)
        element = x[tuple(slice(k, k + 1) for k in i)]
        numeric = gradcheck.numeric_gradient(lambda _: f(x), element, h=h).item()
        error = rel_error(numeric, analytic_grad[i])
        print(f"numerical: {numeric:f} analytic: {analytic_grad[i]:f}, relative error: {error:e}")


def rel_error(x: ArrayLike, y: ArrayLike) -> float:
    """The largest ``|x - y| / max(1e-8, |x| + |y|)``. x and y must have one shape."""
    return gradcheck.rel_error(x, y)
