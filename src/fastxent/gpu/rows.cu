/* The softmax family: losses and activations along the class axis. One kernel, whose variants differ in where the
 * logits of a row are kept while it is worked on, and in how many threads share it.
 *
 * Design
 * a) A group of GROUP threads has a row: 1 to 32 of a warp (GROUP 0: as many as the job says), or the whole block, or
 *    all blocks of a CLUSTER. A row takes three passes (maximum, sums, results; one more for focal losses of
 *    distributions).
 * b) STAGED: tiles of whole rows, or slices of one, are copied to a ring of buffers in shared memory, as they lie
 *    in memory; results replace the logits there and are copied back. So logits are read from memory once, every
 *    transfer is a run of 16-byte vectors whatever the number of classes and the alignment are, and the bytes in flight
 *    depend on neither. The first and last vector of a tile may hold neighbours: they are loaded, never looked at,
 *    never written. So may those of a row in a tile, while another group writes its results there: a race for bits that
 *    `load` masks (a vector access is a set of scalar ones; PTX ISA, Memory Consistency Model). Else: any strides;
 *    every pass reads memory, or what caches kept of it.
 *    Hessians take that way where a tile has many rows; else they are written as they are computed, and need no room:
 *    how a row is shared out, and so the order of its sums, does not depend on whether there is a Hessian.
 * c) Where GROUP is small, neighbouring threads have neighbouring rows; with strides this is how class axes that are
 *    not the last are read without gaps.
 * d) Sums: vectors pairwise, threads compensated, groups by a butterfly of compensated sums, blocks in the order of
 *    their warps. Nothing depends on who comes first. In float32 a distance from the maximum may overflow; the loss is
 *    still a finite double.
 * e) In place: a row's target logit is read before the barrier that precedes the first result.
 */
enum { CROSS_ENTROPY, FOCAL, SOFTMAX, LOG_SOFTMAX };
enum { LOGITS, LOG_PROBS, PROBS };

#define IS_LOSS (TASK <= 1)
#define HAS_LABELS (TARGET == ANY ? job.target_type < FLOAT16 : TARGET < FLOAT16)
#define GROUP_SIZE (GROUP ? GROUP : job.group)
#define WARPS (THREADS / 32)
#define ITEM ((int)sizeof(STORED))
#define NEGATIVE_INFINITY (-(REAL)INFINITE)
#define HESSIAN_IS_STAGED (HESSIAN && STAGED && GROUP <= 32)
/* Of classes and vectors: a row in shared memory is short. */
#if STAGED
typedef int INDEX;
typedef u32 COUNT;
#else
typedef i64 INDEX;
typedef u64 COUNT;
#endif
#define MASKED (INPUTS == 2 ? (REAL)0 : NEGATIVE_INFINITY)

enum { MOST_SUMS = SOFT ? 6 : 3 };

/* What lies before the stages in shared memory. */
struct Control {
    u64 arrived[4];                                /* a barrier for every stage */
    double of_warps[32];                           /* for the sum of the block */
    Pair exchange[2][MOST_SUMS * CLUSTER * WARPS]; /* partial results of the warps, in turns */
};

/* ---- reductions ---- */

struct Group {
    int lane, rank; /* of the thread in the group; of the block in the cluster */
    int turn, size;
    Control *control;
};

/* What the first of several numbers is; all others are sums. */
enum First { SUM, MAXIMUM, WIDE };

template <First FIRST> DEVICE Pair combine(int i, Pair a, Pair b)
{
    if (i == 0 && FIRST == MAXIMUM) return {maximum(a.high, b.high), 0};
    return i == 0 && FIRST == WIDE ? add_wide(a, wide(b)) : a + b;
}

template <int N, First FIRST> DEVICE void butterfly(Pair *x, int size)
{
#pragma unroll
    for (int mask = 16; mask; mask /= 2)
        if (mask < size)
#pragma unroll
            for (int i = 0; i < N; i++) {
                const Pair other = {shuffle(x[i].high, mask), shuffle(x[i].low, mask)};
                x[i] = combine<FIRST>(i, x[i], other);
            }
}

