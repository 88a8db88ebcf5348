"""A stand-in for CuPy whose "device" is the memory of the CPU, for tests without a GPU.

Only what fastxent uses, with CuPy's refusals: an array is no NumPy array and does not become one by itself, so that a
silent copy is an error here as it is there. Kernels are compiled and run by the emulator of tests/gpu/emulator.
"""

import contextlib
import operator
import sys
import types

import numpy as np

__version__ = "0 (stand-in)"
# What would make the CPU wait for a GPU is counted, so that tests can say that nothing did.
synchronised = []


def wait(what):
    """Note that the CPU waits; it must not while the current stream is capturing."""
    if Stream.current.capturing:
        raise RuntimeError("cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing")
    synchronised.append(what)


class Device:
    current = 0

    def __init__(self, number=None):
        self.id = Device.current if number is None else number

    def __enter__(self):
        self.before, Device.current = Device.current, self.id
        return self

    def __exit__(self, *_):
        Device.current = self.before

    def __eq__(self, other):
        return self.id == other.id

    def __hash__(self):
        return self.id

    def synchronize(self):
        wait("device")

    compute_capability = "90"
    attributes = {"MultiProcessorCount": 2, "MaxSharedMemoryPerBlockOptin": 232448}  # noqa: RUF012 - as CuPy's


class Stream:
    """A stream that knows whether it is capturing; what it is given runs at once all the same."""

    device_id = -1  # as of CuPy's default stream
    capturing = False

    def __init__(self, ptr=0x5000):
        self.ptr = ptr

    def __enter__(self):
        self.before, Stream.current = Stream.current, self
        return self

    def __exit__(self, *_):
        Stream.current = self.before

    def begin_capture(self):
        self.capturing = True

    def end_capture(self):
        self.capturing = False

    def is_capturing(self):
        assert self.ptr > 1, "asked of the default stream, which is an error while another one is capturing"
        return self.capturing

    def synchronize(self):
        wait("stream")


Stream.current = Stream(0)


class _Memory:
    def __init__(self, ptr):
        self.ptr = ptr


class Allocation:
    """What an allocator returns: as long as it lives, the memory is nobody else's."""

    def __init__(self, size):
        self.size = size


_allocators = [Allocation]


@contextlib.contextmanager
def using_allocator(allocator):
    _allocators.append(allocator)
    try:
        yield
    finally:
        _allocators.pop()


class _Flags:
    """CuPy's know neither `writeable` nor `aligned`."""

    def __init__(self, flags):
        self.c_contiguous, self.f_contiguous, self.owndata = flags.c_contiguous, flags.f_contiguous, flags.owndata
        self.forc = flags.forc


def host(value):
    """The memory of an array as a NumPy array; other values as they are."""
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, tuple):
        return tuple(host(v) for v in value)
    return value


def _wrapped(result):
    return ndarray._of(result) if isinstance(result, np.ndarray | np.generic) else result


