"""The table of cases: every shape, stride, padding, dilation, group and option that tests run over.

A `Case` is one call of one public operation. Its arrays are drawn from its own name, so they are
the same in every run and in every test. The cases of a backward pass are those of the forward
pass: the shape of ``dy`` is that of what `cnnfast.naive` gives.

`CASES` holds all of them by operation.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from cnnfast import naive

Shape = tuple[int, ...]
Options = dict[str, Any]
Draw = Callable[[np.random.Generator, Shape], np.ndarray]

FLOATS = (np.float32, np.float64)

# Just under, at and over the lengths of vectors and their multiples.
WIDTHS = (7, 8, 9, 15, 16, 17, 31, 33)

# Just under, at and over one, two and many tiles of Winograd's method, which are 2 or 4 wide.
TILES = ((1, 5), (2, 2), (3, 4), (4, 4), (5, 3), (6, 9), (8, 5), (9, 8), (13, 35))


def normal(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    return rng.standard_normal(shape)


def ties(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Few different values, so that most windows hold their maximum more than once."""
    return rng.integers(-1, 2, shape).astype(float)


def wide(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Values whose exponentials overflow float32 and drown each other."""
    return 30 * rng.standard_normal(shape)


def special(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Values of which every fifth is NaN or infinite."""
    choice = rng.integers(0, 20, shape)
    x = rng.standard_normal(shape)
    for k, value in enumerate((np.nan, -np.inf, np.inf, -np.inf)):
        x[choice == k] = value
    return x


def lowest(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    return np.full(shape, -np.inf)


@dataclass(frozen=True, eq=False)
class Case:
    """One call: the shapes of the arrays that an operation takes, and its other arguments.

    Attributes
    ----------
    op, name : str
        The public operation, and what is special about the case.
    shapes : mapping of str to shape
        Of the arrays, by parameter.
    options : mapping of str to object
        Every other argument, by parameter.
    draw : function
        Where the elements of `x` come from.
    forward : Case, optional
        Of a backward case, the one that it belongs to.
    """

    op: str
    name: str
    shapes: Mapping[str, Shape]
    options: Mapping[str, Any] = field(default_factory=dict)
    draw: Draw = normal
    forward: Case | None = None

    def __str__(self) -> str:
        return f"{self.op}: {self.name}"

    def arguments(self, dtype: Any = np.float64) -> dict[str, Any]:
        """Newly made arguments, equal every time."""
        floats = {
            name: np.array(a, dtype if a.dtype == np.float64 else a.dtype)
            for name, a in self._drawn()
        }
        options = {
            name: value() if isinstance(value, Fresh) else value
            for name, value in self.options.items()
        }
        return {**floats, **options}

    def _drawn(self) -> Iterator[tuple[str, np.ndarray]]:
        rng = np.random.default_rng(zlib.crc32(str(self).encode()))
        for name, shape in self.shapes.items():
            if name == "labels":
                yield name, rng.integers(0, self.shapes["scores"][1], shape)
            elif name == "mask":
                yield name, rng.random(shape) < 0.5
            elif name in ("running_var", "rstd"):
                yield name, rng.uniform(0.5, 2, shape)
            else:
                yield name, (self.draw if name in ("x", "scores") else normal)(rng, shape)
        if self.forward is not None:
            results = _naive(self.forward)
            gradient = normal(rng, np.shape(results[0]))
            yield ("cols" if self.op == "col2im" else "dy"), gradient
            if self.op.startswith("max_pool"):
                yield "indices", results[1]
            elif "softmax" in self.op:
                yield "y", results[0]


class Fresh:
    """An argument that a call uses up, made anew for each: a random generator."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def __call__(self) -> Any:
        return self._make()


@cache
def _naive(case: Case) -> tuple[Any, ...]:
    with np.errstate(all="ignore"):
        result = getattr(naive, case.op)(**case.arguments())
    return result if isinstance(result, tuple) else (result,)


# Convolution: name, x, w, options. A bias is added unless the options say otherwise.

_CONV2D: list[tuple[str, Shape, Shape, Options]] = [
    ("square", (2, 3, 6, 6), (4, 3, 3, 3), {}),
    ("course", (2, 3, 15, 15), (3, 3, 3, 3), {"stride": 2, "padding": 1}),
    ("rectangles", (2, 2, 5, 9), (3, 2, 2, 4), {}),
    ("tall image", (1, 2, 11, 4), (2, 2, 3, 2), {"padding": (1, 0)}),
    ("wide kernel", (1, 2, 4, 11), (2, 2, 1, 5), {"padding": (0, 2)}),
    ("tall kernel", (1, 2, 11, 4), (2, 2, 5, 1), {"padding": (2, 0)}),
    ("one tap", (2, 3, 4, 5), (4, 3, 1, 1), {}),
    ("one tap, stride", (2, 3, 5, 6), (2, 3, 1, 1), {"stride": (2, 3)}),
    ("one tap, stride, leftovers", (3, 5, 12, 17), (19, 5, 1, 1), {"stride": (2, 3)}),
    ("one tap, one column", (2, 3, 9, 1), (7, 3, 1, 1), {"stride": (1, 2)}),
    ("one tap, several blocks", (2, 1, 70, 67), (8, 1, 1, 1), {"stride": (1, 2)}),
    ("one tap, stride, padding", (1, 3, 5, 6), (4, 3, 1, 1), {"stride": 2, "padding": (0, 1)}),
    ("one tap, padding behind", (1, 3, 5, 6), (9, 3, 1, 1), {"padding": ((0, 0), (0, 1))}),
    (
        "one tap, stride, padding behind",
        (2, 3, 5, 7),
        (9, 3, 1, 1),
        {"stride": 2, "padding": ((0, 3), (0, 2))},
    ),
    (
        "one tap, as much padding as the stride leaves out",
        (2, 3, 4, 1),
        (9, 3, 1, 1),
        {"stride": (2, 4), "padding": ((0, 3), (0, 2))},
    ),
    (
        "one tap, stride, groups",
        (2, 6, 7, 9),
        (8, 3, 1, 1),
        {"stride": (3, 2), "groups": 2},
    ),
    ("one tap, many channels", (2, 99, 3, 5), (71, 99, 1, 1), {}),
    ("one tap, many channels, stride", (2, 99, 5, 7), (97, 99, 1, 1), {"stride": 2}),
    ("one tap, many channels, groups", (1, 198, 3, 4), (142, 99, 1, 1), {"groups": 2}),
    ("one tap, channels in pieces", (3, 1000, 5, 6), (65, 1000, 1, 1), {}),
    ("one tap, many channels and pixels", (5, 67, 7, 8), (97, 67, 1, 1), {}),
    ("one pixel", (1, 1, 1, 1), (1, 1, 1, 1), {}),
    ("one pixel, padding", (1, 2, 1, 1), (2, 2, 3, 3), {"padding": 1}),
    ("one window", (2, 2, 3, 5), (3, 2, 3, 5), {}),
    ("leftovers", (1, 2, 8, 9), (2, 2, 3, 3), {"stride": (2, 4)}),
    ("stride over kernel", (1, 2, 9, 10), (2, 2, 2, 2), {"stride": (3, 4)}),
    ("stride over image", (1, 2, 5, 4), (2, 2, 2, 2), {"stride": (7, 9)}),
    ("padding over kernel", (1, 1, 3, 4), (2, 1, 2, 2), {"padding": 3}),
    ("only padding left", (1, 1, 2, 2), (1, 1, 2, 2), {"padding": (3, 0), "stride": (4, 1)}),
    ("pairs", (1, 2, 5, 6), (2, 2, 3, 3), {"padding": ((1, 0), (0, 2))}),
    (
        "pairs, stride, dilation",
        (2, 2, 6, 7),
        (2, 2, 2, 3),
        {"padding": ((0, 3), (2, 1)), "stride": (2, 1), "dilation": (1, 2)},
    ),
    ("valid", (1, 2, 5, 6), (2, 2, 3, 2), {"padding": "valid", "stride": 2}),
    ("same", (1, 2, 5, 6), (2, 2, 3, 5), {"padding": "same"}),
    ("same, even kernel", (1, 2, 5, 6), (2, 2, 2, 4), {"padding": "same"}),
    ("same, dilation", (1, 2, 5, 6), (2, 2, 2, 3), {"padding": "same", "dilation": (3, 2)}),
    ("dilation", (1, 2, 9, 8), (2, 2, 3, 3), {"dilation": 2}),
    (
        "dilation, stride, padding",
        (1, 2, 9, 10),
        (2, 2, 3, 2),
        {"dilation": (2, 3), "stride": (2, 1), "padding": (1, 2)},
    ),
    ("dilation over image", (1, 1, 3, 3), (1, 1, 2, 2), {"dilation": 4, "padding": 2}),
    ("groups", (2, 4, 5, 6), (6, 2, 3, 3), {"groups": 2, "padding": 1}),
    (
        "groups, stride, dilation",
        (1, 6, 7, 8),
        (3, 2, 2, 3),
        {"groups": 3, "stride": (1, 2), "dilation": (2, 1), "padding": (0, 1)},
    ),
    ("depthwise", (2, 5, 6, 7), (5, 1, 3, 3), {"groups": 5, "padding": 1}),
    ("depthwise, two each", (1, 3, 6, 5), (6, 1, 3, 2), {"groups": 3, "stride": 2}),
    ("no bias", (2, 2, 4, 5), (3, 2, 2, 2), {"b": None, "padding": 1}),
    ("batch 0", (0, 2, 5, 4), (3, 2, 3, 3), {"padding": 1}),
    ("batch 0, groups", (0, 4, 5, 4), (2, 2, 3, 3), {"groups": 2}),
    ("list arguments", (1, 2, 5, 6), (2, 2, 2, 3), {"stride": [2, 1], "padding": [1, 0]}),
    # Columns of more than a megabyte, so that the batch is taken in several pieces.
    ("several blocks", (3, 16, 31, 31), (1, 16, 3, 3), {"padding": 1, "stride": (1, 2)}),
    *((f"tiles {m} x {n}", (2, 2, m, n), (3, 2, 3, 3), {"padding": 1}) for m, n in TILES),
    ("tiles without padding", (1, 3, 10, 7), (2, 3, 3, 3), {}),
    ("tiles in much padding", (1, 2, 3, 6), (2, 2, 3, 3), {"padding": ((3, 4), (5, 1))}),
    ("tiles, groups", (2, 6, 7, 6), (9, 2, 3, 3), {"padding": 1, "groups": 3}),
    ("tiles, many channels", (1, 259, 3, 5), (2, 259, 3, 3), {"padding": 1}),
    ("tiles, many filters", (1, 2, 5, 5), (67, 2, 3, 3), {"padding": 1}),
    ("tiles of many images", (70, 1, 5, 6), (1, 1, 3, 3), {"padding": 1, "b": None}),
    # Windows of every number of taps that tiles are made for, and of those that are cut in pieces.
    *(
        (f"tiles for {m} x {n} taps", (2, 3, 13, 11), (5, 3, m, n), {"padding": (m // 2, n // 2)})
        for m, n in ((2, 2), (4, 4), (5, 5), (7, 7), (3, 5), (6, 2), (1, 7), (9, 1), (11, 3))
    ),
    ("tiles for 5 x 5 taps, one output", (1, 2, 5, 5), (3, 2, 5, 5), {}),
    ("tiles for 7 x 7 taps, many channels", (1, 35, 4, 6), (19, 35, 7, 7), {"padding": 3}),
    ("tiles for 7 x 7 taps, channels in chunks", (1, 67, 3, 2), (2, 67, 7, 7), {"padding": 3}),
    ("tiles, dilation", (2, 3, 9, 70), (4, 3, 3, 3), {"padding": 2, "dilation": 2}),
    ("tiles, dilation over image", (1, 2, 3, 4), (2, 2, 3, 3), {"padding": 5, "dilation": 5}),
    (
        "tiles, dilation of columns, pieces",
        (1, 18, 6, 23),
        (3, 18, 2, 7),
        {"padding": (1, 9), "dilation": (1, 3)},
    ),
    ("tiles, stride", (2, 3, 17, 19), (5, 3, 5, 5), {"padding": 2, "stride": 2}),
    ("tiles, stride, pieces", (1, 2, 24, 30), (3, 2, 11, 9), {"padding": 3, "stride": (4, 1)}),
    (
        "tiles, stride, groups",
        (2, 38, 9, 8),
        (6, 19, 4, 3),
        {"padding": ((1, 2), (0, 1)), "stride": (3, 2), "groups": 2},
    ),
    ("depthwise, wide", (1, 3, 9, 37), (3, 1, 3, 3), {"padding": 1, "groups": 3}),
    (
        "depthwise, stride",
        (2, 3, 9, 19),
        (3, 1, 3, 3),
        {"padding": 1, "groups": 3, "stride": 2},
    ),
    (
        "depthwise, dilation",
        (1, 2, 11, 12),
        (4, 1, 5, 3),
        {"padding": (2, 3), "groups": 2, "dilation": (1, 3)},
    ),
    ("depthwise, 7 x 7", (1, 2, 8, 20), (2, 1, 7, 7), {"padding": 3, "groups": 2}),
    *((f"width {n}", (1, 2, 2, n), (2, 2, 2, 3), {"padding": (0, 1)}) for n in WIDTHS),
    *((f"height {n}", (1, 1, n, 2), (2, 1, 3, 2), {"padding": (1, 0)}) for n in WIDTHS),
    *((f"channels {n}", (2, n, 2, 3), (2, n, 2, 2), {}) for n in WIDTHS),
    *((f"filters {n}", (1, 2, 2, 3), (n, 2, 2, 2), {}) for n in WIDTHS),
]

_CONV1D: list[tuple[str, Shape, Shape, Options]] = [
    ("plain", (2, 3, 8), (4, 3, 3), {}),
    ("course", (2, 3, 31), (4, 3, 5), {"stride": 2}),
    ("one element", (1, 1, 1), (1, 1, 1), {}),
    ("one element, padding", (1, 2, 1), (2, 2, 3), {"padding": 1}),
    ("leftovers", (1, 2, 9), (2, 2, 3), {"stride": 4}),
    ("stride over kernel", (1, 2, 10), (2, 2, 2), {"stride": (3,)}),
    ("padding over kernel", (1, 1, 4), (2, 1, 2), {"padding": (3,)}),
    ("pair", (1, 2, 6), (2, 2, 3), {"padding": ((0, 2),), "stride": 2}),
    ("valid", (1, 2, 6), (2, 2, 3), {"padding": "valid", "stride": 2}),
    ("same", (1, 2, 6), (2, 2, 3), {"padding": "same"}),
    ("same, even kernel, dilation", (1, 2, 6), (2, 2, 4), {"padding": "same", "dilation": 3}),
    ("dilation", (1, 2, 12), (2, 2, 3), {"dilation": 4, "stride": 2, "padding": 1}),
    ("groups", (2, 4, 7), (6, 2, 3), {"groups": 2, "padding": 1}),
    ("depthwise", (2, 5, 7), (5, 1, 3), {"groups": 5}),
    ("no bias", (2, 2, 6), (3, 2, 2), {"b": None}),
    ("batch 0", (0, 2, 5), (3, 2, 3), {}),
    ("tiles in segments", (2, 17, 70), (18, 17, 3), {"padding": 1}),
    ("tiles in pieces", (2, 3, 41), (4, 3, 9), {"padding": 4}),
    *((f"length {n}", (1, 2, n), (2, 2, 3), {"padding": 1}) for n in WIDTHS),
]

_CONV_TRANSPOSE2D: list[tuple[str, Shape, Shape, Options]] = [
    ("square", (2, 3, 4, 4), (3, 2, 3, 3), {}),
    ("rectangles", (2, 2, 3, 5), (2, 3, 2, 4), {}),
    ("stride", (2, 3, 4, 5), (3, 2, 3, 3), {"stride": 2, "padding": 1}),
    ("stride over kernel", (1, 2, 3, 4), (2, 2, 2, 2), {"stride": (3, 4)}),
    ("output padding", (1, 2, 3, 4), (2, 3, 3, 3), {"stride": (2, 3), "output_padding": (1, 2)}),
    (
        "output padding under dilation",
        (1, 2, 3, 4),
        (2, 2, 2, 3),
        {"dilation": (2, 3), "output_padding": (1, 2)},
    ),
    ("one pixel", (1, 1, 1, 1), (1, 1, 1, 1), {}),
    ("one pixel, large kernel", (1, 2, 1, 1), (2, 3, 4, 5), {"padding": (1, 2)}),
    ("one tap", (2, 3, 4, 5), (3, 2, 1, 1), {"stride": 2}),
    ("pairs", (1, 2, 4, 5), (2, 2, 3, 3), {"padding": ((2, 0), (0, 1)), "stride": (1, 2)}),
    ("padding over kernel", (1, 2, 6, 7), (2, 2, 2, 2), {"padding": 2}),
    (
        "dilation, stride, padding",
        (1, 2, 4, 3),
        (2, 2, 3, 2),
        {"dilation": (2, 3), "stride": (2, 1), "padding": (1, 2)},
    ),
    ("groups", (2, 4, 3, 4), (4, 3, 3, 2), {"groups": 2, "stride": 2}),
    ("depthwise", (1, 5, 4, 3), (5, 1, 3, 3), {"groups": 5, "padding": 1}),
    ("depthwise, two each", (1, 3, 3, 3), (3, 2, 2, 3), {"groups": 3, "stride": (2, 1)}),
    *((f"tiles {m} x {n}", (2, 2, m, n), (2, 3, 3, 3), {"padding": 1}) for m, n in TILES[::2]),
    ("tiles in much padding", (1, 2, 9, 10), (2, 2, 3, 3), {"padding": ((3, 1), (0, 4))}),
    ("tiles, groups", (1, 6, 7, 6), (6, 2, 3, 3), {"padding": 1, "groups": 3}),
    ("no bias", (1, 2, 3, 3), (2, 2, 2, 2), {"b": None}),
    ("batch 0", (0, 2, 4, 3), (2, 3, 3, 3), {"stride": 2}),
    *((f"width {n}", (1, 2, 2, n), (2, 2, 2, 3), {"padding": (0, 1)}) for n in WIDTHS[::2]),
    *((f"channels {n}", (1, n, 2, 2), (n, 2, 2, 2), {}) for n in WIDTHS[1::2]),
]

_CONV_TRANSPOSE1D: list[tuple[str, Shape, Shape, Options]] = [
    ("plain", (2, 3, 6), (3, 2, 3), {}),
    ("course", (2, 3, 9), (3, 4, 4), {"stride": 2}),
    ("stride over kernel", (1, 2, 5), (2, 2, 2), {"stride": 4, "output_padding": 3}),
    ("one element", (1, 1, 1), (1, 1, 1), {}),
    ("pair", (1, 2, 6), (2, 2, 3), {"padding": ((2, 0),)}),
    ("dilation", (1, 2, 5), (2, 2, 3), {"dilation": 3, "stride": 2, "padding": 1}),
    ("groups", (2, 4, 5), (4, 3, 3), {"groups": 2, "stride": 2, "output_padding": 1}),
    ("depthwise", (2, 5, 4), (5, 1, 3), {"groups": 5, "padding": 1}),
    ("no bias", (2, 2, 5), (2, 3, 2), {"b": None}),
    ("batch 0", (0, 2, 5), (2, 3, 3), {}),
    *((f"length {n}", (1, 2, n), (2, 2, 3), {"padding": 1}) for n in WIDTHS[::2]),
]

# Columns: name, x, options.

_COLUMNS: list[tuple[str, Shape, Options]] = [
    ("square", (2, 3, 6, 6), {"kernel_size": 3}),
    ("rectangles", (2, 2, 5, 7), {"kernel_size": (2, 4), "stride": (2, 1)}),
    ("wide", (1, 2, 3, 11), {"kernel_size": (1, 5), "padding": (0, 2)}),
    ("tall", (1, 2, 11, 3), {"kernel_size": (5, 1), "padding": (2, 0)}),
    ("one pixel", (1, 1, 1, 1), {"kernel_size": 1}),
    ("one pixel, padding", (1, 2, 1, 1), {"kernel_size": 3, "padding": 1}),
    ("stride over kernel", (1, 2, 9, 10), {"kernel_size": 2, "stride": (3, 4)}),
    ("padding over kernel", (1, 1, 3, 4), {"kernel_size": 2, "padding": 3}),
    ("pairs", (1, 2, 5, 6), {"kernel_size": 3, "padding": ((1, 0), (0, 2)), "stride": 2}),
    ("dilation", (1, 2, 9, 8), {"kernel_size": (3, 2), "dilation": (2, 3), "padding": (1, 2)}),
    ("batch 0", (0, 2, 5, 4), {"kernel_size": 3}),
    *((f"width {n}", (1, 2, 2, n), {"kernel_size": (2, 3), "padding": (0, 1)}) for n in WIDTHS),
]

# Pooling: name, x, options.

_WINDOWS2D: list[tuple[str, Shape, Options]] = [
    ("tiles", (2, 3, 6, 8), {"kernel_size": 2}),
    ("leftovers", (2, 2, 7, 8), {"kernel_size": (2, 3)}),
    ("leftovers, ceil", (2, 2, 7, 8), {"kernel_size": (2, 3), "ceil_mode": True}),
    ("overlap", (2, 2, 7, 6), {"kernel_size": 3, "stride": 2}),
    ("overlap, padding", (1, 2, 7, 6), {"kernel_size": 3, "stride": 2, "padding": 1}),
    ("stride 1", (1, 2, 5, 6), {"kernel_size": (2, 3), "stride": 1, "padding": (1, 1)}),
    ("stride over kernel", (1, 2, 9, 10), {"kernel_size": 2, "stride": (3, 4)}),
    ("wide", (1, 2, 3, 11), {"kernel_size": (1, 4), "stride": (1, 2), "padding": (0, 2)}),
    ("tall", (1, 2, 11, 3), {"kernel_size": (4, 1), "stride": (2, 1), "padding": (2, 0)}),
    ("pairs", (1, 2, 5, 6), {"kernel_size": 3, "stride": 2, "padding": ((2, 0), (0, 1))}),
    (
        "pairs, ceil",
        (1, 2, 5, 6),
        {"kernel_size": 3, "stride": 2, "padding": ((0, 2), (1, 2)), "ceil_mode": True},
    ),
    # The last window of rows would start in the padding and is dropped; that of columns stays.
    (
        "ceil drops",
        (1, 1, 3, 4),
        {"kernel_size": 2, "stride": (3, 2), "padding": 1, "ceil_mode": True},
    ),
    ("whole image", (2, 3, 4, 5), {"kernel_size": (4, 5)}),
    ("one tap", (1, 2, 4, 5), {"kernel_size": 1}),
    ("one tap, stride", (1, 2, 5, 5), {"kernel_size": 1, "stride": (2, 3), "ceil_mode": True}),
    ("one pixel", (1, 1, 1, 1), {"kernel_size": 1}),
    ("one pixel, padding", (1, 1, 1, 1), {"kernel_size": 2, "padding": 1}),
    ("batch 0", (0, 2, 4, 4), {"kernel_size": 2}),
    *((f"width {n}", (1, 2, 2, n), {"kernel_size": 2, "stride": 1}) for n in WIDTHS),
    *((f"width {n}, tiles", (1, 1, 4, n), {"kernel_size": 2, "ceil_mode": True}) for n in WIDTHS),
]

_MAX2D: list[tuple[str, Shape, Options]] = [
    ("dilation", (1, 2, 8, 9), {"kernel_size": 2, "stride": 1, "dilation": (3, 4)}),
    (
        "dilation, padding, ceil",
        (1, 2, 8, 9),
        {
            "kernel_size": (3, 2),
            "stride": (2, 3),
            "dilation": (2, 3),
            "padding": ((2, 2), (1, 1)),
            "ceil_mode": True,
        },
    ),
    (
        "windows of nothing",
        (1, 2, 1, 3),
        {"kernel_size": 2, "stride": 1, "dilation": (2, 1), "padding": (1, 0)},
    ),
]

_AVG2D: list[tuple[str, Shape, Options]] = [
    (
        "padding counts not",
        (1, 2, 5, 6),
        {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False},
    ),
    (
        "padding counts not, ceil",
        (1, 2, 6, 7),
        {
            "kernel_size": (3, 4),
            "stride": (2, 3),
            "padding": (1, 2),
            "ceil_mode": True,
            "count_include_pad": False,
        },
    ),
    (
        "padding counts, ceil",
        (1, 2, 6, 7),
        {"kernel_size": (3, 4), "stride": (2, 3), "padding": (1, 2), "ceil_mode": True},
    ),
    (
        "divisor",
        (1, 2, 5, 6),
        {"kernel_size": (2, 3), "stride": 2, "padding": 1, "divisor_override": 5},
    ),
    (
        "divisor, ceil",
        (1, 2, 5, 6),
        {
            "kernel_size": 2,
            "ceil_mode": True,
            "count_include_pad": False,
            "divisor_override": 3,
        },
    ),
]

_WINDOWS1D: list[tuple[str, Shape, Options]] = [
    ("tiles", (2, 3, 8), {"kernel_size": 2}),
    ("leftovers", (2, 2, 8), {"kernel_size": 3}),
    ("leftovers, ceil", (2, 2, 8), {"kernel_size": 3, "ceil_mode": True}),
    ("overlap", (2, 2, 9), {"kernel_size": (3,), "stride": (2,), "padding": (1,)}),
    ("stride over kernel", (1, 2, 10), {"kernel_size": 2, "stride": 4}),
    ("pair", (1, 2, 6), {"kernel_size": 3, "stride": 2, "padding": ((0, 2),)}),
    ("ceil drops", (1, 1, 3), {"kernel_size": 2, "stride": 3, "padding": 1, "ceil_mode": True}),
    ("one element", (1, 1, 1), {"kernel_size": 1}),
    ("batch 0", (0, 2, 4), {"kernel_size": 2}),
    *((f"length {n}", (1, 2, n), {"kernel_size": 3, "stride": 1}) for n in WIDTHS[::2]),
]

_MAX1D: list[tuple[str, Shape, Options]] = [
    ("dilation", (1, 2, 9), {"kernel_size": 3, "stride": 2, "dilation": 2, "padding": 1}),
    ("windows of nothing", (1, 2, 1), {"kernel_size": 2, "stride": 1, "dilation": 2, "padding": 1}),
]

_AVG1D: list[tuple[str, Shape, Options]] = [
    (
        "padding counts not, ceil",
        (1, 2, 7),
        {
            "kernel_size": 4,
            "stride": 3,
            "padding": 2,
            "ceil_mode": True,
            "count_include_pad": False,
        },
    ),
]

# Resampling: name, x, factor.

_RESAMPLE2D: list[tuple[str, Shape, Any]] = [
    ("both", (2, 3, 4, 5), 2),
    ("rows", (1, 2, 5, 4), (3, 1)),
    ("columns", (1, 2, 4, 5), (1, 3)),
    ("factor 1", (1, 2, 3, 4), 1),
    ("factor over image", (1, 2, 3, 4), (5, 7)),
    ("one pixel", (1, 1, 1, 1), 4),
    ("batch 0", (0, 2, 3, 4), 2),
    *((f"width {n}", (1, 2, 2, n), (2, 3)) for n in WIDTHS),
]

_RESAMPLE1D: list[tuple[str, Shape, Any]] = [
    ("two", (2, 3, 7), 2),
    ("three", (1, 2, 8), (3,)),
    ("factor 1", (1, 2, 4), 1),
    ("factor over signal", (1, 2, 4), 9),
    ("one element", (1, 1, 1), 3),
    ("batch 0", (0, 2, 4), 2),
    *((f"length {n}", (1, 2, n), 2) for n in WIDTHS[::2]),
]

# Normalisation: name, x, options; running arrays and an affine map unless the options say None.

_AFFINE: Options = {"weight": None, "bias": None}
_NORM: list[tuple[str, Shape, Options]] = [
    ("features", (5, 4), {}),
    ("signals", (3, 4, 5), {"momentum": 0.3}),
    ("images", (3, 4, 3, 5), {"eps": 1e-3}),
    ("no affine", (3, 4, 3, 5), _AFFINE),
    ("weight alone", (4, 3, 2), {"bias": None}),
    ("bias alone", (4, 3, 2), {"weight": None}),
    ("one channel", (2, 1, 3, 3), {}),
    ("two values", (2, 3), {"eps": 0.5}),
    ("one image", (1, 3, 2, 4), {"momentum": 1.0}),
    *((f"width {n}", (2, 2, 1, n), {}) for n in WIDTHS),
]

# Elements: name, x, options.

_ELEMENTS: list[tuple[str, Shape, Options]] = [
    ("vector", (7,), {}),
    ("image", (2, 3, 4, 5), {}),
    ("number", (), {}),
    ("none", (0, 3), {}),
    *((f"length {n}", (n,), {}) for n in WIDTHS),
]

_ALONG: list[tuple[str, Shape, Options]] = [
    ("rows", (4, 7), {}),
    ("columns", (4, 7), {"axis": 0}),
    ("channels", (2, 3, 4, 5), {"axis": 1}),
    ("one class", (3, 1), {}),
    ("vector", (9,), {"axis": -1}),
    ("batch 0", (0, 3), {}),
]

_LINEAR: list[tuple[str, Shape, Shape, Options]] = [
    ("rows", (4, 5), (3, 5), {}),
    ("one vector", (5,), (3, 5), {}),
    ("three axes", (2, 3, 4), (5, 4), {}),
    ("no bias", (4, 5), (3, 5), {"b": None}),
    ("one by one", (1, 1), (1, 1), {}),
    ("batch 0", (0, 4), (3, 4), {}),
    *((f"features {n}", (2, n), (3, n), {}) for n in WIDTHS),
]

_SCORES: list[tuple[str, Shape, Options]] = [
    ("plain", (5, 4), {}),
    ("one example", (1, 7), {}),
    ("one class", (3, 1), {}),
    ("many", (33, 10), {}),
]


# The convolutions that also see NaN and infinity.
_SPECIAL = frozenset(
    {"rectangles", "pairs", "pair", "groups", "dilation", "stride over kernel", "depthwise", "same"}
)


def _filtered(
    op: str, rows: Iterable[tuple[str, Shape, Shape, Options]], transposed: bool
) -> Iterator[Case]:
    for name, x, w, given in rows:
        options = dict(given)
        out = w[1] * options.get("groups", 1) if transposed else w[0]
        shapes = {"x": x, "w": w}
        if "b" not in options:
            shapes["b"] = (out,)
        rest = {k: v for k, v in options.items() if k != "b"}
        for suffix, draw in {"": normal, ", special": special}.items():
            if draw is normal or name in _SPECIAL:
                forward = Case(op, name + suffix, shapes, options, draw)
                yield forward
                arrays = {"x": x, "w": w}
                yield Case(f"{op}_backward", name + suffix, arrays, rest, draw, forward)


def _pooled(op: str, rows: Iterable[tuple[str, Shape, Options]]) -> Iterator[Case]:
    largest = op.startswith("max")
    draws: dict[str, Draw] = {"": normal, ", special": special}
    if largest:
        draws |= {", ties": ties, ", lowest": lowest}
    for name, x, options in rows:
        for suffix, draw in draws.items() if "width" not in name else [("", normal)]:
            if largest:
                yield Case(op, f"{name}{suffix}, values alone", {"x": x}, options, draw)
                forward = Case(
                    op, name + suffix, {"x": x}, {**options, "return_indices": True}, draw
                )
                rest: Options = {"input_shape": x}
            else:
                forward = Case(op, name + suffix, {"x": x}, options, draw)
                rest = {"input_shape": x, **options}
            yield forward
            yield Case(f"{op}_backward", name + suffix, {}, rest, forward=forward)


def _columned() -> Iterator[Case]:
    for name, x, options in _COLUMNS:
        forward = Case("im2col", name, {"x": x}, options)
        yield forward
        yield Case("col2im", name, {}, {"output_size": x[2:], **options}, forward=forward)


def _resampled(op: str, rows: Iterable[tuple[str, Shape, Any]]) -> Iterator[Case]:
    for name, x, factor in rows:
        forward = Case(op, name, {"x": x}, {"factor": factor})
        yield forward
        rest = {"factor": factor, "input_shape": x}
        yield Case(f"{op}_backward", name, {}, rest, forward=forward)


def _normalised() -> Iterator[Case]:
    for name, x, given in _NORM:
        per_channel = (x[1],)
        running = {"running_mean": per_channel, "running_var": per_channel}
        affine = {k: per_channel for k in ("weight", "bias") if k not in given}
        stats = {**given, "training": True, "return_stats": True}
        shapes = {"x": x, **running, **affine}
        yield Case("batch_norm", f"{name}, running", shapes, given)
        yield Case("batch_norm", f"{name}, training", shapes, stats)
        without = {**stats, "running_mean": None, "running_var": None}
        yield Case("batch_norm", f"{name}, batch alone", {"x": x, **affine}, without)
        yield Case("batch_norm", f"{name}, running, special", shapes, given, special)
        weight = {"weight": per_channel} if "weight" not in given else {}
        gradient = {"dy": x, "x": x, "mean": per_channel, "rstd": per_channel, **weight}
        yield Case("batch_norm_backward", name, gradient)
    running = {"running_mean": (3,), "running_var": (3,)}
    for training in (False, True):
        options = {"return_stats": True, "training": training}
        name = "batch 0, training" if training else "batch 0"
        yield Case("batch_norm", name, {"x": (0, 3, 4), **running}, options)
    gradient = {"dy": (0, 3, 4), "x": (0, 3, 4), "mean": (3,), "rstd": (3,)}
    yield Case("batch_norm_backward", "batch 0", gradient)


def _elementwise() -> Iterator[Case]:
    draws = {"": normal, ", ties": ties, ", wide": wide, ", special": special}
    for op in ("relu", "leaky_relu", "sigmoid", "tanh"):
        for name, x, given in _ELEMENTS:
            options = {**given, "negative_slope": 0.2} if op == "leaky_relu" else given
            for suffix, draw in draws.items() if name in ("vector", "image") else [("", normal)]:
                yield Case(op, name + suffix, {"x": x}, options, draw)
                yield Case(f"{op}_backward", name + suffix, {"dy": x, "x": x}, options, draw)
    for op in ("softmax", "log_softmax"):
        for name, x, options in _ALONG:
            for suffix, draw in draws.items():
                forward = Case(op, name + suffix, {"x": x}, options, draw)
                yield forward
                yield Case(f"{op}_backward", name + suffix, {}, options, forward=forward)
    for name, x, _ in _ELEMENTS:
        for p in (0.0, 0.3, 1.0) if name == "image" else (0.5,):
            options = {"p": p, "rng": Fresh(lambda: np.random.default_rng(7)), "return_mask": True}
            yield Case("dropout", f"{name}, p={p}", {"x": x}, options)
            yield Case("dropout_backward", f"{name}, p={p}", {"dy": x, "mask": x}, {"p": p})
    still = {"training": False, "rng": Fresh(lambda: np.random.default_rng(7))}
    yield Case("dropout", "not training", {"x": (2, 3, 4)}, still)


def _linear() -> Iterator[Case]:
    for name, x, w, options in _LINEAR:
        shapes = {"x": x, "w": w} if "b" in options else {"x": x, "w": w, "b": w[:1]}
        forward = Case("linear", name, shapes, options)
        yield forward
        yield Case("linear_backward", name, {"x": x, "w": w}, forward=forward)


def _losses() -> Iterator[Case]:
    for name, scores, options in _SCORES:
        shapes = {"scores": scores, "labels": scores[:1]}
        yield Case("cross_entropy", name, shapes, options)
        yield Case("cross_entropy", f"{name}, smooth", shapes, {"label_smoothing": 0.1})
        yield Case("multi_margin_loss", name, shapes, options)
        yield Case("multi_margin_loss", f"{name}, margin", shapes, {"margin": 0.3})
        yield Case("mse_loss", name, {"pred": scores, "target": scores})
    yield Case("mse_loss", "number", {"pred": (), "target": ()})


def _needs() -> Iterator[Case]:
    """Gradients of which only some are wanted."""
    for op, x, w, of in (
        ("conv1d", (2, 3, 6), (2, 3, 3), ""),
        ("conv2d", (1, 3, 4, 5), (2, 3, 2, 3), ""),
        ("conv2d", (1, 3, 7, 6), (2, 3, 3, 3), " of tiles"),
        ("conv_transpose1d", (2, 3, 4), (3, 2, 3), ""),
        ("conv_transpose2d", (1, 3, 3, 4), (3, 2, 2, 3), ""),
        ("conv_transpose2d", (1, 3, 5, 4), (3, 2, 3, 3), " of tiles"),
        ("linear", (2, 3), (4, 3), ""),
    ):
        forward = Case(op, f"needs{of}", {"x": x, "w": w})
        for needs in ("", "x", "w", "b", "wx", "bb"):
            name = f"needs {needs!r}{of}"
            shapes = {"x": x, "w": w}
            yield Case(f"{op}_backward", name, shapes, {"needs": needs}, forward=forward)


def _all() -> Iterator[Case]:
    yield from _filtered("conv1d", _CONV1D, False)
    yield from _filtered("conv2d", _CONV2D, False)
    yield from _filtered("conv_transpose1d", _CONV_TRANSPOSE1D, True)
    yield from _filtered("conv_transpose2d", _CONV_TRANSPOSE2D, True)
    yield from _needs()
    yield from _columned()
    yield from _pooled("max_pool1d", _WINDOWS1D + _MAX1D)
    yield from _pooled("max_pool2d", _WINDOWS2D + _MAX2D)
    yield from _pooled("avg_pool1d", _WINDOWS1D + _AVG1D)
    yield from _pooled("avg_pool2d", _WINDOWS2D + _AVG2D)
    for op in ("dilate", "subsample"):
        yield from _resampled(f"{op}1d", _RESAMPLE1D)
        yield from _resampled(f"{op}2d", _RESAMPLE2D)
    yield from _normalised()
    yield from _elementwise()
    yield from _linear()
    yield from _losses()


CASES: dict[str, list[Case]] = {}
for _case in _all():
    CASES.setdefault(_case.op, []).append(_case)


def find(op: str, name: str) -> Case:
    """The case of an operation that has this name."""
    (case,) = (case for case in CASES[op] if case.name == name)
    return case
