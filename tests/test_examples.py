"""The scripts of examples/ run, and the notebooks beside them are theirs and were executed."""

from __future__ import annotations

import json
import os
import re
import runpy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))

pytestmark = pytest.mark.skipif(
    not EXAMPLES, reason="the examples are not part of this distribution"
)
each = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)


@each
def test_an_example_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn.datasets")
    pytest.importorskip("PIL")  # scikit-learn reads its photographs with it
    matplotlib.use("Agg")
    plt = pytest.importorskip("matplotlib.pyplot")
    shown: list[int] = []

    def show() -> None:
        shown.append(len(plt.get_fignums()))
        for number in plt.get_fignums():
            plt.figure(number).canvas.draw()
        plt.close("all")

    data = os.environ.get("CNNFAST_DATA")
    if data and not (Path(data) / "cifar-10-batches-py").is_dir():
        monkeypatch.delenv("CNNFAST_DATA")
    monkeypatch.setenv("CNNFAST_EXAMPLES_SHORT", "1")
    monkeypatch.setattr(plt, "show", show)
    runpy.run_path(str(path), run_name="__main__")
    assert shown
    assert set(shown) == {1}


def notebook(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.with_suffix(".ipynb").read_text(encoding="utf-8"))
    return found


def cells_of(script: str) -> list[tuple[str, str]]:
    """Kind and text of each cell of a script in jupytext's percent format."""
    marks = [*re.finditer(r"^# %%(?P<markdown> \[markdown\])?\n", script, re.MULTILINE)]
    assert marks
    ends = [b.start() for _, b in pairwise(marks)] + [len(script)]
    cells = []
    for mark, end in zip(marks, ends, strict=True):
        text = script[mark.end() : end].strip("\n")
        if mark["markdown"]:
            assert all(line.startswith("#") for line in text.splitlines())
            cells.append(("markdown", re.sub(r"^# ?", "", text, flags=re.MULTILINE)))
        else:
            cells.append(("code", text))
    return cells


def test_scripts_and_notebooks_come_in_pairs() -> None:
    notebooks = sorted(FOLDER.glob("*.ipynb"))
    assert [path.stem for path in notebooks] == [path.stem for path in EXAMPLES]


@each
def test_a_notebook_is_its_scripts(path: Path) -> None:
    # If this fails: python tools/notebooks.py
    ours = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook(path)["cells"]]
    assert ours == cells_of(path.read_text(encoding="utf-8"))


@each
def test_a_notebook_was_executed_in_full(path: Path) -> None:
    code = [cell for cell in notebook(path)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    pictures = 0
    for cell in code:
        kinds = [output["output_type"] for output in cell["outputs"]]
        assert "error" not in kinds
        streams = {o["name"] for o in cell["outputs"] if o["output_type"] == "stream"}
        assert streams <= {"stdout"}, f"warnings in the outputs of {cell['source']}"
        pictures += sum("image/png" in output.get("data", {}) for output in cell["outputs"])
    assert pictures > 0


@each
def test_a_notebook_can_be_kept(path: Path) -> None:
    text = path.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert len(text) <= 400_000
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert notebook(path)["metadata"]["kernelspec"] == kernel
    # Where, and by whom, it was made is nobody's business.
    assert not re.search(r"/(home|root|tmp|Users|work)/|\b[A-Z]:\\\\", text)


def test_the_readme_lists_every_notebook() -> None:
    listed = re.findall(r"\]\((\w+)\.ipynb\)", (FOLDER / "README.md").read_text(encoding="utf-8"))
    assert sorted(listed) == [path.stem for path in EXAMPLES]
