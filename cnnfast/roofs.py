"""What the machine can do at most, measured: multiply-adds a second, and bytes copied a second.

A method is limited by one or the other (Williams, Waterman and Patterson, "Roofline: an insightful
visual performance model", 2009). Both are measured beside each layer, turn about with everything
else, so that a share of them holds on a machine whose speed drifts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnfast import compiled

__all__ = ["KINDS", "Roof", "Unmeasured", "measure"]

KINDS = ("fma", "copy")
"""What is measured: multiply-adds, and copied bytes."""

Array = NDArray[Any]

_SHORTEST = 1e-3  # seconds of a measurement: starting the threads must not count
_MOST_COPIED = 1 << 28


class Unmeasured(Exception):
    """There is nothing to measure it with; the message is one sentence."""


@dataclass(frozen=True)
class Roof:
    """Something to time.

    Attributes
    ----------
    work : callable
        Does it once.
    amount : float
        How many floating-point operations, or bytes read and written, that is.
    """

    work: Callable[[], Any]
    amount: float


def measure(kind: str, dtype: str, threads: int, size: int) -> Roof:
    """What to time for one of `KINDS`.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    dtype : str
        Of the multiply-adds.
    threads : int
        How many take part.
    size : int
        Bytes that a copy reads and writes in all.

    Raises
    ------
    Unmeasured
        There is nothing to measure it with.
    """
    return _fma(dtype, threads) if kind == "fma" else _copy(size, threads)


def _fma(dtype: str, threads: int) -> Roof:
    """Multiply-adds (two operations each) on numbers that never leave the registers."""
    kind = {"float32": "f32", "float64": "f64"}[dtype]
    try:
        engine: Any = compiled.engine()
    except ImportError as error:
        raise Unmeasured(str(error)) from None
    run = getattr(engine, f"peak_fma_{kind}", None)
    flops = getattr(engine, f"peak_fma_flops_{kind}", None)
    if run is None or flops is None:
        raise Unmeasured("the engine that is installed has no kernel to measure it with")
    iterations = _enough(lambda count: run(count, threads), 10_000)
    return Roof(lambda: run(iterations, threads), float(iterations * threads * flops()))


def _copy(size: int, threads: int) -> Roof:
    """Copying, where `size` bytes are read and written in all, in the fastest way there is.

    There are NumPy's copy, in one thread, and the engine's, by plain stores and by stores that go
    past the caches.
    """
    count = max(min(size, _MOST_COPIED) // 8, 1)
    source, target = np.ones(count, np.float32), np.ones(count, np.float32)
    ways: list[Callable[[], Any]] = []
    if threads == 1:
        ways.append(lambda: np.copyto(target, source))
    if compiled.engine_missing() is None and hasattr(compiled.engine(), "peak_copy_f32"):
        run: Any = compiled.engine().peak_copy_f32
        ways.append(lambda: run(source, target, False, threads))
        ways.append(lambda: run(source, target, True, threads))
    if not ways:
        raise Unmeasured("only the engine copies in several threads, and it has no such kernel")
    trials = []
    for way in ways:
        repeated = _repeated(way)
        repeats = _enough(repeated, 1)
        seconds = min(_seconds(repeated, repeats) for _ in range(3))
        trials.append((seconds / repeats, repeats, repeated))
    _, repeats, fastest = min(trials, key=lambda trial: trial[0])
    return Roof(lambda: fastest(repeats), float(2 * source.nbytes * repeats))


def _repeated(work: Callable[[], Any]) -> Callable[[int], None]:
    def run(count: int) -> None:
        for _ in range(count):
            work()

    return run


def _enough(work: Callable[[int], Any], count: int) -> int:
    """How often to do the work so that it takes long enough to be timed."""
    while _seconds(work, count) < _SHORTEST:
        count *= 2
    return count


def _seconds(work: Callable[[int], Any], count: int) -> float:
    start = time.perf_counter()
    work(count)
    return time.perf_counter() - start
