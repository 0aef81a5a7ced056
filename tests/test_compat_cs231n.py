"""Stanford CS231n and UCLA ECE 239AS: their notebooks' cells, and what their own code got wrong.

Figures and thresholds are those of CS231n's assignment 2 (its notebooks fix the seed 231) and of
ECE 239AS's homework 5 (unseeded: any seed will do). Beyond them, the definitions written out in
NumPy, `cnnfast.naive` and finite differences judge.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cnnfast
from cnnfast import naive
from cnnfast.compat import cs231n
from cnnfast.compat.cs231n import *  # noqa: F403 (as the notebooks do)
from cnnfast.compat.cs231n import (
    ThreeLayerConvNet,
    adam,
    affine_backward,
    affine_forward,
    batchnorm_backward,
    batchnorm_backward_alt,
    batchnorm_forward,
    col2im_6d_cython,
    col2im_cython,
    col2im_indices,
    conv_backward_fast,
    conv_backward_im2col,
    conv_backward_naive,
    conv_backward_strides,
    conv_forward_fast,
    conv_forward_im2col,
    conv_forward_naive,
    conv_forward_strides,
    dropout_backward,
    dropout_forward,
    eval_numerical_gradient,
    eval_numerical_gradient_array,
    get_CIFAR10_data,
    get_im2col_indices,
    grad_check_sparse,
    im2col_cython,
    im2col_indices,
    layernorm_backward,
    layernorm_forward,
    max_pool_backward_fast,
    max_pool_backward_im2col,
    max_pool_backward_naive,
    max_pool_backward_reshape,
    max_pool_forward_fast,
    max_pool_forward_im2col,
    max_pool_forward_naive,
    max_pool_forward_reshape,
    rel_error,
    relu_backward,
    relu_forward,
    rmsprop,
    sgd,
    sgd_momentum,
    softmax_loss,
    spatial_batchnorm_backward,
    spatial_batchnorm_forward,
    spatial_groupnorm_backward,
    spatial_groupnorm_forward,
    svm_loss,
)
from cnnfast.compat.cs231n.solver import Solver

PRINTED = 5.1e-9  # what the eighth decimal leaves open


def rand(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape)


def legacy(seed: int = 231) -> np.random.RandomState:
    """The stream that the notebooks' ``np.random.seed`` starts."""
    return np.random.RandomState(seed)


def seed_numpy(seed: int) -> None:
    np.random.seed(seed)  # noqa: NPY002 (what a notebook does)


def line(start: float, stop: float, *shape: int) -> Any:
    return np.linspace(start, stop, num=int(np.prod(shape))).reshape(shape)


def same_after(*arrays: Any) -> Any:
    """Call the result to assert that the arrays are as they were."""
    copies = [np.array(a) for a in arrays]

    def check() -> None:
        for a, copy in zip(arrays, copies, strict=True):
            np.testing.assert_array_equal(a, copy)

    return check


CONV = "x w b conv_param"
POOL = "x pool_param"
BACK = "dout cache"
COLS = "field_height field_width padding stride"
PARAMETERS = {
    "affine_forward": "x w b",
    "relu_forward": "x",
    "batchnorm_forward": "x gamma beta bn_param",
    "spatial_batchnorm_forward": "x gamma beta bn_param",
    "layernorm_forward": "x gamma beta ln_param",
    "spatial_groupnorm_forward": "x gamma beta G gn_param",
    "dropout_forward": "x dropout_param",
    "affine_relu_forward": "x w b",
    "affine_bn_relu_forward": "x w b gamma beta bn_param",
    "conv_relu_forward": CONV,
    "conv_bn_relu_forward": "x w b gamma beta conv_param bn_param",
    "conv_relu_pool_forward": CONV + " pool_param",
    "conv_bn_relu_pool_forward": "x w b gamma beta conv_param bn_param pool_param",
    **{f"conv_forward_{kind}": CONV for kind in ("naive", "fast", "im2col", "strides")},
    **{f"conv_backward_{kind}": BACK for kind in ("naive", "fast", "im2col", "strides")},
    **{f"max_pool_forward_{kind}": POOL for kind in ("naive", "fast", "im2col", "reshape")},
    **{f"max_pool_backward_{kind}": BACK for kind in ("naive", "fast", "im2col", "reshape")},
    "get_im2col_indices": "x_shape " + COLS,
    "im2col_indices": "x " + COLS,
    "im2col_cython": "x " + COLS,
    "col2im_indices": "cols x_shape " + COLS,
    "col2im_cython": "cols N C H W " + COLS,
    "col2im_6d_cython": "cols N C H W HH WW pad stride",
    **dict.fromkeys(("svm_loss", "softmax_loss"), "x y"),
    **dict.fromkeys(("sgd", "sgd_momentum", "rmsprop", "adam"), "w dw config"),
    "eval_numerical_gradient": "f x verbose h",
    "eval_numerical_gradient_array": "f x df h",
    "grad_check_sparse": "f x analytic_grad num_checks h",
    "rel_error": "x y",
    "get_CIFAR10_data": "num_training num_validation num_test subtract_mean directory",
    "ThreeLayerConvNet": (
        "input_dim num_filters filter_size hidden_dim num_classes weight_scale reg dtype "
        "use_batchnorm conv_layers"
    ),
    "Solver": (
        "model data update_rule optim_config lr_decay batch_size num_epochs num_train_samples "
        "num_val_samples checkpoint_name print_every verbose"
    ),
}
PARAMETERS |= {
    name.replace("_forward", "_backward"): BACK for name in PARAMETERS if name.endswith("_forward")
}
PARAMETERS["batchnorm_backward_alt"] = BACK


def test_names_and_parameters() -> None:
    assert sorted(cs231n.__all__) == sorted(PARAMETERS)
    for name, parameters in PARAMETERS.items():
        assert globals()[name] is getattr(cs231n, name)
        assert list(inspect.signature(getattr(cs231n, name)).parameters) == parameters.split()
    for name, defaults in {
        "im2col_indices": {"padding": 1, "stride": 1},
        "col2im_indices": {"field_height": 3, "field_width": 3, "padding": 1, "stride": 1},
        "eval_numerical_gradient": {"verbose": True, "h": 1e-5},
        "ThreeLayerConvNet": {"input_dim": (3, 32, 32), "filter_size": 7, "hidden_dim": 100},
    }.items():
        signature = inspect.signature(getattr(cs231n, name)).parameters
        assert {key: signature[key].default for key in defaults} == defaults


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("layers", "affine_forward conv_forward_naive spatial_groupnorm_backward softmax_loss"),
        ("fast_layers", "conv_forward_fast conv_backward_strides max_pool_forward_reshape"),
        ("im2col", "im2col_indices col2im_indices col2im_6d_cython"),
        ("layer_utils", "affine_relu_forward conv_relu_pool_backward"),
        ("optim", "sgd sgd_momentum rmsprop adam"),
        ("solver", "Solver"),
        ("gradient_check", "eval_numerical_gradient eval_numerical_gradient_array"),
        ("data_utils", "get_CIFAR10_data"),
        ("classifiers.cnn", "ThreeLayerConvNet"),
    ],
)
def test_modules_are_the_courses(module: str, names: str) -> None:
    found = importlib.import_module(f"cnnfast.compat.cs231n.{module}")
    assert set(names.split()) <= set(found.__all__)


# --- ECE 239AS, CNN-Layers.ipynb


