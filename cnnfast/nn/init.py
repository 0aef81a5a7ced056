"""Random starts for parameters, with PyTorch's distributions.

Each function returns a new array, so that a layer is started afresh by
``layer.weight = init.kaiming_normal(layer.weight.shape, rng=rng)`` (setting a parameter writes into
its array). Numbers are drawn in float64 and rounded, so that one seed gives the same start in every
dtype.

References
----------
Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks",
2010 (Xavier). He et al., "Delving deep into rectifiers", 2015 (Kaiming).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cnnfast.nn.arguments import float_dtype, generator
from cnnfast.nn.layer import Array

Shape = Sequence[int]


def fans(shape: Shape) -> tuple[int, int]:
    """How many inputs feed an output and how many outputs an input feeds: (fan_in, fan_out).

    Of a weight of shape ``(out, in, ...)`` that is ``in`` and ``out`` times the kernel's size.
    A transposed convolution's weight is read the same way, although its first axis is the input's,
    as PyTorch does.

    Examples
    --------
    >>> from cnnfast.nn import init
    >>> init.fans((8, 3, 5, 5))
    (75, 200)
    """
    if len(shape) < 2:
        raise ValueError(f"fans: shape must have at least 2 axes, not {tuple(shape)}")
    kernel = math.prod(shape[2:])
    return shape[1] * kernel, shape[0] * kernel


def gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor that keeps the variance through a nonlinearity: PyTorch's ``calculate_gain``.

    Parameters
    ----------
    nonlinearity : str
        ``"linear"``, ``"sigmoid"``, ``"tanh"``, ``"relu"`` or ``"leaky_relu"``.
    param : float, optional
        The negative slope of ``"leaky_relu"`` (0.01 if not given).

    Examples
    --------
    >>> from cnnfast.nn import init
    >>> round(init.gain("relu") ** 2, 12)
    2.0
    """
    if nonlinearity == "leaky_relu":
        return math.sqrt(2 / (1 + (0.01 if param is None else param) ** 2))
    gains = {"linear": 1.0, "sigmoid": 1.0, "tanh": 5 / 3, "relu": math.sqrt(2)}
    if nonlinearity not in gains:
        raise ValueError(
            f"gain: nonlinearity must be one of {', '.join(gains)}, leaky_relu, "
            f"not {nonlinearity!r}"
        )
    return gains[nonlinearity]


def _fan(shape: Shape, mode: str) -> int:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"init: mode must be 'fan_in' or 'fan_out', not {mode!r}")
    return fans(shape)[mode == "fan_out"]


def uniform(shape: Shape, bound: float, *, rng: Any = None, dtype: Any = np.float32) -> Array:
    """Numbers spread evenly over ``[-bound, bound)``."""
    drawn = generator("uniform", rng).uniform(-bound, bound, tuple(shape))
    return drawn.astype(float_dtype("uniform", dtype))


def normal(shape: Shape, std: float, *, rng: Any = None, dtype: Any = np.float32) -> Array:
    """Normally distributed numbers of mean 0."""
    drawn = generator("normal", rng).normal(0.0, std, tuple(shape))
    return drawn.astype(float_dtype("normal", dtype))


def kaiming_uniform(
    shape: Shape,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    *,
    rng: Any = None,
    dtype: Any = np.float32,
) -> Array:
    """Uniform on ``+-gain * sqrt(3 / fan)``.

    Parameters
    ----------
    shape : sequence of int
        Of the weight, ``(out, in, ...)``.
    a : float
        The negative slope of the leaky ReLU that follows (0: a ReLU).
    mode : {"fan_in", "fan_out"}
        Whether the forward or the backward pass keeps its variance.
    nonlinearity : str
        See `gain`.
    rng : numpy.random.Generator, optional
        Where the numbers come from; a fresh one if not given.
    dtype : dtype
        Of the result.

    Returns
    -------
    ndarray
        A new array.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnfast.nn import init
    >>> w = init.kaiming_uniform((64, 3, 3, 3), rng=np.random.default_rng(0))
    >>> bool(np.abs(w).max() <= (6 / 27) ** 0.5)
    True
    """
    bound = gain(nonlinearity, a) * math.sqrt(3 / _fan(shape, mode))
    return uniform(shape, bound, rng=rng, dtype=dtype)


def kaiming_normal(
    shape: Shape,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    *,
    rng: Any = None,
    dtype: Any = np.float32,
) -> Array:
    """Normal with standard deviation ``gain / sqrt(fan)``; parameters as `kaiming_uniform`."""
    return normal(shape, gain(nonlinearity, a) / math.sqrt(_fan(shape, mode)), rng=rng, dtype=dtype)


def xavier_uniform(
    shape: Shape, gain: float = 1.0, *, rng: Any = None, dtype: Any = np.float32
) -> Array:
    """Uniform on ``+-gain * sqrt(6 / (fan_in + fan_out))``."""
    return uniform(shape, gain * math.sqrt(6 / sum(fans(shape))), rng=rng, dtype=dtype)


def xavier_normal(
    shape: Shape, gain: float = 1.0, *, rng: Any = None, dtype: Any = np.float32
) -> Array:
    """Normal with standard deviation ``gain * sqrt(2 / (fan_in + fan_out))``."""
    return normal(shape, gain * math.sqrt(2 / sum(fans(shape))), rng=rng, dtype=dtype)


def default_weight(shape: Shape, *, rng: Any = None, dtype: Any = np.float32) -> Array:
    """The weight that PyTorch starts convolutions and linear layers with.

    `kaiming_uniform` with ``a=sqrt(5)``, which comes to ``+-1 / sqrt(fan_in)``.
    """
    return kaiming_uniform(shape, math.sqrt(5), rng=rng, dtype=dtype)


def default_bias(
    size: int, weight_shape: Shape, *, rng: Any = None, dtype: Any = np.float32
) -> Array:
    """The bias that PyTorch starts those layers with: uniform on ``+-1 / sqrt(fan_in)``."""
    return uniform((size,), 1 / math.sqrt(fans(weight_shape)[0]), rng=rng, dtype=dtype)
