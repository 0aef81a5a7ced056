"""Every method against `cnnfast.naive`, forward and gradients, on random geometries.

`verify` draws calls for each operation: sizes, strides, paddings, dilations, groups, memory
layouts, ties and NaN. The oracle is the loop of `cnnfast.naive` in float64. A result passes if its
type and shape are right, its inputs were left alone, and ``|error| <= bound`` holds for every
element; the comparison is written so that a NaN fails.

A bound is ``eps * (L + 2) * max|a| * max|b|`` where sums have ``L`` terms ``a * b``: the worst case
of summation in floating point is ``L`` times that, and errors that add up as random numbers do stay
far below it (Higham, *Accuracy and Stability of Numerical Algorithms*, chapter 4). What only moves
or compares numbers must be exact.
"""

from __future__ import annotations

import re
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnfast import dispatch, functional, naive
from cnnfast.peers import Peer, Unsupported, open_peer
from cnnfast.trials import Seed, Trial, draw

__all__ = ["Row", "bounds", "largest_error", "outputs", "verify"]

Array = NDArray[Any]


@dataclass
class Row:
    """What became of one method of one operation in one dtype.

    Attributes
    ----------
    op, method, dtype : str
        What was compared; `method` is a peer's name for a row about a peer.
    cases : int
        Calls compared.
    skipped : int
        Calls that the method said it cannot serve.
    failed : int
        Calls that disagreed, or raised.
    max_error : float
        The largest absolute error met; NaN where a value was not a number and should have been.
    of_bound : float
        The largest error as a share of what is accepted.
    failures : list of str
        A sentence for each of the first failures, with the call.
    """

    op: str
    method: str
    dtype: str
    cases: int = 0
    skipped: int = 0
    failed: int = 0
    max_error: float = 0.0
    of_bound: float = 0.0
    failures: list[str] = field(default_factory=list)


_SHOWN_FAILURES = 3


def verify(
    cases: int = 20,
    seed: int = 0,
    *,
    ops: Iterable[str] | None = None,
    methods: Iterable[str] | None = None,
    dtypes: Sequence[str] = ("float32", "float64"),
    peers: Sequence[str] = (),
    progress: Callable[[str], None] | None = None,
) -> list[Row]:
    """Compare every method of every operation with the loops, over random calls.

    Parameters
    ----------
    cases : int
        Calls drawn for each operation.
    seed : int
        The same seed draws the same calls.
    ops : iterable of str, optional
        Only these operations.
    methods : iterable of str, optional
        Only these methods.
    dtypes : sequence of str
        What to compute in.
    peers : sequence of str
        Other libraries to compare with the loops as well, such as ``("torch",)``.
    progress : callable, optional
        Called with the name of each operation before it is compared.

    Returns
    -------
    list of Row
        One for each operation, method and dtype. All is well if ``failed`` is 0 in each.

    Raises
    ------
    ValueError
        An unknown operation, method, dtype or peer, fewer than one case, or nothing to
        compare: none of the methods is one of the operations'.
    ImportError
        A peer is not installed.

    Examples
    --------
    >>> rows = verify(cases=2, ops=["max_pool2d"])
    >>> [(row.method, row.dtype, row.failed) for row in rows][-1]
    ('naive', 'float64', 0)
    """
    if cases < 1:
        raise ValueError(f"verify: cases must be at least 1, not {cases}")
    names = list(dispatch.TABLE) if ops is None else list(ops)
    for op in names:
        dispatch.methods(op)
    chosen = None if methods is None else set(methods)
    unknown = sorted((chosen or set()) - set(dispatch.METHODS))
    if unknown:
        known = ", ".join(dispatch.METHODS)
        raise ValueError(f"verify: there is no method {unknown[0]!r}; there are {known}")
    for dtype in dtypes:
        if dtype not in ("float32", "float64"):
            raise ValueError(f"verify: dtype must be float32 or float64, not {dtype!r}")
    libraries = {name: open_peer(name) for name in peers}
    rows: list[Row] = []
    for op in names:
        if progress is not None:
            progress(op)
        own = [m for m in dispatch.methods(op) if chosen is None or m in chosen]
        table = {(m, d): Row(op, m, d) for m in (*own, *libraries) for d in dtypes}
        for number in range(cases):
            _compare_all(op, [seed, zlib.crc32(op.encode()), number], libraries, table)
        rows += table.values()
    if not rows:
        raise ValueError("verify: nothing to compare: no such method serves such an operation")
    return rows


