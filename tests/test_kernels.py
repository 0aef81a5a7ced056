"""The compiled kernels, called directly, against their definitions by index.

Outputs are poisoned and lie between guards, so an element that is not written, or one that is
written outside, shows. Inputs are read-only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

from cnnfast import compiled

if compiled.cython_missing() is not None:
    pytest.skip(str(compiled.cython_missing()), allow_module_level=True)

DTYPES = [np.float32, np.float64]
GUARD = 64
POISON = -7.5e30


class Window(NamedTuple):
    """N, C, H, W; kernel, stride, padding before and after, dilation of both axes."""

    x: tuple[int, int, int, int]
    k: tuple[int, int]
    s: tuple[int, int] = (1, 1)
    before: tuple[int, int] = (0, 0)
    after: tuple[int, int] = (0, 0)
    d: tuple[int, int] = (1, 1)

    @property
    def out(self) -> tuple[int, int]:
        oh, ow = (
            (n + b + a - d * (k - 1) - 1) // s + 1
            for n, k, s, b, a, d in zip(
                self.x[2:], self.k, self.s, self.before, self.after, self.d, strict=True
            )
        )
        return oh, ow

    @property
    def arguments(self) -> tuple[int, ...]:
        return (*self.k, *self.s, *self.before, *self.d)

    def taps(self, oh: int, ow: int) -> Iterator[tuple[int, int, int, int]]:
        """(kh, kw, h, w) of every tap of a window that is inside the image, in row-major order."""
        for kh, kw in itertools.product(range(self.k[0]), range(self.k[1])):
            h = oh * self.s[0] - self.before[0] + kh * self.d[0]
            w = ow * self.s[1] - self.before[1] + kw * self.d[1]
            if 0 <= h < self.x[2] and 0 <= w < self.x[3]:
                yield kh, kw, h, w


WINDOWS = {
    "one pixel": Window((1, 1, 1, 1), (1, 1)),
    "one pixel, padded": Window((2, 1, 1, 1), (3, 2), before=(1, 1), after=(1, 0)),
    "2x2 by 2": Window((2, 3, 6, 10), (2, 2), (2, 2)),
    "2x2 by 2, large": Window((1, 1, 66, 64), (2, 2), (2, 2)),
    "2x2 by 2, sizes that do not divide": Window((1, 2, 7, 21), (2, 2), (2, 2)),
    "2x2 by 2, padded": Window((1, 2, 5, 9), (2, 2), (2, 2), (1, 1), (1, 1)),
    "3x3 by 2": Window((2, 2, 9, 35), (3, 3), (2, 2), (1, 1), (1, 1)),
    "3x3 by 1": Window((1, 2, 7, 19), (3, 3), before=(1, 1), after=(1, 1)),
    "wide kernel": Window((1, 2, 6, 23), (2, 5), (1, 2), (0, 2), (1, 1)),
    "tall kernel": Window((1, 1, 13, 8), (6, 2), (3, 1), (2, 1), (3, 0)),
    "whole image": Window((2, 2, 5, 7), (5, 7)),
    "stride over kernel": Window((1, 2, 11, 17), (2, 3), (4, 5), (1, 0), (0, 2)),
    "dilated": Window((2, 1, 9, 30), (3, 2), (1, 2), (2, 1), (2, 3), (2, 3)),
    "dilated over strides": Window((1, 1, 12, 14), (2, 4), (3, 3), (0, 3), (4, 3), (5, 2)),
    "dilation that jumps over the image": Window(
        (1, 1, 2, 3), (2, 2), (1, 1), (4, 5), (4, 5), (6, 8)
    ),
    "one row": Window((2, 3, 1, 40), (1, 4), (1, 3), (0, 2), (0, 1)),
    "one column": Window((1, 2, 17, 1), (3, 1), (2, 1), (1, 0), (1, 0)),
    "padding only on one side": Window((1, 1, 4, 5), (3, 3), (1, 1), (2, 0), (0, 2)),
    "no image": Window((0, 2, 5, 6), (2, 3)),
}

every_window = pytest.mark.parametrize("g", WINDOWS.values(), ids=WINDOWS.keys())
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)


class Guarded:
    """Outputs full of poison, each between guards."""

    def __init__(self) -> None:
        self.whole: list[np.ndarray] = []

    def __call__(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        poison = -77 if np.dtype(dtype).kind == "i" else POISON
        size = math.prod(shape)
        whole = np.full(size + 2 * GUARD, poison, dtype)
        self.whole.append(whole)
        return whole[GUARD : GUARD + size].reshape(shape)

    def check(self) -> None:
        for whole in self.whole:
            poison = -77 if whole.dtype.kind == "i" else whole.dtype.type(POISON)
            assert (whole[:GUARD] == poison).all(), "written before the start"
            assert (whole[-GUARD:] == poison).all(), "written after the end"


@pytest.fixture
def output() -> Iterator[Guarded]:
    guarded = Guarded()
    yield guarded
    guarded.check()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(2024)


def numbers(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Small multiples of 1/8: sums of them are exact, and there are ties."""
    x = (rng.integers(-40, 41, shape) / 8).astype(dtype)
    x.flags.writeable = False
    return x


