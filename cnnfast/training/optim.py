"""Optimisers with PyTorch's argument names, defaults and update formulas.

An optimiser holds the live arrays of a network and changes them in place:

>>> import numpy as np
>>> w = np.ones(3)
>>> optimizer = SGD({"w": w}, lr=0.1, momentum=0.9)
>>> optimizer.step({"w": np.array([1.0, 2.0, 3.0])})
>>> w
array([0.9, 0.8, 0.7])
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cnnfast import fused

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "RMSprop"]

Array = NDArray[Any]


class Optimizer:
    """What every optimiser shares: the parameters, the step counter, the state.

    Subclasses name their hyperparameters in `hyperparameters` and write `_update`.

    Parameters
    ----------
    params : Mapping[str, ndarray]
        The arrays to train, by name. They are updated in place, so they must be the network's
        own (`layer.params`), writable and of a real floating dtype.
    lr : float
        Learning rate, at least 0.

    Attributes
    ----------
    lr : float
        The learning rate of the next step; may be set at any time.
    steps : int
        How many steps have been taken.
    """

    hyperparameters: ClassVar[tuple[str, ...]] = ("lr",)

    def __init__(self, params: Mapping[str, Array], lr: float) -> None:
        self.params = _checked_params(type(self).__name__, params)
        self.lr = lr
        self.steps = 0
        self._state: dict[str, dict[str, Array]] = {}
        # One scratch array serves every parameter of a dtype: steps then allocate nothing.
        largest: dict[np.dtype[Any], int] = {}
        for p in self.params.values():
            largest[p.dtype] = max(largest.get(p.dtype, 0), p.size)
        self._scratch = {dtype: np.empty((2, size), dtype) for dtype, size in largest.items()}

    @property
    def lr(self) -> float:
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr = _at_least_zero(type(self).__name__, "lr", value)

    def step(self, grads: Mapping[str, Array]) -> None:
        """Update every parameter from its gradient.

        Parameters
        ----------
        grads : Mapping[str, ndarray]
            A gradient for each parameter, of the parameter's shape. Not changed.

        Raises
        ------
        ValueError
            If a gradient is missing, belongs to no parameter, or has another shape.
        """
        who = type(self).__name__
        _same_names(f"{who}.step", "grads", grads, self.params)
        # Everything is checked before anything changes: a bad call leaves no half-made step.
        checked = {}
        for name, p in self.params.items():
            g = np.asarray(grads[name])
            if g.shape != p.shape:
                raise ValueError(
                    f"{who}.step: grads[{name!r}] has shape {g.shape}, its parameter {p.shape}"
                )
            if g.dtype.kind not in "fiub":
                raise TypeError(f"{who}.step: grads[{name!r}] must be real, got dtype {g.dtype}")
            checked[name] = g
        self.steps += 1
        for name, p in self.params.items():
            self._update(name, p, checked[name])

    def _update(self, name: str, p: Array, g: Array) -> None:
        raise NotImplementedError

    def _new_state(self, *slots: str) -> None:
        for slot in slots:
            self._state[slot] = {name: np.zeros_like(p) for name, p in self.params.items()}

    def _work(self, p: Array, which: int) -> Array:
        """Scratch of the shape and dtype of `p`; two are to be had, 0 and 1."""
        return self._scratch[p.dtype][which, : p.size].reshape(p.shape)

    def _decayed(self, p: Array, g: Array, weight_decay: float) -> Array:
        """The gradient with its L2 penalty added; scratch 0 holds it if there is one."""
        if weight_decay == 0.0:
            return g
        out = self._work(p, 0)
        np.multiply(p, weight_decay, out=out)
        out += g
        return out

    @property
    def state(self) -> dict[str, dict[str, Array]]:
        """The live arrays by slot, such as ``"exp_avg"``, and parameter; to be written to as well.

        With `steps` they are all that an optimiser remembers; `state_dict` has copies.
        """
        return self._state

    def state_dict(self) -> dict[str, Any]:
        """All that a later `load_state_dict` needs to go on bitwise: copies, not views.

        Returns
        -------
        dict
            ``"optimizer"`` (the class's name), ``"steps"``, ``"hyper"`` (name to value) and
            ``"state"`` (slot, such as ``"exp_avg"``, to a dict of parameter name to array).
        """
        return {
            "optimizer": type(self).__name__,
            "steps": self.steps,
            "hyper": {name: getattr(self, name) for name in self.hyperparameters},
            "state": {
                slot: {name: a.copy() for name, a in arrays.items()}
                for slot, arrays in self._state.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` of an optimiser of the same class and parameters gave.

        Raises
        ------
        ValueError
            If it came from another class, or its names or shapes are not this optimiser's.
        """
        who = type(self).__name__
        if state.get("optimizer") != who:
            raise ValueError(f"{who}.load_state_dict: state of {state.get('optimizer')!r}")
        where = f"{who}.load_state_dict"
        _same_names(where, "hyper", state["hyper"], dict.fromkeys(self.hyperparameters))
        steps = state["steps"]
        if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or steps < 0:
            raise ValueError(f"{where}: steps must be an integer of at least 0, got {steps!r}")
        fresh = type(self)(self.params, **state["hyper"])
        _same_names(where, "state", state["state"], fresh._state)
        for slot, arrays in state["state"].items():
            _same_names(where, slot, arrays, self.params)
            for name, a in arrays.items():
                target = fresh._state[slot][name]
                if np.shape(a) != target.shape:
                    raise ValueError(
                        f"{where}: {slot}[{name!r}] has shape {np.shape(a)}, "
                        f"its parameter {target.shape}"
                    )
                np.copyto(target, a)
        fresh.steps = int(steps)
        self.__dict__.update(fresh.__dict__)

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.hyperparameters)
        return f"{type(self).__name__}({len(self.params)} params, {settings})"


