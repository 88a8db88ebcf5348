"""The losses of one logit at infinities, NaN and numbers of every size: the table of DESIGN 2.3, and what is never seen."""

import itertools

import numpy as np
import oracle
import pytest
from arrays import binary_target, random_logits
from tolerances import assert_within, eps

import fastxent as fx

pytestmark = pytest.mark.usefixtures("isa")

INF, NAN = np.inf, np.nan
# (logit, target, value, gradient, Hessian); the same for both losses and every gamma, but for the finite rows.
LIMITS = [
    (INF, 1, 0, 0, 0),
    (-INF, 0, 0, 0, 0),
    (-INF, 1, INF, -1, 0),
    (INF, 0, INF, 1, 0),
    (INF, 0.5, INF, 0.5, 0),
    (-INF, 0.5, INF, -0.5, 0),
    (NAN, 0, NAN, NAN, NAN),
    (NAN, 1, NAN, NAN, NAN),
    (NAN, 0.5, NAN, NAN, NAN),
]
# 1e-10 and 1e30 are next to where a power is nothing and everything.
ODD_GAMMAS = (0, 1e-10, 0.25, 0.5, 1, 2, 3.5, 5, 30, 1e30)
LOSSES = [("BinaryCrossEntropy", {}), *(("BinaryFocalLoss", {"gamma": gamma}) for gamma in ODD_GAMMAS)]
A_FEW = [("BinaryCrossEntropy", {}), ("BinaryFocalLoss", {}), ("BinaryFocalLoss", {"gamma": 0.5})]


def results_of(name, options, *arguments):
    return getattr(fx, name)(**options).value_grad_hess(*arguments)


@pytest.mark.parametrize(("name", "options"), LOSSES)
def test_table(dtype, name, options):
    gamma = options.get("gamma", 0)
    for z, t, value, grad, hess in LIMITS:
        if t == 0.5 and gamma > 100:
            continue  # 0 * inf: the power vanishes before the loss is infinite
        # Where the target is spread, (1 - p_t)^gamma is 1/2^gamma at both infinities.
        expected = value, grad * 0.5**gamma if t == 0.5 else grad, hess
        for n in (1, 9, 40):
            target = np.full(n, t if t == 0.5 else int(t))
            actual = results_of(name, options | {"reduction": "none"}, np.full(n, z, dtype), target)
            for a, b in zip(actual, expected, strict=True):
                close = {"rtol": (4 + 4 * min(gamma, 100)) * eps(dtype), "err_msg": f"z = {z}, t = {t}"}
                np.testing.assert_allclose(a, np.full(n, b), **close)


@pytest.mark.parametrize(("z", "t", "value", "grad", "hess"), LIMITS[:4])
def test_infinities_are_weighted(dtype, z, t, value, grad, hess):
    z, target, weight = np.full(3, z, dtype), np.full(3, t), [2.0, 0.5, 4.0]
    plain = results_of("BinaryCrossEntropy", {"pos_weight": 3, "reduction": "none"}, z, target, weight)
    focal = results_of("BinaryFocalLoss", {"alpha": 0.75, "reduction": "none"}, z, target, weight)
    for actual, factor in ((plain, 3 if t else 1), (focal, 0.75 if t else 0.25)):
        np.testing.assert_array_equal(actual[0], np.full(3, value))
        np.testing.assert_array_equal(actual[1], factor * grad * np.array(weight))
        np.testing.assert_array_equal(actual[2], np.full(3, hess))


@pytest.mark.parametrize("name", ["BinaryCrossEntropy", "BinaryFocalLoss"])
def test_infinities_of_smoothed_targets(dtype, name):
    # Nothing is certain any more: the loss is infinite on both sides.
    value, grad, hess = results_of(
        name, {"label_smoothing": 0.5, "reduction": "none"}, np.array([INF, -INF], dtype), [1, 1]
    )
    factor = 1 if name == "BinaryCrossEntropy" else np.array([1 / 16, 9 / 16])
    np.testing.assert_array_equal(value, [INF, INF])
    np.testing.assert_allclose(grad, [0.25, -0.75] * np.ones(2) * factor, rtol=8 * eps(dtype))
    np.testing.assert_array_equal(hess, [0, 0])


@pytest.mark.parametrize(("name", "options"), A_FEW)
@pytest.mark.parametrize("kind", ["int", "soft"])
def test_a_bad_element_leaves_its_neighbours_alone(dtype, name, options, kind):
    rng = np.random.default_rng(0)
    z, target = random_logits(rng, 37, dtype), binary_target(rng, 37, kind, dtype)
    good = results_of(name, options | {"reduction": "none"}, z, target)
    # Lanes at the ends of vectors, and the last elements, which fill no vector.
    for position, (bad, t, *expected) in itertools.product((0, 7, 8, 15, 16, 31, 32, 36), LIMITS):
        if t == 0.5:
            continue
        z_now, target_now = z.copy(), target.copy()
        z_now[position], target_now[position] = bad, t
        results = results_of(name, options | {"reduction": "none"}, z_now, target_now)
        for now, before, result in zip(results, good, expected, strict=True):
            np.testing.assert_array_equal(np.delete(now, position), np.delete(before, position))
            np.testing.assert_array_equal(now[position], result)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize(("name", "options"), A_FEW)
