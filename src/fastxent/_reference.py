"""The definitions in plain NumPy: the oracle of the tests and the baseline of the benchmarks.

Same signatures as the fast functions, and it imports nothing of them. Everything is computed in the dtype of the
logits (``np.longdouble`` too, which makes it an oracle for float64), with sums in float64 or wider; float16 and
bfloat16 are computed in float32, and only the results are rounded to them.

One idea gives every number its full relative precision: the largest logit is left out of the sum. With
``e_c = exp(z_c - max z)`` and ``others`` the sum of the ``e_c`` but for that of the largest,

    LSE(z) - z_c = log1p(others) + (max z - z_c)
    p_c          = e_c / (1 + others)
    1 - p_c      = others / (1 + others)             for the largest, else (1 + others - e_c) / (1 + others)

and no term is the difference of two nearly equal numbers. The binary losses do the same with ``e = exp(-|z|)``: one of
``p = sigmoid(z)`` and ``q = 1 - p`` is ``1 / (1 + e)``, the other ``e / (1 + e)``.

Each loss is written once: the cross-entropies are the focal losses whose gamma is 0, without the terms that vanish.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Arrays = tuple[Array, ...]

# Infinities are part of the definitions (DESIGN 2.3), so inf - inf and 1 / 0 are expected on the way to them.
_infinities_expected = np.errstate(divide="ignore", over="ignore", under="ignore", invalid="ignore")


@_infinities_expected
def softmax(x: Any, *, axis: int = -1, out: Array | None = None) -> Array:
    """``exp(x_c) / sum_k exp(x_k)`` along `axis`; a row with one +inf is one-hot, all -inf or two +inf make it NaN."""
    x = _as_floating(x)
    out = np.empty_like(x) if out is None else out
    if x.size:
        shifted, _, top = _shift(_classes_last(_arithmetic(x), axis))
        e, others = _exponentials(shifted, top, out=shifted)
        np.divide(e, _narrow(1 + others, e), out=_classes_last(out, axis))
    return out


@_infinities_expected
def log_softmax(x: Any, *, axis: int = -1, out: Array | None = None) -> Array:
    """``x_c - LSE(x)`` along `axis`, as ``(x_c - max x) - log1p(others)``."""
    x = _as_floating(x)
    out = np.empty_like(x) if out is None else out
    if x.size:
        shifted, _, top = _shift(_classes_last(_arithmetic(x), axis))
        _, others = _exponentials(shifted, top)
        np.subtract(shifted, _narrow(np.log1p(others), shifted), out=_classes_last(out, axis))
    return out


@_infinities_expected
def logsumexp(x: Any, *, axis: int = -1) -> Array:
    """``log(sum_c exp(x_c))`` along `axis`, as ``max x + log1p(others)``; -inf where there is nothing to sum."""
    x = _as_floating(x)
    z = _classes_last(_arithmetic(x), axis)
    if z.shape[-1] == 0 or z.size == 0:
        return np.full(z.shape[:-1], -np.inf, dtype=x.dtype)
    shifted, largest, top = _shift(z)
    _, others = _exponentials(shifted, top, out=shifted)
    # An infinite maximum is its own limit, whatever the other terms are.
    log_sum_exp = np.where(np.isinf(largest), largest, largest + np.log1p(others))
    return _narrow(_narrow(log_sum_exp[..., 0], z), x)


@_infinities_expected
def sigmoid(x: Any, *, out: Array | None = None) -> Array:
    """``1 / (1 + exp(-x))``, for negative x as ``exp(x) / (1 + exp(x))``."""
    x = _as_floating(x)
    out = np.empty_like(x) if out is None else out
    z = _arithmetic(x)
    p, _ = _sigmoids(z, np.exp(-np.abs(z)))
    out[...] = p
    return out


@_infinities_expected
def log_sigmoid(x: Any, *, out: Array | None = None) -> Array:
    """``-log(1 + exp(-x))``, as ``min(x, 0) - log1p(exp(-|x|))``."""
    x = _as_floating(x)
    out = np.empty_like(x) if out is None else out
    z = _arithmetic(x)
    out[...] = np.minimum(z, 0) - np.log1p(np.exp(-np.abs(z)))
    return out


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


class _Loss(ABC):
    """The calls of every loss; a subclass has ``_rows`` and ``_results``."""

    reduction: str

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
        assert self.reduction in ("none", "sum", "mean")
        logits = _as_floating(logits)
        z = self._rows(_arithmetic(logits))
        results, looked_at = self._results(n_derivatives, z, np.asarray(target), sample_weight)
        if not looked_at.all():
            for result in results:
                np.copyto(result, 0, where=~looked_at)
        value = _reduced(results[0][..., 0], self.reduction, z.dtype, logits.dtype)
        derivatives = []
        for result, out in zip(results[1:], (grad_out, hess_out), strict=False):
            derivatives.append(np.empty_like(logits) if out is None else out)
            self._rows(derivatives[-1])[...] = result
        return (value, *derivatives, None, None)[:3]

    @abstractmethod
    def _rows(self, array: Array) -> Array:
        """View of `array` whose last axis is what one number of the unreduced loss is computed from."""

    @abstractmethod
    def _results(self, n_derivatives: int, z: Array, target: Array, sample_weight: Any) -> tuple[Arrays, Array]:
        """Value, gradient, Hessian of the rows, and which rows are looked at; the others' results become 0."""


