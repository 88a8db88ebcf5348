"""Faults a review found, each once, so that they stay mended."""

import ctypes
import subprocess
import sys
import textwrap

import numpy as np
import oracle
import pytest
from tolerances import assert_within

import fastxent as fx


# A group of fewer rows than lanes once wrote its losses over the scales of the rows after it: 1025 to 2048 classes have
# groups of 2 to 3 rows in float32, and blocks of exactly 16.
@pytest.mark.parametrize("n_classes", [1025, 1500, 2047, 2048])
@pytest.mark.parametrize("n_rows", [16, 17, 40])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}], ids=str)
def test_rows_in_small_groups_keep_their_scale(isa, dtype, n_classes, n_rows, options):
    rng = np.random.default_rng(n_classes + n_rows)
    logits = rng.normal(size=(n_rows, n_classes)).astype(dtype)
    target = rng.integers(n_classes, size=n_rows)
    weight = rng.uniform(0.5, 2, size=n_rows)
    expected = oracle.cross_entropy(options, logits, target, weight)
    value, grad, hess = fx.CrossEntropy(**options).value_grad_hess(logits, target, weight)
    assert_within(value, expected.value, expected.value_bound, "value")
    assert_within(grad, expected.grad, expected.grad_bound, "gradient")
    assert_within(hess, expected.hess, expected.hess_bound, "Hessian")


