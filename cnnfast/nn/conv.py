"""Convolutions and transposed convolutions that hold their weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from cnnfast import functional as F
from cnnfast.nn import init
from cnnfast.nn.arguments import float_dtype, generator, method_name, paddings, sizes, whole
from cnnfast.nn.layer import Array, Layer
from cnnfast.nn.prepared import Prepared


class _Convolution(Layer):
    """What all four hold: sizes, a weight and a bias, started as PyTorch starts them."""

    weight: Array
    bias: Array | None
    _ndim: ClassVar[int]
    _transposed: ClassVar[bool] = False
    _op: ClassVar[Callable[..., Any]]
    _op_backward: ClassVar[Callable[..., Any]]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
        bias: bool,
        padding_mode: str,
        dtype: Any,
        rng: Any,
        method: str,
    ) -> None:
        super().__init__()
        me = type(self).__name__
        self.in_channels = whole(me, "in_channels", in_channels, 1)
        self.out_channels = whole(me, "out_channels", out_channels, 1)
        self.kernel_size = sizes(me, "kernel_size", kernel_size, self._ndim, 1)
        self.stride = sizes(me, "stride", stride, self._ndim, 1)
        self.padding = self._check_padding(padding)
        self.dilation = sizes(me, "dilation", dilation, self._ndim, 1)
        self.groups = whole(me, "groups", groups, 1)
        self.method = method_name(me, type(self)._op.__name__, method)
        self._prepared = Prepared()
        if padding_mode != "zeros":
            raise ValueError(f"{me}: padding_mode must be 'zeros', not {padding_mode!r}")
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) % self.groups:
                raise ValueError(
                    f"{me}: groups={self.groups} does not divide {name}={getattr(self, name)}"
                )
        dtype, rng = float_dtype(me, dtype), generator(me, rng)
        first, second = self.out_channels, self.in_channels
        if self._transposed:
            first, second = second, first
        shape = (first, second // self.groups, *self.kernel_size)
        self.add_param("weight", init.default_weight(shape, rng=rng, dtype=dtype))
        self.add_param(
            "bias",
            init.default_bias(self.out_channels, shape, rng=rng, dtype=dtype) if bias else None,
        )

    def _check_padding(self, padding: Any) -> Any:
        me = type(self).__name__
        if not isinstance(padding, str) or self._transposed:
            return paddings(me, padding, self._ndim)
        if padding not in ("valid", "same"):
            raise ValueError(f"{me}: padding must be numbers, 'valid' or 'same', not {padding!r}")
        if padding == "same" and any(s != 1 for s in self.stride):
            raise ValueError(f"{me}: padding='same' needs stride 1, not {self.stride}")
        return padding

    @property
    def sliding(self) -> tuple[Any, ...]:
        """What follows x, w, b in a call of the operation."""
        return self.stride, self.padding, self.dilation, self.groups

    def forward(self, x: Array) -> Array:
        y: Any = None
        if not self.training and not self._transposed:
            y = self._prepared.forward(x, self)
        if y is None:
            y = type(self)._op(x, self.weight, self.bias, *self.sliding, method=self.method)
        self._saved = x
        convolved: Array = y
        return convolved

    def backward(self, dy: Array) -> Any:
        needs = "x" * self._needs_input_grad + "w" + "b" * (self.bias is not None)
        dx, dw, db = type(self)._op_backward(
            dy, self._recall(), self.weight, *self.sliding, needs=needs, method=self.method
        )
        self._set_grads(weight=dw, bias=db)
        return dx

    def extra_repr(self) -> str:
        words = [
            f"{self.in_channels}, {self.out_channels}",
            f"kernel_size={self.kernel_size}",
            f"stride={self.stride}",
        ]
        if self.padding != (0,) * self._ndim:
            words.append(f"padding={self.padding}")
        if self.dilation != (1,) * self._ndim:
            words.append(f"dilation={self.dilation}")
        if self.groups != 1:
            words.append(f"groups={self.groups}")
        if self.bias is None:
            words.append("bias=False")
        return ", ".join(words)


class Conv1d(_Convolution):
    """Convolution of signals, ``(N, C, L)`` to ``(N, F, OL)``.

    Parameters and state as `Conv2d`, with one size in place of two.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnfast import nn
    >>> layer = nn.Conv1d(2, 5, 3, padding="same")
    >>> layer(np.zeros((4, 2, 10), np.float32)).shape
    (4, 5, 10)
    """

    _ndim = 1
    _op = staticmethod(F.conv1d)
    _op_backward = staticmethod(F.conv1d_backward)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        dtype: Any = np.float32,
        rng: np.random.Generator | None = None,
        method: str = "auto",
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            dtype,
            rng,
            method,
        )


class Conv2d(_Convolution):
    """Convolution of images, ``(N, C, H, W)`` to ``(N, F, OH, OW)``; see `cnnfast.conv2d`.

    Parameters
    ----------
    in_channels, out_channels : int
        C and F.
    kernel_size, stride, dilation : int or (int, int)
        (rows, columns).
    padding : int, (int, int), ((top, bottom), (left, right)), "valid" or "same"
        Zeros around the image. ``"same"`` needs stride 1.
    groups : int
        Blocks of channels that do not see each other; divides C and F.
    bias : bool
        Whether there is one.
    padding_mode : "zeros"
        Nothing else is supported.
    dtype : dtype, keyword only
        Of the parameters.
    rng : numpy.random.Generator, keyword only
        Where the start comes from; a fresh generator if not given.
    method : str, keyword only
        As for `cnnfast.conv2d`.

    Attributes
    ----------
    weight : ndarray (F, C // groups, KH, KW)
        Started uniform on ``+-1 / sqrt(C // groups * KH * KW)``, as PyTorch does.
    bias : ndarray (F,) or None
        Started from the same interval.

    Raises
    ------
    ValueError, TypeError
        Arguments out of range or of the wrong kind.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnfast import nn
    >>> layer = nn.Conv2d(3, 8, 3, stride=2, padding=1, rng=np.random.default_rng(0))
    >>> layer
    Conv2d(3, 8, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1))
    >>> y = layer(np.zeros((4, 3, 31, 31), np.float32))
    >>> y.shape, layer.backward(y).shape, layer.grads["weight"].shape
    ((4, 8, 16, 16), (4, 3, 31, 31), (8, 3, 3, 3))
    """

    _ndim = 2
    _op = staticmethod(F.conv2d)
    _op_backward = staticmethod(F.conv2d_backward)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        dtype: Any = np.float32,
        rng: np.random.Generator | None = None,
        method: str = "auto",
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            dtype,
            rng,
            method,
        )


class _ConvTranspose(_Convolution):
    """A convolution's gradient by input, as a layer."""

    _transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Any = 1,
        padding_mode: str = "zeros",
        *,
        dtype: Any = np.float32,
        rng: np.random.Generator | None = None,
        method: str = "auto",
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            dtype,
            rng,
            method,
        )
        me = type(self).__name__
        self.output_padding = sizes(me, "output_padding", output_padding, self._ndim, 0)
        for extra, *steps in zip(self.output_padding, self.stride, self.dilation, strict=True):
            if extra >= max(steps):
                raise ValueError(
                    f"{me}: output_padding must be smaller than stride or dilation, not "
                    f"{self.output_padding} with stride {self.stride}, dilation {self.dilation}"
                )

    @property
    def sliding(self) -> tuple[Any, ...]:
        return self.stride, self.padding, self.output_padding, self.groups, self.dilation

    def extra_repr(self) -> str:
        words = super().extra_repr()
        if any(self.output_padding):
            # PyTorch's order: after dilation, before groups and bias.
            head, mark, tail = words.partition(", groups=")
            if not mark:
                head, mark, tail = words.partition(", bias=")
            words = f"{head}, output_padding={self.output_padding}{mark}{tail}"
        return words


