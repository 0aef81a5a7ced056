"""Layers: against PyTorch in float64, against finite differences, and as objects."""

from __future__ import annotations

import copy
import inspect
import math
import multiprocessing
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import cnnfast
from cnnfast import functional as F
from cnnfast import gradcheck, nn
from cnnfast.nn import init

MISTAKE: Any = nn  # the layers, for calls that no type checker would let through

F64: dict[str, Any] = {"dtype": np.float64}

# Class, positional arguments, keyword arguments, shape of x. PyTorch's class of that name takes the
# same arguments. Inputs are small enough for finite differences.
LAYERS: list[tuple[str, tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = [
    ("Conv1d", (3, 4, 3), {}, (2, 3, 7)),
    ("Conv1d", (4, 6, 2, 2, 1, 2, 2, False), {}, (2, 4, 8)),
    ("Conv1d", (2, 3, 4), {"padding": "same", "dilation": 2}, (1, 2, 9)),
    ("Conv1d", (2, 3, (3,)), {"padding": "valid", "stride": (2,)}, (2, 2, 6)),
    ("Conv2d", (3, 2, (3, 2)), {}, (2, 3, 5, 4)),
    ("Conv2d", (3, 2, 3, 2, 1), {}, (1, 3, 5, 6)),
    ("Conv2d", (4, 6, (1, 3)), {"stride": (2, 3), "padding": (0, 2), "groups": 2}, (2, 4, 3, 5)),
    ("Conv2d", (4, 4, 3), {"padding": "same", "groups": 4, "bias": False}, (1, 4, 4, 3)),
    ("Conv2d", (1, 2, 2), {"dilation": (2, 3)}, (2, 1, 4, 6)),
    ("Conv2d", (2, 3, 1, 3), {}, (2, 2, 5, 5)),
    ("ConvTranspose1d", (3, 2, 4), {"stride": 3}, (2, 3, 3)),
    ("ConvTranspose1d", (4, 2, 3, 2, 1, 1, 2, False, 2), {}, (1, 4, 4)),
    ("ConvTranspose2d", (3, 2, (2, 3)), {}, (2, 3, 3, 2)),
    ("ConvTranspose2d", (2, 4, 3, 2, 1, 1, 2), {}, (1, 2, 3, 4)),
    ("ConvTranspose2d", (2, 3, (2, 3)), {"stride": (1, 2), "dilation": (2, 1)}, (1, 2, 2, 3)),
    ("MaxPool1d", (2,), {}, (2, 3, 7)),
    ("MaxPool1d", (3, 2, 1, 2), {}, (2, 2, 8)),
    ("MaxPool2d", (2,), {}, (2, 3, 5, 4)),
    ("MaxPool2d", ((3, 2), (1, 2), (1, 0)), {"ceil_mode": True}, (1, 2, 5, 5)),
    ("MaxPool2d", (2, 3), {"dilation": (1, 2), "ceil_mode": True}, (2, 1, 5, 6)),
    ("AvgPool1d", (2,), {}, (2, 3, 7)),
    ("AvgPool1d", (3, 2, 1, True, False), {}, (2, 2, 6)),
    ("AvgPool2d", (2,), {}, (2, 3, 5, 4)),
    ("AvgPool2d", ((3, 2), (2, 1), (1, 1), True), {}, (2, 2, 4, 3)),
    ("AvgPool2d", (3, 2, 1), {"count_include_pad": False, "ceil_mode": True}, (1, 2, 4, 5)),
    ("AvgPool2d", (2, 2), {"divisor_override": 3}, (1, 2, 4, 5)),
    ("AdaptiveAvgPool2d", (1,), {}, (2, 3, 4, 3)),
    ("AdaptiveMaxPool2d", (1,), {}, (2, 3, 4, 3)),
    ("AdaptiveMaxPool2d", ((1, 1),), {}, (1, 2, 5, 1)),
    ("AdaptiveAvgPool2d", ((2, 3),), {}, (2, 2, 4, 6)),
    ("AdaptiveAvgPool2d", ((2, 3),), {}, (2, 2, 5, 4)),
    ("AdaptiveAvgPool2d", ((None, 4),), {}, (1, 2, 3, 2)),
    ("BatchNorm1d", (3,), {}, (6, 3)),
    ("BatchNorm1d", (3,), {"eps": 1e-2, "momentum": 0.3}, (4, 3, 5)),
    ("BatchNorm1d", (3, 1e-5, None), {"affine": False}, (6, 3)),
    ("BatchNorm2d", (3,), {}, (2, 3, 3, 4)),
    ("BatchNorm2d", (3,), {"track_running_stats": False}, (3, 3, 2, 2)),
    ("BatchNorm2d", (2, 1e-3, 0.5, False, False), {}, (3, 2, 2, 2)),
    ("ReLU", (), {}, (3, 2, 4)),
    ("LeakyReLU", (), {}, (3, 2, 4)),
    ("LeakyReLU", (0.3,), {}, (5,)),
    ("Sigmoid", (), {}, (3, 2, 4)),
    ("Tanh", (), {}, (3, 2, 4)),
    ("Softmax", (1,), {}, (2, 3, 4)),
    ("Softmax", (), {"dim": -1}, (3, 4)),
    ("Softmax", (), {}, (3, 4)),
    ("Linear", (4, 3), {}, (5, 4)),
    ("Linear", (4, 3, False), {}, (2, 3, 4)),
    ("Flatten", (), {}, (2, 3, 4)),
    ("Flatten", (0, 1), {}, (2, 3, 4)),
    ("Flatten", (-2,), {}, (2, 3, 4)),
    ("Dropout", (0.0,), {}, (3, 4)),
    ("Dropout", (1.0,), {}, (3, 4)),
    ("Dropout2d", (0.0,), {}, (2, 3, 2, 2)),
    ("Dropout2d", (1.0,), {}, (2, 3, 2, 2)),
]
WITH_ARRAYS = ("Conv", "BatchNorm", "Linear")

every_layer = pytest.mark.parametrize(
    ("name", "args", "kwargs", "shape"),
    LAYERS,
    ids=[f"{i}-{name}" for i, (name, *_) in enumerate(LAYERS)],
)
both_modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


@pytest.fixture(scope="module")
def torch() -> Iterator[Any]:
    library = pytest.importorskip("torch", reason="PyTorch, the peer of these tests, is missing")
    threads = library.get_num_threads()
    library.set_num_threads(1)  # its idle threads spin, which costs seconds where cores are shared
    yield library
    library.set_num_threads(threads)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)


def make(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], seed: int = 1) -> nn.Layer:
    """The layer in float64, its parameters and buffers moved away from ones and zeros."""
    dtype = F64 if name.startswith(WITH_ARRAYS) else {}
    rng = np.random.default_rng(seed)
    layer: nn.Layer = getattr(nn, name)(*args, **kwargs, **dtype)
    for array in layer.params.values():
        array[...] = rng.normal(size=array.shape)
    for key, array in layer.buffers.items():
        if array.dtype == np.float64:
            array[...] = rng.uniform(0.5, 2, array.shape) if "var" in key else rng.normal()
    return layer


