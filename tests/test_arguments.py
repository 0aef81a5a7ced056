"""Bad arguments: each kind has its error, whose message names the operation and the argument."""

from __future__ import annotations

import inspect
import re
import time
import tracemalloc
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from cases import CASES

import cnnfast
from cnnfast import functional, naive

X = np.arange(60.0).reshape(1, 3, 4, 5)
W = np.ones((2, 3, 2, 2))
X1, W1 = X[:, :, 0], W[:, :, 0]
WT = np.ones((3, 2, 2, 2))
DY = np.ones((1, 2, 3, 4))
C = np.ones(3)
S = np.zeros((2, 3))
RNG = np.random.default_rng(0)


class Bad(NamedTuple):
    """A call, its error, and what the message says."""

    op: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    error: type[Exception]
    message: str


def value(op: str, message: str, *arguments: Any, **options: Any) -> Bad:
    return Bad(op, arguments, options, ValueError, message)


def kind(op: str, message: str, *arguments: Any, **options: Any) -> Bad:
    return Bad(op, arguments, options, TypeError, message)


_SHAPES = [
    # Ranks
    value("conv2d", r"x must have shape \(N, C, H, W\), not \(3, 4, 5\)", X[0], W),
    value("conv2d", r"x must have shape \(N, C, H, W\), not \(\)", 1.0, W),
    value("conv2d", r"w must have shape \(F, C // groups, KH, KW\), not \(3, 2, 2\)", X, W[0]),
    value("conv1d", r"x must have shape \(N, C, L\), not \(1, 3, 4, 5\)", X, W1),
    value("conv_transpose2d", r"w must have shape \(C_in, C_out // groups, KH, KW\)", X, WT[0]),
    value("conv_transpose1d", r"x must have shape \(N, C, L\)", X, WT[:, :, 0]),
    value("im2col", r"x must have shape \(N, C, H, W\)", X1, 2),
    value("col2im", r"cols must have shape \(N, C \* KH \* KW, OH \* OW\)", X, (4, 5), 2),
    value("max_pool2d", r"x must have shape \(N, C, H, W\)", X1, 2),
    value("avg_pool1d", r"x must have shape \(N, C, L\)", X, 2),
    value("dilate2d", r"x must have shape \(N, C, H, W\)", X1, 2),
    value("subsample1d", r"x must have shape \(N, C, L\)", X, 2),
    value("batch_norm", r"x must have shape \(N, C\), \(N, C, L\) or \(N, C, H, W\)", C, C, C),
    value("linear", r"w must have shape \(out_features, in_features\)", S, C),
    value("cross_entropy", r"scores must have shape \(N, C\)", C, [0]),
    # Sizes that do not fit
    value("conv2d", r"w has 2 input channels, x has 3 \(shape \(1, 3, 4, 5\)\)", X, W[:, :2]),
    value("conv2d", r"w has 3 input channels times groups=\d, x has 6", np.ones((1, 6, 4, 4)),
          np.ones((3, 3, 2, 2)), groups=3),
    value("conv2d", r"groups=2 does not divide the 3 channels of x", X, np.ones((2, 1, 2, 2)),
          groups=2),
    value("conv2d", r"groups=3 does not divide the 2 of w", X, np.ones((2, 1, 2, 2)), groups=3),
    value("conv2d", r"b must have shape \(2,\), not \(3,\)", X, W, C),
    value("conv2d", r"b must have shape \(2,\), not \(\)", X, W, 1.0),
    value("conv2d", r"b must have shape \(2,\), not \(2, 1\)", X, W, np.ones((2, 1))),
    value("conv2d_backward", r"dy must have shape \(1, 2, 3, 4\), not \(1, 2, 4, 3\)",
          DY.swapaxes(2, 3), X, W),
    value("conv1d_backward", r"dy must have shape \(1, 2, 4\), not \(1, 2, 1, 4\)", DY[:, :, :1],
          X1, W1),
    value("conv_transpose2d", r"w has 2 input channels, x has 3", X, W),
    value("conv_transpose2d", r"groups=2 does not divide the 3 of w", X, WT, groups=2),
    value("conv_transpose2d", r"b must have shape \(2,\), not \(3,\)", X, WT, C),
    value("conv_transpose2d_backward", r"dy must have shape \(1, 2, 5, 6\)", DY, X, WT),
    value("col2im", r"cols has 5 rows .* no multiple of kernel_size \(2, 2\)", np.ones((1, 5, 12)),
          (4, 5), 2),
    value("col2im", r"cols must have shape \(1, 4, 12\), not \(1, 4, 11\)", np.ones((1, 4, 11)),
          (4, 5), 2),
    value("max_pool2d_backward", r"indices must have shape \(1, 2, 3, 4\), not \(1, 2, 3, 3\)", DY,
          np.zeros((1, 2, 3, 3), int), (1, 2, 6, 8)),
    value("max_pool2d_backward", r"dy \(1, 2, 3, 4\) and input_shape \(1, 3, 6, 8\) differ", DY,
          np.zeros((1, 2, 3, 4), int), (1, 3, 6, 8)),
    value("max_pool1d_backward", r"input_shape must have shape \(N, C, L\)", DY[0],
          np.zeros((2, 3, 4), int), (2, 3)),
    value("avg_pool2d_backward", r"dy must have shape \(1, 2, 3, 4\), not \(1, 2, 3, 3\)",
          DY[..., 1:], (1, 2, 6, 8), 2),
    value("dilate2d_backward", r"dy must have shape \(1, 2, 3, 5\), not \(1, 2, 3, 4\)", DY, 2,
          (1, 2, 2, 3)),
    value("subsample2d_backward", r"dy must have shape \(1, 2, 2, 4\), not \(1, 2, 3, 4\)", DY, 2,
          (1, 2, 3, 8)),
    value("batch_norm", r"running_mean must have shape \(3,\), not \(2,\)", X, C[1:], C),
    value("batch_norm", r"running_var must have shape \(3,\), not \(1, 3\)", X, C, C[None]),
    value("batch_norm", r"weight must have shape \(3,\), not \(2,\)", X, C, C, C[1:]),
    value("batch_norm", r"bias must have shape \(3,\), not \(4,\)", X, C, C, None, np.ones(4)),
    value("batch_norm_backward", r"dy must have shape \(1, 3, 4, 5\), not \(1, 2, 3, 4\)", DY, X,
          C, C),
    value("batch_norm_backward", r"rstd must have shape \(3,\), not \(2,\)", X, X, C, C[1:]),
    value("relu_backward", r"dy \(2, 3\) and x \(3,\) differ", S, C),
    value("softmax_backward", r"dy \(3,\) and y \(2, 3\) differ", C, S),
    value("linear", r"w has 2 input features, x has shape \(2, 3\)", S, np.ones((4, 2))),
    value("linear", r"w has 3 input features, x has shape \(\)", 1.0, np.ones((4, 3))),
    value("linear", r"b must have shape \(4,\), not \(3,\)", S, np.ones((4, 3)), C),
    value("linear_backward", r"dy must have shape \(2, 4\), not \(2, 3\)", S, S, np.ones((4, 3))),
    value("dropout_backward", r"mask must have shape \(2, 3\), not \(3,\)", S, np.ones(3, bool)),
    value("cross_entropy", r"labels must have shape \(2,\), not \(3,\)", S, [0, 1, 2]),
    value("cross_entropy", r"labels must have shape \(2,\), not \(2, 3\)", S,
          np.eye(2, 3).astype(int)),
    value("mse_loss", r"target must have shape \(2, 3\), not \(3,\)", S, C),
    # Empty axes and outputs
    value("conv2d", r"x has an empty axis \(shape \(1, 3, 0, 5\)\); only N may be 0",
          X[:, :, :0], W),
    value("conv2d", r"x has an empty axis", X[:, :0], W[:, :0]),
    value("conv2d", r"w has an empty axis \(shape \(0, 3, 2, 2\)\)", X, W[:0]),
    value("conv2d", r"w has an empty axis", X, W[..., :0]),
    value("max_pool2d", r"x has an empty axis", X[..., :0], 1),
    value("batch_norm", r"x has an empty axis", X[:, :0], C[:0], C[:0]),
    value("linear", r"w has an empty axis", S, np.ones((0, 3))),
    value("softmax", r"axis -1 is empty \(shape \(2, 0\)\)", S[:, :0]),
    value("cross_entropy", r"scores has no classes", S[:, :0], [0, 0]),
    value("conv2d", r"w covers \(5, 1\) elements, more than the \(4, 5\) of x .*empty", X,
          np.ones((1, 3, 5, 1))),
    value("conv2d", r"w covers \(5, 5\) elements.*output would be empty", X, W, dilation=4),
    value("conv_transpose2d", r"output would be empty: size \(-1, 0\)", X, WT, padding=3),
    value("im2col", r"window of \(5, 5\) elements does not fit x .*empty", X, 5),
    value("max_pool2d", r"window of \(5, 5\) elements does not fit x .*empty", X, 5),
    value("avg_pool1d", r"window of \(6,\) elements does not fit x .*empty", X1, 6),
    value("batch_norm", r"training needs two values per channel, x has \(1, 3\)", S[:1], C, C,
          training=True),
]  # fmt: skip

