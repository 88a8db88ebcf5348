"""What all losses share: the three calls, and how arrays become results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fastxent import _check, _dispatch
from fastxent._run import Run
from fastxent.cpu.engine import Everyday
from fastxent.cpu.run import run as run_on_cpu

Array = npt.NDArray[Any]
_NUMPY = np.ndarray


class Loss(ABC):
    """The calls every loss has; a subclass is a frozen dataclass with ``_evaluate``."""

    def __call__(self, logits: npt.ArrayLike, target: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None) -> Any:
        """Return the value of the loss.

        Parameters
        ----------
        logits : array_like, float16, bfloat16, float32 or float64
            Scores; integers, booleans and lists become float64. The softmax losses want a class axis, the binary ones
            take any shape.
        target : array_like
            Softmax losses: integer class indices of the shape of ``logits`` less the class axis, or probabilities
            (floats) of the shape of ``logits``. Binary losses: the shape of ``logits``, integers, booleans or floats in
            [0, 1].
        sample_weight : array_like or None
            Finite, >= 0; shape ``(n_samples,)`` along the first axis of the unreduced loss, or the shape of that.

        Returns
        -------
        float or ndarray
            A Python float; with ``reduction="none"`` an array of the shape of the unreduced loss in the dtype of
            ``logits``. Of CuPy arrays, a CuPy array in either case.

        Raises
        ------
        TypeError, ValueError
            If an argument has a wrong type, or a wrong value or shape.
        """
        if sample_weight is None and self._everyday is not None:
            value = self._everyday.value(logits, target)
            if value is not None:
                return value
        return self._evaluate(logits, target, sample_weight)[0]

    def value_and_grad(
        self,
        logits: npt.ArrayLike,
        target: npt.ArrayLike,
        sample_weight: npt.ArrayLike | None = None,
        grad_out: Array | None = None,
    ) -> tuple[Any, Array]:
        """Return the value and its gradient with respect to ``logits``, from one pass.

        Parameters
        ----------
        logits, target, sample_weight : array_like
            As for the value.
        grad_out : ndarray or None
            Where the gradient is written: writable, shape and dtype of ``logits``. It may be ``logits`` itself, which
            is then lost. None allocates an array in the memory order of ``logits``.

        Returns
        -------
        value : float or ndarray
            As above.
        grad : ndarray
            ``grad_out``, or the new array; the gradient of the reduced value, with ``reduction="none"`` of each
            element's own loss.

        Raises
        ------
        TypeError, ValueError
            Before anything is written.
        """
        if sample_weight is None and self._everyday is not None:
            results = self._everyday.value_and_grad(logits, target, grad_out)
            if results is not None:
                return results
        value, grad, _ = self._evaluate(logits, target, sample_weight, grad_out, n_derivatives=1)
        assert grad is not None
        return value, grad

    def value_grad_hess(
        self,
        logits: npt.ArrayLike,
        target: npt.ArrayLike,
        sample_weight: npt.ArrayLike | None = None,
        grad_out: Array | None = None,
        hess_out: Array | None = None,
    ) -> tuple[Any, Array, Array]:
        """Return the value, its gradient and the diagonal of its Hessian, from one pass.

        Parameters
        ----------
        logits, target, sample_weight, grad_out : array_like
            As for ``value_and_grad``.
        hess_out : ndarray or None
            Where the Hessian diagonal is written: writable, shape and dtype of ``logits``, apart from all other
            arrays.

        Returns
        -------
        value : float or ndarray
            As above.
        grad, hess : ndarray
            ``grad_out`` and ``hess_out``, or new arrays.

        Raises
        ------
        TypeError, ValueError
            Before anything is written.
        """
        value, grad, hess = self._evaluate(logits, target, sample_weight, grad_out, hess_out, n_derivatives=2)
        assert grad is not None
        assert hess is not None
        return value, grad, hess

    label_smoothing: float
    ignore_index: int | None
    reduction: str
    _least_ndim: ClassVar[int]
    # The short way of the engine for plain arrays without weights; None where the options rule it out.
    _everyday: Everyday | None

    def _evaluate(
        self,
        logits: Any,
        target: Any,
        sample_weight: Any,
        grad_out: Any = None,
        hess_out: Any = None,
        n_derivatives: int = 0,
        run: Run | None = None,
    ) -> tuple[Any, Array | None, Array | None]:
        """Return value, gradient and Hessian diagonal, the latter two where ``n_derivatives`` asks for them."""
        if run is None:
            # The CPU in line: calls on small arrays cost what Python costs.
            if not (
                (type(logits) is _NUMPY or type(logits) is list)
                and (type(target) is _NUMPY or type(target) is list)
                and (sample_weight is None or type(sample_weight) is _NUMPY)
                and (grad_out is None or type(grad_out) is _NUMPY)
                and (hess_out is None or type(hess_out) is _NUMPY)
            ):
                return _dispatch.call(
                    lambda run: self._evaluate(logits, target, sample_weight, grad_out, hess_out, n_derivatives, run),
                    logits=logits,
                    target=target,
                    sample_weight=sample_weight,
                    grad_out=grad_out,
                    hess_out=hess_out,
                )
            run = run_on_cpu
        source = _check.logits("logits", logits, least_ndim=self._least_ndim, xp=run.xp)
        targets, weights = self._checked(run, source, target, sample_weight)
        scores = _check.native("logits", source)
        outputs = Outputs(run, scores, source, grad_out, hess_out, n_derivatives, target=targets, sample_weight=weights)
        value = self._computed(
            run,
            scores,
            targets,
            sample_weight=weights,
            given_weight=sample_weight,
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            grad=outputs.grad,
            hess=outputs.hess,
        )
        return outputs.with_value(value)

    def _total_weight(self, logits: Array, target: Any, sample_weight: Any) -> float:
        """Check all targets and weights, and return the divisor of the mean; of the logits, shape and dtype matter."""
        targets, weights = self._checked(run_on_cpu, logits, target, sample_weight)
        weight: float = self._computed(
            run_on_cpu,
            logits,
            targets,
            sample_weight=weights,
            given_weight=sample_weight,
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
            reduction="weight",
            grad=None,
            hess=None,
        )
        return weight

    @abstractmethod
    def _checked(self, run: Run, logits: Array, target: Any, sample_weight: Any) -> tuple[Array, Array | None]:
        """Return target and sample weights as arrays of the right shape."""

    @abstractmethod
    def _computed(self, run: Run, logits: Array, target: Array, **arguments: Any) -> Any:
        """Have the engine write gradient and Hessian, and return the value."""

    @abstractmethod
    def _task(self) -> tuple[str, dict[str, Any]]:
        """Return the name of the engine's task and its own options."""

    def _replace_options(self, **options: Any) -> None:
        """Store checked options in a frozen instance."""
        for name, value in options.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_everyday", self._everyday_call())

    @abstractmethod
    def _everyday_call(self) -> Everyday | None:
        """Return the short way, if these options have one."""

    def _short_way(self, task: str, **options: Any) -> Everyday:
        return Everyday(
            task,
            np.ndarray,
            np.empty_like,
            mean=self.reduction == "mean",
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
            **options,
        )

    def __hash__(self) -> int:
        values = (getattr(self, f.name) for f in fields(self))  # type: ignore[arg-type]
        return hash((type(self), *(tuple(sorted(v.items())) if isinstance(v, Mapping) else v for v in values)))

    def __repr__(self) -> str:
        options = []
        for f in fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if value != f.default:
                options.append(f"{f.name}={dict(value) if isinstance(value, Mapping) else value!r}")
        return f"{type(self).__name__}({', '.join(options)})"

    def __reduce__(self) -> tuple[Any, ...]:
        values = (getattr(self, f.name) for f in fields(self))  # type: ignore[arg-type]
        return type(self), tuple(dict(v) if isinstance(v, Mapping) else v for v in values)


