"""What the benchmark times, by name.

A :class:`Case` is one operation on arrays of one size, or one pass through a whole network.
``SUITES`` maps a suite's name to its cases:

``courses``
    the workloads of the course notebooks (Stanford CS231n, UCLA ECE 239AS, Michigan EECS 498).
``gradients``
    their convolutions, and each of the two large gradients by itself.
``vgg``
    the 3x3 convolutions of VGG on CIFAR-10 (Simonyan and Zisserman, 2015).
``resnet50``
    the stem and every distinct 3x3 and 1x1 convolution of ResNet-50 on 224x224 images
    (He et al., 2016; the stride on the 3x3, as in torchvision), at batch 1 and 8.
``mobilenet``
    the stem and every distinct depthwise and pointwise convolution of MobileNetV2 on 224x224
    images (Sandler et al., 2018), at batch 1.
``odd``
    5x5 and larger kernels, sizes that no vector divides, rectangles, dilation, groups.
``pool``
    max and average pooling: tiling, overlapping, padded and global windows.
``norm``
    batch normalisation: in training, in inference, backward.
``relu``
    the rectifier, on arrays from 1 to 64 MB (in float32).
``linear``
    fully connected layers.
``training``
    a training step: forward, loss, backward, update.
``networks``
    inference by a whole network, at batch 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

__all__ = ["INFERENCE", "SUITES", "TRAINING_STEP", "Case"]

Shape = tuple[int, ...]


# The operations of a case that is a whole network.
INFERENCE, TRAINING_STEP = "inference", "training_step"


@dataclass(frozen=True)
class Case:
    """One operation on arrays of one size, or one pass through a network.

    Parameters
    ----------
    name : str
        The layer, in at most 44 characters.
    op : str
        The name of the operation in ``cnnfast.functional``, or `INFERENCE` or `TRAINING_STEP`.
    phase : str
        What a reader calls it: "forward", "forward + indices", "backward", "backward by x"...
    shapes : mapping of str to tuple of int
        The shape of each array that is drawn at random. What follows from them (``dy``,
        ``indices``) is made when the case is set up.
    options : mapping of str to object
        The other arguments, with the names of ``cnnfast.functional``; of a whole network its
        name (see ``cnnfast.networks``).
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

    @property
    def whole_network(self) -> bool:
        """Whether it is a pass through a network, and no single operation."""
        return self.op in (INFERENCE, TRAINING_STEP)

    @property
    def parts(self) -> int:
        """Into how many equal parts of like work an image's share of the case divides.

        They are groups of channels where a convolution has groups, else filters, or the channels
        of a pooling.
        """
        if self.options.get("groups", 1) > 1:
            return int(self.options["groups"])
        if "w" in self.shapes:
            return self.shapes["w"][0]
        return self.shapes["x"][1] if "pool" in self.op else 1

    def part(self, images: int, parts: int) -> Case:
        """The same with fewer images, and fewer of what `parts` counts."""
        shapes, options = dict(self.shapes), dict(self.options)
        share = parts / self.parts
        x = shapes["x"]
        if "w" in shapes:
            grouped = options.get("groups", 1) > 1
            channels = round(x[1] * share) if grouped else x[1]
            shapes["x"] = (images, channels, *x[2:])
            shapes["w"] = (round(shapes["w"][0] * share), *shapes["w"][1:])
            if "b" in shapes:
                shapes["b"] = shapes["w"][:1]
            if grouped:
                options["groups"] = parts
        elif self.parts > 1:
            shapes["x"] = (images, parts, *x[2:])
        else:
            shapes["x"] = (images, *x[1:])
        return replace(self, shapes=shapes, options=options)

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


# What a convolution is timed for: the whole backward pass, or each gradient by itself. The gradient
# by the bias goes with that by the weights.
_WHOLE = {"forward": "", "backward": "xwb"}
_SPLIT = {"forward": "", "backward by x": "x", "backward by w": "wb"}


