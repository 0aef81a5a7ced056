"""The handwritten digits that come with scikit-learn: 1,797 real images of 8x8 pixels."""

from __future__ import annotations

from typing import Any

import numpy as np

from cnnfast.data.dataset import Dataset, checked_dtype

__all__ = ["load_digits"]


def load_digits(*, dtype: Any = np.float32) -> Dataset:
    """Optical recognition of handwritten digits, from scikit-learn's own files (no network).

    The split is stratified and always the same: of each class 20% for the test, 10% for
    validation, 1,259, 179 and 359 images in all.

    Parameters
    ----------
    dtype : dtype
        float32 or float64.

    Returns
    -------
    Dataset
        Images (N, 1, 8, 8), the 16 grey levels scaled to [0, 1].

    Raises
    ------
    ImportError
        Without scikit-learn.

    References
    ----------
    Alpaydin and Kaynak, UCI repository, 1998 (the test part of it).
    """
    dtype = checked_dtype("load_digits", dtype)
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            "load_digits: the images come with scikit-learn, which is not installed "
            "(pip install 'cnnfast[data]')"
        ) from error
    bunch = datasets.load_digits()
    X = (bunch.images / 16.0).astype(dtype)[:, None]
    y = bunch.target.astype(np.int64)
    rng = np.random.default_rng(0)
    parts: tuple[list[Any], ...] = ([], [], [])
    for label in range(10):
        members = rng.permutation(np.flatnonzero(y == label))
        num_test, num_val = round(0.2 * len(members)), round(0.1 * len(members))
        cuts = np.split(members, [num_test, num_test + num_val])
        for part, cut in zip(parts, cuts, strict=True):
            part.append(cut)
    # Shuffled once more: the classes must not stand in order.
    test, val, train = (rng.permutation(np.concatenate(part)) for part in parts)
    return Dataset(
        X[train],
        y[train],
        X[val],
        y[val],
        X[test],
        y[test],
        classes=tuple("0123456789"),
        name="digits",
    )
