/* The row regime: lanes are classes, contiguous in memory, of rows that fit in the first-level cache (up to CHUNK
 * classes).
 *
 * LANES of them at a time where they are short: what is done once per row (logarithm, divisions, reductions over
 * lanes) is done for all of them at once.
 */
#ifndef FASTXENT_ROWS_H
#define FASTXENT_ROWS_H

#include "masses.h"
#include "outgoing.h"

enum {
    CHUNK = 8192 / sizeof(REAL), /* classes: logits, the next logits and exponentials fit in the first-level cache */
    /* of exponentials held for one group of rows, beside which others are on their way out */
    GROUP_BYTES = 8 * 1024
};

NOINLINE VECTOR row_maximum(const REAL *z, int64_t n)
{
    const REAL lowest = (REAL)-INFINITY;
    VECTOR a = broadcast(lowest), b = a, c = a, d = a;
    int64_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        a = maximum(load(z + i), a), b = maximum(load(z + i + LANES), b);
        c = maximum(load(z + i + 2 * LANES), c), d = maximum(load(z + i + 3 * LANES), d);
    }
    for (; i + LANES <= n; i += LANES) a = maximum(load(z + i), a);
    if (i < n) b = maximum(load_first(z + i, (int)(n - i), lowest), b);
    return maximum(maximum(a, b), maximum(c, d));
}

/* To whole vectors of e, the lanes past the end 0. Meanwhile `next`, what will be read after this, is fetched from
 * memory, and what is `pending` is streamed there: the arithmetic takes about as long as that, and hardware prefetchers
 * stop at the end of what is being read. */
NOINLINE void row_exponentials(
    REAL *e, const REAL *z, REAL max, int64_t n, const REAL *next, const REAL *far, OUTGOING *pending)
{
    const VECTOR m = broadcast(max);
    int64_t i = 0;
    if (UNLIKELY(!isfinite(max))) {
        for (; i < n; i += LANES) store(e + i, exponential_any(load_up_to(z + i, n - i, (REAL)-INFINITY), m));
        return;
    }
    while (pending && n - i >= LANES && (pending->vectors || outgoing_next(pending))) {
        const int64_t both = at_most((n - i) / LANES, pending->vectors);
        const REAL *from = pending->next;
        REAL *out = pending->out;
        const VECTOR factor = broadcast(pending->factor), addend = broadcast(pending->addend);
        pending->next += both * LANES, pending->out += both * LANES, pending->vectors -= both;
        for (const int64_t end = i + both * LANES; i < end; i += LANES, from += LANES, out += LANES) {
            prefetch(next + i), prefetch_far(far + i);
            stream_store(out, multiply_add(load(from), factor, addend));
            store(e + i, exponential(load(z + i), m));
        }
    }
    for (; i + LANES <= n; i += LANES) {
        prefetch(next + i), prefetch_far(far + i);
        store(e + i, exponential(load(z + i), m));
    }
    if (i < n) {
        prefetch(next + i), prefetch_far(far + i);
        store(e + i, exponential(load_first(z + i, (int)(n - i), (REAL)-INFINITY), m));
    }
}

NOINLINE SOFTMAX softmax_of_lane(const SOFTMAX *rows, int lane)
{
    REAL lanes[6][LANES];
    store(lanes[0], rows->max), store(lanes[1], rows->all), store(lanes[2], rows->others);
    store(lanes[3], rows->sum), store(lanes[4], rows->inverse), store(lanes[5], rows->log_sum);
    SOFTMAX row = {broadcast(lanes[0][lane]), broadcast(lanes[1][lane]), broadcast(lanes[2][lane]),
        broadcast(lanes[3][lane]), broadcast(lanes[4][lane]), broadcast(lanes[5][lane])};
    return row;
}

NOINLINE VECTOR sum_of_row(const REAL *e, int64_t n_vectors) { return sum_of(e, n_vectors); }
NOINLINE VECTOR sum_of_row_below_one(const REAL *e, int64_t n_vectors) { return sum_below_one(e, n_vectors); }