def _conv(
    name: str,
    batch: int,
    c: int,
    size: int | tuple[int, int],
    f: int,
    k: int | tuple[int, int],
    stride: int = 1,
    groups: int = 1,
    dilation: int = 1,
    phases: Mapping[str, str] = _SPLIT,
) -> list[Case]:
    """The passes of a convolution that keeps the size at stride 1."""
    (h, w), (kh, kw) = _pair(size), _pair(k)
    shapes = {"x": (batch, c, h, w), "w": (f, c // groups, kh, kw)}
    options: dict[str, Any] = {
        "stride": stride,
        "padding": (dilation * (kh // 2), dilation * (kw // 2)),
        "dilation": dilation,
        "groups": groups,
    }
    return [
        Case(name, "conv2d_backward", phase, shapes, {**options, "needs": needs})
        if needs
        else Case(name, "conv2d", phase, {**shapes, "b": (f,)}, options)
        for phase, needs in phases.items()
    ]


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


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


def _batch_norm(shape: Shape) -> list[Case]:
    name = f"batch norm {'x'.join(map(str, shape))}"
    channel = shape[1:2]
    given: dict[str, Shape] = {"x": shape, "weight": channel, "bias": channel}
    running: dict[str, Shape] = {"running_mean": channel, "running_var": channel}
    training = {
        "running_mean": None, "running_var": None, "training": True, "return_stats": True,
    }  # fmt: skip
    return [
        Case(name, "batch_norm", "training", given, training),
        Case(name, "batch_norm", "inference", {**given, **running}, {"training": False}),
        Case(name, "batch_norm_backward", "backward", {"x": shape, "weight": channel}),
    ]


def _relu(shape: Shape) -> list[Case]:
    name = f"relu {'x'.join(map(str, shape))}"
    return [
        Case(name, "relu", "forward", {"x": shape}),
        Case(name, "relu_backward", "backward", {"x": shape}),
    ]


def _linear(batch: int, inputs: int, outputs: int) -> list[Case]:
    name = f"linear {batch}x{inputs}, {outputs}"
    shapes: dict[str, Shape] = {"x": (batch, inputs), "w": (outputs, inputs)}
    return [
        Case(name, "linear", "forward", {**shapes, "b": (outputs,)}),
        Case(name, "linear_backward", "backward", shapes),
    ]


def _network(name: str, network: str, shape: Shape, op: str) -> Case:
    size = "x".join(map(str, shape))
    return Case(f"{name}, {size}", op, op.replace("_", " "), {"x": shape}, {"network": network})


def _join(parts: Iterable[list[Case]]) -> tuple[Case, ...]:
    return tuple(case for part in parts for case in part)


# Batch, channels, size, filters, kernel, stride.
_COURSES = (
    (100, 3, 31, 25, 3, 2),
    (10, 3, 31, 25, 3, 2),
    (50, 3, 32, 32, 7, 1),
    (100, 8, 32, 8, 3, 1),
    (100, 32, 16, 32, 3, 1),
)

_VGG = ((16, 64, 32, 64, 3, 1), (16, 128, 16, 128, 3, 1), (128, 128, 8, 128, 3, 1))

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


def _layer(
    batch: int,
    c: int,
    h: int,
    f: int,
    k: int,
    stride: int,
    before: str = "",
    phases: Mapping[str, str] = _SPLIT,
) -> list[Case]:
    name = f"{before}{batch}x{c}x{h}x{h}, {f} of {k}x{k}{_step(stride)}"
    return _conv(name, batch, c, h, f, k, stride, phases=phases)


def _depthwise(c: int, h: int, stride: int) -> list[Case]:
    name = f"1x{c}x{h}x{h}, depthwise 3x3{_step(stride)}"
    return _conv(name, 1, c, h, c, 3, stride, groups=c)


def _step(stride: int) -> str:
    return f", stride {stride}" if stride > 1 else ""


SUITES: dict[str, tuple[Case, ...]] = {
    "courses": _join(
        [
            *(_layer(*layer, before="conv ", phases=_WHOLE) for layer in _COURSES),
            _max_pool("max pool 100x3x32x32, 2x2", (100, 3, 32, 32), 2, 2),
            _max_pool("max pool 40x3x32x32, 2x2", (40, 3, 32, 32), 2, 2),
        ]
    ),
    "gradients": _join(_layer(*layer) for layer in _COURSES),
    "vgg": _join(_layer(*layer) for layer in _VGG),
    "resnet50": _join(_layer(batch, *layer) for batch in (1, 8) for layer in _RESNET50),
    "mobilenet": _join(
        [
            _layer(1, 3, 224, 32, 3, 2),
            *(_depthwise(*layer) for layer in _MOBILENET_DEPTHWISE),
            *(_layer(1, c, h, f, 1, 1) for c, h, f in _MOBILENET_POINTWISE),
        ]
    ),
    "odd": _join(
        [
            _layer(100, 1, 28, 6, 5, 1),
            _layer(16, 32, 28, 64, 5, 1),
            _layer(1, 48, 27, 128, 5, 1),
            _layer(1, 3, 224, 64, 11, 4),
            _layer(8, 192, 13, 384, 3, 1),
            _layer(8, 17, 29, 31, 3, 1),
            _layer(32, 5, 33, 7, 3, 2),
            _layer(4, 16, 61, 24, 3, 3),
            _conv("4x30x37x23, 50 of 3x5", 4, 30, (37, 23), 50, (3, 5)),
            _conv("1x128x17x17, 192 of 1x7", 1, 128, 17, 192, (1, 7)),
            _conv("1x128x17x17, 192 of 7x1", 1, 128, 17, 192, (7, 1)),
            _conv("4x64x33x33, 64 of 3x3, dilation 2", 4, 64, 33, 64, 3, dilation=2),
            _conv("1x128x56x56, 128 of 3x3, 32 groups", 1, 128, 56, 128, 3, groups=32),
            _conv("8x24x28x28, depthwise 5x5", 8, 24, 28, 24, 5, groups=24),
        ]
    ),
    "pool": _join(
        [
            _max_pool("max pool 100x3x32x32, 2x2", (100, 3, 32, 32), 2, 2),
            _max_pool("max pool 40x3x32x32, 2x2", (40, 3, 32, 32), 2, 2),
            _max_pool("max pool 16x64x32x32, 2x2", (16, 64, 32, 32), 2, 2),
            _max_pool("max pool 1x64x112x112, 3x3/2", (1, 64, 112, 112), 3, 2, 1),
            _max_pool("max pool 8x64x112x112, 3x3/2", (8, 64, 112, 112), 3, 2, 1),
            _max_pool("max pool 16x32x31x31, 3x3/1", (16, 32, 31, 31), 3, 1, 1),
            _max_pool("max pool 16x64x13x13, 5x5/1", (16, 64, 13, 13), 5, 1, 2),
            _avg_pool("avg pool 100x32x16x16, 2x2", (100, 32, 16, 16), 2, 2),
            _avg_pool("avg pool 16x32x31x31, 3x3/2", (16, 32, 31, 31), 3, 2, 1),
            _avg_pool("avg pool 8x2048x7x7, global", (8, 2048, 7, 7), 7, 7),
        ]
    ),
    "norm": _join(
        _batch_norm(shape)
        for shape in (
            (100, 16, 32, 32),
            (64, 64, 32, 32),
            (8, 64, 112, 112),
            (8, 256, 56, 56),
            (8, 2048, 7, 7),
            (1, 64, 56, 56),
            (100, 100),
        )
    ),
    "relu": _join(
        _relu(shape)
        for shape in (
            (100, 25, 10, 10),
            (100, 32, 32, 32),
            (8, 64, 112, 112),
            (16, 256, 64, 64),
        )
    ),
    "linear": _join(
        _linear(*sizes)
        for sizes in ((100, 8192, 100), (100, 100, 10), (1, 512, 1000), (128, 1024, 1024))
    ),
    "training": tuple(
        _network(name, network, (100, 3, 32, 32), TRAINING_STEP)
        for name, network in (
            ("three-layer network", "three-layer"),
            ("DeepConvNet with batch norm", "deep"),
            ("ResNet-8 for CIFAR", "resnet8"),
        )
    ),
    "networks": tuple(
        _network(name, network, (1, 3, 224, 224), INFERENCE)
        for name, network in (("ResNet-18", "resnet18"), ("MobileNetV2", "mobilenet_v2"))
    ),
}
