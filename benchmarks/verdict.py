"""What follows from the measured numbers: ratios, bandwidths, promises kept and missed.

Works on the results as they are written to JSON, so that a table or a plot can be made again without measuring.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.baselines import CONTENDERS

Row = dict[str, Any]
STATISTICS = ("median_ms", "min_ms")  # a promise is kept when it is kept by both


@dataclass(frozen=True)
class Promise:
    """A ratio that every judged case must reach, against the fastest of `against`."""

    text: str
    ratio: float
    against: tuple[str, ...]


PROMISES = [
    Promise(">= 10x the NumPy reference", 10, ("numpy",)),
    Promise(
        ">= 2x the fastest of SciPy, scikit-learn, torch, JAX",
        2,
        tuple(key for key, contender in CONTENDERS.items() if contender.peer),
    ),
]


def milliseconds(row: Row, key: str, statistic: str) -> float | None:
    """Return the time of a contender, or None where it was not measured."""
    timed = row["contenders"].get(key)
    return float(timed[statistic]) if timed else None


def ratio(row: Row, key: str, statistic: str) -> float | None:
    """Return how many times longer than fastxent a contender takes."""
    ours, theirs = milliseconds(row, "fastxent", statistic), milliseconds(row, key, statistic)
    return theirs / ours if ours and theirs else None


def fastest(row: Row, keys: tuple[str, ...], statistic: str) -> str | None:
    """Return which of `keys` is the fastest, or None where none was measured."""
    times = {key: time for key in keys if (time := milliseconds(row, key, statistic))}
    return min(times, key=times.__getitem__) if times else None


def gigabytes_per_second(row: Row, key: str = "fastxent") -> float | None:
    """Return the bytes that must be moved over the time that was needed, at best."""
    time = milliseconds(row, key, "min_ms")
    return row["bytes_moved"] / time / 1e6 if time else None


def ceiling(row: Row) -> tuple[str, float] | None:
    """Return name and GB/s of the fastest loop that only moves the bytes: a read for a value, else a copy."""
    kind = "read" if row["operation"] == "value" else "copy"
    speeds = {name: loop["gb_per_s"] for name, loop in row["ceilings"].items() if name.startswith(kind)}
    return max(speeds.items(), key=lambda item: item[1]) if speeds else None


def fraction_of_ceiling(row: Row) -> float | None:
    """Return how much of the memory ceiling fastxent reaches."""
    ours, top = gigabytes_per_second(row), ceiling(row)
    return ours / top[1] if ours and top else None


def judge(row: Row, promise: Promise) -> tuple[bool | None, dict[str, tuple[str, float]]]:
    """Return whether `promise` is kept (None: nothing to compare with), and rival and ratio for each statistic."""
    found = {}
    for statistic in STATISTICS:
        rival = fastest(row, promise.against, statistic)
        times = ratio(row, rival, statistic) if rival else None
        if rival is None or times is None:
            return (False if row["status"] == "FAIL" else None), {}
        found[statistic] = (rival, times)
    return all(times >= promise.ratio for _, times in found.values()), found


def losses(results: dict[str, Any]) -> Iterator[tuple[Row, str, float]]:
    """Yield every case in which some contender is faster than fastxent, by median or minimum."""
    for row in results["rows"]:
        for key in row["contenders"]:
            ratios = [ratio(row, key, statistic) for statistic in STATISTICS]
            known = [times for times in ratios if times is not None]
            if key != "fastxent" and known and min(known) < 1:
                yield row, key, min(known)
