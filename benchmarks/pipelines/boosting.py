"""Gradient and Hessian of `fastxent.boosting.Objective`, beside two forms of the softmax objective of XGBoost's demo.

These are its loops over rows and classes, on a few of the rows, and the same in whole arrays of NumPy. Labels and weights
come from a stand-in for a data set, so that no boosting library is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastxent as fx
from benchmarks.cases import LOGIT_SCALE, SEED
from benchmarks.pipelines import Race
from fastxent.boosting import Objective

Array = NDArray[Any]
Pair = tuple[Array, Array]
FLOOR = 1e-6
LOOP_ROWS = 2_000  # the demo's loops take about 10 us per logit


@dataclass(frozen=True)
class Case:
    """An objective and the scores as a library hands them over."""

    library: str
    loss: Any
    hessian: str
    n_classes: int  # 1 for a binary loss
    dtype: str
    order: Any

    @property
    def name(self) -> str:
        """As in ``XGBoost CrossEntropy gershgorin 10 float32``."""
        return f"{self.library} {type(self.loss).__name__} {self.hessian} {self.n_classes} {self.dtype}"


CASES = [
    Case("XGBoost", fx.CrossEntropy(), "gershgorin", 10, "float32", "C"),
    Case("LightGBM", fx.CrossEntropy(), "lightgbm", 10, "float64", "F"),
    Case("XGBoost", fx.BinaryCrossEntropy(), "diagonal", 1, "float32", "C"),
    Case("LightGBM", fx.BinaryCrossEntropy(), "diagonal", 1, "float64", "C"),
]
FACTORS: dict[str, Callable[[int], float]] = {
    "gershgorin": lambda k: 2.0,
    "lightgbm": lambda k: k / (k - 1),
    "diagonal": lambda k: 1.0,
}


@dataclass(frozen=True)
class Data:
    """What a DMatrix and a Dataset have in common."""

    labels: Array
    weights: Array

    def get_label(self) -> Array:
        """Return the labels, whole numbers in float32."""
        return self.labels

    def get_weight(self) -> Array:
        """Return the weights."""
        return self.weights


def in_arrays(factor: float, scores: Array, data: Data) -> Pair:
    """Write what users write with NumPy; in the dtype of the scores."""
    weights = data.get_weight().astype(scores.dtype)
    if scores.ndim == 1:
        p = 1 / (1 + np.exp(-scores))
        return (p - data.get_label()) * weights, np.maximum(p * (1 - p) * weights, FLOOR)
    labels = data.get_label().astype(np.int64)
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    hess = np.maximum(factor * p * (1 - p) * weights[:, np.newaxis], FLOOR)
    p[np.arange(len(p)), labels] -= 1
    return p * weights[:, np.newaxis], hess


def in_loops(factor: float, scores: Array, data: Data) -> Pair:
    """Go through rows and classes one by one, as in XGBoost's demo/guide-python/custom_softmax.py."""
    grad, hess = np.zeros_like(scores), np.zeros_like(scores)
    labels, weights = data.get_label(), data.get_weight()
    for row, z in enumerate(scores):
        exponentials = np.exp(z - z.max())
        p = exponentials / exponentials.sum()
        for c in range(len(p)):
            grad[row, c] = (p[c] - 1.0 if c == labels[row] else p[c]) * weights[row]
            hess[row, c] = max(factor * p[c] * (1.0 - p[c]) * weights[row], FLOOR)
    return grad, hess


def races(quick: bool) -> Iterator[Race]:
    """Softmax and binary objectives on 10^6 rows as XGBoost and LightGBM hold them."""
    for case in CASES:
        yield race_of(case, 100_000 if quick else 1_000_000, 0.5 if quick else 8.0)


def race_of(case: Case, n_rows: int, seconds: float) -> Race:
    """Check the forms of one case against each other."""
    rng = np.random.default_rng([SEED, n_rows, case.n_classes])
    shape = (n_rows, case.n_classes) if case.n_classes > 1 else (n_rows,)
    scores = np.asarray(LOGIT_SCALE * rng.standard_normal(shape, dtype=np.float32), case.dtype, order=case.order)
    labels = rng.integers(0, max(case.n_classes, 2), n_rows).astype(np.float32)
    data = Data(labels, rng.uniform(0.5, 2.0, n_rows).astype(np.float32))
    objective = Objective(case.loss, hessian=case.hessian, min_hessian=FLOOR)
    ours = objective.xgboost if case.library == "XGBoost" else objective.lightgbm
    factor = FACTORS[case.hessian](case.n_classes)

    few = Data(data.labels[:LOOP_ROWS], data.weights[:LOOP_ROWS])
    calls: dict[str, Callable[[], Pair]] = {
        "fastxent": partial(ours, scores, data),
        "NumPy": partial(in_arrays, factor, scores, data),
    }
    if case.n_classes > 1:
        calls[f"loops, {LOOP_ROWS} rows of them"] = partial(in_loops, factor, scores[:LOOP_ROWS], few)
    # A floating label minus a probability that is nearly 1 keeps no digits beyond eps: absolute errors are compared.
    tolerance = 100 * float(np.finfo(case.dtype).eps)
    expected = in_arrays(factor, scores.astype(np.float64), data)
    for name, call in calls.items():
        for mine, right in zip(call(), expected, strict=True):
            np.testing.assert_allclose(mine, right[: len(mine)], rtol=0, atol=tolerance, err_msg=f"{case.name}: {name}")
    return Race(f"boosting {case.name}, {n_rows} rows", calls, seconds=seconds)
