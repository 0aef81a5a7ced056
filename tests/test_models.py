"""The courses' networks: gradients, losses, penalties, and the scanning MLPs against real MLPs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cnnfast import nn
from cnnfast.gradcheck import numeric_gradient, rel_error
from cnnfast.models import (
    BasicBlock,
    Classifier,
    DeepConvNet,
    DistributedScanningMLP,
    InvertedResidual,
    SimpleCNN1d,
    SimpleScanningMLP,
    ThreeLayerConvNet,
    cifar_resnet,
    fast_cnn,
    mobilenet_v2,
    resnet18,
    small_cnn,
)
from cnnfast.training import SGD

F64 = np.float64


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def three_layer(**kwargs: Any) -> ThreeLayerConvNet:
    settings = {"num_filters": 2, "filter_size": 3, "hidden_dim": 4, "dtype": F64, "rng": rng()}
    return ThreeLayerConvNet((2, 6, 5), **{"weight_scale": 0.2, **settings, **kwargs})


def deep(**kwargs: Any) -> DeepConvNet:
    settings: dict[str, Any] = {"num_filters": [3, 2, 3], "max_pools": [0, 2], "dtype": F64}
    settings.update(weight_scale="kaiming", rng=rng())
    return DeepConvNet((2, 6, 5), **{**settings, **kwargs})


def cnn1d(**kwargs: Any) -> SimpleCNN1d:
    activations = [nn.Tanh(), nn.ReLU(), nn.Sigmoid()]
    return SimpleCNN1d(
        12, 3, [2, 3, 2], [3, 4, 2], [1, 2, 2], 10, activations, dtype=F64, rng=rng(), **kwargs
    )


MODELS: dict[str, tuple[Callable[[], Classifier], tuple[int, ...]]] = {
    "three layers": (three_layer, (2, 6, 5)),
    "three layers, reg": (lambda: three_layer(reg=0.7), (2, 6, 5)),
    "three layers, Michigan's reg": (lambda: three_layer(reg=0.7, l2_factor=1.0), (2, 6, 5)),
    "three layers, batch norm": (lambda: three_layer(use_batchnorm=True, reg=0.1), (2, 6, 5)),
    "two convolutions": (lambda: three_layer(conv_layers=2, use_batchnorm=True), (2, 6, 5)),
    "even filters": (lambda: three_layer(filter_size=2), (2, 6, 5)),
    "deep": (deep, (2, 6, 5)),
    "deep, reg": (lambda: deep(reg=3.14), (2, 6, 5)),
    "deep, batch norm": (lambda: deep(batchnorm=True, reg=0.3), (2, 6, 5)),
    "one dimension": (lambda: cnn1d(reg=0.2), (3, 12)),
}


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_the_losss_slopes(name: str) -> None:
    make, shape = MODELS[name]
    model = make()
    X, y = rng(1).normal(size=(4, *shape)), np.array([1, 0, 9, 4])
    loss, grads = model.loss(X, y)
    assert isinstance(loss, float)
    assert list(grads) == list(model.params)
    for key, param in model.params.items():
        expected = numeric_gradient(lambda _: model.loss(X, y)[0], param, h=1e-6)
        scale = max(np.abs(expected).max(), 1e-3)
        assert not np.abs(grads[key] - expected).max() > 2e-6 * scale, key


@pytest.mark.parametrize("name", MODELS)
def test_loss_changes_nothing_it_should_not(name: str) -> None:
    make, shape = MODELS[name]
    model = make()
    X, y = rng(1).normal(size=(4, *shape)), np.array([1, 0, 9, 4])
    images, labels = X.copy(), y.copy()
    model.eval()
    params = {key: p.copy() for key, p in model.params.items()}
    model.loss(X, y)
    assert not model.training
    assert model.needs_input_grad
    before = {key: b.copy() for key, b in model.buffers.items()}
    scores = model.loss(X)
    np.testing.assert_array_equal(scores, model(X))
    assert scores.shape == (4, 10)
    for key, b in model.buffers.items():
        np.testing.assert_array_equal(b, before[key])
    for key, p in model.params.items():
        np.testing.assert_array_equal(p, params[key])
    np.testing.assert_array_equal(X, images)
    np.testing.assert_array_equal(y, labels)


def test_modes_are_put_back_layer_by_layer() -> None:
    model = three_layer(use_batchnorm=True)
    model.bn1.eval()
    model.loss(np.zeros((4, 2, 6, 5)))
    assert (model.training, model.bn1.training) == (True, False)
    with pytest.raises(ValueError, match="cross_entropy"):
        model.loss(np.zeros((4, 2, 6, 5)), np.array([0, 1, 2, 10]))
    assert (model.training, model.bn1.training) == (True, False)
    assert model.needs_input_grad


def test_batch_norm_learns_its_statistics_from_loss_with_labels_only() -> None:
    model = deep(batchnorm=True)
    X = rng(1).normal(3.0, size=(8, 2, 6, 5))
    before = model.buffers["bn1.running_mean"].copy()
    model.loss(X)
    np.testing.assert_array_equal(model.buffers["bn1.running_mean"], before)
    model.loss(X, np.arange(8))
    assert (model.buffers["bn1.running_mean"] != before).any()


@pytest.mark.parametrize("make", [ThreeLayerConvNet, DeepConvNet])
def test_first_loss_is_log_of_the_classes(make: Callable[..., Classifier]) -> None:
    model = make(rng=rng(), dtype=F64)
    X, y = rng(1).normal(size=(5, 3, 32, 32)), np.arange(5)
    loss, _ = model.loss(X, y)
    assert loss == pytest.approx(np.log(10), abs=1e-3)
    weights = sum(float((p**2).sum()) for key, p in model.params.items() if key.endswith("weight"))
    model.reg = 0.5
    model.l2_factor = 0.5
    assert model.loss(X, y)[0] - loss == pytest.approx(0.25 * weights, rel=1e-6)
    model.l2_factor = 1.0
    assert model.loss(X, y)[0] - loss == pytest.approx(0.5 * weights, rel=1e-6)


def test_penalty_spares_biases_and_batch_norm() -> None:
    plain, penalised = (deep(batchnorm=True, reg=reg) for reg in (0.0, 0.3))
    X, y = rng(1).normal(size=(4, 2, 6, 5)), np.arange(4)
    for model in (plain, penalised):
        model.params["bn1.weight"][...] = 1.5
    _, without = plain.loss(X, y)
    _, with_ = penalised.loss(X, y)
    for key, param in plain.params.items():
        decayed = key.endswith("weight") and not key.startswith("bn")
        extra = 0.6 * param if decayed else 0.0
        np.testing.assert_allclose(with_[key], without[key] + extra, atol=1e-14, err_msg=key)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_loss_computes_in_the_models_dtype(dtype: Any) -> None:
    model = ThreeLayerConvNet((1, 4, 4), 2, 3, 5, dtype=dtype, use_batchnorm=True, rng=rng())
    X, y = np.ones((3, 1, 4, 4), np.uint8), np.array([0, 1, 2])
    assert model.loss(X.astype(F64)).dtype == dtype
    _, grads = model.loss(X, y)
    assert {g.dtype for g in grads.values()} == {np.dtype(dtype)}


def test_defaults_are_the_courses() -> None:
    shapes = {key: p.shape for key, p in ThreeLayerConvNet(rng=rng()).params.items()}
    assert shapes == {
        "conv1.weight": (32, 3, 7, 7),
        "conv1.bias": (32,),
        "fc1.weight": (100, 32 * 16 * 16),
        "fc1.bias": (100,),
        "fc2.weight": (10, 100),
        "fc2.bias": (10,),
    }
    deep_shapes = {key: p.shape for key, p in DeepConvNet(rng=rng()).params.items()}
    assert deep_shapes["conv5.weight"] == (8, 8, 3, 3)
    assert deep_shapes["fc.weight"] == (10, 8)
    assert DeepConvNet(rng=rng()).num_layers == 6
    same = (
        ThreeLayerConvNet((1, 6, 6), rng=rng()),
        ThreeLayerConvNet(input_dims=(1, 6, 6), rng=rng()),
    )
    for a, b in zip(*(model.params.values() for model in same), strict=True):
        np.testing.assert_array_equal(a, b)


def test_starting_weights() -> None:
    model = DeepConvNet((3, 32, 32), [64, 64], [0, 1], weight_scale="kaiming", rng=rng())
    for key, variance in (
        ("conv1.weight", 2 / 27),
        ("conv2.weight", 2 / (64 * 9)),
        ("fc.weight", 1 / 4096),
    ):
        w = model.params[key]
        assert w.var() == pytest.approx(variance, rel=0.1)
        assert abs(w.mean()) < 4 * (variance / w.size) ** 0.5
    assert not model.params["conv1.bias"].any()
    assert ThreeLayerConvNet(weight_scale=0.01, rng=rng()).params["fc1.weight"].std() == (
        pytest.approx(0.01, rel=0.01)
    )
    again = DeepConvNet((3, 32, 32), [64, 64], [0, 1], weight_scale="kaiming", rng=rng())
    np.testing.assert_array_equal(again.params["fc.weight"], model.params["fc.weight"])


def test_deep_signal_survives_with_kaiming_only() -> None:
    filters, pools = [8] * 10 + [16] * 10 + [32] * 10, [9, 19]
    X = rng(1).normal(size=(2, 3, 8, 8))

    def spread(weight_scale: float | str) -> float:
        model = DeepConvNet((3, 8, 8), filters, pools, weight_scale=weight_scale, rng=rng())
        return float(np.std(model.loss(X)))

    assert spread("kaiming") > 1e-3
    assert spread(1e-2) < 1e-20


@pytest.mark.parametrize("use_batchnorm", [False, True])
def test_same_network_in_pytorch(use_batchnorm: bool) -> None:
    torch = pytest.importorskip("torch")
    model = three_layer(use_batchnorm=use_batchnorm, filter_size=5)
    bn2 = {"bn1": torch.nn.BatchNorm2d(2)} if use_batchnorm else {}
    bn1 = {"bn_fc1": torch.nn.BatchNorm1d(4)} if use_batchnorm else {}
    layers = {
        "conv1": torch.nn.Conv2d(2, 2, 5, padding=2),
        **bn2,
        "relu1": torch.nn.ReLU(),
        "pool": torch.nn.MaxPool2d(2),
        "flatten": torch.nn.Flatten(),
        "fc1": torch.nn.Linear(12, 4),
        **bn1,
        "relu_fc1": torch.nn.ReLU(),
        "fc2": torch.nn.Linear(4, 10),
    }
    peer = torch.nn.Sequential()
    for name, layer in layers.items():
        peer.add_module(name, layer)
    peer.double()
    peer.load_state_dict({key: torch.from_numpy(a) for key, a in model.state_dict().items()})
    X, y = rng(1).normal(size=(5, 2, 6, 5)), np.array([3, 1, 0, 9, 5])
    loss, grads = model.loss(X, y)
    expected = torch.nn.functional.cross_entropy(peer(torch.from_numpy(X)), torch.from_numpy(y))
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    for name, p in peer.named_parameters():
        np.testing.assert_allclose(grads[name], p.grad.numpy(), rtol=1e-10, atol=1e-13)


def test_models_copy_and_pickle() -> None:
    model = deep(batchnorm=True, reg=0.1)
    X, y = rng(1).normal(size=(3, 2, 6, 5)), np.arange(3)
    twin = copy.deepcopy(model)
    assert twin.loss(X, y)[0] == model.loss(X, y)[0]
    assert not np.shares_memory(twin.params["fc.weight"], model.params["fc.weight"])


# --- scanning MLPs


def scan(signal: np.ndarray, weights: list[np.ndarray], window: int, stride: int) -> np.ndarray:
    """Outputs (places, neurons) of an MLP with ReLUs that is moved along (time, channels)."""
    rows = []
    for start in range(0, len(signal) - window + 1, stride):
        h = signal[start : start + window].reshape(-1)
        for W in weights[:-1]:
            h = np.maximum(h @ W, 0)
        rows.append(h @ weights[-1])
    return np.array(rows)


def test_simple_scanning_mlp_gives_the_mlps_outputs() -> None:
    weights = [rng(i).normal(size=s) for i, s in enumerate([(192, 8), (8, 16), (16, 4)])]
    signals = rng(9).normal(size=(3, 128, 24))
    cnn = SimpleScanningMLP(dtype=F64)
    cnn.init_weights(weights)
    y = cnn(signals.transpose(0, 2, 1))
    assert y.shape == (3, 124)
    for signal, out in zip(signals, y.reshape(3, 4, 31), strict=True):
        np.testing.assert_allclose(out.T, scan(signal, weights, 8, 4), rtol=1e-12, atol=1e-12)


def shared_matrix(block: np.ndarray, channels: int, stride: int, places: int) -> np.ndarray:
    """An MLP's matrix whose neurons apply `block` at each of several places."""
    rows, F = block.shape
    W = np.zeros(((places - 1) * stride * channels + rows, places * F))
    for p in range(places):
        W[p * stride * channels : p * stride * channels + rows, p * F : (p + 1) * F] = block
    return W


