"""`fastxent.dask` on every kind of scheduler: a cluster of two processes too, one of which dies on the way."""

import os
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import scipy.sparse
from fresh import run_python
from tolerances import assert_same_bits, eps

import fastxent as fx
from fastxent import linear
from fastxent.cpu.engine import Job

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")
distributed = pytest.importorskip("distributed")
fxd = pytest.importorskip("fastxent.dask")

pytestmark = pytest.mark.thread_unsafe  # Dask's configuration and clusters belong to the process

N_ROWS, N_CLASSES, N_FEATURES = 203, 5, 4
# More blocks than the tree takes at once, some of them empty, one row, or the most of all.
CHUNKS = (20, 1, 0, 30, 7, 7, 7, 7, 7, 7, 50, 0, 60)
# The same sums in another order: 203 terms of one sign and more are wrong by far less than this.
REORDERED = 1e-12

RNG = np.random.default_rng(7)
LOGITS = RNG.standard_normal((N_ROWS, N_CLASSES)) * 3
LABELS = RNG.integers(0, N_CLASSES, N_ROWS)
SOFT = RNG.dirichlet(np.ones(N_CLASSES), N_ROWS)
WEIGHTS = RNG.random(N_ROWS) + 0.5
X = RNG.standard_normal((N_ROWS, N_FEATURES))
COEF, INTERCEPT = RNG.standard_normal((N_CLASSES, N_FEATURES)), RNG.standard_normal(N_CLASSES)

LOSSES = {
    "plain": (fx.CrossEntropy(), LABELS),
    "balanced": (fx.CrossEntropy(class_weight="balanced", ignore_index=2, label_smoothing=0.1), LABELS),
    "balanced soft": (fx.CrossEntropy(class_weight="balanced"), SOFT),
    "focal": (fx.FocalLoss(class_weight={1: 3.0}), LABELS),
    "binary": (fx.BinaryCrossEntropy(pos_weight=[1.0, 2.0, 0.5, 3.0, 1.0]), SOFT),
    "binary focal": (fx.BinaryFocalLoss(alpha=0.25, ignore_index=-1), np.where(LABELS[:, None] == 1, -1, SOFT > 0.2)),
}
losses = pytest.mark.parametrize(("loss", "target"), LOSSES.values(), ids=LOSSES)
BALANCED_BY_MASS = partial(replace, LOSSES["balanced soft"][0])
reductions = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


@pytest.fixture(autouse=True)
def _synchronous():
    with dask.config.set(scheduler="synchronous"):
        yield


def rows(array, chunks=CHUNKS):
    """Store an array in chunks of rows."""
    return da.from_array(array, chunks=(chunks, *array.shape[1:]))


def unknown(array, chunks=CHUNKS):
    """Store it in chunks whose sizes Dask is not told."""
    blocks = rows(array, chunks)
    blocks._chunks = ((np.nan,) * blocks.numblocks[0], *blocks.chunks[1:])
    return blocks


def tree(parts, split_every=fxd.SPLIT_EVERY):
    """Add numbers as the tree does: groups of eight, in order, until one is left."""
    while len(parts) > 1:
        parts = [sequential(parts[i : i + split_every]) for i in range(0, len(parts), split_every)]
    return parts[0]


def sequential(parts):
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def in_blocks(*arrays, chunks=CHUNKS):
    """Cut arrays where the chunks end."""
    ends = np.cumsum(chunks)
    return zip(*(np.split(a, ends[:-1]) for a in arrays), strict=True)


# ---- right, at any chunks ----


