"""The tests of the CPU, unchanged, on CuPy arrays: the same values, options, outputs and layouts.

Their calls go through CuPy arrays and back (tests/gpu/backends.py). Errors are raised in the call itself, as with
FASTXENT_GPU_CHECK=1.
"""

import importlib
import inspect

import numpy as np
import oracle
import pytest
import test_half
import tolerances
from gpu import backends
from test_half import half  # noqa: F401 - a fixture

import fastxent as fx

ml_dtypes = pytest.importorskip("ml_dtypes")
pytestmark = pytest.mark.thread_unsafe

MODULES = [
    f"test_{loss}_{part}"
    for loss in ("cross_entropy", "focal", "binary")
    for part in ("values", "options", "outputs", "extremes", "layouts")
] + ["test_activations", "test_sigmoid", "test_half", "test_review_findings"]
OF_THE_CPU_ALONE = ("test_exceptions_of_signal_handlers_come_out",)


KNOWN = {}  # the oracle's memory, with the bounds of a GPU
USABLE = [name for name in backends.NAMES if not backends.unusable(name)]


@pytest.mark.parametrize("name", backends.NAMES)
def test_the_backend_takes_arrays_and_gives_arrays(name):
    """Where it cannot be used, the reason for which all its tests below are missing."""
    reason = backends.unusable(name)
    if reason:
        pytest.skip(reason)
    logits, labels = np.array([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]]), np.array([1, 0])
    value, grad = fx.CrossEntropy().value_and_grad(logits, labels)
    with backends.backend(name) as cupy:
        results = fx.CrossEntropy().value_and_grad(cupy.asarray(logits), cupy.asarray(labels))
        assert all(isinstance(result, cupy.ndarray) for result in results)
        np.testing.assert_allclose(float(results[0].get()), value, rtol=1e-15)
        np.testing.assert_allclose(results[1].get(), grad, rtol=1e-14)


def assert_nearly_rounded(actual, wide, kind):
    """As in test_half; but kernels of halves add up in another order than those of float32, so the last bit may differ."""
    unit = float(ml_dtypes.finfo(kind).eps)
    for a, b in zip(actual, wide, strict=True):
        if isinstance(b, float):
            np.testing.assert_allclose(a, b, rtol=1e-5)
        else:
            slack = unit / 2 * np.where(np.isfinite(b), np.abs(b.astype(np.float64)), 0)
            assert_between(a, b - slack, b + slack, kind)


def assert_between(actual, least, most, kind):
    """No farther than these numbers as they are rounded, and one subnormal number more; NaN is NaN."""
    smallest = float(ml_dtypes.finfo(kind).smallest_subnormal)
    a, least, most = (in_half(x, kind).astype(np.float64) for x in (actual, least, most))
    good = ((least - smallest <= a) & (a <= most + smallest)) | (np.isnan(a) & np.isnan(least))
    assert good.all(), (a[~good][0], least[~good][0], most[~good][0])


def assert_results_are_nearly_rounded(problem, kind, reduction="none"):
    """As in test_half; but where terms cancel, their last bits are more than that of the difference: oracle.py knows."""
    actual, logits = problem.results(problem.logits, reduction), problem.logits.astype(np.float32)
    if problem.name.islower() or reduction != "none" or not np.isfinite(logits).all():
        assert_nearly_rounded(actual, problem.results(logits, reduction), kind)
        return actual
    axis = {"axis": problem.axis} if test_half.has_classes(problem.case) else {}
    options = problem.options | axis | {"reduction": reduction}
    exact = oracle.expected_of(problem.name, options, logits, problem.target, problem.weight)
    bounds = zip(
        actual,
        (exact.value, exact.grad, exact.hess),
        (exact.value_bound, exact.grad_bound, exact.hess_bound),
        strict=True,
    )
    for a, b, bound in bounds:
        assert_between(a, b - bound, b + bound, kind)
    return actual


def in_half(values, kind):
    """As in test_half; but subnormal float32 numbers, which those of bfloat16 are, are 0."""
    values = np.asarray(values).astype(np.float64)
    with np.errstate(over="ignore"):
        return np.where(np.abs(values) < np.finfo(np.float32).tiny, 0, values).astype(kind)


@pytest.fixture(params=USABLE)
def backend(request, monkeypatch):
    """CuPy, or what stands in for it; all calls of the tests go through its arrays."""
    flushes = request.param != "stand_in"
    if flushes and "subnormal" in request.node.name and "float32" in request.node.name:
        pytest.skip("GPUs take subnormal float32 numbers for 0")
    monkeypatch.setenv("FASTXENT_GPU_CHECK", "1")
    with backends.backend(request.param) as cupy:
        backends.send_all_calls_through(monkeypatch, cupy)
        if flushes:
            monkeypatch.setattr(tolerances, "flushes_float32", True)
            monkeypatch.setattr(oracle, "_known", KNOWN)
            monkeypatch.setattr(test_half, "assert_rounded", assert_nearly_rounded)
            monkeypatch.setattr(test_half, "assert_results_are_rounded", assert_results_are_nearly_rounded)
            monkeypatch.setattr(test_half, "in_half", in_half)
        yield cupy


def class_of(name):
    """The tests of a module as those of a class of this one."""
    module = importlib.import_module(name)
    tests = {
        key: staticmethod(function)
        for key, function in vars(module).items()
        if key.startswith("test_") and inspect.isfunction(function) and key not in OF_THE_CPU_ALONE
    }
    title = "".join(word.title() for word in name.split("_"))
    return type(title, (), tests | {"pytestmark": [pytest.mark.usefixtures("backend")]})


for _name in MODULES:
    _class = class_of(_name)
    globals()[_class.__name__] = _class
