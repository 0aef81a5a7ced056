"""The pictures of the command line, drawn with matplotlib.

matplotlib is imported when a picture is drawn, not before. Nothing here opens a window or touches
pyplot's state: each function returns the bytes of an image file.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping, Sequence
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from cnnfast.benchmark import Result

__all__ = ["FORMATS", "missing", "ratios", "speedups", "training"]

FORMATS = ("png", "svg", "pdf")

# The palette of Okabe and Ito, which readers of every colour vision can tell apart.
_COLOURS: dict[str, str] = {
    "im2col": "#0072B2",
    "cython": "#D55E00",
    "engine": "#000000",
    "portable": "#56B4E9",
    "toeplitz": "#009E73",
    "torch": "#E69F00",
    "onnxruntime": "#CC79A7",
    "scipy": "#999999",
}
# For methods without a colour of their own, as they are met (Paul Tol's palettes).
_SPARE = ("#882255", "#44AA99", "#332288", "#DDCC77", "#AA4499", "#117733", "#777777")
_Corner = Literal["upper right", "lower right"]
_INK, _GRID = "#333333", "#DDDDDD"


def missing() -> str | None:
    """None where pictures can be drawn, else one sentence that says what is lacking."""
    if importlib.util.find_spec("matplotlib") is None:
        return "matplotlib is not installed (pip install 'cnnfast[cli]')"
    return None


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=150, facecolor="white")
    return buffer.getvalue()


def _tidy(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=_INK, labelsize=8)


def speedups(results: Sequence[Result], title: str, footnote: str = "", kind: str = "png") -> bytes:
    """Bars of how many times faster than the loops each method is, on a logarithmic axis.

    One panel for each dtype, one group of bars for each layer; hatched bars had more than one
    thread.

    Parameters
    ----------
    results : sequence of Result
        What ``benchmark.run`` gave.
    title, footnote : str
        Words above and below.
    kind : str
        One of `FORMATS`.
    """
    timed = [r for r in results if r.speedup and r.method != "naive"]
    dtypes = list(dict.fromkeys(r.dtype for r in timed)) or ["float32"]
    layers = list(dict.fromkeys((r.case, r.phase) for r in timed))
    contestants = list(dict.fromkeys((r.method, r.threads) for r in timed))
    others = dict.fromkeys(c[0] for c in contestants if c[0] not in _COLOURS)
    colours = _COLOURS | dict(zip(others, chain(_SPARE, repeat(_SPARE[-1])), strict=False))
    contestants.sort(key=lambda c: ([*_COLOURS, c[0]].index(c[0]), c[1]))
    bars = [[c for c in contestants if any(_is(r, layer, c) for r in timed)] for layer in layers]
    rows = sum(len(group) for group in bars) + len(layers)
    figure = _figure(3.6 + 3.6 * len(dtypes), 1.5 + 0.165 * max(rows, 4))
    panels = figure.subplots(1, len(dtypes), sharex=True, sharey=True, squeeze=False)[0]
    most = max((r.speedup or 1.0 for r in timed), default=10.0)
    least = min((r.speedup or 1.0 for r in timed), default=1.0)
    named: dict[str, Any] = {}
    for axes, dtype in zip(panels, dtypes, strict=True):
        _tidy(axes)
        place, middles = 0.0, []
        for layer, group in zip(layers, bars, strict=True):
            middles.append(place + (len(group) - 1) / 2)
            for contestant in group:
                found = [r for r in timed if r.dtype == dtype and _is(r, layer, contestant)]
                if found:
                    label = contestant[0] + _threads(contestant[1], contestants)
                    bar = _bar(axes, place, found[0], colours[contestant[0]], contestant[1] > 1)
                    named.setdefault(label, bar)
                place += 1
            place += 1
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}x")
        axes.set_xlim(1.0 if least >= 1 else least / 2, max(most, 1.0) * 6)
        axes.set_ylim(max(place, 1) - 0.8, -0.8)
        axes.set_yticks(middles, [f"{case}\n{phase}" for case, phase in layers])
        axes.spines["left"].set_visible(False)  # the line at 1 is the axis
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize=7)
        axes.axvline(1, color=_INK, linewidth=1)
        axes.grid(axis="x", color=_GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_title(dtype, fontsize=9, color=_INK, loc="left")
        axes.set_xlabel("times faster than the Python loops", fontsize=8, color=_INK)
    # The title is the legend's own: constrained layout would lay one over the other.
    figure.legend(
        list(named.values()),
        list(named),
        title=title,
        title_fontproperties={"size": 11, "weight": "bold"},
        loc="outside upper left",
        alignment="left",
        ncols=max(1, min(len(named), 3 if len(dtypes) == 1 else 6)),
        fontsize=8,
        frameon=False,
    )
    if footnote:
        figure.supxlabel(footnote, fontsize=7, color="#666666", x=0.01, ha="left")
    return _save(figure, kind)


def _is(r: Result, layer: tuple[str, str], contestant: tuple[str, int]) -> bool:
    return (r.case, r.phase) == layer and (r.method, r.threads) == contestant


def _threads(threads: int, contestants: Sequence[tuple[str, int]]) -> str:
    if len({n for _, n in contestants}) == 1:
        return ""
    return f", {threads} thread{'s' if threads > 1 else ''}"


def _bar(axes: Axes, place: float, r: Result, colour: str, hatched: bool) -> Any:
    """A bar that starts at 1: to the right what is faster than the loops, to the left a loss."""
    speedup = r.speedup or 1.0
    (bar,) = axes.barh(
        place,
        speedup - 1,
        left=1,
        height=0.86,
        color=colour,
        hatch="////" if hatched else None,
        edgecolor="white",
        linewidth=0,
    )
    text = f"{speedup:,.0f}" if speedup >= 10 else f"{speedup:.2g}"
    axes.text(max(speedup, 1.0) * 1.12, place, text, va="center", fontsize=6.5, color=_INK)
    return bar


def ratios(
    groups: Mapping[str, Mapping[str, Sequence[float]]],
    peer: str,
    title: str,
    footnote: str = "",
    kind: str = "png",
) -> bytes:
    """Dots of how many times as fast as a peer each layer is, on a logarithmic axis.

    Parameters
    ----------
    groups : mapping of str to mapping of str to sequence of float
        For each group of layers, and for each series in it (a dtype, a number of threads), the
        ratios. A bar marks their geometric mean.
    peer : str
        What the other library is called.
    title, footnote : str
        Words above and below.
    kind : str
        One of `FORMATS`.
    """
    names = list(dict.fromkeys(name for series in groups.values() for name in series))
    figure = _figure(8.0, 1.6 + 0.09 * len(groups) * (len(names) + 1.5))
    axes = figure.subplots()
    _tidy(axes)
    place, middles = 0.0, []
    marks: dict[str, Any] = {}
    for series in groups.values():
        middles.append(place + (len(series) - 1) / 2)
        for name, values in series.items():
            colour = _SERIES[names.index(name) % len(_SERIES)]
            points = axes.scatter(
                values, np.full(len(values), place), s=9, color=colour, alpha=0.55, linewidths=0
            )
            marks.setdefault(name, points)
            mean = np.exp(np.mean(np.log(values)))
            axes.vlines(mean, place - 0.42, place + 0.42, color=_INK, linewidth=1.6)
            place += 1
        place += 1
    everything = [
        value for series in groups.values() for values in series.values() for value in values
    ]
    least, most = min(everything, default=1.0), max(everything, default=1.0)
    axes.set_xscale("log", subs=(2, 5))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}x")
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:,.6g}x")
    axes.tick_params(axis="x", which="both", labelsize=7, colors=_INK)
    axes.set_xlim(min(least, 1.0) / 1.3, max(most, 1.0) * 1.3)
    axes.axvspan(min(least, 1.0) / 1.3, 1, color=_GRID, alpha=0.5, linewidth=0, zorder=0)
    axes.axvline(1, color=_INK, linewidth=1)
    axes.set_ylim(max(place, 1) - 0.8, -0.8)
    axes.set_yticks(middles, list(groups))
    axes.tick_params(axis="y", length=0, labelsize=7)
    axes.grid(axis="x", which="both", color=_GRID, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.set_xlabel(
        f"times as fast as {peer}; bar: geometric mean; grey: {peer} is faster",
        fontsize=8,
        color=_INK,
    )
    figure.legend(
        list(marks.values()),
        list(marks),
        title=title,
        title_fontproperties={"size": 11, "weight": "bold"},
        loc="outside upper left",
        alignment="left",
        ncols=4,
        fontsize=8,
        frameon=False,
    )
    if footnote:
        figure.supxlabel(footnote, fontsize=7, color="#666666", x=0.01, ha="left")
    return _save(figure, kind)


_SERIES = ("#0072B2", "#56B4E9", "#D55E00", "#E69F00")


def training(
    losses: Sequence[float],
    epochs: Sequence[float],
    accuracies: Mapping[str, Sequence[float]],
    filters: NDArray[Any] | None,
    title: str,
    kind: str = "png",
) -> bytes:
    """Loss and accuracy curves, and the filters of the first layer.

    Parameters
    ----------
    losses : sequence of float
        The loss of every step.
    epochs : sequence of float
        When the accuracies were taken.
    accuracies : mapping of str to sequence of float
        For each set of images, its accuracies.
    filters : array (F, C, KH, KW), optional
        Drawn in colour where C is 3, else the mean over C in grey.
    title : str
        Words above.
    kind : str
        One of `FORMATS`.
    """
    rows = 0 if filters is None else -(-len(filters[: _COLUMNS * _ROWS]) // _COLUMNS)
    figure: Any = _figure(9.0, 3.2 if filters is None else 3.5 + 0.55 * rows)
    upper = figure
    lower = None
    if filters is not None:
        upper, lower = figure.subfigures(2, 1, height_ratios=(3.0, 0.3 + 0.5 * rows))
    left, right = upper.subplots(1, 2)
    _tidy(left)
    steps = np.arange(1, len(losses) + 1)
    left.plot(steps, losses, color="#56B4E9", linewidth=0.8, alpha=0.6, label="each step")
    width = max(1, len(losses) // 50)
    if width > 1:
        smooth = np.convolve(losses, np.full(width, 1 / width), mode="valid")
        left.plot(
            steps[width - 1 :], smooth, color="#0072B2", linewidth=1.6, label=f"mean of {width}"
        )
    left.set_yscale("log")
    _label(left, "step", "training loss", "upper right")
    _tidy(right)
    for (name, values), colour, marker in zip(
        accuracies.items(), ("#0072B2", "#D55E00", "#009E73"), "os^", strict=False
    ):
        percent = 100 * np.asarray(values, float)
        right.plot(epochs, percent, color=colour, marker=marker, markersize=3, label=name)
    right.set_ylim(top=100.5)
    _label(right, "epoch", "accuracy, %", "lower right")
    if filters is not None:
        _draw_filters(lower, np.asarray(filters, np.float64))
    figure.suptitle(title, fontsize=11, color=_INK)
    return _save(figure, kind)


def _label(axes: Axes, x: str, y: str, place: _Corner) -> None:
    axes.set_xlabel(x, fontsize=9, color=_INK)
    axes.set_ylabel(y, fontsize=9, color=_INK)
    axes.grid(color=_GRID, linewidth=0.6)
    axes.legend(fontsize=8, frameon=False, loc=place)


_COLUMNS, _ROWS = 16, 4


def _draw_filters(figure: Any, filters: NDArray[Any]) -> None:
    shown = filters[: _COLUMNS * _ROWS]
    columns = min(_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    grid = figure.subplots(rows, columns, squeeze=False)
    more = "" if len(shown) == len(filters) else f" (the first {len(shown)} of {len(filters)})"
    figure.suptitle(f"Filters of the first layer{more}", fontsize=9, color=_INK)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image in zip(grid.flat, shown, strict=False):
        if image.shape[0] == 3:
            low, high = image.min(), image.max()
            axes.imshow((image.transpose(1, 2, 0) - low) / (high - low or 1.0))
        else:
            grey = image.mean(axis=0)
            reach = np.abs(grey).max() or 1.0
            axes.imshow(grey, cmap="gray", vmin=-reach, vmax=reach)
