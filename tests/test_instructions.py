"""Kernels take no more instructions than they did: counted by valgrind, which noise does not reach.

`instructions.json` has the counts of each level and the compiler that made them. After a change
that is meant to cost some, renew the figures of a level with::

    CNNFAST_ISA=x86-64-v3 python tests/test_instructions.py
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cnnfast import compiled

FIGURES = Path(__file__).with_name("instructions.json")
ALLOWED = 1.05

# What is counted, and how the functions that do the work begin.
KERNELS = {
    "conv2d 3x3 and 1x1, gemm": "gemm_",
    "conv2d 1x1, gemm": "gemm_blocks_",
    "conv2d 3x3, blocked": "blocked_",
    "conv2d 3x3, winograd": "winograd_",
    "conv2d 3x3, depthwise": "depthwise_",
    "max_pool2d 2x2": "pool_",
    "batch_norm": "norm_",
}

PROGRAM = """
import numpy as np
import cnnfast
x, w = np.ones((2, 32, 14, 14), np.float32), np.ones((32, 32, 3, 3), np.float32)
cnnfast.conv2d(x, w, padding=1, method="gemm")
cnnfast.conv2d(x, w, padding=1, method="winograd")
v = np.ones((64, 128, 1, 1), np.float32)
cnnfast.conv2d(np.ones((2, 128, 7, 7), np.float32), v, method="gemm")
channels = {"groups": 32, "padding": 1}
cnnfast.nn.Sequential(*(cnnfast.nn.Conv2d(32, 32, 3, **channels) for _ in range(3))).eval()(x)
x = np.ones((2, 16, 28, 28), np.float32)
cnnfast.conv2d(x, w[:16, :1].copy(), padding=1, groups=16, method="depthwise")
cnnfast.max_pool2d(x, 2, method="engine")
cnnfast.batch_norm(x, None, None, training=True, method="engine")
"""


def counted(level: str, folder: Path) -> dict[str, int]:
    """Instructions of each kernel, without what it calls outside of the engine."""
    out = folder / "callgrind.out"
    environment = {
        **os.environ,
        "CNNFAST_ISA": level,
        "CNNFAST_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": str(Path(compiled.__file__).parents[1]),
    }
    done = subprocess.run(
        [
            *("valgrind", "--tool=callgrind", f"--callgrind-out-file={out}"),
            *(sys.executable, "-c", PROGRAM),
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    functions = in_the_engine(out.read_text())
    return {
        kernel: sum(cost for name, cost in functions.items() if name.startswith(prefix))
        for kernel, prefix in KERNELS.items()
    }


def in_the_engine(text: str) -> Counter[str]:
    """Instructions by function of the engine's own, out of what callgrind wrote.

    The format is that of the manual's "Callgrind Format Specification": names are numbered, and
    said once; a line of costs that follows ``calls=`` is the callee's.
    """
    names: dict[tuple[str, str], str] = {}

    def name(kind: str, reference: str) -> str:
        number, _, said = reference.partition(" ")
        return names.setdefault((kind, number), said)

    costs: Counter[str] = Counter()
    place = function = ""
    of_a_callee = False
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if key in ("ob", "cob"):
            found = name("object", value)
            place = found if key == "ob" else place
        elif key in ("fn", "cfn"):
            found = name("function", value)
            function = found if key == "fn" else function
        elif key == "calls":
            of_a_callee = True
        elif re.match(r"[-+*\d]", line):
            if not of_a_callee and "_engine." in place:
                costs[function] += int(line.split()[-1])
            of_a_callee = False
    return costs


def compiler() -> str:
    """What compiled the engine in use, by its own words in the library."""
    found = re.search(rb"(GCC: \([^)]*\) [\d.]+|clang version [\d.]+)", _library().read_bytes())
    return found.group(1).decode() if found else ""


def _library() -> Path:
    return Path(str(compiled.engine().__file__))


def test_costs_are_read_as_callgrind_writes_them() -> None:
    text = """events: Ir
ob=(1) /usr/lib/libc.so.6
fn=(1) malloc
5 100
ob=(2) /x/_engine.abi3.so
fn=(2) gemm_run
+3 7
cob=(1)
cfn=(1)
calls=2 5
* 9000
+1 10
fn=(3) winograd_run
1 1
calls=1 0
1 50
fn=(2)
-2 5
"""
    assert in_the_engine(text) == {"gemm_run": 22, "winograd_run": 1}


def figures() -> dict[str, Any]:
    return json.loads(FIGURES.read_text()) if FIGURES.exists() else {}


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="there is no valgrind")
@pytest.mark.skipif(compiled.isa() is None, reason="there is no engine")
def test_no_kernel_takes_more_instructions_than_it_did(tmp_path: Path) -> None:
    known = figures()
    # valgrind knows AVX2, but not AVX-512.
    level = next((a for a in compiled.isa_levels() if a in known and a != "x86-64-v4"), None)
    if level is None:
        pytest.skip("no level of this machine has figures")
    if compiler() != known[level]["compiler"]:
        pytest.skip(f"the engine is from {compiler()}, the figures from {known[level]['compiler']}")
    now = counted(level, tmp_path)
    assert set(now) == set(known[level]["instructions"])
    assert all(now.values()), f"a kernel's functions were not found: {now}"
    more = {
        kernel: f"{now[kernel]} instructions, {before} before"
        for kernel, before in known[level]["instructions"].items()
        if now[kernel] > ALLOWED * before
    }
    assert not more, f"if that is meant, run: CNNFAST_ISA={level} python {Path(__file__).name}"


if __name__ == "__main__":
    import tempfile

    level = compiled.isa() or "none"
    with tempfile.TemporaryDirectory() as folder:
        new = {"compiler": compiler(), "instructions": counted(level, Path(folder))}
    FIGURES.write_text(json.dumps({**figures(), level: new}, indent=2) + "\n")
    print(json.dumps(new, indent=2))
