"""Michigan EECS 498-007, assignment 3: the names of its notebook and of the files beside it.

In the notebook the import cells change, and the cells that define the layers are left out::

    from coutils import fix_random_seed, rel_error, compute_numeric_gradient, Solver
    from fully_connected_networks import Linear, ReLU, Linear_ReLU, Dropout
    from fully_connected_networks import svm_loss, softmax_loss, sgd_momentum, rmsprop, adam

becomes ``from cnnfast.compat.eecs498 import *``. Data stay the student's own.

Arrays may be NumPy's or PyTorch's, on any device, and results are of the kind of their input.
Tensors on the CPU use the compiled kernels, without a copy; on another device the portable method
computes where they are. A tensor that requires grad counts without its graph.

What differs from the handout:

- `Conv` and `MaxPool` are the loops of `cnnfast.naive` (on another device, which loops over Python
  numbers cannot reach, the same as the fast ones). `FastConv` and `FastMaxPool` are whatever the
  dispatcher finds fastest. Their backward passes raise what goes wrong; the handout's gave zeros.
- `BatchNorm.backward` and `backward_alt` are one function: the simplified formula.
- ``dtype`` decides what a model is made of: ``torch.float32`` gives tensors, ``np.float32`` (the
  default, since PyTorch need not be there) gives arrays. Scores come back as the kind of X, losses
  and gradients as that of the parameters. Losses are numbers with ``.item()``.
- A `ThreeLayerConvNet` of even filter size keeps the size of the image too: its padding is the
  ``"same"`` of `cnnfast.conv2d`. Images of odd size are pooled to the floor of half.
- `compute_numeric_gradient` steps by 1e-5, needs float64 and works on tensors of any layout; the
  course's copied a tensor that was not contiguous, and then changed the copy.
- `Solver` is `cnnfast.training.Solver`: an epoch takes no example twice (what is left over after
  whole batches has its turn in another), accuracies of a part of the examples always take the same
  part, and of equal accuracies the newest weights are kept.
- Update rules do not change w. They compute on the CPU, wherever w lies.
- Random numbers come from ``rng=`` if it is given. Otherwise those for tensors follow
  ``torch.manual_seed``, and those for arrays `fix_random_seed`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from cnnfast import functional as F
from cnnfast import geometry, gradcheck, models, nn, training
from cnnfast.arrays import detached, dtype_name, is_foreign, like, namespace, on_host, view
from cnnfast.compat.lone import doubled
from cnnfast.nn import init

__all__ = [
    "BatchNorm",
    "Conv",
    "Conv_BatchNorm_ReLU",
    "Conv_BatchNorm_ReLU_Pool",
    "Conv_ReLU",
    "Conv_ReLU_Pool",
    "DeepConvNet",
    "Dropout",
    "FastConv",
    "FastMaxPool",
    "Linear",
    "Linear_BatchNorm_ReLU",
    "Linear_ReLU",
    "MaxPool",
    "ReLU",
    "Solver",
    "SpatialBatchNorm",
    "ThreeLayerConvNet",
    "adam",
    "batchnorm_backward",
    "batchnorm_backward_alt",
    "batchnorm_forward",
    "compute_numeric_gradient",
    "conv_backward",
    "conv_forward",
    "fix_random_seed",
    "kaiming_initializer",
    "max_pool_backward",
    "max_pool_forward",
    "rel_error",
    "rmsprop",
    "sgd",
    "sgd_momentum",
    "softmax_loss",
    "spatial_batchnorm_backward",
    "spatial_batchnorm_forward",
    "svm_loss",
]

Array = Any  # NumPy's, or a tensor
Param = Mapping[str, Any]
Arrays = tuple[Any, ...]
Cache = Sequence[Any]


# Convolution and pooling


def conv_forward(x: Array, w: Array, b: Array | None, conv_param: Param) -> tuple[Array, Cache]:
    """Convolution by plain loops; see `cnnfast.conv2d`.

    Parameters
    ----------
    x : array of shape (N, C, H, W)
    w : array of shape (F, C, HH, WW)
    b : array of shape (F,)
    conv_param : dict
        ``stride`` and ``pad``: integers, or whatever `cnnfast.conv2d` takes.

    Returns
    -------
    out : array of shape (N, F, OH, OW), OH = (H + 2 * pad - HH) // stride + 1
    cache : (x, w, b, conv_param)
    """
    x, w, b = map(detached, (x, w, b))
    return F.conv2d(x, w, b, *_sliding(conv_param), method=_loops(x)), (x, w, b, conv_param)


def conv_backward(dout: Array, cache: Cache) -> Arrays:
    """(dx, dw, db) of `conv_forward`, by plain loops; see `cnnfast.conv2d_backward`."""
    return _conv_backward(dout, cache, _loops(cache[0]))


def _conv_backward(dout: Array, cache: Cache, method: str) -> Arrays:
    x, w, _, conv_param = cache
    return F.conv2d_backward(detached(dout), x, w, *_sliding(conv_param), method=method)


def _sliding(conv_param: Param) -> tuple[Any, Any]:
    return conv_param["stride"], conv_param["pad"]


def _loops(x: Array) -> str:
    """The method of the reference loops, which run on the CPU; elsewhere there is but one."""
    return "naive" if isinstance(view("eecs498", "x", x), np.ndarray) else "auto"


class Conv:
    """Convolution by plain loops: `conv_forward` and `conv_backward`."""

    forward = staticmethod(conv_forward)
    backward = staticmethod(conv_backward)


class FastConv:
    """`Conv` by the fastest method."""

    @staticmethod
    def forward(x: Array, w: Array, b: Array | None, conv_param: Param) -> tuple[Array, Cache]:
        """As `conv_forward`."""
        x, w, b = map(detached, (x, w, b))
        return F.conv2d(x, w, b, *_sliding(conv_param)), (x, w, b, conv_param)

    @staticmethod
    def backward(dout: Array, cache: Cache) -> Arrays:
        """As `conv_backward`."""
        return _conv_backward(dout, cache, "auto")


def max_pool_forward(x: Array, pool_param: Param) -> tuple[Array, Cache]:
    """Max pooling by plain loops; see `cnnfast.max_pool2d`.

    Parameters
    ----------
    x : array of shape (N, C, H, W)
    pool_param : dict
        ``pool_height``, ``pool_width`` and ``stride``. Windows may overlap, or leave gaps.

    Returns
    -------
    out : array of shape (N, C, OH, OW), OH = (H - pool_height) // stride + 1
    cache : (x, pool_param)
    """
    x = detached(x)
    return F.max_pool2d(x, *_windows(pool_param), method=_loops(x)), (x, pool_param)


def max_pool_backward(dout: Array, cache: Cache) -> Array:
    """dx of `max_pool_forward`, by plain loops: of equal elements the first has the gradient."""
    x, pool_param = cache
    method = _loops(x)
    _, indices = F.max_pool2d(x, *_windows(pool_param), return_indices=True, method=method)
    return F.max_pool2d_backward(detached(dout), indices, tuple(x.shape), method=method)


def _windows(pool_param: Param) -> tuple[Any, Any]:
    return (pool_param["pool_height"], pool_param["pool_width"]), pool_param["stride"]


class MaxPool:
    """Max pooling by plain loops: `max_pool_forward` and `max_pool_backward`."""

    forward = staticmethod(max_pool_forward)
    backward = staticmethod(max_pool_backward)


class FastMaxPool:
    """`MaxPool` by the fastest method."""

    @staticmethod
    def forward(x: Array, pool_param: Param) -> tuple[Array, Cache]:
        """As `max_pool_forward`, with the places of the maxima in the cache too."""
        x = detached(x)
        out, indices = F.max_pool2d(x, *_windows(pool_param), return_indices=True)
        return out, (x, pool_param, indices)

    @staticmethod
    def backward(dout: Array, cache: Cache) -> Array:
        """As `max_pool_backward`."""
        x, _, indices = cache
        return F.max_pool2d_backward(detached(dout), indices, tuple(x.shape))


# Fully connected layers, ReLU, dropout


class Linear:
    """``x @ w + b`` of flattened examples; see `cnnfast.linear`, whose weights are ``w.T``."""

    @staticmethod
    def forward(x: Array, w: Array, b: Array | None) -> tuple[Array, Cache]:
        """The output (N, M) of x (N, d_1, ..., d_k), w (D, M), b (M,); the cache is (x, w, b)."""
        x, w, b = map(detached, (x, w, b))
        return F.linear(_flat(x), w.T, b), (x, w, b)

    @staticmethod
    def backward(dout: Array, cache: Cache) -> Arrays:
        """(dx, dw, db), of the shapes of x, w and b."""
        x, w, _ = cache
        dout = detached(dout)
        flat = _flat(x)
        _, _, db = F.linear_backward(dout, flat, w.T, needs="b")
        # The weights are the transpose of `cnnfast.linear`'s, so its two products change places.
        dx = F.linear(dout, w)
        _, dw, _ = F.linear_backward(flat, dout, w, needs="w")
        return namespace(dx).reshape(dx, tuple(x.shape)), dw, db


def _flat(x: Array) -> Array:
    if not x.shape:
        raise ValueError("Linear: x must have shape (N, ...), not ()")
    return namespace(x).reshape(x, (x.shape[0], prod(x.shape[1:])))


class ReLU:
    """The larger of x and 0; see `cnnfast.relu`."""

    @staticmethod
    def forward(x: Array) -> tuple[Array, Array]:
        """The output; the cache is x."""
        x = detached(x)
        return F.relu(x), x

    @staticmethod
    def backward(dout: Array, cache: Array) -> Array:
        """dx, which is 0 where x is 0."""
        return F.relu_backward(detached(dout), cache)


class Dropout:
    """Inverted dropout; see `cnnfast.dropout`."""

    @staticmethod
    def forward(x: Array, dropout_param: Param) -> tuple[Array, Cache]:
        """Drop elements with probability p, and scale up the others.

        Parameters
        ----------
        x : array of any shape
        dropout_param : dict
            ``p``, the probability of being dropped; ``mode``, "train" or "test"; and ``seed``,
            with which the call drops the same elements each time.

        Returns
        -------
        out : array of the shape of x
        cache : (dropout_param, mask)
            The mask is True where an element stayed; in test mode it is None.
        """
        x = detached(x)
        rng = None
        if "seed" in dropout_param:
            rng = np.random.default_rng(dropout_param["seed"])
        out, mask = F.dropout(
            x,
            dropout_param["p"],
            _is_training(dropout_param),
            rng=_generator(rng, is_foreign(x)),
            return_mask=True,
        )
        return out, (dropout_param, mask if _is_training(dropout_param) else None)

    @staticmethod
    def backward(dout: Array, cache: Cache) -> Array:
        """dx, in test mode dout itself."""
        dropout_param, mask = cache
        dout = detached(dout)
        return dout if mask is None else F.dropout_backward(dout, mask, dropout_param["p"])


def _is_training(param: Param) -> bool:
    """What ``mode`` says, which has to be "train" or "test"."""
    if param["mode"] not in ("train", "test"):
        raise ValueError(f'mode must be "train" or "test", not {param["mode"]!r}')
    return bool(param["mode"] == "train")


# Batch normalisation


def batchnorm_forward(
    x: Array, gamma: Array, beta: Array, bn_param: dict[str, Any]
) -> tuple[Array, Cache]:
    """Batch normalisation of features; see `cnnfast.batch_norm`.

    Parameters
    ----------
    x : array of shape (N, D)
    gamma, beta : arrays of shape (D,)
        Scale and shift.
    bn_param : dict
        ``mode``, "train" or "test"; ``eps``, 1e-5 by default; ``momentum``, 0.9 by default, the
        share of the old running values; ``running_mean`` and ``running_var``, which start with
        zeros. Each call puts new running values there.

    Returns
    -------
    out : array of shape (N, D)
    cache : what `batchnorm_backward` needs

    Notes
    -----
    The running variance follows the sample's own, biased one, as the course has it; that of
    `cnnfast.batch_norm` and PyTorch follows the unbiased one, larger by ``n / (n - 1)``.
    """
    x, gamma, beta = map(detached, (x, gamma, beta))
    geometry.rank("batchnorm_forward", "x", tuple(x.shape), "N, D")
    return _normalize(x, gamma, beta, bn_param)


def _normalize(
    x: Array, gamma: Array, beta: Array, bn_param: dict[str, Any]
) -> tuple[Array, Cache]:
    training = _is_training(bn_param)
    eps = bn_param.get("eps", 1e-5)
    mean, var = (_running(x, bn_param.get(name)) for name in ("running_mean", "running_var"))
    count = max(prod(x.shape) // max(x.shape[1], 1), 2)
    if training:
        var *= count / (count - 1)
    share = 1 - bn_param.get("momentum", 0.9)
    batch = doubled(x) if training else x
    out, *used = F.batch_norm(
        batch, mean, var, gamma, beta, training, share, eps, return_stats=True
    )
    if training:
        var *= (count - 1) / count
    bn_param["running_mean"], bn_param["running_var"] = mean, var
    return out[: x.shape[0], ...], (x, gamma, *used, None if training else var, eps)


def _running(x: Array, value: Array | None) -> Array:
    """A copy of a running value, beside x; zeros if there is none yet."""
    xp = namespace(x)
    if value is not None:
        return xp.asarray(like(value, x), copy=True)
    dtype = x.dtype if dtype_name(x).startswith("float") else xp.float64
    return xp.zeros(x.shape[1], dtype=dtype, device=x.device)


def batchnorm_backward(dout: Array, cache: Cache) -> Arrays:
    """(dx, dgamma, dbeta) of `batchnorm_forward`, for the mode that it ran in."""
    x, gamma, mean, rstd, var, eps = cache
    dout = detached(dout)
    dx, dgamma, dbeta = F.batch_norm_backward(dout, x, mean, rstd, gamma)
    if var is not None:
        # In test mode mean and variance are constants: dx is dout, scaled as x was.
        dx = F.batch_norm(dout, namespace(mean).zeros_like(mean), var, gamma, eps=eps)
    return dx, dgamma, dbeta


batchnorm_backward_alt = batchnorm_backward


def spatial_batchnorm_forward(
    x: Array, gamma: Array, beta: Array, bn_param: dict[str, Any]
) -> tuple[Array, Cache]:
    """`batchnorm_forward` of images (N, C, H, W), by channel."""
    x, gamma, beta = map(detached, (x, gamma, beta))
    geometry.rank("spatial_batchnorm_forward", "x", tuple(x.shape), "N, C, H, W")
    return _normalize(x, gamma, beta, bn_param)


spatial_batchnorm_backward = batchnorm_backward


class BatchNorm:
    """Batch normalisation of features: `batchnorm_forward` and `batchnorm_backward`."""

    forward = staticmethod(batchnorm_forward)
    backward = staticmethod(batchnorm_backward)
    backward_alt = staticmethod(batchnorm_backward_alt)


class SpatialBatchNorm:
    """Batch normalisation of images, by channel: `spatial_batchnorm_forward` and its backward."""

    forward = staticmethod(spatial_batchnorm_forward)
    backward = staticmethod(spatial_batchnorm_backward)


# Layers that follow each other: each takes the arguments of its parts, and gives their gradients


class Linear_ReLU:
    """`Linear`, `ReLU`."""

    @staticmethod
    def forward(x: Array, w: Array, b: Array) -> tuple[Array, Cache]:
        """The output and the cache."""
        a, linear = Linear.forward(x, w, b)
        out, relu = ReLU.forward(a)
        return out, (linear, relu)

    @staticmethod
    def backward(dout: Array, cache: Cache) -> Arrays:
        """(dx, dw, db)."""
        linear, relu = cache
        return Linear.backward(ReLU.backward(dout, relu), linear)


class Conv_ReLU:
    """`FastConv`, `ReLU`."""

    @staticmethod
    def forward(x: Array, w: Array, b: Array, conv_param: Param) -> tuple[Array, Cache]:
        """The output and the cache."""
        a, conv = FastConv.forward(x, w, b, conv_param)
        out, relu = ReLU.forward(a)
        return out, (conv, relu)

    @staticmethod
    def backward(dout: Array, cache: Cache) -> Arrays:
        """(dx, dw, db)."""
        conv, relu = cache
        return FastConv.backward(ReLU.backward(dout, relu), conv)


class Conv_ReLU_Pool:
    """`FastConv`, `ReLU`, `FastMaxPool`."""

    @staticmethod
    def forward(
        x: Array, w: Array, b: Array, conv_param: Param, pool_param: Param
    ) -> tuple[Array, Cache]:
        """The output and the cache."""
        a, (conv, relu) = Conv_ReLU.forward(x, w, b, conv_param)
        out, pool = FastMaxPool.forward(a, pool_param)
        return out, (conv, relu, pool)

    @staticmethod
    def backward(dout: Array, cache: Cache) -> Arrays:
        """(dx, dw, db)."""
        *conv_relu, pool = cache
        return Conv_ReLU.backward(FastMaxPool.backward(dout, pool), conv_relu)


class Linear_BatchNorm_ReLU:
    """`Linear`, `BatchNorm`, `ReLU`."""

    @staticmethod
    def forward(
        x: Array, w: Array, b: Array, gamma: Array, beta: Array, bn_param: dict[str, Any]
    ) -> tuple[Array, Cache]:
        """The output and the cache."""
        a, linear = Linear.forward(x, w, b)
        a, norm = BatchNorm.forward(a, gamma, beta, bn_param)
        out, relu = ReLU.forward(a)
        return out, (linear, norm, relu)

    @staticmethod
    def backward(dout: Array, cache: Cache) -> Arrays:
        """(dx, dw, db, dgamma, dbeta)."""
        linear, norm, relu = cache
        da, dgamma, dbeta = BatchNorm.backward(ReLU.backward(dout, relu), norm)
        return *Linear.backward(da, linear), dgamma, dbeta


class Conv_BatchNorm_ReLU:
    """`FastConv`, `SpatialBatchNorm`, `ReLU`."""

    @staticmethod
    def forward(
        x: Array,
        w: Array,
        b: Array,
        gamma: Array,
        beta: Array,
        conv_param: Param,
        bn_param: dict[str, Any],
    ) -> tuple[Array, Cache]:
        """The output and the cache."""
        a, conv = FastConv.forward(x, w, b, conv_param)
        a, norm = SpatialBatchNorm.forward(a, gamma, beta, bn_param)
        out, relu = ReLU.forward(a)
        return out, (conv, norm, relu)

    @staticmethod
    def backward(dout: Array, cache: Cache) -> Arrays:
        """(dx, dw, db, dgamma, dbeta)."""
        conv, norm, relu = cache
        da, dgamma, dbeta = SpatialBatchNorm.backward(ReLU.backward(dout, relu), norm)
        return *FastConv.backward(da, conv), dgamma, dbeta


class Conv_BatchNorm_ReLU_Pool:
    """`FastConv`, `SpatialBatchNorm`, `ReLU`, `FastMaxPool`."""

    @staticmethod
    def forward(
        x: Array,
        w: Array,
        b: Array,
        gamma: Array,
        beta: Array,
        conv_param: Param,
        bn_param: dict[str, Any],
        pool_param: Param,
    ) -> tuple[Array, Cache]:
        """The output and the cache."""
        a, block = Conv_BatchNorm_ReLU.forward(x, w, b, gamma, beta, conv_param, bn_param)
        out, pool = FastMaxPool.forward(a, pool_param)
        return out, (*block, pool)

    @staticmethod
    def backward(dout: Array, cache: Cache) -> Arrays:
        """(dx, dw, db, dgamma, dbeta)."""
        *block, pool = cache
        return Conv_BatchNorm_ReLU.backward(FastMaxPool.backward(dout, pool), block)


# Losses


def softmax_loss(x: Array, y: Array) -> tuple[Any, Array]:
    """(loss, dx) of scores x (N, C) and labels y (N,); see `cnnfast.cross_entropy`."""
    return _loss(F.cross_entropy, x, y)


def svm_loss(x: Array, y: Array) -> tuple[Any, Array]:
    """(loss, dx) of scores x (N, C) and labels y (N,); see `cnnfast.multi_margin_loss`."""
    return _loss(F.multi_margin_loss, x, y)


def _loss(
    function: Callable[[Array, Array], tuple[float, Array]], x: Array, y: Array
) -> tuple[Any, Array]:
    loss, dx = function(detached(x), y)
    return like(np.asarray(loss, dtype_name(dx)), dx)[()], dx


# Update rules: each gives the new w, and the config with what the next call needs


def sgd(w: Array, dw: Array, config: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
    """``w - learning_rate * dw``; see `cnnfast.training.SGD`.

    Parameters
    ----------
    w, dw : arrays of one shape
    config : dict, optional
        ``learning_rate`` (1e-2). Completed in place, as by the other rules.
    """
    config = _completed(config, learning_rate=1e-2)
    return _step(training.SGD, w, dw, {"lr": config["learning_rate"]})[0], config


def sgd_momentum(
    w: Array, dw: Array, config: dict[str, Any] | None = None
) -> tuple[Array, dict[str, Any]]:
    """``w + v`` with ``v = momentum * v - learning_rate * dw``; see `cnnfast.training.SGD`.

    Parameters
    ----------
    w, dw : arrays of one shape
    config : dict, optional
        ``learning_rate`` (1e-2), ``momentum`` (0.9), ``velocity``.
    """
    config = _completed(config, learning_rate=1e-2, momentum=0.9, velocity=None)
    # The course's velocity has the learning rates of all steps in it, PyTorch's buffer none.
    dw = detached(dw)
    step = config["learning_rate"] * dw
    buffer = None if config["velocity"] is None else -detached(config["velocity"])
    settings = {"lr": 1.0, "momentum": config["momentum"]}
    steps = int(buffer is not None)
    w, state = _step(training.SGD, w, step, settings, steps, momentum_buffer=buffer)
    config["velocity"] = -state.get("momentum_buffer", step)
    return w, config


def rmsprop(
    w: Array, dw: Array, config: dict[str, Any] | None = None
) -> tuple[Array, dict[str, Any]]:
    """See `cnnfast.training.RMSprop`.

    Parameters
    ----------
    w, dw : arrays of one shape
    config : dict, optional
        ``learning_rate`` (1e-2), ``decay_rate`` (0.99), ``epsilon`` (1e-8), ``cache``.
    """
    config = _completed(config, learning_rate=1e-2, decay_rate=0.99, epsilon=1e-8, cache=None)
    settings = {
        "lr": config["learning_rate"],
        "alpha": config["decay_rate"],
        "eps": config["epsilon"],
    }
    w, state = _step(training.RMSprop, w, dw, settings, square_avg=config["cache"])
    config["cache"] = state["square_avg"]
    return w, config


def adam(w: Array, dw: Array, config: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
    """See `cnnfast.training.Adam`.

    Parameters
    ----------
    w, dw : arrays of one shape
    config : dict, optional
        ``learning_rate`` (1e-3), ``beta1`` (0.9), ``beta2`` (0.999), ``epsilon`` (1e-8), ``m``,
        ``v`` and ``t``, the number of steps taken.
    """
    config = _completed(
        config, learning_rate=1e-3, beta1=0.9, beta2=0.999, epsilon=1e-8, m=None, v=None, t=0
    )
    settings = {
        "lr": config["learning_rate"],
        "betas": (config["beta1"], config["beta2"]),
        "eps": config["epsilon"],
    }
    w, state = _step(
        training.Adam, w, dw, settings, config["t"], exp_avg=config["m"], exp_avg_sq=config["v"]
    )
    config["m"], config["v"] = state["exp_avg"], state["exp_avg_sq"]
    config["t"] += 1
    return w, config


def _completed(config: dict[str, Any] | None, **defaults: Any) -> dict[str, Any]:
    config = {} if config is None else config
    for name, value in defaults.items():
        config.setdefault(name, value)
    return config


def _step(
    optimizer: Callable[..., training.Optimizer],
    w: Array,
    dw: Array,
    settings: dict[str, Any],
    steps: int = 0,
    **state: Array | None,
) -> tuple[Array, dict[str, Array]]:
    """One step of an optimiser on a copy of w, from a state (None: its start) to the next."""
    w = detached(w)
    next_w = np.array(on_host(w), order="C")
    one = optimizer({"w": next_w}, **settings)
    one.steps = steps
    for slot, arrays in one.state.items():
        if state[slot] is not None:
            arrays["w"][...] = on_host(state[slot])
    one.step({"w": on_host(dw)})
    return like(next_w, w), {slot: like(arrays["w"], w) for slot, arrays in one.state.items()}


# Random numbers


_numbers = np.random.default_rng()


def fix_random_seed(seed_no: int = 0) -> None:
    """Start the random numbers of this module, and PyTorch's if it is there, from a seed."""
    global _numbers
    _numbers = np.random.default_rng(seed_no)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed_no)


