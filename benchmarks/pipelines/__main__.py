"""Time what each module does beside what it replaces; writes JSON and a table to ``benchmarks/results``."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.machine import describe, slug
from benchmarks.measure import Contestant, interleave, summary
from benchmarks.pipelines import Race

RESULTS = Path(__file__).resolve().parent.parent / "results"
MODULES = sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))
DISTRIBUTIONS = ("fastxent", "numpy", "scipy", "scikit-learn", "torch", "xgboost-cpu", "xgboost", "lightgbm", "dask")
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")


def measure(race: Race) -> dict[str, Any]:
    """Run a race."""
    contestants = [Contestant(name, call) for name, call in race.calls.items()]
    samples = interleave(contestants, seconds=race.seconds, min_rounds=3)
    return {
        "name": race.name,
        "contenders": {name: summary(times) for name, times in samples.items()},
        "goals": race.goals,
        "peaks": race.peaks,
        "peak_goals": race.peak_goals,
    }


def ratios(row: dict[str, Any], other: str) -> tuple[float, float]:
    """How many times longer than ours another takes, by median and by minimum."""
    ours = next(iter(row["contenders"].values()))
    theirs = row["contenders"][other]
    return theirs["median_ms"] / ours["median_ms"], theirs["min_ms"] / ours["min_ms"]


def lines_of(row: dict[str, Any]) -> Iterator[str]:
    """Rows of a table in Markdown."""
    for name, times in row["contenders"].items():
        by_median, by_minimum = ratios(row, name)
        goal = row["goals"].get(name)
        verdict = "" if goal is None else f"{goal:g}x: {'PASS' if min(by_median, by_minimum) >= goal else 'MISS'}"
        times_text = f"{times['median_ms']:.1f} | {times['min_ms']:.1f} | {by_median:.2f} | {by_minimum:.2f}"
        yield f"| {row['name']} | {name} | {times_text} | {verdict} |"
    for name, peak in row["peaks"].items():
        more = peak / next(iter(row["peaks"].values()))
        goal = row["peak_goals"].get(name)
        verdict = "" if goal is None else f"{goal:g}x: {'PASS' if more >= goal else 'MISS'}"
        yield f"| {row['name']}, peak of memory | {name} | {peak / 2**20:.1f} MiB | | {more:.1f} | | {verdict} |"


HEAD = (
    "| case | contender | median ms | min ms | ratio of medians | of minima | goal |",
    "|---|---|---|---|---|---|---|",
)


def main() -> int:
    """Run what was chosen."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipelines", description=__doc__)
    parser.add_argument("--only", choices=MODULES, action="append", help="one of the modules")
    parser.add_argument("--quick", action="store_true", help="small sizes; writes nothing")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the results")
    args = parser.parse_args()
    machine = describe(DISTRIBUTIONS)
    threads = {name: os.environ.get(name, "not set") for name in THREADS}
    rows = []
    print(f"{machine['cpu']}, {machine['cpus']} cpus; {threads}", *HEAD, sep="\n")
    for module in args.only or MODULES:
        for race in importlib.import_module(f"benchmarks.pipelines.{module}").races(args.quick):
            rows.append(measure(race))
            print(*lines_of(rows[-1]), sep="\n", flush=True)
    if not (args.quick or args.only):
        path = args.output / f"{slug(machine)}-pipelines.json"
        path.write_text(json.dumps({"machine": machine, "threads": threads, "rows": rows}, indent=1) + "\n")
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
        table = [*HEAD, *(line for row in rows for line in lines_of(row))]
        text = f"# Pipelines\n\n{machine['cpu']}, {machine['cpus']} cpus. {versions}. {threads}.\n\n"
        path.with_suffix(".md").write_text(text + "\n".join(table) + "\n")
        print(f"wrote {path} and .md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