def test_cell_conv_forward_naive() -> None:
    x, w, b = line(-0.1, 0.5, 2, 3, 4, 4), line(-0.2, 0.3, 3, 3, 4, 4), line(-0.1, 0.2, 3)
    out, _ = conv_forward_naive(x, w, b, {"stride": 2, "pad": 1})
    correct_out = np.array(
        [
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
    )
    # The handout's own figure; what is left is the rounding of the digits above.
    assert rel_error(out, correct_out) == pytest.approx(2.2121476417505994e-08, rel=1e-6)


def gradient_errors(run: Any, backward: Any, *inputs: Any, seed: int = 7) -> list[float]:
    """`rel_error` of every gradient of ``run(*inputs) -> (out, cache)``."""
    out, cache = run(*inputs)
    dout = rand(*out.shape, seed=seed)
    unchanged = same_after(dout, *inputs)
    grads = backward(dout, cache)
    unchanged()
    grads = grads if isinstance(grads, tuple) else (grads,)
    assert len(grads) == len(inputs)
    # The inputs' elements move in place, so that `run` need not be told which of them it is.
    return [
        rel_error(eval_numerical_gradient_array(lambda _: run(*inputs)[0], a, dout), grad)
        for a, grad in zip(inputs, grads, strict=True)
    ]


def test_cell_conv_backward_naive() -> None:
    conv_param = {"stride": 1, "pad": 1}
    errors = gradient_errors(
        lambda x, w, b: conv_forward_naive(x, w, b, conv_param),
        conv_backward_naive,
        *(rand(4, 3, 5, 5), rand(2, 3, 3, 3, seed=1), rand(2, seed=2)),
    )
    assert max(errors) < 1e-8


def test_cell_max_pool_forward_naive() -> None:
    x = line(-0.3, 0.4, 2, 3, 4, 4)
    out, _ = max_pool_forward_naive(x, {"pool_width": 2, "pool_height": 2, "stride": 2})
    correct_out = np.array(
        [
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
    )
    assert rel_error(out, correct_out) == pytest.approx(4.1666665157267834e-08, rel=1e-6)


def test_cell_max_pool_backward_naive() -> None:
    pool_param = {"pool_height": 2, "pool_width": 2, "stride": 2}
    x = rand(3, 2, 8, 8)
    errors = gradient_errors(
        lambda x: max_pool_forward_naive(x, pool_param), max_pool_backward_naive, x
    )
    assert max(errors) < 1e-11


def test_cell_fast_convolution() -> None:
    """The cell's sizes; the loops, which take their time, see the first ten of the images."""
    x, w, b = rand(100, 3, 31, 31), rand(25, 3, 3, 3, seed=1), rand(25, seed=2)
    dout = rand(100, 25, 16, 16, seed=3)
    conv_param = {"stride": 2, "pad": 1}
    out_naive, cache_naive = conv_forward_naive(x[:10], w, b, conv_param)
    out_fast, cache_fast = conv_forward_fast(x, w, b, conv_param)
    assert rel_error(out_naive, out_fast[:10]) < 1e-9
    dx_naive, dw_naive, db_naive = conv_backward_naive(dout[:10], cache_naive)
    dx_fast, dw_fast, db_fast = conv_backward_fast(dout, cache_fast)
    assert rel_error(dx_naive, dx_fast[:10]) < 1e-9

    _, dw_ten, db_ten = conv_backward_fast(
        dout[:10], conv_forward_fast(x[:10], w, b, conv_param)[1]
    )
    assert rel_error(dw_naive, dw_ten) < 1e-10
    assert rel_error(db_naive, db_ten) < 1e-12
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))[:, :, ::2, ::2]
    dw = np.tensordot(dout, windows, ((0, 2, 3), (0, 2, 3)))
    assert rel_error(dw_fast, dw) < 1e-10
    assert rel_error(db_fast, dout.sum(axis=(0, 2, 3))) < 1e-12


def test_cell_fast_pooling() -> None:
    x, dout = rand(100, 3, 32, 32), rand(100, 3, 16, 16, seed=1)
    pool_param = {"pool_height": 2, "pool_width": 2, "stride": 2}
    out_naive, cache_naive = max_pool_forward_naive(x, pool_param)
    out_fast, cache_fast = max_pool_forward_fast(x, pool_param)
    assert rel_error(out_naive, out_fast) == 0
    dx_naive = max_pool_backward_naive(dout, cache_naive)
    assert rel_error(dx_naive, max_pool_backward_fast(dout, cache_fast)) == 0


CONV_PARAM = {"stride": 1, "pad": 1}
POOL_PARAM = {"pool_height": 2, "pool_width": 2, "stride": 2}


def bn() -> dict[str, Any]:
    return {"mode": "train"}


def images(size: int) -> tuple[Any, ...]:
    return rand(2, 3, size, size), rand(3, 3, 3, 3, seed=1), rand(3, seed=2)


SCALES = rand(3, seed=4), rand(3, seed=5)
ROWS = rand(4, 2, 3), rand(6, 3, seed=1), rand(3, seed=2)
SANDWICHES = {
    "conv_relu_pool": (images(16), (CONV_PARAM, POOL_PARAM)),
    "conv_relu": (images(8), (CONV_PARAM,)),
    "conv_bn_relu": ((*images(6), *SCALES), (CONV_PARAM, bn())),
    "conv_bn_relu_pool": ((*images(6), *SCALES), (CONV_PARAM, bn(), POOL_PARAM)),
    "affine_relu": (ROWS, ()),
    "affine_bn_relu": ((*ROWS, *SCALES), (bn(),)),
}


@pytest.mark.parametrize("name", SANDWICHES)
def test_cells_of_cascaded_layers(name: str) -> None:
    arrays, params = SANDWICHES[name]
    arrays = tuple(a.copy() for a in arrays)
    forward, backward = (getattr(cs231n, f"{name}_{way}ward") for way in ("for", "back"))
    # A draw without a gradient so near to 0 that differences are all rounding there.
    seed = 18 if name == "conv_relu_pool" else 7
    errors = gradient_errors(lambda *a: forward(*a, *params), backward, *arrays, seed=seed)
    if "bn" in name:
        del errors[2]  # db: batch normalisation takes the bias out again, so that it is rounding
        assert max(errors) < 1e-6
    else:
        assert max(errors) < 1e-8


def test_sandwiches_are_their_layers_in_a_row() -> None:
    x, w, b = images(6)
    gamma, beta = SCALES
    out, (conv_cache, bn_cache, relu_cache, pool_cache) = cs231n.conv_bn_relu_pool_forward(
        *(x, w, b, gamma, beta, CONV_PARAM, bn(), POOL_PARAM)
    )
    y = naive.conv2d(x, w, b, 1, 1)
    y, _, _ = naive.batch_norm(y, None, None, gamma, beta, training=True, return_stats=True)
    expected = naive.max_pool2d(np.maximum(y, 0), 2)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-12)
    assert conv_cache[0] is x
    np.testing.assert_allclose(relu_cache, y, rtol=0, atol=1e-12)
    assert len(bn_cache) == 4
    assert pool_cache[1] is POOL_PARAM


# --- ECE 239AS, CNN-BatchNorm.ipynb, and CS231n's on batch normalisation


def test_cell_spatial_batchnorm_forward() -> None:
    x = 4 * rand(2, 3, 4, 5) + 10
    bn_param = bn()
    axes = (0, 2, 3)
    out, _ = spatial_batchnorm_forward(x, np.ones(3), np.zeros(3), bn_param)
    assert out.shape == x.shape
    np.testing.assert_allclose(out.mean(axis=axes), 0, atol=1e-14)
    exact = np.sqrt(x.var(axis=axes) / (x.var(axis=axes) + 1e-5))
    np.testing.assert_allclose(out.std(axis=axes), exact, rtol=1e-14)
    gamma, beta = np.asarray([3, 4, 5]), np.asarray([6, 7, 8])
    out, _ = spatial_batchnorm_forward(x, gamma, beta, bn_param)
    np.testing.assert_allclose(out.mean(axis=axes), beta, rtol=1e-14)
    np.testing.assert_allclose(out.std(axis=axes), gamma * exact, rtol=1e-14)


def test_cell_spatial_batchnorm_backward() -> None:
    x = 5 * rand(2, 3, 4, 5) + 12
    errors = gradient_errors(
        lambda x, gamma, beta: spatial_batchnorm_forward(x, gamma, beta, {"mode": "train"}),
        spatial_batchnorm_backward,
        *(x, rand(3, seed=1), rand(3, seed=2)),
    )
    assert errors[0] < 1e-6
    assert max(errors[1:]) < 1e-9


def test_cell_batchnorm_at_test_time() -> None:
    """The figures hold for the course's momentum, and for the biased variance of the batch."""
    random = legacy()
    N, D1, D2, D3 = 200, 50, 60, 3
    W1, W2 = random.randn(D1, D2), random.randn(D2, D3)
    bn_param: dict[str, Any] = {"mode": "train"}
    for _ in range(50):
        a = np.maximum(0, random.randn(N, D1).dot(W1)).dot(W2)
        batchnorm_forward(a, np.ones(D3), np.zeros(D3), bn_param)
    bn_param["mode"] = "test"
    a = np.maximum(0, random.randn(N, D1).dot(W1)).dot(W2)
    out, cache = batchnorm_forward(a, np.ones(D3), np.zeros(D3), bn_param)
    np.testing.assert_allclose(
        out.mean(axis=0), [-0.03927354, -0.04349152, -0.10452688], rtol=0, atol=PRINTED
    )
    np.testing.assert_allclose(
        out.std(axis=0), [1.01531428, 1.01238373, 0.97819988], rtol=0, atol=PRINTED
    )
    with pytest.raises(ValueError, match="test"):
        batchnorm_backward(a, cache)


def test_cell_spatial_batchnorm_at_test_time() -> None:
    random = legacy()
    N, C, H, W = 10, 4, 11, 12
    bn_param: dict[str, Any] = {"mode": "train"}
    for _ in range(50):
        x = 2.3 * random.randn(N, C, H, W) + 13
        spatial_batchnorm_forward(x, np.ones(C), np.zeros(C), bn_param)
    bn_param["mode"] = "test"
    x = 2.3 * random.randn(N, C, H, W) + 13
    out, _ = spatial_batchnorm_forward(x, np.ones(C), np.zeros(C), bn_param)
    means = [-0.08034406, 0.07562881, 0.05716371, 0.04378383]
    stds = [0.96718744, 1.0299714, 1.02887624, 1.00585577]
    np.testing.assert_allclose(out.mean(axis=(0, 2, 3)), means, rtol=0, atol=PRINTED)
    np.testing.assert_allclose(out.std(axis=(0, 2, 3)), stds, rtol=0, atol=PRINTED)


