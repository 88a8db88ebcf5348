"""CPU or GPU, from the type of the arrays.

CuPy is never imported here: an array of its own cannot be in the arguments unless it has been imported already.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn, TypeVar

import numpy as np

Result = TypeVar("Result")

# Devices of DLPack whose memory the CPU cannot read: CUDA, ROCm, CUDA's managed memory.
_GPUS = (2, 10, 13)
# Numbers lie on no device: with NumPy arrays they are arrays of the CPU, with CuPy arrays of the GPU.
_NUMBERS = (bool, int, float, complex, np.generic)
_NEEDED = ("logits", "target", "x")
_ON_CPU = frozenset((np.ndarray, list, tuple, str, type(None), bool, int, float))


def call(compute: Callable[[Any], Result], **arguments: Any) -> Result:
    """Return ``compute(run)`` with the ``Run`` of the side these arguments lie on, on their device."""
    device = device_of(**arguments)
    if device is None:
        from fastxent.cpu.run import run

        return compute(run)
    from fastxent.gpu.run import run as run_on_gpu

    result: Result = run_on_gpu.on(device, compute)
    return result


def is_cupy(value: Any) -> bool:
    """Whether this is a CuPy array."""
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(value, getattr(cupy, "ndarray", ()))


def device_of(**arguments: Any) -> Any:
    """Return the device of the CuPy arrays among the arguments; None if there are none.

    Numbers, and arguments that were not given, have no say. All others must then be CuPy arrays of that device, as
    nothing is copied from one to the other without being asked for.
    """
    if _ON_CPU.issuperset(map(type, arguments.values())):
        return None
    given = {
        name: value
        for name, value in arguments.items()
        if not (isinstance(value, _NUMBERS) or (value is None and name not in _NEEDED))
    }
    on_gpu = {name: value for name, value in given.items() if is_cupy(value)}
    for name, value in given.items():
        if name not in on_gpu and _is_foreign(value):
            raise TypeError(
                f"{name} must be a NumPy or a CuPy array; got {kind(value)} on a GPU: pass cupy.from_dlpack(x)"
            )
    if not on_gpu:
        return None
    if len(on_gpu) < len(given):
        _fail("all NumPy or all CuPy arrays", {name: kind(value) for name, value in given.items()})
    devices = {name: value.device.id for name, value in on_gpu.items()}
    if len(set(devices.values())) > 1:
        _fail("on one device", {name: f"device {number}" for name, number in devices.items()}, ValueError)
    return next(iter(on_gpu.values())).device


def kind(value: Any) -> str:
    """The type of a value, as in ``torch.Tensor``."""
    name, module = type(value).__qualname__, type(value).__module__
    return name if module == "builtins" else f"{module}.{name}"


def _fail(rule: str, got: dict[str, str], error: type[Exception] = TypeError) -> NoReturn:
    listed = ", ".join(f"{name}: {what}" for name, what in got.items())
    raise error(f"arguments must be {rule}; got {listed}")


def _is_foreign(value: Any) -> bool:
    """Whether this is an array on a GPU, made by another library than CuPy."""
    if isinstance(value, np.ndarray | list | tuple):
        return False
    with suppress(Exception):  # it has none, or will not tell; there is another way to ask
        return bool(value.__dlpack_device__()[0] in _GPUS)
    try:
        return value.__cuda_array_interface__ is not None
    except AttributeError:
        return False
    except Exception:  # noqa: BLE001 - a tensor that records gradients has one, and will not give it away
        return True
