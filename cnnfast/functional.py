"""The public operations: check the arguments, ask `dispatch`, call the path.

Every function takes any array-like of real numbers, in any memory layout, and returns new
C-contiguous arrays. float32 and float64 stay as they are and mix to float64; integers and booleans
count as float64; float16 is computed in float32 and comes back as float16. Arrays of another
library come back as that library's arrays. ``method=`` forces a method (see `cnnfast.methods`);
``"auto"`` lets the dispatcher choose.

Shapes are ``(N, C, H, W)`` for images and ``(N, C, L)`` for signals. ``y`` is an operation's
result, and ``dx`` stands for the gradient of a loss by ``x``. Names, order, defaults and meaning
are PyTorch's unless a docstring says otherwise.

All raise ``TypeError`` for an argument of the wrong kind, ``ValueError`` for one that does not fit,
and `cnnfast.MethodError` if a forced method cannot serve the call.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from cnnfast import arrays, dispatch, geometry
from cnnfast.arrays import Library
from cnnfast.dispatch import Explanation
from cnnfast.geometry import Convolution, Elements, Pooling, Product

__all__ = [
    "avg_pool1d",
    "avg_pool1d_backward",
    "avg_pool2d",
    "avg_pool2d_backward",
    "batch_norm",
    "batch_norm_backward",
    "col2im",
    "conv1d",
    "conv1d_backward",
    "conv2d",
    "conv2d_backward",
    "conv_transpose1d",
    "conv_transpose1d_backward",
    "conv_transpose2d",
    "conv_transpose2d_backward",
    "cross_entropy",
    "dilate1d",
    "dilate1d_backward",
    "dilate2d",
    "dilate2d_backward",
    "dropout",
    "dropout_backward",
    "im2col",
    "leaky_relu",
    "leaky_relu_backward",
    "linear",
    "linear_backward",
    "log_softmax",
    "log_softmax_backward",
    "max_pool1d",
    "max_pool1d_backward",
    "max_pool2d",
    "max_pool2d_backward",
    "mse_loss",
    "multi_margin_loss",
    "relu",
    "relu_backward",
    "sigmoid",
    "sigmoid_backward",
    "softmax",
    "softmax_backward",
    "subsample1d",
    "subsample1d_backward",
    "subsample2d",
    "subsample2d_backward",
    "tanh",
    "tanh_backward",
]

Array = Any
Arrays = tuple[Any, ...]
Ints = int | Sequence[int]
Padding = Ints | Sequence[Sequence[int]]

# The operations on signals are those on images of height 1.


def _lift(ndim: int, a: Array) -> Array:
    return a[:, :, None, :] if ndim == 1 else a


def _lower(op: str, ndim: int, library: Library, a: Array, out: Array | None = None) -> Array:
    return _give(op, library, _without_rows(ndim, library, a), out)


def _give(op: str, library: Library, a: Array, out: Array | None) -> Array:
    """A result as the user is due it, in the user's own array if there is one."""
    a = library.finish(a)
    return a if out is None or a is None else arrays.deliver(op, a, out)


def _each(op: str, out: Any, count: int) -> Arrays:
    """`out` of an operation with several results, one for each."""
    if out is None:
        return (None,) * count
    if not isinstance(out, tuple) or len(out) != count:
        raise TypeError(f"{op}: out must be a tuple of {count} arrays or None, not {out!r:.40}")
    return out


def _without_rows(ndim: int, library: Library, a: Array) -> Array:
    if ndim == 2 or a is None:
        return a
    return library.xp.reshape(a, (a.shape[0], a.shape[1], a.shape[3]))


def _wanted(op: str, needs: str) -> str:
    if not isinstance(needs, str):
        raise TypeError(f'{op}: needs must be letters of "xwb", not {needs!r}')
    if not set(needs) <= set("xwb"):
        raise ValueError(f'{op}: needs must be letters of "xwb", not {needs!r}')
    return needs


def _fits(op: str, name: str, a: Array, shape: tuple[int, ...]) -> None:
    if a is not None and tuple(a.shape) != shape:
        raise ValueError(f"{op}: {name} must have shape {shape}, not {tuple(a.shape)}")


def _number(op: str, name: str, value: Any) -> float:
    if isinstance(value, bool | str | bytes):
        raise TypeError(f"{op}: {name} must be a number, not {value!r}")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{op}: {name} must be a number, not {value!r}") from None
    except OverflowError:
        raise ValueError(f"{op}: {name} is larger than a float can be") from None


def _within(op: str, name: str, value: Any, low: float, high: float) -> float:
    number = _number(op, name, value)
    if not low <= number <= high:
        raise ValueError(f"{op}: {name} must be between {low} and {high}, not {value!r}")
    return number


def _gradient_cost(dy: Array, x: Array, w: Array, biases: int, needs: str) -> dict[str, int]:
    """What the gradients take: a product each for dx and dw; both read one of x and w."""
    products = len(set(needs) & set("xw"))
    elements = products * (prod(x.shape) + prod(w.shape)) + biases * ("b" in needs)
    return {"products": products, "elements": elements + prod(dy.shape) * bool(needs)}


def _conv(
    op: str, ndim: int, x: Array, w: Array, b: Array, method: str, out: Array, *sliding: Any
) -> Array:
    again = (x, w, b), sliding
    y = dispatch.again(op, method, *again, out)
    if y is not None:
        return y
    (x, w, b), library = arrays.admit(op, x=x, w=w, b=b)
    g = geometry.convolution(op, ndim, tuple(x.shape), tuple(w.shape), *sliding)
    _fits(op, "b", b, (g.F,))
    y = dispatch.run(op, g, library, method, _lift(ndim, x), _lift(ndim, w), b, again=again)
    return _lower(op, ndim, library, y, out)


def _conv_backward(
    op: str,
    ndim: int,
    dy: Array,
    x: Array,
    w: Array,
    needs: str,
    method: str,
    out: Arrays | None,
    *sliding: Any,
) -> Arrays:
    again = (dy, x, w), (needs, *sliding)
    gradients: Arrays | None = dispatch.again(op, method, *again, out)
    if gradients is not None:
        return gradients
    (dy, x, w), library = arrays.admit(op, dy=dy, x=x, w=w)
    g = geometry.convolution(op, ndim, tuple(x.shape), tuple(w.shape), *sliding)
    _fits(op, "dy", dy, (g.N, g.F, g.OW) if ndim == 1 else g.y_shape)
    return _gradients(op, ndim, g, library, method, (dy, x, w), needs, out, again)


def _gradients(
    op: str,
    ndim: int,
    g: Convolution,
    library: Library,
    method: str,
    operands: Arrays,
    needs: str,
    out: Arrays | None,
    again: tuple[Arrays, Arrays],
) -> Arrays:
    needs, places = _wanted(op, needs), _each(op, out, 3)
    lifted = (_lift(ndim, a) for a in operands)
    dy, x, w = operands
    cost = _gradient_cost(dy, x, w, dy.shape[1], needs)
    dx, dw, db = dispatch.run(op, g, library, method, *lifted, needs=needs, again=again, **cost)
    dx, dw = _without_rows(ndim, library, dx), _without_rows(ndim, library, dw)
    return tuple(_give(op, library, a, o) for a, o in zip((dx, dw, db), places, strict=True))


def conv1d(
    x: Array,
    w: Array,
    b: Array | None = None,
    stride: Ints = 1,
    padding: Padding | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    method: str = "auto",
    out: Array | None = None,
) -> Array:
    """Convolution of signals, which is the cross-correlation of the field's custom.

    Parameters
    ----------
    x : array of shape (N, C, L)
        Signals.
    w : array of shape (F, C // groups, K)
        Filters.
    b : array of shape (F,), optional
        Added to every element of a filter's output.
    stride, dilation : int
        Elements from one window to the next, and from one tap of a window to the next.
    padding : int, ((left, right),), "valid" or "same"
        Zeros on both sides; "same" keeps L, at stride 1, an odd surplus at the end.
    groups : int
        Blocks of channels that do not see each other.
    method : str
        A name out of ``cnnfast.methods("conv1d")``, or "auto".
    out : array, optional
        Where the result goes, in place of a new array; of its shape and dtype.

    Returns
    -------
    array of shape (N, F, OL), OL = (L + left + right - dilation * (K - 1) - 1) // stride + 1

    Raises
    ------
    ValueError
        Sizes that do not fit, or an empty output.
    TypeError
        An argument of the wrong kind.

    Notes
    -----
    ``y[n, f, i] = b[f] + sum over c, k of w[f, c, k] * x[n, c, i * stride + k * dilation - left]``,
    as ``torch.nn.functional.conv1d``.

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> cnnfast.conv1d(np.arange(5.0).reshape(1, 1, 5), np.array([[[1.0, 0.0, -1.0]]]))
    array([[[-2., -2., -2.]]])
    """
    return _conv("conv1d", 1, x, w, b, method, out, stride, padding, dilation, groups)


