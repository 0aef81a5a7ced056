"""Every level of the engine computes right, and never touches a byte beside its arrays.

Every case of the table runs at every instruction-set level that can be forced here, against
`cnnfast.naive`, and then with each array against a page that cannot be read or written: first
with the page after its last byte, then with the page before its first. A kernel that strays dies
of it, so the cases run in processes of their own, which say where they are.

A process is for one level and for a family of operations, whose reference and bounds it computes
once for all methods.
"""

from __future__ import annotations

import ctypes
import inspect
import math
import mmap
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import checks
import numpy as np
import pytest
from cases import CASES, FLOATS, Case

import cnnfast
from cnnfast import compiled, geometry
from cnnfast.methods import widths

PAGE = mmap.PAGESIZE
if sys.platform == "linux":
    MPROTECT = ctypes.CDLL(None, use_errno=True).mprotect
    MPROTECT.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
OPERATIONS = [op for op in CASES if set(cnnfast.methods(op)) & set(checks.ENGINE)]
FAMILIES: dict[str, str | tuple[str, ...]] = {
    "conv2d_backward": "conv2d_backward",
    "conv2d": "conv2d",
    "conv1d and transposed": ("conv1d", "conv_transpose1d", "conv_transpose2d"),
    "max_pool": "max_pool",
    "the rest": "",
}


