"""Every option alone by hand, then all of them composed at random against the reference in higher precision."""

import math

import numpy as np
import oracle
import pytest
from arrays import LAYOUTS, SCALES, nasty_logits, one_hot, random_logits, random_probabilities
from tolerances import OPTIONS, REORDERED, assert_within, eps

import fastxent as fx
from fastxent import _reference as reference

pytestmark = pytest.mark.usefixtures("isa")

INDEX_DTYPES = (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)
LOG_2 = math.log(2)


def results_of(options, *arguments):
    return fx.CrossEntropy(**options).value_grad_hess(*arguments)


def assert_same_bits(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, b)


# --- targets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index_dtype", INDEX_DTYPES)
@pytest.mark.parametrize("n_classes", [3, 100])
def test_every_index_dtype_means_the_same(dtype, index_dtype, n_classes):
    rng = np.random.default_rng(0)
    logits = random_logits(rng, (33, n_classes), dtype)
    target = rng.integers(0, n_classes, 33)
    for layout in ("C", "strided", "reversed", "misaligned", "read_only", "byte_swapped"):
        stored = LAYOUTS[layout](target.astype(index_dtype))
        assert_same_bits(results_of({}, logits, stored), results_of({}, logits, target))


def test_boolean_targets_are_classes_0_and_1(dtype):
    logits = random_logits(np.random.default_rng(1), (9, 2), dtype)
    target = np.arange(9) % 2
    assert_same_bits(results_of({}, logits, target.astype(bool)), results_of({}, logits, target))


def test_lists_are_arrays():
    assert_same_bits(
        results_of({}, [[1, 2], [3, 5]], [0, 1]), results_of({}, np.array([[1.0, 2], [3, 5]]), np.array([0, 1]))
    )
    assert results_of({}, [[1, 2], [3, 5]], [0, 1])[1].dtype == np.float64
    assert_same_bits(
        results_of({}, [[True, False]], [[0.5, 0.5]]), results_of({}, np.array([[1.0, 0]]), np.array([[0.5, 0.5]]))
    )


@pytest.mark.parametrize("target_dtype", [np.float32, np.float64])
def test_probabilities_may_have_the_other_dtype(dtype, target_dtype):
    rng = np.random.default_rng(2)
    logits = random_logits(rng, (17, 5), dtype)
    target = (
        np.round(random_probabilities(rng, (17, 5), np.float64) * 1024).astype(target_dtype) / 1024
    )  # exact in both
    assert_same_bits(results_of({}, logits, target), results_of({}, logits, target.astype(dtype)))


def test_probabilities_need_not_sum_to_1(dtype):
    # u = (2, 1): W = 3, value 2 log 2 + log 2, gradient 3 / 2 - u.
    value, grad, hess = results_of({"reduction": "sum"}, np.zeros((1, 2), dtype), np.array([[2, 1]], dtype))
    assert value == pytest.approx(3 * LOG_2, rel=OPTIONS * eps(dtype))
    assert grad.tolist() == [[-0.5, 0.5]]
    assert hess.tolist() == [[0.75, 0.75]]


def test_mass_that_is_nearly_all_in_one_class_keeps_its_digits(dtype):
    # pW - u would lose the gradient of the sure class: p = 1 - 1e-9, u = 1 there, and a sliver of mass elsewhere.
    logits = np.array([[20, 0, 0]], dtype)
    sliver = 1e-12
    _, grad, _ = results_of({}, logits, np.array([[1, sliver, 0]], dtype))
    expected = oracle.cross_entropy({}, logits, np.array([[1, sliver, 0]], dtype))
    # Elements differ from the reference by eps of their own size: the two parts of each have very different sizes.
    np.testing.assert_allclose(grad, np.asarray(expected.grad, np.float64), rtol=(OPTIONS + 20) * eps(dtype))


# --- class weights ----------------------------------------------------------------------------------------------------


