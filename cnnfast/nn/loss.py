"""Losses: how far scores are from their targets, and the gradient by the scores."""

from __future__ import annotations

from typing import Any

import numpy as np

from cnnfast import functional as F
from cnnfast.nn.layer import Array


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
        loss, gradient = self._compute(scores, target)
        factor = self._factor(np.shape(scores))
        self._gradient = gradient if factor == 1 else gradient * factor
        return float(loss) * factor

    def __call__(self, scores: Array, target: Array) -> float:
        return self.forward(scores, target)

    def backward(self) -> Any:
        """The gradient of the last loss by its scores, of their shape.

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
        return self._gradient

    def _compute(self, scores: Array, target: Array) -> tuple[float, Any]:
        """Loss and gradient as the operation of `cnnfast.functional` has them."""
        raise NotImplementedError

    def _factor(self, shape: tuple[int, ...]) -> float:
        """From that operation's loss to this one's, for scores of this shape."""
        raise NotImplementedError

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
    reduction : {"mean", "sum"}, keyword only
        Average over the N examples, or sum.
    label_smoothing : float, keyword only
        The part of each target that is spread evenly over all classes.
    method : str, keyword only
        As for `cnnfast.cross_entropy`.

    Notes
    -----
    Scores are ``(N, C)``, labels are N integers. Of PyTorch's, ``weight``, ``ignore_index``,
    targets that are probabilities and scores of more axes are not supported.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnfast import nn
    >>> loss = nn.CrossEntropyLoss()
    >>> round(loss(np.zeros((1, 2)), np.array([0])), 4)
    0.6931
    >>> loss.backward()
    array([[-0.5,  0.5]])
    """

    def __init__(
        self, *, reduction: str = "mean", label_smoothing: float = 0.0, method: str = "auto"
    ) -> None:
        super().__init__(reduction, method=method)
        if not 0 <= label_smoothing <= 1:
            raise ValueError(
                f"CrossEntropyLoss: label_smoothing must be from 0 to 1, not {label_smoothing!r}"
            )
        self.label_smoothing = label_smoothing

    def _compute(self, scores: Array, target: Array) -> tuple[float, Any]:
        return F.cross_entropy(
            scores, target, label_smoothing=self.label_smoothing, method=self.method
        )

    def _factor(self, shape: tuple[int, ...]) -> float:
        return 1 if self.reduction == "mean" else shape[0]


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
        super().__init__(reduction, method=method)

    def _compute(self, scores: Array, target: Array) -> tuple[float, Any]:
        return F.mse_loss(scores, target, method=self.method)

    def _factor(self, shape: tuple[int, ...]) -> float:
        return 1 if self.reduction == "mean" else int(np.prod(shape))


class MultiMarginLoss(Loss):
    """The multi-class hinge loss, as PyTorch defines it: **divided by the number of classes**.

    ``sum over j != label of max(0, margin - scores[label] + scores[j]) / C``, averaged over the N
    examples. The courses' SVM loss, which is `cnnfast.multi_margin_loss`, does not divide by C: it
    is C times as large, and so is its gradient.

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
        super().__init__(reduction, method=method)
        if p != 1:
            raise ValueError(f"MultiMarginLoss: p must be 1, not {p!r}")
        self.p = p
        self.margin = margin

    def _compute(self, scores: Array, target: Array) -> tuple[float, Any]:
        return F.multi_margin_loss(scores, target, margin=self.margin, method=self.method)

    def _factor(self, shape: tuple[int, ...]) -> float:
        return (1 if self.reduction == "mean" else shape[0]) / shape[1]
