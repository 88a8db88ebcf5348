"""What follows from the measured numbers: ratios, fractions of the ceilings, promises kept and missed.

Works on the results as they are written to JSON, so that a table or a plot can be made again without measuring.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.baselines import CONTENDERS
from benchmarks.machine import BUSY
from benchmarks.promises import PROMISES, Promise
from benchmarks.sweeps import cliffs, spread

Row = dict[str, Any]
Results = dict[str, Any]
STATISTICS = ("median_ms", "min_ms")  # a promise is kept when it is kept by both
PEERS = tuple(key for key, contender in CONTENDERS.items() if contender.peer)


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


def gigabytes_per_second(n_bytes: float, milliseconds: float) -> float:
    """Return the speed of moving `n_bytes` in that time."""
    return n_bytes / milliseconds / 1e6


def ceiling(item: Row, statistic: str = "min_ms") -> tuple[str, float] | None:
    """Return name and GB/s of the fastest loop that only moves the bytes: a read for a value, else it also writes."""
    is_value = item["operation"] == "value"
    speeds = {
        name: gigabytes_per_second(loop["bytes"], loop[statistic])
        for name, loop in item["ceilings"].items()
        if name.startswith("read") == is_value
    }
    return max(speeds.items(), key=lambda pair: pair[1]) if speeds else None


def memory_ms(item: Row, statistic: str = "min_ms") -> float | None:
    """Return the milliseconds in which the bytes of a case could be moved."""
    top = ceiling(item, statistic)
    return item["bytes_moved"] / top[1] / 1e6 if top else None


def own_ms(item: Row, statistic: str) -> float | None:
    """Return the time of fastxent in a race, or of a variant."""
    return milliseconds(item, "fastxent", statistic) if "contenders" in item else item.get(statistic)


def fraction_of_memory(item: Row, statistic: str = "min_ms") -> float | None:
    """Return how much of the memory ceiling fastxent reaches."""
    ours, least = own_ms(item, statistic), memory_ms(item, statistic)
    return least / ours if ours and least else None


def fraction_of_both(item: Row, statistic: str = "min_ms") -> float | None:
    """Return how much fastxent reaches of the lower one of the ceilings of memory and arithmetic."""
    ours, least = own_ms(item, statistic), memory_ms(item, statistic)
    return max(least, item["arithmetic_ms"]) / ours if ours and least else None


def _fastest_peer(item: Row, statistic: str) -> tuple[float, str] | None:
    rival = fastest(item, PEERS, statistic)
    times = ratio(item, rival, statistic) if rival else None
    return (times, CONTENDERS[rival].label) if rival and times else None


def _textbook(item: Row, statistic: str) -> tuple[float, str] | None:
    if "contenders" in item:
        times = ratio(item, "numpy_textbook", statistic)
        accurate = ratio(item, "numpy", statistic)
        note = f"the accurate reference: {accurate:.1f}x" if accurate else ""
        return (times, note) if times else None
    return item["extras"]["NumPy textbook"][statistic] / item[statistic], ""


def _memory_ceiling(item: Row, statistic: str) -> tuple[float, str] | None:
    fraction, top, both = fraction_of_memory(item, statistic), ceiling(item), fraction_of_both(item)
    if fraction is None or top is None or both is None:
        return None
    return fraction, f"{top[0]} {top[1]:.0f} GB/s; {both:.2f} of the lower of memory and arithmetic"


def _np_add(item: Row, statistic: str) -> tuple[float, str] | None:
    ours = own_ms(item, statistic)
    if not ours or not item["yardstick"]:
        return None
    return ours / item["yardstick"][statistic], f"{1e3 * ours:.2f} us"


def _over_plain(item: Row, statistic: str) -> tuple[float, str]:
    return item[statistic] / item["plain"][statistic], ""


def _over_plain_per_byte(item: Row, statistic: str) -> tuple[float, str]:
    times, extra = _over_plain(item, statistic)[0], item["bytes_moved"] / item["plain"]["bytes_moved"]
    return times / extra, f"time {times:.2f}x, bytes {extra:.2f}x"


def _in_fills(item: Row, statistic: str) -> tuple[float, str]:
    above = item[statistic] - item["plain"][statistic]
    fill = item["extras"]["np.empty + fill"][statistic]
    return above / fill, f"{above:.3g} ms above, fill {fill:.3g} ms"


def _spread(item: Row, statistic: str) -> tuple[float, str]:
    points = item["points"]
    times = [1e6 * point[statistic] / point["elements"] for point in points]
    return spread(points, statistic), f"{min(times):.3f} to {max(times):.3f} ns, up to {points[-1]['elements']:.2g}"


def _cliff(item: Row, statistic: str) -> tuple[float, str]:
    classes, factor = max(cliffs(item["points"], statistic), key=lambda pair: pair[1])
    return factor, f"worst at {classes} classes"


def _before(item: Row, statistic: str) -> tuple[float, str] | None:
    before = item["before"]
    if before is None:
        return None
    return (item[statistic] / item["copy_ms"]) / (before[statistic] / before["copy_ms"]), ""


# Value and a note, by statistic; None where there is nothing to judge by.
METRICS: dict[str, Callable[[Row, str], tuple[float, str] | None]] = {
    "of memory ceiling": _memory_ceiling,
    "over fastest peer": _fastest_peer,
    "over NumPy textbook": _textbook,
    "over np.add": _np_add,
    "over plain": _over_plain,
    "over plain per byte": _over_plain_per_byte,
    "speed of plain": lambda item, statistic: (item["plain"][statistic] / item[statistic], ""),
    "above plain, in fills": _in_fills,
    "spread": _spread,
    "cliff": _cliff,
    "over before": _before,
    "extra MB": lambda item, statistic: (item["extra_bytes"] / 1e6, ""),
}


@dataclass(frozen=True)
class Judged:
    """One measurement beside a promise; `kept` is None where nothing could be judged."""

    name: str
    kept: bool | None
    values: dict[str, float]
    note: str


def items(results: Results) -> Iterator[Row]:
    """Yield every measurement with what promises ask about."""
    for row in results["rows"]:
        yield row | {"kind": "race", "gamma": row["options"].get("gamma")}
    for comparison in results["comparisons"]:
        plain = comparison["variants"].get(comparison["plain"])
        for name, variant in comparison["variants"].items():
            item = comparison | variant | {"kind": "variant", "variant": name, "plain": plain}
            item["name"] = comparison["plain_case"] + (f", {name}" if name != comparison["plain"] else "")
            fraction = fraction_of_memory(item)
            yield item | {
                "plain_name": comparison["plain"],
                "below_half_ceiling": None if fraction is None else fraction < 0.5,
            }
    for sweep in results["sweeps"]:
        yield sweep | {"kind": "sweep", "topic": sweep["kind"]}
    for memory in results["resident_set"]:
        yield memory | {"kind": "resident set", "status": "ok"}
    before = {case["name"]: case for case in results.get("one_thread_before", [])}
    for case in results["one_thread"]:
        yield case | {"kind": "one thread", "status": "ok", "before": before.get(case["name"])}


def judge(promise: Promise, results: Results) -> list[Judged]:
    """Return every measurement that `promise` is about, judged."""
    return [judge_item(promise, item) for item in items(results) if promise.applies(item)]


def judge_item(promise: Promise, item: Row) -> Judged:
    """Judge one measurement; a wrong result keeps no promise."""
    if item["status"] == "FAIL":
        return Judged(item["name"], False, {}, "wrong result")
    values, notes = {}, []
    for statistic in STATISTICS:
        found = METRICS[promise.metric](item, statistic)
        if found is None:
            return Judged(item["name"], None, {}, "nothing to compare with")
        values[statistic] = found[0]
        notes.append(found[1])
    if item.get("busy_cpus", 0) > BUSY:
        notes.append("DISTURBED by other processes")
    kept = all(promise.kept_by(value) for value in values.values())
    return Judged(item["name"], kept, values, " / ".join(dict.fromkeys(filter(None, notes))))


def judge_all(results: Results) -> Iterator[tuple[Promise, list[Judged]]]:
    """Yield each promise with what was measured for it, where something was."""
    for promise in PROMISES:
        judged = judge(promise, results)
        if judged:
            yield promise, judged


def losses(results: Results) -> Iterator[tuple[Row, str, float]]:
    """Yield every case in which some contender is faster than fastxent, by median or minimum."""
    for row in results["rows"]:
        for key in row["contenders"]:
            ratios = [ratio(row, key, statistic) for statistic in STATISTICS]
            known = [times for times in ratios if times is not None]
            if key != "fastxent" and known and min(known) < 1:
                yield row, key, min(known)


def least_won(results: Results, count: int) -> list[tuple[Row, str, float]]:
    """Return the cases in which the fastest peer comes closest to fastxent, closest first."""
    found = []
    for row in results["rows"]:
        rival = fastest(row, PEERS, "median_ms")
        times = ratio(row, rival, "median_ms") if rival else None
        if rival and times:
            found.append((row, rival, times))
    return sorted(found, key=lambda entry: entry[2])[:count]
