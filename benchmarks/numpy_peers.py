"""What NumPy, SciPy and scikit-learn offer: the lines that users write, and the functions that they find."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.cases import Problem

Call = Callable[[], tuple[Any, Any]]
Forms = Callable[[Problem], Mapping[str, Call]]


def _chosen(problem: Problem, form: str, value: Call, value_and_grad: Call) -> Mapping[str, Call]:
    return {form: value if problem.case.operation == "value" else value_and_grad}


def textbook_cross_entropy(problem: Problem) -> Mapping[str, Call]:
    """Write the usual lines of NumPy: shift, exponentials, sum, logarithm, p - 1."""
    logits, target, grad = problem.logits, problem.target, problem.grad
    n_rows, every_row = len(logits), np.arange(len(logits))

    def value() -> tuple[Any, Any]:
        p = logits - logits.max(axis=1, keepdims=True)
        of_target = p[every_row, target]
        return np.mean(np.log(np.exp(p, out=p).sum(axis=1)) - of_target), None

    def value_and_grad() -> tuple[Any, Any]:
        p = np.subtract(logits, logits.max(axis=1, keepdims=True), out=grad)
        of_target = p[every_row, target]
        total = np.exp(p, out=p).sum(axis=1, keepdims=True)
        p /= total
        p[every_row, target] -= 1
        p /= n_rows
        return np.mean(np.log(total[:, 0]) - of_target), p

    return _chosen(problem, "six lines", value, value_and_grad)


def textbook_focal(problem: Problem) -> Mapping[str, Call]:
    """Write the softmax focal loss (Lin et al., 2017) and its derivative with NumPy."""
    logits, target, grad, gamma = problem.logits, problem.target, problem.grad, problem.case.options["gamma"]
    n_rows, every_row = len(logits), np.arange(len(logits))

    def value_and_grad() -> tuple[Any, Any]:
        p = np.subtract(logits, logits.max(axis=1, keepdims=True), out=grad)
        of_target = p[every_row, target]
        total = np.exp(p, out=p).sum(axis=1, keepdims=True)
        p /= total
        minus_log_p = np.log(total[:, 0]) - of_target
        p_t = p[every_row, target]
        weight = (1 - p_t) ** gamma
        p[every_row, target] -= 1
        p *= ((weight + gamma * p_t * minus_log_p * (1 - p_t) ** (gamma - 1)) / n_rows)[:, np.newaxis]
        return np.mean(weight * minus_log_p), p

    return {"ten lines": value_and_grad}


def textbook_binary_cross_entropy(problem: Problem) -> Mapping[str, Call]:
    """Write the usual stable lines: ``max(z, 0) - z t + log1p(exp(-|z|))`` and ``sigmoid(z) - t``."""
    z, t, grad = problem.logits, problem.target, problem.grad

    def value() -> tuple[Any, Any]:
        return np.mean(np.maximum(z, 0) - z * t + np.log1p(np.exp(-np.abs(z)))), None

    def value_and_grad() -> tuple[Any, Any]:
        mean_loss = value()[0]
        p = np.exp(np.negative(z, out=grad), out=grad)
        p += 1
        np.reciprocal(p, out=p)
        p -= t
        p /= z.size
        return mean_loss, p

    return _chosen(problem, "stable lines", value, value_and_grad)


def textbook_binary_focal(problem: Problem) -> Mapping[str, Call]:
    """Write the formula of torchvision's ``sigmoid_focal_loss`` and its derivative with NumPy."""
    z, t, grad = problem.logits, problem.target, problem.grad

    def value_and_grad() -> tuple[Any, Any]:
        loss = np.maximum(z, 0) - z * t + np.log1p(np.exp(-np.abs(z)))
        return _binary_focal(problem, 1 / (1 + np.exp(-z)), loss, t, grad)

    return {"ten lines": value_and_grad}


def _binary_focal(problem: Problem, p: Any, loss: Any, t: Any, grad: Any) -> tuple[Any, Any]:
    """Return mean and gradient from probability and cross-entropy, with ``r = 1 - p_t``."""
    gamma, alpha = problem.case.options["gamma"], problem.case.options["alpha"]
    r = p + t - 2 * p * t
    alpha_t = alpha * t + (1 - alpha) * (1 - t)
    weight = alpha_t * r ** (gamma - 1)
    derivative = gamma * p * (1 - p) * (1 - 2 * t) * loss + r * (p - t)
    derivative *= weight
    return np.mean(weight * r * loss), np.divide(derivative, p.size, out=grad)


