"""`fastxent.sklearn.LinearClassifier` beside scikit-learn's `LogisticRegression`: the same steps, and the same tolerance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np

import fastxent as fx
from benchmarks.pipelines import Race

SEED = 20240229
SIDE, ENLARGED = 28, 4
STEPS, TOLERANCE = 20, 1e-4
# How much worse than scikit-learn's the objective may end, as a part of it. Better it may be, and is.
WORSE = 1e-3


def races(quick: bool) -> Iterator[Race]:
    """Train on digits of 28 x 28 pixels: 20 steps, then until the gradient is small."""
    from sklearn.linear_model import LogisticRegression

    from fastxent.sklearn import LinearClassifier

    for name, n_samples, quick_samples, options in (
        (f"train {STEPS} steps", 60_000, 2_000, {"max_iter": STEPS, "tol": 0.0}),
        (f"train to tol={TOLERANCE:g}", 10_000, 2_000, {"max_iter": 1_000, "tol": TOLERANCE}),
    ):
        pixels, digits = enlarged_digits(quick_samples if quick else n_samples)
        for dtype in ("float64", "float32"):
            features = pixels.astype(dtype, copy=False)
            models: dict[str, Any] = {
                "fastxent": LinearClassifier().set_params(**options),
                "scikit-learn": LogisticRegression(**options),
            }
            calls = {key: _fitting(model, features, digits) for key, model in models.items()}
            ours, theirs = (_objective(calls[key](), features, digits) for key in calls)
            if options["tol"] and ours > (1 + WORSE) * theirs:
                raise AssertionError(f"{name}: objective {ours}, that of scikit-learn {theirs}")
            size = f"{len(pixels)} x {SIDE**2} x 10 {dtype}"
            yield Race(f"{name}, {size}", calls, {"scikit-learn": 1.0}, seconds=1.0 if quick else 30.0)


def enlarged_digits(n_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's digits at the size of MNIST, each at a random place and with noise; pixels in [0, 1]."""
    from sklearn.datasets import load_digits

    rng = np.random.default_rng(SEED)
    small, digits = load_digits(return_X_y=True)
    chosen = rng.integers(0, len(small), n_samples)
    large = small[chosen].reshape(-1, 8, 8).repeat(ENLARGED, axis=1).repeat(ENLARGED, axis=2) / 16
    pixels = np.empty((n_samples, SIDE, SIDE))
    for i, (row, column) in enumerate(rng.integers(0, 8 * ENLARGED - SIDE + 1, (n_samples, 2))):
        pixels[i] = large[i, row : row + SIDE, column : column + SIDE]
    pixels *= rng.uniform(0.7, 1.0, pixels.shape)
    return pixels.reshape(n_samples, -1), digits[chosen]


def _fitting(model: Any, features: np.ndarray, digits: np.ndarray) -> Callable[[], Any]:
    def call() -> Any:
        with catch_warnings():
            simplefilter("ignore")  # that 20 steps are not enough
            return model.fit(features, digits)

    return call


def _objective(model: Any, features: np.ndarray, digits: np.ndarray) -> float:
    """Return what both minimise, with C = 1."""
    loss = fx.CrossEntropy(reduction="sum")(model.decision_function(features), digits)
    return float(loss + 0.5 * np.sum(model.coef_.astype(np.float64) ** 2))
