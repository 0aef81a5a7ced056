"""The course's ``data_utils``."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnfast.data import load_cifar10

__all__ = ["get_CIFAR10_data"]


def get_CIFAR10_data(
    num_training: int = 49000,
    num_validation: int = 1000,
    num_test: int = 1000,
    subtract_mean: bool = True,
    *,
    directory: str | os.PathLike[str] = "cs231n/datasets",
) -> dict[str, NDArray[Any]]:
    """CIFAR-10 for the course's networks: pixels 0 to 255, less the mean training image.

    Parameters
    ----------
    num_training, num_test : int
        So many from the beginning of the training and of the test images.
    num_validation : int
        So many of the training images, those that follow.
    subtract_mean : bool
        Whether to subtract the mean of the training images taken.
    directory : path
        Holds the folder ``cifar-10-batches-py`` or what is in it; see `cnnfast.data.load_cifar10`.
        In UCLA's homework it is ``"."``.

    Returns
    -------
    dict
        ``X_train, X_val, X_test``, float32 of shape (N, 3, 32, 32), and ``y_train, y_val, y_test``.
    """
    data = load_cifar10(directory, num_val=num_validation)
    if num_training < len(data.y_train):
        following = slice(num_training, num_training + num_validation)
        X, y = data.X_train[following], data.y_train[following]
        rest = num_validation - len(y)
        X_val = np.concatenate([X, data.X_val[:rest]])
        data = replace(data, X_val=X_val, y_val=np.concatenate([y, data.y_val[:rest]]))
    data = data.take(num_training, test=num_test)
    arrays = (data.centered() if subtract_mean else data).asdict()
    for name in ("X_train", "X_val", "X_test"):
        arrays[name] *= 255
    return arrays
