/* The elementwise regime: binary losses and sigmoids. Lanes are elements, and a block is a run of [inner][class] seen as one
 * axis, whatever the shape.
 *
 * Chunks of a block are brought into the first-level cache as REAL where they do not lie there already (other types,
 * strides, broadcast weights), computed, and taken to their places. Chunks of short rows are whole rows, so that weights per
 * label repeat from chunk to chunk and are fetched once.
 */
#ifndef FASTXENT_ELEMENTS_H
#define FASTXENT_ELEMENTS_H

#include "binary.h"
#include "tile.h"

enum {
    ELEMENTS_CHUNK = 4096 / sizeof(REAL),
    ELEMENTS_BLOCK = 32768
};

INLINE int is_elementwise(const fx_job *job) { return job->task >= FX_BINARY_CROSS_ENTROPY; }

typedef struct {
    const fx_job *job;
    BLOCK rows;                                           /* label unused; one "row" an element of the chunk */
    int64_t outer, first, n;                              /* the chunk */
    int streams;                                          /* its gradient goes from the registers past the caches */
    REAL *z, *t, *pos_weight, *grad, *hess, *out;         /* [ELEMENTS_CHUNK] */
} ELEMENTS;

static size_t elements_scratch(REAL *scratch, ELEMENTS *elements)
{
    REAL **reals[] = {&elements->z, &elements->t, &elements->pos_weight, &elements->grad, &elements->hess, &elements->out,
                      &elements->rows.scale};
    double **doubles[] = {&elements->rows.weight, &elements->rows.value};
    REAL *next = scratch;
    for (int i = 0; i < COUNT(reals); i++) *reals[i] = next, next += ELEMENTS_CHUNK + 16;
    for (int i = 0; i < COUNT(doubles); i++)
        *doubles[i] = (double *)next, next += (ELEMENTS_CHUNK + 16) * (int64_t)(sizeof(double) / sizeof(REAL));
    return (size_t)(next - scratch) * sizeof(REAL);
}

/* Elements of a chunk or block: whole rows where they are short. */
static int64_t whole_rows(int64_t n_classes, int64_t limit) { return n_classes <= limit ? limit / n_classes * n_classes : limit; }

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
#define FOR_RUNS(run, array, outer, begin, count)                                                                      \
    for (int64_t done = 0; done < (count);)                                                                            \
        for (RUN run = run_of(job, array, outer, (begin) + done, (count)-done); run.n; done += run.n, run.n = 0)

static void gather(const fx_job *job, const fx_array *array, int type, int64_t outer, int64_t first, int64_t n, REAL *out)
{
    FOR_RUNS(run, array, outer, first, n) read_reals(array, type, run.offset, run.stride, run.n, out + done);
}

RARE void read_half_doubles(const fx_array *array, int type, RUN run, double *out)
{
    for (int64_t i = 0; i < run.n; i++) out[i] = number_at(array, type, run.offset + i * run.stride);
}

static void gather_doubles(const fx_job *job, const fx_array *array, int type, int64_t outer, int64_t first, int64_t n,
                           double *out)
{
    FOR_RUNS(run, array, outer, first, n)
    {
        if (is_half(type)) read_half_doubles(array, type, run, out + done);
        else fx_read_doubles(array->data, type, run.offset, run.stride, run.n, out + done);
    }
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
    return array->data && type == REAL_TYPE && run.stride == 1 && run.n == chunk->n ? (REAL *)array->data + run.offset : NULL;
}

INLINE int is_aligned(const REAL *p) { return (uintptr_t)p % (VECTOR_BYTES + !VECTOR_BYTES) == 0; }

INLINE const REAL *input_of(const ELEMENTS *chunk, const fx_array *array, int type, REAL *buffer)
{
    const REAL *place = place_of(chunk, array, type);
    if (place) return place;
    gather(chunk->job, array, type, chunk->outer, chunk->first, chunk->n, buffer);
    return buffer;
}

INLINE int is_weighted(const fx_job *job) { return job->sample_weight.data || job->has_ignore_index; }

