"""Arrays in, arrays out: what dtype a call computes in, and whose arrays it gives back.

A call's arrays become NumPy arrays where they lie on the CPU (other libraries' are viewed through
DLPack, without a copy) and stay what they are on any other device. All of one call are brought to
one dtype. `Library` remembers how the results go back.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

_FLOATS = {"float16": 0, "float32": 1, "float64": 2}
_OPTIONAL = frozenset({"b", "bias", "weight", "running_mean", "running_var"})
_CPU = 1  # kDLCPU, https://dmlc.github.io/dlpack
_LARGEST_INT64 = 2**63 - 1
_F32, _F64 = np.dtype(np.float32), np.dtype(np.float64)


@dataclass(frozen=True)
class Library:
    """Where the arrays of a call came from, and so what its results must become.

    `xp` is the namespace that methods compute with, `compute` the name of the dtype they compute
    in, `result` that of what the user gets, `device` ``"cpu"`` or the device's own name, `give`
    the function that turns a NumPy result into the user's kind of array.
    """

    xp: Any
    compute: str
    result: str
    device: str = "cpu"
    place: Any = None
    give: Callable[[Any], Any] | None = None

    def finish(self, y: Any) -> Any:
        """A result as the user's kind of array, in the dtype the user is due and in C order."""
        if y is None:
            return None
        if self.xp is np:
            y = np.asarray(y, self.result, order="C")
        else:
            if self.result != self.compute:
                y = self.xp.asarray(y, dtype=getattr(self.xp, self.result))
            if hasattr(y, "contiguous"):  # PyTorch's word; the standard knows no memory layouts
                y = y.contiguous()
        return y if self.give is None else self.give(y)

    def back(self, y: Any) -> Any:
        """A result whose dtype stays as it is (indices, masks)."""
        return y if self.give is None else self.give(y)


NUMPY32 = Library(np, "float32", "float32")
NUMPY64 = Library(np, "float64", "float64")


def namespace(x: Any) -> Any:
    """The Array API namespace of `x`; PyTorch's own module, which has no such method, for it."""
    if isinstance(x, np.ndarray):
        return np
    if type(x).__module__.partition(".")[0] == "torch":
        return sys.modules["torch"]
    return x.__array_namespace__()


def is_foreign(value: Any) -> bool:
    """Whether `value` is another library's array (NumPy's own exports DLPack too)."""
    return hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray | np.generic)


def _on_cpu(value: Any) -> bool:
    try:
        if value.__dlpack_device__()[0] != _CPU:
            return False
    except (ValueError, BufferError):  # a device that DLPack has no number for
        return False
    # A library may keep devices of its own in the processor's memory (array-api-strict does, to
    # test exactly this); what came from one of those has to go back there.
    return "cpu" in str(value.device).lower()


def detached(value: Any) -> Any:
    """An array of what a course's notebook may give: a tensor without its graph, a list as NumPy's.

    None and other arrays are given back as they are. A detached tensor shares its memory.
    """
    if getattr(value, "requires_grad", False):
        return value.detach()
    known = value is None or isinstance(value, np.ndarray) or is_foreign(value)
    return value if known else np.asarray(value)


def on_host(value: Any) -> Any:
    """`value` as a NumPy array, copied only if it lies on another device (or is no array)."""
    here = view("on_host", "value", detached(value))
    return here if isinstance(here, np.ndarray) else np.asarray(here.cpu())  # PyTorch's word


def like(value: Any, example: Any) -> Any:
    """`value`, in its own dtype, as an array of `example`'s library on `example`'s device."""
    if not is_foreign(example):
        return on_host(value)
    return namespace(example).asarray(detached(value), device=example.device)


def dtype_name(x: Any) -> str:
    """``"float32"`` of a NumPy, PyTorch or any other array."""
    return x.dtype.name if isinstance(x, np.ndarray) else str(x.dtype).rpartition(".")[2]


