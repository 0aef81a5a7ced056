"""MyTorch (CMU 11-785): the handout's names and sizes, its autograder's recipes, and the corners.

Expected values are worked out by hand, by NumPy's own window views and sums, by `cnnfast.naive`'s
loops, or by finite differences.
"""

from __future__ import annotations

import copy
import inspect
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from cnnfast import naive
from cnnfast.compat import mytorch
from cnnfast.compat.mytorch import (
    CNN,
    BatchNorm1d,
    CNN_DistributedScanningMLP,
    CNN_SimpleScanningMLP,
    Conv1d,
    Conv1d_stride1,
    Conv2d,
    Conv2d_stride1,
    ConvTranspose1d,
    ConvTranspose2d,
    CrossEntropyLoss,
    Downsample1d,
    Downsample2d,
    Flatten,
    Identity,
    Linear,
    MaxPool1d,
    MaxPool1d_stride1,
    MaxPool2d,
    MaxPool2d_stride1,
    MeanPool1d,
    MeanPool1d_stride1,
    MeanPool2d,
    MeanPool2d_stride1,
    MSELoss,
    ReLU,
    Sigmoid,
    Tanh,
    Upsample1d,
    Upsample2d,
)
from cnnfast.gradcheck import numeric_gradient

Array = np.ndarray

# What the homework's autograder allows a convolution in float64 to be off.
GRADER = 1e-12


def near(a: Any, b: Any, tolerance: float = GRADER) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    return a.shape == b.shape and bool(np.all(np.abs(a - b) <= tolerance))


def same(a: Any, b: Any) -> bool:
    return np.shape(a) == np.shape(b) and bool(np.array_equal(a, b))


def autograder(seed: int) -> tuple[Any, Any]:
    """``randint`` and ``normal(*shape)`` as the homework's autograder draws after that seed."""
    # It seeds NumPy's global generator, which is one of these.
    draw = np.random.RandomState(seed)
    return draw.randint, lambda *shape: draw.normal(0, 1.0, shape)


# The names

_CONV_STRIDE1 = "in_channels out_channels kernel_size weight_init_fn bias_init_fn"
_CONV = "in_channels out_channels kernel_size stride weight_init_fn bias_init_fn"
_CONV_TRANSPOSE = (
    "in_channels out_channels kernel_size upsampling_factor weight_init_fn bias_init_fn"
)
PARAMETERS = {
    "Upsample1d": "upsampling_factor",
    "Upsample2d": "upsampling_factor",
    "Downsample1d": "downsampling_factor",
    "Downsample2d": "downsampling_factor",
    "Conv1d_stride1": _CONV_STRIDE1,
    "Conv1d": _CONV,
    "Conv2d_stride1": _CONV_STRIDE1,
    "Conv2d": _CONV,
    "ConvTranspose1d": _CONV_TRANSPOSE,
    "ConvTranspose2d": _CONV_TRANSPOSE,
    "Flatten": "",
    "MaxPool1d_stride1": "kernel",
    "MaxPool2d_stride1": "kernel",
    "MeanPool1d_stride1": "kernel",
    "MeanPool2d_stride1": "kernel",
    "MaxPool1d": "kernel stride",
    "MaxPool2d": "kernel stride",
    "MeanPool1d": "kernel stride",
    "MeanPool2d": "kernel stride",
    "Linear": "in_features out_features weight_init_fn bias_init_fn",
    "ReLU": "",
    "Sigmoid": "",
    "Tanh": "",
    "Identity": "",
    "BatchNorm1d": "num_features alpha",
    "MSELoss": "",
    "CrossEntropyLoss": "",
    "CNN_SimpleScanningMLP": "",
    "CNN_DistributedScanningMLP": "",
    "CNN": "input_width num_input_channels num_channels kernel_sizes strides num_linear_neurons "
    "activations conv_weight_init_fn bias_init_fn linear_weight_init_fn criterion lr",
}


def test_every_name_is_there_and_no_other() -> None:
    assert sorted(mytorch.__all__) == sorted(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_handouts_in_its_order(name: str) -> None:
    cls = getattr(mytorch, name)
    names = [] if cls.__init__ is object.__init__ else list(inspect.signature(cls).parameters)
    assert names == PARAMETERS[name].split()
    forward = list(inspect.signature(cls.forward).parameters)[1:]
    backward = list(inspect.signature(cls.backward).parameters)[1:]
    if name.endswith("Loss"):
        assert (forward, backward) == (["A", "Y"], [])
    elif name == "BatchNorm1d":
        assert (forward, backward) == (["Z", "eval"], ["dLdBZ"])
    elif name in ("ReLU", "Sigmoid", "Tanh", "Identity"):
        assert (forward, backward) == (["Z"], ["dLdA"])
    else:
        assert (forward, backward) == (["A"], ["labels" if name == "CNN" else "dLdZ"])


# Every layer at once

# Sizes that neither factors nor strides divide, rectangular images, kernels and factors.
LAYERS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "up 1d": (lambda: Upsample1d(3), (2, 3, 5)),
    "up 2d": (lambda: Upsample2d(2), (2, 2, 3, 4)),
    "up 2d, rectangular": (lambda: Upsample2d((1, 3)), (2, 2, 3, 4)),
    "down 1d": (lambda: Downsample1d(3), (2, 3, 8)),
    "down 1d, beyond the end": (lambda: Downsample1d(9), (2, 3, 8)),
    "down 2d": (lambda: Downsample2d(2), (2, 2, 4, 5)),
    "down 2d, rectangular": (lambda: Downsample2d((3, 2)), (2, 2, 5, 4)),
    "conv 1d, stride 1": (lambda: Conv1d_stride1(3, 4, 2), (2, 3, 6)),
    "conv 1d": (lambda: Conv1d(3, 4, 3, 2), (2, 3, 8)),
    "conv 1d, stride over kernel": (lambda: Conv1d(3, 4, 2, 5), (2, 3, 9)),
    "conv 1d, 1 wide": (lambda: Conv1d(3, 4, 1, 1), (2, 3, 4)),
    "conv 2d, stride 1": (lambda: Conv2d_stride1(2, 3, 2), (2, 2, 4, 5)),
    "conv 2d, rectangular": (lambda: Conv2d_stride1(2, 3, (3, 2)), (2, 2, 4, 6)),
    "conv 2d": (lambda: Conv2d(2, 3, 3, 2), (2, 2, 6, 7)),
    "conv 2d, stride over kernel": (lambda: Conv2d(2, 3, (1, 2), (2, 4)), (2, 2, 4, 7)),
    "transposed 1d": (lambda: ConvTranspose1d(3, 2, 2, 3), (2, 3, 4)),
    "transposed 2d": (lambda: ConvTranspose2d(2, 3, 3, 2), (2, 2, 3, 4)),
    "transposed 2d, rectangular": (lambda: ConvTranspose2d(2, 3, (2, 3), (1, 2)), (1, 2, 3, 4)),
    "flatten": (Flatten, (2, 3, 2, 2)),
    "max 1d, stride 1": (lambda: MaxPool1d_stride1(3), (2, 3, 7)),
    "max 1d": (lambda: MaxPool1d(2, 3), (2, 3, 7)),
    "max 2d, stride 1": (lambda: MaxPool2d_stride1((2, 3)), (2, 2, 4, 5)),
    "max 2d, overlapping": (lambda: MaxPool2d(3, 2), (2, 2, 6, 7)),
    "max 2d, stride over kernel": (lambda: MaxPool2d((1, 2), (2, 3)), (2, 2, 4, 7)),
    "mean 1d, stride 1": (lambda: MeanPool1d_stride1(3), (2, 3, 7)),
    "mean 1d": (lambda: MeanPool1d(2, 3), (2, 3, 7)),
    "mean 2d, stride 1": (lambda: MeanPool2d_stride1((2, 3)), (2, 2, 4, 5)),
    "mean 2d, overlapping": (lambda: MeanPool2d(3, 2), (2, 2, 6, 7)),
    "mean 2d, stride over kernel": (lambda: MeanPool2d((1, 2), (2, 3)), (2, 2, 4, 7)),
    "linear": (lambda: Linear(5, 3), (4, 5)),
    "identity": (Identity, (3, 4)),
    "relu": (ReLU, (3, 4)),
    "sigmoid": (Sigmoid, (3, 4)),
    "tanh": (Tanh, (3, 4)),
    "batch norm": (lambda: BatchNorm1d(3), (5, 3)),
    "simple scan": (CNN_SimpleScanningMLP, (2, 24, 13)),
    "distributed scan": (CNN_DistributedScanningMLP, (2, 24, 13)),
}