/* ---- groups ---- */

typedef struct {
    REAL *e, *mass, *curvature; /* [rows_per_group][padded] */
    REAL *other_e;              /* what is pending, while e is filled again */
    REAL *hess_stage;           /* packed, for streaming */
    OUTGOING pending;           /* the gradient of the group before */
    REAL factors[LANES];
    SMOOTHED_INDEX smoothing;
    int64_t padded;
    int rows_per_group;
    int is_short;  /* few vectors a row: rows are taken BATCH at a time */
    int is_packed; /* gradients are finished in place, without gaps, and go out as one */
} ROWS;

/* Rows of fewer than 8 vectors, which sum_of adds up one after the other. */
enum { BATCH = VECTOR_BYTES == 64 ? 4 : LANES > 1 ? 2 : 1, SHORT_ROW = 8 * LANES };

static int rows_per_group(const fx_job *job)
{
    const int64_t padded = round_up(job->n_classes, LANES);
    const int64_t rows = GROUP_BYTES / (padded * (int64_t)sizeof(REAL));
    return rows > LANES ? LANES : rows > 1 ? (int)rows : 1;
}

static size_t rows_scratch(const fx_job *job, REAL *scratch, ROWS *rows)
{
    const int64_t line = 64 / (int64_t)sizeof(REAL);
    rows->padded = round_up(job->n_classes, LANES);
    rows->rows_per_group = rows_per_group(job);
    rows->is_short = rows->padded < SHORT_ROW;
    rows->is_packed = rows->is_short && job->stream && job->grad.inner == job->n_classes;
    const int64_t group = round_up(rows->rows_per_group * rows->padded, line);
    REAL *next = scratch;
    rows->e = next, next += group;
    rows->mass = rows->curvature = rows->other_e = rows->hess_stage = NULL;
    rows->pending = (OUTGOING){0};
    if (is_soft(job)) {
        rows->mass = next, next += group;
        if (job->task == FX_FOCAL) rows->curvature = next, next += group;
    }
    if (job->stream) {
        rows->other_e = next, next += group;
        if (job->hess.data) rows->hess_stage = next, next += group + line;
    }
    return (size_t)(next - scratch) * sizeof(REAL);
}

/* A group at work: lanes are rows. */
typedef struct {
    BLOCK *block;
    ROWS *scratch;
    int64_t row;
    int rows;
    SOFTMAX softmax;
} GROUP;

INLINE const REAL *logits_of(const GROUP *group, int lane) { return row_of(&group->block->logits, group->row + lane); }
INLINE REAL *exponentials_of(const GROUP *group, int lane) { return group->scratch->e + lane * group->scratch->padded; }

/* Where row `lane` of the group goes: to the array, or packed to the stage. */
NOINLINE REAL *hessian_row(const GROUP *group, int lane)
{
    const BLOCK *block = group->block;
    if (!block->hess.data) return NULL;
    return group->scratch->hess_stage ? group->scratch->hess_stage + lane * block->job->n_classes
                                      : row_of(&block->hess, group->row + lane);
}

NOINLINE void flush_hessians(const GROUP *group)
{
    const int64_t n_classes = group->block->job->n_classes;
    const fx_array *hess = &group->block->hess;
    if (!group->scratch->hess_stage) return;
    const int together = hess->inner == n_classes;
    for (int lane = 0; lane < (together ? 1 : group->rows); lane++)
        copy_out(row_of(hess, group->row + lane), group->scratch->hess_stage + lane * n_classes,
            together ? group->rows * n_classes : n_classes, 1);
}

/* Streamed, a gradient stays in the place of its exponentials, but for a factor, until it goes out while those of the
 * next group are computed. */
