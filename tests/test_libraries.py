"""Arrays of other libraries: on the CPU they use the same kernels, elsewhere the portable method.

Results come back as the library's arrays, on the device the arguments were on. The devices of
array-api-strict, which are in the processor's memory but behave as if they were not, stand for
devices that no machine of the tests has; a CUDA device is used where there is one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import checks
import numpy as np
import pytest
from cases import CASES, FLOATS, Case, find

import cnnfast
from cnnfast import arrays, dispatch

try:
    import torch
except ImportError:
    torch = None

try:
    import array_api_strict as strict
except ImportError:
    strict = None

try:
    import jax

    jax.config.update("jax_enable_x64", True)
except ImportError:
    jax = None

needs_torch = pytest.mark.skipif(torch is None, reason="PyTorch is not installed")
needs_strict = pytest.mark.skipif(strict is None, reason="array-api-strict is not installed")
needs_jax = pytest.mark.skipif(jax is None, reason="JAX is not installed")
needs_cuda = pytest.mark.skipif(
    torch is None or not torch.cuda.is_available(), reason="there is no CUDA device"
)


@dataclass(frozen=True)
class Kind:
    """A library on a device: how arrays get there and back, and what proves that they are there."""

    name: str
    there: Callable[[np.ndarray], Any]
    back: Callable[[Any], np.ndarray]
    owns: Callable[[Any], bool]
    updates: bool = True


TORCH = Kind(
    "torch",
    lambda a: torch.from_numpy(a.copy()),
    lambda t: t.numpy(),
    lambda t: type(t) is torch.Tensor and t.device.type == "cpu",
)
STRICT = Kind(
    "array-api-strict",
    lambda a: strict.asarray(a.copy()),
    lambda a: np.from_dlpack(a),
    lambda a: isinstance(a, type(strict.asarray(0))) and "CPU" in str(a.device),
)
JAX = Kind(
    "jax",
    lambda a: jax.numpy.asarray(a),
    np.asarray,
    lambda a: isinstance(a, jax.Array),
    updates=False,
)
STRICT_ELSEWHERE = Kind(
    "array-api-strict, device1",
    lambda a: strict.asarray(a.copy(), device=strict.Device("device1")),
    lambda a: np.from_dlpack(a.to_device(strict.Device("CPU_DEVICE"))),
    lambda a: a.device == strict.Device("device1"),
)
CUDA = Kind(
    "torch, cuda",
    lambda a: torch.from_numpy(a.copy()).to("cuda"),
    lambda t: t.cpu().numpy(),
    lambda t: t.device.type == "cuda",
)


def _pairs(*kinds: tuple[Kind, pytest.MarkDecorator]) -> list[Any]:
    """Every operation with every kind of array; of a kind that is not there, one, to say so."""
    return [
        pytest.param(kind, op, marks=needed, id=f"{kind.name}-{op}")
        for kind, needed in kinds
        for op in (list(CASES)[:1] if needed.args[0] else CASES)
    ]


def _some(op: str) -> list[Case]:
    """A handful of the cases of an operation, with all of its options among them."""
    chosen: dict[tuple[Any, ...], Case] = {}
    for case in CASES[op]:
        if "width" not in case.name and "length" not in case.name:
            chosen.setdefault((*sorted(case.options), case.draw), case)
    return list(chosen.values())[:8]


def _there(kind: Kind, arguments: dict[str, Any]) -> dict[str, Any]:
    return {k: kind.there(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}


def check(case: Case, kind: Kind, method: str, ran_method: str, dtype: Any) -> None:
    """As `checks.check`, for another library's arrays."""
    arguments = case.arguments(dtype)
    given = _there(kind, arguments)
    with cnnfast.trace() as ran, np.errstate(all="ignore"):
        result = getattr(cnnfast, case.op)(**given, method=method)
    assert ran == [dispatch.Ran(case.op, ran_method)], f"{case}: {ran}"
    in_place = checks.updated(case.op, given)
    got = checks.as_tuple(result) + in_place
    wanted = checks.expected(case, dtype)
    assert len(got) == len(wanted)
    for k, (y, want, scale) in enumerate(zip(got, wanted, checks.scales(case), strict=True)):
        what = f"{case}, {kind.name}, method {method}, {np.dtype(dtype)}, result {k}"
        if want is None or isinstance(want, float):
            assert type(y) is type(want), what
        else:
            assert kind.owns(y), f"{what}: {type(y)}"
            y = kind.back(y)
            assert y.dtype == (dtype if want.dtype.kind == "f" else want.dtype), what
        if want is not None:
            checks.assert_close(y, want, scale, dtype, what)
    for name, value in arguments.items():
        if isinstance(value, np.ndarray) and not any(given[name] is a for a in in_place):
            checks.assert_same(kind.back(given[name]), value, f"{case}: {name} was changed")


