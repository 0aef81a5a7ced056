"""How much is lost by what `auto` chooses: every method on random convolutions, turn about.

``python benchmarks/regret.py --threads 1`` draws 200 geometries, times the forward pass and each
gradient by every method that supports the call and by ``auto``, and reports the *regret*: how much
longer ``auto`` took than the best method. Results are printed, and written with the time of every
method to ``benchmarks/results/regret1-DATE.json``, from which a cost model can be fitted.

A machine that others use as well makes differences where there are none. So contestants take turns,
medians are compared, methods that are far behind drop out early, and a regret above the limit
counts only if a second, longer look at those in question confirms it. What choosing itself costs is
reported apart: how much longer ``auto`` takes than the method it chooses, called by name.

Methods behind the portable one in the order of preference are left out: they are never faster.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

PHASES = {"forward": "", "backward by x": "x", "backward by w": "wb"}
LIMIT = 0.1
MOST_FLOPS, MOST_ELEMENTS, MOST_WORKSPACE = 2e9, 1 << 23, 1 << 29
FAR_BEHIND = 2.0


@dataclass(frozen=True)
class Geometry:
    """One random convolution."""

    x: tuple[int, int, int, int]
    w: tuple[int, int, int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: int
    groups: int
    dtype: str

    @property
    def y(self) -> tuple[int, int, int, int]:
        rows, columns = (
            (size + 2 * pad - self.dilation * (k - 1) - 1) // step + 1
            for size, pad, k, step in zip(
                self.x[2:], self.padding, self.w[2:], self.stride, strict=True
            )
        )
        return (self.x[0], self.w[0], rows, columns)

    @property
    def flops(self) -> int:
        return 2 * math.prod(self.y) * math.prod(self.w[1:])

    def __str__(self) -> str:
        words = [f"{'x'.join(map(str, self.x))}, {self.w[0]} of {self.w[2]}x{self.w[3]}"]
        words += [f"stride {self.stride}"] if self.stride != (1, 1) else []
        words += [f"padding {self.padding}"] if self.padding != (0, 0) else []
        words += [f"dilation {self.dilation}"] if self.dilation > 1 else []
        words += [f"{self.groups} groups"] if self.groups > 1 else []
        return ", ".join([*words, self.dtype])


def draw(rng: Any) -> Geometry:
    """A convolution of the sizes that networks have, and some that they have not."""
    while True:
        batch, channels, filters, size = (
            round(math.exp(rng.uniform(math.log(low), math.log(high))))
            for low, high in ((1, 128), (1, 512), (1, 512), (4, 128))
        )
        rows, columns = size, size
        if rng.random() < 0.2:
            columns = int(rng.integers(4, 129))
        k = int(rng.choice([1, 1, 2, 3, 3, 3, 3, 4, 5, 5, 6, 7]))
        kernel = (k, k) if rng.random() < 0.9 else (k, int(rng.integers(1, 8)))
        step = int(rng.choice([1, 1, 1, 2, 2, 3]))
        stride = (step, step) if rng.random() < 0.95 else (step, 1)
        dilation = int(rng.choice([1] * 14 + [2]))
        pads = tuple(dilation * (n // 2) for n in kernel) if rng.random() < 0.8 else (0, 0)
        groups, kind = 1, rng.random()
        if kind < 0.1:  # depthwise
            groups = channels
            filters = channels * int(rng.choice([1, 1, 1, 2]))
        elif kind < 0.2:
            groups = int(rng.choice([2, 4, 8, 32]))
            channels, filters = (max(n // groups, 1) * groups for n in (channels, filters))
        g = Geometry(
            (batch, channels, rows, columns),
            (filters, channels // groups, *kernel),
            stride, (pads[0], pads[1]), dilation, groups,
            str(rng.choice(["float32", "float64"])),
        )  # fmt: skip
        largest = max(math.prod(g.x), math.prod(g.y))
        if min(g.y) >= 1 and g.flops <= MOST_FLOPS and largest <= MOST_ELEMENTS:
            return g


@dataclass
class Outcome:
    """What one pass of one geometry took by each method, in seconds."""

    geometry: Geometry
    phase: str
    chosen: str
    best: str
    regret: float
    auto: float
    methods: dict[str, float]
    refused: dict[str, str]
    looks: int


def calls(g: Geometry, phase: str, rng: Any) -> tuple[str, dict[str, Any]]:
    """The operation and its arguments."""
    x, w = (rng.standard_normal(shape).astype(g.dtype) for shape in (g.x, g.w))
    options: dict[str, Any] = {
        "x": x, "w": w, "stride": g.stride, "padding": g.padding, "dilation": g.dilation,
        "groups": g.groups,
    }  # fmt: skip
    if not PHASES[phase]:
        return "conv2d", {**options, "b": rng.standard_normal(g.w[0]).astype(g.dtype)}
    dy = rng.standard_normal(g.y).astype(g.dtype)
    return "conv2d_backward", {**options, "dy": dy, "needs": PHASES[phase]}


def timed(work: Callable[[], Any], count: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(count):
        work()
    return (time.perf_counter() - start) / count


def take_turns(
    works: dict[str, Callable[[], Any]], rounds: int, shortest: float
) -> dict[str, list[float]]:
    """Times of each, the order changing from round to round; who is far behind drops out."""
    guesses = {name: timed(work) for name, work in works.items()}
    counts = {name: max(1, math.ceil(shortest / guess)) for name, guess in guesses.items()}
    times: dict[str, list[float]] = {name: [] for name in works}
    running = list(works)
    for turn in range(rounds):
        start = turn % len(running)
        for name in running[start:] + running[:start]:
            times[name].append(timed(works[name], counts[name]))
        if turn == 1:
            best = min(min(times[name]) for name in running)
            running = [
                name for name in running if name == "auto" or min(times[name]) <= FAR_BEHIND * best
            ]
    return times


def judge(g: Geometry, phase: str, rng: Any, rounds: int, shortest: float) -> Outcome:
    """Time one pass by every method and by auto."""
    import cnnfast
    from cnnfast.worker import REFERENCE

    op, args = calls(g, phase, rng)
    function = getattr(cnnfast, op)
    names = cnnfast.methods(op)
    works: dict[str, Callable[[], Any]] = {}
    refused: dict[str, str] = {}
    for name in ("auto", *names[: names.index(REFERENCE) + 1]):
        try:
            workspace = cnnfast.explain(op, **args, method=name).workspace
        except cnnfast.MethodError as reason:
            refused[name] = str(reason).partition("cannot serve: ")[2]
            continue
        if name != "auto" and workspace > MOST_WORKSPACE:
            refused[name] = f"it would need {workspace >> 20} MiB"
            continue
        works[name] = lambda name=name: function(**args, method=name)
    chosen = cnnfast.explain(op, **args).method
    for looks in (1, 2):
        times = take_turns(works, rounds if looks == 1 else 3 * rounds, shortest)
        if looks == 1:
            methods = {name: median(found) for name, found in times.items() if name != "auto"}
        else:
            methods |= {name: median(found) for name, found in times.items() if name != "auto"}
        auto, best = median(times["auto"]), min(methods, key=methods.__getitem__)
        # By name and by auto, the chosen method is the same code: the better median is its time.
        regret = min(auto, methods[chosen]) / methods[best] - 1
        if regret <= LIMIT or looks == 2:
            break
        works = {name: works[name] for name in dict.fromkeys(("auto", chosen, best))}
    return Outcome(g, phase, chosen, best, regret, auto, methods, refused, looks)


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Quantiles of the regret, and the share within the limit."""
    regrets = [max(o.regret, 0.0) for o in outcomes]
    quantiles = {f"{100 * q:g}%": quantile(regrets, q) for q in (0.5, 0.9, 0.95, 0.99, 1.0)}
    within = sum(r <= LIMIT for r in regrets) / len(regrets)
    return {"calls": len(regrets), "within": within, "quantiles": quantiles}