INLINE REAL *gradient_row(const GROUP *group, int lane)
{
    if (group->scratch->is_packed) return group->scratch->e + lane * group->block->job->n_classes;
    return group->block->job->stream ? exponentials_of(group, lane) : row_of(&group->block->grad, group->row + lane);
}

NOINLINE void send_gradient(GROUP *group, const REAL *factors)
{
    const BLOCK *block = group->block;
    ROWS *scratch = group->scratch;
    const int64_t n_classes = block->job->n_classes;
    REAL *sent = scratch->e;
    if (!block->job->stream) return;
    for (int lane = 0; lane < LANES; lane++) scratch->factors[lane] = factors ? factors[lane] : 1;
    if (is_loss(block->job) && !block->all_weigh_one) /* what does not count; once streamed it would be fetched again */
        for (int lane = 0; lane < group->rows; lane++)
            if (block->weight[group->row + lane] == 0) {
                memset(gradient_row(group, lane), 0, (size_t)n_classes * sizeof(REAL));
                scratch->factors[lane] = 1;
            }
    REAL *to = row_of(&block->grad, group->row);
    if (scratch->is_packed) outgoing_begin(&scratch->pending, sent, 0, 0, group->rows * n_classes, 1, NULL, to, 0);
    else
        outgoing_begin(&scratch->pending, sent, scratch->padded, n_classes, n_classes, group->rows, scratch->factors,
            to, block->grad.inner);
    scratch->e = scratch->other_e;
    scratch->other_e = sent;
}

/* The same as reduce_maximum and reduce_sum, which for few rows mostly reduce what is empty. */
#define DEFINE_ROW_REDUCTION(name, reduce, OPERATION) \
    NOINLINE VECTOR name(VECTOR *parts, int rows) \
    { \
        REAL lanes[LANES]; \
        if (rows > FEW_ROWS) return reduce(parts); \
        store(lanes, broadcast(1)); \
        for (int lane = 0; lane < rows; lane++) { \
            VECTOR v = parts[lane]; \
            _Pragma("GCC unroll 4") for (int s = 1; s < LANES; s *= 2) v = \
                OPERATION(even_blocks(v, v, s), odd_blocks(v, v, s)); \
            lanes[lane] = first_lane(v); \
        } \
        return load(lanes); \
    }
DEFINE_ROW_REDUCTION(maximum_of_rows, reduce_maximum, maximum)
DEFINE_ROW_REDUCTION(sum_of_group, reduce_sum, PLUS)

/* Row `lane` of a batch, which may go past the last one. */
INLINE const REAL *batch_row(const GROUP *group, int lane)
{ return logits_of(group, lane < group->rows ? lane : group->rows - 1); }

/* Maxima of short rows. */
INLINE void batch_maxima(const GROUP *group, VECTOR *parts)
{
    const REAL lowest = (REAL)-INFINITY;
    const int64_t n_classes = group->block->job->n_classes;
    for (int lane = 0; lane < group->rows; lane += BATCH) {
        const REAL *z[BATCH];
        VECTOR max[BATCH];
#pragma GCC unroll 4
        for (int k = 0; k < BATCH; k++) z[k] = batch_row(group, lane + k), max[k] = broadcast(lowest);
        for (int64_t i = 0; i < n_classes; i += LANES)
#pragma GCC unroll 4
            for (int k = 0; k < BATCH; k++) max[k] = maximum(load_up_to(z[k] + i, n_classes - i, lowest), max[k]);
#pragma GCC unroll 4
        for (int k = 0; k < BATCH; k++) parts[lane + k] = max[k];
    }
}

/* The lines of a row that are not written whole. */
NOINLINE void fetch_ends(const GROUP *group, int lane)
{
    const fx_array *grad = &group->block->grad;
    const int64_t n_classes = group->block->job->n_classes;
    if (!group->block->job->stream || grad->inner == n_classes || lane >= group->rows) return;
    prefetch_to_write(row_of(grad, group->row + lane));
    prefetch_to_write(row_of(grad, group->row + lane) + n_classes);
}

