"""`softmax`, `log_softmax`, `logsumexp`: against the reference in higher precision, limits, layouts, outputs."""

import numpy as np
import oracle
import pytest
from arrays import LAYOUTS, N_CLASSES, N_ROWS, WRITABLE_LAYOUTS, nasty_logits, random_logits
from tolerances import BASE, LARGEST_GAP, LOG_SUM_EXP, assert_within, eps, subnormal_slack

import fastxent as fx
from fastxent import _reference as reference

pytestmark = pytest.mark.usefixtures("isa")

INF, NAN = np.inf, np.nan


def assert_as_expected(x, axis=-1):
    dtype = x.dtype.newbyteorder("=")
    wide = oracle.widened(x)
    p, log_p, log_sum_exp = (
        f(wide, axis=axis) for f in (reference.softmax, reference.log_softmax, reference.logsumexp)
    )
    with np.errstate(invalid="ignore"):
        largest = wide.max(axis=axis, keepdims=True)
        distance = np.minimum(np.where(wide == largest, 0, largest - wide), LARGEST_GAP[dtype])
    gap = np.sort(distance, axis=axis).take([min(1, wide.shape[axis] - 1)], axis=axis)
    slack = subnormal_slack(dtype)
    assert_within(fx.softmax(x, axis=axis), p, (BASE + distance) * eps(dtype) * p + slack, "softmax")
    assert_within(fx.log_softmax(x, axis=axis), log_p, (BASE + gap) * eps(dtype) * np.abs(log_p) + slack, "log_softmax")
    terms = np.abs(largest.squeeze(axis)) + np.abs(log_p).min(axis=axis)
    assert_within(fx.logsumexp(x, axis=axis), log_sum_exp, LOG_SUM_EXP * eps(dtype) * terms + slack, "logsumexp")


@pytest.mark.parametrize("n_classes", N_CLASSES)
def test_every_number_of_classes(dtype, n_classes):
    n_rows = 17 if n_classes < 2000 else 3
    assert_as_expected(nasty_logits(np.random.default_rng(n_classes), n_rows, n_classes, dtype))


@pytest.mark.parametrize("n_rows", [n for n in N_ROWS if n > 0])
@pytest.mark.parametrize("n_classes", [2, 10, 17, 100])
def test_every_number_of_rows(dtype, n_rows, n_classes):
    assert_as_expected(nasty_logits(np.random.default_rng(n_rows), n_rows, n_classes, dtype))


# --- limits -----------------------------------------------------------------------------------------------------------

# (row, softmax, log_softmax, logsumexp)
LIMITS = [
    ([0, -INF, 0], [0.5, 0, 0.5], [-np.log(2), -INF, -np.log(2)], np.log(2)),
    ([-INF, 3, -INF], [0, 1, 0], [-INF, 0, -INF], 3),
    ([INF, 0, -INF], [1, 0, 0], [0, -INF, -INF], INF),
    ([INF, INF, 0], [NAN] * 3, [NAN] * 3, INF),
    ([-INF, -INF, -INF], [NAN] * 3, [NAN] * 3, -INF),
    ([NAN, 0, 0], [NAN] * 3, [NAN] * 3, NAN),
    ([0, INF, NAN], [NAN] * 3, [NAN] * 3, NAN),
    ([-INF, -INF, NAN], [NAN] * 3, [NAN] * 3, NAN),
    ([3e38, 3e38, -3e38], [0.5, 0.5, 0], [-np.log(2), -np.log(2), -6e38], 3e38),
]


