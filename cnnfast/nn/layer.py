"""What every layer is: named arrays, a forward and a backward pass, and the layers inside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from cnnfast.arrays import namespace

Array = NDArray[Any]


# How often a layer, whichever, has got another layer, mode or setting.
_changes = 0


def changes() -> int:
    """A number that is another one whenever a network may have another structure than before."""
    return _changes


def _note_change() -> None:
    global _changes
    _changes += 1


class NamedArrays(dict[str, Array]):
    """Arrays by name, where setting an entry writes into the array that is there.

    ``layer.params["weight"] = w`` copies `w` into the layer's own array, so whoever else holds
    that array (an optimiser) sees the change too. A name that is not there is a KeyError, a
    different shape a ValueError.
    """

    def __setitem__(self, name: str, value: Any) -> None:
        if name not in self:
            raise KeyError(f"{name!r} is not one of {list(self)}")
        write(self[name], value, name)

    def update(self, *args: Any, **kwargs: Any) -> None:
        for name, value in dict(*args, **kwargs).items():
            self[name] = value

    def __ior__(self, other: Any) -> Self:  # type: ignore[misc, override]
        self.update(other)
        return self

    def __reduce__(self) -> Any:
        # Unpickling would go through __setitem__, which needs entries that are there already.
        return dict, (dict(self),)


class Gradients(NamedArrays):
    """The gradients of a layer by name, where setting an entry hands one in.

    The name is that of any parameter of the layer, whether or not it has a gradient yet. The
    gradient is copied, in the dtype of its parameter, whose shape it must have.
    """

    def __init__(self, layer: Layer) -> None:
        self._holders = {
            _dotted(prefix, name): (inner, name)
            for prefix, inner in layer.named_layers()
            for name in inner._param_names
            if inner.__dict__[name] is not None
        }
        super().__init__(
            (dotted, inner._grads[name])
            for dotted, (inner, name) in self._holders.items()
            if name in inner._grads
        )

    def __setitem__(self, name: str, value: Any) -> None:
        if name not in self._holders:
            raise KeyError(f"{name!r} is not one of the parameters {list(self._holders)}")
        # In place already, as after ``grads[name] *= 2``.
        if name in self and value is self[name]:
            return
        layer, own_name = self._holders[name]
        where = f"{type(layer).__name__}: the gradient of {own_name!r}"
        layer._grads[own_name] = _converted(where, value, layer.__dict__[own_name])
        dict.__setitem__(self, name, layer._grads[own_name])


class Frozen:
    """The arrays of a layer, which `Layer.freeze` has made read-only, until they are thawed."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        held = ((n, layer.__dict__[n]) for n in (*layer._param_names, *layer._buffer_names))
        self._arrays = {name: array for name, array in held if array is not None}
        self._were_writable = [n for n, array in self._arrays.items() if array.flags.writeable]
        for array in self._arrays.values():
            array.flags.writeable = False

    def holds(self) -> bool:
        """Whether nobody has made one of them writable again, or put another in its place."""
        held = self._layer.__dict__
        return True not in [
            array.flags.writeable or held.get(name) is not array
            for name, array in self._arrays.items()
        ]

    def thaw(self) -> None:
        for name in self._were_writable:
            array = self._arrays[name]
            try:
                array.flags.writeable = True
            except ValueError:  # NumPy allows no way back for arrays that came out of a pickle
                self._layer.__dict__[name] = array.copy()


class Later:
    """What layers remember, instead of what `backward` wants, of a pass that kept none of it."""

    def recall(self) -> None:
        """Give every layer that remembers this what it would remember by itself."""
        raise NotImplementedError


