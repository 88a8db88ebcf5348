"""Count instructions of three calls and compare them with those recorded: ``python -m benchmarks.guard``.

Counts by valgrind's callgrind do not depend on who else uses the machine. The AVX2 level is counted, which valgrind can
run, on one thread. Each case runs in two processes that differ only in how often the call is repeated: in their
difference the start of the interpreter cancels. Fails where a call needs over 5 % more than recorded;
``--record`` records the counts of today.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cases import Case, make_problem
from benchmarks.machine import compiler

RECORD = Path(__file__).resolve().parent / "results" / "instructions.json"
LEVEL = "avx2"
MODULE = "benchmarks.guard"
ALLOWED = 1.05
FEW, MANY = 1, 5
# Hash seeds move dictionaries; threads of OpenMP, BLAS and the like would wait by spinning, which is counted.
ENVIRONMENT = {"FASTXENT_ISA": LEVEL, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
CASES = {
    "CE 20000x3": Case("CrossEntropy", (20_000, 3), "float32"),
    "CE 200x1000": Case("CrossEntropy", (200, 1_000), "float32"),
    "BCE 100000": Case("BinaryCrossEntropy", (100_000,), "float32"),
}


@dataclass(frozen=True)
class Verdict:
    """The instructions of one call beside the recorded ones; `recorded` is None for a case that is new."""

    name: str
    found: int
    recorded: int | None

    @property
    def kept(self) -> bool:
        """Whether the count is recorded and not far above."""
        return self.recorded is not None and self.found <= ALLOWED * self.recorded

    def line(self) -> str:
        """Say it."""
        if self.recorded is None:
            return f"NEW   {self.name:<14}{self.found:>12} instructions"
        change = self.found / self.recorded - 1
        word = "PASS" if self.kept else "MISS"
        return f"{word:<6}{self.name:<14}{self.found:>12} instructions, recorded {self.recorded:>12}, {change:+.2%}"


def judge(found: Mapping[str, int], recorded: Mapping[str, int]) -> list[Verdict]:
    """Compare counts with the recorded ones."""
    return [Verdict(name, count, recorded.get(name)) for name, count in found.items()]


def total_of(callgrind_output: str) -> int:
    """Return the instructions in a file of callgrind: its line ``summary: 123`` or ``totals: 123``."""
    match = re.search(r"^(?:summary|totals): (\d+)$", callgrind_output, re.MULTILINE)
    if match is None:
        raise ValueError("callgrind_output must have a line 'summary: <count>'; got none")
    return int(match[1])


def instructions(name: str) -> int:
    """Return the instructions of one call of a case."""
    few, many = (_run(name, repeats) for repeats in (FEW, MANY))
    return round((many - few) / (MANY - FEW))


def _run(name: str, repeats: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "callgrind.out"
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={file}", sys.executable, "-m", MODULE]
        subprocess.run(
            [*command, "--repeat", name, str(repeats)],
            env=os.environ | ENVIRONMENT,
            cwd=Path(__file__).resolve().parent.parent,
            check=True,
            capture_output=True,
        )
        return total_of(file.read_text(encoding="utf-8"))


def repeat(name: str, repeats: int) -> None:
    """Call a case so many times: what is counted."""
    import fastxent

    problem = make_problem(CASES[name], 1)
    loss = CASES[name].make_loss(fastxent)
    for _ in range(repeats + 1):  # one more: what only the first call does is in both counts
        loss.value_and_grad(problem.logits, problem.target, grad_out=problem.grad)


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, then compare or record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guard", description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write today's counts to the results")
    parser.add_argument("--repeat", nargs=2, metavar=("CASE", "N"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.repeat:
        repeat(args.repeat[0], int(args.repeat[1]))
        return 0
    if shutil.which("valgrind") is None:
        print("valgrind is not installed (apt-get install valgrind)", file=sys.stderr)
        return 2
    with ThreadPoolExecutor(max_workers=2) as pool:
        found = dict(zip(CASES, pool.map(instructions, CASES), strict=True))
    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    verdicts = judge(found, record.get("instructions", {}))
    print(*(verdict.line() for verdict in verdicts), sep="\n")
    if record and record["compiler"] != compiler():
        print(f"recorded with {record['compiler']}, now {compiler()}: record anew before judging")
    if args.record:
        record = {"compiler": compiler(), "level": LEVEL, "instructions": found}
        RECORD.parent.mkdir(parents=True, exist_ok=True)
        RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {RECORD}")
        return 0
    return 0 if all(verdict.kept for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
