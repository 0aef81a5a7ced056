"""Everything but convolution by the kernels of the C engine, at the speed of memory."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from cnnfast import compiled
from cnnfast.geometry import Elements, Pooling, Product, Windows
from cnnfast.methods.base import Arrays, Call, Method, Plan, apart, contiguous
from cnnfast.threads import get_num_threads


class Engine(Method):
    """Kernels of ``csrc/``, through their one binding."""

    name = "engine"
    most_taps = 255  # elements of a window that a byte can tell apart, with one value for none

    def supports(self, call: Call) -> str | None:
        if call.device != "cpu":
            return f"its kernels run on the CPU, the arrays are on {call.device}"
        return compiled.engine_missing()

    def workspace(self, call: Call) -> int:
        g, double, threads = call.geometry, call.dtype == "float64", get_num_threads()
        if not isinstance(g, Product):
            return 0
        engine = compiled.engine()
        sizes = g.rows, g.inner, g.columns, double, ()
        if call.op == "linear":
            return int(engine.Linear(*sizes).scratch(threads))
        by_weights = engine.LinearBackwardWeights(*sizes, False)
        by_input = engine.LinearBackwardInput(*sizes)
        return int(max(by_input.scratch(threads), by_weights.scratch(threads)))

    def plan(self, call: Call, arrays: Arrays, parameters: Arrays) -> Plan | None:
        make = getattr(self, f"_plan_{call.op.replace('1d', '2d')}", None)
        double, engine = call.dtype == "float64", compiled.engine()
        plan: Plan | None
        if make is not None:
            plan = make(call.geometry, double, arrays, *parameters)
        elif "softmax" in call.op:
            last = parameters[0] in (-1, arrays[0].ndim - 1)
            plan = engine.Softmax(call.op, arrays[0].shape, double) if last else None
        elif call.op.startswith("cross_entropy"):
            plan = None
        else:
            plan = engine.Elementwise(call.op, arrays[0].shape, double, *parameters)
        return plan

    # Elements

    def relu(self, g: Elements, x: Any) -> Any:
        return _elementwise("relu", x)

    def relu_backward(self, g: Elements, dy: Any, x: Any) -> Any:
        return _elementwise("relu_backward", dy, x)

    def leaky_relu(self, g: Elements, x: Any, negative_slope: float) -> Any:
        return _elementwise("leaky_relu", x, slope=negative_slope)

    def leaky_relu_backward(self, g: Elements, dy: Any, x: Any, negative_slope: float) -> Any:
        return _elementwise("leaky_relu_backward", dy, x, slope=negative_slope)

    def sigmoid(self, g: Elements, x: Any) -> Any:
        return _elementwise("sigmoid", x)

    def sigmoid_backward(self, g: Elements, dy: Any, x: Any) -> Any:
        return _elementwise("sigmoid_backward", dy, x)

    def tanh(self, g: Elements, x: Any) -> Any:
        return _elementwise("tanh", x)

    def tanh_backward(self, g: Elements, dy: Any, x: Any) -> Any:
        return _elementwise("tanh_backward", dy, x)

    # Along an axis

    def softmax(self, g: Elements, x: Any, axis: int) -> Any:
        return _softmax("softmax", axis, x)

    def softmax_backward(self, g: Elements, dy: Any, y: Any, axis: int) -> Any:
        return _softmax("softmax_backward", axis, dy, y)

    def log_softmax(self, g: Elements, x: Any, axis: int) -> Any:
        return _softmax("log_softmax", axis, x)

    def log_softmax_backward(self, g: Elements, dy: Any, y: Any, axis: int) -> Any:
        return _softmax("log_softmax_backward", axis, dy, y)

    def cross_entropy(self, g: Elements, scores: Any, labels: Any, label_smoothing: float) -> Any:
        plan = compiled.engine().CrossEntropy(scores.shape, _double(scores), label_smoothing)
        dscores, loss = plan((contiguous(scores), contiguous(labels)))
        return float(loss), dscores

    # Pooling

    def _plan_max_pool2d(
        self, g: Pooling, double: bool, arrays: Arrays, indices: bool, *_: Any
    ) -> Plan:
        shapes = arrays[0].shape, _lowered(g, g.y_shape)
        plan: Plan = compiled.engine().MaxPool(_sizes(g), double, *shapes, bool(indices))
        return plan

    def _plan_max_pool2d_backward(
        self, g: Windows, double: bool, arrays: Arrays, input_shape: Any
    ) -> Plan:
        shapes = _lowered(g, g.x_shape), arrays[0].shape
        plan: Plan = compiled.engine().MaxPoolBackward(_sizes(g), double, *shapes)
        return plan

    def _plan_avg_pool2d(self, g: Pooling, double: bool, arrays: Arrays, *_: Any) -> Plan:
        shapes = arrays[0].shape, _lowered(g, g.y_shape)
        options = g.count_include_pad, g.divisor
        plan: Plan = compiled.engine().AvgPool(_sizes(g), double, *shapes, *options)
        return plan

    def _plan_avg_pool2d_backward(self, g: Pooling, double: bool, arrays: Arrays, *_: Any) -> Plan:
        shapes = _lowered(g, g.x_shape), arrays[0].shape
        options = g.count_include_pad, g.divisor
        plan: Plan = compiled.engine().AvgPoolBackward(_sizes(g), double, *shapes, *options)
        return plan

    def taps(self, g: Pooling, double: bool, x: tuple[int, ...]) -> tuple[Plan, Plan]:
        """Max pooling that gives (y, taps) of (x,), and its gradient, of (dy, taps)."""
        engine, shapes = compiled.engine(), (x, _lowered(g, g.y_shape))
        sizes = _sizes(g), double
        return engine.MaxPoolTaps(*sizes, *shapes), engine.MaxPoolTapsBackward(*sizes, *shapes)

    def max_pool2d(self, g: Windows, x: Any, return_indices: bool) -> Any:
        shapes = g.x_shape, g.y_shape
        plan = compiled.engine().MaxPool(_sizes(g), _double(x), *shapes, return_indices)
        return plan((contiguous(x),))

    def max_pool2d_backward(self, g: Windows, dy: Any, indices: Any) -> Any:
        plan = compiled.engine().MaxPoolBackward(_sizes(g), _double(dy), g.x_shape, g.y_shape)
        return plan((contiguous(dy), contiguous(indices)))

    def avg_pool2d(self, g: Pooling, x: Any) -> Any:
        options = g.count_include_pad, g.divisor
        plan = compiled.engine().AvgPool(_sizes(g), _double(x), g.x_shape, g.y_shape, *options)
        return plan((contiguous(x),))

    def avg_pool2d_backward(self, g: Pooling, dy: Any) -> Any:
        options = g.count_include_pad, g.divisor
        shapes = g.x_shape, g.y_shape
        plan = compiled.engine().AvgPoolBackward(_sizes(g), _double(dy), *shapes, *options)
        return plan((contiguous(dy),))

    # Batch normalisation, whose x arrives as (N, C, values per channel of one example)

    def _plan_batch_norm(
        self,
        g: Elements,
        double: bool,
        arrays: Arrays,
        training: bool,
        momentum: float,
        eps: float,
        stats: bool,
    ) -> Plan:
        shape = arrays[0].shape
        options = bool(training), float(momentum), float(eps), bool(stats)
        plan: Plan = compiled.engine().BatchNorm(_channels(shape), double, shape, *options)
        return plan

    def _plan_batch_norm_backward(self, g: Elements, double: bool, arrays: Arrays) -> Plan:
        shape = arrays[0].shape
        plan: Plan = compiled.engine().BatchNormBackward(_channels(shape), double, shape)
        return plan

    def batch_norm(
        self,
        g: Elements,
        x: Any,
        running_mean: Any,
        running_var: Any,
        weight: Any,
        bias: Any,
        training: bool,
        momentum: float,
        eps: float,
    ) -> Any:
        # Running statistics may be of another dtype or layout than x: they are copied, and back.
        given = [running_mean, running_var]
        running = [None if r is None else np.array(r, x.dtype) for r in given]
        others = (None if a is None else contiguous(a) for a in (weight, bias))
        plan = compiled.engine().BatchNorm(
            x.shape, _double(x), x.shape, training, momentum, eps, True
        )
        results = plan((contiguous(x), *running, *others))
        if training:
            for to, moved in zip(given, running, strict=True):
                if to is not None:
                    to[...] = moved
        return results

    def batch_norm_backward(
        self, g: Elements, dy: Any, x: Any, mean: Any, rstd: Any, weight: Any
    ) -> Any:
        plan = compiled.engine().BatchNormBackward(x.shape, _double(x), x.shape)
        operands = (dy, x, mean, rstd, weight)
        return plan(tuple(None if a is None else contiguous(a) for a in operands))

    # Linear layers

    def _plan_linear(self, g: Product, double: bool, arrays: Arrays) -> Plan:
        shape = (*arrays[0].shape[:-1], g.columns)
        plan: Plan = compiled.engine().Linear(g.rows, g.inner, g.columns, double, shape)
        return plan

    def _plan_linear_backward(
        self, g: Product, double: bool, arrays: Arrays, needs: str
    ) -> Plan | None:
        return _LinearGradients(g, double, arrays[1].shape, needs)

    def linear(self, g: Product, x: Any, w: Any, b: Any) -> Any:
        shape = (*x.shape[:-1], g.columns)
        plan = compiled.engine().Linear(g.rows, g.inner, g.columns, _double(x), shape)
        return plan((contiguous(x), contiguous(w), None if b is None else contiguous(b)))

    def linear_backward(self, g: Product, dy: Any, x: Any, w: Any, needs: str) -> Any:
        plan = _LinearGradients(g, _double(x), x.shape, needs)
        return plan((contiguous(dy), contiguous(x), contiguous(w)), None)


class _LinearGradients:
    """The plan of the gradients that `needs` has a letter of."""

    def __init__(self, g: Product, double: bool, shape: tuple[int, ...], needs: str) -> None:
        engine, sizes = compiled.engine(), (g.rows, g.inner, g.columns, double)
        self._dx = engine.LinearBackwardInput(*sizes, shape) if "x" in needs else None
        weights = engine.LinearBackwardWeights(*sizes, (g.columns, g.inner), "b" in needs)
        self._dw = weights if "w" in needs else None
        # The sums of dy's rows alone are those of a layer with as many channels as outputs.
        alone = "b" in needs and "w" not in needs
        self._db = engine.BiasGradient((g.rows, g.columns), double) if alone else None
        self._with_db = "b" in needs

    def __call__(self, arrays: Arrays, out: Any) -> Arrays | None:
        dy, x, w = arrays
        if out is None:
            out = (None, None, None)
        elif not isinstance(out, tuple) or len(out) != 3 or not apart(out, arrays):
            return None
        dx = dw = db = None
        if self._dx is not None:
            dx = self._dx((dy, w), out[0])
            if dx is None:
                return None
        if self._dw is not None:
            places = out[1:] if self._with_db else out[1]
            both = self._dw((dy, x), places)
            if both is None:
                return None
            dw, db = both if self._with_db else (both, None)
        if self._db is not None:
            db = self._db((dy,), out[2])
            if db is None:
                return None
        return dx, dw, db


def _elementwise(op: str, *arrays: Any, slope: float = 0.0) -> Any:
    plan = compiled.engine().Elementwise(op, arrays[0].shape, _double(arrays[0]), slope)
    return plan(tuple(contiguous(a) for a in arrays))


def _softmax(op: str, axis: int, *arrays: Any) -> Any:
    """The kernel goes along the last axis, so another one is moved there and back."""
    moved = [contiguous(np.moveaxis(a, axis, -1)) for a in arrays]
    plan = compiled.engine().Softmax(op, moved[0].shape, _double(moved[0]))
    return np.moveaxis(plan(tuple(moved)), -1, axis)


def _double(x: Any) -> bool:
    return bool(x.dtype == np.float64)


def _lowered(g: Windows, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that the user knows: without the rows of a signal."""
    return shape if g.ndim == 2 else (*shape[:2], shape[3])


def _sizes(g: Windows) -> tuple[int, ...]:
    """The members of ``struct pool`` (``csrc/pool.h``)."""
    (top, bottom), (left, right) = g.padding
    planes = (g.N * g.C, g.H, g.W, g.KH, g.KW, g.OH, g.OW)
    return (*planes, *g.stride, top, left, bottom, right, *g.dilation)


def _channels(shape: tuple[int, ...]) -> tuple[int, int, int]:
    return shape[0], shape[1], prod(shape[2:])


METHOD = Engine()
