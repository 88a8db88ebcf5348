/* The regime of long rows: rows of any length and any strides, a chunk of CHUNK classes at a time.
 *
 * Each chunk has its own maximum m_j and sum; the exponentials are taken relative to m_j and rescaled by exp(m_j - m)
 * once, at the end, per chunk and never per element. So the logits are read from memory once, and the error of
 * rescaling does not add up. The exponentials are kept up to KEPT_BYTES a row; beyond, they are computed a second time.
 */
#ifndef FASTXENT_LONG_ROWS_H
#define FASTXENT_LONG_ROWS_H

#include "rows.h"

enum { KEPT_BYTES = 1024 * 1024 }; /* of exponentials held for one long row: half of the second-level cache */

typedef struct {
    REAL *z, *e, *mass, *curvature, *grad, *hess; /* [CHUNK] */
    REAL *kept;                                   /* [n_classes], NULL: computed again */
    REAL *other_kept;                             /* what is pending, while kept is filled again */
    REAL *max, *factor, *outgoing_factor;         /* [n_chunks]; factor = exp(max of the chunk - max of the row) */
    double *all, *below;                          /* [n_chunks], relative to the maximum of the chunk */
    int64_t n_chunks;
    OUTGOING pending; /* the gradient of the row before */
    REAL *target;     /* of which this element is still to be set */
    REAL target_gradient;
    SMOOTHED_INDEX smoothing;
} LONG_ROW;

/* Streamed, a gradient that takes no more room than its exponentials goes out while those of the next row are
 * computed. */
INLINE int goes_out_later(const fx_job *job)
{
    return job->stream && (is_loss(job) || job->task == FX_SOFTMAX) && job->grad.klass == 1 && !is_half(job->real_type)
        && !job->hess.data;
}

static size_t long_row_scratch(const fx_job *job, REAL *scratch, LONG_ROW *row)
{
    const int64_t line = 64 / (int64_t)sizeof(REAL);
    row->n_chunks = (job->n_classes + CHUNK - 1) / CHUNK;
    REAL **chunks[] = {&row->z, &row->e, &row->mass, &row->curvature, &row->grad, &row->hess};
    REAL **reals[] = {&row->max, &row->factor, &row->outgoing_factor};
    double **doubles[] = {&row->all, &row->below};
    const int64_t widths = (int64_t)(sizeof(double) / sizeof(REAL));
    REAL *next = scratch;
    for (int i = 0; i < COUNT(chunks); i++) *chunks[i] = next, next += CHUNK;
    for (int i = 0; i < COUNT(reals); i++) *reals[i] = next, next += round_up(row->n_chunks, line);
    for (int i = 0; i < COUNT(doubles); i++)
        *doubles[i] = (double *)next, next += round_up(row->n_chunks * widths, line);
    row->kept = row->other_kept = row->target = NULL;
    row->pending = (OUTGOING){0};
    if (job->inputs == FX_LOGITS && job->n_classes * (int64_t)sizeof(REAL) <= KEPT_BYTES)
        row->kept = next, next += round_up(job->n_classes, CHUNK);
    /* Two of them, and the logits, have to fit the second-level cache. */
    if (row->kept && goes_out_later(job) && 2 * job->n_classes * (int64_t)sizeof(REAL) <= KEPT_BYTES)
        row->other_kept = next, next += round_up(job->n_classes, CHUNK);
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
INLINE REAL *chunk_output(
    const BLOCK *block, const fx_array *array, int64_t row, int64_t first, REAL *buffer, int stream)
{
    if (!array->data) return NULL;
    return array->klass == 1 && !stream && !is_half(block->type) ? row_of(array, row) + first : buffer;
}
NOINLINE void put_chunk(
    const BLOCK *block, const fx_array *array, int64_t row, int64_t first, int64_t n, const REAL *chunk)
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
            if (scratch->mass[i] != 0 && z[i] != max)
                distance += (double)scratch->mass[i] * ((double)max - (double)z[i]);
    }
    return distance;
}
#endif

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

/* A row at work. */
typedef struct {
    BLOCK *block;
    LONG_ROW *scratch;
    int64_t row;
    REAL max;
    SOFTMAX softmax;
    REAL scale, uniform;
    int64_t label;
} LONG_GROUP;

