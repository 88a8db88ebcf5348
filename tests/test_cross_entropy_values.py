"""`CrossEntropy` without options: values by hand, against the reference, invariants, finite differences."""

import math

import numpy as np
import oracle
import pytest
from arrays import N_CLASSES, N_ROWS, nasty_logits, one_hot, random_logits, random_probabilities
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tolerances import FINITE_DIFFERENCE, REORDERED, STEP, assert_within, eps

import fastxent as fx

pytestmark = pytest.mark.usefixtures("isa")


# --- values by hand ---------------------------------------------------------------------------------------------------


def test_two_equal_logits_cost_log_2(dtype):
    value, grad, hess = fx.CrossEntropy().value_grad_hess(np.zeros((1, 2), dtype), [0])
    assert value == pytest.approx(math.log(2), rel=eps(dtype))
    assert grad.tolist() == [[-0.5, 0.5]]
    assert hess.tolist() == [[0.25, 0.25]]


def test_logits_whose_softmax_is_known(dtype):
    # exp gives 1 : 2 : 5, so p = 1/8, 2/8, 5/8.
    logits = np.log(np.array([[1, 2, 5]], dtype))
    value, grad, hess = fx.CrossEntropy().value_grad_hess(logits, [1])
    close = 8 * eps(dtype)
    assert value == pytest.approx(math.log(4), rel=close)
    np.testing.assert_allclose(grad, [[1 / 8, -6 / 8, 5 / 8]], rtol=close)
    np.testing.assert_allclose(hess, [[7 / 64, 12 / 64, 15 / 64]], rtol=close)


def test_a_sure_row_still_costs_something():
    # torch, scikit-learn, SciPy and optax return exactly 0 here.
    value, grad = fx.CrossEntropy().value_and_grad(np.float32([[17, 0]]), [0])
    assert value == pytest.approx(4.1399376e-08, rel=1e-7)
    assert grad[0, 0] == -grad[0, 1]
    assert grad[0, 1] == pytest.approx(4.1399374e-08, rel=17 * eps(np.float32))


@pytest.mark.parametrize("offset", [1e4, 1e6, 1e8, -1e8])
def test_a_common_offset_costs_no_digit(dtype, offset):
    logits = np.full((3, 2), offset, dtype)
    assert fx.CrossEntropy()(logits, [0, 1, 0]) == pytest.approx(math.log(2), rel=2 * eps(dtype))


def test_one_class_costs_nothing(dtype):
    value, grad, hess = fx.CrossEntropy(reduction="none").value_grad_hess(
        np.array([[-3], [0], [7e4]], dtype), [0, 0, 0]
    )
    assert value.tolist() == [0, 0, 0]
    assert grad.tolist() == [[0]] * 3
    assert hess.tolist() == [[0]] * 3


def test_the_mean_is_over_rows_and_the_sum_is_not(dtype):
    logits = np.zeros((4, 2), dtype)
    target = [0, 1, 0, 1]
    close = {"rel": 4 * eps(dtype)}
    assert fx.CrossEntropy(reduction="none")(logits, target) == pytest.approx([math.log(2)] * 4, **close)
    assert fx.CrossEntropy(reduction="sum")(logits, target) == pytest.approx(4 * math.log(2), **close)
    assert fx.CrossEntropy(reduction="mean")(logits, target) == pytest.approx(math.log(2), **close)


# --- against the reference --------------------------------------------------------------------------------------------


def assert_as_expected(options, logits, target, sample_weight=None):
    expected = oracle.cross_entropy(options, logits, target, sample_weight)
    loss = fx.CrossEntropy(**options)
    value, grad, hess = loss.value_grad_hess(logits, target, sample_weight)
    assert_within(value, expected.value, expected.value_bound, "value")
    assert_within(grad, expected.grad, expected.grad_bound, "gradient")
    assert_within(hess, expected.hess, expected.hess_bound, "Hessian")
    # The three entry points are one computation: asking for less must not change a bit of the rest.
    value_alone = loss(logits, target, sample_weight)
    value_with_grad, grad_alone = loss.value_and_grad(logits, target, sample_weight)
    np.testing.assert_array_equal(value_with_grad, value)
    np.testing.assert_array_equal(grad_alone, grad)
    assert_within(value_alone, expected.value, expected.value_bound, "value alone")


