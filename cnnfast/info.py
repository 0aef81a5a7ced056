"""What is installed, what it found on this machine, and why."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np

from cnnfast import compiled
from cnnfast._version import __version__
from cnnfast.methods import winograd
from cnnfast.threads import get_num_threads

__all__ = ["info"]


def info() -> dict[str, Any]:
    """Describe the installation, the machine and the settings in force.

    Returns
    -------
    dict
        Of values that JSON can hold:

        ``version``
            of cnnfast.
        ``compiled``, ``reason``
            Whether the Cython kernels are in use, and None or a sentence saying why not.
        ``isa``, ``isa_available``, ``isa_built``
            The engine's instruction-set level in use (or None), the levels that can be used here,
            and those that were built, best first.
        ``threads``
            The number in force.
        ``winograd``
            Whether the method of that name is allowed.
        ``memory``
            Bytes of the engine's own memory: ``kept`` for later calls, ``used`` at the moment, and
            the ``limit`` of what is kept; None without an engine.
        ``numpy``, ``python``
            Their versions.
        ``blas``
            ``name`` and ``version`` of the library behind NumPy's matrix products, or None.
        ``platform``, ``processor``
            As the system and the processor name themselves.

    Raises
    ------
    ValueError
        An environment variable of cnnfast has a value that cannot be used.

    Examples
    --------
    >>> import cnnfast
    >>> cnnfast.info()["version"] == cnnfast.__version__
    True
    """
    reason = compiled.cython_missing()
    return {
        "version": __version__,
        "compiled": reason is None,
        "reason": reason,
        "isa": compiled.isa(),
        "isa_available": list(compiled.isa_levels()),
        "isa_built": list(compiled.isa_built()),
        "threads": get_num_threads(),
        "winograd": winograd.METHOD.allowed,
        "memory": compiled.engine().memory() if compiled.engine_missing() is None else None,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "blas": _blas(),
        "platform": platform.platform(),
        "processor": compiled.processor() or platform.processor() or platform.machine(),
    }


def _blas() -> dict[str, str] | None:
    found = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    if not found.get("name"):
        return None
    return {"name": str(found["name"]), "version": str(found.get("version", "unknown"))}