@losses
@reductions
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
def test_any_chunks_give_what_one_array_gives(loss, target, reduction, weights, dtype):
    loss, logits = replace(loss, reduction=reduction), LOGITS.astype(dtype)
    value, grad = loss.value_and_grad(logits, target, weights)
    for chunks in (CHUNKS, (N_ROWS,), 50):
        lazy = rows(logits, chunks)
        both = fxd.value_and_grad(loss, lazy, target, weights)
        assert both[1].chunks == lazy.chunks
        assert both[1].dtype == grad.dtype
        got, got_grad = dask.compute(*both)
        # A gradient is wrong by a few eps of its terms, which for soft targets cancel; the divisor adds one.
        np.testing.assert_allclose(got_grad, grad, rtol=100 * eps(dtype), atol=4 * eps(dtype) * np.abs(grad).max())
        if reduction == "none" and loss == BALANCED_BY_MASS(reduction=reduction):
            # Masses of classes are sums, too.
            np.testing.assert_allclose(got, value, rtol=REORDERED)
        elif reduction == "none":
            assert_same_bits(got, value)
            assert_same_bits(got_grad, grad)
        else:
            assert type(got) is np.float64
            assert got == pytest.approx(value, rel=REORDERED)
        assert_same_bits(fxd.value(loss, lazy, target, weights).compute(), got)


@losses
def test_one_chunk_gives_the_same_bits(loss, target):
    value, grad = loss.value_and_grad(LOGITS, target, WEIGHTS)
    got, got_grad = dask.compute(*fxd.value_and_grad(loss, rows(LOGITS, (N_ROWS,)), target, WEIGHTS))
    assert got == value
    assert_same_bits(got_grad, grad)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
def test_the_same_chunks_give_the_same_bits_added_on_one_machine(weights):
    loss = fx.CrossEntropy(label_smoothing=0.1, class_weight={0: 2.5})
    summed, each = replace(loss, reduction="sum"), np.ones(N_ROWS) if weights is None else weights
    sums = [summed(*block) for block in in_blocks(LOGITS, LABELS, each)]
    totals = [float(np.sum(np.where(label == 0, 2.5, 1.0) * w)) for label, w in in_blocks(LABELS, each)]
    expected = tree(sums) / tree(totals)
    got = fxd.value(loss, rows(LOGITS), LABELS, weights).compute()
    if weights is None:  # multiples of a half: exact in any order
        assert got == expected
    assert got == pytest.approx(expected, rel=REORDERED)
    assert fxd.value(summed, rows(LOGITS), LABELS, each).compute() == tree(sums)
    single = (1,) * N_ROWS
    sums = [summed(*block) for block in in_blocks(LOGITS, LABELS, chunks=single)]
    assert sequential(sums) != tree(sums)
    assert fxd.value(summed, rows(LOGITS, single), LABELS).compute() == tree(sums)


def test_linear_models_give_the_same_bits_added_on_one_machine():
    summed = fx.CrossEntropy(reduction="sum")
    parts = [linear.value_and_grad(summed, x, y, COEF, INTERCEPT) for x, y in in_blocks(X, LABELS)]
    got = dask.compute(*fxd.linear_value_and_grad(summed, rows(X), LABELS, COEF, INTERCEPT))
    assert_same_bits(got, tuple(tree([part[i] for part in parts]) for i in range(3)))


def test_means_of_means_would_be_wrong():
    # What dask_ml.metrics.log_loss does; one block holds one bad row.
    logits = np.array([[0.0, 9.0], [9.0, 0.0], [9.0, 0.0], [9.0, 0.0]])
    got = fxd.value(fx.CrossEntropy(), rows(logits, (1, 3)), np.zeros(4, int)).compute()
    means = [fx.CrossEntropy()(z, np.zeros(len(z), int)) for z in (logits[:1], logits[1:])]
    assert got == pytest.approx(fx.CrossEntropy()(logits, np.zeros(4, int)), rel=REORDERED)
    assert abs(np.mean(means) - got) > 1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_class_axis_may_be_any_and_all_others_chunked(axis):
    logits, labels, weights = RNG.standard_normal((6, 7, 8)), RNG.integers(0, 6, (7, 8)), RNG.random((7, 8))
    loss = fx.CrossEntropy(axis=axis, class_weight="balanced")
    logits = np.moveaxis(logits, 0, axis)
    chunks = [3, 3]
    chunks.insert(axis, -1)
    for weight in (None, weights, weights[:, 0]):
        expected = loss.value_and_grad(logits, labels, weight)
        got = dask.compute(*fxd.value_and_grad(loss, da.from_array(logits, chunks=chunks), labels, weight))
        assert got[0] == pytest.approx(expected[0], rel=REORDERED)
        np.testing.assert_allclose(got[1], expected[1], rtol=1e-11)
    each = replace(loss, reduction="none")
    assert_same_bits(fxd.value(each, da.from_array(logits, chunks=chunks), labels).compute().shape, (7, 8))


