"""A small network that does well on digits, MNIST and CIFAR-10 without tuning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cnnfast import nn
from cnnfast.models.classifier import image_dims

__all__ = ["small_cnn"]


def small_cnn(
    input_shape: Sequence[int],
    num_classes: int = 10,
    *,
    width: int = 32,
    dtype: Any = np.float32,
    rng: np.random.Generator | None = None,
) -> nn.Sequential:
    """{conv - batch norm - relu - max pool} until the image is small - dropout - linear.

    3x3 convolutions. The number of filters doubles from `width` after each pooling, which halves
    the image, until it is 4 pixels or less on its shorter side.

    Parameters
    ----------
    input_shape : (int, int, int)
        C, H, W of an image.
    num_classes : int
        Scores.
    width : int
        Filters of the first convolution.
    dtype : dtype
        Of the parameters.
    rng : numpy.random.Generator, optional
        Draws the starting weights, and the dropout while training.

    Returns
    -------
    nn.Sequential
        The layers are named ``conv1, bn1, relu1, pool1, conv2, ..., flatten, dropout, fc``.

    Examples
    --------
    >>> net = small_cnn((1, 8, 8))
    >>> net(np.zeros((5, 1, 8, 8), np.float32)).shape
    (5, 10)
    >>> [name for name in net.params if name.endswith("weight")]
    ['conv1.weight', 'bn1.weight', 'conv2.weight', 'bn2.weight', 'fc.weight']
    """
    C, H, W = image_dims("small_cnn", "input_shape", input_shape)
    rng = np.random.default_rng() if rng is None else rng
    layers: dict[str, nn.Layer] = {}
    F, i = width, 1
    while True:
        # Batch norm takes the mean out again, so the convolution needs no bias.
        layers[f"conv{i}"] = nn.Conv2d(C, F, 3, padding=1, bias=False, dtype=dtype, rng=rng)
        layers[f"bn{i}"] = nn.BatchNorm2d(F, dtype=dtype)
        layers[f"relu{i}"] = nn.ReLU()
        C = F
        if min(H, W) <= 4:
            break
        layers[f"pool{i}"] = nn.MaxPool2d(2)
        H, W, F, i = H // 2, W // 2, 2 * F, i + 1
    layers["flatten"] = nn.Flatten()
    layers["dropout"] = nn.Dropout(0.25, rng=rng)
    layers["fc"] = nn.Linear(C * H * W, num_classes, dtype=dtype, rng=rng)
    return nn.Sequential(layers)
