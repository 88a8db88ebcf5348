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
] + ["test_activations", "test_sigmoid", "test_half"]


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
        wide_a, wide_b = np.asarray(a).astype(np.float64), np.asarray(b).astype(np.float64)
        close = 1e-5 if isinstance(b, float) else unit
        smallest = 0 if isinstance(b, float) else float(ml_dtypes.finfo(kind).smallest_normal) * unit
        largest = float(ml_dtypes.finfo(kind).max)
        wide_b = np.where((np.abs(wide_b) > largest) & (not isinstance(b, float)), np.copysign(np.inf, wide_b), wide_b)
        np.testing.assert_allclose(wide_a, wide_b, rtol=close, atol=smallest)


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
        yield cupy


def class_of(name):
    """The tests of a module as those of a class of this one."""
    module = importlib.import_module(name)
    tests = {
        key: staticmethod(function)
        for key, function in vars(module).items()
        if key.startswith("test_") and inspect.isfunction(function)
    }
    title = "".join(word.title() for word in name.split("_"))
    return type(title, (), tests | {"pytestmark": [pytest.mark.usefixtures("backend")]})


for _name in MODULES:
    _class = class_of(_name)
    globals()[_class.__name__] = _class