class _SoftmaxLoss(_Loss):
    """What `CrossEntropy` and `FocalLoss` share: all but the names of the options, and what they leave out."""

    gamma: float = 0
    class_weight: Any
    label_smoothing: float
    ignore_index: int | None
    axis: int
    inputs: str = "logits"

    def _rows(self, array: Array) -> Array:
        return _classes_last(array, self.axis)

    def _results(self, n_derivatives: int, z: Array, target: Array, sample_weight: Any) -> tuple[Arrays, Array]:
        n_classes = z.shape[-1]
        wide = np.result_type(z.dtype, np.float64)
        assert n_classes > 0

        # The distribution t of each row, or its class index y; and the rows that count at all.
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
            return _from_index(n_derivatives, z, y, s * target_weight, _usable(self.gamma, z)), looked_at
        if is_index:
            t = np.zeros(z.shape, z.dtype)
            np.put_along_axis(t, y, 1, -1)
        u = w * self._smoothed(t, masked=z == (0 if self.inputs == "probs" else -np.inf))
        if self.inputs == "logits":
            return _from_logits(n_derivatives, z, u, s, _usable(self.gamma, z)), looked_at
        from_inputs = {"log_probs": _from_log_probs, "probs": _from_probs}[self.inputs]
        return from_inputs(n_derivatives, z, u, s), looked_at

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


@dataclass(frozen=True)
class CrossEntropy(_SoftmaxLoss):
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


@dataclass(frozen=True)
class FocalLoss(_SoftmaxLoss):
    """``l = s sum_c u_c q_c**gamma L_c`` with ``L_c = LSE(z) - z_c``, ``q_c = 1 - p_c`` and `CrossEntropy`'s u and p.

    ``dL_c / dz_k = p_k - [c = k]`` and ``dp_c / dz_k = p_c ([c = k] - p_k)``, so every derivative along z_k has that
    factor. With

        a_c = u_c q_c**gamma (1 + gamma p_c L_c / q_c)
        b_c = u_c q_c**(gamma - 1) gamma p_c ((L_c / q_c) (1 - gamma p_c) - 2)

    and ``A`` and ``B`` their sums, ``d(u_c q_c**gamma L_c) / dz_k = a_c (p_k - [c = k])`` and
    ``da_c / dz_k = b_c ([c = k] - p_k)``, hence

        gradient   s (p_k (A - a_k) - a_k q_k)
        Hessian    s (p_k q_k (A - a_k) - p_k**2 (B - b_k) + q_k (p_k a_k - q_k b_k))

    where ``p_k a_k - q_k b_k = u_k q_k**gamma ((1 + 2 gamma) p_k + gamma (p_k L_k / q_k) (gamma p_k - q_k))``. Limits:
    ``L / q`` is 1 at q = 0 and ``p L`` is 0 at p = 0. ``gamma = 0`` is `CrossEntropy`.
    """

    gamma: float = 2.0
    class_weight: Any = None
    label_smoothing: float = 0.0
    ignore_index: int | None = None
    reduction: str = "mean"
    axis: int = -1


