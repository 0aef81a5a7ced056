"""The C engine, in the build for this processor's instruction set."""

from __future__ import annotations

from typing import Any

import numpy as np

from cnnfast import compiled
from cnnfast.geometry import Elements
from cnnfast.methods.base import Arrays, Call, Method, Plan, contiguous


class Engine(Method):
    """Kernels of ``csrc/``, through their one binding."""

    name = "engine"

    def supports(self, call: Call) -> str | None:
        if call.device != "cpu":
            return f"its kernels run on the CPU, the arrays are on {call.device}"
        return compiled.engine_missing()

    def plan(self, call: Call, arrays: Arrays, parameters: Arrays) -> Plan | None:
        shape, double = arrays[0].shape, call.dtype == "float64"
        engine = compiled.engine()
        kind = engine.Relu if call.op == "relu" else engine.ReluBackward
        plan: Plan = kind(shape, double)
        return plan

    def relu(self, g: Elements, x: Any) -> Any:
        return compiled.engine().Relu(x.shape, x.dtype == np.float64)((contiguous(x),))

    def relu_backward(self, g: Elements, dy: Any, x: Any) -> Any:
        plan = compiled.engine().ReluBackward(x.shape, x.dtype == np.float64)
        return plan((contiguous(dy), contiguous(x)))


METHOD = Engine()
