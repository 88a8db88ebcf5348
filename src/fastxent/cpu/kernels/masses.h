/* Target masses of rows: what probabilities, smoothing and class weights add to a class index.
 *
 * Design
 * a) Masses are formed in a buffer only where something has to be done to the targets; else they are read where they
 * lie.
 * b) W and the distance of a row are summed a lane at a time, and over the lanes for all rows of a group at once.
 * c) A smoothed class index has no array of masses at all: with v = eps / K' and S = sum w,
 *      W = (1 - eps) w_y + v S,  distance = (1 - eps) w_y (m - z_y) + v sum w_c (m - z_c),  gradient p_c W - v w_c
 *    but for the target. Where no v w_c is more than an eighth of W, p_c W - u_c is as exact as p_c (W - u_c) - u_c
 *    (1 - p_c). Masked classes have an infinite distance: such rows, like all that are not finite, go the general way.
 */
#ifndef FASTXENT_MASSES_H
#define FASTXENT_MASSES_H

#include "tile.h"

#if LANES == 1
#define even_blocks(a, b, s) (a)
#define odd_blocks(a, b, s) (b)
#endif

enum { FEW_ROWS = LANES > 4 ? LANES / 4 : 1 }; /* up to here rows are reduced one by one */

INLINE REAL first_lane(VECTOR v)
{
    REAL lanes[LANES];
    store(lanes, v);
    return lanes[0];
}

/* The compensated sum of formulas.h for one number at a time, in double. */
typedef struct {
    double high, low;
} SCALAR_PAIR;

INLINE void add_scalar(SCALAR_PAIR *sum, double term)
{
    const double next = sum->high + term, from = next - sum->high;
    sum->low += (sum->high - (next - from)) + (term - from);
    sum->high = next;
}
INLINE double total_scalar(SCALAR_PAIR sum) { return isfinite(sum.high) ? sum.high + sum.low : sum.high; }

/* Add the lanes of a compensated sum. */
NOINLINE SCALAR_PAIR add_lanes(SCALAR_PAIR sum, PAIR pair)
{
    REAL high[LANES], low[LANES];
    store(high, pair.high), store(low, pair.low);
    for (int lane = 0; lane < LANES; lane++) {
        add_scalar(&sum, (double)high[lane]);
        sum.low += (double)low[lane];
    }
    return sum;
}

INLINE PAIR add_pair(PAIR sum, PAIR term)
{
    sum = add(sum, term.high);
    sum.low += term.low;
    return sum;
}

INLINE double sum_of_lanes(VECTOR v)
{
    REAL lanes[LANES];
    double sum = 0;
    store(lanes, v);
    for (int lane = 0; lane < LANES; lane++) sum += (double)lanes[lane];
    return sum;
}

/* A scalar pair as REAL numbers: the high part rounded, the low part what that lost. */
INLINE PAIR split(SCALAR_PAIR sum)
{
    const REAL high = (REAL)sum.high;
    PAIR pair = {broadcast(high), broadcast(isfinite(sum.high) ? (REAL)((sum.high - (double)high) + sum.low) : 0)};
    return pair;
}

INLINE PAIR add_halves(PAIR a, PAIR b, int s)
{
    PAIR sum = two_sum(even_blocks(a.high, b.high, s), odd_blocks(a.high, b.high, s));
    sum.low += even_blocks(a.low, b.low, s) + odd_blocks(a.low, b.low, s);
    return sum;
}

