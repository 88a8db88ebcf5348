"""The benchmarks of the modules that take a loss: their calls agree, their tables say what was measured."""

import importlib

import pytest

from benchmarks.pipelines import Race
from benchmarks.pipelines import __main__ as pipelines


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("module", pipelines.MODULES)
def test_the_calls_of_a_race_run_and_agree(module):
    # Each module compares what its calls return before it yields them.
    races = importlib.import_module(f"benchmarks.pipelines.{module}").races(quick=True)
    race = next(races)
    assert next(iter(race.calls)).startswith("fastxent")
    assert set(race.goals) <= set(race.calls)
    for call in race.calls.values():
        call()


def test_a_goal_is_missed_by_either_statistic():
    times = {"fastxent": (10.0, 8.0), "fast": (12.0, 20.0), "slow": (20.0, 18.0)}
    row = {
        "name": "race",
        "contenders": {name: {"median_ms": median, "min_ms": least} for name, (median, least) in times.items()},
        "goals": {"fast": 1.5, "slow": 1.5},
        "peaks": {"fastxent": 2**20, "slow": 5 * 2**19},
        "peak_goals": {"slow": 3.0},
    }
    lines = list(pipelines.lines_of(row))
    assert lines[0] == "| race | fastxent | 10.0 | 8.0 | 1.00 | 1.00 |  |"
    assert lines[1].endswith("| 1.20 | 2.50 | 1.5x: MISS |")
    assert lines[2].endswith("| 2.00 | 2.25 | 1.5x: PASS |")
    assert lines[4].endswith("| 2.5 MiB | | 2.5 | | 3x: MISS |")


def test_what_is_measured_is_timed_in_turns():
    order = []
    race = Race("race", {"fastxent": lambda: order.append("a"), "other": lambda: order.append("b")}, seconds=0.0)
    row = pipelines.measure(race)
    assert set(row["contenders"]) == {"fastxent", "other"}
    assert {"a", "b"} == set(order)
