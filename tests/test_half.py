"""float16 and bfloat16: storage only. Every result is the float32 result, rounded to nearest even; sums are float64."""

import math
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from arrays import (
    HALVES,
    LAYOUTS,
    WRITABLE_LAYOUTS,
    at_byte,
    binary_target,
    nasty_elements,
    nasty_logits,
    random_probabilities,
)
from tolerances import BASE, REORDERED, assert_same_bits, eps

import fastxent as fx
from fastxent import _config

on_every_level = pytest.mark.usefixtures("isa")
# (loss, options, kind of target); the class axis is added where the loss has one.
LOSSES = {
    "cross-entropy": ("CrossEntropy", {}, "index"),
    "smoothed": ("CrossEntropy", {"label_smoothing": 0.1, "class_weight": "balanced", "ignore_index": 0}, "index"),
    "soft": ("CrossEntropy", {}, "probabilities"),
    "log_probs": ("CrossEntropy", {"inputs": "log_probs"}, "index"),
    "probs": ("CrossEntropy", {"inputs": "probs"}, "probabilities"),
    "focal": ("FocalLoss", {}, "index"),
    "soft focal": ("FocalLoss", {"gamma": 1.5, "label_smoothing": 0.1}, "probabilities"),
    "binary": ("BinaryCrossEntropy", {}, "int"),
    "soft binary": ("BinaryCrossEntropy", {"pos_weight": 2.5, "label_smoothing": 0.1}, "soft"),
    "binary probs": ("BinaryCrossEntropy", {"inputs": "probs"}, "bool"),
    "binary focal": ("BinaryFocalLoss", {"alpha": 0.25}, "int"),
    "soft binary focal": ("BinaryFocalLoss", {"gamma": 3.5}, "soft"),
}
ACTIVATIONS = ("softmax", "log_softmax", "sigmoid", "log_sigmoid")
each_case = pytest.mark.parametrize("case", [*LOSSES, *ACTIVATIONS, "logsumexp"])
each_writer = pytest.mark.parametrize("case", [*LOSSES, *ACTIVATIONS])


@pytest.fixture(params=HALVES)
def half(request):
    return HALVES[request.param]


def in_half(values, half):
    """Rounded to nearest even, as NumPy and ml_dtypes do it; what is too large becomes infinite."""
    with np.errstate(over="ignore"):
        return np.asarray(values).astype(half)


def has_classes(case):
    return (
        case.endswith("max") or case == "logsumexp" or LOSSES.get(case, ("Binary",))[0] in ("CrossEntropy", "FocalLoss")
    )


