"""Any loss as that of scikit-learn's histogram gradient boosting."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import sklearn

from fastxent.boosting import Objective
from fastxent.sklearn import _targets
from fastxent.sklearn._compat import BaseLoss, IdentityLink

Array = npt.NDArray[Any]

OLDEST, NEWEST = (1, 5), (1, 9)


def hist_gradient_boosting_loss(loss: Any, hessian: str = "auto") -> Any:
    """Return an object for ``HistGradientBoostingClassifier(loss=...)``, which trains with any loss of fastxent.

    Parameters
    ----------
    loss : CrossEntropy, FocalLoss, BinaryCrossEntropy or BinaryFocalLoss
        What is minimised, of raw scores. Two classes have one score: then the softmax losses become the binary ones
        that equal them. The binary losses are for two classes.
    hessian : str, default "auto"
        What trees take for second derivatives, as for ``fastxent.boosting.Objective``. ``"diagonal"`` with
        ``CrossEntropy`` is scikit-learn's own ``"log_loss"``.

    Returns
    -------
    HistGradientBoostingLoss
        Can be pickled and cloned. It is of one classifier at a time, whose number of classes it keeps.

    Raises
    ------
    TypeError, ValueError
        If an argument has a wrong type or value.
    ImportError
        If this is none of the versions of scikit-learn that it was tested with: it extends a private class.

    Examples
    --------
    >>> import fastxent as fx
    >>> from fastxent.sklearn import hist_gradient_boosting_loss
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.ensemble import HistGradientBoostingClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> focal = hist_gradient_boosting_loss(fx.FocalLoss(gamma=1.0))
    >>> model = HistGradientBoostingClassifier(loss=focal, max_iter=10).fit(X, y)
    >>> print(f"{model.score(X, y):.3f}")
    0.967
    """
    version = tuple(int(part) for part in sklearn.__version__.split(".")[:2])
    if not OLDEST <= version <= NEWEST or IdentityLink is None:
        versions = " to ".join(".".join(map(str, v)) for v in (OLDEST, NEWEST))
        text = f"scikit-learn must be {versions} for hist_gradient_boosting_loss, which extends a private class"
        raise ImportError(f"{text}; got {sklearn.__version__}")
    return HistGradientBoostingLoss(loss, hessian)


class HistGradientBoostingLoss(BaseLoss):
    """The private interface of scikit-learn's losses, as far as histogram gradient boosting calls it.

    y are class indices in float64, raw predictions have shape (n_samples, 1 or n_classes).
    """

    loss_of_classes: Any
    hessian: str
    n_classes: int
    is_multiclass: bool

    def __init__(self, loss: Any, hessian: str):
        super().__init__(closs=None, link=IdentityLink())
        self.loss_of_classes, self.hessian = loss, hessian
        Objective(loss, hessian=hessian)

    def __repr__(self) -> str:
        """Return the call that makes it."""
        return f"hist_gradient_boosting_loss({self.loss_of_classes}, hessian={self.hessian!r})"

    def fit_intercept_only(self, y_true: Array, sample_weight: Array | None = None) -> Array:
        """Return the scores to start from; a new training starts with this call."""
        self.n_classes = max(int(y_true.max(initial=0)) + 1, 2)
        self.is_multiclass = self.n_classes > 2
        loss = _targets.plain_cross_entropy(self.loss_of_classes)
        given = _targets.problem(loss, y_true.astype(np.int64), sample_weight, self.n_classes)
        classes = self.n_classes if self.is_multiclass else None
        score = Objective(given.loss).initial_score(given.target, given.sample_weight, classes)
        # What is added to all scores is free; scikit-learn's have the sum 0.
        return score - score.mean() if self.is_multiclass else score

    def gradient_hessian(
        self,
        y_true: Array,
        raw_prediction: Array,
        sample_weight: Array | None = None,
        gradient_out: Array | None = None,
        hessian_out: Array | None = None,
        n_threads: int = 1,
    ) -> tuple[Array, Array]:
        """Write the derivatives of the sum of the losses, in the shape of the arrays given."""
        objective, given, raw = self._given(y_true, raw_prediction, sample_weight)
        results = objective.gradient_hessian(raw, given.target, given.sample_weight)
        if not self.is_multiclass:
            results = results[0].sum(axis=1), results[1].sum(axis=1)
        if gradient_out is None or hessian_out is None:
            return results
        gradient_out[...], hessian_out[...] = results
        return gradient_out, hessian_out

    def __call__(
        self, y_true: Array, raw_prediction: Array, sample_weight: Array | None = None, n_threads: int = 1
    ) -> float:
        """Return the mean of the losses, for early stopping."""
        objective, given, raw = self._given(y_true, raw_prediction, sample_weight)
        return objective.value(raw, given.target, given.sample_weight)

    def predict_proba(self, raw_prediction: Array) -> Array:
        """Return the probabilities of all classes."""
        raw = raw_prediction.reshape(len(raw_prediction), -1)
        return _targets.class_probabilities(raw if raw.shape[1] > 1 else raw[:, 0])

    def _given(
        self, y_true: Array, raw: Array, sample_weight: Array | None
    ) -> tuple[Objective, _targets.Problem, Array]:
        given = _targets.problem(self.loss_of_classes, y_true.astype(np.int64), sample_weight, self.n_classes)
        if not self.is_multiclass:
            raw = given.spread(raw.reshape(1, -1)).T
        return Objective(given.loss, hessian=self.hessian), given, raw
