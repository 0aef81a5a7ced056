"""MyTorch, the library that students of CMU 11-785 write, over `cnnfast`: homework 2, part 1.

In a notebook, one line changes::

    from mytorch.conv import Conv1d, Conv2d              # before
    from cnnfast.compat.mytorch import Conv1d, Conv2d    # after

For the homework's autograder, which imports the files of its ``mytorch`` and ``hw2`` folders by
name (``from conv import *``, ``import hw2``), each of those files may be this one line; nothing of
the autograder changes::

    from cnnfast.compat.mytorch import *

Shapes are ``(N, C, W)`` for signals, ``(N, C, H, W)`` for images. Every layer has ``forward(A)``
and ``backward(dLdZ)``, and may be called: ``layer(A)``. A layer remembers its last ``forward``, and
``backward`` goes back through that one. Parameters are plain attributes, ``W`` and ``b``, that may
be set to other arrays; ``backward`` leaves their gradients in ``dLdW`` and ``dLdb``.

What differs from the handout (fall 2022), and why:

- The resampling and pooling layers remember the shape of their input. The handout lets them store
  nothing, but where the factor does not divide, several input sizes give the same output size, and
  ``backward`` has to return the right one. `Downsample1d` takes ``downsampling_factor``, as the
  handout says (its sketch says ``stride``, and then reads a name that is not there).
- Kernels, strides and factors of the 2d layers may be ``(rows, columns)``. Images need not be
  square.
- ``weight_init_fn`` and ``bias_init_fn`` may be left out. Biases are then 0, weights start as
  PyTorch's do, in float64, and no global seed is read.
- ``b`` may be ``(C,)``, as ``bias_init_fn(out_channels)`` gives it, or ``(C, 1)``, as the tables
  say; ``dLdb`` has its shape. `Linear` starts with ``(C, 1)``, the others with ``(C,)``.
- The losses return means, over the batch and, for `MSELoss`, over the outputs too, and their
  ``backward`` is the gradient of exactly that number. ``dLdW`` and ``dLdb`` are the gradients of
  the loss for every layer. (Homework 1 has had a factor of 1/2 in the one, and the division by
  the batch in ``Linear``, where it does not reach the convolutions.)
- An activation's ``backward`` takes ``dLdA`` and returns ``dLdZ``, as section 6 calls it; without
  an argument it returns ``dAdZ``, as homework 1 calls it.
- `ConvTranspose1d` and `ConvTranspose2d` are the handout's: zeros between the elements, then a
  convolution without padding. PyTorch's and `cnnfast.nn`'s are gradients of a convolution: the
  output is ``2 * (kernel_size - 1)`` larger, the filter flipped, the weight's channels swapped.

As in the handout, a convolution or pooling of stride s is one of stride 1 whose results are then
dropped but for every s-th. `cnnfast.nn.Conv2d` computes only what is kept.

References
----------
CMU 11-785, Introduction to Deep Learning, fall 2022, homework 2 part 1, "An Introduction to
Convolutional Neural Networks"; section numbers below are its.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cnnfast import functional as F
from cnnfast.compat.lone import doubled
from cnnfast.models import DistributedScanningMLP, SimpleCNN1d, SimpleScanningMLP
from cnnfast.nn import init
from cnnfast.nn.arguments import sizes, whole
from cnnfast.training import SGD

__all__ = [
    "CNN",
    "BatchNorm1d",
    "CNN_DistributedScanningMLP",
    "CNN_SimpleScanningMLP",
    "Conv1d",
    "Conv1d_stride1",
    "Conv2d",
    "Conv2d_stride1",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "CrossEntropyLoss",
    "Downsample1d",
    "Downsample2d",
    "Flatten",
    "Identity",
    "Linear",
    "MSELoss",
    "MaxPool1d",
    "MaxPool1d_stride1",
    "MaxPool2d",
    "MaxPool2d_stride1",
    "MeanPool1d",
    "MeanPool1d_stride1",
    "MeanPool2d",
    "MeanPool2d_stride1",
    "ReLU",
    "Sigmoid",
    "Tanh",
    "Upsample1d",
    "Upsample2d",
]

Array = NDArray[Any]
InitFn = Callable[..., Any] | None
Size = int | tuple[int, int]


class _Layer:
    """What all layers have. A subclass's `forward` keeps in attributes what `backward` needs."""

    # Of a subclass whose forward and backward are one operation each of `cnnfast.functional`.
    _op: ClassVar[Callable[..., Any]]
    _op_backward: ClassVar[Callable[..., Any]]

    def __call__(self, A: Array) -> Array:
        return self.forward(A)

    def forward(self, A: Array) -> Array:
        raise NotImplementedError

    def backward(self, dLdZ: Array) -> Array:
        raise NotImplementedError

    def _recall(self, name: str) -> Any:
        """The attribute that `forward` has set."""
        if name not in self.__dict__:
            raise RuntimeError(f"{type(self).__name__}.backward: call forward first")
        return self.__dict__[name]


