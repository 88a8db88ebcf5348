"""Measure the accuracy of fastxent beside its peers against 60 digits: ``python -m benchmarks.accuracy``.

Every result is compared with the exact one, in eps of the dtype, relative to the exact result, and with what the
contract allows. Writes JSON and tables in Markdown to ``benchmarks/results``. The exit status is 1 when fastxent is
less accurate than the contract allows.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy_cases import DIGITS, GROUPS, QUANTITIES, Array, Batch, Exact, Verdict, batches, judge, truth
from benchmarks.accuracy_peers import CONTENDERS, Functions

RESULTS = Path(__file__).resolve().parent / "results"
DTYPES = ("float32", "float64")
# Few classes, the end of the few-classes kernel, rows in cache, and rows longer than one chunk.
N_CLASSES = (2, 3, 5, 10, 17, 40, 100, 1000, 3000)
QUICK_N_CLASSES = (2, 3, 10, 40)
N_RANDOM, QUICK_N_RANDOM = 20, 2
SHOWN_CLASSES = 5  # rows up to this long are shown as they are
# Products have subnormal factors before they are subnormal themselves, and some libraries flush those to 0: results
# below 16 times the smallest normal number are judged as subnormal ones are, for everyone.
MARGIN = 4
LOST = 1.001  # a subnormal result without its sign or size is worse than all that is allowed


@dataclass(frozen=True)
class Column:
    """A contender, at one instruction-set level if it is fastxent."""

    key: str
    functions: Functions
    level: str | None = None

    @property
    def label(self) -> str:
        """The head of the column."""
        return CONTENDERS[self.key].label + (f" {self.level}" if self.level else "")


@dataclass(frozen=True)
class Finding:
    """What was found of a quantity in a column, for one dtype and group of rows; `worst` is the worst input."""

    quantity: str
    dtype: str
    column: str
    group: str
    n: int  # results that are normal numbers
    error: float  # in eps, the largest of those
    excess: float  # error / allowed, the largest
    n_small: int  # results that are subnormal, or nearly so
    n_small_wrong: int
    severity: float  # of the worst input: its excess, or LOST
    worst: dict[str, Any] | None

    def joined(self, other: Finding) -> Finding:
        """Return the worst of both."""
        return Finding(
            self.quantity,
            self.dtype,
            self.column,
            self.group,
            self.n + other.n,
            max(self.error, other.error),
            max(self.excess, other.excess),
            self.n_small + other.n_small,
            self.n_small_wrong + other.n_small_wrong,
            max(self.severity, other.severity),
            max(self, other, key=lambda finding: finding.severity).worst,
        )


def columns(keys: Iterable[str]) -> Iterator[Column]:
    """Load the contenders; fastxent is as many as it has levels here."""
    for key in keys:
        functions = CONTENDERS[key].load()
        if key == "fastxent":
            from fastxent import _config

            yield from (Column(key, functions, level) for level in _config.usable_levels())
        else:
            yield Column(key, functions)


def measure(column: Column, batch: Batch, exact: Mapping[str, Exact], margin: int) -> Iterator[Finding]:
    """Ask a contender for all it can tell of a batch, and judge it; for `margin` see `judge`."""
    answers = column.functions.binary if batch.is_binary else column.functions.softmax
    # What a peer warns about is its own affair.
    with _at_level(column.level), np.errstate(all="ignore") if CONTENDERS[column.key].peer else nullcontext():
        for quantity, result in answers(batch.logits, batch.target):
            assert result.dtype == batch.logits.dtype, f"{column.label} {quantity} is {result.dtype}"
            assert result.shape == exact[quantity].high.shape, f"{column.label} {quantity} has shape {result.shape}"
            verdict = judge(result, exact[quantity], margin)
            for group in GROUPS:
                rows = np.flatnonzero(batch.group == group)
                if rows.size:
                    yield _finding(column, quantity, batch, result, exact[quantity], verdict, group, rows)


@contextmanager
def _at_level(level: str | None) -> Iterator[None]:
    from fastxent import _config

    before = _config.level()
    try:
        _config.use_level(level or before)
        yield
    finally:
        _config.use_level(before)


def _finding(
    column: Column,
    quantity: str,
    batch: Batch,
    result: Array,
    exact: Exact,
    verdict: Verdict,
    group: str,
    rows: NDArray[np.intp],
) -> Finding:
    excess = verdict.excess[rows]
    is_normal = ~np.isnan(excess)
    severity = np.where(verdict.is_small_and_wrong[rows], LOST, np.where(is_normal, excess, -1))
    at = np.unravel_index(severity.argmax(), severity.shape)
    return Finding(
        quantity,
        batch.logits.dtype.name,
        column.label,
        group,
        int(is_normal.sum()),
        float(np.max(verdict.error[rows], where=is_normal, initial=0)),
        float(np.max(excess, where=is_normal, initial=0)),
        int(verdict.is_small[rows].sum()),
        int(verdict.is_small_and_wrong[rows].sum()),
        float(severity[at]),
        _described(batch, result, exact, verdict, (rows[at[0]], *at[1:])) if severity[at] >= 0 else None,
    )


def _described(batch: Batch, result: Array, exact: Exact, verdict: Verdict, at: tuple[Any, ...]) -> dict[str, Any]:
    """Say all that is needed to try the worst input again."""
    row = np.atleast_1d(batch.logits[at[0]])
    logits = row if len(row) <= SHOWN_CLASSES else np.sort(row)[: -SHOWN_CLASSES - 1 : -1]
    with np.errstate(under="ignore"):
        right = float(np.ldexp(exact.high[at], exact.exponent[at]))
    return {
        "n_classes": len(row),
        "logits" if len(row) <= SHOWN_CLASSES else "largest_logits": [float(z) for z in logits],
        "target": int(batch.target[at[0]]),
        "element": int(at[1]) if len(at) > 1 else None,
        "logit_of_element": float(row[at[1]]) if len(at) > 1 else None,
        "actual": float(result[at]),
        "exact": right,
        "error": float(verdict.error[at]),
        "allowed": float(exact.allowed[at]),
    }


def joined(findings: Iterable[Finding]) -> list[Finding]:
    """Join what was found of the same quantity, dtype, column and group."""
    table: dict[tuple[str, ...], Finding] = {}
    for finding in findings:
        key = finding.quantity, finding.dtype, finding.column, finding.group
        table[key] = table[key].joined(finding) if key in table else finding
    return list(table.values())


def worst(findings: Iterable[Finding]) -> Finding | None:
    """Return the worst of several findings as one, or None if there are none."""
    total = None
    for finding in findings:
        total = finding if total is None else total.joined(finding)
    return total


def complaints(findings: Iterable[Finding]) -> Iterator[str]:
    """Say where a contender is worse than the contract allows."""
    for f in findings:
        if f.n_small_wrong:
            yield f"{f.column}, {f.dtype}, {f.quantity}, {f.group}: lost {f.n_small_wrong} subnormal results: {f.worst}"
        if not f.excess <= 1:
            yield f"{f.column}, {f.dtype}, {f.quantity}, {f.group}: {f.excess:.3g} of the allowed: {f.worst}"


def summary_table(findings: Sequence[Finding], missing: Mapping[str, str]) -> Iterator[str]:
    """Return the table of the README: the worst of all levels and groups, value and gradient only."""
    keys = ["fastxent", *(key for key in CONTENDERS if CONTENDERS[key].peer)]
    heads = [CONTENDERS[key].label + (" (not installed)" if key in missing else "") for key in keys]
    yield _line(["worst error in eps", *heads])
    yield _line(["---", *["---:"] * len(heads)])
    for quantity in QUANTITIES:
        for dtype in DTYPES if not quantity.endswith("Hessian") else ():
            here = [f for f in findings if (f.quantity, f.dtype) == (quantity, dtype)]
            cells = [_cell(worst(f for f in here if f.column.startswith(CONTENDERS[key].label))) for key in keys]
            yield _line([f"{quantity}, {dtype}", *cells])


def group_tables(findings: Sequence[Finding]) -> Iterator[str]:
    """Return the long tables: every quantity, group of rows and column."""
    labels = list(dict.fromkeys(f.column for f in findings))
    for dtype in DTYPES:
        yield from ("", f"### {dtype}: worst error in eps (of the allowed)", "")
        yield _line(["quantity", "rows", *labels])
        yield _line(["---", "---", *["---:"] * len(labels)])
        for quantity in QUANTITIES:
            for group in GROUPS:
                key = quantity, dtype, group
                row = {f.column: f for f in findings if (f.quantity, f.dtype, f.group) == key and f.n}
                if row:
                    yield _line([quantity, group, *(_cell(row.get(label)) for label in labels)])
    yield from ("", "### Subnormal results, and nearly so: how many have the right sign and order of magnitude", "")
    yield _line(["quantity", *labels])
    yield _line(["---", *["---:"] * len(labels)])
    for quantity in QUANTITIES:
        for dtype in DTYPES:
            here = [f for f in findings if (f.quantity, f.dtype) == (quantity, dtype)]
            cells = [_small_cell(worst(f for f in here if f.column == label)) for label in labels]
            if set(cells) != {"-"}:
                yield _line([f"{quantity}, {dtype}", *cells])


def _cell(finding: Finding | None) -> str:
    if finding is None or finding.n == 0:
        return "-"
    return "∞" if math.isinf(finding.error) else f"{finding.error:.3g} ({finding.excess:.2g})"


def _small_cell(finding: Finding | None) -> str:
    if finding is None or finding.n_small == 0:
        return "-"
    # Never rounded up to all of them.
    percent = 100 * (1 - finding.n_small_wrong / finding.n_small)
    return f"{percent:.0f} %" if percent == 100 else f"{min(percent, 99.9):.1f} %"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def json_lines(results: Mapping[str, Any], findings: Sequence[Finding]) -> Iterator[str]:
    """Return the results as JSON, with one line for all that was found of a quantity, dtype and column."""
    yield json.dumps(results, indent=1, allow_nan=False).removesuffix("\n}") + ',\n "rows": ['
    keys = list(dict.fromkeys((f.quantity, f.dtype, f.column) for f in findings))
    for key in keys:
        groups = [f for f in findings if (f.quantity, f.dtype, f.column) == key]
        total = worst(groups)
        assert total is not None
        row = {name: value for name, value in asdict(total).items() if name not in ("group", "severity")}
        row["error_by_group"] = {f.group: f.error for f in groups if f.n}
        row["excess_by_group"] = {f.group: f.excess for f in groups if f.n}
        yield f"  {json.dumps(_plain(row), allow_nan=False)}{'' if key == keys[-1] else ','}"
    yield " ]\n}"


def _plain(value: Any) -> Any:
    """Return the same for JSON, which knows neither infinity nor NaN."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value


