/* The losses on log-probabilities and probabilities: no exponentials, one chunk of a row at a time, any strides.
 *
 *   log_probs x:  value -sum u_c x_c       gradient -u_c         Hessian 0
 *   probs     x:  value -sum u_c log x_c   gradient -u_c / x_c   Hessian u_c / x_c^2
 *
 * with 0 * inf = 0 (a class without target mass adds nothing, whatever its probability). Nothing is clipped. A NaN
 * anywhere makes the row NaN, as for logits.
 */
#ifndef FASTXENT_PLAIN_ROWS_H
#define FASTXENT_PLAIN_ROWS_H

#include "long_rows.h"

RARE void compute_plain_row(BLOCK *block, const LONG_ROW *scratch, int64_t row)
{
    const fx_job *job = block->job;
    const int probs = job->inputs == FX_PROBS;
    const REAL masked = probs ? 0 : (REAL)-INFINITY;
    const REAL uniform = uniform_mass_of_row(block, row, masked, scratch->z);
    SCALAR_PAIR value = {0, 0};
    double mass = 0;
    int has_nan = 0;
    for (int64_t first = 0; first < job->n_classes; first += CHUNK) {
        const int64_t n = chunk_length(job, first);
        const REAL *x = chunk_of(block, row, first, n, scratch->z);
        row_mass(block, row, x, first, n, uniform, masked, scratch->mass);
        for (int64_t i = 0; i < n; i++) {
            const double u = (double)scratch->mass[i];
            has_nan |= isnan(x[i]);
            if (u == 0) continue;
            mass += u;
            add_scalar(&value, -u * (probs ? log(x[i] == 0 ? 0 : (double)x[i]) : (double)x[i]));
        }
    }
    if (mass == 0 && !counts_without_mass(job)) block->weight[row] = 0;
    block->value[row] = has_nan ? NAN : total_scalar(value);
    if (!job->grad.data) return;

    const double scale =
        has_nan ? NAN : (double)block->scale[row]; /* in double: u / x may overflow where scale u / x does not */
    for (int64_t first = 0; first < job->n_classes; first += CHUNK) {
        const int64_t n = chunk_length(job, first);
        const REAL *x = chunk_of(block, row, first, n, scratch->z);
        REAL *grad = chunk_output(block, &block->grad, row, first, scratch->grad, job->stream);
        REAL *hess = chunk_output(block, &block->hess, row, first, scratch->hess, job->stream);
        row_mass(block, row, x, first, n, uniform, masked, scratch->mass);
        for (int64_t i = 0; i < n; i++) {
            const double mass_i = scale * (double)scratch->mass[i], p = fabs((double)x[i]); /* -0.0 is 0 */
            const int counts = scratch->mass[i] != 0 || has_nan;
            grad[i] = counts ? (REAL)(probs ? -mass_i / p : -mass_i) : 0;
            if (hess) hess[i] = !counts ? 0 : probs ? (REAL)(mass_i / p / p) : has_nan ? (REAL)NAN : 0;
        }
        put_chunk(block, &block->grad, row, first, n, grad);
        put_chunk(block, &block->hess, row, first, n, hess);
    }
}

static void compute_plain_rows(BLOCK *block, REAL *memory)
{
    LONG_ROW scratch;
    long_row_scratch(block->job, memory, &scratch);
    for (int64_t row = 0; row < block->rows; row++) compute_plain_row(block, &scratch, row);
}

#endif