/* N numbers over the group; all threads get the same bits. */
template <int N, First FIRST = SUM> DEVICE void reduce(Group &group, Pair *x)
{
    butterfly<N, FIRST>(x, group.size);
#if GROUP > 32
    enum { ENTRIES = CLUSTER * WARPS };
    Pair *const exchange = group.control->exchange[group.turn ^= 1];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#if CLUSTER > 1
    if (lane < CLUSTER)
        for (int i = 0; i < N; i++) {
            u64 bits[sizeof(Pair) / 8];
            memcpy(bits, &x[i], sizeof bits);
            Pair *const place = exchange + i * ENTRIES + group.rank * WARPS + warp;
            for (int k = 0; k < (int)(sizeof(Pair) / 8); k++) store_remote((u64 *)place + k, lane, bits[k]);
        }
    cluster_barrier();
#else
    if (lane == 0)
        for (int i = 0; i < N; i++) exchange[i * ENTRIES + warp] = x[i];
    __syncthreads();
#endif
#pragma unroll
    for (int i = 0; i < N; i++) {
        x[i] = {i == 0 && FIRST == MAXIMUM ? NEGATIVE_INFINITY : 0, 0};
        for (int k = lane; k < ENTRIES; k += 32) x[i] = combine<FIRST>(i, x[i], exchange[i * ENTRIES + k]);
    }
    butterfly<N, FIRST>(x, 32);
#else
    __syncwarp();
#endif
}

/* ---- where a row lies ---- */

/* The part of a row that a block sees: n vectors of WIDTH classes, the first of which is class `base`, in memory or in
 * its stage. */
struct Place {
    char *z, *hess;
    INDEX step, base, n;
};

/* A thread has ITEMS classes at work: those of a vector, or one of each of as many rounds through the group. */
#define STEP (WIDTH > 1 ? 1 : GROUP_SIZE)
#define ROUNDS (ITEMS / WIDTH)

template <class F> DEVICE void each_vector(const Place &place, const Group &group, F visit)
{
    for (INDEX j = group.lane; j < place.n; j += group.size * ROUNDS) visit(j, place.base + j * WIDTH);
}

DEVICE bool is_class(const Job &job, INDEX c) { return (COUNT)c < (COUNT)job.n_classes; }
DEVICE bool is_whole(const Job &job, INDEX c) { return c >= 0 && c + (ITEMS - 1) * STEP < (INDEX)job.n_classes; }

/* The logits of a vector; `fill` where that is no class. */
DEVICE void load(const Job &job, const Place &place, INDEX j, INDEX c, REAL fill, REAL (&z)[ITEMS])
{
    const bool whole = is_whole(job, c);
#if WIDTH == 1
#pragma unroll
    for (int q = 0; q < ITEMS; q++)
        z[q] = whole || is_class(job, c + q * STEP) ? real_of(*(const STORED *)(place.z + (j + q * STEP) * place.step))
                                                    : fill;
#else
    const Vector16 v = *(const Vector16 *)(place.z + j * 16);
    STORED item[ITEMS];
    memcpy(item, &v, sizeof v);
#pragma unroll
    for (int q = 0; q < ITEMS; q++) z[q] = whole || is_class(job, c + q * STEP) ? real_of(item[q]) : fill;
#endif
}

/* Results to the stage, or to where they belong. */
template <bool IS_STAGED>
DEVICE void put(const Job &job, const Place &place, char *stage, char *row, i64 step, INDEX j, INDEX c, const REAL *x)
{
    const bool whole = is_whole(job, c);
#if WIDTH == 1
    char *const to = IS_STAGED ? stage + j * place.step : row + c * step;
    const i64 apart = STEP * (IS_STAGED ? place.step : step);
#pragma unroll
    for (int q = 0; q < ITEMS; q++)
        if (whole || is_class(job, c + q * STEP)) *(STORED *)(to + q * apart) = stored_of(x[q]);
#else
    STORED item[ITEMS];
#pragma unroll
    for (int q = 0; q < ITEMS; q++) item[q] = stored_of(x[q]);
    char *const to = IS_STAGED ? stage + j * 16 : row + c * step;
    const i64 apart = IS_STAGED ? ITEM : step;
    if (whole && (IS_STAGED || (step == ITEM && ((u64)to & 15) == 0))) {
        Vector16 v;
        memcpy(&v, item, sizeof v);
        if (IS_STAGED) *(Vector16 *)to = v;
        else store_streaming(to, v);
    } else
#pragma unroll
        for (int q = 0; q < ITEMS; q++)
            if (is_class(job, c + q * STEP)) *(STORED *)(to + q * apart) = item[q];
#endif
}

/* ---- targets ---- */