def _compare_all(
    op: str,
    seed: Sequence[int],
    libraries: Mapping[str, Peer],
    table: Mapping[tuple[str, str], Row],
) -> None:
    """Draw one call and add what each method makes of it to the rows."""
    rng = np.random.default_rng(seed)
    trial = draw(op, rng)
    layout = _LAYOUTS[int(rng.integers(len(_LAYOUTS)))]
    oracle = _arguments(trial, "float64")
    want = outputs(getattr(naive, op)(**oracle))
    want += tuple(oracle[name] for name in trial.updated if oracle[name] is not None)
    for (method, dtype), row in table.items():
        peer = libraries.get(method)
        try:
            if peer is None:
                got, problem = _by_method(trial, dtype, method, layout)
            else:
                got, problem = _by_peer(trial, dtype, peer, want), None
        except (dispatch.MethodError, Unsupported):
            row.skipped += 1
            continue
        except Exception as error:
            got, problem = (), f"raised {type(error).__name__}: {error}"
        # A peer need not tell what it did to the running statistics.
        if problem is None and peer is None and len(got) != len(want):
            problem = f"gave {len(got)} results, not {len(want)}"
        limits = bounds(op, {**trial.context, **trial.args}, float(np.finfo(dtype).eps))
        off = _measure(row, got, want, limits)
        problem = problem or off
        row.cases += 1
        if problem is not None:
            row.failed += 1
            if len(row.failures) < _SHOWN_FAILURES:
                where = f"{method}, {dtype}, seed {seed[0]}, case {seed[2]}"
                row.failures.append(f"{where}: {trial}: {problem}")


def _measure(
    row: Row, got: Sequence[Any], want: Sequence[Array], limits: Sequence[float]
) -> str | None:
    """Note the errors in the row, and say which result is off its bound."""
    problem = None
    for index, (value, right, limit) in enumerate(zip(got, want, limits, strict=False)):
        error = largest_error(value, right)
        share = 0.0 if error == 0 else error / limit if limit else np.inf
        row.max_error = float(np.maximum(row.max_error, error))  # a NaN stays
        row.of_bound = float(np.maximum(row.of_bound, share))
        if not error <= limit and problem is None:
            problem = f"result {index}: error {error:.3g}, accepted {limit:.3g}"
            if np.shape(value) != right.shape:
                problem = f"result {index} has shape {np.shape(value)}, not {right.shape}"
    return problem


def _by_peer(trial: Trial, dtype: str, peer: Peer, want: Sequence[Array]) -> tuple[Array, ...]:
    if "max_pool" in trial.op and any((a == -1).any() for a in want[1:]):
        raise Unsupported("other libraries give the index of an empty window otherwise")
    args = _arguments(trial, dtype)
    extra = {name: _cast(value, dtype) for name, value in trial.context.items()}
    with warnings.catch_warnings():
        # PyTorch warns of a copy that padding="same" makes.
        warnings.simplefilter("ignore")
        return peer.arrays(peer.prepare(trial.op, {**extra, **args})())


