"""The one shape that every loader returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["DataError", "Dataset"]

Array = NDArray[Any]


class DataError(ValueError):
    """A data file is damaged, or is not what its name says."""


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Labelled images in three parts: training, validation, test.

    Attributes
    ----------
    X_train, X_val, X_test : ndarray of float, (N, C, H, W)
        Pixels, scaled to [0, 1] by the loaders.
    y_train, y_val, y_test : ndarray of int64, (N,)
        Labels, indices into `classes`.
    classes : tuple[str, ...]
        What the labels are called.
    name : str
        Where the images come from, such as ``"mnist"``.
    """

    X_train: Array
    y_train: Array
    X_val: Array
    y_val: Array
    X_test: Array
    y_test: Array
    classes: tuple[str, ...]
    name: str

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one image, (C, H, W)."""
        return self.X_train.shape[1:]

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def asdict(self) -> dict[str, Array]:
        """The six arrays by name, as the courses' `Solver` takes them. Not copied."""
        return {f"{a}_{part}": getattr(self, f"{a}_{part}") for part in _PARTS for a in "Xy"}

    def take(
        self, train: int | None = None, val: int | None = None, test: int | None = None
    ) -> Dataset:
        """The first so many examples of each part, as views; None keeps all.

        Examples
        --------
        >>> from cnnfast.data import load_digits
        >>> load_digits().take(train=50)  # doctest: +SKIP
        Dataset('digits', 50 train, 179 val, 359 test, images (1, 8, 8), 10 classes)
        """
        changes = {}
        for part, count in zip(_PARTS, (train, val, test), strict=True):
            if count is None:
                continue
            have = len(getattr(self, f"y_{part}"))
            if not 1 <= count <= have:
                raise ValueError(f"take: {part} must be between 1 and {have}, got {count}")
            for a in "Xy":
                changes[f"{a}_{part}"] = getattr(self, f"{a}_{part}")[:count]
        return replace(self, **changes)

    def standardized(self) -> Dataset:
        """Images with mean 0 and standard deviation 1 in each channel of the training part.

        The training part's figures are used for all three. Copies the images; labels are shared.
        A channel that is constant is only centred.
        """
        axes = (0, *range(2, self.X_train.ndim))
        mean = self._mean(axes, lambda x: x)
        variance = self._mean(axes, lambda x: (x - mean) ** 2)
        return self._mapped(mean, np.sqrt(np.where(variance > 0, variance, 1.0)))

    def centered(self) -> Dataset:
        """Images less the mean image of the training part, as in Stanford's CS231n.

        Copies the images; labels are shared.
        """
        mean = self._mean((0,), lambda x: x)
        return self._mapped(mean, np.ones_like(mean))

    def _mean(self, axes: tuple[int, ...], of: Callable[[Array], Array]) -> Array:
        """Mean of a function of the training images in float64, some at a time to save memory."""
        X = self.X_train
        parts = (of(X[i : i + 1000].astype(np.float64)) for i in range(0, len(X), 1000))
        total = sum(part.sum(axis=axes, keepdims=True) for part in parts)
        return np.asarray(total) * (np.size(total) / X.size)

    def _mapped(self, mean: Array, std: Array) -> Dataset:
        dtype = self.X_train.dtype
        shift, scale = mean.astype(dtype), (1.0 / std).astype(dtype)
        images = {}
        for part in _PARTS:
            x = getattr(self, f"X_{part}") - shift
            x *= scale
            images[f"X_{part}"] = x
        return replace(self, **images)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(getattr(self, f'y_{part}')):,} {part}" for part in _PARTS)
        return (
            f"Dataset({self.name!r}, {sizes}, images {self.input_shape}, "
            f"{self.num_classes} classes)"
        )


_PARTS = ("train", "val", "test")


def split_off(
    who: str, X: Array, y: Array, num_val: int
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """(X, y) of all but the last `num_val` examples, and of those; views."""
    if isinstance(num_val, bool) or not isinstance(num_val, int | np.integer):
        raise TypeError(f"{who}: num_val must be an integer, got {num_val!r}")
    if not 1 <= num_val < len(y):
        raise ValueError(
            f"{who}: num_val must be at least 1 and less than the {len(y)} training images, "
            f"got {num_val}"
        )
    cut = len(y) - num_val
    return (X[:cut], y[:cut]), (X[cut:], y[cut:])


def checked_dtype(who: str, dtype: Any) -> np.dtype[Any]:
    """The floating dtype that images are asked for in."""
    result: np.dtype[Any] = np.dtype(dtype)
    if result not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise TypeError(f"{who}: dtype must be float32 or float64, got {result}")
    return result