_NUMBERS = [
    # Below the least
    value("conv2d", r"stride must be at least 1, not 0", X, W, stride=0),
    value("conv2d", r"stride must be at least 1, not -1", X, W, stride=(1, -1)),
    value("conv2d", r"padding must be at least 0, not -1", X, W, padding=-1),
    value("conv2d", r"padding must be at least 0, not -2", X, W, padding=((0, 0), (0, -2))),
    value("conv2d", r"dilation must be at least 1, not 0", X, W, dilation=0),
    value("conv2d", r"groups must be at least 1, not 0", X, W, groups=0),
    value("conv2d", r"groups must be at least 1, not -3", X, W, groups=-3),
    value("conv_transpose2d", r"output_padding must be at least 0, not -1", X, WT,
          output_padding=-1),
    value("conv_transpose2d", r"output_padding must be smaller than stride or dilation", X, WT,
          stride=2, output_padding=(0, 2)),
    value("max_pool2d", r"kernel_size must be at least 1, not 0", X, 0),
    value("max_pool2d", r"stride must be at least 1, not 0", X, 2, 0),
    value("max_pool2d", r"padding must be at most half of kernel_size, not \(\(2, 2\), \(2, 2\)\)",
          X, 2, 1, 2),
    value("avg_pool2d", r"padding must be less than a window covers, not \(\(0, 0\), \(2, 0\)\)",
          X, 2, 1, ((0, 0), (2, 0))),
    value("avg_pool2d", r"divisor_override must be at least 1, not 0", X, 2, divisor_override=0),
    value("dilate2d", r"factor must be at least 1, not 0", X, 0),
    value("subsample1d", r"factor must be at least 1, not -2", X1, -2),
    value("col2im", r"output_size must be at least 1, not 0", np.ones((1, 4, 12)), (0, 5), 2),
    value("max_pool2d_backward", r"input_shape must be at least 0, not -1", DY,
          np.zeros(DY.shape, int), (1, 2, -1, 8)),
    value("avg_pool2d_backward", r"input_shape has an empty axis", DY, (1, 2, 0, 8), 2),
    value("dropout", r"p must be between 0 and 1, not 1.5", S, 1.5, rng=RNG),
    value("dropout", r"p must be between 0 and 1, not -0.1", S, -0.1, rng=RNG),
    value("dropout", r"p must be between 0 and 1, not nan", S, float("nan"), rng=RNG),
    value("dropout_backward", r"p must be between 0 and 1, not 2", S, S > 0, 2),
    value("batch_norm", r"eps must be between 0 and inf, not -1", X, C, C, eps=-1),
    value("cross_entropy", r"label_smoothing must be between 0 and 1, not 2", S, [0, 1],
          label_smoothing=2),
    value("leaky_relu", r"negative_slope ", X, 10**400),
    value("softmax", r"axis 2 does not exist in 2 axes", S, 2),
    value("log_softmax", r"axis -3 does not exist in 2 axes", S, -3),
    value("softmax", r"axis -1 does not exist in 0 axes", 1.0),
    # Too many or too few of them
    value("conv2d", r"stride must be an integer or 2 of them, not \(1, 2, 3\)", X, W,
          stride=(1, 2, 3)),
    value("conv2d", r"dilation must be an integer or 2 of them, not \(\)", X, W, dilation=()),
    value("conv1d", r"stride must be an integer or 1 of them, not \(1, 2\)", X1, W1, stride=(1, 2)),
    value("conv2d", r"padding must be an integer or 2 of them", X, W, padding=(1, 2, 3, 4)),
    value("conv2d", r"padding must be \(\(top, bottom\), \(left, right\)\)", X, W,
          padding=((1, 2),)),
    value("conv2d", r"padding must be \(\(top, bottom\), \(left, right\)\)", X, W,
          padding=((1, 2, 3), (1, 2, 3))),
    value("conv2d", r"padding must be \(\(top, bottom\), \(left, right\)\)", X, W,
          padding=((1, 2), 3)),
    value("conv1d", r"padding must be \(\(left, right\),\)", X1, W1, padding=((1, 2), (1, 2))),
    value("max_pool2d", r"kernel_size must be an integer or 2 of them", X, (2, 2, 2)),
    # Names
    value("conv2d", r'padding must be numbers, "valid" or "same", not \'full\'', X, W,
          padding="full"),
    value("conv2d", r'padding="same" needs stride 1, not \(2, 2\)', X, W, stride=2, padding="same"),
    value("conv_transpose2d", r"padding must be numbers here, not 'same'", X, WT, padding="same"),
    value("max_pool2d", r"padding must be numbers here, not 'valid'", X, 2, padding="valid"),
    value("im2col", r"padding must be numbers here, not 'same'", X, 2, padding="same"),
    value("conv2d_backward", r"needs must be letters of \"xwb\", not 'q'", DY, X, W, needs="q"),
    value("linear_backward", r"needs must be letters of \"xwb\", not 'xy'", S, S, np.ones((3, 3)),
          needs="xy"),
    value("conv2d", r"there is no method 'quick'", X, W, method="quick"),
    # What arrays hold
    value("max_pool2d_backward", r"indices run from 0 to 48, input_shape .* allows -1 to 47", DY,
          np.full(DY.shape, 0) + 48 * (np.arange(24).reshape(DY.shape) == 5), (1, 2, 6, 8)),
    value("max_pool2d_backward", r"indices run from -2 to 0", DY,
          np.full(DY.shape, 0) - 2 * (np.arange(24).reshape(DY.shape) == 5), (1, 2, 6, 8)),
    value("max_pool1d_backward", r"indices run from 9223372036854775807", DY[0],
          np.full((2, 3, 4), 2**63 - 1), (2, 3, 8)),
    value("max_pool2d_backward", r"indices", DY, np.full(DY.shape, 2**64 - 5, np.uint64),
          (1, 2, 6, 8)),
    value("cross_entropy", r"labels run from 0 to 3, scores has 3 classes", S, [0, 3]),
    value("cross_entropy", r"labels run from -1 to 0, scores has 3 classes", S, [0, -1]),
    value("multi_margin_loss", r"labels run from 5 to 5", S, [5, 5]),
    value("batch_norm", r"running_mean and running_var may be None only when training", X, None, C),
    value("conv2d", r"x is not an array: .*inhomogeneous", [[1.0, 2.0], [3.0]], W),
]  # fmt: skip

