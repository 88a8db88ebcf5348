/* The tile regime: lanes are rows. For few classes, and for any number of classes whose axis is not the last in memory.
 *
 * LANES rows at a time are brought into a tile[class][lane] in the first-level cache, whatever their strides: by vector
 * loads where neighbouring rows are neighbours in memory, by transposing where classes are, one by one otherwise.
 * Results leave the same way. Gradients of contiguous rows are collected in a packed stage and copied out per block.
 *
 * A row-wise kernel is 5 to 10 times slower for 3 classes: it would use 3 of 16 lanes.
 */
#ifndef FASTXENT_TILE_H
#define FASTXENT_TILE_H

#include "block.h"
#include "formulas.h"
#include "outgoing.h"

INLINE int is_packed(ptrdiff_t class_stride, int64_t n_classes)
{ return class_stride == 1 && n_classes > 1 && LANES > 1; }

/* Rows of 2 or 3 classes without gaps are 2 or 3 whole vectors; taking them apart, and putting them together again, is
 * one shuffle of two vectors per class for 2 classes, two for 3. Element i of the rows is class i % 3 of row i / 3. */
#if LANES > 1
#define ZIP_LOW(s, k) (((k) & 1) ? LANES + (k) / 2 : (k) / 2)
#define ZIP_HIGH(s, k) (((k) & 1) ? LANES + LANES / 2 + (k) / 2 : LANES / 2 + (k) / 2)
#define UNZIP_EVEN(s, k) (2 * (k))
#define UNZIP_ODD(s, k) (2 * (k) + 1)
#define FROM_ROW_0_1(class, k) (3 * (k) + (class) < 2 * LANES ? 3 * (k) + (class) : 0)
#define FROM_ROW_2(class, k) (3 * (k) + (class) < 2 * LANES ? (k) : 3 * (k) + (class) - LANES)
#define FROM_CLASS_0_1(part, k) \
    (((part) * LANES + (k)) % 3 == 1 ? LANES + ((part) * LANES + (k)) / 3 : ((part) * LANES + (k)) / 3)
#define FROM_CLASS_2(part, k) (((part) * LANES + (k)) % 3 == 2 ? LANES + ((part) * LANES + (k)) / 3 : (k))
#define CLASS_OF_3(rows, class) SHUFFLE(SHUFFLE(rows[0], rows[1], FROM_ROW_0_1, class), rows[2], FROM_ROW_2, class)
#define PART_OF_3(tile, part) SHUFFLE(SHUFFLE(tile[0], tile[1], FROM_CLASS_0_1, part), tile[2], FROM_CLASS_2, part)
#endif

/* Whether store_packed writes exactly the rows, and nothing past their end. */
INLINE int is_exact(int64_t n_classes)
{
    return n_classes == 2 || n_classes == 3 || n_classes % LANES == 0 || (LANES >= 4 && n_classes == LANES / 2)
        || (LANES >= 8 && n_classes == LANES / 4);
}

INLINE int is_gapless(ptrdiff_t row_stride, int64_t n_classes)
{ return LANES > 1 && (n_classes == 2 || n_classes == 3) && row_stride == n_classes; }

INLINE void load_gapless(REAL *RESTRICT tile, const REAL *p, int64_t n_classes)
{
#if LANES > 1
    const VECTOR rows[3] = {load(p), load(p + LANES), n_classes == 3 ? load(p + 2 * LANES) : broadcast(0)};
    store(tile, n_classes == 2 ? SHUFFLE(rows[0], rows[1], UNZIP_EVEN, 0) : CLASS_OF_3(rows, 0));
    store(tile + LANES, n_classes == 2 ? SHUFFLE(rows[0], rows[1], UNZIP_ODD, 0) : CLASS_OF_3(rows, 1));
    if (n_classes == 3) store(tile + 2 * LANES, CLASS_OF_3(rows, 2));
#endif
}

INLINE void store_gapless(const REAL *RESTRICT tile, REAL *p, int64_t n_classes)
{
#if LANES > 1
    const VECTOR classes[3] = {load(tile), load(tile + LANES), n_classes == 3 ? load(tile + 2 * LANES) : broadcast(0)};
    store(p, n_classes == 2 ? SHUFFLE(classes[0], classes[1], ZIP_LOW, 0) : PART_OF_3(classes, 0));
    store(p + LANES, n_classes == 2 ? SHUFFLE(classes[0], classes[1], ZIP_HIGH, 0) : PART_OF_3(classes, 1));
    if (n_classes == 3) store(p + 2 * LANES, PART_OF_3(classes, 2));
#endif
}

