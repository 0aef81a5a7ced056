"""The table of methods: choose one for a call, force one, and say what ran and why.

To add a method, write its module in ``methods/``, add it to `METHODS`, and put its name into the
rows of `TABLE` that it can serve. Callers do not change.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

from cnnfast import compiled
from cnnfast.arrays import NUMPY32, NUMPY64, Library
from cnnfast.costs import cost
from cnnfast.geometry import Convolution, Geometry, flag
from cnnfast.methods import (
    cython,
    depthwise,
    direct,
    engine,
    gemm,
    im2col,
    naive,
    portable,
    toeplitz,
    winograd,
)
from cnnfast.methods.base import Arrays, Call, Method
from cnnfast.methods.convolution import EngineConvolution, Mixed, wanted

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        gemm.METHOD,
        winograd.METHOD,
        depthwise.METHOD,
        direct.METHOD,
        im2col.METHOD,
        toeplitz.METHOD,
        portable.METHOD,
        cython.METHOD,
        engine.METHOD,
        naive.METHOD,
    )
}

_KERNELS = {name: m for name, m in METHODS.items() if isinstance(m, EngineConvolution)}

# In order of preference; among the first, which are the engine's, `cost` decides. `portable`
# stands before `toeplitz` because it is never slower; the matrix is there to be looked at.
_CONVOLUTION = (
    *("winograd", "depthwise", "direct", "gemm"),
    *("im2col", "portable", "toeplitz", "naive"),
)
_POOLING = ("engine", "cython", "portable", "naive")
_WINDOWS = ("cython", "portable", "naive")
_COMPILED = ("engine", "portable", "naive")

TABLE: dict[str, tuple[str, ...]] = {
    **{
        f"{op}{n}d{backward}": _CONVOLUTION
        for op in ("conv", "conv_transpose")
        for n in (1, 2)
        for backward in ("", "_backward")
    },
    **{
        f"{op}{n}d{backward}": table
        for table, ops in (
            (_POOLING, ("max_pool", "avg_pool")),
            (_WINDOWS, ("dilate", "subsample")),
        )
        for op in ops
        for n in (1, 2)
        for backward in ("", "_backward")
    },
    **dict.fromkeys(("im2col", "col2im"), _WINDOWS),
    **dict.fromkeys(("batch_norm", "batch_norm_backward"), _POOLING),
    **{
        f"{op}{backward}": _COMPILED
        for op in ("relu", "leaky_relu", "sigmoid", "tanh", "softmax", "log_softmax", "linear")
        for backward in ("", "_backward")
    },
    "cross_entropy": _COMPILED,
    **dict.fromkeys(
        ("dropout", "dropout_backward", "multi_margin_loss", "mse_loss"), ("portable", "naive")
    ),
}


class MethodError(ValueError):
    """A forced method cannot serve the call; the message says why."""


@dataclass(frozen=True)
class Explanation:
    """What would run for a call, and why.

    Attributes
    ----------
    op, method : str
        The operation and the method chosen for it.
    reason : str
        Why this one.
    rejected : dict of str to str
        Every other method, with the reason against it.
    dtype, device : str
        What the method computes in, and where.
    flops : int
        Multiplications, additions and comparisons of the direct definition.
    bytes : int
        What must be read and written at least: each input and output once.
    workspace : int
        Bytes of scratch memory that the method allocates, at most.
    """

    op: str
    method: str
    reason: str
    rejected: dict[str, str]
    dtype: str
    device: str
    flops: int
    bytes: int
    workspace: int

    def asdict(self) -> dict[str, Any]:
        """The same as a plain dict."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"{self.op} ({self.dtype}, {self.device}): {self.method}",
            f"  why        {self.reason}",
            f"  work       {_quantity(self.flops, 1000, 'FLOP')}",
            f"  traffic    {_quantity(self.bytes, 1024, 'B')} at least",
            f"  workspace  {_quantity(self.workspace, 1024, 'B')}",
        ]
        lines += [f"  not {name}: {reason}" for name, reason in self.rejected.items()]
        return "\n".join(lines)


def _quantity(number: float, base: int, unit: str) -> str:
    prefixes = ("", "Ki", "Mi", "Gi", "Ti") if base == 1024 else ("", "k", "M", "G", "T")
    for prefix in prefixes[:-1]:
        if number < base:
            return f"{number:.4g} {prefix}{unit}"
        number /= base
    return f"{number:.4g} {prefixes[-1]}{unit}"


@dataclass(frozen=True)
class Ran:
    """One operation that ran, and the method that computed it."""

    op: str
    method: str


@dataclass(frozen=True)
class _State:
    """What surrounds a call: a method in force, a log to write to, or only a question."""

    method: str | None = None
    logs: tuple[list[Ran], ...] = ()
    asking: bool = False


