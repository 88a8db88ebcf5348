/* The elementwise regime: binary losses and sigmoids. Lanes are elements, and a block is a run of [inner][class] seen
 * as one axis, whatever the shape.
 *
 * Chunks of a block are brought into the first-level cache as REAL where they do not lie there already (other types,
 * strides, broadcast weights), computed, and taken to their places. Chunks of short rows are whole rows, so that
 * weights per label repeat from chunk to chunk and are fetched once.
 */
#ifndef FASTXENT_ELEMENTS_H
#define FASTXENT_ELEMENTS_H

#include <float.h>

#include "binary.h"
#include "tile.h"

enum {
    ELEMENTS_CHUNK = 4096 / sizeof(REAL),
    ELEMENTS_BLOCK = 32768,
    PADDING = 32 /* sums take two vectors at a time */
};

INLINE int is_elementwise(const fx_job *job) { return job->task >= FX_BINARY_CROSS_ENTROPY; }

typedef struct {
    const fx_job *job;
    int64_t outer, first, n;                /* the chunk */
    int smoothed;                           /* a flag of its own, or loops compare doubles again and again */
    int streams;                            /* its gradient goes from the registers past the caches */
    REAL ignored;                           /* targets equal to this do not count; NaN: all do */
    REAL *z, *t, *pos_weight, *grad, *hess; /* [ELEMENTS_CHUNK] */
    REAL *e;                                /* exp(-|z|) */
    REAL *scale;                            /* of the gradients, where there are sample weights */
    REAL *value;                            /* losses before their weights */
    double *weight;
} ELEMENTS;

static size_t elements_scratch(REAL *scratch, ELEMENTS *elements)
{
    REAL **reals[] = {&elements->z, &elements->t, &elements->pos_weight, &elements->grad, &elements->hess,
        &elements->scale, &elements->value, &elements->e};
    REAL *next = scratch;
    for (int i = 0; i < COUNT(reals); i++) *reals[i] = next, next += ELEMENTS_CHUNK + PADDING;
    elements->weight = (double *)next;
    next += (ELEMENTS_CHUNK + PADDING) * (int64_t)(sizeof(double) / sizeof(REAL));
    return (size_t)(next - scratch) * sizeof(REAL);
}

/* Elements of a chunk or block: whole rows where they are short. */
static int64_t whole_rows(int64_t n_classes, int64_t limit)
{ return n_classes <= limit ? limit / n_classes * n_classes : limit; }

static void plan_elements(fx_job *job)
{
    ELEMENTS elements;
    job->rows_per_block = ELEMENTS_BLOCK / ELEMENTS_CHUNK * whole_rows(job->n_classes, ELEMENTS_CHUNK);
    job->n_blocks_per_outer = (job->n_inner * job->n_classes + job->rows_per_block - 1) / job->rows_per_block;
    job->n_blocks = job->n_outer * job->n_blocks_per_outer;
    job->scratch_bytes = (size_t)round_up((int64_t)elements_scratch(NULL, &elements), FX_ALIGNMENT);
}

/* The elements from `first` on that are equally far apart in an array: at most n. */
typedef struct {
    ptrdiff_t offset, stride;
    int64_t n;
} RUN;

INLINE RUN run_of(const fx_job *job, const fx_array *array, int64_t outer, int64_t first, int64_t n)
{
    const int64_t row = first / job->n_classes, c = first % job->n_classes;
    const int is_one = array->inner == array->klass * job->n_classes;
    RUN run = {outer * array->outer + row * array->inner + c * array->klass, array->klass,
        is_one ? n : at_most(n, job->n_classes - c)};
    return run;
}

/* One RUN after the other of elements first .. first + n - 1. */
#define FOR_RUNS(run, array, outer, begin, count) \
    for (int64_t done = 0; done < (count);) \
        for (RUN run = run_of(job, array, outer, (begin) + done, (count) - done); run.n; done += run.n, run.n = 0)