def conv2d(
    x: Array,
    w: Array,
    b: Array | None = None,
    stride: Ints = 1,
    padding: Padding | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    method: str = "auto",
    out: Array | None = None,
) -> Array:
    """Convolution of images, which is the cross-correlation of the field's custom.

    Parameters
    ----------
    x : array of shape (N, C, H, W)
        Images.
    w : array of shape (F, C // groups, KH, KW)
        Filters.
    b : array of shape (F,), optional
        Added to every pixel of a filter's output.
    stride, dilation : int or (rows, columns)
        Pixels from one window to the next, and from one tap of a window to the next.
    padding : int, (rows, columns), ((top, bottom), (left, right)), "valid" or "same"
        Zeros around the images; "same" keeps H and W, at stride 1, an odd surplus at the end.
    groups : int
        Blocks of channels that do not see each other; C of them is a depthwise convolution.
    method : str
        A name out of ``cnnfast.methods("conv2d")``, or "auto".
    out : array, optional
        Where the result goes, in place of a new array; of its shape and dtype.

    Returns
    -------
    array of shape (N, F, OH, OW), OH = (H + top + bottom - dilation * (KH - 1) - 1) // stride + 1

    Raises
    ------
    ValueError
        Sizes that do not fit, or an empty output.
    TypeError
        An argument of the wrong kind.

    Notes
    -----
    ``y[n, f, i, j] = b[f] + sum over c, k, l of w[f, c, k, l] * x[n, c, i * stride + k * dilation
    - top, j * stride + l * dilation - left]``, as ``torch.nn.functional.conv2d``.

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> x = np.arange(9.0).reshape(1, 1, 3, 3)
    >>> cnnfast.conv2d(x, np.ones((1, 1, 2, 2)))
    array([[[[ 8., 12.],
             [20., 24.]]]])
    """
    return _conv("conv2d", 2, x, w, b, method, out, stride, padding, dilation, groups)


def conv1d_backward(
    dy: Array,
    x: Array,
    w: Array,
    stride: Ints = 1,
    padding: Padding | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    needs: str = "xwb",
    method: str = "auto",
    out: Arrays | None = None,
) -> Arrays:
    """Gradients of `conv1d`.

    Parameters
    ----------
    dy : array of shape (N, F, OL)
        Gradient of the loss by the output.
    x, w, stride, padding, dilation, groups
        As given to `conv1d`.
    needs : str
        The gradients wanted, letters of "xwb"; the others are None and are not computed.
    method : str
        A name out of ``cnnfast.methods("conv1d_backward")``, or "auto".
    out : tuple of three arrays or None, optional
        Where the gradients go, in place of new arrays; of their shapes and dtype.

    Returns
    -------
    dx, dw, db : arrays of the shapes of x, w and b, or None

    Notes
    -----
    ``dx[n, c, m]`` sums ``w[f, c, k] * dy[n, f, i]`` and ``dw[f, c, k]`` sums ``x[n, c, m] *
    dy[n, f, i]``, both over all that ``m = i * stride + k * dilation - left`` brings together.

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> x, w = np.arange(5.0).reshape(1, 1, 5), np.array([[[1.0, 0.0, -1.0]]])
    >>> dx, dw, db = cnnfast.conv1d_backward(np.ones((1, 1, 3)), x, w)
    >>> dx, dw, db
    (array([[[ 1.,  1.,  0., -1., -1.]]]), array([[[3., 6., 9.]]]), array([3.]))
    """
    sliding = (stride, padding, dilation, groups)
    return _conv_backward("conv1d_backward", 1, dy, x, w, needs, method, out, *sliding)


def conv2d_backward(
    dy: Array,
    x: Array,
    w: Array,
    stride: Ints = 1,
    padding: Padding | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    needs: str = "xwb",
    method: str = "auto",
    out: Arrays | None = None,
) -> Arrays:
    """Gradients of `conv2d`.

    Parameters
    ----------
    dy : array of shape (N, F, OH, OW)
        Gradient of the loss by the output.
    x, w, stride, padding, dilation, groups
        As given to `conv2d`.
    needs : str
        The gradients wanted, letters of "xwb"; the others are None and are not computed.
    method : str
        A name out of ``cnnfast.methods("conv2d_backward")``, or "auto".
    out : tuple of three arrays or None, optional
        Where the gradients go, in place of new arrays; of their shapes and dtype.

    Returns
    -------
    dx, dw, db : arrays of the shapes of x, w and b, or None

    Notes
    -----
    Every product ``w[f, c, k, l] * x[n, c, p, q]`` of the forward pass, with the ``dy[n, f, i, j]``
    of the output it went to, adds ``w * dy`` to ``dx`` and ``x * dy`` to ``dw``; ``db`` sums dy.

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> x, w = np.arange(9.0).reshape(1, 1, 3, 3), np.ones((1, 1, 2, 2))
    >>> dx, dw, db = cnnfast.conv2d_backward(np.ones((1, 1, 2, 2)), x, w, needs="xw")
    >>> dx[0, 0], dw[0, 0], db
    (array([[1., 2., 1.],
           [2., 4., 2.],
           [1., 2., 1.]]), array([[ 8., 12.],
           [20., 24.]]), None)
    """
    sliding = (stride, padding, dilation, groups)
    return _conv_backward("conv2d_backward", 2, dy, x, w, needs, method, out, *sliding)


def _conv_transpose(
    op: str, ndim: int, x: Array, w: Array, b: Array, method: str, out: Array, *sliding: Any
) -> Array:
    again = (x, w, b), sliding
    y = dispatch.again(op, method, *again, out)
    if y is not None:
        return y
    (x, w, b), library = arrays.admit(op, x=x, w=w, b=b)
    g = geometry.transposed(op, ndim, tuple(x.shape), tuple(w.shape), *sliding)
    _fits(op, "b", b, (g.C,))
    y = dispatch.run(op, g, library, method, _lift(ndim, x), _lift(ndim, w), b, again=again)
    return _lower(op, ndim, library, y, out)


def _conv_transpose_backward(
    op: str,
    ndim: int,
    dy: Array,
    x: Array,
    w: Array,
    needs: str,
    method: str,
    out: Arrays | None,
    *sliding: Any,
) -> Arrays:
    again = (dy, x, w), (needs, *sliding)
    gradients: Arrays | None = dispatch.again(op, method, *again, out)
    if gradients is not None:
        return gradients
    (dy, x, w), library = arrays.admit(op, dy=dy, x=x, w=w)
    g = geometry.transposed(op, ndim, tuple(x.shape), tuple(w.shape), *sliding)
    _fits(op, "dy", dy, (g.N, g.C, g.W) if ndim == 1 else g.x_shape)
    return _gradients(op, ndim, g, library, method, (dy, x, w), needs, out, again)


def conv_transpose1d(
    x: Array,
    w: Array,
    b: Array | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    method: str = "auto",
    out: Array | None = None,
) -> Array:
    """Transposed convolution of signals: the gradient by input of `conv1d`, as a layer.

    Parameters
    ----------
    x : array of shape (N, C_in, L)
        Signals.
    w : array of shape (C_in, C_out // groups, K)
        Filters.
    b : array of shape (C_out,), optional
        Added to every element of a channel.
    stride, dilation : int
        Those of the convolution that this one transposes.
    padding : int or ((left, right),)
        Elements cut off the ends of the result.
    output_padding : int
        Elements more at the end, fewer than stride or dilation.
    groups : int
        Blocks of channels that do not see each other.
    method : str
        A name out of ``cnnfast.methods("conv_transpose1d")``, or "auto".
    out : array, optional
        Where the result goes, in place of a new array; of its shape and dtype.

    Returns
    -------
    array of shape (N, C_out, (L - 1) * stride - left - right + dilation * (K - 1) + 1 +
    output_padding)

    Notes
    -----
    ``y[n, c, i * stride + k * dilation - left] += w[f, c, k] * x[n, f, i]``, as
    ``torch.nn.functional.conv_transpose1d``.

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> cnnfast.conv_transpose1d(np.ones((1, 1, 3)), np.array([[[1.0, 2.0]]]), stride=2)
    array([[[1., 2., 1., 2., 1., 2.]]])
    """
    sliding = (stride, padding, output_padding, groups, dilation)
    return _conv_transpose("conv_transpose1d", 1, x, w, b, method, out, *sliding)


def conv_transpose2d(
    x: Array,
    w: Array,
    b: Array | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    method: str = "auto",
    out: Array | None = None,
) -> Array:
    """Transposed convolution of images: the gradient by input of `conv2d`, as a layer.

    Parameters
    ----------
    x : array of shape (N, C_in, H, W)
        Images.
    w : array of shape (C_in, C_out // groups, KH, KW)
        Filters.
    b : array of shape (C_out,), optional
        Added to every pixel of a channel.
    stride, dilation : int or (rows, columns)
        Those of the convolution that this one transposes.
    padding : int, (rows, columns) or ((top, bottom), (left, right))
        Pixels cut off the edges of the result.
    output_padding : int or (rows, columns)
        Pixels more at the far edges, fewer than stride or dilation.
    groups : int
        Blocks of channels that do not see each other.
    method : str
        A name out of ``cnnfast.methods("conv_transpose2d")``, or "auto".
    out : array, optional
        Where the result goes, in place of a new array; of its shape and dtype.

    Returns
    -------
    array of shape (N, C_out, OH, OW), OH = (H - 1) * stride - top - bottom + dilation * (KH - 1) +
    1 + output_padding

    Notes
    -----
    ``y[n, c, i * stride + k * dilation - top, j * stride + l * dilation - left] += w[f, c, k, l] *
    x[n, f, i, j]``, as ``torch.nn.functional.conv_transpose2d``.

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> cnnfast.conv_transpose2d(np.ones((1, 1, 2, 2)), np.ones((1, 1, 2, 2)))
    array([[[[1., 2., 1.],
             [2., 4., 2.],
             [1., 2., 1.]]]])
    """
    sliding = (stride, padding, output_padding, groups, dilation)
    return _conv_transpose("conv_transpose2d", 2, x, w, b, method, out, *sliding)