_KINDS = [
    # Integers
    kind("conv2d", r"stride must be an integer, not 1.5", X, W, stride=1.5),
    kind("conv2d", r"stride must be an integer, not 2.0", X, W, stride=2.0),
    kind("conv2d", r"stride must be an integer, not True", X, W, stride=True),
    kind("conv2d", r"stride must be an integer, not .*False", X, W, stride=np.False_),
    kind("conv2d", r"stride must be an integer, not 1.0", X, W, stride=(1, 1.0)),
    kind("conv2d", r"stride must be an integer, not '2'", X, W, stride="2"),
    kind("conv2d", r"stride must be an integer, not None", X, W, stride=None),
    kind("conv2d", r"stride must be an integer, not b'2'", X, W, stride=b"2"),
    kind("conv2d", r"padding must be .*, not b'12'", X, W, padding=b"12"),
    kind("conv2d", r"dilation must be an integer, not .*2.0", X, W, dilation=np.float64(2)),
    kind("conv2d", r"groups must be an integer, not 1.0", X, W, groups=1.0),
    kind("conv2d", r"groups must be an integer, not \(1,\)", X, W, groups=(1,)),
    kind("conv2d", r"padding must be an integer, not 0.5", X, W, padding=0.5),
    kind("conv2d", r"padding must be an integer, not None", X, W, padding=None),
    kind("conv2d", r"padding must be an integer, not 1.0", X, W, padding=((0, 1.0), (0, 0))),
    kind("conv2d", r"padding must be an integer, not True", X, W, padding=(True, 0)),
    kind("max_pool2d", r"kernel_size must be an integer, not None", X, None),
    kind("max_pool2d", r"kernel_size must be an integer, not \{2\}", X, {2}),
    kind("avg_pool2d", r"divisor_override must be an integer, not 2.5", X, 2,
         divisor_override=2.5),
    kind("im2col", r"kernel_size must be an integer, not '22'", X, "22"),
    kind("dilate2d", r"factor must be an integer, not 1.5", X, 1.5),
    kind("softmax", r"axis must be an integer, not 1.0", S, 1.0),
    kind("softmax", r"axis must be an integer, not None", S, None),
    kind("softmax", r"axis must be an integer, not True", S, True),
    kind("softmax", r"axis must be an integer, not \(0, 1\)", S, (0, 1)),
    kind("max_pool2d_backward", r"input_shape must be an integer, not 6.0", DY,
         np.zeros(DY.shape, int), (1, 2, 6.0, 8)),
    kind("max_pool2d_backward", r"input_shape must be a tuple of integers, not 48", DY,
         np.zeros(DY.shape, int), 48),
    kind("avg_pool2d_backward", r"input_shape must be a tuple of integers, not '12'", DY, "12", 2),
    # Booleans, numbers, letters
    kind("max_pool2d", r"ceil_mode must be True or False, not 'yes'", X, 2, ceil_mode="yes"),
    kind("max_pool2d", r"ceil_mode must be True or False, not None", X, 2, ceil_mode=None),
    kind("max_pool2d", r"return_indices must be True or False, not 2", X, 2, return_indices=2),
    kind("avg_pool2d", r"count_include_pad must be True or False, not 0.0", X, 2,
         count_include_pad=0.0),
    kind("batch_norm", r"training must be True or False, not 'False'", X, C, C, training="False"),
    kind("batch_norm", r"momentum must be a number, not None", X, C, C, momentum=None),
    kind("batch_norm", r"eps must be a number, not '1e-5'", X, C, C, eps="1e-5"),
    kind("leaky_relu", r"negative_slope must be a number, not \[0.1\]", X, [0.1]),
    kind("leaky_relu", r"negative_slope must be a number, not 1j", X, 1j),
    kind("dropout", r"p must be a number, not None", S, None, rng=RNG),
    kind("dropout", r"p must be a number, not True", S, True, rng=RNG),
    kind("multi_margin_loss", r"margin must be a number, not 'wide'", S, [0, 1], margin="wide"),
    kind("conv2d_backward", r'needs must be letters of "xwb", not None', DY, X, W, needs=None),
    kind("conv2d_backward", r'needs must be letters of "xwb", not \(\'x\',\)', DY, X, W,
         needs=("x",)),
    kind("dropout", r"rng must be a numpy.random.Generator, not 7", S, rng=7),
    kind("dropout", r"rng must be a numpy.random.Generator, not None", S, rng=None),
    kind("dropout", r"rng must be a numpy.random.Generator, not <?RandomState", S,
         rng=np.random.RandomState(0)),
    # Arrays
    kind("conv2d", r"x must be an array, not None", None, W),
    kind("conv2d", r"w must be an array, not None", X, None),
    kind("conv2d_backward", r"dy must be an array, not None", None, X, W),
    kind("batch_norm_backward", r"rstd must be an array, not None", X, X, C, None),
    kind("conv2d", r"x has dtype complex128; real numbers", X + 0j, W),
    kind("conv2d", r"w has dtype complex64", X, W.astype(np.complex64)),
    kind("conv2d", r"b has dtype complex128", X, W, np.ones(2, complex)),
    kind("conv2d", r"x has dtype object", X.astype(object), W),
    kind("relu", r"x has dtype object", [None, 1.0]),
    kind("relu", r"x has dtype object", {"a": 1}),
    kind("relu", r"x has dtype object", object()),
    kind("relu", r"x has dtype str", "abc"),
    kind("relu", r"x has dtype str", ["1", "2"]),
    kind("relu", r"x has dtype bytes", b"abc"),
    kind("relu", r"x has dtype datetime64", np.array(["2020-01-01"], "M8[D]")),
    kind("relu", r"x has dtype timedelta64", np.array([1], "m8[s]")),
    kind("relu", r"x has dtype (void|\[)", np.zeros(2, [("a", float)])),
    kind("conv2d", r"x is a masked array; fill it first", np.ma.array(X, mask=X > 5), W),
    kind("conv2d", r"b is a masked array", X, W, np.ma.zeros(2)),
    kind("max_pool2d_backward", r"indices must be integers, not float64", DY, DY, (1, 2, 6, 8)),
    kind("max_pool2d_backward", r"indices must be integers, not bool", DY, DY > 0, (1, 2, 6, 8)),
    kind("cross_entropy", r"labels must be integers, not float64", S, [0.0, 1.0]),
    kind("cross_entropy", r"labels must be integers", S, ["cat", "dog"]),
    kind("cross_entropy", r"labels must be integers", S, None),
    kind("dropout_backward", r"mask must be booleans, not float64", S, S),
    kind("dropout_backward", r"mask must be booleans, not int64", S, S.astype(np.int64)),
    kind("batch_norm", r"running_mean is updated in place and must be an array, not \[", X,
         [0.0] * 3, C, training=True),
    kind("batch_norm", r"running_var is updated in place and must hold floats, not int", X,
         np.zeros(3), np.ones(3, int), training=True),
]  # fmt: skip

