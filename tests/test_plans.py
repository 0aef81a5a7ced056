"""Results in the caller's own arrays, and calls that are served as an earlier one was."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import checks
import numpy as np
import pytest
from cases import CASES, FLOATS, Case, find

import cnnfast
from cnnfast import compiled, dispatch

pytestmark = pytest.mark.skipif(
    compiled.engine_missing() is not None, reason=str(compiled.engine_missing())
)

X = np.random.default_rng(0).standard_normal((2, 3, 6, 7)).astype(np.float32)
W = np.random.default_rng(1).standard_normal((4, 3, 3, 3)).astype(np.float32)
DY = np.random.default_rng(2).standard_normal((2, 4, 4, 5)).astype(np.float32)
ROWS = np.random.default_rng(3).standard_normal((5, 4)).astype(np.float32)

# For each operation that has plans, a case that is served by one on its second call.
PLANNED = {
    "conv1d": "groups",
    "conv2d": "groups, stride, dilation",
    "conv_transpose1d": "groups",
    "conv_transpose2d": "output padding",
    "max_pool1d": "overlap",
    "max_pool2d": "overlap",
    "avg_pool1d": "overlap",
    "avg_pool2d": "padding counts not, ceil",
    "batch_norm": "images, training",
    "linear": "three axes",
    "relu": "image",
    "leaky_relu": "image",
    "sigmoid": "image",
    "tanh": "image",
    "softmax": "rows",
    "log_softmax": "rows",
}
GRADIENTS = {f"{op}_backward": name.removesuffix(", training") for op, name in PLANNED.items()}
PLANNED_CASES = [find(op, name) for op, name in (PLANNED | GRADIENTS).items()]


class Served:
    """Whether calls are served by memory (True) or went through all checks (False)."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.answers: list[bool] = []
        again = dispatch.again

        def watched(*arguments: Any) -> Any:
            result = again(*arguments)
            self.answers.append(result is not None)
            return result

        patch.setattr(dispatch, "again", watched)

    def last(self) -> bool:
        return self.answers[-1]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Served:
    dispatch.forget()
    return Served(monkeypatch)


def call(case: Case, dtype: Any = np.float32, **options: Any) -> checks.Arrays:
    arguments = case.arguments(dtype)
    result = getattr(cnnfast, case.op)(**arguments, **options)
    return checks.as_tuple(result) + checks.updated(case.op, arguments)


def assert_equal(got: checks.Arrays, want: checks.Arrays, what: str) -> None:
    for a, b in zip(got, want, strict=True):
        assert (a is None) == (b is None), what
        if a is not None:
            checks.assert_same(a, b, what)


# The second call


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("case", PLANNED_CASES, ids=str)
def test_a_second_call_is_served_by_memory(case: Case, dtype: Any, served: Served) -> None:
    first = call(case, dtype)
    assert served.answers == [False]
    second = call(case, dtype)
    assert served.answers == [False, True]
    assert_equal(second, first, str(case))
    for y in second:
        if y is not None:
            assert not any(np.shares_memory(y, z) for z in first if z is not None)


@pytest.mark.parametrize("case", PLANNED_CASES, ids=str)
def test_another_dtype_or_shape_or_method_is_another_call(case: Case, served: Served) -> None:
    call(case, np.float32)
    call(case, np.float64)
    call(case, np.float32, method="naive")
    with cnnfast.use("portable"):
        call(case, np.float32)
    with cnnfast.trace() as ran:
        call(case, np.float32)
    assert len(ran) == 1
    longer = case.arguments(np.float32)
    for name in ("x", "y", "dy", "indices"):
        if name in longer:
            longer[name] = np.concatenate([longer[name]] * 2)
    if "input_shape" in longer:
        longer["input_shape"] = (2 * longer["input_shape"][0], *longer["input_shape"][1:])
    getattr(cnnfast, case.op)(**longer)
    assert not any(served.answers)
    call(case, np.float32)
    assert served.last()


