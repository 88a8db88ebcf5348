/* One block of rows: what every regime needs before its arithmetic (labels, weights) and after (weighted losses, rows
 * of weight 0), and the survey that checks targets and weights before anything is written.
 *
 * Design
 * a) A label is clamped by an unsigned comparison although the survey has seen it: another thread may change it in
 *    between, and a kernel must not read or write outside its arrays whatever it is given. Such a row becomes NaN.
 * b) Rows of weight 0 (ignored, weight 0, no target mass) go through the arithmetic like all others and are set to 0
 *    afterwards: that costs nothing where there are none, and their NaN cannot spread.
 * c) Losses are kept per row in double and summed in double in the order of the rows.
 * d) The sums of all targets, or weights, are part of every result of the mean. Added one by one, equal terms err in
 *    the same direction all the way: 14 eps on average after 256 of them, which in float64 is more than the formulas
 *    lose. So no more than 16 terms meet in a row; longer sums are in several parts, or compensated.
 */
#ifndef FASTXENT_BLOCK_H
#define FASTXENT_BLOCK_H

#include "formulas.h"
#include "half.h"

/* The arrays of a block begin at its first row: `inner` and `klass` lead on from there. */
typedef struct {
    const fx_job *job;
    fx_array logits, target, sample_weight, loss, grad, hess;
    int type; /* of logits, grad and hess: those of the job, or REAL where they were converted */
    int64_t rows;
    int64_t *label;
    double *weight, *value; /* value: the loss of each row before its weight */
    REAL *scale;            /* weight times the scale of the gradient */
    int all_weigh_one;      /* then `weight` is not filled in */
    int grad_is_clear;      /* the gradient of rows of weight 0 is 0 already */
} BLOCK;

/* Of an array of REAL. */
INLINE REAL *row_of(const fx_array *array, int64_t row) { return (REAL *)array->data + row * array->inner; }

INLINE int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
INLINE int64_t at_most(int64_t n, int64_t limit) { return n < limit ? n : limit; }

/* Room in the arrays of a block: vectors are loaded and stored at any row, so LANES - 1 past the last one. */
INLINE int64_t padded_rows(int64_t rows) { return round_up(rows + LANES - 1, 16); }

INLINE int is_loss(const fx_job *job) { return job->task == FX_CROSS_ENTROPY || job->task == FX_FOCAL; }
INLINE int is_soft(const fx_job *job) { return job->target_type >= FX_FLOAT16 || job->label_smoothing > 0; }
INLINE int has_labels(const fx_job *job) { return job->target_type < FX_FLOAT16; }

INLINE size_t size_of(int type)
{
    return type == FX_INT8 || type == FX_UINT8                        ? 1
        : type == FX_INT16 || type == FX_UINT16 || is_half(type)      ? 2
        : type == FX_INT32 || type == FX_UINT32 || type == FX_FLOAT32 ? 4
                                                                      : 8;
}

INLINE fx_array array_from(const fx_array *array, int type, int64_t outer, int64_t row)
{
    fx_array part = *array;
    if (part.data)
        part.data = (char *)part.data + (outer * array->outer + row * array->inner) * (ptrdiff_t)size_of(type);
    return part;
}

INLINE BLOCK block_of(const fx_job *job, int64_t number)
{
    const int64_t outer = number / job->n_blocks_per_outer,
                  first = number % job->n_blocks_per_outer * job->rows_per_block;
    BLOCK block = {job, array_from(&job->logits, job->real_type, outer, first),
        array_from(&job->target, job->target_type, outer, first),
        array_from(&job->sample_weight, job->sample_weight_type, outer, first),
        array_from(&job->loss, job->real_type, outer, first), array_from(&job->grad, job->real_type, outer, first),
        array_from(&job->hess, job->real_type, outer, first), job->real_type,
        at_most(job->n_inner - first, job->rows_per_block), NULL, NULL, NULL, NULL, 0, 0};
    return block;
}

