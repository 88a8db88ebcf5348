"""Linear models: value, gradient and Hessian-vector product of a loss of ``X @ coef.T + intercept``.

The logits never exist as a whole. Rows are taken in blocks that stay in the cache: one product, one fused loss over the
logits of the block, whose gradient takes their place, and one product back, added up where the result is. Beyond inputs
and outputs that needs memory for one block of logits. scipy has the products (BLAS, and CSR).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fastxent import _check, _reference
from fastxent._base import BinaryLoss, Loss, SoftmaxLoss
from fastxent._features import features
from fastxent.activations import log_softmax
from fastxent.cpu.run import run as run_on_cpu
from fastxent.losses import CrossEntropy, FocalLoss

__all__ = ["hessp", "value", "value_and_grad"]

Array = npt.NDArray[Any]

# Bytes of a block's rows of X and logits, and the most that its logits take.
CACHE, LARGEST_BLOCK = 1 << 20, 1 << 25
# Products up to this size are made by one thread (OpenBLAS, interface/gemm.c): waking others for less takes longer.
SERIAL_PRODUCT, LEAST_SERIAL_ROWS = 1 << 18, 128
# Options of a loss that make a sum over rows of logits.
_NEEDED = {"reduction": ("mean", "sum"), "inputs": ("logits",), "axis": (-1, 1)}


def value(
    loss: Loss,
    X: Any,
    target: npt.ArrayLike,
    coef: npt.ArrayLike,
    intercept: npt.ArrayLike | None = None,
    sample_weight: npt.ArrayLike | None = None,
    *,
    block_rows: int | None = None,
) -> float:
    """Return the loss of the logits ``X @ coef.T + intercept``.

    Parameters
    ----------
    loss, X, target, coef, intercept, sample_weight, block_rows : see there
        As for `value_and_grad`.

    Returns
    -------
    float
        The loss, summed in float64.

    Raises
    ------
    TypeError, ValueError, ImportError
        As `value_and_grad` does.
    """
    model = _Model(loss, X, target, coef, intercept, sample_weight, block_rows)
    total = float(sum(model.loss(logits, *given) for _, logits, given in model.blocks()))
    model.look_at_x_unless_finite(total)
    return float(model.mean(total))


def value_and_grad(
    loss: Loss,
    X: Any,
    target: npt.ArrayLike,
    coef: npt.ArrayLike,
    intercept: npt.ArrayLike | None = None,
    sample_weight: npt.ArrayLike | None = None,
    *,
    block_rows: int | None = None,
) -> tuple[float, Array, Any]:
    r"""Return the loss of the logits ``X @ coef.T + intercept``, and its gradients.

    With :math:`g_i` the gradient of the loss with respect to the logits of row :math:`i`, the gradients are
    :math:`\sum_i g_i x_i^T` of the coefficients and :math:`\sum_i g_i` of the intercept.

    Parameters
    ----------
    loss : Loss
        Any of the four losses, of logits, with ``reduction`` "mean" or "sum". The mean divides by the total weight of
        all rows, and ``class_weight="balanced"`` counts all rows.
    X : array_like, memmap or CSR, shape (n_samples, n_features)
        Finite. float32 is computed in float32, everything else in float64. Blocks of rows are copied if they are not
        in C order, and forgotten again if the array is a file.
    target : array_like
        As the loss takes it: class indices ``(n_samples,)`` or probabilities ``(n_samples, n_classes)``; of a binary
        loss the shape of the logits.
    coef : array_like, shape (n_classes, n_features), or (n_features,) for binary losses
        Of a binary loss, two dimensions are one row per label.
    intercept : array_like, shape (n_classes,) or (), or None
        None: the logits have none.
    sample_weight : array_like or None
        As the loss takes it.
    block_rows : int or None
        Rows of a block; None chooses by the cache. Results differ in their last bits with it.

    Returns
    -------
    value : float
        The loss, summed in float64.
    grad_coef : ndarray, shape of ``coef``
        In the dtype of ``coef`` (float64 if that is not floating).
    grad_intercept : ndarray, shape of ``intercept``, or None
        None without an intercept.

    Raises
    ------
    TypeError, ValueError
        If an argument has a wrong type, value or shape, or X is not finite.
    ImportError
        If scipy is missing (extra ``linear``).

    See Also
    --------
    hessp : the Hessian times a vector.

    Notes
    -----
    Logits have the rounding errors of their products, so the accuracy is that of a matrix product: relative to the
    largest term of a sum.

    Examples
    --------
    >>> import numpy as np
    >>> import fastxent as fx
    >>> from fastxent import linear
    >>> X = np.array([[1.0, 2.0], [0.5, -1.0], [-2.0, 0.3]])
    >>> value, grad_coef, grad_intercept = linear.value_and_grad(
    ...     fx.CrossEntropy(), X, [0, 1, 2], coef=np.zeros((3, 2)), intercept=np.zeros(3)
    ... )
    >>> round(value, 6)
    1.098612
    >>> grad_coef.round(4)
    array([[-0.3889, -0.5222],
           [-0.2222,  0.4778],
           [ 0.6111,  0.0444]])
    """
    model = _Model(loss, X, target, coef, intercept, sample_weight, block_rows)
    total = 0.0
    for x, logits, given in model.blocks():
        total += model.loss.value_and_grad(logits, *given, grad_out=logits)[0]
        model.add(logits, x)
    model.look_at_x_unless_finite(model.grad_coef)
    return float(model.mean(total)), *model.gradients()


def hessp(
    loss: Loss,
    X: Any,
    target: npt.ArrayLike,
    coef: npt.ArrayLike,
    intercept: npt.ArrayLike | None = None,
    sample_weight: npt.ArrayLike | None = None,
    *,
    vector: npt.ArrayLike,
    vector_intercept: npt.ArrayLike | None = None,
    block_rows: int | None = None,
) -> tuple[Array, Any]:
    r"""Return the Hessian with respect to coefficients and intercept, times a vector.

    For Newton's method with conjugate gradients (``scipy.optimize.minimize(method="trust-ncg")``, "Newton-CG"). With
    :math:`H_i` the whole Hessian of row :math:`i` with respect to its logits, and :math:`u_i` the logits that the vector
    gives in place of the coefficients, the product is :math:`\sum_i (H_i u_i) x_i^T`.

    Parameters
    ----------
    loss, X, target, coef, intercept, sample_weight : see there
        As for `value_and_grad`.
    vector : array_like, shape of ``coef``
        What the Hessian is multiplied with.
    vector_intercept : array_like, shape of ``intercept``, or None
        The same for the intercept; None is 0.
    block_rows : int or None
        As for `value_and_grad`.

    Returns
    -------
    product_coef : ndarray, shape of ``coef``
        The product's part for the coefficients.
    product_intercept : ndarray, shape of ``intercept``, or None
        That for the intercept.

    Raises
    ------
    TypeError, ValueError, ImportError
        As `value_and_grad` does.

    Examples
    --------
    >>> import numpy as np
    >>> import fastxent as fx
    >>> from fastxent import linear
    >>> X, target = np.array([[1.0, 2.0], [0.5, -1.0]]), [1, 0]
    >>> product, _ = linear.hessp(fx.BinaryCrossEntropy(), X, target, coef=np.zeros(2), vector=np.array([1.0, 0.0]))
    >>> product
    array([0.15625, 0.1875 ])
    """
    model = _Model(loss, X, target, coef, intercept, sample_weight, block_rows)
    direction = model.parameters("vector", vector, "vector_intercept", vector_intercept)
    row_product = _binary_product if isinstance(loss, BinaryLoss) else _softmax_product
    for x, logits, given in model.blocks():
        u = model.logits(x, direction, np.empty_like(logits))
        model.add(row_product(model.loss, logits, u, *given), x)
    model.look_at_x_unless_finite(model.grad_coef)
    return model.gradients()


def _binary_product(loss: Loss, logits: Array, u: Array, target: Array, sample_weight: Array | None) -> Array:
    """Every element by itself: its second derivative times u."""
    *_, hess = loss.value_grad_hess(logits, target, sample_weight)
    product: Array = hess * u
    return product


def _softmax_product(loss: Any, logits: Array, u: Array, target: Array, sample_weight: Array | None) -> Array:
    """The derivative of the gradient ``p_k A - a_k`` along u: ``p_k d_k A + p_k B - b_k d_k``.

    ``d = u - p.u`` is the change of log p; a, b and A as in `_reference.FocalLoss`, ``B = sum_c b_c d_c``. Of the
    cross-entropy a are the target masses, b is 0.
    """
    masses_of = CrossEntropy(loss.class_weight, loss.label_smoothing, loss.ignore_index, "sum", inputs="log_probs")
    a = -masses_of.value_and_grad(logits, target, sample_weight)[1]
    log_p = log_softmax(logits)
    p = np.exp(log_p)
    d = u - (p * u).sum(axis=1, keepdims=True)
    if not isinstance(loss, FocalLoss) or loss.gamma == 0:
        product: Array = p * d * a.sum(axis=1, keepdims=True)
        return product
    not_p = -np.expm1(log_p)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        _, a, b_times_q, _ = _reference._modulated(_reference._usable(loss.gamma, p), a, p, not_p, -log_p)
        b_d = np.where(not_p == 0, 0, b_times_q / not_p) * d
    product = p * (d * a.sum(axis=1, keepdims=True) + b_d.sum(axis=1, keepdims=True)) - b_d
    return product


class _Model:
    """Checked arguments, the walk over their rows, and the sums of it."""

    def __init__(
        self,
        loss: Loss,
        X: Any,
        target: Any,
        coef: Any,
        intercept: Any,
        sample_weight: Any,
        block_rows: int | None,
    ):
        self.x, self.dtype, (self.n_samples, n_features) = features(X)
        given = _check.logits("coef", coef)
        self.is_flat = given.ndim == 1 and isinstance(loss, BinaryLoss)
        self.shape = (n_features,) if self.is_flat else (len(given), n_features)
        if given.shape != self.shape:
            rule = f"have shape (n_classes, {n_features})"
            rule += f" or ({n_features},)" if isinstance(loss, BinaryLoss) else ""
            _check.fail(ValueError, "coef", rule, f"shape {given.shape}")
        self.result_dtype = given.dtype if given.dtype.itemsize == 4 else np.dtype(np.float64)
        self.has_intercept = intercept is not None
        self.point = self.parameters("coef", given, "intercept", intercept)
        n_outputs = 1 if self.is_flat else len(given)

        # All of them are looked at before anything is computed; what the logits are does not matter there.
        logits = np.broadcast_to(self.dtype.type(0), (self.n_samples, n_outputs)[: 2 - self.is_flat])
        self.loss, total_weight = _summed(loss, logits, target, sample_weight)
        self.divisor = total_weight if loss.reduction == "mean" else 1.0
        self.target = np.asarray(target)
        self.sample_weight = None if sample_weight is None else np.asarray(sample_weight)

        logits_bytes = n_outputs * self.dtype.itemsize
        rows = max(CACHE // (self.x.row_bytes + logits_bytes), self.x.least_rows)
        serial = SERIAL_PRODUCT // (n_outputs * n_features)
        rows = serial if self.x.row_bytes and LEAST_SERIAL_ROWS <= serial < rows else rows
        rows = max(min(rows, LARGEST_BLOCK // logits_bytes), 1)
        if block_rows is not None:
            rows = _check.option_integer("block_rows", block_rows) or 0
            if rows < 1:
                _check.fail(ValueError, "block_rows", "be >= 1", block_rows)
        self.rows = max(min(rows, self.n_samples), 1)
        self.grad_coef = np.zeros((n_outputs, n_features), self.dtype, self.x.order)
        self.grad_intercept = np.zeros(n_outputs)

    def parameters(self, coef_name: str, coef: Any, intercept_name: str, intercept: Any) -> tuple[Array, Array]:
        """Return a factor of X, and what is added to the product; or vectors in their place."""
        arrays = []
        for argument, values, shape in (
            (coef_name, coef, self.shape),
            (intercept_name, np.zeros(self.shape[:-1]) if intercept is None else intercept, self.shape[:-1]),
        ):
            array = _check.logits(argument, values, least_ndim=0)
            if array.shape != shape:
                _check.fail(ValueError, argument, f"have shape {shape}", f"shape {array.shape}")
            arrays.append(np.ascontiguousarray(array, self.dtype))
        return self.x.factor(arrays[0].reshape(-1, self.shape[-1])), arrays[1]

    def blocks(self) -> Iterator[tuple[Any, Array, tuple[Array, Array | None]]]:
        """Yield rows of X, their logits (whose memory the next block takes), and (target, sample weight)."""
        memory = np.empty((self.rows, len(self.grad_coef)), self.dtype)
        for first in range(0, self.n_samples, self.rows):
            some = slice(first, min(first + self.rows, self.n_samples))
            x = self.x.rows(some)
            logits = self.logits(x, self.point, memory[: some.stop - first])
            weight = None if self.sample_weight is None else self.sample_weight[some]
            yield x, logits, (self.target[some], weight)
            self.x.forget()

    def logits(self, x: Any, parameters: tuple[Array, Array], out: Array) -> Array:
        """Write ``x @ coef.T + intercept`` to ``out``."""
        coef, out[...] = parameters
        self.x.multiply(x, coef, out.reshape(len(out), -1))
        return out[:, 0] if self.is_flat and out.ndim == 2 else out

    def add(self, residuals: Array, x: Any) -> None:
        """Add the gradients of a block to the sums."""
        residuals = residuals.reshape(len(residuals), -1)
        self.x.add(x, residuals, self.grad_coef)
        self.grad_intercept += residuals.sum(axis=0, dtype=np.float64)

    def mean(self, total: Any) -> Any:
        """Divide by the total weight, in place; nothing counted is 0."""
        if self.divisor == 0:
            return np.zeros_like(total)
        total /= self.divisor
        return total

    def gradients(self) -> tuple[Array, Array | None]:
        """Return the gradients in the shapes and the dtype of the coefficients."""
        coef, intercept = (
            self.mean(total).astype(self.result_dtype, order="C", copy=False).reshape(shape)
            for total, shape in ((self.grad_coef, self.shape), (self.grad_intercept, self.shape[:-1]))
        )
        return coef, intercept if self.has_intercept else None

    def look_at_x_unless_finite(self, sums: Any) -> None:
        """Raise an error if sums are not finite because X is not."""
        if np.isfinite(sums).all():
            return
        for first in range(0, self.n_samples, self.rows):
            some = slice(first, min(first + self.rows, self.n_samples))
            x = self.x.dense(self.x.rows(some))
            bad = ~np.isfinite(x)
            if bad.any():
                row, column = (int(i) for i in np.argwhere(bad)[0])
                _check.fail(ValueError, "X", "be finite", x[row, column], (first + row, column))
            self.x.forget()


def _summed(loss: Loss, logits: Array, target: Any, sample_weight: Any) -> tuple[Any, float]:
    """Return the loss whose sum over blocks is that of all rows, and their total weight; all of them are checked."""
    check_loss(loss)
    summed: Any = loss
    if isinstance(loss, SoftmaxLoss) and loss.class_weight == "balanced":
        labels = loss._checked(run_on_cpu, logits, target, None)[0]
        weights = loss._class_weights(run_on_cpu, labels, logits.shape[1], 1, np.dtype(np.float64))
        summed = replace(summed, class_weight=weights)
    return replace(summed, reduction="sum"), summed._total_weight(logits, target, sample_weight)


def check_loss(loss: Any) -> None:
    """Raise an error for what cannot be summed over rows of logits."""
    if not isinstance(loss, Loss):
        _check.fail(TypeError, "loss", "be a loss of fastxent", repr(loss))
    for option, allowed in _NEEDED.items():
        if getattr(loss, option, allowed[0]) not in allowed:
            _check.fail(ValueError, "loss", f"have {option} {' or '.join(map(repr, allowed))}", loss)