class _Chain(_Layer):
    """Layers one after the other."""

    def _in_order(self) -> Sequence[Any]:
        raise NotImplementedError

    def forward(self, A: Array) -> Array:
        for layer in self._in_order():
            A = layer.forward(A)
        return A

    def backward(self, dLdZ: Array) -> Array:
        for layer in reversed(self._in_order()):
            dLdZ = layer.backward(dLdZ)
        return dLdZ


# Section 4: resampling


class _Upsample(_Layer):
    def __init__(self, upsampling_factor: Size) -> None:
        self.upsampling_factor = upsampling_factor

    def forward(self, A: Array) -> Array:
        self.input_shape = np.shape(A)
        Z: Array = self._op(A, self.upsampling_factor)
        return Z

    def backward(self, dLdZ: Array) -> Array:
        dLdA: Array = self._op_backward(dLdZ, self.upsampling_factor, self._recall("input_shape"))
        return dLdA


class Upsample1d(_Upsample):
    """Put ``upsampling_factor - 1`` zeros between the elements of signals; `cnnfast.dilate1d`.

    ``(N, C, W)`` becomes ``(N, C, W * upsampling_factor - (upsampling_factor - 1))``.

    Examples
    --------
    >>> import numpy as np
    >>> layer = Upsample1d(3)
    >>> layer(np.array([[[1.0, 2.0]]]))
    array([[[1., 0., 0., 2.]]])
    >>> layer.backward(np.array([[[1.0, 2.0, 3.0, 4.0]]]))
    array([[[1., 4.]]])
    """

    _op = staticmethod(F.dilate1d)
    _op_backward = staticmethod(F.dilate1d_backward)


class Upsample2d(_Upsample):
    """Put ``upsampling_factor - 1`` zeros between the pixels of images; `cnnfast.dilate2d`."""

    _op = staticmethod(F.dilate2d)
    _op_backward = staticmethod(F.dilate2d_backward)


class _Downsample(_Layer):
    def __init__(self, downsampling_factor: Size) -> None:
        self.downsampling_factor = downsampling_factor

    def forward(self, A: Array) -> Array:
        self.input_shape = np.shape(A)
        Z: Array = self._op(A, self.downsampling_factor)
        return Z

    def backward(self, dLdZ: Array) -> Array:
        dLdA: Array = self._op_backward(dLdZ, self.downsampling_factor, self._recall("input_shape"))
        return dLdA


class Downsample1d(_Downsample):
    """Keep every ``downsampling_factor``-th element of signals; `cnnfast.subsample1d`.

    ``(N, C, W)`` becomes ``(N, C, (W - 1) // downsampling_factor + 1)``.

    Examples
    --------
    >>> import numpy as np
    >>> layer = Downsample1d(2)
    >>> layer(np.array([[[1.0, 2.0, 3.0, 4.0]]]))
    array([[[1., 3.]]])
    >>> layer.backward(np.array([[[5.0, 6.0]]]))
    array([[[5., 0., 6., 0.]]])
    """

    _op = staticmethod(F.subsample1d)
    _op_backward = staticmethod(F.subsample1d_backward)


class Downsample2d(_Downsample):
    """Keep every ``downsampling_factor``-th row and column of images; `cnnfast.subsample2d`."""

    _op = staticmethod(F.subsample2d)
    _op_backward = staticmethod(F.subsample2d_backward)


# Sections 5.1 and 5.2: convolutions, and the linear layer, which is like them


class _Weighted(_Layer):
    """``Z`` from ``A``, the weights ``W`` and the biases ``b``, by `_op`."""

    W: Array
    b: Array
    dLdW: Array
    dLdb: Array

    def _start(
        self,
        W_shape: tuple[int, ...],
        b_shape: tuple[int, ...],
        weight_init_fn: InitFn,
        bias_init_fn: InitFn,
    ) -> None:
        me = type(self).__name__
        for name, fn in {"weight_init_fn": weight_init_fn, "bias_init_fn": bias_init_fn}.items():
            if fn is not None and not callable(fn):
                raise TypeError(f"{me}: {name} must be a function of a shape or None, not {fn!r}")
        if weight_init_fn is None:
            self.W = init.default_weight(W_shape, dtype=np.float64)
        else:
            self.W = np.asarray(weight_init_fn(*W_shape))
            if self.W.shape != W_shape:
                raise ValueError(
                    f"{me}: weight_init_fn{W_shape} must give an array of that "
                    f"shape, not {self.W.shape}"
                )
        b = np.asarray(np.zeros(b_shape) if bias_init_fn is None else bias_init_fn(b_shape[0]))
        if b.size != b_shape[0]:
            raise ValueError(
                f"{me}: bias_init_fn({b_shape[0]}) must give {b_shape[0]} numbers, "
                f"not an array of shape {b.shape}"
            )
        self.b = np.reshape(b, b_shape)
        self.dLdW = np.zeros(self.W.shape)
        self.dLdb = np.zeros(self.b.shape)

    def forward(self, A: Array) -> Array:
        self.A = A
        Z: Array = self._op(A, self.W, np.reshape(self.b, -1))
        return Z

    def backward(self, dLdZ: Array) -> Array:
        dLdA: Array
        dLdA, self.dLdW, dLdb = self._op_backward(dLdZ, self._recall("A"), self.W)
        self.dLdb = np.reshape(dLdb, np.shape(self.b))
        return dLdA


