"""Layers in one pass, in training and in inference, against the same layers one by one."""

from __future__ import annotations

import copy
import gc
import pickle
import tracemalloc
from collections.abc import Callable
from threading import Thread
from typing import Any

import checks
import numpy as np
import pytest
from cases import FLOATS

import cnnfast
from cnnfast import compiled, fused, models, nn

pytestmark = pytest.mark.skipif(
    compiled.engine_missing() is not None, reason=str(compiled.engine_missing())
)

Net = Callable[[Any, np.random.Generator], nn.Sequential]

# Sums of at most 16 * 3 * 3 products of numbers around 1, and a few more roundings behind them.
ROUNDING = 300


def images(dtype: Any, *shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape or (3, 4, 9, 8)).astype(dtype)


def conv(F: int = 6, C: int = 4, K: int = 3, **options: Any) -> Callable[..., nn.Layer]:
    return lambda dtype, rng: nn.Conv2d(C, F, K, dtype=dtype, rng=rng, **options)


def norm(C: int = 6, **options: Any) -> Callable[..., nn.Layer]:
    return lambda dtype, rng: nn.BatchNorm2d(C, dtype=dtype, **options)


def relu(dtype: Any, rng: Any) -> nn.Layer:
    return nn.ReLU()


def sequential(*makers: Any) -> Net:
    """A network whose normalisations are not those that they start with."""

    def make(dtype: Any, rng: np.random.Generator) -> nn.Sequential:
        net = nn.Sequential(*(maker(dtype, rng) for maker in makers))
        for _, layer in net.named_layers():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                for name in ("weight", "bias", "running_mean"):
                    if getattr(layer, name) is not None:
                        getattr(layer, name)[...] = rng.normal(size=layer.num_features)
                if layer.running_var is not None:
                    layer.running_var[...] = rng.uniform(0.5, 2, layer.num_features)
        return net

    return make


def within(*makers: Any) -> Callable[..., nn.Layer]:
    """A block that adds its input."""
    return lambda dtype, rng: nn.Residual(sequential(*makers)(dtype, rng))


def inverted(C: int, F: int, stride: int = 1) -> Callable[..., nn.Layer]:
    return lambda dtype, rng: models.InvertedResidual(C, F, stride, 2, dtype=dtype, rng=rng)


NETS: dict[str, Net] = {
    "conv": sequential(conv()),
    "conv relu": sequential(conv(padding=1), relu),
    "conv norm": sequential(conv(padding=1), norm()),
    "conv norm relu": sequential(conv(padding=1), norm(), relu),
    "no bias": sequential(conv(bias=False), norm(), relu),
    "not affine": sequential(conv(), norm(affine=False), relu),
    "no shift": sequential(conv(), norm(bias=False), relu),
    "no statistics": sequential(conv(), norm(track_running_stats=False), relu),
    "norm relu": sequential(norm(4), relu),
    "relu conv": sequential(relu, conv(), relu),
    "stride": sequential(conv(stride=2, padding=1), norm(), relu),
    "dilation": sequential(conv(dilation=2, padding="same"), relu),
    "one tap": sequential(conv(K=1), norm(), relu),
    "groups": sequential(conv(groups=2), norm(), relu),
    "depthwise": sequential(conv(F=4, groups=4, padding=1), norm(4), relu),
    "winograd": sequential(
        conv(F=32, C=4, padding=1), norm(32), relu, conv(F=16, C=32, padding=1), norm(16), relu
    ),
    "two": sequential(conv(padding=1), relu, conv(C=6, padding=1), norm(), relu),
    "nested": sequential(
        lambda dtype, rng: sequential(conv(padding=1), norm(), relu)(dtype, rng),
        lambda dtype, rng: nn.Residual(sequential(conv(C=6, padding=1), relu)(dtype, rng)),
        relu,
    ),
    "blocked": sequential(
        *(conv(F=16, padding=1), norm(16), relu),
        *(conv(F=30, C=16, K=1, bias=False), norm(30), relu),
        *(conv(F=30, C=30, groups=30, padding=1, stride=2), norm(30)),
        *(conv(F=16, C=30, K=1), relu, conv(C=16)),
    ),
    "blocks": sequential(
        *(conv(F=16, padding=1), relu, inverted(16, 16), within(inverted(16, 16))),
        *(
            within(within(inverted(16, 16)), conv(F=16, C=16, K=1), relu),
            inverted(16, 14, stride=2),
        ),
        *(within(conv(F=14, C=14, K=1), norm(14)), within(conv(F=14, C=14, padding=1)), relu),
    ),
    "signals": sequential(
        lambda dtype, rng: nn.Flatten(2),
        lambda dtype, rng: nn.Conv1d(4, 6, 3, dtype=dtype, rng=rng),
        lambda dtype, rng: nn.BatchNorm1d(6, dtype=dtype),
        relu,
    ),
}


def one_by_one(net: nn.Sequential, x: np.ndarray) -> np.ndarray:
    """The forward pass of each layer by the portable method, as if there were no engine."""
    with cnnfast.use("portable"):
        return net(x)


def back_one_by_one(net: nn.Sequential, x: np.ndarray, dy: np.ndarray) -> Any:
    """The gradient by x, through the layers one by one."""
    one_by_one(net, x)
    with cnnfast.use("portable"):
        return net.backward(dy)


def ran_in(call: Callable[[], Any]) -> list[str]:
    with cnnfast.trace() as ran:
        call()
    return [one.op for one in ran]


def assert_near(got: Any, want: Any, what: str, terms: int = 0) -> None:
    """`terms` is how many a sum has whose parts may cancel, as the bias's before a norm do."""
    assert got.dtype == want.dtype and got.shape == want.shape, what
    size = max(1.0, float(np.abs(want).max(initial=0)))
    bound = (ROUNDING * size + 4 * terms) * np.finfo(want.dtype).eps
    worst = float(np.abs(got - want).max(initial=0))
    assert worst <= bound, f"{what}: {worst} off, {bound} allowed"


