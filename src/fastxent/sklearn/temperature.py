"""Temperature scaling: one number that makes probabilities fit."""

from __future__ import annotations

from typing import Any, Self
from warnings import warn

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted

from fastxent import _check
from fastxent._features import scipy_module
from fastxent.losses import CrossEntropy
from fastxent.sklearn import _targets
from fastxent.sklearn._compat import BaseEstimator, ClassifierMixin, validate_data

Array = npt.NDArray[Any]

# Of log T: e^-10 to e^10, as scikit-learn.
BOUND = 10.0
# A mean loss that only ever smaller temperatures make smaller; where gradients end.
LEAST_LOSS = 1e-6


class TemperatureScaling(ClassifierMixin, BaseEstimator):
    r"""Divide logits by the temperature that makes their probabilities fit held-out samples best.

    It minimises the mean of :math:`\ell(z_i / T, y_i)` over :math:`\log T`, whose derivative is
    :math:`-\sum_i g_i \cdot z_i / T` with :math:`g` the gradient of the loss. T > 1 makes confident probabilities less
    so. The label of a sample never changes, only its probability.

    Parameters
    ----------
    loss : CrossEntropy, FocalLoss, BinaryCrossEntropy, BinaryFocalLoss or None
        What is minimised, of logits; None is ``CrossEntropy()``.
    classes : array_like of shape (n_classes,) or None
        The labels of the columns of logits, ``classes_`` of the model. None: the labels in y, sorted, of which there
        must be as many.
    n_bins : int, default 15
        Bins of the calibration error, >= 1.

    Attributes
    ----------
    temperature_ : float
        T.
    calibration_error_before_, calibration_error_after_ : float
        Expected calibration error of the samples of ``fit``: probabilities of the most likely class are put into bins of
        equal width; it is how far those of a bin are from its share of right ones, on average.
    classes_ : ndarray of shape (n_classes,)
        The labels.
    n_features_in_ : int
        Columns of logits.
    n_iter_ : int
        Steps taken.

    See Also
    --------
    LinearClassifier : gives logits.

    Notes
    -----
    Fit it to samples that the model has not seen. Logits are what ``decision_function`` of a classifier gives: one
    column per class, or one score per sample for two classes; two columns are taken for the difference of them.

    References
    ----------
    C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On Calibration of Modern Neural Networks", ICML 2017.

    Examples
    --------
    >>> import numpy as np
    >>> from fastxent.sklearn import TemperatureScaling
    >>> logits = np.array([[6.0, 0.0], [0.0, 6.0], [6.0, 0.0], [0.0, 6.0]])
    >>> scaling = TemperatureScaling().fit(logits, [0, 1, 0, 0])  # three of four are right, not 99.8 %
    >>> scaling.predict_proba(logits[:1]).round(4)
    array([[0.75, 0.25]])
    >>> round(scaling.temperature_, 4)
    5.4614
    >>> round(scaling.calibration_error_before_, 4), round(scaling.calibration_error_after_, 4)
    (0.2475, 0.0)
    """

    classes_: Array
    temperature_: float
    calibration_error_before_: float
    calibration_error_after_: float
    n_iter_: int

    def __init__(self, loss: Any = None, *, classes: Any = None, n_bins: int = 15):
        self.loss = loss
        self.classes = classes
        self.n_bins = n_bins

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Find the temperature.

        Parameters
        ----------
        X : array_like of shape (n_samples, n_classes), or (n_samples,) or (n_samples, 1) for two classes
            Logits, finite.
        y : array_like
            Labels ``(n_samples,)``, or probabilities ``(n_samples, n_classes)``.
        sample_weight : array_like of shape (n_samples,) or None
            Finite and >= 0.

        Returns
        -------
        TemperatureScaling
            Itself.

        Raises
        ------
        TypeError, ValueError
            If an argument or a parameter has a wrong type, value or shape.
        """
        if (_check.option_integer("n_bins", self.n_bins) or 0) < 1:
            _check.fail(ValueError, "n_bins", "be >= 1", self.n_bins)
        X, y = validate_data(self, _columns(X), y, multi_output=_targets.is_soft(y), dtype=[np.float64, np.float32])
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X, dtype=np.float64)
        loss = CrossEntropy() if self.loss is None else self.loss
        self.classes_, target = self._labels(X, y, getattr(loss, "ignore_index", None))
        scores = _scores(X)
        given = _targets.problem(loss, target, sample_weight, len(self.classes_))
        total = given.total_weight()
        logits = given.spread(scores[np.newaxis]).T if scores.ndim == 1 else scores

        def objective(log_temperature: Array) -> tuple[float, float]:
            scaled = logits * np.exp(-log_temperature[0]).astype(logits.dtype)
            value, grad = given.loss.value_and_grad(scaled, given.target, given.sample_weight)
            return value / total, -float(np.sum(grad * scaled, dtype=np.float64)) / total

        options = {"gtol": 1e-9, "ftol": 4 * float(np.finfo(np.float64).eps)}
        minimize = scipy_module("optimize").minimize
        found = minimize(objective, [0.0], jac=True, method="L-BFGS-B", bounds=[(-BOUND, BOUND)], options=options)
        if found.x[0] >= BOUND:
            text = f"The best temperature is beyond exp({BOUND:+.0f}): the logits are no better than chance"
            warn(text, ConvergenceWarning, stacklevel=2)
        elif found.fun <= LEAST_LOSS:
            warn("There is no best temperature: all samples are right", ConvergenceWarning, stacklevel=2)
        self.temperature_ = float(np.exp(found.x[0]))
        self.n_iter_ = int(found.nit)
        self.calibration_error_before_, self.calibration_error_after_ = (
            _calibration_error(_targets.class_probabilities(z), target, sample_weight, self.n_bins)
            for z in (scores, scores / self.temperature_)
        )
        return self

    def decision_function(self, X: Any) -> Array:
        """Return the logits divided by the temperature.

        Parameters
        ----------
        X : array_like of shape (n_samples, n_classes), or (n_samples,) or (n_samples, 1) for two classes
            Logits.

        Returns
        -------
        ndarray of shape (n_samples, n_classes), or (n_samples,) for two classes
            The latter is that of ``classes_[1]``.
        """
        check_is_fitted(self)
        X = _columns(X) if self.n_features_in_ == 1 else X
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return _scores(X) / self.temperature_

    def predict(self, X: Any) -> Array:
        """Return the label with the largest logit.

        Parameters
        ----------
        X : array_like
            Logits.

        Returns
        -------
        ndarray of shape (n_samples,)
            Elements of ``classes_``.
        """
        return _targets.predicted(self.decision_function(X), self.classes_)

    def predict_proba(self, X: Any) -> Array:
        """Return the probabilities of the classes.

        Parameters
        ----------
        X : array_like
            Logits.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Softmax of the logits divided by the temperature.
        """
        return _targets.class_probabilities(self.decision_function(X))

    def _labels(self, logits: Array, y: Array, ignore_index: int | None) -> tuple[Array, Array]:
        """Return the classes and the targets, class indices or probabilities."""
        n_classes = max(logits.shape[1], 2)
        if y.ndim == 2:
            found = np.arange(y.shape[1]) if self.classes is None else np.asarray(self.classes)
        else:
            check_classification_targets(y)
            given = y[~_targets.is_ignored(y, ignore_index)]
            found = np.unique(given) if self.classes is None else np.asarray(self.classes)
        if found.shape != (n_classes,) or (y.ndim == 2 and y.shape[1] != n_classes):
            rule = f"be {n_classes} labels, as many as X has columns of logits (classes of y, where it is None)"
            _check.fail(ValueError, "classes", rule, found.tolist())
        return found, _targets.probabilities(y) if y.ndim == 2 else _targets.indices(y, found, ignore_index)


def _columns(X: Any) -> Any:
    """One score per sample as a column."""
    shape: tuple[int, ...] = np.shape(X) if isinstance(X, list | tuple) else getattr(X, "shape", ())
    return np.asarray(X).reshape(-1, 1) if len(shape) == 1 and shape[0] else X


def _scores(logits: Array) -> Array:
    """Return logits as a decision function gives them: of two classes one score."""
    if logits.shape[1] > 2:
        return logits
    return logits[:, -1] - (logits[:, 0] if logits.shape[1] == 2 else 0)


def _calibration_error(probabilities: Array, target: Array, sample_weight: Array | None, n_bins: int) -> float:
    """Return the expected calibration error."""
    rows = np.arange(len(target))
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    right = target[rows, predicted] if target.ndim == 2 else target == predicted
    weight = np.ones(len(target)) if sample_weight is None else sample_weight
    weight = weight * (target != _targets.IGNORED if target.ndim == 1 else 1)
    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    return float(np.abs(np.bincount(bins, weight * (right - confidence))).sum() / weight.sum())