def _generator(rng: np.random.Generator | None, tensors: bool) -> np.random.Generator:
    """The generator given; else one that follows PyTorch's seed, or this module's."""
    if rng is not None:
        return rng
    if tensors:
        return np.random.default_rng(sys.modules["torch"].randint(2**62, ()).item())
    return _numbers


# Networks


def kaiming_initializer(
    Din: int,
    Dout: int,
    K: int | None = None,
    relu: bool = True,
    device: Any = "cpu",
    dtype: Any = np.float32,
    *,
    rng: np.random.Generator | None = None,
) -> Array:
    """Normal weights of variance ``gain / fan_in``; see `cnnfast.nn.init.kaiming_normal`.

    Parameters
    ----------
    Din, Dout : int
        Inputs and outputs.
    K : int, optional
        Size of the filters of a convolution; without it the weights are a linear layer's.
    relu : bool
        Whether a ReLU follows: the gain is 2 then, else 1.
    device, dtype
        Of the result. A dtype of PyTorch's gives a tensor.
    rng : numpy.random.Generator, optional
        Where the numbers come from.

    Returns
    -------
    array of shape (Din, Dout), or (Dout, Din, K, K)

    References
    ----------
    He et al., "Delving deep into rectifiers", 2015.
    """
    who = "kaiming_initializer"
    own, tensors = _kind(who, dtype, device)
    for name, size in {"Din": Din, "Dout": Dout, "K": 1 if K is None else K}.items():
        nn.arguments.whole(who, name, size, 1)
    shape = (Dout, Din) if K is None else (Dout, Din, K, K)
    nonlinearity = "relu" if relu else "linear"
    rng = _generator(rng, tensors)
    weight = init.kaiming_normal(shape, nonlinearity=nonlinearity, rng=rng, dtype=own)
    return _made(np.ascontiguousarray(weight.T) if K is None else weight, dtype, device)


