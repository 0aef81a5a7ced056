"""Sizes, checked once: stride, padding, dilation and groups as one frozen value.

Everything is two-dimensional below this module. A one-dimensional operation is the
two-dimensional one on images of height 1, so `Windows.ndim` remembers what was asked, for messages
and for the one method (``naive``) that has one-dimensional loops of its own.

The size formulas are PyTorch's: a window that covers ``E = dilation * (K - 1) + 1`` elements,
slid over ``H + before + after`` of them, fits ``(H + before + after - E) // stride + 1`` times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from operator import index
from typing import Any, TypeVar

import numpy as np

Pair = tuple[int, int]
Pads = tuple[Pair, Pair]
Shape = tuple[int, ...]

_LARGEST = 2**31 - 1  # of one parameter
MOST_ELEMENTS = 2**59  # of one array, whose bytes then fit 64 bits


@dataclass(frozen=True)
class Windows:
    """Windows slid over images: all that pooling and columns need to know.

    `OH` and `OW` are how many windows are computed; `padding` is ``((top, bottom), (left,
    right))``; `stride` and `dilation` are (rows, columns).
    """

    ndim: int
    N: int
    C: int
    H: int
    W: int
    KH: int
    KW: int
    OH: int
    OW: int
    stride: Pair
    padding: Pads
    dilation: Pair

    @property
    def x_shape(self) -> Shape:
        return (self.N, self.C, self.H, self.W)

    @property
    def y_shape(self) -> Shape:
        return (self.N, self.C, self.OH, self.OW)

    @property
    def pixels(self) -> int:
        """Output pixels of one image, OH * OW."""
        return self.OH * self.OW

    @property
    def flops(self) -> int:
        """Operations of one pass over all windows."""
        return prod(self.y_shape) * self.KH * self.KW

    @property
    def elements(self) -> int:
        """Elements that any method must read or write: x and y once."""
        return prod(self.x_shape) + prod(self.y_shape)


@dataclass(frozen=True)
class Convolution(Windows):
    """The sizes of ``y[n, f] = sum over c of w[f, c] * x[n, c]``, with groups."""

    F: int
    groups: int

    @property
    def w_shape(self) -> Shape:
        return (self.F, self.C // self.groups, self.KH, self.KW)

    @property
    def y_shape(self) -> Shape:
        return (self.N, self.F, self.OH, self.OW)

    @property
    def flops(self) -> int:
        """Multiplications and additions of one product (forward, or one of the gradients)."""
        return 2 * prod(self.y_shape) * prod(self.w_shape[1:])

    @property
    def elements(self) -> int:
        return prod(self.x_shape) + prod(self.w_shape) + prod(self.y_shape)


@dataclass(frozen=True)
class Pooling(Windows):
    """Windows with pooling's options; `divisor` 0 divides by what is in the window."""

    ceil_mode: bool
    count_include_pad: bool = True
    divisor: int = 0


@dataclass(frozen=True)
class Elements:
    """An operation on every element, of a shape that the method need not know."""

    shape: Shape
    per_element: int = 1

    @property
    def flops(self) -> int:
        return prod(self.shape) * self.per_element

    @property
    def elements(self) -> int:
        return 2 * prod(self.shape)


@dataclass(frozen=True)
class Product:
    """A matrix product: `rows` x `inner` times `inner` x `columns`."""

    rows: int
    inner: int
    columns: int

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.inner * self.columns

    @property
    def elements(self) -> int:
        return self.rows * self.inner + self.inner * self.columns + self.rows * self.columns


Geometry = Windows | Elements | Product
AnyWindows = TypeVar("AnyWindows", bound=Windows)


def whole(op: str, name: str, value: Any, least: int, most: int = _LARGEST) -> int:
    """`value` as an int from `least` to `most`; a float, a bool or a string is a TypeError."""
    if isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be an integer, not {value!r}")
    try:
        number = index(value)
    except TypeError:
        raise TypeError(f"{op}: {name} must be an integer, not {value!r}") from None
    if number < least:
        raise ValueError(f"{op}: {name} must be at least {least}, not {number}")
    if number > most:
        raise ValueError(f"{op}: {name} must be at most {most}, not {number}")
    return number


def flag(op: str, name: str, value: Any) -> bool:
    """`value` as a bool; anything but True, False, 1 and 0 is a TypeError."""
    if isinstance(value, bool | int | np.bool_) and value in (0, 1):
        return bool(value)
    raise TypeError(f"{op}: {name} must be True or False, not {value!r}")


