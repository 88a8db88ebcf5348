"""The losses of one logit: every option alone by hand, then all of them composed at random against the reference."""

import copy
import dataclasses
import inspect
import math
import pickle

import numpy as np
import oracle
import pytest
from arrays import HALVES, LAYOUTS, SCALES, binary_target, nasty_elements, random_logits
from tolerances import OPTIONS, REORDERED, assert_same_bits, eps

import fastxent as fx
from fastxent import _reference as reference

INTEGERS = (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)
LOSSES = ("BinaryCrossEntropy", "BinaryFocalLoss")
LOG_2 = math.log(2)

on_every_level = pytest.mark.usefixtures("isa")
each_loss = pytest.mark.parametrize("name", LOSSES)


def results_of(name, options, *arguments):
    return getattr(fx, name)(**options).value_grad_hess(*arguments)


# --- targets ----------------------------------------------------------------------------------------------------------


@on_every_level
@each_loss
def test_every_integer_dtype_means_the_same(dtype, name):
    rng = np.random.default_rng(0)
    z, target = random_logits(rng, 37, dtype), rng.integers(0, 2, 37)
    expected = results_of(name, {}, z, target.astype(bool))
    for integer in INTEGERS:
        for layout in ("C", "strided", "reversed", "misaligned", "read_only", "byte_swapped"):
            assert_same_bits(results_of(name, {}, z, LAYOUTS[layout](target.astype(integer))), expected)


@on_every_level
@each_loss
def test_whole_floats_are_integers(dtype, name):
    # The two ways a target can be stored lead to the same masses, so to the same bits.
    rng = np.random.default_rng(1)
    z, target = nasty_elements(rng, 100, dtype), rng.integers(0, 2, 100)
    expected = results_of(name, {"reduction": "none"}, z, target)
    for floating in (np.float16, np.float32, np.float64, np.longdouble):
        assert_same_bits(results_of(name, {"reduction": "none"}, z, target.astype(floating)), expected)


@on_every_level
@each_loss
def test_fractions_may_have_any_floating_dtype(dtype, name):
    rng = np.random.default_rng(2)
    z = random_logits(rng, 100, dtype)
    target = np.round(rng.random(100) * 64) / 64  # exact in all of them, bfloat16 too
    expected = results_of(name, {}, z, target.astype(dtype))
    for floating in (*HALVES.values(), np.float32, np.float64, np.longdouble):
        assert_same_bits(results_of(name, {}, z, target.astype(floating)), expected)


@on_every_level
@each_loss
def test_targets_next_to_0_and_1_keep_their_digits(dtype, name):
    # 1 - t is exact in the target's own dtype: what is missing to 1 must not be lost.
    tiny = np.finfo(dtype).epsneg
    t = np.array([0, np.finfo(dtype).tiny, tiny, 1 - tiny, 1 - 3 * tiny, 1], dtype)
    for z in (-30, -3, 0, 3, 30):
        oracle.assert_as_expected(name, {"reduction": "none"}, np.full(t.shape, z, dtype), t)


@each_loss
def test_lists_are_arrays(name):
    expected = results_of(name, {}, np.array([[1.0, -2], [3, 5]]), np.array([[0, 1], [1, 1]]))
    assert_same_bits(results_of(name, {}, [[1, -2], [3, 5]], [[0, 1], [1, 1]]), expected)
    assert_same_bits(results_of(name, {}, [[1, -2], [3, 5]], [[0.0, 1], [1, 1]]), expected)
    assert expected[1].dtype == np.float64
    assert_same_bits(results_of(name, {}, [True, False], [True, True]), results_of(name, {}, [1.0, 0.0], [1, 1]))
    assert_same_bits(results_of(name, {}, 2, 1), results_of(name, {}, np.float64(2), np.int8(1)))


# --- pos_weight -------------------------------------------------------------------------------------------------------