def conv_transpose1d_backward(
    dy: Array,
    x: Array,
    w: Array,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    needs: str = "xwb",
    method: str = "auto",
    out: Arrays | None = None,
) -> Arrays:
    """Gradients of `conv_transpose1d`.

    Parameters
    ----------
    dy : array of the shape of the output
        Gradient of the loss by the output.
    x, w, stride, padding, output_padding, groups, dilation
        As given to `conv_transpose1d`.
    needs : str
        The gradients wanted, letters of "xwb"; the others are None and are not computed.
    method : str
        A name out of ``cnnfast.methods("conv_transpose1d_backward")``, or "auto".
    out : tuple of three arrays or None, optional
        Where the gradients go, in place of new arrays; of their shapes and dtype.

    Returns
    -------
    dx, dw, db : arrays of the shapes of x, w and b, or None

    Notes
    -----
    ``dx`` is `conv1d` of dy; ``dw`` is the gradient by weights of that `conv1d`.

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> x, w = np.ones((1, 1, 2)), np.array([[[1.0, 2.0]]])
    >>> cnnfast.conv_transpose1d_backward(np.ones((1, 1, 3)), x, w)
    (array([[[3., 3.]]]), array([[[2., 2.]]]), array([3.]))
    """
    sliding = (stride, padding, output_padding, groups, dilation)
    op = "conv_transpose1d_backward"
    return _conv_transpose_backward(op, 1, dy, x, w, needs, method, out, *sliding)


def conv_transpose2d_backward(
    dy: Array,
    x: Array,
    w: Array,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    needs: str = "xwb",
    method: str = "auto",
    out: Arrays | None = None,
) -> Arrays:
    """Gradients of `conv_transpose2d`.

    Parameters
    ----------
    dy : array of the shape of the output
        Gradient of the loss by the output.
    x, w, stride, padding, output_padding, groups, dilation
        As given to `conv_transpose2d`.
    needs : str
        The gradients wanted, letters of "xwb"; the others are None and are not computed.
    method : str
        A name out of ``cnnfast.methods("conv_transpose2d_backward")``, or "auto".
    out : tuple of three arrays or None, optional
        Where the gradients go, in place of new arrays; of their shapes and dtype.

    Returns
    -------
    dx, dw, db : arrays of the shapes of x, w and b, or None

    Notes
    -----
    ``dx`` is `conv2d` of dy; ``dw`` is the gradient by weights of that `conv2d`.

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> x, w = np.ones((1, 1, 2, 2)), np.ones((1, 1, 2, 2))
    >>> dx, dw, db = cnnfast.conv_transpose2d_backward(np.ones((1, 1, 3, 3)), x, w)
    >>> dx.sum(), dw.sum(), db
    (np.float64(16.0), np.float64(16.0), array([9.]))
    """
    sliding = (stride, padding, output_padding, groups, dilation)
    op = "conv_transpose2d_backward"
    return _conv_transpose_backward(op, 2, dy, x, w, needs, method, out, *sliding)


def im2col(
    x: Array,
    kernel_size: Ints,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    *,
    method: str = "auto",
    out: Array | None = None,
) -> Array:
    """Every window of the images as a column.

    Parameters
    ----------
    x : array of shape (N, C, H, W)
        Images.
    kernel_size, stride, dilation : int or (rows, columns)
        Size of the windows, pixels between them, pixels between their taps.
    padding : int, (rows, columns) or ((top, bottom), (left, right))
        Zeros around the images.
    method : str
        A name out of ``cnnfast.methods("im2col")``, or "auto".
    out : array, optional
        Where the result goes, in place of a new array; of its shape and dtype.

    Returns
    -------
    array of shape (N, C * KH * KW, OH * OW)

    Notes
    -----
    Row ``(c * KH + k) * KW + l`` and column ``i * OW + j`` hold ``x[n, c, i * stride + k * dilation
    - top, j * stride + l * dilation - left]``, as ``torch.nn.functional.unfold``, whose arguments
    come in another order.

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> cnnfast.im2col(np.arange(6.0).reshape(1, 1, 2, 3), (2, 2))
    array([[[0., 1.],
            [1., 2.],
            [3., 4.],
            [4., 5.]]])
    """
    (x,), library = arrays.admit("im2col", x=x)
    g = geometry.windows("im2col", 2, tuple(x.shape), kernel_size, stride, padding, dilation)
    return _give("im2col", library, dispatch.run("im2col", g, library, method, x), out)


def col2im(
    cols: Array,
    output_size: Ints,
    kernel_size: Ints,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    *,
    method: str = "auto",
    out: Array | None = None,
) -> Array:
    """Add every column back to the window it came from: the adjoint of `im2col`.

    Parameters
    ----------
    cols : array of shape (N, C * KH * KW, OH * OW)
        Columns.
    output_size : int or (H, W)
        Size of the images.
    kernel_size, stride, padding, dilation
        As given to `im2col`.
    method : str
        A name out of ``cnnfast.methods("col2im")``, or "auto".
    out : array, optional
        Where the result goes, in place of a new array; of its shape and dtype.

    Returns
    -------
    array of shape (N, C, H, W)

    Notes
    -----
    A pixel becomes the sum of all the entries that `im2col` copies from it, as
    ``torch.nn.functional.fold``, whose arguments come in another order.

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> cnnfast.col2im(np.ones((1, 4, 2)), (2, 3), (2, 2))
    array([[[[1., 2., 1.],
             [1., 2., 1.]]]])
    """
    op = "col2im"
    (cols,), library = arrays.admit(op, cols=cols)
    geometry.rank(op, "cols", tuple(cols.shape), "N, C * KH * KW, OH * OW")
    kernel = geometry.per_axis(op, "kernel_size", kernel_size, 2, 1)
    size = geometry.per_axis(op, "output_size", output_size, 2, 1)
    channels, rest = divmod(cols.shape[1], prod(kernel))
    if rest or not channels:
        raise ValueError(
            f"{op}: cols has {cols.shape[1]} rows (shape {tuple(cols.shape)}), "
            f"which is no multiple of kernel_size {kernel}"
        )
    shape = (cols.shape[0], channels, *size)
    g = geometry.windows(op, 2, shape, kernel, stride, padding, dilation)
    _fits(op, "cols", cols, (g.N, g.C * g.KH * g.KW, g.pixels))
    return _give(op, library, dispatch.run(op, g, library, method, cols), out)


def _max_pool(
    op: str,
    ndim: int,
    x: Array,
    return_indices: bool,
    method: str,
    out: Array | Arrays | None,
    *sliding: Any,
) -> Array | Arrays:
    again = (x,), (return_indices, *sliding)
    result = dispatch.again(op, method, *again, out)
    if result is not None:
        return result
    (x,), library = arrays.admit(op, x=x)
    g = geometry.pooling(op, ndim, tuple(x.shape), *sliding)
    indices_too = geometry.flag(op, "return_indices", return_indices)
    places = _each(op, out, 2) if indices_too else (out,)
    result = dispatch.run(op, g, library, method, _lift(ndim, x), indices_too, again=again)
    if not indices_too:
        return _lower(op, ndim, library, result, places[0])
    y, indices = result
    indices = library.back(_without_rows(ndim, library, indices))
    if places[1] is not None:
        indices = arrays.deliver(op, indices, places[1])
    return _lower(op, ndim, library, y, places[0]), indices


def max_pool1d(
    x: Array,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    method: str = "auto",
    out: Array | Arrays | None = None,
) -> Array | tuple[Array, Array]:
    """The largest element of every window of signals.

    Parameters
    ----------
    x : array of shape (N, C, L)
        Signals.
    kernel_size, stride, dilation : int
        Size of the windows, elements between them (by default their size), and between their taps.
    padding : int or ((left, right),)
        Elements that never win; an int is at most half of kernel_size.
    ceil_mode : bool
        Keep a last window that hangs over the end.
    return_indices : bool
        Give the position of each maximum too.
    method : str
        A name out of ``cnnfast.methods("max_pool1d")``, or "auto".
    out : array or tuple of arrays, optional
        Where the results go, in place of new arrays; of their shapes and dtypes.

    Returns
    -------
    y : array of shape (N, C, OL)
    indices : int64 array of shape (N, C, OL), only with `return_indices`
        Positions in 0 ... L - 1.

    Notes
    -----
    Of equal elements the first wins, and a NaN beats everything. A window that dilation carries
    over the whole signal gives -inf and index -1. See `max_pool2d`.

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> cnnfast.max_pool1d(np.array([[[1.0, 3.0, 2.0, 2.0]]]), 2, return_indices=True)
    (array([[[3., 2.]]]), array([[[1, 2]]]))
    """
    sliding = (kernel_size, stride, padding, dilation, ceil_mode)
    return _max_pool("max_pool1d", 1, x, return_indices, method, out, *sliding)


def max_pool2d(
    x: Array,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    method: str = "auto",
    out: Array | Arrays | None = None,
) -> Array | tuple[Array, Array]:
    """The largest pixel of every window of images.

    Parameters
    ----------
    x : array of shape (N, C, H, W)
        Images.
    kernel_size, stride, dilation : int or (rows, columns)
        Size of the windows, pixels between them (by default their size), and between their taps.
    padding : int, (rows, columns) or ((top, bottom), (left, right))
        Pixels that never win. Numbers are at most half of kernel_size, as in PyTorch; pairs,
        which PyTorch does not have, less than a window covers.
    ceil_mode : bool
        Keep a last window that hangs over the far edge, if it starts inside it.
    return_indices : bool
        Give the place of each maximum too.
    method : str
        A name out of ``cnnfast.methods("max_pool2d")``, or "auto".
    out : array or tuple of arrays, optional
        Where the results go, in place of new arrays; of their shapes and dtypes.

    Returns
    -------
    y : array of shape (N, C, OH, OW)
    indices : int64 array of shape (N, C, OH, OW), only with `return_indices`
        Places in the flattened image, ``row * W + column``.

    Notes
    -----
    Of equal pixels the first in row-major order wins. A NaN beats everything; of several, PyTorch's
    choice, the last. A window whose every tap is outside the image (dilation can do that) gives
    -inf and index -1, which `max_pool2d_backward` passes over. Without indices, the maximum of
    zeros of both signs may have either.

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> x = np.array([[[[1.0, 2.0, 5.0, 0.0], [4.0, 3.0, 0.0, 5.0]]]])
    >>> cnnfast.max_pool2d(x, 2, return_indices=True)
    (array([[[[4., 5.]]]]), array([[[[4, 2]]]]))
    """
    sliding = (kernel_size, stride, padding, dilation, ceil_mode)
    return _max_pool("max_pool2d", 2, x, return_indices, method, out, *sliding)