class _ConvStride1(_Weighted):
    _ndim: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        weight_init_fn: InitFn = None,
        bias_init_fn: InitFn = None,
    ) -> None:
        me = type(self).__name__
        self.in_channels = whole(me, "in_channels", in_channels, 1)
        self.out_channels = whole(me, "out_channels", out_channels, 1)
        self.kernel_size = kernel_size
        kernel = sizes(me, "kernel_size", kernel_size, self._ndim, 1)
        W_shape = (self.out_channels, self.in_channels, *kernel)
        self._start(W_shape, (self.out_channels,), weight_init_fn, bias_init_fn)


class Conv1d_stride1(_ConvStride1):
    """Convolution of signals with stride 1; see `cnnfast.conv1d`.

    Parameters
    ----------
    in_channels, out_channels, kernel_size : int
        Sizes; there is no padding.
    weight_init_fn : callable, optional
        Called as ``weight_init_fn(out_channels, in_channels, kernel_size)`` for the weights.
    bias_init_fn : callable, optional
        Called as ``bias_init_fn(out_channels)`` for the biases.

    Attributes
    ----------
    W, dLdW : ndarray (out_channels, in_channels, kernel_size)
        Weights, and the gradient of the loss by them: the sum over the batch.
    b, dLdb : ndarray (out_channels,)
        Biases, and the gradient of the loss by them.
    A : ndarray (N, in_channels, W)
        The last input.

    Examples
    --------
    >>> import numpy as np
    >>> layer = Conv1d_stride1(1, 1, 2, lambda *shape: np.ones(shape), np.zeros)
    >>> layer(np.array([[[1.0, 2.0, 4.0]]]))
    array([[[3., 6.]]])
    >>> layer.backward(np.array([[[1.0, 10.0]]]))
    array([[[ 1., 11., 10.]]])
    >>> layer.dLdW, layer.dLdb
    (array([[[21., 42.]]]), array([11.]))
    """

    _ndim = 1
    _op = staticmethod(F.conv1d)
    _op_backward = staticmethod(F.conv1d_backward)


class Conv2d_stride1(_ConvStride1):
    """Convolution of images with stride 1; see `cnnfast.conv2d`.

    Parameters and attributes as `Conv1d_stride1`, with ``W`` of shape
    ``(out_channels, in_channels, rows, columns)``, which ``weight_init_fn`` gets as four arguments.
    """

    _ndim = 2
    _op = staticmethod(F.conv2d)
    _op_backward = staticmethod(F.conv2d_backward)


class Linear(_Weighted):
    """``Z = A @ W.T + b`` for each row; see `cnnfast.linear`.

    Parameters
    ----------
    in_features, out_features : int
        Lengths of a row of ``A`` and of ``Z``.
    weight_init_fn : callable, optional
        Called as ``weight_init_fn(out_features, in_features)``.
    bias_init_fn : callable, optional
        Called as ``bias_init_fn(out_features)``.

    Attributes
    ----------
    W, dLdW : ndarray (out_features, in_features)
        Weights, and the gradient of the loss by them.
    b, dLdb : ndarray (out_features, 1)
        Biases, and the gradient of the loss by them.
    """

    _op = staticmethod(F.linear)
    _op_backward = staticmethod(F.linear_backward)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        weight_init_fn: InitFn = None,
        bias_init_fn: InitFn = None,
    ) -> None:
        self.in_features = whole("Linear", "in_features", in_features, 1)
        self.out_features = whole("Linear", "out_features", out_features, 1)
        W_shape = (self.out_features, self.in_features)
        self._start(W_shape, (self.out_features, 1), weight_init_fn, bias_init_fn)


def _inside(name: str) -> Any:
    """An attribute that is the one of a layer inside."""

    def holder(chain: _Chain) -> Any:
        return next(layer for layer in chain._in_order() if hasattr(layer, name))

    def get(chain: _Chain) -> Any:
        return getattr(holder(chain), name)

    def put(chain: _Chain, value: Any) -> None:
        setattr(holder(chain), name, value)

    return property(get, put)


class _ConvChain(_Chain):
    """A convolution of stride 1, whose parameters these are, and a resampling."""

    W = _inside("W")
    b = _inside("b")
    dLdW = _inside("dLdW")
    dLdb = _inside("dLdb")


