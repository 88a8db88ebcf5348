"""The modules that take a loss, beside what they replace: ``python -m benchmarks.pipelines``.

One file for each module; its ``races(quick)`` yields what is timed in turns. The first contender of a race is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Race:
    """What is timed in turns: ours first. ``goal``: how many times as fast as each of the named contenders."""

    name: str
    calls: dict[str, Callable[[], Any]]
    goals: dict[str, float] = field(default_factory=dict)
    seconds: float = 10.0
    # Bytes that ours and another call take at their peak, and how many times as many the other is promised to take.
    peaks: dict[str, int] = field(default_factory=dict)
    peak_goals: dict[str, float] = field(default_factory=dict)
