"""Infinities, NaN and rows that must not be looked at: the table of DESIGN 2.3, row by row, value and gradient."""

import numpy as np
import oracle
import pytest
from arrays import one_hot, random_logits
from tolerances import assert_within

import fastxent as fx

pytestmark = pytest.mark.usefixtures("isa")

INF, NAN = np.inf, np.nan
LOG_2 = np.log(2)
# (name, logits of three classes, target, value, gradient)
TABLE = [
    ("mask off the target", [0, -INF, 0], 0, LOG_2, [-0.5, 0, 0.5]),
    ("all but the target masked", [-INF, 5, -INF], 1, 0, [0, 0, 0]),
    ("-inf on the target", [-INF, 0, 0], 0, INF, [-1, 0.5, 0.5]),
    ("-inf on the target and elsewhere", [-INF, 0, -INF], 0, INF, [-1, 1, 0]),
    ("+inf on the target", [INF, 0, 1], 0, 0, [0, 0, 0]),
    ("+inf on the target, -inf elsewhere", [-INF, 0, INF], 2, 0, [0, 0, 0]),
    ("+inf off the target", [0, INF, 1], 0, INF, [-1, 1, 0]),
    ("+inf off the target, which is -inf", [-INF, INF, 1], 0, INF, [-1, 1, 0]),
    ("+inf twice", [INF, INF, 0], 0, NAN, [NAN] * 3),
    ("+inf three times", [INF, INF, INF], 1, NAN, [NAN] * 3),
    ("all -inf", [-INF, -INF, -INF], 0, NAN, [NAN] * 3),
    ("NaN on the target", [NAN, 0, 0], 0, NAN, [NAN] * 3),
    ("NaN off the target", [0, NAN, 0], 0, NAN, [NAN] * 3),
    ("NaN beside +inf", [NAN, 0, INF], 2, NAN, [NAN] * 3),
    ("NaN beside -inf", [-INF, -INF, NAN], 1, NAN, [NAN] * 3),
    ("NaN only", [NAN, NAN, NAN], 1, NAN, [NAN] * 3),
    ("far apart", [0, -1e4, 0], 1, 1e4 + LOG_2, [0.5, -1, 0.5]),
    ("very far apart", [1e30, -1e30, 0], 1, 2e30, [1, -1, 0]),
    ("very large and equal", [3e38, 3e38, -3e38], 0, LOG_2, [-0.5, 0.5, 0]),
]
IDS = [row[0] for row in TABLE]
# Few classes (a tile of rows), the edges of that regime, rows in cache, and rows in several blocks. In the longest the
# three classes of the table are in different blocks, and whole blocks of masks come before and after them.
PLACES = {
    "3 classes": (3, (0, 1, 2)),
    "8 classes": (8, (1, 4, 7)),
    "16 classes": (16, (0, 7, 15)),
    "17 classes": (17, (3, 15, 16)),
    "100 classes": (100, (2, 64, 99)),
    "2049 classes": (2049, (0, 1024, 2048)),
    "70000 classes": (70000, (9000, 40000, 69999)),
    "70000 classes, all in one block": (70000, (40000, 40001, 40002)),
}


def placed(place, logits, dtype):
    """The three logits of a table row among classes that are masked, which changes no result."""
    n_classes, where = PLACES[place]
    row = np.full(n_classes, -INF, dtype)
    row[list(where)] = logits
    return row, where


def target_of(kind, index, n_classes, dtype):
    return np.asarray(index) if kind == "index" else one_hot(index, n_classes, dtype)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("target_kind", ["index", "one_hot"])
@pytest.mark.parametrize(("name", "logits", "target", "value", "grad"), TABLE, ids=IDS)
def test_table(dtype, place, target_kind, name, logits, target, value, grad):
    row, where = placed(place, logits, dtype)
    expected_grad = np.full(row.shape, NAN if np.isnan(value) else 0.0)
    expected_grad[list(where)] = grad
    target = target_of(target_kind, where[target], len(row), dtype)
    actual, actual_grad, hess = fx.CrossEntropy(reduction="none").value_grad_hess(row, target)
    close = 4 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(actual, np.asarray(value, dtype), rtol=close)
    np.testing.assert_allclose(actual_grad, expected_grad, rtol=close)
    p = np.abs(np.where(np.arange(len(row)) == where[TABLE[IDS.index(name)][2]], 1 + expected_grad, expected_grad))
    np.testing.assert_allclose(hess, p * (1 - p), rtol=close)