def distinct(shape: tuple[int, ...], seed: int = 0) -> Array:
    """Numbers that are far apart (no ties, none near 0), in any order."""
    count = int(np.prod(shape))
    values = np.linspace(-2, 2, count + count % 2)[:count]
    return np.random.default_rng(seed).permutation(values).reshape(shape)


def weighted(layer: Any) -> list[Any]:
    """The layer, or those inside, that hold W and b."""
    inner = getattr(layer, "layers", [layer])
    return [one for one in inner if hasattr(one, "W")]


def layer_and_input(name: str) -> tuple[Any, Array]:
    make, shape = LAYERS[name]
    layer = make()
    if isinstance(layer, BatchNorm1d):
        layer.BW, layer.Bb = distinct((1, 3)), distinct((1, 3), 1)
    for one in weighted(layer):
        one.W, one.b = distinct(one.W.shape, 2) / 2, distinct(one.b.shape, 3)
    return layer, distinct(shape)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_the_slopes(name: str) -> None:
    layer, A = layer_and_input(name)
    dLdZ = distinct(np.shape(layer.forward(A)), 1)
    dLdA = layer.backward(dLdZ)
    assert near(dLdA, numeric_gradient(layer.forward, A.copy(), dLdZ), 1e-7)
    for one in weighted(layer):
        dLdW, dLdb = one.dLdW, one.dLdb
        assert near(dLdW, numeric_gradient(lambda _: layer.forward(A), one.W, dLdZ), 1e-7)
        assert near(dLdb, numeric_gradient(lambda _: layer.forward(A), one.b, dLdZ), 1e-7)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_may_be_called(name: str) -> None:
    layer, A = layer_and_input(name)
    assert same(layer(A), layer.forward(A))


def guises(A: Array) -> Iterator[tuple[str, Any]]:
    """The same numbers in other memory layouts."""
    every_other = np.full((*A.shape[:-1], 2 * A.shape[-1]), np.nan)
    every_other[..., ::2] = A
    read_only = A.copy()
    read_only.flags.writeable = False
    yield "Fortran order", np.asfortranarray(A)
    yield "sliced", every_other[..., ::2]
    yield "backwards", np.ascontiguousarray(A[::-1])[::-1]
    yield "read-only", read_only
    yield "a list", A.tolist()


@pytest.mark.parametrize("name", LAYERS)
def test_memory_layout_does_not_matter_and_inputs_stay(name: str) -> None:
    layer, A = layer_and_input(name)
    Z = layer.forward(A)
    dLdZ = distinct(np.shape(Z), 1)
    dLdA = layer.backward(dLdZ)
    for (how, one), (_, other) in zip(guises(A), guises(dLdZ), strict=True):
        before = copy.deepcopy(one), copy.deepcopy(other)
        assert near(layer.forward(one), Z), how
        assert near(layer.backward(other), dLdA), how
        assert same(one, before[0]), how
        assert same(other, before[1]), how


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "batch norm"])
def test_an_empty_batch_stays_one(name: str) -> None:
    layer, A = layer_and_input(name)
    dLdZ = np.zeros((0, *np.shape(layer.forward(A))[1:]))
    Z = layer.forward(A[:0])
    assert Z.shape == dLdZ.shape
    assert layer.backward(dLdZ).shape == A[:0].shape
    for one in weighted(layer):
        assert same(one.dLdW, np.zeros(one.W.shape))
        assert same(one.dLdb, np.zeros(one.b.shape))


@pytest.mark.parametrize("name", LAYERS)
def test_backward_needs_a_forward(name: str) -> None:
    layer, A = layer_and_input(name)
    dLdZ = np.zeros(np.shape(copy.deepcopy(layer).forward(A)))
    with pytest.raises(RuntimeError, match="call forward first"):
        layer.backward(dLdZ)


@pytest.mark.parametrize("name", LAYERS)
def test_a_pickled_layer_goes_on_where_it_was(name: str) -> None:
    layer, A = layer_and_input(name)
    dLdZ = distinct(np.shape(layer.forward(A)), 1)
    again = pickle.loads(pickle.dumps(layer))
    assert same(again.backward(dLdZ), layer.backward(dLdZ))
    for one, other in zip(weighted(again), weighted(layer), strict=True):
        assert same(one.dLdW, other.dLdW)


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "flatten"])
def test_a_gradient_of_another_size_is_refused(name: str) -> None:
    layer, A = layer_and_input(name)
    Z = layer.forward(A)
    with pytest.raises(ValueError, match=r"must have shape|has shape|reshape|differ"):
        layer.backward(np.zeros((*Z.shape[:-1], Z.shape[-1] + 1)))


def test_float32_stays_float32_where_the_weights_are() -> None:
    draw = np.random.default_rng(0)
    init: Any = lambda *shape: draw.normal(size=shape).astype(np.float32)  # noqa: E731
    zeros: Any = lambda n: np.zeros(n, np.float32)  # noqa: E731
    for layer, shape in (
        (Conv1d(3, 4, 2, 2, init, zeros), (2, 3, 7)),
        (Conv2d(3, 4, 2, 2, init, zeros), (2, 3, 7, 6)),
        (Linear(5, 3, init, zeros), (2, 5)),
        (MaxPool2d(2, 2), (2, 3, 5, 6)),
        (Upsample1d(2), (2, 3, 5)),
        (Tanh(), (2, 3)),
        (Identity(), (2, 3)),
    ):
        Z = layer.forward(distinct(shape).astype(np.float32))
        assert Z.dtype == layer.backward(Z).dtype == np.float32
    # Integers count as float64.
    assert Identity()(np.array([-1, 2])).dtype == np.float64
    assert Upsample1d(2)([[[1, 2]]]).tolist() == [[[1.0, 0.0, 2.0]]]


# Section 4: resampling, with the autograder's seeds and ranges

SEEDS = 11333, 11235, 11785, 11593, 34567


