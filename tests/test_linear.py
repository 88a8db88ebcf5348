"""fastxent.linear: what it gives in blocks is what the loss gives of all logits at once."""

import pickle
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
from fresh import run_python
from tolerances import STEP, eps

import fastxent as fx
from fastxent import linear

N_SAMPLES, N_FEATURES, N_CLASSES = 211, 7, 5
SOFTMAX = [
    fx.CrossEntropy(),
    fx.CrossEntropy("balanced", 0.1, ignore_index=2, reduction="sum"),
    fx.CrossEntropy([1, 0, 3, 4, 0.5]),
    fx.FocalLoss(0.0, reduction="sum"),
    fx.FocalLoss(0.7, ignore_index=1),
    fx.FocalLoss(2.5, {1: 3.0}, label_smoothing=0.05),
]
BINARY = [
    fx.BinaryCrossEntropy(pos_weight=2.0, label_smoothing=0.1),
    fx.BinaryCrossEntropy(reduction="sum", ignore_index=1),
    fx.BinaryFocalLoss(1.5, alpha=0.3),
]
# A sum of n products is wrong by up to n eps of the largest of them, whatever the order.
PRODUCTS = 4 * (N_SAMPLES + N_FEATURES)
X_FORMS = {
    "C": np.ascontiguousarray,
    "F": np.asfortranarray,
    "strided": lambda x: np.repeat(np.repeat(x, 2, axis=0), 3, axis=1)[::2, ::3],
    "reversed": lambda x: x[::-1].copy()[::-1],
    "csr_matrix": scipy.sparse.csr_matrix,
    "csr_array": scipy.sparse.csr_array,
    "list": lambda x: x.tolist(),
    "swapped": lambda x: x.astype(x.dtype.newbyteorder()),
}


def problem(loss, seed=0, dtype="float64"):
    """(X, target of indices or zeros and ones, target of fractions, coef, intercept, sample weights)."""
    rng = np.random.default_rng(seed)
    X = (rng.standard_normal((N_SAMPLES, N_FEATURES)) * (rng.random((N_SAMPLES, N_FEATURES)) < 0.7)).astype(dtype)
    X.flags.writeable = False
    weight = rng.random(N_SAMPLES) * (rng.random(N_SAMPLES) < 0.9)
    if isinstance(loss, fx.BinaryCrossEntropy | fx.BinaryFocalLoss):
        coef, intercept = rng.standard_normal(N_FEATURES), np.float64(0.3)
        return X, rng.integers(0, 2, N_SAMPLES), rng.random(N_SAMPLES), coef, intercept, weight
    coef, intercept = rng.standard_normal((N_CLASSES, N_FEATURES)), rng.standard_normal(N_CLASSES)
    soft = rng.dirichlet(np.ones(N_CLASSES), N_SAMPLES)
    return X, rng.integers(0, N_CLASSES, N_SAMPLES), soft, coef, intercept, weight


def at_once(loss, X, target, coef, intercept, weight=None):
    """Value and gradients with all logits in memory, and the scale of what the latter's terms are."""
    value, grad = loss.value_and_grad(X @ coef.T + intercept, target, weight)
    scale = np.abs(grad).sum(axis=0).max() * np.abs(X).max()
    return value, grad.T @ X, grad.sum(axis=0), scale


def assert_near(actual, expected, scale, dtype=np.float64):
    assert np.shape(actual) == np.shape(expected)
    assert np.max(np.abs(actual - expected)) <= PRODUCTS * eps(dtype) * scale


