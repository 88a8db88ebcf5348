"""Memory: sizes beyond 32 bits, what happens when there is none left, labels that change during a call, and no leaks."""

import gc
import resource
import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from arrays import HALVES
from fuzzing import Layout, Watched, plain

import fastxent as fx
from fastxent.cpu import engine

# --- more elements than 32 bits can count -----------------------------------------------------------------------------

BEYOND = 2**31


def test_rows_of_one_row_beyond_2_to_31_elements():
    row = np.random.default_rng(0).standard_normal(2**20).astype(np.float32)
    n_rows = BEYOND // row.size + 1
    logits = np.broadcast_to(row, (n_rows, row.size))
    # Log-probabilities cost no exponential; the last label shows that the last row has been reached.
    target = np.full(n_rows, 7)
    target[-1] = 2**20 - 1
    assert logits.size > BEYOND
    value = fx.CrossEntropy(inputs="log_probs", reduction="none")(logits, target)
    assert value.shape == (n_rows,)
    np.testing.assert_array_equal(value[:-1], -row[7])
    assert value[-1] == -row[-1]


def test_elements_beyond_2_to_31():
    z = np.random.default_rng(0).standard_normal(2**12).astype(np.float32)
    logits = np.broadcast_to(z, (BEYOND // z.size + 1, z.size))
    target = np.broadcast_to(np.bool_(True), logits.shape)
    assert logits.size > BEYOND
    expected = np.logaddexp(0, -z.astype(np.float64)).mean()
    assert fx.BinaryCrossEntropy()(logits, target) == pytest.approx(expected, rel=1e-6)


def test_the_end_of_an_array_beyond_2_to_31_elements():
    # One byte for each element is all that is really there.
    n_rows, n_classes = BEYOND // 16 + 3, 16
    target = np.zeros(n_rows, np.uint8)
    target[-1] = 16
    logits = np.broadcast_to(np.float32(0), (n_rows, n_classes))
    with pytest.raises(ValueError, match=f"got 16 at index {n_rows - 1}"):
        fx.CrossEntropy()(logits, target)


# --- no memory left ---------------------------------------------------------------------------------------------------


def run_program(program):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_no_memory_is_a_memory_error_and_nothing_is_written():
    run_program(
        """
        import resource
        import numpy as np
        import fastxent as fx

        logits = np.random.default_rng(0).standard_normal((1000, 10))
        labels = np.zeros(1000, int)
        right = fx.CrossEntropy()(logits, labels)
        # 2**40 rows of which only one exists: the partial sums of their blocks alone are gigabytes.
        many = np.broadcast_to(np.float32(0), (2**40, 2))
        target = np.broadcast_to(np.int64(0), 2**40)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, resource.RLIM_INFINITY))
        failed = 0
        for call in (
            lambda: fx.CrossEntropy()(many, target),
            lambda: fx.CrossEntropy().value_and_grad(many, target),
            lambda: fx.BinaryCrossEntropy()(many, np.broadcast_to(np.int64(0), many.shape)),
            lambda: fx.CrossEntropy(reduction="none")(many, target),
            lambda: fx.softmax(many),
            lambda: fx.logsumexp(many),
        ):
            for _ in range(3):
                try:
                    call()
                except MemoryError:
                    failed += 1
        assert failed == 18, failed
        # The library goes on.
        assert fx.CrossEntropy()(logits, labels) == right
        """
    )


# --- labels that change between survey and computation ----------------------------------------------------------------

# (classes, layout of logits and gradient): all ways of the kernels that use class indices.
WAYS = {
    "tile": (5, (1, 0)),
    "short rows": (37, (1, 0)),
    "rows": (700, (1, 0)),
    "long rows": (5000, (1, 0)),
    "rows in lanes": (12, (0, 1)),
    "runs of rows": (40, (0, 1)),
}


@pytest.mark.parametrize("kind", ["float32", "float64", *HALVES])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("task", ["cross_entropy", "focal"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_labels_out_of_range_write_nothing_outside(isa, kind, way, task, smoothing):
    n_classes, order = WAYS[way]
    n_rows = 33
    dtype = np.dtype(HALVES.get(kind, kind))
    layout = Layout(order, (0, 0))
    rng = np.random.default_rng(0)
    logits = Watched(rng.standard_normal((n_rows, n_classes)).astype(dtype), layout)
    grad, hess = (Watched(np.zeros((n_rows, n_classes), dtype), layout) for _ in range(2))
    loss = Watched(np.zeros(n_rows, dtype), plain(1))
    good = rng.integers(0, n_classes, n_rows)
    for bad in (-1, n_classes, n_classes + 100, 2**31, 2**62, -(2**63)):
        target = good.copy()
        target[::5] = bad
        weight = np.arange(1.0, n_classes + 1).astype(np.float64 if kind == "float64" else np.float32)
        # No survey: as if another thread had changed the labels after it.
        job = engine.Job(
            task,
            logits.view[None],
            grad=grad.view[None],
            hess=hess.view[None],
            loss=loss.view[None],
            target=target[None],
            class_weight=weight,
            label_smoothing=smoothing,
            gamma=2.0,
        )
        job.compute(1.0)
        losses = loss.view.astype(np.float64)
        assert np.isnan(losses[::5]).all()
        assert np.isfinite(np.delete(losses, np.s_[::5])).all()
        assert all(array.put_back() for array in (logits, grad, hess, loss))


# --- blocks of as many rows as there may be ---------------------------------------------------------------------------


# The survey once cleared more masses than its array on the stack has: rows side by side, 1024 of them in a block.
@pytest.mark.parametrize("n_classes", [1, 2, 3, 4])
def test_probabilities_of_full_blocks_in_any_order(isa, dtype, n_classes):
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2500, n_classes)).astype(dtype)
    target = rng.random((2500, n_classes)).astype(dtype)
    loss = fx.CrossEntropy(class_weight=list(range(1, n_classes + 1)))
    expected = loss(logits, target)
    assert loss(logits, np.asfortranarray(target)) == pytest.approx(expected, rel=1e-12)


# --- no leaks ---------------------------------------------------------------------------------------------------------

CALLS = 100_000
# Of the resident set: what allocators keep for themselves, far less than one byte a call.
KEPT = 64 * 1024
TRACED = 4 * 1024


def calls():
    """(name, function, how much of 10^5 calls it makes); together all ways through the library, right and wrong."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((6, 5)).astype(np.float32)
    target = rng.integers(0, 5, 6)
    soft = rng.random((6, 5)).astype(np.float32)
    weight = rng.random(6)
    grad, hess = np.empty_like(logits), np.empty_like(logits)
    loss = fx.CrossEntropy()
    weighted = fx.CrossEntropy(class_weight="balanced", label_smoothing=0.1, ignore_index=2, reduction="none")
    binary = fx.BinaryCrossEntropy(pos_weight=2)
    arguments = {"logits": logits, "target": target, "soft": soft, "weight": weight, "grad": grad, "hess": hess}
    good = [
        (lambda: loss(logits, target), 0.3),
        (lambda: loss.value_and_grad(logits, target), 0.2),
        (lambda: loss.value_and_grad(logits, target, grad_out=grad), 0.1),
        (lambda: loss.value_grad_hess(logits, target, weight, grad_out=grad, hess_out=hess), 0.1),
        (lambda: weighted.value_and_grad(logits, target, weight), 0.05),
        (lambda: fx.FocalLoss().value_and_grad(logits, soft), 0.05),
        (lambda: binary.value_and_grad(logits, soft, grad_out=grad), 0.05),
        (lambda: fx.BinaryFocalLoss()(logits[::2], soft[::2]), 0.05),
        (lambda: fx.softmax(logits, out=grad), 0.05),
        (lambda: fx.logsumexp(logits), 0.05),
    ]
    wrong = target.copy()
    wrong[3] = 9
    bad_soft = soft.copy()
    bad_soft[1, 1] = np.nan
    bad_weight = -weight
    arguments |= {"wrong": wrong, "bad_soft": bad_soft, "bad_weight": bad_weight}
    bad = [
        (lambda: loss(logits, wrong), 0.2),
        (lambda: loss.value_and_grad(logits, wrong, grad_out=grad), 0.15),
        (lambda: loss.value_grad_hess(logits, wrong), 0.1),
        (lambda: loss(logits, bad_soft), 0.1),
        (lambda: loss(logits, target, bad_weight), 0.1),
        (lambda: binary(logits, bad_soft), 0.1),
        (lambda: loss(logits, target[:3]), 0.05),
        (lambda: loss.value_and_grad(logits, target, grad_out=logits[:, ::-1]), 0.05),
        (lambda: loss.value_and_grad(logits, target, grad_out=grad[:3]), 0.05),
        (lambda: loss(logits.astype(complex), target), 0.05),
        (lambda: fx.CrossEntropy(label_smoothing=2), 0.05),
    ]
    return arguments, good, bad


def repeat(functions, n, raises):
    for function, share in functions:
        for _ in range(round(n * share)):
            if not raises:
                function()
                continue
            try:
                function()
            except (ValueError, TypeError):
                continue
            raise AssertionError("no error")


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def growth(functions, n_calls, failing, used):
    """How much more is used after the calls than before, in bytes; a leak grows each time, a warm-up once."""
    repeat(functions, n_calls, failing)
    gc.collect()
    grown = []
    for _ in range(3):
        before = used()
        repeat(functions, n_calls, failing)
        gc.collect()
        grown.append(used() - before)
    return min(grown)


def check_leaks(failing):
    arguments, good, bad = calls()
    functions = bad if failing else good
    counts = {name: sys.getrefcount(array) for name, array in arguments.items()}
    assert growth(functions, CALLS, failing, resident) <= KEPT
    assert {name: sys.getrefcount(array) for name, array in arguments.items()} == counts
    # Tracing is slow, and sees what is small: a hundredth of the calls.
    tracemalloc.start()
    assert growth(functions, CALLS // 100, failing, lambda: tracemalloc.get_traced_memory()[0]) <= TRACED


def check_that_a_leak_is_found():
    kept = []
    assert growth([(lambda: kept.append(bytearray(64)), 1.0)], CALLS // 10, False, resident) > KEPT


# In a process of its own: the free memory that other tests leave behind would hide a leak.
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
@pytest.mark.parametrize("check", ["check_leaks(False)", "check_leaks(True)", "check_that_a_leak_is_found()"])
def test_no_leaks(check):
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_memory; test_memory.{check}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr
