/* The formulas of the softmax family, each once; those of cpu/kernels/formulas.h, where they are derived.
 *
 * For a row with logits z, m = max z and e_c = exp(z_c - m):
 *   others     = sum of e_c without one largest           sum       = 1 + others
 *   log_sum    = log1p(others)                            LSE - z_c = log_sum + (m - z_c)
 *   p_c        = e_c / sum                                1 - p_c   = complement(e_c) / sum
 *
 * The largest term, which is exactly 1, is left out of the sum, so that all keep their relative precision however
 * confident the row is. With target masses u_c of total W the gradient p_c W - u_c is written
 * p_c (W - u_c) - u_c (1 - p_c), and W kept as an unevaluated sum of two numbers.
 */

struct Softmax {
    REAL max, others, sum, inverse, log_sum;
};

/* `below` is the sum over e < 1, `ones` the number of the others. */
DEVICE Softmax softmax_of(REAL max, Pair below, REAL ones)
{
    Softmax row;
    const bool has_no_limit = !is_finite(max) && !(total(below) + ones == 1);
    row.max = max;
    add(below, ones - 1);
    row.others = has_no_limit ? (REAL)NOT_A_NUMBER : total(below);
    row.sum = 1 + row.others;
    row.inverse = 1 / row.sum;
    row.log_sum = log1p_of(row.others);
    return row;
}

/* z - m, 0 at the maximum also where it is infinite. */
DEVICE REAL shift(REAL z, REAL m) { return z == m ? 0 : z - m; }

/* exp(z - m); at an infinite maximum a +inf counts 1, everything else nothing. */
DEVICE REAL exponential(REAL z, REAL m)
{
    if (!is_finite(m)) return z == (REAL)INFINITE ? (REAL)1 : z == z ? (REAL)0 : z;
    return exponential_of(z - m);
}

/* log(sum exp z) of a row; where the maximum is infinite the limit, unless there is a NaN. */
DEVICE REAL log_sum_exp(const Softmax &row, REAL sum_of_all)
{ return !is_finite(row.max) && sum_of_all == sum_of_all ? row.max : row.max + row.log_sum; }

/* sum * (1 - p_c). An approximate exponential may be a little larger than 1. */
DEVICE REAL complement(const Softmax &row, REAL e) { return e >= 1 ? row.others : row.sum - e; }

/* Target mass w ((1 - eps) t + eps / K') of a class; masked ones get nothing of the smoothing. */
DEVICE REAL target_mass(REAL z, REAL t, REAL weight, REAL one_minus_eps, REAL uniform, REAL masked)
{ return weight * multiply_add(one_minus_eps, t, z == masked ? 0 : uniform); }

/* u x, with 0 * inf = 0. */
DEVICE REAL without_zero(REAL u, REAL x) { return u == 0 ? 0 : u * x; }

/* The gradient of a class with target mass u, all others having other_mass; scaled_inverse = scale / sum. Half of a
 * large one comes first: a small probability times a small mass may be nothing before it meets the scale. */
DEVICE REAL weighed_gradient(const Softmax &row, REAL e, REAL u, REAL other_mass, REAL scaled_inverse)
{
    const bool is_large = scaled_inverse > 2;
    const REAL first = is_large ? (REAL)0.5 * scaled_inverse : (REAL)1, rest = is_large ? (REAL)2 : scaled_inverse;
    return multiply_add(e * first, other_mass, -(u * (complement(row, e) * first))) * rest;
}

/* Hessian diagonal scale W p (1 - p); `scaled_inverse` as above but with the factor W. */
DEVICE REAL hessian(const Softmax &row, REAL e, REAL scaled_inverse)
{ return (e * scaled_inverse) * (complement(row, e) * row.inverse); }

/* ---- the power of both focal losses ---- */

/* r^gamma, r in [0, 1], gamma > 0: the whole part by squaring, which multiplies the error of r by gamma and no more,
 * the rest in log space. */
DEVICE REAL power_of_fraction(REAL r, REAL gamma)
{
    u32 whole = gamma < 1024 ? (u32)gamma : 0;
    const REAL rest = gamma - (REAL)whole;
    REAL power = 1;
    for (REAL square = r; whole; whole >>= 1, square *= square)
        if (whole & 1) power *= square;
    if (rest > 0) {
        const REAL exponent = rest * log_of(r);
        power *= exponential_of(exponent > 0 ? 0 : exponent); /* r may round to above 1 */
    }
    return power;
}

DEVICE REAL modulation_of(REAL r, REAL gamma)
{ return gamma == 2 ? r * r : gamma == 1 ? r : gamma == 0 ? (REAL)1 : power_of_fraction(r, gamma); }

/* Beyond 1 / eps a unit in the last place of r decides between 0 and 1; its square must stay finite. */
DEVICE double usable_gamma(double gamma)
{
    const double largest = 1e4 / (double)REAL_EPSILON;
    return gamma < largest ? gamma : largest;
}

/* ---- focal loss ----
 *
 * Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017. With u_c the target mass, L_c = LSE - z_c, q = 1 - p:
 *   value     sum u_c q_c^gamma L_c
 *   a_c       = u_c q_c^gamma (gamma p_c L_c / q_c + 1)                            A = sum a_c
 *   gradient  p_k A - a_k                                                          (cross-entropy's, with a for u)
 *   b_c       = u_c gamma p_c q_c^(gamma - 1) (L_c / q_c (1 - gamma p_c) - 2)      B = sum b_c
 *   Hessian   p_k q_k (A - a_k) - p_k^2 (B - b_k) + q_k (p_k a_k - q_k b_k)
 * L / q goes to 1 for a certain class; nothing but that quotient is ever divided by q where q may be 0.
 */
struct Focal {
    REAL modulation;      /* q^gamma */
    REAL mass, curvature; /* a / u and b / u */
};

DEVICE Focal focal_of(const Softmax &row, REAL e, REAL minus_log_p, REAL gamma)
{
    const REAL p = e * row.inverse, q = complement(row, e) * row.inverse;
    const REAL ratio = q == 0 ? 1 : minus_log_p / q, p_ratio = p == 0 ? 0 : p * ratio;
    Focal focal;
    focal.modulation = modulation_of(q, gamma);
    focal.mass = focal.modulation * multiply_add(gamma, p_ratio, 1);
    focal.curvature = focal.modulation / maximum(q, SMALLEST_NORMAL)
        * (gamma * multiply_add(p_ratio, multiply_add(-gamma, p, 1), -(p + p)));
    return focal;
}

DEVICE REAL focal_hessian(const Softmax &row, REAL e, REAL a, REAL b, Pair total_a, Pair total_b)
{
    const REAL p = e * row.inverse, q = complement(row, e) * row.inverse;
    const REAL other_a = (total_a.high - a) + total_a.low, other_b = (total_b.high - b) + total_b.low;
    return multiply_add(p, multiply_add(q, other_a, -(p * other_b)), q * multiply_add(p, a, -(q * b)));
}