/* n numbers of any type as REAL. */
NOINLINE void read_reals(
    const fx_array *array, int type, ptrdiff_t offset, ptrdiff_t stride, int64_t n, REAL *RESTRICT out)
{
    if (is_half(type)) read_halves(type, (const uint16_t *)array->data + offset, stride, n, out);
    else if (type == REAL_TYPE && stride == 1)
        memcpy(out, (const REAL *)array->data + offset, (size_t)n * sizeof(REAL));
#if REAL_BITS == 32
    else fx_read_floats(array->data, type, offset, stride, n, out);
#else
    else fx_read_doubles(array->data, type, offset, stride, n, out);
#endif
}

/* And back, as the type of the logits. */
NOINLINE void write_reals(
    const fx_array *array, int type, ptrdiff_t offset, ptrdiff_t stride, int64_t n, const REAL *from)
{
    if (is_half(type)) write_halves(type, from, n, (uint16_t *)array->data + offset, stride);
    else {
        REAL *out = (REAL *)array->data + offset;
        if (stride == 1) memcpy(out, from, (size_t)n * sizeof(REAL));
        else
            for (int64_t i = 0; i < n; i++) out[i * stride] = from[i];
    }
}

/* One floating number. */
NOINLINE double number_at(const fx_array *array, int type, ptrdiff_t offset)
{
    if (type == FX_FLOAT32) return (double)((const float *)array->data)[offset];
    if (type == FX_FLOAT64) return ((const double *)array->data)[offset];
    const uint16_t half = ((const uint16_t *)array->data)[offset];
    return (double)(type == FX_FLOAT16 ? of_float16(half) : of_bfloat16(half));
}

INLINE void read_labels(const BLOCK *block, int64_t first, int64_t rows, int64_t *label)
{
    const ptrdiff_t stride = block->target.inner;
    fx_read_labels(block->target.data, block->job->target_type, first * stride, stride, rows, label);
}

INLINE double sample_weight(const BLOCK *block, int64_t row)
{
    const fx_array *array = &block->sample_weight;
    return array->data ? number_at(array, block->job->sample_weight_type, row * array->inner) : 1;
}

INLINE REAL class_weight(const fx_job *job, int64_t c)
{ return job->class_weight ? ((const REAL *)job->class_weight)[c] : 1; }

INLINE double target_at(const BLOCK *block, int64_t row, int64_t c)
{ return number_at(&block->target, block->job->target_type, row * block->target.inner + c * block->target.klass); }

/* Probabilities whose whole mass lies on the ignored class: the one-hot form of an ignored label. */
NOINLINE int is_ignored_one_hot(const BLOCK *block, int64_t row)
{
    const fx_job *job = block->job;
    if (!job->has_ignore_index || (uint64_t)job->ignore_index >= (uint64_t)job->n_classes) return 0;
    if (!(target_at(block, row, job->ignore_index) > 0)) return 0;
    for (int64_t c = 0; c < job->n_classes; c++)
        if (c != job->ignore_index && target_at(block, row, c) != 0) return 0;
    return 1;
}

/* Whether a row counts although its target has no mass: smoothing gives it some, unless all of that is masked. What
 * counts is decided without a look at the logits. */
RARE int counts_without_mass(const fx_job *job)
{
    if (!(job->label_smoothing > 0)) return 0;
    for (int64_t c = 0; c < job->n_classes; c++)
        if (class_weight(job, c) > 0) return 1;
    return 0;
}

/* The scales of gradients. One that REAL cannot hold becomes the nearest that it can: 0 times infinity, and 0 over 0
 * where the inputs are probabilities, would be NaN. */
RARE void extreme_scales_of(REAL *scale, const double *weight, int64_t n, double divisor)
{
    const double inverse = 1 / divisor;
    for (int64_t i = 0; i < n; i++) {
        const double exact = isnormal(inverse) ? weight[i] * inverse : weight[i] / divisor;
        const double held = exact > (double)REAL_LARGEST ? (double)REAL_LARGEST : exact;
        scale[i] = held > 0 && held < (double)REAL_SMALLEST ? REAL_SMALLEST : (REAL)held;
    }
}