@pytest.fixture(params=NETS)
def make(request: pytest.FixtureRequest) -> Net:
    return NETS[request.param]


# Inference


@pytest.mark.parametrize("dtype", FLOATS)
def test_inference_is_that_of_the_layers(make: Net, dtype: Any, rng: np.random.Generator) -> None:
    net = make(dtype, rng).eval()
    for shape in ((3, 4, 9, 8), (1, 4, 9, 8), (3, 4, 9, 8), (2, 4, 5, 7)):
        x = images(dtype, *shape)
        before = x.copy()
        want = one_by_one(net, x)
        for _ in range(2):
            y = net(x)
            assert_near(y, want, str(shape))
            checks.assert_same(x, before, "x was changed")
            y[...] = np.nan  # the caller's own
    states = make(dtype, np.random.default_rng(0)).eval().state_dict()
    for name, value in net.state_dict().items():
        checks.assert_same(value, states[name], name)


def test_inference_folds(rng: np.random.Generator) -> None:
    x = images(np.float32)
    for name, ops in {
        "conv": ["conv2d"],
        "conv relu": ["conv + relu"],
        "conv norm": ["conv2d"],
        "conv norm relu": ["conv + relu"],
        "winograd": ["conv + relu", "conv + relu"],
        "signals": ["conv + relu"],
        "norm relu": ["batch_norm", "relu"],
        "no statistics": ["conv2d", "batch_norm", "relu"],
    }.items():
        net = NETS[name](np.float32, rng).eval()
        for _ in range(2):
            assert ran_in(lambda net=net: net(x)) == ops, name


def _by_name(net: nn.Sequential, name: str, value: np.ndarray) -> None:
    setattr(net[int(name[0])], name[2:], value)


CHANGES: dict[str, Callable[[nn.Sequential, str, np.ndarray], None]] = {
    "in place": lambda net, name, value: np.copyto(getattr(net[int(name[0])], name[2:]), value),
    "by attribute": _by_name,
    "through params": lambda net, name, value: (net.params | net.buffers)[name].__setitem__(
        ..., value
    ),
    "through a view": lambda net, name, value: np.copyto(
        getattr(net[int(name[0])], name[2:]).reshape(-1), value.reshape(-1)
    ),
    "load_state_dict": lambda net, name, value: net.load_state_dict(
        {**net.state_dict(), name: value}
    ),
}
ARRAYS = ["0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"]


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("name", ARRAYS)
def test_inference_notices_a_change(name: str, how: str, rng: np.random.Generator) -> None:
    net = NETS["conv norm relu"](np.float32, rng).eval()
    x = images(np.float32)
    old = net(x)
    value = net.state_dict()[name]
    for _ in range(3):
        value = value + np.float32(0.5)
        CHANGES[how](net, name, value)
        y = net(x)
        assert_near(y, one_by_one(net, x), f"{name} {how}")
        assert np.abs(y - old).max() > 1e-3
        old = y


def test_inference_notices_the_smallest_change(rng: np.random.Generator) -> None:
    """One bit of one element, and two elements that change places."""
    net = NETS["conv"](np.float64, rng).eval()
    x = np.ones((1, 4, 3, 3))
    w = net[0].weight
    old = net(x)
    w.view(np.int64).reshape(-1)[7] ^= 1 << 51
    new = net(x)
    assert_near(new, one_by_one(net, x), "one bit")
    assert new.tobytes() != old.tobytes()
    x = images(np.float64, 1, 4, 3, 3)
    old = net(x)
    w[0, 0, 0, 0], w[0, 0, 0, 1] = w[0, 0, 0, 1], w[0, 0, 0, 0]
    new = net(x)
    assert_near(new, one_by_one(net, x), "two elements changed about")
    assert np.abs(new - old).max() > 1e-6


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("attribute", ["eps", "stride", "padding", "dilation", "groups"])
def test_inference_notices_a_changed_setting(
    attribute: str, frozen: bool, rng: np.random.Generator
) -> None:
    net = NETS["conv norm relu"](np.float32, rng).eval()
    if frozen:
        net.freeze()
    x = images(np.float32)
    net(x)
    changed = {"stride": (2, 2), "padding": (0, 0), "dilation": (2, 2), "eps": 3.0}
    if attribute == "groups":
        net = NETS["groups"](np.float32, rng).eval()
        if frozen:
            net.freeze()
        net(x)
        net[0].groups = 1
        net[0].in_channels = 2
        x = images(np.float32, 3, 2, 9, 8)
    else:
        setattr(net[1 if attribute == "eps" else 0], attribute, changed[attribute])
    assert_near(net(x), one_by_one(net, x), attribute)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_frozen_layers_notice_another_method(layer: int, rng: np.random.Generator) -> None:
    net, x = NETS["conv norm relu"](np.float32, rng).freeze(), images(np.float32)
    net(x)
    net[layer].method = "naive"
    with cnnfast.trace() as calls:
        y = net(x)
    assert "naive" in {call.method for call in calls}
    assert_near(y, one_by_one(net, x), "by naive")


def test_frozen_arrays_cannot_change(rng: np.random.Generator) -> None:
    net, x = NETS["conv norm relu"](np.float32, rng).eval(), images(np.float32)
    y, arrays, state = net(x), net.params | net.buffers, net.state_dict()
    assert net.freeze() is net
    assert not net.training
    for _ in range(2):
        checks.assert_same(net(x), y, "frozen")
    for name in ARRAYS:
        for how, change in CHANGES.items():
            with pytest.raises(ValueError, match="read-only"):
                change(net, name, state[name] + 1)
            checks.assert_same(net.state_dict()[name], state[name], f"{name} {how}")
    with pytest.raises(ValueError, match=r"load_state_dict: '0\.weight' is read-only; `train`"):
        net.load_state_dict(state)
    checks.assert_same(net.freeze().eval()(x), y, "frozen twice")
    net.train().eval()
    for name, array in (net.params | net.buffers).items():
        assert array is arrays[name]
        array += 1
        assert_near(net(x), one_by_one(net, x), f"{name} after the thaw")


