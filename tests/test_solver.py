"""The Solver: its loop against one written out, histories, best weights, limits, checkpoints."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnnfast import nn
from cnnfast.data import Augment, Dataset, EpochOrder, load_digits
from cnnfast.models import DeepConvNet, ThreeLayerConvNet, small_cnn
from cnnfast.training import SGD, Adam, CheckpointError, Cosine, Solver, checkpoint
from cnnfast.training import solver as solver_module

Arrays = dict[str, np.ndarray]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def toy_data(n: int = 60, dtype: Any = np.float64) -> Arrays:
    """Two-channel 4x4 images of three classes that a small network can tell apart."""
    generator = rng(7)
    y = np.arange(n) % 3
    X = generator.normal(size=(n, 2, 4, 4)).astype(dtype)
    X[np.arange(n), :, y] += 1.5
    half = n // 3 * 2
    return {"X_train": X[:half], "y_train": y[:half], "X_val": X[half:], "y_val": y[half:]}


def toy_model(seed: int = 3) -> nn.Sequential:
    generator = rng(seed)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, dtype=np.float64, rng=generator),
        nn.BatchNorm2d(4, dtype=np.float64),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.2, rng=rng(seed + 1)),
        nn.Linear(64, 3, dtype=np.float64, rng=generator),
    )


def equal(a: Any, b: Any) -> None:
    """Bitwise, for dicts of arrays or values."""
    assert list(a) == list(b)
    for name in a:
        x, y = np.asarray(a[name]), np.asarray(b[name])
        assert x.dtype == y.dtype
        assert x.tobytes() == y.tobytes(), name


# --- the loop


@pytest.mark.parametrize("kind", ["layer", "model"])
def test_same_as_the_loop_written_out(kind: str) -> None:
    data = toy_data()

    def make() -> Any:
        if kind == "layer":
            return toy_model()
        return ThreeLayerConvNet(
            (2, 4, 4), 4, 3, 8, 3, 0.1, reg=0.1, dtype=np.float64, use_batchnorm=True, rng=rng(3)
        )

    solver = Solver(
        make(),
        data,
        update_rule="adam",
        optim_config={"lr": 0.05, "eps": 1e-6},
        num_epochs=3,
        batch_size=15,
        lr_decay=0.5,
        schedule=Cosine(10, final=0.2),
        augment=Augment(flip=0.5, shift=1),
        rng=rng(5),
    )
    newest = {}

    def evaluate() -> tuple[float, float]:
        newest.update(solver.model.state_dict())
        return Solver.evaluate(solver)

    solver.evaluate = evaluate  # type: ignore[method-assign]
    solver.train()

    model, generator, losses = make(), rng(5), []
    optimizer = Adam(model.params, lr=0.05, eps=1e-6)
    augment, schedule = Augment(flip=0.5, shift=1), Cosine(10, final=0.2)
    criterion = nn.CrossEntropyLoss()
    for epoch in range(3):
        order = generator.permutation(40)
        for i in range(2):
            batch = order[15 * i : 15 * (i + 1)]
            X = augment(data["X_train"][batch], rng=generator)
            y = data["y_train"][batch]
            if kind == "layer":
                losses.append(criterion(model(X), y))
                model.backward(criterion.backward())
                grads = model.grads
            else:
                loss, grads = model.loss(X, y)
                losses.append(loss)
            optimizer.lr = 0.05 * schedule(2 * epoch + i) * 0.5**epoch
            optimizer.step(grads)
    assert solver.loss_history == losses
    equal(newest, model.state_dict())
    assert (solver.steps, solver.total_steps, solver.steps_per_epoch, solver.epoch) == (6, 6, 2, 3)
    assert len(solver.train_acc_history) == len(solver.val_acc_history) == 4


def test_any_object_with_params_and_loss() -> None:
    class Mean:
        """Minimises the distance of one vector from the examples."""

        def __init__(self) -> None:
            self.params = {"m": np.zeros(2)}

        def loss(self, X: np.ndarray, y: np.ndarray | None = None) -> Any:
            if y is None:
                return np.stack([np.ones(len(X)), np.zeros(len(X))], axis=1)
            d = self.params["m"] - X
            return float((d**2).mean()), {"m": 2 * d.mean(axis=0) / 2}

    X = rng().normal([3.0, -1.0], size=(50, 2))
    y = np.zeros(50, int)
    model = Mean()
    data = {"X_train": X, "y_train": y, "X_val": X, "y_val": y}
    solver = Solver(model, data, optim_config={"learning_rate": 0.5}, batch_size=50, num_epochs=40)
    solver.train()
    np.testing.assert_allclose(model.params["m"], X.mean(axis=0), atol=1e-6)
    assert solver.val_acc_history == [1.0] * 40


def test_seeded_runs_are_bitwise_equal_and_touch_no_global_seed() -> None:
    np.random.seed(123)  # noqa: NPY002
    before = np.random.get_state()[1].tobytes()  # type: ignore[index,union-attr]  # noqa: NPY002
    runs = []
    for _ in range(2):
        model = toy_model()
        solver = Solver(model, toy_data(), num_epochs=2, batch_size=10, rng=rng(1))
        solver.train()
        runs.append((solver.loss_history, model.state_dict()))
    assert runs[0][0] == runs[1][0]
    equal(runs[0][1], runs[1][1])
    assert np.random.get_state()[1].tobytes() == before  # type: ignore[index,union-attr]  # noqa: NPY002


def test_float32_network_on_float64_or_uint8_images_stays_float32() -> None:
    for dtype in (np.float64, np.uint8):
        data = toy_data(dtype=np.float64)
        data = {k: v.astype(dtype) if k[0] == "X" else v for k, v in data.items()}
        model = nn.Sequential(nn.Flatten(), nn.Linear(32, 3))
        seen = []
        forward = model.forward
        model.forward = lambda x: seen.append(x.dtype) or forward(x)  # type: ignore  # noqa: B023
        Solver(model, data, num_epochs=1).train()
        assert set(seen) == {np.dtype(np.float32)}


@pytest.mark.parametrize("rule", ["sgd", "sgd_momentum", "rmsprop", "adam", "adamw", Adam])
def test_update_rules_learn(rule: Any) -> None:
    config = {"lr": 0.05 if rule in ("sgd", "sgd_momentum") else 0.005}
    solver = Solver(
        toy_model(),
        toy_data(90),
        update_rule=rule,
        optim_config=config,
        num_epochs=12,
        batch_size=10,
        rng=rng(1),
    )
    solver.train()
    assert solver.best_val_acc >= 0.8
    if rule == "sgd_momentum":
        assert solver.optimizer.momentum == 0.9
    if rule is Adam:
        partly = functools.partial(Adam, betas=(0.8, 0.9))
        assert Solver(toy_model(), toy_data(), update_rule=partly).optimizer.betas == (0.8, 0.9)


def test_schedule_by_name_covers_the_run() -> None:
    solver = Solver(toy_model(), toy_data(), num_epochs=3, batch_size=10, schedule="cosine")
    assert solver.schedule == Cosine(12)


def test_loss_of_ones_own_and_dataset() -> None:
    arrays = toy_data()
    data = Dataset(
        *(arrays[k] for k in ("X_train", "y_train", "X_val", "y_val")),
        arrays["X_val"],
        arrays["y_val"],
        ("a", "b", "c"),
        "toy",
    )
    smooth = Solver(toy_model(), data, loss=nn.CrossEntropyLoss(label_smoothing=0.5), rng=rng(1))
    plain = Solver(toy_model(), data, rng=rng(1))
    assert smooth.step() != plain.step()


# --- accuracies and best weights


def test_check_accuracy() -> None:
    class Fixed:
        params: Arrays = {"w": np.zeros(1)}  # noqa: RUF012

        def __init__(self) -> None:
            self.sizes: list[int] = []

        def loss(self, X: np.ndarray, y: Any = None) -> np.ndarray:
            self.sizes.append(len(X))
            return np.eye(4)[X[:, 0].astype(int)]

    model = Fixed()
    data = toy_data()
    solver = Solver(model, data)
    X = np.arange(40)[:, None] % 4
    y = np.where(np.arange(40) < 10, X[:, 0], (X[:, 0] + 1) % 4)
    assert solver.check_accuracy(X, y) == 0.25
    assert solver.check_accuracy(X, y, batch_size=7) == 0.25
    assert model.sizes == [40, 7, 7, 7, 7, 7, 5]
    # Evenly spaced: every fourth example of 40.
    assert solver.check_accuracy(X, y, num_samples=10) == 0.3
    assert solver.check_accuracy(X, y, num_samples=1000) == 0.25
    with pytest.raises(ValueError, match="check_accuracy: X has 40 examples, y has 39"):
        solver.check_accuracy(X, y[1:])
    with pytest.raises(ValueError, match="there are no examples"):
        solver.check_accuracy(X[:0], y[:0])


def test_scores_of_views_are_added() -> None:
    model = nn.Linear(2, 2, bias=False)
    model.weight[...] = np.eye(2)
    X, y = np.array([[3.0, 2.0], [0.0, 1.0]]), np.array([1, 1])
    data = {"X_train": X, "y_train": y, "X_val": X, "y_val": y}
    solver = Solver(model, data, rng=rng())
    assert solver.check_accuracy(X, y) == 0.5
    assert solver.check_accuracy(X, y, views=lambda x: (x, x + np.array([0.0, 3.0]))) == 1.0
    assert solver.check_accuracy(X, y, views=lambda x: (x, x + np.array([3.0, 0.0]))) == 0.0


def test_labels_that_would_give_a_false_accuracy_are_refused() -> None:
    data = toy_data()
    for name in ("y_train", "y_val"):
        column = {**data, name: data[name][:, None]}
        with pytest.raises(
            ValueError, match=rf"Solver: {name} must .*\(N,\), got shape \(\d+, 1\)"
        ):
            Solver(toy_model(), column)
        with pytest.raises(ValueError, match=f"Solver: {name} must hold integer labels, got dtype"):
            Solver(toy_model(), {**data, name: data[name] + 0.5})
    solver = Solver(toy_model(), data)
    X, y = data["X_val"], data["y_val"]
    with pytest.raises(ValueError, match=r"check_accuracy: y must .*\(N,\), got shape \(20, 1\)"):
        solver.check_accuracy(X, y[:, None])
    with pytest.raises(ValueError, match=r"check_accuracy: y must hold integer labels"):
        solver.check_accuracy(X, y / 2)
    for label in (3, -1):
        says = f"has the label {label}, the model has scores for 0 to 2"
        wrong = np.where(np.arange(len(y)) == 7, label, y)
        with pytest.raises(ValueError, match=f"check_accuracy: y {says}"):
            solver.check_accuracy(X, wrong)
        with pytest.raises(ValueError, match=f"check_accuracy: y_val {says}"):
            Solver(toy_model(), {**data, "y_val": wrong}).evaluate()


def test_accuracy_is_taken_in_inference_mode() -> None:
    model = toy_model()
    model[4].eval()  # type: ignore[attr-defined]
    solver = Solver(model, toy_data())
    before = model.state_dict()
    state = model[4].rng.bit_generator.state  # type: ignore[attr-defined]
    a = solver.check_accuracy(solver.X_val, solver.y_val)
    assert a == solver.check_accuracy(solver.X_val, solver.y_val)
    equal(model.state_dict(), before)
    assert model[4].rng.bit_generator.state == state  # type: ignore[attr-defined]
    assert [layer.training for layer in model] == [True, True, True, True, False, True]


def test_best_weights_are_kept_and_put_in_place() -> None:
    model = toy_model()
    solver = Solver(
        model, toy_data(), optim_config={"lr": 0.3}, num_epochs=8, batch_size=10, rng=rng(2)
    )
    live = model.params
    kept = []
    script = iter([0.1, 0.3, 0.7, 0.2, 0.7, 0.6, 0.1, 0.1, 0.5])
    accuracy = solver.check_accuracy

    def scripted(X: np.ndarray, y: np.ndarray, n: int | None = None) -> float:
        if X is not solver.X_val:
            return accuracy(X, y, n)
        kept.append(model.state_dict())
        return next(script)

    solver.check_accuracy = scripted  # type: ignore[method-assign,assignment]
    solver.train()
    assert solver.best_val_acc == 0.7
    # The fifth evaluation is the last of the two best ones.
    equal(model.state_dict(), kept[4])
    equal({k: kept[4][k] for k in solver.best_params}, solver.best_params)
    assert all(np.shares_memory(live[name], p) for name, p in model.params.items())
    assert model.training


# --- time limits


class Clock:
    """Time that passes only when a step or an evaluation is made."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(solver_module, "time", fake)
    return fake