/* Rows with gaps between them end everywhere. */
NOINLINE void stream_some(OUTGOING *pending) { outgoing_some(pending, BATCH); }

/* Exponentials of short rows, and their sums, also of those below 1, which costs less than to look who needs it; what
 * is pending is streamed meanwhile. */
INLINE void batch_exponentials(const GROUP *group, const REAL *max, VECTOR *parts, VECTOR *below_parts)
{
    const int64_t n_classes = group->block->job->n_classes, padded = group->scratch->padded;
    const int64_t next = group->scratch->rows_per_group * group->block->logits.inner;
    const int has_gaps = group->block->job->stream && !group->scratch->is_packed;
    OUTGOING *pending = &group->scratch->pending;
    for (int lane = 0; lane < group->rows; lane += BATCH) {
        const REAL *z[BATCH];
        REAL *e = exponentials_of(group, lane);
        VECTOR m[BATCH], sum[BATCH], below[BATCH];
#pragma GCC unroll 4
        for (int k = 0; k < BATCH; k++)
            z[k] = batch_row(group, lane + k), m[k] = broadcast(max[lane + k]), sum[k] = below[k] = broadcast(0);
        if (has_gaps)
#pragma GCC unroll 1
            for (int k = 0; k < BATCH; k++) fetch_ends(group, lane + k);
        for (int64_t i = 0; i < n_classes; i += LANES) {
            if (pending->vectors >= BATCH) {
#pragma GCC unroll 4
                for (int k = 0; k < BATCH; k++)
                    stream_store(pending->out + k * LANES, outgoing_product(pending, load(pending->next + k * LANES)));
                pending->out += BATCH * LANES, pending->next += BATCH * LANES, pending->vectors -= BATCH;
            } else if (pending->parts > 1) stream_some(pending);
#pragma GCC unroll 4
            for (int k = 0; k < BATCH; k++) {
                prefetch(z[k] + next + i), prefetch_far(z[k] + 2 * next + i);
                const VECTOR e_k = exponential(load_up_to(z[k] + i, n_classes - i, (REAL)-INFINITY), m[k]);
                store(e + k * padded + i, e_k);
                sum[k] += e_k;
                below[k] += keep(less(e_k, broadcast(1)), e_k);
            }
        }
#pragma GCC unroll 4
        for (int k = 0; k < BATCH; k++) parts[lane + k] = sum[k], below_parts[lane + k] = below[k];
    }
}

/* Maxima, exponentials and their sums. */
INLINE void group_softmax(GROUP *group)
{
    const BLOCK *block = group->block;
    const int64_t n_classes = block->job->n_classes, n_vectors = group->scratch->padded / LANES;
    const int rows = group->rows, is_short = group->scratch->is_short;
    VECTOR parts[LANES], below_parts[LANES];
    REAL max[LANES];
    int has_below = 0;
    if (is_short) batch_maxima(group, parts);
    else
        for (int lane = 0; lane < rows; lane++) parts[lane] = row_maximum(logits_of(group, lane), n_classes);
    for (int lane = rows; lane < LANES; lane++) parts[lane] = broadcast(1);
    const VECTOR m = maximum_of_rows(parts, rows);
    store(max, m);
    if (is_short && !any(not_finite(m))) {
        if (group->scratch->pending.parts) outgoing_some(&group->scratch->pending, 1); /* so that a part is begun */
        batch_exponentials(group, max, parts, below_parts);
        has_below = 1;
    } else
        for (int lane = 0; lane < rows; lane++) {
            REAL *e = exponentials_of(group, lane);
            fetch_ends(group, lane);
            row_exponentials(e, logits_of(group, lane), max[lane], n_classes, logits_of(group, rows + lane),
                logits_of(group, 2 * rows + lane), &group->scratch->pending);
            parts[lane] = sum_of_row(e, n_vectors);
        }
    for (int lane = rows; lane < LANES; lane++) parts[lane] = below_parts[lane] = broadcast(1);
    outgoing_rest(&group->scratch->pending);
    const VECTOR all = sum_of_group(parts, rows);
    VECTOR below = all;
    if (any(less(all, broadcast(2)))) {
        REAL sums[LANES];
        store(sums, all);
        for (int lane = 0; lane < rows && !has_below; lane++)
            below_parts[lane] = is_short || sums[lane] < 2
                ? sum_of_row_below_one(exponentials_of(group, lane), n_vectors)
                : broadcast(0);
        below = sum_of_group(below_parts, rows);
    }
    group->softmax = softmax_of(m, all, below);
}

