"""Residual networks, with the structure and the state dicts of torchvision's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from cnnfast import nn
from cnnfast.nn import fusion

__all__ = ["BasicBlock", "cifar_resnet", "resnet18"]

Array = Any


class BasicBlock(nn.Layer):
    """Two 3x3 convolutions with batch norm, added to what came in: relu(f(x) + x).

    Parameters
    ----------
    in_channels, channels : int
        Channels of the input and of the output.
    stride : int
        Of the first convolution.
    dtype : dtype
        Of the parameters.
    rng : numpy.random.Generator, optional
        Draws the starting weights.

    Notes
    -----
    Where the shape changes, a 1x1 convolution with batch norm takes the place of x ("option B").
    PyTorch's block uses one ReLU twice; a layer here remembers one forward pass, so there are two.

    References
    ----------
    He et al., "Deep residual learning for image recognition", 2015;
    ``torchvision.models.resnet.BasicBlock``.

    Examples
    --------
    >>> import numpy as np
    >>> block = BasicBlock(4, 8, stride=2)
    >>> block(np.zeros((2, 4, 6, 6), np.float32)).shape
    (2, 8, 3, 3)
    >>> [name for name in block.params if name.endswith("weight")]
    ['conv1.weight', 'bn1.weight', 'conv2.weight', 'bn2.weight', 'downsample.0.weight', \
'downsample.1.weight']
    """

    downsample: nn.Layer | None

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        *,
        dtype: Any = np.float32,
        rng: np.random.Generator | None = None,
    ) -> None:
        super().__init__()
        self.conv1 = conv_fan_out(in_channels, channels, 3, stride, dtype=dtype, rng=rng)
        self.bn1 = nn.BatchNorm2d(channels, dtype=dtype)
        self.relu1 = nn.ReLU()
        self.conv2 = conv_fan_out(channels, channels, 3, dtype=dtype, rng=rng)
        self.bn2 = nn.BatchNorm2d(channels, dtype=dtype)
        self.downsample = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                conv_fan_out(in_channels, channels, 1, stride, dtype=dtype, rng=rng),
                nn.BatchNorm2d(channels, dtype=dtype),
            )
        self.relu2 = nn.ReLU()
        self._chain = fusion.Chain()
        self._end = fusion.AddReLU()

    def _main(self) -> tuple[nn.Layer, ...]:
        return self.conv1, self.bn1, self.relu1, self.conv2, self.bn2

    def _input_layers(self) -> Iterator[nn.Layer]:
        yield self.conv1
        if self.downsample is not None:
            yield self.downsample

    def forward(self, x: Array) -> Array:
        y = self._chain.forward(x, self._main, self.training)
        side = x if self.downsample is None else self.downsample.forward(x)
        return self._end.forward(y, side, self.relu2)

    def backward(self, dy: Array) -> Any:
        dy = self._end.backward(dy, self.relu2)
        dx = self._chain.backward(dy, self._main, self.training)
        side = dy if self.downsample is None else self.downsample.backward(dy)
        return None if dx is None or side is None else fusion.add(dx, side)


def conv_fan_out(
    in_channels: int,
    channels: int,
    size: int,
    stride: int = 1,
    groups: int = 1,
    *,
    dtype: Any,
    rng: np.random.Generator | None,
) -> nn.Conv2d:
    """Without a bias, which batch norm would take out again; started as torchvision does."""
    conv = nn.Conv2d(
        in_channels, channels, size, stride, size // 2,
        groups=groups, bias=False, dtype=dtype, rng=rng,
    )  # fmt: skip
    conv.weight = nn.init.kaiming_normal(
        conv.weight.shape, mode="fan_out", nonlinearity="relu", rng=rng, dtype=dtype
    )
    return conv


def _stage(
    in_channels: int,
    channels: int,
    blocks: int,
    stride: int,
    dtype: Any,
    rng: np.random.Generator | None,
) -> nn.Sequential:
    return nn.Sequential(
        BasicBlock(in_channels, channels, stride, dtype=dtype, rng=rng),
        *(BasicBlock(channels, channels, dtype=dtype, rng=rng) for _ in range(blocks - 1)),
    )


def resnet18(
    num_classes: int = 1000,
    *,
    in_channels: int = 3,
    dtype: Any = np.float32,
    rng: np.random.Generator | None = None,
) -> nn.Sequential:
    """ResNet-18 for images of about 224x224: 11.7 million parameters.

    Parameters
    ----------
    num_classes : int
        Scores.
    in_channels : int
        Channels of an image.
    dtype : dtype
        Of the parameters.
    rng : numpy.random.Generator, optional
        Draws the starting weights.

    Returns
    -------
    nn.Sequential
        The layers are named ``conv1, bn1, relu, maxpool, layer1, ..., layer4, avgpool, flatten,
        fc``; the state dict is that of ``torchvision.models.resnet18`` and loads from it.

    References
    ----------
    He et al., "Deep residual learning for image recognition", 2015.

    Examples
    --------
    >>> net = resnet18().eval()
    >>> net(np.zeros((1, 3, 64, 64), np.float32)).shape
    (1, 1000)
    >>> sum(p.size for p in net.params.values())
    11689512
    """
    rng = np.random.default_rng() if rng is None else rng
    return nn.Sequential(
        {
            "conv1": conv_fan_out(in_channels, 64, 7, 2, dtype=dtype, rng=rng),
            "bn1": nn.BatchNorm2d(64, dtype=dtype),
            "relu": nn.ReLU(),
            "maxpool": nn.MaxPool2d(3, 2, 1),
            "layer1": _stage(64, 64, 2, 1, dtype, rng),
            "layer2": _stage(64, 128, 2, 2, dtype, rng),
            "layer3": _stage(128, 256, 2, 2, dtype, rng),
            "layer4": _stage(256, 512, 2, 2, dtype, rng),
            "avgpool": nn.AdaptiveAvgPool2d(1),
            "flatten": nn.Flatten(),
            "fc": nn.Linear(512, num_classes, dtype=dtype, rng=rng),
        }
    )


def cifar_resnet(
    depth: int = 20,
    num_classes: int = 10,
    *,
    in_channels: int = 3,
    dtype: Any = np.float32,
    rng: np.random.Generator | None = None,
) -> nn.Sequential:
    """The residual network for CIFAR-10's images of 32x32: 16, 32 and 64 filters of 3x3.

    Parameters
    ----------
    depth : int
        Layers with weights: 6n + 2, such as 8, 14, 20, 32, 44, 56.
    num_classes : int
        Scores.
    in_channels : int
        Channels of an image.
    dtype : dtype
        Of the parameters.
    rng : numpy.random.Generator, optional
        Draws the starting weights.

    Returns
    -------
    nn.Sequential
        The layers are named ``conv1, bn1, relu, layer1, layer2, layer3, avgpool, flatten, fc``.

    References
    ----------
    He et al., "Deep residual learning for image recognition", 2015, section 4.2; with 1x1
    convolutions where the shape changes.

    Examples
    --------
    >>> cifar_resnet(8)(np.zeros((2, 3, 32, 32), np.float32)).shape
    (2, 10)
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"cifar_resnet: depth must be 6n + 2, such as 8 or 20, not {depth}")
    blocks = (depth - 2) // 6
    rng = np.random.default_rng() if rng is None else rng
    return nn.Sequential(
        {
            "conv1": conv_fan_out(in_channels, 16, 3, dtype=dtype, rng=rng),
            "bn1": nn.BatchNorm2d(16, dtype=dtype),
            "relu": nn.ReLU(),
            "layer1": _stage(16, 16, blocks, 1, dtype, rng),
            "layer2": _stage(16, 32, blocks, 2, dtype, rng),
            "layer3": _stage(32, 64, blocks, 2, dtype, rng),
            "avgpool": nn.AdaptiveAvgPool2d(1),
            "flatten": nn.Flatten(),
            "fc": nn.Linear(64, num_classes, dtype=dtype, rng=rng),
        }
    )