class _BinaryLoss(_Loss):
    """What `BinaryCrossEntropy` and `BinaryFocalLoss` share: all but the names of the options."""

    gamma: float = 0
    alpha: float | None = None
    pos_weight: Any = None
    label_smoothing: float
    ignore_index: int | None
    inputs: str = "logits"

    def _rows(self, array: Array) -> Array:
        return array[..., None]

    def _results(self, n_derivatives: int, z: Array, target: Array, sample_weight: Any) -> tuple[Arrays, Array]:
        assert target.shape == z.shape[:-1]
        ignored = np.zeros((), bool) if self.ignore_index is None else self._rows(target == self.ignore_index)
        t = np.where(ignored, 0, self._rows(target).astype(z.dtype))
        assert np.all((t >= 0) & (t <= 1))

        # The masses P and N of the two classes; 1 - P would lose the digits of a small N.
        positive = (1 - self.label_smoothing) * t + self.label_smoothing / 2
        negative = (1 - self.label_smoothing) * (1 - t) + self.label_smoothing / 2
        alpha_t = np.ones((), z.dtype) if self.alpha is None else self.alpha * positive + (1 - self.alpha) * negative
        if self.pos_weight is not None:
            pos_weight = self._rows(np.asarray(self.pos_weight, z.dtype))
            assert pos_weight.shape in ((1,), (*z.shape[-2:-1], 1))
            assert np.all(np.isfinite(pos_weight) & (pos_weight >= 0))
            positive = pos_weight * positive

        # The weights of the elements; alpha_t and pos_weight are not in the divisor of the mean.
        wide = np.result_type(z.dtype, np.float64)
        s = np.ones((), wide) if sample_weight is None else _per_row(sample_weight, z.shape[:-1], wide)
        s = s * ~ignored
        looked_at = np.broadcast_to((s > 0) & (alpha_t * (positive + negative) > 0), z.shape)
        if self.reduction == "mean":
            s = s / np.broadcast_to(s, z.shape).sum()  # if that is 0, nothing is looked at
        s = s * alpha_t
        if self.inputs == "probs":
            return _from_binary_probs(n_derivatives, z, positive, negative, s), looked_at
        return _from_binary_logits(n_derivatives, z, positive, negative, s, _usable(self.gamma, z)), looked_at


@dataclass(frozen=True)
class BinaryCrossEntropy(_BinaryLoss):
    """``l = s (pos_weight P softplus(-z) + N softplus(z))``, ``P = (1 - eps) t + eps / 2``, ``N`` so of ``1 - t``.

    Gradient ``s (N p - pos_weight P q)`` and Hessian ``s (pos_weight P + N) p q``, with ``p = sigmoid(z)`` and
    ``q = sigmoid(-z)``. ``0 * inf`` is 0.

    With ``inputs="probs"``, x in place of p and terms without mass 0: value
    ``s (pos_weight P (-log x) + N (-log1p(-x)))``, gradient ``s (N / (1 - x) - pos_weight P / x)``, Hessian
    ``s (pos_weight P / x**2 + N / (1 - x)**2)``; NaN for x outside [0, 1].
    """

    pos_weight: Any = None
    label_smoothing: float = 0.0
    ignore_index: int | None = None
    reduction: str = "mean"
    inputs: str = "logits"


@dataclass(frozen=True)
class BinaryFocalLoss(_BinaryLoss):
    """``l = s alpha_t r**gamma L`` with ``L = P softplus(-z) + N softplus(z)`` and ``r = P q + N p``, which is 1 - p_t.

    ``alpha_t = alpha P + (1 - alpha) N``, or 1; P, N, p and q as in `BinaryCrossEntropy`. With ``L' = N p - P q`` and
    ``rho = r' / r = p q (N - P) / r``, of which ``rho' = rho (q - p) - rho**2``,

        gradient   s alpha_t r**gamma (gamma rho L + L')
        Hessian    s alpha_t r**gamma (gamma L ((gamma - 1) rho**2 + rho (q - p)) + 2 gamma rho L' + (P + N) p q)

    All are 0 where r is 0: the element is certain, and right. ``gamma = 0`` is `BinaryCrossEntropy`, times alpha_t.
    """

    gamma: float = 2.0
    alpha: float | None = None
    label_smoothing: float = 0.0
    ignore_index: int | None = None
    reduction: str = "mean"


def _from_index(n_derivatives: int, z: Array, y: Array, weight: Array, gamma: float) -> Arrays:
    """Value, gradient, Hessian of rows with class index `y` and weight ``s w_y``: no distribution is spelled out."""
    shifted, _, top = _shift(z)
    distance = -np.take_along_axis(shifted, y, -1)
    e, others = _exponentials(shifted, top, out=shifted)
    minus_log_p = np.log1p(others) + distance
    if n_derivatives == 0 and gamma == 0:
        return (weight * minus_log_p,)
    p = np.divide(e, _narrow(1 + others, e), out=e)
    others_over_total = others / (1 + others)
    p_of_target = np.take_along_axis(p, y, -1)
    not_p_of_target = np.where(y == top, others_over_total, 1 - p_of_target)
    if gamma == 0:
        value, a = weight * minus_log_p, weight
    else:
        value, a, b_times_q, own = _modulated(gamma, weight, p_of_target, not_p_of_target, minus_log_p)
    if n_derivatives == 0:
        return (value,)
    hess: Arrays = ()
    if n_derivatives == 2:
        curvature = _narrow(a, p) * (p * _one_minus(p, others_over_total, top))
        if gamma != 0:
            curvature -= _narrow(b_times_q, p) * (p * _ratio(p, _narrow(not_p_of_target, p)))
            np.put_along_axis(curvature, y, not_p_of_target * own, -1)
        hess = (curvature,)
    grad = np.multiply(p, _narrow(a, p), out=p)
    np.put_along_axis(grad, y, -a * not_p_of_target, -1)
    return (value, grad, *hess)


