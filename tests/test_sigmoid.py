"""`sigmoid` and `log_sigmoid`: by hand, against the reference in higher precision, limits, layouts, outputs, threads."""

import itertools
import math

import numpy as np
import oracle
import pytest
from arrays import LAYOUTS, N_ELEMENTS, WRITABLE_LAYOUTS, nasty_elements, random_logits
from tolerances import BASE, ELEMENT, LARGEST_GAP, VALUE, assert_same_bits, assert_within, eps, subnormal_slack

import fastxent as fx
from fastxent import _config
from fastxent import _reference as reference

pytestmark = pytest.mark.usefixtures("isa")

INF, NAN = np.inf, np.nan
FUNCTIONS = ("sigmoid", "log_sigmoid")
each_function = pytest.mark.parametrize("name", FUNCTIONS)


def assert_as_expected(x, p=None, log_p=None):
    """`fx.sigmoid(x)`, `fx.log_sigmoid(x)`, or arrays given in their place, are those of the reference."""
    dtype = x.dtype.newbyteorder("=")
    wide = oracle.widened(x)
    expected, log_expected = reference.sigmoid(wide), reference.log_sigmoid(wide)
    slack = subnormal_slack(dtype)
    # Of p = 1 / (1 + exp(-x)) only an x below 0 is magnified, of log p only one above.
    below, above = np.clip(-wide, 0, LARGEST_GAP[dtype]), np.clip(wide, 0, LARGEST_GAP[dtype])
    bound = (ELEMENT["base"] + ELEMENT["per_distance"] * below) * eps(dtype) * expected + slack
    assert_within(fx.sigmoid(x) if p is None else p, expected, bound, "sigmoid")
    bound = (VALUE["base"] + VALUE["per_gap"] * above) * eps(dtype) * np.abs(log_expected) + slack
    assert_within(fx.log_sigmoid(x) if log_p is None else log_p, log_expected, bound, "log_sigmoid")


# --- values -----------------------------------------------------------------------------------------------------------


def test_by_hand(dtype):
    x = np.array([0, math.log(3), -math.log(3)], dtype)
    np.testing.assert_allclose(fx.sigmoid(x), [1 / 2, 3 / 4, 1 / 4], rtol=4 * eps(dtype))
    np.testing.assert_allclose(fx.log_sigmoid(x), np.log([1 / 2, 3 / 4, 1 / 4]), rtol=4 * eps(dtype))
    assert fx.sigmoid(2.0) == pytest.approx(0.8808, abs=5e-5)  # published with four digits
    assert fx.log_sigmoid(np.float32(17)) == pytest.approx(-4.1399376e-08, rel=1e-7)  # not 0


def test_every_number_of_elements(dtype):
    for n in N_ELEMENTS:
        assert_as_expected(nasty_elements(np.random.default_rng(n), n, dtype))


def test_every_shape(dtype):
    for shape in ((), (1,), (17, 5), (3, 5, 7), (0, 3), (3, 0)):
        assert_as_expected(np.asarray(random_logits(np.random.default_rng(0), shape, dtype, 10.0)))


def test_over_the_whole_range(dtype):
    largest = -math.log(float(np.finfo(dtype).smallest_subnormal)) + 2
    x = np.concatenate([np.linspace(-largest, largest, 20_001), np.geomspace(1e-30, 1e30, 5001)]).astype(dtype)
    assert_as_expected(x)
    assert_as_expected(-x)
    for f in (fx.sigmoid, fx.log_sigmoid):
        y = f(np.sort(x))
        # Not a promise, but steps down of more than two eps would be a wrong coefficient.
        assert np.all(np.diff(y) >= -2 * eps(dtype) * np.abs(y[1:]) - subnormal_slack(dtype))


LIMITS = [
    (INF, 1, 0),
    (-INF, 0, -INF),
    (1e30, 1, 0),
    (-1e30, 0, -1e30),
    (-0.0, 0.5, -math.log(2)),
    (NAN, NAN, NAN),
]


def test_limits(dtype):
    others = random_logits(np.random.default_rng(1), 37, dtype)
    for (x, p, log_p), position in itertools.product(LIMITS, (0, 7, 16, 36)):
        now = others.copy()
        now[position] = x
        for f, expected in ((fx.sigmoid, p), (fx.log_sigmoid, log_p)):
            np.testing.assert_allclose(f(now)[position], expected, rtol=2 * eps(dtype), err_msg=f"{f.__name__} of {x}")
            np.testing.assert_array_equal(np.delete(f(now), position), np.delete(f(others), position))


