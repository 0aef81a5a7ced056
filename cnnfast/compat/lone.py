"""Batch normalisation of a batch with one value per channel.

PyTorch refuses to train on it, and so does `cnnfast.batch_norm`; by the courses' formulas the mean
is that value, the variance 0, and the result beta.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from cnnfast.arrays import is_foreign, namespace

__all__ = ["doubled"]


def doubled(x: Any) -> Any:
    """x, or where it has one value per channel, x twice: that has the same mean and variance.

    Examples
    --------
    >>> import numpy as np
    >>> doubled(np.ones((1, 2))).shape, doubled(np.ones((3, 2))).shape
    ((2, 2), (3, 2))
    """
    x = x if is_foreign(x) else np.asarray(x)
    N, *rest = x.shape or (0,)
    if N * prod(rest[1:]) != 1:
        return x
    xp = namespace(x)
    return xp.reshape(xp.stack([x, x]), (2, *rest))