def test_running_averages_by_hand() -> None:
    x = np.array([[1.0, 10.0], [3.0, 30.0]])  # means 2 and 20, biased variances 1 and 100
    mean, var = np.array([4.0, 0.0]), np.array([2.0, 0.0])
    bn_param = {"mode": "train", "momentum": 0.75, "running_mean": mean, "running_var": var}
    batchnorm_forward(x, np.ones(2), np.zeros(2), bn_param)
    np.testing.assert_allclose(bn_param["running_mean"], [3.5, 5.0], rtol=1e-15)
    np.testing.assert_allclose(bn_param["running_var"], [1.75, 25.0], rtol=1e-15)
    np.testing.assert_array_equal(mean, [4.0, 0.0])
    np.testing.assert_array_equal(var, [2.0, 0.0])

    bn_param = {"mode": "test", "eps": 0.25, "running_mean": mean, "running_var": [2.0, 0.0]}
    out, _ = batchnorm_forward(x, np.ones(2), np.zeros(2), bn_param)
    np.testing.assert_allclose(out, [[-2.0, 20.0], [-2 / 3, 60.0]], rtol=1e-14)


def test_running_averages_start_with_zeros_of_the_inputs_dtype() -> None:
    for dtype in (np.float32, np.float64):
        bn_param = bn()
        out, _ = batchnorm_forward(rand(4, 3).astype(dtype), *np.ones((2, 3), dtype), bn_param)
        dtypes = {out.dtype, bn_param["running_mean"].dtype, bn_param["running_var"].dtype}
        assert dtypes == {np.dtype(dtype)}


@pytest.mark.parametrize("backward", [batchnorm_backward, batchnorm_backward_alt])
def test_cell_batchnorm_backward(backward: Any) -> None:
    errors = gradient_errors(
        lambda x, gamma, beta: batchnorm_forward(x, gamma, beta, {"mode": "train"}),
        backward,
        *(5 * rand(4, 5) + 12, rand(5, seed=1), rand(5, seed=2)),
    )
    assert errors[0] < 1e-8
    assert max(errors[1:]) < 1e-10


def test_cell_layernorm() -> None:
    x = np.maximum(0, rand(4, 50).dot(rand(50, 60, seed=1))).dot(rand(60, 3, seed=2))
    before = same_after(x)
    out, _ = layernorm_forward(x, np.ones(3), np.zeros(3), {})
    np.testing.assert_allclose(out.mean(axis=1), 0, atol=1e-14)
    exact = np.sqrt(x.var(axis=1) / (x.var(axis=1) + 1e-5))
    np.testing.assert_allclose(out.std(axis=1), exact, rtol=1e-13)
    out, _ = layernorm_forward(x, 3 * np.ones(3), 5 * np.ones(3), {"eps": 1e-5})
    np.testing.assert_allclose(out.mean(axis=1), 5, rtol=1e-14)
    before()

    errors = gradient_errors(
        lambda x, gamma, beta: layernorm_forward(x, gamma, beta, {}),
        layernorm_backward,
        *(5 * rand(4, 5) + 12, rand(5, seed=1), rand(5, seed=2)),
    )
    assert errors[0] < 1e-8
    assert max(errors[1:]) < 1e-9