class Conv1d(_ConvChain):
    """Convolution of signals with any stride: `Conv1d_stride1`, then `Downsample1d`.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride : int
        Sizes.
    weight_init_fn, bias_init_fn : callable, optional
        As for `Conv1d_stride1`.

    Attributes
    ----------
    conv1d_stride1 : Conv1d_stride1
        Holds the parameters; ``W``, ``b``, ``dLdW`` and ``dLdb`` here are its.
    downsample1d : Downsample1d
        Drops what lies between the strides.

    Examples
    --------
    >>> import numpy as np
    >>> layer = Conv1d(3, 5, 4, stride=2)
    >>> Z = layer(np.zeros((2, 3, 11)))
    >>> Z.shape, layer.backward(Z).shape, layer.conv1d_stride1.dLdW.shape
    ((2, 5, 4), (2, 3, 11), (5, 3, 4))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        weight_init_fn: InitFn = None,
        bias_init_fn: InitFn = None,
    ) -> None:
        self.stride = stride
        self.conv1d_stride1 = Conv1d_stride1(
            in_channels, out_channels, kernel_size, weight_init_fn, bias_init_fn
        )
        self.downsample1d = Downsample1d(stride)

    def _in_order(self) -> Sequence[Any]:
        return self.conv1d_stride1, self.downsample1d


class Conv2d(_ConvChain):
    """Convolution of images with any stride: `Conv2d_stride1`, then `Downsample2d`.

    Parameters and attributes as `Conv1d`, in ``conv2d_stride1`` and ``downsample2d``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size,
        weight_init_fn: InitFn = None,
        bias_init_fn: InitFn = None,
    ) -> None:
        self.stride = stride
        self.conv2d_stride1 = Conv2d_stride1(
            in_channels, out_channels, kernel_size, weight_init_fn, bias_init_fn
        )
        self.downsample2d = Downsample2d(stride)

    def _in_order(self) -> Sequence[Any]:
        return self.conv2d_stride1, self.downsample2d


# Section 5.3: transposed convolutions


class ConvTranspose1d(_ConvChain):
    """`Upsample1d`, then `Conv1d_stride1`: a convolution of stride ``1 / upsampling_factor``.

    ``(N, in_channels, W)`` becomes ``(N, out_channels, (W - 1) * upsampling_factor + 2 - K)``,
    which is not PyTorch's transposed convolution; the module's docstring says how they differ.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, upsampling_factor : int
        Sizes.
    weight_init_fn, bias_init_fn : callable, optional
        As for `Conv1d_stride1`.

    Attributes
    ----------
    upsample1d : Upsample1d
        Comes first.
    conv1d_stride1 : Conv1d_stride1
        Holds the parameters; ``W``, ``b``, ``dLdW`` and ``dLdb`` here are its.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        upsampling_factor: int,
        weight_init_fn: InitFn = None,
        bias_init_fn: InitFn = None,
    ) -> None:
        self.upsampling_factor = upsampling_factor
        self.upsample1d = Upsample1d(upsampling_factor)
        self.conv1d_stride1 = Conv1d_stride1(
            in_channels, out_channels, kernel_size, weight_init_fn, bias_init_fn
        )

    def _in_order(self) -> Sequence[Any]:
        return self.upsample1d, self.conv1d_stride1


class ConvTranspose2d(_ConvChain):
    """`Upsample2d`, then `Conv2d_stride1`.

    Parameters and attributes as `ConvTranspose1d`, in ``upsample2d`` and ``conv2d_stride1``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        upsampling_factor: Size,
        weight_init_fn: InitFn = None,
        bias_init_fn: InitFn = None,
    ) -> None:
        self.upsampling_factor = upsampling_factor
        self.upsample2d = Upsample2d(upsampling_factor)
        self.conv2d_stride1 = Conv2d_stride1(
            in_channels, out_channels, kernel_size, weight_init_fn, bias_init_fn
        )

    def _in_order(self) -> Sequence[Any]:
        return self.upsample2d, self.conv2d_stride1


# Section 5.4: flatten


class Flatten(_Layer):
    """One row for each example: ``(N, ...)`` becomes ``(N, product of the other sizes)``.

    Examples
    --------
    >>> import numpy as np
    >>> layer = Flatten()
    >>> Z = layer(np.zeros((4, 3, 2)))
    >>> Z.shape, layer.backward(Z).shape
    ((4, 6), (4, 3, 2))
    """

    def forward(self, A: Array) -> Array:
        self.input_shape = np.shape(A)
        if not self.input_shape:
            raise ValueError("Flatten: A must have shape (N, ...), not ()")
        N, *others = self.input_shape
        return np.reshape(A, (N, math.prod(others)))

    def backward(self, dLdZ: Array) -> Array:
        shape = self._recall("input_shape")
        if np.size(dLdZ) != math.prod(shape):
            raise ValueError(
                f"Flatten.backward: dLdZ must have shape {(shape[0], math.prod(shape[1:]))}, "
                f"not {np.shape(dLdZ)}"
            )
        return np.reshape(dLdZ, shape)


