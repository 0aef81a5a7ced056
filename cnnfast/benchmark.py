"""Honest timing: check first, then time, turn about, and keep the losses.

Every contestant is first compared with the right results, those of the loops of `cnnfast.naive` in
float64 (see `worker` for the layers on which these take too long), and is not timed if it
disagrees. Then all contestants of a layer take turns, many rounds of a few calls each, so that a
machine that slows down slows all of them; the median and the quartiles are reported. What the
machine can do at most, multiply-adds and bytes copied, takes its turn as well.

cnnfast and each peer (PyTorch, ONNX Runtime, SciPy) live in processes of their own, one for each
number of threads, with that number set before any library is loaded. They get the same arrays,
drawn from the normal distribution (zeros would flatter); the parent process only says whose turn
it is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from math import ceil, exp, log
from pathlib import Path
from typing import IO, Any

import numpy as np

from cnnfast import dispatch, peers, roofs
from cnnfast.info import info
from cnnfast.suites import SUITES, Case

__all__ = ["Plan", "Report", "Result", "Roof", "Standing", "environment", "run"]

_THREAD_VARIABLES = (
    "CNNFAST_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_SHORTEST_SAMPLE = 1e-4  # seconds: shorter calls are timed several at once


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
            able = {"auto"}.union(*(_methods(case) for case in cases)) - {"naive"}
            if able.isdisjoint(self.methods):
                raise ValueError(
                    "nothing to compare: methods must have at least one of "
                    f"{', '.join(sorted(able))}"
                )
        return cases


def _methods(case: Case) -> Iterable[str]:
    """The methods that can be told to a case."""
    return dispatch.METHODS if case.whole_network else dispatch.methods(case.op)


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
    chose : str
        The method that auto stands for, where `method` is ``"auto"``.
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
        Operations of the direct definition over this time, in 1e9 a second.
    gbytes : float or None
        Bytes of all inputs and outputs over this time, in 1e9 a second.
    of_fma, of_copy : float or None
        Those two over what the machine was measured to multiply and add, and to copy, in as many
        threads and in the same minute. The larger one says what limits the method; a method that
        needs fewer operations than the direct definition may pass 1.
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
    chose: str = ""
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
    gbytes: float | None = None
    of_fma: float | None = None
    of_copy: float | None = None
    note: str = ""

    @property
    def wrong(self) -> bool:
        """Whether it ran and disagreed with the loops."""
        return self.max_error is not None and not self.agrees

    @property
    def limit(self) -> tuple[str, float] | None:
        """What limits the method (one of ``cnnfast.roofs.KINDS``), and its share of that peak.

        None where that is not known: a product of matrices is not said to be limited by memory as
        long as nobody measured the multiply-adds.
        """
        shares = {"fma": self.of_fma, "copy": self.of_copy}
        known = {kind: share for kind, share in shares.items() if share is not None}
        if not known or (self.of_fma is None and ("conv" in self.op or "linear" in self.op)):
            return None
        kind = max(known, key=known.__getitem__)
        return kind, known[kind]

    @property
    def spread(self) -> float | None:
        """Half the distance of the quartiles over the median."""
        if not self.seconds or self.low is None or self.high is None:
            return None
        return (self.high - self.low) / 2 / self.seconds


@dataclass(frozen=True)
class Roof:
    """What the machine did at most, measured beside one layer.

    Attributes
    ----------
    case, phase, dtype : str
        The layer.
    threads : int
        How many took part.
    kind : str
        One of ``cnnfast.roofs.KINDS``.
    rate : float or None
        Floating-point operations or bytes a second; None where it could not be measured.
    note : str
        Why not.
    """

    case: str
    phase: str
    dtype: str
    threads: int
    kind: str
    rate: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Standing:
    """How cnnfast stands against a peer, over all layers of a phase.

    Attributes
    ----------
    peer, phase, dtype : str
        Against whom, and in what.
    threads : int
        Of both.
    layers : int
        How many were timed in both.
    mean : float
        Geometric mean of the peer's time over that of the method that auto chooses.
    worst : float
        The smallest of these ratios.
    worst_case : str
        Where that was.
    losses : int
        How many are below 1.
    """

    peer: str
    phase: str
    dtype: str
    threads: int
    layers: int
    mean: float
    worst: float
    worst_case: str
    losses: int


@dataclass(frozen=True)
class Report:
    """All results of a plan, with where and when they were measured."""

    plan: Plan
    environment: Mapping[str, Any]
    results: Sequence[Result] = field(default_factory=list)
    roofs: Sequence[Roof] = field(default_factory=list)

    def asdict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return {
            "environment": dict(self.environment),
            "plan": asdict(self.plan),
            "results": [asdict(result) for result in self.results],
            "roofs": [asdict(roof) for roof in self.roofs],
            "standings": [asdict(standing) for standing in self.standings()],
        }

    def against(self, peer: str) -> list[tuple[Result, Result]]:
        """The chosen method and the peer, wherever both were timed."""
        return against(self.results, peer)

    def standings(self) -> list[Standing]:
        """How cnnfast stands against each peer, by phase, dtype and threads."""
        return standings(self.results)


def standings(results: Sequence[Result]) -> list[Standing]:
    """How the chosen methods stand against each peer, by phase, dtype and threads."""
    groups: dict[tuple[str, str, str, int], list[tuple[Result, Result]]] = {}
    for peer in dict.fromkeys(r.method for r in results if r.peer):
        for ours, theirs in against(results, peer):
            key = (peer, ours.phase, ours.dtype, ours.threads)
            groups.setdefault(key, []).append((ours, theirs))
    found = []
    for key, pairs in groups.items():
        ratios = [(theirs.seconds or 0.0) / (ours.seconds or 1.0) for ours, theirs in pairs]
        worst = min(range(len(pairs)), key=ratios.__getitem__)
        found.append(
            Standing(
                *key,
                layers=len(pairs),
                mean=geometric_mean(ratios),
                worst=ratios[worst],
                worst_case=pairs[worst][0].case,
                losses=sum(ratio < 1 for ratio in ratios),
            )
        )
    return found


def against(results: Sequence[Result], peer: str) -> list[tuple[Result, Result]]:
    """What cnnfast would have used and the peer, wherever both were timed.

    That is auto where it was timed itself, else the method that it chooses.
    """
    ours = {_key_of(r): r for r in results if r.chosen and r.seconds}
    ours |= {_key_of(r): r for r in results if r.method == "auto" and r.seconds}
    return [
        (ours[_key_of(r)], r)
        for r in results
        if r.method == peer and r.peer and r.seconds and _key_of(r) in ours
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
    measured: list[Roof] = []
    with tempfile.TemporaryDirectory(prefix="cnnfast-bench-") as folder, _Workers(plan) as workers:
        report = Report(plan, environment(plan), results, measured)
        for case in cases:
            say(f"{case.label}: the right results")
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
                block, beside = _time_layer(plan, workers, case, dtype, folder, oracle)
                results += block
                measured += beside
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
        start += "from cnnfast.worker import serve; serve(sys.argv[2], int(sys.argv[3]))"
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
    """Something that takes turns in one process, and its times so far.

    `subject` is what they are the times of: a method, or with the `amount` of its work a roof.
    """

    worker: _Worker
    subject: Result | Roof
    amount: float = 0.0
    calls: int = 1
    repeats: int = 1
    rounds: int = 1
    warm: bool = True
    times: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        if isinstance(self.subject, Roof):
            return f"{self.subject.kind} roof"
        return self.subject.method


def _time_layer(
    plan: Plan,
    workers: _Workers,
    case: Case,
    dtype: str,
    folder: str,
    oracle: Mapping[str, Any],
) -> tuple[list[Result], list[Roof]]:
    """Check and time all contestants of a layer in one dtype, and the roofs beside them."""
    blank = Result(case.name, case.op, case.phase, dtype, 1, "naive", images=case.batch)
    results = _loops(blank, oracle, dtype)
    measured: list[Roof] = []
    contestants: list[_Contestant] = []
    for worker in workers.all:
        try:
            answer = worker.ask(
                "open",
                case=case.to_json(),
                dtype=dtype,
                folder=folder,
                methods=plan.methods,
                seed=plan.seed,
                size=oracle["bytes"].get(dtype, 0),
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
                chose=answer["chosen"] if method == "auto" and not case.whole_network else "",
                agrees=check.get("agrees", False),
                max_error=check.get("error"),
                bound=check.get("bound"),
                note=check.get("refused", ""),
            )
            if result.agrees:
                contestants.append(_scheduled(plan, _Contestant(worker, result), check["seconds"]))
            else:
                results.append(replace(result, note=result.note or "disagrees with naive"))
        for kind, found in answer.get("roofs", {}).items():
            roof = Roof(case.name, case.phase, dtype, worker.threads, kind)
            if "refused" in found:
                measured.append(replace(roof, note=found["refused"]))
            else:
                # Once each round: it is long enough already.
                contestant = _Contestant(worker, roof, found["amount"], rounds=plan.rounds)
                contestants.append(contestant)
    for turn in range(plan.rounds):
        first = turn % max(len(contestants), 1)
        for contestant in contestants[first:] + contestants[:first]:
            # A slow contestant sits out some rounds, evenly spread.
            due = turn * contestant.rounds // plan.rounds
            if turn == 0 or due != (turn - 1) * contestant.rounds // plan.rounds:
                _take_turn(contestant)
    for contestant in contestants:
        times = _summary(contestant.times)
        if isinstance(contestant.subject, Roof):
            rate = contestant.amount / times["seconds"]
            measured.append(replace(contestant.subject, rate=rate))
        else:
            results.append(replace(contestant.subject, **times))
    for worker in {id(c.worker): c.worker for c in contestants}.values():
        worker.ask("close")
    order = {r.method: i for i, r in enumerate(results) if not r.peer}
    finished = [_rated(r, results[0], oracle, measured) for r in results]
    finished.sort(key=lambda r: (r.peer, order.get(r.method, 0), r.method, r.threads))
    return finished, measured


def _loops(blank: Result, oracle: Mapping[str, Any], dtype: str) -> list[Result]:
    """What the loops did, in a list that is empty where they did not run."""
    if dtype not in oracle["loops"]:
        return []
    loops = oracle["loops"][dtype]
    return [
        replace(
            blank,
            agrees=loops["agrees"],
            max_error=loops["error"],
            bound=loops["bound"],
            images=oracle["images"],
            note=oracle["words"],
            **_summary([t * oracle["scale"] for t in loops["times"]]),
        )
    ]


def _rated(r: Result, first: Result, oracle: Mapping[str, Any], measured: Sequence[Roof]) -> Result:
    """The result with what follows from its time: speedup, rates, shares of the roofs."""
    if not r.seconds:
        return r
    if first.method == "naive" and first.seconds:
        r = replace(r, speedup=first.seconds / r.seconds)
    if not oracle["flops"]:
        return r
    assert r.seconds is not None
    rates = {"fma": oracle["flops"] / r.seconds, "copy": oracle["bytes"][r.dtype] / r.seconds}
    most = {roof.kind: roof.rate for roof in measured if roof.threads == r.threads and roof.rate}
    shares = {
        f"of_{kind}": rates[kind] / most[kind]
        for kind in roofs.KINDS
        if kind in most and r.method != "naive"
    }
    return replace(r, gflops=rates["fma"] / 1e9, gbytes=rates["copy"] / 1e9, **shares)


def _scheduled(plan: Plan, contestant: _Contestant, seconds: float) -> _Contestant:
    """How often a contestant that takes so long is timed."""
    seconds = max(seconds, 1e-7)
    contestant.calls = max(1, ceil(_SHORTEST_SAMPLE / seconds))
    sample = seconds * contestant.calls
    contestant.repeats = min(max(1, int(plan.seconds / plan.rounds / sample)), 50)
    contestant.rounds = min(max(min(3, plan.rounds), int(plan.seconds / sample)), plan.rounds)
    if sample > 4 * plan.seconds:
        contestant.rounds, contestant.warm = 1, False
    return contestant


def _take_turn(contestant: _Contestant) -> None:
    answer = contestant.worker.ask(
        "time",
        name=contestant.name,
        calls=contestant.calls,
        repeats=contestant.repeats,
        warm=contestant.warm,
    )
    contestant.times += answer["times"]


def _summary(times: Sequence[float]) -> dict[str, Any]:
    low, median, high = (float(q) for q in np.percentile(times, (25, 50, 75)))
    return {"seconds": median, "low": low, "high": high, "samples": len(times)}