/* The narrowest piece of a row that gather_rows offers for n classes. */
INLINE int piece_width(int64_t n)
{
    if (LANES >= 8 && n <= LANES / 4) return LANES / 4;
    if (LANES >= 4 && n <= LANES / 2) return LANES / 2;
    return LANES;
}

/* Narrow pieces are put together while they are loaded, and not all by the one port that shuffles; they beat whole
 * vectors as long as they are three at most. (For stores they do not.) */
INLINE int widest_piece(int64_t n_classes) { return LANES >= 8 && n_classes <= 3 * LANES / 4 ? LANES / 4 : LANES; }

/* From rows of contiguous classes. It may read past the end of a row, by fewer values than the row has: into the next
 * row, which must be there and start no earlier than where this one ends. */
NOINLINE void load_packed(REAL *RESTRICT tile, const REAL *p, ptrdiff_t row_stride, int64_t n_classes)
{
    if (is_gapless(row_stride, n_classes)) {
        load_gapless(tile, p, n_classes);
        return;
    }
    const int most = widest_piece(n_classes);
    for (int64_t c = 0; c < n_classes; c += most) {
        const int64_t left = n_classes - c;
        const int width = (int)at_most(most, piece_width(left));
        VECTOR r[LANES];
        if (width == LANES) gather_rows(r, p + c, row_stride, LANES);
        else if (width == LANES / 2) gather_rows(r, p + c, row_stride, LANES >= 4 ? LANES / 2 : LANES);
        else gather_rows(r, p + c, row_stride, LANES >= 8 ? LANES / 4 : LANES);
#pragma GCC unroll 16
        for (int k = 0; k < LANES; k++)
            if (k < width && k < left) store(tile + (c + k) * LANES, r[k]);
    }
}

/* To rows of contiguous classes of a stage that has room for LANES values past its end. The columns go from last to
 * first, so that what a row writes past its end is mended by the first column of the next. */
NOINLINE void store_packed(const REAL *RESTRICT tile, REAL *p, ptrdiff_t row_stride, int64_t n_classes)
{
    for (int64_t c = (n_classes - 1) / LANES * LANES; c >= 0; c -= LANES) {
        const int64_t left = n_classes - c;
        const int width = piece_width(left);
        VECTOR r[LANES];
#pragma GCC unroll 16
        for (int k = 0; k < LANES; k++)
            if (k < width) r[k] = load(tile + (c + (k < left ? k : 0)) * LANES);
        if (width == LANES) scatter_rows(r, p + c, row_stride, LANES);
        else if (width == LANES / 2) scatter_rows(r, p + c, row_stride, LANES >= 4 ? LANES / 2 : LANES);
        else scatter_rows(r, p + c, row_stride, LANES >= 8 ? LANES / 4 : LANES);
    }
}

/* `followed`: the block has a row after these, so that reading a little past the last one stays inside the array. */
NOINLINE void load_any_tile(REAL *RESTRICT tile, const REAL *p, ptrdiff_t row_stride, ptrdiff_t class_stride, int rows,
    int64_t n_classes, int followed, REAL *RESTRICT packed)
{
    if (is_packed(class_stride, n_classes)) {
        if (rows == LANES && followed && row_stride >= n_classes) {
            load_packed(tile, p, row_stride, n_classes);
            return;
        }
        for (int lane = 0; lane < LANES; lane++)
            for (int64_t c = 0; c < n_classes; c++)
                packed[lane * n_classes + c] = lane < rows ? p[lane * row_stride + c] : 0;
        load_packed(tile, packed, n_classes, n_classes);
    } else if (row_stride == 1) {
        if (rows == LANES)
            for (int64_t c = 0; c < n_classes; c++) store(tile + c * LANES, load(p + c * class_stride));
        else
            for (int64_t c = 0; c < n_classes; c++) store(tile + c * LANES, load_first(p + c * class_stride, rows, 0));
    } else
        for (int64_t c = 0; c < n_classes; c++)
            for (int lane = 0; lane < LANES; lane++)
                tile[c * LANES + lane] = lane < rows ? p[lane * row_stride + c * class_stride] : 0;
}

