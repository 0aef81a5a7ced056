"""The engine's threads: the same bits however many, after a fork, and for callers at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import checks
import numpy as np
import pytest

import cnnfast
from cnnfast import compiled

pytestmark = pytest.mark.skipif(compiled.isa() is None, reason="there is no engine")

Call = Callable[[], Any]


def normal(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(len(shape) + sum(shape)).standard_normal(shape).astype(dtype)


def calls(dtype: Any) -> dict[str, Call]:
    """Calls with more work than one thread is given at a time."""
    found: dict[str, Call] = {}
    layers = {
        "3x3": ((9, 17, 20, 23), (19, 17, 3, 3), {"padding": 1}),
        "stride": ((3, 32, 31, 31), (48, 32, 3, 3), {"padding": 1, "stride": 2}),
        "1x1": ((5, 64, 14, 14), (96, 64, 1, 1), {}),
        "first": ((20, 3, 33, 31), (25, 3, 3, 3), {"padding": 1, "stride": 2}),
        "depthwise": ((4, 40, 29, 27), (40, 1, 3, 3), {"padding": 1, "groups": 40}),
        "one image": ((1, 48, 40, 40), (64, 48, 3, 3), {"padding": 1}),
        "pieces": ((3, 20, 17, 19), (33, 20, 7, 7), {"padding": 3}),
        "dilation": ((4, 17, 21, 18), (21, 17, 3, 3), {"padding": 2, "dilation": 2}),
    }
    for name, (x_shape, w_shape, options) in layers.items():
        x, w, b = (normal(*s, dtype=dtype) for s in (x_shape, w_shape, w_shape[:1]))
        dy = normal(*cnnfast.conv2d(x, w, **options).shape, dtype=dtype)
        for method in set(checks.ENGINE) & set(cnnfast.methods("conv2d")):
            try:
                cnnfast.explain("conv2d", x, w, **options, method=method)
            except cnnfast.MethodError:
                continue

            def forward(x=x, w=w, b=b, options=options, method=method) -> Any:
                return cnnfast.conv2d(x, w, b, **options, method=method)

            found[f"{name} {method}"] = forward
            for needs in "xw":
                given = {**options, "needs": needs, "method": method}
                try:
                    cnnfast.explain("conv2d_backward", dy, x, w, **given)
                except cnnfast.MethodError:
                    continue

                def backward(dy=dy, x=x, w=w, given=given) -> Any:
                    return cnnfast.conv2d_backward(dy, x, w, **given)

                found[f"{name} {method} backward by {needs}"] = backward
    x, dy = normal(32, 24, 30, 30, dtype=dtype), normal(32, 24, 30, 30, dtype=dtype)
    mean, rstd = normal(24, dtype=dtype), np.abs(normal(24, dtype=dtype))
    found["batch norm"] = lambda: cnnfast.batch_norm(
        x, None, None, training=True, return_stats=True, method="engine"
    )
    found["batch norm backward"] = lambda: cnnfast.batch_norm_backward(
        dy, x, mean, rstd, method="engine"
    )
    found["relu"] = lambda: cnnfast.relu(x, method="engine")
    found["max pool"] = lambda: cnnfast.max_pool2d(x, 3, 2, 1, return_indices=True, method="engine")
    y, indices = cnnfast.max_pool2d(x, 3, 2, 1, return_indices=True)
    found["max pool backward"] = lambda: cnnfast.max_pool2d_backward(
        y, indices, x.shape, method="engine"
    )
    found["average pool"] = lambda: cnnfast.avg_pool2d(x, 2, method="engine")
    flat, w = normal(100, 700, dtype=dtype), normal(130, 700, dtype=dtype)
    out = normal(100, 130, dtype=dtype)
    found["linear"] = lambda: cnnfast.linear(flat, w, method="engine")
    found["linear backward"] = lambda: cnnfast.linear_backward(out, flat, w, method="engine")
    return found


def bits(result: Any) -> list[bytes]:
    return [np.asarray(a).tobytes() for a in checks.as_tuple(result) if a is not None]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("N", "C", "H", "F", "K", "stride", "dilation"),
    [
        (1, 64, 14, 64, 5, 1, 1),
        (1, 64, 14, 64, 3, 1, 1),
        (1, 128, 10, 70, 3, 2, 1),
        (2, 40, 9, 260, 3, 1, 2),
        (1, 600, 12, 20, 7, 1, 1),
        (1, 20, 12, 600, 7, 1, 1),
        (3, 7, 5, 445, 6, 3, 1),
        (1, 256, 7, 256, 1, 1, 1),
        (1, 5, 40, 300, 5, 1, 1),
    ],
)
def test_the_bits_of_gemm_for_many_taps(
    N: int, C: int, H: int, F: int, K: int, stride: int, dilation: int, dtype: Any
) -> None:
    """Sums so long that they go by pieces, in few blocks or in many."""
    x, w = normal(N, C, H, H, dtype=dtype), normal(F, C, K, K, dtype=dtype)
    sliding = stride, K // 2 * dilation, dilation
    with cnnfast.threads(1):
        y = cnnfast.conv2d(x, w, None, *sliding, method="gemm")
        dy = normal(*y.shape, dtype=dtype)
        alone = bits((y, *cnnfast.conv2d_backward(dy, x, w, *sliding, method="gemm")))
    for n in (2, 3, 8):
        with cnnfast.threads(n):
            y = cnnfast.conv2d(x, w, None, *sliding, method="gemm")
            many = bits((y, *cnnfast.conv2d_backward(dy, x, w, *sliding, method="gemm")))
        assert many == alone, f"{n} threads"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_bits_do_not_depend_on_the_number_of_threads(dtype: Any) -> None:
    for name, call in calls(dtype).items():
        with cnnfast.threads(1):
            alone = bits(call())
        for n in (2, 3, 5):
            with cnnfast.threads(n):
                for _ in range(3):
                    assert bits(call()) == alone, f"{name} with {n} threads"


def test_callers_at_once() -> None:
    found = list(calls(np.float32).values())
    expected = [bits(call()) for call in found]
    with cnnfast.threads(2), ThreadPoolExecutor(6) as pool:

        def one(i: int) -> bool:
            with cnnfast.threads(1 + i % 3):
                return bits(found[i % len(found)]()) == expected[i % len(found)]

        assert all(pool.map(one, range(4 * len(found))))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own() -> None:
    call = calls(np.float32)["3x3 gemm"]
    with cnnfast.threads(2):
        expected = bits(call())
        child = os.fork()
        if child == 0:
            # No more than this: the child has pytest's state, but must not report for it.
            os._exit(0 if bits(call()) == expected else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert bits(call()) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_no_thread_before_it_is_needed_and_none_is_busy_when_idle() -> None:
    import subprocess

    program = """
import os, time
import numpy as np
import cnnfast
def count():
    return len(os.listdir("/proc/self/task"))
def seconds():
    return sum(os.times()[:2])
cnnfast.set_num_threads(3)
x, w = np.ones((8, 16, 40, 40), np.float32), np.ones((16, 16, 3, 3), np.float32)
before = count()
cnnfast.conv2d(x, w, method="gemm")
assert count() == before + 2, (before, count())
cnnfast.conv2d(x, w, method="gemm")
assert count() == before + 2, (before, count())
time.sleep(0.05)
used = seconds()
time.sleep(0.5)
assert seconds() - used < 0.1, seconds() - used
"""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