def test_class_weights_by_hand(dtype):
    # Rows of class 0 (weight 1) and class 1 (weight 3): mean = (1 + 3) log 2 / (1 + 3).
    logits = np.zeros((2, 2), dtype)
    value, grad, hess = results_of({"class_weight": [1, 3]}, logits, [0, 1])
    assert value == pytest.approx(LOG_2, rel=OPTIONS * eps(dtype))
    np.testing.assert_allclose(grad, [[-0.125, 0.125], [0.375, -0.375]], rtol=OPTIONS * eps(dtype))
    np.testing.assert_allclose(hess, [[0.0625, 0.0625], [0.1875, 0.1875]], rtol=OPTIONS * eps(dtype))
    per_row = results_of({"class_weight": [1, 3], "reduction": "none"}, logits, [0, 1])[0]
    np.testing.assert_allclose(per_row, [LOG_2, 3 * LOG_2], rtol=OPTIONS * eps(dtype))


def test_weights_as_dict_list_and_array_are_the_same(dtype):
    logits = random_logits(np.random.default_rng(3), (6, 3), dtype)
    target = [0, 1, 2, 2, 1, 0]
    expected = results_of({"class_weight": np.array([1.0, 0.25, 4.0])}, logits, target)
    assert_same_bits(results_of({"class_weight": [1, 0.25, 4]}, logits, target), expected)
    assert_same_bits(results_of({"class_weight": {2: 4, 1: 0.25}}, logits, target), expected)
    assert_same_bits(results_of({"class_weight": {np.int64(2): np.float32(4), 1: 0.25}}, logits, target), expected)
    assert_same_bits(results_of({"class_weight": np.float32([1, 0.25, 4])}, logits, target), expected)
    assert_same_bits(results_of({"class_weight": {}}, logits, target), results_of({}, logits, target))


@pytest.mark.parametrize("target_kind", ["index", "one_hot"])
def test_balanced_weights_come_from_the_rows_that_count(dtype, target_kind):
    rng = np.random.default_rng(4)
    logits = random_logits(rng, (10, 4), dtype)
    target = np.array([0, 0, 0, 0, 0, 0, 1, 1, 3, 3])  # class 2 has no samples
    ignored = 3
    weight = [8 / (4 * 6), 8 / (4 * 2), 0, 0]  # of the 8 rows left, by n / (n_classes * counts)
    given = target if target_kind == "index" else one_hot(target, 4, dtype)
    sample_weight = rng.uniform(0, 2, 10)  # takes no part in the counts
    actual = results_of({"class_weight": "balanced", "ignore_index": ignored}, logits, given, sample_weight)
    expected = results_of({"class_weight": weight, "ignore_index": ignored}, logits, given, sample_weight)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=OPTIONS * eps(dtype))


def test_balanced_class_weight_function():
    assert fx.balanced_class_weight([0, 0, 1, 2], 3).tolist() == [4 / 6, 4 / 3, 4 / 3]
    assert fx.balanced_class_weight(np.array([[0, 2], [2, 2]], np.uint8), 3).tolist() == [4 / 3, 0, 4 / 9]
    assert fx.balanced_class_weight([[0.5, 0.5], [1.0, 0.0]], 2).tolist() == [2 / (2 * 1.5), 2 / (2 * 0.5)]
    assert fx.balanced_class_weight(np.zeros(0, np.int64), 2).tolist() == [0, 0]
    assert fx.balanced_class_weight([0], 1).dtype == np.float64


# --- sample weights ---------------------------------------------------------------------------------------------------


def test_sample_weights_by_hand(dtype):
    logits = np.zeros((2, 2), dtype)
    assert results_of({"reduction": "sum"}, logits, [0, 1], [2, 0.5])[0] == pytest.approx(
        2.5 * LOG_2, rel=OPTIONS * eps(dtype)
    )
    value, grad, _ = results_of({}, logits, [0, 1], [2, 0.5])
    assert value == pytest.approx(LOG_2, rel=OPTIONS * eps(dtype))
    np.testing.assert_allclose(grad, [[-0.4, 0.4], [0.1, -0.1]], rtol=OPTIONS * eps(dtype))


@pytest.mark.parametrize("weight_dtype", [np.float32, np.float64, np.int32, np.int64, bool])
def test_sample_weights_of_any_real_dtype(dtype, weight_dtype):
    rng = np.random.default_rng(5)
    logits = random_logits(rng, (33, 3), dtype)
    target = rng.integers(0, 3, 33)
    weight = rng.integers(0, 2, 33)
    assert_same_bits(
        results_of({}, logits, target, weight.astype(weight_dtype)),
        results_of({}, logits, target, weight.astype(float)),
    )


