"""How long a convolution takes by each of the engine's methods: what `auto` chooses by.

An estimate is a sum of quantities, each times what one of it takes: vectors multiplied and added,
vectors read and written, rows begun. The times are those of one thread at AVX2, in nanoseconds,
fitted to 800 random geometries and those of well-known networks: to what is lost by the choices,
and, with less weight, to the times themselves (``docs/performance.md``). Only their order counts,
which other processors and more threads change little; ``benchmarks/regret.py`` says how good the
choices are on this one.
"""

from __future__ import annotations

from cnnfast.geometry import Convolution
from cnnfast.methods.base import Call
from cnnfast.methods.winograd import axes

# Nanoseconds, for each method and product, of the quantities below.
_TIMES = {
    ("gemm", "forward"): (0.21, 1.1, 0.041, 0.0027, 5.1, 2.0, 2.3, 5.1, 0.46, 50.0),
    ("gemm", "backward_input"): (0.2, 0.52, 0.69, 0.0, 5.2, 0.0, 10.0, 9.5, 2.9, 21.0),
    ("gemm", "backward_weights"): (0.2, 0.34, 0.59, 0.003, 1.2, 2.1, 5.6, 7.1, 0.0, 13.0),
    ("winograd", "forward"): (0.19, 0.39, 5.2, 2.9, 3.6, 20.0, 6.3, 3.7),
    ("winograd", "backward_input"): (0.11, 0.16, 3.4, 3.0, 5.4, 20.0, 7.2, 9.3),
    ("winograd", "backward_weights"): (0.29, 0.21, 6.7, 6.0, 9.2, 20.0, 6.2, 150.0),
    ("direct", "forward"): (0.14, 0.47, 0.25, 1.5, 1.7, 0.62, 3.6, 6.2, 2.1, 1.8, 0.19),
    ("direct", "backward_input"): (0.14, 0.49, 0.2, 1.6, 5.3, 15.0, 4.8, 0.55, 0.38, 3.8, 9.0),
    ("direct", "backward_weights"): (0.43, 0.86, 0.0, 1.2, 0.12, 72.0, 8.3, 13.0, 4.9, 0.95, 0.32),
    ("depthwise", "forward"): (0.7, 0.29, 0.99, 0.0034, 0.92, 0.0, 4.6, 0.0, 6.3, 1.2, 1.9),
    ("depthwise", "backward_input"): (0.62, 0.26, 1.3, 0.0, 2.5, 5.0, 11.0, 0.0, 12.0, 0.39, 3.2),
    ("depthwise", "backward_weights"): (2.5, 0.3, 0.95, 0.0, 0.081, 0.25, 14.0, 2.8, 9.7, 1.3, 1.9),
}
_CALL, _IMAGE = 1000, 100  # units of what a call, and each image of each group, takes by itself


def cost(method: str, product: str, call: Call) -> float:
    """Nanoseconds that a method would take.

    `product` is "forward", "backward_input" or "backward_weights".
    """
    g = call.geometry
    assert isinstance(g, Convolution)
    lanes = 8 if call.dtype == "float32" else 4
    quantities = {"gemm": _gemm, "winograd": _winograd, "direct": _direct, "depthwise": _depthwise}
    found = quantities[method](product, g, lanes, call.prepared)
    return sum(n * time for n, time in zip(found, _TIMES[method, product], strict=True))


Quantities = tuple[float, ...]


def _gemm(product: str, g: Convolution, lanes: int, prepared: bool) -> Quantities:
    """Vectors lie along the filters or along a row, whichever wastes less of them.

    Each has a share in loading its pixels, and in loading its weights.
    """
    products, x, y, w = _vectors(g, lanes)
    rows, width, made, used = g.OH, g.OW, g.F, g.C
    if product == "backward_input":
        rows, width, made, used = g.OH, -(-g.W // g.stride[1]), g.C, g.F
    made, used = made // g.groups, used // g.groups
    waste = _waste(made, lanes)
    if product != "backward_weights":
        waste = min(waste, _waste(width, lanes))
    images = g.N * g.groups
    return (
        products,
        products * waste,
        products / made,
        products / (used * g.KH * g.KW),
        x,
        y,
        0.0 if prepared else w,
        _CALL,
        images * _IMAGE,
        images * rows,
    )


def _winograd(product: str, g: Convolution, lanes: int, prepared: bool) -> Quantities:
    """Products in the transformed domain, and the transforms of images, results and weights.

    Results are written, or, where windows are in pieces, gathered tap by tap. Weights that are
    prepared are still read, and are more than the taps that other methods read. A call counts for
    more than it takes, a few microseconds: between two that take no longer, the one that rounds
    less is better.
    """
    rows, columns, made = g.OH, g.OW, g.F // g.groups
    if product == "backward_input":
        rows, columns, made = g.H, g.W, g.C // g.groups
    down, along = axes(g)
    tiles = g.N * down.tiles(rows) * along.tiles(columns)
    pieces, planes = down.pieces * along.pieces, down.points * along.points / lanes
    of_x, of_y = (1, pieces) if product == "backward_input" else (pieces, 1)
    weights = g.F * (g.C // g.groups) * pieces * planes
    products = tiles * weights
    results, taps = g.N * made * g.groups * rows * columns / lanes, _vectors(g, lanes)[3]
    if product == "backward_weights":
        results = taps if pieces > 1 else 0.0
    return (
        products,
        products * _waste(made, 2 * lanes),
        g.C * of_x * tiles * planes,
        g.F * of_y * tiles * planes,
        weights - taps if prepared else weights,
        _CALL,
        g.N * g.groups * _IMAGE,
        results,
    )


def _direct(product: str, g: Convolution, lanes: int, prepared: bool) -> Quantities:
    """Vectors along the rows of the result, and rows of the image copied for each step."""
    products, x, y, w = _vectors(g, lanes)
    sparse = max(g.stride) > 2  # most of what a vector loads is then left out
    return (
        products,
        products * _waste(g.OW, lanes),
        products / (g.F // g.groups),
        x * g.stride[1],
        y,
        w,
        _CALL,
        g.N * g.C * g.H,
        g.N * g.F * g.OH,
        g.N * g.groups * _IMAGE,
        g.N * g.F * g.H * g.W / lanes if sparse else 0,
    )


def _depthwise(product: str, g: Convolution, lanes: int, prepared: bool) -> Quantities:
    """Vectors along the rows, and rows that are split by the stride for each filter.

    Windows of usual sizes have kernels of their own.
    """
    products, x, y, w = _vectors(g, lanes)
    split = g.N * g.F * g.H * g.W / lanes
    known = {(1, 1): (3, 5, 7), (2, 2): (3, 5)}.get(g.stride, ())
    usual = g.KH == g.KW and g.KH in known and g.dilation == (1, 1)
    return (
        0.0 if usual else products,
        products if usual else 0.0,
        products * _waste(g.OW, lanes),
        x,
        y,
        w,
        _CALL,
        g.N * g.C * g.H,
        g.N * g.F * g.OH,
        split if max(g.stride) > 1 else 0,
        split if max(g.stride) > 2 else 0,
    )


def _vectors(g: Convolution, lanes: int) -> tuple[float, float, float, float]:
    """Of products, of x, of y and of w."""
    w = g.F * (g.C // g.groups) * g.KH * g.KW / lanes
    return w * g.N * g.pixels, g.N * g.C * g.H * g.W / lanes, g.N * g.F * g.pixels / lanes, w


def _waste(n: int, lanes: int) -> float:
    """Lanes that stay empty where n elements fill vectors, for each that is used."""
    return -(-n // lanes) * lanes / n - 1
