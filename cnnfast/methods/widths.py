"""Whether the engine's kernels take vectors half as wide as the processor has.

The level x86-64-v4 holds every kernel of convolution twice, with vectors of 64 and of 32 bytes
(``csrc/half_f32.c``). Both multiply as fast on processors that split the wide ones, and nearly so
on others; a wide vector takes fewer instructions, but wastes more where its lanes are not filled.
The rules below follow the times of 260 random convolutions (``docs/performance.md``). At other
levels there is one width, and nothing to choose.
"""

from __future__ import annotations

from cnnfast.geometry import Convolution

WIDE = 64  # bytes


def half(method: str, product: str, g: Convolution, double: bool) -> bool:
    """Whether half the width is better, for a product of these sizes by a family of kernels.

    `product` is "forward", "backward_input" or "backward_weights".
    """
    lanes = WIDE // (8 if double else 4)
    made, used, width = g.F // g.groups, g.C // g.groups, g.OW
    if product == "backward_input":
        made, used, width = used, made, -(-g.W // g.stride[1])
    if method == "winograd":  # panels of two vectors of channels
        if product == "backward_weights":
            return _gain(made, 2 * lanes) > 1.1 or _gain(used, lanes) > 1.1
        return _gain(made, 2 * lanes) > 1.2
    if product == "backward_weights":
        fewest = min(made, used * g.KH * g.KW)
        return method != "gemm" or fewest <= 2 * lanes or _gain(made, lanes) > 1.04
    if method == "depthwise" and g.stride[1] == 1:
        # Rows are loaded from every column on. What fits into two vectors needs few loads.
        return not lanes // 2 < width <= 2 * lanes
    return g.KW > 1 and _gain(width, lanes) > 1.1


def _gain(count: int, lanes: int) -> float:
    """How many times more lanes `count` numbers take in vectors of `lanes` than in halves."""
    half_lanes = lanes // 2
    return -(-count // lanes) * lanes / (-(-count // half_lanes) * half_lanes)