/* What a row is measured against. */
struct Target {
    const char *t;
    INDEX label;
    double weight; /* 0: the row is never looked at */
    bool is_wrong; /* loss NaN, gradient 0 */
    REAL one_minus_eps, uniform;
};

DEVICE REAL class_weight(const Job &job, INDEX c) { return job.class_weight ? job.class_weight[c] : (REAL)1; }

#if IS_LOSS
DEVICE Target target_of(const Job &job, i64 outer, i64 inner, bool reports, bool counts)
{
    const i64 row = outer * job.n_inner + inner;
    const double s = sample_weight_at(job, outer, inner);
    Target target = {
        at(job.target, outer, inner), 0, counts ? s : 0, !is_weight(s), (REAL)(1 - job.label_smoothing), 0};
    if (target.is_wrong && reports) report(job, BAD_WEIGHT, row, 0, s);
    if (HAS_LABELS) {
        const i64 label = integer_at(target.t, job.target_type);
        if (job.has_ignore_index && label == job.ignore_index) target.weight = 0;
        else if ((u64)label < (u64)job.n_classes) target.label = (INDEX)label;
        else {
            if (reports) report(job, BAD_TARGET, row, bits_at(target.t, job.target_type), (double)label);
            target.is_wrong = true;
        }
#if !SOFT
        target.weight *= (double)class_weight(job, target.label);
#endif
    }
    return target;
}
#endif

#if SOFT
/* The probability of class c, or what stands for it. */
DEVICE REAL probability(const Job &job, const Target &target, INDEX c)
{
    if (HAS_LABELS) return c == target.label ? 1 : 0;
    return floating_at<REAL>(target.t + (i64)c * job.target.klass, TARGET == ANY ? job.target_type : TARGET);
}

DEVICE REAL mass_of(const Job &job, const Target &target, INDEX c, REAL z)
{
    return target_mass(
        z, probability(job, target, c), class_weight(job, c), target.one_minus_eps, target.uniform, MASKED);
}

/* Whether a row counts although its target has no mass: smoothing gives it some, unless all of that is masked. */
DEVICE bool counts_without_mass(const Job &job)
{
    if (job.label_smoothing > 0)
        for (INDEX c = 0; c < (INDEX)job.n_classes; c++)
            if (class_weight(job, c) > 0) return true;
    return false;
}

/* Note what is wrong with a probability, and whether another class than the ignored one has mass. */
DEVICE void look_at(const Job &job, const Target &target, i64 row, INDEX c, bool reports, Pair &wrong, Pair &elsewhere)
{
    if (HAS_LABELS) return;
    const REAL t = probability(job, target, c);
    if (!(t >= 0 && is_finite(t))) {
        wrong.high += 1;
        if (reports)
            report(job, BAD_TARGET, row * job.n_classes + c, 0,
                floating_at<double>(target.t + (i64)c * job.target.klass, job.target_type));
    }
    if (c != job.ignore_index && t != 0) elsewhere.high += 1;
}

/* What those notes, and a row without mass, mean for its weight. */
DEVICE void weigh(const Job &job, Target &target, REAL mass, Pair wrong, Pair elsewhere)
{
    if (wrong.high > 0) target.is_wrong = true;
    if (!HAS_LABELS && job.has_ignore_index && (u64)job.ignore_index < (u64)job.n_classes && elsewhere.high == 0
        && probability(job, target, (INDEX)job.ignore_index) > 0)
        target.weight = 0;
    if (mass == 0 && !counts_without_mass(job)) target.weight = 0;
}
#endif

/* ---- one row ---- */

/* Where its results go. */
struct Outputs {
    char *grad, *hess;
    bool live;    /* there is such a row */
    bool reports; /* this thread, for all of the row */
};

template <class F>
DEVICE void put_results(const Job &job, const Place &place, const Group &group, const Outputs &outputs, F result)
{
    if (!outputs.live || !job.grad.data) return;
    each_vector(place, group, [&](INDEX j, INDEX c) {
        REAL z[ITEMS], grad[ITEMS], hess[ITEMS];
        load(job, place, j, c, NEGATIVE_INFINITY, z);
#pragma unroll
        for (int q = 0; q < ITEMS; q++) result(c + q * STEP, z[q], grad[q], hess[q]);
        put<STAGED>(job, place, place.z, outputs.grad, job.grad.klass, j, c, grad);
#if HESSIAN
        if (job.hess.data) put<HESSIAN_IS_STAGED>(job, place, place.hess, outputs.hess, job.hess.klass, j, c, hess);
#endif
    });
}

