r"""Any loss as the custom objective of XGBoost, LightGBM or CatBoost: the right labels, layout, scale and Hessian.

None of these libraries is imported here.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fastxent import _check
from fastxent._base import Array, BinaryLoss, Loss, SoftmaxLoss
from fastxent.activations import log_softmax, sigmoid, softmax
from fastxent.losses import BinaryFocalLoss, CrossEntropy, FocalLoss

__all__ = ["CatBoostObjective", "Objective"]

Pair = tuple[Array, Array]
# Classes that no sample has start at this share; LightGBM's `kEpsilon`.
LEAST_SHARE = 1e-15


# ---- what to take for the Hessian ----


def _exact(loss: Any, *data: Any) -> Pair:
    _, grad, hess = loss.value_grad_hess(*data)
    return grad, hess


def _diagonal(loss: Any, *data: Any) -> Pair:
    convex = _without_focus(loss)
    return _exact(loss, *data) if convex is loss else (loss.value_and_grad(*data)[1], _exact(convex, *data)[1])


def _gershgorin(loss: Any, *data: Any) -> Pair:
    grad, hess = _diagonal(loss, *data)
    return grad, np.multiply(hess, 2, out=hess)


def _lightgbm(loss: Any, raw: Array, *data: Any) -> Pair:
    grad, hess = _diagonal(loss, raw, *data)
    return grad, np.multiply(hess, raw.shape[1] / max(raw.shape[1] - 1, 1), out=hess)


def _residual(loss: Any, *data: Any) -> Pair:
    grad = loss.value_and_grad(*data)[1]
    return grad, np.abs(grad)


def _psd(loss: Any, raw: Array, target: Array, sample_weight: Any) -> Pair:
    grad = loss.value_and_grad(raw, target, sample_weight)[1]
    if isinstance(loss, BinaryFocalLoss):
        p = sigmoid(raw)
        t = (1 - loss.label_smoothing) * target.astype(p.dtype) + loss.label_smoothing / 2
        wrong = (t * (1 - p) + (1 - t) * p).clip(0)  # ignored targets can be anything
        hess = _exact(_without_focus(loss), raw, target, sample_weight)[1]
        return grad, np.multiply(hess, wrong**loss.gamma, out=hess)
    hess = softmax(raw)
    other = 1 - hess
    # Linear in what it is given: the focal weights of the targets' classes, summed with all options of the loss.
    weighted = CrossEntropy(loss.class_weight, loss.label_smoothing, loss.ignore_index, "none", inputs="log_probs")
    hess *= other
    hess *= weighted(-(other**loss.gamma), target, sample_weight)[:, np.newaxis]
    return grad, hess


@lru_cache(maxsize=64)  # CatBoost calls for every row
def _with(loss: Any, **options: Any) -> Any:
    return replace(loss, **options)


def _without_focus(loss: Any) -> Any:
    return _with(loss, gamma=0.0) if isinstance(loss, FocalLoss | BinaryFocalLoss) else loss


# Each with the losses it is made for; the formulas are in the docstring below.
HESSIANS: dict[str, tuple[Callable[..., Pair], tuple[type[Loss], ...]]] = {
    "exact": (_exact, (Loss,)),
    "diagonal": (_diagonal, (Loss,)),
    "residual": (_residual, (Loss,)),
    "gershgorin": (_gershgorin, (SoftmaxLoss,)),
    "lightgbm": (_lightgbm, (SoftmaxLoss,)),
    "psd": (_psd, (FocalLoss, BinaryFocalLoss)),
}
# Measured, see docs/boosting.rst: of a focal loss, exact Hessians diverge and "psd" oversteps. K / (K - 1) is for the
# scores' freedom of one too many: two classes then take the step of the binary loss, and not twice that.
AUTO: dict[type[Any], str] = {SoftmaxLoss: "lightgbm", BinaryLoss: "diagonal"}


# ---- the objective ----


@dataclass(frozen=True)
class Objective:
    r"""A loss as the objective of a boosting library, and as its metric.

    With the symbols of :class:`fastxent.CrossEntropy` (:math:`W` its sum of weighted target masses; of a binary loss
    :math:`w \tilde t + 1 - \tilde t`, or :math:`\alpha_t`), gradient :math:`g` and Hessian diagonal :math:`h` of the sum
    of the losses, a tree is grown on :math:`g` and one of

    .. math::

        \text{exact: } h, \qquad
        \text{diagonal: } d = s W p (1 - p), \qquad
        \text{gershgorin: } 2 d, \qquad
        \text{lightgbm: } \tfrac{K}{K - 1} d, \qquad
        \text{residual: } |g|, \qquad
        \text{psd: } s \sum_c w_c \tilde t_c (1 - p_c)^\gamma \, p (1 - p)

    but no less than ``min_hessian``.

    Parameters
    ----------
    loss : CrossEntropy, BinaryCrossEntropy, FocalLoss or BinaryFocalLoss
        On logits, with the classes along the last axis. All its options apply, and multiply with the weights of the
        library. Of ``reduction`` nothing is taken: gradients are of the sum, as the library expects, metrics the mean.
    hessian : {"auto", "exact", "diagonal", "residual", "gershgorin", "lightgbm", "psd"}, default "auto"
        The policy. ``"gershgorin"`` (of XGBoost) and ``"lightgbm"`` are for the softmax losses, ``"psd"`` for the focal
        ones. ``"auto"`` is ``"lightgbm"`` for the softmax losses and ``"diagonal"`` for the binary ones.
    min_hessian : float, default 1e-6
        The floor, >= 0. XGBoost's own objectives have 1e-16, LightGBM's none. It is also that of samples without weight.

    Raises
    ------
    TypeError, ValueError
        If an option has a wrong type or value, or the policy is not made for the loss.

    See Also
    --------
    CatBoostObjective : what ``catboost()`` returns.

    Notes
    -----
    Labels may be floats that are whole numbers, as these libraries store them; as many of them as there are scores are
    probabilities, row by row: soft labels, which a ``DMatrix`` can hold.

    With an objective of one's own these libraries start at raw score 0 (see ``initial_score``) and predict raw scores
    (see ``probabilities``).

    References
    ----------
    T. Chen, C. Guestrin, "XGBoost: A Scalable Tree Boosting System", KDD 2016.
    T.-Y. Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017.

    Examples
    --------
    >>> import fastxent as fx
    >>> from fastxent.boosting import Objective
    >>> objective = Objective(fx.BinaryFocalLoss(gamma=2.0))
    >>> grad, hess = objective.gradient_hessian([2.0, -1.0, 0.5], [1, 0, 0])
    >>> print(grad.round(4), hess.round(4))
    [-0.0049  0.0526  0.5262] [0.105  0.1966 0.235 ]
    >>> print(objective.initial_score([1, 0, 0, 0]).round(4))
    -1.0986

    With XGBoost, LightGBM, and CatBoost::

        xgboost.train(params, dtrain, obj=objective.xgboost, custom_metric=objective.metric_xgboost)
        lightgbm.train(params | {"objective": objective.lightgbm}, dataset, feval=objective.metric_lightgbm)
        CatBoostClassifier(loss_function=objective.catboost(), eval_metric=objective.catboost())
    """

    loss: Any
    _: KW_ONLY
    hessian: str = "auto"
    min_hessian: float = 1e-6

    def __post_init__(self) -> None:
        """Check the options once."""
        loss = self.loss
        if not isinstance(loss, Loss):
            _check.fail(TypeError, "loss", "be a loss of fastxent", type(loss).__name__)
        if getattr(loss, "inputs", "logits") != "logits":
            _check.fail(ValueError, "loss", "take logits", loss)
        if getattr(loss, "axis", -1) not in (-1, 1):
            _check.fail(ValueError, "loss", "have the classes along its last axis", loss)
        policy = _check.option_among("hessian", self.hessian, ("auto", *HESSIANS))
        if policy != "auto" and not isinstance(loss, HESSIANS[policy][1]):
            fitting = tuple(name for name, (_, losses) in HESSIANS.items() if isinstance(loss, losses))
            _check.fail(ValueError, "hessian", f"be one of {_check.joined(fitting)} for {loss}", repr(policy))
        object.__setattr__(self, "min_hessian", _check.option_nonnegative("min_hessian", self.min_hessian))

    # ---- without any library ----

    def gradient_hessian(self, raw: npt.ArrayLike, target: npt.ArrayLike, sample_weight: Any = None) -> Pair:
        """Return the gradient of the sum of the losses, and what this policy takes for its Hessian.

        Parameters
        ----------
        raw : array_like
            Raw scores, ``(n_samples,)`` for binary losses (more axes for several labels), else
            ``(n_samples, n_classes)``.
        target : array_like
            As the loss takes them, floats that are whole numbers too.
        sample_weight : array_like or None
            One weight per sample.

        Returns
        -------
        grad, hess : ndarray
            New arrays of the shape, dtype and memory order of ``raw``.

        Raises
        ------
        TypeError, ValueError
            If an argument has a wrong type, or a wrong value or shape.
        """
        raw, target = self._checked(raw, target)
        automatic = next(name for family, name in AUTO.items() if isinstance(self.loss, family))
        policy = automatic if self.hessian == "auto" else self.hessian
        grad, hess = HESSIANS[policy][0](_with(self.loss, reduction="sum"), raw, target, sample_weight)
        return grad, np.maximum(hess, self.min_hessian, out=hess)

    def value(self, raw: npt.ArrayLike, target: npt.ArrayLike, sample_weight: Any = None) -> float:
        """Return the mean of the losses: what the metrics report; less is better.

        Parameters
        ----------
        raw, target, sample_weight : array_like
            As for ``gradient_hessian``.

        Returns
        -------
        float
            The loss with ``reduction="mean"``.

        Raises
        ------
        TypeError, ValueError
            If an argument has a wrong type, or a wrong value or shape.
        """
        return float(_with(self.loss, reduction="mean")(*self._checked(raw, target), sample_weight))

    def initial_score(self, target: npt.ArrayLike, sample_weight: Any = None, n_classes: int | None = None) -> Array:
        """Return the constant raw score with the least loss, a focal loss taken for the cross-entropy it is made of.

        Parameters
        ----------
        target, sample_weight : array_like
            As for ``gradient_hessian``.
        n_classes : int or None
            Of the softmax losses, where the largest class index does not tell.

        Returns
        -------
        ndarray of float64
            One score per class, or per label, or a single one: log-odds, or logarithms of shares, of at least 1e-15.

        Raises
        ------
        TypeError, ValueError
            If an argument has a wrong type, or a wrong value or shape.
        """
        loss, target = _without_focus(self.loss), np.asarray(target)
        binary, shape = isinstance(loss, BinaryLoss), target.shape
        if not binary and target.ndim == 1:
            shape = (len(target), int(target.max(initial=0)) + 1 if n_classes is None else n_classes)
        raw, target = self._checked(np.zeros(shape), target)
        _, grad, hess = _with(loss, reduction="sum").value_grad_hess(raw, target, sample_weight)
        # At 0 all of a row's probabilities are the same, so that both derivatives are sums of the targets' masses.
        slope, curvature = grad.sum(axis=0), hess.sum(axis=0)
        if binary:
            masses = np.stack([2 * curvature + slope, 2 * curvature - slope])  # of negatives, of positives
        else:
            masses = curvature * (shape[1] / max(shape[1] - 1, 1)) - slope
        total = masses.sum(axis=0)
        logs = np.log(np.maximum(masses, LEAST_SHARE * np.where(total > 0, total, 1)))
        score: Array = np.subtract(logs[1], logs[0]) if binary else log_softmax(logs)
        return score

    def probabilities(self, raw: npt.ArrayLike) -> Array:
        """Return the probabilities of raw scores: of the positive class, or of each of several classes.

        Parameters
        ----------
        raw : array_like
            Raw scores, the classes, if any, along the last axis.

        Returns
        -------
        ndarray
            Shape, dtype and memory order of ``raw``.

        Raises
        ------
        TypeError, ValueError
            If ``raw`` has a wrong type or shape.
        """
        probabilities: Array = (sigmoid if isinstance(self.loss, BinaryLoss) else softmax)(raw)
        return probabilities

    def _checked(self, raw: Any, target: Any) -> Pair:
        """Raw scores and labels as arrays that the loss takes; of the scores there is no copy."""
        raw, target = np.asarray(raw), np.asarray(target)
        if isinstance(self.loss, BinaryLoss):
            return raw, target.reshape(raw.shape) if target.size == raw.size else target
        if raw.ndim != 2:
            rule = f"have shape (n_samples, n_classes) for {type(self.loss).__name__}"
            _check.fail(ValueError, "raw", rule, f"shape {raw.shape}", note="; is num_class set?")
        if target.dtype.kind != "f" or target.ndim == 2:
            return raw, target
        if target.size == raw.size > len(raw):
            return raw, target.reshape(raw.shape)
        with np.errstate(invalid="ignore"):
            classes = target.astype(np.int64)
        if not np.array_equal(classes.astype(target.dtype), target):
            at = int(np.argmax(classes != target))
            _check.fail(ValueError, "target", "be whole numbers, the indices of classes", _check.plain(target[at]), at)
        return raw, classes

    # ---- as the libraries call it ----

    def xgboost(self, preds: Array, dtrain: Any) -> Pair:
        """Gradient and Hessian: ``xgboost.train(obj=...)``."""
        return self.gradient_hessian(preds, *_labels_and_weights("dtrain", dtrain))

    def xgboost_sklearn(self, y_true: Array, y_pred: Array, sample_weight: Array | None = None) -> Pair:
        """Gradient and Hessian: ``XGBClassifier(objective=...)``."""
        return self.gradient_hessian(y_pred, y_true, sample_weight)

    def lightgbm(self, preds: Array, dataset: Any) -> Pair:
        """Gradient and Hessian: ``lightgbm.train({"objective": ...})``."""
        return self.gradient_hessian(preds, *_labels_and_weights("dataset", dataset))

    def lightgbm_sklearn(self, y_true: Array, y_pred: Array, weight: Array | None) -> Pair:
        """Gradient and Hessian: ``LGBMClassifier(objective=...)``."""
        return self.gradient_hessian(y_pred, y_true, weight)

    def catboost(self) -> CatBoostObjective:
        """Return the object for ``CatBoostClassifier(loss_function=..., eval_metric=...)``, one for both.

        Returns
        -------
        CatBoostObjective
            Has the methods that CatBoost calls.

        Raises
        ------
        ImportError
            If there is no CatBoost.
        """
        if importlib.util.find_spec("catboost") is None:
            raise ImportError('CatBoost is not installed; pip install "fastxent[boosting]"')
        return CatBoostObjective(self)

    def metric_xgboost(self, preds: Array, dmatrix: Any) -> tuple[str, float]:
        """Name and mean loss: ``xgboost.train(custom_metric=...)``."""
        return type(self.loss).__name__, self.value(preds, *_labels_and_weights("dmatrix", dmatrix))

    def metric_xgboost_sklearn(self, y_true: Array, y_pred: Array, sample_weight: Array | None = None) -> float:
        """Mean loss: ``XGBClassifier(eval_metric=...)``; shown by the name of this method."""
        return self.value(y_pred, y_true, sample_weight)

    def metric_lightgbm(self, preds: Array, dataset: Any) -> tuple[str, float, bool]:
        """Name, mean loss, and that more is not better: ``lightgbm.train(feval=...)``."""
        return *self.metric_xgboost(preds, dataset), False

    def metric_lightgbm_sklearn(self, y_true: Array, y_pred: Array, weight: Array | None) -> tuple[str, float, bool]:
        """Name, mean loss, and that more is not better: ``LGBMClassifier.fit(eval_metric=...)``."""
        return type(self.loss).__name__, self.value(y_pred, y_true, weight), False


@dataclass
class CatBoostObjective:
    """What ``Objective.catboost()`` gives to CatBoost: objective and metric.

    CatBoost wants the derivatives of the gain, minus those of the loss. Of several classes it calls
    ``calc_ders_multi`` for one row at a time, so that training is as slow as Python; ``"MultiClass"`` is its own
    cross-entropy. It asks for ``classes_count`` there.

    Parameters
    ----------
    objective : Objective
        Loss and policy. Of several classes the matrix of second derivatives is diagonal.
    """

    objective: Objective

    def calc_ders_range(self, approxes: Any, targets: Any, weights: Any) -> Array:
        """Return both derivatives of the gain of every sample, as columns."""
        return -np.column_stack(self.objective.gradient_hessian(approxes, targets, weights))

    def calc_ders_multi(self, approxes: Any, target: Any, weight: Any) -> Pair:
        """Return the derivatives of the gain of one sample, and the matrix of the second ones."""
        grad, hess = self.objective.gradient_hessian(np.asarray(approxes)[np.newaxis], [target], [weight])
        return -grad[0], np.diag(-hess[0])

    def is_max_optimal(self) -> bool:
        """Less is better."""
        return False

    def evaluate(self, approxes: Any, target: Any, weight: Any) -> tuple[float, float]:
        """Return the sum of the losses and the weight of the samples."""
        raw = approxes[0] if len(approxes) == 1 else np.stack(approxes, axis=1)
        total = float(len(target) if weight is None else np.sum(weight))
        return self.objective.value(raw, target, weight) * total, total

    def get_final_error(self, error: float, weight: float) -> float:
        """Return the mean."""
        return error / (weight or 1.0)


def _labels_and_weights(argument: str, data: Any) -> tuple[Array, Array | None]:
    """What a DMatrix and a Dataset both tell; no weights are an empty array, or None."""
    try:
        labels, weights = data.get_label(), data.get_weight()
    except AttributeError:
        rule = "have labels and weights, as xgboost.DMatrix and lightgbm.Dataset have"
        _check.fail(TypeError, argument, rule, type(data).__name__)
    return labels, None if weights is None or not len(weights) else weights
