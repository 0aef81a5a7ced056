"""The test of the tests: wrong kernels, each of which the checks of every method must catch.

The kernels below are those of the compiled modules, written with NumPy, each with places where it
can be told to go wrong. Without a fault they pass the same checks, so what is caught is the fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import checks
import numpy as np
import pytest
from cases import CASES, FLOATS

import cnnfast
from cnnfast import compiled, dispatch
from cnnfast.methods import im2col as im2col_method
from cnnfast.methods.portable import Portable

Patch = pytest.MonkeyPatch


# Kernels with faults


def _taps(
    fault: str,
    shape: Any,
    KH: int,
    KW: int,
    sh: int,
    sw: int,
    pt: int,
    pl: int,
    dh: int,
    dw: int,
    OH: int,
    OW: int,
) -> Iterator[tuple[int, int, np.ndarray, np.ndarray, np.ndarray]]:
    """For each tap of all windows: the row and column that it sees, and whether they are inside."""
    if fault == "stride ignored":
        sh = sw = 1
    if fault == "strides swapped":
        sh, sw = sw, sh
    if fault == "dilation ignored":
        dh = dw = 1
    if fault == "one row of padding too few":
        pt -= 1
    if fault == "padding of the rows for the columns":
        pl = pt
    if fault == "height for width":
        shape = shape[:2] + shape[:1:-1]
    for u, v in np.ndindex(KH, KW):
        i = (np.arange(OH) * sh + u * dh - pt)[:, None] + np.zeros((1, OW), int)
        j = (np.arange(OW) * sw + v * dw - pl)[None, :] + np.zeros((OH, 1), int)
        inside = (i >= 0) & (i < shape[2]) & (j >= 0) & (j < shape[3])
        yield u, v, np.clip(i, 0, None), np.clip(j, 0, None), inside


def _gathered(x: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Pixels by place, which a faulty kernel may take from anywhere in the image."""
    return x[:, :, i % x.shape[2], j % x.shape[3]]


def im2col(fault: str, x: np.ndarray, columns: np.ndarray, *sizes: int) -> None:
    N, C = x.shape[:2]
    KH, KW, OH, OW = *sizes[:2], *sizes[-2:]
    rows = columns.reshape(N, C, KH * KW, OH, OW)
    for u, v, i, j, inside in _taps(fault, x.shape, *sizes):
        row = u * KW + v
        if fault == "row by the kernel's height":
            row = (u * KH + v) % (KH * KW)
        if fault == "columns of the kernel first":
            row = v * KH + u
        pixels = _gathered(x, i, j)
        if fault == "padding not written":
            rows[:, :, row][:, :, inside] = pixels[:, :, inside]
        else:
            rows[:, :, row] = np.where(inside, pixels, 0)


def col2im(fault: str, columns: np.ndarray, x: np.ndarray, *sizes: int) -> None:
    N, C, H, W = x.shape
    KH, KW, OH, OW = *sizes[:2], *sizes[-2:]
    rows = columns.reshape(N, C, KH * KW, OH, OW)
    if fault != "memory not cleared":
        x[...] = 0
    for u, v, i, j, inside in _taps(fault, x.shape, *sizes):
        values = np.where(inside, rows[:, :, u * KW + v], 0)
        if fault == "= for +=":
            x[:, :, i[inside] % H, j[inside] % W] = values[:, :, inside]
        else:
            np.add.at(x, (slice(None), slice(None), i % H, j % W), values)


def max_pool_indices(
    fault: str, x: np.ndarray, y: np.ndarray, indices: np.ndarray, *sizes: int
) -> None:
    W = x.shape[3]
    y[...], indices[...] = (0 if fault == "padding is zero" else -np.inf), -1
    for _, _, i, j, inside in _taps(fault, x.shape, *sizes, *y.shape[2:]):
        value = _gathered(x, i, j)
        better = (value > y) | (value != value) | (indices < 0)
        if fault == "padding is zero":
            better = (value > y) | (value != value)
        if fault == "ties to the last":
            better |= value == y
        if fault == "NaN loses":
            better &= (value == value) | (indices < 0)
        better &= inside
        place = i * W + j
        if fault == "index of a transposed image":
            place = j * x.shape[2] + i
        y[...] = np.where(better, value, y)
        indices[...] = np.where(better, place, indices)


