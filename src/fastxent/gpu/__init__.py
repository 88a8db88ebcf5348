"""CuPy arrays in, CuPy arrays out: the GPU side, loaded when the first CuPy array is seen.

run.py (calls), engine.py (kernels and what they record), plan.py (which kernel), the ``.cu`` files (arithmetic).
"""

from __future__ import annotations

import sys
from importlib import import_module

__all__ = ["check", "is_available"]


def is_available() -> bool:
    """Return whether CuPy can be imported and finds a GPU; imports CuPy, which takes a while.

    Returns
    -------
    bool
        Whatever goes wrong, the answer is False, and losses of NumPy arrays are not affected.

    Examples
    --------
    >>> import fastxent.gpu
    >>> fastxent.gpu.is_available() in (True, False)
    True
    """
    try:
        return bool(import_module("cupy").is_available())
    except Exception:  # noqa: BLE001 - half an installation fails in many ways, and all of them mean no
        return False


def check() -> None:
    """Wait for the current device, and raise what was wrong in the calls up to here.

    A bad label, probability or weight in a CuPy array is seen by the GPU only after the call has returned: the value of
    that row is NaN, its gradient 0, and the error is raised by the first call after the GPU has come to it or by this
    function, whichever comes first. With ``FASTXENT_GPU_CHECK=1`` in the environment (read once) every call waits and
    raises by itself, unless it is captured in a graph.

    Raises
    ------
    ValueError
        If an earlier call was given a bad label, probability or weight: the text of the CPU's error, and that it is
        late. It is raised once.

    Examples
    --------
    >>> import fastxent.gpu
    >>> fastxent.gpu.check()  # without a GPU there is nothing to be wrong
    """
    run = sys.modules.get("fastxent.gpu.run")
    if run is not None and "cupy" in sys.modules:
        run.run.check()
