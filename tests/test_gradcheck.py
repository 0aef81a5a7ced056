"""Finite differences: values worked out by hand, wrong gradients that must show, kinks."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import numpy as np
import pytest

from cnnfast import functional as F
from cnnfast import nn
from cnnfast.gradcheck import Report, check, numeric_gradient, rel_error


def square(x: Any) -> Any:
    return x**2


# rel_error


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 3.0], [1.0, 1.0], 0.5),
        ([2.0], [-2.0], 1.0),
        ([0.0], [1e-9], 0.1),  # 1e-9 over the floor of 1e-8
        ([[1e10]], [[1.1e10]], 0.1 / 2.1),
        ([], [], 0.0),
        (3.0, 1.0, 0.5),
        (np.ones(1, np.float32), [1], 0.0),
    ],
)
def test_rel_error(a: Any, b: Any, expected: float) -> None:
    assert rel_error(a, b) == pytest.approx(expected, rel=1e-12)


def test_rel_error_overall_and_floor() -> None:
    """4 of 24 where each element's own error is 1/2, 1/7 and 0; and a floor above all of them."""
    a, b = [1.0, 10.0, 0.0], [3.0, 14.0, 0.0]
    assert rel_error(a, b) == 0.5
    assert rel_error(a, b, overall=True) == pytest.approx(4 / 24, rel=1e-15)
    assert rel_error(a, b, overall=True, floor=40.0) == 0.1
    assert rel_error(a, b, floor=40.0) == 0.1
    assert rel_error([], [], overall=True) == 0.0
    assert math.isnan(rel_error([1.0, math.nan], [1.0, 2.0], overall=True))


def test_rel_error_does_not_hide_nan_or_shape() -> None:
    assert math.isnan(rel_error([1.0, math.nan], [1.0, 2.0]))
    assert math.isnan(rel_error([math.nan], [math.nan]))
    assert not rel_error([math.inf], [1.0]) <= 1
    with pytest.raises(ValueError, match=r"a has shape \(2, 1\), b has shape \(2,\)"):
        rel_error(np.zeros((2, 1)), np.zeros(2))


# numeric_gradient


def test_numeric_gradient_of_polynomials() -> None:
    x = np.array([[1.0, -2.0], [0.5, 3.0]])
    df = np.array([[1.0, 2.0], [-1.0, 0.5]])
    assert np.allclose(numeric_gradient(square, x, df), 2 * x * df, rtol=1e-9)
    assert np.allclose(numeric_gradient(lambda x: (x**3).sum(), x), 3 * x**2, rtol=1e-8)
    assert numeric_gradient(square, np.array(3.0), 2.0) == pytest.approx(12)


def test_numeric_gradient_sees_changes_through_any_layout() -> None:
    base = np.arange(24.0).reshape(4, 6)
    for x in (base[::2, ::-1], base.T, np.asfortranarray(base)):
        kept = x.copy()
        # Looks at x itself and not at the argument, as `lambda w: layer(x)` does.
        found = numeric_gradient(partial(lambda x, _: float(np.sum(x**2)), x), x)
        assert np.allclose(found, 2 * kept)
        assert np.array_equal(x, kept)


def test_numeric_gradient_may_return_its_argument() -> None:
    assert np.allclose(numeric_gradient(lambda x: x, np.ones(3), np.arange(3.0)), [0, 1, 2])


def test_numeric_gradient_puts_x_back_after_an_error() -> None:
    x = np.array([1.0, 2.0])
    with pytest.raises(ZeroDivisionError):
        numeric_gradient(lambda x: 1 / 0, x, 1.0)
    assert x.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("error", "words", "x", "df"),
    [
        (TypeError, "float64 array, not float32", np.ones(2, np.float32), np.ones(2)),
        (TypeError, "float64 array, not int64", np.ones(2, np.int64), np.ones(2)),
        (TypeError, "float64 array, not list", [1.0, 2.0], np.ones(2)),
        (ValueError, r"f returns shape \(2,\), df has shape \(1,\)", np.ones(2), np.ones(1)),
        (ValueError, r"f returns shape \(2,\), df has shape \(\)", np.ones(2), 1.0),
        (ValueError, "read-only", np.broadcast_to(1.0, 2), np.ones(2)),
        (ValueError, "h=1e-05 is too small for x: next to 1000000000000", np.full(2, 1e12), [1, 1]),
    ],
)
def test_numeric_gradient_mistakes(error: type[Exception], words: str, x: Any, df: Any) -> None:
    with pytest.raises(error, match=words):
        numeric_gradient(square, x, df)


