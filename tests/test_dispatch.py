"""Which method runs, who decides it, and what `explain` says before it does."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import json
import os
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import checks
import numpy as np
import pytest
from cases import CASES, Case

import cnnfast
from cnnfast import compiled, dispatch

# Of the engine's convolutions only "gemm" is for this one.
X, W = np.ones((1, 9, 5, 6)), np.ones((3, 9, 2, 3))

# One of which any of several might be fastest.
X3, W3 = (8, 64, 32, 32), (64, 64, 3, 3)

_MISSING = compiled.cython_missing() or compiled.engine_missing()
needs_compiled = pytest.mark.skipif(_MISSING is not None, reason=str(_MISSING))


def ran_by(call: Callable[[], Any]) -> str:
    """The method that computed the one operation of a call."""
    with cnnfast.trace() as ran:
        call()
    (one,) = ran
    return one.method


def conv(**options: Any) -> Any:
    return cnnfast.conv2d(X, W, **options)


# The table


@pytest.mark.parametrize("op", CASES)
def test_methods(op: str) -> None:
    names = cnnfast.methods(op)
    assert isinstance(names, tuple) and len(set(names)) == len(names) >= 2
    assert names[-1] == "naive"
    assert "portable" in names


def test_methods_by_name() -> None:
    """There may be more, but these stand in this order."""
    orders = {
        ("gemm", "im2col", "portable", "toeplitz", "naive"): ("conv1d", "conv2d_backward"),
        ("winograd", "depthwise", "gemm", "portable"): ("conv2d", "conv_transpose2d_backward"),
        ("winograd", "depthwise", "gemm", "naive"): ("conv1d_backward", "conv_transpose1d"),
        ("engine", "cython", "portable", "naive"): ("max_pool2d", "avg_pool1d_backward"),
        ("cython", "portable", "naive"): ("col2im", "dilate1d"),
        ("engine", "portable", "naive"): ("relu", "linear_backward"),
        ("portable", "naive"): ("dropout", "mse_loss", "sigmoid_backward"),
    }
    for order, ops in orders.items():
        for op in ops:
            assert tuple(m for m in cnnfast.methods(op) if m in order) == order


@pytest.mark.parametrize("op", ["conv3d", "", "methods", "conv2D", None, 3, ["conv2d"]])
def test_methods_of_no_operation(op: Any) -> None:
    with pytest.raises(ValueError, match=r"there is no operation .*; there are conv1d, "):
        cnnfast.methods(op)


# Precedence: the call, then `use`, then the environment, then auto


@needs_compiled
def test_auto_takes_the_first() -> None:
    assert ran_by(conv) == "gemm"
    assert ran_by(lambda: conv(method="auto")) == "gemm"
    assert ran_by(lambda: cnnfast.max_pool2d(X, 2)) == "engine"
    assert ran_by(lambda: cnnfast.im2col(X, 2)) == "cython"
    assert ran_by(lambda: cnnfast.multi_margin_loss(X[0, 0], [0] * 5)) == "portable"


@needs_compiled
def test_auto_takes_the_fastest_convolution() -> None:
    e = cnnfast.explain("conv2d", X3, W3, padding=1)
    assert (e.method, e.reason) == ("winograd", "fastest by the cost model")
    assert cnnfast.explain("conv2d", X3, W3, padding=1, stride=2).method == "gemm"
    depthwise = cnnfast.explain("conv2d", X3, (64, 1, 3, 3), padding=1, groups=64)
    assert depthwise.method == "depthwise"
    assert cnnfast.explain("conv1d", (8, 64, 32), (64, 64, 3)).method == "gemm"


@needs_compiled
def test_gradients_may_take_two_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each product by the method that is best at it, and the result is that of the two."""
    costs = {("gemm", "backward_input"): 1.0, ("winograd", "backward_weights"): 1.0}
    monkeypatch.setattr(dispatch, "cost", lambda m, product, call: costs.get((m, product), 2.0))
    rng = np.random.default_rng(0)
    x, w, dy = (rng.normal(size=s) for s in ((2, 3, 6, 7), (4, 3, 3, 3), (2, 4, 6, 7)))
    shapes = (dy, x, w, 1, 1)
    with cnnfast.trace() as ran:
        mixed = cnnfast.conv2d_backward(*shapes)
    assert ran == [dispatch.Ran("conv2d_backward", "gemm+winograd")]
    assert cnnfast.explain("conv2d_backward", *shapes).method == "gemm+winograd"
    by_gemm = cnnfast.conv2d_backward(*shapes, method="gemm")
    by_winograd = cnnfast.conv2d_backward(*shapes, method="winograd")
    for a, b in zip(mixed, (by_gemm[0], by_winograd[1], by_gemm[2]), strict=True):
        checks.assert_same(a, b, "gradients by two methods")