# Section 5.5: pooling


class _MaxPoolStride1(_Layer):
    def __init__(self, kernel: Size) -> None:
        self.kernel = kernel

    def forward(self, A: Array) -> Array:
        self.input_shape = np.shape(A)
        Z: Array
        Z, self.indices = self._op(A, self.kernel, stride=1, return_indices=True)
        return Z

    def backward(self, dLdZ: Array) -> Array:
        dLdA: Array = self._op_backward(dLdZ, self._recall("indices"), self.input_shape)
        return dLdA


class MaxPool1d_stride1(_MaxPoolStride1):
    """The largest of every ``kernel`` neighbours of a signal; see `cnnfast.max_pool1d`.

    Of several largest, the first counts. ``indices`` holds their places.
    """

    _op = staticmethod(F.max_pool1d)
    _op_backward = staticmethod(F.max_pool1d_backward)


class MaxPool2d_stride1(_MaxPoolStride1):
    """The largest of every ``kernel`` x ``kernel`` window of an image; see `cnnfast.max_pool2d`.

    Of several largest, the first in row-major order counts. ``indices`` holds their places.

    Examples
    --------
    >>> import numpy as np
    >>> layer = MaxPool2d_stride1(2)
    >>> layer(np.array([[[[1.0, 5.0, 5.0], [2.0, 5.0, 3.0]]]]))
    array([[[[5., 5.]]]])
    >>> layer.backward(np.array([[[[1.0, 10.0]]]]))
    array([[[[ 0., 11.,  0.],
             [ 0.,  0.,  0.]]]])
    """

    _op = staticmethod(F.max_pool2d)
    _op_backward = staticmethod(F.max_pool2d_backward)


class _MeanPoolStride1(_Layer):
    def __init__(self, kernel: Size) -> None:
        self.kernel = kernel

    def forward(self, A: Array) -> Array:
        self.input_shape = np.shape(A)
        Z: Array = self._op(A, self.kernel, stride=1)
        return Z

    def backward(self, dLdZ: Array) -> Array:
        shape = self._recall("input_shape")
        dLdA: Array = self._op_backward(dLdZ, shape, self.kernel, stride=1)
        return dLdA


class MeanPool1d_stride1(_MeanPoolStride1):
    """The mean of every ``kernel`` neighbours of a signal; see `cnnfast.avg_pool1d`."""

    _op = staticmethod(F.avg_pool1d)
    _op_backward = staticmethod(F.avg_pool1d_backward)


class MeanPool2d_stride1(_MeanPoolStride1):
    """The mean of every ``kernel`` x ``kernel`` window of an image; see `cnnfast.avg_pool2d`."""

    _op = staticmethod(F.avg_pool2d)
    _op_backward = staticmethod(F.avg_pool2d_backward)


class MaxPool1d(_Chain):
    """`MaxPool1d_stride1`, then `Downsample1d`, in ``maxpool1d_stride1`` and ``downsample1d``."""

    def __init__(self, kernel: int, stride: int) -> None:
        self.kernel = kernel
        self.stride = stride
        self.maxpool1d_stride1 = MaxPool1d_stride1(kernel)
        self.downsample1d = Downsample1d(stride)

    def _in_order(self) -> Sequence[Any]:
        return self.maxpool1d_stride1, self.downsample1d


class MaxPool2d(_Chain):
    """`MaxPool2d_stride1`, then `Downsample2d`, in ``maxpool2d_stride1`` and ``downsample2d``."""

    def __init__(self, kernel: Size, stride: Size) -> None:
        self.kernel = kernel
        self.stride = stride
        self.maxpool2d_stride1 = MaxPool2d_stride1(kernel)
        self.downsample2d = Downsample2d(stride)

    def _in_order(self) -> Sequence[Any]:
        return self.maxpool2d_stride1, self.downsample2d


class MeanPool1d(_Chain):
    """`MeanPool1d_stride1`, then `Downsample1d`, in ``meanpool1d_stride1`` and ``downsample1d``."""

    def __init__(self, kernel: int, stride: int) -> None:
        self.kernel = kernel
        self.stride = stride
        self.meanpool1d_stride1 = MeanPool1d_stride1(kernel)
        self.downsample1d = Downsample1d(stride)

    def _in_order(self) -> Sequence[Any]:
        return self.meanpool1d_stride1, self.downsample1d


class MeanPool2d(_Chain):
    """`MeanPool2d_stride1`, then `Downsample2d`, in ``meanpool2d_stride1`` and ``downsample2d``."""

    def __init__(self, kernel: Size, stride: Size) -> None:
        self.kernel = kernel
        self.stride = stride
        self.meanpool2d_stride1 = MeanPool2d_stride1(kernel)
        self.downsample2d = Downsample2d(stride)

    def _in_order(self) -> Sequence[Any]:
        return self.meanpool2d_stride1, self.downsample2d


# From homework 1: activations, losses, batch normalisation


