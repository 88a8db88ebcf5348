"""Threads, instruction-set level, and the report about both."""

from __future__ import annotations

import math
import os
import sys
from typing import Any

import numpy as np

from fastxent import _check
from fastxent.cpu import engine

_LEVEL_VARIABLE = "FASTXENT_ISA"
_CGROUPS = (
    ("/sys/fs/cgroup/cpu.max", None),
    ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
)
# More threads than this many times the usable CPUs help nobody and may fail to start, which would end the process.
_OVERSUBSCRIPTION = 4
_requested = -1


def usable_levels() -> tuple[str, ...]:
    """Names of the instruction-set levels this machine runs, best first."""
    return engine.usable_levels()


def use_level(name: str) -> None:
    """Compute with this level from now on, in the whole process (for tests and benchmarks)."""
    engine.use_level(name)


def level() -> str:
    """Name of the instruction-set level in use."""
    return engine.level()


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def _fields(path: str) -> list[str]:
    with open(path, encoding="utf-8") as file:  # pathlib would be most of the time that the import takes
        return file.read().split()


def _cgroup_quota() -> int | None:
    """CPUs the control group allows, rounded up; None if it sets no limit."""
    for file, period_file in _CGROUPS:
        try:
            fields = _fields(file)
            if period_file is not None:
                fields += _fields(period_file)
            quota, period = fields[0], int(fields[1])
            if quota == "max" or int(quota) <= 0 or period <= 0:
                return None
            return max(1, math.ceil(int(quota) / period))
        except (OSError, ValueError, IndexError):
            continue
    return None