def test_what_is_made_writable_by_hand_counts(rng: np.random.Generator) -> None:
    net, x = NETS["conv norm relu"](np.float32, rng).freeze(), images(np.float32)
    net(x)
    net[0].weight.flags.writeable = True
    net[0].weight += 1
    assert_near(net(x), one_by_one(net, x), "changed")


def test_arrays_of_another_class_count(rng: np.random.Generator) -> None:
    """Such as a `numpy.memmap`."""

    class Mapped(np.ndarray):
        pass

    net, x = NETS["conv norm relu"](np.float32, rng), images(np.float32)
    shift = net[1].bias.view(Mapped)
    del net[1].bias
    net[1].add_param("bias", shift)
    net.freeze()
    net(x)
    shift.flags.writeable = True
    shift += 1
    assert_near(net(x), one_by_one(net, x), "changed")


def test_unpickled_layers_thaw(rng: np.random.Generator) -> None:
    """Their arrays may be such that NumPy does not let them become writable again."""
    net, x = pickle.loads(pickle.dumps(DEEP(np.float64, rng))), images(np.float64)
    big = pickle.loads(pickle.dumps(nn.Conv2d(32, 32, 3)))
    assert not big.weight.flags.owndata
    for layer in (net, big):
        layer.freeze().train()
        for array in layer.params.values():
            array += 1
    assert net(x).shape == x.shape


def test_another_array_in_a_frozen_layer_counts(rng: np.random.Generator) -> None:
    net, x = NETS["conv norm relu"](np.float32, rng).freeze(), images(np.float32)
    net(x)
    weight = net[0].weight + 1
    del net[0].weight
    net[0].add_param("weight", weight)
    assert_near(net(x), one_by_one(net, x), "another array")


def test_one_array_in_two_frozen_layers(rng: np.random.Generator) -> None:
    a, b = (NETS["conv"](np.float32, rng)[0] for _ in range(2))
    object.__setattr__(b, "weight", a.weight)
    nn.Sequential(a, b).freeze()
    x = images(np.float32)
    b(x)
    a.train().weight[...] = 3
    assert_near(b(x), one_by_one(nn.Sequential(b), x), "the other")


def test_copies_of_frozen_layers_are_not_frozen(rng: np.random.Generator) -> None:
    net, x = NETS["conv norm relu"](np.float32, rng).freeze(), images(np.float32)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        checks.assert_same(other(x), net(x), "copy")
        other[0].weight += 1
        assert_near(other(x), one_by_one(other, x), "changed copy")


def test_inference_notices_a_layer_that_is_replaced(rng: np.random.Generator) -> None:
    net = NETS["conv norm relu"](np.float32, rng).eval()
    x = images(np.float32)
    net(x)
    setattr(net, "0", nn.Conv2d(4, 6, 5, rng=rng).eval())
    assert_near(net(x), one_by_one(net, x), "another convolution")
    setattr(net, "2", nn.Tanh())
    assert_near(net(x), one_by_one(net, x), "another activation")
    net.append(nn.ReLU())
    assert_near(net(x), one_by_one(net, x), "one more")


def test_the_mode_of_each_layer_counts(rng: np.random.Generator) -> None:
    net = NETS["conv norm relu"](np.float32, rng).eval()
    x = images(np.float32)
    folded = net(x)
    net[1].train()
    mean = net[1].running_mean.copy()
    by_batch = net(x)
    assert np.abs(by_batch - folded).max() > 0.01
    assert np.abs(net[1].running_mean - mean).max() > 1e-4
    net[1].eval()
    assert_near(net(x), one_by_one(net, x), "back in inference")
    net.train()
    assert_near(net(x), one_by_one(copy.deepcopy(net), x), "in training")


@pytest.mark.parametrize("method", ["naive", "portable", "im2col", "toeplitz"])
def test_a_forced_method_unfuses(method: str, rng: np.random.Generator) -> None:
    net = NETS["conv norm relu"](np.float32, rng)
    x = images(np.float32, 2, 4, 5, 5)
    for training in (True, False):
        net.train(training)
        net(x)
        with cnnfast.use(method), cnnfast.trace() as ran:
            net(x)
        assert ran[0] == cnnfast.Ran("conv2d", method)
        # In training the other two may still go together, unless the method is theirs too.
        rest = [(one.op, one.method) for one in ran[1:]]
        if method in cnnfast.methods("batch_norm"):
            assert rest == [("batch_norm", method), ("relu", method)]
        else:
            assert rest[0] == (("batch_norm + relu" if training else "batch_norm"), "engine")


def test_the_engine_s_methods_may_be_forced(rng: np.random.Generator) -> None:
    net = NETS["conv relu"](np.float32, rng)
    x = images(np.float32)
    for training in (True, False):
        net.train(training)
        for method in ("gemm", "winograd"):
            with cnnfast.use(method), cnnfast.trace() as ran:
                y = net(x)
            one_pass = [cnnfast.Ran("conv + relu", method)]
            two = [cnnfast.Ran("conv2d", method), cnnfast.Ran("relu", "engine")]
            assert ran == (two if training else one_pass)
            assert_near(y, one_by_one(copy.deepcopy(net), x), method)


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_a_layer_s_own_method_unfuses(at: int, training: bool, rng: np.random.Generator) -> None:
    net = NETS["conv norm relu"](np.float32, rng).train(training)
    net[at].method = "naive"
    op = ("conv2d", "batch_norm", "relu")[at]
    with cnnfast.trace() as ran:
        net(images(np.float32, 2, 4, 5, 5))
    assert cnnfast.Ran(op, "naive") in ran


