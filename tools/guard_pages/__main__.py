"""Build the driver and run the kernels of the installed extension between guard pages: `make guard-pages`."""

import argparse
import ctypes
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fastxent.cpu import engine

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "src" / "fastxent" / "cpu" / "kernels"


def main() -> int:
    """Run; 0 if no kernel left its arrays. One that does ends the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=260, help="every number of classes up to this one")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faulty", action="store_true", help="run a kernel that reads too far instead")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "driver.so")
        command = [os.environ.get("CC", "cc"), "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        subprocess.run([*command, f"-I{KERNELS}", str(HERE / "driver.c"), "-o", str(library)], check=True)
        driver = ctypes.CDLL(str(library))
        if arguments.faulty:
            return int(driver.run_faulty())
        run = driver.run_guarded
    run.restype = ctypes.c_long
    run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint32]
    started = time.perf_counter()
    calls = run(*engine.kernel_addresses(), arguments.classes, arguments.seed)
    print(f"{calls} calls between guard pages, {time.perf_counter() - started:.1f} s")
    return int(calls <= 0)


if __name__ == "__main__":
    sys.exit(main())
