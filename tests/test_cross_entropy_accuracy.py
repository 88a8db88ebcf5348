"""DESIGN 2.5: relative accuracy of value, gradient, Hessian, softmax and log-softmax, against mpmath."""

from functools import cache

import numpy as np
import oracle
import pytest
from arrays import one_hot, random_logits
from tolerances import ELEMENT, HESSIAN, LOG_SUM_EXP, VALUE, eps

import fastxent as fx

pytestmark = pytest.mark.usefixtures("isa")

# Two classes, the few-classes kernel and its end, one vector and a bit, rows in cache.
N_CLASSES = (2, 3, 5, 10, 17, 100, 1000)
# 0 and 1 are ordinary rows; at 17 (float32) and 40 (float64) a sum that includes the largest term returns 0; the last
# is close to where the second term leaves the range of the dtype.
GAPS = {np.float32: (0, 1, 5, 17, 40, 80), np.float64: (0, 1, 17, 40, 100, 650)}
OFFSETS = (0.0, 1e4, -1e6, 1e8)


@cache
def cases(dtype, n_classes):
    """(logits, targets, exact rows); rows alternate between the surest class as target and another."""
    rng = np.random.default_rng(n_classes)
    rows = []
    for k, gap in enumerate(GAPS[dtype]):
        # mpmath takes a tenth of a second for a thousand classes: one offset per gap is enough there.
        for offset in OFFSETS if n_classes <= 100 else OFFSETS[k % 4 : k % 4 + 1]:
            row = random_logits(rng, n_classes, np.float64)
            row[rng.integers(n_classes)] = row.max() + gap
            rows.append(row + offset)
    rows.append(np.where(np.arange(n_classes) == 0, 0.0, -1.0))  # many equal terms: errors of the sum add up
    rows.append(np.where(np.arange(n_classes) == 0, 0.0, -12.0))
    rows.append(np.linspace(-60, 0, n_classes))
    logits = np.array(rows).astype(dtype)
    targets = logits.argmax(axis=1)
    targets[1::2] = rng.integers(0, n_classes, len(targets[1::2]))
    return logits, targets, [oracle.exact_row(row) for row in logits]


def gap_of(row):
    second, first = np.partition(row, -2)[-2:]
    return float(first - second)


@pytest.mark.parametrize("n_classes", N_CLASSES)
@pytest.mark.parametrize("target_kind", ["index", "one_hot"])
def test_value_gradient_hessian(dtype, n_classes, target_kind):
    logits, targets, exact_rows = cases(dtype, n_classes)
    target = targets if target_kind == "index" else one_hot(targets, n_classes, dtype)
    values, grads, hesses = fx.CrossEntropy(reduction="none").value_grad_hess(logits, target)
    for row, y, exact, value, grad, hess in zip(logits, targets, exact_rows, values, grads, hesses, strict=True):
        gap = gap_of(row)
        assert oracle.error_in_eps(value, -exact.log_p[y], dtype) <= VALUE["base"] + VALUE["per_gap"] * gap
        for c in range(n_classes):
            distance = float(row.max() - row[c])
            # The target's gradient is the sum of the other p, of which the largest is `gap` below a sure target.
            exact_grad, far = (-exact.not_p[c], max(distance, gap)) if c == y else (exact.p[c], distance)
            assert oracle.error_in_eps(grad[c], exact_grad, dtype) <= ELEMENT["base"] + ELEMENT["per_distance"] * far
            allowed = HESSIAN["base"] + HESSIAN["per_distance"] * distance + HESSIAN["per_gap"] * gap
            assert oracle.error_in_eps(hess[c], exact.p[c] * exact.not_p[c], dtype) <= allowed


@pytest.mark.parametrize("n_classes", N_CLASSES)
def test_softmax_log_softmax_logsumexp(dtype, n_classes):
    logits, _, exact_rows = cases(dtype, n_classes)
    for row, exact, p, log_p, log_sum_exp in zip(
        logits, exact_rows, fx.softmax(logits), fx.log_softmax(logits), fx.logsumexp(logits), strict=True
    ):
        gap = gap_of(row)
        for c in range(n_classes):
            distance = float(row.max() - row[c])
            assert oracle.error_in_eps(p[c], exact.p[c], dtype) <= ELEMENT["base"] + ELEMENT["per_distance"] * distance
            assert oracle.error_in_eps(log_p[c], exact.log_p[c], dtype) <= VALUE["base"] + VALUE["per_gap"] * gap
        # Relative to max and log1p(others), the two terms it is the sum of.
        terms = abs(float(row.max())) + float(-exact.log_p[row.argmax()])
        error = oracle.error_in_eps(log_sum_exp, exact.log_sum_exp, dtype) * abs(float(exact.log_sum_exp))
        assert error <= LOG_SUM_EXP * terms


def test_long_rows_of_equal_logits(dtype):
    # The sum over 70 000 equal terms is exact in real numbers: log(n), 1 / n. Errors of naive float32 sums grow with n.
    n_classes = 70000
    logits = np.full((2, n_classes), 3, dtype)
    value, grad = fx.CrossEntropy(reduction="none").value_and_grad(logits, [0, n_classes - 1])
    np.testing.assert_allclose(value, np.log(n_classes), rtol=4 * eps(dtype))
    np.testing.assert_allclose(grad[0, 1:], 1 / n_classes, rtol=4 * eps(dtype))
    np.testing.assert_allclose(fx.softmax(logits), 1 / n_classes, rtol=4 * eps(dtype))
    np.testing.assert_allclose(fx.log_softmax(logits), -np.log(n_classes), rtol=4 * eps(dtype))


def test_exponentials_over_their_whole_range(dtype):
    # Two classes a distance x apart: the other p is exp(-x) / (1 + exp(-x)). From equal to where it is subnormal.
    x = np.concatenate([np.linspace(0, 1, 200), np.geomspace(1, -np.log(np.finfo(dtype).tiny), 800)]).astype(dtype)
    logits = np.stack([np.zeros_like(x), -x], axis=1)
    value, grad = fx.CrossEntropy(reduction="none").value_and_grad(logits, np.zeros(len(x), int))
    wide = x.astype(np.longdouble)
    exact = np.exp(-wide)
    np.testing.assert_array_less(np.abs(grad[:, 1] / (exact / (1 + exact)) - 1), (ELEMENT["base"] + wide) * eps(dtype))
    np.testing.assert_array_less(np.abs(grad[:, 0] / (exact / (1 + exact)) + 1), (ELEMENT["base"] + wide) * eps(dtype))
    np.testing.assert_array_less(np.abs(value / np.log1p(exact) - 1), (VALUE["base"] + wide) * eps(dtype))


def test_subnormal_results_keep_their_order_of_magnitude(dtype):
    smallest = -np.log(float(np.finfo(dtype).tiny))
    x = np.linspace(smallest, smallest + (12 if dtype is np.float32 else 30), 50).astype(dtype)
    logits = np.stack([np.zeros_like(x), -x], axis=1)
    value, grad = fx.CrossEntropy(reduction="none").value_and_grad(logits, np.zeros(len(x), int))
    exact = np.exp(-x.astype(np.longdouble))
    for actual in (value, grad[:, 1], -grad[:, 0]):
        ratio = actual / exact
        assert ratio.min() > 0.1
        assert ratio.max() < 10
