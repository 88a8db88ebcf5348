"""Is the answer right? Checked for every contender, on the timed arrays, before it is timed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.cases import Problem

BLOCK_ELEMENTS = 1 << 18  # blocks of rows keep the temporaries of the comparison in cache
# A peer need only have computed the same thing: it may cancel (p - 1) and sum in float32.
PEER_TOLERANCE = {"float32": 1e-4, "float64": 1e-10}


@dataclass(frozen=True)
class Answer:
    """The reference in float64: value, gradient, and the spread of each row, on which the accuracy depends."""

    value: float
    grad: NDArray[np.float64] | None
    spread: NDArray[np.float64]


@dataclass(frozen=True)
class Errors:
    """How far a contender is from the answer.

    `value` is relative; `grad` is relative to the largest element that a gradient can have, one over the number of
    rows; `grad_relative` is relative to each element, and `grad_contract` the same as a fraction of what the project
    allows itself.
    """

    value: float
    grad: float | None = None
    grad_relative: float | None = None
    grad_contract: float | None = None


def right_answer(problem: Problem) -> Answer:
    """Evaluate the definition in float64."""
    from fastxent._reference import CrossEntropy

    logits = problem.pristine.astype(np.float64)
    spread = logits.max(axis=1) - logits.min(axis=1)
    if problem.case.operation == "value":
        return Answer(float(CrossEntropy()(logits, problem.target)), None, spread)
    value, grad = CrossEntropy().value_and_grad(logits, problem.target, grad_out=logits)
    return Answer(float(value), grad, spread)


def compare(value: Any, grad: Any, answer: Answer, dtype: str) -> Errors:
    """Measure the errors of `value` and `grad`, which may be arrays of any library."""
    value_error = abs(float(value) - answer.value) / abs(answer.value)
    if answer.grad is None:
        return Errors(value_error)
    grad = np.asarray(grad)
    if grad.shape != answer.grad.shape or grad.dtype != dtype:
        return Errors(value_error, np.inf, np.inf, np.inf)
    # nan compares false with everything: np.max hands it on, Python's max might not.
    errors = np.max([_block_errors(grad[rows], answer, rows, dtype) for rows in _blocks(grad.shape)], axis=0)
    return Errors(value_error, *(float(error) for error in errors))


def complaint(errors: Errors, answer: Answer, dtype: str, *, strict: bool) -> str | None:
    """Say what is wrong with a contender, or None; `strict` holds it to the accuracy that fastxent promises."""
    if strict:
        allowed = (8 + answer.spread.max()) * np.finfo(dtype).eps
        wrong_grad = errors.grad_contract is not None and not errors.grad_contract <= 1
        grad = f"gradient is off by {errors.grad_contract} of the contract"
    else:
        allowed = PEER_TOLERANCE[dtype]
        wrong_grad = errors.grad is not None and not errors.grad <= allowed
        grad = f"gradient is off by {errors.grad} / rows"
    if not errors.value <= allowed:
        return f"value is off by {errors.value:.2e} (relative)"
    return grad if wrong_grad else None


def _blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    step = max(1, BLOCK_ELEMENTS // shape[1])
    return (slice(start, start + step) for start in range(0, shape[0], step))


def _block_errors(grad: NDArray[Any], answer: Answer, rows: slice, dtype: str) -> tuple[float, float, float]:
    assert answer.grad is not None
    right = answer.grad[rows]
    difference = np.abs(grad - right)
    absolute = difference.max() * len(answer.grad)
    difference /= np.abs(right)
    per_row = difference.max(axis=1)
    # DESIGN 2.5: (4 + |z_c - max z|) eps for a probability; the mean divides once more, the target's element is a sum.
    contract = (8 + answer.spread[rows]) * np.finfo(dtype).eps
    return absolute, per_row.max(), (per_row / contract).max()