@pytest.mark.parametrize(
    ("error", "words", "h"),
    [
        (ValueError, "h must be positive, not 0", 0),
        (ValueError, "h must be positive, not -0.1", -0.1),
        (ValueError, "h must be positive, not nan", math.nan),
        (ValueError, "h must be finite", math.inf),
        (TypeError, "h must be a number, not '1'", "1"),
        (ValueError, "h=1e-17 is too small for x: next to 1.0", 1e-17),
    ],
)
def test_a_step_that_is_none(error: type[Exception], words: str, h: Any) -> None:
    x = np.array([0.0, 1.0])
    with pytest.raises(error, match=f"numeric_gradient: {words}"):
        numeric_gradient(square, x, np.ones(2), h)
    with pytest.raises(error, match=f"check: {words}"):
        check(square, x, backward=lambda dy, x: 2 * dy * x, h=h)


# check


class Scaled(nn.Layer):
    """A layer whose gradients are off by chosen factors."""

    def __init__(self, x: float = 1.0, weight: float = 1.0, *, dtype: Any = np.float64) -> None:
        super().__init__()
        self.factors = x, weight
        self.add_param("weight", np.array([2.0, -1.0, 0.5], dtype))
        self.add_buffer("calls", np.zeros((), np.int64))

    def forward(self, x: Any) -> Any:
        self.calls += 1
        self._saved = x
        return x * self.weight

    def backward(self, dy: Any) -> Any:
        self._set_grads(weight=self.factors[1] * (dy * self._saved).sum(0))
        return self.factors[0] * dy * self.weight


def test_check_passes_what_is_right() -> None:
    report = check(Scaled(), np.random.default_rng(0).normal(size=(4, 3)))
    assert report.ok
    assert report
    assert list(report.errors) == ["x", "weight"]
    assert report.kinks == {"x": 0, "weight": 0}
    assert report.sizes == {"x": 12, "weight": 3}


@pytest.mark.parametrize(("name", "factors"), [("x", (1.00001, 1)), ("weight", (1, 0.99999))])
def test_check_names_what_is_wrong(name: str, factors: tuple[float, float]) -> None:
    report = check(Scaled(*factors), np.random.default_rng(0).normal(size=(4, 3)))
    assert not report.ok
    assert not report
    assert {k for k, error in report.errors.items() if not error <= report.tolerance} == {name}
    assert report.errors[name] == pytest.approx(5e-6, rel=0.1)
    assert check(Scaled(*factors), np.ones((4, 3)), tolerance=1e-4).ok


def test_a_nan_is_wrong() -> None:
    for factors in ((math.nan, 1), (1, math.nan)):
        report = check(Scaled(*factors), np.ones((2, 3)))
        assert not report.ok
        assert any(math.isnan(error) for error in report.errors.values())
    assert not check(Scaled(math.inf), np.ones((2, 3))).ok


@pytest.mark.parametrize("entry", range(6))
def test_one_wrong_element_is_enough(entry: int) -> None:
    def backward(dy: Any, x: Any) -> Any:
        dx = 2 * dy * x
        dx.flat[entry] += 1e-3
        return dx

    x = np.random.default_rng(1).normal(size=(2, 3))
    assert check(square, x, backward=lambda dy, x: 2 * dy * x)
    assert not check(square, x, backward=backward)


def test_check_of_functions() -> None:
    rng = np.random.default_rng(0)
    x, w, b = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(2, 3, 3, 2)), rng.normal(size=2)

    def backward(dy: Any, x: Any, w: Any, b: Any) -> Any:
        return F.conv2d_backward(dy, x, w)

    report = check(F.conv2d, x, w, b, backward=backward)
    assert report.ok
    assert list(report.errors) == ["x", "w", "b"]
    assert report.target == "conv2d"
    partial = check(F.conv2d, x, w, b, backward=lambda *a: (None, *backward(*a)[1:]))
    assert list(partial.errors) == ["w", "b"]
    swapped = check(F.conv2d, x, w, b, backward=lambda dy, *a: backward(2 * dy, *a))
    assert not swapped.ok
    assert check(F.tanh, np.ones(2, np.float32), backward=F.tanh_backward).ok