@pytest.mark.parametrize("case", PLANNED_CASES, ids=str)
def test_a_second_call_of_another_layout(case: Case, served: Served) -> None:
    """What is not in C order, or not aligned, is not for a plan, and gives the same results."""
    want = call(case)
    scales = checks.scales(case, "winograd" if "winograd" in _auto(case) else "")
    arguments = case.arguments(np.float32)
    for layout in (np.asfortranarray, _strided, _swapped):
        given = {
            name: layout(a) if isinstance(a, np.ndarray) and a.ndim > 1 else a
            for name, a in arguments.items()
        }
        given = {k: np.copy(v) if k.startswith("running") else v for k, v in given.items()}
        got = checks.as_tuple(getattr(cnnfast, case.op)(**given))
        assert not served.last()
        for y, wanted, scale in zip(got, want, scales, strict=False):
            if y is not None:
                checks.assert_close(y, wanted.astype(float), scale + 0 * wanted, np.float32, "y")


def _auto(case: Case) -> str:
    return cnnfast.explain(case.op, **case.arguments(np.float32)).method


def _strided(a: np.ndarray) -> np.ndarray:
    return np.repeat(a, 2, axis=-1)[..., ::2]


def _swapped(a: np.ndarray) -> np.ndarray:
    return a.astype(a.dtype.newbyteorder())


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 1.0},
        {"stride": True},
        {"stride": (1, 1.0)},
        {"dilation": True},
        {"groups": True},
        {"groups": 1.0},
        {"padding": 0.0},
        {"padding": False},
        {"padding": ((0, 0), (0, False))},
        {"method": None},
        {"method": 1},
    ],
    ids=str,
)
def test_a_second_call_has_the_same_errors(options: dict[str, Any], served: Served) -> None:
    """Arguments that are equal to those of a call before, but not of their type."""
    usual = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    pairs = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "groups": 1}
    with pytest.raises(TypeError) as first:
        cnnfast.conv2d(X, W, **options)
    for given in (usual, pairs):
        cnnfast.conv2d(X, W, **given)
        cnnfast.conv2d(X, W, **given)
        assert served.last()
    with pytest.raises(TypeError) as second:
        cnnfast.conv2d(X, W, **options)
    assert str(second.value) == str(first.value)


@pytest.mark.parametrize(
    ("function", "usual", "wrong"),
    [
        (cnnfast.max_pool2d, {"kernel_size": 2, "ceil_mode": False}, {"kernel_size": 2.0}),
        (cnnfast.max_pool2d, {"kernel_size": 2}, {"kernel_size": 2, "return_indices": "no"}),
        (cnnfast.avg_pool2d, {"kernel_size": 1}, {"kernel_size": True}),
        (cnnfast.avg_pool2d, {"kernel_size": 1}, {"kernel_size": 1, "divisor_override": True}),
    ],
)
def test_a_second_pooling_has_the_same_errors(
    function: Callable[..., Any], usual: dict[str, Any], wrong: dict[str, Any], served: Served
) -> None:
    for _ in range(2):
        function(X, **usual)
    assert served.last()
    with pytest.raises(TypeError, match=rf"^{function.__name__}: "):
        function(X, **wrong)


def test_a_second_call_with_arrays_that_do_not_fit(served: Served) -> None:
    for _ in range(2):
        cnnfast.conv2d(X, W, W[:, 0, 0, 0].copy())
    assert served.last()
    for x, w, b, error in (
        (X, W[:, :2], None, ValueError),
        (X, W, W[:2, 0, 0, 0], ValueError),
        (X[0], W, None, ValueError),
        (X.astype(complex), W, None, TypeError),
        (np.ma.masked_array(X, X > 0), W, None, TypeError),
        (None, W, None, TypeError),
    ):
        with pytest.raises(error, match=r"^conv2d: "):
            cnnfast.conv2d(x, w, b)


