"""Train a classifier of handwritten digits with fastxent and SciPy, beside scikit-learn.

The model is multinomial logistic regression, ``logits = pixels @ coef.T + intercept``: fastxent gives the loss and its
gradient, SciPy minimises, and the result must be that of ``sklearn.linear_model.LogisticRegression`` at one penalty.

Run it with ``make demo`` or ``python examples/digits.py --output demo.png``.
"""

import argparse
import sys
from collections.abc import Callable
from time import perf_counter

import numpy as np
from matplotlib.figure import Figure
from scipy.optimize import OptimizeResult, minimize
from sklearn._loss.loss import HalfMultinomialLoss
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import fastxent as fx
from fastxent import _reference

C = 1.0  # scikit-learn minimises C * sum(losses) + sum(coef ** 2) / 2
COLORS = {"fastxent": "#0072b2", "scikit-learn": "#e69f00", "plain NumPy": "#999999"}


def train(pixels: np.ndarray, digits: np.ndarray, n_classes: int = 10) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Fit the linear model; return ``coef``, ``intercept`` and the objective at every step."""
    n_samples, n_features = pixels.shape
    penalty = 1.0 / (C * n_samples)  # our loss is the mean, so the penalty is divided too
    logits = np.empty((n_samples, n_classes))
    loss = fx.CrossEntropy()

    def objective(weights: np.ndarray) -> tuple[float, np.ndarray]:
        weights = weights.reshape(n_classes, n_features + 1)
        coef, intercept = weights[:, :-1], weights[:, -1]
        np.matmul(pixels, coef.T, out=logits)
        logits[:] += intercept
        # The gradient is written over the logits: no second array of that size exists.
        value, grad = loss.value_and_grad(logits, digits, grad_out=logits)
        value += 0.5 * penalty * np.sum(coef**2)
        grad_weights = np.column_stack([grad.T @ pixels + penalty * coef, grad.sum(axis=0)])
        return value, grad_weights.ravel()

    curve = [float(np.log(n_classes))]  # with every weight 0, every class has the probability 1 / n_classes
    start = np.zeros(n_classes * (n_features + 1))
    with tqdm(desc="training", unit=" steps") as progress:

        def after_step(intermediate_result: OptimizeResult) -> None:
            curve.append(intermediate_result.fun)
            progress.set_postfix(objective=f"{curve[-1]:.6f}", refresh=False)
            progress.update()

        tight = {"maxiter": 2000, "gtol": 1e-8, "ftol": 0.0}
        found = minimize(objective, start, jac=True, method="L-BFGS-B", callback=after_step, options=tight)
    weights = found.x.reshape(n_classes, n_features + 1)
    return weights[:, :-1], weights[:, -1], curve


def time_value_and_grad(logits: np.ndarray, digits: np.ndarray, rounds: int = 15) -> dict[str, list[float]]:
    """Return the milliseconds of one value-and-gradient call, ``{name: [sample, ...]}``."""
    n_samples, n_classes = logits.shape
    loss, plain, half = fx.CrossEntropy(), _reference.CrossEntropy(), HalfMultinomialLoss(n_classes=n_classes)
    share = np.full(n_samples, 1.0 / n_samples)  # weights that make scikit-learn's sum a mean
    labels, losses, grad = digits.astype(logits.dtype), np.empty(n_samples), np.empty_like(logits)

    def scikit_learn() -> tuple[float, np.ndarray]:
        half.loss_gradient(labels, logits, share, losses, grad, n_threads=fx.get_num_threads())
        return losses.sum(), grad

    calls: dict[str, Callable[[], tuple[float, np.ndarray]]] = {
        "fastxent": lambda: loss.value_and_grad(logits, digits, grad_out=grad),
        "scikit-learn": scikit_learn,
        "plain NumPy": lambda: plain.value_and_grad(logits, digits, grad_out=grad),
    }
    right_value, right_grad = plain.value_and_grad(logits, digits)
    for call in calls.values():
        grad.fill(np.nan)  # the answer of the one before must not pass for this one's
        value, _ = call()
        np.testing.assert_allclose(value, right_value, rtol=1e-12)
        np.testing.assert_allclose(grad, right_grad, rtol=1e-9, atol=1e-14 / n_samples)
    milliseconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):  # A B C A B C: a slow moment of the machine hits everyone
        for name, call in calls.items():
            call()  # wakes this library's threads
            start = perf_counter()
            call()
            milliseconds[name].append(1e3 * (perf_counter() - start))
    return milliseconds


def draw(curve: list[float], timings: dict[str, dict[str, list[float]]], path: str) -> None:
    """Draw the training curve and, for each size, the time of one call."""
    figure = Figure(figsize=(13, 4), layout="tight")
    panels = figure.subplots(1, 3, width_ratios=[1.2, 1, 1])
    panels[0].semilogy(np.array(curve) - min(curve) + 1e-12, color=COLORS["fastxent"], linewidth=2)
    panels[0].set(title="Training on the digits", xlabel="L-BFGS step", ylabel="objective above its minimum")
    for panel, (size, milliseconds) in zip(panels[1:], timings.items(), strict=True):
        medians = np.array([np.median(samples) for samples in milliseconds.values()])
        bars = panel.barh(list(milliseconds), medians, color=list(COLORS.values()))
        texts = [f"{time:.3g} ms\n{time / medians[0]:.1f}x" for time in medians]
        panel.bar_label(bars, texts, padding=4)
        panel.set(title=f"Value and gradient, {size}", xlabel="milliseconds, median")
        panel.invert_yaxis()
        panel.margins(x=0.4)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> int | str:
    """Train, compare, time and draw; the exit status is 1 if scikit-learn disagrees."""
    parser = argparse.ArgumentParser(description="Train on digits, beside scikit-learn.")
    parser.add_argument("--output", default="demo.png", help="the picture to write")
    args = parser.parse_args()
    pixels, digits = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(pixels / 16, digits, random_state=0)

    coef, intercept, curve = train(train_x, train_y)
    sklearn = LogisticRegression(C=C, tol=1e-8, max_iter=2000).fit(train_x, train_y)

    print(f"\n{'accuracy':<14}{'fastxent':>12}{'scikit-learn':>14}")
    agree = True
    for part, x, y in [("train", train_x, train_y), ("test", test_x, test_y)]:
        ours, theirs = np.mean(np.argmax(x @ coef.T + intercept, axis=1) == y), sklearn.score(x, y)
        agree &= abs(ours - theirs) < 0.0005
        print(f"{part:<14}{ours:>12.4f}{theirs:>14.4f}")
    difference = fx.softmax(test_x @ coef.T + intercept) - sklearn.predict_proba(test_x)
    print(f"largest difference of a predicted probability: {np.abs(difference).max():.1e}")

    logits, timings = train_x @ coef.T + intercept, {}
    for copies in [1, 200_000 // len(logits)]:  # the digits, and as many rows as users really have
        size = f"{copies * len(logits)} x {logits.shape[1]}"
        timings[size] = time_value_and_grad(np.tile(logits, (copies, 1)), np.tile(train_y, copies))
        print(f"\n{'one call, ' + size:<24}{'median':>10}{'fastest':>10}{'ratio':>8}")
        for name, samples in timings[size].items():
            median, ours = np.median(samples), np.median(timings[size]["fastxent"])
            print(f"{name:<24}{median:>7.3f} ms{min(samples):>7.3f} ms{median / ours:>7.1f}x")

    draw(curve, timings, args.output)
    print(f"\nwrote {args.output}")
    return 0 if agree else "error: the accuracies differ from scikit-learn's"


if __name__ == "__main__":
    sys.exit(main())
