"""Any memory layout and any real dtype goes in; new arrays in C order of the due dtype come out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import checks
import numpy as np
import pytest
from cases import CASES, FLOATS, Case, find
from test_methods import by_method

import cnnfast

# A few elements, so that the layouts differ, but every option counts: these stand for all.
_CHOSEN = {
    "conv1d": ["groups", "pair", "depthwise"],
    "conv2d": ["groups", "pairs, stride, dilation", "one tap", "depthwise", "tiles, groups"],
    "conv_transpose1d": ["groups", "pair", "depthwise"],
    "conv_transpose2d": ["groups", "output padding", "one tap", "depthwise", "tiles, groups"],
    "im2col": ["pairs", "rectangles"],
    "col2im": ["pairs", "rectangles"],
    "max_pool1d": ["overlap", "overlap, values alone"],
    "max_pool2d": ["overlap", "overlap, values alone", "tiles", "dilation"],
    "avg_pool1d": ["overlap"],
    "avg_pool2d": ["overlap", "padding counts not, ceil"],
    "dilate1d": ["two"],
    "dilate2d": ["both"],
    "subsample1d": ["two"],
    "subsample2d": ["both"],
    "batch_norm": [
        "features, training",
        "images",
        "images, running",
        "images, training",
        "signals",
        "batch 0",
    ],
    "linear": ["rows", "three axes", "needs 'x'"],
}


def _cases(op: str) -> list[Case]:
    names = _CHOSEN.get(op.removesuffix("_backward"))
    if names is not None:
        present = {case.name for case in CASES[op]}
        return [find(op, name) for name in names if name in present]
    elements = ("number", "vector", "image", "rows", "channels", "plain", "image, p=0.3")
    return [case for case in CASES[op] if case.name in elements]


def _in_place(name: str) -> bool:
    return name.startswith("running_")


def _fortran(name: str, a: np.ndarray) -> np.ndarray:
    return a.copy(order="F")


def _last_axis_first(name: str, a: np.ndarray) -> np.ndarray:
    return np.moveaxis(np.moveaxis(a, -1, 0).copy(), 0, -1) if a.ndim else a


def _sliced(name: str, a: np.ndarray) -> np.ndarray:
    """Every second element of a larger array, beginning with its second."""
    large = np.full([2 * n + 1 for n in a.shape], 77, a.dtype)
    view = large[(..., *(slice(1, 2 * n, 2) for n in a.shape))]
    view[...] = a
    return view


def _reversed(name: str, a: np.ndarray) -> np.ndarray:
    backwards = (..., *(slice(None, None, -1) for _ in a.shape))
    return a[backwards].copy()[backwards]


def _read_only(name: str, a: np.ndarray) -> np.ndarray:
    if not _in_place(name):
        a.flags.writeable = False
    return a


def _byte_swapped(name: str, a: np.ndarray) -> np.ndarray:
    return a.astype(a.dtype.newbyteorder())


def _unaligned(name: str, a: np.ndarray) -> np.ndarray:
    raw = np.zeros(a.nbytes + 1, np.uint8)[1:]
    view = raw.view(a.dtype).reshape(a.shape) if a.size else a
    view[...] = a
    return view


class _Subclass(np.ndarray):
    """An array type of somebody else's."""


def _subclass(name: str, a: np.ndarray) -> np.ndarray:
    return a.view(_Subclass)


_LAYOUTS: list[Callable[[str, np.ndarray], np.ndarray]] = [
    _fortran,
    _last_axis_first,
    _sliced,
    _reversed,
    _read_only,
    _byte_swapped,
    _unaligned,
    _subclass,
]


def _arrays_only(layout: Callable[[str, np.ndarray], np.ndarray]) -> checks.Layout:
    return lambda name, value: layout(name, value) if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("layout", _LAYOUTS, ids=lambda layout: layout.__name__.strip("_"))
@pytest.mark.parametrize(("op", "method"), by_method())
def test_layout_changes_nothing(
    op: str, method: str, layout: Callable[[str, np.ndarray], np.ndarray]
) -> None:
    for dtype in FLOATS:
        checks.check_all(_cases(op), method, dtype, _arrays_only(layout))


def test_layouts_are_what_their_names_say() -> None:
    a = np.arange(24.0).reshape(2, 3, 4)
    made = {layout.__name__: layout("x", a.copy()) for layout in _LAYOUTS}
    for name, b in made.items():
        assert np.array_equal(a, b), name
    assert made["_fortran"].flags.f_contiguous
    assert not made["_last_axis_first"].flags.forc
    assert not made["_sliced"].flags.forc
    assert all(stride < 0 for stride in made["_reversed"].strides)
    assert not made["_read_only"].flags.writeable
    assert not made["_byte_swapped"].dtype.isnative
    assert not made["_unaligned"].flags.aligned


