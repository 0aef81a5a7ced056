"""MNIST from its four official idx files, gzipped or not."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnfast.data.dataset import DataError, Dataset, checked_dtype, split_off

__all__ = ["load_mnist"]

PAGE = "http://yann.lecun.com/exdb/mnist/"
MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_WHERE = f"{MIRROR} (PyTorch's mirror; their own page, {PAGE}, no longer serves them)"

# The high bytes say uint8, the last the number of dimensions.
_IMAGES, _LABELS = 0x0803, 0x0801
# No deflate stream holds more than this many bytes for each of its own.
_MOST_INFLATION = 1032


def load_mnist(
    directory: str | os.PathLike[str], *, num_val: int = 5000, dtype: Any = np.float32
) -> Dataset:
    """MNIST, or a data set in its format (Fashion-MNIST, KMNIST), from a directory.

    Parameters
    ----------
    directory : path
        Holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``,
        ``t10k-images-idx3-ubyte`` and ``t10k-labels-idx1-ubyte``, each as it is or with ``.gz``;
        or has them in a folder ``mnist`` or ``MNIST/raw``.
    num_val : int
        The last so many training images are the validation part.
    dtype : dtype
        float32 or float64.

    Returns
    -------
    Dataset
        Images (N, 1, 28, 28) scaled to [0, 1]: 55,000, 5,000 and 10,000.

    Raises
    ------
    FileNotFoundError
        If a file is not there.
    DataError
        If a file is damaged, or is something else.

    References
    ----------
    LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document
    recognition", 1998. The format is described on the data set's own page,
    http://yann.lecun.com/exdb/mnist/, which no longer serves the files; PyTorch's mirror,
    https://ossci-datasets.s3.amazonaws.com/mnist/, does.
    """
    dtype = checked_dtype("load_mnist", dtype)
    X, y = _read_pair(Path(directory), "train", dtype)
    X_test, y_test = _read_pair(Path(directory), "t10k", dtype)
    if X.shape[1:] != X_test.shape[1:]:
        raise DataError(
            f"load_mnist: training images are {X.shape[2]}x{X.shape[3]}, "
            f"test images {X_test.shape[2]}x{X_test.shape[3]}, in {directory}"
        )
    (X, y), (X_val, y_val) = split_off("load_mnist", X, y, num_val)
    return Dataset(X, y, X_val, y_val, X_test, y_test, classes=tuple("0123456789"), name="mnist")


def _read_pair(
    directory: Path, part: str, dtype: np.dtype[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    image_file = _find(directory, f"{part}-images-idx3-ubyte")
    label_file = _find(directory, f"{part}-labels-idx1-ubyte")
    images = _read_idx(image_file, _IMAGES)
    labels = _read_idx(label_file, _LABELS)
    if len(images) != len(labels):
        raise _damaged(label_file, f"has {len(labels)} labels for {len(images)} images")
    if labels.size and labels.max() > 9:
        raise _damaged(label_file, f"has a label {labels.max()}, expected 0 to 9")
    return np.divide(images[:, None], dtype.type(255)), labels.astype(np.int64)


def _find(directory: Path, name: str) -> Path:
    folders = [directory, directory / "mnist", directory / "MNIST" / "raw"]
    for folder in folders:
        for candidate in (folder / name, folder / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    raise FileNotFoundError(
        f"load_mnist: neither {name} nor {name}.gz in {directory} (nor in its mnist or MNIST/raw); "
        f"the four files are at {_WHERE}"
    )


def _read_idx(path: Path, magic: int) -> NDArray[np.uint8]:
    """The array of one idx file: big-endian magic number and sizes, then bytes."""
    ndim = magic & 0xFF
    zipped = path.suffix == ".gz"
    try:
        with gzip.open(path) if zipped else path.open("rb") as file:
            header = file.read(4 + 4 * ndim)
            if len(header) < 4 + 4 * ndim:
                raise _damaged(path, f"ends after {len(header)} bytes, inside its header")
            found, *shape = struct.unpack(f">{1 + ndim}I", header)
            if found != magic:
                raise _damaged(path, f"starts with the number {found}, expected {magic}")
            size = int(np.prod(shape, dtype=object))
            # Before a false header makes us ask for the memory it claims.
            if size > path.stat().st_size * (_MOST_INFLATION if zipped else 1):
                raise _damaged(
                    path, f"claims {_times(shape)} bytes, which is more than it can hold"
                )
            data = file.read(size)
            rest = file.read(1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(path, f"is no whole gzip file ({error})") from error
    if len(data) != size or rest:
        came = "more" if rest else str(len(data))
        raise _damaged(path, f"claims {_times(shape)} bytes and holds {came}")
    if size == 0:
        raise _damaged(path, f"claims {_times(shape)} bytes: it is empty")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _times(shape: list[int]) -> str:
    return "x".join(map(str, shape))


def _damaged(path: Path, what: str) -> DataError:
    return DataError(f"load_mnist: {path} {what}; good files are at {_WHERE}")