@pytest.mark.parametrize("soft", [False, True], ids=["labels", "soft"])
@pytest.mark.parametrize("loss", SOFTMAX + BINARY, ids=repr)
class TestAgainstAllLogits:
    @pytest.mark.parametrize("form", X_FORMS)
    @pytest.mark.parametrize("block_rows", [None, 1, 50, 10_000])
    def test_value_and_gradients(self, loss, soft, form, block_rows):
        X, labels, fractions, coef, intercept, weight = problem(loss)
        target = fractions if soft else labels
        expected, grad, grad_intercept, scale = at_once(loss, X, target, coef, intercept, weight)
        given = X_FORMS[form](X)
        value, *grads = linear.value_and_grad(loss, given, target, coef, intercept, weight, block_rows=block_rows)
        assert value == pytest.approx(expected, rel=PRODUCTS * eps("float64"))
        assert_near(grads[0], grad, scale)
        assert_near(grads[1], grad_intercept, scale)
        alone = linear.value(loss, given, target, coef, intercept, weight, block_rows=block_rows)
        assert alone == pytest.approx(expected, rel=PRODUCTS * eps("float64"))

    def test_the_hessian_times_a_vector_is_the_derivative_of_the_gradient(self, loss, soft):
        X, labels, fractions, coef, intercept, weight = problem(loss)
        target = fractions if soft else labels
        rng = np.random.default_rng(1)
        vector, start = rng.standard_normal(coef.shape), rng.standard_normal(np.shape(intercept))

        def gradients(step):
            return linear.value_and_grad(
                loss, X, target, coef + step * vector, intercept + step * start, weight, block_rows=60
            )[1:]

        def product(form):
            return linear.hessp(
                loss,
                form(X),
                target,
                coef,
                intercept,
                weight,
                vector=vector,
                vector_intercept=start,
                block_rows=60,
            )

        for form in (np.asarray, scipy.sparse.csr_array):
            for actual, after, before in zip(product(form), gradients(STEP), gradients(-STEP), strict=True):
                # Truncation and rounding of a central difference: both about eps^(2/3) of terms up to 10 times as large.
                slack = 100 * STEP**2 * np.abs(actual).max()
                np.testing.assert_allclose(actual, (after - before) / (2 * STEP), rtol=0, atol=slack)

    def test_the_hessian_is_symmetric(self, loss, soft):
        X, labels, fractions, coef, intercept, weight = problem(loss)
        target = fractions if soft else labels
        a, b = np.random.default_rng(2).standard_normal((2, *coef.shape))
        left = np.vdot(a, linear.hessp(loss, X, target, coef, intercept, weight, vector=b)[0])
        right = np.vdot(b, linear.hessp(loss, X, target, coef, intercept, weight, vector=a)[0])
        assert left == pytest.approx(right, rel=1e-10)

    def test_float32(self, loss, soft):
        X, labels, fractions, coef, intercept, weight = problem(loss, dtype="float32")
        target = fractions if soft else labels
        expected, grad, grad_intercept, scale = at_once(loss, X.astype("f8"), target, coef, intercept, weight)
        single = coef.astype("f4")
        value, *grads = linear.value_and_grad(loss, X, target, single, intercept, weight, block_rows=50)
        assert [g.dtype for g in grads] == ["float32", "float32"]
        assert value == pytest.approx(expected, rel=PRODUCTS * eps("float32"))
        assert_near(grads[0], grad, scale, np.float32)
        assert_near(grads[1], grad_intercept, scale, np.float32)
        assert linear.value_and_grad(loss, X, target, coef, intercept, weight)[1].dtype == np.float64

    def test_without_an_intercept(self, loss, soft):
        X, labels, fractions, coef, intercept, _ = problem(loss)
        target = fractions if soft else labels
        expected, grad, _, scale = at_once(loss, X, target, coef, 0 * intercept)
        value, grad_coef, grad_intercept = linear.value_and_grad(loss, X, target, coef)
        assert grad_intercept is None
        assert linear.hessp(loss, X, target, coef, vector=coef)[1] is None
        assert value == pytest.approx(expected, rel=PRODUCTS * eps("float64"))
        assert_near(grad_coef, grad, scale)


