"""Max and average pooling."""

from __future__ import annotations

from typing import Any

import numpy as np

from cnnfast import arrays, fused
from cnnfast import functional as F
from cnnfast.geometry import pooling, rank
from cnnfast.nn.arguments import method_name, paddings, sizes, whole
from cnnfast.nn.layer import Array, Layer


class _MaxPool(Layer):
    """What both max poolings hold."""

    _ndim: int

    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
        *,
        method: str = "auto",
    ) -> None:
        super().__init__()
        me, ndim = type(self).__name__, self._ndim
        if return_indices:
            raise ValueError(
                f"{me}: a layer returns one array; for return_indices=True call "
                f"cnnfast.max_pool{ndim}d"
            )
        _check_windows(me, ndim, kernel_size, stride, padding, dilation, ceil_mode)
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.dilation = dilation
        self.ceil_mode = ceil_mode
        self.method = method_name(me, f"max_pool{ndim}d", method)

    def _pool(self, x: Array, return_indices: bool) -> Any:
        pool: Any = F.max_pool1d if self._ndim == 1 else F.max_pool2d
        return pool(
            x,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            return_indices,
            method=self.method,
        )

    def forward(self, x: Array) -> Array:
        y: Any
        indices = taps = None
        if self.training:
            sliding = self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode
            pooled = fused.max_pool(x, tuple(map(_hashable, sliding)), self.method)
            if pooled is None:
                y, indices = self._pool(x, True)
            else:
                y, taps = pooled
        else:  # inference seldom goes back; if it does, it finds the maxima then
            y = self._pool(x, False)
        self._saved = x, indices, taps
        result: Array = y
        return result

    def backward(self, dy: Array) -> Any:
        x, indices, taps = self._recall()
        if taps is not None:
            dx = fused.max_pool_backward(dy, x, taps, self.method)
            if dx is not None:
                return dx
        if indices is None:
            _, indices = self._pool(x, True)
        pool: Any = F.max_pool1d_backward if self._ndim == 1 else F.max_pool2d_backward
        return pool(dy, indices, np.shape(x), method=self.method)

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, ceil_mode={self.ceil_mode}"
        )


class MaxPool1d(_MaxPool):
    """The largest element of each window of ``(N, C, L)``; parameters as `MaxPool2d`.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnfast import nn
    >>> nn.MaxPool1d(2)(np.array([[[1.0, 5.0, 2.0, 3.0]]]))
    array([[[5., 3.]]])
    """

    _ndim = 1


class MaxPool2d(_MaxPool):
    """The largest element of each window of ``(N, C, H, W)``; see `cnnfast.max_pool2d`.

    The gradient of a window goes to its first largest element in row-major order.

    Parameters
    ----------
    kernel_size, dilation : int or (int, int)
        (rows, columns).
    stride : int or (int, int), optional
        `kernel_size` if not given.
    padding : int, (int, int) or ((top, bottom), (left, right))
        Of minus infinity.
    return_indices : False
        Keeps its place in PyTorch's order; call the function for indices.
    ceil_mode : bool
        Whether a last window may hang over the far edge.
    method : str, keyword only
        As for `cnnfast.max_pool2d`.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnfast import nn
    >>> layer = nn.MaxPool2d(2)
    >>> layer(np.array([[[[1.0, 5.0], [2.0, 5.0]]]]))
    array([[[[5.]]]])
    >>> layer.backward(np.ones((1, 1, 1, 1)))
    array([[[[0., 1.],
             [0., 0.]]]])
    """

    _ndim = 2


