"""A linear classifier that minimises any loss."""

from __future__ import annotations

from typing import Any, Self
from warnings import warn

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted

from fastxent import _check, linear
from fastxent._features import features, scipy_module
from fastxent.losses import CrossEntropy
from fastxent.sklearn import _targets
from fastxent.sklearn._compat import BaseEstimator, ClassifierMixin, validate_data

Array = npt.NDArray[Any]

# Where the rounding errors of the objective begin, in eps; scikit-learn's own number.
ROUNDING = 64
# Rows that are looked at in one go.
BLOCK_BYTES = 1 << 22


class LinearClassifier(ClassifierMixin, BaseEstimator):
    r"""Linear classifier that minimises any loss of fastxent, by L-BFGS.

    For samples :math:`x_i` with weights :math:`s_i` (``sample_weight``) it minimises

    .. math::

        C \sum_i s_i \, \ell(W x_i + b, y_i) + \tfrac{1}{2} \|W\|^2

    as scikit-learn's ``LogisticRegression(C)`` does, whose coefficients it has with :class:`fastxent.CrossEntropy`.

    Parameters
    ----------
    loss : CrossEntropy, FocalLoss, BinaryCrossEntropy, BinaryFocalLoss or None
        What is minimised, of logits; None is ``CrossEntropy()``. Two classes have one row of coefficients, that of
        ``classes_[1]``, and the binary loss that equals the given one at logits 0 and z. The binary losses
        are for two classes, the second of which is positive. Rows with the label ``ignore_index`` do not count.
    C : float, default 1.0
        Inverse strength of the penalty, > 0; inf is no penalty.
    fit_intercept : bool, default True
        Whether there is b, which has no penalty.
    class_weight : None, "balanced" or dict, default None
        ``{label: weight}``, missing labels weigh 1; times the weights of the loss. ``"balanced"`` gives all classes the
        same sum of sample weights (that of the loss counts samples).
    max_iter : int, default 200
        Most steps, >= 1.
    tol : float, default 1e-6
        It ends when no element of the gradient of the mean (of centred features, nearly of unit scale) is larger.
    warm_start : bool, default False
        Whether ``fit`` starts from the coefficients of the one before, if they have the same shape.
    verbose : int, default 0
        1 shows a line of progress.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels.
    coef_ : ndarray of shape (n_classes, n_features), or (1, n_features) for two classes
        W, in the dtype of X.
    intercept_ : ndarray of shape (n_classes,) or (1,)
        b.
    n_iter_ : int
        Steps taken.
    n_features_in_ : int
        Features seen by ``fit``.
    feature_names_in_ : ndarray
        Their names, if they have some.

    See Also
    --------
    fastxent.linear.value_and_grad : what it is computed with.

    Notes
    -----
    The steps are taken in the centred features, divided by the fourth root of their curvature: this changes no
    solution, and takes far fewer steps where features have an offset or different scales. X is not copied for it, and
    the logits never exist as a whole.

    Probabilities are sigmoid or softmax of the decision function, whatever the loss. A focal loss does not make them
    the frequencies of classes (`TemperatureScaling` can), and it is not convex: another start may end elsewhere.

    References
    ----------
    D. C. Liu, J. Nocedal, "On the limited memory BFGS method for large scale optimization", Mathematical Programming
    45, 1989.

    Examples
    --------
    >>> import fastxent as fx
    >>> from fastxent.sklearn import LinearClassifier
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> model = LinearClassifier(fx.CrossEntropy(label_smoothing=0.1)).fit(X, y)
    >>> print(f"{model.score(X, y):.3f}")
    0.967
    >>> print(model.predict_proba(X[:1]).round(2))
    [[0.92 0.08 0.  ]]
    """

    classes_: Array
    coef_: Array
    intercept_: Array
    n_iter_: int

    def __init__(
        self,
        loss: Any = None,
        *,
        C: float = 1.0,  # noqa: N803 - scikit-learn's name
        fit_intercept: bool = True,
        class_weight: Any = None,
        max_iter: int = 200,
        tol: float = 1e-6,
        warm_start: bool = False,
        verbose: int = 0,
    ):
        self.loss = loss
        self.C = C
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.max_iter = max_iter
        self.tol = tol
        self.warm_start = warm_start
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None) -> Self:
        """Minimise.

        Parameters
        ----------
        X : array_like, sparse or data frame, shape (n_samples, n_features)
            Finite. float32 is computed in float32.
        y : array_like
            Labels ``(n_samples,)``, or probabilities ``(n_samples, n_classes)``, which need not sum to 1.
        sample_weight : array_like of shape (n_samples,) or None
            Finite and >= 0.
        classes : array_like of shape (n_classes,) or None
            The labels of the columns of probabilities; None is 0, 1, ...

        Returns
        -------
        LinearClassifier
            Itself.

        Raises
        ------
        TypeError, ValueError
            If an argument or a parameter has a wrong type, value or shape.
        """
        self._check_parameters()
        soft = _targets.is_soft(y)
        X, y = validate_data(
            self, X, y, multi_output=soft, accept_sparse="csr", dtype=[np.float64, np.float32], order="C"
        )
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X, dtype=np.float64)
        loss = CrossEntropy() if self.loss is None else self.loss
        self.classes_, target = _labels(y, classes, getattr(loss, "ignore_index", None))
        n_classes = len(self.classes_)
        weights = self._class_weights(target, sample_weight)
        given = _targets.problem(loss, target, sample_weight, n_classes, weights)
        rows = 1 if n_classes == 2 else n_classes
        fitted = _minimise(self, given, X, sample_weight, rows)
        self.coef_, self.intercept_ = (part.astype(X.dtype) for part in fitted)
        return self

    def decision_function(self, X: Any) -> Array:
        """Return the logits.

        Parameters
        ----------
        X : array_like, sparse or data frame, shape (n_samples, n_features)
            The samples.

        Returns
        -------
        ndarray of shape (n_samples, n_classes), or (n_samples,) for two classes
            The latter is that of ``classes_[1]``.
        """
        check_is_fitted(self)
        dtypes = [np.float64, np.float32]
        X = validate_data(self, X, accept_sparse="csr", dtype=dtypes, reset=False)
        scores: Array = X @ self.coef_.T + self.intercept_
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def predict(self, X: Any) -> Array:
        """Return the label with the largest logit.

        Parameters
        ----------
        X : array_like, sparse or data frame, shape (n_samples, n_features)
            The samples.

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
        X : array_like, sparse or data frame, shape (n_samples, n_features)
            The samples.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Softmax of the logits.
        """
        return _targets.class_probabilities(self.decision_function(X))

    def predict_log_proba(self, X: Any) -> Array:
        """Return the logarithms of the probabilities, without rounding these to 0 or 1.

        Parameters
        ----------
        X : array_like, sparse or data frame, shape (n_samples, n_features)
            The samples.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Log-softmax of the logits.
        """
        return _targets.class_probabilities(self.decision_function(X), log=True)

    def __sklearn_tags__(self) -> Any:
        """Say that X may be sparse."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _check_parameters(self) -> None:
        for name in ("C", "tol"):
            value = getattr(self, name)
            if not (value == np.inf and name == "C"):
                _check.option_nonnegative(name, value)
        if self.C == 0:
            _check.fail(ValueError, "C", "be > 0", self.C)
        max_iter = _check.option_integer("max_iter", self.max_iter)
        if max_iter is None or max_iter < 1:
            _check.fail(ValueError, "max_iter", "be >= 1", self.max_iter)

    def _class_weights(self, target: Array, sample_weight: Array | None) -> Array | None:
        """Return the weight of every class, from those of labels."""
        if self.class_weight is None:
            return None
        n_classes = len(self.classes_)
        if isinstance(self.class_weight, str):
            _check.option_among("class_weight", self.class_weight, ("balanced",))
            if target.ndim == 1:
                target = np.equal.outer(target, np.arange(n_classes)).astype(float)
            counts = target.sum(axis=0) if sample_weight is None else sample_weight @ target
            weights: Array = np.divide(counts.sum(), n_classes * counts, out=np.zeros(n_classes), where=counts > 0)
            return weights
        if not isinstance(self.class_weight, dict):
            _check.fail(TypeError, "class_weight", 'be None, "balanced" or a dict', repr(self.class_weight))
        labels = self.classes_.tolist()
        if unknown := [label for label in self.class_weight if label not in labels]:
            _check.fail(ValueError, "class_weight", f"have keys among the classes {labels}", repr(unknown[0]))
        given = tuple(self.class_weight.get(label, 1.0) for label in labels)
        return np.asarray(_check.option_class_weight(given))


def _labels(y: Array, classes: Any, ignore_index: int | None) -> tuple[Array, Array]:
    """Return the classes and the targets, class indices or probabilities."""
    if y.ndim == 2:
        columns = np.arange(y.shape[1]) if classes is None else np.asarray(classes)
        if columns.shape != (y.shape[1],) or len(np.unique(columns)) < len(columns):
            rule = f"be {y.shape[1]} different labels, as many as y has columns"
            _check.fail(ValueError, "classes", rule, repr(classes))
        return columns, _targets.probabilities(y)
    if classes is not None:
        _check.fail(ValueError, "classes", "be None unless y are probabilities", repr(classes))
    check_classification_targets(y)
    found = np.unique(y[~_targets.is_ignored(y, ignore_index)])
    if len(found) < 2:
        _check.fail(ValueError, "y", "have at least 2 classes", f"only one class: {found.tolist()}")
    return found, _targets.indices(y, found, ignore_index)


def _minimise(
    model: LinearClassifier, given: _targets.Problem, x: Any, sample_weight: Array | None, rows: int
) -> tuple[Array, Array]:
    """Return coefficients and intercept of the minimum, and tell the model how many steps it took."""
    optimize = scipy_module("optimize")
    n_features, total = x.shape[1], given.total_weight()
    penalty = 1.0 / (model.C * total)
    mean, scale = _moments(x, sample_weight, penalty, rows)
    if not model.fit_intercept:
        mean[:] = 0
    scales = np.append(scale, 1.0) if model.fit_intercept else scale
    shape = (rows, len(scales))

    def unscaled(point: Array) -> tuple[Array, Array]:
        steps = point.reshape(shape) / scales
        coef, offset = steps[:, :n_features], steps[:, n_features:].sum(axis=1)
        return coef, offset - coef @ mean

    def objective(point: Array) -> tuple[float, Array]:
        coef, intercept = unscaled(point)
        value, grad, grad_intercept = linear.value_and_grad(
            given.loss, x, given.target, given.spread(coef), given.spread(intercept), given.sample_weight
        )
        assert grad_intercept is not None
        slopes = np.column_stack([grad, grad_intercept])
        slopes = given.gathered(slopes, rows) / total
        slopes[:, :n_features] += penalty * coef - np.outer(slopes[:, n_features], mean)
        value = value / total + 0.5 * penalty * float(np.vdot(coef, coef))
        return value, (slopes[:, : len(scales)] / scales).ravel()

    start = np.zeros(shape)
    if model.warm_start and getattr(model, "coef_", np.empty(0)).shape == (rows, n_features):
        start[:, :n_features] = model.coef_
        if model.fit_intercept:
            start[:, n_features] = model.intercept_ + model.coef_ @ mean
        start *= scales
    options = {
        "maxiter": model.max_iter,
        "gtol": model.tol,
        "ftol": ROUNDING * float(np.finfo(np.float64).eps),
        "maxls": 50,
    }
    show = _Progress() if model.verbose else None
    found = optimize.minimize(objective, start.ravel(), jac=True, method="L-BFGS-B", callback=show, options=options)
    if show is not None:
        print(f"\nLinearClassifier: {found.message}")
    model.n_iter_ = int(found.nit)
    if found.status == 1:
        text = f"L-BFGS took max_iter={model.max_iter} steps and the gradient is still {np.abs(found.jac).max():.1e}"
        warn(f"{text}; tol is {model.tol:g}. Take more steps, or a smaller C.", ConvergenceWarning, stacklevel=3)
    return unscaled(found.x)


class _Progress:
    """One line, written over at every step."""

    def __init__(self) -> None:
        self.steps = 0

    def __call__(self, intermediate_result: Any) -> None:
        """Show the step and the objective, as scipy calls back."""
        self.steps += 1
        text = f"step {self.steps}, objective {intermediate_result.fun:.8g}"
        print(f"\rLinearClassifier: {text}", end="", flush=True)


def _moments(x: Any, sample_weight: Array | None, penalty: float, rows: int) -> tuple[Array, Array]:
    """Return the mean of every feature, and the fourth root of the curvature of its coefficients at 0.

    Of centred features the Hessian is nearly diagonal. Its square root would make it a unit matrix if it were; half of
    that exponent is better where it is not, as measured (`benchmarks/NOTES.md`).
    """
    blocks, dtype, (n_samples, n_features) = features(x)
    weights = np.ones(n_samples, dtype) if sample_weight is None else sample_weight.astype(dtype)
    first, second = np.zeros(n_features), np.zeros(n_features)
    n_rows = max(BLOCK_BYTES // (n_features * dtype.itemsize), 1)
    for start in range(0, n_samples, n_rows):
        some = slice(start, start + n_rows)
        block = blocks.rows(slice(start, min(start + n_rows, n_samples)))
        with np.errstate(over="ignore"):
            first += weights[some] @ block
            second += weights[some] @ (block.multiply(block) if hasattr(block, "multiply") else block * block)
        blocks.forget()
    total = weights.sum(dtype=np.float64)
    mean, square = first / total, second / total
    # The difference has the rounding errors of the squares.
    variance = np.maximum(square - mean**2, float(np.finfo(dtype).eps) * square)
    n_classes = max(rows, 2)
    scale = ((n_classes - 1) / n_classes**2 * variance + penalty) ** 0.25
    usable = np.isfinite(scale) & (scale > 0)
    return np.where(usable, mean, 0), np.where(usable, scale, 1)