def show(outcomes: Sequence[Outcome], worst: int) -> None:
    print(f"{'':24}{'calls':>6}{'within 10%':>12}{'median':>8}{'95%':>8}{'worst':>8}")
    groups: dict[str, list[Outcome]] = {"all": list(outcomes)}
    for o in outcomes:
        for key in (o.phase, o.geometry.dtype, f"chosen: {o.chosen}"):
            groups.setdefault(key, []).append(o)
    for key, own in groups.items():
        s = summary(own)
        q = s["quantiles"]
        print(
            f"{key:24}{s['calls']:6}{s['within']:12.1%}{q['50%']:8.1%}{q['95%']:8.1%}{q['100%']:8.1%}"
        )
    cost = median(o.auto - o.methods[o.chosen] for o in outcomes)
    print(f"\nchoosing costs {1e6 * cost:.1f} us a call (median)\n\nlargest regrets:")
    for o in sorted(outcomes, key=lambda o: -o.regret)[:worst]:
        print(
            f"{o.regret:7.1%}  {o.phase:14} {o.geometry}: {o.chosen} {1e3 * o.auto:.3g} ms, "
            f"{o.best} {1e3 * o.methods[o.best]:.3g} ms"
        )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--count", type=int, default=200, help="geometries (default: 200)")
    parser.add_argument("--threads", type=int, default=1, help="default: 1")
    parser.add_argument("--seed", type=int, default=0, help="of the geometries (default: 0)")
    parser.add_argument("--start", type=int, default=0, help="leave out the first ones")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each (default: 7)")
    parser.add_argument("--shortest", type=float, default=1e-3, help="seconds of a turn, at least")
    parser.add_argument("--worst", type=int, default=15, help="how many to print (default: 15)")
    parser.add_argument("--json", help="where the results go")
    args = parser.parse_args(argv)
    # Read by NumPy's BLAS when it is loaded, so before anything is imported.
    for name in ("CNNFAST", "OMP", "OPENBLAS", "MKL", "BLIS", "VECLIB"):
        suffix = "MAXIMUM_THREADS" if name == "VECLIB" else "NUM_THREADS"
        os.environ[f"{name}_{suffix}"] = str(args.threads)
    import numpy as np

    from cnnfast.info import info

    rng = np.random.default_rng(args.seed)
    geometries = [draw(rng) for _ in range(args.count)][args.start :]
    outcomes = []
    for number, g in enumerate(geometries, args.start + 1):
        for phase in PHASES:
            outcomes.append(judge(g, phase, np.random.default_rng(0), args.rounds, args.shortest))
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{number} of {args.count}: {g}"[:79])
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
    show(outcomes, args.worst)
    date = datetime.now(UTC)
    file = Path(args.json or HERE / "results" / f"regret{args.threads}-{date:%Y%m%d-%H%M%S}.json")
    file.parent.mkdir(exist_ok=True)
    value = {
        "environment": {"date": date.isoformat(timespec="seconds"), **info()},
        "plan": {"suite": "regret", **vars(args)},
        "summary": summary(outcomes),
        "outcomes": [asdict(o) for o in outcomes],
    }
    file.write_text(json.dumps(value, indent=1) + "\n")
    print(f"results: {file}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