@pytest.mark.parametrize("seed", SEEDS)
def test_resampling_of_signals(seed: int) -> None:
    rint, normal = autograder(seed)
    C, _ = rint(5, 15), rint(5, 15)
    N, W = rint(1, 4), rint(20, 300)
    _, k = rint(1, 10), rint(1, 10)
    x = normal(N, C, W)

    up = Upsample1d(k)
    Z = up.forward(x)
    assert Z.shape == (N, C, W * k - (k - 1))
    assert same(Z[:, :, ::k], x)
    assert np.count_nonzero(Z) == np.count_nonzero(x)
    assert same(up.backward(Z), x)

    down = Downsample1d(k)
    Z = down.forward(x)
    assert Z.shape == (N, C, (W - 1) // k + 1)
    assert same(Z, x[:, :, ::k])
    assert same(down.backward(Z), np.where(np.arange(W) % k == 0, x, 0))


@pytest.mark.parametrize("seed", SEEDS)
def test_resampling_of_images(seed: int) -> None:
    rint, normal = autograder(seed)
    N, C, H, W = rint(1, 4), rint(2, 4), rint(13, 20), rint(11, 25)
    k = rint(1, 10)
    x = normal(N, C, H, W)

    up = Upsample2d(k)
    Z = up.forward(x)
    assert Z.shape == (N, C, H * k - (k - 1), W * k - (k - 1))
    assert same(Z[:, :, ::k, ::k], x)
    assert np.count_nonzero(Z) == np.count_nonzero(x)
    assert same(up.backward(Z), x)

    down = Downsample2d(k)
    Z = down.forward(x)
    assert Z.shape == (N, C, (H - 1) // k + 1, (W - 1) // k + 1)
    assert same(Z, x[:, :, ::k, ::k])
    kept = np.zeros((H, W), bool)
    kept[::k, ::k] = True
    assert same(down.backward(Z), np.where(kept, x, 0))


@pytest.mark.parametrize("W", range(4, 10))
def test_downsampling_gives_back_the_size_that_there_was(W: int) -> None:
    # 4 and 5, 6 and 7, ... come to one size with factor 2; the handout's sketch keeps neither.
    layer = Downsample1d(2)
    Z = layer(np.ones((1, 1, W)))
    assert layer.backward(Z).tolist() == [[[1.0 - i % 2 for i in range(W)]]]


# Sections 5.1 and 5.2: convolutions


def conv_by_windows(x: Array, W: Array, b: Array, dZ: Array) -> tuple[Array, ...]:
    """Z, dA, dW, db of a convolution with stride 1, as section 5 describes them."""
    sizes = W.shape[2:]
    axes = tuple(range(2, 2 + len(sizes)))
    own = "kl"[: len(sizes)]
    at = "yx"[: len(sizes)]
    windows = sliding_window_view(x, sizes, axes)
    sums = partial(np.einsum, optimize=True)
    Z = sums(f"nc{at}{own},fc{own}->nf{at}", windows, W) + b.reshape(-1, *[1] * len(sizes))
    dW = sums(f"nf{at},nc{at}{own}->fc{own}", dZ, windows)
    db = dZ.sum(axis=(0, *axes))
    padded = np.pad(dZ, [(0, 0), (0, 0), *((k - 1, k - 1) for k in sizes)])
    flipped = np.flip(W, axes)
    dA = sums(f"nf{at}{own},fc{own}->nc{at}", sliding_window_view(padded, sizes, axes), flipped)
    return Z, dA, dW, db


def test_conv1d_stride1_as_the_autograder_draws_it() -> None:
    rint, normal = autograder(2020)
    for _ in range(15):
        in_c, out_c = rint(5, 15), rint(5, 15)
        kernel = rint(1, 10)
        batch, width = rint(1, 4), rint(20, 300)
        net = Conv1d_stride1(in_c, out_c, kernel, normal, np.ones)
        x = normal(batch, in_c, width)
        delta = normal(batch, out_c, width - kernel + 1)
        Z, dA, dW, db = conv_by_windows(x, net.W, net.b, delta)
        y = net.forward(x)
        assert type(y) is np.ndarray
        assert near(y, Z)
        assert near(net.backward(delta), dA)
        assert near(net.dLdW, dW)
        assert near(net.dLdb, db)
        assert net.A is x


def test_conv1d_as_the_autograder_draws_it() -> None:
    rint, normal = autograder(2020)
    for _ in range(15):
        in_c, out_c = rint(5, 15), rint(5, 15)
        kernel, stride = rint(1, 10), rint(1, 10)
        batch, width = rint(1, 4), rint(20, 300)
        net = Conv1d(in_c, out_c, kernel, stride, normal, np.ones)
        x = normal(batch, in_c, width)
        delta = normal(batch, out_c, (width - kernel) // stride + 1)
        spread = np.zeros((batch, out_c, width - kernel + 1))
        spread[:, :, ::stride] = delta
        Z, dA, dW, db = conv_by_windows(x, net.conv1d_stride1.W, net.conv1d_stride1.b, spread)
        assert near(net.forward(x), Z[:, :, ::stride])
        assert near(net.backward(delta), dA)
        assert near(net.conv1d_stride1.dLdW, dW)
        assert near(net.conv1d_stride1.dLdb, db)


@pytest.mark.parametrize("strided", [False, True])
def test_conv2d_as_the_autograder_draws_it(strided: bool) -> None:
    rint, normal = autograder(11785)
    for _ in range(2):
        in_c, out_c = rint(5, 15), rint(5, 15)
        kernel = rint(3, 7)
        stride = rint(3, 5) if strided else 1
        width = rint(60, 80)
        batch = rint(1, 4)
        x = normal(batch, in_c, width, width)
        net: Any
        if strided:
            net = Conv2d(in_c, out_c, kernel, stride, normal, np.zeros)
            inner = net.conv2d_stride1
        else:
            net = inner = Conv2d_stride1(in_c, out_c, kernel, normal, np.zeros)
        out_width = (width - kernel) // stride + 1
        delta = normal(batch, out_c, out_width, out_width)
        spread = np.zeros((batch, out_c, *[width - kernel + 1] * 2))
        spread[:, :, ::stride, ::stride] = delta
        Z, dA, dW, db = conv_by_windows(x, inner.W, inner.b, spread)
        assert near(net.forward(x), Z[:, :, ::stride, ::stride])
        assert near(net.backward(delta), dA)
        assert near(inner.dLdW, dW)
        assert near(inner.dLdb, db)


def test_strided_convolutions_are_the_loops() -> None:
    draw = np.random.default_rng(5)
    x = draw.normal(size=(2, 3, 9, 7))
    net = Conv2d(3, 2, (3, 2), (2, 3), lambda *shape: draw.normal(size=shape), np.ones)
    dZ = draw.normal(size=(2, 2, 4, 2))
    assert near(net(x), naive.conv2d(x, net.W, net.b, (2, 3)))
    dx, dw, db = naive.conv2d_backward(dZ, x, net.W, (2, 3))
    assert near(net.backward(dZ), dx)
    assert near(net.dLdW, dw)
    assert near(net.dLdb, db)


@pytest.mark.parametrize(
    ("net", "conv", "resampling"),
    [
        (Conv1d(2, 3, 2, 2), "conv1d_stride1", "downsample1d"),
        (Conv2d(2, 3, 2, 2), "conv2d_stride1", "downsample2d"),
        (ConvTranspose1d(2, 3, 2, 2), "conv1d_stride1", "upsample1d"),
        (ConvTranspose2d(2, 3, 2, 2), "conv2d_stride1", "upsample2d"),
    ],
)
def test_what_can_be_reached_in_a_convolution(net: Any, conv: str, resampling: str) -> None:
    inner = getattr(net, conv)
    assert (inner.in_channels, inner.out_channels, inner.kernel_size) == (2, 3, 2)
    if resampling.startswith("down"):
        assert net.stride == getattr(net, resampling).downsampling_factor == 2
    else:
        assert net.upsampling_factor == getattr(net, resampling).upsampling_factor == 2
    assert inner.b.shape == inner.dLdb.shape == (3,)
    assert inner.W.shape == inner.dLdW.shape
    assert not inner.b.any()
    assert not inner.dLdW.any()
    for name in ("W", "b", "dLdW", "dLdb"):
        assert getattr(net, name) is getattr(inner, name)
    net.W = np.ones_like(inner.W)
    assert same(inner.W, np.ones(inner.W.shape))
    x = distinct((2, 2, 9) if "1d" in conv else (2, 2, 9, 8))
    Z = net(x)
    net.b = np.full(3, 5.0)
    assert near(net(x), Z + 5)


def test_another_weight_array_is_used_from_then_on() -> None:
    net = Conv1d_stride1(1, 1, 2)
    x = np.array([[[1.0, 2.0, 4.0]]])
    for W in (np.array([[[1.0, 1.0]]]), np.array([[[1, -1]]]), np.array([[[0.5]]], np.float32)):
        net.W = W
        before = W.copy()
        assert near(net(x), naive.conv1d(x, W, None), 0)
        net.backward(net(x))
        assert net.W is W
        assert same(W, before)


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_biases_may_be_a_column(shape: tuple[int, ...]) -> None:
    # Tables 5 and 7 say C x 1, bias_init_fn(out_channels) gives C.
    net, x = Conv1d_stride1(2, 3, 2), distinct((4, 2, 5))
    Z = net(x)
    net.b = np.arange(3.0).reshape(shape)
    assert near(net(x), Z + np.arange(3.0)[None, :, None])
    net.backward(np.ones((4, 3, 4)))
    assert same(net.dLdb, np.full(shape, 16.0))


def test_functions_of_shape() -> None:
    shapes = []

    def weights(*shape: int) -> Array:
        shapes.append(shape)
        return np.ones(shape)

    def biases(*shape: int) -> Array:
        shapes.append(shape)
        return np.ones(shape)

    Conv1d(2, 3, 4, 5, weights, biases)
    Conv2d(2, 3, 4, 5, weights, biases)
    ConvTranspose1d(2, 3, 4, 5, weight_init_fn=weights, bias_init_fn=biases)
    ConvTranspose2d(2, 3, (4, 6), 5, weight_init_fn=weights, bias_init_fn=biases)
    linear = Linear(7, 3, weights, biases)
    assert shapes[::2] == [(3, 2, 4), (3, 2, 4, 4), (3, 2, 4), (3, 2, 4, 6), (3, 7)]
    assert shapes[1::2] == [(3,)] * 5
    assert linear.b.shape == linear.dLdb.shape == (3, 1)
    assert Conv1d(2, 3, 4, 1, lambda *shape: np.ones(shape).tolist(), lambda n: [0] * n)(
        np.ones((1, 2, 5))
    ).tolist() == [[[8.0, 8.0]] * 3]
    with pytest.raises(ValueError, match=r"Conv1d_stride1: weight_init_fn\(3, 2, 4\).*\(3, 4, 2\)"):
        Conv1d(2, 3, 4, 1, lambda F, C, K: np.ones((F, K, C)))


def test_without_functions_weights_are_drawn_afresh_and_the_global_seed_is_not_read() -> None:
    state = np.random.get_state()  # noqa: NPY002
    one, other = Conv1d(3, 4, 5, 1), Conv1d(3, 4, 5, 1)
    assert one.W.dtype == np.float64
    assert (one.W != other.W).all()
    assert np.abs(one.W).max() <= (1 / 15) ** 0.5
    after = np.random.get_state()  # noqa: NPY002
    assert same(after[1], state[1])
    assert after[2:] == state[2:]


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Conv1d(0, 2, 3, 1), ValueError, "Conv1d_stride1: in_channels"),
        (lambda: Conv1d(2, 2.0, 3, 1), TypeError, "Conv1d_stride1: out_channels"),
        (lambda: Conv2d(2, 2, (3, 0), 1), ValueError, "Conv2d_stride1: kernel_size"),
        (lambda: Linear(2, -1), ValueError, "Linear: out_features"),
        (lambda: Linear(2, 2, False), TypeError, "Linear: weight_init_fn must be a function"),
        (lambda: Linear(2, 2, None, 0), TypeError, "Linear: bias_init_fn must be a function"),
        (lambda: Conv1d(2, 2, 3, 1, None, lambda n: 0), ValueError, r"stride1: bias_init_fn\(2\)"),
        (lambda: BatchNorm1d(0), ValueError, "BatchNorm1d: num_features"),
        (lambda: BatchNorm1d(2.0), TypeError, "BatchNorm1d: num_features"),
        (lambda: Flatten()(1.0), ValueError, "Flatten: A must"),
        (lambda: Conv1d(2, 2, 3, 0)(np.ones((1, 2, 5))), ValueError, "factor"),
        (lambda: Conv1d(2, 2, 3, 1)(np.ones((1, 3, 5))), ValueError, "conv1d: .*channels"),
        (lambda: Conv1d(2, 2, 3, 1)(np.ones((1, 2, 2))), ValueError, "conv1d"),
        (lambda: Conv2d(2, 2, 3, 1)(np.ones((2, 5, 5))), ValueError, "conv2d: x"),
        (lambda: MaxPool2d(0, 1)(np.ones((1, 2, 5, 5))), ValueError, "kernel_size"),
        (lambda: MaxPool1d(2, 1.5)(np.ones((1, 2, 5))), TypeError, "factor"),
        (lambda: Upsample1d(0)(np.ones((1, 2, 5))), ValueError, "factor"),
        (lambda: Downsample2d(2)(np.ones((1, 2, 5))), ValueError, "x must"),
    ],
)
def test_what_does_not_fit_is_named(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


# Section 5.3: transposed convolutions


@pytest.mark.parametrize("seed", [11485, 11685, 11785])
def test_transposed_convolutions(seed: int) -> None:
    rint, normal = autograder(seed)
    in_c, out_c = rint(3, 5), rint(3, 5)
    N, W = rint(1, 4), rint(9, 14)
    kernel, k = rint(1, 5), rint(1, 4)
    for net, x in (
        (ConvTranspose1d(in_c, out_c, kernel, k, normal, np.ones), normal(N, in_c, W)),
        (ConvTranspose2d(in_c, out_c, kernel, k, normal, np.ones), normal(N, in_c, W, W - 2)),
    ):
        axes = tuple(range(2, x.ndim))
        upsampled = np.zeros((N, in_c, *((size - 1) * k + 1 for size in x.shape[2:])))
        upsampled[(..., *(slice(None, None, k) for _ in axes))] = x
        delta = normal(N, out_c, *(size - kernel + 1 for size in upsampled.shape[2:]))
        Z, dA, dW, db = conv_by_windows(upsampled, net.W, net.b, delta)
        assert near(net.forward(x), Z)
        assert near(net.backward(delta), dA[(..., *(slice(None, None, k) for _ in axes))])
        assert near(net.dLdW, dW)
        assert near(net.dLdb, db)


def test_the_handouts_transposed_convolution_beside_pytorchs() -> None:
    draw = np.random.default_rng(3)
    net = ConvTranspose1d(3, 4, 5, 2, lambda *shape: draw.normal(size=shape), np.ones)
    x = draw.normal(size=(2, 3, 6))
    flipped = net.W.transpose(1, 0, 2)[:, :, ::-1]
    whole = naive.conv_transpose1d(x, flipped, net.b, stride=2)
    Z = net(x)
    assert whole.shape[2] - Z.shape[2] == 2 * (5 - 1)
    assert near(Z, whole[:, :, 4:-4])


# Sections 5.4 and 5.5: flatten, pooling


def test_flatten() -> None:
    layer = Flatten()
    A = np.arange(24.0).reshape(2, 3, 4)
    assert layer(A).tolist() == [list(range(12)), list(range(12, 24))]
    assert same(layer.backward(layer(A)), A)
    assert layer.input_shape == (2, 3, 4)
    with pytest.raises(ValueError, match=r"dLdZ must have shape \(2, 12\), not \(2, 11\)"):
        layer.backward(np.ones((2, 11)))


@pytest.mark.parametrize("seed", [11485, 11685, 11785])
@pytest.mark.parametrize("strided", [False, True])
def test_pooling_as_the_autograder_draws_it(seed: int, strided: bool) -> None:
    rint, normal = autograder(seed)
    kernel = rint(3, 7)
    s = rint(3, 5) if strided else 1
    H, W = rint(12, 20), rint(12, 20)
    C, N = rint(2, 5), rint(1, 4)
    x = normal(N, C, H, W)
    windows = sliding_window_view(x, (kernel, kernel), (2, 3))[:, :, ::s, ::s]
    largest, mean = windows.max((-1, -2)), windows.mean((-1, -2))

    maximum: Any = MaxPool2d(kernel, s) if strided else MaxPool2d_stride1(kernel)
    Z = maximum.forward(x)
    assert same(Z, largest)
    dLdA = np.zeros_like(x)
    for n, c, i, j in np.ndindex(Z.shape):
        at = np.unravel_index(windows[n, c, i, j].argmax(), (kernel, kernel))
        dLdA[n, c, i * s + at[0], j * s + at[1]] += Z[n, c, i, j]
    assert near(maximum.backward(Z), dLdA)

    average: Any = MeanPool2d(kernel, s) if strided else MeanPool2d_stride1(kernel)
    Z = average.forward(x)
    assert near(Z, mean)
    dLdA = np.zeros_like(x)
    for i, j in np.ndindex(Z.shape[2:]):
        area = np.s_[:, :, i * s : i * s + kernel, j * s : j * s + kernel]
        dLdA[area] += Z[:, :, i, j][:, :, None, None] / kernel**2
    assert near(average.backward(Z), dLdA)


def test_pooling_of_signals() -> None:
    A = np.array([[[1.0, 4.0, 2.0, 2.0, 0.0, 3.0]]])
    for layer, Z, dLdA in (
        (MaxPool1d_stride1(2), [4, 4, 2, 2, 3], [0, 2, 1, 1, 0, 1]),
        (MaxPool1d(2, 2), [4, 2, 3], [0, 1, 1, 0, 0, 1]),
        (MaxPool1d(3, 2), [4, 2], [0, 1, 1, 0, 0, 0]),
        (MaxPool1d(1, 4), [1, 0], [1, 0, 0, 0, 1, 0]),
        (MeanPool1d_stride1(2), [2.5, 3, 2, 1, 1.5], [0.5, 1, 1, 1, 1, 0.5]),
        (MeanPool1d(2, 3), [2.5, 1], [0.5, 0.5, 0, 0.5, 0.5, 0]),
    ):
        assert layer(A).tolist() == [[Z]]
        assert layer.backward(np.ones((1, 1, len(Z)))).tolist() == [[dLdA]]


def test_of_equal_values_the_first_in_row_major_order_counts() -> None:
    layer = MaxPool2d(2, 1)
    A = np.zeros((1, 1, 3, 3))
    assert same(layer(A), np.zeros((1, 1, 2, 2)))
    assert layer.backward(np.array([[[[1.0, 2.0], [3.0, 4.0]]]])).tolist() == [
        [[[1.0, 2.0, 0.0], [3.0, 4.0, 0.0], [0.0, 0.0, 0.0]]]
    ]
    # One element that is the largest of several windows gets the sum of their gradients.
    A[0, 0, 1, 1] = 1
    layer(A)
    assert layer.backward(np.ones((1, 1, 2, 2))).tolist() == [
        [[[0.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 0.0]]]
    ]


@pytest.mark.parametrize("name", ["MaxPool1d", "MaxPool2d", "MeanPool1d", "MeanPool2d"])
def test_what_can_be_reached_in_a_pooling(name: str) -> None:
    layer = getattr(mytorch, name)(3, 2)
    assert (layer.kernel, layer.stride) == (3, 2)
    assert getattr(layer, f"{name.lower()}_stride1").kernel == 3
    assert getattr(layer, f"downsample{name[-2:]}").downsampling_factor == 2


# From homework 1


def test_linear_by_hand() -> None:
    layer = Linear(2, 3)
    layer.W = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    layer.b = np.array([[1.0], [0.0], [-1.0]])
    assert layer(np.array([[1.0, 1.0], [0.0, 2.0]])).tolist() == [[4, 7, 10], [5, 8, 11]]
    assert layer.backward(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 2.0]])).tolist() == [
        [1, 2],
        [13, 16],
    ]
    # The sums over the batch: what a loss that is a mean has divided by N is not divided again.
    assert layer.dLdW.tolist() == [[1, 1], [0, 2], [0, 4]]
    assert layer.dLdb.tolist() == [[1], [1], [2]]


