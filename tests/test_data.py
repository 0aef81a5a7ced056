"""The loaders, on files made here in the official layouts and on the real ones where they are.

CNNFAST_DATA names a folder with `mnist` and `cifar-10-batches-py` in it; without it the tests of
the real files are skipped.
"""

from __future__ import annotations

import gzip
import os
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from cnnfast.data import (
    Augment,
    DataError,
    Dataset,
    EpochOrder,
    Stages,
    augment,
    load_cifar10,
    load_digits,
    load_mnist,
    minibatches,
)

RNG = np.random.default_rng


def real(name: str) -> Path:
    folder = os.environ.get("CNNFAST_DATA")
    if not folder:
        pytest.skip("CNNFAST_DATA names no folder of real data")
    path = Path(folder) / name
    if not path.is_dir():
        pytest.skip(f"no {name} in CNNFAST_DATA")
    return path


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    text = str(error.value)
    assert text
    assert text.isprintable()
    return text


# --- digits


def test_digits_split_is_stratified_and_fixed() -> None:
    pytest.importorskip("sklearn")
    data = load_digits()
    assert repr(data) == (
        "Dataset('digits', 1,259 train, 179 val, 359 test, images (1, 8, 8), 10 classes)"
    )
    assert (data.input_shape, data.num_classes) == ((1, 8, 8), 10)
    again = load_digits(dtype=np.float64)
    for part, share in (("train", 126), ("val", 18), ("test", 36)):
        X, y = getattr(data, f"X_{part}"), getattr(data, f"y_{part}")
        assert (X.dtype, y.dtype) == (np.float32, np.int64)
        assert (X.min(), X.max()) == (0.0, 1.0)
        assert np.abs(np.bincount(y) - share).max() <= 4
        np.testing.assert_array_equal(getattr(again, f"X_{part}"), X)
        np.testing.assert_array_equal(getattr(again, f"y_{part}"), y)
    # No image is in two parts, and none is lost.
    from sklearn.datasets import load_digits as original

    pixels = np.concatenate([data.X_train, data.X_val, data.X_test]).reshape(-1, 64) * 16
    rows = sorted(map(tuple, pixels.tolist()))
    assert rows == sorted(map(tuple, original().data.tolist()))


def test_digits_need_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"load_digits: .*pip install 'cnnfast\[data\]'"):
        load_digits()


# --- Dataset


def tiny_dataset() -> Dataset:
    rng = RNG(0)
    X = rng.normal(3.0, 2.0, (12, 2, 3, 5))
    X[:, 1] = 7.0
    y = np.arange(12) % 3
    return Dataset(X[:6], y[:6], X[6:9], y[6:9], X[9:], y[9:], ("a", "b", "c"), "tiny")


def test_dataset_as_dict_and_take() -> None:
    data = tiny_dataset()
    assert list(data.asdict()) == ["X_train", "y_train", "X_val", "y_val", "X_test", "y_test"]
    small = data.take(train=2, test=1)
    assert [len(a) for a in small.asdict().values()] == [2, 2, 3, 3, 1, 1]
    assert np.shares_memory(small.X_train, data.X_train)
    with pytest.raises(ValueError, match="take: train must be between 1 and 6, got 7"):
        data.take(train=7)


def test_dataset_standardized_and_centered() -> None:
    data = tiny_dataset()
    before = data.X_train.copy()
    z = data.standardized()
    np.testing.assert_allclose(z.X_train[:, 0].mean(), 0, atol=1e-14)
    np.testing.assert_allclose(z.X_train[:, 0].std(), 1)
    np.testing.assert_array_equal(z.X_train[:, 1], 0)
    mean, std = before[:, 0].mean(), before[:, 0].std()
    np.testing.assert_allclose(z.X_test[:, 0], (data.X_test[:, 0] - mean) / std, atol=1e-13)
    c = data.centered()
    np.testing.assert_allclose(c.X_val, data.X_val - before.mean(axis=0), atol=1e-14)
    np.testing.assert_array_equal(data.X_train, before)


# --- MNIST


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wb") as file:
        file.write(header + array.astype(np.uint8).tobytes())


