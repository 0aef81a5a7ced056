"""The training loop: minibatches, updates, accuracies, the best weights, checkpoints."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cnnfast import nn
from cnnfast.arrays import namespace
from cnnfast.data.augment import Augment, Stages
from cnnfast.data.batches import EpochOrder
from cnnfast.data.dataset import Dataset
from cnnfast.models.classifier import Classifier, in_mode, loss_and_grads
from cnnfast.training import checkpoint as checkpoints
from cnnfast.training.checkpoint import CheckpointError
from cnnfast.training.optim import SGD, Adam, AdamW, RMSprop
from cnnfast.training.schedules import Constant, Schedule, by_name

__all__ = ["Solver"]

Array = NDArray[Any]

_RULES: dict[str, Callable[..., Any]] = {
    "sgd": SGD,
    "sgd_momentum": partial(SGD, momentum=0.9),
    "rmsprop": RMSprop,
    "adam": Adam,
    "adamw": AdamW,
}


class Augmentation(Protocol):
    """Changes a batch of training images at random, such as `cnnfast.data.Augment`."""

    def __call__(self, x: Array, *, rng: np.random.Generator) -> Array: ...


class Solver:
    r"""Trains a model on labelled examples and keeps the weights that validate best.

    Each epoch goes through the training examples once, in a new random order, in
    ``max(N // batch_size, 1)`` steps of one size. Step :math:`t` (from 0) has the learning rate

    .. math:: \eta_t = \eta \cdot f(t) \cdot d^{\lfloor t / \mathrm{steps\ per\ epoch} \rfloor}

    with :math:`f` the schedule and :math:`d` the `lr_decay`. Accuracies are taken after the first
    step and at the end of each epoch. When `train` ends, the model has the parameters (and
    buffers) of the best validation accuracy; of equal ones, the last.

    Parameters
    ----------
    model : nn.Layer, or any object with `params` and `loss`
        Either has ``loss(X)`` that gives scores and ``loss(X, y)`` that gives a loss and a dict of
        gradients, one for each of ``params``, as the courses' models do; or is an `nn.Layer`
        that gives scores, trained with the `loss` below. Parameters are updated in place.
    data : Dataset or Mapping
        ``X_train, y_train, X_val, y_val``.
    update_rule : str or callable
        ``"sgd"``, ``"sgd_momentum"`` (momentum 0.9), ``"rmsprop"``, ``"adam"``, ``"adamw"``; or a
        class such as `Adam`: anything called with the parameters and `optim_config` that gives an
        object with `lr` and ``step(grads)`` (and ``state_dict``, ``load_state_dict`` for
        checkpoints).
    optim_config : Mapping[str, object], optional
        Arguments of the update rule, by PyTorch's names. ``learning_rate``, as the courses have
        it, is another name for ``lr``.
    num_epochs, batch_size : int
        How long, and in what portions. A batch is never larger than the training set.
    lr_decay : float
        Factor of the learning rate after each epoch.
    schedule : callable or str, optional
        From the step to a factor, such as `Cosine`; or ``"cosine"``, ``"one_cycle"``,
        ``"triangular"`` for one over the whole run, or ``"constant"``.
    loss : nn.Loss, optional
        For a layer without a `loss` of its own; `nn.CrossEntropyLoss` if not given.
    augment : callable, optional
        Called as ``augment(X, rng=rng)`` on each batch of training images; an `Augment` or
        `Stages` is told the progress of the run, the epoch, and which images they are, too.
    num_train_samples, num_val_samples : int, optional
        How many examples the accuracies are taken from, evenly spaced; None for all.
    rng : numpy.random.Generator, optional
        Shuffles and augments. A fresh one without it.
    progress : bool
        Show a progress bar (tqdm).
    checkpoint : path, optional
        A folder. The state of the run is written there when it starts, after each epoch and when
        it stops: one file, replaced in one step, so that a run that is killed can go on from it
        and ends with bitwise the same weights.
    checkpoint_every : int, optional
        Write it after each so many steps as well.
    resume : bool
        Go on from the checkpoint if there is one; start at the beginning if there is none.
    allow_nonfinite : bool
        Go on when the loss is infinite or not a number. Without it that is an error.

    Attributes
    ----------
    loss_history : list[float]
        The loss of each step.
    train_acc_history, val_acc_history : list[float]
        After the first step, and after each epoch.
    best_val_acc : float
        The best of them; NaN before the first.
    best_params : dict[str, ndarray]
        Copies of the parameters that had it.
    optimizer : Optimizer
        What the update rule made.
    steps, total_steps, steps_per_epoch : int
        Steps taken, to be taken, in each epoch.
    epoch : int
        Epochs finished.
    progress : float
        How much of the run is done, from 0 to 1: of the steps, or of the time (see `train`).
    seconds : dict[str, float]
        Where the time of `train` and `step` went: ``"data"`` (gathering a batch),
        ``"augmentation"``, ``"forward"``, ``"loss"``, ``"backward"``, ``"update"``,
        ``"evaluation"``, ``"checkpoint"`` and ``"rest"``. All that a `loss` of the model's own
        takes is in ``"loss"``, unless it is a `Classifier`. Not in checkpoints.
    resumed_from : int
        The step of the checkpoint that this run goes on from; 0 if it began at the beginning.

    Notes
    -----
    A run resumed bitwise needs the same arguments, the same machine and the same number of
    threads. Besides the parameters, a checkpoint holds the state of the optimiser, of `rng` and of
    the generators in the model's layers, the order of the epoch under way, the histories and the
    best weights. Of a model that is no `nn.Layer`, only `params` are known to it.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnfast import nn
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(200, 2))
    >>> y = (X[:, 0] > X[:, 1]).astype(np.int64)
    >>> data = {"X_train": X[:150], "y_train": y[:150], "X_val": X[150:], "y_val": y[150:]}
    >>> model = nn.Linear(2, 2, rng=rng)
    >>> solver = Solver(model, data, optim_config={"lr": 1.0}, num_epochs=5, batch_size=10, rng=rng)
    >>> solver.train()
    >>> solver.best_val_acc > 0.9
    True
    """

    def __init__(
        self,
        model: Any,
        data: Dataset | Mapping[str, Array],
        *,
        update_rule: str | Callable[..., Any] = "sgd",
        optim_config: Mapping[str, Any] | None = None,
        num_epochs: int = 10,
        batch_size: int = 100,
        lr_decay: float = 1.0,
        schedule: Schedule | str | None = None,
        loss: nn.Loss | None = None,
        augment: Augmentation | None = None,
        num_train_samples: int | None = 1000,
        num_val_samples: int | None = None,
        rng: np.random.Generator | None = None,
        progress: bool = False,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int | None = None,
        resume: bool = False,
        allow_nonfinite: bool = False,
    ) -> None:
        for name, count in (
            ("num_epochs", num_epochs),
            ("batch_size", batch_size),
            ("num_train_samples", num_train_samples),
            ("num_val_samples", num_val_samples),
            ("checkpoint_every", checkpoint_every),
        ):
            _positive(name, count)
        _number("Solver: lr_decay", lr_decay)
        if not 0 < lr_decay <= 1:
            raise ValueError(f"Solver: lr_decay must be in (0, 1], got {lr_decay!r}")
        if (resume or checkpoint_every) and checkpoint is None:
            what = "resume" if resume else "checkpoint_every"
            raise ValueError(f"Solver: {what} needs a checkpoint folder")
        if rng is not None and not isinstance(rng, np.random.Generator):
            raise TypeError(
                f"Solver: rng must be a numpy.random.Generator, got {type(rng).__name__}"
            )

        self.model = model
        self._criterion = _criterion(model, loss)
        arrays = data.asdict() if isinstance(data, Dataset) else data
        self.X_train, self.y_train = _examples(arrays, "train")
        self.X_val, self.y_val = _examples(arrays, "val")
        self.rng = np.random.default_rng() if rng is None else rng
        self.augment = augment
        self.lr_decay = float(lr_decay)
        self.num_epochs = num_epochs
        self.num_train_samples = num_train_samples
        self.num_val_samples = num_val_samples
        self._shows_progress = progress
        self.allow_nonfinite = allow_nonfinite

        self.optimizer = _optimizer(model, update_rule, optim_config or {})
        self._base_lr = float(self.optimizer.lr)
        self._dtype = next(iter(model.params.values())).dtype
        self._order = EpochOrder(len(self.y_train), batch_size, self.rng)
        self.steps_per_epoch = self._order.batches_per_epoch
        self.total_steps = num_epochs * self.steps_per_epoch
        if schedule is None:
            schedule = Constant()
        elif isinstance(schedule, str):
            schedule = by_name(schedule, self.total_steps)
        self.schedule: Schedule = schedule

        self.steps = 0
        self.progress = 0.0
        self.seconds = dict.fromkeys(_PARTS, 0.0)
        self.loss_history: list[float] = []
        self.train_acc_history: list[float] = []
        self.val_acc_history: list[float] = []
        self.best_val_acc = math.nan
        self.best_params: dict[str, Array] = {}
        self._best_buffers: dict[str, Array] = {}
        # The steps after which the last evaluation and the last checkpoint were made.
        self._evaluated = self._saved = 0
        # The progress by the clock, in a run that follows it.
        self._paced: float | None = None
        # The newest weights, while the model has the best ones.
        self._set_aside: tuple[dict[str, Array], dict[str, Array]] | None = None

        self.resumed_from = 0
        self.checkpoint_every = checkpoint_every
        self._checkpoint: Path | None = None
        if checkpoint is not None:
            folder = Path(checkpoint)
            if folder.exists() and not folder.is_dir():
                raise NotADirectoryError(f"Solver: checkpoint must be a folder, {folder} is a file")
            self._checkpoint = folder / "checkpoint.safetensors"
            self._settings = self._comparable_settings()
            if resume and self._checkpoint.is_file():
                self._load_checkpoint(self._checkpoint)

    @property
    def epoch(self) -> int:
        return self.steps // self.steps_per_epoch

    def train(self, time_limit: float | None = None, *, paced: bool = False) -> None:
        """Train to the end of the last epoch, or for so many seconds.

        Called again after a time limit it goes on where it stopped, from the newest weights.

        Parameters
        ----------
        time_limit : float, optional
            Seconds for everything: steps, accuracies, checkpoints. At least one step is made. A
            run that stops between epochs takes the accuracies once more, so that the newest
            weights can be the best ones.
        paced : bool
            Whether the schedule follows the time instead of the steps, so that it ends when the
            time does: what is left of it is spread over the limit, and `num_epochs` has no say in
            when the run ends. How many steps that makes depends on the machine, so such a run is
            not repeated bitwise.

        Raises
        ------
        FloatingPointError
            If a loss is not finite (see `allow_nonfinite`). The model then has the weights that
            gave that loss; `best_params` are of the last good evaluation.
        """
        if time_limit is not None:
            _number("Solver.train: time_limit", time_limit)
            if not time_limit > 0:
                raise ValueError(f"Solver.train: time_limit must be positive, got {time_limit!r}")
        elif paced:
            raise ValueError("Solver.train: paced needs a time_limit")
        clock = _Clock(time_limit)
        begun, counted = self.progress, sum(self.seconds.values())
        self._take_up()
        before = self._modes()
        if isinstance(self.model, nn.Layer) and not self.model.training:
            self.model.train()
        try:
            if self.steps == 0:
                self._save_checkpoint()
            with self._progress_bar() as bar:
                while (paced or self.steps < self.total_steps) and not clock.is_up():
                    if paced:
                        self._paced = begun + (1.0 - begun) * clock.done()
                    with clock.measured("step"):
                        self.step()
                    if self.steps == 1 or self.steps % self.steps_per_epoch == 0:
                        with clock.measured("evaluation"):
                            self.evaluate()
                    if self._checkpoint_is_due():
                        with clock.measured("checkpoint"):
                            self._save_checkpoint()
                    bar()
                if self._saved < self.steps:
                    self._save_checkpoint()
                if self._evaluated < self.steps:
                    # Not in the checkpoint: a run without a time limit has no such evaluation.
                    self.evaluate()
                    bar(0)
        finally:
            self._paced = None
            for layer, mode in before:
                layer.training = mode
            counted = sum(self.seconds.values()) - counted
            self.seconds["rest"] += clock.elapsed() - counted
        self._use_best()

    def step(self) -> float:
        """Make one update on the next minibatch, and return its loss."""
        lap = _Laps(self.seconds)
        at = self.steps
        if self._paced is not None:
            self.progress, at = self._paced, int(self._paced * self.total_steps)
        batch = self._order.next()
        X, y = self.X_train[batch], self.y_train[batch]
        lap("data")
        if self.augment is not None:
            moment: dict[str, Any] = {}
            if isinstance(self.augment, Augment | Stages):
                moment = {"progress": self.progress, "epoch": self.epoch, "indices": batch}
            X = self.augment(X, rng=self.rng, **moment)
            lap("augmentation")
        loss, grads = self._loss(X, y, lap)
        loss = float(loss)
        lr = self._base_lr * self.schedule(at) * self.lr_decay**self.epoch
        self.loss_history.append(loss)
        if not (self.allow_nonfinite or math.isfinite(loss)):
            raise FloatingPointError(
                f"Solver: the loss is {loss} in step {self.steps + 1} "
                f"(learning rate {lr:g}); a smaller learning rate or other starting weights may "
                "help, allow_nonfinite=True goes on"
            )
        self.optimizer.lr = lr
        self.optimizer.step(grads)
        self.steps += 1
        if self._paced is None:
            self.progress = min(self.steps / self.total_steps, 1.0)
        lap("update")
        return loss

    def evaluate(self) -> tuple[float, float]:
        """Take both accuracies, note them, keep the weights if they are the best so far.

        Returns
        -------
        tuple[float, float]
            Training and validation accuracy.
        """
        lap = _Laps(self.seconds)
        train = self.check_accuracy(self.X_train, self.y_train, self.num_train_samples)
        val = self.check_accuracy(self.X_val, self.y_val, self.num_val_samples)
        self.train_acc_history.append(train)
        self.val_acc_history.append(val)
        self._evaluated = self.steps
        if not val < self.best_val_acc:
            self.best_val_acc = val
            self.best_params, self._best_buffers = self._copies()
        lap("evaluation")
        return train, val

    def check_accuracy(
        self,
        X: Array,
        y: Array,
        num_samples: int | None = None,
        batch_size: int = 100,
        *,
        views: Callable[[Array], Iterable[Array]] | None = None,
    ) -> float:
        """The part of the examples that the model puts into their class, in inference mode.

        Parameters
        ----------
        X : ndarray, (N, ...)
            Examples.
        y : ndarray of int, (N,)
            Labels.
        num_samples : int, optional
            Take so many of them only, evenly spaced: the same ones each time.
        batch_size : int
            How many go through the model at once.
        views : callable, optional
            From a batch to several views of the same images, such as
            `cnnfast.data.augment.mirrored`: their scores are added up.

        Returns
        -------
        float
            Between 0 and 1.

        Raises
        ------
        ValueError
            If there is not one integer label for each example, or one that has no score.
        """
        X, y = np.asarray(X), np.asarray(y)
        name = next((name for name in ("y_train", "y_val") if y is getattr(self, name)), "y")
        _labels("check_accuracy", name, y)
        N = len(y)
        if len(X) != N:
            raise ValueError(f"check_accuracy: X has {len(X)} examples, y has {N}")
        if N == 0:
            raise ValueError("check_accuracy: there are no examples")
        _positive("batch_size", batch_size)
        _positive("num_samples", num_samples)
        if num_samples is not None and num_samples < N:
            some = np.arange(num_samples) * N // num_samples
            X, y, N = X[some], y[some], num_samples
        right = 0
        for start in range(0, N, batch_size):
            part = slice(start, start + batch_size)
            seen = [X[part]] if views is None else views(X[part])
            scores = np.asarray(sum(np.asarray(self._scores(view)) for view in seen))
            labels = y[part]
            if scores.ndim != 2 or len(scores) != len(labels):
                raise ValueError(
                    f"check_accuracy: the model's scores must have shape ({len(labels)}, classes), "
                    f"got {scores.shape}"
                )
            classes = scores.shape[1]
            outside = labels[(labels < 0) | (labels >= classes)]
            if outside.size:
                raise ValueError(
                    f"check_accuracy: {name} has the label {outside[0]}, "
                    f"the model has scores for 0 to {classes - 1}"
                )
            right += int(np.count_nonzero(scores.argmax(axis=1) == labels))
        return right / N

    def _loss(self, X: Array, y: Array, lap: _Laps) -> tuple[float, Mapping[str, Array]]:
        if self._criterion is not None:
            return loss_and_grads(self.model, self._criterion, self._cast(X), y, lap)
        with self.model.timed(lap) if isinstance(self.model, Classifier) else nullcontext():
            loss, grads = self.model.loss(X, y)
        lap("loss")
        return loss, grads

    def _scores(self, X: Array) -> Any:
        if self._criterion is None:
            return self.model.loss(X)
        with in_mode(self.model, training=False):
            return self.model.forward(self._cast(X))

    def _cast(self, X: Array) -> Array:
        """A batch in the dtype of the parameters: a float64 image must not slow a float32 net."""
        return X.astype(self._dtype, copy=False)

    # The weights: newest, best, set aside

    def _buffers(self) -> Mapping[str, Array]:
        return self.model.buffers if isinstance(self.model, nn.Layer) else {}

    def _copies(self) -> tuple[dict[str, Array], dict[str, Array]]:
        params, buffers = self.model.params, self._buffers()
        return (
            {name: namespace(a).asarray(a, copy=True) for name, a in params.items()},
            {name: namespace(a).asarray(a, copy=True) for name, a in buffers.items()},
        )

    def _write(self, params: Mapping[str, Array], buffers: Mapping[str, Array]) -> None:
        # In place, since the optimiser holds the same arrays.
        for live, values in ((self.model.params, params), (self._buffers(), buffers)):
            for name, value in values.items():
                live[name][...] = value

    def _use_best(self) -> None:
        if self.best_params:
            self._set_aside = self._copies()
            self._write(self.best_params, self._best_buffers)

    def _take_up(self) -> None:
        if self._set_aside is not None:
            self._write(*self._set_aside)
            self._set_aside = None

    def _modes(self) -> list[tuple[nn.Layer, bool]]:
        if not isinstance(self.model, nn.Layer):
            return []
        return [(layer, layer.training) for _, layer in self.model.named_layers()]

    # Checkpoints

    def _checkpoint_is_due(self) -> bool:
        every = self.checkpoint_every
        return self.steps % self.steps_per_epoch == 0 or (
            every is not None and self.steps % every == 0
        )

    def _comparable_settings(self) -> dict[str, Any]:
        """What must be the same in the run that goes on, in JSON's types."""
        names = getattr(self.optimizer, "hyperparameters", ())
        settings = {
            "update_rule": type(self.optimizer).__name__,
            "optim_config": {name: getattr(self.optimizer, name) for name in names},
            "batch_size": self._order.batch_size,
            "lr_decay": self.lr_decay,
            "schedule": _described(self.schedule),
            "augment": _described(self.augment),
            "training examples": len(self.y_train),
            "parameters": {name: list(p.shape) for name, p in self.model.params.items()},
        }
        plain: dict[str, Any] = json.loads(json.dumps(settings))
        return plain

    def _generators(self) -> list[np.random.Generator]:
        parts: list[Any] = [self.model]
        if isinstance(self.model, nn.Layer):
            parts = [layer for _, layer in self.model.named_layers()]
        held = (value for part in parts for value in getattr(part, "__dict__", {}).values())
        return [self.rng, *(g for g in held if isinstance(g, np.random.Generator))]

    def _save_checkpoint(self) -> None:
        self._saved = self.steps
        if self._checkpoint is None:
            return
        lap = _Laps(self.seconds)
        self._checkpoint.parent.mkdir(parents=True, exist_ok=True)
        checkpoints.write(
            self._checkpoint,
            {
                "settings": self._settings,
                "steps": self.steps,
                "progress": self.progress,
                "params": dict(self.model.params),
                "buffers": dict(self._buffers()),
                "optimizer": self.optimizer.state_dict(),
                "generators": [g.bit_generator.state for g in self._generators()],
                "order": self._order.order,
                "position": self._order.position,
                "loss_history": np.array(self.loss_history),
                "train_acc_history": np.array(self.train_acc_history),
                "val_acc_history": np.array(self.val_acc_history),
                "evaluated": self._evaluated,
                "best_val_acc": self.best_val_acc,
                "best_params": self.best_params,
                "best_buffers": self._best_buffers,
            },
        )
        lap("checkpoint")

    def _load_checkpoint(self, path: Path) -> None:
        # All of it is looked at before the model changes.
        saved = _Entries(path, checkpoints.read(path))
        settings = saved.mapping("settings")
        for name, ours in self._settings.items():
            if settings.get(name) != ours:
                raise CheckpointError(
                    f"{path} is of a run with {name} {settings.get(name)}, this one has {ours}"
                )
        steps = saved.count("steps")
        progress = saved.get("progress", (int, float), "a number")
        evaluated = saved.count("evaluated", most=steps)
        position = saved.count("position", most=self._order.batches_per_epoch)
        order = saved.get("order", np.ndarray, "an array")
        N = len(self.y_train)
        if (order.dtype, order.shape) != (np.int64, (N,)) or np.any(np.sort(order) != np.arange(N)):
            raise saved.wrong("order", f"is no order of {N} examples")
        losses, train, val = (
            saved.history(f"{name}_history") for name in ("loss", "train_acc", "val_acc")
        )
        if len(losses) < steps:
            raise saved.wrong("loss_history", f"has {len(losses)} losses of {steps} steps")
        if len(train) != len(val):
            raise saved.wrong("val_acc_history", f"has length {len(val)}, not {len(train)}")
        best = saved.get("best_val_acc", (int, float), "a number")
        params = saved.arrays("params", self.model.params)
        buffers = saved.arrays("buffers", self._buffers())
        evaluations = bool(saved.mapping("best_params"))
        best_params = saved.arrays("best_params", self.model.params if evaluations else {})
        best_buffers = saved.arrays("best_buffers", self._buffers() if evaluations else {})
        generators = self._generators()
        states = saved.generator_states("generators", generators)
        try:
            self.optimizer.load_state_dict(saved.mapping("optimizer"))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise saved.wrong("optimizer", f"does not fit ({error})") from error

        self._write(params, buffers)
        for generator, state in zip(generators, states, strict=True):
            generator.bit_generator.state = state
        self._order.order, self._order.position = order, position
        self.loss_history, self.train_acc_history, self.val_acc_history = losses, train, val
        self._evaluated = evaluated
        self.best_val_acc = float(best)
        self.best_params, self._best_buffers = best_params, best_buffers
        self.steps = self.resumed_from = self._saved = steps
        self.progress = float(progress)

    @contextmanager
    def _progress_bar(self) -> Iterator[Callable[..., None]]:
        """A function to call after each step."""
        if not self._shows_progress:
            yield lambda steps=1: None
            return
        try:
            from tqdm import tqdm
        except ImportError as error:
            raise ImportError(
                "Solver: progress=True needs tqdm: pip install 'cnnfast[cli]'"
            ) from error
        with tqdm(total=self.total_steps, initial=self.steps, unit="step") as bar:

            def update(steps: int = 1) -> None:
                epoch = min(self.epoch + 1, self.num_epochs)
                bar.set_description(f"epoch {epoch}/{self.num_epochs}", refresh=False)
                figures = {"loss": f"{self.loss_history[-1]:.3f}"}
                if self.val_acc_history:
                    figures["val"] = f"{self.val_acc_history[-1]:.1%}"
                bar.set_postfix(figures, refresh=steps == 0)
                bar.update(steps)

            yield update


