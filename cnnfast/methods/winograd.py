"""Convolution by Winograd's minimal filtering, for windows of several taps.

A tile of outputs comes from as many multiplications as it has inputs, after linear transforms of
the pixels and of the weights: F(4x4, 3x3) needs 36 where the definition needs 144. Winograd,
"Arithmetic complexity of computations", 1980; Lavin and Gray, "Fast algorithms for convolutional
neural networks", 2015. Windows of 2, 4 and 5 taps have tiles of their own, larger ones are sums of
smaller, with a stride they are sums over its phases, and with dilation their outputs are computed
in combs (``csrc/winograd.inc``). It rounds more; ``docs/performance.md`` has the errors.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache

from cnnfast.geometry import Convolution
from cnnfast.methods.base import Call
from cnnfast.methods.convolution import EngineConvolution, wanted

MOST_CHANNELS = 2048  # of all pieces, and filters of a group: what keeps scratch within its bound
MOST_TAPS = 144  # of a window
MOST_SPAN = 32  # pixels under a tile, in a row or a column


@dataclass(frozen=True)
class Axis:
    """How one dimension of a window is cut: ``winograd_axis`` in C, and what follows from it."""

    points: int
    outputs: int
    dilation: int
    pieces: int  # windows whose sum it is
    span: int  # pixels from the first to the last that a tile of outputs depends on

    def tiles(self, size: int) -> int:
        """How many tiles cover so many outputs."""
        return -(-size // (self.outputs * self.dilation)) * self.dilation


@cache
def axis(window: int, stride: int, dilation: int, few: bool = False) -> Axis:
    """Tiles of four points with `few` pixels, else of six, but of one where there is one tap."""
    taps = -(-window // stride)
    blocks = 1 if taps <= 5 else -(-taps // 4)
    taps = -(-taps // blocks)
    points = 1 if taps == 1 else 4 if few else 6
    phases = min(stride, window)
    dilation = 1 if window == 1 else dilation
    span = (points - 1 + (blocks - 1) * taps) * stride * dilation + phases
    return Axis(points, points + 1 - taps, dilation, phases * blocks, span)


def axes(g: Convolution) -> tuple[Axis, Axis]:
    """Of the rows and of the columns."""
    few = few_pixels(g)
    rows = axis(g.KH, g.stride[0], g.dilation[0], few)
    return rows, axis(g.KW, g.stride[1], g.dilation[1], few)


class Winograd(EngineConvolution):
    """Windows of more than one tap, with a stride or a dilation."""

    name = "winograd"

    def __init__(self) -> None:
        self.allowed = os.environ.get("CNNFAST_WINOGRAD", "").strip() not in ("0", "false", "off")

    def family(self, product: str, g: Convolution) -> str:
        return "winograd2" if few_pixels(g) else "winograd"

    def supports(self, call: Call) -> str | None:
        g = call.geometry
        assert isinstance(g, Convolution)
        down, along = axes(g)
        if down.points == along.points == 1:
            return f"it is for windows of more taps than the stride, not {g.KH}x{g.KW}, {g.stride}"
        if max(g.stride) > 1 < max(g.dilation):
            return f"it is for a stride or a dilation, not both, {g.stride} and {g.dilation}"
        if "backward_input" in wanted(call) and max(g.stride) > 1:
            return f"it is for stride 1 where the gradient by input is wanted, not {g.stride}"
        if g.KH * g.KW > MOST_TAPS or max(down.span, along.span) > MOST_SPAN:
            return f"it is for smaller windows than {g.KH}x{g.KW} with dilation {g.dilation}"
        pieces = down.pieces * along.pieces
        for product in wanted(call):
            channels, filters = g.C // g.groups, g.F // g.groups
            if product == "backward_input":
                channels, filters = filters, channels
            if max(channels * pieces, filters) > MOST_CHANNELS:
                most = f"up to {MOST_CHANNELS} channels times pieces of the window, and filters"
                return f"it is for {most}, not {channels * pieces} and {filters}"
        if not self.allowed:
            return "it is switched off (cnnfast.set_winograd, CNNFAST_WINOGRAD)"
        return super().supports(call)


def few_pixels(g: Convolution) -> bool:
    """Whether tiles of 2x2 pay, for windows of 3x3 at stride 1 without dilation.

    They multiply more, but waste less at the edges of tiny maps, and their transformed weights, 16
    instead of 36 for each 9, are most of what one small image costs.
    """
    if (g.KH, g.KW, g.stride, g.dilation) != (3, 3, (1, 1), (1, 1)):
        return False
    pixels = g.OH * g.OW
    large = g.C * g.F // g.groups >= 1 << 15  # transformed for 4x4, these would fill the caches
    return max(g.OH, g.OW) <= 4 or (g.N == 1 and pixels <= (200 if large else 100))


METHOD = Winograd()