class AdaptiveMaxPool2d(_MaxPool):
    """The largest element of each channel of ``(N, C, H, W)``, whatever its size.

    Parameters
    ----------
    output_size : 1 or (1, 1)
        Of PyTorch's layer, no other size is supported.
    return_indices : False
        As for `MaxPool2d`.
    method : str, keyword only
        As for `cnnfast.max_pool2d`.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnfast import nn
    >>> nn.AdaptiveMaxPool2d(1)(np.array([[[[1.0, 5.0], [2.0, 4.0]]]]))
    array([[[[5.]]]])
    """

    _ndim = 2

    def __init__(
        self, output_size: Any, return_indices: bool = False, *, method: str = "auto"
    ) -> None:
        super().__init__(1, return_indices=return_indices, method=method)
        pair = output_size if isinstance(output_size, tuple | list) else (output_size,) * 2
        if list(pair) != [1, 1]:
            raise ValueError(f"AdaptiveMaxPool2d: output_size must be 1, not {output_size!r}")
        self.output_size = output_size

    def forward(self, x: Array) -> Array:
        shape = np.shape(x)
        rank("AdaptiveMaxPool2d", "x", shape, "N, C, H, W")
        if 0 in shape[1:]:
            raise ValueError(
                f"AdaptiveMaxPool2d: x has an empty axis (shape {shape}); only N may be 0"
            )
        self.kernel_size = self.stride = shape[2:]
        return super().forward(x)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class _AvgPool(Layer):
    """What both average poolings hold."""

    _ndim: int

    def __init__(
        self,
        kernel_size: Any,
        stride: Any,
        padding: Any,
        ceil_mode: bool,
        count_include_pad: bool,
        divisor_override: int | None,
        method: str,
    ) -> None:
        super().__init__()
        me, ndim = type(self).__name__, self._ndim
        options = 1, ceil_mode, count_include_pad, divisor_override
        _check_windows(me, ndim, kernel_size, stride, padding, *options)
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.ceil_mode = ceil_mode
        self.count_include_pad = count_include_pad
        self.divisor_override = divisor_override
        self.method = method_name(me, f"avg_pool{ndim}d", method)

    def _options(self) -> dict[str, Any]:
        return {
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "padding": self.padding,
            "ceil_mode": self.ceil_mode,
            "count_include_pad": self.count_include_pad,
            "method": self.method,
        }

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class AvgPool1d(_AvgPool):
    """The mean of each window of ``(N, C, L)``; parameters as `AvgPool2d`, without the divisor.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnfast import nn
    >>> nn.AvgPool1d(2)(np.array([[[1.0, 5.0, 2.0, 3.0]]]))
    array([[[3. , 2.5]]])
    """

    _ndim = 1

    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        *,
        method: str = "auto",
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode, count_include_pad, None, method)
        # PyTorch keeps one-element tuples here, and shows them.
        self.kernel_size = sizes("AvgPool1d", "kernel_size", self.kernel_size, 1, 1)
        self.stride = sizes("AvgPool1d", "stride", self.stride, 1, 1)
        self.padding = paddings("AvgPool1d", padding, 1)

    def forward(self, x: Array) -> Array:
        y: Array = F.avg_pool1d(x, **self._options())
        self._saved = np.shape(x)
        return y

    def backward(self, dy: Array) -> Any:
        return F.avg_pool1d_backward(dy, self._recall(), **self._options())


class AvgPool2d(_AvgPool):
    """The mean of each window of ``(N, C, H, W)``; see `cnnfast.avg_pool2d`.

    Parameters
    ----------
    kernel_size : int or (int, int)
        (rows, columns).
    stride : int or (int, int), optional
        `kernel_size` if not given.
    padding : int, (int, int) or ((top, bottom), (left, right))
        Of zeros.
    ceil_mode : bool
        Whether a last window may hang over the far edge.
    count_include_pad : bool
        Whether padding counts in the divisor.
    divisor_override : int, optional
        Divide by this instead.
    method : str, keyword only
        As for `cnnfast.avg_pool2d`.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnfast import nn
    >>> nn.AvgPool2d(2)(np.array([[[[1.0, 5.0], [2.0, 4.0]]]]))
    array([[[[3.]]]])
    """

    _ndim = 2

    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
        *,
        method: str = "auto",
    ) -> None:
        super().__init__(
            kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, method
        )

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "divisor_override": self.divisor_override}

    def forward(self, x: Array) -> Array:
        y: Array = F.avg_pool2d(x, **self._options())
        self._saved = np.shape(x)
        return y

    def backward(self, dy: Array) -> Any:
        return F.avg_pool2d_backward(dy, self._recall(), **self._options())


