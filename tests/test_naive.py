"""The reference loops against values worked out by hand or published, definitions by indices,
finite differences and adjoints: never against another implementation of the package, nor against
a value that the function under test has computed."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cnnfast import naive

NAN, INF = math.nan, math.inf


def randn(seed: int, *shape: int) -> np.ndarray:
    """Normal numbers that nobody can write to."""
    x = np.random.default_rng(seed).standard_normal(shape)
    x.flags.writeable = False
    return x


def assert_close(got: Any, want: Any, bound: float = 1e-11) -> None:
    """Same shape, and an error within the bound, relative above 1; NaN is never close."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape
    error = np.abs(got - want)
    failed = ~(error <= bound * np.maximum(1, np.abs(want)))
    assert not failed.any(), f"got {got[failed]}, want {want[failed]}"


def assert_gradient(
    f: Callable[[np.ndarray], np.ndarray],
    x: np.ndarray,
    dy: np.ndarray,
    dx: np.ndarray,
    h: float = 1e-5,
    bound: float = 1e-8,
) -> None:
    """Compare dx with central differences of sum(f(x) * dy) by every element of x."""
    want = np.zeros(x.shape)
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i] += h
        down[i] -= h
        want[i] = np.sum((f(up) - f(down)) * dy) / (2 * h)
    assert_close(dx, want, bound)


def positions(size: int, kernel: int, stride: int, pad: tuple[int, int], dilation: int) -> list:
    """For every output along one axis, the input positions below its taps (None outside)."""
    padded = [None] * pad[0] + list(range(size)) + [None] * pad[1]
    starts = range(0, len(padded), stride)
    reach = dilation * (kernel - 1)
    return [padded[s : s + reach + 1 : dilation] for s in starts if s + reach < len(padded)]


# Convolution

# x, w, stride, padding, dilation, groups, and the padding as pairs
CONVOLUTIONS = {
    "plain, rectangular": ((2, 2, 4, 5), (3, 2, 3, 2), 1, 0, 1, 1, ((0, 0), (0, 0))),
    "stride, pad, groups": ((1, 4, 5, 4), (4, 2, 2, 3), (2, 1), (1, 2), 1, 2, ((1, 1), (2, 2))),
    "depthwise, dilated, asymmetric": (
        (2, 3, 4, 4),
        (6, 1, 2, 2),
        (1, 2),
        ((0, 1), (2, 1)),
        (2, 1),
        3,
        ((0, 1), (2, 1)),
    ),
    "one pixel": ((2, 1, 1, 1), (2, 1, 1, 1), 1, 0, 1, 1, ((0, 0), (0, 0))),
    "one pixel, all padding": ((1, 1, 1, 1), (1, 1, 3, 2), 1, (1, 1), 1, 1, ((1, 1), (1, 1))),
    "stride over kernel": (
        (1, 2, 5, 7),
        (2, 2, 2, 1),
        (3, 4),
        ((1, 0), (0, 2)),
        1,
        1,
        ((1, 0), (0, 2)),
    ),
    "same, even kernel": ((1, 2, 3, 4), (1, 2, 2, 4), 1, "same", (2, 1), 1, ((1, 1), (1, 2))),
    "valid, wide": ((1, 1, 2, 8), (2, 1, 1, 3), 1, "valid", (1, 3), 1, ((0, 0), (0, 0))),
    "batch 0": ((0, 2, 3, 3), (1, 2, 2, 2), 1, 0, 1, 1, ((0, 0), (0, 0))),
    "1d": ((2, 2, 7), (3, 2, 3), 2, 1, 1, 1, ((1, 1),)),
    "1d, groups, dilated, asymmetric": ((1, 4, 6), (2, 2, 2), 1, ((3, 0),), 3, 2, ((3, 0),)),
    "1d, same, even kernel": ((1, 1, 5), (2, 1, 4), (1,), "same", (1,), 1, ((1, 2),)),
    "1d, stride over kernel": ((2, 1, 9), (1, 1, 2), (4,), (0,), 1, 1, ((0, 0),)),
    "1d, batch 0": ((0, 1, 4), (1, 1, 2), 1, 0, 1, 1, ((0, 0),)),
}
convolutions = pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS)


def per_axis(value: Any, ndim: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple) else (value,) * ndim


def conv_by_index(x, w, b, stride, pads, dilation, groups):
    """The definition, one product at a time."""
    ndim = x.ndim - 2
    axes = [
        positions(*axis)
        for axis in zip(
            x.shape[2:],
            w.shape[2:],
            per_axis(stride, ndim),
            pads,
            per_axis(dilation, ndim),
            strict=True,
        )
    ]
    y = np.zeros((x.shape[0], w.shape[0], *map(len, axes)))
    for n, f, *out in np.ndindex(y.shape):
        y[n, f, *out] = b[f]
        first = f * groups // w.shape[0] * w.shape[1]
        for c, *tap in np.ndindex(w.shape[1:]):
            at = [axis[i][u] for axis, i, u in zip(axes, out, tap, strict=True)]
            if None not in at:
                y[n, f, *out] += w[f, c, *tap] * x[n, first + c, *at]
    return y


def conv(x_shape: tuple[int, ...], suffix: str = "", prefix: str = "conv") -> Callable[..., Any]:
    return getattr(naive, f"{prefix}{len(x_shape) - 2}d{suffix}")


@convolutions
def test_convolution_is_its_definition(case):
    x_shape, w_shape, stride, padding, dilation, groups, pads = case
    x, w, b = randn(1, *x_shape), randn(2, *w_shape), randn(3, w_shape[0])
    want = conv_by_index(x, w, b, stride, pads, dilation, groups)
    assert_close(conv(x_shape)(x, w, b, stride, padding, dilation, groups), want)
    want -= b.reshape(-1, *[1] * (x.ndim - 2))
    assert_close(conv(x_shape)(x, w, None, stride, padding, dilation, groups), want)


@convolutions
def test_convolution_gradients(case):
    x_shape, w_shape, *options, _ = case
    forward, backward = conv(x_shape), conv(x_shape, "_backward")
    x, w, b = randn(1, *x_shape), randn(2, *w_shape), randn(3, w_shape[0])
    dy = randn(4, *forward(x, w, b, *options).shape)
    dx, dw, db = backward(dy, x, w, *options)
    # The output is linear in each argument, so a difference over 2 is exact but for rounding.
    assert_gradient(lambda x: forward(x, w, b, *options), x, dy, dx, h=1, bound=1e-12)
    assert_gradient(lambda w: forward(x, w, b, *options), w, dy, dw, h=1, bound=1e-12)
    assert_gradient(lambda b: forward(x, w, b, *options), b, dy, db, h=1, bound=1e-12)


def test_convolution_worked_by_hand():
    x = [[[1, 2, 3, 4, 5]]]
    assert naive.conv1d(x, [[[1, 10]]], dilation=2).tolist() == [[[31, 42, 53]]]
    assert naive.conv1d(x, [[[1, 10]]], stride=3).tolist() == [[[21, 54]]]
    assert naive.conv1d([[[1, 2]]], [[[1, 1]]], padding=((2, 0),)).tolist() == [[[0, 1, 3]]]
    assert naive.conv1d([[[1, 2], [3, 4]]], [[[1, 1]], [[1, -1]]], groups=2).tolist() == [
        [[3], [-1]]
    ]
    same = naive.conv1d([[[1, 2, 3]]], [[[1, 10, 100, 1000]]], padding="same")
    assert same.tolist() == [[[3210, 321, 32]]]
    image = [[[[1, 2, 3], [4, 5, 6]]]]
    filters = [[[[1, 0], [0, 10]]], [[[0, 1], [0, 0]]]]
    assert naive.conv2d(image, filters, b=[0, 0.5]).tolist() == [[[[51, 62]], [[2.5, 3.5]]]]
    assert naive.conv2d(image, filters, stride=(1, 2), padding=((0, 1), (1, 0))).tolist() == [
        [[[40, 62], [0, 5]], [[1, 3], [4, 6]]]
    ]