@pytest.mark.parametrize("n_classes", N_CLASSES)
@pytest.mark.parametrize("target_kind", ["index", "probabilities"])
def test_every_number_of_classes(dtype, n_classes, target_kind):
    rng = np.random.default_rng(n_classes)
    # 17 rows: a block of 16 and one left over; rows too long for that are tested a few at a time.
    n_rows = 17 if n_classes < 2000 else 3 if n_classes < 10000 else 2
    logits = nasty_logits(rng, n_rows, n_classes, dtype)
    if target_kind == "index":
        target = rng.integers(0, n_classes, n_rows)
    else:
        target = random_probabilities(rng, logits.shape, dtype)
    assert_as_expected({"reduction": "none"}, logits, target)


@pytest.mark.parametrize("n_rows", N_ROWS)
@pytest.mark.parametrize("n_classes", [2, 3, 10, 16, 17, 100])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_every_number_of_rows(dtype, n_rows, n_classes, reduction):
    rng = np.random.default_rng(n_rows)
    logits = nasty_logits(rng, n_rows, n_classes, dtype)
    assert_as_expected({"reduction": reduction}, logits, rng.integers(0, n_classes, n_rows))


def test_more_rows_than_one_block_of_the_threads(dtype):
    # Enough for several threads and several slices; the mean of 70 000 rows overflows in a half precision count.
    rng = np.random.default_rng(0)
    logits = random_logits(rng, (70001, 3), dtype)
    assert_as_expected({}, logits, rng.integers(0, 3, 70001))


@pytest.mark.parametrize("n_classes", [3, 33])
def test_the_target_at_every_class(dtype, n_classes):
    rng = np.random.default_rng(1)
    logits = np.tile(nasty_logits(rng, 1, n_classes, dtype), (n_classes, 1))
    assert_as_expected({"reduction": "none"}, logits, np.arange(n_classes))


# --- finite differences -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [2, 5, 17, 40])
@pytest.mark.parametrize("target_kind", ["index", "probabilities"])
def test_finite_differences(n_classes, target_kind):
    rng = np.random.default_rng(n_classes)
    logits = random_logits(rng, (4, n_classes), np.float64)
    index = rng.integers(0, n_classes, 4)
    target = index if target_kind == "index" else random_probabilities(rng, logits.shape, np.float64)
    loss = fx.CrossEntropy()
    _, grad, hess = loss.value_grad_hess(logits, target)
    for i in np.ndindex(logits.shape):
        up, down = logits.copy(), logits.copy()
        up[i] += STEP
        down[i] -= STEP
        value_up, grad_up = loss.value_and_grad(up, target)
        value_down, grad_down = loss.value_and_grad(down, target)
        width = up[i] - down[i]
        assert abs((value_up - value_down) / width - grad[i]) <= FINITE_DIFFERENCE
        assert abs((grad_up[i] - grad_down[i]) / width - hess[i]) <= FINITE_DIFFERENCE


# --- invariants -------------------------------------------------------------------------------------------------------

# Hypothesis looks for the rows nobody thought of; few examples, since every level and dtype runs them.
few_examples = settings(max_examples=25, deadline=None, derandomize=True, database=None)


def small_problems(dtype):
    """(logits, target) of 1 to 20 rows and 1 to 20 classes, with any finite logits up to 1e4."""
    elements = st.floats(-1e4, 1e4, width=np.dtype(dtype).itemsize * 8)

    def with_target(shape):
        target = hnp.arrays(np.int64, shape[0], elements=st.integers(0, shape[1] - 1))
        return st.tuples(hnp.arrays(dtype, shape, elements=elements), target)

    return st.tuples(st.integers(1, 20), st.integers(1, 20)).flatmap(with_target)


@pytest.mark.parametrize("case_dtype", [np.float32, np.float64], ids=["float32", "float64"])
@few_examples
@given(data=st.data())
def test_index_is_one_hot(case_dtype, data):
    logits, target = data.draw(small_problems(case_dtype))
    assert_as_expected({"reduction": "none"}, logits, target)
    assert_as_expected({"reduction": "none"}, logits, one_hot(target, logits.shape[1], case_dtype))


@pytest.mark.parametrize("case_dtype", [np.float32, np.float64], ids=["float32", "float64"])
@few_examples
@given(data=st.data())
def test_gradient_rows_sum_to_zero(case_dtype, data):
    logits, target = data.draw(small_problems(case_dtype))
    _, grad = fx.CrossEntropy(reduction="none").value_and_grad(logits, target)
    wide = grad.astype(np.longdouble)
    # Each element carries its own error, of which the worst belongs to logits far below the largest.
    size = np.abs(wide).sum(axis=1)
    distance = (logits.max(axis=1, keepdims=True) - logits).clip(max=745)
    assert np.all(
        np.abs(wide.sum(axis=1))
        <= REORDERED * eps(case_dtype) * size + eps(case_dtype) * (np.abs(wide) * distance).sum(axis=1)
    )
    # Only the target's element is not positive.
    others = np.arange(logits.shape[1]) != target[:, None]
    assert np.all(grad[others] >= 0)
    assert np.all(grad[~others] <= 0)