def exactly(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(actual, expected, strict=True)


@every_window
@every_dtype
def test_im2col(g: Window, dtype: Any, rng: np.random.Generator, output: Guarded) -> None:
    x = numbers(rng, g.x, dtype)
    N, C, KH, KW = *g.x[:2], *g.k
    OH, OW = g.out
    expected = np.zeros((N, C, KH, KW, OH, OW), dtype)
    for oh, ow in itertools.product(range(OH), range(OW)):
        for kh, kw, h, w in g.taps(oh, ow):
            expected[:, :, kh, kw, oh, ow] = x[:, :, h, w]
    cols = output((N, C * KH * KW, OH * OW), dtype)
    compiled.kernels("_im2col").im2col(x, cols, *g.arguments, OH, OW)
    exactly(cols, expected.reshape(cols.shape))


@every_window
@every_dtype
def test_col2im(g: Window, dtype: Any, rng: np.random.Generator, output: Guarded) -> None:
    N, C, KH, KW = *g.x[:2], *g.k
    OH, OW = g.out
    cols = numbers(rng, (N, C * KH * KW, OH * OW), dtype)
    expected = np.zeros(g.x, dtype)
    view = cols.reshape(N, C, KH, KW, OH, OW)
    for oh, ow in itertools.product(range(OH), range(OW)):
        for kh, kw, h, w in g.taps(oh, ow):
            expected[:, :, h, w] += view[:, :, kh, kw, oh, ow]
    x = output(g.x, dtype)
    compiled.kernels("_im2col").col2im(cols, x, *g.arguments, OH, OW)
    exactly(x, expected)


def max_pool_by_definition(x: np.ndarray, g: Window) -> tuple[np.ndarray, np.ndarray]:
    y = np.full((*g.x[:2], *g.out), -np.inf, x.dtype)
    indices = np.full(y.shape, -1, np.int64)
    for n, c, oh, ow in np.ndindex(*y.shape):
        for _, _, h, w in g.taps(oh, ow):
            v, m = x[n, c, h, w], y[n, c, oh, ow]
            if indices[n, c, oh, ow] == -1 or v > m or np.isnan(v):
                y[n, c, oh, ow] = v
                indices[n, c, oh, ow] = h * g.x[3] + w
    return y, indices


def plain(x: np.ndarray) -> np.ndarray:
    return x


def ties(x: np.ndarray) -> np.ndarray:
    return np.sign(x)


def with_nan(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 1, np.nan, x).astype(x.dtype)


def with_infinities(x: np.ndarray) -> np.ndarray:
    return np.where(x < 1, -np.inf, np.where(x > 4, np.inf, x)).astype(x.dtype)


def nothing_but_minus_infinity(x: np.ndarray) -> np.ndarray:
    return np.full_like(x, -np.inf)


@every_window
@every_dtype
@pytest.mark.parametrize(
    "content", [plain, ties, with_nan, with_infinities, nothing_but_minus_infinity]
)
def test_max_pool(
    g: Window,
    dtype: Any,
    content: Callable[[np.ndarray], np.ndarray],
    rng: np.random.Generator,
    output: Guarded,
) -> None:
    x = content(numbers(rng, g.x, dtype))
    x.flags.writeable = False
    expected, expected_indices = max_pool_by_definition(x, g)
    kernels = compiled.kernels("_pool")

    y = output(expected.shape, dtype)
    kernels.max_pool(x, y, *g.arguments)
    exactly(y, expected)

    y, indices = output(expected.shape, dtype), output(expected.shape, np.int64)
    kernels.max_pool_indices(x, y, indices, *g.arguments)
    exactly(y, expected)
    exactly(indices, expected_indices)


@every_dtype
@pytest.mark.parametrize("k", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("s", [1, 2, 3, 5])
@pytest.mark.parametrize("d", [1, 2])
def test_max_pool_of_every_usual_window(
    k: int, s: int, d: int, dtype: Any, rng: np.random.Generator, output: Guarded
) -> None:
    p = (d * (k - 1) + 1) // 2
    g = Window((1, 2, 16, 37), (k, k), (s, s), (p, p), (p, p), (d, d))
    x = ties(numbers(rng, g.x, dtype))
    expected, expected_indices = max_pool_by_definition(x, g)
    y, indices = output(expected.shape, dtype), output(expected.shape, np.int64)
    compiled.kernels("_pool").max_pool_indices(x, y, indices, *g.arguments)
    exactly(y, expected)
    exactly(indices, expected_indices)
    y = output(expected.shape, dtype)
    compiled.kernels("_pool").max_pool(x, y, *g.arguments)
    exactly(y, expected)


def test_max_pool_of_a_window_that_spans_more_than_32_bits(output: Guarded) -> None:
    """No such image fits here, but a dilation that jumps over a small one gives the offsets."""
    g = Window((1, 1, 2, 40), (2, 2), before=(2**31, 0), after=(0, 0), d=(2**31, 1))
    x = np.arange(80, dtype=np.float32).reshape(g.x)
    y, indices = output((1, 1, 2, 39), np.float32), output((1, 1, 2, 39), np.int64)
    compiled.kernels("_pool").max_pool_indices(x, y, indices, *g.arguments)
    exactly(y, x[:, :, :, 1:])
    exactly(indices, x[:, :, :, 1:].astype(np.int64))


@every_dtype
def test_max_pool_backward_adds_where_the_indices_point(dtype: Any, output: Guarded) -> None:
    dy = np.array([[1, 2, 4, 8], [16, 32, 64, 128]], dtype)
    indices = np.array([[2, 0, 2, -1], [1, -1, -1, 1]])
    for array in (dy, indices):
        array.flags.writeable = False
    dx = output((2, 3), dtype)
    assert compiled.kernels("_pool").max_pool_backward(dy, indices, dx) is True
    exactly(dx, np.array([[2, 0, 5], [0, 144, 0]], dtype))


@every_dtype
@pytest.mark.parametrize("bad", [3, -2, 2**62, -(2**63), 2**63 - 1])
def test_max_pool_backward_reports_an_index_outside(bad: int, dtype: Any, output: Guarded) -> None:
    dx = output((1, 3), dtype)
    dy, indices = np.array([[1, 2]], dtype), np.array([[bad, 2]])
    assert compiled.kernels("_pool").max_pool_backward(dy, indices, dx) is False
    exactly(dx, np.array([[0, 0, 2]], dtype))


def test_max_pool_backward_of_nothing(output: Guarded) -> None:
    backward = compiled.kernels("_pool").max_pool_backward
    dx = output((2, 3), np.float32)
    assert backward(np.ones((2, 0), np.float32), np.ones((2, 0), np.int64), dx) is True
    exactly(dx, np.zeros((2, 3), np.float32))
    dx = output((0, 3), np.float32)
    assert backward(np.ones((0, 4), np.float32), np.ones((0, 4), np.int64), dx) is True


AVERAGES = {name: g._replace(d=(1, 1)) for name, g in WINDOWS.items() if "dilat" not in name} | {
    # PyTorch's ceil_mode: windows that reach over the padding at the end, counted only up to it
    "over the end": Window((1, 2, 8, 20), (3, 4), (3, 3), (1, 1), (3, 4)),
    "over the end, 2x2 by 2": Window((1, 2, 7, 9), (2, 2), (2, 2), (0, 0), (1, 1)),
}
AFTER = {"over the end": (1, 1), "over the end, 2x2 by 2": (0, 0)}

every_average = pytest.mark.parametrize(("name", "g"), AVERAGES.items(), ids=AVERAGES.keys())
every_divisor = pytest.mark.parametrize(
    ("padded", "divisor"), [(True, 0), (False, 0), (True, 5), (False, 5)]
)


def average_weights(
    g: Window, after: tuple[int, int], padded: bool, divisor: int
) -> dict[tuple[int, int], tuple[list[tuple[int, int]], int]]:
    """For every output the pixels of its window, and what their sum is divided by."""
    weights = {}
    for oh, ow in itertools.product(*map(range, g.out)):
        pixels = [(h, w) for _, _, h, w in g.taps(oh, ow)]
        counted = len(pixels)
        if padded:
            counted = math.prod(
                min(o * s - b + k, n + a) - (o * s - b)
                for o, s, b, k, n, a in zip(
                    (oh, ow), g.s, g.before, g.k, g.x[2:], after, strict=True
                )
            )
        weights[oh, ow] = pixels, divisor or counted
    return weights


@every_average
@every_divisor
@every_dtype
def test_avg_pool(
    name: str,
    g: Window,
    padded: bool,
    divisor: int,
    dtype: Any,
    rng: np.random.Generator,
    output: Guarded,
) -> None:
    x = numbers(rng, g.x, dtype)
    after = AFTER.get(name, g.after)
    expected = np.zeros((*g.x[:2], *g.out), dtype)
    for (oh, ow), (pixels, count) in average_weights(g, after, padded, divisor).items():
        for h, w in pixels:
            expected[:, :, oh, ow] += x[:, :, h, w]
        if pixels:
            expected[:, :, oh, ow] /= dtype(count)
    y = output(expected.shape, dtype)
    compiled.kernels("_pool").avg_pool(
        x, y, *g.k, *g.s, g.before[0], after[0], g.before[1], after[1], padded, divisor
    )
    exactly(y, expected)


@every_average
@every_divisor
@every_dtype
def test_avg_pool_backward(
    name: str,
    g: Window,
    padded: bool,
    divisor: int,
    dtype: Any,
    rng: np.random.Generator,
    output: Guarded,
) -> None:
    dy = numbers(rng, (*g.x[:2], *g.out), dtype)
    after = AFTER.get(name, g.after)
    expected = np.zeros(g.x)
    for (oh, ow), (pixels, count) in average_weights(g, after, padded, divisor).items():
        for h, w in pixels:
            expected[:, :, h, w] += dy[:, :, oh, ow].astype(np.float64) / count
    dx = output(g.x, dtype)
    compiled.kernels("_pool").avg_pool_backward(
        dy, dx, *g.k, *g.s, g.before[0], after[0], g.before[1], after[1], padded, divisor
    )
    bound = 4 * math.prod(g.k) * np.finfo(dtype).eps * 5
    assert np.abs(dx - expected).max(initial=0) <= bound


@every_dtype
def test_avg_pool_of_nan_and_infinity(dtype: Any, output: Guarded) -> None:
    x = np.array([[[[1, np.nan, 3, np.inf, 5, -np.inf, np.inf, 8]]]], dtype)
    y = output((1, 1, 1, 4), dtype)
    compiled.kernels("_pool").avg_pool(x, y, 1, 2, 1, 2, 0, 0, 0, 0, True, 0)
    exactly(y, np.array([[[[np.nan, np.inf, -np.inf, np.inf]]]], dtype))


@every_dtype
@pytest.mark.parametrize("f", [(1, 1), (2, 2), (1, 3), (3, 2), (5, 1)])
@pytest.mark.parametrize(
    "shape", [(2, 3, 4, 5), (1, 1, 1, 1), (1, 2, 1, 9), (1, 1, 6, 1), (0, 2, 3, 3)]
)
@pytest.mark.parametrize("extra", [(0, 0), (1, 0), (2, 3)])
def test_dilate_and_subsample(
    f: tuple[int, int],
    shape: tuple[int, int, int, int],
    extra: tuple[int, int],
    dtype: Any,
    rng: np.random.Generator,
    output: Guarded,
) -> None:
    N, C, H, W = shape
    x = numbers(rng, shape, dtype)
    large = (N, C, (H - 1) * f[0] + 1 + extra[0], (W - 1) * f[1] + 1 + extra[1])
    expected = np.zeros(large, dtype)
    expected[:, :, : (H - 1) * f[0] + 1 : f[0], : (W - 1) * f[1] + 1 : f[1]] = x
    y = output(large, dtype)
    compiled.kernels("_resample").dilate(x, y, *f)
    exactly(y, expected)

    source = numbers(rng, large, dtype)
    OH, OW = -(-large[2] // f[0]), -(-large[3] // f[1])
    y = output((N, C, OH, OW), dtype)
    compiled.kernels("_resample").subsample(source, y, *f)
    exactly(y, np.ascontiguousarray(source[:, :, :: f[0], :: f[1]]))


SAMPLES = [(4, 3, 1), (1, 2, 7), (3, 5, 8), (2, 1, 129), (1, 1, 1), (5, 4, 2), (3, 9, 1)]
every_sample = pytest.mark.parametrize("shape", SAMPLES, ids=str)


@every_sample
@every_dtype
def test_moments(
    shape: tuple[int, int, int], dtype: Any, rng: np.random.Generator, output: Guarded
) -> None:
    x = numbers(rng, shape, dtype)
    mean, var = output(shape[1:2], np.float64), output(shape[1:2], np.float64)
    compiled.kernels("_norm").moments(x, mean, var)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(mean, wide.mean((0, 2)), rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(var, wide.var((0, 2)), rtol=1e-14, atol=1e-15)


def test_moments_keep_their_digits_far_from_zero(rng: np.random.Generator, output: Guarded) -> None:
    x = 1e6 + rng.standard_normal((8, 2, 400))
    mean, var = output((2,), np.float64), output((2,), np.float64)
    compiled.kernels("_norm").moments(x, mean, var)
    np.testing.assert_allclose(var, (x - 1e6).var((0, 2)), rtol=1e-8)


def test_moments_of_nothing_are_nan(output: Guarded) -> None:
    mean, var = output((2,), np.float64), output((2,), np.float64)
    compiled.kernels("_norm").moments(np.empty((0, 2, 3)), mean, var)
    assert np.isnan(mean).all()
    assert np.isnan(var).all()


@every_dtype
def test_moments_of_nan_and_infinity(dtype: Any, output: Guarded) -> None:
    x = np.ones((2, 3, 9), dtype)
    x[1, 0, 8] = np.nan
    x[0, 1, 3] = np.inf
    mean, var = output((3,), np.float64), output((3,), np.float64)
    compiled.kernels("_norm").moments(x, mean, var)
    exactly(mean, np.array([np.nan, np.inf, 1]))
    exactly(var, np.array([np.nan, np.nan, 0]))


@every_sample
@every_dtype
def test_scale_shift(
    shape: tuple[int, int, int], dtype: Any, rng: np.random.Generator, output: Guarded
) -> None:
    x = numbers(rng, shape, dtype)
    centre, scale, shift = (numbers(rng, shape[1:2], dtype) for _ in range(3))
    y = output(shape, dtype)
    compiled.kernels("_norm").scale_shift(x, centre, scale, shift, y)
    exactly(y, (x - centre[:, None]) * scale[:, None] + shift[:, None])


@every_sample
@every_dtype
def test_batch_norm_backward(
    shape: tuple[int, int, int], dtype: Any, rng: np.random.Generator, output: Guarded
) -> None:
    x, dy = numbers(rng, shape, dtype), numbers(rng, shape, dtype)
    weight = numbers(rng, shape[1:2], dtype)
    wide, g = x.astype(np.float64), dy.astype(np.float64)
    mean = wide.mean((0, 2))
    rstd = 1 / np.sqrt(wide.var((0, 2)) + 1e-5)
    xhat = (wide - mean[:, None]) * rstd[:, None]
    db, dw = g.sum((0, 2)), (g * xhat).sum((0, 2))
    dx = (weight * rstd)[:, None] * (
        g - g.mean((0, 2))[:, None] - xhat * (g * xhat).mean((0, 2))[:, None]
    )
    outputs = output(shape, dtype), output(shape[1:2], np.float64), output(shape[1:2], np.float64)
    compiled.kernels("_norm").batch_norm_backward(dy, x, mean, rstd, weight, *outputs)
    # With one value per channel dy - avg(dy) cancels to nothing, and rstd magnifies what is left.
    tolerance = 64 * np.finfo(dtype).eps * max(1, rstd.max())
    np.testing.assert_allclose(outputs[0], dx, rtol=tolerance, atol=5 * tolerance)
    np.testing.assert_allclose(outputs[1], dw, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(outputs[2], db, rtol=1e-12, atol=1e-12)


def test_batch_norm_of_nothing(output: Guarded) -> None:
    nothing = np.empty((0, 2, 3), np.float32)
    per_channel = np.ones(2), np.ones(2), np.ones(2, np.float32)
    dw, db = output((2,), np.float64), output((2,), np.float64)
    kernels = compiled.kernels("_norm")
    kernels.batch_norm_backward(nothing, nothing, *per_channel, nothing, dw, db)
    exactly(dw, np.zeros(2))
    exactly(db, np.zeros(2))
    kernels.scale_shift(nothing, *(per_channel[2],) * 3, nothing)
