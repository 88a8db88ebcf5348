"""`FocalLoss`: every option alone, then all of them composed at random against the reference in higher precision."""

import numpy as np
import oracle
import pytest
from arrays import LAYOUTS, SCALES, nasty_logits, one_hot, random_logits, random_probabilities
from tolerances import OPTIONS, REORDERED, assert_same_bits, eps

import fastxent as fx

pytestmark = pytest.mark.usefixtures("isa")

INTEGERS = (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)
# Short cuts and a power.
GAMMAS = (1, 2, 3.5)


def results_of(options, *arguments):
    return fx.FocalLoss(**options).value_grad_hess(*arguments)


# --- targets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [3, 100])
def test_every_index_dtype_means_the_same(dtype, n_classes):
    rng = np.random.default_rng(0)
    logits, target = random_logits(rng, (33, n_classes), dtype), rng.integers(0, n_classes, 33)
    expected = results_of({}, logits, target)
    for index_dtype in INTEGERS:
        for layout in ("C", "strided", "reversed", "misaligned", "read_only", "byte_swapped"):
            assert_same_bits(results_of({}, logits, LAYOUTS[layout](target.astype(index_dtype))), expected)


def test_boolean_targets_are_classes_0_and_1(dtype):
    logits, target = random_logits(np.random.default_rng(1), (9, 2), dtype), np.arange(9) % 2
    assert_same_bits(results_of({}, logits, target.astype(bool)), results_of({}, logits, target))


@pytest.mark.parametrize("target_dtype", [np.float16, np.float32, np.float64, np.longdouble])
def test_probabilities_may_have_another_dtype(dtype, target_dtype):
    rng = np.random.default_rng(2)
    logits = random_logits(rng, (17, 5), dtype)
    target = np.round(random_probabilities(rng, (17, 5), np.float64) * 1024) / 1024  # exact in all of them
    assert_same_bits(results_of({}, logits, target.astype(target_dtype)), results_of({}, logits, target.astype(dtype)))


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("n_classes", [3, 40])
def test_one_hot_is_its_index(dtype, gamma, n_classes):
    rng = np.random.default_rng(3)
    logits, index = random_logits(rng, (33, n_classes), dtype, 4.0), rng.integers(0, n_classes, 33)
    for options in ({}, {"reduction": "sum", "class_weight": np.linspace(0.5, 2, n_classes)}):
        from_index = results_of(options | {"gamma": gamma}, logits, index)
        from_one_hot = results_of(options | {"gamma": gamma}, logits, one_hot(index, n_classes, dtype))
        # Two computations of one number, each of which (1 - p)^gamma magnifies.
        allowed = (1 + gamma) * REORDERED * eps(dtype)
        for a, b in zip(from_index[:2], from_one_hot[:2], strict=True):
            np.testing.assert_allclose(a, b, rtol=allowed)
        np.testing.assert_allclose(from_index[2], from_one_hot[2], rtol=allowed, atol=allowed * (1 + gamma) ** 2)


def test_probabilities_need_not_sum_to_1(dtype):
    # u = (2, 1) and p = 1/2: three times the loss of one unit of mass.
    value, grad, _ = results_of({"reduction": "sum", "gamma": 1}, np.zeros((1, 2), dtype), np.array([[2, 1]], dtype))
    assert value == pytest.approx(1.5 * np.log(2), rel=OPTIONS * eps(dtype))
    a = 0.5 * (np.log(2) + 1)  # q (p L / q + 1)
    np.testing.assert_allclose(grad, [[-a / 2, a / 2]], rtol=OPTIONS * eps(dtype))


# --- weights and ignored rows -----------------------------------------------------------------------------------------


def test_weights_as_dict_list_and_array_are_the_same(dtype):
    logits, target = random_logits(np.random.default_rng(4), (6, 3), dtype), [0, 1, 2, 2, 1, 0]
    expected = results_of({"class_weight": np.array([1.0, 0.25, 4.0])}, logits, target)
    for weights in ([1, 0.25, 4], {2: 4, 1: 0.25}, np.float32([1, 0.25, 4])):
        assert_same_bits(results_of({"class_weight": weights}, logits, target), expected)


@pytest.mark.parametrize("kind", ["index", "one_hot"])
def test_balanced_weights_come_from_the_rows_that_count(dtype, kind):
    logits = random_logits(np.random.default_rng(5), (10, 4), dtype)
    target = np.array([0, 0, 0, 0, 0, 0, 1, 1, 3, 3])  # class 2 has no samples, 3 is ignored
    given = target if kind == "index" else one_hot(target, 4, dtype)
    balanced = results_of({"class_weight": "balanced", "ignore_index": 3}, logits, given)
    by_hand = results_of({"class_weight": [8 / 24, 8 / 8, 0, 0], "ignore_index": 3}, logits, given)
    for a, b in zip(balanced, by_hand, strict=True):
        np.testing.assert_allclose(a, b, rtol=OPTIONS * eps(dtype))


