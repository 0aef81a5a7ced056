"""CIFAR-10 from its official python or binary files.

The python files are pickles, and a pickle may run any code when it is loaded. These are read with
an unpickler that can build nothing but dicts, lists, numbers, strings and arrays of bytes, so that
a file from anywhere is safe to open.
"""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from cnnfast.data.dataset import DataError, Dataset, checked_dtype, split_off

__all__ = ["load_cifar10"]

PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32

Bytes = NDArray[np.uint8]


def load_cifar10(
    directory: str | os.PathLike[str], *, num_val: int = 1000, dtype: Any = np.float32
) -> Dataset:
    """CIFAR-10 from a directory with its files in the python or the binary layout.

    Parameters
    ----------
    directory : path
        Holds ``data_batch_1`` to ``data_batch_5`` and ``test_batch``, or the same with ``.bin``;
        or has them in a folder ``cifar-10-batches-py`` or ``cifar-10-batches-bin``.
    num_val : int
        The last so many training images are the validation part, as in the courses.
    dtype : dtype
        float32 or float64.

    Returns
    -------
    Dataset
        Images (N, 3, 32, 32) scaled to [0, 1]: 49,000, 1,000 and 10,000.

    Raises
    ------
    FileNotFoundError
        If a file is not there.
    DataError
        If a file is damaged, is something else, or asks for an object that CIFAR-10 has not.

    References
    ----------
    Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
    https://www.cs.toronto.edu/~kriz/cifar.html
    """
    dtype = checked_dtype("load_cifar10", dtype)
    files, read = _find(Path(directory))
    batches = [read(path) for path in files]
    *train, test = batches
    sizes = [len(labels) for _, labels in train]
    if len(set(sizes)) > 1:
        raise DataError(
            f"load_cifar10: the training batches in {files[0].parent} hold {sizes} images, "
            f"expected as many in each; a good copy is at {PAGE}"
        )
    X, y = _joined(train, dtype)
    X_test, y_test = _joined([test], dtype)
    (X, y), (X_val, y_val) = split_off("load_cifar10", X, y, num_val)
    return Dataset(X, y, X_val, y_val, X_test, y_test, classes=CLASSES, name="cifar10")