class _Activation(_Layer):
    """``A`` from ``Z``, element by element. Keeps both."""

    def forward(self, Z: Array) -> Array:
        self.Z = Z
        A: Array = self._op(Z)
        self.A = A
        return A

    def backward(self, dLdA: Array | None = None) -> Array:
        """``dLdZ``; without ``dLdA`` the derivative ``dAdZ`` itself."""
        Z = self._recall("Z")
        dLdZ: Array = self._op_backward(np.ones_like(Z) if dLdA is None else dLdA, Z)
        return dLdZ


class Identity(_Activation):
    """``A = Z``."""

    # With this slope a leaky ReLU is a straight line.
    _op = staticmethod(partial(F.leaky_relu, negative_slope=1.0))
    _op_backward = staticmethod(partial(F.leaky_relu_backward, negative_slope=1.0))


class ReLU(_Activation):
    """``A = max(Z, 0)``; see `cnnfast.relu`.

    Examples
    --------
    >>> import numpy as np
    >>> layer = ReLU()
    >>> layer(np.array([-1.0, 2.0]))
    array([0., 2.])
    >>> layer.backward(np.array([3.0, 3.0])), layer.backward()
    (array([0., 3.]), array([0., 1.]))
    """

    _op = staticmethod(F.relu)
    _op_backward = staticmethod(F.relu_backward)


class Sigmoid(_Activation):
    """``A = 1 / (1 + exp(-Z))``; see `cnnfast.sigmoid`."""

    _op = staticmethod(F.sigmoid)
    _op_backward = staticmethod(F.sigmoid_backward)


class Tanh(_Activation):
    """The hyperbolic tangent; see `cnnfast.tanh`."""

    _op = staticmethod(F.tanh)
    _op_backward = staticmethod(F.tanh_backward)


class _Loss:
    """A number for outputs ``A`` and targets ``Y``, both ``(N, C)``. Keeps both."""

    def __call__(self, A: Array, Y: Array) -> np.float64:
        return self.forward(A, Y)

    def forward(self, A: Array, Y: Array) -> np.float64:
        """The loss."""
        self.A, self.Y = A, Y
        loss, self.dLdA = self._compute(A, Y)
        return np.float64(loss)

    def backward(self) -> Array:
        """The gradient of the last loss by ``A``."""
        if "dLdA" not in self.__dict__:
            raise RuntimeError(f"{type(self).__name__}.backward: call forward first")
        return self.dLdA.copy()

    def _compute(self, A: Array, Y: Array) -> tuple[float, Array]:
        raise NotImplementedError


class MSELoss(_Loss):
    """The mean of ``(A - Y) ** 2`` over all ``N * C`` elements; see `cnnfast.mse_loss`."""

    def _compute(self, A: Array, Y: Array) -> tuple[float, Array]:
        return F.mse_loss(A, Y)


class CrossEntropyLoss(_Loss):
    """The mean over N rows of ``-sum(Y * log softmax(A))``, for one-hot or other targets ``Y``.

    Examples
    --------
    >>> import numpy as np
    >>> loss = CrossEntropyLoss()
    >>> round(float(loss.forward(np.zeros((1, 2)), np.array([[0.0, 1.0]]))), 4)
    0.6931
    >>> loss.backward()
    array([[ 0.5, -0.5]])
    """

    def _compute(self, A: Array, Y: Array) -> tuple[float, Array]:
        log_p = F.log_softmax(A)
        Y = np.asarray(Y, log_p.dtype)
        if log_p.ndim != 2 or Y.shape != log_p.shape:
            raise ValueError(
                f"CrossEntropyLoss: A and Y must have one shape (N, C), Y with a 1 for the right "
                f"class of each row; got {log_p.shape} and {Y.shape}"
            )
        N = len(log_p)
        # A class that is no target may have probability 0, whose logarithm is not to be 0 * inf.
        loss = -float(np.sum(np.where(Y != 0, log_p, 0) * Y)) / N if N else math.nan
        return loss, F.log_softmax_backward(-Y / max(N, 1), log_p)


