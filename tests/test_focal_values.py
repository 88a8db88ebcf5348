"""`FocalLoss` without other options: values by hand, against the reference, finite differences, invariants."""

import itertools
import math

import numpy as np
import oracle
import pytest
from arrays import N_CLASSES, N_ROWS, SCALES, nasty_logits, one_hot, random_logits, random_probabilities
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tolerances import FINITE_DIFFERENCE, REORDERED, STEP, assert_same_bits, eps

import fastxent as fx

pytestmark = pytest.mark.usefixtures("isa")

LOG_2 = math.log(2)
GAMMAS = (0.0, 1e-10, 0.5, 1.0, 2.0, 3.5, 5.0, 30.0)
NONE = {"reduction": "none"}
KINDS = ("one_hot", "index", "probabilities")


# --- values by hand ---------------------------------------------------------------------------------------------------


def test_two_equal_logits(dtype):
    # p = 1/2 and L = log 2; the same as one logit of 0.
    value, grad, hess = fx.FocalLoss().value_grad_hess(np.zeros((1, 2), dtype), [0])
    close = {"rtol": 8 * eps(dtype)}
    np.testing.assert_allclose(value, LOG_2 / 4, **close)
    np.testing.assert_allclose(grad, [[-(LOG_2 + 0.5) / 4, (LOG_2 + 0.5) / 4]], **close)
    # q^gamma p (q (1 + 2 gamma) + gamma L (gamma p - q))
    np.testing.assert_allclose(hess, np.full((1, 2), (2.5 + LOG_2) / 8), **close)


def test_logits_whose_softmax_is_known(dtype):
    # exp gives 1 : 2 : 5, so p = 1/8, 2/8, 5/8; the target's is 1/4.
    value, grad, _ = fx.FocalLoss(gamma=1).value_grad_hess(np.log(np.array([[1, 2, 5]], dtype)), [1])
    loss, p = math.log(4), np.array([1 / 8, 2 / 8, 5 / 8])
    close = {"rtol": 16 * eps(dtype)}
    np.testing.assert_allclose(value, 3 / 4 * loss, **close)
    a = 3 / 4 + loss / 4  # q (p L / q + 1)
    np.testing.assert_allclose(grad, [a * (p - [0, 1, 0])], **close)


def test_each_class_is_modulated_by_its_own_probability(dtype):
    # As in Keras: p = (3/4, 1/4) and t = (1/2, 1/2).
    logits = np.array([[math.log(3), 0]], dtype)
    value = fx.FocalLoss(gamma=2)(logits, np.array([[0.5, 0.5]], dtype))
    assert value == pytest.approx((math.log(4 / 3) / 16 + 9 * math.log(4) / 16) / 2, rel=16 * eps(dtype))


def test_class_weight_is_the_alpha_of_the_paper(dtype):
    logits = np.zeros((2, 2), dtype)
    losses = fx.FocalLoss(class_weight=[0.25, 0.75], **NONE)(logits, [0, 1])
    np.testing.assert_allclose(losses, [LOG_2 / 16, 3 * LOG_2 / 16], rtol=8 * eps(dtype))
    # The mean divides by the weights of what was counted, as that of the cross-entropy does.
    value = fx.FocalLoss(class_weight=[0.25, 0.75])(logits, [0, 1])
    assert value == pytest.approx(LOG_2 / 4, rel=8 * eps(dtype))


def test_a_sure_row_still_costs_something():
    # q^2 L with q = L = 4.1399e-8.
    value, grad = fx.FocalLoss().value_and_grad(np.float32([[17, 0]]), [0])
    assert value == pytest.approx(4.1399376e-08**3, rel=1e-5)
    assert grad[0, 1] == -grad[0, 0] == pytest.approx(3 * 4.1399376e-08**3, rel=1e-5)


@pytest.mark.parametrize("offset", [1e4, 1e6, 1e8, -1e8])
def test_a_common_offset_costs_no_digit(dtype, offset):
    assert fx.FocalLoss()(np.full((3, 2), offset, dtype), [0, 1, 0]) == pytest.approx(LOG_2 / 4, rel=4 * eps(dtype))