class LoadResult(NamedTuple):
    """What `Layer.load_state_dict` did not find (`missing_keys`) or not use."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Layer:
    """A layer, or a network of layers.

    A layer of one's own is a subclass that calls ``super().__init__()`` and has a `forward` and a
    `backward`. Layers that it keeps as attributes become part of it, under the attribute's name
    and in the order of assignment, as in PyTorch; arrays become parameters or buffers through
    `add_param` and `add_buffer`. Its `backward` sets ``self.grads[name]`` for each parameter of its
    own.

    A layer remembers its last forward pass, and `backward` goes back through that one. So use one
    layer object for each place in a network, do not change an input in between, and do not call
    one layer from several threads at once. A copy or a pickle carries parameters, buffers and
    settings, but neither gradients nor what the forward pass left behind.

    Attributes
    ----------
    training : bool
        Whether the layer behaves as in training (batch statistics, dropout) or as in inference.
    params, grads, buffers : dict of str to ndarray
        The arrays of this layer and of all layers inside it, in PyTorch's order, named as in the
        state dict. They are the live arrays. Setting an entry of `params` or `buffers` writes into
        the live array; setting one of `grads` gives the parameter that gradient, copied.
        `grads` holds what the last `backward` left: each call overwrites it, nothing accumulates.
        A gradient has the shape and dtype of its parameter.
    needs_input_grad : bool
        Set to False on the first layer of a network, `backward` may skip the gradient by the input
        and return None: for a first convolution that is half of its backward pass. A container
        hands it on to the layers that see its input.

    Notes
    -----
    Parameters are float32 unless ``dtype=`` says otherwise. An input of another float type is
    not an error: float32 and float64 mixed compute in float64 and come out as float64. Arrays of
    another library, on the CPU, come out as that library's; parameters and their gradients are
    always NumPy's.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnfast import nn
    >>> class Twice(nn.Layer):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.fc = nn.Linear(3, 2)
    ...     def forward(self, x):
    ...         return 2 * self.fc(x)
    ...     def backward(self, dy):
    ...         return self.fc.backward(2 * dy)
    >>> layer = Twice()
    >>> list(layer.params)
    ['fc.weight', 'fc.bias']
    >>> y = layer(np.ones((4, 3), np.float32))
    >>> layer.backward(np.ones_like(y)).shape, layer.grads["fc.bias"]
    ((4, 3), array([8., 8.], dtype=float32))

    One with a parameter of its own, whose gradient it hands in:

    >>> class Scale(nn.Layer):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.add_param("scale", np.ones(3))
    ...     def forward(self, x):
    ...         self._x = x
    ...         return x * self.scale
    ...     def backward(self, dy):
    ...         self.grads["scale"] = (dy * self._x).sum(0)
    ...         return dy * self.scale
    >>> scale = Scale()
    >>> dx = scale.backward(np.ones_like(scale(np.ones((4, 3)))))
    >>> scale.grads["scale"]
    array([4., 4., 4.])
    """

    training: bool
    _layers: dict[str, Layer]
    _param_names: list[str]
    _buffer_names: list[str]
    _grads: dict[str, Array]
    _needs_input_grad: bool
    _frozen: Frozen | None
    _saved: Any
    # Arrays of its own that a state dict may lack without being incomplete.
    _optional_state: ClassVar[frozenset[str]] = frozenset()

    if TYPE_CHECKING:
        # Parameters, buffers and the layers of a container become attributes at run time.
        def __getattr__(self, name: str) -> Any: ...

    def __init__(self) -> None:
        self.training = True
        self._layers = {}
        self._param_names = []
        self._buffer_names = []
        self._grads = {}
        self._needs_input_grad = True
        self._frozen = None
        self._saved = None

    def forward(self, x: Array) -> Array:
        """The layer's output for `x`."""
        raise NotImplementedError(f"{type(self).__name__} has no forward method")

    def backward(self, dy: Array) -> Any:
        """The gradient by the last input, from `dy`, the gradient by the output that it gave.

        Fills `grads`. None if `needs_input_grad` is False and the layer makes use of that.

        Raises
        ------
        RuntimeError
            No forward pass came before.
        """
        raise NotImplementedError(f"{type(self).__name__} has no backward method")

    def __call__(self, x: Array) -> Array:
        return self.forward(x)

    # Arrays and layers inside

    def add_param(self, name: str, value: Array | None) -> None:
        """Make `value` the parameter `name`; None keeps the name for a parameter left out."""
        self._add_array(self._names("_param_names"), name, value)

    def add_buffer(self, name: str, value: Array | None) -> None:
        """Make `value` the buffer `name`: saved with the parameters, but not trained."""
        self._add_array(self._names("_buffer_names"), name, value)

    def add_layer(self, name: str, layer: Layer) -> None:
        """Make `layer` part of this one under `name`, as ``self.name = layer`` does."""
        if not isinstance(layer, Layer):
            raise TypeError(
                f"{type(self).__name__}: {name} must be a layer, not {type(layer).__name__}"
            )
        if name not in self._names("_layers"):
            self._check_name(name)
        self._layers[name] = layer
        object.__setattr__(self, name, layer)
        _note_change()

    def _names(self, registry: str) -> Any:
        try:
            return self.__dict__[registry]
        except KeyError:
            raise RuntimeError(
                f"{type(self).__name__}.__init__ must call super().__init__() before anything else"
            ) from None

    def _check_name(self, name: str) -> None:
        if not name or "." in name:
            raise ValueError(
                f"{type(self).__name__}: a name must be non-empty and have no dot, not {name!r}"
            )
        if name in self.__dict__ or hasattr(type(self), name):
            raise ValueError(f"{type(self).__name__}: the name {name!r} is taken")

    def _add_array(self, names: list[str], name: str, value: Array | None) -> None:
        if value is not None and not isinstance(value, np.ndarray):
            raise TypeError(
                f"{type(self).__name__}: {name} must be an array, not {type(value).__name__}"
            )
        self._check_name(name)
        names.append(name)
        object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        known = self.__dict__
        if isinstance(value, Layer):
            if name in known and name not in self._names("_layers"):
                del self.__dict__[name]  # a plain attribute, such as None, gives way
            self.add_layer(name, value)
        elif name in known.get("_param_names", ()) or name in known.get("_buffer_names", ()):
            if known[name] is None:
                raise ValueError(
                    f"{type(self).__name__}: this layer was made without {name}; "
                    f"make a new one to have it"
                )
            write(known[name], value, f"{type(self).__name__}: {name}")
        else:
            known.get("_layers", {}).pop(name, None)
            object.__setattr__(self, name, value)
            if not name.startswith("_"):
                _note_change()

    def __delattr__(self, name: str) -> None:
        object.__delattr__(self, name)
        self._layers.pop(name, None)
        _note_change()
        for names in (self._param_names, self._buffer_names):
            if name in names:
                names.remove(name)

    def named_layers(self, prefix: str = "") -> Iterator[tuple[str, Layer]]:
        """This layer (named ``prefix``) and then every layer inside it, with dotted names.

        Examples
        --------
        >>> from cnnfast import nn
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU()))
        >>> [name for name, _ in net.named_layers()]
        ['', '0', '1', '1.0']
        """
        layers = self._names("_layers")
        yield prefix, self
        for name, layer in layers.items():
            yield from layer.named_layers(_dotted(prefix, name))

    def _arrays(self, *registries: str) -> Iterator[tuple[str, Array]]:
        for prefix, layer in self.named_layers():
            for registry in registries:
                for name in layer.__dict__[registry]:
                    if layer.__dict__[name] is not None:
                        yield _dotted(prefix, name), layer.__dict__[name]

    @property
    def params(self) -> NamedArrays:
        return NamedArrays(self._arrays("_param_names"))

    @property
    def buffers(self) -> NamedArrays:
        return NamedArrays(self._arrays("_buffer_names"))

    @property
    def grads(self) -> NamedArrays:
        return Gradients(self)

    # Settings

    def train(self, mode: bool = True) -> Self:
        """Put this layer and all layers inside it into training mode. Returns the layer.

        Arrays that are frozen become writable again.
        """
        for _, layer in self.named_layers():
            layer.training = bool(mode)
            if mode and layer._frozen is not None:
                layer._frozen.thaw()
                layer._frozen = None
        return self

    def eval(self) -> Self:
        """Put this layer and all layers inside it into inference mode. Returns the layer."""
        return self.train(False)

    def freeze(self) -> Self:
        """`eval`, with arrays that cannot change. Returns the layer.

        In inference, convolutions keep their weights in the form that the kernel wants, and look
        at each call whether an array has changed since, which takes as long as reading all of them.
        Frozen arrays are read-only, and nobody needs to look. `train` makes them writable again.

        They stay the same objects, in the hands of an optimiser for instance. A view of one, made
        before, is writable still; what is written through it now may have no effect.

        Examples
        --------
        >>> import numpy as np
        >>> from cnnfast import nn
        >>> layer = nn.Conv2d(1, 1, 3).freeze()
        >>> layer.weight[...] = 0
        Traceback (most recent call last):
            ...
        ValueError: assignment destination is read-only
        """
        self.eval()
        for _, layer in self.named_layers():
            if layer._frozen is None:
                layer._frozen = Frozen(layer)
        return self

    @property
    def needs_input_grad(self) -> bool:
        return self._needs_input_grad

    @needs_input_grad.setter
    def needs_input_grad(self, value: bool) -> None:
        self._needs_input_grad = bool(value)
        for layer in self._input_layers():
            layer.needs_input_grad = value

    def _input_layers(self) -> Iterable[Layer]:
        """The layers inside whose gradient by the input nobody needs if nobody needs this one's."""
        return ()

    def _opened(self) -> Iterable[Any]:
        """In inference, what may stand in its place among others: itself, or layers inside."""
        return (self,)

    # Saving

    def state_dict(self) -> dict[str, Array]:
        """Copies of all parameters and buffers, with PyTorch's keys in PyTorch's order.

        PyTorch's are the live arrays; these are copies, so that a state kept as the best so far
        stays what it was. The live arrays are in `params` and `buffers`.
        """
        arrays = self._arrays("_param_names", "_buffer_names")
        return {name: np.array(array, order="C") for name, array in arrays}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> LoadResult:
        """Take over parameters and buffers, written into the arrays that are there.

        Parameters
        ----------
        state_dict : mapping of str to array_like
            Arrays, or anything that NumPy can view (PyTorch tensors too, bfloat16 among them).
            Values are cast to the dtype of the layer.
        strict : bool
            Whether a missing key, or one that the layer does not have, is an error. The
            ``num_batches_tracked`` of a batch normalisation may always be missing, as it is in old
            files of PyTorch's, and then stays as it is.

        Returns
        -------
        LoadResult
            The keys ``(missing_keys, unexpected_keys)``; both empty if `strict`.

        Raises
        ------
        ValueError, TypeError
            Keys or shapes that do not fit, values that are not real numbers, or masked, or frozen
            arrays. Then nothing at all has been changed.

        Examples
        --------
        >>> import numpy as np
        >>> from cnnfast import nn
        >>> layer = nn.Linear(2, 1)
        >>> layer.load_state_dict({"weight": [[1, 2]], "bias": [0.5]})
        LoadResult(missing_keys=[], unexpected_keys=[])
        >>> layer(np.array([[1, 1]], np.float32))
        array([[3.5]], dtype=float32)
        """
        me = type(self).__name__
        if not isinstance(state_dict, Mapping):
            raise TypeError(
                f"{me}.load_state_dict: expected a mapping of names to arrays, "
                f"not {type(state_dict).__name__}"
            )
        own = dict(self._arrays("_param_names", "_buffer_names"))
        for name, array in own.items():
            _writable(f"{me}.load_state_dict: {name!r}", array)
        optional = {
            _dotted(prefix, name)
            for prefix, layer in self.named_layers()
            for name in layer._optional_state
        }
        missing = [name for name in own if name not in state_dict and name not in optional]
        unexpected = [name for name in state_dict if name not in own]
        if strict and (missing or unexpected):
            raise ValueError(
                f"{me}.load_state_dict: "
                + "; ".join(
                    f"{what} {', '.join(map(repr, names))}"
                    for what, names in (("missing", missing), ("unexpected", unexpected))
                    if names
                )
            )
        # Everything is converted before anything is written, so that an error changes nothing.
        values = {
            name: _converted(f"{me}.load_state_dict: {name!r}", state_dict[name], array)
            for name, array in own.items()
            if name in state_dict
        }
        for name, value in values.items():
            own[name][...] = value
        return LoadResult(missing, unexpected)

    # For the layers themselves

    def _recall(self) -> Any:
        """What `forward` saved for `backward`."""
        if self._saved is None:
            raise RuntimeError(
                f"{type(self).__name__}.backward: there is no forward pass to go back through; "
                f"call the layer on an input first"
            )
        if isinstance(self._saved, Later):
            self._saved.recall()
        return self._saved

    def _set_grads(self, **grads: Any) -> None:
        """Keep the gradients that are not None, in the dtype of their parameters."""
        for name, grad in grads.items():
            if grad is not None:
                self._grads[name] = np.asarray(grad, self.__dict__[name].dtype)

    def extra_repr(self) -> str:
        """What stands between the parentheses of the layer's repr."""
        return ""

    def __repr__(self) -> str:
        if not self.__dict__.get("_layers"):
            return f"{type(self).__name__}({self.extra_repr()})"
        lines = [f"({name}): {layer!r}" for name, layer in self._layers.items()]
        if self.extra_repr():
            lines.insert(0, self.extra_repr())
        body = "\n".join(lines).replace("\n", "\n  ")
        return f"{type(self).__name__}(\n  {body}\n)"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_saved": None, "_grads": {}, "_frozen": None}