def test_distributed_scanning_mlp_gives_the_mlps_outputs() -> None:
    weights = [
        shared_matrix(rng(0).normal(size=(48, 2)), 24, 2, 4),
        shared_matrix(rng(1).normal(size=(4, 8)), 2, 2, 2),
        rng(2).normal(size=(16, 4)),
    ]
    assert [W.shape for W in weights] == [(192, 8), (8, 16), (16, 4)]
    signals = rng(9).normal(size=(2, 128, 24))
    cnn = DistributedScanningMLP(dtype=F64)
    assert [p.shape for p in cnn.params.values()] == [(2, 24, 2), (8, 2, 2), (4, 8, 2)]
    cnn.init_weights(weights)
    y = cnn(signals.transpose(0, 2, 1))
    assert y.shape == (2, 124)
    for signal, out in zip(signals, y.reshape(2, 4, 31), strict=True):
        np.testing.assert_allclose(out.T, scan(signal, weights, 8, 4), rtol=1e-12, atol=1e-12)


def test_distributed_scanning_mlp_with_overlapping_groups() -> None:
    # Kernels of 3 and 2 with strides 1 and 2: three groups below, each two instants apart.
    weights = [
        shared_matrix(rng(0).normal(size=(9, 5)), 3, 1, 3),
        shared_matrix(rng(1).normal(size=(15, 2)), 5, 1, 1),
    ]
    cnn = DistributedScanningMLP(3, (5, 2), (3, 3), (1, 1), dtype=F64)
    cnn.init_weights(weights)
    signal = rng(9).normal(size=(12, 3))
    out = cnn(signal.T[None]).reshape(2, -1)
    np.testing.assert_allclose(out.T, scan(signal, weights, 5, 1), rtol=1e-12, atol=1e-12)