class Outputs:
    """The arrays the gradient and the Hessian go to: the user's or new ones, and what the engine writes in their stead."""

    def __init__(
        self, run: Run, scores: Array, source: Array, grad_out: Any, hess_out: Any, n_derivatives: int, **inputs: Any
    ):
        """Check or make them; ``source`` is the array the user passed as logits, ``inputs`` what they must not overlap."""
        self.results: list[Array] = []
        self._written: list[Array] = []
        for name, out in (("grad_out", grad_out), ("hess_out", hess_out))[:n_derivatives]:
            if out is None:
                self.results.append(run.empty_like(scores))
                self._written.append(self.results[-1])
                continue
            _check.output(name, out, scores.shape, source.dtype, run.xp)
            if name == "grad_out":
                _check.may_be_written(name, out, "logits", source)
            else:
                _check.apart(name, out, logits=source, grad_out=self.results[0])
            _check.apart(name, out, **inputs)
            self.results.append(out)
            self._written.append(run.writable(name, out))
        # Kernels are chosen by the layout of all arrays; that of the Hessian must not change a bit of the gradient.
        if n_derivatives == 2 and _lies_otherwise(self._written[1], self._written[0]):
            self._written[1] = run.empty_like(self._written[0])
        self.grad, self.hess = (*self._written, None, None)[:2]

    def with_value(self, value: Any) -> tuple[Any, Array | None, Array | None]:
        """Return the value with the finished results."""
        for result, written in zip(self.results, self._written, strict=True):
            if result is not written:
                result[...] = written
        grad, hess = (*self.results, None, None)[:2]
        return value, grad, hess


