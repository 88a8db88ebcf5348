"""A scorer that sees what probabilities have lost."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.metadata_routing import UNUSED

from fastxent import _check
from fastxent.losses import CrossEntropy
from fastxent.sklearn import _targets
from fastxent.sklearn._compat import BaseEstimator


class CrossEntropyScorer(BaseEstimator):
    """Minus the mean cross-entropy of a classifier's decision function, for ``scoring=``; greater is better.

    It is scikit-learn's ``"neg_log_loss"`` without the way through probabilities, which rounds those of confident
    samples to 0 or 1 and then clips them: a hopelessly wrong sample costs what it costs. For classifiers whose decision
    function are logits: logistic regression, boosting, networks.

    Parameters
    ----------
    estimator : object
        A fitted classifier with ``decision_function`` and ``classes_``.
    X : array_like, sparse or data frame
        Samples.
    y : array_like
        Labels, or probabilities, one column per class.
    sample_weight : array_like of shape (n_samples,) or None
        Finite and >= 0.

    Returns
    -------
    float
        At most 0.

    Raises
    ------
    TypeError, ValueError
        If the classifier gives no logits, or a label is none of its classes.

    See Also
    --------
    fastxent.CrossEntropy : the loss.

    Notes
    -----
    Labels are placed by ``classes_`` of the classifier, so that a fold need not have all of them. With metadata routing, ``set_score_request(sample_weight=True)`` asks for
    weights.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.model_selection import cross_val_score
    >>> from fastxent.sklearn import LinearClassifier, cross_entropy_scorer
    >>> X, y = load_iris(return_X_y=True)
    >>> scores = cross_val_score(LinearClassifier(), X, y, scoring=cross_entropy_scorer)
    >>> print(f"{scores.mean():.3f}")
    -0.140
    """

    # What `score` takes besides: not metadata.
    __metadata_request__score = {"estimator": UNUSED}  # noqa: RUF012

    def score(self, estimator: Any, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return minus the mean cross-entropy, as a call does."""
        if not hasattr(estimator, "decision_function"):
            _check.fail(TypeError, "estimator", "have decision_function", type(estimator).__name__)
        logits, classes = np.asarray(estimator.decision_function(X)), np.asarray(estimator.classes_)
        if logits.shape[1:] != ((len(classes),) if len(classes) > 2 else ()):
            rule = f"have one logit for each of its {len(classes)} classes, or one for two classes"
            _check.fail(ValueError, "estimator", rule, f"shape {logits.shape}")
        y = np.asarray(y)
        target = _targets.probabilities(y) if _targets.is_soft(y) else _targets.indices(y, classes)
        weights = None if sample_weight is None else np.asarray(sample_weight)
        given = _targets.problem(CrossEntropy(), target, weights, len(classes))
        total = given.total_weight()
        value: float = given.loss(logits.reshape(len(logits), -1), given.target, given.sample_weight)
        return -value / total

    def __call__(self, estimator: Any, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return minus the mean cross-entropy."""
        return self.score(estimator, X, y, sample_weight)


cross_entropy_scorer: CrossEntropyScorer = CrossEntropyScorer()