@pytest.mark.parametrize(
    ("layer", "A", "dAdZ"),
    [
        (Identity(), [-2.0, 0.0, 1.0], [1, 1, 1]),
        (ReLU(), [0.0, 0.0, 1.0], [0, 0, 1]),
        (
            Sigmoid(),
            [1 / (1 + np.exp(2)), 0.5, 1 / (1 + np.exp(-1))],
            [np.exp(2) / (1 + np.exp(2)) ** 2, 0.25, np.exp(1) / (1 + np.exp(1)) ** 2],
        ),
        (Tanh(), np.tanh([-2, 0, 1]), np.cosh([-2, 0, 1]) ** -2.0),
    ],
)
def test_activations_go_back_with_and_without_a_gradient(layer: Any, A: Any, dAdZ: Any) -> None:
    Z = np.array([-2.0, 0.0, 1.0])
    assert near(layer.forward(Z), A, 1e-15)
    assert layer.A is not Z
    assert near(layer.backward(), dAdZ, 1e-15)
    assert near(layer.backward(np.array([1.0, 2.0, 3.0])), np.array([1, 2, 3]) * dAdZ, 1e-15)


def test_extreme_scores_overflow_nowhere() -> None:
    with np.errstate(all="raise"):
        assert Sigmoid()(np.array([-1000.0, 1000.0])).tolist() == [0.0, 1.0]
        loss = CrossEntropyLoss()
        assert loss.forward(np.array([[1000.0, -1000.0]]), np.array([[0.0, 1.0]])) == 2000.0
        assert loss.backward().tolist() == [[1.0, -1.0]]
        assert loss.forward(np.array([[0.0, -np.inf]]), np.array([[1.0, 0.0]])) == 0.0


