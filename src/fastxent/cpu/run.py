"""Losses and activations on NumPy arrays, through the compiled engine."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from fastxent import _check
from fastxent._run import Run
from fastxent.cpu.engine import BAD_WEIGHT, Job

Array = npt.NDArray[Any]

# Small for accuracy (their sum is wrong by less than 2 eps), large for memory: the first sums take an eighth of the rows'.
_ROWS_PER_SUM = 8


class CpuRun(Run):
    """Values are Python floats; what is wrong in targets and weights is raised before anything is written."""

    xp: Any = np
    job = Job

    def evaluate(
        self,
        jobs: list[Job],
        *,
        reduction: str,
        loss: Array | None,
        outputs: tuple[Array | None, ...],
        target: Array,
        sample_weight: Array | None,
        given_weight: Any,
        expected: _check.Expected,
        blamed: str,
    ) -> Array | float:
        """Look at all targets and weights, raise what is wrong with them, and only then compute.

        The reduction "weight" computes nothing, and returns the divisor of the mean.
        """
        divisor, flaws = 0.0, 0
        for job in jobs:
            part, flaw = job.survey()
            divisor += part
            flaws |= flaw
        if flaws & BAD_WEIGHT:
            _check.explain_sample_weight(given_weight)
        if flaws:
            _check.explain_target(target, *expected)
        if reduction in ("mean", "weight") and not isfinite(divisor):
            _check.fail(ValueError, blamed, _check.FINITE_SUM, divisor)
        if reduction == "weight":
            return divisor
        if reduction == "mean" and divisor == 0:
            for out in outputs:
                if out is not None:
                    out[...] = 0
            return 0.0
        if reduction != "mean":
            divisor = 1.0
        total = sum(job.compute(divisor) for job in jobs)
        return total / divisor if loss is None else loss

    def activate(self, job: Job) -> None:
        """Compute a job that is no loss."""
        job.compute(1.0)

    def zero(self) -> float:
        """Return the value of nothing."""
        return 0.0

    def empty_like(self, array: Array) -> Array:
        """Return a new array of the same shape, dtype and memory order."""
        return np.empty_like(array, subok=False)

    def writable(self, argument: str, out: Array) -> Array:
        """Return what the engine writes: another array where byte order or alignment is not the machine's."""
        if out.dtype.isnative and out.flags.aligned:
            return out
        return np.empty_like(out, out.dtype.newbyteorder("="), subok=False)

    def option(self, loss: Any, key: Hashable, make: Callable[[], Array]) -> Array:
        """Return the array of an option."""
        return make()

    def balanced(
        self, target: Array, n_classes: int, axis: int, ignore_index: int | None, *, survey: bool = False
    ) -> Array:
        """Return balanced class weights in float64, ignored rows left out."""
        return self.inverse(self.counts(target, n_classes, axis, ignore_index))

    def counts(self, target: Array, n_classes: int, axis: int, ignore_index: int | None) -> Array:
        """Return the rows, or the mass, of each class."""
        if not _check.is_floating(target.dtype):
            counted = target if ignore_index is None else target[target != ignore_index]
            if ((counted < 0) | (counted >= n_classes)).any():
                _check.explain_target(target, n_classes, ignore_index, target.dtype)
            return np.bincount(counted.reshape(-1).astype(np.intp, copy=False), minlength=n_classes)
        rows = np.moveaxis(target, axis, -1).reshape(-1, n_classes).astype(np.float64)
        if not (np.isfinite(rows) & (rows >= 0)).all():
            _check.explain_target(target, n_classes, ignore_index, target.dtype)
        if ignore_index is not None and 0 <= ignore_index < n_classes:
            others = np.delete(rows, ignore_index, axis=1)
            rows = rows[(rows[:, ignore_index] == 0) | others.any(axis=1)]
        return sum_of_rows(rows)

    def inverse(self, counts: Array) -> Array:
        """Return n / (n_classes * counts), 0 for an empty class."""
        masses = np.asarray(counts, np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(masses > 0, masses.sum() / (len(masses) * masses), 0.0)


def sum_of_rows(rows: Array) -> npt.NDArray[np.float64]:
    """Return the column sums, a few rows at a time: NumPy's own sum adds one after the other, and loses log(n) digits."""
    while len(rows) > 1:
        step = -(-len(rows) // _ROWS_PER_SUM)
        sums = rows[:step].astype(np.float64)
        for first in range(step, len(rows), step):
            part = rows[first : first + step]
            sums[: len(part)] += part
        rows = sums
    total: npt.NDArray[np.float64] = rows.sum(axis=0, dtype=np.float64)
    return total


run: CpuRun = CpuRun()
