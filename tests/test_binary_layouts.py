"""The losses of one logit: every memory layout of every array, crops that nothing can flatten, outputs of any layout."""

import itertools

import numpy as np
import oracle
import pytest
from arrays import LAYOUTS, WRITABLE_LAYOUTS, binary_target, nasty_elements, random_logits
from tolerances import REORDERED, assert_same_bits, assert_within, eps

import fastxent as fx

pytestmark = pytest.mark.usefixtures("isa")

# Options that reach every part of an element: per label, per row, smoothed.
CASES = {
    "plain": ("BinaryCrossEntropy", {"reduction": "none"}, "int"),
    "weighted": ("BinaryCrossEntropy", {"pos_weight": 2.5, "label_smoothing": 0.05, "ignore_index": -1}, "soft"),
    "probs": ("BinaryCrossEntropy", {"inputs": "probs", "reduction": "none"}, "soft"),
    "focal": ("BinaryFocalLoss", {"alpha": 0.25, "reduction": "none"}, "bool"),
    "power": ("BinaryFocalLoss", {"gamma": 3.5, "label_smoothing": 0.05}, "soft"),
}
each_case = pytest.mark.parametrize("case", CASES)


def arguments_of(rng, case, shape, dtype):
    name, options, kind = CASES[case]
    z = rng.uniform(0.1, 0.9, shape).astype(dtype) if case == "probs" else random_logits(rng, shape, dtype, 5.0)
    return name, options, z, binary_target(rng, shape, kind, dtype)


@each_case
def test_every_layout(dtype, layout, case):
    for shape in ((67,), (17, 3), (3, 17), (9, 1), (2, 5, 9), (3, 2, 2, 5)):
        rng = np.random.default_rng(0)
        name, options, z, target = arguments_of(rng, case, shape, dtype)
        weight = rng.uniform(0.5, 2, shape)
        expected = oracle.expected_of(name, options, z, target, weight)
        loss = getattr(fx, name)(**options)
        oracle.assert_results(loss.value_grad_hess(layout(z), layout(target), layout(weight)), expected)
        # One of them alone in this layout, the others contiguous.
        for arguments in ((layout(z), target, weight), (z, layout(target), weight), (z, target, layout(weight))):
            oracle.assert_results(loss.value_grad_hess(*arguments), expected)


@pytest.mark.parametrize("shape", [(4, 9, 5), (2, 3, 4, 5)], ids=str)
@each_case
def test_every_order_of_the_axes(dtype, case, shape):
    rng = np.random.default_rng(1)
    name, options, z, target = arguments_of(rng, case, shape, dtype)
    weight = rng.uniform(0.5, 2, shape[:1])
    expected = oracle.expected_of(name, options, z, target, weight)
    for order in itertools.permutations(range(len(shape))):
        back = np.argsort(order)
        turned = np.ascontiguousarray(z.transpose(order)).transpose(back)
        turned_target = np.ascontiguousarray(target.transpose(order[::-1])).transpose(np.argsort(order[::-1]))
        results = getattr(fx, name)(**options).value_grad_hess(turned, turned_target, weight)
        oracle.assert_results(results, expected)
        assert results[1].strides == results[2].strides == np.empty_like(turned).strides


@each_case
def test_crops_that_cannot_be_flattened(dtype, case):
    # Cropped on both sides, walked in steps, and backwards, so that no two axes are one in memory.
    rng = np.random.default_rng(2)
    crop = (slice(1, 4), slice(1, 12, 2), slice(7, 0, -1), slice(2, -2))
    name, options, big, big_target = arguments_of(rng, case, (6, 13, 9, 8), dtype)
    before = big.copy()
    for order in ((0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)):
        z, target = big[crop].transpose(order), big_target[crop].transpose(order)
        weight = rng.uniform(0.5, 2, z.shape)
        expected = oracle.expected_of(name, options, z, target, weight)
        oracle.assert_results(getattr(fx, name)(**options).value_grad_hess(z, target, weight), expected)
    np.testing.assert_array_equal(big, before)


@each_case
def test_stride_zero(dtype, case):
    # np.broadcast_to: one row seen many times, one column, and one number.
    rng = np.random.default_rng(3)
    name, options, z, target = arguments_of(rng, case, (17, 9), dtype)
    loss = getattr(fx, name)(**options)
    for source in ((0, slice(None)), (slice(None), slice(1)), (0, 0)):
        one_z, one_target = (np.broadcast_to(a[source], (17, 9)) for a in (z, target))
        weight = np.broadcast_to(1.5, (17, 9))
        expected = oracle.expected_of(name, options, one_z.copy(), one_target.copy(), weight.copy())
        results = loss.value_grad_hess(one_z, one_target, weight)
        oracle.assert_results(results, expected)
        assert all(0 not in np.asarray(result).strides for result in results)
        oracle.assert_results(loss.value_grad_hess(one_z, one_target.copy(), weight[:, 0]), expected)