def test_scanning_mlps_have_gradients() -> None:
    cnn = SimpleScanningMLP(3, (4, 2), window=3, stride=2, dtype=F64, rng=rng())
    x, dy = rng(1).normal(size=(2, 3, 9)), rng(2).normal(size=(2, 8))
    cnn(x)
    dx = cnn.backward(dy)
    assert rel_error(dx, numeric_gradient(cnn.forward, x, dy)) < 1e-6
    for key, p in cnn.params.items():
        assert rel_error(cnn.grads[key], numeric_gradient(lambda _: cnn(x), p, dy)) < 1e-6


def test_scanning_mlps_refuse_weights_that_do_not_fit() -> None:
    weights = [np.ones((192, 8)), np.ones((8, 16)), np.ones((16, 4))]
    cnn = DistributedScanningMLP()
    before = cnn.params["conv3.weight"].copy()
    with pytest.raises(ValueError, match=r"init_weights: weights\[1\] must repeat its first 4x8"):
        cnn.init_weights(weights)
    np.testing.assert_array_equal(cnn.params["conv3.weight"], before)
    with pytest.raises(ValueError, match=r"init_weights: weights must be 3 matrices, got 2"):
        cnn.init_weights(weights[:2])
    with pytest.raises(
        ValueError, match=r"weights\[0\] must have shape \(192, 8\), got \(8, 192\)"
    ):
        SimpleScanningMLP().init_weights([weights[0].T, *weights[1:]])
    with pytest.raises(ValueError, match="must be of one length"):
        DistributedScanningMLP(3, (1, 2), (2,), (1, 1))


