"""The course's ``layer_utils`` (UCLA: also ``conv_layer_utils``): layers in a row, as one.

A forward function's cache is the tuple of its layers' caches. A backward function returns the
gradient by x, then those by the parameters in the order in which the forward function takes them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cnnfast.compat.cs231n.fast_layers import (
    conv_backward_fast,
    conv_forward_fast,
    max_pool_backward_fast,
    max_pool_forward_fast,
)
from cnnfast.compat.cs231n.layers import (
    affine_backward,
    affine_forward,
    batchnorm_backward,
    batchnorm_forward,
    relu_backward,
    relu_forward,
    spatial_batchnorm_backward,
    spatial_batchnorm_forward,
)
from cnnfast.compat.cs231n.sliding import Array, Cache, Param

__all__ = [
    "affine_bn_relu_backward",
    "affine_bn_relu_forward",
    "affine_relu_backward",
    "affine_relu_forward",
    "conv_bn_relu_backward",
    "conv_bn_relu_forward",
    "conv_bn_relu_pool_backward",
    "conv_bn_relu_pool_forward",
    "conv_relu_backward",
    "conv_relu_forward",
    "conv_relu_pool_backward",
    "conv_relu_pool_forward",
]


def _forward(x: Array, *layers: tuple[Any, ...]) -> tuple[Array, Cache]:
    """x through layers, each a forward function and what it takes beside x."""
    caches = []
    for forward, *arguments in layers:
        x, cache = forward(x, *arguments)
        caches.append(cache)
    return x, tuple(caches)


def _backward(dout: Array, caches: Cache, *layers: Callable[..., Any]) -> tuple[Array, ...]:
    """dout back through layers, named in forward order."""
    grads: tuple[Array, ...] = ()
    for backward, cache in reversed(list(zip(layers, caches, strict=True))):
        result = backward(dout, cache)
        dout, *own = result if isinstance(result, tuple) else (result,)
        grads = (*own, *grads)
    return (dout, *grads)


def affine_relu_forward(x: Array, w: Array, b: Array) -> tuple[Array, Cache]:
    """`affine_forward`, then ReLU."""
    return _forward(x, (affine_forward, w, b), (relu_forward,))


def affine_relu_backward(dout: Array, cache: Cache) -> tuple[Array, ...]:
    """``dx, dw, db``"""
    return _backward(dout, cache, affine_backward, relu_backward)


def affine_bn_relu_forward(
    x: Array, w: Array, b: Array, gamma: Array, beta: Array, bn_param: Param
) -> tuple[Array, Cache]:
    """`affine_forward`, `batchnorm_forward`, then ReLU."""
    return _forward(
        x, (affine_forward, w, b), (batchnorm_forward, gamma, beta, bn_param), (relu_forward,)
    )


def affine_bn_relu_backward(dout: Array, cache: Cache) -> tuple[Array, ...]:
    """``dx, dw, db, dgamma, dbeta``"""
    return _backward(dout, cache, affine_backward, batchnorm_backward, relu_backward)


def conv_relu_forward(x: Array, w: Array, b: Array, conv_param: Param) -> tuple[Array, Cache]:
    """`conv_forward_fast`, then ReLU."""
    return _forward(x, (conv_forward_fast, w, b, conv_param), (relu_forward,))


def conv_relu_backward(dout: Array, cache: Cache) -> tuple[Array, ...]:
    """``dx, dw, db``"""
    return _backward(dout, cache, conv_backward_fast, relu_backward)


def conv_bn_relu_forward(
    x: Array, w: Array, b: Array, gamma: Array, beta: Array, conv_param: Param, bn_param: Param
) -> tuple[Array, Cache]:
    """`conv_forward_fast`, `spatial_batchnorm_forward`, then ReLU."""
    return _forward(
        x,
        (conv_forward_fast, w, b, conv_param),
        (spatial_batchnorm_forward, gamma, beta, bn_param),
        (relu_forward,),
    )


def conv_bn_relu_backward(dout: Array, cache: Cache) -> tuple[Array, ...]:
    """``dx, dw, db, dgamma, dbeta``"""
    return _backward(dout, cache, conv_backward_fast, spatial_batchnorm_backward, relu_backward)


def conv_relu_pool_forward(
    x: Array, w: Array, b: Array, conv_param: Param, pool_param: Param
) -> tuple[Array, Cache]:
    """`conv_forward_fast`, ReLU, then `max_pool_forward_fast`."""
    return _forward(
        x,
        (conv_forward_fast, w, b, conv_param),
        (relu_forward,),
        (max_pool_forward_fast, pool_param),
    )


def conv_relu_pool_backward(dout: Array, cache: Cache) -> tuple[Array, ...]:
    """``dx, dw, db``"""
    return _backward(dout, cache, conv_backward_fast, relu_backward, max_pool_backward_fast)


def conv_bn_relu_pool_forward(
    x: Array,
    w: Array,
    b: Array,
    gamma: Array,
    beta: Array,
    conv_param: Param,
    bn_param: Param,
    pool_param: Param,
) -> tuple[Array, Cache]:
    """`conv_forward_fast`, `spatial_batchnorm_forward`, ReLU, then `max_pool_forward_fast`."""
    return _forward(
        x,
        (conv_forward_fast, w, b, conv_param),
        (spatial_batchnorm_forward, gamma, beta, bn_param),
        (relu_forward,),
        (max_pool_forward_fast, pool_param),
    )


def conv_bn_relu_pool_backward(dout: Array, cache: Cache) -> tuple[Array, ...]:
    """``dx, dw, db, dgamma, dbeta``"""
    return _backward(
        dout,
        cache,
        conv_backward_fast,
        spatial_batchnorm_backward,
        relu_backward,
        max_pool_backward_fast,
    )
