"""The definitions in plain NumPy: the oracle of the tests and the baseline of the benchmarks.

Same signatures as the fast functions, and it imports nothing of them. Everything is computed in the dtype of the
logits (``np.longdouble`` too, which makes it an oracle for float64), with sums in float64 or wider.

One idea gives every number its full relative precision: the largest logit is left out of the sum. With
``e_c = exp(z_c - max z)`` and ``others`` the sum of the ``e_c`` but for that of the largest,

    LSE(z) - z_c = log1p(others) + (max z - z_c)
    p_c          = e_c / (1 + others)
    1 - p_c      = others / (1 + others)             for the largest, else (1 + others - e_c) / (1 + others)

and no term is the difference of two nearly equal numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# Infinities are part of the definitions (DESIGN 2.3), so inf - inf and 1 / 0 are expected on the way to them.
_infinities_expected = np.errstate(divide="ignore", over="ignore", under="ignore", invalid="ignore")


@_infinities_expected
def softmax(x: Any, *, axis: int = -1, out: Array | None = None) -> Array:
    """``exp(x_c) / sum_k exp(x_k)`` along `axis`; a row with one +inf is one-hot, all -inf or two +inf make it NaN."""
    x = _as_floating(x)
    out = np.empty_like(x) if out is None else out
    if x.size:
        shifted, _, top = _shift(_classes_last(x, axis))
        e, others = _exponentials(shifted, top, out=shifted)
        np.divide(e, _narrow(1 + others, e), out=_classes_last(out, axis))
    return out


@_infinities_expected
def log_softmax(x: Any, *, axis: int = -1, out: Array | None = None) -> Array:
    """``x_c - LSE(x)`` along `axis`, as ``(x_c - max x) - log1p(others)``."""
    x = _as_floating(x)
    out = np.empty_like(x) if out is None else out
    if x.size:
        shifted, _, top = _shift(_classes_last(x, axis))
        _, others = _exponentials(shifted, top)
        np.subtract(shifted, _narrow(np.log1p(others), shifted), out=_classes_last(out, axis))
    return out


@_infinities_expected
def logsumexp(x: Any, *, axis: int = -1) -> Array:
    """``log(sum_c exp(x_c))`` along `axis`, as ``max x + log1p(others)``; -inf where there is nothing to sum."""
    x = _classes_last(_as_floating(x), axis)
    if x.shape[-1] == 0 or x.size == 0:
        return np.full(x.shape[:-1], -np.inf, dtype=x.dtype)
    shifted, largest, top = _shift(x)
    _, others = _exponentials(shifted, top, out=shifted)
    # An infinite maximum is its own limit, whatever the other terms are.
    log_sum_exp = np.where(np.isinf(largest), largest, largest + np.log1p(others))
    return _narrow(log_sum_exp[..., 0], x)


def balanced_class_weight(target: Any, n_classes: int) -> Array:
    """``n / (n_classes * counts)``: each class gets the same total weight; a class without samples weighs 0.

    `target` holds class indices of any shape, or probabilities with the classes along the last axis, whose column
    sums then are the counts.
    """
    target = np.asarray(target)
    if target.dtype.kind in "iub":
        counts = np.bincount(target.ravel().astype(np.intp), minlength=n_classes).astype(np.float64)
    else:
        wide = np.result_type(target.dtype, np.float64)
        counts = target.reshape(-1, n_classes).sum(axis=0, dtype=wide)
    assert counts.shape == (n_classes,)
    weight = np.zeros_like(counts)
    np.divide(counts.sum(), n_classes * counts, out=weight, where=counts > 0)
    return weight


@dataclass(frozen=True)
class CrossEntropy:
    """``l = s sum_c u_c (LSE(z) - z_c)`` with ``u_c = w_c t~_c`` and ``t~ = (1 - eps) t + eps / K'``.

    Gradient ``s (p_c (W - u_c) - u_c (1 - p_c))``, which is ``s (p_c W - u_c)``, and Hessian diagonal
    ``s W p_c (1 - p_c)``, with ``p = softmax(z)`` and ``W = sum_c u_c``. ``0 * inf`` is 0.
    """

    class_weight: Any = None
    label_smoothing: float = 0.0
    ignore_index: int | None = None
    reduction: str = "mean"
    axis: int = -1
    inputs: str = "logits"

    def __call__(self, logits: Any, target: Any, sample_weight: Any = None) -> Any:
        """Return the loss: an array for reduction "none", else a float."""
        value, _, _ = self._evaluate(0, logits, target, sample_weight)
        return value

    def value_and_grad(
        self, logits: Any, target: Any, sample_weight: Any = None, grad_out: Array | None = None
    ) -> tuple[Any, Array]:
        """Return ``(value, gradient)``; the gradient is written to `grad_out` if given, which may be `logits` itself."""
        value, grad, _ = self._evaluate(1, logits, target, sample_weight, grad_out)
        return value, grad

    def value_grad_hess(
        self,
        logits: Any,
        target: Any,
        sample_weight: Any = None,
        grad_out: Array | None = None,
        hess_out: Array | None = None,
    ) -> tuple[Any, Array, Array]:
        """Return ``(value, gradient, diagonal of the Hessian)``."""
        return self._evaluate(2, logits, target, sample_weight, grad_out, hess_out)

    @_infinities_expected
    def _evaluate(
        self,
        n_derivatives: int,
        logits: Any,
        target: Any,
        sample_weight: Any,
        grad_out: Array | None = None,
        hess_out: Array | None = None,
    ) -> tuple[Any, Any, Any]:
        logits = _as_floating(logits)
        z = _classes_last(logits, self.axis)
        n_classes = z.shape[-1]
        wide = np.result_type(z.dtype, np.float64)
        assert n_classes > 0
        assert self.reduction in ("none", "sum", "mean")

        # The distribution t of each row, or its class index y; and the rows that count at all.
        target = np.asarray(target)
        y: Any = None
        t: Any = None
        is_index = target.dtype.kind in "iub"
        if is_index:
            assert target.shape == z.shape[:-1]
            ignored = np.zeros(target.shape, bool) if self.ignore_index is None else target == self.ignore_index
            y = np.where(ignored, 0, target).astype(np.intp)[..., None]
            assert np.all((y >= 0) & (y < n_classes))
        else:
            t = _classes_last(target, self.axis).astype(z.dtype, copy=False)
            assert t.shape == z.shape
            assert np.all(np.isfinite(t) & (t >= 0))
            ignored = self._ignored_distributions(t)

        # Weights: w of the classes, s of the rows, and the divisor of the mean, which knows nothing of smoothing.
        class_weight = self._class_weights(y[..., 0] if is_index else t, ignored, n_classes)
        w = class_weight.astype(z.dtype)
        s = _per_row(sample_weight, z.shape[:-1], wide) * ~ignored[..., None]
        target_weight = class_weight[y] if is_index else (class_weight * t).sum(-1, dtype=wide, keepdims=True)
        # A row is looked at if it can matter, whatever its logits are.
        smoothing_weight = self.label_smoothing * class_weight.sum()
        looked_at = (s > 0) & (((1 - self.label_smoothing) * target_weight > 0) | (smoothing_weight > 0))
        if self.reduction == "mean":
            divisor = (s * target_weight).sum()
            s = s / divisor if divisor > 0 else np.zeros_like(s)
            looked_at &= divisor > 0

        if self.inputs == "logits" and is_index and self.label_smoothing == 0:
            results = _from_index(n_derivatives, z, y, s * target_weight)
        else:
            if is_index:
                t = np.zeros(z.shape, z.dtype)
                np.put_along_axis(t, y, 1, -1)
            u = w * self._smoothed(t, masked=z == (0 if self.inputs == "probs" else -np.inf))
            from_distribution = {
                "logits": _from_logits,
                "log_probs": _from_log_probs,
                "probs": _from_probs,
            }[self.inputs]
            results = from_distribution(n_derivatives, z, u, s)

        if not looked_at.all():
            for result in results:
                np.copyto(result, 0, where=~looked_at)
        value = _reduced(results[0][..., 0], self.reduction, z.dtype)
        derivatives = [
            _stored(result, logits, out, self.axis)
            for result, out in zip(results[1:], (grad_out, hess_out), strict=False)
        ]
        return (value, *derivatives, None, None)[:3]

    def _ignored_distributions(self, t: Array) -> Array:
        """Rows all of whose mass sits on class `ignore_index`, so that one-hot and index targets agree."""
        n_classes = t.shape[-1]
        if self.ignore_index is None or not 0 <= self.ignore_index < n_classes:
            return np.zeros(t.shape[:-1], bool)
        all_mass_is_there: Array = (t[..., self.ignore_index] > 0) & (np.count_nonzero(t, axis=-1) == 1)
        return all_mass_is_there

    def _class_weights(self, target: Array, ignored: Array, n_classes: int) -> Array:
        if self.class_weight is None:
            return np.ones(n_classes)
        if isinstance(self.class_weight, str):
            assert self.class_weight == "balanced"
            return balanced_class_weight(target[~ignored], n_classes)
        if isinstance(self.class_weight, dict):
            weight = np.ones(n_classes)
            for c, weight_of_class in self.class_weight.items():
                weight[c] = weight_of_class
            return weight
        weight = np.asarray(self.class_weight, dtype=np.float64)
        assert weight.shape == (n_classes,)
        return weight

    def _smoothed(self, t: Array, masked: Array) -> Array:
        """``(1 - eps) t + eps / K'``: the K' classes that are not masked share the smoothing mass."""
        if self.label_smoothing == 0:
            return t
        n_unmasked = np.count_nonzero(~masked, axis=-1, keepdims=True)
        share = np.where(masked, 0, self.label_smoothing / np.maximum(n_unmasked, 1)).astype(t.dtype)
        smoothed: Array = (1 - self.label_smoothing) * t + share
        return smoothed


def _from_index(n_derivatives: int, z: Array, y: Array, weight: Array) -> tuple[Array, ...]:
    """Value, gradient, Hessian of rows with class index `y` and weight ``s w_y``: no distribution is spelled out."""
    shifted, _, top = _shift(z)
    distance = -np.take_along_axis(shifted, y, -1)
    e, others = _exponentials(shifted, top, out=shifted)
    value = weight * (np.log1p(others) + distance)
    if n_derivatives == 0:
        return (value,)
    p = np.divide(e, _narrow(1 + others, e), out=e)
    others_over_total = others / (1 + others)
    hess = () if n_derivatives == 1 else (_narrow(weight, p) * (p * _one_minus(p, others_over_total, top)),)
    not_p_of_target = np.where(y == top, others_over_total, 1 - np.take_along_axis(p, y, -1))
    grad = np.multiply(p, _narrow(weight, p), out=p)
    np.put_along_axis(grad, y, -weight * not_p_of_target, -1)
    return (value, grad, *hess)


def _from_logits(n_derivatives: int, z: Array, u: Array, s: Array) -> tuple[Array, ...]:
    """Value, gradient, Hessian of rows with target masses `u` and weights `s`."""
    shifted, _, top = _shift(z)
    e, others = _exponentials(shifted, top)
    u_other, u_sum = _sum_of_others(u)
    # sum_c u_c (LSE - z_c), both terms positive; a class without mass adds nothing, however far away it is.
    distance = np.where(u == 0, 0, u * -shifted).sum(-1, keepdims=True, dtype=others.dtype)
    value = s * (u_sum * np.log1p(others) + distance)
    np.copyto(value, np.nan, where=np.isnan(others))
    if n_derivatives == 0:
        return (value,)
    p = np.divide(e, _narrow(1 + others, e), out=e)
    not_p = _one_minus(p, others / (1 + others), top)
    grad = _narrow(s, p) * (p * u_other - u * not_p)
    return (value, grad) if n_derivatives == 1 else (value, grad, _narrow(s * u_sum, p) * (p * not_p))


def _from_log_probs(n_derivatives: int, log_p: Array, u: Array, s: Array) -> tuple[Array, ...]:
    """``-s sum_c u_c x_c``, gradient ``-s u_c``, Hessian 0."""
    s_u = _narrow(s, log_p) * u
    value = s * np.where(u == 0, 0, u * -log_p).sum(-1, keepdims=True, dtype=s.dtype)
    return _with_nan_rows((value, -s_u, np.zeros_like(s_u))[: n_derivatives + 1], log_p)


def _from_probs(n_derivatives: int, p: Array, u: Array, s: Array) -> tuple[Array, ...]:
    """``-s sum_c u_c log x_c``, gradient ``-s u_c / x_c``, Hessian ``s u_c / x_c**2``; all 0 where ``u_c = 0``."""
    p = p + 0.0  # -0.0 is 0, so that the gradient there is -inf
    value = s * np.where(u == 0, 0, u * -np.log(p)).sum(-1, keepdims=True, dtype=s.dtype)
    if n_derivatives == 0:
        return _with_nan_rows((value,), p)
    ratio = np.where(u == 0, 0, _narrow(s, p) * u / p)
    curvature = np.where(u == 0, 0, ratio / p)  # not u / p**2: the square underflows where the quotient does not
    return _with_nan_rows((value, -ratio, curvature)[: n_derivatives + 1], p)


def _with_nan_rows(results: tuple[Array, ...], x: Array) -> tuple[Array, ...]:
    """Make a row NaN that has a NaN anywhere, also in a class without mass."""
    has_nan = np.isnan(x).any(axis=-1, keepdims=True)
    if has_nan.any():
        for result in results:
            np.copyto(result, np.nan, where=has_nan)
    return results


def _shift(z: Array) -> tuple[Array, Array, Array]:
    """``(z - max z, max z, argmax z)``: 0 at the largest, also if that is +inf; NaN if it is NaN or -inf."""
    top = z.argmax(axis=-1, keepdims=True)  # of the first NaN, if there is one
    largest = np.take_along_axis(z, top, -1)
    shifted = np.subtract(z, largest, order="C")  # NumPy sums pairwise only along a contiguous axis
    np.put_along_axis(shifted, top, np.where(largest > -np.inf, 0, np.nan), -1)
    return shifted, largest, top


def _exponentials(shifted: Array, top: Array, out: Array | None = None) -> tuple[Array, Array]:
    """``(e, others)``: ``exp(shifted)``, and its sum but for the largest; NaN for a row that has no softmax."""
    e = np.exp(shifted, out=out)
    one = np.take_along_axis(e, top, -1)  # or NaN
    np.put_along_axis(e, top, np.where(np.isnan(one), one, 0), -1)
    others = e.sum(axis=-1, keepdims=True, dtype=np.result_type(e.dtype, np.float64))
    np.put_along_axis(e, top, one, -1)
    return e, others


def _sum_of_others(u: Array) -> tuple[Array, Array]:
    """``(sum of u but for u_c, sum of u)``, the first without cancellation where nearly all mass is in one class."""
    top = u.argmax(axis=-1, keepdims=True)
    largest = np.take_along_axis(u, top, -1)
    small = u.copy()
    np.put_along_axis(small, top, 0, -1)
    rest = small.sum(axis=-1, keepdims=True, dtype=np.result_type(u.dtype, np.float64))
    u_sum = rest + largest
    u_other = _narrow(u_sum, u) - u
    np.put_along_axis(u_other, top, _narrow(rest, u), -1)
    return u_other, u_sum


def _one_minus(p: Array, others_over_total: Array, top: Array) -> Array:
    """``1 - p``: at most half is taken away, but for the largest, which has its own formula."""
    not_p = 1 - p
    np.put_along_axis(not_p, top, _narrow(others_over_total, p), -1)
    return not_p


def _as_floating(x: Any) -> Array:
    """Native floating-point array; lists, integers and booleans become float64."""
    array: Array = np.asarray(x)
    return array.astype(array.dtype.newbyteorder("=") if array.dtype.kind == "f" else np.float64, copy=False)


def _classes_last(x: Array, axis: int) -> Array:
    return np.moveaxis(x, axis, -1)


def _narrow(per_row: Array, like: Array) -> Array:
    """Per-row numbers in the dtype of the elements they meet, or NumPy would widen the whole array."""
    return per_row.astype(like.dtype, copy=False)


def _per_row(sample_weight: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Sample weights with one number per row and a last axis of length 1."""
    if sample_weight is None:
        return np.ones((*shape, 1), dtype)
    weight = np.asarray(sample_weight, dtype=dtype)
    if weight.shape != shape:
        weight = weight.reshape(-1, *(1,) * (len(shape) - 1))
    return np.broadcast_to(weight, shape)[..., None].copy()


def _reduced(per_row: Array, reduction: str, dtype: np.dtype[Any]) -> Any:
    if reduction == "none":
        return per_row.astype(dtype)
    total = per_row.sum()
    return total if dtype == np.longdouble else float(total)


def _stored(result: Array, logits: Array, out: Array | None, axis: int) -> Array:
    """Return `result` (classes last) in an array laid out like the logits, or in `out`."""
    out = np.empty_like(logits) if out is None else out
    _classes_last(out, axis)[...] = result
    return out
