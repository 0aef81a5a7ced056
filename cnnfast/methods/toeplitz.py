"""The filter as one matrix: row = output pixel, column = input pixel.

A convolution is linear in the image, so it is a matrix. With every image flattened that matrix is
doubly blocked Toeplitz: equal along its diagonals, within its blocks and from block to block.
(Strang, "Linear Algebra and Learning from Data", 2019, IV.2; the courses' first view of
convolution.) It is the way to see what a convolution is, not to compute one: all but
KH * KW * C / groups of the C * H * W entries of a row are zero. So it is kept as the list of each
row's entries (the ELLPACK format, which suits rows of equal length); that also keeps an infinity
in one pixel from meeting the zeros of all other windows. `dense_matrix` is for looking at.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cnnfast.geometry import Convolution
from cnnfast.methods.base import Call, ConvolutionMethod, contiguous

_SPARSE_ENTRIES = 1 << 26


class Toeplitz(ConvolutionMethod):
    """One product of the filter's sparse matrix with the images as columns."""

    name = "toeplitz"

    def supports(self, call: Call) -> str | None:
        assert isinstance(call.geometry, Convolution)
        if call.device != "cpu":
            return f"it computes on the CPU, the arrays are on {call.device}"
        entries = _sparse_entries(call.geometry)
        if entries > _SPARSE_ENTRIES:
            return f"its matrix would have {entries} entries, more than {_SPARSE_ENTRIES}"
        return None

    def workspace(self, call: Call) -> int:
        assert isinstance(call.geometry, Convolution)
        g, width, place = call.geometry, np.dtype(call.dtype).itemsize, np.dtype(np.intp).itemsize
        # Places are computed in three steps; images and results stand as columns, with a product
        # of one tap beside them.
        entries = _sparse_entries(g) * (width + 3 * place)
        columns = g.N * (2 * (g.C * g.H * g.W + 1) + 4 * g.F * g.pixels)
        return entries + columns * width

    def forward(self, g: Convolution, x: Any, w: Any) -> Any:
        images = _images(g, x)
        where, values = _entries(g), _values(g, w)
        y = np.zeros((g.F * g.pixels, g.N), x.dtype)
        for tap in range(values.shape[1]):
            y += values[:, tap, None] * images[where[:, tap]]
        return contiguous(y.T, g.y_shape)

    def backward_input(self, g: Convolution, dy: Any, w: Any) -> Any:
        gradients = dy.reshape(g.N, g.F * g.pixels).T
        where, values = _entries(g), _values(g, w)
        dx = np.zeros((g.C * g.H * g.W + 1, g.N), dy.dtype)
        for tap in range(values.shape[1]):
            # Of one filter, a tap meets an input pixel at most once; filters share pixels.
            for f in range(g.F):
                rows = slice(f * g.pixels, (f + 1) * g.pixels)
                dx[where[rows, tap]] += values[rows, tap, None] * gradients[rows]
        return contiguous(dx[:-1].T, g.x_shape)

    def backward_weights(self, g: Convolution, dy: Any, x: Any) -> Any:
        """Each weight gathers the gradient of all the entries of the matrix that hold it."""
        images, gradients = _images(g, x), dy.reshape(g.N, g.F * g.pixels).T
        where = _entries(g)
        dw = np.empty((g.F, where.shape[1]), x.dtype)
        for tap in range(where.shape[1]):
            entries = (gradients * images[where[:, tap]]).sum(axis=1)
            dw[:, tap] = entries.reshape(g.F, g.pixels).sum(axis=1)
        return dw.reshape(g.w_shape)


def dense_matrix(g: Convolution, w: Any) -> Any:
    """The whole matrix T of one image's convolution, so that ``y.ravel() == T @ x.ravel()``.

    Parameters
    ----------
    g : Convolution
        The sizes.
    w : ndarray of shape (F, C // groups, KH, KW)
        The filters.

    Returns
    -------
    ndarray of shape (F * OH * OW, C * H * W)
    """
    matrix = np.zeros((g.F * g.pixels, g.C * g.H * g.W + 1), w.dtype)
    np.put_along_axis(matrix, _entries(g), _values(g, w), axis=1)
    return matrix[:, :-1]  # without the column that stands for the padding


def _sparse_entries(g: Convolution) -> int:
    return g.F * g.pixels * (g.C // g.groups) * g.KH * g.KW


def _images(g: Convolution, x: Any) -> Any:
    """The images as columns, with a last row of zeros that stands for the padding."""
    return np.concatenate([x.reshape(g.N, g.C * g.H * g.W).T, np.zeros((1, g.N), x.dtype)])


def _entries(g: Convolution) -> Any:
    """For each row, the column of each tap (C // groups, KH, KW); padding is the column behind."""
    (sh, sw), (dh, dw) = g.stride, g.dilation
    i = np.arange(g.OH)[:, None] * sh + np.arange(g.KH) * dh - g.padding[0][0]  # (OH, KH)
    j = np.arange(g.OW)[:, None] * sw + np.arange(g.KW) * dw - g.padding[1][0]  # (OW, KW)
    inside = ((i >= 0) & (i < g.H))[:, None, :, None] & ((j >= 0) & (j < g.W))[None, :, None, :]
    pixel = i[:, None, :, None] * g.W + j[None, :, None, :]  # (OH, OW, KH, KW)
    channels = g.C // g.groups
    group = np.arange(g.F) // (g.F // g.groups)
    channel = group[:, None] * channels + np.arange(channels)  # (F, channels)
    where = channel[:, None, None, :, None, None] * (g.H * g.W) + pixel[None, :, :, None]
    where = np.where(inside[None, :, :, None], where, g.C * g.H * g.W)
    return where.reshape(g.F * g.pixels, channels * g.KH * g.KW)


def _values(g: Convolution, w: Any) -> Any:
    """For each row, the weight of each tap: a filter's rows all hold the same ones."""
    return np.repeat(w.reshape(g.F, -1), g.pixels, axis=0)


METHOD = Toeplitz()
