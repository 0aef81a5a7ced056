"""Convolution as it is defined, along the rows of the outputs: for few channels.

The lanes of a vector are neighbouring pixels of one row, and a tile of several filters by several
vectors stays in registers while the taps go by (``csrc/direct.inc``). First layers, with three
channels, are too thin for the matrix product that `gemm` makes of a convolution.
"""

from __future__ import annotations

from cnnfast.geometry import Convolution
from cnnfast.methods.base import Call
from cnnfast.methods.convolution import EngineConvolution

MOST_CHANNELS = 8


class Direct(EngineConvolution):
    """Few channels per group."""

    name = "direct"

    def supports(self, call: Call) -> str | None:
        g = call.geometry
        assert isinstance(g, Convolution)
        if g.C // g.groups > MOST_CHANNELS:
            return f"it is for up to {MOST_CHANNELS} channels per group, not {g.C // g.groups}"
        return super().supports(call)


METHOD = Direct()
