"""MobileNetV2, with the structure and the state dict of torchvision's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from cnnfast import nn
from cnnfast.models.resnet import conv_fan_out
from cnnfast.nn import fusion

__all__ = ["InvertedResidual", "mobilenet_v2"]

Array = Any

# Expansion, channels, blocks, stride of the first: table 2 of the paper.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Layer):
    """Expand by a 1x1 convolution, filter each channel, project back; x is added if it fits.

    Parameters
    ----------
    in_channels, channels : int
        Channels of the input and of the output.
    stride : int
        Of the depthwise convolution.
    expand_ratio : int
        Channels between the two 1x1 convolutions, in terms of `in_channels`; with 1 the first one
        is left out.
    dtype : dtype
        Of the parameters.
    rng : numpy.random.Generator, optional
        Draws the starting weights.

    References
    ----------
    Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks", 2018;
    ``torchvision.models.mobilenetv2.InvertedResidual``.

    Examples
    --------
    >>> import numpy as np
    >>> block = InvertedResidual(4, 4, 1, 6)
    >>> block(np.zeros((2, 4, 5, 5), np.float32)).shape, block.residual
    ((2, 4, 5, 5), True)
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        expand_ratio: int,
        *,
        dtype: Any = np.float32,
        rng: np.random.Generator | None = None,
    ) -> None:
        super().__init__()
        inner = in_channels * expand_ratio
        layers: list[nn.Layer] = []
        if expand_ratio != 1:
            layers.append(_conv_norm(in_channels, inner, 1, dtype=dtype, rng=rng))
        layers += [
            _conv_norm(inner, inner, 3, stride, groups=inner, dtype=dtype, rng=rng),
            conv_fan_out(inner, channels, 1, dtype=dtype, rng=rng),
            nn.BatchNorm2d(channels, dtype=dtype),
        ]
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and in_channels == channels

    def _input_layers(self) -> Iterator[nn.Layer]:
        yield self.conv

    def forward(self, x: Array) -> Array:
        y: Any = self.conv.forward(x)
        return fusion.add(y, x) if self.residual else y

    def _opened(self) -> Iterable[Any]:
        if type(self) is not InvertedResidual:
            return (self,)
        inner = fusion.opened((self.conv,))
        return (fusion.Identity(self, inner),) if self.residual else inner

    def backward(self, dy: Array) -> Any:
        dx = self.conv.backward(dy)
        return fusion.add(dx, dy) if self.residual and dx is not None else dx


def _conv_norm(
    in_channels: int,
    channels: int,
    size: int,
    stride: int = 1,
    groups: int = 1,
    *,
    dtype: Any,
    rng: np.random.Generator | None,
) -> nn.Sequential:
    return nn.Sequential(
        conv_fan_out(in_channels, channels, size, stride, groups, dtype=dtype, rng=rng),
        nn.BatchNorm2d(channels, dtype=dtype),
        nn.ReLU6(),
    )


def mobilenet_v2(
    num_classes: int = 1000,
    *,
    in_channels: int = 3,
    dropout: float = 0.2,
    dtype: Any = np.float32,
    rng: np.random.Generator | None = None,
) -> nn.Sequential:
    """MobileNetV2 of width 1 for images of about 224x224: 3.5 million parameters.

    Parameters
    ----------
    num_classes : int
        Scores.
    in_channels : int
        Channels of an image.
    dropout : float
        Share of the last features that training leaves out.
    dtype : dtype
        Of the parameters.
    rng : numpy.random.Generator, optional
        Draws the starting weights, and the dropout while training.

    Returns
    -------
    nn.Sequential
        The layers are named ``features, avgpool, flatten, classifier``; the state dict is that of
        ``torchvision.models.mobilenet_v2`` and loads from it.

    References
    ----------
    Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks", 2018.

    Examples
    --------
    >>> net = mobilenet_v2().eval()
    >>> net(np.zeros((1, 3, 64, 64), np.float32)).shape
    (1, 1000)
    >>> sum(p.size for p in net.params.values())
    3504872
    """
    rng = np.random.default_rng() if rng is None else rng
    last, C = 1280, 32
    features: list[nn.Layer] = [_conv_norm(in_channels, C, 3, 2, dtype=dtype, rng=rng)]
    for expansion, channels, blocks, stride in _STAGES:
        for step in (stride, *(1,) * (blocks - 1)):
            features.append(InvertedResidual(C, channels, step, expansion, dtype=dtype, rng=rng))
            C = channels
    features.append(_conv_norm(C, last, 1, dtype=dtype, rng=rng))
    classifier = nn.Linear(last, num_classes, dtype=dtype, rng=rng)
    classifier.weight = nn.init.normal(classifier.weight.shape, 0.01, rng=rng, dtype=dtype)
    classifier.bias = np.zeros(num_classes)
    return nn.Sequential(
        {
            "features": nn.Sequential(*features),
            "avgpool": nn.AdaptiveAvgPool2d(1),
            "flatten": nn.Flatten(),
            "classifier": nn.Sequential(nn.Dropout(dropout, rng=rng), classifier),
        }
    )