/* The loss with its weight, and what the scale of the gradients is; `value` is that of weight 1. */
DEVICE double finish(const Job &job, const Target &target, double value)
{ return target.is_wrong ? (double)NOT_A_NUMBER : target.weight == 0 ? 0 : target.weight * value; }

#if INPUTS == 0
/* From logits. Returns the loss. */
DEVICE double compute_row(
    const Job &job, const Place &place, Group &group, Target target, i64 row, const Outputs &outputs, double inverse)
{
    /* Maximum; and how many classes share the smoothing. */
    Pair top[2] = {{NEGATIVE_INFINITY, 0}, {0, 0}};
    each_vector(place, group, [&](INDEX j, INDEX c) {
        REAL z[ITEMS];
        load(job, place, j, c, NEGATIVE_INFINITY, z);
#pragma unroll
        for (int q = 0; q < ITEMS; q++) {
            top[0].high = maximum(top[0].high, z[q]);
            if (SOFT && z[q] != NEGATIVE_INFINITY) top[1].high += 1;
        }
    });
    reduce<(SOFT ? 2 : 1), MAXIMUM>(group, top);
    const REAL max = top[0].high;

    /* Sums. The logit of the target comes with them where a block does not see the whole row. */
    enum { BELOW, ONES, THIRD, MASS = THIRD, DISTANCE, WRONG, ELSEWHERE };
    Pair sums[MOST_SUMS] = {};
#if IS_LOSS && !SOFT
    const INDEX element = target.label - place.base;
    const bool is_here = element >= 0 && element < place.n * WIDTH;
    REAL target_logit = is_here ? real_of(*(const STORED *)(place.z + element * place.step)) : 0;
    if (is_here && group.lane == 0) sums[THIRD].high = target_logit;
#elif SOFT
    target.uniform = job.label_smoothing > 0 ? (REAL)(job.label_smoothing / (double)top[1].high) : 0;
#endif
    each_vector(place, group, [&](INDEX j, INDEX c) {
        REAL z[ITEMS], e[ITEMS];
        load(job, place, j, c, NEGATIVE_INFINITY, z);
        REAL largest = 0;
#pragma unroll
        for (int q = 0; q < ITEMS; q++) {
            e[q] = exponential(z[q], max);
            largest = maximum(largest, e[q]);
#if SOFT
            if (is_class(job, c + q * STEP)) {
                const REAL u = mass_of(job, target, c + q * STEP, z[q]);
                look_at(job, target, row, c + q * STEP, outputs.live, sums[WRONG], sums[ELSEWHERE]);
                add(sums[MASS], u);
                add(sums[DISTANCE], without_zero(u, -shift(z[q], max)));
            }
#endif
        }
        if (largest >= 1)
#pragma unroll
            for (int q = 0; q < ITEMS; q++)
                if (e[q] >= 1) sums[ONES].high += 1, e[q] = 0;
#pragma unroll
        for (int step = 1; step < ITEMS; step *= 2)
#pragma unroll
            for (int q = 0; q + step < ITEMS; q += 2 * step) e[q] += e[q + step];
        add(sums[BELOW], e[0]);
    });
#if SOFT
    reduce<6>(group, sums);
#elif IS_LOSS && CLUSTER > 1
    reduce<3>(group, sums);
    target_logit = sums[THIRD].high;
#else
    reduce<2>(group, sums);
#endif
    const Softmax softmax = softmax_of(max, sums[BELOW], sums[ONES].high);

#if TASK == 2
    put_results(job, place, group, outputs,
        [&](INDEX c, REAL z, REAL &grad, REAL &hess) { grad = exponential(z, max) * softmax.inverse; });
    return 0;
#elif TASK == 3
    put_results(job, place, group, outputs,
        [&](INDEX c, REAL z, REAL &grad, REAL &hess) { grad = shift(z, max) - softmax.log_sum; });
    return (double)log_sum_exp(softmax, total(sums[BELOW]) + sums[ONES].high);
#elif !SOFT
    const REAL e_target = exponential(target_logit, max);
    double value = (double)softmax.log_sum + (target_logit == max ? 0 : (double)max - (double)target_logit);
    const REAL scale = scale_of(job, target.weight, inverse);
    const bool is_zero = target.is_wrong || target.weight == 0;
    REAL scaled_inverse = scale * softmax.inverse;
#if TASK == 1
    const Focal focal = focal_of(softmax, e_target, (REAL)value, (REAL)usable_gamma(job.gamma));
    const Pair mass = {focal.mass, 0}, curvature = {focal.curvature, 0};
    value *= (double)focal.modulation;
    scaled_inverse *= focal.mass;
#endif
    put_results(job, place, group, outputs, [&](INDEX c, REAL z, REAL &grad, REAL &hess) {
        const REAL e = exponential(z, max);
        const bool is_target = c == target.label;
        grad = is_zero ? 0 : is_target ? 0 - complement(softmax, e_target) * scaled_inverse : e * scaled_inverse;
#if HESSIAN && TASK == 1
        hess = is_zero ? 0
                       : scale
                * focal_hessian(
                    softmax, e, is_target ? focal.mass : 0, is_target ? focal.curvature : 0, mass, curvature);
#elif HESSIAN
        hess = is_zero ? 0 : hessian(softmax, e, scaled_inverse);
#endif
    });
    return finish(job, target, value);
#else
    double distance = (double)total(sums[DISTANCE]);
#if !REAL_IS_DOUBLE
    if (any_of_warp(distance == (double)INFINITE)) {
        Pair exact[1] = {};
        each_vector(place, group, [&](INDEX j, INDEX c) {
            REAL z[ITEMS];
            load(job, place, j, c, NEGATIVE_INFINITY, z);
            for (int q = 0; q < ITEMS; q++) {
                const REAL u =
                    is_class(job, c + q * STEP) && z[q] != max ? mass_of(job, target, c + q * STEP, z[q]) : 0;
                if (u != 0) exact[0] = add_wide(exact[0], (double)u * ((double)max - (double)z[q]));
            }
        });
        reduce<1, WIDE>(group, exact);
        if (distance == (double)INFINITE) distance = wide(exact[0]);
    }
#endif
    weigh(job, target, total(sums[MASS]), sums[WRONG], sums[ELSEWHERE]);
    const REAL scale = scale_of(job, target.weight, inverse), scaled_inverse = scale * softmax.inverse;
    const bool is_zero = target.is_wrong || target.weight == 0;
    Pair mass = sums[MASS];
    const double plain = (double)total(mass) * (double)softmax.log_sum + distance;
#if TASK == 1
    const REAL gamma = (REAL)usable_gamma(job.gamma);
    enum { VALUE, A, B };
    Pair focal_sums[3] = {};
    each_vector(place, group, [&](INDEX j, INDEX c) {
        REAL z[ITEMS];
        load(job, place, j, c, NEGATIVE_INFINITY, z);
#pragma unroll
        for (int q = 0; q < ITEMS; q++)
            if (is_class(job, c + q * STEP)) {
                const REAL u = mass_of(job, target, c + q * STEP, z[q]),
                           minus_log_p = softmax.log_sum - shift(z[q], max);
                const Focal focal = focal_of(softmax, exponential(z[q], max), minus_log_p, gamma);
                add(focal_sums[VALUE], without_zero(u, focal.modulation * minus_log_p));
                add(focal_sums[A], without_zero(u, focal.mass));
                add(focal_sums[B], without_zero(u, focal.curvature));
            }
    });
    reduce<3>(group, focal_sums);
    /* A row of nothing but masked classes has no mass whose loss could say so. Where only a distance overflows, q^gamma
     * is 1 and the cross-entropy is the focal loss. */
    const double modulated = (double)total(focal_sums[VALUE]) + 0 * (double)softmax.log_sum;
    const double value = !REAL_IS_DOUBLE && modulated == (double)INFINITE ? plain : modulated;
    mass = focal_sums[A];
#else
    const double value = plain;
    const REAL mass_factor = scaled_inverse * total(mass);
#endif
    const double loss = finish(job, target, value);
    put_results(job, place, group, outputs, [&](INDEX c, REAL z, REAL &grad, REAL &hess) {
        grad = hess = 0;
        if (is_zero || !is_class(job, c)) return;
        const REAL e = exponential(z, max);
        REAL u = mass_of(job, target, c, z);
#if TASK == 1
        const Focal focal = focal_of(softmax, e, softmax.log_sum - shift(z, max), gamma);
        const REAL b = without_zero(u, focal.curvature);
        u = without_zero(u, focal.mass);
#if HESSIAN
        hess = scale * focal_hessian(softmax, e, u, b, mass, focal_sums[B]);
#endif
#elif HESSIAN
        hess = hessian(softmax, e, mass_factor);
#endif
        grad = weighed_gradient(softmax, e, u, (mass.high - u) + mass.low, scaled_inverse);
    });
    return loss;
#endif
}