def test_cell_spatial_groupnorm_forward() -> None:
    N, C, H, W, G = 2, 6, 4, 5, 2
    x = 4 * legacy().randn(N, C, H, W) + 10
    grouped = x.reshape(N * G, -1)
    np.testing.assert_allclose(
        grouped.mean(axis=1), [9.72505327, 8.51114185, 8.9147544, 9.43448077], atol=PRINTED
    )
    out, _ = spatial_groupnorm_forward(x, 2 * np.ones(C), np.zeros(C), G, {})
    mean, var = grouped.mean(axis=1, keepdims=True), grouped.var(axis=1, keepdims=True)
    expected = 2 * (grouped - mean) / np.sqrt(var + 1e-5)
    np.testing.assert_allclose(out, expected.reshape(x.shape), rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", [(6,), (1, 6, 1, 1)])
@pytest.mark.parametrize("G", [1, 2, 6])
def test_cell_spatial_groupnorm_backward(shape: tuple[int, ...], G: int) -> None:
    errors = gradient_errors(
        lambda x, gamma, beta: spatial_groupnorm_forward(x, gamma, beta, G, {}),
        spatial_groupnorm_backward,
        *(5 * rand(2, 6, 4, 5) + 12, rand(*shape, seed=1), rand(*shape, seed=2)),
    )
    assert errors[0] < 1e-6
    assert max(errors[1:]) < 1e-9


def test_one_value_to_normalise_gives_beta() -> None:
    """By the formula: the mean is the value, the variance 0."""
    gamma, beta = rand(3, seed=1), rand(3, seed=2)
    for x in (rand(1, 3), rand(1, 3, 1, 1)):
        bn_param: dict[str, Any] = {"mode": "train", "momentum": 0.5}
        out, cache = batchnorm_forward(x, gamma, beta, bn_param)
        np.testing.assert_array_equal(out, beta.reshape(x.shape))
        np.testing.assert_array_equal(bn_param["running_mean"], 0.5 * x.ravel())
        np.testing.assert_array_equal(bn_param["running_var"], 0)
        dx, dgamma, dbeta = batchnorm_backward(np.ones_like(x), cache)
        np.testing.assert_array_equal(dx, 0 * x)
        np.testing.assert_array_equal([dgamma, dbeta], [[0] * 3, [1] * 3])
    out, cache = layernorm_forward(rand(4, 1), gamma[:1], beta[:1], {})
    np.testing.assert_array_equal(out, np.full((4, 1), beta[0]))
    dx, _, dbeta = layernorm_backward(np.ones((4, 1)), cache)
    np.testing.assert_array_equal(dx, np.zeros((4, 1)))
    np.testing.assert_array_equal(dbeta, [4])


def test_groups_that_do_not_divide_are_refused() -> None:
    for G in (4, 0, -1):
        with pytest.raises(ValueError, match="G="):
            spatial_groupnorm_forward(rand(2, 6, 4, 4), np.ones(6), np.zeros(6), G, {})


# --- CS231n, FullyConnectedNets.ipynb and Dropout.ipynb


def test_cells_affine() -> None:
    x, w, b = line(-0.1, 0.5, 2, 4, 5, 6), line(-0.2, 0.3, 120, 3), line(-0.3, 0.1, 3)
    out, cache = affine_forward(x, w, b)
    correct_out = np.array(
        [[1.49834967, 1.70660132, 1.91485297], [3.25553199, 3.5141327, 3.77273342]]
    )
    assert rel_error(out, correct_out) < 1e-8
    assert all(a is b for a, b in zip(cache, (x, w, b), strict=True))

    inputs = rand(10, 2, 3), rand(6, 5, seed=1), rand(5, seed=2)
    assert max(gradient_errors(affine_forward, affine_backward, *inputs)) < 1e-8
    out, cache = affine_forward(*inputs)
    assert all(g.flags.c_contiguous for g in affine_backward(out, cache))


def test_cells_relu() -> None:
    out, cache = relu_forward(line(-0.5, 0.5, 3, 4))
    correct_out = np.array(
        [
            [0.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 0.04545455, 0.13636364],
            [0.22727273, 0.31818182, 0.40909091, 0.5],
        ]
    )
    assert rel_error(out, correct_out) < 5e-8
    assert cache.min() == -0.5
    assert max(gradient_errors(relu_forward, relu_backward, rand(10, 10))) < 1e-11
    assert relu_backward(np.ones(1), np.zeros(1)) == 0


@pytest.mark.parametrize(
    ("loss", "figure"), [(svm_loss, 8.999602749096233), (softmax_loss, 2.302545844500738)]
)
def test_cells_losses(loss: Any, figure: float) -> None:
    random = legacy()
    x, y = 0.001 * random.randn(50, 10), random.randint(10, size=50)
    unchanged = same_after(x, y)
    value, dx = loss(x, y)
    assert value == pytest.approx(figure, rel=1e-14)
    numeric = eval_numerical_gradient(lambda x: loss(x, y)[0], x, verbose=False)
    assert rel_error(numeric, dx) < (1e-8 if loss is svm_loss else 1e-7)
    unchanged()


@pytest.mark.parametrize(
    ("p", "mean", "dropped"),
    [
        (0.25, 10.014059116977283, 0.749784),
        (0.4, 9.977917658761159, 0.600796),
        (0.7, 9.987811912159426, 0.30074),
    ],
)
def test_cell_dropout(p: float, mean: float, dropped: float) -> None:
    """The three in one cell of the course, from one seed and in this order."""
    seed_numpy(231)
    x = np.random.randn(500, 500) + 10  # noqa: NPY002 (the notebook's)
    for earlier in (0.25, 0.4, 0.7):
        out, cache = dropout_forward(x, {"mode": "train", "p": earlier})
        if earlier == p:
            break
    assert out.mean() == pytest.approx(mean, rel=1e-14)
    assert (out == 0).mean() == dropped
    dx = dropout_backward(x, cache)
    np.testing.assert_array_equal(dx, out)
    out_test, cache = dropout_forward(x, {"mode": "test", "p": p})
    np.testing.assert_array_equal(out_test, x)
    np.testing.assert_array_equal(dropout_backward(x, cache), x)
    assert cache[1] is None


def test_cell_dropout_backward() -> None:
    dropout_param = {"mode": "train", "p": 0.2, "seed": 123}
    x = rand(10, 10) + 10
    errors = gradient_errors(lambda x: dropout_forward(x, dropout_param), dropout_backward, x)
    assert max(errors) < 1e-9
    seed_numpy(1)
    expected = np.random.rand(3)  # noqa: NPY002
    seed_numpy(1)
    _, (_, mask) = dropout_forward(x, dropout_param)
    np.testing.assert_array_equal(mask, legacy(123).rand(10, 10) < 0.2)
    # A seed of its own leaves the notebook's stream alone.
    np.testing.assert_array_equal(np.random.rand(3), expected)  # noqa: NPY002


WEIGHTS, SLOPES = line(-0.4, 0.6, 4, 5), line(-0.6, 0.4, 4, 5)


def test_cell_sgd() -> None:
    next_w, config = sgd(WEIGHTS, SLOPES)
    np.testing.assert_allclose(next_w, WEIGHTS - 0.01 * SLOPES, rtol=0, atol=1e-16)
    assert config == {"learning_rate": 1e-2}


def test_cell_sgd_momentum() -> None:
    config = {"learning_rate": 1e-3, "velocity": line(0.6, 0.9, 4, 5)}
    unchanged = same_after(WEIGHTS, SLOPES, config["velocity"])
    velocity = config["velocity"]
    next_w, returned = sgd_momentum(WEIGHTS, SLOPES, config=config)
    assert returned is config
    expected_next_w = [
        [0.1406, 0.20738947, 0.27417895, 0.34096842, 0.40775789],
        [0.47454737, 0.54133684, 0.60812632, 0.67491579, 0.74170526],
        [0.80849474, 0.87528421, 0.94207368, 1.00886316, 1.07565263],
        [1.14244211, 1.20923158, 1.27602105, 1.34281053, 1.4096],
    ]
    expected_velocity = [
        [0.5406, 0.55475789, 0.56891579, 0.58307368, 0.59723158],
        [0.61138947, 0.62554737, 0.63970526, 0.65386316, 0.66802105],
        [0.68217895, 0.69633684, 0.71049474, 0.72465263, 0.73881053],
        [0.75296842, 0.76712632, 0.78128421, 0.79544211, 0.8096],
    ]
    assert rel_error(next_w, expected_next_w) < 1e-8
    assert rel_error(config["velocity"], expected_velocity) < 1e-8
    assert config["velocity"] is not velocity
    unchanged()


def test_cell_rmsprop() -> None:
    config = {"learning_rate": 1e-2, "cache": line(0.6, 0.9, 4, 5)}
    next_w, _ = rmsprop(WEIGHTS, SLOPES, config=config)
    expected_next_w = [
        [-0.39223849, -0.34037513, -0.28849239, -0.23659121, -0.18467247],
        [-0.132737, -0.08078555, -0.02881884, 0.02316247, 0.07515774],
        [0.12716641, 0.17918792, 0.23122175, 0.28326742, 0.33532447],
        [0.38739248, 0.43947102, 0.49155973, 0.54365823, 0.59576619],
    ]
    expected_cache = [
        [0.5976, 0.6126277, 0.6277108, 0.64284931, 0.65804321],
        [0.67329252, 0.68859723, 0.70395734, 0.71937285, 0.73484377],
        [0.75037008, 0.7659518, 0.78158892, 0.79728144, 0.81302936],
        [0.82883269, 0.84469141, 0.86060554, 0.87657507, 0.8926],
    ]
    assert rel_error(next_w, expected_next_w) < 1e-7
    assert rel_error(config["cache"], expected_cache) < 1e-8


def test_cell_adam() -> None:
    config = {"learning_rate": 1e-2, "m": line(0.6, 0.9, 4, 5), "v": line(0.7, 0.5, 4, 5), "t": 5}
    next_w, _ = adam(WEIGHTS, SLOPES, config=config)
    expected_next_w = [
        [-0.40094747, -0.34836187, -0.29577703, -0.24319299, -0.19060977],
        [-0.1380274, -0.08544591, -0.03286534, 0.01971428, 0.0722929],
        [0.1248705, 0.17744702, 0.23002243, 0.28259667, 0.33516969],
        [0.38774145, 0.44031188, 0.49288093, 0.54544852, 0.59801459],
    ]
    expected_v = [
        [0.69966, 0.68908382, 0.67851319, 0.66794809, 0.65738853],
        [0.64683452, 0.63628604, 0.6257431, 0.61520571, 0.60467385],
        [0.59414753, 0.58362676, 0.57311152, 0.56260183, 0.55209767],
        [0.54159906, 0.53110598, 0.52061845, 0.51013645, 0.49966],
    ]
    expected_m = [
        [0.48, 0.49947368, 0.51894737, 0.53842105, 0.55789474],
        [0.57736842, 0.59684211, 0.61631579, 0.63578947, 0.65526316],
        [0.67473684, 0.69421053, 0.71368421, 0.73315789, 0.75263158],
        [0.77210526, 0.79157895, 0.81105263, 0.83052632, 0.85],
    ]
    # The course prints 1.139887467333134e-07, from its own digits.
    assert rel_error(next_w, expected_next_w) < 1.2e-7
    assert rel_error(config["v"], expected_v) < 1e-8
    assert rel_error(config["m"], expected_m) < 1e-8
    assert config["t"] == 6


def test_rules_remember_in_their_config() -> None:
    """Three steps of each rule, against its formula; lr changes in between."""
    w = {name: np.array([1.0, -2.0]) for name in ("sgd_momentum", "rmsprop", "adam")}
    config: dict[str, Any] = dict.fromkeys(w)
    expected = {name: a.copy() for name, a in w.items()}
    v = cache = m = s = np.zeros(2)
    for t, lr in enumerate((0.1, 0.05, 0.2), 1):
        dw = np.array([0.5, -1.0]) * t
        for name in w:
            if config[name] is not None:
                config[name]["learning_rate"] = lr
            else:
                config[name] = {"learning_rate": lr}
            w[name], config[name] = getattr(cs231n, name)(w[name], dw, config[name])
        v = 0.9 * v - lr * dw
        expected["sgd_momentum"] += v
        cache = 0.99 * cache + 0.01 * dw**2
        expected["rmsprop"] -= lr * dw / (np.sqrt(cache) + 1e-8)
        m, s = 0.9 * m + 0.1 * dw, 0.999 * s + 0.001 * dw**2
        expected["adam"] -= lr * (m / (1 - 0.9**t)) / (np.sqrt(s / (1 - 0.999**t)) + 1e-8)
    for name in w:
        np.testing.assert_allclose(w[name], expected[name], rtol=1e-12, err_msg=name)


def test_rules_defaults() -> None:
    w, dw = np.array([1.0]), np.array([4.0])
    assert sgd_momentum(w, dw)[1] == {"learning_rate": 0.01, "momentum": 0.9, "velocity": -0.04}
    _, config = rmsprop(w, dw)
    assert config.pop("cache") == pytest.approx(0.16)
    assert config == {"learning_rate": 0.01, "decay_rate": 0.99, "epsilon": 1e-8}
    _, config = adam(w, dw)
    assert (config.pop("m"), config.pop("v")) == (pytest.approx(0.4), pytest.approx(0.016))
    assert config == {
        "learning_rate": 0.001,
        "beta1": 0.9,
        "beta2": 0.999,
        "epsilon": 1e-8,
        "t": 1,
    }


@pytest.mark.parametrize("rule", [sgd, sgd_momentum, rmsprop, adam])
def test_rules_take_any_array(rule: Any) -> None:
    w, dw = rand(4, 3), rand(4, 3, seed=1)
    expected, _ = rule(w, dw)
    turned, _ = rule(np.asfortranarray(w), np.asfortranarray(dw))
    np.testing.assert_allclose(turned, expected, rtol=1e-15)
    narrow, config = rule(w.astype(np.float32), dw)
    np.testing.assert_allclose(narrow, expected, rtol=1e-5)
    assert narrow.dtype == np.float32
    again, _ = rule(narrow, dw, config)
    assert again.dtype == np.float32
    ints, _ = rule([1, 2], [0, 0])
    np.testing.assert_array_equal(ints, [1.0, 2.0])
    frozen = w.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(rule(frozen, dw)[0], expected)
    with pytest.raises(ValueError, match="shape"):
        rule(w, dw[:2])


def test_momentum_of_zero() -> None:
    next_w, config = sgd_momentum(np.array([1.0]), np.array([2.0]), {"momentum": 0.0})
    assert next_w == 0.98
    assert config["velocity"] == -0.02


# --- CS231n's fast_layers, im2col and conventions


def test_methods_are_those_of_the_names() -> None:
    x, w, b = rand(2, 3, 6, 5), rand(4, 3, 3, 3, seed=1), rand(4, seed=2)
    for kind, ran in (("naive", "naive"), ("im2col", "im2col")):
        with cnnfast.trace() as log:
            out, cache = getattr(cs231n, f"conv_forward_{kind}")(x, w, b, CONV_PARAM)
            getattr(cs231n, f"conv_backward_{kind}")(out, cache)
        assert [(r.op, r.method) for r in log] == [("conv2d", ran), ("conv2d_backward", ran)]
    with cnnfast.trace() as log:
        out, cache = max_pool_forward_naive(x, POOL_PARAM)
        max_pool_backward_naive(out, cache)
    assert {r.method for r in log} == {"naive"}
    with cnnfast.trace() as log:
        out, cache = max_pool_forward_fast(x, POOL_PARAM)
        max_pool_backward_fast(out, cache)
    assert [r.op for r in log] == ["max_pool2d", "max_pool2d_backward"]
    assert "naive" not in {r.method for r in log}


def test_caches_are_the_courses() -> None:
    x, w, b = images(6)
    for forward in (conv_forward_naive, conv_forward_fast, conv_forward_im2col):
        _, cache = forward(x, w, b, CONV_PARAM)
        assert all(a is b for a, b in zip(cache, (x, w, b, CONV_PARAM), strict=True))
    _, cache = max_pool_forward_naive(x, POOL_PARAM)
    assert all(a is b for a, b in zip(cache, (x, POOL_PARAM), strict=True))
    assert relu_forward(x)[1] is x


SIZES = [
    # image, window, stride, pad
    ((5, 5), (3, 3), 1, 1),
    ((7, 5), (1, 4), 1, 0),  # wide windows, no padding
    ((5, 7), (4, 1), 1, 0),  # tall ones
    ((6, 9), (2, 3), 2, 1),  # sizes that do not divide
    ((7, 6), (1, 1), 3, 0),  # strides over the window
    ((4, 5), (2, 2), 2, 3),  # windows of nothing but zeros
]


@pytest.mark.parametrize(("image", "window", "stride", "pad"), SIZES)
@pytest.mark.parametrize("kind", ["naive", "fast", "im2col", "strides"])
def test_convolutions(kind: str, image: Any, window: Any, stride: int, pad: int) -> None:
    x, w, b = rand(2, 3, *image), rand(4, 3, *window, seed=1), rand(4, seed=2)
    unchanged = same_after(x, w, b)
    conv_param = {"stride": stride, "pad": pad}
    out, cache = getattr(cs231n, f"conv_forward_{kind}")(x, w, b, conv_param)
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, window, (2, 3))
    windows = windows[:, :, ::stride, ::stride]
    expected = np.einsum("nchwij,fcij->nfhw", windows, w) + b[:, None, None]
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-12)

    dout = rand(*out.shape, seed=3)
    grads = getattr(cs231n, f"conv_backward_{kind}")(dout, cache)
    expected = naive.conv2d_backward(dout, x, w, stride, pad)
    for grad, right in zip(grads, expected, strict=True):
        np.testing.assert_allclose(grad, right, rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        grads[1], np.einsum("nchwij,nfhw->fcij", windows, dout), rtol=0, atol=1e-12
    )
    unchanged()


