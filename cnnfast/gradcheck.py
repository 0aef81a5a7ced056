"""Gradients by finite differences, and the comparison of a backward pass with them.

Everything here is in float64, and nothing here knows a layer or an operation: a check only calls
forward and backward.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]

_EPS = float(np.finfo(np.float64).eps)
_FLOOR = 1e-8  # the courses': differences of nearly nothing are not blown up by the division
_SMALL = 1e-3  # entries this much smaller than the largest one are compared on the scale of that
_ROUNDING = 32.0  # how many units in the last place a few layers may leave an output off


def rel_error(a: ArrayLike, b: ArrayLike, *, floor: float = _FLOOR, overall: bool = False) -> float:
    """The largest relative difference of two arrays, as the courses define it.

    ``max(|a - b| / max(1e-8, |a| + |b|))``; 0 for empty arrays, NaN where there is one.

    Parameters
    ----------
    a, b : array_like
        Of one shape.
    floor : float
        The 1e-8, which keeps differences of nearly nothing from being blown up.
    overall : bool
        Relative to the largest ``|a| + |b|`` of all, as Michigan's course has it, and not to each
        element's own.

    Raises
    ------
    ValueError
        The shapes differ (they would be broadcast, and the comparison mean nothing).

    Examples
    --------
    >>> from cnnfast.gradcheck import rel_error
    >>> rel_error([1.0, 3.0], [1.0, 1.0])
    0.5
    >>> rel_error([9.0, 3.0], [11.0, 1.0], overall=True)
    0.1
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"rel_error: a has shape {a.shape}, b has shape {b.shape}")
    if a.size == 0:
        return 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        scale = np.abs(a) + np.abs(b)
        return float(np.max(np.abs(a - b) / np.maximum(floor, scale.max() if overall else scale)))


def numeric_gradient(
    f: Callable[[Any], Any], x: Array, df: ArrayLike = 1.0, h: float = 1e-5
) -> Array:
    """The gradient of ``sum(f(x) * df)`` by x, by central differences.

    Parameters
    ----------
    f : callable
        Takes x. Since x is changed in place, it may also get at x in another way, such as
        ``lambda w: layer(x)`` for ``w = layer.weight``.
    x : float64 ndarray
        Where. Each element is changed and put back; so it is after an exception in `f` too.
    df : array_like
        The gradient by f's result, of its shape. The default fits an `f` that returns a number.
    h : float
        The step to either side.

    Returns
    -------
    float64 ndarray
        Of x's shape.

    Raises
    ------
    TypeError
        x is not a float64 array: a step of 1e-5 is lost in the rounding of anything less.
    ValueError
        x is read-only, df is not of the shape of f's result, or h is no step: not positive, or so
        small that ``x + h`` is x again.

    Notes
    -----
    The formula is ``(f(x + h) - f(x - h)) / 2h``; the error is in the order of ``h**2`` plus the
    rounding of f over h. The course assignments call it ``eval_numerical_gradient_array``.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnfast.gradcheck import numeric_gradient
    >>> numeric_gradient(lambda x: x**2, np.array([1.0, 3.0]), np.array([1.0, 1.0])).round(6)
    array([2., 6.])
    """
    _need_float64("numeric_gradient", "x", x)
    if not x.flags.writeable:
        raise ValueError("numeric_gradient: x is read-only, but its elements have to be changed")
    _need_step("numeric_gradient", "x", x, h)
    df = np.asarray(df, np.float64)
    gradient = np.zeros(x.shape)
    for i in np.ndindex(x.shape):
        with _moved(x, i) as move:
            step_up, step_down = move(h), move(-h)
            x[i] = step_up
            above = _result(f(x), df, "numeric_gradient")
            x[i] = step_down
            below = _result(f(x), df, "numeric_gradient")
        gradient[i] = np.sum((above - below) * df) / (step_up - step_down)
    return gradient


