"""Below the public functions: exp, log1p and log of each level, the regimes that sizes lead to, streamed gradients."""

import numpy as np
import pytest
from arrays import N_CLASSES, at_byte, random_logits
from tolerances import eps, subnormal_slack

import fastxent as fx
from fastxent.cpu import engine

pytestmark = pytest.mark.usefixtures("isa")

# Half an eps is the last rounding; the other half (exp) and the rest (log1p) is the polynomial and the reduction.
EXP, LOG_1P = 1.0, 1.5
# In float64 the division by 2 + e serves 1 + e too: five roundings in place of three.
LOG_1P_OF_FRACTION = 2.5


def elementary(function, x):
    y = np.empty_like(x)
    engine.elementary(function, x, y)
    return y


def error_in_eps(actual, exact, dtype):
    error = np.abs(actual.astype(np.longdouble) - exact) - subnormal_slack(dtype)
    return np.max(error / exact) / eps(dtype)


def test_exp(dtype):
    lowest = float(np.log(np.finfo(dtype).smallest_subnormal))
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [
            rng.uniform(lowest, 0, 200_000),
            -np.geomspace(1e-30, -lowest, 100_000),
            # Next to the multiples of log(2) / 2, where the reduction changes its mind.
            np.add.outer(np.log(2) / 2 * np.arange(2 * lowest / np.log(2), 0), [-1e-6, -1e-12, 0]).ravel(),
        ]
    ).astype(dtype)
    y = elementary("exp", x)
    exact = np.exp(x.astype(np.longdouble))
    assert error_in_eps(y, exact, dtype) <= EXP
    normal = exact > 2 * np.finfo(dtype).tiny
    assert np.abs(y[normal] / exact[normal] - 1).max() <= EXP * eps(dtype)
    order = np.argsort(x)
    # Not a promise of any library, but steps down of more than an eps would be a wrong coefficient.
    assert np.all(np.diff(y[order]) >= -eps(dtype) * y[order][1:] - subnormal_slack(dtype))


def test_exp_at_its_ends(dtype):
    x = np.array([0, -0.0, -np.inf, np.nan, -1e30, np.finfo(dtype).min, -np.finfo(dtype).tiny], dtype)
    np.testing.assert_array_equal(elementary("exp", x), [1, 1, 0, np.nan, 0, 0, 1])


def test_log1p(dtype):
    rng = np.random.default_rng(1)
    largest = 1e30 if dtype is np.float32 else 1e300
    x = np.concatenate(
        [
            np.geomspace(np.finfo(dtype).tiny, largest, 200_000),
            rng.uniform(0, 3, 100_000),
            np.sqrt(0.5) * 2.0 ** np.arange(1, 60) - 1,  # where the exponent of 1 + x changes
            2.0 ** np.arange(1, 60) - 1,
        ]
    ).astype(dtype)
    assert error_in_eps(elementary("log1p", x), np.log1p(x.astype(np.longdouble)), dtype) <= LOG_1P


def test_log1p_of_nothing_and_of_the_smallest(dtype):
    smallest = np.finfo(dtype).smallest_subnormal
    x = np.array([0, smallest, 1000 * smallest, np.nan], dtype)
    np.testing.assert_array_equal(elementary("log1p", x), x)


def test_log1p_of_fractions(dtype):
    tiny = np.finfo(dtype).tiny
    x = np.concatenate([np.geomspace(tiny, 1, 200_000), np.linspace(0, 1, 100_001)[1:], [tiny / 4]]).astype(dtype)
    assert (
        error_in_eps(elementary("log1p_of_fraction", x), np.log1p(x.astype(np.longdouble)), dtype) <= LOG_1P_OF_FRACTION
    )
    ends = np.array([0, np.finfo(dtype).smallest_subnormal, np.nan], dtype)
    np.testing.assert_array_equal(elementary("log1p_of_fraction", ends), ends)


def test_log(dtype):
    rng = np.random.default_rng(3)
    smallest = np.finfo(dtype).smallest_subnormal
    x = np.concatenate(
        [
            np.geomspace(smallest, 1, 200_000),  # from the subnormal numbers on
            rng.uniform(0, 1, 100_000),
            np.nextafter(dtype(1), [0, 2]).astype(dtype),
            2.0 ** -np.arange(0, 120),
        ]
    ).astype(dtype)
    exact = np.log(x.astype(np.longdouble))
    error = np.abs(elementary("log", x) - exact) - LOG_1P * eps(dtype) * np.abs(exact)
    assert error.max() <= 0
    ends = np.array([0, -0.0, np.nan], dtype)
    np.testing.assert_array_equal(elementary("log", ends), [-np.inf, -np.inf, np.nan])


def regime(logits, **arrays):
    return engine.Job("cross_entropy", logits[None], target=np.zeros((1, len(logits)), int), **arrays).plan["regime"]


