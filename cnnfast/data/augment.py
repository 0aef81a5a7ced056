"""Random changes of training images: flips and shifted crops, a whole batch at once.

>>> import numpy as np
>>> augment = Augment(flip=0.5, shift=4)
>>> augment(np.ones((8, 3, 32, 32)), rng=np.random.default_rng(0)).shape
(8, 3, 32, 32)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnfast import functional as F

__all__ = ["Augment", "Stages", "alternating_flip", "flip", "mirrored", "shifted_crop"]

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


def alternating_flip(x: Array, indices: NDArray[np.int64], epoch: int) -> Array:
    """Mirror the images of one random half of all examples, and of the other half an epoch later.

    Two epochs in a row then show each image both ways, which chance often does not.

    Parameters
    ----------
    x : ndarray, (N, ..., W)
        Images. Not changed.
    indices : ndarray of int64, (N,)
        Which examples they are; the half that an example is in follows from its index.
    epoch : int
        Which epoch it is.

    Returns
    -------
    ndarray
        A new array of the shape and dtype of `x`.

    References
    ----------
    Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024, section 3.6.

    Examples
    --------
    >>> x, indices = np.array([[1, 2], [3, 4]]), np.array([0, 1])
    >>> alternating_flip(x, indices, epoch=0).tolist(), alternating_flip(x, indices, 1).tolist()
    ([[2, 1], [3, 4]], [[1, 2], [4, 3]])
    """
    # Multiplicative hashing: the top bit of the index times 2^64 over the golden ratio.
    half = (np.asarray(indices).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(63)
    turned = (half == 0) ^ (epoch % 2 == 1)
    y = x.copy(order="C")
    y[turned] = x[turned, ..., ::-1]
    return y


def mirrored(x: Array) -> Iterator[Array]:
    """The images and their mirror images: `views` for `Solver.check_accuracy`.

    Examples
    --------
    >>> [view.tolist() for view in mirrored(np.array([[1, 2, 3]]))]
    [[[1, 2, 3]], [[3, 2, 1]]]
    """
    yield x
    yield np.ascontiguousarray(x[..., ::-1])


@dataclass(frozen=True, slots=True)
class Augment:
    """Shifted crop, flip, fewer pixels: the augmentation of CIFAR-10, for `Solver`'s `augment`.

    Parameters
    ----------
    flip : float or "alternating"
        Probability of a mirror image; 0 for images whose sides matter, such as digits. Or
        `alternating_flip`, in a `Solver`.
    shift : int
        Largest move in pixels.
    shrink : int
        Blocks of so many pixels each way become one, their mean.
    """

    flip: float | str = 0.5
    shift: int = 4
    shrink: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.flip, str) and self.flip != "alternating":
            raise ValueError(f'Augment: flip must be a number or "alternating", got {self.flip!r}')
        if self.shrink < 1:
            raise ValueError(f"Augment: shrink must be at least 1, got {self.shrink}")

    def __call__(
        self,
        x: Array,
        *,
        rng: np.random.Generator,
        progress: float = 0.0,
        epoch: int = 0,
        indices: NDArray[np.int64] | None = None,
    ) -> Array:
        if self.shift:
            x = shifted_crop(x, self.shift, rng=rng)
        if isinstance(self.flip, str):
            if indices is None:
                raise ValueError("Augment: alternating flips need the indices of the images")
            x = alternating_flip(x, indices, epoch)
        elif self.flip:
            x = flip(x, self.flip, rng=rng)
        if self.shrink > 1:
            x = F.avg_pool2d(x, self.shrink)
        return x


@dataclass(frozen=True, slots=True)
class Stages:
    """One augmentation after the other in the course of a run, such as small images first.

    Parameters
    ----------
    stages : tuple of (float, Augment)
        Until which part of the run (see `Solver.progress`) each is in use; the last until the end.

    References
    ----------
    Karras et al., "Progressive growing of GANs", 2018, and Howard's entry to DAWNBench of the
    same year, which began its training on small images.

    Examples
    --------
    >>> stages = Stages(((0.4, Augment(shrink=2)), (1.0, Augment())))
    >>> rng, x = np.random.default_rng(0), np.ones((1, 3, 8, 8))
    >>> [stages(x, rng=rng, progress=p).shape for p in (0.0, 0.39, 0.4, 1.0)]
    [(1, 3, 4, 4), (1, 3, 4, 4), (1, 3, 8, 8), (1, 3, 8, 8)]
    """

    stages: tuple[tuple[float, Augment], ...]

    def __post_init__(self) -> None:
        ends = [end for end, _ in self.stages]
        if not ends or ends != sorted(ends):
            raise ValueError(f"Stages: stages must have rising ends, got {ends}")

    def __call__(
        self, x: Array, *, rng: np.random.Generator, progress: float, **moment: Any
    ) -> Array:
        for end, stage in self.stages:  # noqa: B007
            if progress < end:
                break
        return stage(x, rng=rng, progress=progress, **moment)


def _check(who: str, x: Array, rng: Any) -> None:
    if not isinstance(x, np.ndarray) or x.ndim < 2:
        raise ValueError(f"{who}: x must be an array of images, got {type(x).__name__}")
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"{who}: rng must be a numpy.random.Generator, got {type(rng).__name__}")