def test_a_second_call_of_other_kinds_of_arrays(served: Served) -> None:
    """Lists, subclasses and NumPy's own numbers go through all checks."""
    want = cnnfast.conv2d(X, W)

    class Mine(np.ndarray):
        pass

    for x in (X.view(Mine), X.astype(np.float32).view(np.recarray)):
        checks.assert_same(cnnfast.conv2d(x, W), want, type(x).__name__)
        assert not served.last()
    assert cnnfast.conv2d(X.tolist(), W).dtype == np.float64
    assert cnnfast.conv2d(X, W.astype(float)).dtype == np.float64
    checks.assert_same(cnnfast.conv2d(X, W, stride=np.int64(1)), want, "a NumPy integer")
    assert not any(served.answers)


def test_a_change_of_what_decides_is_noticed(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ran() -> tuple[np.ndarray, bool]:
        return cnnfast.conv2d(X, W, padding=1), served.last()

    by_gemm = cnnfast.conv2d(X, W, padding=1, method="gemm")
    by_naive = cnnfast.conv2d(X, W, padding=1, method="naive")
    assert by_gemm.tobytes() != by_naive.tobytes()
    for _ in range(2):
        ran()
    assert ran()[1]
    with cnnfast.use("naive"):
        for _ in range(2):
            y, again = ran()
            assert not again
            checks.assert_same(y, by_naive, "inside of use")
    assert ran()[1]
    monkeypatch.setenv("CNNFAST_METHOD", "naive")
    dispatch.forget()
    for _ in range(2):
        checks.assert_same(ran()[0], by_naive, "by the environment")
    monkeypatch.delenv("CNNFAST_METHOD")
    dispatch.forget()
    assert not ran()[1]


def test_set_winograd_is_noticed(served: Served) -> None:
    def call() -> np.ndarray:
        return cnnfast.conv2d(x, w, padding=1)

    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(s).astype(np.float32) for s in ((2, 32, 16, 16), (32, 32, 3, 3)))
    ways = {m: cnnfast.conv2d(x, w, padding=1, method=m) for m in ("winograd", "gemm")}
    assert ways["winograd"].tobytes() != ways["gemm"].tobytes()
    try:
        for allowed, method in ((True, "winograd"), (False, "gemm"), (True, "winograd")):
            cnnfast.set_winograd(allowed)
            checks.assert_same(call(), ways[method], "first")
            checks.assert_same(call(), ways[method], "second")
            assert served.last()
    finally:
        cnnfast.set_winograd(True)