def test_losses_by_hand() -> None:
    A, Y = np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]), np.eye(3)[[1, 2]]
    mse = MSELoss()
    assert mse.forward(A, Y) == pytest.approx((1 + 1 + 9 + 0 + 0 + 1) / 6)
    assert near(mse.backward(), (A - Y) / 3, 1e-15)
    xent = CrossEntropyLoss()
    e = np.exp([1, 2, 3])
    assert xent.forward(A, Y) == pytest.approx((-np.log(e[1] / e.sum()) + np.log(3)) / 2)
    assert near(xent.backward(), (np.array([e / e.sum(), [1 / 3] * 3]) - Y) / 2, 1e-15)
    for loss in (mse, xent):
        value = loss(A, Y)
        assert isinstance(value, np.float64)
        assert value.sum() == value  # as the handout's CNN asks of it
        assert near(loss.backward(), numeric_gradient(lambda a: loss(a, Y), A), 1e-9)  # noqa: B023
        assert same(loss.A, A)
        assert same(loss.Y, Y)
        loss(A, Y)
        loss.backward()[...] = 7
        assert not (loss.backward() == 7).any()


def test_targets_may_be_probabilities_integers_or_booleans() -> None:
    loss = CrossEntropyLoss()
    A, Y = distinct((3, 4)), np.eye(4)[[0, 3, 1]]
    expected, gradient = loss(A, Y), loss.backward()
    for kind in (int, bool, np.float32):
        assert loss(A, Y.astype(kind)) == expected
        assert same(loss.backward(), gradient)
    mixed = np.array([[0.2, 0.3, 0.5, 0.0]] * 3)
    each = [loss(A, np.tile(np.eye(4)[c], (3, 1))) for c in range(4)]
    assert loss(A, mixed) == pytest.approx(float(mixed[0] @ each))
    loss(A, mixed)
    assert near(loss.backward(), numeric_gradient(lambda a: loss(a, mixed), A.copy()), 1e-9)


