"""ONNX's own tests of the operators that we have, run through a small reading of its attributes.

The node tests are made by the modules of ``onnx.backend.test.case.node``; the converted models lie
in that package's data. Nothing is downloaded.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import cnnfast

onnx = pytest.importorskip("onnx")

# What the operators here are called, and the modules that make their node tests.
MODULES = {
    "Conv": "conv",
    "ConvTranspose": "convtranspose",
    "MaxPool": "maxpool",
    "AveragePool": "averagepool",
    "GlobalAveragePool": "globalaveragepool",
    "GlobalMaxPool": "globalmaxpool",
    "BatchNormalization": "batch_normalization",
    "Gemm": "gemm",
    "Softmax": "softmax",
    "LogSoftmax": "logsoftmax",
    "Relu": "relu",
    "LeakyRelu": "leakyrelu",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Col2Im": "col2im",
}

# How many of the tests are served at least, so that none falls out unnoticed.
LEAST = {
    "Conv": 6,
    "ConvTranspose": 10,
    "MaxPool": 15,
    "AveragePool": 13,
    "GlobalAveragePool": 2,
    "GlobalMaxPool": 2,
    "BatchNormalization": 4,
    "Gemm": 11,
    "Softmax": 7,
    "LogSoftmax": 7,
    "Relu": 1,
    "LeakyRelu": 3,
    "Sigmoid": 2,
    "Tanh": 2,
    "Col2Im": 4,
}


# Whose expected values were copied from a print with four digits.
PRINTED = {"test_averagepool_2d_ceil_last_window_starts_on_pad"}


class Example(NamedTuple):
    """A model with inputs and the outputs that it must give."""

    name: str
    model: Any
    inputs: list[np.ndarray]
    outputs: list[np.ndarray]

    @property
    def opset(self) -> int:
        return max(o.version for o in self.model.opset_import if o.domain in ("", "ai.onnx"))


class NotClaimed(Exception):
    """The example asks for what cnnfast does not have; the message says what."""


Attributes = dict[str, Any]


def _pads(attributes: Attributes, sizes: Any, kernel: Any) -> list[tuple[int, int]]:
    """Zeros before and after each axis."""
    ndim = len(kernel)
    mode = attributes.get("auto_pad", b"NOTSET")
    if mode in (b"NOTSET", b"VALID"):
        pads = attributes.get("pads", [0] * 2 * ndim) if mode == b"NOTSET" else [0] * 2 * ndim
        return list(zip(pads[:ndim], pads[ndim:], strict=True))
    totals = [
        max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
        for n, k, s, d in zip(sizes, kernel, *_steps(attributes, ndim), strict=True)
    ]
    return _halves(totals, mode == b"SAME_UPPER")


def _halves(totals: list[int], more_behind: bool) -> list[tuple[int, int]]:
    halves = [(total // 2, total - total // 2) for total in totals]
    return halves if more_behind else [(behind, before) for before, behind in halves]


def _steps(attributes: Attributes, ndim: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Strides and dilations."""
    ones = [1] * ndim
    return tuple(attributes.get("strides", ones)), tuple(attributes.get("dilations", ones))


def _call(name: str, ndim: int) -> Callable[..., Any]:
    if ndim not in (1, 2):
        raise NotClaimed(f"{ndim} axes")
    return getattr(cnnfast, f"{name}{ndim}d")


def conv(attributes: Attributes, opset: int, x: Any, w: Any, b: Any = None) -> Any:
    stride, dilation = _steps(attributes, x.ndim - 2)
    padding = _pads(attributes, x.shape[2:], w.shape[2:])
    groups = attributes.get("group", 1)
    return _call("conv", x.ndim - 2)(x, w, b, stride, padding, dilation, groups)


def conv_transpose(attributes: Attributes, opset: int, x: Any, w: Any, b: Any = None) -> Any:
    ndim = x.ndim - 2
    stride, dilation = _steps(attributes, ndim)
    extra = list(attributes.get("output_padding", [0] * ndim))
    mode = attributes.get("auto_pad", b"NOTSET")
    full = [
        (n - 1) * s + d * (k - 1) + 1 + e
        for n, s, d, k, e in zip(x.shape[2:], stride, dilation, w.shape[2:], extra, strict=True)
    ]
    wanted = attributes.get("output_shape")
    if wanted is None and mode in (b"SAME_UPPER", b"SAME_LOWER"):
        wanted = [n * s for n, s in zip(x.shape[2:], stride, strict=True)]
    if wanted is None:
        padding = _pads(attributes, None, w.shape[2:])
    else:
        totals = [n - m for n, m in zip(full, wanted, strict=True)]
        # Too small a result is enlarged at the end.
        extra = [e + max(0, -total) for e, total in zip(extra, totals, strict=True)]
        padding = _halves([max(0, total) for total in totals], mode == b"SAME_UPPER")
    groups = attributes.get("group", 1)
    call = _call("conv_transpose", ndim)
    return call(x, w, b, stride, padding, tuple(extra), groups, dilation)


