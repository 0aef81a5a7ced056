"""Layers that change shapes only."""

from __future__ import annotations

import math
from typing import Any

from cnnfast import arrays, fused
from cnnfast.nn.arguments import whole
from cnnfast.nn.layer import Array, Layer


class Flatten(Layer):
    """Make one axis of the axes `start_dim` to `end_dim`.

    Where the memory layout allows, the result is a view of the input, as in PyTorch.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnfast import nn
    >>> nn.Flatten()(np.zeros((4, 3, 2, 2))).shape
    (4, 12)
    """

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim = whole("Flatten", "start_dim", start_dim, -(2**31))
        self.end_dim = whole("Flatten", "end_dim", end_dim, -(2**31))

    def forward(self, x: Array) -> Array:
        plain = fused.plain(x)
        if not plain:
            x = _array("Flatten", "x", x)
        shape = tuple(x.shape)
        start, end = (self._axis(name, len(shape)) for name in ("start_dim", "end_dim"))
        if start > end:
            raise ValueError(
                f"Flatten: start_dim={self.start_dim} comes after end_dim={self.end_dim} "
                f"in x of shape {shape}"
            )
        flat = (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :])
        self._saved = shape, flat
        y: Array = x.reshape(flat) if plain else _reshaped(x, flat)
        return y

    def _axis(self, name: str, ndim: int) -> int:
        axis: int = getattr(self, name)
        if not -ndim <= axis < ndim:
            raise ValueError(f"Flatten: {name}={axis} is out of range for x of {ndim} axes")
        return axis % ndim

    def backward(self, dy: Array) -> Any:
        x_shape, y_shape = self._recall()
        dy = _array("Flatten.backward", "dy", dy)
        if tuple(dy.shape) != y_shape:
            raise ValueError(
                f"Flatten.backward: dy must have shape {y_shape}, not {tuple(dy.shape)}"
            )
        return _reshaped(dy, x_shape)

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


def _array(op: str, name: str, value: Any) -> Any:
    """Another library's array as it is, wherever it lies; anything else as a NumPy array."""
    return value if arrays.is_foreign(value) else arrays.view(op, name, value)


def _reshaped(x: Any, shape: tuple[int, ...]) -> Any:
    return arrays.namespace(x).reshape(x, shape)
