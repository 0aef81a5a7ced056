"""The command line: ``cnnfast info | bench | explain | verify | train``.

Each command parses, calls the library and prints. A user's mistake is one line on stderr and exit
status 2; `verify` and `bench` exit with 1 if a method disagrees with the loops.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import inspect
import json
import math
import os
import re
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from cnnfast import plots
from cnnfast._version import __version__

__all__ = ["main"]


class _MistakeError(Exception):
    """What the user got wrong, in one line."""


class _DisagreementError(Exception):
    """A method disagrees with the loops; the message counts."""


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise _MistakeError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv : sequence of str, optional
        The words after the program's name; those of this process where not given.

    Returns
    -------
    int
        The exit status: 0 on success, 1 if methods disagree, 2 for a user's mistake, 130 if
        interrupted.
    """
    _open_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    command = words[0] if words and words[0] in _COMMANDS else ""
    name = f"cnnfast {command}".strip()
    try:
        args = _parser(words).parse_args(words)
        _check_files(args)
        _COMMANDS[args.command](args)
        sys.stdout.flush()
    except _DisagreementError as disagreement:
        return _complain(name, disagreement, 1)
    except KeyboardInterrupt:
        return _complain(name, "interrupted", 130)
    except BrokenPipeError:
        # The reader of our output has gone (`cnnfast info | head -1`): nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (_MistakeError, ValueError, OSError, ImportError) as mistake:
        return _complain(name, mistake, 2)
    except (ArithmeticError, RuntimeError) as failure:
        return _complain(name, failure, 1)
    return 0


def _open_streams() -> None:
    """Where the shell closed one (`cnnfast info >&-`), what goes there goes nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))


def _complain(name: str, what: object, status: int) -> int:
    line = " ".join(str(what).split()) or type(what).__name__
    own = name.rpartition(" ")[2]
    print(f"{name}: {line.removeprefix(f'{own}: ')}", file=sys.stderr)
    return status


# Words.


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="cnnfast",
        description="Convolutional-network layers for NumPy: compare, check, explain, train.",
    )
    parser.add_argument("--version", action="version", version=f"cnnfast {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_info(commands)
    _add_bench(commands)
    _add_explain(commands, words)
    _add_verify(commands)
    _add_train(commands)
    return parser


def _command(commands: Any, name: str, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=summary[0].upper() + summary[1:] + "."
    )
    _add_json(parser)
    return parser


def _add_json(parser: argparse.ArgumentParser, default: Any = None) -> None:
    parser.add_argument(
        "--json", metavar="FILE", default=default,
        help="write the result as JSON; - prints it and nothing else",
    )  # fmt: skip


def _add_plot(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--plot", metavar="FILE", help=f"draw {what} (.png, .svg or .pdf)")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


_MOST_THREADS = 1024


def _threads(text: str) -> int:
    number = _positive(text)
    if number > _MOST_THREADS:
        raise argparse.ArgumentTypeError(f"must be at most {_MOST_THREADS}, not {number}")
    return number


def _positive_float(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be positive, not {text}")
    return number


_positive.__name__ = _threads.__name__ = "whole number"
_positive_float.__name__ = "number"


def _names(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _thread_counts(text: str) -> tuple[int, ...]:
    return tuple(_threads(word) for word in text.split(","))


_thread_counts.__name__ = "list of whole numbers"


# Files: looked at before the work starts, written at once or not at all.


def _check_files(args: argparse.Namespace) -> None:
    plot = getattr(args, "plot", None)
    if plot is not None:
        _check_target("--plot", plot)
        if Path(plot).suffix.lower().lstrip(".") not in plots.FORMATS:
            raise _MistakeError(f"--plot {plot}: the name must end in .{', .'.join(plots.FORMATS)}")
        reason = plots.missing()
        if reason is not None:
            raise _MistakeError(f"--plot: {reason}")
    if args.json not in (None, "-"):
        _check_target("--json", args.json)


def _check_target(flag: str, name: str) -> None:
    path = Path(name)
    if not name or path.is_dir():
        raise _MistakeError(f"{flag} {name!r} is not the name of a file")
    if path.exists() and not os.access(path, os.W_OK):
        raise _MistakeError(f"{flag} {name}: the file is not writable")
    if _is_special(path):
        return
    folder = path.parent if not path.is_symlink() else Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise _MistakeError(f"{flag} {name}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise _MistakeError(f"{flag} {name}: the folder {folder} is not writable")


def _is_special(path: Path) -> bool:
    """Whether it is a device or a pipe: something to write to, not to replace."""
    return path.exists() and not path.is_file()


def _write(name: str, content: bytes) -> None:
    """Write a file so that nobody ever sees half of it."""
    if _is_special(Path(name)):
        Path(name).write_bytes(content)
        return
    path = Path(os.path.realpath(name))  # of a link, what it points to
    try:
        opened = tempfile.NamedTemporaryFile(  # noqa: SIM115 (the next statement uses it)
            dir=path.parent, prefix=f".{path.name}.", delete=False
        )
    except OSError as error:  # which speaks of the temporary file
        raise OSError(error.errno, error.strerror, name) from None
    with opened as file:
        try:
            file.write(content)
            file.close()
            # A temporary file is its owner's alone; a result is as public as the file was that it
            # replaces, or as the umask says.
            umask = os.umask(0)
            os.umask(umask)
            mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~umask
            Path(file.name).chmod(mode)
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _plain(value: Any) -> Any:
    """`value` in what JSON has: no tuples, no NumPy numbers, no NaN."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _write_json(args: argparse.Namespace, value: Mapping[str, Any]) -> None:
    if args.json is None:
        return
    text = json.dumps(_plain(value), indent=2, allow_nan=False) + "\n"
    if args.json == "-":
        sys.stdout.write(text)
    else:
        _write(args.json, text.encode())


