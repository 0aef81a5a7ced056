"""Time cnnfast from a clone: ``cnnfast bench`` with the results kept in a file.

``python benchmarks/run.py --suite resnet50 --threads 1,2 --peers torch`` takes the arguments of
``cnnfast bench``. Where ``--json`` is not among them, the results go to
``benchmarks/results/SUITE-DATE.json``.
"""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from cnnfast import cli  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--suite", default="courses")
    parser.add_argument("--json")
    words = sys.argv[1:]
    known, _ = parser.parse_known_args(words)
    if known.json is not None or {"-h", "--help"} & set(words):
        return cli.main(["bench", *words])
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    date = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    file = results / f"{known.suite}-{date}.json"
    status = cli.main(["bench", *words, "--json", str(file)])
    if file.exists():
        print(f"results: {file}")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
