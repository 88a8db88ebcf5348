"""Runs the shipped CUDA kernels on the CPU: compiled by g++ with ``emulator.h`` in place of ``gpu/port.cuh``."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np

HEADER = Path(__file__).with_name("emulator.h")
COMPILER = shutil.which("g++")
OPTIONS = ("-O1", "-std=c++17", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing", "-w")
# When asynchronous copies happen: at once, or as late as they may.
EAGER = False
WHY_NOT = (
    "the emulator needs g++"
    if COMPILER is None
    else "the emulator knows x86-64 only"
    if platform.machine() != "x86_64"
    else None
)
TYPE_OF_DOUBLE = "#define TYPE 11"


def cache_folder():
    """Where compiled kernels are kept from run to run; of this user alone."""
    folder = Path(tempfile.gettempdir()) / f"fastxent-emulator-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to somebody else")
    return folder


@lru_cache
def precompiled_header():
    """The header beside its compiled form, which takes the compiler most of its time."""
    key = hashlib.sha256("\0".join([HEADER.read_text(), *OPTIONS]).encode()).hexdigest()[:32]
    header = cache_folder() / f"{key}.h"
    if not header.with_suffix(".h.gch").exists():
        with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
            built = Path(folder) / "emulator.h.gch"
            subprocess.run([COMPILER, *OPTIONS, "-x", "c++-header", HEADER, "-o", built], check=True)
            header.write_text(HEADER.read_text())
            built.rename(header.with_suffix(".h.gch"))
    return header


def _glue(name, flushes):
    """The function that Python calls. The flags are those of -ftz=true: subnormal numbers are 0, in and out."""
    flush = "_mm_setcsr(before | 0x8040);" if flushes else ""
    return f"""
extern "C" int emulate(int grid, int threads, void **arguments, size_t shared, int eager, char *message)
{{
    emulator::eager = eager, emulator::message = message;
    const unsigned before = _mm_getcsr();
    {flush}
    const int failed = emulator::launch({name}, arguments, grid, threads, CLUSTER, shared);
    _mm_setcsr(before);
    return failed;
}}
"""


def _address(argument):
    """The argument as the driver takes it: a buffer that holds it."""
    pointer = getattr(getattr(argument, "data", None), "ptr", None)
    if pointer is not None or argument is None:
        return ctypes.c_void_p(pointer or 0)
    if isinstance(argument, bool):
        return ctypes.c_bool(argument)
    if isinstance(argument, int):
        return ctypes.c_int64(argument)
    if isinstance(argument, float):
        return ctypes.c_double(argument)
    value = np.asarray(argument)
    if value.size != 1:
        raise TypeError(f"only arrays of size one can be passed by value; got shape {value.shape}")
    return ctypes.create_string_buffer(value.tobytes(), value.nbytes)


class Function:
    """A kernel, called as those of ``cupy.RawModule`` are."""

    def __init__(self, source, name):
        self.source, self.name = source, name
        self.max_dynamic_shared_size_bytes = 48 * 1024
        self._emulate = None

    def _compiled(self):
        if self._emulate is None:
            # Only of float32: what knows nothing but doubles must keep theirs.
            flushes = TYPE_OF_DOUBLE not in self.source and self.name != "add_up"
            text = self.source + _glue(self.name, flushes)
            key = hashlib.sha256("\0".join([HEADER.read_text(), text, *OPTIONS]).encode()).hexdigest()[:32]
            library = cache_folder() / f"{key}.so"
            if not library.exists():
                with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
                    built = Path(folder) / "kernel.so"
                    command = [
                        COMPILER,
                        *OPTIONS,
                        "-shared",
                        "-include",
                        precompiled_header(),
                        "-x",
                        "c++",
                        "-",
                        "-o",
                        built,
                    ]
                    subprocess.run(command, input=text.encode(), check=True)
                    built.rename(library)
            self._emulate = ctypes.CDLL(str(library)).emulate
        return self._emulate

    def __call__(self, grid, block, args, *, shared_mem=0):
        if shared_mem > self.max_dynamic_shared_size_bytes:
            raise RuntimeError(f"{shared_mem} bytes of shared memory, {self.max_dynamic_shared_size_bytes} allowed")
        buffers = [_address(a) for a in args]
        pointers = (ctypes.c_void_p * len(buffers))(*(ctypes.addressof(b) for b in buffers))
        message = ctypes.create_string_buffer(512)
        if self._compiled()(int(grid[0]), int(block[0]), pointers, ctypes.c_size_t(shared_mem), int(EAGER), message):
            raise RuntimeError(f"{self.name}: {message.value.decode()}")


class Module:
    """Source with its kernels; nothing is compiled before a kernel runs."""

    def __init__(self, source):
        self.source = source

    def get_function(self, name):
        if not re.search(rf"\b{name}\(const ", self.source):
            raise AttributeError(f"no kernel {name}")
        return Function(self.source, name)


def compile(source, defines=()):
    """A module of ``source``, with ``#define`` lines for ``defines``, (name, value) pairs, in front."""
    return Module("".join(f"#define {name} {value}\n" for name, value in dict(defines).items()) + source)


def function(source, name):
    """A kernel of ``source``."""
    return compile(source).get_function(name)