static void gather(
    const fx_job *job, const fx_array *array, int type, int64_t outer, int64_t first, int64_t n, REAL *out)
{ FOR_RUNS(run, array, outer, first, n) read_reals(array, type, run.offset, run.stride, run.n, out + done); }

RARE void read_half_doubles(const fx_array *array, int type, RUN run, double *out)
{
    for (int64_t i = 0; i < run.n; i++) out[i] = number_at(array, type, run.offset + i * run.stride);
}

static void gather_doubles(
    const fx_job *job, const fx_array *array, int type, int64_t outer, int64_t first, int64_t n, double *out)
{
    FOR_RUNS(run, array, outer, first, n)
    {
        const float *floats = (const float *)array->data + run.offset;
        if (is_half(type)) read_half_doubles(array, type, run, out + done);
        else if (type == FX_FLOAT32 && run.stride == 1)
            for (int64_t i = 0; i < run.n; i++) out[done + i] = (double)floats[i];
        else fx_read_doubles(array->data, type, run.offset, run.stride, run.n, out + done);
    }
}

/* The same where they lie if they are doubles without gaps. */
static const double *doubles_of(const ELEMENTS *chunk, const fx_array *array, int type, double *buffer)
{
    const RUN run = run_of(chunk->job, array, chunk->outer, chunk->first, chunk->n);
    if (type == FX_FLOAT64 && run.stride == 1 && run.n == chunk->n) return (const double *)array->data + run.offset;
    gather_doubles(chunk->job, array, type, chunk->outer, chunk->first, chunk->n, buffer);
    return buffer;
}

static void scatter(const ELEMENTS *chunk, const fx_array *array, const REAL *from)
{
    const fx_job *job = chunk->job;
    FOR_RUNS(run, array, chunk->outer, chunk->first, chunk->n)
    {
        if (run.stride == 1 && job->real_type == REAL_TYPE)
            copy_out((REAL *)array->data + run.offset, from + done, run.n, job->stream);
        else write_reals(array, job->real_type, run.offset, run.stride, run.n, from + done);
    }
}

/* Where the chunk lies in an array of REAL without gaps; NULL if it does not. */
INLINE REAL *place_of(const ELEMENTS *chunk, const fx_array *array, int type)
{
    const RUN run = run_of(chunk->job, array, chunk->outer, chunk->first, chunk->n);
    return array->data && type == REAL_TYPE && run.stride == 1 && run.n == chunk->n ? (REAL *)array->data + run.offset
                                                                                    : NULL;
}

INLINE int is_aligned(const REAL *p) { return (uintptr_t)p % (VECTOR_BYTES + !VECTOR_BYTES) == 0; }

INLINE const REAL *input_of(const ELEMENTS *chunk, const fx_array *array, int type, REAL *buffer)
{
    const REAL *place = place_of(chunk, array, type);
    if (place) return place;
    gather(chunk->job, array, type, chunk->outer, chunk->first, chunk->n, buffer);
    return buffer;
}

/* In a stream that is not aligned, and where the chunk has gaps, an output is computed in its buffer. */
INLINE REAL *output_of(const ELEMENTS *chunk, const fx_array *array, REAL *buffer)
{
    REAL *place = place_of(chunk, array, chunk->job->real_type);
    if (!array->data) return NULL;
    const int goes_at_once = array == &chunk->job->grad && is_aligned(place);
    return place && (!chunk->job->stream || goes_at_once) ? place : buffer;
}

INLINE void put_gradient(const ELEMENTS *chunk, REAL *out, VECTOR v, int64_t left)
{
    if (chunk->streams && left >= LANES) stream_store(out, v);
    else store_up_to(out, v, left);
}