def close(a: Any, b: Any) -> bool:
    """Whether two arrays agree to 1e-10 of the larger of 1 and their largest element."""
    a, b = np.asarray(a), np.asarray(b.detach() if hasattr(b, "detach") else b)
    if a.shape != b.shape:
        return False
    return a.size == 0 or bool(np.max(np.abs(a - b)) <= 1e-10 * max(1.0, np.max(np.abs(b))))


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")  # PyTorch's, for Softmax()
@every_layer
@both_modes
def test_layer_is_pytorchs(
    torch: Any,
    rng: np.random.Generator,
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    shape: tuple[int, ...],
    training: bool,
) -> None:
    ours = make(name, args, kwargs).train(training)
    theirs = getattr(torch.nn, name)(*args, **kwargs).double().train(training)
    theirs.load_state_dict({k: torch.tensor(v) for k, v in ours.state_dict().items()})
    for _ in range(2):  # twice: running statistics, and gradients that are not added up
        x = rng.normal(size=shape)
        kept = x.copy()
        tx = torch.tensor(x, requires_grad=True)
        y, ty = ours(x), theirs(tx)
        assert y.flags.c_contiguous
        assert close(y, ty)
        dy = rng.normal(size=y.shape)
        dx = ours.backward(dy)
        theirs.zero_grad()
        ty.backward(torch.tensor(dy))
        assert close(dx, tx.grad)
        assert list(ours.grads) == list(ours.params)
        for key, parameter in theirs.named_parameters():
            assert close(ours.grads[key], parameter.grad), key
        for key, buffer in theirs.named_buffers():
            assert close(ours.buffers[key], buffer), key
        assert np.array_equal(x, kept)


@every_layer
@both_modes
def test_gradients_are_right(
    rng: np.random.Generator,
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    shape: tuple[int, ...],
    training: bool,
) -> None:
    report = gradcheck.check(make(name, args, kwargs).train(training), rng.normal(size=shape))
    assert report.ok, str(report)


@every_layer
def test_float32_stays(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], shape: tuple[int, ...]
) -> None:
    layer = getattr(nn, name)(*args, **kwargs)
    x = np.ones(shape, np.float32)
    y = layer(x)
    dx = layer.backward(np.ones_like(y))
    assert {y.dtype, dx.dtype, *(g.dtype for g in layer.grads.values())} == {np.dtype(np.float32)}
    layer.eval()
    assert layer(x).dtype == np.float32
    assert layer.backward(np.ones_like(y)).dtype == np.float32


@every_layer
@both_modes
def test_tensors_come_back_as_tensors(
    torch: Any,
    rng: np.random.Generator,
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    shape: tuple[int, ...],
    training: bool,
) -> None:
    layer = make(name, args, kwargs).train(training)
    twin = copy.deepcopy(layer)
    x = rng.normal(size=shape)
    y, ty = layer(x), twin(torch.tensor(x))
    dx, tdx = layer.backward(y), twin.backward(ty)
    assert isinstance(ty, torch.Tensor)
    assert isinstance(tdx, torch.Tensor)
    assert np.array_equal(y, ty.numpy())
    assert np.array_equal(dx, tdx.numpy())
    for key, grad in layer.grads.items():
        assert isinstance(twin.grads[key], np.ndarray)
        assert np.array_equal(twin.grads[key], grad)


@every_layer
def test_constructor_is_pytorchs(
    torch: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], shape: tuple[int, ...]
) -> None:
    """The arguments that PyTorch has are in its order, with its defaults; ours are by keyword."""
    ours = inspect.signature(getattr(nn, name)).parameters.values()
    theirs = inspect.signature(getattr(torch.nn, name)).parameters.values()
    positional = [(p.name, p.default) for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD]
    expected = [(p.name, p.default) for p in theirs if p.kind is p.POSITIONAL_OR_KEYWORD]
    expected = [(n, d) for n, d in expected if n not in ("device", "dtype")]
    assert positional == expected
    assert {p.name for p in ours if p.kind is p.KEYWORD_ONLY} <= {"bias", "dtype", "method", "rng"}


@every_layer
def test_a_copy_and_a_pickle_are_the_same_layer(
    rng: np.random.Generator,
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    shape: tuple[int, ...],
) -> None:
    layer = make(name, args, kwargs)
    x = rng.normal(size=shape)
    layer.backward(layer(x))
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert repr(twin) == repr(layer)
        assert not twin.grads
        with pytest.raises(RuntimeError, match="forward"):
            twin.backward(x)
        assert np.array_equal(twin.eval()(x), layer.eval()(x))
        for key, array in twin.params.items():
            assert not np.shares_memory(array, layer.params[key])


@pytest.mark.parametrize(
    ("text", "layer"),
    [
        (
            "Conv1d(4, 6, kernel_size=(3,), stride=(2,), padding=(1,), dilation=(2,), groups=2, "
            "bias=False)",
            nn.Conv1d(4, 6, 3, 2, 1, 2, 2, False),
        ),
        (
            "Conv2d(3, 8, kernel_size=(3, 5), stride=(1, 1), padding=same)",
            nn.Conv2d(3, 8, (3, 5), padding="same"),
        ),
        (
            "Conv2d(1, 1, kernel_size=(1, 1), stride=(1, 1), padding=((0, 1), (2, 3)))",
            nn.Conv2d(1, 1, 1, padding=((0, 1), (2, 3))),
        ),
        (
            "ConvTranspose2d(4, 4, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), "
            "dilation=(2, 2), output_padding=(1, 1), groups=2, bias=False)",
            nn.ConvTranspose2d(4, 4, 3, 2, 1, 1, 2, False, 2),
        ),
        (
            "MaxPool2d(kernel_size=(2, 3), stride=(2, 3), padding=0, dilation=1, ceil_mode=True)",
            nn.MaxPool2d((2, 3), ceil_mode=True),
        ),
        ("AvgPool1d(kernel_size=(2,), stride=(2,), padding=(0,))", nn.AvgPool1d(2)),
        ("AvgPool2d(kernel_size=2, stride=2, padding=0)", nn.AvgPool2d(2)),
        ("AdaptiveAvgPool2d(output_size=(None, 3))", nn.AdaptiveAvgPool2d((None, 3))),
        (
            "BatchNorm2d(3, eps=1e-05, momentum=None, affine=True, bias=True, "
            "track_running_stats=True)",
            nn.BatchNorm2d(3, momentum=None),
        ),
        ("ReLU()", nn.ReLU()),
        ("LeakyReLU(negative_slope=0.2)", nn.LeakyReLU(0.2)),
        ("Softmax(dim=1)", nn.Softmax(1)),
        ("Linear(in_features=3, out_features=4, bias=False)", nn.Linear(3, 4, False)),
        ("Flatten(start_dim=1, end_dim=-1)", nn.Flatten()),
        ("Dropout(p=0.3, inplace=False)", nn.Dropout(0.3)),
        ("Sequential()", nn.Sequential()),
        (
            "Sequential(\n  (0): ReLU()\n  (1): Residual(\n    (main): Tanh()\n"
            "    (shortcut): Sigmoid()\n  )\n)",
            nn.Sequential(nn.ReLU(), nn.Residual(nn.Tanh(), nn.Sigmoid())),
        ),
        ("CrossEntropyLoss()", nn.CrossEntropyLoss()),
    ],
)
def test_repr_is_pytorchs(text: str, layer: Any) -> None:
    assert repr(layer) == text


# The start


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [
        (nn.Conv1d(32, 64, 5, rng=np.random.default_rng(0)), 160),
        (nn.Conv2d(32, 64, (3, 5), groups=4, rng=np.random.default_rng(1)), 120),
        (nn.ConvTranspose1d(32, 64, 5, rng=np.random.default_rng(2)), 320),
        (nn.ConvTranspose2d(32, 64, 3, groups=2, rng=np.random.default_rng(3)), 288),
        (nn.Linear(100, 200, rng=np.random.default_rng(4)), 100),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Layer) else None,
)
def test_default_start_is_uniform_within_one_over_root_fan_in(layer: Any, fan_in: int) -> None:
    bound = 1 / math.sqrt(fan_in)
    for array in (layer.weight, layer.bias):
        assert array.dtype == np.float32
        assert np.abs(array).max() <= bound
        # Largest of n uniform numbers, and the moments, within five standard deviations.
        n = array.size
        assert np.abs(array).max() >= bound * (1 - 10 / n)
        assert abs(array.mean()) <= 5 * bound / math.sqrt(3 * n)
        assert abs(array.var() / (bound**2 / 3) - 1) <= 5 * math.sqrt(0.8 / n)


