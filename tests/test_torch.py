"""Every operation against PyTorch's of the same name, in float64, on listed and unlisted shapes.

PyTorch's own gradients are taken by its autograd. What PyTorch has not (padding of pooling in
pairs, dropout with a given mask) is left out by name.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import checks
import numpy as np
import pytest
from cases import CASES, Case, Options, lowest, normal, special, ties

import cnnfast

torch = pytest.importorskip("torch")
F = torch.nn.functional

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

RANDOM = 40  # cases per operation, beside those of the table


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """PyTorch's threads cost more than they bring at these sizes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _in_pairs(padding: Any) -> bool:
    return isinstance(padding, tuple | list) and any(isinstance(p, tuple | list) for p in padding)


def _surround(x: Any, pairs: Any) -> Any:
    """`x` with zeros around its last axes, or with less of them if the numbers are negative."""
    return F.pad(x, [n for pair in reversed(list(pairs)) for n in pair])


def _conv(x: Any, w: Any, b: Any = None, padding: Any = 0, **options: Any) -> Any:
    if _in_pairs(padding):
        x, padding = _surround(x, padding), 0
    return (F.conv1d if x.ndim == 3 else F.conv2d)(x, w, b, padding=padding, **options)


def _conv_transpose(x: Any, w: Any, b: Any = None, padding: Any = 0, **options: Any) -> Any:
    call = F.conv_transpose1d if x.ndim == 3 else F.conv_transpose2d
    if not _in_pairs(padding):
        return call(x, w, b, padding=padding, **options)
    return _surround(call(x, w, b, **options), [(-before, -after) for before, after in padding])


def _slices(x: Any, factor: Any) -> tuple[Any, ...]:
    factors = factor if isinstance(factor, tuple) else (factor,) * (x.ndim - 2)
    if len(factors) < x.ndim - 2:
        factors *= x.ndim - 2
    return (..., *(slice(None, None, f) for f in factors))


def _dilate(x: Any, factor: Any) -> Any:
    steps = [s.step for s in _slices(x, factor)[1:]]
    sizes = [(n - 1) * f + 1 for n, f in zip(x.shape[2:], steps, strict=True)]
    y = torch.zeros((*x.shape[:2], *sizes), dtype=x.dtype)
    y[_slices(x, factor)] = x
    return y


def _columns_back(cols: Any, output_size: Any, kernel_size: Any, **options: Any) -> Any:
    pairs = options.pop("padding", 0)
    if not _in_pairs(pairs):
        return F.fold(cols, output_size, kernel_size, padding=pairs, **options)
    padded = [n + sum(p) for n, p in zip(output_size, pairs, strict=True)]
    y = F.fold(cols, padded, kernel_size, **options)
    return _surround(y, [(-before, -after) for before, after in pairs])


def _columns(x: Any, kernel_size: Any, padding: Any = 0, **options: Any) -> Any:
    if _in_pairs(padding):
        x, padding = _surround(x, padding), 0
    return F.unfold(x, kernel_size, padding=padding, **options)


def _batch_norm(x: Any, return_stats: bool = False, **options: Any) -> Any:
    """Also the statistics, as PyTorch's own layer keeps them for the way back."""
    y = F.batch_norm(x, **options)
    if not return_stats:
        return y
    eps = options.get("eps", 1e-5)
    if options.get("training"):
        axes = (0, *range(2, x.ndim))
        return y, x.mean(axes), 1 / torch.sqrt(x.var(axes, correction=0) + eps)
    return y, options["running_mean"], 1 / torch.sqrt(options["running_var"] + eps)


def _loss(call: Callable[..., Any], scores: Any, target: Any, **options: Any) -> Any:
    scores = scores.requires_grad_()
    loss = call(scores, target, **options)
    loss.backward()
    return loss.item(), scores.grad


_FORWARD: dict[str, Callable[..., Any]] = {
    **{
        f"{op}{n}d": call
        for n in (1, 2)
        for op, call in (
            ("conv", _conv),
            ("conv_transpose", _conv_transpose),
            ("dilate", _dilate),
            ("subsample", lambda x, factor: x[_slices(x, factor)]),
        )
    },
    "max_pool1d": lambda x, **options: F.max_pool1d(x, **options),
    "max_pool2d": lambda x, **options: F.max_pool2d(x, **options),
    "avg_pool1d": lambda x, **options: F.avg_pool1d(x, **options),
    "avg_pool2d": lambda x, **options: F.avg_pool2d(x, **options),
    "im2col": _columns,
    "col2im": _columns_back,
    "batch_norm": _batch_norm,
    "relu": lambda x, **options: F.relu(x, **options),
    "leaky_relu": lambda x, **options: F.leaky_relu(x, **options),
    "sigmoid": lambda x: torch.sigmoid(x),
    "tanh": lambda x: torch.tanh(x),
    "softmax": lambda x, axis=-1: F.softmax(x, dim=axis),
    "log_softmax": lambda x, axis=-1: F.log_softmax(x, dim=axis),
    "linear": lambda x, w, b=None: F.linear(x, w, b),
    "cross_entropy": lambda scores, labels, **options: _loss(
        F.cross_entropy, scores, labels, **options
    ),
    # The courses' loss is not divided by the number of classes.
    "multi_margin_loss": lambda scores, labels, **options: _loss(
        lambda *a, **k: scores.shape[1] * F.multi_margin_loss(*a, **k), scores, labels, **options
    ),
    "mse_loss": lambda pred, target: _loss(F.mse_loss, pred, target),
}