INLINE void load_tile(REAL *RESTRICT tile, const REAL *p, ptrdiff_t row_stride, ptrdiff_t class_stride, int rows,
    int64_t n_classes, int followed, REAL *RESTRICT packed)
{
    if (rows == LANES && class_stride == 1 && is_gapless(row_stride, n_classes)) load_gapless(tile, p, n_classes);
    else load_any_tile(tile, p, row_stride, class_stride, rows, n_classes, followed, packed);
}

NOINLINE void store_tile(
    const REAL *RESTRICT tile, REAL *p, ptrdiff_t row_stride, ptrdiff_t class_stride, int rows, int64_t n_classes)
{
    if (row_stride == 1) {
        if (rows == LANES)
            for (int64_t c = 0; c < n_classes; c++) store(p + c * class_stride, load(tile + c * LANES));
        else
            for (int64_t c = 0; c < n_classes; c++) store_first(p + c * class_stride, load(tile + c * LANES), rows);
    } else
        for (int lane = 0; lane < rows; lane++)
            for (int64_t c = 0; c < n_classes; c++) p[lane * row_stride + c * class_stride] = tile[c * LANES + lane];
}

/* Where an output of the block goes: to its array, or packed to a stage. */
typedef struct {
    const fx_array *array;
    REAL *stage;
    int direct;        /* whole tiles go to the array at once; only what is left of the rows is staged */
    OUTGOING outgoing; /* from the stage to the array */
    REAL *later;       /* where the tile is left for compute_tiles_side_by_side; NULL: it goes out at once */
} TILE_OUTPUT;

INLINE int is_staged(const fx_job *job, const fx_array *array)
{ return array->data && is_packed(array->klass, job->n_classes); }

INLINE void put_tile(const TILE_OUTPUT *output, const REAL *tile, int64_t row, int rows, int64_t n_classes)
{
    if (output->later) {
        if (output->later != tile) memcpy(output->later, tile, (size_t)(n_classes * LANES) * sizeof(REAL));
        return;
    }
    REAL *stage = output->direct && rows == LANES ? row_of(output->array, row)
        : output->stage                           ? output->stage + row * n_classes
                                                  : NULL;
    if (stage && is_gapless(n_classes, n_classes)) store_gapless(tile, stage, n_classes);
    else if (stage) store_packed(tile, stage, n_classes, n_classes);
    else store_tile(tile, row_of(output->array, row), output->array->inner, output->array->klass, rows, n_classes);
}

static void flush_stage(const BLOCK *block, TILE_OUTPUT *output)
{
    const int64_t n_classes = block->job->n_classes;
    if (!output->stage) return;
    if (output->outgoing.parts) {
        outgoing_rest(&output->outgoing);
        outgoing_flush(&output->outgoing);
        return;
    }
    const int64_t first = output->direct ? block->rows / LANES * LANES : 0;
    if (output->array->inner == n_classes)
        copy_out(row_of(output->array, first), output->stage + first * n_classes, (block->rows - first) * n_classes,
            block->job->stream);
    else
        for (int64_t row = 0; row < block->rows; row++) {
            REAL *out = row_of(output->array, row);
            const REAL *from = output->stage + row * n_classes;
            for (int64_t c = 0; c < n_classes; c += LANES) store_up_to(out + c, load(from + c), n_classes - c);
        }
}

typedef struct {
    REAL *z, *mass, *hess, *packed; /* z becomes the exponentials, then the gradient */
    REAL *distance, *curvature;     /* for soft targets of the focal loss */
    TILE_OUTPUT grad_out, hess_out;
} TILE;

RARE int64_t tiles_side_by_side(const fx_job *job);

/* Several tiles go through each step together: a step of one tile is a chain of dependent operations, during which the
 * processor works on the others. */
enum { TILES_TOGETHER = 4, TOGETHER_CLASSES = 32 };
INLINE int64_t tiles_together(const fx_job *job) { return job->n_classes <= TOGETHER_CLASSES ? TILES_TOGETHER : 1; }

/* Carve the block's arrays from the thread's scratch memory; with scratch NULL, only count the bytes. Of the outputs'
 * arrays only the strides matter here. */
