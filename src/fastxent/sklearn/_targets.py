"""Labels and probabilities as a loss takes them, and two classes as the binary loss of one logit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fastxent import _check
from fastxent._base import BinaryLoss
from fastxent.activations import balanced_class_weight, log_sigmoid, log_softmax, sigmoid, softmax
from fastxent.linear import check_loss
from fastxent.losses import BinaryCrossEntropy, BinaryFocalLoss, CrossEntropy, FocalLoss

Array = npt.NDArray[Any]

# Class indices of rows that do not count.
IGNORED = -1


def is_soft(y: Any) -> bool:
    """Whether y are probabilities: floats, one column per class."""
    array = np.asarray(y)
    return array.ndim == 2 and array.shape[1] > 1 and array.dtype.kind == "f"


def indices(y: Array, classes: Array, ignore_index: int | None = None) -> Array:
    """Return the place of every label among the classes; `IGNORED` where it is the label to ignore."""
    order = np.argsort(classes)
    places = order[np.searchsorted(classes, y, sorter=order).clip(max=len(classes) - 1)]
    ignored = is_ignored(y, ignore_index)
    strangers = (classes[places] != y) & ~ignored
    if strangers.any():
        at = int(np.argmax(strangers))
        _check.fail(ValueError, "y", f"be among the classes {classes.tolist()}", repr(_check.plain(y[at])), at)
    return np.where(ignored, IGNORED, places)


def is_ignored(y: Array, ignore_index: int | None) -> npt.NDArray[np.bool_]:
    """Return where labels are the one to ignore, an integer."""
    if ignore_index is None or y.dtype.kind not in "iu":
        return np.zeros(len(y), bool)
    ignored: npt.NDArray[np.bool_] = y == ignore_index
    return ignored


def probabilities(y: Array) -> Array:
    """Return probabilities, checked: one column per class, finite and not negative."""
    bad = ~(np.isfinite(y) & (y >= 0))
    if bad.any():
        row, column = (int(i) for i in np.argwhere(bad)[0])
        _check.fail(ValueError, "y", "be finite and >= 0", y[row, column], (row, column))
    return y


@dataclass
class Problem:
    """A loss with reduction "sum", its targets and weights; of two classes a binary loss.

    Logits have ``n_columns``: one per class; or one, z, for two classes. A row of a binary focal loss that belongs to
    both classes is two rows of one class each: its z stands in two columns, whose derivatives are added.
    """

    loss: Any
    target: Array
    sample_weight: Array | None
    n_columns: int

    def total_weight(self) -> float:
        """Return what the mean divides by."""
        logits = np.broadcast_to(0.0, (len(self.target), self.n_columns))
        weight: float = self.loss._total_weight(logits, self.target, self.sample_weight)
        if not weight:
            rule = "not be zero for all samples that have a class"
            _check.fail(ValueError, "sample_weight", rule, "a total weight of 0")
        return weight

    def spread(self, rows: Array) -> Array:
        """Return coefficients or logits with one row for each column of logits, from one row for each score."""
        return np.repeat(rows, self.n_columns, axis=0) if len(rows) == 1 < self.n_columns else rows

    def gathered(self, rows: Array, n_rows: int) -> Array:
        """Return derivatives with respect to what was spread."""
        return rows.sum(axis=0, keepdims=True) if n_rows == 1 < len(rows) else rows


def problem(
    loss: Any, target: Array, sample_weight: Array | None, n_classes: int, class_weight: Array | None = None
) -> Problem:
    r"""Return what is minimised: the loss of class indices or probabilities, its class weights times ``class_weight``.

    Of logits 0 and z, :math:`-\log p_0` is softplus(z) and :math:`-\log p_1` is softplus(-z). With the masses
    :math:`a_c = s w_c \tilde t_c` the cross-entropy :math:`\sum_c -a_c \log p_c` therefore is the binary one of target
    :math:`a_1 / (a_0 + a_1)` and weight :math:`a_0 + a_1`, and a class's term of the focal loss,
    :math:`-a_c (1 - p_c)^\gamma \log p_c`, is the binary one of target c and weight :math:`a_c`.
    """
    check_loss(loss)
    is_binary, is_soft = isinstance(loss, BinaryLoss), target.ndim == 2
    if is_binary and n_classes > 2:
        _check.fail(ValueError, "loss", "be CrossEntropy or FocalLoss for more than 2 classes", loss)
    if sample_weight is not None and not (np.isfinite(sample_weight) & (sample_weight >= 0)).all():
        _check.explain_sample_weight(sample_weight)
    loss = replace(loss, reduction="sum")
    if n_classes > 2:
        if not is_soft and loss.ignore_index is not None:
            loss = replace(loss, ignore_index=IGNORED)
        if class_weight is not None:
            weights = _class_weights(loss, target, n_classes) * class_weight
            loss = replace(loss, class_weight=tuple(weights))
        return Problem(loss, target, sample_weight, n_classes)

    masses, counts = _masses(loss, target)
    if not is_binary:
        masses = (1 - loss.label_smoothing) * masses + loss.label_smoothing / 2
        masses *= _class_weights(loss, target[counts], 2)
    masses *= counts[:, np.newaxis] * (1 if class_weight is None else class_weight)
    if sample_weight is not None:
        masses *= sample_weight[:, np.newaxis]
    if is_binary:
        loss = replace(loss, ignore_index=None)
    elif isinstance(loss, FocalLoss) and masses.all(axis=1).any():
        only = np.broadcast_to([0.0, 1.0], masses.shape)
        return Problem(BinaryFocalLoss(loss.gamma, reduction="sum"), only, masses, 2)
    elif isinstance(loss, FocalLoss):
        loss = BinaryFocalLoss(loss.gamma, reduction="sum")
    else:
        loss = BinaryCrossEntropy(reduction="sum")
    weights = masses.sum(axis=1, keepdims=True)
    shares = np.divide(masses[:, 1:], weights, out=np.zeros_like(weights), where=weights > 0)
    return Problem(loss, shares, weights, 1)


def _masses(loss: Any, target: Array) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Return the target masses of two classes, and which rows count."""
    if target.ndim == 1:
        return np.equal.outer(target, [0, 1]).astype(float), target != IGNORED
    counts = np.ones(len(target), bool)
    if not isinstance(loss, BinaryLoss) and loss.ignore_index in (0, 1):
        counts = (target[:, 1 - loss.ignore_index] != 0) | (target[:, loss.ignore_index] == 0)
    return target.astype(float), counts


