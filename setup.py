"""Build script: only what pyproject.toml cannot say, the extension module.

Environment: FASTXENT_NO_OPENMP=1 builds without threads, FASTXENT_ABI3=0 for one CPython only, FASTXENT_DEBUG=1 with
bounds checks and debug symbols, FASTXENT_ONE_LANE=1 without vector types (what other compilers get).
"""

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from Cython.Build import cythonize
from Cython.Compiler import Options
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

KERNELS = Path("src/fastxent/cpu/kernels")


def switched_on(name: str) -> bool:
    """Whether an environment variable is set to anything but 0."""
    return os.environ.get(name, "0") != "0"


DEBUG = switched_on("FASTXENT_DEBUG")
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
ABI3 = sys.implementation.name == "cpython" and not FREE_THREADED and os.environ.get("FASTXENT_ABI3", "1") != "0"

# Errno and traps are of no use to the kernels and keep compilers from vectorizing; -ffast-math would break NaN and
# infinities, and at link time the whole process.
COMPILE_FLAGS = {
    "unix": ["-O1", "-g"] if DEBUG else ["-O2", "-ftree-vectorize", "-g0", "-fvisibility=hidden"],
    "msvc": ["/O2", "/fp:precise"],
}
FLOAT_FLAGS = {"unix": ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fno-lto"], "msvc": []}
LINK_FLAGS = {"unix": [] if DEBUG or sys.platform == "darwin" else ["-Wl,--strip-all"], "msvc": []}
# What not every compiler or linker knows. Below -O3 GCC vectorizes plain loops but for the first; the others are for the
# size of the wheel, 76 kB in all, and cost no time that could be measured (benchmarks/NOTES.md). Sorted by name, the copies
# of a function for each level and dtype come to lie side by side, near enough for a zip file to find what they share; then
# functions begin lines and loops halves of them, lest their speed depend on what happens to lie before them.
SIZE_FLAGS = [
    "-fno-asynchronous-unwind-tables",
    "-fno-align-jumps",
    "-fno-schedule-insns2",
    "-ffunction-sections",
    "-falign-functions=64",
    "-falign-loops=32",
]
OPTIONAL_FLAGS = {"unix": ["-fvect-cost-model=dynamic", *([] if DEBUG else SIZE_FLAGS)], "msvc": []}
OPTIONAL_LINK_FLAGS = {"unix": [] if DEBUG else ["-Wl,--sort-section=name"], "msvc": []}
OPENMP_FLAGS = {
    "unix": (["-fopenmp"], ["-fopenmp"]),
    "darwin": (["-Xpreprocessor", "-fopenmp"], ["-lomp"]),
    "msvc": (["/openmp"], []),
}
EMPTY_PROGRAM = "int main(void) { return 0; }\n"
OPENMP_PROBE = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"


class BuildExtension(build_ext):
    """Chooses flags by compiler and looks whether OpenMP works."""

    def build_extensions(self) -> None:
        """Set the flags of every extension, then build."""
        kind = "msvc" if self.compiler.compiler_type == "msvc" else "unix"
        compile_flags, link_flags = OPENMP_FLAGS["darwin" if sys.platform == "darwin" else kind]
        if switched_on("FASTXENT_NO_OPENMP"):
            compile_flags, link_flags = [], []
        elif not self.works(OPENMP_PROBE, compile_flags, link_flags):
            sys.stderr.write("fastxent: this compiler has no usable OpenMP; building for one thread\n")
            compile_flags, link_flags = [], []
        optional = [flag for flag in OPTIONAL_FLAGS[kind] if self.works(EMPTY_PROGRAM, [flag], [])]
        optional_link = [flag for flag in OPTIONAL_LINK_FLAGS[kind] if self.works(EMPTY_PROGRAM, [], [flag])]
        for extension in self.extensions:
            extension.extra_compile_args = [*COMPILE_FLAGS[kind], *optional, *FLOAT_FLAGS[kind], *compile_flags]
            extension.extra_link_args = [*LINK_FLAGS[kind], *optional_link, *link_flags]
        super().build_extensions()

    def works(self, program: str, compile_flags: list[str], link_flags: list[str]) -> bool:
        """Compile, link and run a program."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(program)
            try:
                objects = self.compiler.compile([str(source)], output_dir=folder, extra_postargs=compile_flags)
                self.compiler.link_executable(objects, "probe", output_dir=folder, extra_postargs=link_flags)
                probe = Path(folder, "probe.exe" if os.name == "nt" else "probe")
                return subprocess.run([str(probe)], timeout=60, check=False).returncode == 0
            except Exception as problem:  # noqa: BLE001 - whatever it is, the build goes on without
                sys.stderr.write(f"fastxent: the probe of {' '.join(compile_flags + link_flags)} failed: {problem}\n")
                return False


class BuildPython(build_py):
    """Leaves comments and indentation out of the CUDA sources: a wheel carries them to be compiled, not to be read."""

    def build_package_data(self) -> None:
        """Copy, then shorten the copies: 8 kB of the wheel."""
        super().build_package_data()
        if self.editable_mode:
            return
        for source in Path(self.build_lib).glob("fastxent/gpu/*.cu*"):
            text = re.sub(r"/\*.*?\*/", "", source.read_text("utf-8"), flags=re.DOTALL)
            lines = (line.strip() for line in text.splitlines())
            source.write_text("".join(f"{line}\n" for line in lines if line), "utf-8", newline="\n")


MACROS = [("Py_LIMITED_API", "0x030B0000")] if ABI3 else []
if FREE_THREADED and sys.platform == "win32":
    MACROS.append(("Py_GIL_DISABLED", "1"))
if switched_on("FASTXENT_ONE_LANE"):
    MACROS.append(("FASTXENT_ONE_LANE", "1"))

engine = Extension(
    "fastxent.cpu.engine",
    sources=[
        "src/fastxent/cpu/engine.pyx",
        *(str(p) for p in sorted([*KERNELS.glob("*.c"), *KERNELS.glob("isa/*.c")])),
    ],
    include_dirs=["src/fastxent/cpu", str(KERNELS)],
    # Without these, editing a kernel header would leave a stale module behind.
    depends=["src/fastxent/cpu/threads.h", *(str(p) for p in sorted(KERNELS.glob("*.h")))],
    define_macros=MACROS,
    py_limited_api=ABI3,
)

# Nobody sees the engine but this package: its docstrings are for readers of the source.
Options.docstrings = False

setup(
    ext_modules=cythonize(
        [engine],
        compiler_directives={
            "language_level": 3,
            "boundscheck": DEBUG,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": DEBUG,
            "freethreading_compatible": True,
            "auto_pickle": False,
            "binding": False,
        },
    ),
    cmdclass={"build_ext": BuildExtension, "build_py": BuildPython},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if ABI3 else {},
)