static size_t tile_scratch(const fx_job *job, const fx_array *grad, const fx_array *hess, REAL *scratch, TILE *tile)
{
    const int64_t one = job->n_classes * LANES;
    const int64_t stage = round_up(job->rows_per_block * job->n_classes + LANES, 64 / (int64_t)sizeof(REAL));
    REAL *next = scratch;
    tile->z = next, next += one * (tiles_side_by_side(job) > 1 ? tiles_side_by_side(job) : tiles_together(job));
    tile->mass = next, next += one; /* also the shifted logits of log_softmax */
    tile->hess = next, next += one * (job->hess.data ? tiles_side_by_side(job) : 1);
    tile->packed = next, next += one + round_up(LANES, 64 / (int64_t)sizeof(REAL));
    tile->distance = tile->curvature = NULL;
    if (job->task == FX_FOCAL && is_soft(job)) {
        tile->distance = next, next += one;
        tile->curvature = next, next += one;
    }
    TILE_OUTPUT *outputs[] = {&tile->grad_out, &tile->hess_out};
    const fx_array *arrays[] = {grad, hess};
    for (int i = 0; i < COUNT(outputs); i++) {
        outputs[i]->array = arrays[i], outputs[i]->stage = NULL, outputs[i]->direct = 0,
        outputs[i]->outgoing = (OUTGOING){0}, outputs[i]->later = NULL;
        if (!is_staged(job, arrays[i])) continue;
        outputs[i]->stage = next, next += stage;
        outputs[i]->direct = !job->stream && is_exact(job->n_classes) && arrays[i]->inner == job->n_classes;
    }
    return (size_t)(next - scratch) * sizeof(REAL);
}

INLINE VECTOR tile_maximum(const REAL *z, int64_t n_classes)
{
    VECTOR m = broadcast((REAL)-INFINITY);
#pragma GCC unroll 4
    for (int64_t c = 0; c < n_classes; c++) m = maximum(load(z + c * LANES), m);
    return m;
}

INLINE void tile_exponentials(REAL *to, const REAL *z, VECTOR m, int64_t n_classes)
{
    if (UNLIKELY(any(not_finite(m))))
        for (int64_t c = 0; c < n_classes; c++) store(to + c * LANES, exponential_any(load(z + c * LANES), m));
    else
#pragma GCC unroll 4
        for (int64_t c = 0; c < n_classes; c++) store(to + c * LANES, exponential(load(z + c * LANES), m));
}

INLINE SOFTMAX tile_softmax_inlined(const REAL *e, VECTOR m, int64_t n_classes)
{
    VECTOR all = sum_of(e, n_classes), below = all;
    if (any(less(all, broadcast(2)))) below = sum_below_one(e, n_classes);
    return softmax_inlined(m, all, below);
}
NOINLINE SOFTMAX tile_softmax(const REAL *e, VECTOR m, int64_t n_classes)
{ return tile_softmax_inlined(e, m, n_classes); }

/* The losses of a tile, to doubles; the array has room for LANES of them. */
INLINE void put_values(const BLOCK *block, VECTOR value, int64_t row)
{
    double *to = block->value + row;
#if REAL_BITS == 64
    store(to, value);
#elif VECTOR_BYTES == 64
    _mm512_storeu_pd(to, _mm512_cvtps_pd(_mm512_castps512_ps256(value)));
    _mm512_storeu_pd(to + 8, _mm512_cvtps_pd(_mm512_extractf32x8_ps(value, 1)));
#elif VECTOR_BYTES == 32 && defined(__AVX__)
    _mm256_storeu_pd(to, _mm256_cvtps_pd(_mm256_castps256_ps128(value)));
    _mm256_storeu_pd(to + 4, _mm256_cvtps_pd(_mm256_extractf128_ps(value, 1)));
#elif LANES > 1
    typedef double DOUBLES __attribute__((vector_size(VECTOR_BYTES), aligned(8), may_alias));
    *(DOUBLES *)to = __builtin_convertvector(LOWER(value), DOUBLES);
    *(DOUBLES *)(to + LANES / 2) = __builtin_convertvector(UPPER(value), DOUBLES);
#else
    *to = (double)value;
#endif
}

/* In float32 the distance of two finite logits may overflow; the loss is still a finite double. Called while the
 * logits are intact. `mass` is [class][stride] of the row, NULL for a class index. */