def test_convolution_published_by_cs231n():
    x = np.linspace(-0.1, 0.5, num=96).reshape(2, 3, 4, 4)
    w = np.linspace(-0.2, 0.3, num=144).reshape(3, 3, 4, 4)
    b = np.linspace(-0.1, 0.2, num=3)
    want = [
        [
            [[-0.08759809, -0.10987781], [-0.18387192, -0.2109216]],
            [[0.21027089, 0.21661097], [0.22847626, 0.23004637]],
            [[0.50813986, 0.54309974], [0.64082444, 0.67101435]],
        ],
        [
            [[-0.98053589, -1.03143541], [-1.19128892, -1.24695841]],
            [[0.69108355, 0.66880383], [0.59480972, 0.56776003]],
            [[2.36270298, 2.36904306], [2.38090835, 2.38247847]],
        ],
    ]
    assert_close(naive.conv2d(x, w, b, stride=2, padding=1), want, bound=6e-9)


def test_convolution_published_by_ce40959():
    """Sums that the notebook prints; TensorFlow computed the same."""
    x = np.random.RandomState(1345).rand(2, 3, 10, 10)
    _, dw, _ = naive.conv2d_backward(np.ones((2, 7, 4, 4)), x, np.zeros((7, 3, 4, 4)), stride=2)
    assert_close(dw.sum(), 5340.576411697173)
    state = np.random.RandomState(1992)
    x, w = state.rand(5, 3, 6, 6), state.rand(2, 3, 2, 2)
    dx, _, _ = naive.conv2d_backward(np.ones((5, 2, 2, 2)), x, w, stride=3)
    assert_close(dx.sum(), 208.39287018595633)
    x, w = np.ones((2, 3, 23, 20)), np.ones((7, 3, 6, 6))
    assert naive.conv2d(x, w, stride=(3, 6), padding=(2, 3)).shape == (2, 7, 8, 4)


def test_convolution_published_by_cmu():
    """The handout's tensordot question: contracting channels and taps of arange(30), arange(24)."""
    x = np.arange(30.0).reshape(2, 3, 5).transpose(2, 1, 0)
    w = np.arange(24.0).reshape(3, 4, 2).transpose(1, 0, 2)
    y = naive.conv1d(x, w)
    assert y.shape == (5, 4, 1)
    assert y[0, 0, 0] == 820


def test_convolution_filters_of_eecs498():
    """Grey scale in one filter; edges of the blue channel, brightened, in the other."""
    x, w, b = randn(5, 1, 3, 4, 6), np.zeros((2, 3, 3, 3)), [0, 128]
    w[0, :, 1, 1] = [0.3, 0.6, 0.1]
    w[1, 2] = [[1, 2, 1], [0, 0, 0], [-1, -2, -1]]
    y = naive.conv2d(x, w, b, padding=1)
    assert_close(y[0, 0], 0.3 * x[0, 0] + 0.6 * x[0, 1] + 0.1 * x[0, 2])
    above, below = np.zeros((4, 8)), np.zeros((4, 8))
    above[1:, 1:-1], below[:-1, 1:-1] = x[0, 2, :-1], x[0, 2, 1:]
    difference = above - below
    edges = difference[:, :-2] + 2 * difference[:, 1:-1] + difference[:, 2:]
    assert_close(y[0, 1], edges + 128)


def test_needs_choose_the_gradients():
    x, w = randn(1, 1, 2, 3, 3), randn(2, 2, 2, 2, 2)
    dy = randn(3, 1, 2, 2, 2)
    every = naive.conv2d_backward(dy, x, w)
    for needs in ("", "x", "w", "b", "xb", "bwx"):
        for letter, grad, whole in zip(
            "xwb", naive.conv2d_backward(dy, x, w, needs=needs), every, strict=True
        ):
            if letter in needs:
                assert_close(grad, whole)
            else:
                assert grad is None
    with pytest.raises(ValueError, match="needs"):
        naive.conv2d_backward(dy, x, w, needs="xy")


# Transposed convolution

# x, w, stride, padding, output_padding, groups, dilation, and the padding as pairs
TRANSPOSED = {
    "plain, rectangular": ((2, 2, 2, 3), (2, 3, 3, 2), 1, 0, 0, 1, 1, ((0, 0), (0, 0))),
    "stride, output_padding": ((1, 2, 3, 2), (2, 1, 2, 3), (2, 3), 1, (1, 2), 1, 1, ((1, 1),) * 2),
    "groups, dilated, asymmetric": (
        (1, 4, 3, 3),
        (4, 2, 2, 3),
        (2, 1),
        ((0, 2), (1, 0)),
        (0, 1),
        2,
        (1, 2),
        ((0, 2), (1, 0)),
    ),
    "depthwise": ((2, 3, 2, 2), (3, 1, 2, 2), 2, 0, 0, 3, 1, ((0, 0), (0, 0))),
    "one pixel": ((1, 1, 1, 1), (1, 1, 1, 1), 1, 0, 0, 1, 1, ((0, 0), (0, 0))),
    "stride over kernel": ((1, 1, 2, 3), (1, 2, 1, 2), (3, 4), (0, 1), 0, 1, 1, ((0, 0), (1, 1))),
    "batch 0": ((0, 2, 2, 2), (2, 1, 2, 2), 1, 0, 0, 1, 1, ((0, 0), (0, 0))),
    "1d": ((2, 2, 4), (2, 3, 3), 2, 1, 1, 1, 1, ((1, 1),)),
    "1d, groups, dilated, asymmetric": ((1, 4, 3), (4, 1, 2), 2, ((0, 1),), 2, 2, 3, ((0, 1),)),
    "1d, batch 0": ((0, 1, 2), (1, 1, 2), 1, 0, 0, 1, 1, ((0, 0),)),
}
transposed = pytest.mark.parametrize("case", TRANSPOSED.values(), ids=TRANSPOSED)


def conv_transpose_by_index(x, w, b, stride, pads, output_padding, groups, dilation):
    """The definition: where every product lands, kept if that is inside the output."""
    ndim = x.ndim - 2
    strides, dilations = per_axis(stride, ndim), per_axis(dilation, ndim)
    extras = per_axis(output_padding, ndim)
    sizes = []
    for axis in range(ndim):
        last = (x.shape[2 + axis] - 1) * strides[axis] + (w.shape[2 + axis] - 1) * dilations[axis]
        sizes.append(last + 1 + extras[axis] - sum(pads[axis]))
    outputs = w.shape[1]
    y = np.zeros((x.shape[0], outputs * groups, *sizes))
    for n, c, *at in np.ndindex(x.shape):
        first = c * groups // x.shape[1] * outputs
        for f, *tap in np.ndindex(w.shape[1:]):
            place = [
                i * s + u * r - before
                for i, s, u, r, (before, _) in zip(at, strides, tap, dilations, pads, strict=True)
            ]
            if all(0 <= p < size for p, size in zip(place, sizes, strict=True)):
                y[n, first + f, *place] += x[n, c, *at] * w[c, f, *tap]
    return y + b.reshape(-1, *[1] * ndim)


@transposed
def test_transposed_convolution_is_its_definition(case):
    x_shape, w_shape, stride, padding, output_padding, groups, dilation, pads = case
    x, w, b = randn(1, *x_shape), randn(2, *w_shape), randn(3, w_shape[1] * groups)
    got = conv(x_shape, prefix="conv_transpose")(
        x, w, b, stride, padding, output_padding, groups, dilation
    )
    want = conv_transpose_by_index(x, w, b, stride, pads, output_padding, groups, dilation)
    assert_close(got, want)