def max_pool_backward(fault: str, dy: np.ndarray, indices: np.ndarray, dx: np.ndarray) -> bool:
    dx[...] = 0
    for plane in range(len(dy)):
        here = indices[plane] >= (-1 if fault == "-1 is the last pixel" else 0)
        places, values = indices[plane][here], dy[plane][here]
        if fault == "= for +=":
            dx[plane, places] = values
        else:
            np.add.at(dx[plane], places, values)
    if fault == "last plane left out" and len(dx):
        dx[-1] = 0
    return True


def avg_pool(fault: str, x: np.ndarray, y: np.ndarray, *options: int) -> None:
    KH, KW, sh, sw, pt, pb, pl, pr, include, divisor = options
    OH, OW = y.shape[2:]
    sizes = (KH, KW, sh, sw, pt, pl, 1, 1, OH, OW)
    total, count = np.zeros(y.shape, x.dtype), np.zeros((OH, OW))
    for u, v, i, j, inside in _taps(fault, x.shape, *sizes):
        total += np.where(inside, _gathered(x, i, j), 0)
        down = np.arange(OH)[:, None] * sh + u < pt + x.shape[2] + pb
        right = np.arange(OW)[None, :] * sw + v < pl + x.shape[3] + pr
        count += (down & right) if include or fault == "padding always counts" else inside
    if fault == "a window over the edge counts in full" and include:
        count[...] = KH * KW
    if divisor and fault != "divisor forgotten":
        count[...] = divisor
    y[...] = total / count


def max_pool(fault: str, x: np.ndarray, y: np.ndarray, *sizes: int) -> None:
    max_pool_indices(fault, x, y, np.empty(y.shape, np.int64), *sizes)


MODULES: dict[str, dict[str, Callable[..., Any]]] = {
    "_im2col": {"im2col": im2col, "col2im": col2im},
    "_pool": {
        "max_pool": max_pool,
        "max_pool_indices": max_pool_indices,
        "max_pool_backward": max_pool_backward,
        "avg_pool": avg_pool,
    },
}
KERNELS = [name for kernels in MODULES.values() for name in kernels]


def install(patch: Patch, name: str, fault: str) -> None:
    """Put these kernels in the place of the compiled ones, the one of this name with a fault."""

    def kernels(module: str) -> Any:
        return SimpleNamespace(
            **{
                own: partial(kernel, fault if own == name else "")
                for own, kernel in MODULES[module].items()
            }
        )

    patch.setattr(compiled, "kernels", kernels)
    patch.setattr(compiled, "cython_missing", lambda: None)


# Methods with faults


def replace(patch: Patch, method: Any) -> None:
    patch.setitem(dispatch.METHODS, method.name, method)


class _Wrong(Portable):
    """The portable method, to be spoilt."""