_ALL = [*_SHAPES, *_NUMBERS, *_KINDS]


def _name(case: Bad) -> str:
    return f"{case.op}-{case.message[:40]}"


def test_there_are_many_kinds() -> None:
    assert len({case.message for case in _ALL}) >= 60
    assert len({case.op for case in _ALL}) >= 30


@pytest.mark.parametrize("case", _ALL, ids=_name)
def test_bad_argument(case: Bad) -> None:
    with pytest.raises(case.error) as caught:
        getattr(cnnfast, case.op)(*case.arguments, **case.options)
    assert type(caught.value) is case.error
    message = str(caught.value)
    assert re.search(rf"^{case.op}: .*{case.message}", message), message
    assert "\n" not in message


@pytest.mark.parametrize("op", functional.__all__)
def test_unknown_argument_is_a_type_error(op: str) -> None:
    with pytest.raises(TypeError, match="colour"):
        getattr(cnnfast, op)(colour=3)


@pytest.mark.parametrize("op", functional.__all__)
def test_missing_argument_is_a_type_error(op: str) -> None:
    with pytest.raises(TypeError, match=f"{op}\\(\\) missing"):
        getattr(cnnfast, op)()


@pytest.mark.parametrize("op", functional.__all__)
def test_method_and_out_are_keyword_only_and_last(op: str) -> None:
    parameters = list(inspect.signature(getattr(cnnfast, op)).parameters.values())
    if parameters[-1].name == "out":
        out = parameters.pop()
        assert (out.kind, out.default) == (out.KEYWORD_ONLY, None)
    method = parameters[-1]
    assert (method.name, method.kind, method.default) == ("method", method.KEYWORD_ONLY, "auto")
    with pytest.raises(ValueError, match=f"{op}: there is no method 'quick'"):
        cnnfast.explain(op, **_good(op), method="quick")