/* One chunk of it: its logits, and exponentials which are relative to the maximum of the row when multiplied by
 * `rescale`. */
typedef struct {
    int64_t first, n;
    const REAL *z, *e;
    REAL rescale;
} PART;

INLINE const REAL *part_logits(const LONG_GROUP *group, int64_t j, int64_t *first, int64_t *n)
{
    *first = j * CHUNK, *n = chunk_length(group->block->job, *first);
    return chunk_of(group->block, group->row, *first, *n, group->scratch->z);
}

NOINLINE PART part_of(const LONG_GROUP *group, int64_t j, int needs_z)
{
    const LONG_ROW *scratch = group->scratch;
    PART part = {
        j * CHUNK, chunk_length(group->block->job, j * CHUNK), NULL, scratch->kept + j * CHUNK, scratch->factor[j]};
    if (needs_z || !scratch->kept) part.z = chunk_of(group->block, group->row, part.first, part.n, scratch->z);
    if (!scratch->kept) {
        row_exponentials(scratch->e, part.z, group->max, part.n, part.z, part.z, NULL);
        part.e = scratch->e, part.rescale = 1;
    }
    return part;
}

/* Gradients that are `factor` times the exponentials plus `addend`, but for that of the target; kept ones may be them
 * already. */
NOINLINE void send_long_row(const LONG_GROUP *group, REAL factor, REAL addend, int is_done, REAL target_gradient)
{
    const BLOCK *block = group->block;
    const fx_job *job = block->job;
    LONG_ROW *scratch = group->scratch;
    const int64_t n_chunks = scratch->n_chunks;
    const int counts = !is_loss(job) || block->all_weigh_one || block->weight[group->row] != 0;
    REAL *sent = scratch->kept, *to = row_of(&block->grad, group->row);
    for (int64_t j = 0; j < n_chunks; j++)
        scratch->outgoing_factor[j] = is_done || !counts ? 1 : factor * scratch->factor[j];
    if (!counts) memset(sent, 0, (size_t)job->n_classes * sizeof(REAL));
    outgoing_begin(&scratch->pending, sent, CHUNK, CHUNK, job->n_classes - (n_chunks - 1) * CHUNK, n_chunks,
        scratch->outgoing_factor, to, CHUNK);
    scratch->pending.addend = counts ? addend : 0;
    scratch->target = is_loss(job) && counts && !is_done ? to + group->label : NULL;
    scratch->target_gradient = target_gradient;
    scratch->kept = scratch->other_kept;
    scratch->other_kept = sent;
}

/* Maxima, exponentials and sums of the chunks, and what that makes for the row. */
INLINE void long_row_softmax(LONG_GROUP *group)
{
    LONG_ROW *scratch = group->scratch;
    SCALAR_PAIR all = {0, 0}, below = {0, 0};
    for (int64_t j = 0; j < scratch->n_chunks; j++) {
        int64_t first, n;
        const REAL *z = part_logits(group, j, &first, &n);
        const int64_t n_vectors = (n + LANES - 1) / LANES;
        REAL *e = scratch->kept ? scratch->kept + first : scratch->e;
        const REAL max = largest_lane(row_maximum(z, n));
        row_exponentials(e, z, max, n, z + CHUNK, z + 2 * CHUNK, &scratch->pending);
        scratch->max[j] = max;
        scratch->all[j] = sum_of_lanes(sum_of_row(e, n_vectors));
        scratch->below[j] =
            scratch->all[j] < 2 ? sum_of_lanes(sum_of_row_below_one(e, n_vectors)) : scratch->all[j] - 1;
    }
    finish_pending(scratch);
    REAL max = scratch->max[0];
    for (int64_t j = 1; j < scratch->n_chunks; j++) max = scratch->max[j] > max ? scratch->max[j] : max;
    for (int64_t j = 0; j < scratch->n_chunks; j++) {
        const int is_largest = scratch->max[j] == max;
        scratch->factor[j] = is_largest ? 1 : first_lane(exponential_any(broadcast(scratch->max[j]), broadcast(max)));
        add_scalar(&all, scratch->all[j] * (double)scratch->factor[j]);
        add_scalar(&below, (is_largest ? scratch->below[j] : scratch->all[j]) * (double)scratch->factor[j]);
    }
    group->max = max;
    group->softmax =
        softmax_of(broadcast(max), broadcast((REAL)total_scalar(all)), broadcast((REAL)total_scalar(below)));
}