def _max_pool_backward(
    op: str,
    ndim: int,
    dy: Array,
    indices: Array,
    input_shape: Sequence[int],
    method: str,
    out: Array | None,
) -> Array:
    again = (dy, indices), (input_shape,)
    dx = dispatch.again(op, method, *again, out)
    if dx is not None:
        return dx
    (dy,), library = arrays.admit(op, dy=dy)
    indices = arrays.integers(op, "indices", indices, library)
    _fits(op, "indices", indices, tuple(dy.shape))
    g = geometry.scattered(op, ndim, tuple(dy.shape), input_shape)
    size = g.H * g.W
    if prod(indices.shape) and not dispatch.asked():
        xp = library.xp
        low, high = int(xp.min(indices)), int(xp.max(indices))
        if low < -1 or high >= size:
            raise ValueError(
                f"{op}: indices run from {low} to {high}, input_shape {tuple(input_shape)} allows "
                f"-1 to {size - 1}"
            )
    dx = dispatch.run(op, g, library, method, _lift(ndim, dy), _lift(ndim, indices), again=again)
    return _lower(op, ndim, library, dx, out)


def max_pool1d_backward(
    dy: Array,
    indices: Array,
    input_shape: Sequence[int],
    *,
    method: str = "auto",
    out: Array | None = None,
) -> Array:
    """Gradient of `max_pool1d`: each window's goes to its maximum.

    Parameters
    ----------
    dy : array of shape (N, C, OL)
        Gradient of the loss by the output.
    indices : integer array of shape (N, C, OL)
        What `max_pool1d` gave with ``return_indices=True``.
    input_shape : (N, C, L)
        The shape of x.
    method : str
        A name out of ``cnnfast.methods("max_pool1d_backward")``, or "auto".
    out : array, optional
        Where the result goes, in place of a new array; of its shape and dtype.

    Returns
    -------
    array of shape (N, C, L)

    Raises
    ------
    ValueError
        An index outside -1 ... L - 1, or shapes that do not fit.

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> cnnfast.max_pool1d_backward(np.ones((1, 1, 2)), np.array([[[1, 2]]]), (1, 1, 4))
    array([[[0., 1., 1., 0.]]])
    """
    return _max_pool_backward("max_pool1d_backward", 1, dy, indices, input_shape, method, out)


def max_pool2d_backward(
    dy: Array,
    indices: Array,
    input_shape: Sequence[int],
    *,
    method: str = "auto",
    out: Array | None = None,
) -> Array:
    """Gradient of `max_pool2d`: each window's goes to its maximum, and overlapping ones add up.

    Parameters
    ----------
    dy : array of shape (N, C, OH, OW)
        Gradient of the loss by the output.
    indices : integer array of shape (N, C, OH, OW)
        What `max_pool2d` gave with ``return_indices=True``.
    input_shape : (N, C, H, W)
        The shape of x.
    method : str
        A name out of ``cnnfast.methods("max_pool2d_backward")``, or "auto".
    out : array, optional
        Where the result goes, in place of a new array; of its shape and dtype.

    Returns
    -------
    array of shape (N, C, H, W)

    Raises
    ------
    ValueError
        An index outside -1 ... H * W - 1, or shapes that do not fit.

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> dy, indices = np.ones((1, 1, 1, 2)), np.array([[[[3, 2]]]])
    >>> cnnfast.max_pool2d_backward(dy, indices, (1, 1, 2, 2))
    array([[[[0., 0.],
             [1., 1.]]]])
    """
    return _max_pool_backward("max_pool2d_backward", 2, dy, indices, input_shape, method, out)


def _avg_pool(op: str, ndim: int, x: Array, method: str, out: Array | None, *options: Any) -> Array:
    again = (x,), options
    y = dispatch.again(op, method, *again, out)
    if y is not None:
        return y
    (x,), library = arrays.admit(op, x=x)
    g = _averaging(op, ndim, tuple(x.shape), *options)
    y = dispatch.run(op, g, library, method, _lift(ndim, x), again=again)
    return _lower(op, ndim, library, y, out)


def _avg_pool_backward(
    op: str,
    ndim: int,
    dy: Array,
    input_shape: Sequence[int],
    method: str,
    out: Array | None,
    *options: Any,
) -> Array:
    again = (dy,), (input_shape, *options)
    dx = dispatch.again(op, method, *again, out)
    if dx is not None:
        return dx
    (dy,), library = arrays.admit(op, dy=dy)
    shape = geometry.input_shape(op, input_shape, ndim)
    g = _averaging(op, ndim, shape, *options)
    _fits(op, "dy", dy, (g.N, g.C, g.OW) if ndim == 1 else g.y_shape)
    dx = dispatch.run(op, g, library, method, _lift(ndim, dy), again=again)
    return _lower(op, ndim, library, dx, out)


def _averaging(
    op: str,
    ndim: int,
    x: tuple[int, ...],
    kernel_size: Ints,
    stride: Ints | None,
    padding: Padding,
    *options: Any,
) -> Pooling:
    return geometry.pooling(op, ndim, x, kernel_size, stride, padding, 1, *options)


def avg_pool1d(
    x: Array,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    *,
    method: str = "auto",
    out: Array | None = None,
) -> Array:
    """The mean of every window of signals.

    Parameters
    ----------
    x : array of shape (N, C, L)
        Signals.
    kernel_size, stride : int
        Size of the windows, and elements between them (by default their size).
    padding : int or ((left, right),)
        Zeros on both sides; an int is at most half of kernel_size.
    ceil_mode : bool
        Keep a last window that hangs over the end.
    count_include_pad : bool
        Whether the padding counts in what a window's sum is divided by.
    method : str
        A name out of ``cnnfast.methods("avg_pool1d")``, or "auto".
    out : array, optional
        Where the result goes, in place of a new array; of its shape and dtype.

    Returns
    -------
    array of shape (N, C, OL)

    Notes
    -----
    As ``torch.nn.functional.avg_pool1d``; see `avg_pool2d`.

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> cnnfast.avg_pool1d(np.array([[[1.0, 3.0, 2.0, 4.0]]]), 2)
    array([[[2., 3.]]])
    """
    options = (kernel_size, stride, padding, ceil_mode, count_include_pad)
    return _avg_pool("avg_pool1d", 1, x, method, out, *options)


def avg_pool2d(
    x: Array,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    method: str = "auto",
    out: Array | None = None,
) -> Array:
    """The mean of every window of images.

    Parameters
    ----------
    x : array of shape (N, C, H, W)
        Images.
    kernel_size, stride : int or (rows, columns)
        Size of the windows, and pixels between them (by default their size).
    padding : int, (rows, columns) or ((top, bottom), (left, right))
        Zeros around the images. Numbers are at most half of kernel_size, as in PyTorch; pairs,
        which PyTorch does not have, less than a window covers.
    ceil_mode : bool
        Keep a last window that hangs over the far edge, if it starts inside it.
    count_include_pad : bool
        Whether the padding counts in what a window's sum is divided by. What ceil_mode hangs over
        the padding never does.
    divisor_override : int, optional
        Divide every window's sum by this.
    method : str
        A name out of ``cnnfast.methods("avg_pool2d")``, or "auto".
    out : array, optional
        Where the result goes, in place of a new array; of its shape and dtype.

    Returns
    -------
    array of shape (N, C, OH, OW)

    Notes
    -----
    As ``torch.nn.functional.avg_pool2d``.

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> cnnfast.avg_pool2d(np.arange(8.0).reshape(1, 1, 2, 4), 2)
    array([[[[2.5, 4.5]]]])
    """
    options = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    return _avg_pool("avg_pool2d", 2, x, method, out, *options)


def avg_pool1d_backward(
    dy: Array,
    input_shape: Sequence[int],
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    *,
    method: str = "auto",
    out: Array | None = None,
) -> Array:
    """Gradient of `avg_pool1d`: each window's, divided, goes to all of its elements.

    Parameters
    ----------
    dy : array of shape (N, C, OL)
        Gradient of the loss by the output.
    input_shape : (N, C, L)
        The shape of x.
    kernel_size, stride, padding, ceil_mode, count_include_pad
        As given to `avg_pool1d`.
    method : str
        A name out of ``cnnfast.methods("avg_pool1d_backward")``, or "auto".
    out : array, optional
        Where the result goes, in place of a new array; of its shape and dtype.

    Returns
    -------
    array of shape (N, C, L)

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> cnnfast.avg_pool1d_backward(np.array([[[1.0, 2.0]]]), (1, 1, 4), 2)
    array([[[0.5, 0.5, 1. , 1. ]]])
    """
    options = (kernel_size, stride, padding, ceil_mode, count_include_pad)
    return _avg_pool_backward("avg_pool1d_backward", 1, dy, input_shape, method, out, *options)


def avg_pool2d_backward(
    dy: Array,
    input_shape: Sequence[int],
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    method: str = "auto",
    out: Array | None = None,
) -> Array:
    """Gradient of `avg_pool2d`: each window's, divided, goes to all of its pixels.

    Parameters
    ----------
    dy : array of shape (N, C, OH, OW)
        Gradient of the loss by the output.
    input_shape : (N, C, H, W)
        The shape of x.
    kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
        As given to `avg_pool2d`.
    method : str
        A name out of ``cnnfast.methods("avg_pool2d_backward")``, or "auto".
    out : array, optional
        Where the result goes, in place of a new array; of its shape and dtype.

    Returns
    -------
    array of shape (N, C, H, W)

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> cnnfast.avg_pool2d_backward(np.array([[[[4.0, 8.0]]]]), (1, 1, 2, 4), 2)
    array([[[[1., 1., 2., 2.],
             [1., 1., 2., 2.]]]])
    """
    options = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    return _avg_pool_backward("avg_pool2d_backward", 2, dy, input_shape, method, out, *options)