def test_several_labels():
    X, _, _, coef, intercept, weight = problem(fx.CrossEntropy())
    target = np.random.default_rng(3).integers(0, 2, (N_SAMPLES, N_CLASSES))
    loss = fx.BinaryCrossEntropy(pos_weight=[1, 2, 3, 4, 5.0])
    for weights in (None, weight, np.random.default_rng(4).random(target.shape)):
        expected, grad, grad_intercept, scale = at_once(loss, X, target, coef, intercept, weights)
        value, *grads = linear.value_and_grad(loss, X, target, coef, intercept, weights, block_rows=30)
        assert value == pytest.approx(expected, rel=PRODUCTS * eps("float64"))
        assert_near(grads[0], grad, scale)
        assert_near(grads[1], grad_intercept, scale)


def test_nothing_counted_and_no_rows_are_0():
    X, target, _, coef, intercept, weight = problem(fx.CrossEntropy())
    for rows, weights in ((slice(0), None), (slice(None), 0 * weight)):
        value, *grads = linear.value_and_grad(fx.CrossEntropy(), X[rows], target[rows], coef, intercept, weights)
        assert value == 0.0
        assert not np.any(grads[0])
        assert not np.any(grads[1])


def test_nothing_counted_is_0_though_smoothing_costs():
    # Class 0 weighs nothing, and no other occurs; what smoothing adds overflows.
    X, coef = np.full((3, 1), 1e200), np.array([[1e200], [-1e200]])
    loss = fx.CrossEntropy([0.0, 1.0], label_smoothing=0.1)
    value, grad, _ = linear.value_and_grad(loss, X, [0, 0, 0], coef)
    assert value == loss([[np.inf, -np.inf]] * 3, [0, 0, 0]) == 0.0
    assert not grad.any()


@pytest.mark.parametrize("n_classes", [3, 40])
def test_the_same_bits_for_any_number_of_threads(n_classes):
    rng = np.random.default_rng(5)
    X, target = rng.standard_normal((9000, 6)), rng.integers(0, n_classes, 9000)
    coef, intercept = rng.standard_normal((n_classes, 6)), np.zeros(n_classes)
    results = set()
    for threads in (1, 2, 3):
        fx.set_num_threads(threads)
        results.add(pickle.dumps(linear.value_and_grad(fx.CrossEntropy(), X, target, coef, intercept)))
    assert len(results) == 1


def test_newton_finds_the_minimum_that_l_bfgs_finds():
    X, target, _, coef, _, weight = problem(fx.CrossEntropy())
    loss, penalty = fx.CrossEntropy(label_smoothing=0.1), 1e-2

    def value_and_grad(w):
        value, grad, _ = linear.value_and_grad(loss, X, target, w.reshape(coef.shape), None, weight)
        return value + penalty / 2 * w @ w, grad.ravel() + penalty * w

    def product(w, v):
        shape = coef.shape
        return linear.hessp(loss, X, target, w.reshape(shape), None, weight, vector=v.reshape(shape))[0].ravel() + (
            penalty * v
        )

    start = np.zeros(coef.size)
    newton = scipy.optimize.minimize(
        value_and_grad, start, jac=True, hessp=product, method="trust-ncg", options={"gtol": 1e-10}
    )
    other = scipy.optimize.minimize(value_and_grad, start, jac=True, options={"gtol": 1e-9})
    np.testing.assert_allclose(newton.x, other.x, atol=1e-7)
    assert newton.nit < other.nit


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["C", "F", "csr_array"])
def test_the_logits_never_exist(form):
    rng = np.random.default_rng(6)
    n_samples, n_classes = 30_000, 200
    X = X_FORMS[form](rng.standard_normal((n_samples, 20)))
    target, coef = rng.integers(0, n_classes, n_samples), rng.standard_normal((n_classes, 20))
    linear.value_and_grad(fx.CrossEntropy(), X, target, coef)
    tracemalloc.start()
    linear.value_and_grad(fx.CrossEntropy(), X, target, coef)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n_samples * n_classes * 8 == 48_000_000
    assert peak < 4_000_000


