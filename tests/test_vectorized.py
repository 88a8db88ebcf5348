"""The kernels use the registers of their level: the compiled extension, disassembled."""

import collections
import platform
import re
import shutil
import subprocess

import pytest

from fastxent.cpu import engine

# Per level, the multiplications and additions of the polynomials of exp on whole vectors, and how the powers of two are
# applied. A kernel that fell back to single numbers would leave only ss and sd forms.
EXPECTED = {
    "avx512": [r"vfmadd\d+ps .*%zmm", r"vfmadd\d+pd .*%zmm", r"vscalefps .*%zmm", r"vscalefpd .*%zmm"],
    "avx2": [r"vfmadd\d+ps .*%ymm", r"vfmadd\d+pd .*%ymm", r"vmaxps .*%ymm", r"vmaxpd .*%ymm"],
    "baseline": [r"\bmulps .*%xmm", r"\bmulpd .*%xmm", r"\bmaxps .*%xmm", r"\bmaxpd .*%xmm"],
}
# The tile loops, the row loops and the long rows, for index and soft targets, each have at least one exponential.
LEAST = 10


@pytest.fixture(scope="module")
def instructions():
    if platform.machine() != "x86_64" or shutil.which("objdump") is None:
        pytest.skip("needs objdump on x86-64")
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", engine.__file__], capture_output=True, text=True, check=True
    )
    lines = (line.split("\t", 1)[-1] for line in listing.stdout.splitlines())
    return collections.Counter(re.sub(r"\s+", " ", line) for line in lines)


@pytest.mark.parametrize("level", EXPECTED)
def test_exponentials_are_computed_on_whole_vectors(instructions, level):
    if level not in engine.usable_levels():
        pytest.skip(f"{level} was not built or does not run here")
    for pattern in EXPECTED[level]:
        found = sum(count for line, count in instructions.items() if re.match(pattern, line))
        assert found >= LEAST, f"{pattern}: {found}"