class Asked(Exception):
    """Carries an Explanation out of an operation that was only asked about."""

    def __init__(self, explanation: Explanation) -> None:
        super().__init__(explanation)
        self.explanation = explanation


_PLAIN = _State()
_STATE: ContextVar[_State] = ContextVar("cnnfast_dispatch", default=_PLAIN)
_PLANS = compiled.plans(_STATE.get, _PLAIN)


@contextmanager
def _state(**changes: Any) -> Iterator[None]:
    state = replace(_STATE.get(), **changes)
    token = _STATE.set(_PLAIN if state == _PLAIN else state)
    try:
        yield
    finally:
        _STATE.reset(token)


def methods(op: str) -> tuple[str, ...]:
    """Names of the methods of an operation, in order of preference.

    Parameters
    ----------
    op : str
        The name of a public operation, such as ``"conv2d"``.

    Raises
    ------
    ValueError
        There is no such operation.

    Examples
    --------
    >>> import cnnfast
    >>> cnnfast.methods("max_pool2d")
    ('engine', 'cython', 'portable', 'naive')
    """
    try:
        return TABLE[op]
    except (KeyError, TypeError):
        raise ValueError(f"there is no operation {op!r}; there are {', '.join(TABLE)}") from None


@contextmanager
def use(method: str) -> Iterator[None]:
    """Force one method inside a ``with`` block, for every operation that has it.

    An operation whose table does not name the method is not affected; one that does, and cannot
    serve a call by it, raises `MethodError`. An argument ``method=`` of a call goes first, and
    ``CNNFAST_METHOD`` last. The block concerns the thread (or task) that entered it alone, and
    blocks are left in the reverse order of their entry.

    Parameters
    ----------
    method : str
        A method's name, or ``"auto"`` to let the dispatcher choose again.

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> x, w = np.ones((1, 1, 3, 3)), np.ones((1, 1, 2, 2))
    >>> with cnnfast.use("naive"):
    ...     cnnfast.explain("conv2d", x, w).method
    'naive'
    """
    _check_name(method, "use")
    # Where "auto" says nothing new, calls may be remembered as they are outside of any block.
    with _state(method=None if method == "auto" and _environment_is_silent() else method):
        yield


@contextmanager
def trace() -> Iterator[list[Ran]]:
    """Record what really ran inside a ``with`` block, in order, in inner blocks too.

    Of networks, what ran in one pass is one entry, such as ``conv + relu``, and in inference there
    is a method ``blocked`` that no single operation has, for images blocked by channels.

    Examples
    --------
    >>> import numpy as np, cnnfast
    >>> with cnnfast.trace() as ran:
    ...     y = cnnfast.sigmoid(np.zeros(3), method="naive")
    >>> ran
    [Ran(op='sigmoid', method='naive')]
    """
    log: list[Ran] = []
    with _state(logs=(*_STATE.get().logs, log)):
        yield log


def asking() -> AbstractContextManager[None]:
    """A block in which `run` answers with `Asked` in place of computing."""
    return _state(asking=True)


def asked() -> bool:
    """Whether the call is only a question, whose arrays have a shape but no values."""
    return _STATE.get().asking


def _check_name(name: Any, source: str) -> None:
    if not isinstance(name, str):
        raise TypeError(f"{source}: method must be a name, not {name!r}")
    if name != "auto" and name not in METHODS:
        known = ", ".join(("auto", *METHODS))
        raise ValueError(f"{source}: there is no method {name!r}; there are {known}")


@cache
def _environment() -> str:
    """The method that the environment asks for when an operation first has to know."""
    name = os.environ.get("CNNFAST_METHOD") or "auto"
    _check_name(name, "CNNFAST_METHOD")
    return name


def _environment_is_silent() -> bool:
    try:
        return _environment() == "auto"
    except ValueError:  # whoever has to know it will say so
        return False


def forced(op: str, method: str) -> tuple[str, str]:
    """The name of the method in force for a call, or "auto", and who said so."""
    if not isinstance(method, str) or method != "auto":
        _check_name(method, op)
        if method not in TABLE[op]:
            raise ValueError(f"{op}: has no method {method!r}; it has {', '.join(TABLE[op])}")
        return method, f"method={method!r}"
    name, source = _STATE.get().method, "cnnfast.use"
    if name is None:
        name, source = _environment(), "CNNFAST_METHOD"
    return (name, source) if name in TABLE[op] else ("auto", "")


def _select(call: Call, method: str) -> tuple[Method, str]:
    """The method for a call and the reason for it."""
    name, source = forced(call.op, method)
    if name != "auto":
        refusal = METHODS[name].supports(call)
        if refusal is not None:
            raise MethodError(f"{call.op}: method {name!r} (from {source}) cannot serve: {refusal}")
        return METHODS[name], f"forced by {source}"
    able = [name for name in TABLE[call.op] if METHODS[name].supports(call) is None]
    kernels = [name for name in able if name in _KERNELS]
    if len(kernels) > 1:
        return _fastest(call, tuple(kernels)), "fastest by the cost model"
    if able:
        return METHODS[able[0]], "first in order of preference"
    raise MethodError(f"{call.op}: no method serves arrays on {call.device}")


