"""Losses: how far scores are from their targets, and the gradient by the scores."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cnnfast import arrays
from cnnfast import functional as F
from cnnfast.geometry import rank
from cnnfast.nn.arguments import method_name, number, whole
from cnnfast.nn.layer import Array, copied, real_array


class Loss:
    """What every loss is: called on scores and target it gives a number.

    Attributes
    ----------
    reduction : {"mean", "sum"}
        Whether the examples' losses are averaged or added up.
    """

    def __init__(self, reduction: str = "mean", *, method: str = "auto") -> None:
        if reduction not in ("mean", "sum"):
            raise ValueError(
                f"{type(self).__name__}: reduction must be 'mean' or 'sum' (a loss is one number), "
                f"not {reduction!r}"
            )
        self.reduction = reduction
        self.method = method
        self._gradient: Any = None

    def forward(self, scores: Array, target: Array) -> float:
        """The loss, a float."""
        loss, self._gradient = self._compute(scores, target)
        return loss

    def __call__(self, scores: Array, target: Array) -> float:
        return self.forward(scores, target)

    def backward(self) -> Any:
        """The gradient of the last loss by its scores, of their shape: a new array each time.

        Raises
        ------
        RuntimeError
            No loss was computed before.
        """
        if self._gradient is None:
            raise RuntimeError(
                f"{type(self).__name__}.backward: there is no loss to go back from; "
                f"call it on scores and target first"
            )
        return copied(self._gradient)

    def _compute(self, scores: Array, target: Array) -> tuple[float, Any]:
        """The loss and its gradient by the scores."""
        raise NotImplementedError

    def _reduced(self, mean: tuple[float, Any], count: int) -> tuple[float, Any]:
        """A mean over `count` terms, and its gradient, as `reduction` wants them."""
        loss, gradient = mean
        if self.reduction == "mean":
            return float(loss), gradient
        # The sum of no terms is 0, though their mean is NaN.
        return float(loss) * count if count else 0.0, gradient * count

    def extra_repr(self) -> str:
        """What stands between the parentheses of the repr."""
        return ""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_gradient": None}


class CrossEntropyLoss(Loss):
    """``-log softmax(scores)[label]``; see `cnnfast.cross_entropy`.

    Parameters
    ----------
    weight : array_like of shape (C,), optional
        How much each class counts. The mean is over the weights of the examples' labels.
    ignore_index : int, keyword only
        Examples with this label do not count: they add nothing to the loss, nor to what the mean
        divides by, and their gradient is 0.
    reduction : {"mean", "sum"}, keyword only
        Average over the N examples, or sum.
    label_smoothing : float, keyword only
        The part of each target that is spread evenly over all classes.
    method : str, keyword only
        As for `cnnfast.cross_entropy`; with weights or ignored examples, for
        `cnnfast.log_softmax`.

    Notes
    -----
    Scores are ``(N, C)``, labels are N integers. PyTorch's targets that are probabilities, and
    scores of more axes, are not supported. The mean of examples none of which counts is NaN, as
    in PyTorch; their sum is 0.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnfast import nn
    >>> loss = nn.CrossEntropyLoss()
    >>> round(loss(np.zeros((1, 2)), np.array([0])), 4)
    0.6931
    >>> loss.backward()
    array([[-0.5,  0.5]])
    >>> round(nn.CrossEntropyLoss(ignore_index=1)(np.zeros((2, 2)), np.array([0, 1])), 4)
    0.6931
    """

    def __init__(
        self,
        weight: Any = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        method: str = "auto",
    ) -> None:
        me = "CrossEntropyLoss"
        super().__init__(reduction, method=method_name(me, "cross_entropy", method))
        self.weight: Array | None = None
        if weight is not None:
            self.weight = real_array(f"{me}: weight", weight).astype(np.float64)
            if self.weight.ndim != 1:
                raise ValueError(f"{me}: weight must have shape (C,), not {self.weight.shape}")
        self.ignore_index = whole(me, "ignore_index", ignore_index, -(2**31))
        self.label_smoothing = number(me, "label_smoothing", label_smoothing, 0, 1)

    def _compute(self, scores: Array, target: Array) -> tuple[float, Any]:
        (x,), library = arrays.admit("CrossEntropyLoss", scores=scores)
        labels = arrays.integers("CrossEntropyLoss", "target", target, library)
        counted = labels != self.ignore_index
        if self.weight is not None or not bool(library.xp.all(counted)):
            loss, gradient = self._weighted(library, x, labels, counted)
        else:
            mean = F.cross_entropy(
                x, labels, label_smoothing=self.label_smoothing, method=self.method
            )
            loss, gradient = self._reduced(mean, x.shape[0])
        return loss, library.finish(gradient)

    def _weighted(
        self, library: arrays.Library, x: Any, labels: Any, counted: Any
    ) -> tuple[float, Any]:
        """The loss as minus the sum of ``target * log_softmax(x)``, over what it is divided by."""
        me, xp, shape = "CrossEntropyLoss", library.xp, tuple(x.shape)
        rank(me, "scores", shape, "N, C")
        N, C = shape
        if C == 0:
            raise ValueError(f"{me}: scores has no classes (shape {shape})")
        if tuple(labels.shape) != (N,):
            raise ValueError(f"{me}: target must have shape ({N},), not {tuple(labels.shape)}")
        if bool(xp.any(counted & ((labels < 0) | (labels >= C)))):
            raise ValueError(
                f"{me}: target holds labels that are neither one of the {C} classes of scores "
                f"nor ignore_index={self.ignore_index}"
            )
        weight = np.ones(C) if self.weight is None else self.weight
        if weight.shape != (C,):
            raise ValueError(f"{me}: weight has {weight.size} classes, scores has {C}")

        weight = arrays.beside(weight, library, library.compute)
        classes = arrays.beside(np.arange(C), library, "int64")
        counted = counted[:, None]
        right = counted & (labels[:, None] == classes[None, :])
        own = xp.where(right, weight, 0.0)
        every = xp.where(counted, weight, 0.0) * (self.label_smoothing / C)
        targets = own * (1 - self.label_smoothing) + every
        # A class that is no target may have probability 0, whose logarithm is not to be 0 * inf.
        log_p = F.log_softmax(x, 1, method=self.method)
        loss = float(xp.sum(xp.where(targets != 0, -log_p, 0.0) * targets))
        divisor = float(xp.sum(own)) if self.reduction == "mean" else 1.0
        if divisor == 0:
            return math.nan, xp.zeros_like(x)
        dlog_p = -targets / divisor
        return loss / divisor, F.log_softmax_backward(dlog_p, log_p, 1, method=self.method)


class MSELoss(Loss):
    """``(pred - target) ** 2``, averaged over all elements; see `cnnfast.mse_loss`.

    Parameters
    ----------
    reduction : {"mean", "sum"}, keyword only
        Average over all elements, or sum.
    method : str, keyword only
        As for `cnnfast.mse_loss`.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnfast import nn
    >>> nn.MSELoss()(np.array([1.0, 2.0]), np.array([1.0, 4.0]))
    2.0
    """

    def __init__(self, *, reduction: str = "mean", method: str = "auto") -> None:
        super().__init__(reduction, method=method_name("MSELoss", "mse_loss", method))

    def _compute(self, scores: Array, target: Array) -> tuple[float, Any]:
        mean = F.mse_loss(scores, target, method=self.method)
        return self._reduced(mean, math.prod(np.shape(scores)))


class MultiMarginLoss(Loss):
    """The multi-class hinge loss, as PyTorch defines it: **divided by the number of classes**.

    ``sum over j != label of max(0, margin - scores[label] + scores[j]) / C``, averaged over the N
    examples. The courses' SVM loss, which is `cnnfast.multi_margin_loss`, does not divide by C: it
    is C times as large, and so is its gradient. Of PyTorch's, ``weight`` is not supported.

    Parameters
    ----------
    p : 1
        The exponent; nothing else is supported.
    margin : float
        What a right score should be ahead by.
    reduction : {"mean", "sum"}, keyword only
        Average over the N examples, or sum.
    method : str, keyword only
        As for `cnnfast.multi_margin_loss`.

    Examples
    --------
    >>> import numpy as np
    >>> import cnnfast
    >>> from cnnfast import nn
    >>> scores, labels = np.array([[0.0, 1.0, 0.0, 0.0]]), np.array([0])
    >>> nn.MultiMarginLoss()(scores, labels)
    1.0
    >>> cnnfast.multi_margin_loss(scores, labels)[0]
    4.0
    """

    def __init__(
        self, p: int = 1, margin: float = 1.0, *, reduction: str = "mean", method: str = "auto"
    ) -> None:
        method = method_name("MultiMarginLoss", "multi_margin_loss", method)
        super().__init__(reduction, method=method)
        if p != 1:
            raise ValueError(f"MultiMarginLoss: p must be 1, not {p!r}")
        self.p = p
        self.margin = number("MultiMarginLoss", "margin", margin)

    def _compute(self, scores: Array, target: Array) -> tuple[float, Any]:
        loss, gradient = F.multi_margin_loss(scores, target, margin=self.margin, method=self.method)
        N, C = np.shape(scores)
        return self._reduced((loss / C, gradient / C), N)
