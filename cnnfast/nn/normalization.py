"""Batch normalisation."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from cnnfast import functional as F
from cnnfast import fused
from cnnfast.nn.arguments import float_dtype, method_name, number, whole
from cnnfast.nn.layer import Array, Layer


class _BatchNorm(Layer):
    """Batch normalisation of x whose number of axes is one of `_ranks`."""

    weight: Array | None
    bias: Array | None
    running_mean: Array | None
    running_var: Array | None
    num_batches_tracked: Array | None
    _ranks: ClassVar[Mapping[int, str]]
    _optional_state = frozenset({"num_batches_tracked"})  # PyTorch had none before 0.4.1

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        bias: bool = True,
        dtype: Any = np.float32,
        method: str = "auto",
    ) -> None:
        super().__init__()
        me = type(self).__name__
        C = self.num_features = whole(me, "num_features", num_features, 1)
        self.eps = number(me, "eps", eps, 0)
        self.momentum = None if momentum is None else number(me, "momentum", momentum)
        self.affine = affine
        self.track_running_stats = track_running_stats
        self.method = method_name(me, "batch_norm", method)
        dtype = float_dtype(me, dtype)
        self.add_param("weight", np.ones(C, dtype) if affine else None)
        self.add_param("bias", np.zeros(C, dtype) if affine and bias else None)
        track = track_running_stats
        self.add_buffer("running_mean", np.zeros(C, dtype) if track else None)
        self.add_buffer("running_var", np.ones(C, dtype) if track else None)
        self.add_buffer("num_batches_tracked", np.zeros((), np.int64) if track else None)

    def forward(self, x: Array) -> Array:
        self._check(x)
        if self.training or self.running_mean is None or self.running_var is None:
            return self._forward_batch(x)
        y: Any = F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            eps=self.eps,
            method=self.method,
        )
        # Copies, since a batch in training mode moves the running statistics on.
        self._saved = x, self.running_mean.copy(), self.running_var.copy(), None
        normalised: Array = y
        return normalised

    def _check(self, x: Array) -> None:
        shape = np.shape(x)
        if len(shape) not in self._ranks:
            wanted = " or ".join(self._ranks.values())
            raise ValueError(f"{type(self).__name__}: x must have shape {wanted}, not {shape}")
        if shape[1] != self.num_features:
            raise ValueError(
                f"{type(self).__name__}: x must have {self.num_features} channels, "
                f"not {shape[1]} (shape {shape})"
            )

    def _forward_batch(self, x: Array) -> Array:
        """Normalise by the batch's own statistics, and let the running ones follow if in use."""
        update, momentum = self._following()
        y: Array
        y, mean, rstd = F.batch_norm(
            x,
            self.running_mean if update else None,
            self.running_var if update else None,
            self.weight,
            self.bias,
            True,
            momentum,
            self.eps,
            return_stats=True,
            method=self.method,
        )
        self._followed(update)
        self._saved = x, mean, None, rstd
        return y

    def forward_relu(self, x: Array) -> Any:
        """In training: the output through a ReLU, in one pass; None if nothing can do that."""
        self._check(x)
        update, momentum = self._following()
        results = fused.batch_norm_relu(
            x,
            self.running_mean if update else None,
            self.running_var if update else None,
            self.weight,
            self.bias,
            momentum,
            self.eps,
            self.method,
        )
        if results is None:
            return None
        self._followed(update)
        y, mean, rstd = results
        self._saved = x, mean, None, rstd
        return y

    def backward_relu(self, dy: Array) -> Any:
        """`backward`, from the gradient by what `forward_relu` gave; None if nothing can."""
        x, mean, var, rstd = self._recall()
        if var is not None:
            return None
        gradients = fused.batch_norm_relu_backward(
            dy, x, mean, rstd, self.weight, self.bias, self.method
        )
        if gradients is None:
            return None
        dx, dw, db = gradients
        self._keep(dw, db)
        return dx

    def normalized(self) -> Array:
        """What `forward_relu` gave before its ReLU, computed again."""
        x, mean, _, rstd = self._recall()
        like = (-1, *(1,) * (x.ndim - 2))
        y = (x - np.reshape(mean, like)) * np.reshape(rstd, like)
        if self.weight is not None:
            y = y * self.weight.reshape(like)
        if self.bias is not None:
            y = y + self.bias.reshape(like)
        result: Array = y.astype(x.dtype)
        return result

    def _following(self) -> tuple[bool, float]:
        """Whether the running statistics follow this batch, and by how much."""
        momentum = self.momentum
        if momentum is None:
            # Each batch weighs the same: the running statistics are their plain average so far.
            seen = 0 if self.num_batches_tracked is None else int(self.num_batches_tracked)
            momentum = 1 / (seen + 1)
        return self.training and self.track_running_stats, momentum

    def _followed(self, update: bool) -> None:
        if update and self.num_batches_tracked is not None:
            self.num_batches_tracked += 1

    def backward(self, dy: Array) -> Any:
        x, mean, var, rstd = self._recall()
        if var is None:
            dx, dw, db = F.batch_norm_backward(dy, x, mean, rstd, self.weight, method=self.method)
        else:
            dx, dw, db = self._backward_running(dy, x, mean, var)
        self._keep(dw, db)
        return dx

    def _keep(self, dw: Array, db: Array) -> None:
        if self.weight is not None:
            self._set_grads(weight=dw)
        if self.bias is not None:
            self._set_grads(bias=db)

    def _backward_running(
        self, dy: Array, x: Array, mean: Array, var: Array
    ) -> tuple[Any, Any, Any]:
        """The gradients where the statistics are constants: y is linear in x.

        ``dx = dy * weight * rstd``, which is the forward pass of dy without mean and bias. The
        gradients by weight and bias have the same formula as in training.
        """
        rstd = (1 / np.sqrt(var + np.float64(self.eps))).astype(var.dtype)
        _, dw, db = F.batch_norm_backward(dy, x, mean, rstd, self.weight, method=self.method)
        dx = F.batch_norm(
            dy, np.zeros_like(mean), var, self.weight, eps=self.eps, method=self.method
        )
        return dx, dw, db

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, "
            f"affine={self.affine}, bias={self.bias is not None}, "
            f"track_running_stats={self.track_running_stats}"
        )


