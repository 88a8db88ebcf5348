/* The formulas of the softmax family, each once, for lanes that are rows or classes alike.
 *
 * For a row with logits z, m = max z and e_c = exp(z_c - m):
 *   others     = sum of e_c without the largest           sum       = 1 + others
 *   log_sum    = log1p(others)                            LSE - z_c = log_sum + (m - z_c)
 *   p_c        = e_c / sum                                1 - p_c   = complement(e_c) / sum
 *
 * Design
 * a) The largest term, which is exactly 1, is left out of the sum. So log_sum keeps its relative precision however
 *    confident the row is, LSE - z_c is a sum of two terms that are not negative, and 1 - p_c never cancels.
 * b) `below` (the sum over e < 1) is `others` unless the maximum is shared; then sum >= 2 and sum - 1 loses nothing.
 *    Hence sums over e < 1 are needed only for rows with sum < 2.
 * c) Sums are pairwise over 8 vectors, then compensated (Knuth's TwoSum; The Art of Computer Programming 2, 4.2.2),
 *    so their error does not grow with the number of classes: 128 000 equal terms are as exact as three.
 * d) With class weights, smoothing or probabilities, a row has target masses u_c = w_c t~_c of total W. The gradient
 *    p_c W - u_c is written p_c (W - u_c) - u_c (1 - p_c), which for a one-hot target has no cancellation; W is kept
 *    as an unevaluated sum of two numbers, so that W - u_c is exact for nearly one-hot targets too.
 * e) A maximum of +-inf leads to the slow twin of the exponentials: a single +inf is a one-hot row, several of them or
 *    nothing but -inf make the row NaN (DESIGN 2.3).
 */
#ifndef FASTXENT_FORMULAS_H
#define FASTXENT_FORMULAS_H

#include "focus.h"
#include "transpose.h"

typedef struct {
    VECTOR high, low;
} PAIR;

INLINE PAIR two_sum(VECTOR a, VECTOR b)
{
    VECTOR sum = a + b, from_b = sum - a;
    PAIR pair = {sum, (a - (sum - from_b)) + (b - from_b)};
    return pair;
}

INLINE PAIR add(PAIR sum, VECTOR term)
{
    PAIR next = two_sum(sum.high, term);
    next.low += sum.low;
    return next;
}

/* high + low; an infinite sum has a NaN for its error. */
INLINE VECTOR total(PAIR pair) { return choose(equal(pair.low, pair.low), pair.high + pair.low, pair.high); }

INLINE PAIR one_of(VECTOR x)
{
    PAIR pair = {x, broadcast(0)};
    return pair;
}

INLINE PAIR zero_pair(void)
{
    PAIR pair = {broadcast(0), broadcast(0)};
    return pair;
}

/* exp(z - m); m finite. */
INLINE VECTOR exponential(VECTOR z, VECTOR m) { return exp_nonpositive(z - m); }

/* Its slow twin, for any m: at an infinite maximum a +inf counts 1, everything else nothing. */
INLINE VECTOR exponential_any(VECTOR z, VECTOR m)
{
    VECTOR limit = choose(equal(z, broadcast((REAL)INFINITY)), broadcast(1), choose(equal(z, z), broadcast(0), z));
    return choose(not_finite(m), limit, exponential(z, m));
}

/* z - m, 0 at the maximum also where it is infinite. */
INLINE VECTOR shift(VECTOR z, VECTOR m) { return choose(equal(z, m), broadcast(0), z - m); }

/* Sum of `count` vectors of exponentials: pairwise by 8, compensated from 16 on (below, no error can build up). */
#define DEFINE_SUM(name, term) \
    INLINE VECTOR name(const REAL *values, int64_t count) \
    { \
        PAIR sum = zero_pair(); \
        VECTOR eight = broadcast(0), rest = broadcast(0); \
        int64_t i = 0; \
        for (; i + 8 <= count; i += 8) { \
            const REAL *v = values + i * LANES; \
            VECTOR a = term(v) + term(v + LANES), b = term(v + 2 * LANES) + term(v + 3 * LANES); \
            VECTOR c = term(v + 4 * LANES) + term(v + 5 * LANES); \
            VECTOR d = term(v + 6 * LANES) + term(v + 7 * LANES); \
            eight = (a + b) + (c + d); \
            if (count >= 16) sum = add(sum, eight); \
        } \
        _Pragma("GCC unroll 4") for (; i < count; i++) rest += term(values + i * LANES); \
        return count >= 16 ? total(add(sum, rest)) : eight + rest; \
    }