def write_mnist(
    folder: Path, suffix: str = "", shape: tuple[int, int] = (28, 28)
) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    rng = RNG(0)
    arrays = {}
    for part, n in (("train", 20), ("t10k", 6)):
        arrays[f"{part}-images-idx3-ubyte"] = rng.integers(0, 256, (n, *shape), np.uint8)
        arrays[f"{part}-labels-idx1-ubyte"] = rng.integers(0, 10, n, np.uint8)
    for name, array in arrays.items():
        write_idx(folder / f"{name}{suffix}", array)
    return arrays


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("inside", ["", "mnist", "MNIST/raw"])
def test_mnist_files(tmp_path: Path, suffix: str, inside: str) -> None:
    arrays = write_mnist(tmp_path / inside, suffix, shape=(9, 7))
    data = load_mnist(tmp_path, num_val=5)
    assert [len(a) for a in data.asdict().values()] == [15, 15, 5, 5, 6, 6]
    assert data.input_shape == (1, 9, 7)
    images = arrays["train-images-idx3-ubyte"]
    np.testing.assert_array_equal(data.X_train[:, 0], images[:15] / np.float32(255))
    np.testing.assert_array_equal(data.X_val[:, 0], images[15:] / np.float32(255))
    np.testing.assert_array_equal(data.y_val, arrays["train-labels-idx1-ubyte"][15:])
    np.testing.assert_array_equal(data.y_test, arrays["t10k-labels-idx1-ubyte"])
    assert (data.X_test.dtype, data.y_test.dtype) == (np.float32, np.int64)
    assert load_mnist(tmp_path, num_val=5, dtype=np.float64).X_test.dtype == np.float64


def test_mnist_missing_files_are_named(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError) as error:
        load_mnist(tmp_path, num_val=5)
    text = one_line(error)
    for part in ("t10k-labels-idx1-ubyte", str(tmp_path), "ossci-datasets.s3.amazonaws.com/mnist"):
        assert part in text
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte"):
        load_mnist(tmp_path / "nowhere")


