"""What the course modules use of `cnnfast.arrays`: out of a graph, to the CPU, and back."""

from __future__ import annotations

import numpy as np
import pytest

from cnnfast.arrays import detached, like, on_host


def test_of_numpy() -> None:
    x = np.ones(3)
    assert detached(x) is x
    assert detached(None) is None
    assert on_host(x) is x
    assert like(x, np.zeros(1)) is x
    np.testing.assert_array_equal(detached([[1, 2]]), [[1, 2]])
    assert on_host(2.5) == 2.5


def test_of_tensors() -> None:
    torch = pytest.importorskip("torch")
    x = torch.ones(3, requires_grad=True)
    out = detached(x)
    assert not out.requires_grad
    assert out.data_ptr() == x.data_ptr()
    plain = torch.ones(3)
    assert detached(plain) is plain
    here = on_host(x)
    assert isinstance(here, np.ndarray)
    here[0] = 7
    assert x.detach()[0].item() == 7  # the same memory
    a = np.arange(3.0, dtype=np.float32)
    b = like(a, x)
    assert isinstance(b, torch.Tensor)
    assert (b.dtype, b.tolist(), b.requires_grad) == (torch.float32, [0.0, 1.0, 2.0], False)
    assert isinstance(like(b, np.zeros(1)), np.ndarray)


def test_of_another_device() -> None:
    xs = pytest.importorskip("array_api_strict")
    there = xs.ones(3, device=xs.Device("device1"))
    assert like(np.arange(3.0), there).device == there.device
