/* Many classes whose axis is not the last in memory: neighbouring rows are neighbours in memory, and each class is
 * another page. Lanes are rows, as in tiles, but a tile alone would touch all those pages for 64 bytes of each.
 *
 * Class indices of the cross-entropy go by runs of neighbouring rows:
 *
 * 1. By chunks of WIDE_CHUNK classes, the largest logit of each row so far, m_j; the exponentials relative to it, which
 * are kept; and their sum without the largest of all so far, others_j. Meanwhile what comes next is fetched. 2. Row by
 * row, others = sum of others_j exp(m_j - m), and what follows from it (formulas.h). 3. Class by class, the gradient:
 * the kept exponentials times a factor of the row and the chunk. It goes out while the exponentials of the next run are
 * taken, a chunk before they overwrite it.
 *
 * So logits are read from memory once, exponentials are taken once, and each term is rescaled once, however the maximum
 * grows. What a row gets does not depend on the run that it is in.
 *
 * Everything else goes by tiles, some side by side.
 */
#ifndef FASTXENT_WIDE_H
#define FASTXENT_WIDE_H

#include "tile.h"

enum {
    WIDE_FROM = 17, /* classes */
    WIDE_CHUNK = 16,
    WIDE_RUN_BYTES = 640 * 1024,   /* of a run's arrays: less than half of the second-level cache */
    WIDE_CLASS_BYTES = 288 * 1024, /* of a vector a class: three of them, and two threads, stay below 2 MB */
    MOST_ROWS_OF_RUN = 256,
    WIDE_BLOCK_ELEMENTS = 1 << 18,
    FEWEST_ROWS_OF_BLOCK = 1024,
    MOST_ROWS_OF_BLOCK = 4096,
    FEWEST_BLOCKS = 16,
    ROWS_AHEAD = 256 / sizeof(REAL), /* fetched */
    TILES_FROM = 33,
    TILES_BYTES = 1024 * 1024,
    MOST_TILES = 8
};

/* A run after its last class, and the way of its results to memory. Arrays of rows are [padded]. */
typedef struct {
    REAL *max;     /* [chunk][padded] of the classes so far; later the factors of the gradient */
    REAL *rescale; /* [chunk][padded] exp(max - that of the row), for the Hessian */
    REAL *target_gradient, *scaled_inverse, *others, *sum, *inverse;
    INTEGER *label;
    REAL *grad, *hess; /* where the rows begin */
    int64_t rows;
    int is_first, is_last; /* of the block */
    int64_t c, end, at;    /* classes c .. end - 1 may go out, that of c from row `at` on */
} WIDE_RUN;

typedef struct {
    REAL *kept;              /* [class][padded] exponentials; if there is no gradient, of one chunk */
    REAL *others, *z_target; /* [chunk][padded], [padded] */
    REAL *carried;           /* [class][LANES] the beginning of a line of the gradient */
    WIDE_RUN run, before;
    int64_t padded, n_chunks;
} WIDE_ROWS;

INLINE int rows_are_lanes(const fx_job *job)
{
    const int outputs_too = (!job->grad.data || job->grad.inner == 1) && (!job->hess.data || job->hess.inner == 1);
    return job->regime == FX_TILE && job->logits.inner == 1 && outputs_too && LANES > 1 && !is_half(job->real_type);
}
INLINE int is_wide(const fx_job *job)
{
    return rows_are_lanes(job) && job->task == FX_CROSS_ENTROPY && !is_soft(job) && job->n_classes >= WIDE_FROM
        && job->n_inner >= LANES && job->n_classes * LANES * (int64_t)sizeof(REAL) <= WIDE_CLASS_BYTES;
}

/* ---- runs ---- */

INLINE int64_t chunks_of(const fx_job *job) { return (job->n_classes + WIDE_CHUNK - 1) / WIDE_CHUNK; }

