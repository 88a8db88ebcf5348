"""What comes back: types, shapes, dtypes, identity; and that inputs stay as they were."""

import numpy as np
import pytest
from arrays import random_logits, random_probabilities

import fastxent as fx

pytestmark = pytest.mark.usefixtures("isa")

# (shape of the logits, axis, shape of the loss)
SHAPES = [((5,), -1, ()), ((4, 5), -1, (4,)), ((5, 4), 0, (4,)), ((2, 5, 3), 1, (2, 3)), ((2, 3, 4, 5), -1, (2, 3, 4))]


@pytest.mark.parametrize(("shape", "axis", "loss_shape"), SHAPES, ids=str)
def test_no_reduction_has_the_shape_of_the_target_and_the_dtype_of_the_logits(dtype, shape, axis, loss_shape):
    logits = random_logits(np.random.default_rng(0), shape, dtype)
    value, grad, hess = fx.CrossEntropy(reduction="none", axis=axis).value_grad_hess(logits, np.zeros(loss_shape, int))
    assert isinstance(value, np.ndarray)
    assert (value.shape, value.dtype) == (loss_shape, dtype)
    assert (grad.shape, grad.dtype) == (hess.shape, hess.dtype) == (shape, dtype)
    assert isinstance(fx.CrossEntropy(reduction="none", axis=axis)(logits, np.zeros(loss_shape, int)), np.ndarray)


@pytest.mark.parametrize(("shape", "axis", "loss_shape"), SHAPES, ids=str)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_reduction_is_a_python_float(dtype, shape, axis, loss_shape, reduction):
    logits = random_logits(np.random.default_rng(1), shape, dtype)
    target = np.zeros(loss_shape, int)
    loss = fx.CrossEntropy(reduction=reduction, axis=axis)
    values = [f(logits, target) for f in (loss, loss.value_and_grad, loss.value_grad_hess)]
    assert [type(v) for v in (values[0], values[1][0], values[2][0])] == [float] * 3


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_reduction_of_nothing_is_a_python_float_too(dtype, reduction):
    loss = fx.CrossEntropy(reduction=reduction, ignore_index=0)
    for value in (
        loss(np.zeros((0, 3), dtype), []),
        loss(np.ones((4, 3), dtype), [0, 0, 0, 0]),
        loss(np.ones((4, 3), dtype), [1, 1, 1, 1], np.zeros(4)),
        loss(np.ones(3, dtype), 0),
    ):
        assert type(value) is float
        assert value == 0


def test_a_float32_loss_is_summed_in_float64():
    # 2^24 + 1 is the first whole number float32 cannot hold: 1 + 2^24 * 1 would stop growing.
    logits = np.zeros((1000, 2), np.float32)
    logits[0, 1] = 2.0**24
    value = fx.CrossEntropy(reduction="sum")(logits, np.zeros(1000, int))
    assert value == pytest.approx(2.0**24 + 999 * np.log(2), abs=1e-3)


def test_integers_booleans_and_lists_become_float64():
    for logits in ([[1, 2], [3, 4]], np.array([[1, 2], [3, 4]], np.int8), np.array([[1, 0], [0, 1]], bool)):
        value, grad, hess = fx.CrossEntropy(reduction="none").value_grad_hess(logits, [0, 1])
        assert value.dtype == grad.dtype == hess.dtype == np.float64


def test_the_dtype_of_other_arguments_does_not_widen_the_result():
    logits = np.zeros((4, 2), np.float32)
    loss = fx.CrossEntropy(class_weight=np.ones(2), reduction="none")
    value, grad, _ = loss.value_grad_hess(logits, np.full((4, 2), 0.5), np.ones(4))
    assert value.dtype == grad.dtype == np.float32


def test_given_outputs_are_returned_and_filled(dtype):
    logits = random_logits(np.random.default_rng(2), (17, 3), dtype)
    target = np.zeros(17, int)
    fresh_value, fresh_grad, fresh_hess = fx.CrossEntropy().value_grad_hess(logits, target)
    grad_out, hess_out = np.full((2, 17, 3), np.nan, dtype)
    value, grad, hess = fx.CrossEntropy().value_grad_hess(logits, target, grad_out=grad_out, hess_out=hess_out)
    assert grad is grad_out
    assert hess is hess_out
    assert value == fresh_value
    np.testing.assert_array_equal(grad, fresh_grad)
    np.testing.assert_array_equal(hess, fresh_hess)
    # One of the two alone.
    hess_out[...] = np.nan
    _, grad, hess = fx.CrossEntropy().value_grad_hess(logits, target, hess_out=hess_out)
    assert hess is hess_out
    np.testing.assert_array_equal(grad, fresh_grad)
    np.testing.assert_array_equal(hess, fresh_hess)


def test_outputs_are_filled_also_where_nothing_counts(dtype):
    for options, target in (
        ({"ignore_index": 0}, [0, 0]),
        ({"class_weight": [0, 1]}, [0, 0]),
        ({}, np.zeros((2, 2), dtype)),
    ):
        grad_out, hess_out = np.full((2, 2, 2), np.nan, dtype)
        value, grad, hess = fx.CrossEntropy(**options).value_grad_hess(
            np.ones((2, 2), dtype), target, None, grad_out, hess_out
        )
        assert value == 0
        assert not grad.any()
        assert not hess.any()


def test_inputs_stay_as_they_were(dtype):
    rng = np.random.default_rng(3)
    arrays = {
        "logits": random_logits(rng, (17, 3), dtype),
        "target": random_probabilities(rng, (17, 3), dtype),
        "sample_weight": rng.uniform(0, 1, 17),
    }
    class_weight = np.array([1.0, 2.0, 0.0])
    before = {name: array.copy() for name, array in arrays.items()}
    loss = fx.CrossEntropy(class_weight=class_weight, label_smoothing=0.1)
    loss(**arrays)
    loss.value_and_grad(**arrays)
    loss.value_grad_hess(**arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    assert class_weight.tolist() == [1, 2, 0]


def test_each_call_has_outputs_of_its_own(dtype):
    logits = random_logits(np.random.default_rng(4), (17, 3), dtype)
    target = np.zeros(17, int)
    first = fx.CrossEntropy(reduction="none").value_grad_hess(logits, target)
    kept = [a.copy() for a in first]
    second = fx.CrossEntropy(reduction="none").value_grad_hess(-logits, target)
    for a, b, c in zip(first, kept, second, strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.shares_memory(a, c)
        assert not np.shares_memory(a, logits)
    assert not np.shares_memory(first[1], first[2])


def test_one_dimensional_logits_are_one_row(dtype):
    logits = random_logits(np.random.default_rng(5), 7, dtype)
    row = fx.CrossEntropy().value_grad_hess(logits, 3)
    block = fx.CrossEntropy().value_grad_hess(logits[None], [3])
    assert row[0] == block[0]
    np.testing.assert_array_equal(row[1], block[1][0])
    np.testing.assert_array_equal(row[2], block[2][0])
    assert fx.CrossEntropy()(logits, np.array(3), 2.0) == row[0]
    assert fx.CrossEntropy()(logits, np.eye(7, dtype=dtype)[3]) == pytest.approx(row[0])
    assert fx.CrossEntropy(axis=0)(logits, np.int8(3)) == row[0]