#else
/* From log-probabilities or probabilities: value -sum u x, or -sum u log x, with 0 * inf = 0; nothing is clipped. A NaN
 * anywhere makes the row NaN. In double: u x may overflow, and u / x where scale u / x does not. */
DEVICE double compute_row(
    const Job &job, const Place &place, Group &group, Target target, i64 row, const Outputs &outputs, double inverse)
{
    Pair unmasked[1] = {};
    each_vector(place, group, [&](INDEX j, INDEX c) {
        REAL x[ITEMS];
        load(job, place, j, c, MASKED, x);
#pragma unroll
        for (int q = 0; q < ITEMS; q++)
            if (x[q] != MASKED) unmasked[0].high += 1;
    });
    reduce<1>(group, unmasked);
    target.uniform = job.label_smoothing > 0 ? (REAL)(job.label_smoothing / (double)unmasked[0].high) : 0;
    enum { VALUE, MASS, NANS, WRONG, ELSEWHERE };
    Pair sums[5] = {};
    each_vector(place, group, [&](INDEX j, INDEX c) {
        REAL x[ITEMS];
        load(job, place, j, c, MASKED, x);
#pragma unroll
        for (int q = 0; q < ITEMS; q++)
            if (is_class(job, c + q * STEP)) {
                const REAL u = mass_of(job, target, c + q * STEP, x[q]);
                look_at(job, target, row, c + q * STEP, outputs.live, sums[WRONG], sums[ELSEWHERE]);
                if (x[q] != x[q]) sums[NANS].high += 1;
                add(sums[MASS], u);
                const double minus_log_p = INPUTS == 2 ? -(double)log_of(x[q] + 0) : -(double)x[q];
                if (u != 0) sums[VALUE] = add_wide(sums[VALUE], (double)u * minus_log_p);
            }
    });
    reduce<5, WIDE>(group, sums);
    weigh(job, target, total(sums[MASS]), sums[WRONG], sums[ELSEWHERE]);
    const bool is_zero = target.is_wrong || target.weight == 0, is_nan = sums[NANS].high > 0;
    const double scale = (double)scale_of(job, target.weight, inverse);
    put_results(job, place, group, outputs, [&](INDEX c, REAL x, REAL &grad, REAL &hess) {
        grad = hess = 0;
        if (is_zero || !is_class(job, c)) return;
        const double u = (double)mass_of(job, target, c, x), p = fabs((double)x), limit = (double)NOT_A_NUMBER;
        if (u == 0 && !is_nan) return;
        grad = (REAL)(is_nan ? limit : INPUTS == 2 ? -(scale * u / p) : -(scale * u));
        hess = (REAL)(is_nan ? limit : INPUTS == 2 && job.hess.data ? scale * u / p / p : 0);
    });
    return finish(job, target, is_nan ? (double)NOT_A_NUMBER : wide(sums[VALUE]));
}
#endif