def test_one_weight_per_sample_is_spread_over_its_elements(dtype):
    rng = np.random.default_rng(6)
    logits = random_logits(rng, (4, 3, 5), dtype)
    target = rng.integers(0, 3, (4, 5))
    weight = rng.uniform(0, 2, 4)
    full = np.broadcast_to(weight[:, None], (4, 5))
    assert_same_bits(results_of({"axis": 1}, logits, target, weight), results_of({"axis": 1}, logits, target, full))
    # The class axis first: samples are then along the second axis of the logits, the first that remains.
    logits = np.moveaxis(logits, 1, 0)
    assert_same_bits(results_of({"axis": 0}, logits, target, weight), results_of({"axis": 0}, logits, target, full))


def test_huge_and_tiny_sample_weights(dtype):
    # Their ratio is what counts in a mean: neither end may overflow or vanish on the way to it.
    logits = random_logits(np.random.default_rng(7), (5, 3), dtype)
    target = [0, 1, 2, 0, 1]
    weight = np.array([1, 2, 3, 4, 5])
    expected = results_of({}, logits, target, weight)
    for factor in (1e-300, 1e300):
        for a, b in zip(results_of({}, logits, target, factor * weight), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=OPTIONS * eps(dtype))


# --- ignored rows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ignore_index", [-100, -1, 1, 7, 255])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("n_classes", [3, 40])
def test_ignored_rows_are_as_if_deleted(dtype, ignore_index, reduction, n_classes):
    rng = np.random.default_rng(8)
    logits = random_logits(rng, (33, n_classes), dtype)
    target = rng.integers(0, 3, 33)
    target[rng.random(33) < 0.3] = ignore_index
    kept = target != ignore_index
    options = {"reduction": reduction, "class_weight": np.linspace(0.5, 2, n_classes), "label_smoothing": 0.1}
    value, grad, hess = results_of(options | {"ignore_index": ignore_index}, logits, target)
    kept_value, kept_grad, kept_hess = results_of(options, logits[kept], target[kept])
    close = {"rtol": REORDERED * eps(dtype)}
    np.testing.assert_allclose(value[kept] if reduction == "none" else value, kept_value, **close)
    # With smoothing, p W and u may nearly cancel; the divisor, a sum in another order, is as exact as they are.
    np.testing.assert_allclose(grad[kept], kept_grad, **close, atol=close["rtol"] * np.abs(kept_grad).max())
    np.testing.assert_allclose(hess[kept], kept_hess, **close)
    assert np.all(grad[~kept] == 0)
    assert np.all(hess[~kept] == 0)
    if reduction == "none":
        assert np.all(value[~kept] == 0)


def test_ignore_index_does_not_wrap_in_unsigned_targets(dtype):
    # -1 is not 255, and 2**64 - 1 is not -1.
    logits = np.zeros((2, 300), dtype)
    value = fx.CrossEntropy(ignore_index=-1, reduction="none")(logits, np.array([255, 0], np.uint8))
    assert np.all(value > 0)
    with pytest.raises(ValueError, match="18446744073709551615"):
        fx.CrossEntropy(ignore_index=-1)(logits, np.array([2**64 - 1, 0], np.uint64))


def test_ignored_distributions_are_one_hot_at_the_ignored_class(dtype):
    logits = random_logits(np.random.default_rng(9), (4, 3), dtype)
    target = np.array([[0, 1, 0], [0, 0.3, 0], [0.5, 0.5, 0], [0, 0, 0]], dtype)
    loss = fx.CrossEntropy(ignore_index=1, reduction="none", label_smoothing=0.1)
    value, grad, _ = loss.value_grad_hess(logits, target)
    assert value[:2].tolist() == [0, 0]
    assert np.all(grad[:2] == 0)
    # Half the mass elsewhere counts; a row without mass still pays for its smoothing.
    plain = fx.CrossEntropy(reduction="none", label_smoothing=0.1)(logits, target)
    assert np.all(plain > 0)
    np.testing.assert_array_equal(value[2:], plain[2:])
    # Outside the classes it means nothing for distributions.
    np.testing.assert_array_equal(
        fx.CrossEntropy(ignore_index=-100, reduction="none", label_smoothing=0.1)(logits, target), plain
    )