/* Weights per label are the same for all chunks of a block that are whole rows: gathered once. */
static const REAL *pos_weight_of(const ELEMENTS *chunk, int first_of_block)
{
    const fx_job *job = chunk->job;
    const fx_array *array = &job->pos_weight;
    if (array->inner != 0 || job->n_classes > ELEMENTS_CHUNK)
        return input_of(chunk, array, REAL_TYPE, chunk->pos_weight);
    if (first_of_block) gather(job, array, REAL_TYPE, chunk->outer, chunk->first, chunk->n, chunk->pos_weight);
    return chunk->pos_weight;
}

/* 0, 1, or 2 for all else: 64-bit labels, which are what integers are by default, without the conversion of 64-bit
 * integers, which processors before AVX-512 do one by one. */
NOINLINE void read_binary_labels(const uint64_t *RESTRICT label, int64_t n, REAL *RESTRICT out)
{
    for (int64_t i = 0; i < n; i++) {
#if VECTOR_BYTES == 64
        out[i] = (REAL)(label[i] < 2 ? label[i] : 2);
#else
        const uint32_t low = (uint32_t)label[i], high = (uint32_t)(label[i] >> 32);
        out[i] = (REAL)(int32_t)((high | low >> 1) != 0 ? 2 : low);
#endif
    }
}

static int has_long_labels(const fx_job *job) { return job->target_type == FX_INT64 || job->target_type == FX_UINT64; }

/* Where rounding to REAL would make other targets equal to ignore_index. */
static int must_mark_ignored(const fx_job *job)
{
    return REAL_BITS == 32 && job->has_ignore_index && job->target_type == FX_FLOAT64
        && (job->ignore_index == 0 || job->ignore_index == 1);
}

static const REAL *targets_of(const ELEMENTS *chunk, REAL *buffer)
{
    const fx_job *job = chunk->job;
    const RUN run = run_of(job, &job->target, chunk->outer, chunk->first, chunk->n);
    if (has_long_labels(job) && run.stride == 1 && run.n == chunk->n) {
        read_binary_labels((const uint64_t *)job->target.data + run.offset, chunk->n, buffer);
        return buffer;
    }
    const REAL *t = input_of(chunk, &job->target, job->target_type, buffer);
    if (must_mark_ignored(job)) {
        double exact[ELEMENTS_CHUNK];
        gather_doubles(job, &job->target, FX_FLOAT64, chunk->outer, chunk->first, chunk->n, exact);
        for (int64_t i = 0; i < chunk->n; i++)
            if (exact[i] == (double)job->ignore_index) buffer[i] = 2;
    } else if (has_long_labels(job))
        for (int64_t i = 0; i < chunk->n; i++) buffer[i] = buffer[i] == 0 || buffer[i] == 1 ? buffer[i] : 2;
    return t;
}

/* What targets_of() makes of an ignored target: no valid one has become equal to it. */
static REAL ignored_target(const fx_job *job)
{
    if (!job->has_ignore_index) return (REAL)NAN;
    if (must_mark_ignored(job) || (has_long_labels(job) && (uint64_t)job->ignore_index > 1)) return 2;
    return (REAL)job->ignore_index;
}

/* Whether one of n numbers may be outside [0, last], by their bits: those of non-negative numbers are ordered as
 * integers. -0 is taken for one of them. */
#define MAY_BE_OUTSIDE(name, type, word) \
    static int name(const type *RESTRICT x, int64_t n, type last) \
    { \
        word suspects = 0, largest, bits; \
        memcpy(&largest, &last, sizeof last); \
        for (int64_t i = 0; i < n; i++) { \
            memcpy(&bits, x + i, sizeof bits); \
            suspects |= (largest - bits) | bits; \
        } \
        return suspects >> (8 * sizeof suspects - 1) != 0; \
    }
MAY_BE_OUTSIDE(doubles_may_be_outside, double, uint64_t)
#if REAL_BITS == 32
MAY_BE_OUTSIDE(reals_may_be_outside, REAL, uint32_t)
#else
#define reals_may_be_outside doubles_may_be_outside
#endif

