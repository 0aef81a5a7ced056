"""The constructor arguments that many layers share, checked once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cnnfast import dispatch
from cnnfast.geometry import pads, per_axis, whole

Sizes = tuple[int, ...]

_DTYPES = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))


def float_dtype(layer: str, dtype: Any) -> np.dtype[Any]:
    """The dtype of a layer's parameters: float32, float64, or float16."""
    try:
        found: np.dtype[Any] = np.dtype(dtype)
    except TypeError:
        raise TypeError(f"{layer}: dtype must be a NumPy float type, not {dtype!r}") from None
    if found not in _DTYPES or dtype is None:
        raise TypeError(f"{layer}: dtype must be float32, float64 or float16, not {dtype!r}")
    return found


def generator(layer: str, rng: Any) -> np.random.Generator:
    """The generator given, or a fresh one; no global seed is read or set."""
    if rng is None:
        return np.random.default_rng()
    if not isinstance(rng, np.random.Generator):
        raise TypeError(
            f"{layer}: rng must be a numpy.random.Generator, such as "
            f"numpy.random.default_rng(0), not {rng!r}"
        )
    return rng


def sizes(layer: str, name: str, value: Any, ndim: int, least: int) -> Sizes:
    """One integer per axis, from an integer or a sequence of them."""
    return per_axis(layer, name, value, ndim, least)[2 - ndim :]


def paddings(layer: str, value: Any, ndim: int) -> Any:
    """Padding as one integer per axis, or as pairs where the two ends of an axis differ."""
    pairs = pads(layer, value, ndim)[2 - ndim :]
    if all(before == after for before, after in pairs):
        return tuple(before for before, _ in pairs)
    return pairs


def probability(layer: str, p: Any) -> float:
    """A number from 0 to 1."""
    return float(number(layer, "p", p, 0, 1))


def number(
    layer: str, name: str, value: Any, least: float = -math.inf, most: float = math.inf
) -> Any:
    """`value` as it is, if it is a real number, and not less than `least` or more than `most`."""
    if isinstance(value, bool | np.bool_ | str | bytes):
        raise TypeError(f"{layer}: {name} must be a number, not {value!r}")
    try:
        as_float = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{layer}: {name} must be a number, not {value!r}") from None
    if not least <= as_float <= most:
        raise ValueError(f"{layer}: {name} must be from {least} to {most}, not {value!r}")
    return value


def method_name(layer: str, op: str, method: Any) -> str:
    """The name of a method that the operation has, or "auto"."""
    known = ("auto", *dispatch.methods(op))
    if not isinstance(method, str):
        raise TypeError(f"{layer}: method must be a name, not {method!r}")
    if method not in known:
        raise ValueError(f"{layer}: there is no method {method!r}; there are {', '.join(known)}")
    return method


def refuse_inplace(layer: str, inplace: Any) -> None:
    """`inplace` keeps its place in PyTorch's argument order; inputs are never changed here."""
    if inplace:
        raise ValueError(
            f"{layer}: inplace=True is not supported (no layer changes its input); leave it out"
        )


__all__ = [
    "Sizes",
    "float_dtype",
    "generator",
    "method_name",
    "number",
    "paddings",
    "probability",
    "refuse_inplace",
    "sizes",
    "whole",
]