def test_check_of_losses() -> None:
    class Doubled(nn.MSELoss):
        def backward(self) -> Any:
            return 2 * super().backward()

    scores = np.random.default_rng(0).normal(size=(3, 4))
    assert check(nn.CrossEntropyLoss(label_smoothing=0.1), scores, [0, 3, 1]).ok
    assert check(nn.MSELoss(), scores, scores[::-1]).ok
    assert not check(Doubled(), scores, scores[::-1]).ok
    with pytest.raises(TypeError, match="no dy"):
        check(nn.MSELoss(), scores, scores, dy=1.0)


def test_check_leaves_the_layer_as_it_was() -> None:
    net = nn.Sequential(
        nn.Linear(3, 3, dtype=np.float64, rng=np.random.default_rng(1)),
        nn.BatchNorm1d(3, momentum=None, dtype=np.float64),
        nn.Dropout(rng=np.random.default_rng(4)),
        Scaled(),
    )
    before = net.state_dict()
    random_state = net[2].rng.bit_generator.state
    x = np.random.default_rng(0).normal(size=(4, 3))
    kept = x.copy()
    assert check(net, x).ok
    assert all(np.array_equal(before[k], v) for k, v in net.state_dict().items())
    assert net[2].rng.bit_generator.state == random_state
    assert np.array_equal(x, kept)


def test_check_is_the_same_each_time() -> None:
    x = np.random.default_rng(0).normal(size=(2, 3))
    assert check(Scaled(), x) == check(Scaled(), x)
    assert check(Scaled(), x) != check(Scaled(), x, rng=np.random.default_rng(9))
    assert check(Scaled(), x, dy=np.ones((2, 3))).ok


def test_gradients_next_to_nothing_are_not_held_to_digits_they_lack() -> None:
    """Batch norm's dx for a constant dy is 0, of which differences leave rounding only."""
    x = np.random.default_rng(0).normal(100, 1, size=(6, 2))
    assert check(nn.BatchNorm1d(2, dtype=np.float64), x, dy=np.ones((6, 2))).ok
    assert check(lambda x: 1e6 + x**2, np.array([1e-3, 1.0]), backward=lambda dy, x: 2 * dy * x).ok


@pytest.mark.parametrize("size", [1, 50])
@pytest.mark.parametrize(("offset", "factor"), [(1e4, 1.0001), (1e6, 1.01), (1e6, 0.5)])
def test_rounding_does_not_excuse_what_the_first_step_shows(
    offset: float, factor: float, size: int
) -> None:
    """However small the next step, and however large its rounding."""
    x = np.random.default_rng(0).normal(size=size)
    assert check(lambda x: x + offset, x, backward=lambda dy, x: dy).ok
    wrong = check(lambda x: x + offset, x, backward=lambda dy, x: factor * dy)
    assert not wrong.ok
    assert wrong.kinks == {"x": 0}


def test_neither_curvature_nor_a_kink_lets_rounding_excuse() -> None:
    x = np.random.default_rng(0).normal(size=50)
    wrong = check(lambda x: 1e4 + x**2, x, backward=lambda dy, x: 2.02 * dy * x)
    assert not wrong.ok
    zero = np.zeros(3)
    for slope, right in ((0.0, True), (0.5, True), (1.0, True), (1.01, False), (-0.01, False)):
        report = check(
            lambda x: 1e6 + F.relu(x), zero, backward=lambda dy, x, slope=slope: slope * dy
        )
        assert report.ok is right
        assert report.kinks["x"] == 3 * (slope != 0.5)


def test_smaller_steps_are_left_out_where_x_is_too_large_for_them() -> None:
    x = np.array([1e10])  # the next number is 2e-6 away
    assert check(np.abs, x, backward=lambda dy, x: dy).ok
    assert not check(np.abs, x, backward=lambda dy, x: 9 * dy, tolerance=1e-9).ok


# Kinks


def test_kinks_are_noticed_and_not_failed() -> None:
    x = np.array([-1.0, 0.0, 2.0, 0.0])
    report = check(F.relu, x, backward=F.relu_backward)
    assert report.ok
    assert report.kinks == {"x": 2}
    pool = check(nn.MaxPool2d(2, 1), np.zeros((1, 1, 3, 3)))
    assert pool.ok
    assert pool.kinks == {"x": 9}
    hinge = check(nn.MultiMarginLoss(), np.array([[1.0, 0.0, 0.0]]), [0])
    assert hinge.ok
    assert hinge.kinks["scores"] == 3


@pytest.mark.parametrize("distance", [1e-4, 1e-5, 3e-6, 1e-6, 1e-7, 7e-8, 1e-9])
@pytest.mark.parametrize("sign", [1, -1])
def test_kinks_nearby_are_no_mistakes(distance: float, sign: int) -> None:
    x = np.array([sign * distance, 1.0])
    assert check(F.relu, x, backward=F.relu_backward).ok


