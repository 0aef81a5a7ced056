"""UBC CPEN 455, programming assignment 1: convolution and back-propagation.

In the notebook the cells that define the functions are left out, and above the first of the unit
tests comes::

    from cnnfast.compat.cpen455 import *

Arrays may be NumPy's or PyTorch's, float32 or float64, and results are of the kind of their input.
Tensors on the CPU use the compiled kernels, without a copy; on another device the portable method
computes where they are. A tensor that requires grad counts without its graph, except that `CNN` of
such tensors gives one that does: its test asks PyTorch for the gradients of a loss of its output.

What differs from the handout:

- Sizes are those of the arrays. ``channel_size``, ``num_filters`` and ``kernel_size`` keep their
  places but are not used, so they need not be right; images and filters may be rectangular, and
  `stride` and `padding` all that `cnnfast.conv2d` takes. The handout's column convolution made the
  output as wide as it is high.
- `conv2d_filter2row` keeps the entries of its matrix that are not zero, and not the others;
  `cnnfast.methods.toeplitz.dense_matrix` shows the whole of it.
- `grad_checker` takes any convolution function, also PyTorch's, gives it float64 arrays, and the
  sizes of the arrays as those of its keywords that it has.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import numpy as np

from cnnfast import compiled, gradcheck
from cnnfast import functional as F
from cnnfast.arrays import detached, dtype_name, is_foreign, like, namespace, on_host, view

__all__ = [
    "CNN",
    "conv2d_filter2row",
    "conv2d_im2col",
    "func_batch_norm",
    "func_relu",
    "grad_CNN",
    "grad_batch_norm",
    "grad_checker",
    "grad_conv2d",
    "grad_relu",
]

Array = Any  # NumPy's, or a tensor


# Convolution


def conv2d_im2col(
    img: Array,
    filter: Array,
    channel_size: int = 1,
    num_filters: int = 1,
    kernel_size: int = 3,
    stride: Any = 1,
    padding: Any = 1,
) -> Array:
    """Convolution with every window of the images as a column; see `cnnfast.methods.im2col`.

    Parameters
    ----------
    img : array of shape (B, C, H, W)
        Images.
    filter : array of shape (D, C, KH, KW)
        Filters.
    channel_size, num_filters, kernel_size
        Not used: the arrays have them.
    stride, padding
        As of `cnnfast.conv2d`.

    Returns
    -------
    array of shape (B, D, OH, OW), OH = (H + 2 * padding - KH) // stride + 1

    Examples
    --------
    >>> import numpy as np
    >>> conv2d_im2col(np.arange(6.0).reshape(1, 1, 2, 3), np.ones((1, 1, 2, 2)), padding=0)
    array([[[[ 8., 12.]]]])
    """
    method = "im2col" if compiled.cython_missing() is None else "auto"
    return _conv2d(img, filter, stride, padding, method)


def conv2d_filter2row(
    img: Array,
    filter: Array,
    channel_size: int = 1,
    num_filters: int = 1,
    kernel_size: int = 3,
    stride: Any = 1,
    padding: Any = 1,
) -> Array:
    """`conv2d_im2col` with the filters as one sparse matrix; see `cnnfast.methods.toeplitz`."""
    return _conv2d(img, filter, stride, padding, "toeplitz")


def _conv2d(img: Array, filter: Array, stride: Any, padding: Any, method: str) -> Array:
    img, filter = map(detached, (img, filter))
    on_cpu = isinstance(view("conv2d", "img", img), np.ndarray)
    return F.conv2d(img, filter, None, stride, padding, method=method if on_cpu else "auto")


def grad_conv2d(
    img: Array,
    filter: Array,
    out: Array,
    grad_out: Array,
    channel_size: int = 1,
    num_filters: int = 1,
    kernel_size: int = 3,
    stride: Any = 1,
    padding: Any = 1,
) -> tuple[Array, Array]:
    """Gradients of the convolution; see `cnnfast.conv2d_backward`.

    Parameters
    ----------
    img, filter, channel_size, num_filters, kernel_size, stride, padding
        As given to `conv2d_im2col`.
    out : array
        Not used.
    grad_out : array of shape (B, D, OH, OW)
        The gradient by the output.

    Returns
    -------
    grad_img, grad_filter : arrays of the shapes of img and filter
    """
    grad_out, img, filter = map(detached, (grad_out, img, filter))
    return F.conv2d_backward(grad_out, img, filter, stride, padding, needs="xw")[:2]


def grad_checker(
    img: Array,
    filter: Array,
    conv: Callable[..., Array],
    grad_out: Array,
    epsilon: float = 1.0e-5,
    channel_size: int = 1,
    num_filters: int = 1,
    kernel_size: int = 3,
    stride: Any = 1,
    padding: Any = 1,
) -> tuple[Array, Array]:
    """The gradients of a convolution by central differences.

    Parameters
    ----------
    img, filter, channel_size, num_filters, kernel_size, stride, padding
        As given to `conv2d_im2col`.
    conv : callable
        Any convolution, called as ``conv(img, filter, stride=stride, padding=padding)``, with
        ``channel_size``, ``num_filters`` and ``kernel_size`` too if it has them, and without what
        it has not. It is given float64 arrays of the kind of img.
    grad_out : array of shape (B, D, OH, OW)
        The gradient by the output.
    epsilon : float
        The step to either side.

    Returns
    -------
    grad_img, grad_filter : arrays of the shapes and dtypes of img and filter

    See Also
    --------
    cnnfast.gradcheck.numeric_gradient
    """
    x, w = (np.array(on_host(a), np.float64) for a in (img, filter))
    options = _options(conv, w, stride, padding)

    def output(_: Array) -> Array:
        return on_host(conv(like(x, img), like(w, filter), **options))

    dy = on_host(grad_out)
    grad_img, grad_filter = (gradcheck.numeric_gradient(output, a, dy, epsilon) for a in (x, w))
    return like(grad_img.astype(_float(img)), img), like(grad_filter.astype(_float(filter)), filter)


def _options(conv: Callable[..., Array], w: Array, stride: Any, padding: Any) -> dict[str, Any]:
    """Those keywords of the handout that a convolution takes, with the values of this call."""
    D, C, KH, KW = w.shape
    options = {"stride": stride, "padding": padding}
    sizes = {"channel_size": C, "num_filters": D, "kernel_size": KH if KH == KW else (KH, KW)}
    try:
        parameters = inspect.signature(conv).parameters
    except (TypeError, ValueError):  # of a function that is not written in Python, as PyTorch's
        return options
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        options = {name: value for name, value in options.items() if name in parameters}
    return options | {name: value for name, value in sizes.items() if name in parameters}


def _float(a: Array) -> str:
    name = dtype_name(detached(a))
    return name if name.startswith("float") else "float64"


# ReLU and batch normalisation


def func_relu(x: Array) -> Array:
    """The larger of x and 0; see `cnnfast.relu`."""
    return F.relu(detached(x))


def grad_relu(x: Array, y: Array, grad_out: Array) -> Array:
    """The gradient of `func_relu` by x, which is 0 where x is 0; y is not used."""
    return F.relu_backward(detached(grad_out), detached(x))


def func_batch_norm(x: Array, epsilon: float = 1.0e-5) -> Array:
    """Every channel brought to mean 0 and variance 1; see `cnnfast.batch_norm`.

    Parameters
    ----------
    x : array of shape (B, C, H, W)
    epsilon : float
        Added to the variance.

    Returns
    -------
    array of the shape of x
    """
    return _batch_norm(x, epsilon)[0]


def grad_batch_norm(x: Array, y: Array, grad_out: Array, epsilon: float = 1.0e-5) -> Array:
    """The gradient of `func_batch_norm` by x; y is not used."""
    _, mean, rstd = _batch_norm(x, epsilon)
    return F.batch_norm_backward(detached(grad_out), detached(x), mean, rstd)[0]


def _batch_norm(x: Array, epsilon: float) -> Any:
    return F.batch_norm(detached(x), None, None, training=True, eps=epsilon, return_stats=True)


# The network


class _Pass(NamedTuple):
    """Every result of the network, in order."""

    conv_1: Array
    norm_1: Array
    relu_1: Array
    conv_2: Array
    norm_2: Array
    relu_2: Array
    features: Array
    logits: Array


def _forward(
    img: Array, filter_1: Array, filter_2: Array, weight: Array, stride: Any, padding: Any
) -> _Pass:
    conv_1 = _conv2d(img, filter_1, stride, padding, "auto")
    norm_1 = func_batch_norm(conv_1)
    relu_1 = func_relu(norm_1)
    conv_2 = _conv2d(relu_1, filter_2, stride, padding, "auto")
    norm_2 = func_batch_norm(conv_2)
    relu_2 = func_relu(norm_2)
    features = namespace(relu_2).reshape(relu_2, (relu_2.shape[0], prod(relu_2.shape[1:])))
    weight = detached(weight)
    shape = tuple(getattr(weight, "shape", ()))
    if len(shape) != 2 or shape[0] != features.shape[1]:
        raise ValueError(f"CNN: weight must have shape ({features.shape[1]}, classes), not {shape}")
    logits = F.linear(features, weight.T)
    return _Pass(conv_1, norm_1, relu_1, conv_2, norm_2, relu_2, features, logits)


def _backward(
    img: Array,
    filter_1: Array,
    filter_2: Array,
    weight: Array,
    grad_loss: Array,
    stride: Any,
    padding: Any,
) -> tuple[Array, Array, Array, Array]:
    """The gradients by all four arrays."""
    p = _forward(img, filter_1, filter_2, weight, stride, padding)
    grad_loss, weight = map(detached, (grad_loss, weight))
    shape, right = tuple(getattr(grad_loss, "shape", ())), tuple(p.logits.shape)
    if shape != right:
        raise ValueError(f"grad_CNN: grad_loss must have shape {right}, not {shape}")
    grad = namespace(weight).reshape(F.linear(grad_loss, weight), tuple(p.relu_2.shape))
    # The weights are the transpose of `cnnfast.linear`'s, so its output and input change places.
    grad_weight = F.linear_backward(p.features, grad_loss, weight, needs="w")[1]
    grad = grad_relu(p.norm_2, p.relu_2, grad)
    grad = grad_batch_norm(p.conv_2, p.norm_2, grad)
    sliding = {"stride": stride, "padding": padding}
    grad, grad_filter_2 = grad_conv2d(p.relu_1, filter_2, p.conv_2, grad, **sliding)
    grad = grad_relu(p.norm_1, p.relu_1, grad)
    grad = grad_batch_norm(p.conv_1, p.norm_1, grad)
    grad_img, grad_filter_1 = grad_conv2d(img, filter_1, p.conv_1, grad, **sliding)
    return grad_img, grad_filter_1, grad_filter_2, grad_weight


def CNN(
    img: Array,
    filter_1: Array,
    filter_2: Array,
    weight: Array,
    channel_size: int = 1,
    num_filters: int = 1,
    kernel_size: int = 3,
    stride: Any = 1,
    padding: Any = 1,
) -> Array:
    """conv - batch norm - ReLU - conv - batch norm - ReLU - linear: the logits.

    Parameters
    ----------
    img : array of shape (B, C, H, W)
        Images.
    filter_1, filter_2 : arrays of shape (D, C, KH, KW) and (E, D, KH, KW)
        Filters of the two convolutions.
    weight : array of shape (features, 10)
        Weights of the linear layer, for ``features = E * OH * OW`` of the second convolution.
    channel_size, num_filters, kernel_size
        Not used: the arrays have them.
    stride, padding
        Of both convolutions.

    Returns
    -------
    array of shape (B, 10)
        If one of the arrays is a tensor that requires grad, a tensor with a graph, whose way back
        is `grad_CNN`'s.
    """
    arrays = (img, filter_1, filter_2, weight)
    logits = _forward(*arrays, stride, padding).logits
    if not any(getattr(a, "requires_grad", False) for a in arrays):
        return logits

    def forward(ctx: Any, *arrays: Array) -> Array:
        ctx.save_for_backward(*filter(is_foreign, arrays))
        return logits

    def backward(ctx: Any, grad: Array) -> tuple[Array | None, ...]:
        _ = ctx.saved_tensors  # PyTorch refuses here if one has been changed since
        gradients = _backward(*arrays, grad, stride, padding)
        return tuple(g if is_foreign(a) else None for g, a in zip(gradients, arrays, strict=True))

    # A class of PyTorch's, made here because it need not be there.
    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    recorded: Any = type("CNN", (sys.modules["torch"].autograd.Function,), members)
    return recorded.apply(*arrays)


def grad_CNN(
    img: Array,
    filter_1: Array,
    filter_2: Array,
    weight: Array,
    grad_loss: Array,
    channel_size: int = 1,
    num_filters: int = 1,
    kernel_size: int = 3,
    stride: Any = 1,
    padding: Any = 1,
) -> tuple[Array, Array, Array]:
    """Gradients of `CNN` by its filters and weights.

    Parameters
    ----------
    img, filter_1, filter_2, weight, channel_size, num_filters, kernel_size, stride, padding
        As given to `CNN`.
    grad_loss : array of shape (B, 10)
        The gradient by the logits.

    Returns
    -------
    grad_filter_1, grad_filter_2, grad_weight : arrays of the shapes of filter_1, filter_2, weight
    """
    return _backward(img, filter_1, filter_2, weight, grad_loss, stride, padding)[1:]
