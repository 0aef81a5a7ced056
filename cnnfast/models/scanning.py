"""Multi-layer perceptrons that scan a signal, as the convolutional networks that they are.

An MLP that is moved along a signal computes, at each place, what a stack of 1-d convolutions
computes there. The networks here are made from an MLP's own weight matrices (`init_weights`) and
give its outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cnnfast import nn

__all__ = ["DistributedScanningMLP", "SimpleScanningMLP"]


class _ScanningMLP(nn.Sequential):
    """Convolutions ``conv1, conv2, ...`` without bias, ReLUs between them, and a flatten."""

    def __init__(
        self,
        channels: Sequence[int],
        kernel_sizes: Sequence[int],
        strides: Sequence[int],
        dtype: Any,
        rng: np.random.Generator | None,
    ) -> None:
        rng = np.random.default_rng() if rng is None else rng
        layers: dict[str, nn.Layer] = {}
        for i, (K, stride) in enumerate(zip(kernel_sizes, strides, strict=True), start=1):
            layers[f"conv{i}"] = nn.Conv1d(
                channels[i - 1], channels[i], K, stride=stride, bias=False, dtype=dtype, rng=rng
            )
            if i < len(kernel_sizes):
                layers[f"relu{i}"] = nn.ReLU()
        layers["flatten"] = nn.Flatten()
        super().__init__(layers)

    def init_weights(self, weights: Sequence[ArrayLike]) -> None:
        """Take over the weight matrices of the MLP.

        Parameters
        ----------
        weights : sequence of array_like, (inputs, outputs)
            One matrix for each layer, as ``y = x @ W``. Inputs and outputs that belong to several
            instants stand instant by instant, as flattening a (time, channels) array gives them.

        Raises
        ------
        ValueError
            If there is another number of matrices, a shape does not fit, or an MLP that should
            share its weights does not.
        """
        who = f"{type(self).__name__}.init_weights"
        convolutions = [layer for layer in self if isinstance(layer, nn.Conv1d)]
        if len(weights) != len(convolutions):
            raise ValueError(
                f"{who}: weights must be {len(convolutions)} matrices, got {len(weights)}"
            )
        kernels = []
        # How many outputs of a layer the MLP has at once: from the last layer's one, downwards.
        places = 1
        for i, conv in reversed(list(enumerate(convolutions))):
            F, C, K = conv.weight.shape
            (stride,) = conv.stride
            inputs = (places - 1) * stride + K
            W = np.asarray(weights[i])
            if W.shape != (inputs * C, places * F):
                raise ValueError(
                    f"{who}: weights[{i}] must have shape {(inputs * C, places * F)}, got {W.shape}"
                )
            block = W[: K * C, :F]
            shared = np.zeros_like(W)
            for p in range(places):
                shared[p * stride * C : (p * stride + K) * C, p * F : (p + 1) * F] = block
            if not np.array_equal(W, shared):
                raise ValueError(
                    f"{who}: weights[{i}] must repeat its first {K * C}x{F} block {places} times, "
                    f"each {stride * C} rows lower, with zeros elsewhere"
                )
            kernels.append((conv, block.reshape(K, C, F).transpose(2, 1, 0)))
            places = inputs
        for conv, kernel in kernels:
            conv.weight[...] = kernel


class SimpleScanningMLP(_ScanningMLP):
    """An MLP that sees `window` instants at once and moves on by `stride`.

    Its first layer is a convolution as wide as the window, the others are 1 wide.

    Parameters
    ----------
    in_channels : int
        Size of the vector at each instant.
    layers : sequence of int
        Neurons of each layer.
    window : int
        Instants that the MLP sees.
    stride : int
        Instants between two evaluations.
    dtype : dtype
        Of the parameters.
    rng : numpy.random.Generator, optional
        Draws the starting weights.

    Notes
    -----
    Signals are (N, in_channels, T). The output is (N, layers[-1] * places), flattened from
    (N, layers[-1], places).

    References
    ----------
    CMU 11-785, homework 2 part 1, section 6.1, whose MLP is the default.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> weights = [rng.normal(size=shape) for shape in ((192, 8), (8, 16), (16, 4))]
    >>> cnn = SimpleScanningMLP(dtype=np.float64)
    >>> cnn.init_weights(weights)
    >>> signal = rng.normal(size=(128, 24))
    >>> y = cnn(signal.T[None]).reshape(4, 31)
    >>> h = np.maximum(signal[8:16].reshape(-1) @ weights[0], 0)
    >>> bool(np.allclose(y[:, 2], np.maximum(h @ weights[1], 0) @ weights[2]))
    True
    """

    def __init__(
        self,
        in_channels: int = 24,
        layers: Sequence[int] = (8, 16, 4),
        window: int = 8,
        stride: int = 4,
        *,
        dtype: Any = np.float32,
        rng: np.random.Generator | None = None,
    ) -> None:
        ones = [1] * (len(layers) - 1)
        super().__init__([in_channels, *layers], [window, *ones], [stride, *ones], dtype, rng)


class DistributedScanningMLP(_ScanningMLP):
    """An MLP whose neurons share weights over time, so that it is a narrow convolutional network.

    The neurons of a layer come in groups, one for each place that the layer's filters take within
    the MLP's window; each group has the same weights on its own part of the layer below.

    Parameters
    ----------
    in_channels : int
        Size of the vector at each instant.
    channels : sequence of int
        Neurons of one group of each layer.
    kernel_sizes : sequence of int
        How many groups (of instants, in the first layer) of the layer below a group sees.
    strides : sequence of int
        How many of them lie between one group's first and the next one's.
    dtype : dtype
        Of the parameters.
    rng : numpy.random.Generator, optional
        Draws the starting weights.

    Notes
    -----
    Signals are (N, in_channels, T); the output is flattened as that of `SimpleScanningMLP`.

    References
    ----------
    CMU 11-785, homework 2 part 1, section 6.2, whose MLP of 8, 16 and 4 neurons (four groups of 2,
    two of 8, one of 4) is the default.
    """

    def __init__(
        self,
        in_channels: int = 24,
        channels: Sequence[int] = (2, 8, 4),
        kernel_sizes: Sequence[int] = (2, 2, 2),
        strides: Sequence[int] = (2, 2, 1),
        *,
        dtype: Any = np.float32,
        rng: np.random.Generator | None = None,
    ) -> None:
        if not len(channels) == len(kernel_sizes) == len(strides) >= 1:
            raise ValueError(
                "DistributedScanningMLP: channels, kernel_sizes and strides must be of one length, "
                f"not 0; got {len(channels)}, {len(kernel_sizes)} and {len(strides)}"
            )
        super().__init__([in_channels, *channels], kernel_sizes, strides, dtype, rng)