def test_a_wrong_gradient_at_a_kink_is_wrong() -> None:
    x = np.array([-1.0, 0.0, 2.0])
    dy = np.array([1.0, 1.0, 1.0])
    for at_zero, right in ((0.0, True), (0.4, True), (1.0, True), (1.1, False), (-0.1, False)):
        gradient = np.array([0.0, at_zero, 1.0])
        report = check(F.relu, x, backward=lambda dy, x, g=gradient: dy * g, dy=dy)
        assert report.ok is right
        assert report.kinks == {"x": 1}


def test_a_kink_elsewhere_excuses_nothing() -> None:
    x = np.array([0.0, 2.0])
    report = check(F.relu, x, backward=lambda dy, x: 1.01 * F.relu_backward(dy, x))
    assert not report.ok


def test_strong_curvature_is_no_kink() -> None:
    def steep(x: Any) -> Any:
        return np.exp(200 * x)

    x = np.array([0.1, -0.2])
    assert check(steep, x, backward=lambda dy, x: 200 * dy * steep(x), h=1e-4).ok
    wrong = check(steep, x, backward=lambda dy, x: 200.1 * dy * steep(x), h=1e-4)
    assert not wrong.ok
    assert wrong.kinks == {"x": 0}


# Reports and mistakes


def test_report_prints_a_table() -> None:
    report = Report(
        "Conv2d", {"x": 1e-9, "weight": 0.25}, {"x": 2, "weight": 0}, {"x": 6, "weight": 9}, 1e-6
    )
    assert str(report) == (
        "gradients of Conv2d: WRONG (tolerance 1e-06)\n"
        "  x       1.0e-09  2 of 6 elements at a kink\n"
        "  weight  2.5e-01  <--"
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.tolerance = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("error", "words", "run"),
    [
        (
            TypeError,
            "weight must be a float64",
            lambda: check(Scaled(dtype=np.float32), [[1.0] * 3]),
        ),
        (TypeError, "expected a layer, a loss", lambda: check(square, np.ones(2))),
        (TypeError, "one input, not on 2", lambda: check(Scaled(), np.ones(3), np.ones(3))),
        (
            ValueError,
            r"dy must have shape \(2, 3\)",
            lambda: check(Scaled(), np.ones((2, 3)), dy=1),
        ),
        (
            ValueError,
            r"gradient by x has shape \(\), x has \(3,\)",
            lambda: check(square, np.ones(3), backward=lambda dy, x: 1.0),
        ),
        (
            ValueError,
            "2 gradients for 1 inputs",
            lambda: check(square, np.ones(3), backward=lambda dy, x: (dy, dy)),
        ),
        (
            ValueError,
            "tolerance must be positive",
            lambda: check(Scaled(), [[1.0] * 3], tolerance=0),
        ),
        (
            ValueError,
            "h=1e-05 is too small for x: next to -10000000000000",
            lambda: check(Scaled(), [[1.0, -1e13, 1.0]]),
        ),
        (
            TypeError,
            "x must be a float64 array, not int64",
            lambda: check(square, np.arange(3), backward=lambda dy, x: dy),
        ),
    ],
)
def test_check_mistakes(error: type[Exception], words: str, run: Any) -> None:
    with pytest.raises(error, match=words):
        run()


def test_a_gradient_that_is_not_filled_is_a_mistake() -> None:
    class Lazy(Scaled):
        def backward(self, dy: Any) -> Any:
            return dy * self.weight

    with pytest.raises(ValueError, match="no gradient for weight"):
        check(Lazy(), np.ones((2, 3)))


def test_a_gradient_that_is_zero_but_for_rounding_is_no_error() -> None:
    """Batch normalisation takes the bias before it away: what is left of its gradient is noise."""
    x = np.random.default_rng(0).normal(size=(4, 3))
    for seed in range(100):
        rng = np.random.default_rng(seed)
        net = nn.Sequential(
            nn.Linear(3, 3, dtype=np.float64, rng=rng), nn.BatchNorm1d(3, dtype=np.float64)
        )
        # The floor is 1e-8, so this allows 135 units in the last place of sums of the size of 1;
        # the default of 45 is less than what four such sums may be off, with every method.
        report = check(net, x, tolerance=3e-6)
        assert report.ok, f"seed {seed}: {report}"