def _from_logits(n_derivatives: int, z: Array, u: Array, s: Array, gamma: float) -> Arrays:
    """Value, gradient, Hessian of rows with target masses `u` and weights `s`."""
    shifted, _, top = _shift(z)
    e, others = _exponentials(shifted, top)
    if gamma == 0:
        a_other, u_sum = _sum_of_others(u)
        # sum_c u_c (LSE - z_c), both terms positive; a class without mass adds nothing, however far away it is.
        distance = np.where(u == 0, 0, u * -shifted).sum(-1, keepdims=True, dtype=others.dtype)
        value = s * (u_sum * np.log1p(others) + distance)
        np.copyto(value, np.nan, where=np.isnan(others))
        if n_derivatives == 0:
            return (value,)
    p = np.divide(e, _narrow(1 + others, e), out=e)
    not_p = _one_minus(p, others / (1 + others), top)
    if gamma == 0:
        a = u
    else:
        minus_log_p = _narrow(np.log1p(others), p) - shifted
        values, a, b_times_q, own = _modulated(gamma, u, p, not_p, minus_log_p)
        value = s * values.sum(-1, keepdims=True, dtype=others.dtype)
        if n_derivatives == 0:
            return (value,)
        a_other, _ = _sum_of_others(a)
    grad = _narrow(s, p) * (p * a_other - a * not_p)
    if n_derivatives == 1:
        return value, grad
    if gamma == 0:
        return value, grad, _narrow(s * u_sum, p) * (p * not_p)
    # B - b_k: only the largest can have b = b_times_q / q without bound, and p_k / q of the largest is at most 1.
    not_p_of_top = np.take_along_axis(not_p, top, -1)
    b_of_top = _ratio(p, not_p_of_top) * np.take_along_axis(b_times_q, top, -1)
    np.put_along_axis(b_of_top, top, 0, -1)
    b = b_times_q / not_p
    np.put_along_axis(b, top, 0, -1)
    b_other = _narrow(b.sum(-1, keepdims=True, dtype=others.dtype), p) - b
    return value, grad, _narrow(s, p) * (p * (not_p * a_other - p * b_other - b_of_top) + not_p * own)


def _usable(gamma: float, z: Array) -> float:
    """Return gamma, or so much of it that its square stays finite: far beyond 1 / eps it only tells 0 from 1."""
    return min(float(gamma), 1e4 / float(np.finfo(z.dtype).eps))


def _modulated(gamma: float, u: Array, p: Array, not_p: Array, minus_log_p: Array) -> tuple[Array, Array, Array, Array]:
    """``u q**gamma L``, and ``a``, ``b q`` and ``p a - q b`` of `FocalLoss`, for masses `u` of classes with p, q, L."""
    modulated_u = u * not_p**gamma
    p_ratio = np.where(p == 0, 0, p * np.where(not_p == 0, 1, minus_log_p / not_p))  # p L / q
    return (
        np.where(modulated_u == 0, 0, modulated_u * minus_log_p),
        modulated_u * (1 + gamma * p_ratio),
        modulated_u * (gamma * (p_ratio * (1 - gamma * p) - 2 * p)),
        modulated_u * ((1 + 2 * gamma) * p + gamma * p_ratio * (gamma * p - not_p)),
    )


def _from_log_probs(n_derivatives: int, log_p: Array, u: Array, s: Array) -> Arrays:
    """``-s sum_c u_c x_c``, gradient ``-s u_c``, Hessian 0."""
    s_u = _narrow(s, log_p) * u
    value = s * np.where(u == 0, 0, u * -log_p).sum(-1, keepdims=True, dtype=s.dtype)
    return _with_nan_rows((value, -s_u, np.zeros_like(s_u))[: n_derivatives + 1], log_p)


