"""Random changes of training images: flips and shifted crops, a whole batch at once.

>>> import numpy as np
>>> augment = Augment(flip=0.5, shift=4)
>>> augment(np.ones((8, 3, 32, 32)), rng=np.random.default_rng(0)).shape
(8, 3, 32, 32)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Augment", "flip", "shifted_crop"]

Array = NDArray[Any]


def flip(x: Array, p: float = 0.5, *, rng: np.random.Generator) -> Array:
    """Mirror each image left to right with probability `p`.

    Parameters
    ----------
    x : ndarray, (N, ..., W)
        Images. Not changed.
    p : float
        Probability, in [0, 1].
    rng : numpy.random.Generator
        Draws one number for each image.

    Returns
    -------
    ndarray
        A new array of the shape and dtype of `x`.
    """
    _check("flip", x, rng)
    if not 0 <= p <= 1:
        raise ValueError(f"flip: p must be in [0, 1], got {p}")
    mirrored = rng.random(len(x)) < p
    y = x.copy(order="C")
    y[mirrored] = x[mirrored, ..., ::-1]
    return y


def shifted_crop(x: Array, shift: int = 4, *, rng: np.random.Generator) -> Array:
    """Move each image by up to `shift` pixels each way, zeros coming in at the edges.

    The same as padding with `shift` zeros and cropping at a random place to the old size. Zero is
    the mean colour of standardised or centred images.

    Parameters
    ----------
    x : ndarray, (N, C, H, W)
        Images. Not changed.
    shift : int
        Largest move, in pixels.
    rng : numpy.random.Generator
        Draws two integers for each image.

    Returns
    -------
    ndarray
        A new array of the shape and dtype of `x`.

    References
    ----------
    He et al., "Deep residual learning for image recognition", 2016, section 4.2.
    """
    _check("shifted_crop", x, rng)
    if x.ndim != 4:
        raise ValueError(f"shifted_crop: x must be (N, C, H, W), got shape {x.shape}")
    if shift < 0:
        raise ValueError(f"shifted_crop: shift must be at least 0, got {shift}")
    N, _, H, W = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (shift, shift), (shift, shift)))
    top, left = rng.integers(0, 2 * shift + 1, size=(2, N))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (H, W), axis=(2, 3))
    return np.ascontiguousarray(windows[np.arange(N), :, top, left])


@dataclass(frozen=True, slots=True)
class Augment:
    """Shifted crop, then flip: the augmentation of CIFAR-10, for `Solver`'s `augment`.

    Parameters
    ----------
    flip : float
        Probability of a mirror image; 0 for images whose sides matter, such as digits.
    shift : int
        Largest move in pixels.
    """

    flip: float = 0.5
    shift: int = 4

    def __call__(self, x: Array, *, rng: np.random.Generator) -> Array:
        if self.shift:
            x = shifted_crop(x, self.shift, rng=rng)
        if self.flip:
            x = flip(x, self.flip, rng=rng)
        return x


def _check(who: str, x: Array, rng: Any) -> None:
    if not isinstance(x, np.ndarray) or x.ndim < 2:
        raise ValueError(f"{who}: x must be an array of images, got {type(x).__name__}")
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"{who}: rng must be a numpy.random.Generator, got {type(rng).__name__}")