class Timed(Solver):
    clock: Clock

    def step(self) -> float:
        self.clock.now += 1.0
        return super().step()

    def evaluate(self) -> tuple[float, float]:
        self.clock.now += 3.0
        return super().evaluate()


def test_time_limit_is_kept_with_the_last_evaluation(clock: Clock) -> None:
    solver = Timed(toy_model(), toy_data(), num_epochs=50, batch_size=10, rng=rng(1))
    solver.clock = clock
    solver.train(time_limit=22.0)
    # Steps of 1 s, evaluations of 3 s after step 1 and every fourth, and one at the end.
    assert clock.now == 22.0
    assert solver.steps == 10
    assert len(solver.val_acc_history) == 4
    solver.train(time_limit=0.5)
    assert solver.steps == 11


def test_stopped_run_goes_on_as_if_never_stopped(clock: Clock) -> None:
    def make() -> Timed:
        solver = Timed(
            toy_model(),
            toy_data(),
            optim_config={"lr": 0.2},
            num_epochs=4,
            batch_size=10,
            rng=rng(1),
        )
        solver.clock = clock
        return solver

    whole, parts = make(), make()
    whole.train()
    while parts.steps < parts.total_steps:
        parts.train(time_limit=2.5)
    assert parts.loss_history == whole.loss_history
    equal(parts.optimizer.state_dict()["state"], whole.optimizer.state_dict()["state"])
    assert len(parts.val_acc_history) > len(whole.val_acc_history)