/* Lane i of the result is the sum over the lanes of pair i; of few rows one after the other, with the same result. */
NOINLINE PAIR reduce_pairs(const PAIR *pairs, int rows)
{
    PAIR r[LANES];
    if (rows <= FEW_ROWS) {
        REAL high[LANES] = {0}, low[LANES] = {0};
        for (int lane = 0; lane < rows; lane++) {
            PAIR sum = pairs[lane];
#pragma GCC unroll 4
            for (int s = 1; s < LANES; s *= 2) sum = add_halves(sum, sum, s);
            high[lane] = first_lane(sum.high), low[lane] = first_lane(sum.low);
        }
        const PAIR sums = {load(high), load(low)};
        return sums;
    }
    memcpy(r, pairs, sizeof r);
#pragma GCC unroll 4
    for (int s = 1; s < LANES; s *= 2)
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i += 2 * s) r[i] = add_halves(r[i], r[i + s], s);
    return r[0];
}

/* ---- masses ---- */

INLINE const REAL *weights_from(const fx_job *job, int64_t first)
{ return job->class_weight && is_soft(job) ? (const REAL *)job->class_weight + first : NULL; }

/* The target masses of a chunk of one row, classes first .. first + n - 1, to whole vectors (0 past the end). */
NOINLINE void row_mass(
    const BLOCK *block, int64_t row, const REAL *z, int64_t first, int64_t n, REAL uniform, REAL masked, REAL *mass)
{
    const fx_job *job = block->job;
    const VECTOR one_minus_eps = broadcast((REAL)(1 - job->label_smoothing)), spread = broadcast(uniform);
    const REAL *t = mass, *weight = weights_from(job, first);
    if (has_labels(job)) {
        memset(mass, 0, (size_t)n * sizeof *mass);
        const int64_t at = block->label[row] - first;
        if (at >= 0 && at < n) mass[at] = 1;
    } else t = targets_at(block, row * block->target.inner + first * block->target.klass, block->target.klass, n, mass);
    for (int64_t i = 0; i < n; i += LANES) {
        VECTOR w = weight ? load_up_to(weight + i, n - i, 0) : broadcast(1);
        VECTOR u = target_mass(
            load_up_to(z + i, n - i, masked), load_up_to(t + i, n - i, 0), w, one_minus_eps, spread, masked);
        store(mass + i, u);
    }
}

/* Whether masses are the targets as they lie. The focal loss puts its own in their place. */
INLINE int masses_are_targets(const fx_job *job)
{
    return job->target_type == REAL_TYPE && job->target.klass == 1 && !job->class_weight && !(job->label_smoothing > 0)
        && job->task != FX_FOCAL;
}

/* The masses of a chunk, at least n of them, in the buffer or elsewhere. */
INLINE const REAL *target_masses(
    const BLOCK *block, int64_t row, const REAL *z, int64_t first, int64_t n, REAL uniform, REAL *buffer)
{
    if (masses_are_targets(block->job)) return (const REAL *)block->target.data + row * block->target.inner + first;
    row_mass(block, row, z, first, n, uniform, (REAL)-INFINITY, buffer);
    return buffer;
}

/* eps / K', the smoothing mass of each of the K' classes that are not masked. */
INLINE REAL uniform_mass(const fx_job *job, int64_t unmasked)
{ return job->label_smoothing > 0 ? (REAL)(job->label_smoothing / (double)unmasked) : 0; }
NOINLINE int64_t count_unmasked(const REAL *z, int64_t n, REAL masked)
{
    VECTOR count = broadcast(0); /* n is at most that of a chunk */
    for (int64_t i = 0; i < n; i += LANES)
        count += keep(negate(equal(load_up_to(z + i, n - i, masked), broadcast(masked))), broadcast(1));
    return (int64_t)sum_of_lanes(count);
}

/* ---- sums ---- */

typedef struct {
    PAIR mass;       /* of u */
    VECTOR distance; /* of u (max - z) */
} MASS_SUMS;