class BatchNorm1d(_Layer):
    """Batch normalisation of ``(N, C)``; see `cnnfast.batch_norm`.

    Parameters
    ----------
    num_features : int
        C.
    alpha : float
        Weight of the old value in the running statistics.

    Attributes
    ----------
    BW, Bb, dLdBW, dLdBb : ndarray (1, C)
        Scale and shift, started with ones and zeros, and the gradients of the loss by them.
    running_M, running_V : ndarray (1, C)
        Running mean and variance (the biased one, unlike PyTorch's), for inference.
    Z, NZ, BZ, M, V : ndarray
        Of the last ``forward``: input, normalised input, output, and the mean and variance,
        ``(1, C)``, that it was normalised with.
    """

    def __init__(self, num_features: int, alpha: float = 0.9) -> None:
        num_features = whole("BatchNorm1d", "num_features", num_features, 1)
        self.alpha = alpha
        self.eps = 1e-8
        self.BW = np.ones((1, num_features))
        self.Bb = np.zeros((1, num_features))
        self.dLdBW = np.zeros((1, num_features))
        self.dLdBb = np.zeros((1, num_features))
        self.running_M = np.zeros((1, num_features))
        self.running_V = np.ones((1, num_features))

    def __call__(self, Z: Array, eval: bool = False) -> Array:
        return self.forward(Z, eval)

    def forward(self, Z: Array, eval: bool = False) -> Array:
        """``BZ``: by the statistics of the batch, or, with ``eval``, by the running ones."""
        self.Z = Z
        self._eval = eval
        BW, Bb = np.ravel(self.BW), np.ravel(self.Bb)
        BZ: Array
        if eval:
            self.M, self.V = self.running_M, self.running_V
            BZ = self._normalised(Z, self.M, BW, Bb)
        else:
            BZ, M, rstd = F.batch_norm(
                doubled(Z), None, None, BW, Bb, training=True, eps=self.eps, return_stats=True
            )
            BZ = BZ[: len(Z)]
            self.M, self.V = M[None], rstd[None] ** -2 - self.eps
            self.running_M = self.alpha * self.running_M + (1 - self.alpha) * self.M
            self.running_V = self.alpha * self.running_V + (1 - self.alpha) * self.V
        self.BZ = BZ
        return BZ

    @property
    def NZ(self) -> Any:
        return self._normalised(self.Z, self.M)

    def _normalised(self, Z: Array, M: Array, BW: Any = None, Bb: Any = None) -> Any:
        """``(Z - M) / sqrt(V + eps)``, scaled and shifted."""
        return F.batch_norm(Z, np.ravel(M), np.ravel(self.V), BW, Bb, eps=self.eps)

    def backward(self, dLdBZ: Array) -> Array:
        """``dLdZ``; fills ``dLdBW`` and ``dLdBb``."""
        Z, BW = self._recall("Z"), np.ravel(self.BW)
        rstd = (np.ravel(self.V) + self.eps) ** -0.5
        dLdZ: Array
        dLdZ, dLdBW, dLdBb = F.batch_norm_backward(dLdBZ, Z, np.ravel(self.M), rstd, BW)
        self.dLdBW, self.dLdBb = dLdBW[None], dLdBb[None]
        if self._eval:
            # The statistics were constants: BZ is linear in Z, and this is its slope, times dLdBZ.
            dLdZ = self._normalised(dLdBZ, np.zeros_like(self.M), BW)
        return dLdZ


# Section 6: scanning MLPs as CNNs


class _ScanningCNN(_Chain):
    """Three convolutions with ReLUs between them, then flattened.

    The sizes are those of the model below, which also knows how an MLP's weights become filters.
    """

    _model: ClassVar[Callable[..., Any]]

    def __init__(self) -> None:
        model = self._model()
        self.conv1, self.conv2, self.conv3 = (
            Conv1d(conv.in_channels, conv.out_channels, *conv.kernel_size, *conv.stride)
            for conv in (model.conv1, model.conv2, model.conv3)
        )
        self.layers = [self.conv1, ReLU(), self.conv2, ReLU(), self.conv3, Flatten()]

    def init_weights(self, weights: Sequence[Array]) -> None:
        """Take over the weights of the MLP.

        Parameters
        ----------
        weights : three ndarrays, (inputs, outputs) of each layer
            As the MLP multiplies with them: ``A @ w1``, and so on.

        Raises
        ------
        ValueError
            Shapes that do not fit, or weights that are not shared as they should be.
        """
        model = self._model(dtype=np.float64)
        model.init_weights(weights)
        self.conv1.conv1d_stride1.W = model.conv1.weight
        self.conv2.conv1d_stride1.W = model.conv2.weight
        self.conv3.conv1d_stride1.W = model.conv3.weight

    def _in_order(self) -> Sequence[Any]:
        return self.layers


class CNN_SimpleScanningMLP(_ScanningCNN):
    """Section 6.1: an MLP of 8, 16 and 4 neurons that sees 8 instants and moves on by 4.

    ``(N, 24, W)`` becomes ``(N, 4 * ((W - 8) // 4 + 1))``: 124 values for 128 instants. See
    `cnnfast.models.SimpleScanningMLP`.

    Attributes
    ----------
    conv1, conv2, conv3 : Conv1d
        8 filters of 8 instants with stride 4, 16 and 4 filters of one instant.
    layers : list
        All layers, in order.
    """

    _model = SimpleScanningMLP


class CNN_DistributedScanningMLP(_ScanningCNN):
    """Section 6.2: the MLP of `CNN_SimpleScanningMLP` with neurons that share their weights.

    Of 8 neurons in the first layer there are four times the same 2, of 16 in the second twice the
    same 8. See `cnnfast.models.DistributedScanningMLP`.

    Attributes
    ----------
    conv1, conv2, conv3 : Conv1d
        2, 8 and 4 filters of 2 instants, with strides 2, 2 and 1.
    layers : list
        All layers, in order.
    """

    _model = DistributedScanningMLP


