"""Minibatches, shuffled anew in every epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["EpochOrder", "minibatches"]

Array = NDArray[Any]


def minibatches(
    X: Array,
    y: Array,
    batch_size: int = 100,
    *,
    rng: np.random.Generator | None = None,
    drop_last: bool = False,
) -> Iterator[tuple[Array, Array]]:
    """One pass over the examples in batches.

    Parameters
    ----------
    X, y : ndarray, (N, ...) and (N, ...)
        Examples and labels.
    batch_size : int
        The last batch may be smaller.
    rng : numpy.random.Generator, optional
        Shuffles the examples; without it they come in order, as views.
    drop_last : bool
        Leave out a smaller last batch.

    Yields
    ------
    tuple[ndarray, ndarray]
        Examples and labels of a batch.

    Examples
    --------
    >>> X, y = np.arange(10.0).reshape(5, 2), np.arange(5)
    >>> [labels.tolist() for _, labels in minibatches(X, y, 2)]
    [[0, 1], [2, 3], [4]]
    """
    N = len(X)
    if len(y) != N:
        raise ValueError(f"minibatches: X has {N} examples, y has {len(y)}")
    if batch_size < 1:
        raise ValueError(f"minibatches: batch_size must be at least 1, got {batch_size}")
    stop = N - N % batch_size if drop_last else N
    order = None if rng is None else rng.permutation(N)
    for start in range(0, stop, batch_size):
        part = slice(start, min(start + batch_size, stop))
        if order is None:
            yield X[part], y[part]
        else:
            yield X[order[part]], y[order[part]]


class EpochOrder:
    """Endless batches of indices, in a new random order in each epoch, that can be resumed.

    An epoch has ``max(N // batch_size, 1)`` batches, all of one size: what is left over is left
    out, and is someone else's turn in the next epoch.

    Parameters
    ----------
    num_examples : int
        N.
    batch_size : int
        At least 1; more than N means N.
    rng : numpy.random.Generator
        Draws a permutation at the start of each epoch.

    Attributes
    ----------
    order : ndarray of int64, (N,)
        The order of the epoch under way. With `position` and the state of `rng`, all there is to
        resume from.
    position : int
        How many batches of it have been given out.
    """

    def __init__(self, num_examples: int, batch_size: int, rng: np.random.Generator) -> None:
        if num_examples < 1:
            raise ValueError(f"EpochOrder: num_examples must be at least 1, got {num_examples}")
        if batch_size < 1:
            raise ValueError(f"EpochOrder: batch_size must be at least 1, got {batch_size}")
        self.batch_size = min(batch_size, num_examples)
        self.batches_per_epoch = num_examples // self.batch_size
        self.rng = rng
        self.order: NDArray[np.int64] = np.arange(num_examples, dtype=np.int64)
        self.position = self.batches_per_epoch

    def next(self) -> NDArray[np.int64]:
        """The indices of the next batch."""
        if self.position == self.batches_per_epoch:
            self.order = self.rng.permutation(len(self.order))
            self.position = 0
        start = self.position * self.batch_size
        self.position += 1
        return self.order[start : start + self.batch_size]