/* One row with its target, weights and loss; returns what it adds to the sum. */
DEVICE double work_on_row(
    const Job &job, Place place, Group &group, i64 outer, i64 inner, bool live, double inverse, bool counts)
{
    if (!live) place.n = 0; /* a group beyond the last row looks at nothing, and takes part in shuffles */
    const Outputs outputs = {
        at(job.grad, outer, inner), at(job.hess, outer, inner), live, live && group.lane == 0 && group.rank == 0};
#if IS_LOSS
    const Target target = target_of(job, outer, inner, outputs.reports, counts);
#else
    const Target target = {};
#endif
    const double value = compute_row(job, place, group, target, outer * job.n_inner + inner, outputs, inverse);
    if (!outputs.reports) return 0;
    if (job.loss.data) *(STORED *)at(job.loss, outer, inner) = stored_of((REAL)value);
    return value;
}

/* ---- tiles ---- */

#if STAGED
/* Tile number t: rows from `inner` on, and the vectors of memory that hold what this block sees of them. */
struct Tile {
    i64 outer, inner, first; /* first: bytes from the beginning of the rows to that of the window */
    int rows, phase;         /* phase: bytes of the first row's vector before the row */
    u32 bytes;
    const char *window;
};

DEVICE Tile tile_of(const Job &job, i64 t, int rank)
{
    const i64 per_outer = (job.n_inner + job.tile_rows - 1) / job.tile_rows;
    Tile tile;
    tile.outer = job.n_outer > 1 ? t / per_outer : 0;
    tile.inner = (t - tile.outer * per_outer) * job.tile_rows;
    tile.rows = (int)smaller(job.tile_rows, job.n_inner - tile.inner);
    const char *start = at(job.logits, tile.outer, tile.inner);
    tile.phase = (int)((u64)start & 15);
    const i64 vectors = (tile.phase + tile.rows * job.n_classes * ITEM + 15) / 16,
              share = (vectors + CLUSTER - 1) / CLUSTER;
    const i64 first = smaller(rank * share, vectors), last = smaller(first + share, vectors);
    tile.first = first * 16 - tile.phase;
    tile.window = start + tile.first;
    tile.bytes = (u32)(last - first) * 16;
    return tile;
}

