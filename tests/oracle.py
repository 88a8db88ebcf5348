"""What a result should be and how far from it rounding may lead: the reference in higher precision, and mpmath."""

from dataclasses import dataclass

import mpmath
import numpy as np
from tolerances import BASE, LARGEST_GAP, OPTIONS, eps, subnormal_slack

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
    return a.astype(np.float64 if a.dtype.itemsize == 4 else np.longdouble)


def cross_entropy(options, logits, target, sample_weight=None):
    """`Expected` of ``CrossEntropy(**options)``, from the reference in higher precision."""
    logits = np.asarray(logits)
    dtype = logits.dtype.newbyteorder("=")
    target = np.asarray(target)
    if target.dtype.kind == "f":
        target = target.astype(np.result_type(widened(logits), np.float64))
    x = widened(logits)
    value, grad, hess = reference.CrossEntropy(**options).value_grad_hess(x, target, sample_weight)
    bounds = _bounds(options, dtype, x, target, sample_weight, grad, hess)
    return Expected(np.asarray(value), grad, hess, *bounds)


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
    slack = slack * (1 + total)
    return (
        _reduced(value_bound[..., 0] + slack[..., 0], options),
        np.moveaxis(eps(dtype) * grad_bound + slack, -1, axis),
        np.moveaxis(eps(dtype) * hess_bound + slack, -1, axis),
    )


def _reduced(per_row, options):
    return per_row if options.get("reduction", "mean") == "none" else np.nansum(per_row)


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
