"""`FocalLoss`: every memory layout, the class axis anywhere, crops that no reshape can flatten, outputs of any layout."""

import itertools

import numpy as np
import oracle
import pytest
from arrays import LAYOUTS, WRITABLE_LAYOUTS, nasty_logits, random_logits, random_probabilities
from tolerances import assert_within

import fastxent as fx

pytestmark = pytest.mark.usefixtures("isa")

OPTIONS = {"reduction": "none", "label_smoothing": 0.05, "gamma": 1.5}
SHAPES = [((17, 3), 1), ((17, 20), 1), ((3, 33), 0), ((2, 5, 9), 1)]
each_shape = pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)


def row_shape_of(shape, axis):
    return shape[:axis] + shape[axis + 1 :]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("kind", ["index", "probabilities"])
def test_two_axes(dtype, layout, axis, kind):
    for shape in ((17, 3), (17, 20), (3, 17), (20, 17), (1, 5), (5, 1)):
        rng = np.random.default_rng(0)
        logits = nasty_logits(rng, *shape, dtype)
        weight = rng.uniform(0.5, 2, row_shape_of(shape, axis))
        target = rng.integers(0, shape[axis], row_shape_of(shape, axis))
        if kind == "probabilities":
            target = random_probabilities(rng, shape, dtype, axis)
        options = OPTIONS | {"axis": axis}
        expected = oracle.expected_of("FocalLoss", options, logits, target, weight)
        loss = fx.FocalLoss(**options)
        oracle.assert_results(loss.value_grad_hess(layout(logits), layout(target), layout(weight)), expected, shape)
        oracle.assert_results(loss.value_grad_hess(logits, layout(target), weight), expected, shape)


@pytest.mark.parametrize("shape", [(2, 9, 5), (3, 4, 2, 9)], ids=str)
def test_crops_that_cannot_be_flattened(dtype, shape):
    # Every axis is cropped, walked in steps or backwards, and each of them is the class axis once.
    rng = np.random.default_rng(1)
    big = random_logits(rng, [2 * n + 3 for n in shape], dtype, 5.0)
    crop = tuple((slice(1, 1 + n), slice(1, 1 + 2 * n, 2), slice(n, 0, -1))[i % 3] for i, n in enumerate(shape))
    before = big.copy()
    for order in (range(len(shape)), reversed(range(len(shape))), np.roll(range(len(shape)), 1)):
        logits = big[crop].transpose(*order)
        for axis in range(len(shape)):
            rows = row_shape_of(logits.shape, axis)
            weight = rng.uniform(0.5, 2, rows)
            for target in (
                rng.integers(0, logits.shape[axis], rows),
                random_probabilities(rng, logits.shape, dtype, axis),
            ):
                options = OPTIONS | {"axis": axis - len(shape)}
                expected = oracle.expected_of("FocalLoss", options, logits, target, weight)
                oracle.assert_results(fx.FocalLoss(**options).value_grad_hess(logits, target, weight), expected)
    np.testing.assert_array_equal(big, before)


@pytest.mark.parametrize("n_classes", [3, 20])
def test_stride_zero(dtype, n_classes):
    # np.broadcast_to: one row seen many times, and one element seen as all classes.
    row = random_logits(np.random.default_rng(2), n_classes, dtype)
    logits = np.broadcast_to(row, (17, n_classes))
    expected = oracle.expected_of("FocalLoss", OPTIONS, logits.copy(), np.zeros(17, int))
    results = fx.FocalLoss(**OPTIONS).value_grad_hess(logits, np.broadcast_to(0, 17), np.broadcast_to(1.0, 17))
    oracle.assert_results(results, expected)
    assert all(0 not in result.strides for result in results)
    constant, spread = (np.broadcast_to(dtype(x), (17, n_classes)) for x in (2.5, 1 / 16))
    expected = oracle.expected_of("FocalLoss", OPTIONS, constant.copy(), spread.copy())
    oracle.assert_results(fx.FocalLoss(**OPTIONS).value_grad_hess(constant, spread), expected)


