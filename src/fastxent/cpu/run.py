"""Losses and activations on NumPy arrays: checked arrays in, results out, through the engine."""

from __future__ import annotations

from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from fastxent import _check
from fastxent.cpu.engine import BAD_WEIGHT, Job
from fastxent.cpu.rows import row_views

Array = npt.NDArray[Any]


def cross_entropy(
    logits: Array,
    target: Array,
    *,
    axis: int,
    sample_weight: Array | None,
    given_weight: Any,
    class_weight: Array | None,
    label_smoothing: float,
    ignore_index: int | None,
    reduction: str,
    inputs: str,
    grad: Array | None,
    hess: Array | None,
) -> Array | float:
    """Write gradient and Hessian, where wanted, and return the loss.

    All arrays are checked and native; ``given_weight`` is ``sample_weight`` as the user wrote it, for messages.
    """
    none = reduction == "none"
    loss = np.empty(logits.shape[:axis] + logits.shape[axis + 1 :], logits.dtype) if none else None
    if logits.size == 0:
        return 0.0 if loss is None else loss
    soft = target.dtype.kind == "f"
    with_classes = [logits, grad, hess, target if soft else None]
    without = [None if soft else target, sample_weight, loss]
    jobs = [
        Job(
            "cross_entropy",
            z,
            grad=g,
            hess=h,
            loss=losses,
            target=probabilities if soft else labels,
            sample_weight=weights,
            class_weight=class_weight,
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
            inputs=inputs,
        )
        for z, g, h, probabilities, labels, weights, losses in row_views(axis, with_classes, without)
    ]
    divisor, flaws = 0.0, 0
    for job in jobs:
        part, flaw = job.survey()
        divisor += part
        flaws |= flaw
    if flaws & BAD_WEIGHT:
        _check.explain_sample_weight(given_weight)
    if flaws:
        _check.explain_target(target, logits.shape[axis], ignore_index, logits.dtype)
    if reduction == "mean" and not isfinite(divisor):
        blamed = "sample_weight" if sample_weight is not None else "target" if soft else "class_weight"
        _check.fail(ValueError, blamed, "have a finite sum", divisor)
    if reduction == "mean" and divisor == 0:
        for out in (grad, hess):
            if out is not None:
                out[...] = 0
        return 0.0
    if reduction != "mean":
        divisor = 1.0
    total = sum(job.compute(divisor) for job in jobs)
    return total / divisor if loss is None else loss


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


def balanced(counts: Array) -> npt.NDArray[np.float64]:
    """Return n / (n_classes * counts), 0 for an empty class."""
    masses = np.asarray(counts, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(masses > 0, masses.sum() / (len(masses) * masses), 0.0)