def test_one_weight_per_sample_is_spread_over_its_elements(dtype):
    rng = np.random.default_rng(6)
    logits, target = random_logits(rng, (4, 3, 5), dtype), rng.integers(0, 3, (4, 5))
    weight = rng.uniform(0, 2, 4)
    full = np.broadcast_to(weight[:, None], (4, 5))
    assert_same_bits(results_of({"axis": 1}, logits, target, weight), results_of({"axis": 1}, logits, target, full))


@pytest.mark.parametrize("weight_dtype", [np.float32, np.float64, np.int32, bool])
def test_sample_weights_of_any_real_dtype(dtype, weight_dtype):
    rng = np.random.default_rng(7)
    logits, target, weight = random_logits(rng, (33, 3), dtype), rng.integers(0, 3, 33), rng.integers(0, 2, 33)
    expected = results_of({}, logits, target, weight.astype(float))
    assert_same_bits(results_of({}, logits, target, weight.astype(weight_dtype)), expected)


def test_huge_and_tiny_sample_weights(dtype):
    logits, target = random_logits(np.random.default_rng(8), (5, 3), dtype), [0, 1, 2, 0, 1]
    weight = np.array([1, 2, 3, 4, 5])
    expected = results_of({}, logits, target, weight)
    for factor in (1e-300, 1e300):
        for a, b in zip(results_of({}, logits, target, factor * weight), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=OPTIONS * eps(dtype))


@pytest.mark.parametrize("ignore_index", [-100, 0, 1, 255])
@pytest.mark.parametrize("n_classes", [3, 40])
def test_ignored_rows_are_as_if_deleted(dtype, ignore_index, n_classes):
    for reduction in ("none", "sum", "mean"):
        check_ignored(dtype, ignore_index, reduction, n_classes)


def check_ignored(dtype, ignore_index, reduction, n_classes):
    rng = np.random.default_rng(9)
    logits, target = random_logits(rng, (33, n_classes), dtype), rng.integers(0, 3, 33)
    target[rng.random(33) < 0.3] = ignore_index
    kept = target != ignore_index
    logits[~kept] = np.nan  # never looked at
    options = {"reduction": reduction, "class_weight": np.linspace(0.5, 2, n_classes), "label_smoothing": 0.1}
    value, grad, hess = results_of(options | {"ignore_index": ignore_index}, logits, target)
    kept_value, kept_grad, kept_hess = results_of(options, logits[kept], target[kept])
    close = {"rtol": REORDERED * eps(dtype)}
    np.testing.assert_allclose(value[kept] if reduction == "none" else value, kept_value, **close)
    np.testing.assert_allclose(grad[kept], kept_grad, **close)
    np.testing.assert_allclose(hess[kept], kept_hess, **close)
    assert not grad[~kept].any()
    assert not hess[~kept].any()


def test_ignored_distributions_are_one_hot_at_the_ignored_class(dtype):
    logits = random_logits(np.random.default_rng(10), (4, 3), dtype)
    target = np.array([[0, 1, 0], [0, 0.3, 0], [0.5, 0.5, 0], [0, 0, 0]], dtype)
    value, grad, _ = results_of({"ignore_index": 1, "reduction": "none", "label_smoothing": 0.1}, logits, target)
    assert not value[:2].any()
    assert not grad[:2].any()
    plain = fx.FocalLoss(reduction="none", label_smoothing=0.1)(logits, target)
    np.testing.assert_array_equal(value[2:], plain[2:])
    assert np.all(plain > 0)


@pytest.mark.parametrize("options", [{"ignore_index": 1}, {"class_weight": [1, 0, 1]}], ids=str)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_nothing_counted_is_zero(dtype, options, reduction):
    for result in results_of(options | {"reduction": reduction}, np.full((3, 3), np.nan, dtype), [1, 1, 1]):
        assert not np.asarray(result).any()


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_no_rows(dtype, reduction):
    value, grad, hess = results_of({"reduction": reduction}, np.zeros((0, 3), dtype), np.zeros(0, int))
    assert grad.shape == hess.shape == (0, 3)
    assert np.shape(value) == ((0,) if reduction == "none" else ())
    assert not np.asarray(value).any()


# --- smoothing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", GAMMAS)
def test_smoothing_is_smoothed_probabilities(dtype, gamma):
    rng = np.random.default_rng(11)
    logits, target = random_logits(rng, (17, 4), dtype), rng.integers(0, 4, 17)
    smooth = (0.9 * one_hot(target, 4, np.float64) + 0.025).astype(dtype)
    from_index = results_of({"label_smoothing": 0.1, "gamma": gamma}, logits, target)
    allowed = (1 + gamma) * REORDERED * eps(dtype)
    for a, b in zip(from_index, results_of({"gamma": gamma}, logits, smooth), strict=True):
        np.testing.assert_allclose(a, b, rtol=allowed, atol=allowed / 17)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("n_classes", [3, 17, 40])
