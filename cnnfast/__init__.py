"""Convolutional-network layers for NumPy, every operation as readable loops and as fast kernels.

The operations are in `cnnfast.functional` and here; their reference loops in `cnnfast.naive`;
layers in `cnnfast.nn`; optimisers and the training loop in `cnnfast.training`.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from cnnfast import compiled, functional, naive
from cnnfast._version import __version__
from cnnfast.dispatch import Explanation, MethodError, Ran, methods, set_winograd, trace, use
from cnnfast.functional import *  # noqa: F403  (its __all__ is the list of the operations)
from cnnfast.functional import explain
from cnnfast.info import info
from cnnfast.threads import get_num_threads, set_num_threads, threads

__all__ = [
    "Explanation",
    "MethodError",
    "Ran",
    "__version__",
    "data",
    "explain",
    "functional",
    "get_num_threads",
    "gradcheck",
    "info",
    "methods",
    "models",
    "naive",
    "nn",
    "set_num_threads",
    "set_winograd",
    "threads",
    "trace",
    "training",
    "use",
]
__all__ += functional.__all__

# The larger parts are imported when they are first named, so that ``import cnnfast`` is quick.
if TYPE_CHECKING:
    from cnnfast import data, gradcheck, models, nn, training
else:

    def __getattr__(name: str) -> ModuleType:
        if name in ("data", "gradcheck", "models", "nn", "training"):
            return importlib.import_module(f"cnnfast.{name}")
        raise AttributeError(f"module 'cnnfast' has no attribute {name!r}")


compiled.warn_if_missing()
