"""Weights kept, from call to call, in the form that the kernel wants."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from cnnfast import fused
from cnnfast.nn.layer import Array, Layer

# Kernels (one for each size of input) for which a layer keeps weights at a time.
_MOST_KERNELS = 4


class PreparedCall(NamedTuple):
    """A plan, the arrays it takes behind x, and what tells whether the layers' have changed."""

    plan: Any
    arrays: tuple[Any, ...]
    sum: Any


class Prepared:
    """A convolution in inference, with the normalisation and the ReLU that may follow it.

    Batch normalisation by running statistics is ``y * scale + shift`` for each filter, so the
    scale goes into the weights and the shift into the bias: Jacob et al., "Quantization and
    training of neural networks", 2018, section 3.2.

    Whether an array has changed since is seen from its checksum, which costs reading it once, and
    misses no way of changing it; unless it is frozen.
    """

    def __init__(self) -> None:
        self._sum: Any = None  # of the arrays as they were when last seen
        self._weight: Any = None
        self._bias: Any = None
        self._packed: dict[Any, Any] = {}
        self._plans: dict[Any, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return Prepared().__dict__

    def forward(self, x: Array, layer: Layer) -> Any:
        """The output, or None, with nothing done, where the dispatcher takes another method."""
        call = self.call(x, layer)
        return None if call is None else call.plan((x, *call.arrays))

    def call(
        self, x: Array, layer: Layer, norm: Layer | None = None, ceiling: float = 0
    ) -> PreparedCall | None:
        """How the output comes about, or None where the dispatcher takes another method."""
        plan = self._plan(x, layer, ceiling)
        if plan is None:
            return None
        self._follow(layer, norm)
        packed = self._prepare(plan, self._weight)
        return PreparedCall(plan, (self._weight, self._bias, packed), self._sum)

    def blocked_call(self, plan: Any, layer: Layer, norm: Layer | None) -> PreparedCall:
        """How `plan`, which is for blocked images, is called."""
        self._follow(layer, norm)
        return PreparedCall(plan, (self._prepare(plan, self._weight, self._bias),), self._sum)

    def _prepare(self, plan: Any, *arrays: Any) -> Any:
        """The arrays as the kernel wants them."""
        if plan not in self._packed:
            if len(self._packed) >= _MOST_KERNELS:
                self._packed.clear()
            self._packed[plan] = plan.prepare(*arrays)
        return self._packed[plan]

    def _plan(self, x: Array, layer: Layer, ceiling: float) -> Any:
        """The plan for inputs like x, remembered where that follows from what is compared here."""
        sliding, w = layer.sliding, layer.weight
        surroundings = fused.surroundings(layer.method)
        if surroundings is None or type(x) is not np.ndarray:
            return fused.convolution(x, w, sliding, ceiling, layer.method, True)
        key = (x.shape, x.dtype, sliding, w.shape, w.dtype, ceiling, surroundings)
        plan = self._plans.get(key)
        if plan is None:
            plan = fused.convolution(x, w, sliding, ceiling, layer.method, True)
            if len(self._plans) >= _MOST_KERNELS:
                self._plans.clear()
            self._plans[key] = plan
        return plan

    def _follow(self, layer: Layer, norm: Layer | None) -> None:
        """Take the arrays again if one of them has changed."""
        found = arrays_sum(layer, norm)
        if found != self._sum:
            self._packed.clear()
            self._weight, self._bias = layer.weight, layer.bias
            if norm is not None:
                self._weight, self._bias = _folded(layer, norm)
            self._sum = found


def arrays_sum(layer: Layer, norm: Layer | None) -> Any:
    """What tells whether any array of the two layers has changed."""
    layers = (layer,) if norm is None else (layer, norm)
    frozen = [a._frozen for a in layers if a._frozen is not None and a._frozen.holds()]
    if len(frozen) == len(layers):
        return norm and norm.eps, *frozen
    if norm is None:
        return fused.checksum(layer.weight, layer.bias)
    statistics = norm.running_mean, norm.running_var
    arrays = layer.weight, layer.bias, norm.weight, norm.bias, *statistics
    return norm.eps, fused.checksum(*arrays)


def _folded(layer: Layer, norm: Layer) -> tuple[Array, Array]:
    """Weights and bias of the convolution that normalises, too."""
    dtype = layer.weight.dtype
    scale = 1 / np.sqrt(norm.running_var.astype(np.float64) + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean.astype(np.float64) * scale
    if layer.bias is not None:
        shift = shift + layer.bias * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    by_filter = scale.reshape(-1, *(1,) * (layer.weight.ndim - 1))
    return (layer.weight * by_filter).astype(dtype), shift.astype(dtype)
