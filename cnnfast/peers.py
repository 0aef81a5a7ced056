"""The same operations in other libraries, for comparing values and times.

A peer turns one call of ``cnnfast.functional`` into a function without arguments that does the
same work with the other library. Everything that is not the work itself (copies into the
library's own memory, building a model) happens before that function exists. A call that a peer
cannot make raises `Unsupported` with the reason.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from cnnfast.networks import Task

__all__ = ["PEERS", "Peer", "Unsupported", "missing", "open_peer", "version"]

Args = Mapping[str, Any]
Work = Callable[[], Any]
Arrays = tuple[np.ndarray[Any, Any], ...]

# Each peer with the packages it needs.
PEERS: dict[str, tuple[str, ...]] = {
    "torch": ("torch",),
    "onnxruntime": ("onnxruntime", "onnx"),
    "scipy": ("scipy",),
}


class Unsupported(Exception):
    """The peer has no such operation; the message is one sentence."""


class Peer(Protocol):
    """Another library that can do some of the operations."""

    def prepare(self, op: str, args: Args) -> Work:
        """A function that does the work of ``cnnfast.functional``'s `op` once."""
        ...

    def arrays(self, result: Any) -> Arrays:
        """The outputs of that function as NumPy arrays, what was not computed left out."""
        ...

    def network(self, task: Task) -> tuple[Work, Callable[[], Arrays]]:
        """A function that does the task once, and one that gives its results from the start.

        The results are those of ``cnnfast.networks.prepare``.
        """
        ...


def missing(name: str) -> str | None:
    """None where the peer can be used, else one sentence that says what it lacks."""
    if name not in PEERS:
        return f"{name!r} is no peer; there are {', '.join(PEERS)}"
    lacking = [package for package in PEERS[name] if importlib.util.find_spec(package) is None]
    if lacking:
        packages = " and ".join(lacking)
        return f"the peer {name} needs {packages} (pip install {' '.join(lacking)})"
    return None


def version(name: str) -> str:
    """The version of an installed peer."""
    return importlib.metadata.version(PEERS[name][0])


def open_peer(name: str, threads: int | None = None) -> Peer:
    """The peer of that name, its library imported and set to `threads` threads.

    Raises
    ------
    ValueError
        If there is no such peer.
    ImportError
        If it is not installed.
    """
    reason = missing(name)
    if reason is not None:
        raise ValueError(reason) if name not in PEERS else ImportError(reason)
    if name == "torch":
        return Torch(threads)
    if name == "onnxruntime":
        return OnnxRuntime(threads)
    return Scipy()


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, Sequence):
        return int(value[0]), int(value[-1])
    return int(value), int(value)