def _kind(who: str, dtype: Any, device: Any) -> tuple[str, bool]:
    """Of a dtype: its name, and whether it means tensors."""
    tensors = type(dtype).__module__ == "torch"
    if not tensors and str(device) != "cpu":
        raise ValueError(
            f"{who}: device={device!r} takes a dtype of PyTorch's, such as torch.float32, "
            f"not {dtype!r}"
        )
    own = nn.arguments.float_dtype(who, str(dtype).rpartition(".")[2] if tensors else dtype)
    return own.name, tensors


def _made(a: Array, dtype: Any, device: Any) -> Array:
    """An array of that kind out of any other."""
    if type(dtype).__module__ != "torch":
        return np.asarray(on_host(a), dtype)
    return sys.modules["torch"].asarray(detached(a), dtype=dtype, device=device)


_NAMES = {nn.Conv2d: ("W", "b"), nn.BatchNorm2d: ("gamma", "beta"), nn.Linear: ("W", "b")}


class _Network:
    """Layers that follow each other, with their parameters in a dict of the course's names."""

    params: dict[str, Array]
    bn_params: Sequence[dict[str, Any]] = ()

    def __init__(self, reg: float, dtype: Any) -> None:
        self.reg = reg
        self.dtype = dtype

    def _layers(self) -> list[tuple[Any, tuple[Any, ...]]]:
        """Each layer with its arguments behind the parameters."""
        raise NotImplementedError

    def _start(self, make: Any, device: Any, rng: np.random.Generator | None, **sizes: Any) -> None:
        """Parameters as a network of `cnnfast.models` starts with them, under other names."""
        own, tensors = _kind(type(self).__name__, self.dtype, device)
        self.device = device
        self.params = {}
        number = 0
        for layer in make(dtype=own, rng=_generator(rng, tensors), **sizes):
            if type(layer) not in _NAMES:
                continue
            names = _NAMES[type(layer)]
            number += names[0] == "W"
            weight = layer.weight.T if isinstance(layer, nn.Linear) else layer.weight
            for name, array in zip(names, (weight, layer.bias), strict=True):
                self.params[f"{name}{number}"] = self._array(np.ascontiguousarray(array))

    def _array(self, a: Array) -> Array:
        """An array as the parameters are."""
        return _made(a, self.dtype, self.device)

    def loss(self, X: Array, y: Array | None = None) -> Any:
        """Scores of a batch, or its loss and gradients.

        Parameters
        ----------
        X : array of shape (N, C, H, W)
            A batch, of any kind and dtype; it is brought to the parameters.
        y : integer array of shape (N,), optional
            Labels.

        Returns
        -------
        scores : array of shape (N, num_classes)
            If y is None; of the kind of X.
        loss, grads : number, dict of arrays
            Else; the loss is the mean cross-entropy plus ``reg`` times the sum of the squares of
            all weights W, without a factor of one half.
        """
        who = type(self).__name__
        # Tensors on the CPU are viewed here, once.
        params = {name: view(who, name, detached(p)) for name, p in self.params.items()}
        for bn_param in self.bn_params:
            bn_param["mode"] = "test" if y is None else "train"
        x, passes = view(who, "X", self._array(X)), []
        for number, (layer, options) in enumerate(self._layers(), 1):
            names = [f"{name}{number}" for name in ("W", "b", "gamma", "beta")]
            names = [name for name in names if name in params]
            x, cache = layer.forward(x, *(params[name] for name in names), *options)
            passes.append((layer, names, cache))
        for bn_param in self.bn_params:
            for name in ("running_mean", "running_var"):
                bn_param[name] = self._array(bn_param[name])
        if y is None:
            return like(x, X)

        loss, dx = softmax_loss(x, y)
        grads: dict[str, Array] = {}
        for layer, names, cache in reversed(passes):
            dx, *gradients = layer.backward(dx, cache)
            grads.update(zip(names, gradients, strict=True))
        loss = float(loss)
        for name, W in params.items():
            if name.startswith("W"):
                loss += self.reg * float(namespace(W).sum(W * W))
                grads[name] += 2 * self.reg * W
        return self._array(loss)[()], {name: self._array(grads[name]) for name in params}