def test_any_backward_serves_for_any_forward() -> None:
    x, w, b = images(5)
    results = []
    for forward in (conv_forward_naive, conv_forward_fast, conv_forward_strides):
        for backward in (conv_backward_naive, conv_backward_im2col, conv_backward_strides):
            out, cache = forward(x, w, b, CONV_PARAM)
            results.append(backward(np.ones_like(out), cache))
    for grads in results:
        for grad, first in zip(grads, results[0], strict=True):
            np.testing.assert_allclose(grad, first, rtol=0, atol=1e-12)
    results = []
    for forward in (max_pool_forward_naive, max_pool_forward_fast):
        for backward in (max_pool_backward_naive, max_pool_backward_reshape):
            out, cache = forward(x, POOL_PARAM)
            results.append(backward(out, cache))
    for dx in results:
        np.testing.assert_array_equal(dx, results[0])


@pytest.mark.parametrize("image", [(8, 8), (7, 5), (5, 8)])
@pytest.mark.parametrize(("window", "stride"), [((2, 2), 2), ((3, 2), 1), ((1, 3), 2), ((2, 2), 3)])
@pytest.mark.parametrize("ties", [False, True])
def test_poolings(image: Any, window: Any, stride: int, ties: bool) -> None:
    x = rand(2, 3, *image)
    x = np.round(x) if ties else x
    unchanged = same_after(x)
    pool_param = {"pool_height": window[0], "pool_width": window[1], "stride": stride}
    windows = np.lib.stride_tricks.sliding_window_view(x, window, (2, 3))
    expected = windows[:, :, ::stride, ::stride].max(axis=(4, 5))
    dout = rand(*expected.shape, seed=1)
    gradient = np.zeros_like(x)
    for n, c, i, j in np.ndindex(expected.shape):
        part = x[n, c, i * stride : i * stride + window[0], j * stride : j * stride + window[1]]
        k, l = np.unravel_index(np.argmax(part), part.shape)  # the first of equal ones
        gradient[n, c, i * stride + k, j * stride + l] += dout[n, c, i, j]
    for forward, backward in (
        (max_pool_forward_naive, max_pool_backward_naive),
        (max_pool_forward_fast, max_pool_backward_fast),
        (max_pool_forward_reshape, max_pool_backward_reshape),
        (max_pool_forward_im2col, max_pool_backward_im2col),
    ):
        out, cache = forward(x, pool_param)
        np.testing.assert_array_equal(out, expected)
        np.testing.assert_allclose(backward(dout, cache), gradient, rtol=0, atol=1e-14)
    unchanged()


def test_a_float_pad_is_a_pad() -> None:
    x, w, b = images(6)
    filter_size = 3
    expected, _ = conv_forward_naive(x, w, b, {"stride": 1, "pad": 1})
    for pad in ((filter_size - 1) / 2, np.float64(1), np.float32(1), np.int64(1)):
        out, cache = conv_forward_naive(x, w, b, {"stride": 1.0, "pad": pad})
        np.testing.assert_array_equal(out, expected)
        assert conv_backward_fast(out, cache)[0].shape == x.shape
    pool_param = {"pool_height": 2.0, "pool_width": 2, "stride": 2.0}
    assert max_pool_forward_fast(x, pool_param)[0].shape == (2, 3, 3, 3)
    assert im2col_indices(x, 3, 3, padding=1.0).shape == (27, 72)
    with pytest.raises(TypeError, match="padding"):
        conv_forward_fast(x, w, b, {"stride": 1, "pad": (4 - 1) / 2})


def test_column_order() -> None:
    """Rows: channel, row and column of the window. Columns: window by window, and its examples."""
    N, C, H, W, HH, WW, pad, stride = 2, 3, 5, 4, 3, 2, 1, 2
    x = rand(N, C, H, W)
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    OH, OW = (H + 2 * pad - HH) // stride + 1, (W + 2 * pad - WW) // stride + 1
    expected = np.empty((C * HH * WW, OH * OW * N))
    for c, i, j, p, q, n in np.ndindex(C, HH, WW, OH, OW, N):
        row, column = (c * HH + i) * WW + j, (p * OW + q) * N + n
        expected[row, column] = padded[n, c, p * stride + i, q * stride + j]
    np.testing.assert_array_equal(im2col_indices(x, HH, WW, pad, stride), expected)
    np.testing.assert_array_equal(im2col_cython(x, HH, WW, pad, stride), expected)
    k, i, j = get_im2col_indices(x.shape, HH, WW, pad, stride)
    assert (k.shape, i.shape, j.shape) == ((18, 1), (18, OH * OW), (18, OH * OW))
    by_index = padded[:, k, i, j].transpose(1, 2, 0).reshape(C * HH * WW, -1)
    np.testing.assert_array_equal(by_index, expected)


@pytest.mark.parametrize(("image", "window", "stride", "pad"), SIZES)
@pytest.mark.parametrize("N", [0, 2])
def test_col2im_is_the_adjoint_of_im2col(
    image: Any, window: Any, stride: int, pad: int, N: int
) -> None:
    x_shape = (N, 3, *image)
    x = rand(*x_shape)
    cols = im2col_indices(x, *window, pad, stride)
    other = rand(*cols.shape, seed=1)
    unchanged = same_after(other)
    back = col2im_indices(other, x_shape, *window, pad, stride)
    assert back.shape == x_shape
    assert np.sum(cols * other) == pytest.approx(np.sum(x * back), abs=1e-11)
    np.testing.assert_array_equal(col2im_cython(other, *x_shape, *window, pad, stride), back)

    H, W = image
    OH, OW = (H + 2 * pad - window[0]) // stride + 1, (W + 2 * pad - window[1]) // stride + 1
    six = other.reshape(3, *window, OH, OW, N).transpose(0, 1, 2, 5, 3, 4)
    np.testing.assert_array_equal(col2im_6d_cython(six, *x_shape, *window, pad, stride), back)
    unchanged()