def relabel(data: bytes, value: int) -> bytes:
    return data[:-1] + bytes([value])


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("train-images-idx3-ubyte", lambda d: d[:-1], "claims 20x28x28 bytes"),
        ("train-images-idx3-ubyte", lambda d: d + b"x", "claims 20x28x28 bytes and holds more"),
        ("train-images-idx3-ubyte", lambda d: d[:7], "ends after 7 bytes, inside its header"),
        ("train-images-idx3-ubyte", lambda d: b"", "ends after 0 bytes"),
        (
            "train-images-idx3-ubyte",
            lambda d: b"\0\0\x08\x01" + d[4:],
            "number 2049, expected 2051",
        ),
        ("train-images-idx3-ubyte", lambda d: d[:4] + b"\xff" * 12, "more than it can hold"),
        (
            "train-labels-idx1-ubyte",
            lambda d: b"\0\0\x08\x03" + d[4:],
            "number 2051, expected 2049",
        ),
        (
            "train-labels-idx1-ubyte",
            lambda d: d[:4] + b"\0\0\0\x13" + d[8:-1],
            "19 labels for 20 im",
        ),
        ("t10k-labels-idx1-ubyte", lambda d: d[:4] + b"\0" * 4, "it is empty"),
        ("t10k-labels-idx1-ubyte", lambda d: relabel(d, 10), "has a label 10, expected 0 to 9"),
    ],
)
def test_mnist_damaged_contents(
    tmp_path: Path, suffix: str, name: str, damage: Callable[[bytes], bytes], says: str
) -> None:
    write_mnist(tmp_path, suffix)
    path = tmp_path / f"{name}{suffix}"
    whole = path.read_bytes()
    if suffix:
        path.write_bytes(gzip.compress(damage(gzip.decompress(whole))))
    else:
        path.write_bytes(damage(whole))
    with pytest.raises(DataError) as error:
        load_mnist(tmp_path, num_val=5)
    text = one_line(error)
    assert says in text
    assert str(path) in text
    assert "https://ossci-datasets.s3.amazonaws.com/mnist/" in text


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d[: len(d) // 2],
        lambda d: d[:-4],
        lambda d: d[:-6] + b"\0\0" + d[-4:],
        lambda d: b"no gzip at all",
        lambda d: d[:12] + bytes(b ^ 0x55 for b in d[12:60]) + d[60:],
    ],
)
def test_mnist_damaged_gzip(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    write_mnist(tmp_path, ".gz")
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz is no whole gzip file"):
        load_mnist(tmp_path, num_val=5)


def test_mnist_parts_must_fit(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    write_idx(tmp_path / "t10k-images-idx3-ubyte", np.zeros((6, 28, 27)))
    with pytest.raises(DataError, match="training images are 28x28, test images 28x27"):
        load_mnist(tmp_path, num_val=5)
    write_mnist(tmp_path)
    for num_val in (0, 20):
        with pytest.raises(ValueError, match="load_mnist: num_val must be at least 1 and less tha"):
            load_mnist(tmp_path, num_val=num_val)
    with pytest.raises(TypeError, match="load_mnist: dtype must be float32 or float64, got int64"):
        load_mnist(tmp_path, dtype=int)


def test_mnist_itself() -> None:
    data = load_mnist(real("mnist"))
    assert [len(a) for a in data.asdict().values()] == [55000, 55000, 5000, 5000, 10000, 10000]
    assert data.input_shape == (1, 28, 28)
    assert (data.X_train.min(), data.X_train.max()) == (0.0, 1.0)
    assert np.bincount(data.y_test).tolist() == [
        *(980, 1135, 1032, 1010, 982),
        *(892, 958, 1028, 974, 1009),
    ]


# --- CIFAR-10

NAMES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2's strings, as the official files have them."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_bytes(self, obj: bytes) -> None:
        if len(obj) < 256:
            self.write(b"U" + bytes([len(obj)]) + obj)  # type: ignore[attr-defined]
        else:
            self.write(b"T" + struct.pack("<i", len(obj)) + obj)  # type: ignore[attr-defined]
        self.memoize(obj)  # type: ignore[attr-defined]

    dispatch[bytes] = save_bytes


def write_batch(path: Path, batch: Any, python: int = 2, protocol: int = 2) -> None:
    with path.open("wb") as file:
        (Python2Pickler if python == 2 else pickle.Pickler)(file, protocol).dump(batch)
    # The files on the official page were written when NumPy had this module name.
    old, new = b"cnumpy.core.multiarray\n", b"cnumpy._core.multiarray\n"
    if python == 2:
        path.write_bytes(path.read_bytes().replace(new, old))


def batch_of(n: int, rng: np.random.Generator) -> dict[bytes, Any]:
    return {
        b"batch_label": b"a batch",
        b"labels": rng.integers(0, 10, n).tolist(),
        b"data": rng.integers(0, 256, (n, 3072), dtype=np.uint8),
        b"filenames": [f"{i}.png".encode() for i in range(n)],
    }


def write_cifar(folder: Path, **kwargs: Any) -> list[dict[bytes, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    rng = RNG(0)
    batches = [batch_of(4, rng) for _ in NAMES]
    for name, batch in zip(NAMES, batches, strict=True):
        write_batch(folder / name, batch, **kwargs)
    return batches


def check_cifar(folder: Path, batches: list[dict[bytes, Any]]) -> None:
    data = load_cifar10(folder, num_val=3)
    assert [len(a) for a in data.asdict().values()] == [17, 17, 3, 3, 4, 4]
    assert data.input_shape == (3, 32, 32)
    assert data.classes[0] == "airplane"
    assert data.classes[9] == "truck"
    pixels = np.concatenate([b[b"data"] for b in batches[:5]]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([b[b"labels"] for b in batches[:5]])
    np.testing.assert_array_equal(data.X_train, pixels[:17] / np.float32(255))
    np.testing.assert_array_equal(data.X_val, pixels[17:] / np.float32(255))
    np.testing.assert_array_equal(data.y_val, labels[17:])
    np.testing.assert_array_equal(data.y_test, batches[5][b"labels"])
    assert (data.X_train.dtype, data.y_train.dtype) == (np.float32, np.int64)


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-py"])
@pytest.mark.parametrize(
    "kwargs", [{}, {"python": 3}, {"python": 3, "protocol": 4}, {"python": 3, "protocol": 0}]
)
def test_cifar_python_layout(tmp_path: Path, inside: str, kwargs: dict[str, int]) -> None:
    check_cifar(tmp_path, write_cifar(tmp_path / inside, **kwargs))


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-bin"])
def test_cifar_binary_layout(tmp_path: Path, inside: str) -> None:
    folder = tmp_path / inside
    folder.mkdir(exist_ok=True)
    rng = RNG(0)
    batches = [batch_of(4, rng) for _ in NAMES]
    for name, batch in zip(NAMES, batches, strict=True):
        labels = np.array(batch[b"labels"], np.uint8)[:, None]
        (folder / f"{name}.bin").write_bytes(np.hstack([labels, batch[b"data"]]).tobytes())
    check_cifar(tmp_path, batches)


def test_cifar_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        load_cifar10(tmp_path)
    text = one_line(error)
    for part in ("data_batch_1", "data_batch_1.bin", str(tmp_path), "www.cs.toronto.edu/~kriz/"):
        assert part in text
    (tmp_path / "cifar-10-python.tar.gz").touch()
    with pytest.raises(FileNotFoundError, match=r"cifar-10-python\.tar\.gz is there, unpack it"):
        load_cifar10(tmp_path)
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder)
    (folder / "data_batch_3").unlink()
    (folder / "test_batch").unlink()
    with pytest.raises(FileNotFoundError) as error:
        load_cifar10(tmp_path)
    assert f"data_batch_3, test_batch not in {folder}" in one_line(error)


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def global_call(module: str, name: str, argument: str) -> bytes:
    """A pickle in protocol 0 that calls module.name(argument)."""
    return f"c{module}\n{name}\n(V{argument}\ntR.".encode()


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "posix.system",
        "builtins.eval",
        "builtins.getattr",
        "subprocess.Popen",
        "numpy.load",
        "numpy.core.multiarray.fromfile",
        "numpy._core.multiarray.array",
        "numpy.testing._private.utils.runstring",
        "copyreg._reconstructor",
        "_codecs.lookup",
    ],
)
def test_cifar_refuses_every_other_global(tmp_path: Path, name: str) -> None:
    write_cifar(tmp_path)
    proof = tmp_path / "ran"
    module, function = name.rsplit(".", 1)
    payload = global_call(module, function, f"touch {proof}")
    (tmp_path / "data_batch_2").write_bytes(payload)
    with pytest.raises(DataError) as error:
        load_cifar10(tmp_path, num_val=3)
    text = one_line(error)
    assert f"asks for '{name}', which no CIFAR-10 file needs: refused" in text
    assert str(tmp_path / "data_batch_2") in text
    assert not proof.exists()


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_cifar_runs_no_code_of_a_batch(tmp_path: Path, protocol: int) -> None:
    write_cifar(tmp_path)
    proof = tmp_path / "ran"
    batch = {**batch_of(4, RNG(1)), b"extra": Call(os.system, f"touch {proof}")}
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(batch, protocol))
    with pytest.raises(DataError, match="refused"):
        load_cifar10(tmp_path, num_val=3)
    assert not proof.exists()


DTYPE_U1 = b"cnumpy\ndtype\n(Vu1\nI0\nI1\ntR"
RECONSTRUCT = b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR"


@pytest.mark.parametrize(
    "payload",
    [
        # An array far larger than the file, of objects, or whose bytes are a list.
        b"cnumpy\nndarray\n((L1000000000000L\ntVd\ntR.",
        RECONSTRUCT + b"(I1\n(L1000000000000L\nt" + DTYPE_U1 + b"I00\nVxx\ntb.",
        RECONSTRUCT + b"(I1\n(I1\ntcnumpy\ndtype\n(VO8\ntRI00\n(lp0\nI1\natb.",
        RECONSTRUCT + b"(I1\n(I2\nt" + DTYPE_U1 + b"I00\n(lp0\ntb.",
        # Setting attributes of the classes that are allowed, and a codec that is no plain text.
        b"cnumpy\ndtype\n}Vname\nVx\nsb.",
        b"c_codecs\nencode\nN}Vx\nI1\ns\x86b.",
        b"c_codecs\nencode\n(Vabc\nVidna\ntR.",
        # Not a pickle, or not the whole of it.
        b"",
        b"\x80\x02",
        b"\x80\x02}q\x00(U\x04data",
        b"hello",
        b"\x80\xff.",
        b"P1\n.",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"0.",
        # Names that would write on the reader's terminal.
        b"\x80\x04\x8c\x04\x1b[2J\x8c\x03a\nb\x93.",
    ],
)
def test_cifar_damaged_pickles(tmp_path: Path, payload: bytes) -> None:
    write_cifar(tmp_path)
    (tmp_path / "data_batch_1").write_bytes(payload)
    with pytest.raises(DataError) as error:
        load_cifar10(tmp_path, num_val=3)
    text = one_line(error)
    assert str(tmp_path / "data_batch_1") in text
    assert "www.cs.toronto.edu" in text


@pytest.mark.parametrize("size", range(0, 12000, 797))
def test_cifar_truncated_pickle(tmp_path: Path, size: int) -> None:
    write_cifar(tmp_path)
    path = tmp_path / "data_batch_5"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match="data_batch_5 is no CIFAR-10 batch"):
        load_cifar10(tmp_path, num_val=3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({b"data": None}, "b'data' is a NoneType, expected an array"),
        ({b"data": np.zeros((4, 3071), np.uint8)}, r"b'data' has shape \(4, 3071\)"),
        ({b"data": np.zeros(3072, np.uint8)}, r"b'data' has shape \(3072,\)"),
        ({b"data": np.zeros((0, 3072), np.uint8), b"labels": []}, r"has shape \(0, 3072\)"),
        ({b"data": np.zeros((4, 3072), np.int8)}, "an array that is not uint8"),
        ({b"data": np.zeros((4, 3072))}, "an array that is not uint8"),
        ({b"labels": [1, 2, 3]}, "has 3 labels for 4 images"),
        ({b"labels": [1, 2, 3, 10]}, "a label that is no integer from 0 to 9"),
        ({b"labels": [1, 2, 3, -1]}, "a label that is no integer from 0 to 9"),
        ({b"labels": [1, 2, 3, 1.0]}, "a label that is no integer from 0 to 9"),
        ({b"labels": b"abcd"}, "b'labels' is a bytes, expected a list"),
    ],
)
def test_cifar_wrong_contents(tmp_path: Path, change: dict[bytes, Any], says: str) -> None:
    write_cifar(tmp_path)
    write_batch(tmp_path / "test_batch", {**batch_of(4, RNG(1)), **change})
    with pytest.raises(DataError, match=says):
        load_cifar10(tmp_path, num_val=3)


