/* The row regimes: lanes are classes, contiguous in memory.
 *
 * rows:       rows that fit in the first-level cache (up to CHUNK classes), LANES of them at a time where they are short:
 *             what is done once per row (logarithm, divisions, reductions over lanes) is done for all of them at once.
 * long rows:  rows of any length and any strides, a chunk of CHUNK classes at a time. Each chunk has its own maximum m_j
 *             and sum; the exponentials are taken relative to m_j and rescaled by exp(m_j - m) once, at the end, per
 *             chunk and never per element. So the logits are read from memory once, and the error of rescaling does not
 *             add up. The exponentials are kept up to KEPT_BYTES a row; beyond, they are computed a second time.
 */
#ifndef FASTXENT_ROWS_H
#define FASTXENT_ROWS_H

#include "tile.h"

enum {
    CHUNK = 8192 / sizeof(REAL),     /* classes: logits, the next logits and exponentials fit in the first-level cache */
    GROUP_BYTES = 16 * 1024,         /* of exponentials held for one group of rows: a third of the first-level cache */
    KEPT_BYTES = 1024 * 1024         /* of exponentials held for one long row: half of the second-level cache */
};

INLINE VECTOR row_maximum(const REAL *z, int64_t n)
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

/* To whole vectors of e, the lanes past the end 0. Meanwhile `next`, what will be read after this, is fetched from memory,
 * and what is `pending` is streamed there: the arithmetic takes about as long as that, and hardware prefetchers stop at the
 * end of what is being read. */
