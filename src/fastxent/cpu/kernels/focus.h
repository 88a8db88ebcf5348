/* The focusing of both focal losses: r^gamma for a probability r, and the gammas that need no power. */
#ifndef FASTXENT_FOCUS_H
#define FASTXENT_FOCUS_H

#include "elementary.h"
#include "kernels.h"

typedef struct {
    REAL gamma, rest; /* a sum */
    int whole;        /* gamma where it is 0, 1 or 2, else -1 */
} FOCUS;

/* Beyond 1 / eps a unit in the last place of r decides between 0 and 1; with gamma kept below, its square times any
 * loss stays finite. */
#define GAMMA_LARGEST ((REAL)1e4 / REAL_EPSILON)

INLINE FOCUS focus_of(const fx_job *job)
{
    const double gamma = job->gamma < (double)GAMMA_LARGEST ? job->gamma : (double)GAMMA_LARGEST;
    const int is_whole = gamma == 0 || gamma == 1 || gamma == 2;
    FOCUS focus = {(REAL)gamma, (REAL)(gamma - (double)(REAL)gamma), is_whole ? (int)gamma : -1};
    return focus;
}

/* r^gamma, r in [0, 1], gamma > 0. The whole part of gamma by squaring, which multiplies the error of r by gamma and no
 * more; the rest in log space, where the roundings of the logarithm come on top of that (1.2 times DESIGN 2.5 at gamma
 * 20). */
NOINLINE VECTOR power_of_fraction(VECTOR r, REAL gamma)
{
    enum { MOST = 1024 };
    unsigned whole = gamma < MOST ? (unsigned)gamma : 0;
    const REAL rest = gamma - (REAL)whole;
    VECTOR power = broadcast(1), square = r;
    for (; whole; whole >>= 1, square *= square)
        if (whole & 1) power *= square;
    if (rest > 0) {
        const VECTOR exponent = rest * log_of_fraction(r);
        power *=
            exp_nonpositive(choose(less(broadcast(0), exponent), broadcast(0), exponent)); /* r may round to above 1 */
    }
    return power;
}

/* r^gamma from log r <= 0. What is rounded off the exponent counts as often as that is large, and is made good. */
INLINE VECTOR power_of_log(VECTOR log_r, FOCUS focus)
{
    const VECTOR limited = maximum(log_r, broadcast(-(REAL_LARGEST / GAMMA_LARGEST / 2)));
    const VECTOR gamma = broadcast(focus.gamma), exponent = gamma * limited;
    const VECTOR rounded_off = multiply_add(gamma, limited, -exponent), power = exp_nonpositive(exponent);
    return multiply_add(power, multiply_add(broadcast(focus.rest), limited, rounded_off), power);
}

INLINE VECTOR modulation_of(VECTOR r, FOCUS focus)
{
    return focus.whole == 2 ? r * r
        : focus.whole == 1  ? r
        : focus.whole == 0  ? broadcast(1)
                            : power_of_fraction(r, focus.gamma);
}

#endif