def test_they_are_the_softmax_of_two_classes(dtype):
    x = nasty_elements(np.random.default_rng(2), 200, dtype)
    pairs = np.stack([np.zeros_like(x), x], axis=1)
    # Each of the two is within (4 + |x|) eps of the truth.
    allowed = 2 * (BASE + np.minimum(np.abs(x), 110)) * eps(dtype)
    slack = 2 * subnormal_slack(dtype)
    for f, g in ((fx.sigmoid, fx.softmax), (fx.log_sigmoid, fx.log_softmax)):
        expected = g(pairs)[:, 1]
        assert np.all(np.abs(f(x) - expected) <= allowed * np.abs(expected) + slack)


def test_an_element_does_not_know_its_neighbours(dtype):
    x = nasty_elements(np.random.default_rng(3), 67, dtype)
    for f in (fx.sigmoid, fx.log_sigmoid):
        for start, stop in ((0, 1), (3, 40), (16, 32), (66, 67), (1, 67)):
            assert_same_bits(f(x[start:stop]), f(x)[start:stop])
        assert_same_bits(np.asarray(f(x[5])), np.asarray(f(x)[5]))


# --- layouts and outputs ----------------------------------------------------------------------------------------------


def test_every_layout(dtype, layout):
    for shape in ((67,), (17, 3), (2, 5, 9), (2, 3, 4, 5)):
        x = random_logits(np.random.default_rng(4), shape, dtype, 5.0)
        stored = layout(x)
        assert_as_expected(x, fx.sigmoid(stored), fx.log_sigmoid(stored))
        turned = layout(np.ascontiguousarray(x.T)).T
        assert_as_expected(x, fx.sigmoid(turned), fx.log_sigmoid(turned))


def test_crops_and_stride_zero(dtype):
    x = random_logits(np.random.default_rng(5), (6, 7, 8, 9), dtype)[1:-1, ::2, 2:-1, ::-1].transpose(2, 0, 3, 1)
    assert_as_expected(x)
    assert_as_expected(np.broadcast_to(x[0, 0, 0], (17, 4)))
    assert_as_expected(np.broadcast_to(dtype(2.5), (17, 4)))


@each_function
@pytest.mark.parametrize("store", WRITABLE_LAYOUTS)
def test_out_and_in_place(dtype, name, store):
    f = getattr(fx, name)
    for shape in ((67,), (17, 3), (2, 5, 9), (2, 3000)):
        x = random_logits(np.random.default_rng(6), shape, dtype)
        fresh = f(x)
        out = WRITABLE_LAYOUTS[store](np.full(shape, NAN, dtype))
        assert f(x, out=out) is out
        assert_same_bits(out, fresh)
        assert f(LAYOUTS["F"](x), out=out) is out
        assert_same_bits(out, fresh)
        over = WRITABLE_LAYOUTS[store](x.copy())
        assert f(over, out=over) is over
        assert_same_bits(over, fresh)


@each_function
def test_nothing_is_written_beside_a_strided_output(dtype, name):
    surroundings = np.full((53, 11), 77, dtype)
    out = surroundings[1:52:3, 1:10:3]
    x = random_logits(np.random.default_rng(7), (17, 3), dtype)
    getattr(fx, name)(x, out=out)
    assert_same_bits(out.copy(), getattr(fx, name)(x))
    out[...] = 77
    assert np.all(surroundings == 77)


@each_function
def test_byte_swapped_in_place(dtype, name):
    x = random_logits(np.random.default_rng(8), (17, 3), dtype)
    over = LAYOUTS["byte_swapped"](x)
    assert getattr(fx, name)(over, out=over) is over
    np.testing.assert_array_equal(over, getattr(fx, name)(x))


@each_function
def test_results_are_new_arrays_in_the_order_and_dtype_of_x(dtype, name):
    x = random_logits(np.random.default_rng(9), (5, 6, 7), dtype)
    for order in ("C", "F"):
        stored = np.array(x, order=order)
        before = stored.copy()
        y = getattr(fx, name)(stored)
        assert (y.shape, y.dtype, y.strides) == (x.shape, dtype, stored.strides)
        assert not np.shares_memory(y, stored)
        np.testing.assert_array_equal(stored, before)
    for value in (1.5, 1, True, [1, 2], np.int8([3])):
        y = getattr(fx, name)(value)
        assert y.dtype == np.float64
        assert np.shape(y) == np.shape(value)


# --- threads ----------------------------------------------------------------------------------------------------------


@each_function
@pytest.mark.skipif(_config.config()["OpenMP"] != "yes", reason="built without OpenMP")
def test_the_same_bits_for_any_number_of_threads(dtype, name):
    for shape in ((300_007,), (1001, 301)):
        x = random_logits(np.random.default_rng(10), shape, dtype, 10.0)
        results = []
        for n in (1, 2, 3):
            fx.set_num_threads(n)
            results.append(getattr(fx, name)(x))
        assert_same_bits(results[1], results[0])
        assert_same_bits(results[2], results[0])
        assert_same_bits(getattr(fx, name)(np.asfortranarray(x)), results[0])