class ConvTranspose1d(_ConvTranspose):
    """Transposed convolution of signals; as `ConvTranspose2d`, with one size in place of two.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnfast import nn
    >>> nn.ConvTranspose1d(5, 2, 4, stride=3)(np.zeros((1, 5, 7), np.float32)).shape
    (1, 2, 22)
    """

    _ndim = 1
    _op = staticmethod(F.conv_transpose1d)
    _op_backward = staticmethod(F.conv_transpose1d_backward)


class ConvTranspose2d(_ConvTranspose):
    """Transposed convolution of images; see `cnnfast.conv_transpose2d`.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of x and of y.
    kernel_size, stride, dilation : int or (int, int)
        (rows, columns).
    padding : int, (int, int) or ((top, bottom), (left, right))
        Taken off the result.
    output_padding : int or (int, int)
        Rows and columns added at the end; smaller than stride or dilation.
    groups, bias, padding_mode, dtype, rng, method
        As for `Conv2d`.

    Attributes
    ----------
    weight : ndarray (in_channels, out_channels // groups, KH, KW)
        Started uniform on ``+-1 / sqrt(out_channels // groups * KH * KW)``, as PyTorch does.
    bias : ndarray (out_channels,) or None
        Started from the same interval.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnfast import nn
    >>> nn.ConvTranspose2d(8, 3, 2, stride=2)(np.zeros((1, 8, 5, 7), np.float32)).shape
    (1, 3, 10, 14)
    """

    _ndim = 2
    _op = staticmethod(F.conv_transpose2d)
    _op_backward = staticmethod(F.conv_transpose2d_backward)
