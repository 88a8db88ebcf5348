"""softmax, log_softmax and logsumexp along any axis, and balanced class weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fastxent import _check, _dispatch
from fastxent._run import Run
from fastxent.cpu.run import run as run_on_cpu

__all__ = ["balanced_class_weight", "log_sigmoid", "log_softmax", "logsumexp", "sigmoid", "softmax"]

Array = npt.NDArray[Any]


def _activation(
    x: Any, out: Any, least_ndim: int, write: Callable[[Run, Array, Array], None], run: Run | None = None
) -> Array:
    """Check x and out, and have ``write`` fill the result."""
    if run is None:
        if not (type(x) is np.ndarray and (out is None or type(out) is np.ndarray)):
            return _dispatch.call(lambda run: _activation(x, out, least_ndim, write, run), x=x, out=out)
        run = run_on_cpu
    source = _check.logits("x", x, least_ndim=least_ndim, xp=run.xp)
    scores = _check.native("x", source)
    if out is None:
        result = written = run.empty_like(scores)
    else:
        result = _check.output("out", out, source.shape, source.dtype, run.xp)
        _check.may_be_written("out", result, "x", source)
        written = run.writable("out", result)
    write(run, scores, written)
    if written is not result:
        result[...] = written
    return result


def _softmax(x: Any, axis: Any, out: Any, log: bool) -> Array:
    number = _check.option_integer("axis", axis)
    assert number is not None

    def write(run: Run, scores: Array, written: Array) -> None:
        run.softmax(scores, axis=_check.axis_of(number, scores.ndim), out=written, log=log)

    return _activation(x, out, 1, write)


def _sigmoid(x: Any, out: Any, log: bool) -> Any:
    result = _activation(x, out, 0, lambda run, scores, written: run.sigmoid(scores, out=written, log=log))
    return result[()] if out is None else result


def softmax(x: npt.ArrayLike, *, axis: int = -1, out: Array | None = None) -> Array:
    r"""Softmax along an axis.

    :math:`p_c = e^{x_c} / \sum_j e^{x_j}`

    Parameters
    ----------
    x : array_like, float16, bfloat16, float32 or float64
        Any shape of at least one axis; integers, booleans and lists become float64.
    axis : int, default -1
        The axis whose elements sum to 1.
    out : ndarray or None
        Where the result is written: writable, shape and dtype of ``x``; may be ``x`` itself.

    Returns
    -------
    ndarray
        ``out``, or a new array in the memory order of ``x``.

    Raises
    ------
    TypeError, ValueError
        If an argument has a wrong type, or a wrong value or shape; before anything is written.

    See Also
    --------
    log_softmax : its logarithm, without underflow.

    Notes
    -----
    One +inf gives a one-hot row; several, nothing but -inf, or a NaN make that row NaN. Elements are within
    (4 + max(x) - x_c) eps relative.

    References
    ----------
    P. Blanchard, D. J. Higham, N. J. Higham, "Accurately computing the log-sum-exp and softmax functions", 2021.

    Examples
    --------
    >>> import fastxent as fx
    >>> fx.softmax([2.0, 1.0, 0.1]).round(4)
    array([0.659 , 0.2424, 0.0986])
    """
    return _softmax(x, axis, out, log=False)


def log_softmax(x: npt.ArrayLike, *, axis: int = -1, out: Array | None = None) -> Array:
    r"""Logarithm of the softmax along an axis.

    :math:`\log p_c = x_c - \log \sum_j e^{x_j}`

    Parameters
    ----------
    x : array_like, float16, bfloat16, float32 or float64
        Any shape of at least one axis; integers, booleans and lists become float64.
    axis : int, default -1
        The class axis.
    out : ndarray or None
        Where the result is written: writable, shape and dtype of ``x``; may be ``x`` itself.

    Returns
    -------
    ndarray
        ``out``, or a new array in the memory order of ``x``.

    Raises
    ------
    TypeError, ValueError
        If an argument has a wrong type, or a wrong value or shape; before anything is written.

    See Also
    --------
    softmax : its exponential.
    CrossEntropy : the loss of these, ``inputs="log_probs"``.

    Notes
    -----
    Every element keeps its relative precision, that of the largest too, where ``scipy.special.log_softmax`` returns 0
    (last example). One +inf gives 0 there and -inf elsewhere; several, nothing but -inf, or a NaN make the row NaN.

    References
    ----------
    P. Blanchard, D. J. Higham, N. J. Higham, "Accurately computing the log-sum-exp and softmax functions", 2021.

    Examples
    --------
    >>> import numpy as np
    >>> import fastxent as fx
    >>> fx.log_softmax([1000.0, 1.0])
    array([   0., -999.])
    >>> print(fx.log_softmax(np.array([20.0, 0.0], dtype=np.float32)))
    [-2.0611537e-09 -2.0000000e+01]
    """
    return _softmax(x, axis, out, log=True)


def logsumexp(x: npt.ArrayLike, *, axis: int = -1) -> Any:
    r"""Logarithm of the sum of exponentials along an axis.

    :math:`\log \sum_j e^{x_j}`

    Parameters
    ----------
    x : array_like, float16, bfloat16, float32 or float64
        Any shape of at least one axis; integers, booleans and lists become float64.
    axis : int, default -1
        The axis to sum along.

    Returns
    -------
    ndarray or scalar
        The shape of ``x`` less the axis, in its dtype.

    Raises
    ------
    TypeError, ValueError
        If an argument has a wrong type, or a wrong value or shape.

    See Also
    --------
    log_softmax : x less this.

    Notes
    -----
    The limits at infinity: any +inf gives inf, nothing but -inf (or no elements at all) -inf, a NaN NaN.

    References
    ----------
    P. Blanchard, D. J. Higham, N. J. Higham, "Accurately computing the log-sum-exp and softmax functions", 2021.

    Examples
    --------
    >>> import fastxent as fx
    >>> float(fx.logsumexp([1000.0, 1000.0])).__round__(4)
    1000.6931
    """
    number = _check.option_integer("axis", axis)
    assert number is not None

    def compute(run: Run) -> Any:
        scores = _check.native("x", _check.logits("x", x, xp=run.xp))
        position = _check.axis_of(number, scores.ndim)
        out = run.xp.empty(scores.shape[:position] + scores.shape[position + 1 :], scores.dtype)
        run.logsumexp(scores, axis=position, out=out)
        return out[()]

    return compute(run_on_cpu) if type(x) is np.ndarray else _dispatch.call(compute, x=x)


def sigmoid(x: npt.ArrayLike, *, out: Array | None = None) -> Any:
    r"""Sigmoid, element by element.

    :math:`\sigma(x) = 1 / (1 + e^{-x})`

    Parameters
    ----------
    x : array_like, float16, bfloat16, float32 or float64
        Any shape; integers, booleans and lists become float64.
    out : ndarray or None
        Where the result is written: writable, shape and dtype of ``x``; may be ``x`` itself.

    Returns
    -------
    ndarray or scalar
        ``out``, or a new array in the memory order of ``x``.

    Raises
    ------
    TypeError, ValueError
        If an argument has a wrong type, or a wrong value or shape; before anything is written.

    See Also
    --------
    log_sigmoid : its logarithm, without underflow.
    BinaryCrossEntropy : the loss of these.

    Notes
    -----
    Elements are within 4 eps relative, also where x is far below 0. -inf gives 0, +inf gives 1.

    References
    ----------
    P. F. Verhulst, "Recherches mathématiques sur la loi d'accroissement de la population", 1845 (the logistic curve).

    Examples
    --------
    >>> import fastxent as fx
    >>> fx.sigmoid([-40.0, 0.0, 2.0])
    array([4.24835426e-18, 5.00000000e-01, 8.80797078e-01])
    """
    return _sigmoid(x, out, log=False)


def log_sigmoid(x: npt.ArrayLike, *, out: Array | None = None) -> Any:
    r"""Logarithm of the sigmoid, element by element.

    :math:`\log \sigma(x) = -\log(1 + e^{-x})`

    Parameters
    ----------
    x : array_like, float16, bfloat16, float32 or float64
        Any shape; integers, booleans and lists become float64.
    out : ndarray or None
        Where the result is written: writable, shape and dtype of ``x``; may be ``x`` itself.

    Returns
    -------
    ndarray or scalar
        ``out``, or a new array in the memory order of ``x``.

    Raises
    ------
    TypeError, ValueError
        If an argument has a wrong type, or a wrong value or shape; before anything is written.

    See Also
    --------
    sigmoid : its exponential.
    BinaryCrossEntropy : minus this is the loss of a positive.

    Notes
    -----
    Every element keeps its relative precision: (4 + abs(x)) eps. -inf gives -inf, +inf gives 0.

    References
    ----------
    M. Mächler, "Accurately Computing ``log(1 - exp(-|a|))``", R package Rmpfr, 2012.

    Examples
    --------
    >>> import numpy as np
    >>> import fastxent as fx
    >>> print(fx.log_sigmoid(np.array([-1000.0, 0.0, 40.0])))
    [-1.00000000e+03 -6.93147181e-01 -4.24835426e-18]
    """
    return _sigmoid(x, out, log=True)


def balanced_class_weight(target: npt.ArrayLike, n_classes: int) -> npt.NDArray[np.float64]:
    r"""Class weights inversely proportional to the classes' frequencies.

    :math:`w_c = n / (n_\mathrm{classes} \cdot n_c)` for :math:`n` samples, :math:`n_c` of them of class :math:`c`.

    Parameters
    ----------
    target : array_like
        Class indices in [0, n_classes), any shape; or probabilities (floats) of shape (..., n_classes), whose column
        sums are the counts.
    n_classes : int
        Number of classes, at least 1.

    Returns
    -------
    ndarray of float64, shape (n_classes,)
        The weights; 0 for a class without samples.

    Raises
    ------
    TypeError, ValueError
        If an argument has a wrong type or value.

    See Also
    --------
    CrossEntropy : ``class_weight="balanced"`` does this on each call.

    References
    ----------
    G. King, L. Zeng, "Logistic Regression in Rare Events Data", Political Analysis 9, 2001.

    Examples
    --------
    >>> import fastxent as fx
    >>> fx.balanced_class_weight([0] * 90 + [1] * 10, 2).round(4)
    array([0.5556, 5.    ])
    """
    k = _check.option_integer("n_classes", n_classes)
    assert k is not None
    if k < 1:
        _check.fail(ValueError, "n_classes", "be at least 1", k)

    def compute(run: Run) -> npt.NDArray[np.float64]:
        labels: Any = target if type(target) is run.xp.ndarray else run.xp.asarray(target)
        if labels.dtype.kind not in "bui":
            floating = _check.is_floating(labels.dtype)
            if labels.size == 0 and labels.shape[-1:] != (k,):
                labels = labels.astype(np.int64)  # an empty list says nothing about its dtype
            elif not floating or labels.shape[-1:] != (k,):
                rule = f"be integer class indices or probabilities of shape (..., {k})"
                error = ValueError if floating and labels.ndim > 1 else TypeError
                _check.fail(error, "target", rule, f"{labels.dtype} of shape {labels.shape}")
        return run.balanced(labels, k, -1, None, survey=True)

    return _dispatch.call(compute, target=target)