@transposed
def test_transposed_convolution_gradients(case):
    x_shape, w_shape, *options, _ = case
    forward = conv(x_shape, prefix="conv_transpose")
    backward = conv(x_shape, "_backward", prefix="conv_transpose")
    x, w, b = randn(1, *x_shape), randn(2, *w_shape), randn(3, w_shape[1] * options[3])
    dy = randn(4, *forward(x, w, b, *options).shape)
    dx, dw, db = backward(dy, x, w, *options)
    assert_gradient(lambda x: forward(x, w, b, *options), x, dy, dx, h=1, bound=1e-12)
    assert_gradient(lambda w: forward(x, w, b, *options), w, dy, dw, h=1, bound=1e-12)
    assert_gradient(lambda b: forward(x, w, b, *options), b, dy, db, h=1, bound=1e-12)


@transposed
def test_transposed_convolution_is_the_adjoint_of_convolution(case):
    """<conv_transpose(x, w), z> == <x, conv(z, w)>, the latter by its definition."""
    x_shape, w_shape, stride, padding, output_padding, groups, dilation, pads = case
    x, w = randn(1, *x_shape), randn(2, *w_shape)
    y = conv(x_shape, prefix="conv_transpose")(
        x, w, None, stride, padding, output_padding, groups, dilation
    )
    z = randn(5, *y.shape)
    back = conv_by_index(z, w, np.zeros(w_shape[0]), stride, pads, dilation, groups)
    # Output padding may make room for further windows; x has no pixel for them.
    back = back[tuple(slice(size) for size in x_shape)]
    assert_close(np.sum(y * z), np.sum(x * back))


def test_transposed_convolution_worked_by_hand():
    x, w = [[[1, 2]]], [[[1, 10, 100]]]
    assert naive.conv_transpose1d(x, w).tolist() == [[[1, 12, 120, 200]]]
    assert naive.conv_transpose1d(x, w, stride=2).tolist() == [[[1, 10, 102, 20, 200]]]
    assert naive.conv_transpose1d(x, w, dilation=2).tolist() == [[[1, 2, 10, 20, 100, 200]]]
    assert naive.conv_transpose1d(x, w, padding=1).tolist() == [[[12, 120]]]
    assert naive.conv_transpose1d(x, w, padding=((1, 0),)).tolist() == [[[12, 120, 200]]]
    padded = naive.conv_transpose1d(x, w, [0.5], stride=2, padding=1, output_padding=1)
    assert padded.tolist() == [[[10.5, 102.5, 20.5, 200.5]]]
    beyond = naive.conv_transpose1d(x, [[[1]]], [7], stride=2, output_padding=1)
    assert beyond.tolist() == [[[8, 7, 9, 7]]]
    square = naive.conv_transpose2d([[[[1, 2], [3, 4]]]], [[[[1, 1]]]])
    assert square.tolist() == [[[[1, 3, 2], [3, 7, 4]]]]
    grouped = naive.conv_transpose1d([[[1], [2]]], [[[1, 10]], [[1, 100]]], groups=2)
    assert grouped.tolist() == [[[1, 10], [2, 200]]]
    summed = naive.conv_transpose1d([[[1], [2]]], [[[1, 10]], [[1, 100]]])
    assert summed.tolist() == [[[3, 210]]]


# Columns

# x, kernel_size, stride, padding, dilation, and the padding as pairs
COLUMNS = {
    "plain": ((2, 2, 3, 4), 2, 1, 0, 1, ((0, 0), (0, 0))),
    "asymmetric": ((1, 2, 4, 5), (2, 3), (2, 1), ((1, 0), (0, 3)), (1, 2), ((1, 0), (0, 3))),
    "wide": ((1, 1, 2, 9), (1, 4), (1, 2), (0, 1), (3, 2), ((0, 0), (1, 1))),
    "tall": ((2, 3, 7, 2), (3, 1), (2, 3), (2, 0), (2, 1), ((2, 2), (0, 0))),
    "stride over kernel": ((1, 1, 6, 5), (2, 1), (4, 3), 0, 1, ((0, 0), (0, 0))),
    "one pixel": ((1, 1, 1, 1), 1, 1, 0, 1, ((0, 0), (0, 0))),
    "batch 0": ((0, 2, 3, 3), 2, 1, 0, 1, ((0, 0), (0, 0))),
}
columns = pytest.mark.parametrize("case", COLUMNS.values(), ids=COLUMNS)


def column_entries(x_shape, kernel_size, stride, pads, dilation):
    """Every (c, row, column) of the images, None outside, by its place in the matrix."""
    _, C, H, W = x_shape
    KH, KW = per_axis(kernel_size, 2)
    (sh, sw), (rh, rw) = per_axis(stride, 2), per_axis(dilation, 2)
    rows, cols = positions(H, KH, sh, pads[0], rh), positions(W, KW, sw, pads[1], rw)
    return [
        [(c, row[u], col[v]) for row in rows for col in cols]
        for c in range(C)
        for u in range(KH)
        for v in range(KW)
    ]


@columns
def test_im2col_and_col2im_are_their_definitions(case):
    x_shape, kernel_size, stride, padding, dilation, pads = case
    entries = column_entries(x_shape, kernel_size, stride, pads, dilation)
    x, cols = randn(1, *x_shape), randn(2, x_shape[0], len(entries), len(entries[0]))
    want_cols, want_x = np.zeros(cols.shape), np.zeros(x_shape)
    for n, k, p in np.ndindex(cols.shape):
        if None not in entries[k][p]:
            want_cols[n, k, p] = x[n, *entries[k][p]]
            want_x[n, *entries[k][p]] += cols[n, k, p]
    options = kernel_size, stride, padding, dilation
    assert naive.im2col(x, *options).tolist() == want_cols.tolist()
    assert_close(naive.col2im(cols, x_shape[2:], *options), want_x)


@columns
def test_col2im_is_the_adjoint_of_im2col(case):
    x_shape, *options, _ = case
    x = randn(1, *x_shape)
    cols = naive.im2col(x, *options)
    z = randn(2, *cols.shape)
    assert_close(np.sum(naive.col2im(z, x_shape[2:], *options) * x), np.sum(z * cols))


def test_columns_worked_by_hand():
    x = [[[[1, 2, 3], [4, 5, 6]]]]
    assert naive.im2col(x, 2).tolist() == [[[1, 2], [2, 3], [4, 5], [5, 6]]]
    assert naive.im2col(x, (1, 2), dilation=(1, 2)).tolist() == [[[1, 4], [3, 6]]]
    cols = [[[1, 2], [3, 4], [5, 6], [7, 8]]]
    assert naive.col2im(cols, (2, 3), 2).tolist() == [[[[1, 5, 4], [5, 13, 8]]]]


def test_col2im_refuses_columns_that_do_not_fit():
    with pytest.raises(ValueError, match="cols"):
        naive.col2im(np.zeros((1, 4, 3)), (2, 3), 2)
    with pytest.raises(ValueError, match="cols"):
        naive.col2im(np.zeros((1, 5, 2)), (2, 3), 2)


# Pooling


def test_max_pool_published_by_cs231n():
    x = np.linspace(-0.3, 0.4, num=96).reshape(2, 3, 4, 4)
    want = [
        [
            [[-0.26315789, -0.24842105], [-0.20421053, -0.18947368]],
            [[-0.14526316, -0.13052632], [-0.08631579, -0.07157895]],
            [[-0.02736842, -0.01263158], [0.03157895, 0.04631579]],
        ],
        [
            [[0.09052632, 0.10526316], [0.14947368, 0.16421053]],
            [[0.20842105, 0.22315789], [0.26736842, 0.28210526]],
            [[0.32631579, 0.34105263], [0.38526316, 0.4]],
        ],
    ]
    assert_close(naive.max_pool2d(x, kernel_size=2), want, bound=6e-9)


