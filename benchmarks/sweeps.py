"""Time per element along one dimension: sizes, class counts. All points share one buffer and are timed in turns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.cases import LOGIT_SCALE, SEED, dtype_of
from benchmarks.machine import available_memory
from benchmarks.measure import Contestant, Samples, best_of, interleave, summary
from benchmarks.races import Settings

PATTERN = 1 << 20  # random numbers are repeated: drawing a thousand million takes longer than measuring them
MEMORY_FRACTION = 0.4  # of what is available: the others need some, too
CHECKED_ROWS = 256
ROUNDS = {"min_rounds": 5, "max_rounds": 25}


@dataclass(frozen=True)
class Sweep:
    """Points ``(elements, classes)``; those that do not fit into memory are left out."""

    name: str
    dtype: str
    points: tuple[tuple[int, int], ...]
    seconds: float = 6.0
    quick: bool = False


SWEEPS = [
    Sweep("elements", "float32", tuple((n, 100) for n in (10**7, 3 * 10**7, 10**8, 3 * 10**8, 10**9))),
    Sweep(
        "classes beyond cache", "float32", tuple((2**24, k) for k in (100, 300, 1_000, 3_000, 10_000, 30_000, 100_000))
    ),
    Sweep(
        "classes beyond cache", "float64", tuple((2**23, k) for k in (100, 300, 1_000, 3_000, 10_000, 30_000, 100_000))
    ),
    Sweep("class counts", "float32", tuple((4_000_000, k) for k in range(1, 301)), seconds=12.0),
    Sweep("class counts", "float64", tuple((4_000_000, k) for k in range(1, 301)), seconds=12.0),
    Sweep("class counts, coarse", "float32", tuple((1_000_000, k) for k in range(1, 301)), seconds=2.0, quick=True),
]


def measure(sweep: Sweep, settings: Settings) -> dict[str, Any]:
    """Check and time every point of a sweep."""
    itemsize = dtype_of(sweep.dtype).itemsize
    room = MEMORY_FRACTION * available_memory()
    points = [(n, k) for n, k in sweep.points if n * (2 * itemsize + 8 / k) < room]
    elements = max(n for n, _ in points)
    logits, grad = np.empty(elements, sweep.dtype), np.full(elements, 0, sweep.dtype)
    rng = np.random.default_rng(SEED)
    pattern = (LOGIT_SCALE * rng.standard_normal(PATTERN)).astype(sweep.dtype)
    for begin in range(0, elements, PATTERN):
        part = logits[begin : begin + PATTERN]
        part[...] = pattern[: len(part)]

    contestants: list[Contestant] = []
    problems: list[str] = []
    for n, k in points:
        rows = n // k
        labels = rng.integers(0, k, rows, dtype=np.int64)
        arrays = (logits[: rows * k].reshape(rows, k), labels, grad[: rows * k].reshape(rows, k))
        problems += _wrong(*arrays)
        contestants.append(Contestant(f"{n}x{k}", partial(_call, *arrays)))
    seconds = max(sweep.seconds, 2 * sum(best_of(contestant, calls=1) for contestant in contestants))
    samples: Samples = interleave(contestants, seconds=seconds, **ROUNDS)
    results = [
        {"elements": n // k * k, "n_classes": k, "rows": n // k, **summary(samples[f"{n}x{k}"])} for n, k in points
    ]
    return {
        "name": f"{sweep.name} {sweep.dtype}",
        "kind": sweep.name,
        "dtype": sweep.dtype,
        "left_out": [list(point) for point in sweep.points if point not in points],
        "points": results,
        "status": "FAIL" if problems else "ok",
        "problems": problems,
    }


def _call(logits: Any, target: Any, grad: Any) -> Any:
    from fastxent import CrossEntropy

    return CrossEntropy().value_and_grad(logits, target, grad_out=grad)


def _wrong(logits: Any, target: Any, grad: Any) -> Iterator[str]:
    """Say what is wrong with a point: the whole by the sums of its gradient, some rows beside the definition."""
    from fastxent import _reference

    rows = len(logits)
    value, _ = _call(logits, target, grad)
    # Every row of the gradient sums to 0 but for rounding, and its target's element is -(1 - p) / rows.
    eps = float(np.finfo(logits.dtype).eps)
    sums = np.abs(grad[:: max(1, rows // 4096)].sum(axis=1, dtype=np.float64)).max() * rows
    if not sums < 64 * eps:
        yield f"{logits.shape}: the rows of the gradient sum to {sums} / rows"
    if not (np.isfinite(value) and (value > 0 or logits.shape[1] == 1)):
        yield f"{logits.shape}: the value is {value}"
    some = slice(0, CHECKED_ROWS if logits.shape[1] < 4096 else 8)
    value, found = _call(logits[some], target[some], np.empty_like(logits[some]))
    right, right_grad = _reference.CrossEntropy().value_and_grad(logits[some].astype(np.float64), target[some])
    allowed = 64 * eps
    if not (abs(value - right) <= allowed * abs(right) and np.allclose(found, right_grad, rtol=allowed, atol=0)):
        yield f"{logits.shape}: value or gradient differ from the definition"


def cliffs(points: list[dict[str, Any]], statistic: str = "min_ms") -> Iterator[tuple[int, float]]:
    """Yield for each pair of neighbouring class counts the larger one and how far it is from a smooth course.

    With one class more, a row should not get cheaper and an element not dearer. Where an element gets dearer the factor
    is that of the times per element; where a row gets cheaper, that of the times per row, the other way round.
    """
    for few, many in pairwise(points):
        dearer_element = (many[statistic] / many["elements"]) / (few[statistic] / few["elements"])
        cheaper_row = (few[statistic] / few["rows"]) / (many[statistic] / many["rows"])
        yield many["n_classes"], max(dearer_element, cheaper_row)


def spread(points: list[dict[str, Any]], statistic: str = "min_ms") -> float:
    """Return the longest time per element over the shortest."""
    times = [float(point[statistic] / point["elements"]) for point in points]
    return max(times) / min(times)