/* Four chains of sums of masses, of which each addition waits for the one before. */
NOINLINE MASS_SUMS mass_sums(const REAL *mass, const REAL *z, REAL max, int64_t n)
{
    const VECTOR m = broadcast(max);
    PAIR masses[4] = {zero_pair(), zero_pair(), zero_pair(), zero_pair()};
    PAIR distance = zero_pair();
    int64_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        VECTOR terms[4];
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) {
            const VECTOR u = load(mass + i + k * LANES);
            prefetch(mass + i + (8 + k) * LANES), prefetch_far(mass + i + (128 + k) * LANES);
            masses[k] = add(masses[k], u);
            terms[k] = mass_value(u, load(z + i + k * LANES), m);
        }
        distance = add(distance, (terms[0] + terms[1]) + (terms[2] + terms[3]));
    }
    VECTOR rest = broadcast(0);
    for (; i < n; i += LANES) {
        const VECTOR u = load_up_to(mass + i, n - i, 0);
        masses[0] = add(masses[0], u);
        rest += mass_value(u, load_up_to(z + i, n - i, max), m);
    }
    const MASS_SUMS sums = {
        add_pair(add_pair(masses[0], masses[1]), add_pair(masses[2], masses[3])), total(add(distance, rest))};
    return sums;
}

/* The sum of w (max - z), where both are finite, over the lanes of the result; w NULL: 1. Compensated from 16 vectors
 * on. */
NOINLINE VECTOR weighted_distance(const REAL *weight, const REAL *z, REAL max, int64_t n)
{
    const VECTOR m = broadcast(max);
    PAIR sum = zero_pair();
    VECTOR rest = broadcast(0);
    int64_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        VECTOR terms[4];
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) {
            terms[k] = m - load(z + i + k * LANES);
            if (weight) terms[k] *= load(weight + i + k * LANES);
        }
        const VECTOR four = (terms[0] + terms[1]) + (terms[2] + terms[3]);
        if (n >= 16 * LANES) sum = add(sum, four);
        else rest += four;
    }
    for (; i < n; i += LANES) {
        const VECTOR term = m - load_up_to(z + i, n - i, max);
        rest += weight ? term * load_up_to(weight + i, n - i, 0) : term;
    }
    return n >= 16 * LANES ? total(add(sum, rest)) : rest;
}

/* ---- smoothed class indices ---- */

typedef struct {
    const REAL *weight;
    REAL uniform; /* eps / K */
    double one_minus_eps;
    SCALAR_PAIR weights; /* S */
    int is_exact;        /* see c) */
} SMOOTHED_INDEX;

NOINLINE SMOOTHED_INDEX smoothing_of(const fx_job *job)
{
    SMOOTHED_INDEX smoothing = {weights_from(job, 0), uniform_mass(job, job->n_classes), 1 - job->label_smoothing,
        {(double)job->n_classes, 0}, 0};
    const SCALAR_PAIR none = {0, 0};
    VECTOR largest = broadcast(smoothing.weight ? 0 : 1);
    PAIR sum = zero_pair();
    if (!is_loss(job) || !has_labels(job) || !(job->label_smoothing > 0) || job->task == FX_FOCAL) return smoothing;
    for (int64_t c = 0; smoothing.weight && c < job->n_classes; c += LANES) {
        const VECTOR w = load_up_to(smoothing.weight + c, job->n_classes - c, 0);
        sum = add(sum, w), largest = maximum(w, largest);
    }
    if (smoothing.weight) smoothing.weights = add_lanes(none, sum);
    smoothing.is_exact = !any(less(broadcast((REAL)(smoothing.weights.high / 8)), largest));
    return smoothing;
}

/* The mass of the target, and that of all other classes. */
INLINE double smoothed_mass(const SMOOTHED_INDEX *smoothing, double weight)
{ return weight * (smoothing->one_minus_eps + (double)smoothing->uniform); }
INLINE double smoothed_others(const SMOOTHED_INDEX *smoothing, double weight)
{ return (double)smoothing->uniform * ((smoothing->weights.high - weight) + smoothing->weights.low); }