def _sides(padding: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """Numeric padding of two axes as ((top, bottom), (left, right))."""
    if isinstance(padding, Sequence) and isinstance(padding[0], Sequence):
        return _pair(padding[0]), _pair(padding[1])
    rows, columns = _pair(padding)
    return (rows, rows), (columns, columns)


def _has_pairs(padding: Any) -> bool:
    return not isinstance(padding, (int, str)) and any(isinstance(p, Sequence) for p in padding)


class Torch:
    """PyTorch on the CPU, eager, without autograd where a direct call of the kernel exists."""

    def __init__(self, threads: int | None = None) -> None:
        torch: Any = importlib.import_module("torch")
        self._torch = torch
        if threads is not None:
            torch.set_num_threads(threads)

    def arrays(self, result: Any) -> Arrays:
        parts = result if isinstance(result, tuple) else (result,)
        return tuple(part.detach().numpy() for part in parts if part is not None)

    def prepare(self, op: str, args: Args) -> Work:
        torch = self._torch
        tensors = {
            name: self._tensor(value) if isinstance(value, np.ndarray) else value
            for name, value in args.items()
        }
        make = getattr(self, "_" + re.sub(r"[12]d(?=_|$)", "", op), None)
        if make is None:
            raise Unsupported(f"PyTorch has no {op}")
        work: Work = make(tensors, 1 if "1d" in op else 2)

        def run() -> Any:
            with torch.no_grad():
                return work()

        return run

    def network(self, task: Task) -> tuple[Work, Callable[[], Arrays]]:
        from cnnfast.networks import LEARNING_RATE, MOMENTUM
        from cnnfast.peer_networks import torch_module

        torch = self._torch
        module, x = torch_module(task.network), self._tensor(task.x)
        if not task.trains:

            def infer() -> Any:
                with torch.inference_mode():
                    return module(x)

            return infer, lambda: self.arrays(infer())

        labels = self._tensor(task.labels)
        params = list(module.parameters())
        optimizer = torch.optim.SGD(params, LEARNING_RATE, MOMENTUM)

        def step() -> Any:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(module(x), labels)
            loss.backward()
            optimizer.step()
            return loss

        def outcome() -> Arrays:
            loss = step()
            flat = (
                torch.cat([t.flatten() for t in ts]) for ts in ([p.grad for p in params], params)
            )
            return self.arrays((loss, *flat))

        return step, outcome

    def _tensor(self, array: np.ndarray[Any, Any]) -> Any:
        native = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
        return self._torch.from_numpy(native.copy()).clone()

    def _gradients(
        self, forward: Callable[..., Any], inputs: Sequence[Any], dy: Any | None
    ) -> tuple[Any, ...]:
        """Gradients by autograd, of a forward pass made anew."""
        torch = self._torch
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in inputs]
            grads: tuple[Any, ...] = torch.autograd.grad(forward(*leaves), leaves, dy)
        return grads

    def _pad(self, x: Any, padding: Any, value: float) -> Any:
        flat = [side for pair in reversed(padding) for side in pair]
        return self._torch.nn.functional.pad(x, flat, value=value)

    # Convolution.

    def _conv(self, t: dict[str, Any], ndim: int) -> Work:
        function = getattr(self._torch.nn.functional, f"conv{ndim}d")
        x, w, b, rest = t["x"], t["w"], t.get("b"), _geometry(t)
        padding = t.get("padding", 0)
        if _has_pairs(padding):
            return lambda: function(self._pad(x, padding, 0.0), w, b, padding=0, **rest)
        return lambda: function(x, w, b, padding=padding, **rest)

    def _conv_backward(self, t: dict[str, Any], ndim: int) -> Work:
        dy, x, w = t["dy"], t["x"], t["w"]
        padding, needs = t.get("padding", 0), t.get("needs", "xwb")
        rest = _geometry(t)
        if isinstance(padding, str) or _has_pairs(padding):
            forward = getattr(self._torch.nn.functional, f"conv{ndim}d")

            def by_autograd() -> tuple[Any, ...]:
                def convolve(x: Any, w: Any, b: Any) -> Any:
                    if isinstance(padding, str):
                        return forward(x, w, b, padding=padding, **rest)
                    return forward(self._pad(x, padding, 0.0), w, b, padding=0, **rest)

                grads = self._gradients(convolve, (x, w, w.new_zeros(w.shape[0])), dy)
                return tuple(g for name, g in zip("xwb", grads, strict=True) if name in needs)

            return by_autograd
        return self._convolution_backward(t, ndim, w.shape[0], False, [0] * ndim)

    def _convolution_backward(
        self, t: dict[str, Any], ndim: int, outputs: int, transposed: bool, extra: list[int]
    ) -> Work:
        backward = self._torch.ops.aten.convolution_backward
        dy, x, w, needs = t["dy"], t["x"], t["w"], t.get("needs", "xwb")
        stride, padding, dilation = (
            _axes(t.get(name, default), ndim)
            for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))
        )
        mask = [name in needs for name in "xwb"]
        groups = t.get("groups", 1)
        options = (stride, padding, dilation, transposed, extra, groups, mask)
        if all(mask):
            return lambda: backward(dy, x, w, [outputs], *options)

        def asked_for() -> tuple[Any, ...]:
            # oneDNN computes gradients that the mask left out.
            grads = backward(dy, x, w, [outputs], *options)
            return tuple(g for g, wanted in zip(grads, mask, strict=True) if wanted)

        return asked_for

    def _conv_transpose(self, t: dict[str, Any], ndim: int) -> Work:
        function = getattr(self._torch.nn.functional, f"conv_transpose{ndim}d")
        padding = t.get("padding", 0)
        if _has_pairs(padding):
            raise Unsupported("PyTorch's transposed convolution pads both sides alike")
        x, w, b, rest = t["x"], t["w"], t.get("b"), _geometry(t)
        extra = t.get("output_padding", 0)
        return lambda: function(x, w, b, padding=padding, output_padding=extra, **rest)

    def _conv_transpose_backward(self, t: dict[str, Any], ndim: int) -> Work:
        if _has_pairs(t.get("padding", 0)):
            raise Unsupported("PyTorch's transposed convolution pads both sides alike")
        outputs = t["w"].shape[1] * t.get("groups", 1)
        extra = _axes(t.get("output_padding", 0), ndim)
        return self._convolution_backward(t, ndim, outputs, True, extra)

    def _im2col(self, t: dict[str, Any], ndim: int) -> Work:
        unfold = self._torch.nn.functional.unfold
        rest = {name: t[name] for name in ("stride", "dilation") if name in t}
        x, k, padding = t["x"], t["kernel_size"], t.get("padding", 0)
        if _has_pairs(padding):
            return lambda: unfold(self._pad(x, padding, 0.0), k, **rest)
        return lambda: unfold(x, k, padding=padding, **rest)

    def _col2im(self, t: dict[str, Any], ndim: int) -> Work:
        if _has_pairs(t.get("padding", 0)):
            raise Unsupported("PyTorch's fold pads both sides alike")
        fold = self._torch.nn.functional.fold
        rest = {name: t[name] for name in ("stride", "padding", "dilation") if name in t}
        return lambda: fold(t["cols"], t["output_size"], t["kernel_size"], **rest)

    # Pooling.

    def _max_pool(self, t: dict[str, Any], ndim: int) -> Work:
        function = getattr(self._torch.nn.functional, f"max_pool{ndim}d")
        names = ("stride", "padding", "dilation", "ceil_mode", "return_indices")
        rest = {name: t[name] for name in names if name in t}
        x, k = t["x"], t["kernel_size"]
        _check_pool_padding(t, ndim)
        return lambda: function(x, k, **rest)

    def _max_pool_backward(self, t: dict[str, Any], ndim: int) -> Work:
        _check_pool_padding(t, ndim)
        backward = self._torch.ops.aten.max_pool2d_with_indices_backward
        k = t["kernel_size"]
        stride = t.get("stride")
        sizes = [_axes(k, ndim), _axes(k if stride is None else stride, ndim)]
        sizes += [_axes(t.get("padding", 0), ndim), _axes(t.get("dilation", 1), ndim)]
        dy, x, indices, ceil_mode = t["dy"], t["x"], t["indices"], t.get("ceil_mode", False)
        if ndim == 2:
            return lambda: backward(dy, x, *sizes, ceil_mode, indices)
        # PyTorch has the kernel for two axes only: rows of height 1.
        dy, x, indices = (array.unsqueeze(-2) for array in (dy, x, indices))
        sizes = [[idle, *size] for idle, size in zip((1, 1, 0, 1), sizes, strict=True)]
        return lambda: backward(dy, x, *sizes, ceil_mode, indices).squeeze(-2)

    def _avg_pool(self, t: dict[str, Any], ndim: int) -> Work:
        function = getattr(self._torch.nn.functional, f"avg_pool{ndim}d")
        names = ("stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
        rest = {name: t[name] for name in names if name in t}
        x, k = t["x"], t["kernel_size"]
        _check_pool_padding(t, ndim)
        return lambda: function(x, k, **rest)

    def _avg_pool_backward(self, t: dict[str, Any], ndim: int) -> Work:
        _check_pool_padding(t, ndim)
        if ndim == 1:
            x = t["dy"].new_zeros(t["input_shape"])
            return lambda: self._gradients(
                lambda x: self._avg_pool({**t, "x": x}, ndim)(), (x,), t["dy"]
            )
        backward = self._torch.ops.aten.avg_pool2d_backward
        k = t["kernel_size"]
        stride = t.get("stride")
        sizes = [_axes(k, 2), _axes(k if stride is None else stride, 2)]
        sizes.append(_axes(t.get("padding", 0), 2))
        rest = [t.get("ceil_mode", False), t.get("count_include_pad", True)]
        rest.append(t.get("divisor_override"))
        dy = t["dy"]
        x = t["x"] if "x" in t else dy.new_zeros(t["input_shape"])
        return lambda: backward(dy, x, *sizes, *rest)

    # Normalisation and the rest.

    def _batch_norm(self, t: dict[str, Any], ndim: int) -> Work:
        function = self._torch.native_batch_norm
        running = [t["running_mean"], t["running_var"]]
        training, count = t.get("training", False), 3 if t.get("return_stats") else 1
        momentum, eps = t.get("momentum", 0.1), t.get("eps", 1e-5)
        if count == 3 and not training:
            raise Unsupported("PyTorch gives statistics when training only")

        def work() -> Any:
            stats = [None if r is None else r.clone() for r in running]
            args = (t["x"], t.get("weight"), t.get("bias"), *stats, training, momentum, eps)
            return function(*args)[:count]

        return work

    def _batch_norm_backward(self, t: dict[str, Any], ndim: int) -> Work:
        backward = self._torch.ops.aten.native_batch_norm_backward
        dy, x, weight = t["dy"], t["x"], t.get("weight")
        if weight is None:
            weight = x.new_ones(x.shape[1])
        mean, rstd, mask = t["mean"], t["rstd"], [True] * 3
        return lambda: backward(dy, x, weight, None, None, mean, rstd, True, 0.0, mask)

    def _relu(self, t: dict[str, Any], ndim: int) -> Work:
        return lambda: self._torch.relu(t["x"])

    def _relu_backward(self, t: dict[str, Any], ndim: int) -> Work:
        return lambda: self._torch.ops.aten.threshold_backward(t["dy"], t["x"], 0)

    def _leaky_relu(self, t: dict[str, Any], ndim: int) -> Work:
        slope = t.get("negative_slope", 0.01)
        return lambda: self._torch.nn.functional.leaky_relu(t["x"], slope)

    def _leaky_relu_backward(self, t: dict[str, Any], ndim: int) -> Work:
        return lambda: self._gradients(
            lambda x: self._leaky_relu({**t, "x": x}, ndim)(), (t["x"],), t["dy"]
        )

    def _sigmoid(self, t: dict[str, Any], ndim: int) -> Work:
        return lambda: self._torch.sigmoid(t["x"])

    def _sigmoid_backward(self, t: dict[str, Any], ndim: int) -> Work:
        return lambda: self._gradients(self._torch.sigmoid, (t["x"],), t["dy"])

    def _tanh(self, t: dict[str, Any], ndim: int) -> Work:
        return lambda: self._torch.tanh(t["x"])

    def _tanh_backward(self, t: dict[str, Any], ndim: int) -> Work:
        return lambda: self._gradients(self._torch.tanh, (t["x"],), t["dy"])

    def _softmax(self, t: dict[str, Any], ndim: int) -> Work:
        return lambda: self._torch.softmax(t["x"], t.get("axis", -1))

    def _softmax_backward(self, t: dict[str, Any], ndim: int) -> Work:
        backward = self._torch.ops.aten._softmax_backward_data
        dy, y = t["dy"], t["y"]
        return lambda: backward(dy, y, t.get("axis", -1), y.dtype)

    def _log_softmax(self, t: dict[str, Any], ndim: int) -> Work:
        return lambda: self._torch.log_softmax(t["x"], t.get("axis", -1))

    def _log_softmax_backward(self, t: dict[str, Any], ndim: int) -> Work:
        backward = self._torch.ops.aten._log_softmax_backward_data
        dy, y = t["dy"], t["y"]
        return lambda: backward(dy, y, t.get("axis", -1), y.dtype)

    def _linear(self, t: dict[str, Any], ndim: int) -> Work:
        return lambda: self._torch.nn.functional.linear(t["x"], t["w"], t.get("b"))

    def _linear_backward(self, t: dict[str, Any], ndim: int) -> Work:
        dy, x, w, needs = t["dy"], t["x"], t["w"], t.get("needs", "xwb")
        rows = dy.reshape(-1, w.shape[0])
        gradients: dict[str, Work] = {
            "x": lambda: dy @ w,
            "w": lambda: rows.T @ x.reshape(-1, w.shape[1]),
            "b": lambda: rows.sum(0),
        }
        return lambda: tuple(make() for name, make in gradients.items() if name in needs)

    def _cross_entropy(self, t: dict[str, Any], ndim: int) -> Work:
        smoothing = t.get("label_smoothing", 0.0)
        function = self._torch.nn.functional.cross_entropy
        return self._loss(
            t["scores"], lambda s: function(s, t["labels"], label_smoothing=smoothing)
        )

    def _multi_margin_loss(self, t: dict[str, Any], ndim: int) -> Work:
        # PyTorch divides by the number of classes, the courses' SVM loss does not.
        function, classes = self._torch.nn.functional.multi_margin_loss, t["scores"].shape[1]
        margin = t.get("margin", 1.0)
        return self._loss(t["scores"], lambda s: classes * function(s, t["labels"], margin=margin))

    def _mse_loss(self, t: dict[str, Any], ndim: int) -> Work:
        function = self._torch.nn.functional.mse_loss
        return self._loss(t["pred"], lambda pred: function(pred, t["target"]))

    def _loss(self, scores: Any, loss: Callable[[Any], Any]) -> Work:
        return lambda: (loss(scores), *self._gradients(loss, (scores,), None))


def _axes(value: Any, ndim: int) -> list[int]:
    """One number per axis, as PyTorch's kernels want them."""
    numbers = list(value) if isinstance(value, Sequence) else [value]
    return numbers * ndim if len(numbers) == 1 else numbers


def _check_pool_padding(t: Args, ndim: int) -> None:
    padding = t.get("padding", 0)
    if _has_pairs(padding):
        raise Unsupported("PyTorch's pooling pads both sides alike")
    sizes = zip(_axes(t["kernel_size"], ndim), _axes(padding, ndim), strict=True)
    if any(2 * pad > size for size, pad in sizes):
        raise Unsupported("PyTorch pads by half the kernel at most, dilated or not")


def _geometry(t: Args) -> dict[str, Any]:
    return {name: t[name] for name in ("stride", "dilation", "groups") if name in t}


class OnnxRuntime:
    """ONNX Runtime on the CPU: a model of one node, its weights packed when it is loaded."""

    def __init__(self, threads: int | None = None) -> None:
        onnxruntime: Any = importlib.import_module("onnxruntime")
        self._runtime = onnxruntime
        self._plane = 1
        self._settings = onnxruntime.SessionOptions()
        self._settings.log_severity_level = 4
        self._settings.inter_op_num_threads = 1
        if threads is not None:
            self._settings.intra_op_num_threads = threads

    def arrays(self, result: Any) -> Arrays:
        y, *indices = result
        # ONNX counts through the whole batch, PyTorch and cnnfast within each image's channel.
        return (y, *(i % self._plane for i in indices))

    def prepare(self, op: str, args: Args) -> Work:
        onnx: Any = importlib.import_module("onnx")
        helper, numpy_helper = onnx.helper, onnx.numpy_helper
        kinds = {"conv2d": "Conv", "max_pool2d": "MaxPool", "avg_pool2d": "AveragePool"}
        if op not in kinds:
            raise Unsupported(f"ONNX Runtime has no {op}")
        (top, bottom), (left, right) = _sides(args.get("padding", 0))
        kernel = args["w"].shape[2:] if op == "conv2d" else _pair(args["kernel_size"])
        stride = args.get("stride")
        attributes: dict[str, Any] = {
            "kernel_shape": list(kernel),
            "pads": [top, left, bottom, right],
            "strides": list(_pair(stride if stride is not None else args["kernel_size"])),
        }
        if op == "conv2d":
            attributes["group"] = args.get("groups", 1)
        else:
            attributes["ceil_mode"] = int(args.get("ceil_mode", False))
        if op == "avg_pool2d":
            attributes["count_include_pad"] = int(args.get("count_include_pad", True))
        else:
            attributes["dilations"] = list(_pair(args.get("dilation", 1)))
        x = np.ascontiguousarray(args["x"])
        self._plane = x.shape[2] * x.shape[3]
        kind = helper.np_dtype_to_tensor_dtype(x.dtype)
        weights = [name for name in ("w", "b") if args.get(name) is not None]
        outputs = ["y", "indices"] if args.get("return_indices") else ["y"]
        node = helper.make_node(kinds[op], ["x", *weights], outputs, **attributes)
        graph = helper.make_graph(
            [node],
            op,
            [helper.make_tensor_value_info("x", kind, x.shape)],
            [
                helper.make_tensor_value_info(name, dtype, None)
                for name, dtype in zip(outputs, (kind, onnx.TensorProto.INT64), strict=False)
            ],
            [numpy_helper.from_array(np.ascontiguousarray(args[name]), name) for name in weights],
        )
        model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
        session = self._session(model.SerializeToString(), f"{kinds[op]} for {x.dtype}")
        feed = {"x": x}
        return lambda: session.run(None, feed)

    def network(self, task: Task) -> tuple[Work, Callable[[], Arrays]]:
        from cnnfast.peer_networks import onnx_model

        if task.trains:
            raise Unsupported("ONNX Runtime runs networks, and trains none")
        model = onnx_model(task.network, task.x.shape, task.x.dtype.name)
        session = self._session(model, f"such network for {task.x.dtype}")
        feed = {"x": task.x}

        def infer() -> Any:
            return session.run(None, feed)

        return infer, lambda: tuple(infer())

    def _session(self, model: bytes, what: str) -> Any:
        """A model that is ready to run."""
        try:
            return self._runtime.InferenceSession(
                model, self._settings, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            if "NOT_IMPLEMENTED" in str(error) or "NotImplemented" in type(error).__name__:
                raise Unsupported(f"ONNX Runtime has no {what} on the CPU") from None
            raise


class Scipy:
    """``scipy.signal.correlate`` for each image and filter, as one would write it by hand."""

    def arrays(self, result: Any) -> Arrays:
        return (result,)

    def prepare(self, op: str, args: Args) -> Work:
        correlate = importlib.import_module("scipy.signal").correlate
        if op != "conv2d" or args.get("groups", 1) != 1 or args.get("dilation", 1) != 1:
            raise Unsupported("scipy.signal has plain convolutions only, forward")
        x, w = args["x"], args["w"]
        b = args.get("b")
        rows, columns = _pair(args.get("stride", 1))
        padding = ((0, 0), (0, 0), *_sides(args.get("padding", 0)))

        def work() -> Any:
            padded = np.pad(x, padding)
            y = np.stack(
                [
                    [correlate(image, f, mode="valid")[0, ::rows, ::columns] for f in w]
                    for image in padded
                ]
            )
            return y if b is None else y + b[:, None, None]

        return work

    def network(self, task: Task) -> tuple[Work, Callable[[], Arrays]]:
        raise Unsupported("scipy.signal knows no networks")