def test_one_row_and_one_number():
    assert fxd.value(fx.CrossEntropy(), da.from_array(LOGITS[0]), 3).compute() == fx.CrossEntropy()(LOGITS[0], 3)
    binary = fx.BinaryCrossEntropy()
    assert fxd.value(binary, da.from_array(np.array(0.5)), 1.0).compute() == binary(0.5, 1.0)
    assert fxd.value(binary, da.from_array(LOGITS[:, 0], chunks=9), LABELS % 2).compute() == pytest.approx(
        binary(LOGITS[:, 0], LABELS % 2), rel=REORDERED
    )


def test_unknown_chunks_and_mismatched_ones():
    loss = fx.CrossEntropy(class_weight="balanced")
    expected = fxd.value(loss, rows(LOGITS), LABELS, WEIGHTS).compute()
    assert fxd.value(loss, unknown(LOGITS), unknown(LABELS), unknown(WEIGHTS)).compute() == expected
    assert fxd.value(loss, unknown(LOGITS), rows(LABELS), unknown(WEIGHTS)).compute() == expected
    assert fxd.value(loss, rows(LOGITS), rows(LABELS, 50), list(WEIGHTS)).compute() == expected
    value, grad = fxd.value_and_grad(loss, unknown(LOGITS), unknown(SOFT))
    value, grad = dask.compute(value, grad)
    np.testing.assert_allclose(grad, loss.value_and_grad(LOGITS, SOFT)[1], rtol=1e-11, atol=1e-16)
    # As they come about: a mask of rows.
    lazy, labels = rows(LOGITS), rows(LABELS)
    kept = lazy[:, 0] > 0
    got = fxd.value(loss, lazy[kept], labels[kept]).compute()
    assert got == pytest.approx(loss(LOGITS[LOGITS[:, 0] > 0], LABELS[LOGITS[:, 0] > 0]), rel=REORDERED)
    got = dask.compute(*fxd.linear_value_and_grad(loss, unknown(X), unknown(LABELS), COEF))
    np.testing.assert_allclose(got[1], linear.value_and_grad(loss, X, LABELS, COEF)[1], rtol=1e-11)


def test_nothing_counted_is_zero():
    ignored = np.full(N_ROWS, -1)
    for loss, target, weights in (
        (fx.CrossEntropy(ignore_index=-1), ignored, None),
        (fx.CrossEntropy(class_weight=dict.fromkeys(range(N_CLASSES), 0.0), label_smoothing=0.1), LABELS, None),
        (fx.CrossEntropy(class_weight={0: 0.0}, label_smoothing=0.1), np.zeros_like(LABELS), None),
        (fx.FocalLoss(), LABELS, np.zeros(N_ROWS)),
    ):
        value, grad = dask.compute(*fxd.value_and_grad(loss, rows(LOGITS), target, weights))
        assert value == 0.0 == fxd.value(loss, rows(LOGITS), target, weights).compute()
        assert not grad.any()
        value, grad, _ = dask.compute(*fxd.linear_value_and_grad(loss, rows(X), target, COEF, None, weights))
        assert value == 0.0
        assert not grad.any()
    assert fxd.value(fx.CrossEntropy(), rows(LOGITS[:0], (0,)), LABELS[:0]).compute() == 0.0


def test_a_nan_row_is_nan_alone_and_ignored_ones_are_not_looked_at():
    logits = LOGITS.copy()
    logits[100, 2] = np.nan
    value, grad = dask.compute(*fxd.value_and_grad(fx.CrossEntropy(), rows(logits), LABELS))
    assert np.isnan(value)
    assert np.flatnonzero(np.isnan(grad).any(axis=1)).tolist() == [100]
    labels = np.where(np.arange(N_ROWS) == 100, -1, LABELS)
    value, grad = dask.compute(*fxd.value_and_grad(fx.CrossEntropy(ignore_index=-1), rows(logits), labels))
    assert value == pytest.approx(fx.CrossEntropy(ignore_index=-1)(LOGITS, labels), rel=REORDERED)
    assert not grad[100].any()


