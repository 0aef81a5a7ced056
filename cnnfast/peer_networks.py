"""Whole networks of `cnnfast.nn` in other libraries, with the same weights."""

from __future__ import annotations

import importlib
from collections import OrderedDict
from typing import Any

import numpy as np

from cnnfast import models, nn

__all__ = ["onnx_model", "torch_module"]


def torch_module(network: nn.Layer) -> Any:
    """The network as a ``torch.nn.Module``, in its dtype and mode.

    Raises
    ------
    TypeError
        It holds a layer that nobody has written down here.
    """
    torch: Any = importlib.import_module("torch")
    module = _torch_layer(torch.nn, network)
    state = {name: torch.from_numpy(a) for name, a in network.state_dict().items()}
    if any(tensor.dtype == torch.float64 for tensor in state.values()):
        module.double()
    module.load_state_dict(state)
    return module.train(network.training)


def _torch_layer(torch_nn: Any, layer: nn.Layer) -> Any:
    if isinstance(layer, nn.Sequential):
        inner = [(name, _torch_layer(torch_nn, part)) for name, part in layer._layers.items()]
        return torch_nn.Sequential(OrderedDict(inner))
    if isinstance(layer, nn.Conv2d):
        return torch_nn.Conv2d(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,
            layer.dilation, layer.groups, layer.bias is not None,
        )  # fmt: skip
    if isinstance(layer, nn.Linear):
        return torch_nn.Linear(*reversed(layer.weight.shape), bias=layer.bias is not None)
    if isinstance(layer, nn.BatchNorm2d):
        return torch_nn.BatchNorm2d(layer.num_features, layer.eps, layer.momentum)
    if isinstance(layer, nn.MaxPool2d):
        return torch_nn.MaxPool2d(layer.kernel_size, layer.stride, layer.padding)
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        return torch_nn.AdaptiveAvgPool2d(layer.output_size)
    if isinstance(layer, nn.Dropout):
        return torch_nn.Dropout(layer.p)
    if isinstance(layer, nn.Flatten):
        return torch_nn.Flatten()
    if isinstance(layer, nn.ReLU):
        return torch_nn.ReLU()
    if isinstance(layer, nn.ReLU6):
        return torch_nn.ReLU6()
    if isinstance(layer, models.BasicBlock | models.InvertedResidual):
        return _torch_block(torch_nn, layer)
    raise TypeError(f"there is no translation of {type(layer).__name__} into PyTorch")


def _torch_block(torch_nn: Any, block: models.BasicBlock | models.InvertedResidual) -> Any:
    class BasicBlock(torch_nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
            y += self.downsample(x) if hasattr(self, "downsample") else x
            return self.relu2(y)

    class InvertedResidual(torch_nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return x + self.conv(x) if self.residual else self.conv(x)

    if isinstance(block, models.InvertedResidual):
        module = InvertedResidual()
        module.residual = block.residual
    else:
        module = BasicBlock()
    for name, part in block._layers.items():
        module.add_module(name, _torch_layer(torch_nn, part))
    return module


def onnx_model(network: nn.Layer, x_shape: tuple[int, ...], dtype: str) -> bytes:
    """The network in inference mode as an ONNX model, from ``"x"`` to ``"y"``.

    Raises
    ------
    TypeError
        It holds a layer that nobody has written down here.
    """
    onnx: Any = importlib.import_module("onnx")
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = _Graph(onnx, np.dtype(dtype))
    last = graph.layer(network, "x")
    nodes = [*graph.nodes, onnx.helper.make_node("Identity", [last], ["y"])]
    value = onnx.helper.make_tensor_value_info
    made = onnx.helper.make_graph(
        nodes, "network", [value("x", kind, x_shape)], [value("y", kind, None)], graph.constants
    )
    opset = onnx.helper.make_opsetid("", 17)
    model = onnx.helper.make_model(made, ir_version=8, opset_imports=[opset])
    serialized: bytes = model.SerializeToString()
    return serialized


class _Graph:
    """Nodes and constants of an ONNX model, layer by layer."""

    def __init__(self, onnx: Any, dtype: np.dtype[Any]) -> None:
        self._helper, self._numpy_helper, self._dtype = onnx.helper, onnx.numpy_helper, dtype
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def layer(self, layer: nn.Layer, x: str) -> str:
        """Add a layer that takes the value `x`; the name of what it gives."""
        if isinstance(layer, nn.Sequential):
            for part in layer:
                x = self.layer(part, x)
            return x
        if isinstance(layer, models.BasicBlock):
            y = self._chain([layer.conv1, layer.bn1, layer.relu1, layer.conv2, layer.bn2], x)
            side = x if layer.downsample is None else self.layer(layer.downsample, x)
            return self.layer(layer.relu2, self._node("Add", [y, side]))
        if isinstance(layer, models.InvertedResidual):
            y = self.layer(layer.conv, x)
            return self._node("Add", [y, x]) if layer.residual else y
        if isinstance(layer, nn.Conv2d):
            (top, bottom), (left, right) = _sides(layer)
            return self._node(
                "Conv",
                [x, *self._arrays(layer.weight, layer.bias)],
                pads=[top, left, bottom, right],
                strides=list(layer.stride),
                dilations=list(layer.dilation),
                group=layer.groups,
            )
        if isinstance(layer, nn.BatchNorm2d):
            state = (layer.weight, layer.bias, layer.running_mean, layer.running_var)
            return self._node("BatchNormalization", [x, *self._arrays(*state)], epsilon=layer.eps)
        if isinstance(layer, nn.Linear):
            return self._node("Gemm", [x, *self._arrays(layer.weight, layer.bias)], transB=1)
        if isinstance(layer, nn.MaxPool2d):
            size, stride, pad = (
                list(value) if isinstance(value, tuple) else [value] * 2
                for value in (layer.kernel_size, layer.stride, layer.padding)
            )
            return self._node("MaxPool", [x], kernel_shape=size, strides=stride, pads=pad * 2)
        if isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size == 1:
            return self._node("GlobalAveragePool", [x])
        if isinstance(layer, nn.ReLU6):
            low, high = self._arrays(self._dtype.type(0), self._dtype.type(6))
            return self._node("Clip", [x, low, high])
        if isinstance(layer, nn.ReLU):
            return self._node("Relu", [x])
        if isinstance(layer, nn.Flatten):
            return self._node("Flatten", [x])
        if isinstance(layer, nn.Dropout):
            return x
        raise TypeError(f"there is no translation of {type(layer).__name__} into ONNX")

    def _chain(self, layers: list[nn.Layer], x: str) -> str:
        for layer in layers:
            x = self.layer(layer, x)
        return x

    def _node(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        output = f"v{len(self.nodes)}"
        self.nodes.append(self._helper.make_node(kind, inputs, [output], **attributes))
        return output

    def _arrays(self, *values: Any) -> list[str]:
        names = []
        for value in values:
            if value is not None:
                names.append(f"c{len(self.constants)}")
                array = np.ascontiguousarray(value).reshape(np.shape(value))
                self.constants.append(self._numpy_helper.from_array(array, names[-1]))
        return names


def _sides(layer: nn.Conv2d) -> tuple[tuple[int, int], tuple[int, int]]:
    """The padding of a convolution as ((top, bottom), (left, right))."""
    if layer.padding == "same":
        rows, columns = (
            d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)
        )
        return (rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2)
    if layer.padding == "valid":
        return (0, 0), (0, 0)
    first, second = layer.padding
    if isinstance(first, tuple):
        return first, second
    return (first, first), (second, second)