/* A division each would take longer than all else. By their bits, all may be normal numbers; if not, a closer look. */
static void scales_of(REAL *RESTRICT scale, const double *RESTRICT weight, int64_t n, double divisor)
{
    const double inverse = 1 / divisor;
    const REAL range[] = {SMALLEST_NORMAL, REAL_LARGEST};
    WORD first_last[2], bits, suspects = 0;
    memcpy(first_last, range, sizeof range);
    const WORD first = first_last[0], last = first_last[1];
    for (int64_t i = 0; i < n; i++) {
        const REAL product = (REAL)(weight[i] * inverse);
        memcpy(&bits, &product, sizeof bits);
        suspects |= (bits - first) | (last - bits);
        scale[i] = product;
    }
    if (suspects >> (REAL_BITS - 1) || !isnormal(inverse)) extreme_scales_of(scale, weight, n, divisor);
}

/* Clamp the labels and weigh the rows: ignored rows, labels out of range, weights. Selections instead of branches,
 * because there is no guessing which rows are ignored. */
static void prepare_weights(BLOCK *block)
{
    const fx_job *job = block->job;
    const int64_t rows = block->rows;
    int64_t *label = block->label;
    double *weight = block->weight;
    if (has_labels(job)) {
        const int64_t ignored = job->ignore_index, n_classes = job->n_classes;
        const int has_ignored = job->has_ignore_index;
        for (int64_t i = 0; i < rows; i++) {
            const int is_valid = (uint64_t)label[i] < (uint64_t)n_classes,
                      is_ignored = has_ignored & (label[i] == ignored);
            weight[i] = is_ignored ? 0 : is_valid ? 1 : NAN;
            label[i] = is_valid ? label[i] : 0;
        }
        if (job->class_weight && !is_soft(job))
            for (int64_t i = 0; i < rows; i++) weight[i] *= (double)class_weight(job, label[i]);
    } else
        for (int64_t i = 0; i < rows; i++) weight[i] = job->has_ignore_index && is_ignored_one_hot(block, i) ? 0 : 1;
    if (job->sample_weight.data)
        for (int64_t i = 0; i < rows; i++) weight[i] = weight[i] == 0 ? 0 : weight[i] * sample_weight(block, i);
    scales_of(block->scale, weight, rows, job->divisor);
}

/* The first bit is set if a label is below 0 or beyond the last class: not all levels compare unsigned words. */
INLINE uint64_t out_of_range(int64_t label, int64_t n_classes)
{ return (uint64_t)label | ((uint64_t)(n_classes - 1) - (uint64_t)label); }

/* So many rows that no level's vectors of labels leave any over. */
INLINE int64_t whole_vectors(int64_t rows) { return (rows + 7) & -8; }

static void prepare(BLOCK *block)
{
    const fx_job *job = block->job;
    const int64_t rows = block->rows, padded = padded_rows(rows);
    uint64_t suspects = 0;
    for (int64_t i = rows; i < padded; i++) block->label[i] = 0, block->scale[i] = 0;
    if (has_labels(job)) {
        read_labels(block, 0, rows, block->label);
        for (int64_t i = 0; i < whole_vectors(rows); i++) suspects |= out_of_range(block->label[i], job->n_classes);
    } else
        for (int64_t i = 0; i < rows; i++) block->label[i] = 0;
    block->all_weigh_one =
        !job->class_weight && !job->sample_weight.data && !job->has_ignore_index && !(suspects >> 63) && !is_soft(job);
    if (block->all_weigh_one)
        for (int64_t i = 0; i < rows; i++) block->scale[i] = (REAL)(1 / job->divisor);
    else prepare_weights(block);
}

