"""Is the answer right? Checked for every contender, on the timed arrays, before it is timed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.cases import Case, Problem, dtype_of

BLOCK_ELEMENTS = 1 << 18  # blocks of rows keep the temporaries of the comparison in cache
SAMPLED_BLOCKS = 8
# A peer need only have computed the same thing: it may cancel (p - 1) and sum in float32.
PEER_TOLERANCE = {"float32": 1e-4, "float64": 1e-10}
# Machine epsilon and smallest number of the results; half precision is computed in float32 and then rounded.
HALF = {"float16": (2.0**-10, 2.0**-24), "bfloat16": (2.0**-7, 2.0**-133)}


@dataclass(frozen=True)
class Answer:
    """The reference in float64: value, gradient, and what the promised accuracy of each row depends on.

    `allowed_eps` is broadcast against the gradient: how many eps an element may be off.
    """

    value: float
    grad: NDArray[np.float64] | None
    allowed_eps: NDArray[np.float64]
    grad_scale: float  # the largest element a gradient can have


@dataclass(frozen=True)
class Errors:
    """How far a contender is from the answer.

    `value` is relative; `grad` is relative to the largest element that a gradient can have; `grad_relative` is relative
    to each element, and `grad_contract` the same as a fraction of what the project allows itself.
    """

    value: float
    grad: float | None = None
    grad_relative: float | None = None
    grad_contract: float | None = None


def right_answer(problem: Problem) -> Answer:
    """Evaluate the definition in float64."""
    from fastxent import _reference

    case = problem.case
    logits = problem.pristine.astype(np.float64)
    # DESIGN 2.5: (4 + |z_c - max z|) eps for a probability, (4 + |z|) eps for a sigmoid, (8 + gamma (...)) eps for the
    # focal losses; the mean divides once more, the target's element is a sum, and weights multiply.
    if case.binary:
        distance = np.abs(logits)
    else:
        distance = logits.max(axis=case.axis, keepdims=True) - logits.min(axis=case.axis, keepdims=True)
    gamma = case.options.get("gamma", 0.0)
    allowed_eps = 8 + distance + gamma * (4 + distance) + (4 if case.options else 0)
    scale = 1.0 if case.options.get("reduction") == "sum" else 1 / case.rows
    target = problem.target.astype(np.float64) if case.wide_target else problem.target
    loss = case.make_loss(_reference)
    if case.operation == "value":
        return Answer(float(loss(logits, target)), None, allowed_eps, scale)
    value, grad = loss.value_and_grad(logits, target, grad_out=logits)
    return Answer(float(value), grad, allowed_eps, scale)


def compare(value: Any, grad: Any, answer: Answer, case: Case, *, every_row: bool = True) -> Errors:
    """Measure the errors of `value` and `grad`, which may be arrays of any library.

    Without `every_row` some blocks of rows speak for a long gradient; the value always stands for all.
    """
    value_error = abs(float(value) - answer.value) / abs(answer.value)
    if answer.grad is None:
        return Errors(value_error)
    grad = np.asarray(grad)
    if grad.shape != answer.grad.shape or grad.dtype != dtype_of(case.dtype):
        return Errors(value_error, np.inf, np.inf, np.inf)
    # nan compares false with everything: np.max hands it on, Python's max might not.
    blocks = list(_blocks(grad.shape))
    if not every_row:
        blocks = blocks[:: max(1, len(blocks) // SAMPLED_BLOCKS)]
    errors = np.max([_block_errors(grad[rows], answer, rows, case) for rows in blocks], axis=0)
    return Errors(value_error, *(float(error) for error in errors))


def complaint(errors: Errors, answer: Answer, case: Case, *, strict: bool) -> str | None:
    """Say what is wrong with a contender, or None; `strict` holds it to the accuracy that fastxent promises."""
    if strict:
        allowed = answer.allowed_eps.max() * np.finfo("float64" if case.dtype == "float64" else "float32").eps
        wrong_grad = errors.grad_contract is not None and not errors.grad_contract <= 1
        grad = f"gradient is off by {errors.grad_contract} of the contract"
    else:
        allowed = PEER_TOLERANCE[case.dtype]
        wrong_grad = errors.grad is not None and not errors.grad <= allowed
        grad = f"gradient is off by {errors.grad} of its largest possible element"
    if not errors.value <= allowed:
        return f"value is off by {errors.value:.2e} (relative)"
    return grad if wrong_grad else None


def _blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    step = max(1, BLOCK_ELEMENTS * shape[0] // np.prod(shape, dtype=np.int64).item())
    return (slice(start, start + step) for start in range(0, shape[0], step))


def _block_errors(grad: NDArray[Any], answer: Answer, rows: slice, case: Case) -> tuple[float, float, float]:
    assert answer.grad is not None
    right = answer.grad[rows]
    size = np.abs(right)
    difference = np.abs(grad.astype(np.float64, copy=False) - right)
    absolute = difference.max() / answer.grad_scale
    # Where two terms nearly cancel, the contract is relative to these terms.
    cancels = case.soft_target or "label_smoothing" in case.options
    contract = answer.allowed_eps[rows] * (size + (answer.grad_scale if cancels else 0))
    contract *= np.finfo("float64" if case.dtype == "float64" else "float32").eps
    if case.dtype in HALF:
        eps, smallest = HALF[case.dtype]
        contract += eps * size + smallest
    of_contract = np.divide(difference, contract, out=np.zeros_like(difference), where=difference != 0)
    np.divide(difference, size, out=difference, where=difference != 0)
    return absolute, difference.max(), of_contract.max()
