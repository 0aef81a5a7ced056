"""Parameters and buffers in a safetensors file, which PyTorch reads and writes too."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from typing import Any

from cnnfast.nn.layer import Layer, LoadResult


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "saving and loading needs the safetensors library: pip install 'cnnfast[save]'"
        ) from error
    return safetensors.numpy


def save(layer: Layer, path: str | os.PathLike[str]) -> None:
    """Write a layer's state dict to a safetensors file.

    The file is complete or not there: it is written under another name in the same folder, and
    takes the place of an older one in one step. An older file's permissions stay as they were, and
    a symbolic link stays a link: the file that it leads to is written.

    Parameters
    ----------
    layer : Layer
        A layer or a network.
    path : str or path
        The file, by custom ``*.safetensors``.

    Raises
    ------
    ImportError
        The safetensors library is missing (``pip install 'cnnfast[save]'``).
    OSError
        The file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from cnnfast import nn
    >>> layer, other = nn.Linear(2, 3), nn.Linear(2, 3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     nn.save(layer, f"{folder}/layer.safetensors")
    ...     _ = nn.load(other, f"{folder}/layer.safetensors")
    >>> bool((layer.weight == other.weight).all())
    True
    """
    data: bytes = _safetensors().save(layer.state_dict())
    path = Path(path).resolve()  # a symbolic link may lead into another folder
    if not path.parent.is_dir():
        raise FileNotFoundError(f"nn.save: there is no folder {path.parent}")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    permissions = stat.S_IMODE(path.stat().st_mode) if path.exists() else None
    replace_file(path, data, temporary, "xb", permissions)


def replace_file(
    path: Path, data: bytes, temporary: Path, mode: str = "wb", permissions: int | None = None
) -> None:
    """Put a file with `data` in the place of `path`, so that nobody ever sees half of it.

    It is `temporary` first, opened in `mode`, in the same folder; if anything fails, that is
    removed and `path` is what it was.
    """
    try:
        with temporary.open(mode) as file:
            if permissions is not None:
                temporary.chmod(permissions)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load(layer: Layer, path: str | os.PathLike[str], strict: bool = True) -> LoadResult:
    """Read a safetensors file into a layer, as `Layer.load_state_dict` does.

    Parameters
    ----------
    layer : Layer
        A layer or a network, of the same architecture as the one saved.
    path : str or path
        The file; from PyTorch, ``safetensors.torch.save_file(net.state_dict(), path)`` makes one.
    strict : bool
        Whether a missing key, or one that the layer does not have, is an error.

    Returns
    -------
    LoadResult
        The keys ``(missing_keys, unexpected_keys)``; both empty if `strict`.

    Raises
    ------
    ImportError
        The safetensors library is missing (``pip install 'cnnfast[save]'``).
    FileNotFoundError
        There is no such file.
    ValueError, TypeError
        The file is damaged, or does not fit the layer. The layer is as it was before.
    """
    safetensors = _safetensors()
    path = Path(path)
    data = path.read_bytes()
    try:
        state = safetensors.load(data)
    except KeyError as error:  # the name of a dtype that the library cannot give to NumPy
        dtype = error.args[0]
        names = [name for name, array in safetensors.deserialize(data) if array["dtype"] == dtype]
        raise ValueError(
            f"nn.load: cannot read {path} as safetensors: {', '.join(map(repr, names))} of dtype "
            f"{dtype}, which NumPy lacks; save the file as float32, in PyTorch with net.float()"
        ) from error
    except Exception as error:
        # The library raises its own SafetensorError for a damaged file, but a bare TypeError or
        # ValueError for some headers.
        raise ValueError(f"nn.load: cannot read {path} as safetensors: {error}") from error
    try:
        return layer.load_state_dict(state, strict)
    except (ValueError, TypeError) as error:
        raise type(error)(f"nn.load: {path} does not fit the layer: {error}") from error