class BatchNorm1d(_BatchNorm):
    """Batch normalisation of ``(N, C)`` or ``(N, C, L)``; parameters and state as `BatchNorm2d`.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnfast import nn
    >>> nn.BatchNorm1d(1, eps=0)(np.array([[1.0], [3.0]]))
    array([[-1.],
           [ 1.]])
    """

    _ranks = MappingProxyType({2: "(N, C)", 3: "(N, C, L)"})


class BatchNorm2d(_BatchNorm):
    """Batch normalisation of ``(N, C, H, W)``; see `cnnfast.batch_norm`.

    In training, and always if `track_running_stats` is False, channels are normalised by the
    batch's own mean and variance; otherwise by the running ones. `backward` follows the pass that
    came before, in either mode.

    Parameters
    ----------
    num_features : int
        C.
    eps : float
        Added to the variance.
    momentum : float or None
        Weight of the new batch in the running statistics; None: all batches weigh the same.
    affine : bool
        Whether there are `weight` and `bias`.
    track_running_stats : bool
        Whether there are running statistics.
    bias : bool, keyword only
        Whether there is a `bias` beside the `weight`.
    dtype, method : keyword only
        As for `Conv2d`.

    Attributes
    ----------
    weight, bias : ndarray (C,) or None
        Parameters, started with ones and zeros.
    running_mean, running_var : ndarray (C,) or None
        Buffers, started with zeros and ones.
    num_batches_tracked : int64 ndarray () or None
        Buffer: how many batches the running statistics have seen.

    References
    ----------
    Ioffe and Szegedy, "Batch normalization", 2015.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnfast import nn
    >>> layer = nn.BatchNorm2d(3)
    >>> y = layer(np.random.default_rng(0).normal(5, 2, (8, 3, 4, 4)).astype(np.float32))
    >>> bool(abs(y.mean()) < 1e-6), int(layer.num_batches_tracked)
    (True, 1)
    """

    _ranks = MappingProxyType({4: "(N, C, H, W)"})