@pytest.mark.parametrize(
    "options", [{"ignore_index": 1}, {"class_weight": [1, 0, 1]}, {"class_weight": {1: 0.0}}], ids=str
)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_nothing_counted_is_zero(dtype, options, reduction):
    logits = np.full((3, 3), np.nan, dtype)
    value, grad, hess = results_of(options | {"reduction": reduction}, logits, [1, 1, 1])
    assert np.all(np.asarray(value) == 0)
    assert np.all(grad == 0)
    assert np.all(hess == 0)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_no_rows(dtype, reduction):
    value, grad, hess = results_of(
        {"reduction": reduction, "class_weight": "balanced"}, np.zeros((0, 3), dtype), np.zeros(0, int)
    )
    assert grad.shape == hess.shape == (0, 3)
    if reduction == "none":
        assert value.shape == (0,)
    else:
        assert value == 0.0


# --- smoothing --------------------------------------------------------------------------------------------------------


def test_smoothing_is_smoothed_probabilities(dtype):
    rng = np.random.default_rng(10)
    logits = random_logits(rng, (17, 4), dtype)
    target = rng.integers(0, 4, 17)
    smooth = (0.9 * one_hot(target, 4, np.float64) + 0.025).astype(dtype)
    for a, b in zip(results_of({"label_smoothing": 0.1}, logits, target), results_of({}, logits, smooth), strict=True):
        np.testing.assert_allclose(a, b, rtol=REORDERED * eps(dtype), atol=REORDERED * eps(dtype) / 17)


def test_masked_classes_get_no_smoothing_mass(dtype):
    # Three classes of which one is masked are two classes.
    rng = np.random.default_rng(11)
    logits = random_logits(rng, (17, 3), dtype)
    target = rng.integers(0, 2, 17) * 2
    masked = logits.copy()
    masked[:, 1] = -np.inf
    value, grad, hess = results_of({"label_smoothing": 0.2, "class_weight": [2, 5, 1]}, masked, target)
    value_2, grad_2, hess_2 = results_of(
        {"label_smoothing": 0.2, "class_weight": [2, 1]}, logits[:, [0, 2]], target // 2
    )
    assert value == pytest.approx(value_2, rel=REORDERED * eps(dtype))
    close = {"rtol": REORDERED * eps(dtype), "atol": REORDERED * eps(dtype) / 17}
    np.testing.assert_allclose(grad[:, [0, 2]], grad_2, **close)
    np.testing.assert_allclose(hess[:, [0, 2]], hess_2, **close)
    assert np.all(grad[:, 1] == 0)
    assert np.all(hess[:, 1] == 0)


def test_full_smoothing_forgets_the_target(dtype):
    logits = random_logits(np.random.default_rng(12), (5, 4), dtype)
    first = results_of({"label_smoothing": 1.0}, logits, [0, 0, 0, 0, 0])
    assert_same_bits(results_of({"label_smoothing": 1}, logits, [3, 2, 1, 0, 3]), first)


# --- inputs -----------------------------------------------------------------------------------------------------------


def test_log_probs_by_hand(dtype):
    log_p = np.array([[-1, -2], [-4, -8]], dtype)  # nothing is normalised
    value, grad, hess = results_of({"inputs": "log_probs"}, log_p, [0, 1])
    assert value == (1 + 8) / 2
    assert grad.tolist() == [[-0.5, 0], [0, -0.5]]
    assert hess.tolist() == [[0, 0], [0, 0]]


def test_probs_by_hand(dtype):
    p = np.array([[0.5, 0.25], [2, 4]], dtype)  # neither renormalised nor clipped
    value, grad, hess = results_of({"inputs": "probs", "reduction": "none"}, p, [1, 0])
    np.testing.assert_allclose(value, [2 * LOG_2, -LOG_2], rtol=OPTIONS * eps(dtype))
    assert grad.tolist() == [[0, -4], [-0.5, 0]]
    assert hess.tolist() == [[0, 16], [0.25, 0]]


