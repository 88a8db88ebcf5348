"""What a result should be and how far from it rounding may lead: the reference in higher precision, and mpmath."""

import pickle
from dataclasses import dataclass

import mpmath
import numpy as np
import tolerances
from tolerances import BASE, FOCAL, HESSIAN, LARGEST_GAP, OPTIONS, assert_within, eps, subnormal_slack

import fastxent as fx
from fastxent import _reference as reference

# The plain definitions need no tricks if the precision covers the widest gap: exp(-700) is 2^-1010.
MPMATH_BITS = 1200


@dataclass
class Expected:
    """Value, gradient and Hessian in higher precision, with the largest errors a result in `dtype` may have."""

    value: np.ndarray
    grad: np.ndarray
    hess: np.ndarray
    value_bound: np.ndarray
    grad_bound: np.ndarray
    hess_bound: np.ndarray


def widened(a):
    """float32 arithmetic is checked in float64, float64 in long double; indices stay indices."""
    a = np.asarray(a)
    if a.dtype.kind in "iub":
        return a
    if tolerances.flushes_float32 and a.dtype.itemsize == 4:
        a = np.where(np.abs(a) < np.finfo(np.float32).tiny, a.dtype.type(0), a)
    return a.astype(np.float64 if a.dtype.itemsize == 4 else np.longdouble)


def cross_entropy(options, logits, target, sample_weight=None):
    """`Expected` of ``CrossEntropy(**options)``, from the reference in higher precision."""
    dtype, x, target = _widened_arguments(logits, target)
    value, grad, hess = reference.CrossEntropy(**options).value_grad_hess(x, target, sample_weight)
    bounds = _bounds(options, dtype, x, target, sample_weight, grad, hess)
    return Expected(np.asarray(value), grad, hess, *bounds)


def _widened_arguments(logits, target):
    """(dtype of the arithmetic, logits and target in higher precision)."""
    logits = np.asarray(logits)
    target = np.asarray(target)
    x = widened(logits)
    if target.dtype.kind not in "biu":
        target = target.astype(np.result_type(x, np.float64))
    return logits.dtype.newbyteorder("="), x, target


@np.errstate(all="ignore")
def _bounds(options, dtype, x, target, sample_weight, grad, hess):
    slack = subnormal_slack(dtype)
    axis = options.get("axis", -1)
    inputs = options.get("inputs", "logits")
    # s u_c, reduction included, is minus the gradient of the loss on log-probabilities.
    mass_options = options | {"inputs": "log_probs"}
    log_x = np.log(x) if inputs == "probs" else x
    _, minus_mass = reference.CrossEntropy(**mass_options).value_and_grad(log_x, target, sample_weight)
    mass = np.moveaxis(-minus_mass, axis, -1)
    z = np.moveaxis(log_x, axis, -1)
    total = mass.sum(-1, keepdims=True)
    if inputs != "logits":
        per_row = (eps(dtype) * OPTIONS * np.where(mass == 0, 0, mass * np.abs(z))).sum(-1)
        elementwise = [eps(dtype) * OPTIONS * np.abs(d) + slack for d in (grad, hess)]
        return _reduced(per_row, options) + slack, *elementwise
    log_p = reference.log_softmax(z)
    p, not_p = np.exp(log_p), -np.expm1(log_p)
    log_sum = -log_p.max(-1, keepdims=True)
    largest = z.max(-1, keepdims=True)
    distance = np.where(z == largest, 0, largest - z)  # also if it is +inf
    is_top = distance == 0
    magnified = np.minimum(distance, LARGEST_GAP[dtype])
    gap = np.sort(magnified, axis=-1)[..., 1:2] if z.shape[-1] > 1 else 0
    # log1p(others) suffers from the gap; the distances to the largest, which it is added to, do not.
    far = np.where(mass == 0, 0, mass * distance).sum(-1, keepdims=True)
    value_bound = eps(dtype) * ((OPTIONS + gap) * total * log_sum + OPTIONS * far)
    # p (W - u) and u (1 - p) are each good to their last digits; where they nearly cancel, the difference is not.
    gap_of_top = np.where(is_top, gap, 0)
    grad_bound = (OPTIONS + magnified) * p * np.maximum(total - mass, 0) + (OPTIONS + gap_of_top) * mass * not_p
    hess_bound = (OPTIONS + BASE + magnified + gap_of_top) * total * p * not_p
    slack = slack * (1 + total) * _for_subnormals(dtype, distance)
    return (
        _reduced(value_bound[..., 0] + slack[..., 0], options),
        np.moveaxis(eps(dtype) * grad_bound + slack, -1, axis),
        np.moveaxis(eps(dtype) * hess_bound + slack, -1, axis),
    )


