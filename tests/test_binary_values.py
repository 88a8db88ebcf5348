"""The losses of one logit without options: values by hand, against the reference, finite differences, invariants."""

import itertools
import math

import numpy as np
import oracle
import pytest
from arrays import N_ELEMENTS, SCALES, binary_target, nasty_elements, random_logits
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tolerances import FINITE_DIFFERENCE, REORDERED, STEP, assert_same_bits, eps

import fastxent as fx

pytestmark = pytest.mark.usefixtures("isa")

LOG_2 = math.log(2)
# gamma of 0, 1 and 2 need no power; 30 is beyond what anybody trains with, and 1e-10 next to a cross-entropy.
GAMMAS = (0.0, 1e-10, 0.5, 1.0, 2.0, 3.5, 5.0, 30.0)
LOSSES = [("BinaryCrossEntropy", {}), *(("BinaryFocalLoss", {"gamma": gamma}) for gamma in GAMMAS)]
A_FEW = [("BinaryCrossEntropy", {}), ("BinaryFocalLoss", {"gamma": 2}), ("BinaryFocalLoss", {"gamma": 3.5})]
KINDS = ("bool", "int", "soft")


def close(dtype, n=8):
    return {"rtol": n * eps(dtype)}


def make(name, options, **more):
    return getattr(fx, name)(**(options | more))


# --- values by hand ---------------------------------------------------------------------------------------------------


def test_a_logit_of_0_costs_log_2(dtype):
    value, grad, hess = fx.BinaryCrossEntropy(reduction="none").value_grad_hess(np.zeros(2, dtype), [0, 1])
    np.testing.assert_allclose(value, [LOG_2, LOG_2], **close(dtype, 1))
    assert grad.tolist() == [0.5, -0.5]
    assert hess.tolist() == [0.25, 0.25]


def test_logits_whose_sigmoid_is_known(dtype):
    # The odds are 3 : 1, so p = 3/4.
    z = np.full(3, math.log(3), dtype)
    value, grad, hess = fx.BinaryCrossEntropy(reduction="none").value_grad_hess(z, [0, 0.5, 1])
    np.testing.assert_allclose(
        value, [math.log(4), (math.log(4) + math.log(4 / 3)) / 2, math.log(4 / 3)], **close(dtype)
    )
    np.testing.assert_allclose(grad, [3 / 4, 1 / 4, -1 / 4], **close(dtype))
    np.testing.assert_allclose(hess, [3 / 16] * 3, **close(dtype))


def test_published_binary_cross_entropies():
    # Four digits are printed.
    assert fx.BinaryCrossEntropy()([2.0], [1]) == pytest.approx(0.1269, abs=5e-5)
    losses = fx.BinaryCrossEntropy(inputs="probs", reduction="none")([0.9, 0.1, 0.01], [1, 1, 1])
    np.testing.assert_allclose(losses, [0.105, 2.303, 4.605], atol=5e-4)
    probabilities, target = [[0.5, 0.4], [0.6, 0.3]], [[0, 1], [0, 0]]
    assert fx.BinaryCrossEntropy(inputs="probs")(probabilities, target) == pytest.approx(0.7206, abs=5e-5)


def test_a_sure_element_still_costs_something():
    value, grad = fx.BinaryCrossEntropy().value_and_grad(np.float32([17]), [1])
    assert value == pytest.approx(4.1399376e-08, rel=1e-7)
    assert grad[0] == pytest.approx(-4.1399374e-08, rel=17 * eps(np.float32))


def test_focal_by_hand(dtype):
    # p = 3/4, target 1: (1 - p_t)^2 = 1/16, the loss log(4/3); derivatives of q^2 L with q' = -pq and L' = -q.
    z = np.full(1, math.log(3), dtype)
    loss = math.log(4 / 3)
    value, grad, hess = fx.BinaryFocalLoss(gamma=2).value_grad_hess(z, [1])
    assert value == pytest.approx(loss / 16, rel=16 * eps(dtype))
    np.testing.assert_allclose(grad, [-(2 * 0.75 * loss + 0.25) / 16], **close(dtype, 16))
    np.testing.assert_allclose(hess, [3 / 64 * (5 / 4 + 5 / 2 * loss)], **close(dtype, 16))