@pytest.mark.parametrize("n_classes", [3, 10, 33])
@pytest.mark.parametrize("position", [0, 7, 15, 16, 20])
@pytest.mark.parametrize("target_kind", ["index", "one_hot"])
def test_a_bad_row_leaves_its_neighbours_alone(dtype, n_classes, position, target_kind):
    # Row 20 is in the ragged tail after a block of 16, 0 and 15 are its first and last lanes.
    rng = np.random.default_rng(0)
    logits = random_logits(rng, (21, n_classes), dtype)
    index = rng.integers(0, 3, 21)
    loss = fx.CrossEntropy(reduction="none")
    good = loss.value_grad_hess(logits, target_of(target_kind, index, n_classes, dtype))
    for name, bad, bad_target, value, grad in TABLE:
        logits_now, index_now = logits.copy(), index.copy()
        logits_now[position] = -INF
        logits_now[position, :3] = bad
        index_now[position] = bad_target
        results = loss.value_grad_hess(logits_now, target_of(target_kind, index_now, n_classes, dtype))
        for now, before in zip(results, good, strict=True):
            np.testing.assert_array_equal(np.delete(now, position, 0), np.delete(before, position, 0), err_msg=name)
        np.testing.assert_allclose(results[0][position], np.asarray(value, dtype), rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(results[1][position, :3], grad, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_bad_row_shows_in_the_sum(dtype, reduction):
    loss = fx.CrossEntropy(reduction=reduction)
    logits = np.zeros((20, 3), dtype)
    logits[13] = [0, NAN, 0]
    value, grad = loss.value_and_grad(logits, np.zeros(20, int))
    assert np.isnan(value)
    assert np.isfinite(np.delete(grad, 13, 0)).all()
    assert np.isnan(grad[13]).all()
    logits[13] = [-INF, 0, 0]
    value, grad = loss.value_and_grad(logits, np.zeros(20, int))
    assert value == INF
    assert np.isfinite(grad).all()


@pytest.mark.parametrize("n_classes", [2, 3, 10, 17, 100, 2050])
@pytest.mark.parametrize("special", [INF, -INF, NAN])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.25}, {"class_weight": "balanced"}], ids=str)
@pytest.mark.parametrize("target_kind", ["index", "one_hot", "spread"])
def test_one_special_class_anywhere(dtype, n_classes, special, options, target_kind):
    rng = np.random.default_rng(n_classes)
    for place in {0, 1, n_classes // 2, n_classes - 1}:
        logits = random_logits(rng, (4, n_classes), dtype)
        logits[1:3, place] = special
        index = np.array([0, place, (place + 1) % n_classes, 1])
        target = target_of(target_kind, index, n_classes, dtype)
        if target_kind == "spread":
            target = np.full((4, n_classes), 1 / n_classes, dtype)
            target[2, place] = 0
        expected = oracle.cross_entropy(options | {"reduction": "none"}, logits, target)
        value, grad, hess = fx.CrossEntropy(**options, reduction="none").value_grad_hess(logits, target)
        assert_within(value, expected.value, expected.value_bound, "value")
        assert_within(grad, expected.grad, expected.grad_bound, "gradient")
        assert_within(hess, expected.hess, expected.hess_bound, "Hessian")


@pytest.mark.parametrize(("logit", "value"), [(3.0, 0), (-1e30, 0), (INF, 0), (-INF, NAN), (NAN, NAN)])
def test_one_class(dtype, logit, value):
    actual, grad, hess = fx.CrossEntropy(reduction="none").value_grad_hess(np.full((3, 1), logit, dtype), [0, 0, 0])
    np.testing.assert_array_equal(actual, [value] * 3)
    np.testing.assert_array_equal(grad, [[value]] * 3)
    np.testing.assert_array_equal(hess, [[value]] * 3)


@pytest.mark.parametrize("n_classes", [3, 17, 1000])
@pytest.mark.parametrize("bad", [[NAN, NAN, NAN], [INF, INF, 0], [-INF, -INF, -INF], [0, NAN, INF]], ids=str)
@pytest.mark.parametrize("inputs", ["logits", "log_probs", "probs"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_rows_that_do_not_count_are_never_looked_at(dtype, n_classes, bad, inputs, reduction):
    rng = np.random.default_rng(1)
    good = fx.softmax(random_logits(rng, (20, n_classes), dtype))
    index = rng.integers(0, 2, 20)
    unseen = [0, 5, 15, 16, 19]
    options = {"inputs": inputs, "reduction": reduction}
    logits = good.copy()
    logits[unseen] = -INF if inputs == "logits" else 0
    logits[unseen, :3] = bad
    weightless = np.ones(n_classes)
    weightless[2] = 0
    weight = np.ones(20)
    weight[unseen] = 0
    ways = {
        "ignored": (options | {"ignore_index": 2}, "index", None),
        "ignored one-hot": (options | {"ignore_index": 2}, "one_hot", None),
        "sample weight 0": (options, "index", weight),
        "class weight 0": (options | {"class_weight": weightless}, "index", None),
        "class weight 0, one-hot": (options | {"class_weight": weightless}, "one_hot", None),
        "no mass": (options, "massless", None),
        "ignored and smooth": (options | {"ignore_index": 2, "label_smoothing": 0.1}, "index", None),
        "sample weight 0 and smooth": (options | {"label_smoothing": 0.1}, "one_hot", weight),
    }
    for way, (way_options, kind, sample_weight) in ways.items():
        index_now = np.where(np.isin(np.arange(20), unseen), 2, index)
        target = index_now if kind == "index" else one_hot(index_now, n_classes, dtype)
        if kind == "massless":
            target[unseen] = 0
        results = fx.CrossEntropy(**way_options).value_grad_hess(logits, target, sample_weight)
        # The same with ordinary numbers there must not differ by a bit.
        expected = fx.CrossEntropy(**way_options).value_grad_hess(good, target, sample_weight)
        for a, b in zip(results, expected, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=way)
        assert np.all(results[1][unseen] == 0), way
        assert np.all(results[2][unseen] == 0), way
        if reduction == "none":
            assert np.all(results[0][unseen] == 0), way


# --- log_probs and probs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [3, 20])
def test_log_probs_at_their_ends(dtype, n_classes):
    x = np.full((4, n_classes), -1, dtype)
    x[0, 0] = -INF  # mass here: infinite loss, finite gradient
    x[1, 1] = -INF  # no mass here
    x[2, 2] = NAN  # no mass here either, but NaN spoils the row
    value, grad, hess = fx.CrossEntropy(inputs="log_probs", reduction="none").value_grad_hess(x, [0, 0, 0, 0])
    np.testing.assert_array_equal(value, [INF, 1, NAN, 1])
    expected = np.zeros((4, n_classes))
    expected[:, 0] = -1
    expected[2] = NAN
    np.testing.assert_array_equal(grad, expected)
    np.testing.assert_array_equal(hess, np.where(np.isnan(expected), NAN, 0))


@pytest.mark.parametrize("n_classes", [3, 20])
def test_probs_at_their_ends(dtype, n_classes):
    x = np.full((5, n_classes), 0.5, dtype)
    x[0, 0] = 0  # mass here: everything is infinite
    x[1, 1] = 0  # no mass here
    x[2, 2] = NAN
    x[4, 0] = -0.0  # zero, whatever its sign
    value, grad, hess = fx.CrossEntropy(inputs="probs", reduction="none").value_grad_hess(x, [0, 0, 0, 0, 0])
    np.testing.assert_allclose(value, [INF, LOG_2, NAN, LOG_2, INF], rtol=4 * float(np.finfo(dtype).eps))
    expected_grad, expected_hess = np.zeros((5, n_classes)), np.zeros((5, n_classes))
    expected_grad[:, 0] = [-INF, -2, NAN, -2, -INF]
    expected_hess[:, 0] = [INF, 4, NAN, 4, INF]
    expected_grad[2] = expected_hess[2] = NAN
    np.testing.assert_array_equal(grad, expected_grad)
    np.testing.assert_array_equal(hess, expected_hess)


@pytest.mark.parametrize("inputs", ["log_probs", "probs"])
def test_masked_inputs_get_no_smoothing_mass(dtype, inputs):
    # Of four classes two are masked, so the smoothing is over the other two: t~ = (.75, 0, .25, 0).
    x = np.array([[0.5, 0, 0.125, 0]], dtype)
    with np.errstate(divide="ignore"):
        x = x if inputs == "probs" else np.log2(x)
    value, grad, _ = fx.CrossEntropy(inputs=inputs, label_smoothing=0.5).value_grad_hess(x, [0])
    close = 8 * float(np.finfo(dtype).eps)
    assert value == pytest.approx((0.75 * 1 + 0.25 * 3) * (LOG_2 if inputs == "probs" else 1), rel=close)
    expected = [-0.75, 0, -0.25, 0] if inputs == "log_probs" else [-1.5, 0, -2, 0]
    np.testing.assert_allclose(grad, [expected], rtol=close)


@pytest.mark.parametrize("n_classes", [2, 3, 6, 10, 34, 101, 1001])
def test_sums_of_subnormal_numbers_lose_half_a_unit_of_each(n_classes):
    # exp(-100) is 26.5 units of float32, and becomes 27 of them.
    logits = np.zeros((1, n_classes), np.float32)
    logits[0, 0] = 100
    unit = float(np.finfo(np.float32).smallest_subnormal)
    expected = (n_classes - 1) * np.exp(-100.0) / unit
    value, grad = fx.CrossEntropy(reduction="none").value_and_grad(logits, [0])
    assert abs(float(value[0]) / unit - expected) <= (n_classes - 1) / 2 + 2
    assert abs(-float(grad[0, 0]) / unit - expected) <= (n_classes - 1) / 2 + 2