@on_every_level
def test_pos_weight_by_hand(dtype):
    z = np.zeros(3, dtype)
    value, grad, hess = results_of("BinaryCrossEntropy", {"pos_weight": 3, "reduction": "none"}, z, [1, 0, 0.5])
    np.testing.assert_allclose(value, [3 * LOG_2, LOG_2, 2 * LOG_2], rtol=OPTIONS * eps(dtype))
    np.testing.assert_allclose(grad, [-1.5, 0.5, -0.5], rtol=OPTIONS * eps(dtype))
    np.testing.assert_allclose(hess, [0.75, 0.25, 0.5], rtol=OPTIONS * eps(dtype))
    # It is not part of the mean's divisor.
    value = fx.BinaryCrossEntropy(pos_weight=3)(z, [1, 0, 0.5])
    assert value == pytest.approx(2 * LOG_2, rel=OPTIONS * eps(dtype))


@on_every_level
@pytest.mark.parametrize("shape", [(5,), (17, 5), (3, 4, 5), (9, 1), (0, 5)], ids=str)
def test_one_pos_weight_per_label(dtype, shape):
    rng = np.random.default_rng(3)
    z = random_logits(rng, shape, dtype, 3.0)
    weights = np.array([0.0, 0.5, 1, 2, 1e3])[: shape[-1]]
    for kind in ("int", "soft"):
        target = binary_target(rng, shape, kind, dtype)
        oracle.assert_as_expected("BinaryCrossEntropy", {"pos_weight": weights, "label_smoothing": 0.1}, z, target)
        # Label by label, the same with one number.
        together = results_of("BinaryCrossEntropy", {"pos_weight": weights, "reduction": "none"}, z, target)
        for label, weight in enumerate(weights):
            one = {"pos_weight": float(weight), "reduction": "none"}
            alone = results_of("BinaryCrossEntropy", one, z[..., label], target[..., label])
            for a, b in zip(alone, together, strict=True):
                np.testing.assert_array_equal(a, b[..., label])


@on_every_level
def test_pos_weight_per_label_of_every_layout(dtype, layout):
    # The labels are the last axis whatever the order in memory; of one weight per label, rows must not slip.
    rng = np.random.default_rng(4)
    z, target = random_logits(rng, (33, 7), dtype), rng.integers(0, 2, (33, 7))
    weights = rng.uniform(0, 3, 7)
    for order in ((0, 1), (1, 0)):
        stored = layout(np.ascontiguousarray(z.transpose(order))).transpose(order)
        expected = oracle.expected_of("BinaryCrossEntropy", {"pos_weight": weights}, z, target)
        results = results_of("BinaryCrossEntropy", {"pos_weight": layout(weights)}, stored, target)
        oracle.assert_results(results, expected)


def test_pos_weight_as_list_array_and_numbers_are_the_same():
    z, target = np.linspace(-2, 2, 6).reshape(3, 2), [[0, 1], [1, 1], [0, 0]]
    expected = results_of("BinaryCrossEntropy", {"pos_weight": [2, 0.5]}, z, target)
    for weights in ((2, 0.5), np.array([2, 0.5]), np.float32([2, 0.5]), np.array([4, 1])[::-1][::-1] / 2):
        assert_same_bits(results_of("BinaryCrossEntropy", {"pos_weight": weights}, z, target), expected)
    expected = results_of("BinaryCrossEntropy", {"pos_weight": 2.0}, z, target)
    for weight in (2, np.int8(2), np.float32(2), np.array(2.0), [2, 2]):
        assert_same_bits(results_of("BinaryCrossEntropy", {"pos_weight": weight}, z, target), expected)
    assert_same_bits(
        results_of("BinaryCrossEntropy", {"pos_weight": 1}, z, target), results_of("BinaryCrossEntropy", {}, z, target)
    )


# --- sample weights ---------------------------------------------------------------------------------------------------