@needs_compiled
class TestWinogradCanBeSwitchedOff:
    @pytest.fixture(autouse=True)
    def _as_it_was(self) -> Iterator[None]:
        yield
        cnnfast.set_winograd(True)

    def test_by_a_call(self) -> None:
        cnnfast.set_winograd(False)
        e = cnnfast.explain("conv2d", X3, W3, padding=1)
        assert e.method == "gemm"
        sentence = "it is switched off (cnnfast.set_winograd, CNNFAST_WINOGRAD)"
        assert e.rejected["winograd"] == sentence
        with pytest.raises(cnnfast.MethodError, match="it is switched off"):
            cnnfast.explain("conv2d", X3, W3, padding=1, method="winograd")
        cnnfast.set_winograd(True)
        assert cnnfast.explain("conv2d", X3, W3, padding=1).method == "winograd"

    @pytest.mark.parametrize("value", [2, None, "no", 0.5])
    def test_only_by_a_bool(self, value: Any) -> None:
        with pytest.raises(TypeError, match=r"^set_winograd: allowed must be"):
            cnnfast.set_winograd(value)
        assert cnnfast.explain("conv2d", X3, W3, padding=1).method == "winograd"

    @pytest.mark.parametrize(
        ("value", "method"),
        [("0", "gemm"), ("false", "gemm"), (" off ", "gemm"), ("", "winograd"), ("1", "winograd")],
    )
    def test_by_the_environment(self, value: str, method: str) -> None:
        ask = f"import cnnfast; print(cnnfast.explain('conv2d', {X3}, {W3}, padding=1).method)"
        found = subprocess.run(
            [sys.executable, "-c", ask],
            env={**os.environ, "CNNFAST_WINOGRAD": value},
            capture_output=True,
            text=True,
            check=True,
        )
        assert found.stdout.strip() == method


def test_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNNFAST_METHOD", "naive")
    dispatch.forget()
    assert ran_by(conv) == "naive"
    with cnnfast.use("toeplitz"):
        assert ran_by(conv) == "toeplitz"
        assert ran_by(lambda: conv(method="portable")) == "portable"
        assert ran_by(lambda: conv(method="auto")) == "toeplitz"
    assert ran_by(lambda: conv(method="portable")) == "portable"
    assert ran_by(conv) == "naive"
    monkeypatch.delenv("CNNFAST_METHOD")
    dispatch.forget()
    assert ran_by(conv) == cnnfast.explain("conv2d", X, W).method


@needs_compiled
def test_environment_may_be_empty_or_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "auto"):
        monkeypatch.setenv("CNNFAST_METHOD", value)
        dispatch.forget()
        assert ran_by(conv) == "gemm"


@needs_compiled
def test_use_auto_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNNFAST_METHOD", "naive")
    dispatch.forget()
    with cnnfast.use("toeplitz"), cnnfast.use("auto"):
        assert ran_by(conv) == "gemm"
    assert ran_by(conv) == "naive"


