"""The benchmark of the GPU path, as far as it can be looked at without one."""

import numpy as np
import pytest
from gpu.backends import backend

pytest.importorskip("benchmarks.gpu", reason="the benchmarks are not here")

from benchmarks import gpu

pytestmark = pytest.mark.thread_unsafe


def test_the_cases_are_those_of_the_promise():
    assert len({case.name for case in gpu.CASES}) == len(gpu.CASES) == 19
    assert {case.n_classes for case in gpu.CASES} >= {10, 21, 1000, 4096, 32000, 50257, 128256, 151936}
    case = gpu.Case("CE", 8192, 128256, "bfloat16", 0.9)
    assert case.floor_bytes == 2 * 2 * 8192 * 128256 + 8 * 8192


@pytest.mark.parametrize("loss", gpu.LOSSES)
@pytest.mark.parametrize("dtype", gpu.DTYPES)
def test_right_results_pass_the_check_and_wrong_ones_do_not(loss, dtype, monkeypatch):
    pytest.importorskip("ml_dtypes")
    case = gpu.Case(loss, 40, 10, dtype, 0.9)
    rng = np.random.default_rng(0)
    logits = (2 * rng.standard_normal((40, 10))).astype(np.float32).astype(gpu.dtype_of(dtype))
    target = rng.integers(0, 10, 40) if loss == "CE" else rng.random((40, 10)) < 0.5
    with backend("stand_in") as cupy:
        arrays = cupy.asarray(logits), cupy.asarray(target)
        gpu.check(cupy, case, *arrays)
        original = gpu.LOSSES[loss]

        class Wrong(type(original)):
            def value_and_grad(self, logits, target):
                value, grad = type(original)(reduction=self.reduction).value_and_grad(logits, target)
                return value, grad if isinstance(grad, np.ndarray) else cupy.asarray(
                    cupy.host(grad) * grad.dtype.type(2)
                )

        monkeypatch.setitem(gpu.LOSSES, loss, Wrong())
        with pytest.raises(SystemExit, match="wrong gradient"):
            gpu.check(cupy, case, *arrays)


def test_the_table_shows_what_was_measured_and_nothing_else():
    result = {"median_ms": 1.0, "p20_ms": 0.9, "p80_ms": 1.1, "of_ceiling": 0.5}
    report = {
        "device": {"name": "GPU", "driver": 1, "runtime": 2, "cupy": "3"},
        "ceilings": {"copy": 4e12, "read": 5e12},
        "cases": [
            {"case": "a", "target": 0.9, "results": {"fastxent": result, "torch eager": result}},
            {"case": "b", "target": 0.9, "results": {"fastxent": result}},
        ],
        "python_call_us": {"fastxent": 12.0},
    }
    lines = gpu.markdown(report).splitlines()
    assert "| a | 0.9 | 1.000 (0.50) | 1.000 (0.50) |" in lines
    assert "| b | 0.9 | 1.000 (0.50) | - |" in lines


def test_without_a_gpu_nothing_is_measured(monkeypatch):
    monkeypatch.setattr("fastxent.gpu.is_available", lambda: False)
    with pytest.raises(SystemExit, match="nothing is measured"):
        gpu.main([])
