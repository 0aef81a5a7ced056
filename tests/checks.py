"""What every method must satisfy on every case: the checks that the tests of methods consist of.

The bound
---------
Let ``T`` be how many terms an element of the exact result sums and ``M`` the sum of their
magnitudes. Summed in any order, with or without fused multiplications, in arithmetic of unit
roundoff ``u``, the error is at most ``(T + 1) * u * M`` to first order (Higham, "Accuracy and
Stability of Numerical Algorithms", 2002, section 3.1). The reference, in float64, has an error of
the same form. So::

    |got - expected| <= eps * (T + 4) * M        eps = 2 * u of the dtype under test

is a bound that no correct method can miss, for the operations that are linear in each array. `M` is
what `cnnfast.naive` gives for the magnitudes of the arrays, `T` what it gives for ones. Operations
that only move or compare elements must be exact. The others have their error analysis below, in
`SCALES`.

Winograd's method multiplies sums of pixels by sums of taps, and the outputs of a tile are sums of
those products, in which most terms cancel. What does not cancel is their rounding, so that `M` must
be that of the terms: `winograd_scales` puts the magnitudes of the transforms' entries, and of the
arrays', in the place of both, as Higham does for Strassen's product (section 23.2.2 there).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import product
from math import prod
from typing import Any
from unittest import mock

import numpy as np
from cases import Case

import cnnfast
from cnnfast import compiled, dispatch, naive

Arrays = tuple[Any, ...]
Layout = Callable[[str, Any], Any]

EXACT = frozenset(
    {"im2col", "relu", "relu_backward"}
    | {f"max_pool{n}d" for n in (1, 2)}
    | {
        f"{op}{n}d{backward}"
        for op in ("dilate", "subsample")
        for n in (1, 2)
        for backward in ("", "_backward")
    }
)


# What no result is.
POISON = {"f": np.nan, "i": -77, "b": True}

# The methods whose kernels are those of the C engine, and those that are not for every call.
ENGINE = ("gemm", "winograd", "depthwise", "direct", "engine")
SOME = ("winograd", "depthwise", "direct")


def as_tuple(result: Any) -> Arrays:
    return result if isinstance(result, tuple) else (result,)


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill what NumPy leaves uninitialised: with NaN, or integers with bytes of 0xA5.

    An element that a method forgets to write, or adds to before it wrote to it, then shows.
    """
    empty, empty_like = np.empty, np.empty_like

    def poison(a: np.ndarray) -> np.ndarray:
        if a.dtype.kind == "f":
            a.fill(np.nan)
        elif a.dtype.kind in "iu":
            a.fill(int.from_bytes(b"\xa5" * a.itemsize, signed=a.dtype.kind == "i"))
        return a

    with (
        mock.patch.object(np, "empty", lambda *args, **kw: poison(empty(*args, **kw))),
        mock.patch.object(np, "empty_like", lambda *args, **kw: poison(empty_like(*args, **kw))),
    ):
        yield


