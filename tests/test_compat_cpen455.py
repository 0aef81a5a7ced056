"""UBC's module: the notebook's unit tests, the sizes that its code could not do, and both kinds."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cnnfast
from cnnfast import naive
from cnnfast.compat import cpen455 as course
from cnnfast.data import load_mnist
from cnnfast.gradcheck import numeric_gradient

SIZES = ["channel_size", "num_filters", "kernel_size", "stride", "padding"]
SIGNATURES = {
    "conv2d_im2col": ["img", "filter", *SIZES],
    "conv2d_filter2row": ["img", "filter", *SIZES],
    "grad_conv2d": ["img", "filter", "out", "grad_out", *SIZES],
    "grad_checker": ["img", "filter", "conv", "grad_out", "epsilon", *SIZES],
    "func_relu": ["x"],
    "grad_relu": ["x", "y", "grad_out"],
    "func_batch_norm": ["x", "epsilon"],
    "grad_batch_norm": ["x", "y", "grad_out", "epsilon"],
    "CNN": ["img", "filter_1", "filter_2", "weight", *SIZES],
    "grad_CNN": ["img", "filter_1", "filter_2", "weight", "grad_loss", *SIZES],
}
DEFAULTS = {"channel_size": 1, "num_filters": 1, "kernel_size": 3, "stride": 1, "padding": 1}
CONVOLUTIONS = [course.conv2d_im2col, course.conv2d_filter2row]
LIMIT = 1.0e-5  # the notebook's, for the norm of a difference

# Name -> shapes of images and filters, stride, padding.
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], Any, Any]] = {
    "notebook": ((5, 1, 7, 7), (2, 1, 3, 3), 1, 1),
    "rectangular images": ((2, 3, 5, 9), (4, 3, 3, 3), 1, 1),
    "wide kernel": ((2, 2, 6, 7), (3, 2, 2, 5), 1, 1),
    "tall kernel": ((2, 2, 7, 4), (3, 2, 4, 1), 1, 0),
    "no padding": ((2, 2, 6, 6), (3, 2, 3, 3), 1, 0),
    "does not divide": ((2, 2, 7, 8), (3, 2, 3, 3), 3, 1),
    "stride over kernel": ((2, 1, 8, 7), (2, 1, 2, 2), 3, 0),
    "stride and padding in pairs": ((2, 2, 6, 5), (3, 2, 3, 2), (2, 1), (2, 1)),
    "padding over kernel": ((1, 1, 3, 3), (1, 1, 1, 1), 2, 2),
    "batch 0": ((0, 2, 5, 5), (3, 2, 3, 3), 1, 1),
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """More threads cost more than they bring at these sizes."""
    with cnnfast.threads(1):
        try:
            import torch
        except ImportError:
            yield
            return
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)


@pytest.fixture(params=["numpy", "torch"])
def kind(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    """What makes an array of the kind out of NumPy's."""
    if request.param == "numpy":
        return lambda a: a
    torch = pytest.importorskip("torch")
    return lambda a: torch.from_numpy(np.array(a))


def array(a: Any) -> np.ndarray:
    return a if isinstance(a, np.ndarray) else a.detach().numpy()


def drawn(name: str, dtype: Any = np.float64) -> tuple[Any, ...]:
    """Images, filters, the gradient by the output, and the options."""
    img, filter, stride, padding = CASES[name]
    rng = np.random.default_rng(len(name))
    x, w = rng.normal(size=img).astype(dtype), rng.normal(size=filter).astype(dtype)
    options = {"stride": stride, "padding": padding}
    dy = rng.normal(size=naive.conv2d(x, w, None, **options).shape).astype(dtype)
    return x, w, dy, options


def test_names_and_parameters() -> None:
    assert set(SIGNATURES) == set(course.__all__)
    for name, parameters in SIGNATURES.items():
        signature = inspect.signature(getattr(course, name))
        assert list(signature.parameters) == parameters
        for parameter, default in DEFAULTS.items():
            if parameter in signature.parameters:
                assert signature.parameters[parameter].default == default
    for function in (course.grad_checker, course.func_batch_norm, course.grad_batch_norm):
        assert inspect.signature(function).parameters["epsilon"].default == 1.0e-5