class SGD(Optimizer):
    r"""Stochastic gradient descent with momentum, as ``torch.optim.SGD``.

    With :math:`g` the gradient plus ``weight_decay`` times the parameter, and
    :math:`v_1 = g_1`,

    .. math:: v_t = \mu v_{t-1} + (1 - d) g_t, \qquad p_t = p_{t-1} - \eta v_t

    and with Nesterov's momentum :math:`p_t = p_{t-1} - \eta (g_t + \mu v_t)`.

    Parameters
    ----------
    params : Mapping[str, ndarray]
        The arrays to train, by name; updated in place.
    lr : float
        Learning rate :math:`\eta`.
    momentum : float
        :math:`\mu`. 0 keeps no buffer.
    dampening : float
        :math:`d`; not applied in the first step.
    weight_decay : float
        L2 penalty.
    nesterov : bool
        Needs a momentum and no dampening.

    References
    ----------
    Sutskever et al., "On the importance of initialization and momentum in deep learning", 2013.
    """

    hyperparameters = ("lr", "momentum", "dampening", "weight_decay", "nesterov")

    def __init__(
        self,
        params: Mapping[str, Array],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(params, lr)
        self.momentum = _at_least_zero("SGD", "momentum", momentum)
        self.dampening = _number("SGD", "dampening", dampening)
        self.weight_decay = _at_least_zero("SGD", "weight_decay", weight_decay)
        self.nesterov = bool(nesterov)
        if self.nesterov and (self.momentum == 0.0 or self.dampening != 0.0):
            raise ValueError(
                "SGD: nesterov needs momentum > 0 and dampening 0, "
                f"got momentum={momentum}, dampening={dampening}"
            )
        if self.momentum:
            self._new_state("momentum_buffer")

    def _update(self, name: str, p: Array, g: Array) -> None:
        buffer = self._state["momentum_buffer"][name] if self.momentum else None
        settings = (self.momentum, self.dampening, self.weight_decay, self.nesterov)
        if fused.update("SgdUpdate", (g, p, buffer), self.steps, self.lr, *settings):
            return
        g = self._decayed(p, g, self.weight_decay)
        scaled = self._work(p, 1)
        if self.momentum:
            v = self._state["momentum_buffer"][name]
            if self.steps == 1:
                np.copyto(v, g)
            else:
                v *= self.momentum
                np.multiply(g, 1.0 - self.dampening, out=scaled)
                v += scaled
            if self.nesterov:
                np.multiply(v, self.momentum, out=scaled)
                scaled += g
                g = scaled
            else:
                g = v
        np.multiply(g, self.lr, out=scaled)
        p -= scaled


class RMSprop(Optimizer):
    r"""Gradients divided by a running root mean square, as ``torch.optim.RMSprop``.

    .. math::
        s_t &= \alpha s_{t-1} + (1 - \alpha) g_t^2 \\
        p_t &= p_{t-1} - \eta \, g_t / (\sqrt{s_t} + \epsilon)

    ``centered`` subtracts the square of the running mean of :math:`g` from :math:`s_t` under the
    root; ``momentum`` sums the quotients in a buffer as SGD does.

    Parameters
    ----------
    params : Mapping[str, ndarray]
        The arrays to train, by name; updated in place.
    lr : float
        Learning rate :math:`\eta`.
    alpha : float
        Smoothing constant.
    eps : float
        Added outside the root.
    weight_decay : float
        L2 penalty.
    momentum : float
        Momentum of the quotients.
    centered : bool
        Divide by the standard deviation instead of the root mean square.

    References
    ----------
    Hinton, "Neural Networks for Machine Learning", lecture 6e, 2012.
    """

    hyperparameters = ("lr", "alpha", "eps", "weight_decay", "momentum", "centered")

    def __init__(
        self,
        params: Mapping[str, Array],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
    ) -> None:
        super().__init__(params, lr)
        self.alpha = _at_least_zero("RMSprop", "alpha", alpha)
        self.eps = _at_least_zero("RMSprop", "eps", eps)
        self.weight_decay = _at_least_zero("RMSprop", "weight_decay", weight_decay)
        self.momentum = _at_least_zero("RMSprop", "momentum", momentum)
        self.centered = bool(centered)
        self._new_state("square_avg")
        if self.momentum:
            self._new_state("momentum_buffer")
        if self.centered:
            self._new_state("grad_avg")

    def _update(self, name: str, p: Array, g: Array) -> None:
        s = self._state["square_avg"][name]
        average = self._state["grad_avg"][name] if self.centered else None
        buffer = self._state["momentum_buffer"][name] if self.momentum else None
        settings = (self.lr, self.alpha, self.eps, self.weight_decay, self.momentum)
        if fused.update("RmspropUpdate", (g, p, s, average, buffer), *settings):
            return
        g = self._decayed(p, g, self.weight_decay)
        work = self._work(p, 1)
        _average(s, g, self.alpha, work, squared=True)
        if self.centered:
            mean = self._state["grad_avg"][name]
            _average(mean, g, self.alpha, work)
            np.multiply(mean, mean, out=work)
            np.subtract(s, work, out=work)
            np.sqrt(work, out=work)
        else:
            np.sqrt(s, out=work)
        work += self.eps
        np.divide(g, work, out=work)
        if self.momentum:
            v = self._state["momentum_buffer"][name]
            v *= self.momentum
            v += work
            np.multiply(v, self.lr, out=work)
        else:
            work *= self.lr
        p -= work


class Adam(Optimizer):
    r"""Adaptive moments, as ``torch.optim.Adam``.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        p_t &= p_{t-1} - \frac{\eta}{1 - \beta_1^t} \,
               \frac{m_t}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    Parameters
    ----------
    params : Mapping[str, ndarray]
        The arrays to train, by name; updated in place.
    lr : float
        Learning rate :math:`\eta`.
    betas : tuple[float, float]
        :math:`\beta_1, \beta_2`, each in [0, 1).
    eps : float
        :math:`\epsilon`, added outside the root.
    weight_decay : float
        L2 penalty, added to the gradient (`AdamW` decouples it).
    amsgrad : bool
        Divide by the largest :math:`v` so far instead of the newest.

    References
    ----------
    Kingma and Ba, "Adam: a method for stochastic optimization", 2015; Reddi, Kale and Kumar,
    "On the convergence of Adam and beyond", 2018 (amsgrad).
    """

    hyperparameters = ("lr", "betas", "eps", "weight_decay", "amsgrad")

    def __init__(
        self,
        params: Mapping[str, Array],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
    ) -> None:
        super().__init__(params, lr)
        who = type(self).__name__
        try:
            beta1, beta2 = betas
        except (TypeError, ValueError):
            raise ValueError(f"{who}: betas must be two numbers, got {betas!r}") from None
        for beta in (beta1, beta2):
            if not 0.0 <= beta < 1.0:
                raise ValueError(f"{who}: betas must be in [0, 1), got {betas!r}")
        self.betas = (float(beta1), float(beta2))
        self.eps = _at_least_zero(who, "eps", eps)
        self.weight_decay = _at_least_zero(who, "weight_decay", weight_decay)
        self.amsgrad = bool(amsgrad)
        self._new_state("exp_avg", "exp_avg_sq")
        if self.amsgrad:
            self._new_state("max_exp_avg_sq")

    def _update(self, name: str, p: Array, g: Array) -> None:
        if not self._in_one_pass(name, p, g, decoupled=False):
            self._adam(name, p, self._decayed(p, g, self.weight_decay))

    def _in_one_pass(self, name: str, p: Array, g: Array, decoupled: bool) -> bool:
        m, v = self._state["exp_avg"][name], self._state["exp_avg_sq"][name]
        largest = self._state["max_exp_avg_sq"][name] if self.amsgrad else None
        settings = (self.lr, *self.betas, self.eps, self.weight_decay, decoupled)
        return fused.update("AdamUpdate", (g, p, m, v, largest), self.steps, *settings)

    def _adam(self, name: str, p: Array, g: Array) -> None:
        beta1, beta2 = self.betas
        work = self._work(p, 1)
        m, v = self._state["exp_avg"][name], self._state["exp_avg_sq"][name]
        _average(m, g, beta1, work)
        _average(v, g, beta2, work, squared=True)
        if self.amsgrad:
            largest = self._state["max_exp_avg_sq"][name]
            np.maximum(largest, v, out=largest)
            v = largest
        np.sqrt(v, out=work)
        work /= (1.0 - beta2**self.steps) ** 0.5
        work += self.eps
        np.divide(m, work, out=work)
        work *= self.lr / (1.0 - beta1**self.steps)
        p -= work


class AdamW(Adam):
    r"""Adam with decoupled weight decay, as ``torch.optim.AdamW``.

    First :math:`p \leftarrow p - \eta \lambda p`, then Adam's update without a penalty.

    Parameters
    ----------
    params, lr, betas, eps, amsgrad
        As for `Adam`.
    weight_decay : float
        :math:`\lambda`.

    References
    ----------
    Loshchilov and Hutter, "Decoupled weight decay regularization", 2019.
    """

    def __init__(
        self,
        params: Mapping[str, Array],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad)

    def _update(self, name: str, p: Array, g: Array) -> None:
        if not self._in_one_pass(name, p, g, decoupled=True):
            p *= 1.0 - self.lr * self.weight_decay
            self._adam(name, p, g)


def _average(avg: Array, g: Array, keep: float, work: Array, *, squared: bool = False) -> None:
    """avg = keep * avg + (1 - keep) * g, or g**2, in place."""
    avg *= keep
    np.multiply(g, 1.0 - keep, out=work)
    if squared:
        work *= g
    avg += work


def _number(who: str, name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{who}: {name} must be a number, got {value!r}") from None


def _at_least_zero(who: str, name: str, value: Any) -> float:
    number = _number(who, name, value)
    if not number >= 0.0:
        raise ValueError(f"{who}: {name} must be at least 0, got {value!r}")
    return number


def _checked_params(who: str, params: Mapping[str, Array]) -> dict[str, Array]:
    if not isinstance(params, Mapping):
        raise TypeError(
            f"{who}: params must map names to arrays (layer.params), got {type(params).__name__}"
        )
    if not params:
        raise ValueError(f"{who}: params is empty")
    for name, p in params.items():
        if not isinstance(p, np.ndarray):
            raise TypeError(
                f"{who}: params[{name!r}] must be a NumPy array, got {type(p).__name__}"
            )
        if p.dtype.kind != "f":
            raise TypeError(f"{who}: params[{name!r}] must be floating point, got {p.dtype}")
        if not p.flags.writeable:
            raise ValueError(f"{who}: params[{name!r}] is read-only")
    return dict(params)


def _same_names(who: str, what: str, got: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    missing = [name for name in expected if name not in got]
    unknown = [name for name in got if name not in expected]
    if missing or unknown:
        parts = [f"lacks {missing}"] * bool(missing) + [f"has unknown {unknown}"] * bool(unknown)
        raise ValueError(f"{who}: {what} {' and '.join(parts)}")