class Zone:
    """Readable and writeable bytes between two pages that are neither."""

    def __init__(self, nbytes: int) -> None:
        self.inner = -(-max(nbytes, 1) // PAGE) * PAGE
        self.memory = mmap.mmap(-1, self.inner + 2 * PAGE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        for red in (address, address + PAGE + self.inner):
            if MPROTECT(red, PAGE, 0):
                raise OSError(ctypes.get_errno(), "mprotect")

    def array(self, shape: tuple[int, ...], dtype: Any, after: bool) -> np.ndarray:
        """An array in it that ends (or starts) at a red zone."""
        dtype = np.dtype(dtype)
        count = math.prod(shape)
        start = PAGE + (self.inner - count * dtype.itemsize if after else 0)
        return np.frombuffer(self.memory, dtype, count, start).reshape(shape)


# Zones by their size and by what is in them, made once: mapping pages costs more than the kernels.
ZONES: dict[tuple[str, int], Zone] = {}


def guarded(name: str, a: Any, after: bool) -> Any:
    """A copy of an array that ends (or starts) at a red zone; anything else as it is."""
    if not isinstance(a, np.ndarray):
        return a
    pages = -(-max(a.nbytes, 1) // PAGE)
    if (name, pages) not in ZONES:
        ZONES[name, pages] = Zone(a.nbytes)
    zone = ZONES[name, pages]
    copy = zone.array(a.shape, a.dtype, after)
    copy[...] = a
    return copy


def methods(op: str) -> list[str]:
    return [method for method in cnnfast.methods(op) if method in checks.ENGINE]


def operations(family: str) -> list[str]:
    """Those of the engine that belong to a family, which is the first that has them."""
    belongs: dict[str, str] = {}
    for name, prefixes in FAMILIES.items():
        for op in OPERATIONS:
            if op.startswith(prefixes):
                belongs.setdefault(op, name)
    return [op for op in OPERATIONS if belongs[op] == family]


def run_all(family: str, level: str, half: bool | None) -> None:
    """Every case of the operations, by every method of the engine that serves it.

    `half`: whether with vectors half as wide, if that is not left to `widths`.
    """
    assert compiled.isa() == level
    if half is not None:
        widths.half = lambda *_: half
    ran: Counter[tuple[str, str]] = Counter()
    for op in operations(family):
        for method in methods(op):
            for case in checks.served(CASES[op], method):
                for dtype in FLOATS:
                    print(case, method, np.dtype(dtype), flush=True)
                    checks.check(case, method, dtype)
                    at_the_edge(case, method, dtype)
                    ran[op, method] += 1
    print(f"{len(ran)} pairs of an operation and a method, {sum(ran.values())} runs", flush=True)
    assert set(ran) == {(op, method) for op in operations(family) for method in methods(op)}


def at_the_edge(case: Case, method: str, dtype: Any) -> None:
    """The same bits from arrays that red zones follow, and from those that they precede."""
    function = getattr(cnnfast, case.op)
    takes_out = "out" in inspect.signature(function).parameters
    with np.errstate(all="ignore"):
        # The first call is remembered, so that those below write to `out` directly.
        want = checks.as_tuple(function(**case.arguments(dtype), method=method))
    for after in (True, False):
        where = "after" if after else "before"
        print(case, method, np.dtype(dtype), where, flush=True)
        given = {k: guarded(k, v, after) for k, v in case.arguments(dtype).items()}
        if takes_out:
            results = tuple(guarded(f"result {k}", y, after) for k, y in enumerate(want))
            for result in results:
                if result is not None:
                    result[...] = checks.POISON[result.dtype.kind]
            given["out"] = results if len(results) > 1 else results[0]
        with np.errstate(all="ignore"):
            got = checks.as_tuple(function(**given, method=method))
        for a, b in zip(got, want, strict=True):
            if b is not None:
                checks.assert_same(a, b, f"{case}, {method}, red zones {where}")


needs_red_zones = pytest.mark.skipif(
    sys.platform != "linux", reason="red zones are made with Linux's mprotect"
)


def python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": str(Path(cnnfast.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )


@needs_red_zones
@pytest.mark.skipif(compiled.isa() is None, reason="there is no engine")
@pytest.mark.parametrize(
    ("level", "family", "half"),
    [
        (level, family, half)
        for level in compiled.isa_levels()
        for family in FAMILIES
        # Where there are two widths, each by itself.
        for half in ([False, True] if level == "x86-64-v4" and "conv" in family else [None])
    ],
)
def test_level(family: str, level: str, half: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNNFAST_ISA", level)
    done = python(f"import test_levels as t; t.run_all({family!r}, {level!r}, {half})")
    last = done.stdout.splitlines()[-1:] or ["nothing had run"]
    assert done.returncode == 0, f"the last case was {last[0]}\n{done.stderr[-2000:]}"
    assert " runs" in last[0]


def test_every_operation_of_the_engine_is_in_one_family() -> None:
    found = [op for family in FAMILIES for op in operations(family)]
    assert sorted(found) == sorted(OPERATIONS)


@needs_red_zones
@pytest.mark.parametrize(("after", "place"), [(True, "x.size"), (False, "-1")])
def test_a_red_zone_is_red(after: bool, place: str) -> None:
    """Reading one element beside an array kills the process; the elements themselves do not."""
    program = f"""
import ctypes, numpy as np, test_levels as t
x = t.guarded("x", np.ones(5), {after})
at = x.ctypes.data_as(ctypes.POINTER(ctypes.c_double))
print(sum(at[i] for i in range(x.size)), flush=True)
print(at[{place}], flush=True)
"""
    done = python(program)
    assert done.stdout == "5.0\n"
    assert done.returncode == -signal.SIGSEGV


@pytest.mark.parametrize(
    ("method", "product", "channels", "filters", "size", "kernel", "expected"),
    [
        ("gemm", "forward", 64, 64, 32, 3, False),
        ("gemm", "forward", 64, 64, 24, 3, True),  # 24 pixels are 3 half vectors, or 2 whole ones
        ("gemm", "backward_weights", 64, 8, 32, 3, True),  # 8 filters: half of a vector
        ("gemm", "backward_weights", 256, 256, 14, 1, False),
        ("gemm", "backward_weights", 16, 96, 14, 1, True),
        ("winograd", "forward", 64, 8, 32, 3, True),
        ("winograd", "forward", 64, 64, 24, 3, False),
        ("winograd", "backward_weights", 64, 64, 24, 3, False),
        ("winograd", "backward_weights", 8, 64, 24, 3, True),
        ("direct", "backward_weights", 3, 64, 32, 3, True),
        ("depthwise", "forward", 32, 32, 28, 3, False),  # a row in two vectors
        ("depthwise", "forward", 32, 32, 56, 3, True),
        ("depthwise", "backward_input", 32, 32, 7, 3, True),
    ],
)
def test_half_the_width_where_lanes_would_be_wasted(
    method: str, product: str, channels: int, filters: int, size: int, kernel: int, expected: bool
) -> None:
    groups = channels if method == "depthwise" else 1
    shapes = (1, channels, size, size), (filters, channels // groups, kernel, kernel)
    g = geometry.convolution("conv2d", 2, *shapes, 1, kernel // 2, 1, groups)
    assert widths.half(method, product, g, double=False) is expected