class DroppedGroup(_Wrong):
    def forward(self, g: Any, x: Any, w: Any) -> Any:
        y = super().forward(g, x, w)
        if g.groups > 1:
            y[:, -g.F // g.groups :] = 0
        return y


class GroupsOfInputMixed(_Wrong):
    """The gradient by input of every group goes to the channels of the first."""

    def backward_input(self, g: Any, dy: Any, w: Any) -> Any:
        dx = super().backward_input(g, dy, w)
        channels = g.C // g.groups
        for group in range(1, g.groups):
            here = slice(group * channels, (group + 1) * channels)
            dx[:, :channels] += dx[:, here]
            dx[:, here] = 0
        return dx


class FlippedKernel(_Wrong):
    def forward(self, g: Any, x: Any, w: Any) -> Any:
        return super().forward(g, x, w[:, :, ::-1, ::-1])


class OrderAssumed(_Wrong):
    """Takes the image as it lies in memory, as a raw pointer would."""

    def forward(self, g: Any, x: Any, w: Any) -> Any:
        return super().forward(g, x.ravel(order="K").reshape(x.shape), w)


class SinglePrecision(_Wrong):
    """Sums of float64 kept in float32."""

    def forward(self, g: Any, x: Any, w: Any) -> Any:
        y = super().forward(g, x.astype(np.float32), w.astype(np.float32))
        return y.astype(x.dtype)


class ArgumentChanged(_Wrong):
    """Works in the memory of the image it was given."""

    def forward(self, g: Any, x: Any, w: Any) -> Any:
        y = super().forward(g, x, w)
        x *= 2
        return y


class ReturnsView(_Wrong):
    def subsample2d(self, g: Any, x: Any) -> Any:
        return x[:, :, :: g.stride[0], :: g.stride[1]]


class OutputUnwritten(_Wrong):
    """Leaves the last output pixel as the memory was."""

    def forward(self, g: Any, x: Any, w: Any) -> Any:
        result = np.empty(g.y_shape, x.dtype)
        y = super().forward(g, x, w)
        result.reshape(-1)[:-1] = y.reshape(-1)[:-1]
        return result


class BiasForgotten(_Wrong):
    def conv2d(self, g: Any, x: Any, w: Any, b: Any) -> Any:
        return super().conv2d(g, x, w, None)


class NeedsIgnored(_Wrong):
    def conv2d_backward(self, g: Any, dy: Any, x: Any, w: Any, needs: str) -> Any:
        return super().conv2d_backward(g, dy, x, w, "xwb")


class FirstImageOnly(_Wrong):
    """The gradient by weights of the first image of the batch."""

    def backward_weights(self, g: Any, dy: Any, x: Any) -> Any:
        dy = dy.copy()
        dy[1:] = 0
        return super().backward_weights(g, dy, x)


class RunningVarianceBiased(_Wrong):
    def batch_norm(self, g: Any, x: Any, mean: Any, var: Any, *rest: Any) -> Any:
        result = super().batch_norm(g, x, mean, var, *rest)
        training, momentum = rest[2:4]
        count = x.shape[0] * x.shape[2]
        if training and var is not None and count:
            var[...] -= momentum * x.var((0, 2)) / (count - 1)
        return result


class EpsOutsideTheRoot(_Wrong):
    def batch_norm(self, g: Any, x: Any, mean: Any, var: Any, *rest: Any) -> Any:
        _, _, training, _, eps = rest
        y, mean, rstd = super().batch_norm(g, x, mean, var, *rest)
        return y, mean, 1 / (np.sqrt(1 / rstd**2 - eps) + eps) if training else rstd


class MaximumNotSubtracted(_Wrong):
    def softmax(self, g: Any, x: Any, axis: int) -> Any:
        e = np.exp(10 * x) ** 0.1
        return e / e.sum(axis=axis, keepdims=True)


class GradientAtZero(_Wrong):
    def relu_backward(self, g: Any, dy: Any, x: Any) -> Any:
        return np.where(x < 0, 0, dy)


class DivisionForgotten(_Wrong):
    def dropout(self, g: Any, x: Any, mask: Any, p: float) -> Any:
        return np.where(mask, x, 0.0)


class _WrongWinograd(Portable):
    """The portable method under Winograd's name, whose bound it is then held to."""

    name = "winograd"

    def supports(self, call: Any) -> str | None:
        g = call.geometry
        same = (g.KH, g.KW, g.stride, g.dilation) == (3, 3, (1, 1), (1, 1))
        return None if same else "it is for 3x3 windows at stride 1, undilated"


class LastTileShort(_WrongWinograd):
    """Tiles of four rows whose last row is not written where the image ends in the fourth."""

    def forward(self, g: Any, x: Any, w: Any) -> Any:
        y = super().forward(g, x, w)
        if g.OH % 4 == 0:
            y[:, :, 3::4] = 0
        return y


class TileShifted(_WrongWinograd):
    """Where images are wider than a tile, those after the first begin one pixel too early."""

    def forward(self, g: Any, x: Any, w: Any) -> Any:
        y = super().forward(g, x, w)
        y[..., 4:] = y[..., 3:-1].copy()
        return y


class HalfPrecision(_WrongWinograd):
    """Weights transformed in half precision."""

    def forward(self, g: Any, x: Any, w: Any) -> Any:
        with np.errstate(all="ignore"):
            return super().forward(g, x, w.astype(np.float16).astype(w.dtype))


class LastTapDropped(_WrongWinograd):
    def backward_weights(self, g: Any, dy: Any, x: Any) -> Any:
        dw = super().backward_weights(g, dy, x)
        dw[..., -1, -1] = 0
        return dw


class EdgeOfGradientDropped(_WrongWinograd):
    """The gradient of the pixels that only the last tiles reach."""

    def backward_input(self, g: Any, dy: Any, w: Any) -> Any:
        dx = super().backward_input(g, dy, w)
        dx[..., -1] = 0
        return dx


class SinglePrecisionTiles(_WrongWinograd):
    def forward(self, g: Any, x: Any, w: Any) -> Any:
        y = super().forward(g, x.astype(np.float32), w.astype(np.float32))
        return y.astype(x.dtype)


def _last_block_dropped(patch: Patch) -> None:
    install(patch, "", "")
    blocks = im2col_method._blocks

    def short(g: Any, dtype: Any) -> Iterator[Any]:
        every = list(blocks(g, dtype))
        yield from every[:-1] if len(every) > 1 else every

    patch.setattr(im2col_method, "_blocks", short)


def _layout_fortran(name: str, value: Any) -> Any:
    return value.copy(order="F") if isinstance(value, np.ndarray) else value


class Mutant(NamedTuple):
    """A fault: how it gets in, the operation and method it spoils, and how it is found."""

    name: str
    inject: Callable[[Patch], None]
    op: str
    method: str
    caught: str = "elements are wrong"
    layout: checks.Layout | None = None


def _kernel(name: str, op: str, *faults: str, method: str = "cython") -> Iterator[Mutant]:
    for fault in faults:
        yield Mutant(
            f"{name} in {op}: {fault}",
            lambda patch, fault=fault: install(patch, name, fault),
            op,
            method,
        )


def _method(made: type[Portable], op: str, caught: str = "elements are wrong") -> Mutant:
    name = f"{made.__name__} in {op}"
    return Mutant(name, lambda patch: replace(patch, made()), op, made.name, caught)


_WINDOW = (
    "stride ignored",
    "strides swapped",
    "dilation ignored",
    "one row of padding too few",
    "padding of the rows for the columns",
    "height for width",
)

MUTANTS = [
    *_kernel(
        "im2col",
        "im2col",
        *_WINDOW,
        "row by the kernel's height",
        "columns of the kernel first",
        "padding not written",
    ),
    *_kernel("im2col", "conv2d", *_WINDOW, "row by the kernel's height", method="im2col"),
    *_kernel("im2col", "conv1d", "stride ignored", "padding not written", method="im2col"),
    *_kernel("col2im", "col2im", *_WINDOW, "= for +=", "memory not cleared"),
    *_kernel("col2im", "conv2d_backward", "stride ignored", "= for +=", method="im2col"),
    *_kernel("col2im", "conv_transpose2d", "= for +=", "memory not cleared", method="im2col"),
    *_kernel(
        "max_pool_indices",
        "max_pool2d",
        *_WINDOW,
        "ties to the last",
        "NaN loses",
        "padding is zero",
        "index of a transposed image",
    ),
    *_kernel("max_pool", "max_pool2d", "strides swapped", "padding is zero", "NaN loses"),
    *_kernel("max_pool_indices", "max_pool1d", "ties to the last", "NaN loses"),
    *_kernel(
        "max_pool_backward",
        "max_pool2d_backward",
        "= for +=",
        "-1 is the last pixel",
        "last plane left out",
    ),
    *_kernel(
        "avg_pool",
        "avg_pool2d",
        "stride ignored",
        "height for width",
        "padding always counts",
        "a window over the edge counts in full",
        "divisor forgotten",
    ),
    _method(DroppedGroup, "conv2d"),
    _method(GroupsOfInputMixed, "conv2d_backward"),
    _method(FlippedKernel, "conv2d"),
    _method(SinglePrecision, "conv2d"),
    _method(ArgumentChanged, "conv2d", "x was changed"),
    _method(ReturnsView, "subsample2d", "not in C order|shares memory with x"),
    _method(OutputUnwritten, "conv2d"),
    _method(BiasForgotten, "conv2d"),
    _method(LastTileShort, "conv2d"),
    _method(TileShifted, "conv2d"),
    _method(HalfPrecision, "conv2d"),
    _method(SinglePrecisionTiles, "conv2d"),
    _method(LastTapDropped, "conv2d_backward"),
    _method(EdgeOfGradientDropped, "conv2d_backward"),
    _method(EdgeOfGradientDropped, "conv_transpose2d"),
    _method(NeedsIgnored, "conv2d_backward", "expected None"),
    _method(FirstImageOnly, "conv2d_backward"),
    _method(RunningVarianceBiased, "batch_norm"),
    _method(EpsOutsideTheRoot, "batch_norm"),
    _method(MaximumNotSubtracted, "softmax"),
    _method(GradientAtZero, "relu_backward"),
    _method(DivisionForgotten, "dropout"),
    Mutant(
        "C order assumed",
        lambda patch: replace(patch, OrderAssumed()),
        "conv2d",
        "portable",
        layout=_layout_fortran,
    ),
    Mutant("last block dropped", _last_block_dropped, "conv2d", "im2col"),
    Mutant(
        "another method ran",
        lambda patch: patch.setitem(dispatch.METHODS, "im2col", dispatch.METHODS["portable"]),
        "conv2d",
        "im2col",
        "asked for im2col",
    ),
]


def _check(mutant: Mutant) -> None:
    """The check that test_methods.py and test_layouts.py make of every method."""
    for dtype in FLOATS:
        checks.check_all(CASES[mutant.op], mutant.method, dtype, mutant.layout)


def test_there_are_enough() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 8


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_fault_is_caught(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.inject(monkeypatch)
    with pytest.raises(AssertionError, match=f"cases failed:\n(.*\n)*.*({mutant.caught})"):
        _check(mutant)


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_without_a_fault_passes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, name, "")
    spoilt = {(m.op, m.method) for m in MUTANTS if m.name.startswith(f"{name} in ")}
    assert spoilt
    for op, method in sorted(spoilt):
        for dtype in FLOATS:
            checks.check_all(CASES[op], method, dtype)


@pytest.mark.parametrize("op", sorted({mutant.op for mutant in MUTANTS}))
def test_method_without_a_fault_passes(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The spoilt methods' parent, and the same through another object than the table's own."""
    replace(monkeypatch, _Wrong())
    for dtype in FLOATS:
        checks.check_all(CASES[op], "portable", dtype)
        checks.check_all(CASES[op], "portable", dtype, _layout_fortran)


@pytest.mark.parametrize("op", ["conv2d", "conv2d_backward", "conv_transpose2d"])
def test_direct_sums_pass_as_winograd(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent of those that are spoilt under this name."""
    replace(monkeypatch, _WrongWinograd())
    for dtype in FLOATS:
        checks.check_all(CASES[op], "winograd", dtype)


def test_numeric_gradients_notice_a_wrong_sign(rng: np.random.Generator) -> None:
    x, dy = rng.normal(size=(1, 1, 3, 3)), rng.normal(size=(1, 1, 2, 2))
    w = rng.normal(size=(1, 1, 2, 2))
    want = checks.numeric_gradient(lambda a: float(np.sum(dy * cnnfast.conv2d(a, w))), x, 1e-5)
    dx, _, _ = cnnfast.conv2d_backward(dy, x, w)
    assert np.abs(dx - want).max() < 1e-8 < np.abs(-dx - want).max()


@pytest.mark.parametrize(
    ("got", "want"),
    [
        (np.nan, 1.0),
        (1.0, np.nan),
        (np.inf, 1.0),
        (np.inf, -np.inf),
        (1.0 + 1e-6, 1.0),
        ([1.0, 2.0], [1.0]),
    ],
)
def test_comparison_lets_nothing_pass(got: Any, want: Any) -> None:
    with pytest.raises(AssertionError):
        checks.assert_close(np.asarray(got), np.asarray(want), 4.0, np.float64, "it")