NOINLINE void put_activations(GROUP *group)
{
    const fx_job *job = group->block->job;
    const int64_t n_classes = job->n_classes;
    REAL result[LANES], factors[LANES];
    store(result, log_sum_exp(&group->softmax));
    store(factors, group->softmax.inverse);
    for (int lane = 0; lane < group->rows; lane++) {
        if (job->task == FX_LOGSUMEXP) {
            put_loss(group->block, group->row + lane, result[lane]);
            continue;
        }
        const SOFTMAX one = softmax_of_lane(&group->softmax, lane);
        const REAL *z = logits_of(group, lane);
        REAL *out = gradient_row(group, lane);
        if (job->task == FX_LOG_SOFTMAX)
            for (int64_t i = 0; i < n_classes; i += LANES)
                store_up_to(out + i, shift(load_up_to(z + i, n_classes - i, 0), one.max) - one.log_sum, n_classes - i);
        else if (!job->stream || group->scratch->is_packed)
            scale_out(out, exponentials_of(group, lane), one.inverse, n_classes, 0);
    }
    if (job->task != FX_LOGSUMEXP) send_gradient(group, job->task == FX_SOFTMAX ? factors : NULL);
}

/* What a target class has of its own. */
typedef struct {
    VECTOR z, e;
} TARGETS;

INLINE TARGETS targets_of_group(const GROUP *group)
{
    REAL z[LANES] = {0}, e[LANES] = {0};
    for (int lane = 0; lane < group->rows; lane++) {
        const int64_t label = group->block->label[group->row + lane];
        z[lane] = logits_of(group, lane)[label], e[lane] = exponentials_of(group, lane)[label];
    }
    const TARGETS targets = {load(z), load(e)};
    return targets;
}

/* A class index: all gradients but that of the target are one product. */
INLINE void index_group(GROUP *group)
{
    BLOCK *block = group->block;
    const fx_job *job = block->job;
    const int64_t n_classes = job->n_classes, row = group->row;
    const int focal = job->task == FX_FOCAL;
    const SOFTMAX *softmax = &group->softmax;
    const TARGETS target = targets_of_group(group);
    const VECTOR zero = broadcast(0), weight_scale = load_up_to(block->scale + row, group->rows, 0);
    VECTOR value = index_value(softmax, target.z), scale = weight_scale, target_hessian = zero;
    FOCAL modulated = {zero, zero, zero, zero};
    if (focal) {
        modulated = focal_of(softmax, target.e, value, focus_of(job));
        value *= modulated.modulation;
        target_hessian = scale * focal_hessian_of_target(softmax, target.e, &modulated);
        scale *= modulated.mass;
    }
    put_values(block, value, row);
#if REAL_BITS == 32
    if (UNLIKELY(has_infinite(value)))
        widen_values(block, softmax->max, softmax->log_sum, NULL, 0, 1, row, group->rows);
#endif
    if (!job->grad.data) return;

    REAL complements[LANES], gradients[LANES], hessians[LANES], scaled_inverse[LANES], scales[LANES], masses[LANES],
        curvatures[LANES];
    store(scaled_inverse, scale * softmax->inverse);
    store(complements, complement(softmax, target.e));
    store(gradients, index_gradient(softmax, target.e, scale * softmax->inverse));
    store(hessians, target_hessian), store(scales, weight_scale);
    store(masses, modulated.mass), store(curvatures, modulated.curvature);
    for (int lane = 0; lane < group->rows; lane++) {
        REAL *e = exponentials_of(group, lane), *grad = gradient_row(group, lane), *hess = hessian_row(group, lane);
        const int64_t label = block->label[row + lane];
        if (hess) {
            const SOFTMAX one = softmax_of_lane(softmax, lane);
            const FOCAL one_focal = {zero, broadcast(masses[lane]), broadcast(curvatures[lane]), zero};
            put_index_hessian(
                hess, e, n_classes, &one, scaled_inverse[lane], 1, focal ? &one_focal : NULL, scales[lane]);
            if (focal) hess[label] = hessians[lane];
        }
        if (group->scratch->is_packed) {
            const VECTOR factor = broadcast(scaled_inverse[lane]);
            /* past the end, into what was read */
            for (int64_t i = 0; i < n_classes; i += LANES) store(grad + i, load(e + i) * factor);
            grad[label] = gradients[lane];
        } else if (job->stream) e[label] = -complements[lane]; /* times the factor it is the target's gradient */
        else {
            scale_out(grad, e, broadcast(scaled_inverse[lane]), n_classes, 0);
            grad[label] = gradients[lane];
        }
    }
    send_gradient(group, scaled_inverse);
}