@pytest.mark.parametrize("training", [True, False])
def test_a_method_that_is_for_the_normalisation_alone_unfuses(
    training: bool, rng: np.random.Generator
) -> None:
    net = NETS["conv norm relu"](np.float32, rng).train(training)
    with cnnfast.use("cython"), cnnfast.trace() as ran:
        net(images(np.float32))
    assert cnnfast.Ran("batch_norm", "cython") in ran


@pytest.mark.parametrize("dtype", FLOATS)
def test_backward_after_inference(make: Net, dtype: Any, rng: np.random.Generator) -> None:
    net = make(dtype, rng).eval()
    plain = copy.deepcopy(net)
    x = images(dtype)
    dy = images(dtype, *net(x).shape)
    net(x)
    dx = net.backward(dy)
    want = back_one_by_one(plain, x, dy)
    assert_gradients(net, plain, dx, want)


def assert_gradients(net: nn.Layer, plain: nn.Layer, dx: Any, want: Any) -> None:
    assert_near(dx, want, "dx")
    grads, wanted = dict(net.grads), dict(plain.grads)
    assert set(grads) == set(wanted)
    for name, grad in wanted.items():
        assert_near(grads[name], grad, name, terms=500)


DEEP = sequential(
    lambda dtype, rng: sequential(conv(padding=1), norm(), relu)(dtype, rng),
    lambda dtype, rng: sequential(conv(C=6, groups=6, padding=1), norm(), relu)(dtype, rng),
    conv(F=4, C=6, K=1),
    norm(4),
)


def test_containers_inside_are_folded_with_their_neighbours(rng: np.random.Generator) -> None:
    net, x = DEEP(np.float32, rng).eval(), images(np.float32)
    want = one_by_one(net, x)
    for _ in range(2):
        for _ in range(3):
            assert_near(net(x), want, "deep")
        assert ran_in(lambda: net(x)) == ["conv + relu", "conv + relu", "conv2d"]
        net.freeze()
    net[1].forward = lambda x: x
    assert_near(net(x), one_by_one(net, x), "somebody's own forward")
    assert np.abs(net(x) - want).max() > 1e-3


def test_nothing_between_folded_convolutions_is_kept(rng: np.random.Generator) -> None:
    net, x = DEEP(np.float32, rng).freeze(), images(np.float32, 8, 4, 64, 64)
    between = 8 * 6 * 64 * 64 * 4
    gc.collect()  # other tests' arrays count, too: only what comes on top is looked at
    before = cnnfast.info()["memory"]["used"]
    y = net(x)
    tracemalloc.start()
    try:
        for _ in range(2):
            del y
            y = net(x)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    used = cnnfast.info()["memory"]["used"] - before
    assert held < between
    assert used < between + 2 * y.nbytes, used


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ["deep", "blocked", "blocks"])
def test_backward_through_folded_containers(
    name: str, dtype: Any, frozen: bool, rng: np.random.Generator
) -> None:
    net = (NETS | {"deep": DEEP})[name](dtype, rng).eval()
    plain = copy.deepcopy(net)
    if frozen:
        net.freeze()
    for seed in range(3):  # a pass anew, one from memory, and one behind a way back
        x = np.random.default_rng(seed).standard_normal((3, 4, 9, 8)).astype(dtype)
        dy = images(dtype, *net(x).shape)
        net(x)
        dx = net.backward(dy)
        want = back_one_by_one(plain, x, dy)
        assert_gradients(net, plain, dx, want)
        checks.assert_same(net.backward(dy), dx, "once more")


def by_children(net: nn.Sequential, x: np.ndarray) -> np.ndarray:
    for layer in net:
        x = layer(x)
    return x


def back_by_children(net: nn.Sequential, dy: np.ndarray) -> np.ndarray:
    for layer in reversed(list(net)):
        dy = layer.backward(dy)
    return dy


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("net", ["deep", "winograd", "blocks"])
def test_layers_remember_their_own_last_pass(
    net: str, frozen: bool, rng: np.random.Generator
) -> None:
    """Whether it was one of the whole network or one of each layer by itself."""
    made = (NETS | {"deep": DEEP})[net](np.float32, rng).eval()
    plain = copy.deepcopy(made)
    if frozen:
        made.freeze()
    a, b = images(np.float32), images(np.float32) * 2
    dy = images(np.float32, *made(a).shape)
    for there in (lambda x: made(x), lambda x: by_children(made, x)):
        for back in (made.backward, lambda dy: back_by_children(made, dy)):
            for x in (a, b):
                made(a)
                there(x)
                want = back_one_by_one(plain, x, dy)
                assert_gradients(made, plain, back(dy), want)
    other = copy.deepcopy(made).eval()
    by_children(other, b)  # never as a whole
    assert_near(other.backward(dy), want, "not called before")
    made(a)
    made[0](b)
    made[0].backward(images(np.float32, *made[0](b).shape))
    made(a)
    want = back_one_by_one(plain, a, dy)
    assert_gradients(made, plain, made.backward(dy), want)


def test_what_went_layer_by_layer_is_not_computed_again(rng: np.random.Generator) -> None:
    net, x = NETS["winograd"](np.float32, rng).eval(), images(np.float32)
    plain = copy.deepcopy(net)
    dy = images(np.float32, *one_by_one(plain, x).shape)
    with cnnfast.use("portable"):
        want = plain.backward(dy)
    one_by_one(net, x)
    net[1].running_mean += 1
    assert_gradients(net, plain, net.backward(dy), want)