def _of_a_size(op: str, g: AnyWindows) -> AnyWindows:
    """Refuse what no memory holds, before its sizes overflow 64 bits anywhere."""
    largest = max(prod(g.x_shape), prod(g.y_shape), prod(g.x_shape[:2]) * g.KH * g.KW * g.pixels)
    if largest > MOST_ELEMENTS:
        raise ValueError(
            f"{op}: too large: windows of {(g.KH, g.KW)[2 - g.ndim :]} over {g.x_shape} give "
            f"{g.y_shape}"
        )
    return g


def per_axis(op: str, name: str, value: Any, ndim: int, least: int) -> Pair:
    """One number for each axis as (rows, columns); one number serves both axes.

    Of a one-dimensional operation the rows' entry is the one that changes nothing there: the
    smallest legal value.
    """
    if type(value) is int and least <= value <= _LARGEST:  # nearly every call
        return least if ndim == 1 else value, value
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        if len(value) not in (1, ndim):
            raise ValueError(
                f"{op}: {name} must be an integer or {ndim} of them, not {tuple(value)!r}"
            )
        numbers = [whole(op, name, v, least) for v in value]
    else:
        numbers = [whole(op, name, value, least)]
    if ndim == 1:
        return least, numbers[0]
    return numbers[0], numbers[-1]


def pads(op: str, value: Any, ndim: int) -> Pads:
    """Padding as ((top, bottom), (left, right)) from a number, one per axis, or pairs."""
    if type(value) is int and 0 <= value <= _LARGEST:
        return ((0, 0) if ndim == 1 else (value, value)), (value, value)
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, str):
        raise ValueError(f"{op}: padding must be numbers here, not {value!r}")
    if isinstance(value, Sequence) and any(isinstance(v, Sequence) for v in value):
        if len(value) != ndim or not all(isinstance(v, Sequence) and len(v) == 2 for v in value):
            wanted = "((left, right),)" if ndim == 1 else "((top, bottom), (left, right))"
            raise ValueError(f"{op}: padding must be {wanted}, not {value!r}")
        pairs = [(whole(op, "padding", a, 0), whole(op, "padding", b, 0)) for a, b in value]
        return ((0, 0), pairs[0]) if ndim == 1 else (pairs[0], pairs[1])
    rows, columns = per_axis(op, "padding", value, ndim, 0)
    return (rows, rows), (columns, columns)