@pytest.mark.parametrize(
    ("kind", "op"), _pairs((TORCH, needs_torch), (STRICT, needs_strict), (JAX, needs_jax))
)
def test_on_the_cpu_the_same_kernels_run(kind: Kind, op: str) -> None:
    for case in _some(op):
        for dtype in FLOATS:
            if checks.updated(op, case.arguments()) and not kind.updates:
                continue
            best = cnnfast.explain(op, **case.arguments(dtype)).method
            check(case, kind, "auto", best, dtype)


@pytest.mark.parametrize(
    ("kind", "op"), _pairs((STRICT_ELSEWHERE, needs_strict), (CUDA, needs_cuda))
)
def test_elsewhere_the_portable_method_runs(kind: Kind, op: str) -> None:
    for case in _some(op):
        for dtype in FLOATS:
            check(case, kind, "auto", "portable", dtype)


@needs_strict
@pytest.mark.parametrize("op", CASES)
def test_portable_needs_the_least_of_the_standard(op: str) -> None:
    """No shape may depend on values, and no array be indexed by a boolean one."""
    with strict.ArrayAPIStrictFlags(boolean_indexing=False, data_dependent_shapes=False):
        for case in _some(op)[:3]:
            check(case, STRICT_ELSEWHERE, "portable", "portable", np.float64)