def _tensors(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        k: torch.from_numpy(v.copy()) if isinstance(v, np.ndarray) else v
        for k, v in arguments.items()
    }


def _gradients(case: Case, given: dict[str, Any]) -> tuple[Any, ...]:
    """By autograd, from the forward pass that a backward case belongs to."""
    if case.op == "dropout_backward":
        return (torch.ops.aten.native_dropout_backward(
            given["dy"], given["mask"], 1 / (1 - given["p"])
        ),)  # fmt: skip
    if case.forward is not None:
        arguments = _tensors(case.forward.arguments())
        arguments.update({k: v for k, v in given.items() if k in arguments})
        arguments.pop("return_indices", None)
    else:
        arguments = {k: v for k, v in given.items() if k != "dy"}
    wanted = [k for k in ("x", "w", "b") if isinstance(arguments.get(k), torch.Tensor)]
    for name in wanted:
        arguments[name] = arguments[name].requires_grad_()
    y = _FORWARD[case.op.removesuffix("_backward")](**arguments)
    y.backward(given["dy"])
    grads = {name: arguments[name].grad for name in wanted}
    if not case.op.startswith(("conv", "linear")):
        return (grads["x"],)
    if "b" not in grads:
        channels = 1 if case.op.startswith("conv") else given["dy"].ndim - 1
        grads["b"] = given["dy"].sum([i for i in range(given["dy"].ndim) if i != channels])
    needs = case.options.get("needs", "xwb")
    return tuple(grads[name] if name in needs else None for name in "xwb")


def _missing(case: Case) -> str | None:
    """Why PyTorch cannot say what is right."""
    options = {**(case.forward.options if case.forward else {}), **case.options}
    padding = options.get("padding", 0)
    if "pool" in case.op and _in_pairs(padding):
        return "no padding in pairs"
    if case.op.startswith("max_pool2d") and isinstance(padding, tuple):
        kernel = options["kernel_size"]
        kernel = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        if any(p > k // 2 for p, k in zip(padding, kernel, strict=True)):
            return "no padding over half the taps, however far dilation spreads them"
    if case.op == "dropout" or options.get("p") == 1.0:
        return "no dropout with a given mask"
    if (
        case.op.startswith("max_pool")
        and (checks.expected(case.forward or case, np.float64)[-1] == -1).any()
    ):
        return "no index for a window of nothing: its way back writes outside the image"
    if case.op == "batch_norm_backward":
        return "no statistics but the batch's: tested below"
    if case.name == "batch 0, training":
        return "no statistics of nothing but NaN"
    return None


def _compare(case: Case) -> None:
    arguments = case.arguments()
    given = _tensors(arguments)
    if case.op.endswith("_backward"):
        wanted = _gradients(case, given)
    else:
        wanted = checks.as_tuple(_FORWARD[case.op](**given))
        wanted += checks.updated(case.op, given)
    with np.errstate(all="ignore"):
        got = checks.as_tuple(getattr(cnnfast, case.op)(**arguments))
    got += checks.updated(case.op, arguments)
    assert len(got) == len(wanted)
    for k, (y, want, scale) in enumerate(zip(got, wanted, checks.scales(case), strict=True)):
        what = f"{case}, result {k}: ours against PyTorch's"
        if want is None:
            assert y is None, what
        else:
            want = want.detach().numpy() if isinstance(want, torch.Tensor) else np.asarray(want)
            checks.assert_close(y, want, 2 * np.asarray(scale), np.float64, what)


@pytest.mark.parametrize("op", CASES)
def test_table(op: str) -> None:
    compared = 0
    for case in CASES[op]:
        if _missing(case) is None:
            _compare(case)
            compared += 1
    assert compared or op in ("dropout", "batch_norm_backward")


def test_gradients_of_batch_norm() -> None:
    for case in CASES["batch_norm_backward"]:
        arguments = case.arguments()
        x, dy, weight = arguments["x"], arguments["dy"], arguments.get("weight")
        if not x.size:
            continue
        axes = (0, *range(2, x.ndim))
        arguments["mean"], arguments["rstd"] = x.mean(axes), 1 / np.sqrt(x.var(axes) + 1e-3)
        scale = np.ones(x.shape[1]) if weight is None else weight
        tensors = [torch.from_numpy(a.copy()).requires_grad_() for a in (x, scale, 0 * scale)]
        y = F.batch_norm(tensors[0], None, None, *tensors[1:], training=True, eps=1e-3)
        y.backward(torch.from_numpy(dy))
        got = cnnfast.batch_norm_backward(**arguments)
        scales = checks.SCALES[case.op](arguments)
        for k, (ours, theirs, bound) in enumerate(zip(got, tensors, scales, strict=True)):
            # PyTorch's statistics have an error of their own, which the gradient repeats.
            bound = 8 * x.size * (np.asarray(bound) + np.max(bound))
            checks.assert_close(ours, theirs.grad.numpy(), bound, np.float64, f"{case}, {k}")


# Shapes that nobody listed


def _ints(rng: np.random.Generator, low: int, high: int, ndim: int) -> tuple[int, ...]:
    return tuple(int(n) for n in rng.integers(low, high, ndim, endpoint=True))


def _random_conv(rng: np.random.Generator, ndim: int) -> tuple[dict[str, Any], Options]:
    groups = int(rng.integers(1, 4))
    inner, outer = _ints(rng, 1, 4, 2)
    kernel, dilation = _ints(rng, 1, 5, ndim), _ints(rng, 1, 3, ndim)
    padding: Any = _ints(rng, 0, 4, ndim)
    least = [
        max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)
    ]
    size = tuple(n + int(rng.integers(0, 9)) for n in least)
    stride = _ints(rng, 1, 4, ndim)
    if rng.random() < 0.2:
        padding, stride = "same", (1,) * ndim
    F_, C = groups * outer, groups * inner
    shapes = {"x": (int(rng.integers(0, 4)), C, *size), "w": (F_, inner, *kernel), "b": (F_,)}
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return shapes, options