def test_cifar_wrong_counts(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    write_batch(tmp_path / "data_batch_2", batch_of(3, RNG(1)))
    with pytest.raises(DataError, match=r"hold \[4, 3, 4, 4, 4\] images, expected as many in each"):
        load_cifar10(tmp_path, num_val=3)
    write_batch(tmp_path / "data_batch_2", [1, 2])
    with pytest.raises(DataError, match="holds a list, expected a dict"):
        load_cifar10(tmp_path, num_val=3)
    write_batch(tmp_path / "data_batch_2", {b"data": np.zeros((4, 3072), np.uint8)})
    with pytest.raises(DataError, match="has no entry b'labels'"):
        load_cifar10(tmp_path, num_val=3)


@pytest.mark.parametrize("size", [0, 3072, 3073 * 4 - 1])
def test_cifar_truncated_binary(tmp_path: Path, size: int) -> None:
    for name in NAMES:
        (tmp_path / f"{name}.bin").write_bytes(bytes(3073 * 4))
    (tmp_path / "data_batch_4.bin").write_bytes(bytes(size))
    with pytest.raises(DataError, match=rf"data_batch_4\.bin has {size} bytes, which is no multi"):
        load_cifar10(tmp_path, num_val=3)
    (tmp_path / "data_batch_4.bin").write_bytes(b"\x0a" + bytes(3072))
    with pytest.raises(DataError, match="a label that is no integer from 0 to 9"):
        load_cifar10(tmp_path, num_val=3)


def test_cifar_column_major_array(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    batch = batch_of(4, RNG(1))
    pixels = batch[b"data"]
    write_batch(tmp_path / "test_batch", {**batch, b"data": np.asfortranarray(pixels)})
    X = load_cifar10(tmp_path, num_val=3).X_test
    np.testing.assert_array_equal(X, pixels.reshape(-1, 3, 32, 32) / np.float32(255))


def test_cifar_itself() -> None:
    data = load_cifar10(real("cifar-10-batches-py"))
    assert [len(a) for a in data.asdict().values()] == [49000, 49000, 1000, 1000, 10000, 10000]
    assert np.bincount(data.y_test).tolist() == [1000] * 10
    assert (np.bincount(data.y_train) + np.bincount(data.y_val)).tolist() == [5000] * 10
    assert (data.X_train.min(), data.X_train.max()) == (0.0, 1.0)


# --- augmentation and batches


def test_flip_by_hand_and_in_distribution() -> None:
    x = RNG(0).normal(size=(2000, 2, 3, 5)).astype(np.float32)
    copy = x.copy()
    y = augment.flip(x, 0.3, rng=RNG(1))
    np.testing.assert_array_equal(x, copy)
    same = (y == x).all(axis=(1, 2, 3))
    mirrored = (y == x[..., ::-1]).all(axis=(1, 2, 3))
    assert (same ^ mirrored).all()
    assert 500 < mirrored.sum() < 700
    np.testing.assert_array_equal(augment.flip(x, 1.0, rng=RNG(1)), x[..., ::-1])
    np.testing.assert_array_equal(augment.flip(x, 0.0, rng=RNG(1)), x)


def test_shifted_crop_is_a_crop_of_the_padded_image() -> None:
    x = RNG(0).normal(size=(300, 2, 5, 4)).astype(np.float32)
    copy = x.copy()
    y = augment.shifted_crop(x, 2, rng=RNG(1))
    np.testing.assert_array_equal(x, copy)
    assert (y.shape, y.dtype, y.flags.c_contiguous) == (x.shape, x.dtype, True)
    padded = np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2)))
    seen = set()
    for image, crop in zip(padded, y, strict=True):
        places = [
            (i, j)
            for i in range(5)
            for j in range(5)
            if np.array_equal(image[:, i : i + 5, j : j + 4], crop)
        ]
        assert len(places) == 1
        seen.update(places)
    assert len(seen) == 25
    np.testing.assert_array_equal(augment.shifted_crop(x, 0, rng=RNG(1)), x)


