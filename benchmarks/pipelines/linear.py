"""`fastxent.linear` beside scikit-learn's private loss of linear models, and torch's fused one."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import fastxent as fx
from benchmarks.pipelines import Race
from fastxent import linear

SEED = 20240229
SHAPES = ((200_000, 50, 10), (20_000, 1_000, 1_000))
QUICK = ((20_000, 50, 10), (2_000, 100, 1_000))
TIMES_AS_FAST, TIMES_AS_MUCH_MEMORY, MANY_CLASSES = 1.5, 3.0, 1_000


def races(quick: bool) -> Iterator[Race]:
    """Value and gradients at two shapes and dtypes."""
    for n_samples, n_features, n_classes in QUICK if quick else SHAPES:
        for dtype in ("float64", "float32"):
            calls = contenders(n_samples, n_features, n_classes, dtype)
            right_value, right_grad = calls["scikit-learn"]()[:2]
            ours = calls["fastxent"]()
            np.testing.assert_allclose(ours[0], right_value, rtol=1e-5)
            np.testing.assert_allclose(ours[1], right_grad[:, :-1], rtol=1e-3, atol=1e-6)
            peaks = {name: peak(calls[name]) for name in ("fastxent", "scikit-learn")}
            yield Race(
                f"linear {n_samples} x {n_features} x {n_classes} {dtype}",
                calls,
                {"scikit-learn": TIMES_AS_FAST} | {name: 1.0 for name in calls if name.startswith("torch")},
                seconds=1.0 if quick else 15.0,
                peaks=peaks,
                peak_goals={"scikit-learn": TIMES_AS_MUCH_MEMORY} if n_classes >= MANY_CLASSES else {},
            )


def contenders(n_samples: int, n_features: int, n_classes: int, dtype: str) -> dict[str, Callable[[], Any]]:
    """Return the calls, ours first."""
    from sklearn._loss import HalfMultinomialLoss
    from sklearn.linear_model._linear_loss import LinearModelLoss

    rng = np.random.default_rng(SEED)
    features = rng.standard_normal((n_samples, n_features)).astype(dtype)
    target = rng.integers(0, n_classes, n_samples)
    coef = (0.1 * rng.standard_normal((n_classes, n_features))).astype(dtype)
    intercept = np.zeros(n_classes, dtype)
    loss = fx.CrossEntropy()

    sklearn_loss = LinearModelLoss(base_loss=HalfMultinomialLoss(n_classes=n_classes), fit_intercept=True)
    both = np.asfortranarray(np.column_stack([coef, intercept]))  # the layout that it wants
    labels = target.astype(dtype)
    threads = fx.get_num_threads()
    calls: dict[str, Callable[[], Any]] = {
        "fastxent": lambda: linear.value_and_grad(loss, features, target, coef, intercept),
        "scikit-learn": lambda: sklearn_loss.loss_gradient(both, features, labels, n_threads=threads),
    }
    try:
        import torch
    except ImportError:
        return calls
    torch.set_num_threads(threads)
    t_features, t_target = torch.from_numpy(features), torch.from_numpy(target)
    t_coef, t_intercept = (torch.from_numpy(a).requires_grad_() for a in (coef.copy(), intercept.copy()))

    def with_torch(value: Callable[[], Any]) -> Callable[[], Any]:
        def call() -> Any:
            t_coef.grad = t_intercept.grad = None
            value().backward()
            return t_coef.grad

        return call

    functional = torch.nn.functional
    calls["torch"] = with_torch(
        lambda: functional.cross_entropy(functional.linear(t_features, t_coef, t_intercept), t_target)
    )
    if hasattr(functional, "linear_cross_entropy"):
        calls["torch fused"] = with_torch(
            lambda: functional.linear_cross_entropy(t_features, t_coef, t_target, linear_bias=t_intercept)
        )
    return calls


def peak(call: Callable[[], Any]) -> int:
    """Return the bytes of NumPy arrays that a call takes at its peak."""
    call()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