def view(op: str, name: str, value: Any) -> Any:
    """`value` as a NumPy array, not copied if possible; as it is if it lies on another device."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{op}: {name} is a masked array; fill it first, {name}.filled(0)")
    if is_foreign(value):
        if getattr(value, "requires_grad", False):
            raise TypeError(
                f"{op}: {name} is a tensor that requires grad, which cnnfast cannot record; "
                f"pass {name}.detach()"
            )
        if not _on_cpu(value):
            return value
        # PyTorch negates lazily, and hands the numbers out as they were before.
        if getattr(value, "is_neg", bool)():
            value = value.resolve_neg()
        try:
            return np.from_dlpack(value)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise TypeError(
                f"{op}: {name} is a {type(value).__name__} of dtype {value.dtype} "
                f"that NumPy cannot view: {error}"
            ) from None
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{op}: {name} is not an array: {error}") from None


def _float_kind(op: str, name: str, x: Any) -> str:
    """The dtype that `x` counts as: its own if a float of 16 to 64 bits, else float64."""
    kind = dtype_name(x)
    if kind in _FLOATS:
        return kind
    if kind.startswith(("int", "uint", "bool")):
        return "float64"
    raise TypeError(f"{op}: {name} has dtype {kind}; real numbers of at most 64 bits are needed")


def admit(op: str, /, **named: Any) -> tuple[list[Any], Library]:
    """The arrays of a call, in one dtype, and the `Library` that takes its results back.

    Raises
    ------
    TypeError
        Complex, object, text or masked arrays; tensors that require grad; arrays of two
        libraries, or of two devices.
    """
    for known, library in ((_F32, NUMPY32), (_F64, NUMPY64)):
        for name, value in named.items():
            if type(value) is np.ndarray:
                if value.dtype is not known:
                    break
            elif value is not None or name not in _OPTIONAL:
                break
        else:
            return list(named.values()), library
    return _admit(op, named)


def _admit(op: str, named: dict[str, Any]) -> tuple[list[Any], Library]:
    arrays: dict[str, Any] = {}
    foreign: dict[str, Any] = {}
    for name, value in named.items():
        if value is None:
            if name not in _OPTIONAL:
                raise TypeError(f"{op}: {name} must be an array, not None")
            continue
        arrays[name] = view(op, name, value)
        if is_foreign(value):
            foreign[name] = value
    kinds = [_float_kind(op, name, x) for name, x in arrays.items()]
    result = max(kinds, key=_FLOATS.__getitem__)
    compute = "float32" if result == "float16" else result
    library = _library(op, arrays, foreign, compute, result)
    dtype = getattr(library.xp, compute)
    for name, x in arrays.items():
        if library.xp is np:
            arrays[name] = _cast(x, np.dtype(dtype))
        elif x.dtype != dtype:
            arrays[name] = library.xp.asarray(x, dtype=dtype)
    return [arrays.get(name) for name in named], library


def _cast(x: Any, dtype: np.dtype[Any]) -> Any:
    """`x` in that dtype; one number repeated, however often, stays one number in memory."""
    if x.dtype != dtype and x.size > 1 and not any(x.strides):
        return np.broadcast_to(x[(0,) * x.ndim].astype(dtype), x.shape)
    return np.asarray(x, dtype)


def _library(
    op: str, arrays: dict[str, Any], foreign: dict[str, Any], compute: str, result: str
) -> Library:
    if not foreign:
        return Library(np, compute, result)
    first, example = next(iter(foreign.items()))
    xp = namespace(example)
    for name, value in foreign.items():
        if namespace(value) is not xp:
            raise TypeError(
                f"{op}: {first} is a {type(example).__module__}.{type(example).__name__}, {name} a "
                f"{type(value).__module__}.{type(value).__name__}; pass arrays of one library"
            )
    on_device = {n: x for n, x in arrays.items() if not isinstance(x, np.ndarray)}
    if not on_device:
        return Library(np, compute, result, give=xp.from_dlpack)
    place = next(iter(on_device.values())).device
    for name, x in arrays.items():
        if isinstance(x, np.ndarray) or x.device != place:
            where = "on the CPU" if isinstance(x, np.ndarray) else f"on {x.device}"
            raise TypeError(f"{op}: {name} is {where}, {next(iter(on_device))} on {place}")
    return Library(xp, compute, result, str(place), place)


def integers(op: str, name: str, value: Any, library: Library) -> Any:
    """`value` as an int64 array beside the call's other arrays; floats are a TypeError."""
    x = view(op, name, value)
    if not dtype_name(x).startswith(("int", "uint")) and 0 not in x.shape:
        raise TypeError(f"{op}: {name} must be integers, not {dtype_name(x)}")
    if dtype_name(x) == "uint64" and 0 not in x.shape and int(x.max()) > _LARGEST_INT64:
        raise ValueError(f"{op}: {name} holds {int(x.max())}, more than an int64 can")
    return beside(x, library, "int64")


def booleans(op: str, name: str, value: Any, library: Library) -> Any:
    """`value` as a bool array beside the call's other arrays."""
    x = view(op, name, value)
    if dtype_name(x) != "bool":
        raise TypeError(f"{op}: {name} must be booleans, not {dtype_name(x)}")
    return beside(x, library, "bool")


def beside(x: Any, library: Library, dtype: str) -> Any:
    """`x` where the call computes: NumPy arrays go to the device of the call's other arrays."""
    if library.xp is np:
        return np.asarray(x, dtype)
    return library.xp.asarray(x, dtype=getattr(library.xp, dtype), device=library.place)


def to_update(op: str, name: str, value: Any, shape: tuple[int, ...], library: Library) -> Any:
    """`value` itself, viewed: an array of floats whose elements a call is going to change."""
    if not is_foreign(value) and not isinstance(value, np.ndarray):
        raise TypeError(f"{op}: {name} is updated in place and must be an array, not {value!r:.40}")
    x = view(op, name, value)
    if dtype_name(x) not in _FLOATS:
        raise TypeError(f"{op}: {name} is updated in place and must hold floats, not {x.dtype}")
    if tuple(x.shape) != shape:
        raise ValueError(f"{op}: {name} must have shape {shape}, not {tuple(x.shape)}")
    if library.xp is np and not isinstance(x, np.ndarray):
        raise TypeError(f"{op}: {name} is on {x.device}, x on the CPU")
    if isinstance(x, np.ndarray) and not x.flags.writeable:
        raise ValueError(f"{op}: {name} is updated in place and must be writeable")
    return x


def check_out(op: str, shape: tuple[int, ...], dtype: str, out: Any) -> None:
    """Refuse an array that a result of that shape and dtype cannot be written to."""
    if not isinstance(out, np.ndarray):
        raise TypeError(f"{op}: out must be a NumPy array, not {type(out).__name__}")
    if out.shape != shape or out.dtype != dtype:
        raise ValueError(
            f"{op}: out must have shape {shape} and dtype {dtype}, not {out.shape} and {out.dtype}"
        )
    if not out.flags.writeable:
        raise ValueError(f"{op}: out must be writeable")


def deliver(op: str, result: Any, out: Any) -> Any:
    """Write a result to the array that the user gave for it."""
    if not isinstance(result, np.ndarray):
        raise TypeError(f"{op}: out is for NumPy arrays; the result is a {type(result).__name__}")
    check_out(op, result.shape, result.dtype.name, out)
    out[...] = result
    return out