/* In a stream that is not aligned, or whose values are looked at again (weights), and where the chunk has gaps, an output is
 * computed in its buffer. */
INLINE REAL *output_of(const ELEMENTS *chunk, const fx_array *array, REAL *buffer)
{
    REAL *place = place_of(chunk, array, chunk->job->real_type);
    if (!array->data) return NULL;
    const int goes_at_once = array == &chunk->job->grad && !is_weighted(chunk->job) && is_aligned(place);
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
    if (array->inner != 0 || job->n_classes > ELEMENTS_CHUNK) return input_of(chunk, array, REAL_TYPE, chunk->pos_weight);
    if (first_of_block) gather(job, array, REAL_TYPE, chunk->outer, chunk->first, chunk->n, chunk->pos_weight);
    return chunk->pos_weight;
}

/* 0, 1, or 2 for all else: 64-bit labels, which are what integers are by default, without the conversion of 64-bit
 * integers, which processors before AVX-512 do one by one. */
NOINLINE void read_binary_labels(const uint64_t *RESTRICT label, int64_t n, REAL *RESTRICT out)
{
    for (int64_t i = 0; i < n; i++) {
        const uint32_t low = (uint32_t)label[i], high = (uint32_t)(label[i] >> 32);
        out[i] = (REAL)(int32_t)((high | low >> 1) != 0 ? 2 : low);
    }
}

static const REAL *targets_of(const ELEMENTS *chunk, REAL *buffer)
{
    const fx_job *job = chunk->job;
    const RUN run = run_of(job, &job->target, chunk->outer, chunk->first, chunk->n);
    const int is_long = job->target_type == FX_INT64 || job->target_type == FX_UINT64;
    if (!is_long || run.stride != 1 || run.n != chunk->n) return input_of(chunk, &job->target, job->target_type, buffer);
    read_binary_labels((const uint64_t *)job->target.data + run.offset, chunk->n, buffer);
    return buffer;
}

/* Which of n targets are ignored (`skip`), and whether all others are in [0, 1]: a loop per type that they are compared in. */
#define SURVEY_TARGETS(name, type, integer)                                                                            \
    static int name(const type *RESTRICT t, int64_t n, int has_ignored, type ignored, int32_t *RESTRICT skip)          \
    {                                                                                                                  \
        integer bad = 0;                                                                                               \
        if (has_ignored)                                                                                               \
            for (int64_t i = 0; i < n; i++) {                                                                          \
                const int is_ignored = t[i] == ignored;                                                                \
                bad |= !(is_ignored | ((t[i] >= 0) & (t[i] <= 1)));                                                    \
                skip[i] = is_ignored;                                                                                  \
            }                                                                                                          \
        else                                                                                                           \
            for (int64_t i = 0; i < n; i++) bad |= !((t[i] >= 0) & (t[i] <= 1));                                       \
        return bad != 0;                                                                                               \
    }
SURVEY_TARGETS(survey_reals, REAL, INTEGER)
SURVEY_TARGETS(survey_int64, int64_t, int64_t)
#if REAL_BITS == 32
SURVEY_TARGETS(survey_doubles, double, int64_t)
#endif

/* The targets of a chunk in a type in which no two of them become equal, and none becomes 0 or 1: integers where they are
 * compared with ignore_index, doubles as they are. */
static int survey_chunk(const ELEMENTS *chunk, int32_t *skip)
{
    const fx_job *job = chunk->job;
    const fx_array *target = &job->target;
    const int has_ignored = job->has_ignore_index;
    union {
        int64_t integers[ELEMENTS_CHUNK];
        double doubles[ELEMENTS_CHUNK];
        REAL reals[ELEMENTS_CHUNK];
    } t;
    if (has_labels(job) && has_ignored) {
        FOR_RUNS(run, target, chunk->outer, chunk->first, chunk->n)
            fx_read_labels(target->data, job->target_type, run.offset, run.stride, run.n, t.integers + done);
        return survey_int64(t.integers, chunk->n, 1, job->ignore_index, skip);
    }
#if REAL_BITS == 32
    if (job->target_type == FX_FLOAT64) {
        gather_doubles(job, target, FX_FLOAT64, chunk->outer, chunk->first, chunk->n, t.doubles);
        return survey_doubles(t.doubles, chunk->n, has_ignored, (double)job->ignore_index, skip);
    }
#endif
    return survey_reals(targets_of(chunk, t.reals), chunk->n, has_ignored, (REAL)job->ignore_index, skip);
}

