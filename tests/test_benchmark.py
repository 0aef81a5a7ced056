"""The benchmark's machinery: checks come first, nothing is lost. No time is asserted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnnfast import benchmark, functional, geometry, naive, peers, suites
from cnnfast.benchmark import Plan, Report, Result
from cnnfast.suites import SUITES, Case

TINY = (
    Case(
        "tiny conv",
        "conv2d",
        "forward",
        {"x": (6, 2, 5, 6), "w": (3, 2, 3, 2), "b": (3,)},
        {"stride": 2, "padding": 1, "groups": 1},
    ),
    Case(
        "tiny conv",
        "conv2d_backward",
        "backward",
        {"x": (6, 2, 5, 6), "w": (3, 2, 3, 2)},
        {"stride": 2, "padding": 1, "groups": 1},
    ),
    Case(
        "tiny max pool",
        "max_pool2d",
        "forward + indices",
        {"x": (6, 2, 5, 6)},
        {"kernel_size": (3, 2), "stride": 2, "padding": 1, "return_indices": True},
    ),
    Case(
        "tiny max pool",
        "max_pool2d_backward",
        "backward",
        {"x": (6, 2, 5, 6)},
        {"kernel_size": (3, 2), "stride": 2, "padding": 1},
    ),
    Case(
        "tiny avg pool",
        "avg_pool2d_backward",
        "backward",
        {"x": (6, 2, 5, 6)},
        {"kernel_size": 2, "stride": 2, "padding": 0},
    ),
)
QUICK = Plan(suite="tiny", seconds=0.002, naive_seconds=0.05, rounds=2)


@pytest.fixture(autouse=True)
def tiny_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SUITES, "tiny", TINY)


@pytest.mark.parametrize("suite", ["courses", "resnet50", "mobilenet", "pool"])
def test_cases_have_names_of_their_own_and_valid_sizes(suite: str) -> None:
    cases = SUITES[suite]
    assert len({case.label for case in cases}) == len(cases)
    for case in cases:
        assert len(case.name) <= 44
        assert len(benchmark._y_shape(case, case.shapes)) == 4
        assert Case.from_json(json.loads(json.dumps(case.to_json()))) == case
        assert case.op.endswith("_backward") == (case.phase == "backward")


def test_the_courses_workloads_are_there() -> None:
    shapes = {(case.op, case.shapes["x"]) for case in SUITES["courses"]}
    for batch in (100, 10):
        assert ("conv2d", (batch, 3, 31, 31)) in shapes
        assert ("conv2d_backward", (batch, 3, 31, 31)) in shapes
    for batch in (100, 40):
        assert ("max_pool2d", (batch, 3, 32, 32)) in shapes
        assert ("max_pool2d_backward", (batch, 3, 32, 32)) in shapes
    first = SUITES["courses"][0]
    assert first.shapes["w"] == (25, 3, 3, 3)
    g = geometry.convolution("conv2d", 2, (100, 3, 31, 31), (25, 3, 3, 3), 2, 1, 1, 1)
    assert benchmark._y_shape(first, first.shapes) == g.y_shape == (100, 25, 16, 16)


def test_the_layers_of_the_networks_fit_together() -> None:
    resnet = [case for case in SUITES["resnet50"] if case.phase == "forward"]
    assert len(resnet) == 2 * 23
    assert {case.batch for case in resnet} == {1, 8}
    sizes = {case.shapes["x"][1:3] for case in resnet if case.batch == 1}
    made = {benchmark._y_shape(case, case.shapes)[1:3] for case in resnet if case.batch == 1}
    # What a layer reads, another one writes, but for the image and the stem's pooling.
    assert sizes - made == {(3, 224)}
    depthwise = [c for c in SUITES["mobilenet"] if c.options["groups"] > 1]
    assert len(depthwise) == 2 * 10
    assert all(c.options["groups"] == c.shapes["x"][1] == c.shapes["w"][0] for c in depthwise)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"suite": "nope"}, "'nope'"),
        ({"dtypes": ("float16",)}, "'float16'"),
        ({"dtypes": ()}, "at least one"),
        ({"methods": ("magic",)}, "'magic'"),
        ({"methods": ()}, "nothing to compare"),
        ({"methods": ("naive", "toeplitz"), "only": "pool"}, "nothing to compare"),
        ({"threads": (0,)}, "threads must be at least 1, not 0"),
        ({"only": "zzz"}, "'zzz'"),
        ({"seconds": 0.0}, "positive"),
        ({"naive_seconds": float("nan")}, "positive"),
        ({"rounds": 0}, "positive"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"peers": ("keras",)}, "'keras'"),
    ],
)
def test_what_does_not_exist_is_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        benchmark.run(replace(QUICK, **change))


def test_a_peer_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peers.PEERS, "torch", ("no_such_package",))
    with pytest.raises(ImportError, match="no_such_package"):
        benchmark.run(replace(QUICK, peers=("torch",)))


def test_a_run_times_every_method_that_agrees() -> None:
    blocks: list[list[Result]] = []
    words: list[str] = []
    report = benchmark.run(QUICK, blocks.append, words.append)
    assert [r for block in blocks for r in block] == list(report.results)
    assert len(blocks) == len(TINY) * 2
    for block in blocks:
        first = block[0]
        assert first.method == "naive"
        assert first.speedup == 1.0
        assert {r.method for r in block} == set(functional.dispatch.methods(first.op))
        assert sum(r.chosen for r in block) == 1
        for r in block:
            assert r.agrees, r
            assert r.seconds is not None
            assert r.low is not None
            assert r.high is not None
            assert 0 < r.low <= r.seconds <= r.high
            assert r.samples >= 1
            assert r.max_error is not None
            assert r.bound is not None
            assert r.max_error <= r.bound
            assert r.gflops is not None
    assert any("naive" in w for w in words)
    value = json.loads(json.dumps(report.asdict()))
    assert {"date", "processor", "numpy", "python", "version", "blas", "peers"} <= set(
        value["environment"]
    )
    assert value["plan"]["suite"] == "tiny"
    assert len(value["results"]) == len(report.results)


def test_threads_methods_and_cases_can_be_chosen() -> None:
    plan = replace(
        QUICK, only="conv, forward", dtypes=("float64",), threads=(1, 2), methods=("auto", "im2col")
    )
    report = benchmark.run(plan)
    assert [(r.method, r.threads) for r in report.results] == [
        ("naive", 1),
        ("auto", 1),
        ("auto", 2),
        ("im2col", 1),
        ("im2col", 2),
    ]


@pytest.mark.parametrize("case", TINY, ids=lambda case: case.label)
def test_a_batch_that_repeats_its_images_is_still_compared_in_full(
    case: Case, tmp_path: Path
) -> None:
    server = benchmark._Server("", 1)
    answer = server.oracle(case.to_json(), ["float32"], str(tmp_path), 1e-9, 0)
    assert answer["period"] == 1
    checks = server.open(case.to_json(), "float64", str(tmp_path), None)["contestants"]
    assert all(check["agrees"] for check in checks.values())
    # The same by the loops, on all the images.
    with np.load(tmp_path / "inputs.npz") as file:
        full = benchmark._tiled(case, dict(file), 1)
    assert full["x"].shape[0] == 6
    want = benchmark.verify.outputs(
        getattr(naive, case.op)(**benchmark._arguments(case, full, "float64"))
    )
    with np.load(tmp_path / "oracle.npz") as file:
        tiled = benchmark._tiled_results(case, [file[name] for name in file.files], 1)
    for right, repeated in zip(want, tiled, strict=True):
        np.testing.assert_allclose(repeated, right, rtol=1e-12, atol=1e-12)


def test_the_loops_get_as_many_images_as_the_time_allows(tmp_path: Path) -> None:
    server = benchmark._Server("", 1)
    answer = server.oracle(TINY[0].to_json(), ["float32", "float64"], str(tmp_path), 60.0, 0)
    assert answer["period"] == 6
    assert set(answer["loops"]) == {"float32", "float64"}
    assert answer["loops"]["float64"]["error"] == 0
    assert 0 < answer["loops"]["float32"]["error"] < 1e-6


def test_inputs_are_no_zeros_and_the_same_for_the_same_seed() -> None:
    one, two = (benchmark._inputs(TINY[1], 6, 4) for _ in range(2))
    other = benchmark._inputs(TINY[1], 6, 5)
    for name, array in one.items():
        assert np.count_nonzero(array) == array.size
        np.testing.assert_array_equal(array, two[name])
        assert (array != other[name]).any()


@pytest.mark.parametrize("wrong", [1e-2, np.nan])
def test_a_method_that_disagrees_is_marked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wrong: float
) -> None:
    right = functional.conv2d

    def spoilt(*args: Any, method: str = "auto", **kwargs: Any) -> Any:
        y = right(*args, method=method, **kwargs)
        if method == "portable":
            y.flat[7] += wrong
        return y

    server = benchmark._Server("", 1)
    server.oracle(TINY[0].to_json(), ["float32"], str(tmp_path), 1.0, 0)
    monkeypatch.setattr(functional, "conv2d", spoilt)
    checks = server.open(TINY[0].to_json(), "float32", str(tmp_path), None)["contestants"]
    assert not checks["portable"]["agrees"]
    assert checks["toeplitz"]["agrees"]


def test_a_process_that_dies_is_reported() -> None:
    worker = benchmark._Worker("", 1)
    try:
        with pytest.raises(RuntimeError, match=r"the process of cnnfast ended .*no_such_request"):
            worker.ask("no_such_request")
    finally:
        worker.close()


def test_results_are_compared_with_a_peer() -> None:
    ours = Result("a", "conv2d", "forward", "float32", 1, "im2col", chosen=True, seconds=1.0)
    other = replace(ours, method="portable", chosen=False, seconds=3.0)
    theirs = replace(ours, method="torch", peer=True, chosen=False, seconds=2.0)
    lost = replace(theirs, case="b", seconds=None)
    report = Report(QUICK, {}, [ours, other, theirs, lost])
    assert report.against("torch") == [(ours, theirs)]
    assert report.against("scipy") == []


def test_spread_and_wrong() -> None:
    r = Result("a", "conv2d", "forward", "float32", 1, "im2col", seconds=2.0, low=1.9, high=2.3)
    assert r.spread == pytest.approx(0.1)
    assert not r.wrong
    assert replace(r, max_error=1.0).wrong
    assert replace(r, max_error=float("nan")).wrong
    assert not replace(r, max_error=1.0, agrees=True).wrong
    assert replace(r, seconds=None).spread is None


@pytest.mark.parametrize("name", list(peers.PEERS))
def test_peers_agree_with_the_loops(name: str) -> None:
    if peers.missing(name) is not None:
        pytest.skip(str(peers.missing(name)))
    peer = peers.open_peer(name, 1)
    done = 0
    for case in TINY:
        arrays = benchmark._inputs(case, 6, 0)
        args = benchmark._arguments(case, arrays, "float32")
        want = benchmark.verify.outputs(getattr(naive, case.op)(**args))
        try:
            work = peer.prepare(case.op, {**case.options, **arrays, **args})
        except peers.Unsupported:
            continue
        for _ in range(2):
            got = peer.arrays(work())
            assert len(got) == len(want)
            for g, w in zip(got, want, strict=True):
                np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5)
        done += 1
    assert done >= 1


def test_a_peer_runs_in_a_process_of_its_own() -> None:
    pytest.importorskip("scipy")
    plan = replace(QUICK, only="tiny conv", dtypes=("float64",), peers=("scipy",), methods=())
    report = benchmark.run(plan)
    forward, backward = (
        [r for r in report.results if r.phase == phase] for phase in ("forward", "backward")
    )
    assert [r.method for r in forward] == ["naive", "scipy"]
    assert forward[1].agrees
    assert forward[1].peer
    assert forward[1].speedup
    assert backward[1].note.startswith("scipy.signal has")
    assert backward[1].seconds is None
    assert not backward[1].wrong
    assert report.environment["peers"]["scipy"]


def test_suites_are_listed() -> None:
    assert {"courses", "resnet50", "mobilenet", "pool"} <= set(suites.SUITES)