@on_every_level
@each_loss
def test_sample_weights_by_hand(dtype, name):
    z = np.zeros((2, 2), dtype)
    target = [[0, 1], [1, 1]]
    one = LOG_2 if name == "BinaryCrossEntropy" else LOG_2 / 2
    options = {} if name == "BinaryCrossEntropy" else {"gamma": 1}
    losses, _, _ = results_of(name, options | {"reduction": "none"}, z, target, [2, 0.5])
    np.testing.assert_allclose(losses, one * np.array([[2, 2], [0.5, 0.5]]), rtol=OPTIONS * eps(dtype))
    value, grad, _ = results_of(name, options, z, target, [[3, 1], [0, 1]])
    assert value == pytest.approx(one, rel=OPTIONS * eps(dtype))
    np.testing.assert_allclose(np.abs(grad / grad[0, 1]), [[3, 1], [0, 1]], rtol=OPTIONS * eps(dtype))
    assert results_of(name, options | {"reduction": "sum"}, z, target, [2, 0.5])[0] == pytest.approx(
        5 * one, rel=OPTIONS * eps(dtype)
    )


@on_every_level
@each_loss
@pytest.mark.parametrize("shape", [(9,), (9, 4), (4, 3, 5), (2, 3, 4, 5)], ids=str)
def test_one_weight_per_sample_is_spread_over_its_elements(dtype, name, shape):
    rng = np.random.default_rng(5)
    z, target = random_logits(rng, shape, dtype), binary_target(rng, shape, "soft", dtype)
    weight = rng.uniform(0, 2, shape[:1])
    full = np.broadcast_to(weight.reshape(-1, *(1,) * (len(shape) - 1)), shape)
    for options in ({}, {"reduction": "none", "label_smoothing": 0.1}):
        per_row, per_element, copied = (
            results_of(name, options, z, target, w) for w in (weight, full, np.ascontiguousarray(full))
        )
        oracle.assert_results(per_row, oracle.expected_of(name, options, z, target, weight))
        for a, b, c in zip(per_row, per_element, copied, strict=True):
            np.testing.assert_allclose(a, b, rtol=REORDERED * eps(dtype), atol=0)
            np.testing.assert_allclose(a, c, rtol=REORDERED * eps(dtype), atol=0)


@on_every_level
@each_loss
def test_sample_weights_of_any_real_dtype(dtype, name):
    rng = np.random.default_rng(6)
    z, target, weight = random_logits(rng, (17, 3), dtype), rng.integers(0, 2, (17, 3)), rng.integers(0, 2, (17, 3))
    for w in (weight, weight[:, 0]):
        expected = results_of(name, {}, z, target, w.astype(float))
        for weight_dtype in (np.float32, np.float16, np.longdouble, np.int32, np.uint8, bool):
            assert_same_bits(results_of(name, {}, z, target, w.astype(weight_dtype)), expected)


@on_every_level
@each_loss
def test_huge_and_tiny_sample_weights(dtype, name):
    # Their ratio is what counts in a mean: neither end may overflow or vanish on the way to it.
    z, target = random_logits(np.random.default_rng(7), 5, dtype), [0, 1, 1, 0, 0.25]
    weight = np.array([1, 2, 3, 4, 5])
    expected = results_of(name, {}, z, target, weight)
    for factor in (1e-300, 1e300):
        for a, b in zip(results_of(name, {}, z, target, factor * weight), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=OPTIONS * eps(dtype))


# --- ignored elements -------------------------------------------------------------------------------------------------