/* The weights of the elements, 0 where they are ignored. */
static void prepare_elements(ELEMENTS *chunk)
{
    const fx_job *job = chunk->job;
    double *weight = chunk->rows.weight;
    int32_t skip[ELEMENTS_CHUNK];
    if (job->sample_weight.data)
        gather_doubles(job, &job->sample_weight, job->sample_weight_type, chunk->outer, chunk->first, chunk->n, weight);
    else
        for (int64_t i = 0; i < chunk->n; i++) weight[i] = 1;
    if (job->has_ignore_index) {
        survey_chunk(chunk, skip);
        for (int64_t i = 0; i < chunk->n; i++) weight[i] = skip[i] ? 0 : weight[i];
    }
    scales_of(chunk->rows.scale, weight, chunk->n, job->divisor);
}

static void finish_elements(ELEMENTS *chunk, REAL *grad, REAL *hess)
{
    double *value = chunk->rows.value;
    const double *weight = chunk->rows.weight;
    for (int64_t i = 0; i < chunk->n; i++) value[i] = weight[i] == 0 ? 0 : value[i] * weight[i];
    if (grad)
        for (int64_t i = 0; i < chunk->n; i++) grad[i] = weight[i] == 0 ? 0 : grad[i];
    if (hess)
        for (int64_t i = 0; i < chunk->n; i++) hess[i] = weight[i] == 0 ? 0 : hess[i];
}

/* In float32 a weight times a finite loss may overflow; that is still a finite double. */
#if REAL_BITS == 32
RARE void widen_elements(double *value, const REAL *z, MASSES masses, int64_t n, int inputs)
{
    REAL positive[LANES], negative[LANES];
    store(positive, masses.positive), store(negative, masses.negative);
    for (int64_t i = 0; i < n && i < LANES; i++) {
        const double x = (double)z[i], log_sum = log1p(exp(-fabs(x)));
        if (!isinf(value[i]) || !isfinite(x)) continue;
        const double minus_log_p = inputs == FX_PROBS ? -log(x) : fmax(-x, 0) + log_sum;
        const double minus_log_q = inputs == FX_PROBS ? -log1p(-x) : fmax(x, 0) + log_sum;
        value[i] = (positive[i] == 0 ? 0 : (double)positive[i] * minus_log_p)
                 + (negative[i] == 0 ? 0 : (double)negative[i] * minus_log_q);
    }
}
#endif

enum { VALUE, GRADIENT, HESSIAN };

/* LANES interleaved sums of losses, which both ways below add to alike. */
typedef struct {
    double lane[LANES];
} LANE_SUMS;

INLINE void add_values(LANE_SUMS *sums, VECTOR value)
{
#if REAL_BITS == 64
    store(sums->lane, load(sums->lane) + value);
#elif VECTOR_BYTES == 64
    _mm512_storeu_pd(sums->lane, _mm512_loadu_pd(sums->lane) + _mm512_cvtps_pd(_mm512_castps512_ps256(value)));
    _mm512_storeu_pd(sums->lane + 8, _mm512_loadu_pd(sums->lane + 8) + _mm512_cvtps_pd(_mm512_extractf32x8_ps(value, 1)));
#elif LANES > 1
    for (int lane = 0; lane < LANES; lane++) sums->lane[lane] += (double)value[lane];
#else
    sums->lane[0] += (double)value;
#endif
}

/* `careful`: logits may be infinite or NaN, losses beyond float32 and elements without a weight of their own (pos_weight or
 * alpha 0, which are not looked at); otherwise all is finite, or the sum of the losses, which is returned, is not. Then
 * no losses are kept. task, inputs, derivatives and careful are constants at most calls, so that each gets its own loop. */