def _for_subnormals(dtype, distance):
    """Times `subnormal_slack`: each subnormal exponential may be half a unit off, a fourth of that, and their sum all of it."""
    return 1 + (distance > -np.log(float(np.finfo(dtype).tiny))).sum(-1, keepdims=True) / 4


def _reduced(per_row, options):
    return per_row if options.get("reduction", "mean") == "none" else np.nansum(per_row)


# --- the losses of one logit and focal loss ---------------------------------------------------------------------------
#
# Each result is a sum of products. A product's relative error is the sum of those of its factors, a power's gamma times
# that of its base; a sum's absolute error is that of its terms, which is relative where none of them cancel. Of the
# factors p, 1 - p and their logarithms are BASE and the distance of the logit in eps (DESIGN 2.5), masses and weights
# together OPTIONS. Where terms do cancel, as with targets between 0 and 1, the bound is relative to their sizes.


def binary_cross_entropy(options, logits, target, sample_weight=None):
    """`Expected` of ``BinaryCrossEntropy(**options)``: its terms are N and P times p, q and their logarithms."""
    dtype, x, target = _widened_arguments(logits, target)
    value, grad, hess = reference.BinaryCrossEntropy(**options).value_grad_hess(x, target, sample_weight)
    positive, negative = _binary_masses(options, x, target, sample_weight)
    with np.errstate(all="ignore"):
        if options.get("inputs", "logits") == "probs":
            value_bound = OPTIONS * (_times(positive, -np.log(x)) + _times(negative, -np.log1p(-x)))
            grad_bound = OPTIONS * (_times(positive, 1 / x) + _times(negative, 1 / (1 - x)))
            hess_bound = (OPTIONS + BASE) * np.abs(hess)
        else:
            two = _Sigmoids(dtype, x)
            value_bound = _times(positive, two.softplus_bound(-1)) + _times(negative, two.softplus_bound(1))
            grad_bound = _times(negative, (OPTIONS + two.far_p) * two.p) + _times(
                positive, (OPTIONS + two.far_q) * two.q
            )
            magnified = two.far_p + two.far_q
            hess_bound = _times(positive + negative, (OPTIONS + HESSIAN["base"] + magnified) * two.p * two.q)
    return _expected((value, grad, hess), (value_bound, grad_bound, hess_bound), options, dtype, positive + negative)


def binary_focal(options, logits, target, sample_weight=None):
    """`Expected` of ``BinaryFocalLoss(**options)``: terms of r^gamma times L, rho = r' / r, L' and p q."""
    dtype, x, target = _widened_arguments(logits, target)
    value, grad, hess = reference.BinaryFocalLoss(**options).value_grad_hess(x, target, sample_weight)
    options = dict(options)
    gamma, alpha = options.pop("gamma", 2.0), options.pop("alpha", None)
    positive, negative = _binary_masses(options | {"reduction": "none"}, x, target, None)
    weight = np.add(*_binary_masses(options, x, target, sample_weight))  # P + N = 1
    if alpha is not None:
        weight = weight * (alpha * positive + (1 - alpha) * negative)
    mass = positive + negative
    with np.errstate(all="ignore"):
        two = _Sigmoids(dtype, x)
        p, q = two.p, two.q
        magnified = two.far_p + two.far_q
        per_power = FOCAL["per_gamma"] + magnified
        not_p_t = _times(positive, q) + _times(negative, p)
        power = weight * not_p_t**gamma
        loss = _times(positive, two.softplus(-1)) + _times(negative, two.softplus(1))
        size = _times(negative, p) + _times(positive, q)
        # |r'| / r with the masses added, not subtracted: where both are large their difference has lost its digits.
        slope = np.where(p * q == 0, 0, p * q * mass / not_p_t)
        slope_loss = np.where(slope == 0, 0, slope * loss)
        value_bound = _times(power, (FOCAL["base"] + magnified + gamma * per_power) * loss)
        grad_bound = _times(power, (FOCAL["base"] + BASE + magnified + gamma * per_power) * (gamma * slope_loss + size))
        curvature = gamma * slope_loss * ((gamma + 1) * slope + 1) + 2 * gamma * slope * size + mass * p * q
        hess_bound = _times(
            power, (FOCAL["base"] + HESSIAN["base"] + 2 * magnified + (gamma + 2) * per_power) * curvature
        )
        # A power that is subnormal has lost bits before it meets the other factors.
        scale = _times(weight, 1 + (1 + gamma) ** 2 * (1 + loss))
    return _expected((value, grad, hess), (value_bound, grad_bound, hess_bound), options, dtype, scale)