#if REAL_BITS == 32
RARE void widen_values(const BLOCK *block, VECTOR max, VECTOR log_sum, const REAL *mass, ptrdiff_t mass_row,
    ptrdiff_t mass_class, int64_t row, int rows)
{
    REAL m[LANES], l[LANES];
    store(m, max), store(l, log_sum);
    for (int lane = 0; lane < rows; lane++) {
        if (!isinf(block->value[row + lane])) continue;
        const REAL *z = row_of(&block->logits, row + lane);
        const ptrdiff_t stride = block->logits.klass;
        if (!mass)
            block->value[row + lane] =
                ((double)m[lane] - (double)z[block->label[row + lane] * stride]) + (double)l[lane];
        else {
            double value = 0;
            for (int64_t c = 0; c < block->job->n_classes; c++) {
                const double u = (double)mass[lane * mass_row + c * mass_class], x = (double)z[c * stride];
                if (u != 0) value += u * ((x == (double)m[lane] ? 0 : (double)m[lane] - x) + (double)l[lane]);
            }
            block->value[row + lane] = value;
        }
    }
}
INLINE int has_infinite(VECTOR v) { return any(equal(absolute(v), broadcast(INFINITY))); }
#endif

/* Labels of LANES rows, in integers as wide as REAL: tiles have fewer than 2^31 classes, so the lower halves will do.
 */
INLINE INTEGERS labels_of(const int64_t *label)
{
    INTEGERS labels;
#if REAL_BITS == 64 || LANES == 1
    memcpy(&labels, label, sizeof labels);
#elif defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    labels = as_integers(SHUFFLE(load((const REAL *)label), load((const REAL *)label + LANES), UNZIP_EVEN, 0));
#else
    INTEGER narrow[LANES];
    for (int lane = 0; lane < LANES; lane++) narrow[lane] = (INTEGER)label[lane];
    memcpy(&labels, narrow, sizeof labels);
#endif
    return labels;
}

/* Stream out a tile of what was staged, but none of the last values, which are not ready to be loaded. */
INLINE void stream_stage(const BLOCK *block, TILE_OUTPUT *output, int64_t rows_done)
{
    enum { BEHIND = 1024 };
    const int64_t n_classes = block->job->n_classes, ready = rows_done * n_classes - BEHIND;
    OUTGOING *outgoing = &output->outgoing;
    if (!block->job->stream || !output->stage || output->array->inner != n_classes || ready < LANES) return;
    if (!outgoing->parts)
        outgoing_begin(outgoing, output->stage, 0, 0, block->rows * n_classes, 1, NULL, row_of(output->array, 0), 0);
    const int64_t gone = outgoing->begun ? outgoing->next - output->stage : 0;
    outgoing_some(outgoing, at_most((ready - gone) / LANES, n_classes));
}

/* The exponentials in place of the logits, and those of the target. */
INLINE void tile_index_exponentials(
    REAL *e, VECTOR m, INTEGERS label, const int64_t n_classes, VECTOR *z_target, VECTOR *e_target)
{
    VECTOR z_label = broadcast(0), e_label = broadcast(0);
    if (UNLIKELY(any(not_finite(m)))) {
        for (int64_t c = 0; c < n_classes; c++)
            z_label = choose(same(label, broadcast_integer((INTEGER)c)), load(e + c * LANES), z_label);
        tile_exponentials(e, e, m, n_classes);
        for (int64_t c = 0; c < n_classes; c++)
            e_label = choose(same(label, broadcast_integer((INTEGER)c)), load(e + c * LANES), e_label);
    } else
#pragma GCC unroll 4
        for (int64_t c = 0; c < n_classes; c++) {
            const MASK is_target = same(label, broadcast_integer((INTEGER)c));
            const VECTOR z = load(e + c * LANES), exponential_c = exponential(z, m);
            z_label = choose(is_target, z, z_label);
            e_label = choose(is_target, exponential_c, e_label);
            store(e + c * LANES, exponential_c);
        }
    *z_target = z_label, *e_target = e_label;
}

NOINLINE void tile_index_hessian(const TILE *tile, const REAL *e, INTEGERS label, int64_t n_classes,
    const SOFTMAX *softmax, VECTOR scaled_inverse, const FOCAL *focal, VECTOR scale)
{
    for (int64_t c = 0; c < n_classes; c++) {
        const MASK is_target = same(label, broadcast_integer((INTEGER)c));
        const VECTOR e_c = load(e + c * LANES);
        store(tile->hess + c * LANES,
            focal ? scale
                    * focal_hessian(softmax, e_c, keep(is_target, focal->mass), keep(is_target, focal->curvature),
                        one_of(focal->mass), one_of(focal->curvature))
                  : hessian(softmax, e_c, scaled_inverse));
    }
}