def float64_of(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same numbers, with every array of floats in float64."""
    return {
        name: value.astype(np.float64)
        if isinstance(value, np.ndarray) and value.dtype.kind == "f"
        else value
        for name, value in arguments.items()
    }


def updated(op: str, arguments: dict[str, Any]) -> Arrays:
    """The arrays that a call changes in place, which count as results."""
    if op == "batch_norm" and arguments.get("training"):
        running = (arguments[name] for name in ("running_mean", "running_var"))
        return tuple(a for a in running if a is not None)
    return ()


@cache
def expected(case: Case, dtype: Any) -> Arrays:
    """What `cnnfast.naive` computes in float64 from the case's arguments as `dtype` has them."""
    arguments = float64_of(case.arguments(dtype))
    with np.errstate(all="ignore"):
        result = as_tuple(getattr(naive, case.op)(**arguments))
    return result + updated(case.op, arguments)


@cache
def scales(case: Case, method: str = "") -> Arrays:
    """The errors allowed to each result, in units of eps: the module's docstring says which."""
    if method == "winograd":
        # Beside its own rounding, it adds the bias, and it sums what is not finite directly.
        pairs = zip(scales(case), winograd_scales(case), strict=True)
        return tuple(a if a is None or b is None else a + np.nan_to_num(b) for a, b in pairs)
    arguments, results = case.arguments(), expected(case, np.float64)
    if case.op in EXACT:
        return tuple(None if y is None else np.zeros(np.shape(y)) for y in results)
    with np.errstate(all="ignore"):
        if case.op in SCALES:
            return SCALES[case.op](arguments, *results)
        return tuple(
            None if m is None else (t + 4) * m
            for t, m in zip(_terms(case, arguments), _naive(case, arguments, np.abs), strict=True)
        )


def _naive(case: Case, arguments: dict[str, Any], change: Callable[[Any], Any]) -> Arrays:
    """The reference of a linear operation for arrays with changed elements."""
    changed = {
        name: change(value) if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value
        for name, value in arguments.items()
    }
    return as_tuple(getattr(naive, case.op)(**changed))


def _terms(case: Case, arguments: dict[str, Any]) -> Arrays:
    if case.op.startswith("avg_pool"):  # a window's elements; on the way back, its windows
        kernel = arguments["kernel_size"]
        ndim = 1 if "1d" in case.op else 2
        return (prod(kernel) if isinstance(kernel, tuple) else kernel**ndim,)
    return _naive(case, arguments, np.ones_like)


# Winograd's method, whose three products are the forward pass, or the gradient by x, and by w.

# The transforms of an image are applied to its rows and columns, each of which rounds a few times
# for each entry of a matrix and once more for the entry itself: no more than 14 times for the taps,
# 10 for the pixels and 14 for the outputs. The rest is for the product and the sums of chunks.
_TRANSFORMS = 48


def toom_cook(points: tuple[float, ...], outputs: int, taps: int) -> tuple[np.ndarray, ...]:
    """Matrices with ``y = A.T @ ((G @ w) * (B @ x))``, for these points and a last infinity."""
    n = outputs + taps - 1
    assert len(points) == n - 1
    A, G, B = np.zeros((n, outputs)), np.zeros((n, taps)), np.zeros((n, n))
    for k, p in enumerate(points):
        others = [q for q in points if q != p]
        G[k] = np.power(p, range(taps)) / np.prod(np.subtract(p, others))
        A[k] = np.power(p, range(outputs))
        B[k, :-1] = np.poly(others)[::-1]
    A[-1, -1] = G[-1, -1] = 1
    B[-1] = np.poly(points)[::-1]
    return A, G, B


_ROOT = 0.5**0.5
_FOUR, _SIX = (0.0, 1.0, -1.0), (0.0, _ROOT, -_ROOT, 2 * _ROOT, -2 * _ROOT)
_Matrices = tuple[np.ndarray, ...]


def _tile(taps: int, few: bool) -> _Matrices:
    """The matrices of one dimension: tiles of six points, or four; of one where it has one tap."""
    if taps == 1:
        return (np.ones((1, 1)),) * 3
    points = _FOUR if few else _SIX
    return toom_cook(points, len(points) + 2 - taps, taps)


class Plain:
    """A convolution as one at stride 1, without padding, dilation and large windows.

    The combs of a dilation are further images. The pieces of a window, which are the phases of the
    stride and blocks of taps, are further channels.
    """

    def __init__(self, kernel: Any, stride: Any, dilation: Any, pads: Any) -> None:
        self.kernel, self.stride, self.dilation = tuple(kernel), stride, dilation
        self.start = [-int(p) for p in pads]
        counts = [-(-k // s) for k, s in zip(kernel, stride, strict=True)]
        blocks = [1 if n <= 5 else -(-n // 4) for n in counts]
        self.taps = [-(-n // b) for n, b in zip(counts, blocks, strict=True)]
        self.pieces = [
            [(p + s * r * b) for b in range(n) for p in range(min(s, k))]
            for k, s, r, n in zip(self.kernel, stride, self.taps, blocks, strict=True)
        ]
        plain = (self.kernel, tuple(stride), tuple(dilation)) == ((3, 3), (1, 1), (1, 1))
        self.tiles = [
            [_tile(r, few) for r in self.taps] for few in ((False, True) if plain else (False,))
        ]

    def _picked(self, piece: tuple[int, int]) -> Any:
        """Where its taps are in the window, as an index of two dimensions, and among its own."""
        found = [
            range(p, k, s)[:r]
            for p, k, s, r in zip(piece, self.kernel, self.stride, self.taps, strict=True)
        ]
        inner = tuple(slice(len(f)) for f in found)
        return (..., *(slice(f.start, f.stop, f.step) for f in found)), (..., *inner)

    def weights(self, w: np.ndarray) -> np.ndarray:
        """(..., C, KH, KW) as (..., pieces * C, rows, columns)."""
        parts = []
        for piece in product(*self.pieces):
            outer, inner = self._picked(piece)
            part = np.zeros((*w.shape[:-2], *self.taps))
            part[inner] = w[outer]
            parts.append(part)
        return np.concatenate(parts, -3)

    def of_weights(self, plain: np.ndarray) -> np.ndarray:
        """The way back, from the gradient."""
        parts = np.split(plain, len(self.pieces[0]) * len(self.pieces[1]), -3)
        w = np.zeros((*parts[0].shape[:-2], *self.kernel))
        for piece, part in zip(product(*self.pieces), parts, strict=True):
            outer, inner = self._picked(piece)
            w[outer] = part[inner]
        return w

    def combs(self, y: np.ndarray) -> Iterator[tuple[tuple[int, int], Any, list[int]]]:
        """Those that have outputs: their offsets, where they are in y, and their sizes."""
        for comb in product(*map(range, self.dilation)):
            teeth = (..., *(slice(c, None, d) for c, d in zip(comb, self.dilation, strict=True)))
            size = list(y[teeth].shape[-2:])
            if all(size):
                yield comb, teeth, size

    def image(self, x: np.ndarray, comb: tuple[int, int], size: list[int]) -> np.ndarray:
        """x (N, groups, C, H, W) as it is read for `size` outputs: (N, groups, pieces * C, ...)."""
        parts = []
        for piece in product(*self.pieces):
            part = x
            for axis in (0, 1):
                step = self.stride[axis] * self.dilation[axis]
                first = self.start[axis] + comb[axis] + piece[axis] * self.dilation[axis]
                at = first + step * np.arange(size[axis] + self.taps[axis] - 1)
                inside = (at >= 0) & (at < x.shape[3 + axis])
                part = np.take(part, np.where(inside, at, 0), 3 + axis)
                part = np.where(inside.reshape((-1, 1) if axis == 0 else (1, -1)), part, 0)
            parts.append(part)
        return np.concatenate(parts, 2)


def winograd_scales(case: Case) -> Arrays:
    """The errors of the products of one case, for the worst tiles there are, in units of eps."""
    arguments = case.arguments()
    x, w = (np.abs(arguments[name]) for name in ("x", "w"))
    if x.ndim == 3:
        arguments = {**arguments, "dy": np.expand_dims(arguments.get("dy", x), 2)}
        x, w = np.expand_dims(x, 2), np.expand_dims(w, 2)
    groups = arguments.get("groups", 1)
    stride, dilation = (_pair(arguments.get(name, 1), case) for name in ("stride", "dilation"))
    padding = arguments.get("padding", 0)
    if isinstance(padding, str):
        spans = [d * (k - 1) for d, k in zip(dilation, w.shape[2:], strict=True)]
        pads = [n // 2 if padding == "same" else 0 for n in spans]
    elif "1d" in case.op:
        pads = [0, naive._pairs(padding, 1)[0][0]]
    else:
        pads = [before for before, _ in naive._pairs(padding, 2)]
    bound = _Bound(groups, stride, dilation, pads)
    with np.errstate(all="ignore"):
        if not case.op.endswith("_backward"):
            by = bound.transposed if "transpose" in case.op else bound.forward
            shape = expected(case, np.float64)[0].shape
            return (by(x, w, (*shape[:2], *((1, *shape[2:])[-2:]))).reshape(shape),)
        dy, needs = np.abs(arguments["dy"]), arguments.get("needs", "xwb")
        transpose = "transpose" in case.op
        by = bound.forward if transpose else bound.transposed
        images = (x, dy) if transpose else (dy, x)
        shapes = {name: np.shape(case.arguments()[name]) for name in ("x", "w")}
        return (
            by(dy, w, x.shape).reshape(shapes["x"]) if "x" in needs else None,
            bound.weights(*images, w.shape[2:]).reshape(shapes["w"]) if "w" in needs else None,
            np.zeros(()) if "b" in needs else None,
        )


def _pair(value: Any, case: Case) -> tuple[int, int]:
    values = (
        tuple(value) if isinstance(value, (tuple, list)) else (value,) * (2 - ("1d" in case.op))
    )
    return (1, *values)[-2:]


@dataclass(frozen=True)
class _Bound:
    """The three products of a convolution, of magnitudes, by every tiling."""

    groups: int
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pads: Any

    def forward(self, x: np.ndarray, w: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        plain = Plain(w.shape[2:], self.stride, self.dilation, self.pads)
        return self._tiled(plain, x, w, shape)

    def transposed(self, dy: np.ndarray, w: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The gradient by x at stride 1, a convolution of dy by the weights turned about."""
        F, Cg = w.shape[:2]
        turned = w[:, :, ::-1, ::-1].reshape(self.groups, F // self.groups, Cg, *w.shape[2:])
        turned = turned.swapaxes(1, 2).reshape(-1, F // self.groups, *w.shape[2:])
        spans = [d * (k - 1) for d, k in zip(self.dilation, w.shape[2:], strict=True)]
        pads = np.subtract(spans, self.pads)
        plain = Plain(w.shape[2:], (1, 1), self.dilation, pads)
        return self._tiled(plain, dy, turned, shape)

    def _tiled(self, plain: Plain, x: np.ndarray, w: np.ndarray, shape: Any) -> np.ndarray:
        N, F, *out = shape
        worst = np.zeros((N, self.groups, F // self.groups, *out))
        x = x.reshape(N, self.groups, x.shape[1] // self.groups, *x.shape[2:])
        w = plain.weights(w.reshape(self.groups, F // self.groups, *w.shape[1:]))
        for comb, teeth, size in plain.combs(worst):
            image = plain.image(x, comb, size)
            for (A, G, B), (C, H, D), corner, count in _shifted(plain, size):
                A, G, B, C, H, D = map(np.abs, (A, G, B, C, H, D))
                d = _tiles(image, corner, (A.shape[1], C.shape[1]), (len(B), len(D)), count)
                m = np.einsum("gfcpq,ngcstpq->ngfstpq", G @ w @ H.T, B @ d @ D.T)
                y = (A.T @ m @ C).swapaxes(-3, -2)
                y = y.reshape(*worst.shape[:3], count[0] * A.shape[1], count[1] * C.shape[1])
                y = y[..., corner[0] :, corner[1] :][..., : size[0], : size[1]]
                worst[teeth] = np.fmax(worst[teeth], y)
        return (w.shape[2] + _TRANSFORMS) * worst.reshape(shape)

    def weights(self, dy: np.ndarray, x: np.ndarray, kernel: tuple[int, int]) -> np.ndarray:
        """The gradient by w, which is a sum over all tiles of all images."""
        N, F, *out = dy.shape
        plain = Plain(kernel, self.stride, self.dilation, self.pads)
        dy = dy.reshape(N, self.groups, F // self.groups, *out)
        x = x.reshape(N, self.groups, x.shape[1] // self.groups, *x.shape[2:])
        sums: dict[Any, Any] = {}
        terms: dict[Any, int] = {}
        for comb, teeth, size in plain.combs(dy):
            image = plain.image(x, comb, size)
            for (A, G, B), (C, H, D), corner, count in _shifted(plain, size):
                key = (len(A), corner)
                A, G, B, C, H, D = map(np.abs, (A, G, B, C, H, D))
                steps = (A.shape[1], C.shape[1])
                d = _tiles(image, corner, steps, (len(B), len(D)), count)
                e = _tiles(dy[teeth], corner, steps, steps, count)
                m = np.einsum("ngfstpq,ngcstpq->gfcpq", A @ e @ C.T, B @ d @ D.T)
                sums[key] = sums.get(key, 0) + G.T @ m @ H
                terms[key] = terms.get(key, 0) + N * prod(count)
        worst: Any = 0.0
        for total in sums.values():
            worst = np.fmax(worst, total)
        worst = plain.of_weights(worst).reshape(F, -1, *kernel)
        return (max(terms.values()) + _TRANSFORMS) * worst


def _shifted(plain: Plain, size: list[int]) -> Iterator[tuple[Any, Any, Any, Any]]:
    """Every way to lay tiles over an image: their matrices, the first one's corner, how many."""
    for down, along in plain.tiles:
        steps = down[0].shape[1], along[0].shape[1]
        for corner in np.ndindex(*steps):
            count = [-(-(n + c) // m) for n, c, m in zip(size, corner, steps, strict=True)]
            yield down, along, corner, count


def _tiles(x: np.ndarray, corner: Any, steps: Any, size: Any, count: Any) -> np.ndarray:
    """Tiles (..., rows, columns, *size), `steps` apart, from `corner` before x on, and zeros."""
    whole = [(n - 1) * m + k for n, m, k in zip(count, steps, size, strict=True)]
    after = [max(n - c - have, 0) for n, c, have in zip(whole, corner, x.shape[-2:], strict=True)]
    pads = [(0, 0)] * (x.ndim - 2) + list(zip(corner, after, strict=True))
    x = np.pad(x, pads)[..., : whole[0], : whole[1]]
    windows = np.lib.stride_tricks.sliding_window_view(x, tuple(size), (-2, -1))
    return windows[..., :: steps[0], :: steps[1], :, :]


# Errors of the operations that are not linear, to first order, in units of eps. Each function takes
# the arguments and the results of the reference.


def _relative(factor: float) -> Callable[..., Arrays]:
    def scale(arguments: dict[str, Any], *results: Any) -> Arrays:
        return tuple(factor * np.abs(y) for y in results)

    return scale


def _per_channel(x: np.ndarray, values: Any) -> np.ndarray:
    return np.reshape(values, (1, -1) + (1,) * (x.ndim - 2))


def _batch_norm(arguments: dict[str, Any], y: Any, *statistics: Any) -> Arrays:
    """Centred values have the error of the mean, the variance that of the centred values.

    The kernels may compute ``x * scale + shift`` in place of ``(x - mean) * scale + bias``.
    """
    x, eps = arguments["x"], arguments.get("eps", 1e-5)
    axes = (0, *range(2, x.ndim))
    m = x.size // x.shape[1]
    if not m:
        everything = (y, *statistics)
        return tuple(4 * np.abs(a) for a in everything)
    weight, bias = (arguments.get(name) for name in ("weight", "bias"))
    w = np.ones(x.shape[1]) if weight is None else np.abs(weight)
    b = np.zeros(x.shape[1]) if bias is None else np.abs(bias)
    training = arguments.get("training", False)
    if training:
        mean, var = x.mean(axes), x.var(axes)
        d_mean = (m + 4) * np.abs(x).mean(axes)
    else:
        mean, var = arguments["running_mean"], arguments["running_var"]
        d_mean = np.zeros_like(mean)
    centred = np.abs(x - _per_channel(x, mean))
    d_centred = _per_channel(x, d_mean) + np.abs(x) + _per_channel(x, np.abs(mean))
    d_var = (2 * centred * d_centred).mean(axes) + (m + 4) * var if training else var * 0
    rstd = 1 / np.sqrt(var + eps)
    d_rstd = rstd**3 / 2 * (d_var + var + eps) + 4 * rstd
    d_y = _per_channel(x, w) * (
        d_centred * 8 * _per_channel(x, rstd) + centred * _per_channel(x, d_rstd)
    )
    scaled = [d_y + 4 * (np.abs(y) + _per_channel(x, b))]
    if arguments.get("return_stats"):
        scaled += [d_mean + np.abs(mean), d_rstd]
    momentum = arguments.get("momentum", 0.1)
    for running, change in zip(
        updated("batch_norm", arguments),
        (d_mean + 4 * np.abs(mean), (d_var + 4 * var) * m / max(m - 1, 1)),
        strict=False,
    ):
        scaled.append(4 * np.abs(running) + momentum * change)
    return tuple(scaled)


def _batch_norm_backward(arguments: dict[str, Any], *results: Any) -> Arrays:
    """The formula of the gradient with every subtraction turned into an addition."""
    dy, x = np.abs(arguments["dy"]), np.abs(arguments["x"])
    mean, rstd = (_per_channel(x, np.abs(arguments[name])) for name in ("mean", "rstd"))
    weight = arguments.get("weight")
    w = 1.0 if weight is None else _per_channel(x, np.abs(weight))
    axes = (0, *range(2, x.ndim))
    m = max(x.size // x.shape[1], 1)
    normal = (x + mean) * rstd
    db, dw = dy.sum(axes), (dy * normal).sum(axes)
    dx = w * rstd * (dy + _per_channel(x, db) / m + normal * _per_channel(x, dw) / m)
    return (m + 12) * dx, (m + 8) * dw, (m + 4) * db


def _sigmoid_backward(arguments: dict[str, Any], *results: Any) -> Arrays:
    """``y * (1 - y)`` cannot be more accurate than y is."""
    return (8 * np.abs(arguments["dy"]) * naive.sigmoid(arguments["x"]),)


def _tanh_backward(arguments: dict[str, Any], *results: Any) -> Arrays:
    return (8 * np.abs(arguments["dy"]),)


def _reach(arguments: dict[str, Any]) -> tuple[np.ndarray, int, int]:
    """How far scores are below the largest, which is the error of their exponentials."""
    x, axis = arguments["x"], arguments.get("axis", -1)
    below = x.max(axis=axis, keepdims=True, initial=-np.inf) - x
    return np.where(np.isfinite(x), below + np.abs(x), 0), axis, x.shape[axis]


def _softmax(arguments: dict[str, Any], y: Any) -> Arrays:
    reach, axis, K = _reach(arguments)
    return ((K + 8 + reach + (y * reach).sum(axis=axis, keepdims=True)) * y,)


def _log_softmax(arguments: dict[str, Any], y: Any) -> Arrays:
    reach, axis, K = _reach(arguments)
    average = (np.exp(y) * reach).sum(axis=axis, keepdims=True)
    return (K + 8 + reach + average + 2 * np.abs(y),)


def _softmax_backward(arguments: dict[str, Any], *results: Any) -> Arrays:
    dy, y, axis = np.abs(arguments["dy"]), np.abs(arguments["y"]), arguments.get("axis", -1)
    return ((y.shape[axis] + 8) * y * (dy + (dy * y).sum(axis=axis, keepdims=True)),)


def _log_softmax_backward(arguments: dict[str, Any], *results: Any) -> Arrays:
    dy, y, axis = np.abs(arguments["dy"]), arguments["y"], arguments.get("axis", -1)
    share = np.exp(y) * dy.sum(axis=axis, keepdims=True)
    error_of_y = np.where(np.isfinite(y), np.abs(y), 0)
    return (dy + (y.shape[axis] + 8 + error_of_y) * share,)


def _cross_entropy(arguments: dict[str, Any], loss: float, dscores: Any) -> Arrays:
    scores = arguments["scores"]
    N, C = scores.shape
    logs = naive.log_softmax(scores)
    (d_logs,) = _log_softmax({"x": scores}, logs)
    d_loss = np.sum(d_logs + np.abs(logs) * (N * C + 4)) / N
    return d_loss, (np.exp(logs) * d_logs + C + 8) / N


def _multi_margin_loss(arguments: dict[str, Any], loss: float, dscores: Any) -> Arrays:
    scores = np.abs(arguments["scores"])
    magnitude = 2 * scores.max() + arguments.get("margin", 1.0)
    return (scores.size + 4) * magnitude * scores.shape[1], 4 * np.abs(dscores)


def _mse_loss(arguments: dict[str, Any], loss: float, dpred: Any) -> Arrays:
    sums = np.abs(arguments["pred"]) + np.abs(arguments["target"])
    return (sums.size + 8) * np.mean(sums**2), 8 * sums / sums.size


SCALES: dict[str, Callable[..., Arrays]] = {
    "batch_norm": _batch_norm,
    "batch_norm_backward": _batch_norm_backward,
    "leaky_relu": _relative(4),
    "leaky_relu_backward": _relative(4),
    "sigmoid": _relative(8),
    "sigmoid_backward": _sigmoid_backward,
    "tanh": _relative(8),
    "tanh_backward": _tanh_backward,
    "softmax": _softmax,
    "softmax_backward": _softmax_backward,
    "log_softmax": _log_softmax,
    "log_softmax_backward": _log_softmax_backward,
    "dropout": _relative(4),
    "dropout_backward": _relative(4),
    "cross_entropy": _cross_entropy,
    "multi_margin_loss": _multi_margin_loss,
    "mse_loss": _mse_loss,
}


def assert_close(got: Any, want: Any, scale: Any, dtype: Any, what: str) -> None:
    """Fail unless ``|got - want| <= eps * scale`` wherever `want` is finite, else equality.

    Integers and booleans must be equal. A NaN in `got` fails wherever `want` has none.
    """
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, f"{what}: shape {got.shape}, expected {want.shape}"
    if want.dtype.kind != "f":
        wrong = got != want
    else:
        info = np.finfo(dtype)
        with np.errstate(all="ignore"):
            want = want.astype(dtype).astype(np.float64) if not np.any(scale) else want
            error = np.abs(got.astype(np.float64) - want)
            bound = np.multiply(scale, float(info.eps))
            # What underflows may lose all its digits.
            bound = np.where(bound > 0, bound + 8 * float(info.tiny), bound)
            same = (got == want) | (np.isnan(got) & np.isnan(want))
            wrong = np.where(np.isfinite(want), ~(error <= bound), ~same)
    if np.any(wrong):
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise AssertionError(
            f"{what}: {np.count_nonzero(wrong)} of {wrong.size} elements are wrong, the first at "
            f"{at}: {got[at]!r}, expected {want[at]!r}"
        )


def assert_new_array(a: Any, given: dict[str, Any], what: str) -> None:
    """Fail unless `a` is a NumPy array in C order that can be written to and is the caller's."""
    assert type(a) is np.ndarray, f"{what}: a {type(a).__name__}"
    assert a.flags.c_contiguous, f"{what}: not in C order, strides {a.strides} of {a.shape}"
    assert a.flags.writeable, f"{what}: read-only"
    assert a.flags.aligned, f"{what}: not aligned"
    assert a.dtype.isnative, f"{what}: foreign byte order"
    for name, value in given.items():
        if isinstance(value, np.ndarray):
            assert not np.shares_memory(a, value), f"{what}: shares memory with {name}"


def assert_same(got: Any, want: Any, what: str) -> None:
    """Fail unless two values are bitwise the same."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.dtype == want.dtype and got.shape == want.shape, what
    assert got.tobytes() == want.tobytes(), what


def unavailable(method: str) -> str | None:
    """Why a method is not installed here, if it is not."""
    missing = {"im2col": compiled.cython_missing, "cython": compiled.cython_missing}
    missing |= dict.fromkeys(ENGINE, compiled.engine_missing)
    return missing.get(method, lambda: None)()


def serves(case: Case, method: str) -> bool:
    """Whether a method is for such a call at all."""
    arguments = case.arguments(np.float32)
    try:
        cnnfast.explain(case.op, **arguments, method=method)
    except cnnfast.MethodError:
        return False
    return True


def served(cases: Iterable[Case], method: str) -> list[Case]:
    """Those of the cases that a method is for; some must be."""
    cases = list(cases)
    found = [case for case in cases if method not in SOME or serves(case, method)]
    assert found or not cases, f"no case for method {method}"
    return found


def run(case: Case, method: str, arguments: dict[str, Any]) -> Arrays:
    """The results of a case by a method, and proof that no other method ran."""
    with poisoned(), cnnfast.trace() as ran, np.errstate(all="ignore"):
        result = getattr(cnnfast, case.op)(**arguments, method=method)
    assert ran == [dispatch.Ran(case.op, method)], f"{case}: asked for {method}, {ran} ran"
    return as_tuple(result) + updated(case.op, arguments)


def check(case: Case, method: str, dtype: Any, layout: Layout | None = None) -> None:
    """Fail unless a method serves a case as `cnnfast.naive` defines it.

    The values, within the bound; the dtypes and the layout of the results; that the arguments are
    as they were; that this method ran, and none else.

    Parameters
    ----------
    case, method, dtype
        What to run.
    layout : function, optional
        Changes the arguments, by name, into others of the same values.
    """
    arguments = laid_out(case, dtype, layout)
    before = copy.deepcopy(arguments)
    got = run(case, method, arguments)
    in_place = updated(case.op, arguments)
    wanted = expected(case, dtype)
    assert len(got) == len(wanted), f"{case}: {len(got)} results, expected {len(wanted)}"
    bounds = scales(case, method)
    for k, (y, want, scale) in enumerate(zip(got, wanted, bounds, strict=True)):
        what = f"{case}, method {method}, {np.dtype(dtype)}, result {k}"
        if want is None or isinstance(want, float):
            assert type(y) is type(want), f"{what}: {y!r}, expected {want!r}"
        elif not any(y is a for a in in_place):
            assert_new_array(y, arguments, what)
            assert y.dtype == (dtype if want.dtype.kind == "f" else want.dtype), what
        if want is not None:
            assert_close(y, want, scale, dtype, what)
    for name, value in before.items():
        if isinstance(value, np.ndarray) and not any(arguments[name] is a for a in in_place):
            assert_same(arguments[name], value, f"{case}, method {method}: {name} was changed")
    check_out(case, method, dtype, got[: len(got) - len(in_place)], layout)


def laid_out(case: Case, dtype: Any, layout: Layout | None) -> dict[str, Any]:
    """Newly made arguments in that memory layout."""
    arguments = case.arguments(dtype)
    if layout is None:
        return arguments
    return {name: layout(name, value) for name, value in arguments.items()}


def check_out(
    case: Case, method: str, dtype: Any, wanted: Arrays, layout: Layout | None = None
) -> None:
    """Fail unless results written to arrays of the caller's are those that new arrays hold."""
    function = getattr(cnnfast, case.op)
    if "out" not in inspect.signature(function).parameters:
        return
    for call in ("first", "second"):  # which goes the short way, if the first is remembered
        places = tuple(None if y is None else np.full_like(y, POISON[y.dtype.kind]) for y in wanted)
        out = places if len(places) > 1 else places[0]
        with np.errstate(all="ignore"):
            given = laid_out(case, dtype, layout)
            got = as_tuple(function(**given, method=method, out=out))
        for k, (y, place, want) in enumerate(zip(got, places, wanted, strict=True)):
            what = f"{case}, method {method}, {np.dtype(dtype)}, result {k}, {call} with out="
            assert y is place, what
            if y is not None:
                assert_same(y, want, what)


def check_all(cases: Iterable[Case], *arguments: Any) -> None:
    """`check` of many cases, which names all those that fail."""
    failures: dict[str, Exception] = {}
    for case in served(cases, arguments[0]):
        try:
            check(case, *arguments)
        except Exception as error:
            failures[str(case)] = error
    if failures:
        lines = [f"{len(failures)} cases failed:"]
        lines += [f"- {case}: {type(e).__name__}: {e}" for case, e in failures.items()]
        raise AssertionError("\n".join(lines)) from next(iter(failures.values()))


def numeric_gradient(f: Callable[[np.ndarray], float], x: np.ndarray, h: float) -> np.ndarray:
    """The gradient of `f` by central differences, one element after the other."""
    x, gradient = x.copy(), np.zeros_like(x)
    for at in np.ndindex(x.shape):
        value = x[at]
        x[at] = value + h
        above = f(x)
        x[at] = value - h
        below = f(x)
        x[at] = value
        gradient[at] = (above - below) / (2 * h)
    return gradient
