/* The kernels of one dtype at one instruction-set level: included by each isa/<level>_<dtype>.c, which defines
 * LEVEL_NAME, TABLE, REAL_BITS and VECTOR_BYTES behind its target pragma. Put code here only if it must be compiled
 * once per level. Everything is static except the table, and is built without link-time optimization, so that no code
 * of one level can end up in another.
 */
#include "elements.h"
#include "plain_rows.h"
#include "short_rows.h"
#include "wide.h"

/* Thresholds, measured on an AVX-512 machine (benchmarks/NOTES.md). */
enum {
    FEW_CLASSES = LANES == 1 ? 0
        : REAL_BITS == 32    ? 32
                             : 24, /* up to here tiles beat rows although classes are contiguous */
    /* From here on short rows beat tiles for class indices. */
    SHORT_FROM = REAL_BITS == 32 ? (LANES == 16         ? 16
                                           : LANES == 8 ? 22
                                                        : 11)
        : LANES == 8             ? 14
        : LANES == 4             ? 22
                                 : 8,
    TILE_BYTES = 2 * 1024 * 1024, /* largest tile: the second-level cache */
    BLOCK_ELEMENTS = 32768,       /* logits per block of rows */
    LONG_ROWS_PER_BLOCK = 8,
    LEAST_BLOCKS = 32,          /* of long rows: enough for as many threads */
    COPY_BLOCK_ELEMENTS = 8192, /* the same where the block is copied first */
    TILE_BLOCK_ELEMENTS = 4096  /* of tiles, whose gradients are staged in the first-level cache */
};

static int classes_are_contiguous(const fx_job *job)
{
    const fx_array *arrays[] = {&job->logits, &job->grad, &job->hess};
    for (int i = 0; i < COUNT(arrays); i++)
        if (arrays[i]->data && arrays[i]->klass != 1 && job->n_classes > 1) return 0;
    return 1;
}

static int rows_are_neighbours(const fx_job *job)
{ return job->logits.inner == 1 || (job->grad.data && job->grad.inner == 1); }

static int regime_of(const fx_job *job)
{
    const int64_t tile_bytes = job->n_classes * LANES * (int64_t)sizeof(REAL);
    if (is_elementwise(job)) return FX_ELEMENTS;
    if (job->inputs != FX_LOGITS) return FX_PLAIN_ROWS;
    /* Halves may lie as they like, since the kernels see a copy of the block. */
    const int is_contiguous = classes_are_contiguous(job) || (is_half(job->real_type) && !rows_are_neighbours(job));
    if (LANES > 1 && is_loss(job) && !is_soft(job) && is_contiguous && job->n_classes >= SHORT_FROM
        && job->n_classes <= SHORT_VECTORS * LANES && tile_bytes <= SHORT_BYTES)
        return FX_SHORT_ROWS;
    if (job->n_classes <= FEW_CLASSES) return FX_TILE;
    if (is_contiguous && job->n_classes <= CHUNK) return FX_ROWS;
    if (classes_are_contiguous(job)) return FX_LONG_ROWS;
    return rows_are_neighbours(job) && tile_bytes <= TILE_BYTES ? FX_TILE : FX_LONG_ROWS;
}

/* ---- copies of a block ----
 *
 * Tiles and rows of halves work on a float copy of the block; long and plain rows take theirs in chunks. */

static int is_copied(const fx_job *job)
{
    return is_half(job->real_type)
        && (job->regime == FX_TILE || job->regime == FX_SHORT_ROWS || job->regime == FX_ROWS);
}

static int64_t rows_of_block(const fx_job *job)
{
    const int64_t elements = job->regime == FX_TILE ? TILE_BLOCK_ELEMENTS
        : is_copied(job)                            ? COPY_BLOCK_ELEMENTS
                                                    : BLOCK_ELEMENTS;
    if (is_wide(job)) return rows_of_wide_block(job);
    if (tiles_side_by_side(job) > 1) return tiles_side_by_side(job) * LANES;
    int64_t rows = at_most(elements / job->n_classes, MAXIMAL_ROWS_PER_BLOCK);
    /* Where rows go out while the next is computed, the first and the last of a block wait. Longer rows do not go out
     * later, and eight of them would keep Ctrl-C waiting. */
    if (job->regime == FX_LONG_ROWS && job->stream && rows < LONG_ROWS_PER_BLOCK
        && job->n_classes <= KEPT_BYTES / 2 / (int64_t)sizeof(REAL))
        rows = at_most(LONG_ROWS_PER_BLOCK, job->n_inner / LEAST_BLOCKS);
    if (job->regime == FX_TILE || rows >= LANES) rows = rows < LANES ? LANES : rows / LANES * LANES;
    return rows > 1 ? rows : 1;
}

/* The strides of the copy of an array. */
RARE fx_array copy_strides(const fx_job *job, const fx_array *array)
{
    const int by_class = job->regime == FX_TILE && rows_are_neighbours(job);
    fx_array copy = {
        array->data, 0, by_class ? 1 : job->n_classes, by_class ? round_up(job->rows_per_block, LANES) : 1};
    return copy;
}

/* Room for logits, which become the gradient, and for the Hessian. */
static size_t copy_bytes(const fx_job *job)
{
    const int64_t reals =
        round_up((round_up(job->rows_per_block, LANES) + LANES) * job->n_classes, 64 / (int64_t)sizeof(REAL));
    return is_copied(job) ? (size_t)reals * sizeof(REAL) * (job->hess.data ? 2 : 1) : 0;
}