def test_columns_that_do_not_fit_are_refused() -> None:
    cols = im2col_indices(rand(2, 3, 5, 5), 3, 3)
    with pytest.raises(ValueError, match="cols must have shape"):
        col2im_indices(cols[:, :-1], (2, 3, 5, 5))
    for shape in ((27, 50), (3, 3, 3, 2, 25, 1), (3, 9, 1, 2, 5, 5)):
        with pytest.raises(ValueError, match="cols must have shape"):
            col2im_6d_cython(cols.reshape(shape), 2, 3, 5, 5, 3, 3, 1, 1)
    with pytest.raises(ValueError, match="padding"):
        get_im2col_indices((2, 3, 5, 5), 3, 3, padding=-4)


LAYOUTS = {
    "Fortran": np.asfortranarray,
    "reversed": lambda a: a[..., ::-1].copy()[..., ::-1],
    "sliced": lambda a: np.repeat(a, 2, axis=0)[::2],
    "list": lambda a: a.tolist(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str) -> None:
    lay = LAYOUTS[layout]
    x, w, b = images(6)
    gamma, beta = SCALES
    rows, matrix = rand(4, 6), rand(6, 3, seed=1)
    calls = {
        "affine": lambda f: affine_forward(f(rows), f(matrix), f(b)),
        "affine, images": lambda f: affine_forward(f(x), f(rand(108, 2)), f(b[:2])),
        "conv": lambda f: conv_forward_fast(f(x), f(w), f(b), CONV_PARAM),
        "conv naive": lambda f: conv_forward_naive(f(x), f(w), f(b), CONV_PARAM),
        "pool": lambda f: max_pool_forward_fast(f(x), POOL_PARAM),
        "pool naive": lambda f: max_pool_forward_naive(f(x), POOL_PARAM),
        "batch norm": lambda f: spatial_batchnorm_forward(f(x), f(gamma), f(beta), bn()),
        "group norm": lambda f: spatial_groupnorm_forward(f(x), f(gamma), f(beta), 3, {}),
        "layer norm": lambda f: layernorm_forward(f(rows), np.ones(6), np.ones(6), {}),
        "relu": lambda f: relu_forward(f(x)),
        "dropout": lambda f: dropout_forward(f(x), {"mode": "train", "p": 0.5, "seed": 1}),
    }
    backward = {
        "affine": affine_backward,
        "affine, images": affine_backward,
        "conv": conv_backward_fast,
        "conv naive": conv_backward_naive,
        "pool": max_pool_backward_fast,
        "pool naive": max_pool_backward_naive,
        "batch norm": spatial_batchnorm_backward,
        "group norm": spatial_groupnorm_backward,
        "layer norm": layernorm_backward,
        "relu": relu_backward,
        "dropout": dropout_backward,
    }
    for name, call in calls.items():
        expected, cache = call(np.array)
        dout = rand(*expected.shape, seed=9)
        right = backward[name](dout, cache)
        out, cache = call(lay)
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-12, err_msg=name)
        grads = backward[name](lay(dout), cache)
        if not isinstance(grads, tuple):
            grads, right = (grads,), (right,)
        for grad, first in zip(grads, right, strict=True):
            np.testing.assert_allclose(grad, first, rtol=0, atol=1e-11, err_msg=name)


def test_float32_stays() -> None:
    x, w, b = (a.astype(np.float32) for a in images(6))
    gamma, beta = (a.astype(np.float32) for a in SCALES)
    found = []
    for forward, backward, arguments in (
        (conv_forward_naive, conv_backward_naive, (x, w, b, CONV_PARAM)),
        (conv_forward_fast, conv_backward_fast, (x, w, b, CONV_PARAM)),
        (max_pool_forward_fast, max_pool_backward_fast, (x, POOL_PARAM)),
        (spatial_batchnorm_forward, spatial_batchnorm_backward, (x, gamma, beta, bn())),
        (spatial_groupnorm_forward, spatial_groupnorm_backward, (x, gamma, beta, 3, {})),
        (dropout_forward, dropout_backward, (x, {"mode": "train", "p": 0.5})),
        (affine_forward, affine_backward, (x[:, 0, 0], w[:, 0].reshape(3, 9)[:, :6].T, b)),
    ):
        out, cache = forward(*arguments)
        grads = backward(out, cache)
        grads = grads if isinstance(grads, tuple) else (grads,)
        found += [a.dtype.name for a in (out, *grads)]
    assert set(found) == {"float32"}


def test_an_empty_batch() -> None:
    x, w, b = np.zeros((0, 3, 4, 4)), rand(4, 3, 3, 3), rand(4)
    out, cache = conv_forward_fast(x, w, b, CONV_PARAM)
    assert out.shape == (0, 4, 4, 4)
    dx, dw, db = conv_backward_fast(out, cache)
    assert dx.shape == x.shape
    assert not dw.any()
    assert not db.any()
    out, cache = max_pool_forward_fast(x, POOL_PARAM)
    assert max_pool_backward_fast(out, cache).shape == x.shape
    out, cache = affine_forward(x, rand(48, 2), rand(2))
    assert out.shape == (0, 2)
    assert affine_backward(out, cache)[0].shape == x.shape
    bn_param = {"mode": "train", "running_mean": np.ones(3), "running_var": np.full(3, 2.0)}
    out, cache = spatial_batchnorm_forward(x, np.ones(3), np.zeros(3), bn_param)
    assert spatial_batchnorm_backward(out, cache)[0].shape == x.shape
    np.testing.assert_array_equal(bn_param["running_mean"], 1)
    np.testing.assert_array_equal(bn_param["running_var"], 2)
    out, cache = layernorm_forward(np.zeros((0, 3)), np.ones(3), np.zeros(3), {})
    assert [a.shape for a in layernorm_backward(out, cache)] == [(0, 3), (3,), (3,)]
    out, cache = spatial_groupnorm_forward(x, np.ones(3), np.zeros(3), 3, {})
    assert [a.shape for a in spatial_groupnorm_backward(out, cache)] == [x.shape, (3,), (3,)]


def test_errors_name_the_argument() -> None:
    x, w, b = images(6)
    with pytest.raises(ValueError, match="input channels"):
        conv_forward_fast(x[:, :2], w, b, CONV_PARAM)
    with pytest.raises(KeyError, match="pad"):
        conv_forward_fast(x, w, b, {"stride": 1})
    with pytest.raises(ValueError, match="input features"):
        affine_forward(x, w[0, 0], b)
    bn_param = bn()
    with pytest.raises(ValueError, match="x must have shape"):
        batchnorm_forward(b, b, b, bn_param)
    with pytest.raises(ValueError, match=r"weight must have shape \(6,\)"):
        batchnorm_forward(x[0, 0], b, b, bn_param)
    assert bn_param == bn()
    with pytest.raises(ValueError, match="mode"):
        batchnorm_forward(x[0, 0], np.ones(6), np.ones(6), {"mode": "eval"})
    with pytest.raises(ValueError, match="mode"):
        dropout_forward(x, {"mode": "eval", "p": 0.5})
    with pytest.raises(ValueError, match="p must be"):
        dropout_forward(x, {"mode": "train", "p": 1.5})
    with pytest.raises(ValueError, match=r"dropout_forward: p must be .* not -1"):
        dropout_forward(x, {"mode": "train", "p": -1})
    with pytest.raises(ValueError, match="labels"):
        softmax_loss(rand(2, 3), np.array([0, 3]))
    for wrong in (np.zeros(1), np.zeros((3, 1)), None):
        with pytest.raises(ValueError, match="running_mean must have shape"):
            batchnorm_forward(rand(4, 3), b, b, {"mode": "train", "running_mean": wrong})
    with pytest.raises(ValueError, match="affine_forward: x"):
        affine_forward(1.0, w[0, 0], b)
    _, cache = max_pool_forward_fast(x, POOL_PARAM)
    with pytest.raises(ValueError, match="dout must have shape"):
        max_pool_backward_fast(x, cache)
    for rule in (sgd, adam):
        with pytest.raises(TypeError, match="w has dtype complex128"):
            rule(np.ones(2) * 1j, np.ones(2))


def test_errors_of_layernorm_and_groupnorm() -> None:
    x, rows, b = rand(2, 3, 4, 4), rand(4, 3), np.ones(3)
    with pytest.raises(ValueError, match="layernorm_forward: x must have shape"):
        layernorm_forward(x, b, b, {})
    with pytest.raises(ValueError, match="spatial_groupnorm_forward: x must have shape"):
        spatial_groupnorm_forward(rows, b, b, 1, {})
    with pytest.raises(ValueError, match="gamma must have shape"):
        layernorm_forward(rows, b[:2], b, {})
    with pytest.raises(ValueError, match="beta must have shape"):
        spatial_groupnorm_forward(x, b, 0.0, 1, {})
    with pytest.raises(TypeError, match="G must be an integer"):
        spatial_groupnorm_forward(x, b, b, 1.5, {})
    _, cache = layernorm_forward(rows, b, b, {})
    with pytest.raises(ValueError, match="dout must have shape"):
        layernorm_backward(np.ones((4, 1)), cache)
    with pytest.raises(ValueError, match="shape"):
        rel_error(np.ones(3), np.ones((3, 1)))


