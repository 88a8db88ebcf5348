"""The losses of one logit: types, shapes and identity of what comes back, inputs kept, and the same bits from threads."""

import numpy as np
import pytest
from arrays import binary_target, random_logits
from tolerances import assert_same_bits

import fastxent as fx
from fastxent import _config

pytestmark = pytest.mark.usefixtures("isa")

each_loss = pytest.mark.parametrize("name", ["BinaryCrossEntropy", "BinaryFocalLoss"])
each_shape = pytest.mark.parametrize("shape", [(), (5,), (4, 5), (2, 3, 4), (0,), (2, 0)], ids=str)


@each_loss
@each_shape
def test_no_reduction_has_the_shape_and_dtype_of_the_logits(dtype, name, shape):
    z = random_logits(np.random.default_rng(0), shape, dtype)
    loss = getattr(fx, name)(reduction="none")
    for target in (np.zeros(shape, int), np.zeros(shape, np.float64), np.zeros(shape, np.float32)):
        value, grad, hess = loss.value_grad_hess(z, target, np.ones(shape))
        for result in (value, grad, hess, loss(z, target)):
            assert isinstance(result, np.ndarray)
            assert (result.shape, result.dtype) == (shape, dtype)


@each_loss
@each_shape
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_reduction_is_a_python_float(dtype, name, shape, reduction):
    z, target = random_logits(np.random.default_rng(1), shape, dtype), np.zeros(shape, int)
    loss = getattr(fx, name)(reduction=reduction)
    for value in (loss(z, target), loss.value_and_grad(z, target)[0], loss.value_grad_hess(z, target)[0]):
        assert type(value) is float
    assert type(getattr(fx, name)(reduction=reduction, ignore_index=0)(z, target)) is float


def test_a_float32_loss_is_summed_in_float64():
    # 2^24 + 1 is the first whole number float32 cannot hold: 2^24 + log 2 + log 2 + ... would stop growing.
    z = np.zeros(1000, np.float32)
    z[0] = 2.0**24
    value = fx.BinaryCrossEntropy(reduction="sum")(z, np.zeros(1000, int))
    assert value == pytest.approx(2.0**24 + 999 * np.log(2), abs=1e-3)
    value = fx.BinaryFocalLoss(reduction="sum")(z, np.zeros(1000, int))
    assert value == pytest.approx(2.0**24 + 999 * np.log(2) / 4, abs=1e-3)


@each_loss
def test_integers_booleans_and_lists_become_float64(name):
    for z in ([1, 2], np.array([1, 2], np.int8), np.array([True, False]), 3, True):
        for result in getattr(fx, name)(reduction="none").value_grad_hess(z, np.zeros(np.shape(z), int)):
            assert result.dtype == np.float64
            assert result.shape == np.shape(z)


def test_the_dtype_of_other_arguments_does_not_widen_the_result():
    z = np.zeros((4, 2), np.float32)
    for loss in (
        fx.BinaryCrossEntropy(pos_weight=np.ones(2), reduction="none"),
        fx.BinaryFocalLoss(alpha=np.float64(0.5), reduction="none"),
    ):
        for result in loss.value_grad_hess(z, np.full((4, 2), 0.5), np.ones(4)):
            assert result.dtype == np.float32


@each_loss
@each_shape
def test_given_outputs_are_returned_and_filled(dtype, name, shape):
    rng = np.random.default_rng(2)
    z, target = random_logits(rng, shape, dtype), binary_target(rng, shape, "soft", dtype)
    z = np.asarray(z)
    loss = getattr(fx, name)()
    fresh = loss.value_grad_hess(z, target)
    grad_out, hess_out = np.full(shape, np.nan, dtype), np.full(shape, np.nan, dtype)
    results = loss.value_grad_hess(z, target, grad_out=grad_out, hess_out=hess_out)
    assert results[1] is grad_out
    assert results[2] is hess_out
    assert_same_bits(results, fresh)
    # One of the two alone, and over the logits.
    hess_out[...] = np.nan
    results = loss.value_grad_hess(z, target, hess_out=hess_out)
    assert results[2] is hess_out
    assert_same_bits(results, fresh)
    over = z.copy()
    assert loss.value_and_grad(over, target, grad_out=over)[1] is over
    assert_same_bits(over, fresh[1])