@pytest.mark.parametrize("gamma", GAMMAS)
def test_one_class_costs_nothing(dtype, gamma):
    for result in fx.FocalLoss(gamma=gamma, **NONE).value_grad_hess(np.array([[-3], [0], [7e4]], dtype), [0, 0, 0]):
        assert not result.any()


def test_reductions(dtype):
    logits, target = np.zeros((4, 2), dtype), [0, 1, 0, 1]
    close = {"rel": 4 * eps(dtype)}
    assert fx.FocalLoss(gamma=1, reduction="none")(logits, target) == pytest.approx([LOG_2 / 2] * 4, **close)
    assert fx.FocalLoss(gamma=1, reduction="sum")(logits, target) == pytest.approx(2 * LOG_2, **close)
    assert fx.FocalLoss(gamma=1)(logits, target) == pytest.approx(LOG_2 / 2, **close)


# --- against the reference --------------------------------------------------------------------------------------------


def target_of(rng, kind, n_rows, n_classes, dtype):
    index = rng.integers(0, n_classes, n_rows)
    if kind == "one_hot":
        return one_hot(index, n_classes, dtype)
    return index if kind == "index" else random_probabilities(rng, (n_rows, n_classes), dtype)


@pytest.mark.parametrize("n_classes", N_CLASSES)
def test_every_number_of_classes(dtype, n_classes):
    rng = np.random.default_rng(n_classes)
    n_rows = 17 if n_classes < 2000 else 3 if n_classes < 10000 else 2
    logits = nasty_logits(rng, n_rows, n_classes, dtype)
    for kind in KINDS if n_classes < 2000 else KINDS[1:]:
        target = target_of(rng, kind, n_rows, n_classes, dtype)
        for gamma in (2, 3.5) if n_classes < 2000 else (2,):
            oracle.assert_as_expected("FocalLoss", NONE | {"gamma": gamma}, logits, target)


@pytest.mark.parametrize("n_classes", [2, 3, 10, 17, 100])
def test_every_number_of_rows(dtype, n_classes):
    for n_rows, reduction in itertools.product(N_ROWS, ("none", "sum", "mean")):
        rng = np.random.default_rng(n_rows)
        logits = nasty_logits(rng, n_rows, n_classes, dtype)
        target = rng.integers(0, n_classes, n_rows)
        oracle.assert_as_expected("FocalLoss", {"reduction": reduction}, logits, target)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_every_gamma(dtype, gamma):
    for n_classes, kind in itertools.product((2, 3, 10, 16, 17, 33, 300, 3000), KINDS):
        rng = np.random.default_rng(n_classes)
        n_rows = 33 if n_classes < 100 else 2
        logits = nasty_logits(rng, n_rows, n_classes, dtype)
        target = target_of(rng, kind, n_rows, n_classes, dtype)
        oracle.assert_as_expected("FocalLoss", NONE | {"gamma": gamma}, logits, target)


@pytest.mark.parametrize("n_classes", [2, 5, 40])
def test_every_scale(dtype, n_classes):
    rng = np.random.default_rng(1)
    for scale, kind in itertools.product(SCALES, KINDS):
        logits = random_logits(rng, (40, n_classes), dtype, scale)
        oracle.assert_as_expected("FocalLoss", NONE, logits, target_of(rng, kind, 40, n_classes, dtype))


@pytest.mark.parametrize("n_classes", [3, 20])
def test_more_rows_than_one_block_of_the_threads(dtype, n_classes):
    # 1001 rows again and again, so that each of them is in every lane and block.
    rng = np.random.default_rng(2)
    logits, target = random_logits(rng, (1001, n_classes), dtype, 5.0), rng.integers(0, n_classes, 1001)
    few = fx.FocalLoss(**NONE).value_grad_hess(logits, target)
    n_rows = 70_001
    many = np.resize(logits, (n_rows, n_classes)), np.resize(target, n_rows)
    results = fx.FocalLoss(**NONE).value_grad_hess(*many)
    assert_same_bits(results, tuple(np.resize(result, (n_rows, *result.shape[1:])) for result in few))
    mean = results[0].mean(dtype=np.float64)
    assert fx.FocalLoss()(*many) == pytest.approx(mean, rel=REORDERED * eps(dtype))