def _lies_otherwise(hess: Array, grad: Array) -> bool:
    """Whether the Hessian has gaps along an axis along which the gradient has none."""
    step = grad.itemsize
    return any(n > 1 and a == step != b for n, a, b in zip(grad.shape, grad.strides, hess.strides, strict=True))


class SoftmaxLoss(Loss):
    """A loss along a class axis."""

    class_weight: Any
    axis: int
    _least_ndim = 1

    def _everyday_call(self) -> Everyday | None:
        if self.class_weight is not None or self.reduction == "none" or self.axis not in (-1, 1):
            return None
        task, options = self._task()
        return self._short_way(task, **options)

    def _checked(self, run: Run, logits: Array, target: Any, sample_weight: Any) -> tuple[Array, Array | None]:
        axis = _check.axis_of(self.axis, logits.ndim)
        _check.n_classes(logits, axis)
        labels = _check.target(target, logits.shape, axis, run.xp)
        return labels, _check.sample_weight(sample_weight, logits.shape[:axis] + logits.shape[axis + 1 :], run.xp)

    def _computed(self, run: Run, logits: Array, target: Array, **arguments: Any) -> Any:
        axis = _check.axis_of(self.axis, logits.ndim)
        class_weight = self._class_weights(run, target, logits.shape[axis], axis, _check.arithmetic(logits.dtype))
        task, options = self._task()
        return run.softmax_loss(task, logits, target, axis=axis, class_weight=class_weight, **options, **arguments)

    def _class_weights(self, run: Run, labels: Array, n_classes: int, axis: int, dtype: np.dtype[Any]) -> Array | None:
        """Return the class weights of one call as an array in the dtype of the arithmetic."""
        if self.class_weight is None:
            return None
        if self.class_weight == "balanced":
            return run.balanced(labels, n_classes, axis, self.ignore_index).astype(dtype)
        return run.option(self, (n_classes, dtype), lambda: _check.class_weight(self.class_weight, n_classes, dtype))


class BinaryLoss(Loss):
    """A loss of every element by itself."""

    pos_weight: Any = None  # a focal loss has none
    _least_ndim = 0

    def _everyday_call(self) -> Everyday | None:
        if self.pos_weight is not None or self.reduction == "none":
            return None
        task, options = self._task()
        return self._short_way(task, **options)

    def _checked(self, run: Run, logits: Array, target: Any, sample_weight: Any) -> tuple[Array, Array | None]:
        shape = logits.shape
        return _check.binary_target(target, shape, run.xp), _check.sample_weight(sample_weight, shape, run.xp)

    def _computed(self, run: Run, logits: Array, target: Array, **arguments: Any) -> Any:
        task, options = self._task()
        if self.pos_weight is not None:
            shape, dtype = logits.shape, _check.arithmetic(logits.dtype)
            options["pos_weight"] = run.option(
                self, (shape[-1:], dtype), lambda: _check.pos_weight(self.pos_weight, shape, dtype)
            )
        return run.binary_loss(task, logits, target, **options, **arguments)