def test_a_pass_that_fails_leaves_the_one_before(rng: np.random.Generator) -> None:
    net, x = DEEP(np.float32, rng).freeze(), images(np.float32)
    dy = images(np.float32, *net(x).shape)
    dx = net.backward(dy)
    for wrong in (images(np.float32, 3, 5, 9, 8), images(np.float32, 3, 4, 9)):
        with pytest.raises(ValueError, match="conv2d"):
            net(wrong)
    checks.assert_same(net.backward(dy), dx, "dx")


def test_remembered_calls_are_for_what_they_were_made(rng: np.random.Generator) -> None:
    """Frozen, so that nothing is looked at but what is compared."""
    net, x = DEEP(np.float32, rng).freeze(), images(np.float32)
    want = one_by_one(net, x)
    assert_near(net(x), want, "first")
    for other in (
        x.astype(np.float64),
        np.ones((3, 4, 9, 8), np.int32),  # as many bytes
        images(np.float32, 3, 4, 8, 9),  # as many elements
        np.asfortranarray(x),
        np.repeat(x, 2, -1)[..., ::2],
        np.broadcast_to(x[:1], x.shape),
        images(np.float32, 2, 4, 9, 8),
    ):
        assert_near(net(x), want, "again")
        assert_near(net(other), one_by_one(net, other), f"{other.dtype} {other.strides}")
    for layer, name, value in (
        (net[0][0], "padding", (0, 0)),
        (net[1][1], "eps", 3.0),
        (net[1][0], "dilation", (2, 2)),
    ):
        net(x)
        before = getattr(layer, name)
        setattr(layer, name, value)
        assert_near(net(x), one_by_one(net, x), name)
        setattr(layer, name, before)
    net(x)
    net[2].method = "naive"
    assert ran_in(lambda: net(x))[2:] == ["conv2d", "batch_norm"]
    assert_near(net(x), want, "one by another method")
    plain = copy.deepcopy(net)
    assert_gradients(net, plain, net.backward(x), back_one_by_one(plain, x, x))


def test_remembered_calls_hand_on_what_a_kernel_refuses(rng: np.random.Generator) -> None:
    net, x = NETS["winograd"](np.float32, rng).freeze(), images(np.float32)
    net(x)
    x[1, 2, 3, 4] = np.inf
    with np.errstate(invalid="ignore"):
        y, want = net(x), one_by_one(net, x)
    assert np.array_equal(np.isnan(y), np.isnan(want))
    assert np.isnan(want).any() and np.array_equal(np.isinf(y), np.isinf(want))


def test_arrays_between_the_passes(rng: np.random.Generator) -> None:
    """What the way back would compute from other arrays than the way there is refused."""
    net, x = DEEP(np.float32, rng).eval(), images(np.float32)
    for layer in (net[0][0], net[1][1], net[2]):
        dy = images(np.float32, *net(x).shape)
        layer.weight += 1
        with pytest.raises(RuntimeError, match=r"Conv2d\.backward: its arrays"):
            net.backward(dy)
        net(x)
        assert net.backward(dy).shape == x.shape


def blocked_in(net: nn.Sequential, x: np.ndarray) -> int:
    """How many convolutions are computed on blocked images."""
    with cnnfast.trace() as ran:
        net(x)
    return sum(r.method == "blocked" for r in ran)


def test_which_convolutions_are_blocked(rng: np.random.Generator) -> None:
    x = images(np.float32)
    net = NETS["blocked"](np.float32, rng).eval()
    assert blocked_in(net, x) == 3
    net[6].method = "depthwise"
    assert blocked_in(net, x) == 0, "two are too few"
    net = NETS["blocks"](np.float32, rng).eval()
    # All but the first and the last; in float16 and one by one none.
    assert blocked_in(net, x) == 3 + 3 + 3 + 1 + 3 + 1
    assert blocked_in(net, x.astype(np.float16)) == 0
    assert blocked_in(net.train(), x) == 0
    net.eval()
    for method in ("gemm", "portable"):
        with cnnfast.use(method):
            assert blocked_in(net, x) == 0, method
    net[3].main[0].conv[1][0].method = "gemm"
    assert blocked_in(net, x) == 3 + 3 + 1 + 3 + 1, "a block is blocked as a whole, or not at all"
    net[4].main[0].main[0].conv[1][1].forward = lambda x: x
    assert blocked_in(net, x) == 3 + 3 + 1


@pytest.mark.parametrize("dtype", FLOATS)
def test_blocked_images_of_any_size(dtype: Any, rng: np.random.Generator) -> None:
    net = NETS["blocks"](dtype, rng).freeze()
    for shape in ((1, 4, 1, 1), (2, 4, 2, 17), (1, 4, 33, 3), (5, 4, 16, 16), (0, 4, 9, 8)):
        x = images(dtype, *shape)
        want = one_by_one(net, x)
        for threads in (1, 2, 3):
            with cnnfast.threads(threads):
                y = net(x)
                assert_near(y, want, f"{shape}, {threads} threads")
                checks.assert_same(net(x), y, "again")


