/* The short-row regime: lanes are classes, rows of a few vectors, LANES rows at a time, for class indices.
 *
 * Compared with a tile, nothing is turned on its side but the maxima and the sums of LANES rows, which costs as much as
 * turning two classes; compared with the row regime, less begins and ends with every row, and gradients leave packed.
 * Tiles stay better where much of the last vector of a row is wasted on few classes (SHORT_FROM in table.h).
 *
 * Design a) Three groups are under way at a time: one loop takes the maxima of the next group, the exponentials of this
 * one, and multiplies those of the one before. Each alone is a chain of dependent operations that leaves the processor
 * idle. b) The last vector of a row ends where the row ends, and overlaps the one before: loads and stores need no
 * masks. Lanes that occur twice hold the same numbers, and count once. c) The largest terms are counted, not summed, so
 * that one pass gives the sum with and without them.
 */
#ifndef FASTXENT_SHORT_ROWS_H
#define FASTXENT_SHORT_ROWS_H

#include "rows.h"

enum {
    SHORT_VECTORS = 16, /* of a row, at most: their sums need no compensation */
    SHORT_BYTES = REAL_BITS == 32 ? 6656
                                  : 5120 /* of LANES rows: with logits on their way, six copies share the first cache */
};

/* The logits of LANES rows; a short last group is filled up with its last row. */
typedef struct {
    const REAL *z;
    ptrdiff_t step;
    int last_row;
    VECTOR max;
} SHORT_GROUP;

/* The gradient of a group, on its way from its exponentials to `out`. */
typedef struct {
    const REAL *e;
    REAL *out;
    const int64_t *label;
    ptrdiff_t step;
    int rows;
    REAL factor[LANES], of_target[LANES];
} LEAVING;

typedef struct {
    int64_t last, padded;      /* where the last vector of a row begins; classes in whole vectors */
    MASK is_new;               /* its lanes that are not in the vector before */
    REAL *e, *other_e;         /* [LANES][padded]: this group's, and those that are leaving */
    REAL *stage, *other_stage; /* of the gradient, packed: what is filled, and what is pending */
    LEAVING leaving;
    OUTGOING pending;
} SHORT_ROWS;

static size_t short_rows_scratch(const fx_job *job, REAL *scratch, SHORT_ROWS *rows)
{
    const int64_t line = 64 / (int64_t)sizeof(REAL);
    const int64_t group = round_up(LANES * round_up(job->n_classes, LANES), line);
    REAL *next = scratch;
    memset(rows, 0, sizeof *rows);
    rows->last = job->n_classes - LANES;
    rows->padded = round_up(job->n_classes, LANES);
    rows->is_new = negate(first_lanes((int)(rows->padded - job->n_classes)));
    rows->e = next, next += group;
    if (job->grad.data) rows->other_e = next, next += group;
    if (job->stream) {
        rows->stage = next, next += group;
        rows->other_stage = next, next += group;
    }
    return (size_t)(next - scratch) * sizeof(REAL);
}

INLINE SHORT_GROUP short_group_of(const BLOCK *block, int64_t row)
{
    SHORT_GROUP group = {
        row_of(&block->logits, row), block->logits.inner, (int)at_most(block->rows - row, LANES) - 1, broadcast(0)};
    return group;
}
INLINE const REAL *short_row(const SHORT_GROUP *group, int lane)
{ return group->z + at_most(lane, group->last_row) * group->step; }

INLINE VECTOR short_row_maximum(const SHORT_ROWS *scratch, const REAL *z)
{
    VECTOR m = maximum(load(z + scratch->last), broadcast((REAL)-INFINITY));
    for (int64_t i = 0; i < scratch->last; i += LANES) m = maximum(load(z + i), m);
    return m;
}

INLINE void put_leaving_row(const SHORT_ROWS *scratch, int lane)
{
    const LEAVING *leaving = &scratch->leaving;
    const int64_t last = scratch->last;
    const REAL *e = leaving->e + lane * scratch->padded;
    const VECTOR factor = broadcast(leaving->factor[lane]);
    REAL *out = leaving->out + lane * leaving->step;
    for (int64_t i = 0; i < last; i += LANES) store(out + i, load(e + i) * factor);
    store(out + last, load(e + last) * factor);
    out[leaving->label[lane]] = leaving->of_target[lane];
}

typedef struct {
    VECTOR below, ones; /* the sum of the exponentials less than 1, and how many are 1 */
} SHORT_SUMS;