# --- The notebook's unit tests, on its own images where they are


def minibatch() -> Any:
    """Five images, as the notebook takes them from MNIST; and labels."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    folder = os.environ.get("CNNFAST_DATA")
    if folder and (Path(folder) / "mnist").is_dir():
        data = load_mnist(Path(folder) / "mnist", dtype=np.float64)
        return torch.from_numpy(data.X_train[:5].copy()), torch.from_numpy(data.y_train[:5].copy())
    return torch.rand(5, 1, 28, 28, dtype=torch.float64), torch.tensor([5, 0, 4, 1, 9])


B, C, D, K, P = 5, 1, 2, 3, 1
OPTIONS = {"channel_size": C, "num_filters": D, "kernel_size": K, "stride": 1, "padding": P}


def with_grad(*tensors: Any) -> None:
    for tensor in tensors:
        tensor.requires_grad_()


@pytest.mark.parametrize("conv", CONVOLUTIONS)
def test_cell_conv2d(conv: Callable[..., Any]) -> None:
    torch = pytest.importorskip("torch")
    img, _ = minibatch()
    filter = torch.randn(D, C, K, K, dtype=torch.float64)
    y = conv(img, filter, **OPTIONS)
    assert (y - torch.nn.functional.conv2d(img, filter, padding=P)).norm() < LIMIT


def test_cell_grad_conv2d() -> None:
    torch = pytest.importorskip("torch")
    img, _ = minibatch()
    filter = torch.randn(D, C, K, K, dtype=torch.float64)
    with_grad(img, filter)
    out = torch.nn.functional.conv2d(img, filter, padding=P)
    v = torch.randn_like(out)
    found = course.grad_conv2d(img, filter, out, v, **OPTIONS)
    for ours, right in zip(found, torch.autograd.grad(out, (img, filter), v), strict=True):
        assert not ours.requires_grad
        assert (ours - right).norm() < LIMIT


@pytest.mark.parametrize("own", [False, True], ids=["PyTorch's", "cnnfast's"])
def test_cell_grad_checker(own: bool) -> None:
    torch = pytest.importorskip("torch")
    img, _ = minibatch()
    img = img[:, :, 8:20, 8:20].clone() if own else img
    filter = torch.randn(D, C, K, K, dtype=torch.float64)
    with_grad(img, filter)
    out = torch.nn.functional.conv2d(img, filter, padding=P)
    v = torch.randn_like(out)
    conv = course.conv2d_im2col if own else torch.nn.functional.conv2d
    found = course.grad_checker(img, filter, conv, v, epsilon=1.0e-5, **OPTIONS)
    for ours, right in zip(found, torch.autograd.grad(out, (img, filter), v), strict=True):
        assert (ours - right).norm() < LIMIT


def test_cell_relu() -> None:
    torch = pytest.importorskip("torch")
    x = torch.randn_like(minibatch()[0]).requires_grad_()
    y, right = course.func_relu(x), torch.relu(x)
    assert (y - right).norm() < LIMIT
    v = torch.randn_like(y)
    (grad,) = torch.autograd.grad(right, x, v)
    assert (course.grad_relu(x, y, v) - grad).norm() < LIMIT


def test_cell_batch_norm() -> None:
    torch = pytest.importorskip("torch")
    x = torch.randn_like(minibatch()[0]).requires_grad_()
    y = course.func_batch_norm(x, epsilon=1e-5)
    right = torch.nn.BatchNorm2d(1, eps=1e-5, affine=False, track_running_stats=False)(x)
    assert (y - right).norm() < LIMIT
    v = torch.randn_like(y)
    (grad,) = torch.autograd.grad(right, x, v)
    assert (course.grad_batch_norm(x, y, v, epsilon=1e-5) - grad).norm() < LIMIT


def test_cell_cnn() -> None:
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    img, label = minibatch()
    filter_1 = torch.randn(D, C, K, K, dtype=torch.float64)
    filter_2 = torch.randn(D, D, K, K, dtype=torch.float64)
    weight = torch.randn(D * 28 * 28, 10, dtype=torch.float64)
    tensors = (img, filter_1, filter_2, weight)
    with_grad(*tensors)

    # As the notebook has it: PyTorch goes back through the module's own CNN.
    y = course.CNN(*tensors, **OPTIONS).requires_grad_()
    loss = F.cross_entropy(y, label).mean()
    grad_loss = torch.autograd.grad(loss, y, retain_graph=True)[0]
    ours = course.grad_CNN(*tensors, grad_loss, **OPTIONS)
    through = torch.autograd.grad(loss, tensors, retain_graph=True)

    # And through PyTorch's own operations.
    h = img
    for filter in (filter_1, filter_2):
        h = F.relu(F.batch_norm(F.conv2d(h, filter, padding=P), None, None, training=True))
    logits = h.flatten(1) @ weight
    right = torch.autograd.grad(F.cross_entropy(logits, label), tensors)

    assert (y - logits).norm() < LIMIT
    for gradient, torchs, reference in zip(ours, through[1:], right[1:], strict=True):
        assert not gradient.requires_grad
        assert (gradient - torchs).norm() < LIMIT
        assert (gradient - reference).norm() < LIMIT
    assert (through[0] - right[0]).norm() < LIMIT


def test_cnn_of_plain_tensors_has_no_graph() -> None:
    torch = pytest.importorskip("torch")
    arrays = [
        torch.rand(s, dtype=torch.float64) for s in ((2, 1, 4, 4), (2, 1, 3, 3), (2, 2, 3, 3))
    ]
    assert not course.CNN(*arrays, torch.rand(32, 10, dtype=torch.float64)).requires_grad


def small_network() -> tuple[list[Any], Any]:
    """Images, filters, weights; and the gradient by the logits."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(1)
    shapes = ((2, 1, 4, 4), (2, 1, 3, 3), (2, 2, 3, 3), (32, 10))
    return [torch.randn(s, dtype=torch.float64) for s in shapes], torch.randn(2, 10).double()


