"""The course's ``im2col``, and the functions of its compiled ``im2col_cython``.

Columns have the shape (C * HH * WW, H' * W' * N): a row is a tap, channel by channel and row by row
of the window; of the columns, the examples of one window come next to each other. (`cnnfast.im2col`
has the examples first: (N, C * HH * WW, H' * W').)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cnnfast import functional as F
from cnnfast import geometry
from cnnfast.compat.cs231n.sliding import Array, whole

__all__ = [
    "col2im_6d_cython",
    "col2im_cython",
    "col2im_indices",
    "get_im2col_indices",
    "im2col_cython",
    "im2col_indices",
]


def get_im2col_indices(
    x_shape: Sequence[int], field_height: int, field_width: int, padding: int = 1, stride: int = 1
) -> tuple[Array, Array, Array]:
    """Where in the padded images the elements of the columns are: ``x_padded[:, k, i, j]``.

    Returns
    -------
    k : int array of shape (C * field_height * field_width, 1)
        Channels.
    i, j : int arrays of shape (C * field_height * field_width, H' * W')
        Rows and columns of the image.
    """
    window, step, pad = (field_height, field_width), whole(stride), whole(padding)
    g = geometry.windows("get_im2col_indices", 2, tuple(x_shape), window, step, pad, 1)
    places = np.indices((g.C, g.H + 2 * pad, g.W + 2 * pad))
    k, i, j = F.im2col(places, window, step).astype(np.int64)
    return k[:, :1], i, j


def im2col_indices(
    x: Array, field_height: int, field_width: int, padding: int = 1, stride: int = 1
) -> Array:
    """Every window of the images as a column.

    Parameters
    ----------
    x : array of shape (N, C, H, W)
    field_height, field_width, padding, stride : int
        The window's size, zeros on each side, pixels from window to window.

    Returns
    -------
    array of shape (C * field_height * field_width, H' * W' * N)

    Examples
    --------
    >>> import numpy as np
    >>> x = np.arange(8.0).reshape(2, 1, 2, 2)
    >>> im2col_indices(x, 1, 2, padding=0)
    array([[0., 4., 2., 6.],
           [1., 5., 3., 7.]])
    """
    cols = F.im2col(x, (field_height, field_width), whole(stride), whole(padding))
    N, taps, windows = cols.shape
    return cols.transpose(1, 2, 0).reshape(taps, windows * N)


def col2im_indices(
    cols: Array,
    x_shape: Sequence[int],
    field_height: int = 3,
    field_width: int = 3,
    padding: int = 1,
    stride: int = 1,
) -> Array:
    """Add every column back to the window it came from.

    Parameters
    ----------
    cols : array of shape (C * field_height * field_width, H' * W' * N)
    x_shape : (N, C, H, W)
    field_height, field_width, padding, stride : int
        As given to `im2col_indices`.

    Returns
    -------
    array of shape (N, C, H, W)
    """
    op = "col2im_indices"
    sliding = (field_height, field_width), whole(stride), whole(padding)
    g = geometry.windows(op, 2, tuple(x_shape), *sliding, 1)
    taps = g.C * g.KH * g.KW
    cols = np.asarray(cols)
    if cols.shape != (taps, g.pixels * g.N):
        raise ValueError(f"{op}: cols must have shape {taps, g.pixels * g.N}, not {cols.shape}")
    return F.col2im(cols.reshape(taps, g.pixels, g.N).transpose(2, 0, 1), (g.H, g.W), *sliding)


def im2col_cython(
    x: Array, field_height: int, field_width: int, padding: int, stride: int
) -> Array:
    """`im2col_indices`."""
    return im2col_indices(x, field_height, field_width, padding, stride)


def col2im_cython(
    cols: Array,
    N: int,
    C: int,
    H: int,
    W: int,
    field_height: int,
    field_width: int,
    padding: int,
    stride: int,
) -> Array:
    """`col2im_indices`, with the shape of x in single numbers."""
    return col2im_indices(cols, (N, C, H, W), field_height, field_width, padding, stride)


def col2im_6d_cython(
    cols: Array, N: int, C: int, H: int, W: int, HH: int, WW: int, pad: int, stride: int
) -> Array:
    """`col2im_indices` of columns of shape (C, HH, WW, N, H', W'): the examples before the pixels.

    Returns
    -------
    array of shape (N, C, H, W)
    """
    op = "col2im_6d_cython"
    g = geometry.windows(op, 2, (N, C, H, W), (HH, WW), whole(stride), whole(pad), 1)
    cols, shape = np.asarray(cols), (C, HH, WW, N, g.OH, g.OW)
    if cols.shape != shape:
        raise ValueError(f"{op}: cols must have shape {shape}, not {cols.shape}")
    flat = cols.transpose(0, 1, 2, 4, 5, 3).reshape(C * HH * WW, g.pixels * N)
    return col2im_indices(flat, (N, C, H, W), HH, WW, pad, stride)