def _class_weights(loss: Any, target: Array, n_classes: int) -> Array:
    """Return the loss's own weight of every class."""
    if loss.class_weight is None:
        return np.ones(n_classes)
    if isinstance(loss.class_weight, str):
        return balanced_class_weight(target if target.ndim == 2 else target[target != IGNORED], n_classes)
    weights: Array = _check.class_weight(loss.class_weight, n_classes, np.dtype(float))
    return weights


def plain_cross_entropy(loss: Any) -> Any:
    """Return the cross-entropy that a focal loss of several classes is made of."""
    if not isinstance(loss, FocalLoss):
        return loss
    return CrossEntropy(loss.class_weight, loss.label_smoothing, loss.ignore_index, loss.reduction)


def class_probabilities(scores: Array, *, log: bool = False) -> Array:
    """Return (the logarithms of) probabilities of every class, for scores as a decision function gives them."""
    both = scores if scores.ndim == 2 else np.stack([-scores, scores], axis=1)
    result: Array = {(1, False): sigmoid, (1, True): log_sigmoid, (2, False): softmax, (2, True): log_softmax}[
        scores.ndim, log
    ](both)
    return result


def predicted(scores: Array, classes: Array) -> Array:
    """Return the label with the largest score."""
    labels: Array = classes[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)]
    return labels
