"""Random calls of every operation, for comparing its methods.

`draw` makes one valid call: sizes at and around each other's multiples, rectangular images and
kernels, strides beyond the kernel, asymmetric padding, dilation, groups, an empty batch now and
then, ties and NaN where an operation has a rule for them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnfast import naive

__all__ = ["OPERATIONS", "Seed", "Trial", "draw"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Seed:
    """Stands for a fresh ``numpy.random.Generator`` in the arguments of a trial."""

    value: int


@dataclass(frozen=True)
class Trial:
    """One call: an operation and its arguments by name.

    Arrays hold float64 numbers that float32 can hold too, so that every dtype starts from the same
    ones. `context` is what another library needs beside the arguments (PyTorch's pooling gradient
    wants `x`), and `updated` names the arguments that the operation changes in place.
    """

    op: str
    args: Mapping[str, Any]
    context: Mapping[str, Any] = field(default_factory=dict)
    updated: tuple[str, ...] = ()

    def __str__(self) -> str:
        words = []
        for name, value in self.args.items():
            words.append(f"{name}={value.shape if isinstance(value, np.ndarray) else value!r}")
        return f"{self.op}({', '.join(words)})"


def draw(op: str, rng: np.random.Generator) -> Trial:
    """A random call of the operation.

    Parameters
    ----------
    op : str
        The name of an operation of ``cnnfast.functional``.
    rng : numpy.random.Generator
        Where the call comes from.

    Raises
    ------
    ValueError
        Nobody has written how to draw calls of this operation.

    Examples
    --------
    >>> import numpy as np
    >>> draw("dilate1d", np.random.default_rng(0)).op
    'dilate1d'
    """
    base, ndim, backward = _NAME.fullmatch(op).groups("")  # type: ignore[union-attr]
    try:
        make = OPERATIONS[base + backward]
    except KeyError:
        raise ValueError(f"no random calls of {op!r} can be drawn") from None
    return make(_Draw(rng, op, int(ndim or 2)))


def _in_float32(a: Array) -> Array:
    """Numbers that float32 can hold, in float64."""
    return np.asarray(a, np.float32).astype(np.float64)


_NAME = re.compile(r"(.*?)(?:([12])d)?(_backward)?")


class _Draw:
    """A generator with the words that the operations need."""

    def __init__(self, rng: np.random.Generator, op: str, ndim: int) -> None:
        self.rng, self.op, self.ndim = rng, op, ndim

    def number(self, least: int, most: int) -> int:
        return int(self.rng.integers(least, most + 1))

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def choice(self, *values: Any) -> Any:
        return values[self.number(0, len(values) - 1)]

    def array(self, *shape: int, scale: int = 1) -> Array:
        return _in_float32(scale * self.rng.standard_normal(shape, dtype=np.float32))

    def batch(self) -> int:
        return 0 if self.chance(0.05) else self.number(1, 4)

    def axes(self, least: int, most: int) -> tuple[int, ...]:
        return tuple(self.number(least, most) for _ in range(self.ndim))

    def spell(self, values: tuple[int, ...]) -> Any:
        """One number for all axes where that is possible, as users write it."""
        return values[0] if len(set(values)) == 1 and self.chance(0.7) else values

    def pads(self, most: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
        """Padding of each axis, the same on both sides in two cases of three."""
        if self.chance(0.3):
            return tuple((self.number(0, m), self.number(0, m)) for m in most)
        return tuple((p, p) for p in (self.number(0, m) for m in most))

    def spell_pads(self, pads: tuple[tuple[int, int], ...]) -> Any:
        if all(before == after for before, after in pads):
            return self.spell(tuple(before for before, _ in pads))
        return pads

    def sizes(
        self, reach: tuple[int, ...], pads: tuple[tuple[int, int], ...], extra: int
    ) -> tuple[int, ...]:
        """Sizes that hold at least one window of that reach."""
        least = (max(1, r - sum(p)) for r, p in zip(reach, pads, strict=True))
        return tuple(size + self.number(0, extra) for size in least)

    def needs(self) -> str:
        return str(self.choice("xwb", "xwb", "x", "w", "b", "xw", "wb"))

    def trial(self, args: Mapping[str, Any], **rest: Any) -> Trial:
        return Trial(self.op, args, **rest)

    def forward(self, args: Mapping[str, Any]) -> Any:
        """What the loops of the operation without ``_backward`` give."""
        return getattr(naive, self.op.removesuffix("_backward"))(**args)


def _reach(kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))


def _conv_args(d: _Draw) -> dict[str, Any]:
    groups = d.choice(1, 1, 1, 2, 3)
    C, F = groups * d.number(1, 5), groups * d.choice(1, 2, 3, 4, 5, 8, 9)
    kernel, stride, dilation = d.axes(1, 4), d.axes(1, 3), d.axes(1, 2)
    reach = _reach(kernel, dilation)
    padding: Any
    if d.chance(0.2):
        padding = d.choice("valid", "same")
        stride = (1,) * d.ndim if padding == "same" else stride
        pads = ((0, 0),) * d.ndim
    else:
        pads = d.pads(kernel)
        padding = d.spell_pads(pads)
    sizes = d.sizes(reach, pads, d.choice(0, 4, 9, 18))
    args = {"x": d.array(d.batch(), C, *sizes), "w": d.array(F, C // groups, *kernel)}
    if d.chance(0.7):
        args["b"] = d.array(F)
    return args | {
        "stride": d.spell(stride),
        "padding": padding,
        "dilation": d.spell(dilation),
        "groups": groups,
    }


def _conv(d: _Draw) -> Trial:
    return d.trial(_conv_args(d))


def _conv_transpose_args(d: _Draw) -> dict[str, Any]:
    groups = d.choice(1, 1, 1, 2, 3)
    C_in, inner = groups * d.number(1, 5), d.number(1, 5)
    kernel, stride, dilation = d.axes(1, 4), d.axes(1, 3), d.axes(1, 2)
    sizes = d.axes(1, 8)
    extra = tuple(
        d.number(0, max(s, t) - 1) if d.chance(0.5) else 0
        for s, t in zip(stride, dilation, strict=True)
    )
    pads = d.pads(kernel)
    reach = _reach(kernel, dilation)
    result = [
        (n - 1) * s + r + e - sum(p)
        for n, s, r, e, p in zip(sizes, stride, reach, extra, pads, strict=True)
    ]
    if min(result) < 1:
        pads = ((0, 0),) * d.ndim
    args = {"x": d.array(d.batch(), C_in, *sizes), "w": d.array(C_in, inner, *kernel)}
    if d.chance(0.7):
        args["b"] = d.array(inner * groups)
    return args | {
        "stride": d.spell(stride),
        "padding": d.spell_pads(pads),
        "output_padding": d.spell(extra),
        "groups": groups,
        "dilation": d.spell(dilation),
    }


def _conv_transpose(d: _Draw) -> Trial:
    return d.trial(_conv_transpose_args(d))


def _gradients_of(make: Callable[[_Draw], dict[str, Any]]) -> Callable[[_Draw], Trial]:
    """Calls of the backward pass that belongs to the forward calls of `make`."""

    def draw_backward(d: _Draw) -> Trial:
        args = make(d)
        dy = d.array(*d.forward(args).shape)
        args.pop("b", None)
        return d.trial({"dy": dy, **args, "needs": d.needs()})

    return draw_backward


def _im2col_args(d: _Draw) -> dict[str, Any]:
    kernel, stride, dilation = d.axes(1, 4), d.axes(1, 3), d.axes(1, 2)
    pads = d.pads(kernel)
    sizes = d.sizes(_reach(kernel, dilation), pads, 6)
    return {
        "x": d.array(d.batch(), d.number(1, 4), *sizes),
        "kernel_size": d.spell(kernel),
        "stride": d.spell(stride),
        "padding": d.spell_pads(pads),
        "dilation": d.spell(dilation),
    }


def _im2col(d: _Draw) -> Trial:
    return d.trial(_im2col_args(d))


def _col2im(d: _Draw) -> Trial:
    args = _im2col_args(d)
    x = args.pop("x")
    cols = d.array(*naive.im2col(x, **args).shape)
    return d.trial({"cols": cols, "output_size": x.shape[2:], **args})


def _pool_args(d: _Draw, dilated: bool) -> dict[str, Any]:
    kernel = d.axes(1, 4)
    dilation = d.axes(1, 2) if dilated else (1,) * d.ndim
    reach = _reach(kernel, dilation)
    if d.chance(0.2):
        pads = d.pads(tuple(r - 1 for r in reach))
        # Equal pads may be spelt as numbers, and then PyTorch's limit holds.
        pads = tuple(
            (a, b) if a != b else (min(a, k // 2),) * 2
            for (a, b), k in zip(pads, kernel, strict=True)
        )
    else:
        pads = tuple((p, p) for p in (d.number(0, k // 2) for k in kernel))
    args: dict[str, Any] = {
        "x": d.array(d.batch(), d.number(1, 4), *d.sizes(reach, pads, d.choice(0, 5, 17))),
        "kernel_size": d.spell(kernel),
    }
    if d.chance(0.7):
        args["stride"] = d.spell(d.axes(1, 4))
    args |= {"padding": d.spell_pads(pads), "ceil_mode": d.chance(0.3)}
    return args | ({"dilation": d.spell(dilation)} if dilated else {})


def _tie_or_spoil(d: _Draw, x: Array) -> Array:
    """Some images with many equal values, some with NaN and infinities."""
    kind = d.choice("plain", "ties", "ties", "special")
    if kind == "ties":
        return np.floor(x)
    if kind == "special":
        return np.where(
            d.rng.random(x.shape) < 0.15, d.rng.choice([np.nan, np.inf, -np.inf], x.shape), x
        )
    return x


def _max_pool_args(d: _Draw) -> dict[str, Any]:
    args = _pool_args(d, dilated=True)
    return args | {"x": _tie_or_spoil(d, args["x"])}


def _max_pool(d: _Draw) -> Trial:
    return d.trial(_max_pool_args(d) | {"return_indices": d.chance(0.7)})


def _max_pool_backward(d: _Draw) -> Trial:
    args = _max_pool_args(d)
    y, indices = d.forward(args | {"return_indices": True})
    return d.trial(
        {"dy": d.array(*y.shape), "indices": indices, "input_shape": args["x"].shape}, context=args
    )


def _avg_pool_args(d: _Draw) -> dict[str, Any]:
    args = _pool_args(d, dilated=False) | {"count_include_pad": d.chance(0.5)}
    if d.ndim == 2 and d.chance(0.3):
        args["divisor_override"] = d.number(1, 9)
    return args


def _avg_pool(d: _Draw) -> Trial:
    return d.trial(_avg_pool_args(d))


def _avg_pool_backward(d: _Draw) -> Trial:
    args = _avg_pool_args(d)
    dy = d.array(*d.forward(args).shape)
    x = args.pop("x")
    return d.trial({"dy": dy, "input_shape": x.shape, **args}, context={"x": x})


def _resample(d: _Draw) -> Trial:
    x = d.array(d.batch(), d.number(1, 4), *d.axes(1, 9))
    return d.trial({"x": x, "factor": d.spell(d.axes(1, 4))})


def _resample_backward(d: _Draw) -> Trial:
    args = dict(_resample(d).args)
    dy, x = d.array(*d.forward(args).shape), args.pop("x")
    return d.trial({"dy": dy, **args, "input_shape": x.shape})


def _norm_shape(d: _Draw) -> tuple[int, ...]:
    return (d.number(2, 6), d.number(1, 6), *(d.number(1, 7) for _ in range(d.number(0, 2))))


def _batch_norm(d: _Draw) -> Trial:
    shape = _norm_shape(d)
    C, training = shape[1], d.chance(0.6)
    running = [d.array(C), _in_float32(np.abs(d.array(C)) + 0.5)]
    if training and d.chance(0.3):
        args: dict[str, Any] = {"running_mean": None, "running_var": None}
    else:
        args = dict(zip(("running_mean", "running_var"), running, strict=True))
    affine = d.chance(0.7)
    args |= {"weight": d.array(C), "bias": d.array(C)} if affine else {}
    args |= {"training": training, "momentum": d.choice(0.1, 0.25), "eps": d.choice(1e-5, 1e-3)}
    args["return_stats"] = d.chance(0.5)
    # Every value moved away from 0: the textbook formula for the variance fails here.
    x = d.array(*shape) + d.choice(0.0, 0.0, 8.0)
    return d.trial(
        {"x": _in_float32(x), **args},
        updated=("running_mean", "running_var"),
    )


def _batch_norm_backward(d: _Draw) -> Trial:
    x = d.array(*_norm_shape(d))
    axes = (0, *range(2, x.ndim))
    mean, rstd = x.mean(axes), 1 / np.sqrt(x.var(axes) + 1e-5)
    args = {"dy": d.array(*x.shape), "x": x}
    args |= {"mean": _in_float32(mean), "rstd": _in_float32(rstd)}
    return d.trial(args | ({"weight": d.array(x.shape[1])} if d.chance(0.7) else {}))


def _shape(d: _Draw) -> tuple[int, ...]:
    return tuple(d.number(1, 6) for _ in range(d.number(1, 4)))


def _elementwise(d: _Draw) -> Trial:
    x = d.array(*_shape(d), scale=3)
    slope = {"negative_slope": 0.25} if d.op.startswith("leaky") and d.chance(0.5) else {}
    return d.trial({"x": x, **slope})


def _elementwise_backward(d: _Draw) -> Trial:
    args = dict(_elementwise(d).args)
    return d.trial({"dy": d.array(*args["x"].shape), **args})


def _softmax(d: _Draw) -> Trial:
    x = d.array(*_shape(d), scale=3)
    return d.trial({"x": x, "axis": d.number(-x.ndim, x.ndim - 1)})


def _softmax_backward(d: _Draw) -> Trial:
    args = dict(_softmax(d).args)
    y = _in_float32(d.forward(args))
    return d.trial({"dy": d.array(*y.shape), "y": y, "axis": args["axis"]})


def _linear_args(d: _Draw) -> dict[str, Any]:
    lead, inner, out = _shape(d)[:2], d.number(1, 20), d.number(1, 9)
    args = {"x": d.array(*lead, inner), "w": d.array(out, inner)}
    return args | ({"b": d.array(out)} if d.chance(0.7) else {})


def _linear(d: _Draw) -> Trial:
    return d.trial(_linear_args(d))


def _dropout(d: _Draw) -> Trial:
    args = {"x": d.array(*_shape(d)), "p": d.choice(0.0, 0.25, 0.5), "training": d.chance(0.8)}
    return d.trial(args | {"rng": Seed(d.number(0, 10**6)), "return_mask": d.chance(0.5)})


def _dropout_backward(d: _Draw) -> Trial:
    dy, p = d.array(*_shape(d)), d.choice(0.0, 0.25, 0.5)
    return d.trial({"dy": dy, "mask": d.rng.random(dy.shape) >= p, "p": p})


def _classes(d: _Draw) -> tuple[Array, Array]:
    scores = d.array(d.number(1, 8), d.number(2, 10), scale=2)
    N, C = scores.shape
    return scores, d.rng.integers(0, C, size=(N,))


def _cross_entropy(d: _Draw) -> Trial:
    scores, labels = _classes(d)
    smoothing = {"label_smoothing": 0.125} if d.chance(0.4) else {}
    return d.trial({"scores": scores, "labels": labels, **smoothing})


def _multi_margin_loss(d: _Draw) -> Trial:
    scores, labels = _classes(d)
    return d.trial({"scores": scores, "labels": labels, "margin": d.choice(1.0, 0.5)})


def _mse_loss(d: _Draw) -> Trial:
    shape = _shape(d)
    return d.trial({"pred": d.array(*shape), "target": d.array(*shape)})


# By the name of the operation without its number of axes.
OPERATIONS: dict[str, Callable[[_Draw], Trial]] = {
    "conv": _conv,
    "conv_backward": _gradients_of(_conv_args),
    "conv_transpose": _conv_transpose,
    "conv_transpose_backward": _gradients_of(_conv_transpose_args),
    "im2col": _im2col,
    "col2im": _col2im,
    "max_pool": _max_pool,
    "max_pool_backward": _max_pool_backward,
    "avg_pool": _avg_pool,
    "avg_pool_backward": _avg_pool_backward,
    "dilate": _resample,
    "dilate_backward": _resample_backward,
    "subsample": _resample,
    "subsample_backward": _resample_backward,
    "batch_norm": _batch_norm,
    "batch_norm_backward": _batch_norm_backward,
    **{
        name + backward: make
        for name in ("relu", "leaky_relu", "sigmoid", "tanh")
        for backward, make in (("", _elementwise), ("_backward", _elementwise_backward))
    },
    "softmax": _softmax,
    "softmax_backward": _softmax_backward,
    "log_softmax": _softmax,
    "log_softmax_backward": _softmax_backward,
    "linear": _linear,
    "linear_backward": _gradients_of(_linear_args),
    "dropout": _dropout,
    "dropout_backward": _dropout_backward,
    "cross_entropy": _cross_entropy,
    "multi_margin_loss": _multi_margin_loss,
    "mse_loss": _mse_loss,
}