def _good(op: str) -> dict[str, Any]:
    return CASES[op][0].arguments()


@pytest.mark.parametrize("op", functional.__all__)
def test_every_float_array_is_examined(op: str) -> None:
    """No array of any operation may be complex, of objects, masked or text."""
    good = _good(op)
    floats = [k for k, v in good.items() if isinstance(v, np.ndarray) and v.dtype.kind == "f"]
    assert floats
    for name in floats:
        for wrong in (
            good[name].astype(complex),
            good[name].astype(object),
            np.ma.array(good[name]),
            good[name].astype(str),
            good[name].astype(np.longdouble),
        ):
            if wrong.dtype == good[name].dtype and not isinstance(wrong, np.ma.MaskedArray):
                continue  # a long double that is none
            with pytest.raises(TypeError, match=f"^{op}: {name} "):
                getattr(cnnfast, op)(**{**good, name: wrong})


# Numbers of every integer type, and sequences of them, are as good as ints


class _Index:
    """An integer by its behaviour."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __index__(self) -> int:
        return self.number


@pytest.mark.parametrize("two", [np.int8(2), np.uint16(2), np.int64(2), np.array(2), _Index(2)])
def test_integers_of_any_kind(two: Any) -> None:
    one = type(two)(1) if not isinstance(two, np.ndarray) else np.array(1)
    zero = type(two)(0) if not isinstance(two, np.ndarray) else np.array(0)
    assert np.array_equal(
        cnnfast.conv2d(X, W, stride=two, padding=(one, zero), dilation=one, groups=one),
        cnnfast.conv2d(X, W, stride=2, padding=(1, 0)),
    )
    assert np.array_equal(cnnfast.max_pool2d(X, two, (two, one)), cnnfast.max_pool2d(X, 2, (2, 1)))
    assert np.array_equal(cnnfast.dilate2d(X, two), cnnfast.dilate2d(X, 2))
    assert np.array_equal(cnnfast.im2col(X, two), cnnfast.im2col(X, 2))
    y = cnnfast.avg_pool2d(X, 2, divisor_override=two)
    assert np.array_equal(y, cnnfast.avg_pool2d(X, 2, divisor_override=2))


@pytest.mark.parametrize(
    "stride", [[2, 1], (2, 1), (np.int32(2), np.int64(1))], ids=["list", "tuple", "numpy"]
)
def test_sequences_of_integers(stride: Any) -> None:
    assert np.array_equal(
        cnnfast.conv2d(X, W, stride=stride, padding=[[1, 0], [0, 1]]),
        cnnfast.conv2d(X, W, stride=(2, 1), padding=((1, 0), (0, 1))),
    )
    assert np.array_equal(cnnfast.max_pool2d(X, stride), cnnfast.max_pool2d(X, (2, 1)))
    dy = np.ones((1, 3, 2, 5))
    dx = cnnfast.avg_pool2d_backward(dy, list(X.shape), stride, stride)
    assert np.array_equal(dx, cnnfast.avg_pool2d_backward(dy, X.shape, (2, 1), (2, 1)))


def test_one_number_in_a_sequence_is_a_number() -> None:
    assert np.array_equal(cnnfast.conv2d(X, W, stride=(2,)), cnnfast.conv2d(X, W, stride=2))
    assert np.array_equal(cnnfast.conv1d(X1, W1, stride=(2,)), cnnfast.conv1d(X1, W1, stride=2))


@pytest.mark.parametrize("yes", [True, 1, np.True_])
def test_booleans_of_any_kind(yes: Any) -> None:
    y, indices = cnnfast.max_pool2d(X, 2, ceil_mode=yes, return_indices=yes)
    assert y.shape == indices.shape == (1, 3, 2, 3)


@pytest.mark.parametrize("half", [0.5, np.float32(0.5), np.float64(0.5), np.array(0.5)])
def test_numbers_of_any_kind(half: Any) -> None:
    assert np.array_equal(cnnfast.leaky_relu(-X, half), -X / 2)
    y = cnnfast.batch_norm(X, C, C, eps=half, momentum=half)
    assert np.array_equal(y, cnnfast.batch_norm(X, C, C, eps=0.5))


def test_labels_of_any_integer_type() -> None:
    want = cnnfast.cross_entropy(S, [0, 2])
    for dtype in ("i1", "u1", "i4", "u8"):
        got = cnnfast.cross_entropy(S, np.array([0, 2], dtype))
        assert got[0] == want[0] and np.array_equal(got[1], want[1])


# Running arrays are the user's own: nothing may happen to them when a call is refused


def test_running_arrays_that_cannot_be_updated(rng: np.random.Generator) -> None:
    x = rng.normal(size=(4, 3))
    frozen = np.zeros(3)
    frozen.flags.writeable = False
    mean = np.zeros(3)
    with pytest.raises(ValueError, match="batch_norm: running_var is updated in place and must be"):
        cnnfast.batch_norm(x, mean, frozen, training=True)
    with pytest.raises(ValueError, match="batch_norm: running_mean is updated in place and must"):
        cnnfast.batch_norm(x, frozen, np.ones(3), training=True)
    assert not mean.any()
    # Without training they are only read.
    assert cnnfast.batch_norm(x, frozen, np.ones(3)).shape == (4, 3)


def test_refused_calls_change_nothing(rng: np.random.Generator) -> None:
    x, mean, var = rng.normal(size=(4, 3)), np.zeros(3), np.ones(3)
    for wrong in ({"weight": np.ones(2)}, {"eps": -1.0}, {"method": "quick"}, {"return_stats": 7}):
        with pytest.raises((TypeError, ValueError), match="batch_norm: "):
            cnnfast.batch_norm(x, mean, var, training=True, **wrong)
        assert not mean.any() and (var == 1).all(), wrong


def test_refused_dropout_draws_nothing() -> None:
    rng = np.random.default_rng(3)
    for wrong in ({"p": 2.0}, {"training": "no"}, {"return_mask": "no"}, {"method": "quick"}):
        with pytest.raises((TypeError, ValueError), match="dropout: "):
            cnnfast.dropout(S, **wrong, rng=rng)
        assert rng.bit_generator.state == np.random.default_rng(3).bit_generator.state, wrong


# Sizes beyond reason: an answer at once, and no memory taken


_HUGE = [
    (name, number) for name in ("stride", "padding", "dilation") for number in (2**40, 2**63, 2**70)
]


def _quickly(call: Callable[[], Any]) -> None:
    """Make a call that must fail with an error of its own, in no time and in no memory."""
    tracemalloc.start()
    began = time.perf_counter()
    try:
        with pytest.raises(ValueError, match=r"^[a-z_12d]+: "):
            call()
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize(("name", "number"), _HUGE)
def test_huge_numbers(name: str, number: int) -> None:
    _quickly(lambda: cnnfast.conv2d(X, W, **{name: number}))
    _quickly(lambda: cnnfast.conv1d(X1, W1, **{name: (number,)}))
    _quickly(lambda: cnnfast.conv_transpose2d(X, WT, **{name: number}))
    _quickly(lambda: cnnfast.im2col(X, 2, **{name: number}))
    _quickly(lambda: cnnfast.max_pool2d(X, 2, **{name: number}))
    if name != "dilation":
        _quickly(lambda: cnnfast.avg_pool2d(X, 2, **{name: number}))


@pytest.mark.parametrize("number", [2**31, 2**40, 2**63, 2**70])
def test_huge_sizes(number: int) -> None:
    cols, indices = np.ones((1, 4, 12)), np.zeros(DY.shape, int)
    _quickly(lambda: cnnfast.max_pool2d(X, number))
    _quickly(lambda: cnnfast.avg_pool2d(X, (1, number)))
    _quickly(lambda: cnnfast.avg_pool2d(X, 2, divisor_override=number))
    _quickly(lambda: cnnfast.im2col(X, number))
    _quickly(lambda: cnnfast.col2im(cols, number, 2))
    _quickly(lambda: cnnfast.conv2d(X, W, groups=number))
    _quickly(lambda: cnnfast.conv_transpose2d(X, WT, stride=2, output_padding=number))
    _quickly(lambda: cnnfast.dilate2d(X, number))
    _quickly(lambda: cnnfast.subsample2d(X, number))
    _quickly(lambda: cnnfast.max_pool2d_backward(DY, indices, (1, 2, number, 8)))
    _quickly(lambda: cnnfast.avg_pool2d_backward(DY, (1, 2, 6, number), 2))


def test_products_of_large_numbers() -> None:
    """Each number is legal, their product is beyond any memory: refused, whatever the method."""
    large = 2**31 - 1
    one, tap = np.ones((1, 1, 1, 1)), np.ones((1, 1, 1, 1))
    for method in cnnfast.methods("conv2d"):
        with pytest.raises((ValueError, MemoryError)):
            cnnfast.conv2d(one, tap, padding=large, method=method)
        with pytest.raises((ValueError, MemoryError)):
            cnnfast.conv_transpose2d(np.ones((1, 1, 2, 2)), tap, stride=large, method=method)
    for method in cnnfast.methods("dilate2d"):
        with pytest.raises((ValueError, MemoryError)):
            cnnfast.dilate2d(np.ones((1, 1, 3, 3)), large, method=method)


def test_large_strides_that_fit_are_served() -> None:
    """One window, whatever comes after it."""
    large = 2**31 - 1
    assert cnnfast.conv2d(X, W, stride=large).shape == (1, 2, 1, 1)
    assert cnnfast.max_pool2d(X, 2, large).shape == (1, 3, 1, 1)
    assert cnnfast.avg_pool2d(X, 2, large, ceil_mode=True).shape == (1, 3, 1, 1)
    assert cnnfast.im2col(X, 2, large).shape == (1, 12, 1)
    assert cnnfast.subsample2d(X, large).shape == (1, 3, 1, 1)
    one = np.ones((1, 1, 1, 1))
    assert cnnfast.conv2d(one, one, dilation=large).item() == 1
    assert cnnfast.dilate2d(one, large).item() == 1


def test_naive_refuses_what_it_would_broadcast() -> None:
    """The loops trust their arguments but for shapes that NumPy would stretch in silence."""
    for call in (
        lambda: naive.conv2d(X, W, [1.0]),
        lambda: naive.conv2d_backward(np.ones((1, 1, 1, 1)), X, W),
        lambda: naive.relu_backward([1.0], S),
        lambda: naive.batch_norm(X, [0.0], [1.0]),
    ):
        with pytest.raises(ValueError, match="shape"):
            call()


def test_labels_beyond_int64_are_refused() -> None:
    labels = np.array([2**64 - 1, 0], np.uint64)
    with pytest.raises(ValueError, match=r"cross_entropy: labels holds 18446744073709551615"):
        cnnfast.cross_entropy(np.ones((2, 3)), labels)


def test_no_labels_need_no_dtype() -> None:
    _, dscores = cnnfast.cross_entropy(np.ones((0, 3)), [])
    assert dscores.shape == (0, 3)


def test_windows_of_billions_of_taps_are_quick() -> None:
    dx = cnnfast.avg_pool1d_backward(np.ones((1, 1, 3)), (1, 1, 3), 2**31 - 1, 1, 2**30 - 1)
    assert np.allclose(dx, 3 / (2**31 - 1))


def test_sizes_that_overflow_are_refused() -> None:
    with pytest.raises(ValueError, match="conv2d: too large"):
        cnnfast.conv2d(np.ones((1, 1, 1, 1)), np.ones((1, 1, 1, 1)), padding=2**31 - 1)


def test_questions_about_any_size_cost_nothing() -> None:
    w = np.ones((25, 3, 3, 3))  # float64, beside a shape that stands for float32
    e = cnnfast.explain("conv2d", (10**4, 3, 10**4, 10**4), w)
    assert e.dtype == "float64"
    assert cnnfast.explain("relu", (10**13,)).flops == 10**13
    assert cnnfast.explain("dropout", (10**13,), rng=np.random.default_rng(0)).flops == 10**13
    with pytest.raises(ValueError, match="relu: a length of x must be at least 0"):
        cnnfast.explain("relu", (-1, 2))
    with pytest.raises(ValueError, match="relu: x is too large"):
        cnnfast.explain("relu", (10**10, 10**10))
    with pytest.raises(TypeError, match="conv2d: missing a required argument: 'w'"):
        cnnfast.explain("conv2d", (1, 2, 3, 4))
    with pytest.raises(TypeError, match="relu: dtype must be a dtype, not 'bogus'"):
        cnnfast.explain("relu", (1,), dtype="bogus")
