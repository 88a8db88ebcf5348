/* The kernels of one dtype at one instruction-set level: included by each isa/<level>_<dtype>.c, which defines
 * LEVEL_NAME, TABLE, REAL_BITS and VECTOR_BYTES behind its target pragma. Put code here only if it must be compiled
 * once per level. Everything is static except the table, and is built without link-time optimization, so that no code
 * of one level can end up in another.
 */
#include "plain_rows.h"

/* Thresholds, measured on an AVX-512 machine (benchmarks/NOTES.md). */
enum {
    FEW_CLASSES = LANES == 1 ? 0 : REAL_BITS == 32 ? 32 : 24, /* up to here tiles beat rows although classes are contiguous */
    TILE_BYTES = 2 * 1024 * 1024,        /* largest tile: the second-level cache */
    BLOCK_ELEMENTS = 32768,              /* logits per block of rows */
    TILE_BLOCK_ELEMENTS = 4096           /* of tiles, whose gradients are staged in the first-level cache */
};

static int classes_are_contiguous(const fx_job *job)
{
    const fx_array *arrays[] = {&job->logits, &job->grad, &job->hess};
    for (int i = 0; i < COUNT(arrays); i++)
        if (arrays[i]->data && arrays[i]->klass != 1 && job->n_classes > 1) return 0;
    return 1;
}

static int rows_are_neighbours(const fx_job *job)
{
    return job->logits.inner == 1 || (job->grad.data && job->grad.inner == 1);
}

static int regime_of(const fx_job *job)
{
    const int64_t tile_bytes = job->n_classes * LANES * (int64_t)sizeof(REAL);
    if (job->inputs != FX_LOGITS) return FX_PLAIN_ROWS;
    if (job->n_classes <= FEW_CLASSES) return FX_TILE;
    if (classes_are_contiguous(job)) return job->n_classes <= CHUNK ? FX_ROWS : FX_LONG_ROWS;
    return rows_are_neighbours(job) && tile_bytes <= TILE_BYTES ? FX_TILE : FX_LONG_ROWS;
}

/* A block's own arrays come first in its scratch memory. */
static size_t row_arrays(const fx_job *job, char *memory, BLOCK *block)
{
    const size_t rows = (size_t)padded_rows(job->rows_per_block);
    if (block) {
        block->label = (int64_t *)memory;
        block->weight = (double *)(block->label + rows);
        block->value = block->weight + rows;
        block->scale = (REAL *)(block->value + rows);
    }
    return rows * (sizeof(int64_t) + 2 * sizeof(double)) + (size_t)round_up((int64_t)(rows * sizeof(REAL)), FX_ALIGNMENT);
}

static void plan(fx_job *job)
{
    const int64_t output_bytes = job->n_outer * job->n_inner * job->n_classes * (int64_t)sizeof(REAL);
    job->regime = regime_of(job);
    /* In place the lines are in the cache already. */
    job->stream = VECTOR_BYTES > 0 && job->grad.data && job->grad.data != job->logits.data && output_bytes >= fx_stream_bytes;

    int64_t rows = (job->regime == FX_TILE ? TILE_BLOCK_ELEMENTS : BLOCK_ELEMENTS) / job->n_classes;
    if (rows > MAXIMAL_ROWS_PER_BLOCK) rows = MAXIMAL_ROWS_PER_BLOCK;
    if (job->regime == FX_TILE || rows >= LANES) rows = rows < LANES ? LANES : rows / LANES * LANES;
    job->rows_per_block = rows > 1 ? rows : 1;
    job->n_blocks_per_outer = (job->n_inner + job->rows_per_block - 1) / job->rows_per_block;
    job->n_blocks = job->n_outer * job->n_blocks_per_outer;

    TILE tile;
    ROWS group;
    LONG_ROW long_row;
    job->scratch_bytes = row_arrays(job, NULL, NULL)
        + (job->regime == FX_TILE ? tile_scratch(job, NULL, &tile)
           : job->regime == FX_ROWS ? rows_scratch(job, NULL, &group) : long_row_scratch(job, NULL, &long_row));
    job->scratch_bytes = (size_t)round_up((int64_t)job->scratch_bytes, FX_ALIGNMENT);
}

static double compute(const fx_job *job, int64_t number, void *scratch)
{
    BLOCK block = block_of(job, number);
    REAL *memory = (REAL *)((char *)scratch + row_arrays(job, scratch, &block));
    const int loss = job->task == FX_CROSS_ENTROPY;
    if (loss) prepare(&block);
    switch (job->regime) {
    case FX_TILE: compute_tiles(&block, memory); break;
    case FX_ROWS: compute_rows(&block, memory); break;
    case FX_LONG_ROWS: compute_long_rows(&block, memory); break;
    default: compute_plain_rows(&block, memory);
    }
    if (job->stream) stream_fence();
    return loss ? finish(&block) : 0;
}

static void elementary(int which, const void *x, void *y, int64_t n)
{
    const REAL *from = (const REAL *)x;
    REAL *to = (REAL *)y;
    for (int64_t i = 0; i < n; i += LANES) {
        VECTOR v = load_up_to(from + i, n - i, 0);
        const VECTOR u = (REAL)1 + v;
        store_up_to(to + i, which == 0 ? exp_nonpositive(v) : log1p_nonnegative(v, u, (REAL)1 / u), n - i);
    }
}

const fx_table TABLE = {LEVEL_NAME, LANES, plan, survey, compute, elementary};
