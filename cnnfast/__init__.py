"""Convolutional-network layers for NumPy, every operation as readable loops and as fast kernels.

The operations are in `cnnfast.functional` and here; their reference loops in `cnnfast.naive`;
layers in `cnnfast.nn`; optimisers and the training loop in `cnnfast.training`.
"""

import importlib
from types import ModuleType

from cnnfast import compiled, functional, naive
from cnnfast._version import __version__
from cnnfast.dispatch import Explanation, MethodError, methods, trace, use
from cnnfast.functional import *  # noqa: F403  (its __all__ is the table of operations)
from cnnfast.functional import explain
from cnnfast.info import info
from cnnfast.threads import get_num_threads, set_num_threads, threads

_ON_FIRST_USE = frozenset({"compat", "data", "gradcheck", "models", "nn", "training"})

compiled.warn_if_missing()


def __getattr__(name: str) -> ModuleType:
    """Import the larger parts when they are first named, so that ``import cnnfast`` is quick."""
    if name in _ON_FIRST_USE:
        return importlib.import_module(f"cnnfast.{name}")
    raise AttributeError(f"module 'cnnfast' has no attribute {name!r}")


__all__ = [
    "Explanation",
    "MethodError",
    "__version__",
    "explain",
    "functional",
    "get_num_threads",
    "info",
    "methods",
    "naive",
    "set_num_threads",
    "threads",
    "trace",
    "use",
    *functional.__all__,
]