def _from_environment() -> int | None:
    """The number in ``OMP_NUM_THREADS`` as OpenMP reads it; None if there is none, or one that OpenMP ignores."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # further numbers are for nested regions
    return int(first) if first.isascii() and first.isdecimal() and int(first) > 0 else None


# Read once: what OpenMP's runtime read when it was loaded.
_OMP_NUM_THREADS = _from_environment()
_QUOTA = _cgroup_quota()
_AFFINITY = _affinity()
_CPUS = min(_AFFINITY, _QUOTA or sys.maxsize)
_MOST = max(1, min(_OVERSUBSCRIPTION * max(_CPUS, 2), engine.openmp_thread_limit()))


def _apply(n: int) -> None:
    global _requested
    _requested = n
    limit = _MOST if _OMP_NUM_THREADS else min(_CPUS, _MOST)
    engine.configure_threads(max(n, 0), max(-1 - n, 0) if n < 0 else 0, limit)


def set_num_threads(n: int) -> None:
    """Set the number of threads of every call from now on, in the whole process.

    Parameters
    ----------
    n : int
        Positive: that many. Negative, as in joblib: -1 is all threads OpenMP would use (the default:
        ``OMP_NUM_THREADS``, threadpoolctl and joblib are obeyed, CPU affinity and the control group's quota at import
        where ``OMP_NUM_THREADS`` is unset), -2 all but one, and so on, at least one. Never more than
        ``OMP_THREAD_LIMIT`` or four times the usable CPUs (eight, if that is more), whatever ``n`` and
        ``OMP_NUM_THREADS`` say.

    Raises
    ------
    TypeError
        If ``n`` is not an integer.
    ValueError
        If ``n`` is 0.

    See Also
    --------
    get_num_threads : the number in force.
    show_config : says why it is what it is.

    Notes
    -----
    Results do not depend on the number of threads, bit for bit. Small calls run on one thread whatever is set here.

    Ctrl-C stops a long call within 0.2 s with ``KeyboardInterrupt``. Its outputs are then partly written: some rows of
    ``grad_out`` and ``hess_out`` hold results, the others what they held before, and logits that were to be overwritten
    by their gradient are partly lost. Later calls are not affected. Only a single row of very many classes (some
    millions) may take longer.

    Examples
    --------
    >>> import fastxent as fx
    >>> fx.set_num_threads(1)
    >>> fx.get_num_threads()
    1
    >>> fx.set_num_threads(-1)
    """
    number = _check.option_integer("n", n)
    assert number is not None
    if number == 0:
        _check.fail(ValueError, "n", "be a non-zero integer", 0)
    _apply(max(-(2**30), min(number, _MOST)))


def get_num_threads() -> int:
    """Return the number of threads that a large call would use now.

    Returns
    -------
    int
        1 without OpenMP, inside another parallel region, and in a forked process (OpenMP's threads do not survive a
        fork, and using them again would hang).

    See Also
    --------
    set_num_threads : changes it.

    Examples
    --------
    >>> import fastxent as fx
    >>> fx.get_num_threads() >= 1
    True
    """
    return engine.threads()


def _counted(cpus: int) -> str:
    return f"{cpus} CPU{'s' if cpus > 1 else ''}"


def _reason() -> str:
    """Why the number of threads is what it is."""
    if not engine.has_openmp():
        return "built without OpenMP"
    if engine.forked():
        return "this is a forked process: OpenMP's threads do not survive a fork"
    if engine.in_parallel():
        return "inside another parallel region"
    if _requested > 0:
        return f"set_num_threads({_requested})"
    openmp, all_cpus = engine.openmp_max_threads(), os.cpu_count() or 1
    wanted = openmp if _OMP_NUM_THREADS else min(openmp, _CPUS)
    if wanted > _MOST:
        why = f"OpenMP's limit is {openmp}, of which at most {_MOST} are used"
    elif openmp == _OMP_NUM_THREADS:
        why = f"OMP_NUM_THREADS={openmp}"
    elif _OMP_NUM_THREADS or openmp < _CPUS:
        why = f"OpenMP's limit is {openmp} (threadpoolctl, joblib or omp_set_num_threads)"
    elif _QUOTA is not None and _QUOTA <= _AFFINITY:
        why = f"the control group's quota allows {_counted(_QUOTA)}"
    elif all_cpus > _AFFINITY:
        why = f"the CPU affinity allows {_AFFINITY} of {_counted(all_cpus)}"
    else:
        why = _counted(_AFFINITY)
    return why if _requested == -1 else f"{why}, set_num_threads({_requested})"


def _gpu() -> str:
    """Whether CuPy arrays can be used; CuPy is looked at only where it has been imported already."""
    from importlib.util import find_spec

    cupy = sys.modules.get("cupy")
    if cupy is not None:
        from fastxent.gpu import is_available

        return f"{'yes' if is_available() else 'no GPU found'} (CuPy {getattr(cupy, '__version__', '?')})"
    if find_spec("cupy") is None:
        return "no (CuPy is not installed)"
    return "not looked for (CuPy is installed, but not imported; `python -m fastxent info --gpu` does that)"


def config() -> dict[str, Any]:
    """Everything show_config prints."""
    import platform  # here, because it takes a third of the time of the whole import

    from fastxent import __version__

    return {
        "fastxent": __version__,
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
        "NumPy": np.__version__,
        "machine": f"{platform.machine()}, {platform.system()}",
        "level": level(),
        "levels available": ", ".join(usable_levels()),
        "OpenMP": "yes" if engine.has_openmp() else "no",
        "threads": f"{get_num_threads()} ({_reason()})",
        "GPU": _gpu(),
        "extension": os.path.basename(engine.__file__ or "?"),
    }


def show_config() -> None:
    """Print version, instruction-set level, OpenMP and threads, and why they are what they are.

    See Also
    --------
    set_num_threads : changes the number of threads.

    Notes
    -----
    The environment variable ``FASTXENT_ISA`` (``baseline``, ``avx2`` or ``avx512``), read once at import, forces an
    instruction-set level.

    Examples
    --------
    >>> import fastxent as fx
    >>> fx.show_config()  # doctest: +ELLIPSIS
    fastxent          ...
    """
    entries = config()
    width = max(map(len, entries))
    for name, value in entries.items():
        print(f"{name:<{width}}  {value}")


def _start() -> None:
    """Apply the environment, once, at import."""
    forced = os.environ.get(_LEVEL_VARIABLE)
    if forced:
        if forced not in usable_levels():
            _check.fail(ValueError, _LEVEL_VARIABLE, f"be one of {_check.joined(usable_levels())}", repr(forced))
        use_level(forced)
    _apply(-1)


_start()