class Problem:
    """Logits of all scales in half precision, a target and weights, for one of the cases."""

    def __init__(self, case, shape, half, axis=-1):
        rng = np.random.default_rng(sum(shape))
        self.case, self.axis = case, axis
        n_classes = shape[axis]
        if has_classes(case):
            logits = nasty_logits(rng, math.prod(shape) // n_classes, n_classes, np.float64)
            logits = np.moveaxis(logits.reshape(*np.delete(shape, axis), n_classes), -1, axis)
        else:
            logits = nasty_elements(rng, shape, np.float64)
        self.name, self.options, kind = LOSSES.get(case, (case, {}, "none"))
        if self.options.get("inputs") in ("log_probs", "probs"):
            logits = rng.uniform(0.01, 1, shape) * (-20 if self.options["inputs"] == "log_probs" else 1)
        self.logits = in_half(np.clip(logits, -6e4, 6e4), half)
        row_shape = tuple(np.delete(shape, axis))
        if kind == "index":
            self.target = rng.integers(0, n_classes, row_shape)
        elif kind == "probabilities":
            self.target = random_probabilities(rng, shape, np.float32, axis)
        elif kind != "none":
            self.target = binary_target(rng, shape, kind, np.float32)
        self.weight = rng.uniform(0.5, 2, row_shape if has_classes(case) else shape)

    def results(self, logits, reduction="none", layout=None, **outputs):
        """All that the case computes from these logits, as a tuple."""
        axis = {"axis": self.axis} if has_classes(self.case) else {}
        if self.name.islower():
            return (getattr(fx, self.name)(logits, **axis, **outputs),)
        loss = getattr(fx, self.name)(**self.options, **axis, reduction=reduction)
        target, weight = (layout(a) if layout else a for a in (self.target, self.weight))
        return loss.value_grad_hess(logits, target, weight, **outputs)


def assert_rounded(actual, wide, half):
    """Arrays are those of float32, rounded; a reduction is a Python float of the same float32 numbers."""
    for a, b in zip(actual, wide, strict=True):
        if isinstance(b, float):
            assert type(a) is float
            assert a == pytest.approx(b, rel=REORDERED * eps(np.float64), nan_ok=True)
        else:
            assert np.asarray(b).dtype == np.float32
            assert_same_bits(np.asarray(a), in_half(b, half))


# --- values by hand ---------------------------------------------------------------------------------------------------


@on_every_level
def test_70_000_rows_are_not_too_many_to_count(half):
    # torch's mean is 0 in float16, which cannot count them, and 0.6914 in bfloat16.
    logits = np.zeros((70_000, 2), half)
    value, grad = fx.CrossEntropy().value_and_grad(logits, np.zeros(70_000, int))
    assert value == pytest.approx(math.log(2), rel=4 * eps(np.float32))
    assert_same_bits(grad[0], in_half(np.array([-1, 1]) / 140_000, half))
    assert fx.BinaryCrossEntropy()(logits[:, 0], np.zeros(70_000, int)) == pytest.approx(
        math.log(2), rel=4 * eps(np.float32)
    )
    assert fx.CrossEntropy(reduction="sum")(logits, np.zeros(70_000, int)) == pytest.approx(
        70_000 * math.log(2), rel=4 * eps(np.float32)
    )


@on_every_level
def test_70_000_classes_are_not_too_many_to_add(half):
    logits = np.zeros((2, 70_000), half)
    assert fx.CrossEntropy()(logits, [0, 69_999]) == pytest.approx(math.log(70_000), rel=4 * eps(np.float32))
    assert_same_bits(fx.logsumexp(logits), in_half(np.full(2, math.log(70_000)), half))
    assert_same_bits(fx.softmax(logits)[0, :2], in_half(np.full(2, 1 / 70_000), half))


@on_every_level
def test_a_sure_row_still_costs_something(half):
    value, grad = fx.CrossEntropy().value_and_grad(np.array([[12, 0]], half), [0])
    assert value == pytest.approx(math.log1p(math.exp(-12)), rel=12 * eps(np.float32))
    assert_same_bits(grad, in_half([[-math.exp(-12), math.exp(-12)]], half))


@on_every_level
def test_a_loss_that_is_too_large_for_float16_is_infinite_alone():
    logits = np.array([[60_000, -60_000], [0, 0]], np.float16)
    losses = fx.CrossEntropy(reduction="none")(logits, [1, 1])
    assert losses.dtype == np.float16
    np.testing.assert_array_equal(losses, np.float16([np.inf, math.log(2)]))
    assert fx.CrossEntropy(reduction="sum")(logits, [1, 1]) == pytest.approx(120_000 + math.log(2), rel=1e-6)
    losses = fx.BinaryCrossEntropy(reduction="none", pos_weight=2)(logits[0], [1, 1])
    np.testing.assert_array_equal(losses, np.float16([0, np.inf]))


# --- rounding ---------------------------------------------------------------------------------------------------------


def everything(half):
    """Every number there is, infinities and NaN too."""
    return np.arange(2**16, dtype=np.uint16).view(half)


@on_every_level
@pytest.mark.parametrize(
    "case", ["binary", "soft binary", "binary focal", "soft binary focal", "sigmoid", "log_sigmoid"]
)
def test_every_number_there_is(half, case):
    # Exhaustive: 65536 numbers, so that no exponent and no mantissa is converted wrongly.
    problem = Problem(case, (2**16,), half)
    x = everything(half)
    assert_rounded(problem.results(x), problem.results(x.astype(np.float32)), half)


@on_every_level
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("n_classes", [2, 32])
def test_every_number_there_is_as_a_logit(half, name, n_classes):
    x = np.full((2**16, 2), 0, half)
    x[:, 1] = everything(half)
    # 2 classes are a tile of rows, 32 classes rows of vectors.
    x = x if n_classes == 2 else x.reshape(-1, n_classes)
    assert_rounded((getattr(fx, name)(x),), (getattr(fx, name)(x.astype(np.float32)),), half)


@on_every_level
@pytest.mark.parametrize("shape", [(-1,), (-1, 3), (3, -1)], ids=str)
def test_rounding_is_to_nearest_even(half, shape):
    # The gradient on log-probabilities is minus the target, whatever that is: the halves, the float32 numbers between
    # two of them, and those next to these.
    halves = everything(half)[: 2**15].astype(np.float32)
    halves = halves[np.isfinite(halves)]
    middle = halves[:-1] + (halves[1:] - halves[:-1]) / 2
    overflow = halves[-1] + np.float32((float(halves[-1]) - float(halves[-2])) / 2)  # what rounds to infinity first
    below = np.nextafter(overflow, np.float32(0))
    between = np.concatenate([middle, np.nextafter(middle, 0), np.nextafter(middle, np.float32(np.inf))])
    wide = np.concatenate([[overflow, below], halves, between])
    wide = wide[: wide.size // 3 * 3].reshape(shape)
    loss = fx.CrossEntropy(inputs="log_probs", reduction="none")
    _, grad = loss.value_and_grad(np.full(wide.shape, -1, half), wide)
    assert_same_bits(grad, in_half(-wide, half))
    # In place, and into an array of odd alignment.
    over = at_byte(np.full(wide.shape, -1, half), 2)
    loss.value_and_grad(over, wide, grad_out=over)
    assert_same_bits(over, grad)


# --- the float32 result, rounded --------------------------------------------------------------------------------------


def assert_results_are_rounded(problem, half, reduction="none"):
    actual = problem.results(problem.logits, reduction)
    assert_rounded(actual, problem.results(problem.logits.astype(np.float32), reduction), half)
    return actual


@on_every_level
@each_case
def test_every_number_of_classes(half, case):
    for n_classes in (1, 2, 3, 5, 8, 10, 15, 16, 17, 31, 33, 64, 100, 300, 1000, 2049, 5000):
        assert_results_are_rounded(Problem(case, (17 if n_classes < 1000 else 3, n_classes), half), half)


@on_every_level
@pytest.mark.parametrize("case", ["cross-entropy", "soft", "soft focal", "probs", "log_softmax", "logsumexp"])
def test_long_rows(half, case):
    assert_results_are_rounded(Problem(case, (2, 70_000), half), half)


@on_every_level
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("case", LOSSES)
def test_reductions(half, case, reduction):
    for n_rows in (0, 1, 7, 16, 33, 300):
        problem = Problem(case, (n_rows, 5), half)
        actual = assert_results_are_rounded(problem, half, reduction)
        # The three calls are one computation.
        axis = {"axis": -1} if has_classes(case) else {}
        loss = getattr(fx, problem.name)(**problem.options, **axis, reduction=reduction)
        arguments = problem.logits, problem.target, problem.weight
        value, grad = loss.value_and_grad(*arguments)
        assert_same_bits((np.asarray(value), grad), (np.asarray(actual[0]), actual[1]))
        assert loss(*arguments) == pytest.approx(actual[0], rel=REORDERED * eps(np.float32))


@on_every_level
@pytest.mark.parametrize("case", ["soft binary", "binary probs", "binary focal", "sigmoid"])
def test_every_number_of_elements(half, case):
    for n in (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 100, 1023, 1025, 8193, 20_000):
        assert_results_are_rounded(Problem(case, (n,), half), half)


@on_every_level
@pytest.mark.parametrize("case", ["binary", "binary focal", "sigmoid", "log_sigmoid"])
def test_a_single_number(half, case):
    x = np.array(1.5, half)
    name = LOSSES.get(case, (case,))[0]
    f = getattr(fx, name) if name in ACTIVATIONS else lambda z: getattr(fx, name)(reduction="none")(z, 1)
    assert np.shape(f(x)) == ()
    assert_rounded((f(x),), (f(x.astype(np.float32)),), half)


@on_every_level
@each_case
def test_every_axis(half, case):
    for shape in ((4, 9, 5), (2, 3, 4, 5)):
        for axis in range(len(shape)) if has_classes(case) else (-1,):
            problem = Problem(case, shape, half, axis)
            wide = problem.results(problem.logits.astype(np.float32))
            assert_rounded(problem.results(problem.logits), wide, half)
            cropped = np.full([n + 2 for n in shape], 77, half)[(slice(1, -1),) * len(shape)]
            cropped[...] = problem.logits
            assert_rounded(problem.results(cropped), wide, half)


@on_every_level
@each_case
def test_every_layout(half, case):
    for shape in ((17, 3), (17, 20), (2, 5, 9)):
        problem = Problem(case, shape, half)
        for layout in LAYOUTS.values():
            wide = problem.results(layout(problem.logits.astype(np.float32)), layout=layout)
            assert_rounded(problem.results(layout(problem.logits), layout=layout), wide, half)


@on_every_level
@pytest.mark.parametrize("case", ["cross-entropy", "focal", "softmax", "log_softmax", "logsumexp"])
def test_wide_rows_of_every_layout(half, case):
    # Many classes that do not lie side by side may be computed by another kernel than in float32: then the result is
    # the rounding of a number as close to the truth, BASE and the distance of a logit in eps, here up to 40; the
    # Hessian and gradient of focal loss are products of three such.
    slack = 3 * 2 * (BASE + 40) * eps(np.float32)
    for axis in (0, 1):
        problem = Problem(case, (17, 100), half, axis)
        problem.logits = in_half(np.random.default_rng(2).normal(0, 4, (17, 100)), half)
        wide = problem.results(problem.logits.astype(np.float32))
        for layout in LAYOUTS.values():
            for a, b in zip(problem.results(layout(problem.logits)), wide, strict=True):
                assert a.dtype == half
                least, most = np.sort([in_half(b * (1 + d), half).astype(np.float32) for d in (-slack, slack)], axis=0)
                assert np.all((least <= a.astype(np.float32)) & (a.astype(np.float32) <= most))


@on_every_level
@each_case
def test_stride_zero(half, case):
    problem = Problem(case, (17, 9), half)
    for source in ((0, slice(None)), (0, 0)):
        repeated = np.broadcast_to(problem.logits[source], (17, 9))
        assert_rounded(problem.results(repeated), problem.results(np.array(repeated.astype(np.float32))), half)


@on_every_level
@each_writer
def test_outputs_and_in_place(half, case):
    names = ("out",) if case in ACTIVATIONS else ("grad_out", "hess_out")
    for shape in ((17, 3), (17, 20), (2, 5, 9), (2, 5000)):
        problem = Problem(case, shape, half)
        for store in WRITABLE_LAYOUTS.values():
            wide = problem.results(store(problem.logits.astype(np.float32)))
            over = store(problem.logits.copy())
            results = problem.results(over, **{names[0]: over})
            assert results[-len(names)] is over
            assert_rounded(results, wide, half)
            outputs = {name: store(np.full(shape, np.nan, half)) for name in names}
            results = problem.results(store(problem.logits), **outputs)
            for result, out in zip(results[-len(names) :], outputs.values(), strict=True):
                assert result is out
            assert_rounded(results, wide, half)


@on_every_level
@each_writer
def test_nothing_is_written_beside_an_output(half, case):
    problem = Problem(case, (17, 3), half)
    surroundings = np.full((53, 11), 77, half)
    out = surroundings[1:52:3, 1:10:3]
    results = problem.results(problem.logits, **{"out" if case in ACTIVATIONS else "grad_out": out})
    assert_same_bits(np.array(out), np.array(problem.results(problem.logits)[min(1, len(results) - 1)]))
    out[...] = 77
    assert np.all(surroundings.astype(np.float32) == 77)


# --- infinities, weights, other arguments -----------------------------------------------------------------------------


@on_every_level
@each_case
def test_infinities_and_nan_are_those_of_float32(half, case):
    for n_classes in (3, 20):
        problem = Problem(case, (40, n_classes), half)
        for row, special in enumerate((np.inf, -np.inf, np.nan) * 3):
            problem.logits[4 * row + 1, row % 3] = special
            problem.logits[4 * row + 2, : row // 3 + 1] = special
        assert_results_are_rounded(problem, half)


@on_every_level
@pytest.mark.parametrize("case", LOSSES)
def test_rows_that_do_not_count_are_never_looked_at(half, case):
    problem = Problem(case, (33, 5), half)
    problem.weight[::4] = 0
    problem.logits[::4] = np.nan
    assert np.isnan(problem.logits[0].astype(np.float32)).all()
    results = problem.results(problem.logits, "mean")
    assert_rounded(results, problem.results(problem.logits.astype(np.float32), "mean"), half)
    assert math.isfinite(results[0])
    assert not results[1][::4].astype(np.float32).any()


@on_every_level
def test_targets_and_weights_may_be_half_too(half):
    rng = np.random.default_rng(0)
    logits = in_half(rng.standard_normal((17, 4)), half)
    soft = in_half(np.round(rng.random((17, 4)) * 64) / 64, half)
    weight = in_half(np.round(rng.random(17) * 64) / 64, half)
    for name in ("CrossEntropy", "FocalLoss", "BinaryCrossEntropy", "BinaryFocalLoss"):
        loss = getattr(fx, name)()
        expected = loss.value_grad_hess(logits, soft.astype(np.float32), weight.astype(np.float32))
        assert_same_bits(loss.value_grad_hess(logits, soft, weight), expected)


@on_every_level
def test_the_dtype_of_other_arguments_does_not_widen_the_result(half):
    logits = np.zeros((4, 2), half)
    soft, weight = np.full((4, 2), 0.5), np.ones(4)
    for loss in (
        fx.CrossEntropy(class_weight=np.ones(2), reduction="none"),
        fx.FocalLoss(class_weight=np.ones(2), reduction="none"),
        fx.BinaryCrossEntropy(pos_weight=np.ones(2), reduction="none"),
        fx.BinaryFocalLoss(alpha=0.5, reduction="none"),
    ):
        for result in loss.value_grad_hess(logits, soft, weight):
            assert isinstance(result, np.ndarray)
            assert result.dtype == half


@on_every_level
@each_writer
def test_new_arrays_have_the_order_of_the_logits(half, case):
    problem = Problem(case, (4, 5, 6), half)
    for order in ("C", "F"):
        stored = np.array(problem.logits, order=order)
        for result in problem.results(stored)[-2:]:
            assert result.strides == stored.strides
        assert_same_bits(stored, problem.logits)


@on_every_level
def test_gamma_0_is_the_cross_entropy(half):
    for shape in ((17, 3), (17, 100)):
        problem = Problem("smoothed", shape, half)
        arguments = (problem.logits, problem.target, problem.weight)
        focal = fx.FocalLoss(gamma=0, **problem.options).value_grad_hess(*arguments)
        plain = fx.CrossEntropy(**problem.options).value_grad_hess(*arguments)
        assert focal[0] == plain[0]
        assert_same_bits(focal[1:], plain[1:])


# --- threads and memory -----------------------------------------------------------------------------------------------


@on_every_level
@pytest.mark.skipif(_config.config()["OpenMP"] != "yes", reason="built without OpenMP")
@pytest.mark.parametrize(
    ("case", "shape"),
    [
        ("cross-entropy", (40_001, 3)),
        ("soft focal", (501, 300)),
        ("softmax", (3, 50_003)),
        ("soft binary", (200_003,)),
        ("sigmoid", (300_007,)),
    ],
)
def test_the_same_bits_for_any_number_of_threads(half, case, shape):
    problem = Problem(case, (1, *shape[1:]) if has_classes(case) else (1,), half)
    rng = np.random.default_rng(1)
    logits = in_half(rng.normal(0, 5, shape), half)
    problem.weight = rng.uniform(0.5, 2, shape[:1])
    if problem.name[0].isupper():
        problem.target = np.resize(problem.target, shape[: problem.target.ndim])
    results = {}
    for n in (1, 2, 3):
        fx.set_num_threads(n)
        results[n] = tuple(np.asarray(result) for result in problem.results(logits, "mean"))
    assert_same_bits(results[2], results[1])
    assert_same_bits(results[3], results[1])


MEMORY = """
import resource
import numpy as np
import fastxent as fx
from {module} import {half} as half

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

n = 2**25 // 4
target, targets = np.zeros(n, np.uint8), np.zeros((n, 4), np.uint8)
target[...] = 1
targets[...] = 1
logits = np.empty((n, 4), half)  # 64 MiB
logits[...] = 1
losses = [fx.CrossEntropy(), fx.FocalLoss(gamma=1.5)]
binary = [fx.BinaryCrossEntropy(), fx.BinaryFocalLoss()]
for loss in losses:
    loss(logits[:9], target[:9])
before = peak()
for loss in losses:
    loss(logits, target)
    loss.value_and_grad(logits, target, grad_out=logits)
    loss.value_and_grad(logits.reshape(1024, -1), target[:1024], grad_out=logits.reshape(1024, -1))
    type(loss)(axis=0).value_and_grad(logits.reshape(4, n), target, grad_out=logits.reshape(4, n))
for loss in binary:
    loss(logits, targets)
    loss.value_and_grad(logits, targets, grad_out=logits)
for f in (fx.softmax, fx.log_softmax, fx.sigmoid, fx.log_sigmoid):
    f(logits, out=logits)
print(peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of memory in Linux' units")
def test_no_float32_copy_is_made(half):
    # 64 MiB of logits would be 128 MiB in float32; blocks are converted as they are computed.
    code = MEMORY.format(module="numpy" if half is np.float16 else "ml_dtypes", half=np.dtype(half).name)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 16
