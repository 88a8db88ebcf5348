"""Check that the stub says what the engine is (stubtest), and that every public type is known (pyright)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ALLOWLIST = ROOT / "tools/stubtest_allowlist.txt"


def main() -> None:
    """Run both; end with 1 if one of them finds something."""
    stubtest = [
        sys.executable,
        "-m",
        "mypy.stubtest",
        "fastxent",
        "--concise",
        "--mypy-config-file",
        str(ROOT / "pyproject.toml"),
    ]
    stubs = subprocess.run(
        [*stubtest, "--allowlist", str(ALLOWLIST), "--ignore-unused-allowlist"], check=False
    ).returncode
    print(f"stubtest: {'failed' if stubs else 'no complaint'}", flush=True)
    pyright = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--verifytypes", "fastxent"]
    answer = subprocess.run(
        [*pyright, "--ignoreexternal", "--outputjson"],
        cwd=ROOT,
        # An editable install of the folder it runs in is no installed package to pyright.
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        report = json.loads(answer.stdout)["typeCompleteness"]
    except (ValueError, KeyError):
        sys.exit(f"pyright gave no report:\n{answer.stdout}{answer.stderr}")
    score, counts = report["completenessScore"], report["exportedSymbolCounts"]
    print(f"pyright --verifytypes: {score:.1%} of {sum(counts.values())} symbols")
    for symbol in report["symbols"]:
        if symbol["isExported"] and not symbol["isTypeKnown"]:
            print(symbol["name"], *(d["message"] for d in symbol["diagnostics"]), sep="\n  ")
    sys.exit(bool(stubs) or score < 1)


if __name__ == "__main__":
    main()