/* The logit of the target. */
NOINLINE REAL target_logit(const LONG_GROUP *group)
{
    const BLOCK *block = group->block;
    REAL z;
    read_reals(
        &block->logits, block->type, group->row * block->logits.inner + group->label * block->logits.klass, 1, 1, &z);
    return z;
}

/* Outputs of a chunk, and their way home. */
INLINE REAL *part_output(const LONG_GROUP *group, const fx_array *array, int64_t first, REAL *buffer, int staged)
{ return chunk_output(group->block, array, group->row, first, buffer, staged); }
INLINE void put_part(const LONG_GROUP *group, int64_t first, int64_t n, const REAL *grad, const REAL *hess)
{
    put_chunk(group->block, &group->block->grad, group->row, first, n, grad);
    put_chunk(group->block, &group->block->hess, group->row, first, n, hess);
}

RARE void put_long_log_softmax(const LONG_GROUP *group)
{
    const SOFTMAX *softmax = &group->softmax;
    const BLOCK *block = group->block;
    for (int64_t j = 0; j < group->scratch->n_chunks; j++) {
        int64_t first, n;
        const REAL *z = part_logits(group, j, &first, &n);
        REAL *out = part_output(group, &block->grad, first, group->scratch->grad, block->job->stream);
        for (int64_t i = 0; i < n; i += LANES)
            store_up_to(out + i, shift(load_up_to(z + i, n - i, 0), softmax->max) - softmax->log_sum, n - i);
        put_part(group, first, n, out, NULL);
    }
}

/* Class indices, smoothed or not, and the softmax itself: one product, plus `addend` (times the class weight, if
 * given). */
NOINLINE void put_long_products(LONG_GROUP *group, REAL factor, REAL addend, const REAL *weight, const FOCAL *focal,
    REAL target_gradient, REAL target_hessian)
{
    const BLOCK *block = group->block;
    const fx_job *job = block->job;
    LONG_ROW *scratch = group->scratch;
    const int later = scratch->other_kept != NULL, loss = is_loss(job);
    if (later && !weight) {
        send_long_row(group, factor, addend, 0, target_gradient);
        return;
    }
    const int direct = job->stream && addend == 0 && !weight && !is_half(job->real_type) && job->grad.klass == 1;
    for (int64_t j = 0; j < scratch->n_chunks; j++) {
        const PART part = part_of(group, j, 0);
        const int64_t first = part.first, n = part.n;
        REAL *grad = later ? scratch->kept + first
                           : part_output(group, &block->grad, first, scratch->grad, job->stream && !direct);
        REAL *hess = part_output(group, &block->hess, first, scratch->hess, job->stream);
        if (hess) put_index_hessian(hess, part.e, n, &group->softmax, factor, part.rescale, focal, group->scale);
        if (addend == 0) scale_out(grad, part.e, broadcast(factor * part.rescale), n, direct);
        else put_smoothed_row(grad, part.e, weight ? weight + first : NULL, n, factor * part.rescale, -addend);
        if (loss && group->label >= first && group->label < first + n) {
            if (direct) stream_fence(); /* an ordinary store after streaming ones */
            grad[group->label - first] = target_gradient;
            if (hess && focal) hess[group->label - first] = target_hessian;
        }
        if (!later) put_part(group, first, n, grad, hess);
    }
    if (later) send_long_row(group, 1, 0, 1, 0);
}

INLINE void long_row_index(LONG_GROUP *group)
{
    const fx_job *job = group->block->job;
    const SOFTMAX *softmax = &group->softmax;
    const REAL z = target_logit(group);
    const VECTOR e_target = exponential_any(broadcast(z), broadcast(group->max));
    double value = (double)first_lane(softmax->log_sum) + (z == group->max ? 0 : (double)group->max - (double)z);
    REAL scaled_inverse = group->scale * first_lane(softmax->inverse), target_hessian = 0;
    FOCAL modulated = no_focal();
    if (job->task == FX_FOCAL) {
        modulated = focal_of(softmax, e_target, broadcast((REAL)value), focus_of(job));
        value *= (double)first_lane(modulated.modulation);
        target_hessian = group->scale * first_lane(focal_hessian_of_target(softmax, e_target, &modulated));
        scaled_inverse *= first_lane(modulated.mass);
    }
    group->block->value[group->row] = value;
    if (job->grad.data)
        put_long_products(group, scaled_inverse, 0, NULL, job->task == FX_FOCAL ? &modulated : NULL,
            first_lane(index_gradient(softmax, e_target, broadcast(scaled_inverse))), target_hessian);
}

