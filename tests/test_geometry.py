"""Identities that hold for every geometry, over geometries that nobody listed."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from math import prod
from typing import Any

import checks
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import cnnfast
from cnnfast import geometry, naive

EPS = float(np.finfo(float).eps)


def each(ndim: int, element: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    """One drawn value per axis."""
    return st.tuples(*(element,) * ndim)


def method_of(op: str) -> st.SearchStrategy[str]:
    # Those that are for some convolutions only are drawn as "auto", where it chooses them.
    some = ("winograd", "depthwise", "direct")
    names = [m for m in cnnfast.methods(op) if m not in some and not checks.unavailable(m)]
    return st.sampled_from([*names, "auto"])


@dataclass(frozen=True)
class Sliding:
    """A drawn geometry: sizes of one or two axes, and a seed for the values."""

    N: int
    groups: int
    inner: int
    outer: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    seed: int

    @property
    def ndim(self) -> int:
        return len(self.size)

    @property
    def columns(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}

    @property
    def options(self) -> dict[str, Any]:
        return {**self.columns, "groups": self.groups}

    @property
    def room(self) -> tuple[int, ...]:
        """How far the first window can be slid."""
        axes = zip(self.size, self.kernel, self.padding, self.dilation, strict=True)
        return tuple(n + sum(p) - d * (k - 1) - 1 for n, k, p, d in axes)

    @property
    def out(self) -> tuple[int, ...]:
        return tuple(room // s + 1 for room, s in zip(self.room, self.stride, strict=True))

    @property
    def rest(self) -> tuple[int, ...]:
        """What is left behind the last window: the output padding of the way back."""
        return tuple(room % s for room, s in zip(self.room, self.stride, strict=True))

    @property
    def products(self) -> int:
        return self.N * prod(self.out) * self.groups * self.outer * self.inner * prod(self.kernel)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """x, w, b and dy."""
        rng = np.random.default_rng(self.seed)
        F = self.groups * self.outer
        return (
            rng.normal(size=(self.N, self.groups * self.inner, *self.size)),
            rng.normal(size=(F, self.inner, *self.kernel)),
            rng.normal(size=F),
            rng.normal(size=(self.N, F, *self.out)),
        )

    def call(self, before: str, after: str = "") -> Any:
        """The operation for so many axes: ``conv1d_backward`` of ``conv`` and ``_backward``."""
        return getattr(cnnfast, f"{before}{self.ndim}d{after}")


@st.composite
def slidings(draw: st.DrawFn, *ndims: int) -> Sliding:
    ndim = draw(st.sampled_from(ndims or (1, 2)))
    drawn = Sliding(
        N=draw(st.integers(0, 3)),
        groups=draw(st.integers(1, 3)),
        inner=draw(st.integers(1, 3)),
        outer=draw(st.integers(1, 3)),
        size=draw(each(ndim, st.integers(1, 9))),
        kernel=draw(each(ndim, st.integers(1, 4))),
        stride=draw(each(ndim, st.integers(1, 4))),
        padding=draw(each(ndim, each(2, st.integers(0, 3)))),
        dilation=draw(each(ndim, st.integers(1, 3))),
        seed=draw(st.integers(0, 2**32 - 1)),
    )
    assume(min(drawn.out) >= 1)
    return drawn


def assert_near(a: Any, b: Any, terms: int, magnitude: float) -> None:
    """Fail unless two ways of summing so many terms of such a size agree."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    error = np.max(np.abs(a - b), initial=0)
    assert error <= 2 * EPS * (terms + 8) * magnitude, error


def dot(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sum(a * b))


def magnitude(s: Sliding) -> float:
    """More than any sum of magnitudes over a whole convolution of normal deviates."""
    return 6.0**3 * (s.products + 1)


@given(slidings(), st.data())
def test_gradients_are_adjoint(s: Sliding, data: st.DataObject) -> None:
    """``<conv(x, w), dy> == <x, dx> == <w, dw>``, and the bias meets the sum of dy."""
    x, w, b, dy = s.arrays()
    method = data.draw(method_of("conv2d"))
    y = s.call("conv")(x, w, **s.options, method=method)
    dx, dw, db = s.call("conv", "_backward")(dy, x, w, **s.options, method=method)
    assert_near(dot(y, dy), dot(x, dx), s.products, magnitude(s))
    assert_near(dot(y, dy), dot(w, dw), s.products, magnitude(s))
    assert_near(db, dy.sum((0, *range(2, dy.ndim))), dy.size, 6.0 * (dy.size + 1))
    biased = s.call("conv")(x, w, b, **s.options, method=method)
    assert_near(biased, y + b.reshape(-1, *(1,) * s.ndim), s.products, magnitude(s))


