/* The formulas of the binary losses, each once; those of cpu/kernels/binary.h, where they are derived.
 *
 * For a logit z, e = exp(-|z|) <= 1, inverse = 1 / (1 + e) and log_sum = log1p(e):
 *   sigmoid(|z|) = inverse    sigmoid(-|z|) = e inverse    softplus(z) = max(z, 0) + log_sum
 *
 * A target t has two masses, positive = (1 - eps) t + eps / 2 and negative = (1 - eps) (1 - t) + eps / 2. One of them
 * is `against` the sign of the logit, the other `with` it; with the sum of both
 *   value     against |z| + sum log_sum
 *   gradient  sign(z) (against - sum e inverse)
 *   Hessian   sum e inverse^2
 * Nothing is formed as one less a probability, and 0 * inf = 0: what has no mass adds nothing, wherever the logit is.
 */
struct Masses {
    REAL positive, negative;
};
struct Results {
    REAL value, grad, hess;
};

DEVICE REAL times(REAL mass, REAL x) { return mass == 0 ? 0 : mass * x; }

DEVICE Masses masses_of(REAL t, REAL one_minus_eps, REAL half_eps)
{ return {multiply_add(one_minus_eps, t, half_eps), multiply_add(one_minus_eps, 1 - t, half_eps)}; }

struct Logit {
    REAL distance, e, inverse, log_sum, sign;
};

DEVICE Logit logit_of(REAL z)
{
    Logit x;
    x.distance = absolute(z);
    x.e = exponential_of(-x.distance);
    x.inverse = 1 / (1 + x.e);
    x.log_sum = log1p_of(x.e);
    x.sign = z < 0 ? -1 : 1;
    return x;
}

DEVICE REAL sigmoid_of(REAL z)
{
    const REAL e = exponential_of(-absolute(z));
    return (z < 0 ? e : (REAL)1) / (1 + e);
}
DEVICE REAL log_sigmoid_of(REAL z) { return (z < 0 ? z : z != z ? z : 0) - log1p_of(exponential_of(-absolute(z))); }

DEVICE Results binary_of(const Logit &x, Masses masses, REAL scale)
{
    const REAL sum = masses.positive + masses.negative, against = x.sign < 0 ? masses.positive : masses.negative;
    const REAL sum_e = sum * x.e;
    Results results;
    results.value = multiply_add(sum, x.log_sum, times(against, x.distance));
    results.grad = x.sign * scale * multiply_add(-sum_e, x.inverse, against);
    results.hess = scale * (sum_e * x.inverse * x.inverse);
    return results;
}

/* ---- from probabilities ---- */

DEVICE REAL over(REAL mass, REAL scaled, REAL x) { return mass == 0 ? 0 : scaled / x; }

/* NaN outside [0, 1]. The scale comes before the division, which may overflow without it. */
DEVICE Results probability_of(REAL x, Masses masses, REAL scale)
{
    const REAL p = x > 0 ? (x <= 1 ? x : (REAL)NOT_A_NUMBER) : x == 0 ? (REAL)0 : (REAL)NOT_A_NUMBER, q = 1 - p;
    const REAL pull = over(masses.positive, scale * masses.positive, p),
               push = over(masses.negative, scale * masses.negative, q);
    Results results;
    results.value = times(masses.positive, -log_of(p)) + times(masses.negative, -log1p_of(-p)) + (p - p);
    results.grad = push - pull + (p - p);
    results.hess = over(masses.negative, push, q) + over(masses.positive, pull, p) + (p - p);
    return results;
}

/* ---- focal loss ----
 *
 * Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, with r = 1 - p_t = (against + with e) / (1 + e):
 *   value     alpha_t r^gamma L
 *   rho       = r' / r = p q (negative - positive) / r
 *   gradient  alpha_t r^gamma (gamma rho L + L')
 *   Hessian   alpha_t r^gamma (gamma L ((gamma - 1) rho^2 + rho (q - p)) + 2 gamma rho L' + L'')
 * where L, L', L'' are those of the cross-entropy. Where r is 0 (a sure target, so far away that exp(-|z|) is 0) rho
 * goes to its limit. All but for the sign of the logit.
 */

/* r^gamma from log r <= 0. What is rounded off the exponent counts as often as that is large, and is made good. */
DEVICE REAL power_of_log(REAL log_r, double exact_gamma)
{
    const REAL gamma = (REAL)exact_gamma, rest = (REAL)(exact_gamma - (double)gamma);
    const REAL limited = maximum(log_r, -(REAL_LARGEST / ((REAL)1e4 / REAL_EPSILON) / 2));
    const REAL exponent = gamma * limited, rounded_off = multiply_add(gamma, limited, -exponent);
    const REAL power = exponential_of(exponent);
    return multiply_add(power, multiply_add(rest, limited, rounded_off), power);
}

DEVICE Results binary_focal_of(const Logit &x, Masses masses, double exact_gamma, REAL alpha, REAL scale)
{
    const REAL gamma = (REAL)exact_gamma, against = x.sign < 0 ? masses.positive : masses.negative,
               with = x.sign < 0 ? masses.negative : masses.positive, small = x.e * x.inverse;
    const REAL sides = multiply_add(with, x.e, against), difference = against - with;
    const REAL value = times(against, x.distance) + x.log_sum, gradient = multiply_add(-x.e, x.inverse, against);
    const REAL r = x.inverse * sides, rho = sides == 0 ? difference : small / sides * difference;
    const bool is_sure = against * with == 0;
    REAL power;
    if (gamma == 0 || gamma == 1 || gamma == 2) power = modulation_of(r, gamma);
    else if (is_sure) power = power_of_log(-(times(with, x.distance) + x.log_sum), exact_gamma);
    else power = power_of_fraction(r, gamma);
    const REAL rho_value = times(rho, value);
    const REAL curvature =
        multiply_add(rho_value, multiply_add(gamma - 1, rho, -(x.inverse - small)), 2 * rho * gradient);
    Results results;
    results.value = value == (REAL)INFINITE ? value : alpha * power * value; /* also where the power underflows */
    results.grad = x.sign * scale * (alpha * power * multiply_add(gamma, rho_value, gradient));
    results.hess = scale * (alpha * power * multiply_add(gamma, curvature, small * x.inverse));
    return results;
}