LEGEND = """\
Largest |result - exact| / |exact| in eps of the dtype, against mpmath; in brackets as a fraction of what fastxent allows
itself there, since rounding one logit already costs more eps the further it is from the largest. ∞: 0, NaN, infinity or
the wrong sign where the exact result is an ordinary number. -: no such function. fastxent is the worst of its
instruction-set levels, and of all calls that compute the quantity. Hessians are relative to the sum of the absolute
values of their terms. Rows: ordinary ones; confident ones (gaps 5 to 80, in float64 to 650, target right and wrong);
common offsets of 1e4, 1e6, 1e8; logits of ±800 and ±1e30; and rows whose small results are subnormal."""


def markdown(findings: Sequence[Finding], machine: Mapping[str, Any], missing: Mapping[str, str]) -> Iterator[str]:
    """Return all tables, the one for the README first."""
    yield from summary_table(findings, missing)
    yield from ("", LEGEND, "")
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    yield f"{machine['cpu']}; Python {machine['python']}, {versions}; commit {machine['commit'] or 'none'}"
    yield from (f"missing: {CONTENDERS[key].label} ({why})" for key, why in missing.items())
    yield from group_tables(findings)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few class counts, few random rows: half a minute")
    parser.add_argument("--seed", type=int, default=0, help="of the random rows (%(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for JSON and tables (%(default)s)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the measurement."""
    # Here, because the tests import this module, and need neither.
    from tqdm import tqdm

    from benchmarks.machine import describe, slug

    args = parse(arguments)
    missing = {key: why for key in CONTENDERS if (why := CONTENDERS[key].why_missing())}
    if "fastxent" in missing:
        print(f"fastxent cannot be imported: {missing['fastxent']}")
        return 1
    selected = list(columns(key for key in CONTENDERS if key not in missing))
    n_classes, n_random = (QUICK_N_CLASSES, QUICK_N_RANDOM) if args.quick else (N_CLASSES, N_RANDOM)
    work = [batch for dtype in DTYPES for batch in batches(dtype, n_classes, n_random, args.seed)]
    found: list[Finding] = []
    for batch in (progress := tqdm(work, unit=" batches", leave=False)):
        progress.set_description(f"{batch.logits.dtype} {batch.logits.shape}")
        exact = truth(batch)
        found += [finding for column in selected for finding in measure(column, batch, exact, MARGIN)]
    findings = joined(found)

    machine = describe([contender.distribution for contender in CONTENDERS.values()])
    results = {
        "machine": machine,
        "settings": {"n_classes": n_classes, "n_random": n_random, "seed": args.seed, "digits": DIGITS},
        "missing": missing,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / f"{slug(machine)}-accuracy{'-partial' if args.quick else ''}.json"
    path.write_text("\n".join(json_lines(results, findings)) + "\n", encoding="utf-8")
    text = "\n".join(markdown(findings, machine, missing)) + "\n"
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    print("\n".join(summary_table(findings, missing)), "", sep="\n")
    ours = list(complaints(f for f in findings if f.column.startswith("fastxent")))
    print(*(f"FAIL {complaint}" for complaint in ours), f"wrote {path} and .md", sep="\n")
    return 1 if ours else 0


if __name__ == "__main__":
    sys.exit(main())
