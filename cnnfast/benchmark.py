"""Honest timing: check first, then time, turn about, and keep the losses.

Every contestant is first compared with the loops of `cnnfast.naive` in float64, and is not timed
if it disagrees. Then all contestants of a layer take turns, many rounds of a few calls each, so
that a machine that slows down slows all of them; the median and the quartiles are reported.

cnnfast and each peer (PyTorch, ONNX Runtime, SciPy) live in processes of their own, one for each
number of threads, with that number set before any library is loaded. They get the same arrays,
drawn from the normal distribution (zeros would flatter), through files; the parent process only
says whose turn it is.

The loops take seconds where kernels take microseconds. They are timed on all images of a batch if
that fits the time allowed, else on as many as divide the batch evenly and fit, and the time is
scaled. The batch then repeats those images, so that every element of every contestant's result is
still compared.
"""

from __future__ import annotations

import gc
import inspect
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from math import ceil, exp, log
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from cnnfast import dispatch, functional, naive, peers, verify
from cnnfast.info import info
from cnnfast.suites import SUITES, Case

__all__ = ["Plan", "Report", "Result", "environment", "run"]

Array = NDArray[Any]

_THREAD_VARIABLES = (
    "CNNFAST_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_SHORTEST_SAMPLE = 1e-4  # seconds: shorter calls are timed several at once
_REST = 0.002  # seconds over which a process must be idle to count as asleep
_LONGEST_REST = 0.25


@dataclass(frozen=True)
class Plan:
    """What to time, and for how long.

    Parameters
    ----------
    suite : str
        A name in ``cnnfast.suites.SUITES``.
    dtypes : tuple of str
        ``"float32"``, ``"float64"``.
    threads : tuple of int
        Numbers of threads.
    methods : tuple of str, optional
        Only these methods; all that can serve where not given. ``"auto"`` is allowed.
    peers : tuple of str
        Other libraries: names in ``cnnfast.peers.PEERS``.
    only : str
        Only the cases whose label contains this.
    seconds : float
        Time for each contestant of each layer.
    naive_seconds : float
        Time for the loops of each layer.
    rounds : int
        Turns of each contestant.
    seed : int
        Of the random arrays.
    """

    suite: str = "courses"
    dtypes: tuple[str, ...] = ("float32", "float64")
    threads: tuple[int, ...] = (1,)
    methods: tuple[str, ...] | None = None
    peers: tuple[str, ...] = ()
    only: str = ""
    seconds: float = 0.5
    naive_seconds: float = 5.0
    rounds: int = 15
    seed: int = 0

    def cases(self) -> list[Case]:
        """The cases of the suite that are asked for.

        Raises
        ------
        ValueError
            There is no such suite, dtype, method, case, or number of threads; or there is nothing
            to compare with the loops.
        """
        if self.suite not in SUITES:
            raise ValueError(f"there is no suite {self.suite!r}; there are {', '.join(SUITES)}")
        for dtype in self.dtypes:
            if dtype not in ("float32", "float64"):
                raise ValueError(f"dtype must be float32 or float64, not {dtype!r}")
        for method in self.methods or ():
            if method != "auto" and method not in dispatch.METHODS:
                known = ", ".join(("auto", *dispatch.METHODS))
                raise ValueError(f"there is no method {method!r}; there are {known}")
        for threads in self.threads:
            if threads < 1:
                raise ValueError(f"threads must be at least 1, not {threads}")
        if not (self.dtypes and self.threads):
            raise ValueError("at least one dtype and one number of threads are needed")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, not {self.seed}")
        if self.rounds < 1 or not self.seconds > 0 or not self.naive_seconds > 0:
            raise ValueError("rounds and times must be positive")
        cases = [case for case in SUITES[self.suite] if self.only in case.label]
        if not cases:
            raise ValueError(f"no case of the suite {self.suite} is named {self.only!r}")
        if self.methods is not None and not self.peers:
            able = {"auto"}.union(*(dispatch.methods(case.op) for case in cases)) - {"naive"}
            if able.isdisjoint(self.methods):
                raise ValueError(
                    "nothing to compare: methods must have at least one of "
                    f"{', '.join(sorted(able))}"
                )
        return cases


@dataclass(frozen=True)
class Result:
    """One contestant on one layer.

    Attributes
    ----------
    case, op, phase : str
        The layer, the operation of ``cnnfast.functional``, and what a reader calls it.
    dtype : str
        What is computed in.
    threads : int
        Threads the process was given.
    method : str
        A method of cnnfast, or the name of a peer.
    peer : bool
        Whether it is another library.
    chosen : bool
        Whether ``method="auto"`` chooses it.
    agrees : bool
        Whether every element is within `bound` of the loops. False where it did not run.
    max_error, bound : float or None
        Largest error, and the largest accepted, over the largest output.
    seconds, low, high : float or None
        Median and quartiles of the time of one call; None where it was not timed.
    samples : int
        How many times were measured.
    images : int
        Images that the loops were timed on; the batch size elsewhere.
    speedup : float or None
        Time of the loops over this time.
    gflops : float or None
        Operations of the direct definition over this time.
    note : str
        Why it was not timed, or what to know about the time.
    """

    case: str
    op: str
    phase: str
    dtype: str
    threads: int
    method: str
    peer: bool = False
    chosen: bool = False
    agrees: bool = False
    max_error: float | None = None
    bound: float | None = None
    seconds: float | None = None
    low: float | None = None
    high: float | None = None
    samples: int = 0
    images: int = 0
    speedup: float | None = None
    gflops: float | None = None
    note: str = ""

    @property
    def wrong(self) -> bool:
        """Whether it ran and disagreed with the loops."""
        return self.max_error is not None and not self.agrees

    @property
    def spread(self) -> float | None:
        """Half the distance of the quartiles over the median."""
        if not self.seconds or self.low is None or self.high is None:
            return None
        return (self.high - self.low) / 2 / self.seconds


@dataclass(frozen=True)
class Report:
    """All results of a plan, with where and when they were measured."""

    plan: Plan
    environment: Mapping[str, Any]
    results: Sequence[Result] = field(default_factory=list)

    def asdict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return {
            "environment": dict(self.environment),
            "plan": asdict(self.plan),
            "results": [asdict(result) for result in self.results],
        }

    def against(self, peer: str) -> list[tuple[Result, Result]]:
        """The chosen method and the peer, wherever both were timed."""
        key = _key_of
        ours = {key(r): r for r in self.results if r.chosen and r.seconds}
        return [
            (ours[key(r)], r)
            for r in self.results
            if r.method == peer and r.peer and r.seconds and key(r) in ours
        ]


def _key_of(r: Result) -> tuple[str, str, str, int]:
    return r.case, r.phase, r.dtype, r.threads


def geometric_mean(values: Iterable[float]) -> float:
    """The n-th root of the product.

    Examples
    --------
    >>> geometric_mean([1.0, 4.0])
    2.0
    """
    logs = [log(value) for value in values]
    return exp(sum(logs) / len(logs))


def run(
    plan: Plan,
    on_results: Callable[[list[Result]], None] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Time a suite.

    Parameters
    ----------
    plan : Plan
        What to time.
    on_results : callable, optional
        Called with the results of each layer and dtype as soon as they are there.
    progress : callable, optional
        Called with a few words about what is being done.

    Raises
    ------
    ValueError
        The plan names something that does not exist.
    ImportError
        A peer is not installed.
    RuntimeError
        The process that runs cnnfast ended.
    """
    cases = plan.cases()
    for peer in plan.peers:
        reason = peers.missing(peer)
        if reason is not None:
            raise ValueError(reason) if peer not in peers.PEERS else ImportError(reason)
    say = progress or (lambda words: None)
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="cnnfast-bench-") as folder, _Workers(plan) as workers:
        report = Report(plan, environment(plan), results)
        for case in cases:
            say(f"{case.label}: naive")
            oracle = workers.home.ask(
                "oracle",
                case=case.to_json(),
                dtypes=plan.dtypes,
                folder=folder,
                seconds=plan.naive_seconds,
                seed=plan.seed,
            )
            for dtype in plan.dtypes:
                say(f"{case.label}: {dtype}")
                block = _time_layer(plan, workers, case, dtype, folder, oracle)
                results += block
                if on_results is not None:
                    on_results(block)
    return report


def environment(plan: Plan) -> dict[str, Any]:
    """Versions, processor and date: what a time means nothing without."""
    facts = info()
    del facts["threads"]  # of this process, which only looks on
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **facts,
        "processors": _usable_processors(),
        "peers": {name: peers.version(name) for name in plan.peers},
    }


def _usable_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# The parent: whose turn it is.


class _WorkerEnded(RuntimeError):
    """A worker's process is gone."""


class _Worker:
    """A process that computes, for cnnfast (``library == ""``) or for one peer."""

    def __init__(self, library: str, threads: int) -> None:
        self.library, self.threads = library, threads
        env = os.environ | dict.fromkeys(_THREAD_VARIABLES, str(threads))
        start = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
        start += "from cnnfast.benchmark import _serve; _serve(sys.argv[2], int(sys.argv[3]))"
        paths = json.dumps([path or str(Path.cwd()) for path in sys.path])
        # What the libraries say goes to a file: it is of interest only if the process dies.
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker)
        self._process = subprocess.Popen(
            [sys.executable, "-c", start, paths, library, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=env,
            encoding="utf-8",
        )

    def ask(self, request: str, **arguments: Any) -> dict[str, Any]:
        """Send a request and wait for the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"request": request, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            raise _WorkerEnded(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        status = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        name = self.library or "cnnfast"
        return f"the process of {name} ended with status {status}: {lines[-1] if lines else ''}"

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()


class _Workers:
    """The processes of a plan, started together and ended together."""

    def __init__(self, plan: Plan) -> None:
        self.all: list[_Worker] = []
        try:
            for threads in plan.threads:
                for library in ("", *plan.peers):
                    self.all.append(_Worker(library, threads))
        except BaseException:
            self.close()
            raise
        self.home = self.all[0]

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        for worker in self.all:
            worker.close()


@dataclass
class _Contestant:
    """One method in one process, and its times so far."""

    worker: _Worker
    result: Result
    calls: int = 1
    repeats: int = 1
    rounds: int = 1
    times: list[float] = field(default_factory=list)


def _time_layer(
    plan: Plan,
    workers: _Workers,
    case: Case,
    dtype: str,
    folder: str,
    oracle: Mapping[str, Any],
) -> list[Result]:
    """Check and time all contestants of a layer in one dtype."""
    blank = Result(case.name, case.op, case.phase, dtype, 1, "naive", images=case.batch)
    loops = oracle["loops"][dtype]
    scale = case.batch / oracle["period"]
    results = [
        replace(
            blank,
            agrees=loops["agrees"],
            max_error=loops["error"],
            bound=loops["bound"],
            images=oracle["period"],
            note=f"timed on {oracle['period']} of {case.batch} images, scaled" if scale > 1 else "",
            **_summary([t * scale for t in loops["times"]]),
        )
    ]
    contestants = []
    for worker in workers.all:
        try:
            answer = worker.ask(
                "open",
                case=case.to_json(),
                dtype=dtype,
                folder=folder,
                methods=plan.methods,
            )
        except _WorkerEnded as error:
            if not worker.library:
                raise
            answer = {"contestants": {worker.library: {"refused": str(error)}}}
        for method, check in answer["contestants"].items():
            result = replace(
                blank,
                threads=worker.threads,
                method=method,
                peer=bool(worker.library),
                chosen=method == answer.get("chosen"),
                agrees=check.get("agrees", False),
                max_error=check.get("error"),
                bound=check.get("bound"),
                note=check.get("refused", ""),
            )
            if result.agrees:
                contestants.append(_scheduled(plan, _Contestant(worker, result), check["seconds"]))
            else:
                results.append(replace(result, note=result.note or "disagrees with naive"))
    for turn in range(plan.rounds):
        first = turn % max(len(contestants), 1)
        for contestant in contestants[first:] + contestants[:first]:
            # A slow contestant sits out some rounds, evenly spread.
            due = turn * contestant.rounds // plan.rounds
            if turn == 0 or due != (turn - 1) * contestant.rounds // plan.rounds:
                _take_turn(contestant)
    for contestant in contestants:
        results.append(replace(contestant.result, **_summary(contestant.times)))
    for worker in workers.all:
        worker.ask("close")
    reference = results[0].seconds
    flops = oracle["flops"]
    order = {r.method: i for i, r in enumerate(results) if not r.peer}
    finished = [
        replace(r, speedup=reference / r.seconds, gflops=flops / r.seconds / 1e9)
        if r.seconds and reference
        else r
        for r in results
    ]
    return sorted(finished, key=lambda r: (r.peer, order.get(r.method, 0), r.method, r.threads))


def _scheduled(plan: Plan, contestant: _Contestant, seconds: float) -> _Contestant:
    """How often a contestant that takes so long is timed."""
    seconds = max(seconds, 1e-7)
    contestant.calls = max(1, ceil(_SHORTEST_SAMPLE / seconds))
    sample = seconds * contestant.calls
    contestant.repeats = min(max(1, int(plan.seconds / plan.rounds / sample)), 50)
    contestant.rounds = min(max(min(3, plan.rounds), int(plan.seconds / sample)), plan.rounds)
    if sample > 10 * plan.seconds:
        contestant.rounds = 1
    return contestant


def _take_turn(contestant: _Contestant) -> None:
    answer = contestant.worker.ask(
        "time",
        method=contestant.result.method,
        calls=contestant.calls,
        repeats=contestant.repeats,
    )
    contestant.times += answer["times"]


def _summary(times: Sequence[float]) -> dict[str, Any]:
    low, median, high = (float(q) for q in np.percentile(times, (25, 50, 75)))
    return {"seconds": median, "low": low, "high": high, "samples": len(times)}


# The workers: what each process does.


class _Server:
    """Answers the requests of the parent; the state of one layer at a time."""

    def __init__(self, library: str, threads: int) -> None:
        self.library = library
        self.peer = peers.open_peer(library, threads) if library else None
        self.works: dict[str, Callable[[], Any]] = {}

    def oracle(
        self, case: Any, dtypes: Sequence[str], folder: str, seconds: float, seed: int
    ) -> dict[str, Any]:
        """Run and time the loops, and leave the arrays and the right results in files."""
        case = Case.from_json(case)
        inputs = _inputs(case, 1, seed)
        function = getattr(naive, case.op)
        want, first = _timed(function, _arguments(case, inputs, "float64"))
        period = max(
            (k for k in range(1, case.batch + 1) if case.batch % k == 0 and k * first <= seconds),
            default=1,
        )
        if period > 1:
            inputs = _inputs(case, period, seed)
            want, first = _timed(function, _arguments(case, inputs, "float64"))
        np.savez(Path(folder, "inputs.npz"), allow_pickle=False, **inputs)
        right = verify.outputs(want)
        np.savez(Path(folder, "oracle.npz"), *right)
        loops = {}
        for dtype in dtypes:
            args = _arguments(case, inputs, dtype)
            times = [first] if dtype == "float64" else []
            result = want
            while len(times) < 5 and (not times or sum(times) + times[-1] <= seconds):
                result, elapsed = _timed(function, args)
                times.append(elapsed)
            check = _agreement(case, args, verify.outputs(result), right, dtype)
            loops[dtype] = {"times": times, **check}
        full = _arguments(case, _tiled(case, inputs, period), "float64")
        explanation = functional.explain(case.op, **full)
        return {"period": period, "loops": loops, "flops": explanation.flops}

    def open(
        self, case: Any, dtype: str, folder: str, methods: Sequence[str] | None
    ) -> dict[str, Any]:
        """Set the contestants of a layer up, and compare each with the right results."""
        case = Case.from_json(case)
        with np.load(Path(folder, "inputs.npz")) as file:
            inputs = dict(file)
        with np.load(Path(folder, "oracle.npz")) as file:
            right = [file[name] for name in file.files]
        period = inputs["x"].shape[0]
        full = _tiled(case, inputs, period)
        want = _tiled_results(case, right, period)
        args = _arguments(case, full, dtype)
        everything = {**case.options, **{n: _cast(a, dtype) for n, a in full.items()}, **args}
        answer: dict[str, Any] = {"contestants": {}}
        names: Iterable[str] = [self.library]
        if self.peer is None:
            table = dispatch.methods(case.op)
            answer["chosen"] = functional.explain(case.op, **args).method
            names = (
                [m for m in table if m != "naive"]
                if methods is None
                else [m for m in methods if m == "auto" or (m in table and m != "naive")]
            )
        for name in names:
            answer["contestants"][name] = self._prepare(name, case, args, everything, want, dtype)
        return answer

    def _prepare(
        self,
        name: str,
        case: Case,
        args: Mapping[str, Any],
        everything: Mapping[str, Any],
        want: Sequence[Array],
        dtype: str,
    ) -> dict[str, Any]:
        try:
            if self.peer is None:
                function = getattr(functional, case.op)
                work = _call(function, {**args, "method": name})
                got = verify.outputs(work())
            else:
                work = self.peer.prepare(case.op, everything)
                got = self.peer.arrays(work())
        except (dispatch.MethodError, peers.Unsupported) as refusal:
            words = str(refusal)
            return {"refused": words.partition("cannot serve: ")[2] or words}
        check = _agreement(case, everything, got, want, dtype)
        del got
        self.works[name] = work
        return {**check, "seconds": _timed(work, {})[1]}

    def time(self, method: str, calls: int, repeats: int) -> dict[str, Any]:
        """Times of one call, each the mean of `calls`, after one that is not counted."""
        work = self.works[method]
        gc.collect()
        gc.disable()
        try:
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
        """Let the arrays of the layer go."""
        self.works.clear()
        return {}


def _serve(library: str, threads: int) -> None:
    """Answer requests, one JSON object a line, until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The answers have this pipe for themselves: what a library prints goes to stderr.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    server = _Server(library, threads)
    for line in sys.stdin:
        arguments = json.loads(line)
        answer = getattr(server, arguments.pop("request"))(**arguments)
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


def _call(function: Callable[..., Any], args: Mapping[str, Any]) -> Callable[[], Any]:
    return lambda: function(**args)


def _timed(function: Callable[..., Any], args: Mapping[str, Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = function(**args)
    return result, time.perf_counter() - start


def _inputs(case: Case, images: int, seed: int) -> dict[str, Array]:
    """The arrays of a case for that many images, in float32 (indices in int64)."""
    rng = np.random.default_rng(seed)
    shapes = {**case.shapes, "x": (images, *case.shapes["x"][1:])}
    arrays: dict[str, Array] = {
        name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()
    }
    if case.op == "max_pool2d_backward":
        y, indices = naive.max_pool2d(arrays["x"], **case.options, return_indices=True)
        return {**arrays, "dy": rng.standard_normal(y.shape, dtype=np.float32), "indices": indices}
    if case.op.endswith("_backward"):
        arrays["dy"] = rng.standard_normal(_y_shape(case, shapes), dtype=np.float32)
    return arrays


def _y_shape(case: Case, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of the forward pass's output, from a pass over one image."""
    forward = getattr(functional, case.op.removesuffix("_backward"))
    one = {**shapes, "x": (1, *shapes["x"][1:])}
    y = forward(
        **{name: np.zeros(shape, np.float32) for name, shape in one.items()}, **case.options
    )
    return (shapes["x"][0], *verify.outputs(y)[0].shape[1:])


def _arguments(case: Case, arrays: Mapping[str, Array], dtype: str) -> dict[str, Any]:
    """The arguments of the operation, by the names in its signature."""
    known = {**case.options, **{name: _cast(array, dtype) for name, array in arrays.items()}}
    known["input_shape"] = arrays["x"].shape
    wanted = inspect.signature(getattr(naive, case.op)).parameters
    return {name: value for name, value in known.items() if name in wanted}


def _cast(array: Array, dtype: str) -> Array:
    return array.astype(dtype) if array.dtype.kind == "f" else array


_PER_IMAGE = ("x", "dy", "indices")


def _tiled(case: Case, arrays: Mapping[str, Array], period: int) -> dict[str, Array]:
    """The whole batch, which repeats the `period` images of `arrays`."""
    times = case.batch // period
    return {
        name: np.tile(a, (times,) + (1,) * (a.ndim - 1)) if name in _PER_IMAGE and times > 1 else a
        for name, a in arrays.items()
    }


def _tiled_results(case: Case, right: Sequence[Array], period: int) -> list[Array]:
    """The results of the whole batch from those of its period.

    What has one entry per image repeats; gradients by weights are sums over images.
    """
    times = case.batch // period
    if times == 1:
        return list(right)
    summed = case.op in ("conv2d_backward",)
    return [
        a * times if summed and index > 0 else np.tile(a, (times,) + (1,) * (a.ndim - 1))
        for index, a in enumerate(right)
    ]


def _agreement(
    case: Case,
    args: Mapping[str, Any],
    got: Sequence[Any],
    want: Sequence[Array],
    dtype: str,
) -> dict[str, Any]:
    """The largest error and what is accepted, both over the largest output."""
    limits = verify.bounds(case.op, args, float(np.finfo(dtype).eps))
    agrees, worst, accepted = len(got) == len(want), 0.0, 0.0
    for value, right, limit in zip(got, want, limits, strict=False):
        error = verify.largest_error(value, right)
        agrees = agrees and error <= limit
        size = float(np.max(np.abs(right), initial=0.0)) or 1.0
        worst = float(np.maximum(worst, error / size))
        accepted = max(accepted, limit / size)
    return {"agrees": agrees, "error": worst, "bound": accepted}