def test_max_pool_published_by_ce40959():
    x = np.random.RandomState(1975).rand(2, 3, 23, 23)
    want = [
        [
            [[0.46800661, 0.6818562], [0.95191188, 0.58676102]],
            [[0.6288546, 0.99632119], [0.80094484, 0.96251272]],
            [[0.67012954, 0.80356619], [0.91517917, 0.83174796]],
        ],
        [
            [[0.80458243, 0.97712759], [0.91272943, 0.86171778]],
            [[0.8827965, 0.95316097], [0.95877647, 0.98136021]],
            [[0.96840121, 0.87088313], [0.70449495, 0.89625081]],
        ],
    ]
    assert_close(naive.max_pool2d(x, 2, stride=11), want, bound=6e-9)

    state = np.random.RandomState(19)
    x, dy = state.rand(2, 3, 10, 10), state.rand(2, 3, 7, 7)
    x = x[:, :, :8, :8]  # all that 7 x 7 windows see
    _, indices = naive.max_pool2d(x, 2, stride=1, return_indices=True)
    dx = naive.max_pool2d_backward(dy, indices, x.shape)
    assert_close(dx.sum() / 600, 0.2428232587752177)
    want = [[0, 0, 1.09075724], [1.29276074, 0, 1.15881724], [0, 0.61727634, 0]]
    assert_close(dx[1, 2, 2:5, 2:5], want, bound=6e-9)


# x of (1, 1, ...), the other arguments in their order, y, indices
MAX_POOLS = {
    "a tie goes to the first": ([3, 1, 3, 3], (3, 1), [3, 3], [0, 2]),
    "... in row-major order": ([[1, 7, 0], [7, 0, 7]], (2, 1), [[7, 7]], [[1, 1]]),
    "minus infinity is an element": ([-INF, -INF], (2,), [-INF], [0]),
    "a NaN wins": ([1, NAN, INF], (3,), [NAN], [1]),
    "of several the last NaN": ([NAN, NAN, 5], (3,), [NAN], [1]),
    "a NaN wins where it is seen": ([1, NAN, 3, 4], (2, 1), [NAN, NAN, 4], [1, 1, 3]),
    "padding never wins": ([-5, -6], (2, 1, 1), [-5, -5, -6], [0, 0, 1]),
    "padding in front only": ([1, 2, 3], (2, 1, ((1, 0),)), [1, 2, 3], [0, 1, 2]),
    "dilation": ([5, 9, 1, 2], (2, 1, 0, 2), [5, 9], [0, 1]),
    "stride over kernel": ([1, 9, 9, 2, 9], (1, 3), [1, 2], [0, 3]),
    "floored": ([1, 2, 3], (2,), [2], [1]),
    "ceil_mode": ([1, 2, 3], (2, None, 0, 1, True), [2, 3], [1, 2]),
    "ceil_mode, none starts in the padding": ([1, 2, 3], (2, 2, 1, 1, True), [1, 3], [0, 2]),
    "ceil_mode, none starts behind the end": ([1, 2, 3], (1, 3, 0, 1, True), [1], [0]),
    "a window without elements": ([5, 6], (2, 1, 1, 3), [-INF], [-1]),
    "one pixel": ([[4]], (1,), [[4]], [[0]]),
    "rectangular": (
        [[1, 2, 3, 4], [5, 6, 7, 8], [9, 0, 0, 0]],
        ((3, 1), (1, 2)),
        [[9, 7]],
        [[8, 6]],
    ),
    "asymmetric": ([[1, 2, 3], [4, 5, 6]], (2, 2, ((1, 0), (0, 1))), [[2, 3]], [[1, 2]]),
    "2d, no elements": ([[5, 6]], ((1, 2), 1, (0, 1), (1, 3)), [[-INF]], [[-1]]),
    "2d, ceil_mode": ([[1, 2, 3, 4, 5]], ((1, 2), 2, 0, (1, 2), True), [[3, 5]], [[2, 4]]),
}


@pytest.mark.parametrize("case", MAX_POOLS.values(), ids=MAX_POOLS)
def test_max_pool_worked_by_hand(case):
    x, options, want_y, want_indices = case
    x = np.array(x, float)[None, None]
    pool, backward = conv(x.shape, prefix="max_pool"), conv(x.shape, "_backward", "max_pool")
    y, indices = pool(x, *options, return_indices=True)
    np.testing.assert_array_equal(y, np.array(want_y, float)[None, None])
    assert indices.dtype == np.int64
    assert indices[0, 0].tolist() == want_indices
    np.testing.assert_array_equal(pool(x, *options), y)

    dy = randn(1, *y.shape)
    want = np.zeros(x.size)
    for index, d in zip(np.ravel(want_indices), dy.ravel(), strict=True):
        if index != -1:
            want[index] += d
    assert_close(backward(dy, indices, x.shape), want.reshape(x.shape))


POOLS = {
    "tiling": ((2, 2, 4, 6), (2, 3), None, 0, 1, False),
    "overlapping": ((1, 2, 4, 5), 3, 1, 1, 1, False),
    "asymmetric, ceil": ((1, 1, 5, 4), (3, 2), 2, ((2, 0), (1, 0)), 1, True),
    "stride over kernel, ceil": ((1, 1, 6, 7), (2, 1), (4, 3), 0, 1, True),
    "dilated": ((1, 1, 5, 6), (2, 3), (1, 2), (0, 2), (3, 2), False),
    "dilated, ceil": ((1, 1, 6, 7), 2, 3, 1, 2, True),
    "one pixel": ((1, 1, 1, 1), 1, None, 0, 1, False),
    "batch 0": ((0, 2, 4, 4), 2, None, 0, 1, False),
    "1d": ((2, 2, 7), 3, 2, 1, 1, False),
    "1d, ceil": ((1, 1, 8), (3,), (3,), ((0, 1),), 1, True),
    "1d, dilated": ((1, 1, 7), 2, 1, 1, 3, False),
    "1d, batch 0": ((0, 1, 4), 2, None, 0, 1, False),
}
pools = pytest.mark.parametrize("case", POOLS.values(), ids=POOLS)


@pools
def test_max_pool_is_its_definition_and_gradient(case):
    x_shape, *options = case
    pool, backward = conv(x_shape, prefix="max_pool"), conv(x_shape, "_backward", "max_pool")
    # Distinct values, so that no difference straddles a tie.
    x = np.random.default_rng(1).permutation(math.prod(x_shape)).reshape(x_shape).astype(float)
    y, indices = pool(x, *options, return_indices=True)
    dy = randn(2, *y.shape)
    assert_gradient(lambda x: pool(x, *options), x, dy, backward(dy, indices, x_shape), h=0.25)

    kernel_size, stride, padding, dilation, ceil_mode = options
    ndim = len(x_shape) - 2
    kernel, dilations = per_axis(kernel_size, ndim), per_axis(dilation, ndim)
    strides = kernel if stride is None else per_axis(stride, ndim)
    pads = [p if isinstance(p, tuple) else (p, p) for p in per_axis(padding, ndim)]
    for n, c, *out in np.ndindex(y.shape):
        seen = []
        for tap in np.ndindex(kernel):
            axes = zip(out, strides, tap, dilations, pads, strict=True)
            at = [i * s + u * r - before for i, s, u, r, (before, _) in axes]
            if all(0 <= p < size for p, size in zip(at, x_shape[2:], strict=True)):
                seen.append(x[n, c, *at])
        assert y[n, c, *out] == max(seen, default=-INF)
        assert not seen or x[n, c].flat[indices[n, c, *out]] == y[n, c, *out]
    if not ceil_mode:
        counts = map(positions, x_shape[2:], kernel, strides, pads, dilations)
        assert y.shape[2:] == tuple(map(len, counts))


