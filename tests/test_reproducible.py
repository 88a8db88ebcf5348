"""The same bits from run to run, for any number of threads, and for rows computed at once or in pieces."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from arrays import random_logits, random_probabilities

import fastxent as fx
from fastxent import _config
from fastxent.cpu.engine import Job

pytestmark = pytest.mark.thread_unsafe

# (rows, classes, class axis): each regime, some rows more than whole blocks; and those too few for a vector.
SHAPES = {
    "two classes": (5_003, 2, 1),
    "three classes": (5_003, 3, 1),
    "few classes": (3_001, 10, 1),
    "short rows": (2_503, 40, 1),
    "rows": (1_001, 300, 1),
    "long rows": (37, 10_007, 1),
    "three classes first": (5_003, 3, 0),
    "some classes first": (4_507, 20, 0),
    "many classes first": (1_203, 300, 0),
}
SOFTMAX_LOSSES = {
    "cross entropy": (fx.CrossEntropy, {}),
    "weights": (fx.CrossEntropy, {"class_weight": True, "label_smoothing": 0.1}),
    "focal": (fx.FocalLoss, {"gamma": 1.5}),
}
BINARY_LOSSES = {
    "cross entropy": (fx.BinaryCrossEntropy, {}),
    "weights": (fx.BinaryCrossEntropy, {"pos_weight": 2.0, "label_smoothing": 0.1}),
    "focal": (fx.BinaryFocalLoss, {"gamma": 1.5, "alpha": 0.25}),
}


def taken(array, axis, rows):
    """Some rows of an array whose class axis is `axis`; of one without classes too."""
    return array[rows] if array.ndim == 1 or axis == 1 else array[:, rows]


def pieces(n, size):
    return [slice(first, min(first + size, n)) for first in range(0, n, size)]


def assert_same_bits(got, expected):
    for a, b in zip(got, expected, strict=True):
        a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
        different = np.flatnonzero(a.view(f"u{a.itemsize}") != b.view(f"u{b.itemsize}"))
        assert different.size == 0, f"{different.size} of {a.size} differ, the first is {different[0]}"


def softmax_case(dtype, name, loss, target_kind, reduction):
    n, n_classes, axis = SHAPES[name]
    rng = np.random.default_rng(0)
    shape = (n, n_classes) if axis == 1 else (n_classes, n)
    logits = random_logits(rng, shape, dtype, 5.0)
    target = rng.integers(0, n_classes, n)
    if target_kind == "probabilities":
        target = random_probabilities(rng, shape, dtype, axis)
    kind, options = SOFTMAX_LOSSES[loss]
    if "class_weight" in options:
        options = options | {"class_weight": rng.uniform(0.5, 2, n_classes)}
    return logits, target, kind(axis=axis, reduction=reduction, **options)


def rows_per_block(logits, axis, target):
    """Of the planned job, as the loss would plan it."""
    z, grad = ((a if axis == 1 else a.T)[None] for a in (logits, np.empty_like(logits)))
    t = (target if target.ndim == 1 or axis == 1 else target.T)[None]
    return Job("cross_entropy", z, target=t, grad=grad).plan["rows_per_block"]


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("target_kind", ["index", "probabilities"])
@pytest.mark.parametrize("loss", SOFTMAX_LOSSES)
@pytest.mark.parametrize("name", SHAPES)
def test_rows_in_pieces_have_the_bits_of_rows_at_once(dtype, name, loss, target_kind):
    n, _, axis = SHAPES[name]
    logits, target, evaluated = softmax_case(dtype, name, loss, target_kind, "none")
    whole = evaluated.value_grad_hess(logits, target)
    block = rows_per_block(logits, axis, target)
    # Where classes come first, rows fewer than a vector go another way, so no piece is that small.
    least = 32 if axis == 0 else 1
    for size in sorted({max(min(block, n), least), n // 2 + 1}):
        for rows in pieces(n, size):
            if min(n, rows.stop) - rows.start < least:
                continue
            part = evaluated.value_grad_hess(taken(logits, axis, rows), taken(target, axis, rows))
            assert_same_bits(part, [taken(a, axis, rows) for a in whole])
            both = evaluated.value_and_grad(taken(logits, axis, rows), taken(target, axis, rows))
            assert_same_bits(both, [taken(a, axis, rows) for a in whole[:2]])


def binary_case(dtype, n):
    rng = np.random.default_rng(1)
    return random_logits(rng, (n,), dtype, 5.0), rng.random(n) < 0.5


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("loss", BINARY_LOSSES)
def test_elements_in_pieces_have_the_bits_of_elements_at_once(dtype, loss):
    kind, options = BINARY_LOSSES[loss]
    logits, target = binary_case(dtype, 70_001)
    evaluated = kind(reduction="none", **options)
    whole = evaluated.value_grad_hess(logits, target)
    for size in (32_768, 4_096, 1_000, 333):
        for rows in pieces(len(logits), size):
            assert_same_bits(evaluated.value_grad_hess(logits[rows], target[rows]), [a[rows] for a in whole])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("name", SHAPES)
def test_activations_in_pieces_have_the_bits_of_those_at_once(dtype, name):
    n, _, axis = SHAPES[name]
    logits, _, _ = softmax_case(dtype, name, "cross entropy", "index", "none")
    for function in (fx.softmax, fx.log_softmax, fx.logsumexp):
        whole = function(logits, axis=axis)
        for rows in pieces(n, 1024):
            assert_same_bits([function(taken(logits, axis, rows), axis=axis)], [taken(whole, axis, rows)])
    for function in (fx.sigmoid, fx.log_sigmoid):
        whole = function(logits)
        for rows in pieces(n, 777):
            assert_same_bits([function(taken(logits, axis, rows))], [taken(whole, axis, rows)])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("loss", BINARY_LOSSES)
def test_binary_losses_have_the_same_bits_for_any_number_of_threads(dtype, loss):
    kind, options = BINARY_LOSSES[loss]
    logits, target = binary_case(dtype, 600_001)
    results = {}
    for n in (1, 2, 3, 4, 7):
        fx.set_num_threads(n)
        results[n] = [
            *kind(**options).value_grad_hess(logits, target),
            kind(**options)(logits, target),
            fx.sigmoid(logits),
        ]
        assert_same_bits(map(np.atleast_1d, results[n]), map(np.atleast_1d, results[1]))


DIGEST = """
import hashlib, numpy as np, fastxent as fx, sys
from fastxent import _config
generator, digest = np.random.default_rng(0), hashlib.sha256()
for level in _config.usable_levels():
    _config.use_level(level)
    for dtype in ("f4", "f8"):
        for n_classes in (3, 10, 40, 300, 10_007):
            z = (generator.standard_normal((300_000 // n_classes, n_classes)) * 5).astype(dtype)
            t = generator.integers(0, n_classes, len(z))
            for result in (*fx.CrossEntropy().value_and_grad(z, t), *fx.FocalLoss().value_grad_hess(z, t), fx.softmax(z),
                           *fx.CrossEntropy(axis=0).value_and_grad(z.T.copy(), t),
                           *fx.BinaryCrossEntropy().value_and_grad(z, z > 1)):
                digest.update(np.asarray(result).tobytes())
print(digest.hexdigest())
"""


def test_runs_have_the_same_bits():
    def digest(threads):
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONHASHSEED": "random"}
        command = [sys.executable, "-c", DIGEST]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=True)
        return result.stdout.strip()

    digests = [digest(threads) for threads in (1, 1, 3)]
    assert len(digests[0]) == len(hashlib.sha256().hexdigest())
    assert len(set(digests)) == 1


def test_levels_agree_within_the_contract(dtype):
    # Both are within (4 + gap) eps of the exact result, gap being the distance to the largest logit.
    results = {}
    before = _config.level()
    try:
        for name in SHAPES:
            logits, target, loss = softmax_case(dtype, name, "cross entropy", "index", "none")
            axis = SHAPES[name][2]
            gap = np.max(logits, axis=axis, keepdims=True) - logits
            for level in _config.usable_levels():
                _config.use_level(level)
                results[level] = fx.softmax(logits, axis=axis), loss(logits, target)
            for p, value in results.values():
                other, other_value = results["baseline"]
                eps = np.finfo(dtype).eps
                assert (abs(p - other) <= 2 * (4 + gap) * eps * other).all()
                assert (abs(value - other_value) <= 2 * (4 + gap.max(axis=axis)) * eps * other_value).all()
    finally:
        _config.use_level(before)
