"""Every operation in the words of the Array API standard: slices, sums and matrix products.

It needs no compiled code, and computes wherever the arrays are: NumPy's on any machine,
PyTorch's or CuPy's on their device (https://data-apis.org/array-api; PyTorch's functions are close
enough to it for what is used here). A window operation is a loop over the taps of the window, each
a strided slice of the padded image, which holds that tap of all windows at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

from cnnfast.arrays import namespace
from cnnfast.geometry import Convolution, Elements, Pooling, Product, Windows
from cnnfast.methods.base import Call, ConvolutionMethod, update_running

Tap = tuple[slice | int, ...]


class Portable(ConvolutionMethod):
    """Array API only."""

    name = "portable"

    def workspace(self, call: Call) -> int:
        g, width = call.geometry, np.dtype(call.dtype).itemsize
        if isinstance(g, Product):
            return g.columns * (g.inner + g.rows) * width
        if isinstance(g, Elements):
            return 4 * prod(g.shape) * width  # intermediate results of an expression
        rows, columns = (max(a, b) for a, b in zip(_reach(g), _padded(g), strict=True))
        image, windows = g.N * g.C * rows * columns, g.N * g.C * g.pixels
        if isinstance(g, Convolution):
            return (image + 2 * windows + g.N * g.F * (g.pixels + g.C // g.groups)) * width
        places = np.dtype(np.int64).itemsize
        if call.op.startswith("max_pool"):
            if call.op.endswith("_backward"):
                return 5 * (image + windows) * (width + places)
            return image * width + windows * (3 * width + 4 * places)
        return (image + windows) * width

    # Convolution

    def forward(self, g: Convolution, x: Any, w: Any) -> Any:
        xp = namespace(x)
        padded = _pad(g, x, 0.0)
        w = _by_group(g, w)
        y = _zeros(xp, (g.N, g.groups, g.F // g.groups, g.pixels), x)
        for kh, kw, tap in _taps(g):
            pixels = xp.reshape(padded[tap], (g.N, g.groups, g.C // g.groups, g.pixels))
            y += xp.matmul(w[:, :, :, kh, kw], pixels)
        return xp.reshape(y, g.y_shape)

    def backward_input(self, g: Convolution, dy: Any, w: Any) -> Any:
        xp = namespace(dy)
        w = _by_group(g, w)
        dy = xp.reshape(dy, (g.N, g.groups, g.F // g.groups, g.pixels))
        padded = _pad(g, None, 0.0, dy)
        for kh, kw, tap in _taps(g):
            pixels = xp.matmul(w[:, :, :, kh, kw].mT, dy)
            padded[tap] += xp.reshape(pixels, (g.N, g.C, g.OH, g.OW))
        return _crop(g, padded)

    def backward_weights(self, g: Convolution, dy: Any, x: Any) -> Any:
        xp = namespace(x)
        padded = _pad(g, x, 0.0)
        dy = xp.reshape(dy, (g.N, g.groups, g.F // g.groups, g.pixels))
        dw = _zeros(xp, (g.groups, g.F // g.groups, *g.w_shape[1:]), x)
        for kh, kw, tap in _taps(g):
            pixels = xp.reshape(padded[tap], (g.N, g.groups, g.C // g.groups, g.pixels))
            dw[:, :, :, kh, kw] = xp.sum(xp.matmul(dy, pixels.mT), axis=0)
        return xp.reshape(dw, g.w_shape)

    # Columns

    def im2col(self, g: Windows, x: Any) -> Any:
        xp = namespace(x)
        padded = _pad(g, x, 0.0)
        columns = _zeros(xp, (g.N, g.C, g.KH, g.KW, g.OH, g.OW), x)
        for kh, kw, tap in _taps(g):
            columns[:, :, kh, kw, ...] = padded[tap]
        return xp.reshape(columns, (g.N, g.C * g.KH * g.KW, g.pixels))

    def col2im(self, g: Windows, columns: Any) -> Any:
        xp = namespace(columns)
        columns = xp.reshape(columns, (g.N, g.C, g.KH, g.KW, g.OH, g.OW))
        padded = _pad(g, None, 0.0, columns)
        for kh, kw, tap in _taps(g):
            padded[tap] += columns[:, :, kh, kw, ...]
        return _crop(g, padded)

    # Pooling

    def max_pool2d(self, g: Windows, x: Any, return_indices: bool) -> Any:
        xp = namespace(x)
        padded = _pad(g, x, -float("inf"))
        y = _zeros(xp, g.y_shape, x) - float("inf")
        indices = _zeros(xp, g.y_shape, x, xp.int64) - 1
        for kh, kw, tap in _taps(g):
            i, j, inside = _pixels(g, xp, x, kh, kw)
            value = padded[tap]
            # The first pixel of a window counts even when it is -inf; a NaN beats all before it.
            better = inside & ((value > y) | (value != value) | (indices < 0))
            y = xp.where(better, value, y)
            indices = xp.where(better, i * g.W + j, indices)
        return (y, indices) if return_indices else y

    def max_pool2d_backward(self, g: Windows, dy: Any, indices: Any) -> Any:
        """Each input pixel gathers what points to it, since the standard has no scattered add.

        Sorted by the pixel they point to, the gradients of one pixel lie side by side.
        """
        xp = namespace(dy)
        planes, size = g.N * g.C, g.H * g.W
        if planes == 0:
            return _zeros(xp, g.x_shape, dy)
        first = xp.arange(planes, dtype=xp.int64, device=dy.device) * size
        indices = xp.reshape(indices, (planes, g.pixels))
        target = xp.where(indices < 0, planes * size, indices + first[:, None])
        target = xp.reshape(target, (-1,))
        order = xp.argsort(target, stable=True)
        target, dy = target[order], xp.reshape(dy, (-1,))[order]
        pixels = xp.arange(planes * size, dtype=xp.int64, device=dy.device)
        start = xp.searchsorted(target, pixels, side="left")
        count = xp.searchsorted(target, pixels, side="right") - start
        dx = _zeros(xp, (planes * size,), dy)
        for k in range(int(xp.max(count))):
            here = count > k
            dx += xp.where(here, dy[xp.where(here, start + k, 0)], 0.0)
        return xp.reshape(dx, g.x_shape)

    def avg_pool2d(self, g: Pooling, x: Any) -> Any:
        xp = namespace(x)
        padded = _pad(g, x, 0.0)
        y = _zeros(xp, g.y_shape, x)
        for _, _, tap in _taps(g):
            y += padded[tap]
        return y / _divisors(g, xp, x)

    def avg_pool2d_backward(self, g: Pooling, dy: Any) -> Any:
        xp = namespace(dy)
        padded = _pad(g, None, 0.0, dy)
        share = dy / _divisors(g, xp, dy)
        for _, _, tap in _taps(g):
            padded[tap] += share
        return _crop(g, padded)

    # Resampling

    def dilate2d(self, g: Windows, x: Any) -> Any:
        y = _zeros(namespace(x), g.y_shape, x)
        y[_every(g)] = x
        return y

    def dilate2d_backward(self, g: Windows, dy: Any) -> Any:
        return _copy(dy[_every(g)])

    def subsample2d(self, g: Windows, x: Any) -> Any:
        return _copy(x[_every(g)])

    def subsample2d_backward(self, g: Windows, dy: Any) -> Any:
        dx = _zeros(namespace(dy), g.x_shape, dy)
        dx[_every(g)] = dy
        return dx

    # Normalisation

    def batch_norm(
        self,
        g: Elements,
        x: Any,
        running_mean: Any,
        running_var: Any,
        weight: Any,
        bias: Any,
        training: bool,
        momentum: float,
        eps: float,
    ) -> Any:
        xp = namespace(x)
        count = x.shape[0] * x.shape[2]
        if training:
            mean = xp.sum(x, axis=(0, 2), dtype=xp.float64) / max(count, 1)
            centred = x - xp.asarray(mean, dtype=x.dtype)[:, None]
            var = xp.sum(centred * centred, axis=(0, 2), dtype=xp.float64) / max(count, 1)
            mean, var = xp.asarray(mean, dtype=x.dtype), xp.asarray(var, dtype=x.dtype)
        else:
            mean, var = _copy(running_mean), running_var
            centred = x - mean[:, None]
        rstd = 1 / xp.sqrt(var + eps)
        y = centred * (rstd if weight is None else rstd * weight)[:, None]
        if bias is not None:
            y = y + bias[:, None]
        if training:
            update_running(running_mean, running_var, mean, var, count, momentum)
        return y, mean, rstd

    def batch_norm_backward(
        self, g: Elements, dy: Any, x: Any, mean: Any, rstd: Any, weight: Any
    ) -> Any:
        xp = namespace(x)
        count = max(1, x.shape[0] * x.shape[2])
        normal = (x - mean[:, None]) * rstd[:, None]
        db = xp.sum(dy, axis=(0, 2))
        dw = xp.sum(dy * normal, axis=(0, 2))
        scale = rstd if weight is None else rstd * weight
        dx = (dy - (db / count)[:, None] - normal * (dw / count)[:, None]) * scale[:, None]
        return dx, dw, db

    # Activations

    def relu(self, g: Elements, x: Any) -> Any:
        return namespace(x).where(x < 0, 0.0, x)

    def relu_backward(self, g: Elements, dy: Any, x: Any) -> Any:
        return namespace(x).where(x <= 0, 0.0, dy)

    def leaky_relu(self, g: Elements, x: Any, negative_slope: float) -> Any:
        return namespace(x).where(x > 0, x, x * negative_slope)

    def leaky_relu_backward(self, g: Elements, dy: Any, x: Any, negative_slope: float) -> Any:
        return namespace(x).where(x > 0, dy, dy * negative_slope)

    def sigmoid(self, g: Elements, x: Any) -> Any:
        xp = namespace(x)
        small = xp.exp(-xp.abs(x))  # of the side that cannot overflow
        return xp.where(x >= 0, 1.0, small) / (1 + small)

    def sigmoid_backward(self, g: Elements, dy: Any, x: Any) -> Any:
        y = self.sigmoid(g, x)
        return dy * y * (1 - y)

    def tanh(self, g: Elements, x: Any) -> Any:
        return namespace(x).tanh(x)

    def tanh_backward(self, g: Elements, dy: Any, x: Any) -> Any:
        y = namespace(x).tanh(x)
        return dy * (1 - y * y)

    def softmax(self, g: Elements, x: Any, axis: int) -> Any:
        xp = namespace(x)
        e = xp.exp(x - _max(xp, x, axis))
        return e / xp.sum(e, axis=axis, keepdims=True)

    def softmax_backward(self, g: Elements, dy: Any, y: Any, axis: int) -> Any:
        return y * (dy - namespace(y).sum(dy * y, axis=axis, keepdims=True))

    def log_softmax(self, g: Elements, x: Any, axis: int) -> Any:
        xp = namespace(x)
        x = x - _max(xp, x, axis)
        return x - xp.log(xp.sum(xp.exp(x), axis=axis, keepdims=True))

    def log_softmax_backward(self, g: Elements, dy: Any, y: Any, axis: int) -> Any:
        xp = namespace(y)
        return dy - xp.exp(y) * xp.sum(dy, axis=axis, keepdims=True)

    def dropout(self, g: Elements, x: Any, mask: Any, p: float) -> Any:
        kept = 1 - p if p < 1 else 1  # at p = 1 nothing is kept, and nothing divided by 0
        return x * namespace(x).asarray(mask, dtype=x.dtype) / kept

    dropout_backward = dropout

    # Linear

    def linear(self, g: Product, x: Any, w: Any, b: Any) -> Any:
        y = namespace(x).matmul(x, w.mT)
        return y if b is None else y + b

    def linear_backward(self, g: Product, dy: Any, x: Any, w: Any, needs: str) -> Any:
        xp = namespace(x)
        rows = xp.reshape(dy, (-1, w.shape[0]))
        return (
            xp.matmul(dy, w) if "x" in needs else None,
            xp.matmul(rows.mT, xp.reshape(x, (-1, w.shape[1]))) if "w" in needs else None,
            _sum_rows(xp, rows) if "b" in needs else None,
        )

    # Losses: (loss, gradient by the first argument)

    def cross_entropy(self, g: Elements, scores: Any, labels: Any, label_smoothing: float) -> Any:
        xp = namespace(scores)
        N, C = scores.shape
        own, every = 1 - label_smoothing, label_smoothing / C  # the target's two parts
        log_p = self.log_softmax(g, scores, 1)
        right = _one_hot(xp, labels, C)
        loss = -xp.sum(xp.where(right, log_p, 0.0)) * own
        if every:
            loss = loss - xp.sum(log_p) * every
        p = xp.exp(log_p)
        return _mean(loss, N), (xp.where(right, p - own, p) - every) / max(N, 1)

    def multi_margin_loss(self, g: Elements, scores: Any, labels: Any, margin: float) -> Any:
        xp = namespace(scores)
        N, C = scores.shape
        right = _one_hot(xp, labels, C)
        own = xp.sum(xp.where(right, scores, 0.0), axis=1, keepdims=True)
        margins = xp.where(right, 0.0, scores - own + margin)
        wrong = xp.where(margins > 0, _zeros(xp, (N, C), scores) + 1, 0.0)
        count = xp.sum(wrong, axis=1, keepdims=True)
        loss = xp.sum(xp.where(margins <= 0, 0.0, margins))
        return _mean(loss, N), xp.where(right, -count, wrong) / max(N, 1)

    def mse_loss(self, g: Elements, pred: Any, target: Any) -> Any:
        xp = namespace(pred)
        size = prod(pred.shape)
        error = pred - target
        return _mean(xp.sum(error * error), size), error * (2 / max(size, 1))


def _zeros(xp: Any, shape: tuple[int, ...], like: Any, dtype: Any = None) -> Any:
    return xp.zeros(shape, dtype=like.dtype if dtype is None else dtype, device=like.device)


def _copy(x: Any) -> Any:
    return namespace(x).asarray(x, copy=True)


def _max(xp: Any, x: Any, axis: int) -> Any:
    # PyTorch's `max` along an axis returns the places too; its `amax` is the standard's `max`.
    return getattr(xp, "amax", xp.max)(x, axis=axis, keepdims=True)


def _sum_rows(xp: Any, rows: Any) -> Any:
    # There may be millions of rows, and one after the other float32 would lose digits.
    return xp.asarray(xp.sum(rows, axis=0, dtype=xp.float64), dtype=rows.dtype)


def _mean(total: Any, count: int) -> float:
    return float(total) / count if count else float("nan")


def _one_hot(xp: Any, labels: Any, classes: int) -> Any:
    return labels[:, None] == xp.arange(classes, dtype=xp.int64, device=labels.device)[None, :]


def _by_group(g: Convolution, w: Any) -> Any:
    return namespace(w).reshape(w, (g.groups, g.F // g.groups, *g.w_shape[1:]))


def _every(g: Windows) -> Tap:
    rows, columns = (slice(None, None, step) for step in g.stride)
    return slice(None), slice(None), rows, columns


def _reach(g: Windows) -> tuple[int, int]:
    """The rows and columns, from the padded image's corner, that the windows cover."""
    return (
        (g.OH - 1) * g.stride[0] + (g.KH - 1) * g.dilation[0] + 1,
        (g.OW - 1) * g.stride[1] + (g.KW - 1) * g.dilation[1] + 1,
    )