def test_default_bounds_are_pytorchs(torch: Any) -> None:
    torch.manual_seed(0)
    for name, args in (
        ("Conv2d", (32, 64, 3, 1, 0, 1, 2)),
        ("ConvTranspose2d", (32, 64, 3, 1, 0, 0, 2)),
        ("Linear", (300, 400)),
    ):
        ours = getattr(nn, name)(*args, rng=np.random.default_rng(0)).params
        for key, theirs in getattr(torch.nn, name)(*args).named_parameters():
            largest = float(theirs.detach().abs().max())
            assert abs(float(np.abs(ours[key]).max()) / largest - 1) < 30 / theirs.numel()


def test_start_comes_from_rng_alone() -> None:
    state = str(np.random.get_state())  # noqa: NPY002
    one, same, other = (nn.Conv2d(3, 4, 3, rng=np.random.default_rng(i)) for i in (0, 0, 1))
    assert np.array_equal(one.weight, same.weight)
    assert not np.array_equal(one.weight, other.weight)
    assert not np.array_equal(nn.Linear(4, 4).weight, nn.Linear(4, 4).weight)
    double = nn.Conv2d(3, 4, 3, rng=np.random.default_rng(0), dtype=np.float64)
    assert np.array_equal(double.weight.astype(np.float32), one.weight)
    assert str(np.random.get_state()) == state  # noqa: NPY002


def test_initialisers_are_pytorchs_in_distribution(torch: Any) -> None:
    shape = (40, 30, 3, 2)
    assert init.fans(shape) == (180, 240)
    for name, kwargs in (
        ("kaiming_uniform", {}),
        ("kaiming_uniform", {"a": 0.5, "mode": "fan_out"}),
        ("kaiming_normal", {"nonlinearity": "tanh"}),
        ("kaiming_normal", {"mode": "fan_out", "nonlinearity": "relu"}),
        ("xavier_uniform", {"gain": 2.0}),
        ("xavier_normal", {}),
    ):
        ours = getattr(init, name)(shape, **kwargs, rng=np.random.default_rng(0), dtype=np.float64)
        theirs = torch.empty(shape, dtype=torch.float64)
        getattr(torch.nn.init, name + "_")(
            theirs, **kwargs, generator=torch.Generator().manual_seed(0)
        )
        assert abs(ours.mean()) < 5 * ours.std() / math.sqrt(ours.size)
        assert abs(ours.std() / float(theirs.std()) - 1) < 0.05
        if "uniform" in name:
            assert abs(np.abs(ours).max() / float(theirs.abs().max()) - 1) < 0.01
    for nonlinearity in ("linear", "sigmoid", "tanh", "relu", "leaky_relu"):
        ours = init.gain(nonlinearity)
        assert ours == pytest.approx(torch.nn.init.calculate_gain(nonlinearity))


def test_initialiser_errors() -> None:
    with pytest.raises(ValueError, match="mode"):
        init.kaiming_normal((2, 3), mode="fan")
    with pytest.raises(ValueError, match="nonlinearity"):
        init.gain("swish")
    with pytest.raises(ValueError, match="2 axes"):
        init.xavier_normal((3,))
    with pytest.raises(TypeError, match="rng"):
        init.xavier_normal((3, 3), rng=3)


# Dropout


def test_dropout_drops_with_p_and_keeps_the_mean() -> None:
    layer = nn.Dropout(0.3, rng=np.random.default_rng(0))
    x = np.ones((100, 100))
    y = layer(x)
    assert set(np.unique(y)) == {0.0, 1 / 0.7}
    assert abs((y == 0).mean() - 0.3) < 0.02
    assert np.array_equal(layer.backward(x), y)
    assert not np.array_equal(layer(x), y)
    assert np.array_equal(layer.eval()(x), x)
    assert np.array_equal(layer.backward(2 * x), 2 * x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dropout_in_inference_gives_an_array_of_its_own(dtype: Any) -> None:
    layer = nn.Dropout(0.3).eval()
    x = np.array([[-0.0, np.nan, np.inf, 1.5]], dtype)
    y = layer(x)
    assert y.dtype == dtype and y.tobytes() == x.tobytes() and not np.shares_memory(x, y)
    assert np.array_equal(layer.backward(x), x, equal_nan=True)
    with pytest.raises(ValueError, match=r"dropout_backward: mask"):
        layer.backward(x[0])
    with cnnfast.trace() as ran:
        layer(x)
    assert [r.op for r in ran] == ["dropout"]


def test_dropout2d_drops_whole_channels() -> None:
    layer = nn.Dropout2d(0.25, rng=np.random.default_rng(0))
    x = np.ones((60, 50, 2, 3))
    y = layer(x)
    assert np.array_equal(y, np.broadcast_to(y[:, :, :1, :1], y.shape))
    assert set(np.unique(y)) == {0.0, 1 / 0.75}
    assert abs((y == 0).mean() - 0.25) < 0.04
    assert np.array_equal(layer.backward(x), y)
    assert np.array_equal(layer.eval()(x), x)


def test_copies_of_a_dropout_draw_the_same_masks() -> None:
    layer = nn.Dropout(rng=np.random.default_rng(5))
    twin = copy.deepcopy(layer)
    x = np.ones(100)
    assert np.array_equal(layer(x), twin(x))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Dropout(0.4, rng=np.random.default_rng(0)),
        nn.Dropout2d(0.4, rng=np.random.default_rng(0)),
    ],
    ids=repr,
)
def test_dropout_gradient(rng: np.random.Generator, layer: nn.Layer) -> None:
    report = gradcheck.check(layer, rng.normal(size=(2, 5, 2, 2)))
    assert report.ok, str(report)


def test_dropout2d_multiplies_as_ieee_arithmetic_says() -> None:
    """Which is what PyTorch gives: infinity times 0 is NaN."""
    x = np.full((4, 50, 2, 2), np.inf)
    x[1::2] = np.nan
    for p in (0.9, 1.0):
        layer = nn.Dropout2d(p, rng=np.random.default_rng(0))
        kept = layer(np.ones(x.shape)) != 0
        twin = nn.Dropout2d(p, rng=np.random.default_rng(0))
        expected = np.where(kept, x, np.nan)
        with np.errstate(invalid="ignore"):
            assert np.array_equal(twin(x), expected, equal_nan=True)
            assert np.array_equal(twin.backward(x), expected, equal_nan=True)
    thirds = nn.Dropout2d(0.1, rng=np.random.default_rng(0))(np.full((1, 9, 1, 1), 3.0))
    assert set(np.unique(thirds)) == {0.0, 3.0 / (1 - 0.1)}


# Batch normalisation


def test_batch_norm_goes_back_through_the_statistics_it_used(rng: np.random.Generator) -> None:
    layer: Any = nn.BatchNorm1d(3, dtype=np.float64)
    layer(rng.normal(2, 3, size=(5, 3)))
    x, dy = rng.normal(size=(2, 5, 3))
    layer.eval()(x)
    expected = layer.backward(dy), layer.grads["weight"].copy()
    layer.running_mean += 5
    layer.running_var *= 9
    assert np.array_equal(layer.backward(dy), expected[0])
    assert np.array_equal(layer.grads["weight"], expected[1])