def test_paced_schedule_ends_with_the_time(clock: Clock) -> None:
    rates: list[float] = []

    def schedule(step: int) -> float:
        rates.append(step / solver.total_steps)
        return 1.0 - step / solver.total_steps

    solver = Timed(
        toy_model(), toy_data(), num_epochs=1000, batch_size=10, rng=rng(1), schedule=schedule
    )
    solver.clock = clock
    solver.train(time_limit=103.0, paced=True)
    assert clock.now <= 103.0
    assert solver.steps < solver.total_steps / 20
    assert rates == sorted(rates)
    # A step takes 1 s, and after the last one come 3 s of evaluation.
    assert rates[0] == 0.0
    assert 0.9 < rates[-1] <= 1.0
    assert solver.progress == pytest.approx(rates[-1], abs=1e-3)

    # What is left of a schedule is spread over the next limit, whatever `num_epochs` says.
    solver.progress = 0.5
    rates.clear()
    solver.train(time_limit=40.0, paced=True)
    assert rates[0] == 0.5
    assert rates[-1] > 0.8
    short = Timed(toy_model(), toy_data(), num_epochs=1, batch_size=10, rng=rng(1))
    short.clock = clock
    short.train(time_limit=50.0, paced=True)
    assert short.steps > short.total_steps
    with pytest.raises(ValueError, match=r"Solver\.train: paced needs a time_limit"):
        short.train(paced=True)