def test_large_images_between_blocked_convolutions_are_never_there(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    """A remembered pass computes a 1x1 and single channels behind it together, to the last bit."""
    engine = compiled.engine()
    pair, pairs = engine.blocked_pair, []
    monkeypatch.setattr(
        engine, "blocked_pair", lambda *plans: (pairs.append(pair(*plans)), pairs[-1])[1]
    )
    net = sequential(conv(F=16), inverted(16, 16), inverted(16, 24, 2))(np.float32, rng).freeze()
    x = images(np.float32, 1, 4, 60, 58)
    first = net(x)
    assert sum(found is not None for found in pairs) == 2
    assert_near(first, one_by_one(net, x), "first")
    net(x)
    for threads in (1, 2, 3):
        with cnnfast.threads(threads), cnnfast.use("auto"):
            checks.assert_same(net(x), first, f"{threads} threads")
    plain = copy.deepcopy(net)
    dy = images(np.float32, *first.shape)
    assert_gradients(net, plain, net.backward(dy), back_one_by_one(plain, x, dy))


def test_a_block_whose_result_does_not_fit(rng: np.random.Generator) -> None:
    for F in (16, 20):
        inner = (conv(F=F, C=16, K=1), conv(F=F, C=F, groups=F, padding=1), conv(F=F, C=F, K=1))
        net = sequential(conv(F=16, K=1), within(*inner), relu)(np.float32, rng).eval()
        x = images(np.float32)
        if F == 16:
            assert_near(net(x), one_by_one(net, x), "it fits")
            continue
        for _ in range(2):
            with pytest.raises(
                ValueError, match=r"Residual: main gives .* 20, 9, 8\), x has .* 16,"
            ):
                net(x)
            net[1].freeze()


def test_blocks_that_change(rng: np.random.Generator) -> None:
    """Weights, modes and methods inside of blocks, frozen and not."""
    net, x = NETS["blocks"](np.float32, rng).eval(), images(np.float32)
    inner = net[2].conv[0]
    for change in (
        lambda: inner[0].weight.__imul__(2),
        lambda: setattr(inner[1], "eps", 0.5),
        lambda: inner[1].running_var.__iadd__(1),
        lambda: setattr(net[5].conv[1][0], "padding", (2, 2)),
        lambda: setattr(net[5].conv[1][0], "padding", (1, 1)),
        lambda: net[3].main[0].conv[0][1].train(),
        lambda: net[3].eval(),
        lambda: setattr(net[4].main[1], "method", "naive"),
        lambda: setattr(net[4].main[1], "method", "auto"),
    ):
        for freeze in (False, True):
            if freeze:
                net.freeze()
            else:
                net.train().eval()
                change()
            for _ in range(2):
                want = one_by_one(net, x)
                assert_near(net(x), want, "changed")


@pytest.mark.parametrize("x", [[[[[1.0]]]], np.ones((1, 4, 5, 5), np.float16)], ids=["a", "b"])
def test_other_kinds_of_arrays_go_one_by_one(x: Any, rng: np.random.Generator) -> None:
    net = NETS["conv norm relu"](np.float32, rng).eval()
    if isinstance(x, list):
        x = np.ones((1, 4, 5, 5)).tolist()
    assert ran_in(lambda: net(x)) == ["conv2d", "batch_norm", "relu"]


def test_layouts_in_inference(rng: np.random.Generator) -> None:
    net = NETS["conv norm relu"](np.float32, rng).eval()
    x = images(np.float32)
    want = net(x)
    for given in (np.asfortranarray(x), np.repeat(x, 2, -1)[..., ::2], x[::-1][::-1]):
        assert_near(net(given), want, str(given.strides))


def test_trace_inside_of_a_trace(rng: np.random.Generator) -> None:
    net = NETS["two"](np.float32, rng).eval()
    x = images(np.float32)
    with cnnfast.trace() as outer:
        net(x)
        with cnnfast.trace() as inner:
            net(x)
    assert len(inner) == 2 and outer == inner * 2


# Training


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("needs", [True, False])
def test_training_is_that_of_the_layers(
    make: Net, dtype: Any, needs: bool, rng: np.random.Generator
) -> None:
    net = make(dtype, rng).train()
    plain = copy.deepcopy(net)
    for layer in (net, plain):
        layer.needs_input_grad = needs
    for step in range(3):
        x = images(dtype, 3 + step, 4, 9, 8)
        y, want = net(x), one_by_one(plain, x)
        assert_near(y, want, "y")
        # Beside the kink of the ReLU, where rounding decides about the gradient.
        dy = np.where(np.abs(want) > 1e-4, images(dtype, *y.shape), 0).astype(dtype)
        dx = net.backward(dy)
        with cnnfast.use("portable"):
            wanted = plain.backward(dy)
        if needs:
            assert_gradients(net, plain, dx, wanted)
        else:
            assert (dx is None) == (wanted is None)
            for name, grad in plain.grads.items():
                assert_near(net.grads[name], grad, name, terms=500)
        for name, value in plain.state_dict().items():
            if value.dtype.kind == "f":
                assert_near(net.state_dict()[name], value, name)
            else:
                assert np.array_equal(net.state_dict()[name], value)


def test_training_fuses(rng: np.random.Generator) -> None:
    x = images(np.float32)
    for name, forward, backward in (
        # The ReLU's output is the caller's, so it is no record of signs.
        ("conv relu", ["conv2d", "relu"], ["relu_backward", "conv2d_backward"]),
        ("norm relu", ["batch_norm + relu"], ["batch_norm + relu backward"]),
        (
            "conv norm relu",
            ["conv2d", "batch_norm + relu"],
            ["batch_norm + relu backward", "conv2d_backward"],
        ),
    ):
        net = NETS[name](np.float32, rng)
        dy = np.ones_like(net(x))
        assert ran_in(lambda net=net: net(x)) == forward
        assert ran_in(lambda net=net, dy=dy: net.backward(dy)) == backward


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["conv relu", "norm relu", "conv norm relu", "conv"])
def test_an_output_that_the_caller_writes_to(
    name: str, training: bool, rng: np.random.Generator
) -> None:
    """What backward needs is not in the array that the caller was given."""
    x = images(np.float32)
    net = NETS[name](np.float32, rng).train(training)
    dy = images(np.float32, *net(x).shape)
    want = net.backward(dy)
    y = net(x)
    y[...] = 0
    checks.assert_same(net.backward(dy), want, "dx")