INLINE double binary_chunk(ELEMENTS *chunk, const REAL *z, const REAL *t, const REAL *pos_weight, REAL *grad, REAL *hess,
                           const int task, const int inputs, const int derivatives, const int careful)
{
    const fx_job *job = chunk->job;
    const SMOOTHING smoothing = {broadcast((REAL)(1 - job->label_smoothing)), broadcast((REAL)(job->label_smoothing / 2))};
    const FOCUS focus = focus_of(job);
    const VECTOR alpha = broadcast(job->alpha < 0 ? 1 : (REAL)job->alpha);
    const VECTOR one_minus_alpha = broadcast(job->alpha < 0 ? 1 : (REAL)(1 - job->alpha));
    LANE_SUMS sums = {{0}};
    for (int64_t i = 0; i < chunk->n; i += LANES) {
        const int64_t left = chunk->n - i;
        const VECTOR z_i = load_up_to(z + i, left, 0), scale = load(chunk->rows.scale + i);
        const BINARY x = inputs == FX_PROBS ? binary_of_probability(z_i) : binary_of(z_i);
        MASSES masses = masses_of(load_up_to(t + i, left, 0), smoothing);
        VECTOR value, gradient, hessian;
        MASK counts;
        if (task == FX_BINARY_FOCAL) {
            const BINARY_FOCAL focal = binary_focal_of(&x, masses, focus, alpha, one_minus_alpha, !careful);
            counts = less(broadcast(0), focal.alpha);
            value = careful ? binary_focal_value(&focal) : focal.factor * focal.value;
            gradient = scale * binary_focal_gradient(&focal);
            hessian = scale * binary_focal_hessian(&focal, &x);
        } else {
            if (pos_weight) masses.positive *= load_up_to(pos_weight + i, left, 0);
            counts = less(broadcast(0), masses.positive + masses.negative);
            value = careful ? binary_value(&x, masses) : binary_value_of_finite(&x, masses);
            gradient = inputs == FX_PROBS ? probability_gradient(&x, masses, scale) : scale * binary_gradient(&x, masses);
            hessian = inputs == FX_PROBS ? probability_hessian(&x, masses, scale) : scale * binary_hessian(&x, masses);
        }
        if (careful) {
            value = keep(counts, value);
            gradient = keep(counts, gradient);
            hessian = keep(counts, hessian);
        }
        if (derivatives >= GRADIENT) put_gradient(chunk, grad + i, gradient, left);
        if (derivatives >= HESSIAN) store_up_to(hess + i, hessian, left);
        if (!careful && left >= LANES) {
            add_values(&sums, value);
            continue;
        }
        put_values(&chunk->rows, value, i);
#if REAL_BITS == 32
        if (careful && task != FX_BINARY_FOCAL && UNLIKELY(has_infinite(value)))
            widen_elements(chunk->rows.value + i, z + i, masses, left, inputs);
#endif
        if (!careful)
            for (int lane = 0; lane < left; lane++) sums.lane[lane] += chunk->rows.value[i + lane];
    }
    double sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += sums.lane[lane];
    return sum;
}

/* The sum of losses that were kept, in the order of the other way. */
static double sum_of_values(const double *value, int64_t n)
{
    LANE_SUMS sums = {{0}};
    double sum = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int lane = 0; lane < LANES; lane++) sums.lane[lane] += value[i + lane];
    for (int lane = 0; i + lane < n; lane++) sums.lane[lane] += value[i + lane];
    for (int lane = 0; lane < LANES; lane++) sum += sums.lane[lane];
    return sum;
}

/* What is not the everyday case shares one copy of the code. */
NOINLINE double binary_chunk_rare(ELEMENTS *chunk, const REAL *z, const REAL *t, const REAL *pos_weight, REAL *grad,
                                  REAL *hess, int careful)
{
    return binary_chunk(chunk, z, t, pos_weight, grad, hess, chunk->job->task, chunk->job->inputs,
                        hess ? HESSIAN : grad ? GRADIENT : VALUE, careful);
}

