"""The notebooks in examples/ run from top to bottom; what they claim, they assert."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.skipif(not EXAMPLES, reason="the examples are not part of this distribution")
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    plt = pytest.importorskip("matplotlib.pyplot")
    shown: list[int] = []

    def show() -> None:
        shown.append(len(plt.get_fignums()))
        for number in plt.get_fignums():
            plt.figure(number).canvas.draw()
        plt.close("all")

    monkeypatch.setattr(plt, "show", show)
    runpy.run_path(str(path), run_name="__main__")
    assert shown
    assert set(shown) == {1}
