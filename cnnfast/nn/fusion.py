"""Neighbouring layers in one pass: which ones, and how.

In inference a convolution, the batch normalisation behind it and the ReLU behind that are one
convolution with other weights, kept in the form that the kernel wants until one of the arrays
changes. In training a ReLU goes into the store of the convolution, or of the batch normalisation,
in front of it.

In inference such convolutions in a row, with the blocks that add their input to what some of them
make of it, hand on images that nobody keeps, blocked by channels where that is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from math import inf
from typing import Any, NamedTuple

import numpy as np

from cnnfast import fused
from cnnfast.nn.activation import ReLU, ReLU6
from cnnfast.nn.conv import Conv1d, Conv2d, ConvTranspose1d, ConvTranspose2d
from cnnfast.nn.layer import Array, Later, Layer, changes
from cnnfast.nn.linear import Linear
from cnnfast.nn.normalization import BatchNorm1d, BatchNorm2d
from cnnfast.nn.pooling import (
    AdaptiveAvgPool2d,
    AdaptiveMaxPool2d,
    AvgPool1d,
    AvgPool2d,
    MaxPool1d,
    MaxPool2d,
)
from cnnfast.nn.prepared import Prepared, PreparedCall, arrays_sum
from cnnfast.nn.shape import Flatten

# Where these layers cut off their input, beside 0.
_CEILINGS: dict[Any, float] = {ReLU: inf, ReLU6: 6.0}

_CONVOLUTIONS, _NORMS = (Conv1d, Conv2d), (BatchNorm1d, BatchNorm2d)

# What a layer that can be folded is told beside its arrays, and types of it that cannot change.
_SETTINGS = ("stride", "padding", "dilation", "groups", "eps", "method")
_CONSTANTS = (int, float, str, tuple)

# Layers whose results share no memory with what they are given.
_FRESH = (
    *(Conv1d, Conv2d, ConvTranspose1d, ConvTranspose2d, BatchNorm1d, BatchNorm2d),
    *(MaxPool1d, MaxPool2d, AdaptiveMaxPool2d, AvgPool1d, AvgPool2d, AdaptiveAvgPool2d, Linear),
)


# Convolutions that must follow each other for their images to be turned about into blocks.
_BLOCKED = 3


class Identity(NamedTuple):
    """A block that gives ``inner(x) + x``, among opened layers."""

    block: Layer
    inner: tuple[Any, ...]


def opened(layers: Iterable[Layer]) -> tuple[Any, ...]:
    """The layers as inference sees them: those inside containers instead of these."""
    found: list[Any] = []
    for layer in layers:
        own = layer.training or "forward" in layer.__dict__ or "backward" in layer.__dict__
        found.extend((layer,) if own else layer._opened())
    return tuple(found)


class Step:
    """Layers that follow each other, computed in one pass where that can be done.

    What each layer remembers is what it would have by itself, so `backward` may go through the
    layers one by one.
    """

    def __init__(self, *layers: Layer) -> None:
        self.layers = layers

    def forward(self, x: Array) -> Array:
        y: Array | None = self.fused_forward(x)
        if y is not None:
            return y
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def backward(self, dy: Array) -> Any:
        dx = self.fused_backward(dy)
        if dx is None:
            dx = dy
            for layer in reversed(self.layers):
                dx = layer.backward(dx)
                if dx is None:
                    break
        return dx

    def fused_forward(self, x: Array) -> Any:
        """The result of all layers, or None with nothing done."""
        return None

    def fused_backward(self, dy: Array) -> Any:
        """The gradient by the input, or None with nothing done."""
        return None


class ConvolutionReLU(Step):
    """In training: the ReLU in the store of the convolution."""

    def fused_forward(self, x: Array) -> Any:
        convolution, relu = self.layers
        if not fused.free("relu", relu.method):
            return None
        plan = fused.convolution(
            x, convolution.weight, convolution.sliding, inf, convolution.method
        )
        y = None if plan is None else plan((x, convolution.weight, convolution.bias))
        if y is not None:
            # A ReLU's output is positive where its input is, which is all that backward asks.
            convolution._saved, relu._saved = x, y
        return y


class BatchNormReLU(Step):
    """In training: the ReLU in the second pass of the batch normalisation, and back."""

    def fused_forward(self, x: Array) -> Any:
        norm, relu = self.layers
        if not fused.free("relu", relu.method):
            return None
        y = norm.forward_relu(x)
        if y is not None:
            relu._saved = None  # its input is made for the way back, if that is asked for
        return y

    def fused_backward(self, dy: Array) -> Any:
        norm, relu = self.layers
        if norm._saved is None:
            return None
        dx = norm.backward_relu(dy) if fused.free("relu_backward", relu.method) else None
        if dx is None and relu._saved is None:
            relu._saved = norm.normalized()
        return dx


class Folded:
    """A convolution, in inference, that has taken in what follows it."""

    def __init__(self, convolution: Layer, norm: Layer | None, relu: Layer | None) -> None:
        self.layers = tuple(a for a in (convolution, norm, relu) if a is not None)
        self.convolution, self.norm, self.relu = convolution, norm, relu
        self.begins: list[Layer] = []  # blocks whose input is this one's
        self.ends: list[Layer] = []  # blocks that add their input to this one's result
        self._ceiling = _CEILINGS.get(type(relu), 0)
        self._prepared = Prepared()

    def call(self, x: Array) -> PreparedCall | None:
        """The call by which the engine computes all of it, or None."""
        if not self._free():
            return None
        return self._prepared.call(x, self.convolution, self.norm, self._ceiling)

    def blocked(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """The plan for blocked images of this plain shape, or None."""
        layer = self.convolution
        if not self._free():
            return None
        arrays = layer.weight, layer.bias
        return fused.blocked(shape, dtype, *arrays, layer.sliding, self._ceiling, layer.method)

    def blocked_call(self, plan: Any) -> PreparedCall:
        return self._prepared.blocked_call(plan, self.convolution, self.norm)

    def _free(self) -> bool:
        norm, relu = self.norm, self.relu
        return (norm is None or fused.free("batch_norm", norm.method)) and (
            relu is None or fused.free("relu", relu.method)
        )

    def sum(self) -> Any:
        """What tells whether an array of the layers has changed."""
        return arrays_sum(self.convolution, self.norm)

    def held(self) -> list[tuple[dict[str, Any], str, Any]] | None:
        """What the call depends on beside x: where it is, its name, and what it is.

        None unless all of it stays the same as long as it is the same object.
        """
        held = []
        for layer in self.layers:
            own = layer.__dict__
            arrays = (*layer._param_names, *layer._buffer_names)
            if arrays and (layer._frozen is None or not layer._frozen.holds()):
                return None
            settings = [name for name in _SETTINGS if name in own]
            if not all(type(own[name]) in _CONSTANTS for name in settings):
                return None
            held += [(own, name, own[name]) for name in (*settings, "_frozen", *arrays)]
        return held


class Unkept(Later):
    """A pass through folded convolutions, of which only the input was kept.

    `terms` are the inputs of the blocks that the pass was inside of.
    """

    def __init__(
        self,
        x: Array,
        terms: Sequence[Array] = (),
        folded: Sequence[Folded] = (),
        sums: Sequence[Any] = (),
    ) -> None:
        self._x, self._terms, self._folded, self.sums = x, [*terms], [*folded], [*sums]

    def add(self, part: Folded, sum: Any) -> None:
        """One more, whose arrays had this sum."""
        self._folded.append(part)
        self.sums.append(sum)
        for layer in part.layers:
            layer._saved = self

    def recall(self) -> None:
        """Let each layer see its input, as in the pass that was fused, whatever its mode is now."""
        for part, sum in zip(self._folded, self.sums, strict=True):
            if part.sum() != sum:
                raise RuntimeError(
                    f"{type(part.layers[0]).__name__}.backward: its arrays, or those of the "
                    f"batch normalisation behind it, have changed since the forward pass"
                )
        layers = [layer for part in self._folded for layer in part.layers]
        # A layer that somebody has called since remembers that.
        before = [(layer, layer.training, layer._saved) for layer in layers]
        x, terms = self._x, [*self._terms]
        try:
            for part in self._folded:
                terms += [x] * len(part.begins)
                for layer in part.layers:
                    layer.training = False
                    x = layer.forward(x)
                for _ in part.ends:
                    x = add(x, terms.pop())
        finally:
            for layer, training, saved in before:
                layer.training = training
                if saved is not self:
                    layer._saved = saved


class Remembered(NamedTuple):
    """Calls of frozen layers, in one row.

    Read and replaced as one, since other Python threads may run the same network.
    """

    known: Any  # what they are for,
    held: list[Any]  # of layers with these settings and arrays
    row: Any
    sums: Sequence[Any]


class FoldedConvolutions(Step):
    """In inference: convolutions one after the other, each with what it has taken in.

    What passes from one to the next is not kept, so the next ones find its memory, which is still
    in the cache, for their results. Blocks that add their input to what such convolutions make of
    it are part of the row. Where convolutions of 1x1 and of single channels follow each other, the
    images between them are blocked ones (`fused.blocked`).

    Of frozen layers, calls are remembered from input to output, and made again by one call.
    """

    def __init__(self, folded: list[Folded]) -> None:
        super().__init__(*(layer for part in folded for layer in part.layers))
        self._folded = folded
        self._own = [layer.__dict__ for layer in self.layers]
        self._remembered: Remembered | None = None

    def forward(self, x: Array) -> Array:
        known = self._key(x)
        y: Array | None = None
        remembered = self._remembered
        if remembered and remembered.known == known and fused.unchanged(remembered.held):
            y = self._again(x, remembered)
        return self._anew(x, known) if y is None else y

    def backward(self, dy: Array) -> Any:
        dx: Any = dy
        terms: list[Array] = []
        for part in reversed(self._folded):
            terms += [dx] * len(part.ends)
            for layer in reversed(part.layers):
                dx = layer.backward(dx)
                if dx is None:
                    return None
            for _ in part.begins:
                dx = add(dx, terms.pop())
        return dx

    def _again(self, x: Array, remembered: Remembered) -> Any:
        """The remembered calls; or None, as from a kernel that does not serve these numbers."""
        y = remembered.row((x,))
        if y is not None:
            saved = Unkept(x, (), self._folded, remembered.sums)
            for own in self._own:
                own["_saved"] = saved
        return y

    def _anew(self, x: Array, known: Any) -> Array:
        """Every convolution by what the dispatcher takes, remembered if `known` says for what."""
        held: Any = None if known is None else [part.held() for part in self._folded]
        if held is None or None in held:
            known = None
        steps: list[Any] = []  # as `fused.row` wants them; x is the result of the last one
        saved, terms, inside = Unkept(x), [], False
        plans, shapes = self._blocked(x)
        for i, part in enumerate(self._folded):
            if inside != (plans[i] is not None):
                x = self._turn(x, shapes[i], inside, steps)
                inside = not inside
            terms += [(x, len(steps))] * len(part.begins)
            found: Any = part.blocked_call(plans[i]) if inside else part.call(x)
            # A blocked result takes in what is added to it.
            takes = inside and bool(part.ends) and part.relu is None
            y: Any = None
            if found is not None:
                taken = [terms.pop()] if takes else []
                y = found.plan((x, *found.arrays, *(term for term, _ in taken)))
                numbers = (number for _, number in taken)
                steps.append((found.plan.untraced, (len(steps), *found.arrays, *numbers)))
            served = y is not None
            if served:
                x = y
                saved.add(part, found.sum)
            else:
                known = None
                for layer in part.layers:
                    x = layer.forward(x)
            for block in part.ends[takes:]:
                term, number = terms.pop()
                if not inside:
                    _refuse_other_shape(block, np.shape(x), np.shape(term))
                x = add(x, term)
                if served:
                    steps.append((fused.addition(x.shape, x.dtype), (len(steps), number)))
            if not served:
                saved = Unkept(x, [term for term, _ in terms])
        if inside:
            x = self._turn(x, shapes[-1], inside, steps)
        self._remembered = None
        if known is not None:
            entries = [entry for each in held for entry in each]
            self._remembered = Remembered(known, entries, fused.row(steps), saved.sums)
        return x

    def _blocked(self, x: Array) -> tuple[list[Any], list[tuple[int, ...]]]:
        """For each convolution its plan on blocked images, or None, and the shapes between all."""
        plans: list[Any] = [None] * len(self._folded)
        images = type(x) is np.ndarray and x.ndim == 4 and x.flags.c_contiguous
        if not images or any(type(part.convolution) is not Conv2d for part in self._folded):
            return plans, []
        shapes = [x.shape]
        for i, part in enumerate(self._folded):
            layer = part.convolution
            plans[i] = part.blocked(shapes[i], x.dtype)
            shapes.append(fused.convolved(shapes[i], layer.weight.shape, layer.sliding))
        # Of a block all convolutions or none, so that what it adds is of one kind.
        begun: list[int] = []
        for i, part in enumerate(self._folded):
            begun += [i] * len(part.begins)
            for block in part.ends:
                begin = begun.pop()
                _refuse_other_shape(block, shapes[i + 1], shapes[begin])
                if None in plans[begin : i + 1]:
                    plans[begin : i + 1] = [None] * (i + 1 - begin)
        runs = [[*run] for _, run in groupby(plans, lambda plan: plan is None)]
        return [plan if len(run) >= _BLOCKED else None for run in runs for plan in run], shapes

    def _turn(self, x: Array, shape: tuple[int, ...], inside: bool, steps: list[Any]) -> Any:
        """x, of this shape when it is plain, from plain to blocked or back."""
        plan = fused.turns(shape, x.dtype == np.float64)[inside]
        steps.append((plan, (len(steps),)))
        return plan((x,))

    def _key(self, x: Array) -> Any:
        """What the calls follow from beside the layers, or None where nothing is remembered."""
        surroundings = fused.surroundings()
        if surroundings is None or type(x) is not np.ndarray or not x.flags.c_contiguous:
            return None
        return x.shape, x.dtype, surroundings


def add(a: Array, b: Array) -> Array:
    """``a + b``."""
    y: Array | None = fused.add(a, b)
    return a + b if y is None else y


def _refuse_other_shape(block: Layer, y: tuple[int, ...], x: tuple[int, ...]) -> None:
    if y != x:
        raise ValueError(f"{type(block).__name__}: main gives shape {y}, x has {x}")


class AddReLU:
    """``relu(a + b)``, in one pass where that can be done."""

    def __init__(self) -> None:
        self._terms: Any = None

    def forward(self, a: Array, b: Array, relu: Layer) -> Array:
        y: Any = None
        if _plainly(relu, ReLU) and fused.free("relu", relu.method):
            y = fused.add(a, b, True)
        # The sum is taken again for the way back: the result is the caller's, who may write to it.
        self._terms = None if y is None else (a, b)
        result: Array = relu.forward(add(a, b)) if y is None else y
        return result

    def backward(self, dy: Array, relu: Layer) -> Any:
        if self._terms is not None:
            relu._saved = add(*self._terms)
        return relu.backward(dy)

    def __getstate__(self) -> dict[str, Any]:
        return AddReLU().__dict__


class Chain:
    """Layers one after the other, neighbours in one pass where that can be done.

    `layers` finds them, which takes as long as a small layer and so is done again only after
    changes.
    """

    def __init__(self) -> None:
        self._steps: list[Step] = []
        self._taken: list[Step] = []
        self._made_for: Any = None
        self._found_at: int | None = None

    def forward(self, x: Array, layers: Callable[[], tuple[Any, ...]], training: bool) -> Array:
        self._taken = self.steps(layers, training)
        for step in self._taken:
            x = step.forward(x)
        return x

    def backward(self, dy: Array, layers: Callable[[], tuple[Any, ...]], training: bool) -> Any:
        dx: Any = dy
        for step in reversed(self._taken or self.steps(layers, training)):
            dx = step.backward(dx)
            if dx is None:
                break
        return dx

    def steps(self, layers: Callable[[], tuple[Any, ...]], training: bool) -> list[Step]:
        """The steps, which are made again only if the layers or their modes are others."""
        now = changes()
        if now != self._found_at:
            found = layers()
            modes = training, _modes(found)
            if (found, modes) != self._made_for:
                self._steps = steps(found, training)
                self._made_for = found, modes
            self._found_at = now
        return self._steps

    def __getstate__(self) -> dict[str, Any]:
        return Chain().__dict__


def _modes(layers: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        _modes(a.inner) if type(a) is Identity else (a.training, "forward" in a.__dict__)
        for a in layers
    )


def steps(layers: Sequence[Any], training: bool) -> list[Step]:
    """The layers, in order, in as few steps as can be."""
    return list(_training_steps(layers) if training else _inference_steps(layers))


def _training_steps(layers: Sequence[Layer]) -> Iterable[Step]:
    at = 0
    while at < len(layers):
        layer, following = layers[at], layers[at + 1] if at + 1 < len(layers) else None
        kind: Any = None
        if following is not None and _plainly(following, ReLU) and following.training:
            # A ReLU that went into a convolution knows its input's signs from its output, which
            # nobody else must be able to write to.
            if _plainly(layer, *_CONVOLUTIONS) and _hidden(layers[at + 2 :]):
                kind = ConvolutionReLU
            elif _plainly(layer, *_NORMS) and layer.training:
                kind = BatchNormReLU
        yield Step(layer) if kind is None else kind(layer, following)
        at += 1 if kind is None else 2


def _inference_steps(layers: Sequence[Any]) -> Iterable[Step]:
    for kind, parts in groupby(_folded(layers), type):
        if kind is not Folded:
            yield from (Step(layer) for layer in parts)
            continue
        row = list(parts)
        if len(row) == 1 and len(row[0].layers) == 1 and not row[0].ends:
            yield Step(*row[0].layers)  # which prepares its weights itself
        else:
            yield FoldedConvolutions(row)


def _folded(layers: Sequence[Any]) -> Iterable[Any]:
    """The layers, convolutions with what they can take in, blocks of such as their convolutions."""
    at = 0
    while at < len(layers):
        layer = layers[at]
        at += 1
        if type(layer) is Identity:
            inner = list(_folded(layer.inner))
            if inner and all(type(part) is Folded for part in inner):
                inner[0].begins.append(layer.block)
                inner[-1].ends.append(layer.block)
                yield from inner
            else:
                yield layer.block
            continue
        if not _plainly(layer, *_CONVOLUTIONS):
            yield layer
            continue
        norm = relu = None
        if at < len(layers) and _folds(layer, layers[at]):
            norm = layers[at]
            at += 1
        if at < len(layers) and _plainly(layers[at], *_CEILINGS):
            relu = layers[at]
            at += 1
        yield Folded(layer, norm, relu)


def _plainly(layer: Any, *kinds: type) -> bool:
    """Whether a layer computes what its class says, and not what somebody has put in its place."""
    return type(layer) in kinds and "forward" not in layer.__dict__


def _hidden(behind: Sequence[Layer]) -> bool:
    """Whether the layers behind an array give none that shares memory with it."""
    for layer in behind:
        if type(layer) is not Flatten:
            return _plainly(layer, *_FRESH)
    return False


def _folds(convolution: Layer, norm: Layer) -> bool:
    """Whether the normalisation is a constant scale and shift of what the convolution gives."""
    pairs = (Conv1d, BatchNorm1d), (Conv2d, BatchNorm2d)
    return (
        (type(convolution), type(norm)) in pairs
        and "forward" not in norm.__dict__
        and not norm.training
        and norm.running_mean is not None
        and norm.running_var is not None
        and norm.num_features == convolution.out_channels
        and norm.running_mean.dtype == convolution.weight.dtype
    )
