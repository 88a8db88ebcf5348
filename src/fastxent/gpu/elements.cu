/* What is computed element by element: binary losses and sigmoids.
 *
 * Design
 * a) WIDTH > 1: arrays without gaps, all seen as one axis. A thread takes vectors of 16 bytes of the logits, counted
 *    from the aligned address at or before the first; the two at the ends may be cut. Other arrays follow as they are
 *    aligned.
 * b) WIDTH 1: any strides.
 * c) A block has a fixed run of elements, and leaves one sum. Which of them a thread has, and in which order it adds
 *    them up, depends on the place of the logits alone: b) takes one by one what a) takes as vectors.
 * d) A thread has two vectors under way: one is loaded while the one before is worked on. In place that is safe: each
 *    is written by the thread that has read it.
 */
enum { BINARY_CROSS_ENTROPY = 5, BINARY_FOCAL, SIGMOID, LOG_SIGMOID };
#define IS_LOSS (TASK <= 6)
#define HAS_LABELS (TARGET == ANY ? job.target_type < FLOAT16 : TARGET < FLOAT16)
#define ITEM ((int)sizeof(STORED))
#define RUN (16 / ITEM)

/* WIDTH neighbours at once, if they lie so that this is possible. */
template <class T> struct alignas(sizeof(T) * WIDTH < 16 ? sizeof(T) * WIDTH : 16) Run {
    T item[WIDTH];
};
template <class T> DEVICE bool is_aligned(const char *p) { return ((u64)p & (alignof(Run<T>) - 1)) == 0; }
template <class T> DEVICE Run<T> load_run(const char *p, i64 stride)
{
    if (stride == sizeof(T) && is_aligned<T>(p)) return *(const Run<T> *)p;
    Run<T> run;
#pragma unroll
    for (int q = 0; q < WIDTH; q++) run.item[q] = *(const T *)(p + q * stride);
    return run;
}

/* Where an element lies. */
struct Position {
    i64 outer, inner, klass, number;
};

DEVICE Position position_of(const Job &job, i64 number)
{
    Position position = {0, 0, number, number};
    if (WIDTH == 1 && job.n_outer * job.n_inner > 1) {
        const i64 row = number / job.n_classes;
        position.klass = number - row * job.n_classes;
        position.outer = row / job.n_inner;
        position.inner = row - position.outer * job.n_inner;
    }
    return position;
}
DEVICE char *place_of(const Array &array, const Position &i)
{ return at(array, i.outer, i.inner) + i.klass * array.klass; }

#if IS_LOSS
/* A target; where only the job knows its type, its place. Integers are unsigned until they are neither 0 nor 1. */
#if TARGET == 12
typedef const char *Read;
typedef double Exact;
DEVICE i64 integer_of(const Job &job, Read target) { return integer_at(target, job.target_type); }
DEVICE i64 bits_of(const Job &job, Read target) { return bits_at(target, job.target_type); }
DEVICE Exact exact_of(const Job &job, Read target) { return floating_at<double>(target, job.target_type); }
#else
typedef Stored<TARGET>::type Read;
typedef Stored<(TARGET == FLOAT64 ? FLOAT64 : FLOAT32)>::type Exact;
DEVICE i64 integer_of(const Job &job, Read target)
{ return target <= 1 ? (i64)target : integer_at((const char *)&target, job.target_type); }
DEVICE i64 bits_of(const Job &job, Read target) { return bits_at((const char *)&target, job.target_type); }
DEVICE Exact exact_of(const Job &job, Read target) { return number_of<TARGET, Exact>(target); }
#endif

struct Options {
    REAL one_minus_eps, half_eps, scale; /* of an element of weight 1 */
    double inverse, gamma;               /* of the divisor; of the focal loss */
    bool counts;
};