# --- outputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grad_layout", WRITABLE_LAYOUTS)
def test_outputs_of_another_layout_than_the_logits(dtype, grad_layout):
    for shape, axis in SHAPES:
        rng = np.random.default_rng(3)
        logits, target = random_logits(rng, shape, dtype), rng.integers(0, shape[axis], row_shape_of(shape, axis))
        expected = oracle.expected_of("FocalLoss", {"axis": axis}, logits, target)
        for hess_layout, logits_layout in itertools.product(WRITABLE_LAYOUTS, ("C", "F", "strided", "byte_swapped")):
            grad_out = WRITABLE_LAYOUTS[grad_layout](np.full(shape, np.nan, dtype))
            hess_out = WRITABLE_LAYOUTS[hess_layout](np.full(shape, np.nan, dtype))
            stored = LAYOUTS[logits_layout](logits)
            results = fx.FocalLoss(axis=axis).value_grad_hess(stored, target, None, grad_out, hess_out)
            assert results[1] is grad_out
            assert results[2] is hess_out
            oracle.assert_results(results, expected)


@each_shape
def test_nothing_is_written_beside_a_strided_output(dtype, shape, axis):
    rng = np.random.default_rng(4)
    logits, target = random_logits(rng, shape, dtype), rng.integers(0, shape[axis], row_shape_of(shape, axis))
    surroundings = np.full([3 * n + 2 for n in shape], 77, dtype)
    grad_out = surroundings[tuple(slice(1, 1 + 3 * n, 3) for n in shape)]
    fx.FocalLoss(axis=axis).value_and_grad(logits, target, None, grad_out)
    expected = oracle.expected_of("FocalLoss", {"axis": axis}, logits, target)
    assert_within(grad_out, expected.grad, expected.grad_bound, "gradient")
    grad_out[...] = 77
    assert np.all(surroundings == 77)


@pytest.mark.parametrize("name", [*WRITABLE_LAYOUTS, "byte_swapped"])
@pytest.mark.parametrize("kind", ["index", "probabilities"])
def test_in_place_over_the_logits(dtype, name, kind):
    for shape, axis in (*SHAPES, ((2, 3000), 1)):
        check_in_place(dtype, name, shape, axis, kind)


def check_in_place(dtype, name, shape, axis, kind):
    rng = np.random.default_rng(5)
    logits, target = random_logits(rng, shape, dtype), rng.integers(0, shape[axis], row_shape_of(shape, axis))
    if kind == "probabilities":
        target = random_probabilities(rng, shape, dtype, axis)
    options = {"axis": axis, "label_smoothing": 0.1}
    loss, store = fx.FocalLoss(**options), LAYOUTS[name]
    expected = oracle.expected_of("FocalLoss", options, logits, target)
    separate = loss.value_grad_hess(store(logits.copy()), target)
    for n_outputs in (2, 3):
        over = store(logits.copy())
        if n_outputs == 2:
            results = (*loss.value_and_grad(over, target, grad_out=over), separate[2])
        else:
            results = loss.value_grad_hess(over, target, grad_out=over)
        assert results[1] is over
        oracle.assert_results(results, expected)
        if name in ("C", "F"):  # new outputs then have the strides of the logits, and all is the same computation
            for a, b in zip(results, separate, strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("shape", [(17, 3), (6, 4, 5), (2, 3, 4, 5)], ids=str)
def test_new_outputs_have_the_memory_order_of_the_logits(dtype, shape):
    rng = np.random.default_rng(6)
    for order in itertools.permutations(range(len(shape))):
        logits = random_logits(rng, np.array(shape)[list(order)], dtype).transpose(np.argsort(order))
        _, grad, hess = fx.FocalLoss().value_grad_hess(logits, np.zeros(shape[:-1], int))
        assert grad.strides == hess.strides == np.empty_like(logits).strides


def test_outputs_may_lie_between_the_logits(dtype):
    # Neighbouring columns of one array share no element, although one lies within the bounds of the other.
    table = random_logits(np.random.default_rng(7), (17, 12), dtype)
    logits, grad_out, hess_out = table[:, 0:4], table[:, 4:8], table[:, 8:12]
    before = logits.copy()
    expected = oracle.expected_of("FocalLoss", {}, before, np.zeros(17, int))
    results = fx.FocalLoss().value_grad_hess(logits, np.zeros(17, int), None, grad_out, hess_out)
    oracle.assert_results(results, expected)
    np.testing.assert_array_equal(logits, before)
