"""What each process of the benchmark does: set contestants up, check them, time them.

A worker holds the contestants of one library with one number of threads. It answers the requests
of its parent (see `benchmark`), one JSON object a line. Large arrays go through files.

The right results are those of the loops of `cnnfast.naive` in float64, where these do not take too
long. They need seconds for what kernels do in a millisecond, so for larger layers the right results
are those of slices and matrix products (`REFERENCE`) in float64, which have to agree with the loops
on as large a part of the same layer as the time allows.
"""

from __future__ import annotations

import gc
import inspect
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnfast import dispatch, functional, naive, peers, roofs, verify
from cnnfast.suites import Case

__all__ = ["REFERENCE", "Worker", "arguments", "draw", "serve"]

Array = NDArray[Any]
Work = Callable[[], Any]
# What does the work once, and what does it and gives its results as arrays.
Ready = tuple[Work, Callable[[], tuple[Array, ...]]]

REFERENCE = "portable"
"""The method that stands in for the loops where they are too slow: it uses no kernel of ours."""

_REST = 0.002  # seconds over which a process must be idle to count as asleep
_LONGEST_REST = 0.25
_SLOW = 1.0  # seconds: what takes longer does not run once more only to be warm


class Worker:
    """Answers the requests of the parent; the state of one case at a time."""

    def __init__(self, library: str, threads: int) -> None:
        self.library, self.threads = library, threads
        self.peer = peers.open_peer(library, threads) if library else None
        self.works: dict[str, Work] = {}

    def oracle(
        self, case: Any, dtypes: Sequence[str], folder: str, seconds: float, seed: int
    ) -> dict[str, Any]:
        """Leave the arrays of a case and the right results in files, and time the loops."""
        case = Case.from_json(case)
        if case.whole_network:
            from cnnfast import networks

            task = networks.draw(case, "float64", seed)
            _save(folder, "right", networks.prepare(task, REFERENCE)[1]())
            return {"loops": {}, "scale": 1.0, "images": 0, "words": "", "flops": 0, "bytes": {}}
        inputs = draw(case, seed)
        args = arguments(case, inputs, "float64")
        loops = _Loops(case, args, seconds, seed)
        right = loops.right
        if loops.scale > 1:
            right = verify.outputs(getattr(functional, case.op)(**args, method=REFERENCE))
        np.savez(Path(folder, "inputs.npz"), allow_pickle=False, **inputs)
        _save(folder, "right", right)
        moved = [a for a in (*args.values(), *right) if isinstance(a, np.ndarray)]
        return {
            "loops": {dtype: loops.time(dtype, seconds) for dtype in dtypes},
            "scale": loops.scale,
            "images": loops.images,
            "words": loops.words,
            "flops": functional.explain(case.op, **args).flops,
            "bytes": {dtype: sum(_size(a, dtype) for a in moved) for dtype in dtypes},
        }

    def open(
        self,
        case: Any,
        dtype: str,
        folder: str,
        methods: Sequence[str] | None,
        seed: int,
        size: int,
    ) -> dict[str, Any]:
        """Set the contestants of a case up, and compare each with the right results."""
        case = Case.from_json(case)
        with np.load(Path(folder, "right.npz")) as file:
            right = [file[name] for name in file.files]
        if case.whole_network:
            return self._open_network(case, dtype, right, methods, seed)
        with np.load(Path(folder, "inputs.npz")) as file:
            inputs = dict(file)
        args = arguments(case, inputs, dtype)
        known = {**case.options, **{n: _cast(a, dtype) for n, a in inputs.items()}, **args}
        limits = verify.bounds(case.op, known, float(np.finfo(dtype).eps))
        if self.peer is not None:
            ready = self._peer_call(self.peer, case.op, known)
            return {"contestants": {self.library: self._admit(self.library, ready, right, limits)}}
        table = dispatch.methods(case.op)
        names = table if methods is None else [m for m in methods if m == "auto" or m in table]
        chosen = functional.explain(case.op, **args).method
        if methods is None and chosen not in table:
            # Of two methods, one for each gradient, which only auto puts together.
            names, chosen = (*table, "auto"), "auto"
        return {
            "contestants": {
                name: self._admit(name, self._call(case.op, args, name), right, limits)
                for name in names
                if name != "naive"
            },
            "chosen": chosen,
            "roofs": self._open_roofs(dtype, size),
        }

    def _call(self, op: str, args: Mapping[str, Any], method: str) -> Callable[[], Ready]:
        def work() -> Any:
            return getattr(functional, op)(**args, method=method)

        return lambda: (work, lambda: verify.outputs(work()))

    def _peer_call(
        self, peer: peers.Peer, op: str, known: Mapping[str, Any]
    ) -> Callable[[], Ready]:
        def ready() -> Ready:
            work = peer.prepare(op, known)
            return work, lambda: peer.arrays(work())

        return ready

    def _open_network(
        self,
        case: Case,
        dtype: str,
        right: Sequence[Array],
        methods: Sequence[str] | None,
        seed: int,
    ) -> dict[str, Any]:
        from cnnfast import networks

        limits = [networks.bound(case, dtype) * float(np.abs(a).max()) for a in right]
        peer = self.peer
        names: Iterable[str] = ("auto",) if methods is None else methods
        if peer is not None:
            names = (self.library,)

        def ready(name: str) -> Ready:
            task = networks.draw(case, dtype, seed)
            return networks.prepare(task, name) if peer is None else peer.network(task)

        return {
            "contestants": {
                name: self._admit(name, lambda name=name: ready(name), right, limits)  # type: ignore[misc]
                for name in names
            },
            "chosen": "auto",
        }

    def _admit(
        self,
        name: str,
        ready: Callable[[], Ready],
        right: Sequence[Array],
        limits: Sequence[float],
    ) -> dict[str, Any]:
        """Set one contestant up, and say how well it agrees and how long it takes."""
        try:
            work, outcome = ready()
            got, seconds = _timed(outcome)
        except (dispatch.MethodError, peers.Unsupported) as refusal:
            words = str(refusal)
            return {"refused": words.partition("cannot serve: ")[2] or words}
        check = _agreement(got, right, limits)
        del got
        self.works[name] = work
        return {**check, "seconds": seconds if seconds > _SLOW else _timed(work)[1]}

    def _open_roofs(self, dtype: str, size: int) -> dict[str, Any]:
        """Set up what the machine can do at most: for each kind how much work, or why not."""
        answer: dict[str, Any] = {}
        for kind in roofs.KINDS:
            try:
                roof = roofs.measure(kind, dtype, self.threads, size)
            except roofs.Unmeasured as reason:
                answer[kind] = {"refused": str(reason)}
                continue
            self.works[f"{kind} roof"] = roof.work
            answer[kind] = {"amount": roof.amount}
        return answer

    def time(self, name: str, calls: int, repeats: int, warm: bool) -> dict[str, Any]:
        """Times of one call, each the mean of `calls`, after one that does not count."""
        work = self.works[name]
        gc.collect()
        gc.disable()
        try:
            if warm:
                work()
            times = []
            for _ in range(repeats):
                start = time.perf_counter()
                for _ in range(calls):
                    work()
                times.append((time.perf_counter() - start) / calls)
        finally:
            gc.enable()
        _fall_asleep()
        return {"times": times}

    def close(self) -> dict[str, Any]:
        """Let the arrays of the case go."""
        self.works.clear()
        return {}