# --- the small network


def test_fast_cnn_hands_its_channels_on_at_first_and_takes_images_of_any_size() -> None:
    net = fast_cnn((3, 8, 8), 7, filters=(4, 6, 5), rng=rng()).eval()
    x = rng(1).normal(size=(3, 3, 8, 8)).astype(np.float32)
    y = np.maximum(net.pool1(net.conv1(x)), 0) / np.sqrt(np.float32(1 + 1e-5))
    handed_on = net.conv2(y)[:, :4]
    np.testing.assert_allclose(handed_on, y, rtol=1e-5, atol=1e-6)
    assert net(x).shape == net(x[:, :, :4, :4]).shape == (3, 7)
    again = fast_cnn((3, 8, 8), 7, filters=(4, 6, 5), rng=rng())
    for name, p in again.params.items():
        np.testing.assert_array_equal(p, net.params[name])


@pytest.mark.parametrize(
    ("shape", "convolutions", "features"),
    [((1, 8, 8), 2, 64 * 16), ((1, 28, 28), 4, 256 * 9), ((3, 32, 32), 4, 256 * 16)],
)
def test_small_cnn_fits_its_images(
    shape: tuple[int, int, int], convolutions: int, features: int
) -> None:
    net = small_cnn(shape, 7, rng=rng())
    assert sum(isinstance(layer, nn.Conv2d) for layer in net) == convolutions
    assert net.params["fc.weight"].shape == (7, features)
    x = rng(1).normal(size=(2, *shape)).astype(np.float32)
    assert net(x).shape == (2, 7)
    assert net.backward(np.ones((2, 7), np.float32)).shape == x.shape
    same = small_cnn(shape, 7, rng=rng())
    for a, b in zip(net.params.values(), same.params.values(), strict=True):
        np.testing.assert_array_equal(a, b)