/* Which of n targets are ignored (`skip`), and whether all others are in [0, 1]: a loop per type that they are compared
   in. */
#define SURVEY_TARGETS(name, type, integer) \
    static int name(const type *RESTRICT t, int64_t n, int has_ignored, type ignored, int32_t *RESTRICT skip) \
    { \
        integer bad = 0; \
        for (int64_t i = 0; i < n; i++) { \
            const int is_ignored = has_ignored & (t[i] == ignored); \
            bad |= !(is_ignored | ((t[i] >= 0) & (t[i] <= 1))); \
            skip[i] = is_ignored; \
        } \
        return bad != 0; \
    }
SURVEY_TARGETS(survey_reals, REAL, INTEGER)
SURVEY_TARGETS(survey_int64, int64_t, int64_t)
#if REAL_BITS == 32
SURVEY_TARGETS(survey_doubles, double, int64_t)
#endif

/* Whether a target of the chunk is neither ignored nor in [0, 1]. They are compared in a type in which no two of them
 * become equal, and none becomes 0 or 1: integers where they are compared with ignore_index, doubles as they are. */
static int survey_chunk(const ELEMENTS *chunk, int32_t *skip)
{
    const fx_job *job = chunk->job;
    const fx_array *target = &job->target;
    const int has_ignored = job->has_ignore_index;
    union {
        int64_t integers[ELEMENTS_CHUNK];
        double doubles[ELEMENTS_CHUNK];
        REAL reals[ELEMENTS_CHUNK];
    } buffer;
    if (has_labels(job) && has_ignored) {
        const RUN run = run_of(job, target, chunk->outer, chunk->first, chunk->n);
        const int64_t *labels = (const int64_t *)target->data + run.offset;
        if (job->target_type != FX_INT64 || run.stride != 1 || run.n != chunk->n) {
            labels = buffer.integers;
            FOR_RUNS(part, target, chunk->outer, chunk->first, chunk->n)
            {
                int64_t *out = buffer.integers + done;
                fx_read_labels(target->data, job->target_type, part.offset, part.stride, part.n, out);
            }
        }
        return survey_int64(labels, chunk->n, 1, job->ignore_index, skip);
    }
#if REAL_BITS == 32
    if (job->target_type == FX_FLOAT64) {
        const double *t = doubles_of(chunk, target, FX_FLOAT64, buffer.doubles);
        return (has_ignored || doubles_may_be_outside(t, chunk->n, 1))
            && survey_doubles(t, chunk->n, has_ignored, (double)job->ignore_index, skip);
    }
#endif
    const REAL *t = targets_of(chunk, buffer.reals);
    return (has_ignored || reals_may_be_outside(t, chunk->n, 1))
        && survey_reals(t, chunk->n, has_ignored, (REAL)job->ignore_index, skip);
}

/* The sum of losses, times their weights if there are any, in four vectors of sums; up to PADDING more are added. */
enum { SUMS = 4 };
INLINE DOUBLES widen(const REAL *p)
{
#if REAL_BITS == 64
    return load(p);
#elif VECTOR_BYTES == 64
    return _mm512_cvtps_pd(_mm256_loadu_ps(p));
#elif VECTOR_BYTES == 32 && defined(__AVX__)
    return _mm256_cvtps_pd(_mm_loadu_ps(p));
#elif VECTOR_BYTES
    DOUBLES wide;
    for (int lane = 0; lane < DOUBLE_LANES; lane++) wide[lane] = (double)p[lane];
    return wide;
#else
    return (double)*p;
#endif
}