/* Between an array of halves and its copy, along the axis that has no gaps in both. */
static void copy_block(const BLOCK *block, const fx_array *halves, const fx_array *reals, int back)
{
    const fx_job *job = block->job;
    int64_t runs = block->rows, n = job->n_classes;
    ptrdiff_t run_step = halves->inner, step = halves->klass, real_step = reals->inner;
    if (reals->klass != 1)
        runs = job->n_classes, n = block->rows, run_step = halves->klass, step = halves->inner,
        real_step = reals->klass;
    if (run_step == n * step && real_step == n) n *= runs, runs = 1;
    for (int64_t i = 0; i < runs; i++) {
        REAL *real = (REAL *)reals->data + i * real_step;
        if (back) write_reals(halves, job->real_type, i * run_step, step, n, real);
        else read_reals(halves, job->real_type, i * run_step, step, n, real);
    }
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
    return rows * (sizeof(int64_t) + 2 * sizeof(double))
        + (size_t)round_up((int64_t)(rows * sizeof(REAL)), FX_ALIGNMENT);
}

RARE void plan(fx_job *job)
{
    const int64_t output_bytes = job->n_outer * job->n_inner * job->n_classes * (int64_t)sizeof(REAL);
    job->regime = regime_of(job);
    /* In place the lines are in the cache already. Short rows with gaps begin and end with ordinary stores, for which
     * all others would wait. */
    const int has_gaps = job->regime == FX_SHORT_ROWS && job->grad.inner != job->n_classes;
    job->stream = VECTOR_BYTES > 0 && job->grad.data && job->grad.data != job->logits.data
        && output_bytes >= fx_stream_bytes && !is_half(job->real_type) && tiles_side_by_side(job) == 1 && !has_gaps;
    if (job->regime == FX_ELEMENTS) {
        plan_elements(job);
        return;
    }

    job->rows_per_block = rows_of_block(job);
    job->n_blocks_per_outer = (job->n_inner + job->rows_per_block - 1) / job->rows_per_block;
    job->n_blocks = job->n_outer * job->n_blocks_per_outer;

    const fx_array grad = is_copied(job) ? copy_strides(job, &job->grad) : job->grad;
    const fx_array hess = is_copied(job) ? copy_strides(job, &job->hess) : job->hess;
    TILE tile;
    SHORT_ROWS short_rows;
    WIDE_ROWS wide;
    ROWS group;
    LONG_ROW long_row;
    job->scratch_bytes = row_arrays(job, NULL, NULL) + copy_bytes(job)
        + (is_wide(job)                        ? wide_scratch(job, NULL, &wide)
                : job->regime == FX_TILE       ? tile_scratch(job, &grad, &hess, NULL, &tile)
                : job->regime == FX_SHORT_ROWS ? short_rows_scratch(job, NULL, &short_rows)
                : job->regime == FX_ROWS       ? rows_scratch(job, NULL, &group)
                                               : long_row_scratch(job, NULL, &long_row));
    job->scratch_bytes = (size_t)round_up((int64_t)job->scratch_bytes, FX_ALIGNMENT);
}

static double survey(const fx_job *job, int64_t number, int *flaws)
{ return is_elementwise(job) ? survey_elements(job, number, flaws) : survey_rows(job, number, flaws); }

static double compute(const fx_job *job, int64_t number, void *scratch)
{
    if (job->regime == FX_ELEMENTS) {
        const double sum = compute_elements(job, number, (REAL *)scratch);
        if (job->stream) stream_fence();
        return sum;
    }
    BLOCK block = block_of(job, number);
    const BLOCK halves = block;
    char *memory = (char *)scratch + row_arrays(job, scratch, &block);
    if (is_copied(job)) {
        block.logits = copy_strides(job, &block.logits);
        block.logits.data = memory;
        copy_block(&block, &halves.logits, &block.logits, 0);
        if (block.grad.data) block.grad = block.logits;
        if (block.hess.data) block.hess = block.logits, block.hess.data = memory + copy_bytes(job) / 2;
        block.type = REAL_TYPE;
        memory += copy_bytes(job);
    }
    if (is_loss(job)) prepare(&block);
    switch (job->regime) {
    case FX_TILE:
        if (is_wide(job)) compute_wide(&block, (REAL *)memory);
        else if (tiles_side_by_side(job) > 1) compute_tiles_side_by_side(&block, (REAL *)memory);
        else compute_tiles(&block, (REAL *)memory);
        break;
    case FX_SHORT_ROWS: compute_short_rows(&block, (REAL *)memory); break;
    case FX_ROWS: compute_rows(&block, (REAL *)memory); break;
    case FX_LONG_ROWS: compute_long_rows(&block, (REAL *)memory); break;
    default: compute_plain_rows(&block, (REAL *)memory);
    }
    if (job->stream) stream_fence();
    const double sum = is_loss(job) ? finish(&block) : 0;
    if (is_copied(job) && block.grad.data) copy_block(&block, &halves.grad, &block.grad, 1);
    if (is_copied(job) && block.hess.data) copy_block(&block, &halves.hess, &block.hess, 1);
    return sum;
}

RARE void elementary(int which, const void *x, void *y, int64_t n)
{
    const REAL *from = (const REAL *)x;
    REAL *to = (REAL *)y;
    for (int64_t i = 0; i < n; i += LANES) {
        const VECTOR v = load_up_to(from + i, n - i, 0), u = (REAL)1 + v;
        store_up_to(to + i,
            which == 0       ? exp_nonpositive(v)
                : which == 1 ? log1p_nonnegative(v, u, (REAL)1 / u)
                : which == 2 ? log1p_of_fraction(v)
                             : log_of_fraction(v),
            n - i);
    }
}

const fx_table TABLE = {LEVEL_NAME, LANES, plan, survey, compute, elementary};