@each_loss
def test_outputs_are_filled_also_where_nothing_counts(dtype, name):
    for options, weight in (({"ignore_index": 1}, None), ({}, np.zeros(4)), ({}, np.zeros((4, 3)))):
        grad_out, hess_out = np.full((2, 4, 3), np.nan, dtype)
        value, _, _ = getattr(fx, name)(**options).value_grad_hess(
            np.ones((4, 3), dtype), np.ones((4, 3), int), weight, grad_out, hess_out
        )
        assert value == 0
        assert not grad_out.any()
        assert not hess_out.any()


@each_loss
def test_inputs_stay_as_they_were(dtype, name):
    rng = np.random.default_rng(3)
    arrays = {
        "logits": random_logits(rng, (17, 3), dtype),
        "target": binary_target(rng, (17, 3), "soft", dtype),
        "sample_weight": rng.uniform(0, 1, 17),
    }
    before = {argument: array.copy() for argument, array in arrays.items()}
    options = {"label_smoothing": 0.1}
    weights = np.array([1.0, 2.0, 0.0])
    if name == "BinaryCrossEntropy":
        options["pos_weight"] = weights
    loss = getattr(fx, name)(**options)
    loss(**arrays)
    loss.value_and_grad(**arrays)
    loss.value_grad_hess(**arrays)
    for argument, array in arrays.items():
        np.testing.assert_array_equal(array, before[argument], err_msg=argument)
    assert weights.tolist() == [1, 2, 0]


@each_loss
def test_each_call_has_outputs_of_its_own(dtype, name):
    z = random_logits(np.random.default_rng(4), (17, 3), dtype)
    loss = getattr(fx, name)(reduction="none")
    first = loss.value_grad_hess(z, np.zeros((17, 3), int))
    kept = [a.copy() for a in first]
    second = loss.value_grad_hess(-z, np.zeros((17, 3), int))
    for a, b, c in zip(first, kept, second, strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.shares_memory(a, c)
        assert not np.shares_memory(a, z)
    assert not np.shares_memory(first[1], first[2])


# --- threads ----------------------------------------------------------------------------------------------------------


@pytest.mark.thread_unsafe
@pytest.mark.skipif(_config.config()["OpenMP"] != "yes", reason="built without OpenMP")
@pytest.mark.parametrize(
    ("name", "options", "kind", "shape"),
    [
        ("BinaryCrossEntropy", {}, "int", (300_007,)),
        ("BinaryCrossEntropy", {"pos_weight": 2.0, "label_smoothing": 0.1, "ignore_index": -1}, "soft", (40_003, 3)),
        ("BinaryCrossEntropy", {"inputs": "probs", "reduction": "sum"}, "bool", (7, 20_003)),
        ("BinaryFocalLoss", {"alpha": 0.25}, "int", (7, 20_003)),
        ("BinaryFocalLoss", {"gamma": 3.5, "reduction": "sum"}, "soft", (100_003,)),
    ],
    ids=str,
)
def test_the_same_bits_for_any_number_of_threads(dtype, name, options, kind, shape):
    rng = np.random.default_rng(5)
    z = rng.uniform(0, 1, shape).astype(dtype)
    if options.get("inputs") != "probs":
        z = 20 * z - 10
    target = binary_target(rng, shape, kind, dtype)
    if "ignore_index" in options:
        target[rng.random(shape) < 0.1] = -1
    weight = rng.uniform(0, 1, shape[:1])
    loss = getattr(fx, name)(**options)
    results = {}
    for n in (1, 2, 3):
        fx.set_num_threads(n)
        assert fx.get_num_threads() == n
        results[n] = (*loss.value_grad_hess(z, target, weight), loss(z, target, weight))
    assert_same_bits(results[2], results[1])
    assert_same_bits(results[3], results[1])