def test_focal_of_a_soft_target_by_hand(dtype):
    # z = 0 and t = 1/4: r = 1/2, r' / r = 1/8, the loss log 2, its gradient 1/4.
    value, grad, hess = fx.BinaryFocalLoss(gamma=2).value_grad_hess(np.zeros(1, dtype), [0.25])
    assert value == pytest.approx(LOG_2 / 4, rel=16 * eps(dtype))
    np.testing.assert_allclose(grad, [(LOG_2 / 2 + 1 / 4) / 4], **close(dtype, 16))
    np.testing.assert_allclose(hess, [(LOG_2 / 8 + 1 / 2) / 4], **close(dtype, 16))


def test_alpha_by_hand(dtype):
    z = np.zeros(3, dtype)
    losses = fx.BinaryFocalLoss(gamma=1, alpha=0.25, reduction="none")(z, [1, 0, 0.5])
    np.testing.assert_allclose(losses, LOG_2 / 2 * np.array([0.25, 0.75, 0.5]), **close(dtype))
    # The mean is over elements: alpha is not part of the divisor.
    assert fx.BinaryFocalLoss(gamma=1, alpha=0.25)(z, [1, 0, 0.5]) == pytest.approx(LOG_2 / 4, rel=8 * eps(dtype))


def test_focal_is_what_others_print():
    # torchvision's sigmoid_focal_loss (alpha 0.25) and optax (none) print these for z = 0.7, target 1, gamma 2.
    assert fx.BinaryFocalLoss()([0.7], [1]) == pytest.approx(0.04439, abs=5e-6)
    assert fx.BinaryFocalLoss(alpha=0.25)([0.7], [1]) == pytest.approx(0.01110, abs=5e-6)


@pytest.mark.parametrize(("name", "options"), A_FEW)
def test_the_mean_is_over_elements_and_the_sum_is_not(dtype, name, options):
    z = np.zeros((2, 3), dtype)
    target = [[0, 1, 1], [1, 0, 1]]
    per_element = LOG_2 / 2 ** options.get("gamma", 0)
    np.testing.assert_allclose(
        make(name, options, reduction="none")(z, target), np.full((2, 3), per_element), **close(dtype)
    )
    assert make(name, options, reduction="sum")(z, target) == pytest.approx(6 * per_element, rel=8 * eps(dtype))
    assert make(name, options)(z, target) == pytest.approx(per_element, rel=8 * eps(dtype))


# --- against the reference --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), A_FEW)
def test_every_number_of_elements(dtype, name, options):
    for n in N_ELEMENTS:
        rng = np.random.default_rng(n)
        z = nasty_elements(rng, n, dtype)
        for kind in KINDS if n < 5000 else KINDS[-1:]:
            target = binary_target(rng, n, kind, dtype)
            oracle.assert_as_expected(name, options | {"reduction": "none"}, z, target)


@pytest.mark.parametrize(("name", "options"), LOSSES)
def test_every_gamma_and_reduction(dtype, name, options):
    rng = np.random.default_rng(0)
    for kind, reduction in itertools.product(KINDS, ("none", "sum", "mean")):
        z, target = nasty_elements(rng, 700, dtype), binary_target(rng, 700, kind, dtype)
        z = np.where(np.abs(z) > 1e8, 0, z) if reduction != "none" else z  # or nothing else would count in the sum
        oracle.assert_as_expected(name, options | {"reduction": reduction}, z, target)


@pytest.mark.parametrize(("name", "options"), A_FEW)
def test_every_scale(dtype, name, options):
    rng = np.random.default_rng(1)
    for scale, offset in itertools.product(SCALES, (0, 20, -20, 90, -90)):
        z = random_logits(rng, 100, dtype, scale, offset)
        oracle.assert_as_expected(name, options | {"reduction": "none"}, z, binary_target(rng, 100, "soft", dtype))


@pytest.mark.parametrize("shape", [(), (1,), (7, 1), (1, 7), (17, 5), (3, 5, 7), (2, 3, 4, 5), (0, 3), (3, 0)], ids=str)
def test_every_shape(dtype, shape):
    rng = np.random.default_rng(2)
    z = random_logits(rng, shape, dtype, 5.0)
    for (name, options), kind, reduction in itertools.product(A_FEW, KINDS, ("none", "mean")):
        oracle.assert_as_expected(name, options | {"reduction": reduction}, z, binary_target(rng, shape, kind, dtype))


