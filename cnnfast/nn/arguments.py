"""The constructor arguments that many layers share, checked once."""

from __future__ import annotations

from typing import Any

import numpy as np

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
    try:
        number = float(p)
    except (TypeError, ValueError):
        raise TypeError(f"{layer}: p must be a number from 0 to 1, not {p!r}") from None
    if not 0 <= number <= 1:
        raise ValueError(f"{layer}: p must be from 0 to 1, not {number}")
    return number


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
    "paddings",
    "probability",
    "refuse_inplace",
    "sizes",
    "whole",
]