# The screen.


class _Screen:
    """Prints for people, in 80 columns; nothing where JSON goes to stdout.

    A narrower terminal wraps the lines: nothing is cut.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._silent = args.json == "-"
        self._console: Any = None
        if importlib.util.find_spec("rich") is not None:
            from rich.console import Console

            terminal = sys.stdout.isatty()
            # Without a terminal there are no colours, whatever the environment asks for.
            self._console = Console(
                highlight=False,
                markup=False,
                emoji=False,
                soft_wrap=True,
                width=200,
                force_terminal=None if terminal else False,
                color_system="auto" if terminal else None,
            )

    def line(self, text: str = "", style: str = "") -> None:
        if self._silent:
            return
        if self._console is None:
            print(text)
        else:
            self._console.print(text, style=style or None)

    def paragraph(self, text: str, style: str = "") -> None:
        """Words in lines of 80 columns."""
        for line in textwrap.wrap(text, 80):
            self.line(line, style)

    def table(
        self,
        title: str,
        header: Sequence[str],
        rows: Sequence[Sequence[str]],
        styles: Sequence[str] = (),
        left: int = 1,
    ) -> None:
        """A table whose first `left` columns are flush left, the others flush right."""
        if self._silent:
            return
        self.line(title, "bold")
        if self._console is None:
            self._plain_table(header, rows, left)
            return
        from rich import box
        from rich.table import Table

        table = Table(
            box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0),
            header_style="bold",
        )  # fmt: skip
        for index, name in enumerate(header):
            table.add_column(name, justify="left" if index < left else "right", no_wrap=True)
        for index, row in enumerate(rows):
            table.add_row(*row, style=styles[index] if index < len(styles) else None)
        with self._console.capture() as capture:
            self._console.print(table, soft_wrap=False)
        lines = (line.rstrip() for line in capture.get().splitlines())
        print("\n".join(line for line in lines if line), end="\n\n")

    @staticmethod
    def _plain_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> None:
        widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
        for row in (header, ["-" * width for width in widths], *rows):
            cells = (
                cell.ljust(width) if index < left else cell.rjust(width)
                for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            print("  ".join(cells).rstrip())
        print()


class _Status:
    """A line on a terminal's stderr that says what is being done, and goes away."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()

    def __call__(self, words: str) -> None:
        if self._shown:
            sys.stderr.write(f"\r\x1b[K{words[:78]}")
            sys.stderr.flush()

    def clear(self) -> None:
        self("")

    def __enter__(self) -> _Status:
        return self

    def __exit__(self, *exception: object) -> None:
        self.clear()


def _time(seconds: float) -> str:
    unit, size = next(((u, s) for u, s in _UNITS if seconds >= s), _UNITS[-1])
    number = seconds / size
    return f"{number:.{2 if number < 10 else 1 if number < 100 else 0}f} {unit}"