_POOL_2X2 = {"pool_height": 2, "pool_width": 2, "stride": 2}


class ThreeLayerConvNet(_Network):
    """conv - relu - 2x2 max pool - linear - relu - linear, scores for a softmax.

    Parameters
    ----------
    input_dims : (int, int, int)
        C, H, W of an image.
    num_filters, filter_size : int
        Of the convolution, which keeps the size of the image.
    hidden_dim : int
        Units of the first linear layer.
    num_classes : int
        Scores.
    weight_scale : float or "kaiming"
        Standard deviation of the starting weights.
    reg : float
        Strength of the L2 penalty.
    dtype : dtype
        A dtype of PyTorch's makes tensors, one of NumPy's arrays.
    device : str or torch.device
        Where tensors are.
    rng : numpy.random.Generator, optional
        Draws the starting weights.

    Attributes
    ----------
    params : dict of str to array
        ``W1`` (F, C, K, K), ``b1``, ``W2`` (F * (H // 2) * (W // 2), hidden_dim), ``b2``, ``W3``
        (hidden_dim, num_classes), ``b3``.

    See Also
    --------
    cnnfast.models.ThreeLayerConvNet : The same network as an `nn.Layer`, and faster.

    Examples
    --------
    >>> import numpy as np
    >>> model = ThreeLayerConvNet((1, 8, 8), num_filters=4, filter_size=3, hidden_dim=16)
    >>> loss, grads = model.loss(np.zeros((2, 1, 8, 8)), np.array([3, 7]))
    >>> round(loss.item(), 4), grads["W2"].shape
    (2.3026, (64, 16))
    """

    def __init__(
        self,
        input_dims: Sequence[int] = (3, 32, 32),
        num_filters: int = 32,
        filter_size: int = 7,
        hidden_dim: int = 100,
        num_classes: int = 10,
        weight_scale: float | str = 1e-3,
        reg: float = 0.0,
        dtype: Any = np.float32,
        device: Any = "cpu",
        *,
        rng: np.random.Generator | None = None,
    ) -> None:
        super().__init__(reg, dtype)
        self._start(
            models.ThreeLayerConvNet,
            device,
            rng,
            input_dims=input_dims,
            num_filters=num_filters,
            filter_size=filter_size,
            hidden_dim=hidden_dim,
            num_classes=num_classes,
            weight_scale=weight_scale,
        )

    def _layers(self) -> list[tuple[Any, tuple[Any, ...]]]:
        conv_param = {"stride": 1, "pad": "same"}
        return [(Conv_ReLU_Pool, (conv_param, _POOL_2X2)), (Linear_ReLU, ()), (Linear, ())]


