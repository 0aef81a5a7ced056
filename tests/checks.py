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
from functools import cache
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


def toom_cook(points: tuple[float, ...], outputs: int) -> tuple[np.ndarray, ...]:
    """Matrices with ``y = A.T @ ((G @ w) * (B @ x))`` for windows of three, and a last infinity."""
    n = outputs + 2
    A, G, B = np.zeros((n, outputs)), np.zeros((n, 3)), np.zeros((n, n))
    for k, p in enumerate(points):
        others = [q for q in points if q != p]
        G[k] = np.power(p, range(3)) / np.prod(np.subtract(p, others))
        A[k] = np.power(p, range(outputs))
        B[k, :-1] = np.poly(others)[::-1]
    A[-1, -1] = G[-1, -1] = 1
    B[-1] = np.poly(points)[::-1]
    return A, G, B


_ROOT = 0.5**0.5
_TILES = {
    2: toom_cook((0.0, 1.0, -1.0), 2),
    4: toom_cook((0.0, _ROOT, -_ROOT, 2 * _ROOT, -2 * _ROOT), 4),
}


def winograd_scales(case: Case) -> Arrays:
    """The errors of the products of one case, for the worst tiles there are, in units of eps."""
    arguments = case.arguments()
    x, w = (np.abs(arguments[name]) for name in ("x", "w"))
    groups, padding = arguments.get("groups", 1), arguments.get("padding", 0)
    if isinstance(padding, str):
        padding = 1 if padding == "same" else 0
    pads = np.array(naive._pairs(padding, 2))
    with np.errstate(all="ignore"):
        if not case.op.endswith("_backward"):
            by = _tiled_transposed if "transpose" in case.op else _tiled
            shape = expected(case, np.float64)[0].shape
            return (by(x, w, pads, groups, shape),)
        dy, needs = np.abs(arguments["dy"]), arguments.get("needs", "xwb")
        by, images = (_tiled, (x, dy)) if "transpose" in case.op else (_tiled_transposed, (dy, x))
        return (
            by(dy, w, pads, groups, x.shape) if "x" in needs else None,
            _tiled_weights(*images, pads, groups) if "w" in needs else None,
            np.zeros(()) if "b" in needs else None,
        )


def _shifted(shape: tuple[int, ...]) -> Iterator[tuple[int, int, int, tuple[int, int]]]:
    """Every way to lay tiles over an image: their size, the first one's corner, how many."""
    for m in _TILES:
        for top, left in np.ndindex(m, m):
            yield m, top, left, (-(-(shape[-2] + top) // m), -(-(shape[-1] + left) // m))


def _tiles(x: np.ndarray, top: int, left: int, m: int, size: int, count: Any) -> np.ndarray:
    """Tiles (N, C, rows, columns, size, size), m apart, from (-top, -left) on; zeros outside."""
    rows, columns = ((n - 1) * m + size for n in count)
    x = x[:, :, max(-top, 0) :, max(-left, 0) :]
    top, left = max(top, 0), max(left, 0)
    bottom, right = max(rows - top - x.shape[2], 0), max(columns - left - x.shape[3], 0)
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))[:, :, :rows, :columns]
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), (2, 3))[:, :, ::m, ::m]


def _tiled(
    x: np.ndarray, w: np.ndarray, pads: np.ndarray, groups: int, shape: tuple[int, ...]
) -> np.ndarray:
    """Of a convolution, whose result has this shape."""
    N, F, OH, OW = shape
    worst = np.zeros(shape)
    w = w.reshape(groups, F // groups, *w.shape[1:])
    for m, top, left, count in _shifted(shape):
        A, G, B = map(np.abs, _TILES[m])
        d = _tiles(x, pads[0, 0] + top, pads[1, 0] + left, m, m + 2, count)
        d = d.reshape(N, groups, x.shape[1] // groups, *d.shape[2:])
        product = np.einsum("gfcpq,ngcstpq->ngfstpq", G @ w @ G.T, B @ d @ B.T)
        y = (A.T @ product @ A).swapaxes(-3, -2)
        y = y.reshape(N, F, m * count[0], m * count[1])
        np.fmax(worst, y[:, :, top : top + OH, left : left + OW], out=worst)
    return (w.shape[2] + _TRANSFORMS) * worst


def _tiled_transposed(
    dy: np.ndarray, w: np.ndarray, pads: np.ndarray, groups: int, shape: tuple[int, ...]
) -> np.ndarray:
    """Of the gradient by x, which is a convolution of dy by the weights turned about."""
    F, Cg = w.shape[:2]
    turned = w[:, :, ::-1, ::-1].reshape(groups, F // groups, Cg, 3, 3).swapaxes(1, 2)
    return _tiled(dy, turned.reshape(-1, F // groups, 3, 3), 2 - pads, groups, shape)


def _tiled_weights(dy: np.ndarray, x: np.ndarray, pads: np.ndarray, groups: int) -> np.ndarray:
    """Of the gradient by w, which is a sum over all tiles of all images."""
    N, F = dy.shape[:2]
    worst: Any = 0.0
    terms = 0
    for m, top, left, count in _shifted(dy.shape):
        A, G, B = map(np.abs, _TILES[m])
        d = _tiles(x, pads[0, 0] + top, pads[1, 0] + left, m, m + 2, count)
        d = d.reshape(N, groups, x.shape[1] // groups, *d.shape[2:])
        e = _tiles(dy, top, left, m, m, count).reshape(N, groups, F // groups, *count, m, m)
        product = np.einsum("ngfstpq,ngcstpq->gfcpq", A @ e @ A.T, B @ d @ B.T)
        dw = G.T @ product @ G
        worst = np.fmax(worst, dw.reshape(F, x.shape[1] // groups, 3, 3))
        terms = max(terms, N * prod(count))
    return (terms + _TRANSFORMS) * worst


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