NOINLINE void zero_row(const BLOCK *block, const fx_array *array, int64_t row, int type)
{
    if (!array->data) return;
    if (is_half(type)) {
        uint16_t *out = (uint16_t *)array->data + row * array->inner;
        for (int64_t c = 0; c < block->job->n_classes; c++) out[c * array->klass] = 0;
    } else {
        REAL *out = row_of(array, row);
        for (int64_t c = 0; c < block->job->n_classes; c++) out[c * array->klass] = 0;
    }
}

/* Losses or weights in the order of the rows, in 16 interleaved sums: no addition need wait for the last. SUM_STEP of
 * them at a time, see d). */
enum { SUM_STEP = 256 };
static double sum_of_rows(const double *value, int64_t rows)
{
    enum { ROW_SUMS = 16, VECTORS = ROW_SUMS / DOUBLE_LANES };
    double total = 0;
    for (int64_t i = 0; i < rows;) {
        const int64_t end = at_most(i + SUM_STEP, rows);
        DOUBLES wide[VECTORS] = {0};
        double sums[2 * ROW_SUMS];
        for (; i + ROW_SUMS <= end; i += ROW_SUMS) {
#pragma GCC unroll 16
            for (int k = 0; k < VECTORS; k++) wide[k] += load_doubles(value + i + k * DOUBLE_LANES);
        }
        memcpy(sums, wide, sizeof wide);
        for (int k = 0; i < end; i++, k++) sums[k] += value[i];
        for (int k = 0; k < ROW_SUMS - 1; k++) sums[ROW_SUMS + k] = sums[2 * k] + sums[2 * k + 1]; /* pairwise */
        total += sums[2 * ROW_SUMS - 2];
    }
    return total;
}

INLINE void put_loss(const BLOCK *block, int64_t row, REAL value)
{
    if (is_half(block->job->real_type))
        write_reals(&block->loss, block->job->real_type, row * block->loss.inner, 1, 1, &value);
    else *row_of(&block->loss, row) = value;
}

/* Weight the losses, and clear the rows of weight 0. Their gradients are multiples of 0 already: for class indices only
 * a row with a NaN or an infinity may hold anything else. */
static void clear_rows(BLOCK *block)
{
    const fx_job *job = block->job;
    const int64_t rows = block->rows;
    const int signs = job->task == FX_FOCAL && job->hess.data; /* 0 times a negative Hessian is -0.0 */
    const int all = is_soft(job) || job->inputs != FX_LOGITS || signs;
    double *value = block->value;
    const double *weight = block->weight;
    int64_t *unclean = block->label, n_unclean = 0; /* the labels are read no more */
    for (int64_t i = 0; i < rows; i++) n_unclean += (weight[i] == 0) & (all | !(fabs(value[i]) < INFINITY));
    if (n_unclean) {
        n_unclean = 0;
        for (int64_t i = 0; i < rows; i++) {
            unclean[n_unclean] = i;
            n_unclean += (weight[i] == 0) & (all | !(fabs(value[i]) < INFINITY));
        }
        for (int64_t i = 0; i < n_unclean; i++) {
            if (!block->grad_is_clear) zero_row(block, &block->grad, unclean[i], block->type);
            if (job->hess.data) zero_row(block, &block->hess, unclean[i], block->type);
        }
    }
    for (int64_t i = 0; i < rows; i++) value[i] = weight[i] == 0 ? 0 : value[i] * weight[i];
}

/* Weight the losses, hand them out, and add them up. */
static double finish(BLOCK *block)
{
    const fx_job *job = block->job;
    const int64_t rows = block->rows;
    if (!block->all_weigh_one) clear_rows(block);
    if (job->loss.data)
        for (int64_t i = 0; i < rows; i++) put_loss(block, i, (REAL)block->value[i]);
    return sum_of_rows(block->value, rows);
}

/* ---- survey ---- */

