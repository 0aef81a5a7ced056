"""The reports that benchmarks/ makes of results: tables, chart, regret. No time is asserted."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import cnnfast
from cnnfast import benchmark, functional, plots
from cnnfast.benchmark import Plan, Report, Result, Roof

BENCHMARKS = Path(cnnfast.__file__).resolve().parents[1] / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="not a clone")
needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="matplotlib draws"
)


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def results(folder: Path) -> list[Path]:
    """Two suites, one peer each way, and a regret, in files."""
    ours = Result(
        "a layer", "conv2d", "forward", "float32", 1, "auto", chose="im2col", agrees=True,
        seconds=2e-3, of_fma=0.5, of_copy=0.1,
    )  # fmt: skip
    theirs = replace(ours, method="torch", peer=True, chose="", seconds=3e-3)
    slow = replace(ours, case="another layer", seconds=6e-3)
    lost = replace(theirs, case="another layer", seconds=3e-3)
    onnx = replace(theirs, method="onnxruntime", seconds=1e-3)
    roof = Roof("a layer", "forward", "float32", 1, "fma", 1e11)
    environment = {**benchmark.environment(Plan()), "peers": {"torch": "2.13.0"}}
    pool = replace(ours, op="max_pool2d", of_fma=None, of_copy=0.75, threads=2)
    reports = {
        "vgg": Report(Plan("vgg"), environment, [ours, theirs, slow, lost, onnx], [roof]),
        "pool": Report(Plan("pool"), environment, [pool, replace(theirs, threads=2)]),
    }
    files = []
    for name, report in reports.items():
        files.append(folder / f"{name}-20260102-000000.json")
        files[-1].write_text(json.dumps(report.asdict()))
    return files


def project(folder: Path) -> Path:
    (folder / "docs").mkdir()
    for name in ("README.md", "docs/performance.md"):
        (folder / name).write_text("before\n<!-- figures -->\nold\n<!-- /figures -->\nafter\n")
    return folder


def test_the_report_writes_tables_between_the_markers(tmp_path: Path) -> None:
    report = script("report")
    root, files = project(tmp_path), results(tmp_path)
    words = ["--root", str(root), *map(str, files)]
    assert report.main(["--check", *words]) == 1
    assert "old" in (root / "README.md").read_text()
    assert report.main(words) == 0
    assert report.main(["--check", *words]) == 0
    readme = (root / "README.md").read_text()
    assert readme.startswith("before\n")
    assert readme.endswith("after\n")
    assert "old" not in readme
    # Ratios 1.5 and 0.5: geometric mean 0.87, worst 0.50; and the pooling's one.
    assert "| VGG on CIFAR-10: forward | 2 | 0.87 (0.50) |  |" in readme
    assert "| pooling: forward | 1 |  | 1.50 |" in readme
    assert "ONNX Runtime" in readme
    assert "float32, 1 thread: 100 to 100" in readme
    performance = (root / "docs" / "performance.md").read_text()
    assert "PyTorch was faster in 1 of 3 comparisons" in performance
    assert "| another layer, forward | float32 | 1 | 6 | 3 | 0.50 |" in performance
    layers = (root / "docs" / "figures.md").read_text()
    line = "| a layer, forward | float32 | 1 | im2col | 2 | 3 | 1.50 | 1 | 0.50 | 50% fma |"
    assert line in layers
    assert "75% copy" in layers


def test_the_report_says_what_could_be_reached() -> None:
    report = script("report")
    cases = {(c.name, c.phase): c for own in report.SUITES.values() for c in own}
    spared = {
        "16x64x32x32, 64 of 3x3": 4.0,  # 16 outputs of 144 products from 36
        "16x32x28x28, 64 of 5x5": 25 / 9,
        "1x128x17x17, 192 of 1x7": 7 * 3 / 12,  # two pieces of six points for three outputs
        "8x512x14x14, 512 of 3x3, stride 2": 1.5625,  # two of two taps: 9 * 25 / (4 * 36)
        "1x576x14x14, depthwise 3x3, stride 2": 1.0,
        "1x64x56x56, 256 of 1x1": 1.0,
    }
    for name, times in spared.items():
        assert report.spared(cases[name, "forward"]) == pytest.approx(times), name
    layer = Result(
        "16x64x32x32, 64 of 3x3", "conv2d", "forward", "float32", 1, "auto", agrees=True,
        seconds=2e-3, of_fma=2.0, of_copy=0.1,
    )  # fmt: skip
    peer = replace(layer, method="torch", peer=True, seconds=6e-3)
    slow = replace(layer, case="1x64x56x56, 256 of 1x1", seconds=4e-3, of_fma=0.1, of_copy=0.25)
    figures = report.Figures([])
    figures.suites["vgg"] = [layer, peer, slow, replace(slow, method="torch", peer=True)]
    # Three times as fast at half of what is possible, and as fast at a quarter.
    assert "| forward | 1.73 of 4.90 |" in report.bounds(figures, "torch")
    assert report.bounds(report.Figures([]), "torch") == ""


@needs_matplotlib
def test_the_report_draws_a_chart(tmp_path: Path) -> None:
    report = script("report")
    root = project(tmp_path)
    assert report.main(["--root", str(root), *map(str, results(tmp_path))]) == 0
    assert (root / "docs" / "peers.png").read_bytes().startswith(b"\x89PNG")
    assert plots.ratios({}, "PyTorch", "Title").startswith(b"\x89PNG")


def test_the_newest_results_are_taken(tmp_path: Path) -> None:
    names = ("vgg-20260102-000000", "vgg-20260101-999999", "pool-20250101-000000")
    for name in names:
        (tmp_path / f"{name}.json").touch()
    newest = {file.stem for file in script("report").newest(tmp_path)}
    assert newest == {"vgg-20260102-000000", "pool-20250101-000000"}


def test_markers_must_be_there() -> None:
    with pytest.raises(ValueError, match="there must be one"):
        script("report").between("no markers", "content")


def test_the_project_has_the_markers() -> None:
    report = script("report")
    for name in ("README.md", "docs/performance.md"):
        text = (BENCHMARKS.parent / name).read_text()
        assert report.between(text, "content").count("content") >= 1


def test_random_geometries_are_valid_and_the_same_again() -> None:
    regret = script("regret")
    geometries = [regret.draw(np.random.default_rng(seed)) for seed in range(60)]
    assert geometries[:3] == [regret.draw(np.random.default_rng(seed)) for seed in range(3)]
    assert {g.dtype for g in geometries} == {"float32", "float64"}
    assert any(g.groups > 1 for g in geometries)
    for g in geometries:
        assert g.flops <= regret.MOST_FLOPS
        e = functional.explain(
            "conv2d", g.x, g.w, stride=g.stride, padding=g.padding, dilation=g.dilation,
            groups=g.groups,
        )  # fmt: skip
        assert e.flops == g.flops
        assert str(g.x[0]) in str(g)


@pytest.mark.parametrize("phase", ["forward", "backward by x", "backward by w"])
def test_regret_times_every_method(phase: str) -> None:
    regret = script("regret")
    g = regret.Geometry((2, 4, 9, 8), (6, 2, 3, 3), (1, 2), (1, 1), 1, 2, "float32")
    assert g.y == (2, 6, 9, 4)
    outcome = regret.judge(g, phase, np.random.default_rng(0), rounds=2, shortest=1e-5)
    op = "conv2d" if phase == "forward" else "conv2d_backward"
    names = cnnfast.methods(op)
    assert set(outcome.methods) | set(outcome.refused) == set(names[: names.index("portable") + 1])
    assert outcome.chosen in outcome.methods
    assert outcome.best in outcome.methods
    assert outcome.looks in (1, 2)
    json.dumps(asdict(outcome))


def test_regret_is_summed_up(capsys: pytest.CaptureFixture[str]) -> None:
    regret = script("regret")
    g = regret.Geometry((2, 4, 9, 8), (6, 4, 3, 3), (1, 1), (1, 1), 1, 1, "float32")
    outcomes = [
        regret.Outcome(g, "forward", "a", "b", r, 1.0 + r, {"a": 1.0 + r, "b": 1.0}, {}, 1)
        for r in (-0.01, 0.0, 0.05, 0.5)
    ]
    found = regret.summary(outcomes)
    assert found["within"] == 0.75
    assert found["quantiles"]["50%"] == 0.0
    assert found["quantiles"]["100%"] == 0.5
    regret.show(outcomes, 1)
    out = capsys.readouterr().out
    assert "75.0%" in out
    assert out.count("2x4x9x8, 6 of 3x3") == 1


def test_regret_runs_as_a_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    regret = script("regret")
    small: Any = regret.Geometry((1, 2, 5, 5), (2, 2, 3, 3), (1, 1), (1, 1), 1, 1, "float64")
    monkeypatch.setattr(regret, "draw", lambda rng: small)
    for name in ("CNNFAST", "OMP", "OPENBLAS", "MKL", "BLIS"):
        monkeypatch.setenv(f"{name}_NUM_THREADS", "1")
    monkeypatch.setenv("VECLIB_MAXIMUM_THREADS", "1")
    file = tmp_path / "regret.json"
    words = ["--count", "2", "--rounds", "2", "--shortest", "1e-5", "--json", str(file)]
    assert regret.main(words) == 0
    value = json.loads(file.read_text())
    assert len(value["outcomes"]) == 2 * 3
    assert value["plan"]["suite"] == "regret"
    # And the report speaks of it.
    root = project(tmp_path)
    assert (
        script("report").main(["--root", str(root), str(file), *map(str, results(tmp_path))]) == 0
    )
    assert "Of 6 calls of random geometry" in (root / "README.md").read_text()
