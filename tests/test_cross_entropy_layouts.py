"""Every memory layout of every array, the class axis anywhere, crops that no reshape can flatten, outputs of any layout."""

import itertools

import numpy as np
import oracle
import pytest
from arrays import LAYOUTS, WRITABLE_LAYOUTS, at_byte, nasty_logits, random_logits, random_probabilities
from tolerances import assert_within

import fastxent as fx

pytestmark = pytest.mark.usefixtures("isa")

OPTIONS = {"reduction": "none", "label_smoothing": 0.05}


def assert_results(results, expected):
    value, grad, hess = results
    assert_within(value, expected.value, expected.value_bound, "value")
    assert_within(grad, expected.grad, expected.grad_bound, "gradient")
    assert_within(hess, expected.hess, expected.hess_bound, "Hessian")


# 3 classes: lanes are rows; 20: lanes are classes, or rows where those are contiguous. 17 rows: a block and a tail.
@pytest.mark.parametrize("shape", [(17, 3), (17, 20), (3, 17), (20, 17), (1, 5), (5, 1)], ids=str)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("target_kind", ["index", "probabilities"])
def test_two_axes(dtype, layout, shape, axis, target_kind):
    rng = np.random.default_rng(0)
    logits = nasty_logits(rng, *shape, dtype)
    row_shape = shape[:axis] + shape[axis + 1 :]
    sample_weight = layout(rng.uniform(0.5, 2, row_shape))
    target = rng.integers(0, shape[axis], row_shape)
    if target_kind == "probabilities":
        target = random_probabilities(rng, shape, dtype, axis)
    options = OPTIONS | {"axis": axis}
    expected = oracle.cross_entropy(options, logits, target, sample_weight)
    results = fx.CrossEntropy(**options).value_grad_hess(layout(logits), layout(target), sample_weight)
    assert_results(results, expected)


@pytest.mark.parametrize("shape", [(2, 9, 5), (3, 4, 2, 9), (2, 3, 2, 3, 4)], ids=str)
def test_crops_that_cannot_be_flattened(dtype, shape):
    # Every axis is cropped on both sides, or walked in steps, or backwards, so that no two of them are one in memory;
    # and every one of them is the class axis once, also counted from the end.
    rng = np.random.default_rng(1)
    big = random_logits(rng, [2 * n + 3 for n in shape], dtype, 5.0)
    crop = tuple((slice(1, 1 + n), slice(1, 1 + 2 * n, 2), slice(n, 0, -1))[i % 3] for i, n in enumerate(shape))
    for order in (range(len(shape)), reversed(range(len(shape))), np.roll(range(len(shape)), 1)):
        logits = big[crop].transpose(*order)
        before = big.copy()
        for axis in range(-len(shape), len(shape)):
            axis_from_front = axis % len(shape)
            row_shape = logits.shape[:axis_from_front] + logits.shape[axis_from_front + 1 :]
            options = OPTIONS | {"axis": axis}
            for target in (
                rng.integers(0, logits.shape[axis], row_shape),
                random_probabilities(rng, logits.shape, dtype, axis),
            ):
                sample_weight = rng.uniform(0.5, 2, row_shape)
                expected = oracle.cross_entropy(options, logits, target, sample_weight)
                results = fx.CrossEntropy(**options).value_grad_hess(logits, target, sample_weight)
                assert_results(results, expected)
        np.testing.assert_array_equal(big, before)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_reductions_of_a_crop(dtype, reduction):
    rng = np.random.default_rng(2)
    logits = random_logits(rng, (6, 7, 8, 9), dtype)[1:-1, ::2, 2:-1, ::-1]
    for axis in range(4):
        row_shape = logits.shape[:axis] + logits.shape[axis + 1 :]
        target = rng.integers(0, logits.shape[axis], row_shape)
        options = {"axis": axis, "reduction": reduction, "class_weight": "balanced"}
        sample_weight = rng.uniform(0, 2, row_shape[:1])
        expected = oracle.cross_entropy(options, logits, target, sample_weight)
        assert_results(fx.CrossEntropy(**options).value_grad_hess(logits, target, sample_weight), expected)


@pytest.mark.parametrize("n_classes", [3, 20])
def test_stride_zero(dtype, n_classes):
    # np.broadcast_to: one row seen many times, and one element seen as all classes.
    row = random_logits(np.random.default_rng(3), n_classes, dtype)
    logits = np.broadcast_to(row, (17, n_classes))
    expected = oracle.cross_entropy(OPTIONS, logits.copy(), np.zeros(17, int))
    results = fx.CrossEntropy(**OPTIONS).value_grad_hess(logits, np.broadcast_to(0, 17), np.broadcast_to(1.0, 17))
    assert_results(results, expected)
    assert all(not any(s == 0 for s in out.strides) for out in results)
    constant = np.broadcast_to(dtype(2.5), (17, n_classes))
    spread = np.broadcast_to(dtype(1 / 16), (17, n_classes))
    expected = oracle.cross_entropy(OPTIONS, constant.copy(), spread.copy())
    assert_results(fx.CrossEntropy(**OPTIONS).value_grad_hess(constant, spread), expected)