static double sum_of_values(const REAL *value, const double *weight, int64_t n)
{
    DOUBLES sums[SUMS] = {0};
    for (int64_t i = 0; i < n; i += SUMS * DOUBLE_LANES) {
#pragma GCC unroll 4
        for (int k = 0; k < SUMS; k++) {
            DOUBLES v = widen(value + i + k * DOUBLE_LANES);
            if (weight) v *= load_doubles(weight + i + k * DOUBLE_LANES);
            sums[k] += v;
        }
    }
    sums[0] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    double sum = 0;
    for (int lane = 0; lane < DOUBLE_LANES; lane++) sum += ((const double *)sums)[lane];
    return sum;
}

/* `careful`: logits may be infinite or NaN, losses beyond float32 and elements without a weight of their own
 * (pos_weight or alpha 0, which are not looked at); otherwise all is finite, or the sum of the losses is not. task and
 * careful are constants at most calls, so that each gets its own loop; branches on what is given cost nothing beside
 * the arithmetic. */
INLINE void binary_chunk(ELEMENTS *chunk, const REAL *z, const REAL *t, const REAL *pos_weight, REAL *grad, REAL *hess,
    const int task, const int careful)
{
    const fx_job *job = chunk->job;
    const SMOOTHING smoothing = {
        broadcast((REAL)(1 - job->label_smoothing)), broadcast((REAL)(job->label_smoothing / 2))};
    const int wants_inverse = grad || hess;
    const int smoothed = chunk->smoothed, from_probabilities = careful && job->inputs == FX_PROBS;
    const FOCUS focus = focus_of(job);
    const VECTOR alpha = broadcast(job->alpha < 0 ? 1 : (REAL)job->alpha);
    const VECTOR one_minus_alpha = broadcast(job->alpha < 0 ? 1 : (REAL)(1 - job->alpha));
    const VECTOR zero = broadcast(0), ignored = broadcast(chunk->ignored);
    const REAL *scales = job->sample_weight.data ? chunk->scale : NULL, *e = chunk->e;
    REAL *values = chunk->value;
    const int some_left_out = careful || scales || job->has_ignore_index;
    VECTOR scale = broadcast((REAL)(1 / job->divisor));
    for (int64_t i = 0; i < chunk->n; i += LANES) {
        const int64_t left = chunk->n - i;
        const VECTOR z_i = load_up_to(z + i, left, 0), e_i = load(e + i);
        prefetch(t + i + ELEMENTS_CHUNK);
        VECTOR t_i = load_up_to(t + i, left, 0), value, gradient = zero, hessian = zero, counted = scale;
        if (some_left_out) {
            const MASK is_ignored = equal(t_i, ignored);
            if (scales) scale = load(scales + i);
            counted = choose(is_ignored, zero, scale);
            t_i = choose(is_ignored, zero, t_i);
        }
        MASSES masses = {t_i, (REAL)1 - t_i};
        if (smoothed) masses = masses_of(t_i, smoothing);
        if (pos_weight) masses.positive *= load_up_to(pos_weight + i, left, 0);
        if (from_probabilities) {
            const PROBABILITY x = probability_of(z_i);
            value = probability_value(&x, masses);
            if (grad) gradient = probability_gradient(&x, masses, counted);
            if (hess) hessian = probability_hessian(&x, masses, counted);
            counted = choose(less(zero, masses.positive + masses.negative), counted, zero);
        } else if (task == FX_BINARY_FOCAL) {
            const LOGIT x = logit_of(z_i, e_i, 1);
            const BINARY_FOCAL focal = binary_focal_of(&x, masses, focus, alpha, one_minus_alpha, !careful);
            value = binary_focal_value(&focal, !careful);
            if (grad) gradient = turn(counted, z_i) * binary_focal_gradient(&focal, !careful);
            if (hess) hessian = counted * binary_focal_hessian(&focal, &x, !careful);
            if (careful) counted = choose(less(zero, focal.alpha), counted, zero);
        } else {
            const LOGIT x = logit_of(z_i, e_i, wants_inverse);
            const VECTOR against = sides_of(&x, masses).against;
            VECTOR sum_log = x.log_sum, sum_e = x.e;
            if (pos_weight) {
                const VECTOR sum = masses.positive + masses.negative;
                sum_log *= sum;
                sum_e *= sum;
                if (careful) counted = choose(less(zero, sum), counted, zero);
            }
            value = binary_value(&x, against, sum_log, !careful);
            if (grad) gradient = turn(counted, z_i) * binary_gradient(&x, against, sum_e);
            if (hess) hessian = counted * binary_hessian(&x, sum_e);
        }
        if (some_left_out) {
            const MASK counts = less(zero, counted);
            value = keep(counts, value);
            gradient = keep(counts, gradient);
            hessian = keep(counts, hessian);
        }
        store(values + i, value);
        if (grad) put_gradient(chunk, grad + i, gradient, left);
        if (hess) store_up_to(hess + i, hessian, left);
    }
    for (int64_t i = chunk->n; i < round_up(chunk->n, PADDING); i++) values[i] = 0;
}

