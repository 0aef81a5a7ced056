"""Every operation by every method on every case, against `cnnfast.naive` in float64."""

from __future__ import annotations

from typing import Any

import checks
import numpy as np
import pytest
from cases import CASES, FLOATS, Case, find

import cnnfast
from cnnfast import dispatch, functional

# The backward passes, and by which arrays; two whose arguments need more care have own tests.
_GRADIENTS = {
    op: ("x", "w", "b") if op.startswith(("conv", "linear")) else ("x",)
    for op in CASES
    if op.endswith("_backward") and op not in ("batch_norm_backward", "dropout_backward")
}

_SMALL = {
    "conv1d_backward": ["pair", "groups", "dilation", "same, even kernel, dilation", "depthwise"],
    "conv2d_backward": [
        "rectangles",
        "pairs, stride, dilation",
        "groups, stride, dilation",
        "stride over kernel",
        "tiles 2 x 2",
        "tiles in much padding",
        "depthwise, two each",
    ],
    "conv_transpose1d_backward": ["pair", "groups", "stride over kernel", "depthwise"],
    "conv_transpose2d_backward": [
        "output padding",
        "dilation, stride, padding",
        "groups",
        "depthwise",
        "tiles 3 x 4",
    ],
    "max_pool1d_backward": ["overlap", "dilation"],
    "max_pool2d_backward": ["overlap", "pairs, ceil", "dilation, padding, ceil"],
    "avg_pool1d_backward": ["pair", "padding counts not, ceil"],
    "avg_pool2d_backward": ["padding counts, ceil", "padding counts not, ceil", "divisor"],
}


def by_method(*ops: str) -> list[Any]:
    """Parameters for each operation and method; those not installed here are skipped."""
    parameters = []
    for op in ops or CASES:
        for method in cnnfast.methods(op):
            missing = checks.unavailable(method)
            marks = [pytest.mark.skip(reason=missing)] if missing else []
            parameters.append(pytest.param(op, method, id=f"{op}-{method}", marks=marks))
    return parameters


def test_table_covers_every_operation() -> None:
    assert set(CASES) == set(functional.__all__) == set(dispatch.TABLE)
    names = [str(case) for cases in CASES.values() for case in cases]
    assert len(names) == len(set(names))


def test_table_has_every_kind() -> None:
    for op in ("conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d"):
        cases = CASES[op]
        options = [case.options for case in cases]
        shapes = [(case.shapes["x"], case.shapes["w"]) for case in cases]
        assert any(x[0] == 0 for x, _ in shapes)
        assert any(set(x) == {1} for x, _ in shapes)
        assert any(
            w[1] == 1 and given.get("groups") == w[0] > 1
            for (_, w), given in zip(shapes, options, strict=True)
        )
        for option in ("stride", "padding", "dilation", "groups", "b"):
            assert any(option in given for given in options), (op, option)
        assert any(
            isinstance(given.get("padding"), tuple) and isinstance(given["padding"][0], tuple)
            for given in options
        )
        if op.endswith("2d"):
            assert any(x[2] != x[3] and w[2] != w[3] for x, w in shapes)


# The methods that are for some convolutions only, and how many cases they must find at least.
_ENOUGH = {"winograd": 9, "depthwise": 3, "direct": 15}


def test_methods_for_some_calls_have_enough_cases() -> None:
    assert set(_ENOUGH) == set(checks.SOME)
    for op, cases in CASES.items():
        for method in cnnfast.methods(op):
            if not checks.unavailable(method):
                found = len(checks.served(cases, method))
                enough = _ENOUGH.get(method, len(cases))
                assert found >= enough, f"{op}: {found} cases for {method}"


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize(("op", "method"), by_method())
def test_agrees_with_naive(op: str, method: str, dtype: Any) -> None:
    checks.check_all(CASES[op], method, dtype)


@pytest.mark.parametrize(("op", "method"), by_method())
def test_same_bits_in_every_run(op: str, method: str) -> None:
    cases = checks.served(CASES[op], method)
    sizes = {case: sum(map(np.prod, case.shapes.values())) for case in cases}
    for case in sorted(sizes, key=sizes.__getitem__)[-3:]:
        for dtype in FLOATS:
            first = checks.run(case, method, case.arguments(dtype))
            for _ in range(2):
                again = checks.run(case, method, case.arguments(dtype))
                for k, (a, b) in enumerate(zip(first, again, strict=True)):
                    if a is not None:
                        checks.assert_same(a, b, f"{case}, method {method}, result {k}")


def test_poison_shows_what_is_not_written() -> None:
    with checks.poisoned():
        assert np.isnan(np.empty(3)).all()
        assert np.isnan(np.empty_like(np.zeros(3, np.float32))).all()
        assert (np.empty(2, np.int64).view(np.uint8) == 0xA5).all()
    assert np.empty is not None and not np.isnan(np.zeros(3)).any()