# ---- linear models ----

LINEAR = {
    "softmax": (fx.CrossEntropy(class_weight="balanced"), LABELS, COEF, INTERCEPT),
    "soft focal": (fx.FocalLoss(), SOFT, COEF, None),
    "binary": (fx.BinaryCrossEntropy(pos_weight=2.0), LABELS % 2, COEF[0], INTERCEPT[0]),
    "multi-label": (fx.BinaryFocalLoss(reduction="sum"), SOFT > 0.2, COEF, INTERCEPT),
}
BLOCKS = {"dense": np.asarray, "csr_array": scipy.sparse.csr_array, "csr_matrix": scipy.sparse.csr_matrix}


@pytest.mark.parametrize(("loss", "target", "coef", "intercept"), LINEAR.values(), ids=LINEAR)
@pytest.mark.parametrize("blocks", BLOCKS)
def test_linear_models(loss, target, coef, intercept, blocks, dtype):
    x, coef = X.astype(dtype), coef.astype(dtype)
    expected = linear.value_and_grad(loss, x, target, coef, intercept, WEIGHTS)
    lazy = fxd.linear_value_and_grad(
        loss, rows(x).map_blocks(BLOCKS[blocks], dtype=dtype), target, coef, intercept, WEIGHTS
    )
    got = dask.compute(*lazy)
    scale = np.abs(expected[1]).max()
    assert got[0] == pytest.approx(expected[0], rel=REORDERED if dtype == np.float64 else eps(dtype) * N_FEATURES)
    for actual, announced, right in zip(got[1:], lazy[1:], expected[1:], strict=True):
        if right is None:
            assert actual is None
            continue
        assert (actual.dtype, actual.shape) == (right.dtype, right.shape) == (announced.dtype, announced.shape)
        # Of the largest sum: a matrix product is as accurate as that.
        np.testing.assert_allclose(actual, right, rtol=0, atol=N_ROWS * eps(right.dtype) * scale)


def test_coefficients_may_be_lazy():
    loss = fx.CrossEntropy()
    eager = dask.compute(*fxd.linear_value_and_grad(loss, rows(X), LABELS, COEF, INTERCEPT))
    coef, intercept = da.from_array(COEF, chunks=2), da.from_array(INTERCEPT)
    assert_same_bits(dask.compute(*fxd.linear_value_and_grad(loss, rows(X), LABELS, coef, intercept)), eager)


# ---- lazy ----


def test_arguments_may_change_before_the_result_is_asked_for():
    coef, target = COEF.copy(), LABELS.copy()
    lazy = fxd.linear_value_and_grad(fx.CrossEntropy(), rows(X), target, coef)
    coef[...], target[...] = 0, 0  # as optimizers do with theirs
    assert_same_bits(
        dask.compute(*lazy)[:2], dask.compute(*fxd.linear_value_and_grad(fx.CrossEntropy(), rows(X), LABELS, COEF))[:2]
    )


@pytest.fixture
def kernel_calls(monkeypatch):
    """Count what the engine computes and surveys."""
    calls = Counter()

    class Counted(Job):
        def compute(self, divisor):
            calls["compute"] += 1
            return super().compute(divisor)

    monkeypatch.setattr("fastxent.cpu.run.CpuRun.job", Counted)
    # Every call takes the long way, where jobs are.
    for loss in (fx.CrossEntropy, fx.FocalLoss, fx.BinaryCrossEntropy, fx.BinaryFocalLoss):
        monkeypatch.setattr(loss, "_everyday_call", lambda self: None)
    return calls


