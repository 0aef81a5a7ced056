"""Where the course's randomness comes from."""

from __future__ import annotations

import numpy as np
from numpy.random import mtrand

__all__ = ["global_rng"]


def global_rng() -> np.random.Generator:
    """A generator on the stream of ``np.random``, so that a notebook's ``np.random.seed`` counts.

    ``global_rng().random(shape)`` draws the same numbers as ``np.random.rand(*shape)``.
    """
    return np.random.Generator(mtrand.get_bit_generator())
