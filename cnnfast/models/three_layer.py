"""The three-layer network of CS231n and its descendants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cnnfast import nn
from cnnfast.models.classifier import Classifier, checked_scale, image_dims, start

__all__ = ["ThreeLayerConvNet"]


class ThreeLayerConvNet(Classifier):
    """conv - relu - 2x2 max pool - affine - relu - affine, scores for a softmax.

    The convolution keeps the size of the image. With ``use_batchnorm`` a batch norm stands before
    each ReLU. With ``conv_layers=2`` there are two convolutions (each with its ReLU) before the
    pooling: the network that UCLA's course trains on CIFAR-10.

    Parameters
    ----------
    input_dim : (int, int, int)
        C, H, W of an image.
    num_filters : int
        Filters of each convolution.
    filter_size : int
        Their height and width.
    hidden_dim : int
        Units of the first affine layer.
    num_classes : int
        Scores.
    weight_scale : float or "kaiming"
        Standard deviation of the starting weights.
    reg : float
        Strength of the L2 penalty.
    dtype : dtype
        Of the parameters.
    use_batchnorm : bool
        Batch norm before each ReLU.
    input_dims : (int, int, int), optional
        Another name for `input_dim`: Michigan's.
    conv_layers : int
        How many convolutions.
    l2_factor : float
        The penalty is ``l2_factor * reg * sum(W**2)``: 0.5 at Stanford and UCLA, 1 in Michigan.
    rng : numpy.random.Generator, optional
        Draws the starting weights.

    Notes
    -----
    The layers are named ``conv1, bn1, relu1, ..., pool, flatten, fc1, bn_fc1, relu_fc1, fc2``.
    Linear weights are (out, in) as everywhere in this package; the courses' are (in, out).

    References
    ----------
    Stanford CS231n, assignment 2; UCLA ECE 239AS, homework 5; Michigan EECS 498-007, assignment 3.

    Examples
    --------
    >>> import numpy as np
    >>> model = ThreeLayerConvNet(input_dim=(1, 8, 8), num_filters=4, filter_size=3, hidden_dim=16)
    >>> X, y = np.zeros((2, 1, 8, 8), np.float32), np.array([3, 7])
    >>> model.loss(X).shape
    (2, 10)
    >>> loss, grads = model.loss(X, y)
    >>> round(loss, 4), grads["conv1.weight"].shape
    (2.3026, (4, 1, 3, 3))
    """

    def __init__(
        self,
        input_dim: Sequence[int] = (3, 32, 32),
        num_filters: int = 32,
        filter_size: int = 7,
        hidden_dim: int = 100,
        num_classes: int = 10,
        weight_scale: float | str = 1e-3,
        reg: float = 0.0,
        dtype: Any = np.float32,
        use_batchnorm: bool = False,
        *,
        input_dims: Sequence[int] | None = None,
        conv_layers: int = 1,
        l2_factor: float = 0.5,
        rng: np.random.Generator | None = None,
    ) -> None:
        who = "ThreeLayerConvNet"
        if input_dims is not None:
            input_dim = input_dims
        C, H, W = image_dims(who, "input_dim", input_dim)
        if min(H, W) < 2:
            raise ValueError(f"{who}: images of {H}x{W} are too small to pool 2x2")
        if conv_layers < 1:
            raise ValueError(f"{who}: conv_layers must be at least 1, got {conv_layers}")
        weight_scale = checked_scale(who, weight_scale)

        layers: dict[str, nn.Layer] = {}
        for i in range(1, conv_layers + 1):
            layers[f"conv{i}"] = nn.Conv2d(C, num_filters, filter_size, padding="same", dtype=dtype)
            if use_batchnorm:
                layers[f"bn{i}"] = nn.BatchNorm2d(num_filters, dtype=dtype)
            layers[f"relu{i}"] = nn.ReLU()
            C = num_filters
        layers["pool"] = nn.MaxPool2d(2)
        layers["flatten"] = nn.Flatten()
        layers["fc1"] = nn.Linear(C * (H // 2) * (W // 2), hidden_dim, dtype=dtype)
        if use_batchnorm:
            layers["bn_fc1"] = nn.BatchNorm1d(hidden_dim, dtype=dtype)
        layers["relu_fc1"] = nn.ReLU()
        layers["fc2"] = nn.Linear(hidden_dim, num_classes, dtype=dtype)
        super().__init__(layers, reg=reg, l2_factor=l2_factor, dtype=dtype)
        start(self, weight_scale, rng=rng)