@pytest.mark.parametrize("index", [-2, 4, 10**12])
def test_max_pool_backward_refuses_an_index_outside(index):
    with pytest.raises(ValueError, match="indices"):
        naive.max_pool1d_backward([[[1.0]]], [[[index]]], (1, 1, 4))
    with pytest.raises(ValueError, match="indices"):
        naive.max_pool2d_backward([[[[1.0]]]], [[[[index]]]], (1, 1, 2, 2))


# x of (1, 1, ...), the other arguments in their order, y
AVG_POOLS = {
    "plain": ([1, 3, 5, 9], (2,), [2, 7]),
    "padding counts": ([1, 2, 3], (2, 2, 1), [0.5, 2.5]),
    "padding does not count": ([1, 2, 3], (2, 2, 1, False, False), [1, 2.5]),
    "ceil_mode": ([1, 2, 3, 4, 5], (2, 2, 0, True), [1.5, 3.5, 5]),
    "ceil_mode, padding counts": ([1, 2, 3, 4], (3, 2, 1, True), [1, 3, 2]),
    "ceil_mode, padding does not": ([1, 2, 3, 4], (3, 2, 1, True, False), [1.5, 3, 4]),
    "ceil_mode, none starts in the padding": ([1, 2, 3], (2, 2, 1, True), [0.5, 2.5]),
    "asymmetric": ([2, 4, 6], (3, 1, ((2, 0),)), [2 / 3, 2, 4]),
    "stride over kernel": ([1, 9, 9, 2, 9], (1, 3), [1, 2]),
    "NaN and infinity": ([1, NAN, INF, 1], (2,), [NAN, INF]),
    "2d": ([[1, 2, 3], [5, 6, 7]], ((2, 1),), [[3, 4, 5]]),
    "2d, padding counts": ([[4, 8], [12, 16]], (2, 2, 1), [[1, 2], [3, 4]]),
    "2d, ceil_mode": ([[1, 2, 3], [4, 5, 6], [7, 8, 9]], (2, 2, 0, True), [[3, 4.5], [7.5, 9]]),
    "2d, divisor_override": ([[1, 2, 3, 4]], ((1, 2), None, 0, False, True, 4), [[0.75, 1.75]]),
    "2d, divisor_override first": (
        [[1, 2], [3, 4]],
        (2, 2, 1, False, False, 1),
        [[1, 2], [3, 4]],
    ),
}


@pytest.mark.parametrize("case", AVG_POOLS.values(), ids=AVG_POOLS)
def test_avg_pool_worked_by_hand(case):
    x, options, want = case
    x = np.array(x, float)[None, None]
    y = conv(x.shape, prefix="avg_pool")(x, *options)
    np.testing.assert_allclose(y, np.array(want, float)[None, None], rtol=1e-15)


@pytest.mark.parametrize("name", [name for name, case in POOLS.items() if case[4] == 1])
@pytest.mark.parametrize("count_include_pad", [True, False])
def test_avg_pool_gradient(name, count_include_pad):
    x_shape, kernel_size, stride, padding, _, ceil_mode = POOLS[name]
    pool, backward = conv(x_shape, prefix="avg_pool"), conv(x_shape, "_backward", "avg_pool")
    x = randn(1, *x_shape)
    for divisor_override in [[], [3]] if x.ndim == 4 else [[]]:
        options = [kernel_size, stride, padding, ceil_mode, count_include_pad, *divisor_override]
        dy = randn(2, *pool(x, *options).shape)
        dx = backward(dy, x_shape, *options)
        assert_gradient(lambda x, o=options: pool(x, *o), x, dy, dx, h=1, bound=1e-12)


# Resampling


def test_resampling_worked_by_hand():
    x = np.arange(1.0, 7.0).reshape(1, 1, 2, 3)
    assert naive.dilate2d(x, 2)[0, 0].tolist() == [
        [1, 0, 2, 0, 3],
        [0, 0, 0, 0, 0],
        [4, 0, 5, 0, 6],
    ]
    assert naive.dilate2d(x, (1, 3))[0, 0].tolist() == [
        [1, 0, 0, 2, 0, 0, 3],
        [4, 0, 0, 5, 0, 0, 6],
    ]
    assert naive.subsample2d(x, 2)[0, 0].tolist() == [[1, 3]]
    assert naive.subsample2d(x, (1, 2))[0, 0].tolist() == [[1, 3], [4, 6]]
    assert naive.dilate1d(x[0], 3)[0].tolist() == [[1, 0, 0, 2, 0, 0, 3], [4, 0, 0, 5, 0, 0, 6]]
    assert naive.subsample1d(x[0], 2)[0].tolist() == [[1, 3], [4, 6]]
    assert naive.subsample1d(x[0], 5)[0].tolist() == [[1], [4]]
    assert naive.dilate1d(x[0], 1).tolist() == x[0].tolist()


def test_resampling_sizes_of_cmu():
    """input_size * k - (k - 1), and the number of elements that are kept, for even and odd."""
    for size in (1, 2, 5, 6):
        for k in (1, 2, 3, 7):
            x = np.zeros((2, 3, size))
            assert naive.dilate1d(x, k).shape == (2, 3, size * k - (k - 1))
            assert naive.subsample1d(x, k).shape == (2, 3, len(range(0, size, k)))


@pytest.mark.parametrize("op", ["dilate", "subsample"])
@pytest.mark.parametrize(
    ("shape", "factor"),
    [
        ((2, 2, 5), 2),
        ((1, 1, 6), (4,)),
        ((1, 1, 1), 3),
        ((0, 2, 4), 2),
        ((2, 1, 4, 5), (2, 3)),
        ((1, 2, 3, 2), 2),
        ((1, 1, 1, 1), 5),
        ((0, 1, 3, 4), (3, 2)),
    ],
)
def test_resampling_gradients(op, shape, factor):
    forward, backward = conv(shape, prefix=op), conv(shape, "_backward", op)
    x = randn(1, *shape)
    dy = randn(2, *forward(x, factor).shape)
    dx = backward(dy, factor, shape)
    assert_gradient(lambda x: forward(x, factor), x, dy, dx, h=1, bound=1e-12)


# Normalisation


def test_batch_norm_worked_by_hand():
    x = np.array([[1.0, 10], [3, 10], [5, 10], [7, 50]])
    mean, var = np.array([0.0, 100]), np.array([1.0, 10])
    y, batch_mean, rstd = naive.batch_norm(
        x, mean, var, [2, 1], [5, 0], training=True, momentum=0.25, eps=4, return_stats=True
    )
    # The variances are 5 and 300, or 20/3 and 400 when divided by 3.
    assert_close(batch_mean, [4, 20])
    assert_close(rstd, [1 / 3, 1 / math.sqrt(304)])
    assert_close(y[:, 0], [3, 13 / 3, 17 / 3, 7])
    assert_close(y[:, 1], np.array([-10, -10, -10, 30]) / math.sqrt(304))
    assert_close(mean, [1, 80])
    assert_close(var, [0.75 + 5 / 3, 107.5])

    y, mean_used, rstd = naive.batch_norm(x, [1, 10], [5, 0], eps=4, return_stats=True)
    assert_close(y, [[0, 0], [2 / 3, 0], [4 / 3, 0], [2, 20]])
    assert_close(mean_used, [1, 10])
    assert_close(rstd, [1 / 3, 1 / 2])


def test_batch_norm_published_by_ce40959():
    x = 4 * np.random.RandomState(231).randn(2, 3, 4, 5) + 10
    y, mean, rstd = naive.batch_norm(
        x, None, None, [3, 4, 5], [6, 7, 8], training=True, eps=0, return_stats=True
    )
    assert_close(mean, [9.33463814, 8.90909116, 9.11056338], bound=6e-9)
    assert_close(1 / rstd, [3.61447857, 3.19347686, 3.5168142], bound=6e-9)
    assert_close(y.mean(axis=(0, 2, 3)), [6, 7, 8])
    assert_close(y.std(axis=(0, 2, 3)), [3, 4, 5])