def test_a_bad_element_shows_in_the_sum(dtype, name, options, reduction):
    z = np.zeros((5, 4), dtype)
    z[3, 2] = NAN
    value, grad, hess = results_of(name, options | {"reduction": reduction}, z, np.ones((5, 4)))
    assert np.isnan(value)
    for result in (grad, hess):
        assert np.isnan(result[3, 2])
        assert np.count_nonzero(np.isnan(result)) == 1
    z[3, 2] = -INF
    value, grad, hess = results_of(name, options | {"reduction": reduction}, z, np.ones((5, 4)))
    assert value == INF
    assert np.isfinite(grad).all()
    assert np.isfinite(hess).all()


# --- finite numbers of any size ---------------------------------------------------------------------------------------

SIZES = (
    0,
    1e-40,
    1e-10,
    1e-3,
    1,
    5,
    17,
    25,
    37,
    40,
    80,
    88,
    89,
    103,
    104,
    110,
    700,
    745,
    746,
    750,
    800,
    1e4,
    1e10,
    1e30,
)


@pytest.mark.parametrize(("name", "options"), LOSSES)
def test_finite_logits_have_finite_results(dtype, name, options):
    z = np.array([*SIZES, *(-size for size in SIZES)]).astype(dtype)
    for t, more in itertools.product((0, 1, 0.5, 1e-6, 1 - 2**-20), ({}, {"label_smoothing": 0.1})):
        target = np.full(len(z), t, dtype)
        loss = getattr(fx, name)(**options, **more, reduction="none")
        value, grad, hess = loss.value_grad_hess(z, target)
        for result in (value, grad, hess):
            assert np.isfinite(result).all(), (t, z[~np.isfinite(result)])
        assert np.all(value >= 0)
        if t in (0, 1) and not more:  # monotonous, with no sign lost on the way
            assert np.all(grad <= 0 if t else grad >= 0)
            assert np.all(value[z == 0] > 0) or options.get("gamma", 0) > 1e3
        if options.get("gamma", 0) <= 30:  # beyond, eps is magnified to more than the result
            oracle.assert_results(
                (value, grad, hess), oracle.expected_of(name, options | more | {"reduction": "none"}, z, target)
            )


@pytest.mark.parametrize("gamma", [1e10, 1e30, 1e300])
def test_enormous_gammas_leave_only_what_is_wrong_for_sure(dtype, gamma):
    # gamma^2, and gamma itself in float32, are beyond the largest number; the loss and its derivatives are not.
    z = np.array([-1e30, -1e4, -800, 0, 3, 800, 1e30], dtype)
    value, grad, hess = results_of("BinaryFocalLoss", {"gamma": gamma, "reduction": "none"}, z, np.ones(7, int))
    np.testing.assert_allclose(value, [1e30, 1e4, 800, 0, 0, 0, 0], rtol=4 * eps(dtype))
    np.testing.assert_allclose(grad, [-1, -1, -1, 0, 0, 0, 0], rtol=4 * eps(dtype), atol=1e-40)
    assert np.all(np.abs(hess) <= 1e-30)


@pytest.mark.parametrize(("name", "options"), A_FEW)
def test_subnormal_results_keep_their_order_of_magnitude(dtype, name, options):
    # The derivatives of a nearly certain element: q^(gamma + 1) for some q down to the smallest numbers.
    gamma = options.get("gamma", 2) if name == "BinaryFocalLoss" else 0
    smallest = -np.log(float(np.finfo(dtype).tiny))
    x = (np.linspace(smallest, smallest + (12 if dtype is np.float32 else 30), 40) / (gamma + 1)).astype(dtype)
    value, grad, hess = results_of(name, options | {"reduction": "none"}, x, np.ones(40))
    exact = np.exp(-x.astype(np.longdouble) * (gamma + 1))
    for result in (value, -grad / (1 + gamma), hess / (1 + gamma) ** 2):
        ratio = result / exact
        assert ratio.min() > 0.1
        assert ratio.max() < 10


# --- what is not looked at --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize(("name", "options"), [*A_FEW, ("BinaryCrossEntropy", {"inputs": "probs"})])
def test_elements_that_do_not_count_are_never_looked_at(dtype, name, options, reduction):
    for bad in (NAN, INF, -INF):
        check_unseen(dtype, name, options, bad, reduction)


