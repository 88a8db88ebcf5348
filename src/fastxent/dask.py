"""Losses of Dask arrays: lazy, one kernel call per block, sums added by a tree.

What goes from block to block are sums and weights (of a linear model, gradients too), never means; the order in which
they are added depends on the number of blocks alone. A mean divides once, at the end; the gradients of its blocks wait
for the total weight, which needs the targets only, so that no gradient is held for longer than its user takes.

A message about values ends with the block they are in: its number along each axis of the rows.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from itertools import islice
from math import isfinite, isnan, prod
from operator import getitem
from typing import Any

import numpy as np
import numpy.typing as npt

from fastxent import _check, _dispatch, linear
from fastxent._base import BinaryLoss, Loss, SoftmaxLoss
from fastxent.cpu.run import CpuRun
from fastxent.cpu.run import run as run_on_cpu

try:
    da: Any = import_module("dask.array")
    block_ids: Any = import_module("dask.layers").ArrayBlockIdDep
except ImportError as _error:
    raise ImportError('fastxent.dask needs dask: pip install "fastxent[dask]"') from _error

__all__ = ["linear_value_and_grad", "value", "value_and_grad"]

Array = npt.NDArray[Any]

# Of the tree that adds blocks: few enough gradients to hold at once, many enough for a flat tree.
SPLIT_EVERY = 8
SCALAR = np.float64(0)


def value(loss: Loss, logits: Any, target: Any, sample_weight: Any = None) -> Any:
    r"""Return the value of a loss of Dask arrays.

    With :math:`\ell_i` the losses of the rows and :math:`w_i` what they weigh in the mean, over the blocks :math:`b`:
    :math:`\sum_b \sum_{i \in b} \ell_i`, divided by :math:`\sum_b \sum_{i \in b} w_i` for a mean.

    Parameters
    ----------
    loss : Loss
        Any of the four losses; ``class_weight="balanced"`` counts all blocks.
    logits : dask.array.Array
        As the loss takes them, in blocks of NumPy arrays. Chunks may have any sizes, also unknown ones; the class axis
        is one chunk, and so is the last axis if there is a ``pos_weight`` per label.
    target, sample_weight : dask.array.Array or array_like
        As the loss takes them, brought to the chunks of ``logits``. Where sizes are unknown: Dask arrays with as many
        blocks, each as long as that of ``logits``.

    Returns
    -------
    dask.array.Array
        Of no dimension, float64; with ``reduction="none"`` of the shape of the unreduced loss. Nothing is computed yet.

    Raises
    ------
    TypeError, ValueError
        If an argument has a wrong type, shape or chunks; when it is computed, if a block holds a wrong value.
    ImportError
        If dask is missing (extra ``dask``); when the module is imported.

    See Also
    --------
    value_and_grad : the gradient, too.

    Notes
    -----
    The same chunks give the same bits on any scheduler, with any number of threads or workers; other chunks the same to
    the rounding of float64 sums.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastxent as fx
    >>> from fastxent.dask import value
    >>> logits = da.from_array([[2.0, 1.0, 0.1], [0.5, 2.5, 0.3], [0.1, 0.2, 3.0]], chunks=(2, 3))
    >>> round(float(value(fx.CrossEntropy(), logits, [0, 1, 2]).compute()), 6)
    0.248894
    """
    blocks = _blocks_of_logits(loss, logits, target, sample_weight)
    if loss.reduction == "none":
        return blocks.map(_losses, logits, chunks=blocks.one_class).squeeze(blocks.class_axes)
    sums = blocks.sums(_weight_and_loss, 2, logits)
    return _finished(sums, blocks.divisor(sums))


def value_and_grad(loss: Loss, logits: Any, target: Any, sample_weight: Any = None) -> tuple[Any, Any]:
    """Return the value of a loss of Dask arrays, and its gradient with respect to ``logits``.

    Parameters
    ----------
    loss, logits, target, sample_weight : see there
        As for `value`.

    Returns
    -------
    value : dask.array.Array
        As `value` returns it.
    grad : dask.array.Array
        Shape, chunks and dtype of ``logits``. ``dask.compute(value, grad)``, or whatever else is made of both in one
        go, calls the kernel once per block; two computations are two calls.

    Raises
    ------
    TypeError, ValueError, ImportError
        As `value` does.

    See Also
    --------
    linear_value_and_grad : where the logits are a matrix product.

    Examples
    --------
    >>> import dask
    >>> import dask.array as da
    >>> import fastxent as fx
    >>> from fastxent.dask import value_and_grad
    >>> logits = da.from_array([[2.0, 1.0, 0.1], [0.5, 2.5, 0.3], [0.1, 0.2, 3.0]], chunks=(2, 3))
    >>> _, grad = dask.compute(*value_and_grad(fx.CrossEntropy(), logits, [0, 1, 2]))
    >>> print(grad.round(4))
    [[-0.1137  0.0808  0.0329]
     [ 0.0362 -0.0658  0.0296]
     [ 0.0164  0.0182 -0.0346]]
    """
    blocks = _blocks_of_logits(loss, logits, target, sample_weight)
    mean = loss.reduction == "mean"
    divisor = blocks.divisor(blocks.sums(_weight, 2)) if mean else None
    pairs = blocks.map(_loss_and_grad, logits, divisor=divisor)
    grad = da.map_blocks(getitem, pairs, 1, dtype=pairs.dtype, meta=pairs._meta)
    if loss.reduction == "none":
        losses = da.map_blocks(getitem, pairs, 0, chunks=blocks.one_class, dtype=pairs.dtype, meta=pairs._meta)
        return losses.squeeze(blocks.class_axes), grad
    ones = tuple((1,) * n for n in pairs.numblocks)
    sums = da.map_blocks(
        getitem,
        pairs,
        0,
        chunks=(*ones, (2,)),
        new_axis=pairs.ndim,
        dtype=np.float64,
        meta=np.empty((0,) * (pairs.ndim + 1)),
    )
    return _finished(_added(sums), divisor), grad


def linear_value_and_grad(
    loss: Loss,
    X: Any,
    target: Any,
    coef: Any,
    intercept: Any = None,
    sample_weight: Any = None,
) -> tuple[Any, Any, Any]:
    """Return the loss of the logits ``X @ coef.T + intercept`` of a Dask array X, and its gradients.

    `fastxent.linear.value_and_grad` of each block: the coefficients go to the blocks, and one gradient comes back from
    each, to be added by a tree.

    Parameters
    ----------
    loss : Loss
        As `fastxent.linear.value_and_grad` takes it; ``class_weight="balanced"`` counts all blocks.
    X : dask.array.Array, shape (n_samples, n_features)
        Blocks of rows: NumPy arrays, or SciPy's CSR. Chunks of rows may have any sizes, also unknown ones.
    target : dask.array.Array or array_like
        As the loss takes it, brought to the chunks of the rows of X, see `value`.
    coef : array_like or dask.array.Array, shape (n_classes, n_features), or (n_features,) for binary losses
        One task of the graph, however many blocks there are.
    intercept : array_like or dask.array.Array, shape (n_classes,) or (), or None
        None: the logits have none.
    sample_weight : dask.array.Array or array_like or None
        As the loss takes it, brought to the same chunks.

    Returns
    -------
    value : dask.array.Array
        Of no dimension, float64. Nothing is computed yet.
    grad_coef : dask.array.Array, shape of ``coef``
        In the dtype of ``coef`` (float64 if that is not floating). ``dask.compute`` of all three goes through X once.
    grad_intercept : dask.array.Array, shape of ``intercept``, or None
        None without an intercept.

    Raises
    ------
    TypeError, ValueError
        As for `value`; when it is computed, if X is not finite.
    ImportError
        If dask (extra ``dask``) or scipy is missing.

    See Also
    --------
    fastxent.linear.value_and_grad : of arrays in memory, or files of one machine.

    Examples
    --------
    >>> import dask
    >>> import dask.array as da
    >>> import numpy as np
    >>> import fastxent as fx
    >>> from fastxent.dask import linear_value_and_grad
    >>> X = da.from_array([[1.0, 2.0], [0.5, -1.0], [-2.0, 0.3]], chunks=(2, 2))
    >>> lazy = linear_value_and_grad(fx.CrossEntropy(), X, [0, 1, 2], np.zeros((3, 2)), np.zeros(3))
    >>> value, grad_coef, grad_intercept = dask.compute(*lazy)
    >>> round(float(value), 6)
    1.098612
    >>> grad_coef.round(4)
    array([[-0.3889, -0.5222],
           [-0.2222,  0.4778],
           [ 0.6111,  0.0444]])
    """
    _one_chunk("X", X, 1, "features")
    if X.ndim != 2:
        _check.fail(ValueError, "X", "have shape (n_samples, n_features)", f"shape {X.shape}")
    coef = _one_task("coef", coef)
    intercept = None if intercept is None else _one_task("intercept", intercept)
    n_classes = () if coef.ndim == 1 and isinstance(loss, BinaryLoss) else coef.shape[:1]
    # Of no rows: says what is wrong with the loss, the types and the shapes.
    targets = np.empty((0, *n_classes)) if isinstance(loss, BinaryLoss) else np.empty(0, np.int64)
    zeros: list[Any] = [None if a is None else np.zeros(a.shape, a.dtype) for a in (coef, intercept)]
    linear.value(loss, np.empty((0, X.shape[1]), X.dtype), targets, *zeros)

    dtype = np.float32 if X.dtype == np.float32 else np.float64
    blocks = _Blocks(loss, (X.chunks[0], *((n,) for n in n_classes)), dtype, target, sample_weight)
    n_sums = 2 + prod(coef.shape) + (0 if intercept is None else prod(intercept.shape))
    sums = blocks.sums(_linear, n_sums, X, coef=coef, intercept=intercept)
    divisor = blocks.divisor(sums)
    dtype = np.float32 if coef.dtype == np.float32 else np.float64
    grad_coef = _finished(sums, divisor, 2, coef.shape, dtype)
    grad_intercept = None
    if intercept is not None:
        grad_intercept = _finished(sums, divisor, 2 + prod(coef.shape), intercept.shape, dtype)
    return _finished(sums, divisor), grad_coef, grad_intercept


# ---- the graph ----


def _blocks_of_logits(loss: Loss, logits: Any, target: Any, sample_weight: Any) -> _Blocks:
    if not isinstance(loss, Loss):
        _check.fail(TypeError, "loss", "be a loss of fastxent", repr(loss))
    _is_dask("logits", logits)
    source = _check.logits("logits", np.empty((0,) * logits.ndim, logits.dtype), least_ndim=loss._least_ndim)
    if isinstance(loss, SoftmaxLoss):
        _one_chunk("logits", logits, _check.axis_of(loss.axis, logits.ndim), "classes")
    elif isinstance(getattr(loss, "pos_weight", None), tuple):
        _one_chunk("logits", logits, logits.ndim - 1, "labels, each with its pos_weight,")
    return _Blocks(loss, logits.chunks, source.dtype, target, sample_weight)


class _Blocks:
    """Logits in chunks, which may be to come, with targets and weights of equal chunks, and what is made of them."""

    def __init__(self, loss: Loss, chunks: Any, dtype: Any, target: Any, sample_weight: Any):
        self.loss, self.chunks = loss, chunks
        axes = tuple(range(len(chunks)))
        self.class_axes: tuple[int, ...] = (
            (_check.axis_of(loss.axis, len(axes)),) if isinstance(loss, SoftmaxLoss) else ()
        )
        self.row_axes = tuple(a for a in axes if a not in self.class_axes)
        self.one_class = tuple((1,) if a in self.class_axes else chunks[a] for a in axes)
        shape = tuple(0 if isnan(n) else n for n in map(sum, chunks))
        # In the stead of a block of logits: its dtype, dimensions and classes.
        self.like = np.empty(tuple(n if a in self.class_axes else 0 for a, n in enumerate(shape)), dtype)

        targets = _as_array("target", target)
        weights = None if sample_weight is None else _as_array("sample_weight", sample_weight)
        target_axes = axes if targets.ndim == len(axes) else self.row_axes
        weight_axes = self.row_axes[: None if weights is None else weights.ndim]
        if not any(
            isnan(n) for array in (targets, weights) if array is not None for n in (*array.shape, *map(sum, chunks))
        ):
            # What is wrong with types and shapes is said now; where sizes are unknown, the blocks will see.
            loss._checked(
                run_on_cpu,
                np.broadcast_to(self.like.dtype.type(0), shape),
                _stand_in(targets),
                _stand_in(weights, as_floats="buifV"),
            )
        self.arguments = [self._aligned("target", targets, target_axes), target_axes, None, None]
        if weights is not None:
            self.arguments[2:] = self._aligned("sample_weight", weights, weight_axes), weight_axes
        self.arguments += [block_ids(chunks), axes]
        self.blamed = "target" if weights is None else "sample_weight"

        self.class_weight = None
        if isinstance(loss, SoftmaxLoss) and loss.class_weight == "balanced":
            counts = self.sums(_counts, sum(self.like.shape))
            self.class_weight = da.map_blocks(run_on_cpu.inverse, counts, dtype=np.float64, meta=np.empty(0))

    def _aligned(self, argument: str, array: Any, axes: tuple[int, ...]) -> Any:
        """Return an array in the chunks of the logits."""
        chunks = tuple(self.chunks[a] for a in axes)
        unknown = any(isnan(sum(sizes)) for sizes in chunks)
        if not isinstance(array, da.Array):
            if unknown:
                _check.fail(TypeError, argument, "be a Dask array, as chunks have unknown sizes", _dispatch.kind(array))
            return da.from_array(array, chunks=chunks)
        if not unknown and not isnan(sum(array.shape)):
            return array.rechunk(chunks)
        blocks = tuple(map(len, chunks))
        if array.numblocks != blocks:
            _check.fail(ValueError, argument, f"have {blocks} blocks, as chunks have unknown sizes", array.numblocks)
        return array

    def map(self, function: Any, *arrays: Any, n_sums: int = 0, chunks: Any = None, **whole: Any) -> Any:
        """Call a function once per block, with that of each array and others as a whole.

        It returns a block, which ``chunks`` describes, or sums as a vector.
        """
        ndim = max(len(self.chunks), *(a.ndim for a in arrays)) if arrays else len(self.chunks)
        axes: tuple[Any, ...] = tuple(range(ndim))
        dtype = np.dtype(np.float64) if n_sums else self.like.dtype
        whole = {name: a for name, a in (whole | {"class_weight": self.class_weight}).items() if a is not None}
        # Axes that the result does not have, of one block: in place of that comes a list of it. Arrays among the
        # keywords would be computed once for each time they are used.
        labels = iter(range(ndim + 1, ndim + 1 + sum(a.ndim for a in whole.values())))
        return da.blockwise(
            _in_block,
            (*axes, ndim) if n_sums else axes,
            *(part for a in arrays for part in (a, axes[: a.ndim])),
            *self.arguments,
            *(part for a in whole.values() for part in (a, tuple(islice(labels, a.ndim)))),
            new_axes={ndim: n_sums} if n_sums else {},
            adjust_chunks=dict.fromkeys(axes, 1) if n_sums else dict(zip(axes, chunks or self.chunks, strict=True)),
            align_arrays=False,
            token="fastxent" + function.__name__.replace("_", "-"),
            dtype=dtype,
            meta=np.empty((0,) * (ndim + bool(n_sums)), dtype),
            function=function,
            n_arrays=len(arrays),
            names=tuple(whole),
            loss=self.loss,
            like=self.like,
            row_axes=self.row_axes,
            vector_ndim=ndim if n_sums else None,
        )

    def sums(self, function: Any, n_sums: int, *arrays: Any, **options: Any) -> Any:
        """Call a function once per block, and add the vectors it returns."""
        return _added(self.map(function, *arrays, n_sums=n_sums, **options))

    def divisor(self, sums: Any) -> Any:
        """Return the total weight, which is the first of the sums, if this is a mean."""
        if self.loss.reduction == "sum":
            return None
        return da.map_blocks(_divisor, sums, blamed=self.blamed, drop_axis=0, dtype=np.float64, meta=SCALAR)


def _is_dask(argument: str, array: Any) -> None:
    if not isinstance(array, da.Array):
        _check.fail(TypeError, argument, "be a Dask array", _dispatch.kind(array))
    if _dispatch.is_cupy(array._meta):
        _check.fail(TypeError, argument, "have blocks of NumPy arrays", _dispatch.kind(array._meta))


def _one_chunk(argument: str, array: Any, axis: int, what: str) -> None:
    _is_dask(argument, array)
    if axis < array.ndim and (array.numblocks[axis] > 1 or isnan(array.shape[axis])):
        rule = f"have its {what} in one chunk of known size (rechunk({{{axis}: -1}}))"
        _check.fail(ValueError, argument, rule, array.chunks[axis])


def _one_task(argument: str, values: Any) -> Any:
    """Return a Dask array of one block."""
    if isinstance(values, da.Array):
        return values.rechunk(-1)
    return da.from_array(_check.logits(argument, _as_array(argument, values), least_ndim=0), chunks=-1)


def _as_array(argument: str, values: Any) -> Any:
    if isinstance(values, da.Array):
        return values
    if hasattr(values, "__dask_graph__") or _dispatch.is_cupy(values):
        _check.fail(TypeError, argument, "be a Dask or a NumPy array", _dispatch.kind(values))
    return np.asarray(values)


def _stand_in(array: Any, *, as_floats: str = "fV") -> Any:
    """Return an array of the same shape and kind of numbers that takes no memory."""
    if array is None:
        return None
    dtype = np.dtype(np.float64) if array.dtype.kind in as_floats else array.dtype.newbyteorder("=")
    return np.broadcast_to(np.zeros((), dtype), array.shape)


def _added(sums: Any) -> Any:
    """Add vectors of blocks, along all axes but the last."""
    axes = tuple(range(sums.ndim - 1))
    return sums.sum(axis=axes, split_every=dict.fromkeys(axes, SPLIT_EVERY)) if axes else sums


def _finished(sums: Any, divisor: Any, first: int = 1, shape: tuple[int, ...] = (), dtype: Any = np.float64) -> Any:
    """Return some of the sums in a shape and a dtype, divided if this is a mean."""
    return da.map_blocks(
        _divided,
        sums,
        divisor,
        first=first,
        shape=shape,
        result_dtype=dtype,
        drop_axis=0,
        new_axis=list(range(len(shape))) or None,
        chunks=tuple((n,) for n in shape),
        dtype=dtype,
        meta=np.empty((0,) * len(shape), dtype),
    )


# ---- in the blocks ----


def _in_block(
    *arguments: Any,
    function: Any,
    n_arrays: int,
    names: tuple[str, ...],
    loss: Any,
    row_axes: tuple[int, ...],
    vector_ndim: int | None,
    **options: Any,
) -> Any:
    """Call a function with the arrays of a block; what it raises names the block."""
    *arrays, block = arguments[: n_arrays + 3]
    for name, array in zip(names, arguments[n_arrays + 3 :], strict=True):
        while isinstance(array, list):
            (array,) = array
        options[name] = array
    class_weight = options.pop("class_weight", None)
    if class_weight is not None:
        loss = replace(loss, class_weight=class_weight)
    try:
        result = function(*arrays, loss=loss, **options)
    except (TypeError, ValueError) as error:
        where = "of" if " at index " in str(error) else "in"
        text = f"{error} {where} block {tuple(block[a] for a in row_axes)}"
        raise (TypeError if isinstance(error, TypeError) else ValueError)(text) from error
    return result if vector_ndim is None else np.reshape(result, (1,) * vector_ndim + (-1,))


def _losses(logits: Array, target: Array, sample_weight: Array | None, *, loss: Any, like: Array) -> Array:
    return _with_class_axis(loss, loss(logits, target, sample_weight))


def _with_class_axis(loss: Any, losses: Array) -> Array:
    return np.expand_dims(losses, loss.axis) if isinstance(loss, SoftmaxLoss) else losses


def _weight(target: Array, sample_weight: Array | None, *, loss: Any, like: Array) -> tuple[float, float]:
    """The weight of a block in the mean, and 0: NumPy adds tables of two columns and of one in different orders."""
    if loss.reduction != "mean":
        return 0.0, 0.0
    shape = _shape_of_logits(target, loss, like)
    weight: float = loss._total_weight(np.broadcast_to(like.dtype.type(0), shape), target, sample_weight)
    return weight, 0.0


def _shape_of_logits(target: Array, loss: Any, like: Array) -> tuple[int, ...]:
    if target.ndim == like.ndim:
        return target.shape
    axis = loss.axis % like.ndim
    return target.shape[:axis] + like.shape[axis : axis + 1] + target.shape[axis:]


def _counts(target: Array, sample_weight: Array | None, *, loss: Any, like: Array) -> Array:
    shape = _shape_of_logits(target, loss, like)
    labels, _ = loss._checked(run_on_cpu, np.broadcast_to(like.dtype.type(0), shape), target, None)
    axis = loss.axis % like.ndim
    return run_on_cpu.counts(labels, shape[axis], axis, loss.ignore_index)


def _weight_and_loss(
    logits: Array, target: Array, sample_weight: Array | None, *, loss: Any, like: Array
) -> tuple[float, float]:
    total = replace(loss, reduction="sum")(logits, target, sample_weight)
    return _weight(target, sample_weight, loss=loss, like=like)[0], total


def _loss_and_grad(
    logits: Array, target: Array, sample_weight: Array | None, *, loss: Any, like: Array, divisor: Any = None
) -> tuple[Array, Array]:
    """Losses and gradients of rows, or the sum as one of `_added`'s vectors with the gradient that is left of it."""
    run = run_on_cpu if divisor is None else _Divided(float(divisor))
    value, grad, _ = loss._evaluate(logits, target, sample_weight, n_derivatives=1, run=run)
    if loss.reduction != "none":
        return np.reshape([0.0, value], (1,) * grad.ndim + (2,)), grad
    return _with_class_axis(loss, value), grad


