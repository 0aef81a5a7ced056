"""Convolution as a matrix product whose columns never exist.

The product of `im2col` and a matrix product, with both in one: the kernel fetches each pixel of a
column from a padded copy of the image (or from the image itself), by a table of the offsets of a
window's taps, when the product needs it. ``csrc/gemm.inc`` and ``csrc/gemm_weights.inc`` explain
the tiles; the idea is that of Chetlur et al., "cuDNN", 2014.
"""

from cnnfast.methods.convolution import EngineConvolution


class Gemm(EngineConvolution):
    """Any convolution at all."""

    name = "gemm"


METHOD = Gemm()