/* `rows` rows whose tiles lie at e, one after the other. For the fewest classes their number is a constant, so that the
 * loops over them are none. */
INLINE void tile_index(BLOCK *block, TILE *tile, REAL *e, int64_t row, int rows, const int64_t n_classes,
    const int want_grad, const int want_hess, const int focal)
{
    const int64_t size = n_classes * LANES;
    const int tiles = (rows + LANES - 1) / LANES;
    VECTOR max[TILES_TOGETHER], z_target[TILES_TOGETHER], e_target[TILES_TOGETHER];
    SOFTMAX softmax[TILES_TOGETHER];
    for (int t = 0; t < tiles; t++) max[t] = tile_maximum(e + t * size, n_classes);
    for (int t = 0; t < tiles; t++) {
        const INTEGERS label = labels_of(block->label + row + t * LANES);
        tile_index_exponentials(e + t * size, max[t], label, n_classes, &z_target[t], &e_target[t]);
        stream_stage(block, &tile->grad_out, row);
    }
    for (int t = 0; t < tiles; t++)
        softmax[t] = IS_CONSTANT(n_classes) ? tile_softmax_inlined(e + t * size, max[t], n_classes)
                                            : tile_softmax(e + t * size, max[t], n_classes);
    for (int t = 0; t < tiles; t++) {
        const int64_t first = row + t * LANES;
        VECTOR value = index_value(&softmax[t], z_target[t]);
        FOCAL modulated = no_focal();
        if (focal) {
            modulated = focal_of(&softmax[t], e_target[t], value, focus_of(block->job));
            value *= modulated.modulation;
        }
        put_values(block, value, first);
#if REAL_BITS == 32
        if (UNLIKELY(has_infinite(value)))
            widen_values(block, max[t], softmax[t].log_sum, NULL, 0, 0, first, (int)at_most(rows - t * LANES, LANES));
#endif
        if (want_grad && focal) z_target[t] = modulated.mass, max[t] = modulated.curvature; /* which are read no more */
    }
    if (!want_grad) return;
    for (int t = 0; t < tiles; t++) {
        const int64_t first = row + t * LANES;
        const int in_tile = (int)at_most(rows - t * LANES, LANES);
        const INTEGERS label = labels_of(block->label + first);
        const VECTOR scale = load(block->scale + first);
        const VECTOR scaled_inverse = (focal ? scale * z_target[t] : scale) * softmax[t].inverse;
        const VECTOR target_gradient = index_gradient(&softmax[t], e_target[t], scaled_inverse);
        REAL *of_tile = e + t * size;
        if (want_hess) {
            const FOCAL modulated = {broadcast(0), z_target[t], max[t], broadcast(0)};
            tile_index_hessian(
                tile, of_tile, label, n_classes, &softmax[t], scaled_inverse, focal ? &modulated : NULL, scale);
            put_tile(&tile->hess_out, tile->hess, first, in_tile, n_classes);
        }
#pragma GCC unroll 4
        for (int64_t c = 0; c < n_classes; c++)
            store(of_tile + c * LANES,
                choose(same(label, broadcast_integer((INTEGER)c)), target_gradient,
                    load(of_tile + c * LANES) * scaled_inverse));
        put_tile(&tile->grad_out, of_tile, first, in_tile, n_classes);
    }
}