@pytest.mark.parametrize(("name", "options"), A_FEW)
def test_more_elements_than_one_thread_takes(dtype, name, options):
    # 1001 elements again and again, so that each of them is in every lane and block.
    rng = np.random.default_rng(3)
    z, target = random_logits(rng, 1001, dtype, 5.0), binary_target(rng, 1001, "soft", dtype)
    few = make(name, options, reduction="none").value_grad_hess(z, target)
    many = np.resize(z, 300_001), np.resize(target, 300_001)
    results = make(name, options, reduction="none").value_grad_hess(*many)
    assert_same_bits(results, tuple(np.resize(result, 300_001) for result in few))
    mean = results[0].mean(dtype=np.float64)
    assert make(name, options)(*many) == pytest.approx(mean, rel=REORDERED * eps(dtype))


# --- finite differences -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), LOSSES)
@pytest.mark.parametrize("more", [{}, {"label_smoothing": 0.2}], ids=str)
def test_finite_differences(name, options, more):
    z = np.linspace(-6, 6, 49)
    loss = make(name, options | more, reduction="none")
    for t in (0, 1, 0.3):
        target = np.full(49, t)
        _, grad, hess = loss.value_grad_hess(z, target)
        up, down = z + STEP, z - STEP
        value_up, grad_up = loss.value_and_grad(up, target)
        value_down, grad_down = loss.value_and_grad(down, target)
        # The truncation of differences grows with the third derivative, that with the powers of gamma.
        scale = (1 + options.get("gamma", 0)) ** 3
        np.testing.assert_allclose((value_up - value_down) / (up - down), grad, rtol=0, atol=FINITE_DIFFERENCE * scale)
        np.testing.assert_allclose((grad_up - grad_down) / (up - down), hess, rtol=0, atol=FINITE_DIFFERENCE * scale)


@pytest.mark.parametrize("pos_weight", [None, 2.5])
def test_finite_differences_of_probabilities(pos_weight):
    x = np.linspace(0.05, 0.95, 37)
    loss = fx.BinaryCrossEntropy(inputs="probs", reduction="none", pos_weight=pos_weight)
    for t in (0, 1, 0.3):
        target = np.full(37, t)
        _, grad, hess = loss.value_grad_hess(x, target)
        up, down = x + STEP, x - STEP
        value_up, grad_up = loss.value_and_grad(up, target)
        value_down, grad_down = loss.value_and_grad(down, target)
        # The third and fourth derivatives of the logarithm are those of 1 / x near its ends.
        scale = 6 / np.minimum(x, 1 - x) ** 4
        assert np.all(np.abs((value_up - value_down) / (up - down) - grad) <= FINITE_DIFFERENCE * scale)
        assert np.all(np.abs((grad_up - grad_down) / (up - down) - hess) <= FINITE_DIFFERENCE * scale)


# --- invariants -------------------------------------------------------------------------------------------------------

few_examples = settings(max_examples=12, deadline=None, derandomize=True, database=None)


@pytest.mark.parametrize("case_dtype", [np.float32, np.float64], ids=["float32", "float64"])
@few_examples
@given(data=st.data())
def test_any_finite_logits_and_targets(case_dtype, data):
    shape = data.draw(hnp.array_shapes(max_dims=3, max_side=9))
    finite = {"width": np.dtype(case_dtype).itemsize * 8, "allow_subnormal": False}
    z = data.draw(hnp.arrays(case_dtype, shape, elements=st.floats(-(2.0**100), 2.0**100, **finite)))
    target = data.draw(hnp.arrays(case_dtype, shape, elements=st.floats(0, 1, **finite)))
    for name, options in A_FEW:
        oracle.assert_as_expected(name, options | {"reduction": "none"}, z, target)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_two_classes_are_one_logit(dtype, gamma):
    rng = np.random.default_rng(4)
    z, target = random_logits(rng, 500, dtype, 4.0), binary_target(rng, 500, "int", dtype)
    pairs = np.stack([np.zeros_like(z), z], axis=1)
    value, grad, hess = fx.BinaryFocalLoss(gamma=gamma, reduction="none").value_grad_hess(z, target)
    value_2, grad_2, hess_2 = fx.FocalLoss(gamma=gamma, reduction="none").value_grad_hess(pairs, target)
    # Both are within (8 + gamma (4 + |z|)) eps of the truth, |z| up to 15; the Hessian is a difference of two such.
    allowed = 2 * (8 + 15 + gamma * (4 + 15)) * eps(dtype)
    np.testing.assert_allclose(value_2, value, rtol=allowed, atol=1e-44)
    np.testing.assert_allclose(grad_2[:, 1], grad, rtol=allowed, atol=1e-44)
    np.testing.assert_allclose(hess_2[:, 1], hess, rtol=allowed, atol=allowed * (1 + gamma) ** 2)