DEVICE void fetch(const Tile &tile, char *stage, u64 *arrived)
{
#if BULK
    /* Pieces, so that several are under way. */
    enum { PIECE = 16384 };
    if (threadIdx.x) return;
    barrier_expect(arrived, tile.bytes);
    for (u32 done = 0; done < tile.bytes; done += PIECE)
        bulk_load(stage + done, tile.window + done, tile.bytes - done < PIECE ? tile.bytes - done : PIECE, arrived);
#else
    for (u32 done = threadIdx.x * 16; done < tile.bytes; done += THREADS * 16)
        copy_async(stage + done, tile.window + done);
#endif
}

/* Bytes of the tile's rows from the stage to `array`: whole vectors where both are aligned alike, else elements. */
DEVICE void send(const Job &job, const Tile &tile, const Array &array, const char *stage)
{
    const i64 length = job.n_classes * ITEM;
    char *const to = at(array, tile.outer, tile.inner) + tile.first;
    const i64 end = tile.rows * length - tile.first;
    const u32 begin = tile.first < 0 ? (u32)-tile.first : 0, limit = end < 0 ? 0 : (u32)smaller(end, tile.bytes);
    u32 inside = limit, outside = limit; /* of the vectors that are all the tile's */
    if (((u64)to & 15) == 0 && begin < limit) {
        inside = (begin + 15) / 16 * 16, outside = limit / 16 * 16;
        if (outside < inside) inside = outside = limit;
    }
    if (array.klass != ITEM || (tile.rows > 1 && array.inner != length)) { /* not as the logits lie */
        for (u32 i = begin + threadIdx.x * ITEM; i < limit; i += THREADS * ITEM) {
            const u32 number = (i + (u32)tile.first) / ITEM, row = number / (u32)job.n_classes;
            *(STORED *)(at(array, tile.outer, tile.inner + row) + (number - row * (u32)job.n_classes) * array.klass) =
                *(const STORED *)(stage + i);
        }
        return;
    }
#if BULK
    if (threadIdx.x == 0 && inside < outside) bulk_store(to + inside, stage + inside, outside - inside);
#else
    for (u32 i = inside + threadIdx.x * 16; i < outside; i += THREADS * 16)
        store_streaming(to + i, *(const Vector16 *)(stage + i));
#endif
    for (u32 i = begin + threadIdx.x * ITEM; i < inside; i += THREADS * ITEM)
        *(STORED *)(to + i) = *(const STORED *)(stage + i);
    for (u32 i = outside + threadIdx.x * ITEM; i < limit; i += THREADS * ITEM)
        *(STORED *)(to + i) = *(const STORED *)(stage + i);
}

DEVICE Place place_in(const Job &job, const Tile &tile, char *stage, i64 row)
{
    Place place;
#if WIDTH == 1
    place.z = stage - tile.first + row * job.n_classes * ITEM, place.base = 0, place.n = (int)job.n_classes;
#else
    const int length = (int)job.n_classes * ITEM, offset = (int)row * length - (int)tile.first, end = offset + length;
    const int aligned = offset < 0 ? 0 : offset & ~15;
    place.z = stage + aligned;
    place.base = (aligned - offset) / ITEM;
    place.n = (int)(smaller(end, tile.bytes) - aligned + 15) / 16;
#endif
    place.step = ITEM;
    place.hess = place.z + job.stages * job.stage_bytes;
    return place;
}
#endif