RARE int64_t rows_of_run(const fx_job *job)
{
    const int64_t arrays = (job->grad.data ? job->n_classes : WIDE_CHUNK) + chunks_of(job) * (job->hess.data ? 5 : 3);
    const int64_t rows = at_most(WIDE_RUN_BYTES / (arrays * (int64_t)sizeof(REAL)), MOST_ROWS_OF_RUN) / LANES * LANES;
    return rows > 2 * LANES ? rows : 2 * LANES;
}

/* Blocks of many runs, since the first and the last of them wait; but enough blocks for as many threads. */
RARE int64_t rows_of_wide_block(const fx_job *job)
{
    int64_t most = at_most(WIDE_BLOCK_ELEMENTS / job->n_classes, MOST_ROWS_OF_BLOCK);
    if (most < FEWEST_ROWS_OF_BLOCK) most = FEWEST_ROWS_OF_BLOCK;
    most = at_most(most, job->n_outer * job->n_inner / FEWEST_BLOCKS);
    if (most < rows_of_run(job)) most = rows_of_run(job);
    const int64_t blocks = (job->n_inner + most - 1) / most;
    int64_t rows = round_up((job->n_inner + blocks - 1) / blocks, LANES);
    while (job->n_inner % rows && job->n_inner % rows < LANES) rows += LANES; /* the last block needs a vector too */
    return rows;
}

RARE size_t wide_scratch(const fx_job *job, REAL *scratch, WIDE_ROWS *wide)
{
    const int64_t padded = wide->padded = rows_of_run(job), by_chunk = padded * chunks_of(job);
    WIDE_RUN *runs[] = {&wide->run, &wide->before};
    REAL *next = scratch;
    wide->n_chunks = chunks_of(job);
    wide->carried = next, next += job->stream ? job->n_classes * LANES : 0;
    wide->z_target = next, next += padded; /* not `kept`: there must be something before that */
    wide->kept = next, next += padded * (job->grad.data ? job->n_classes : WIDE_CHUNK);
    wide->others = next, next += by_chunk;
    for (int k = 0; k < COUNT(runs); k++) {
        WIDE_RUN *run = runs[k];
        REAL **of_row[] = {&run->target_gradient, &run->scaled_inverse, &run->others, &run->sum, &run->inverse};
        for (int i = 0; i < COUNT(of_row); i++) *of_row[i] = next, next += padded;
        run->label = (INTEGER *)next, next += padded;
        run->max = next, next += by_chunk;
        run->rescale = next, next += job->hess.data ? by_chunk : 0;
        run->c = run->end = 0;
    }
    return (size_t)(next - scratch) * sizeof(REAL);
}