INLINE double binary_chunk_of_finite(ELEMENTS *chunk, const REAL *z, const REAL *t, const REAL *pos_weight, REAL *grad,
                                     REAL *hess)
{
    const int focal = chunk->job->task == FX_BINARY_FOCAL;
    if (hess || (focal && !grad)) return binary_chunk_rare(chunk, z, t, pos_weight, grad, hess, 0);
    if (focal) return binary_chunk(chunk, z, t, NULL, grad, NULL, FX_BINARY_FOCAL, FX_LOGITS, GRADIENT, 0);
    if (grad) return binary_chunk(chunk, z, t, pos_weight, grad, NULL, FX_BINARY_CROSS_ENTROPY, FX_LOGITS, GRADIENT, 0);
    return binary_chunk(chunk, z, t, pos_weight, NULL, NULL, FX_BINARY_CROSS_ENTROPY, FX_LOGITS, VALUE, 0);
}

static void sigmoid_chunk(const ELEMENTS *chunk, const REAL *z, REAL *out)
{
    const int is_log = chunk->job->task == FX_LOG_SIGMOID;
    for (int64_t i = 0; i < chunk->n; i += LANES) {
        const BINARY x = binary_of(load_up_to(z + i, chunk->n - i, 0));
        put_gradient(chunk, out + i, is_log ? -x.softplus_minus : x.p, chunk->n - i);
    }
}

/* Returns the sum of the losses of the chunk. */
static double compute_chunk(ELEMENTS *chunk, int first_of_block)
{
    const fx_job *job = chunk->job;
    const int weighted = is_weighted(job);
    const REAL *z = input_of(chunk, &job->logits, job->real_type, chunk->z), *pos_weight = NULL;
    REAL *grad = output_of(chunk, &job->grad, chunk->grad), *hess = output_of(chunk, &job->hess, chunk->hess);
    double sum = 0;
    chunk->streams = job->stream && grad != chunk->grad;
    if (job->task == FX_SIGMOID || job->task == FX_LOG_SIGMOID) sigmoid_chunk(chunk, z, grad);
    else {
        const REAL *t = targets_of(chunk, chunk->t);
        if (weighted) prepare_elements(chunk);
        else if (first_of_block)
            for (int64_t i = 0; i < ELEMENTS_CHUNK; i++) chunk->rows.scale[i] = (REAL)(1 / job->divisor);
        if (job->pos_weight.data) pos_weight = pos_weight_of(chunk, first_of_block);
        /* Infinite logits and losses are rare: most chunks do without a look at every one of them. */
        const int is_finite = !weighted && !job->loss.data && job->inputs == FX_LOGITS;
        if (is_finite && grad == z) z = (const REAL *)memcpy(chunk->z, z, (size_t)chunk->n * sizeof(REAL));
        if (is_finite) sum = binary_chunk_of_finite(chunk, z, t, pos_weight, grad, hess);
        if (!is_finite || UNLIKELY(!isfinite(sum))) {
            binary_chunk_rare(chunk, z, t, pos_weight, grad, hess, 1);
            if (weighted) finish_elements(chunk, grad, hess);
            sum = sum_of_values(chunk->rows.value, chunk->n);
        }
        if (job->loss.data) {
            for (int64_t i = 0; i < chunk->n; i++) chunk->out[i] = (REAL)chunk->rows.value[i];
            scatter(chunk, &job->loss, chunk->out);
        }
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
            gather_doubles(job, &job->sample_weight, job->sample_weight_type, block.outer, chunk.first, chunk.n, weight);
            for (int64_t i = 0; i < chunk.n; i++) bad |= !((weight[i] >= 0) & (weight[i] < INFINITY));
            if (bad) *flaws |= FX_BAD_WEIGHT;
            if (job->has_ignore_index)
                for (int64_t i = 0; i < chunk.n; i++) weight[i] = skip[i] ? 0 : weight[i];
            sum += sum_of_rows(weight, chunk.n);
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
