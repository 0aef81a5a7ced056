"""The compiled extensions: which are there, and the one engine that fits this machine.

Nothing is imported before it is asked for, and nothing that is missing fails in silence: every
question here is answered by a module or by a sentence saying why there is none.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

__all__ = [
    "cython_missing",
    "engine",
    "engine_missing",
    "isa",
    "isa_built",
    "isa_levels",
    "kernels",
    "plans",
    "processor",
    "warn_if_missing",
]

_KERNELS = ("_im2col", "_pool", "_resample", "_norm")

# Every level that a build can make, best first.
_LEVELS = ("x86-64-v4", "x86-64-v3", "x86-64-v2", "aarch64", "generic")

_CURE = (
    "install a C compiler and reinstall with CNNFAST_REQUIRE_EXT=1 in the environment, "
    "which makes the build stop at what it lacks"
)


def _folder(level: str) -> str:
    """The package of a level: its name as an identifier."""
    return f"cnnfast._isa.{level.replace('-', '_')}"


def _unbuilt() -> str:
    from pathlib import Path  # slow to import, and needed only here

    folder = Path(__file__).parent
    if (folder / "_im2col.pyx").exists():  # which no wheel holds
        return f"{folder} is a source folder in which nothing has been built (pip install -e .)"
    return "cnnfast was built without a working C compiler"


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False


@cache
def _load(module: str) -> ModuleType | str:
    """The module, or why it cannot be had."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if _exists(module):
            return f"{module} is installed but cannot be loaded: {error}"
        return f"{module} is not there: {_unbuilt()}"


def _require(module: str) -> ModuleType:
    found = _load(module)
    if isinstance(found, str):
        raise ImportError(found)
    return found


def kernels(name: str) -> ModuleType:
    """Import one of the modules of Cython kernels.

    Parameters
    ----------
    name : str
        ``"_im2col"``, ``"_pool"``, ``"_resample"`` or ``"_norm"``.

    Returns
    -------
    module
        The extension module.

    Raises
    ------
    ValueError
        There is no module of that name.
    ImportError
        It was not built, or cannot be loaded; the message says which and why.

    Examples
    --------
    >>> from cnnfast import compiled
    >>> if compiled.cython_missing() is None:
    ...     pool = compiled.kernels("_pool")
    """
    if name not in _KERNELS:
        raise ValueError(f"kernels: name must be one of {', '.join(_KERNELS)}, not {name!r}")
    return _require(f"cnnfast.{name}")


def cython_missing() -> str | None:
    """Say why the Cython kernels cannot be used.

    Returns
    -------
    str or None
        None if all of them can be imported, else one sentence.
    """
    for name in _KERNELS:
        found = _load(f"cnnfast.{name}")
        if isinstance(found, str):
            return found
    return None


def warn_if_missing() -> None:
    """Warn, in one line, if the Cython kernels cannot be used.

    Warns
    -----
    RuntimeWarning
        What is slow, why, and what helps.
    """
    reason = cython_missing()
    if reason is not None:
        warnings.warn(
            f"cnnfast runs without its compiled kernels, which is many times slower: {reason}; "
            f"to get them, {_CURE}",
            RuntimeWarning,
            stacklevel=3,  # the line that imports the package
        )


def plans(state: Callable[[], object], plain: object) -> Any:
    """The memory of calls seen before (`cnnfast/_plans.pyx`), None if it was not built.

    Parameters
    ----------
    state : callable
        What surrounds a call.
    plain : object
        What it is around calls that may be served from memory.

    Returns
    -------
    Plans or None
    """
    found = _load("cnnfast._plans")
    return None if isinstance(found, str) else found.Plans(state, plain)


def processor() -> str:
    """The processor's own name, or "" if it does not tell or nothing is compiled.

    Returns
    -------
    str
        Such as ``"AMD EPYC 9R14"``.
    """
    cpu = _load("cnnfast._cpu")
    return "" if isinstance(cpu, str) else str(cpu.brand())


@cache
def isa_built() -> tuple[str, ...]:
    """The instruction-set levels that this installation holds an engine for.

    Returns
    -------
    tuple of str
        Best first; empty if nothing was compiled. Not all need be usable on this machine.
    """
    return tuple(level for level in _LEVELS if _exists(f"{_folder(level)}._engine"))


@cache
def isa_levels() -> tuple[str, ...]:
    """The instruction-set levels that can be used here.

    Returns
    -------
    tuple of str
        Those built that the processor has and the operating system supports, best first, such as
        ``("x86-64-v3", "x86-64-v2", "generic")``.
    """
    cpu = _load("cnnfast._cpu")
    # Without an answer about the processor only plain C is safe.
    allowed = ("generic",) if isinstance(cpu, str) else cpu.levels()
    return tuple(level for level in isa_built() if level in allowed)


@cache
def isa() -> str | None:
    """The instruction-set level in use, settled when it is first asked for.

    Returns
    -------
    str or None
        The level that the environment variable ``CNNFAST_ISA`` names, else the best usable one;
        None if no engine is installed.

    Raises
    ------
    ValueError
        ``CNNFAST_ISA`` names a level that is unknown, not built, or not for this machine.

    Examples
    --------
    >>> from cnnfast import compiled
    >>> level = compiled.isa()
    >>> level is None or level in compiled.isa_levels()
    True
    """
    usable = isa_levels()
    forced = os.environ.get("CNNFAST_ISA", "").strip()
    if not forced:
        return usable[0] if usable else None
    if forced in usable:
        return forced
    if forced not in _LEVELS:
        why = "is no instruction-set level of cnnfast"
    elif forced in isa_built():
        why = "needs instructions that this processor or operating system does not offer"
    else:
        why = "was not built"
    raise ValueError(
        f"CNNFAST_ISA: {forced!r} {why}; usable here: {', '.join(usable) if usable else 'none'}"
    )


def engine_missing() -> str | None:
    """Say why the C engine cannot be used.

    Returns
    -------
    str or None
        None if it can be imported, else one sentence.

    Raises
    ------
    ValueError
        ``CNNFAST_ISA`` names a level that cannot be used here.
    """
    level = isa()
    if level is None:
        return f"the engine is not there: {_unbuilt()}"
    found = _load(f"{_folder(level)}._engine")
    return found if isinstance(found, str) else None


@cache
def engine() -> ModuleType:
    """Import the C engine of the level in use.

    Returns
    -------
    module
        The extension module.

    Raises
    ------
    ImportError
        No engine was built, or it cannot be loaded; the message says which and why.
    ValueError
        ``CNNFAST_ISA`` names a level that cannot be used here.
    """
    reason = engine_missing()
    if reason is not None:
        raise ImportError(reason)
    return _require(f"{_folder(isa() or '')}._engine")
