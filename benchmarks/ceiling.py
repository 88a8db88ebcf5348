"""The two ceilings, measured in the same run.

Memory: a compiled loop that only moves the same arrays with the same threads (``ceiling.c``). Arithmetic: the time that
the exponentials and logarithms alone would take on arrays that stay in the L1 cache: exponentials by a loop of
``ceiling.c`` that does nothing else, logarithms by the package's own function.
"""

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
from time import perf_counter
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from benchmarks.cases import FLOATS, Case, Problem

SOURCE = Path(__file__).with_name("ceiling.c")
# Without the last flag GCC turns the loop of the ordinary copy into memcpy, which streams when it sees fit.
FLAGS = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-fno-tree-loop-distribute-patterns"]

Elementary = Literal["exp", "log1p_of_fraction", "log"]
L1_BYTES = 16 * 1024  # argument and result together fill half of the smallest L1 cache in use
L1_REPEATS = 16
ARITHMETIC_SECONDS = 0.02


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
        for name in ("copy_stored", "copy_streamed", "merge_stored", "merge_streamed"):
            getattr(self._library, name).argtypes = [pointer, pointer, pointer, size, ctypes.c_int]
            getattr(self._library, name).restype = None
        self._exp_sums = {dtype: getattr(self._library, f"exp_sum_{dtype}") for dtype in FLOATS}
        for exp_sum in self._exp_sums.values():
            exp_sum.argtypes = [pointer, size, size]
            exp_sum.restype = ctypes.c_double
        self._self_test()

    def loops(self, problem: Problem) -> dict[str, tuple[int, Callable[[], Any]]]:
        """Return the loops to race for `problem`, each with the bytes it moves.

        The ceiling of a value is a read. That of a gradient is a copy, or where the target is as large as the logits a
        merge of two arrays into one.
        """
        logits, target, n_threads = problem.logits, problem.target, problem.n_threads
        # The bound argument holds the array, as its address alone would not; found once, as finding it costs 1 us.
        loops: dict[str, tuple[int, Callable[[], Any]]] = {
            f"read, {streams} stream{'s' * (streams > 1)}": (
                logits.nbytes,
                partial(read, logits.ctypes, logits.nbytes, n_threads),
            )
            for streams, read in self._reads.items()
        }
        if problem.case.operation == "value_and_grad":
            # In place, each line is read and written back; a fresh output is measured against warm pages on purpose.
            grad = np.zeros_like(logits) if problem.grad is None else problem.grad
            kind, other, arrays = ("merge", target, 3) if problem.case.wide_target else ("copy", None, 2)
            moved = arrays * logits.nbytes
            loops[f"{kind}, ordinary stores"] = moved, self._loop(f"{kind}_stored", grad, logits, other, n_threads)
            if self._library.has_streaming_stores():
                streaming = self._loop(f"{kind}_streamed", grad, logits, other, n_threads)
                loops[f"{kind}, streaming stores"] = moved, streaming
        return loops

    def exponentials(self, x: NDArray[Any], repeats: int) -> float:
        """Return the sum of ``exp(x)``, added up `repeats` times."""
        return float(self._exp_sums[x.dtype.name](x.ctypes, x.size, repeats))

    def _loop(
        self, name: str, to: NDArray[Any], source: NDArray[Any], other: NDArray[Any] | None, n_threads: int
    ) -> Callable[[], None]:
        other_pointer = None if other is None else other.ctypes
        return partial(getattr(self._library, name), to.ctypes, source.ctypes, other_pointer, source.nbytes, n_threads)

    def _self_test(self) -> None:
        """Check that every byte is moved: a ceiling too high is as wrong as one too low."""
        source = np.arange(10_007, dtype=np.float32)
        other = source[::-1].copy()
        words = source.nbytes // 64 * 16
        right = int(source[:words].view(np.uint64).sum(dtype=np.uint64))
        for read in self._reads.values():
            assert read(source.ctypes, source.nbytes, 2) == right
        both = source.view(np.uint32) ^ other.view(np.uint32)
        for kind in ("stored", "streamed"):
            for start in (0, 1, 5):
                to = np.zeros_like(source)
                self._loop(f"copy_{kind}", to[start:], source[start:], None, 3)()
                np.testing.assert_array_equal(to[start:], source[start:])
                self._loop(f"merge_{kind}", to[start:], source[start:], other[start:], 3)()
                np.testing.assert_array_equal(to[start:].view(np.uint32), both[start:])
        for dtype in FLOATS:
            x = np.linspace(-20, 0, 4096, dtype=dtype)
            right_sum = 2 * float(np.exp(x).sum())
            assert abs(self.exponentials(x, 2) - right_sum) <= 64 * float(np.finfo(dtype).eps) * right_sum


def elementary_times(ceiling: Ceiling | None) -> dict[str, dict[str, float]]:
    """Return nanoseconds per element of one thread, for each dtype and elementary function.

    Without a compiler the exponentials, too, are those of the package.
    """
    from fastxent.cpu.engine import elementary

    times: dict[str, dict[str, float]] = {}
    for dtype in FLOATS:
        n = L1_BYTES // 2 // np.dtype(dtype).itemsize
        fractions = np.linspace(0.001, 0.999, n, dtype=dtype)
        result = np.empty_like(fractions)
        exponents = -8 * fractions
        times[dtype] = {}
        for function in get_args(Elementary):
            call: Callable[[], Any]
            if ceiling and function == "exp":
                call = partial(ceiling.exponentials, exponents, L1_REPEATS)
            else:
                argument = exponents if function == "exp" else fractions
                call = partial(_repeat, partial(elementary, function, argument, result))
            best, end = np.inf, perf_counter() + ARITHMETIC_SECONDS
            while (begin := perf_counter()) < end:
                call()
                best = min(best, perf_counter() - begin)
            times[dtype][function] = 1e9 * best / n / L1_REPEATS
    return times


def _repeat(call: Callable[[], Any]) -> None:
    for _ in range(L1_REPEATS):
        call()


def elementary_calls(case: Case) -> dict[Elementary, float]:
    """Return how many elementary functions an element of `case` needs at least."""
    # One exponential per logit; what is needed once per row is left out.
    if not case.binary:
        return {"exp": 1}
    if case.options.get("gamma", 0.0) in (0.0, 1.0, 2.0):  # small whole powers are products
        return {"exp": 1, "log1p_of_fraction": 1}
    return {"exp": 2, "log1p_of_fraction": 1, "log": 1}


def arithmetic_ms(case: Case, times: dict[str, dict[str, float]], n_threads: int) -> float:
    """Return the milliseconds in which `n_threads` do nothing but the elementary functions of `case`."""
    # Half precision is computed in float32.
    of_dtype = times["float64" if case.dtype == "float64" else "float32"]
    per_element = sum(count * of_dtype[function] for function, count in elementary_calls(case).items())
    return case.elements * per_element / n_threads / 1e6
