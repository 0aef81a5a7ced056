"""The layers that the benchmark times, by name.

A :class:`Case` is one operation on arrays of one size. ``SUITES`` maps a suite's name to its cases:

``courses``
    the workloads of the course notebooks (Stanford CS231n, UCLA ECE 239AS).
``resnet50``
    the stem and every distinct 3x3 and 1x1 convolution of ResNet-50 on 224x224 images
    (He et al., 2016; the stride on the 3x3, as in torchvision), at batch 1 and 8.
``mobilenet``
    the stem and every distinct depthwise and pointwise convolution of MobileNetV2 on 224x224
    images (Sandler et al., 2018), at batch 1.
``pool``
    max and average pooling: tiling, overlapping, padded and global windows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["SUITES", "Case"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """One operation on arrays of one size.

    Parameters
    ----------
    name : str
        The layer, in at most 44 characters.
    op : str
        The name of the operation in ``cnnfast.functional``.
    phase : str
        What a reader calls it: "forward", "forward + indices" or "backward".
    shapes : mapping of str to tuple of int
        The shape of each array that is drawn at random. What follows from them (``dy``,
        ``indices``) is made when the case is set up.
    options : mapping of str to object
        The other arguments, with the names of ``cnnfast.functional``.
    """

    name: str
    op: str
    phase: str
    shapes: Mapping[str, Shape]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The layer and what is done with it."""
        return f"{self.name}, {self.phase}"

    @property
    def batch(self) -> int:
        """How many images the case holds."""
        return self.shapes["x"][0]

    def to_json(self) -> dict[str, Any]:
        """The case as plain JSON values; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Case:
        """The case that `to_json` wrote."""
        shapes = {name: tuple(shape) for name, shape in value["shapes"].items()}
        options = {name: _tuples(option) for name, option in value["options"].items()}
        return cls(value["name"], value["op"], value["phase"], shapes, options)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _conv(
    name: str, batch: int, c: int, h: int, f: int, k: int, stride: int = 1, groups: int = 1
) -> list[Case]:
    """Forward and backward of a square convolution that keeps the size at stride 1."""
    x, w = (batch, c, h, h), (f, c // groups, k, k)
    options = {"stride": stride, "padding": k // 2, "groups": groups}
    return [
        Case(name, "conv2d", "forward", {"x": x, "w": w, "b": (f,)}, options),
        Case(name, "conv2d_backward", "backward", {"x": x, "w": w}, options),
    ]


def _max_pool(name: str, shape: Shape, k: int, stride: int, padding: int = 0) -> list[Case]:
    options = {"kernel_size": k, "stride": stride, "padding": padding}
    with_indices = {**options, "return_indices": True}
    return [
        Case(name, "max_pool2d", "forward", {"x": shape}, options),
        Case(name, "max_pool2d", "forward + indices", {"x": shape}, with_indices),
        Case(name, "max_pool2d_backward", "backward", {"x": shape}, options),
    ]


def _avg_pool(name: str, shape: Shape, k: int, stride: int, padding: int = 0) -> list[Case]:
    options = {"kernel_size": k, "stride": stride, "padding": padding}
    return [
        Case(name, "avg_pool2d", "forward", {"x": shape}, options),
        Case(name, "avg_pool2d_backward", "backward", {"x": shape}, options),
    ]


def _join(parts: Iterable[list[Case]]) -> tuple[Case, ...]:
    return tuple(case for part in parts for case in part)


_COURSES = _join(
    [
        _conv("conv 100x3x31x31, 25 of 3x3, stride 2", 100, 3, 31, 25, 3, 2),
        _conv("conv 10x3x31x31, 25 of 3x3, stride 2", 10, 3, 31, 25, 3, 2),
        _max_pool("max pool 100x3x32x32, 2x2", (100, 3, 32, 32), 2, 2),
        _max_pool("max pool 40x3x32x32, 2x2", (40, 3, 32, 32), 2, 2),
    ]
)

# Input channels, input size, filters, kernel, stride.
_RESNET50 = (
    (3, 224, 64, 7, 2),
    (64, 56, 64, 1, 1),
    (64, 56, 64, 3, 1),
    (64, 56, 256, 1, 1),
    (256, 56, 64, 1, 1),
    (256, 56, 128, 1, 1),
    (128, 56, 128, 3, 2),
    (128, 28, 512, 1, 1),
    (256, 56, 512, 1, 2),
    (512, 28, 128, 1, 1),
    (128, 28, 128, 3, 1),
    (512, 28, 256, 1, 1),
    (256, 28, 256, 3, 2),
    (256, 14, 1024, 1, 1),
    (512, 28, 1024, 1, 2),
    (1024, 14, 256, 1, 1),
    (256, 14, 256, 3, 1),
    (1024, 14, 512, 1, 1),
    (512, 14, 512, 3, 2),
    (512, 7, 2048, 1, 1),
    (1024, 14, 2048, 1, 2),
    (2048, 7, 512, 1, 1),
    (512, 7, 512, 3, 1),
)

# Channels, input size, stride.
_MOBILENET_DEPTHWISE = (
    (32, 112, 1),
    (96, 112, 2),
    (144, 56, 1),
    (144, 56, 2),
    (192, 28, 1),
    (192, 28, 2),
    (384, 14, 1),
    (576, 14, 1),
    (576, 14, 2),
    (960, 7, 1),
)

# Input channels, size, filters.
_MOBILENET_POINTWISE = (
    (32, 112, 16),
    (16, 112, 96),
    (96, 56, 24),
    (24, 56, 144),
    (144, 56, 24),
    (144, 28, 32),
    (32, 28, 192),
    (192, 28, 32),
    (192, 14, 64),
    (64, 14, 384),
    (384, 14, 64),
    (384, 14, 96),
    (96, 14, 576),
    (576, 14, 96),
    (576, 7, 160),
    (160, 7, 960),
    (960, 7, 160),
    (960, 7, 320),
    (320, 7, 1280),
)


def _layer(batch: int, c: int, h: int, f: int, k: int, stride: int) -> list[Case]:
    step = f", stride {stride}" if stride > 1 else ""
    return _conv(f"{batch}x{c}x{h}x{h}, {f} of {k}x{k}{step}", batch, c, h, f, k, stride)


def _depthwise(c: int, h: int, stride: int) -> list[Case]:
    step = f", stride {stride}" if stride > 1 else ""
    return _conv(f"1x{c}x{h}x{h}, depthwise 3x3{step}", 1, c, h, c, 3, stride, groups=c)


SUITES: dict[str, tuple[Case, ...]] = {
    "courses": _COURSES,
    "resnet50": _join(_layer(batch, *layer) for batch in (1, 8) for layer in _RESNET50),
    "mobilenet": _join(
        [
            _layer(1, 3, 224, 32, 3, 2),
            *(_depthwise(*layer) for layer in _MOBILENET_DEPTHWISE),
            *(_layer(1, c, h, f, 1, 1) for c, h, f in _MOBILENET_POINTWISE),
        ]
    ),
    "pool": _join(
        [
            _max_pool("max pool 100x3x32x32, 2x2", (100, 3, 32, 32), 2, 2),
            _max_pool("max pool 40x3x32x32, 2x2", (40, 3, 32, 32), 2, 2),
            _max_pool("max pool 1x64x112x112, 3x3/2", (1, 64, 112, 112), 3, 2, 1),
            _max_pool("max pool 8x64x112x112, 3x3/2", (8, 64, 112, 112), 3, 2, 1),
            _max_pool("max pool 16x32x31x31, 3x3/1", (16, 32, 31, 31), 3, 1, 1),
            _max_pool("max pool 16x64x13x13, 5x5/1", (16, 64, 13, 13), 5, 1, 2),
            _avg_pool("avg pool 100x32x16x16, 2x2", (100, 32, 16, 16), 2, 2),
            _avg_pool("avg pool 16x32x31x31, 3x3/2", (16, 32, 31, 31), 3, 2, 1),
            _avg_pool("avg pool 8x2048x7x7, global", (8, 2048, 7, 7), 7, 7),
        ]
    ),
}
