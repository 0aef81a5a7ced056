"""Layers made of layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, overload

import numpy as np

from cnnfast.nn import fusion
from cnnfast.nn.layer import Array, Layer


def _refuse_repeats(container: Layer) -> None:
    """A layer remembers one forward pass, so it can stand in one place only."""
    seen: dict[int, str] = {}
    for name, layer in container.named_layers():
        if id(layer) in seen:
            raise ValueError(
                f"{type(container).__name__}: {seen[id(layer)]!r} and {name!r} are the same "
                f"{type(layer).__name__} object; a layer remembers its last input only, so each "
                f"place needs a layer of its own"
            )
        seen[id(layer)] = name


class Sequential(Layer):
    """Layers one after the other.

    Parameters
    ----------
    *layers : Layer
        Named ``"0"``, ``"1"``... in the state dict. Or one mapping of names to layers.

    Raises
    ------
    TypeError
        Something is not a layer.
    ValueError
        The same layer object stands in two places.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnfast import nn
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 10))
    >>> net(np.zeros((2, 1, 4, 4), np.float32)).shape
    (2, 10)
    >>> list(net.params)
    ['0.weight', '0.bias', '3.weight', '3.bias']
    >>> len(net), net[1], net[:2][0] is net[0]
    (4, ReLU(), True)
    """

    def __init__(self, *layers: Layer | Mapping[str, Layer]) -> None:
        super().__init__()
        named: Iterable[tuple[str, Any]]
        if len(layers) == 1 and isinstance(layers[0], Mapping):
            named = layers[0].items()
        else:
            named = ((str(i), layer) for i, layer in enumerate(layers))
        for name, layer in named:
            self.add_layer(name, layer)
        _refuse_repeats(self)
        self._chain = fusion.Chain()

    def append(self, layer: Layer) -> Sequential:
        """Put `layer` at the end. Returns the container."""
        name = str(len(self))
        self.add_layer(name, layer)
        try:
            _refuse_repeats(self)
        except ValueError:
            delattr(self, name)
            raise
        return self

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self._layers.values())

    @overload
    def __getitem__(self, index: int) -> Layer: ...
    @overload
    def __getitem__(self, index: slice) -> Sequential: ...
    def __getitem__(self, index: int | slice) -> Layer:
        if isinstance(index, slice):
            return Sequential(dict(list(self._layers.items())[index]))
        return list(self._layers.values())[index]

    def _input_layers(self) -> Iterator[Layer]:
        # Up to the first layer with parameters: below it, nothing else wants a gradient either.
        for layer in self:
            yield layer
            if layer.params:
                return

    def forward(self, x: Array) -> Array:
        return self._chain.forward(x, self._in_order, self.training)

    def backward(self, dy: Array) -> Any:
        return self._chain.backward(dy, self._in_order, self.training)

    def _in_order(self) -> tuple[Any, ...]:
        """The layers; in inference, those of containers in their place."""
        layers = self._layers.values()
        return tuple(layers) if self.training else fusion.opened(layers)

    def _opened(self) -> Iterable[Any]:
        return fusion.opened(self._layers.values()) if type(self) is Sequential else (self,)


class Residual(Layer):
    """``main(x) + shortcut(x)``, where the shortcut may be left out: ``main(x) + x``.

    Parameters
    ----------
    main : Layer
        Its arrays are named ``"main. ..."`` in the state dict.
    shortcut : Layer, optional
        Its arrays are named ``"shortcut. ..."``. Often a 1x1 convolution, where `main` changes
        the shape.

    Raises
    ------
    ValueError
        When called: the two results differ in shape.

    References
    ----------
    He et al., "Deep residual learning for image recognition", 2015.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnfast import nn
    >>> block = nn.Residual(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()))
    >>> block(np.zeros((2, 4, 5, 5), np.float32)).shape
    (2, 4, 5, 5)
    >>> list(block.params)
    ['main.0.weight', 'main.0.bias']
    """

    main: Layer
    shortcut: Layer | None

    def __init__(self, main: Layer, shortcut: Layer | None = None) -> None:
        super().__init__()
        self.add_layer("main", main)
        self.shortcut = None
        if shortcut is not None:
            self.shortcut = shortcut
        _refuse_repeats(self)

    def _input_layers(self) -> Iterator[Layer]:
        return iter(self._layers.values())

    def forward(self, x: Array) -> Array:
        y = self.main.forward(x)
        side = x if self.shortcut is None else self.shortcut.forward(x)
        if np.shape(y) != np.shape(side):
            raise ValueError(
                f"Residual: main gives shape {np.shape(y)}, "
                f"{'x has' if self.shortcut is None else 'shortcut gives'} {np.shape(side)}"
            )
        return fusion.add(y, side)

    def _opened(self) -> Iterable[Any]:
        if type(self) is Residual and self.shortcut is None:
            return (fusion.Identity(self, fusion.opened((self.main,))),)
        return (self,)

    def backward(self, dy: Array) -> Any:
        dx = self.main.backward(dy)
        side = dy if self.shortcut is None else self.shortcut.backward(dy)
        return None if dx is None or side is None else fusion.add(dx, side)
