"""The benchmark's machinery: checks come first, nothing is lost. No time is asserted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnnfast import (
    benchmark,
    functional,
    geometry,
    models,
    naive,
    networks,
    nn,
    peers,
    roofs,
    worker,
)
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
# One of each further kind: gradients apart, groups, batch norm, ReLU, a linear layer.
KINDS = (
    Case(
        "tiny groups",
        "conv2d_backward",
        "backward by x",
        {"x": (3, 4, 5, 6), "w": (6, 2, 3, 2)},
        {"stride": 1, "padding": 1, "groups": 2, "needs": "x"},
    ),
    Case(
        "tiny groups",
        "conv2d_backward",
        "backward by w",
        {"x": (3, 4, 5, 6), "w": (6, 2, 3, 2)},
        {"stride": 1, "padding": 1, "groups": 2, "needs": "wb"},
    ),
    Case(
        "tiny batch norm",
        "batch_norm",
        "training",
        {"x": (4, 3, 5, 6), "weight": (3,), "bias": (3,)},
        {"running_mean": None, "running_var": None, "training": True, "return_stats": True},
    ),
    Case(
        "tiny batch norm",
        "batch_norm",
        "inference",
        dict.fromkeys(("running_mean", "running_var", "weight", "bias"), (3,))
        | {"x": (4, 3, 5, 6)},
        {"training": False},
    ),
    Case("tiny batch norm", "batch_norm_backward", "backward", {"x": (4, 3, 5), "weight": (3,)}),
    Case("tiny relu", "relu", "forward", {"x": (4, 30)}),
    Case("tiny relu", "relu_backward", "backward", {"x": (4, 30)}),
    Case("tiny linear", "linear", "forward", {"x": (4, 30), "w": (5, 30), "b": (5,)}),
    Case("tiny linear", "linear_backward", "backward", {"x": (4, 30), "w": (5, 30)}),
)
TINY_NETWORKS = (
    Case("tiny", "inference", "inference", {"x": (2, 3, 16, 16)}, {"network": "tiny"}),
    Case("tiny", "training_step", "training step", {"x": (5, 3, 16, 16)}, {"network": "tiny"}),
)
QUICK = Plan(suite="tiny", seconds=0.002, naive_seconds=0.05, rounds=2)


@pytest.fixture(autouse=True)
def tiny_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SUITES, "tiny", TINY)
    monkeypatch.setitem(SUITES, "kinds", KINDS)
    monkeypatch.setitem(networks.NETWORKS, "tiny", tiny_network)


def tiny_network(rng: np.random.Generator) -> Any:
    """Both kinds of blocks, and every layer that a peer has to know."""
    return nn.Sequential(
        {
            "conv": nn.Conv2d(3, 8, 5, padding="same", rng=rng),
            "pool": nn.MaxPool2d(3, 2, 1),
            "mobile": models.InvertedResidual(8, 8, 1, 2, rng=rng),
            "block1": models.BasicBlock(8, 8, rng=rng),
            "block2": models.BasicBlock(8, 16, 2, rng=rng),
            "avgpool": nn.AdaptiveAvgPool2d(1),
            "flatten": nn.Flatten(),
            "dropout": nn.Dropout(0.0),
            "fc": nn.Linear(16, 10, rng=rng),
        }
    )


@pytest.mark.parametrize("suite", list(SUITES))
def test_cases_have_names_of_their_own_and_valid_sizes(suite: str) -> None:
    cases = SUITES[suite]
    assert len({case.label for case in cases}) == len(cases)
    for case in cases:
        assert len(case.name) <= 44
        assert Case.from_json(json.loads(json.dumps(case.to_json()))) == case
        if case.whole_network:
            assert case.options["network"] in networks.NETWORKS
            continue
        if "w" in case.shapes or "pool" in case.op:
            assert len(y_shape(case)) == len(case.shapes["x"])
        assert case.op.endswith("_backward") == case.phase.startswith("backward")


def y_shape(case: Case) -> tuple[int, ...]:
    return worker._y_shape(case)


def test_the_courses_workloads_are_there() -> None:
    for suite in ("courses", "gradients"):
        shapes = {(case.op, case.shapes["x"], case.shapes.get("w")) for case in SUITES[suite]}
        for x, w in (
            ((100, 3, 31, 31), (25, 3, 3, 3)),
            ((10, 3, 31, 31), (25, 3, 3, 3)),
            ((50, 3, 32, 32), (32, 3, 7, 7)),
            ((100, 8, 32, 32), (8, 8, 3, 3)),
            ((100, 32, 16, 16), (32, 32, 3, 3)),
        ):
            assert ("conv2d", x, w) in shapes
            assert ("conv2d_backward", x, w) in shapes
    shapes = {(case.op, case.shapes["x"]) for case in SUITES["courses"]}
    for batch in (100, 40):
        assert ("max_pool2d", (batch, 3, 32, 32)) in shapes
        assert ("max_pool2d_backward", (batch, 3, 32, 32)) in shapes
    first = SUITES["courses"][0]
    assert first.shapes["w"] == (25, 3, 3, 3)
    g = geometry.convolution("conv2d", 2, (100, 3, 31, 31), (25, 3, 3, 3), 2, 1, 1, 1)
    assert y_shape(first) == g.y_shape == (100, 25, 16, 16)


def test_vgg_and_the_largest_relu_are_there() -> None:
    vgg = {case.shapes["x"] for case in SUITES["vgg"]}
    assert vgg == {(16, 64, 32, 32), (16, 128, 16, 16), (128, 128, 8, 8)}
    assert max(np.prod(case.shapes["x"]) for case in SUITES["relu"]) * 4 == 64 << 20
    for suite in ("vgg", "resnet50", "mobilenet", "odd"):
        phases = {case.phase for case in SUITES[suite]}
        assert phases == {"forward", "backward by x", "backward by w"}


def test_the_layers_of_the_networks_fit_together() -> None:
    resnet = [case for case in SUITES["resnet50"] if case.phase == "forward"]
    assert len(resnet) == 2 * 23
    assert {case.batch for case in resnet} == {1, 8}
    sizes = {case.shapes["x"][1:3] for case in resnet if case.batch == 1}
    made = {y_shape(case)[1:3] for case in resnet if case.batch == 1}
    # What a layer reads, another one writes, but for the image and the stem's pooling.
    assert sizes - made == {(3, 224)}
    depthwise = [c for c in SUITES["mobilenet"] if c.options["groups"] > 1]
    assert len(depthwise) == 3 * 10
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
        assert {r.method for r in block} - {"auto"} == set(functional.dispatch.methods(first.op))
        assert sum(r.chosen for r in block) == 1
        for r in block:
            if r.note.startswith("it is for"):  # and so not for this layer
                assert r.seconds is None
                continue
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
    assert any("the right results" in w for w in words)
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


def oracle(case: Case, folder: Path, seconds: float) -> tuple[worker.Worker, dict[str, Any]]:
    home = worker.Worker("", 1)
    answer = home.oracle(case.to_json(), ["float32", "float64"], str(folder), seconds, 0)
    return home, answer


def open_case(home: worker.Worker, case: Case, dtype: str, folder: Path, size: int) -> Any:
    return home.open(case.to_json(), dtype, str(folder), None, 0, size)


@pytest.mark.parametrize("seconds", [1e-9, 60.0])
@pytest.mark.parametrize("case", TINY + KINDS, ids=lambda case: case.label)
def test_the_right_results_are_the_loops(case: Case, seconds: float, tmp_path: Path) -> None:
    home, answer = oracle(case, tmp_path, seconds)
    if seconds > 1:
        assert answer["scale"] == 1
        assert answer["words"] == ""
        assert answer["loops"]["float64"]["error"] == 0
    assert set(answer["loops"]) == {"float32", "float64"}
    assert all(loops["agrees"] for loops in answer["loops"].values())
    inputs = worker.draw(case, 0)
    result = getattr(naive, case.op)(**worker.arguments(case, inputs, "float64"))
    want = benchmark_outputs(result)
    with np.load(tmp_path / "right.npz") as file:
        got = [file[name] for name in file.files]
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-10, atol=1e-12)
    # What is read and written once, in bytes.
    arrays = [*worker.arguments(case, inputs, "float32").values(), *want]
    size = sum(
        a.nbytes if a.dtype.kind == "i" else 4 * a.size for a in arrays if isinstance(a, np.ndarray)
    )
    assert answer["bytes"]["float32"] == size
    for dtype in ("float32", "float64"):
        opened = open_case(home, case, dtype, tmp_path, size)
        assert opened["contestants"]
        checks = [c for c in opened["contestants"].values() if "agrees" in c]
        assert checks, opened
        assert all(c["agrees"] for c in checks), opened
        assert opened["chosen"] in opened["contestants"]
        assert home.time(opened["chosen"], 2, 3, warm=True)["times"]
        home.close()


def benchmark_outputs(result: Any) -> tuple[Any, ...]:
    parts = result if isinstance(result, tuple) else (result,)
    return tuple(part for part in parts if part is not None)


def test_the_loops_get_as_large_a_part_as_the_time_allows(tmp_path: Path) -> None:
    conv = TINY[0]
    assert (conv.parts, TINY[2].parts, KINDS[0].parts, KINDS[5].parts) == (3, 2, 2, 1)
    _, answer = oracle(conv, tmp_path, 1e-9)
    assert answer["scale"] == 6 * 3
    assert answer["words"] == "timed on 1 of 6 images and 1 of 3 filters, scaled"
    _, answer = oracle(KINDS[0], tmp_path, 1e-9)
    assert answer["words"] == "timed on 1 of 3 images and 1 of 2 groups, scaled"
    assert answer["scale"] == 3 * 2


def test_parts_of_a_case_are_cases() -> None:
    part = TINY[0].part(2, 1)
    assert part.shapes == {"x": (2, 2, 5, 6), "w": (1, 2, 3, 2), "b": (1,)}
    part = KINDS[0].part(1, 1)
    assert part.shapes == {"x": (1, 2, 5, 6), "w": (3, 2, 3, 2)}
    assert part.options["groups"] == 1
    assert TINY[2].part(3, 1).shapes == {"x": (3, 1, 5, 6)}
    assert TINY[0].part(6, 3) == TINY[0]


def test_a_reference_that_disagrees_with_the_loops_is_no_reference(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    right = functional.conv2d
    monkeypatch.setattr(functional, "conv2d", lambda *a, **k: right(*a, **k) + 1)
    with pytest.raises(RuntimeError, match="portable disagrees with naive"):
        oracle(TINY[0], tmp_path, 1e-9)


def test_inputs_are_no_zeros_and_the_same_for_the_same_seed() -> None:
    for case in (TINY[1], KINDS[3], KINDS[4]):
        one, two = (worker.draw(case, 4) for _ in range(2))
        other = worker.draw(case, 5)
        for name, array in one.items():
            assert np.count_nonzero(array) == array.size
            np.testing.assert_array_equal(array, two[name])
            assert (array != other[name]).any()
    assert (worker.draw(KINDS[3], 0)["running_var"] > 0).all()


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

    home, _ = oracle(TINY[0], tmp_path, 1.0)
    monkeypatch.setattr(functional, "conv2d", spoilt)
    checks = open_case(home, TINY[0], "float32", tmp_path, 1000)["contestants"]
    assert not checks["portable"]["agrees"]
    assert checks["toeplitz"]["agrees"]


def test_a_process_that_dies_is_reported() -> None:
    process = benchmark._Worker("", 1)
    try:
        with pytest.raises(RuntimeError, match=r"the process of cnnfast ended .*no_such_request"):
            process.ask("no_such_request")
    finally:
        process.close()


def test_results_are_compared_with_a_peer() -> None:
    ours = Result("a", "conv2d", "forward", "float32", 1, "im2col", chosen=True, seconds=1.0)
    other = replace(ours, method="portable", chosen=False, seconds=3.0)
    theirs = replace(ours, method="torch", peer=True, chosen=False, seconds=2.0)
    lost = replace(theirs, case="b", seconds=None)
    report = Report(QUICK, {}, [ours, other, theirs, lost])
    assert report.against("torch") == [(ours, theirs)]
    assert report.against("scipy") == []
    auto = replace(ours, method="auto", chosen=False, seconds=4.0)
    assert benchmark.against([ours, auto, theirs], "torch") == [(auto, theirs)]


def test_standings_count_by_phase_dtype_and_threads() -> None:
    ours = Result("a", "conv2d", "forward", "float32", 1, "im2col", chosen=True, seconds=1.0)
    theirs = replace(ours, method="torch", peer=True, chosen=False, seconds=2.0)
    results = [ours, theirs]
    results += [replace(ours, case="b"), replace(theirs, case="b", seconds=0.5)]
    results += [replace(ours, dtype="float64"), replace(theirs, dtype="float64")]
    results += [replace(ours, threads=2)]
    first, second = benchmark.standings(results)
    assert first == benchmark.Standing("torch", "forward", "float32", 1, 2, 1.0, 0.5, "b", 1)
    assert (second.dtype, second.layers, second.mean, second.losses) == ("float64", 1, 2.0, 0)
    value = Report(QUICK, {}, results).asdict()
    assert value["standings"][0]["worst_case"] == "b"


def test_roofs_are_shared_out(tmp_path: Path) -> None:
    plan = replace(QUICK, only="conv, forward", dtypes=("float32",), methods=("auto",))
    report = benchmark.run(plan)
    assert {(roof.kind, roof.threads) for roof in report.roofs} == {("fma", 1), ("copy", 1)}
    auto = report.results[-1]
    assert auto.method == "auto"
    assert auto.seconds
    for roof in report.roofs:
        if roof.rate is None:
            assert roof.note
            continue
        rate, share = {
            "fma": (auto.gflops, auto.of_fma),
            "copy": (auto.gbytes, auto.of_copy),
        }[roof.kind]
        assert share == pytest.approx(1e9 * rate / roof.rate)
    assert report.asdict()["roofs"][0]["case"] == "tiny conv"


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", roofs.KINDS)
def test_roofs_are_measured_or_say_why_not(kind: str, threads: int) -> None:
    try:
        roof = roofs.measure(kind, "float32", threads, 1 << 16)
    except roofs.Unmeasured as reason:
        assert len(str(reason)) > 20
        return
    assert roof.amount >= 1 << 16
    roof.work()


def test_the_engines_own_peaks_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Engine:
        calls: list[Any]

        def peak_fma_f64(self, iterations: int, threads: int) -> float:
            self.calls.append((iterations, threads))
            return 0.0

        def peak_fma_flops_f64(self) -> int:
            return 96

    engine = Engine()
    engine.calls = []
    ticks = iter(np.arange(0, 1e6, 0.0004))
    monkeypatch.setattr(roofs.compiled, "engine", lambda: engine)
    monkeypatch.setattr(roofs.time, "perf_counter", lambda: next(ticks) * len(engine.calls))
    roof = roofs.measure("fma", "float64", 2, 0)
    iterations = engine.calls[-1][0]
    assert roof.amount == iterations * 2 * 96
    with pytest.raises(roofs.Unmeasured, match="no kernel"):
        roofs.measure("fma", "float32", 2, 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", TINY_NETWORKS, ids=lambda case: case.phase)
@pytest.mark.parametrize("library", ["", *peers.PEERS])
def test_networks_agree_with_one_another(
    library: str, case: Case, dtype: str, tmp_path: Path
) -> None:
    if library and peers.missing(library) is not None:
        pytest.skip(str(peers.missing(library)))
    _, answer = oracle(case, tmp_path, 1.0)
    assert answer["loops"] == {}
    there = worker.Worker(library, 1)
    opened = open_case(there, case, dtype, tmp_path, 0)
    (check,) = opened["contestants"].values()
    cannot = library == "scipy" or (
        library == "onnxruntime" and (dtype == "float64" or case.op == "training_step")
    )
    assert ("refused" in check) == cannot, check
    if not cannot:
        assert check["agrees"], check
        assert check["error"] > 0 or dtype == "float64"
        assert there.time(library or "auto", 1, 2, warm=True)["times"]


def test_a_network_with_an_error_does_not_agree(tmp_path: Path) -> None:
    case = TINY_NETWORKS[1]
    task = networks.draw(case, "float64", 0)
    right = networks.prepare(task, worker.REFERENCE)[1]()
    task = networks.draw(case, "float64", 0)
    task.network.params["block2.bn1.bias"] = task.network.params["block2.bn1.bias"] + 1e-6
    got = networks.prepare(task, "auto")[1]()
    limits = [networks.bound(case, "float64") * np.abs(a).max() for a in right]
    assert not worker._agreement(got, right, limits)["agrees"]


def test_networks_run_in_processes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(
        "three layers", "training_step", "training step", {"x": (2, 3, 32, 32)},
        {"network": "three-layer"},
    )  # fmt: skip
    monkeypatch.setitem(SUITES, "tiny", (case,))
    report = benchmark.run(replace(QUICK, dtypes=("float32",), methods=("auto", "portable")))
    assert [(r.method, r.agrees, r.chosen) for r in report.results] == [
        ("auto", True, True),
        ("portable", True, False),
    ]
    assert all(r.seconds and r.speedup is None for r in report.results)
    assert report.roofs == []


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
    for case in TINY + KINDS:
        arrays = worker.draw(case, 0)
        args = worker.arguments(case, arrays, "float32")
        want = benchmark_outputs(getattr(naive, case.op)(**args))
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
    assert done == len(TINY + KINDS) if name == "torch" else done >= 1


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
