"""Run the scripts of examples/ and write each as a notebook, with its outputs, beside it.

    pip install -e '.[examples]'
    CNNFAST_DATA=... python tools/notebooks.py [NAME ...]

CNNFAST_DATA is a folder with CIFAR-10 (see `cnnfast.data.load_cifar10`). A script is the source:
its notebook is made from it, and is never edited. tests/test_examples.py compares the two.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
from base64 import b64decode, b64encode
from pathlib import Path

import jupytext
from nbclient import NotebookClient
from nbformat import NotebookNode, validate, writes
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
LIMIT = 400_000  # bytes of a notebook: they are kept in the repository
DPI = 72
# What must not be in a notebook: where it was made, and by whom.
PRIVATE = re.compile(r"/(home|root|tmp|Users|work)/|\b[A-Z]:\\\\")


def render(script: Path) -> NotebookNode:
    """The executed notebook of a script.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        If a cell raises.
    """
    notebook = jupytext.read(script)
    notebook.metadata = NotebookNode(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"}
    )
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(script.parent)}},
        extra_arguments=[f"--InlineBackend.rc={{'figure.dpi': {DPI}}}"],
    )
    client.execute()
    # The same script gives the same notebook but for its outputs.
    notebook.metadata.language_info = {"name": "python", "file_extension": ".py"}
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = NotebookNode()
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = smaller(output.data["image/png"])
    validate(notebook)
    return notebook


def smaller(png: str) -> str:
    """A picture with 256 colours of its own, a quarter of the bytes; base64 in and out."""
    picture = Image.open(io.BytesIO(b64decode(png))).convert("RGB")
    buffer = io.BytesIO()
    picture.quantize(256).save(buffer, format="png", optimize=True)
    return b64encode(buffer.getvalue()).decode("ascii")


def main() -> int:
    """Render all examples, or those named; 1 if one is not fit to be kept."""
    parser = argparse.ArgumentParser(description="Run the examples and write their notebooks.")
    parser.add_argument("name", nargs="*", help="examples without .py; all where none is given")
    names = parser.parse_args().name
    scripts = [EXAMPLES / f"{name}.py" for name in names] or sorted(EXAMPLES.glob("*.py"))
    # The kernel is to use the package of this clone, in the full form, with inline figures.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.getenv("PYTHONPATH"))))
    for variable in ("CNNFAST_EXAMPLES_SHORT", "MPLBACKEND"):
        os.environ.pop(variable, None)
    unfit = 0
    for script in scripts:
        notebook = render(script)
        text = writes(notebook) + "\n"
        target = script.with_suffix(".ipynb")
        target.write_text(text, encoding="utf-8")
        problems = [f"{len(text)} bytes, more than {LIMIT}"] if len(text) > LIMIT else []
        problems += [f"holds a path: {found[0]}" for found in PRIVATE.finditer(text)]
        print(f"{target.relative_to(ROOT)}: {len(text) / 1000:.0f} kB", *problems, sep="\n  ")
        unfit += bool(problems)
    return 1 if unfit else 0


if __name__ == "__main__":
    sys.exit(main())
