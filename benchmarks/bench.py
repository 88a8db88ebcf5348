"""Measure fastxent beside its peers and beside the memory: ``python -m benchmarks``.

For every case: draw the arrays, check value and gradient of every contender against the definition in float64, then
time contenders and memory loops in turns. Writes JSON, a table in Markdown and a picture to ``benchmarks/results``.
The exit status is 1 when a result is wrong; a promise that is missed is printed, not hidden, and is no error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks import plot, report
from benchmarks.baselines import CONTENDERS
from benchmarks.cases import CASES, Case, Problem, make_problem
from benchmarks.ceiling import Ceiling, CompilerError
from benchmarks.check import compare, complaint, right_answer
from benchmarks.machine import BUSY, busy_elsewhere, describe, slug
from benchmarks.measure import Contestant, Samples, fastest_form, interleave, summary

ATTEMPTS = 2
RESULTS = Path(__file__).resolve().parent / "results"


def measure(case: Case, keys: Sequence[str], ceiling: Ceiling | None, args: argparse.Namespace) -> dict[str, Any]:
    """Check and time one case; return its row of the results."""
    problem = make_problem(case, args.threads)
    restore = problem.restore if problem.in_place else None
    calls, contenders, problems = prepare(problem, keys, restore)
    contestants = [Contestant(key, call, restore) for key, call in calls.items()]
    loops = ceiling.loops(problem) if ceiling else {}
    contestants += [Contestant(name, loop) for name, loop in loops.items()]
    if case.yardstick:
        add = partial(np.add, problem.logits, problem.logits, out=np.empty_like(problem.logits))
        contestants.append(Contestant("np.add", add))

    samples, busy_cpus = time_calmly(contestants, args)
    times = {name: summary(values) for name, values in samples.items()}
    ceilings = {}
    for name in loops:
        moved = case.array_bytes * (1 if name.startswith("read") else 2)
        ceilings[name] = times[name] | {"gb_per_s": moved / times[name]["min_ms"] / 1e6}
    return {
        "name": case.name,
        "shape": case.shape,
        **asdict(case),
        "array_bytes": case.array_bytes,
        "bytes_moved": case.bytes_moved,
        "status": "FAIL" if problems else "ok",
        "problems": problems,
        "contenders": {key: contender | times[key] for key, contender in contenders.items()},
        "ceilings": ceilings,
        "yardstick": times.get("np.add"),
        "busy_cpus": busy_cpus,
    }


def prepare(
    problem: Problem, keys: Sequence[str], restore: Callable[[], None] | None
) -> tuple[dict[str, Callable[[], Any]], dict[str, dict[str, Any]], list[str]]:
    """Find the fastest form of each contender and check it; return calls, facts, and what is wrong."""
    answer = right_answer(problem)
    dtype = problem.case.dtype
    calls, facts, problems = {}, {}, []
    for key in keys:
        contender = CONTENDERS[key]
        forms = contender.forms(problem)
        if not forms:
            continue
        form, call = fastest_form(forms, restore)
        if restore:
            restore()
        elif problem.grad is not None:
            problem.grad.fill(np.nan)  # the answer of the contender before must not pass for this one's
        value, grad = call()
        errors = compare(value, grad, answer, dtype)
        wrong = complaint(errors, answer, dtype, strict=contender.strict)
        if wrong:
            problems.append(f"{contender.label}: {wrong}")
            continue
        calls[key] = call
        facts[key] = {"form": form, "errors": asdict(errors)}
    return calls, facts, problems


def time_calmly(contestants: Sequence[Contestant], args: argparse.Namespace) -> tuple[Samples, float]:
    """Time the contestants, again if other processes disturbed them; return the calmest samples and the disturbance.

    The disturbance is how many cpus others used meanwhile; it does not look at the times, so nothing is picked.
    """
    attempts = []
    for _ in range(ATTEMPTS):
        begin, busy = time.perf_counter(), busy_elsewhere()
        samples = interleave(contestants, seconds=args.seconds, min_rounds=args.min_rounds)
        attempts.append((max(0.0, (busy_elsewhere() - busy) / (time.perf_counter() - begin)), samples))
        if attempts[-1][0] <= BUSY:
            break
    busy_cpus, samples = min(attempts, key=lambda attempt: attempt[0])
    return samples, round(busy_cpus, 3)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", metavar="TEXT", help="only cases with this in their name, as in '10 float32'")
    parser.add_argument(
        "--threads", type=int, default=min(2, cpus), help="for everyone that can use them (%(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="few cases, few repetitions: under a minute")
    parser.add_argument("--isa", help="force this instruction set of fastxent, as FASTXENT_ISA does")
    parser.add_argument("--compile", action="store_true", help="also torch.compile (some seconds more for each case)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for JSON, table and picture")
    parser.add_argument("--json", action="store_true", help="print the JSON, and all else to stderr")
    args = parser.parse_args(arguments)
    if not 1 <= args.threads <= cpus:
        parser.error(f"--threads must be in [1, {cpus}]; got {args.threads}")
    args.seconds, args.min_rounds = (0.7, 3) if args.quick else (3.0, 5)
    args.selected = [case for case in CASES if (not args.quick or case.quick) and (args.cases or "") in case.name]
    if not args.selected:
        parser.error(f"no case has {args.cases!r} in its name; a name is like {CASES[0].name!r}")
    return args


def file_stem(args: argparse.Namespace, machine: dict[str, Any]) -> str:
    """Return the name of the results; a run of a part never overwrites the results of the whole."""
    parts = [slug(machine)]
    if args.isa:
        parts.append(args.isa)
    if args.threads != 2:
        parts.append(f"{args.threads}-threads")
    if args.quick or args.cases:
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
    results: dict[str, Any] = {
        "machine": describe([contender.distribution for contender in CONTENDERS.values()]),
        "settings": {"threads": args.threads, "level": _config.level(), "seconds_per_case": args.seconds},
        "missing": missing,
        "rows": [],
    }
    say("\n".join(report.machine_lines(results)))
    if no_ceiling:
        say(f"no memory ceiling: {no_ceiling}")

    begin = time.perf_counter()
    for case in (progress := tqdm(args.selected, unit=" cases", leave=False)):
        progress.set_description(case.name)
        row = measure(case, keys, ceiling, args)
        results["rows"].append(row)
        with tqdm.external_write_mode(file=out):
            say("", *report.row_lines(row), sep="\n")
    results["settings"]["seconds"] = round(time.perf_counter() - begin, 1)

    say("", *report.promise_lines(results), sep="\n")
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / f"{file_stem(args, results['machine'])}.json"
    text = json.dumps(results, indent=1, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(report.markdown(results), encoding="utf-8")
    plot.draw(results, path.with_suffix(".png"))
    say(f"\n{results['settings']['seconds']:.0f} s; wrote {path}, .md and .png")
    if args.json:
        print(text)
    return 1 if any(row["status"] == "FAIL" for row in results["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())