class _Divided(CpuRun):
    """The sum of a block's losses, and its gradient divided by the weight of all blocks."""

    def __init__(self, divisor: float):
        self.divisor = divisor

    def evaluate(self, jobs: list[Any], *, reduction: str, outputs: tuple[Array | None, ...], **more: Any) -> float:
        """Look at targets and weights as always, and compute."""
        super().evaluate(jobs, reduction="weight", outputs=outputs, **more)
        total: float = sum(job.compute(self.divisor or 1.0) for job in jobs)
        if self.divisor == 0:
            for out in outputs:
                if out is not None:
                    out[...] = 0
        return total


def _linear(
    x: Any, target: Array, sample_weight: Array | None, *, loss: Any, like: Array, coef: Array, intercept: Any = None
) -> Array:
    summed = replace(loss, reduction="sum")
    value, *grads = linear.value_and_grad(summed, x, target, coef, intercept, sample_weight)
    weight, _ = _weight(target, sample_weight, loss=loss, like=like)
    return np.concatenate([[weight, value], *(g.reshape(-1) for g in grads if g is not None)], dtype=np.float64)


def _divisor(sums: Array, *, blamed: str) -> Any:
    weight = sums[0]
    if not isfinite(weight):
        _check.fail(ValueError, blamed, _check.FINITE_SUM, weight)
    return weight


def _divided(sums: Array, divisor: Any, *, first: int, shape: tuple[int, ...], result_dtype: Any) -> Any:
    some = sums[first : first + prod(shape)].reshape(shape)
    if divisor is not None:  # nothing counted is 0
        some = some / divisor if divisor else np.zeros_like(some)
    return some.astype(result_dtype)[()]