@np.errstate(all="ignore")
def focal(options, logits, target, sample_weight=None):
    """`Expected` of ``FocalLoss(**options)``: terms of p and 1 - p times a and b of each class, as in the reference."""
    dtype, x, target = _widened_arguments(logits, target)
    value, grad, hess = reference.FocalLoss(**options).value_grad_hess(x, target, sample_weight)
    options = dict(options)
    gamma, axis = options.pop("gamma", 2.0), options.get("axis", -1)
    _, minus_mass = reference.CrossEntropy(**options, inputs="log_probs").value_and_grad(x, target, sample_weight)
    mass, z = np.moveaxis(-minus_mass, axis, -1), np.moveaxis(x, axis, -1)
    log_p = reference.log_softmax(z)
    p, not_p = np.exp(log_p), -np.expm1(log_p)
    largest = z.max(-1, keepdims=True)
    distance = np.minimum(np.where(z == largest, 0, largest - z), LARGEST_GAP[dtype])
    gap = np.where(distance == 0, np.sort(distance, axis=-1)[..., 1:2] if z.shape[-1] > 1 else 0, 0)
    ratio = np.where(not_p == 0, 1, -log_p / not_p)
    p_ratio = np.where(p == 0, 0, p * ratio)
    # Relative errors, in eps, of (1 - p)^gamma times anything of class c.
    per_class = FOCAL["base"] + gap + gamma * (FOCAL["per_gamma"] + gap)
    value_bound = _times(mass, per_class * not_p**gamma * -log_p).sum(-1)
    a = _times(mass, not_p**gamma * (gamma * p_ratio + 1))
    a_others = _sum_of_others(a * (per_class + OPTIONS))
    grad_bound = p * (a_others + distance * _sum_of_others(a)) + a * not_p * (per_class + gap + BASE)
    # Of each class (1 - p) b and b; the rounding of a p far below the largest is magnified in each of its products.
    per_class = per_class + HESSIAN["base"] + 2 * (FOCAL["per_gamma"] + gap) + distance
    b_not_p = _times(mass, gamma * not_p**gamma * (p_ratio * (1 + gamma * p) + 2 * p))
    b = np.where(not_p == 0, 0, b_not_p / not_p)
    hess_bound = p * not_p * (_sum_of_others(a * per_class) + distance * _sum_of_others(a) + a * per_class)
    hess_bound += (
        p**2 * (_sum_of_others(b * per_class) + 2 * distance * _sum_of_others(b)) + not_p * b_not_p * per_class
    )
    scale = _times(mass, (1 + gamma) ** 2 * (1 + np.where(np.isinf(log_p), 0, -log_p))).sum(-1, keepdims=True)
    scale = (1 + scale) * _for_subnormals(dtype, distance) - 1
    bounds = (value_bound, np.moveaxis(grad_bound, -1, axis), np.moveaxis(hess_bound, -1, axis))
    scales = (scale[..., 0], *[np.moveaxis(np.broadcast_to(scale, z.shape), -1, axis)] * 2)
    return _expected((value, grad, hess), bounds, options, dtype, scales)


def _times(mass, a):
    """``mass * a`` where 0 times anything is 0: what has no mass is not looked at."""
    return np.where(mass == 0, 0, mass * a)


def _sum_of_others(a):
    """The sum of all classes but one; the largest is left out, not taken away, as the others may be far below it."""
    is_largest = np.arange(a.shape[-1]) == a.argmax(-1, keepdims=True)
    rest = np.where(is_largest, 0, a).sum(-1, keepdims=True)
    return np.where(is_largest, rest, np.maximum(rest - a, 0) + a.max(-1, keepdims=True))


def _binary_masses(options, x, target, sample_weight):
    """(s pos_weight P, s N) of each element, reduction included: the gradient where a sigmoid is exactly 1."""
    loss = reference.BinaryCrossEntropy(**options | {"inputs": "logits"})
    sure = np.full_like(x, 1e5)  # exp(-1e5) is 0 in long double too
    _, minus_positive = loss.value_and_grad(-sure, target, sample_weight)
    _, negative = loss.value_and_grad(sure, target, sample_weight)
    return -minus_positive, negative