@pytest.mark.parametrize(("op", "method"), by_method())
def test_repeated_memory(op: str, method: str) -> None:
    """Arrays whose elements share memory, as `numpy.broadcast_to` makes them."""

    def layout(name: str, value: Any) -> Any:
        if not isinstance(value, np.ndarray) or _in_place(name) or not value.ndim:
            return value
        if name == "indices" or value.shape[0] == 0:
            return value
        return np.broadcast_to(value[:1], value.shape)

    for case in checks.served(_cases(op), method):
        arguments = {name: layout(name, value) for name, value in case.arguments().items()}
        own = {
            name: value.copy() if isinstance(value, np.ndarray) else value
            for name, value in case.arguments().items()
        }
        own.update({k: v.copy() for k, v in arguments.items() if isinstance(v, np.ndarray)})
        shared = checks.run(case, method, arguments)
        copied = checks.run(case, method, own)
        bounds = checks.scales(case, method)
        for k, (a, b, scale) in enumerate(zip(shared, copied, bounds, strict=True)):
            if a is not None:
                # The bound is for other values of the same size; ten times it is still tight.
                scale = 10 * (1 + np.max(scale, initial=0))
                checks.assert_close(a, b, scale, np.float64, f"{case}, {method}, result {k}")


@pytest.mark.parametrize("op", CASES)
def test_lists(op: str) -> None:
    """Lists of floats are float64."""
    for case in _cases(op):
        arguments = case.arguments()
        if any(isinstance(a, np.ndarray) and not a.size for a in arguments.values()):
            continue  # a list cannot tell the shape of an empty array
        listed = {
            name: value.tolist() if isinstance(value, np.ndarray) and not _in_place(name) else value
            for name, value in case.arguments().items()
        }
        wanted = checks.as_tuple(getattr(cnnfast, op)(**arguments))
        got = checks.as_tuple(getattr(cnnfast, op)(**listed))
        for a, b in zip(got, wanted, strict=True):
            if b is not None:
                checks.assert_same(a, b, str(case))