def test_memory_mapped_logits(dtype, tmp_path):
    logits = random_logits(np.random.default_rng(4), (33, 7), dtype)
    logits.tofile(tmp_path / "logits")
    mapped = np.memmap(tmp_path / "logits", dtype, mode="r", shape=(33, 7))
    _, grad = fx.CrossEntropy().value_and_grad(mapped, np.zeros(33, int))
    assert type(grad) is np.ndarray
    np.testing.assert_array_equal(grad, fx.CrossEntropy().value_and_grad(logits, np.zeros(33, int))[1])


# --- outputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grad_layout", WRITABLE_LAYOUTS)
@pytest.mark.parametrize("hess_layout", WRITABLE_LAYOUTS)
@pytest.mark.parametrize("shape_axis", [((17, 3), 1), ((17, 20), 1), ((3, 33), 0), ((2, 5, 9), 1)], ids=str)
def test_outputs_of_another_layout_than_the_logits(dtype, grad_layout, hess_layout, shape_axis):
    shape, axis = shape_axis
    rng = np.random.default_rng(5)
    logits = random_logits(rng, shape, dtype)
    row_shape = shape[:axis] + shape[axis + 1 :]
    target = rng.integers(0, shape[axis], row_shape)
    loss = fx.CrossEntropy(axis=axis)
    expected = oracle.cross_entropy({"axis": axis}, logits, target)
    for logits_layout in ("C", "F", "strided", "byte_swapped"):
        grad_out = WRITABLE_LAYOUTS[grad_layout](np.full(shape, np.nan, dtype))
        hess_out = WRITABLE_LAYOUTS[hess_layout](np.full(shape, np.nan, dtype))
        value, grad, hess = loss.value_grad_hess(LAYOUTS[logits_layout](logits), target, None, grad_out, hess_out)
        assert grad is grad_out
        assert hess is hess_out
        assert_results((value, grad, hess), expected)


@pytest.mark.parametrize(
    "shape_axis", [((17, 3), 1), ((17, 20), 1), ((3, 33), 0), ((20, 33), 0), ((2, 5, 9), 1)], ids=str
)
def test_nothing_is_written_beside_a_strided_output(dtype, shape_axis):
    shape, axis = shape_axis
    rng = np.random.default_rng(6)
    logits = random_logits(rng, shape, dtype)
    target = rng.integers(0, shape[axis], shape[:axis] + shape[axis + 1 :])
    surroundings = np.full([3 * n + 2 for n in shape], 77, dtype)
    grad_out = surroundings[tuple(slice(1, 1 + 3 * n, 3) for n in shape)]
    fx.CrossEntropy(axis=axis).value_and_grad(logits, target, None, grad_out)
    expected = oracle.cross_entropy({"axis": axis}, logits, target)
    assert_within(grad_out, expected.grad, expected.grad_bound, "gradient")
    grad_out[...] = 77
    assert np.all(surroundings == 77)


@pytest.mark.parametrize("name", WRITABLE_LAYOUTS)
@pytest.mark.parametrize(
    "shape_axis", [((17, 3), 1), ((17, 20), 1), ((2, 3000), 1), ((3, 33), 0), ((2, 5, 9), 1)], ids=str
)
@pytest.mark.parametrize("target_kind", ["index", "probabilities"])
def test_in_place_over_the_logits(dtype, name, shape_axis, target_kind):
    shape, axis = shape_axis
    rng = np.random.default_rng(7)
    logits = random_logits(rng, shape, dtype)
    target = rng.integers(0, shape[axis], shape[:axis] + shape[axis + 1 :])
    if target_kind == "probabilities":
        target = random_probabilities(rng, shape, dtype, axis)
    options = {"axis": axis, "label_smoothing": 0.1}
    loss = fx.CrossEntropy(**options)
    expected = oracle.cross_entropy(options, logits, target)
    separate = loss.value_grad_hess(WRITABLE_LAYOUTS[name](logits.copy()), target)
    for n_outputs in (2, 3):
        over = WRITABLE_LAYOUTS[name](logits.copy())
        if n_outputs == 2:
            results = (*loss.value_and_grad(over, target, grad_out=over), separate[2])
        else:
            results = loss.value_grad_hess(over, target, grad_out=over)
        assert results[1] is over
        assert_results(results, expected)
        if name in ("C", "F"):  # new outputs then have the strides of the logits, and all is the same computation
            for a, b in zip(results, separate, strict=True):
                np.testing.assert_array_equal(a, b)