def test_the_sizes_of_the_tests_reach_every_regime(dtype):
    # The thresholds are tuned; whatever they are, tests of all sizes must run all kernels.
    reached = {regime(np.zeros((17, k), dtype)) for k in N_CLASSES}
    assert reached == {"tile", "short_rows", "rows", "long_rows"}
    assert regime(np.zeros((17, 3), dtype), inputs="probs") == "plain_rows"
    numbers = np.zeros((1, 17, 3), dtype)
    assert engine.Job("binary_cross_entropy", numbers, target=numbers).plan["regime"] == "elements"


# (rows, classes) of gradients beyond 32 MiB, where stores begin to bypass the caches; classes that are no multiple of
# a vector. Logits repeat every 1001 rows, which is quick to make and still puts each of them in every lane.
STREAMED = [(3_000_000, 3), (840_001, 11), (240_001, 37), (400_001, 22), (9_001, 1003), (1_001, 9_001)]


@pytest.mark.parametrize("shape", STREAMED, ids=str)
@pytest.mark.parametrize("start", [0, 4], ids=["aligned", "one element off"])
def test_streamed_gradients_are_those_written_in_place(shape, start):
    n_rows, n_classes = shape
    rng = np.random.default_rng(2)
    logits = np.resize(random_logits(rng, (1001, n_classes), np.float32), shape)
    target = np.resize(rng.integers(0, n_classes, 1001), n_rows)
    loss = fx.CrossEntropy(reduction="sum")
    streamed = at_byte(logits, start)
    job = engine.Job("cross_entropy", logits[None], grad=streamed[None], target=target[None])
    assert job.plan["stream"]
    value, grad = loss.value_and_grad(logits, target, grad_out=streamed)
    assert grad is streamed
    _, first_grad = loss.value_and_grad(logits[:1001], target[:1001])
    np.testing.assert_array_equal(grad[:1001], first_grad)
    np.testing.assert_array_equal(grad[-1001:], np.resize(first_grad, shape)[-1001:])
    over_value, over = loss.value_and_grad(logits, target, grad_out=logits)
    assert value == over_value
    np.testing.assert_array_equal(grad, over)


# Classes an even number of lines apart, and not; several blocks.
@pytest.mark.parametrize("inner", [32_768, 33_333])
@pytest.mark.parametrize("start", [0, 16], ids=["aligned", "four elements off"])
def test_streamed_runs_of_rows_are_those_written_in_place(inner, start):
    shape = (4, 40, inner)
    rng = np.random.default_rng(2)
    logits = random_logits(rng, shape, np.float32)
    target = rng.integers(0, 40, (4, inner))
    loss = fx.CrossEntropy(reduction="sum", axis=1)
    streamed = at_byte(np.full(shape, np.nan, np.float32), start)
    value, grad = loss.value_and_grad(logits, target, grad_out=streamed)
    over_value, over = loss.value_and_grad(logits, target, grad_out=logits)
    assert value == over_value
    np.testing.assert_array_equal(grad, over)


@pytest.mark.parametrize("shape", [(4_500_001,), (1_500_001, 3), (3, 1_500_001), (3_000, 1_500)], ids=str)
@pytest.mark.parametrize("start", [0, 4, 60], ids=["aligned", "one element off", "one element before a line"])
def test_streamed_elementwise_gradients(shape, start):
    # The first 5001 elements, again and again; 5001 is no multiple of a vector or a chunk.
    rng = np.random.default_rng(4)
    piece = random_logits(rng, 5001, np.float32, 3.0)
    labels = rng.integers(0, 2, 5001)
    logits, target = np.resize(piece, shape), np.resize(labels, shape)
    for loss in (fx.BinaryCrossEntropy(reduction="sum"), fx.BinaryFocalLoss(reduction="sum")):
        streamed = at_byte(np.zeros(shape, np.float32), start)
        assert engine.Job(
            "binary_cross_entropy",
            logits.reshape(1, 1, -1),
            grad=streamed.reshape(1, 1, -1),
            target=target.reshape(1, 1, -1),
        ).plan["stream"]
        value, _ = loss.value_and_grad(logits, target, grad_out=streamed)
        piece_value, piece_grad = loss.value_and_grad(piece, labels)
        np.testing.assert_array_equal(streamed, np.resize(piece_grad, shape))
        over = logits.copy()
        over_value, _ = loss.value_and_grad(over, target, grad_out=over)
        np.testing.assert_array_equal(over, streamed)
        assert value == pytest.approx(over_value, rel=1e-12)
        whole, rest = divmod(logits.size, 5001)
        assert value == pytest.approx(whole * piece_value + loss(piece[:rest], labels[:rest]), rel=1e-12)
    out = at_byte(np.zeros(shape, np.float32), start)
    fx.sigmoid(logits, out=out)
    np.testing.assert_array_equal(out, np.resize(fx.sigmoid(piece), shape))