@given(slidings(), st.data())
def test_convolution_is_linear(s: Sliding, data: st.DataObject) -> None:
    x, w, _, _ = s.arrays()
    method = data.draw(method_of("conv2d"))
    other = np.random.default_rng(s.seed + 1).normal(size=x.shape)

    def conv(a: np.ndarray) -> np.ndarray:
        return s.call("conv")(a, w, **s.options, method=method)

    assert_near(conv(2 * x - other), 2 * conv(x) - conv(other), s.products, 3 * magnitude(s))


@given(slidings(), st.data())
def test_convolution_is_what_naive_says(s: Sliding, data: st.DataObject) -> None:
    x, w, b, dy = s.arrays()
    method = data.draw(method_of("conv2d"))
    name = f"conv{s.ndim}d"
    want = getattr(naive, name)(x, w, b, **s.options)
    scale = (w[0].size + 5) * getattr(naive, name)(*map(np.abs, (x, w, b)), **s.options)
    got = getattr(cnnfast, name)(x, w, b, **s.options, method=method)
    checks.assert_close(got, want, scale, np.float64, f"{name}, method {method}")
    back = f"{name}_backward"
    wants = getattr(naive, back)(dy, x, w, **s.options)
    sizes = getattr(naive, back)(*map(np.abs, (dy, x, w)), **s.options)
    gots = getattr(cnnfast, back)(dy, x, w, **s.options, method=method)
    for got, want, size in zip(gots, wants, sizes, strict=True):
        checks.assert_close(got, want, (s.products + 4) * size, np.float64, f"{back}, {method}")


@given(slidings(), st.data())
def test_transposed_convolution_is_the_way_back(s: Sliding, data: st.DataObject) -> None:
    """With what was left over as output padding, it is the gradient by input."""
    x, w, _, dy = s.arrays()
    method = data.draw(method_of("conv_transpose2d"))
    back = s.call("conv_transpose")(dy, w, output_padding=s.rest, **s.options, method=method)
    dx, _, _ = s.call("conv", "_backward")(dy, x, w, **s.options, needs="x")
    assert_near(back, dx, s.products, magnitude(s))
    # And its own gradients are those of the bilinear form <x, back(dy, w)>.
    options = {**s.options, "output_padding": s.rest}
    grads = s.call("conv_transpose", "_backward")(x, dy, w, **options, method=method)
    assert_near(grads[0], s.call("conv")(x, w, **s.options), s.products, magnitude(s))
    assert_near(dot(grads[1], w), dot(back, x), s.products, magnitude(s))
    assert_near(grads[2], x.sum((0, *range(2, x.ndim))), x.size, 6.0 * (x.size + 1))


@given(slidings(), st.data())
def test_groups_are_convolutions_side_by_side(s: Sliding, data: st.DataObject) -> None:
    x, w, b, _ = s.arrays()
    method = data.draw(method_of("conv2d"))
    y = s.call("conv")(x, w, b, **s.options, method=method)
    parts = [
        s.call("conv")(a, v, c, **s.columns, method=method)
        for a, v, c in zip(
            np.split(x, s.groups, 1), np.split(w, s.groups), np.split(b, s.groups), strict=True
        )
    ]
    assert_near(y, np.concatenate(parts, 1), s.products, magnitude(s))


@given(slidings(), st.data())
def test_options_are_what_they_abbreviate(s: Sliding, data: st.DataObject) -> None:
    """Padding is zeros in x, dilation zeros in w, stride a choice of pixels."""
    x, w, _, _ = s.arrays()
    method = data.draw(method_of("conv2d"))
    y = s.call("conv")(x, w, **s.options, method=method)
    padded = np.pad(x, [(0, 0), (0, 0), *s.padding])
    stretched = s.call("dilate")(w, s.dilation)
    plain = s.call("conv")(padded, stretched, groups=s.groups, method=method)
    assert_near(y, s.call("subsample")(plain, s.stride), s.products, magnitude(s))


@given(slidings(1), st.data())
def test_signals_are_images_of_height_one(s: Sliding, data: st.DataObject) -> None:
    x, w, b, _ = s.arrays()
    method = data.draw(method_of("conv2d"))
    y = cnnfast.conv1d(x, w, b, **s.options, method=method)
    images = cnnfast.conv2d(
        x[:, :, None],
        w[:, :, None],
        b,
        stride=(1, *s.stride),
        padding=((0, 0), *s.padding),
        dilation=(1, *s.dilation),
        groups=s.groups,
        method=method,
    )
    assert_near(y, images[:, :, 0], s.products, magnitude(s))


