"""Run every check of trust in full, and end with a table: check, figure, verdict (make trust).

Each check is a make target; its figure is the last line it prints, beside the time it took. All run, whatever fails.
"""

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Check:
    """A make target, and what it shows."""

    target: str
    shows: str


CHECKS = (
    Check("lint", "style of Python and Cython"),
    Check("types", "types of the sources"),
    Check("test", "the tests, doctests included"),
    Check("test-slow", "accuracy against mpmath; all plans and kernels of the GPU"),
    Check("exhaustive", "exp and log1p of every float32"),
    Check("fuzz", "random calls beside the reference"),
    Check("sanitize", "addresses and undefined behaviour"),
    Check("guard-pages", "nothing read or written outside an array"),
    Check("parallel-tests", "tests in several threads at once"),
    Check("wheel", "one wheel: contents, size, bit-identical, tests under every Python"),
    Check("stubs", "stubs complete and true"),
    Check("docstrings", "numpydoc's checks"),
    Check("review", "scientific Python's repository review"),
    Check("portable", "other compilers, no threads"),
    Check("docs", "the site, without a warning"),
    Check("docs-doctest", "the examples of the site"),
)


def targets() -> set[str]:
    """The targets of the Makefile."""
    lines = (ROOT / "Makefile").read_text().splitlines()
    return {line.split(":")[0] for line in lines if ":" in line and not line.startswith(("\t", "#", "."))}


def run(check: Check) -> tuple[bool, str]:
    """Run a check; whether it passed, and its figure."""
    if check.target not in targets():
        return False, "no such target"
    begin = time.perf_counter()
    command = ["make", "--no-print-directory", check.target]
    # Several lines at once would mix with those of other checks: each is shown when it is over.
    done = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    seconds = time.perf_counter() - begin
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    if done.returncode:
        sys.stdout.write(done.stdout)
    return done.returncode == 0, f"{seconds:.0f} s; {lines[-1][:90] if lines else 'no output'}"


def main() -> int:
    """Run the checks and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", metavar="TARGET", help="these targets instead of all")
    only = parser.parse_args().only
    chosen = [check for check in CHECKS if not only or check.target in only]
    rows = []
    for check in chosen:
        sys.stdout.write(f"{check.target} ...\n")
        sys.stdout.flush()
        passed, figure = run(check)
        rows.append((check.target, check.shows, figure.replace("|", "/"), "pass" if passed else "FAIL"))
    sys.stdout.write("\n| check | shows | figure | verdict |\n| --- | --- | --- | --- |\n")
    for row in rows:
        sys.stdout.write("| " + " | ".join(row) + " |\n")
    return sum(row[-1] != "pass" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