_UNITS = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6))


def _times(ratio: float) -> str:
    return f"{ratio:,.{2 if ratio < 10 else 1 if ratio < 100 else 0}f}x"


def _error(error: float | None) -> str:
    return "-" if error is None else "0" if error == 0 else f"{error:.1e}"


# info


def _add_info(commands: Any) -> None:
    _command(commands, "info", "what is installed, what was compiled, and which path is in use")


def _info(args: argparse.Namespace) -> None:
    import cnnfast

    facts = cnnfast.info()
    screen = _Screen(args)
    rows = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            rows += [(f"{name} {key}", _words(item)) for key, item in value.items()]
        else:
            rows.append((name, _words(value)))
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        screen.line(f"{name:{width}}  {text}")
    _write_json(args, facts)


def _basics() -> dict[str, Any]:
    """What every result says about where it comes from."""
    import cnnfast

    facts = cnnfast.info()
    return {key: facts[key] for key in ("version", "compiled", "isa", "threads")}


def _words(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return str(value)


# bench


def _add_bench(commands: Any) -> None:
    from cnnfast.suites import SUITES

    parser = _command(commands, "bench", "time every method against the loops, checked first")
    parser.add_argument(
        "--suite", default="courses", choices=list(SUITES), metavar="NAME",
        help=f"{', '.join(SUITES)} (default: courses)",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", type=_names, default=("float32", "float64"), metavar="D,...",
        help="default: float32,float64",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=_thread_counts, default=(1,), metavar="N,...", help="default: 1"
    )
    parser.add_argument(
        "--methods", type=_names, metavar="M,...", help="only these methods of cnnfast"
    )
    parser.add_argument(
        "--peers", type=_names, default=(), metavar="P,...",
        help="other libraries to compare with: torch, onnxruntime, scipy",
    )  # fmt: skip
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="only the cases whose name contains TEXT"
    )
    parser.add_argument(
        "--seconds", type=_positive_float, default=0.5, metavar="S",
        help="for each contestant of each case (default: 0.5)",
    )  # fmt: skip
    parser.add_argument(
        "--naive-seconds", type=_positive_float, default=1.0, metavar="S",
        help="for the loops; what takes longer is timed on a part of the case (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true",
        help="a first look: only what auto chooses, a tenth of the time, other options aside",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the random arrays (default: 0)")
    _add_plot(parser, "the speedups as a bar chart")


def _bench(args: argparse.Namespace) -> None:
    from cnnfast import benchmark

    plan = benchmark.Plan(
        suite=args.suite,
        dtypes=args.dtype,
        threads=args.threads,
        methods=args.methods,
        peers=args.peers,
        only=args.only,
        seconds=args.seconds,
        naive_seconds=args.naive_seconds,
        seed=args.seed,
    )
    if args.quick:
        plan = replace(
            plan,
            methods=plan.methods or ("auto",),
            seconds=plan.seconds / 10,
            naive_seconds=plan.naive_seconds / 10,
        )
    screen = _Screen(args)
    with _Status() as status:

        def show(results: list[benchmark.Result]) -> None:
            status.clear()
            _show_layer(screen, results)

        report = benchmark.run(plan, show, status)
    _show_ending(screen, report)
    if args.plot is not None:
        _write(args.plot, _draw_speedups(report, args.plot))
    basics = {key: report.environment[key] for key in ("compiled", "isa")}
    _write_json(args, {**basics, "threads": plan.threads, **report.asdict()})
    if all(r.method == "naive" or r.max_error is None for r in report.results):
        raise _MistakeError("nothing was compared: every call was refused")
    ours = [r for r in report.results if not r.peer]
    wrong = sum(r.wrong for r in ours)
    if wrong:
        raise _DisagreementError(f"{wrong} of {len(ours)} results disagree with naive")


def _show_layer(screen: _Screen, results: Sequence[Any]) -> None:
    first = results[0]
    header = ("method", "threads", "time", "spread", "speedup", "of peak", "max error")
    rows, styles, notes = [], [], []
    best = min((r.seconds for r in results if r.seconds), default=None)
    for r in results:
        if r.note:
            notes.append(f"{r.method}: {r.note}")
        if r.max_error is None:
            continue
        marks = " *" * r.chosen + " ~" * (r.note != "" and r.seconds is not None)
        rows.append(
            (
                r.method + marks,
                str(r.threads),
                "-" if r.seconds is None else _time(r.seconds),
                "-" if r.spread is None or r.samples < 2 else f"{100 * r.spread:.0f}%",
                "-" if r.speedup is None else _times(r.speedup),
                "-" if r.limit is None else f"{100 * r.limit[1]:.0f}% {r.limit[0]}",
                _error(r.max_error) + " !" * r.wrong,
            )
        )
        styles.append("bold red" if r.wrong else "green" if r.seconds == best else "")
    screen.table(f"{first.case}, {first.phase}, {first.dtype}", header, rows, styles)
    for note in dict.fromkeys(notes):
        screen.paragraph(note, "dim")
    if notes:
        screen.line()


def _show_ending(screen: _Screen, report: Any) -> None:
    standings = report.standings()
    for peer in dict.fromkeys(s.peer for s in standings):
        own = [s for s in standings if s.peer == peer]
        screen.table(
            f"Times as fast as {peer}: against {peer}, over all layers",
            ("phase", "dtype", "threads", "layers", "mean", "worst", "losses"),
            [
                (s.phase, s.dtype, str(s.threads), str(s.layers), f"{s.mean:.2f}",
                 f"{s.worst:.2f}", str(s.losses))
                for s in own
            ],
            ["red" if s.losses else "" for s in own],
            left=2,
        )  # fmt: skip
        for s in own:
            screen.paragraph(
                f"worst against {peer}, {s.phase}, {s.dtype}, {_plural(s.threads, 'thread')}: "
                f"{s.worst:.2f} ({s.worst_case})",
                "dim",
            )
        screen.line()
    for line in _peaks(report.roofs):
        screen.paragraph(line)
    facts = report.environment
    versions = {"cnnfast": __version__, "Python": facts["python"], "NumPy": facts["numpy"]}
    spoken = ", ".join(f"{name} {number}" for name, number in (versions | facts["peers"]).items())
    screen.paragraph(f"{facts['processor']}, {facts['processors']} processors, {facts['platform']}")
    screen.paragraph(spoken)
    screen.paragraph(
        "* is what auto chooses; ~ see the note; ! disagrees with naive. Times are medians, spread "
        "is half the distance of the quartiles, errors are relative to the largest output. Of the "
        "measured peaks of multiply-adds (fma) and of copying (copy), that which a method is "
        "nearer to is shown; operations count as in the direct definition."
    )


def _plural(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"


def _peaks(roofs: Sequence[Any]) -> list[str]:
    """The measured peaks in words, and why there are none."""
    lines = []
    for kind, unit in (("fma", "GFLOP/s"), ("copy", "GB/s")):
        own = [roof for roof in roofs if roof.kind == kind]
        found: dict[tuple[str, int], list[float]] = {}
        for roof in own:
            if roof.rate:
                key = (roof.dtype if kind == "fma" else "", roof.threads)
                found.setdefault(key, []).append(roof.rate / 1e9)
        spoken = [
            f"{dtype}{' ' * bool(dtype)}{_plural(threads, 'thread')} {_span(rates)}"
            for (dtype, threads), rates in found.items()
        ]
        if spoken:
            lines.append(f"measured peaks, {kind}, {unit}: {'; '.join(spoken)}")
        reasons = dict.fromkeys(
            f"no {kind} peak with {_plural(roof.threads, 'thread')}: {roof.note}"
            for roof in own
            if roof.rate is None
        )
        lines += reasons
    return lines


def _span(rates: Sequence[float]) -> str:
    low, high = min(rates), max(rates)
    return f"{high:.0f}" if high - low < 1 else f"{low:.0f} to {high:.0f}"


def _draw_speedups(report: Any, name: str) -> bytes:
    facts = report.environment
    versions = [f"cnnfast {__version__}", f"NumPy {facts['numpy']}"]
    versions += [f"{peer} {number}" for peer, number in facts["peers"].items()]
    threads = "" if len(report.plan.threads) > 1 else f", {report.plan.threads[0]} thread"
    threads += "s" if threads and report.plan.threads[0] > 1 else ""
    return plots.speedups(
        report.results,
        f"How many times faster than Python loops (suite {report.plan.suite}{threads})",
        f"{facts['processor']}; {', '.join(versions)}; medians, {facts['date'][:10]}",
        Path(name).suffix.lower().lstrip("."),
    )


# explain

_ARRAYS = {
    *("x", "w", "b", "dy", "y", "cols", "indices", "mask", "running_mean", "running_var"),
    *("weight", "bias", "mean", "rstd", "scores", "labels", "pred", "target"),
}


def _add_explain(commands: Any, words: Sequence[str]) -> None:
    from cnnfast import dispatch, functional

    parser = commands.add_parser(
        "explain",
        help="which method would run for a call, and why not the others",
        description="Which method would run for a call, and why not the others.",
        epilog=f"Operations: {', '.join(dispatch.TABLE)}. Each has a --help of its own.",
    )
    _add_explain_options(parser, None, "float32")
    operations = parser.add_subparsers(dest="op", metavar="OPERATION", required=True)
    for op in dispatch.TABLE:
        operation = operations.add_parser(op, description=f"What would run for {op}.")
        if op not in words:
            continue  # nobody will ask it for its arguments, which are many
        _add_explain_options(operation, argparse.SUPPRESS, argparse.SUPPRESS)
        parameters = inspect.signature(getattr(functional, op)).parameters
        for name, parameter in parameters.items():
            if name == "rng":
                continue
            array = name in _ARRAYS
            operation.add_argument(
                *dict.fromkeys((f"--{name.replace('_', '-')}", f"--{name}")),
                dest=f"call_{name}",
                type=_shape if array else str if name == "method" else _value,
                metavar="SHAPE" if array else "VALUE",
                required=parameter.default is parameter.empty,
                default=argparse.SUPPRESS,
                help="1,3,32,32" if array else None,
            )


def _add_explain_options(parser: argparse.ArgumentParser, json: Any, dtype: str) -> None:
    """Options that may stand on either side of the operation's name, and their defaults."""
    _add_json(parser, default=json)
    parser.add_argument("--dtype", default=dtype, choices=("float32", "float64"))


def _shape(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+(,\d+)*,?", text):
        raise argparse.ArgumentTypeError(f"must be a shape such as 1,3,32,32, not {text!r}")
    return tuple(int(number) for number in text.rstrip(",").split(","))


def _value(text: str) -> Any:
    """An argument as Python spells it; a word such as same is a string."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _explain(args: argparse.Namespace) -> None:
    import numpy as np

    import cnnfast

    words = {
        name.removeprefix("call_"): value
        for name, value in vars(args).items()
        if name.startswith("call_")
    }
    if args.op == "dropout":
        words["rng"] = np.random.default_rng()
    try:
        explanation = cnnfast.explain(args.op, dtype=args.dtype, **words)
    except TypeError as mistake:
        raise _MistakeError(str(mistake)) from None
    _Screen(args).line(str(explanation))
    _write_json(args, explanation.asdict())


# verify


def _add_verify(commands: Any) -> None:
    parser = _command(commands, "verify", "compare every method with the loops on random calls")
    parser.add_argument(
        "--cases", type=_positive, default=20, metavar="N", help="calls per operation (default: 20)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="default: 0")
    parser.add_argument("--ops", type=_names, metavar="OP,...", help="only these operations")
    parser.add_argument("--methods", type=_names, metavar="M,...", help="only these methods")
    parser.add_argument(
        "--peers", type=_names, default=(), metavar="P,...", help="compare torch as well"
    )


_SHOWN_FAILURES = 10


def _verify(args: argparse.Namespace) -> None:
    from cnnfast.verify import verify

    if args.seed < 0:
        raise _MistakeError(f"--seed must be at least 0, not {args.seed}")
    screen = _Screen(args)
    with _Status() as status:
        rows = verify(
            args.cases,
            args.seed,
            ops=args.ops,
            methods=args.methods,
            peers=args.peers,
            progress=status,
        )
    pairs: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        pairs.setdefault((row.op, row.method), {})[row.dtype] = row
    lines, styles, last = [], [], ""
    for (op, method), by_dtype in pairs.items():
        cells = [
            _error(row.max_error if row.cases else None)
            for row in (by_dtype["float32"], by_dtype["float64"])
        ]
        failed = sum(row.failed for row in by_dtype.values())
        skipped = max(row.skipped for row in by_dtype.values())
        cases = max(row.cases for row in by_dtype.values())
        lines.append(
            ("" if op == last else op, method, str(cases), str(skipped), *cells, str(failed))
        )
        styles.append("bold red" if failed else "")
        last = op
    header = ("operation", "method", "calls", "refused", "float32", "float64", "failed")
    screen.table("Largest errors against naive in float64", header, lines, styles, left=2)
    failed, compared = sum(row.failed for row in rows), sum(row.cases for row in rows)
    failures = [row.failures[0] for row in rows if row.failures]
    for failure in failures[:_SHOWN_FAILURES]:
        screen.line(failure)
    if len(failures) > _SHOWN_FAILURES:
        screen.line(f"... and {len(failures) - _SHOWN_FAILURES} more kinds (see --json)")
    if compared and not failed:
        screen.line(f"{compared} comparisons, all within their bounds (seed {args.seed}).")
    results = [vars(row) for row in rows]
    _write_json(args, {**_basics(), "seed": args.seed, "failed": failed, "results": results})
    if not compared:
        raise _MistakeError("nothing was compared: every call was refused")
    if failed:
        raise _DisagreementError(f"{failed} of {compared} comparisons disagree with naive")


# train


@dataclass(frozen=True)
class _Recipe:
    """How a data set is trained on where the user does not say otherwise."""

    epochs: int
    batch_size: int
    lr: float
    width: int
    flip: float | str = 0.0
    shift: int = 0
    label_smoothing: float = 0.0
    update_rule: str = "adamw"
    optim_config: Mapping[str, Any] = field(default_factory=lambda: {"weight_decay": 0.05})
    schedule: str = "one_cycle"
    stages: tuple[tuple[float, int], ...] = ()  # until which part of the run, images shrunk by what
    paced: bool = False  # whether a time limit stretches the schedule


_RECIPES = {
    "digits": _Recipe(epochs=15, batch_size=64, lr=1e-2, width=32, label_smoothing=0.1),
    "mnist": _Recipe(epochs=5, batch_size=100, lr=1e-2, width=8, shift=2),
    "cifar10": _Recipe(epochs=10, batch_size=100, lr=1e-2, width=16, flip=0.5, shift=4),
}
_TRAINING_IMAGES_TO_CHECK = 5000  # at the end, which should not take as long as an epoch
_MODELS = ("small", "three-layer", "deep", "fast")
_FAST: dict[str, Any] = {
    "update_rule": "sgd",
    "optim_config": {"momentum": 0.85, "nesterov": True, "weight_decay": 1e-3},
    "schedule": "triangular",
    "batch_size": 128,
    "lr": 0.2,
    "label_smoothing": 0.2,
    "paced": True,
}


def _add_train(commands: Any) -> None:
    parser = _command(commands, "train", "train a small network on real images")
    parser.add_argument("--data", required=True, choices=list(_RECIPES))
    parser.add_argument("--data-dir", metavar="DIR", help="where the files of mnist, cifar10 are")
    parser.add_argument("--model", default="small", choices=_MODELS, help="default: small")
    parser.add_argument("--epochs", type=_positive, metavar="N")
    parser.add_argument(
        "--time-limit", type=_positive_float, metavar="S",
        help="seconds of training; loading and the final evaluation come on top; the fast model's "
        "learning rate ends with it",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=_positive, metavar="N")
    parser.add_argument("--lr", type=_positive_float, help="the highest learning rate")
    parser.add_argument("--checkpoint", metavar="DIR", help="keep the state of the run there")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="default: 0")
    parser.add_argument("--threads", type=_threads, metavar="N", help="default: all processors")
    parser.add_argument("--profile", action="store_true", help="show where the time of a step goes")
    _add_plot(parser, "the curves and the first filters")


def _train(args: argparse.Namespace) -> None:
    import numpy as np

    import cnnfast
    from cnnfast.data import Augment, Stages
    from cnnfast.data.augment import mirrored
    from cnnfast.nn import CrossEntropyLoss
    from cnnfast.training import Solver

    if args.seed < 0:
        raise _MistakeError(f"--seed must be at least 0, not {args.seed}")
    resumed = _finds_checkpoint(args)
    screen = _Screen(args)
    if args.threads is not None:
        cnnfast.set_num_threads(args.threads)
        _limit_blas(args.threads, screen)
    recipe = _RECIPES[args.data]
    if args.model == "fast":
        recipe = replace(recipe, **_FAST)
        if args.data == "cifar10":
            recipe = replace(recipe, flip="alternating", shift=0, stages=((0.5, 2), (1.0, 1)))
    rng = np.random.default_rng(args.seed)
    data = _load(args)
    model = _build(args.model, data.input_shape, data.num_classes, recipe.width, rng)
    size = sum(p.size for p in model.params.values())
    sizes = (len(data.y_train), len(data.y_val), len(data.y_test))
    screen.paragraph(
        f"{args.data}: images of {'x'.join(map(str, data.input_shape))}, {sizes[0]:,} to train on, "
        f"{sizes[1]:,} to choose by, {sizes[2]:,} to test on. Model {args.model}: {size:,} "
        "parameters."
    )
    terminal = sys.stderr.isatty()
    progress = terminal and importlib.util.find_spec("tqdm") is not None
    if terminal and not progress:
        screen.line("There is no progress bar without tqdm (pip install 'cnnfast[cli]').")
    augment: Any = Augment(recipe.flip, recipe.shift)
    if recipe.stages:
        augment = Stages(tuple((end, replace(augment, shrink=n)) for end, n in recipe.stages))
    # The courses' models bring their own loss.
    loss = CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    solver = Solver(
        model,
        data,
        loss=None if hasattr(model, "loss") else loss,
        update_rule=recipe.update_rule,
        optim_config={"lr": args.lr or recipe.lr, **recipe.optim_config},
        num_epochs=args.epochs or recipe.epochs,
        batch_size=args.batch_size or recipe.batch_size,
        schedule=recipe.schedule,
        augment=augment,
        rng=rng,
        progress=progress,
        checkpoint=args.checkpoint,
        resume=args.resume,
    )
    if resumed:
        screen.paragraph(
            f"Going on from step {solver.resumed_from:,} with the random state of the checkpoint: "
            "--seed has no effect."
        )
    elif args.resume:
        screen.line(f"No checkpoint in {args.checkpoint} yet: starting from the beginning.")
    start = time.perf_counter()
    # A loss that is not finite is the Solver's to report, once.
    with np.errstate(over="ignore", invalid="ignore"):
        paced = recipe.paced and args.time_limit is not None
        solver.train(time_limit=args.time_limit, paced=paced)
    seconds = time.perf_counter() - start
    trained = dict(solver.seconds)
    check = solver.check_accuracy
    accuracies = {
        "train_accuracy": check(data.X_train, data.y_train, _TRAINING_IMAGES_TO_CHECK),
        "val_accuracy": check(data.X_val, data.y_val),
        "test_accuracy": check(data.X_test, data.y_test),
    }
    if recipe.flip:
        accuracies["mirrored_val_accuracy"] = check(data.X_val, data.y_val, views=mirrored)
        accuracies["mirrored_test_accuracy"] = check(data.X_test, data.y_test, views=mirrored)
    spoken = [f"{name.partition('_')[0]} {value:.2%}" for name, value in accuracies.items()]
    screen.line(f"accuracy: {', '.join(spoken[:3])}", "bold")
    if recipe.flip:
        both = (accuracies[f"mirrored_{part}_accuracy"] for part in ("val", "test"))
        screen.line("with the scores of mirror images added: val {:.2%}, test {:.2%}".format(*both))
    rate = (solver.steps - solver.resumed_from) / seconds
    screen.line(
        f"{solver.steps:,} steps, {solver.steps / solver.steps_per_epoch:.3g} epochs, "
        f"{seconds:.1f} s ({rate:,.0f} steps a second)"
    )
    profile = _profile(trained, solver.steps - solver.resumed_from)
    if args.profile:
        rows = [
            (part, f"{row['ms_per_step']:.3f}", f"{row['share']:.1%}")
            for part, row in profile.items()
        ]
        screen.table("Time of training", ("part", "ms a step", "share"), rows)
    if args.plot is not None:
        title = f"{args.data}, {args.model} model: test accuracy {accuracies['test_accuracy']:.2%}"
        _write(args.plot, _draw_training(solver, model, title, args.plot))
        screen.line(f"picture: {args.plot}")
    _write_json(
        args,
        {
            **_basics(),
            "data": args.data,
            "model": args.model,
            "parameters": size,
            # The seed of the run's beginning is not in the checkpoint.
            "seed": None if resumed else args.seed,
            **accuracies,
            "seconds": seconds,
            "epochs": solver.epoch,
            "steps": solver.steps,
            "resumed_from": solver.resumed_from,
            "profile": profile,
            "loss_history": solver.loss_history,
            "train_acc_history": solver.train_acc_history,
            "val_acc_history": solver.val_acc_history,
        },
    )


def _profile(seconds: Mapping[str, float], steps: int) -> dict[str, dict[str, float]]:
    """For each part of the training loop: seconds, milliseconds a step, share of the whole."""
    total = sum(seconds.values())
    return {
        part: {
            "seconds": spent,
            "ms_per_step": 1e3 * spent / max(steps, 1),
            "share": spent / total if total else 0.0,
        }
        for part, spent in {**seconds, "total": total}.items()
    }


def _finds_checkpoint(args: argparse.Namespace) -> bool:
    """Whether this run goes on from a checkpoint; complains of what cannot work."""
    if args.checkpoint is None:
        if args.resume:
            raise _MistakeError("--resume needs --checkpoint DIR")
        return False
    folder = Path(args.checkpoint)
    if not args.checkpoint or (folder.exists() and not folder.is_dir()):
        raise _MistakeError(f"--checkpoint {args.checkpoint!r} is not the name of a folder")
    if importlib.util.find_spec("safetensors") is None:
        raise _MistakeError("--checkpoint needs safetensors: pip install 'cnnfast[save]'")
    found = (folder / "checkpoint.safetensors").is_file()
    if found and not args.resume:
        raise _MistakeError(
            f"--checkpoint {folder} holds a checkpoint already: add --resume to go on from it"
        )
    return found


def _limit_blas(threads: int, screen: _Screen) -> None:
    """NumPy's matrix products have threads of their own."""
    if importlib.util.find_spec("threadpoolctl") is None:
        screen.line("NumPy's BLAS keeps its own number of threads: threadpoolctl is not installed.")
        return
    importlib.import_module("threadpoolctl").threadpool_limits(threads)


def _load(args: argparse.Namespace) -> Any:
    from cnnfast import data

    # Shifted images get zeros at their edges: black is 0 in the pictures of digits as they are, and
    # in photographs 0 should be the mean colour.
    if args.data == "digits":
        if args.data_dir is not None:
            raise _MistakeError("--data digits takes no --data-dir: they come with scikit-learn")
        return data.load_digits()
    if args.data_dir is None:
        raise _MistakeError(f"--data {args.data} needs --data-dir DIR")
    if args.data == "mnist":
        return data.load_mnist(args.data_dir)
    return data.load_cifar10(args.data_dir).standardized()


def _build(name: str, shape: tuple[int, ...], classes: int, width: int, rng: Any) -> Any:
    from cnnfast import models

    if name == "small":
        return models.small_cnn(shape, classes, width=width, rng=rng)
    if name == "fast":
        return models.fast_cnn(shape, classes, rng=rng)
    if name == "three-layer":
        return models.ThreeLayerConvNet(
            shape, filter_size=5, num_classes=classes, weight_scale="kaiming", rng=rng
        )
    # As many poolings as halve the image to no less than 2 pixels.
    filters = (16, 32, 32, 64, 64)
    pools = range(min(len(filters), min(shape[1:]).bit_length() - 2))
    return models.DeepConvNet(
        shape, filters, pools, batchnorm=True, num_classes=classes, weight_scale="kaiming", rng=rng
    )


def _draw_training(solver: Any, model: Any, title: str, name: str) -> bytes:
    # After the first step, after each epoch, and where a time limit ended the last one.
    epochs = [float(epoch) for epoch in range(len(solver.val_acc_history))]
    epochs[0] = 1 / solver.steps_per_epoch
    epochs[-1] = solver.steps / solver.steps_per_epoch
    filters = next((p for p in model.params.values() if p.ndim == 4), None)
    return plots.training(
        solver.loss_history,
        epochs,
        {"training": solver.train_acc_history, "validation": solver.val_acc_history},
        filters,
        title,
        Path(name).suffix.lower().lstrip("."),
    )


_COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "info": _info,
    "bench": _bench,
    "explain": _explain,
    "verify": _verify,
    "train": _train,
}