@given(slidings(2), st.data())
def test_columns_make_a_convolution_a_product(s: Sliding, data: st.DataObject) -> None:
    x, w, _, _ = s.arrays()
    method = data.draw(method_of("im2col"))
    columns = cnnfast.im2col(x, s.kernel, **s.columns, method=method)
    grouped = columns.reshape(s.N, s.groups, s.inner * prod(s.kernel), prod(s.out))
    product = w.reshape(s.groups, s.outer, -1) @ grouped
    y = cnnfast.conv2d(x, w, **s.options)
    assert_near(product.reshape(y.shape), y, s.products, magnitude(s))


@given(slidings(2), st.data())
def test_columns_there_and_back_count_the_windows(s: Sliding, data: st.DataObject) -> None:
    x, _, _, _ = s.arrays()
    method = data.draw(method_of("im2col"))
    columns = cnnfast.im2col(x, s.kernel, **s.columns, method=method)
    back = cnnfast.col2im(columns, s.size, s.kernel, **s.columns, method=method)
    counts = np.zeros(s.size)
    for i, j, u, v in itertools.product(*map(range, (*s.out, *s.kernel))):
        row = i * s.stride[0] + u * s.dilation[0] - s.padding[0][0]
        column = j * s.stride[1] + v * s.dilation[1] - s.padding[1][0]
        if 0 <= row < s.size[0] and 0 <= column < s.size[1]:
            counts[row, column] += 1
    assert_near(back, x * counts, prod(s.kernel), 6.0 * prod(s.kernel))
    # The adjoint: <im2col(x), c> == <x, col2im(c)>.
    c = np.random.default_rng(s.seed + 1).normal(size=columns.shape)
    fold = cnnfast.col2im(c, s.size, s.kernel, **s.columns, method=method)
    assert_near(dot(columns, c), dot(x, fold), c.size, 36.0 * (c.size + 1))


@given(
    st.integers(1, 9),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 9),
)
def test_same_keeps_the_size(H: int, KH: int, KW: int, dilation: int, W: int) -> None:
    x, w = np.ones((1, 1, H, W)), np.ones((1, 1, KH, KW))
    y = cnnfast.conv2d(x, w, padding="same", dilation=dilation)
    assert y.shape == x.shape
    rows, columns = dilation * (KH - 1), dilation * (KW - 1)
    pairs = (rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2)
    assert np.array_equal(y, cnnfast.conv2d(x, w, padding=pairs, dilation=dilation))


# Pooling