@needs_torch
@pytest.mark.parametrize("op", CASES)
def test_portable_computes_with_torch_itself(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's functions in place of NumPy's, as they run for its tensors on other devices."""
    monkeypatch.setattr(arrays, "_on_cpu", lambda value: False)
    for case in _some(op):
        for dtype in FLOATS:
            check(case, TORCH, "portable", "portable", dtype)


@needs_strict
@pytest.mark.parametrize("method", ["im2col", "toeplitz", "naive"])
def test_other_methods_refuse_other_devices(method: str) -> None:
    x = strict.ones((1, 2, 4, 4), device=strict.Device("device1"))
    w = strict.ones((3, 2, 2, 2), device=strict.Device("device1"))
    with pytest.raises(cnnfast.MethodError, match=r"conv2d: .*device1"):
        cnnfast.conv2d(x, w, method=method)
    explanation = cnnfast.explain("conv2d", x, w)
    assert explanation.method == "portable" and "device1" in explanation.device
    assert "device1" in explanation.rejected[method]


@needs_torch
def test_shapes_on_a_device_without_memory() -> None:
    """Tensors of the meta device have no elements, so this is the path and nothing else."""
    x = torch.ones((2, 3, 8, 8), device="meta")
    y = cnnfast.conv2d(x, torch.ones((4, 3, 3, 3), device="meta"), padding=1, stride=2)
    assert y.device.type == "meta" and y.shape == (2, 4, 4, 4)
    assert cnnfast.avg_pool2d(x, 2).shape == (2, 3, 4, 4)


@needs_torch
def test_cpu_tensors_are_viewed_not_copied() -> None:
    t = torch.arange(6.0)
    view = arrays.view("relu", "x", t)
    assert np.shares_memory(view, t.numpy())
    y = cnnfast.relu(t)
    y[0] = 7
    assert t[0] == 0


@needs_torch
@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.to(memory_format=torch.channels_last),
        lambda t: t.flip(3).flip(3),
        lambda t: torch.nn.functional.pad(t, (1, 1, 1, 1))[:, :, 1:-1, 1:-1],
        lambda t: t.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        lambda t: torch.nn.Parameter(t, requires_grad=False),
        lambda t: t.clone().requires_grad_().detach(),
    ],
    ids=["channels last", "flipped", "sliced", "transposed", "parameter", "detached"],
)
def test_tensors_of_any_layout(change: Callable[[Any], Any]) -> None:
    case = find("conv2d", "groups")
    arguments = case.arguments()
    given = {k: torch.from_numpy(v) if hasattr(v, "shape") else v for k, v in arguments.items()}
    y = cnnfast.conv2d(**{**given, "x": change(given["x"])})
    assert type(y) is torch.Tensor and y.is_contiguous()
    checks.assert_close(
        y.numpy(), checks.expected(case, np.float64)[0], checks.scales(case)[0], np.float64, "torch"
    )


@needs_torch
@pytest.mark.parametrize(
    ("dtype", "due"),
    [
        ("float16", "float16"),
        ("float32", "float32"),
        ("float64", "float64"),
        ("int8", "float64"),
        ("uint8", "float64"),
        ("int64", "float64"),
        ("bool", "float64"),
    ],
)
def test_dtypes_of_tensors(dtype: str, due: str) -> None:
    x = torch.ones((1, 1, 3, 3)).to(getattr(torch, dtype))
    for y in (cnnfast.avg_pool2d(x, 2), cnnfast.conv2d(x, x), cnnfast.relu(x)):
        assert type(y) is torch.Tensor and y.dtype == getattr(torch, due)


@needs_torch
def test_tensors_and_arrays_together_give_tensors() -> None:
    x, w = np.ones((1, 2, 4, 4)), np.ones((3, 2, 2, 2))
    for a, b in (
        (torch.from_numpy(x), w),
        (x, torch.from_numpy(w)),
        (x.tolist(), torch.ones(w.shape)),
    ):
        y = cnnfast.conv2d(a, b)
        assert type(y) is torch.Tensor and y.dtype == torch.float64
        assert (y == 8).all()
    y, indices = cnnfast.max_pool2d(torch.from_numpy(x), 2, return_indices=True)
    assert type(indices) is torch.Tensor and indices.dtype == torch.int64
    # Indices and labels may be NumPy's too.
    assert type(cnnfast.max_pool2d_backward(y, indices.numpy(), x.shape)) is torch.Tensor
    loss, dscores = cnnfast.cross_entropy(torch.zeros((2, 3)), np.array([0, 2]))
    assert type(loss) is float and type(dscores) is torch.Tensor
    y, mask = cnnfast.dropout(torch.ones(9), rng=np.random.default_rng(0), return_mask=True)
    assert mask.dtype == torch.bool and ((y == 0) == ~mask).all()


# What is refused


@needs_torch
def test_tensors_that_require_grad() -> None:
    x, w = torch.ones((1, 2, 4, 4)), torch.ones((3, 2, 2, 2))
    for name, arguments in {
        "x": (x.clone().requires_grad_(), w),
        "w": (x, w.clone().requires_grad_()),
        "b": (x, w, torch.ones(3, requires_grad=True)),
    }.items():
        with pytest.raises(
            TypeError, match=rf"^conv2d: {name} .*requires grad.*{name}\.detach\(\)"
        ):
            cnnfast.conv2d(*arguments)
    with pytest.raises(TypeError, match=r"^relu: x .*detach\(\)"):
        cnnfast.relu(torch.nn.Parameter(torch.ones(3)))
    with pytest.raises(TypeError, match=r"^batch_norm: running_mean .*detach\(\)"):
        cnnfast.batch_norm(
            torch.ones((2, 3)), torch.zeros(3, requires_grad=True), torch.ones(3), training=True
        )


@needs_torch
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.ones(3, dtype=torch.bfloat16),
        lambda: torch.ones(3, dtype=torch.complex64),
        lambda: torch.ones((3, 3)).to_sparse(),
    ],
    ids=["bfloat16", "complex", "sparse"],
)
def test_tensors_that_numpy_cannot_view(make: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match=r"^relu: x "):
        cnnfast.relu(make())


@needs_torch
@needs_strict
def test_arrays_of_two_libraries() -> None:
    x, w = torch.ones((1, 2, 4, 4)), strict.ones((3, 2, 2, 2))
    with pytest.raises(
        TypeError, match=r"^conv2d: x is a torch\.Tensor, w a array_api_strict.*one"
    ):
        cnnfast.conv2d(x, w)
    with pytest.raises(TypeError, match=r"^batch_norm: .*pass arrays of one library"):
        cnnfast.batch_norm(torch.ones((2, 3)), strict.zeros(3), strict.ones(3))


@needs_strict
def test_arrays_on_two_devices() -> None:
    here = strict.ones((1, 2, 4, 4))
    there = strict.ones((3, 2, 2, 2), device=strict.Device("device1"))
    with pytest.raises(TypeError, match=r"^conv2d: x is on the CPU, w on .*device1"):
        cnnfast.conv2d(here, there)
    with pytest.raises(TypeError, match=r"^conv2d: .* on "):
        cnnfast.conv2d(np.ones((1, 2, 4, 4)), there)
    other = strict.ones((1, 2, 4, 4), device=strict.Device("device2"))
    with pytest.raises(TypeError, match=r"^conv2d: .*device1.*device2|^conv2d: .*device2.*device1"):
        cnnfast.conv2d(other, there)
    with pytest.raises(TypeError, match=r"^batch_norm: x is on the CPU, running_mean on .*device1"):
        running = strict.ones(3, device=strict.Device("device1"))
        cnnfast.batch_norm(np.ones((2, 3)), running, running, training=True)


@needs_strict
def test_bad_arguments_are_refused_on_any_device() -> None:
    def ones(*shape: int, dtype: Any = None) -> Any:
        return strict.ones(shape, device=strict.Device("device1"), dtype=dtype)

    with pytest.raises(ValueError, match="conv2d: w has 2 input channels, x has 3"):
        cnnfast.conv2d(ones(1, 3, 4, 4), ones(1, 2, 2, 2))
    with pytest.raises(TypeError, match="relu: x has dtype complex128"):
        cnnfast.relu(ones(3, dtype=strict.complex128))
    with pytest.raises(ValueError, match="max_pool2d_backward: indices run from 1 to 1"):
        cnnfast.max_pool2d_backward(
            ones(1, 1, 1, 1), ones(1, 1, 1, 1, dtype=strict.int64), (1, 1, 1, 1)
        )
    with pytest.raises(ValueError, match="cross_entropy: labels run from 1 to 1"):
        cnnfast.cross_entropy(ones(2, 1), ones(2, dtype=strict.int64))
    with pytest.raises(TypeError, match="cross_entropy: labels must be integers"):
        cnnfast.cross_entropy(ones(2, 1), ones(2))


@needs_torch
@pytest.mark.parametrize("op", ["relu", "conv2d", "batch_norm", "max_pool2d_backward"])
def test_calls_leave_the_arguments_alone(op: str) -> None:
    case = CASES[op][0]
    given = {
        k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v
        for k, v in case.arguments().items()
    }
    before = copy.deepcopy(given)
    getattr(cnnfast, op)(**given)
    for name, value in before.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(given[name], value)


def test_a_tensor_that_is_negated_lazily() -> None:
    torch = pytest.importorskip("torch")
    x = torch.complex(torch.zeros(2), torch.tensor([1.0, -2.0])).conj().imag
    assert x.is_neg()
    assert cnnfast.relu(x).tolist() == [0.0, 2.0]