def _is_float(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def _cast(arguments: dict[str, Any], dtype: Any, names: Any) -> dict[str, Any]:
    """The arguments with some arrays in another dtype, and new random generators."""
    cast = {k: v.astype(dtype) if k in names else v for k, v in arguments.items()}
    return {**cast, "rng": np.random.default_rng(7)} if "rng" in cast else cast


def _whole_numbers(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with 0, 1 or 2 for every float, which all dtypes hold (True for bool's)."""
    return {
        name: np.clip(np.abs(np.rint(np.nan_to_num(value))), 0, 2) if _is_float(value) else value
        for name, value in arguments.items()
    }


def _floats(op: str, arguments: dict[str, Any]) -> list[np.ndarray]:
    result = checks.as_tuple(getattr(cnnfast, op)(**arguments))
    return [y for y in result if _is_float(y)]


def _equal(got: list[np.ndarray], want: list[np.ndarray], case: Case) -> None:
    assert got and len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        checks.assert_same(a, b, str(case))


def _dtype_cases(op: str) -> list[Case]:
    """Without those that update arrays in place, which must hold floats."""
    return [case for case in _cases(op) if "training" not in case.options]


@pytest.mark.parametrize("op", CASES)
def test_integers_and_booleans_are_float64(op: str) -> None:
    for case in _dtype_cases(op)[:2]:
        whole = _whole_numbers(case.arguments())
        names = {name for name, value in whole.items() if _is_float(value)}
        for dtype in ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "?"):
            given = _cast(whole, dtype, names)
            with np.errstate(all="ignore"):
                got = _floats(op, given)
                _equal(got, _floats(op, _cast(given, np.float64, names)), case)
            assert all(y.dtype == np.float64 for y in got)


@pytest.mark.parametrize("op", CASES)
def test_float16_is_computed_in_float32(op: str) -> None:
    for case in _dtype_cases(op):
        arguments = case.arguments()
        names = {name for name, value in arguments.items() if _is_float(value)}
        half = _cast(arguments, np.float16, names)
        got, want = _floats(op, half), _floats(op, _cast(half, np.float32, names))
        _equal(got, [y.astype(np.float16) for y in want], case)
        for y in got:
            checks.assert_new_array(y, half, str(case))
        assert all(y.dtype == np.float32 for y in want)


def test_float16_sums_do_not_overflow() -> None:
    """A sum beyond float16's largest number, 65504, on the way to a mean of 1000."""
    x = np.full((1, 1, 10, 10), 1000, np.float16)
    assert cnnfast.avg_pool2d(x, 10).item() == 1000
    small = np.full((1, 1, 10, 10), 1 / 128, np.float16)
    assert cnnfast.conv2d(x, small).item() == 781  # 781.25 to the eleven bits of float16


_MIXED = [
    ({"x": "f4"}, "f8", "f8"),
    ({"x": "f8"}, "f4", "f8"),
    ({"x": "f2"}, "f4", "f4"),
    ({"x": "f2"}, "f8", "f8"),
    ({"x": "i4"}, "f4", "f8"),
    ({"x": "f4"}, "i8", "f8"),
    ({"x": "f2"}, "u1", "f8"),
    ({"x": "?"}, "f4", "f8"),
    ({"dy": "f4", "w": "f4"}, "f8", "f8"),
    ({"dy": "f8", "w": "f4"}, "f4", "f8"),
]


def _mixable() -> list[Any]:
    """Every rule for every operation that has the arrays it speaks of, and more."""
    parameters = []
    for op in CASES:
        arguments = _dtype_cases(op)[0].arguments()
        floats = {name for name, value in arguments.items() if _is_float(value)}
        parameters += [(op, *rule) for rule in _MIXED if set(rule[0]) < floats]
    return parameters


@pytest.mark.parametrize(("op", "dtypes", "otherwise", "due"), _mixable())
def test_mixed_dtypes(op: str, dtypes: dict[str, str], otherwise: str, due: str) -> None:
    case = _dtype_cases(op)[0]
    whole = _whole_numbers(case.arguments())
    names = {name for name, value in whole.items() if _is_float(value)}
    given = _cast(whole, otherwise, names - set(dtypes))
    for name, dtype in dtypes.items():
        given = _cast(given, dtype, {name})
    with np.errstate(all="ignore"):
        got = _floats(op, given)
        _equal(got, _floats(op, _cast(given, due, names)), case)
    assert all(y.dtype == due for y in got)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("layout", [_fortran, _sliced, _reversed, _byte_swapped, _unaligned])
def test_running_arrays_are_updated_where_they_lie(
    layout: Callable[[str, np.ndarray], np.ndarray], dtype: str, rng: np.random.Generator
) -> None:
    x = rng.normal(size=(4, 3, 5))
    mean, var = rng.normal(size=3).astype(dtype), rng.uniform(1, 2, 3).astype(dtype)
    views = layout("running_mean", mean.copy()), layout("running_var", var.copy())
    for method in cnnfast.methods("batch_norm"):
        if checks.unavailable(method):
            continue
        views[0][...], views[1][...] = mean, var
        y = cnnfast.batch_norm(x, *views, training=True, momentum=0.25, method=method)
        assert y.dtype == np.float64
        want = 0.75 * mean + 0.25 * x.mean((0, 2)), 0.75 * var + 0.25 * x.var((0, 2), ddof=1)
        for view, expected in zip(views, want, strict=True):
            eps = np.finfo(dtype).eps
            assert np.all(np.abs(view - expected) <= 4 * eps * (1 + np.abs(expected)))


def test_results_do_not_share_memory_with_arguments() -> None:
    """Also where the operation changes nothing."""
    x = np.arange(12.0).reshape(1, 1, 3, 4)
    ones = np.ones((1, 1, 1, 1))
    for y in (
        cnnfast.subsample2d(x, 1),
        cnnfast.dilate2d(x, 1),
        cnnfast.max_pool2d(x, 1),
        cnnfast.avg_pool2d(x, 1),
        cnnfast.conv2d(x, ones),
        cnnfast.im2col(x, 1),
        cnnfast.relu(x),
        cnnfast.leaky_relu(x),
        cnnfast.dropout(x, 0.0, rng=np.random.default_rng(0)),
        cnnfast.dropout(x, training=False, rng=np.random.default_rng(0)),
    ):
        assert np.array_equal(y.ravel(), x.ravel())
        assert not np.shares_memory(x, y)


@pytest.mark.parametrize("axes", [0, 1, 2])
def test_numbers_are_no_images(axes: int) -> None:
    x = np.zeros((1,) * axes)
    for call in (
        lambda: cnnfast.conv2d(x, np.zeros((1, 1, 1, 1))),
        lambda: cnnfast.max_pool2d(x, 1),
        lambda: cnnfast.avg_pool2d(x, 1),
        lambda: cnnfast.im2col(x, 1),
        lambda: cnnfast.dilate2d(x, 1),
        lambda: cnnfast.conv1d(x, np.zeros((1, 1, 1))),
        lambda: cnnfast.max_pool1d(x, 1),
    ):
        with pytest.raises(ValueError, match=r": x must have shape \(N, C, (H, W|L)\), not \("):
            call()
