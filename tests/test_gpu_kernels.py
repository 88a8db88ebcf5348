"""The shipped CUDA kernels, run on the CPU by the emulator of tests/gpu/emulator, against the reference.

Every result comes with guard bytes around it, into poisoned memory; shared memory begins as poison, too.
"""

import itertools

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
    one_hot,
    random_logits,
    random_probabilities,
)
from gpu.emulator import emulator, losses
from oracle import error_in_eps, exact_row, expected_of
from tolerances import BASE, assert_same_bits, assert_within

from fastxent import _reference as reference
from fastxent.cpu.rows import element_views, row_views
from fastxent.gpu import engine
from fastxent.gpu import plan as planning

pytestmark = pytest.mark.skipif(emulator.WHY_NOT is not None, reason=str(emulator.WHY_NOT))

# One of each regime, and the edges of vectors and groups: one class, threads with a row each, groups, a warp, a block.
N_CLASSES = (1, 2, 3, 10, 21, 32, 33, 100, 257, 1000, 1500, 4097)
# CuPy's -ftz=true makes subnormal numbers 0, before they meet weights, logits and other factors of that size.
FLUSHED = 100 * float(np.finfo(np.float32).tiny)


@pytest.fixture(params=["late", "eager"])
def both_ways(request, monkeypatch):
    """Asynchronous copies happen as late as they may (as in all other tests), or at once."""
    monkeypatch.setattr(emulator, "EAGER", request.param == "eager")


@pytest.fixture(autouse=True)
def _gpu():
    with losses.gpu():
        yield
        assert engine.flaws() is None


def assert_like_reference(name, options, logits, target, sample_weight=None, **how):
    """All three numbers of a loss are what the reference gives, within the bounds of the CPU's tests."""
    expected = expected_of(name, options, np.array(logits), target, sample_weight)
    results = losses.evaluate(name, options, logits, target, sample_weight, **how)
    flushed = FLUSHED if logits.dtype == np.float32 else 0
    bounds = expected.value_bound, expected.grad_bound, expected.hess_bound
    what = f"{name}({options}) of {logits.dtype}, shape {logits.shape}, {how}"
    for result, exact, bound in zip(results, (expected.value, expected.grad, expected.hess), bounds, strict=False):
        assert_within(result, exact, np.asarray(bound) + flushed, what)
    return results


def plan_of(logits, capability=90):
    """What the engine would launch for the cross-entropy of a 2-D array."""
    (job,) = losses.jobs_of("CrossEntropy", {}, logits, np.zeros(len(logits), np.int64), grad=np.empty_like(logits))
    return dict(job.plan(capability, True).defines)


# ---- softmax family ----


@pytest.mark.parametrize("n_classes", N_CLASSES)
def test_cross_entropy_of_every_size(dtype, n_classes):
    rng = np.random.default_rng(n_classes)
    n_rows = 300 if n_classes < 30 else 33 if n_classes < 300 else 9
    logits = nasty_logits(rng, n_rows, n_classes, dtype)
    assert_like_reference("CrossEntropy", {}, logits, rng.integers(0, n_classes, n_rows), n_derivatives=1)


@pytest.mark.parametrize("offset", range(4))
@pytest.mark.parametrize("n_classes", [7, 100, 1001, 1502])
@pytest.mark.usefixtures("both_ways")
def test_every_alignment_of_logits_and_gradient(n_classes, offset):
    """In the file of a vector of 16 bytes, alike and not alike."""
    rng = np.random.default_rng(offset)
    logits = at_byte(nasty_logits(rng, 5, n_classes, np.float32), 4 * offset)
    for out in (offset, offset + 1):
        assert_like_reference(
            "CrossEntropy", {}, logits, rng.integers(0, n_classes, 5), n_derivatives=1, offset=4 * out
        )