def test_masked_classes_are_as_if_deleted(dtype, gamma, n_classes):
    # They get no smoothing mass, and change nobody's probability.
    rng = np.random.default_rng(12)
    logits = random_logits(rng, (17, n_classes), dtype)
    kept = np.arange(n_classes) % 3 != 1
    masked = np.where(kept, logits, -np.inf).astype(dtype)
    position = rng.integers(0, kept.sum(), 17)
    weights = np.linspace(0.5, 2, n_classes)
    options = {"label_smoothing": 0.2, "gamma": gamma}
    value, grad, hess = results_of(options | {"class_weight": weights}, masked, np.flatnonzero(kept)[position])
    expected = results_of(options | {"class_weight": weights[kept]}, logits[:, kept], position)
    allowed = (1 + gamma) * REORDERED * eps(dtype)
    assert value == pytest.approx(expected[0], rel=allowed)
    np.testing.assert_allclose(grad[:, kept], expected[1], rtol=allowed, atol=allowed / 17)
    np.testing.assert_allclose(hess[:, kept], expected[2], rtol=allowed, atol=allowed * (1 + gamma) ** 2 / 17)
    assert not grad[:, ~kept].any()
    assert not hess[:, ~kept].any()


def test_full_smoothing_forgets_the_target(dtype):
    logits = random_logits(np.random.default_rng(13), (5, 4), dtype)
    first = results_of({"label_smoothing": 1.0}, logits, [0, 0, 0, 0, 0])
    assert_same_bits(results_of({"label_smoothing": 1}, logits, [3, 2, 1, 0, 3]), first)


# --- gamma ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0, 1, 2])
@pytest.mark.parametrize("kind", ["index", "probabilities"])
def test_gammas_without_a_power_are_powers(dtype, gamma, kind):
    rng = np.random.default_rng(14)
    logits, target = random_logits(rng, (100, 5), dtype, 3.0), rng.integers(0, 5, 100)
    if kind == "probabilities":
        target = random_probabilities(rng, (100, 5), dtype)
    step = 1e-12
    short = results_of({"gamma": gamma, "reduction": "none"}, logits, target)
    long = results_of({"gamma": gamma + step, "reduction": "none"}, logits, target)
    # Two roundings of a power, whose logarithm is at most 25 here, and the step itself.
    allowed = (2 * (OPTIONS + 4 * gamma + 25 * (1 + gamma)) * eps(dtype) + 25 * step) * 4
    for a, b in zip(short, long, strict=True):
        np.testing.assert_allclose(b, a, rtol=allowed, atol=allowed)


def test_gamma_0_is_cross_entropy_under_every_option(dtype):
    for seed in range(30):
        options, *arguments = random_case(np.random.default_rng(seed), dtype)
        del options["gamma"]
        plain = fx.CrossEntropy(**options).value_grad_hess(*arguments)
        assert_same_bits(results_of(options | {"gamma": 0}, *arguments), plain)


# --- all of them ------------------------------------------------------------------------------------------------------

ROW_SHAPES = ((), (1,), (7,), (16,), (33,), (3, 5), (2, 17), (2, 3, 5))
CLASSES = (1, 2, 3, 5, 8, 10, 16, 17, 33, 100, 300)


def random_case(rng, dtype):
    """(options, logits, target, sample_weight) with each option on or off independently of the others."""

    def choose(choices):
        return choices[rng.integers(len(choices))]

    n_classes, rows = choose(CLASSES), choose(ROW_SHAPES)
    axis = int(rng.integers(-len(rows) - 1, len(rows) + 1))
    options = {
        "gamma": choose((0, 1e-10, 0.5, 1, 2, 3.5, 5)),
        "axis": axis,
        "reduction": choose(("none", "sum", "mean")),
        "class_weight": choose((None, None, "balanced", {0: 3.5}, rng.uniform(0, 3, n_classes))),
    }
    if rows == ():
        logits = random_logits(rng, n_classes, dtype, choose(SCALES))
    else:
        logits = nasty_logits(rng, int(np.prod(rows)), n_classes, dtype).reshape(*rows, n_classes)
    if rng.random() < 0.3:  # masks
        logits[(rng.random(logits.shape) < 0.2) & (np.arange(n_classes) > 0)] = -np.inf
    target = rng.integers(0, n_classes, rows)
    if rng.random() < 0.5:
        options["ignore_index"] = choose((-100, -1, 0, 5))
        if options["ignore_index"] < 0:
            target = np.where(rng.random(rows) < 0.2, options["ignore_index"], target)
    if rng.random() < 0.4:
        options["label_smoothing"] = choose((1e-6, 0.1, 0.9, 1.0))
    sample_weight = choose((None, None, rng.uniform(0, 2, rows), rng.uniform(0, 2, rows[:1]), np.zeros(rows)))
    if rng.random() < 0.5 and "ignore_index" not in options:
        target = np.moveaxis(random_probabilities(rng, logits.shape, dtype) * choose((1, 1, 3.0)), -1, axis)
        target = target.astype(dtype)
    return options, LAYOUTS[choose(tuple(LAYOUTS))](np.moveaxis(logits, -1, axis)), target, sample_weight


@pytest.mark.parametrize("first_seed", range(0, 120, 10))
def test_all_options_composed(dtype, first_seed):
    # The options of a failure are in its message.
    for seed in range(first_seed, first_seed + 10):
        options, logits, target, sample_weight = random_case(np.random.default_rng(seed), dtype)
        oracle.assert_as_expected("FocalLoss", options, logits, target, sample_weight)
