"""Activations: element by element, and softmax."""

from __future__ import annotations

from typing import Any

import numpy as np

from cnnfast import arrays
from cnnfast import functional as F
from cnnfast.nn.arguments import method_name, number, refuse_inplace, whole
from cnnfast.nn.layer import Array, Layer, copied


class ReLU(Layer):
    """``max(x, 0)``; see `cnnfast.relu`. `inplace` must be False.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnfast import nn
    >>> nn.ReLU()(np.array([-1.0, 2.0]))
    array([0., 2.])
    """

    def __init__(self, inplace: bool = False, *, method: str = "auto") -> None:
        super().__init__()
        refuse_inplace("ReLU", inplace)
        self.method = method_name("ReLU", "relu", method)

    def forward(self, x: Array) -> Array:
        y: Array = F.relu(x, method=self.method)
        self._saved = x
        return y

    def backward(self, dy: Array) -> Any:
        return F.relu_backward(dy, self._recall(), method=self.method)


class ReLU6(Layer):
    """``min(max(x, 0), 6)``, whose gradient is dy where 0 < x < 6. `inplace` must be False.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnfast import nn
    >>> nn.ReLU6()(np.array([-1.0, 2.0, 7.0]))
    array([0., 2., 6.])
    """

    def __init__(self, inplace: bool = False, *, method: str = "auto") -> None:
        super().__init__()
        refuse_inplace("ReLU6", inplace)
        self.method = method_name("ReLU6", "relu", method)

    def forward(self, x: Array) -> Array:
        (values,), library = arrays.admit("ReLU6", x=x)
        y: Array = library.finish(library.xp.clip(values, 0, 6))
        self._saved = x
        return y

    def backward(self, dy: Array) -> Any:
        (dy, x), library = arrays.admit("ReLU6.backward", dy=dy, x=self._recall())
        if dy.shape != x.shape:
            raise ValueError(
                f"ReLU6.backward: dy must have shape {tuple(x.shape)}, not {tuple(dy.shape)}"
            )
        outside = (x <= 0) | (x >= 6)  # a NaN is not
        return library.finish(library.xp.where(outside, library.xp.zeros_like(dy), dy))


class LeakyReLU(Layer):
    """``x`` where positive, ``negative_slope * x`` elsewhere; `inplace` must be False.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnfast import nn
    >>> nn.LeakyReLU(0.5)(np.array([-1.0, 2.0]))
    array([-0.5,  2. ])
    """

    def __init__(
        self, negative_slope: float = 0.01, inplace: bool = False, *, method: str = "auto"
    ) -> None:
        super().__init__()
        refuse_inplace("LeakyReLU", inplace)
        self.negative_slope = number("LeakyReLU", "negative_slope", negative_slope)
        self.method = method_name("LeakyReLU", "leaky_relu", method)

    def forward(self, x: Array) -> Array:
        y: Array = F.leaky_relu(x, self.negative_slope, method=self.method)
        self._saved = x
        return y

    def backward(self, dy: Array) -> Any:
        return F.leaky_relu_backward(dy, self._recall(), self.negative_slope, method=self.method)

    def extra_repr(self) -> str:
        return f"negative_slope={self.negative_slope}"


class Sigmoid(Layer):
    """``1 / (1 + exp(-x))``; see `cnnfast.sigmoid`.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnfast import nn
    >>> nn.Sigmoid()(np.zeros(1))
    array([0.5])
    """

    def __init__(self, *, method: str = "auto") -> None:
        super().__init__()
        self.method = method_name("Sigmoid", "sigmoid", method)

    def forward(self, x: Array) -> Array:
        y: Array = F.sigmoid(x, method=self.method)
        self._saved = x
        return y

    def backward(self, dy: Array) -> Any:
        return F.sigmoid_backward(dy, self._recall(), method=self.method)


class Tanh(Layer):
    """The hyperbolic tangent; see `cnnfast.tanh`.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnfast import nn
    >>> nn.Tanh()(np.zeros(1))
    array([0.])
    """

    def __init__(self, *, method: str = "auto") -> None:
        super().__init__()
        self.method = method_name("Tanh", "tanh", method)

    def forward(self, x: Array) -> Array:
        y: Array = F.tanh(x, method=self.method)
        self._saved = x
        return y

    def backward(self, dy: Array) -> Any:
        return F.tanh_backward(dy, self._recall(), method=self.method)


class Softmax(Layer):
    """``exp(x) / sum(exp(x))`` along axis `dim`; see `cnnfast.softmax`.

    Parameters
    ----------
    dim : int, optional
        The axis. Left out, it is the last of a two-dimensional x, where PyTorch's old rule for
        that case leaves no doubt; any other x is a ValueError.
    method : str, keyword only
        As for `cnnfast.softmax`.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnfast import nn
    >>> nn.Softmax(dim=1)(np.zeros((1, 4)))
    array([[0.25, 0.25, 0.25, 0.25]])
    """

    def __init__(self, dim: int | None = None, *, method: str = "auto") -> None:
        super().__init__()
        self.dim = None if dim is None else whole("Softmax", "dim", dim, -(2**31))
        self.method = method_name("Softmax", "softmax", method)

    def forward(self, x: Array) -> Array:
        if self.dim is None and np.ndim(x) != 2:
            raise ValueError(f"Softmax: dim must be given for x of shape {np.shape(x)}")
        axis = 1 if self.dim is None else self.dim
        y: Array = F.softmax(x, axis, method=self.method)
        # A copy, since y is the caller's, who may write into it.
        self._saved = copied(y), axis
        return y

    def backward(self, dy: Array) -> Any:
        y, axis = self._recall()
        return F.softmax_backward(dy, y, axis, method=self.method)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"