# --- gradient_check


def test_eval_numerical_gradient_prints_if_asked(capsys: pytest.CaptureFixture[str]) -> None:
    x = np.array([[1.0, 2.0]])
    gradient = eval_numerical_gradient(lambda x: float(np.sum(x**3)), x)
    np.testing.assert_allclose(gradient, [[3, 12]], rtol=1e-8)
    assert capsys.readouterr().out.splitlines()[1].startswith("(0, 1) 12.0")
    eval_numerical_gradient(lambda x: float(np.sum(x)), x, False, 1e-6)
    assert capsys.readouterr().out == ""
    np.testing.assert_array_equal(x, [[1.0, 2.0]])


def test_grad_check_sparse(capsys: pytest.CaptureFixture[str]) -> None:
    x = rand(3, 4)
    unchanged = same_after(x)
    grad_check_sparse(lambda x: float(np.sum(x**2)), x, 2 * x, num_checks=5)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert all(float(line.rpartition(" ")[2]) < 1e-6 for line in lines)
    unchanged()


# --- ThreeLayerConvNet and the Solver


def test_cell_sanity_check_loss() -> None:
    seed_numpy(231)
    model = ThreeLayerConvNet()
    X, y = rand(50, 3, 32, 32), np.random.default_rng(1).integers(10, size=50)
    loss, _ = model.loss(X, y)
    assert loss == pytest.approx(np.log(10), abs=1e-4)
    model.reg = 0.5
    weights = sum(float(np.sum(model.params[name] ** 2)) for name in ("W1", "W2", "W3"))
    assert model.loss(X, y)[0] - loss == pytest.approx(0.5 * 0.5 * weights, rel=1e-3)


@pytest.mark.parametrize(
    "options", [{}, {"use_batchnorm": True}, {"conv_layers": 2, "use_batchnorm": True, "reg": 0.1}]
)
def test_cell_gradients_of_the_network(options: dict[str, Any]) -> None:
    seed_numpy(1)  # a draw that has no ReLU and no two pixels of a window within 1e-6 of a kink
    input_dim = (3, 16, 16)
    X, y = rand(2, *input_dim, seed=1), np.array([3, 7])
    sizes: dict[str, Any] = {"num_filters": 3, "filter_size": 3, "hidden_dim": 7}
    if options:  # the handout's cell is the one without any; these need not be as large
        input_dim, X = (2, 6, 5), rand(5, 2, 6, 5)
        y = np.array([3, 7, 0, 1, 9])
        sizes |= {"num_filters": 2, "hidden_dim": 4, "weight_scale": 0.1}
    model = ThreeLayerConvNet(input_dim=input_dim, dtype=np.float64, **sizes, **options)
    loss, grads = model.loss(X, y)
    assert isinstance(loss, float)
    assert list(grads) == list(model.params)
    for name in sorted(grads):
        param = model.params[name]
        numeric = eval_numerical_gradient(
            lambda _: model.loss(X, y)[0], param, verbose=False, h=1e-6
        )
        if options:
            scale = max(np.abs(numeric).max(), 1e-3)
            assert np.abs(numeric - grads[name]).max() < 2e-6 * scale, name
        else:
            # A thousandth of the handout's 0.01 for the weights; but a loss of 2.3, rounded, makes
            # for 2e-9 in a difference over 2e-6, which is much beside gradients of 1e-7.
            bound = 1e-5 * np.abs(numeric) + 2e-9
            assert np.all(np.abs(numeric - grads[name]) <= bound), name


def test_parameters_are_the_courses_and_live() -> None:
    model = ThreeLayerConvNet((1, 7, 4), 3, 3, 5, 2, use_batchnorm=True, conv_layers=2)
    model.params["beta3"] = np.ones(5)  # so that the last ReLU lets something through
    shapes = {name: p.shape for name, p in model.params.items()}
    assert shapes == {
        "W1": (3, 1, 3, 3),
        "b1": (3,),
        "gamma1": (3,),
        "beta1": (3,),
        "W2": (3, 3, 3, 3),
        "b2": (3,),
        "gamma2": (3,),
        "beta2": (3,),
        "W3": (3 * 3 * 2, 5),
        "b3": (5,),
        "gamma3": (5,),
        "beta3": (5,),
        "W4": (5, 2),
        "b4": (2,),
    }
    X = rand(2, 1, 7, 4).astype(np.float32)
    for change in (
        lambda: model.params["W4"].fill(0),
        lambda: model.params.update(W4=np.zeros((5, 2))),
        lambda: setattr(model, "params", {**model.params, "W4": np.zeros((5, 2))}),
    ):
        model.params["W4"][...] = 1
        model.params["b4"] = [5, 7]
        assert not np.array_equal(model.loss(X), np.full((2, 2), (5, 7)))
        change()
        np.testing.assert_array_equal(model.loss(X), np.full((2, 2), (5, 7)))


def test_the_network_is_its_layers() -> None:
    """Scores of the course's functions with the network's own parameters."""
    seed_numpy(1)
    model = ThreeLayerConvNet((2, 7, 6), 3, 5, 4, 3, weight_scale=0.3, dtype=np.float64)
    p, X = model.params, rand(2, 2, 7, 6)
    conv_param = {"stride": 1, "pad": (5 - 1) / 2}
    out, _ = cs231n.conv_relu_pool_forward(X, p["W1"], p["b1"], conv_param, POOL_PARAM)
    out, _ = cs231n.affine_relu_forward(out, p["W2"], p["b2"])
    out, _ = affine_forward(out, p["W3"], p["b3"])
    np.testing.assert_allclose(model.loss(X), out, rtol=0, atol=1e-12)


def test_starting_weights_come_from_numpys_stream() -> None:
    models = []
    for seed in (3, 3, 4):
        seed_numpy(seed)
        models.append(ThreeLayerConvNet((1, 8, 8), 4, 3, 5, weight_scale=0.5).params["W2"].copy())
    np.testing.assert_array_equal(models[0], models[1])
    assert not np.array_equal(models[0], models[2])
    assert models[0].std() == pytest.approx(0.5, rel=0.15)


