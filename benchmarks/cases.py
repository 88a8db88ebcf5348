"""What is measured: one table of cases, chosen before anything was measured, and the arrays of a case."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

LOGIT_SCALE = 3.0  # normal logits of a trained model: confident, not saturated
SEED = 20240229


@dataclass(frozen=True)
class Case:
    """One row of the benchmark: a shape, a dtype and what is asked for.

    `operation` is ``"value"`` or ``"value_and_grad"``; `output` says where the gradient goes: ``"grad_out"`` (a buffer
    of the caller), ``"fresh"`` (a new array at every call) or ``"in_place"`` (over the logits).
    """

    rows: int
    classes: int
    dtype: str
    operation: str = "value_and_grad"
    output: str = "grad_out"
    judged: bool = False  # one of the cases for which the project promises a ratio
    quick: bool = False  # also part of ``--quick``
    yardstick: bool = False  # so small that the call itself is the cost: shown beside one ``np.add``

    @property
    def shape(self) -> str:
        """Rows and classes, ``"200000x10"``."""
        return f"{self.rows}x{self.classes}"

    @property
    def what(self) -> str:
        """The operation in words."""
        if self.operation == "value":
            return "value"
        return "value+grad" if self.output == "grad_out" else f"value+grad {self.output.replace('_', ' ')}"

    @property
    def name(self) -> str:
        """Shape, dtype and operation, ``"200000x10 float32 value+grad"``."""
        return f"{self.shape} {self.dtype} {self.what}"

    @property
    def array_bytes(self) -> int:
        """Bytes of the logits (and of the gradient)."""
        return self.rows * self.classes * np.dtype(self.dtype).itemsize

    @property
    def bytes_moved(self) -> int:
        """Bytes that any implementation must move between memory and the cores."""
        # I/O: read logits + target, write grad
        read = self.array_bytes + self.rows * np.dtype(np.int64).itemsize
        return read if self.operation == "value" else read + self.array_bytes


SHAPES = [
    (200_000, 2),
    (200_000, 3),
    (200_000, 10),
    (65_536, 32),
    (65_536, 100),
    (16_384, 1_000),
    (1_024, 32_000),
    (256, 128_000),
]
QUICK_SHAPES = {(200_000, 3), (200_000, 10), (65_536, 100), (16_384, 1_000)}

CASES = [
    *(
        Case(rows, classes, dtype, judged=True, quick=dtype == "float32" and (rows, classes) in QUICK_SHAPES)
        for rows, classes in SHAPES
        for dtype in ("float32", "float64")
    ),
    *(
        Case(rows, classes, dtype, operation="value")
        for rows, classes in [(200_000, 3), (200_000, 10), (65_536, 100), (1_024, 32_000)]
        for dtype in ("float32",)
    ),
    *(
        Case(rows, classes, "float32", output=output)
        for rows, classes in [(200_000, 10), (65_536, 100), (16_384, 1_000)]
        for output in ("fresh", "in_place")
    ),
    Case(32, 10, "float32", quick=True, yardstick=True),
    Case(32, 10, "float64", yardstick=True),
]


@dataclass
class Problem:
    """The arrays of a case, as every contender gets them.

    `grad` is the buffer for the gradient: None when each call shall make its own, and `logits` itself when the
    gradient is written over them. Then `restore` puts the logits back, outside the timing.
    """

    case: Case
    n_threads: int
    logits: NDArray[Any]
    target: NDArray[np.int64]
    grad: NDArray[Any] | None
    pristine: NDArray[Any] = field(repr=False)

    @property
    def in_place(self) -> bool:
        """Whether the gradient overwrites the logits."""
        return self.grad is self.logits

    def restore(self) -> None:
        """Undo what an in-place call did to the logits."""
        if self.in_place:
            np.copyto(self.logits, self.pristine)


def make_problem(case: Case, n_threads: int) -> Problem:
    """Draw the arrays of `case`: the same numbers for the same shape, in every run."""
    rng = np.random.default_rng([SEED, case.rows, case.classes])
    pristine = rng.standard_normal((case.rows, case.classes), dtype=np.float32).astype(case.dtype)
    pristine *= LOGIT_SCALE
    target = rng.integers(0, case.classes, size=case.rows)
    logits = pristine.copy() if case.output == "in_place" else pristine
    if case.operation == "value" or case.output == "fresh":
        grad = None
    else:
        # Written once, so that no contender pays for the first touch of its pages.
        grad = logits if case.output == "in_place" else np.zeros_like(logits)
    return Problem(case, n_threads, logits, target, grad, pristine)