def test_seconds_say_where_the_time_went() -> None:
    parts = ["data", "augmentation", "forward", "loss", "backward", "update", "evaluation"]
    for model in (toy_model(), DeepConvNet((2, 4, 4), [4], [0], num_classes=3, dtype=float)):
        solver = Solver(
            model, toy_data(), num_epochs=2, batch_size=10, rng=rng(1), augment=Augment(0.5, 0)
        )
        began = time.perf_counter()
        solver.train()
        took = time.perf_counter() - began
        assert list(solver.seconds) == [*parts, "checkpoint", "rest"]
        assert all(solver.seconds[part] > 0 for part in parts)
        assert solver.seconds["checkpoint"] == 0
        assert solver.seconds["rest"] > 0
        assert 0.5 * took < sum(solver.seconds.values()) <= took


def test_time_limit_for_real() -> None:
    model = DeepConvNet((3, 16, 16), [8, 8], [0, 1], weight_scale="kaiming", rng=rng())
    X = rng(1).normal(size=(400, 3, 16, 16)).astype(np.float32)
    y = np.arange(400) % 10
    data = {"X_train": X, "y_train": y, "X_val": X[:50], "y_val": y[:50]}
    solver = Solver(model, data, num_epochs=100_000, batch_size=20, rng=rng(2))
    began = time.perf_counter()
    solver.train(time_limit=0.5)
    assert time.perf_counter() - began < 5
    assert 1 <= solver.steps < solver.total_steps


# --- what goes wrong


def test_loss_that_is_not_finite() -> None:
    def make(**kwargs: Any) -> Solver:
        model = DeepConvNet((2, 4, 4), [4], [0], num_classes=3, weight_scale=1e200, dtype=float)
        return Solver(model, toy_data(), num_epochs=1, batch_size=10, **kwargs)

    with np.errstate(all="ignore"):
        with pytest.raises(FloatingPointError, match=r"Solver: the loss is (nan|inf) in step 1"):
            make().train()
        solver = make(allow_nonfinite=True)
        solver.train()
    assert len(solver.loss_history) == 4
    assert not np.isfinite(solver.loss_history).all()