def test_a_change_of_threads_is_noticed(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in (1, 2, 1):
        with cnnfast.threads(n):
            first = cnnfast.conv2d(X, W)
            checks.assert_same(cnnfast.conv2d(X, W), first, f"{n} threads")
            assert served.last()


def test_more_shapes_than_are_remembered(served: Served) -> None:
    x = np.zeros(5000, np.float32)
    for n in range(1, 4200):
        cnnfast.relu(x[:n])
    assert not any(served.answers)
    cnnfast.relu(x[:4199])
    assert served.last()
    cnnfast.relu(x[:1])  # which was remembered, and forgotten with the first 4096
    assert not served.last()


def test_indices_that_point_nowhere_are_refused_again_and_again() -> None:
    y, indices = cnnfast.max_pool2d(X, 2, return_indices=True)
    for wrong in (42, -2):
        for bad in (indices, indices.copy()):
            cnnfast.max_pool2d_backward(y, indices, X.shape)
            bad = bad.copy()
            bad[0, 0, 0, 0] = wrong
            with pytest.raises(ValueError, match=r"^max_pool2d_backward: "):
                cnnfast.max_pool2d_backward(y, bad, X.shape)


def test_running_statistics_that_cannot_be_written_to(served: Served) -> None:
    mean, var = np.zeros(3, np.float32), np.ones(3, np.float32)
    for _ in range(2):
        cnnfast.batch_norm(X, mean, var, training=True)
    assert served.last()
    before = mean.copy(), var.copy()
    var.flags.writeable = False
    with pytest.raises(ValueError, match="running_var is updated in place and must be writeable"):
        cnnfast.batch_norm(X, mean, var, training=True)
    checks.assert_same(mean, before[0], "running_mean")
    cnnfast.batch_norm(X, mean, var)  # which does not write


# out=

WITH_OUT = [op for op in CASES if "out" in inspect.signature(getattr(cnnfast, op)).parameters]


def test_nearly_everything_takes_out() -> None:
    without = set(CASES) - set(WITH_OUT)
    assert len(WITH_OUT) >= 30
    assert {"conv2d", "conv1d_backward", "max_pool2d", "relu", "linear"} <= set(WITH_OUT)
    for op in without:
        case = CASES[op][0]
        with pytest.raises(TypeError, match="out"):
            call(case, out=None)


def _places(results: checks.Arrays) -> list[Any]:
    return [None if y is None else np.full_like(y, 77) for y in results]


def _first(case: Case) -> checks.Arrays:
    return checks.as_tuple(getattr(cnnfast, case.op)(**case.arguments(np.float32)))


@pytest.fixture(params=WITH_OUT)
def with_out(request: pytest.FixtureRequest) -> Iterator[Case]:
    """A case of each operation, on its first call and (where there are plans) on its second."""
    op = request.param
    known = PLANNED | GRADIENTS
    dispatch.forget()
    yield find(op, known[op]) if op in known else CASES[op][0]


@pytest.mark.parametrize("when", ["first", "second"])
def test_out_that_does_not_fit(with_out: Case, when: str) -> None:
    results = _first(with_out)
    if when == "first":
        dispatch.forget()
    k = next(i for i, y in enumerate(results) if y is not None)
    y = results[k]
    read_only = np.empty_like(y)
    read_only.flags.writeable = False
    wrong: dict[Any, type[Exception]] = {
        "an array with an axis more": (np.empty((1, *y.shape), y.dtype), ValueError),
        "float16": (np.empty(y.shape, np.float16), ValueError),
        "the other byte order": (np.empty(y.shape, y.dtype.newbyteorder()), ValueError),
        "read-only": (read_only, ValueError),
        "a list": (y.tolist(), TypeError),
        "a number": (1.5, TypeError),
        "text": ("y", TypeError),
    }
    for name, (place, error) in wrong.items():
        out = place
        if len(results) > 1:
            out = tuple(place if i == k else None for i in range(len(results)))
        arguments = with_out.arguments(np.float32)
        before = {n: np.copy(a) for n, a in arguments.items() if isinstance(a, np.ndarray)}
        with pytest.raises(error, match=rf"^{with_out.op}: out must "):
            getattr(cnnfast, with_out.op)(**arguments, out=out)
        for n, a in before.items():
            checks.assert_same(arguments[n], a, f"{with_out}, out is {name}: {n} was changed")


@pytest.mark.parametrize("when", ["first", "second"])
def test_out_of_several_results_is_a_tuple(with_out: Case, when: str) -> None:
    results = _first(with_out)
    if when == "first":
        dispatch.forget()
    n = len(results)
    if n == 1:
        place = np.empty_like(results[0])
        for out in ((place,), [place]):
            with pytest.raises(TypeError, match=rf"^{with_out.op}: out must be a NumPy array"):
                call(with_out, out=out)
        return
    for out in (
        results[0],
        list(_places(results)),
        (None,) * (n - 1),
        (None,) * (n + 1),
        (),
        "x" * n,
        7,
    ):
        with pytest.raises(TypeError, match=rf"^{with_out.op}: out must be a tuple of {n} "):
            call(with_out, out=out)


def test_none_in_a_tuple_is_a_new_array(with_out: Case) -> None:
    results = _first(with_out)
    places = _places(results)
    for k in range(len(results)):
        if len(results) == 1 or results[k] is None:
            continue
        out = tuple(p if i == k else None for i, p in enumerate(places))
        for _ in range(2):
            got = call(with_out, out=out)[: len(results)]
            assert got[k] is places[k]
            assert_equal(got, results, str(with_out))
    got = call(with_out, out=None)[: len(results)]
    assert_equal(got, results, str(with_out))


def test_out_of_a_gradient_that_is_not_wanted_stays(served: Served) -> None:
    place = np.full_like(W, 77)
    for _ in range(2):
        dx, dw, db = cnnfast.conv2d_backward(DY, X, W, needs="xb", out=(None, place, None))
        assert dw is None and dx is not None and db is not None
        assert (place == 77).all()


@pytest.mark.parametrize("layout", ["F", "strided", "reversed", "unaligned"])
def test_out_of_any_layout(layout: str, with_out: Case) -> None:
    results = _first(with_out)
    places = _places(results)
    for k, y in enumerate(results):
        if y is None:
            continue
        if layout == "F":
            places[k] = np.full_like(y, 77, order="F")
        elif layout == "strided":
            places[k] = np.full((*y.shape, 2), 77, y.dtype)[..., 0]
        elif layout == "reversed":
            places[k] = np.full_like(y, 77)[tuple(slice(None, None, -1) for _ in y.shape)]
        else:
            raw = np.zeros(y.nbytes + 1, np.uint8)[1:]
            places[k] = raw.view(y.dtype).reshape(y.shape)
    out = tuple(places) if len(places) > 1 else places[0]
    for _ in range(2):
        got = call(with_out, out=out)[: len(results)]
        for y, place, want in zip(got, places, results, strict=True):
            assert y is place
            assert y is None or np.array_equal(y, want, equal_nan=True), str(with_out)


def _overlapping() -> list[Any]:
    """Calls with an `out` that shares memory with an argument, which is then gone, but not wrong.

    Each makes its own arrays, and says what it does without `out` on copies of them.
    """
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    found: dict[str, Callable[[bool], tuple[Any, Any]]] = {}

    def add(name: str, make: Callable[[], Any], function: Any, places: Any) -> None:
        def both() -> tuple[Any, Any]:
            arrays = make()
            want = function(*(a.copy() for a in arrays))
            return function(*arrays, out=places(*arrays)), want

        found[name] = both

    add("relu into x", lambda: (normal(4, 5),), cnnfast.relu, lambda x: x)
    add("softmax into x", lambda: (normal(4, 5),), cnnfast.softmax, lambda x: x)
    add(
        "relu_backward into dy",
        lambda: (normal(4, 5), normal(4, 5)),
        cnnfast.relu_backward,
        lambda dy, x: dy,
    )
    add(
        "softmax_backward into y",
        lambda: (normal(4, 5), normal(4, 5)),
        cnnfast.softmax_backward,
        lambda dy, y: y,
    )
    add(
        "conv2d into x",
        lambda: (normal(2, 3, 5, 6), normal(3, 3, 3, 3)),
        lambda x, w, **out: cnnfast.conv2d(x, w, padding=1, **out),
        lambda x, w: x,
    )
    for k, letter in enumerate("xwb"):

        def into(k: int, place: np.ndarray) -> Any:
            return tuple(place if i == k else None for i in range(3))

        add(
            f"conv2d_backward, d{letter} over its array",
            lambda: (normal(2, 4, 3, 4), normal(2, 3, 5, 6), normal(4, 3, 3, 3)),
            cnnfast.conv2d_backward,
            lambda dy, x, w, k=k: into(k, (x, w, dy[0, 0, 0, :4])[k]),
        )
        add(
            f"linear_backward, d{letter} over its array",
            lambda: (normal(6, 4), normal(6, 5), normal(4, 5)),
            cnnfast.linear_backward,
            lambda dy, x, w, k=k: into(k, (x, w, dy[0])[k]),
        )
    add(
        "conv_transpose2d_backward, dx over x",
        lambda: (normal(2, 3, 5, 6), normal(2, 4, 3, 4), normal(4, 3, 3, 3)),
        cnnfast.conv_transpose2d_backward,
        lambda dy, x, w: (x, None, None),
    )
    add(
        "batch_norm_backward, dx over x",
        lambda: (normal(6, 4), normal(6, 4), normal(4), np.abs(normal(4))),
        cnnfast.batch_norm_backward,
        lambda dy, x, mean, rstd: (x, None, None),
    )
    add(
        "linear into x",
        lambda: (normal(6, 5), normal(5, 5)),
        cnnfast.linear,
        lambda x, w: x,
    )
    add("max_pool2d into x", lambda: (normal(2, 3, 4, 4),), _same_pool, lambda x: x)
    return [pytest.param(both, id=name) for name, both in found.items()]


def _same_pool(x: np.ndarray, **out: Any) -> Any:
    return cnnfast.max_pool2d(x, 3, 1, 1, **out)


@pytest.mark.parametrize("both", _overlapping())
def test_out_may_overlap_an_argument(both: Callable[[], tuple[Any, Any]]) -> None:
    dispatch.forget()
    for when in ("first", "second", "third"):
        got, want = both()
        for k, (a, b) in enumerate(zip(checks.as_tuple(got), checks.as_tuple(want), strict=True)):
            if b is not None:
                close = np.allclose(a, b, rtol=1e-4, atol=1e-5)
                assert close, f"{when} call, result {k}: {np.abs(a - b).max()} off"


def test_results_that_share_an_array() -> None:
    """The last of them stays, in every call."""
    mean, var = np.zeros(3, np.float32), np.ones(3, np.float32)
    want = cnnfast.batch_norm(X, mean.copy(), var.copy(), training=True, return_stats=True)
    place = np.empty(3, np.float32)
    for _ in range(2):
        y, a, b = cnnfast.batch_norm(
            X, mean.copy(), var.copy(), training=True, return_stats=True, out=(None, place, place)
        )
        assert a is place and b is place
        checks.assert_same(place, want[2], "rstd")
        checks.assert_same(y, want[0], "y")


@pytest.mark.parametrize("op", ["conv2d", "relu", "max_pool2d"])
def test_out_is_numpy_s_alone(op: str) -> None:
    torch = pytest.importorskip("torch")
    arguments = {
        "conv2d": (torch.asarray(X), torch.asarray(W)),
        "relu": (torch.asarray(X),),
        "max_pool2d": (torch.asarray(X), 2),
    }[op]
    y = getattr(cnnfast, op)(*arguments)
    with pytest.raises(TypeError, match=rf"^{op}: out "):
        getattr(cnnfast, op)(*arguments, out=torch.empty_like(y))
    with pytest.raises(TypeError, match=rf"^{op}: out is for NumPy arrays"):
        getattr(cnnfast, op)(*arguments, out=np.empty(tuple(y.shape), np.float32))
    with pytest.raises(TypeError, match=rf"^{op}: out must be a NumPy array, not Tensor"):
        getattr(cnnfast, op)(*(np.asarray(a) for a in arguments), out=torch.empty_like(y))


def test_out_of_a_half_precision_call() -> None:
    x = X.astype(np.float16)
    out = np.empty_like(x)
    assert cnnfast.relu(x, out=out) is out
    checks.assert_same(out, cnnfast.relu(x), "float16")
    with pytest.raises(ValueError, match=r"relu: out must have shape .* and dtype float16"):
        cnnfast.relu(x, out=np.empty(x.shape, np.float32))


def test_explain_says_the_same_with_out() -> None:
    e = cnnfast.explain("conv2d", X, W, out=np.empty((2, 4, 4, 5), np.float32))
    assert e == cnnfast.explain("conv2d", X, W)


# The compiled memory itself


class TestMemory:
    def plans(self) -> Any:
        self.state = self.plain = object()
        return compiled.plans(lambda: self.state, self.plain)

    def test_remembers_by_shapes_dtypes_and_parameters(self) -> None:
        plans = self.plans()
        plans.remember("relu", "auto", (ROWS,), (1, None), lambda arrays, out: (arrays, out))
        given = np.zeros((5, 4), np.float32)
        (array,), out = plans.again("relu", "auto", (given,), (1, None), given)
        assert array is given and out is given
        for other in (
            ("tanh", "auto", (given,), (1, None)),
            ("relu", "gemm", (given,), (1, None)),
            ("relu", "auto", (given.astype(float),), (1, None)),
            ("relu", "auto", (given[:4],), (1, None)),
            ("relu", "auto", (given.astype(np.int32),), (1, None)),
            ("relu", "auto", (None,), (1, None)),
            ("relu", "auto", (given, None), (1, None)),
            ("relu", "auto", ([1.0],), (1, None)),
            ("relu", "auto", (given,), (True, None)),
            ("relu", "auto", (given,), (1.0, None)),
            ("relu", "auto", (given,), (np.int64(1), None)),
            ("relu", "auto", (given,), (1, "None ")),
            ("relu", "auto", (given,), (1,)),
            ("relu", "auto", (given,), ((1,), None)),
            ("relu", "auto", (given,), ([1], None)),
        ):
            assert plans.again(*other) is None, other

    def test_only_where_nothing_surrounds_a_call(self) -> None:
        plans = self.plans()
        plans.remember("relu", "auto", (ROWS,), (), lambda arrays, out: 5)
        assert plans.again("relu", "auto", (ROWS,), ()) == 5
        self.state = object()
        assert plans.again("relu", "auto", (ROWS,), ()) is None
        plans.remember("tanh", "auto", (ROWS,), (), lambda arrays, out: 6)
        self.state = self.plain
        assert plans.again("tanh", "auto", (ROWS,), ()) is None

    def test_forgets(self) -> None:
        plans = self.plans()
        plans.remember("relu", "auto", (ROWS,), (), lambda arrays, out: 5)
        plans.forget()
        assert plans.again("relu", "auto", (ROWS,), ()) is None

    def test_a_plan_that_cannot_serve_and_one_that_fails(self) -> None:
        plans = self.plans()

        def fails(arrays: Any, out: Any) -> Any:
            raise MemoryError("no memory")

        plans.remember("relu", "auto", (ROWS,), (), lambda arrays, out: None)
        assert plans.again("relu", "auto", (ROWS,), ()) is None
        plans.remember("relu", "auto", (ROWS,), (), fails)
        with pytest.raises(MemoryError, match="no memory"):
            plans.again("relu", "auto", (ROWS,), ())


def test_everything_works_without_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_PLANS", None)
    case = PLANNED_CASES[1]
    assert_equal(call(case), call(case), str(case))
    dispatch.forget()
    with pytest.raises(TypeError, match=r"^conv2d: "):
        cnnfast.conv2d(X, W, stride=1.0)


def test_parameters_that_look_alike_are_told_apart() -> None:
    for _ in range(2):
        cnnfast.max_pool2d(X, 2, ceil_mode=True)
        cnnfast.max_pool2d(X, 2, return_indices=True)
    with pytest.raises((TypeError, ValueError)):
        cnnfast.max_pool2d(X, 2, ceil_mode="True")
    with pytest.raises((TypeError, ValueError)):
        cnnfast.max_pool2d(X, 2, return_indices="True")
    x = np.array([-1.0, 1.0])
    for slope in (0.0, -0.0, 0.0, -0.0):
        assert np.signbit(cnnfast.leaky_relu(x, slope)[0]) == (slope.hex()[0] != "-")