@st.composite
def poolings(draw: st.DrawFn, dilated: bool) -> tuple[Sliding, dict[str, Any]]:
    """A geometry whose padding is legal: below the reach in pairs, half of kernel_size at most."""
    ndim = draw(st.sampled_from((1, 2)))
    kernel = draw(each(ndim, st.integers(1, 4)))
    dilation = draw(each(ndim, st.integers(1, 3))) if dilated else (1,) * ndim
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    if draw(st.booleans()):
        pads = tuple((p, p) for p in (draw(st.integers(0, k // 2)) for k in kernel))
        given_as: Any = tuple(before for before, _ in pads)
    else:
        pads = tuple(draw(each(2, st.integers(0, r - 1))) for r in reach)
        given_as = pads
    s = Sliding(
        N=draw(st.integers(0, 2)),
        groups=1,
        inner=draw(st.integers(1, 3)),
        outer=1,
        size=draw(each(ndim, st.integers(1, 9))),
        kernel=kernel,
        stride=draw(each(ndim, st.integers(1, 4))),
        padding=pads,
        dilation=dilation,
        seed=draw(st.integers(0, 2**32 - 1)),
    )
    assume(min(s.room) >= 0)
    options = {"kernel_size": kernel, "stride": s.stride, "padding": given_as}
    if dilated:
        options["dilation"] = dilation
    return s, {**options, "ceil_mode": draw(st.booleans())}


def windows_of(s: Sliding, shape: tuple[int, ...], at: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The places inside the input that a window covers, in row-major order."""
    axes = []
    for i, n, k, d, stride, (before, _) in zip(
        at, shape, s.kernel, s.dilation, s.stride, s.padding, strict=True
    ):
        places = [i * stride + u * d - before for u in range(k)]
        axes.append([p for p in places if 0 <= p < n])
    return list(itertools.product(*axes))


@given(poolings(dilated=True), st.data())
def test_maxima_by_definition(drawn: tuple[Sliding, dict[str, Any]], data: st.DataObject) -> None:
    """Values, places (the first of equal ones), and the way back to these places."""
    s, options = drawn
    rng = np.random.default_rng(s.seed)
    x = rng.integers(-2, 3, (s.N, s.inner, *s.size)).astype(float)
    method = data.draw(method_of("max_pool2d"))
    y, indices = s.call("max_pool")(x, **options, return_indices=True, method=method)
    assert np.array_equal(y, s.call("max_pool")(x, **options, method=method))
    dy = rng.integers(-3, 4, y.shape).astype(float)
    dx = np.zeros_like(x)
    for at in np.ndindex(y.shape):
        image = x[at[:2]]
        places = windows_of(s, s.size, at[2:])
        best = max(places, key=image.__getitem__, default=None)  # of equal ones the first
        if best is None:
            assert y[at] == -np.inf and indices[at] == -1
        else:
            assert y[at] == image[best]
            assert indices[at] == np.ravel_multi_index(best, s.size)
            dx[at[:2]][best] += dy[at]
    back = s.call("max_pool", "_backward")(dy, indices, x.shape, method=method)
    assert np.array_equal(back, dx)


@given(poolings(dilated=False), st.booleans(), st.data())
def test_means_by_definition(
    drawn: tuple[Sliding, dict[str, Any]], include: bool, data: st.DataObject
) -> None:
    """Values, and that the way back is the adjoint."""
    s, options = drawn
    options = {**options, "count_include_pad": include}
    rng = np.random.default_rng(s.seed)
    x = rng.normal(size=(s.N, s.inner, *s.size))
    method = data.draw(method_of("avg_pool2d"))
    y = s.call("avg_pool")(x, **options, method=method)
    for at in np.ndindex(y.shape):
        places = windows_of(s, s.size, at[2:])
        covered = prod(
            min(i * stride + k, before + n + after) - i * stride
            for i, n, k, stride, (before, after) in zip(
                at[2:], s.size, s.kernel, s.stride, s.padding, strict=True
            )
        )
        total = sum(x[at[:2]][place] for place in places)
        want = total / (covered if include else len(places))
        assert abs(y[at] - want) <= 50 * EPS * 6
    dy = rng.normal(size=y.shape)
    dx = s.call("avg_pool", "_backward")(dy, x.shape, **options, method=method)
    assert_near(dot(y, dy), dot(x, dx), 16 * y.size, 36.0 * 16 * (y.size + 1))


@given(poolings(dilated=True))
def test_ceil_mode_only_adds_windows(drawn: tuple[Sliding, dict[str, Any]]) -> None:
    s, options = drawn
    x = np.random.default_rng(s.seed).normal(size=(s.N, s.inner, *s.size))
    floor = s.call("max_pool")(x, **{**options, "ceil_mode": False})
    ceil = s.call("max_pool")(x, **{**options, "ceil_mode": True})
    assert floor.shape[2:] == s.out
    first = (..., *(slice(n) for n in floor.shape[2:]))
    assert np.array_equal(ceil[first], floor)
    for n, m, room, stride in zip(ceil.shape[2:], s.out, s.room, s.stride, strict=True):
        assert m <= n <= m + bool(room % stride)


# Resampling


@given(each(4, st.integers(1, 6)), each(2, st.integers(1, 5)), st.integers(0, 2**32 - 1), st.data())
def test_resampling_there_and_back(
    shape: tuple[int, ...], factor: tuple[int, ...], seed: int, data: st.DataObject
) -> None:
    x = np.random.default_rng(seed).normal(size=shape)
    method = data.draw(method_of("dilate2d"))
    large = cnnfast.dilate2d(x, factor, method=method)
    assert np.count_nonzero(large) == x.size
    assert np.array_equal(cnnfast.subsample2d(large, factor, method=method), x)
    assert np.array_equal(cnnfast.dilate2d_backward(large, factor, shape, method=method), x)
    few = cnnfast.subsample2d(x, factor, method=method)
    assert np.array_equal(few, x[:, :, :: factor[0], :: factor[1]])
    back = cnnfast.subsample2d_backward(few, factor, shape, method=method)
    kept = np.zeros(shape, bool)
    kept[:, :, :: factor[0], :: factor[1]] = True
    assert np.array_equal(back, np.where(kept, x, 0))


# The frozen value itself


@given(slidings(2))
def test_geometry_is_computed_once(s: Sliding) -> None:
    x, w, _, _ = s.arrays()
    arguments = (x.shape, w.shape, s.stride, s.padding, s.dilation, s.groups)
    g = geometry.convolution("conv2d", 2, *arguments)
    assert g is geometry.convolution("conv2d", 2, *arguments)
    assert s.out == (g.OH, g.OW)
    assert g.y_shape == (s.N, s.groups * s.outer, *s.out)
    assert g.flops == 2 * s.products
    with pytest.raises(AttributeError):
        g.OH = 1  # type: ignore[misc]