def check_unseen(dtype, name, options, bad, reduction):
    rng = np.random.default_rng(1)
    good = rng.uniform(0.1, 0.9, (21, 5)).astype(dtype)
    target = rng.integers(0, 2, (21, 5))
    unseen = rng.random((21, 5)) < 0.3
    z = np.where(unseen, bad, good).astype(dtype)
    rows = np.where(unseen.any(axis=1), 0, rng.uniform(0.5, 2, 21))
    elements = np.where(unseen, 0, rng.uniform(0.5, 2, (21, 5)))
    ignore = {"ignore_index": -1}
    ways = {
        "ignored": (ignore, np.where(unseen, -1, target), None),
        "ignored, as floats": (ignore, np.where(unseen, -1.0, target * 0.75), None),
        "ignored, weighted and smooth": (ignore | {"label_smoothing": 0.2}, np.where(unseen, -1, target), elements),
        "sample weight 0": ({}, target, elements),
        "row weight 0": ({}, target, rows),
        "sample weight 0 and smooth": ({"label_smoothing": 0.1}, target * 0.5, elements),
    }
    for way, (more, t, weight) in ways.items():
        results = results_of(name, options | more | {"reduction": reduction}, z, t, weight)
        # The same with ordinary numbers there must not differ by a bit.
        expected = results_of(name, options | more | {"reduction": reduction}, good, t, weight)
        for a, b in zip(results, expected, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=way)
        for derivative in results[1:]:
            assert not derivative[unseen].any(), way
            assert derivative.any(), way


# --- probabilities ----------------------------------------------------------------------------------------------------

TINY = 1e-30
# (x, target, value, gradient, Hessian)
PROBS = [
    (0, 1, INF, -INF, INF),
    (-0.0, 1, INF, -INF, INF),
    (1, 0, INF, INF, INF),
    (0, 0, 0, 1, 1),
    (1, 1, 0, -1, 1),
    (0, 0.5, INF, -INF, INF),
    (1, 0.5, INF, INF, INF),
    (TINY, 0, TINY, 1, 1),
    (TINY, 1, -np.log(TINY), -1 / TINY, INF),  # 1e60 in float64
    (-0.1, 0, NAN, NAN, NAN),
    (1.5, 0, NAN, NAN, NAN),
    (1.5, 1, NAN, NAN, NAN),
    (-0.5, 1, NAN, NAN, NAN),
    (INF, 1, NAN, NAN, NAN),
    (-INF, 0, NAN, NAN, NAN),
    (NAN, 1, NAN, NAN, NAN),
]


def test_probabilities_at_their_ends(dtype):
    rng = np.random.default_rng(2)
    others = rng.uniform(0.1, 0.9, 37).astype(dtype)
    loss = fx.BinaryCrossEntropy(inputs="probs", reduction="none")
    for (x, t, *expected), position in itertools.product(PROBS, (0, 15, 36)):
        if x == TINY and t == 1 and dtype is np.float64:
            expected[-1] = 1e60
        target = rng.integers(0, 2, 37) if t != 0.5 else rng.random(37)
        good = loss.value_grad_hess(others, target)
        x_now, target_now = others.copy(), target.copy()
        x_now[position], target_now[position] = x, t
        results = loss.value_grad_hess(x_now, target_now)
        for now, before, e in zip(results, good, expected, strict=True):
            np.testing.assert_array_equal(np.delete(now, position), np.delete(before, position))
            np.testing.assert_allclose(now[position], e, rtol=4 * eps(dtype), err_msg=f"x = {x}, t = {t}")


def test_probabilities_without_mass_are_not_divided_by(dtype):
    # pos_weight 0 takes the positives' mass away: 0 * inf is 0.
    x = np.array([0, 0, 1], dtype)
    value, grad, hess = fx.BinaryCrossEntropy(inputs="probs", pos_weight=0, reduction="none").value_grad_hess(
        x, [1, 0, 1]
    )
    np.testing.assert_array_equal(value, [0, 0, 0])
    np.testing.assert_array_equal(grad, [0, 1, 0])
    np.testing.assert_array_equal(hess, [0, 1, 0])


def test_probabilities_next_to_1_keep_their_digits(dtype):
    # 1 - x is exact there.
    x = 1 - np.finfo(dtype).epsneg * np.array([1, 2, 3, 100]).astype(dtype)
    expected = oracle.expected_of(
        "BinaryCrossEntropy", {"inputs": "probs", "reduction": "none"}, x, np.array([0, 1, 1, 0])
    )
    value, grad, _ = fx.BinaryCrossEntropy(inputs="probs", reduction="none").value_grad_hess(x, [0, 1, 1, 0])
    assert_within(value, expected.value, expected.value_bound, "value")
    assert_within(grad, expected.grad, expected.grad_bound, "gradient")