@pytest.mark.parametrize("case_dtype", [np.float32, np.float64], ids=["float32", "float64"])
@few_examples
@given(data=st.data())
def test_a_power_of_two_shift_changes_nothing(case_dtype, data):
    logits, target = data.draw(small_problems(case_dtype))
    # Whole numbers up to 2^13 and a shift by 2^14 are exact in both dtypes, so the results must be the same bits.
    logits = np.round(logits).clip(-(2**13), 2**13)
    loss = fx.CrossEntropy(reduction="none")
    for a, b in zip(loss.value_grad_hess(logits, target), loss.value_grad_hess(logits + 2**14, target), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("n_classes", [3, 10, 33, 1000])
def test_permuted_classes_permute_the_gradient(dtype, n_classes):
    rng = np.random.default_rng(2)
    logits = random_logits(rng, (17, n_classes), dtype, 3.0)
    target = rng.integers(0, n_classes, 17)
    order = rng.permutation(n_classes)
    loss = fx.CrossEntropy(reduction="none")
    value, grad, hess = loss.value_grad_hess(logits, target)
    value_p, grad_p, hess_p = loss.value_grad_hess(logits[:, order], np.argsort(order)[target])
    np.testing.assert_allclose(value_p, value, rtol=REORDERED * eps(dtype))
    # The permuted logits are in Fortran order, which another kernel takes; each has the errors that DESIGN 2.5 allows.
    rtol = 2 * (4 + np.ptp(logits)) * eps(dtype)
    np.testing.assert_allclose(grad_p, grad[:, order], rtol=rtol)
    np.testing.assert_allclose(hess_p, hess[:, order], rtol=2 * rtol)


@pytest.mark.parametrize("n_classes", [2, 3, 10, 17, 100])
def test_a_row_does_not_know_its_neighbours(dtype, n_classes):
    # Across-row kernels compute a block of rows at once: each must be the same bits alone, in a block and in a tail.
    rng = np.random.default_rng(3)
    logits = nasty_logits(rng, 37, n_classes, dtype)
    target = rng.integers(0, n_classes, 37)
    loss = fx.CrossEntropy(reduction="none")
    together = loss.value_grad_hess(logits, target)
    for start in (0, 1, 16, 36):
        alone = loss.value_grad_hess(logits[start : start + 1], target[start : start + 1])
        for a, b in zip(alone, together, strict=True):
            np.testing.assert_array_equal(a[0], b[start])


def test_chunked_sums_are_the_whole(dtype):
    rng = np.random.default_rng(4)
    logits = random_logits(rng, (1000, 7), dtype, 5.0)
    target = rng.integers(0, 7, 1000)
    loss = fx.CrossEntropy(reduction="sum")
    value, grad = loss.value_and_grad(logits, target)
    chunks = [loss.value_and_grad(logits[i : i + 129], target[i : i + 129]) for i in range(0, 1000, 129)]
    assert sum(v for v, _ in chunks) == pytest.approx(value, rel=REORDERED * eps(np.float64))
    np.testing.assert_array_equal(np.concatenate([g for _, g in chunks]), grad)


def test_weight_2_is_the_row_twice(dtype):
    rng = np.random.default_rng(5)
    logits = random_logits(rng, (20, 5), dtype, 5.0)
    target = rng.integers(0, 5, 20)
    twice = rng.integers(0, 3, 20)
    value, grad = fx.CrossEntropy().value_and_grad(logits, target, twice)
    repeated, repeated_grad = fx.CrossEntropy().value_and_grad(
        np.repeat(logits, twice, axis=0), np.repeat(target, twice)
    )
    assert value == pytest.approx(repeated, rel=REORDERED * eps(dtype))
    np.testing.assert_allclose(
        grad[twice > 0], _sum_repeats(repeated_grad, twice)[twice > 0], rtol=REORDERED * eps(dtype)
    )
    assert np.all(grad[twice == 0] == 0)


def _sum_repeats(grad, repeats):
    """The gradient of each original row: the sum over its copies."""
    total = np.zeros((len(repeats), grad.shape[1]), grad.dtype)
    np.add.at(total, np.repeat(np.arange(len(repeats)), repeats), grad)
    return total