/* What is not the everyday case shares one copy of the code. */
NOINLINE void binary_chunk_careful(
    ELEMENTS *chunk, const REAL *z, const REAL *t, const REAL *pos_weight, REAL *grad, REAL *hess)
{ binary_chunk(chunk, z, t, pos_weight, grad, hess, chunk->job->task, 1); }

/* In float32 a weight times a finite loss may overflow; that is still a finite double. */
RARE double wide_loss(const fx_job *job, REAL logit, REAL t, REAL pos_weight)
{
    const double z = (double)logit, log_sum = log1p(exp(-fabs(z))), eps = job->label_smoothing;
    const double positive = ((1 - eps) * (double)t + eps / 2) * (double)pos_weight;
    const double negative = (1 - eps) * (1 - (double)t) + eps / 2;
    const double minus_log_p = job->inputs == FX_PROBS ? -log(z) : fmax(-z, 0) + log_sum;
    const double minus_log_q = job->inputs == FX_PROBS ? -log1p(-z) : fmax(z, 0) + log_sum;
    return (positive == 0 ? 0 : positive * minus_log_p) + (negative == 0 ? 0 : negative * minus_log_q);
}

/* The sum of a chunk in which losses are infinite or NaN; what can be represented in double is. */
RARE double sum_of_wide_values(
    const ELEMENTS *chunk, const REAL *z, const REAL *t, const REAL *pos_weight, const double *weight)
{
    const fx_job *job = chunk->job;
    const int may_widen = REAL_BITS == 32 && job->task == FX_BINARY_CROSS_ENTROPY;
    double sum = 0;
    for (int64_t i = 0; i < chunk->n; i++) {
        double value = (double)chunk->value[i];
        if (may_widen && isinf(value) && isfinite(z[i]))
            value = wide_loss(job, z[i], t[i], pos_weight ? pos_weight[i] : 1);
        sum += weight ? weight[i] * value : value;
        if (job->loss.data && weight) chunk->value[i] = (REAL)(weight[i] * value);
    }
    return sum;
}

/* exp(-|z|) in a pass of its own: in one with what follows, processors would see too few of the long chains ahead.
 * Their own prefetching begins anew with each chunk; so every pass fetches what it reads for the next chunk. */
NOINLINE void exponentials_of_chunk(const REAL *z, int64_t n, REAL *e)
{
    for (int64_t i = 0; i < n; i += LANES) {
        prefetch(z + i + ELEMENTS_CHUNK);
        store(e + i, exp_nonpositive(-absolute(load_up_to(z + i, n - i, 0))));
    }
}

static void sigmoid_chunk(const ELEMENTS *chunk, const REAL *z, REAL *out)
{
    const int64_t n = chunk->n;
    if (chunk->job->task == FX_SIGMOID) {
        for (int64_t i = 0; i < n; i += LANES) {
            const VECTOR z_i = load_up_to(z + i, n - i, 0);
            put_gradient(chunk, out + i, sigmoid_of(z_i, exp_nonpositive(-absolute(z_i))), n - i);
        }
        return;
    }
    exponentials_of_chunk(z, n, chunk->e);
    for (int64_t i = 0; i < n; i += LANES)
        put_gradient(chunk, out + i, log_sigmoid_of(load_up_to(z + i, n - i, 0), load(chunk->e + i)), n - i);
}

