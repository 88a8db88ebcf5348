"""The results in words: rows for the terminal, a table in Markdown, the promises. Needs only the JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.baselines import CONTENDERS
from benchmarks.machine import BUSY
from benchmarks.verdict import (
    PROMISES,
    Row,
    ceiling,
    fraction_of_ceiling,
    gigabytes_per_second,
    judge,
    losses,
    milliseconds,
    ratio,
)


def machine_lines(results: dict[str, Any]) -> Iterator[str]:
    """Say where and with what the results were measured."""
    machine, settings = results["machine"], results["settings"]
    caches = ", ".join(f"{level} {size}" for level, size in machine["caches"].items())
    yield f"{machine['cpu']}, {machine['cpus']} cpus{' (virtual)' if machine['virtual'] else ''}; caches {caches}"
    yield (
        f"governor {machine['governor'] or 'unknown'}, huge pages {machine['huge_pages'] or 'unknown'}, "
        f"load before {machine['load_before']}, {machine['system']}, {machine['compiler'] or 'no C compiler'}"
    )
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    yield f"Python {machine['python']}, {versions}; commit {machine['commit'] or 'none'}"
    yield f"{settings['threads']} threads, level {settings['level']}"
    yield from (f"missing: {CONTENDERS[key].label} ({why})" for key, why in results["missing"].items())


def row_lines(row: Row) -> Iterator[str]:
    """Show everything about one case, for the terminal."""
    loops = ", ".join(f"{name} {loop['gb_per_s']:.1f}" for name, loop in row["ceilings"].items())
    size = f"{row['array_bytes'] / 1e6:.3g} MB of logits, {row['bytes_moved'] / 1e6:.3g} MB to move"
    yield f"{row['name']}: {size}; GB/s of memory: {loops or 'not measured'}"
    yield f"  {'':<16}{'min':>12}{'median':>12}{'ratio: min':>12}{'median':>8}{'error':>10}  form"
    unit, per_ms = ("us", 1e3) if row["yardstick"] else ("ms", 1.0)
    for key, timed in row["contenders"].items():
        times = "".join(f"{timed[name] * per_ms:>9.3f} {unit}" for name in ("min_ms", "median_ms"))
        ratios = [ratio(row, key, name) for name in ("min_ms", "median_ms")]
        shown = "".join(f"{_times(value):>{width}}" for value, width in zip(ratios, (12, 8), strict=True))
        error = timed["errors"]["value"] if timed["errors"]["grad"] is None else timed["errors"]["grad_relative"]
        yield f"  {CONTENDERS[key].label:<16}{times}{shown}{error:>10.0e}  {timed['form']}"
    fraction, speed, top = fraction_of_ceiling(row), gigabytes_per_second(row), ceiling(row)
    if row["yardstick"]:
        yardstick = row["yardstick"]
        times = "".join(f"{yardstick[name] * per_ms:>9.3f} {unit}" for name in ("min_ms", "median_ms"))
        ours = milliseconds(row, "fastxent", "median_ms")
        factor = f"fastxent takes {ours / yardstick['median_ms']:.1f} times as long" if ours else ""
        yield f"  {'one np.add':<16}{times}  {factor}"
    elif speed and top and fraction:
        yield f"  fastxent moves {speed:.1f} GB/s: {fraction:.0%} of the ceiling ({top[0]}, {top[1]:.1f} GB/s)"
    if row["busy_cpus"] > BUSY:
        yield f"  CAUTION other processes kept {row['busy_cpus']:.2f} cpus busy meanwhile"
    for problem in row["problems"]:
        yield f"  FAIL {problem}"


def promise_lines(results: dict[str, Any]) -> Iterator[str]:
    """Judge the promises case by case, and show what is lost."""
    rows = [row for row in results["rows"] if row["judged"]]
    for promise in PROMISES:
        verdicts = [judge(row, promise)[0] for row in rows]
        missing = [CONTENDERS[key].label for key in promise.against if key in results["missing"]]
        without = f" (without {', '.join(missing)}: not installed)" if missing else ""
        yield f"{promise.text}{without}: {verdicts.count(True)} of {len(rows)} cases pass"
        for row in rows:
            kept, found = judge(row, promise)
            shown = ", ".join(
                f"{times:.2f}x {CONTENDERS[rival].label} ({statistic.removesuffix('_ms')})"
                for statistic, (rival, times) in found.items()
            )
            yield f"  {_verdict(kept):<5}{row['shape']:<12}{row['dtype']:<9}{shown or 'not measured'}"
    lost = list(losses(results))
    yield "Cases in which another one is faster:" if lost else "No other one is faster in any case measured."
    for row, key, times in lost:
        yield f"  {row['name']}: {CONTENDERS[key].label} needs {times:.2f} of the time"
    busy = [row["name"] for row in results["rows"] if row["busy_cpus"] > BUSY]
    if busy:
        yield f"CAUTION: other processes disturbed {', '.join(busy)}"
    failed = [row["name"] for row in results["rows"] if row["status"] == "FAIL"]
    if failed:
        yield f"FAIL: wrong results in {', '.join(failed)}"


def markdown(results: dict[str, Any]) -> str:
    """Return the table of the README: median milliseconds, and in brackets how many times as long as fastxent."""
    keys = [key for key in CONTENDERS if any(key in row["contenders"] for row in results["rows"])]
    others = [key for key in keys if key != "fastxent"]
    head = ["case", "fastxent min / median", *(CONTENDERS[key].label for key in others)]
    head += ["vs NumPy", "vs fastest peer", "GB/s", "of ceiling"]
    lines = [_table_line(head), _table_line(["---", *["---:"] * (len(head) - 1)])]
    for row in results["rows"]:
        cells = [row["name"], _pair(row, "fastxent")]
        cells += [_with_ratio(row, key) for key in others]
        cells += [_judged(row, promise) for promise in PROMISES]
        speed, fraction = gigabytes_per_second(row), fraction_of_ceiling(row)
        cells += [f"{speed:.1f}", f"{fraction:.0%}"] if speed and fraction and not row["yardstick"] else ["-", "-"]
        lines.append(_table_line(cells))
    legend = (
        "Milliseconds for one call; the peers' are medians, with the ratio to fastxent's median. "
        "'vs' gives the ratio of medians / of minima. Every peer is shown in its fastest form. "
        "'of ceiling' is the speed beside that of a loop that only moves the same bytes with the same threads."
    )
    notes = [
        "",
        legend,
        "",
        *(f"- {line}" for line in machine_lines(results)),
        "",
        "```text",
        *promise_lines(results),
        "```",
    ]
    return "\n".join([*lines, *notes]) + "\n"


def _table_line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _pair(row: Row, key: str) -> str:
    best, median = milliseconds(row, key, "min_ms"), milliseconds(row, key, "median_ms")
    return f"{best:.3g} / {median:.3g}" if best and median else row["status"]


def _with_ratio(row: Row, key: str) -> str:
    median = milliseconds(row, key, "median_ms")
    return f"{median:.3g} ({_times(ratio(row, key, 'median_ms'))})" if median else "-"


def _judged(row: Row, promise: Any) -> str:
    kept, found = judge(row, promise)
    shown = " / ".join(_times(times) for _, times in found.values())
    return f"{shown or '-'}{f' {_verdict(kept)}' if row['judged'] else ''}"


def _verdict(kept: bool | None) -> str:
    return {True: "pass", False: "MISS", None: "?"}[kept]


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}x" if value < 99.95 else f"{value:.0f}x"


def main() -> None:
    """Print the table of a results file."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("results", type=Path, help="a JSON file in benchmarks/results")
    print(markdown(json.loads(parser.parse_args().results.read_text(encoding="utf-8"))), end="")


if __name__ == "__main__":
    main()