# --- residual networks and MobileNetV2


def shake(network: nn.Layer) -> None:
    """Give batch norm statistics and weights that show, and that keep ReLUs off their kink."""
    draw = rng(5)
    for _, layer in network.named_layers():
        if isinstance(layer, nn.BatchNorm2d):
            C = layer.num_features
            layer.weight, layer.bias = draw.uniform(0.5, 1.5, C), draw.normal(size=C)
            layer.running_mean, layer.running_var = draw.normal(size=C), draw.uniform(0.5, 2, C)


BLOCKS: dict[str, Callable[[], nn.Layer]] = {
    "basic": lambda: BasicBlock(3, 3, dtype=F64, rng=rng()),
    "basic, stride 2": lambda: BasicBlock(3, 4, 2, dtype=F64, rng=rng()),
    "inverted": lambda: InvertedResidual(3, 3, 1, 2, dtype=F64, rng=rng()),
    "inverted, stride 2": lambda: InvertedResidual(3, 4, 2, 2, dtype=F64, rng=rng()),
    "inverted, no expansion": lambda: InvertedResidual(3, 2, 1, 1, dtype=F64, rng=rng()),
    "relu6": nn.ReLU6,
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_have_the_gradients_of_what_they_compute(name: str, training: bool) -> None:
    block = BLOCKS[name]().train(training)
    shake(block)
    x = 4 * rng(1).normal(size=(2, 3, 5, 4))
    dy = rng(2).normal(size=block(x).shape)
    kept = x.copy()
    block(x)
    dx = block.backward(dy.copy())
    np.testing.assert_array_equal(x, kept)
    grads = {key: g.copy() for key, g in block.grads.items()}
    assert list(grads) == list(block.params)
    for array, grad in [(x, dx), *((block.params[key], grads[key]) for key in grads)]:
        slope = numeric_gradient(lambda _: float(np.vdot(block(x), dy)), array, h=1e-6)
        scale = max(np.abs(slope).max(), 1e-3)
        assert not np.abs(grad - slope).max() > 1e-5 * scale


@pytest.mark.parametrize("name", [name for name in BLOCKS if name != "relu6"])
def test_blocks_may_leave_the_gradient_by_their_input_out(name: str) -> None:
    block = BLOCKS[name]()
    x = rng(1).normal(size=(2, 3, 5, 4))
    block.backward(np.ones_like(block(x)))
    grads = {key: g.copy() for key, g in block.grads.items()}
    block.needs_input_grad = False
    assert block.backward(np.ones_like(block(x))) is None
    for key, grad in block.grads.items():
        np.testing.assert_allclose(grad, grads[key], rtol=1e-10, atol=1e-12)


def torch_basic_block(torch: Any, C: int, F: int, stride: int) -> Any:
    class Block(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            conv = torch.nn.Conv2d
            self.conv1 = conv(C, F, 3, stride, 1, bias=False)
            self.bn1 = torch.nn.BatchNorm2d(F)
            self.conv2 = conv(F, F, 3, 1, 1, bias=False)
            self.bn2 = torch.nn.BatchNorm2d(F)
            self.downsample = None
            if stride != 1 or C != F:
                self.downsample = torch.nn.Sequential(
                    conv(C, F, 1, stride, bias=False), torch.nn.BatchNorm2d(F)
                )

        def forward(self, x: Any) -> Any:
            y = torch.relu(self.bn1(self.conv1(x)))
            y = self.bn2(self.conv2(y))
            return torch.relu(y + (x if self.downsample is None else self.downsample(x)))

    return Block()


def torch_resnet18(torch: Any) -> Any:
    net = torch.nn.Sequential()
    net.add_module("conv1", torch.nn.Conv2d(3, 64, 7, 2, 3, bias=False))
    net.add_module("bn1", torch.nn.BatchNorm2d(64))
    net.add_module("relu", torch.nn.ReLU())
    net.add_module("maxpool", torch.nn.MaxPool2d(3, 2, 1))
    C = 64
    for number, F in enumerate((64, 128, 256, 512), 1):
        first = torch_basic_block(torch, C, F, 1 if number == 1 else 2)
        stage = torch.nn.Sequential(first, torch_basic_block(torch, F, F, 1))
        net.add_module(f"layer{number}", stage)
        C = F
    net.add_module("avgpool", torch.nn.AdaptiveAvgPool2d((1, 1)))
    net.add_module("flatten", torch.nn.Flatten())
    net.add_module("fc", torch.nn.Linear(512, 1000))
    return net


def torch_mobilenet_v2(torch: Any) -> Any:
    def conv_norm(C: int, F: int, k: int, stride: int = 1, groups: int = 1) -> Any:
        return torch.nn.Sequential(
            torch.nn.Conv2d(C, F, k, stride, (k - 1) // 2, groups=groups, bias=False),
            torch.nn.BatchNorm2d(F),
            torch.nn.ReLU6(),
        )

    class Inverted(torch.nn.Module):  # type: ignore[misc]
        def __init__(self, C: int, F: int, stride: int, expansion: int) -> None:
            super().__init__()
            hidden = C * expansion
            self.add = stride == 1 and C == F
            layers = [] if expansion == 1 else [conv_norm(C, hidden, 1)]
            layers += [
                conv_norm(hidden, hidden, 3, stride, hidden),
                torch.nn.Conv2d(hidden, F, 1, bias=False),
                torch.nn.BatchNorm2d(F),
            ]
            self.conv = torch.nn.Sequential(*layers)

        def forward(self, x: Any) -> Any:
            return x + self.conv(x) if self.add else self.conv(x)

    plan = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1)]
    plan += [(6, 160, 3, 2), (6, 320, 1, 1)]
    features, C = [conv_norm(3, 32, 3, 2)], 32
    for t, F, n, s in plan:
        for i in range(n):
            features.append(Inverted(C, F, s if i == 0 else 1, t))
            C = F
    features.append(conv_norm(320, 1280, 1))
    net = torch.nn.Sequential()
    net.add_module("features", torch.nn.Sequential(*features))
    net.add_module("avgpool", torch.nn.AdaptiveAvgPool2d(1))
    net.add_module("flatten", torch.nn.Flatten())
    classifier = torch.nn.Sequential(torch.nn.Dropout(0.2), torch.nn.Linear(1280, 1000))
    net.add_module("classifier", classifier)
    return net


@pytest.mark.parametrize(
    ("make", "torch_make"),
    [(resnet18, torch_resnet18), (mobilenet_v2, torch_mobilenet_v2)],
    ids=["resnet18", "mobilenet_v2"],
)
def test_the_same_large_network_in_pytorch(
    make: Callable[..., nn.Sequential], torch_make: Callable[[Any], Any]
) -> None:
    torch = pytest.importorskip("torch")
    network, peer = make(dtype=F64, rng=rng()), torch_make(torch).double()
    shake(network)
    assert list(network.state_dict()) == list(peer.state_dict())
    peer.load_state_dict({key: torch.from_numpy(a) for key, a in network.state_dict().items()})
    x = rng(1).normal(size=(2, 3, 45, 33))
    with torch.no_grad():
        expected = peer.eval()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(
        network.eval()(x), expected, rtol=0, atol=1e-11 * np.abs(expected).max()
    )
    # And back: a state dict of PyTorch's loads as it is.
    fresh = make(dtype=F64, rng=rng(9)).eval()
    fresh.load_state_dict(peer.state_dict())
    np.testing.assert_array_equal(fresh(x), network(x))


def test_residual_networks_learn() -> None:
    net = cifar_resnet(8, 4, in_channels=2, rng=rng())
    X, y = rng(1).normal(size=(8, 2, 12, 12)).astype(np.float32), np.arange(8) % 4
    loss, sgd = nn.CrossEntropyLoss(), SGD(net.params, lr=0.1, momentum=0.9)
    net.needs_input_grad = False
    first = loss(net(X), y)
    for _ in range(15):
        loss(net(X), y)
        assert net.backward(loss.backward()) is None
        sgd.step(net.grads)
    assert loss(net(X), y) < first / 4


def test_depths_and_starts_of_residual_networks() -> None:
    for depth in (8, 20):
        layers = [layer for _, layer in cifar_resnet(depth, rng=rng()).named_layers()]
        weighted = [
            layer
            for layer in layers
            if isinstance(layer, nn.Linear)
            or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3))
        ]
        assert len(weighted) == depth
    one, two, other = (cifar_resnet(8, rng=rng(seed)).params for seed in (0, 0, 1))
    for key, a in one.items():
        np.testing.assert_array_equal(a, two[key])
    assert (one["conv1.weight"] != other["conv1.weight"]).any()
    spread = resnet18(rng=rng()).params["layer3.0.conv1.weight"].std()
    assert spread == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.01)  # fan_out