INLINE VECTOR below_one(const REAL *v)
{
    VECTOR e = load(v);
    return keep(less(e, broadcast(1)), e);
}
DEFINE_SUM(sum_of, load)
DEFINE_SUM(sum_below_one, below_one)

/* The compensated sum of `count` vectors, in four chains: an addition here has to wait for the six operations of the
 * one before. */
NOINLINE PAIR compensated_sum_of(const REAL *values, int64_t count)
{
    PAIR sums[4] = {zero_pair(), zero_pair(), zero_pair(), zero_pair()};
    int64_t i = 0;
    for (; i + 4 <= count; i += 4)
#pragma GCC unroll 4
        for (int chain = 0; chain < 4; chain++) sums[chain] = add(sums[chain], load(values + (i + chain) * LANES));
    for (; i < count; i++) sums[0] = add(sums[0], load(values + i * LANES));
    if (count < 4) return sums[0];
#pragma GCC unroll 3
    for (int chain = 1; chain < 4; chain++) {
        sums[0] = add(sums[0], sums[chain].high);
        sums[0].low += sums[chain].low;
    }
    return sums[0];
}

typedef struct {
    VECTOR max, all, others, sum, inverse, log_sum;
} SOFTMAX;

INLINE SOFTMAX softmax_inlined(VECTOR max, VECTOR all, VECTOR below)
{
    const VECTOR one = broadcast(1);
    SOFTMAX row;
    VECTOR others = choose(less(all, broadcast(2)), below, all - one);
    MASK no_limit = both(not_finite(max), negate(equal(all, one)));
    row.max = max;
    row.all = all;
    row.others = choose(no_limit, broadcast((REAL)NAN), others);
    row.sum = one + row.others;
    row.inverse = one / row.sum;
    row.log_sum = log1p_nonnegative(row.others, row.sum, row.inverse);
    return row;
}

NOINLINE SOFTMAX softmax_of(VECTOR max, VECTOR all, VECTOR below) { return softmax_inlined(max, all, below); }

/* log(sum exp z) of a row; where the maximum is infinite the limit, unless there is a NaN. */
INLINE VECTOR log_sum_exp(const SOFTMAX *row)
{ return choose(both(not_finite(row->max), equal(row->all, row->all)), row->max, row->max + row->log_sum); }

/* sum * (1 - p_c). */
INLINE VECTOR complement(const SOFTMAX *row, VECTOR e)
{ return choose(equal(e, broadcast(1)), row->others, row->sum - e); }

/* Cross-entropy of a class index, without weights; z and e are those of the target. The gradient of the other classes
 * is e_c * scaled_inverse, where scaled_inverse = scale / sum. */
INLINE VECTOR index_value(const SOFTMAX *row, VECTOR z) { return row->log_sum - shift(z, row->max); }
INLINE VECTOR index_gradient(const SOFTMAX *row, VECTOR e, VECTOR scaled_inverse)
{ return broadcast(0) - complement(row, e) * scaled_inverse; /* +0.0 in a row of weight 0 */ }

/* Target mass w ((1 - eps) t + eps / K') of a class; `uniform` is eps / K', masked classes (z = -inf) get none of it.
 */
INLINE VECTOR target_mass(VECTOR z, VECTOR t, VECTOR weight, VECTOR one_minus_eps, VECTOR uniform, REAL masked)
{
    VECTOR smoothed = one_minus_eps * t + choose(equal(z, broadcast(masked)), broadcast(0), uniform);
    return weight * smoothed;
}

/* The term u (m - z) of the value W log_sum + sum u (m - z), with 0 * inf = 0. */
INLINE VECTOR mass_value(VECTOR u, VECTOR z, VECTOR m)
{ return choose(equal(u, broadcast(0)), broadcast(0), -u * shift(z, m)); }

/* A row whose exponentials are multiplied by `one` before they meet the masses, and by `rest` afterwards: of a small
 * probability and a small mass the product may be subnormal, or 0, where a large scale would have made it an ordinary
 * number. Sums times half of scale / sum cannot overflow. */
typedef struct {
    VECTOR one, others, sum, rest;
} SCALED;