def test_losses_refuse_what_would_be_broadcast() -> None:
    A = np.zeros((3, 3))
    with pytest.raises(ValueError, match=r"one shape \(N, C\).*\(3, 3\) and \(3,\)"):
        CrossEntropyLoss().forward(A, np.array([0, 1, 2]))
    with pytest.raises(ValueError, match="target must have shape"):
        MSELoss().forward(A, np.zeros(3))
    for loss in (MSELoss(), CrossEntropyLoss()):
        with pytest.raises(RuntimeError, match="call forward first"):
            loss.backward()
        assert np.isnan(loss.forward(np.zeros((0, 3)), np.zeros((0, 3))))
        assert loss.backward().shape == (0, 3)


def test_one_value_to_normalise_gives_the_shift() -> None:
    layer = BatchNorm1d(3)
    layer.Bb[:] = [[1.0, 2.0, 3.0]]
    assert layer.forward(np.array([[4.0, 5.0, 6.0]])).tolist() == [[1.0, 2.0, 3.0]]
    assert layer.running_M == pytest.approx(np.array([[0.4, 0.5, 0.6]]))
    assert layer.running_V == pytest.approx(np.full((1, 3), 0.9))
    assert layer.backward(np.ones((1, 3))).tolist() == [[0.0] * 3]


def test_batch_norm_in_training_and_in_inference() -> None:
    draw = np.random.default_rng(7)
    layer = BatchNorm1d(4, alpha=0.75)
    layer.BW, layer.Bb = draw.normal(size=(2, 1, 4))
    M, V = np.zeros((1, 4)), np.ones((1, 4))
    for _ in range(3):
        Z = draw.normal(3.0, 2.0, (6, 4))
        mean, var = Z.mean(0, keepdims=True), Z.var(0, keepdims=True)
        NZ = (Z - mean) / np.sqrt(var + 1e-8)
        assert near(layer.forward(Z), NZ * layer.BW + layer.Bb)
        assert near(layer.NZ, NZ)
        assert near(layer.M, mean)
        assert near(layer.V, var)
        M, V = 0.75 * M + 0.25 * mean, 0.75 * V + 0.25 * var
        assert near(layer.running_M, M)
        assert near(layer.running_V, V)
    BZ = layer.forward(Z, eval=True)
    slope = layer.BW / np.sqrt(V + 1e-8)
    assert near(BZ, (Z - M) * slope + layer.Bb)
    assert same(layer(Z, eval=True), BZ)
    assert near(layer.running_M, M)
    dLdBZ = draw.normal(size=(6, 4))
    assert near(layer.backward(dLdBZ), dLdBZ * slope)
    assert near(layer.dLdBW, (dLdBZ * (Z - M) / np.sqrt(V + 1e-8)).sum(0, keepdims=True))
    assert near(layer.dLdBb, dLdBZ.sum(0, keepdims=True))


def test_batch_norms_parameters_have_the_slopes() -> None:
    layer, Z = layer_and_input("batch norm")
    dLdBZ = distinct((5, 3), 1)
    layer.forward(Z)
    layer.backward(dLdBZ)
    for parameter, gradient in ((layer.BW, layer.dLdBW), (layer.Bb, layer.dLdBb)):
        assert near(gradient, numeric_gradient(lambda _: layer.forward(Z), parameter, dLdBZ), 1e-8)


# Section 6: scanning MLPs


def mlp_scan(signal: Array, weights: Any, window: int = 8, stride: int = 4) -> Array:
    """What the MLP gives at each place, (places, outputs)."""
    w1, w2, w3 = weights
    places = range(0, len(signal) - window + 1, stride)
    rows = np.stack([signal[t : t + window].reshape(-1) for t in places])
    return np.maximum(np.maximum(rows @ w1, 0) @ w2, 0) @ w3


def simple_weights() -> list[Array]:
    draw = np.random.default_rng(11)
    return [draw.normal(size=shape) for shape in ((192, 8), (8, 16), (16, 4))]


def shared_weights() -> list[Array]:
    """Section 6.2: 8 neurons that are four times the same 2, 16 that are twice the same 8."""
    draw = np.random.default_rng(12)
    block1, block2 = draw.normal(size=(48, 2)), draw.normal(size=(4, 8))
    return [
        np.kron(np.eye(4), block1),
        np.kron(np.eye(2), block2),
        draw.normal(size=(16, 4)),
    ]


@pytest.mark.parametrize(
    ("cnn", "weights"),
    [(CNN_SimpleScanningMLP(), simple_weights()), (CNN_DistributedScanningMLP(), shared_weights())],
)
@pytest.mark.parametrize("instants", [128, 8, 11, 12, 131])
def test_a_scanning_mlp_is_a_cnn(cnn: Any, weights: list[Array], instants: int) -> None:
    cnn.init_weights(weights)
    signal = np.random.default_rng(13).normal(size=(instants, 24))
    expected = mlp_scan(signal, weights)
    A = signal.T.reshape(1, 24, -1)
    result = cnn.forward(A)
    if instants == 128:
        assert expected.shape == (31, 4)
        assert result.shape == (1, 124)
    assert type(result) is np.ndarray
    assert near(result, expected.T.reshape(1, -1))
    assert same(cnn(A), result)


