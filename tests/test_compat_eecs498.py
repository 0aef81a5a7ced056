"""Michigan's module: the notebook's check cells, what its code could not do, models and Solver."""

from __future__ import annotations

import inspect
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cnnfast
from cnnfast import models, naive
from cnnfast.compat import eecs498 as course
from cnnfast.compat.eecs498 import compute_numeric_gradient, rel_error
from cnnfast.data import load_cifar10

CONV, DOUT = ["x", "w", "b", "conv_param"], ["dout", "cache"]
NORM = ["x", "gamma", "beta", "bn_param"]
LAYERS = {
    "Conv": CONV,
    "FastConv": CONV,
    "MaxPool": ["x", "pool_param"],
    "FastMaxPool": ["x", "pool_param"],
    "Linear": ["x", "w", "b"],
    "ReLU": ["x"],
    "Dropout": ["x", "dropout_param"],
    "BatchNorm": NORM,
    "SpatialBatchNorm": NORM,
    "Linear_ReLU": ["x", "w", "b"],
    "Conv_ReLU": CONV,
    "Conv_ReLU_Pool": [*CONV, "pool_param"],
    "Linear_BatchNorm_ReLU": ["x", "w", "b", "gamma", "beta", "bn_param"],
    "Conv_BatchNorm_ReLU": ["x", "w", "b", "gamma", "beta", "conv_param", "bn_param"],
    "Conv_BatchNorm_ReLU_Pool": [
        *("x", "w", "b", "gamma", "beta", "conv_param", "bn_param", "pool_param")
    ],
}
FUNCTIONS = {
    "conv_forward": CONV,
    "conv_backward": DOUT,
    "max_pool_forward": ["x", "pool_param"],
    "max_pool_backward": DOUT,
    "batchnorm_forward": NORM,
    "batchnorm_backward": DOUT,
    "batchnorm_backward_alt": DOUT,
    "spatial_batchnorm_forward": NORM,
    "spatial_batchnorm_backward": DOUT,
    "kaiming_initializer": ["Din", "Dout", "K", "relu", "device", "dtype"],
    "svm_loss": ["x", "y"],
    "softmax_loss": ["x", "y"],
    **{rule: ["w", "dw", "config"] for rule in ("sgd", "sgd_momentum", "rmsprop", "adam")},
    "compute_numeric_gradient": ["f", "x", "dLdf", "h"],
    "rel_error": ["x", "y", "eps"],
    "fix_random_seed": ["seed_no"],
    "ThreeLayerConvNet": [
        *("input_dims", "num_filters", "filter_size", "hidden_dim", "num_classes"),
        *("weight_scale", "reg", "dtype", "device"),
    ],
    "DeepConvNet": [
        *("input_dims", "num_filters", "max_pools", "batchnorm", "num_classes", "weight_scale"),
        *("reg", "weight_initializer", "dtype", "device"),
    ],
    "Solver": ["model", "data"],
}
POOL = {"pool_height": 2, "pool_width": 2, "stride": 2}
SEED = 1


class Kind:
    """Arrays of one library, drawn and made as the notebook does.

    PyTorch's are from the notebook's seed. NumPy's are from one where no ReLU of the networks whose
    gradients are checked is within a step of its kink.
    """

    def __init__(self, name: str) -> None:
        self.is_torch = name == "torch"
        self.xp: Any = pytest.importorskip("torch") if self.is_torch else np
        self.f32, self.f64 = self.xp.float32, self.xp.float64
        self.type = self.xp.Tensor if self.is_torch else np.ndarray
        self.rng = np.random.default_rng(SEED)

    def seed(self, number: int = 0) -> None:
        course.fix_random_seed(number)
        self.rng = np.random.default_rng(SEED + number)

    def randn(self, *shape: int) -> Any:
        if self.is_torch:
            return self.xp.randn(*shape, dtype=self.f64)
        return self.rng.standard_normal(shape)

    def labels(self, classes: int, n: int) -> Any:
        if self.is_torch:
            return self.xp.randint(classes, size=(n,))
        return self.rng.integers(classes, size=n)

    def linspace(self, low: float, high: float, *shape: int) -> Any:
        return self.array(np.linspace(low, high, math.prod(shape)).reshape(shape))

    def array(self, a: Any) -> Any:
        return self.xp.asarray(np.array(a))


@pytest.fixture(params=["numpy", "torch"])
def kind(request: pytest.FixtureRequest) -> Kind:
    found = Kind(request.param)
    found.seed()
    return found


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """More threads cost more than they bring at these sizes."""
    with cnnfast.threads(1):
        try:
            import torch
        except ImportError:
            yield
            return
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)


def array(a: Any) -> np.ndarray:
    return np.asarray(a.detach() if hasattr(a, "detach") else a)


def test_names_and_parameters() -> None:
    assert set(course.__all__) == set(LAYERS) | set(FUNCTIONS)
    for name, parameters in LAYERS.items():
        layer = getattr(course, name)
        assert list(inspect.signature(layer.forward).parameters) == parameters
        assert list(inspect.signature(layer.backward).parameters) == DOUT
    assert list(inspect.signature(course.BatchNorm.backward_alt).parameters) == DOUT
    for name, parameters in FUNCTIONS.items():
        found = inspect.signature(getattr(course, name)).parameters.values()
        assert [p.name for p in found if p.kind is p.POSITIONAL_OR_KEYWORD] == parameters
    options = inspect.signature(course.Solver).parameters
    for name in ("update_rule", "optim_config", "lr_decay", "num_epochs", "batch_size", "device"):
        assert name in options
    assert options["print_every"].default == 10
    assert options["verbose"].default is True


# --- The notebook's check cells, with its thresholds