# --- bad arguments


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ThreeLayerConvNet((3, 32)), r"ThreeLayerConvNet: input_dim must be \(C, H, W\)"),
        (lambda: ThreeLayerConvNet((3, 0, 4)), "ThreeLayerConvNet: input_dim must be positive"),
        (lambda: ThreeLayerConvNet((3, 1, 4)), "images of 1x4 are too small to pool 2x2"),
        (lambda: ThreeLayerConvNet(conv_layers=0), "conv_layers must be at least 1, got 0"),
        (lambda: ThreeLayerConvNet(weight_scale="he"), "weight_scale must be a number .*got 'he'"),
        (lambda: ThreeLayerConvNet(weight_scale=-1.0), "weight_scale must be a number"),
        (lambda: DeepConvNet(num_filters=[]), "DeepConvNet: num_filters is empty"),
        (lambda: DeepConvNet(num_filters=[8], max_pools=[1]), "max_pools must be indices of the 1"),
        (
            lambda: DeepConvNet((3, 8, 8), max_pools=[0, 1, 2, 3]),
            "images of 8x8 are too small for 4",
        ),
        (
            lambda: SimpleCNN1d(10, 1, [2], [3, 3], [1], 5),
            r"of one length, not 0; got .*1, 2, 1, 1",
        ),
        (
            lambda: SimpleCNN1d(10, 1, [2, 2], [3, 9], [1, 1], 5),
            r"kernel_sizes\[1\] is 9, longer th",
        ),
        (lambda: fast_cnn((3, 4, 8)), "fast_cnn: images of 4x8 are too small for 3 poolings"),
        (lambda: fast_cnn(filters=()), "fast_cnn: filters is empty"),
        (lambda: small_cnn((8, 8)), r"small_cnn: input_shape must be \(C, H, W\)"),
        (lambda: cifar_resnet(18), "cifar_resnet: depth must be 6n . 2, such as 8 or 20, not 18"),
        (lambda: cifar_resnet(2), "cifar_resnet: depth must be 6n . 2"),
    ],
)
def test_bad_arguments_are_named(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()
