/* The focusing of both focal losses: r^gamma for a probability r, and the gammas that need no power. */
#ifndef FASTXENT_FOCUS_H
#define FASTXENT_FOCUS_H

#include "elementary.h"
#include "kernels.h"

typedef struct {
    REAL gamma;
    int whole; /* gamma where it is 0, 1 or 2, else -1 */
} FOCUS;

/* Beyond 1 / eps a unit in the last place of r decides between 0 and 1; with gamma kept below, its square times any
 * loss stays finite. */
#define GAMMA_LARGEST ((REAL)1e4 / REAL_EPSILON)

INLINE FOCUS focus_of(const fx_job *job)
{
    const double gamma = job->gamma < (double)GAMMA_LARGEST ? job->gamma : (double)GAMMA_LARGEST;
    FOCUS focus = {(REAL)gamma, gamma == 0 || gamma == 1 || gamma == 2 ? (int)gamma : -1};
    return focus;
}

/* r^gamma, r in [0, 1], gamma > 0; in log space, so that it is 0 only where the exponential is. */
NOINLINE VECTOR power_of_fraction(VECTOR r, REAL gamma)
{
    const VECTOR exponent = gamma * log_of_fraction(r);
    return exp_nonpositive(choose(less(broadcast(0), exponent), broadcast(0), exponent)); /* r may round to above 1 */
}

INLINE VECTOR modulation_of(VECTOR r, FOCUS focus)
{
    return focus.whole == 2 ? r * r : focus.whole == 1 ? r : focus.whole == 0 ? broadcast(1) : power_of_fraction(r, focus.gamma);
}

#endif