def _named_pads(op: str, value: str, ndim: int, kernel: Pair, stride: Pair, dilation: Pair) -> Pads:
    if value == "valid":
        return (0, 0), (0, 0)
    if value != "same":
        raise ValueError(f'{op}: padding must be numbers, "valid" or "same", not {value!r}')
    if stride != (1, 1):
        raise ValueError(f'{op}: padding="same" needs stride 1, not {stride[2 - ndim :]}')
    # An odd surplus goes to the end, as in PyTorch and TensorFlow.
    total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    return (total[0] // 2, total[0] - total[0] // 2), (total[1] // 2, total[1] - total[1] // 2)


def rank(op: str, name: str, shape: Shape, letters: str) -> None:
    """Check the number of axes, which `letters` names: ``"N, C, H, W"``."""
    if len(shape) != letters.count(",") + 1:
        raise ValueError(f"{op}: {name} must have shape ({letters}), not {shape}")


def _lift(shape: Shape, ndim: int) -> tuple[int, int, int, int]:
    return (shape[0], shape[1], 1, shape[2]) if ndim == 1 else shape  # type: ignore[return-value]


def _reach(kernel: Pair, dilation: Pair) -> Pair:
    """Elements that a dilated window covers from its first to its last tap."""
    return dilation[0] * (kernel[0] - 1) + 1, dilation[1] * (kernel[1] - 1) + 1


def _count(size: int, pad: Pair, reach: int, stride: int) -> int:
    return (size + pad[0] + pad[1] - reach) // stride + 1


def _images(op: str, name: str, shape: Shape, ndim: int) -> tuple[int, int, int, int]:
    rank(op, name, shape, "N, C, L" if ndim == 1 else "N, C, H, W")
    if 0 in shape[1:]:
        raise ValueError(f"{op}: {name} has an empty axis (shape {shape}); only N may be 0")
    return _lift(shape, ndim)


def _weights(op: str, shape: Shape, ndim: int, groups: int, first: str) -> tuple[int, int, Pair]:
    letters = f"{first}, K" if ndim == 1 else f"{first}, KH, KW"
    rank(op, "w", shape, letters)
    if 0 in shape:
        raise ValueError(f"{op}: w has an empty axis (shape {shape})")
    if shape[0] % groups:
        raise ValueError(f"{op}: groups={groups} does not divide the {shape[0]} of w {shape}")
    out, inner, *kernel = _lift(shape, ndim)
    return out, inner, (kernel[0], kernel[1])


@lru_cache(maxsize=1024)
def _convolution(
    op: str,
    ndim: int,
    x: Shape,
    w: Shape,
    stride: Pair,
    padding: Pads | str,
    dilation: Pair,
    groups: int,
) -> Convolution:
    N, C, H, W = _images(op, "x", x, ndim)
    F, inner, kernel = _weights(op, w, ndim, groups, "F, C // groups")
    if C % groups:
        raise ValueError(f"{op}: groups={groups} does not divide the {C} channels of x {x}")
    if inner * groups != C:
        times = f" times groups={groups}" if groups > 1 else ""
        raise ValueError(f"{op}: w has {inner} input channels{times}, x has {C} (shape {x})")
    if isinstance(padding, str):
        padding = _named_pads(op, padding, ndim, kernel, stride, dilation)
    reach = _reach(kernel, dilation)
    OH = _count(H, padding[0], reach[0], stride[0])
    OW = _count(W, padding[1], reach[1], stride[1])
    if OH < 1 or OW < 1:
        padded = (H + sum(padding[0]), W + sum(padding[1]))
        raise ValueError(
            f"{op}: w covers {reach[2 - ndim :]} elements, more than the {padded[2 - ndim :]} "
            f"of x {x} with padding={padding[2 - ndim :]}: the output would be empty"
        )
    slid = (ndim, N, C, H, W, *kernel, OH, OW, stride, padding, dilation)
    return _of_a_size(op, Convolution(*slid, F, groups))


def convolution(
    op: str, ndim: int, x: Shape, w: Shape, stride: Any, padding: Any, dilation: Any, groups: Any
) -> Convolution:
    """The geometry of conv1d and conv2d, and of their gradients, from the user's words."""
    return _convolution(
        op,
        ndim,
        x,
        w,
        per_axis(op, "stride", stride, ndim, 1),
        padding if isinstance(padding, str) else pads(op, padding, ndim),
        per_axis(op, "dilation", dilation, ndim, 1),
        whole(op, "groups", groups, 1),
    )


def transposed(
    op: str,
    ndim: int,
    x: Shape,
    w: Shape,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: Any,
    dilation: Any,
) -> Convolution:
    """The geometry of the convolution whose gradient by input is the transposed one.

    Its `C, H, W` are those of the transposed convolution's result, its `F, OH, OW` those of `x`.
    """
    strides = per_axis(op, "stride", stride, ndim, 1)
    dilations = per_axis(op, "dilation", dilation, ndim, 1)
    extra = per_axis(op, "output_padding", output_padding, ndim, 0)
    padding = pads(op, padding, ndim)
    groups = whole(op, "groups", groups, 1)
    N, F, OH, OW = _images(op, "x", x, ndim)
    channels, inner, kernel = _weights(op, w, ndim, groups, "C_in, C_out // groups")
    if channels != F:
        raise ValueError(f"{op}: w has {channels} input channels, x has {F} (shape {x})")
    for e, s, d in zip(extra, strides, dilations, strict=True):
        if e >= max(s, d):
            raise ValueError(
                f"{op}: output_padding must be smaller than stride or dilation, "
                f"not {extra[2 - ndim :]} with stride {strides[2 - ndim :]}, "
                f"dilation {dilations[2 - ndim :]}"
            )
    reach = _reach(kernel, dilations)
    H, W = (
        (n - 1) * s + r + e - sum(p)
        for n, s, r, e, p in zip((OH, OW), strides, reach, extra, padding, strict=True)
    )
    if H < 1 or W < 1:
        raise ValueError(
            f"{op}: the output would be empty: size {(H, W)[2 - ndim :]} from x {x} with "
            f"padding={padding[2 - ndim :]}"
        )
    slid = (ndim, N, inner * groups, H, W, *kernel, OH, OW, strides, padding, dilations)
    return _of_a_size(op, Convolution(*slid, F, groups))


def windows(
    op: str, ndim: int, x: Shape, kernel_size: Any, stride: Any, padding: Any, dilation: Any
) -> Windows:
    """The geometry of im2col and col2im, from the shape of the images."""
    N, C, H, W = _images(op, "x", x, ndim)
    kernel = per_axis(op, "kernel_size", kernel_size, ndim, 1)
    strides = per_axis(op, "stride", stride, ndim, 1)
    dilations = per_axis(op, "dilation", dilation, ndim, 1)
    padding = pads(op, padding, ndim)
    reach = _reach(kernel, dilations)
    OH = _count(H, padding[0], reach[0], strides[0])
    OW = _count(W, padding[1], reach[1], strides[1])
    if OH < 1 or OW < 1:
        _no_window(op, ndim, x, reach, padding)
    return _of_a_size(op, Windows(ndim, N, C, H, W, *kernel, OH, OW, strides, padding, dilations))


def _no_window(op: str, ndim: int, x: Shape, reach: Pair, padding: Pads) -> None:
    raise ValueError(
        f"{op}: a window of {reach[2 - ndim :]} elements does not fit x {x} with "
        f"padding={padding[2 - ndim :]}: the output would be empty"
    )


def pooling(
    op: str,
    ndim: int,
    x: Shape,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: Any,
    count_include_pad: Any = True,
    divisor_override: Any = None,
) -> Pooling:
    """The geometry of pooling; with `ceil_mode` the last window may hang over the far edge.

    Padding given as one number per axis is at most half of kernel_size, which is PyTorch's rule.
    Padding given in pairs, which PyTorch does not have, is less than what the window covers.
    """
    ceil = flag(op, "ceil_mode", ceil_mode)
    include = flag(op, "count_include_pad", count_include_pad)
    divisor = 0 if divisor_override is None else whole(op, "divisor_override", divisor_override, 1)
    N, C, H, W = _images(op, "x", x, ndim)
    kernel = per_axis(op, "kernel_size", kernel_size, ndim, 1)
    strides = kernel if stride is None else per_axis(op, "stride", stride, ndim, 1)
    dilations = per_axis(op, "dilation", dilation, ndim, 1)
    pairs = isinstance(padding, Sequence) and any(isinstance(p, Sequence) for p in padding)
    padding = pads(op, padding, ndim)
    reach = _reach(kernel, dilations)
    for r, k, p in zip(reach, kernel, padding, strict=True):
        if max(p) > (r - 1 if pairs else k // 2):
            limit = "less than a window covers" if pairs else "at most half of kernel_size"
            raise ValueError(
                f"{op}: padding must be {limit}, not {padding[2 - ndim :]} with kernel_size "
                f"{kernel[2 - ndim :]}"
            )
    OH, OW = (
        _pool_count(n, p, r, s, ceil)
        for n, p, r, s in zip((H, W), padding, reach, strides, strict=True)
    )
    if OH < 1 or OW < 1:
        _no_window(op, ndim, x, reach, padding)
    slid = (ndim, N, C, H, W, *kernel, OH, OW, strides, padding, dilations)
    return _of_a_size(op, Pooling(*slid, ceil, include, divisor))


def _pool_count(size: int, pad: Pair, reach: int, stride: int, ceil_mode: bool) -> int:
    if not ceil_mode:
        return _count(size, pad, reach, stride)
    count = -((size + pad[0] + pad[1] - reach) // -stride) + 1
    # A window that would start in the far padding is left out.
    return count - 1 if (count - 1) * stride >= size + pad[0] else count


def scattered(op: str, ndim: int, dy: Shape, x: Any) -> Windows:
    """The geometry of max pooling's gradient: of the windows only their number is known."""
    x = input_shape(op, x, ndim)
    N, C, OH, OW = _images(op, "dy", dy, ndim)
    if x[:2] != dy[:2]:
        raise ValueError(f"{op}: dy {dy} and input_shape {x} differ in N or C")
    _, _, H, W = _lift(x, ndim)
    return _of_a_size(op, Windows(ndim, N, C, H, W, 1, 1, OH, OW, (1, 1), ((0, 0), (0, 0)), (1, 1)))


def input_shape(op: str, x: Any, ndim: int) -> Shape:
    """A shape that the user gives in words: N may be 0, nothing else."""
    if not isinstance(x, Sequence) or isinstance(x, str):
        raise TypeError(f"{op}: input_shape must be a tuple of integers, not {x!r}")
    shape = tuple(whole(op, "input_shape", n, 0) for n in x)
    _images(op, "input_shape", shape, ndim)
    return shape


def resampled(op: str, ndim: int, x: Shape, factor: Any, enlarge: bool) -> Windows:
    """Dilation or subsampling by `factor`, as windows of one tap: y's pixels are the OH x OW."""
    N, C, H, W = _images(op, "x", x, ndim)
    factors = per_axis(op, "factor", factor, ndim, 1)
    if enlarge:
        OH, OW = (H - 1) * factors[0] + 1, (W - 1) * factors[1] + 1
    else:
        OH, OW = (H - 1) // factors[0] + 1, (W - 1) // factors[1] + 1
    return _of_a_size(
        op, Windows(ndim, N, C, H, W, 1, 1, OH, OW, factors, ((0, 0), (0, 0)), (1, 1))
    )