/* Of up to SUM_STEP rows. */
NOINLINE double sum_of_weights(const BLOCK *block, int64_t first, const int64_t *label, int64_t rows)
{
    const fx_job *job = block->job;
    double weight[SUM_STEP];
    for (int64_t i = 0; i < rows; i++)
        weight[i] = job->has_ignore_index && label[i] == job->ignore_index
            ? 0
            : (double)class_weight(job, label[i]) * sample_weight(block, first + i);
    return sum_of_rows(weight, rows);
}

static double survey_labels(const BLOCK *block, int *flaws)
{
    const fx_job *job = block->job;
    const int64_t n_classes = job->n_classes;
    int64_t label[SUM_STEP];
    double weight_sum = 0;
    for (int64_t first = 0; first < block->rows; first += SUM_STEP) {
        const int64_t rows = at_most(block->rows - first, SUM_STEP), whole = whole_vectors(rows);
        memset(label + whole - 8, 0, 8 * sizeof *label);
        read_labels(block, first, rows, label);
        int64_t ignored =
            job->has_ignore_index && job->ignore_index == 0 ? rows - whole : 0; /* what is counted past the end */
        uint64_t suspects = 0;
        if (job->has_ignore_index)
            for (int64_t i = 0; i < whole; i++) {
                const int64_t skip = label[i] == job->ignore_index;
                ignored += skip;
                suspects |= out_of_range(label[i], n_classes) & (uint64_t)(skip - 1);
            }
        else
            for (int64_t i = 0; i < whole; i++) suspects |= out_of_range(label[i], n_classes);
        if (suspects >> 63) {
            *flaws |= FX_BAD_TARGET;
            return 0;
        }
        if (!job->class_weight && !job->sample_weight.data) weight_sum += (double)(rows - ignored);
        else weight_sum += sum_of_weights(block, first, label, rows);
    }
    return weight_sum;
}

/* LANES sums in double, in as many vectors as that takes; of doubles they are compensated. */
#if REAL_BITS == 64
typedef PAIR WIDE;

/* sum + w t. */
INLINE WIDE add_weighted(WIDE sum, VECTOR w, VECTOR t) { return add(sum, w * t); }
INLINE void store_wide(double *p, WIDE wide) { store(p, total(wide)); }
#else
enum { DOUBLES_PER_VECTOR = LANES > 1 ? 2 : 1 };
typedef struct {
    DOUBLES part[DOUBLES_PER_VECTOR];
} WIDE;

INLINE WIDE widened(VECTOR v)
{
#if LANES == 1
    WIDE wide = {{v}};
#elif VECTOR_BYTES == 64
    WIDE wide = {{_mm512_cvtps_pd(_mm512_castps512_ps256(v)), _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1))}};
#elif VECTOR_BYTES == 32 && defined(__AVX__)
    WIDE wide = {{_mm256_cvtps_pd(_mm256_castps256_ps128(v)), _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1))}};
#else
    WIDE wide = {{__builtin_convertvector(LOWER(v), DOUBLES), __builtin_convertvector(UPPER(v), DOUBLES)}};
#endif
    return wide;
}

INLINE WIDE add_weighted(WIDE sum, VECTOR w, VECTOR t)
{
    const WIDE wide_w = widened(w), wide_t = widened(t);
#pragma GCC unroll 2
    for (int k = 0; k < DOUBLES_PER_VECTOR; k++) sum.part[k] += wide_w.part[k] * wide_t.part[k];
    return sum;
}

INLINE void store_wide(double *p, WIDE wide)
{
#pragma GCC unroll 2
    for (int k = 0; k < DOUBLES_PER_VECTOR; k++) *(DOUBLES *)(p + k * LANES / DOUBLES_PER_VECTOR) = wide.part[k];
}
#endif

/* n neighbouring targets from `offset` on where they lie, or converted into `buffer`. */
INLINE const REAL *targets_at(const BLOCK *block, ptrdiff_t offset, ptrdiff_t stride, int64_t n, REAL *buffer)
{
    const int type = block->job->target_type;
    if (type == REAL_TYPE && stride == 1) return (const REAL *)block->target.data + offset;
    read_reals(&block->target, type, offset, stride, n, buffer);
    return buffer;
}