INLINE double total_of_lanes(PAIR pair)
{
    const SCALAR_PAIR none = {0, 0};
    return total_scalar(add_lanes(none, pair));
}

/* A smoothed class index where all is finite; 0 is returned where it is not, and nothing done. */
INLINE int long_row_smoothed(LONG_GROUP *group)
{
    LONG_ROW *scratch = group->scratch;
    const SMOOTHED_INDEX *smoothing = &scratch->smoothing;
    const SOFTMAX *softmax = &group->softmax;
    const double weight = (double)class_weight(group->block->job, group->label);
    const double mass = smoothed_mass(smoothing, weight), others = smoothed_others(smoothing, weight);
    double sum = 0;
    for (int64_t j = 0; j < scratch->n_chunks; j++) {
        int64_t first, n;
        const REAL *z = part_logits(group, j, &first, &n);
        sum += sum_of_lanes(weighted_distance(smoothing->weight ? smoothing->weight + first : NULL, z, group->max, n));
    }
    const REAL z = target_logit(group), uniform = smoothing->uniform;
    const double distance =
        (double)uniform * sum + smoothing->one_minus_eps * weight * ((double)group->max - (double)z);
    const double value = (mass + others) * (double)first_lane(softmax->log_sum) + distance;
    if (!isfinite(value)) return 0;
    group->block->value[group->row] = value;
    if (!group->block->job->grad.data) return 1;
    const VECTOR scaled_inverse = group->scale * softmax->inverse, e = exponential(broadcast(z), softmax->max);
    const SCALED scaled = scaled_row(softmax, scaled_inverse);
    put_long_products(group, (REAL)(mass + others) * first_lane(scaled_inverse), -uniform * group->scale,
        smoothing->weight, NULL,
        first_lane(weighed_gradient(&scaled, e * scaled.one, broadcast((REAL)mass), broadcast((REAL)others))), 0);
    return 1;
}

/* The masses of a focal loss, instead of those of the targets. */
RARE void long_row_focal(LONG_GROUP *group, PAIR *total_mass, PAIR *total_curvature)
{
    const fx_job *job = group->block->job;
    LONG_ROW *scratch = group->scratch;
    PAIR value = zero_pair(), mass = zero_pair(), curvature = zero_pair();
    const SCALAR_PAIR none = {0, 0};
    for (int64_t j = 0; j < scratch->n_chunks; j++) {
        const PART part = part_of(group, j, 1);
        const int64_t n_vectors = (part.n + LANES - 1) / LANES;
        scale_out(scratch->e, part.e, broadcast(part.rescale), n_vectors * LANES, 0);
        row_mass(group->block, group->row, part.z, part.first, part.n, group->uniform, (REAL)-INFINITY, scratch->mass);
        value = add_pair(value,
            focal_masses(
                &group->softmax, part.z, scratch->e, part.n, focus_of(job), scratch->mass, scratch->curvature));
        mass = add_pair(mass, compensated_sum_of(scratch->mass, n_vectors));
        curvature = add_pair(curvature, compensated_sum_of(scratch->curvature, n_vectors));
    }
    *total_mass = split(add_lanes(none, mass));
    *total_curvature = split(add_lanes(none, curvature));
    /* Where only a distance overflows, q^gamma is 1 and the cross-entropy is the focal loss. */
    const double total_value = total_of_lanes(value) + (double)first_lane(value_of_nothing(&group->softmax));
    if (!isinf(total_value)) group->block->value[group->row] = total_value;
}