def test_cnn_goes_back_from_images_of_numpys() -> None:
    (img, *weights), grad = small_network()
    with_grad(*weights)
    course.CNN(img.numpy(), *weights).backward(grad)
    for weight, right in zip(weights, course.grad_CNN(img, *weights, grad), strict=True):
        np.testing.assert_allclose(weight.grad.numpy(), right.numpy(), rtol=1e-12)


def test_cnn_does_not_go_back_through_weights_that_were_changed() -> None:
    torch = pytest.importorskip("torch")
    arrays, grad = small_network()
    with_grad(*arrays)
    logits = course.CNN(*arrays)
    with torch.no_grad():
        arrays[3].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logits.backward(grad)


# --- Sizes and options


@pytest.mark.parametrize("name", CASES)
def test_convolutions_are_the_reference_loops(name: str, kind: Callable[[Any], Any]) -> None:
    x, w, _, options = drawn(name)
    right = naive.conv2d(x, w, None, **options)
    for conv in CONVOLUTIONS:
        img, filter = kind(x), kind(w)
        y = conv(img, filter, **options)
        assert type(y) is type(img)
        assert y.dtype == img.dtype
        assert array(y).shape == right.shape
        np.testing.assert_allclose(array(y), right, rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(array(img), x)
        np.testing.assert_array_equal(array(filter), w)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_the_reference_loops(name: str, kind: Callable[[Any], Any]) -> None:
    x, w, dy, options = drawn(name)
    right = naive.conv2d_backward(dy, x, w, **options)[:2]
    img, filter, v = kind(x), kind(w), kind(dy)
    found = course.grad_conv2d(img, filter, None, v, **options)
    checked = course.grad_checker(img, filter, course.conv2d_im2col, v, **options)
    for ours, numeric, reference in zip(found, checked, right, strict=True):
        assert type(ours) is type(numeric) is type(img)
        np.testing.assert_allclose(array(ours), reference, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(array(numeric), reference, rtol=1e-7, atol=1e-8)
    np.testing.assert_array_equal(array(img), x)
    np.testing.assert_array_equal(array(filter), w)


def test_methods_that_run() -> None:
    x, w, _, options = drawn("notebook")
    with cnnfast.trace() as ran:
        course.conv2d_im2col(x, w, **options)
        course.conv2d_filter2row(x, w, **options)
    wanted = "im2col" if cnnfast.info()["compiled"] else ran[0].method
    assert [r.method for r in ran] == [wanted, "toeplitz"]


def test_im2col_without_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnfast.compiled.cython_missing", lambda: "gone")
    x, w, _, options = drawn("does not divide")
    y = course.conv2d_im2col(x, w, **options)
    np.testing.assert_allclose(y, naive.conv2d(x, w, None, **options), rtol=1e-12, atol=1e-12)


def test_other_devices() -> None:
    """There the portable method computes, for all of them."""
    xs = pytest.importorskip("array_api_strict")
    device = xs.Device("device1")

    def there(a: np.ndarray) -> Any:
        return xs.asarray(a, device=device)

    def back(a: Any) -> np.ndarray:
        assert a.device == device
        return np.asarray(xs.asarray(a, device=xs.Device("CPU_DEVICE")))

    rng = np.random.default_rng(1)
    shapes = ((2, 1, 5, 4), (2, 1, 3, 3), (3, 2, 3, 2), (3 * 5 * 5, 10))
    arrays = [rng.normal(size=shape) for shape in shapes]
    grad = rng.normal(size=(2, 10))
    with cnnfast.trace() as ran:
        y = course.CNN(*map(there, arrays))
        gradients = course.grad_CNN(*map(there, arrays), there(grad))
        by_columns = course.conv2d_im2col(*map(there, arrays[:2]))
        by_rows = course.conv2d_filter2row(*map(there, arrays[:2]))
    assert {r.method for r in ran} == {"portable"}
    np.testing.assert_allclose(back(y), course.CNN(*arrays), rtol=1e-10, atol=1e-12)
    for ours, right in zip(gradients, course.grad_CNN(*arrays, grad), strict=True):
        np.testing.assert_allclose(back(ours), right, rtol=1e-10, atol=1e-12)
    for y in (by_columns, by_rows):
        right = naive.conv2d(*arrays[:2], None, padding=1)
        np.testing.assert_allclose(back(y), right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", ["fortran", "negative strides", "read only", "list"])
def test_layouts(layout: str) -> None:
    x, w, dy, options = drawn("rectangular images")
    right = naive.conv2d(x, w, None, **options)
    gradients = naive.conv2d_backward(dy, x, w, **options)

    def laid(a: np.ndarray) -> Any:
        if layout == "fortran":
            return np.asfortranarray(a)
        if layout == "negative strides":
            return np.ascontiguousarray(a[..., ::-1])[..., ::-1]
        if layout == "list":
            return a.tolist()
        a = a.copy()
        a.flags.writeable = False
        return a

    img, filter, v = map(laid, (x, w, dy))
    for conv in CONVOLUTIONS:
        np.testing.assert_allclose(conv(img, filter, **options), right, rtol=1e-12, atol=1e-12)
    found = course.grad_conv2d(img, filter, None, v, **options)
    checked = course.grad_checker(img, filter, course.conv2d_filter2row, v, **options)
    for ours, numeric, reference in zip(found, checked, gradients[:2], strict=True):
        np.testing.assert_allclose(ours, reference, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(numeric, reference, rtol=1e-7, atol=1e-8)


def test_strided_tensors() -> None:
    torch = pytest.importorskip("torch")
    x, w, _, options = drawn("rectangular images")
    img = torch.from_numpy(x).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    y = course.conv2d_im2col(img, torch.from_numpy(w), **options)
    right = naive.conv2d(x, w, None, **options)
    np.testing.assert_allclose(y.numpy(), right, rtol=1e-12, atol=1e-12)


def test_float32(kind: Callable[[Any], Any]) -> None:
    """float32 stays; the checker computes in float64, so its gradient is as exact as that."""
    x, w, dy, options = drawn("rectangular images", np.float32)
    right = naive.conv2d_backward(*(a.astype(np.float64) for a in (dy, x, w)), **options)
    img, filter, v = kind(x), kind(w), kind(dy)
    found = course.grad_conv2d(img, filter, None, v, **options)
    checked = course.grad_checker(img, filter, course.conv2d_im2col, v, **options)
    for ours, numeric, reference in zip(found, checked, right[:2], strict=True):
        assert ours.dtype == numeric.dtype == img.dtype
        np.testing.assert_allclose(array(ours), reference, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(array(numeric), reference, rtol=1e-6, atol=1e-6)
    h = course.func_batch_norm(img)
    assert course.func_relu(h).dtype == h.dtype == img.dtype
    assert course.grad_batch_norm(img, h, h).dtype == img.dtype
    weight = kind(np.ones((4 * 5 * 9, 10), np.float32))
    filter_2 = kind(np.ones((4, 4, 3, 3), np.float32))
    assert course.CNN(img, filter, filter_2, weight).dtype == img.dtype


# --- The checker takes any convolution


def test_checker_calls_functions_as_they_can_be_called() -> None:
    x, w, dy, options = drawn("wide kernel")
    right = naive.conv2d_backward(dy, x, w, **options)[:2]
    seen: list[dict[str, Any]] = []

    def handout(
        img: Any, filter: Any, channel_size: int = 1, num_filters: int = 1, kernel_size: Any = 3,
        stride: Any = 1, padding: Any = 1,
    ) -> Any:  # fmt: skip
        seen.append(
            {"channel_size": channel_size, "num_filters": num_filters, "kernel_size": kernel_size}
        )
        return cnnfast.conv2d(img, filter, None, stride, padding)

    def open_ended(img: Any, filter: Any, **others: Any) -> Any:
        return cnnfast.conv2d(img, filter, None, **others)

    def bound(img: Any, filter: Any) -> Any:
        return cnnfast.conv2d(img, filter, None, **options)

    for conv in (handout, open_ended, bound, cnnfast.conv2d):
        found = course.grad_checker(x, w, conv, dy, **options)
        for ours, reference in zip(found, right, strict=True):
            np.testing.assert_allclose(ours, reference, rtol=1e-7, atol=1e-8)
    assert seen[0] == {"channel_size": 2, "num_filters": 3, "kernel_size": (2, 5)}


def test_checker_finds_a_wrong_convolution() -> None:
    x, w, dy, options = drawn("notebook")
    found = course.grad_checker(x, w, lambda x, w: 2 * cnnfast.conv2d(x, w, None, **options), dy)
    right = naive.conv2d_backward(dy, x, w, **options)
    np.testing.assert_allclose(found[0], 2 * right[0], rtol=1e-7, atol=1e-8)


# --- ReLU, batch normalisation, the network


def test_relu_by_hand(kind: Callable[[Any], Any]) -> None:
    x = kind(np.array([[-1.0, 0.0, 2.0]]))
    y = course.func_relu(x)
    np.testing.assert_array_equal(array(y), [[0.0, 0.0, 2.0]])
    dx = course.grad_relu(x, y, kind(np.array([[5.0, 5.0, 5.0]])))
    np.testing.assert_array_equal(array(dx), [[0.0, 0.0, 5.0]])


def test_batch_norm_by_hand(kind: Callable[[Any], Any]) -> None:
    # Mean 2 and variance 4 of the first channel; the second is constant.
    x = np.array([[[[0.0, 4.0]], [[3.0, 3.0]]], [[[4.0, 0.0]], [[3.0, 3.0]]]])
    y = course.func_batch_norm(kind(x), epsilon=5.0)
    np.testing.assert_allclose(array(y)[:, 0], (x[:, 0] - 2) / 3, rtol=1e-15)
    np.testing.assert_array_equal(array(y)[:, 1], 0)


@pytest.mark.parametrize("epsilon", [1e-5, 0.3])
def test_batch_norm_gradient(epsilon: float, kind: Callable[[Any], Any]) -> None:
    rng = np.random.default_rng(3)
    x, dy = rng.normal(2, 3, (3, 2, 4, 3)), rng.normal(size=(3, 2, 4, 3))
    numeric = numeric_gradient(lambda x: course.func_batch_norm(x, epsilon), x.copy(), dy)
    dx = course.grad_batch_norm(kind(x), None, kind(dy), epsilon)
    np.testing.assert_allclose(array(dx), numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("stride", "padding", "features"), [(1, 1, 3 * 6 * 4), (2, 0, 3 * 1 * 1)])
def test_network(stride: int, padding: int, features: int, kind: Callable[[Any], Any]) -> None:
    rng = np.random.default_rng(5)
    shapes = ((2, 2, 6, 5), (2, 2, 3, 3), (3, 2, 2, 2), (features, 10))
    if padding:
        shapes = ((2, 2, 6, 4), (2, 2, 3, 3), (3, 2, 3, 3), (features, 10))
    arrays = [rng.normal(size=shape) for shape in shapes]
    options = {"stride": stride, "padding": padding}
    h = arrays[0]
    for filter in arrays[1:3]:
        h = naive.conv2d(h, filter, None, stride, padding)
        axes = (0, 2, 3)
        h = (h - h.mean(axes, keepdims=True)) / np.sqrt(h.var(axes, keepdims=True) + 1e-5)
        h = np.maximum(h, 0)
    given = [kind(a) for a in arrays]
    out = course.CNN(*given, **options)
    np.testing.assert_allclose(array(out), h.reshape(2, -1) @ arrays[3], rtol=1e-10, atol=1e-12)

    dy = rng.normal(size=(2, 10))
    found = course.grad_CNN(*given, kind(dy), **options)
    for a, ours in zip(arrays[1:], found, strict=True):
        numeric = numeric_gradient(lambda _: course.CNN(*arrays, **options), a, dy)
        np.testing.assert_allclose(array(ours), numeric, rtol=1e-5, atol=1e-7)
    for a, before in zip(given, arrays, strict=True):
        np.testing.assert_array_equal(array(a), before)


# --- Wrong input


@pytest.mark.parametrize("conv", CONVOLUTIONS)
def test_errors_name_what_is_wrong(conv: Callable[..., Any]) -> None:
    x, w = np.ones((2, 3, 5, 5)), np.ones((4, 3, 3, 3))
    with pytest.raises(ValueError, match=r"^conv2d: w has 2 input channels, x has 3"):
        conv(x, w[:, :2])
    with pytest.raises(TypeError, match=r"^conv2d: stride"):
        conv(x, w, stride=1.5)
    with pytest.raises(ValueError, match=r"^conv2d: padding"):
        conv(x, w, padding=-1)
    with pytest.raises(ValueError, match=r"^conv2d: "):
        conv(x[0], w)


def test_network_errors_name_what_is_wrong() -> None:
    img, filter_1, filter_2 = np.ones((2, 1, 4, 4)), np.ones((2, 1, 3, 3)), np.ones((2, 2, 3, 3))
    weight = np.ones((32, 10))
    for wrong in (weight.T, weight[1:], weight[:, 0], None):
        with pytest.raises(ValueError, match=r"^CNN: weight must have shape \(32, classes\), not"):
            course.CNN(img, filter_1, filter_2, wrong)
    for grad in (np.ones((2, 9)), np.ones((1, 10)), np.ones(10), None):
        with pytest.raises(
            ValueError, match=r"^grad_CNN: grad_loss must have shape \(2, 10\), not"
        ):
            course.grad_CNN(img, filter_1, filter_2, weight, grad)


def test_pytorch_is_not_needed() -> None:
    code = "import sys, cnnfast.compat.cpen455; print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"