enum { MAXIMAL_ROWS_PER_BLOCK = 1024, SURVEY_STEP = 1024 };

INLINE MASK is_probability(VECTOR t) { return both(less(t, broadcast((REAL)INFINITY)), negate(less(t, broadcast(0)))); }

/* The sum of w t of n classes of one row. */
INLINE double survey_row(const BLOCK *block, int64_t row, int64_t n_classes, REAL *buffer, MASK *all_good)
{
    const fx_job *job = block->job;
    WIDE sum = {0};
    MASK good = *all_good;
    double sums[LANES], total = 0;
    for (int64_t first = 0; first < n_classes; first += SURVEY_STEP) {
        const int64_t n = at_most(n_classes - first, SURVEY_STEP);
        const REAL *t =
            targets_at(block, row * block->target.inner + first * block->target.klass, block->target.klass, n, buffer);
        const REAL *w = job->class_weight ? (const REAL *)job->class_weight + first : NULL;
        for (int64_t i = 0; i < n; i += LANES) {
            const VECTOR t_i = load_up_to(t + i, n - i, 0);
            prefetch(t + i + 32 * LANES);
            good = both(good, is_probability(t_i));
            sum = add_weighted(sum, w ? load_up_to(w + i, n - i, 0) : broadcast(1), t_i);
        }
    }
    *all_good = good;
    store_wide(sums, sum);
    for (int lane = 0; lane < LANES; lane++) total += sums[lane];
    return total;
}

/* The same for all rows of a block that lie side by side. */
static void survey_neighbours(const BLOCK *block, double *mass, REAL *buffer, MASK *good)
{
    WIDE sums[MAXIMAL_ROWS_PER_BLOCK / LANES];
    memset(sums, 0, sizeof sums);
    for (int64_t c = 0; c < block->job->n_classes; c++) {
        const REAL *t = targets_at(block, c * block->target.klass, 1, block->rows, buffer);
        for (int64_t i = 0; i < block->rows; i += LANES) {
            const VECTOR t_i = load_up_to(t + i, block->rows - i, 0);
            *good = both(*good, is_probability(t_i));
            sums[i / LANES] = add_weighted(sums[i / LANES], broadcast(class_weight(block->job, c)), t_i);
        }
    }
    for (int64_t i = 0; i < block->rows; i += LANES) store_wide(mass + i, sums[i / LANES]);
}

/* Whether every t is finite as REAL and >= 0, and the sum of w t; runs along the axis without gaps. */
static double survey_probabilities(const BLOCK *block, int *flaws)
{
    double mass[MAXIMAL_ROWS_PER_BLOCK];
    REAL buffer[SURVEY_STEP];
    MASK good = equal(broadcast(0), broadcast(0));
    const fx_job *job = block->job;
    /* Where all weigh the same, rows without gaps are one. */
    const int is_one = !job->class_weight && !job->sample_weight.data && !job->has_ignore_index
        && block->target.klass == 1 && block->target.inner == job->n_classes;
    const int64_t rows = is_one ? 1 : block->rows;
    if (block->target.inner == 1 && block->target.klass != 1) survey_neighbours(block, mass, buffer, &good);
    else
        for (int64_t i = 0; i < rows; i++)
            mass[i] = survey_row(block, i, is_one ? block->rows * job->n_classes : job->n_classes, buffer, &good);
    if (any(negate(good))) {
        *flaws |= FX_BAD_TARGET;
        return 0;
    }
    for (int64_t i = 0; i < rows; i++) mass[i] = is_ignored_one_hot(block, i) ? 0 : mass[i] * sample_weight(block, i);
    return sum_of_rows(mass, rows);
}

static double survey_rows(const fx_job *job, int64_t number, int *flaws)
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