@pytest.mark.parametrize("shape", [(5, 3), (2, 2, 3), (2, 3, 2, 2), (1, 2, 1, 3), (2, 1)])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_gradients(shape, affine):
    x, dy = randn(1, *shape), randn(2, *shape)
    weight, bias = (randn(3, shape[1]), randn(4, shape[1])) if affine else (None, None)

    def forward(x, weight=weight, bias=bias):
        return naive.batch_norm(x, None, None, weight, bias, training=True, eps=0.1)

    _, mean, rstd = naive.batch_norm(x, None, None, training=True, eps=0.1, return_stats=True)
    dx, dweight, dbias = naive.batch_norm_backward(dy, x, mean, rstd, weight)
    assert_gradient(forward, x, dy, dx)
    weight, bias = (weight, bias) if affine else (np.ones(shape[1]), np.zeros(shape[1]))
    assert_gradient(lambda weight: forward(x, weight, bias), weight, dy, dweight)
    assert_gradient(lambda bias: forward(x, weight, bias), bias, dy, dbias)


def test_batch_norm_refuses():
    with pytest.raises(ValueError, match="more than one value"):
        naive.batch_norm(np.zeros((1, 3)), None, None, training=True)
    with pytest.raises(ValueError, match="running_mean"):
        naive.batch_norm(np.zeros((2, 3)), None, None)
    with pytest.raises(ValueError, match="weight"):
        naive.batch_norm(np.zeros((2, 3)), np.zeros(3), np.ones(3), weight=np.ones(4))


def test_batch_norm_of_an_empty_batch_changes_nothing():
    mean, var = np.zeros(3), np.ones(3)
    assert naive.batch_norm(np.zeros((0, 3, 2)), mean, var, training=True).shape == (0, 3, 2)
    assert mean.tolist() == [0, 0, 0]
    assert var.tolist() == [1, 1, 1]
    empty = np.zeros((0, 3))
    dx, dweight, dbias = naive.batch_norm_backward(empty, empty, mean, var)
    assert (dx.shape, dweight.tolist(), dbias.tolist()) == ((0, 3), [0, 0, 0], [0, 0, 0])


# Activations


def test_activations_worked_by_hand():
    assert naive.relu([[-2, 0, 3]]).tolist() == [[0, 0, 3]]
    assert naive.leaky_relu([-2, 0, 3], 0.5).tolist() == [-1, 0, 3]
    assert_close(naive.leaky_relu([-100]), [-1])
    assert_close(naive.sigmoid([0, math.log(3), -math.log(3)]), [0.5, 0.75, 0.25])
    assert_close(naive.tanh([0, math.log(2), -math.log(2)]), [0, 0.6, -0.6])
    assert_close(naive.softmax([[0, math.log(2), math.log(5)]]), [[0.125, 0.25, 0.625]])
    assert_close(naive.softmax([[0, 5], [math.log(3), 5]], axis=0), [[0.25, 0.5], [0.75, 0.5]])
    assert_close(naive.log_softmax([0, math.log(3)]), [-math.log(4), math.log(0.75)])


def test_activations_at_the_ends():
    ends = [-INF, -1e4, 1e4, INF]
    assert naive.relu([*ends, -0.0]).tolist() == [0, 0, 1e4, INF, 0]
    assert naive.sigmoid(ends).tolist() == [0, 0, 1, 1]
    assert naive.tanh(ends).tolist() == [-1, -1, 1, 1]
    assert_close(naive.sigmoid([-700]) / math.exp(-700), [1])
    assert naive.softmax([-1e4, 1e4]).tolist() == [0, 1]
    assert naive.softmax([-INF, 0]).tolist() == [0, 1]
    assert naive.log_softmax([-1e4, 1e4]).tolist() == [-2e4, 0]
    for op in (naive.relu, naive.leaky_relu, naive.sigmoid, naive.tanh, naive.softmax):
        assert np.isnan(op([NAN])).all()
    assert naive.relu_backward([1, 2, 3], [-1, 0, 1]).tolist() == [0, 0, 3]
    assert naive.relu_backward([1, NAN, NAN], [NAN, -1, 0]).tolist() == [1, 0, 0]
    assert naive.leaky_relu_backward([1, 2, 3], [-1, 0, 1], 0.5).tolist() == [0.5, 1, 3]


@pytest.mark.parametrize(
    ("name", "options"),
    [("relu", []), ("leaky_relu", []), ("leaky_relu", [0.3]), ("sigmoid", []), ("tanh", [])],
)
@pytest.mark.parametrize("shape", [(7,), (2, 3, 2, 2), (), (0, 3)])
def test_activation_gradients(name, options, shape):
    forward, backward = getattr(naive, name), getattr(naive, f"{name}_backward")
    x, dy = randn(1, *shape), randn(2, *shape)
    assert not (np.abs(x) < 1e-3).any()  # the kink is tested above
    assert_gradient(lambda x: forward(x, *options), x, dy, backward(dy, x, *options))


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize(
    ("shape", "axis"), [((5,), 0), ((3, 4), -1), ((3, 4), 0), ((2, 3, 2), 1), ((0, 3), 1)]
)
def test_softmax_gradients(name, shape, axis):
    forward, backward = getattr(naive, name), getattr(naive, f"{name}_backward")
    x, dy = randn(1, *shape), randn(2, *shape)
    dx = backward(dy, forward(x, axis), axis)
    assert_gradient(lambda x: forward(x, axis), x, dy, dx)
    total = np.exp(forward(x, axis)) if name == "log_softmax" else forward(x, axis)
    assert_close(total.sum(axis), np.ones(total.sum(axis).shape))


# Linear layer and dropout


@pytest.mark.parametrize("lead", [(4,), (2, 3), (), (0,)])
def test_linear(lead):
    x, w, b, dy = randn(1, *lead, 3), randn(2, 2, 3), randn(3, 2), randn(4, *lead, 2)
    y = naive.linear(x, w, b)
    for *at, f in np.ndindex(*lead, 2):
        assert_close(y[*at, f], b[f] + sum(w[f, d] * x[*at, d] for d in range(3)))
    dx, dw, db = naive.linear_backward(dy, x, w)
    assert_gradient(lambda x: naive.linear(x, w), x, dy, dx, h=1, bound=1e-12)
    assert_gradient(lambda w: naive.linear(x, w), w, dy, dw, h=1, bound=1e-12)
    assert_gradient(lambda b: naive.linear(x, w, b), b, dy, db, h=1, bound=1e-12)


def test_dropout_keeps_what_the_generator_says():
    x = randn(1, 50, 4)
    y, mask = naive.dropout(x, 0.3, rng=np.random.default_rng(7), return_mask=True)
    assert mask.dtype == bool
    assert mask.tolist() == (np.random.default_rng(7).random((50, 4)) >= 0.3).tolist()
    assert 0.55 < mask.mean() < 0.85
    for v, kept, got in zip(x.flat, mask.flat, y.flat, strict=True):
        assert_close(got, v / 0.7 if kept else 0)
    dy = randn(2, 50, 4)
    dx = naive.dropout_backward(dy, mask, 0.3)
    for d, kept, got in zip(dy.flat, mask.flat, dx.flat, strict=True):
        assert_close(got, d / 0.7 if kept else 0)