class DeepConvNet(_Network):
    """{conv - [batch norm] - relu - [pool]} x (L - 1) - linear, scores for a softmax.

    Convolutions are 3x3 with padding 1, poolings 2x2 with stride 2.

    Parameters
    ----------
    input_dims : (int, int, int)
        C, H, W of an image.
    num_filters : sequence of int
        Filters of each convolution; there are L - 1.
    max_pools : sequence of int
        Which of them (from 0) a max pooling follows.
    batchnorm : bool
        Batch norm before each ReLU.
    num_classes : int
        Scores.
    weight_scale : float or "kaiming"
        Standard deviation of the starting weights; "kaiming" fits it to each layer.
    reg : float
        Strength of the L2 penalty.
    weight_initializer : None
        Not used; it keeps its place in the handout's order.
    dtype : dtype
        A dtype of PyTorch's makes tensors, one of NumPy's arrays.
    device : str or torch.device
        Where tensors are.
    rng : numpy.random.Generator, optional
        Draws the starting weights.

    Attributes
    ----------
    params : dict of str to array
        ``W1``, ``b1`` and, with batch norm, ``gamma1``, ``beta1``, of each convolution from 1 on;
        ``W`` (features, num_classes) and ``b`` of the linear layer, number L.
    bn_params : list of dict
        One for each batch norm, as `batchnorm_forward` takes them.
    num_layers : int
        L.

    See Also
    --------
    cnnfast.models.DeepConvNet : The same network as an `nn.Layer`, and faster.

    Examples
    --------
    >>> model = DeepConvNet((3, 8, 8), num_filters=[8, 16], max_pools=[1], weight_scale="kaiming")
    >>> {name: p.shape for name, p in model.params.items() if "W" in name}
    {'W1': (8, 3, 3, 3), 'W2': (16, 8, 3, 3), 'W3': (256, 10)}
    """

    def __init__(
        self,
        input_dims: Sequence[int] = (3, 32, 32),
        num_filters: Sequence[int] = (8, 8, 8, 8, 8),
        max_pools: Sequence[int] = (0, 1, 2, 3, 4),
        batchnorm: bool = False,
        num_classes: int = 10,
        weight_scale: float | str = 1e-3,
        reg: float = 0.0,
        weight_initializer: None = None,
        dtype: Any = np.float32,
        device: Any = "cpu",
        *,
        rng: np.random.Generator | None = None,
    ) -> None:
        super().__init__(reg, dtype)
        self._start(
            models.DeepConvNet,
            device,
            rng,
            input_dims=input_dims,
            num_filters=num_filters,
            max_pools=max_pools,
            batchnorm=batchnorm,
            num_classes=num_classes,
            weight_scale=weight_scale,
        )
        self.num_layers = len(num_filters) + 1
        self.max_pools = max_pools
        self.batchnorm = batchnorm
        self.bn_params = [{"mode": "train"} for _ in num_filters] if batchnorm else []

    def _layers(self) -> list[tuple[Any, tuple[Any, ...]]]:
        layers: list[tuple[Any, tuple[Any, ...]]] = []
        for i in range(self.num_layers - 1):
            blocks: Any = (Conv_ReLU, Conv_ReLU_Pool)
            options: list[Any] = [{"stride": 1, "pad": 1}]
            if self.batchnorm:
                blocks = (Conv_BatchNorm_ReLU, Conv_BatchNorm_ReLU_Pool)
                options.append(self.bn_params[i])
            if i in self.max_pools:
                options.append(_POOL_2X2)
            layers.append((blocks[i in self.max_pools], tuple(options)))
        return [*layers, (Linear, ())]


