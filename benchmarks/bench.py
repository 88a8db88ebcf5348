"""Measure fastxent beside its peers, beside itself and beside the ceilings: ``python -m benchmarks``.

For every case: draw the arrays, check value and gradient of every contender against the definition in float64, then
time contenders and memory loops in turns. Prints every goal of ``benchmarks/promises.py`` with PASS or MISS, and writes
JSON, tables in Markdown and pictures to ``benchmarks/results``. The exit status is 1 when a result is wrong; a promise
that is missed is printed, not hidden, and is no error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import children, plot, report, sweeps
from benchmarks.baselines import CONTENDERS
from benchmarks.cases import CASES
from benchmarks.ceiling import Ceiling, CompilerError, elementary_times
from benchmarks.comparisons import COMPARISONS, runnable
from benchmarks.machine import describe, slug
from benchmarks.promises import LINES
from benchmarks.races import Settings, compare_variants, race, too_large

RESULTS = Path(__file__).resolve().parent / "results"
PICTURE = "picture"
SWEEPS_LINE = "line6"  # of the sweeps and of the process with one thread
MEMORY_LINE = "line7"  # of the resident set


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", metavar="TEXT", help="only cases with this in their name, as in '10 float32'")
    parser.add_argument(
        "--only",
        metavar="LINES",
        help=f"only these goals, as in 'line1,line3': {', '.join(LINES)}; '{PICTURE}' for the points of the picture",
    )
    parser.add_argument(
        "--threads", type=int, default=min(2, cpus), help="for everyone that can use them (%(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="few cases, few repetitions: about two minutes")
    parser.add_argument("--isa", help="force this instruction set of fastxent, as FASTXENT_ISA does")
    parser.add_argument("--compile", action="store_true", help="also torch.compile (some seconds more for each case)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for JSON, tables and pictures")
    parser.add_argument("--json", action="store_true", help="print the JSON, and all else to stderr")
    args = parser.parse_args(arguments)
    if not 1 <= args.threads <= cpus:
        parser.error(f"--threads must be in [1, {cpus}]; got {args.threads}")
    args.lines = set(args.only.split(",")) if args.only else {*LINES, PICTURE}
    if unknown := args.lines - {*LINES, PICTURE}:
        parser.error(f"--only must name some of {', '.join(LINES)}, {PICTURE}; got {', '.join(sorted(unknown))}")
    args.partial = bool(args.quick or args.cases or args.only)

    def chosen(name: str, line: str, quick: bool) -> bool:
        return line in args.lines and (quick or not args.quick) and (args.cases or "") in name

    def chosen_sweep(sweep: sweeps.Sweep) -> bool:
        # The coarse sweep stands in for the whole ones.
        return chosen(sweep.name, SWEEPS_LINE, True) and sweep.quick == args.quick

    args.selected = [case for case in CASES if chosen(case.name, case.line, case.quick)]
    args.comparisons = [one for one in COMPARISONS if chosen(one.name, one.line, one.quick)]
    args.sweeps = [sweep for sweep in sweeps.SWEEPS if chosen_sweep(sweep)]
    # Processes of their own have no names to choose by.
    args.resident_set = chosen("resident set", MEMORY_LINE, True)
    args.one_thread = chosen("one thread", SWEEPS_LINE, False)
    everything = [args.selected, args.comparisons, args.sweeps, args.resident_set, args.one_thread]
    if not any(everything):
        parser.error(f"no case has {args.cases!r} in its name; a name is like {CASES[0].name!r}")
    return args


def file_stem(args: argparse.Namespace, machine: dict[str, Any]) -> str:
    """Return the name of the results; a run of a part never overwrites the results of the whole."""
    parts = [slug(machine)]
    if args.isa:
        parts.append(args.isa)
    if args.threads != 2:
        parts.append(f"{args.threads}-threads")
    if args.partial:
        parts.append("partial")
    return "-".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    args = parse(arguments)
    out = sys.stderr if args.json else sys.stdout
    say = partial(print, file=out, flush=True)
    # Read at import: the level by fastxent, the number of threads by XLA, which has no other switch for it.
    if args.isa:
        os.environ["FASTXENT_ISA"] = args.isa
    os.environ["NPROC"] = str(args.threads)

    wanted = [key for key, contender in CONTENDERS.items() if contender.default or args.compile]
    missing = {key: why for key in wanted if (why := CONTENDERS[key].why_missing())}
    keys = [key for key in wanted if key not in missing]
    if "fastxent" in missing:
        say(f"fastxent cannot be imported: {missing['fastxent']}")
        return 1
    import fastxent
    from fastxent import _config

    fastxent.set_num_threads(args.threads)
    ceiling, no_ceiling = None, None
    try:
        ceiling = Ceiling()
    except CompilerError as error:
        no_ceiling = str(error)
    settings = Settings(
        threads=args.threads,
        level=_config.level(),
        seconds=0.4 if args.quick else 1.0,
        min_rounds=3 if args.quick else 5,
        attempts=1 if args.quick else 2,
        ceiling=ceiling,
        elementary=elementary_times(ceiling),
    )
    results: dict[str, Any] = {
        "machine": describe([contender.distribution for contender in CONTENDERS.values()]),
        "settings": {
            "threads": settings.threads,
            "level": settings.level,
            "seconds_per_case": settings.seconds,
            "partial": args.partial,
        },
        "missing": missing,
        "elementary_ns": settings.elementary,
        "skipped": [],
        "rows": [],
        "comparisons": [],
        "sweeps": [],
        "resident_set": [],
        "one_thread": [],
    }
    path = args.output / f"{file_stem(args, results['machine'])}.json"
    if args.one_thread:
        results["one_thread_before"] = one_thread_before(path)
    say("\n".join(report.machine_lines(results)))
    if no_ceiling:
        say(f"no memory ceiling: {no_ceiling}")

    begin = time.perf_counter()
    run(args, keys, settings, results, say)
    results["settings"]["seconds"] = round(time.perf_counter() - begin, 1)

    say("", *report.promise_lines(results), sep="\n")
    text = write(results, path)
    say(f"\n{results['settings']['seconds']:.0f} s; wrote {path}, .md and pictures")
    if args.json:
        print(text)
    everything = [*results["rows"], *results["comparisons"], *results["sweeps"]]
    return 1 if any(row["status"] == "FAIL" for row in everything) else 0


def run(args: argparse.Namespace, keys: Sequence[str], settings: Settings, results: dict[str, Any], say: Any) -> None:
    """Measure what was chosen, and say each result when it is there."""
    from tqdm import tqdm  # the tests of what this module reads and writes need none

    comparisons = [
        one
        for comparison in args.comparisons
        if (one := runnable(comparison, settings.threads, usable_levels(settings.level)))
    ]
    total = len(args.selected) + len(comparisons) + len(args.sweeps) + args.resident_set + args.one_thread
    progress = tqdm(total=total, unit=" cases", leave=False)

    def done(kind: str, row: Any, lines: Any) -> None:
        results[kind].append(row)
        with tqdm.external_write_mode(file=sys.stdout):
            say("", *lines(row), sep="\n")
        progress.update()

    for case in args.selected:
        progress.set_description(case.name)
        if too_large(case):
            results["skipped"].append(case.name)
            progress.update()
            continue
        done("rows", race(case, keys, settings), report.row_lines)
    for comparison in comparisons:
        progress.set_description(comparison.name)
        done("comparisons", compare_variants(comparison, settings), report.comparison_lines)
    for sweep in args.sweeps:
        progress.set_description(sweep.name)
        done("sweeps", sweeps.measure(sweep, settings), report.sweep_lines)
    if args.resident_set:
        progress.set_description("resident set")
        results["resident_set"] = children.measure_resident_set(settings.threads)
        progress.update()
    if args.one_thread and settings.ceiling:
        progress.set_description("one thread")
        results["one_thread"] = children.measure_one_thread()
        progress.update()
    progress.close()


def usable_levels(level: str) -> tuple[str, ...]:
    """Return the levels to compare: none, if one was forced that is not the best."""
    from fastxent import _config

    levels = _config.usable_levels()
    return levels if level == levels[0] else ()


def one_thread_before(path: Path) -> list[dict[str, Any]]:
    """Return what the results of the whole said of one thread, if they are there."""
    path = path.with_name(path.name.replace("-partial", ""))
    if not path.exists():
        return []
    before: list[dict[str, Any]] = report.read(path).get("one_thread", [])
    return before


def write(results: dict[str, Any], path: Path) -> str:
    """Write the results as JSON, tables and pictures; return the JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(report.markdown(results), encoding="utf-8")
    plot.draw_all(results, path)
    return text


if __name__ == "__main__":
    sys.exit(main())