def test_backward_without_forward_or_twice(rng: np.random.Generator) -> None:
    net = NETS["conv norm relu"](np.float32, rng)
    with pytest.raises(RuntimeError, match="there is no forward pass to go back through"):
        net.backward(np.ones((3, 6, 9, 8), np.float32))
    x = images(np.float32)
    dy = images(np.float32, *net(x).shape)
    checks.assert_same(net.backward(dy), net.backward(dy), "dx of the same forward pass")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["conv relu", "norm relu", "conv norm relu"])
def test_backward_in_another_mode(name: str, training: bool) -> None:
    """Gradients of the last forward pass, whatever the mode has become since."""
    x = images(np.float64)
    net, plain = (NETS[name](np.float64, np.random.default_rng(1)) for _ in range(2))
    for each in (net, plain):
        each.train(training)
    dy = images(np.float64, *net(x).shape)
    one_by_one(plain, x)
    net.train(not training)
    with cnnfast.use("portable"):
        want = plain.backward(dy)
    assert_near(net.backward(dy), want, "dx")


def test_a_gradient_that_does_not_fit(rng: np.random.Generator) -> None:
    for name in ("conv relu", "norm relu", "conv norm relu"):
        net = NETS[name](np.float32, rng)
        y = net(images(np.float32))
        for wrong in (y[:1], y[..., :-1], y[0]):
            with pytest.raises(ValueError, match="backward"):
                net.backward(wrong)


# NaN


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", FLOATS)
def test_nan_goes_through_a_fused_relu(
    dtype: Any, training: bool, rng: np.random.Generator
) -> None:
    for name in ("conv relu", "winograd", "depthwise", "norm relu", "one tap"):
        net = NETS[name](dtype, rng).train(training)
        plain = copy.deepcopy(net)
        x = images(dtype)
        x[1, 2, 3, 4] = np.nan
        x[2, 0, 0, 0] = np.inf
        with np.errstate(all="ignore"):
            y, want = net(x), one_by_one(plain, x)
            dy = np.ones_like(y)
            dx = net.backward(dy)
            with cnnfast.use("portable"):
                wanted = plain.backward(dy)
        assert np.array_equal(np.isnan(y), np.isnan(want)), name
        assert np.isnan(y).any() and np.array_equal(np.isinf(y), np.isinf(want)), name
        assert np.array_equal(np.isnan(dx), np.isnan(wanted)), name


# Copies


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_of_prepared_layers(
    copied: Callable[[Any], Any], make: Net, rng: np.random.Generator
) -> None:
    net = make(np.float32, rng).eval()
    x = images(np.float32)
    y = net(x)
    other = copied(net)
    checks.assert_same(other(x), y, "the copy")
    for name in other.params:
        other.params[name][...] += np.float32(0.25)
    changed = other(x)
    assert_near(changed, one_by_one(other, x), "the changed copy")
    assert np.abs(changed - y).max() > 1e-4
    checks.assert_same(net(x), y, "what was copied")
    assert len(pickle.dumps(net)) < 2 * sum(a.nbytes for a in net.state_dict().values()) + 20_000


def test_two_layers_with_the_same_weights(rng: np.random.Generator) -> None:
    """The arrays are alike, the bias is not."""
    a, b = (NETS["conv relu"](np.float32, np.random.default_rng(1)).eval() for _ in range(2))
    x = images(np.float32)
    checks.assert_same(a(x), b(x), "alike")
    b[0].bias += 1
    assert_near(a(x), one_by_one(a, x), "a")
    assert_near(b(x), one_by_one(b, x), "b")


# The functions below the layers


def test_fused_convolution_is_for_plain_arrays() -> None:
    x, w = images(np.float32), images(np.float32, 6, 4, 3, 3)
    sliding = (1, 0, 1, 1)
    assert fused.convolution(x, w, sliding, np.inf, "auto") is not None
    for others in (
        (x.astype(float), w),
        (x, w.astype(float)),
        (x.astype(np.float16), w.astype(np.float16)),
        (np.asfortranarray(x), w),
        (x, w[..., ::-1]),
        (x.tolist(), w),
    ):
        assert fused.convolution(*others, sliding, np.inf, "auto") is None
    assert fused.convolution(x, w, sliding, np.inf, "portable") is None
    with pytest.raises(ValueError, match="there is no method 'fast'"):
        fused.convolution(x, w, sliding, np.inf, "fast")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("method", ["gemm", "winograd", "depthwise"])