def _joined(
    batches: list[tuple[Bytes, list[int]]], dtype: np.dtype[Any]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    X = np.empty((sum(len(labels) for _, labels in batches), *_SHAPE), dtype)
    at = 0
    for pixels, labels in batches:
        part = X[at : at + len(labels)]
        np.divide(pixels.reshape(part.shape), dtype.type(255), out=part)
        at += len(labels)
    return X, np.array([label for _, labels in batches for label in labels], np.int64)


def _find(directory: Path) -> tuple[list[Path], Callable[[Path], tuple[Bytes, list[int]]]]:
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for folder, suffix, read in (
        (directory, "", _read_pickle),
        (directory / "cifar-10-batches-py", "", _read_pickle),
        (directory, ".bin", _read_binary),
        (directory / "cifar-10-batches-bin", ".bin", _read_binary),
    ):
        files = [folder / f"{name}{suffix}" for name in names]
        missing = [path.name for path in files if not path.is_file()]
        if not missing:
            return files, read
        if len(missing) < len(files):
            raise FileNotFoundError(
                f"load_cifar10: {', '.join(missing)} not in {folder}; the archives are at {PAGE}"
            )
    archives = sorted(path.name for path in directory.glob("cifar-10-*.tar.gz"))
    unpack = f"{archives[0]} is there, unpack it (tar xf)" if archives else f"get it at {PAGE}"
    raise FileNotFoundError(
        f"load_cifar10: no data_batch_1 in {directory} or its cifar-10-batches-py, and no "
        f"data_batch_1.bin there or in its cifar-10-batches-bin; {unpack}"
    )


def _read_binary(path: Path) -> tuple[Bytes, list[int]]:
    """Records of one label byte and 3,072 pixels, channel by channel."""
    data = np.fromfile(path, np.uint8)
    if data.size == 0 or data.size % (1 + _PIXELS):
        raise _damaged(path, f"has {data.size} bytes, which is no multiple of {1 + _PIXELS}")
    records = data.reshape(-1, 1 + _PIXELS)
    return records[:, 1:], _checked_labels(path, records[:, 0].tolist())


def _read_pickle(path: Path) -> tuple[Bytes, list[int]]:
    with path.open("rb") as file:
        try:
            batch = _Unpickler(path, file).load()
        except DataError:
            raise
        except Exception as error:
            # A damaged pickle fails in any way at all, even with an IndexError or MemoryError.
            # The file has a say in the message: it is quoted, and no more than a line of it.
            why = f"{type(error).__name__} {str(error)[:99]!a}"
            raise _damaged(path, f"is no CIFAR-10 batch ({why})") from error
    if not isinstance(batch, dict):
        raise _damaged(path, f"holds a {type(batch).__name__}, expected a dict")
    for key in (b"data", b"labels"):
        if key not in batch:
            raise _damaged(path, f"has no entry {key!r}")
    data, labels = batch[b"data"], batch[b"labels"]
    if not isinstance(data, _Array) or data.value is None:
        raise _damaged(path, f"b'data' is a {type(data).__name__.strip('_')}, expected an array")
    if data.value.ndim != 2 or data.value.shape[1] != _PIXELS or not len(data.value):
        raise _damaged(path, f"b'data' has shape {data.value.shape}, expected (N, {_PIXELS})")
    if not isinstance(labels, list):
        raise _damaged(path, f"b'labels' is a {type(labels).__name__}, expected a list")
    if len(labels) != len(data.value):
        raise _damaged(path, f"has {len(labels)} labels for {len(data.value)} images")
    return data.value, _checked_labels(path, labels)


def _checked_labels(path: Path, labels: list[Any]) -> list[int]:
    if not all(type(label) is int and 0 <= label <= 9 for label in labels):
        raise _damaged(path, "has a label that is no integer from 0 to 9")
    return labels


def _damaged(path: Path, what: str) -> DataError:
    return DataError(f"load_cifar10: {path} {what}; a good copy is at {PAGE}")


class _Array:
    """Stands for ndarray and for NumPy's `_reconstruct` while a batch is unpickled.

    Building the array here, from bytes that are checked, keeps NumPy's own unpickling (object
    arrays, any size) out of reach.
    """

    __slots__ = ("value",)

    def __init__(self, *_: Any) -> None:
        self.value: Bytes | None = None

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Dtype) or dtype.name not in ("u1", b"u1"):
            raise ValueError("an array that is not uint8")
        if not isinstance(data, bytes) or math.prod(shape) != len(data):
            raise ValueError("an array whose bytes do not fill its shape")
        array = np.frombuffer(data, np.uint8)
        self.value = array.reshape(shape, order="F" if fortran else "C")


class _Dtype:
    """Stands for dtype; keeps the name that it is made with."""

    __slots__ = ("name",)

    def __init__(self, name: Any, *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """Byte order and such, which uint8 has not."""


class _Latin1:
    """Stands for `_codecs.encode`, with which Python 3 writes bytes into old protocols."""

    __slots__ = ()

    def __new__(cls, text: str, codec: Any) -> Any:
        if codec not in ("latin1", b"latin1"):
            raise ValueError("text in a codec other than latin1")
        return text.encode("latin1")

    def __setstate__(self, state: Any) -> None:
        """Never reached; without it a pickle could set attributes of this class."""


_ALLOWED: dict[tuple[str, str], type] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Latin1,
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, path: Path, file: BinaryIO) -> None:
        super().__init__(file, encoding="bytes")
        self._path = path

    def find_class(self, module: str, name: str) -> type:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            wanted = ascii(f"{module}.{name}"[:99])
            raise _damaged(
                self._path, f"asks for {wanted}, which no CIFAR-10 file needs: refused"
            ) from None