def _resample(
    op: str, ndim: int, x: Array, factor: Ints, method: str, out: Array | None, enlarge: bool
) -> Array:
    (x,), library = arrays.admit(op, x=x)
    g = geometry.resampled(op, ndim, tuple(x.shape), factor, enlarge)
    return _lower(op, ndim, library, dispatch.run(op, g, library, method, _lift(ndim, x)), out)


def _resample_backward(
    op: str,
    ndim: int,
    dy: Array,
    factor: Ints,
    input_shape: Sequence[int],
    method: str,
    out: Array | None,
    enlarge: bool,
) -> Array:
    (dy,), library = arrays.admit(op, dy=dy)
    shape = geometry.input_shape(op, input_shape, ndim)
    g = geometry.resampled(op, ndim, shape, factor, enlarge)
    _fits(op, "dy", dy, (g.N, g.C, g.OW) if ndim == 1 else g.y_shape)
    return _lower(op, ndim, library, dispatch.run(op, g, library, method, _lift(ndim, dy)), out)


def dilate1d(x: Array, factor: Ints, *, method: str = "auto", out: Array | None = None) -> Array:
    """Put ``factor - 1`` zeros between the elements of signals (CMU 11-785's Upsample1d).

    Parameters
    ----------
    x : array of shape (N, C, L)
        Signals.
    factor : int
        Distance of what were neighbours.
    method : str
        A name out of ``cnnfast.methods("dilate1d")``, or "auto".
    out : array, optional
        Where the result goes, in place of a new array; of its shape and dtype.

    Returns
    -------
    array of shape (N, C, (L - 1) * factor + 1)

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> cnnfast.dilate1d(np.array([[[1.0, 2.0]]]), 3)
    array([[[1., 0., 0., 2.]]])
    """
    return _resample("dilate1d", 1, x, factor, method, out, True)


def dilate2d(x: Array, factor: Ints, *, method: str = "auto", out: Array | None = None) -> Array:
    """Put ``factor - 1`` zeros between the pixels of images (CMU 11-785's Upsample2d).

    Parameters
    ----------
    x : array of shape (N, C, H, W)
        Images.
    factor : int or (rows, columns)
        Distance of what were neighbours.
    method : str
        A name out of ``cnnfast.methods("dilate2d")``, or "auto".
    out : array, optional
        Where the result goes, in place of a new array; of its shape and dtype.

    Returns
    -------
    array of shape (N, C, (H - 1) * rows + 1, (W - 1) * columns + 1)

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> cnnfast.dilate2d(np.array([[[[1.0, 2.0], [3.0, 4.0]]]]), (1, 2))
    array([[[[1., 0., 2.],
             [3., 0., 4.]]]])
    """
    return _resample("dilate2d", 2, x, factor, method, out, True)


def subsample1d(x: Array, factor: Ints, *, method: str = "auto", out: Array | None = None) -> Array:
    """Keep every factor-th element of signals (CMU 11-785's Downsample1d).

    Parameters
    ----------
    x : array of shape (N, C, L)
        Signals.
    factor : int
        Distance of the elements kept, the first among them.
    method : str
        A name out of ``cnnfast.methods("subsample1d")``, or "auto".
    out : array, optional
        Where the result goes, in place of a new array; of its shape and dtype.

    Returns
    -------
    array of shape (N, C, (L - 1) // factor + 1)

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> cnnfast.subsample1d(np.arange(5.0).reshape(1, 1, 5), 2)
    array([[[0., 2., 4.]]])
    """
    return _resample("subsample1d", 1, x, factor, method, out, False)


def subsample2d(x: Array, factor: Ints, *, method: str = "auto", out: Array | None = None) -> Array:
    """Keep every factor-th pixel of images, by rows and columns (CMU 11-785's Downsample2d).

    Parameters
    ----------
    x : array of shape (N, C, H, W)
        Images.
    factor : int or (rows, columns)
        Distance of the pixels kept, the first among them.
    method : str
        A name out of ``cnnfast.methods("subsample2d")``, or "auto".
    out : array, optional
        Where the result goes, in place of a new array; of its shape and dtype.

    Returns
    -------
    array of shape (N, C, (H - 1) // rows + 1, (W - 1) // columns + 1)

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> cnnfast.subsample2d(np.arange(9.0).reshape(1, 1, 3, 3), 2)
    array([[[[0., 2.],
             [6., 8.]]]])
    """
    return _resample("subsample2d", 2, x, factor, method, out, False)


def dilate1d_backward(
    dy: Array,
    factor: Ints,
    input_shape: Sequence[int],
    *,
    method: str = "auto",
    out: Array | None = None,
) -> Array:
    """Gradient of `dilate1d`: what fell on the zeros is lost.

    Parameters
    ----------
    dy : array of shape (N, C, (L - 1) * factor + 1)
        Gradient of the loss by the output.
    factor : int
        As given to `dilate1d`.
    input_shape : (N, C, L)
        The shape of x.
    method : str
        A name out of ``cnnfast.methods("dilate1d_backward")``, or "auto".
    out : array, optional
        Where the result goes, in place of a new array; of its shape and dtype.

    Returns
    -------
    array of shape (N, C, L)

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> cnnfast.dilate1d_backward(np.arange(4.0).reshape(1, 1, 4), 3, (1, 1, 2))
    array([[[0., 3.]]])
    """
    return _resample_backward("dilate1d_backward", 1, dy, factor, input_shape, method, out, True)


def dilate2d_backward(
    dy: Array,
    factor: Ints,
    input_shape: Sequence[int],
    *,
    method: str = "auto",
    out: Array | None = None,
) -> Array:
    """Gradient of `dilate2d`: what fell on the zeros is lost.

    Parameters
    ----------
    dy : array of the shape of the output
        Gradient of the loss by the output.
    factor : int or (rows, columns)
        As given to `dilate2d`.
    input_shape : (N, C, H, W)
        The shape of x.
    method : str
        A name out of ``cnnfast.methods("dilate2d_backward")``, or "auto".
    out : array, optional
        Where the result goes, in place of a new array; of its shape and dtype.

    Returns
    -------
    array of shape (N, C, H, W)

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> cnnfast.dilate2d_backward(np.arange(9.0).reshape(1, 1, 3, 3), 2, (1, 1, 2, 2))
    array([[[[0., 2.],
             [6., 8.]]]])
    """
    return _resample_backward("dilate2d_backward", 2, dy, factor, input_shape, method, out, True)


def subsample1d_backward(
    dy: Array,
    factor: Ints,
    input_shape: Sequence[int],
    *,
    method: str = "auto",
    out: Array | None = None,
) -> Array:
    """Gradient of `subsample1d`: zero for the elements that were left out.

    Parameters
    ----------
    dy : array of shape (N, C, (L - 1) // factor + 1)
        Gradient of the loss by the output.
    factor : int
        As given to `subsample1d`.
    input_shape : (N, C, L)
        The shape of x.
    method : str
        A name out of ``cnnfast.methods("subsample1d_backward")``, or "auto".
    out : array, optional
        Where the result goes, in place of a new array; of its shape and dtype.

    Returns
    -------
    array of shape (N, C, L)

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> cnnfast.subsample1d_backward(np.array([[[1.0, 2.0]]]), 2, (1, 1, 4))
    array([[[1., 0., 2., 0.]]])
    """
    return _resample_backward(
        "subsample1d_backward", 1, dy, factor, input_shape, method, out, False
    )


def subsample2d_backward(
    dy: Array,
    factor: Ints,
    input_shape: Sequence[int],
    *,
    method: str = "auto",
    out: Array | None = None,
) -> Array:
    """Gradient of `subsample2d`: zero for the pixels that were left out.

    Parameters
    ----------
    dy : array of the shape of the output
        Gradient of the loss by the output.
    factor : int or (rows, columns)
        As given to `subsample2d`.
    input_shape : (N, C, H, W)
        The shape of x.
    method : str
        A name out of ``cnnfast.methods("subsample2d_backward")``, or "auto".
    out : array, optional
        Where the result goes, in place of a new array; of its shape and dtype.

    Returns
    -------
    array of shape (N, C, H, W)

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> cnnfast.subsample2d_backward(np.array([[[[1.0, 2.0]]]]), 2, (1, 1, 2, 3))
    array([[[[1., 0., 2.],
             [0., 0., 0.]]]])
    """
    return _resample_backward(
        "subsample2d_backward", 2, dy, factor, input_shape, method, out, False
    )