def _small(op: str) -> list[Case]:
    if op in _SMALL:
        return [find(op, name) for name in _SMALL[op]]
    smooth = [case for case in CASES[op] if not case.name.endswith(("ties", "wide", "special"))]
    sizes = {case: case.arguments()["cols" if op == "col2im" else "dy"].size for case in smooth}
    return [case for case, size in sizes.items() if 2 <= size <= 60][:3]


def _forward(op: str, case: Case, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The call that a backward case is the gradient of."""
    if case.forward is not None:
        given = case.forward.arguments()
        given.update({name: value for name, value in arguments.items() if name in given})
        return case.forward.op, given
    given = {name: v for name, v in arguments.items() if name not in ("dy", "mask")}
    return op.removesuffix("_backward"), given


@pytest.mark.parametrize(("op", "method"), by_method(*_GRADIENTS, "col2im"))
def test_gradients_are_those_of_the_forward_pass(op: str, method: str) -> None:
    """``sum(dy * forward(x))`` differentiated by central differences."""
    cases = [case for case in _small(op) if checks.serves(case, method)]
    assert cases, "no case for this method"
    for case in cases:
        arguments = case.arguments()
        name, given = _forward(op, case, arguments)
        dy = arguments["cols" if op == "col2im" else "dy"]
        got = checks.as_tuple(getattr(cnnfast, op)(**arguments, method=method))
        for wrt, gradient in zip(_GRADIENTS.get(op, ("x",)), got, strict=True):
            if gradient is None or wrt not in given:
                continue

            def loss(a: np.ndarray, name=name, given=given, wrt=wrt, dy=dy) -> float:
                return float(
                    np.sum(dy * checks.as_tuple(getattr(cnnfast, name)(**{**given, wrt: a}))[0])
                )

            want = checks.numeric_gradient(loss, given[wrt], 1e-5)
            scale = 1 + np.abs(want).max()
            error = np.abs(gradient - want).max() / scale
            assert error <= 1e-8, f"{case}, method {method}, gradient by {wrt}: {error}"


@pytest.mark.parametrize("method", cnnfast.methods("batch_norm_backward"))
@pytest.mark.parametrize("shape", [(5, 3), (3, 2, 4), (2, 3, 2, 3)], ids=str)
def test_gradients_of_batch_norm(
    shape: tuple[int, ...], method: str, rng: np.random.Generator
) -> None:
    if missing := checks.unavailable(method):
        pytest.skip(missing)
    C = shape[1]
    given = {"x": rng.normal(size=shape), "weight": rng.normal(size=C), "bias": rng.normal(size=C)}
    dy = rng.normal(size=shape)

    def forward(**changed: np.ndarray) -> Any:
        arguments = {"running_mean": None, "running_var": None, "training": True, "eps": 1e-3}
        return cnnfast.batch_norm(**arguments, **{**given, **changed}, return_stats=True)

    _, mean, rstd = forward()
    got = cnnfast.batch_norm_backward(dy, given["x"], mean, rstd, given["weight"], method=method)
    for wrt, gradient in zip(given, got, strict=True):
        want = checks.numeric_gradient(
            lambda a, wrt=wrt: float(np.sum(dy * forward(**{wrt: a})[0])), given[wrt], 1e-5
        )
        assert np.abs(gradient - want).max() <= 1e-8 * (1 + np.abs(want).max()), wrt


@pytest.mark.parametrize("method", cnnfast.methods("dropout"))
def test_gradient_of_dropout(method: str, rng: np.random.Generator) -> None:
    x, dy = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))

    def forward(a: np.ndarray) -> Any:
        same = np.random.default_rng(5)
        return cnnfast.dropout(a, 0.3, rng=same, return_mask=True)

    mask = forward(x)[1]
    assert 0 < mask.sum() < mask.size
    want = checks.numeric_gradient(lambda a: float(np.sum(dy * forward(a)[0])), x, 1e-3)
    got = cnnfast.dropout_backward(dy, mask, 0.3, method=method)
    assert np.abs(got - want).max() <= 1e-9


@pytest.mark.parametrize("op", ["cross_entropy", "multi_margin_loss", "mse_loss"])
def test_gradients_of_losses(op: str) -> None:
    for method in cnnfast.methods(op):
        for case in CASES[op]:
            arguments = case.arguments()
            wrt = "pred" if op == "mse_loss" else "scores"
            if arguments[wrt].size > 60:
                continue

            def loss(a: np.ndarray, arguments=arguments, wrt=wrt) -> float:
                return getattr(cnnfast, op)(**{**arguments, wrt: a})[0]

            want = checks.numeric_gradient(loss, arguments[wrt], 1e-6)
            _, got = getattr(cnnfast, op)(**arguments, method=method)
            assert np.abs(got - want).max() <= 1e-8, f"{case}, method {method}"
