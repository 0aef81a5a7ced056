"""Learning-rate schedules: small frozen objects that map a step to a factor of the base rate.

Step 0 is the first update. `Solver` multiplies its base learning rate with the factor before each
step; in a loop of one's own:

>>> schedule = Cosine(total_steps=4)
>>> [round(schedule(t), 3) for t in range(5)]
[1.0, 0.854, 0.5, 0.146, 0.0]

A schedule holds no position, so resuming needs no state of it. Any function of the step serves
as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

__all__ = ["Constant", "Cosine", "OneCycle", "Schedule", "Step", "Triangular", "by_name"]

Schedule = Callable[[int], float]


@dataclass(frozen=True, slots=True)
class Constant:
    """Factor 1 at every step."""

    def __call__(self, step: int) -> float:
        return 1.0


@dataclass(frozen=True, slots=True)
class Step:
    r"""Times `gamma` every `step_size` steps: :math:`\gamma^{\lfloor t / s \rfloor}`.

    ``torch.optim.lr_scheduler.StepLR``.

    Parameters
    ----------
    step_size : int
        :math:`s`, in steps (not epochs).
    gamma : float
        :math:`\gamma`.

    Examples
    --------
    >>> schedule = Step(step_size=2, gamma=0.5)
    >>> [schedule(t) for t in range(5)]
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """

    step_size: int
    gamma: float = 0.1

    def __post_init__(self) -> None:
        _at_least_one("Step", "step_size", self.step_size)
        _at_least_zero("Step", "gamma", self.gamma)

    def __call__(self, step: int) -> float:
        return float(self.gamma ** (step // self.step_size))


@dataclass(frozen=True, slots=True)
class Cosine:
    r"""Half a cosine from 1 down to `final`, after a linear warm-up if one is asked for.

    With :math:`w` warm-up steps of :math:`T` and :math:`u = \min(1, (t - w) / (T - w))`,

    .. math::
        f(t) = \begin{cases} (t + 1) / (w + 1) & t < w \\
               f_T + (1 - f_T) (1 + \cos \pi u) / 2 & \text{otherwise.} \end{cases}

    Without warm-up this is ``CosineAnnealingLR`` with ``T_max = total_steps`` and
    ``eta_min = final * lr``.

    Parameters
    ----------
    total_steps : int
        :math:`T`; the factor stays `final` from there on.
    warmup_steps : int
        :math:`w`, less than `total_steps`.
    final : float
        :math:`f_T`.

    References
    ----------
    Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017.
    """

    total_steps: int
    warmup_steps: int = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        _at_least_one("Cosine", "total_steps", self.total_steps)
        if not 0 <= self.warmup_steps < self.total_steps:
            raise ValueError(
                "Cosine: warmup_steps must be at least 0 and less than total_steps "
                f"({self.total_steps}), got {self.warmup_steps}"
            )
        _at_least_zero("Cosine", "final", self.final)

    def __call__(self, step: int) -> float:
        w = self.warmup_steps
        if step < w:
            return (step + 1) / (w + 1)
        return _anneal("cos", 1.0, self.final, (step - w) / (self.total_steps - w))


@dataclass(frozen=True, slots=True)
class OneCycle:
    r"""Up from :math:`1/d` to 1, then down to :math:`1/(d D)`: ``OneCycleLR``.

    The base learning rate is PyTorch's ``max_lr``. The rise takes the steps up to
    :math:`p T - 1`, the fall the rest up to :math:`T - 1`; each is half a cosine, or a line.

    Parameters
    ----------
    total_steps : int
        :math:`T`; later steps keep the last factor.
    pct_start : float
        :math:`p`, the part of the cycle that rises, in [0, 1].
    anneal_strategy : {"cos", "linear"}
        The shape of both parts.
    div_factor : float
        :math:`d`.
    final_div_factor : float
        :math:`D`.

    References
    ----------
    Smith and Topin, "Super-convergence", 2018.
    """

    total_steps: int
    pct_start: float = 0.3
    anneal_strategy: Literal["cos", "linear"] = "cos"
    div_factor: float = 25.0
    final_div_factor: float = 1e4

    def __post_init__(self) -> None:
        _at_least_one("OneCycle", "total_steps", self.total_steps)
        _fraction("OneCycle", "pct_start", self.pct_start)
        if self.anneal_strategy not in ("cos", "linear"):
            raise ValueError(
                f'OneCycle: anneal_strategy must be "cos" or "linear", got {self.anneal_strategy!r}'
            )
        for name in ("div_factor", "final_div_factor"):
            if not getattr(self, name) > 0:
                raise ValueError(f"OneCycle: {name} must be positive, got {getattr(self, name)}")

    def __call__(self, step: int) -> float:
        start = 1.0 / self.div_factor
        top = self.pct_start * self.total_steps - 1.0
        last = self.total_steps - 1.0
        if step <= top:
            return _anneal(self.anneal_strategy, start, 1.0, step / top if top > 0 else 1.0)
        end = start / self.final_div_factor
        done = (step - top) / (last - top) if last > top else 1.0
        return _anneal(self.anneal_strategy, 1.0, end, done)


@dataclass(frozen=True, slots=True)
class Triangular:
    r"""A line up from 0 to 1 at the fraction `peak` of the steps, and a line down to 0 at the end.

    .. math:: f(t) = \min\left(\frac{t + 1}{p T}, \frac{T - t}{(1 - p) T}, 1\right)

    The rise counts from 1, so that the first step already moves.

    Parameters
    ----------
    total_steps : int
        :math:`T`; the factor is 0 from there on.
    peak : float
        :math:`p`, in [0, 1].

    Examples
    --------
    >>> schedule = Triangular(total_steps=5, peak=0.4)
    >>> [round(schedule(t), 3) for t in range(6)]
    [0.5, 1.0, 1.0, 0.667, 0.333, 0.0]
    """

    total_steps: int
    peak: float = 0.2

    def __post_init__(self) -> None:
        _at_least_one("Triangular", "total_steps", self.total_steps)
        _fraction("Triangular", "peak", self.peak)

    def __call__(self, step: int) -> float:
        rise = self.peak * self.total_steps
        fall = self.total_steps - rise
        up = (step + 1) / rise if rise > 0 else 1.0
        down = max(0.0, self.total_steps - step) / fall if fall > 0 else 1.0
        return min(up, down, 1.0)


def by_name(name: str, total_steps: int) -> Schedule:
    """The schedule of that name over so many steps, with its default shape.

    Parameters
    ----------
    name : {"constant", "cosine", "one_cycle", "triangular"}
        `Step` has no default step size, so it is made by hand.
    total_steps : int
        Length of the run.
    """
    if name == "constant":
        return Constant()
    if name in _OVER_A_RUN:
        return _OVER_A_RUN[name](total_steps)
    raise ValueError(f"schedule must be one of {['constant', *_OVER_A_RUN]}, got {name!r}")


_OVER_A_RUN: dict[str, Callable[[int], Schedule]] = {
    "cosine": Cosine,
    "one_cycle": OneCycle,
    "triangular": Triangular,
}


def _anneal(strategy: str, start: float, end: float, done: float) -> float:
    done = min(max(done, 0.0), 1.0)
    if strategy == "linear":
        return start + (end - start) * done
    return end + (start - end) * (1.0 + math.cos(math.pi * done)) / 2.0


def _at_least_one(who: str, name: str, value: int) -> None:
    if not value >= 1:
        raise ValueError(f"{who}: {name} must be at least 1, got {value}")


def _at_least_zero(who: str, name: str, value: float) -> None:
    if not value >= 0:
        raise ValueError(f"{who}: {name} must be at least 0, got {value}")


def _fraction(who: str, name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{who}: {name} must be in [0, 1], got {value}")