class AdaptiveAvgPool2d(Layer):
    """The mean of windows of ``(N, C, H, W)`` chosen so that the output has a given size.

    Window i of OH covers the rows from ``floor(i * H / OH)`` up to ``ceil((i + 1) * H / OH)``, so
    windows differ in size, and overlap, where OH does not divide H.

    Parameters
    ----------
    output_size : int, None or a pair of them
        (OH, OW); None keeps the size of the input.
    method : str, keyword only
        As for `cnnfast.avg_pool2d`.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnfast import nn
    >>> nn.AdaptiveAvgPool2d(1)(np.array([[[[1.0, 5.0], [2.0, 4.0]]]]))
    array([[[[3.]]]])
    """

    def __init__(self, output_size: Any, *, method: str = "auto") -> None:
        super().__init__()
        pair = output_size if isinstance(output_size, tuple | list) else (output_size,) * 2
        if len(pair) != 2:
            raise ValueError(
                f"AdaptiveAvgPool2d: output_size must be one size or two, not {output_size!r}"
            )
        self._pair = [
            None if size is None else whole("AdaptiveAvgPool2d", "output_size", size, 1)
            for size in pair
        ]
        self.output_size = output_size
        self.method = method_name("AdaptiveAvgPool2d", "avg_pool2d", method)

    def forward(self, x: Array) -> Array:
        (x,), library = arrays.admit("AdaptiveAvgPool2d", x=x)
        shape = tuple(x.shape)
        rank("AdaptiveAvgPool2d", "x", shape, "N, C, H, W")
        if 0 in shape[1:]:
            raise ValueError(
                f"AdaptiveAvgPool2d: x has an empty axis (shape {shape}); only N may be 0"
            )
        H, W = shape[2:]
        OH, OW = self._pair[0] or H, self._pair[1] or W
        if H % OH == 0 and W % OW == 0:
            y = self._mean(x, (H // OH, W // OW))
        else:
            xp = library.xp
            y = xp.concat(
                [
                    xp.concat([self._mean(x[:, :, r, c], None) for c in _parts(W, OW)], axis=3)
                    for r in _parts(H, OH)
                ],
                axis=2,
            )
        self._saved = shape, (*shape[:2], OH, OW)
        pooled: Array = library.finish(y)
        return pooled

    def _mean(self, x: Any, window: tuple[int, int] | None) -> Any:
        """The mean of windows of x, by default of all of it."""
        return F.avg_pool2d(x, window or tuple(x.shape[2:]), method=self.method)

    def backward(self, dy: Array) -> Any:
        shape, y_shape = self._recall()
        (dy,), library = arrays.admit("AdaptiveAvgPool2d.backward", dy=dy)
        if tuple(dy.shape) != y_shape:
            raise ValueError(
                f"AdaptiveAvgPool2d.backward: dy must have shape {y_shape}, not {tuple(dy.shape)}"
            )
        (H, W), (OH, OW) = shape[2:], y_shape[2:]
        if H % OH == 0 and W % OW == 0:
            window = (H // OH, W // OW)
            return library.finish(F.avg_pool2d_backward(dy, shape, window, method=self.method))
        dx = library.xp.zeros(shape, dtype=dy.dtype, device=library.place)
        for i, rows in enumerate(_parts(H, OH)):
            for j, cols in enumerate(_parts(W, OW)):
                part = (*shape[:2], rows.stop - rows.start, cols.stop - cols.start)
                dx[:, :, rows, cols] += F.avg_pool2d_backward(
                    dy[:, :, i : i + 1, j : j + 1], part, part[2:], method=self.method
                )
        return library.finish(dx)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


def _hashable(value: Any) -> Any:
    """Sizes as they go into a key, whatever they came in."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    return value if isinstance(value, int) else tuple(map(_hashable, value))


def _parts(size: int, count: int) -> list[slice]:
    """The `count` windows of adaptive pooling over `size` elements."""
    return [slice(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]


def _check_windows(
    me: str,
    ndim: int,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    *options: Any,
) -> None:
    """Refuse in the constructor what no input could be pooled with."""
    kernel = sizes(me, "kernel_size", kernel_size, ndim, 1)
    spread = sizes(me, "dilation", dilation, ndim, 1)
    one_window = (1, 1, *(d * (k - 1) + 1 for k, d in zip(kernel, spread, strict=True)))
    pooling(me, ndim, one_window, kernel_size, stride, padding, dilation, *options)
