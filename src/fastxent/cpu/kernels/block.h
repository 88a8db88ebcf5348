/* One block of rows: what every regime needs before its arithmetic (labels, weights) and after (weighted losses, rows
 * of weight 0), and the survey that checks targets and weights before anything is written.
 *
 * Design
 * a) A label is clamped by an unsigned comparison although the survey has seen it: another thread may change it in
 *    between, and a kernel must not read or write outside its arrays whatever it is given. Such a row becomes NaN.
 * b) Rows of weight 0 (ignored, weight 0, no target mass) go through the arithmetic like all others and are set to 0
 *    afterwards: that costs nothing where there are none, and their NaN cannot spread.
 * c) Losses are kept per row in double and summed in double in the order of the rows.
 */
#ifndef FASTXENT_BLOCK_H
#define FASTXENT_BLOCK_H

#include "kernels.h"
#include "vector.h"

typedef struct {
    const fx_job *job;
    int64_t outer, first, rows; /* rows first .. first + rows - 1 of the inner axis */
    int64_t *label;
    double *weight, *value;     /* value: the loss of each row before its weight */
    REAL *scale;                /* weight times the scale of the gradient */
    int all_weigh_one;          /* then `weight` is not filled in */
} BLOCK;

INLINE REAL *row_of(const BLOCK *block, const fx_array *array, int64_t row)
{
    return (REAL *)array->data + block->outer * array->outer + (block->first + row) * array->inner;
}

INLINE int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

/* Room in the arrays of a block: vectors are loaded and stored at any row, so LANES - 1 past the last one. */
INLINE int64_t padded_rows(int64_t rows) { return round_up(rows + LANES - 1, 16); }

INLINE int is_soft(const fx_job *job) { return job->target_type >= FX_FLOAT32 || job->label_smoothing > 0; }
INLINE int has_labels(const fx_job *job) { return job->target_type < FX_FLOAT32; }

INLINE BLOCK block_of(const fx_job *job, int64_t number)
{
    BLOCK block = {job, number / job->n_blocks_per_outer, 0, 0, NULL, NULL, NULL, NULL, 0};
    block.first = number % job->n_blocks_per_outer * job->rows_per_block;
    block.rows = job->n_inner - block.first < job->rows_per_block ? job->n_inner - block.first : job->rows_per_block;
    return block;
}

/* Labels of any integer type as int64, a loop per type; an unsigned one beyond becomes the largest, which is no class
 * and no ignore_index. */
#define AS_IS(value) ((int64_t)(value))
#define AT_MOST_INT64(value) ((value) > INT64_MAX ? INT64_MAX : (int64_t)(value))
#define READ_LABELS(type, as_int64)                                                                             \
    {                                                                                                 \
        const type *p = (const type *)job->target.data + offset;                                      \
        if (stride == 1)                                                                              \
            for (int64_t i = 0; i < rows; i++) label[i] = as_int64(p[i]);                             \
        else                                                                                          \
            for (int64_t i = 0; i < rows; i++) label[i] = as_int64(p[i * stride]);                    \
    }                                                                                                 \
    break

static void read_labels(const BLOCK *block, int64_t first, int64_t rows, int64_t *RESTRICT label)
{
    const fx_job *job = block->job;
    const ptrdiff_t stride = job->target.inner;
    const ptrdiff_t offset = block->outer * job->target.outer + (block->first + first) * stride;
    switch (job->target_type) {
    case FX_INT8: READ_LABELS(int8_t, AS_IS);
    case FX_INT16: READ_LABELS(int16_t, AS_IS);
    case FX_INT32: READ_LABELS(int32_t, AS_IS);
    case FX_INT64: READ_LABELS(int64_t, AS_IS);
    case FX_UINT8: READ_LABELS(uint8_t, AS_IS);
    case FX_UINT16: READ_LABELS(uint16_t, AS_IS);
    case FX_UINT32: READ_LABELS(uint32_t, AS_IS);
    default: READ_LABELS(uint64_t, AT_MOST_INT64);
    }
}

/* Floating values of either type as REAL: `n` of them from `offset` on. */
INLINE void read_reals(const fx_array *array, int type, ptrdiff_t offset, ptrdiff_t stride, int64_t n, REAL *RESTRICT out)
{
    if (type == FX_FLOAT32) {
        const float *p = (const float *)array->data + offset;
        if (stride == 1) for (int64_t i = 0; i < n; i++) out[i] = (REAL)p[i];
        else for (int64_t i = 0; i < n; i++) out[i] = (REAL)p[i * stride];
    } else {
        const double *p = (const double *)array->data + offset;
        if (stride == 1) for (int64_t i = 0; i < n; i++) out[i] = (REAL)p[i];
        else for (int64_t i = 0; i < n; i++) out[i] = (REAL)p[i * stride];
    }
}

INLINE double sample_weight(const BLOCK *block, int64_t row)
{
    const fx_array *array = &block->job->sample_weight;
    if (!array->data) return 1;
    const ptrdiff_t offset = block->outer * array->outer + (block->first + row) * array->inner;
    return block->job->sample_weight_type == FX_FLOAT32 ? (double)((const float *)array->data)[offset]
                                                        : ((const double *)array->data)[offset];
}

INLINE REAL class_weight(const fx_job *job, int64_t c) { return job->class_weight ? ((const REAL *)job->class_weight)[c] : 1; }

/* Probabilities whose whole mass lies on the ignored class: the one-hot form of an ignored label. */
static int is_ignored_one_hot(const BLOCK *block, int64_t row)
{
    const fx_job *job = block->job;
    if (!job->has_ignore_index || (uint64_t)job->ignore_index >= (uint64_t)job->n_classes) return 0;
    const ptrdiff_t offset = block->outer * job->target.outer + (block->first + row) * job->target.inner;
    int only = 1, some = 0;
    for (int64_t c = 0; c < job->n_classes && (only || !some); c++) {
        const ptrdiff_t at = offset + c * job->target.klass;
        const double t = job->target_type == FX_FLOAT32 ? (double)((const float *)job->target.data)[at]
                                                        : ((const double *)job->target.data)[at];
        if (c == job->ignore_index) some = t > 0;
        else only &= t == 0;
        if (!only) return 0;
    }
    return some;
}

/* Whether a row counts although its target has no mass: smoothing gives it some, unless all of that is masked. What
 * counts is decided without a look at the logits. */
static int counts_without_mass(const fx_job *job)
{
    if (!(job->label_smoothing > 0)) return 0;
    for (int64_t c = 0; c < job->n_classes; c++)
        if (class_weight(job, c) > 0) return 1;
    return 0;
}

/* Clamp the labels and weigh the rows one by one: ignored rows, labels out of range, weights. */
static void prepare_weights(BLOCK *block)
{
    const fx_job *job = block->job;
    const int weighted = job->class_weight && !is_soft(job);
    for (int64_t i = 0; i < block->rows; i++) {
        const int64_t label = block->label[i];
        double weight = 1;
        if (!has_labels(job)) weight = is_ignored_one_hot(block, i) ? 0 : 1;
        else if (job->has_ignore_index && label == job->ignore_index) weight = 0;
        else if (UNLIKELY((uint64_t)label >= (uint64_t)job->n_classes)) weight = NAN;
        else if (weighted) weight = (double)class_weight(job, label);
        if (UNLIKELY((uint64_t)label >= (uint64_t)job->n_classes)) block->label[i] = 0;
        if (job->sample_weight.data && weight != 0) weight *= sample_weight(block, i);
        block->weight[i] = weight;
    }
    for (int64_t i = 0; i < block->rows; i++) block->scale[i] = (REAL)(block->weight[i] / job->divisor);
}

static void prepare(BLOCK *block)
{
    const fx_job *job = block->job;
    const int64_t rows = block->rows, padded = padded_rows(rows);
    int64_t out_of_range = 0;
    if (has_labels(job)) {
        read_labels(block, 0, rows, block->label);
        for (int64_t i = 0; i < rows; i++) out_of_range |= (uint64_t)block->label[i] >= (uint64_t)job->n_classes;
    } else
        for (int64_t i = 0; i < rows; i++) block->label[i] = 0;
    for (int64_t i = rows; i < padded; i++) block->label[i] = 0, block->scale[i] = 0;
    block->all_weigh_one = !job->class_weight && !job->sample_weight.data && !job->has_ignore_index && !out_of_range
                           && !is_soft(job);
    if (block->all_weigh_one)
        for (int64_t i = 0; i < rows; i++) block->scale[i] = (REAL)(1 / job->divisor);
    else
        prepare_weights(block);
}

static void zero_row(const BLOCK *block, const fx_array *array, int64_t row)
{
    if (!array->data) return;
    REAL *out = row_of(block, array, row);
    for (int64_t c = 0; c < block->job->n_classes; c++) out[c * array->klass] = 0;
}

