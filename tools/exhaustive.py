"""Check the elementary functions of every instruction-set level over all float32 inputs of their ranges.

exp: every x <= 0, -inf and NaN included; log1p: every finite x >= 0; log1p_of_fraction and log: every x in [0, 1]. The
truth is NumPy's float64 function, whose error of about one unit in its last place is 2e-9 eps of float32. The exit
status is 1 if a bound is exceeded.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np

from fastxent import _config
from fastxent.cpu import engine

with contextlib.suppress(ImportError):
    from tqdm import tqdm

CHUNK = 1 << 20
EPS = float(np.finfo(np.float32).eps)
TINY = float(np.finfo(np.float32).tiny)
SMALLEST_SUBNORMAL = float(np.finfo(np.float32).smallest_subnormal)


@dataclass(frozen=True)
class Function:
    """Its exact twin, its inputs as a range of float32 bit patterns, and what its results may be off by."""

    exact: np.ufunc
    first_bits: int
    last_bits: int
    largest_error: float  # in eps, of normal results
    largest_subnormal_error: float  # in units of the smallest subnormal


# The bounds are those of tests/test_engine.py. A subnormal result is rounded a second time: half a unit more.
FUNCTIONS: Mapping[str, Function] = {
    "exp": Function(np.exp, 0x80000000, 0xFF800000, 1.0, 1.0),
    "log1p": Function(np.log1p, 0x00000000, 0x7F7FFFFF, 1.5, 1.0),
    "log1p_of_fraction": Function(np.log1p, 0x00000000, 0x3F800000, 2.0, 1.0),
    "log": Function(np.log, 0x00000001, 0x3F800000, 1.5, 1.0),
}


# Where a relative error says nothing.
ENDS = [
    ("exp", np.array([0, -0.0, -np.inf, np.nan], np.float32), [1, 1, 0, np.nan]),
    ("log1p", np.array([0, np.nan], np.float32), [0, np.nan]),
    ("log1p_of_fraction", np.array([0, np.nan], np.float32), [0, np.nan]),
    ("log", np.array([0, 1, np.nan], np.float32), [-np.inf, 0, np.nan]),
]


@dataclass(frozen=True)
class Errors:
    """The worst of a set of inputs, and where."""

    worst: float = 0.0
    worst_at: float = 0.0
    subnormal: float = 0.0
    subnormal_at: float = 0.0
    n_misrounded: int = 0
    n_inputs: int = 0

    def joined(self, other: Errors) -> Errors:
        """Return the worst of both."""
        worst = max(self, other, key=lambda errors: errors.worst)
        subnormal = max(self, other, key=lambda errors: errors.subnormal)
        return Errors(
            worst.worst,
            worst.worst_at,
            subnormal.subnormal,
            subnormal.subnormal_at,
            self.n_misrounded + other.n_misrounded,
            self.n_inputs + other.n_inputs,
        )


def largest(error: np.ndarray, x: np.ndarray) -> tuple[float, float]:
    """Return the largest error, a NaN above all others, and its input."""
    if not error.size:
        return 0.0, 0.0
    error = np.where(np.isnan(error), np.inf, error)
    at = int(error.argmax())
    return float(error[at]), float(x[at])


def errors_of_chunk(name: str, first_bits: int, stop_bits: int) -> dict[str, Errors]:
    """Compare every level over the inputs whose bit patterns are ``first_bits ... stop_bits - 1``."""
    x = np.arange(first_bits, stop_bits, dtype=np.uint32).view(np.float32)
    with np.errstate(under="ignore"):
        exact = FUNCTIONS[name].exact(x, dtype=np.float64)
        rounded = exact.astype(np.float32)
    # 0 belongs to the subnormal results: exp is 0 where it underflows, log1p(0) and log(1) are.
    normal = np.abs(exact) >= TINY
    y = np.empty_like(x)
    errors = {}
    for level in _config.usable_levels():
        _config.use_level(level)
        engine.elementary(name, x, y)
        difference = np.abs(y - exact)
        worst = largest(difference[normal] / np.abs(exact[normal]) / EPS, x[normal])
        subnormal = largest(difference[~normal] / SMALLEST_SUBNORMAL, x[~normal])
        errors[level] = Errors(*worst, *subnormal, int(np.count_nonzero(y != rounded)), x.size)
    return errors


def errors_of_chunk_star(chunk: tuple[str, int, int]) -> dict[str, Errors]:
    """``errors_of_chunk(*chunk)``; a pool hands over one argument."""
    return errors_of_chunk(*chunk)


def chunks(name: str, stride: int) -> list[tuple[str, int, int]]:
    """Cut the inputs of a function into pieces, of which every `stride`-th is kept."""
    function = FUNCTIONS[name]
    stop = function.last_bits + 1
    return [(name, first, min(first + CHUNK, stop)) for first in range(function.first_bits, stop, CHUNK)][::stride]


def shown(results: Iterable[dict[str, Errors]], total: int, name: str) -> Iterator[dict[str, Errors]]:
    """Show progress if tqdm is there."""
    yield from tqdm(results, total=total, desc=name, unit=" chunks", leave=False) if "tqdm" in globals() else results


def check_ends(level: str) -> list[str]:
    """Check the ends of the ranges; return what is wrong."""
    _config.use_level(level)
    wrong = []
    for name, x, exact in ENDS:
        y = np.empty_like(x)
        engine.elementary(name, x, y)
        if not np.array_equal(y, exact, equal_nan=True):
            wrong.append(f"{name} of {x} is {y}, not {exact}")
    return wrong


def main() -> int:
    """Check all functions of all levels; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="to work with (%(default)s)")
    parser.add_argument("--stride", type=int, default=1, help="only every so many chunks of a million inputs")
    args = parser.parse_args()
    complaints = [f"{level}: {wrong}" for level in _config.usable_levels() for wrong in check_ends(level)]
    with ProcessPoolExecutor(args.processes) as pool:
        for name, function in FUNCTIONS.items():
            pieces = chunks(name, args.stride)
            totals = dict.fromkeys(_config.usable_levels(), Errors())
            for errors in shown(pool.map(errors_of_chunk_star, pieces, chunksize=4), len(pieces), name):
                totals = {level: total.joined(errors[level]) for level, total in totals.items()}
            for level, found in totals.items():
                print(
                    f"{name:<18}{level:<10}{found.n_inputs:>13,} inputs; worst {found.worst:.4f} eps at "
                    f"{found.worst_at!r} ({found.worst_at.hex()}); subnormal results {found.subnormal:.3f} of the "
                    f"smallest at {found.subnormal_at!r}; {found.n_misrounded:,} "
                    f"({found.n_misrounded / found.n_inputs:.3%}) not correctly rounded",
                    flush=True,
                )
                if not found.worst <= function.largest_error:
                    complaints.append(f"{level}: {name} is off by more than {function.largest_error} eps")
                if not found.subnormal <= function.largest_subnormal_error:
                    complaints.append(f"{level}: {name} is off by more than a unit among the subnormal results")
    print(*complaints, sep="\n", file=sys.stderr, end="\n" if complaints else "")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