def _by_method(
    trial: Trial, dtype: str, method: str, layout: Callable[[Array], Array]
) -> tuple[tuple[Array, ...], str | None]:
    """The results, and a sentence about anything wrong beside their values."""
    args = _arguments(trial, dtype)
    for name, value in args.items():
        if isinstance(value, np.ndarray) and name not in trial.updated:
            args[name] = layout(value)
    before = {name: _bytes(value) for name, value in args.items()}
    with dispatch.trace() as ran:
        result = outputs(getattr(functional, trial.op)(**args, method=method))
    changed = tuple(args[name] for name in trial.updated if args[name] is not None)
    problems = [
        f"changed its argument {name}"
        for name, value in args.items()
        if name not in trial.updated and _bytes(value) != before[name]
    ]
    if dispatch.Ran(trial.op, method) not in ran:
        problems.append(f"was computed by {', '.join(r.method for r in ran) or 'nothing'}")
    for index, value in enumerate(result):
        if isinstance(value, np.ndarray):
            if value.dtype.kind == "f" and value.dtype != dtype:
                problems.append(f"result {index} has dtype {value.dtype}")
            if not value.flags.c_contiguous:
                problems.append(f"result {index} is not C-contiguous")
    return result + changed, problems[0] if problems else None


def _bytes(value: Any) -> bytes | None:
    return value.tobytes() if isinstance(value, np.ndarray) else None


def _cast(value: Any, dtype: str) -> Any:
    if isinstance(value, np.ndarray):
        return value.astype(dtype) if value.dtype.kind == "f" else value.copy()
    return np.random.default_rng(value.value) if isinstance(value, Seed) else value


def _arguments(trial: Trial, dtype: str) -> dict[str, Any]:
    """Fresh copies of the arguments, floating-point arrays in `dtype`."""
    return {name: _cast(value, dtype) for name, value in trial.args.items()}


def outputs(result: Any) -> tuple[Any, ...]:
    """What an operation returned as a tuple, without what was not asked for."""
    parts = result if isinstance(result, tuple) else (result,)
    return tuple(
        part if isinstance(part, np.ndarray) else np.float64(part)
        for part in parts
        if part is not None
    )


def largest_error(got: Any, want: Array) -> float:
    """The largest absolute difference; NaN if the shapes differ or only one has a NaN.

    Infinities of one sign and NaN against NaN count as equal.
    """
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape:
        return float("nan")
    got, want = got.astype(np.float64, copy=False), want.astype(np.float64, copy=False)
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.where(same, 0.0, np.abs(got - want))
    return float(np.max(difference, initial=0.0))


# Layouts: the same numbers, laid out otherwise in memory.


def _sliced(a: Array) -> Array:
    wide = np.zeros((*a.shape[:-1], 2 * a.shape[-1]), a.dtype) if a.ndim else a
    view = wide[..., ::2]
    view[...] = a
    return view


def _backwards(a: Array) -> Array:
    return np.ascontiguousarray(a[..., ::-1])[..., ::-1]


def _read_only(a: Array) -> Array:
    a = a.copy()
    a.flags.writeable = False
    return a


_LAYOUTS: tuple[Callable[[Array], Array], ...] = (
    np.ascontiguousarray,
    np.ascontiguousarray,
    np.asfortranarray,
    _sliced,
    _backwards,
    _read_only,
    lambda a: a.astype(a.dtype.newbyteorder()),
)


# Bounds.


def bounds(op: str, args: Mapping[str, Any], eps: float) -> list[float]:
    """The largest accepted absolute error of each output.

    Parameters
    ----------
    op : str
        The operation.
    args : mapping of str to object
        Its arguments by name.
    eps : float
        The machine epsilon of the dtype that computes.

    Returns
    -------
    list of float
        One for each output in order, optional ones included; 0 where nothing may be rounded.
    """
    family = re.sub(r"[12]d(?=_|$)", "", op)
    if family in _EXACT:
        return [0.0, 0.0]
    return [eps * error for error in _ROUNDED[family](args)]


def _peak(*arrays: Array | None) -> float:
    """The product of the largest finite absolute values; 1 for what is not there."""
    result = 1.0
    for a in arrays:
        if a is not None:
            size = np.abs(np.asarray(a, np.float64))
            result *= float(np.max(size, initial=0.0, where=np.isfinite(size)))
    return result


