"""The linear (fully connected) layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from cnnfast import functional as F
from cnnfast.nn import init
from cnnfast.nn.arguments import float_dtype, generator, method_name, whole
from cnnfast.nn.layer import Array, Layer


class Linear(Layer):
    """``y = x @ weight.T + bias`` over the last axis of x; see `cnnfast.linear`.

    Parameters
    ----------
    in_features, out_features : int
        Sizes of the last axis of x and of y.
    bias : bool
        Whether there is one.
    dtype, rng, method : keyword only
        As for `Conv2d`.

    Attributes
    ----------
    weight : ndarray (out_features, in_features)
        Started uniform on ``+-1 / sqrt(in_features)``, as PyTorch does.
    bias : ndarray (out_features,) or None
        Started from the same interval.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnfast import nn
    >>> nn.Linear(3, 2)(np.zeros((5, 3), np.float32)).shape
    (5, 2)
    """

    weight: Array
    bias: Array | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: Any = np.float32,
        rng: np.random.Generator | None = None,
        method: str = "auto",
    ) -> None:
        super().__init__()
        self.in_features = whole("Linear", "in_features", in_features, 1)
        self.out_features = whole("Linear", "out_features", out_features, 1)
        self.method = method_name("Linear", "linear", method)
        dtype, rng = float_dtype("Linear", dtype), generator("Linear", rng)
        shape = (self.out_features, self.in_features)
        self.add_param("weight", init.default_weight(shape, rng=rng, dtype=dtype))
        self.add_param(
            "bias",
            init.default_bias(self.out_features, shape, rng=rng, dtype=dtype) if bias else None,
        )

    def forward(self, x: Array) -> Array:
        y: Array = F.linear(x, self.weight, self.bias, method=self.method)
        self._saved = x
        return y

    def backward(self, dy: Array) -> Any:
        needs = "x" * self._needs_input_grad + "w" + "b" * (self.bias is not None)
        dx, dw, db = F.linear_backward(
            dy, self._recall(), self.weight, needs=needs, method=self.method
        )
        self._set_grads(weight=dw, bias=db)
        return dx

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )
