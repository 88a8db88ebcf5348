"""`FocalLoss` at infinities, NaN and rows that must not be looked at: CrossEntropy's table of DESIGN 2.3, modulated."""

import itertools

import numpy as np
import oracle
import pytest
from arrays import one_hot, random_logits
from tolerances import eps

import fastxent as fx

pytestmark = pytest.mark.usefixtures("isa")

INF, NAN = np.inf, np.nan
LOG_2 = np.log(2)
HALVED = (1 + LOG_2) / 2  # q (p L / q + 1) of gamma 1 at p = 1/2
# (name, logits of three classes, target, value, gradient); gamma is 1, which changes only what is finite.
TABLE = [
    ("mask off the target", [0, -INF, 0], 0, LOG_2 / 2, [-HALVED / 2, 0, HALVED / 2]),
    ("all but the target masked", [-INF, 5, -INF], 1, 0, [0, 0, 0]),
    ("-inf on the target", [-INF, 0, 0], 0, INF, [-1, 0.5, 0.5]),
    ("-inf on the target and elsewhere", [-INF, 0, -INF], 0, INF, [-1, 1, 0]),
    ("+inf on the target", [INF, 0, 1], 0, 0, [0, 0, 0]),
    ("+inf on the target, -inf elsewhere", [-INF, 0, INF], 2, 0, [0, 0, 0]),
    ("+inf off the target", [0, INF, 1], 0, INF, [-1, 1, 0]),
    ("+inf off the target, which is -inf", [-INF, INF, 1], 0, INF, [-1, 1, 0]),
    ("+inf twice", [INF, INF, 0], 0, NAN, [NAN] * 3),
    ("all -inf", [-INF, -INF, -INF], 0, NAN, [NAN] * 3),
    ("NaN on the target", [NAN, 0, 0], 0, NAN, [NAN] * 3),
    ("NaN off the target", [0, NAN, 0], 0, NAN, [NAN] * 3),
    ("NaN beside +inf", [NAN, 0, INF], 2, NAN, [NAN] * 3),
    ("NaN beside -inf", [-INF, -INF, NAN], 1, NAN, [NAN] * 3),
    ("far apart", [0, -1e4, 0], 1, 1e4 + LOG_2, [0.5, -1, 0.5]),
    ("very far apart", [1e30, -1e30, 0], 1, 2e30, [1, -1, 0]),
    ("very large and equal", [3e38, 3e38, -3e38], 0, LOG_2 / 2, [-HALVED / 2, HALVED / 2, 0]),
]
# Each regime, and in the longest rows the three classes in different blocks or in one.
PLACES = {
    "3 classes": (3, (0, 1, 2)),
    "16 classes": (16, (0, 7, 15)),
    "17 classes": (17, (3, 15, 16)),
    "100 classes": (100, (2, 64, 99)),
    "2049 classes": (2049, (0, 1024, 2048)),
    "70000 classes": (70000, (9000, 40000, 69999)),
}
# 1e-10 and 1e30 are next to where a power is nothing and everything.
ODD_GAMMAS = (0, 1e-10, 0.25, 0.5, 1, 2, 3.5, 5, 30, 1e30)


def placed(place, logits, dtype):
    """The three logits of a table row among classes that are masked, which changes no result."""
    n_classes, where = PLACES[place]
    row = np.full(n_classes, -INF, dtype)
    row[list(where)] = logits
    return row, where


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["index", "one_hot"])
def test_table(dtype, place, kind):
    loss = fx.FocalLoss(gamma=1, reduction="none")
    for name, logits, target, value, grad in TABLE if "70000" not in place else TABLE[::2]:
        row, where = placed(place, logits, dtype)
        expected = np.full(row.shape, NAN if np.isnan(value) else 0.0)
        expected[list(where)] = grad
        index = np.asarray(where[target])
        actual, actual_grad, hess = loss.value_grad_hess(
            row, index if kind == "index" else one_hot(index, len(row), dtype)
        )
        close = {"rtol": 8 * eps(dtype), "err_msg": name}
        np.testing.assert_allclose(actual, np.asarray(value, dtype), **close)
        np.testing.assert_allclose(actual_grad, expected, **close)
        np.testing.assert_array_equal(np.isnan(hess), np.isnan(expected), err_msg=name)
        assert np.isinf(hess).sum() == 0, name


@pytest.mark.parametrize("gamma", ODD_GAMMAS)
@pytest.mark.parametrize("kind", ["index", "one_hot"])
def test_infinities_for_every_gamma(dtype, gamma, kind):
    # What is not finite, and derivatives of certain rows, do not depend on gamma.
    loss = fx.FocalLoss(gamma=gamma, reduction="none")
    for n_classes, (name, logits, target, value, grad) in itertools.product((3, 20), TABLE):
        if np.isfinite(value) and value != 0:
            continue
        row = np.full(n_classes, -INF, dtype)
        row[:3] = logits
        given = np.asarray(target) if kind == "index" else one_hot(target, n_classes, dtype)
        actual, actual_grad, hess = loss.value_grad_hess(row, given)
        np.testing.assert_array_equal(actual, value, err_msg=name)
        np.testing.assert_array_equal(actual_grad[:3], grad, err_msg=name)
        assert np.isnan(hess[:3]).all() if np.isnan(value) else np.isfinite(hess).all(), name


@pytest.mark.parametrize("n_classes", [3, 10, 33])
@pytest.mark.parametrize("kind", ["index", "one_hot"])
def test_a_bad_row_leaves_its_neighbours_alone(dtype, n_classes, kind):
    # Row 20 is in the ragged tail after a block of 16, 0 and 15 are its first and last lanes.
    rng = np.random.default_rng(0)
    logits, index = random_logits(rng, (21, n_classes), dtype), rng.integers(0, 3, 21)
    loss = fx.FocalLoss(gamma=1, reduction="none")
    given = (lambda i: i) if kind == "index" else (lambda i: one_hot(i, n_classes, dtype))
    good = loss.value_grad_hess(logits, given(index))
    for position, (name, bad, bad_target, value, grad) in itertools.product((0, 7, 15, 16, 20), TABLE):
        logits_now, index_now = logits.copy(), index.copy()
        logits_now[position] = -INF
        logits_now[position, :3] = bad
        index_now[position] = bad_target
        results = loss.value_grad_hess(logits_now, given(index_now))
        for now, before in zip(results, good, strict=True):
            np.testing.assert_array_equal(np.delete(now, position, 0), np.delete(before, position, 0), err_msg=name)
        np.testing.assert_allclose(results[0][position], np.asarray(value, dtype), rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(results[1][position, :3], grad, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("n_classes", [3, 17, 2050])
@pytest.mark.parametrize("special", [INF, -INF, NAN])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.25, "gamma": 0.5}, {"gamma": 3.5}], ids=str)
def test_one_special_class_anywhere(dtype, n_classes, special, options):
    rng = np.random.default_rng(n_classes)
    long = n_classes > 1000
    places = (1500,) if long else sorted({0, n_classes // 2, n_classes - 1})
    for place, kind in itertools.product(places, ("index", "spread") if long else ("index", "one_hot", "spread")):
        logits = random_logits(rng, (4, n_classes), dtype)
        logits[1:3, place] = special
        target = np.array([0, place, (place + 1) % n_classes, 1])
        if kind == "one_hot":
            target = one_hot(target, n_classes, dtype)
        if kind == "spread":
            target = np.full((4, n_classes), 1 / n_classes, dtype)
            target[2, place] = 0
        oracle.assert_as_expected("FocalLoss", options | {"reduction": "none"}, logits, target)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_bad_row_shows_in_the_sum(dtype, reduction):
    logits = np.zeros((20, 3), dtype)
    logits[13] = [0, NAN, 0]
    value, grad = fx.FocalLoss(reduction=reduction).value_and_grad(logits, np.zeros(20, int))
    assert np.isnan(value)
    assert np.isfinite(np.delete(grad, 13, 0)).all()
    assert np.isnan(grad[13]).all()


@pytest.mark.parametrize("gamma", ODD_GAMMAS)
def test_finite_logits_have_finite_results(dtype, gamma):
    sizes = [0, 1e-3, 1, 17, 40, 80, 88, 89, 103, 110, 700, 746, 800, 1e4, 1e8, 1e30]
    logits = np.array(
        [[s, 0, -s] for s in sizes] + [[-s, s, s / 2] for s in sizes] + [[s, s, s] for s in sizes]
    ).astype(dtype)
    for y, kind in itertools.product(range(3), ("index", "one_hot", "smoothed")):
        index = np.full(len(logits), y)
        target = one_hot(index, 3, dtype) if kind == "one_hot" else index
        options = {"gamma": gamma, "reduction": "none", "label_smoothing": 0.1 if kind == "smoothed" else 0.0}
        results = fx.FocalLoss(**options).value_grad_hess(logits, target)
        for result in results:
            assert np.isfinite(result).all(), logits[~np.isfinite(result).reshape(len(logits), -1).all(axis=1)]
        assert np.all(results[0] >= 0)
        if kind != "smoothed":
            assert np.all(results[1][:, y] <= 0)
            assert np.all(np.delete(results[1], y, axis=1) >= 0)
        if gamma <= 30:  # beyond, eps is magnified to more than the result
            oracle.assert_results(results, oracle.expected_of("FocalLoss", options, logits, target))


@pytest.mark.parametrize("gamma", [1e10, 1e30])
@pytest.mark.parametrize("n_classes", [3, 20])
def test_enormous_gammas_leave_only_what_is_wrong_for_sure(dtype, gamma, n_classes):
    logits = np.full((4, n_classes), -INF, dtype)
    logits[:, :3] = [[0, 1e4, 0], [0, 800, 1], [0, 0, 0], [800, 0, 0]]
    value, grad, hess = fx.FocalLoss(gamma=gamma, reduction="none").value_grad_hess(logits, [0, 0, 0, 0])
    np.testing.assert_allclose(value, [1e4, 800, 0, 0], rtol=4 * eps(dtype))
    np.testing.assert_allclose(grad[:, :3], [[-1, 1, 0], [-1, 1, 0], [0, 0, 0], [0, 0, 0]], atol=1e-40)
    assert np.all(np.abs(hess) <= 1e-30)


@pytest.mark.parametrize("n_classes", [3, 17, 1000])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_rows_that_do_not_count_are_never_looked_at(dtype, n_classes, reduction):
    for bad in ([NAN, NAN, NAN], [INF, INF, 0], [-INF, -INF, -INF], [0, NAN, INF]):
        check_unseen(dtype, n_classes, bad, reduction)


def check_unseen(dtype, n_classes, bad, reduction):
    rng = np.random.default_rng(1)
    good, index = random_logits(rng, (20, n_classes), dtype), rng.integers(0, 2, 20)
    unseen = [0, 5, 15, 16, 19]
    logits = good.copy()
    logits[unseen] = -INF
    logits[unseen, :3] = bad
    weightless = np.ones(n_classes)
    weightless[2] = 0
    weight = np.ones(20)
    weight[unseen] = 0
    index[unseen] = 2
    massless = one_hot(index, n_classes, dtype)
    massless[unseen] = 0
    ways = {
        "ignored": ({"ignore_index": 2}, index, None),
        "ignored one-hot": ({"ignore_index": 2}, one_hot(index, n_classes, dtype), None),
        "ignored and smooth": ({"ignore_index": 2, "label_smoothing": 0.1}, index, None),
        "sample weight 0": ({}, index, weight),
        "sample weight 0 and smooth": ({"label_smoothing": 0.1}, one_hot(index, n_classes, dtype), weight),
        "class weight 0": ({"class_weight": weightless}, index, None),
        "no mass": ({}, massless, None),
    }
    for way, (options, target, sample_weight) in ways.items():
        loss = fx.FocalLoss(**options, gamma=1.5, reduction=reduction)
        results = loss.value_grad_hess(logits, target, sample_weight)
        # The same with ordinary numbers there must not differ by a bit.
        for a, b in zip(results, loss.value_grad_hess(good, target, sample_weight), strict=True):
            np.testing.assert_array_equal(a, b, err_msg=way)
        assert not results[1][unseen].any(), way
        assert not results[2][unseen].any(), way


@pytest.mark.parametrize(("logit", "value"), [(3.0, 0), (-1e30, 0), (INF, 0), (-INF, NAN), (NAN, NAN)])
def test_one_class(dtype, logit, value):
    for result in fx.FocalLoss(reduction="none").value_grad_hess(np.full((3, 1), logit, dtype), [0, 0, 0]):
        np.testing.assert_array_equal(result.ravel(), [value] * 3)


def test_subnormal_results_keep_their_order_of_magnitude(dtype):
    # gamma 1: value q L, with q = L = exp(-x) for a sure row.
    smallest = -np.log(float(np.finfo(dtype).tiny))
    x = (np.linspace(smallest, smallest + (12 if dtype is np.float32 else 30), 40) / 2).astype(dtype)
    logits = np.stack([np.zeros_like(x), -x], axis=1)
    value, grad, hess = fx.FocalLoss(gamma=1, reduction="none").value_grad_hess(logits, np.zeros(40, int))
    exact = np.exp(-2 * x.astype(np.longdouble))
    for result in (value, grad[:, 1] / 2, -grad[:, 0] / 2, hess[:, 0] / 4, hess[:, 1] / 4):
        ratio = result / exact
        assert ratio.min() > 0.1
        assert ratio.max() < 10


@pytest.mark.parametrize("n_classes", [3, 40, 300, 9000])
def test_a_row_of_masked_classes_is_nan_although_nothing_is_left_to_smooth(isa, dtype, n_classes):
    logits = np.full((2, n_classes), -np.inf, dtype)
    logits[1] = 0.0
    loss = fx.FocalLoss(label_smoothing=1.0, reduction="none")
    values = loss(logits, np.array([0, 0]))
    assert np.isnan(values[0])
    assert np.isfinite(values[1])