NOINLINE void tile_soft(BLOCK *block, const TILE *tile, int64_t row, int rows, int followed)
{
    const fx_job *job = block->job;
    const int64_t n_classes = job->n_classes;
    REAL *z = tile->z, *mass = tile->mass;
    const int focal = job->task == FX_FOCAL;
    const ptrdiff_t target_row = block->target.inner, target_class = block->target.klass;

    const int from_labels = has_labels(job);
    const INTEGERS label = labels_of(block->label + row);
    if (from_labels)
        ;
    else if (job->target_type == REAL_TYPE)
        load_tile(mass, row_of(&block->target, row), target_row, target_class, rows, n_classes, followed, tile->packed);
    else
        for (int lane = 0; lane < LANES; lane++) {
            if (lane < rows)
                read_reals(
                    &block->target, job->target_type, (row + lane) * target_row, target_class, n_classes, tile->packed);
            for (int64_t c = 0; c < n_classes; c++) mass[c * LANES + lane] = lane < rows ? tile->packed[c] : 0;
        }

    const VECTOR one = broadcast(1), zero = broadcast(0);
    VECTOR uniform = zero;
    if (job->label_smoothing > 0) {
        VECTOR unmasked = zero;
        for (int64_t c = 0; c < n_classes; c++)
            unmasked += choose(equal(load(z + c * LANES), broadcast((REAL)-INFINITY)), zero, one);
        uniform = (REAL)job->label_smoothing / unmasked;
    }
    const VECTOR one_minus_eps = broadcast((REAL)(1 - job->label_smoothing));
    const VECTOR m = tile_maximum(z, n_classes);
    REAL *terms = tile->hess;
    PAIR total_mass = zero_pair(), distances = zero_pair();
    for (int64_t c = 0; c < n_classes; c++) {
        const VECTOR z_c = load(z + c * LANES);
        const VECTOR t = from_labels ? keep(same(label, broadcast_integer((INTEGER)c)), one) : load(mass + c * LANES);
        const VECTOR u = target_mass(z_c, t, broadcast(class_weight(job, c)), one_minus_eps, uniform, (REAL)-INFINITY);
        store(mass + c * LANES, u);
        total_mass = add(total_mass, u);
        distances = add(distances, mass_value(u, z_c, m));
        if (focal) store(tile->distance + c * LANES, -shift(z_c, m));
    }
    const VECTOR distance = total(distances);
    REAL mass_of_lane[LANES];
    store(mass_of_lane, total_mass.high);
    for (int lane = 0; lane < rows; lane++)
        if (mass_of_lane[lane] == 0 && !counts_without_mass(job)) block->weight[row + lane] = 0;

    tile_exponentials(z, z, m, n_classes);
    const SOFTMAX softmax = tile_softmax(z, m, n_classes);
    VECTOR value = total(total_mass) * softmax.log_sum + distance;
    if (focal) {
        const FOCUS focus = focus_of(job);
        for (int64_t c = 0; c < n_classes; c++) {
            const FOCAL one_class =
                focal_of(&softmax, load(z + c * LANES), softmax.log_sum + load(tile->distance + c * LANES), focus);
            const VECTOR u = load(mass + c * LANES);
            store(terms + c * LANES, focal_value(u, &one_class));
            store(mass + c * LANES, without_zero(u, one_class.mass));
            store(tile->curvature + c * LANES, without_zero(u, one_class.curvature));
        }
        value = total(compensated_sum_of(terms, n_classes)) + value_of_nothing(&softmax);
        total_mass = compensated_sum_of(mass, n_classes);
    }
    put_values(block, value, row);
#if REAL_BITS == 32
    if (UNLIKELY(has_infinite(value))) widen_values(block, m, softmax.log_sum, mass, 1, LANES, row, rows);
#endif
    if (!job->grad.data) return;
    const VECTOR scale = load(block->scale + row), scaled_inverse = scale * softmax.inverse;
    const VECTOR scaled_mass = scaled_inverse * total(total_mass);
    const SCALED scaled = scaled_row(&softmax, scaled_inverse);
    PAIR total_curvature = zero_pair();
    if (focal && job->hess.data) total_curvature = compensated_sum_of(tile->curvature, n_classes);
    for (int64_t c = 0; c < n_classes; c++) {
        VECTOR e = load(z + c * LANES);
        if (job->hess.data)
            store(tile->hess + c * LANES,
                focal ? scale
                        * focal_hessian(&softmax, e, load(mass + c * LANES), load(tile->curvature + c * LANES),
                            total_mass, total_curvature)
                      : hessian(&softmax, e, scaled_mass));
        store(z + c * LANES, mass_gradient(&scaled, e * scaled.one, load(mass + c * LANES), total_mass));
    }
    put_tile(&tile->grad_out, z, row, rows, n_classes);
    if (job->hess.data) put_tile(&tile->hess_out, tile->hess, row, rows, n_classes);
}

