"""`fastxent.dask` beside the formulas of NumPy in Dask, on its threads; for linear models set OPENBLAS_NUM_THREADS=1."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import dask
import dask.array as da
import numpy as np

import fastxent as fx
from benchmarks.pipelines import Race
from fastxent.dask import linear_value_and_grad, value, value_and_grad

SEED = 20240229
# Rows, classes, rows of a block: 8 MB of logits in each.
SHAPES = ((2_000_000, 10, 200_000), (200_000, 100, 20_000))
QUICK = ((200_000, 10, 50_000),)
N_FEATURES = 50


def races(quick: bool) -> Iterator[Race]:
    """The value, the gradient (used up block by block), and a linear model, on as many threads as there are."""
    for n_samples, n_classes, rows in QUICK if quick else SHAPES:
        rng = np.random.default_rng(SEED)
        logits = 3 * rng.standard_normal((n_samples, n_classes), dtype=np.float32)
        features = rng.standard_normal((n_samples, N_FEATURES), dtype=np.float32)
        coef = (0.1 * rng.standard_normal((n_classes, N_FEATURES))).astype(np.float32)
        target = rng.integers(0, n_classes, n_samples)
        arrays = [da.from_array(a, chunks=(rows, *a.shape[1:])) for a in (logits, features, target)]
        for name, calls in contenders(arrays, coef).items():
            right, *others = (call() for call in calls.values())
            for other in others:
                np.testing.assert_allclose(right, other, rtol=1e-4, atol=1e-6)
            yield Race(f"dask {name} {n_samples} x {n_classes} float32", calls, seconds=1.0 if quick else 10.0)


def contenders(arrays: list[Any], coef: Any) -> dict[str, dict[str, Callable[[], Any]]]:
    """Return the calls of each race, ours first."""
    logits, features, target = arrays
    loss = fx.CrossEntropy()
    n_samples, n_classes = logits.shape
    classes = da.arange(n_classes, chunks=-1)
    coef_array = da.from_array(coef, chunks=-1)

    def formula(z: Any) -> tuple[Any, Any]:
        """The lazy value and gradient, in NumPy's functions."""
        is_target = target[:, None] == classes
        shifted = z - z.max(axis=1, keepdims=True)
        exponentials = np.exp(shifted)
        sums = exponentials.sum(axis=1, keepdims=True)
        total = (np.log(sums[:, 0]) - (shifted * is_target).sum(axis=1)).sum(dtype=np.float64)
        return total / n_samples, (exponentials / sums - is_target) / n_samples

    def linear_formula() -> tuple[Any, Any]:
        value, grad = formula(features @ coef_array.T)
        return value, grad.T @ features

    def computed(lazy: Callable[[], tuple[Any, ...]]) -> Callable[[], Any]:
        def call() -> Any:
            before = fx.get_num_threads()
            fx.set_num_threads(1)  # the parallelism is Dask's
            try:
                return np.concatenate([np.ravel(part) for part in dask.compute(*lazy(), scheduler="threads")])
            finally:
                fx.set_num_threads(before)

        return call

    def used_up(lazy: tuple[Any, Any]) -> tuple[Any, Any]:
        return lazy[0], abs(lazy[1]).max(axis=0)

    return {
        "value": {
            "fastxent": computed(lambda: (value(loss, logits, target),)),
            "NumPy in Dask": computed(lambda: formula(logits)[:1]),
        },
        "value and gradient": {
            "fastxent": computed(lambda: used_up(value_and_grad(loss, logits, target))),
            "NumPy in Dask": computed(lambda: used_up(formula(logits))),
        },
        "linear": {
            "fastxent": computed(lambda: linear_value_and_grad(loss, features, target, coef)[:2]),
            "NumPy in Dask": computed(linear_formula),
        },
    }