# Training


class _Updates:
    """An update rule for every parameter of a model, as an optimiser of `cnnfast.training`.

    Its learning rate is the factor by which those in the configs have been changed.
    """

    def __init__(self, model: Any, rule: Callable[..., Any], config: Param) -> None:
        self._model = model
        self._rule = rule
        self._lr = 1.0
        self.configs = {name: dict(config) for name in model.params}

    @property
    def lr(self) -> float:
        return self._lr

    @lr.setter
    def lr(self, factor: float) -> None:
        for config in self.configs.values():
            if factor != self._lr:
                config["learning_rate"] *= factor / self._lr
        self._lr = factor

    def step(self, grads: Param) -> None:
        params = self._model.params
        for name in params:
            params[name], self.configs[name] = self._rule(
                params[name], grads[name], self.configs[name]
            )


class Solver(training.Solver):
    """Trains a model with the course's update rules; see `cnnfast.training.Solver`.

    Parameters
    ----------
    model : object
        With ``params``, a dict, and ``loss(X, y=None)``, as the networks of this module.
    data : dict
        ``X_train``, ``y_train``, ``X_val``, ``y_val``: arrays, or tensors on any device. The model
        is given what they are.
    update_rule : callable
        ``rule(w, dw, config)`` that gives the next w and config, such as `adam`.
    optim_config : dict, optional
        The config that each parameter starts with.
    lr_decay : float
        Factor of the learning rates after each epoch.
    batch_size, num_epochs : int
        In what portions, and how long.
    num_train_samples, num_val_samples : int, optional
        How many examples the accuracies are taken from; None for all.
    device : str or torch.device
        Where batches of tensors are brought.
    print_every, print_acc_every : int
        After how many steps the loss, and epochs the accuracies, are printed.
    verbose : bool
        Whether anything is.
    rng : numpy.random.Generator, optional
        Shuffles.

    Attributes
    ----------
    loss_history, train_acc_history, val_acc_history, best_val_acc, best_params
        As of `cnnfast.training.Solver`.
    optim_configs : dict of str to dict
        The config of each parameter.

    Notes
    -----
    A loss that is not finite does not end the training. For checkpoints, schedules and augmentation
    there is `cnnfast.training.Solver`.
    """

    def __init__(
        self,
        model: Any,
        data: Mapping[str, Array],
        *,
        update_rule: Callable[..., Any] = sgd,
        optim_config: Param | None = None,
        lr_decay: float = 1.0,
        batch_size: int = 100,
        num_epochs: int = 10,
        num_train_samples: int | None = 1000,
        num_val_samples: int | None = None,
        device: Any = "cpu",
        print_every: int = 10,
        print_acc_every: int = 1,
        verbose: bool = True,
        rng: np.random.Generator | None = None,
    ) -> None:
        if not callable(update_rule):
            raise TypeError(f"Solver: update_rule must be a function, got {update_rule!r}")
        self.device = device
        self.print_every = nn.arguments.whole("Solver", "print_every", print_every, 1)
        self.print_acc_every = nn.arguments.whole("Solver", "print_acc_every", print_acc_every, 1)
        self.verbose = verbose
        self._tensors = is_foreign(data.get("X_train"))
        super().__init__(
            model,
            {name: on_host(values) for name, values in data.items()},
            update_rule=lambda params: _Updates(model, update_rule, optim_config or {}),
            num_epochs=num_epochs,
            batch_size=batch_size,
            lr_decay=lr_decay,
            num_train_samples=num_train_samples,
            num_val_samples=num_val_samples,
            rng=_generator(rng, self._tensors),
            allow_nonfinite=True,
        )

    @property
    def optim_configs(self) -> dict[str, dict[str, Any]]:
        configs: dict[str, dict[str, Any]] = self.optimizer.configs
        return configs

    def train(
        self,
        time_limit: float | None = None,
        return_best_params: bool = True,
        *,
        paced: bool = False,
    ) -> None:
        """Train to the end, or for so many seconds.

        Parameters
        ----------
        time_limit : float, optional
            Seconds for everything.
        return_best_params : bool
            Whether the model ends with the weights that validated best, or with the newest.
        paced : bool
            See `cnnfast.training.Solver.train`.
        """
        super().train(time_limit, paced=paced)
        if not return_best_params:
            self._take_up()

    def step(self) -> float:
        """Make one update on the next minibatch, and return its loss."""
        loss = super().step()
        if self.verbose and (self.steps - 1) % self.print_every == 0:
            print(f"step {self.steps} of {self.total_steps}: loss {loss:.6f}")
        return loss

    def evaluate(self) -> tuple[float, float]:
        """Take both accuracies, note them, keep the weights if they are the best so far."""
        train, val = super().evaluate()
        if self.verbose and self.epoch % self.print_acc_every == 0:
            print(
                f"epoch {self.epoch} of {self.num_epochs}: "
                f"training accuracy {train:.4f}, validation accuracy {val:.4f}"
            )
        return train, val

    def check_accuracy(
        self,
        X: Array,
        y: Array,
        num_samples: int | None = None,
        batch_size: int = 100,
        **options: Any,
    ) -> float:
        """The part of the examples that the model puts into their class, between 0 and 1."""
        return super().check_accuracy(on_host(X), on_host(y), num_samples, batch_size, **options)

    def _loss(self, X: Array, y: Array, lap: Callable[[str], None]) -> Any:
        result = self.model.loss(self._batch(X), self._batch(y))
        lap("loss")
        return result

    def _scores(self, X: Array) -> Array:
        return on_host(self.model.loss(self._batch(X)))

    def _batch(self, values: Array) -> Array:
        if not self._tensors:
            return values
        return sys.modules["torch"].asarray(values, device=self.device)