@pytest.mark.parametrize(("dtype", "n_classes"), [(np.float32, 20001), (np.float32, 60002), (np.float64, 12003)])
def test_clusters_share_a_row(dtype, n_classes):
    rng = np.random.default_rng(0)
    logits = nasty_logits(rng, 4, n_classes, dtype)
    assert plan_of(logits)["CLUSTER"] in (4, 8)
    target = np.array([0, n_classes - 1, n_classes // 2, n_classes // 3])
    assert_like_reference("CrossEntropy", {}, logits, target, n_derivatives=1)
    with losses.gpu(has_clusters=False):
        assert_like_reference("CrossEntropy", {}, logits, target, n_derivatives=1)


@pytest.mark.parametrize("n_slices", [1, 2, 3, 5, 7])
def test_blocks_of_a_cluster_may_have_nothing_to_do(n_slices, monkeypatch):
    """A few vectors, shared among more blocks than there are of them."""
    monkeypatch.setattr(planning, "GOOD_SLICE", 64)
    monkeypatch.setattr(planning, "TILE_ROW", 16)
    planning.rows.cache_clear()
    rng = np.random.default_rng(0)
    logits = nasty_logits(rng, 7, 4 * n_slices + 1, np.float32)
    assert_like_reference("CrossEntropy", {}, logits, rng.integers(0, logits.shape[1], 7), n_derivatives=1)
    planning.rows.cache_clear()


@pytest.mark.parametrize("capability", [80, 86, 100])
@pytest.mark.parametrize("n_classes", [10, 100, 1502])
@pytest.mark.usefixtures("both_ways")
def test_other_architectures(capability, n_classes):
    rng = np.random.default_rng(0)
    logits = nasty_logits(rng, 40 if n_classes < 1000 else 9, n_classes, np.float32)
    with losses.gpu(capability):
        assert_like_reference("CrossEntropy", {}, logits, rng.integers(0, n_classes, len(logits)), n_derivatives=1)


def test_rows_too_long_for_shared_memory():
    rng = np.random.default_rng(0)
    logits = nasty_logits(rng, 2, 30000, np.float32)
    with losses.gpu(86):
        assert plan_of(logits, 86)["STAGED"] == 0
        assert_like_reference("CrossEntropy", {}, logits, np.array([3, 29999]), n_derivatives=1, in_place=True)


@pytest.mark.parametrize("layout", WRITABLE_LAYOUTS)
@pytest.mark.parametrize("n_classes", [3, 40])
def test_layouts_and_in_place(layout, n_classes):
    if layout == "misaligned":
        pytest.skip("CuPy has no misaligned arrays")
    rng = np.random.default_rng(1)
    logits = LAYOUTS[layout](nasty_logits(rng, 20, n_classes, np.float32))
    target = rng.integers(0, n_classes, 20)
    value, grad = assert_like_reference("CrossEntropy", {}, logits, target, n_derivatives=1)
    in_place = LAYOUTS[layout](np.array(logits))
    again = losses.evaluate("CrossEntropy", {}, in_place, target, n_derivatives=1, in_place=True)
    assert_same_bits((np.float64(again[0]), np.array(in_place)), (np.float64(value), np.array(grad)))


@pytest.mark.parametrize("n_classes", [10, 100, 1502, 20001])
def test_in_place_where_rows_are_copied_to_shared_memory(n_classes):
    rng = np.random.default_rng(1)
    logits = nasty_logits(rng, 300 if n_classes < 100 else 9, n_classes, np.float32)
    target = rng.integers(0, n_classes, len(logits))
    _, grad = losses.evaluate("CrossEntropy", {}, logits, target, n_derivatives=1)
    _, same = losses.evaluate("CrossEntropy", {}, logits, target, n_derivatives=1, in_place=True)
    assert_same_bits(same, grad)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_class_axis_anywhere(axis):
    rng = np.random.default_rng(1)
    logits = random_logits(rng, (5, 6, 41), np.float32)
    shape = np.delete(logits.shape, axis)
    target = rng.integers(0, logits.shape[axis], shape)
    assert_like_reference("CrossEntropy", {"axis": axis}, logits, target, rng.uniform(0, 2, shape[0]), n_derivatives=1)
    soft = random_probabilities(rng, logits.shape, np.float32, axis)
    assert_like_reference("CrossEntropy", {"axis": axis}, logits, soft, n_derivatives=1)


OPTIONS = {
    "class weight": {"class_weight": True},
    "smoothing": {"label_smoothing": 0.1},
    "ignored": {"ignore_index": 1},
    "all": {"class_weight": True, "label_smoothing": 0.2, "ignore_index": -100, "reduction": "sum"},
    "none": {"reduction": "none", "class_weight": True},
    "log_probs": {"inputs": "log_probs", "label_smoothing": 0.1},
    "probs": {"inputs": "probs", "class_weight": True},
    "focal": {"gamma": 2.0},
    "focal 0": {"gamma": 0.0},
    "focal 1.5": {"gamma": 1.5, "class_weight": True, "ignore_index": 0},
    "focal 3.25 smoothed": {"gamma": 3.25, "label_smoothing": 0.1, "reduction": "none"},
}


@pytest.mark.parametrize("n_classes", [5, 33, 1500])
@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("is_soft", [False, True], ids=["index", "probabilities"])
def test_options(case, is_soft, n_classes):
    rng = np.random.default_rng(7)
    n_rows = 50 if n_classes < 1000 else 6
    options = dict(OPTIONS[case])
    dtype = np.float64 if "3.25" in case else np.float32
    logits = nasty_logits(rng, n_rows, n_classes, dtype)
    if "inputs" in options:
        logits = (rng.uniform(0.01, 1, logits.shape) * (-20 if options["inputs"] == "log_probs" else 1)).astype(dtype)
    if options.get("class_weight"):
        options["class_weight"] = rng.uniform(0, 2, n_classes) * (rng.random(n_classes) < 0.8)
    target = rng.integers(0, n_classes, n_rows)
    if "ignore_index" in options:
        target[::5] = options["ignore_index"]
    if is_soft:
        probabilities = random_probabilities(rng, (n_rows, n_classes), dtype)
        inside = np.clip(target, 0, n_classes - 1)
        probabilities[::5] = one_hot(inside[::5], n_classes, dtype)  # among them ignored ones
        target = probabilities
    weights = rng.uniform(0, 2, n_rows) * (rng.random(n_rows) < 0.8) if case in ("all", "focal") else None
    assert_like_reference("FocalLoss" if "gamma" in options else "CrossEntropy", options, logits, target, weights)


@pytest.mark.parametrize("label_type", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"])
def test_labels_of_every_type(label_type):
    rng = np.random.default_rng(3)
    logits = random_logits(rng, (20, 10), np.float32)
    target = rng.integers(0, 2 if label_type == "?" else 10, 20).astype(label_type)
    assert_like_reference("CrossEntropy", {}, logits, target, n_derivatives=1)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("n_classes", [10, 100, 3001])
def test_half_precision_is_the_float32_result_rounded(half, n_classes):
    rng = np.random.default_rng(4)
    logits = nasty_logits(rng, 11, n_classes, np.float64).clip(-6e4, 6e4).astype(HALVES[half])
    target = rng.integers(0, n_classes, 11)
    value, grad = losses.evaluate("CrossEntropy", {"reduction": "none"}, logits, target, n_derivatives=1)
    expected = expected_of("CrossEntropy", {"reduction": "none"}, logits.astype(np.float32), target)
    unit = np.finfo(np.float16).eps if half == "float16" else 2.0**-7
    smallest = 2.0**-24 if half == "float16" else FLUSHED
    for result, exact, bound in (
        (value, expected.value, expected.value_bound),
        (grad, expected.grad, expected.grad_bound),
    ):
        rounding = 0.51 * unit * np.abs(exact) + smallest + bound
        with np.errstate(over="ignore"):
            exact = np.asarray(exact).astype(HALVES[half]).astype(np.float64)
        assert_within(result.astype(np.float64), exact, 2 * rounding, half)


@pytest.mark.parametrize("half", HALVES)
def test_sums_of_half_precision_are_those_of_float32(half):
    rng = np.random.default_rng(4)
    logits = (3 * rng.standard_normal((20, 100))).astype(HALVES[half])
    target = rng.integers(0, 100, 20)
    value = losses.evaluate("CrossEntropy", {}, logits, target, n_derivatives=0)[0]
    expected = expected_of("CrossEntropy", {}, logits.astype(np.float32), target)
    assert_within(value, expected.value, expected.value_bound, half)


@pytest.mark.parametrize("n_classes", [2, 9, 300])
def test_accuracy_is_that_of_the_contract(dtype, n_classes):
    """DESIGN 2.5, against mpmath: value within (4 + gap) eps, gradient within (4 + distance) eps."""
    rng = np.random.default_rng(5)
    logits = nasty_logits(rng, 22, n_classes, dtype)
    target = np.where(np.arange(22) % 2, logits.argmax(1), rng.integers(0, n_classes, 22))
    value, grad = losses.evaluate("CrossEntropy", {"reduction": "none"}, logits, target, n_derivatives=1)
    tiny = float(np.finfo(dtype).tiny)
    for i, row in enumerate(logits):
        exact = exact_row(row)
        distance = row.max().astype(float) - row.astype(float)
        gap = np.sort(distance)[1]
        y = target[i]
        if abs(exact.log_p[y]) > tiny:
            assert error_in_eps(value[i], -exact.log_p[y], dtype) <= BASE + gap
        for c in range(n_classes):
            want = -exact.not_p[y] if c == y else exact.p[c]
            if abs(want) > tiny:
                far = gap if c == y and distance[y] == 0 else distance[c] if c != y else 0
                assert error_in_eps(grad[i, c], want, dtype) <= BASE + far


@pytest.mark.parametrize(
    ("name", "n_classes"), [*itertools.product(("CrossEntropy", "FocalLoss"), (4, 50, 1502, 20001))]
)
@pytest.mark.parametrize("soft", [False, True])
def test_infinities_and_nan(name, n_classes, soft):
    """The rows of the table of DESIGN 2.3."""
    rng = np.random.default_rng(6)
    rows = np.tile(random_logits(rng, (1, n_classes), np.float32), (9, 1))
    inf = np.inf
    rows[1, 0], rows[2, 2], rows[3, 2], rows[4, 0] = -inf, -inf, inf, inf
    rows[5, :2], rows[6], rows[7, 1], rows[8, 2:] = inf, -inf, np.nan, -inf
    target = np.full(9, 2)
    target[8] = 0
    given = one_hot(target, n_classes, np.float32) if soft else target
    exact = getattr(reference, name)(reduction="none").value_grad_hess(rows.astype(np.float64), target)
    results = losses.evaluate(name, {"reduction": "none"}, rows, given)
    for result, want in zip(results, exact, strict=True):
        np.testing.assert_allclose(result, want, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("name", ["CrossEntropy", "FocalLoss"])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("n_classes", [6, 300, 1502, 20001])
def test_rows_of_no_weight_are_never_looked_at(name, soft, n_classes):
    """By index or sample weight, whatever their logits are, and whatever the rows beside them are."""
    logits = np.full((5, n_classes), np.nan, np.float32)
    logits[1], logits[3] = np.inf, 1
    class_weight = np.ones(n_classes)
    class_weight[1] = 0
    labels, weights = np.array([5, 1, 2, 3, 4]), [1.0, 1, 0, 1, 0]
    target = one_hot(labels, n_classes, np.float32) if soft else labels
    exact = np.log(n_classes) * (1 if name == "CrossEntropy" else (1 - 1 / n_classes) ** 2)
    for reduction in ("mean", "none"):
        options = {"ignore_index": 5, "class_weight": class_weight, "reduction": reduction}
        value, grad, hess = losses.evaluate(name, options, logits, target, weights)
        expected = exact if reduction == "mean" else np.array([0, 0, 0, exact, 0])
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        for derivative in (grad, hess):
            assert not derivative[[0, 1, 2, 4]].any()
            assert np.isfinite(derivative[3]).all()
            assert derivative[3].any()


@pytest.mark.parametrize("name", ["BinaryCrossEntropy", "BinaryFocalLoss"])
@pytest.mark.parametrize("kind", [np.int64, np.float32])
def test_elements_of_no_weight_are_never_looked_at(name, kind):
    logits = np.array([np.nan, np.inf, -np.inf, 0, np.nan, np.nan], np.float32)
    target, weights = np.array([1, 1, 1, 0, 0, 0], kind), [1.0, 1, 1, 1, 0, 0]
    for reduction in ("mean", "none"):
        options = {"ignore_index": 1, "reduction": reduction}
        value, grad, hess = losses.evaluate(name, options, logits, target, weights)
        exact = np.log(2) / (1 if name == "BinaryCrossEntropy" else 4)
        np.testing.assert_allclose(value, exact if reduction == "mean" else [0, 0, 0, exact, 0, 0], rtol=1e-6)
        for derivative in (grad, hess):
            np.testing.assert_array_equal(derivative != 0, [False, False, False, True, False, False])


def test_nothing_counted_is_0():
    logits = np.full((4, 6), np.nan, np.float32)
    for target in (np.full(4, 5), one_hot(np.full(4, 5), 6, np.float32)):
        value, grad, _ = losses.evaluate("CrossEntropy", {"ignore_index": 5}, logits, target)
        assert value == 0
        assert not grad.any()


# ---- what is wrong ----


@pytest.mark.parametrize("n_classes", [3, 40, 1502, 20001])
@pytest.mark.parametrize("label", [-1, "n_classes", 2**40, -(2**62)])
def test_a_bad_label_is_recorded_and_its_row_alone_is_nan(n_classes, label):
    label = n_classes if label == "n_classes" else label
    rng = np.random.default_rng(8)
    logits = random_logits(rng, (7, n_classes), np.float32)
    target = rng.integers(0, n_classes, 7)
    target[[4, 6]] = label
    value, grad = losses.evaluate("CrossEntropy", {"reduction": "none"}, logits, target, n_derivatives=1)
    assert engine.pending()
    assert engine.flaws() == (engine.last_call(), engine.BAD_TARGET, 4, label)
    assert not engine.pending()
    assert engine.flaws() is None
    good = [0, 1, 2, 3, 5]
    assert np.isnan(value[[4, 6]]).all()
    assert not grad[[4, 6]].any()
    exact = expected_of("CrossEntropy", {"reduction": "none"}, logits[good], target[good])
    assert_within(value[good], exact.value, exact.value_bound, "value")
    assert_within(grad[good], exact.grad, exact.grad_bound + FLUSHED, "gradient")


@pytest.mark.parametrize("bad", [np.nan, -0.5, np.inf])
def test_bad_probabilities_and_weights(bad):
    rng = np.random.default_rng(8)
    logits = random_logits(rng, (7, 10), np.float32)
    target = random_probabilities(rng, (7, 10), np.float32)
    target[5, 3] = bad
    _, grad = losses.evaluate("CrossEntropy", {}, logits, target, n_derivatives=1)
    flaw = engine.flaws()
    assert flaw[:3] == (engine.last_call(), engine.BAD_TARGET, 53)
    np.testing.assert_equal(flaw.value, bad)
    assert not grad[5].any()
    weights = np.ones(7)
    weights[2] = bad
    target[5, 3] = -1  # weights are named first
    losses.evaluate("CrossEntropy", {}, logits, target, weights, n_derivatives=1)
    flaw = engine.flaws()
    assert flaw[:3] == (engine.last_call(), engine.BAD_WEIGHT, 2)
    np.testing.assert_equal(flaw.value, bad)


def test_the_first_flaw_of_several_calls_is_kept():
    logits = np.zeros((5, 3), np.float32)
    good, bad = np.zeros(5, np.int64), np.array([0, 0, 7, 9, 0])
    losses.evaluate("CrossEntropy", {}, logits, good)
    losses.evaluate("CrossEntropy", {}, logits, bad)
    first = engine.last_call()
    losses.evaluate("CrossEntropy", {}, logits, bad[::-1])
    assert engine.flaws() == (first, engine.BAD_TARGET, 2, 7)


def test_a_divisor_must_be_finite():
    logits = np.zeros((5, 3), np.float32)
    losses.evaluate("CrossEntropy", {}, logits, np.zeros(5, np.int64), np.full(5, 1e308))
    assert engine.flaws()[:2] == (engine.last_call(), engine.BAD_DIVISOR)


def test_bad_binary_targets():
    logits = np.zeros((5, 3), np.float32)
    for target, number in ((np.full((5, 3), 2), 2), (np.full((5, 3), -0.5, np.float32), -0.5)):
        target[:3] = 1
        value, grad = losses.evaluate("BinaryCrossEntropy", {"reduction": "none"}, logits, target, n_derivatives=1)
        assert engine.flaws() == (engine.last_call(), engine.BAD_TARGET, 9, number)
        assert np.isnan(value[3:]).all()
        assert not grad[3:].any()
        assert np.isfinite(value[:3]).all()


# ---- binary losses ----

BINARY = {
    "plain": ("BinaryCrossEntropy", {}),
    "weighed": ("BinaryCrossEntropy", {"pos_weight": 2.5, "reduction": "sum"}),
    "per label": ("BinaryCrossEntropy", {"pos_weight": [0.5, 0.0, 3.0], "reduction": "none", "label_smoothing": 0.1}),
    "probs": ("BinaryCrossEntropy", {"inputs": "probs", "label_smoothing": 0.1}),
    "ignored": ("BinaryCrossEntropy", {"ignore_index": 1}),
    "focal": ("BinaryFocalLoss", {}),
    "focal 0": ("BinaryFocalLoss", {"gamma": 0.0, "alpha": 0.25}),
    "focal 1": ("BinaryFocalLoss", {"gamma": 1.0, "reduction": "none"}),
    "focal 3.5": ("BinaryFocalLoss", {"gamma": 3.5, "alpha": 0.7, "label_smoothing": 0.1}),
}


@pytest.mark.parametrize("case", BINARY)
@pytest.mark.parametrize("kind", ["bool", "int", "soft"])
def test_binary_losses(case, kind, dtype):
    name, options = BINARY[case]
    rng = np.random.default_rng(9)
    shape = (67, 3)
    logits = nasty_elements(rng, shape, dtype)
    if "inputs" in options:
        logits = rng.uniform(0.01, 0.99, shape).astype(dtype)
    target = binary_target(rng, shape, kind, dtype)
    weights = rng.uniform(0, 2, 67) * (rng.random(67) < 0.8) if case in ("weighed", "focal") else None
    assert_like_reference(name, options, logits, target, weights)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 31, 1023, 1025, 4099])
@pytest.mark.parametrize("offset", [0, 4, 12])
def test_every_number_and_alignment_of_elements(n, offset):
    rng = np.random.default_rng(n)
    logits = at_byte(nasty_elements(rng, (n,), np.float32), offset)
    target = binary_target(rng, (n,), "bool", np.float32)
    for out in (offset, offset + 4):
        assert_like_reference("BinaryCrossEntropy", {}, logits, target, offset=out)


@pytest.mark.parametrize("layout", ["F", "strided", "reversed"])
def test_binary_layouts_and_in_place(layout):
    rng = np.random.default_rng(1)
    logits = LAYOUTS[layout](nasty_elements(rng, (20, 7), np.float32))
    target = binary_target(rng, (20, 7), "soft", np.float32)
    value, grad = assert_like_reference("BinaryFocalLoss", {}, logits, target, n_derivatives=1)
    again = losses.evaluate("BinaryFocalLoss", {}, logits, target, n_derivatives=1, in_place=True)
    assert_same_bits((np.float64(again[0]), np.array(logits)), (np.float64(value), np.array(grad)))


def test_binary_infinities():
    inf = np.inf
    logits = np.array([inf, -inf, -inf, inf, np.nan, 0], np.float32)
    target = np.array([1, 0, 1, 0, 1, 1])
    for name in ("BinaryCrossEntropy", "BinaryFocalLoss"):
        exact = getattr(reference, name)(reduction="none").value_and_grad(logits, target)
        results = losses.evaluate(name, {"reduction": "none"}, logits, target, n_derivatives=1)
        for result, want in zip(results, exact, strict=True):
            np.testing.assert_allclose(result, want, rtol=1e-6)


def test_a_weighed_loss_beyond_float32_is_a_finite_sum():
    logits, target = np.full(3, -1e38, np.float32), np.ones(3, bool)
    value = losses.evaluate("BinaryCrossEntropy", {"pos_weight": 1e30}, logits, target, n_derivatives=0)[0]
    assert value == pytest.approx(1e68, rel=1e-6)


# ---- activations ----


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp", "sigmoid", "log_sigmoid"])
@pytest.mark.parametrize("n_classes", [5, 1502])
def test_activations(name, n_classes, dtype):
    rng = np.random.default_rng(2)
    x = nasty_logits(rng, 9, n_classes, dtype)
    x[0, 0], x[1, :2], x[2] = np.inf, np.inf, -np.inf
    exact = getattr(reference, name)(x.astype(np.longdouble))
    if name == "logsumexp":
        out = losses.Output(x[:, 0].copy())
        views = row_views(1, [x], [out.array])
    else:
        out = losses.Output(x)
        views = (row_views(1, [x, out.array], [])) if "softmax" in name else element_views([x, out.array])
    for z, result in views:
        arrays = {"loss" if name == "logsumexp" else "grad": losses.device.on_device(result)}
        assert engine.evaluate([engine.Job(name, losses.device.on_device(z), **arrays)]) is None
    out.check()
    e = float(np.finfo(dtype).eps)
    with np.errstate(all="ignore"):
        size, largest = np.abs(exact).astype(float), x.max(1, keepdims=True).astype(float)
        if name == "logsumexp":
            bound = 4 * (size + np.abs(largest[:, 0]))
        elif name == "log_softmax":
            bound = (4 + np.minimum(np.sort(largest - x)[:, 1:2], 1e3)) * size
        else:
            bound = (4 + np.minimum(np.abs(x) if "sigmoid" in name else largest - x, 1e3)) * size
    bound = np.nan_to_num(bound, nan=0, posinf=0)
    assert_within(out.array, exact, e * bound + (FLUSHED if dtype == np.float32 else 1e-307), name)


# ---- beyond float32 ----

FAR = np.float32(3e38)


@pytest.mark.parametrize("name", ["CrossEntropy", "FocalLoss"])
@pytest.mark.parametrize("kind", ["smoothed", "probabilities"])
@pytest.mark.parametrize("n_classes", [3, 40, 1000, 3000, 20001])
def test_distances_beyond_float32(name, kind, n_classes):
    """The largest logit and the smallest are farther apart than float32 can say; the loss is a finite double."""
    logits = np.zeros((5, n_classes), np.float32)
    logits[1:4, 0], logits[1:4, -1] = FAR, -FAR  # rows beside them share their warps
    target, options = np.zeros(5, np.int64), {"reduction": "sum"}
    if kind == "smoothed":
        options["label_smoothing"] = 0.1
        mass = np.full(n_classes, 0.1 / n_classes)
        mass[0] += 0.9
    else:
        mass = np.zeros(n_classes)
        mass[[0, 1, -1]] = 0.5, 0.25, 0.25
        target = np.tile(mass, (5, 1)).astype(np.float32)
    value, grad, hess = losses.evaluate(name, options, logits, target)
    exact = 3 * mass @ (float(FAR) - logits[1].astype(float))
    assert value == pytest.approx(exact, rel=8 * float(np.finfo(np.float32).eps))
    assert np.isfinite(grad).all()
    assert np.isfinite(hess).all()
    # A class that is masked, and yet has mass, is infinitely far.
    logits[1, -1] = -np.inf
    assert losses.evaluate(name, {"reduction": "sum"}, logits, np.tile(mass, (5, 1)), n_derivatives=0)[0] == np.inf


def test_losses_of_plain_rows_beyond_float32():
    logits, target = np.full((2, 40), -FAR), np.full((2, 40), 3, np.float32)
    value = losses.evaluate("CrossEntropy", {"inputs": "log_probs", "reduction": "sum"}, logits, target)[0]
    assert value == pytest.approx(240 * float(FAR), rel=1e-6)


# ---- the same bits ----


@pytest.mark.parametrize("name", ["CrossEntropy", "FocalLoss"])
@pytest.mark.parametrize("is_soft", [False, True], ids=["index", "probabilities"])
@pytest.mark.parametrize(
    ("n_classes", "dtype"),
    [(3, np.float64), (100, np.float32), (3000, np.float64), (9001, np.float32), (20001, np.float32)],
)
def test_what_else_is_wanted_does_not_change_a_bit(name, is_soft, n_classes, dtype):
    """Nor where it is put: arrays whose rows lie otherwise are filled from the same computation."""
    rng = np.random.default_rng(n_classes)
    logits = nasty_logits(rng, 5, n_classes, dtype)
    target = random_probabilities(rng, logits.shape, dtype) if is_soft else rng.integers(0, n_classes, 5)
    expected = losses.evaluate(name, {}, logits, target)
    for n_derivatives in (0, 1):
        results = losses.evaluate(name, {}, logits, target, n_derivatives=n_derivatives)
        assert_same_bits(results[1:], expected[1 : 1 + n_derivatives])
        assert results[0] == expected[0]
    for layout in ("F", "strided", "reversed", "offset"):
        grad, hess = (losses.Output(LAYOUTS[layout](np.zeros_like(logits))) for _ in range(2))
        jobs = losses.jobs_of(name, {}, logits, target, grad=grad.array, hess=hess.array)
        assert float(engine.evaluate(jobs, reduction="mean")) == expected[0]
        assert_same_bits((grad.array, hess.array), expected[1:])
        grad.check()
        hess.check()


def test_partial_sums_do_not_depend_on_the_weights_of_others():
    """Rows keep their bits whatever their neighbours are."""
    rng = np.random.default_rng(0)
    logits = nasty_logits(rng, 64, 100, np.float32)
    target = rng.integers(0, 100, 64)
    value, grad = losses.evaluate("CrossEntropy", {"reduction": "none"}, logits, target, n_derivatives=1)
    half, half_grad = losses.evaluate("CrossEntropy", {"reduction": "none"}, logits[:31], target[:31], n_derivatives=1)
    assert_same_bits((half, half_grad), (value[:31], grad[:31]))


def test_a_focal_loss_of_gamma_0_is_the_cross_entropy():
    rng = np.random.default_rng(0)
    logits = nasty_logits(rng, 64, 100, np.float64)
    target = rng.integers(0, 100, 64)
    plain = losses.evaluate("CrossEntropy", {"reduction": "none"}, logits, target, n_derivatives=1)
    focal = losses.evaluate("FocalLoss", {"reduction": "none", "gamma": 0.0}, logits, target, n_derivatives=1)
    assert_same_bits(focal, plain)


# ---- the emulator itself ----


def test_the_emulator_sees_what_goes_wrong():
    port = "struct Nothing {}; \n"
    for body, message in (
        ("if (threadIdx.x == 0) __syncthreads();", "wait for ever"),
        ("SHARED_MEMORY(s); s[shared] = 1;", "shared memory written"),
        ("SHARED_MEMORY(s); copy_async(s + 8, s); copy_async_commit();", "misaligned"),
        ("SHARED_MEMORY(s); copy_async(s + 96, s + 64); copy_async_commit();", "left behind"),
        ("SHARED_MEMORY(s); bulk_store(s, s + shared, 16);", "outside shared memory"),
        ("SHARED_MEMORY(s); u64 *b = (u64 *)s; barrier_init(b); barrier_wait(b, 0);", "wait for ever"),
        ("store_streaming((char *)8, Vector16());", "misaligned"),
    ):
        source = f"{port}#define CLUSTER 1\nKERNEL broken(const int shared) {{ {body} }}\n"
        with pytest.raises(RuntimeError, match=message):
            emulator.function(source, "broken")((1,), (32,), (np.int32(128),), shared_mem=128)
