"""Write the figures of README.md and docs from the results that ``benchmarks/run.py`` left.

``python benchmarks/report.py`` reads the newest result of each suite in ``benchmarks/results`` (or
the files that it is given) and writes

- what stands between ``<!-- figures -->`` and ``<!-- /figures -->`` in ``README.md`` and in
  ``docs/performance.md``: means, worst layers and losses, against each peer;
- ``docs/figures.md``: every layer;
- ``docs/peers.png``: the chart.

With ``--check`` nothing is written; the exit status is 1 if something would change.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

from cnnfast import plots  # noqa: E402
from cnnfast.benchmark import Result, Standing, against, geometric_mean, standings  # noqa: E402
from cnnfast.methods.winograd import axis  # noqa: E402
from cnnfast.suites import SUITES, Case  # noqa: E402

BEGIN, END = "<!-- figures -->", "<!-- /figures -->"
PEERS = {"torch": "PyTorch", "onnxruntime": "ONNX Runtime", "scipy": "SciPy"}
TITLES = {
    "courses": "the courses' layers",
    "gradients": "the courses' convolutions",
    "vgg": "VGG on CIFAR-10",
    "resnet50": "ResNet-50, batch 1 and 8",
    "mobilenet": "MobileNetV2",
    "odd": "5x5, odd sizes, groups",
    "pool": "pooling",
    "norm": "batch norm",
    "relu": "ReLU",
    "linear": "linear",
    "training": "training step, batch 100",
    "networks": "whole networks, batch 1",
}


class Figures:
    """The results of several files, by suite."""

    def __init__(self, files: Iterable[Path]) -> None:
        self.suites: dict[str, list[Result]] = {}
        self.roofs: list[Mapping[str, Any]] = []
        self.regrets: list[Mapping[str, Any]] = []
        self.seconds: set[float] = set()
        self.environment: Mapping[str, Any] = {}
        known = {field.name for field in fields(Result)}
        for file in files:
            value = json.loads(file.read_text())
            suite = value["plan"]["suite"]
            self.environment = {**self.environment, **value["environment"]}
            if suite == "regret":
                self.regrets.append(value)
                continue
            rows = [
                Result(**{name: item for name, item in row.items() if name in known})
                for row in value["results"]
            ]
            self.suites.setdefault(suite, []).extend(rows)
            self.seconds.add(value["plan"]["seconds"])
            self.roofs += value.get("roofs", [])

    def standings(self, peer: str) -> dict[str, list[Standing]]:
        """For each suite, in the order of `SUITES`."""
        found = {}
        for suite in SUITES:
            own = [s for s in standings(self.suites.get(suite, [])) if s.peer == peer]
            if own:
                found[suite] = own
        return found

    @property
    def peers(self) -> list[str]:
        met = {r.method for results in self.suites.values() for r in results if r.peer}
        return [peer for peer in PEERS if peer in met]


def newest(folder: Path) -> list[Path]:
    """The newest file of each suite."""
    found: dict[str, Path] = {}
    for file in sorted(folder.glob("*.json")):  # SUITE-DATE-TIME.json
        found[file.stem.rsplit("-", 2)[0]] = file
    return list(found.values())


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def columns(standing: Iterable[Standing]) -> list[tuple[str, int]]:
    return sorted({(s.dtype, s.threads) for s in standing})


def heading(dtype: str, threads: int) -> str:
    return f"{dtype}, {threads} thread{'s' * (threads > 1)}"


def summary(figures: Figures, peer: str) -> str:
    """Means and worst layers against one peer."""
    by_suite = figures.standings(peer)
    wanted = columns(s for own in by_suite.values() for s in own)
    rows = []
    for suite, own in by_suite.items():
        for phase in dict.fromkeys(s.phase for s in own):
            cells = {(s.dtype, s.threads): s for s in own if s.phase == phase}
            layers = max(s.layers for s in cells.values())
            title = TITLES.get(suite, suite)
            rows.append(
                [f"{title}: {phase}", str(layers), *(_cell(cells.get(key)) for key in wanted)]
            )
    return table(["", "cases", *(heading(*key) for key in wanted)], rows)


def _cell(s: Standing | None) -> str:
    if s is None:
        return ""
    if s.layers == 1:
        return f"{s.mean:.2f}"
    return f"{s.mean:.2f} ({s.worst:.2f})"


def losses(figures: Figures, peer: str) -> str:
    """Every layer on which the peer was faster, worst first."""
    found = []
    for results in figures.suites.values():
        for ours, theirs in against(results, peer):
            assert ours.seconds is not None
            assert theirs.seconds is not None
            found.append((theirs.seconds / ours.seconds, ours, theirs))
    lost = sorted((item for item in found if item[0] < 1), key=lambda item: item[0])
    words = f"{PEERS[peer]} was faster in {len(lost)} of {len(found)} comparisons"
    if not lost:
        return f"{words}."
    rows = [
        [f"{ours.case}, {ours.phase}", ours.dtype, str(ours.threads), _ms(ours), _ms(theirs),
         f"{ratio:.2f}"]
        for ratio, ours, theirs in lost
    ]  # fmt: skip
    header = ["", "dtype", "threads", "cnnfast, ms", f"{PEERS[peer]}, ms", "ratio"]
    return f"{words}:\n\n{table(header, rows)}"


def _ms(r: Result) -> str:
    return f"{1e3 * (r.seconds or 0):.3g}"


def spared(case: Case) -> float:
    """How many times fewer multiplications the fastest algorithm here has than the definition."""
    if case.options["groups"] == case.shapes["x"][1]:
        return 1.0
    stride, dilation = case.options["stride"], case.options["dilation"]
    axes = [(k, axis(k, stride, dilation)) for k in case.shapes["w"][2:]]
    return max(1.0, math.prod(k * a.outputs / (a.points * a.pieces) for k, a in axes))


def bounds(figures: Figures, peer: str) -> str:
    """How far the peer could be beaten on all convolutions, by a kernel without flaw."""
    cases = {(c.name, c.phase): c for own in SUITES.values() for c in own if "w" in c.shapes}
    found: dict[str, dict[tuple[str, int], list[tuple[float, float]]]] = {}
    for results in figures.suites.values():
        for ours, theirs in against(results, peer):
            case = cases.get((ours.case, ours.phase))
            if case is None or "conv2d" not in case.op or None in (ours.of_fma, ours.of_copy):
                continue
            share = max((ours.of_fma or 0.0) / spared(case), min(ours.of_copy or 0.0, 1.0))
            ratio = _ratio(theirs, ours)
            cells = found.setdefault(ours.phase, {})
            cells.setdefault((ours.dtype, ours.threads), []).append((ratio, ratio / share))
    if not found:
        return ""
    wanted = sorted({key for cells in found.values() for key in cells})
    rows = [
        [phase, *(_reached(cells.get(key, [])) for key in wanted)] for phase, cells in found.items()
    ]
    words = (
        f"Times as fast as {PEERS[peer]} on all convolutions, in the geometric mean, and what "
        "a kernel would reach that wastes nothing: at the measured peak of multiply-adds, with "
        "as few multiplications as Winograd's tiles need and their transforms for nothing, or "
        "at the speed of a copy of its inputs and outputs where that takes longer:"
    )
    return f"{words}\n\n{table(['', *(heading(*key) for key in wanted)], rows)}"


def _reached(pairs: Sequence[tuple[float, float]]) -> str:
    if not pairs:
        return ""
    reached, most = (geometric_mean(values) for values in zip(*pairs, strict=True))
    return f"{reached:.2f} of {most:.2f}"


def peaks(figures: Figures) -> str:
    """The measured limits of the machine in words."""
    words = []
    for kind, name, unit in (("fma", "multiply-adds", "GFLOP/s"), ("copy", "copying", "GB/s")):
        found: dict[tuple[str, int], list[float]] = {}
        for roof in figures.roofs:
            if roof["kind"] == kind and roof["rate"]:
                key = (roof["dtype"] if kind == "fma" else "", roof["threads"])
                found.setdefault(key, []).append(roof["rate"] / 1e9)
        if found:
            spoken = (
                f"{heading(*key).removeprefix(', ')}: {min(rates):.0f} to {max(rates):.0f}"
                for key, rates in sorted(found.items())
            )
            words.append(f"{name}, {unit}: {'; '.join(spoken)}")
    return f"Measured peaks: {'. '.join(words)}." if words else ""


def regrets(figures: Figures) -> str:
    """One sentence for each run of ``regret.py``."""
    lines = []
    for value in figures.regrets:
        s, threads = value["summary"], value["plan"]["threads"]
        lines.append(
            f"Of {s['calls']} calls of random geometry ({heading('both dtypes', threads)}), what "
            f"`auto` chose was within 10% of the best method in {s['within']:.1%}; the median "
            f"regret was {s['quantiles']['50%']:.1%}, the largest {s['quantiles']['100%']:.0%}."
        )
    return "\n".join(lines)


def where(figures: Figures) -> str:
    facts = figures.environment
    versions = [f"cnnfast {facts['version']}", f"NumPy {facts['numpy']}"]
    versions += [f"{PEERS[p]} {v}" for p, v in facts.get("peers", {}).items()]
    return f"{facts['processor']} ({facts['isa']}), {', '.join(versions)}, {facts['date'][:10]}"


# For each contestant, in the commands that are shown.
_SECONDS = 0.1


def commands(figures: Figures) -> str:
    suites = [suite for suite in SUITES if suite in figures.suites]
    threads = sorted({r.threads for results in figures.suites.values() for r in results})
    peers = ",".join(figures.peers)
    lines = [
        f"for suite in {' '.join(suites)}; do",
        f"    python benchmarks/run.py --suite $suite --methods auto --peers {peers} \\",
        f"        --threads {','.join(map(str, threads))} --seconds {_SECONDS} --naive-seconds 0.1",
        "done",
    ]
    lines += [
        f"python benchmarks/regret.py --threads {v['plan']['threads']}" for v in figures.regrets
    ]
    block = "\n".join(["```sh", *lines, "python benchmarks/report.py", "```"])
    if figures.seconds <= {_SECONDS}:
        return block
    spread = f"from {min(figures.seconds):g} to {max(figures.seconds):g}"
    return f"{block}\n\n(Some suites with `--seconds` {spread}, or in one dtype only.)"


def overview(figures: Figures) -> str:
    """What README.md shows."""
    parts = []
    for peer in figures.peers:
        parts.append(
            f"Times as fast as {PEERS[peer]} in the geometric mean, in parentheses the worst case; "
            "below 1 is a loss:"
        )
        parts.append(summary(figures, peer))
    if "torch" in figures.peers:
        parts.append("![Dots of how many times as fast as PyTorch each layer is](docs/peers.png)")
    parts += [regrets(figures), peaks(figures), f"Measured on {where(figures)}, by"]
    parts += [
        commands(figures),
        "[Every layer](docs/figures.md), [how it is measured](benchmarks/README.md).",
    ]
    return "\n\n".join(part for part in parts if part)


def details(figures: Figures) -> str:
    """What docs/performance.md shows: the losses by name."""
    parts = [f"Measured on {where(figures)}; [every layer](figures.md).", peaks(figures)]
    for peer in figures.peers:
        parts += [f"Against {PEERS[peer]}:", summary(figures, peer), bounds(figures, peer)]
        parts.append(losses(figures, peer))
    parts.append(regrets(figures))
    return "\n\n".join(part for part in parts if part)


def every_layer(figures: Figures) -> str:
    """The whole of docs/figures.md."""
    parts = [
        "# Every layer",
        "Milliseconds, medians; each peer's time over cnnfast's, so that below 1 is a loss; and "
        "what share cnnfast reached of the measured peak that is nearer, multiply-adds (fma) or "
        f"copying (copy). {where(figures)}. Made by `benchmarks/report.py`.",
    ]
    for suite in SUITES:
        results = figures.suites.get(suite, [])
        if not results:
            continue
        ratios: dict[tuple[str, str, str, int], dict[str, Result]] = {}
        ours: dict[tuple[str, str, str, int], Result] = {}
        for peer in figures.peers:
            for own, theirs in against(results, peer):
                key = (own.case, own.phase, own.dtype, own.threads)
                ours[key] = own
                ratios.setdefault(key, {})[peer] = theirs
        peers = [peer for peer in figures.peers if any(peer in row for row in ratios.values())]
        rows = []
        for key, own in ours.items():
            row = [f"{key[0]}, {key[1]}", key[2], str(key[3]), own.chose or own.method, _ms(own)]
            for peer in peers:
                theirs = ratios[key].get(peer)
                row += ["", ""] if theirs is None else [_ms(theirs), f"{_ratio(theirs, own):.2f}"]
            share = "" if own.limit is None else f"{100 * own.limit[1]:.0f}% {own.limit[0]}"
            rows.append([*row, share])
        header = ["", "dtype", "threads", "method", "cnnfast"]
        for peer in peers:
            header += [PEERS[peer], "ratio"]
        parts += [f"## {TITLES.get(suite, suite)}", table([*header, "of peak"], rows)]
    return "\n\n".join(parts) + "\n"


def _ratio(theirs: Result, ours: Result) -> float:
    return (theirs.seconds or 0.0) / (ours.seconds or 1.0)


def chart(figures: Figures) -> bytes:
    """The ratios to PyTorch, one dot for each layer."""
    groups: dict[str, dict[str, list[float]]] = {}
    for suite in SUITES:
        for ours, theirs in against(figures.suites.get(suite, []), "torch"):
            label = f"{TITLES.get(suite, suite)}\n{ours.phase}"
            series = groups.setdefault(label, {})
            key = heading(ours.dtype, ours.threads)
            series.setdefault(key, []).append(_ratio(theirs, ours))
    everything = [v for series in groups.values() for values in series.values() for v in values]
    title = "Times as fast as PyTorch"
    if everything:
        title += f" ({geometric_mean(everything):.2f} in the geometric mean of {len(everything)})"
    return plots.ratios(groups, "PyTorch", title, where(figures))


def between(text: str, content: str) -> str:
    """`text` with `content` between the markers."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"there must be one {BEGIN} and behind it one {END}")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{content}\n\n{END}{after}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("files", nargs="*", type=Path, help="results (default: the newest)")
    parser.add_argument("--root", type=Path, default=ROOT, help="of the project")
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args(argv)
    files = args.files or newest(HERE / "results")
    if not files:
        print("report: there are no results; benchmarks/run.py makes them", file=sys.stderr)
        return 2
    figures, docs = Figures(files), args.root / "docs"
    texts = {
        args.root / "README.md": overview(figures),
        docs / "performance.md": details(figures),
    }
    new = {file: between(file.read_text(), content) for file, content in texts.items()}
    new[docs / "figures.md"] = every_layer(figures)
    changed = [file for file, text in new.items() if not file.exists() or file.read_text() != text]
    if args.check:
        print("\n".join(f"{file} would change" for file in changed))
        return int(bool(changed))
    for file in changed:
        file.write_text(new[file])
    if "torch" in figures.peers and plots.missing() is None:
        (docs / "peers.png").write_bytes(chart(figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
