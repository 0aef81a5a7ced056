"""What the families of convolution kernels in the C engine have in common.

A family computes all three products of a convolution by functions named ``<family>_forward``,
``_backward_input`` and ``_backward_weights`` in ``csrc/<family>.inc``. The method of the same name
is a module of its own, which says what the family can serve.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cnnfast import compiled
from cnnfast.geometry import Convolution, Shape
from cnnfast.methods import widths
from cnnfast.methods.base import Arrays, Call, ConvolutionMethod, Plan, apart, contiguous
from cnnfast.threads import get_num_threads

# The products that an operation takes, in the order of its results.
PRODUCTS = {
    "conv2d": ("forward",),
    "conv2d_backward": ("backward_input", "backward_weights"),
    "conv_transpose2d": ("backward_input",),
    "conv_transpose2d_backward": ("forward", "backward_weights"),
}


def products(op: str) -> tuple[str, ...]:
    """The products of a convolution, transposed or not, of signals or of images."""
    return PRODUCTS[op.replace("1d", "2d")]


def wanted(call: Call) -> tuple[str, ...]:
    """Those that a call has to compute."""
    all_products = products(call.op)
    if len(all_products) == 1:
        return all_products
    return tuple(p for p, letter in zip(all_products, "xw", strict=True) if letter in call.needs)


class EngineConvolution(ConvolutionMethod):
    """The products of a family of kernels; a method with but one gives it its own name."""

    def family(self, product: str, g: Convolution) -> str:
        """The family for a product of these sizes."""
        return self.name

    def supports(self, call: Call) -> str | None:
        if call.device != "cpu":
            return f"its kernels run on the CPU, the arrays are on {call.device}"
        return compiled.engine_missing()

    def workspace(self, call: Call) -> int:
        g = call.geometry
        assert isinstance(g, Convolution)
        threads, double = get_num_threads(), call.dtype == "float64"
        kernels = (self.kernel(p, g, double) for p in wanted(call))
        return int(max((kernel.scratch(threads) for kernel in kernels), default=0))

    def kernel(
        self,
        product: str,
        g: Convolution,
        double: bool,
        shape: Shape | None = None,
        ceiling: float = 0,
    ) -> Any:
        """The plan of "forward", "backward_input" or "backward_weights" for these sizes.

        `shape` is the result's, where it is not the one that images have. With a `ceiling` other
        than 0, which is for "forward", the result is cut off there and at 0.
        """
        engine, half = compiled.engine(), widths.half(self.name, product, g, double)
        given = self.family(product, g), sizes(g), double
        if product == "forward":
            return engine.Forward(*given, shape or g.y_shape, half, ceiling)
        if product == "backward_input":
            return engine.BackwardInput(*given, shape or g.x_shape, half)
        return engine.BackwardWeights(*given, shape or g.w_shape, half)

    def forward(self, g: Convolution, x: Any, w: Any) -> Any:
        return self.conv2d(g, x, w, None)

    def backward_input(self, g: Convolution, dy: Any, w: Any) -> Any:
        return self.conv_transpose2d(g, dy, w, None)

    def backward_weights(self, g: Convolution, dy: Any, x: Any) -> Any:
        return self._compute("backward_weights", g, dy, x)

    def conv2d(self, g: Convolution, x: Any, w: Any, b: Any) -> Any:
        return self._compute("forward", g, x, w, b)

    def conv_transpose2d(self, g: Convolution, x: Any, w: Any, b: Any) -> Any:
        return self._compute("backward_input", g, x, w, b)

    def conv2d_backward(self, g: Convolution, dy: Any, x: Any, w: Any, needs: str) -> Any:
        dx, dw, _ = super().conv2d_backward(g, dy, x, w, needs.replace("b", ""))
        return dx, dw, _sum_pixels(dy) if "b" in needs else None

    def conv_transpose2d_backward(self, g: Convolution, dy: Any, x: Any, w: Any, needs: str) -> Any:
        dx, dw, _ = super().conv_transpose2d_backward(g, dy, x, w, needs.replace("b", ""))
        return dx, dw, _sum_pixels(dy) if "b" in needs else None

    def _compute(self, product: str, g: Convolution, *arrays: Any) -> Any:
        kernel = self.kernel(product, g, arrays[0].dtype == np.float64)
        return kernel(tuple(None if a is None else contiguous(a) for a in arrays))

    def plan(self, call: Call, arrays: Arrays, parameters: Arrays) -> Plan | None:
        g, double = call.geometry, call.dtype == "float64"
        assert isinstance(g, Convolution)
        if not call.op.endswith("_backward"):
            images = g.x_shape if "transpose" in call.op else g.y_shape
            shape = images if g.ndim == 2 else (*images[:2], images[3])
            plan: Plan = self.kernel(products(call.op)[0], g, double, shape)
            return plan
        return Gradients(self, call, arrays, parameters[0])


class Gradients:
    """The plan of an operation's gradients, which are those that `needs` has a letter of."""

    def __init__(self, method: EngineConvolution, call: Call, arrays: Arrays, needs: str) -> None:
        g, double = call.geometry, call.dtype == "float64"
        assert isinstance(g, Convolution)
        dy, x, w = arrays
        by_input, by_weights = products(call.op)
        self._transposed = "transpose" in call.op
        self._dx = method.kernel(by_input, g, double, x.shape) if "x" in needs else None
        self._dw = method.kernel(by_weights, g, double, w.shape) if "w" in needs else None
        self._db = compiled.engine().BiasGradient(dy.shape, double) if "b" in needs else None

    def __call__(self, arrays: Arrays, out: Any) -> Arrays | None:
        dy, x, w = arrays
        if out is None:
            out = (None, None, None)
        elif not isinstance(out, tuple) or len(out) != 3 or not apart(out, arrays):
            return None
        pair = (x, dy) if self._transposed else (dy, x)
        calls = ((self._dx, (dy, w)), (self._dw, pair), (self._db, (dy,)))
        results = []
        for (plan, operands), place in zip(calls, out, strict=True):
            results.append(None if plan is None else plan(operands, place))
            if plan is not None and results[-1] is None:
                return None
        return tuple(results)


class Mixed(EngineConvolution):
    """The gradients of one operation by the two families that are best at them."""

    def __init__(self, methods: dict[str, EngineConvolution]) -> None:
        self._methods = methods
        self.name = "+".join(dict.fromkeys(method.name for method in methods.values()))

    def kernel(
        self,
        product: str,
        g: Convolution,
        double: bool,
        shape: Shape | None = None,
        ceiling: float = 0,
    ) -> Any:
        return self._methods[product].kernel(product, g, double, shape, ceiling)


def _sum_pixels(dy: Any) -> Any:
    return compiled.engine().BiasGradient(dy.shape, dy.dtype == np.float64)((contiguous(dy),))


def sizes(g: Convolution) -> tuple[int, ...]:
    """The members of ``struct conv`` (``csrc/conv.h``)."""
    images = (g.N, g.C, g.H, g.W, g.F, g.KH, g.KW, g.OH, g.OW)
    before = (g.padding[0][0], g.padding[1][0])
    return (*images, *g.stride, *before, *g.dilation, g.groups)