/* The sample weights of the chunk, with PADDING zeros behind them; from these the scales of the gradients. */
static const double *weights_of(ELEMENTS *chunk)
{
    const fx_job *job = chunk->job;
    const double *weight = doubles_of(chunk, &job->sample_weight, job->sample_weight_type, chunk->weight);
    if (weight != chunk->weight && chunk->n % PADDING)
        weight = (const double *)memcpy(chunk->weight, weight, (size_t)chunk->n * sizeof(double));
    for (int64_t i = chunk->n; i < round_up(chunk->n, PADDING); i++) chunk->weight[i] = 0;
    scales_of(chunk->scale, weight, chunk->n, job->divisor);
    return weight;
}

/* The same for a chunk whose targets have been read as REAL, which may have rounded doubles to what is allowed. */
static int has_bad_target(const ELEMENTS *chunk, const REAL *t)
{
    int32_t skip[ELEMENTS_CHUNK];
    const int may_be_rounded = REAL_BITS == 32 && chunk->job->target_type == FX_FLOAT64;
    return (may_be_rounded || reals_may_be_outside(t, chunk->n, 1)) && survey_chunk(chunk, skip);
}

/* Returns the sum of the losses of the chunk. */
static double loss_chunk(ELEMENTS *chunk, int first_of_block, const REAL *z, REAL *grad, REAL *hess)
{
    const fx_job *job = chunk->job;
    const REAL *t = targets_of(chunk, chunk->t), *pos_weight = NULL;
    const double *weight = job->sample_weight.data ? weights_of(chunk) : NULL;
    double sum = NAN;
    if (job->unsurveyed && has_bad_target(chunk, t)) return sum;
    if (job->pos_weight.data) pos_weight = pos_weight_of(chunk, first_of_block);
    /* Infinite logits and losses are rare: most chunks do without a look at every one of them. */
    if (job->inputs == FX_LOGITS) {
        exponentials_of_chunk(z, chunk->n, chunk->e);
        if (job->task == FX_BINARY_FOCAL) binary_chunk(chunk, z, t, NULL, grad, hess, FX_BINARY_FOCAL, 0);
        else binary_chunk(chunk, z, t, pos_weight, grad, hess, FX_BINARY_CROSS_ENTROPY, 0);
        sum = sum_of_values(chunk->value, weight, chunk->n);
    }
    if (UNLIKELY(!isfinite(sum))) {
        binary_chunk_careful(chunk, z, t, pos_weight, grad, hess);
        sum = sum_of_values(chunk->value, weight, chunk->n);
    }
    if (UNLIKELY(!isfinite(sum))) sum = sum_of_wide_values(chunk, z, t, pos_weight, weight);
    else if (job->loss.data && weight)
        for (int64_t i = 0; i < chunk->n; i++) chunk->value[i] = (REAL)(weight[i] * (double)chunk->value[i]);
    if (job->loss.data) scatter(chunk, &job->loss, chunk->value);
    return sum;
}

static double compute_chunk(ELEMENTS *chunk, int first_of_block)
{
    const fx_job *job = chunk->job;
    const REAL *z = input_of(chunk, &job->logits, job->real_type, chunk->z);
    REAL *grad = output_of(chunk, &job->grad, chunk->grad), *hess = output_of(chunk, &job->hess, chunk->hess);
    double sum = 0;
    chunk->streams = job->stream && grad != chunk->grad;
    if (job->task == FX_SIGMOID || job->task == FX_LOG_SIGMOID) sigmoid_chunk(chunk, z, grad);
    else {
        /* Logits are looked at twice where one of them is not finite. */
        if (grad == z) z = (const REAL *)memcpy(chunk->z, z, (size_t)chunk->n * sizeof(REAL));
        sum = loss_chunk(chunk, first_of_block, z, grad, hess);
    }
    if (grad && grad == chunk->grad) scatter(chunk, &job->grad, grad);
    if (hess && hess == chunk->hess) scatter(chunk, &job->hess, hess);
    return sum;
}

