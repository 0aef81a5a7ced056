"""Sharif CE-40959: the cells of the homework, and what its own code got wrong.

The figures are those that the handout prints; `naive` and finite differences judge the rest.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

from cnnfast import naive
from cnnfast.compat import ce40959
from cnnfast.compat.ce40959 import (
    batch_norm_backward,
    batch_norm_forward,
    convolution2D,
    convolution2D_backward_filter,
    convolution2D_backward_input,
    pool_back,
    pool_forward,
    zero_padding,
)
from cnnfast.gradcheck import numeric_gradient, rel_error


def rand(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape)


def legacy(seed: int) -> np.random.RandomState:
    """The stream that the handout's ``np.random.seed`` starts."""
    return np.random.RandomState(seed)


def test_names_and_parameters() -> None:
    expected = {
        "zero_padding": "X padding",
        "convolution2D": "X W stride padding",
        "convolution2D_backward_filter": "out_grad X W stride",
        "convolution2D_backward_input": "out_grad X W stride",
        "pool_forward": "X f s",
        "pool_back": "grad_pool X f s",
        "batch_norm_forward": "X gamma beta",
        "batch_norm_backward": "dout X gamma beta",
    }
    assert set(ce40959.__all__) == set(expected)
    for name, parameters in expected.items():
        assert " ".join(inspect.signature(getattr(ce40959, name)).parameters) == parameters


# --- the cells of the handout


def test_cell_zero_padding() -> None:
    x, padding = legacy(1968).rand(2, 3, 4, 4), (3, 2)
    padded = zero_padding(x, padding)
    assert padded.shape == (2, 3, 10, 8)
    np.testing.assert_array_equal(padded[:, :, 3:7, 2:6], x)
    assert np.count_nonzero(padded) == np.count_nonzero(x)


def test_cell_convolution() -> None:
    random = legacy(1973)
    param = {
        "X": random.rand(2, 3, 23, 20),
        "W": random.rand(7, 3, 6, 6),
        "stride": (3, 6),
        "padding": (2, 3),
    }
    out = convolution2D(**param)
    assert out.shape == (2, 7, 8, 4)
    expected = naive.conv2d(param["X"], param["W"], None, (3, 6), (2, 3))
    assert np.sum((out - expected) ** 2) < 1e-24


def test_cell_backward_filter() -> None:
    random = legacy(1345)
    param = {"X": random.rand(2, 3, 10, 10), "W": random.rand(7, 3, 4, 4), "stride": (2, 2)}
    dw = convolution2D_backward_filter(np.ones((2, 7, 4, 4)), **param)
    assert dw.shape == (7, 3, 4, 4)
    assert np.sum(dw) == pytest.approx(5340.576411697173, rel=1e-14)


def test_cell_backward_input() -> None:
    random = legacy(1992)
    param = {"X": random.rand(5, 3, 6, 6), "W": random.rand(2, 3, 2, 2), "stride": (3, 3)}
    dx = convolution2D_backward_input(np.ones((5, 2, 2, 2)), **param)
    assert dx.shape == (5, 3, 6, 6)
    assert np.sum(dx) == pytest.approx(208.39287018595633, rel=1e-14)


