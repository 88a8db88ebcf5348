"""`FocalLoss`: types, shapes, dtypes and identity of what comes back; inputs kept; the same bits from any threads."""

import numpy as np
import pytest
from arrays import random_logits, random_probabilities
from tolerances import assert_same_bits

import fastxent as fx
from fastxent import _config

pytestmark = pytest.mark.usefixtures("isa")

# (shape of the logits, axis, shape of the loss)
SHAPES = [((5,), -1, ()), ((4, 5), -1, (4,)), ((5, 4), 0, (4,)), ((2, 5, 3), 1, (2, 3)), ((2, 3, 4, 5), -1, (2, 3, 4))]
each_shape = pytest.mark.parametrize(("shape", "axis", "loss_shape"), SHAPES, ids=str)


@each_shape
def test_no_reduction_has_the_shape_of_the_target_and_the_dtype_of_the_logits(dtype, shape, axis, loss_shape):
    logits, target = random_logits(np.random.default_rng(0), shape, dtype), np.zeros(loss_shape, int)
    loss = fx.FocalLoss(reduction="none", axis=axis)
    value, grad, hess = loss.value_grad_hess(logits, target)
    for result in (value, loss(logits, target)):
        assert isinstance(result, np.ndarray)
        assert (result.shape, result.dtype) == (loss_shape, dtype)
    assert (grad.shape, grad.dtype) == (hess.shape, hess.dtype) == (shape, dtype)


@each_shape
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_reduction_is_a_python_float(dtype, shape, axis, loss_shape, reduction):
    logits, target = random_logits(np.random.default_rng(1), shape, dtype), np.zeros(loss_shape, int)
    loss = fx.FocalLoss(reduction=reduction, axis=axis)
    values = [loss(logits, target), loss.value_and_grad(logits, target)[0], loss.value_grad_hess(logits, target)[0]]
    nothing = fx.FocalLoss(reduction=reduction, axis=axis, ignore_index=0)(logits, target)
    assert [type(value) for value in (*values, nothing)] == [float] * 4
    assert nothing == 0


def test_a_float32_loss_is_summed_in_float64():
    # 2^24 + 1 is the first whole number float32 cannot hold: 2^24 + log 2 + log 2 + ... would stop growing.
    logits = np.zeros((1000, 2), np.float32)
    logits[0, 1] = 2.0**24
    value = fx.FocalLoss(reduction="sum")(logits, np.zeros(1000, int))
    assert value == pytest.approx(2.0**24 + 999 * np.log(2) / 4, abs=1e-3)


def test_integers_booleans_and_lists_become_float64():
    for logits in ([[1, 2], [3, 4]], np.array([[1, 2], [3, 4]], np.int8), np.array([[1, 0], [0, 1]], bool)):
        for result in fx.FocalLoss(reduction="none").value_grad_hess(logits, [0, 1]):
            assert result.dtype == np.float64


def test_the_dtype_of_other_arguments_does_not_widen_the_result():
    loss = fx.FocalLoss(gamma=np.float64(1.5), class_weight=np.ones(2), reduction="none")
    for result in loss.value_grad_hess(np.zeros((4, 2), np.float32), np.full((4, 2), 0.5), np.ones(4)):
        assert result.dtype == np.float32


def test_given_outputs_are_returned_and_filled(dtype):
    logits, target = random_logits(np.random.default_rng(2), (17, 3), dtype), np.zeros(17, int)
    fresh = fx.FocalLoss().value_grad_hess(logits, target)
    grad_out, hess_out = np.full((2, 17, 3), np.nan, dtype)
    results = fx.FocalLoss().value_grad_hess(logits, target, grad_out=grad_out, hess_out=hess_out)
    assert results[1] is grad_out
    assert results[2] is hess_out
    assert_same_bits(results, fresh)
    hess_out[...] = np.nan
    results = fx.FocalLoss().value_grad_hess(logits, target, hess_out=hess_out)
    assert results[2] is hess_out
    assert_same_bits(results, fresh)


def test_outputs_are_filled_also_where_nothing_counts(dtype):
    massless = np.zeros((2, 2), dtype)
    for options, target in (({"ignore_index": 0}, [0, 0]), ({"class_weight": [0, 1]}, [0, 0]), ({}, massless)):
        grad_out, hess_out = np.full((2, 2, 2), np.nan, dtype)
        loss = fx.FocalLoss(**options)
        assert loss.value_grad_hess(np.ones((2, 2), dtype), target, None, grad_out, hess_out)[0] == 0
        assert not grad_out.any()
        assert not hess_out.any()


def test_inputs_stay_as_they_were(dtype):
    rng = np.random.default_rng(3)
    arrays = {
        "logits": random_logits(rng, (17, 3), dtype),
        "target": random_probabilities(rng, (17, 3), dtype),
        "sample_weight": rng.uniform(0, 1, 17),
    }
    before = {name: array.copy() for name, array in arrays.items()}
    loss = fx.FocalLoss(class_weight=[1, 2, 0], label_smoothing=0.1)
    loss(**arrays)
    loss.value_and_grad(**arrays)
    loss.value_grad_hess(**arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_one_dimensional_logits_are_one_row(dtype):
    logits = random_logits(np.random.default_rng(4), 7, dtype)
    row, block = fx.FocalLoss().value_grad_hess(logits, 3), fx.FocalLoss().value_grad_hess(logits[None], [3])
    assert row[0] == block[0]
    assert_same_bits(row[1:], (block[1][0], block[2][0]))


# --- threads ----------------------------------------------------------------------------------------------------------


SMOOTH = {"gamma": 3.5, "class_weight": "balanced", "label_smoothing": 0.1, "ignore_index": 1}


@pytest.mark.thread_unsafe
@pytest.mark.skipif(_config.config()["OpenMP"] != "yes", reason="built without OpenMP")
@pytest.mark.parametrize(
    ("shape", "axis", "options", "kind"),
    [
        ((40_001, 3), 1, {}, "index"),
        ((20_003, 3), 1, SMOOTH, "index"),
        ((501, 300), 1, {"gamma": 1, "reduction": "sum"}, "probabilities"),
        ((501, 200), 1, SMOOTH, "index"),
        ((3, 50_003), 1, {"gamma": 1, "reduction": "sum"}, "probabilities"),
        ((5, 20_001), 0, SMOOTH, "index"),
    ],
    ids=str,
)
def test_the_same_bits_for_any_number_of_threads(dtype, shape, axis, options, kind):
    rng = np.random.default_rng(5)
    logits = random_logits(rng, shape, dtype, 5.0)
    row_shape = shape[:axis] + shape[axis + 1 :]
    target = rng.integers(0, shape[axis], row_shape)
    if kind == "probabilities":
        target = random_probabilities(rng, shape, dtype, axis)
    weight = rng.uniform(0, 1, row_shape)
    loss = fx.FocalLoss(axis=axis, **options)
    results = {}
    for n in (1, 2, 3):
        fx.set_num_threads(n)
        assert fx.get_num_threads() == n
        results[n] = (*loss.value_grad_hess(logits, target, weight), loss(logits, target, weight))
    assert_same_bits(results[2], results[1])
    assert_same_bits(results[3], results[1])