def test_simple_filters_are_the_handouts_formula() -> None:
    cnn, weights = CNN_SimpleScanningMLP(), simple_weights()
    before = copy.deepcopy(weights)
    cnn.init_weights(weights)
    # Multiple choice question 7, answer B.
    for conv, w, (K, C, F) in zip(
        (cnn.conv1, cnn.conv2, cnn.conv3),
        weights,
        ((8, 24, 8), (1, 8, 16), (1, 16, 4)),
        strict=True,
    ):
        assert same(conv.conv1d_stride1.W, w.reshape(K, C, F).transpose())
        assert not conv.conv1d_stride1.b.any()
    assert [conv.stride for conv in (cnn.conv1, cnn.conv2, cnn.conv3)] == [4, 1, 1]
    assert same(np.concatenate(weights, None), np.concatenate(before, None))
    # What the network has is not the caller's.
    cnn.conv3.conv1d_stride1.W[...] = 0
    assert same(weights[2], before[2])


def test_distributed_sizes_and_layers() -> None:
    cnn = CNN_DistributedScanningMLP()
    convs = cnn.conv1, cnn.conv2, cnn.conv3
    assert [conv.conv1d_stride1.W.shape for conv in convs] == [(2, 24, 2), (8, 2, 2), (4, 8, 2)]
    assert [conv.stride for conv in convs] == [2, 2, 1]
    assert [type(layer) for layer in cnn.layers] == [Conv1d, ReLU, Conv1d, ReLU, Conv1d, Flatten]
    assert tuple(cnn.layers[::2][:3]) == convs


def test_weights_as_the_autograder_loads_them(tmp_path: Path) -> None:
    weights = np.empty(3, object)
    weights[:] = shared_weights()
    np.save(tmp_path / "weights.npy", weights)
    loaded = np.load(tmp_path / "weights.npy", allow_pickle=True)
    cnn = CNN_DistributedScanningMLP()
    cnn.init_weights(loaded)
    signal = np.random.default_rng(13).normal(size=(128, 24))
    assert near(cnn(signal.T[None]), mlp_scan(signal, list(weights)).T.reshape(1, -1))


def test_weights_that_are_not_shared_are_refused() -> None:
    cnn, weights = CNN_DistributedScanningMLP(), shared_weights()
    kept = cnn.conv1.W
    weights[1][5, 9] += 1e-3
    with pytest.raises(ValueError, match=r"weights\[1\] must repeat its first 4x8 block 2 times"):
        cnn.init_weights(weights)
    with pytest.raises(ValueError, match="weights must be 3 matrices, got 2"):
        cnn.init_weights(weights[:2])
    with pytest.raises(ValueError, match=r"weights\[2\] must have shape \(16, 4\)"):
        CNN_SimpleScanningMLP().init_weights([*simple_weights()[:2], np.zeros((4, 16))])
    assert cnn.conv1.W is kept


# Section 7: the CNN


def cnn_model(**changes: Any) -> CNN:
    """The autograder's model."""
    _, normal = autograder(2020)
    arguments: dict[str, Any] = {
        "input_width": 128,
        "num_input_channels": 24,
        "num_channels": [56, 28, 14],
        "kernel_sizes": [5, 6, 2],
        "strides": [1, 2, 2],
        "num_linear_neurons": 10,
        "activations": [Tanh(), ReLU(), Sigmoid()],
        "conv_weight_init_fn": normal,
        "bias_init_fn": np.zeros,
        "linear_weight_init_fn": normal,
        "criterion": CrossEntropyLoss(),
        "lr": 1e-3,
        **changes,
    }
    return CNN(*arguments.values())


def small_model(**changes: Any) -> CNN:
    return cnn_model(
        **{
            "input_width": 13,
            "num_input_channels": 2,
            "num_channels": [3, 4],
            "kernel_sizes": [3, 4],
            "strides": [1, 3],
            "num_linear_neurons": 5,
            "activations": [Tanh(), Sigmoid()],
            "conv_weight_init_fn": lambda *shape: distinct(shape) / 2,
            "bias_init_fn": lambda n: distinct((n,), 1) / 2,
            "linear_weight_init_fn": lambda *shape: distinct(shape, 2) / 2,
            **changes,
        }
    )


def test_the_cnn_has_what_the_autograder_reaches_for() -> None:
    _, normal = autograder(11785)
    model = cnn_model()
    # Widths 128 -> 124 -> 60 -> 30, as the autograder's comment works them out.
    assert model.linear_layer.W.shape == (10, 14 * 30)
    model.linear_layer.W = normal(*model.linear_layer.W.shape)
    model.linear_layer.b = np.zeros(model.linear_layer.b.shape[0]).reshape(-1, 1)
    assert (model.nlayers, model.train_mode, model.lr) == (3, True, 1e-3)
    assert isinstance(model.flatten, Flatten)
    model.eval()
    assert model.train_mode is False
    model.train()
    assert model.train_mode is True

    A, labels = normal(1, 24, 128), np.eye(10)[[0]]
    Z = A
    for conv, f in zip(
        model.convolutional_layers,
        (np.tanh, lambda z: np.maximum(z, 0), lambda z: 1 / (1 + np.exp(-z))),
        strict=True,
    ):
        inner = conv.conv1d_stride1
        no_gradient = np.zeros((1, len(inner.b), Z.shape[2] - inner.kernel_size + 1))
        Z = f(conv_by_windows(Z, inner.W, inner.b, no_gradient)[0][:, :, :: conv.stride])
    Z = Z.reshape(1, -1) @ model.linear_layer.W.T
    assert near(model.forward(A), Z, 1e-10)
    assert near(model.Z, Z, 1e-10)
    dx = model.backward(labels)
    assert dx.shape == A.shape
    assert model.loss == pytest.approx(float(np.log(np.exp(Z - Z.max()).sum()) + Z.max() - Z[0, 0]))
    first = model.convolutional_layers[0].conv1d_stride1
    assert first.dLdW.shape == (56, 24, 5)
    assert first.dLdb.shape == (56,)


def test_the_cnn_against_pytorch() -> None:
    torch = pytest.importorskip("torch")
    _, normal = autograder(11785)
    model = cnn_model()
    A, labels = normal(1, 24, 128), np.eye(10)[[0]]
    Z = model.forward(A)
    dLdA = model.backward(labels)

    leaf = torch.tensor(A, requires_grad=True)
    functional = torch.nn.functional
    x, parameters = leaf, []
    activations = torch.tanh, torch.relu, torch.sigmoid
    for conv, activation in zip(model.convolutional_layers, activations, strict=True):
        w, b = (torch.tensor(p, requires_grad=True) for p in (conv.W, conv.b))
        parameters.append((conv.conv1d_stride1, w, b))
        x = activation(functional.conv1d(x, w, b, stride=conv.stride))
    w = torch.tensor(model.linear_layer.W, requires_grad=True)
    b = torch.tensor(model.linear_layer.b.reshape(-1), requires_grad=True)
    x = functional.linear(x.flatten(1), w, b)
    functional.cross_entropy(x, torch.tensor([0])).backward()

    # The autograder allows 1e-8.
    assert near(Z, x.detach().numpy(), 1e-10)
    assert near(dLdA, leaf.grad.numpy(), 1e-10)
    assert near(model.linear_layer.dLdW, w.grad.numpy(), 1e-10)
    assert near(model.linear_layer.dLdb.reshape(-1), b.grad.numpy(), 1e-10)
    for layer, w, b in parameters:
        assert near(layer.dLdW, w.grad.numpy(), 1e-10)
        assert near(layer.dLdb, b.grad.numpy(), 1e-10)


