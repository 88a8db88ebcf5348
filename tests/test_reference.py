"""The oracle itself: the reference against mpmath and against its own finite differences."""

import numpy as np
import oracle
import pytest
from arrays import one_hot, random_logits, random_probabilities
from tolerances import ELEMENT, FINITE_DIFFERENCE, HESSIAN, STEP, VALUE, eps

from fastxent import _reference as reference

# 17 and 40 are where a sum that includes the largest term returns 0 in float32 and float64; 80 and 650 are close to
# where the other term leaves the range of the dtype.
GAPS = {np.float32: (0, 1, 5, 17, 40, 80), np.float64: (0, 1, 17, 40, 100, 650), np.longdouble: (0, 17, 45, 650)}
OFFSETS = (0.0, -1e4, 1e8)


def hard_rows(dtype, n_classes):
    rng = np.random.default_rng(n_classes)
    for gap in GAPS[dtype]:
        for offset in OFFSETS:
            row = random_logits(rng, n_classes, np.float64)
            row[rng.integers(n_classes)] = row.max() + gap
            yield (row + offset).astype(np.float64 if dtype is np.longdouble else dtype).astype(dtype)


@pytest.mark.parametrize("n_classes", [2, 3, 10, 100])
@pytest.mark.parametrize("dtype", list(GAPS), ids=["float32", "float64", "longdouble"])
@pytest.mark.parametrize("target_kind", ["index", "one_hot"])
def test_against_mpmath(dtype, n_classes, target_kind):
    loss = reference.CrossEntropy(reduction="none")
    eps_dtype = dtype if dtype is not np.longdouble else np.float64  # as oracle it needs no more than float64's eps
    for i, row in enumerate(hard_rows(dtype, n_classes)):
        exact = oracle.exact_row(row)
        top = int(row.argmax())
        gap = float(row[top] - np.partition(row, -2)[-2])
        y = top if i % 2 else (top + 1) % n_classes
        target = y if target_kind == "index" else one_hot(y, n_classes, dtype)
        value, grad, hess = loss.value_grad_hess(row, target)
        assert oracle.error_in_eps(value, -exact.log_p[y], eps_dtype) <= VALUE["base"] + gap
        for c in range(n_classes):
            distance = float(row[top] - row[c])
            exact_grad = exact.p[c] if c != y else -exact.not_p[c]
            allowed = ELEMENT["base"] + (max(gap, distance) if c == y else distance)
            assert oracle.error_in_eps(grad[c], exact_grad, eps_dtype) <= allowed
            allowed = HESSIAN["base"] + distance + gap
            assert oracle.error_in_eps(hess[c], exact.p[c] * exact.not_p[c], eps_dtype) <= allowed


@pytest.mark.parametrize("n_classes", [2, 3, 10, 100])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_activations_against_mpmath(dtype, n_classes):
    for row in hard_rows(dtype, n_classes):
        exact = oracle.exact_row(row)
        largest = row.max()
        gap = float(largest - np.partition(row, -2)[-2])
        for c, (p, log_p) in enumerate(zip(reference.softmax(row), reference.log_softmax(row), strict=True)):
            distance = float(largest - row[c])
            assert oracle.error_in_eps(p, exact.p[c], dtype) <= ELEMENT["base"] + distance
            assert oracle.error_in_eps(log_p, exact.log_p[c], dtype) <= VALUE["base"] + gap
        log_sum_exp = reference.logsumexp(row)
        assert log_sum_exp.dtype == dtype
        scale = abs(float(largest)) + float(np.log(n_classes))
        error = oracle.error_in_eps(log_sum_exp, exact.log_sum_exp, dtype) * abs(float(exact.log_sum_exp))
        assert error <= 4 * scale


OPTIONS = [
    {},
    {"label_smoothing": 0.1},
    {"class_weight": [0.5, 2.0, 0.0, 3.0]},
    {"class_weight": "balanced", "label_smoothing": 0.3},
    {"class_weight": {1: 4.0}, "reduction": "sum"},
    {"reduction": "sum", "ignore_index": 2, "label_smoothing": 1.0},
    {"inputs": "log_probs", "class_weight": [0.5, 2.0, 0.0, 3.0], "label_smoothing": 0.2},
    {"inputs": "probs", "class_weight": [0.5, 2.0, 0.0, 3.0], "label_smoothing": 0.2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("target_kind", ["index", "probabilities"])
def test_finite_differences(options, target_kind):
    rng = np.random.default_rng(5)
    x = rng.uniform(0.5, 0.9, (6, 4)) if options.get("inputs") == "probs" else rng.standard_normal((6, 4))
    target = rng.integers(0, 4, 6) if target_kind == "index" else random_probabilities(rng, (6, 4), np.float64)
    sample_weight = rng.uniform(0, 2, 6)
    loss = reference.CrossEntropy(**options)
    _, grad, hess = loss.value_grad_hess(x, target, sample_weight)
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i] += STEP
        down[i] -= STEP
        width = up[i] - down[i]
        value_up, grad_up = loss.value_and_grad(up, target, sample_weight)
        value_down, grad_down = loss.value_and_grad(down, target, sample_weight)
        scale = max(1.0, np.abs(grad).max(), np.abs(hess).max())
        assert abs((value_up - value_down) / width - grad[i]) <= FINITE_DIFFERENCE * scale
        assert abs((grad_up[i] - grad_down[i]) / width - hess[i]) <= FINITE_DIFFERENCE * scale


def test_one_hot_and_index_agree_for_every_option():
    rng = np.random.default_rng(6)
    logits = random_logits(rng, (9, 4), np.float64, 30.0)
    y = rng.integers(0, 4, 9)
    for options in OPTIONS:
        x = reference.softmax(logits) if options.get("inputs") == "probs" else logits
        loss = reference.CrossEntropy(**options)
        from_index = loss.value_grad_hess(x, y)
        from_one_hot = loss.value_grad_hess(x, one_hot(y, 4, np.float64))
        for a, b in zip(from_index, from_one_hot, strict=True):
            np.testing.assert_allclose(a, b, rtol=8 * eps(np.float64), atol=0)
