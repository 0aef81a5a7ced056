"""What a method is: it says whether it can serve a call, and computes operations by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cnnfast.arrays import namespace
from cnnfast.geometry import Convolution, Geometry, Shape

Arrays = tuple[Any, ...]
Plan = Callable[[Arrays, Any], Any]


@dataclass(frozen=True)
class Call:
    """What a method may know when it is asked whether it can serve.

    `needs` are the gradients wanted of a convolution's, letters of "xwb". `prepared` says that its
    weights come in the form that the kernel wants.
    """

    op: str
    geometry: Geometry
    dtype: str
    device: str
    needs: str = "xwb"
    prepared: bool = False


class Method:
    """A way of computing. Each operation it serves is a method of that operation's name.

    Those take the geometry and the arrays, which are of one dtype, float32 or float64, have been
    checked, and may have any memory layout; they return new C-contiguous arrays.
    """

    name: str

    def supports(self, call: Call) -> str | None:
        """None if the call can be served, else one sentence that says why not."""
        return None

    def workspace(self, call: Call) -> int:
        """Bytes of scratch memory that the call allocates beside its results."""
        return 0

    def plan(self, call: Call, arrays: Arrays, parameters: Arrays) -> Plan | None:
        """A function that serves calls like this one; None where there is none.

        `arrays` and `parameters` are the user's, which have been checked. The function takes such
        arrays, and `out`; it gives what the user gets, or None, with nothing done, if an array is
        not in C order or cannot be written to.
        """
        return None


class ConvolutionMethod(Method, ABC):
    """Convolution and transposed convolution, forward and backward, from three products.

    A transposed convolution is the gradient by input of a convolution, so its own gradients are
    that convolution's forward pass and its gradient by weights with the two images changed about.
    """

    @abstractmethod
    def forward(self, g: Convolution, x: Any, w: Any) -> Any:
        """``y[n, f, i, j] = sum of w[f, c, k, l] * x[n, c, i*s + k*d - p, j*s + l*d - p]``."""

    @abstractmethod
    def backward_input(self, g: Convolution, dy: Any, w: Any) -> Any:
        """The gradient of `forward` by x."""

    @abstractmethod
    def backward_weights(self, g: Convolution, dy: Any, x: Any) -> Any:
        """The gradient of `forward` by w."""

    def conv2d(self, g: Convolution, x: Any, w: Any, b: Any) -> Any:
        return _add_bias(self.forward(g, x, w), b)

    def conv2d_backward(self, g: Convolution, dy: Any, x: Any, w: Any, needs: str) -> Any:
        return (
            self.backward_input(g, dy, w) if "x" in needs else None,
            self.backward_weights(g, dy, x) if "w" in needs else None,
            _sum_pixels(dy) if "b" in needs else None,
        )

    def conv_transpose2d(self, g: Convolution, x: Any, w: Any, b: Any) -> Any:
        return _add_bias(self.backward_input(g, x, w), b)

    def conv_transpose2d_backward(self, g: Convolution, dy: Any, x: Any, w: Any, needs: str) -> Any:
        return (
            self.forward(g, dy, w) if "x" in needs else None,
            self.backward_weights(g, x, dy) if "w" in needs else None,
            _sum_pixels(dy) if "b" in needs else None,
        )


def _add_bias(y: Any, b: Any) -> Any:
    if b is not None:
        y += b[:, None, None]
    return y


def _sum_pixels(dy: Any) -> Any:
    return namespace(dy).sum(dy, axis=(0, 2, 3))


def apart(places: Arrays | None, arrays: Arrays) -> bool:
    """Whether results written to `places` one after the other leave all arguments as they are."""
    return places is None or not any(
        np.may_share_memory(place, a) for place in places if place is not None for a in arrays
    )


def contiguous(x: Any, shape: Shape | None = None) -> Any:
    """A NumPy array in C order, copied only if it is not in C order already."""
    x = np.ascontiguousarray(x)
    return x if shape is None else x.reshape(shape)


def update_running(
    running_mean: Any, running_var: Any, mean: Any, var: Any, count: int, momentum: float
) -> None:
    """Move the running statistics towards a batch's, in place.

    ``r += momentum * (batch - r)``, where the variance is the unbiased one, as in PyTorch. An empty
    batch has nothing to add.
    """
    if count == 0:
        return
    if running_mean is not None:
        running_mean[...] = running_mean * (1 - momentum) + mean * momentum
    if running_var is not None:
        unbiased = var * (count / (count - 1))
        running_var[...] = running_var * (1 - momentum) + unbiased * momentum