def test_augment_uses_its_generator_only() -> None:
    x = RNG(0).normal(size=(10, 3, 6, 6))
    both = Augment(flip=0.5, shift=2)
    np.testing.assert_array_equal(both(x, rng=RNG(3)), both(x, rng=RNG(3)))
    np.testing.assert_array_equal(Augment(flip=0.0, shift=0)(x, rng=RNG(3)), x)
    assert augment.shifted_crop(x[:0], rng=RNG(0)).shape == (0, 3, 6, 6)


def test_augment_names_bad_arguments() -> None:
    x = np.ones((2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"flip: p must be in \[0, 1\], got 2"):
        augment.flip(x, 2, rng=RNG(0))
    with pytest.raises(TypeError, match=r"flip: rng must be a numpy\.random\.Generator, got int"):
        augment.flip(x, rng=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shifted_crop: x must be \(N, C, H, W\), got shape"):
        augment.shifted_crop(x[0], rng=RNG(0))
    with pytest.raises(ValueError, match="shifted_crop: shift must be at least 0, got -1"):
        augment.shifted_crop(x, -1, rng=RNG(0))


def test_alternating_flips_show_each_image_both_ways_in_two_epochs() -> None:
    x = RNG(0).normal(size=(1000, 1, 2, 3)).astype(np.float32)
    copy, indices = x.copy(), np.arange(5000, 6000)
    first, second, third = (augment.alternating_flip(x, indices, epoch) for epoch in range(3))
    np.testing.assert_array_equal(x, copy)
    np.testing.assert_array_equal(first, third)
    turned = (first == x[..., ::-1]).all(axis=(1, 2, 3))
    assert 450 < turned.sum() < 550
    np.testing.assert_array_equal(first[~turned], x[~turned])
    np.testing.assert_array_equal(second[turned], x[turned])
    np.testing.assert_array_equal(second[~turned], x[~turned, ..., ::-1])
    some = np.array([7, 3, 990])
    np.testing.assert_array_equal(augment.alternating_flip(x[some], indices[some], 0), first[some])
    with pytest.raises(ValueError, match="alternating flips need the indices"):
        Augment(flip="alternating", shift=0)(x, rng=RNG(0))


def test_mirrored_gives_both_views() -> None:
    x = RNG(0).normal(size=(2, 3, 4, 5))
    same, turned = augment.mirrored(x)
    assert same is x
    np.testing.assert_array_equal(turned, np.flip(x, 3))
    assert turned.flags.c_contiguous


def test_stages_follow_the_progress_of_the_run() -> None:
    x = np.arange(32.0).reshape(2, 1, 4, 4)
    stages = Stages(((0.5, Augment(0.0, 0, shrink=2)), (1.0, Augment(1.0, 0))))
    small = stages(x, rng=RNG(0), progress=0.49)
    np.testing.assert_array_equal(small[0, 0], [[2.5, 4.5], [10.5, 12.5]])
    for progress in (0.5, 1.0):
        np.testing.assert_array_equal(stages(x, rng=RNG(0), progress=progress), x[..., ::-1])
    with pytest.raises(ValueError, match=r"Stages: stages must have rising ends, got \[0.5, 0.1\]"):
        Stages(((0.5, Augment()), (0.1, Augment())))
    with pytest.raises(ValueError, match="Augment: shrink must be at least 1, got 0"):
        Augment(shrink=0)
    with pytest.raises(ValueError, match="Augment: flip must be a number or"):
        Augment(flip="sometimes")


def test_minibatches_cover_everything_once() -> None:
    X, y = np.arange(22.0).reshape(11, 2), np.arange(11)
    for drop_last, sizes in ((False, [4, 4, 3]), (True, [4, 4])):
        batches = list(minibatches(X, y, 4, rng=RNG(0), drop_last=drop_last))
        assert [len(labels) for _, labels in batches] == sizes
        labels = np.concatenate([labels for _, labels in batches])
        assert len(set(labels.tolist())) == sum(sizes)
        for images, part in batches:
            np.testing.assert_array_equal(images, X[part])
    assert list(minibatches(X[:0], y[:0], 4)) == []
    with pytest.raises(ValueError, match="minibatches: X has 11 examples, y has 10"):
        next(minibatches(X, y[:10]))
    with pytest.raises(ValueError, match="minibatches: batch_size must be at least 1, got 0"):
        next(minibatches(X, y, 0))


def test_epoch_order_shuffles_and_resumes() -> None:
    order = EpochOrder(10, 3, RNG(0))
    assert order.batches_per_epoch == 3
    first, second = ([order.next() for _ in range(3)] for _ in range(2))
    for epoch in (first, second):
        assert len({i for batch in epoch for i in batch.tolist()}) == 9
    assert not np.array_equal(first, second)

    order.next()
    resumed = EpochOrder(10, 3, RNG(99))
    resumed.order, resumed.position = order.order.copy(), order.position
    resumed.rng.bit_generator.state = order.rng.bit_generator.state
    for _ in range(7):
        np.testing.assert_array_equal(order.next(), resumed.next())

    assert EpochOrder(5, 100, RNG(0)).next().shape == (5,)
    with pytest.raises(ValueError, match="batch_size"):
        EpochOrder(5, 0, RNG(0))
    with pytest.raises(ValueError, match="num_examples"):
        EpochOrder(0, 5, RNG(0))
