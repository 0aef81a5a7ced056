"""The loops of `cnnfast.naive` as a method: the reference, always there and always last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cnnfast import naive
from cnnfast.geometry import Convolution, Elements, Pair, Pooling, Windows
from cnnfast.methods.base import Call, Method


class Naive(Method):
    """Plain Python loops. One-dimensional calls go to the one-dimensional loops."""

    name = "naive"

    def supports(self, call: Call) -> str | None:
        if call.device != "cpu":
            return f"its loops run on the CPU, the arrays are on {call.device}"
        return None

    def workspace(self, call: Call) -> int:
        if not isinstance(call.geometry, Windows):
            return 0
        g = call.geometry
        padded = g.N * g.C * (g.H + sum(g.padding[0])) * (g.W + sum(g.padding[1]))
        return padded * np.dtype(call.dtype).itemsize

    def conv2d(self, g: Convolution, x: Any, w: Any, b: Any) -> Any:
        return _lift(g, _loops(g, "conv")(_lower(g, x), _lower(g, w), b, *_sliding(g), g.groups))

    def conv2d_backward(self, g: Convolution, dy: Any, x: Any, w: Any, needs: str) -> Any:
        arrays = (_lower(g, a) for a in (dy, x, w))
        grads = _loops(g, "conv", "_backward")(*arrays, *_sliding(g), g.groups, needs=needs)
        return tuple(_lift(g, a) for a in grads[:2]) + grads[2:]

    def conv_transpose2d(self, g: Convolution, x: Any, w: Any, b: Any) -> Any:
        loops = _loops(g, "conv_transpose")
        return _lift(g, loops(_lower(g, x), _lower(g, w), b, *_transposed(g)))

    def conv_transpose2d_backward(self, g: Convolution, dy: Any, x: Any, w: Any, needs: str) -> Any:
        arrays = (_lower(g, a) for a in (dy, x, w))
        loops = _loops(g, "conv_transpose", "_backward")
        grads = loops(*arrays, *_transposed(g), needs=needs)
        return tuple(_lift(g, a) for a in grads[:2]) + grads[2:]

    def im2col(self, g: Windows, x: Any) -> Any:
        return naive.im2col(x, (g.KH, g.KW), *_sliding(g))

    def col2im(self, g: Windows, columns: Any) -> Any:
        return naive.col2im(columns, (g.H, g.W), (g.KH, g.KW), *_sliding(g))

    def max_pool2d(self, g: Pooling, x: Any, return_indices: bool) -> Any:
        result = _loops(g, "max_pool")(
            _lower(g, x), _axes(g, (g.KH, g.KW)), *_sliding(g), g.ceil_mode, return_indices
        )
        return tuple(_lift(g, a) for a in result) if return_indices else _lift(g, result)

    def max_pool2d_backward(self, g: Windows, dy: Any, indices: Any) -> Any:
        loops = _loops(g, "max_pool", "_backward")
        return _lift(g, loops(_lower(g, dy), _lower(g, indices), _input_shape(g)))

    def avg_pool2d(self, g: Pooling, x: Any) -> Any:
        return _lift(g, _loops(g, "avg_pool")(_lower(g, x), *_averaging(g)))

    def avg_pool2d_backward(self, g: Pooling, dy: Any) -> Any:
        loops = _loops(g, "avg_pool", "_backward")
        return _lift(g, loops(_lower(g, dy), _input_shape(g), *_averaging(g)))

    def dilate2d(self, g: Windows, x: Any) -> Any:
        return _lift(g, _loops(g, "dilate")(_lower(g, x), _axes(g, g.stride)))

    def dilate2d_backward(self, g: Windows, dy: Any) -> Any:
        loops = _loops(g, "dilate", "_backward")
        return _lift(g, loops(_lower(g, dy), _axes(g, g.stride), _input_shape(g)))

    def subsample2d(self, g: Windows, x: Any) -> Any:
        return _lift(g, _loops(g, "subsample")(_lower(g, x), _axes(g, g.stride)))

    def subsample2d_backward(self, g: Windows, dy: Any) -> Any:
        loops = _loops(g, "subsample", "_backward")
        return _lift(g, loops(_lower(g, dy), _axes(g, g.stride), _input_shape(g)))

    def batch_norm(self, g: Elements, *arguments: Any) -> Any:
        return naive.batch_norm(*arguments, return_stats=True)

    def dropout(self, g: Elements, x: Any, mask: Any, p: float) -> Any:
        # With the mask drawn already, forward and backward are the same product.
        return naive.dropout_backward(x, mask, p)

    def __getattr__(self, op: str) -> Callable[..., Any]:
        """Every other operation takes the arguments that its loops take."""
        loops = getattr(naive, op)
        return lambda g, *arguments, **options: loops(*arguments, **options)


def _loops(g: Windows, op: str, backward: str = "") -> Any:
    return getattr(naive, f"{op}{g.ndim}d{backward}")


def _lower(g: Windows, a: Any) -> Any:
    """Without the rows' axis that a one-dimensional call was given."""
    return a[:, :, 0] if g.ndim == 1 else a


def _lift(g: Windows, a: Any) -> Any:
    """With that axis again."""
    return a if a is None or g.ndim == 2 else a[:, :, None]


def _axes(g: Windows, pair: Any) -> Any:
    return pair[2 - g.ndim :]


def _sliding(g: Windows) -> tuple[Any, Any, Any]:
    """Stride, padding and dilation as the loops take them."""
    return _axes(g, g.stride), _axes(g, g.padding), _axes(g, g.dilation)


def _input_shape(g: Windows) -> tuple[int, ...]:
    return (g.N, g.C, g.W) if g.ndim == 1 else g.x_shape


def _transposed(g: Convolution) -> tuple[Any, ...]:
    stride, padding, dilation = _sliding(g)
    return stride, padding, _axes(g, _output_padding(g)), g.groups, dilation


def _output_padding(g: Convolution) -> Pair:
    """What the image has beyond the size that its windows make necessary."""
    rows, columns = (
        size + sum(pad) - ((count - 1) * stride + dilation * (kernel - 1) + 1)
        for size, pad, count, stride, dilation, kernel in zip(
            (g.H, g.W),
            g.padding,
            (g.OH, g.OW),
            g.stride,
            g.dilation,
            (g.KH, g.KW),
            strict=True,
        )
    )
    return rows, columns


def _averaging(g: Pooling) -> tuple[Any, ...]:
    stride, padding, _ = _sliding(g)
    options = (_axes(g, (g.KH, g.KW)), stride, padding, g.ceil_mode, g.count_include_pad)
    return options if g.ndim == 1 else (*options, g.divisor or None)


METHOD = Naive()