def test_the_cnns_gradients_are_the_losss_slopes() -> None:
    model = small_model()
    A, labels = distinct((3, 2, 13)), np.eye(5)[[0, 4, 2]]

    def loss(_: Any) -> float:
        return float(CrossEntropyLoss().forward(model.forward(A), labels))

    model.forward(A)
    dLdA = model.backward(labels)
    assert model.loss == loss(None)
    assert near(dLdA, numeric_gradient(loss, A), 1e-9)
    for layer in (*(c.conv1d_stride1 for c in model.convolutional_layers), model.linear_layer):
        assert near(layer.dLdW, numeric_gradient(loss, layer.W), 1e-9)
        assert near(layer.dLdb, numeric_gradient(loss, layer.b), 1e-9)


def test_a_step_goes_down_and_leaves_old_arrays_alone() -> None:
    model = small_model(lr=0.5)
    A, labels = distinct((3, 2, 13)), np.eye(5)[[0, 4, 2]]
    layers = (*(c.conv1d_stride1 for c in model.convolutional_layers), model.linear_layer)
    layers[0].W = np.ones(layers[0].W.shape, int)  # of any dtype
    layers[1].W.flags.writeable = False
    losses = []
    for _ in range(5):
        model.forward(A)
        model.backward(labels)
        losses.append(model.loss)
        old = [(layer.W, layer.b) for layer in layers]
        kept = copy.deepcopy(old)
        gradients = [(layer.dLdW.copy(), layer.dLdb.copy()) for layer in layers]
        model.step()
        for layer, (W, b), was, (dW, db) in zip(layers, old, kept, gradients, strict=True):
            assert same(W, was[0])
            assert same(b, was[1])
            assert near(layer.W, W - 0.5 * dW, 1e-15)
            assert near(layer.b, b - 0.5 * db, 1e-15)
    assert losses == sorted(losses, reverse=True)
    model.zero_grads()
    for layer in layers:
        assert same(layer.dLdW, np.zeros(layer.W.shape))
        assert same(layer.dLdb, np.zeros(layer.b.shape))


def test_sizes_may_be_arrays() -> None:
    model = small_model(
        **{
            name: np.array(sizes)
            for name, sizes in (
                ("num_channels", [3, 4]),
                ("kernel_sizes", [3, 4]),
                ("strides", [1, 3]),
            )
        }
    )
    A = distinct((3, 2, 13))
    assert same(model(A), small_model()(A))


def test_a_cnn_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="activations must be 2, one for each of num_channels"):
        small_model(activations=[ReLU()])
    with pytest.raises(ValueError, match=r"kernel_sizes\[1\] is 12, longer than its input of 11"):
        small_model(kernel_sizes=[3, 12])
    with pytest.raises(ValueError, match="one length"):
        small_model(strides=[1])
    with pytest.raises(RuntimeError, match="call forward first"):
        small_model().backward(np.eye(5))


# Other processes, and the handout's folders


def _forward_and_back(job: tuple[Any, Array]) -> tuple[Any, Array]:
    layer, A = job
    layer.backward(np.ones_like(layer.forward(A)))
    return layer, layer.forward(A)


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="this system does not fork"
)
def test_layers_survive_a_forked_pool() -> None:
    layers = [Conv1d(3, 4, 3, 2), CNN_SimpleScanningMLP(), Linear(6, 2), small_model()]
    inputs = [distinct((2, 3, 40)), distinct((2, 24, 40)), distinct((3, 6)), distinct((5, 2, 13))]
    expected = [layer.forward(A) for layer, A in zip(layers, inputs, strict=True)]
    jobs = list(zip(layers[:3], inputs[:3], strict=True))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        # The autograder has such a pool open while it works in this process.
        again = [layer.forward(A) for layer, A in zip(layers, inputs, strict=True)]
        models = pool.map_async(layers[3].forward, [inputs[3]] * 4)
        children = pool.map_async(_forward_and_back, jobs).get(60)
        from_models = models.get(60)
    for one, other in zip(again, expected, strict=True):
        assert same(one, other)
    for (layer, Z), one, other in zip(children, layers, expected, strict=False):
        assert near(Z, other)
        # What came back carries what the child left in it.
        one.backward(np.ones_like(other))
        for own, theirs in zip(weighted(one), weighted(layer), strict=True):
            assert near(theirs.dLdW, own.dLdW)
    for Z in from_models:
        assert near(Z, expected[3])


GRADER_SCRIPT = """
import sys
import numpy as np
import multiprocessing as mtp
sys.path.append('mytorch')
from loss import *
from activation import *
from batchnorm import *
from linear import *
from conv import *
from resampling import *
from pool import *
sys.path.append('hw2')
import mlp_scan as cnn_solution
import hw2

pool = mtp.get_context('fork').Pool(2)
net = Conv1d(3, 2, 4, 2, lambda *shape: np.ones(shape), np.ones)
assert net.forward(np.ones((1, 3, 9))).tolist() == [[[13.0] * 3] * 2]
assert net.conv1d_stride1.W.shape == (2, 3, 4)
assert Downsample2d(2).forward(np.ones((1, 1, 5, 4))).shape == (1, 1, 3, 2)
assert MeanPool2d(2, 2).forward(np.ones((1, 1, 5, 4))).tolist() == [[[[1.0] * 2] * 2]]
assert BatchNorm1d(3).forward(np.zeros((2, 3))).tolist() == [[0.0] * 3] * 2
assert cnn_solution.CNN_SimpleScanningMLP().forward(np.ones((1, 24, 128))).shape == (1, 124)
model = hw2.CNN(128, 24, [56, 28, 14], [5, 6, 2], [1, 2, 2], 10, [Tanh(), ReLU(), Sigmoid()],
                lambda *shape: np.ones(shape), np.zeros, lambda *shape: np.ones(shape),
                CrossEntropyLoss(), 1e-3)
model.forward(np.ones((1, 24, 128)))
assert model.backward(np.eye(10)[[0]]).shape == (1, 24, 128)
pool.close()
print('all there')
"""


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="this system does not fork"
)
def test_the_handouts_files_may_be_one_line_each(tmp_path: Path) -> None:
    files = {
        "mytorch": "loss activation batchnorm linear conv resampling pool",
        "hw2": "hw2 mlp_scan",
    }
    for folder, names in files.items():
        (tmp_path / folder).mkdir()
        for name in names.split():
            (tmp_path / folder / f"{name}.py").write_text("from cnnfast.compat.mytorch import *\n")
    ran = subprocess.run(
        [sys.executable, "-c", GRADER_SCRIPT],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ran.stdout, ran.returncode) == ("all there\n", 0), ran.stderr