@pytest.mark.parametrize("case", ["weighted", "focal"])
def test_several_threads_over_an_awkward_layout(dtype, case):
    rng = np.random.default_rng(4)
    name, options, z, target = arguments_of(rng, case, (1001, 101), dtype)
    weight = rng.uniform(0.5, 2, 1001)
    loss = getattr(fx, name)(**options)
    expected = loss.value_grad_hess(z, target, weight)
    for store in (np.asfortranarray, LAYOUTS["strided"]):
        results = loss.value_grad_hess(store(z), store(target), weight)
        for a, b in zip(results, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=REORDERED * eps(dtype), atol=0)


def test_memory_mapped_logits(dtype, tmp_path):
    z = random_logits(np.random.default_rng(5), (33, 7), dtype)
    z.tofile(tmp_path / "logits")
    mapped = np.memmap(tmp_path / "logits", dtype, mode="r", shape=(33, 7))
    for name in ("BinaryCrossEntropy", "BinaryFocalLoss"):
        _, grad = getattr(fx, name)().value_and_grad(mapped, np.zeros((33, 7), int))
        assert type(grad) is np.ndarray
        np.testing.assert_array_equal(grad, getattr(fx, name)().value_and_grad(z, np.zeros((33, 7), int))[1])


# --- outputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grad_layout", WRITABLE_LAYOUTS)
@pytest.mark.parametrize("case", ["weighted", "focal"])
def test_outputs_of_another_layout_than_the_logits(dtype, grad_layout, case):
    for shape in ((67,), (17, 3), (2, 5, 9)):
        name, options, z, target = arguments_of(np.random.default_rng(6), case, shape, dtype)
        expected = oracle.expected_of(name, options, z, target)
        for hess_layout, logits_layout in itertools.product(WRITABLE_LAYOUTS, ("C", "F", "strided", "byte_swapped")):
            grad_out = WRITABLE_LAYOUTS[grad_layout](np.full(shape, np.nan, dtype))
            hess_out = WRITABLE_LAYOUTS[hess_layout](np.full(shape, np.nan, dtype))
            results = getattr(fx, name)(**options).value_grad_hess(
                LAYOUTS[logits_layout](z), target, None, grad_out, hess_out
            )
            assert results[1] is grad_out
            assert results[2] is hess_out
            oracle.assert_results(results, expected)


@each_case
def test_nothing_is_written_beside_a_strided_output(dtype, case):
    for shape in ((67,), (17, 3), (2, 5, 9)):
        name, options, z, target = arguments_of(np.random.default_rng(7), case, shape, dtype)
        surroundings = np.full([3 * n + 2 for n in shape], 77, dtype)
        grad_out = surroundings[tuple(slice(1, 1 + 3 * n, 3) for n in shape)]
        _, grad = getattr(fx, name)(**options).value_and_grad(z, target, None, grad_out)
        expected = oracle.expected_of(name, options, z, target)
        assert_within(grad, expected.grad, expected.grad_bound, f"gradient {shape}")
        grad_out[...] = 77
        assert np.all(surroundings == 77)


@pytest.mark.parametrize("layout_name", [*WRITABLE_LAYOUTS, "byte_swapped"])
@each_case
def test_in_place_over_the_logits(dtype, case, layout_name):
    store = LAYOUTS[layout_name]
    for shape in ((67,), (17, 3), (2, 5, 9), (3, 3001)):
        rng = np.random.default_rng(8)
        name, options, z, target = arguments_of(rng, case, shape, dtype)
        weight = rng.uniform(0.5, 2, shape[0])
        loss = getattr(fx, name)(**options)
        separate = loss.value_grad_hess(store(z.copy()), target, weight)
        oracle.assert_results(separate, oracle.expected_of(name, options, z, target, weight))
        over = store(z.copy())
        value, grad = loss.value_and_grad(over, target, weight, over)
        assert grad is over
        np.testing.assert_array_equal(value, separate[0])
        np.testing.assert_array_equal(grad, separate[1])
        over = store(z.copy())
        results = loss.value_grad_hess(over, target, weight, over)
        assert results[1] is over
        for a, b in zip(results, separate, strict=True):
            np.testing.assert_array_equal(a, b)


def test_outputs_may_lie_between_the_logits(dtype):
    # Neighbouring columns of one array share no element, although one lies within the bounds of the other.
    for case in CASES:
        rng = np.random.default_rng(10)
        table = rng.uniform(0.1, 0.9, (17, 12)).astype(dtype)
        name, options, _, target = arguments_of(rng, case, (17, 4), dtype)
        z, grad_out, hess_out = table[:, 0:4], table[:, 4:8], table[:, 8:12]
        before = z.copy()
        expected = oracle.expected_of(name, options, before, target)
        results = getattr(fx, name)(**options).value_grad_hess(z, target, None, grad_out, hess_out)
        oracle.assert_results(results, expected)
        np.testing.assert_array_equal(z, before)


def test_a_loss_without_reduction_has_the_order_of_the_logits_or_c(dtype):
    # Whichever: it must hold the right numbers in the right places.
    z = np.asfortranarray(nasty_elements(np.random.default_rng(11), (9, 7), dtype))
    target = binary_target(np.random.default_rng(12), (9, 7), "soft", dtype)
    for name in ("BinaryCrossEntropy", "BinaryFocalLoss"):
        loss = getattr(fx, name)(reduction="none")
        assert_same_bits(loss(z, target), loss(np.ascontiguousarray(z), target))