def test_cell_pool_forward() -> None:
    c = pool_forward(legacy(1975).rand(2, 3, 23, 23), f=2, s=11)
    expected = [
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
    np.testing.assert_allclose(c, expected, rtol=0, atol=5.1e-9)


def test_cell_pool_back_takes_a_gradient_smaller_than_the_output() -> None:
    random = legacy(19)
    X, g = random.rand(2, 3, 10, 10), random.rand(2, 3, 7, 7)
    dX = pool_back(g, X, 2, 1)
    assert np.mean(dX) == pytest.approx(0.2428232587752177, rel=1e-14)
    expected = [[0, 0, 1.09075724], [1.29276074, 0, 1.15881724], [0, 0.61727634, 0]]
    np.testing.assert_allclose(dX[1, 2, 2:5, 2:5], expected, rtol=0, atol=5.1e-9)


def test_cell_batch_norm() -> None:
    X = 4 * legacy(231).randn(2, 3, 4, 5) + 10
    axes = (0, 2, 3)
    np.testing.assert_allclose(
        X.mean(axis=axes), [9.33463814, 8.90909116, 9.11056338], rtol=0, atol=5.1e-9
    )
    out = batch_norm_forward(X, np.ones(3), np.zeros(3))
    assert out.shape == (2, 3, 4, 5)
    np.testing.assert_allclose(out.mean(axis=axes), 0, atol=1e-14)
    np.testing.assert_allclose(out.std(axis=axes), 1, rtol=0, atol=5e-9)
    out = batch_norm_forward(X, np.asarray([3, 4, 5]), np.asarray([6, 7, 8]))
    np.testing.assert_allclose(out.mean(axis=axes), [6, 7, 8], rtol=0, atol=5e-9)
    np.testing.assert_allclose(out.std(axis=axes), [3, 4, 5], rtol=0, atol=5e-9)


# --- where the handout's code fails


SIZES = [
    # image, window, stride
    ((7, 5), (3, 2), (2, 1)),
    ((5, 9), (1, 4), (1, 3)),  # sizes that do not divide
    ((8, 6), (2, 1), (3, 2)),  # strides over the window
    ((4, 4), (4, 4), (5, 5)),  # one window
]


@pytest.mark.parametrize(("image", "window", "stride"), SIZES)
def test_convolution_of_rectangles(image: Any, window: Any, stride: Any) -> None:
    X, W = rand(2, 3, *image), rand(4, 3, *window, seed=1)
    before = X.copy(), W.copy()
    out = convolution2D(X, W, stride, (1, 0))
    np.testing.assert_allclose(out, naive.conv2d(X, W, None, stride, (1, 0)), rtol=0, atol=1e-13)

    out = convolution2D(X, W, list(stride), [0, 0])
    dout = rand(*out.shape, seed=2)
    dx, dw, _ = naive.conv2d_backward(dout, X, W, stride)
    by_input = convolution2D_backward_input(dout, X, W, list(stride))
    by_filter = convolution2D_backward_filter(dout, X, W, list(stride))
    np.testing.assert_allclose(by_input, dx, rtol=0, atol=1e-13)
    np.testing.assert_allclose(by_filter, dw, rtol=0, atol=1e-13)
    numeric = numeric_gradient(lambda a: convolution2D(X, a, stride, (0, 0)), W, dout)
    assert rel_error(by_filter, numeric) < 1e-7
    for a, b in zip((X, W), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_gradients_with_padding_are_those_of_the_padded_images() -> None:
    X, W = rand(2, 3, 5, 4), rand(2, 3, 3, 2, seed=1)
    padded = zero_padding(X, (2, 1))
    out = convolution2D(X, W, (2, 1), (2, 1))
    dout = rand(*out.shape, seed=2)
    numeric = numeric_gradient(lambda a: convolution2D(a, W, (2, 1), (2, 1)), X, dout)
    dx = convolution2D_backward_input(dout, padded, W, (2, 1))
    assert rel_error(dx[:, :, 2:-2, 1:-1], numeric) < 1e-7


@pytest.mark.parametrize(("f", "s"), [(2, 2), (3, 1), (2, 3), (3, 2)])
def test_pooling(f: int, s: int) -> None:
    X = np.round(2 * rand(2, 3, 7, 5))  # full of ties
    before = X.copy()
    out = pool_forward(X, f, s)
    y, indices = naive.max_pool2d(X, f, s, return_indices=True)
    np.testing.assert_array_equal(out, y)
    dout = rand(*out.shape, seed=1)
    expected = naive.max_pool2d_backward(dout, indices, X.shape)
    np.testing.assert_allclose(pool_back(dout, X, f, s), expected, rtol=0, atol=1e-14)
    np.testing.assert_array_equal(X, before)


def test_pool_back_of_a_part() -> None:
    X = rand(2, 3, 7, 5)
    full = np.zeros((2, 3, 6, 4))
    full[:, :, :4, :1] = rand(2, 3, 4, 1, seed=1)
    part = pool_back(full[:, :, :4, :1], X, 2, 1)
    np.testing.assert_array_equal(part, pool_back(full, X, 2, 1))
    for shape in ((2, 3, 7, 4), (2, 3, 4), (2, 2, 6, 4)):
        with pytest.raises(ValueError, match="grad_pool must have"):
            pool_back(np.ones(shape), X, 2, 1)


def test_ties_go_to_the_first() -> None:
    expected = np.zeros((1, 1, 4, 4))
    expected[..., ::2, ::2] = 1
    dx = pool_back(np.ones((1, 1, 2, 2)), np.zeros((1, 1, 4, 4)), 2, 2)
    np.testing.assert_array_equal(dx, expected)


def test_batch_norm_backward_is_the_gradient() -> None:
    X, dout = 3 * rand(3, 2, 4, 5) + 1, rand(3, 2, 4, 5, seed=1)
    gamma, beta = rand(2, seed=2), rand(2, seed=3)
    before = X.copy(), dout.copy(), gamma.copy(), beta.copy()
    dX = batch_norm_backward(dout, X, gamma, beta)
    numeric = numeric_gradient(lambda a: batch_norm_forward(a, gamma, beta), X, dout)
    assert rel_error(dX, numeric) < 1e-6
    for a, b in zip((X, dout, gamma, beta), before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_constant_channel_gives_beta(dtype: Any) -> None:
    X = np.full((2, 2, 3, 3), 0.1, dtype)
    out = batch_norm_forward(X, np.array([2, 3], dtype), np.array([5, 7], dtype))
    np.testing.assert_allclose(out[:, 0], 5, rtol=1e-6)
    np.testing.assert_allclose(out[:, 1], 7, rtol=1e-6)


def test_one_value_in_a_channel_gives_beta() -> None:
    X, gamma, beta = rand(1, 3, 1, 1), rand(3, seed=1), rand(3, seed=2)
    out = batch_norm_forward(X, gamma, beta)
    np.testing.assert_array_equal(out, beta.reshape(1, 3, 1, 1))
    np.testing.assert_array_equal(batch_norm_backward(np.ones_like(X), X, gamma, beta), 0 * X)


@pytest.mark.parametrize("layout", ["C", "F", "reversed", "read-only"])
def test_layouts_and_dtypes(layout: str) -> None:
    X, W = rand(2, 3, 6, 5), rand(4, 3, 2, 3, seed=1)
    expected = convolution2D(X, W, (2, 1), (1, 0))
    pooled, normed = pool_forward(X, 2, 1), batch_norm_forward(X, np.ones(3), np.zeros(3))
    other = {"F": np.asfortranarray, "reversed": lambda a: a[..., ::-1].copy()[..., ::-1]}
    x, w = (other.get(layout, np.array)(a) for a in (X, W))
    x.flags.writeable = layout != "read-only"
    np.testing.assert_allclose(convolution2D(x, w, (2, 1), (1, 0)), expected, atol=1e-14)
    np.testing.assert_array_equal(pool_forward(x, 2, 1), pooled)
    np.testing.assert_array_equal(zero_padding(x, (0, 2)), zero_padding(X, (0, 2)))
    np.testing.assert_allclose(batch_norm_forward(x, np.ones(3), np.zeros(3)), normed, atol=1e-14)


def test_float32_stays_and_integers_count_as_floats() -> None:
    X, W = rand(2, 3, 6, 5).astype(np.float32), rand(4, 3, 2, 3).astype(np.float32)
    results = (
        zero_padding(X, (1, 1)),
        convolution2D(X, W, (1, 1), (0, 0)),
        pool_forward(X, 2, 2),
        batch_norm_forward(X, W[:3, 0, 0, 0], W[:3, 0, 0, 0]),
    )
    assert {a.dtype for a in results} == {np.dtype(np.float32)}
    ones = [[[[1, 2], [3, 4]]]]
    assert zero_padding(ones, (1, 0)).dtype == np.float64
    np.testing.assert_array_equal(convolution2D(ones, ones, (1, 1), (0, 0)), [[[[30.0]]]])


def test_an_empty_batch() -> None:
    X, W = np.zeros((0, 3, 6, 5)), rand(4, 3, 2, 3)
    assert zero_padding(X, (1, 2)).shape == (0, 3, 8, 9)
    out = convolution2D(X, W, (2, 1), (0, 0))
    assert out.shape == (0, 4, 3, 3)
    assert convolution2D_backward_input(out, X, W, (2, 1)).shape == X.shape
    np.testing.assert_array_equal(convolution2D_backward_filter(out, X, W, (2, 1)), 0 * W)
    assert pool_back(pool_forward(X, 2, 2), X, 2, 2).shape == X.shape


def test_errors_name_the_argument() -> None:
    X, W = rand(2, 3, 6, 5), rand(4, 3, 2, 3)
    with pytest.raises(ValueError, match="padding"):
        zero_padding(X, (-1, 0))
    with pytest.raises(ValueError, match="X"):
        zero_padding(X[0], (1, 1))
    with pytest.raises(TypeError, match="stride"):
        convolution2D(X, W, (1.5, 1), (0, 0))
    with pytest.raises(ValueError, match="input channels"):
        convolution2D(X, W[:, :2], (1, 1), (0, 0))
    with pytest.raises(ValueError, match="dy"):
        convolution2D_backward_filter(np.ones((2, 4, 9, 9)), X, W, (1, 1))