/* The losses in the order of the rows, in 8 interleaved sums so that one addition need not wait for the last. */
static double sum_of_losses(const double *value, int64_t rows)
{
    double sums[8] = {0};
    int64_t i = 0;
    for (; i + 8 <= rows; i += 8)
        for (int k = 0; k < 8; k++) sums[k] += value[i + k];
    for (int k = 0; i < rows; i++, k++) sums[k] += value[i];
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

/* Weight the losses, hand them out, add them up, and clear the rows that do not count. */
static double finish(BLOCK *block)
{
    const fx_job *job = block->job;
    const int64_t rows = block->rows;
    if (!block->all_weigh_one)
        for (int64_t i = 0; i < rows; i++) {
            if (block->weight[i] == 0) {
                block->value[i] = 0;
                zero_row(block, &job->grad, i);
                zero_row(block, &job->hess, i);
            } else
                block->value[i] *= block->weight[i];
        }
    if (job->loss.data)
        for (int64_t i = 0; i < rows; i++) *row_of(block, &job->loss, i) = (REAL)block->value[i];
    return sum_of_losses(block->value, rows);
}

/* ---- survey ---- */

static double survey_labels(const BLOCK *block, int *flaws)
{
    const fx_job *job = block->job;
    const uint64_t n_classes = (uint64_t)job->n_classes;
    enum { STEP = 256 };
    int64_t label[STEP];
    double weight_sum = 0;
    for (int64_t first = 0; first < block->rows; first += STEP) {
        const int64_t rows = block->rows - first < STEP ? block->rows - first : STEP;
        read_labels(block, first, rows, label);
        int64_t bad = 0, ignored = 0;
        if (job->has_ignore_index)
            for (int64_t i = 0; i < rows; i++) {
                const int64_t skip = label[i] == job->ignore_index;
                ignored += skip;
                bad |= !skip & ((uint64_t)label[i] >= n_classes);
            }
        else
            for (int64_t i = 0; i < rows; i++) bad |= (uint64_t)label[i] >= n_classes;
        if (bad) {
            *flaws |= FX_BAD_TARGET;
            return 0;
        }
        if (!job->class_weight && !job->sample_weight.data) weight_sum += (double)(rows - ignored);
        else
            for (int64_t i = 0; i < rows; i++) {
                if (job->has_ignore_index && label[i] == job->ignore_index) continue;
                weight_sum += (double)class_weight(job, label[i]) * sample_weight(block, first + i);
            }
    }
    return weight_sum;
}

/* Row sums of w t, and whether every t is finite as REAL and >= 0; runs along the axis with the smaller stride. */
#define SURVEY_PROBABILITIES(type)                                                                    \
    static int survey_##type(const BLOCK *block, double *RESTRICT mass)                               \
    {                                                                                                 \
        const fx_job *job = block->job;                                                               \
        const ptrdiff_t row_stride = job->target.inner, class_stride = job->target.klass;             \
        const type *p = (const type *)job->target.data + block->outer * job->target.outer             \
                        + block->first * row_stride;                                                  \
        int good = 1;                                                                                 \
        for (int64_t i = 0; i < block->rows; i++) mass[i] = 0;                                        \
        if (row_stride == 1 && class_stride != 1)                                                     \
            for (int64_t c = 0; c < job->n_classes; c++)                                              \
                for (int64_t i = 0; i < block->rows; i++) {                                           \
                    const double t = (double)(REAL)p[i + c * class_stride];                                \
                    good &= (t >= 0) & (t < INFINITY);                                                \
                    mass[i] += (double)class_weight(job, c) * t;                                      \
                }                                                                                     \
        else                                                                                          \
            for (int64_t i = 0; i < block->rows; i++) {                                               \
                double sums[4] = {0, 0, 0, 0};                                                        \
                for (int64_t c = 0; c < job->n_classes; c++) {                                        \
                    const double t = (double)(REAL)p[i * row_stride + c * class_stride];                   \
                    good &= (t >= 0) & (t < INFINITY);                                                \
                    sums[c % 4] += (double)class_weight(job, c) * t;                                  \
                }                                                                                     \
                mass[i] = (sums[0] + sums[1]) + (sums[2] + sums[3]);                                  \
            }                                                                                         \
        return good;                                                                                  \
    }
SURVEY_PROBABILITIES(float)
SURVEY_PROBABILITIES(double)

enum { MAXIMAL_ROWS_PER_BLOCK = 1024 };

static double survey_probabilities(const BLOCK *block, int *flaws)
{
    const fx_job *job = block->job;
    double mass[MAXIMAL_ROWS_PER_BLOCK], weight_sum = 0;
    if (!(job->target_type == FX_FLOAT32 ? survey_float(block, mass) : survey_double(block, mass))) {
        *flaws |= FX_BAD_TARGET;
        return 0;
    }
    for (int64_t i = 0; i < block->rows; i++)
        if (!is_ignored_one_hot(block, i)) weight_sum += mass[i] * sample_weight(block, i);
    return weight_sum;
}

static double survey(const fx_job *job, int64_t number, int *flaws)
{
    const BLOCK block = block_of(job, number);
    if (job->sample_weight.data)
        for (int64_t i = 0; i < block.rows; i++) {
            const double s = sample_weight(&block, i);
            if (!((s >= 0) & (s < INFINITY))) *flaws |= FX_BAD_WEIGHT;
        }
    return has_labels(job) ? survey_labels(&block, flaws) : survey_probabilities(&block, flaws);
}

#endif
