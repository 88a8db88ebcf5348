/* Numbers: the types of the arrays, the type of the arithmetic, sums that do not lose digits; the job and its flaws.
 *
 * Design
 * a) Half precision is storage only; REAL is float or double, sums over rows are double.
 * b) CuPy compiles with -ftz=true: subnormal float32 numbers are 0, in and out. float64 has them.
 * c) Sums are compensated (Knuth's TwoSum; The Art of Computer Programming 2, 4.2.2): the error of a row does not grow
 *    with its classes. No sum depends on the order in which threads arrive.
 * d) Products are fused with sums where multiply_add says so, and nowhere else (-fmad=false): left to the compiler that
 *    would differ between the variants of a kernel, and so would the bits of a gradient with and without a Hessian.
 * e) Whatever a label is, it is compared unsigned before anything is read with it. What is wrong is written down, the
 *    smallest call and position first, and the host is told through a word of its own memory.
 */
enum { INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64, FLOAT16, BFLOAT16, FLOAT32, FLOAT64, ANY };

template <int CODE> struct Stored {};
template <> struct Stored<INT8> {
    typedef signed char type;
};
template <> struct Stored<INT16> {
    typedef short type;
};
template <> struct Stored<INT32> {
    typedef int type;
};
template <> struct Stored<INT64> {
    typedef i64 type;
};
template <> struct Stored<UINT8> {
    typedef u8 type;
};
template <> struct Stored<UINT16> {
    typedef u16 type;
};
template <> struct Stored<UINT32> {
    typedef u32 type;
};
template <> struct Stored<UINT64> {
    typedef u64 type;
};
template <> struct Stored<FLOAT16> {
    typedef u16 type;
};
template <> struct Stored<BFLOAT16> {
    typedef u16 type;
};
template <> struct Stored<FLOAT32> {
    typedef float type;
};
template <> struct Stored<FLOAT64> {
    typedef double type;
};

typedef Stored<TYPE>::type STORED;
#define REAL_IS_DOUBLE (TYPE == 11)
#define IS_HALF (TYPE == 8 || TYPE == 9)
#if REAL_IS_DOUBLE
typedef double REAL;
#define SMALLEST_NORMAL 2.2250738585072014e-308
#define REAL_LARGEST 1.7976931348623157e308
#define REAL_EPSILON 2.220446049250313e-16
DEVICE double exponential_of(double x) { return exp(x); }
DEVICE double log_of(double x) { return log(x); }
DEVICE double log1p_of(double x) { return log1p(x); }
DEVICE double multiply_add(double a, double b, double c) { return fma(a, b, c); }
DEVICE double maximum(double a, double b) { return fmax(a, b); }
DEVICE double absolute(double x) { return fabs(x); }
#else
typedef float REAL;
#define SMALLEST_NORMAL 1.17549435e-38f
#define REAL_LARGEST 3.40282347e38f
#define REAL_EPSILON 1.1920929e-7f
#if IS_HALF
/* x log2(e) is rounded once, as is x itself in float32: differences of halves are exact unless one of them hardly
 * matters. A third of the instructions of expf, which would limit the speed. */
DEVICE float exponential_of(float x) { return power_of_two(x * 1.44269504f); }
#else
DEVICE float exponential_of(float x) { return expf(x); }
#endif
DEVICE float log_of(float x) { return logf(x); }
DEVICE float log1p_of(float x) { return log1pf(x); }
DEVICE float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
DEVICE float maximum(float a, float b) { return fmaxf(a, b); }
DEVICE float absolute(float x) { return fabsf(x); }
#endif

template <class T> DEVICE bool is_finite(T x) { return x - x == 0; }
DEVICE i64 smaller(i64 a, i64 b) { return a < b ? a : b; }

/* ---- numbers of any type ---- */

/* As REAL; a double on request keeps what REAL would round off. */
template <int CODE, class T> DEVICE T number_of(typename Stored<CODE>::type x)
{
    if constexpr (CODE == FLOAT16) return (T)of_float16(x);
    else if constexpr (CODE == BFLOAT16) return (T)real_of_bits((u32)x << 16);
    else return (T)x;
}
template <int CODE, class T> DEVICE T number_at(const char *p)
{ return number_of<CODE, T>(*(const typename Stored<CODE>::type *)p); }

DEVICE REAL real_of(STORED x) { return number_of<TYPE, REAL>(x); }
DEVICE STORED stored_of(REAL x)
{
#if TYPE == 8
    return to_float16(x);
#elif TYPE == 9
    return to_bfloat16(x);
#else
    return x;
#endif
}

/* One of the integers a label may be; one beyond int64 becomes the largest of these, which is no class. */
DEVICE i64 integer_at(const char *p, int code)
{
    switch (code) {
    case INT8: return *(const signed char *)p;
    case INT16: return *(const short *)p;
    case INT32: return *(const int *)p;
    case UINT8: return *(const u8 *)p;
    case UINT16: return *(const u16 *)p;
    case UINT32: return *(const u32 *)p;
    case UINT64: {
        const u64 label = *(const u64 *)p;
        return label > 0x7fffffffffffffffull ? 0x7fffffffffffffffll : (i64)label;
    }
    default: return *(const i64 *)p;
    }
}

/* The bits of one for a message, which is to show what is beyond int64 as well. */
DEVICE i64 bits_at(const char *p, int code) { return code == UINT64 ? *(const i64 *)p : integer_at(p, code); }

