"""Operations in one pass, for `cnnfast.nn` and the optimisers.

A layer and the ReLU behind it can share one pass over memory, and a convolution whose weights stay
as they are can keep them in the form that its kernel wants. Only the engine has such kernels: where
the dispatcher would choose, or is told to take, anything else, the functions here return None and
the caller computes one operation after the other.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from cnnfast import compiled, dispatch, geometry
from cnnfast.geometry import Elements, Shape
from cnnfast.methods.base import Call
from cnnfast.methods.convolution import EngineConvolution, sizes
from cnnfast.methods.engine import Engine

_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


def plain(x: Any, dtype: Any = None) -> bool:
    """Whether `x` is what kernels take as it is."""
    wanted = _DTYPES if dtype is None else (dtype,)
    return type(x) is np.ndarray and x.dtype in wanted and x.flags.c_contiguous


def free(op: str, method: str) -> bool:
    """Whether nothing speaks against the engine for an operation."""
    return dispatch.forced(op, method)[0] in ("auto", "engine")


def checksum(*arrays: Any) -> int:
    """What tells whether any of the arrays has changed; None among them counts too."""
    result: int = compiled.engine().checksum(arrays)
    return result


def unchanged(held: list[tuple[dict[str, Any], str, Any]]) -> bool:
    """Whether names in dictionaries have these values still, and arrays of them are read-only."""
    same: bool = compiled.engine().unchanged(held)
    return same


def surroundings(*methods: str) -> Any:
    """What else the plan for a layer depends on; None where nothing is to be remembered of it.

    `methods` are those that the layers ask for.
    """
    return (dispatch.generation(), *methods) if dispatch.undisturbed() else None


def convolution(
    x: Any, w: Any, sliding: tuple[Any, ...], ceiling: float, method: str, prepared: bool = False
) -> Any:
    """A plan of (x, w, b, packed), or None.

    `sliding` is stride, padding, dilation and groups. Unless `ceiling` is 0, the result is cut off
    there and at 0: infinity makes a ReLU, 6 a ReLU6. With `prepared` the weights will be given in
    the form that the plan's `prepare` makes of them.
    """
    if not (plain(x) and plain(w, x.dtype)) or x.ndim != w.ndim:
        return None
    op = "conv1d" if x.ndim == 3 else "conv2d"
    forced = dispatch.forced(op, method)
    key = (op, x.shape, w.shape, x.dtype.name, sliding, ceiling, prepared, forced[0])
    return _convolution(*key, dispatch.generation())


@lru_cache(maxsize=1024)
def _convolution(
    op: str,
    x: Shape,
    w: Shape,
    dtype: str,
    sliding: tuple[Any, ...],
    ceiling: float,
    prepared: bool,
    method: str,
    generation: int,
) -> Any:
    g = geometry.convolution(op, len(x) - 2, x, w, *sliding)
    chosen = dispatch.choose(Call(op, g, dtype, "cpu", prepared=prepared), method)
    if not isinstance(chosen, EngineConvolution):
        return None
    shape = g.y_shape if len(x) == 4 else (g.N, g.F, g.OW)
    plan = chosen.kernel("forward", g, dtype == "float64", shape, ceiling)
    return Recorded(plan, "conv + relu" if ceiling else op, chosen.name)


def blocked(
    x: Shape, dtype: Any, w: Any, b: Any, sliding: tuple[Any, ...], ceiling: float, method: str
) -> Any:
    """A plan of (x, packed, term) on blocked images, or None.

    These have the channels that a vector holds side by side, which suits convolutions of 1x1 and of
    single channels; `turns` leads there and back. `x` is the shape of the plain images. The plan's
    `prepare` makes `packed` of w and b; `term` is added and may be left out.
    """
    if dispatch.forced("conv2d", method)[0] != "auto" or compiled.engine_missing() is not None:
        return None
    if w.ndim != 4 or not plain(w, dtype) or not (b is None or plain(b, dtype)):
        return None
    return _blocked(x, w.shape, dtype == np.float64, sliding, ceiling)


@lru_cache(maxsize=1024)
def _blocked(x: Shape, w: Shape, double: bool, sliding: tuple[Any, ...], ceiling: float) -> Any:
    members = sizes(geometry.convolution("conv2d", 2, x, w, *sliding))
    if not compiled.engine().blocked_serves(members, double):
        return None
    plan = compiled.engine().Blocked(members, double, ceiling)
    return Recorded(plan, "conv + relu" if ceiling else "conv2d", "blocked")


@lru_cache(maxsize=1024)
def convolved(x: Shape, w: Shape, sliding: tuple[Any, ...]) -> Shape:
    """The shape of what a convolution of images gives."""
    return geometry.convolution("conv2d", 2, x, w, *sliding).y_shape


@lru_cache(maxsize=1024)
def turns(x: Shape, double: bool) -> tuple[Any, Any]:
    """Plans of (x,) that make images of this shape blocked, and plain again."""
    engine = compiled.engine()
    return engine.ToBlocks(x, double), engine.FromBlocks(x, double)


class Recorded:
    """A plan that tells `cnnfast.trace` what it ran."""

    def __init__(self, plan: Any, op: str, method: str) -> None:
        self.untraced, self._op, self._method = plan, op, method
        self.prepare = getattr(plan, "prepare", None)

    def __call__(self, arrays: tuple[Any, ...], out: Any = None) -> Any:
        result = self.untraced(arrays, out)
        if result is not None:
            dispatch.record(self._op, self._method)
        return result


def max_pool(x: Any, sliding: tuple[Any, ...], method: str) -> Any:
    """(y, what `max_pool_backward` needs), or None.

    `sliding` is kernel size, stride, padding, dilation and ceil_mode. The taps say in a byte which
    element of its window a maximum is: an eighth of the memory of indices.
    """
    if not plain(x):
        return None
    op = "max_pool1d" if x.ndim == 3 else "max_pool2d"
    forced = dispatch.forced(op, method)[0]
    plans = _max_pool(op, x.shape, x.dtype.name, sliding, forced, dispatch.generation())
    pooled = None if plans is None else plans[0]((x,))
    return None if pooled is None else (pooled[0], (pooled[1], plans[1]))


@lru_cache(maxsize=1024)
def _max_pool(
    op: str, x: Shape, dtype: str, sliding: tuple[Any, ...], method: str, generation: int
) -> Any:
    g = geometry.pooling(op, len(x) - 2, x, *sliding)
    chosen = dispatch.choose(Call(op, g, dtype, "cpu"), method)
    if not isinstance(chosen, Engine) or chosen.most_taps < g.KH * g.KW:
        return None
    forward, backward = chosen.taps(g, dtype == "float64", x)
    return Recorded(forward, op, "engine"), Recorded(backward, f"{op}_backward", "engine")


def max_pool_backward(dy: Any, x: Any, found: tuple[Any, Any], method: str) -> Any:
    """The gradient, by what `max_pool` of x found; or None."""
    taps, plan = found
    op = "max_pool1d_backward" if x.ndim == 3 else "max_pool2d_backward"
    if not plain(dy, x.dtype) or dy.shape != taps.shape or not free(op, method):
        return None
    return plan((dy, taps))


def add(a: Any, b: Any, relu: bool = False) -> Any:
    """``a + b``, and its ReLU if wanted, in a new array; or None."""
    if not (plain(a) and plain(b, a.dtype)) or a.shape != b.shape:
        return None
    if compiled.engine_missing() is not None:
        return None
    return addition(a.shape, a.dtype, relu)((a, b))


def addition(shape: Shape, dtype: Any, relu: bool = False) -> Any:
    """The plan by which `add` adds arrays of this shape."""
    return _add(shape, dtype == np.float64, relu, dispatch.generation())


@lru_cache(maxsize=1024)
def _add(shape: Shape, double: bool, relu: bool, generation: int) -> Any:
    return compiled.engine().Elementwise("add_relu" if relu else "add", shape, double)


def row(steps: list[Any]) -> Any:
    """A plan of (x,) that is these, each with its operands, one after the other.

    Operands are arrays, None, or numbers: 0 for x and i for the result of step i. Two steps on
    blocked images become one where much would be between them.
    """
    engine, steps = compiled.engine(), [*steps]
    uses = Counter(o for _, operands in steps for o in operands if type(o) is int)
    for i in range(1, len(steps)):
        if steps[i - 1] is None:
            continue
        (first, ahead), (second, behind) = steps[i - 1], steps[i]
        if behind[0] == i and uses[i] == 1 and len(ahead) == len(behind) == 2:
            pair = engine.blocked_pair(first, second)
            if pair is not None:
                steps[i - 1 : i + 1] = [None, (pair, (*ahead, behind[1]))]
    return engine.Row(steps)


def batch_norm_relu(
    x: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any,
    bias: Any,
    momentum: float,
    eps: float,
    method: str,
) -> Any:
    """(y, mean, rstd) of a batch in training, with the ReLU in y; or None."""
    arrays = (x, running_mean, running_var, weight, bias)
    if not plain(x) or not all(a is None or plain(a, x.dtype) for a in arrays[1:]):
        return None
    if prod(x.shape) <= x.shape[1] or not _engine_serves("batch_norm", x, method):
        return None
    planes = (x.shape[0], x.shape[1], prod(x.shape[2:]))
    double = x.dtype == np.float64
    plan = compiled.engine().BatchNorm(planes, double, x.shape, True, momentum, eps, True, True)
    return Recorded(plan, "batch_norm + relu", "engine")(arrays)


def batch_norm_relu_backward(
    dy: Any, x: Any, mean: Any, rstd: Any, weight: Any, bias: Any, method: str
) -> Any:
    """(dx, dweight, dbias) of `batch_norm_relu`; or None."""
    arrays = (dy, x, mean, rstd, weight, bias)
    if not all(a is None or plain(a, x.dtype) for a in arrays) or dy.shape != x.shape:
        return None
    if not _engine_serves("batch_norm_backward", x, method):
        return None
    planes = (x.shape[0], x.shape[1], prod(x.shape[2:]))
    plan = compiled.engine().BatchNormBackward(planes, x.dtype == np.float64, x.shape, True)
    return Recorded(plan, "batch_norm + relu backward", "engine")(arrays)


def update(kind: str, arrays: tuple[Any, ...], *settings: Any) -> bool:
    """Take an optimiser's step on (gradient, parameter, state...) by the engine.

    False, with nothing done, where there is no engine or an array is not as kernels need it.
    """
    if arrays[1].flags.f_contiguous:  # in C order when seen from the other end
        arrays = tuple(None if a is None else a.T for a in arrays)
    p = arrays[1]
    if compiled.engine_missing() is not None or not plain(p):
        return False
    if not all(a is None or (plain(a, p.dtype) and a.shape == p.shape) for a in arrays):
        return False
    plan = getattr(compiled.engine(), kind)(p.size, p.dtype == np.float64)
    done: bool = plan.step(arrays, *settings)
    return done


def _engine_serves(op: str, x: Any, method: str) -> bool:
    call = Call(op, Elements(x.shape), x.dtype.name, "cpu")
    return dispatch.choose(call, dispatch.forced(op, method)[0]).name == "engine"