/* Gradients e factor - mass w, but for the target, from n exponentials. */
NOINLINE void put_smoothed_row(REAL *grad, const REAL *e, const REAL *weight, int64_t n, REAL factor, REAL mass)
{
    const VECTOR f = broadcast(factor), minus = broadcast(-mass);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        store(grad + i, multiply_add(load(e + i), f, weight ? minus * load(weight + i) : minus));
    if (i < n)
        store_up_to(
            grad + i, multiply_add(load(e + i), f, weight ? minus * load_up_to(weight + i, n - i, 0) : minus), n - i);
}

/* ---- gradients ---- */

/* From the target masses u of a focal loss to its a and b (formulas.h), whole vectors; z and e as far as there are
 * classes. Returns what is added to the value. */
NOINLINE PAIR focal_masses(
    const SOFTMAX *row, const REAL *z, const REAL *e, int64_t n, FOCUS focus, REAL *mass, REAL *curvature)
{
    PAIR value = zero_pair();
    for (int64_t i = 0; i < n; i += LANES) {
        const VECTOR u = load(mass + i), z_i = load_up_to(z + i, n - i, (REAL)-INFINITY);
        const FOCAL focal = focal_of(row, load(e + i), row->log_sum - shift(z_i, row->max), focus);
        value = add(value, focal_value(u, &focal));
        store(mass + i, without_zero(u, focal.mass));
        store(curvature + i, without_zero(u, focal.curvature));
    }
    return value;
}

/* The Hessian of one row of a class index, whose exponentials are factor times e. `scale` includes the weights, and
 * for the focal loss, where `focal` is given and the caller then sets that of the target itself, not its mass. */
NOINLINE void put_index_hessian(REAL *hess, const REAL *e, int64_t n, const SOFTMAX *row, REAL scaled_inverse,
    REAL factor, const FOCAL *focal, REAL scale)
{
    const VECTOR zero = broadcast(0);
    for (int64_t i = 0; i < n; i += LANES) {
        const VECTOR e_i = load(e + i) * factor;
        store_up_to(hess + i,
            focal ? scale * focal_hessian(row, e_i, zero, zero, one_of(focal->mass), one_of(focal->curvature))
                  : hessian(row, e_i, broadcast(scaled_inverse)),
            n - i);
    }
}

/* The Hessian of the target itself. */
INLINE VECTOR focal_hessian_of_target(const SOFTMAX *row, VECTOR e, const FOCAL *focal)
{ return focal_hessian(row, e, focal->mass, focal->curvature, one_of(focal->mass), one_of(focal->curvature)); }

/* The gradient may take the place of the exponentials, which are rescale times e. */
NOINLINE void put_soft_row(REAL *grad, const REAL *e, REAL rescale, const REAL *mass, int64_t n, const SOFTMAX *row,
    PAIR total_mass, REAL scale)
{
    const SCALED scaled = scaled_row(row, scale * row->inverse);
    const VECTOR r = rescale * scaled.one;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        store(grad + i, mass_gradient(&scaled, load(e + i) * r, load(mass + i), total_mass));
    if (i < n)
        store_up_to(
            grad + i, mass_gradient(&scaled, load(e + i) * r, load_up_to(mass + i, n - i, 0), total_mass), n - i);
}

/* `curvature` is given for the focal loss; its total is total_curvature. */
NOINLINE void put_soft_hessian(REAL *hess, const REAL *e, REAL rescale, const REAL *mass, const REAL *curvature,
    int64_t n, const SOFTMAX *row, PAIR total_mass, PAIR total_curvature, REAL scale)
{
    const VECTOR mass_factor = scale * row->inverse * total(total_mass);
    for (int64_t i = 0; i < n; i += LANES) {
        const VECTOR e_i = load(e + i) * rescale;
        store_up_to(hess + i,
            curvature
                ? scale * focal_hessian(row, e_i, load(mass + i), load(curvature + i), total_mass, total_curvature)
                : hessian(row, e_i, mass_factor),
            n - i);
    }
}

#endif