class _Loops:
    """The loops on a case, or on as large a part of it as the time allows."""

    def __init__(self, case: Case, args: Mapping[str, Any], seconds: float, seed: int) -> None:
        self.case = case
        self.images, self.parts = self._affordable(case, seconds, seed)
        self.scale = case.batch * case.parts / (self.images * self.parts)
        whole = self.scale == 1
        self.part = case if whole else case.part(self.images, self.parts)
        self._args = args
        if not whole:
            self._args = arguments(self.part, draw(self.part, seed), "float64")
        result, self._first = _timed(self._loops(self._args))
        self.right = verify.outputs(result)
        if not whole:
            reference = getattr(functional, case.op)(**self._args, method=REFERENCE)
            if not self._agreement(verify.outputs(reference), "float64")["agrees"]:
                raise RuntimeError(f"{case.label}: {REFERENCE} disagrees with naive")

    @staticmethod
    def _affordable(case: Case, seconds: float, seed: int) -> tuple[int, int]:
        """How many images, and how many parts of each, as `Case.part` takes them."""
        if case.parts == 1 and "w" not in case.shapes:
            return case.batch, 1  # whose loops run over channels at most
        least = case.part(1, 1)
        args = arguments(least, draw(least, seed), "float64")
        each = _timed(lambda: getattr(naive, case.op)(**args))[1]
        count = int(seconds / each)
        if count >= case.parts:
            return min(count // case.parts, case.batch), case.parts
        return 1, max(count, 1)

    def _loops(self, args: Mapping[str, Any]) -> Work:
        return lambda: getattr(naive, self.case.op)(**args)

    def _agreement(self, got: Sequence[Any], dtype: str) -> dict[str, Any]:
        limits = verify.bounds(self.case.op, {**self.part.options, **self._args}, _eps(dtype))
        return _agreement(got, self.right, limits)

    def time(self, dtype: str, seconds: float) -> dict[str, Any]:
        """A few times of the loops in one dtype, and how well they agree with float64."""
        times = [self._first] if dtype == "float64" else []
        args = {
            n: _cast(a, dtype) if isinstance(a, np.ndarray) else a for n, a in self._args.items()
        }
        got: Sequence[Any] = self.right
        while len(times) < 5 and (not times or sum(times) + times[-1] <= seconds):
            result, elapsed = _timed(self._loops(args))
            times.append(elapsed)
            got = verify.outputs(result)
        return {"times": times, **self._agreement(got, dtype)}

    @property
    def words(self) -> str:
        """What the loops were timed on, if not on everything."""
        case, counts = self.case, []
        if self.images < case.batch:
            counts.append(f"{self.images} of {case.batch} images")
        if self.parts < case.parts:
            kind = "channels" if "pool" in case.op else "filters"
            kind = "groups" if case.options.get("groups", 1) > 1 else kind
            counts.append(f"{self.parts} of {case.parts} {kind}")
        return f"timed on {' and '.join(counts)}, scaled" if counts else ""


def serve(library: str, threads: int) -> None:
    """Answer requests, one JSON object a line, until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The answers have this pipe for themselves: what a library prints goes to stderr.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = Worker(library, threads)
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(worker, request.pop("request"))(**request)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _fall_asleep() -> None:
    """Wait until no thread of this process is busy any more.

    Thread pools spin for a while after their work is done (ONNX Runtime's for 50 ms), and would
    take the processor from whoever's turn is next.
    """
    end = time.perf_counter() + _LONGEST_REST
    while time.perf_counter() < end:
        used = time.process_time()
        time.sleep(_REST)
        if time.process_time() - used < _REST / 4:
            return


def _timed(work: Work) -> tuple[Any, float]:
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def draw(case: Case, seed: int) -> dict[str, Array]:
    """The arrays of a case, in float32 (indices in int64); normal numbers, none of them 0."""
    rng = np.random.default_rng(seed)
    shapes = case.shapes
    arrays: dict[str, Array] = {
        name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()
    }
    if "running_var" in arrays:
        arrays["running_var"] = np.abs(arrays["running_var"]) + np.float32(0.5)
    if case.op == "max_pool2d_backward":
        options = {**case.options, "return_indices": True}
        y, indices = functional.max_pool2d(arrays["x"], **options, method=REFERENCE)
        return {**arrays, "dy": rng.standard_normal(y.shape, dtype=np.float32), "indices": indices}
    if case.op == "batch_norm_backward":
        x = arrays["x"].astype(np.float64)
        axes = (0, *range(2, x.ndim))
        arrays["mean"] = x.mean(axes).astype(np.float32)
        arrays["rstd"] = (1 / np.sqrt(x.var(axes) + 1e-5)).astype(np.float32)
        return {**arrays, "dy": rng.standard_normal(x.shape, dtype=np.float32)}
    if case.op.endswith("_backward"):
        arrays["dy"] = rng.standard_normal(_y_shape(case), dtype=np.float32)
    return arrays


def _y_shape(case: Case) -> tuple[int, ...]:
    """The shape of the forward pass's output, from a pass over one image."""
    forward = case.op.removesuffix("_backward")
    shapes = {**case.shapes, "x": (1, *case.shapes["x"][1:])}
    zeros = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    options = {name: value for name, value in case.options.items() if name != "needs"}
    y = getattr(functional, forward)(**zeros, **options, method=REFERENCE)
    return (case.batch, *verify.outputs(y)[0].shape[1:])


def arguments(case: Case, arrays: Mapping[str, Array], dtype: str) -> dict[str, Any]:
    """The arguments of the operation, by the names in its signature."""
    known = {**case.options, **{name: _cast(array, dtype) for name, array in arrays.items()}}
    known["input_shape"] = arrays["x"].shape
    wanted = inspect.signature(getattr(naive, case.op)).parameters
    return {name: value for name, value in known.items() if name in wanted}


def _cast(array: Array, dtype: str) -> Array:
    return array.astype(dtype) if array.dtype.kind == "f" else array


def _eps(dtype: str) -> float:
    return float(np.finfo(dtype).eps)


def _size(array: Array, dtype: str) -> int:
    """Bytes of an array, if floating-point numbers are of that dtype."""
    return int(array.size * np.dtype(dtype).itemsize) if array.dtype.kind == "f" else array.nbytes


def _save(folder: str, name: str, arrays: Sequence[Array]) -> None:
    np.savez(Path(folder, f"{name}.npz"), *arrays)


def _agreement(
    got: Sequence[Any], right: Sequence[Array], limits: Sequence[float]
) -> dict[str, Any]:
    """The largest error and what is accepted, both over the largest output."""
    agrees, worst, accepted = len(got) == len(right), 0.0, 0.0
    for value, want, limit in zip(got, right, limits, strict=False):
        error = verify.largest_error(value, want)
        agrees = agrees and error <= limit
        size = float(np.max(np.abs(want), initial=0.0)) or 1.0
        worst = float(np.maximum(worst, error / size))
        accepted = max(accepted, limit / size)
    return {"agrees": agrees, "error": worst, "bound": accepted}