def batch_norm(
    x: Array,
    running_mean: Array | None,
    running_var: Array | None,
    weight: Array | None = None,
    bias: Array | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    return_stats: bool = False,
    method: str = "auto",
    out: Array | Arrays | None = None,
) -> Array | tuple[Array, Array, Array]:
    """Bring every channel to mean 0 and variance 1, then scale and shift it.

    Parameters
    ----------
    x : array of shape (N, C), (N, C, L) or (N, C, H, W)
        Input.
    running_mean, running_var : arrays of shape (C,)
        What is used when not training. When training they may be None; else they are updated in
        place: ``r = (1 - momentum) * r + momentum * batch's``, the variance unbiased.
    weight, bias : array of shape (C,), optional
        Scale and shift.
    training : bool
        Use the batch's own mean and (biased) variance, which need two values per channel.
    momentum, eps : float
        The share of the new batch in the running values; what is added to the variance.
    return_stats : bool
        Give also what `batch_norm_backward` needs.
    method : str
        A name out of ``cnnfast.methods("batch_norm")``, or "auto".
    out : array or tuple of arrays, optional
        Where the results go, in place of new arrays; of their shapes and dtypes.

    Returns
    -------
    y : array of the shape of x
    mean, rstd : arrays of shape (C,), only with `return_stats`
        The mean and ``1 / sqrt(var + eps)`` that were used.

    Notes
    -----
    ``y = (x - mean) * rstd * weight + bias`` by channel: Ioffe and Szegedy, "Batch normalization",
    2015; as ``torch.nn.functional.batch_norm``.

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> x = np.array([[1.0], [3.0]])
    >>> cnnfast.batch_norm(x, None, None, training=True, eps=0.0)
    array([[-1.],
           [ 1.]])
    """
    op = "batch_norm"
    options = (training, momentum, eps, return_stats)
    again = (x, running_mean, running_var, weight, bias), options
    done = dispatch.again(op, method, *again, out)
    if done is not None:
        return done
    train = geometry.flag(op, "training", training)
    stats_too = geometry.flag(op, "return_stats", return_stats)
    if not train and (running_mean is None or running_var is None):
        raise ValueError(f"{op}: running_mean and running_var may be None only when training")
    share, eps = _number(op, "momentum", momentum), _within(op, "eps", eps, 0, float("inf"))
    given = {"running_mean": running_mean, "running_var": running_var}
    (x, mean, var, weight, bias), library = arrays.admit(op, x=x, **given, weight=weight, bias=bias)
    shape = _channels(op, x, weight, running_mean=mean, running_var=var, bias=bias)
    places = _each(op, out, 3) if stats_too else (out,)
    if places[0] is not None:
        arrays.check_out(op, tuple(x.shape), library.result, places[0])
    if train:
        if shape[0] * shape[2] == 1:
            raise ValueError(f"{op}: training needs two values per channel, x has {tuple(x.shape)}")
        if not dispatch.asked():
            # The arrays themselves, not the copies that took part in the promotion of dtypes.
            mean, var = (
                None if r is None else arrays.to_update(op, name, r, shape[1:2], library)
                for name, r in given.items()
            )
    result = dispatch.run(
        op,
        Elements(tuple(x.shape), 4),
        library,
        method,
        library.xp.reshape(x, shape),
        mean,
        var,
        weight,
        bias,
        train,
        share,
        eps,
        again=again,
    )
    y = _give(op, library, library.xp.reshape(result[0], tuple(x.shape)), places[0])
    if not stats_too:
        return y
    return y, _give(op, library, result[1], places[1]), _give(op, library, result[2], places[2])


def _channels(op: str, x: Array, weight: Array, **vectors: Array) -> tuple[int, int, int]:
    """The shape of x as (N, C, values per channel of one example), with the vectors checked."""
    shape = tuple(x.shape)
    if len(shape) not in (2, 3, 4):
        raise ValueError(f"{op}: x must have shape (N, C), (N, C, L) or (N, C, H, W), not {shape}")
    if 0 in shape[1:]:
        raise ValueError(f"{op}: x has an empty axis (shape {shape}); only N may be 0")
    for name, a in {"weight": weight, **vectors}.items():
        _fits(op, name, a, (shape[1],))
    return shape[0], shape[1], prod(shape[2:])


def batch_norm_backward(
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    weight: Array | None = None,
    *,
    method: str = "auto",
    out: Arrays | None = None,
) -> Arrays:
    """Gradients of `batch_norm` when training.

    Parameters
    ----------
    dy, x : arrays of shape (N, C), (N, C, L) or (N, C, H, W)
        Gradient of the loss by the output, and the input.
    mean, rstd : arrays of shape (C,)
        The batch's mean and ``1 / sqrt(var + eps)``, as `batch_norm` gives with ``return_stats``.
    weight : array of shape (C,), optional
        As given to `batch_norm`.
    method : str
        A name out of ``cnnfast.methods("batch_norm_backward")``, or "auto".
    out : tuple of three arrays or None, optional
        Where the gradients go, in place of new arrays; of their shapes and dtype.

    Returns
    -------
    dx : array of the shape of x
    dweight, dbias : arrays of shape (C,)

    Notes
    -----
    With ``n = (x - mean) * rstd`` and means over a channel, ``dx = weight * rstd * (dy - mean(dy) -
    n * mean(dy * n))``, ``dweight = sum(dy * n)``, ``dbias = sum(dy)``: Ioffe and Szegedy, 2015.

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> x, dy = np.array([[1.0], [3.0]]), np.array([[1.0], [0.0]])
    >>> dx, dweight, dbias = cnnfast.batch_norm_backward(dy, x, np.array([2.0]), np.array([1.0]))
    >>> dweight, dbias
    (array([-1.]), array([1.]))
    """
    op = "batch_norm_backward"
    again = (dy, x, mean, rstd, weight), ()
    gradients: Arrays | None = dispatch.again(op, method, *again, out)
    if gradients is not None:
        return gradients
    places = _each(op, out, 3)
    named = {"dy": dy, "x": x, "mean": mean, "rstd": rstd, "weight": weight}
    (dy, x, mean, rstd, weight), library = arrays.admit(op, **named)
    shape = _channels(op, x, weight, mean=mean, rstd=rstd)
    _fits(op, "dy", dy, tuple(x.shape))
    reshape = library.xp.reshape
    dx, dweight, dbias = dispatch.run(
        op,
        Elements(tuple(x.shape), 8),
        library,
        method,
        reshape(dy, shape),
        reshape(x, shape),
        mean,
        rstd,
        weight,
        again=again,
    )
    results = reshape(dx, tuple(x.shape)), dweight, dbias
    return tuple(_give(op, library, a, o) for a, o in zip(results, places, strict=True))


def _of_one_shape(op: str, **named: Array) -> tuple[list[Array], Library, tuple[int, ...]]:
    """One array, or two of one shape, admitted; and that shape."""
    operands, library = arrays.admit(op, **named)
    shape, *others = (tuple(a.shape) for a in operands)
    if others and others[0] != shape:
        first, second = named
        raise ValueError(f"{op}: {first} {shape} and {second} {others[0]} differ")
    return operands, library, shape


def _elementwise(op: str, method: str, out: Array | None, *options: Any, **named: Array) -> Array:
    """An operation on one array, or on two of one shape."""
    again = tuple(named.values()), options
    y = dispatch.again(op, method, *again, out)
    if y is not None:
        return y
    operands, library, shape = _of_one_shape(op, **named)
    y = dispatch.run(op, Elements(shape), library, method, *operands, *options, again=again)
    return _give(op, library, y, out)


def relu(x: Array, *, method: str = "auto", out: Array | None = None) -> Array:
    """The larger of x and 0; NaN stays NaN.

    Parameters
    ----------
    x : array of any shape
    method : str
        A name out of ``cnnfast.methods("relu")``, or "auto".
    out : array, optional
        Where the result goes, in place of a new array; of its shape and dtype.

    Returns
    -------
    array of the shape of x

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> cnnfast.relu(np.array([-1.0, 0.0, 2.0]))
    array([0., 0., 2.])
    """
    return _elementwise("relu", method, out, x=x)


def relu_backward(dy: Array, x: Array, *, method: str = "auto", out: Array | None = None) -> Array:
    """Gradient of `relu`: dy where x > 0, else 0 (at 0 too).

    Parameters
    ----------
    dy, x : arrays of one shape
        Gradient of the loss by the output, and the input. (The output serves as well.)
    method : str
        A name out of ``cnnfast.methods("relu_backward")``, or "auto".
    out : array, optional
        Where the result goes, in place of a new array; of its shape and dtype.

    Returns
    -------
    array of the shape of x

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> cnnfast.relu_backward(np.ones(3), np.array([-1.0, 0.0, 2.0]))
    array([0., 0., 1.])
    """
    return _elementwise("relu_backward", method, out, dy=dy, x=x)


def leaky_relu(
    x: Array, negative_slope: float = 0.01, *, method: str = "auto", out: Array | None = None
) -> Array:
    """x where it is positive, else ``negative_slope * x``.

    Parameters
    ----------
    x : array of any shape
    negative_slope : float
        The slope below 0.
    method : str
        A name out of ``cnnfast.methods("leaky_relu")``, or "auto".
    out : array, optional
        Where the result goes, in place of a new array; of its shape and dtype.

    Returns
    -------
    array of the shape of x

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> cnnfast.leaky_relu(np.array([-1.0, 2.0]), 0.5)
    array([-0.5,  2. ])
    """
    slope = _number("leaky_relu", "negative_slope", negative_slope)
    return _elementwise("leaky_relu", method, out, slope, x=x)


def leaky_relu_backward(
    dy: Array,
    x: Array,
    negative_slope: float = 0.01,
    *,
    method: str = "auto",
    out: Array | None = None,
) -> Array:
    """Gradient of `leaky_relu`: dy where x > 0, else ``negative_slope * dy``.

    Parameters
    ----------
    dy, x : arrays of one shape
        Gradient of the loss by the output, and the input.
    negative_slope : float
        As given to `leaky_relu`.
    method : str
        A name out of ``cnnfast.methods("leaky_relu_backward")``, or "auto".
    out : array, optional
        Where the result goes, in place of a new array; of its shape and dtype.

    Returns
    -------
    array of the shape of x

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> cnnfast.leaky_relu_backward(np.ones(2), np.array([-1.0, 2.0]), 0.5)
    array([0.5, 1. ])
    """
    slope = _number("leaky_relu_backward", "negative_slope", negative_slope)
    return _elementwise("leaky_relu_backward", method, out, slope, dy=dy, x=x)


