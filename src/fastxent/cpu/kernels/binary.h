/* The formulas of the binary losses, each once; lanes are elements.
 *
 * For a logit z, e = exp(-|z|) <= 1 and log_sum = log1p(e):
 *   sigmoid(|z|) = 1 / (1 + e)    sigmoid(-|z|) = e / (1 + e)    softplus(z) = max(z, 0) + log_sum
 *
 * Design
 * a) p = sigmoid(z) and q = sigmoid(-z) are both formed like this, never as 1 - p, so that both keep their relative
 *    precision; so do both softplus.
 * b) A target t has two masses, positive = (1 - eps) t + eps / 2 and negative = (1 - eps) (1 - t) + eps / 2, which plays the
 *    role of 1 - t. Formed as 1 - positive it would cancel for small eps.
 * c) The gradient is negative p - positive q: one of the terms is 0 for a sure target, and nothing cancels.
 * d) 0 * inf = 0: what has no mass adds nothing, wherever the logit is.
 */
#ifndef FASTXENT_BINARY_H
#define FASTXENT_BINARY_H

#include "focus.h"

typedef struct {
    VECTOR p, q;
    VECTOR softplus, softplus_minus; /* of z and of -z: -log q and -log p */
} BINARY;

INLINE BINARY binary_of(VECTOR z)
{
    const VECTOR zero = broadcast(0), e = exp_nonpositive(-absolute(z)), sum = e + (REAL)1, inverse = (REAL)1 / sum;
    const VECTOR log_sum = log1p_of_fraction(e), small = e * inverse;
    const MASK is_negative = less(z, zero);
    BINARY binary;
    binary.p = choose(is_negative, small, inverse);
    binary.q = choose(is_negative, inverse, small);
    binary.softplus = maximum(z, zero) + log_sum;
    binary.softplus_minus = maximum(-z, zero) + log_sum;
    return binary;
}

/* The same from a probability; NaN outside [0, 1]. log(1 - p) as in log1p: what 1 - p loses is added. */
INLINE BINARY binary_of_probability(VECTOR p)
{
    const VECTOR zero = broadcast(0), one = broadcast(1), invalid = broadcast((REAL)NAN);
    const VECTOR at_most_one = choose(less(one, p), invalid, p);
    const VECTOR valid = choose(less(zero, p), at_most_one, choose(equal(p, zero), zero, invalid)); /* -0.0 becomes 0 */
    const VECTOR q = one - valid, correction = ((one - q) - valid) / q;
    BINARY binary;
    binary.p = valid;
    binary.q = q;
    binary.softplus = choose(equal(q, zero), broadcast((REAL)INFINITY), -log_of_normal(q, correction)) + (valid - valid);
    binary.softplus_minus = -log_of_fraction(valid);
    return binary;
}

/* The masses of a target, `weight` that of the positive class. */
typedef struct {
    VECTOR positive, negative;
} MASSES;

typedef struct {
    VECTOR one_minus_eps, half_eps;
} SMOOTHING;

INLINE MASSES masses_of(VECTOR t, SMOOTHING smoothing)
{
    MASSES masses;
    masses.positive = smoothing.one_minus_eps * t + smoothing.half_eps;
    masses.negative = smoothing.one_minus_eps * ((REAL)1 - t) + smoothing.half_eps;
    return masses;
}

INLINE VECTOR times(VECTOR mass, VECTOR x) { return choose(equal(mass, broadcast(0)), broadcast(0), mass * x); }

INLINE VECTOR binary_value(const BINARY *x, MASSES masses)
{
    return times(masses.positive, x->softplus_minus) + times(masses.negative, x->softplus);
}
/* The same for finite logits and masses. */
INLINE VECTOR binary_value_of_finite(const BINARY *x, MASSES masses)
{
    return multiply_add(masses.positive, x->softplus_minus, masses.negative * x->softplus);
}
INLINE VECTOR binary_gradient(const BINARY *x, MASSES masses) { return masses.negative * x->p - masses.positive * x->q; }
INLINE VECTOR binary_hessian(const BINARY *x, MASSES masses) { return (masses.positive + masses.negative) * (x->p * x->q); }

/* With respect to a probability, times `scale`, which comes first because mass / p may overflow where scale mass / p does
 * not. */
INLINE VECTOR over(VECTOR mass, VECTOR scaled, VECTOR x) { return choose(equal(mass, broadcast(0)), broadcast(0), scaled / x); }
INLINE VECTOR probability_gradient(const BINARY *x, MASSES masses, VECTOR scale)
{
    return over(masses.negative, scale * masses.negative, x->q) - over(masses.positive, scale * masses.positive, x->p);
}
INLINE VECTOR probability_hessian(const BINARY *x, MASSES masses, VECTOR scale)
{
    return over(masses.negative, scale * masses.negative / x->q, x->q)
         + over(masses.positive, scale * masses.positive / x->p, x->p);
}

/* Focal loss (Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017) with r = 1 - p_t = positive q + negative p:
 *   value     alpha_t r^gamma L
 *   rho       = r' / r = p q (negative - positive) / r
 *   gradient  alpha_t r^gamma (gamma rho L + L')
 *   Hessian   alpha_t r^gamma (gamma L ((gamma - 1) rho^2 + rho (q - p)) + 2 gamma rho L' + L'')
 * where L, L', L'' are those of the cross-entropy. Every term of r is >= 0. Where r is 0 (a sure target, so far away that
 * exp(-|z|) is 0) rho goes to its limit, negative - positive. */
typedef struct {
    VECTOR alpha, factor, rho, rho_value, value, gradient, hessian;
    REAL gamma;
} BINARY_FOCAL;

INLINE BINARY_FOCAL binary_focal_of(const BINARY *x, MASSES masses, FOCUS focus, VECTOR alpha, VECTOR one_minus_alpha,
                                    const int finite)
{
    const VECTOR zero = broadcast(0), r = masses.positive * x->q + masses.negative * x->p;
    const VECTOR difference = masses.negative - masses.positive;
    BINARY_FOCAL focal;
    focal.alpha = alpha * masses.positive + one_minus_alpha * masses.negative;
    focal.factor = focal.alpha * modulation_of(r, focus);
    focal.rho = choose(equal(r, zero), difference, x->p * x->q / r * difference);
    focal.value = finite ? binary_value_of_finite(x, masses) : binary_value(x, masses);
    focal.gradient = binary_gradient(x, masses);
    focal.hessian = binary_hessian(x, masses);
    focal.rho_value = finite ? focal.rho * focal.value : times(focal.rho, focal.value);
    focal.gamma = focus.gamma;
    return focal;
}

/* An infinite loss stays so, however small r^gamma is. */
INLINE VECTOR binary_focal_value(const BINARY_FOCAL *focal)
{
    const VECTOR infinite = broadcast((REAL)INFINITY);
    return choose(equal(focal->value, infinite), infinite, focal->factor * focal->value);
}
INLINE VECTOR binary_focal_gradient(const BINARY_FOCAL *focal)
{
    return focal->factor * (focal->gamma * focal->rho_value + focal->gradient);
}
INLINE VECTOR binary_focal_hessian(const BINARY_FOCAL *focal, const BINARY *x)
{
    const REAL gamma = focal->gamma;
    /* No product of the gradient occurs here: shared, it would be rounded otherwise than where there is no Hessian. */
    const VECTOR curvature = focal->rho_value * ((gamma - (REAL)1) * focal->rho + (x->q - x->p))
                             + (REAL)2 * focal->rho * focal->gradient;
    return focal->factor * (gamma * curvature + focal->hessian);
}

#endif