INLINE SCALED scaled_row(const SOFTMAX *row, VECTOR scaled_inverse)
{
    const MASK is_large = less(broadcast(2), scaled_inverse); /* a NaN is not */
    const VECTOR one = choose(is_large, (REAL)0.5 * scaled_inverse, broadcast(1));
    const SCALED scaled = {one, row->others * one, row->sum * one, choose(is_large, broadcast(2), scaled_inverse)};
    return scaled;
}

/* The gradient of a class with target mass u, all others having other_mass; e is its exponential times `one`. */
INLINE VECTOR weighed_gradient(const SCALED *row, VECTOR e, VECTOR u, VECTOR other_mass)
{ return (e * other_mass - u * choose(equal(e, row->one), row->others, row->sum - e)) * row->rest; }
INLINE VECTOR mass_gradient(const SCALED *row, VECTOR e, VECTOR u, PAIR mass)
{ return weighed_gradient(row, e, u, (mass.high - u) + mass.low); }

/* Hessian diagonal scale W p (1 - p); `scaled_inverse` as above but with the factor W. */
INLINE VECTOR hessian(const SOFTMAX *row, VECTOR e, VECTOR scaled_inverse)
{ return (e * scaled_inverse) * (complement(row, e) * row->inverse); }

/* ---- focal loss ----
 *
 * Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017. With u_c the target mass, L_c = LSE - z_c, q = 1 - p:
 *   value     sum u_c q_c^gamma L_c
 *   a_c       = u_c q_c^gamma (gamma p_c L_c / q_c + 1)                            A = sum a_c
 *   gradient  p_k A - a_k                                                          (cross-entropy's, with a for u)
 *   b_c       = u_c gamma p_c q_c^(gamma - 1) (L_c / q_c (1 - gamma p_c) - 2)      B = sum b_c, b_c = p_c d(a_c)/d(p_c)
 *   Hessian   p_k q_k (A - a_k) - p_k^2 (B - b_k) + q_k (p_k a_k - q_k b_k)
 * L / q goes to 1 for a certain class; nothing but that quotient is ever divided by q where q may be 0.
 */
typedef struct {
    VECTOR modulation;      /* q^gamma */
    VECTOR mass, curvature; /* a / u and b / u */
    VECTOR minus_log_p;
} FOCAL;

INLINE FOCAL no_focal(void)
{
    const FOCAL none = {broadcast(0), broadcast(0), broadcast(0), broadcast(0)};
    return none;
}

NOINLINE FOCAL focal_of(const SOFTMAX *row, VECTOR e, VECTOR minus_log_p, FOCUS focus)
{
    const VECTOR zero = broadcast(0), one = broadcast(1), gamma = broadcast(focus.gamma);
    const VECTOR p = e * row->inverse, q = complement(row, e) * row->inverse;
    const VECTOR ratio = choose(equal(q, zero), one, minus_log_p / q);
    const VECTOR p_ratio = choose(equal(p, zero), zero, p * ratio);
    FOCAL focal;
    focal.modulation = modulation_of(q, focus);
    focal.mass = focal.modulation * (gamma * p_ratio + one);
    focal.curvature =
        focal.modulation / maximum(q, broadcast(SMALLEST_NORMAL)) * (gamma * (p_ratio * (one - gamma * p) - (p + p)));
    focal.minus_log_p = minus_log_p;
    return focal;
}

/* u x, with 0 * inf = 0. */
INLINE VECTOR without_zero(VECTOR u, VECTOR x) { return choose(equal(u, broadcast(0)), broadcast(0), u * x); }

/* 0, but NaN in a row without a loss: one of nothing but masked classes has no mass whose loss could say so. */
INLINE VECTOR value_of_nothing(const SOFTMAX *row) { return (REAL)0 * row->log_sum; }

INLINE VECTOR focal_value(VECTOR u, const FOCAL *focal)
{ return without_zero(u, focal->modulation * focal->minus_log_p); }

INLINE VECTOR focal_hessian(const SOFTMAX *row, VECTOR e, VECTOR a, VECTOR b, PAIR total_a, PAIR total_b)
{
    const VECTOR p = e * row->inverse, q = complement(row, e) * row->inverse;
    const VECTOR other_a = (total_a.high - a) + total_a.low, other_b = (total_b.high - b) + total_b.low;
    return p * (q * other_a - p * other_b) + q * (p * a - q * b);
}

#endif
