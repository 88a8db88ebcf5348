"""The kernels between guard pages, in a process of their own, since what is found ends it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DRIVER = ROOT / "tools" / "guard_pages"

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="maps pages as Linux does"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler"),
    pytest.mark.skipif(not (ROOT / "src").exists(), reason="an installed wheel has no kernels to compile"),
]


def run(*options):
    command = [sys.executable, str(DRIVER), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_no_kernel_leaves_its_arrays():
    # Every tail of the widest vectors, behind more of them than any loop takes at once.
    done = run("--classes", "70")
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[0]) > 500_000


def test_one_byte_too_far_is_found():
    done = run("--faulty")
    assert done.returncode == 2
    assert "0 bytes past the pages of logits" in done.stderr