/* Smoothed class indices of a group. */
typedef struct {
    unsigned done; /* bits: which rows are finite, or do not count; the others go the general way, since no row may
                    * depend on what is in another */
    REAL values[LANES], factors[LANES], uniform[LANES], gradients[LANES];
} SMOOTHED_ROWS;

NOINLINE void smooth_group(const GROUP *group, SMOOTHED_ROWS *smoothed)
{
    const BLOCK *block = group->block;
    const fx_job *job = block->job;
    const SMOOTHED_INDEX *smoothing = &group->scratch->smoothing;
    const SOFTMAX *softmax = &group->softmax;
    const int64_t n_classes = job->n_classes, row = group->row;
    const TARGETS target = targets_of_group(group);
    VECTOR parts[LANES];
    REAL max[LANES], masses[LANES] = {0}, others[LANES] = {0}, plain[LANES] = {0};
    store(max, softmax->max);
    for (int lane = 0; lane < LANES; lane++) {
        const int counts = lane < group->rows;
        const double weight = counts ? (double)class_weight(job, block->label[row + lane]) : 0;
        parts[lane] =
            counts ? weighted_distance(smoothing->weight, logits_of(group, lane), max[lane], n_classes) : broadcast(0);
        masses[lane] = (REAL)smoothed_mass(smoothing, weight);
        others[lane] = (REAL)smoothed_others(smoothing, weight);
        plain[lane] = (REAL)(smoothing->one_minus_eps * weight);
    }
    const VECTOR distance =
        smoothing->uniform * sum_of_group(parts, group->rows) + load(plain) * (softmax->max - target.z);
    const VECTOR mass = load(masses) + load(others), value = mass * softmax->log_sum + distance;
    const VECTOR scale = load_up_to(block->scale + row, group->rows, 0), scaled_inverse = scale * softmax->inverse;
    store(smoothed->values, value);
    store(smoothed->factors, mass * scaled_inverse), store(smoothed->uniform, smoothing->uniform * scale);
    const SCALED scaled = scaled_row(softmax, scaled_inverse);
    store(smoothed->gradients, weighed_gradient(&scaled, target.e * scaled.one, load(masses), load(others)));
    for (int lane = 0; lane < group->rows; lane++)
        if (isfinite(smoothed->values[lane]) || block->weight[row + lane] == 0) smoothed->done |= 1u << lane;
}

