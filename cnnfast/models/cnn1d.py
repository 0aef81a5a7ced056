"""The one-dimensional network of CMU's course."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cnnfast import nn
from cnnfast.models.classifier import Classifier

__all__ = ["SimpleCNN1d"]


class SimpleCNN1d(Classifier):
    """{conv1d - activation} x K - flatten - linear, scores for a softmax.

    Parameters
    ----------
    input_width : int
        Length of the signals.
    num_input_channels : int
        Their channels.
    num_channels : sequence of int
        Filters of each convolution.
    kernel_sizes, strides : sequence of int
        Of each convolution.
    num_linear_neurons : int
        Scores.
    activations : sequence of nn.Layer, optional
        One after each convolution; ReLU without it.
    reg, l2_factor : float
        The L2 penalty is ``l2_factor * reg * sum(W**2)``.
    dtype : dtype
        Of the parameters.
    rng : numpy.random.Generator, optional
        Draws the starting weights, as `nn.Conv1d` and `nn.Linear` do.

    Notes
    -----
    The layers are named ``conv1, act1, conv2, act2, ..., flatten, fc``.

    References
    ----------
    CMU 11-785, homework 2 part 1, section 7.

    Examples
    --------
    >>> model = SimpleCNN1d(128, 24, [56, 28, 14], [5, 6, 2], [1, 2, 2], 10)
    >>> model.params["fc.weight"].shape
    (10, 420)
    """

    def __init__(
        self,
        input_width: int,
        num_input_channels: int,
        num_channels: Sequence[int],
        kernel_sizes: Sequence[int],
        strides: Sequence[int],
        num_linear_neurons: int,
        activations: Sequence[nn.Layer] | None = None,
        *,
        reg: float = 0.0,
        l2_factor: float = 0.5,
        dtype: Any = np.float32,
        rng: np.random.Generator | None = None,
    ) -> None:
        who = "SimpleCNN1d"
        if activations is None:
            activations = [nn.ReLU() for _ in num_channels]
        lengths = [len(a) for a in (num_channels, kernel_sizes, strides, activations)]
        if len(set(lengths)) > 1 or not num_channels:
            raise ValueError(
                f"{who}: num_channels, kernel_sizes, strides and activations must be of one "
                f"length, not 0; got lengths {lengths}"
            )
        rng = np.random.default_rng() if rng is None else rng
        layers: dict[str, nn.Layer] = {}
        C, L = num_input_channels, input_width
        for i, (F, K, stride, activation) in enumerate(
            zip(num_channels, kernel_sizes, strides, activations, strict=True), start=1
        ):
            layers[f"conv{i}"] = nn.Conv1d(C, F, K, stride=stride, dtype=dtype, rng=rng)
            layers[f"act{i}"] = activation
            if K > L:
                raise ValueError(
                    f"{who}: kernel_sizes[{i - 1}] is {K}, longer than its input of {L}"
                )
            C, L = F, (L - K) // stride + 1
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(C * L, num_linear_neurons, dtype=dtype, rng=rng)
        super().__init__(layers, reg=reg, l2_factor=l2_factor, dtype=dtype)