def sigmoid(x: Array, *, method: str = "auto", out: Array | None = None) -> Array:
    """``1 / (1 + exp(-x))``, without overflow at either end.

    Parameters
    ----------
    x : array of any shape
    method : str
        A name out of ``cnnfast.methods("sigmoid")``, or "auto".
    out : array, optional
        Where the result goes, in place of a new array; of its shape and dtype.

    Returns
    -------
    array of the shape of x

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> cnnfast.sigmoid(np.array([-1000.0, 0.0]))
    array([0. , 0.5])
    """
    return _elementwise("sigmoid", method, out, x=x)


def sigmoid_backward(
    dy: Array, x: Array, *, method: str = "auto", out: Array | None = None
) -> Array:
    """Gradient of `sigmoid`: ``dy * y * (1 - y)`` with ``y = sigmoid(x)``.

    Parameters
    ----------
    dy, x : arrays of one shape
        Gradient of the loss by the output, and the input.
    method : str
        A name out of ``cnnfast.methods("sigmoid_backward")``, or "auto".
    out : array, optional
        Where the result goes, in place of a new array; of its shape and dtype.

    Returns
    -------
    array of the shape of x

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> cnnfast.sigmoid_backward(np.ones(1), np.zeros(1))
    array([0.25])
    """
    return _elementwise("sigmoid_backward", method, out, dy=dy, x=x)


def tanh(x: Array, *, method: str = "auto", out: Array | None = None) -> Array:
    """The hyperbolic tangent.

    Parameters
    ----------
    x : array of any shape
    method : str
        A name out of ``cnnfast.methods("tanh")``, or "auto".
    out : array, optional
        Where the result goes, in place of a new array; of its shape and dtype.

    Returns
    -------
    array of the shape of x

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> cnnfast.tanh(np.array([0.0, 1000.0]))
    array([0., 1.])
    """
    return _elementwise("tanh", method, out, x=x)


def tanh_backward(dy: Array, x: Array, *, method: str = "auto", out: Array | None = None) -> Array:
    """Gradient of `tanh`: ``dy * (1 - y**2)`` with ``y = tanh(x)``.

    Parameters
    ----------
    dy, x : arrays of one shape
        Gradient of the loss by the output, and the input.
    method : str
        A name out of ``cnnfast.methods("tanh_backward")``, or "auto".
    out : array, optional
        Where the result goes, in place of a new array; of its shape and dtype.

    Returns
    -------
    array of the shape of x

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> cnnfast.tanh_backward(np.ones(1), np.zeros(1))
    array([1.])
    """
    return _elementwise("tanh_backward", method, out, dy=dy, x=x)


def _axis(op: str, axis: int, ndim: int) -> int:
    if isinstance(axis, bool) or not isinstance(axis, int | np.integer):
        raise TypeError(f"{op}: axis must be an integer, not {axis!r}")
    if not -ndim <= axis < ndim:
        raise ValueError(f"{op}: axis {axis} does not exist in {ndim} axes")
    return int(axis)


def _along(op: str, axis: int, method: str, out: Array | None, **named: Array) -> Array:
    """The same along one axis, which must not be empty."""
    again = tuple(named.values()), (axis,)
    y = dispatch.again(op, method, *again, out)
    if y is not None:
        return y
    operands, library, shape = _of_one_shape(op, **named)
    axis = _axis(op, axis, len(shape))
    if shape[axis] == 0:
        raise ValueError(f"{op}: axis {axis} is empty (shape {shape})")
    y = dispatch.run(op, Elements(shape), library, method, *operands, axis, again=again)
    return _give(op, library, y, out)


def softmax(x: Array, axis: int = -1, *, method: str = "auto", out: Array | None = None) -> Array:
    """``exp(x)`` divided by its sum along an axis.

    Parameters
    ----------
    x : array of any shape
    axis : int
        The axis that sums to 1.
    method : str
        A name out of ``cnnfast.methods("softmax")``, or "auto".
    out : array, optional
        Where the result goes, in place of a new array; of its shape and dtype.

    Returns
    -------
    array of the shape of x

    Notes
    -----
    The largest element is subtracted first, which changes nothing but overflow.

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> cnnfast.softmax(np.array([1000.0, 1000.0]))
    array([0.5, 0.5])
    """
    return _along("softmax", axis, method, out, x=x)


def softmax_backward(
    dy: Array, y: Array, axis: int = -1, *, method: str = "auto", out: Array | None = None
) -> Array:
    """Gradient of `softmax`: ``y * (dy - sum(dy * y))``.

    Parameters
    ----------
    dy, y : arrays of one shape
        Gradient of the loss by the output, and the output.
    axis : int
        As given to `softmax`.
    method : str
        A name out of ``cnnfast.methods("softmax_backward")``, or "auto".
    out : array, optional
        Where the result goes, in place of a new array; of its shape and dtype.

    Returns
    -------
    array of the shape of y

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> cnnfast.softmax_backward(np.array([1.0, 0.0]), np.array([0.5, 0.5]))
    array([ 0.25, -0.25])
    """
    return _along("softmax_backward", axis, method, out, dy=dy, y=y)


def log_softmax(
    x: Array, axis: int = -1, *, method: str = "auto", out: Array | None = None
) -> Array:
    """The logarithm of `softmax`, accurate where that is tiny.

    Parameters
    ----------
    x : array of any shape
    axis : int
        The axis along which ``exp(y)`` sums to 1.
    method : str
        A name out of ``cnnfast.methods("log_softmax")``, or "auto".
    out : array, optional
        Where the result goes, in place of a new array; of its shape and dtype.

    Returns
    -------
    array of the shape of x

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> cnnfast.log_softmax(np.array([1000.0, 0.0]))
    array([    0., -1000.])
    """
    return _along("log_softmax", axis, method, out, x=x)


def log_softmax_backward(
    dy: Array, y: Array, axis: int = -1, *, method: str = "auto", out: Array | None = None
) -> Array:
    """Gradient of `log_softmax`: ``dy - exp(y) * sum(dy)``.

    Parameters
    ----------
    dy, y : arrays of one shape
        Gradient of the loss by the output, and the output.
    axis : int
        As given to `log_softmax`.
    method : str
        A name out of ``cnnfast.methods("log_softmax_backward")``, or "auto".
    out : array, optional
        Where the result goes, in place of a new array; of its shape and dtype.

    Returns
    -------
    array of the shape of y

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> cnnfast.log_softmax_backward(np.array([1.0, 0.0]), np.log([0.5, 0.5]))
    array([ 0.5, -0.5])
    """
    return _along("log_softmax_backward", axis, method, out, dy=dy, y=y)


def _product(op: str, x: Array, w: Array) -> tuple[Product, tuple[int, ...]]:
    geometry.rank(op, "w", tuple(w.shape), "out_features, in_features")
    shape = tuple(x.shape)
    if not shape or shape[-1] != w.shape[1]:
        raise ValueError(f"{op}: w has {w.shape[1]} input features, x has shape {shape}")
    if 0 in w.shape:
        raise ValueError(f"{op}: w has an empty axis (shape {tuple(w.shape)})")
    return Product(prod(shape[:-1]), w.shape[1], w.shape[0]), (*shape[:-1], w.shape[0])


def linear(
    x: Array, w: Array, b: Array | None = None, *, method: str = "auto", out: Array | None = None
) -> Array:
    """``x @ w.T + b``: a fully connected layer.

    Parameters
    ----------
    x : array of shape (..., in_features)
        Inputs.
    w : array of shape (out_features, in_features)
        Weights.
    b : array of shape (out_features,), optional
        Added to every row.
    method : str
        A name out of ``cnnfast.methods("linear")``, or "auto".
    out : array, optional
        Where the result goes, in place of a new array; of its shape and dtype.

    Returns
    -------
    array of shape (..., out_features)

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> cnnfast.linear(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]]), np.array([0.5]))
    array([[11.5]])
    """
    op = "linear"
    again = (x, w, b), ()
    y = dispatch.again(op, method, *again, out)
    if y is not None:
        return y
    (x, w, b), library = arrays.admit(op, x=x, w=w, b=b)
    g, _ = _product(op, x, w)
    _fits(op, "b", b, (w.shape[0],))
    return _give(op, library, dispatch.run(op, g, library, method, x, w, b, again=again), out)


def linear_backward(
    dy: Array,
    x: Array,
    w: Array,
    *,
    needs: str = "xwb",
    method: str = "auto",
    out: Arrays | None = None,
) -> Arrays:
    """Gradients of `linear`: ``dx = dy @ w``, ``dw = dy.T @ x``, ``db = sum of dy's rows``.

    Parameters
    ----------
    dy : array of shape (..., out_features)
        Gradient of the loss by the output.
    x, w : arrays
        As given to `linear`.
    needs : str
        The gradients wanted, letters of "xwb"; the others are None and are not computed.
    method : str
        A name out of ``cnnfast.methods("linear_backward")``, or "auto".
    out : tuple of three arrays or None, optional
        Where the gradients go, in place of new arrays; of their shapes and dtype.

    Returns
    -------
    dx, dw, db : arrays of the shapes of x, w and b, or None

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> x, w = np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]])
    >>> cnnfast.linear_backward(np.array([[1.0]]), x, w)
    (array([[3., 4.]]), array([[1., 2.]]), array([1.]))
    """
    op = "linear_backward"
    again = (dy, x, w), (needs,)
    gradients: Arrays | None = dispatch.again(op, method, *again, out)
    if gradients is not None:
        return gradients
    (dy, x, w), library = arrays.admit(op, dy=dy, x=x, w=w)
    g, shape = _product(op, x, w)
    _fits(op, "dy", dy, shape)
    needs = _wanted(op, needs)
    cost = _gradient_cost(dy, x, w, w.shape[0], needs)
    places = _each(op, out, 3)
    grads = dispatch.run(op, g, library, method, dy, x, w, needs=needs, again=again, **cost)
    return tuple(_give(op, library, a, o) for a, o in zip(grads, places, strict=True))