def test_cumulative_average_weighs_all_batches_the_same(rng: np.random.Generator) -> None:
    layer = nn.BatchNorm1d(2, momentum=None, dtype=np.float64)
    batches = rng.normal(3, 2, size=(4, 5, 2))
    for batch in batches:
        layer(batch)
    assert close(layer.running_mean, batches.mean((0, 1)))
    assert close(layer.running_var, batches.var(1, ddof=1).mean(0))
    assert layer.num_batches_tracked is not None
    assert int(layer.num_batches_tracked) == 4
    assert layer.num_batches_tracked.dtype == np.int64


def test_batch_norm_that_fails_changes_no_buffer() -> None:
    layer = nn.BatchNorm1d(2)
    before = layer.state_dict()
    with pytest.raises(ValueError, match=r"\(1, 2\)|value"):
        layer(np.ones((1, 2), np.float32))
    assert all(np.array_equal(before[k], v) for k, v in layer.state_dict().items())


def test_batch_norm_without_bias(torch: Any, rng: np.random.Generator) -> None:
    layer = nn.BatchNorm2d(3, bias=False, dtype=np.float64)
    assert list(layer.state_dict()) == [
        "weight", "running_mean", "running_var", "num_batches_tracked",
    ]  # fmt: skip
    x = rng.normal(size=(2, 3, 2, 2))
    assert gradcheck.check(layer, x)
    assert list(layer.grads) == ["weight"]
    expected = torch.nn.functional.batch_norm(torch.tensor(x), None, None, training=True)
    assert close(layer(x), expected)


def test_batch_norm_with_statistics_switched_off_follows_the_batch(
    torch: Any, rng: np.random.Generator
) -> None:
    """PyTorch's corner: buffers that are there, but are neither updated nor used in training."""
    ours, theirs = nn.BatchNorm1d(3, dtype=np.float64), torch.nn.BatchNorm1d(3).double()
    ours.track_running_stats = theirs.track_running_stats = False
    for training in (True, False):
        x = rng.normal(size=(5, 3))
        assert close(ours.train(training)(x), theirs.train(training)(torch.tensor(x)))
        for key, value in theirs.state_dict().items():
            assert close(ours.state_dict()[key], value)


# Losses

LOSSES: list[tuple[str, dict[str, Any]]] = [
    ("CrossEntropyLoss", {}),
    ("CrossEntropyLoss", {"label_smoothing": 0.2}),
    ("CrossEntropyLoss", {"label_smoothing": 0.1, "reduction": "sum"}),
    ("MSELoss", {}),
    ("MSELoss", {"reduction": "sum"}),
    ("MultiMarginLoss", {}),
    ("MultiMarginLoss", {"margin": 0.7}),
    ("MultiMarginLoss", {"margin": 2.5, "reduction": "sum"}),
]


@pytest.mark.parametrize(("name", "kwargs"), LOSSES, ids=[f"{n}-{k}" for n, k in LOSSES])
def test_loss_is_pytorchs(
    torch: Any, rng: np.random.Generator, name: str, kwargs: dict[str, Any]
) -> None:
    scores = rng.normal(size=(6, 4))
    target = rng.normal(size=(6, 4)) if name == "MSELoss" else rng.integers(4, size=6)
    ours, theirs = getattr(nn, name)(**kwargs), getattr(torch.nn, name)(**kwargs)
    t = torch.tensor(scores, requires_grad=True)
    expected = theirs(t, torch.tensor(target))
    expected.backward()
    loss = ours(scores, target)
    assert type(loss) is float
    assert close(loss, expected)
    assert close(ours.backward(), t.grad)
    assert gradcheck.check(ours, scores, target)
    twin = pickle.loads(pickle.dumps(ours))
    assert twin(scores, target) == loss


def test_multi_margin_loss_is_the_courses_over_the_classes(rng: np.random.Generator) -> None:
    scores, labels = rng.normal(size=(5, 3)), rng.integers(3, size=5)
    courses, dscores = F.multi_margin_loss(scores, labels)
    loss = nn.MultiMarginLoss()
    assert loss(scores, labels) == pytest.approx(courses / 3, rel=1e-14)
    assert close(loss.backward(), dscores / 3)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
@pytest.mark.parametrize("ignore_index", [-100, 2])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_with_weights_and_ignored_labels_is_pytorchs(
    torch: Any,
    rng: np.random.Generator,
    reduction: str,
    label_smoothing: float,
    ignore_index: int,
    weighted: bool,
) -> None:
    scores = rng.normal(size=(9, 4))
    labels = np.array([0, 1, 2, 3, -100, 2, 0, 1, -100])
    labels[labels < 0] = ignore_index
    weight = rng.uniform(0.1, 3, 4) if weighted else None
    kwargs: dict[str, Any] = {
        "ignore_index": ignore_index, "reduction": reduction, "label_smoothing": label_smoothing,
    }  # fmt: skip
    ours = nn.CrossEntropyLoss(weight, **kwargs)
    theirs = torch.nn.CrossEntropyLoss(None if weight is None else torch.tensor(weight), **kwargs)
    t = torch.tensor(scores, requires_grad=True)
    expected = theirs(t, torch.tensor(labels))
    expected.backward()
    loss = ours(scores, labels)
    assert type(loss) is float
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    assert np.allclose(ours.backward(), t.grad.numpy(), rtol=1e-12, atol=1e-14)
    assert gradcheck.check(ours, scores, labels)
    assert pickle.loads(pickle.dumps(ours))(scores, labels) == loss
    dscores = ours.backward()
    assert ours(t.detach(), torch.tensor(labels)) == loss
    assert torch.equal(ours.backward(), torch.tensor(dscores))
    assert ours(scores.astype(np.float32), labels) == pytest.approx(loss, rel=1e-5)
    assert ours.backward().dtype == np.float32
    assert not ours.backward()[labels == ignore_index].any()


def test_cross_entropy_where_no_label_counts(torch: Any) -> None:
    scores, labels = np.ones((2, 3)), np.array([-100, -100])
    for weight in (None, [1.0, 2.0, 3.0]):
        mean = nn.CrossEntropyLoss(weight)
        assert math.isnan(mean(scores, labels))
        assert not mean.backward().any()
        assert nn.CrossEntropyLoss(weight, reduction="sum")(scores, labels) == 0
    hidden = np.array([[1.0, 2.0, -np.inf]])
    weights: Any = nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0]))
    assert weights(hidden, [1]) == pytest.approx(math.log(1 + math.exp(-1)))
    assert close(weights.backward(), np.array([[1, -1, 0]]) / (1 + math.e))


@pytest.mark.parametrize("name", ["CrossEntropyLoss", "MSELoss", "MultiMarginLoss"])
def test_losses_of_nothing(torch: Any, name: str) -> None:
    scores = np.zeros((0, 3))
    target = scores if name == "MSELoss" else np.zeros(0, np.int64)
    total = getattr(nn, name)(reduction="sum")
    assert total(scores, target) == 0
    assert total.backward().shape == (0, 3)
    assert math.isnan(getattr(nn, name)()(scores, target))
    if name != "MultiMarginLoss":  # for which PyTorch returns what was in memory
        theirs = getattr(torch.nn, name)(reduction="sum")
        assert theirs(torch.tensor(scores), torch.tensor(target)) == 0
    if name == "CrossEntropyLoss":
        assert nn.CrossEntropyLoss([1, 2, 3], reduction="sum")(scores, target) == 0