@dataclass(frozen=True)
class Report:
    """What `check` found. True if all is well, and prints as a table.

    Attributes
    ----------
    target : str
        What was checked.
    errors : dict of str to float
        For each input and parameter the largest relative error of its gradient, as `check`
        defines it. NaN where a gradient is NaN.
    kinks : dict of str to int
        How many elements of each lie at a kink, where the derivative has no one value. There a
        gradient counts as right if it is between the one-sided derivatives.
    sizes : dict of str to int
        How many elements each has.
    tolerance : float
        What `errors` may be at most.
    """

    target: str
    errors: dict[str, float]
    kinks: dict[str, int]
    sizes: dict[str, int]
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether every error is within the tolerance (a NaN is not)."""
        return all(error <= self.tolerance for error in self.errors.values())

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        width = max(map(len, self.errors), default=0)
        lines = [
            f"gradients of {self.target}: {'ok' if self.ok else 'WRONG'} "
            f"(tolerance {self.tolerance:.0e})"
        ]
        for name, error in self.errors.items():
            line = f"  {name:{width}}  {error:.1e}"
            if self.kinks[name]:
                line += f"  {self.kinks[name]} of {self.sizes[name]} elements at a kink"
            lines.append(line if error <= self.tolerance else f"{line}  <--")
        return "\n".join(lines)


def check(
    target: Any,
    *inputs: ArrayLike,
    backward: Callable[..., Any] | None = None,
    dy: ArrayLike | None = None,
    h: float = 1e-5,
    tolerance: float = 1e-6,
    rng: np.random.Generator | None = None,
) -> Report:
    """Compare a backward pass with finite differences, for each input and each parameter.

    Parameters
    ----------
    target : layer, loss or function
        A layer or network of `cnnfast.nn` with float64 parameters, called on one input; a loss,
        called on scores and target, of which the scores are checked; or a function, together with
        `backward`.
    *inputs : array_like
        What it is called on. Floats are converted to float64.
    backward : callable, optional
        Of a function: ``backward(dy, *inputs)`` returns the gradient by the input, or a tuple of
        gradients, one for each; None is not checked.
    dy : array_like, optional
        The gradient by the output. Normally distributed if not given.
    h : float
        The step to either side.
    tolerance : float
        The largest error that is still right.
    rng : numpy.random.Generator, optional
        Where dy comes from; the same numbers each time if not given.

    Returns
    -------
    Report
        True if all is well; it never raises because a gradient is wrong. Parameters, buffers and
        generators of a layer are as before, so a layer with dropout is checked with one mask.

    Raises
    ------
    TypeError
        A parameter is not float64, or the target is none of the above.
    ValueError
        A gradient is missing or has not the shape of what it belongs to; the tolerance is not
        positive; or h is not, or is so small that some element does not change by it.

    Notes
    -----
    The error of an element is ``|a - n| / max(|a| + |n|, s / 1000, r / tolerance, 1e-8)``, where a
    is the gradient in question, n the numeric one, s the largest n of the array, and r what the
    rounding of the output may have done to n: so an element next to nothing is not held to more
    digits than differences have.

    Where that is more than the tolerance, ``h / 10`` and ``h / 100`` are tried, in case a kink (of
    ReLU, or of a max-pool where two elements are nearly as large) is nearer than h, or the curve
    bends strongly. A smaller step has a larger r, of which no more counts than half of the ``|a -
    n|`` at h: a smaller step is not to be a wider allowance. If the one-sided derivatives differ,
    and differ nearly as much for a smaller step, x lies on a kink, and any gradient between the two
    is right. The idea is that of chainer's ``gradient_check``.

    Examples
    --------
    >>> import numpy as np
    >>> import cnnfast
    >>> from cnnfast import gradcheck, nn
    >>> x = np.random.default_rng(0).normal(size=(2, 3, 5, 4))
    >>> gradcheck.check(nn.Conv2d(3, 4, 3, dtype=np.float64), x).ok
    True
    >>> gradcheck.check(cnnfast.tanh, x, backward=cnnfast.tanh_backward).ok
    True
    """
    _need_positive("check", "h", h)
    _need_positive("check", "tolerance", tolerance)
    subject = _subject(target, inputs, backward)
    with subject.unchanged():
        y = subject.run()
        weights = subject.weights(y.shape, dy, np.random.default_rng(0) if rng is None else rng)
        gradients = subject.gradients(weights)
        errors, kinks, sizes = {}, {}, {}
        for name, (x, gradient) in gradients.items():
            if gradient.shape != x.shape:
                raise ValueError(
                    f"check: the gradient by {name} has shape {gradient.shape}, "
                    f"{name} has {x.shape}"
                )
            _need_step("check", name, x, h)
            slopes = partial(_slopes, subject.run, y, weights, x)
            errors[name], kinks[name] = _compare(slopes, x, gradient, h, tolerance)
            sizes[name] = x.size
    return Report(subject.name, errors, kinks, sizes, tolerance)


@dataclass(frozen=True)
class _Subject:
    """What is checked: how to run it, and its gradients beside the arrays they belong to."""

    name: str
    run: Callable[[], Array]
    gradients: Callable[[Array], dict[str, tuple[Array, Array]]]
    unchanged: Callable[[], Any] = nullcontext
    is_loss: bool = False

    def weights(
        self, shape: tuple[int, ...], dy: ArrayLike | None, rng: np.random.Generator
    ) -> Array:
        """The gradient by the output that all is weighted with."""
        if self.is_loss:
            if dy is not None:
                raise TypeError("check: a loss takes no dy")
            return np.ones(())
        weights = rng.normal(size=shape) if dy is None else np.array(dy, np.float64)
        if weights.shape != shape:
            raise ValueError(f"check: dy must have shape {shape}, not {weights.shape}")
        return weights


def _subject(
    target: Any, inputs: tuple[ArrayLike, ...], backward: Callable[..., Any] | None
) -> _Subject:
    arrays = [_writable(x) for x in inputs]
    if backward is not None:
        return _function(target, arrays, backward)
    if hasattr(target, "params") and hasattr(target, "backward"):
        if len(arrays) != 1:
            raise TypeError(f"check: a layer is called on one input, not on {len(arrays)}")
        return _layer(target, arrays[0].astype(np.float64))
    if hasattr(target, "backward") and callable(target):
        return _loss(target, arrays)
    raise TypeError(
        f"check: expected a layer, a loss, or a function with backward=..., not {target!r}"
    )


def _writable(x: ArrayLike) -> Array:
    """A copy of an input: float64 if it holds floats, as it is if it holds labels."""
    array = np.array(x)
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def _function(function: Any, arrays: list[Array], backward: Callable[..., Any]) -> _Subject:
    def gradients(dy: Array) -> dict[str, tuple[Array, Array]]:
        found = backward(dy, *arrays)
        found = found if isinstance(found, tuple | list) else (found,)
        names = _argument_names(function, len(arrays))
        if len(found) > len(arrays):
            raise ValueError(
                f"check: backward returns {len(found)} gradients for {len(arrays)} inputs"
            )
        pairs = zip(names, arrays, found, strict=False)
        return {
            name: (_need_float64("check", name, x), np.asarray(gradient))
            for name, x, gradient in pairs
            if gradient is not None
        }

    name = getattr(function, "__name__", repr(function))
    return _Subject(name, lambda: _copied(function(*arrays)), gradients)


def _argument_names(function: Any, count: int) -> list[str]:
    try:
        names = [
            p.name
            for p in inspect.signature(function).parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
    except (TypeError, ValueError):
        names = []
    return (names + [f"input {i}" for i in range(len(names), count)])[:count]


def _layer(layer: Any, x: Array) -> _Subject:
    params: Mapping[str, Array] = layer.params
    for name, param in params.items():
        _need_float64("check", name, param)
    attributes = [vars(part).get("rng") for _, part in layer.named_layers()]
    generators = [rng for rng in attributes if isinstance(rng, np.random.Generator)]
    states = [generator.bit_generator.state for generator in generators]
    buffers = {name: buffer.copy() for name, buffer in layer.buffers.items()}

    def rewind() -> None:
        for generator, state in zip(generators, states, strict=True):
            generator.bit_generator.state = state

    def run() -> Array:
        rewind()
        return _copied(layer.forward(x))

    def gradients(dy: Array) -> dict[str, tuple[Array, Array]]:
        dx = layer.backward(dy)
        grads = layer.grads
        missing = [name for name in params if name not in grads]
        if missing:
            raise ValueError(f"check: backward left no gradient for {', '.join(missing)}")
        found = {} if dx is None else {"x": (_need_float64("check", "x", x), np.array(dx))}
        return found | {name: (param, grads[name].copy()) for name, param in params.items()}

    @contextmanager
    def unchanged() -> Iterator[None]:
        try:
            yield
        finally:
            rewind()
            layer.buffers.update(buffers)

    return _Subject(type(layer).__name__, run, gradients, unchanged)


def _loss(loss: Any, arrays: list[Array]) -> _Subject:
    def gradients(_: Array) -> dict[str, tuple[Array, Array]]:
        return {"scores": (_need_float64("check", "scores", arrays[0]), np.array(loss.backward()))}

    return _Subject(type(loss).__name__, lambda: _copied(loss(*arrays)), gradients, is_loss=True)


def _compare(
    slopes_at: Callable[[tuple[int, ...], float], _Slopes],
    x: Array,
    gradient: Array,
    h: float,
    tolerance: float,
) -> tuple[float, int]:
    """The largest error of `gradient`, and how many elements lie at a kink."""
    slopes = {i: slopes_at(i, h) for i in np.ndindex(x.shape)}
    scale = _SMALL * max((abs(s.central) for s in slopes.values()), default=0.0)
    scale = max(scale, _FLOOR) if math.isfinite(scale) else _FLOOR

    def error(slope: _Slopes, a: float, distance: float, rounding: float) -> float:
        least = max(scale, rounding / tolerance)
        return distance / max(least, abs(a) + abs(slope.central))

    def settled(
        base: _Slopes, finer: list[_Slopes], a: float, distance: Callable[[_Slopes, float], float]
    ) -> float:
        """The error at h, unless a smaller step finds `a` right."""
        apart = distance(base, a)
        errors = [error(base, a, apart, base.rounding)]
        for slope in finer:
            # With all of its rounding granted, a step that is small enough excuses anything.
            rounding = min(slope.rounding, apart / 2)
            errors.append(error(slope, a, distance(slope, a), rounding))
        return next((e for e in errors if e <= tolerance), errors[0])

    worst, kinks = 0.0, 0
    for i, base in slopes.items():
        a = float(gradient[i])
        found = error(base, a, base.from_central(a), base.rounding)
        if not found <= tolerance:
            steps = [step for step in (h / 10, h / 100) if x[i] - step < x[i] < x[i] + step]
            finer = [slopes_at(i, step) for step in steps]
            found = settled(base, finer, a, _Slopes.from_central)
            if found > tolerance and _on_kink(base, finer):
                kinks += 1
                found = settled(base, finer, a, _Slopes.from_sides)
        worst = found if math.isnan(found) else max(worst, found)
        if math.isnan(worst):
            break
    return worst, kinks


@dataclass(frozen=True)
class _Slopes:
    """The derivatives of ``sum(f * dy)`` by one element: central, and bounds of the one-sided.

    `low` and `high` take for each output the smaller and the larger of the two one-sided
    derivatives, because a backward pass may choose for each on its own.
    """

    central: float
    low: float
    high: float
    rounding: float

    @property
    def gap(self) -> float:
        return self.high - self.low

    def from_central(self, a: float) -> float:
        """How far `a` is from the central difference."""
        return abs(a - self.central)

    def from_sides(self, a: float) -> float:
        """How far `a` is from what lies between the one-sided derivatives."""
        return max(self.low - a, a - self.high, 0.0)


def _on_kink(base: _Slopes, finer: list[_Slopes]) -> bool:
    """Whether the one-sided slopes differ, and differ as much for the smallest step that can tell.

    For a smooth function the gap between them shrinks with the step, to a tenth of it.
    """
    *wider, last = base, *(slope for slope in finer if 2 * slope.rounding < base.gap)
    return bool(wider) and last.gap > max(0.2 * wider[-1].gap, 2 * last.rounding)


def _slopes(
    run: Callable[[], Array], here: Array, dy: Array, x: Array, i: tuple[int, ...], h: float
) -> _Slopes:
    """The slopes along ``x[i]``, where `run` gives `here` for x as it is."""
    with _moved(x, i) as move:
        middle = float(x[i])
        step_up, step_down = move(h), move(-h)
        x[i] = step_up
        above = run()
        x[i] = step_down
        below = run()
    with np.errstate(invalid="ignore", over="ignore"):
        right = (above - here) * dy / (step_up - middle)
        left = (here - below) * dy / (middle - step_down)
        width = step_up - step_down
        moved = np.abs(dy) * (np.abs(above) + np.abs(below)) * (above != below)
        return _Slopes(
            central=float(np.sum((above - below) * dy)) / width,
            low=float(np.sum(np.minimum(left, right))),
            high=float(np.sum(np.maximum(left, right))),
            rounding=_ROUNDING * _EPS * float(np.sum(moved)) / width,
        )


@contextmanager
def _moved(x: Array, i: tuple[int, ...]) -> Iterator[Callable[[float], float]]:
    """Put ``x[i]`` back at the end; gives the function from a step to the number it leads to."""
    before = x[i].copy()
    try:
        yield lambda step: float(before + step)
    finally:
        x[i] = before


def _copied(y: Any) -> Array:
    """A result in an array of its own: a function may write each into the same memory."""
    return np.array(y, np.float64)


def _result(y: Any, df: Array, caller: str) -> Array:
    result = _copied(y)
    if result.shape != df.shape:
        raise ValueError(f"{caller}: f returns shape {result.shape}, df has shape {df.shape}")
    return result


def _need_positive(caller: str, name: str, value: Any) -> None:
    try:
        positive = bool(value > 0)
    except (TypeError, ValueError):
        raise TypeError(f"{caller}: {name} must be a number, not {value!r}") from None
    if not positive:
        raise ValueError(f"{caller}: {name} must be positive, not {value!r}")


def _need_step(caller: str, name: str, x: Array, h: float) -> None:
    """Refuse a step that is none: every element has to change by it, in both directions."""
    _need_positive(caller, "h", h)
    if math.isinf(h):
        raise ValueError(f"{caller}: h must be finite")
    stuck = (x + h == x) | (x - h == x)
    if np.any(stuck):
        raise ValueError(
            f"{caller}: h={h} is too small for {name}: next to {float(x[stuck][0])!r} it is lost, "
            f"and {name} + h must differ from {name}"
        )


def _need_float64(caller: str, name: str, x: Any) -> Array:
    if not isinstance(x, np.ndarray) or x.dtype != np.float64:
        kind = x.dtype if isinstance(x, np.ndarray) else type(x).__name__
        raise TypeError(f"{caller}: {name} must be a float64 array, not {kind}")
    return x
