"""What compares methods with the loops, itself held against methods that are wrong."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

from cnnfast import dispatch, functional, naive
from cnnfast.trials import Seed, Trial, draw
from cnnfast.verify import bounds, largest_error, verify


@pytest.mark.parametrize("op", dispatch.TABLE)
def test_every_operation_has_random_calls_that_the_loops_accept(op: str) -> None:
    for number in range(8):
        trial = draw(op, np.random.default_rng(number))
        assert trial.op == op
        assert set(trial.args) <= set(inspect.signature(getattr(functional, op)).parameters)
        for value in trial.args.values():
            if isinstance(value, np.ndarray) and value.dtype.kind == "f":
                assert value.dtype == np.float64
                np.testing.assert_array_equal(value, value.astype(np.float32))
        args = {n: np.random.default_rng(v.value) if isinstance(v, Seed) else v
                for n, v in trial.args.items()}  # fmt: skip
        getattr(naive, op)(**args)


def test_the_same_seed_draws_the_same_call() -> None:
    one, two = (draw("conv2d", np.random.default_rng(3)) for _ in range(2))
    assert str(one) == str(two)
    np.testing.assert_array_equal(one.args["x"], two.args["x"])


def test_random_calls_reach_the_corners() -> None:
    calls = [draw("conv2d", np.random.default_rng(i)).args for i in range(300)]
    assert {"same", "valid"} <= {a["padding"] for a in calls if isinstance(a["padding"], str)}
    assert any(isinstance(a["padding"], tuple) and isinstance(a["padding"][0], tuple)
               for a in calls)  # fmt: skip
    assert any(a["groups"] > 1 for a in calls)
    assert any(a["x"].shape[0] == 0 for a in calls)
    assert any(a["w"].shape[2] != a["w"].shape[3] for a in calls)
    assert any(a["x"].shape[2] != a["x"].shape[3] for a in calls)
    assert any(np.min(a["stride"]) > max(a["w"].shape[2:]) for a in calls)
    pools = [draw("max_pool2d", np.random.default_rng(i)).args for i in range(100)]
    assert any(np.isnan(a["x"]).any() for a in pools)
    assert any(a["ceil_mode"] for a in pools)


def test_an_operation_without_random_calls_is_named() -> None:
    with pytest.raises(ValueError, match="'conv3d'"):
        draw("conv3d", np.random.default_rng(0))


def test_all_methods_agree() -> None:
    rows = verify(cases=4, seed=11)
    assert [failure for row in rows for failure in row.failures] == []
    assert {row.op for row in rows} == set(dispatch.TABLE)
    for op in dispatch.TABLE:
        assert {row.method for row in rows if row.op == op} == set(dispatch.methods(op))
    compared = [row for row in rows if row.cases]
    assert all(row.cases + row.skipped == 4 for row in rows)
    assert len(compared) > 0.9 * len(rows)


def test_the_same_seed_gives_the_same_rows() -> None:
    assert verify(3, 5, ops=["conv1d"]) == verify(3, 5, ops=["conv1d"])


def _wrong_value(result: Any, x: Any) -> Any:
    result.flat[-1] += 1e-3
    return result


def _nan(result: Any, x: Any) -> Any:
    result.flat[0] = np.nan
    return result


def _wrong_shape(result: Any, x: Any) -> Any:
    return np.ascontiguousarray(result[..., None])


def _wrong_dtype(result: Any, x: Any) -> Any:
    return result.astype(np.float16)


def _not_contiguous(result: Any, x: Any) -> Any:
    return np.repeat(result, 2, axis=-1)[..., ::2]


def _nothing(result: Any, x: Any) -> Any:
    return None


def _raises(result: Any, x: Any) -> Any:
    raise KeyError("no such thing")


def _changes_its_input(result: Any, x: Any) -> Any:
    x.flags.writeable = True
    x[...] = 0
    return result


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_wrong_value, "error"),
        (_nan, "error nan"),
        (_wrong_shape, "has shape"),
        (_wrong_dtype, "has dtype float16"),
        (_not_contiguous, "not C-contiguous"),
        (_nothing, "gave 0 results, not 1"),
        (_raises, "raised KeyError"),
        (_changes_its_input, "changed its argument x"),
    ],
)
def test_a_wrong_result_is_caught(monkeypatch: pytest.MonkeyPatch, spoil: Any, words: str) -> None:
    right = functional.tanh

    def wrong(x: Any, *, method: str) -> Any:
        return spoil(right(x, method=method), x)

    monkeypatch.setattr(functional, "tanh", wrong)
    rows = verify(cases=3, seed=1, ops=["tanh"], methods=["portable"])
    assert all(row.failed for row in rows)
    assert all(words in failure for row in rows for failure in row.failures)
    assert all("tanh(x=" in failure for row in rows for failure in row.failures)


def test_a_method_that_did_not_run_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = functional.tanh
    monkeypatch.setattr(functional, "tanh", lambda x, *, method: right(x, method="naive"))
    rows = verify(cases=2, ops=["tanh"], methods=["portable"])
    assert all(row.failed == 2 for row in rows)
    assert "was computed by naive" in rows[0].failures[0]


def test_a_refusal_is_counted_but_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(x: Any, *, method: str) -> Any:
        raise dispatch.MethodError("not today")

    monkeypatch.setattr(functional, "tanh", refuse)
    rows = verify(cases=2, ops=["tanh"])
    assert all((row.cases, row.skipped, row.failed) == (0, 2, 0) for row in rows)


@pytest.mark.parametrize(
    ("got", "want", "error"),
    [
        ([1.0, 2.0], [1.0, 2.5], 0.5),
        ([np.nan, 1.0], [np.nan, 1.0], 0.0),
        ([np.inf, -np.inf], [np.inf, -np.inf], 0.0),
        ([np.inf], [-np.inf], np.inf),
        ([np.inf], [1.0], np.inf),
        ([np.nan], [1.0], np.nan),
        ([1.0], [np.nan], np.nan),
        ([1.0, 1.0], [1.0], np.nan),
        ([], [], 0.0),
        (1.5, 1.0, 0.5),
    ],
)
def test_largest_error(got: Any, want: Any, error: float) -> None:
    np.testing.assert_equal(largest_error(np.array(got), np.array(want)), error)


def test_bounds_grow_with_the_length_of_the_sum() -> None:
    def limit(channels: int, eps: float = 1.0) -> float:
        x, w = np.ones((1, channels, 5, 5)), np.ones((2, channels, 3, 3))
        return bounds("conv2d", {"x": x, "w": w}, eps)[0]

    assert limit(64) / limit(1) == pytest.approx((64 * 9 + 2) / (9 + 2))
    assert limit(1, 2.0**-23) == limit(1) * 2.0**-23
    assert bounds("max_pool2d", {}, 1.0) == [0.0, 0.0]


def test_bounds_of_gradients_come_in_the_order_of_the_results() -> None:
    dy, x, w = np.ones((7, 2, 3, 3)), np.ones((7, 1, 5, 5)), np.ones((2, 1, 3, 3))
    args = {"dy": dy, "x": x, "w": w}
    assert bounds("conv2d_backward", args, 1.0) == [18 + 2, 63 + 2, 63 + 2]
    assert bounds("conv2d_backward", {**args, "needs": "b"}, 1.0) == [63 + 2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"cases": 0}, "cases must be at least 1, not 0"),
        ({"ops": ["conv3d"]}, "'conv3d'"),
        ({"methods": ["magic"]}, "'magic'"),
        ({"dtypes": ["float16"]}, "'float16'"),
        ({"peers": ["keras"]}, "'keras'"),
    ],
)
def test_what_does_not_exist_is_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        verify(**arguments)


def test_progress_hears_of_each_operation() -> None:
    heard: list[str] = []
    verify(1, ops=["relu", "tanh"], progress=heard.append)
    assert heard == ["relu", "tanh"]


def test_a_trial_prints_as_the_call() -> None:
    trial = Trial("relu", {"x": np.zeros((2, 3))})
    assert str(trial) == "relu(x=(2, 3))"


def test_torch_agrees_with_the_loops() -> None:
    pytest.importorskip("torch")
    rows = [row for row in verify(5, 2, peers=["torch"]) if row.method == "torch"]
    assert [failure for row in rows for failure in row.failures] == []
    without = {row.op for row in rows if not row.cases}
    assert without == {
        op for op in dispatch.TABLE if op.startswith(("dilate", "subsample", "drop"))
    }


@pytest.mark.parametrize("change", [{"ops": []}, {"methods": []}, {"methods": ["toeplitz"]}])
def test_to_compare_nothing_is_an_error(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="nothing to compare"):
        verify(cases=1, **{"ops": ["tanh"], **change})
