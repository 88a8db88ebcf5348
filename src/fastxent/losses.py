"""The losses: frozen dataclasses whose fields are their options.

Every loss ``l`` has the same three calls::

    value             = l(logits, target, sample_weight=None)
    value, grad       = l.value_and_grad(logits, target, sample_weight=None, grad_out=None)
    value, grad, hess = l.value_grad_hess(logits, target, sample_weight=None, grad_out=None, hess_out=None)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from fastxent import _check
from fastxent.activations import balanced_class_weight
from fastxent.cpu import run

__all__ = ["CrossEntropy", "balanced_class_weight"]

Array = npt.NDArray[Any]


class _Loss(ABC):
    """The calls every loss has; a subclass is a frozen dataclass with ``_evaluate``."""

    def __call__(self, logits: npt.ArrayLike, target: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None) -> Any:
        """Return the value of the loss.

        Parameters
        ----------
        logits : array_like, float32 or float64
            Scores, with a class axis; integers, booleans and lists become float64.
        target : array_like
            Integer class indices of the shape of ``logits`` less the class axis, or probabilities (floats) of the
            shape of ``logits``.
        sample_weight : array_like or None
            Finite, >= 0; shape ``(n_samples,)`` along the first remaining axis, or the shape of the unreduced loss.

        Returns
        -------
        float or ndarray
            A Python float; with ``reduction="none"`` an array of the shape of the unreduced loss in the dtype of
            ``logits``.

        Raises
        ------
        TypeError, ValueError
            If an argument has a wrong type, or a wrong value or shape.
        """
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
        logits, target, sample_weight
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
        logits, target, sample_weight, grad_out
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

    @abstractmethod
    def _evaluate(
        self,
        logits: Any,
        target: Any,
        sample_weight: Any,
        grad_out: Any = None,
        hess_out: Any = None,
        n_derivatives: int = 0,
    ) -> tuple[Any, Array | None, Array | None]:
        """Return value, gradient and Hessian diagonal, the latter two where ``n_derivatives`` asks for them."""

    def _replace_options(self, **options: Any) -> None:
        """Store checked options in a frozen instance."""
        for name, value in options.items():
            object.__setattr__(self, name, value)

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


def _outputs(logits: Array, wanted: tuple[tuple[str, Any], ...], source: Array, **inputs: Any) -> list[Array]:
    """Return the outputs, checked or new; ``source`` is the array the user passed as logits."""
    results: list[Array] = []
    for name, out in wanted:
        if out is None:
            results.append(np.empty_like(logits, subok=False))
            continue
        _check.output(name, out, logits.shape, source.dtype)
        if name == "grad_out":
            _check.may_be_written(name, out, "logits", source)
        else:
            _check.apart(name, out, logits=source, grad_out=results[0])
        _check.apart(name, out, **inputs)
        results.append(out)
    return results


@dataclass(frozen=True, repr=False)
class CrossEntropy(_Loss):
    r"""Softmax cross-entropy of logits, with gradient and Hessian diagonal.

    For a row of logits :math:`z`, target distribution :math:`t` (one-hot for a class index), class weights :math:`w`,
    sample weight :math:`s` and label smoothing :math:`\varepsilon`, with :math:`p = \mathrm{softmax}(z)`,
    :math:`\mathrm{LSE}(z) = \log \sum_c e^{z_c}`, :math:`\tilde t = (1 - \varepsilon) t + \varepsilon / K'` and
    :math:`W = \sum_c w_c \tilde t_c`:

    .. math::

        \ell = s \sum_c w_c \tilde t_c (\mathrm{LSE}(z) - z_c), \qquad
        \frac{\partial \ell}{\partial z_c} = s (p_c W - w_c \tilde t_c), \qquad
        \frac{\partial^2 \ell}{\partial z_c^2} = s W p_c (1 - p_c)

    Parameters
    ----------
    class_weight : None, "balanced", dict or array_like of shape (n_classes,)
        :math:`w`, finite and >= 0. A dict gives ``{class: weight}``, missing classes weigh 1. ``"balanced"`` is
        ``n / (n_classes * counts)`` of each call's target, ignored rows left out; a class without samples weighs 0.
    label_smoothing : float in [0, 1], default 0.0
        :math:`\varepsilon`, spread over the :math:`K'` classes that are not masked (logit -inf).
    ignore_index : int or None, default None
        Rows with this class index do not count. With probabilities: rows whose whole mass lies on this class.
    reduction : {"mean", "sum", "none"}, default "mean"
        ``"mean"`` divides by the total weight of what was counted, :math:`\sum_i s_i \sum_c w_c t_{ic}` (before
        smoothing); nothing counted gives 0.0.
    axis : int, default -1
        The class axis of ``logits``.
    inputs : {"logits", "log_probs", "probs"}, default "logits"
        What is passed as ``logits``: with log-probabilities :math:`x` the loss is :math:`-s \sum_c w_c \tilde t_c x_c`
        (negative log-likelihood), with probabilities :math:`-s \sum_c w_c \tilde t_c \log x_c`; neither is normalized
        or clipped, and the derivatives are with respect to them.

    Raises
    ------
    TypeError, ValueError
        If an option has a wrong type or value.

    See Also
    --------
    log_softmax : with ``inputs="log_probs"`` the same in two steps.

    Notes
    -----
    It is ``torch.nn.CrossEntropyLoss`` with two differences: probabilities and class indices give the same mean for
    one-hot data, and an empty mean is 0. ``inputs="log_probs"`` is ``torch.nn.NLLLoss``; Keras'
    ``CategoricalCrossentropy`` and ``SparseCategoricalCrossentropy`` are ``inputs="probs"`` without their clipping.

    Infinities: -inf masks a class; on the target it makes the loss inf and the gradient finite. One +inf is a certain
    class. Several, nothing but -inf, or a NaN make that row NaN and no other. Rows that are ignored or weigh 0 are
    never looked at. No rows give 0.0.

    Accuracy: value within (4 + gap) eps relative for class indices, where gap is the distance of the two largest
    logits; gradient elements within (4 + max(z) - z_c) eps. Confident rows keep their digits: see the example. With
    probabilities and smoothing the bound of the gradient is relative to its terms :math:`p_c W` and
    :math:`w_c \tilde t_c` where these nearly cancel.

    Results are the same bits for any number of threads. Sums are float64.

    References
    ----------
    C. Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016 (label smoothing).
    P. Blanchard, D. J. Higham, N. J. Higham, "Accurately computing the log-sum-exp and softmax functions", IMA Journal
    of Numerical Analysis 41, 2021.

    Examples
    --------
    >>> import numpy as np
    >>> import fastxent as fx
    >>> loss = fx.CrossEntropy(label_smoothing=0.1)
    >>> loss
    CrossEntropy(label_smoothing=0.1)
    >>> value, grad = loss.value_and_grad([[2.0, 1.0, 0.1]], [0])
    >>> round(value, 6)
    0.513697
    >>> grad.round(4)
    array([[-0.2743,  0.2091,  0.0652]])

    Nearly certain, yet not 0 (others return exactly 0 here):

    >>> confident = np.array([[17.0, 0.0]], dtype=np.float32)
    >>> value, grad = fx.CrossEntropy().value_and_grad(confident, [0])
    >>> f"{value:.4e}", f"{grad[0, 0]:.4e}"
    ('4.1399e-08', '-4.1399e-08')
    """

    class_weight: Any = None
    label_smoothing: float = 0.0
    ignore_index: int | None = None
    reduction: str = "mean"
    axis: int = -1
    inputs: str = "logits"

    __hash__ = _Loss.__hash__

    def __post_init__(self) -> None:
        """Check the options once, and make them immutable."""
        self._replace_options(
            class_weight=_check.option_class_weight(self.class_weight),
            label_smoothing=_check.option_fraction("label_smoothing", self.label_smoothing),
            ignore_index=_check.option_ignore_index(self.ignore_index),
            reduction=_check.option_among("reduction", self.reduction, _check.REDUCTIONS),
            axis=_check.option_integer("axis", self.axis),
            inputs=_check.option_among("inputs", self.inputs, _check.INPUTS),
        )

    def _evaluate(
        self,
        logits: Any,
        target: Any,
        sample_weight: Any,
        grad_out: Any = None,
        hess_out: Any = None,
        n_derivatives: int = 0,
    ) -> tuple[Any, Array | None, Array | None]:
        source = _check.logits("logits", logits)
        axis = _check.axis_of(self.axis, source.ndim)
        n_classes = _check.n_classes(source, axis)
        labels = _check.target(target, source.shape, axis)
        weights = _check.sample_weight(sample_weight, source.shape[:axis] + source.shape[axis + 1 :])
        scores = _check.native(source)
        wanted = (("grad_out", grad_out), ("hess_out", hess_out))[:n_derivatives]
        results = _outputs(scores, wanted, source, target=labels, sample_weight=weights)
        # Where the engine cannot write (byte order, alignment), it writes beside.
        written = [r if r.dtype.isnative and r.flags.aligned else np.empty_like(scores) for r in results]
        class_weight = self._class_weights(labels, n_classes, axis, scores.dtype)
        value = run.cross_entropy(
            scores,
            labels,
            axis=axis,
            sample_weight=weights,
            given_weight=sample_weight,
            class_weight=class_weight,
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            inputs=self.inputs,
            grad=written[0] if n_derivatives > 0 else None,
            hess=written[1] if n_derivatives > 1 else None,
        )
        for result, work in zip(results, written, strict=True):
            if result is not work:
                result[...] = work
        grad, hess = (*results, None, None)[:2]
        return value, grad, hess

    def _class_weights(self, labels: Array, n_classes: int, axis: int, dtype: np.dtype[Any]) -> Array | None:
        """Return the class weights of one call as an array in the dtype of the logits."""
        if self.class_weight is None:
            return None
        if self.class_weight == "balanced":
            return _balanced_of_call(labels, n_classes, axis, self.ignore_index).astype(dtype)
        return _check.class_weight(self.class_weight, n_classes, dtype)


def _balanced_of_call(labels: Array, n_classes: int, axis: int, ignore_index: int | None) -> Array:
    """Balanced weights from a call's own target, ignored rows left out."""
    if labels.dtype.kind != "f":
        counted = labels if ignore_index is None else labels[labels != ignore_index]
        if ((counted < 0) | (counted >= n_classes)).any():
            _check.explain_target(labels, n_classes, ignore_index, labels.dtype)
        return balanced_class_weight(counted, n_classes)
    rows = np.moveaxis(labels, axis, -1).reshape(-1, n_classes)
    if not (np.isfinite(rows) & (rows >= 0)).all():
        _check.explain_target(labels, n_classes, ignore_index, labels.dtype)
    if ignore_index is not None and 0 <= ignore_index < n_classes:
        others = np.delete(rows, ignore_index, axis=1)
        rows = rows[(rows[:, ignore_index] == 0) | others.any(axis=1)]
    return balanced_class_weight(rows, n_classes)
