"""Threads: the same bits for any number of them, the number that is used, forks, and calls from many Python threads."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from arrays import random_logits, random_probabilities

import fastxent as fx
from fastxent import _config

needs_openmp = pytest.mark.skipif(_config.config()["OpenMP"] != "yes", reason="built without OpenMP")


def run(code, *, timeout=60, **environment):
    """Standard output of Python code in a process of its own."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | environment,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


# (shape, axis): each regime, large enough for three threads; one row for all of them, and one row more than whole blocks.
SHAPES = {
    "few classes": ((100_001, 3), 1),
    "ten classes": ((20_003, 10), 1),
    "rows in cache": ((2_001, 300), 1),
    "long rows": ((7, 100_003), 1),
    "one very long row": ((1, 1_000_003), 1),
    "classes first": ((5, 50_001), 0),
    "classes in the middle": ((9, 31, 1_003), 1),
    "crop": ((31, 1_003, 7), 2),
}


@pytest.mark.thread_unsafe
@pytest.mark.usefixtures("isa")
@needs_openmp
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(
    ("options", "target_kind"),
    [
        ({}, "index"),
        ({"class_weight": "balanced", "label_smoothing": 0.1, "ignore_index": 1}, "index"),
        ({"reduction": "sum"}, "probabilities"),
    ],
    ids=["plain", "options", "probabilities"],
)
def test_the_same_bits_for_any_number_of_threads(dtype, name, options, target_kind):
    shape, axis = SHAPES[name]
    rng = np.random.default_rng(0)
    logits = random_logits(rng, shape, dtype, 5.0)
    if name == "crop":
        logits = logits[1:, ::2]
    row_shape = logits.shape[:axis] + logits.shape[axis + 1 :]
    target = rng.integers(0, logits.shape[axis], row_shape)
    if target_kind == "probabilities":
        target = random_probabilities(rng, logits.shape, dtype, axis)
    sample_weight = rng.uniform(0, 1, row_shape)
    loss = fx.CrossEntropy(axis=axis, **options)
    results = {}
    for n in (1, 2, 3, 4, 7):
        fx.set_num_threads(n)
        assert fx.get_num_threads() == n
        results[n] = (
            *loss.value_grad_hess(logits, target, sample_weight),
            loss(logits, target, sample_weight),
            fx.softmax(logits, axis=axis),
            fx.log_softmax(logits, axis=axis),
            fx.logsumexp(logits, axis=axis),
        )
    for n in (2, 3, 4, 7):
        for a, b in zip(results[n], results[1], strict=True):
            np.testing.assert_array_equal(a, b)


# --- the number -------------------------------------------------------------------------------------------------------


def test_the_default_is_at_least_one():
    assert fx.get_num_threads() >= 1


@needs_openmp
@pytest.mark.thread_unsafe
def test_positive_numbers_are_taken_literally():
    for n in (1, 2, 3):
        fx.set_num_threads(n)
        assert fx.get_num_threads() == n


@pytest.mark.thread_unsafe
def test_negative_numbers_are_those_of_joblib():
    fx.set_num_threads(-1)
    everything = fx.get_num_threads()
    for n in (-2, -3, -everything, -everything - 1, -1000):
        fx.set_num_threads(n)
        assert fx.get_num_threads() == max(1, everything + 1 + n)


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("n", [10**4, 2**31 - 1, 2**31, 2**63, 10**30])
def test_absurd_numbers_are_capped(n):
    fx.set_num_threads(n)
    assert 1 <= fx.get_num_threads() <= 1000
    logits = np.zeros((100_000, 3), np.float32)
    assert fx.CrossEntropy()(logits, np.zeros(100_000, int)) == pytest.approx(np.log(3))
    fx.set_num_threads(-n)
    assert fx.get_num_threads() == 1


@pytest.mark.thread_unsafe
def test_numpy_integers_are_integers():
    fx.set_num_threads(np.int32(1))
    assert fx.get_num_threads() == 1


@needs_openmp
def test_the_environment_decides():
    code = "import fastxent as fx; print(fx.get_num_threads())"
    assert run(code, OMP_NUM_THREADS="3") == "3"
    assert run(code, OMP_NUM_THREADS="1") == "1"
    code = "import fastxent as fx; fx.set_num_threads(2); print(fx.get_num_threads())"
    assert run(code, OMP_NUM_THREADS="1") == "2"


@needs_openmp
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this platform")
def test_the_affinity_bounds_the_number():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); import fastxent as fx; print(fx.get_num_threads())"
    environment = {name: "" for name in ("OMP_NUM_THREADS",) if name in os.environ}
    assert run(code, **environment) == "1"


@needs_openmp
@pytest.mark.thread_unsafe
def test_threadpoolctl_is_obeyed():
    threadpoolctl = pytest.importorskip("threadpoolctl")
    before = fx.get_num_threads()
    with threadpoolctl.threadpool_limits(1, user_api="openmp"):
        assert fx.get_num_threads() == 1
    assert fx.get_num_threads() == before


# --- other processes and threads --------------------------------------------------------------------------------------

FORK = """
import os, sys, numpy as np, fastxent as fx
fx.set_num_threads(2)
logits = np.random.default_rng(0).standard_normal((200_000, 3))
target = np.zeros(200_000, int)
before = fx.CrossEntropy().value_and_grad(logits, target)
child = os.fork()
if child == 0:
    after = fx.CrossEntropy().value_and_grad(logits, target)
    same = after[0] == before[0] and (after[1] == before[1]).all()
    os._exit(0 if same and fx.get_num_threads() == 1 else 1)
_, status = os.waitpid(child, 0)
again = fx.CrossEntropy()(logits, target)
assert again == before[0]
print(os.waitstatus_to_exitcode(status), fx.get_num_threads())
"""


@needs_openmp
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_forked_child_does_not_hang():
    # OpenMP's threads do not survive a fork: a child that waited for them would wait for ever.
    assert run(FORK, timeout=30) == "0 2"


def test_many_python_threads_at_once(dtype):
    rng = np.random.default_rng(1)
    cases = []
    for _ in range(16):
        logits = random_logits(rng, (20_000, 5), dtype)
        cases.append((logits, rng.integers(0, 5, 20_000)))
    loss = fx.CrossEntropy(class_weight="balanced")
    expected = [loss.value_and_grad(*case) for case in cases]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            for (value, grad), (expected_value, expected_grad) in zip(
                pool.map(lambda case: loss.value_and_grad(*case), cases), expected, strict=True
            ):
                assert value == expected_value
                np.testing.assert_array_equal(grad, expected_grad)
