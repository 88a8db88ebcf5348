"""Where the GPU path runs in tests: without a GPU on stand-ins for CuPy and its kernels, with one on the real ones.

"stand_in": arrays of `fake_cupy`, computed by the engine of the CPU: the Python half.
"emulated": the same arrays, computed by the shipped kernels, compiled for the CPU.
"gpu": CuPy itself.
"""

import contextlib
import ctypes
import functools
import inspect
import os
import sys

import numpy as np

import fastxent as fx
from fastxent._base import Loss

NAMES = ("stand_in", "emulated", "gpu")
ARRAYS = ("logits", "target", "sample_weight", "x")


def unusable(name):
    """Why a backend cannot be used here; None if it can."""
    if name == "emulated":
        try:
            from gpu.emulator import emulator
        except ImportError as problem:  # a source distribution may lack its header
            return f"no emulator: {problem}"
        return emulator.WHY_NOT
    if name == "gpu":
        try:
            import cupy
        except Exception as problem:  # noqa: BLE001 - half an installation fails in many ways
            return f"no CuPy: {problem}"
        return None if cupy.is_available() else "CuPy finds no GPU"
    return None


# The GPU side of each backend, once loaded: its kernels are compiled once.
_loaded = {}


def _modules():
    return {key: module for key, module in sys.modules.items() if key == "cupy" or key.startswith("fastxent.gpu")}


def _put(modules):
    """Make these the GPU side that is loaded."""
    for key in _modules():
        del sys.modules[key]
    sys.modules.update(modules)
    if "fastxent.gpu" in modules:
        fx.gpu = modules["fastxent.gpu"]
    else:
        vars(fx).pop("gpu", None)


@contextlib.contextmanager
def backend(name):
    """CuPy, or what stands in for it, with a GPU side of fastxent of its own."""
    before, key = _modules(), (name, os.environ.get("FASTXENT_GPU_CHECK"))
    if name == "gpu":
        import cupy

        _put(_loaded.get(key, {"cupy": cupy}))
    else:
        from gpu import fake_cupy as cupy
        from gpu import stand_in_engine

        cupy.synchronised.clear()
        fresh = {"cupy": cupy} | ({"fastxent.gpu.engine": stand_in_engine} if name == "stand_in" else {})
        _put(_loaded.get(key, fresh))
    try:
        if "fastxent.gpu.engine" in sys.modules:
            sys.modules["fastxent.gpu.engine"].flaws()  # of the last test
        yield cupy
    finally:
        _loaded[key] = _modules()
        _put(before)


class Memory:
    """The memory of arrays of the CPU as CuPy's: with their layouts, and where they overlap, with their overlaps.

    On the stand-ins it is the very same memory, on a GPU a copy of it.
    """

    def __init__(self, cupy):
        self.cupy, self.buffers = cupy, {}

    def on_gpu(self, array):
        """This array in CuPy's memory; what no CuPy array can be (misaligned, byte-swapped) is straightened."""
        if not (array.flags.aligned and array.dtype.isnative):
            array = array.astype(array.dtype.newbyteorder("="), order="K")
        if hasattr(self.cupy, "host"):
            return self.cupy.ndarray._of(array)
        owner = array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        start, end = np.lib.array_utils.byte_bounds(owner)
        if start not in self.buffers:
            phase = start % 64  # alignment decides how kernels read
            buffer = self.cupy.zeros(phase + end - start, np.uint8)
            buffer[phase:] = self.cupy.asarray(_bytes_at(start, end).copy())
            self.buffers[start] = buffer, phase, end
        buffer, phase, _ = self.buffers[start]
        place = buffer.data + phase + array.__array_interface__["data"][0] - start
        return self.cupy.ndarray(array.shape, array.dtype, place, strides=array.strides)

    def back(self, out, on_gpu):
        """What a call has written into ``on_gpu``, written into the array of the CPU that it stands for."""
        if out.flags.aligned and out.dtype.isnative and not hasattr(self.cupy, "host"):
            for start, (buffer, phase, end) in self.buffers.items():
                _bytes_at(start, end)[...] = buffer[phase:].get()
        elif out.__array_interface__["data"][0] != on_gpu.data.ptr:
            out[...] = on_gpu.get()


def _bytes_at(start, end):
    return np.frombuffer((ctypes.c_uint8 * (end - start)).from_address(start), np.uint8)


def through(cupy, function):
    """A function or method of fastxent, as tests of the CPU call it, through CuPy arrays and back."""
    names = list(inspect.signature(function).parameters)
    is_function = names[0] != "self"

    @functools.wraps(function)
    def call(*arguments, **named):
        memory, sent, outputs = Memory(cupy), [], []

        def on_gpu(name, value):
            # A number stands for what an element of an array is on the GPU: an array without axes.
            is_array = isinstance(value, list | np.ndarray) or (name in ARRAYS and np.isscalar(value))
            if not is_array or np.asarray(value).dtype.kind not in "biufcV":
                return value
            host = np.asarray(value)
            # An empty list says nothing about its dtype, an array does.
            array = memory.on_gpu(host.astype(int) if host.size == 0 and isinstance(value, list) else host)
            sent.append(name)
            if name in ("grad_out", "hess_out", "out"):
                outputs.append((value, array))
            return array

        def on_cpu(result):
            if not sent:  # numbers lie on no device
                return result
            assert type(result) is cupy.ndarray
            for value, array in outputs:
                if array is result:
                    memory.back(value, array)
                    return value
            if is_function:
                return result.get()[()]
            is_value = result is (results[0] if isinstance(results, tuple) else results)
            if is_value and arguments[0].reduction != "none":
                assert (result.shape, result.dtype) == ((), np.float64)
                return float(result)
            return result.get()

        on_device = [on_gpu(name, value) for name, value in zip(names, arguments, strict=False)]
        results = function(*on_device, **{name: on_gpu(name, value) for name, value in named.items()})
        return tuple(map(on_cpu, results)) if isinstance(results, tuple) else on_cpu(results)

    return call


def send_all_calls_through(monkeypatch, cupy):
    """Have all losses and activations of fastxent take arrays of the CPU to CuPy's and back."""
    for name in ("__call__", "value_and_grad", "value_grad_hess"):
        monkeypatch.setattr(Loss, name, through(cupy, getattr(Loss, name)))
    for name in ("softmax", "log_softmax", "logsumexp", "sigmoid", "log_sigmoid"):
        monkeypatch.setattr(fx, name, through(cupy, getattr(fx, name)))
