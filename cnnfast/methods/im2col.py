"""Explicit columns and one matrix product.

Every window of the image is copied into a column (`cnnfast/_im2col.pyx`), so that convolution
becomes the product of the filters, as rows, with those columns: Chellapilla, Puri and Simard, "High
performance convolutional neural networks for document processing", 2006; the courses' fast layers.
The columns hold each pixel KH * KW times, so they are made for a few images at a time, as many as
stay in the cache between the copy and the product.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

from cnnfast import compiled
from cnnfast.geometry import Convolution, Windows
from cnnfast.methods.base import Call, ConvolutionMethod, contiguous

_BLOCK_BYTES = 1 << 20  # of columns at a time: what a level-2 cache of one core holds


def window_arguments(g: Windows) -> tuple[int, ...]:
    """The integers that the Cython kernels take: kernel, stride, top and left padding, dilation."""
    return (g.KH, g.KW, *g.stride, g.padding[0][0], g.padding[1][0], *g.dilation)


class Im2col(ConvolutionMethod):
    """Columns by Cython, products by NumPy's BLAS."""

    name = "im2col"

    def supports(self, call: Call) -> str | None:
        if call.device != "cpu":
            return f"its kernels run on the CPU, the arrays are on {call.device}"
        return compiled.cython_missing()

    def workspace(self, call: Call) -> int:
        assert isinstance(call.geometry, Convolution)
        g, width = call.geometry, np.dtype(call.dtype).itemsize
        images = min(g.N, _images_at_once(g, width))
        columns = images * _column_bytes(g, width)
        if not call.op.endswith("_backward"):
            return columns
        # The gradient by weights brings the images of a block together, and adds up the blocks.
        return 2 * columns + (images * g.F * g.pixels + prod(g.w_shape)) * width

    def forward(self, g: Convolution, x: Any, w: Any) -> Any:
        im2col = compiled.kernels("_im2col").im2col
        x, rows = contiguous(x), _rows(g, w)
        y = np.empty(g.y_shape, x.dtype)
        for images, columns in _blocks(g, x.dtype):
            im2col(x[images], columns, *window_arguments(g), g.OH, g.OW)
            np.matmul(rows, _grouped(g, columns), out=_grouped(g, y[images]))
        return y

    def backward_input(self, g: Convolution, dy: Any, w: Any) -> Any:
        col2im = compiled.kernels("_im2col").col2im
        dy, rows = contiguous(dy), _rows(g, w).swapaxes(1, 2)
        dx = np.empty(g.x_shape, dy.dtype)
        for images, columns in _blocks(g, dy.dtype):
            np.matmul(rows, _grouped(g, dy[images]), out=_grouped(g, columns))
            col2im(columns, dx[images], *window_arguments(g), g.OH, g.OW)
        return dx

    def backward_weights(self, g: Convolution, dy: Any, x: Any) -> Any:
        im2col = compiled.kernels("_im2col").im2col
        dy, x = contiguous(dy), contiguous(x)
        dw = np.zeros((g.groups, g.F // g.groups, g.C // g.groups * g.KH * g.KW), x.dtype)
        for images, columns in _blocks(g, x.dtype):
            im2col(x[images], columns, *window_arguments(g), g.OH, g.OW)
            rows = _together(_grouped(g, dy[images]))
            dw += np.matmul(rows, _together(_grouped(g, columns)).swapaxes(1, 2))
        return dw.reshape(g.w_shape)


def _column_bytes(g: Convolution, width: int) -> int:
    return g.C * g.KH * g.KW * g.pixels * width


def _images_at_once(g: Convolution, width: int) -> int:
    return max(1, _BLOCK_BYTES // _column_bytes(g, width))


def _blocks(g: Convolution, dtype: np.dtype[Any]) -> Iterator[tuple[slice, Any]]:
    """Slices of the batch, each with the memory for its columns, which is reused."""
    step = _images_at_once(g, dtype.itemsize)
    memory = np.empty((min(step, g.N), g.C * g.KH * g.KW, g.pixels), dtype)
    for start in range(0, g.N, step):
        images = slice(start, min(start + step, g.N))
        yield images, memory[: images.stop - start]


def _rows(g: Convolution, w: Any) -> Any:
    """The filters as (groups, filters of a group, taps)."""
    return contiguous(w).reshape(g.groups, g.F // g.groups, -1)


def _grouped(g: Convolution, a: Any) -> Any:
    """(images, rows, ...) as (images, groups, rows of a group, pixels)."""
    return a.reshape(a.shape[0], g.groups, a.shape[1] // g.groups, g.pixels)


def _together(a: Any) -> Any:
    """(images, groups, rows, pixels) as (groups, rows, pixels of all images)."""
    return a.transpose(1, 2, 0, 3).reshape(*a.shape[1:3], -1)


METHOD = Im2col()