def max_pool(attributes: Attributes, opset: int, x: Any) -> Any:
    ndim, kernel = x.ndim - 2, tuple(attributes["kernel_shape"])
    stride, dilation = _steps(attributes, ndim)
    padding = _pads(attributes, x.shape[2:], kernel)
    ceil_mode = attributes.get("ceil_mode", 0)
    call = _call("max_pool", ndim)
    y, indices = call(x, kernel, stride, padding, dilation, ceil_mode, return_indices=True)
    if attributes.get("storage_order"):  # columns first
        H, W = x.shape[2:]
        indices = indices % W * H + indices // W
    # ONNX counts through the whole tensor, not through each image.
    planes = np.arange(prod(x.shape[:2])).reshape(*x.shape[:2], *(1,) * ndim)
    return y.astype(x.dtype), indices + planes * prod(x.shape[2:])


def average_pool(attributes: Attributes, opset: int, x: Any) -> Any:
    ndim, kernel = x.ndim - 2, tuple(attributes["kernel_shape"])
    stride, dilation = _steps(attributes, ndim)
    call = _call("avg_pool", ndim)
    if set(dilation) != {1}:
        raise NotClaimed("dilation of average pooling, which PyTorch has not either")
    padding = _pads(attributes, x.shape[2:], kernel)
    ceil_mode = attributes.get("ceil_mode", 0)
    return call(x, kernel, stride, padding, ceil_mode, attributes.get("count_include_pad", 0))


def global_average_pool(attributes: Attributes, opset: int, x: Any) -> Any:
    return _call("avg_pool", x.ndim - 2)(x, x.shape[2:])


def global_max_pool(attributes: Attributes, opset: int, x: Any) -> Any:
    return _call("max_pool", x.ndim - 2)(x, x.shape[2:])


def batch_normalization(
    attributes: Attributes, opset: int, x: Any, weight: Any, bias: Any, mean: Any, var: Any
) -> Any:
    """In training ONNX's running variance is of the batch's biased one, PyTorch's is not."""
    if x.ndim > 4:
        raise NotClaimed(f"{x.ndim - 2} axes")
    eps = attributes.get("epsilon", 1e-5)
    training = bool(attributes.get("training_mode", 0))
    y, batch_mean, rstd = cnnfast.batch_norm(
        x, mean.copy(), var.copy(), weight, bias, training, eps=eps, return_stats=True
    )
    if not training:
        return y
    keep = attributes.get("momentum", 0.9)
    batch_var = 1 / rstd.astype(float) ** 2 - eps
    var = (var * keep + batch_var * (1 - keep)).astype(var.dtype)
    return y, mean * keep + batch_mean * (1 - keep), var


def gemm(attributes: Attributes, opset: int, a: Any, b: Any, c: Any = None) -> Any:
    a = a.T if attributes.get("transA") else a
    w = b if attributes.get("transB") else b.T
    product = np.float32(attributes.get("alpha", 1)) * cnnfast.linear(a, w)
    return product if c is None else product + np.float32(attributes.get("beta", 1)) * c


def _softmax(call: Callable[..., Any]) -> Callable[..., Any]:
    def softmax(attributes: Attributes, opset: int, x: Any) -> Any:
        if opset >= 13:
            return call(x, attributes.get("axis", -1))
        # Before, everything from the axis on was one axis.
        axis = attributes.get("axis", 1) % x.ndim
        return call(x.reshape(prod(x.shape[:axis]), -1)).reshape(x.shape)

    return softmax


def leaky_relu(attributes: Attributes, opset: int, x: Any) -> Any:
    return cnnfast.leaky_relu(x, attributes.get("alpha", 0.01))


def _plain(call: Callable[..., Any]) -> Callable[..., Any]:
    return lambda attributes, opset, x: call(x)


def col2im(attributes: Attributes, opset: int, cols: Any, size: Any, kernel: Any) -> Any:
    if len(size) != 2:
        raise NotClaimed(f"{len(size)} axes")
    stride, dilation = _steps(attributes, 2)
    padding = _pads(attributes, None, kernel)
    return cnnfast.col2im(cols, size.tolist(), kernel.tolist(), stride, padding, dilation)