@pytest.mark.parametrize("make", [fx.CrossEntropy, fx.FocalLoss, fx.BinaryCrossEntropy, fx.BinaryFocalLoss])
@reductions
def test_nothing_is_computed_until_asked_for_and_then_once_per_block(kernel_calls, make, reduction):
    loss, chunks = make(reduction=reduction), (50, 100, 53)
    target = LABELS if "Binary" not in make.__name__ else SOFT
    lazy = rows(LOGITS, chunks)
    asked = fxd.value(loss, lazy, target), *fxd.value_and_grad(loss, lazy, target)
    assert not kernel_calls
    asked[0].compute()
    assert kernel_calls.pop("compute") == len(chunks)
    dask.compute(*asked[1:])
    assert kernel_calls.pop("compute") == len(chunks)
    if reduction != "none":
        asked = fxd.linear_value_and_grad(loss, rows(X, chunks), target, COEF, INTERCEPT)
        assert not kernel_calls
        dask.compute(*asked)
        assert kernel_calls.pop("compute") == len(chunks)


def test_the_logits_are_not_written_to():
    logits = LOGITS.copy()
    dask.compute(*fxd.value_and_grad(fx.CrossEntropy(), rows(logits, (N_ROWS,)), LABELS))
    assert_same_bits(logits, LOGITS)


def test_what_is_asked_twice_has_one_name():
    loss = fx.CrossEntropy(class_weight={1: 2.0})
    lazy = rows(LOGITS)
    assert fxd.value(loss, lazy, LABELS).name == fxd.value(loss, lazy, LABELS).name
    assert fxd.value(loss, lazy, LABELS).name != fxd.value(replace(loss, class_weight={1: 3.0}), lazy, LABELS).name


def test_a_missing_dask_names_the_extra():
    code = """
import sys
sys.modules["dask"] = sys.modules["dask.array"] = None
import fastxent
try:
    import fastxent.dask
except ImportError as error:
    print(error)
"""
    assert run_python(code) == 'fastxent.dask needs dask: pip install "fastxent[dask]"'


# ---- errors ----

BAD_LABELS = np.where(np.arange(N_ROWS) == 21 + 7, 12, LABELS)  # row 7 of block 3
BAD_WEIGHTS = np.where(np.arange(N_ROWS) == 21 + 7, -1.0, WEIGHTS)
BAD_X = np.where(np.arange(N_ROWS)[:, None] == 21 + 7, np.inf, X)
LATE = {
    "label": (
        lambda loss: fxd.value(loss, rows(LOGITS), BAD_LABELS),
        "target must be in [0, 5); got 12 at index 7 of block (3,)",
    ),
    "label, gradient": (
        lambda loss: fxd.value_and_grad(loss, rows(LOGITS), BAD_LABELS)[1],
        "target must be in [0, 5); got 12 at index 7 of block (3,)",
    ),
    "label, linear": (
        lambda loss: fxd.linear_value_and_grad(loss, rows(X), BAD_LABELS, COEF)[0],
        "target must be in [0, 5); got 12 at index 7 of block (3,)",
    ),
    "label, balanced": (
        lambda loss: fxd.value(replace(loss, class_weight="balanced"), rows(LOGITS), BAD_LABELS),
        "target must be in [0, 5); got 12 at index 7 of block (3,)",
    ),
    "weight": (
        lambda loss: fxd.value(loss, rows(LOGITS), LABELS, BAD_WEIGHTS),
        "sample_weight must be finite and >= 0; got -1.0 at index 7 of block (3,)",
    ),
    "weights of one block": (
        lambda loss: fxd.value(loss, rows(LOGITS), LABELS, np.where(np.arange(N_ROWS) < 20, 1e308, 1.0)),
        "sample_weight must have a finite sum; got inf in block (0,)",
    ),
    "X": (
        lambda loss: fxd.linear_value_and_grad(loss, rows(BAD_X), LABELS, COEF)[1],
        "X must be finite; got inf at index (7, 0) of block (3,)",
    ),
    "classes": (
        lambda loss: fxd.value(replace(loss, class_weight=[1.0, 2.0]), rows(LOGITS, (N_ROWS,)), LABELS),
        "class_weight must have shape (5,); got shape (2,) in block (0,)",
    ),
    "unknown sizes": (
        lambda loss: fxd.value(loss, unknown(LOGITS, (100, 103)), unknown(LABELS[1:], (99, 103))),
        (
            "target must be integer class indices of shape (100,) or probabilities of shape (100, 5); "
            "got int64 of shape (99,) in block (0,)"
        ),
    ),
}