def scipy_cross_entropy(problem: Problem) -> Mapping[str, Call]:
    """Call SciPy's `log_softmax`, and make the gradient from it."""
    from scipy.special import log_softmax

    logits, target, grad = problem.logits, problem.target, problem.grad
    n_rows, every_row = len(logits), np.arange(len(logits))

    def value() -> tuple[Any, Any]:
        return -np.mean(log_softmax(logits, axis=1)[every_row, target]), None

    def value_and_grad() -> tuple[Any, Any]:
        log_p = log_softmax(logits, axis=1)
        mean_loss = -np.mean(log_p[every_row, target])
        p = np.exp(log_p, out=log_p if grad is None else grad)
        p[every_row, target] -= 1
        p /= n_rows
        return mean_loss, p

    return _chosen(problem, "log_softmax", value, value_and_grad)


def scipy_focal(problem: Problem) -> Mapping[str, Call]:
    """Call SciPy's `log_softmax`, and make the focal loss and its gradient from it."""
    from scipy.special import log_softmax

    logits, target, grad, gamma = problem.logits, problem.target, problem.grad, problem.case.options["gamma"]
    n_rows, every_row = len(logits), np.arange(len(logits))

    def value_and_grad() -> tuple[Any, Any]:
        log_p = log_softmax(logits, axis=1)
        minus_log_p = -log_p[every_row, target]
        p = np.exp(log_p, out=log_p if grad is None else grad)
        p_t = p[every_row, target]
        weight = (1 - p_t) ** gamma
        p[every_row, target] -= 1
        p *= ((weight + gamma * p_t * minus_log_p * (1 - p_t) ** (gamma - 1)) / n_rows)[:, np.newaxis]
        return np.mean(weight * minus_log_p), p

    return {"log_softmax": value_and_grad}


def scipy_binary_cross_entropy(problem: Problem) -> Mapping[str, Call]:
    """Call SciPy's `log_expit` and `expit`."""
    from scipy.special import expit, log_expit

    z, t, grad = problem.logits, problem.target, problem.grad

    def value() -> tuple[Any, Any]:
        return np.mean((1 - t) * z - log_expit(z)), None

    def value_and_grad() -> tuple[Any, Any]:
        mean_loss = value()[0]
        p = expit(z, out=grad)
        p -= t
        p /= z.size
        return mean_loss, p

    return _chosen(problem, "expit", value, value_and_grad)


def scipy_binary_focal(problem: Problem) -> Mapping[str, Call]:
    """Call SciPy's `log_expit` and `expit`, and make the focal loss from them."""
    from scipy.special import expit, log_expit

    z, t, grad = problem.logits, problem.target, problem.grad
    return {"expit": lambda: _binary_focal(problem, expit(z), (1 - t) * z - log_expit(z), t, grad)}


def scikit_learn_cross_entropy(problem: Problem) -> Mapping[str, Call]:
    """Call the private loss under scikit-learn's linear models and boosting."""
    from sklearn._loss.loss import HalfMultinomialLoss

    # Labels as floats are the only kind it takes.
    labels = problem.target.astype(problem.logits.dtype)
    return _scikit_learn(problem, HalfMultinomialLoss(n_classes=problem.case.n_classes), labels)


def scikit_learn_binary_cross_entropy(problem: Problem) -> Mapping[str, Call]:
    """Call the private loss under scikit-learn's logistic regression and boosting."""
    from sklearn._loss.loss import HalfBinomialLoss

    return _scikit_learn(problem, HalfBinomialLoss(), problem.target)


def _scikit_learn(problem: Problem, loss: Any, labels: Any) -> Mapping[str, Call]:
    logits, grad, n_threads = problem.logits, problem.grad, problem.n_threads
    # It sums; weights of one over the number of rows make that a mean without another pass over the gradient.
    weight = np.full(len(logits), 1 / len(logits), dtype=logits.dtype)
    losses = None if grad is None else np.empty_like(weight)

    def value() -> tuple[Any, Any]:
        return np.sum(loss.loss(labels, logits, weight, losses, n_threads=n_threads)), None

    def value_and_grad() -> tuple[Any, Any]:
        each, gradient = loss.loss_gradient(labels, logits, weight, losses, grad, n_threads=n_threads)
        return np.sum(each), gradient

    return _chosen(problem, type(loss).__name__, value, value_and_grad)


TEXTBOOK: dict[str, Forms] = {
    "CrossEntropy": textbook_cross_entropy,
    "FocalLoss": textbook_focal,
    "BinaryCrossEntropy": textbook_binary_cross_entropy,
    "BinaryFocalLoss": textbook_binary_focal,
}
SCIPY: dict[str, Forms] = {
    "CrossEntropy": scipy_cross_entropy,
    "FocalLoss": scipy_focal,
    "BinaryCrossEntropy": scipy_binary_cross_entropy,
    "BinaryFocalLoss": scipy_binary_focal,
}
SCIKIT_LEARN: dict[str, Forms] = {
    "CrossEntropy": scikit_learn_cross_entropy,
    "BinaryCrossEntropy": scikit_learn_binary_cross_entropy,
}