/* The elements of a block. */
INLINE ELEMENTS elements_of(const fx_job *job, int64_t number)
{
    ELEMENTS elements;
    elements.job = job;
    elements.outer = number / job->n_blocks_per_outer;
    elements.first = number % job->n_blocks_per_outer * job->rows_per_block;
    elements.n = at_most(job->n_inner * job->n_classes - elements.first, job->rows_per_block);
    return elements;
}

static int64_t values_past_a_line(const ELEMENTS *block)
{
    const RUN run = run_of(block->job, &block->job->grad, block->outer, block->first, block->n);
    const REAL *place = (const REAL *)block->job->grad.data + run.offset;
    return run.stride == 1 ? (int64_t)((uintptr_t)place % (VECTOR_BYTES + !VECTOR_BYTES) / sizeof(REAL)) : 0;
}

static double compute_elements(const fx_job *job, int64_t number, REAL *memory)
{
    const ELEMENTS block = elements_of(job, number);
    const int64_t step = whole_rows(job->n_classes, ELEMENTS_CHUNK), end = block.first + block.n;
    ELEMENTS chunk = block;
    double sum = 0;
    elements_scratch(memory, &chunk);
    chunk.ignored = ignored_target(job);
    chunk.smoothed = job->label_smoothing > 0;
    /* Streamed, the first chunk ends where the gradient begins a line. */
    const int64_t odd = job->stream && job->n_classes > ELEMENTS_CHUNK ? values_past_a_line(&chunk) : 0;
    for (; chunk.first < end; chunk.first += chunk.n) {
        const int is_first = chunk.first == block.first;
        chunk.n = at_most(end - chunk.first, is_first ? step - odd : step);
        sum += compute_chunk(&chunk, is_first);
    }
    return sum;
}

/* The sum of the weights of the elements that count; meanwhile all targets and weights are looked at. */
static double survey_elements(const fx_job *job, int64_t number, int *flaws)
{
    const ELEMENTS block = elements_of(job, number);
    ELEMENTS chunk = block;
    double weight[ELEMENTS_CHUNK], sum = 0;
    int32_t skip[ELEMENTS_CHUNK];
    for (; chunk.first < block.first + block.n; chunk.first += ELEMENTS_CHUNK) {
        chunk.n = at_most(block.first + block.n - chunk.first, ELEMENTS_CHUNK);
        if (survey_chunk(&chunk, skip)) *flaws |= FX_BAD_TARGET;
        if (job->sample_weight.data) {
            int bad = 0;
            const double *weights = doubles_of(&chunk, &job->sample_weight, job->sample_weight_type, weight);
            if (doubles_may_be_outside(weights, chunk.n, DBL_MAX))
                for (int64_t i = 0; i < chunk.n; i++) bad |= !((weights[i] >= 0) & (weights[i] < INFINITY));
            if (bad) *flaws |= FX_BAD_WEIGHT;
            if (job->has_ignore_index) {
                for (int64_t i = 0; i < chunk.n; i++) weight[i] = skip[i] ? 0 : weights[i];
                weights = weight;
            }
            sum += sum_of_rows(weights, chunk.n);
        } else {
            int32_t ignored = 0;
            if (job->has_ignore_index)
                for (int64_t i = 0; i < chunk.n; i++) ignored += skip[i];
            sum += (double)(chunk.n - ignored);
        }
    }
    return sum;
}

#endif