template <class T> DEVICE T floating_at(const char *p, int code)
{
    switch (code) {
    case FLOAT16: return number_at<FLOAT16, T>(p);
    case BFLOAT16: return number_at<BFLOAT16, T>(p);
    case FLOAT32: return number_at<FLOAT32, T>(p);
    default: return number_at<FLOAT64, T>(p);
    }
}

DEVICE double double_at(const char *p, int code)
{ return code < FLOAT16 ? (double)integer_at(p, code) : floating_at<double>(p, code); }

/* ---- sums ---- */

template <class T> struct PairOf {
    T high, low;
};
typedef PairOf<REAL> Pair;

template <class T> DEVICE PairOf<T> two_sum(T a, T b)
{
    const T sum = a + b, from_b = sum - a;
    return {sum, (a - (sum - from_b)) + (b - from_b)};
}
template <class T> DEVICE void add(PairOf<T> &sum, T term)
{
    const PairOf<T> next = two_sum(sum.high, term);
    sum.high = next.high, sum.low += next.low;
}
/* Symmetric to the last bit (the error of an addition does not depend on its order), so that all threads of a butterfly
 * get the same. */
DEVICE Pair operator+(Pair a, Pair b)
{
    const Pair sum = two_sum(a.high, b.high);
    return {sum.high, sum.low + (a.low + b.low)};
}
/* An infinite sum has a NaN for its error. */
template <class T> DEVICE T total(PairOf<T> sum) { return sum.low == sum.low ? sum.high + sum.low : sum.high; }

/* A sum that may leave the range of float: in float32 a double in the place of the pair. */
#if REAL_IS_DOUBLE
DEVICE double wide(Pair sum) { return total(sum); }
DEVICE Pair add_wide(Pair sum, double term) { return sum + Pair{term, 0}; }
#else
DEVICE double wide(Pair sum)
{
    double x;
    memcpy(&x, &sum, sizeof x);
    return x;
}
DEVICE Pair add_wide(Pair sum, double term)
{
    const double x = wide(sum) + term;
    memcpy(&sum, &x, sizeof sum);
    return sum;
}
#endif

/* ---- the job ---- */

/* An array seen as [outer][inner][class]; strides in bytes. No data: not given, or not wanted. */
struct Array {
    char *data;
    i64 outer, inner, klass;
};
DEVICE char *at(const Array &array, i64 outer, i64 inner)
{ return array.data + outer * array.outer + inner * array.inner; }

/* What is wrong, for the host: the smallest key (call, kind, position) and the number found there. The complement of a
 * key, so that zeros are no flaw. */
struct Flaws {
    u64 rest;
    double value;
    i64 integer;
    u32 lock, unused;
};
enum { BAD_WEIGHT, BAD_TARGET, BAD_DIVISOR };

/* One call, the same for all blocks. The fields are those of engine.py. */
struct Job {
    Array logits, target, sample_weight, pos_weight, loss, grad, hess;
    const REAL *class_weight;
    const double *divisor; /* of gradient and Hessian, or NULL: `scale` is its inverse */
    double *partial;       /* a sum for each block */
    Flaws *flaws;
    volatile int *flagged; /* in the memory of the host */
    i64 n_outer, n_inner, n_classes, ignore_index;
    double label_smoothing, gamma, alpha, scale;
    u64 call;
    int has_ignore_index, target_type, sample_weight_type, tile_rows, tiles_per_block, stage_bytes, stages, group;
};

/* Only where something is wrong, so a lock is cheap; later positions find an earlier one there and go. */
DEVICE void write_down(Flaws *all, volatile int *flagged, u64 rest, i64 integer, double value)
{
    volatile Flaws *flaws = all;
    while (rest > flaws->rest)
        if (atomicCAS(&all->lock, 0u, 1u) == 0) {
            if (rest > flaws->rest) flaws->rest = rest, flaws->integer = integer, flaws->value = value;
            __threadfence_system();
            *flagged = 1;
            atomicExch(&all->lock, 0u);
        }
}
DEVICE void report(const Job &job, int kind, i64 position, i64 integer, double value)
{ write_down(job.flaws, job.flagged, ~(job.call << 42 | (u64)kind << 40 | (u64)position), integer, value); }

DEVICE double sample_weight_at(const Job &job, i64 outer, i64 inner)
{ return job.sample_weight.data ? double_at(at(job.sample_weight, outer, inner), job.sample_weight_type) : 1; }

DEVICE bool is_weight(double weight) { return weight >= 0 && is_finite(weight); }

/* The divisor; nothing counts where it is 0. */
DEVICE double divisor_of(const Job &job) { return job.divisor ? *job.divisor : 1 / job.scale; }

/* The scale of a gradient. One that REAL cannot hold becomes the nearest that it can: 0 times infinity would be NaN. */
DEVICE REAL scale_of(const Job &job, double weight, double inverse)
{
    const double exact = inverse < 1e-300 || inverse > 1e300 ? weight / divisor_of(job) : weight * inverse;
    const double held = exact > (double)REAL_LARGEST ? (double)REAL_LARGEST : exact;
    return held > 0 && held < (double)SMALLEST_NORMAL ? SMALLEST_NORMAL : (REAL)held;
}

/* The sum of a number of every thread, in a fixed order; the result is thread 0's. */
DEVICE double sum_of_block(double x, double *of_warps)
{
    for (int mask = 16; mask; mask /= 2) x += shuffle(x, mask);
    __syncthreads();
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = x;
    __syncthreads();
    double sum = 0;
    if (threadIdx.x == 0)
        for (int warp = 0; warp < THREADS / 32; warp++) sum += of_warps[warp];
    return sum;
}
