"""Pooling, columns, resampling and normalisation by the Cython kernels."""

from __future__ import annotations

from typing import Any

import numpy as np

from cnnfast import compiled
from cnnfast.geometry import Elements, Pooling, Windows
from cnnfast.methods.base import Call, Method, contiguous, update_running
from cnnfast.methods.im2col import window_arguments


class Cython(Method):
    """Plain loops, compiled."""

    name = "cython"

    def supports(self, call: Call) -> str | None:
        if call.device != "cpu":
            return f"its kernels run on the CPU, the arrays are on {call.device}"
        return compiled.cython_missing()

    def im2col(self, g: Windows, x: Any) -> Any:
        columns = np.empty((g.N, g.C * g.KH * g.KW, g.pixels), x.dtype)
        kernels = compiled.kernels("_im2col")
        kernels.im2col(contiguous(x), columns, *window_arguments(g), g.OH, g.OW)
        return columns

    def col2im(self, g: Windows, columns: Any) -> Any:
        x = np.empty(g.x_shape, columns.dtype)
        kernels = compiled.kernels("_im2col")
        kernels.col2im(contiguous(columns), x, *window_arguments(g), g.OH, g.OW)
        return x

    def max_pool2d(self, g: Windows, x: Any, return_indices: bool) -> Any:
        kernels = compiled.kernels("_pool")
        y = np.empty(g.y_shape, x.dtype)
        if not return_indices:
            kernels.max_pool(contiguous(x), y, *window_arguments(g))
            return y
        indices = np.empty(g.y_shape, np.int64)
        kernels.max_pool_indices(contiguous(x), y, indices, *window_arguments(g))
        return y, indices

    def max_pool2d_backward(self, g: Windows, dy: Any, indices: Any) -> Any:
        dx = np.empty(g.x_shape, dy.dtype)
        planes = (g.N * g.C, g.pixels)
        compiled.kernels("_pool").max_pool_backward(
            contiguous(dy, planes), contiguous(indices, planes), dx.reshape(g.N * g.C, g.H * g.W)
        )
        return dx

    def avg_pool2d(self, g: Pooling, x: Any) -> Any:
        y = np.empty(g.y_shape, x.dtype)
        kernels = compiled.kernels("_pool")
        kernels.avg_pool(contiguous(x), y, *_average_arguments(g))
        return y

    def avg_pool2d_backward(self, g: Pooling, dy: Any) -> Any:
        dx = np.empty(g.x_shape, dy.dtype)
        kernels = compiled.kernels("_pool")
        kernels.avg_pool_backward(contiguous(dy), dx, *_average_arguments(g))
        return dx

    def dilate2d(self, g: Windows, x: Any) -> Any:
        y = np.empty(g.y_shape, x.dtype)
        compiled.kernels("_resample").dilate(contiguous(x), y, *g.stride)
        return y

    def dilate2d_backward(self, g: Windows, dy: Any) -> Any:
        dx = np.empty(g.x_shape, dy.dtype)
        compiled.kernels("_resample").subsample(contiguous(dy), dx, *g.stride)
        return dx

    def subsample2d(self, g: Windows, x: Any) -> Any:
        y = np.empty(g.y_shape, x.dtype)
        compiled.kernels("_resample").subsample(contiguous(x), y, *g.stride)
        return y

    def subsample2d_backward(self, g: Windows, dy: Any) -> Any:
        dx = np.empty(g.x_shape, dy.dtype)
        compiled.kernels("_resample").dilate(contiguous(dy), dx, *g.stride)
        return dx

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
        kernels = compiled.kernels("_norm")
        x = contiguous(x)
        N, C, P = x.shape
        if training:
            mean, var = np.zeros(C), np.zeros(C)
            if N:  # of nothing the kernel would give NaN
                kernels.moments(x, mean, var)
        else:
            mean, var = (np.asarray(r, np.float64) for r in (running_mean, running_var))
        rstd = 1 / np.sqrt(var + eps)
        scale = rstd if weight is None else rstd * weight
        # The mean goes first, where it cancels; what rounding it to x's dtype leaves, last.
        centre = mean.astype(x.dtype)
        shift = (centre - mean) * scale
        if bias is not None:
            shift = shift + bias
        y = np.empty_like(x)
        scale, shift = (np.ascontiguousarray(a, x.dtype) for a in (scale, shift))
        kernels.scale_shift(x, centre, scale, shift, y)
        if training:
            update_running(running_mean, running_var, mean, var, N * P, momentum)
        return y, mean.astype(x.dtype), rstd.astype(x.dtype)

    def batch_norm_backward(
        self, g: Elements, dy: Any, x: Any, mean: Any, rstd: Any, weight: Any
    ) -> Any:
        x = contiguous(x)
        C = x.shape[1]
        dx, dw, db = np.empty_like(x), np.empty(C), np.empty(C)
        compiled.kernels("_norm").batch_norm_backward(
            contiguous(dy),
            x,
            np.ascontiguousarray(mean, np.float64),
            np.ascontiguousarray(rstd, np.float64),
            np.ones(C, x.dtype) if weight is None else contiguous(weight),
            dx,
            dw,
            db,
        )
        return dx, dw.astype(x.dtype), db.astype(x.dtype)


def _average_arguments(g: Pooling) -> tuple[int, ...]:
    options = (g.count_include_pad, g.divisor)
    return (g.KH, g.KW, *g.stride, *g.padding[0], *g.padding[1], *options)


METHOD = Cython()