@pytest.mark.parametrize("name", ["CrossEntropyLoss", "MSELoss", "MultiMarginLoss"])
def test_a_loss_gives_its_gradient_away(rng: np.random.Generator, name: str) -> None:
    scores = rng.normal(size=(4, 3))
    loss = getattr(nn, name)()
    loss(scores, scores[::-1] if name == "MSELoss" else [0, 1, 2, 0])
    gradient = loss.backward()
    kept = gradient.copy()
    gradient *= 10
    assert np.array_equal(loss.backward(), kept)


def test_loss_errors() -> None:
    for loss in (nn.CrossEntropyLoss(), nn.MSELoss(), nn.MultiMarginLoss()):
        with pytest.raises(RuntimeError, match=f"{type(loss).__name__}.backward"):
            loss.backward()
    with pytest.raises(ValueError, match="reduction"):
        nn.MSELoss(reduction="none")
    with pytest.raises(ValueError, match="CrossEntropyLoss: label_smoothing"):
        nn.CrossEntropyLoss(label_smoothing=1.5)
    with pytest.raises(TypeError, match="CrossEntropyLoss: label_smoothing must be a number"):
        MISTAKE.CrossEntropyLoss(label_smoothing="x")
    with pytest.raises(TypeError, match="CrossEntropyLoss: ignore_index must be an integer"):
        MISTAKE.CrossEntropyLoss(ignore_index=1.0)
    with pytest.raises(TypeError, match="CrossEntropyLoss: weight must hold real numbers"):
        nn.CrossEntropyLoss("heavy")
    with pytest.raises(ValueError, match=r"CrossEntropyLoss: weight must have shape \(C,\)"):
        nn.CrossEntropyLoss(np.ones((1, 3)))
    scores = np.zeros((2, 3))
    weighted: Any = nn.CrossEntropyLoss(np.ones(3))
    with pytest.raises(ValueError, match="weight has 2 classes, scores has 3"):
        nn.CrossEntropyLoss(np.ones(2))(scores, np.array([0, 1]))
    with pytest.raises(ValueError, match="scores has no classes"):
        weighted(scores[:, :0], [-100, -100])
    with pytest.raises(ValueError, match="neither one of the 3 classes"):
        weighted(scores, [0, 3])
    with pytest.raises(ValueError, match=r"target must have shape \(2,\), not \(1,\)"):
        weighted(scores, [0])
    with pytest.raises(TypeError, match="target must be integers"):
        weighted(scores, [0.0, 1.0])
    with pytest.raises(ValueError, match="p must be 1"):
        nn.MultiMarginLoss(2)
    with pytest.raises(ValueError, match="label"):
        nn.CrossEntropyLoss()(np.zeros((2, 3)), np.array([0, 3]))


# What a layer remembers is its own


@every_layer
@both_modes
def test_writing_into_an_output_changes_no_gradient(
    rng: np.random.Generator,
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    shape: tuple[int, ...],
    training: bool,
) -> None:
    layer = make(name, args, kwargs).train(training)
    x = rng.normal(size=shape)
    y = layer(x)
    dy = rng.normal(size=y.shape)
    expected = layer.backward(dy).copy()
    if not np.shares_memory(x, y):  # a view, of Flatten
        y *= 0
        assert np.array_equal(layer.backward(dy), expected)


# Networks


class Block(nn.Layer):
    """A network as a user writes one, with a layer that is not always there."""

    def __init__(self, shortcut: bool, **kwargs: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1, bias=False, **kwargs)
        self.bn = nn.BatchNorm2d(3, dtype=kwargs.get("dtype", np.float32))
        self.side: nn.Layer | None = None
        if shortcut:
            self.side = nn.Conv2d(2, 3, 1, **kwargs)
        self.tail = nn.Sequential(
            nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6, 4, **kwargs)
        )
        self.add_param("scale", np.full(1, 2.0, kwargs.get("dtype", np.float32)))
        self.add_buffer("calls", np.zeros((), np.int64))

    def forward(self, x: Any) -> Any:
        self.calls += 1
        inner = self.bn(self.conv(x))
        if self.side is not None:
            inner = inner + self.side(x)
        self.out = self.tail(inner)
        return self.out * self.scale

    def backward(self, dy: Any) -> Any:
        self.grads["scale"] = (dy * self.out).sum().reshape(1)
        inner = self.tail.backward(dy * self.scale)
        dx = self.conv.backward(self.bn.backward(inner))
        return dx if self.side is None else dx + self.side.backward(inner)


def small_network(**kwargs: Any) -> nn.Sequential:
    dtype = {"dtype": kwargs.get("dtype", np.float32)}
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, **kwargs),
        nn.BatchNorm2d(3, **dtype),
        nn.ReLU(),
        nn.Residual(nn.Conv2d(3, 3, 3, padding=1, **kwargs)),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 5, **kwargs),
    )


@pytest.mark.parametrize("shortcut", [False, True])
def test_network_of_ones_own(rng: np.random.Generator, shortcut: bool) -> None:
    net = Block(shortcut, rng=rng, dtype=np.float64)
    side = ["side.weight", "side.bias"] if shortcut else []
    assert list(net.params) == [
        "scale", "conv.weight", "bn.weight", "bn.bias", *side, "tail.3.weight", "tail.3.bias",
    ]  # fmt: skip
    assert list(net.buffers) == [
        "calls", "bn.running_mean", "bn.running_var", "bn.num_batches_tracked",
    ]  # fmt: skip
    report = gradcheck.check(net, rng.normal(size=(2, 2, 4, 2)))
    assert report.ok, str(report)
    assert set(report.errors) == {"x", *net.params}
    assert int(net.calls) == 0
    copied = pickle.loads(pickle.dumps(net))
    assert list(copied.params) == list(net.params)
    assert copied.conv is copied._layers["conv"]


def test_sequential_with_names_and_slices() -> None:
    net = nn.Sequential({"conv1": nn.Conv1d(1, 2, 3), "act": nn.ReLU()})
    assert list(net.state_dict()) == ["conv1.weight", "conv1.bias"]
    assert net.conv1 is net[0]
    net.append(nn.Flatten())
    assert [type(layer).__name__ for layer in net] == ["Conv1d", "ReLU", "Flatten"]
    assert len(net[1:]) == 2
    assert net[1:][0] is net[1] is net[-2]
    assert list(net[:1].params) == ["conv1.weight", "conv1.bias"]
    with pytest.raises(IndexError):
        net[3]


def test_residual(rng: np.random.Generator) -> None:
    conv = nn.Conv2d(2, 2, 3, padding=1, **F64)
    block = nn.Residual(conv)
    x = rng.normal(size=(2, 2, 3, 4))
    assert close(block(x), conv(x) + x)
    assert gradcheck.check(block, x)
    main = nn.Conv2d(2, 3, 3, stride=2, **F64)
    both = nn.Residual(main, nn.Conv2d(2, 3, 1, stride=2, **F64))
    assert list(both.params) == ["main.weight", "main.bias", "shortcut.weight", "shortcut.bias"]
    with pytest.raises(ValueError, match=r"main gives shape \(1, 3, 1, 1\), shortcut gives"):
        both(np.zeros((1, 2, 3, 3)))
    both.main = nn.Conv2d(2, 3, 3, stride=2, padding=1, **F64)
    assert gradcheck.check(both, x)


def test_modes_reach_every_layer() -> None:
    net = nn.Sequential(nn.Dropout(), nn.Residual(nn.Sequential(nn.BatchNorm1d(3))))
    assert net.eval() is net
    assert not any(layer.training for _, layer in net.named_layers())
    assert net.train().training
    assert all(layer.training for _, layer in net.named_layers())
    assert [name for name, _ in net.named_layers()] == ["", "0", "1", "1.main", "1.main.0"]