def test_in_place_over_byte_swapped_logits(dtype):
    logits = random_logits(np.random.default_rng(8), (17, 3), dtype)
    over = LAYOUTS["byte_swapped"](logits)
    _, grad = fx.CrossEntropy().value_and_grad(over, np.zeros(17, int), grad_out=over)
    assert grad is over
    np.testing.assert_array_equal(grad, fx.CrossEntropy().value_and_grad(logits, np.zeros(17, int))[1])


@pytest.mark.parametrize("shape", [(17, 3), (6, 4, 5), (2, 3, 4, 5)], ids=str)
def test_new_outputs_have_the_memory_order_of_the_logits(dtype, shape):
    rng = np.random.default_rng(9)
    for order in itertools.permutations(range(len(shape))):
        logits = random_logits(rng, np.array(shape)[list(order)], dtype).transpose(np.argsort(order))
        assert logits.shape == shape
        _, grad, hess = fx.CrossEntropy().value_grad_hess(logits, np.zeros(shape[:-1], int))
        assert grad.strides == hess.strides == np.empty_like(logits).strides


def test_outputs_may_lie_between_the_logits(dtype):
    # Neighbouring columns of one array share no element, although one lies within the bounds of the other.
    rng = np.random.default_rng(10)
    table = random_logits(rng, (17, 12), dtype)
    logits, grad_out, hess_out = table[:, 0:4], table[:, 4:8], table[:, 8:12]
    expected = oracle.cross_entropy({}, logits.copy(), np.zeros(17, int))
    before = logits.copy()
    results = fx.CrossEntropy().value_grad_hess(logits, np.zeros(17, int), None, grad_out, hess_out)
    assert_results(results, expected)
    np.testing.assert_array_equal(logits, before)


# Rows side by side, classes far apart: a run, several, blocks with a rest; chunks of 16 classes with a rest.
RUNS = [(1, 17, 16), (2, 33, 17), (1, 40, 2051), (1, 1000, 150), (3, 70, 31), (1, 20, 8207)]


@pytest.mark.parametrize("shape", RUNS, ids=str)
def test_runs_of_rows(dtype, shape):
    outer, n_classes, inner = shape
    rng = np.random.default_rng(3)
    rows = nasty_logits(rng, outer * inner, n_classes, dtype)
    rows[::5, rng.integers(0, n_classes, 3)] = -np.inf
    logits = at_byte(np.moveaxis(rows.reshape(outer, inner, n_classes), 2, 1), 16)
    target = rng.integers(0, n_classes, (outer, inner))
    weight = rng.choice([0.0, 0.5, 2.0], target.shape)
    options = {"axis": 1, "reduction": "none", "ignore_index": 3}
    loss = fx.CrossEntropy(**options)
    results = loss.value_grad_hess(logits, target, sample_weight=weight)
    flat = {"reduction": "none", "ignore_index": 3}
    expected = oracle.cross_entropy(flat, rows, target.ravel(), weight.ravel())
    by_row = [np.moveaxis(a, 1, 2).reshape(-1, n_classes) for a in results[1:]]
    assert_results((results[0].ravel(), *by_row), expected)
    in_place = at_byte(logits, 16)
    value, grad = loss.value_and_grad(in_place, target, sample_weight=weight, grad_out=in_place)
    np.testing.assert_array_equal(value, results[0])
    np.testing.assert_array_equal(grad, results[1])
    np.testing.assert_array_equal(loss(logits, target, sample_weight=weight), value)


def test_infinite_rows_among_runs_of_rows(dtype):
    rng = np.random.default_rng(4)
    logits = np.asfortranarray(random_logits(rng, (50, 45), dtype))
    target = np.full(50, 20)
    clean_value, clean_grad = fx.CrossEntropy(reduction="none").value_and_grad(logits, target)
    logits[:, :17][3] = -np.inf  # all of the first chunk
    logits[4, 20] = logits[5, 44] = logits[6, 2] = np.inf
    logits[7, [3, 40]] = np.inf
    logits[8] = -np.inf
    logits[9, 30] = np.nan
    value, grad = fx.CrossEntropy(reduction="none").value_and_grad(logits, target)
    first = slice(10, None)
    np.testing.assert_array_equal(value[first], clean_value[first])
    np.testing.assert_array_equal(grad[first], clean_grad[first])
    np.testing.assert_array_equal(value[4:10], [0, np.inf, np.inf, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(np.isnan(grad).all(axis=1), np.isin(np.arange(50), [7, 8, 9]))
    one_hot = np.eye(45, dtype=dtype)
    np.testing.assert_array_equal(grad[4:7], [0 * one_hot[20], one_hot[44] - one_hot[20], one_hot[2] - one_hot[20]])
    expected = oracle.cross_entropy({"reduction": "none"}, np.ascontiguousarray(logits[3:4]), target[3:4])
    assert_within(value[3:4], expected.value, expected.value_bound, "value")
    assert_within(grad[3:4], expected.grad, expected.grad_bound, "gradient")