INLINE void row_exponentials(REAL *e, const REAL *z, REAL max, int64_t n, const REAL *next,
                              const REAL *far, OUTGOING *pending)
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
        const VECTOR factor = broadcast(pending->factor);
        pending->next += both * LANES, pending->out += both * LANES, pending->vectors -= both;
        for (const int64_t end = i + both * LANES; i < end; i += LANES, from += LANES, out += LANES) {
            prefetch(next + i), prefetch_far(far + i);
            stream_store(out, load(from) * factor);
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

INLINE SOFTMAX softmax_of_lane(const SOFTMAX *rows, int lane)
{
    REAL lanes[6][LANES];
    store(lanes[0], rows->max), store(lanes[1], rows->all), store(lanes[2], rows->others);
    store(lanes[3], rows->sum), store(lanes[4], rows->inverse), store(lanes[5], rows->log_sum);
    SOFTMAX row = {broadcast(lanes[0][lane]), broadcast(lanes[1][lane]), broadcast(lanes[2][lane]),
                   broadcast(lanes[3][lane]), broadcast(lanes[4][lane]), broadcast(lanes[5][lane])};
    return row;
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
INLINE void add_lanes(SCALAR_PAIR *sum, PAIR pair)
{
    REAL high[LANES], low[LANES];
    store(high, pair.high), store(low, pair.low);
    for (int lane = 0; lane < LANES; lane++) {
        add_scalar(sum, (double)high[lane]);
        sum->low += (double)low[lane];
    }
}
INLINE double total_of_lanes(PAIR pair)
{
    SCALAR_PAIR sum = {0, 0};
    add_lanes(&sum, pair);
    return total_scalar(sum);
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
INLINE void split(SCALAR_PAIR sum, REAL *high, REAL *low)
{
    *high = (REAL)sum.high;
    *low = isfinite(sum.high) ? (REAL)((sum.high - (double)*high) + sum.low) : 0;
}

/* ---- rows ---- */

typedef struct {
    REAL *e, *mass, *curvature, *terms; /* [rows_per_group][padded], but terms [padded] */
    REAL *other_e;                      /* what is pending, while e is filled again */
    REAL *hess_stage;                   /* packed, for streaming */
    OUTGOING pending;                   /* the gradient of the group before */
    REAL factors[LANES];
    int64_t padded;
    int rows_per_group;
} ROWS;

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
    const int64_t group = round_up(rows->rows_per_group * rows->padded, line);
    REAL *next = scratch;
    rows->e = next, next += group;
    rows->mass = rows->curvature = rows->terms = rows->other_e = rows->hess_stage = NULL;
    rows->pending = (OUTGOING){0};
    if (is_soft(job)) {
        rows->mass = next, next += group;
        rows->terms = next, next += round_up(rows->padded, line);
        if (job->task == FX_FOCAL) rows->curvature = next, next += group;
    }
    if (job->stream) {
        rows->other_e = next, next += group;
        if (job->hess.data) rows->hess_stage = next, next += group + line;
    }
    return (size_t)(next - scratch) * sizeof(REAL);
}

/* The target masses of a chunk of one row, classes first .. first + n - 1, to whole vectors (0 past the end). */
static void row_mass(const BLOCK *block, int64_t row, const REAL *z, int64_t first, int64_t n, REAL uniform,
                     REAL masked, REAL *mass)
{
    const fx_job *job = block->job;
    const VECTOR one_minus_eps = broadcast((REAL)(1 - job->label_smoothing)), spread = broadcast(uniform);
    if (has_labels(job)) {
        for (int64_t i = 0; i < n; i++) mass[i] = 0;
        const int64_t at = block->label[row] - first;
        if (at >= 0 && at < n) mass[at] = 1;
    } else
        read_reals(&block->target, job->target_type, row * block->target.inner + first * block->target.klass,
                   block->target.klass, n, mass);
    const REAL *weight = job->class_weight && is_soft(job) ? (const REAL *)job->class_weight + first : NULL;
    for (int64_t i = 0; i < n; i += LANES) {
        VECTOR w = weight ? load_up_to(weight + i, n - i, 0) : broadcast(1);
        VECTOR u = target_mass(load_up_to(z + i, n - i, masked), load_up_to(mass + i, n - i, 0), w, one_minus_eps,
                               spread, masked);
        store(mass + i, u);
    }
}

/* eps / K', the smoothing mass of each of the K' classes that are not masked. */
INLINE REAL uniform_mass(const fx_job *job, int64_t unmasked)
{
    return job->label_smoothing > 0 ? (REAL)(job->label_smoothing / (double)unmasked) : 0;
}
INLINE int64_t count_unmasked(const REAL *z, int64_t n, REAL masked)
{
    int64_t unmasked = 0;
    for (int64_t c = 0; c < n; c++) unmasked += z[c] != masked;
    return unmasked;
}

/* The sum of u (m - z). */
static double row_distance(const REAL *mass, const REAL *z, REAL max, int64_t n, REAL *terms)
{
    const VECTOR m = broadcast(max);
    int64_t count = 0;
    for (int64_t i = 0; i < n; i += LANES, count++)
        store(terms + i, mass_value(load(mass + i), load_up_to(z + i, n - i, max), m));
    return total_of_lanes(compensated_sum_of(terms, count));
}

/* From the target masses u of a focal loss to its a and b (formulas.h), whole vectors; z and e as far as there are
 * classes. Returns what is added to the value. */
static double focal_masses(const SOFTMAX *row, const REAL *z, const REAL *e, int64_t n, FOCUS focus, REAL *mass,
                           REAL *curvature, REAL *terms)
{
    int64_t count = 0;
    for (int64_t i = 0; i < n; i += LANES, count++) {
        const VECTOR u = load(mass + i), z_i = load_up_to(z + i, n - i, (REAL)-INFINITY);
        const FOCAL focal = focal_of(row, load(e + i), row->log_sum - shift(z_i, row->max), focus);
        store(terms + i, focal_value(u, &focal));
        store(mass + i, without_zero(u, focal.mass));
        store(curvature + i, without_zero(u, focal.curvature));
    }
    return total_of_lanes(compensated_sum_of(terms, count));
}

/* The Hessian of one row of a class index, whose exponentials are factor times e. `scale` includes the weights, and for the
 * focal loss, where `focal` is given and the caller then sets that of the target itself, not its mass. */
NOINLINE void put_index_hessian(REAL *hess, const REAL *e, int64_t n, const SOFTMAX *row, REAL scaled_inverse, REAL factor,
                                const FOCAL *focal, REAL scale)
{
    const VECTOR zero = broadcast(0);
    for (int64_t i = 0; i < n; i += LANES) {
        const VECTOR e_i = load(e + i) * factor;
        store_up_to(hess + i, focal ? scale * focal_hessian(row, e_i, zero, zero, one_of(focal->mass), one_of(focal->curvature))
                                    : hessian(row, e_i, broadcast(scaled_inverse)), n - i);
    }
}

/* The Hessian of the target itself. */
INLINE VECTOR focal_hessian_of_target(const SOFTMAX *row, VECTOR e, const FOCAL *focal)
{
    return focal_hessian(row, e, focal->mass, focal->curvature, one_of(focal->mass), one_of(focal->curvature));
}

/* `curvature` is given for the focal loss; its total is total_curvature. */
NOINLINE void put_soft_row(REAL *grad, REAL *hess, const REAL *e, const REAL *mass, const REAL *curvature, int64_t n,
                         const SOFTMAX *row, PAIR total_mass, PAIR total_curvature, REAL scale)
{
    const VECTOR factor = scale * row->inverse, mass_factor = factor * total(total_mass);
    for (int64_t i = 0; i < n; i += LANES) {
        VECTOR e_i = load(e + i), a = load(mass + i);
        store_up_to(grad + i, mass_gradient(row, e_i, a, total_mass, factor), n - i);
        if (!hess) continue;
        store_up_to(hess + i, curvature ? scale * focal_hessian(row, e_i, a, load(curvature + i), total_mass, total_curvature)
                                        : hessian(row, e_i, mass_factor), n - i);
    }
}

/* Where row `lane` of the group goes: to the array, or packed to the stage. */
INLINE REAL *group_row(const BLOCK *block, const fx_array *array, REAL *stage, int64_t row, int lane)
{
    if (!array->data) return NULL;
    return stage ? stage + lane * block->job->n_classes : row_of(array, row + lane);
}

INLINE void flush_group(const BLOCK *block, const fx_array *array, const REAL *stage, int64_t row, int rows)
{
    const int64_t n_classes = block->job->n_classes;
    if (!array->data || !stage) return;
    if (array->inner == n_classes) copy_out(row_of(array, row), stage, rows * n_classes, 1);
    else
        for (int lane = 0; lane < rows; lane++)
            copy_out(row_of(array, row + lane), stage + lane * n_classes, n_classes, 1);
}

/* Streamed, a gradient stays in the place of its exponentials, but for a factor, until it goes out while those of the next
 * group are computed. */
INLINE void send_gradient(const BLOCK *block, ROWS *scratch, int64_t row, int rows, const REAL *factors)
{
    const int64_t n_classes = block->job->n_classes;
    REAL *sent = scratch->e;
    if (!block->job->stream) return;
    if (factors) memcpy(scratch->factors, factors, sizeof scratch->factors);
    outgoing_begin(&scratch->pending, sent, scratch->padded, n_classes, n_classes, rows, factors ? scratch->factors : NULL,
                   row_of(&block->grad, row), block->grad.inner);
    scratch->e = scratch->other_e;
    scratch->other_e = sent;
}

INLINE REAL *gradient_row(const BLOCK *block, const ROWS *scratch, int64_t row, int lane)
{
    return block->job->stream ? scratch->e + lane * scratch->padded : row_of(&block->grad, row + lane);
}

static void compute_group(BLOCK *block, ROWS *scratch, int64_t row, int rows)
{
    const fx_job *job = block->job;
    const int64_t n_classes = job->n_classes, padded = scratch->padded, n_vectors = padded / LANES;
    const int soft = is_soft(job);
    VECTOR parts[LANES];
    const int focal = job->task == FX_FOCAL;
    REAL max[LANES], high[LANES] = {0}, low[LANES] = {0}, distance[LANES] = {0}, scaled_inverse[LANES];
    REAL curvature_high[LANES] = {0}, curvature_low[LANES] = {0};

    for (int lane = 0; lane < rows; lane++) parts[lane] = row_maximum(row_of(&block->logits, row + lane), n_classes);
    for (int lane = rows; lane < LANES; lane++) parts[lane] = broadcast(0);
    const VECTOR m = reduce_maximum(parts);
    store(max, m);

    for (int lane = 0; lane < rows; lane++) {
        const REAL *z = row_of(&block->logits, row + lane);
        REAL *e = scratch->e + lane * padded;
        if (is_loss(job) && soft) {
            REAL *mass = scratch->mass + lane * padded;
            const REAL uniform = job->label_smoothing > 0
                ? uniform_mass(job, count_unmasked(z, n_classes, (REAL)-INFINITY)) : 0;
            SCALAR_PAIR total_mass = {0, 0};
            row_mass(block, row + lane, z, 0, n_classes, uniform, (REAL)-INFINITY, mass);
            add_lanes(&total_mass, compensated_sum_of(mass, n_vectors));
            split(total_mass, &high[lane], &low[lane]);
            distance[lane] = (REAL)row_distance(mass, z, max[lane], n_classes, scratch->terms);
            if (high[lane] == 0 && !counts_without_mass(job)) block->weight[row + lane] = 0;
        }
        row_exponentials(e, z, max[lane], n_classes, row_of(&block->logits, row + rows + lane),
                         row_of(&block->logits, row + 2 * rows + lane), &scratch->pending);
        parts[lane] = sum_of(e, n_vectors);
    }
    outgoing_rest(&scratch->pending);
    const VECTOR all = reduce_sum(parts);
    VECTOR below = all;
    if (any(less(all, broadcast(2)))) {
        /* For short rows it costs less to do this for all than to have the processor guess which. */
        const int for_all = n_vectors <= 8;
        REAL sums[LANES];
        store(sums, all);
        for (int lane = 0; lane < rows; lane++)
            parts[lane] = for_all || sums[lane] < 2 ? sum_below_one(scratch->e + lane * padded, n_vectors) : broadcast(0);
        below = reduce_sum(parts);
    }
    const SOFTMAX softmax = softmax_of(m, all, below);

    if (!is_loss(job)) {
        REAL result[LANES];
        store(result, log_sum_exp(&softmax));
        if (job->task == FX_LOGSUMEXP) {
            for (int lane = 0; lane < rows; lane++) put_loss(block, row + lane, result[lane]);
            return;
        }
        REAL factors[LANES];
        store(factors, softmax.inverse);
        for (int lane = 0; lane < rows; lane++) {
            const SOFTMAX one = softmax_of_lane(&softmax, lane);
            const REAL *z = row_of(&block->logits, row + lane), *e = scratch->e + lane * padded;
            REAL *out = gradient_row(block, scratch, row, lane);
            if (job->task == FX_LOG_SOFTMAX)
                for (int64_t i = 0; i < n_classes; i += LANES)
                    store_up_to(out + i, shift(load_up_to(z + i, n_classes - i, 0), one.max) - one.log_sum, n_classes - i);
            else if (!job->stream)
                for (int64_t i = 0; i < n_classes; i += LANES) store_up_to(out + i, load(e + i) * one.inverse, n_classes - i);
        }
        send_gradient(block, scratch, row, rows, job->task == FX_SOFTMAX ? factors : NULL);
        return;
    }

    const VECTOR zero = broadcast(0);
    VECTOR value, target_complement = zero, target_gradient = zero, target_hessian = zero;
    VECTOR scale = load_up_to(block->scale + row, rows, 0);
    FOCAL modulated = no_focal();
    if (soft && focal) {
        for (int lane = 0; lane < rows; lane++) {
            const SOFTMAX one = softmax_of_lane(&softmax, lane);
            REAL *mass = scratch->mass + lane * padded, *curvature = scratch->curvature + lane * padded;
            SCALAR_PAIR total_mass = {0, 0}, total_curvature = {0, 0};
            distance[lane] = (REAL)focal_masses(&one, row_of(&block->logits, row + lane), scratch->e + lane * padded, n_classes,
                                                focus_of(job), mass, curvature, scratch->terms);
            add_lanes(&total_mass, compensated_sum_of(mass, n_vectors));
            add_lanes(&total_curvature, compensated_sum_of(curvature, n_vectors));
            split(total_mass, &high[lane], &low[lane]);
            split(total_curvature, &curvature_high[lane], &curvature_low[lane]);
        }
        value = load(distance);
    } else if (soft) {
        value = (load(high) + load(low)) * softmax.log_sum + load(distance);
    } else {
        REAL z_target[LANES] = {0}, e_target[LANES] = {0};
        for (int lane = 0; lane < rows; lane++) {
            z_target[lane] = row_of(&block->logits, row + lane)[block->label[row + lane]];
            e_target[lane] = scratch->e[lane * padded + block->label[row + lane]];
        }
        value = index_value(&softmax, load(z_target));
        if (focal) {
            modulated = focal_of(&softmax, load(e_target), value, focus_of(job));
            value *= modulated.modulation;
            target_hessian = scale * focal_hessian_of_target(&softmax, load(e_target), &modulated);
            scale *= modulated.mass;
        }
        target_complement = complement(&softmax, load(e_target));
        target_gradient = index_gradient(&softmax, load(e_target), scale * softmax.inverse);
    }
    put_values(block, value, row);
#if REAL_BITS == 32
    if (UNLIKELY(has_infinite(value)))
        widen_values(block, m, softmax.log_sum, soft ? scratch->mass : NULL, padded, 1, row, rows);
#endif
    if (!job->grad.data) return;

    REAL target_complements[LANES], target_gradients[LANES], target_hessians[LANES], scales[LANES], masses[LANES] = {0}, curvatures[LANES] = {0};
    store(scaled_inverse, scale * softmax.inverse);
    store(scales, load_up_to(block->scale + row, rows, 0));
    store(target_complements, target_complement);
    store(target_gradients, target_gradient);
    store(target_hessians, target_hessian);
    if (focal && !soft) store(masses, modulated.mass), store(curvatures, modulated.curvature);
    for (int lane = 0; lane < rows; lane++) {
        REAL *e = scratch->e + lane * padded, *grad = gradient_row(block, scratch, row, lane);
        REAL *hess = group_row(block, &block->hess, scratch->hess_stage, row, lane);
        const int64_t label = block->label[row + lane];
        if (soft) {
            const SOFTMAX one = softmax_of_lane(&softmax, lane);
            const PAIR total_mass = {broadcast(high[lane]), broadcast(low[lane])};
            const PAIR total_curvature = {broadcast(curvature_high[lane]), broadcast(curvature_low[lane])};
            put_soft_row(grad, hess, e, scratch->mass + lane * padded, focal ? scratch->curvature + lane * padded : NULL, n_classes,
                         &one, total_mass, total_curvature, scales[lane]);
            continue;
        }
        if (hess) {
            const SOFTMAX one = softmax_of_lane(&softmax, lane);
            const FOCAL one_focal = {zero, broadcast(masses[lane]), broadcast(curvatures[lane]), zero};
            put_index_hessian(hess, e, n_classes, &one, scaled_inverse[lane], 1, focal ? &one_focal : NULL, scales[lane]);
            if (focal) hess[label] = target_hessians[lane];
        }
        if (job->stream) e[label] = -target_complements[lane]; /* times the factor it is the target's gradient */
        else {
            scale_out(grad, e, broadcast(scaled_inverse[lane]), n_classes, 0);
            grad[label] = target_gradients[lane];
        }
    }
    send_gradient(block, scratch, row, rows, soft ? NULL : scaled_inverse);
    flush_group(block, &block->hess, scratch->hess_stage, row, rows);
}

static void compute_rows(BLOCK *block, REAL *memory)
{
    ROWS scratch;
    rows_scratch(block->job, memory, &scratch);
    for (int64_t row = 0; row < block->rows; row += scratch.rows_per_group) {
        const int64_t left = block->rows - row;
        compute_group(block, &scratch, row, left < scratch.rows_per_group ? (int)left : scratch.rows_per_group);
    }
    outgoing_rest(&scratch.pending);
    outgoing_flush(&scratch.pending);
}

/* ---- long rows ---- */

typedef struct {
    REAL *z, *e, *mass, *curvature, *terms, *grad, *hess; /* [CHUNK] */
    REAL *kept;                                    /* [n_classes], NULL: computed again */
    REAL *other_kept;                              /* what is pending, while kept is filled again */
    REAL *max, *factor, *outgoing_factor;          /* [n_chunks]; factor = exp(max of the chunk - max of the row) */
    double *all, *below, *mass_of_chunk;           /* [n_chunks], relative to the maximum of the chunk */
    int64_t n_chunks;
    OUTGOING pending;                              /* the gradient of the row before */
    REAL *target;                                  /* of which this element is still to be set */
    REAL target_gradient;
} LONG_ROW;

/* Gradients of class indices and softmax need one multiplication from the exponentials to their place. Streamed, they go
 * out while the exponentials of the next row are computed. */
INLINE int is_one_product(const fx_job *job)
{
    return (is_loss(job) ? !is_soft(job) : job->task == FX_SOFTMAX) && job->grad.klass == 1 && !is_half(job->real_type);
}
INLINE int goes_out_later(const fx_job *job) { return job->stream && is_one_product(job) && !job->hess.data; }

static size_t long_row_scratch(const fx_job *job, REAL *scratch, LONG_ROW *row)
{
    const int64_t line = 64 / (int64_t)sizeof(REAL);
    row->n_chunks = (job->n_classes + CHUNK - 1) / CHUNK;
    REAL **chunks[] = {&row->z, &row->e, &row->mass, &row->curvature, &row->terms, &row->grad, &row->hess};
    REAL **reals[] = {&row->max, &row->factor, &row->outgoing_factor};
    double **doubles[] = {&row->all, &row->below, &row->mass_of_chunk};
    const int64_t widths = (int64_t)(sizeof(double) / sizeof(REAL));
    REAL *next = scratch;
    for (int i = 0; i < COUNT(chunks); i++) *chunks[i] = next, next += CHUNK;
    for (int i = 0; i < COUNT(reals); i++) *reals[i] = next, next += round_up(row->n_chunks, line);
    for (int i = 0; i < COUNT(doubles); i++) *doubles[i] = (double *)next, next += round_up(row->n_chunks * widths, line);
    row->kept = row->other_kept = row->target = NULL;
    row->pending = (OUTGOING){0};
    if (job->inputs == FX_LOGITS && job->n_classes * (int64_t)sizeof(REAL) <= KEPT_BYTES)
        row->kept = next, next += round_up(job->n_classes, CHUNK);
    if (row->kept && goes_out_later(job)) row->other_kept = next, next += round_up(job->n_classes, CHUNK);
    return (size_t)(next - scratch) * sizeof(REAL);
}

/* Classes first .. first + n - 1 of a row where they lie, or gathered into `buffer` if they are apart, or halves. */
INLINE const REAL *chunk_of(const BLOCK *block, int64_t row, int64_t first, int64_t n, REAL *buffer)
{
    const fx_array *array = &block->logits;
    if (!is_half(block->type) && array->klass == 1) return row_of(array, row) + first;
    read_reals(array, block->type, row * array->inner + first * array->klass, array->klass, n, buffer);
    return buffer;
}

/* Where a chunk of an output is computed, and its way home from there. */
INLINE REAL *chunk_output(const BLOCK *block, const fx_array *array, int64_t row, int64_t first, REAL *buffer, int stream)
{
    if (!array->data) return NULL;
    return array->klass == 1 && !stream && !is_half(block->type) ? row_of(array, row) + first : buffer;
}
INLINE void put_chunk(const BLOCK *block, const fx_array *array, int64_t row, int64_t first, int64_t n, const REAL *chunk)
{
    if (!array->data) return;
    REAL *out = row_of(array, row) + first;
    if (array->klass != 1 || is_half(block->type))
        write_reals(array, block->type, row * array->inner + first * array->klass, array->klass, n, chunk);
    else if (chunk != out) copy_out(out, chunk, n, block->job->stream);
}

INLINE int64_t chunk_length(const fx_job *job, int64_t first) { return at_most(job->n_classes - first, CHUNK); }

/* eps / K' of a whole row. */
RARE REAL uniform_mass_of_row(const BLOCK *block, int64_t row, REAL masked, REAL *buffer)
{
    int64_t unmasked = 0;
    if (!(block->job->label_smoothing > 0)) return 0;
    for (int64_t first = 0; first < block->job->n_classes; first += CHUNK) {
        const int64_t n = chunk_length(block->job, first);
        unmasked += count_unmasked(chunk_of(block, row, first, n, buffer), n, masked);
    }
    return uniform_mass(block->job, unmasked);
}

INLINE REAL first_lane(VECTOR v)
{
    REAL lanes[LANES];
    store(lanes, v);
    return lanes[0];
}
INLINE REAL largest_lane(VECTOR v)
{
    REAL lanes[LANES];
    store(lanes, v);
    REAL largest = lanes[0];
    for (int lane = 1; lane < LANES; lane++) largest = lanes[lane] > largest ? lanes[lane] : largest;
    return largest;
}

#if REAL_BITS == 32
/* The sum of u (max - z) in double, where a distance overflows float32. */
RARE double widened_distance(const BLOCK *block, const LONG_ROW *scratch, int64_t row, REAL uniform, REAL max)
{
    double distance = 0;
    for (int64_t first = 0; first < block->job->n_classes; first += CHUNK) {
        const int64_t n = chunk_length(block->job, first);
        const REAL *z = chunk_of(block, row, first, n, scratch->z);
        row_mass(block, row, z, first, n, uniform, (REAL)-INFINITY, scratch->mass);
        for (int64_t i = 0; i < n; i++)
            if (scratch->mass[i] != 0 && z[i] != max) distance += (double)scratch->mass[i] * ((double)max - (double)z[i]);
    }
    return distance;
}
#endif

/* The exponentials of a chunk relative to the maximum of the row: kept ones are rescaled, others computed again. */
INLINE REAL *long_row_exponentials(const LONG_ROW *scratch, int64_t j, const REAL *z, REAL max, int64_t n)
{
    REAL *e = scratch->e;
    if (!scratch->kept) row_exponentials(e, z, max, n, z, z, NULL);
    else if (scratch->factor[j] == 1) e = scratch->kept + j * CHUNK;
    else scale_out(e, scratch->kept + j * CHUNK, broadcast(scratch->factor[j]), round_up(n, LANES), 0);
    return e;
}

/* The rest of the row before, and its target. */
INLINE void finish_pending(LONG_ROW *scratch)
{
    outgoing_rest(&scratch->pending);
    if (!scratch->target) return;
    outgoing_flush(&scratch->pending);
    stream_fence(); /* an ordinary store after streaming ones */
    *scratch->target = scratch->target_gradient;
    scratch->target = NULL;
}

INLINE void send_long_row(const BLOCK *block, LONG_ROW *scratch, int64_t row, REAL scaled_inverse, int64_t label,
                          REAL target_gradient)
{
    const fx_job *job = block->job;
    const int64_t n_chunks = scratch->n_chunks;
    REAL *sent = scratch->kept, *to = row_of(&block->grad, row);
    for (int64_t j = 0; j < n_chunks; j++) scratch->outgoing_factor[j] = scaled_inverse * scratch->factor[j];
    outgoing_begin(&scratch->pending, sent, CHUNK, CHUNK, job->n_classes - (n_chunks - 1) * CHUNK, n_chunks,
                   scratch->outgoing_factor, to, CHUNK);
    scratch->target = is_loss(job) ? to + label : NULL;
    scratch->target_gradient = target_gradient;
    scratch->kept = scratch->other_kept;
    scratch->other_kept = sent;
}

static void compute_long_row(BLOCK *block, LONG_ROW *scratch, int64_t row)
{
    const fx_job *job = block->job;
    const int loss = is_loss(job), soft = loss && is_soft(job), focal = job->task == FX_FOCAL;
    const REAL uniform = soft ? uniform_mass_of_row(block, row, (REAL)-INFINITY, scratch->z) : 0;
    SCALAR_PAIR mass_sum = {0, 0}, curvature_sum = {0, 0}, distance = {0, 0}, all = {0, 0}, below = {0, 0};

    for (int64_t j = 0; j < scratch->n_chunks; j++) {
        const int64_t first = j * CHUNK, n = chunk_length(job, first);
        const int64_t n_vectors = (n + LANES - 1) / LANES;
        const REAL *z = chunk_of(block, row, first, n, scratch->z);
        REAL *e = scratch->kept ? scratch->kept + first : scratch->e;
        const REAL max = largest_lane(row_maximum(z, n));
        row_exponentials(e, z, max, n, z + CHUNK, z + 2 * CHUNK, &scratch->pending);
        scratch->max[j] = max;
        scratch->all[j] = sum_of_lanes(sum_of(e, n_vectors));
        scratch->below[j] = scratch->all[j] < 2 ? sum_of_lanes(sum_below_one(e, n_vectors)) : scratch->all[j] - 1;
        if (soft) { /* relative to the maximum of this chunk; moved to that of the row below */
            row_mass(block, row, z, first, n, uniform, (REAL)-INFINITY, scratch->mass);
            const PAIR chunk_mass = compensated_sum_of(scratch->mass, n_vectors);
            add_lanes(&mass_sum, chunk_mass);
            add_scalar(&distance, row_distance(scratch->mass, z, max, n, scratch->terms));
            scratch->mass_of_chunk[j] = total_of_lanes(chunk_mass);
        }
    }

    finish_pending(scratch);
    REAL max = scratch->max[0];
    for (int64_t j = 1; j < scratch->n_chunks; j++) max = scratch->max[j] > max ? scratch->max[j] : max;
    for (int64_t j = 0; j < scratch->n_chunks; j++) {
        const int is_largest = scratch->max[j] == max;
        scratch->factor[j] = is_largest ? 1 : first_lane(exponential_any(broadcast(scratch->max[j]), broadcast(max)));
        add_scalar(&all, scratch->all[j] * (double)scratch->factor[j]);
        add_scalar(&below, (is_largest ? scratch->below[j] : scratch->all[j]) * (double)scratch->factor[j]);
        if (soft && !is_largest && scratch->mass_of_chunk[j] != 0)
            add_scalar(&distance, scratch->mass_of_chunk[j] * ((double)max - (double)scratch->max[j]));
    }
    const SOFTMAX softmax = softmax_of(broadcast(max), broadcast((REAL)total_scalar(all)),
                                       broadcast((REAL)total_scalar(below)));
    const double log_sum = (double)first_lane(softmax.log_sum);

    if (job->task == FX_LOGSUMEXP) {
        put_loss(block, row, first_lane(log_sum_exp(&softmax)));
        return;
    }
    const int64_t label = loss ? block->label[row] : 0;
    const REAL scale = loss ? block->scale[row] : 1;
    REAL scaled_inverse = scale * first_lane(softmax.inverse), target_gradient = 0, target_hessian = 0, high, low;
    FOCAL modulated = no_focal();
    if (soft) {
#if REAL_BITS == 32
        if (UNLIKELY(isinf(distance.high)))
            distance.high = widened_distance(block, scratch, row, uniform, max), distance.low = 0;
#endif
        block->value[row] = total_scalar(mass_sum) * log_sum + total_scalar(distance);
        split(mass_sum, &high, &low);
        if (high == 0 && !counts_without_mass(job)) block->weight[row] = 0;
        if (focal) {
            SCALAR_PAIR value = {0, 0};
            mass_sum = value;
            for (int64_t j = 0; j < scratch->n_chunks; j++) {
                const int64_t first = j * CHUNK, n = chunk_length(job, first), n_vectors = (n + LANES - 1) / LANES;
                const REAL *z = chunk_of(block, row, first, n, scratch->z);
                row_mass(block, row, z, first, n, uniform, (REAL)-INFINITY, scratch->mass);
                add_scalar(&value, focal_masses(&softmax, z, long_row_exponentials(scratch, j, z, max, n), n, focus_of(job),
                                                scratch->mass, scratch->curvature, scratch->terms));
                add_lanes(&mass_sum, compensated_sum_of(scratch->mass, n_vectors));
                add_lanes(&curvature_sum, compensated_sum_of(scratch->curvature, n_vectors));
            }
            /* Where only a distance overflows, q^gamma is 1 and the cross-entropy of above is the focal loss. */
            if (!isinf(value.high)) block->value[row] = total_scalar(value);
        }
    } else if (loss) {
        REAL z;
        read_reals(&block->logits, block->type, row * block->logits.inner + label * block->logits.klass, 1, 1, &z);
        const VECTOR e_target = exponential_any(broadcast(z), broadcast(max));
        double value = log_sum + (z == max ? 0 : (double)max - (double)z);
        if (focal) {
            modulated = focal_of(&softmax, e_target, broadcast((REAL)value), focus_of(job));
            value *= (double)first_lane(modulated.modulation);
            target_hessian = scale * first_lane(focal_hessian_of_target(&softmax, e_target, &modulated));
            scaled_inverse *= first_lane(modulated.mass);
        }
        block->value[row] = value;
        target_gradient = first_lane(index_gradient(&softmax, e_target, broadcast(scaled_inverse)));
    }
    if (!job->grad.data) return;
    if (scratch->other_kept) {
        send_long_row(block, scratch, row, scaled_inverse, label, target_gradient);
        return;
    }

    split(mass_sum, &high, &low);
    const PAIR total_mass = {broadcast(high), broadcast(low)};
    split(curvature_sum, &high, &low);
    const PAIR total_curvature = {broadcast(high), broadcast(low)};
    const int direct = is_one_product(job);
    for (int64_t j = 0; j < scratch->n_chunks; j++) {
        const int64_t first = j * CHUNK, n = chunk_length(job, first);
        REAL *grad = chunk_output(block, &block->grad, row, first, scratch->grad, job->stream && !direct);
        REAL *hess = chunk_output(block, &block->hess, row, first, scratch->hess, job->stream);
        const int needs_z = soft || job->task == FX_LOG_SOFTMAX || !scratch->kept;
        const REAL *z = needs_z ? chunk_of(block, row, first, n, scratch->z) : NULL;
        if (job->task == FX_LOG_SOFTMAX)
            for (int64_t i = 0; i < n; i += LANES)
                store_up_to(grad + i, shift(load_up_to(z + i, n - i, 0), softmax.max) - softmax.log_sum, n - i);
        else if (soft) {
            const REAL *e = long_row_exponentials(scratch, j, z, max, n);
            row_mass(block, row, z, first, n, uniform, (REAL)-INFINITY, scratch->mass);
            if (focal) focal_masses(&softmax, z, e, n, focus_of(job), scratch->mass, scratch->curvature, scratch->terms);
            put_soft_row(grad, hess, e, scratch->mass, focal ? scratch->curvature : NULL, n, &softmax, total_mass,
                         total_curvature, scale);
        } else {
            const REAL *e = scratch->kept ? scratch->kept + first : long_row_exponentials(scratch, j, z, max, n);
            const REAL factor = scratch->kept ? scratch->factor[j] : 1;
            scale_out(grad, e, broadcast(scaled_inverse * factor), n, job->stream && direct);
            if (hess) put_index_hessian(hess, e, n, &softmax, scaled_inverse, factor, focal ? &modulated : NULL, scale);
            if (loss && label >= first && label < first + n) {
                if (job->stream && direct) stream_fence(); /* an ordinary store after streaming ones */
                grad[label - first] = target_gradient;
                if (hess && focal) hess[label - first] = target_hessian;
            }
        }
        put_chunk(block, &block->grad, row, first, n, grad);
        put_chunk(block, &block->hess, row, first, n, hess);
    }
}

static void compute_long_rows(BLOCK *block, REAL *memory)
{
    LONG_ROW scratch;
    long_row_scratch(block->job, memory, &scratch);
    for (int64_t row = 0; row < block->rows; row++) compute_long_row(block, &scratch, row);
    finish_pending(&scratch);
    outgoing_flush(&scratch.pending);
}

#endif