/* In float32 a weight times a finite loss may overflow; that is still a finite double. */
DEVICE double wide_loss(double eps, double z, double t, double pos_weight)
{
    const double log_sum = log1p(exp(-fabs(z)));
    const double positive = ((1 - eps) * t + eps / 2) * pos_weight, negative = (1 - eps) * (1 - t) + eps / 2;
    const double minus_log_p = INPUTS == 2 ? -log(z) : fmax(-z, 0.0) + log_sum;
    const double minus_log_q = INPUTS == 2 ? -log1p(-z) : fmax(z, 0.0) + log_sum;
    return (positive == 0 ? 0 : positive * minus_log_p) + (negative == 0 ? 0 : negative * minus_log_q);
}

/* The results of one element; returns its loss with its weight. */
DEVICE double compute(const Job &job, const Options &options, const Position &i, REAL z, Read target, Results &results)
{
    const double s = job.sample_weight.data ? double_at(place_of(job.sample_weight, i), job.sample_weight_type) : 1;
    bool is_wrong = !is_weight(s), is_ignored, is_bad_target;
    if (is_wrong) report(job, BAD_WEIGHT, i.number, 0, s);
    Exact exact = 0; /* compared as it is: rounded to REAL it might become what is allowed */
    REAL t;
    if (HAS_LABELS) {
        const i64 integer = integer_of(job, target);
        t = (REAL)(integer & 1);
        is_ignored = job.has_ignore_index && integer == job.ignore_index;
        is_bad_target = (u64)integer > 1;
    } else {
        exact = exact_of(job, target);
        t = (REAL)exact;
        is_ignored = job.has_ignore_index && (double)exact == (double)job.ignore_index;
        is_bad_target = !(exact >= 0 && exact <= 1);
    }
    if (is_bad_target && !is_ignored) {
        report(job, BAD_TARGET, i.number, HAS_LABELS ? bits_of(job, target) : 0, (double)exact);
        is_wrong = true;
    }
    const REAL scale = job.sample_weight.data ? scale_of(job, s, options.inverse) : options.scale;
    const REAL pos_weight = job.pos_weight.data ? *(const REAL *)place_of(job.pos_weight, i) : (REAL)1;
    Masses masses = masses_of(t, options.one_minus_eps, options.half_eps);
    REAL counted = 1;
#if TASK == 6
    const REAL alpha = job.alpha < 0
        ? (REAL)1
        : multiply_add((REAL)job.alpha, masses.positive, (REAL)(1 - job.alpha) * masses.negative);
    counted = alpha;
    results = binary_focal_of(logit_of(z), masses, options.gamma, alpha, scale);
    double value = (double)results.value;
#else
    masses.positive *= pos_weight;
    counted = masses.positive + masses.negative;
#if INPUTS == 2
    results = probability_of(z, masses, scale);
#else
    results = binary_of(logit_of(z), masses, scale);
#endif
    double value = (double)results.value;
#if !REAL_IS_DOUBLE
    if (results.value == (REAL)INFINITE && is_finite(z))
        value = wide_loss(job.label_smoothing, (double)z, (double)t, (double)pos_weight);
#endif
#endif
    if (is_wrong || is_ignored || !(s > 0) || !options.counts || !(counted > 0)) {
        results.grad = results.hess = 0;
        return is_wrong ? (double)NOT_A_NUMBER : 0;
    }
    return s * value;
}
#endif

DEVICE bool is_element(i64 number, i64 count) { return (u64)number < (u64)count; }
/* Of WIDTH elements from `number` on: is there any, are there all? */
DEVICE bool is_vector(i64 number, i64 count) { return number < count && number + WIDTH > 0; }
DEVICE bool is_whole(i64 number, i64 count) { return number >= 0 && number + WIDTH <= count; }

DEVICE void put_vector(const Array &array, const Position &i, i64 count, bool whole, const STORED *item)
{
    char *const to = place_of(array, i);
    if (WIDTH > 1 && whole && ((u64)to & 15) == 0) {
        Vector16 v;
        memcpy(&v, item, sizeof v < WIDTH * sizeof(STORED) ? sizeof v : WIDTH * sizeof(STORED));
        store_streaming(to, v);
    } else
#pragma unroll
        for (int q = 0; q < WIDTH; q++)
            if (is_element(i.number + q, count)) *(STORED *)(to + q * array.klass) = item[q];
}

