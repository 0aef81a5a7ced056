"""The deep network of Michigan's course, in the style of VGG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cnnfast import nn
from cnnfast.models.classifier import Classifier, checked_scale, image_dims, start

__all__ = ["DeepConvNet"]


class DeepConvNet(Classifier):
    """{conv - [batch norm] - relu - [pool]} x (L - 1) - linear, scores for a softmax.

    Convolutions are 3x3 with padding 1, poolings 2x2 with stride 2.

    Parameters
    ----------
    input_dims : (int, int, int)
        C, H, W of an image.
    num_filters : sequence of int
        Filters of each convolution; there are L - 1.
    max_pools : sequence of int
        Which of them (from 0) a max pooling follows.
    batchnorm : bool
        Batch norm before each ReLU.
    num_classes : int
        Scores.
    weight_scale : float or "kaiming"
        Standard deviation of the starting weights; "kaiming" fits it to each layer.
    reg : float
        Strength of the L2 penalty.
    dtype : dtype
        Of the parameters.
    l2_factor : float
        The penalty is ``l2_factor * reg * sum(W**2)``: 1 in Michigan's course.
    rng : numpy.random.Generator, optional
        Draws the starting weights.

    Attributes
    ----------
    num_layers : int
        L, the linear layer included.

    Notes
    -----
    The layers are named ``conv1, bn1, relu1, pool1, conv2, ..., flatten, fc``.

    References
    ----------
    Michigan EECS 498-007, assignment 3; Simonyan and Zisserman, "Very deep convolutional networks
    for large-scale image recognition", 2015.

    Examples
    --------
    >>> model = DeepConvNet((3, 8, 8), num_filters=[8, 16], max_pools=[1], weight_scale="kaiming")
    >>> {name: p.shape for name, p in model.params.items() if "weight" in name}
    {'conv1.weight': (8, 3, 3, 3), 'conv2.weight': (16, 8, 3, 3), 'fc.weight': (10, 256)}
    """

    def __init__(
        self,
        input_dims: Sequence[int] = (3, 32, 32),
        num_filters: Sequence[int] = (8, 8, 8, 8, 8),
        max_pools: Sequence[int] = (0, 1, 2, 3, 4),
        batchnorm: bool = False,
        num_classes: int = 10,
        weight_scale: float | str = 1e-3,
        reg: float = 0.0,
        dtype: Any = np.float32,
        *,
        l2_factor: float = 1.0,
        rng: np.random.Generator | None = None,
    ) -> None:
        who = "DeepConvNet"
        C, H, W = image_dims(who, "input_dims", input_dims)
        weight_scale = checked_scale(who, weight_scale)
        num_filters, pools = list(num_filters), set(max_pools)
        if not num_filters:
            raise ValueError(f"{who}: num_filters is empty")
        if not pools <= set(range(len(num_filters))):
            raise ValueError(
                f"{who}: max_pools must be indices of the {len(num_filters)} convolutions "
                f"(from 0), got {list(max_pools)}"
            )
        if min(H, W) >> len(pools) < 1:
            raise ValueError(f"{who}: images of {H}x{W} are too small for {len(pools)} poolings")

        layers: dict[str, nn.Layer] = {}
        for i, F in enumerate(num_filters):
            layers[f"conv{i + 1}"] = nn.Conv2d(C, F, 3, padding=1, dtype=dtype)
            if batchnorm:
                layers[f"bn{i + 1}"] = nn.BatchNorm2d(F, dtype=dtype)
            layers[f"relu{i + 1}"] = nn.ReLU()
            if i in pools:
                layers[f"pool{i + 1}"] = nn.MaxPool2d(2)
                H, W = H // 2, W // 2
            C = F
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(C * H * W, num_classes, dtype=dtype)
        super().__init__(layers, reg=reg, l2_factor=l2_factor, dtype=dtype)
        self.num_layers = len(num_filters) + 1
        start(self, weight_scale, rng=rng)
