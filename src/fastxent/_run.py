"""Losses and activations on checked arrays, results out: what the CPU and the GPU have in common.

``cpu/run.py`` and ``gpu/run.py`` say what is different: the namespace of the arrays, the engine, and how its jobs become
a value.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from typing import Any

import numpy.typing as npt

from fastxent import _check
from fastxent.cpu.rows import element_views, row_views

Array = npt.NDArray[Any]


class Run(ABC):
    """One side: all that a call does once its arguments are arrays of the right types and shapes."""

    job: Any  # the engine's class of jobs

    @property
    @abstractmethod
    def xp(self) -> Any:
        """The namespace of the arrays."""

    @abstractmethod
    def evaluate(
        self,
        jobs: list[Any],
        *,
        reduction: str,
        loss: Array | None,
        outputs: tuple[Array | None, ...],
        target: Array,
        sample_weight: Array | None,
        given_weight: Any,
        expected: _check.Expected,
        blamed: str,
    ) -> Any:
        """Look at targets and weights, compute, and return the loss.

        For messages: ``given_weight`` is ``sample_weight`` as the user wrote it, ``expected`` what targets must be, and
        ``blamed`` the argument whose sum is the divisor of the mean.
        """

    @abstractmethod
    def activate(self, job: Any) -> None:
        """Compute a job that is no loss."""

    @abstractmethod
    def zero(self) -> Any:
        """Return the value of nothing."""

    @abstractmethod
    def empty_like(self, array: Array) -> Array:
        """Return a new array of the same shape, dtype and memory order."""

    @abstractmethod
    def writable(self, argument: str, out: Array) -> Array:
        """Return what the engine writes in the stead of ``out``, which it may be."""

    @abstractmethod
    def option(self, loss: Any, key: Hashable, make: Callable[[], Array]) -> Array:
        """Return the array of an option, such as class weights; ``key`` is what it depends on beside the loss."""

    @abstractmethod
    def balanced(
        self, target: Array, n_classes: int, axis: int, ignore_index: int | None, *, survey: bool = False
    ) -> Array:
        """Return balanced class weights in float64, ignored rows left out.

        With ``survey``, bad targets are raised here in any case; without, the GPU leaves that to the loss.
        """

    def softmax_loss(
        self,
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
    ) -> Any:
        """Write gradient and Hessian, where wanted, and return the loss; all arrays are checked and native."""
        none = reduction == "none"
        loss = self.xp.empty(logits.shape[:axis] + logits.shape[axis + 1 :], logits.dtype) if none else None
        if logits.size == 0:
            return self.zero() if loss is None else loss
        soft = _check.is_floating(target.dtype)
        with_classes = [logits, grad, hess, target if soft else None]
        without = [None if soft else target, sample_weight, loss]
        jobs = [
            self.job(
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
        return self.evaluate(
            jobs,
            reduction=reduction,
            loss=loss,
            outputs=(grad, hess),
            target=target,
            sample_weight=sample_weight,
            given_weight=given_weight,
            expected=(logits.shape[axis], ignore_index, logits.dtype),
            blamed="sample_weight" if sample_weight is not None else "target" if soft else "class_weight",
        )

    def binary_loss(
        self,
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
    ) -> Any:
        """Write gradient and Hessian, where wanted, and return the loss; all arrays are checked and native."""
        loss = self.xp.empty(logits.shape, logits.dtype) if reduction == "none" else None
        if logits.size == 0:
            return self.zero() if loss is None else loss
        if pos_weight is not None:
            pos_weight = self.xp.broadcast_to(pos_weight, logits.shape)
        jobs = [
            self.job(
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
        return self.evaluate(
            jobs,
            reduction=reduction,
            loss=loss,
            outputs=(grad, hess),
            target=target,
            sample_weight=sample_weight,
            given_weight=given_weight,
            expected=(None, ignore_index, logits.dtype),
            blamed="sample_weight",
        )

    def sigmoid(self, x: Array, *, out: Array, log: bool) -> None:
        """Write the sigmoid, or its logarithm, of x to out."""
        if x.size:
            for z, result in element_views([x, out]):
                self.activate(self.job("log_sigmoid" if log else "sigmoid", z, grad=result))

    def softmax(self, x: Array, *, axis: int, out: Array, log: bool) -> None:
        """Write the softmax, or its logarithm, of x to out."""
        if x.size:
            for z, result in row_views(axis, [x, out], []):
                self.activate(self.job("log_softmax" if log else "softmax", z, grad=result))

    def logsumexp(self, x: Array, *, axis: int, out: Array) -> None:
        """Write log(sum(exp(x))) along the axis to out."""
        if x.size:
            for z, result in row_views(axis, [x], [out]):
                self.activate(self.job("logsumexp", z, loss=result))
        else:
            out[...] = -float("inf")