@pytest.mark.parametrize(
    ("kwargs", "error", "says"),
    [
        ({"num_epochs": 0}, ValueError, "Solver: num_epochs must be at least 1, got 0"),
        ({"num_epochs": 1.5}, TypeError, "Solver: num_epochs must be an integer, got 1.5"),
        ({"batch_size": -1}, ValueError, "Solver: batch_size"),
        ({"batch_size": True}, TypeError, "Solver: batch_size"),
        ({"lr_decay": 0.0}, ValueError, "Solver: lr_decay"),
        ({"lr_decay": 1.5}, ValueError, "Solver: lr_decay"),
        ({"lr_decay": "1"}, TypeError, "Solver: lr_decay must be a number, got '1'"),
        ({"num_val_samples": 1.5}, TypeError, "Solver: num_val_samples must be an integer, got"),
        ({"update_rule": "adagrad"}, ValueError, "update_rule must be one of .*got 'adagrad'"),
        ({"optim_config": {"beta1": 0.9}}, ValueError, r"unknown \['beta1'\]; it takes \['lr'"),
        ({"optim_config": {"lr": 1, "learning_rate": 1}}, ValueError, "both lr and learning_rate"),
        ({"optim_config": {"lr": -1}}, ValueError, "SGD: lr"),
        ({"schedule": "linear"}, ValueError, "schedule must be one of"),
        ({"rng": 0}, TypeError, r"Solver: rng must be a numpy\.random\.Generator, got int"),
        ({"resume": True}, ValueError, "Solver: resume needs a checkpoint folder"),
        ({"checkpoint_every": 5}, ValueError, "Solver: checkpoint_every needs a checkpoint folder"),
        ({"num_val_samples": 0}, ValueError, "Solver: num_val_samples"),
    ],
)
def test_bad_arguments_are_named(kwargs: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        Solver(toy_model(), toy_data(), **kwargs)


def test_bad_models_and_data_are_named() -> None:
    data = toy_data()
    with pytest.raises(TypeError, match=r"model must be a layer or have loss\(X, y\), got object"):
        Solver(object(), data)
    model = ThreeLayerConvNet((2, 4, 4), 2, 3, 4, 3)
    with pytest.raises(ValueError, match="ThreeLayerConvNet has its own loss"):
        Solver(model, data, loss=nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match="data has no 'X_val'"):
        Solver(model, {k: v for k, v in data.items() if k != "X_val"})
    with pytest.raises(ValueError, match="Solver: X_train has 40 examples, y_train has 39"):
        Solver(model, {**data, "y_train": data["y_train"][1:]})
    with pytest.raises(ValueError, match="Solver: X_val is empty"):
        Solver(model, {**data, "X_val": data["X_val"][:0], "y_val": data["y_val"][:0]})
    with pytest.raises(ValueError, match=r"Solver\.train: time_limit must be positive, got 0"):
        Solver(model, data).train(time_limit=0)
    with pytest.raises(TypeError, match=r"Solver\.train: time_limit must be a number, got '3'"):
        Solver(model, data).train(time_limit="3")  # type: ignore[arg-type]


def test_progress_bar_is_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    Solver(toy_model(), toy_data(), num_epochs=2, batch_size=10).train()
    assert capsys.readouterr() == ("", "")
    Solver(toy_model(), toy_data(), num_epochs=2, batch_size=10, progress=True).train()
    out, err = capsys.readouterr()
    assert out == ""
    for part in ("epoch 2/2", "8/8", "loss=", "val="):
        assert part in err


def test_progress_bar_needs_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(
        ImportError, match=r"progress=True needs tqdm: pip install 'cnnfast\[cli\]'"
    ):
        Solver(toy_model(), toy_data(), progress=True).train()


# --- checkpoints


class Stopped(Exception):
    pass


class Interrupted(Solver):
    """Stops dead before step `stop`, as if killed."""

    stop = -1

    def step(self) -> float:
        if self.steps == self.stop:
            raise Stopped
        return super().step()


def checkpointed(folder: Path | None, **kwargs: Any) -> Interrupted:
    """A run with every kind of state: momentum, running averages, dropout, augmentation."""
    settings: dict[str, Any] = {
        "model": toy_model(),
        "data": toy_data(),
        "rng": rng(11),
        "update_rule": "adam",
        "optim_config": {"lr": 0.02, "amsgrad": True},
        "num_epochs": 4,
        "batch_size": 10,
        "lr_decay": 0.9,
        "schedule": "one_cycle",
        "augment": Augment(flip=0.5, shift=0),
        "checkpoint_every": None if folder is None else 3,
    }
    return Interrupted(checkpoint=folder, **{**settings, **kwargs})


def everything(solver: Solver) -> dict[str, Any]:
    state = solver.optimizer.state_dict()
    best = solver.model.state_dict()
    solver._take_up()
    return {
        **best,
        **{f"{slot}/{k}": a for slot, arrays in state["state"].items() for k, a in arrays.items()},
        **{f"newest/{k}": a for k, a in solver.model.state_dict().items()},
        "optimizer": json.dumps([state["steps"], state["hyper"]]),
        "loss": solver.loss_history,
        "train": solver.train_acc_history,
        "val": solver.val_acc_history,
        "best": solver.best_val_acc,
        "rng": str(solver.rng.bit_generator.state),
        "dropout": str(solver.model[4].rng.bit_generator.state),
        **{f"best/{k}": a for k, a in solver.best_params.items()},
    }


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, Any]:
    pytest.importorskip("safetensors")
    solver = checkpointed(None)
    solver.train()
    return everything(solver)


