"""Dropout, of elements and of whole channels."""

from __future__ import annotations

from typing import Any

import numpy as np

from cnnfast import arrays, fused
from cnnfast import functional as F
from cnnfast.geometry import rank
from cnnfast.nn.arguments import generator, method_name, probability, refuse_inplace
from cnnfast.nn.layer import Array, Layer


class _Dropout(Layer):
    """What both hold. Each layer has a generator of its own, `rng`, which copies with it."""

    def __init__(
        self,
        p: float = 0.5,
        inplace: bool = False,
        *,
        rng: np.random.Generator | None = None,
        method: str = "auto",
    ) -> None:
        super().__init__()
        me = type(self).__name__
        refuse_inplace(me, inplace)
        self.p = probability(me, p)
        self.rng = generator(me, rng)
        self.method = method_name(me, "dropout", method)

    def extra_repr(self) -> str:
        return f"p={self.p}, inplace=False"


class Dropout(_Dropout):
    """In training, each element becomes 0 with probability `p`, and ``x / (1 - p)`` otherwise.

    Parameters
    ----------
    p : float
        From 0 to 1.
    inplace : bool
        Must be False.
    rng : numpy.random.Generator, keyword only
        Where the masks come from; a fresh generator if not given.
    method : str, keyword only
        As for `cnnfast.dropout`.

    References
    ----------
    Srivastava et al., "Dropout", 2014.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnfast import nn
    >>> layer = nn.Dropout(0.5, rng=np.random.default_rng(0))
    >>> layer(np.ones(4)), layer.eval()(np.ones(4))
    (array([2., 0., 0., 0.]), array([1., 1., 1., 1.]))
    """

    def forward(self, x: Array) -> Array:
        y: Array
        if not self.training and fused.plain(x) and fused.surroundings() is not None:
            # The operation would give the same, and take longer than a small layer does.
            self._saved = np.ones(x.shape, bool), 0.0
            y = x.copy()
            return y
        y, mask = F.dropout(
            x, self.p, self.training, rng=self.rng, return_mask=True, method=self.method
        )
        self._saved = mask, self.p if self.training else 0.0
        return y

    def backward(self, dy: Array) -> Any:
        mask, p = self._recall()
        return F.dropout_backward(dy, mask, p, method=self.method)


class Dropout2d(_Dropout):
    """In training, each channel of each image becomes 0 with probability `p`; else ``x / (1 - p)``.

    x is ``(N, C, H, W)``. Parameters as `Dropout`. As in PyTorch, a channel is dropped by
    multiplication with 0, so a dropped infinity or NaN gives NaN.

    References
    ----------
    Tompson et al., "Efficient object localization using convolutional networks", 2015.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnfast import nn
    >>> y = nn.Dropout2d(0.5, rng=np.random.default_rng(0))(np.ones((1, 4, 2, 2)))
    >>> y[0, :, 0, 0]
    array([2., 0., 0., 0.])
    """

    def forward(self, x: Array) -> Array:
        (x,), library = arrays.admit("Dropout2d", x=x)
        shape = tuple(x.shape)
        rank("Dropout2d", "x", shape, "N, C, H, W")
        # Ones go through the operation, one for each channel, for the mask that it draws.
        _, mask = F.dropout(
            np.ones((*shape[:2], 1, 1), library.compute),
            self.p,
            self.training,
            rng=self.rng,
            return_mask=True,
            method=self.method,
        )
        self._saved = mask, 1 - self.p if self.training else 1.0, shape
        y: Array = library.finish(_kept(library, mask, x, self._saved[1]))
        return y

    def backward(self, dy: Array) -> Any:
        mask, share, shape = self._recall()
        (dy,), library = arrays.admit("Dropout2d.backward", dy=dy)
        if tuple(dy.shape) != shape:
            raise ValueError(
                f"Dropout2d.backward: dy must have shape {shape}, not {tuple(dy.shape)}"
            )
        return library.finish(_kept(library, mask, dy, share))


def _kept(library: arrays.Library, mask: Array, x: Any, share: float) -> Any:
    """``x * mask / share``; where nothing is kept, nothing is divided."""
    return x * arrays.beside(mask, library, library.compute) / (share or 1.0)
