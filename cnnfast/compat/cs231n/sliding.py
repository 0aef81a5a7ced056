"""Convolution and max pooling with the course's parameters and caches, by any method."""

from __future__ import annotations

from typing import Any

import numpy as np

from cnnfast import functional as F

Array = Any
Cache = Any
Param = dict[str, Any]


def whole(value: Any) -> Any:
    """3 for 3.0, which is what ``(filter_size - 1) / 2`` gives; everything else as it is."""
    if isinstance(value, float | np.floating) and value.is_integer():
        return int(value)
    return value


def conv_forward(
    x: Array, w: Array, b: Array, conv_param: Param, method: str
) -> tuple[Array, Cache]:
    stride, pad = whole(conv_param["stride"]), whole(conv_param["pad"])
    return F.conv2d(x, w, b, stride, pad, method=method), (x, w, b, conv_param)


def conv_backward(dout: Array, cache: Cache, method: str) -> tuple[Array, Array, Array]:
    x, w, _, conv_param = cache
    stride, pad = whole(conv_param["stride"]), whole(conv_param["pad"])
    dx, dw, db = F.conv2d_backward(dout, x, w, stride, pad, method=method)
    return dx, dw, db


def max_pool_indices(x: Array, pool_param: Param, method: str) -> tuple[Array, Array]:
    """The maxima and their places."""
    window = whole(pool_param["pool_height"]), whole(pool_param["pool_width"])
    stride = whole(pool_param["stride"])
    out, indices = F.max_pool2d(x, window, stride, return_indices=True, method=method)
    return out, indices


def max_pool_backward(dout: Array, cache: Cache, method: str) -> Array:
    """From the places that are in the cache; the naive functions' has none, and they look again."""
    x, pool_param, *found = cache
    indices = found[0] if found else max_pool_indices(x, pool_param, method)[1]
    if np.shape(dout) != np.shape(indices):
        raise ValueError(
            f"max_pool_backward: dout must have shape {np.shape(indices)}, not {np.shape(dout)}"
        )
    return F.max_pool2d_backward(dout, indices, np.shape(x), method=method)