/* A group with an infinite maximum. */
RARE SHORT_SUMS short_exponentials_any(const SHORT_ROWS *scratch, const SHORT_GROUP *group)
{
    REAL max[LANES], *e = scratch->e;
    VECTOR parts[LANES];
    INTEGER ones[LANES];
    store(max, group->max);
    for (int lane = 0; lane < LANES; lane++, e += scratch->padded) {
        parts[lane] = broadcast(0), ones[lane] = (INTEGER)(scratch->last + LANES);
        for (int64_t i = 0; i < scratch->padded; i += LANES) {
            const int64_t at = at_most(i, scratch->last);
            const VECTOR e_i = exponential_any(load(short_row(group, lane) + at), broadcast(max[lane]));
            MASK is_below = unequal(e_i, broadcast(1));
            if (at == scratch->last) is_below = both(is_below, scratch->is_new);
            store(e + at, e_i);
            parts[lane] = add_where(is_below, parts[lane], e_i);
            ones[lane] -= count_of(is_below);
        }
    }
    const SHORT_SUMS sums = {reduce_sum(parts), numbers_of(ones)};
    return sums;
}

/* One loop over the rows of three groups: the exponentials and sums of `group`, the maxima of `next`, and what is
 * leaving. Meanwhile the rows after these are fetched, and the lines of `grad` that this group's gradient will be
 * written to (NULL: none), and what is pending goes out. */
OFTEN NOINLINE SHORT_SUMS short_pass(
    SHORT_ROWS *scratch, const SHORT_GROUP *group, SHORT_GROUP *next, const REAL *grad, ptrdiff_t grad_step)
{
    const int64_t last = scratch->last;
    const MASK is_new = scratch->is_new;
    const VECTOR one = broadcast(1), m_of_rows = group->max;
    REAL max[LANES], *e = scratch->e;
    VECTOR parts[FEW], maxima[FEW], few_sums[LANES / FEW], few_maxima[LANES / FEW];
    INTEGER ones[LANES];
    store(max, m_of_rows);
    for (int lane = 0; lane < LANES; lane++, e += scratch->padded) {
        const REAL *z = short_row(group, lane), *z_next = short_row(next, lane), *far = z_next + LANES * group->step;
        const VECTOR m = broadcast(max[lane]);
        VECTOR below = broadcast(0), m_next = broadcast((REAL)-INFINITY);
        INTEGER count = (INTEGER)(last + LANES);
        for (int64_t i = 0; i < last; i += LANES) {
            const VECTOR e_i = exponential(load(z + i), m);
            const MASK is_below = unequal(e_i, one); /* also a NaN */
            prefetch(far + i);
            m_next = maximum(load(z_next + i), m_next);
            store(e + i, e_i);
            below = add_where(is_below, below, e_i);
            count -= count_of(is_below);
        }
        const VECTOR e_i = exponential(load(z + last), m);
        const MASK is_below = both(is_new, unequal(e_i, one));
        prefetch(far + last);
        maxima[lane % FEW] = maximum(load(z_next + last), m_next);
        store(e + last, e_i);
        parts[lane % FEW] = add_where(is_below, below, e_i);
        ones[lane] = count - count_of(is_below);
        if (grad)
            for (int64_t i = 0; i < scratch->padded; i += LANES) prefetch_to_write(grad + lane * grad_step + i);
        if (lane < scratch->leaving.rows) put_leaving_row(scratch, lane);
        if (scratch->pending.parts) outgoing_some(&scratch->pending, last / LANES + 1);
        if (lane % FEW == FEW - 1)
            few_sums[lane / FEW] = reduce_sum_few(parts), few_maxima[lane / FEW] = reduce_maximum_few(maxima);
    }
    next->max = reduce_maximum_fews(few_maxima);
    const SHORT_SUMS sums = {reduce_sum_fews(few_sums), numbers_of(ones)};
    return UNLIKELY(any(not_finite(m_of_rows))) ? short_exponentials_any(scratch, group) : sums;
}

RARE void put_short_hessians(const BLOCK *block, const SHORT_ROWS *scratch, int64_t row, int rows,
    const SOFTMAX *softmax, VECTOR scaled_inverse, const FOCAL *focal, VECTOR scale, VECTOR target_hessian)
{
    REAL scales[LANES], inverses[LANES], masses[LANES], curvatures[LANES], of_target[LANES];
    store(scales, scale), store(inverses, scaled_inverse), store(of_target, target_hessian);
    if (focal) store(masses, focal->mass), store(curvatures, focal->curvature);
    for (int lane = 0; lane < rows; lane++) {
        const SOFTMAX one = softmax_of_lane(softmax, lane);
        REAL *hess = row_of(&block->hess, row + lane);
        FOCAL one_focal = no_focal();
        if (focal) one_focal.mass = broadcast(masses[lane]), one_focal.curvature = broadcast(curvatures[lane]);
        put_index_hessian(hess, scratch->e + lane * scratch->padded, block->job->n_classes, &one, inverses[lane], 1,
            focal ? &one_focal : NULL, scales[lane]);
        if (focal) hess[block->label[row + lane]] = of_target[lane];
    }
}