@pytest.mark.parametrize("ceiling", [0, 1.5, np.inf])
def test_prepared_weights_change_nothing(method: str, ceiling: float, dtype: Any) -> None:
    groups = 4 if method == "depthwise" else 1
    x, w, b = images(dtype), images(dtype, 8, 4 // groups, 3, 3), images(dtype, 8)
    sliding = (1, 1, 1, groups)
    plan = fused.convolution(x, w, sliding, ceiling, method, True)
    packed = plan.prepare(w)
    got = plan((x, w, b, packed))
    want = cnnfast.conv2d(x, w, b, *sliding, method=method)
    checks.assert_same(got, np.clip(want, 0, ceiling) if ceiling else want, method)
    checks.assert_same(plan((x, w, b)), got, "not prepared")
    checks.assert_same(plan((x, w, b, None)), got, "not prepared")


def test_checksum_tells_arrays_apart() -> None:
    a = images(np.float32, 5, 7)
    alike = fused.checksum(a, None)
    assert fused.checksum(a.copy(), None) == alike
    assert fused.checksum(np.asfortranarray(a), None) == alike
    seen = {alike}
    for i in range(a.size):
        b = a.copy()
        b.view(np.int32).reshape(-1)[i] ^= 1
        seen.add(fused.checksum(b, None))
    seen |= {fused.checksum(a[::-1], None), fused.checksum(a, a), fused.checksum(None, a)}
    assert len(seen) == a.size + 4
    with cnnfast.threads(1):
        alone = fused.checksum(images(np.float64, 300, 300, 3))
    with cnnfast.threads(3):
        assert fused.checksum(images(np.float64, 300, 300, 3)) == alone


@pytest.mark.parametrize(
    "end",
    [[], [nn.Flatten()], [nn.Sequential()], [nn.Flatten(), nn.Sequential(nn.Flatten())]],
    ids=["", "flatten", "empty", "flatten twice"],
)
@pytest.mark.parametrize("first", ["convolution", "normalisation", "block"])
def test_the_output_may_be_written_to_before_the_way_back(first: str, end: list[nn.Layer]) -> None:
    """What the layers remember of their output must be out of the caller's reach."""
    rng = np.random.default_rng(0)
    makers: dict[str, Callable[[], list[nn.Layer]]] = {
        "convolution": lambda: [nn.Conv2d(4, 4, 3, rng=np.random.default_rng(1)), nn.ReLU()],
        "normalisation": lambda: [nn.BatchNorm2d(4), nn.ReLU()],
        "block": lambda: [models.BasicBlock(4, 4, rng=np.random.default_rng(1))],
    }
    x = images(np.float32)
    for layout in ("C", "F"):
        nets = [nn.Sequential(*makers[first](), *copy.deepcopy(end)) for _ in range(2)]
        outputs = [net(x) for net in nets]
        dy = np.asarray(rng.standard_normal(outputs[0].shape), np.float32, order=layout)
        outputs[1] -= 10
        checks.assert_same(nets[1].backward(dy), nets[0].backward(dy), first)


def test_a_relu_behind_a_normalisation_that_another_method_takes_back() -> None:
    net = sequential(norm(4), relu)(np.float32, np.random.default_rng(0))
    x, dy = images(np.float32), images(np.float32, 3, 4, 9, 8)
    net(x)
    want = net.backward(dy)
    net(x)
    with cnnfast.use("portable"):
        got = net.backward(dy)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("other", [nn.LeakyReLU(0.5), nn.ReLU6(), nn.Sigmoid()], ids=str)
def test_another_activation_in_a_block(other: nn.Layer, training: bool) -> None:
    block = models.BasicBlock(4, 4, rng=np.random.default_rng(0)).train(training)
    x = 8 * images(np.float32)
    plain = copy.deepcopy(block)
    plain.relu2 = nn.LeakyReLU(1.0)  # what is behind it
    block.relu2 = copy.deepcopy(other)
    want = copy.deepcopy(other)(plain(x))
    np.testing.assert_allclose(block(x), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_a_forward_that_was_put_in_place_of_a_layer_s_own(training: bool) -> None:
    net = sequential(conv(), norm(), relu)(np.float32, np.random.default_rng(0)).train(training)
    x = images(np.float32)
    net(x)
    net[2].forward = lambda y: y * 0 + 7
    assert (net(x) == 7).all()


def test_arrays_that_change_between_a_fused_pass_and_the_way_back() -> None:
    net = sequential(conv(), norm(), relu)(np.float32, np.random.default_rng(0)).eval()
    y = net(images(np.float32))
    net[1].running_mean += 3
    with pytest.raises(RuntimeError, match="have changed since the forward pass"):
        net.backward(np.ones_like(y))
    net(images(np.float32))
    net.backward(np.ones_like(y))


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ((nn.Conv2d(4, 6, 3), nn.BatchNorm1d(6)), (3, 4, 9, 8)),
        ((nn.Conv1d(4, 6, 3), nn.BatchNorm2d(6)), (3, 4, 9)),
    ],
    ids=["images", "signals"],
)
def test_a_normalisation_of_another_rank_is_refused(layers: Any, shape: Any) -> None:
    with pytest.raises(ValueError, match="BatchNorm"):
        nn.Sequential(*layers).eval()(images(np.float32, *shape))


@pytest.mark.parametrize("dtype", FLOATS)
def test_checksum_of_changes_that_might_cancel_out(dtype: Any) -> None:
    """Powers of two, of which some are doubled and others halved, anywhere."""
    rng = np.random.default_rng(0)
    w = np.full(32 * 64 * 9, 1.5, dtype)
    alike = fused.checksum(w)
    factors = np.array([-4, -2, -1, -0.5, 0.25, 0.5, 2, 4], dtype)
    pairs = [(0, 160, 2, 0.25), (0, 80, 2, 0.25)]
    pairs += [(*rng.choice(w.size, 2, replace=False), *rng.choice(factors, 2)) for _ in range(5000)]
    for i, j, a, b in pairs:
        changed = w.copy()
        changed[i] *= a
        changed[j] *= b
        assert fused.checksum(changed) != alike, (i, j, a, b)
    rows = rng.standard_normal((64, 288)).astype(dtype)
    alike = fused.checksum(rows)
    for _ in range(500):
        i, j = rng.choice(64, 2, replace=False)
        changed = rows.copy()
        changed[[i, j]] = rows[[j, i]]
        assert fused.checksum(changed) != alike, (i, j)


def test_a_call_of_another_thread_between_the_look_and_the_row(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which has as many bytes, in another shape, so that only the row tells the two apart."""
    net, x = NETS["winograd"](np.float32, rng).freeze(), images(np.float32)
    other = x.reshape(3, 4, 36, 2)
    expected, apart = net(x).copy(), net(other).copy()
    assert expected.shape != apart.shape
    net(x)
    unchanged, threads = fused.unchanged, []

    def interrupted(held: Any) -> bool:
        same: bool = unchanged(held)
        if not threads:
            threads.append(Thread(target=net, args=(other,)))
            threads[0].start()
            threads[0].join()
        return same

    monkeypatch.setattr(fused, "unchanged", interrupted)
    checks.assert_same(net(x), expected, "interrupted")
    assert threads
    checks.assert_same(net(other), apart, "the other")