# Checking


def rel_error(x: Array, y: Array, eps: float = 1e-8) -> float:
    """``max(|x - y|) / max(eps, max(|x| + |y|))``; see `cnnfast.gradcheck.rel_error`."""
    return gradcheck.rel_error(on_host(x), on_host(y), floor=eps, overall=True)


def compute_numeric_gradient(
    f: Callable[[Array], Any], x: Array, dLdf: Array | None = None, h: float = 1e-5
) -> Array:
    """The gradient of ``sum(f(x) * dLdf)`` by x; see `cnnfast.gradcheck.numeric_gradient`.

    Parameters
    ----------
    f : callable
        Takes x. Since x is changed in place (and put back), it may also get at it in another way.
    x : float64 array or tensor
        Where.
    dLdf : array, optional
        The gradient by f's result; ones if not given.
    h : float
        The step to either side.

    Returns
    -------
    array of the kind and shape of x
    """
    before = np.array(on_host(x))
    live = detached(x)
    if isinstance(live, np.ndarray) and not live.flags.writeable:
        raise ValueError(
            "compute_numeric_gradient: x is read-only, but its elements have to be changed"
        )
    # What is no array, such as a list, was copied to one, and the copy is what changes.
    x = x if is_foreign(x) else live

    def moved(values: Array) -> Array:
        live[...] = like(values, live)
        return on_host(f(x))

    try:
        upstream = np.ones(np.shape(on_host(f(x)))) if dLdf is None else on_host(dLdf)
        gradient = gradcheck.numeric_gradient(moved, before.copy(), upstream, h)
    finally:
        live[...] = like(before, live)
    return like(gradient, x)
