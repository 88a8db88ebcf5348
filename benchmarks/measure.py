"""Time calls in turns: A B C A B C, so that a slow moment of the machine hits every contender."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

Samples = dict[str, NDArray[np.float64]]  # seconds per call, one for every round
BATCH_SECONDS = 200e-6  # a sample lasts at least this long: the clock's own cost stays below 0.1 %
SHORT_SECONDS = 20e-3  # below this, an untimed call wakes the contender's threads before the timed one
# A contender this many times slower than the fastest, and not short, is not worth many rounds.
SLOW, SLOW_ROUNDS = 8, 3


@dataclass(frozen=True)
class Contestant:
    """Something to time.

    `restore` runs before each call, outside the timing, where a call destroys its input; `switch` before each sample,
    to set what the calls share (threads, instruction set). `estimate` is about how long a call takes, if that is known.
    """

    name: str
    call: Callable[[], Any]
    restore: Callable[[], None] | None = None
    switch: Callable[[], None] | None = None
    estimate: float | None = None


def best_of(contestant: Contestant, calls: int) -> float:
    """Return the seconds of the fastest of `calls` calls."""
    return min(_sample(contestant, batch=1) for _ in range(calls))


def _estimate(contestant: Contestant) -> float:
    """Return about how long a call takes; the first of two warms up, unless it is long anyway."""
    first = contestant.estimate or _sample(contestant, batch=1)
    return first if first > SHORT_SECONDS else min(first, _sample(contestant, batch=1))


def interleave(contestants: Sequence[Contestant], *, seconds: float, min_rounds: int, max_rounds: int = 300) -> Samples:
    """Time `contestants` in turns for about `seconds`; return the seconds per call of each, one for every round."""
    estimates = {contestant.name: _estimate(contestant) for contestant in contestants}
    batches = {
        # A call that destroys its input cannot be repeated without restoring it, which is not to be timed.
        contestant.name: 1 if contestant.restore else max(1, round(BATCH_SECONDS / estimates[contestant.name]))
        for contestant in contestants
    }
    short = {name for name, estimate in estimates.items() if estimate < SHORT_SECONDS}
    slow = {name for name, time in estimates.items() if time > SLOW * min(estimates.values())} - short
    samples: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    gc.collect()
    gc.disable()  # as timeit does: a collection belongs to nobody
    try:
        end = perf_counter() + seconds
        for round_number in range(max_rounds):
            if round_number >= min_rounds and perf_counter() > end:
                break
            for contestant in contestants:
                if contestant.name in slow and round_number >= SLOW_ROUNDS:
                    continue
                if contestant.name in short:
                    _sample(contestant, batch=1)
                samples[contestant.name].append(_sample(contestant, batches[contestant.name]))
    finally:
        gc.enable()
    return {name: np.array(values) for name, values in samples.items()}


def summary(samples: NDArray[np.float64]) -> dict[str, float | int]:
    """Return minimum, median and quartiles in milliseconds."""
    lower, median, upper = np.percentile(1e3 * samples, [25, 50, 75])
    return {
        "min_ms": float(1e3 * samples.min()),
        "median_ms": float(median),
        "lower_quartile_ms": float(lower),
        "upper_quartile_ms": float(upper),
        "samples": len(samples),
    }


def fastest_form(
    forms: Mapping[str, Callable[[], Any]], restore: Callable[[], None] | None
) -> tuple[str, Callable[[], Any]]:
    """Return the fastest of the `forms` in which a peer can do the job, so that each peer is shown at its best."""
    if len(forms) > 1:
        contestants = [Contestant(name, call, restore) for name, call in forms.items()]
        for contestant in contestants:
            _sample(contestant, batch=1)  # compiles, starts threads
        seconds = {contestant.name: _estimate(contestant) for contestant in contestants}
        fastest = min(seconds, key=seconds.__getitem__)
    else:
        (fastest,) = forms
    return fastest, forms[fastest]


def _sample(contestant: Contestant, batch: int) -> float:
    """Return the seconds per call of one sample."""
    if contestant.switch:
        contestant.switch()
    if contestant.restore:
        contestant.restore()
    call = contestant.call
    start = perf_counter()
    for _ in repeat(None, batch):
        call()
    return (perf_counter() - start) / batch