@on_every_level
@each_loss
@pytest.mark.parametrize("kind", ["int", "soft"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_ignored_elements_are_as_if_deleted(dtype, name, reduction, kind):
    for ignore_index in (-100, -1, 0, 1, 2, 77):
        check_ignored(dtype, name, ignore_index, reduction, kind)


def check_ignored(dtype, name, ignore_index, reduction, kind):
    rng = np.random.default_rng(8)
    z, target = random_logits(rng, 67, dtype, 5.0), binary_target(rng, 67, kind, dtype)
    target[rng.random(67) < 0.3] = ignore_index
    kept = target != ignore_index
    z[~kept] = np.nan  # never looked at
    weight = rng.uniform(0, 2, 67)
    options = {"reduction": reduction, "label_smoothing": 0.1}
    value, grad, hess = results_of(name, options | {"ignore_index": ignore_index}, z, target, weight)
    kept_value, kept_grad, kept_hess = results_of(name, options, z[kept], target[kept], weight[kept])
    close = {"rtol": REORDERED * eps(dtype)}
    np.testing.assert_allclose(value[kept] if reduction == "none" else value, kept_value, **close)
    np.testing.assert_allclose(grad[kept], kept_grad, **close)
    np.testing.assert_allclose(hess[kept], kept_hess, **close)
    assert not grad[~kept].any()
    assert not hess[~kept].any()
    if reduction == "none":
        assert not value[~kept].any()


@on_every_level
@each_loss
def test_ignored_targets_of_every_dtype(dtype, name):
    # 1 can be stored in all of them, -1 in the signed ones.
    z = np.where(np.arange(20) % 2, np.nan, 0).astype(dtype)
    for target_dtype in (*INTEGERS, bool, np.float16, np.float32, np.float64, np.longdouble):
        target = (np.arange(20) % 2).astype(target_dtype)
        _, grad, _ = results_of(name, {"ignore_index": 1}, z, target)
        assert np.all(grad[::2] > 0)
        assert not grad[1::2].any()
        if np.dtype(target_dtype).kind in "if":
            _, negative, _ = results_of(name, {"ignore_index": -1}, z, -target)
            assert_same_bits(negative, grad)


@each_loss
def test_ignore_index_does_not_wrap_in_unsigned_targets(name):
    # -1 is not 255, and 2**64 - 1 is not -1.
    for top in (np.uint8(255), np.uint64(2**64 - 1)):
        with pytest.raises(ValueError, match=f"got {top} at index 0$"):
            getattr(fx, name)(ignore_index=-1)(np.zeros(2), np.array([top, 0], top.dtype))
    losses = getattr(fx, name)(ignore_index=255, reduction="none")(np.zeros(2), np.array([255, 0], np.uint8))
    assert losses[0] == 0 < losses[1]


@on_every_level
@each_loss
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_nothing_counted_is_zero(dtype, name, reduction):
    z = np.full((3, 3), np.nan, dtype)
    for options, weight in (({"ignore_index": -1}, None), ({}, np.zeros(3)), ({}, np.zeros((3, 3)))):
        target = np.full((3, 3), -1 if "ignore_index" in options else 1)
        value, grad, hess = results_of(name, options | {"reduction": reduction}, z, target, weight)
        for result in (np.asarray(value), grad, hess):
            assert not result.any()


@each_loss
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_no_elements(name, reduction):
    for shape in ((0,), (0, 3), (3, 0)):
        value, grad, hess = results_of(name, {"reduction": reduction}, np.zeros(shape), np.zeros(shape, int))
        assert grad.shape == hess.shape == shape
        if reduction == "none":
            assert value.shape == shape
        else:
            assert value == 0.0


# --- smoothing --------------------------------------------------------------------------------------------------------


@on_every_level
def test_smoothing_by_hand(dtype):
    # eps = 0.2 turns 1 into 0.9, 0 into 0.1 and leaves 1/2 alone; p = 3/4.
    z = np.full(3, math.log(3), dtype)
    value, grad, _ = results_of("BinaryCrossEntropy", {"label_smoothing": 0.2, "reduction": "none"}, z, [1, 0, 0.5])
    positive, negative = math.log(4 / 3), math.log(4)
    masses = np.array([0.9, 0.1, 0.5])
    close = {"rtol": OPTIONS * eps(dtype)}
    np.testing.assert_allclose(value, masses * positive + (1 - masses) * negative, **close)
    # Relative to its two terms, of which the larger is at most 0.675.
    np.testing.assert_allclose(grad, 0.75 - masses, rtol=0, atol=OPTIONS * eps(dtype))


@on_every_level
@each_loss
@pytest.mark.parametrize("smoothing", [1e-6, 0.1, 0.9, 1.0])
def test_smoothing_is_a_soft_target(dtype, name, smoothing):
    rng = np.random.default_rng(9)
    z, target = random_logits(rng, 100, dtype, 5.0), rng.integers(0, 2, 100)
    soft = (1 - smoothing) * target + smoothing / 2
    actual = results_of(name, {"label_smoothing": smoothing, "reduction": "none"}, z, target)
    # Storing the soft target rounds it, and its distance from 1.
    allowed = REORDERED * eps(dtype) * np.maximum(1, np.abs(z))
    for a, b in zip(actual, results_of(name, {"reduction": "none"}, z, soft.astype(dtype)), strict=True):
        assert np.all(np.abs(a - b) <= allowed)


@on_every_level
@each_loss
def test_full_smoothing_forgets_the_target(dtype, name):
    z = random_logits(np.random.default_rng(10), 20, dtype)
    first = results_of(name, {"label_smoothing": 1.0}, z, np.zeros(20, int))
    assert_same_bits(results_of(name, {"label_smoothing": 1}, z, np.ones(20)), first)


# --- probabilities instead of logits ----------------------------------------------------------------------------------


@on_every_level
def test_probs_by_hand(dtype):
    x = np.array([0.25, 0.25, 0.25], dtype)
    options = {"inputs": "probs", "reduction": "none"}
    value, grad, hess = results_of("BinaryCrossEntropy", options, x, [1, 0, 0.5])
    close = {"rtol": OPTIONS * eps(dtype)}
    np.testing.assert_allclose(value, [math.log(4), math.log(4 / 3), (math.log(4) + math.log(4 / 3)) / 2], **close)
    np.testing.assert_allclose(grad, [-4, 4 / 3, -4 / 3], **close)
    np.testing.assert_allclose(hess, [16, 16 / 9, 80 / 9], **close)


@on_every_level
@pytest.mark.parametrize("kind", ["int", "soft"])
@pytest.mark.parametrize("n", [1, 17, 1025])
def test_probs_over_their_whole_range(dtype, kind, n):
    rng = np.random.default_rng(11)
    x = np.where(rng.random(n) < 0.5, rng.random(n), 10.0 ** -rng.uniform(0, 30, n))
    x = np.where(rng.random(n) < 0.2, 1 - 10.0 ** -rng.uniform(0, 7, n), x).astype(dtype)
    options = {"inputs": "probs", "reduction": "none"}
    for more in ({}, {"pos_weight": 2.5, "label_smoothing": 0.1}):
        oracle.assert_as_expected("BinaryCrossEntropy", options | more, x, binary_target(rng, n, kind, dtype))


@on_every_level
def test_probs_give_the_value_of_their_logits(dtype):
    # Only small probabilities keep the digits of their logits; those near 1 have lost them in 1 - p.
    rng = np.random.default_rng(12)
    z = -np.abs(random_logits(rng, 50, dtype, 5.0))
    target = binary_target(rng, 50, "soft", dtype)
    for options in ({}, {"label_smoothing": 0.2, "pos_weight": 3.0}):
        value = fx.BinaryCrossEntropy(**options)(z, target)
        from_p = fx.BinaryCrossEntropy(**options, inputs="probs")(fx.sigmoid(z), target)
        assert from_p == pytest.approx(value, rel=REORDERED * eps(dtype))


# --- gamma and alpha --------------------------------------------------------------------------------------------------


@on_every_level
def test_gamma_0_is_binary_cross_entropy_under_every_option(dtype):
    for seed in range(20):
        options, *arguments = random_case(np.random.default_rng(seed), dtype, "BinaryFocalLoss")
        options = {name: options[name] for name in ("reduction", "label_smoothing", "ignore_index") if name in options}
        focal = results_of("BinaryFocalLoss", options | {"gamma": 0}, *arguments)
        plain = results_of("BinaryCrossEntropy", options, *arguments)
        for a, b in zip(focal, plain, strict=True):
            np.testing.assert_allclose(a, b, rtol=2 * eps(dtype), atol=np.finfo(dtype).smallest_subnormal)


@on_every_level
def test_alpha_of_a_half_is_half_the_loss(dtype):
    rng = np.random.default_rng(13)
    z, target = nasty_elements(rng, 100, dtype), binary_target(rng, 100, "soft", dtype)
    half = results_of("BinaryFocalLoss", {"alpha": 0.5, "reduction": "none"}, z, target)
    whole = results_of("BinaryFocalLoss", {"reduction": "none"}, z, target)
    for a, b in zip(half, whole, strict=True):
        np.testing.assert_allclose(2 * a, b, rtol=4 * eps(dtype), atol=8 * np.finfo(dtype).smallest_subnormal)


@on_every_level
@pytest.mark.parametrize(("alpha", "target"), [(0, 1), (1, 0)])
def test_alpha_may_take_away_a_class(dtype, alpha, target):
    z = random_logits(np.random.default_rng(14), 20, dtype, 10.0)
    for result in results_of("BinaryFocalLoss", {"alpha": alpha, "reduction": "none"}, z, np.full(20, target)):
        assert not result.any()


@on_every_level
@pytest.mark.parametrize("gamma", [0, 1, 2])
def test_gammas_without_a_power_are_powers(dtype, gamma):
    # 0, 1 and 2 take a short cut; next to them there is none, and the loss is continuous there.
    rng = np.random.default_rng(15)
    z, target = random_logits(rng, 200, dtype, 5.0), binary_target(rng, 200, "soft", dtype)
    short = results_of("BinaryFocalLoss", {"gamma": gamma, "reduction": "none"}, z, target)
    step = 1e-12
    long = results_of("BinaryFocalLoss", {"gamma": gamma + step, "reduction": "none"}, z, target)
    # Two roundings of a power, whose logarithm is at most 25 here, and the step itself.
    allowed = (2 * (OPTIONS + 4 * gamma + 25 * (1 + gamma)) * eps(dtype) + 25 * step) * 4
    for a, b in zip(short, long, strict=True):
        np.testing.assert_allclose(b, a, rtol=allowed, atol=allowed)


# --- all of them ------------------------------------------------------------------------------------------------------

SHAPES = ((), (1,), (7,), (33,), (100,), (3, 5), (17, 4), (2, 3, 5), (1030,))


def random_case(rng, dtype, name):
    """(options, logits, target, sample_weight) with each option on or off independently of the others."""

    def choose(choices):
        return choices[rng.integers(len(choices))]

    shape = choose(SHAPES)
    options = {"reduction": choose(("none", "sum", "mean"))}
    z = nasty_elements(rng, shape, dtype) if rng.random() < 0.5 else random_logits(rng, shape, dtype, choose(SCALES))
    if options["reduction"] != "none":
        z = np.where(np.abs(z) > 1e8, 0, z).astype(dtype)
    if name == "BinaryCrossEntropy":
        options["pos_weight"] = choose((None, 2.5, 0, rng.uniform(0, 3, shape[-1:]) if shape else 0.5))
        options["inputs"] = choose(("logits", "logits", "probs"))
        if options["inputs"] == "probs":
            # Rounded to 1 where the truth is 1 - 1e-20, a probability would make losses infinite.
            z = np.clip(1 / (1 + np.exp(-np.clip(z, -80, 80))), 1e-30, 1 - np.finfo(dtype).epsneg).astype(dtype)
    else:
        options["gamma"] = choose((0, 1e-10, 0.5, 1, 2, 3.5, 5))
        options["alpha"] = choose((None, None, 0.0, 0.25, 1))
    if rng.random() < 0.4:
        options["label_smoothing"] = choose((1e-6, 0.1, 0.9, 1.0))
    target = np.asarray(binary_target(rng, shape, choose(("bool", "int", "soft")), dtype))
    if rng.random() < 0.5:
        options["ignore_index"] = choose((-100, -1, 0, 1, 5))
        if target.dtype.kind != "b":
            target = np.where(rng.random(shape) < 0.2, options["ignore_index"], target).astype(target.dtype)
    sample_weight = choose((None, None, rng.uniform(0, 2, shape), rng.uniform(0, 2, shape[:1]), np.zeros(shape)))
    layout = choose(tuple(LAYOUTS)) if shape else "byte_swapped"  # a single number has no other layout
    return options, LAYOUTS[layout](np.asarray(z)), target, sample_weight


@on_every_level
@each_loss
@pytest.mark.parametrize("first_seed", range(0, 80, 10))
def test_all_options_composed(dtype, name, first_seed):
    # The options of a failure are in its message; 80 cases draw each pair of option values several times.
    for seed in range(first_seed, first_seed + 10):
        options, z, target, sample_weight = random_case(np.random.default_rng(seed), dtype, name)
        oracle.assert_as_expected(name, options, z, target, sample_weight)


# --- a loss is a value ------------------------------------------------------------------------------------------------

DEFAULTS = {
    "BinaryCrossEntropy": {
        "pos_weight": None,
        "label_smoothing": 0.0,
        "ignore_index": None,
        "reduction": "mean",
        "inputs": "logits",
    },
    "FocalLoss": {
        "gamma": 2.0,
        "class_weight": None,
        "label_smoothing": 0.0,
        "ignore_index": None,
        "reduction": "mean",
        "axis": -1,
    },
    "BinaryFocalLoss": {
        "gamma": 2.0,
        "alpha": None,
        "label_smoothing": 0.0,
        "ignore_index": None,
        "reduction": "mean",
    },
}
OBJECTS = [
    ("BinaryCrossEntropy", {}),
    ("BinaryCrossEntropy", {"pos_weight": 2.5}),
    ("BinaryCrossEntropy", {"pos_weight": [1.0, 2.5]}),
    ("BinaryCrossEntropy", {"pos_weight": np.array([1.0, 2.5]), "reduction": "sum", "inputs": "probs"}),
    ("BinaryCrossEntropy", {"label_smoothing": 0.1, "ignore_index": -1, "reduction": "none"}),
    ("FocalLoss", {}),
    ("FocalLoss", {"gamma": 0.5, "class_weight": {0: 2.0}, "reduction": "none"}),
    ("FocalLoss", {"gamma": 1, "class_weight": [1.0, 2.5], "label_smoothing": 0.1, "ignore_index": -1, "axis": 1}),
    ("BinaryFocalLoss", {}),
    ("BinaryFocalLoss", {"gamma": 0.5, "alpha": 0.25}),
    ("BinaryFocalLoss", {"gamma": 1, "alpha": 0, "label_smoothing": 0.1, "ignore_index": -1, "reduction": "sum"}),
]
each_object = pytest.mark.parametrize(("name", "options"), OBJECTS, ids=str)


@pytest.mark.parametrize("name", DEFAULTS)
def test_fields_and_defaults_are_those_of_the_contract_and_of_the_reference(name):
    for module in (fx, reference):
        fields = dataclasses.fields(getattr(module, name))
        assert [(f.name, f.default) for f in fields] == list(DEFAULTS[name].items())


@pytest.mark.parametrize("name", DEFAULTS)
@pytest.mark.parametrize("method", ["__call__", "value_and_grad", "value_grad_hess"])
def test_methods_have_the_signature_of_the_reference(name, method):
    fast, slow = (inspect.signature(getattr(getattr(m, name), method)).parameters for m in (fx, reference))
    assert [(p.name, p.kind, p.default) for p in fast.values()] == [(p.name, p.kind, p.default) for p in slow.values()]


@each_object
def test_frozen(name, options):
    loss = getattr(fx, name)(**options)
    for field in DEFAULTS[name]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(loss, field, None)


@each_object
def test_equal_options_are_equal_losses(name, options):
    loss, twin = getattr(fx, name)(**options), getattr(fx, name)(**copy.deepcopy(options))
    assert loss == twin
    assert hash(loss) == hash(twin)
    assert len({loss, twin}) == 1
    for other, other_options in OBJECTS:
        if (other, str(other_options)) != (name, str(options)):
            assert loss != getattr(fx, other)(**other_options)


def test_weights_are_compared_by_value():
    listed, array = fx.BinaryCrossEntropy(pos_weight=[1, 2.5]), fx.BinaryCrossEntropy(pos_weight=np.float32([1, 2.5]))
    assert listed == array
    assert hash(listed) == hash(array)
    assert listed != fx.BinaryCrossEntropy(pos_weight=[1, 2])
    assert fx.BinaryCrossEntropy(pos_weight=2) == fx.BinaryCrossEntropy(pos_weight=np.float32(2))
    assert fx.BinaryFocalLoss(gamma=2) == fx.BinaryFocalLoss(gamma=np.int64(2))
    assert hash(fx.FocalLoss(gamma=2)) == hash(fx.FocalLoss(gamma=np.float64(2)))


@each_object
@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, dataclasses.replace, *(lambda x, p=p: pickle.loads(pickle.dumps(x, p)) for p in (2, 5))],
    ids=["copy", "deepcopy", "replace", "pickle 2", "pickle 5"],
)
def test_copies_are_equal_and_work(name, options, duplicate):
    loss = getattr(fx, name)(**options)
    twin = duplicate(loss)
    assert twin == loss
    assert hash(twin) == hash(loss)
    assert repr(twin) == repr(loss)
    x, target = np.array([[0.25, 0.5], [0.75, 0.125]]), [[1, 0], [0, 1]]
    target = [1, 0] if name == "FocalLoss" else target
    np.testing.assert_array_equal(twin(x, target), loss(x, target))


