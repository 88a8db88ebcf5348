"""The results in words: cases for the terminal, tables in Markdown, the promises. Needs only the JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.baselines import CONTENDERS
from benchmarks.machine import BUSY
from benchmarks.promises import LINES, Promise
from benchmarks.sweeps import cliffs
from benchmarks.verdict import (
    PEERS,
    Judged,
    Results,
    Row,
    ceiling,
    fastest,
    fraction_of_both,
    fraction_of_memory,
    gigabytes_per_second,
    judge_all,
    losses,
    memory_ms,
    milliseconds,
    ratio,
)

WORDS = {True: "PASS", False: "MISS", None: "?"}


def machine_lines(results: Results) -> Iterator[str]:
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
    for dtype, times in results["elementary_ns"].items():
        shown = ", ".join(f"{function} {time:.3f}" for function, time in times.items())
        yield f"arithmetic in L1, {dtype}, one thread, ns per element: {shown}"
    yield from (f"missing: {CONTENDERS[key].label} ({why})" for key, why in results["missing"].items())


def row_lines(row: Row) -> Iterator[str]:
    """Show everything about one case, for the terminal."""
    size = f"{row['array_bytes'] / 1e6:.3g} MB of logits, {row['bytes_moved'] / 1e6:.3g} MB to move"
    yield f"{row['name']}: {size}; GB/s of memory: {_speeds(row)}"
    yield f"  {'':<16}{'min':>12}{'median':>12}{'ratio: min':>12}{'median':>8}{'error':>10}  form"
    unit, per_ms = ("us", 1e3) if row["yardstick"] else ("ms", 1.0)
    for key, timed in row["contenders"].items():
        times = "".join(f"{timed[name] * per_ms:>9.3f} {unit}" for name in ("min_ms", "median_ms"))
        ratios = [ratio(row, key, name) for name in ("min_ms", "median_ms")]
        shown = "".join(f"{_times(value):>{width}}" for value, width in zip(ratios, (12, 8), strict=True))
        error = timed["errors"]["value"] if timed["errors"]["grad"] is None else timed["errors"]["grad_relative"]
        yield f"  {CONTENDERS[key].label:<16}{times}{shown}{error:>10.0e}  {timed['form']}"
    fraction, top, both = fraction_of_memory(row), ceiling(row), fraction_of_both(row)
    ours = milliseconds(row, "fastxent", "min_ms")
    if row["yardstick"]:
        yardstick = row["yardstick"]
        times = "".join(f"{yardstick[name] * per_ms:>9.3f} {unit}" for name in ("min_ms", "median_ms"))
        yield f"  {'one np.add':<16}{times}  fastxent takes {_times(ours and ours / yardstick['min_ms'])} as long"
    elif ours and top and fraction and both:
        speed = gigabytes_per_second(row["bytes_moved"], ours)
        yield (
            f"  fastxent moves {speed:.1f} GB/s: {fraction:.0%} of the memory ceiling ({top[0]}, {top[1]:.1f} GB/s); "
            f"arithmetic alone {row['arithmetic_ms']:.3g} ms; {both:.0%} of the lower ceiling"
        )
    yield from _warnings(row)


def comparison_lines(comparison: Row) -> Iterator[str]:
    """Show the variants of one case, for the terminal."""
    yield f"{comparison['name']}; GB/s of memory: {_speeds(comparison)}"
    plain = comparison["variants"].get(comparison["plain"])
    for name, timed in (comparison["variants"] | comparison["extras"]).items():
        over = _times(timed["median_ms"] / plain["median_ms"]) if plain else "-"
        yield f"  {name:<20}{timed['min_ms']:>9.3f} ms{timed['median_ms']:>9.3f} ms{over:>8}"
    yield from _warnings(comparison)


def sweep_lines(sweep: Row) -> Iterator[str]:
    """Show a sweep, for the terminal: every point of a short one, the worst neighbours of a long one."""
    points = sweep["points"]
    yield f"{sweep['name']}: {len(points)} points"
    if len(points) <= 20:
        for point in points:
            per_element = 1e6 * point["min_ms"] / point["elements"]
            yield f"  {point['elements']:>12} elements {point['n_classes']:>7} classes{per_element:>9.3f} ns per element"
    else:
        worst = sorted(cliffs(points), key=lambda pair: -pair[1])[:5]
        yield "  worst neighbours: " + ", ".join(f"{factor:.2f}x at {classes} classes" for classes, factor in worst)
    yield from (f"  no memory for {elements} elements" for elements, _ in sweep["left_out"])
    yield from _warnings(sweep)


def _speeds(row: Row) -> str:
    speeds = {name: gigabytes_per_second(loop["bytes"], loop["min_ms"]) for name, loop in row["ceilings"].items()}
    return ", ".join(f"{name} {speed:.1f}" for name, speed in speeds.items()) or "not measured"


def _warnings(row: Row) -> Iterator[str]:
    if row.get("busy_cpus", 0) > BUSY:
        yield f"  CAUTION other processes kept {row['busy_cpus']:.2f} cpus busy meanwhile"
    yield from (f"  FAIL {problem}" for problem in row["problems"])


def promise_lines(results: Results) -> Iterator[str]:
    """Judge the promises one by one, show what is lost, and sum up the lines."""
    verdicts: dict[str, list[bool | None]] = {}
    for promise, judged in judge_all(results):
        verdicts.setdefault(promise.line, []).extend(entry.kept for entry in judged)
        yield from _judged_lines(promise, judged)
    yield from _caveats(results)
    yield "Sum:"
    for line, title in LINES.items():
        if line in verdicts:
            kept = verdicts[line]
            yield f"  {WORDS[_all(kept)]}  {line} {title}: {kept.count(True)} of {len(kept)} pass{_unknown(kept)}"


def _judged_lines(promise: Promise, judged: list[Judged]) -> Iterator[str]:
    kept = [entry.kept for entry in judged]
    yield f"{WORDS[_all(kept)]}  {promise.line}  {promise.text}: {kept.count(True)} of {len(kept)}{_unknown(kept)}"
    for entry in judged:
        values = " / ".join(f"{value:.2f}" for value in dict.fromkeys(entry.values.values()))
        yield f"    {WORDS[entry.kept]:<5}{entry.name:<52}{values:>15}  {entry.note}".rstrip()


def _all(kept: list[bool | None]) -> bool | None:
    return False if False in kept else None if None in kept else True


def _unknown(kept: list[bool | None]) -> str:
    return f", {kept.count(None)} not judged" if None in kept else ""


def _caveats(results: Results) -> Iterator[str]:
    missing = [CONTENDERS[key].label for key in PEERS if key in results["missing"]]
    if missing:
        yield f"Peers that are not installed: {', '.join(missing)}"
    lost = list(losses(results))
    yield "Cases in which another one is faster:" if lost else "No other one is faster in any case measured."
    for row, key, times in lost:
        yield f"    {row['name']}: {CONTENDERS[key].label} needs {times:.2f} of the time"
    everything = [*results["rows"], *results["comparisons"], *results["sweeps"]]
    busy = [row["name"] for row in everything if row.get("busy_cpus", 0) > BUSY]
    if busy:
        yield f"CAUTION: other processes disturbed {', '.join(busy)}"
    failed = [row["name"] for row in everything if row["status"] == "FAIL"]
    if failed:
        yield f"FAIL: wrong results in {', '.join(failed)}"
    if results["skipped"]:
        yield f"Left out for want of memory: {', '.join(results['skipped'])}"


def markdown(results: Results) -> str:
    """Return all cases as a table, the comparisons as another, and the promises."""
    keys = [key for key in CONTENDERS if any(key in row["contenders"] for row in results["rows"])]
    others = [key for key in keys if key != "fastxent"]
    head = ["case", "fastxent min / median", *(CONTENDERS[key].label for key in others)]
    head += ["vs fastest peer", "memory ms", "arithmetic ms", "GB/s", "of memory", "of lower ceiling"]
    lines = table(head, [_cells(row, others) for row in results["rows"]])
    legend = (
        "Milliseconds for one call; the peers' are medians, with the ratio to fastxent's median. Every peer is shown in "
        "its fastest form. 'vs fastest peer' gives the ratio of medians / of minima. 'memory ms' is the time of a loop "
        "that only moves the same bytes with the same threads, 'arithmetic ms' that of the exponentials and logarithms "
        "alone on arrays in the L1 cache; 'of lower ceiling' is the larger of these two times over fastxent's."
    )
    lines += ["", legend, ""]
    if results["comparisons"]:
        lines += table(["case", "variant", "min / median ms", "over plain"], list(_comparison_cells(results)))
    notes = [
        "",
        *(f"- {line}" for line in machine_lines(results)),
        "",
        "```text",
        *promise_lines(results),
        "```",
    ]
    return "\n".join([*lines, *notes]) + "\n"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a table in Markdown, its numbers to the right."""
    return [_table_line(line) for line in (head, ["---", *["---:"] * (len(head) - 1)], *rows)]


