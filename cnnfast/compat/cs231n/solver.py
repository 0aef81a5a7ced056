"""The course's ``solver``."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnfast import training
from cnnfast.compat.cs231n.chance import global_rng
from cnnfast.compat.cs231n.optim import RULES

__all__ = ["Solver"]

Array = NDArray[Any]


class Solver(training.Solver):
    """`cnnfast.training.Solver` with the course's arguments and its log.

    Parameters
    ----------
    model : object
        Has `params`, a dict of arrays, ``loss(X)`` that gives scores and ``loss(X, y)`` that gives
        the loss and a dict of gradients: the course's models. Parameters are updated in place.
    data : dict
        ``X_train, y_train, X_val, y_val``.
    update_rule : str
        A function of `optim`: "sgd", "sgd_momentum", "rmsprop" or "adam".
    optim_config : dict
        Settings of that rule, by the course's names.
    lr_decay : float
        Factor of the learning rate after each epoch.
    batch_size, num_epochs : int
        A batch's examples, and how often to go through all of them.
    num_train_samples, num_val_samples : int or None
        How many examples the accuracies are taken from; None for all.
    checkpoint_name : str, optional
        With each accuracy, the run so far is pickled to ``<checkpoint_name>_epoch_<epoch>.pkl``.
    print_every : int
        Print the loss each so many steps.
    verbose : bool
        Whether to print at all.

    Attributes
    ----------
    loss_history, train_acc_history, val_acc_history, best_val_acc, best_params
        As of `cnnfast.training.Solver`.

    Notes
    -----
    The model has the best parameters when `train` ends. A loss that is not finite does not stop it,
    as in the course. Called once more, `train` goes on for `num_epochs` more, from the newest
    parameters. An array that is put into the model's `params` meanwhile is taken over.
    """

    def __init__(
        self,
        model: Any,
        data: Mapping[str, Array],
        *,
        update_rule: str = "sgd",
        optim_config: Mapping[str, float] | None = None,
        lr_decay: float = 1.0,
        batch_size: int = 100,
        num_epochs: int = 10,
        num_train_samples: int | None = 1000,
        num_val_samples: int | None = None,
        checkpoint_name: str | None = None,
        print_every: int = 10,
        verbose: bool = True,
    ) -> None:
        if print_every < 1:
            raise ValueError(f"Solver: print_every must be at least 1, got {print_every}")
        self.update_rule = update_rule
        self.optim_config = dict(optim_config or {})
        self.batch_size = batch_size
        self.checkpoint_name = checkpoint_name
        self.print_every = print_every
        self.verbose = verbose
        super().__init__(
            model,
            data,
            update_rule=lambda _: _Update(model, update_rule, self.optim_config),
            lr_decay=lr_decay,
            batch_size=batch_size,
            num_epochs=num_epochs,
            num_train_samples=num_train_samples,
            num_val_samples=num_val_samples,
            rng=global_rng(),
            allow_nonfinite=True,
        )

    def train(self, time_limit: float | None = None, *, paced: bool = False) -> None:
        """`cnnfast.training.Solver.train`; after the last epoch, for as many epochs again."""
        if self.steps >= self.total_steps:
            self.total_steps += self.num_epochs * self.steps_per_epoch
        super().train(time_limit, paced=paced)

    def step(self) -> float:
        loss = super().step()
        if self.verbose and (self.steps - 1) % self.print_every == 0:
            print(f"(Iteration {self.steps} / {self.total_steps}) loss: {loss:f}")
        return loss

    def evaluate(self) -> tuple[float, float]:
        train, val = super().evaluate()
        if self.checkpoint_name is not None:
            self._pickle(Path(f"{self.checkpoint_name}_epoch_{self.epoch}.pkl"))
        if self.verbose:
            epoch = f"(Epoch {self.epoch} / {self.num_epochs})"
            print(f"{epoch} train acc: {train:f}; val_acc: {val:f}")
        return train, val

    def _pickle(self, path: Path) -> None:
        names = (
            *("model", "update_rule", "lr_decay", "optim_config", "batch_size"),
            *("num_train_samples", "num_val_samples", "epoch"),
            *("loss_history", "train_acc_history", "val_acc_history"),
        )
        # As a whole before anything is written: a model may hold what cannot be pickled.
        data = pickle.dumps({name: getattr(self, name) for name in names})
        if self.verbose:
            print(f'Saving checkpoint to "{path}"')
        path.write_bytes(data)


class _Update:
    """An update rule of `optim` on all parameters of a model, in place.

    The course's affine weights are transposed views of a `cnnfast.nn` layer's. An update goes
    element by element, so it may as well see the layer's own array, in the order of its memory.
    """

    def __init__(self, model: Any, name: str, config: Mapping[str, float]) -> None:
        if name not in RULES:
            raise ValueError(f"Solver: update_rule must be one of {list(RULES)}, not {name!r}")
        settings = {**RULES[name].settings, **config}
        unknown = [setting for setting in config if setting not in RULES[name].settings]
        if unknown:
            known = list(RULES[name].settings)
            raise ValueError(f"Solver: optim_config has unknown {unknown}; {name} takes {known}")
        self._model = model
        self._params = dict(model.params)
        self._turned = {
            name: p.flags.f_contiguous and not p.flags.c_contiguous
            for name, p in self._params.items()
        }
        self._optimizer = RULES[name].make(self._in_order(self._params), *settings.values())

    @property
    def lr(self) -> float:
        return self._optimizer.lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._optimizer.lr = value

    def step(self, grads: Mapping[str, Array]) -> None:
        params = self._model.params
        for name, own in self._params.items():
            if not np.may_share_memory(params[name], own):
                own[...] = params[name]
                params[name] = own
        self._optimizer.step(self._in_order(grads))

    def _in_order(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        return {
            name: np.transpose(arrays[name]) if turned else arrays[name]
            for name, turned in self._turned.items()
        }
