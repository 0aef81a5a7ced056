"""Every operation as plain loops: the specification that all other methods are compared with.

Read it from top to bottom as a course: convolution, transposed convolution, columns, pooling,
resampling, normalisation, activations, linear layer and dropout, losses. Speed is no aim here.

Images are ``(N, C, H, W)``, signals ``(N, C, L)``: N examples of C channels. ``w`` holds the
filters, ``y`` is an output, ``dx`` the gradient of the loss by ``x``; so a backward function turns
``dy`` into ``dx`` (and ``dw``, ``db``) by the chain rule. A name with a shape behind it, as in
``x (N, C, H, W)``, is an array. Formulas count from 0; ``(u, v)`` is a place in a window, ``(sh,
sw)`` the stride, ``(rh, rw)`` the dilation, ``top`` and ``left`` the padding in front.

* ``stride``, ``dilation``, ``kernel_size``, ``factor``: an int, or one int per axis.
* ``padding``: an int, one int per axis, or one ``(before, after)`` pair per axis.
* ``groups``: channels and filters are split into that many blocks that do not see each other.
* ``needs``: letters out of ``"xwb"``; a gradient that is not asked for is None.

An array may be anything that `numpy.asarray` takes. float32 and float64 together give float64, so
do integers and bools, and float16 is computed in float32. Results are new C-contiguous arrays.
Arguments are trusted, but for a few cheap checks: `cnnfast.functional` is the door that examines
them, and its docstrings say more about each.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Ints = int | Sequence[int]
Padding = int | str | Sequence[int | Sequence[int]]

# Arguments and sizes


def _floats(*arrays: Array | None) -> tuple[Any, ...]:
    """Return the dtype of the result, then the arrays in the dtype to compute in."""
    given = [None if a is None else np.asarray(a) for a in arrays]
    kinds = []
    for a in given:
        if a is not None:
            if a.dtype.kind not in "fiub":
                raise TypeError(f"expected real numbers, got an array of {a.dtype}")
            kinds.append(a.dtype if a.dtype.kind == "f" else np.dtype(np.float64))
    dtype = np.result_type(*kinds)
    compute = np.promote_types(dtype, np.float32)
    return dtype, *(None if a is None else a.astype(compute) for a in given)


def _result(y: Array, dtype: np.dtype[Any]) -> Array:
    """Return y as a C-contiguous array of the given dtype."""
    return np.asarray(y, dtype=dtype, order="C")


def _expect(name: str, array: Array, shape: Sequence[int]) -> None:
    """Raise ValueError unless the array has this shape: NumPy would broadcast it in silence."""
    if array.shape != tuple(shape):
        raise ValueError(f"{name} has shape {array.shape}, expected {tuple(shape)}")


def _expect_channels(C: int, **vectors: Array | None) -> None:
    """Raise ValueError unless every vector that is given has one value per channel."""
    for name, vector in vectors.items():
        if vector is not None:
            _expect(name, vector, (C,))


def _wanted(
    needs: str, dtype: np.dtype[Any], dx: Array, dw: Array, db: Array
) -> tuple[Array | None, Array | None, Array | None]:
    """Return the gradients that were asked for, and None for the others."""
    if not set(needs) <= set("xwb"):
        raise ValueError(f"needs must hold letters out of 'xwb', got {needs!r}")
    return (
        _result(dx, dtype) if "x" in needs else None,
        _result(dw, dtype) if "w" in needs else None,
        _result(db, dtype) if "b" in needs else None,
    )


def _ints(value: Ints, ndim: int) -> tuple[int, ...]:
    """Return one int per axis."""
    values = tuple(value) if isinstance(value, Iterable) else (value,)
    if len(values) not in (1, ndim):
        raise ValueError(f"expected an int or {ndim} of them, got {value!r}")
    return tuple(operator.index(v) for v in values) * (ndim // len(values))


def _pairs(padding: Any, ndim: int) -> tuple[tuple[int, int], ...]:
    """Return one pair (before, after) per axis."""
    if isinstance(padding, str):
        raise ValueError(f"padding must be numbers here, got {padding!r}")
    if isinstance(padding, Iterable) and all(isinstance(p, Iterable) for p in padding):
        pads = tuple(_ints(pair, 2) for pair in padding)
    else:
        pads = tuple((p, p) for p in _ints(padding, ndim))
    if len(pads) != ndim or min(map(min, pads)) < 0:
        raise ValueError(f"expected {ndim} paddings of at least 0, got {padding!r}")
    return tuple((before, after) for before, after in pads)


def _pad(x: Array, pads: Sequence[tuple[int, int]]) -> Array:
    """Put zeros around the last axes."""
    return np.pad(x, [(0, 0)] * (x.ndim - len(pads)) + list(pads))


def _crop(x: Array, pads: Sequence[tuple[int, int]]) -> Array:
    """Undo _pad."""
    inside = [slice(None)] * (x.ndim - len(pads))
    for before, after in pads:
        inside.append(slice(before, x.shape[len(inside)] - after))
    return x[tuple(inside)]


def _taps(i: int, kernel: int, stride: int, dilation: int) -> slice:
    """Return the positions of the padded input that output i looks at, along one axis."""
    return slice(i * stride, i * stride + dilation * (kernel - 1) + 1, dilation)


def _block(g: int, size: int) -> slice:
    """Return the g-th block of so many channels."""
    return slice(g * size, (g + 1) * size)


def _window_count(
    size: int,
    kernel: int,
    stride: int,
    pad: tuple[int, int],
    dilation: int = 1,
    ceil_mode: bool = False,
) -> int:
    """Return how many windows fit along one axis; ValueError where none does."""
    if min(kernel, stride, dilation) < 1:
        raise ValueError(f"kernel {kernel}, stride {stride}, dilation {dilation}: all must be > 0")
    before, after = pad
    room = size + before + after - dilation * (kernel - 1) - 1
    count = (room + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (count - 1) * stride >= size + before:
        count -= 1  # the last window would start in the padding behind the input
    if count < 1:
        raise ValueError(
            f"the output would be empty: size {size}, kernel {kernel}, stride {stride}, "
            f"padding {pad}, dilation {dilation}"
        )
    return count


# Convolution


def _conv_geometry(
    x: Array, w: Array, stride: Ints, padding: Padding, dilation: Ints, groups: int
) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...], tuple[int, ...], tuple[int, ...]]:
    """Return stride, padding, dilation and output size, one of each per axis."""
    if w.shape[0] % groups or w.shape[1] * groups != x.shape[1]:
        raise ValueError(f"x {x.shape}, w {w.shape} and groups={groups} do not fit")
    ndim = x.ndim - 2
    strides, dilations, kernel = _ints(stride, ndim), _ints(dilation, ndim), w.shape[2:]
    if isinstance(padding, str):
        if padding not in ("valid", "same"):
            raise ValueError(f"padding must be numbers, 'valid' or 'same', got {padding!r}")
        if padding == "same" and set(strides) != {1}:
            raise ValueError(f"padding 'same' needs stride 1, got {stride!r}")
        same = padding == "same"
        totals = [d * (k - 1) if same else 0 for k, d in zip(kernel, dilations, strict=True)]
        pads = tuple((total // 2, total - total // 2) for total in totals)
    else:
        pads = _pairs(padding, ndim)
    sizes = map(_window_count, x.shape[2:], kernel, strides, pads, dilations)
    return strides, pads, dilations, tuple(sizes)


def conv1d(
    x: Array,
    w: Array,
    b: Array | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> Array:
    """Slide filters along signals and sum the products: `conv2d` with one axis.

        y[n, f, i] = b[f] + sum over c, u of w[f, c, u] * x[n, c, i*s + u*r - left]

    x (N, C, L), w (F, C/groups, K) and b (F,) give y (N, F, OL).
    CMU 11-785, homework 2; `torch.nn.functional.conv1d`.

    Examples
    --------
    >>> conv1d([[[1, 2, 3, 4]]], [[[1, 0, -1]]])
    array([[[-2., -2.]]])
    """
    dtype, x, w, b = _floats(x, w, b)
    N = x.shape[0]
    F, Cg, K = w.shape
    (s,), pads, (r,), (OL,) = _conv_geometry(x, w, stride, padding, dilation, groups)
    _expect_channels(F, b=b)
    bias = np.zeros(F, x.dtype) if b is None else b
    xp = _pad(x, pads)
    y = np.zeros((N, F, OL), x.dtype)
    for n, f, i in np.ndindex(N, F, OL):
        c = _block(f // (F // groups), Cg)
        y[n, f, i] = np.sum(w[f] * xp[n, c, _taps(i, K, s, r)]) + bias[f]
    return _result(y, dtype)


def conv2d(
    x: Array,
    w: Array,
    b: Array | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> Array:
    """Slide filters over images and sum the products (a cross-correlation).

        y[n, f, i, j] = b[f] + sum over c, u, v of
                        w[f, c, u, v] * x[n, c, i*sh + u*rh - top, j*sw + v*rw - left]

    where x is 0 outside its borders. With groups, filter f reads its own block of channels only.

    Parameters
    ----------
    x : (N, C, H, W)
    w : (F, C/groups, KH, KW)
    b : (F,), optional
    stride, dilation : int or (int, int)
    padding : int, (ph, pw), ((top, bottom), (left, right)), "valid" or "same"
        "valid" is none; "same" keeps H and W at stride 1, an odd surplus behind.
    groups : int

    Returns
    -------
    y : (N, F, OH, OW)
        OH = (H + top + bottom - rh*(KH - 1) - 1) // sh + 1, and OW likewise.

    Notes
    -----
    LeCun et al., "Gradient-based learning applied to document recognition", 1998; CS231n,
    "Convolutional Neural Networks"; `torch.nn.functional.conv2d`.

    Examples
    --------
    >>> x = np.arange(9.0).reshape(1, 1, 3, 3)
    >>> conv2d(x, np.ones((1, 1, 2, 2)), b=[100])
    array([[[[108., 112.],
             [120., 124.]]]])
    """
    dtype, x, w, b = _floats(x, w, b)
    N = x.shape[0]
    F, Cg, KH, KW = w.shape
    (sh, sw), pads, (rh, rw), (OH, OW) = _conv_geometry(x, w, stride, padding, dilation, groups)
    _expect_channels(F, b=b)
    bias = np.zeros(F, x.dtype) if b is None else b
    xp = _pad(x, pads)
    y = np.zeros((N, F, OH, OW), x.dtype)
    for n, f, i, j in np.ndindex(N, F, OH, OW):
        c = _block(f // (F // groups), Cg)
        window = xp[n, c, _taps(i, KH, sh, rh), _taps(j, KW, sw, rw)]
        y[n, f, i, j] = np.sum(w[f] * window) + bias[f]
    return _result(y, dtype)


def conv1d_backward(
    dy: Array,
    x: Array,
    w: Array,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    needs: str = "xwb",
) -> tuple[Array | None, Array | None, Array | None]:
    """Return the gradients of `conv1d`: `conv2d_backward` with one axis.

    dy (N, F, OL), x (N, C, L) and w (F, C/groups, K) give dx, dw and db (F,).
    """
    dtype, dy, x, w = _floats(dy, x, w)
    N = x.shape[0]
    F, Cg, K = w.shape
    (s,), pads, (r,), (OL,) = _conv_geometry(x, w, stride, padding, dilation, groups)
    _expect("dy", dy, (N, F, OL))
    xp = _pad(x, pads)
    dxp, dw, db = np.zeros_like(xp), np.zeros_like(w), np.zeros(F, x.dtype)
    for n, f, i in np.ndindex(N, F, OL):
        c, taps = _block(f // (F // groups), Cg), _taps(i, K, s, r)
        dxp[n, c, taps] += dy[n, f, i] * w[f]
        dw[f] += dy[n, f, i] * xp[n, c, taps]
        db[f] += dy[n, f, i]
    return _wanted(needs, dtype, _crop(dxp, pads), dw, db)


def conv2d_backward(
    dy: Array,
    x: Array,
    w: Array,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    needs: str = "xwb",
) -> tuple[Array | None, Array | None, Array | None]:
    """Return the gradients of `conv2d`: every product of the forward loop, sent back both ways.

    Each step of the forward, y = sum(w * window) + b, becomes

        dwindow += dy * w        dw += dy * window        db += dy

    so that dx adds up over all the windows a pixel was in. The padding's share is cut off.

    Parameters
    ----------
    dy : (N, F, OH, OW)
    x : (N, C, H, W)
    w : (F, C/groups, KH, KW)
    stride, padding, dilation, groups
        As given to `conv2d`.
    needs : str

    Returns
    -------
    dx, dw, db : shapes of x, w and (F,)

    Notes
    -----
    CS231n, assignment 2; CE-40959, homework 3.

    Examples
    --------
    >>> dx, dw, db = conv2d_backward([[[[1, 10]]]], [[[[1, 2, 3]]]], [[[[5, 7]]]])
    >>> dx[0, 0], dw[0, 0], db
    (array([[ 5., 57., 70.]]), array([[21., 32.]]), array([11.]))
    """
    dtype, dy, x, w = _floats(dy, x, w)
    N = x.shape[0]
    F, Cg, KH, KW = w.shape
    (sh, sw), pads, (rh, rw), (OH, OW) = _conv_geometry(x, w, stride, padding, dilation, groups)
    _expect("dy", dy, (N, F, OH, OW))
    xp = _pad(x, pads)
    dxp, dw, db = np.zeros_like(xp), np.zeros_like(w), np.zeros(F, x.dtype)
    for n, f, i, j in np.ndindex(N, F, OH, OW):
        c = _block(f // (F // groups), Cg)
        rows, cols = _taps(i, KH, sh, rh), _taps(j, KW, sw, rw)
        dxp[n, c, rows, cols] += dy[n, f, i, j] * w[f]
        dw[f] += dy[n, f, i, j] * xp[n, c, rows, cols]
        db[f] += dy[n, f, i, j]
    return _wanted(needs, dtype, _crop(dxp, pads), dw, db)


# Transposed convolution


def _transposed_geometry(
    x: Array,
    w: Array,
    stride: Ints,
    padding: Padding,
    output_padding: Ints,
    groups: int,
    dilation: Ints,
) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...], tuple[int, ...], tuple[int, ...]]:
    """Return stride, padding, dilation and output size, one of each per axis."""
    if w.shape[0] != x.shape[1] or w.shape[0] % groups:
        raise ValueError(f"x {x.shape}, w {w.shape} and groups={groups} do not fit")
    ndim = x.ndim - 2
    strides, dilations, pads = _ints(stride, ndim), _ints(dilation, ndim), _pairs(padding, ndim)
    axes = zip(
        x.shape[2:], w.shape[2:], strides, pads, dilations, _ints(output_padding, ndim), strict=True
    )
    sizes = tuple((n - 1) * s + r * (k - 1) + 1 + extra - sum(p) for n, k, s, p, r, extra in axes)
    if min(sizes) < 1:
        raise ValueError(f"the output would be empty: size {sizes} from x {x.shape}, w {w.shape}")
    return strides, pads, dilations, sizes


def conv_transpose1d(
    x: Array,
    w: Array,
    b: Array | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
) -> Array:
    """Stamp filters onto a longer signal: `conv_transpose2d` with one axis.

        y[n, f, i*s + u*r - left] += x[n, c, i] * w[c, f, u]

    x (N, C, L), w (C, F/groups, K) and b (F,) give y (N, F, OL).
    CMU 11-785, homework 2; `torch.nn.functional.conv_transpose1d`.

    Examples
    --------
    >>> conv_transpose1d([[[1, 2]]], [[[1, 10, 100]]], stride=2)
    array([[[  1.,  10., 102.,  20., 200.]]])
    """
    dtype, x, w, b = _floats(x, w, b)
    N, C, L = x.shape
    _, Fg, K = w.shape
    F = Fg * groups
    (s,), pads, (r,), (OL,) = _transposed_geometry(
        x, w, stride, padding, output_padding, groups, dilation
    )
    _expect_channels(F, b=b)
    bias = np.zeros(F, x.dtype) if b is None else b
    yp = _pad(np.zeros((N, F, OL), x.dtype), pads)
    for n, c, i in np.ndindex(N, C, L):
        f = _block(c // (C // groups), Fg)
        yp[n, f, _taps(i, K, s, r)] += x[n, c, i] * w[c]
    return _result(_crop(yp, pads) + bias[:, None], dtype)


def conv_transpose2d(
    x: Array,
    w: Array,
    b: Array | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
) -> Array:
    """Stamp filters onto a larger image, once for each input pixel: `conv2d` run backwards.

        y[n, f, i*sh + u*rh - top, j*sw + v*rw - left] += x[n, c, i, j] * w[c, f, u, v]

    for all c, i, j, u, v, starting from b[f]; what falls outside is lost. It is the dx of the
    `conv2d` with this stride, padding, dilation and groups.

    Parameters
    ----------
    x : (N, C, H, W)
    w : (C, F/groups, KH, KW)
    b : (F,), optional
    stride, dilation : int or (int, int)
    padding : int, (ph, pw) or ((top, bottom), (left, right))
        Rows and columns cut off the output.
    output_padding : int or (int, int)
        Rows and columns that the output has more, at the bottom and at the right.
    groups : int

    Returns
    -------
    y : (N, F, OH, OW)
        OH = (H - 1)*sh + rh*(KH - 1) + 1 + output_padding - top - bottom, and OW likewise.

    Notes
    -----
    Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016; CMU 11-785,
    homework 2; `torch.nn.functional.conv_transpose2d`.

    Examples
    --------
    >>> conv_transpose2d([[[[1, 2]]]], [[[[1, 1], [1, 1]]]])
    array([[[[1., 3., 2.],
             [1., 3., 2.]]]])
    """
    dtype, x, w, b = _floats(x, w, b)
    N, C, H, W = x.shape
    _, Fg, KH, KW = w.shape
    F = Fg * groups
    (sh, sw), pads, (rh, rw), (OH, OW) = _transposed_geometry(
        x, w, stride, padding, output_padding, groups, dilation
    )
    _expect_channels(F, b=b)
    bias = np.zeros(F, x.dtype) if b is None else b
    yp = _pad(np.zeros((N, F, OH, OW), x.dtype), pads)
    for n, c, i, j in np.ndindex(N, C, H, W):
        f = _block(c // (C // groups), Fg)
        yp[n, f, _taps(i, KH, sh, rh), _taps(j, KW, sw, rw)] += x[n, c, i, j] * w[c]
    return _result(_crop(yp, pads) + bias[:, None, None], dtype)


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
) -> tuple[Array | None, Array | None, Array | None]:
    """Return the gradients of `conv_transpose1d`: `conv_transpose2d_backward` with one axis.

    dy (N, F, OL), x (N, C, L) and w (C, F/groups, K) give dx, dw and db (F,).
    """
    dtype, dy, x, w = _floats(dy, x, w)
    N, C, L = x.shape
    _, Fg, K = w.shape
    (s,), pads, (r,), (OL,) = _transposed_geometry(
        x, w, stride, padding, output_padding, groups, dilation
    )
    _expect("dy", dy, (N, Fg * groups, OL))
    dyp = _pad(dy, pads)
    dx, dw = np.zeros_like(x), np.zeros_like(w)
    for n, c, i in np.ndindex(N, C, L):
        stamp = dyp[n, _block(c // (C // groups), Fg), _taps(i, K, s, r)]
        dx[n, c, i] = np.sum(stamp * w[c])
        dw[c] += stamp * x[n, c, i]
    return _wanted(needs, dtype, dx, dw, dy.sum(axis=(0, 2)))


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
) -> tuple[Array | None, Array | None, Array | None]:
    """Return the gradients of `conv_transpose2d`, from what each stamp meets in dy.

    Each step of the forward, stamp += x * w, becomes

        dx = sum(dstamp * w)        dw += dstamp * x

    Parameters
    ----------
    dy : (N, F, OH, OW)
    x : (N, C, H, W)
    w : (C, F/groups, KH, KW)
    stride, padding, output_padding, groups, dilation
        As given to `conv_transpose2d`.
    needs : str

    Returns
    -------
    dx, dw, db : shapes of x, w and (F,)

    Notes
    -----
    Dumoulin and Visin, 2016: dx is the `conv2d` of dy with this w.

    Examples
    --------
    >>> dx, dw, db = conv_transpose2d_backward([[[[1, 2, 4]]]], [[[[5, 7]]]], [[[[1, 10]]]])
    >>> dx[0, 0], dw[0, 0], db
    (array([[21., 42.]]), array([[19., 38.]]), array([7.]))
    """
    dtype, dy, x, w = _floats(dy, x, w)
    N, C, H, W = x.shape
    _, Fg, KH, KW = w.shape
    (sh, sw), pads, (rh, rw), (OH, OW) = _transposed_geometry(
        x, w, stride, padding, output_padding, groups, dilation
    )
    _expect("dy", dy, (N, Fg * groups, OH, OW))
    dyp = _pad(dy, pads)
    dx, dw = np.zeros_like(x), np.zeros_like(w)
    for n, c, i, j in np.ndindex(N, C, H, W):
        f = _block(c // (C // groups), Fg)
        stamp = dyp[n, f, _taps(i, KH, sh, rh), _taps(j, KW, sw, rw)]
        dx[n, c, i, j] = np.sum(stamp * w[c])
        dw[c] += stamp * x[n, c, i, j]
    return _wanted(needs, dtype, dx, dw, dy.sum(axis=(0, 2, 3)))


# Columns


def im2col(
    x: Array, kernel_size: Ints, stride: Ints = 1, padding: Padding = 0, dilation: Ints = 1
) -> Array:
    """Write every window of the images as one column, so that `conv2d` is a matrix product.

        cols[n, (c*KH + u)*KW + v, i*OW + j] = x[n, c, i*sh + u*rh - top, j*sw + v*rw - left]

    x (N, C, H, W) gives cols (N, C*KH*KW, OH*OW), with OH and OW as in `conv2d`.
    Chellapilla, Puri and Simard, "High performance convolutional neural networks for document
    processing", 2006; `torch.nn.functional.unfold`.

    Examples
    --------
    >>> im2col([[[[1, 2, 3], [4, 5, 6]]]], kernel_size=2)
    array([[[1., 2.],
            [2., 3.],
            [4., 5.],
            [5., 6.]]])
    """
    dtype, x = _floats(x)
    N, C, H, W = x.shape
    (KH, KW), (sh, sw), (rh, rw) = (_ints(v, 2) for v in (kernel_size, stride, dilation))
    pads = _pairs(padding, 2)
    OH, OW = _window_count(H, KH, sh, pads[0], rh), _window_count(W, KW, sw, pads[1], rw)
    xp = _pad(x, pads)
    cols = np.zeros((N, C * KH * KW, OH * OW), x.dtype)
    for n, i, j in np.ndindex(N, OH, OW):
        cols[n, :, i * OW + j] = xp[n, :, _taps(i, KH, sh, rh), _taps(j, KW, sw, rw)].ravel()
    return _result(cols, dtype)


def col2im(
    cols: Array,
    output_size: Ints,
    kernel_size: Ints,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
) -> Array:
    """Add every column back to the window it came from: the backward of `im2col`.

        x[n, c, i*sh + u*rh - top, j*sw + v*rw - left] += cols[n, (c*KH + u)*KW + v, i*OW + j]

    A pixel that several windows share gets their sum, so this is not the inverse of `im2col`.
    cols (N, C*KH*KW, OH*OW) and output_size (H, W) give x (N, C, H, W).
    CS231n, assignment 2; `torch.nn.functional.fold`.

    Examples
    --------
    >>> col2im(np.ones((1, 4, 2)), output_size=(2, 3), kernel_size=2)
    array([[[[1., 2., 1.],
             [1., 2., 1.]]]])
    """
    dtype, cols = _floats(cols)
    (H, W), (KH, KW) = _ints(output_size, 2), _ints(kernel_size, 2)
    (sh, sw), (rh, rw), pads = _ints(stride, 2), _ints(dilation, 2), _pairs(padding, 2)
    OH, OW = _window_count(H, KH, sh, pads[0], rh), _window_count(W, KW, sw, pads[1], rw)
    N, C = cols.shape[0], cols.shape[1] // (KH * KW)
    _expect("cols", cols, (N, C * KH * KW, OH * OW))
    xp = _pad(np.zeros((N, C, H, W), cols.dtype), pads)
    for n, i, j in np.ndindex(N, OH, OW):
        window = cols[n, :, i * OW + j].reshape(C, KH, KW)
        xp[n, :, _taps(i, KH, sh, rh), _taps(j, KW, sw, rw)] += window
    return _result(_crop(xp, pads), dtype)


# Pooling


def _pool_geometry(
    sizes: Sequence[int],
    kernel_size: Ints,
    stride: Ints | None,
    padding: Padding,
    dilation: Ints,
    ceil_mode: bool,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[tuple[int, int], ...], tuple[int, ...]]:
    """Return kernel size, stride, padding and output size, one of each per axis."""
    ndim = len(sizes)
    kernel, dilations, pads = _ints(kernel_size, ndim), _ints(dilation, ndim), _pairs(padding, ndim)
    strides = kernel if stride is None else _ints(stride, ndim)
    for k, r, pad in zip(kernel, dilations, pads, strict=True):
        if max(pad) > r * (k - 1):
            raise ValueError(f"padding {pad} would hold a whole window of {k}, dilation {r}")
    axes = zip(sizes, kernel, strides, pads, dilations, strict=True)
    return kernel, strides, pads, tuple(_window_count(*axis, ceil_mode) for axis in axes)


def max_pool1d(
    x: Array,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Array | tuple[Array, Array]:
    """Return the largest element of each window: `max_pool2d` with one axis.

        y[n, c, i] = max over u of x[n, c, i*s + u*r - left]

    x (N, C, L) gives y (N, C, OL) and, with return_indices, its places within L, int64.
    CMU 11-785, homework 2; `torch.nn.functional.max_pool1d`.

    Examples
    --------
    >>> max_pool1d([[[1, 5, 2, 3]]], kernel_size=2, return_indices=True)
    (array([[[5., 3.]]]), array([[[1, 3]]]))
    """
    dtype, x = _floats(x)
    N, C, L = x.shape
    (K,), (s,), ((left, _),), (OL,) = _pool_geometry(
        (L,), kernel_size, stride, padding, dilation, ceil_mode
    )
    (r,) = _ints(dilation, 1)
    y = np.full((N, C, OL), -np.inf, x.dtype)
    indices = np.full(y.shape, -1, np.int64)
    for n, c, i in np.ndindex(N, C, OL):
        at = n, c, i
        for u in range(K):
            col = i * s + u * r - left
            if 0 <= col < L:
                value = x[n, c, col]
                if indices[at] == -1 or value > y[at] or math.isnan(value):
                    y[at], indices[at] = value, col
    return (_result(y, dtype), indices) if return_indices else _result(y, dtype)


def max_pool2d(
    x: Array,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Array | tuple[Array, Array]:
    """Return the largest element of each window, and where it was.

        y[n, c, i, j] = max over u, v of x[n, c, i*sh + u*rh - top, j*sw + v*rw - left]

    The padding never wins. Of equal elements the first in row-major order does. A NaN beats every
    number, and of several NaNs the last is taken. A window without any element of the input, which
    dilation can bring about, gives -inf and the index -1.

    Parameters
    ----------
    x : (N, C, H, W)
    kernel_size, stride, dilation : int or (int, int)
        A stride of None is the kernel size.
    padding : int, (ph, pw) or ((top, bottom), (left, right))
    ceil_mode : bool
        Round the output size up: a last window may reach over the end, if it starts before it.
    return_indices : bool

    Returns
    -------
    y : (N, C, OH, OW)
    indices : (N, C, OH, OW), int64, with return_indices
        row*W + column of the element that won.

    Notes
    -----
    CS231n, "Convolutional Neural Networks"; `torch.nn.functional.max_pool2d`.

    Examples
    --------
    >>> max_pool2d([[[[1, 9, 2], [9, 3, 4]]]], kernel_size=2, stride=1, return_indices=True)
    (array([[[[9., 9.]]]]), array([[[[1, 1]]]]))
    """
    dtype, x = _floats(x)
    N, C, H, W = x.shape
    (KH, KW), (sh, sw), ((top, _), (left, _)), (OH, OW) = _pool_geometry(
        (H, W), kernel_size, stride, padding, dilation, ceil_mode
    )
    rh, rw = _ints(dilation, 2)
    y = np.full((N, C, OH, OW), -np.inf, x.dtype)
    indices = np.full(y.shape, -1, np.int64)
    for n, c, i, j in np.ndindex(N, C, OH, OW):
        at = n, c, i, j
        for u, v in np.ndindex(KH, KW):
            row, col = i * sh + u * rh - top, j * sw + v * rw - left
            if 0 <= row < H and 0 <= col < W:
                value = x[n, c, row, col]
                if indices[at] == -1 or value > y[at] or math.isnan(value):
                    y[at], indices[at] = value, row * W + col
    return (_result(y, dtype), indices) if return_indices else _result(y, dtype)


def max_pool1d_backward(dy: Array, indices: Array, input_shape: Sequence[int]) -> Array:
    """Give each window's gradient to the one element that won: `max_pool2d_backward` with one axis.

    dy (N, C, OL), indices (N, C, OL) and input_shape (N, C, L) give dx (N, C, L).
    """
    dtype, dy = _floats(dy)
    N, C, L = input_shape
    indices = np.asarray(indices)
    _expect("indices", indices, (N, C, *dy.shape[2:]))
    _expect("dy", dy, indices.shape)
    dx = np.zeros((N, C, L), dy.dtype)
    for n, c, i in np.ndindex(dy.shape):
        index = indices[n, c, i]
        if not -1 <= index < L:
            raise ValueError(f"indices must lie in -1..{L - 1}, got {index}")
        if index >= 0:
            dx[n, c, index] += dy[n, c, i]
    return _result(dx, dtype)


def max_pool2d_backward(dy: Array, indices: Array, input_shape: Sequence[int]) -> Array:
    """Give each window's gradient to the one element that won.

        dx[n, c, index // W, index % W] += dy[n, c, i, j]        index = indices[n, c, i, j]

    The index -1, of a window without elements, is passed over. dy (N, C, OH, OW), the indices that
    `max_pool2d` returned, and input_shape (N, C, H, W) give dx (N, C, H, W).
    CS231n, assignment 2.

    Examples
    --------
    >>> max_pool2d_backward([[[[5, 7]]]], [[[[1, 1]]]], (1, 1, 2, 3))
    array([[[[ 0., 12.,  0.],
             [ 0.,  0.,  0.]]]])
    """
    dtype, dy = _floats(dy)
    N, C, H, W = input_shape
    indices = np.asarray(indices)
    _expect("indices", indices, (N, C, *dy.shape[2:]))
    _expect("dy", dy, indices.shape)
    dx = np.zeros((N, C, H, W), dy.dtype)
    for n, c, i, j in np.ndindex(dy.shape):
        index = indices[n, c, i, j]
        if not -1 <= index < H * W:
            raise ValueError(f"indices must lie in -1..{H * W - 1}, got {index}")
        if index >= 0:
            dx[n, c, index // W, index % W] += dy[n, c, i, j]
    return _result(dx, dtype)


def _span(i: int, kernel: int, stride: int, size: int, pad: tuple[int, int]) -> tuple[slice, int]:
    """Return the part of window i inside the input, and how long it is inside the padded input."""
    before, after = pad
    start = i * stride - before
    stop = min(start + kernel, size + after)
    return slice(max(start, 0), min(stop, size)), stop - start


def avg_pool1d(
    x: Array,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Array:
    """Return the mean of each window: `avg_pool2d` with one axis.

        y[n, c, i] = (sum over u of x[n, c, i*s + u - left]) / divisor

    x (N, C, L) gives y (N, C, OL).
    CMU 11-785, homework 2; `torch.nn.functional.avg_pool1d`.

    Examples
    --------
    >>> avg_pool1d([[[2, 4, 6, 8]]], kernel_size=2)
    array([[[3., 7.]]])
    """
    dtype, x = _floats(x)
    N, C, L = x.shape
    (K,), (s,), (pad,), (OL,) = _pool_geometry((L,), kernel_size, stride, padding, 1, ceil_mode)
    y = np.zeros((N, C, OL), x.dtype)
    for n, c, i in np.ndindex(N, C, OL):
        inside, length = _span(i, K, s, L, pad)
        window = x[n, c, inside]
        y[n, c, i] = np.sum(window) / (length if count_include_pad else window.size)
    return _result(y, dtype)


def avg_pool2d(
    x: Array,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """Return the mean of each window.

        y[n, c, i, j] = (sum over u, v of x[n, c, i*sh + u - top, j*sw + v - left]) / divisor

    Parameters
    ----------
    x : (N, C, H, W)
    kernel_size, stride : int or (int, int)
        A stride of None is the kernel size.
    padding : int, (ph, pw) or ((top, bottom), (left, right))
    ceil_mode : bool
        Round the output size up: a last window may reach over the end, if it starts before it.
    count_include_pad : bool
        The divisor is the window's area inside the padded input; if False, inside the input.
    divisor_override : int, optional
        The divisor of every window, whatever its area.

    Returns
    -------
    y : (N, C, OH, OW)

    Notes
    -----
    CMU 11-785, homework 2; `torch.nn.functional.avg_pool2d`.

    Examples
    --------
    >>> avg_pool2d([[[[1, 3], [5, 7]]]], kernel_size=2)
    array([[[[4.]]]])
    """
    dtype, x = _floats(x)
    N, C, H, W = x.shape
    (KH, KW), (sh, sw), pads, (OH, OW) = _pool_geometry(
        (H, W), kernel_size, stride, padding, 1, ceil_mode
    )
    y = np.zeros((N, C, OH, OW), x.dtype)
    for n, c, i, j in np.ndindex(N, C, OH, OW):
        rows, height = _span(i, KH, sh, H, pads[0])
        cols, width = _span(j, KW, sw, W, pads[1])
        window = x[n, c, rows, cols]
        divisor = height * width if count_include_pad else window.size
        if divisor_override is not None:
            divisor = divisor_override
        y[n, c, i, j] = np.sum(window) / divisor
    return _result(y, dtype)


def avg_pool1d_backward(
    dy: Array,
    input_shape: Sequence[int],
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Array:
    """Share each window's gradient equally: `avg_pool2d_backward` with one axis.

    dy (N, C, OL) and input_shape (N, C, L) give dx (N, C, L).
    """
    dtype, dy = _floats(dy)
    N, C, L = input_shape
    (K,), (s,), (pad,), (OL,) = _pool_geometry((L,), kernel_size, stride, padding, 1, ceil_mode)
    _expect("dy", dy, (N, C, OL))
    dx = np.zeros((N, C, L), dy.dtype)
    for n, c, i in np.ndindex(N, C, OL):
        inside, length = _span(i, K, s, L, pad)
        window = dx[n, c, inside]
        window += dy[n, c, i] / (length if count_include_pad else window.size)
    return _result(dx, dtype)


def avg_pool2d_backward(
    dy: Array,
    input_shape: Sequence[int],
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """Share each window's gradient equally among its elements.

        dx[n, c, i*sh + u - top, j*sw + v - left] += dy[n, c, i, j] / divisor

    dy (N, C, OH, OW) and input_shape (N, C, H, W) give dx (N, C, H, W); the divisor and the rest
    are those of `avg_pool2d`. CMU 11-785, homework 2.

    Examples
    --------
    >>> avg_pool2d_backward([[[[8]]]], (1, 1, 2, 2), kernel_size=2)
    array([[[[2., 2.],
             [2., 2.]]]])
    """
    dtype, dy = _floats(dy)
    N, C, H, W = input_shape
    (KH, KW), (sh, sw), pads, (OH, OW) = _pool_geometry(
        (H, W), kernel_size, stride, padding, 1, ceil_mode
    )
    _expect("dy", dy, (N, C, OH, OW))
    dx = np.zeros((N, C, H, W), dy.dtype)
    for n, c, i, j in np.ndindex(N, C, OH, OW):
        rows, height = _span(i, KH, sh, H, pads[0])
        cols, width = _span(j, KW, sw, W, pads[1])
        window = dx[n, c, rows, cols]
        divisor = height * width if count_include_pad else window.size
        if divisor_override is not None:
            divisor = divisor_override
        window += dy[n, c, i, j] / divisor
    return _result(dx, dtype)


# Resampling


def dilate1d(x: Array, factor: Ints) -> Array:
    """Put factor - 1 zeros between the elements: `dilate2d` with one axis.

        y[..., i*factor] = x[..., i]

    x (..., L) gives y (..., (L - 1)*factor + 1).
    Upsample1d of CMU 11-785, homework 2.

    Examples
    --------
    >>> dilate1d([[[1, 2, 3]]], 2)
    array([[[1., 0., 2., 0., 3.]]])
    """
    dtype, x = _floats(x)
    *batch, L = x.shape
    (f,) = _ints(factor, 1)
    y = np.zeros((*batch, (L - 1) * f + 1), x.dtype)
    for i in range(L):
        y[..., i * f] = x[..., i]
    return _result(y, dtype)


def dilate2d(x: Array, factor: Ints) -> Array:
    """Put fh - 1 rows and fw - 1 columns of zeros between the pixels.

        y[..., i*fh, j*fw] = x[..., i, j]

    x (..., H, W) and the factor (fh, fw) give y (..., (H - 1)*fh + 1, (W - 1)*fw + 1).
    Upsample2d of CMU 11-785, homework 2.

    Examples
    --------
    >>> dilate2d([[[[1, 2], [3, 4]]]], (2, 1))
    array([[[[1., 2.],
             [0., 0.],
             [3., 4.]]]])
    """
    dtype, x = _floats(x)
    *batch, H, W = x.shape
    fh, fw = _ints(factor, 2)
    y = np.zeros((*batch, (H - 1) * fh + 1, (W - 1) * fw + 1), x.dtype)
    for i, j in np.ndindex(H, W):
        y[..., i * fh, j * fw] = x[..., i, j]
    return _result(y, dtype)


def dilate1d_backward(dy: Array, factor: Ints, input_shape: Sequence[int]) -> Array:
    """Return the gradient of `dilate1d`: dx[..., i] = dy[..., i*factor].

    dy (..., (L - 1)*factor + 1) and input_shape (..., L) give dx (..., L).
    """
    dtype, dy = _floats(dy)
    *batch, L = input_shape
    (f,) = _ints(factor, 1)
    _expect("dy", dy, (*batch, (L - 1) * f + 1))
    dx = np.zeros(input_shape, dy.dtype)
    for i in range(L):
        dx[..., i] = dy[..., i * f]
    return _result(dx, dtype)


def dilate2d_backward(dy: Array, factor: Ints, input_shape: Sequence[int]) -> Array:
    """Return the gradient of `dilate2d`: dx[..., i, j] = dy[..., i*fh, j*fw].

    dy (..., (H - 1)*fh + 1, (W - 1)*fw + 1) and input_shape (..., H, W) give dx (..., H, W).
    """
    dtype, dy = _floats(dy)
    *batch, H, W = input_shape
    fh, fw = _ints(factor, 2)
    _expect("dy", dy, (*batch, (H - 1) * fh + 1, (W - 1) * fw + 1))
    dx = np.zeros(input_shape, dy.dtype)
    for i, j in np.ndindex(H, W):
        dx[..., i, j] = dy[..., i * fh, j * fw]
    return _result(dx, dtype)


def subsample1d(x: Array, factor: Ints) -> Array:
    """Keep every factor-th element, beginning with the first: `subsample2d` with one axis.

        y[..., i] = x[..., i*factor]

    x (..., L) gives y (..., (L - 1)//factor + 1).
    Downsample1d of CMU 11-785, homework 2.

    Examples
    --------
    >>> subsample1d([[[1, 2, 3, 4]]], 3)
    array([[[1., 4.]]])
    """
    dtype, x = _floats(x)
    *batch, L = x.shape
    (f,) = _ints(factor, 1)
    y = np.zeros((*batch, (L - 1) // f + 1), x.dtype)
    for i in range(y.shape[-1]):
        y[..., i] = x[..., i * f]
    return _result(y, dtype)


def subsample2d(x: Array, factor: Ints) -> Array:
    """Keep every fh-th row and every fw-th column, beginning with the first.

        y[..., i, j] = x[..., i*fh, j*fw]

    x (..., H, W) and the factor (fh, fw) give y (..., (H - 1)//fh + 1, (W - 1)//fw + 1).
    Downsample2d of CMU 11-785, homework 2.

    Examples
    --------
    >>> subsample2d([[[[1, 2, 3], [4, 5, 6], [7, 8, 9]]]], 2)
    array([[[[1., 3.],
             [7., 9.]]]])
    """
    dtype, x = _floats(x)
    *batch, H, W = x.shape
    fh, fw = _ints(factor, 2)
    y = np.zeros((*batch, (H - 1) // fh + 1, (W - 1) // fw + 1), x.dtype)
    for i, j in np.ndindex(y.shape[-2:]):
        y[..., i, j] = x[..., i * fh, j * fw]
    return _result(y, dtype)


def subsample1d_backward(dy: Array, factor: Ints, input_shape: Sequence[int]) -> Array:
    """Return the gradient of `subsample1d`: dx[..., i*factor] = dy[..., i], elsewhere 0.

    dy (..., (L - 1)//factor + 1) and input_shape (..., L) give dx (..., L).
    """
    dtype, dy = _floats(dy)
    *batch, L = input_shape
    (f,) = _ints(factor, 1)
    _expect("dy", dy, (*batch, (L - 1) // f + 1))
    dx = np.zeros(input_shape, dy.dtype)
    for i in range(dy.shape[-1]):
        dx[..., i * f] = dy[..., i]
    return _result(dx, dtype)


def subsample2d_backward(dy: Array, factor: Ints, input_shape: Sequence[int]) -> Array:
    """Return the gradient of `subsample2d`: dx[..., i*fh, j*fw] = dy[..., i, j], elsewhere 0.

    dy (..., (H - 1)//fh + 1, (W - 1)//fw + 1) and input_shape (..., H, W) give dx (..., H, W).
    """
    dtype, dy = _floats(dy)
    *batch, H, W = input_shape
    fh, fw = _ints(factor, 2)
    _expect("dy", dy, (*batch, (H - 1) // fh + 1, (W - 1) // fw + 1))
    dx = np.zeros(input_shape, dy.dtype)
    for i, j in np.ndindex(dy.shape[-2:]):
        dx[..., i * fh, j * fw] = dy[..., i, j]
    return _result(dx, dtype)


# Normalisation


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
) -> Array | tuple[Array, Array, Array]:
    """Give every channel mean 0 and variance 1, then scale and shift it.

        y[:, c] = (x[:, c] - mean[c]) * rstd[c] * weight[c] + bias[c]
        rstd[c] = 1 / sqrt(var[c] + eps)

    When training, mean and var are those of the m values that the batch has in channel c, and the
    running arrays are moved towards them, in place:

        running_mean = (1 - momentum) * running_mean + momentum * mean
        running_var  = (1 - momentum) * running_var  + momentum * var * m / (m - 1)

    Otherwise mean and var are the running arrays.

    Parameters
    ----------
    x : (N, C), (N, C, L) or (N, C, H, W)
    running_mean, running_var : (C,)
        May be None when training.
    weight, bias : (C,), optional
    training : bool
    momentum, eps : float
    return_stats : bool

    Returns
    -------
    y : shape of x
    mean, rstd : (C,), with return_stats
        What `batch_norm_backward` wants.

    Notes
    -----
    Ioffe and Szegedy, "Batch normalization", 2015; `torch.nn.functional.batch_norm`. The momentum
    of the courses is 1 minus this one.

    Examples
    --------
    >>> batch_norm([[1], [3]], None, None, training=True, eps=0)
    array([[-1.],
           [ 1.]])
    """
    dtype, x, mean, var, weight, bias = _floats(x, running_mean, running_var, weight, bias)
    C = x.shape[1]
    _expect_channels(C, running_mean=mean, running_var=var, weight=weight, bias=bias)
    m = x[:, :1].size
    if training:
        if m == 1:
            raise ValueError(f"training needs more than one value per channel, got x {x.shape}")
        mean, var = np.zeros(C, x.dtype), np.zeros(C, x.dtype)
        for c in range(C):
            mean[c] = np.sum(x[:, c]) / max(m, 1)
            var[c] = np.sum((x[:, c] - mean[c]) ** 2) / max(m, 1)
        if running_mean is not None and m > 0:  # an empty batch tells nothing
            running_mean[:] = (1 - momentum) * running_mean + momentum * mean
        if running_var is not None and m > 0:
            running_var[:] = (1 - momentum) * running_var + momentum * var * m / (m - 1)
    elif mean is None or var is None:
        raise ValueError("running_mean and running_var are needed when not training")
    rstd = 1 / np.sqrt(var + eps)
    y = np.zeros_like(x)
    for c in range(C):
        y[:, c] = (x[:, c] - mean[c]) * rstd[c]
        if weight is not None:
            y[:, c] *= weight[c]
        if bias is not None:
            y[:, c] += bias[c]
    y = _result(y, dtype)
    return (y, _result(mean, dtype), _result(rstd, dtype)) if return_stats else y


def batch_norm_backward(
    dy: Array, x: Array, mean: Array, rstd: Array, weight: Array | None = None
) -> tuple[Array, Array, Array]:
    """Return the gradients of `batch_norm` in training, where mean and rstd depend on x as well.

        xhat = (x - mean) * rstd
        dbias[c] = sum(dy[:, c])        dweight[c] = sum(dy[:, c] * xhat[:, c])
        dx[:, c] = weight[c] * rstd[c] * (dy[:, c] - dbias[c]/m - xhat[:, c] * dweight[c]/m)

    dy and x, of any shape that `batch_norm` takes, with its mean, rstd and weight (C,), give dx,
    dweight (C,) and dbias (C,). Ioffe and Szegedy, 2015, simplified as in CS231n, assignment 2.

    Examples
    --------
    >>> dx, dweight, dbias = batch_norm_backward([[1], [0]], [[-1], [1]], mean=[0], rstd=[1])
    >>> dx.tolist(), dweight, dbias
    ([[0.0], [0.0]], array([-1.]), array([1.]))
    """
    dtype, dy, x, mean, rstd, weight = _floats(dy, x, mean, rstd, weight)
    _expect("dy", dy, x.shape)
    C = x.shape[1]
    _expect_channels(C, mean=mean, rstd=rstd, weight=weight)
    m = max(x[:, :1].size, 1)
    dx, dweight, dbias = np.zeros_like(x), np.zeros(C, x.dtype), np.zeros(C, x.dtype)
    for c in range(C):
        xhat = (x[:, c] - mean[c]) * rstd[c]
        dbias[c] = np.sum(dy[:, c])
        dweight[c] = np.sum(dy[:, c] * xhat)
        scale = rstd[c] if weight is None else rstd[c] * weight[c]
        dx[:, c] = scale * (dy[:, c] - dbias[c] / m - xhat * dweight[c] / m)
    return _result(dx, dtype), _result(dweight, dtype), _result(dbias, dtype)


# Activations


def relu(x: Array) -> Array:
    """Return x where it is positive and 0 elsewhere: y = max(x, 0), of any shape.

    Nair and Hinton, "Rectified linear units improve restricted Boltzmann machines", 2010;
    `torch.nn.functional.relu`.

    Examples
    --------
    >>> relu([-1, 2])
    array([0., 2.])
    """
    dtype, x = _floats(x)
    return _result(np.where(x < 0, 0, x), dtype)  # which leaves NaN and -0.0 as they are


def relu_backward(dy: Array, x: Array) -> Array:
    """Return the gradient of `relu`: dx = dy where x > 0, else 0 (at 0 by convention)."""
    dtype, dy, x = _floats(dy, x)
    _expect("dy", dy, x.shape)
    return _result(np.where(x <= 0, 0, dy), dtype)  # a NaN in x lets dy through, as in PyTorch


def leaky_relu(x: Array, negative_slope: float = 0.01) -> Array:
    """Return x where it is positive and negative_slope * x elsewhere, of any shape.

    Maas, Hannun and Ng, "Rectifier nonlinearities improve neural network acoustic models", 2013;
    `torch.nn.functional.leaky_relu`.

    Examples
    --------
    >>> leaky_relu([-1, 2], 0.5)
    array([-0.5,  2. ])
    """
    dtype, x = _floats(x)
    return _result(np.where(x > 0, x, x * negative_slope), dtype)


def leaky_relu_backward(dy: Array, x: Array, negative_slope: float = 0.01) -> Array:
    """Return the gradient of `leaky_relu`: dx = dy where x > 0, else negative_slope * dy."""
    dtype, dy, x = _floats(dy, x)
    _expect("dy", dy, x.shape)
    return _result(np.where(x > 0, dy, dy * negative_slope), dtype)


def sigmoid(x: Array) -> Array:
    """Squash x, of any shape, into 0..1.

        y = 1 / (1 + exp(-x)) = exp(x) / (1 + exp(x))

    by the form whose exponential cannot overflow. `torch.sigmoid`.

    Examples
    --------
    >>> sigmoid([0, -1000])
    array([0.5, 0. ])
    """
    dtype, x = _floats(x)
    e = np.exp(-np.abs(x))
    return _result(np.where(x < 0, e, 1) / (1 + e), dtype)


def sigmoid_backward(dy: Array, x: Array) -> Array:
    """Return the gradient of `sigmoid`: dx = dy * y * (1 - y), where 1 - y = sigmoid(-x)."""
    dtype, dy, x = _floats(dy, x)
    _expect("dy", dy, x.shape)
    return _result(dy * sigmoid(x) * sigmoid(-x), dtype)


def tanh(x: Array) -> Array:
    """Squash x, of any shape, into -1..1: y = (exp(x) - exp(-x)) / (exp(x) + exp(-x)).

    `torch.tanh`.

    Examples
    --------
    >>> tanh([0, 1000])
    array([0., 1.])
    """
    dtype, x = _floats(x)
    return _result(np.tanh(x), dtype)


def tanh_backward(dy: Array, x: Array) -> Array:
    """Return the gradient of `tanh`: dx = dy * (1 - y**2), where y = tanh(x)."""
    dtype, dy, x = _floats(dy, x)
    _expect("dy", dy, x.shape)
    return _result(dy * (1 - np.tanh(x) ** 2), dtype)


def softmax(x: Array, axis: int = -1) -> Array:
    """Turn scores into probabilities that sum to 1 along one axis.

        y[c] = exp(x[c]) / sum over k of exp(x[k])

    after the largest score is taken off all of them, which changes nothing but prevents overflow.
    CS231n, "Linear classification"; `torch.nn.functional.softmax`.

    Examples
    --------
    >>> softmax([1000, 1000])
    array([0.5, 0.5])
    """
    dtype, x = _floats(x)
    e = np.exp(x - x.max(axis=axis, keepdims=True, initial=-np.inf))
    return _result(e / e.sum(axis=axis, keepdims=True), dtype)


def softmax_backward(dy: Array, y: Array, axis: int = -1) -> Array:
    """Return the gradient of `softmax`, from its output.

    dx[c] = y[c] * (dy[c] - sum over k of dy[k] * y[k])
    """
    dtype, dy, y = _floats(dy, y)
    _expect("dy", dy, y.shape)
    return _result(y * (dy - (dy * y).sum(axis=axis, keepdims=True)), dtype)


def log_softmax(x: Array, axis: int = -1) -> Array:
    """Return the logarithm of `softmax`, exact even where that would be rounded to 0.

        y[c] = x[c] - log(sum over k of exp(x[k]))

    `torch.nn.functional.log_softmax`.

    Examples
    --------
    >>> log_softmax([0, -1000])
    array([    0., -1000.])
    """
    dtype, x = _floats(x)
    shifted = x - x.max(axis=axis, keepdims=True, initial=-np.inf)
    return _result(shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True)), dtype)


def log_softmax_backward(dy: Array, y: Array, axis: int = -1) -> Array:
    """Return the gradient of `log_softmax`, from its output.

    dx[c] = dy[c] - exp(y[c]) * sum over k of dy[k]
    """
    dtype, dy, y = _floats(dy, y)
    _expect("dy", dy, y.shape)
    return _result(dy - np.exp(y) * dy.sum(axis=axis, keepdims=True), dtype)


# Linear layer and dropout


def linear(x: Array, w: Array, b: Array | None = None) -> Array:
    """Multiply the vectors along the last axis by every row of w.

        y[..., f] = b[f] + sum over d of w[f, d] * x[..., d]

    x (..., D), w (F, D) and b (F,) give y (..., F). CS231n's affine layer holds w as (D, F).
    `torch.nn.functional.linear`.

    Examples
    --------
    >>> linear([[1, 2]], [[1, 10], [1, 0], [0, 1]], b=[0, 100, 100])
    array([[ 21., 101., 102.]])
    """
    dtype, x, w, b = _floats(x, w, b)
    F = w.shape[0]
    _expect_channels(F, b=b)
    bias = np.zeros(F, x.dtype) if b is None else b
    _expect("w", w, (F, x.shape[-1]))
    y = np.zeros((*x.shape[:-1], F), x.dtype)
    for row in np.ndindex(x.shape[:-1]):
        for f in range(F):
            y[*row, f] = np.sum(w[f] * x[row]) + bias[f]
    return _result(y, dtype)


def linear_backward(
    dy: Array, x: Array, w: Array, *, needs: str = "xwb"
) -> tuple[Array | None, Array | None, Array | None]:
    """Return the gradients of `linear`, added up over all the vectors.

        dx[d] += dy[f] * w[f, d]        dw[f, d] += dy[f] * x[d]        db[f] += dy[f]

    dy (..., F), x (..., D) and w (F, D) give dx, dw and db (F,).

    Examples
    --------
    >>> dx, dw, db = linear_backward([[1, 10]], [[2, 3]], [[1, 0], [0, 1]])
    >>> dx, dw.tolist(), db
    (array([[ 1., 10.]]), [[2.0, 3.0], [20.0, 30.0]], array([ 1., 10.]))
    """
    dtype, dy, x, w = _floats(dy, x, w)
    F = w.shape[0]
    _expect("w", w, (F, x.shape[-1]))
    _expect("dy", dy, (*x.shape[:-1], F))
    dx, dw, db = np.zeros_like(x), np.zeros_like(w), np.zeros(F, x.dtype)
    for row in np.ndindex(x.shape[:-1]):
        for f in range(F):
            dx[row] += dy[*row, f] * w[f]
            dw[f] += dy[*row, f] * x[row]
            db[f] += dy[*row, f]
    return _wanted(needs, dtype, dx, dw, db)


def dropout(
    x: Array,
    p: float = 0.5,
    training: bool = True,
    *,
    rng: np.random.Generator,
    return_mask: bool = False,
) -> Array | tuple[Array, Array]:
    """Set each element to 0 with probability p, and enlarge the others so that the mean stays.

        mask = rng.random(x.shape) >= p        y = x * mask / (1 - p)

    x, of any shape, gives y and, with return_mask, the bool mask. When not training, y is x and the
    mask is True everywhere. Srivastava et al., "Dropout: a simple way to prevent neural networks
    from overfitting", 2014; CS231n, "Neural networks 2"; `torch.nn.functional.dropout`.

    Examples
    --------
    >>> dropout([1, 2, 3], p=0.5, rng=np.random.default_rng(0))
    array([2., 0., 0.])
    """
    dtype, x = _floats(x)
    if training:
        mask = rng.random(x.shape) >= p
        y = dropout_backward(x, mask, p)  # the same product goes forward and backward
    else:
        mask, y = np.ones(x.shape, bool), x
    return (_result(y, dtype), mask) if return_mask else _result(y, dtype)


def dropout_backward(dy: Array, mask: Array, p: float = 0.5) -> Array:
    """Return the gradient of `dropout` in training: dx = dy * mask / (1 - p)."""
    dtype, dy = _floats(dy)
    mask = np.asarray(mask)
    _expect("mask", mask, dy.shape)
    return _result(dy * mask / (1 - p if p < 1 else 1), dtype)  # at p = 1 nothing is kept


# Losses


def _check_labels(labels: Array, scores: Array) -> Array:
    labels = np.asarray(labels)
    _expect("labels", labels, scores.shape[:1])
    if labels.size and not 0 <= labels.min() <= labels.max() < scores.shape[1]:
        raise ValueError(f"labels must lie in 0..{scores.shape[1] - 1}, got {labels}")
    return labels


def cross_entropy(
    scores: Array, labels: Array, *, label_smoothing: float = 0.0
) -> tuple[float, Array]:
    """Return the mean surprise at the right classes, and its gradient.

        loss = -1/N * sum over n, c of q[n, c] * log_softmax(scores)[n, c]
        dscores = (softmax(scores) - q) / N

    where q is 1 for the right class and 0 for the others or, smoothed, that times
    (1 - label_smoothing) plus label_smoothing / C everywhere. scores (N, C) and labels (N,), ints,
    give the loss, a float that is NaN for an empty batch, and dscores (N, C).
    CS231n, "Linear classification"; smoothing: Szegedy et al., "Rethinking the Inception
    architecture", 2016; `torch.nn.functional.cross_entropy`.

    Examples
    --------
    >>> loss, dscores = cross_entropy([[0, 0]], [1])
    >>> round(loss, 6), dscores
    (0.693147, array([[ 0.5, -0.5]]))
    """
    dtype, scores = _floats(scores)
    labels = _check_labels(labels, scores)
    N, C = scores.shape
    logs, dscores = log_softmax(scores), softmax(scores)
    loss = 0.0
    for n in range(N):
        loss -= (1 - label_smoothing) * float(logs[n, labels[n]])
        dscores[n, labels[n]] -= 1 - label_smoothing
        if label_smoothing:  # else 0 times a score of -inf would be NaN
            loss -= label_smoothing / C * float(np.sum(logs[n]))
            dscores[n] -= label_smoothing / C
    return loss / N if N else math.nan, _result(dscores / max(N, 1), dtype)


def multi_margin_loss(scores: Array, labels: Array, *, margin: float = 1.0) -> tuple[float, Array]:
    """Return the courses' SVM loss, and its gradient.

        loss = 1/N * sum over n and c != labels[n] of
               max(0, scores[n, c] - scores[n, labels[n]] + margin)

    scores (N, C) and labels (N,), ints, give the loss, a float that is NaN for an empty batch, and
    dscores (N, C). Weston and Watkins, 1999; CS231n, "Linear classification".
    `torch.nn.functional.multi_margin_loss` divides by C as well.

    Examples
    --------
    >>> multi_margin_loss([[1.0, 3.0, 2.5]], [1])
    (0.5, array([[ 0., -1.,  1.]]))
    """
    dtype, scores = _floats(scores)
    labels = _check_labels(labels, scores)
    N, C = scores.shape
    dscores = np.zeros_like(scores)
    loss = 0.0
    for n, c in np.ndindex(N, C):
        excess = scores[n, c] - scores[n, labels[n]] + margin
        if c != labels[n] and not excess <= 0:  # a NaN counts
            loss += float(excess)
            dscores[n, c] += 1
            dscores[n, labels[n]] -= 1
    return loss / N if N else math.nan, _result(dscores / max(N, 1), dtype)


def mse_loss(pred: Array, target: Array) -> tuple[float, Array]:
    """Return the mean squared difference, and its gradient by pred.

        loss = mean of (pred - target)**2        dpred = 2 * (pred - target) / size

    pred and target, of one shape, give the loss, a float that is NaN for an empty batch, and dpred.
    `torch.nn.functional.mse_loss`.

    Examples
    --------
    >>> mse_loss([1, 2], [1, 4])
    (2.0, array([ 0., -2.]))
    """
    dtype, pred, target = _floats(pred, target)
    _expect("target", target, pred.shape)
    error = pred - target
    loss = float(np.sum(error**2)) / error.size if error.size else math.nan
    return loss, _result(2 * error / max(error.size, 1), dtype)