@each_object
def test_printing_gives_the_call_that_makes_it(name, options):
    loss = getattr(fx, name)(**options)
    assert str(loss) == repr(loss)
    assert eval(repr(loss), {name: getattr(fx, name)}) == loss
    for option, value in options.items():
        # What is at its default is not printed.
        assert (f"{option}=" in repr(loss)) == (np.ndim(value) > 0 or value != DEFAULTS[name][option])


def test_later_changes_of_the_weights_do_not_reach_the_loss():
    weights = np.array([1.0, 2.0])
    loss = fx.BinaryCrossEntropy(pos_weight=weights)
    before = loss(np.ones((3, 2)), np.ones((3, 2)))
    weights[:] = 7
    assert loss(np.ones((3, 2)), np.ones((3, 2))) == before


def test_replace_changes_and_checks():
    for name, bad in (("BinaryCrossEntropy", {"pos_weight": -1}), ("FocalLoss", {"gamma": -1})):
        loss = dataclasses.replace(getattr(fx, name)(), reduction="sum")
        assert loss == getattr(fx, name)(reduction="sum")
        with pytest.raises(ValueError, match=next(iter(bad))):
            dataclasses.replace(loss, **bad)


def test_options_may_be_positional_in_the_order_of_the_contract():
    for name, options in (
        ("BinaryCrossEntropy", (2.0, 0.1, -1, "sum", "probs")),
        ("FocalLoss", (1.0, "balanced", 0.1, -1, "sum", 0)),
        ("BinaryFocalLoss", (1.0, 0.25, 0.1, -1, "sum")),
    ):
        assert getattr(fx, name)(*options) == getattr(fx, name)(**dict(zip(DEFAULTS[name], options, strict=True)))