OPERATORS: dict[str, Callable[..., Any]] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool,
    "BatchNormalization": batch_normalization,
    "Gemm": gemm,
    "Softmax": _softmax(cnnfast.softmax),
    "LogSoftmax": _softmax(cnnfast.log_softmax),
    "Relu": _plain(cnnfast.relu),
    "LeakyRelu": leaky_relu,
    "Sigmoid": _plain(cnnfast.sigmoid),
    "Tanh": _plain(cnnfast.tanh),
    "Col2Im": col2im,
    # What the converted models need around them.
    "Unsqueeze": lambda attributes, opset, x: np.expand_dims(x, tuple(attributes["axes"])),
    "Squeeze": lambda attributes, opset, x: np.squeeze(x, tuple(attributes["axes"])),
    "Neg": lambda attributes, opset, x: -x,
    "Constant": lambda attributes, opset: onnx.numpy_helper.to_array(attributes["value"]),
}


def run(example: Example) -> list[np.ndarray]:
    """The outputs of a model, by our operations."""
    graph = example.model.graph
    values = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    given = [i.name for i in graph.input if i.name not in values]
    if len(given) != len(example.inputs):  # a test's inputs may repeat the initialisers
        given = [i.name for i in graph.input]
    values.update(zip(given, example.inputs, strict=True))
    for node in graph.node:
        if node.op_type not in OPERATORS:
            raise NotClaimed(node.op_type)
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        arguments = [values[name] if name else None for name in node.input]
        result = OPERATORS[node.op_type](attributes, example.opset, *arguments)
        result = result if isinstance(result, tuple) else (result,)
        values.update(zip(node.output, result, strict=False))
    return [values[o.name] for o in graph.output]


def compare(example: Example) -> None:
    got = run(example)
    assert len(got) == len(example.outputs)
    for y, want in zip(got, example.outputs, strict=True):
        assert y.shape == want.shape, f"{example.name}: {y.shape}, expected {want.shape}"
        assert y.dtype == want.dtype, f"{example.name}: {y.dtype}, expected {want.dtype}"
        if want.dtype.kind != "f":
            assert np.array_equal(y, want), example.name
        else:
            # ONNX's own runner allows 1e-3 of the value. Its references sum in float32 too.
            allowed = 2e-4 if example.name in PRINTED else 1e-5
            error = np.abs(y.astype(float) - want)
            assert np.all(error <= allowed * (np.abs(want) + 1)), f"{example.name}: {error.max()}"


@cache
def node_tests() -> dict[str, list[Example]]:
    """ONNX's node tests of the operators above; made once, and only when a test asks for them."""
    node = importlib.import_module("onnx.backend.test.case.node")
    state = np.random.get_state()  # noqa: NPY002 (the modules draw from the global generator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in MODULES.values():
            importlib.import_module(f"onnx.backend.test.case.node.{module}")
    np.random.set_state(state)  # noqa: NPY002
    examples: dict[str, list[Example]] = {op: [] for op in MODULES}
    for case in node._NodeTestCases:
        # Tests whose operator is written out as others are of those others.
        if "_expanded" not in case.name and case.model.graph.node[0].op_type in MODULES:
            for inputs, outputs in case.data_sets:
                example = Example(case.name, case.model, list(inputs), list(outputs))
                examples[case.model.graph.node[0].op_type].append(example)
    return examples


@pytest.mark.parametrize("op", MODULES)
def test_node(op: str) -> None:
    served, not_claimed = 0, {}
    for example in node_tests()[op]:
        try:
            compare(example)
            served += 1
        except NotClaimed as reason:
            not_claimed[example.name] = str(reason)
    assert set(not_claimed.values()) <= {
        "3 axes",
        "dilation of average pooling, which PyTorch has not either",
    }
    assert served >= LEAST[op], f"{op}: only {served} of ONNX's tests were run: {not_claimed}"


def _tensor(path: Path) -> np.ndarray:
    return onnx.numpy_helper.to_array(onnx.load_tensor(path))


@pytest.mark.parametrize("kind", ["pytorch-converted", "pytorch-operator"])
def test_converted_models(kind: str) -> None:
    """Models that PyTorch exported, with what it computed."""
    data = Path(onnx.__file__).parent / "backend" / "test" / "data" / kind
    if not data.is_dir():
        pytest.skip(f"this onnx comes without {kind}")
    served = set()
    for folder in sorted(data.iterdir()):
        model = onnx.load(folder / "model.onnx")
        operators = {node.op_type for node in model.graph.node}
        if not operators & set(MODULES) or not operators <= set(OPERATORS):
            continue
        for case in sorted(folder.glob("test_data_set_*")):
            inputs = [_tensor(path) for path in sorted(case.glob("input_*.pb"))]
            outputs = [_tensor(path) for path in sorted(case.glob("output_*.pb"))]
            if inputs[0].ndim > 4:
                continue  # three axes
            compare(Example(folder.name, model, inputs, outputs))
            served.add(folder.name)
    assert len(served) >= {"pytorch-converted": 40, "pytorch-operator": 5}[kind], served