def _cells(row: Row, others: list[str]) -> list[str]:
    rival = fastest(row, PEERS, "median_ms")
    ratios = [ratio(row, rival, statistic) for statistic in ("median_ms", "min_ms")] if rival else [None]
    memory, fraction, both = memory_ms(row), fraction_of_memory(row), fraction_of_both(row)
    ours = milliseconds(row, "fastxent", "min_ms")
    cells = [row["name"], _pair(row)]
    cells += [with_ratio(row, key) for key in others]
    cells += [" / ".join(map(_times, ratios))]
    if not (memory and fraction and both and ours) or row["yardstick"]:
        return [*cells, *["-"] * 5]
    speed = gigabytes_per_second(row["bytes_moved"], ours)
    return [*cells, f"{memory:.3g}", f"{row['arithmetic_ms']:.3g}", f"{speed:.1f}", f"{fraction:.0%}", f"{both:.0%}"]


def _comparison_cells(results: Results) -> Iterator[list[str]]:
    for comparison in results["comparisons"]:
        plain = comparison["variants"].get(comparison["plain"])
        for name, timed in (comparison["variants"] | comparison["extras"]).items():
            over = _times(timed["median_ms"] / plain["median_ms"], digits=2) if plain else "-"
            yield [comparison["name"], name, f"{timed['min_ms']:.3g} / {timed['median_ms']:.3g}", over]


def _table_line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _pair(row: Row) -> str:
    best, median = (milliseconds(row, "fastxent", statistic) for statistic in ("min_ms", "median_ms"))
    return f"{best:.3g} / {median:.3g}" if best and median else row["status"]


def with_ratio(row: Row, key: str) -> str:
    """Return a contender's median with its ratio to fastxent's."""
    median = milliseconds(row, key, "median_ms")
    return f"{median:.3g} ({_times(ratio(row, key, 'median_ms'))})" if median else "-"


def _times(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}x" if value < 99.95 else f"{value:.0f}x"


def read(path: Path) -> dict[str, Any]:
    """Return the results in a JSON file."""
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return results


def main() -> None:
    """Print the table of a results file."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("results", type=Path, help="a JSON file in benchmarks/results")
    print(markdown(read(parser.parse_args().results)), end="")


if __name__ == "__main__":
    main()
