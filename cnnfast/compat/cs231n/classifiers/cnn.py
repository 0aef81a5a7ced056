"""The course's ``classifiers.cnn`` (UCLA: ``nndl.cnn``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnfast import models, nn
from cnnfast.compat.cs231n.chance import global_rng
from cnnfast.nn.layer import NamedArrays

__all__ = ["ThreeLayerConvNet"]

Array = NDArray[Any]


class ThreeLayerConvNet(models.ThreeLayerConvNet):
    """`cnnfast.models.ThreeLayerConvNet` with the course's parameters.

    conv - relu - 2x2 max pool - affine - relu - affine - softmax. The convolution keeps the size of
    the image; images may be rectangular, and sides odd.

    Parameters
    ----------
    input_dim : (int, int, int)
        C, H, W of an image.
    num_filters, filter_size : int
        Of the convolution.
    hidden_dim, num_classes : int
        Units of the two affine layers.
    weight_scale : float
        Standard deviation of the starting weights, drawn from ``np.random``'s stream.
    reg : float
        The penalty is ``0.5 * reg * sum(W**2)`` over all weights.
    dtype : dtype
        What to compute in.
    use_batchnorm : bool
        Batch normalisation before each ReLU.
    conv_layers : int
        How many convolutions, each with its ReLU, before the pooling. UCLA's network for CIFAR-10
        has 2.

    Attributes
    ----------
    params : dict of str to ndarray
        ``W1, b1, W2, b2, ...`` in the order of the layers, affine weights of shape (in, out), and
        ``gamma1, beta1, ...`` with `use_batchnorm`. They are the live arrays: what is written into
        them, or set in the dict, is the network's.

    Examples
    --------
    >>> import numpy as np
    >>> model = ThreeLayerConvNet((1, 8, 8), num_filters=4, filter_size=3, hidden_dim=16)
    >>> {name: p.shape for name, p in model.params.items() if name[0] == "W"}
    {'W1': (4, 1, 3, 3), 'W2': (64, 16), 'W3': (16, 10)}
    >>> loss, grads = model.loss(np.zeros((2, 1, 8, 8)), np.array([3, 7]))
    >>> round(loss, 4), sorted(grads)
    (2.3026, ['W1', 'W2', 'W3', 'b1', 'b2', 'b3'])
    """

    def __init__(
        self,
        input_dim: Sequence[int] = (3, 32, 32),
        num_filters: int = 32,
        filter_size: int = 7,
        hidden_dim: int = 100,
        num_classes: int = 10,
        weight_scale: float = 1e-3,
        reg: float = 0.0,
        dtype: Any = np.float32,
        use_batchnorm: bool = False,
        *,
        conv_layers: int = 1,
    ) -> None:
        sizes = input_dim, num_filters, filter_size, hidden_dim, num_classes
        options = weight_scale, reg, dtype, use_batchnorm
        super().__init__(*sizes, *options, conv_layers=conv_layers, rng=global_rng())
        self.use_batchnorm = use_batchnorm

    @property
    def params(self) -> NamedArrays:
        return NamedArrays(self._in_course_form(super().params))

    @params.setter
    def params(self, values: Mapping[str, Array]) -> None:
        self.params.update(values)

    def loss(self, X: Array, y: Array | None = None) -> Any:
        """Scores of the batch X if y is None; else the loss, and its gradient for each of `params`.

        With labels y, batch normalisation works as in training, and without as in inference.
        """
        if y is None:
            return super().loss(X)
        loss, grads = super().loss(X, y)
        return loss, self._in_course_form(grads)

    def _in_course_form(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Arrays named as the layers' in the course's names and layout. Nothing is copied."""
        form: dict[str, Array] = {}
        weighted = normalising = 0
        for name, layer in self.named_layers():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                weighted += 1
                weight = arrays[f"{name}.weight"]
                form[f"W{weighted}"] = weight.T if isinstance(layer, nn.Linear) else weight
                form[f"b{weighted}"] = arrays[f"{name}.bias"]
            elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                normalising += 1
                form[f"gamma{normalising}"] = arrays[f"{name}.weight"]
                form[f"beta{normalising}"] = arrays[f"{name}.bias"]
        return form