@pytest.mark.parametrize(("ask", "message"), LATE.values(), ids=LATE)
def test_errors_name_the_block(ask, message):
    asked = ask(fx.CrossEntropy())
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole text is below
        asked.compute()
    assert str(caught.value) == message


EARLY = {
    "loss": (lambda: fxd.value("mse", rows(LOGITS), LABELS), TypeError, "loss must be a loss of fastxent; got 'mse'"),
    "logits": (
        lambda: fxd.value(fx.CrossEntropy(), LOGITS, LABELS),
        TypeError,
        "logits must be a Dask array; got numpy.ndarray",
    ),
    "dtype": (
        lambda: fxd.value(fx.CrossEntropy(), rows(LOGITS * 1j), LABELS),
        TypeError,
        "logits must be float16, bfloat16, float32 or float64, or integers, booleans or lists of numbers; got complex128",
    ),
    "class axis": (
        lambda: fxd.value(fx.CrossEntropy(), da.from_array(LOGITS, chunks=(50, 2)), LABELS),
        ValueError,
        "logits must have its classes in one chunk of known size (rechunk({1: -1})); got (2, 2, 1)",
    ),
    "labels": (
        lambda: fxd.value(LOSSES["binary"][0], da.from_array(LOGITS, chunks=(50, 2)), SOFT),
        ValueError,
        (
            "logits must have its labels, each with its pos_weight, in one chunk of known size (rechunk({1: -1})); "
            "got (2, 2, 1)"
        ),
    ),
    "rows": (
        lambda: fxd.value(fx.CrossEntropy(), rows(LOGITS), LABELS[1:]),
        ValueError,
        (
            "target must be integer class indices of shape (203,) or probabilities of shape (203, 5); "
            "got int64 of shape (202,)"
        ),
    ),
    "weights": (
        lambda: fxd.value_and_grad(fx.CrossEntropy(), rows(LOGITS), LABELS, WEIGHTS[:, None]),
        ValueError,
        "sample_weight must have shape (203,); got shape (203, 1)",
    ),
    "other collections": (
        lambda: fxd.value(fx.CrossEntropy(), rows(LOGITS), dask.delayed(LABELS)),
        TypeError,
        "target must be a Dask or a NumPy array; got dask.delayed.DelayedLeaf",
    ),
    "unknown sizes, NumPy": (
        lambda: fxd.value(fx.CrossEntropy(), unknown(LOGITS), LABELS),
        TypeError,
        "target must be a Dask array, as chunks have unknown sizes; got numpy.ndarray",
    ),
    "unknown sizes, blocks": (
        lambda: fxd.value(fx.CrossEntropy(), unknown(LOGITS, (100, 103)), rows(LABELS, (50, 50, 103))),
        ValueError,
        "target must have (2,) blocks, as chunks have unknown sizes; got (3,)",
    ),
    "X": (
        lambda: fxd.linear_value_and_grad(fx.CrossEntropy(), X, LABELS, COEF),
        TypeError,
        "X must be a Dask array; got numpy.ndarray",
    ),
    "features": (
        lambda: fxd.linear_value_and_grad(fx.CrossEntropy(), da.from_array(X, chunks=(50, 2)), LABELS, COEF),
        ValueError,
        "X must have its features in one chunk of known size (rechunk({1: -1})); got (2, 2)",
    ),
    "coef": (
        lambda: fxd.linear_value_and_grad(fx.CrossEntropy(), rows(X), LABELS, COEF[:, 1:]),
        ValueError,
        "coef must have shape (n_classes, 4); got shape (5, 3)",
    ),
    "no coef": (
        lambda: fxd.linear_value_and_grad(fx.CrossEntropy(), rows(X), LABELS, None),
        TypeError,
        "coef must be float16, bfloat16, float32 or float64, or integers, booleans or lists of numbers; got object",
    ),
    "no features": (
        lambda: fxd.linear_value_and_grad(fx.CrossEntropy(), rows(X[:, 0]), LABELS, COEF),
        ValueError,
        "X must have shape (n_samples, n_features); got shape (203,)",
    ),
    "flat coef": (
        lambda: fxd.linear_value_and_grad(fx.CrossEntropy(), rows(X), LABELS, COEF[0]),
        ValueError,
        "coef must have shape (n_classes, 4); got shape (4,)",
    ),
    "intercept": (
        lambda: fxd.linear_value_and_grad(fx.CrossEntropy(), rows(X), LABELS, COEF, 1.0),
        ValueError,
        "intercept must have shape (5,); got shape ()",
    ),
    "reduction": (
        lambda: fxd.linear_value_and_grad(fx.CrossEntropy(reduction="none"), rows(X), LABELS, COEF),
        ValueError,
        "loss must have reduction 'mean' or 'sum'; got CrossEntropy(reduction='none')",
    ),
}