KERNEL __launch_bounds__(THREADS, BLOCKS)
#if CLUSTER > 1
    __cluster_dims__(CLUSTER, 1, 1)
#endif
        rows(const __grid_constant__ Job job)
{
    SHARED_MEMORY(shared_memory);
    Control *const control = (Control *)shared_memory;
    Group group = {(int)threadIdx.x % GROUP_SIZE, 0, 0, GROUP_SIZE, control};
#if CLUSTER > 1
    group.rank = (int)cluster_rank();
#endif
    const int local = (int)threadIdx.x / GROUP_SIZE, at_once = THREADS / GROUP_SIZE;
    const double divisor = divisor_of(job), inverse = job.divisor ? 1 / divisor : job.scale;
    const bool counts = divisor > 0;
    const i64 per_outer = (job.n_inner + job.tile_rows - 1) / job.tile_rows, n_tiles = job.n_outer * per_outer;
    const i64 first = (i64)(blockIdx.x / CLUSTER) * job.tiles_per_block,
              last = smaller(first + job.tiles_per_block, n_tiles);
    double sum = 0;

#if STAGED
    const int depth = job.stages > 1 ? job.stages - 1 : 1; /* tiles on their way */
    char *const stages = (char *)shared_memory + (sizeof(Control) + 127) / 128 * 128;
#if BULK
    if (threadIdx.x == 0) {
        for (int s = 0; s < job.stages; s++) barrier_init(&control->arrived[s]);
        barrier_init_fence();
    }
#endif
#if CLUSTER > 1
    cluster_barrier(); /* nobody writes to a block that has not begun */
#else
    __syncthreads();
#endif
    const auto fetch_tile = [&](i64 t, int s) {
        if (t < last) fetch(tile_of(job, t, group.rank), stages + s * job.stage_bytes, &control->arrived[s]);
#if !BULK
        copy_async_commit();
#endif
    };
    for (int s = 0; s < depth; s++) fetch_tile(first + s, s);
    u32 parity = 0;
    int s = 0;
    for (i64 t = first; t < last; t++) {
        char *const stage = stages + s * job.stage_bytes;
        const Tile tile = tile_of(job, t, group.rank);
#if BULK
        barrier_wait(&control->arrived[s], parity);
#else
        if (depth > 1) copy_async_wait<1>(); /* there are 3 stages at most */
        else copy_async_wait<0>();
        __syncthreads();
#endif
        for (int i = 0; i < tile.rows; i += at_once) { /* as often for all, so that shuffles stay together */
            const bool live = i + local < tile.rows;
            const i64 row = live ? i + local : tile.rows - 1;
            sum += work_on_row(
                job, place_in(job, tile, stage, row), group, tile.outer, tile.inner + row, live, inverse, counts);
        }
#if BULK
        bulk_fence();
#endif
        __syncthreads();
        if (job.grad.data) {
            send(job, tile, job.grad, stage);
#if HESSIAN_IS_STAGED
            if (job.hess.data) send(job, tile, job.hess, stage + job.stages * job.stage_bytes);
#endif
        }
        if (job.stages == 1) __syncthreads();
#if BULK
        if (threadIdx.x == 0) {
            bulk_commit();
            if (job.stages > 1) bulk_wait_read<1>();
            else bulk_wait_read<0>();
        }
#endif
        fetch_tile(t + depth, (s ? s : job.stages) - 1); /* to where the tile before this one was */
        if (++s == job.stages) s = 0, parity ^= 1;
    }
#if BULK
    if (threadIdx.x == 0) bulk_wait_all();
#endif
#else
    for (i64 t = first; t < last; t++) {
        const i64 outer = job.n_outer > 1 ? t / per_outer : 0, begin = (t - outer * per_outer) * job.tile_rows;
        const int rows_here = (int)smaller(job.tile_rows, job.n_inner - begin);
        for (int i = 0; i < rows_here; i += at_once) {
            const bool live = i + local < rows_here;
            const i64 inner = begin + (live ? i + local : rows_here - 1);
            const Place place = {at(job.logits, outer, inner), nullptr, job.logits.klass, 0, job.n_classes};
            sum += work_on_row(job, place, group, outer, inner, live, inverse, counts);
        }
    }
#endif
    sum = sum_of_block(sum, control->of_warps);
    if (threadIdx.x == 0 && job.partial && group.rank == 0) job.partial[blockIdx.x / CLUSTER] = sum;
}