/* For all vectors of a run, which has LANES rows or more: the last overlaps the one before, so that all are whole. */
#define FOR_ROWS(i, rows) \
    for (int64_t next_##i = 0, i = 0; next_##i < (rows) && (i = at_most(next_##i, (rows) - LANES), 1); \
        next_##i += LANES)

INLINE VECTOR wide_gradient(const WIDE_RUN *run, const REAL *e, const REAL *factor, INTEGERS c, int64_t i)
{
    INTEGERS label;
    memcpy(&label, run->label + i, sizeof label);
    return choose(same(label, c), load(run->target_gradient + i), load(e + i) * load(factor + i));
}

RARE void put_wide_hessian(const BLOCK *block, const WIDE_ROWS *wide, const WIDE_RUN *run)
{
    REAL *out = run->hess + run->c * block->hess.klass;
    const REAL *e = wide->kept + run->c * wide->padded, *rescale = run->rescale + run->c / WIDE_CHUNK * wide->padded;
    FOR_ROWS(i, run->rows)
    {
        SOFTMAX softmax;
        softmax.others = load(run->others + i), softmax.sum = load(run->sum + i);
        softmax.inverse = load(run->inverse + i);
        store(out + i, hessian(&softmax, load(e + i) * load(rescale + i), load(run->scaled_inverse + i)));
    }
}

enum { ALL_OF_IT = 1 << 30 };

/* Put out about `most` vectors of what may go. Streamed, the gradient goes by whole lines: the beginning of one that
 * the next run completes is carried over to it. An ordinary store would wait for the line from memory, and all later
 * ones with it. */
NOINLINE void put_wide(const BLOCK *block, const WIDE_ROWS *wide, WIDE_RUN *run, int64_t most)
{
    static const REAL lane_number[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const int stream = block->job->stream;
    while (most > 0 && run->c < run->end) {
        const int64_t c = run->c, rows = run->rows, end = at_most(run->at + most * LANES, rows);
        const INTEGERS this_class = broadcast_integer((INTEGER)c);
        const REAL *e = wide->kept + c * wide->padded, *factor = run->max + c / WIDE_CHUNK * wide->padded;
        REAL *out = run->grad + c * block->grad.klass, *carried = wide->carried + c * LANES;
        const int64_t in_line = (int64_t)((uintptr_t)out % (VECTOR_BYTES + !VECTOR_BYTES) / sizeof(REAL));
        int64_t i = run->at;
        if (stream && i == 0 && in_line) {
            i = LANES - in_line;
            if (run->is_first) store_first(out, wide_gradient(run, e, factor, this_class, 0), (int)i);
            else
                stream_store(out - in_line,
                    choose(less(load(lane_number), broadcast((REAL)in_line)), load(carried),
                        wide_gradient(run, e, factor, this_class, -in_line)));
        }
        most -= (end - i) / LANES;
        if (stream)
            for (; i + LANES <= end; i += LANES) stream_store(out + i, wide_gradient(run, e, factor, this_class, i));
        else
            for (; i + LANES <= end; i += LANES) {
                prefetch_to_write(out + 2 * block->grad.klass + i);
                store(out + i, wide_gradient(run, e, factor, this_class, i));
            }
        run->at = i;
        if (i + LANES <= rows) return;
        if (i < rows) {
            const VECTOR last = wide_gradient(run, e, factor, this_class, i);
            if (run->is_last || !stream) store_first(out + i, last, (int)(rows - i));
            else store(carried, last);
        }
        if (block->hess.data) put_wide_hessian(block, wide, run);
        run->c++;
        run->at = 0;
    }
}

/* The sum of n vectors of exponentials that are below 1. */
NOINLINE VECTOR kept_below_one(const REAL *e, ptrdiff_t stride, int64_t n)
{
    VECTOR sum = broadcast(0);
    int64_t c = 0;
    for (; c + 4 <= n; c += 4, e += 4 * stride)
        sum += (below_one(e) + below_one(e + stride)) + (below_one(e + 2 * stride) + below_one(e + 3 * stride));
    for (; c < n; c++, e += stride) sum += below_one(e);
    return sum;
}

/* Where it is not taken often. */
NOINLINE VECTOR exponential_of(VECTOR z, VECTOR m) { return exponential_any(z, m); }

/* n classes of a run. `max` and `others` are those of this chunk, `before` the maxima of the chunk before, NULL at the
 * first; `next` is where the chunk begins that will be read after this one. */
INLINE void wide_chunk(const BLOCK *block, WIDE_ROWS *wide, const REAL *z, const REAL *next, REAL *RESTRICT kept,
    int64_t n, const REAL *before, REAL *RESTRICT max, REAL *RESTRICT others)
{
    const int64_t rows = wide->run.rows;
    const ptrdiff_t stride = block->logits.klass, kept_stride = wide->padded;
    FOR_ROWS(i, rows)
    {
        const VECTOR lowest = broadcast((REAL)-INFINITY), old = before ? load(before + i) : lowest;
        const REAL *ahead = i + ROWS_AHEAD < rows ? z + i + ROWS_AHEAD : next + (i + ROWS_AHEAD - rows);
        VECTOR m = old, sums[4] = {broadcast(0), broadcast(0), broadcast(0), broadcast(0)};
        put_wide(block, wide, &wide->before, n);
#pragma GCC unroll 4
        for (int64_t c = 0; c < n; c++) m = maximum(load(z + c * stride + i), m);
        store(max + i, m);
        const int finite = !any(not_finite(m));
        for (int64_t c = 0; c < n; c++) {
            const VECTOR z_c = load(z + c * stride + i);
            const VECTOR e = UNLIKELY(!finite) ? exponential_of(z_c, m) : exponential(z_c, m);
            prefetch(ahead + c * stride);
            store(kept + c * kept_stride + i, e);
            const VECTOR sum = sums[0] + e;
            sums[0] = sums[1], sums[1] = sums[2], sums[2] = sums[3], sums[3] = sum;
        }
        const VECTOR all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        /* Where the maximum is new, it is the one to leave out, and that of before counts from now on. */
        const MASK grew = less(old, m);
        VECTOR rest = all;
        if (any(grew)) {
            const VECTOR few = kept_below_one(kept + i, kept_stride, n);
            const VECTOR below = choose(less(all, broadcast(2)), few, all - (REAL)1);
            rest = choose(grew, before ? below + exponential_of(old, m) : below, all);
        }
        store(others + i, rest);
    }
}

/* What follows from the sums: losses, and the factors of the gradient. `first` is the run's first row in the block. */
NOINLINE void finish_run(const BLOCK *block, const WIDE_ROWS *wide, int64_t first)
{
    const int64_t padded = wide->padded, n_chunks = wide->n_chunks;
    const WIDE_RUN *run = &wide->run;
    for (int64_t i = 0; i < run->rows; i++) {
        run->label[i] = (INTEGER)block->label[first + i];
        wide->z_target[i] = row_of(&block->logits, first + i)[block->label[first + i] * block->logits.klass];
    }
    for (int64_t i = 0; i < run->rows; i += LANES) { /* past the last row is anything */
        REAL *factor = run->max + i;
        const VECTOR m = load(factor + (n_chunks - 1) * padded), z_target = load(wide->z_target + i);
        VECTOR below = load(wide->others + i);
        if (n_chunks == 1) store(factor, broadcast(1));
        else {
            PAIR others = zero_pair();
            for (int64_t j = 0; j < n_chunks; j++) {
                const VECTOR m_j = load(factor + j * padded), f = exponential_of(m_j, m);
                others = add(others, load(wide->others + j * padded + i) * f);
                store(factor + j * padded, f);
            }
            below = total(others);
        }
        const VECTOR all = choose(equal(m, broadcast((REAL)-INFINITY)), broadcast(0), below + (REAL)1);
        const SOFTMAX softmax = softmax_of(m, all, below);
        const VECTOR value = index_value(&softmax, z_target), e_target = exponential_of(z_target, m);
        put_values(block, value, first + i);
#if REAL_BITS == 32
        if (UNLIKELY(has_infinite(value)))
            widen_values(block, m, softmax.log_sum, NULL, 0, 0, first + i, (int)at_most(run->rows - i, LANES));
#endif
        if (!block->grad.data) continue;
        const VECTOR scaled_inverse = load(block->scale + first + i) * softmax.inverse;
        store(run->target_gradient + i, index_gradient(&softmax, e_target, scaled_inverse));
        store(run->scaled_inverse + i, scaled_inverse), store(run->others + i, softmax.others);
        store(run->sum + i, softmax.sum), store(run->inverse + i, softmax.inverse);
        for (int64_t j = 0; j < n_chunks; j++) {
            const VECTOR f = load(factor + j * padded);
            if (block->hess.data) store(run->rescale + j * padded + i, f);
            store(factor + j * padded, f * scaled_inverse);
        }
    }
}

static void compute_wide(BLOCK *block, REAL *scratch)
{
    const fx_job *job = block->job;
    const int64_t n_classes = job->n_classes;
    const ptrdiff_t stride = block->logits.klass;
    const fx_array *aligned = job->grad.data ? &block->grad : &block->logits;
    WIDE_ROWS wide;
    WIDE_RUN *run = &wide.run, *before = &wide.before;
    wide_scratch(job, scratch, &wide);
    /* Where all classes begin alike in a line, all runs but the first begin with one. */
    const int64_t begin = (int64_t)((uintptr_t)aligned->data % (VECTOR_BYTES + !VECTOR_BYTES) / sizeof(REAL));
    const int64_t in_line = wide.padded < 3 * LANES ? 0 : begin;
    for (int64_t first = 0; first < block->rows; first += before->rows) {
        const int64_t left = block->rows - first, rows = at_most(left, wide.padded - (first ? 0 : in_line));
        run->rows = left > rows && left - rows < LANES ? left - LANES : rows;
        run->is_first = first == 0, run->is_last = run->rows == left;
        if (job->grad.data) run->grad = row_of(&block->grad, first);
        if (job->hess.data) run->hess = row_of(&block->hess, first);
        for (int64_t j = 0; j < wide.n_chunks; j++) {
            const int64_t c = j * WIDE_CHUNK, n = at_most(n_classes - c, WIDE_CHUNK), here = j * wide.padded;
            const REAL *z = row_of(&block->logits, first) + c * stride;
            const REAL *after = row_of(&block->logits, first + run->rows);
            const REAL *next = j + 1 < wide.n_chunks ? z + WIDE_CHUNK * stride : after;
            /* What this chunk overwrites must have gone before, so it is the next one that goes out meanwhile. */
            before->end = first && job->grad.data ? c + n : 0;
            put_wide(block, &wide, before, ALL_OF_IT);
            before->end = before->end ? at_most(c + 2 * WIDE_CHUNK, n_classes) : 0;
            wide_chunk(block, &wide, z, next, wide.kept + (job->grad.data ? c * wide.padded : 0), n,
                j ? run->max + here - wide.padded : NULL, run->max + here, wide.others + here);
        }
        finish_run(block, &wide, first);
        const WIDE_RUN done = *run;
        *run = *before;
        *before = done;
        before->c = before->at = 0;
    }
    before->end = job->grad.data ? n_classes : 0;
    put_wide(block, &wide, before, ALL_OF_IT);
}

/* ---- tiles side by side ---- */

RARE int64_t tiles_side_by_side(const fx_job *job)
{
    const int64_t bytes = job->n_classes * LANES * (int64_t)sizeof(REAL);
    if (!rows_are_lanes(job) || is_wide(job) || job->n_classes < TILES_FROM) return 1;
    return 2 * bytes <= TILES_BYTES ? at_most(TILES_BYTES / bytes, MOST_TILES) : 1;
}

RARE void copy_tiles(REAL *to, ptrdiff_t to_class, ptrdiff_t to_tile, const REAL *from, ptrdiff_t from_class,
    ptrdiff_t from_tile, int64_t n_classes, int64_t tiles)
{
    for (int64_t c = 0; c < n_classes; c++)
        for (int64_t t = 0; t < tiles; t++)
            store(to + c * to_class + t * to_tile, load(from + c * from_class + t * from_tile));
}

static void compute_tiles_side_by_side(BLOCK *block, REAL *scratch)
{
    const fx_job *job = block->job;
    const int64_t size = job->n_classes * LANES;
    TILE tile;
    tile_scratch(job, &block->grad, &block->hess, scratch, &tile);
    const int64_t tiles = block->rows / LANES, rest = block->rows % LANES;
    copy_tiles(tile.z, LANES, size, row_of(&block->logits, 0), block->logits.klass, LANES, job->n_classes, tiles);
    for (int64_t t = 0; t < tiles; t++) {
        TILE one = tile;
        one.z += t * size;
        if (job->hess.data) one.hess += t * size;
        one.grad_out.later = one.z, one.hess_out.later = one.hess;
        compute_any_tile(block, &one, t * LANES, LANES);
    }
    if (job->grad.data)
        copy_tiles(row_of(&block->grad, 0), block->grad.klass, LANES, tile.z, LANES, size, job->n_classes, tiles);
    if (job->hess.data)
        copy_tiles(row_of(&block->hess, 0), block->hess.klass, LANES, tile.hess, LANES, size, job->n_classes, tiles);
    if (rest) {
        load_tile(tile.z, row_of(&block->logits, tiles * LANES), 1, block->logits.klass, (int)rest, job->n_classes, 0,
            tile.packed);
        compute_any_tile(block, &tile, tiles * LANES, (int)rest);
    }
}

#endif
