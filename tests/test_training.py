"""Optimisers and schedules, step by step against torch.optim."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from cnnfast.training import SGD, Adam, AdamW, Optimizer, RMSprop, schedules
from cnnfast.training.schedules import Constant, Cosine, OneCycle, Step, Triangular

RULES = {"SGD": SGD, "RMSprop": RMSprop, "Adam": Adam, "AdamW": AdamW}

SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.05}),
    ("RMSprop", {}),
    ("RMSprop", {"alpha": 0.9, "eps": 1e-3, "weight_decay": 0.01}),
    ("RMSprop", {"momentum": 0.8, "centered": True}),
    ("RMSprop", {"momentum": 0.8, "weight_decay": 0.1}),
    ("Adam", {}),
    ("Adam", {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.1, "amsgrad": True}),
    ("AdamW", {}),
    ("AdamW", {"lr": 0.1, "weight_decay": 0.3, "amsgrad": True}),
]


def named_arrays(rng: np.random.Generator, dtype: str = "float64") -> dict[str, np.ndarray]:
    shapes = {"conv.weight": (4, 3, 2, 5), "conv.bias": (4,), "scale": (), "empty": (0, 3)}
    return {name: np.asarray(rng.normal(size=s), dtype) for name, s in shapes.items()}


@pytest.mark.parametrize(("rule", "settings"), SETTINGS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 2e-5)])
def test_twenty_steps_equal_pytorch(
    rule: str, settings: dict[str, Any], dtype: str, tolerance: float
) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    params = named_arrays(rng, dtype)
    params["conv.weight"] = np.asfortranarray(params["conv.weight"])
    peers = {name: torch.tensor(p, requires_grad=True) for name, p in params.items()}
    ours = RULES[rule](params, **settings)
    theirs = getattr(torch.optim, rule)(list(peers.values()), **settings)
    for step in range(20):
        if step == 10:
            ours.lr = theirs.param_groups[0]["lr"] = ours.lr / 2
        grads = named_arrays(rng, dtype)
        copies = {name: g.copy() for name, g in grads.items()}
        ours.step(grads)
        for name, g in grads.items():
            peers[name].grad = torch.tensor(g)
            np.testing.assert_array_equal(g, copies[name])
        theirs.step()
        for name, p in params.items():
            assert p.dtype == dtype
            np.testing.assert_allclose(
                p, peers[name].detach().numpy(), rtol=tolerance, atol=tolerance, err_msg=name
            )


@pytest.mark.parametrize(("rule", "settings"), SETTINGS)
def test_defaults_are_pytorchs(rule: str, settings: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    ours = RULES[rule]({"w": np.ones(2)}, **settings)
    theirs = getattr(torch.optim, rule)([torch.ones(2)], **settings)
    for name in ours.hyperparameters:
        assert getattr(ours, name) == theirs.param_groups[0][name]


def test_first_step_by_hand() -> None:
    w = np.array([1.0, -2.0])
    SGD({"w": w}, lr=0.5).step({"w": np.array([2.0, 4.0])})
    np.testing.assert_array_equal(w, [0.0, -4.0])
    w = np.array([1.0, -2.0])
    # With bias correction the first Adam step is lr * sign(g), but for eps.
    Adam({"w": w}, lr=0.5, eps=0.0).step({"w": np.array([2.0, -4.0])})
    np.testing.assert_allclose(w, [0.5, -1.5], rtol=1e-14)


def test_state_is_live() -> None:
    """By hand: 0.9 * 2 + 1 = 2.8 in the buffer, as if a step had been taken."""
    w = np.zeros(1)
    optimizer = SGD({"w": w}, lr=0.5, momentum=0.9)
    optimizer.state["momentum_buffer"]["w"][...] = 2.0
    optimizer.steps = 1
    optimizer.step({"w": np.ones(1)})
    np.testing.assert_allclose(w, [-1.4], rtol=1e-15)
    np.testing.assert_allclose(optimizer.state["momentum_buffer"]["w"], [2.8], rtol=1e-15)
    assert SGD({"w": w}).state == {}


@pytest.mark.parametrize(("rule", "settings"), SETTINGS)
def test_the_layout_of_a_parameter_changes_nothing(rule: str, settings: dict[str, Any]) -> None:
    """Transposed parameters, gradients too or not, take the steps that others take."""
    rng = np.random.default_rng(0)
    start, steps = rng.standard_normal((5, 7)), rng.standard_normal((3, 5, 7))
    straight, turned, mixed = start.copy(), start.T.copy().T, start.T.copy().T
    optimizers = [RULES[rule]({"w": w}, **settings) for w in (straight, turned, mixed)]
    for g in steps:
        for optimizer, grad in zip(optimizers, (g, g.T.copy().T, g), strict=True):
            optimizer.step({"w": grad})
    np.testing.assert_allclose(turned, straight, rtol=1e-14)
    np.testing.assert_allclose(mixed, straight, rtol=1e-14)
    assert turned.flags.f_contiguous


@pytest.mark.parametrize(("rule", "settings"), SETTINGS)
def test_state_dict_goes_on_bitwise(rule: str, settings: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    params = named_arrays(rng)
    steps = [named_arrays(rng) for _ in range(8)]
    first = RULES[rule](params, **settings)
    for grads in steps[:4]:
        first.step(grads)
    first.lr = 0.123
    state = first.state_dict()
    json.dumps(state["hyper"])
    copies = {name: p.copy() for name, p in params.items()}
    for grads in steps[4:]:
        first.step(grads)

    second = RULES[rule](copies)
    second.load_state_dict(state)
    assert second.lr == 0.123
    assert second.steps == 4
    for grads in steps[4:]:
        second.step(grads)
    for name, p in params.items():
        np.testing.assert_array_equal(p, copies[name])


def test_step_takes_gradients_of_another_dtype() -> None:
    w = np.ones(3, np.float32)
    Adam({"w": w}, lr=0.1).step({"w": np.ones(3)})
    SGD({"w": w}, lr=0.1, weight_decay=0.1).step({"w": np.ones(3, np.int64)})
    assert w.dtype == np.float32


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: SGD({"w": np.ones(2)}, lr=-1), ValueError, "SGD: lr must be at least 0, got -1"),
        (lambda: SGD({"w": np.ones(2)}, lr=float("nan")), ValueError, "SGD: lr"),
        (lambda: SGD({"w": np.ones(2)}, lr="fast"), TypeError, "SGD: lr must be a number"),
        (lambda: SGD({"w": np.ones(2)}, momentum=-0.1), ValueError, "momentum"),
        (lambda: SGD({"w": np.ones(2)}, nesterov=True), ValueError, "nesterov needs momentum"),
        (lambda: SGD({"w": np.ones(2)}, weight_decay=-1), ValueError, "weight_decay"),
        (lambda: RMSprop({"w": np.ones(2)}, alpha=-1), ValueError, "RMSprop: alpha"),
        (lambda: Adam({"w": np.ones(2)}, betas=(0.9, 1.0)), ValueError, "Adam: betas"),
        (lambda: Adam({"w": np.ones(2)}, betas=0.9), ValueError, "Adam: betas must be two"),
        (lambda: AdamW({"w": np.ones(2)}, eps=-1), ValueError, "AdamW: eps"),
        (lambda: SGD({}), ValueError, "SGD: params is empty"),
        (lambda: SGD([np.ones(2)]), TypeError, "SGD: params must map names to arrays"),
        (lambda: SGD({"w": [1.0]}), TypeError, r"params\['w'\] must be a NumPy array, got list"),
        (lambda: SGD({"w": np.ones(2, int)}), TypeError, "must be floating point, got int64"),
        (lambda: SGD({"w": np.broadcast_to(1.0, 3)}), ValueError, "read-only"),
    ],
)
def test_bad_settings_are_named(make: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make()


@pytest.mark.parametrize(
    ("grads", "error", "says"),
    [
        ({"a": np.ones(2)}, ValueError, r"grads lacks \['b'\]"),
        ({"a": np.ones(2), "b": np.ones(3), "c": 1}, ValueError, r"has unknown \['c'\]"),
        ({"a": np.ones(2), "b": np.ones(2)}, ValueError, r"grads\['b'\] has shape \(2,\), its "),
        ({"a": np.ones(2), "b": np.ones(3, complex)}, TypeError, "must be real, got dtype comp"),
    ],
)
def test_bad_gradients_change_nothing(
    grads: dict[str, Any], error: type[Exception], says: str
) -> None:
    params = {"a": np.ones(2), "b": np.ones(3)}
    optimizer = Adam(params)
    with pytest.raises(error, match=says):
        optimizer.step(grads)
    assert optimizer.steps == 0
    assert all((p == 1).all() for p in params.values())


def test_bad_states_are_refused() -> None:
    optimizer = Adam({"w": np.ones(2)})
    with pytest.raises(ValueError, match=r"Adam\.load_state_dict: state of 'SGD'"):
        optimizer.load_state_dict(SGD({"w": np.ones(2)}).state_dict())
    with pytest.raises(ValueError, match=r"exp_avg lacks \['w'\] and has unknown \['v'\]"):
        optimizer.load_state_dict(Adam({"v": np.ones(2)}).state_dict())
    with pytest.raises(ValueError, match=r"exp_avg\['w'\] has shape \(3,\)"):
        optimizer.load_state_dict(Adam({"w": np.ones(3)}).state_dict())


def test_repr_and_base_class() -> None:
    assert repr(SGD({"w": np.ones(2)})).startswith("SGD(1 params, lr=0.001, momentum=0.0")
    with pytest.raises(NotImplementedError):
        Optimizer({"w": np.ones(1)}, 0.1).step({"w": np.ones(1)})


def torch_factors(steps: int, lr: float, make: Any) -> list[float]:
    """The rates of a PyTorch scheduler over a base rate of `lr`, as factors."""
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=lr)
    scheduler = make(torch.optim.lr_scheduler, optimizer)
    factors = []
    for _ in range(steps):
        factors.append(optimizer.param_groups[0]["lr"] / lr)
        optimizer.step()
        scheduler.step()
    return factors


@pytest.mark.parametrize("total", [2, 7, 50])
@pytest.mark.parametrize("strategy", ["cos", "linear"])
@pytest.mark.parametrize("pct_start", [0.0, 0.3, 0.8])
def test_one_cycle_equals_pytorch(total: int, strategy: Any, pct_start: float) -> None:
    expected = torch_factors(
        total,
        0.5,
        lambda s, o: s.OneCycleLR(
            o, 0.5, total + 1, pct_start=pct_start, anneal_strategy=strategy, cycle_momentum=False
        ),
    )
    schedule = OneCycle(total + 1, pct_start=pct_start, anneal_strategy=strategy)
    np.testing.assert_allclose([schedule(t) for t in range(total)], expected, rtol=1e-12)


def test_step_and_cosine_equal_pytorch() -> None:
    step = torch_factors(12, 0.5, lambda s, o: s.StepLR(o, 5, gamma=0.3))
    np.testing.assert_allclose([Step(5, 0.3)(t) for t in range(12)], step, rtol=1e-12)
    cosine = torch_factors(12, 0.5, lambda s, o: s.CosineAnnealingLR(o, 11, eta_min=0.05))
    np.testing.assert_allclose([Cosine(11, final=0.1)(t) for t in range(12)], cosine, rtol=1e-9)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Constant(), [1, 1, 1, 1, 1]),
        (Cosine(5, warmup_steps=3), [0.25, 0.5, 0.75, 1, 0.5, 0, 0]),
        (Triangular(4, peak=0.5), [0.5, 1, 1, 0.5, 0, 0]),
        (Triangular(2, peak=0), [1, 0.5, 0]),
        (Triangular(2, peak=1), [0.5, 1]),
        (OneCycle(1), [1 / 25e4]),
        (OneCycle(2, pct_start=1.0), [1 / 25, 1]),
    ],
)
def test_schedules_by_hand(schedule: Any, expected: list[float]) -> None:
    got = [schedule(t) for t in range(len(expected))]
    np.testing.assert_allclose(got, expected, atol=1e-15)
    assert all(isinstance(f, float) for f in got)


def test_schedules_by_name() -> None:
    assert schedules.by_name("constant", 10) == Constant()
    assert schedules.by_name("cosine", 10) == Cosine(10)
    assert schedules.by_name("one_cycle", 10) == OneCycle(10)
    assert schedules.by_name("triangular", 10) == Triangular(10)
    with pytest.raises(ValueError, match=r"schedule must be one of .*got 'step'"):
        schedules.by_name("step", 10)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Step(0), "Step: step_size must be at least 1, got 0"),
        (lambda: Step(1, gamma=-1), "Step: gamma"),
        (lambda: Cosine(0), "Cosine: total_steps"),
        (lambda: Cosine(5, warmup_steps=5), "Cosine: warmup_steps"),
        (lambda: Cosine(5, final=-1), "Cosine: final"),
        (lambda: OneCycle(0), "OneCycle: total_steps"),
        (lambda: OneCycle(5, pct_start=1.5), "OneCycle: pct_start"),
        (lambda: OneCycle(5, anneal_strategy="exp"), "OneCycle: anneal_strategy"),  # type: ignore
        (lambda: OneCycle(5, div_factor=0), "OneCycle: div_factor must be positive"),
        (lambda: Triangular(0), "Triangular: total_steps"),
        (lambda: Triangular(5, peak=-0.1), "Triangular: peak"),
    ],
)
def test_bad_schedules_are_named(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()
