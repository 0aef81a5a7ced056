"""The C engine, in the build for this processor's instruction set."""

from __future__ import annotations

from typing import Any

import numpy as np

from cnnfast import compiled
from cnnfast.geometry import Elements
from cnnfast.methods.base import Call, Method, contiguous


class Engine(Method):
    """Kernels of ``csrc/``, through their one binding."""

    name = "engine"

    def supports(self, call: Call) -> str | None:
        if call.device != "cpu":
            return f"its kernels run on the CPU, the arrays are on {call.device}"
        return compiled.engine_missing()

    def relu(self, g: Elements, x: Any) -> Any:
        y = np.empty(x.shape, x.dtype)
        compiled.engine().relu(contiguous(x, (-1,)), y.reshape(-1))
        return y

    def relu_backward(self, g: Elements, dy: Any, x: Any) -> Any:
        dx = np.empty(x.shape, x.dtype)
        compiled.engine().relu_backward(contiguous(dy, (-1,)), contiguous(x, (-1,)), dx.reshape(-1))
        return dx


METHOD = Engine()
