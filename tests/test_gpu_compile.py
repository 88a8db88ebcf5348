"""Every kernel variant that a plan can choose compiles for real GPUs: no spills, registers within the launch bounds.

With NVRTC (the wheel nvidia-cuda-nvrtc, of the dependency group "test"), as CuPy does it, or else with nvcc; neither needs
a GPU. NVRTC compiles in as many threads as there are cores.
"""

import ctypes
import itertools
import os
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
from gpu.variants import CAPABILITIES, distinct, other_plans, rows_plans

from fastxent.gpu import engine
from fastxent.gpu import plan as planning

# As CuPy adds them.
OPTIONS = (*engine.OPTIONS, "-ftz=true")
AT_ONCE = os.cpu_count() or 1


class Nvrtc:
    """The compiler that CuPy uses."""

    def __init__(self, folder):
        for builtins in folder.glob("libnvrtc-builtins.so.*"):
            ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
        (library,) = (p for p in folder.glob("libnvrtc.so.*") if "alt" not in p.name)
        self.library = ctypes.CDLL(str(library))

    def __call__(self, text, capability):
        """(messages, whether it compiled)."""
        program = ctypes.c_void_p()
        assert self.library.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"fastxent.cu", 0, None, None) == 0
        options = [*OPTIONS, f"-arch=sm_{capability}", "-Xptxas=-v", "--device-as-default-execution-space"]
        array = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
        status = self.library.nvrtcCompileProgram(program, len(options), array)
        size = ctypes.c_size_t()
        self.library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        self.library.nvrtcGetProgramLog(program, log)
        self.library.nvrtcDestroyProgram(ctypes.byref(program))
        return log.value.decode(), status == 0


def nvcc(text, capability):
    """The same with the toolkit's compiler."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "fastxent.cu"
        source.write_text(text)
        command = [
            "nvcc",
            "-cubin",
            *OPTIONS,
            f"-arch=sm_{capability}",
            "-Xptxas=-v",
            "-o",
            source.with_suffix(".cubin"),
        ]
        result = subprocess.run([*command, source], capture_output=True, text=True, check=False)
    return result.stdout + result.stderr, result.returncode == 0


@lru_cache
def compiler():
    """What there is."""
    spec = PathFinder.find_spec("nvidia")
    for place in spec.submodule_search_locations if spec else ():
        for library in sorted(Path(place).glob("*/lib/libnvrtc.so.1[3-9]*")):
            return Nvrtc(library.parent)
    return nvcc if shutil.which("nvcc") else None


needs_compiler = pytest.mark.skipif(
    compiler() is None, reason="neither NVRTC (the wheel nvidia-cuda-nvrtc) nor nvcc is here"
)


def flaw(plan, capability):
    """Compile a plan's kernel, and return what is wrong with it, if anything."""
    log, compiled = compiler()(engine.source(plan), capability)
    spilled = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    registers = max((int(n) for n in re.findall(r"Used (\d+) registers", log)), default=0)
    fits = 0 < registers <= planning.REGISTERS // (plan.threads * plan.define("BLOCKS"))
    if compiled and fits and spilled and not any(map(int, itertools.chain(*spilled))) and "warning" not in log:
        return None
    return f"{plan.kernel} {dict(plan.defines)} for sm_{capability}:\n{log}"


def assert_no_flaws(plans, capability):
    with ThreadPoolExecutor(AT_ONCE) as pool:
        flaws = [text for text in pool.map(lambda plan: flaw(plan, capability), plans) if text]
    assert not flaws, "\n".join(flaws)


@needs_compiler
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_sample_of_all_variants_compiles_without_spills(capability):
    rows, others = distinct(rows_plans(capability)), distinct(other_plans())
    step = 1 + CAPABILITIES.index(capability)
    assert_no_flaws([*rows[step :: len(rows) // 14], *others[step :: len(others) // 8]], capability)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_variant_compiles_without_spills(capability):
    """A third of a second each with NVRTC; nvcc takes seconds."""
    assert_no_flaws([*distinct(rows_plans(capability)), *distinct(other_plans())], capability)
