/* The formulas of the binary losses, each once; lanes are elements.
 *
 * For a logit z, e = exp(-|z|) <= 1, small = e / (1 + e) and log_sum = log1p(e):
 *   sigmoid(|z|) = 1 / (1 + e)    sigmoid(-|z|) = small    softplus(z) = max(z, 0) + log_sum
 *
 * Design
 * a) Both sigmoids are formed like this, never as one less the other, so that both keep their relative precision; so do
 *    both softplus.
 * b) A target t has two masses, positive = (1 - eps) t + eps / 2 and negative = (1 - eps) (1 - t) + eps / 2, which
 *    plays the role of 1 - t. Formed as 1 - positive it would cancel for small eps. Their sum is 1 but for pos_weight.
 * c) One of them is `against` the sign of the logit, the other `with` it. In these terms, and with the sum of both,
 *      value     against |z| + sum log_sum
 *      gradient  sign(z) (against - sum small)
 *      Hessian   sum small / (1 + e)
 *    so that a loss takes one logarithm, nothing cancels for a sure target, and the gradient no more than it must.
 * d) 0 * inf = 0: what has no mass adds nothing, wherever the logit is.
 * e) What must agree in all copies of the code, the gradient, is written with multiply_add.
 */
#ifndef FASTXENT_BINARY_H
#define FASTXENT_BINARY_H

#include "focus.h"

typedef struct {
    VECTOR z, distance, e, inverse, log_sum; /* |z|, exp(-|z|), 1 / (1 + e) */
    MASK is_negative;                        /* for choose() */
} LOGIT;

/* `e` is exp(-|z|), which callers compute for many logits first. */
INLINE LOGIT logit_of(VECTOR z, VECTOR e, const int wants_inverse)
{
    LOGIT x;
    x.z = z;
    x.distance = absolute(z);
    x.e = e;
    x.inverse = e;
    x.log_sum = log1p_and_inverse(e, &x.inverse, wants_inverse);
    x.is_negative = has_sign(z);
    return x;
}

INLINE VECTOR sigmoid_of(VECTOR z, VECTOR e) { return choose(has_sign(z), e, broadcast(1)) / (e + (REAL)1); }
INLINE VECTOR log_sigmoid_of(VECTOR z, VECTOR e) { return -(maximum(-z, broadcast(0)) + log1p_of_fraction(e)); }

/* The masses of a target. */
typedef struct {
    VECTOR positive, negative;
} MASSES;

typedef struct {
    VECTOR one_minus_eps, half_eps;
} SMOOTHING;

INLINE MASSES masses_of(VECTOR t, SMOOTHING smoothing)
{
    MASSES masses;
    masses.positive = multiply_add(smoothing.one_minus_eps, t, smoothing.half_eps);
    masses.negative = multiply_add(smoothing.one_minus_eps, (REAL)1 - t, smoothing.half_eps);
    return masses;
}

INLINE VECTOR times(VECTOR mass, VECTOR x) { return choose(equal(mass, broadcast(0)), broadcast(0), mass * x); }

/* The masses by the sign of the logit. */
typedef struct {
    VECTOR against, with;
} SIDES;

INLINE SIDES sides_of(const LOGIT *x, MASSES masses)
{
    SIDES sides;
    sides.against = choose(x->is_negative, masses.positive, masses.negative);
    sides.with = choose(x->is_negative, masses.negative, masses.positive);
    return sides;
}

/* `sum_log` and `sum_e` are log_sum and e times the sum of the masses. */
INLINE VECTOR binary_value(const LOGIT *x, VECTOR against, VECTOR sum_log, const int finite)
{
    const VECTOR distance = finite ? x->distance : choose(equal(against, broadcast(0)), broadcast(0), x->distance);
    return multiply_add(against, distance, sum_log);
}
/* But for the sign of the logit. */
INLINE VECTOR binary_gradient(const LOGIT *x, VECTOR against, VECTOR sum_e)
{ return multiply_add(-sum_e, x->inverse, against); }
INLINE VECTOR binary_hessian(const LOGIT *x, VECTOR sum_e) { return sum_e * x->inverse * x->inverse; }

/* ---- from probabilities ---- */

typedef struct {
    VECTOR p, q, minus_log_p, minus_log_q;
} PROBABILITY;

/* NaN outside [0, 1]. log(1 - p) as in log1p: what 1 - p loses is added. */
INLINE PROBABILITY probability_of(VECTOR p)
{
    const VECTOR zero = broadcast(0), one = broadcast(1), invalid = broadcast((REAL)NAN);
    const VECTOR at_most_one = choose(less(one, p), invalid, p);
    const VECTOR valid = choose(less(zero, p), at_most_one, choose(equal(p, zero), zero, invalid)); /* -0.0 becomes 0 */
    const VECTOR q = one - valid, correction = ((one - q) - valid) / q;
    PROBABILITY x;
    x.p = valid;
    x.q = q;
    x.minus_log_q = choose(equal(q, zero), broadcast((REAL)INFINITY), -log_of_normal(q, correction)) + (valid - valid);
    x.minus_log_p = -log_of_fraction(valid);
    return x;
}

