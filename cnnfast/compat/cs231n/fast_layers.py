"""The course's ``fast_layers``: the naive ones' signatures and results, computed fast.

``_fast`` is what the dispatcher chooses (`cnnfast.explain`). The course's variants by other tricks
stay for their names: ``_im2col`` convolves by compiled columns and one matrix product, whatever the
dispatcher would choose; for the others the fast way has no conditions that would call for them.
"""

from __future__ import annotations

from cnnfast.compat.cs231n import sliding
from cnnfast.compat.cs231n.sliding import Array, Cache, Param

__all__ = [
    "conv_backward_fast",
    "conv_backward_im2col",
    "conv_backward_strides",
    "conv_forward_fast",
    "conv_forward_im2col",
    "conv_forward_strides",
    "max_pool_backward_fast",
    "max_pool_backward_im2col",
    "max_pool_backward_reshape",
    "max_pool_forward_fast",
    "max_pool_forward_im2col",
    "max_pool_forward_reshape",
]


def conv_forward_fast(x: Array, w: Array, b: Array, conv_param: Param) -> tuple[Array, Cache]:
    """`conv_forward_naive`, fast. The cache is ``(x, w, b, conv_param)``.

    Examples
    --------
    >>> import numpy as np
    >>> x, w, b = np.ones((1, 1, 3, 4)), np.ones((1, 1, 2, 3)), np.zeros(1)
    >>> conv_forward_fast(x, w, b, {"stride": 1, "pad": 0})[0]
    array([[[[6., 6.],
             [6., 6.]]]])
    """
    return sliding.conv_forward(x, w, b, conv_param, "auto")


def conv_backward_fast(dout: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """``dx, dw, db`` of a convolution, fast."""
    return sliding.conv_backward(dout, cache, "auto")


def conv_forward_im2col(x: Array, w: Array, b: Array, conv_param: Param) -> tuple[Array, Cache]:
    """`conv_forward_naive` by columns and one matrix product. The cache is the naive one's."""
    return sliding.conv_forward(x, w, b, conv_param, "im2col")


def conv_backward_im2col(dout: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """``dx, dw, db`` of a convolution by columns and matrix products."""
    return sliding.conv_backward(dout, cache, "im2col")


conv_forward_strides, conv_backward_strides = conv_forward_fast, conv_backward_fast


def max_pool_forward_fast(x: Array, pool_param: Param) -> tuple[Array, Cache]:
    """`max_pool_forward_naive`, fast for windows of any size and stride.

    Returns
    -------
    out : array of shape (N, C, H', W')
    cache : (x, pool_param, indices)
        The place of each maximum in its image, ``row * W + column``.
    """
    out, indices = sliding.max_pool_indices(x, pool_param, "auto")
    return out, (x, pool_param, indices)


def max_pool_backward_fast(dout: Array, cache: Cache) -> Array:
    """``dx`` of a max pooling, fast."""
    return sliding.max_pool_backward(dout, cache, "auto")


max_pool_forward_reshape, max_pool_backward_reshape = max_pool_forward_fast, max_pool_backward_fast
max_pool_forward_im2col, max_pool_backward_im2col = max_pool_forward_fast, max_pool_backward_fast