def _conv_errors(args: Mapping[str, Any]) -> list[float]:
    x, w, b = args["x"], args["w"], args.get("b")
    bias = 0.0 if b is None else _peak(b)
    return [(prod(w.shape[1:]) + 2) * (_peak(x, w) + bias)]


def _conv_transpose_errors(args: Mapping[str, Any]) -> list[float]:
    x, w, b = args["x"], args["w"], args.get("b")
    terms = w.shape[0] // args.get("groups", 1) * prod(w.shape[2:])
    return [(terms + 2) * (_peak(x, w) + (0.0 if b is None else _peak(b)))]


def _conv_backward_errors(args: Mapping[str, Any]) -> list[float]:
    dy, x, w = args["dy"], args["x"], args["w"]
    to_x = w.shape[0] // args.get("groups", 1) * prod(w.shape[2:])
    return _gradient_errors(args, to_x, dy.size // max(dy.shape[1], 1), _peak(dy, x))


def _conv_transpose_backward_errors(args: Mapping[str, Any]) -> list[float]:
    dy, x, w = args["dy"], args["x"], args["w"]
    return _gradient_errors(args, prod(w.shape[1:]), dy.size // max(dy.shape[1], 1), _peak(dy, x))


def _linear_errors(args: Mapping[str, Any]) -> list[float]:
    x, w, b = args["x"], args["w"], args.get("b")
    return [(w.shape[1] + 2) * (_peak(x, w) + (0.0 if b is None else _peak(b)))]


def _linear_backward_errors(args: Mapping[str, Any]) -> list[float]:
    dy, x, w = args["dy"], args["x"], args["w"]
    return _gradient_errors(args, w.shape[0], prod(dy.shape[:-1]), _peak(dy, x))


def _gradient_errors(args: Mapping[str, Any], to_x: int, to_w: int, products: float) -> list[float]:
    """Of dx, dw and db, where they are needed: sums of `to_x`, `to_w` and `to_w` terms."""
    dy, w = args["dy"], args["w"]
    errors = {
        "x": (to_x + 2) * _peak(dy, w),
        "w": (to_w + 2) * products,
        "b": (to_w + 2) * _peak(dy),
    }
    return [error for name, error in errors.items() if name in args.get("needs", "xwb")]


def _kernel_terms(args: Mapping[str, Any]) -> int:
    """Elements of a window, at most."""
    size = args["kernel_size"]
    images = next(args[name] for name in ("x", "dy", "cols") if name in args)
    ndim = len(args["output_size"]) if "output_size" in args else images.ndim - 2
    return int(prod(size)) if isinstance(size, Sequence) else int(size) ** ndim


def _col2im_errors(args: Mapping[str, Any]) -> list[float]:
    return [(_kernel_terms(args) + 2) * _peak(args["cols"])]


def _max_pool_backward_errors(args: Mapping[str, Any]) -> list[float]:
    # An element can be the largest of every window of its image.
    return [(prod(args["dy"].shape[2:]) + 2) * _peak(args["dy"])]


def _avg_pool_errors(args: Mapping[str, Any]) -> list[float]:
    terms = _kernel_terms(args)
    shrink = abs(args.get("divisor_override") or terms)
    return [(terms + 2) * _peak(args["x"]) * max(1.0, terms / shrink)]


def _avg_pool_backward_errors(args: Mapping[str, Any]) -> list[float]:
    return [(_kernel_terms(args) + 2) * _peak(args["dy"])]


def _batch_norm_errors(args: Mapping[str, Any]) -> list[float]:
    x, weight, bias = args["x"], args.get("weight"), args.get("bias")
    axes = (0, *range(2, x.ndim))
    terms = x.size // x.shape[1] if args.get("training") else 1
    var = x.var(axes) if args.get("training") else args["running_var"]
    scale = _peak(1 / np.sqrt(np.asarray(var, np.float64) + args.get("eps", 1e-5)))
    # The mean's error grows with |x|; divided by a small deviation it grows once more.
    spread = (terms + 8) * (1 + _peak(x) * scale)
    y = spread * (_peak(weight) * (1 + _peak(x) * scale) + (0.0 if bias is None else _peak(bias)))
    errors = [y]
    if args.get("return_stats"):
        errors += [(terms + 8) * _peak(x), spread * scale]
    for name, size in (("running_mean", _peak(x)), ("running_var", _peak(x) ** 2)):
        if args[name] is not None:
            errors.append((terms + 8) * (size + _peak(args[name])))
    return errors


def _batch_norm_backward_errors(args: Mapping[str, Any]) -> list[float]:
    dy, x, rstd, weight = args["dy"], args["x"], args["rstd"], args.get("weight")
    terms = x.size // x.shape[1] + 8
    normal = 1 + _peak(x, rstd) + _peak(args["mean"], rstd)
    return [
        terms * _peak(dy, rstd, weight) * normal**2,
        terms * _peak(dy) * normal,
        terms * _peak(dy),
    ]


def _elementwise_errors(args: Mapping[str, Any]) -> list[float]:
    scale = _peak(args.get("x", args.get("dy"))) + 1
    return [8 * scale * _peak(args.get("dy"))]


def _dropout_errors(args: Mapping[str, Any]) -> list[float]:
    size = _peak(args["dy"] if "dy" in args else args["x"])
    return [4 * size / (1 - args.get("p", 0.5)), 0.0]


def _softmax_errors(args: Mapping[str, Any]) -> list[float]:
    x = args["x"]
    return [x.shape[args.get("axis", -1)] + 16 + 8 * _peak(x)]


def _softmax_backward_errors(args: Mapping[str, Any]) -> list[float]:
    dy, y = args["dy"], args["y"]
    terms = dy.shape[args.get("axis", -1)]
    return [(terms + 8 + _peak(y)) * terms * _peak(dy)]


def _class_loss_errors(args: Mapping[str, Any]) -> list[float]:
    N, C = args["scores"].shape
    size = 1 + _peak(args["scores"])
    return [(N + C + 8) * C * size, (C + 16) * size / max(N, 1)]


def _mse_errors(args: Mapping[str, Any]) -> list[float]:
    size = _peak(args["pred"]) + _peak(args["target"])
    count = max(args["pred"].size, 1)
    return [(count + 4) * size**2, 8 * size / count]


# What only moves, selects or compares numbers.
_EXACT = {
    *("im2col", "max_pool", "dilate", "dilate_backward", "subsample", "subsample_backward"),
    *("relu", "relu_backward"),
}

_ROUNDED: dict[str, Callable[[Mapping[str, Any]], list[float]]] = {
    "conv": _conv_errors,
    "conv_backward": _conv_backward_errors,
    "conv_transpose": _conv_transpose_errors,
    "conv_transpose_backward": _conv_transpose_backward_errors,
    "col2im": _col2im_errors,
    "max_pool_backward": _max_pool_backward_errors,
    "avg_pool": _avg_pool_errors,
    "avg_pool_backward": _avg_pool_backward_errors,
    "batch_norm": _batch_norm_errors,
    "batch_norm_backward": _batch_norm_backward_errors,
    "linear": _linear_errors,
    "linear_backward": _linear_backward_errors,
    **dict.fromkeys(("leaky_relu", "leaky_relu_backward"), _elementwise_errors),
    **dict.fromkeys(("sigmoid", "sigmoid_backward"), _elementwise_errors),
    **dict.fromkeys(("tanh", "tanh_backward"), _elementwise_errors),
    **dict.fromkeys(("softmax", "log_softmax"), _softmax_errors),
    **dict.fromkeys(("softmax_backward", "log_softmax_backward"), _softmax_backward_errors),
    **dict.fromkeys(("dropout", "dropout_backward"), _dropout_errors),
    **dict.fromkeys(("cross_entropy", "multi_margin_loss"), _class_loss_errors),
    "mse_loss": _mse_errors,
}