@pytest.mark.parametrize(
    "place",
    [(3, (0, 1, 2)), (16, (0, 7, 15)), (17, (3, 15, 16)), (100, (2, 64, 99)), (70000, (9000, 40000, 69999))],
    ids=str,
)
@pytest.mark.parametrize(("row", "p", "log_p", "log_sum_exp"), LIMITS, ids=str)
def test_limits(dtype, place, row, p, log_p, log_sum_exp):
    # The other classes are masked, which changes no result; the row lies among ordinary ones.
    n_classes, where = place
    x = np.zeros((18, n_classes), dtype) if n_classes < 1000 else np.zeros((2, n_classes), dtype)
    for i in {0, len(x) // 2, len(x) - 1}:
        now = x.copy()
        now[i] = -INF
        now[i, list(where)] = row
        close = 4 * eps(dtype)
        with np.errstate(over="ignore"):
            expected = np.full(n_classes, NAN if np.isnan(p[0]) else 0, dtype)
            expected[list(where)] = p
            np.testing.assert_allclose(fx.softmax(now)[i], expected, rtol=close)
            expected = np.full(n_classes, NAN if np.isnan(p[0]) else -INF, dtype)
            expected[list(where)] = np.asarray(log_p).astype(dtype)
        np.testing.assert_allclose(fx.log_softmax(now)[i], expected, rtol=close)
        np.testing.assert_allclose(fx.logsumexp(now)[i], np.asarray(log_sum_exp, dtype), rtol=close)
        for f in (fx.softmax, fx.log_softmax, fx.logsumexp):
            np.testing.assert_array_equal(np.delete(f(now), i, 0), np.delete(f(x), i, 0))


def test_nothing_to_sum(dtype):
    assert fx.logsumexp(np.zeros((4, 0), dtype)).tolist() == [-INF] * 4
    assert fx.logsumexp(np.zeros((0, 4), dtype)).shape == (0,)
    assert fx.logsumexp(np.zeros((0, 4), dtype), axis=0).tolist() == [-INF] * 4
    for f in (fx.softmax, fx.log_softmax):
        assert f(np.zeros((4, 0), dtype)).shape == (4, 0)
        assert f(np.zeros((0, 4), dtype)).shape == (0, 4)


def test_one_class(dtype):
    x = np.array([[3], [-1e30], [INF], [-INF], [NAN]], dtype)
    np.testing.assert_array_equal(fx.softmax(x)[:, 0], [1, 1, 1, NAN, NAN])
    np.testing.assert_array_equal(fx.log_softmax(x)[:, 0], [0, 0, 0, NAN, NAN])
    np.testing.assert_array_equal(fx.logsumexp(x), x[:, 0])


# --- layouts and outputs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(17, 3), (3, 17), (17, 20), (20, 17), (2, 5, 9), (2, 3, 4, 5)], ids=str)
def test_every_axis_of_every_layout(dtype, layout, shape):
    x = layout(random_logits(np.random.default_rng(0), shape, dtype, 5.0))
    for axis in range(-len(shape), len(shape)):
        assert_as_expected(x, axis)


def test_axes_of_a_crop(dtype):
    x = random_logits(np.random.default_rng(1), (6, 7, 8, 9), dtype)[1:-1, ::2, 2:-1, ::-1]
    for axis in range(4):
        assert_as_expected(x, axis)


@pytest.mark.parametrize("name", WRITABLE_LAYOUTS)
@pytest.mark.parametrize("shape", [(17, 3), (20, 17), (2, 3000)], ids=str)
@pytest.mark.parametrize("f", [fx.softmax, fx.log_softmax])
def test_out_and_in_place(dtype, name, shape, f):
    store = WRITABLE_LAYOUTS[name]
    x = random_logits(np.random.default_rng(2), shape, dtype)
    # Kernels depend on the strides; each of two results is within BASE + distance of the truth, a distance up to 8.
    close = 2 * (BASE + 8) * eps(dtype)
    for axis in (0, 1):
        fresh = f(x, axis=axis)
        out = store(np.full(shape, NAN, dtype))
        assert f(x, axis=axis, out=out) is out
        np.testing.assert_allclose(out, fresh, rtol=close)
        over = store(x.copy())
        assert f(over, axis=axis, out=over) is over
        np.testing.assert_allclose(over, fresh, rtol=close)


def test_results_are_new_arrays_in_the_order_and_dtype_of_x(dtype):
    x = random_logits(np.random.default_rng(3), (5, 6, 7), dtype)
    for order in ("C", "F"):
        stored = np.array(x, order=order)
        before = stored.copy()
        for f in (fx.softmax, fx.log_softmax):
            out = f(stored, axis=1)
            assert (out.shape, out.dtype, out.strides) == (x.shape, dtype, stored.strides)
            assert not np.shares_memory(out, stored)
        log_sum_exp = fx.logsumexp(stored, axis=1)
        assert (log_sum_exp.shape, log_sum_exp.dtype) == ((5, 7), dtype)
        np.testing.assert_array_equal(stored, before)
    assert np.ndim(fx.logsumexp(x[0, 0])) == 0
    assert fx.logsumexp(x[0, 0]).dtype == dtype


def test_lists_integers_and_read_only_arrays():
    assert fx.softmax([[0, 0]]).tolist() == [[0.5, 0.5]]
    assert fx.softmax(np.zeros(4, np.int16)).tolist() == [0.25] * 4
    assert fx.logsumexp([True, True]) == pytest.approx(1 + np.log(2))
    x = LAYOUTS["read_only"](np.zeros((2, 2)))
    assert fx.log_softmax(x)[0, 0] == pytest.approx(-np.log(2))


def test_softmax_is_the_exponential_of_log_softmax(dtype):
    x = random_logits(np.random.default_rng(4), (33, 9), dtype, 3.0)
    log_p = fx.log_softmax(x)
    # exp magnifies the rounding of log_p by its size.
    np.testing.assert_allclose(np.exp(log_p), fx.softmax(x), rtol=(2 * BASE + 40) * eps(dtype))
    np.testing.assert_allclose(fx.softmax(x).sum(axis=1), 1, rtol=9 * eps(dtype))
