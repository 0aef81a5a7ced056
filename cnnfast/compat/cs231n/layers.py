"""The course's ``layers``: a forward function ``-> (out, cache)`` and a backward one for each.

In the shapes, a batch has N examples of D features, or of C channels of H x W pixels. Backward
functions take ``(dout, cache)``, the gradient of the loss by ``out`` and what the forward function
gave, and return the gradient by ``x``, then those by the parameters in their order.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from cnnfast import functional as F
from cnnfast import geometry
from cnnfast.compat.cs231n import sliding
from cnnfast.compat.cs231n.chance import global_rng
from cnnfast.compat.cs231n.sliding import Array, Cache, Param, whole
from cnnfast.compat.lone import doubled

__all__ = [
    "affine_backward",
    "affine_forward",
    "batchnorm_backward",
    "batchnorm_backward_alt",
    "batchnorm_forward",
    "conv_backward_naive",
    "conv_forward_naive",
    "dropout_backward",
    "dropout_forward",
    "layernorm_backward",
    "layernorm_forward",
    "max_pool_backward_naive",
    "max_pool_forward_naive",
    "relu_backward",
    "relu_forward",
    "softmax_loss",
    "spatial_batchnorm_backward",
    "spatial_batchnorm_forward",
    "spatial_groupnorm_backward",
    "spatial_groupnorm_forward",
    "svm_loss",
]


def affine_forward(x: Array, w: Array, b: Array) -> tuple[Array, Cache]:
    """A fully connected layer: each example as a row, times w, plus b.

    Parameters
    ----------
    x : array of shape (N, d_1, ..., d_k), D = d_1 * ... * d_k
    w : array of shape (D, M)
    b : array of shape (M,)

    Returns
    -------
    out : array of shape (N, M)
    cache : (x, w, b)

    Examples
    --------
    >>> import numpy as np
    >>> affine_forward(np.ones((1, 2, 2)), np.ones((4, 3)), np.zeros(3))[0]
    array([[4., 4., 4.]])
    """
    return F.linear(_rows(x), np.transpose(w), b), (x, w, b)


def affine_backward(dout: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """``dx, dw, db`` of `affine_forward`."""
    x, w, _ = cache
    dx, dw, db = F.linear_backward(dout, _rows(x), np.transpose(w))
    return dx.reshape(np.shape(x)), np.ascontiguousarray(dw.T), db


def _rows(x: Array) -> Array:
    x = np.asarray(x)
    if not x.ndim:
        raise ValueError("affine_forward: x must have shape (N, d_1, ..., d_k), not ()")
    return x.reshape(len(x), prod(x.shape[1:]))


def relu_forward(x: Array) -> tuple[Array, Cache]:
    """``max(x, 0)``, for x of any shape.

    Returns
    -------
    out : array of the shape of x
    cache : x
    """
    return F.relu(x), x


def relu_backward(dout: Array, cache: Cache) -> Array:
    """``dx`` of `relu_forward`."""
    return F.relu_backward(dout, cache)


def batchnorm_forward(x: Array, gamma: Array, beta: Array, bn_param: Param) -> tuple[Array, Cache]:
    """Bring every feature to mean 0 and variance 1 over the batch, then scale and shift it.

    Parameters
    ----------
    x : array of shape (N, D)
    gamma, beta : arrays of shape (D,)
        Scale and shift.
    bn_param : dict
        ``mode``: "train" or "test". ``eps`` (1e-5) is added to the variance. ``momentum`` (0.9) is
        the share of the past in ``running_mean`` and ``running_var`` (zeros), which "train" moves
        on and stores here, and "test" normalises by.

    Returns
    -------
    out : array of shape (N, D)
    cache : what `batchnorm_backward` needs; None in "test"

    Notes
    -----
    ``running = momentum * running + (1 - momentum) * batch's``: this momentum is 1 minus PyTorch's,
    and this variance the biased one, which PyTorch has in the normalisation only.

    References
    ----------
    Ioffe and Szegedy, "Batch normalization", 2015.
    """
    op = "batchnorm_forward"
    eps, momentum = bn_param.get("eps", 1e-5), bn_param.get("momentum", 0.9)
    train = _is_train(op, bn_param)
    x = np.asarray(x)
    zeros = np.zeros(np.shape(gamma), x.dtype if x.dtype.kind == "f" else np.float64)
    running_mean, running_var = (
        np.asarray(bn_param.get(name, zeros)) for name in ("running_mean", "running_var")
    )
    for name, running in (("running_mean", running_mean), ("running_var", running_var)):
        if running.shape != zeros.shape:
            raise ValueError(f"{op}: {name} must have shape {zeros.shape}, not {running.shape}")
    if train:
        # With momentum 1 these become the batch's own mean and unbiased variance.
        mean, var = zeros.copy(), zeros.copy()
        options = True, 1.0, eps
        out, _, rstd = F.batch_norm(doubled(x), mean, var, gamma, beta, *options, return_stats=True)
        out, cache = out[: len(x)], (x, gamma, mean, rstd)
        count = x.size // len(mean)
        if count:
            var *= (count - 1) / count
            running_mean = momentum * running_mean + (1 - momentum) * mean
            running_var = momentum * running_var + (1 - momentum) * var
    else:
        out, cache = F.batch_norm(x, running_mean, running_var, gamma, beta, eps=eps), None
    bn_param.update(running_mean=running_mean, running_var=running_var)
    return out, cache


def batchnorm_backward(dout: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """``dx, dgamma, dbeta`` of `batchnorm_forward` in mode "train"."""
    if cache is None:
        raise ValueError('batchnorm_backward: the forward pass was in mode "test"')
    x, gamma, mean, rstd = cache
    dx, dgamma, dbeta = F.batch_norm_backward(dout, x, mean, rstd, gamma)
    return dx, dgamma, dbeta


# The course asks for a shorter derivation; the one here is it already.
batchnorm_backward_alt = batchnorm_backward


def spatial_batchnorm_forward(
    x: Array, gamma: Array, beta: Array, bn_param: Param
) -> tuple[Array, Cache]:
    """`batchnorm_forward` of images: a feature is a channel, taken over all pixels of the batch.

    Parameters
    ----------
    x : array of shape (N, C, H, W)
    gamma, beta : arrays of shape (C,)
    bn_param : dict
        As for `batchnorm_forward`.
    """
    return batchnorm_forward(x, gamma, beta, bn_param)


def spatial_batchnorm_backward(dout: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """``dx, dgamma, dbeta`` of `spatial_batchnorm_forward`."""
    return batchnorm_backward(dout, cache)


def layernorm_forward(x: Array, gamma: Array, beta: Array, ln_param: Param) -> tuple[Array, Cache]:
    """Bring every example to mean 0 and variance 1 over its features, then scale and shift these.

    Parameters
    ----------
    x : array of shape (N, D)
    gamma, beta : arrays of shape (D,)
    ln_param : dict
        ``eps`` (1e-5) is added to the variance.

    Returns
    -------
    out : array of shape (N, D)
    cache : what `layernorm_backward` needs

    References
    ----------
    Ba, Kiros and Hinton, "Layer normalization", 2016.
    """
    op = "layernorm_forward"
    geometry.rank(op, "x", np.shape(x), "N, D")
    return _groupnorm_forward(op, x, gamma, beta, 1, ln_param)


def layernorm_backward(dout: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """``dx, dgamma, dbeta`` of `layernorm_forward`."""
    return _groupnorm_backward("layernorm_backward", dout, cache)


def spatial_groupnorm_forward(
    x: Array, gamma: Array, beta: Array, G: int, gn_param: Param
) -> tuple[Array, Cache]:
    """Bring each of G groups of channels of every image to mean 0 and variance 1.

    Parameters
    ----------
    x : array of shape (N, C, H, W)
    gamma, beta : arrays of shape (1, C, 1, 1) or (C,)
        Scale and shift of the channels.
    G : int
        Groups, a divisor of C.
    gn_param : dict
        ``eps`` (1e-5) is added to the variance.

    Returns
    -------
    out : array of shape (N, C, H, W)
    cache : what `spatial_groupnorm_backward` needs

    References
    ----------
    Wu and He, "Group normalization", 2018.
    """
    op = "spatial_groupnorm_forward"
    geometry.rank(op, "x", np.shape(x), "N, C, H, W")
    C, G = np.shape(x)[1], whole(G)
    if not isinstance(G, int | np.integer):
        raise TypeError(f"{op}: G must be an integer, not {G!r}")
    if G < 1 or C % G:
        raise ValueError(f"{op}: G={G} does not divide the {C} channels of x")
    return _groupnorm_forward(op, x, gamma, beta, G, gn_param)


def spatial_groupnorm_backward(dout: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """``dx, dgamma, dbeta`` of `spatial_groupnorm_forward`; the last two in the shape of gamma."""
    return _groupnorm_backward("spatial_groupnorm_backward", dout, cache)


def _groupnorm_forward(
    op: str, x: Array, gamma: Array, beta: Array, G: int, param: Param
) -> tuple[Array, Cache]:
    x = np.asarray(x)
    for name, vector in (("gamma", gamma), ("beta", beta)):
        if np.size(vector) != x.shape[1]:
            shape = np.shape(vector)
            raise ValueError(f"{op}: {name} must have shape ({x.shape[1]},), not {shape}")
    # Every group of every example is a channel of one example to batch normalisation, which takes
    # no examples but not no channels.
    channels = (1, len(x) * G) if len(x) else (0, G)
    groups = x.reshape(*channels, prod(x.shape[1:]) // G)
    y, mean, rstd = F.batch_norm(
        doubled(groups), None, None, training=True, eps=param.get("eps", 1e-5), return_stats=True
    )
    y = y[: len(groups)].reshape(x.shape)
    return y * _by_channel(gamma, x) + _by_channel(beta, x), (groups, gamma, y, mean, rstd)


def _groupnorm_backward(op: str, dout: Array, cache: Cache) -> tuple[Array, Array, Array]:
    groups, gamma, y, mean, rstd = cache
    dout = np.asarray(dout)
    if dout.shape != y.shape:
        raise ValueError(f"{op}: dout must have shape {y.shape}, not {dout.shape}")
    dy = (dout * _by_channel(gamma, y)).reshape(groups.shape)
    dx, _, _ = F.batch_norm_backward(dy, groups, mean, rstd)
    rest = (0, *range(2, y.ndim))
    dgamma, dbeta = np.sum(dout * y, axis=rest), np.sum(dout, axis=rest)
    return dx.reshape(y.shape), *(d.reshape(np.shape(gamma)) for d in (dgamma, dbeta))


def _by_channel(vector: Array, x: Array) -> Array:
    """One number per channel, in a shape that multiplies x."""
    return np.reshape(vector, (x.shape[1], *[1] * (x.ndim - 2)))


def dropout_forward(x: Array, dropout_param: Param) -> tuple[Array, Cache]:
    """Keep each element with probability p, divided by p; set the others to 0.

    Parameters
    ----------
    x : array of any shape
    dropout_param : dict
        ``p``: the probability to *keep* an element, as in the course since 2018 (PyTorch's is that
        to drop it). ``mode``: "train", or "test" for ``out = x``. ``seed``, if it is there, draws
        the same mask each time, the one that ``np.random.seed(seed)`` would have led to.

    Returns
    -------
    out : array of the shape of x
    cache : (dropout_param, mask)
        The mask is True where an element was kept; None in "test".

    References
    ----------
    Srivastava et al., "Dropout", 2014.
    """
    if not _is_train("dropout_forward", dropout_param):
        return np.array(x), (dropout_param, None)
    p = dropout_param["p"]
    if isinstance(p, str) or not 0 <= p <= 1:
        raise ValueError(f"dropout_forward: p must be between 0 and 1, not {p!r}")
    seeded = "seed" in dropout_param
    rng: Any = np.random.RandomState(dropout_param["seed"]) if seeded else global_rng()
    mask = np.asarray(rng.random(np.shape(x)) < p)
    return _masked(x, mask, dropout_param), (dropout_param, mask)


def dropout_backward(dout: Array, cache: Cache) -> Array:
    """``dx`` of `dropout_forward`."""
    dropout_param, mask = cache
    return np.array(dout) if mask is None else _masked(dout, mask, dropout_param)


def _masked(x: Array, mask: Array, dropout_param: Param) -> Array:
    # Linear in x, and so its own gradient.
    return F.dropout_backward(x, mask, 1 - dropout_param["p"])


def _is_train(op: str, param: Param) -> bool:
    if param["mode"] not in ("train", "test"):
        raise ValueError(f'{op}: mode must be "train" or "test", not {param["mode"]!r}')
    return bool(param["mode"] == "train")


def conv_forward_naive(x: Array, w: Array, b: Array, conv_param: Param) -> tuple[Array, Cache]:
    """Convolution, by the loops of `cnnfast.naive`.

    Parameters
    ----------
    x : array of shape (N, C, H, W)
    w : array of shape (F, C, HH, WW)
    b : array of shape (F,)
    conv_param : dict
        ``stride`` and ``pad``: pixels from window to window, and zeros on each side.

    Returns
    -------
    out : array of shape (N, F, H', W'), H' = 1 + (H + 2 * pad - HH) // stride
    cache : (x, w, b, conv_param)
    """
    return sliding.conv_forward(x, w, b, conv_param, "naive")


def conv_backward_naive(dout: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """``dx, dw, db`` of `conv_forward_naive`, by the loops of `cnnfast.naive`."""
    return sliding.conv_backward(dout, cache, "naive")


def max_pool_forward_naive(x: Array, pool_param: Param) -> tuple[Array, Cache]:
    """The largest pixel of every window, by the loops of `cnnfast.naive`.

    Parameters
    ----------
    x : array of shape (N, C, H, W)
    pool_param : dict
        ``pool_height``, ``pool_width`` and ``stride``.

    Returns
    -------
    out : array of shape (N, C, H', W'), H' = 1 + (H - pool_height) // stride
    cache : (x, pool_param)
    """
    return sliding.max_pool_indices(x, pool_param, "naive")[0], (x, pool_param)


def max_pool_backward_naive(dout: Array, cache: Cache) -> Array:
    """``dx`` of `max_pool_forward_naive`: of equal pixels, the first has it all."""
    return sliding.max_pool_backward(dout, cache, "naive")


def svm_loss(x: Array, y: Array) -> tuple[float, Array]:
    """By how much the scores of wrong classes come within 1 of the right one's.

    Parameters
    ----------
    x : array of shape (N, C)
        Scores.
    y : integer array of shape (N,)
        The right classes.

    Returns
    -------
    loss : float
        Summed over the classes, averaged over the batch.
    dx : array of shape (N, C)
    """
    return F.multi_margin_loss(x, y)


def softmax_loss(x: Array, y: Array) -> tuple[float, Array]:
    """The cross entropy of the softmax of the scores.

    Parameters
    ----------
    x : array of shape (N, C)
        Scores.
    y : integer array of shape (N,)
        The right classes.

    Returns
    -------
    loss : float
        Averaged over the batch.
    dx : array of shape (N, C)
    """
    return F.cross_entropy(x, y)