@pytest.mark.parametrize("n_classes", [3, 33])
def test_the_target_at_every_class(dtype, n_classes):
    logits = np.tile(nasty_logits(np.random.default_rng(3), 1, n_classes, dtype), (n_classes, 1))
    oracle.assert_as_expected("FocalLoss", NONE, logits, np.arange(n_classes))


# --- finite differences -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", GAMMAS)
def test_finite_differences(gamma):
    for n_classes, kind in itertools.product((2, 5, 20), KINDS[1:]):
        check_finite_differences(gamma, n_classes, kind)


def check_finite_differences(gamma, n_classes, kind):
    rng = np.random.default_rng(n_classes)
    logits = random_logits(rng, n_classes, np.float64, 2.0)
    target = rng.integers(n_classes) if kind == "index" else random_probabilities(rng, n_classes, np.float64)
    _, grad, hess = fx.FocalLoss(gamma=gamma).value_grad_hess(logits, target)
    # One row per element that is moved.
    up, down = logits + STEP * np.eye(n_classes), logits - STEP * np.eye(n_classes)
    targets = np.broadcast_to(target, (n_classes, *np.shape(target)))
    loss = fx.FocalLoss(gamma=gamma, **NONE)
    value_up, grad_up = loss.value_and_grad(up, targets)
    value_down, grad_down = loss.value_and_grad(down, targets)
    width = np.diag(up) - np.diag(down)
    # The truncation of differences grows with the third derivative, that with the powers of gamma.
    scale = (1 + gamma) ** 3
    np.testing.assert_allclose((value_up - value_down) / width, grad, rtol=0, atol=FINITE_DIFFERENCE * scale)
    np.testing.assert_allclose((np.diag(grad_up - grad_down)) / width, hess, rtol=0, atol=FINITE_DIFFERENCE * scale)


# --- gamma 0 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [1, 2, 3, 10, 16, 17, 33, 100, 1000, 5000, 40000])
def test_gamma_0_is_cross_entropy_bit_for_bit(dtype, n_classes):
    rng = np.random.default_rng(n_classes)
    n_rows = 40 if n_classes < 5000 else 3
    logits = nasty_logits(rng, n_rows, n_classes, dtype)
    smooth = {"label_smoothing": 0.1, "class_weight": "balanced", "reduction": "sum"}
    for kind, options in itertools.product(KINDS[1:], ({}, NONE, smooth)):
        target = target_of(rng, kind, n_rows, n_classes, dtype)
        focal, plain = fx.FocalLoss(gamma=0, **options), fx.CrossEntropy(**options)
        assert_same_bits(focal.value_grad_hess(logits, target), plain.value_grad_hess(logits, target))
        assert_same_bits(focal.value_and_grad(logits, target), plain.value_and_grad(logits, target))
        assert_same_bits(np.asarray(focal(logits, target)), np.asarray(plain(logits, target)))


# --- invariants -------------------------------------------------------------------------------------------------------

few_examples = settings(max_examples=12, deadline=None, derandomize=True, database=None)


@pytest.mark.parametrize("case_dtype", [np.float32, np.float64], ids=["float32", "float64"])
@few_examples
@given(data=st.data())
def test_any_finite_logits(case_dtype, data):
    n_rows, n_classes = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    elements = st.floats(-1e4, 1e4, width=np.dtype(case_dtype).itemsize * 8)
    logits = data.draw(hnp.arrays(case_dtype, (n_rows, n_classes), elements=elements))
    index = data.draw(hnp.arrays(np.int64, n_rows, elements=st.integers(0, n_classes - 1)))
    gamma = data.draw(st.sampled_from(GAMMAS))
    for target in (index, one_hot(index, n_classes, case_dtype)):
        oracle.assert_as_expected("FocalLoss", NONE | {"gamma": gamma}, logits, target)
        # Only the target's element of the gradient is not positive; they sum to 0.
        _, grad = fx.FocalLoss(gamma=gamma, **NONE).value_and_grad(logits, target)
        others = np.arange(n_classes) != index[:, None]
        assert np.all(grad[others] >= 0)
        assert np.all(grad[~others] <= 0)


