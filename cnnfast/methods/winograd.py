"""Convolution by Winograd's minimal filtering, for windows of 3x3 at stride 1.

A tile of outputs comes from as many multiplications as it has inputs, after linear transforms of
the pixels and of the weights: F(4x4, 3x3) needs 36 where the definition needs 144. Winograd,
"Arithmetic complexity of computations", 1980; Lavin and Gray, "Fast algorithms for convolutional
neural networks", 2015. It rounds more; ``docs/performance.md`` has the errors and the bound.
"""

from __future__ import annotations

import os

from cnnfast.geometry import Convolution
from cnnfast.methods.base import Call
from cnnfast.methods.convolution import EngineConvolution

MOST_CHANNELS = 2048  # and filters of a group: what keeps scratch within its bound


class Winograd(EngineConvolution):
    """Windows of 3x3, undilated, at stride 1."""

    name = "winograd"

    def __init__(self) -> None:
        self.allowed = os.environ.get("CNNFAST_WINOGRAD", "").strip() not in ("0", "false", "off")

    def family(self, product: str, g: Convolution) -> str:
        return "winograd2" if few_pixels(g) else "winograd"

    def supports(self, call: Call) -> str | None:
        g = call.geometry
        assert isinstance(g, Convolution)
        if (g.KH, g.KW, g.stride, g.dilation) != (3, 3, (1, 1), (1, 1)):
            kind = f"{g.KH}x{g.KW}, {g.stride}, {g.dilation}"
            return f"it is for 3x3 windows, stride 1, dilation 1, not {kind}"
        if max(g.C, g.F) // g.groups > MOST_CHANNELS:
            return f"it is for up to {MOST_CHANNELS} channels and filters, not {g.C} and {g.F}"
        if not self.allowed:
            return "it is switched off (cnnfast.set_winograd, CNNFAST_WINOGRAD)"
        return super().supports(call)


def few_pixels(g: Convolution) -> bool:
    """Whether tiles of 2x2 pay: they multiply more, but waste less at the edges of tiny maps, and
    their transformed weights, 16 instead of 36 for each 9, are most of what one small image costs.
    """
    pixels = g.OH * g.OW
    large = g.C * g.F // g.groups >= 1 << 15  # transformed for 4x4, these would fill the caches
    return max(g.OH, g.OW) <= 4 or (g.N == 1 and pixels <= (200 if large else 100))


METHOD = Winograd()
