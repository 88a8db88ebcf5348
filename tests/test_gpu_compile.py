"""Every kernel variant that a plan can choose compiles for real GPUs: no spills, registers within the launch bounds.

With NVRTC (the wheel nvidia-cuda-nvrtc), as CuPy does it, or else with nvcc; neither needs a GPU.
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

from fastxent.gpu import engine
from fastxent.gpu import plan as planning
from fastxent.gpu.plan import TYPES, Rows

CAPABILITIES = (80, 90, 100)
# As CuPy adds them.
OPTIONS = (*engine.OPTIONS, "-ftz=true")
AT_ONCE = 2
EVERYTHING = bool(os.environ.get("EVERYTHING"))
N_CLASSES = [*range(1, 70), *range(70, 300, 7), *range(300, 5000, 101), *range(5000, 300_001, 2503)]
LAYOUTS = ("packed", "rows", "classes", "inner")
HALVES_AND_REALS = ("float16", "bfloat16", "float32", "float64")
SOFTMAX_CALLS = [
    ("cross_entropy", "logits", "int64"),
    ("cross_entropy", "logits", "float32"),
    ("cross_entropy", "log_probs", "int64"),
    ("cross_entropy", "probs", "float32"),
    ("focal", "logits", "int64"),
    ("focal", "logits", "float64"),
    ("softmax", "logits", None),
    ("log_softmax", "logits", None),
    ("logsumexp", "logits", None),
]
BINARY_CALLS = [
    *itertools.product(["binary_cross_entropy"], ["logits", "probs"], ["int64", "float32", "uint8", "float64"]),
    *itertools.product(["binary_focal"], ["logits"], ["int64", "bfloat16", "float32"]),
    ("sigmoid", "logits", None),
    ("log_sigmoid", "logits", None),
]


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


needs_compiler = pytest.mark.skipif(compiler() is None, reason="neither nvidia-cuda-nvrtc nor nvcc is installed")


def check(plan, capability):
    """Compile a plan's kernel, and return its registers."""
    log, compiled = compiler()(engine.source(plan), capability)
    what = f"{plan.kernel} {dict(plan.defines)} for sm_{capability}:\n{log}"
    assert compiled, what
    assert "warning" not in log, what
    spilled = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert spilled, what
    assert all(int(n) == 0 for n in itertools.chain(*spilled)), what
    registers = max(int(n) for n in re.findall(r"Used (\d+) registers", log))
    assert registers <= planning.REGISTERS // (plan.threads * plan.define("BLOCKS")), what
    return registers


def check_all(plans, capability):
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda plan: check(plan, capability), plans))


def distinct(plans):
    """One plan for every program."""
    return list({(plan.kernel, plan.defines): plan for plan in plans}.values())


def rows_plans(capability, n_classes=N_CLASSES, layouts=LAYOUTS):
    """All variants of the softmax family."""
    return distinct(
        planning.rows.__wrapped__(
            Rows(
                task,
                TYPES[dtype],
                1,
                1000,
                k,
                inputs,
                target not in (None, "int64"),
                TYPES[target or "int64"],
                hessian,
                layout,
            ),
            capability,
        )
        for dtype in HALVES_AND_REALS
        for task, inputs, target in SOFTMAX_CALLS
        for hessian in ((False, True) if target else (False,))
        for layout in layouts
        for k in n_classes
    )


def other_plans():
    """All variants of everything else, which know no architecture."""
    for dtype in HALVES_AND_REALS:
        for task, inputs, target in BINARY_CALLS:
            for hessian, flat in itertools.product((False, True) if target else (False,), (False, True)):
                yield planning.elements(
                    task,
                    TYPES[dtype],
                    1000,
                    target_type=TYPES[target or "int64"],
                    inputs=inputs,
                    hessian=hessian,
                    flat=flat,
                )
        for counted, k, near in [("labels", 9, True), ("elements", 1, True)] + [
            ("distributions", k, near) for k, near in itertools.product((5, 9, 5000), (True, False))
        ]:
            yield planning.divisor(
                counted, TYPES[dtype], 1000, k, target_type=TYPES["float32"], classes_are_neighbours=near
            )
    yield planning.total()


@needs_compiler
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_sample_of_all_variants_compiles_without_spills(capability):
    plans = rows_plans(capability)
    others = distinct(other_plans())
    step = 1 + CAPABILITIES.index(capability)
    check_all([*plans[step :: len(plans) // 14], *others[step :: len(others) // 8]], capability)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_variants_of_rows_compile_without_spills(capability):
    # Seventy for each architecture; EVERYTHING=1 (make gpu-compile) for all 3300, which takes hours.
    first = CAPABILITIES.index(capability)
    check_all(rows_plans(capability)[slice(None) if EVERYTHING else slice(first, None, 48)], capability)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_other_variants_compile_without_spills(capability):
    first = CAPABILITIES.index(capability)
    check_all(distinct(other_plans())[slice(None) if EVERYTHING else slice(first, None, 4)], capability)