def test_dropout_at_the_ends():
    x, rng = [[1.0, 2]], np.random.default_rng(0)
    assert naive.dropout(x, 0, rng=rng).tolist() == x
    assert naive.dropout(x, 1, rng=rng).tolist() == [[0, 0]]
    assert naive.dropout_backward(x, [[False, False]], 1).tolist() == [[0, 0]]
    assert naive.dropout_backward(x, [[True, False]]).tolist() == [[2, 0]]
    y, mask = naive.dropout(x, 0.9, training=False, rng=rng, return_mask=True)
    assert (y.tolist(), mask.tolist()) == (x, [[True, True]])
    assert rng.random() == np.random.default_rng(0).random(5)[4]  # drawn in training only


# Losses


def test_losses_published_by_cs231n():
    """The worked examples of the course notes, "Linear classification"."""
    loss, _ = naive.multi_margin_loss([[13.0, -7.0, 11.0]], [0], margin=10.0)
    assert loss == 8
    scores = [[-2.85, 0.86, 0.28]]
    assert_close(naive.multi_margin_loss(scores, [2])[0], 1.58)
    assert_close(naive.softmax(scores), [[0.016, 0.631, 0.353]], bound=1e-3)
    assert_close(naive.cross_entropy(scores, [2])[0], 1.04, bound=5e-3)
    assert_close(naive.softmax([[123, 456, 789.0]]), [[0, 0, 1]])


def test_losses_worked_by_hand():
    scores, labels = [[0, math.log(3)], [math.log(4), 0]], [1, 1]
    loss, dscores = naive.cross_entropy(scores, labels)
    assert_close(loss, (math.log(4 / 3) + math.log(5)) / 2)
    assert_close(dscores, [[0.125, -0.125], [0.4, -0.4]])
    loss, dscores = naive.cross_entropy(scores[:1], [1], label_smoothing=0.2)
    assert_close(loss, 0.1 * math.log(4) + 0.9 * math.log(4 / 3))
    assert_close(dscores, [[0.15, -0.15]])
    loss, dscores = naive.multi_margin_loss([[1, 3, 2.5], [5, 1, 4.5]], [1, 0])
    assert_close(loss, 0.5)
    assert_close(dscores, [[0, -0.5, 0.5], [-0.5, 0, 0.5]])
    kink = naive.multi_margin_loss([[0, 1]], [1])
    assert (kink[0], kink[1].tolist()) == (0, [[0, 0]])
    loss, dpred = naive.mse_loss([[1, 2], [3, 4]], [[1, 0], [0, 4]])
    assert_close(loss, 13 / 4)
    assert_close(dpred, [[0, 1], [1.5, 0]])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cross_entropy", {}),
        ("cross_entropy", {"label_smoothing": 0.3}),
        ("multi_margin_loss", {}),
        ("multi_margin_loss", {"margin": 0.4}),
    ],
)
@pytest.mark.parametrize("shape", [(4, 5), (3, 2), (1, 1)])
def test_loss_gradients(name, options, shape):
    loss = getattr(naive, name)
    scores = randn(1, *shape)
    labels = np.random.default_rng(2).integers(0, shape[1], shape[0])
    value, dscores = loss(scores, labels, **options)
    assert type(value) is float
    one = np.ones(())
    assert_gradient(lambda s: np.array(loss(s, labels, **options)[0]), scores, one, dscores)


def test_mse_gradient():
    pred, target = randn(1, 3, 2), randn(2, 3, 2)
    _, dpred = naive.mse_loss(pred, target)
    assert_gradient(lambda p: np.array(naive.mse_loss(p, target)[0]), pred, np.ones(()), dpred)


def test_losses_at_the_ends():
    for name in ("cross_entropy", "multi_margin_loss"):
        loss = getattr(naive, name)
        value, dscores = loss(np.zeros((0, 3)), np.zeros(0, int))
        assert math.isnan(value)
        assert dscores.shape == (0, 3)
        assert math.isnan(loss([[NAN, 1.0]], [1])[0])
        for label in (-1, 3):
            with pytest.raises(ValueError, match="labels"):
                loss(np.zeros((1, 3)), [label])
    assert math.isnan(naive.mse_loss([], [])[0])
    assert naive.cross_entropy([[0.0, -INF]], [0])[0] == 0
    assert naive.cross_entropy([[0.0, -2000.0]], [1])[0] == 2000


# What all functions share

IMAGE, SIGNAL, MATRIX = (2, 4, 5, 6), (2, 4, 7), (4, 3)

# Of every function a call: the shapes of its arrays, and the other arguments.
CALLS: dict[str, tuple[list[tuple[int, ...]], dict[str, Any]]] = {
    "conv1d": ([SIGNAL, (2, 4, 3), (2,)], {}),
    "conv2d": ([IMAGE, (2, 4, 3, 2), (2,)], {}),
    "conv1d_backward": ([(2, 2, 5), SIGNAL, (2, 4, 3)], {}),
    "conv2d_backward": ([(2, 2, 3, 5), IMAGE, (2, 4, 3, 2)], {}),
    "conv_transpose1d": ([SIGNAL, (4, 2, 3), (2,)], {}),
    "conv_transpose2d": ([IMAGE, (4, 2, 3, 2), (2,)], {}),
    "conv_transpose1d_backward": ([(2, 2, 9), SIGNAL, (4, 2, 3)], {}),
    "conv_transpose2d_backward": ([(2, 2, 7, 7), IMAGE, (4, 2, 3, 2)], {}),
    "im2col": ([IMAGE], {"kernel_size": 2}),
    "col2im": ([(2, 16, 20)], {"output_size": (5, 6), "kernel_size": 2}),
    "max_pool1d": ([SIGNAL], {"kernel_size": 2}),
    "max_pool2d": ([IMAGE], {"kernel_size": 2}),
    "max_pool1d_backward": (
        [(1, 1, 3)],
        {"indices": np.array([[[0, 3, 3]]]), "input_shape": (1, 1, 4)},
    ),
    "max_pool2d_backward": (
        [(1, 1, 1, 2)],
        {"indices": np.array([[[[3, 3]]]]), "input_shape": (1, 1, 2, 2)},
    ),
    "avg_pool1d": ([SIGNAL], {"kernel_size": 2}),
    "avg_pool2d": ([IMAGE], {"kernel_size": 2}),
    "avg_pool1d_backward": ([(2, 4, 3)], {"input_shape": SIGNAL, "kernel_size": 2}),
    "avg_pool2d_backward": ([(2, 4, 2, 3)], {"input_shape": IMAGE, "kernel_size": 2}),
    "dilate1d": ([SIGNAL], {"factor": 2}),
    "dilate2d": ([IMAGE], {"factor": 1}),
    "dilate1d_backward": ([(2, 4, 13)], {"factor": 2, "input_shape": SIGNAL}),
    "dilate2d_backward": ([IMAGE], {"factor": 1, "input_shape": IMAGE}),
    "subsample1d": ([SIGNAL], {"factor": 2}),
    "subsample2d": ([IMAGE], {"factor": 1}),
    "subsample1d_backward": ([(2, 4, 4)], {"factor": 2, "input_shape": SIGNAL}),
    "subsample2d_backward": ([IMAGE], {"factor": 1, "input_shape": IMAGE}),
    "batch_norm": ([IMAGE, (4,), (4,), (4,), (4,)], {"eps": 10.0, "return_stats": True}),
    "batch_norm_backward": ([IMAGE, IMAGE, (4,), (4,), (4,)], {}),
    "relu": ([IMAGE], {}),
    "leaky_relu": ([IMAGE], {}),
    "sigmoid": ([IMAGE], {}),
    "tanh": ([IMAGE], {}),
    "softmax": ([IMAGE], {}),
    "log_softmax": ([IMAGE], {}),
    "relu_backward": ([IMAGE, IMAGE], {}),
    "leaky_relu_backward": ([IMAGE, IMAGE], {}),
    "sigmoid_backward": ([IMAGE, IMAGE], {}),
    "tanh_backward": ([IMAGE, IMAGE], {}),
    "softmax_backward": ([IMAGE, IMAGE], {}),
    "log_softmax_backward": ([IMAGE, IMAGE], {}),
    "linear": ([MATRIX, (2, 3), (2,)], {}),
    "linear_backward": ([(4, 2), MATRIX, (2, 3)], {}),
    "dropout": ([IMAGE], {"training": False, "rng": np.random.default_rng(0)}),
    "dropout_backward": ([IMAGE], {"mask": randn(9, *IMAGE) > 0}),
    "cross_entropy": ([MATRIX], {"labels": np.array([0, 2, 1, 0])}),
    "multi_margin_loss": ([MATRIX], {"labels": np.array([0, 2, 1, 0])}),
    "mse_loss": ([MATRIX, MATRIX], {}),
}
every_function = pytest.mark.parametrize("name", CALLS)


