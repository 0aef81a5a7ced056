"""The kernels for blocked images, which networks in inference use, against `cnnfast.naive`.

They run at every level that can be forced, each in a process of its own, with arrays against pages
that cannot be read or written, as in test_levels.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import checks
import numpy as np
import pytest
from cases import CASES, FLOATS, Case
from test_levels import guarded, needs_red_zones, python

import cnnfast
from cnnfast import compiled, fused
from cnnfast.geometry import Convolution, convolution
from cnnfast.methods.convolution import sizes

pytestmark = pytest.mark.skipif(compiled.engine_missing() is not None, reason="there is no engine")


def geometry(case: Case) -> Convolution:
    given = case.arguments()
    rest = (given.get(k, d) for k, d in (("stride", 1), ("padding", 0), ("dilation", 1)))
    return convolution(
        "conv2d", 2, given["x"].shape, given["w"].shape, *rest, given.get("groups", 1)
    )


def is_for_them(g: Convolution) -> bool:
    """Whether it is a convolution of 1x1, or of single channels under windows that are not wide."""
    plain = g.stride == (1, 1) and not np.any(g.padding) and g.groups == 1
    single = g.groups == g.C == g.F and 7 * g.stride[1] + (g.KW - 1) * g.dilation[1] < 64
    return (g.KH * g.KW == 1 and plain) or single


def served() -> Iterator[Case]:
    return (case for case in CASES["conv2d"] if is_for_them(geometry(case)))


def run_all(level: str) -> None:
    assert compiled.isa() == level
    done = 0
    for case in served():
        for dtype in FLOATS:
            for ceiling in (0.0, 0.75, math.inf):
                for adds in (False, True):
                    print(case, np.dtype(dtype), ceiling, adds, flush=True)
                    check(case, dtype, ceiling, adds)
                    done += 1
    print(f"{done} runs", flush=True)


def check(case: Case, dtype: Any, ceiling: float, adds: bool) -> None:
    engine, double, g = compiled.engine(), dtype is np.float64, geometry(case)
    given = case.arguments(dtype)
    x, w, b = given["x"], given["w"], given["b"]
    plan = engine.Blocked(sizes(g), double, ceiling)
    there, _ = fused.turns(g.x_shape, double)
    to_term, back = fused.turns(g.y_shape, double)
    rng = np.random.default_rng(len(str(case)))
    term = rng.standard_normal(g.y_shape).astype(dtype)
    want, bound = checks.expected(case, dtype)[0], checks.scales(case)[0]
    if adds:
        want, bound = want + term, bound + 2 * np.abs(term)
    if ceiling:
        want = np.clip(want, 0, ceiling)

    def run(after: bool | None) -> Any:
        def at(name: str, a: Any) -> Any:
            return a if after is None else guarded(name, a, after)

        def out(name: str, like: Any) -> Any:
            result = at(name, like)
            return result if after is None else (result.fill(checks.POISON["f"]), result)[1]

        blocked = there((at("x", x),))
        # What fills the last block up does not matter.
        lanes = blocked.transpose(0, 1, 4, 2, 3).reshape(g.N, -1, g.H, g.W)
        assert np.array_equal(lanes[:, : g.C], x, equal_nan=True)
        packed = plan.prepare(at("w", w), at("b", b))
        arrays = [at("blocked", blocked), at("packed", packed)]
        if adds:
            arrays.append(at("term", to_term((term,))))
        y = plan(tuple(arrays))
        if after is not None:
            plan(tuple(arrays), out("y", y))
        return back((at("y", y),), out("plain", np.empty(g.y_shape, dtype)))

    got = run(None)
    checks.assert_close(got, want, bound, dtype, f"{case}, {ceiling}")
    for after in (True, False):
        checks.assert_same(run(after), got, f"{case}, red zones {after}")
    for threads in (1, 2, 5):
        with cnnfast.threads(threads):
            checks.assert_same(run(None), got, f"{case}, {threads} threads")


@needs_red_zones
@pytest.mark.parametrize("level", compiled.isa_levels() if compiled.isa() else [])
def test_level(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNNFAST_ISA", level)
    done = python(f"import test_blocked as t; t.run_all({level!r})")
    last = done.stdout.splitlines()[-1:] or ["nothing had run"]
    assert done.returncode == 0, f"the last case was {last[0]}\n{done.stderr[-2000:]}"
    assert last[0].endswith(" runs") and int(last[0].split()[0]) > 100


def test_only_what_it_computes_is_served() -> None:
    """Of the cases of the table, at most those; few filters would leave lanes empty."""
    engine = compiled.engine()
    for case in CASES["conv2d"]:
        g = geometry(case)
        if engine.blocked_serves(sizes(g), False):
            assert is_for_them(g), case
    wide = convolution("conv2d", 2, (1, 32, 5, 5), (32, 32, 1, 1), 1, 0, 1, 1)
    single = convolution("conv2d", 2, (1, 32, 5, 5), (32, 1, 3, 3), 2, 1, 1, 32)
    for g in (wide, single):
        assert engine.blocked_serves(sizes(g), False) and engine.blocked_serves(sizes(g), True)


@pytest.mark.parametrize("kernel", [(3, 3), (5, 5), (2, 4)])
@pytest.mark.parametrize("stride", [1, 2])
def test_weights_that_are_not_finite_meet_padding(kernel: tuple[int, int], stride: int) -> None:
    """Zero times infinity is NaN, as if the padding were written out."""
    x = np.ones((1, 32, 5, 9), np.float32)
    w = np.ones((32, 1, *kernel), np.float32)
    for f, tap in enumerate(np.ndindex(kernel)):
        w[f % 32, 0][tap] = np.nan if f % 5 == 0 else np.inf
    g = convolution("conv2d", 2, x.shape, w.shape, stride, 2, 1, 32)
    plan = compiled.engine().Blocked(sizes(g), False, 0.0)
    there, back = fused.turns(x.shape, False)[0], fused.turns(g.y_shape, False)[1]
    y = back((plan((there((x,)), plan.prepare(w, None))),))
    with np.errstate(invalid="ignore"):
        want = cnnfast.conv2d(x, w, None, stride=stride, padding=2, groups=32, method="naive")
    assert np.isnan(want).any() and np.isinf(want).any()
    assert np.array_equal(np.isnan(y), np.isnan(want))
    assert np.array_equal(np.isinf(y), np.isinf(want))


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 1, 7), (1, 17, 3, 5), (3, 8, 9, 9)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_there_and_back(shape: tuple[int, ...], dtype: Any, rng: np.random.Generator) -> None:
    x = rng.standard_normal(shape).astype(dtype)
    there, back = fused.turns(shape, dtype is np.float64)
    checks.assert_same(back((there((x,)),)), x, "x")


def test_arrays_that_do_not_fit() -> None:
    g = convolution("conv2d", 2, (1, 8, 5, 5), (8, 8, 1, 1), 1, 0, 1, 1)
    plan = compiled.engine().Blocked(sizes(g), False, 0.0)
    w = np.ones((8, 8, 1, 1), np.float32)
    packed = plan.prepare(w, None)
    with pytest.raises(ValueError, match="bytes"):
        plan((np.ones((1, 1, 5, 4, 8), np.float32), packed))
    with pytest.raises(ValueError, match="bytes"):
        plan.prepare(w[:7], None)
    with pytest.raises(ValueError, match=r"weights .* in C order"):
        plan.prepare(np.asfortranarray(np.ones((8, 8, 1, 1, 2), np.float32))[..., 0], None)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("N", "C", "F", "H", "W", "K", "options"),
    [
        (1, 16, 96, 23, 37, 3, {"stride": 2, "padding": 1}),
        (2, 24, 40, 19, 56, 3, {"padding": 1}),
        (1, 300, 16, 9, 8, 5, {"padding": 2, "stride": (1, 2)}),
        (1, 7, 13, 40, 31, 3, {"dilation": (3, 1), "padding": (5, 0)}),
        (1, 8, 24, 200, 5, (1, 2), {"stride": (3, 1)}),  # rows that nobody sees
        (2, 8, 8, 6, 400, 3, {"padding": (4, 1)}),  # results of padding alone
        (0, 8, 8, 6, 6, 3, {}),
    ],
)
def test_pairs_are_both(
    N: int, C: int, F: int, H: int, W: int, K: Any, options: Any, dtype: Any
) -> None:
    """A 1x1 and single channels behind it in one pass give, bit by bit, what they give in two."""
    rng, double = np.random.default_rng(F), dtype is np.float64
    engine, kernel = compiled.engine(), (K, K) if isinstance(K, int) else K

    def plan(x: Any, w: Any, ceiling: float, **options: Any) -> tuple[Any, Any, Any]:
        rest = (options.get(k, d) for k, d in (("stride", 1), ("padding", 0), ("dilation", 1)))
        g = convolution("conv2d", 2, x, w, *rest, options.get("groups", 1))
        made = engine.Blocked(sizes(g), double, ceiling)
        arrays = (rng.standard_normal(s).astype(dtype) for s in (w, w[:1]))
        return g, made, made.prepare(*arrays)

    g, first, packed = plan((N, C, H, W), (F, C, 1, 1), 0.75)
    _, second, weights = plan(g.y_shape, (F, 1, *kernel), math.inf, groups=F, **options)
    x = fused.turns(g.x_shape, double)[0]((rng.standard_normal(g.x_shape).astype(dtype),))
    want = second((first((x, packed)), weights))
    both = engine.BlockedPair(first, second)
    for threads in (1, 2, 5):
        with cnnfast.threads(threads):
            checks.assert_same(both((x, packed, weights)), want, f"{threads} threads")
    if N:
        for after in (True, False):
            arrays = (guarded(n, a, after) for n, a in (("x", x), ("p", packed), ("w", weights)))
            out = guarded("y", np.full_like(want, checks.POISON["f"]), after)
            checks.assert_same(both(tuple(arrays), out), want, f"red zones {after}")


def test_which_pairs_are_one() -> None:
    engine = compiled.engine()

    def plan(x: Any, w: Any, groups: int) -> Any:
        g = convolution("conv2d", 2, x, w, 1, w[2] // 2, 1, groups)
        return engine.Blocked(sizes(g), False, 0.0)

    for side, one in ((56, True), (14, False)):
        shape = (1, 96, side, side)
        pointwise = plan((1, 16, side, side), (96, 16, 1, 1), 1)
        single = plan(shape, (96, 1, 3, 3), 96)
        found = engine.blocked_pair(pointwise, single)
        assert isinstance(found, engine.BlockedPair) if one else found is None
        for first, second in ((single, pointwise), (single, single), (pointwise, len)):
            assert engine.blocked_pair(first, second) is None


def test_rows_of_plans() -> None:
    """One call, from any thread, is the plans one after the other."""
    engine = compiled.engine()
    n = 3000
    rng = np.random.default_rng(0)
    x, bias = (rng.standard_normal((n,)).astype(np.float32) for _ in range(2))
    tanh, add = (engine.Elementwise(op, (n,), False) for op in ("tanh", "add"))
    # tanh(tanh(x) + x) + tanh(x) + bias, and a result that is used long after it was made
    steps = [(tanh, (0,)), (add, (1, 0)), None, (tanh, (2,)), (add, (4, 1)), (add, (5, bias))]
    row = engine.Row(steps)
    first = tanh((x,))
    want = add((add((tanh((add((first, x)),)), first)), bias))
    before = engine.memory()["used"]
    with ThreadPoolExecutor(4) as pool:
        for y in pool.map(lambda _: row((x,)), range(200)):
            checks.assert_same(y, want, "y")
    assert engine.memory()["used"] == before
    out = np.empty_like(want)
    assert row((x,), out) is out and np.array_equal(out, want)
    assert row((x[::-1],)) is None
    with pytest.raises(ValueError, match="bytes"):
        row((x[1:],))
    other = engine.Elementwise("tanh", (n + 1,), False)
    for wrong in ([(tanh, (0,)), (other, (1,))], [(add, (0, bias[1:]))], [(add, (0, bias[::-1]))]):
        with pytest.raises(ValueError, match=r"bytes|in C order"):
            engine.Row(wrong)
    with pytest.raises(ValueError, match="one result"):
        engine.Row([(engine.SgdUpdate(n, False), (0, bias))])