def write(target: Array, value: Any, name: str) -> None:
    """Copy `value` into `target`, whose shape it must have, as `name` says in an error."""
    if value is not target:
        _writable(name, target)
        target[...] = _converted(name, value, target)


def _writable(name: str, array: Array) -> None:
    if not array.flags.writeable:
        raise ValueError(
            f"{name} is read-only; `train` makes the arrays of a frozen layer writable"
        )


def copied(x: Any) -> Any:
    """A copy of an array of any library."""
    return namespace(x).asarray(x, copy=True)


def real_array(name: str, value: Any) -> Array:
    """`value` as a NumPy array of real numbers, as `name` says in an error."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must not be a masked array; fill it first, with filled(0)")
    if hasattr(value, "detach"):  # a PyTorch tensor, which may need its gradient or be on a GPU
        value = value.detach().cpu()
        if value.is_floating_point() and value.element_size() < 4:
            value = value.float()  # NumPy has no bfloat16; float32 holds all of it
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} cannot be read as an array: {error}") from None
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must hold real numbers, not {array.dtype}")
    return array


def _converted(name: str, value: Any, like: Array) -> Array:
    """`value` as a new array of the shape and dtype of `like`."""
    array = real_array(name, value)
    if array.shape != like.shape:
        raise ValueError(f"{name} must have shape {like.shape}, not {array.shape}")
    if like.dtype.kind == "i" and array.dtype.kind == "f" and not np.all(array == np.trunc(array)):
        raise TypeError(f"{name} must hold integers, not {array!r}")
    return array.astype(like.dtype)


def _dotted(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
