"""The course's ``optim``: update rules ``rule(w, dw, config=None) -> (next_w, config)``.

`config` holds the settings, by the course's names, and what a rule remembers from step to step.
What is missing is set to the course's defaults there. w and dw stay as they are, and next_w has the
dtype of w.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnfast.training import SGD, Adam, Optimizer, RMSprop

__all__ = ["adam", "rmsprop", "sgd", "sgd_momentum"]

Array = NDArray[Any]
Config = dict[str, Any]


class Momentum(Optimizer):
    r"""The course's momentum, which has the learning rate in the velocity.

    .. math:: v_t = \mu v_{t-1} - \eta g_t, \qquad p_t = p_{t-1} + v_t

    `cnnfast.training.SGD`, as PyTorch, multiplies by the rate after that, so that the two part ways
    when it changes.
    """

    hyperparameters = ("lr", "momentum")

    def __init__(self, params: Mapping[str, Array], lr: float = 1e-2, momentum: float = 0.9):
        super().__init__(params, lr)
        self.momentum = momentum
        self._new_state("velocity")

    def _update(self, name: str, p: Array, g: Array) -> None:
        velocity, step = self._state["velocity"][name], self._work(p, 0)
        velocity *= self.momentum
        np.multiply(g, self.lr, out=step)
        velocity -= step
        p += velocity


@dataclass(frozen=True)
class Rule:
    """An update rule of the course in the words of an optimiser.

    `make` takes parameters, then the `settings`, which have the course's names and defaults.
    `state` is the optimiser's, by the course's names, and `counts` whether the course keeps the
    number of steps, t.
    """

    make: Callable[..., Optimizer]
    settings: Mapping[str, float]
    state: Mapping[str, str] = field(default_factory=dict)
    counts: bool = False


RULES = {
    "sgd": Rule(SGD, {"learning_rate": 1e-2}),
    "sgd_momentum": Rule(
        Momentum, {"learning_rate": 1e-2, "momentum": 0.9}, {"velocity": "velocity"}
    ),
    "rmsprop": Rule(
        RMSprop,
        {"learning_rate": 1e-2, "decay_rate": 0.99, "epsilon": 1e-8},
        {"cache": "square_avg"},
    ),
    "adam": Rule(
        lambda params, lr, beta1, beta2, eps: Adam(params, lr, (beta1, beta2), eps),
        {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8},
        {"m": "exp_avg", "v": "exp_avg_sq"},
        counts=True,
    ),
}


def sgd(w: Array, dw: Array, config: Config | None = None) -> tuple[Array, Config]:
    """``w - learning_rate * dw``, with learning_rate 1e-2.

    Examples
    --------
    >>> import numpy as np
    >>> sgd(np.array([1.0]), np.array([2.0]), {"learning_rate": 0.1})
    (array([0.8]), {'learning_rate': 0.1})
    """
    return _step("sgd", w, dw, config)


def sgd_momentum(w: Array, dw: Array, config: Config | None = None) -> tuple[Array, Config]:
    """``velocity = momentum * velocity - learning_rate * dw``, and ``w + velocity``.

    Defaults are learning_rate 1e-2, momentum 0.9, velocity 0.
    """
    return _step("sgd_momentum", w, dw, config)


def rmsprop(w: Array, dw: Array, config: Config | None = None) -> tuple[Array, Config]:
    """``cache = decay_rate * cache + (1 - decay_rate) * dw**2``, and ``w - learning_rate * dw /
    (sqrt(cache) + epsilon)``.

    Defaults are learning_rate 1e-2, decay_rate 0.99, epsilon 1e-8, cache 0. See
    `cnnfast.training.RMSprop`.
    """
    return _step("rmsprop", w, dw, config)


def adam(w: Array, dw: Array, config: Config | None = None) -> tuple[Array, Config]:
    """Averages m of dw and v of ``dw**2``, unbiased by the number t of steps, as in Adam.

    Defaults are learning_rate 1e-3, beta1 0.9, beta2 0.999, epsilon 1e-8; m, v and t 0. See
    `cnnfast.training.Adam`. t is counted before it is used.
    """
    return _step("adam", w, dw, config)


def _step(name: str, w: Array, dw: Array, config: Config | None) -> tuple[Array, Config]:
    rule = RULES[name]
    config = {} if config is None else config
    for setting, default in rule.settings.items():
        config.setdefault(setting, default)
    w = np.asarray(w)
    if w.dtype.kind not in "fiub":
        raise TypeError(f"{name}: w has dtype {w.dtype}; real numbers are needed")
    next_w = np.array(w, w.dtype if w.dtype.kind == "f" else np.float64, order="C")
    optimizer = rule.make({"w": next_w}, *(config[setting] for setting in rule.settings))
    past = optimizer.state_dict()
    past["steps"] = config.get("t", 0) if rule.counts else 0
    for key, slot in rule.state.items():
        if config.get(key) is not None:
            past["state"][slot] = {"w": config[key]}
    optimizer.load_state_dict(past)
    optimizer.step({"w": dw})
    present = optimizer.state_dict()
    config.update({key: present["state"][slot]["w"] for key, slot in rule.state.items()})
    if rule.counts:
        config["t"] = optimizer.steps
    return next_w, config