/* What a thread reads of WIDTH neighbours; 0, or an address that nobody reads, beyond either end. */
struct Vector {
    STORED z[WIDTH];
#if IS_LOSS
    Run<Read> t;
#endif
};

DEVICE Vector load_vector(const Job &job, i64 number, i64 count)
{
    Vector vector = {};
    if (!is_vector(number, count)) return vector;
    const bool whole = is_whole(number, count);
    const Position i = position_of(job, number);
    const char *const from = place_of(job.logits, i);
    if (WIDTH > 1 && whole) {
        const Vector16 v = load_streaming(from);
        memcpy(vector.z, &v, sizeof vector.z < sizeof v ? sizeof vector.z : sizeof v);
    } else
        for (int q = 0; q < WIDTH; q++)
            if (is_element(number + q, count)) vector.z[q] = *(const STORED *)(from + q * job.logits.klass);
#if IS_LOSS
    const char *const targets = place_of(job.target, i);
#if TARGET == 12
#pragma unroll
    for (int q = 0; q < WIDTH; q++) vector.t.item[q] = targets + q * job.target.klass;
#else
    if (whole) vector.t = load_run<Read>(targets, job.target.klass);
    else
        for (int q = 0; q < WIDTH; q++)
            if (is_element(number + q, count)) vector.t.item[q] = *(const Read *)(targets + q * job.target.klass);
#endif
#endif
    return vector;
}

KERNEL __launch_bounds__(THREADS, BLOCKS) elements(const __grid_constant__ Job job)
{
    SHARED_MEMORY(shared_memory);
    enum { RUNS = 4 }; /* of every thread */
    const i64 count = job.n_outer * job.n_inner * job.n_classes;
    const i64 lead = ((u64)job.logits.data & 15) / ITEM;
    const i64 begin = (i64)blockIdx.x * (THREADS * RUNS) + threadIdx.x;
    const auto number_of = [&](int k) { return (begin + k / RUN * THREADS) * RUN + k % RUN - lead; };
    double sum = 0;
#if IS_LOSS
    const double divisor = divisor_of(job);
    const double inverse = job.divisor ? 1 / divisor : job.scale;
    const Options options = {(REAL)(1 - job.label_smoothing), (REAL)(job.label_smoothing / 2),
        scale_of(job, 1, inverse), inverse, usable_gamma(job.gamma), divisor > 0};
#endif
    Vector next = load_vector(job, number_of(0), count);
#pragma unroll 1
    for (int k = 0; k < RUNS * RUN; k += WIDTH) {
        const i64 number = number_of(k);
        const Vector vector = next;
        if (k + WIDTH < RUNS * RUN) next = load_vector(job, number_of(k + WIDTH), count);
        if (!is_vector(number, count)) continue;
        const bool whole = is_whole(number, count);
        const Position i = position_of(job, number);
        STORED grad[WIDTH], hess[WIDTH], loss[WIDTH];
#pragma unroll
        for (int q = 0; q < WIDTH; q++) {
            const REAL x = real_of(vector.z[q]);
#if TASK == 7
            grad[q] = stored_of(sigmoid_of(x));
#elif TASK == 8
            grad[q] = stored_of(log_sigmoid_of(x));
#else
            if (!whole && !is_element(number + q, count)) continue;
            Results results;
            const Position here = {i.outer, i.inner, i.klass + q, number + q};
            const double value = compute(job, options, here, x, vector.t.item[q], results);
            sum += value;
            grad[q] = stored_of(results.grad), hess[q] = stored_of(results.hess), loss[q] = stored_of((REAL)value);
#endif
        }
        if (job.grad.data) put_vector(job.grad, i, count, whole, grad);
#if IS_LOSS
        if (HESSIAN && job.hess.data) put_vector(job.hess, i, count, whole, hess);
        if (job.loss.data) put_vector(job.loss, i, count, whole, loss);
#endif
    }
    sum = sum_of_block(sum, (double *)shared_memory);
    if (threadIdx.x == 0 && job.partial) job.partial[blockIdx.x] = sum;
}