def test_a_file_is_trained_on_in_little_memory(tmp_path):
    """600 MB of features, less than 100 MB in memory beyond what the imports take."""
    path = tmp_path / "features.npy"
    program = f"""
import resource
import numpy as np
import fastxent as fx
from fastxent import linear
import scipy.linalg.blas, scipy.sparse

X = np.lib.format.open_memmap({str(path)!r}, mode="w+", dtype=np.float32, shape=(1_500_000, 100))
rng = np.random.default_rng(0)
some = rng.standard_normal((10_000, 100), dtype=np.float32)
truth = rng.standard_normal((10, 100), dtype=np.float32)
target = np.empty(len(X), np.uint8)
for first in range(0, len(X), len(some)):
    X[first : first + len(some)] = some = np.roll(some, 1, axis=1)
    target[first : first + len(some)] = np.argmax(some @ truth.T, axis=1)
X.flush()
del X
X = np.load({str(path)!r}, mmap_mode="r")
with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")
def resident(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) / 1024
before = resident("VmRSS")
coef, values = np.zeros((10, 100), np.float32), []
for step in range(3):
    value, grad, _ = linear.value_and_grad(fx.CrossEntropy(), X, target, coef)
    values.append(value)
    coef -= 2 * grad
assert values[0] > values[1] > values[2], values
print(X.nbytes / 2**20, resident("VmHWM"), before)
"""
    size, peak, before = map(float, run_python(program).split())
    assert size > 570
    # The pages of the file while it was written are still there before; those that are read are given back.
    assert peak - before < 100
    assert peak < 200 + before


def test_pages_of_private_files_are_kept(tmp_path):
    path = tmp_path / "features.npy"
    np.save(path, np.zeros((100, 3)))
    X = np.load(path, mmap_mode="c")
    X[:] = 1.0
    linear.value(fx.BinaryCrossEntropy(), X, np.ones(100), np.ones(3))
    assert (X == 1).all()


# --- what is wrong ----------------------------------------------------------------------------------------------------

GOOD = np.ones((4, 3)), np.array([0, 1, 2, 1]), np.ones((3, 3))


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (TypeError, "loss must be a loss of fastxent; got 'log'", {"loss": "log"}),
        (ValueError, "loss must have reduction 'mean' or 'sum'; got", {"loss": fx.CrossEntropy(reduction="none")}),
        (ValueError, "loss must have inputs 'logits'; got", {"loss": fx.CrossEntropy(inputs="probs")}),
        (ValueError, "loss must have axis -1 or 1; got", {"loss": fx.CrossEntropy(axis=0)}),
        (ValueError, r"X must have shape \(n_samples, n_features\)", {"X": np.ones(3)}),
        (ValueError, r"X must have shape \(n_samples, n_features\)", {"X": np.ones((4, 0))}),
        (TypeError, "X must be real numbers of at most 64 bits; got complex128", {"X": np.ones((4, 3), complex)}),
        (TypeError, "X must be real numbers of at most 64 bits; got object", {"X": np.full((4, 3), None)}),
        (TypeError, "X must be a NumPy array or a SciPy CSR array; got csc", {"X": scipy.sparse.csc_array(GOOD[0])}),
        (ValueError, r"coef must have shape \(n_classes, 3\); got shape \(3, 2\)", {"coef": np.ones((3, 2))}),
        (ValueError, r"coef must have shape \(n_classes, 3\); got shape \(3,\)", {"coef": np.ones(3)}),
        (ValueError, r"intercept must have shape \(3,\); got shape \(2,\)", {"intercept": np.ones(2)}),
        (TypeError, "intercept must be float16", {"intercept": ["a", "b", "c"]}),
        (ValueError, r"target must be integer class indices of shape \(4,\)", {"target": [0, 1, 2]}),
        (ValueError, r"target must be in \[0, 3\); got 3 at index 2", {"target": [0, 1, 3, 1]}),
        (ValueError, "sample_weight must be finite and >= 0; got -1.0 at index 3", {"sample_weight": [1, 1, 1, -1.0]}),
        (ValueError, r"sample_weight must have shape \(4,\)", {"sample_weight": [1.0, 2.0]}),
        (ValueError, "block_rows must be >= 1; got 0", {"block_rows": 0}),
        (TypeError, "block_rows must be an integer; got 1.5", {"block_rows": 1.5}),
    ],
)
def test_bad_arguments(error, message, changes):
    X, target, coef = GOOD
    arguments = {"loss": fx.CrossEntropy(), "X": X, "target": target, "coef": coef, "intercept": None} | changes
    # A block of one row: what is wrong in the last of them is found before the first is computed, and by its own index.
    arguments = {"block_rows": 1} | arguments
    for call in (linear.value, linear.value_and_grad):
        with pytest.raises(error, match=message):
            call(**arguments)
    with pytest.raises(error, match=message):
        linear.hessp(vector=coef, **arguments)


