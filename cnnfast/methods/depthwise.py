"""Convolution in which every filter sees one channel (``groups`` equal to the channels).

There is no matrix product in it: each pixel is used by the few taps of one filter, so the kernels
(``csrc/depthwise.inc``) run along the rows of the images, with the weights in registers.
"""

from __future__ import annotations

from cnnfast.geometry import Convolution
from cnnfast.methods.base import Call
from cnnfast.methods.convolution import EngineConvolution


class Depthwise(EngineConvolution):
    """As many groups as channels, with any number of filters each."""

    name = "depthwise"

    def supports(self, call: Call) -> str | None:
        g = call.geometry
        assert isinstance(g, Convolution)
        if g.groups != g.C:
            return f"it is for one channel per group, not {g.C // g.groups}"
        return super().supports(call)


METHOD = Depthwise()
