"""`fastxent.sklearn.LinearClassifier` beside scikit-learn's `LogisticRegression`: the same steps, and the same tolerance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np

import fastxent as fx
from benchmarks.pipelines import Race

SEED = 20240229
SIDE, ENLARGED, STEPS = 28, 4, 20
ROWS, QUICK_ROWS = 60_000, 2_000
# What both are asked for in the second race, and how far apart their mean losses may end there.
TOLERANCE, APART = 1e-4, 2e-3


def races(quick: bool) -> Iterator[Race]:
    """Train on digits of 28 x 28 pixels: 20 steps, then until the gradient is small."""
    from sklearn.linear_model import LogisticRegression

    from fastxent.sklearn import LinearClassifier

    pixels, digits = enlarged_digits(QUICK_ROWS if quick else ROWS)
    for dtype in ("float64", "float32"):
        features = pixels.astype(dtype, copy=False)
        size = f"{len(pixels)} x {SIDE**2} x 10 {dtype}"
        for name, options in (
            (f"train {STEPS} steps, {size}", {"max_iter": STEPS, "tol": 0.0}),
            (f"train to tol={TOLERANCE:g}, {size}", {"max_iter": 1_000, "tol": TOLERANCE}),
        ):
            models: dict[str, Any] = {
                "fastxent": LinearClassifier().set_params(**options),
                "scikit-learn": LogisticRegression(**options),
            }
            if options["tol"]:
                ours, theirs = (
                    fx.CrossEntropy()(_fitted(model, features, digits)().decision_function(features), digits)
                    for model in models.values()
                )
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=APART)
            calls = {name: _fitted(model, features, digits) for name, model in models.items()}
            yield Race(name, calls, {"scikit-learn": 1.0}, seconds=1.0 if quick else 60.0)


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


def _fitted(model: Any, features: np.ndarray, digits: np.ndarray) -> Callable[[], Any]:
    def call() -> Any:
        with catch_warnings():
            simplefilter("ignore")  # that 20 steps are not enough
            return model.fit(features, digits)

    return call
