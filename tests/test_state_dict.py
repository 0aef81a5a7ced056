"""State dicts: PyTorch's keys and order, files that PyTorch reads and writes, no accidents."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnnfast import nn


@pytest.fixture(scope="module")
def torch() -> Iterator[Any]:
    library = pytest.importorskip("torch", reason="PyTorch, the peer of these tests, is missing")
    threads = library.get_num_threads()
    library.set_num_threads(1)  # its idle threads spin, which costs seconds where cores are shared
    yield library
    library.set_num_threads(threads)


@pytest.fixture(scope="module")
def safetensors_torch(torch: Any) -> Any:
    return pytest.importorskip("safetensors.torch", reason="safetensors is missing")


@pytest.fixture
def needs_safetensors() -> None:
    pytest.importorskip("safetensors.numpy", reason="safetensors is missing")


def network(library: Any, **kwargs: Any) -> Any:
    """The same network from `cnnfast.nn` or `torch.nn`: every layer that has arrays, and others."""
    return library.Sequential(
        library.Conv2d(2, 6, 3, padding=1, **kwargs),
        library.BatchNorm2d(6, **kwargs),
        library.ReLU(),
        library.MaxPool2d(2),
        library.Sequential(
            library.Conv2d(6, 6, (3, 1), padding="same", groups=3, bias=False, **kwargs),
            library.BatchNorm2d(6, affine=False, momentum=None, **kwargs),
            library.LeakyReLU(0.1),
        ),
        library.ConvTranspose2d(6, 4, 2, stride=2, **kwargs),
        library.Tanh(),
        library.AdaptiveAvgPool2d((2, 4)),
        library.Flatten(2),
        library.Conv1d(4, 5, 3, stride=2, **kwargs),
        library.BatchNorm1d(5, track_running_stats=False, **kwargs),
        library.ConvTranspose1d(5, 3, 3, output_padding=1, stride=2, **kwargs),
        library.Sigmoid(),
        library.Flatten(),
        library.Linear(24, 7, **kwargs),
        library.BatchNorm1d(7, **kwargs),
        library.Dropout(0.0),
        library.Softmax(1),
    )


def small(seed: int = 0, dtype: Any = np.float64) -> nn.Sequential:
    rng = np.random.default_rng(seed)
    return nn.Sequential(nn.Linear(3, 2, rng=rng, dtype=dtype), nn.BatchNorm1d(2, dtype=dtype))


def unchanged(layer: nn.Layer, before: dict[str, Any]) -> bool:
    after = layer.state_dict()
    return list(after) == list(before) and all(np.array_equal(after[k], before[k]) for k in after)


def assert_same_network(ours: nn.Layer, theirs: Any, torch: Any) -> None:
    """Outputs, gradients and running statistics agree to 1e-10, in training and in inference."""
    rng = np.random.default_rng(3)
    for training in (True, True, False):
        ours.train(training)
        theirs.train(training)
        x = rng.normal(size=(5, 2, 7, 6))
        tx = torch.tensor(x, requires_grad=True)
        y, ty = ours(x), theirs(tx)
        dy = rng.normal(size=y.shape)
        dx = ours.backward(dy)
        theirs.zero_grad()
        ty.backward(torch.tensor(dy))
        pairs = {"y": (y, ty.detach()), "dx": (dx, tx.grad)}
        pairs |= {k: (ours.grads[k], p.grad) for k, p in theirs.named_parameters()}
        pairs |= {k: (ours.buffers[k], b) for k, b in theirs.named_buffers()}
        for key, (a, b) in pairs.items():
            b = b.numpy()
            assert a.shape == b.shape, key
            assert np.max(np.abs(a - b)) <= 1e-10 * max(1.0, np.max(np.abs(b))), key


def test_keys_shapes_and_order_are_pytorchs(torch: Any) -> None:
    ours, theirs = network(nn).state_dict(), network(torch.nn).state_dict()
    assert list(ours) == list(theirs)
    for key, value in theirs.items():
        assert ours[key].shape == tuple(value.shape)
        assert str(ours[key].dtype) == str(value.dtype).removeprefix("torch.")


def test_order_of_a_network_of_ones_own(torch: Any) -> None:
    """Own parameters, own buffers, then layers by assignment: in both libraries."""

    def fill(net: Any, library: Any) -> None:
        net.late = library.Linear(2, 2)
        net.early = library.Sequential(library.BatchNorm1d(2), library.Linear(2, 1, bias=False))

    class Ours(nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            fill(self, nn)
            self.add_buffer("seen", np.zeros(3))
            self.add_param("scale", np.ones(1))

    class Theirs(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            fill(self, torch.nn)
            self.register_buffer("seen", torch.zeros(3))
            self.scale = torch.nn.Parameter(torch.ones(1))

    assert list(Ours().state_dict()) == list(Theirs().state_dict())


def test_pytorchs_state_dict_loads(torch: Any) -> None:
    torch.manual_seed(0)
    theirs = network(torch.nn, dtype=torch.float64)
    ours = network(nn, dtype=np.float64)
    assert ours.load_state_dict(theirs.state_dict()) == ([], [])
    assert_same_network(ours, theirs, torch)
    ours.load_state_dict(dict(theirs.named_parameters()), strict=False)  # these require grad


def test_ours_loads_in_pytorch(torch: Any) -> None:
    theirs = network(torch.nn, dtype=torch.float64)
    ours = network(nn, dtype=np.float64)
    theirs.load_state_dict({k: torch.from_numpy(v) for k, v in ours.state_dict().items()})
    assert_same_network(ours, theirs, torch)


def test_file_of_pytorch_loads(torch: Any, safetensors_torch: Any, tmp_path: Path) -> None:
    torch.manual_seed(1)
    theirs = network(torch.nn, dtype=torch.float64)
    theirs(torch.randn(4, 2, 7, 6, dtype=torch.float64))  # running statistics worth saving
    path = tmp_path / "net.safetensors"
    safetensors_torch.save_file(theirs.state_dict(), path)
    ours = network(nn, dtype=np.float64)
    nn.load(ours, path)
    assert_same_network(ours, theirs, torch)


def test_our_file_loads_in_pytorch(torch: Any, safetensors_torch: Any, tmp_path: Path) -> None:
    ours = network(nn, dtype=np.float64)
    ours(np.random.default_rng(0).normal(size=(4, 2, 7, 6)))
    path = tmp_path / "net.safetensors"
    nn.save(ours, str(path))
    theirs = network(torch.nn, dtype=torch.float64)
    theirs.load_state_dict(safetensors_torch.load_file(path))
    assert_same_network(ours, theirs, torch)


def test_half_precision_file_of_pytorch(torch: Any, safetensors_torch: Any, tmp_path: Path) -> None:
    theirs = torch.nn.Linear(3, 2)
    ours = nn.Linear(3, 2)
    path = tmp_path / "net.safetensors"
    safetensors_torch.save_file(theirs.half().state_dict(), path)
    nn.load(ours, path)
    assert np.array_equal(ours.weight, theirs.weight.detach().float().numpy())


def test_bfloat16_of_pytorch(torch: Any, safetensors_torch: Any, tmp_path: Path) -> None:
    """NumPy has none: tensors are converted, of a file the arrays in question are named."""
    theirs = torch.nn.Linear(3, 2).bfloat16()
    ours = nn.Linear(3, 2)
    path = tmp_path / "net.safetensors"
    safetensors_torch.save_file({**theirs.state_dict(), "bias": torch.zeros(2)}, path)
    before = ours.state_dict()
    with pytest.raises(
        ValueError, match=r"nn\.load: .*net\.safetensors .*: 'weight' of dtype BF16.*float\(\)"
    ):
        nn.load(ours, path)
    assert unchanged(ours, before)
    ours.load_state_dict(theirs.state_dict())
    for key, value in theirs.state_dict().items():
        assert np.array_equal(ours.params[key], value.float().numpy())


@pytest.mark.usefixtures("needs_safetensors")
def test_file_round_trip(tmp_path: Path) -> None:
    layer, other = small(0), small(1)
    layer(np.random.default_rng(0).normal(size=(5, 3)))
    layer[0].weight = np.asfortranarray(layer[0].weight)
    path = tmp_path / "layer.safetensors"
    nn.save(layer, path)
    assert nn.load(other, path) == ([], [])
    assert unchanged(other, layer.state_dict())
    assert [p.name for p in tmp_path.iterdir()] == ["layer.safetensors"]
    if os.name == "posix":
        (tmp_path / "plain").touch()
        assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_state_dict_is_a_copy() -> None:
    layer = small()
    state = layer.state_dict()
    layer[0].weight += 1
    assert not np.array_equal(state["0.weight"], layer.params["0.weight"])
    for key, value in state.items():
        assert value.flags.c_contiguous
        assert not np.shares_memory(value, {**layer.params, **layer.buffers}[key])


def test_loading_writes_into_the_arrays_that_are_there() -> None:
    layer, other = small(0, np.float32), small(1, np.float64)
    arrays = layer.params
    layer.load_state_dict(other.state_dict())
    assert arrays["0.weight"] is layer.params["0.weight"]
    assert arrays["0.weight"].dtype == np.float32
    assert np.array_equal(arrays["0.weight"], other.params["0.weight"].astype(np.float32))


def test_loading_leaves_no_tie_to_what_was_loaded() -> None:
    layer = small()
    state = {k: v.tolist() if k == "0.bias" else v for k, v in small(1).state_dict().items()}
    layer.load_state_dict(state)
    state["0.weight"][...] = 0
    assert layer.params["0.weight"].any()


def _state(**changes: Any) -> dict[str, Any]:
    state: dict[str, Any] = small(1).state_dict()
    for key, value in changes.items():
        name = key.replace("_", ".", 1)
        if value is None:
            del state[name]
        else:
            state[name] = value
    return state


@pytest.mark.parametrize(
    ("error", "words", "state"),
    [
        (
            ValueError,
            r"Sequential\.load_state_dict: missing '0\.bias'$",
            _state(**{"0_bias": None}),
        ),
        (ValueError, r"unexpected '7\.weight'$", _state(**{"7_weight": 1})),
        (
            ValueError,
            r"missing '1\.weight'; unexpected '2\.weight'",
            _state(**{"1_weight": None, "2_weight": 3}),
        ),
        (
            ValueError,
            r"'1\.running_var' must have shape \(2,\), not \(3,\)",
            _state(**{"1_running_var": np.ones(3)}),
        ),
        (ValueError, r"'0\.weight' must have shape \(2, 3\)", _state(**{"0_weight": 0.0})),
        (TypeError, r"'1\.bias' must hold real numbers", _state(**{"1_bias": np.ones(2, complex)})),
        (TypeError, r"'1\.bias' must hold real numbers", _state(**{"1_bias": ["a", "b"]})),
        (TypeError, r"'0\.weight' cannot be read", _state(**{"0_weight": [[1.0], [2.0, 3.0]]})),
        (
            TypeError,
            r"'0\.bias' must not be a masked array",
            _state(**{"0_bias": np.ma.masked_array(np.ones(2), [True, False])}),
        ),
        (
            TypeError,
            r"'1\.num_batches_tracked' must hold integers",
            _state(**{"1_num_batches_tracked": 1.5}),
        ),
        (TypeError, r"expected a mapping", [("0.weight", 1)]),
        (TypeError, r"expected a mapping", None),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(
    error: type[Exception], words: str, state: Any
) -> None:
    layer = small()
    before = layer.state_dict()
    with pytest.raises(error, match=words):
        layer.load_state_dict(state)
    assert unchanged(layer, before)


def test_not_strict() -> None:
    layer = small()
    state = _state(**{"0_bias": None, "7_weight": 1})
    result = layer.load_state_dict(state, strict=False)
    assert result.missing_keys == ["0.bias"]
    assert result.unexpected_keys == ["7.weight"]
    assert np.array_equal(layer.params["0.weight"], state["0.weight"])
    with pytest.raises(ValueError, match="shape"):
        layer.load_state_dict({"0.bias": np.zeros(3)}, strict=False)


def test_old_state_dicts_have_no_count_of_batches(torch: Any) -> None:
    """PyTorch loads them too, and keeps the count that is there."""
    for layer, state in (
        (small(), _state(**{"1_num_batches_tracked": None})),
        (nn.BatchNorm2d(2), {k: np.ones(2) for k in torch.nn.BatchNorm2d(2).state_dict()}),
    ):
        state.pop("num_batches_tracked", None)
        for key in layer.buffers:
            if "tracked" in key:
                layer.buffers[key] = 7
        assert layer.load_state_dict(state) == ([], [])
        after = layer.state_dict()
        for key, value in after.items():
            assert np.array_equal(value, 7 if "tracked" in key else state[key])
    theirs = torch.nn.BatchNorm2d(2)
    theirs.load_state_dict({k: torch.tensor(v) for k, v in state.items()})
    assert theirs.num_batches_tracked == 0


@pytest.mark.usefixtures("needs_safetensors")
def test_damaged_files_change_nothing(tmp_path: Path) -> None:
    layer = small()
    before = layer.state_dict()
    path = tmp_path / "net.safetensors"
    nn.save(small(1), path)
    data = path.read_bytes()
    damaged = [b"", b"not a safetensors file", data[:5], data[:40], data[:-1], data + b"\0"]
    damaged += [b"\xff" * 8 + data[8:], data[:8] + b"]" + data[9:], data.replace(b"F64", b"F99")]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"nn\.load: cannot read .*net\.safetensors"):
            nn.load(layer, path)
        assert unchanged(layer, before)
    nn.save(nn.Linear(3, 2), path)
    with pytest.raises(
        ValueError, match=r"nn\.load: .*net\.safetensors does not fit .*'0\.weight'"
    ):
        nn.load(layer, path)
    assert sorted(nn.load(layer, path, strict=False).unexpected_keys) == ["bias", "weight"]
    assert unchanged(layer, before)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        nn.load(layer, tmp_path / "nowhere.safetensors")


@pytest.mark.usefixtures("needs_safetensors")
@pytest.mark.skipif(os.name != "posix", reason="permissions and links are POSIX's")
def test_save_keeps_permissions_and_links(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    target, link = tmp_path / "store" / "net.safetensors", tmp_path / "latest"
    link.symlink_to(Path("store") / "net.safetensors")
    nn.save(small(0), link)  # which leads to nothing yet
    target.chmod(0o640)
    nn.save(small(1), link)
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    layer = small(2)
    nn.load(layer, target)
    assert unchanged(layer, small(1).state_dict())
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["latest", "net.safetensors", "store"]


@pytest.mark.usefixtures("needs_safetensors")
@pytest.mark.parametrize("at", ["fsync", "replace"])
def test_a_save_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    path = tmp_path / "net.safetensors"
    nn.save(small(0), path)
    old = path.read_bytes()

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", fail) if at == "fsync" else monkeypatch.setattr(
        Path, "replace", fail
    )
    with pytest.raises(KeyboardInterrupt):
        nn.save(small(1), path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("needs_safetensors")
def test_save_into_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nn\.save: there is no folder .*nowhere"):
        nn.save(small(), tmp_path / "nowhere" / "net.safetensors")


def test_without_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r"cnnfast\[save\]"):
        nn.save(small(), tmp_path / "net.safetensors")
    with pytest.raises(ImportError, match=r"cnnfast\[save\]"):
        nn.load(small(), tmp_path / "net.safetensors")