def test_log_probs_and_probs_give_the_value_of_their_logits(dtype):
    logits = random_logits(np.random.default_rng(13), (9, 6), dtype)
    target = np.arange(9) % 6
    for options in ({}, {"label_smoothing": 0.2, "class_weight": [1, 2, 3, 1, 2, 3]}):
        value = fx.CrossEntropy(**options)(logits, target)
        log_p, p = fx.log_softmax(logits), fx.softmax(logits)
        assert fx.CrossEntropy(**options, inputs="log_probs")(log_p, target) == pytest.approx(
            value, rel=REORDERED * eps(dtype)
        )
        assert fx.CrossEntropy(**options, inputs="probs")(p, target) == pytest.approx(value, rel=REORDERED * eps(dtype))


# --- all of them ------------------------------------------------------------------------------------------------------

# Shapes with one row, ragged blocks of 16, more axes; few, some and many classes. The class axis is put in later.
ROW_SHAPES = ((), (1,), (7,), (16,), (33,), (100,), (3, 5), (2, 17), (2, 3, 5))
CLASSES = (1, 2, 3, 5, 8, 10, 16, 17, 33, 65, 100, 300)


def random_case(rng, dtype):
    """(options, logits, target, sample_weight) with each option on or off independently of the others."""

    def choose(choices):
        return choices[rng.integers(len(choices))]

    n_classes, rows = choose(CLASSES), choose(ROW_SHAPES)
    axis = int(rng.integers(-len(rows) - 1, len(rows) + 1))
    options = {
        "axis": axis,
        "reduction": choose(("none", "sum", "mean")),
        "inputs": choose(("logits",) * 3 + ("log_probs", "probs")),
    }
    if rows == ():
        logits = random_logits(rng, n_classes, dtype, choose(SCALES))
    else:
        logits = nasty_logits(rng, int(np.prod(rows)), n_classes, dtype).reshape(*rows, n_classes)
    if rng.random() < 0.3:  # masks
        logits[(rng.random(logits.shape) < 0.2) & (np.arange(n_classes) > 0)] = -np.inf
    if options["inputs"] != "logits":
        logits = (reference.log_softmax if options["inputs"] == "log_probs" else reference.softmax)(logits)
    target = rng.integers(0, n_classes, rows)
    if rng.random() < 0.5:
        options["ignore_index"] = choose((-100, -1, 0, 5))
        if options["ignore_index"] < 0:
            target = np.where(rng.random(rows) < 0.2, options["ignore_index"], target)
    if rng.random() < 0.4:
        options["label_smoothing"] = choose((1e-6, 0.1, 0.9, 1.0))
    options["class_weight"] = choose(
        (
            None,
            None,
            "balanced",
            {0: 3.5, n_classes - 1: 0.1},
            np.where(rng.random(n_classes) < 0.2, 0, rng.uniform(0, 3, n_classes)),
        )
    )
    n_samples = rows[:1]
    sample_weight = choose((None, None, rng.uniform(0, 2, rows), rng.uniform(0, 2, n_samples), np.zeros(rows)))
    if rng.random() < 0.5 and "ignore_index" not in options:
        target = random_probabilities(rng, logits.shape, dtype) * choose((1, 1, 3.0))
        target = np.moveaxis(target, -1, axis).astype(dtype)
    elif target.min(initial=0) >= 0:
        target = target.astype(choose((np.uint8, np.int32, np.int64, np.uint64))) if n_classes < 128 else target
    return options, LAYOUTS[choose(tuple(LAYOUTS))](np.moveaxis(logits, -1, axis)), target, sample_weight


@pytest.mark.parametrize("seed", range(200))
def test_all_options_composed(dtype, seed):
    # Reproduce one with its seed; 200 of them draw each pair of option values several times.
    options, logits, target, sample_weight = random_case(np.random.default_rng(seed), dtype)
    expected = oracle.cross_entropy(options, logits, target, sample_weight)
    value, grad, hess = fx.CrossEntropy(**options).value_grad_hess(logits, target, sample_weight)
    assert_within(value, expected.value, expected.value_bound, f"value of {options}")
    assert_within(grad, expected.grad, expected.grad_bound, f"gradient of {options}")
    assert_within(hess, expected.hess, expected.hess_bound, f"Hessian of {options}")
    if options["reduction"] == "none":
        assert value.dtype == dtype
    else:
        assert isinstance(value, float)