def _from_probs(n_derivatives: int, p: Array, u: Array, s: Array) -> Arrays:
    """``-s sum_c u_c log x_c``, gradient ``-s u_c / x_c``, Hessian ``s u_c / x_c**2``; all 0 where ``u_c = 0``."""
    p = p + 0.0  # -0.0 is 0, so that the gradient there is -inf
    value = s * np.where(u == 0, 0, u * -np.log(p)).sum(-1, keepdims=True, dtype=s.dtype)
    if n_derivatives == 0:
        return _with_nan_rows((value,), p)
    ratio = np.where(u == 0, 0, _narrow(s, p) * u / p)
    curvature = np.where(u == 0, 0, ratio / p)  # not u / p**2: the square underflows where the quotient does not
    return _with_nan_rows((value, -ratio, curvature)[: n_derivatives + 1], p)


def _from_binary_logits(
    n_derivatives: int, z: Array, positive: Array, negative: Array, s: Array, gamma: float
) -> Arrays:
    """Value, gradient, Hessian of elements with masses `positive` and `negative` and weights `s`."""
    e = np.exp(-np.abs(z))
    log_total = np.log1p(e)  # softplus(z) = log_total + max(z, 0)
    value = np.where(positive == 0, 0, positive * (log_total - np.minimum(z, 0)))
    value += np.where(negative == 0, 0, negative * (log_total + np.maximum(z, 0)))
    if n_derivatives == 0 and gamma == 0:
        return (s * value,)
    p, q = _sigmoids(z, e)
    slope = grad = negative * p - positive * q
    if gamma != 0:
        r = positive * q + negative * p
        rho = np.where(r == 0, 0, p * q * (negative - positive) / r)
        rho_value = np.where(rho == 0, 0, rho * value)
        modulation = r**gamma
        value = np.where(np.isinf(value), value, modulation * value)  # also if the power underflows
        grad = modulation * (gamma * rho_value + slope)
    if n_derivatives < 2:
        return (s * value, _narrow(s, z) * grad)[: n_derivatives + 1]
    hess = (positive + negative) * (p * q)
    if gamma != 0:
        hess += gamma * rho_value * ((gamma - 1) * rho + (q - p)) + 2 * gamma * rho * slope
        hess *= modulation
    return s * value, _narrow(s, z) * grad, _narrow(s, z) * hess


def _from_binary_probs(n_derivatives: int, x: Array, positive: Array, negative: Array, s: Array) -> Arrays:
    """The same from probabilities; a term without mass is 0, and outside [0, 1] everything is NaN."""
    x = np.where((x >= 0) & (x <= 1), x + 0.0, np.nan)  # -0.0 is 0, as in _from_probs
    value = np.where(positive == 0, 0, positive * -np.log(x)) + np.where(negative == 0, 0, negative * -np.log1p(-x))
    if n_derivatives == 0:
        return (s * value,)
    pull = np.where(positive == 0, 0, _narrow(s, x) * positive / x)
    push = np.where(negative == 0, 0, _narrow(s, x) * negative / (1 - x))
    if n_derivatives == 1:
        return s * value, push - pull
    return s * value, push - pull, np.where(positive == 0, 0, pull / x) + np.where(negative == 0, 0, push / (1 - x))


def _sigmoids(z: Array, e: Array) -> tuple[Array, Array]:
    """``(sigmoid(z), sigmoid(-z))``, both to their last digits, from ``e = exp(-|z|)``."""
    return np.where(z >= 0, 1, e) / (1 + e), np.where(z >= 0, e, 1) / (1 + e)


def _with_nan_rows(results: Arrays, x: Array) -> Arrays:
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


def _ratio(numerator: Array, denominator: Array) -> Array:
    """The quotient, 0 where the denominator is: there the numerator is 0 too, and what it is a factor of."""
    return np.where(denominator == 0, 0, numerator / denominator)


def _as_floating(x: Any) -> Array:
    """Native floating-point array; lists, integers and booleans become float64."""
    array: Array = np.asarray(x)
    # bfloat16 is of ml_dtypes, which need not be there; NumPy knows no kind for it.
    floating = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    return array.astype(array.dtype.newbyteorder("=") if floating else np.float64, copy=False)


def _arithmetic(x: Array) -> Array:
    """Half precision is storage only."""
    return x.astype(np.float32) if x.dtype.itemsize == 2 else x


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


def _reduced(per_row: Array, reduction: str, arithmetic: np.dtype[Any], storage: np.dtype[Any]) -> Any:
    if reduction == "none":
        return per_row.astype(arithmetic).astype(storage)
    total = per_row.sum()
    return total if arithmetic == np.longdouble else float(total)