def public_functions(module: Any) -> dict[str, Callable[..., Any]]:
    found = inspect.getmembers(module, inspect.isfunction)
    return {n: f for n, f in found if f.__module__ == module.__name__ and not n.startswith("_")}


def results(name: str, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """The arrays that the call of this name returns for these."""
    result = getattr(naive, name)(*arrays, **CALLS[name][1])
    result = result if isinstance(result, tuple) else (result,)
    return [y for y in result if not isinstance(y, float)]


def rounded(name: str, dtype: Any = float) -> list[np.ndarray]:
    """Arguments that are small multiples of 1/8, which every float dtype holds exactly."""
    shapes = CALLS[name][0]
    return [(np.round(8 * randn(i, *s)) / 8).astype(dtype) for i, s in enumerate(shapes)]


def test_no_function_is_missing():
    assert list(public_functions(naive)) == sorted(CALLS)


def test_signatures():
    """Every operation of `functional` has its loops, with the same arguments but method and out."""
    from cnnfast import functional

    operations = {
        name: f
        for name, f in public_functions(functional).items()
        if "method" in inspect.signature(f).parameters
    }
    assert sorted(operations) == sorted(CALLS)
    for name, operation in operations.items():
        fast, slow = (
            [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()]
            for f in (operation, getattr(naive, name))
        )
        keyword_only = inspect.Parameter.KEYWORD_ONLY
        extra = [("method", keyword_only, "auto"), ("out", keyword_only, None)]
        assert fast in ([*slow, *extra], [*slow, extra[0]]), name


@every_function
def test_results_are_new_and_contiguous_whatever_the_layout(name):
    plain = rounded(name)
    want = results(name, plain)
    layouts = {
        "Fortran": np.asfortranarray,
        "negative strides": lambda a: a[(np.s_[::-1],) * a.ndim].copy()[(np.s_[::-1],) * a.ndim],
        "every other": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
        "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder()),
        "lists": lambda a: a.tolist(),
    }
    for layout in layouts.values():
        arrays = [layout(a) for a in plain]
        for a in arrays:
            if isinstance(a, np.ndarray):
                a.flags.writeable = False
        for y, expected in zip(results(name, arrays), want, strict=True):
            assert y.dtype == expected.dtype
            assert y.dtype.isnative
            assert_close(y, expected)
            assert y.flags.c_contiguous
            assert y.flags.writeable
            assert not any(np.may_share_memory(y, a) for a in arrays if isinstance(a, np.ndarray))
        for a, before in zip(arrays, plain, strict=True):
            np.testing.assert_array_equal(a, before)


@every_function
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.bool_])
def test_dtypes(name, dtype):
    arrays = rounded(name, dtype)
    if name == "batch_norm":
        arrays[2] = np.abs(arrays[2])
    exact = results(name, [a.astype(float) for a in arrays])
    kept = np.issubdtype(dtype, np.floating)
    for y, want in zip(results(name, arrays), exact, strict=True):
        assert y.dtype == (dtype if kept else np.float64)
        assert_close(y.astype(float), want, bound=4 * np.finfo(y.dtype).eps)
    mixed = [a.astype(np.float32) if i else a.astype(float) for i, a in enumerate(arrays)]
    assert {y.dtype for y in results(name, mixed)} == {np.dtype(float)}


@pytest.mark.parametrize("bad", [np.zeros((1, 1, 3), complex), np.array([[["a"]]]), [[[None]]]])
def test_dtypes_refused(bad):
    with pytest.raises(TypeError, match="real numbers"):
        naive.conv1d(bad, np.ones((1, 1, 1)))


SIZES = {
    "empty output": lambda: naive.conv2d(np.ones((1, 1, 2, 2)), np.ones((1, 1, 3, 1))),
    "empty output, stride": lambda: naive.conv1d([[[1, 2]]], [[[1, 2, 3]]], stride=5),
    "channels": lambda: naive.conv2d(np.ones((1, 3, 2, 2)), np.ones((1, 1, 1, 1))),
    "groups": lambda: naive.conv2d(np.ones((1, 4, 2, 2)), np.ones((3, 2, 1, 1)), groups=2),
    "rank": lambda: naive.conv2d(np.ones((1, 1, 2)), np.ones((1, 1, 1))),
    "ranks": lambda: naive.conv2d(np.ones((1, 1, 2)), np.ones((1, 1, 1, 1))),
    "bias": lambda: naive.conv2d(np.ones((1, 1, 2, 2)), np.ones((1, 1, 1, 1)), [1, 2]),
    "dy": lambda: naive.conv1d_backward([[[1]]], [[[1, 2]]], [[[1]]]),
    "same with a stride": lambda: naive.conv1d([[[1]]], [[[1]]], stride=2, padding="same"),
    "unknown padding": lambda: naive.conv1d([[[1]]], [[[1]]], padding="full"),
    "negative padding": lambda: naive.conv1d([[[1, 2]]], [[[1]]], padding=-1),
    "paddings": lambda: naive.conv1d([[[1, 2]]], [[[1]]], padding=(1, 2)),
    "strides": lambda: naive.conv1d([[[1, 2]]], [[[1]]], stride=(1, 2)),
    "transposed channels": lambda: naive.conv_transpose1d([[[1]]], np.ones((2, 1, 1))),
    "transposed empty output": lambda: naive.conv_transpose1d([[[1]]], [[[1]]], padding=1),
    "transposed same": lambda: naive.conv_transpose1d([[[1]]], [[[1]]], padding="same"),
    "pool window": lambda: naive.max_pool1d([[[1, 2]]], 3),
    "pool padding": lambda: naive.avg_pool1d([[[1, 2]]], 2, padding=2),
    "pool dy": lambda: naive.avg_pool1d_backward([[[1]]], (1, 1, 4), 2),
    "pool indices": lambda: naive.max_pool1d_backward([[[1]]], [[[0, 0]]], (1, 1, 4)),
    "pool channels": lambda: naive.max_pool1d_backward([[[1]]], [[[0]]], (1, 2, 4)),
    "dilate dy": lambda: naive.dilate1d_backward([[[1, 2]]], 2, (1, 1, 2)),
    "subsample dy": lambda: naive.subsample2d_backward([[[[1]]]], 2, (1, 1, 3, 3)),
    "linear": lambda: naive.linear(np.ones((2, 3)), np.ones((2, 1))),
    "relu": lambda: naive.relu_backward(np.ones(1), np.ones(3)),
    "mask": lambda: naive.dropout_backward(np.ones(3), [True]),
    "labels": lambda: naive.cross_entropy(np.ones((3, 2)), [1]),
    "target": lambda: naive.mse_loss(np.ones(3), [1]),
}


@pytest.mark.parametrize("call", SIZES.values(), ids=SIZES)
def test_sizes_that_do_not_fit_are_refused(call):
    with pytest.raises(ValueError):
        call()


def test_numbers_that_are_not_whole_are_refused():
    with pytest.raises(TypeError):
        naive.conv1d([[[1, 2]]], [[[1]]], stride=1.5)
