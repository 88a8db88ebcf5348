"""Build with AddressSanitizer and UndefinedBehaviorSanitizer, and run the fuzzer and some tests: `make sanitize`.

The build lies in build/sanitize, beside a copy of the Python files, and does not touch the installed package. Leaks are
not looked for: Python keeps what it needs until it ends (tests/test_memory.py looks for ours).
"""

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "sanitize"
SOURCE = ROOT / "src" / "fastxent"
# Of the flags of setup.py those that change what the code does. A pointer to the row before an array, or past it, is
# computed by strides that never reach it.
FLAGS = [
    *(
        "-std=gnu11",
        "-O1",
        "-g",
        "-fPIC",
        "-fno-omit-frame-pointer",
        "-fopenmp",
        "-fno-math-errno",
        "-fno-trapping-math",
    ),
    *("-ffp-contract=fast", "-DPy_LIMITED_API=0x030B0000"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
]
DIRECTIVES = ["boundscheck=True", "wraparound=False", "cdivision=True", "initializedcheck=True"]
# Layouts, copies, and labels out of range: what moves pointers about. Sizes beyond 32 bits take minutes here, and the
# limits of memory are not those of a sanitizer, which maps terabytes.
TESTS = ["test_binary_layouts.py", "test_memory.py"]
LEFT_OUT = "2_to_31 or leak or memory_error"


def build() -> Path:
    """Compile everything; the folder to put on the path."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    package = FOLDER / "fastxent"
    shutil.copytree(SOURCE, package, ignore=shutil.ignore_patterns("*.so", "kernels", "__pycache__", "engine.c"))
    cpu = SOURCE / "cpu"
    engine = FOLDER / "engine.c"
    options = [part for directive in DIRECTIVES for part in ("-X", directive)]
    subprocess.run(
        [sys.executable, "-m", "cython", "-3", *options, str(cpu / "engine.pyx"), "-o", str(engine)], check=True
    )
    kernels = cpu / "kernels"
    sources = [engine, *sorted(kernels.glob("isa/*.c")), *sorted(kernels.glob("*.c"))]
    include = [f"-I{cpu}", f"-I{kernels}", f"-I{sysconfig.get_path('include')}"]
    objects = [FOLDER / f"{source.stem}.o" for source in sources]

    def compiled(source: Path, target: Path) -> None:
        # The glue of Cython is full of unused functions; the sanitizers of the kernels are what matters.
        subprocess.run(["gcc", *FLAGS, *include, "-w", "-c", str(source), "-o", str(target)], check=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compiled, sources, objects))
    extension = package / "cpu" / "engine.abi3.so"
    subprocess.run(["gcc", *FLAGS, "-shared", *map(str, objects), "-o", str(extension)], check=True)
    return FOLDER


def main() -> int:
    """Build and run; the first finding ends the run with its report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000)
    arguments = parser.parse_args()
    started = time.perf_counter()
    folder = build()
    print(f"built in {time.perf_counter() - started:.0f} s", flush=True)
    runtime = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], check=True, capture_output=True, text=True
    ).stdout.strip()
    environment = os.environ | {
        "PYTHONPATH": str(folder),
        "LD_PRELOAD": runtime,
        # Memory errors have to be MemoryError here too, not the end of the process.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        # Each object then has memory of its own, so that what borders on it is watched.
        "PYTHONMALLOC": "malloc",
    }
    fuzz = [sys.executable, str(ROOT / "tools" / "fuzz.py"), "--cases", str(arguments.cases)]
    tests = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", f"not ({LEFT_OUT})"]
    tests += [f"tests/{name}" for name in TESTS]
    for command in (fuzz, tests):
        code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        if code:
            return code
    print(f"no finding; {time.perf_counter() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