def test_cell_conv_forward(kind: Kind) -> None:
    x, w = kind.linspace(-0.1, 0.5, 2, 3, 4, 4), kind.linspace(-0.2, 0.3, 3, 3, 4, 4)
    b = kind.linspace(-0.1, 0.2, 3)
    correct_out = [
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
    for layer in (course.Conv, course.FastConv):
        out, cache = layer.forward(x, w, b, {"stride": 2, "pad": 1})
        assert rel_error(out, kind.array(correct_out)) < 1e-7
        assert all(a is given for a, given in zip(cache, (x, w, b), strict=False))
        assert cache[3] == {"stride": 2, "pad": 1}


def test_cell_image_filters(kind: Kind) -> None:
    """Grey values and horizontal edges of two images in [0, 1], as 3x3 filters with padding."""
    x = kind.array(np.random.default_rng(4).random((2, 3, 9, 8)))
    w, b = np.zeros((2, 3, 3, 3)), np.array([0.0, 128.0])
    w[0, :, 1, 1] = 0.3, 0.6, 0.1
    w[1, 2] = [[1, 2, 1], [0, 0, 0], [-1, -2, -1]]
    out, _ = course.Conv.forward(x, kind.array(w), kind.array(b), {"stride": 1, "pad": 1})
    pixels = array(x)
    grey = 0.3 * pixels[:, 0] + 0.6 * pixels[:, 1] + 0.1 * pixels[:, 2]
    np.testing.assert_allclose(array(out)[:, 0], grey, rtol=1e-13)
    blue = np.pad(pixels[:, 2], ((0, 0), (1, 1), (1, 1)))
    smooth = blue[:, :, :-2] + 2 * blue[:, :, 1:-1] + blue[:, :, 2:]
    edges = smooth[:, :-2] - smooth[:, 2:] + 128
    np.testing.assert_allclose(array(out)[:, 1], edges, rtol=1e-13)


@pytest.mark.parametrize("name", ["Conv", "FastConv"])
def test_cell_conv_backward(name: str, kind: Kind) -> None:
    layer = getattr(course, name)
    x, w, b = kind.randn(4, 3, 5, 5), kind.randn(2, 3, 3, 3), kind.randn(2)
    dout, conv_param = kind.randn(4, 2, 5, 5), {"stride": 1, "pad": 1}
    dx_num = compute_numeric_gradient(lambda x: layer.forward(x, w, b, conv_param)[0], x, dout)
    dw_num = compute_numeric_gradient(lambda w: layer.forward(x, w, b, conv_param)[0], w, dout)
    db_num = compute_numeric_gradient(lambda b: layer.forward(x, w, b, conv_param)[0], b, dout)
    _, cache = layer.forward(x, w, b, conv_param)
    dx, dw, db = layer.backward(dout, cache)
    for ours, numeric in ((dx, dx_num), (dw, dw_num), (db, db_num)):
        assert isinstance(ours, kind.type)
        assert isinstance(numeric, kind.type)
        assert rel_error(ours, numeric) < 1e-8


def test_cell_max_pool_forward(kind: Kind) -> None:
    x = kind.linspace(-0.3, 0.4, 2, 3, 4, 4)
    correct_out = [
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
    for layer in (course.MaxPool, course.FastMaxPool):
        out, _ = layer.forward(x, POOL)
        assert rel_error(out, kind.array(correct_out)) < 1e-7


def test_cell_max_pool_backward(kind: Kind) -> None:
    x, dout = kind.randn(3, 2, 8, 8), kind.randn(3, 2, 4, 4)
    for layer in (course.MaxPool, course.FastMaxPool):
        dx_num = compute_numeric_gradient(lambda x: course.FastMaxPool.forward(x, POOL)[0], x, dout)
        _, cache = layer.forward(x, POOL)
        assert rel_error(layer.backward(dout, cache), dx_num) < 1e-10


def test_cell_fast_conv(kind: Kind) -> None:
    x, w, b = kind.randn(10, 3, 31, 31), kind.randn(25, 3, 3, 3), kind.randn(25)
    dout, conv_param = kind.randn(10, 25, 16, 16), {"stride": 2, "pad": 1}
    with cnnfast.trace() as ran:
        out_naive, cache_naive = course.Conv.forward(x, w, b, conv_param)
        out_fast, cache_fast = course.FastConv.forward(x, w, b, conv_param)
        naives = course.Conv.backward(dout, cache_naive)
        fasts = course.FastConv.backward(dout, cache_fast)
    assert [r.method == "naive" for r in ran] == [True, False, True, False]
    assert rel_error(out_naive, out_fast) < 1e-11
    for slow, fast in zip(naives, fasts, strict=True):
        assert rel_error(slow, fast) < 1e-11


def test_cell_fast_max_pool(kind: Kind) -> None:
    x, dout = kind.randn(40, 3, 32, 32), kind.randn(40, 3, 16, 16)
    out_naive, cache_naive = course.MaxPool.forward(x, POOL)
    out_fast, cache_fast = course.FastMaxPool.forward(x, POOL)
    assert rel_error(out_naive, out_fast) == 0.0
    dx_naive = course.MaxPool.backward(dout, cache_naive)
    assert rel_error(dx_naive, course.FastMaxPool.backward(dout, cache_fast)) == 0.0


def check_sandwich(layer: Any, arrays: list[Any], options: list[Any], dout: Any) -> None:
    """Every gradient by finite differences, as far as the notebook asks."""
    _, cache = layer.forward(*arrays, *options)
    for i, ours in enumerate(layer.backward(dout, cache)):

        def f(a: Any, i: int = i) -> Any:
            return layer.forward(*arrays[:i], a, *arrays[i + 1 :], *options)[0]

        numeric = compute_numeric_gradient(f, arrays[i], dout)
        assert type(ours) is type(arrays[i])
        assert rel_error(numeric, ours) < 1e-7


def test_cell_conv_relu_pool(kind: Kind) -> None:
    arrays = [kind.randn(2, 3, 16, 16), kind.randn(3, 3, 3, 3), kind.randn(3)]
    options = [{"stride": 1, "pad": 1}, POOL]
    check_sandwich(course.Conv_ReLU_Pool, arrays, options, kind.randn(2, 3, 8, 8))


def test_cell_conv_relu(kind: Kind) -> None:
    arrays = [kind.randn(2, 3, 8, 8), kind.randn(3, 3, 3, 3), kind.randn(3)]
    check_sandwich(course.Conv_ReLU, arrays, [{"stride": 1, "pad": 1}], kind.randn(2, 3, 8, 8))


def test_linear_relu(kind: Kind) -> None:
    arrays = [kind.randn(3, 2, 4), kind.randn(8, 5), kind.randn(5)]
    check_sandwich(course.Linear, arrays, [], kind.randn(3, 5))
    check_sandwich(course.Linear_ReLU, arrays, [], kind.randn(3, 5))
    out, _ = course.Linear.forward(*arrays)
    x, w, b = map(array, arrays)
    np.testing.assert_allclose(array(out), x.reshape(3, 8) @ w + b, rtol=1e-13)


def test_batchnorm_sandwiches(kind: Kind) -> None:
    vectors = [kind.randn(3), kind.randn(3), kind.randn(3)]
    train = {"mode": "train"}
    arrays = [kind.randn(4, 5), kind.randn(5, 3), *vectors]
    dout = kind.randn(4, 3)
    _, cache = course.Linear_BatchNorm_ReLU.forward(*arrays, train)
    gradients = course.Linear_BatchNorm_ReLU.backward(dout, cache)
    assert [tuple(g.shape) for g in gradients] == [tuple(a.shape) for a in arrays]
    for layer, shape, options in (
        (course.Linear_BatchNorm_ReLU, None, []),
        (course.Conv_BatchNorm_ReLU, (2, 3, 6, 5), []),
        (course.Conv_BatchNorm_ReLU_Pool, (2, 3, 3, 2), [POOL]),
    ):
        if shape is not None:
            arrays = [kind.randn(2, 2, 6, 5), kind.randn(3, 2, 3, 3), *vectors]
            dout = kind.randn(*shape)
            options = [{"stride": 1, "pad": 1}, train, *options]
        else:
            options = [train]
        _, cache = layer.forward(*arrays, *options)
        found = layer.backward(dout, cache)
        for i in (0, 1, 3, 4):  # the bias has no effect in front of batch normalisation

            def f(a: Any, i: int = i, given: Any = arrays, more: Any = options) -> Any:
                return layer.forward(*given[:i], a, *given[i + 1 :], *more)[0]  # noqa: B023

            assert rel_error(compute_numeric_gradient(f, arrays[i], dout), found[i]) < 1e-7
        assert np.abs(array(found[2])).max() < 1e-12


def test_cell_three_layer_loss(kind: Kind) -> None:
    model = course.ThreeLayerConvNet(dtype=kind.f64)
    X, y = kind.randn(50, 3, 32, 32), kind.labels(10, 50)
    loss, grads = model.loss(X, y)
    assert abs(loss.item() - math.log(10)) < 1e-3
    model.reg = 0.5
    more, _ = model.loss(X, y)
    squares = sum(float((array(model.params[n]) ** 2).sum()) for n in ("W1", "W2", "W3"))
    assert more.item() == pytest.approx(loss.item() + 0.5 * squares, rel=1e-12)
    assert more.item() > loss.item()
    assert set(grads) == set(model.params) == {"W1", "b1", "W2", "b2", "W3", "b3"}


def check_gradients(model: Any, X: Any, y: Any) -> dict[str, float]:
    _, grads = model.loss(X, y)
    assert list(grads) == list(model.params)
    errors = {}
    for name in grads:
        numeric = compute_numeric_gradient(lambda _: model.loss(X, y)[0], model.params[name])
        errors[name] = rel_error(numeric, grads[name])
    return errors


def test_cell_three_layer_gradients(kind: Kind) -> None:
    X, y = kind.randn(2, 3, 16, 16), kind.labels(10, 2)
    model = course.ThreeLayerConvNet(
        num_filters=3,
        filter_size=3,
        input_dims=(3, 16, 16),
        hidden_dim=7,
        weight_scale=5e-2,
        dtype=kind.f64,
    )
    assert max(check_gradients(model, X, y).values()) < 1e-5


def test_cell_deep_loss(kind: Kind) -> None:
    model = course.DeepConvNet(num_filters=[8, 64], max_pools=[0, 1], dtype=kind.f64)
    X, y = kind.randn(50, 3, 32, 32), kind.labels(10, 50)
    loss, _ = model.loss(X, y)
    assert abs(loss.item() - math.log(10)) < 1e-3
    model.reg = 1.0
    more, _ = model.loss(X, y)
    squares = sum(float((array(model.params[n]) ** 2).sum()) for n in ("W1", "W2", "W3"))
    assert more.item() == pytest.approx(loss.item() + squares, rel=1e-12)


def test_cell_deep_gradients(kind: Kind) -> None:
    X, y = kind.randn(2, 3, 8, 8), kind.labels(10, 2)
    for reg, limit in ((0, 1e-5), (3.14, 1e-4)):
        model = course.DeepConvNet(
            input_dims=(3, 8, 8),
            num_classes=10,
            num_filters=[8, 8, 8] if kind.is_torch else [4, 3, 4],
            max_pools=[0, 2],
            reg=reg,
            weight_scale=5e-2,
            dtype=kind.f64,
        )
        assert max(check_gradients(model, X, y).values()) < limit


def test_cell_deep_batchnorm_gradients(kind: Kind) -> None:
    X, y = kind.randn(2, 3, 8, 8), kind.labels(10, 2)
    for reg in (0, 3.14):
        model = course.DeepConvNet(
            input_dims=(3, 8, 8),
            num_classes=10,
            num_filters=[8, 8, 8] if kind.is_torch else [4, 3, 4],
            max_pools=[0, 2],
            reg=reg,
            batchnorm=True,
            weight_scale="kaiming",
            dtype=kind.f64,
        )
        for name, error in check_gradients(model, X, y).items():
            assert error < (1e-2 if name.startswith("b") and reg == 0 else 1e-6), name


def test_cell_batchnorm_training(kind: Kind) -> None:
    a = kind.randn(200, 50) @ kind.randn(50, 60)
    a = kind.array(np.maximum(array(a), 0) @ array(kind.randn(60, 3)))
    assert np.abs(array(a).std(0) - 1).min() > 1
    for gamma, beta in (([1.0, 1.0, 1.0], [0.0, 0.0, 0.0]), ([1.0, 2.0, 3.0], [11.0, 12.0, 13.0])):
        out, _ = course.BatchNorm.forward(a, kind.array(gamma), kind.array(beta), {"mode": "train"})
        np.testing.assert_allclose(array(out).mean(0), beta, atol=1e-10)
        np.testing.assert_allclose(array(out).std(0), gamma, atol=1e-6)


def test_cell_batchnorm_test_mode(kind: Kind) -> None:
    W1, W2 = kind.randn(50, 60), kind.randn(60, 3)
    bn_param: dict[str, Any] = {"mode": "train"}
    gamma, beta = kind.array(np.ones(3)), kind.array(np.zeros(3))

    def activations() -> Any:
        return course.ReLU.forward(kind.randn(200, 50) @ W1)[0] @ W2

    for _ in range(500 if kind.is_torch else 100):
        course.BatchNorm.forward(activations(), gamma, beta, bn_param)
    bn_param["mode"] = "test"
    out, _ = course.BatchNorm.forward(activations(), gamma, beta, bn_param)
    assert np.abs(array(out).mean(0)).max() < 0.2
    assert np.abs(array(out).std(0) - 1).max() < 0.2
    assert isinstance(bn_param["running_mean"], kind.type)


def check_norm(layer: Any, x: Any, gamma: Any, beta: Any, dout: Any, bn_param: Any) -> list[float]:
    _, cache = layer.forward(x, gamma, beta, bn_param)
    found = layer.backward(dout, cache)
    forwards = (
        lambda a: layer.forward(a, gamma, beta, bn_param)[0],
        lambda a: layer.forward(x, a, beta, bn_param)[0],
        lambda a: layer.forward(x, gamma, a, bn_param)[0],
    )
    return [
        rel_error(compute_numeric_gradient(f, a, dout), ours)
        for f, a, ours in zip(forwards, (x, gamma, beta), found, strict=True)
    ]


def test_cell_batchnorm_backward(kind: Kind) -> None:
    x, dout = 5 * kind.randn(4, 5) + 12, kind.randn(4, 5)
    gamma, beta = kind.randn(5), kind.randn(5)
    assert max(check_norm(course.BatchNorm, x, gamma, beta, dout, {"mode": "train"})) < 1e-9


def test_cell_batchnorm_backward_alt(kind: Kind) -> None:
    x, dout = 5 * kind.randn(128, 2048) + 12, kind.randn(128, 2048)
    gamma, beta = kind.randn(2048), kind.randn(2048)
    _, cache = course.BatchNorm.forward(x, gamma, beta, {"mode": "train"})
    first, second = (
        course.BatchNorm.backward(dout, cache),
        course.BatchNorm.backward_alt(dout, cache),
    )
    for a, b in zip(first, second, strict=True):
        assert rel_error(a, b) < 1e-12


def test_cell_spatial_batchnorm(kind: Kind) -> None:
    x = 4 * kind.randn(2, 3, 4, 5) + 10
    bn_param: dict[str, Any] = {"mode": "train"}
    for gamma, beta in (([1.0, 1.0, 1.0], [0.0, 0.0, 0.0]), ([3.0, 4.0, 5.0], [6.0, 7.0, 8.0])):
        out, _ = course.SpatialBatchNorm.forward(x, kind.array(gamma), kind.array(beta), bn_param)
        assert tuple(out.shape) == (2, 3, 4, 5)
        np.testing.assert_allclose(array(out).mean((0, 2, 3)), beta, atol=1e-10)
        np.testing.assert_allclose(array(out).std((0, 2, 3)), gamma, atol=1e-5)


def test_cell_spatial_batchnorm_test_mode(kind: Kind) -> None:
    bn_param: dict[str, Any] = {"mode": "train"}
    gamma, beta = kind.array(np.ones(4)), kind.array(np.zeros(4))
    for _ in range(50):
        x = 2.3 * kind.randn(10, 4, 11, 12) + 13
        course.SpatialBatchNorm.forward(x, gamma, beta, bn_param)
    bn_param["mode"] = "test"
    x = 2.3 * kind.randn(10, 4, 11, 12) + 13
    out, _ = course.SpatialBatchNorm.forward(x, gamma, beta, bn_param)
    assert np.abs(array(out).mean((0, 2, 3))).max() < 0.1
    assert np.abs(array(out).std((0, 2, 3)) - 1).max() < 0.1


def test_cell_spatial_batchnorm_backward(kind: Kind) -> None:
    x, dout = 5 * kind.randn(2, 3, 4, 5) + 12, kind.randn(2, 3, 4, 5)
    gamma, beta = kind.randn(3), kind.randn(3)
    assert max(check_norm(course.SpatialBatchNorm, x, gamma, beta, dout, {"mode": "train"})) < 1e-6


def easy_data(kind: Kind, dtype: Any = np.float32) -> dict[str, Any]:
    """Small images of ten classes, of which fifty can be learned."""
    rng = np.random.default_rng(1)
    y = np.arange(70) % 10
    X = rng.normal(size=(70, 3, 8, 8)).astype(dtype)
    X[np.arange(70), y % 3, y % 8] += 2.0
    data = {"X_train": X[:50], "y_train": y[:50], "X_val": X[50:], "y_val": y[50:]}
    return {name: kind.array(values) for name, values in data.items()}


def test_cell_overfit_small_data(kind: Kind) -> None:
    model = course.DeepConvNet(
        (3, 8, 8), num_filters=[8, 16, 32], max_pools=[0, 1, 2], reg=1e-5,
        weight_scale=1e-1, dtype=kind.f32,
    )  # fmt: skip
    solver = course.Solver(
        model, easy_data(kind), print_every=10, num_epochs=30, batch_size=10,
        update_rule=course.adam, optim_config={"learning_rate": 3e-3}, verbose=False,
    )  # fmt: skip
    solver.train(time_limit=None)
    assert max(solver.train_acc_history) == 1.0
    assert len(solver.loss_history) == 150
    assert len(solver.train_acc_history) == len(solver.val_acc_history) == 31
    assert all(isinstance(p, kind.type) and p.dtype == kind.f32 for p in model.params.values())


def test_cell_overfit_cifar10() -> None:
    """The notebook's own: all of 50 images of CIFAR-10 within 30 epochs."""
    torch = pytest.importorskip("torch")
    folder = os.environ.get("CNNFAST_DATA")
    if not folder or not (Path(folder) / "cifar-10-batches-py").is_dir():
        pytest.skip("CNNFAST_DATA names no folder with cifar-10-batches-py in it")
    course.fix_random_seed(0)
    data = load_cifar10(Path(folder) / "cifar-10-batches-py").take(train=50, val=100)
    small_data = {name: torch.from_numpy(a) for name, a in data.asdict().items()}
    mean = small_data["X_train"].mean((0, 2, 3), keepdim=True)
    for name in ("X_train", "X_val"):
        small_data[name] = small_data[name] - mean
    model = course.DeepConvNet(
        input_dims=small_data["X_train"].shape[1:], num_classes=10, num_filters=[8, 16, 32, 64],
        max_pools=[0, 1, 2, 3], reg=1e-5, weight_scale=1e-1, dtype=torch.float, device="cpu",
    )  # fmt: skip
    solver = course.Solver(
        model, small_data, print_every=10, num_epochs=30, batch_size=10,
        update_rule=course.adam, optim_config={"learning_rate": 3e-3}, device="cpu", verbose=False,
    )  # fmt: skip
    solver.train()
    assert max(solver.train_acc_history) == 1.0


# --- Sizes that the handouts' fast code got wrong


CONVOLUTIONS = {
    "rectangular image": ((2, 3, 5, 9), (4, 3, 3, 3), 1, 1),
    "wide kernel": ((2, 2, 6, 7), (3, 2, 2, 5), 1, 1),
    "tall kernel": ((2, 2, 7, 4), (3, 2, 4, 1), 2, 0),
    "does not divide": ((2, 2, 7, 8), (3, 2, 3, 3), 3, 1),
    "stride over kernel": ((2, 1, 8, 7), (2, 1, 2, 2), 3, 0),
    "batch 0": ((0, 2, 5, 5), (3, 2, 3, 3), 1, 1),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_convolutions(name: str, dtype: Any, kind: Kind) -> None:
    x_shape, w_shape, stride, pad = CONVOLUTIONS[name]
    rng = np.random.default_rng(2)
    x, w, b = (rng.normal(size=s).astype(dtype) for s in (x_shape, w_shape, w_shape[:1]))
    right = naive.conv2d(x, w, b, stride, pad)
    dout = rng.normal(size=right.shape).astype(dtype)
    gradients = naive.conv2d_backward(dout, x, w, stride, pad)
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype is np.float32 else {"rtol": 1e-12, "atol": 1e-12}
    for layer in (course.Conv, course.FastConv):
        given = [kind.array(a) for a in (x, w, b, dout)]
        out, cache = layer.forward(*given[:3], {"stride": stride, "pad": pad})
        np.testing.assert_allclose(array(out), right, **close)
        assert out.dtype == given[0].dtype
        for ours, reference in zip(layer.backward(given[3], cache), gradients, strict=True):
            assert isinstance(ours, kind.type)
            np.testing.assert_allclose(array(ours), reference, **close)
        for a, before in zip(given, (x, w, b, dout), strict=True):
            np.testing.assert_array_equal(array(a), before)


POOLINGS = {
    "overlapping": ((2, 3, 7, 8), (3, 2, 1)),
    "gaps": ((1, 2, 8, 9), (2, 3, 4)),
    "does not divide": ((2, 2, 5, 7), (2, 2, 2)),
    "batch 0": ((0, 2, 4, 4), (2, 2, 2)),
}


@pytest.mark.parametrize("name", POOLINGS)
def test_poolings(name: str, kind: Kind) -> None:
    shape, (height, width, stride) = POOLINGS[name]
    pool_param = {"pool_height": height, "pool_width": width, "stride": stride}
    rng = np.random.default_rng(2)
    x = rng.normal(size=shape)
    right, indices = naive.max_pool2d(x, (height, width), stride, return_indices=True)
    dout = rng.normal(size=right.shape)
    dx = naive.max_pool2d_backward(dout, indices, shape)
    for layer in (course.MaxPool, course.FastMaxPool):
        given = kind.array(x)
        out, cache = layer.forward(given, pool_param)
        np.testing.assert_array_equal(array(out), right)
        np.testing.assert_allclose(array(layer.backward(kind.array(dout), cache)), dx, rtol=1e-14)
        np.testing.assert_array_equal(array(given), x)


def test_ties_go_to_the_first(kind: Kind) -> None:
    x, dout = kind.array(np.ones((1, 1, 2, 4))), kind.array([[[[3.0, 5.0]]]])
    for layer in (course.MaxPool, course.FastMaxPool):
        _, cache = layer.forward(x, POOL)
        dx = array(layer.backward(dout, cache))
        np.testing.assert_array_equal(dx, [[[[3, 0, 5, 0], [0, 0, 0, 0]]]])


def test_layouts_and_lists() -> None:
    rng = np.random.default_rng(3)
    x, w, b = rng.normal(size=(2, 3, 6, 7)), rng.normal(size=(4, 3, 3, 2)), rng.normal(size=4)
    right = naive.conv2d(x, w, b, 2, 1)
    for laid in (np.asfortranarray, lambda a: a.tolist(), lambda a: a[..., ::-1].copy()[..., ::-1]):
        for layer in (course.Conv, course.FastConv):
            out, cache = layer.forward(laid(x), laid(w), laid(b), {"stride": 2, "pad": 1})
            np.testing.assert_allclose(out, right, rtol=1e-12)
            dx, _, _ = layer.backward(laid(right), cache)
            reference = naive.conv2d_backward(right, x, w, 2, 1)[0]
            np.testing.assert_allclose(dx, reference, rtol=1e-12, atol=1e-12)
        for pool in (course.MaxPool, course.FastMaxPool):
            out, cache = pool.forward(laid(x), POOL)
            np.testing.assert_array_equal(out, naive.max_pool2d(x, 2))
            assert pool.backward(laid(out), cache).shape == x.shape


def test_integers_count_as_float64() -> None:
    x, w = np.arange(16).reshape(1, 1, 4, 4), np.ones((1, 1, 2, 2), int)
    out, cache = course.FastConv.forward(x, w, np.array([1]), {"stride": 2, "pad": 0})
    np.testing.assert_array_equal(out, [[[[11.0, 19.0], [43.0, 51.0]]]])
    assert out.dtype == np.float64
    assert course.FastConv.backward(np.ones_like(out), cache)[0].sum() == 16
    bn_param: dict[str, Any] = {"mode": "train"}
    y, _ = course.BatchNorm.forward([[1], [3]], [1], [0], bn_param)
    np.testing.assert_allclose(y, [[-1.0], [1.0]], atol=1e-5)


def test_linear_gradients_are_of_one_dtype(kind: Kind) -> None:
    x, w, b = (kind.array(np.ones(shape)) for shape in ((3, 2, 2), (4, 5), (5,)))
    _, cache = course.Linear.forward(x, w, b)
    for dtype in (np.int64, np.float32):
        gradients = course.Linear.backward(kind.array(np.ones((3, 5), dtype)), cache)
        assert [g.dtype for g in gradients] == [x.dtype] * 3
        np.testing.assert_array_equal(array(gradients[2]), 3)


def test_linear_mixes_kinds() -> None:
    torch = pytest.importorskip("torch")
    x, w, b, dout = np.ones((3, 4)), np.ones((4, 5)), np.ones(5), np.ones((3, 5))
    for of_pass, upstream in ((torch.from_numpy, np.asarray), (np.asarray, torch.from_numpy)):
        _, cache = course.Linear.forward(*map(of_pass, (x, w, b)))
        for ours, right in zip(
            course.Linear.backward(upstream(dout), cache), (5, 3, 3), strict=True
        ):
            assert isinstance(ours, torch.Tensor)
            np.testing.assert_array_equal(array(ours), right)


def test_linear_refuses_by_name() -> None:
    _, cache = course.Linear.forward(np.ones((3, 4)), np.ones((4, 5)), np.ones(5))
    for shape in ((3, 4), (2, 5), (5,)):
        with pytest.raises(ValueError, match=r"dy must have shape \(3, 5\), not"):
            course.Linear.backward(np.ones(shape), cache)
    with pytest.raises(ValueError, match=r"^Linear: x must have shape"):
        course.Linear.forward(1.0, np.ones((1, 5)), np.ones(5))


def test_tensors_that_require_grad() -> None:
    torch = pytest.importorskip("torch")
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    w, b = torch.nn.Parameter(torch.randn(3, 3, 3, 3)), torch.nn.Parameter(torch.zeros(3))
    conv_param, bn_param = {"stride": 1, "pad": 1}, {"mode": "train"}
    ones = torch.ones(3, requires_grad=True)
    for layer, arguments in (
        (course.Conv, (x, w, b, conv_param)),
        (course.FastConv, (x, w, b, conv_param)),
        (course.MaxPool, (x, POOL)),
        (course.FastMaxPool, (x, POOL)),
        (course.ReLU, (x,)),
        (course.Dropout, (x, {"mode": "train", "p": 0.5})),
        (course.SpatialBatchNorm, (x, ones, ones, bn_param)),
        (course.Conv_BatchNorm_ReLU_Pool, (x, w, b, ones, ones, conv_param, bn_param, POOL)),
    ):
        out, cache = layer.forward(*arguments)
        assert not out.requires_grad
        found = layer.backward(torch.ones_like(out).requires_grad_(), cache)
        for gradient in found if isinstance(found, tuple) else (found,):
            assert not gradient.requires_grad
    loss, dx = course.softmax_loss(torch.zeros(2, 4, requires_grad=True), torch.tensor([0, 3]))
    assert loss.item() == pytest.approx(math.log(4))
    assert not dx.requires_grad
    assert not course.adam(w, w)[0].requires_grad


def test_portable_on_tensors() -> None:
    """The method that tensors on other devices go through gives the same network."""
    torch = pytest.importorskip("torch")
    course.fix_random_seed(0)
    X = torch.randn(4, 3, 7, 9, dtype=torch.float64)
    y = torch.tensor([0, 3, 2, 1])
    options = {"num_filters": [4, 5], "max_pools": [1], "num_classes": 4, "reg": 0.1}
    model = course.DeepConvNet((3, 7, 9), batchnorm=True, weight_scale="kaiming",
                               dtype=torch.float64, **options)  # fmt: skip
    loss, grads = model.loss(X, y)
    with cnnfast.use("portable"), cnnfast.trace() as ran:
        again, same = model.loss(X, y)
        scores = model.loss(X)
    assert {r.method for r in ran} == {"portable"}
    assert isinstance(scores, torch.Tensor)
    assert again.item() == pytest.approx(loss.item(), rel=1e-12)
    for name, gradient in grads.items():
        np.testing.assert_allclose(same[name].numpy(), gradient.numpy(), rtol=1e-9, atol=1e-12)


def test_layers_on_other_devices() -> None:
    xs = pytest.importorskip("array_api_strict")
    device = xs.Device("device1")

    def there(a: np.ndarray) -> Any:
        return xs.asarray(a, device=device)

    rng = np.random.default_rng(6)
    x, w, b = rng.normal(size=(2, 3, 5, 6)), rng.normal(size=(4, 3, 3, 3)), rng.normal(size=4)
    gamma, beta = rng.normal(size=4), rng.normal(size=4)
    fc = rng.normal(size=(4 * 2 * 3, 5)), rng.normal(size=5)
    conv_param = {"stride": 1, "pad": 1}

    def run(put: Callable[[np.ndarray], Any]) -> list[Any]:
        bn_param: dict[str, Any] = {"mode": "train"}
        found: list[Any] = []
        for mode in ("train", "test"):
            bn_param["mode"] = mode
            arrays = map(put, (x, w, b, gamma, beta))
            h, block = course.Conv_BatchNorm_ReLU_Pool.forward(*arrays, conv_param, bn_param, POOL)
            scores, last = course.Linear_ReLU.forward(h, *map(put, fc))
            dh, *gradients = course.Linear_ReLU.backward(scores, last)
            found += [scores, *gradients, *course.Conv_BatchNorm_ReLU_Pool.backward(dh, block)]
        for layer in (course.Conv, course.MaxPool):
            options = (conv_param,) if layer is course.Conv else (POOL,)
            arguments = map(put, (x, w, b) if layer is course.Conv else (x,))
            out, cache = layer.forward(*arguments, *options)
            gradients = layer.backward(out, cache)
            found += [out, *(gradients if isinstance(gradients, tuple) else (gradients,))]
        return [*found, bn_param["running_mean"], bn_param["running_var"]]

    here = run(lambda a: a)
    with cnnfast.trace() as ran:
        elsewhere = run(there)
    assert {r.method for r in ran} == {"portable"}
    for a, b in zip(here, elsewhere, strict=True):
        assert b.device == device
        back = np.asarray(xs.asarray(b, device=xs.Device("CPU_DEVICE")))
        np.testing.assert_allclose(back, a, rtol=1e-9, atol=1e-11)


# --- Batch normalisation and dropout


def test_running_values_by_hand(kind: Kind) -> None:
    """The variance kept is the sample's own: of (1, 3, 5), 8 / 3 and not 4."""
    x = kind.array([[1.0], [3.0], [5.0]])
    mean, var = kind.array([10.0]), kind.array([2.0])
    bn_param = {"mode": "train", "momentum": 0.75, "running_mean": mean, "running_var": var}
    course.BatchNorm.forward(x, kind.array([1.0]), kind.array([0.0]), bn_param)
    np.testing.assert_allclose(array(bn_param["running_mean"]), [0.75 * 10 + 0.25 * 3], rtol=1e-15)
    np.testing.assert_allclose(array(bn_param["running_var"]), [1.5 + 2 / 3], rtol=1e-15)
    assert isinstance(bn_param["running_var"], kind.type)
    assert (float(mean[0]), float(var[0])) == (10.0, 2.0)  # what was given is not written to
    fresh: dict[str, Any] = {"mode": "train"}
    course.BatchNorm.forward(x, kind.array([1.0]), kind.array([0.0]), fresh)
    np.testing.assert_allclose(array(fresh["running_mean"]), [0.3], rtol=1e-13)
    np.testing.assert_allclose(array(fresh["running_var"]), [0.8 / 3], rtol=1e-13)


def test_test_mode_by_hand_and_its_gradient(kind: Kind) -> None:
    x, dout = kind.randn(3, 2, 2, 4), kind.randn(3, 2, 2, 4)
    gamma, beta = kind.array([2.0, 3.0]), kind.array([0.5, -1.0])
    bn_param = {
        "mode": "test",
        "eps": 1.0,
        "running_mean": kind.array([1.0, 2.0]),
        "running_var": kind.array([3.0, 8.0]),
    }
    out, _ = course.SpatialBatchNorm.forward(x, gamma, beta, bn_param)
    right = np.stack([(array(x)[:, 0] - 1) + 0.5, array(x)[:, 1] - 2 - 1], axis=1)
    np.testing.assert_allclose(array(out), right, rtol=1e-13, atol=1e-14)
    assert array(bn_param["running_mean"]).tolist() == [1.0, 2.0]
    assert max(check_norm(course.SpatialBatchNorm, x, gamma, beta, dout, bn_param)) < 1e-8


def test_batchnorm_refuses_by_name() -> None:
    x, one = np.ones((2, 3)), np.ones(3)
    with pytest.raises(ValueError, match='mode must be "train" or "test", not \'eval\''):
        course.BatchNorm.forward(x, one, one, {"mode": "eval"})
    with pytest.raises(ValueError, match=r"batchnorm_forward: x must have shape \(N, D\)"):
        course.BatchNorm.forward(x[:, :, None, None], one, one, {"mode": "train"})
    with pytest.raises(ValueError, match="spatial_batchnorm_forward: x must have shape"):
        course.SpatialBatchNorm.forward(x, one, one, {"mode": "train"})
    bn_param: dict[str, Any] = {"mode": "train", "running_var": one}
    course.BatchNorm.forward(x[:0], one, one, bn_param)
    np.testing.assert_array_equal(bn_param["running_var"], one)


def test_dropout(kind: Kind) -> None:
    x = kind.array(np.ones((100, 100)))
    train = {"mode": "train", "p": 0.3, "seed": 5}
    out, cache = course.Dropout.forward(x, train)
    again, _ = course.Dropout.forward(x, train)
    np.testing.assert_array_equal(array(out), array(again))
    assert set(np.unique(array(out)).round(12)) == {0.0, round(1 / 0.7, 12)}
    assert abs((array(out) == 0).mean() - 0.3) < 0.03
    np.testing.assert_array_equal(array(course.Dropout.backward(x, cache)), array(out))
    out, cache = course.Dropout.forward(x, {"mode": "test", "p": 0.3})
    np.testing.assert_array_equal(array(out), array(x))
    assert cache[1] is None
    np.testing.assert_array_equal(array(course.Dropout.backward(out, cache)), array(x))
    masks = []
    for number in (1, 1, 2):
        course.fix_random_seed(number)
        masks.append(array(course.Dropout.forward(x, {"mode": "train", "p": 0.5})[1][1]))
    assert np.array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[0], masks[2])


# --- Losses and update rules


def test_losses_by_hand(kind: Kind) -> None:
    scores, y = kind.array([[0.0, 0.0], [0.0, math.log(3)]]), kind.array([1, 0])
    loss, dx = course.softmax_loss(scores, y)
    assert loss.item() == pytest.approx((math.log(2) + math.log(4)) / 2, rel=1e-14)
    np.testing.assert_allclose(array(dx), [[0.25, -0.25], [-0.375, 0.375]], rtol=1e-14)
    loss, dx = course.svm_loss(kind.array([[1.0, 1.5, -3.0]]), kind.array([0]))
    assert loss.item() == 1.5
    assert array(dx).tolist() == [[-1.0, 1.0, 0.0]]
    assert isinstance(loss, kind.type if kind.is_torch else float)
    with pytest.raises(ValueError, match="labels run from 0 to 2, scores has 2 classes"):
        course.softmax_loss(scores, kind.array([0, 2]))


def written_out(rule: str, w: Any, dw: Any, c: dict[str, Any]) -> Any:
    """The course's formulas, plainly."""
    lr = c["learning_rate"]
    if rule == "sgd":
        return w - lr * dw
    if rule == "sgd_momentum":
        c["velocity"] = c["momentum"] * c["velocity"] - lr * dw
        return w + c["velocity"]
    if rule == "rmsprop":
        c["cache"] = c["decay_rate"] * c["cache"] + (1 - c["decay_rate"]) * dw**2
        return w - lr * dw / (np.sqrt(c["cache"]) + c["epsilon"])
    c["t"] += 1
    c["m"] = c["beta1"] * c["m"] + (1 - c["beta1"]) * dw
    c["v"] = c["beta2"] * c["v"] + (1 - c["beta2"]) * dw**2
    m, v = c["m"] / (1 - c["beta1"] ** c["t"]), c["v"] / (1 - c["beta2"] ** c["t"])
    return w - lr * m / (np.sqrt(v) + c["epsilon"])


RULES: dict[str, dict[str, Any]] = {
    "sgd": {"learning_rate": 1e-2},
    "sgd_momentum": {"learning_rate": 1e-2, "momentum": 0.9, "velocity": 0.0},
    "rmsprop": {"learning_rate": 1e-2, "decay_rate": 0.99, "epsilon": 1e-8, "cache": 0.0},
    "adam": {
        "learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8,
        "m": 0.0, "v": 0.0, "t": 0,
    },
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_update_rules(rule: str, kind: Kind) -> None:
    rng = np.random.default_rng(8)
    right, expected = rng.normal(size=(4, 5)), dict(RULES[rule])
    w, config = kind.array(right), None
    for step in range(4):
        dw = rng.normal(size=(4, 5))
        before, gradient = array(w).copy(), kind.array(dw)
        next_w, config = getattr(course, rule)(w, gradient, config)
        right = written_out(rule, right, dw, expected)
        np.testing.assert_allclose(array(next_w), right, rtol=1e-12)
        np.testing.assert_array_equal(array(w), before)
        np.testing.assert_array_equal(array(gradient), dw)
        assert set(config) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(array(config[name]), value, rtol=1e-12)
        w = next_w
        if step == 1:
            config["learning_rate"] = expected["learning_rate"] = 3e-3
    assert isinstance(w, kind.type)
    assert all(isinstance(v, kind.type | float | int) for v in config.values())


@pytest.mark.parametrize(
    ("rule", "state"), [("sgd_momentum", "velocity"), ("rmsprop", "cache"), ("adam", "m v")]
)
def test_update_rules_go_on_from_a_given_state(rule: str, state: str, kind: Kind) -> None:
    """As the checks of the course's earlier notebook do it, with what was given left as it is."""
    rng = np.random.default_rng(9)
    w, dw = rng.normal(size=(3, 2)), rng.normal(size=(3, 2))
    given = {name: rng.random((3, 2)) for name in state.split()}
    expected = {**RULES[rule], **given} | ({"t": 5} if rule == "adam" else {})
    config = {n: kind.array(v) if isinstance(v, np.ndarray) else v for n, v in expected.items()}
    kept = {name: config[name] for name in given}
    next_w, config = getattr(course, rule)(kind.array(w), kind.array(dw), config)
    np.testing.assert_allclose(array(next_w), written_out(rule, w, dw, expected), rtol=1e-12)
    for name in given:
        np.testing.assert_allclose(array(config[name]), expected[name], rtol=1e-12)
        np.testing.assert_array_equal(array(kept[name]), given[name])


def test_momentum_may_be_zero() -> None:
    w, config = course.sgd_momentum(np.ones(2), np.ones(2), {"learning_rate": 0.5, "momentum": 0.0})
    np.testing.assert_array_equal(w, [0.5, 0.5])
    np.testing.assert_array_equal(config["velocity"], [-0.5, -0.5])
    w, _ = course.sgd_momentum(w, np.ones(2), config)
    np.testing.assert_array_equal(w, [0.0, 0.0])


# --- Models


@pytest.mark.parametrize("batchnorm", [False, True])
def test_deep_net_is_that_of_models(batchnorm: bool, kind: Kind) -> None:
    """The same scores, loss and gradients as the layers of `cnnfast.nn` give."""
    sizes = {"num_filters": [4, 6, 5], "max_pools": [2, 0], "num_classes": 7, "reg": 0.3}
    own = course.DeepConvNet((2, 9, 11), batchnorm=batchnorm, weight_scale="kaiming",
                             dtype=kind.f64, **sizes)  # fmt: skip
    other = models.DeepConvNet((2, 9, 11), batchnorm=batchnorm, dtype=np.float64, **sizes)
    names = {"weight": "W", "bias": "b"}
    course_name = {}
    for name in other.params:
        layer, _, what = name.partition(".")
        number = layer[-1] if layer != "fc" else "4"
        course_name[name] = (
            {"weight": "gamma", "bias": "beta"} if layer.startswith("bn") else names
        )[what] + number
        value = array(own.params[course_name[name]])
        other.params[name] = value.T if layer == "fc" and what == "weight" else value
    X, y = kind.randn(6, 2, 9, 11), kind.labels(7, 6)
    loss, grads = own.loss(X, y)
    right, gradients = other.loss(array(X), array(y))
    assert loss.item() == pytest.approx(right, rel=1e-12)
    assert set(course_name.values()) == set(grads)
    for name, gradient in gradients.items():
        ours = array(grads[course_name[name]])
        ours = ours.T if name == "fc.weight" else ours
        np.testing.assert_allclose(ours, gradient, rtol=1e-8, atol=1e-11)
    assert (own.num_layers, own.max_pools, own.batchnorm) == (4, [2, 0], batchnorm)
    assert len(own.bn_params) == 3 * batchnorm
    if not batchnorm:
        np.testing.assert_allclose(array(own.loss(X)), other.loss(array(X)), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("depth", [1, 2, 7])
@pytest.mark.parametrize("batchnorm", [False, True])
def test_depth_and_number_of_parameters(depth: int, batchnorm: bool) -> None:
    model = course.DeepConvNet((1, 4, 4), [3] * depth, [], batchnorm)
    assert len(model.params) == (4 if batchnorm else 2) * depth + 2
    assert model.loss(np.zeros((2, 1, 4, 4))).shape == (2, 10)
    for name, p in model.params.items():
        assert p.dtype == np.float32
        if name.startswith(("b", "gamma")):
            np.testing.assert_array_equal(p, 1.0 if name.startswith("gamma") else 0.0)


def test_modes_and_running_values(kind: Kind) -> None:
    model = course.DeepConvNet((3, 4, 4), [4], [], True, weight_scale="kaiming", dtype=kind.f64)
    X, y = kind.randn(8, 3, 4, 4), kind.labels(10, 8)
    model.loss(X, y)
    bn_param = model.bn_params[0]
    assert bn_param["mode"] == "train"
    mean = bn_param["running_mean"]
    assert isinstance(mean, kind.type)
    assert mean.dtype == kind.f64
    before = array(mean).copy()
    assert np.abs(before).max() > 0
    scores = model.loss(X)
    assert bn_param["mode"] == "test"
    np.testing.assert_array_equal(array(bn_param["running_mean"]), before)
    np.testing.assert_allclose(array(model.loss(X[:3])), array(scores)[:3], rtol=1e-12)


def test_one_value_to_normalise_gives_beta(kind: Kind) -> None:
    x, gamma, beta = kind.randn(1, 3), kind.randn(3), kind.randn(3)
    bn_param: dict[str, Any] = {"mode": "train"}
    y, cache = course.BatchNorm.forward(x, gamma, beta, bn_param)
    np.testing.assert_allclose(array(y)[0], array(beta))
    np.testing.assert_allclose(array(bn_param["running_mean"]), 0.1 * array(x)[0])
    np.testing.assert_array_equal(array(bn_param["running_var"]), 0)
    dx, _, dbeta = course.BatchNorm.backward(kind.array(np.ones((1, 3))), cache)
    np.testing.assert_array_equal(array(dx), 0)
    np.testing.assert_array_equal(array(dbeta), 1)


def test_running_values_may_be_replaced(kind: Kind) -> None:
    """As by who loads a model that was saved."""
    X, y = kind.randn(4, 3, 8, 8), kind.labels(10, 4)
    sizes: dict[str, Any] = {"num_filters": [4, 4], "max_pools": [1], "batchnorm": True}
    old, new = (
        course.DeepConvNet((3, 8, 8), **sizes, weight_scale="kaiming", dtype=X.dtype)
        for _ in range(2)
    )
    old.loss(X, y)
    new.params = dict(old.params)
    new.bn_params = [dict(bn_param) for bn_param in old.bn_params]
    np.testing.assert_array_equal(array(new.loss(X)), array(old.loss(X)))
    new.bn_params = [{"mode": "train"} for _ in range(2)]
    new.loss(X, y)
    for fresh, used in zip(new.bn_params, old.bn_params, strict=True):
        np.testing.assert_array_equal(array(fresh["running_var"]), array(used["running_var"]))


def test_models_of_each_kind_take_batches_of_each() -> None:
    torch = pytest.importorskip("torch")
    X = np.random.default_rng(0).normal(size=(2, 1, 5, 6))
    y = np.array([1, 2])
    for dtype in (np.float32, np.float64, "float32", torch.float32, torch.float64):
        tensors = isinstance(dtype, torch.dtype)
        for model in (
            course.ThreeLayerConvNet((1, 5, 6), 3, 3, 8, dtype=dtype, device="cpu"),
            course.DeepConvNet((1, 5, 6), [3], [0], dtype=dtype),
        ):
            assert model.dtype is dtype
            for given, labels in (
                (X, y),
                (X.astype(np.float32), y.tolist()),
                (torch.from_numpy(X), torch.from_numpy(y)),
                (torch.from_numpy(X).float().requires_grad_(), torch.from_numpy(y).int()),
                (X.tolist(), y),
            ):
                scores = model.loss(given)
                assert isinstance(scores, torch.Tensor) == isinstance(given, torch.Tensor)
                loss, grads = model.loss(given, labels)
                assert isinstance(loss.item(), float)
                for name, p in model.params.items():
                    assert isinstance(p, torch.Tensor) == tensors
                    assert type(grads[name]) is type(p)
                    assert grads[name].dtype == p.dtype
                    assert grads[name].shape == p.shape


def test_three_layer_sizes() -> None:
    model = course.ThreeLayerConvNet((3, 7, 9), num_filters=4, filter_size=4, hidden_dim=6)
    shapes = {name: p.shape for name, p in model.params.items()}
    assert shapes == {
        "W1": (4, 3, 4, 4), "b1": (4,), "W2": (4 * 3 * 4, 6), "b2": (6,), "W3": (6, 10), "b3": (10,)
    }  # fmt: skip
    assert model.loss(np.zeros((2, 3, 7, 9))).shape == (2, 10)


def test_parameters_may_be_replaced(kind: Kind) -> None:
    """As the course's own Solver does."""
    model = course.ThreeLayerConvNet((1, 4, 4), 2, 3, 4, weight_scale=0.1, dtype=kind.f64)
    X = kind.randn(3, 1, 4, 4)
    scores = array(model.loss(X))
    model.params = {name: p + 0 for name, p in model.params.items()}
    model.params["b3"] = model.params["b3"] + 1
    np.testing.assert_allclose(array(model.loss(X)), scores + 1, rtol=1e-12)


def test_models_can_be_copied(kind: Kind) -> None:
    model = course.DeepConvNet((1, 4, 4), [2], [0], True, dtype=kind.f64)
    X, y = kind.randn(3, 1, 4, 4), kind.labels(10, 3)
    model.loss(X, y)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(array(again.loss(X)), array(model.loss(X)))
    again.loss(X + 1, y)  # the batch norm of the copy is the copy's
    before = array(model.bn_params[0]["running_mean"])
    assert not np.array_equal(array(again.bn_params[0]["running_mean"]), before)
    assert again.loss(X, y)[0].item() == model.loss(X, y)[0].item()


def test_seeds(kind: Kind) -> None:
    def start(number: int | None, **options: Any) -> Any:
        if number is not None:
            course.fix_random_seed(number)
        return array(course.DeepConvNet((1, 4, 4), [2], [], dtype=kind.f32, **options).params["W1"])

    assert np.array_equal(start(1), start(1))
    assert not np.array_equal(start(1), start(2))
    assert not np.array_equal(start(None), start(None))
    given = (start(None, rng=np.random.default_rng(4)) for _ in range(2))
    assert np.array_equal(*given)
    if kind.is_torch:
        kind.xp.manual_seed(3)
        first = start(None)
        kind.xp.manual_seed(3)
        assert np.array_equal(first, start(None))


def test_kaiming_initializer(kind: Kind) -> None:
    for K, relu, fan_in in ((None, True, 300), (None, False, 300), (5, True, 2500)):
        Din = 300 if K is None else 100
        weight = course.kaiming_initializer(Din, 200, K, relu, dtype=kind.f64)
        assert isinstance(weight, kind.type)
        assert weight.dtype == kind.f64
        assert tuple(weight.shape) == ((300, 200) if K is None else (200, 100, 5, 5))
        assert array(weight).flags.c_contiguous
        scale = math.sqrt((2 if relu else 1) / fan_in)
        assert abs(array(weight).std() / scale - 1) < 0.02
        assert abs(array(weight).mean()) < 0.02 * scale
    assert course.kaiming_initializer(2, 3).dtype == np.float32


def test_weight_scales() -> None:
    course.fix_random_seed(0)
    model = course.DeepConvNet((3, 8, 8), [64, 64], [], weight_scale="kaiming", batchnorm=True)
    for name, variance in (("W1", 2 / 27), ("W2", 2 / 576), ("W3", 1 / 4096)):
        assert model.params[name].var() == pytest.approx(variance, rel=0.1)
    model = course.ThreeLayerConvNet(weight_scale=0.2)
    for name in ("W1", "W2", "W3"):
        assert model.params[name].std() == pytest.approx(0.2, rel=0.1)


def test_models_refuse_by_name() -> None:
    with pytest.raises(ValueError, match=r"DeepConvNet: device='cuda' takes a dtype of PyTorch's"):
        course.DeepConvNet(device="cuda")
    with pytest.raises(TypeError, match="ThreeLayerConvNet: dtype must be"):
        course.ThreeLayerConvNet(dtype=np.int64)
    with pytest.raises(ValueError, match="DeepConvNet: max_pools must be"):
        course.DeepConvNet(num_filters=[8], max_pools=[1])
    with pytest.raises(ValueError, match="DeepConvNet: weight_scale must be"):
        course.DeepConvNet(weight_scale="xavier")
    for sizes in ((0, 3), (3, 0), (3, 3, 0)):
        with pytest.raises(ValueError, match=r"kaiming_initializer: (Din|Dout|K) must be"):
            course.kaiming_initializer(*sizes)
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="DeepConvNet: dtype must be"):
        course.DeepConvNet(dtype=torch.int64)
    with pytest.raises(TypeError, match="kaiming_initializer: dtype must be"):
        course.kaiming_initializer(2, 3, dtype=torch.bfloat16)


# --- Solver


class Own:
    """A student's model: plain tensors or arrays, and no other help from the package."""

    def __init__(self, kind: Kind, wanted: type) -> None:
        self.params = {"W": kind.array(np.zeros((2, 3))), "b": kind.array(np.zeros(3))}
        self.wanted = wanted

    def loss(self, X: Any, y: Any = None) -> Any:
        assert isinstance(X, self.wanted)
        scores = X @ self.params["W"] + self.params["b"]
        if y is None:
            return scores
        assert isinstance(y, self.wanted)
        loss, dscores = course.softmax_loss(scores, y)
        return loss, {"W": X.T @ dscores, "b": dscores.sum(0)}


def points(kind: Kind) -> dict[str, Any]:
    rng = np.random.default_rng(2)
    y = np.arange(90) % 3
    X = rng.normal(size=(90, 2)) * 0.3 + np.array([[0.0, 2.0], [2.0, 0.0], [-2.0, -2.0]])[y]
    data = {"X_train": X[:60], "y_train": y[:60], "X_val": X[60:], "y_val": y[60:]}
    return {name: kind.array(a) for name, a in data.items()}


@pytest.mark.parametrize("rule", RULES)
def test_solver_trains_a_students_model(rule: str, kind: Kind) -> None:
    model, data = Own(kind, kind.type), points(kind)
    solver = course.Solver(
        model, data, update_rule=getattr(course, rule), optim_config={"learning_rate": 5e-2},
        num_epochs=8, batch_size=10, verbose=False,
    )  # fmt: skip
    solver.train()
    assert solver.check_accuracy(data["X_val"], data["y_val"]) > 0.95
    assert solver.loss_history[-1] < solver.loss_history[0]
    assert len(solver.loss_history) == 48
    assert len(solver.val_acc_history) == 9
    assert solver.best_val_acc == max(solver.val_acc_history)
    for name, p in model.params.items():
        assert isinstance(solver.best_params[name], kind.type)
        np.testing.assert_array_equal(array(p), array(solver.best_params[name]))


def test_solver_steps_are_the_rule_written_out(kind: Kind) -> None:
    """With one batch in an epoch the order of the examples does not matter."""
    model, data = Own(kind, kind.type), points(kind)
    solver = course.Solver(
        model, data, update_rule=course.sgd_momentum, num_epochs=4, batch_size=60, lr_decay=0.5,
        optim_config={"learning_rate": 0.1}, verbose=False,
    )  # fmt: skip
    solver.train(return_best_params=False)
    other, configs = Own(kind, kind.type), {}
    for epoch in range(4):
        _, grads = other.loss(data["X_train"], data["y_train"])
        for name, p in other.params.items():
            config = configs.setdefault(name, {**RULES["sgd_momentum"]})
            config["learning_rate"] = 0.1 * 0.5**epoch
            right = written_out("sgd_momentum", array(p), array(grads[name]), config)
            other.params[name] = kind.array(right)
    for name, p in model.params.items():
        np.testing.assert_allclose(array(p), array(other.params[name]), rtol=1e-11, atol=1e-13)
    assert solver.optim_configs["W"]["learning_rate"] == pytest.approx(0.1 * 0.5**3)
    assert set(solver.optim_configs["W"]) == {"learning_rate", "momentum", "velocity"}


def test_solver_decays_a_default_learning_rate(kind: Kind) -> None:
    solver = course.Solver(
        Own(kind, kind.type), points(kind), num_epochs=3, batch_size=30, lr_decay=0.1, verbose=False
    )
    solver.train()
    assert solver.optim_configs["b"]["learning_rate"] == pytest.approx(1e-4)


def test_solver_mixes_kinds() -> None:
    """Tensors train a model of arrays, and arrays one of tensors."""
    torch = pytest.importorskip("torch")
    for data, dtype in ((Kind("torch"), np.float32), (Kind("numpy"), torch.float32)):
        model = course.ThreeLayerConvNet((3, 8, 8), 4, 3, 8, weight_scale=0.1, dtype=dtype)
        solver = course.Solver(
            model, easy_data(data), update_rule=course.adam, optim_config={"learning_rate": 1e-2},
            num_epochs=6, batch_size=10, verbose=False, device=torch.device("cpu"),
        )  # fmt: skip
        solver.train()
        assert isinstance(model.params["W1"], torch.Tensor) == (dtype is torch.float32)
        assert np.mean(solver.loss_history[-5:]) < 0.9 * np.mean(solver.loss_history[:5])


def test_solver_prints_if_it_is_to(kind: Kind, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"num_epochs": 2, "batch_size": 10, "optim_config": {"learning_rate": 0.1}}
    course.Solver(Own(kind, kind.type), points(kind), verbose=False, **options).train()
    assert capsys.readouterr().out == ""
    course.Solver(Own(kind, kind.type), points(kind), print_every=5, **options).train()
    lines = capsys.readouterr().out.splitlines()
    losses = [line for line in lines if "loss" in line]
    assert [line.split(":")[0] for line in losses] == [f"step {i} of 12" for i in (1, 6, 11)]
    accuracies = [line for line in lines if "accuracy" in line]
    assert [line.split(":")[0] for line in accuracies] == [f"epoch {i} of 2" for i in (0, 1, 2)]


def test_solver_time_limit(kind: Kind) -> None:
    solver = course.Solver(
        Own(kind, kind.type), points(kind), num_epochs=10**6, batch_size=10, verbose=False
    )
    solver.train(time_limit=0.05)
    assert 1 <= len(solver.loss_history) < 6 * 10**6


def test_solver_goes_on_after_a_loss_that_is_no_number(kind: Kind) -> None:
    """The notebook starts a network with weights so large that its loss is NaN."""
    model = Own(kind, kind.type)
    model.params["W"] = model.params["W"] + float("nan")
    solver = course.Solver(model, points(kind), num_epochs=2, batch_size=30, verbose=False)
    solver.train()
    assert len(solver.loss_history) == 4
    assert np.isnan(solver.loss_history).all()


def test_solver_shuffles_by_the_seed(kind: Kind) -> None:
    histories = []
    for number in (1, 1, 2):
        course.fix_random_seed(number)
        options = {"num_epochs": 1, "batch_size": 7, "optim_config": {"learning_rate": 0.5}}
        solver = course.Solver(Own(kind, kind.type), points(kind), verbose=False, **options)
        solver.train()
        histories.append(solver.loss_history)
    assert histories[0] == histories[1] != histories[2]


def test_solver_refuses_by_name() -> None:
    numpy = Kind("numpy")
    with pytest.raises(TypeError, match="Solver: update_rule must be a function, got 'adam'"):
        course.Solver(Own(numpy, np.ndarray), points(numpy), update_rule="adam")
    with pytest.raises(TypeError, match="num_epoch"):
        course.Solver(Own(numpy, np.ndarray), points(numpy), num_epoch=3)
    for name in ("print_every", "print_acc_every"):
        with pytest.raises(ValueError, match=f"Solver: {name} must be at least 1"):
            course.Solver(Own(numpy, np.ndarray), points(numpy), **{name: 0})
    data = points(numpy)
    for name in ("X_val", "X_train"):
        del data[name]
        with pytest.raises(ValueError, match=f"Solver: data has no '{name}'"):
            course.Solver(Own(numpy, np.ndarray), data)


# --- Checking


def test_rel_error_by_hand(kind: Kind) -> None:
    assert rel_error(kind.array([9.0, 3.0]), kind.array([11.0, 1.0])) == 0.1
    assert rel_error(kind.array([0.0]), kind.array([1e-9])) == pytest.approx(0.1)
    assert rel_error(kind.array([0.0]), kind.array([1e-9]), eps=1e-12) == 1.0
    assert math.isnan(rel_error(kind.array([1.0, math.nan]), kind.array([1.0, 1.0])))
    with pytest.raises(ValueError, match="shape"):
        rel_error(kind.array([1.0]), kind.array([1.0, 2.0]))


def test_numeric_gradient_by_hand(kind: Kind) -> None:
    x = kind.array([[1.0, 3.0], [2.0, -1.0]])
    gradient = compute_numeric_gradient(lambda x: x**2, x)
    np.testing.assert_allclose(array(gradient), 2 * array(x), rtol=1e-9)
    weighted = compute_numeric_gradient(lambda x: x**2, x, kind.array([[1.0, 0.0], [0.0, 2.0]]))
    np.testing.assert_allclose(array(weighted), [[2.0, 0.0], [0.0, -4.0]], atol=1e-9)
    number = compute_numeric_gradient(lambda x: (x**3).sum(), x)
    np.testing.assert_allclose(array(number), 3 * array(x) ** 2, rtol=1e-8)
    columns = compute_numeric_gradient(lambda _: x**2, x.T)  # not contiguous, and seen through x
    np.testing.assert_allclose(array(columns), 2 * array(x).T, rtol=1e-9)
    np.testing.assert_array_equal(array(x), [[1.0, 3.0], [2.0, -1.0]])
    with pytest.raises(ZeroDivisionError):
        compute_numeric_gradient(lambda x: 1 / 0, x)
    np.testing.assert_array_equal(array(x), [[1.0, 3.0], [2.0, -1.0]])
    with pytest.raises(TypeError, match="x must be a float64 array, not float32"):
        compute_numeric_gradient(lambda x: x, kind.array(np.ones(2, np.float32)))


def test_numeric_gradient_of_what_is_no_array() -> None:
    found = course.compute_numeric_gradient(lambda x: x**2, [1.0, 3.0])
    np.testing.assert_allclose(found, [2.0, 6.0], rtol=1e-6)
    assert course.compute_numeric_gradient(lambda x: x**2, np.float64(3)) == pytest.approx(6)
    with pytest.raises(ValueError, match=r"^compute_numeric_gradient: x is read-only"):
        course.compute_numeric_gradient(lambda x: x**2, np.broadcast_to(1.0, (3,)))


def test_pytorch_is_not_needed() -> None:
    code = (
        "import sys; import cnnfast.compat.eecs498 as c; c.fix_random_seed(1); "
        "c.DeepConvNet((1, 4, 4), [2], []); print('torch' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"