@pytest.mark.parametrize(("name", "options"), LOSSES)
def test_the_other_class_seen_from_the_other_side(dtype, name, options):
    rng = np.random.default_rng(5)
    z, target = random_logits(rng, 200, dtype, 8.0), rng.integers(0, 2, 200)
    value, grad, hess = make(name, options, reduction="none").value_grad_hess(z, target)
    value_2, grad_2, hess_2 = make(name, options, reduction="none").value_grad_hess(-z, 1 - target)
    # The same arithmetic with p and q exchanged.
    gamma = options.get("gamma", 0)
    allowed = {"rtol": (REORDERED + gamma * 40) * eps(dtype), "atol": 1e-44}
    np.testing.assert_allclose(value_2, value, **allowed)
    np.testing.assert_allclose(-grad_2, grad, **allowed)
    np.testing.assert_allclose(hess_2, hess, rtol=allowed["rtol"], atol=allowed["rtol"] * (1 + gamma) ** 2)


@pytest.mark.parametrize(("name", "options"), A_FEW)
def test_an_element_does_not_know_its_neighbours(dtype, name, options):
    # Whole vectors, tails, and elements alone must be the same bits.
    rng = np.random.default_rng(6)
    loss = make(name, options, reduction="none")
    for kind in KINDS:
        z, target = nasty_elements(rng, 67, dtype), binary_target(rng, 67, kind, dtype)
        weight = rng.uniform(0.5, 2, 67)
        together = loss.value_grad_hess(z, target, weight)
        for start, stop in ((0, 1), (1, 2), (3, 40), (16, 32), (66, 67), (1, 67)):
            part = slice(start, stop)
            alone = loss.value_grad_hess(z[part], target[part], weight[part])
            assert_same_bits(alone, tuple(result[part] for result in together))
        alone = loss.value_grad_hess(z[5], target[5], weight[5])
        assert_same_bits(alone, tuple(np.asarray(result[5]) for result in together))


@pytest.mark.parametrize(("name", "options"), A_FEW)
def test_the_shape_means_nothing_to_an_element(dtype, name, options):
    rng = np.random.default_rng(7)
    z, target = nasty_elements(rng, 105, dtype), binary_target(rng, 105, "soft", dtype)
    loss = make(name, options, reduction="none")
    flat = loss.value_grad_hess(z, target)
    for shape in ((15, 7), (3, 5, 7), (105, 1)):
        shaped = loss.value_grad_hess(z.reshape(shape), target.reshape(shape))
        assert_same_bits(shaped, tuple(result.reshape(shape) for result in flat))


@pytest.mark.parametrize(("name", "options"), A_FEW)
def test_chunked_sums_are_the_whole(dtype, name, options):
    rng = np.random.default_rng(8)
    z, target = random_logits(rng, 20_000, dtype, 5.0), binary_target(rng, 20_000, "soft", dtype)
    loss = make(name, options, reduction="sum")
    value, grad = loss.value_and_grad(z, target)
    chunks = [loss.value_and_grad(z[i : i + 1999], target[i : i + 1999]) for i in range(0, 20_000, 1999)]
    assert sum(v for v, _ in chunks) == pytest.approx(value, rel=REORDERED * eps(np.float64))
    np.testing.assert_array_equal(np.concatenate([g for _, g in chunks]), grad)


@pytest.mark.parametrize(("name", "options"), A_FEW)
def test_weight_2_is_the_element_twice(dtype, name, options):
    rng = np.random.default_rng(9)
    z, target = random_logits(rng, 50, dtype, 5.0), binary_target(rng, 50, "soft", dtype)
    times = rng.integers(0, 3, 50)
    loss = make(name, options)
    value, grad = loss.value_and_grad(z, target, times)
    repeated_value, repeated = loss.value_and_grad(np.repeat(z, times), np.repeat(target, times))
    assert value == pytest.approx(repeated_value, rel=REORDERED * eps(dtype))
    total = np.zeros_like(grad)
    np.add.at(total, np.repeat(np.arange(50), times), repeated)
    np.testing.assert_allclose(grad, total, rtol=REORDERED * eps(dtype), atol=0)
    assert np.all(grad[times == 0] == 0)