class _Sigmoids:
    """p = sigmoid(z) and q = sigmoid(-z), and how far each is from 1: what rounding may magnify."""

    def __init__(self, dtype, z):
        self.z, largest = z, LARGEST_GAP[dtype]
        self.e = np.exp(-np.abs(z))
        self.p = np.where(z >= 0, 1, self.e) / (1 + self.e)
        self.q = np.where(z <= 0, 1, self.e) / (1 + self.e)
        self.far_p, self.far_q = np.clip(-z, 0, largest), np.clip(z, 0, largest)
        self.far = np.minimum(np.abs(z), largest)

    def softplus(self, sign):
        """log(1 + exp(sign z))."""
        return np.log1p(self.e) + np.maximum(sign * self.z, 0)

    def softplus_bound(self, sign):
        """The error of softplus in eps: its logarithm is magnified, the distance it is added to is not."""
        return (OPTIONS + self.far) * np.log1p(self.e) + OPTIONS * np.maximum(sign * self.z, 0)


def _expected(results, bounds, options, dtype, scales):
    """`Expected` of bounds in eps, each widened by what subnormal numbers of these scales lose."""
    scales = scales if isinstance(scales, tuple) else (scales,) * 3
    value, grad, hess = (np.asarray(result) for result in results)
    # A bound that is NaN or infinite belongs to an infinite result, or to one that must be exactly what is expected.
    value_bound, grad_bound, hess_bound = (
        np.nan_to_num(eps(dtype) * bound, nan=0.0, posinf=0.0)
        + subnormal_slack(dtype) * (1 + np.nan_to_num(scale, nan=0.0, posinf=0.0))
        for bound, scale in zip(bounds, scales, strict=True)
    )
    return Expected(value, grad, hess, _reduced(value_bound, options), grad_bound, hess_bound)


_ORACLES = {
    "CrossEntropy": cross_entropy,
    "FocalLoss": focal,
    "BinaryCrossEntropy": binary_cross_entropy,
    "BinaryFocalLoss": binary_focal,
}
_known = {}


def expected_of(name, options, logits, target, sample_weight=None):
    """`Expected` of loss `name`; computed once for all instruction-set levels."""
    key = pickle.dumps((name, options, logits, target, sample_weight))
    if key not in _known:
        _known[key] = _ORACLES[name](options, logits, target, sample_weight)
    return _known[key]


def assert_results(results, expected, what=""):
    """(value, gradient, Hessian) within the bounds of `Expected`."""
    value, grad, hess = results
    assert_within(value, expected.value, expected.value_bound, f"value {what}")
    assert_within(grad, expected.grad, expected.grad_bound, f"gradient {what}")
    assert_within(hess, expected.hess, expected.hess_bound, f"Hessian {what}")


def assert_as_expected(name, options, logits, target, sample_weight=None):
    """The three calls of loss `name` give what the reference gives, and one another's numbers."""
    loss = getattr(fx, name)(**options)
    expected = expected_of(name, options, logits, target, sample_weight)
    results = loss.value_grad_hess(logits, target, sample_weight)
    what = f"of {name}({options}) of {target.dtype if hasattr(target, 'dtype') else target}, shape {np.shape(logits)}"
    assert_results(results, expected, what)
    # The three entry points are one computation: asking for less must not change a bit of the rest.
    value_with_grad, grad = loss.value_and_grad(logits, target, sample_weight)
    np.testing.assert_array_equal(value_with_grad, results[0], err_msg=what)
    np.testing.assert_array_equal(grad, results[1], err_msg=what)
    value_alone = loss(logits, target, sample_weight)
    assert_within(value_alone, expected.value, expected.value_bound, f"value alone {what}")


@dataclass
class ExactRow:
    """Softmax, its complement, the log-softmax and the log-sum-exp of one row, as mpmath numbers."""

    p: list
    not_p: list
    log_p: list
    log_sum_exp: object


def exact_row(row):
    """The textbook definitions of one row of finite logits, in `MPMATH_BITS` bits."""
    with mpmath.workprec(MPMATH_BITS):
        z = [mpmath.mpf(float(a)) for a in row]  # float32 and float64 convert without rounding
        largest = max(z)
        e = [mpmath.exp(a - largest) for a in z]
        total = mpmath.fsum(e)
        log_sum_exp = largest + mpmath.log(total)
        return ExactRow(
            [a / total for a in e], [(total - a) / total for a in e], [a - log_sum_exp for a in z], log_sum_exp
        )


def error_in_eps(actual, exact, dtype):
    """``|actual - exact| / |exact|`` in eps, less what a subnormal result may lose."""
    with mpmath.workprec(MPMATH_BITS):
        error = abs(mpmath.mpf(float(actual)) - exact)
        if exact == 0:
            return 0.0 if error == 0 else np.inf
        error = max(error - float(subnormal_slack(dtype)), 0)
        return float(error / abs(exact) / eps(dtype))