def _fastest(call: Call, names: tuple[str, ...]) -> Method:
    """The method of least cost; for an operation of two products, perhaps one for each."""
    assert isinstance(call.geometry, Convolution)
    products = wanted(call)
    best = tuple(min(names, key=lambda name: cost(name, product, call)) for product in products)
    if len(set(best)) > 1:
        return _mixed(products, best)
    return METHODS[best[0] if best else names[0]]


@cache
def _mixed(of: tuple[str, ...], names: tuple[str, ...]) -> Mixed:
    return Mixed({p: _KERNELS[name] for p, name in zip(of, names, strict=True)})


def set_winograd(allowed: bool) -> None:
    """Allow the method ``winograd``, or switch it off for the whole process.

    It rounds more than the others (``docs/performance.md`` has the errors). Without this call the
    environment decides: ``CNNFAST_WINOGRAD=0`` switches it off.

    Parameters
    ----------
    allowed : bool
        Whether the method may be chosen or forced.

    Examples
    --------
    >>> import cnnfast
    >>> cnnfast.set_winograd(False)
    >>> cnnfast.explain("conv2d", (8, 64, 32, 32), (64, 64, 3, 3), padding=1).method != "winograd"
    True
    >>> cnnfast.set_winograd(True)
    """
    winograd.METHOD.allowed = flag("set_winograd", "allowed", allowed)
    forget()


def _explain(
    call: Call, chosen: Method, reason: str, products: int, elements: int | None
) -> Explanation:
    rejected = {
        name: METHODS[name].supports(call) or f"could serve; {chosen.name} is {reason}"
        for name in TABLE[call.op]
        if name != chosen.name
    }
    width = 4 if call.dtype == "float32" else 8
    return Explanation(
        op=call.op,
        method=chosen.name,
        reason=reason,
        rejected=rejected,
        dtype=call.dtype,
        device=call.device,
        flops=call.geometry.flops * products,
        bytes=(call.geometry.elements if elements is None else elements) * width,
        workspace=chosen.workspace(call) if products else 0,
    )


def again(op: str, method: str, arrays: Arrays, parameters: Arrays, out: Any = None) -> Any:
    """The result of a call that looks like an earlier one, without its checks; None if none does.

    `run` remembers how it served a call; this is the short way for the calls after it.
    """
    return None if _PLANS is None else _PLANS.again(op, method, arrays, parameters, out)


_generation = 0


def undisturbed() -> bool:
    """Whether the call is in no block that forces a method, traces or only asks."""
    return _STATE.get() is _PLAIN


def generation() -> int:
    """A number that changes with everything that choices depend on."""
    return _generation


def forget() -> None:
    """Choose anew from now on, because what choices depend on has changed."""
    global _generation
    _generation += 1
    _environment.cache_clear()
    if _PLANS is not None:
        _PLANS.forget()


def choose(call: Call, method: str) -> Method:
    """The method that would serve a call, for who wants only its kernel."""
    return _select(call, method)[0]


def record(op: str, method: str) -> None:
    """Tell whoever traces what ran outside of `run`."""
    for log in _STATE.get().logs:
        log.append(Ran(op, method))


def run(
    op: str,
    geometry: Geometry,
    library: Library,
    method: str,
    *arguments: Any,
    products: int = 1,
    elements: int | None = None,
    again: tuple[Arrays, Arrays] | None = None,
    **options: Any,
) -> Any:
    """Compute `op` by the method that is chosen or forced.

    `arguments` and `options` go to the method behind the geometry. What an explanation says of
    the call's cost is the geometry's, but for a call that takes another number of `products`, and
    reads and writes another number of `elements`. `again` are the user's own arrays and
    parameters, by which `again` will know a call like this one.
    """
    needs = options.get("needs", "xwb")
    call = Call(op, geometry, library.compute, library.device, needs)
    chosen, reason = _select(call, method)
    state = _STATE.get()
    if state.asking:
        raise Asked(_explain(call, chosen, reason, products, elements))
    # A one-dimensional operation is the two-dimensional one on images of height 1.
    result = getattr(chosen, op.replace("1d", "2d"))(geometry, *arguments, **options)
    record(op, chosen.name)
    plain = state is _PLAIN and (library is NUMPY32 or library is NUMPY64)
    if again is not None and plain and _PLANS is not None:
        plan = chosen.plan(call, *again)
        if plan is not None:
            _PLANS.remember(op, method, *again, plan)
    return result