/* From the sums of a group to its losses, and to what its gradient is made of. */
OFTEN static void finish_short_group(
    BLOCK *block, SHORT_ROWS *scratch, const SHORT_GROUP *group, SHORT_SUMS sums, int64_t row)
{
    const fx_job *job = block->job;
    const int focal = job->task == FX_FOCAL, rows = group->last_row + 1;
    REAL z_target[LANES] = {0};
    for (int lane = 0; lane < rows; lane++) z_target[lane] = short_row(group, lane)[block->label[row + lane]];

    const SOFTMAX softmax = softmax_of(group->max, sums.below + sums.ones, sums.below);
    const VECTOR z = load(z_target), e = exponential_any(z, group->max);
    VECTOR value = index_value(&softmax, z), scale = load(block->scale + row), target_hessian = broadcast(0);
    VECTOR scaled_inverse = scale * softmax.inverse;
    FOCAL modulated = no_focal();
    if (focal) {
        modulated = focal_of(&softmax, e, value, focus_of(job));
        value *= modulated.modulation;
        target_hessian = scale * focal_hessian_of_target(&softmax, e, &modulated);
        scaled_inverse *= modulated.mass;
    }
    put_values(block, value, row);
#if REAL_BITS == 32
    if (UNLIKELY(has_infinite(value))) widen_values(block, group->max, softmax.log_sum, NULL, 0, 0, row, rows);
#endif
    if (!job->grad.data) return;
    if (job->hess.data)
        put_short_hessians(
            block, scratch, row, rows, &softmax, scaled_inverse, focal ? &modulated : NULL, scale, target_hessian);

    LEAVING *leaving = &scratch->leaving;
    REAL *sent = scratch->e;
    store(leaving->factor, scaled_inverse);
    store(leaving->of_target, index_gradient(&softmax, e, scaled_inverse));
    leaving->e = sent, leaving->label = block->label + row, leaving->rows = rows;
    leaving->step = job->stream ? job->n_classes : block->grad.inner;
    leaving->out = job->stream ? scratch->stage : row_of(&block->grad, row);
    scratch->e = scratch->other_e, scratch->other_e = sent;
}

/* Streamed, the gradients of `rows` rows from `row` on are in the stage, and go out during the next pass. */
INLINE void send_stage(const BLOCK *block, SHORT_ROWS *scratch, int64_t row, int rows)
{
    const int64_t n_classes = block->job->n_classes;
    const int is_one = block->grad.inner == n_classes;
    const int64_t length = is_one ? rows * n_classes : n_classes;
    REAL *sent = scratch->stage;
    outgoing_rest(&scratch->pending);
    outgoing_begin(&scratch->pending, sent, n_classes, length, length, is_one ? 1 : rows, NULL,
        row_of(&block->grad, row), block->grad.inner);
    scratch->stage = scratch->other_stage, scratch->other_stage = sent;
}

OFTEN static void compute_short_rows(BLOCK *block, REAL *memory)
{
    const int stream = block->job->stream;
    SHORT_ROWS scratch;
    short_rows_scratch(block->job, memory, &scratch);
    SHORT_GROUP group = short_group_of(block, 0);
    VECTOR maxima[LANES];
    for (int lane = 0; lane < LANES; lane++) maxima[lane] = short_row_maximum(&scratch, short_row(&group, lane));
    group.max = reduce_maximum(maxima);
    for (int64_t row = 0; row < block->rows; row += LANES) {
        SHORT_GROUP next = row + LANES < block->rows ? short_group_of(block, row + LANES) : group;
        const REAL *grad = block->grad.data && !stream ? row_of(&block->grad, row) : NULL;
        const SHORT_SUMS sums = short_pass(&scratch, &group, &next, grad, block->grad.inner);
        if (stream && scratch.leaving.rows) send_stage(block, &scratch, row - LANES, scratch.leaving.rows);
        finish_short_group(block, &scratch, &group, sums, row);
        group = next;
    }
    for (int lane = 0; lane < scratch.leaving.rows; lane++) put_leaving_row(&scratch, lane);
    if (!stream) return;
    send_stage(block, &scratch, (block->rows - 1) / LANES * LANES, scratch.leaving.rows);
    outgoing_rest(&scratch.pending);
    outgoing_flush(&scratch.pending);
}

#endif
