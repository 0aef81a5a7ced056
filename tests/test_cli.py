"""The command line, run for real."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import cnnfast
from cnnfast import benchmark, cli, functional, plots

ROOT = Path(cnnfast.__file__).resolve().parents[1]
BENCH = ("bench", "--only", "40x3x32x32, 2x2, backward", "--dtype", "float32",
         "--seconds", "0.005", "--naive-seconds", "0.02")  # fmt: skip
needs_digits = pytest.mark.skipif(
    importlib.util.find_spec("sklearn") is None, reason="scikit-learn brings the digits"
)
needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="matplotlib draws"
)


def environment(**changes: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    quiet = {"PYTHONPATH": path, "PYTHONWARNINGS": "ignore", "OPENBLAS_NUM_THREADS": "1"}
    return os.environ | quiet | changes


def run(*words: str, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cnnfast", *words],
        capture_output=True,
        encoding="utf-8",
        env=environment(**changes),
        timeout=120,
        check=False,
    )


def check_reads_well(text: str) -> None:
    assert text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80


def check_is_picture(file: Path) -> None:
    data = file.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    assert width > 500
    assert height > 200
    assert data.rstrip().endswith(b"IEND\xaeB`\x82")


def test_info() -> None:
    done = run("info", FORCE_COLOR="1")
    assert done.returncode == 0, done.stderr
    check_reads_well(done.stdout)
    assert cnnfast.__version__ in done.stdout
    assert done.stderr == ""


def test_json_on_stdout_is_all_there_is() -> None:
    done = run("info", "--json", "-")
    assert done.returncode == 0
    value = json.loads(done.stdout)
    assert {"compiled", "isa", "threads"} <= set(value)
    assert value["threads"] >= 1


def test_json_goes_to_a_file_as_well_as_words_to_the_screen(tmp_path: Path) -> None:
    file = tmp_path / "info.json"
    file.write_text("old")
    done = run("info", "--json", str(file))
    assert json.loads(file.read_text())["version"] == cnnfast.__version__
    assert cnnfast.__version__ in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["info.json"]


def test_json_does_not_replace_a_device_or_a_pipe(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("there are no named pipes")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert cli.main(["info", "--json", str(pipe)]) == 0
        assert json.loads(os.read(reader, 1 << 16))["version"] == cnnfast.__version__
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    assert cli.main(["info", "--json", os.devnull]) == 0
    assert not Path(os.devnull).is_file()


def test_json_keeps_a_link_and_the_mode_of_a_file(tmp_path: Path) -> None:
    file, link = tmp_path / "there" / "info.json", tmp_path / "link.json"
    file.parent.mkdir()
    file.write_text("old")
    file.chmod(0o640)
    link.symlink_to(file)
    assert cli.main(["info", "--json", str(link)]) == 0
    assert link.is_symlink()
    assert json.loads(file.read_text())["version"] == cnnfast.__version__
    assert os.name != "posix" or file.stat().st_mode & 0o777 == 0o640


def test_a_file_that_may_not_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "info.json"
    file.write_text("old")
    # Nothing is forbidden to root, who may run this.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != file)
    status = cli.main(["info", "--json", str(file)])
    check_mistake(status, *capsys.readouterr(), "is not writable")
    assert file.read_text() == "old"


def test_closed_streams_are_no_drama(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert cli.main(["info"]) == 0
    assert cli.main(["fly"]) == 2


def test_version_and_help() -> None:
    assert run("--version").stdout == f"cnnfast {cnnfast.__version__}\n"
    for words in ((), ("bench",), ("train",), ("explain",), ("explain", "conv2d")):
        done = run(*words, "--help", COLUMNS="80")
        assert done.returncode == 0
        check_reads_well(done.stdout)
    assert "come on top" in " ".join(run("train", "--help").stdout.split())


@needs_matplotlib
def test_bench(tmp_path: Path) -> None:
    picture, file = tmp_path / "speed.png", tmp_path / "speed.json"
    done = run(*BENCH, "--threads", "1,2", "--plot", str(picture), "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    check_reads_well(done.stdout)
    for method in cnnfast.methods("max_pool2d_backward"):
        assert method in done.stdout
    assert "speedup" in done.stdout
    check_is_picture(picture)
    value = json.loads(file.read_text())
    assert {"compiled", "isa", "threads", "environment", "plan", "results"} <= set(value)
    row = value["results"][-1]
    assert {"case", "op", "dtype", "threads", "method", "seconds", "speedup", "agrees"} <= set(row)
    assert {r["threads"] for r in value["results"]} == {1, 2}


def test_bench_json_on_stdout() -> None:
    done = run(*BENCH, "--methods", "portable", "--json", "-")
    assert [r["method"] for r in json.loads(done.stdout)["results"]] == ["naive", "portable"]


def test_bench_with_a_peer() -> None:
    pytest.importorskip("scipy")
    done = run("bench", "--only", "conv 10x3x31x31, 25 of 3x3, stride 2, forward", "--dtype",
               "float64", "--seconds", "0.005", "--naive-seconds", "0.02", "--peers", "scipy",
               "--methods", "auto")  # fmt: skip
    assert done.returncode == 0, done.stderr
    check_reads_well(done.stdout)
    assert "timed on 1 of 10 images" in done.stdout
    assert "against scipy" in done.stdout or not cnnfast.info()["compiled"]


def test_bench_fails_where_a_method_disagrees(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = benchmark.Result(
        "layer", "conv2d", "forward", "float32", 1, "naive",
        agrees=True, max_error=0.0, seconds=2.0, low=2.0, high=2.0, samples=1, speedup=1.0,
    )  # fmt: skip
    wrong = replace(right, method="im2col", agrees=False, max_error=float("nan"), seconds=None)
    plan = benchmark.Plan()

    def pretend(plan: Any, on_results: Any, progress: Any) -> benchmark.Report:
        on_results([right, wrong])
        return benchmark.Report(plan, benchmark.environment(plan), [right, wrong])

    monkeypatch.setattr(benchmark, "run", pretend)
    assert cli.main(["bench"]) == 1
    captured = capsys.readouterr()
    assert "nan !" in captured.out
    assert captured.err == "cnnfast bench: 1 of 2 results disagree with naive\n"
    assert cli.main(["bench", "--json", "-"]) == 1
    assert json.loads(capsys.readouterr().out)["results"][1]["max_error"] is None
    assert plan.suite == "courses"


def test_explain() -> None:
    done = run("explain", "conv2d", "--x", "100,3,31,31", "--w", "25,3,3,3", "--stride", "2",
               "--padding", "1")  # fmt: skip
    assert done.returncode == 0, done.stderr
    e = cnnfast.explain("conv2d", (100, 3, 31, 31), (25, 3, 3, 3), stride=2, padding=1)
    assert done.stdout == f"{e}\n"


@pytest.mark.parametrize("op", functional.dispatch.TABLE)
def test_explain_knows_every_operation(op: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = {
        "conv1d": "--x 2,3,9 --w 4,3,3 --b 4 --padding same",
        "conv1d_backward": "--dy 2,4,7 --x 2,3,9 --w 4,3,3 --needs xw",
        "conv2d": "--x 2,3,9,8 --w 4,3,3,3 --padding ((1,2),(0,1)) --dilation 2,1",
        "conv2d_backward": "--dy 2,4,7,6 --x 2,3,9,8 --w 4,3,3,3",
        "conv_transpose1d": "--x 2,3,9 --w 3,4,3 --stride 2 --output-padding 1",
        "conv_transpose1d_backward": "--dy 2,4,11 --x 2,3,9 --w 3,4,3",
        "conv_transpose2d": "--x 2,3,9,8 --w 3,4,3,3 --groups 1",
        "conv_transpose2d_backward": "--dy 2,4,11,10 --x 2,3,9,8 --w 3,4,3,3",
        "max_pool1d": "--x 2,3,9 --kernel-size 2",
        "max_pool1d_backward": "--dy 2,3,4 --indices 2,3,4 --input-shape 2,3,9",
        "max_pool2d": "--x 2,3,9,8 --kernel_size 3,2 --stride 2 --ceil-mode true",
        "max_pool2d_backward": "--dy 2,3,4,4 --indices 2,3,4,4 --input_shape 2,3,9,8",
        "avg_pool1d": "--x 2,3,9 --kernel-size 2 --count-include-pad False",
        "avg_pool1d_backward": "--dy 2,3,4 --input-shape 2,3,9 --kernel-size 2",
        "avg_pool2d": "--x 2,3,9,8 --kernel-size 2 --divisor-override 3",
        "avg_pool2d_backward": "--dy 2,3,4,4 --input-shape 2,3,9,8 --kernel-size 2",
        "im2col": "--x 2,3,9,8 --kernel-size 2",
        "col2im": "--cols 2,12,56 --output-size 9,8 --kernel-size 2",
        "batch_norm": "--x 2,3,9,8 --running-mean 3 --running-var 3 --training true",
        "batch_norm_backward": "--dy 2,3,9,8 --x 2,3,9,8 --mean 3 --rstd 3",
        "linear": "--x 2,3 --w 4,3 --b 4",
        "linear_backward": "--dy 2,4 --x 2,3 --w 4,3",
        "dropout": "--x 2,3 --p 0.5",
        "dropout_backward": "--dy 2,3 --mask 2,3",
        "cross_entropy": "--scores 2,3 --labels 2",
        "multi_margin_loss": "--scores 2,3 --labels 2",
        "mse_loss": "--pred 2,3 --target 2,3",
        "softmax": "--x 2,3 --axis -1",
        "log_softmax": "--x 2,3 --axis 0",
        "softmax_backward": "--dy 2,3 --y 2,3 --axis -2",
        "log_softmax_backward": "--dy 2,3 --y 2,3",
    }.get(op)
    if words is None and op.startswith(("dilate", "subsample")):
        x = "2,3,5" if "1d" in op else "2,3,5,5"
        small = "2,3,3" if "1d" in op else "2,3,3,3"
        words = f"--x {x} --factor 2"
        if op.endswith("_backward"):
            dy, x = (small, x) if op.startswith("subsample") else (x, small)
            words = f"--dy {dy} --factor 2 --input-shape {x}"
    elif words is None:
        words = "--dy 2,3 --x 2,3" if op.endswith("_backward") else "--x 2,3"
    assert cli.main(["explain", op, *words.split(), "--dtype", "float64", "--json", "-"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["op"] == op
    assert set(value["method"].split("+")) <= set(cnnfast.methods(op))
    assert value["dtype"] == "float64"
    assert cli.main(["explain", op, *words.split(), "--method", "naive"]) == 0
    assert "naive" in capsys.readouterr().out


def test_explain_lists_the_operations(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["explain", "--help"])
    words = capsys.readouterr().out.replace(",", " ").replace(".", " ").split()
    assert set(functional.dispatch.TABLE) <= set(words)


def test_explain_takes_its_options_before_the_operation(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["explain", "--json", "-", "--dtype", "float64", "relu", "--x", "2,3"]) == 0
    assert json.loads(capsys.readouterr().out)["dtype"] == "float64"


def test_verify(tmp_path: Path) -> None:
    file = tmp_path / "verify.json"
    done = run("verify", "--cases", "2", "--seed", "3", "--json", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    check_reads_well(done.stdout)
    value = json.loads(file.read_text())
    assert value["failed"] == 0
    assert {row["op"] for row in value["results"]} == set(functional.dispatch.TABLE)


def test_verify_fails_where_a_method_disagrees(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = functional.tanh

    def wrong(x: Any, *, method: str = "auto") -> Any:
        return right(x, method=method) + (method == "portable")

    monkeypatch.setattr(functional, "tanh", wrong)
    assert cli.main(["verify", "--ops", "tanh", "--cases", "2"]) == 1
    captured = capsys.readouterr()
    assert "portable, float32, seed 0, case 0: tanh(x=" in captured.out
    methods = len(cnnfast.methods("tanh"))
    compared = f"4 of {2 * 2 * methods} comparisons"
    assert captured.err == f"cnnfast verify: {compared} disagree with naive\n"


def test_to_compare_nothing_is_a_mistake(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(x: Any, *, method: str) -> Any:
        raise functional.dispatch.MethodError("cannot serve: not today")

    monkeypatch.setattr(functional, "tanh", refuse)
    assert cli.main(["verify", "--ops", "tanh", "--cases", "1"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "cnnfast verify: nothing was compared: every call was refused\n"
    assert "0 comparisons" not in captured.out

    naive = benchmark.Result("layer", "conv2d", "forward", "float32", 1, "naive", max_error=0.0)
    results = [naive, replace(naive, method="im2col", max_error=None, note="not today")]
    report = benchmark.Report(benchmark.Plan(), benchmark.environment(benchmark.Plan()), results)
    monkeypatch.setattr(benchmark, "run", lambda *_: report)
    assert cli.main(["bench"]) == 2
    assert capsys.readouterr().err.startswith("cnnfast bench: nothing was compared")


def test_tables_are_whole_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"COLUMNS": "40", "TERM": "xterm", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert cli.main(["verify", "--ops", "conv_transpose2d_backward", "--cases", "1"]) == 0
    out = capsys.readouterr().out
    assert "conv_transpose2d_backward" in out
    assert "refused" in out
    assert "…" not in out


@needs_digits
@needs_matplotlib
def test_train_resume_and_plot(tmp_path: Path) -> None:
    file, picture, state = tmp_path / "t.json", tmp_path / "t.png", tmp_path / "state"
    words = ["train", "--data", "digits", "--epochs", "1", "--checkpoint", str(state),
             "--json", str(file), "--seed", "1"]  # fmt: skip
    done = run(*words, "--time-limit", "0.001", "--plot", str(picture))
    assert done.returncode == 0, done.stderr
    check_reads_well(done.stdout)
    check_is_picture(picture)
    first = json.loads(file.read_text())
    assert {"train_accuracy", "val_accuracy", "test_accuracy", "seconds", "epochs", "steps"} <= set(
        first
    )
    assert first["steps"] >= 1
    assert first["epochs"] == 0
    done = run(*words, "--resume", "--threads", "1")
    assert done.returncode == 0, done.stderr
    assert "Going on from step" in done.stdout
    check_reads_well(done.stdout)
    assert done.stderr == ""  # a progress bar is for terminals
    second = json.loads(file.read_text())
    assert second["resumed_from"] == first["steps"]
    assert second["epochs"] == 1
    assert (first["seed"], second["seed"]) == (1, None)
    assert second["test_accuracy"] > 0.3
    assert len(second["loss_history"]) == second["steps"]


@needs_digits
def test_train_says_that_there_is_no_checkpoint_to_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("safetensors")
    words = ["train", "--data", "digits", "--time-limit", "0.001", "--checkpoint", str(tmp_path)]
    assert cli.main([*words, "--resume"]) == 0
    assert "starting from the beginning" in capsys.readouterr().out


def test_train_does_not_overwrite_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("safetensors")
    file = tmp_path / "checkpoint.safetensors"
    file.write_text("weeks of work")
    status = cli.main(["train", "--data", "digits", "--checkpoint", str(tmp_path)])
    check_mistake(status, *capsys.readouterr(), "--resume")
    assert file.read_text() == "weeks of work"
    status = cli.main(["train", "--data", "digits", "--checkpoint", str(file)])
    check_mistake(status, *capsys.readouterr(), "not the name of a folder")


@needs_digits
def test_train_the_deep_model(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--data", "digits", "--model", "deep", "--time-limit", "0.001"]
    assert cli.main([*words, "--json", "-"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["model"] == "deep"
    assert value["steps"] == 1


@needs_digits
def test_train_shows_where_the_time_went(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--data", "digits", "--model", "fast", "--time-limit", "0.5"]
    assert cli.main([*words, "--json", "-"]) == 0
    value = json.loads(capsys.readouterr().out)
    profile = value["profile"]
    assert list(profile) == [
        "data", "augmentation", "forward", "loss", "backward", "update", "evaluation",
        "checkpoint", "rest", "total",
    ]  # fmt: skip
    total = profile.pop("total")
    assert total["share"] == 1
    assert total["seconds"] <= value["seconds"]
    assert total["ms_per_step"] == pytest.approx(1e3 * total["seconds"] / value["steps"])
    assert sum(row["seconds"] for row in profile.values()) == pytest.approx(total["seconds"])
    assert "mirrored_test_accuracy" not in value
    assert cli.main([*words, "--profile"]) == 0
    out = capsys.readouterr().out
    check_reads_well(out)
    for part in ("augmentation", "evaluation", "total"):
        assert part in out


@needs_digits
def test_a_training_that_diverges_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--data", "digits", "--lr", "1e30", "--epochs", "1", "--model", "three-layer"]
    assert cli.main(words) == 1
    err = capsys.readouterr().err
    assert err.splitlines()[-1].startswith("cnnfast train: Solver: the loss is")


MISTAKES = [
    ([], "COMMAND"),
    (["fly"], "'fly'"),
    (["info", "--loud"], "--loud"),
    (["info", "--json", "/no/such/folder/x.json"], "/no/such/folder"),
    (["info", "--json", "/"], "not the name of a file"),
    (["info", "--json"], "--json"),
    (["bench", "--suite", "nope"], "'nope'"),
    (["bench", "--dtype", "float16"], "'float16'"),
    (["bench", "--dtype", ","], "at least one dtype"),
    (["bench", "--threads", "0"], "at least 1, not 0"),
    (["bench", "--threads", "two"], "'two'"),
    (["bench", "--methods", "magic"], "'magic'"),
    (["bench", "--peers", "keras"], "'keras'"),
    (["bench", "--methods", ""], "nothing to compare"),
    (["bench", "--threads", "99999999999999999999"], "at most 1024"),
    (["bench", "--only", "zzz"], "'zzz'"),
    (["bench", "--seconds", "-1"], "must be positive"),
    (["bench", "--seconds", "nan"], "must be positive"),
    (["bench", "--seed", "-1"], "at least 0"),
    (["bench", "--plot", "/no/such/folder/x.png"], "/no/such/folder"),
    (["bench", "--plot", "speed.gif"], ".png"),
    (["explain"], "OPERATION"),
    (["explain", "conv3d"], "'conv3d'"),
    (["explain", "conv2d", "--x", "1,3,8,8"], "--w"),
    (["explain", "conv2d", "--x", "1,3,8,8", "--w", "4,2,3,3"], "w has 2 input channels"),
    (["explain", "conv2d", "--x", "1,3,8,8", "--w", "4,3,3,3", "--stride", "1.5"], "stride"),
    (["explain", "conv2d", "--x", "1,3,8,8", "--w", "4,3,3,3", "--padding", "-1"], "padding"),
    (["explain", "conv2d", "--x", "1,3,8,8", "--w", "4,3,3,3", "--method", "magic"], "'magic'"),
    (["explain", "conv2d", "--x", "1x3x8x8", "--w", "4,3,3,3"], "must be a shape"),
    (["verify", "--cases", "0"], "at least 1, not 0"),
    (["verify", "--cases", "many"], "'many'"),
    (["verify", "--ops", "conv3d"], "'conv3d'"),
    (["verify", "--methods", "magic"], "'magic'"),
    (["verify", "--methods", ""], "nothing to compare"),
    (["verify", "--ops", ""], "nothing to compare"),
    (["verify", "--ops", "tanh", "--methods", "toeplitz"], "nothing to compare"),
    (["verify", "--peers", "keras"], "'keras'"),
    (["verify", "--seed", "-1"], "at least 0"),
    (["train"], "--data"),
    (["train", "--data", "imagenet"], "'imagenet'"),
    (["train", "--data", "mnist"], "--data-dir"),
    (["train", "--data", "digits", "--data-dir", "."], "takes no --data-dir"),
    (["train", "--data", "mnist", "--data-dir", "/no/such/folder"], "train-images-idx3-ubyte"),
    (["train", "--data", "cifar10", "--data-dir", "/no/such/folder"], "/no/such/folder"),
    (["train", "--data", "digits", "--resume"], "--checkpoint"),
    (["train", "--data", "digits", "--checkpoint", ""], "--checkpoint ''"),
    (["train", "--data", "digits", "--threads", "99999999999999999999"], "at most 1024"),
    (["train", "--data", "digits", "--epochs", "0"], "at least 1, not 0"),
    (["train", "--data", "digits", "--lr", "fast"], "'fast'"),
    (["train", "--data", "digits", "--time-limit", "0"], "must be positive"),
    (["train", "--data", "digits", "--seed", "-1"], "at least 0"),
    (["train", "--data", "digits", "--model", "huge"], "'huge'"),
]


def check_mistake(status: int, out: str, err: str, words: str) -> None:
    assert status == 2
    assert out == ""
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert err.startswith("cnnfast")
    assert words in err


@pytest.mark.parametrize(("argv", "words"), MISTAKES, ids=[" ".join(m[0]) for m in MISTAKES])
def test_a_mistake_is_one_line(
    argv: Sequence[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = cli.main(argv)
    check_mistake(status, *capsys.readouterr(), words)


@pytest.mark.parametrize(("argv", "words"), [MISTAKES[1], MISTAKES[22], MISTAKES[36]])
def test_a_mistake_is_one_line_in_a_process(argv: Sequence[str], words: str) -> None:
    done = run(*argv)
    check_mistake(done.returncode, done.stdout, done.stderr, words)


def test_a_missing_extra_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(plots, "missing", lambda: "matplotlib is not installed")
    status = cli.main(["bench", "--plot", str(tmp_path / "x.png")])
    check_mistake(status, *capsys.readouterr(), "matplotlib is not installed")
    monkeypatch.setitem(benchmark.peers.PEERS, "torch", ("no_such_package",))
    for command in ("bench", "verify"):
        status = cli.main([command, "--peers", "torch"])
        check_mistake(status, *capsys.readouterr(), "no_such_package")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    status = cli.main(["train", "--data", "mnist", "--checkpoint", str(tmp_path)])
    check_mistake(status, *capsys.readouterr(), "safetensors")
    monkeypatch.setitem(sys.modules, "sklearn", None)
    status = cli.main(["train", "--data", "digits"])
    check_mistake(status, *capsys.readouterr(), "scikit-learn")


def test_tables_are_plain_without_rich(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "rich" else found(name)
    )
    assert cli.main(["verify", "--ops", "tanh,conv_transpose2d_backward", "--cases", "1"]) == 0
    out = capsys.readouterr().out
    check_reads_well(out)
    assert "operation" in out
    assert "-----" in out


def test_an_interrupted_benchmark_leaves_no_process(tmp_path: Path) -> None:
    if os.name != "posix":
        pytest.skip("signals are sent otherwise elsewhere")
    process = subprocess.Popen(
        [sys.executable, "-m", "cnnfast", "bench", "--suite", "pool", "--seconds", "0.01",
         "--naive-seconds", "0.01", "--json", str(tmp_path / "x.json")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=environment(PYTHONUNBUFFERED="1"),
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline()
    # As a terminal does: to the workers too.
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == "cnnfast bench: interrupted\n"
    assert not list(tmp_path.iterdir())
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_a_reader_that_leaves_early_is_no_drama() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "cnnfast", "info"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=environment(),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    process.wait(timeout=30)


@needs_matplotlib
def test_benchmarks_run_from_a_clone(tmp_path: Path) -> None:
    script = ROOT / "benchmarks" / "run.py"
    if not script.exists():
        pytest.skip("not a clone")
    file = tmp_path / "b.json"
    done = subprocess.run(
        [sys.executable, str(script), *BENCH[1:], "--json", str(file)],
        capture_output=True,
        encoding="utf-8",
        cwd=tmp_path,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(file.read_text())["environment"]["date"]


@needs_matplotlib
def test_pictures_of_extremes() -> None:
    r = benchmark.Result("layer", "conv2d", "forward", "float32", 1, "im2col", speedup=1e5)
    many = [
        replace(r, case=f"layer {i}", method=method, threads=n, dtype=dtype, speedup=0.01 * 99**i)
        for i in range(3)
        for method in ("im2col", "portable", "unheard of")
        for n in (1, 2)
        for dtype in ("float32", "float64")
    ]
    for results in ([], [r], many, [replace(r, speedup=None), replace(r, method="naive")]):
        assert plots.speedups(results, "Title").startswith(b"\x89PNG")
    assert b"<svg" in plots.speedups([r], "Title", "footnote", "svg")
    assert plots.speedups([r], "Title", "footnote", "pdf").startswith(b"%PDF")


@needs_matplotlib
def test_pictures_of_training_with_and_without_filters() -> None:
    import numpy as np

    accuracies = {"training": [0.1, 0.9], "validation": [0.1, 0.8]}
    rng = np.random.default_rng(0)
    for filters in (None, rng.normal(size=(20, 3, 5, 5))):
        data = plots.training([2.0, 1.0, 0.5], [0.5, 1], accuracies, filters, "Title")
        assert data.startswith(b"\x89PNG")
    assert plots.training([1.0], [1.0], {"training": [0.1]}, np.zeros((1, 3, 1, 1)), "Title")