def test_params_are_live_and_setting_writes_through(rng: np.random.Generator) -> None:
    net = small_network(rng=rng)
    weight = net[0].weight
    assert net.params["0.weight"] is weight
    params = net.params
    params["0.weight"] = np.ones((3, 1, 3, 3))
    params["0.bias"] += 1
    net[6].bias = [1, 2, 3, 4, 5]
    assert (weight == 1).all()
    assert weight.dtype == np.float32
    assert net[0].weight is weight
    assert net.state_dict()["6.bias"].tolist() == [1, 2, 3, 4, 5]
    params.update({"6.bias": np.zeros(5)})
    params |= {"1.weight": np.full(3, 7)}
    assert not net.params["6.bias"].any()
    assert net.params["1.weight"].tolist() == [7, 7, 7]
    with pytest.raises(KeyError, match=r"7\.bias"):
        params["7.bias"] = np.zeros(5)
    with pytest.raises(ValueError, match=r"6\.bias must have shape \(5,\), not \(\)"):
        params["6.bias"] = 0
    with pytest.raises(ValueError, match=r"Linear: bias must have shape"):
        net[6].bias = np.zeros(4)
    with pytest.raises(TypeError, match="real numbers"):
        net[6].bias = np.zeros(5, complex)
    for twin in (pickle.loads(pickle.dumps(params)), copy.deepcopy(params)):
        assert type(twin) is dict
        assert twin.keys() == params.keys()


def test_gradients_are_overwritten_not_added(rng: np.random.Generator) -> None:
    net = small_network(rng=rng)
    x = rng.normal(size=(2, 1, 4, 4)).astype(np.float32)
    dy = np.ones((2, 5), np.float32)
    assert not net.grads
    net(x)
    first = net.backward(dy)
    kept = {k: g.copy() for k, g in net.grads.items()}
    again = net.backward(dy)
    assert np.array_equal(first, again)
    assert list(net.grads) == list(net.params)
    for key, grad in net.grads.items():
        assert np.array_equal(grad, kept[key])
        assert grad.shape == net.params[key].shape


def test_layers_do_not_change_what_they_are_given(rng: np.random.Generator) -> None:
    net = small_network(rng=rng)
    x = rng.normal(size=(2, 1, 4, 4)).astype(np.float32)
    x.flags.writeable = False
    dy = np.ones((2, 5), np.float32)
    dy.flags.writeable = False
    for mode in (True, False):
        assert net.train(mode)(x).shape == (2, 5)
        assert net.backward(dy).shape == x.shape


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_any_batch(rng: np.random.Generator, batch: int) -> None:
    net = small_network(rng=rng).eval()
    y = net(np.ones((batch, 1, 4, 4), np.float32))
    assert y.shape == (batch, 5)
    assert net.backward(y).shape == (batch, 1, 4, 4)
    assert net.grads["0.weight"].shape == (3, 1, 3, 3)


def test_mixed_dtypes_compute_in_float64() -> None:
    layer = nn.Conv1d(1, 2, 3)
    y = layer(np.ones((1, 1, 5)))
    assert y.dtype == np.float64
    assert layer.backward(y).dtype == np.float64
    assert layer.grads["weight"].dtype == np.float32
    half = nn.Conv1d(1, 2, 3, dtype=np.float16)
    assert half(np.ones((1, 1, 5), np.float16)).dtype == np.float16
    assert nn.BatchNorm1d(3)(np.array([[1, 2, 3], [2, 4, 6]])).dtype == np.float64


def test_input_gradient_is_left_out_on_request(rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 1, 4, 4)).astype(np.float32)
    net = small_network(rng=rng)
    dy = np.ones((2, 5), np.float32)
    net(x)
    assert net.backward(dy) is not None
    wanted = {k: g.copy() for k, g in net.grads.items()}
    net.needs_input_grad = False
    assert not net[0].needs_input_grad
    assert net[3].needs_input_grad
    net(x)
    assert net.backward(dy) is None
    assert list(net.grads) == list(wanted)
    assert all(np.array_equal(net.grads[k], g) for k, g in wanted.items())
    net.needs_input_grad = True
    assert net.backward(dy) is not None

    head = nn.Sequential(nn.Flatten(), nn.Residual(nn.Linear(4, 4), nn.Linear(4, 4)))
    head.needs_input_grad = False
    head(np.ones((2, 2, 2), np.float32))
    assert head.backward(np.ones((2, 4), np.float32)) is None
    assert len(head.grads) == 4


def test_method_reaches_the_operation() -> None:
    x = np.ones((1, 2, 4, 4))
    for layer in (
        nn.Conv2d(2, 2, 3, method="naive", dtype=np.float64),
        nn.ConvTranspose2d(2, 2, 3, method="naive", dtype=np.float64),
        nn.MaxPool2d(2, method="naive"),
        nn.AvgPool2d(2, method="naive"),
        nn.AdaptiveAvgPool2d(3, method="naive"),
        nn.BatchNorm2d(2, method="naive", dtype=np.float64),
        nn.ReLU(method="naive"),
        nn.LeakyReLU(method="naive"),
        nn.Sigmoid(method="naive"),
        nn.Tanh(method="naive"),
        nn.Softmax(1, method="naive"),
        nn.Linear(4, 4, method="naive", dtype=np.float64),
        nn.Dropout(method="naive"),
        nn.Dropout2d(method="naive"),
    ):
        for mode in (True, False):
            with cnnfast.trace() as ran:
                layer.train(mode).backward(layer(x))
            assert ran
            assert {record.method for record in ran} == {"naive"}, layer
    with cnnfast.use("naive"), cnnfast.trace() as ran:
        nn.Conv2d(2, 2, 3)(x)
    assert [record.method for record in ran] == ["naive"]


def test_max_pool_finds_indices_late_in_inference() -> None:
    layer = nn.MaxPool2d(2).eval()
    x = np.zeros((1, 1, 2, 2))
    layer(x)
    assert layer.backward(np.ones((1, 1, 1, 1))).tolist() == [[[[1, 0], [0, 0]]]]


def test_flatten_of_other_libraries_and_devices() -> None:
    xs = pytest.importorskip("array_api_strict", reason="array-api-strict is missing")
    for device in ("CPU_DEVICE", "device1"):
        x = xs.reshape(xs.arange(12, device=xs.Device(device)), (2, 3, 2))
        layer = nn.Flatten()
        y = layer(x)
        dx = layer.backward(y)
        assert type(y) is type(dx) is type(x)
        assert (y.shape, dx.shape) == ((2, 6), (2, 3, 2))
        assert (y.dtype, y.device, dx.device) == (x.dtype, x.device, x.device)
        assert bool(xs.all(dx == x))
    assert MISTAKE.Flatten()([[[1, 2], [3, 4]]]).tolist() == [[1, 2, 3, 4]]
    with pytest.raises(TypeError, match="Flatten: x is a masked array"):
        nn.Flatten()(np.ma.masked_array(np.ones((2, 2)), mask=True))


def test_softmax_and_losses_on_another_device() -> None:
    """What they remember, or reckon with weights, stays on the device of the input."""
    xs = pytest.importorskip("array_api_strict", reason="array-api-strict is missing")
    x = xs.asarray([[0.0, 1.0, 2.0], [1.0, 0.0, 3.0]], device=xs.Device("device1"))
    labels = xs.asarray([2, -100], device=x.device)
    softmax = nn.Softmax(1)
    loss: Any = nn.CrossEntropyLoss([1.0, 2.0, 3.0], label_smoothing=0.1)
    twin = copy.deepcopy(loss)
    assert softmax.backward(softmax(x)).device == x.device
    assert loss(x, labels) == pytest.approx(twin(np.array([[0.0, 1, 2], [1, 0, 3]]), [2, -100]))
    gradient = loss.backward()
    assert gradient.device == x.device
    host = xs.asarray(gradient, device=xs.Device("CPU_DEVICE"))
    assert close(np.from_dlpack(host), twin.backward())


