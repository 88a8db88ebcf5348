"""On what was it measured? Numbers without a machine say nothing."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.ceiling import CompilerError, find_compiler

CPU_FOLDER = Path("/sys/devices/system/cpu/cpu0")
BUSY = 0.1  # with more cpus than this at work for others, the times of threads are not to be trusted
REPOSITORY = Path(__file__).resolve().parent.parent


def describe(distributions: Sequence[str]) -> dict[str, Any]:
    """Return what is known of this machine and of the installed `distributions`; what cannot be read is None."""
    cpuinfo = _read(Path("/proc/cpuinfo")) or ""
    return {
        "cpu": _cpu_model(cpuinfo),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "virtual": bool(re.search(r"^flags\b.*\bhypervisor\b", cpuinfo, re.MULTILINE)) if cpuinfo else None,
        "caches": _caches(),
        "governor": _read(CPU_FOLDER / "cpufreq/scaling_governor"),
        "huge_pages": _chosen(_read(Path("/sys/kernel/mm/transparent_hugepage/enabled"))),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "compiler": compiler(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in dict.fromkeys(distributions)},
        "commit": _commit(),
    }


def slug(machine: dict[str, Any]) -> str:
    """Return a file name for the results of `machine`: its processor and how many of them."""
    model = re.sub(r"\((r|tm|c)\)|\bcpu\b|@.*", " ", machine["cpu"].lower())
    return f"{re.sub('[^a-z0-9]+', '-', model).strip('-')}-{machine['cpus']}-cpus"


def busy_elsewhere() -> float:
    """Return the seconds that the cpus have spent on other processes, or on other guests of this machine's host.

    A neighbour on one core stalls every loop that waits for all its threads: what it takes belongs to the numbers.
    0 on a system that does not tell.
    """
    total = _read(Path("/proc/stat"))
    if total is None:
        return 0.0
    user, nice, system, _idle, _waiting, interrupts, soft_interrupts, stolen = map(int, total.split()[1:9])
    ticks = user + nice + system + interrupts + soft_interrupts + stolen
    own = os.times()
    return ticks / os.sysconf("SC_CLK_TCK") - (own.user + own.system + own.children_user + own.children_system)


def _cpu_model(cpuinfo: str) -> str:
    match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()


def _caches() -> dict[str, str]:
    """Return the data caches as one core sees them, ``{"L2": "2048K"}``; one that is shared says so."""
    caches = {}
    for folder in sorted((CPU_FOLDER / "cache").glob("index*")):
        level, kind, size, sharing = (_read(folder / name) for name in ("level", "type", "size", "shared_cpu_list"))
        if level and size and kind != "Instruction":
            caches[f"L{level}"] = f"{size} shared by cpus {sharing}" if sharing not in (None, "0") else size
    return caches


def _chosen(choices: str | None) -> str | None:
    """Return the bracketed word: ``always [madvise] never``."""
    match = re.search(r"\[(\w+)\]", choices or "")
    return match[1] if match else None


def compiler() -> str | None:
    """Return the first line that the C compiler says of itself."""
    try:
        return _output([*find_compiler(), "--version"]).splitlines()[0]
    except (CompilerError, OSError, subprocess.CalledProcessError, IndexError):
        return None


def _commit() -> str | None:
    """Return the commit, with ``+`` when files differ from it."""
    try:
        commit = _output(["git", "rev-parse", "--short=12", "HEAD"])
        # The results themselves change at every run.
        changed = _output(["git", "status", "--porcelain", "--", ".", ":!benchmarks/results"])
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed else "")


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout.strip()


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None


def available_memory() -> float:
    """Return the bytes that can be had without swapping; infinity on a system that does not tell."""
    match = re.search(r"^MemAvailable:\s*(\d+) kB$", _read(Path("/proc/meminfo")) or "", re.MULTILINE)
    return 1024.0 * int(match[1]) if match else math.inf