@pytest.mark.parametrize("gamma", [1, 2, 3.5])
def test_a_shift_that_is_exact_changes_nothing(dtype, gamma):
    rng = np.random.default_rng(4)
    logits = np.round(random_logits(rng, (37, 9), dtype, 20.0))
    target = rng.integers(0, 9, 37)
    loss = fx.FocalLoss(gamma=gamma, **NONE)
    assert_same_bits(loss.value_grad_hess(logits + 2**14, target), loss.value_grad_hess(logits, target))


@pytest.mark.parametrize("n_classes", [3, 10, 33, 1000])
@pytest.mark.parametrize("gamma", [2, 3.5])
def test_permuted_classes_permute_the_gradient(dtype, n_classes, gamma):
    rng = np.random.default_rng(5)
    logits = random_logits(rng, (17, n_classes), dtype, 3.0)
    target, order = rng.integers(0, n_classes, 17), rng.permutation(n_classes)
    loss = fx.FocalLoss(gamma=gamma, **NONE)
    results = loss.value_grad_hess(logits, target)
    permuted = loss.value_grad_hess(logits[:, order], np.argsort(order)[target])
    allowed = (1 + gamma) * REORDERED * eps(dtype)
    np.testing.assert_allclose(permuted[0], results[0], rtol=allowed)
    np.testing.assert_allclose(permuted[1], results[1][:, order], rtol=allowed)
    # The target's Hessian may be the difference of two larger terms.
    np.testing.assert_allclose(permuted[2], results[2][:, order], rtol=allowed, atol=allowed * (1 + gamma) ** 2)


@pytest.mark.parametrize("n_classes", [2, 3, 10, 17, 100])
@pytest.mark.parametrize("kind", ["index", "probabilities"])
def test_a_row_does_not_know_its_neighbours(dtype, n_classes, kind):
    rng = np.random.default_rng(6)
    logits, target = nasty_logits(rng, 37, n_classes, dtype), target_of(rng, kind, 37, n_classes, dtype)
    for gamma in (2, 3.5):
        loss = fx.FocalLoss(gamma=gamma, **NONE)
        together = loss.value_grad_hess(logits, target)
        for start in (0, 1, 16, 36):
            alone = loss.value_grad_hess(logits[start : start + 1], target[start : start + 1])
            assert_same_bits(alone, tuple(result[start : start + 1] for result in together))


def test_chunked_sums_are_the_whole(dtype):
    rng = np.random.default_rng(7)
    logits, target = random_logits(rng, (1000, 7), dtype, 5.0), rng.integers(0, 7, 1000)
    loss = fx.FocalLoss(reduction="sum")
    value, grad = loss.value_and_grad(logits, target)
    chunks = [loss.value_and_grad(logits[i : i + 129], target[i : i + 129]) for i in range(0, 1000, 129)]
    assert sum(v for v, _ in chunks) == pytest.approx(value, rel=REORDERED * eps(np.float64))
    np.testing.assert_array_equal(np.concatenate([g for _, g in chunks]), grad)


def test_weight_2_is_the_row_twice(dtype):
    rng = np.random.default_rng(8)
    logits, target, times = random_logits(rng, (20, 5), dtype, 5.0), rng.integers(0, 5, 20), rng.integers(0, 3, 20)
    value, grad = fx.FocalLoss().value_and_grad(logits, target, times)
    repeated_value, repeated = fx.FocalLoss().value_and_grad(np.repeat(logits, times, axis=0), np.repeat(target, times))
    assert value == pytest.approx(repeated_value, rel=REORDERED * eps(dtype))
    total = np.zeros_like(grad)
    np.add.at(total, np.repeat(np.arange(20), times), repeated)
    np.testing.assert_allclose(grad, total, rtol=REORDERED * eps(dtype), atol=0)