# Section 7: a CNN


class CNN(_Chain):
    """Section 7: {Conv1d - activation} x K - Flatten - Linear, with its loss and its training step.

    Parameters
    ----------
    input_width, num_input_channels : int
        Of the signals, ``(N, num_input_channels, input_width)``.
    num_channels, kernel_sizes, strides : list of int
        Of each convolution.
    num_linear_neurons : int
        Outputs.
    activations : list of layers
        One after each convolution.
    conv_weight_init_fn, bias_init_fn, linear_weight_init_fn : callable or None
        As for `Conv1d` and `Linear`.
    criterion : loss
        Such as `CrossEntropyLoss`.
    lr : float
        Learning rate.

    Attributes
    ----------
    convolutional_layers : list of Conv1d
    flatten : Flatten
    linear_layer : Linear
    Z : ndarray (N, num_linear_neurons)
        The last output.
    loss : float
        Of the last ``backward``.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> model = CNN(128, 24, [56, 28, 14], [5, 6, 2], [1, 2, 2], 10, [Tanh(), ReLU(), Sigmoid()],
    ...             None, None, None, CrossEntropyLoss(), lr=0.1)
    >>> model.linear_layer.W.shape
    (10, 420)
    >>> A, labels = rng.normal(size=(2, 24, 128)), np.eye(10)[[3, 7]]
    >>> Z = model.forward(A)
    >>> dLdA = model.backward(labels)
    >>> before = model.loss
    >>> model.step()
    >>> bool(model.criterion.forward(model.forward(A), labels) < before)
    True
    """

    def __init__(
        self,
        input_width: int,
        num_input_channels: int,
        num_channels: Sequence[int],
        kernel_sizes: Sequence[int],
        strides: Sequence[int],
        num_linear_neurons: int,
        activations: Sequence[Any],
        conv_weight_init_fn: InitFn,
        bias_init_fn: InitFn,
        linear_weight_init_fn: InitFn,
        criterion: Any,
        lr: float,
    ) -> None:
        num_channels, kernel_sizes, strides = map(list, (num_channels, kernel_sizes, strides))
        self.train_mode = True
        self.nlayers = len(num_channels)
        self.activations = activations
        self.criterion = criterion
        self.lr = lr
        if len(activations) != self.nlayers:
            raise ValueError(
                f"CNN: activations must be {self.nlayers}, one for each of num_channels, "
                f"not {len(activations)}"
            )
        channels = [num_input_channels, *num_channels]
        self.convolutional_layers = [
            Conv1d(*of_layer, conv_weight_init_fn, bias_init_fn)
            for of_layer in zip(channels, num_channels, kernel_sizes, strides, strict=False)
        ]
        self.flatten = Flatten()
        # The same network of cnnfast's own layers, which checks the sizes and knows the last one.
        model = SimpleCNN1d(
            input_width, num_input_channels, num_channels, kernel_sizes, strides, num_linear_neurons
        )
        self.linear_layer = Linear(
            model.fc.in_features, num_linear_neurons, linear_weight_init_fn, bias_init_fn
        )

    def _in_order(self) -> Sequence[Any]:
        pairs = zip(self.convolutional_layers, self.activations, strict=True)
        return [*chain.from_iterable(pairs), self.flatten, self.linear_layer]

    def forward(self, A: Array) -> Array:
        """The outputs, ``(N, num_linear_neurons)``."""
        self.Z = super().forward(A)
        return self.Z

    def backward(self, labels: Array) -> Array:
        """The gradient of the loss by the input of the last ``forward``; fills all gradients.

        Parameters
        ----------
        labels : ndarray (N, num_linear_neurons)
            What the criterion compares the outputs with.
        """
        self.loss = np.sum(self.criterion.forward(self._recall("Z"), labels))
        return super().backward(self.criterion.backward())

    def zero_grads(self) -> None:
        """Set all gradients to 0."""
        for layer in self._weighted():
            layer.dLdW.fill(0.0)
            layer.dLdb.fill(0.0)

    def step(self) -> None:
        """Gradient descent: each parameter less ``lr`` times its gradient, as new arrays."""
        for layer in self._weighted():
            new = {
                "W": np.array(layer.W, layer.dLdW.dtype),
                "b": np.array(layer.b, layer.dLdb.dtype),
            }
            SGD(new, lr=self.lr).step({"W": layer.dLdW, "b": layer.dLdb})
            layer.W, layer.b = new["W"], new["b"]

    def train(self) -> None:
        """Set ``train_mode``; no layer of this network behaves differently."""
        self.train_mode = True

    def eval(self) -> None:
        """Clear ``train_mode``."""
        self.train_mode = False

    def _weighted(self) -> list[_Weighted]:
        return [*(conv.conv1d_stride1 for conv in self.convolutional_layers), self.linear_layer]