NOINLINE void tile_activation(BLOCK *block, const TILE *tile, int64_t row, int rows)
{
    const fx_job *job = block->job;
    const int64_t n_classes = job->n_classes;
    REAL *z = tile->z, *e = tile->mass;
    const VECTOR m = tile_maximum(z, n_classes);
    tile_exponentials(e, z, m, n_classes);
    const SOFTMAX softmax = tile_softmax(e, m, n_classes);
    if (job->task == FX_LOGSUMEXP) {
        REAL lanes[LANES];
        store(lanes, log_sum_exp(&softmax));
        for (int lane = 0; lane < rows; lane++) put_loss(block, row + lane, lanes[lane]);
        return;
    }
    if (job->task == FX_SOFTMAX)
        for (int64_t c = 0; c < n_classes; c++) store(e + c * LANES, load(e + c * LANES) * softmax.inverse);
    else
        for (int64_t c = 0; c < n_classes; c++) store(e + c * LANES, shift(load(z + c * LANES), m) - softmax.log_sum);
    put_tile(&tile->grad_out, e, row, rows, n_classes);
}

/* All but the fewest classes share one copy of the code. */
NOINLINE void tile_index_any(BLOCK *block, TILE *tile, REAL *e, int64_t row, int rows)
{
    const fx_job *job = block->job;
    tile_index(block, tile, e, row, rows, job->n_classes, job->grad.data != NULL, job->hess.data != NULL,
        job->task == FX_FOCAL);
}

/* Ask for the logits of the next tile, and for the place of this one's gradient, while this one is computed. Tiles of
 * up to 4 classes are a few lines, and hardware prefetchers do as well. */
enum { FAR_TILE_BYTES = 8192 };
INLINE void prefetch_tile(const BLOCK *block, int64_t row)
{
    const fx_job *job = block->job;
    const ptrdiff_t step = block->logits.inner;
    const int64_t elements = step * LANES, line = 64 / (int64_t)sizeof(REAL);
    if (job->n_classes <= 4 || block->logits.klass != 1 || step < job->n_classes || step > 4 * job->n_classes) return;
    const REAL *next = row_of(&block->logits, row + LANES), *far = next + FAR_TILE_BYTES / sizeof(REAL);
    for (int64_t i = 0; i < elements; i += line) prefetch(next + i), prefetch_far(far + i);
    if (!job->grad.data || job->stream || block->grad.inner != step) return;
    const REAL *grad = row_of(&block->grad, row);
    for (int64_t i = 0; i < elements; i += line) prefetch_to_write(grad + i);
}

/* What is done to a tile that was brought in. */
NOINLINE void compute_any_tile(BLOCK *block, TILE *tile, int64_t row, int rows)
{
    const fx_job *job = block->job;
    if (!is_loss(job)) tile_activation(block, tile, row, rows);
    else if (is_soft(job)) tile_soft(block, tile, row, rows, row + LANES < block->rows);
    else tile_index_any(block, tile, tile->z, row, rows);
}

static void compute_tiles(BLOCK *block, REAL *scratch)
{
    const fx_job *job = block->job;
    const int index = job->task == FX_CROSS_ENTROPY && !is_soft(job) && !job->hess.data;
    TILE tile;
    tile_scratch(job, &block->grad, &block->hess, scratch, &tile);
    const int64_t together = index || (is_loss(job) && !is_soft(job)) ? tiles_together(job) : 1;
    for (int64_t row = 0; row < block->rows; row += together * LANES) {
        const int rows = (int)at_most(block->rows - row, together * LANES);
        for (int64_t t = 0; t * LANES < rows; t++) {
            const int64_t first = row + t * LANES;
            prefetch_tile(block, first);
            load_tile(tile.z + t * job->n_classes * LANES, row_of(&block->logits, first), block->logits.inner,
                block->logits.klass, (int)at_most(block->rows - first, LANES), job->n_classes,
                first + LANES < block->rows, tile.packed);
        }
        if (index && job->n_classes == 2) tile_index(block, &tile, tile.z, row, rows, 2, job->grad.data != NULL, 0, 0);
        else if (index && job->n_classes == 3)
            tile_index(block, &tile, tile.z, row, rows, 3, job->grad.data != NULL, 0, 0);
        else {
            compute_any_tile(block, &tile, row, rows);
            stream_stage(block, &tile.grad_out, row);
        }
    }
    flush_stage(block, &tile.grad_out);
    flush_stage(block, &tile.hess_out);
}

#endif
