"""Write the speed section of the README from a results file: ``python -m benchmarks.readme``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import plot
from benchmarks.baselines import CONTENDERS
from benchmarks.cases import SHORT_NAMES
from benchmarks.promises import LINES
from benchmarks.report import read, table, with_ratio
from benchmarks.verdict import (
    Results,
    Row,
    fraction_of_memory,
    judge_all,
    least_won,
    milliseconds,
)

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- speed:begin -->", "<!-- speed:end -->"
COLUMNS = ("numpy_textbook", "scikit-learn", "torch", "torch.compile", "jax")
FLOAT64_ROWS = ({"shape_text": "200000x10"}, {"shape_text": "16384x1000"})
LEAST = 4


def speed_section(results: Results, stem: str) -> str:
    """Return the section for results whose files are called ``stem``."""
    folder = RESULTS.relative_to(ROOT).as_posix()
    machine, settings = results["machine"], results["settings"]
    columns = [key for key in COLUMNS if any(key in row["contenders"] for row in results["rows"])]
    names = ["fastxent", *(CONTENDERS[key].label for key in columns), "of memory ceiling"]
    versions = ", ".join(
        f"{CONTENDERS[key].label.split()[0]} {version}"
        for key in columns
        if (version := machine["versions"].get(CONTENDERS[key].distribution))
    )
    where = (
        f"Value and gradient into `grad_out` on {machine['cpu']}, {settings['threads']} of {machine['cpus']} "
        f"{'virtual ' if machine['virtual'] else ''}cores, level {settings['level']}: median milliseconds, peers in their "
        "fastest form, in brackets how many times fastxent's."
    )
    source = (
        f"{versions}; Python {machine['python']}; {machine['compiler']}. The ceiling is a loop that only moves the same "
        "bytes, with the same threads in the same run. All cases and what they promise: "
        f"[{stem}.md]({folder}/{stem}.md)."
    )
    lines = [
        where,
        "",
        *table(["case", *names], [_cells(row, columns) for row in _rows(results)]),
        "",
        f"![Time per logit by number of classes, beside every peer and the ceilings]({folder}/{stem}-classes.png)",
        "",
        f"![How many times as long as fastxent the peers take]({folder}/{stem}-ratios.png)",
        "",
        f"![Time per logit at every class count from 1 to 300]({folder}/{stem}-class-counts.png)",
        "",
        source,
        "",
        *_least_lines(results),
    ]
    return "\n".join(lines)


def _rows(results: Results) -> Iterator[Row]:
    """Yield the cases of the bars, then some in float64."""
    yield from plot.ratio_rows(results)
    for wanted in FLOAT64_ROWS:
        common = {"loss": "CrossEntropy", "dtype": "float64", "operation": "value_and_grad", "output": "grad_out"}
        for row in results["rows"]:
            if all(row[name] == value for name, value in (common | wanted).items()):
                yield row


def _cells(row: Row, columns: Sequence[str]) -> list[str]:
    ours, fraction = milliseconds(row, "fastxent", "median_ms"), fraction_of_memory(row, "median_ms")
    name = f"{SHORT_NAMES[row['loss']]} {row['shape_text']}{'' if row['dtype'] == 'float32' else ' float64'}"
    shown = [f"{ours:.3g}" if ours else "-", *(with_ratio(row, key) for key in columns)]
    return [name, *shown, f"{fraction:.0%}" if fraction else "-"]


def _least_lines(results: Results) -> Iterator[str]:
    cases = ", ".join(
        f"{row['name']} ({times:.1f}x {CONTENDERS[key].label})" for row, key, times in least_won(results, LEAST)
    )
    yield f"Least is won at: {cases}."
    kept: dict[str, list[bool | None]] = {}
    for promise, judged in judge_all(results):
        kept.setdefault(promise.line, []).extend(entry.kept for entry in judged)
    goals = [f"{LINES[line]} {verdicts.count(True)}/{len(verdicts)}" for line, verdicts in kept.items()]
    yield f"Goals reached, of those measured: {', '.join(goals)}."


def replaced(text: str, section: str) -> str:
    """Return `text` with `section` between the markers."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"README.md must have one {BEGIN} and after it one {END}")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{section}\n{END}{rest.partition(END)[2]}"


def newest_results() -> Path:
    """Return the newest results of a whole run."""
    files = list(RESULTS.glob("*-cpus.json"))
    if not files:
        raise FileNotFoundError(f"no results in {RESULTS}: run python -m benchmarks first")
    return max(files, key=lambda path: path.stat().st_mtime)


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite the section, and draw its pictures again."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__)
    parser.add_argument(
        "results", type=Path, nargs="?", help="a JSON file in benchmarks/results (the newest whole run)"
    )
    parser.add_argument("--print", action="store_true", help="print the section instead")
    args = parser.parse_args(arguments)
    path = args.results or newest_results()
    results = read(path)
    section = speed_section(results, path.stem)
    if args.print:
        print(section)
        return 0
    plot.draw_all(results, path)
    README.write_text(replaced(README.read_text(encoding="utf-8"), section), encoding="utf-8")
    print(f"wrote the speed section of {README} from {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
