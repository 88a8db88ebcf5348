"""The least of CuPy that ``fastxent.gpu.engine`` needs, over the emulator: arrays are NumPy's."""

import types

import numpy as np

from .emulator import compile


class Array(np.ndarray):
    """An array of the device, which is the CPU."""

    @property
    def data(self):
        return types.SimpleNamespace(ptr=self.__array_interface__["data"][0])

    def get(self):
        return np.array(self)


def on_device(array):
    """The same memory as an array of the device."""
    return None if array is None else np.asarray(array).view(Array)


class _Device:
    id = 0

    def __init__(self, compute_capability):
        self.compute_capability = compute_capability

    def synchronize(self):
        pass


class RawModule:
    def __init__(self, *, code, options=()):
        self.module = compile(code)

    def get_function(self, name):
        return self.module.get_function(name)


def cupy(capability=90):
    """A module for ``sys.modules["cupy"]``; new memory is poison."""

    def empty(shape, dtype=float):
        array = np.empty(shape, dtype)
        array.view(np.uint8).fill(0xFB) if array.ndim else None
        return on_device(array)

    module = types.ModuleType("cupy")
    module.empty, module.RawModule = empty, RawModule
    module.zeros = lambda shape, dtype=float: on_device(np.zeros(shape, dtype))
    module.ascontiguousarray = lambda a, dtype=None: on_device(np.ascontiguousarray(a, dtype))
    module.cuda = types.SimpleNamespace(
        Device=lambda: _Device(str(capability)),
        get_current_stream=lambda: types.SimpleNamespace(synchronize=lambda: None),
        alloc_pinned_memory=lambda size: np.zeros(size, np.uint8),
    )
    return module
