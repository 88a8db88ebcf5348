"""Check that the C and CUDA code is as .clang-format wants it, and has no line that is too long; ``--apply`` formats."""

from __future__ import annotations

import argparse
import difflib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LONGEST_LINE = 120
SUFFIXES = {".c", ".h", ".cu", ".cuh"}


def main() -> None:
    """Print which files would change and which lines are too long, and fail if there are any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--apply", action="store_true", help="rewrite the files")
    parser.add_argument("--diff", action="store_true", help="show what would change")
    arguments = parser.parse_args()
    tool = Path(sys.executable).with_name("clang-format")
    n_lines = n_changed = n_long = 0
    for file in sorted(p for p in (ROOT / "src").rglob("*.*") if p.suffix in SUFFIXES and p.name != "engine.c"):
        before = file.read_text().splitlines()
        formatted = subprocess.run([str(tool), str(file)], capture_output=True, text=True, check=True).stdout
        changes = list(difflib.unified_diff(before, formatted.splitlines(), str(file), str(file), lineterm=""))
        changed = sum(line.startswith("-") and not line.startswith("---") for line in changes)
        for number, line in enumerate(before, 1):
            if len(line) > LONGEST_LINE:
                print(f"{file.relative_to(ROOT)}:{number}: {len(line)} columns")
                n_long += 1
        n_lines, n_changed = n_lines + len(before), n_changed + changed
        if changed:
            print(f"{file.relative_to(ROOT)}: {changed} of {len(before)} lines would change")
        if arguments.diff:
            print("\n".join(changes))
        if arguments.apply:
            file.write_text(formatted)
    print(f"{n_changed} of {n_lines} lines would change; {n_long} are longer than {LONGEST_LINE} columns")
    if (n_changed and not arguments.apply) or n_long:
        sys.exit(1)


if __name__ == "__main__":
    main()
