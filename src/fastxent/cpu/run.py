"""Losses and activations on NumPy arrays: checked arrays in, results out, through the engine."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from fastxent import _check
from fastxent.cpu.engine import BAD_WEIGHT, Job
from fastxent.cpu.rows import element_views, row_views

Array = npt.NDArray[Any]

# Small for accuracy (their sum is wrong by less than 2 eps), large for memory: the first sums take an eighth of the rows'.
_ROWS_PER_SUM = 8


def evaluate(
    jobs: list[Job],
    *,
    reduction: str,
    loss: Array | None,
    outputs: tuple[Array | None, ...],
    given_weight: Any,
    explain_target: Callable[[], NoReturn],
    blamed: str,
) -> Array | float:
    """Look at all targets and weights, raise what is wrong with them, and only then compute.

    ``given_weight`` is ``sample_weight`` as the user wrote it, for messages; ``blamed`` the argument whose sum is the
    divisor of the mean.
    """
    divisor, flaws = 0.0, 0
    for job in jobs:
        part, flaw = job.survey()
        divisor += part
        flaws |= flaw
    if flaws & BAD_WEIGHT:
        _check.explain_sample_weight(given_weight)
    if flaws:
        explain_target()
    if reduction == "mean" and not isfinite(divisor):
        _check.fail(ValueError, blamed, "have a finite sum", divisor)
    if reduction == "mean" and divisor == 0:
        for out in outputs:
            if out is not None:
                out[...] = 0
        return 0.0
    if reduction != "mean":
        divisor = 1.0
    total = sum(job.compute(divisor) for job in jobs)
    return total / divisor if loss is None else loss


def softmax_loss(
    task: str,
    logits: Array,
    target: Array,
    *,
    axis: int,
    sample_weight: Array | None,
    given_weight: Any,
    reduction: str,
    grad: Array | None,
    hess: Array | None,
    class_weight: Array | None,
    ignore_index: int | None,
    **options: Any,
) -> Array | float:
    """Write gradient and Hessian, where wanted, and return the loss; all arrays are checked and native."""
    none = reduction == "none"
    loss = np.empty(logits.shape[:axis] + logits.shape[axis + 1 :], logits.dtype) if none else None
    if logits.size == 0:
        return 0.0 if loss is None else loss
    soft = _check.is_floating(target.dtype)
    with_classes = [logits, grad, hess, target if soft else None]
    without = [None if soft else target, sample_weight, loss]
    jobs = [
        Job(
            task,
            z,
            grad=g,
            hess=h,
            loss=losses,
            target=probabilities if soft else labels,
            sample_weight=weights,
            class_weight=class_weight,
            ignore_index=ignore_index,
            **options,
        )
        for z, g, h, probabilities, labels, weights, losses in row_views(axis, with_classes, without)
    ]
    return evaluate(
        jobs,
        reduction=reduction,
        loss=loss,
        outputs=(grad, hess),
        given_weight=given_weight,
        explain_target=lambda: _check.explain_target(target, logits.shape[axis], ignore_index, logits.dtype),
        blamed="sample_weight" if sample_weight is not None else "target" if soft else "class_weight",
    )


def binary_loss(
    task: str,
    logits: Array,
    target: Array,
    *,
    sample_weight: Array | None,
    given_weight: Any,
    reduction: str,
    grad: Array | None,
    hess: Array | None,
    ignore_index: int | None,
    pos_weight: Array | None = None,
    **options: Any,
) -> Array | float:
    """Write gradient and Hessian, where wanted, and return the loss; all arrays are checked, native and of one shape."""
    loss = np.empty(logits.shape, logits.dtype) if reduction == "none" else None
    if logits.size == 0:
        return 0.0 if loss is None else loss
    jobs = [
        Job(
            task,
            z,
            grad=g,
            hess=h,
            loss=losses,
            target=targets,
            sample_weight=weights,
            pos_weight=positive,
            ignore_index=ignore_index,
            **options,
        )
        for z, g, h, targets, weights, positive, losses in element_views(
            [logits, grad, hess, target, sample_weight, pos_weight, loss]
        )
    ]
    return evaluate(
        jobs,
        reduction=reduction,
        loss=loss,
        outputs=(grad, hess),
        given_weight=given_weight,
        explain_target=lambda: _check.explain_binary_target(target, ignore_index),
        blamed="sample_weight",
    )


def sigmoid(x: Array, *, out: Array, log: bool) -> None:
    """Write the sigmoid, or its logarithm, of x to out."""
    if x.size:
        for z, result in element_views([x, out]):
            Job("log_sigmoid" if log else "sigmoid", z, grad=result).compute(1.0)


def softmax(x: Array, *, axis: int, out: Array, log: bool) -> None:
    """Write the softmax, or its logarithm, of x to out."""
    if x.size:
        for z, result in row_views(axis, [x, out], []):
            Job("log_softmax" if log else "softmax", z, grad=result).compute(1.0)


def logsumexp(x: Array, *, axis: int, out: Array) -> None:
    """Write log(sum(exp(x))) along the axis to out."""
    if x.size:
        for z, result in row_views(axis, [x], [out]):
            Job("logsumexp", z, loss=result).compute(1.0)
    else:
        out[...] = -np.inf


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


def balanced(counts: Array) -> npt.NDArray[np.float64]:
    """Return n / (n_classes * counts), 0 for an empty class."""
    masses = np.asarray(counts, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(masses > 0, masses.sum() / (len(masses) * masses), 0.0)
