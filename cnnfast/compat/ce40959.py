"""Sharif CE-40959 (Deep Learning), homework 3, part 2: a convolutional block in NumPy.

The homework defines its functions in the notebook; in place of those cells stands one line::

    def zero_padding(X, padding): ...    ->    from cnnfast.compat.ce40959 import *
    def convolution2D(X, W, ...): ...

What is otherwise than in the handout, and why:

- `convolution2D` read the number of channels off a global ``x``.
- The gradient by input took the output's rows for its columns, which a gradient of ones hides.
- `pool_back` printed shapes.
- The formula of batch normalisation has an epsilon that the code left out. Here it is 1e-12, so
  that a constant channel gives beta instead of NaN, and the published figures stay.
- `batch_norm_backward` used a ``self`` that is not there, and summed over examples only. Here it is
  the gradient of `batch_norm_forward`.
- float32 stays float32; the handout's results were always float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cnnfast import arrays, geometry
from cnnfast import functional as F
from cnnfast.compat.lone import doubled

__all__ = [
    "batch_norm_backward",
    "batch_norm_forward",
    "convolution2D",
    "convolution2D_backward_filter",
    "convolution2D_backward_input",
    "pool_back",
    "pool_forward",
    "zero_padding",
]

Array = Any
Pair = Sequence[int]

_EPS = 1e-12


def zero_padding(X: Array, padding: Pair) -> Array:
    """Put zeros around images.

    Parameters
    ----------
    X : array of shape (N, C, IH, IW)
    padding : (ph, pw)
        Rows above and below, columns to the left and right.

    Returns
    -------
    array of shape (N, C, IH + 2 * ph, IW + 2 * pw)

    Examples
    --------
    >>> import numpy as np
    >>> zero_padding(np.ones((1, 1, 1, 2)), (1, 0))
    array([[[[0., 0.],
             [1., 1.],
             [0., 0.]]]])
    """
    op = "zero_padding"
    (X,), library = arrays.admit(op, X=X)
    geometry.rank(op, "X", X.shape, "N, C, IH, IW")
    return library.finish(np.pad(X, ((0, 0), (0, 0), *geometry.pads(op, padding, 2))))


def convolution2D(X: Array, W: Array, stride: Pair, padding: Pair) -> Array:
    """Convolution of images.

    Parameters
    ----------
    X : array of shape (N, C, IH, IW)
    W : array of shape (F, C, FH, FW)
    stride : (sh, sw)
    padding : (ph, pw)

    Returns
    -------
    array of shape (N, F, OH, OW), OH = 1 + (IH + 2 * ph - FH) // sh
    """
    return F.conv2d(X, W, None, stride, padding)


def convolution2D_backward_filter(out_grad: Array, X: Array, W: Array, stride: Pair) -> Array:
    """The gradient by W of a `convolution2D` without padding.

    Parameters
    ----------
    out_grad : array of shape (N, F, OH, OW)
        Gradient of the loss by the output.
    X, W, stride
        As given to `convolution2D`; with padding, X is the padded images.

    Returns
    -------
    array of the shape of W
    """
    return F.conv2d_backward(out_grad, X, W, stride, needs="w")[1]


def convolution2D_backward_input(out_grad: Array, X: Array, W: Array, stride: Pair) -> Array:
    """The gradient by X of a `convolution2D` without padding.

    Parameters
    ----------
    out_grad, X, W, stride
        As for `convolution2D_backward_filter`.

    Returns
    -------
    array of the shape of X
    """
    return F.conv2d_backward(out_grad, X, W, stride, needs="x")[0]


def pool_forward(X: Array, f: int, s: int) -> Array:
    """The largest pixel of every window.

    Parameters
    ----------
    X : array of shape (N, C, IH, IW)
    f, s : int
        Size of the windows, and pixels from one to the next.

    Returns
    -------
    array of shape (N, C, OH, OW), OH = 1 + (IH - f) // s
    """
    return F.max_pool2d(X, f, s)


def pool_back(grad_pool: Array, X: Array, f: int, s: int) -> Array:
    """The gradient of `pool_forward`; of equal pixels, the first has it all.

    Parameters
    ----------
    grad_pool : array of shape (N, C, OH, OW)
        Gradient of the loss by the output, or by its upper left part: windows beyond have none.
    X, f, s
        As given to `pool_forward`.

    Returns
    -------
    array of the shape of X
    """
    op = "pool_back"
    _, indices = F.max_pool2d(X, f, s, return_indices=True)
    shape = tuple(np.shape(grad_pool))
    geometry.rank(op, "grad_pool", shape, "N, C, OH, OW")
    indices = indices[:, :, : shape[2], : shape[3]]
    if tuple(indices.shape) != shape:
        fits = tuple(indices.shape)
        raise ValueError(f"{op}: grad_pool must have at most shape {fits}, not {shape}")
    return F.max_pool2d_backward(grad_pool, indices, np.shape(X))


def batch_norm_forward(X: Array, gamma: Array, beta: Array) -> Array:
    """Bring every channel of the batch to mean 0 and variance 1, then scale and shift it.

    Parameters
    ----------
    X : array of shape (N, C, H, W)
    gamma, beta : arrays of shape (C,)

    Returns
    -------
    array of shape (N, C, H, W)
    """
    out = F.batch_norm(doubled(X), None, None, gamma, beta, training=True, eps=_EPS)
    return out[: len(X)]


def batch_norm_backward(dout: Array, X: Array, gamma: Array, beta: Array) -> Array:
    """The gradient by X of `batch_norm_forward`.

    Parameters
    ----------
    dout : array of shape (N, C, H, W)
        Gradient of the loss by the output.
    X, gamma, beta
        As given to `batch_norm_forward`.

    Returns
    -------
    array of the shape of X
    """
    _, mean, rstd = F.batch_norm(
        doubled(X), None, None, gamma, beta, training=True, eps=_EPS, return_stats=True
    )
    return F.batch_norm_backward(dout, X, mean, rstd, gamma)[0]