@pytest.mark.parametrize(("ask", "error", "message"), EARLY.values(), ids=EARLY)
def test_what_can_be_seen_before_is_said_before(ask, error, message):
    with pytest.raises(error) as caught:
        ask()
    assert str(caught.value) == message


# ---- schedulers ----


def asked():
    """Everything of interest at once."""
    loss = fx.CrossEntropy(class_weight="balanced", label_smoothing=0.1)
    lazy = rows(LOGITS)
    return (
        fxd.value(loss, lazy, LABELS, WEIGHTS),
        *fxd.value_and_grad(fx.FocalLoss(), lazy, SOFT),
        *fxd.linear_value_and_grad(loss, rows(X), LABELS, COEF, INTERCEPT),
    )


@pytest.mark.parametrize("n_workers", [1, 2, 5])
def test_threads_give_the_same_bits(n_workers):
    expected = dask.compute(*asked())
    for n_threads in (1, 2):
        fx.set_num_threads(n_threads)
        assert_same_bits(dask.compute(*asked(), scheduler="threads", num_workers=n_workers), expected)


@pytest.fixture(scope="module")
def cluster():
    """Two worker processes, each with its nanny, which starts it again when it dies."""
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "60s", "distributed.worker.memory.terminate": False}),
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", processes=True) as started,
        distributed.Client(started, set_as_default=False) as client,
    ):
        client.wait_for_workers(2)
        yield client


def die_once(block, block_id, at, flag):
    """End the process that computes this block, the first time."""
    if block_id == at:
        try:
            os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return block
        os._exit(1)
    return block


def test_a_cluster_gives_the_same_bits(cluster):
    assert_same_bits(tuple(cluster.gather(cluster.compute(list(asked())))), dask.compute(*asked()))


def test_workers_compute_on_one_thread(cluster):
    # Their nannies say so, by OMP_NUM_THREADS: a worker's parallelism is Dask's.
    assert set(cluster.run(fx.get_num_threads).values()) == {1}


def test_a_cluster_names_the_block(cluster):
    with pytest.raises(ValueError, match=r"^target must be in \[0, 5\); got 12 at index 7 of block \(3,\)$"):
        cluster.compute(fxd.value(fx.CrossEntropy(), rows(LOGITS), BAD_LABELS), sync=True)


@pytest.mark.parametrize("at", [0, 6, 12])
def test_a_worker_that_dies_changes_nothing(cluster, at, tmp_path):
    loss, flag = fx.CrossEntropy(), str(tmp_path / "died")
    before = {worker["pid"] for worker in cluster.run(lambda: {"pid": os.getpid()}).values()}
    x = rows(X).map_blocks(partial(die_once, at=(at, 0), flag=flag), dtype=X.dtype, meta=np.empty((0, 0)))
    got = cluster.compute(fxd.linear_value_and_grad(loss, x, LABELS, COEF, INTERCEPT), sync=True)
    assert os.path.exists(flag)
    assert_same_bits(tuple(got), dask.compute(*fxd.linear_value_and_grad(loss, rows(X), LABELS, COEF, INTERCEPT)))
    cluster.wait_for_workers(2)
    after = {worker["pid"] for worker in cluster.run(lambda: {"pid": os.getpid()}).values()}
    assert after - before