class _Entries:
    """The entries of a checkpoint; one that is missing or wrong is a `CheckpointError`."""

    def __init__(self, path: Path, tree: Mapping[str, Any]) -> None:
        self._path = path
        self._tree = tree

    def wrong(self, name: str, what: str) -> CheckpointError:
        return CheckpointError(f"{self._path}: the entry {name!r} {what}")

    def get(self, name: str, kind: type | tuple[type, ...], what: str) -> Any:
        if name not in self._tree:
            raise self.wrong(name, "is missing")
        value = self._tree[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.wrong(name, f"must be {what}, not {_shortened(value)}")
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        value: dict[str, Any] = self.get(name, dict, "a dict")
        return value

    def count(self, name: str, most: float = math.inf) -> int:
        value: int = self.get(name, int, "an integer")
        if not 0 <= value <= most:
            limit = "at least 0" if most == math.inf else f"0 to {most}"
            raise self.wrong(name, f"must be {limit}, not {_shortened(value)}")
        return value

    def history(self, name: str) -> list[float]:
        array = self.get(name, np.ndarray, "an array")
        if array.ndim != 1 or array.dtype != np.float64:
            raise self.wrong(name, f"must be a list of floats, not {_shortened(array)}")
        values: list[float] = array.tolist()
        return values

    def arrays(self, name: str, like: Mapping[str, Array]) -> dict[str, Array]:
        """Arrays of the same names, shapes and dtypes as `like`."""
        found = self.mapping(name)
        if set(found) != set(like):
            raise self.wrong(name, f"must have {sorted(like)}, not {sorted(found)}")
        for key, ours in like.items():
            theirs = found[key]
            if (
                not isinstance(theirs, np.ndarray)
                or theirs.shape != ours.shape
                or theirs.dtype != ours.dtype
            ):
                raise self.wrong(
                    f"{name}/{key}", f"must be {_shortened(ours)}, not {_shortened(theirs)}"
                )
        return found

    def generator_states(self, name: str, generators: list[np.random.Generator]) -> list[Any]:
        states: list[Any] = self.get(name, list, "a list")
        kinds = [type(g.bit_generator).__name__ for g in generators]
        theirs = [s.get("bit_generator") if isinstance(s, dict) else None for s in states]
        if theirs != kinds:
            raise CheckpointError(
                f"{self._path} is of a run with other random generators than {kinds}"
            )
        for generator, state in zip(generators, states, strict=True):
            try:
                # On another one, so that an error changes nothing.
                type(generator.bit_generator)().state = state
            except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
                raise self.wrong(name, f"holds no state of a generator ({error!r})") from error
        return states


def _shortened(value: Any) -> str:
    """A value, or what sort of array it is, in one line."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} of shape {value.shape}"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


_PARTS = (
    "data", "augmentation", "forward", "loss", "backward", "update", "evaluation", "checkpoint",
    "rest",
)  # fmt: skip


class _Laps:
    """Adds the time since it was made, or last called, to that of a part of the run."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds
        self._since = time.perf_counter()

    def __call__(self, part: str) -> None:
        now = time.perf_counter()
        self._seconds[part] += now - self._since
        self._since = now


class _Clock:
    """Says when there is no time left for another step and what must come after it."""

    def __init__(self, limit: float | None) -> None:
        self._start = time.perf_counter()
        self._limit = limit
        self._last: dict[str, float] = {}

    @contextmanager
    def measured(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._last[what] = time.perf_counter() - began

    def elapsed(self) -> float:
        return time.perf_counter() - self._start

    def is_up(self) -> bool:
        if self._limit is None or not self._last:
            return False
        return self.elapsed() + sum(self._last.values()) > self._limit

    def done(self) -> float:
        """How much of the time for steps is over, from 0 to 1."""
        for_steps = 0.0 if self._limit is None else self._limit - sum(self._last.values())
        return min(self.elapsed() / for_steps, 1.0) if for_steps > 0 else 1.0


def _positive(name: str, count: Any) -> None:
    if count is None:
        return
    if isinstance(count, bool) or not isinstance(count, int | np.integer):
        raise TypeError(f"Solver: {name} must be an integer, got {count!r}")
    if count < 1:
        raise ValueError(f"Solver: {name} must be at least 1, got {count}")


def _number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} must be a number, got {value!r}")


def _labels(who: str, name: str, y: Array) -> None:
    if y.ndim != 1:
        raise ValueError(
            f"{who}: {name} must hold one label for each example, shape (N,), got shape {y.shape}"
        )
    if y.size and y.dtype.kind not in "iub":
        raise ValueError(f"{who}: {name} must hold integer labels, got dtype {y.dtype}")


def _examples(data: Mapping[str, Array], part: str) -> tuple[Array, Array]:
    for name in (f"X_{part}", f"y_{part}"):
        if name not in data:
            raise ValueError(f"Solver: data has no {name!r}, only {sorted(data)}")
    X, y = np.asarray(data[f"X_{part}"]), np.asarray(data[f"y_{part}"])
    _labels("Solver", f"y_{part}", y)
    if len(X) != len(y):
        raise ValueError(f"Solver: X_{part} has {len(X)} examples, y_{part} has {len(y)}")
    if len(y) == 0:
        raise ValueError(f"Solver: X_{part} is empty")
    return X, y


def _criterion(model: Any, loss: nn.Loss | None) -> nn.Loss | None:
    """The loss to train a layer with, or None where the model has its own."""
    own = callable(getattr(model, "loss", None))
    if own and loss is not None:
        raise ValueError(
            f"Solver: {type(model).__name__} has its own loss, so loss= must be left out"
        )
    if own:
        return None
    if not isinstance(model, nn.Layer):
        raise TypeError(
            f"Solver: model must be a layer or have loss(X, y), got {type(model).__name__}"
        )
    return nn.CrossEntropyLoss() if loss is None else loss


def _optimizer(model: Any, rule: str | Callable[..., Any], config: Mapping[str, Any]) -> Any:
    if isinstance(rule, str):
        if rule not in _RULES:
            raise ValueError(f"Solver: update_rule must be one of {list(_RULES)}, got {rule!r}")
        rule = _RULES[rule]
    config = dict(config)
    if "learning_rate" in config:
        if "lr" in config:
            raise ValueError("Solver: optim_config has both lr and learning_rate")
        config["lr"] = config.pop("learning_rate")
    known = getattr(rule.func if isinstance(rule, partial) else rule, "hyperparameters", None)
    unknown = [] if known is None else [name for name in config if name not in known]
    if unknown:
        raise ValueError(
            f"Solver: optim_config has unknown {unknown}; it takes {list(known or ())}"
        )
    return rule(model.params, **config)


def _described(setting: Any) -> str:
    """Something that tells two settings apart and is the same in another process."""
    text = repr(setting)
    if " at 0x" in text:
        text = getattr(setting, "__qualname__", type(setting).__qualname__)
    return text