def dropout(
    x: Array,
    p: float = 0.5,
    training: bool = True,
    *,
    rng: np.random.Generator,
    return_mask: bool = False,
    method: str = "auto",
) -> Array | tuple[Array, Array]:
    """Set elements to 0 with probability p, and divide the others by ``1 - p``.

    Parameters
    ----------
    x : array of any shape
    p : float
        Probability of an element to be dropped, 0 to 1.
    training : bool
        If False, nothing is dropped.
    rng : numpy.random.Generator
        Where the randomness comes from: an element stays where ``rng.random(x.shape) >= p``.
    return_mask : bool
        Give also the boolean array of what stayed, for `dropout_backward`.
    method : str
        A name out of ``cnnfast.methods("dropout")``, or "auto".

    Returns
    -------
    y : array of the shape of x
    mask : bool array of the shape of x, only with `return_mask`

    Notes
    -----
    The "inverted" form of Srivastava et al., "Dropout", 2014, which leaves the mean as it was.

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> y = cnnfast.dropout(np.ones(1000), 0.25, rng=np.random.default_rng(0))
    >>> sorted(set(y.round(4).tolist()))
    [0.0, 1.3333]
    """
    op = "dropout"
    p = _within(op, "p", p, 0, 1)
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"{op}: rng must be a numpy.random.Generator, not {rng!r}")
    (x,), library = arrays.admit(op, x=x)
    shape = tuple(x.shape)
    mask_too = geometry.flag(op, "return_mask", return_mask)
    train = geometry.flag(op, "training", training)
    dispatch.forced(op, method)  # a wrong name is refused before anything is drawn
    if dispatch.asked():
        kept = np.broadcast_to(np.True_, shape)
    elif train:
        kept = np.asarray(rng.random(shape) >= p)
    else:
        kept, p = np.ones(shape, bool), 0.0
    mask = arrays.beside(kept, library, "bool")
    y = library.finish(dispatch.run(op, Elements(shape), library, method, x, mask, p))
    return (y, library.back(mask)) if mask_too else y


def dropout_backward(dy: Array, mask: Array, p: float = 0.5, *, method: str = "auto") -> Array:
    """Gradient of `dropout`: dy where the element stayed, divided by ``1 - p``, else 0.

    Parameters
    ----------
    dy : array of any shape
        Gradient of the loss by the output.
    mask : bool array of the shape of dy
        What `dropout` gave with ``return_mask=True``.
    p : float
        As given to `dropout` (0 if that was not training).
    method : str
        A name out of ``cnnfast.methods("dropout_backward")``, or "auto".

    Returns
    -------
    array of the shape of dy

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> cnnfast.dropout_backward(np.ones(2), np.array([True, False]), 0.5)
    array([2., 0.])
    """
    op = "dropout_backward"
    p = _within(op, "p", p, 0, 1)
    (dy,), library = arrays.admit(op, dy=dy)
    mask = arrays.booleans(op, "mask", mask, library)
    _fits(op, "mask", mask, tuple(dy.shape))
    dx = dispatch.run(op, Elements(tuple(dy.shape)), library, method, dy, mask, p)
    return library.finish(dx)


def _classification(
    op: str, scores: Array, labels: Array, method: str, **options: Any
) -> tuple[float, Array]:
    (scores,), library = arrays.admit(op, scores=scores)
    labels = arrays.integers(op, "labels", labels, library)
    geometry.rank(op, "scores", tuple(scores.shape), "N, C")
    N, C = scores.shape
    if C == 0:
        raise ValueError(f"{op}: scores has no classes (shape {tuple(scores.shape)})")
    _fits(op, "labels", labels, (N,))
    if N and not dispatch.asked():
        low, high = int(library.xp.min(labels)), int(library.xp.max(labels))
        if low < 0 or high >= C:
            raise ValueError(f"{op}: labels run from {low} to {high}, scores has {C} classes")
    g = Elements((N, C), 4)
    loss, dscores = dispatch.run(op, g, library, method, scores, labels, **options)
    return loss, library.finish(dscores)


def cross_entropy(
    scores: Array,
    labels: Array,
    *,
    label_smoothing: float = 0.0,
    method: str = "auto",
) -> tuple[float, Array]:
    """The mean of ``-log softmax(scores)`` at the right classes, and its gradient.

    Parameters
    ----------
    scores : array of shape (N, C)
        One row of class scores (logits) for each example.
    labels : integer array of shape (N,)
        The right classes, 0 to C - 1.
    label_smoothing : float
        The share of the target that is spread evenly over all classes, 0 to 1.
    method : str
        A name out of ``cnnfast.methods("cross_entropy")``, or "auto".

    Returns
    -------
    loss : float
        NaN for an empty batch, as in PyTorch.
    dscores : array of shape (N, C)

    Notes
    -----
    ``dscores = (softmax(scores) - target) / N``; as ``torch.nn.functional.cross_entropy``. The
    smoothing is of Szegedy et al., "Rethinking the Inception architecture", 2016.

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> loss, dscores = cnnfast.cross_entropy(np.array([[0.0, 0.0]]), np.array([1]))
    >>> round(loss, 6), dscores
    (0.693147, array([[ 0.5, -0.5]]))
    """
    smoothing = _within("cross_entropy", "label_smoothing", label_smoothing, 0, 1)
    return _classification("cross_entropy", scores, labels, method, label_smoothing=smoothing)


def multi_margin_loss(
    scores: Array,
    labels: Array,
    *,
    margin: float = 1.0,
    method: str = "auto",
) -> tuple[float, Array]:
    """The courses' SVM loss: by how much wrong classes come within a margin of the right one.

    Parameters
    ----------
    scores : array of shape (N, C)
        One row of class scores for each example.
    labels : integer array of shape (N,)
        The right classes, 0 to C - 1.
    margin : float
        By how much the right class must be ahead.
    method : str
        A name out of ``cnnfast.methods("multi_margin_loss")``, or "auto".

    Returns
    -------
    loss : float
        NaN for an empty batch.
    dscores : array of shape (N, C)

    Notes
    -----
    ``loss = sum over n and all wrong j of max(0, scores[n, j] - scores[n, label] + margin) / N``,
    as in Stanford CS231n. PyTorch's function of this name divides by C as well, and so does
    `cnnfast.nn.MultiMarginLoss`.

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> cnnfast.multi_margin_loss(np.array([[1.0, 1.5, -3.0]]), np.array([0]))
    (1.5, array([[-1.,  1.,  0.]]))
    """
    margin = _number("multi_margin_loss", "margin", margin)
    return _classification("multi_margin_loss", scores, labels, method, margin=margin)


def mse_loss(pred: Array, target: Array, *, method: str = "auto") -> tuple[float, Array]:
    """The mean of the squared differences, and its gradient by the first argument.

    Parameters
    ----------
    pred, target : arrays of one shape
        What is and what should be.
    method : str
        A name out of ``cnnfast.methods("mse_loss")``, or "auto".

    Returns
    -------
    loss : float
        NaN for empty arrays.
    dpred : array of the shape of pred

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> cnnfast.mse_loss(np.array([1.0, 2.0]), np.array([0.0, 0.0]))
    (2.5, array([1., 2.]))
    """
    op = "mse_loss"
    (pred, target), library = arrays.admit(op, pred=pred, target=target)
    _fits(op, "target", target, tuple(pred.shape))
    g = Elements(tuple(pred.shape), 3)
    loss, dpred = dispatch.run(op, g, library, method, pred, target)
    return loss, library.finish(dpred)


_INTEGERS = frozenset({"indices", "labels"})
_FLOATS = frozenset(
    {"x", "w", "b", "dy", "y", "cols", "mean", "rstd", "weight", "bias"}
    | {"running_mean", "running_var", "scores", "pred", "target"}
)


def explain(op: str, *args: Any, dtype: DTypeLike = np.float32, **kwargs: Any) -> Explanation:
    """What would run for a call, and why: the same call, stopped before the arithmetic.

    Parameters
    ----------
    op : str
        The name of an operation, such as ``"conv2d"``.
    *args, **kwargs
        As for that operation. A shape may stand for an array.
    dtype : dtype
        Of the arrays for which a shape stands.

    Returns
    -------
    Explanation
        Prints well, and has ``.asdict()``.

    Raises
    ------
    ValueError, TypeError, MethodError
        As the call itself would.

    Examples
    --------
    >>> import cnnfast
    >>> e = cnnfast.explain("conv2d", (100, 3, 31, 31), (25, 3, 3, 3), stride=2, padding=1)
    >>> e.flops
    34560000
    """
    dispatch.methods(op)
    function = globals()[op]
    # float16 is computed in float32; an explanation of it need not convert anything.
    try:
        dtype = np.result_type(dtype, np.float32).type
    except TypeError:
        raise TypeError(f"{op}: dtype must be a dtype, not {dtype!r}") from None
    try:
        call = inspect.signature(function).bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{op}: {error}") from None
    for name, value in call.arguments.items():
        kind = np.int64 if name in _INTEGERS else np.bool_ if name == "mask" else dtype
        if isinstance(value, tuple) and name in _FLOATS | _INTEGERS | {"mask"}:
            # One number, seen everywhere: an array of any size in no memory.
            most = geometry.MOST_ELEMENTS
            shape = [geometry.whole(op, f"a length of {name}", n, 0, most) for n in value]
            if prod(shape) > most:
                raise ValueError(f"{op}: {name} is too large, {value}")
            call.arguments[name] = np.broadcast_to(kind(0), shape)
    with dispatch.asking():
        try:
            function(*call.args, **call.kwargs)
        except dispatch.Asked as answer:
            return answer.explanation
    raise AssertionError(f"{op} answered without asking for a method")
