"""What to take for the Hessian: a focal loss in two boosting libraries, on one digit out of ten.

Scikit-learn's digits, an 8 or not, with a third of the eights left. All models start from the log-odds of the
training part, where a focal loss is not convex. Cross-entropy is there for comparison: it gives the trees of the
library's own objective.

Run it with ``python examples/boosting.py`` (``pip install "fastxent[boosting]" scikit-learn``).
"""

from typing import Any

import lightgbm
import numpy as np
import numpy.typing as npt
import xgboost
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score
from sklearn.model_selection import RepeatedStratifiedKFold

import fastxent as fx
from fastxent.boosting import Objective

Array = npt.NDArray[Any]
DIGIT, ROUNDS = 8, 60
SPLITS = RepeatedStratifiedKFold(n_splits=3, n_repeats=3, random_state=0)
FOCAL = fx.BinaryFocalLoss(gamma=2.0)
OBJECTIVES = {"cross-entropy": Objective(fx.BinaryCrossEntropy())} | {
    f"focal, {policy}": Objective(FOCAL, hessian=policy) for policy in ("auto", "diagonal", "psd", "exact")
}


def by_xgboost(objective: Objective, features: Array, labels: Array, test: Array) -> Any:
    """Return the raw scores of the test part."""
    params = {"eta": 0.1, "base_score": float(objective.initial_score(labels))}
    booster = xgboost.train(params, xgboost.DMatrix(features, labels), ROUNDS, obj=objective.xgboost)
    return booster.predict(xgboost.DMatrix(test), output_margin=True)


def by_lightgbm(objective: Objective, features: Array, labels: Array, test: Array) -> Any:
    """Return the raw scores of the test part."""
    start = np.full(len(labels), objective.initial_score(labels))
    params = {"objective": objective.lightgbm, "verbosity": -1}
    booster = lightgbm.train(params, lightgbm.Dataset(features, labels, init_score=start), ROUNDS)
    return booster.predict(test) + start[0]


def main() -> None:
    """Train on every split, and print average precision and the largest score."""
    features, digits = load_digits(return_X_y=True)
    eights = np.flatnonzero(digits == DIGIT)
    rows = np.sort(np.concatenate([np.flatnonzero(digits != DIGIT), eights[::3]]))
    features, positive = features[rows], (digits[rows] == DIGIT).astype(int)

    print(f"{len(rows)} digits, {positive.mean():.1%} of them {DIGIT}; means of {SPLITS.get_n_splits()} test parts\n")
    print(f"{'':18}{'average precision':^22}{'largest raw score':^22}")
    print(f"{'':18}{'XGBoost':>11}{'LightGBM':>11}{'XGBoost':>11}{'LightGBM':>11}")
    for name, objective in OBJECTIVES.items():
        measured = []
        for train, test in SPLITS.split(features, positive):
            data = features[train], positive[train], features[test]
            scores = [fit(objective, *data) for fit in (by_xgboost, by_lightgbm)]
            precisions = [average_precision_score(positive[test], score) for score in scores]
            measured.append(precisions + [np.abs(score).max() for score in scores])
        a, b, c, d = np.mean(measured, axis=0)
        print(f"{name:18}{a:>11.3f}{b:>11.3f}{c:>11.1f}{d:>11.1f}")


if __name__ == "__main__":
    main()