def test_calls_are_remembered_where_auto_says_nothing_new(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert dispatch.undisturbed()
    with cnnfast.use("auto"):
        assert dispatch.undisturbed()
        with cnnfast.trace():
            assert not dispatch.undisturbed()
        with cnnfast.use("naive"):
            assert not dispatch.undisturbed()
            with cnnfast.use("auto"):
                assert dispatch.undisturbed()
            assert ran_by(conv) == "naive"
    with cnnfast.trace(), cnnfast.use("auto"):
        assert not dispatch.undisturbed()
    for value in ("naive", "no method"):
        monkeypatch.setenv("CNNFAST_METHOD", value)
        dispatch.forget()
        with cnnfast.use("auto"):
            assert not dispatch.undisturbed()
            assert dispatch.forced("conv2d", "auto")[0] == "auto"


def test_use_nests() -> None:
    with cnnfast.use("naive"):
        with cnnfast.use("portable"):
            with cnnfast.use("toeplitz"):
                assert ran_by(conv) == "toeplitz"
            assert ran_by(conv) == "portable"
        assert ran_by(conv) == "naive"


@needs_compiled
def test_use_ends_with_an_error() -> None:
    with pytest.raises(KeyError), cnnfast.use("naive"):
        raise KeyError
    assert ran_by(conv) == "gemm"


@needs_compiled
def test_use_leaves_alone_what_has_no_such_method() -> None:
    with cnnfast.use("toeplitz"):
        assert ran_by(lambda: cnnfast.max_pool2d(X, 2)) == "engine"
    with cnnfast.use("cython"):
        assert ran_by(conv) == "gemm"


@needs_compiled
def test_use_concerns_its_own_thread() -> None:
    entered, asked, answers = threading.Event(), threading.Event(), {}

    def other() -> None:
        with cnnfast.use("naive"):
            entered.set()
            asked.wait(10)
            answers["other"] = ran_by(conv)

    thread = threading.Thread(target=other)
    thread.start()
    assert entered.wait(10)
    answers["this"] = ran_by(conv)
    asked.set()
    thread.join(10)
    assert answers == {"this": "gemm", "other": "naive"}


@needs_compiled
def test_use_and_trace_are_not_seen_by_a_new_thread() -> None:
    answers = []

    def ask() -> None:
        answers.append(cnnfast.explain("conv2d", X, W).method)
        conv()

    with cnnfast.use("naive"), cnnfast.trace() as ran:
        # With an empty context, as all threads begin in Python up to 3.13.
        thread = threading.Thread(target=contextvars.Context().run, args=(ask,))
        thread.start()
        thread.join(10)
    assert answers == ["gemm"]
    assert ran == []


@needs_compiled
def test_use_concerns_its_own_task() -> None:
    async def task(name: str, seen: dict[str, str]) -> None:
        with cnnfast.use(name):
            await asyncio.sleep(0)
            seen[name] = ran_by(conv)
            await asyncio.sleep(0)

    async def main() -> dict[str, str]:
        seen: dict[str, str] = {}
        await asyncio.gather(*(task(name, seen) for name in ("naive", "toeplitz", "portable")))
        return seen

    assert asyncio.run(main()) == {name: name for name in ("naive", "toeplitz", "portable")}


def test_trace_records_in_order_and_nests() -> None:
    with cnnfast.trace() as outer:
        cnnfast.relu(X, method="portable")
        with cnnfast.trace() as inner:
            cnnfast.tanh(X, method="naive")
        cnnfast.conv1d(X[:, :, 0], W[:, :, 0], method="toeplitz")
    assert inner == [dispatch.Ran("tanh", "naive")]
    assert outer == [
        dispatch.Ran("relu", "portable"),
        dispatch.Ran("tanh", "naive"),
        dispatch.Ran("conv1d", "toeplitz"),
    ]


def test_trace_records_nothing_that_failed() -> None:
    with cnnfast.trace() as ran:
        with pytest.raises(ValueError, match="conv2d"):
            cnnfast.conv2d(X, W[:, :1])
        cnnfast.explain("conv2d", X, W)
    assert ran == []


# Refusals


def test_unknown_method_in_a_call() -> None:
    with pytest.raises(
        ValueError, match="conv2d: there is no method 'fast'; there are auto, gemm, "
    ):
        conv(method="fast")


def test_method_of_another_operation() -> None:
    with pytest.raises(
        ValueError, match=r"conv2d: has no method 'cython'; it has winograd, .*, toeplitz, naive"
    ):
        conv(method="cython")


@pytest.mark.parametrize("method", [None, 3, ("naive",), ["naive"], "NAIVE", ""])
def test_method_that_is_no_name(method: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=r"conv2d: .*method"):
        conv(method=method)


def test_unknown_method_in_use() -> None:
    sentence = "use: there is no method 'fast'; there are auto, gemm, "
    with pytest.raises(ValueError, match=sentence), cnnfast.use("fast"):
        pass


def test_unknown_method_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNNFAST_METHOD", "fast")
    dispatch.forget()
    with pytest.raises(ValueError, match="CNNFAST_METHOD: there is no method 'fast'; there are"):
        conv()
    # Who says more than the environment is not disturbed by it.
    assert ran_by(lambda: conv(method="naive")) == "naive"
    with cnnfast.use("naive"):
        assert ran_by(conv) == "naive"


def test_method_error_is_a_value_error_with_the_reason() -> None:
    assert issubclass(cnnfast.MethodError, ValueError)
    large = (1, 64, 224, 224), (64, 64, 3, 3)
    entries = 64 * 222 * 222 * 64 * 9
    sentence = (
        rf"conv2d: method 'toeplitz' \(from method='toeplitz'\) cannot serve: its matrix would "
        rf"have {entries} entries, more than \d+"
    )
    with pytest.raises(cnnfast.MethodError, match=sentence):
        cnnfast.explain("conv2d", *large, method="toeplitz")
    sentence = r"'toeplitz' \(from cnnfast.use\) cannot serve"
    with pytest.raises(cnnfast.MethodError, match=sentence), cnnfast.use("toeplitz"):
        cnnfast.explain("conv2d", *large)


def test_method_error_names_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNNFAST_METHOD", "toeplitz")
    dispatch.forget()
    with pytest.raises(cnnfast.MethodError, match=r"'toeplitz' \(from CNNFAST_METHOD\) cannot"):
        cnnfast.explain("conv2d", (1, 64, 224, 224), (64, 64, 3, 3))


# Without compiled code


@pytest.fixture
def nothing_compiled(monkeypatch: pytest.MonkeyPatch) -> str:
    reason = "the kernels are not installed"

    def kernels(name: str) -> Any:
        raise ImportError(reason)

    monkeypatch.setattr(compiled, "cython_missing", lambda: reason)
    monkeypatch.setattr(compiled, "engine_missing", lambda: reason)
    monkeypatch.setattr(compiled, "kernels", kernels)
    monkeypatch.setattr(compiled, "engine", lambda: kernels("_engine"))
    return reason


@pytest.mark.parametrize("op", CASES)
def test_portable_serves_everything_without_compiled_code(op: str, nothing_compiled: str) -> None:
    case = CASES[op][0]
    assert ran_by(lambda: getattr(cnnfast, op)(**case.arguments())) == "portable"
    explanation = cnnfast.explain(op, **case.arguments())
    assert explanation.method == "portable"
    compiled_ones = {"im2col", "cython", *checks.ENGINE} & set(cnnfast.methods(op))
    for name in compiled_ones - set(checks.SOME):
        assert explanation.rejected[name] == nothing_compiled
        with pytest.raises(cnnfast.MethodError, match=f"{op}: .*{nothing_compiled}"):
            getattr(cnnfast, op)(**case.arguments(), method=name)


# Explain


def test_explain_convolution_by_hand() -> None:
    """2 x (100 x 25 x 16 x 16 outputs) x (3 x 3 x 3 taps); x, w and y once, of four bytes."""
    e = cnnfast.explain("conv2d", (100, 3, 31, 31), (25, 3, 3, 3), stride=2, padding=1)
    assert (e.op, e.dtype, e.device) == ("conv2d", "float32", "cpu")
    assert e.flops == 2 * 640_000 * 27 == 34_560_000
    assert e.bytes == 4 * (288_300 + 675 + 640_000)
    double = cnnfast.explain(
        "conv2d", (100, 3, 31, 31), (25, 3, 3, 3), stride=2, padding=1, dtype=np.float64
    )
    assert double.flops == e.flops and double.bytes == 2 * e.bytes and double.dtype == "float64"


def test_explain_gradients_by_hand() -> None:
    """Each of the two gradients that are products costs as much as the forward pass."""
    shapes = (2, 3, 4, 5), (2, 4, 5, 6), (3, 4, 2, 2)
    forward = 2 * (2 * 3 * 4 * 5) * (4 * 2 * 2)
    for needs, products in {"xwb": 2, "xw": 2, "x": 1, "wb": 1, "b": 0}.items():
        e = cnnfast.explain("conv2d_backward", *shapes, needs=needs)
        assert e.flops == products * forward, needs


def test_explain_gradient_by_bias_alone() -> None:
    """It takes no product, but dy must be read and db written."""
    e = cnnfast.explain("conv2d_backward", (2, 3, 4, 5), (2, 4, 5, 6), (3, 4, 2, 2), needs="b")
    assert e.bytes >= 4 * (2 * 3 * 4 * 5 + 3)


def test_explain_linear_gradient_by_hand() -> None:
    """dy, x and w are read, dx, dw and db written, the biases as many as the outputs."""
    e = cnnfast.explain("linear_backward", (2, 3, 4), (2, 3, 5), (4, 5))
    assert e.flops == 2 * 2 * (6 * 5 * 4)
    assert e.bytes == 4 * (24 + 2 * (30 + 20) + 4)


def test_explain_groups_and_transposed_by_hand() -> None:
    """Each filter sees two of the four channels; a transposed convolution counts by its input."""
    e = cnnfast.explain("conv1d", (1, 4, 6), (6, 2, 3), groups=2)
    assert e.flops == 2 * (6 * 4) * (2 * 3)
    assert e.bytes == 4 * (24 + 36 + 24)
    e = cnnfast.explain("conv_transpose2d", (1, 2, 3, 4), (2, 5, 2, 2), stride=2)
    assert e.flops == 2 * (2 * 3 * 4) * (5 * 2 * 2)
    assert e.bytes == 4 * (24 + 40 + 5 * 6 * 8)


def test_explain_other_operations_by_hand() -> None:
    pool = cnnfast.explain("max_pool2d", (2, 3, 8, 8), 2)
    assert (pool.flops, pool.bytes) == (2 * 3 * 16 * 4, 4 * (384 + 96))
    product = cnnfast.explain("linear", (10, 7), (5, 7))
    assert (product.flops, product.bytes) == (2 * 10 * 7 * 5, 4 * (70 + 35 + 50))
    elements = cnnfast.explain("relu", (3, 4))
    assert (elements.flops, elements.bytes) == (12, 4 * 24)


def test_explain_counts_large_calls_exactly() -> None:
    """Shapes stand for arrays that no machine here could hold; nothing is computed."""
    shapes = (4096, 512, 224, 224), (512, 512, 3, 3)
    e = cnnfast.explain("conv2d", *shapes, padding=1)
    assert e.flops == 2 * 4096 * 512 * 224 * 224 * 512 * 9
    assert e.bytes == 4 * (2 * 4096 * 512 * 224 * 224 + 512 * 512 * 9)


@needs_compiled
def test_explain_says_why() -> None:
    e = cnnfast.explain("conv2d", X, W, stride=(2, 3))
    assert e.method == "gemm"
    assert "first in order of preference" in e.reason
    assert set(e.rejected) == set(cnnfast.methods("conv2d")) - {"gemm"}
    assert e.rejected["winograd"].startswith("it is for windows of more taps than the stride")
    assert e.rejected["depthwise"] == "it is for one channel per group, not 9"
    for name in set(e.rejected) - set(checks.SOME):
        assert "could serve" in e.rejected[name] and "gemm" in e.rejected[name]
    forced = cnnfast.explain("conv2d", X, W, method="naive")
    assert forced.method == "naive" and "forced by method='naive'" in forced.reason
    with cnnfast.use("portable"):
        assert "forced by cnnfast.use" in cnnfast.explain("conv2d", X, W).reason


def test_explain_prints() -> None:
    e = cnnfast.explain("conv2d", (100, 3, 31, 31), (25, 3, 3, 3), stride=2, padding=1)
    text = str(e)
    for part in ("conv2d (float32, cpu): ", "34.56 MFLOP", "3.544 MiB at least", "not naive: "):
        assert part in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("op", CASES)
def test_explain_agrees_with_what_runs(op: str) -> None:
    for case in CASES[op][:2]:
        for method in (*cnnfast.methods(op), "auto"):
            if checks.unavailable(method) or not checks.serves(case, method):
                continue
            arguments = case.arguments()
            before = {k: v.copy() for k, v in arguments.items() if isinstance(v, np.ndarray)}
            with cnnfast.trace() as ran:
                e = cnnfast.explain(op, **arguments, method=method)
            assert ran == []
            for name, value in before.items():
                checks.assert_same(arguments[name], value, f"{case}: {name} was changed")
            with cnnfast.trace() as ran, np.errstate(all="ignore"):
                getattr(cnnfast, op)(**case.arguments(), method=method)
            assert ran == [dispatch.Ran(op, e.method)]
            assert set(e.rejected) == set(cnnfast.methods(op)) - {e.method}
            assert e.dtype == "float64" and e.workspace >= 0
            plain = e.asdict()
            assert json.loads(json.dumps(plain)) == plain
            assert plain["op"] == op and plain["method"] == e.method


@pytest.mark.parametrize("op", CASES)
def test_explain_takes_shapes_for_arrays(op: str) -> None:
    case = CASES[op][0]
    shapes = {
        name: value.shape if isinstance(value, np.ndarray) and name != "input_shape" else value
        for name, value in case.arguments().items()
    }
    with_shapes = cnnfast.explain(op, **shapes, dtype=np.float64)
    assert with_shapes == cnnfast.explain(op, **case.arguments())
    assert cnnfast.explain(op, **shapes).dtype == "float32"


def test_explain_refuses_as_the_call_does() -> None:
    with pytest.raises(ValueError, match="conv2d: w has 2 input channels, x has 3"):
        cnnfast.explain("conv2d", (1, 3, 5, 5), (4, 2, 3, 3))
    with pytest.raises(ValueError, match="there is no operation 'conv3d'"):
        cnnfast.explain("conv3d", (1, 3, 5, 5), (4, 2, 3, 3))
    with pytest.raises(TypeError, match="argument"):
        cnnfast.explain("conv2d", (1, 3, 5, 5))
    with pytest.raises(TypeError, match="argument"):
        cnnfast.explain("conv2d", (1, 3, 5, 5), (4, 3, 3, 3), strides=2)


def test_call_after_a_question_computes() -> None:
    with pytest.raises(ValueError, match="conv2d"):
        cnnfast.explain("conv2d", X, W[:, :1])
    cnnfast.explain("conv2d", X, W)
    assert isinstance(conv(), np.ndarray)


# Workspace


def _peak(case: Case, method: str, arguments: dict[str, Any]) -> int:
    """Bytes that a call had allocated at most, beside its results."""
    call = getattr(cnnfast, case.op)
    result = checks.as_tuple(call(**arguments, method=method))  # what is made once is made
    gc.collect()
    tracemalloc.start()
    try:
        call(**arguments, method=method)
        return tracemalloc.get_traced_memory()[1] - sum(y.nbytes for y in result if y is not None)
    finally:
        tracemalloc.stop()


def _scratch(case: Case, method: str, arguments: dict[str, Any]) -> int:
    """Bytes that a call took from the engine's own memory, and gave back, beside its results."""
    engine = compiled.engine()
    engine.release()
    result = getattr(cnnfast, case.op)(**arguments, method=method)
    assert result is not None
    return int(engine.memory()["kept"])


_LARGE = [
    Case("conv2d", "large", {"x": (2, 16, 64, 64), "w": (8, 16, 5, 5)}, {"padding": 2}),
    Case("conv2d", "many images", {"x": (32, 4, 32, 32), "w": (8, 4, 3, 3)}, {"padding": 1}),
    Case(
        "conv2d_backward",
        "large",
        {"dy": (8, 16, 32, 32), "x": (8, 16, 32, 32), "w": (16, 16, 3, 3)},
        {"padding": 1},
    ),
    Case(
        "conv2d_backward",
        "one pixel of output each",
        {"dy": (256, 64, 1, 1), "x": (256, 64, 3, 3), "w": (64, 64, 3, 3)},
        {"needs": "w"},
    ),
    Case("conv2d", "one pixel", {"x": (5000, 1, 1, 1), "w": (100, 1, 1, 1)}),
    Case("max_pool2d", "large", {"x": (2, 16, 96, 96)}, {"kernel_size": 5, "stride": 1}),
    Case("avg_pool2d", "large", {"x": (2, 16, 96, 96)}, {"kernel_size": 5, "stride": 1}),
    Case("subsample2d", "large", {"x": (2, 16, 96, 96)}, {"factor": 2}),
    Case(
        "batch_norm",
        "large",
        {"x": (2, 16, 96, 96)},
        {"running_mean": None, "running_var": None, "training": True},
    ),
]


@pytest.mark.parametrize("case", _LARGE, ids=str)
def test_workspace_is_what_explain_says(case: Case) -> None:
    arguments = case.arguments(np.float32)
    for method in cnnfast.methods(case.op):
        if method == "naive" or checks.unavailable(method) or not checks.serves(case, method):
            continue
        if method in checks.ENGINE:
            continue
        said = cnnfast.explain(case.op, **arguments, method=method).workspace
        peak = _peak(case, method, arguments)
        assert peak <= said + 100_000, f"{method}: {peak} bytes, explain says {said}"


def _each_gradient(op: str, name: str, shapes: dict[str, Any], **options: Any) -> Iterator[Case]:
    """The gradient by x and that by w, each by itself."""
    for needs in "xw":
        yield Case(op, f"{name}, by {needs}", shapes, {**options, "needs": needs})


_BIG = [
    *_LARGE,
    Case("conv2d", "wide", {"x": (1, 256, 60, 60), "w": (256, 256, 3, 3)}, {"padding": 1}),
    Case("conv2d", "large kernel", {"x": (2, 64, 40, 40), "w": (32, 64, 11, 11)}, {"padding": 5}),
    Case(
        "conv2d",
        "depthwise",
        {"x": (2, 128, 90, 90), "w": (128, 1, 3, 3)},
        {"padding": 1, "groups": 128},
    ),
    Case("conv2d", "pieces", {"x": (1, 512, 9, 33), "w": (48, 512, 7, 7)}, {"padding": 3}),
    *_each_gradient(
        "conv2d_backward",
        "pieces",
        {"dy": (1, 48, 9, 33), "x": (1, 512, 9, 33), "w": (48, 512, 7, 7)},
        padding=3,
    ),
    *_each_gradient(
        "conv2d_backward",
        "wide",
        {"dy": (1, 256, 40, 40), "x": (1, 256, 40, 40), "w": (256, 256, 3, 3)},
        padding=1,
    ),
    *_each_gradient(
        "conv2d_backward",
        "one tap, stride",
        {"dy": (8, 128, 28, 28), "x": (8, 256, 56, 56), "w": (128, 256, 1, 1)},
        stride=2,
    ),
    Case(
        "conv2d_backward",
        "one tap, stride, more images than are taken at once",
        {"dy": (32, 1024, 7, 7), "x": (32, 512, 14, 14), "w": (1024, 512, 1, 1)},
        {"stride": 2, "needs": "x"},
    ),
    *(
        Case("conv2d", f"one tap, {F} filters", {"x": (2, 1500, 10, 10), "w": (F, 1500, 1, 1)})
        for F in (1000, 3000)
    ),
    Case("linear", "large", {"x": (300, 2000), "w": (500, 2000)}),
    *_each_gradient(
        "linear_backward", "large", {"dy": (300, 500), "x": (300, 2000), "w": (500, 2000)}
    ),
]


@needs_compiled
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", _BIG, ids=str)
def test_the_engine_s_workspace_is_bounded_and_what_explain_says(case: Case, threads: int) -> None:
    arguments = case.arguments(np.float32)
    methods = [m for m in cnnfast.methods(case.op) if m in checks.ENGINE]
    methods = [m for m in methods if checks.serves(case, m)]
    with cnnfast.threads(threads):
        for method in methods:
            said = cnnfast.explain(case.op, **arguments, method=method).workspace
            assert said <= (16 + 8 * threads) << 20, method
            taken = _scratch(case, method, arguments)
            # Of two products each may leave a block that does not suit the other.
            products = len(set(case.options.get("needs", "xwb")) & set("xw"))
            blocks = products if case.op.endswith("backward") else 1
            assert taken <= blocks * said + 100_000, f"{method}: {taken} bytes, explain says {said}"
            if method in checks.ENGINE[:-1]:
                assert _peak(case, method, arguments) <= 100_000, method
    assert methods or case.op == "subsample2d"


@pytest.mark.parametrize("op", ["conv2d", "conv2d_backward", "conv_transpose2d"])
def test_portable_workspace_does_not_grow_with_the_kernel(op: str) -> None:
    """No more than the padded image and a few images of the output, however many the taps."""
    for K in (3, 7, 13):
        shapes = {"x": (2, 8, 40, 40), "w": (8, 8, K, K)}
        forward = Case(op.removesuffix("_backward"), f"kernel {K}", shapes, {"padding": K // 2})
        arguments = forward.arguments(np.float32)
        if op != forward.op:
            arguments["dy"] = np.ones((2, 8, 40, 40), np.float32)
        case = Case(op, f"kernel {K}", shapes)
        padded = 2 * 8 * (40 + K) ** 2 * 4
        assert _peak(case, "portable", arguments) <= 6 * padded