def _forward(layer: nn.Layer) -> Any:
    return layer(np.ones((1, 1, 4, 4), np.float32))


def test_layers_go_to_other_processes(rng: np.random.Generator) -> None:
    net = small_network(rng=rng).eval()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        (y,) = pool.map(_forward, [net])
    assert np.allclose(y, _forward(net), rtol=1e-5)


# Mistakes


@pytest.mark.parametrize(
    ("error", "words", "build"),
    [
        (ValueError, "in_channels must be at least 1, not 0", lambda: nn.Conv2d(0, 3, 3)),
        (TypeError, "out_channels must be an integer", lambda: MISTAKE.Conv2d(3, 2.5, 3)),
        (ValueError, "kernel_size must be", lambda: nn.Conv2d(3, 3, (3, 3, 3))),
        (TypeError, "stride must be an integer", lambda: nn.Conv2d(3, 3, 3, stride=1.5)),
        (ValueError, "stride must be at least 1", lambda: nn.Conv1d(3, 3, 3, stride=0)),
        (ValueError, "padding must be at least 0", lambda: nn.Conv2d(3, 3, 3, padding=-1)),
        (ValueError, "'valid' or 'same'", lambda: nn.Conv2d(3, 3, 3, padding="full")),
        (ValueError, "stride 1", lambda: nn.Conv2d(3, 3, 3, stride=2, padding="same")),
        (
            ValueError,
            "padding must be numbers",
            lambda: nn.ConvTranspose2d(3, 3, 3, padding="same"),
        ),
        (ValueError, "groups=2 does not divide in_ch", lambda: nn.Conv2d(3, 4, 3, groups=2)),
        (ValueError, "groups=3 does not divide out_ch", lambda: nn.Conv2d(3, 4, 3, groups=3)),
        (ValueError, "padding_mode", lambda: nn.Conv2d(3, 4, 3, padding_mode="reflect")),
        (TypeError, "dtype must be", lambda: nn.Conv2d(3, 4, 3, dtype=int)),
        (TypeError, "dtype must be", lambda: nn.Linear(3, 4, dtype="number")),
        (TypeError, "dtype must be", lambda: nn.Linear(3, 4, dtype=None)),
        (
            TypeError,
            r"rng must be a numpy\.random\.Generator",
            lambda: MISTAKE.Conv2d(3, 4, 3, rng=0),
        ),
        (ValueError, "in_features", lambda: nn.Linear(0, 3)),
        (ValueError, "num_features", lambda: nn.BatchNorm2d(0)),
        (ValueError, "inplace", lambda: nn.ReLU(inplace=True)),
        (ValueError, "p must be from 0 to 1", lambda: nn.Dropout(1.5)),
        (ValueError, "p must be from 0 to 1", lambda: nn.Dropout(float("nan"))),
        (TypeError, "p must be a number", lambda: MISTAKE.Dropout2d("half")),
        (TypeError, "Dropout: p must be a number, not '0.5'", lambda: MISTAKE.Dropout("0.5")),
        (TypeError, "Dropout: p must be a number, not True", lambda: nn.Dropout(True)),
        (TypeError, r"Flatten: start_dim must be an integer", lambda: MISTAKE.Flatten(1.0)),
        (TypeError, r"Flatten: end_dim must be an integer", lambda: MISTAKE.Flatten(1, "2")),
        (TypeError, r"Softmax: dim must be an integer", lambda: MISTAKE.Softmax(1.0)),
        (TypeError, "negative_slope must be a number", lambda: MISTAKE.LeakyReLU("0.1")),
        (TypeError, "BatchNorm1d: eps must be a number", lambda: MISTAKE.BatchNorm1d(3, "x")),
        (ValueError, "BatchNorm2d: eps must be from 0", lambda: nn.BatchNorm2d(3, -1e-5)),
        (TypeError, "momentum must be a number", lambda: MISTAKE.BatchNorm1d(3, momentum="x")),
        (
            ValueError,
            "AvgPool2d: padding must be at most half",
            lambda: nn.AvgPool2d(2, padding=5),
        ),
        (ValueError, "AvgPool1d: padding must be at most", lambda: nn.AvgPool1d(2, padding=2)),
        (ValueError, "MaxPool2d: padding must be at most", lambda: nn.MaxPool2d(3, padding=2)),
        (ValueError, "divisor_override", lambda: nn.AvgPool2d(2, divisor_override=0)),
        (TypeError, "ceil_mode must be True", lambda: MISTAKE.MaxPool1d(2, ceil_mode="yes")),
        (
            ValueError,
            r"ConvTranspose2d: output_padding must be smaller .* not \(5, 5\) with stride \(2, 2\)",
            lambda: nn.ConvTranspose2d(1, 1, 1, stride=2, output_padding=5),
        ),
        (
            ValueError,
            "ConvTranspose1d: output_padding",
            lambda: nn.ConvTranspose1d(1, 1, 1, output_padding=1),
        ),
        (ValueError, "return_indices", lambda: nn.MaxPool2d(2, return_indices=True)),
        (ValueError, "kernel_size", lambda: nn.MaxPool2d(0)),
        (TypeError, "kernel_size", lambda: nn.AvgPool2d(2.0)),
        (ValueError, "output_size", lambda: nn.AdaptiveAvgPool2d((1, 2, 3))),
        (ValueError, "output_size", lambda: nn.AdaptiveAvgPool2d(0)),
        (ValueError, "output_size must be 1, not 2", lambda: nn.AdaptiveMaxPool2d(2)),
        (
            TypeError,
            "1 must be a layer, not function",
            lambda: MISTAKE.Sequential(nn.ReLU(), _forward),
        ),
        (TypeError, "main must be a layer", lambda: MISTAKE.Residual(None)),
        (ValueError, "no dot", lambda: nn.Sequential({"a.b": nn.ReLU()})),
        (ValueError, "'forward' is taken", lambda: nn.Sequential({"forward": nn.ReLU()})),
    ],
)
def test_constructor_mistakes(error: type[Exception], words: str, build: Any) -> None:
    with pytest.raises(error, match=words):
        build()


@pytest.mark.parametrize(
    ("name", "args"), {name: args for name, args, *_ in LAYERS if name != "Flatten"}.items()
)
def test_a_method_that_is_not_there(name: str, args: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=rf"{name}: there is no method 'bogus'; .*auto, .*naive"):
        getattr(nn, name)(*args, method="bogus")
    with pytest.raises(TypeError, match=f"{name}: method must be a name, not None"):
        getattr(nn, name)(*args, method=None)