/* The sums of the target masses, the value, and whether the row counts. */
INLINE PAIR long_row_masses(LONG_GROUP *group)
{
    BLOCK *block = group->block;
    LONG_ROW *scratch = group->scratch;
    const SCALAR_PAIR none = {0, 0};
    PAIR masses = zero_pair();
    SCALAR_PAIR distances = {0, 0};
    for (int64_t j = 0; j < scratch->n_chunks; j++) {
        int64_t first, n;
        const REAL *z = part_logits(group, j, &first, &n);
        const MASS_SUMS part =
            mass_sums(target_masses(block, group->row, z, first, n, group->uniform, scratch->mass), z, group->max, n);
        masses = add_pair(masses, part.mass);
        add_scalar(&distances, sum_of_lanes(part.distance));
    }
    const SCALAR_PAIR mass = add_lanes(none, masses);
    double distance = total_scalar(distances);
#if REAL_BITS == 32
    if (UNLIKELY(isinf(distance))) distance = widened_distance(block, scratch, group->row, group->uniform, group->max);
#endif
    block->value[group->row] = total_scalar(mass) * (double)first_lane(group->softmax.log_sum) + distance;
    if (mass.high == 0 && !counts_without_mass(block->job)) block->weight[group->row] = 0;
    return split(mass);
}

/* Probabilities, and class indices where smoothing is not simple. */
NOINLINE void long_row_soft(LONG_GROUP *group)
{
    const BLOCK *block = group->block;
    const fx_job *job = block->job;
    LONG_ROW *scratch = group->scratch;
    const int focal = job->task == FX_FOCAL, later = scratch->other_kept != NULL;
    group->uniform = uniform_mass_of_row(block, group->row, (REAL)-INFINITY, scratch->z);
    PAIR total_mass = long_row_masses(group), total_curvature = zero_pair();
    if (focal) long_row_focal(group, &total_mass, &total_curvature);
    if (!job->grad.data) return;
    for (int64_t j = 0; j < scratch->n_chunks; j++) {
        const PART part = part_of(group, j, !masses_are_targets(job));
        const int64_t first = part.first, n = part.n;
        REAL *grad =
            later ? scratch->kept + first : part_output(group, &block->grad, first, scratch->grad, job->stream);
        REAL *hess = part_output(group, &block->hess, first, scratch->hess, job->stream);
        const REAL *mass = target_masses(block, group->row, part.z, first, n, group->uniform, scratch->mass);
        if (focal) {
            scale_out(scratch->e, part.e, broadcast(part.rescale), round_up(n, LANES), 0);
            focal_masses(&group->softmax, part.z, scratch->e, n, focus_of(job), scratch->mass, scratch->curvature);
        }
        if (hess)
            put_soft_hessian(hess, part.e, part.rescale, mass, focal ? scratch->curvature : NULL, n, &group->softmax,
                total_mass, total_curvature, group->scale);
        put_soft_row(grad, part.e, part.rescale, mass, n, &group->softmax, total_mass, group->scale);
        if (!later) put_part(group, first, n, grad, hess);
    }
    if (later) send_long_row(group, 1, 0, 1, 0);
}

static void compute_long_row(BLOCK *block, LONG_ROW *scratch, int64_t row)
{
    const fx_job *job = block->job;
    LONG_GROUP group = {.block = block,
        .scratch = scratch,
        .row = row,
        .scale = is_loss(job) ? block->scale[row] : 1,
        .label = is_loss(job) ? block->label[row] : 0};
    long_row_softmax(&group);
    if (job->task == FX_LOGSUMEXP) put_loss(block, row, first_lane(log_sum_exp(&group.softmax)));
    else if (job->task == FX_LOG_SOFTMAX) put_long_log_softmax(&group);
    else if (!is_loss(job)) put_long_products(&group, first_lane(group.softmax.inverse), 0, NULL, NULL, 0, 0);
    else if (!is_soft(job)) long_row_index(&group);
    else if (!scratch->smoothing.is_exact || !long_row_smoothed(&group)) long_row_soft(&group);
}

static void compute_long_rows(BLOCK *block, REAL *memory)
{
    LONG_ROW scratch;
    long_row_scratch(block->job, memory, &scratch);
    scratch.smoothing = smoothing_of(block->job);
    block->grad_is_clear = scratch.other_kept != NULL;
    for (int64_t row = 0; row < block->rows; row++) compute_long_row(block, &scratch, row);
    finish_pending(&scratch);
    outgoing_flush(&scratch.pending);
}

#endif