def test_checkpoints_change_nothing(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    solver = checkpointed(tmp_path / "new" / "folder")
    solver.train()
    equal(everything(solver), uninterrupted)
    assert [p.name for p in (tmp_path / "new" / "folder").iterdir()] == ["checkpoint.safetensors"]


@pytest.mark.parametrize("stop", range(17))
def test_interrupted_run_resumes_bitwise(
    tmp_path: Path, uninterrupted: dict[str, Any], stop: int
) -> None:
    first = checkpointed(tmp_path)
    first.stop = stop
    if stop < 16:
        with pytest.raises(Stopped):
            first.train()
    else:
        first.train()
    second = checkpointed(tmp_path, resume=True)
    assert second.resumed_from == max(s for s in (0, 3, 4, 6, 8, 9, 12, 15, 16) if s <= stop)
    second.train()
    equal(everything(second), uninterrupted)


def test_resumed_twice_with_generators_of_another_kind(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")

    def twister() -> np.random.Generator:
        return np.random.Generator(np.random.MT19937(5))

    whole = checkpointed(None, rng=twister())
    whole.train()
    for stop in (5, 11, -1):
        part = checkpointed(tmp_path, resume=True, rng=twister())
        part.stop = stop
        if stop > 0:
            with pytest.raises(Stopped):
                part.train()
        else:
            part.train()
    equal(everything(part), everything(whole))
    with pytest.raises(CheckpointError, match=r"other random generators than .*PCG64"):
        checkpointed(tmp_path, resume=True)


def test_resume_takes_all_from_the_file(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    first = checkpointed(tmp_path)
    first.stop = 7
    with pytest.raises(Stopped):
        first.train()
    second = checkpointed(tmp_path, model=toy_model(seed=99), rng=rng(99), resume=True)
    second.train()
    equal(everything(second), uninterrupted)


def test_time_limited_run_resumes_bitwise(
    tmp_path: Path, clock: Clock, uninterrupted: dict[str, Any]
) -> None:
    class Both(Timed, Interrupted):
        pass

    solver: Any
    for _ in range(50):
        solver = checkpointed(tmp_path, resume=True)
        solver.__class__ = Both
        solver.clock = clock
        solver.train(time_limit=7.0)
        if solver.steps == solver.total_steps:
            break
    equal(everything(solver), uninterrupted)


def test_without_resume_a_run_begins_at_the_beginning(
    tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    for stop in (9, -1):
        solver = checkpointed(tmp_path)
        assert solver.resumed_from == 0
        solver.stop = stop
        if stop > 0:
            with pytest.raises(Stopped):
                solver.train()
            assert checkpoint.read(tmp_path / "checkpoint.safetensors")["steps"] == 9
        else:
            solver.train()
    equal(everything(solver), uninterrupted)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batch_size": 20, "schedule": None}, "batch_size 10, this one has 20"),
        ({"update_rule": "adamw"}, "update_rule Adam, this one has AdamW"),
        ({"optim_config": {"lr": 0.01, "amsgrad": True}}, "optim_config"),
        ({"lr_decay": 1.0}, "lr_decay 0.9, this one has 1.0"),
        ({"num_epochs": 5}, r"schedule OneCycle\(total_steps=16.*has OneCycle\(total_steps=20"),
        ({"augment": None}, r"augment Augment\(flip=0.5, shift=0, shrink=1\), this one has None"),
    ],
)
def test_checkpoint_of_another_run_is_refused(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    pytest.importorskip("safetensors")
    first = checkpointed(tmp_path)
    first.stop = 4
    with pytest.raises(Stopped):
        first.train()
    with pytest.raises(CheckpointError, match=says) as error:
        checkpointed(tmp_path, resume=True, **change)
    assert "\n" not in str(error.value)


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    data = toy_data()
    Solver(toy_model(), data, num_epochs=1, checkpoint=tmp_path).train()
    other = nn.Sequential(nn.Flatten(), nn.Linear(32, 3))
    with pytest.raises(CheckpointError, match="of a run with parameters"):
        Solver(other, data, num_epochs=1, checkpoint=tmp_path, resume=True)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: data[: len(data) // 2], id="half of it"),
        pytest.param(lambda data: data[:8] + b"X" + data[9:], id="no JSON"),
        pytest.param(lambda data: b"\xff" * 8 + data[8:], id="header too long"),
        pytest.param(lambda data: data.replace(b'"tree":"{', b'"tree":"['), id="no tree"),
        pytest.param(lambda data: data.replace(b'\\"dict', b'\\"dxct', 1), id="wrong tree"),
    ],
)
def test_damaged_checkpoint_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    pytest.importorskip("safetensors")
    Solver(toy_model(), toy_data(), num_epochs=1, checkpoint=tmp_path).train()
    path = tmp_path / "checkpoint.safetensors"
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert path.read_bytes() != whole
    with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors is damaged"):
        Solver(toy_model(), toy_data(), num_epochs=1, checkpoint=tmp_path, resume=True)


def test_a_flipped_bit_anywhere_is_seen(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.write(path, {"a": np.arange(5.0), "b": [1, {"c": np.ones(3, np.float32)}]})
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors is (damaged|no check)"):
            checkpoint.read(path)


GONE = object()


@pytest.mark.parametrize(
    ("entry", "value", "says"),
    [
        *((name, GONE, "is missing") for name in ("settings", "steps", "params", "order")),
        *((name, GONE, "is missing") for name in ("train_acc_history", "optimizer", "generators")),
        ("settings", None, "must be a dict"),
        ("steps", -5, "must be at least 0, not -5"),
        ("steps", 57.5, "must be an integer, not 57.5"),
        ("steps", True, "must be an integer, not True"),
        ("evaluated", 57, "must be 0 to 4, not 57"),
        ("position", 9999, "must be 0 to 4, not 9999"),
        ("order", None, "must be an array, not None"),
        ("order", np.zeros(40, np.int64), "is no order of 40 examples"),
        ("order", np.arange(40.0), "is no order of 40 examples"),
        ("order", np.arange(40).reshape(5, 8), "is no order of 40 examples"),
        ("loss_history", np.zeros(3), "has 3 losses of 4 steps"),
        ("loss_history", [1.0], "must be an array"),
        ("val_acc_history", np.zeros((2, 1)), "must be a list of floats"),
        ("val_acc_history", np.zeros(1), "has length 1, not 2"),
        ("best_val_acc", "0.5", "must be a number"),
        ("params", {}, "must have .*not "),
        ("buffers", [], "must be a dict"),
        ("best_params", {"a": np.ones(1)}, "must have "),
        ("params/5.bias", np.zeros(2), "must be an array of float64 of shape"),
        ("best_buffers/1.running_mean", 3, "must be an array"),
        ("generators", 5, "must be a list"),
        ("optimizer", {}, "does not fit"),
        ("optimizer/steps", -5, "does not fit"),
        ("optimizer/steps", 57.5, "does not fit"),
        ("optimizer/state", None, "does not fit"),
    ],
)
def test_wrong_entry_of_a_checkpoint_is_named(
    tmp_path: Path, entry: str, value: Any, says: str
) -> None:
    pytest.importorskip("safetensors")
    settings: dict[str, Any] = {"num_epochs": 1, "batch_size": 10, "checkpoint": tmp_path}
    Solver(toy_model(), toy_data(), update_rule="adam", **settings).train()
    path = tmp_path / "checkpoint.safetensors"
    tree = checkpoint.read(path)
    name, _, key = entry.partition("/")
    holder, last = (tree[name], key) if key else (tree, name)
    if value is GONE:
        del holder[last]
    else:
        assert last in holder
        holder[last] = value
    checkpoint.write(path, tree)
    model = toy_model(seed=9)
    before = model.state_dict()
    with pytest.raises(CheckpointError, match=rf"safetensors: the entry '{name}.*{says}") as error:
        Solver(model, toy_data(), update_rule="adam", resume=True, **settings)
    assert "\n" not in str(error.value)
    equal(model.state_dict(), before)


def test_wrong_state_of_a_generator_is_named(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    Solver(toy_model(), toy_data(), num_epochs=1, checkpoint=tmp_path).train()
    path = tmp_path / "checkpoint.safetensors"
    tree = checkpoint.read(path)
    del tree["generators"][0]["state"]
    checkpoint.write(path, tree)
    with pytest.raises(CheckpointError, match="'generators' holds no state of a generator"):
        Solver(toy_model(), toy_data(), num_epochs=1, checkpoint=tmp_path, resume=True)


def test_checkpoint_folder_that_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(NotADirectoryError, match=r"checkpoint must be a folder, .*file is a file"):
        Solver(toy_model(), toy_data(), checkpoint=path)


def test_other_safetensors_files_are_refused(tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.numpy").save_file
    save_file({"a": np.ones(3)}, tmp_path / "checkpoint.safetensors")
    with pytest.raises(CheckpointError, match="is no checkpoint of this version"):
        Solver(toy_model(), toy_data(), checkpoint=tmp_path, resume=True)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        checkpoint.read(tmp_path / "nothing")


def test_checkpoint_file_round_trip(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    tree = {
        "arrays": {"f": np.asfortranarray(rng().normal(size=(3, 4))), "empty": np.zeros((0, 2))},
        "scalar": np.array(3.5, np.float32),
        "big": 2**127 + 1,
        "list": [1, None, "x", {"y": np.arange(3)}],
        "nan": float("nan"),
        "value": np.float64(0.1),
        "tensor": {"dict": 1},
    }
    path = tmp_path / "tree.safetensors"
    checkpoint.write(path, tree)
    again = checkpoint.read(path)
    assert again["arrays"]["f"].tobytes() == tree["arrays"]["f"].tobytes()  # type: ignore[index]
    assert again["arrays"]["empty"].shape == (0, 2)
    assert again["scalar"].shape == ()
    assert again["scalar"] == np.float32(3.5)
    assert again["big"] == 2**127 + 1
    assert again["list"][:3] == [1, None, "x"]
    assert again["list"][3]["y"].tolist() == [0, 1, 2]
    assert np.isnan(again["nan"])
    assert again["value"] == 0.1
    assert again["tensor"] == {"dict": 1}


def test_failed_write_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("safetensors")
    path = tmp_path / "tree.safetensors"
    checkpoint.write(path, {"a": np.ones(3)})

    def no_space(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", no_space)
    with pytest.raises(OSError, match="no space"):
        checkpoint.write(path, {"a": np.zeros(3)})
    assert checkpoint.read(path)["a"].tolist() == [1, 1, 1]
    assert list(tmp_path.iterdir()) == [path]


def test_checkpoints_need_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    solver = Solver(toy_model(), toy_data(), checkpoint=tmp_path)
    with pytest.raises(ImportError, match=r"pip install 'cnnfast\[save\]'"):
        solver.train()


KILLED = textwrap.dedent(
    """
    import os, signal, sys
    import numpy as np
    from cnnfast import nn
    from cnnfast.training import Solver

    folder, kill_at, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]

    class Killed(Solver):
        def step(self):
            if self.steps == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().step()

    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 12)), np.arange(60) % 3
    data = {"X_train": X[:40], "y_train": y[:40], "X_val": X[40:], "y_val": y[40:]}
    model = nn.Sequential(nn.Linear(12, 8, rng=rng), nn.ReLU(), nn.Linear(8, 3, rng=rng))
    solver = Killed(model, data, update_rule="adam", num_epochs=5, batch_size=10, rng=rng,
                    checkpoint=folder, checkpoint_every=3, resume=True)
    solver.train()
    np.savez(out, **model.state_dict(), loss=solver.loss_history)
    """
)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_killed_process_resumes_bitwise(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")

    def run(folder: str, kill_at: int) -> int:
        arguments = [str(tmp_path / folder), str(kill_at), str(tmp_path / f"{folder}.npz")]
        return subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False).returncode

    assert run("whole", -1) == 0
    for kill_at in (0, 10):
        assert run("parts", kill_at) == -9
    assert run("parts", -1) == 0
    with np.load(tmp_path / "whole.npz") as whole, np.load(tmp_path / "parts.npz") as parts:
        equal(dict(whole), dict(parts))


RESUMING = textwrap.dedent(
    """
    import sys
    import numpy as np
    from cnnfast import nn
    from cnnfast.data import Augment
    from cnnfast.training import Solver

    folder, every, out = sys.argv[1], int(sys.argv[2]) or None, sys.argv[3]
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 2, 8, 8)).astype(np.float32)
    y = np.arange(80) % 3
    data = {"X_train": X[:60], "y_train": y[:60], "X_val": X[60:], "y_val": y[60:]}
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, rng=rng), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.2, rng=rng), nn.Linear(96, 3, rng=rng),
    )
    solver = Solver(model, data, update_rule="adam", num_epochs=300, batch_size=10, rng=rng,
                    schedule="one_cycle", augment=Augment(flip=0.5, shift=1), checkpoint=folder,
                    checkpoint_every=every, resume=True)
    print("step", solver.resumed_from, flush=True)
    solver.train()
    solver._take_up()
    np.savez(out, **model.state_dict(), loss=solver.loss_history, val=solver.val_acc_history)
    """
)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_run_killed_at_twenty_random_moments_resumes_bitwise(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")

    def start(folder: str, every: int) -> subprocess.Popen[str]:
        words = [str(tmp_path / folder), str(every), str(tmp_path / f"{folder}.npz")]
        return subprocess.Popen(
            [sys.executable, "-c", RESUMING, *words], stdout=subprocess.PIPE, text=True
        )

    def wait_for_steps(process: subprocess.Popen[str]) -> int:
        assert process.stdout is not None
        return int(process.stdout.readline().split()[1])

    # At any instant: between two steps, in one, while a checkpoint is written or put in place.
    moments = rng(20).uniform(0, 0.08, size=20)
    reached = []
    for moment in moments:
        with start("parts", every=1) as process:
            reached.append(wait_for_steps(process))
            time.sleep(moment)
            process.kill()
        assert process.returncode == -9
    for folder in ("whole", "parts"):
        with start(folder, every=0) as process:
            reached.append(wait_for_steps(process))
        assert process.returncode == 0
    *lives, fresh, resumed = reached
    assert lives == sorted(lives)
    assert fresh == 0
    assert 20 < resumed < 1800
    with np.load(tmp_path / "whole.npz") as whole, np.load(tmp_path / "parts.npz") as parts:
        assert len(whole["loss"]) == 1800
        equal(dict(whole), dict(parts))


# --- real images


def test_small_cnn_reads_digits() -> None:
    pytest.importorskip("sklearn")
    data = load_digits().standardized()
    generator = rng(0)
    model = small_cnn(data.input_shape, width=16, rng=generator)
    solver = Solver(
        model,
        data,
        update_rule="adamw",
        optim_config={"lr": 0.01},
        loss=nn.CrossEntropyLoss(label_smoothing=0.1),
        schedule="one_cycle",
        num_epochs=8,
        batch_size=64,
        rng=generator,
    )
    solver.train()
    assert solver.check_accuracy(data.X_test, data.y_test) >= 0.97


def test_course_model_overfits_fifty_digits() -> None:
    pytest.importorskip("sklearn")
    data = load_digits().take(train=50)
    model = ThreeLayerConvNet((1, 8, 8), 8, 3, 50, weight_scale=1e-1, rng=rng(0))
    solver = Solver(
        model,
        data,
        update_rule="adam",
        optim_config={"learning_rate": 5e-3},
        num_epochs=30,
        batch_size=25,
        rng=rng(1),
    )
    solver.train()
    assert solver.train_acc_history[-1] == 1.0


def test_epoch_order_is_the_solvers() -> None:
    solver = Solver(toy_model(), toy_data(), batch_size=10, rng=rng(4))
    order = EpochOrder(40, 10, rng(4))
    seen = []
    solver.augment = lambda x, *, rng: seen.append(x) or x
    solver.step()
    np.testing.assert_array_equal(seen[0], solver.X_train[order.next()])
    assert isinstance(solver.optimizer, SGD)