NOINLINE void put_smoothed_lane(const GROUP *group, const SMOOTHED_ROWS *smoothed, int lane)
{
    const int64_t n_classes = group->block->job->n_classes;
    REAL *e = exponentials_of(group, lane), *grad = gradient_row(group, lane), *hess = hessian_row(group, lane);
    const REAL factor = smoothed->factors[lane];
    if (hess) {
        const SOFTMAX one = softmax_of_lane(&group->softmax, lane);
        put_index_hessian(hess, e, n_classes, &one, factor, 1, NULL, 0);
    }
    put_smoothed_row(grad, e, group->scratch->smoothing.weight, n_classes, factor, smoothed->uniform[lane]);
    grad[group->block->label[group->row + lane]] = smoothed->gradients[lane];
}

/* Masses of every kind, and their sums over the classes; returns the distances. */
INLINE VECTOR masses_of_group(GROUP *group, unsigned done, const REAL **masses, PAIR *total_mass)
{
    const fx_job *job = group->block->job;
    const int64_t n_classes = job->n_classes;
    PAIR mass_parts[LANES];
    VECTOR distance_parts[LANES];
    REAL max[LANES], high[LANES];
    store(max, group->softmax.max);
    for (int lane = 0; lane < LANES; lane++) {
        MASS_SUMS sums = {zero_pair(), broadcast(0)};
        if (lane < group->rows && !(done >> lane & 1)) {
            const REAL *z = logits_of(group, lane);
            const REAL uniform =
                job->label_smoothing > 0 ? uniform_mass(job, count_unmasked(z, n_classes, (REAL)-INFINITY)) : 0;
            masses[lane] = target_masses(group->block, group->row + lane, z, 0, n_classes, uniform,
                group->scratch->mass + lane * group->scratch->padded);
            sums = mass_sums(masses[lane], z, max[lane], n_classes);
        }
        mass_parts[lane] = sums.mass, distance_parts[lane] = sums.distance;
    }
    *total_mass = reduce_pairs(mass_parts, group->rows);
    store(high, total_mass->high);
    for (int lane = 0; lane < group->rows; lane++)
        if (!(done >> lane & 1) && high[lane] == 0 && !counts_without_mass(job))
            group->block->weight[group->row + lane] = 0;
    return sum_of_group(distance_parts, group->rows);
}

/* The focal loss puts its masses in the place of the others; returns the values. */
RARE VECTOR focal_masses_of_group(GROUP *group, PAIR *total_mass, PAIR *total_curvature)
{
    const int64_t padded = group->scratch->padded, n_vectors = padded / LANES;
    PAIR value_parts[LANES], mass_parts[LANES], curvature_parts[LANES];
    for (int lane = 0; lane < LANES; lane++) {
        value_parts[lane] = mass_parts[lane] = curvature_parts[lane] = zero_pair();
        if (lane >= group->rows) continue;
        const SOFTMAX one = softmax_of_lane(&group->softmax, lane);
        REAL *mass = group->scratch->mass + lane * padded, *curvature = group->scratch->curvature + lane * padded;
        value_parts[lane] = focal_masses(&one, logits_of(group, lane), exponentials_of(group, lane),
            group->block->job->n_classes, focus_of(group->block->job), mass, curvature);
        mass_parts[lane] = compensated_sum_of(mass, n_vectors);
        curvature_parts[lane] = compensated_sum_of(curvature, n_vectors);
    }
    *total_mass = reduce_pairs(mass_parts, group->rows);
    *total_curvature = reduce_pairs(curvature_parts, group->rows);
    return total(reduce_pairs(value_parts, group->rows));
}

INLINE PAIR pair_of_lane(const REAL *high, const REAL *low, int lane)
{
    const PAIR pair = {broadcast(high[lane]), broadcast(low[lane])};
    return pair;
}

/* Probabilities, and class indices where smoothing is not simple. Rows are put one after the other: packed, each
 * takes the place of exponentials of those before. */