INLINE VECTOR probability_value(const PROBABILITY *x, MASSES masses)
{ return times(masses.positive, x->minus_log_p) + times(masses.negative, x->minus_log_q); }
/* With respect to a probability, times `scale`, which comes first because mass / p may overflow where scale mass / p
 * does not. */
INLINE VECTOR over(VECTOR mass, VECTOR scaled, VECTOR x)
{ return choose(equal(mass, broadcast(0)), broadcast(0), scaled / x); }
INLINE VECTOR probability_gradient(const PROBABILITY *x, MASSES masses, VECTOR scale)
{ return over(masses.negative, scale * masses.negative, x->q) - over(masses.positive, scale * masses.positive, x->p); }
INLINE VECTOR probability_hessian(const PROBABILITY *x, MASSES masses, VECTOR scale)
{
    return over(masses.negative, scale * masses.negative / x->q, x->q)
        + over(masses.positive, scale * masses.positive / x->p, x->p);
}

/* ---- focal loss ----
 *
 * Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, with r = 1 - p_t = (against + with e) / (1 + e):
 *   value     alpha_t r^gamma L
 *   rho       = r' / r = p q (negative - positive) / r
 *   gradient  alpha_t r^gamma (gamma rho L + L')
 *   Hessian   alpha_t r^gamma (gamma L ((gamma - 1) rho^2 + rho (q - p)) + 2 gamma rho L' + L'')
 * where L, L', L'' are those of the cross-entropy. Every term of r is >= 0. Where r is 0 (a sure target, so far away
 * that exp(-|z|) is 0) rho goes to its limit, negative - positive.
 *
 * For gamma 1 and 2 the gradient takes r rho = p q (negative - positive) instead, which needs no division; and where
 * the target is 0 or 1, log r is at hand. */
typedef struct {
    VECTOR alpha, sides, difference, value, gradient;
    VECTOR lower, upper, lever; /* r^gamma = lower upper, lever = upper rho */
    REAL gamma;
} BINARY_FOCAL;

/* But for the sign of the logit. */
INLINE VECTOR rho_of(const BINARY_FOCAL *focal, const LOGIT *x)
{
    const VECTOR quotient = x->e * x->inverse / focal->sides * focal->difference;
    return choose(equal(focal->sides, broadcast(0)), focal->difference, quotient);
}

INLINE BINARY_FOCAL binary_focal_of(
    const LOGIT *x, MASSES masses, FOCUS focus, VECTOR alpha, VECTOR one_minus_alpha, const int finite)
{
    const VECTOR zero = broadcast(0), one = broadcast(1);
    const SIDES sides = sides_of(x, masses);
    BINARY_FOCAL focal;
    focal.gamma = focus.gamma;
    focal.alpha = multiply_add(alpha, masses.positive, one_minus_alpha * masses.negative);
    focal.sides = multiply_add(sides.with, x->e, sides.against);
    focal.difference = sides.against - sides.with;
    focal.value = binary_value(x, sides.against, x->log_sum, finite);
    focal.gradient = binary_gradient(x, sides.against, x->e);
    if (focus.whole >= 0) {
        const VECTOR r = x->inverse * focal.sides;
        focal.lower = focus.whole == 2 ? r : one;
        focal.upper = focus.whole == 0 ? one : r;
        focal.lever = x->e * x->inverse * x->inverse * focal.difference;
    } else {
        const MASK is_sure = equal(sides.against * sides.with, zero);
        const VECTOR far = finite ? sides.with * x->distance : times(sides.with, x->distance);
        focal.upper = one;
        focal.lower = power_of_log(-(far + x->log_sum), focus);
        focal.lever = choose(equal(sides.against, one), x->e * x->inverse, -x->inverse);
        if (UNLIKELY(any(negate(is_sure)))) {
            focal.lower = choose(is_sure, focal.lower, power_of_fraction(x->inverse * focal.sides, focus.gamma));
            focal.lever = choose(is_sure, focal.lever, rho_of(&focal, x));
        }
    }
    return focal;
}

/* An infinite loss stays so, however small r^gamma is. */
INLINE VECTOR binary_focal_value(const BINARY_FOCAL *focal, const int finite)
{
    const VECTOR infinite = broadcast((REAL)INFINITY);
    const VECTOR value = focal->alpha * focal->lower * (focal->upper * focal->value);
    return finite ? value : choose(equal(focal->value, infinite), infinite, value);
}
/* But for the sign of the logit. */
INLINE VECTOR binary_focal_gradient(const BINARY_FOCAL *focal, const int finite)
{
    const VECTOR pulled = finite ? focal->lever * focal->value : times(focal->lever, focal->value);
    return focal->alpha * focal->lower * multiply_add(broadcast(focal->gamma), pulled, focal->upper * focal->gradient);
}
INLINE VECTOR binary_focal_hessian(const BINARY_FOCAL *focal, const LOGIT *x, const int finite)
{
    const REAL gamma = focal->gamma;
    const VECTOR rho = rho_of(focal, x), rho_value = finite ? rho * focal->value : times(rho, focal->value);
    const VECTOR small = x->e * x->inverse;
    const VECTOR bent = rho_value * ((gamma - (REAL)1) * rho - (x->inverse - small));
    const VECTOR curvature = bent + (REAL)2 * rho * focal->gradient;
    return focal->alpha * (focal->lower * focal->upper) * (gamma * curvature + small * x->inverse);
}

#endif
