"""The memory ceiling, measured in the same run: a compiled loop over the same arrays with the same threads."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.cases import Problem

SOURCE = Path(__file__).with_name("ceiling.c")
# Without the last flag GCC turns the loop of the ordinary copy into memcpy, which streams when it sees fit.
FLAGS = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-fno-tree-loop-distribute-patterns"]


class CompilerError(RuntimeError):
    """There is no C compiler, or it cannot build the loop."""


def find_compiler() -> list[str]:
    """Return the command of the C compiler: ``CC``, that of Python, or one by its usual name."""
    candidates = [os.environ.get("CC"), sysconfig.get_config_var("CC"), "cc", "gcc", "clang"]
    for command in filter(None, candidates):
        words = shlex.split(command)
        if shutil.which(words[0]):
            return words[:1]
    raise CompilerError("no C compiler found")


class Ceiling:
    """The compiled loops, as calls on the arrays of a problem."""

    def __init__(self) -> None:
        """Compile ``ceiling.c``; raises `CompilerError`."""
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / "ceiling.so"
            command = [*find_compiler(), *FLAGS, str(SOURCE), "-o", str(library)]
            built = subprocess.run(command, capture_output=True, text=True, check=False)
            if built.returncode:
                raise CompilerError(f"the C compiler failed: {built.stderr.strip().splitlines()[:1]}")
            self._library = ctypes.CDLL(str(library))
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        self._reads = {1: self._library.read_one_stream, 4: self._library.read_four_streams}
        for read in self._reads.values():
            read.argtypes = [pointer, size, ctypes.c_int]
            read.restype = ctypes.c_uint64
        for name in ("copy_stored", "copy_streamed"):
            getattr(self._library, name).argtypes = [pointer, pointer, size, ctypes.c_int]
            getattr(self._library, name).restype = None
        self._self_test()

    def loops(self, problem: Problem) -> dict[str, Callable[[], Any]]:
        """Return the loops to race for `problem`: the ceiling of a value is a read, that of a gradient a copy."""
        logits, n_threads = problem.logits, problem.n_threads
        # The bound argument holds the array, as its address alone would not; found once, as finding it costs 1 us.
        loops: dict[str, Callable[[], Any]] = {
            f"read, {streams} stream{'s' * (streams > 1)}": partial(read, logits.ctypes, logits.nbytes, n_threads)
            for streams, read in self._reads.items()
        }
        if problem.case.operation == "value_and_grad":
            # In place, each line is read and written back; a fresh output is measured against warm pages on purpose.
            grad = np.zeros_like(logits) if problem.grad is None else problem.grad
            loops["copy, ordinary stores"] = self._copy("copy_stored", grad, logits, n_threads)
            if self._library.has_streaming_stores():
                loops["copy, streaming stores"] = self._copy("copy_streamed", grad, logits, n_threads)
        return loops

    def _copy(self, name: str, to: NDArray[Any], source: NDArray[Any], n_threads: int) -> Callable[[], None]:
        return partial(getattr(self._library, name), to.ctypes, source.ctypes, source.nbytes, n_threads)

    def _self_test(self) -> None:
        """Check that every byte is moved: a ceiling too high is as wrong as one too low."""
        source = np.arange(10_007, dtype=np.float32)
        words = source.nbytes // 64 * 16
        right = int(source[:words].view(np.uint64).sum(dtype=np.uint64))
        for read in self._reads.values():
            assert read(source.ctypes, source.nbytes, 2) == right
        for name in ("copy_stored", "copy_streamed"):
            for start in (0, 1, 5):
                to = np.zeros_like(source)
                self._copy(name, to[start:], source[start:], 3)()
                np.testing.assert_array_equal(to[start:], source[start:])
