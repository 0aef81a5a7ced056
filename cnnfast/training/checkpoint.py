"""A tree of arrays and plain values in one safetensors file, replaced in one step.

The arrays are the file's tensors; what holds them together (dicts, lists, numbers, strings) is
JSON in the file's metadata. No pickle, so a checkpoint from anywhere is safe to open; one file, so
that there is never half of a new checkpoint beside half of an old one.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnfast.nn.serialization import replace_file

__all__ = ["CheckpointError", "read", "write"]

_FORMAT = "cnnfast checkpoint 2"


class CheckpointError(ValueError):
    """A checkpoint is damaged, or belongs to another run."""


def write(path: Path, tree: dict[str, Any]) -> None:
    """Write `tree` to `path`; whatever happens, the file is the old one or the new one, whole.

    Parameters
    ----------
    path : Path
        The folder must exist.
    tree : dict
        Dicts with string keys, lists, arrays, numbers (of any size), strings, None.

    Raises
    ------
    ImportError
        Without the safetensors library.
    """
    _library()
    from safetensors.numpy import save

    tensors: dict[str, NDArray[Any]] = {}
    text = json.dumps(_take_arrays(tree, "", tensors))
    data = save(tensors, {"format": _FORMAT, "tree": text, "checksum": _checksum(text, tensors)})
    # One name always: what a killed run has left is written over.
    replace_file(path, data, path.with_name(f".{path.name}.tmp"))
    if os.name == "posix":
        # The rename itself is safe on the disk only once the folder is.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read(path: Path) -> dict[str, Any]:
    """The tree that `write` put into `path`.

    Raises
    ------
    ImportError
        Without the safetensors library.
    FileNotFoundError
        If there is no such file.
    CheckpointError
        If it is damaged or no checkpoint of this package.
    """
    _library()
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error})") from error
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is no checkpoint of this version of cnnfast")
    text = metadata.get("tree", "")
    if metadata.get("checksum") != _checksum(text, tensors):
        raise CheckpointError(f"{path} is damaged (its checksum does not fit what it holds)")
    try:
        tree = _put_arrays(json.loads(text), tensors)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged (its tree cannot be read: {error})") from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path} is damaged (its tree is no dict)")
    return tree


def _checksum(text: str, tensors: dict[str, NDArray[Any]]) -> str:
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype.str} {tensor.shape}".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()


def _take_arrays(tree: Any, name: str, tensors: dict[str, NDArray[Any]]) -> Any:
    """`tree` with the name of a tensor in place of each array."""
    if isinstance(tree, np.ndarray):
        tensors[name] = np.ascontiguousarray(tree).reshape(tree.shape)
        return {"tensor": name}
    if isinstance(tree, dict):
        items = {key: _take_arrays(v, f"{name}/{key}", tensors) for key, v in tree.items()}
        return {"dict": items}
    if isinstance(tree, list | tuple):
        return [_take_arrays(v, f"{name}/{i}", tensors) for i, v in enumerate(tree)]
    return tree.item() if isinstance(tree, np.generic) else tree


def _put_arrays(tree: Any, tensors: dict[str, NDArray[Any]]) -> Any:
    if isinstance(tree, list):
        return [_put_arrays(v, tensors) for v in tree]
    if isinstance(tree, dict):
        if "tensor" in tree:
            return tensors[tree["tensor"]]
        return {key: _put_arrays(v, tensors) for key, v in tree["dict"].items()}
    return tree


def _library() -> None:
    try:
        import safetensors  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "checkpoints need the safetensors library: pip install 'cnnfast[save]'"
        ) from error