def _random_transposed(rng: np.random.Generator, ndim: int) -> tuple[dict[str, Any], Options]:
    groups = int(rng.integers(1, 4))
    inner, outer = _ints(rng, 1, 4, 2)
    kernel, dilation = _ints(rng, 1, 5, ndim), _ints(rng, 1, 3, ndim)
    stride = _ints(rng, 1, 4, ndim)
    extra = tuple(int(rng.integers(0, max(s, d))) for s, d in zip(stride, dilation, strict=True))
    size = _ints(rng, 1, 6, ndim)
    full = [
        (n - 1) * s + d * (k - 1) + 1 + e
        for n, s, d, k, e in zip(size, stride, dilation, kernel, extra, strict=True)
    ]
    padding = tuple(int(rng.integers(0, (n - 1) // 2 + 1)) for n in full)
    C = groups * inner
    shapes = {
        "x": (int(rng.integers(0, 4)), C, *size),
        "w": (C, outer, *kernel),
        "b": (groups * outer,),
    }
    options = {
        "stride": stride,
        "padding": padding,
        "output_padding": extra,
        "groups": groups,
        "dilation": dilation,
    }
    return shapes, options


def _random_pool(
    rng: np.random.Generator, ndim: int, largest: bool
) -> tuple[dict[str, Any], Options]:
    kernel = _ints(rng, 1, 5, ndim)
    dilation = _ints(rng, 1, 3, ndim) if largest else (1,) * ndim
    # PyTorch counts half of the window's own size, without its dilation.
    padding = tuple(int(rng.integers(0, k // 2 + 1)) for k in kernel)
    least = [
        max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)
    ]
    shape = (*_ints(rng, 1, 3, 2), *(n + int(rng.integers(0, 12)) for n in least))
    options: Options = {
        "kernel_size": kernel,
        "stride": None if rng.random() < 0.2 else _ints(rng, 1, 5, ndim),
        "padding": padding,
        "ceil_mode": bool(rng.integers(2)),
    }
    if largest:
        return {"x": shape}, {**options, "dilation": dilation}
    options["count_include_pad"] = bool(rng.integers(2))
    if ndim == 2 and rng.random() < 0.2:
        options["divisor_override"] = int(rng.integers(1, 9))
    return {"x": shape}, options


def _random(op: str) -> Iterator[Case]:
    """Forward and backward cases of shapes and options drawn at random, the same in every run."""
    rng = np.random.default_rng(zlib.crc32(op.encode()))
    for k in range(RANDOM):
        name = f"random {k}"
        if "pool" in op:
            largest = op.startswith("max")
            shapes, options = _random_pool(rng, 1 if "1d" in op else 2, largest)
            draw = (normal, ties, special, lowest)[k % 4] if largest else normal
            if largest:
                options["return_indices"] = True
            forward = Case(op, name, shapes, options, draw)
            rest = {k: v for k, v in options.items() if not largest}
            yield forward
            rest["input_shape"] = shapes["x"]
            yield Case(f"{op}_backward", name, {}, rest, forward=forward)
        else:
            make = _random_transposed if "transpose" in op else _random_conv
            shapes, options = make(rng, 1 if "1d" in op else 2)
            forward = Case(op, name, shapes, options)
            yield forward
            arrays = {k: v for k, v in shapes.items() if k != "b"}
            yield Case(f"{op}_backward", name, arrays, options, forward=forward)


_SLIDING = [
    f"{op}{n}d" for op in ("conv", "conv_transpose", "max_pool", "avg_pool") for n in (1, 2)
]


@pytest.mark.parametrize("op", _SLIDING)
def test_random_shapes(op: str) -> None:
    cases = [case for case in _random(op) if _missing(case) is None]
    assert len(cases) > RANDOM
    for case in cases:
        _compare(case)


# Where the words, not the numbers, have to agree


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("conv1d", F.conv1d),
        ("conv2d", F.conv2d),
        ("conv_transpose1d", F.conv_transpose1d),
        ("conv_transpose2d", F.conv_transpose2d),
    ],
)
def test_arguments_come_in_the_same_order(ours: str, theirs: Any) -> None:
    """By position: stride 2, padding 1, then what each calls next."""
    n = 1 if "1d" in ours else 2
    x, w = np.ones((1, 4, *(9,) * n)), np.ones((4, 2, *(3,) * n))
    positional = (2, 1, 1, 2, 2) if "transpose" in ours else (2, 1, 2, 2)
    b = np.arange(4.0)
    got = getattr(cnnfast, ours)(x, w, b, *positional)
    want = theirs(*map(torch.from_numpy, (x, w, b)), *positional)
    assert np.array_equal(got, want.numpy())


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_pooling_arguments_come_in_the_same_order(ceil_mode: bool) -> None:
    x = np.arange(2 * 49.0).reshape(1, 2, 7, 7)
    t = torch.from_numpy(x)
    y, indices = cnnfast.max_pool2d(x, 2, 3, 1, 2, ceil_mode, True)
    want, places = torch.nn.functional.max_pool2d(t, 2, 3, 1, 2, ceil_mode, True)
    assert np.array_equal(y, want.numpy()) and np.array_equal(indices, places.numpy())
    for include in (False, True):
        got = cnnfast.avg_pool2d(x, 3, 2, 1, ceil_mode, include, 4)
        assert np.array_equal(got, F.avg_pool2d(t, 3, 2, 1, ceil_mode, include, 4).numpy())
        got = cnnfast.avg_pool1d(x[0], 2, 3, 1, ceil_mode, include)
        assert np.array_equal(got, F.avg_pool1d(t[0], 2, 3, 1, ceil_mode, include).numpy())


def test_what_pytorch_refuses_we_refuse() -> None:
    x, t = np.ones((1, 2, 6, 6)), torch.ones((1, 2, 6, 6))
    w, v = np.ones((2, 2, 3, 3)), torch.ones((2, 2, 3, 3))
    for ours, theirs in (
        (lambda: cnnfast.max_pool2d(x, 3, padding=2), lambda: F.max_pool2d(t, 3, padding=2)),
        (lambda: cnnfast.avg_pool2d(x, 3, padding=2), lambda: F.avg_pool2d(t, 3, padding=2)),
        (
            lambda: cnnfast.conv_transpose2d(x, w, output_padding=1),
            lambda: F.conv_transpose2d(t, v, output_padding=1),
        ),
        (
            lambda: cnnfast.conv2d(x, w, stride=2, padding="same"),
            lambda: F.conv2d(t, v, stride=2, padding="same"),
        ),
        (lambda: cnnfast.conv2d(x, w, dilation=3), lambda: F.conv2d(t, v, dilation=3)),
        (lambda: cnnfast.conv2d(x, w, groups=2), lambda: F.conv2d(t, v, groups=2)),
        (lambda: cnnfast.max_pool2d(x, 7), lambda: F.max_pool2d(t, 7)),
        (
            lambda: cnnfast.batch_norm(x[:, :, 0, 0], None, None, training=True),
            lambda: F.batch_norm(t[:, :, 0, 0], None, None, training=True),
        ),
    ):
        with pytest.raises((RuntimeError, ValueError)):
            theirs()
        with pytest.raises(ValueError, match=": "):
            ours()