def toy_data(N: int = 60) -> dict[str, Any]:
    """Images whose class is the quarter that is bright."""
    rng = np.random.default_rng(0)
    y = rng.integers(4, size=N)
    X = rng.normal(0, 0.3, size=(N, 1, 8, 8))
    for image, label in zip(X, y, strict=True):
        image[0, 4 * (label // 2) :, 4 * (label % 2) :][:4, :4] += 2
    return {"X_train": X[:40], "y_train": y[:40], "X_val": X[40:], "y_val": y[40:]}


def small_net(**options: Any) -> ThreeLayerConvNet:
    seed_numpy(0)
    return ThreeLayerConvNet((1, 8, 8), 4, 3, 8, 4, weight_scale=0.1, **options)


def test_cell_solver_overfits(capsys: pytest.CaptureFixture[str]) -> None:
    model = small_net()
    solver = Solver(
        model,
        toy_data(),
        num_epochs=10,
        batch_size=20,
        update_rule="adam",
        optim_config={"learning_rate": 1e-2},
        verbose=True,
        print_every=1,
    )
    solver.train()
    assert len(solver.loss_history) == 20
    assert len(solver.train_acc_history) == len(solver.val_acc_history) == 11
    assert solver.best_val_acc == max(solver.val_acc_history)
    assert solver.train_acc_history[-1] >= 0.95
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"(Iteration 1 / 20) loss: {solver.loss_history[0]:f}"
    assert lines[1] == (
        f"(Epoch 0 / 10) train acc: {solver.train_acc_history[0]:f}; "
        f"val_acc: {solver.val_acc_history[0]:f}"
    )
    assert lines[2].startswith("(Iteration 2 / 20)")
    assert lines[3].startswith("(Epoch 1 / 10)")
    assert len(lines) == 31
    # The network is left with the best weights.
    assert solver.check_accuracy(solver.X_val, solver.y_val) == solver.best_val_acc
    for name, p in model.params.items():
        np.testing.assert_array_equal(p, solver.best_params[name])


def test_solver_is_quiet_and_repeatable(capsys: pytest.CaptureFixture[str]) -> None:
    losses = []
    for seed in (5, 5, 6):
        model = small_net(use_batchnorm=True)
        seed_numpy(seed)
        solver = Solver(model, toy_data(), num_epochs=2, batch_size=7, verbose=False)
        solver.train()
        losses.append(solver.loss_history)
    assert losses[0] == losses[1] != losses[2]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("rule", ["sgd", "sgd_momentum", "rmsprop", "adam"])
def test_solver_takes_the_rules_own_steps(rule: str) -> None:
    """The whole training set at once: what the Solver does is what the function of `optim` says."""
    data = toy_data()
    config = {"learning_rate": 0.02}
    model, twin = small_net(dtype=np.float64), small_net(dtype=np.float64)
    options = {"num_epochs": 3, "batch_size": 40, "lr_decay": 0.5, "verbose": False}
    # The last weights are the ones to look at, so they must be the best.
    data["X_val"], data["y_val"] = np.zeros((1, 1, 8, 8)), np.zeros(1, int)
    solver = Solver(model, data, update_rule=rule, optim_config=config, **options)
    for _ in range(3):
        solver.step()
    configs = {name: dict(config) for name in twin.params}
    for _ in range(3):
        _, grads = twin.loss(data["X_train"], data["y_train"])
        for name, w in twin.params.items():
            twin.params[name], configs[name] = getattr(cs231n, rule)(w, grads[name], configs[name])
            configs[name]["learning_rate"] *= 0.5
    for name, p in model.params.items():
        np.testing.assert_allclose(p, twin.params[name], rtol=1e-9, atol=1e-11, err_msg=name)


class TwoLayerNet:
    """A student's model: a plain dict of arrays, in float64, and gradients in any layout."""

    def __init__(self) -> None:
        self.params = {"W1": rand(64, 4) / 10, "b1": np.zeros(4)}

    def loss(self, X: Any, y: Any = None) -> Any:
        scores, cache = affine_forward(X, self.params["W1"], self.params["b1"])
        if y is None:
            return scores
        loss, dscores = softmax_loss(scores, y)
        _, dw, db = affine_backward(dscores, cache)
        return loss, {"W1": np.asfortranarray(dw), "b1": db, "unused": None}


@pytest.mark.parametrize("rule", ["sgd", "sgd_momentum", "rmsprop", "adam"])
def test_solver_trains_a_students_model(rule: str) -> None:
    model = TwoLayerNet()
    seed_numpy(0)
    solver = Solver(
        model,
        toy_data(),
        update_rule=rule,
        optim_config={"learning_rate": 1e-2},
        num_epochs=10,
        batch_size=10,
        verbose=False,
    )
    solver.train()
    assert solver.best_val_acc >= 0.9


def test_solver_goes_on_after_a_loss_that_is_not_finite() -> None:
    model = TwoLayerNet()
    model.params["W1"][0] = np.nan
    solver = Solver(model, toy_data(), num_epochs=1, batch_size=10, verbose=False)
    solver.train()
    assert np.isnan(solver.loss_history).all()
    assert len(solver.loss_history) == 4


def test_solver_pickles_checkpoints(tmp_path: Path) -> None:
    name = str(tmp_path / "run")
    solver = Solver(
        small_net(), toy_data(), num_epochs=2, batch_size=20, checkpoint_name=name, verbose=False
    )
    solver.train()
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"run_epoch_{i}.pkl" for i in range(3)]
    with (tmp_path / "run_epoch_2.pkl").open("rb") as file:
        saved = pickle.load(file)
    assert saved["epoch"] == 2
    assert saved["loss_history"] == solver.loss_history
    assert saved["model"].loss(solver.X_val).shape == (20, 4)


def test_solver_leaves_no_half_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = TwoLayerNet()
    name = str(tmp_path / "run")
    options: dict[str, Any] = {"num_epochs": 1, "checkpoint_name": name, "print_every": 100}
    Solver(model, toy_data(), **options).train()
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == f'Saving checkpoint to "{name}_epoch_1.pkl"'
    assert lines[2].startswith("(Epoch 1 / 1)")
    before = sorted((p.name, p.stat().st_size) for p in tmp_path.iterdir())
    model.secret = lambda: 0  # type: ignore[attr-defined]  # what no pickle takes
    with pytest.raises((AttributeError, pickle.PicklingError)):
        Solver(model, toy_data(), **options).train()
    assert sorted((p.name, p.stat().st_size) for p in tmp_path.iterdir()) == before


def test_solver_trains_on_when_it_is_asked_again(capsys: pytest.CaptureFixture[str]) -> None:
    solver = Solver(small_net(), toy_data(), num_epochs=2, batch_size=20, print_every=1)
    solver.train()
    capsys.readouterr()
    solver.train()
    assert (solver.epoch, len(solver.loss_history), len(solver.val_acc_history)) == (4, 8, 5)
    assert capsys.readouterr().out.startswith("(Iteration 5 / 8)")


@pytest.mark.parametrize("make", [TwoLayerNet, small_net])
def test_solver_takes_over_parameters_that_are_replaced(make: Any) -> None:
    model, twin = make(), make()
    name = "W1"
    options: dict[str, Any] = {"num_epochs": 1, "batch_size": 40, "verbose": False}
    solver = Solver(model, toy_data(), **options)
    for net in (model, twin):
        net.params[name] = 0.5 * net.params[name]
    solver.step()
    Solver(twin, toy_data(), **options).step()
    np.testing.assert_allclose(model.params[name], twin.params[name], rtol=1e-5, atol=1e-7)
    assert not np.array_equal(model.params[name], 0.5 * make().params[name])


def test_solver_refuses_what_it_does_not_know() -> None:
    data = toy_data()
    with pytest.raises(ValueError, match="update_rule"):
        Solver(small_net(), data, update_rule="adagrad")
    with pytest.raises(ValueError, match="print_every"):
        Solver(small_net(), data, print_every=0)
    with pytest.raises(ValueError, match="momentum"):
        Solver(small_net(), data, update_rule="sgd", optim_config={"momentum": 0.9})
    with pytest.raises(TypeError, match="epochs"):
        Solver(small_net(), data, epochs=3)


# --- CIFAR-10


def test_get_cifar10_data(tmp_path: Path) -> None:
    """From files in the official binary layout: a label, then the pixels channel by channel."""
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    rng = np.random.default_rng(0)
    records = rng.integers(256, size=(60, 3073), dtype=np.uint8)
    records[:, 0] %= 10
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for name, part in zip(names, np.split(records, 6), strict=True):
        part.tofile(folder / f"{name}.bin")
    pixels, labels = records[:, 1:].reshape(60, 3, 32, 32), records[:, 0]

    raw = get_CIFAR10_data(40, 10, 5, subtract_mean=False, directory=tmp_path)
    assert list(raw) == ["X_train", "y_train", "X_val", "y_val", "X_test", "y_test"]
    for name, images in (("train", slice(40)), ("val", slice(40, 50)), ("test", slice(50, 55))):
        np.testing.assert_array_equal(raw[f"X_{name}"], pixels[images])
        np.testing.assert_array_equal(raw[f"y_{name}"], labels[images])
    for size in (20, 35):  # the validation images follow those for training
        part = get_CIFAR10_data(size, 10, 5, subtract_mean=False, directory=tmp_path)
        np.testing.assert_array_equal(part["X_val"], pixels[size : size + 10])
        np.testing.assert_array_equal(part["y_val"], labels[size : size + 10])
    data = get_CIFAR10_data(30, 10, 10, directory=tmp_path)
    mean = pixels[:30].mean(axis=0)
    assert data["X_train"].dtype == np.float32
    np.testing.assert_allclose(data["X_train"], pixels[:30] - mean, rtol=0, atol=1e-4)
    np.testing.assert_allclose(data["X_test"], pixels[50:] - mean, rtol=0, atol=1e-4)
    with pytest.raises(FileNotFoundError, match="data_batch_1"):
        get_CIFAR10_data(directory=tmp_path / "nowhere")


def test_cells_on_cifar10() -> None:
    """ECE 239AS, CNN.ipynb: the shapes, and the network that learns 100 images by heart."""
    folder = os.environ.get("CNNFAST_DATA")
    if not folder:
        pytest.skip("CNNFAST_DATA names no folder of real data")
    if not (Path(folder) / "cifar-10-batches-py").is_dir():
        pytest.skip("no cifar-10-batches-py in CNNFAST_DATA")
    data = get_CIFAR10_data(directory=folder)
    assert {name: a.shape for name, a in data.items()} == {
        "X_train": (49000, 3, 32, 32),
        "y_train": (49000,),
        "X_val": (1000, 3, 32, 32),
        "y_val": (1000,),
        "X_test": (1000, 3, 32, 32),
        "y_test": (1000,),
    }
    small_data = {
        "X_train": data["X_train"][:100],
        "y_train": data["y_train"][:100],
        "X_val": data["X_val"],
        "y_val": data["y_val"],
    }
    seed_numpy(231)
    model = ThreeLayerConvNet(weight_scale=1e-2)
    solver = Solver(
        model,
        small_data,
        num_epochs=10,
        batch_size=50,
        update_rule="adam",
        optim_config={"learning_rate": 1e-3},
        verbose=False,
    )
    solver.train()
    assert max(solver.train_acc_history) >= 0.8
    assert max(solver.val_acc_history) >= 0.15