NOINLINE void soft_rows(GROUP *group, const SMOOTHED_ROWS *smoothed)
{
    BLOCK *block = group->block;
    const fx_job *job = block->job;
    const int64_t n_classes = job->n_classes, padded = group->scratch->padded, row = group->row;
    const int focal = job->task == FX_FOCAL;
    const SOFTMAX *softmax = &group->softmax;
    const unsigned done = smoothed->done;
    const REAL *masses[LANES] = {NULL};
    PAIR total_mass, total_curvature = zero_pair();
    VECTOR value = masses_of_group(group, done, masses, &total_mass);
    value = focal ? focal_masses_of_group(group, &total_mass, &total_curvature) + value_of_nothing(softmax)
                  : total(total_mass) * softmax->log_sum + value;
    if (done) {
        REAL lanes[LANES];
        store(lanes, value);
        for (int lane = 0; lane < LANES; lane++)
            if (done >> lane & 1) lanes[lane] = smoothed->values[lane];
        value = load(lanes);
    }
    put_values(block, value, row);
#if REAL_BITS == 32
    const int direct = masses_are_targets(job);
    if (UNLIKELY(has_infinite(value)))
        widen_values(block, softmax->max, softmax->log_sum,
            direct ? (const REAL *)block->target.data + row * block->target.inner : group->scratch->mass,
            direct ? block->target.inner : padded, 1, row, group->rows);
#endif
    if (!job->grad.data) return;

    REAL high[LANES], low[LANES], curvature_high[LANES], curvature_low[LANES];
    store(high, total_mass.high), store(low, total_mass.low);
    store(curvature_high, total_curvature.high), store(curvature_low, total_curvature.low);
    for (int lane = 0; lane < group->rows; lane++) {
        if (done >> lane & 1) {
            put_smoothed_lane(group, smoothed, lane);
            continue;
        }
        const SOFTMAX one = softmax_of_lane(softmax, lane);
        const REAL scale = block->scale[row + lane];
        REAL *e = exponentials_of(group, lane), *hess = hessian_row(group, lane);
        const PAIR mass = pair_of_lane(high, low, lane), curvature = pair_of_lane(curvature_high, curvature_low, lane);
        if (hess)
            put_soft_hessian(hess, e, 1, masses[lane], focal ? group->scratch->curvature + lane * padded : NULL,
                n_classes, &one, mass, curvature, scale);
        put_soft_row(gradient_row(group, lane), e, 1, masses[lane], n_classes, &one, mass, scale);
    }
}

INLINE void soft_group(GROUP *group)
{
    const int has_grad = group->block->job->grad.data != NULL;
    SMOOTHED_ROWS smoothed = {.done = 0};
    if (group->scratch->smoothing.is_exact) smooth_group(group, &smoothed);
    if (smoothed.done != (1u << group->rows) - 1) soft_rows(group, &smoothed);
    else {
        put_values(group->block, load(smoothed.values), group->row);
        for (int lane = 0; lane < group->rows && has_grad; lane++) put_smoothed_lane(group, &smoothed, lane);
    }
    if (has_grad) send_gradient(group, NULL);
}

static void compute_group(GROUP *group)
{
    const fx_job *job = group->block->job;
    group_softmax(group);
    if (!is_loss(job)) put_activations(group);
    else if (!is_soft(job)) index_group(group);
    else soft_group(group);
    if (job->hess.data) flush_hessians(group);
}

static void compute_rows(BLOCK *block, REAL *memory)
{
    ROWS scratch;
    rows_scratch(block->job, memory, &scratch);
    scratch.smoothing = smoothing_of(block->job);
    block->grad_is_clear = block->job->stream;
    for (int64_t row = 0; row < block->rows; row += scratch.rows_per_group) {
        GROUP group = {.block = block,
            .scratch = &scratch,
            .row = row,
            .rows = (int)at_most(block->rows - row, scratch.rows_per_group)};
        compute_group(&group);
    }
    outgoing_rest(&scratch.pending);
    outgoing_flush(&scratch.pending);
}

#endif
