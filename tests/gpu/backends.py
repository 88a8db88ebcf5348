"""Where the GPU path runs in tests: without a GPU on stand-ins for CuPy and its kernels, with one on the real ones.

"stand_in": arrays of `fake_cupy`, computed by the engine of the CPU: the Python half.
"emulated": the same arrays, computed by the shipped kernels, compiled for the CPU.
"gpu": CuPy itself.
"""

import contextlib
import sys

import numpy as np

NAMES = ("stand_in", "emulated", "gpu")


def unusable(name):
    """Why a backend cannot be used here; None if it can."""
    if name == "emulated":
        try:
            import fastxent.gpu.engine  # noqa: F401
            from gpu.emulator import emulator  # noqa: F401
        except ImportError as problem:
            return f"no emulator: {problem}"
        return None
    if name == "gpu":
        try:
            import cupy
        except Exception as problem:  # noqa: BLE001 - half an installation fails in many ways
            return f"no CuPy: {problem}"
        return None if cupy.is_available() else "CuPy finds no GPU"
    return None


def _forget_the_gpu_side():
    for name in [name for name in sys.modules if name.startswith("fastxent.gpu")]:
        del sys.modules[name]


@contextlib.contextmanager
def backend(name):
    """CuPy, or what stands in for it, with the GPU side of fastxent loaded afresh."""
    before = {key: sys.modules.pop(key) for key in list(sys.modules) if key == "cupy" or key.startswith("fastxent.gpu")}
    if name == "gpu":
        import cupy
    else:
        from gpu import fake_cupy as cupy

        sys.modules["cupy"] = cupy
        cupy.synchronised.clear()
        if name == "stand_in":
            from gpu import stand_in_engine

            sys.modules["fastxent.gpu.engine"] = stand_in_engine
            stand_in_engine.flaws()
    try:
        yield cupy
    finally:
        _forget_the_gpu_side()
        sys.modules.pop("cupy", None)
        sys.modules.update(before)


def on_gpu(cupy, array):
    """The same values in CuPy's memory; on the stand-ins the very same memory, with layout and overlaps."""
    if hasattr(cupy, "host"):
        return cupy.ndarray._of(array)
    return cupy.asarray(array)


def on_cpu(value):
    return value.get() if hasattr(value, "get") else np.asarray(value)
