"""What the courses' networks share: scores without labels, loss and gradients with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from cnnfast import nn

__all__ = ["Classifier"]

Array = NDArray[Any]

_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Linear)


class Classifier(nn.Sequential):
    r"""A sequence of layers that ends in class scores, with the courses' ``loss(X, y)``.

    The loss is the softmax cross-entropy, averaged over the batch, plus an L2 penalty on the
    weights of the convolutional and linear layers (not on biases, nor on batch norm):

    .. math:: L = -\frac1N \sum_n \log p_n(y_n) + f r \sum_W \lVert W \rVert^2

    Parameters
    ----------
    layers : Mapping[str, nn.Layer]
        The layers in order, by name.
    reg : float
        :math:`r`, the strength of the penalty; may be set later (`model.reg`).
    l2_factor : float
        :math:`f`. Stanford's and UCLA's courses have 0.5 there, Michigan's has 1.
    dtype : dtype
        The dtype of the parameters; `loss` computes in it, whatever the dtype of `X`.
    """

    def __init__(
        self, layers: Mapping[str, nn.Layer], *, reg: float, l2_factor: float, dtype: Any
    ) -> None:
        super().__init__(layers)
        self.reg = reg
        self.l2_factor = l2_factor
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self._lap: Callable[[str], None] = _untimed

    @contextmanager
    def timed(self, lap: Callable[[str], None]) -> Iterator[None]:
        """Let `loss` call `lap` with "forward", "loss" and "backward" when each is done."""
        self._lap = lap
        try:
            yield
        finally:
            self._lap = _untimed

    @overload
    def loss(self, X: Array, y: None = None) -> Array: ...
    @overload
    def loss(self, X: Array, y: Array) -> tuple[float, dict[str, Array]]: ...
    def loss(self, X: Array, y: Array | None = None) -> Array | tuple[float, dict[str, Array]]:
        """Scores of a batch, or its loss and gradients.

        Parameters
        ----------
        X : ndarray, (N, ...)
            A batch.
        y : ndarray of int, (N,), optional
            Labels. With them the layers work as in training, without them as in inference,
            whatever `training` says.

        Returns
        -------
        ndarray, (N, num_classes)
            The scores, if `y` is None.
        (float, dict[str, ndarray])
            Else the loss, and its gradient for each of `params`.
        """
        X = np.asarray(X, self.dtype)
        if y is None:
            with in_mode(self, training=False):
                return self.forward(X)
        with in_mode(self, training=True):
            loss, grads = loss_and_grads(self, nn.CrossEntropyLoss(), X, y, self._lap)
        if self.reg:
            strength = self.l2_factor * self.reg
            for name, layer in self.named_layers():
                if isinstance(layer, _WEIGHTED):
                    W = layer.weight
                    loss += strength * float(np.vdot(W, W))
                    grads[f"{name}.weight"] += 2.0 * strength * W
        return loss, grads


def _untimed(part: str) -> None:
    """Nobody asks where the time goes."""


def loss_and_grads(
    network: nn.Layer, criterion: nn.Loss, X: Array, y: Array, lap: Callable[[str], None]
) -> tuple[float, dict[str, Array]]:
    """The loss of a batch and its gradient for each parameter, the layers' own arrays.

    `lap` is told when the forward pass, the loss and the backward pass are done.
    """
    scores = network.forward(X)
    lap("forward")
    loss = criterion(scores, y)
    dscores = criterion.backward()
    lap("loss")
    # Nobody asks for the gradient by the images, and the first layer's is a costly one.
    wanted, network.needs_input_grad = network.needs_input_grad, False
    try:
        network.backward(dscores)
    finally:
        network.needs_input_grad = wanted
    lap("backward")
    return loss, dict(network.grads)


@contextmanager
def in_mode(network: nn.Layer, training: bool) -> Iterator[None]:
    """All layers in training or in inference mode, and each as it was before at the end."""
    before = [(layer, layer.training) for _, layer in network.named_layers()]
    network.train(training)
    try:
        yield
    finally:
        for layer, mode in before:
            layer.training = mode


def start(
    network: nn.Sequential, weight_scale: float | str, *, rng: np.random.Generator | None
) -> None:
    """Draw the weights of convolutional and linear layers as the courses do; biases are 0.

    Parameters
    ----------
    network : nn.Sequential
        Its parameters are overwritten.
    weight_scale : float or "kaiming"
        Standard deviation of a normal distribution; "kaiming" takes ``sqrt(2 / fan_in)``, and
        ``sqrt(1 / fan_in)`` for the last layer, which no ReLU follows.
    rng : numpy.random.Generator, optional
        A fresh one without it.

    References
    ----------
    He et al., "Delving deep into rectifiers", 2015.
    """
    rng = np.random.default_rng() if rng is None else rng
    weighted = [layer for layer in network if isinstance(layer, _WEIGHTED)]
    for layer in weighted:
        scale = weight_scale
        if isinstance(scale, str):
            gain = 1.0 if layer is weighted[-1] else 2.0
            scale = (gain / (layer.weight.size / len(layer.weight))) ** 0.5
        layer.weight[...] = rng.normal(0.0, scale, layer.weight.shape)
        if layer.bias is not None:
            layer.bias[...] = 0.0


def checked_scale(who: str, weight_scale: float | str) -> float | str:
    """`weight_scale` if it is a number of at least 0, or "kaiming"."""
    if weight_scale == "kaiming":
        return "kaiming"
    if isinstance(weight_scale, str) or not weight_scale >= 0:
        raise ValueError(
            f'{who}: weight_scale must be a number of at least 0 or "kaiming", got {weight_scale!r}'
        )
    return weight_scale


def image_dims(who: str, name: str, dims: Sequence[int]) -> tuple[int, int, int]:
    """(C, H, W), three positive integers."""
    try:
        C, H, W = (int(n) for n in dims)
    except (TypeError, ValueError):
        raise ValueError(f"{who}: {name} must be (C, H, W), got {dims!r}") from None
    if min(C, H, W) < 1:
        raise ValueError(f"{who}: {name} must be positive, got {dims!r}")
    return C, H, W