class ndarray:  # noqa: N801 - CuPy's name
    """An array that refuses what CuPy's refuses."""

    def __init__(self, shape, dtype=float, memptr=None, strides=None, order="C"):
        assert memptr is None
        assert strides is None
        self._hold(np.full(shape, 0x5A, np.dtype(dtype), order), Device.current)
        self._host.view(np.uint8).fill(0xFB) if self._host.flags.c_contiguous and self._host.ndim else None

    def _hold(self, array, device):
        self._host, self._device = array, device
        self._memory = _allocators[-1](array.nbytes) if array.base is None else None

    @classmethod
    def _of(cls, array, device=None):
        new = cls.__new__(cls)
        new._hold(np.asarray(array), Device.current if device is None else device)
        return new

    @property
    def device(self):
        return Device(self._device)

    @property
    def data(self):
        return _Memory(self._host.__array_interface__["data"][0])

    @property
    def flags(self):
        return _Flags(self._host.flags)

    @property
    def __cuda_array_interface__(self):
        return self._host.__array_interface__ | {"version": 3, "stream": 1}

    def __array__(self, *_, **__):
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array "
            "explicitly."
        )

    def __dlpack_device__(self):
        return 2, self._device

    def _waiting(name):  # noqa: N805 - makes a method
        def method(self, *arguments):
            wait(name)
            return getattr(self._host, name)(*arguments)

        return method

    item, tolist, __bool__, __float__, __int__, __index__ = map(
        _waiting, ("item", "tolist", "__bool__", "__float__", "__int__", "__index__")
    )

    def get(self):
        wait("get")
        return self._host.copy(order="K")

    def __getattr__(self, name):
        if name in ("shape", "dtype", "strides", "ndim", "size", "itemsize", "nbytes"):
            return getattr(self._host, name)
        if name in ("reshape", "transpose", "view", "copy", "sum", "mean", "min", "max", "any", "all", "ravel", "fill"):
            method = getattr(self._host, name)
            return lambda *a, **k: _wrapped(np.asarray(method(*map(host, a), **k)))
        raise AttributeError(f"'ndarray' object has no attribute {name!r}")

    def astype(self, dtype, order="K", copy=True):
        return ndarray._of(self._host.astype(dtype, order=order, copy=copy), self._device)

    @property
    def T(self):  # noqa: N802
        return ndarray._of(self._host.T, self._device)

    def __getitem__(self, index):
        return ndarray._of(self._host[host(index)], self._device)

    def __setitem__(self, index, value):
        if isinstance(value, np.ndarray) and value.ndim:
            raise TypeError(f"Unsupported type {type(value)}")
        self._host[host(index)] = host(value)

    def __len__(self):
        return len(self._host)

    def scatter_add(self, index, value):
        np.add.at(self._host, host(index), host(value))

    def _operator(name):  # noqa: N805 - makes a method
        operation = getattr(operator, name)

        def method(self, *others):
            if any(isinstance(other, np.ndarray) for other in others):
                raise TypeError("Unsupported type <class 'numpy.ndarray'>")
            return _wrapped(np.asarray(operation(self._host, *map(host, others))))

        return method

    __add__, __sub__, __mul__, __truediv__, __and__, __or__, __invert__, __neg__ = map(
        _operator, ("add", "sub", "mul", "truediv", "and_", "or_", "invert", "neg")
    )
    __eq__, __ne__, __lt__, __le__, __gt__, __ge__ = map(_operator, ("eq", "ne", "lt", "le", "gt", "ge"))
    __radd__, __rmul__ = __add__, __mul__
    __hash__ = None

    def __repr__(self):
        return f"cupy {self._host!r}"


ndarray.__module__ = "cupy"


def asarray(values, dtype=None):
    if isinstance(values, ndarray):
        return values if dtype is None else values.astype(dtype, copy=False)
    array = np.array(values, dtype)
    if array.dtype.kind not in "biufcV":
        raise ValueError(f"Unsupported dtype {array.dtype}")
    return ndarray._of(array)


def ascontiguousarray(values, dtype=None):
    return ndarray._of(np.ascontiguousarray(host(values), dtype))


array = asarray


def empty(shape, dtype=float):
    return ndarray(shape, dtype)


def empty_like(prototype):
    new = ndarray._of(np.empty_like(host(prototype)), prototype._device)
    new._host.view(np.uint8 if new._host.flags.c_contiguous and new._host.ndim else new._host.dtype).fill(77)
    return new


def zeros(shape, dtype=float):
    return ndarray._of(np.zeros(shape, dtype))


def full(shape, value, dtype=None):
    return ndarray._of(np.full(shape, value, dtype))


def _function(name):
    function = getattr(np, name)
    return lambda *a, **k: _wrapped(np.asarray(function(*map(host, a), **k)))


where, isfinite, maximum, moveaxis, broadcast_to = map(
    _function, ("where", "isfinite", "maximum", "moveaxis", "broadcast_to")
)


def is_available():
    return True


def alloc_pinned_memory(size):
    memory = np.zeros(size, np.uint8)
    return memory


class RawModule:
    """Kernels of a source, compiled for the CPU when the first of them is asked for."""

    def __init__(self, *, code, options=(), **_):
        self.code, self.options = code, options

    def get_function(self, name):
        from gpu.emulator import emulator

        return emulator.function(self.code, name)


cuda = types.ModuleType("cupy.cuda")
cuda.Device, cuda.Stream, cuda.alloc_pinned_memory = Device, Stream, alloc_pinned_memory
cuda.get_current_stream = lambda device_id=None: Stream.current
cuda.using_allocator, cuda.get_allocator = using_allocator, lambda: _allocators[-1]
float16, float32, float64, int32, int64, uint8 = (np.dtype(t).type for t in ("f2", "f4", "f8", "i4", "i8", "u1"))


def module():
    """This module, to be put into ``sys.modules`` as ``cupy``."""
    return sys.modules[__name__]