@pytest.mark.parametrize("name", ["CrossEntropyLoss", "MSELoss", "MultiMarginLoss"])
def test_a_loss_method_that_is_not_there(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: there is no method 'im2col'"):
        getattr(nn, name)(method="im2col")


@pytest.mark.parametrize(
    ("layer", "shape", "words"),
    [
        (nn.AdaptiveAvgPool2d(None), (1, 1, 0, 3), r"AdaptiveAvgPool2d: x has an empty axis"),
        (nn.AdaptiveMaxPool2d(1), (1, 1, 0, 3), r"AdaptiveMaxPool2d: x has an empty axis"),
        (nn.AdaptiveMaxPool2d(1), (2, 3), r"AdaptiveMaxPool2d: x must have shape \(N, C, H, W\)"),
        (nn.Conv2d(4, 2, 3), (8, 3, 32, 32), r"4 input channels.* 3 .*\(8, 3, 32, 32\)"),
        (nn.Conv2d(3, 2, 3), (3, 32, 32), r"N, C, H, W"),
        (nn.BatchNorm2d(4), (2, 3, 4, 4), r"BatchNorm2d: x must have 4 channels, not 3"),
        (nn.BatchNorm2d(4), (2, 4), r"BatchNorm2d: x must have shape \(N, C, H, W\), not \(2, 4\)"),
        (nn.BatchNorm1d(4), (2, 4, 1, 1), r"\(N, C\) or \(N, C, L\), not \(2, 4, 1, 1\)"),
        (nn.Linear(3, 2), (5, 4), r"3"),
        (nn.Softmax(), (2, 3, 4), r"Softmax: dim must be given .*\(2, 3, 4\)"),
        (nn.Flatten(2), (2, 3), r"Flatten: start_dim=2 is out of range"),
        (nn.Flatten(1, 0), (2, 3), r"start_dim=1 comes after end_dim=0"),
        (nn.Dropout2d(), (2, 3), r"Dropout2d: x must have shape \(N, C, H, W\)"),
        (nn.AdaptiveAvgPool2d(1), (2, 3), r"AdaptiveAvgPool2d: x must have shape \(N, C, H, W\)"),
        (nn.MaxPool2d(3), (1, 1, 2, 2), r"max_pool2d"),
    ],
)
def test_inputs_that_do_not_fit(layer: nn.Layer, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        layer(np.zeros(shape, np.float32))


@every_layer
def test_backward_needs_a_forward_and_a_gradient_that_fits(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], shape: tuple[int, ...]
) -> None:
    layer = make(name, args, kwargs)
    with pytest.raises(RuntimeError, match=rf"{name}\.backward: there is no forward pass"):
        layer.backward(np.zeros(shape))
    for mode in (True, False):
        y = layer.train(mode)(np.ones(shape))
        with pytest.raises(ValueError, match=r"dy|indices|mask"):
            layer.backward(np.zeros((*y.shape, 2)))


class Scale(nn.Layer):
    """A layer with a parameter of its own, as a user writes one."""

    def __init__(self) -> None:
        super().__init__()
        self.add_param("scale", np.ones(3))

    def forward(self, x: Any) -> Any:
        self._x = x
        return x * self.scale

    def backward(self, dy: Any) -> Any:
        self.grads["scale"] = (dy * self._x).sum(0)
        return dy * self.scale


def test_gradients_of_a_layer_of_ones_own(rng: np.random.Generator) -> None:
    x = rng.normal(size=(4, 3))
    assert gradcheck.check(Scale(), x).ok
    net = nn.Sequential(Scale(), nn.Linear(3, 2, **F64), Scale())
    assert list(net.grads) == []
    # From outside too, by the dotted name; copied, in the parameter's dtype.
    mine = np.arange(3, dtype=np.float32)
    net.grads["2.scale"] = mine
    mine[:] = 7
    assert list(net.grads) == ["2.scale"]
    assert net[2].grads["scale"].tolist() == [0, 1, 2]
    assert net.grads["2.scale"].dtype == np.float64
    held = net.grads
    held["2.scale"] *= 2
    assert net.grads["2.scale"].tolist() == held["2.scale"].tolist() == [0, 2, 4]
    with pytest.raises(ValueError, match=r"Scale: the gradient of 'scale' must have shape \(3,\)"):
        net.grads["2.scale"] = np.ones((1, 3))
    with pytest.raises(KeyError, match="'scale' is not one of the parameters"):
        net.grads["scale"] = np.ones(3)
    for twin in (pickle.loads(pickle.dumps(net.grads)), copy.deepcopy(net.grads)):
        assert twin["2.scale"].tolist() == [0, 2, 4]


def test_one_layer_object_cannot_stand_in_two_places() -> None:
    relu = nn.ReLU()
    with pytest.raises(ValueError, match=r"'0' and '1\.0' are the same ReLU"):
        nn.Sequential(relu, nn.Sequential(relu))
    net = nn.Sequential(relu)
    with pytest.raises(ValueError, match="same ReLU"):
        net.append(relu)
    assert len(net) == 1
    with pytest.raises(ValueError, match="same"):
        nn.Residual(relu, relu)


def test_subclass_mistakes() -> None:
    class Forgetful(nn.Layer):
        def __init__(self, *, layer: bool) -> None:
            if layer:
                self.fc = nn.Linear(1, 1)

    says = r"Forgetful\.__init__ must call super\(\)\.__init__\(\)"
    with pytest.raises(RuntimeError, match=says):
        Forgetful(layer=True)
    forgetful = Forgetful(layer=False)
    assert repr(forgetful) == "Forgetful()"
    for use in (
        lambda: forgetful.params,
        lambda: forgetful.grads,
        lambda: forgetful.add_param("w", np.zeros(1)),
        forgetful.state_dict,
        forgetful.eval,
        lambda: nn.Sequential(forgetful).params,
    ):
        with pytest.raises(RuntimeError, match=says):
            use()

    layer = nn.Layer()
    with pytest.raises(NotImplementedError, match="no forward"):
        layer(np.zeros(1))
    with pytest.raises(NotImplementedError, match="no backward"):
        layer.backward(np.zeros(1))
    with pytest.raises(TypeError, match="w must be an array"):
        layer.add_param("w", [1.0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="fc must be a layer"):
        layer.add_layer("fc", 3)  # type: ignore[arg-type]
    layer.add_param("w", np.zeros(2))
    with pytest.raises(ValueError, match="'w' is taken"):
        layer.add_buffer("w", np.zeros(2))
    with pytest.raises(ValueError, match="'forward' is taken"):
        layer.forward = nn.ReLU()  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="made without bias"):
        nn.Linear(2, 2, bias=False).bias = np.zeros(2)


def test_layers_can_be_replaced_and_deleted() -> None:
    net = Block(shortcut=True)
    net.side = nn.Conv2d(2, 3, 1, bias=False)
    assert "side.bias" not in net.params
    net.side = None
    assert "side.weight" not in net.params
    net.side = nn.Conv2d(2, 3, 1)
    assert "side.bias" in net.params
    del net.side
    assert "side.weight" not in net.params
    assert not hasattr(net, "side")
    del net.scale
    assert "scale" not in net.params


@pytest.mark.parametrize(
    "sizes",
    [
        {"kernel_size": np.int64(2)},
        {"kernel_size": np.array([2, 3]), "stride": np.array([1, 2])},
        {"kernel_size": [3, 3], "padding": np.int32(1), "dilation": np.int8(1)},
        {"kernel_size": (3, 3), "padding": [(1, 0), (0, 1)], "ceil_mode": np.True_},
    ],
    ids=str,
)
def test_max_pool_takes_sizes_of_any_kind(sizes: dict[str, Any]) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 7, 8)).astype(np.float32)
    layer = nn.MaxPool2d(**sizes)
    y = layer(x)
    dx = layer.backward(np.ones_like(y))
    np.testing.assert_array_equal(layer.eval()(x), y)
    np.testing.assert_array_equal(layer.backward(np.ones_like(y)), dx)


def test_relu6_backward() -> None:
    """By hand, as in PyTorch: NaN lets the gradient pass."""
    layer = nn.ReLU6()
    x = np.array([-1, 0, 3, 6, 7, np.nan], np.float16)
    assert layer(x).dtype == np.float16
    dx = layer.backward(np.full(6, 2, np.float16))
    assert dx.dtype == np.float16
    np.testing.assert_array_equal(dx, [0, 0, 2, 0, 0, 2])
    with pytest.raises(ValueError, match=r"ReLU6\.backward: dy must have shape"):
        layer.backward(np.ones(1, np.float16))