def _padded(g: Windows) -> tuple[int, int]:
    return g.H + sum(g.padding[0]), g.W + sum(g.padding[1])


def _pad(g: Windows, x: Any, fill: float, like: Any = None) -> Any:
    """The image in a frame of `fill`, large enough for every window; no image, only the frame."""
    like = x if like is None else like
    (top, _), (left, _) = g.padding
    size = (max(a, b) for a, b in zip(_reach(g), _padded(g), strict=True))
    padded = _zeros(namespace(like), (g.N, g.C, *size), like)
    if fill:
        padded += fill
    if x is not None:
        padded[:, :, top : top + g.H, left : left + g.W] = x
    return padded


def _crop(g: Windows, padded: Any) -> Any:
    top, left = g.padding[0][0], g.padding[1][0]
    return _copy(padded[:, :, top : top + g.H, left : left + g.W])


def _taps(g: Windows) -> Iterator[tuple[int, int, Tap]]:
    """For each tap of the window, the slice of the padded image that it sees."""
    (sh, sw), (dh, dw) = g.stride, g.dilation
    for kh in range(g.KH):
        rows = slice(kh * dh, kh * dh + (g.OH - 1) * sh + 1, sh)
        for kw in range(g.KW):
            columns = slice(kw * dw, kw * dw + (g.OW - 1) * sw + 1, sw)
            yield kh, kw, (slice(None), slice(None), rows, columns)