def test_a_child_of_a_process_in_which_another_library_ran_openmp_does_not_hang():
    try:
        ctypes.CDLL("libgomp.so.1")
    except OSError:
        pytest.skip("no libgomp.so.1 to run a foreign parallel region with")
    script = """
        import ctypes, os, numpy as np, fastxent as fx
        gomp = ctypes.CDLL("libgomp.so.1")
        work = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: None)
        gomp.GOMP_parallel(work, None, 2, 0)
        logits, target = np.zeros((300_000, 3)), np.zeros(300_000, int)
        child = os.fork()
        if child == 0:
            os._exit(0 if fx.get_num_threads() == 1 and abs(fx.CrossEntropy()(logits, target) - np.log(3)) < 1e-12 else 1)
        assert os.waitpid(child, 0)[1] == 0
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
        timeout=60,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_mean_with_tiny_weights_has_a_finite_gradient():
    logits, target = np.zeros((3, 3)), [0, 1, 2]
    value, grad = fx.CrossEntropy().value_and_grad(logits, target, np.full(3, 1e-310))
    assert value == pytest.approx(np.log(3), rel=1e-12)
    np.testing.assert_allclose(grad, (1 / 3 - np.eye(3)) / 3, rtol=1e-12)


def test_weights_whose_sum_overflows_are_refused():
    with pytest.raises(ValueError, match=r"^sample_weight must have a finite sum; got inf$"):
        fx.CrossEntropy()(np.zeros((3, 3)), [0, 1, 2], np.full(3, 1e308))
    # Only the mean needs the sum.
    losses = fx.CrossEntropy(reduction="none")(np.zeros((3, 3)), [0, 1, 2], np.full(3, 1e307))
    np.testing.assert_allclose(losses, np.log(3) * 1e307, rtol=1e-12)
    losses = fx.CrossEntropy(reduction="none")(np.log([[4.0, 1], [4, 1]]), [0, 0], np.full(2, 1.5e308))
    np.testing.assert_allclose(losses, np.log1p(0.25) * 1.5e308, rtol=1e-12)


def test_numbers_beyond_float32_are_refused_for_float32_logits():
    logits = np.zeros((2, 2), np.float32)
    with pytest.raises(ValueError, match=r"^class_weight must be finite in float32; got 1e\+300 at index 1$"):
        fx.CrossEntropy(class_weight=[1, 1e300])(logits, [0, 1])
    with pytest.raises(ValueError, match=r"^target must be finite in float32; got 1e\+300 at index \(1, 1\)$"):
        fx.CrossEntropy()(logits, np.array([[1, 0], [0, 1e300]]))
    assert np.isfinite(fx.CrossEntropy(class_weight=[1, 1e300])(logits.astype(np.float64), [0, 1]))


def test_labels_beyond_int64_are_out_of_range_whatever_is_ignored():
    labels = np.array([2**64 - 1], np.uint64)
    for ignore_index in (-1, 2**63 - 2):
        with pytest.raises(ValueError, match="got 18446744073709551615 at index 0"):
            fx.CrossEntropy(ignore_index=ignore_index)(np.zeros((1, 2)), labels)
    with pytest.raises(
        ValueError, match=r"^ignore_index must be in \[-2\*\*63, 2\*\*63 - 1\); got 9223372036854775807$"
    ):
        fx.CrossEntropy(ignore_index=2**63 - 1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"class_weight": {0: "2.5"}}, TypeError, "class_weight must be real numbers; got '2.5' at index 0"),
        ({"class_weight": {0: 10**400}}, ValueError, "class_weight must be finite and >= 0; got 1000"),
        ({"label_smoothing": 10**400}, ValueError, "label_smoothing must be in [0, 1]; got 1000"),
    ],
)
def test_options_that_slipped_through(options, error, message):
    with pytest.raises(error) as caught:
        fx.CrossEntropy(**options)
    assert str(caught.value).startswith(message)


def test_a_row_whose_smoothing_mass_is_all_masked_still_counts(isa, dtype):
    for n_classes in (1, 20, 3000):
        logits = np.full((2, n_classes), -np.inf, dtype)
        value, grad = fx.CrossEntropy(label_smoothing=1.0, reduction="none").value_and_grad(logits, [0, 0])
        assert np.isnan(value).all()
        assert np.isnan(grad).all()


def test_the_weight_that_is_too_large_is_the_one_named():
    weights = np.array([1, 1, np.longdouble("1e4000")])
    if not np.isfinite(weights[2]):
        pytest.skip("longdouble has the range of float64 here")
    with pytest.raises(ValueError, match=r"at index 2$"), np.errstate(over="ignore"):
        fx.CrossEntropy()(np.zeros((3, 2)), [0, 1, 0], weights)


def test_the_same_memory_with_other_strides_along_an_axis_of_one_is_in_place():
    logits = np.arange(6.0).reshape(2, 3)
    expected = fx.CrossEntropy().value_and_grad(logits[:1].copy(), [0])[1]
    _, grad = fx.CrossEntropy().value_and_grad(logits[:1], [0], grad_out=logits[0][None])
    np.testing.assert_array_equal(grad, expected)


def test_balanced_class_weight_of_the_wrong_shape():
    with pytest.raises(
        ValueError, match=r"^target must be integer class indices or probabilities of shape \(\.\.\., 4\)"
    ):
        fx.balanced_class_weight(np.zeros((5, 3)), 4)


# Chunks of the elementwise kernels that are exactly one row once took weights per label from a buffer nobody had filled.
@pytest.mark.parametrize("n_labels", [257, 300, 511, 512, 513, 600, 1023, 1024, 1025])
def test_weights_per_label_in_every_row(isa, dtype, n_labels):
    rng = np.random.default_rng(n_labels)
    logits, pos_weight = np.zeros((4, n_labels), dtype), rng.uniform(0.5, 2, n_labels)
    each = fx.BinaryCrossEntropy(pos_weight, reduction="none")(logits, np.ones_like(logits))
    np.testing.assert_allclose(each, np.tile(pos_weight * np.log(2), (4, 1)), rtol=8 * np.finfo(dtype).eps)


def test_losses_beyond_float32_are_finite_doubles(isa):
    loss = fx.BinaryCrossEntropy(pos_weight=3.4e38, reduction="sum")
    for z in (-0.9, -1.0, -30.0, -1e30):
        exact = 3.4e38 * np.logaddexp(0, -np.float64(np.float32(z)))
        assert loss(np.float32([z]), [1]) == pytest.approx(exact, rel=1e-6)
    loss = fx.BinaryCrossEntropy(pos_weight=1e38, reduction="sum", inputs="probs")
    assert loss(np.float32([1e-10]), [1]) == pytest.approx(1e38 * 10 * np.log(10), rel=1e-6)


# A distance that overflows float32 once left a NaN in the low half of a compensated sum, in rows of several chunks.
@pytest.mark.parametrize("loss", [fx.CrossEntropy, fx.FocalLoss])
@pytest.mark.parametrize("n_classes", [1000, 1600, 3000, 9000])
def test_distances_beyond_float32(isa, loss, n_classes):
    logits = np.zeros((1, n_classes), np.float32)
    logits[0, 0], logits[0, 700] = 3e38, -3e38
    value, grad = loss(label_smoothing=0.1, reduction="sum").value_and_grad(logits, [0])
    exact = 0.1 / n_classes * ((n_classes - 2) * 3e38 + 6e38)
    assert value == pytest.approx(exact, rel=1e-5)
    assert np.isfinite(grad).all()


def test_weights_that_float32_cannot_hold_give_no_nan(isa):
    logits = np.float32([[100, -10]])
    for weight in (1e39, 1e300, 1e-50, 1e-320):
        for loss in (fx.CrossEntropy, fx.FocalLoss):
            results = loss(reduction="sum").value_grad_hess(logits, [0], [weight])
            assert all(np.isfinite(r).all() for r in results)
        results = fx.BinaryFocalLoss(reduction="sum").value_grad_hess(np.float32([-200]), [0], [weight])
        assert all(np.isfinite(r).all() for r in results)
    # The limits of tiny weights at probability 0 are those of any weight.
    _, grad = fx.CrossEntropy(inputs="probs", reduction="sum").value_and_grad(np.float32([[0, 1]]), [0], [1e-50])
    np.testing.assert_array_equal(grad, [[-np.inf, 0]])
    _, grad = fx.BinaryCrossEntropy(inputs="probs", reduction="sum").value_and_grad(np.float32([0]), [1], [1e-50])
    np.testing.assert_array_equal(grad, [-np.inf])


# Targets are compared with ignore_index as they are, not as they are rounded for the arithmetic.
@pytest.mark.parametrize(("ignored", "near"), [(1, 1 - 1e-12), (0, 1e-60)])
def test_ignored_is_who_equals_exactly(isa, ignored, near):
    loss = fx.BinaryCrossEntropy(ignore_index=ignored)
    assert loss(np.float32([0]), np.array([near])) == pytest.approx(np.log(2), rel=1e-6)
    assert loss(np.float32([0]), np.array([float(ignored)])) == 0


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("bfloat16", [0, np.nan]), r"target must be in \[0, 1\] or equal to ignore_index; got nan at index 1"),
        (("float16", [0, 2]), r"target must be in \[0, 1\] or equal to ignore_index; got 2.0 at index 1"),
    ],
)
def test_errors_come_without_warnings(targets, message):
    dtype, values = targets
    dtype = np.dtype(pytest.importorskip("ml_dtypes").bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    with pytest.raises(ValueError, match=message):
        fx.BinaryCrossEntropy(ignore_index=-100000)(np.zeros(2, np.float32), np.array(values).astype(dtype))


# The short way once took a ValueError of a signal handler, which comes out between slices, for a buffer it could not
# have, and went the long way over logits that were gradients by then.
def test_exceptions_of_signal_handlers_come_out():
    program = textwrap.dedent(
        """
        import signal, numpy as np, fastxent as fx
        class Late(ValueError): pass
        def late(*_): raise Late
        signal.signal(signal.SIGALRM, late)
        fx.set_num_threads(1)
        pristine, target = np.random.default_rng(0).standard_normal((60_000, 1_000), np.float32), np.zeros(60_000, int)
        right = fx.CrossEntropy()(pristine, target)
        raised = 0
        for milliseconds in range(2, 40, 3):
            logits = pristine.copy()
            try:
                signal.setitimer(signal.ITIMER_REAL, milliseconds / 1e3)
                value, _ = fx.CrossEntropy().value_and_grad(logits, target, grad_out=logits)
                signal.setitimer(signal.ITIMER_REAL, 0)
                assert value == right
            except Late:
                raised += 1
        assert raised
        """
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_nothing_is_allocated_for_calls_that_are_wrong():
    with pytest.raises(ValueError, match="target must be integer class indices"):
        fx.CrossEntropy().value_and_grad(np.broadcast_to(np.float32(0), (2**20, 2**40)), np.zeros(3, int))


def test_a_full_block_of_neighbouring_probabilities(isa, dtype):
    # The survey cleared more sums of rows than it had room for, below AVX-512; a sanitizer shows it.
    rng = np.random.default_rng(0)
    for n_classes in (2, 3, 4):
        logits = rng.standard_normal((1024, n_classes)).astype(dtype)
        target = rng.dirichlet(np.ones(n_classes), 1024).astype(dtype)
        expected = fx.CrossEntropy().value_and_grad(logits, target)
        value, grad = fx.CrossEntropy().value_and_grad(np.asfortranarray(logits), np.asfortranarray(target))
        assert value == pytest.approx(expected[0], rel=1e-5)
        np.testing.assert_allclose(grad, expected[1], rtol=1e-4, atol=1e-9)


# Terms that are equal err in the same direction all the way: one after the other, a million of them lost 170 eps.
@pytest.mark.parametrize("n_rows", [316, 1000, 100_003])
@pytest.mark.parametrize("axis", [0, 1])
def test_sums_of_equal_rows_are_exact(isa, n_rows, axis):
    eps = np.finfo(np.float64).eps
    row, soft = np.array([[0.3, -0.1, 0.2]]), np.array([[0.7, 0.1, 0.3]])
    logits, probabilities = np.repeat(row, n_rows, axis=0), np.repeat(soft, n_rows, axis=0)
    target, weight = np.zeros(n_rows, int), np.full(n_rows, 0.7)
    if axis == 0:
        logits, probabilities = np.asfortranarray(logits).T, np.asfortranarray(probabilities).T
    for options in ({}, {"class_weight": [0.7, 0.1, 0.1]}, {"label_smoothing": 0.1}):
        one, many = (fx.CrossEntropy(axis=a, **options) for a in (1, axis))
        for labels, label, weights in (
            (target, [0], weight),
            (probabilities, soft, None),
            (probabilities, soft, weight),
        ):
            expected = one(row, label, None if weights is None else weights[:1])
            assert abs(many(logits, labels, weights) / expected - 1) <= 6 * eps, (options, weights is None)
    total = fx.CrossEntropy(reduction="sum", axis=axis)(logits, target)
    assert abs(total / (n_rows * fx.CrossEntropy()(row, [0])) - 1) <= 6 * eps


@pytest.mark.parametrize("n_classes", [3, 40, 3000])
def test_sums_of_equal_classes_are_exact(isa, n_classes):
    logits, target = np.zeros((2, n_classes)), np.full((2, n_classes), 0.7)
    for loss in (fx.CrossEntropy(), fx.CrossEntropy(axis=0)):
        z, t = (logits, target) if loss.axis else (logits.T.copy(), target.T.copy())
        assert abs(loss(z, t) / np.log(n_classes) - 1) <= 6 * np.finfo(np.float64).eps


def test_balanced_weights_of_many_equal_rows_are_exact():
    for n_rows in (1, 7, 8, 9, 4097, 100_001):
        weights = fx.balanced_class_weight(np.tile([0.1, 0.7, 0.3], (n_rows, 1)), 3)
        expected = 1.1 / 3 / np.array([0.1, 0.7, 0.3])
        np.testing.assert_allclose(weights, expected, rtol=4 * np.finfo(np.float64).eps)


# The product of a small probability and a small mass was 0 before the weight of the row could make it an ordinary number.
@pytest.mark.parametrize("n_classes", [2, 3, 40, 300, 3000])
@pytest.mark.parametrize("options", [{}, {"class_weight": "array"}], ids=str)
@pytest.mark.parametrize("axis", [0, 1])
def test_small_masses_survive_large_weights(isa, dtype, n_classes, options, axis):
    tiny = float(np.finfo(dtype).tiny)
    options = dict(options)
    if "class_weight" in options:
        options["class_weight"] = np.full(n_classes, tiny**0.25)
    options |= {"axis": axis, "reduction": "sum"}
    logits = np.zeros((4, n_classes), dtype)
    logits[:, 1:] = np.log(tiny) * np.linspace(0.6, 0.9, n_classes - 1)
    target = np.zeros(logits.shape, dtype)
    target[:, 0] = tiny**0.5  # the gradients of the others are nothing but p W
    weight = np.array([1, tiny**-0.25, tiny**-0.5, tiny**-0.75])
    if axis == 0:
        logits, target = np.ascontiguousarray(logits.T), np.ascontiguousarray(target.T)
    expected = oracle.cross_entropy(options, logits, target, weight)
    _, grad = fx.CrossEntropy(**options).value_and_grad(logits, target, weight)
    assert_within(grad, expected.grad, expected.grad_bound, "gradient")


# 0 times a negative Hessian is -0.0.
@pytest.mark.parametrize("n_classes", [2, 3, 12, 40, 700, 2500])
@pytest.mark.parametrize("axis", [0, 1])
def test_focal_rows_of_weight_0_have_no_sign(isa, dtype, n_classes, axis):
    rng = np.random.default_rng(n_classes)
    logits = rng.normal(size=(100, n_classes)).astype(dtype) * 3
    weight, target = np.arange(100) % 2, rng.integers(n_classes, size=100)
    ignored = fx.FocalLoss(gamma=3, axis=axis, ignore_index=-1)
    z = logits if axis else np.asfortranarray(logits.T)
    for labels, weights in ((target, weight), (np.where(weight == 0, -1, target), None)):
        for derivative in ignored.value_grad_hess(z, labels, weights)[1:]:
            of_weight_0 = derivative.T[:, weight == 0] if axis else derivative[:, weight == 0]
            assert not of_weight_0.any()
            assert not np.signbit(of_weight_0).any()


# Kernels are chosen by the layout of the arrays; a Hessian laid out otherwise must not choose another for the gradient.
@pytest.mark.parametrize("shape", [(60, 3), (60, 12), (60, 40), (20, 700), (10, 2500)])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("loss", [fx.CrossEntropy, fx.FocalLoss])
def test_the_layout_of_the_hessian_does_not_change_the_gradient(isa, dtype, shape, axis, loss):
    rng = np.random.default_rng(shape[1])
    logits = rng.normal(size=shape).astype(dtype) * 3
    target = rng.integers(shape[axis], size=shape[1 - axis])
    for order in "CF":
        value, grad = loss(axis=axis).value_and_grad(logits, target, None, np.empty(shape, dtype, order))
        hessians = []
        for out in (
            np.empty(shape, dtype),
            np.empty(shape, dtype, "F"),
            np.empty((shape[0], 2 * shape[1]), dtype)[:, ::2],
            np.empty(shape, dtype)[:, ::-1],
            np.empty((2 * shape[0], shape[1]), dtype)[::2],
        ):
            results = loss(axis=axis).value_grad_hess(logits, target, None, np.empty(shape, dtype, order), out)
            assert results[0] == value
            np.testing.assert_array_equal(results[1], grad)
            assert results[2] is out
            hessians.append(out)
        for out in hessians[1:]:
            np.testing.assert_array_equal(out, hessians[0])
