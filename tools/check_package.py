"""Build sdist and wheel, check what is in them, and run the self-test of the wheel in a new environment."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ALLOWED_SUFFIXES = {".py", ".pyi", ".typed", ".so", ".pyd", ""}
LARGEST_WHEEL = 500_000
IN_SDIST = (
    "src/fastxent/cpu/engine.pyx",
    "src/fastxent/cpu/kernels/tile.h",
    "tests/conftest.py",
    "Makefile",
    "LICENSE",
)


def run(*command: str | Path) -> None:
    """Run a command, or end with its exit status."""
    print("$", *command, flush=True)
    status = subprocess.run([str(word) for word in command], check=False).returncode
    if status:
        sys.exit(status)


def expect(condition: bool, message: str) -> None:
    """Stop with a message unless the condition holds."""
    if not condition:
        sys.exit(f"package check failed: {message}")


def check_wheel(wheel: Path) -> None:
    """One stable-ABI extension, no sources, small."""
    names = [n for n in zipfile.ZipFile(wheel).namelist() if not n.endswith("/")]
    code = [n for n in names if ".dist-info/" not in n]
    extensions = [n for n in code if n.endswith((".so", ".pyd"))]
    expect(len(extensions) == 1, f"exactly one extension expected, found {extensions}")
    expect("abi3" in wheel.name, f"a stable-ABI wheel expected, built {wheel.name}")
    strange = [n for n in code if Path(n).suffix not in ALLOWED_SUFFIXES]
    expect(not strange, f"files that do not belong into a wheel: {strange}")
    expect(wheel.stat().st_size < LARGEST_WHEEL, f"{wheel.stat().st_size} bytes, at most {LARGEST_WHEEL}")
    print(f"{wheel.name}: {wheel.stat().st_size} bytes, {len(names)} files, extension {extensions[0]}")


def check_sdist(sdist: Path) -> None:
    """What is needed to build and test is there, what is generated is not."""
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    missing = [name for name in IN_SDIST if name not in names]
    expect(not missing, f"missing from the sdist: {missing}")
    generated = [n for n in names if n.endswith((".so", ".pyd", "engine.c"))]
    expect(not generated, f"generated files in the sdist: {generated}")
    print(f"{sdist.name}: {sdist.stat().st_size} bytes, {len(names)} entries")


def main() -> None:
    """Build and check in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheel-only", action="store_true", help="no sdist")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "dist")
        # Without --wheel the wheel is built from the sdist, so nothing stale of build/ can get in.
        run(sys.executable, "-m", "build", "--outdir", output, *(["--wheel"] if arguments.wheel_only else []), ".")
        (wheel,) = output.glob("*.whl")
        check_wheel(wheel)
        if not arguments.wheel_only:
            (sdist,) = output.glob("*.tar.gz")
            check_sdist(sdist)
        environment = Path(folder, "environment")
        venv.create(environment, with_pip=True)
        python = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        run(python, "-m", "pip", "install", "--quiet", wheel)
        os.chdir(folder)  # not the source tree
        run(python, "-m", "fastxent", "info")
        run(python, "-m", "fastxent", "selftest")


if __name__ == "__main__":
    main()