def _pixels(g: Windows, xp: Any, like: Any, kh: int, kw: int) -> tuple[Any, Any, Any]:
    """For one tap of all windows: the input's row and column, and whether those are inside it."""
    i = xp.arange(g.OH, dtype=xp.int64, device=like.device) * g.stride[0]
    j = xp.arange(g.OW, dtype=xp.int64, device=like.device) * g.stride[1]
    i = (i + (kh * g.dilation[0] - g.padding[0][0]))[:, None]
    j = (j + (kw * g.dilation[1] - g.padding[1][0]))[None, :]
    return i, j, (i >= 0) & (i < g.H) & (j >= 0) & (j < g.W)


def _divisors(g: Pooling, xp: Any, like: Any) -> Any:
    """What each window's sum is divided by, as (OH, OW).

    With `count_include_pad` the padding counts, but not what ceil_mode hangs over it.
    """
    if g.divisor:
        return _zeros(xp, (1, 1), like) + g.divisor
    sizes = []
    for size, pad, count, stride, kernel in zip(
        (g.H, g.W), g.padding, (g.OH, g.OW), g.stride, (g.KH, g.KW), strict=True
    ):
        low, high = (-pad[0], size + pad[1]) if g.count_include_pad else (0, size)
        starts = [i * stride - pad[0] for i in range(count)]
        lengths = [float(min(s + kernel, high) - max(s, low)) for s in starts]
        sizes.append(xp.asarray(lengths, dtype=like.dtype, device=like.device))
    return sizes[0][:, None] * sizes[1][None, :]


METHOD = Portable()