def test_coefficients_of_binary_losses():
    with pytest.raises(ValueError, match=r"coef must have shape \(n_classes, 3\) or \(3,\); got shape \(2,\)"):
        linear.value(fx.BinaryCrossEntropy(), GOOD[0], np.ones(4), np.ones(2))


def test_vectors_of_the_wrong_shape():
    X, target, coef = GOOD
    with pytest.raises(ValueError, match=r"vector must have shape \(3, 3\); got shape \(3,\)"):
        linear.hessp(fx.CrossEntropy(), X, target, coef, vector=np.ones(3))
    with pytest.raises(ValueError, match=r"vector_intercept must have shape \(3,\); got shape \(\)"):
        linear.hessp(fx.CrossEntropy(), X, target, coef, vector=coef, vector_intercept=1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("form", ["C", "F", "csr_array"])
@pytest.mark.parametrize("call", [linear.value, linear.value_and_grad])
def test_features_that_are_not_finite(call, form, bad):
    X = np.ones((50, 3))
    X[33, 1] = bad
    with pytest.raises(ValueError, match=rf"X must be finite; got {bad} at index \(33, 1\)"):
        call(fx.CrossEntropy(), X_FORMS[form](X), np.zeros(50, int), np.eye(3), block_rows=20)


def test_coefficients_that_are_not_finite_give_nan():
    value, grad, _ = linear.value_and_grad(fx.CrossEntropy(), np.ones((4, 2)), [0, 1, 0, 1], np.full((2, 2), np.nan))
    assert np.isnan(value)
    assert np.isnan(grad).all()


def test_without_scipy():
    assert "pip install" in run_python(
        """
import sys
sys.modules["scipy"] = None
import numpy as np
import fastxent as fx
from fastxent import linear
try:
    linear.value(fx.CrossEntropy(), np.ones((2, 2)), [0, 1], np.ones((2, 2)))
except ImportError as error:
    print(error)
"""
    )


def test_importing_fastxent_imports_no_scipy():
    assert run_python("import fastxent, sys; print('scipy' in sys.modules)") == "False"
    assert run_python("import fastxent.linear, sys; print('scipy' in sys.modules)") == "False"


def test_the_loss_is_left_alone():
    loss = fx.CrossEntropy("balanced")
    linear.value(loss, *GOOD)
    assert loss == replace(loss)
    assert loss.class_weight == "balanced"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n_features", [20, 400])  # float32 rows of 400 have their gradient made as its transpose
def test_gradients_are_in_c_order_whatever_the_length_of_rows(dtype, n_features):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((2500, n_features)).astype(dtype)
    target, coef = rng.integers(0, 5, 2500), (0.1 * rng.standard_normal((5, n_features))).astype(dtype)
    _, grad, _ = linear.value_and_grad(fx.CrossEntropy(), X, target, coef)
    wide = X.astype(np.float64)
    _, residuals = fx.CrossEntropy().value_and_grad(wide @ coef.T.astype(np.float64), target)
    assert grad.flags.c_contiguous
    scale = np.abs(residuals).T @ np.abs(wide)
    # Logits are sums of n_features products, and gradients of 2500, each rounded.
    assert (np.abs(grad - residuals.T @ wide) <= n_features * np.finfo(dtype).eps * scale).all()
