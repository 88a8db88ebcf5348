/* The memory ceiling: what a loop that does no arithmetic reaches on the same arrays with the same threads.
 *
 * (a) Two loops for copying. An ordinary store first reads the line that it overwrites; a streaming store does not,
 *     but leaves the caches cold. Which is faster depends on the size of the array and on the machine, so both are
 *     measured and the faster one is the ceiling. Two for reading as well: beyond the caches, four streams keep more
 *     prefetchers at work than one (measured: 40 against 28 GB/s on 131 MB, the same on 26 MB).
 * (b) The copy is written with vectors and not with memcpy, which may choose either kind of store by itself.
 * (c) Each thread gets one contiguous part, as an OpenMP static schedule does.
 * (d) Where the target is as large as the logits (binary losses, probabilities), two arrays are read and one is written.
 * (e) The arithmetic ceiling is that of exponentials summed from an array in the L1 cache: the usual reduction to
 *     |r| <= log(2) / 2 and a polynomial of full precision, without a thought of underflow, infinities or NaN.
 */
#include <omp.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define LINE 64
#define STREAMS 4

typedef uint64_t line __attribute__((vector_size(LINE), aligned(LINE), may_alias));
typedef uint64_t unaligned_line __attribute__((vector_size(LINE), aligned(1), may_alias));

static inline void stream(char *to, line value)
{
#if defined(__AVX512F__)
    _mm512_stream_si512((void *)to, (__m512i)value);
#elif defined(__AVX__)
    __m256i half[2];
    memcpy(half, &value, LINE);
    _mm256_stream_si256((__m256i *)to, half[0]);
    _mm256_stream_si256((__m256i *)to + 1, half[1]);
#elif defined(__SSE2__)
    __m128i quarter[4];
    memcpy(quarter, &value, LINE);
    for (int i = 0; i < 4; i++)
        _mm_stream_si128((__m128i *)to + i, quarter[i]);
#else
    *(line *)to = value;
#endif
}

int has_streaming_stores(void)
{
#if defined(__SSE2__)
    return 1;
#else
    return 0;
#endif
}

/* Lines [*first, *last) belong to this thread. */
static void share(size_t lines, size_t *first, size_t *last)
{
    size_t threads = (size_t)omp_get_num_threads(), thread = (size_t)omp_get_thread_num();
    *first = lines * thread / threads;
    *last = lines * (thread + 1) / threads;
}

/* Sums the words of all whole lines; `streams` parts of each thread's share are read at the same time. */
static inline uint64_t read_lines(const char *from, size_t bytes, int threads, size_t streams)
{
    uint64_t total = 0;
#pragma omp parallel num_threads(threads) reduction(+ : total)
    {
        size_t first, last;
        share(bytes / LINE, &first, &last);
        size_t part = (last - first) / STREAMS;
        size_t step = streams == 1 ? STREAMS : 1, next = streams == 1 ? 1 : part; /* the same lines in another order */
        line sum[STREAMS] = {{0}}; /* as many chains, so that the latency of an addition does not count */
        for (size_t i = 0; i < part; i++)
            for (size_t k = 0; k < STREAMS; k++)
                sum[k] += *(const unaligned_line *)(from + LINE * (first + step * i + next * k));
        for (size_t i = first + STREAMS * part; i < last; i++)
            sum[0] += *(const unaligned_line *)(from + LINE * i);
        for (size_t k = 0; k < STREAMS; k++)
            for (size_t lane = 0; lane < LINE / sizeof(uint64_t); lane++)
                total += sum[k][lane];
    }
    return total;
}

uint64_t read_one_stream(const char *from, size_t bytes, int threads)
{
    return read_lines(from, bytes, threads, 1);
}

uint64_t read_four_streams(const char *from, size_t bytes, int threads)
{
    return read_lines(from, bytes, threads, STREAMS);
}

/* Bytes before the first whole line of `to`: streaming stores need aligned addresses, NumPy promises 16 bytes only. */
static size_t head_of(const char *to, size_t bytes)
{
    size_t head = (LINE - (uintptr_t)to % LINE) % LINE;
    return head < bytes ? head : bytes;
}

/* `to` becomes the exclusive or of `from` and `other`; a copy, where `other` is NULL. */
static void merge_bytes(char *to, const char *from, const char *other, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        to[i] = from[i] ^ (other ? other[i] : 0);
}

static inline line merged(const char *from, const char *other)
{
    line value = *(const unaligned_line *)from;
    if (other)
        value ^= *(const unaligned_line *)other;
    return value;
}

#define DEFINE_LOOP(name, OTHER, STORE, FENCE)                                                      \
    void name(char *to, const char *from, const char *other, size_t bytes, int threads)             \
    {                                                                                               \
        size_t head = head_of(to, bytes), lines = (bytes - head) / LINE;                            \
        merge_bytes(to, from, OTHER, head);                                                         \
        _Pragma("omp parallel num_threads(threads)")                                                \
        {                                                                                           \
            size_t first, last, i;                                                                  \
            share(lines, &first, &last);                                                            \
            for (i = first; i < last; i++) {                                                        \
                size_t at = head + LINE * i;                                                        \
                char *target = to + at;                                                             \
                line value = merged(from + at, OTHER ? OTHER + at : NULL);                          \
                STORE;                                                                              \
            }                                                                                       \
            FENCE;                                                                                  \
        }                                                                                           \
        head += LINE * lines;                                                                       \
        merge_bytes(to + head, from + head, OTHER ? OTHER + head : NULL, bytes - head);             \
        (void)other;                                                                                \
    }

#if defined(__x86_64__)
#define FENCE _mm_sfence()
#else
#define FENCE (void)0
#endif

#define NOTHING ((const char *)NULL)

DEFINE_LOOP(copy_stored, NOTHING, *(line *)target = value, (void)0)
DEFINE_LOOP(copy_streamed, NOTHING, stream(target, value), FENCE)
DEFINE_LOOP(merge_stored, other, *(line *)target = value, (void)0)
DEFINE_LOOP(merge_streamed, other, stream(target, value), FENCE)

/* exp(x) = 2^n exp(r): adding MAGIC, 1.5 * 2^(bits of the fraction), leaves the rounded n in the lowest bits. The sum of
 * 1 / k! up to DEGREE is exact to the last bit but one for |r| <= log(2) / 2. */
#define DEFINE_EXP_SUM(name, real, integer, FRACTION_BITS, MAGIC, LN2_HIGH, LN2_LOW, DEGREE)                            \
    typedef real name##_vector __attribute__((vector_size(LINE), aligned(sizeof(real)), may_alias));                    \
    typedef integer name##_bits __attribute__((vector_size(LINE)));                                                     \
    double name(const real *x, size_t n, size_t repeats)                                                                \
    {                                                                                                                   \
        const size_t lanes = LINE / sizeof(real);                                                                       \
        name##_vector sum[STREAMS] = {{0}};                                                                             \
        real inverse_factorial[DEGREE + 1] = {1};                                                                       \
        for (int k = 1; k <= DEGREE; k++)                                                                               \
            inverse_factorial[k] = inverse_factorial[k - 1] / (real)k;                                                  \
        for (size_t repeat = 0; repeat < repeats; repeat++) {                                                           \
            __asm__ volatile("" ::: "memory"); /* else all repeats are one */                                           \
            for (size_t i = 0; i + STREAMS * lanes <= n; i += STREAMS * lanes)                                          \
                for (size_t k = 0; k < STREAMS; k++) {                                                                  \
                    name##_vector z = *(const name##_vector *)(x + i + k * lanes);                                      \
                    name##_vector shifted = z * (real)1.4426950408889634 + (real)MAGIC, whole = shifted - (real)MAGIC;  \
                    name##_vector r = z - whole * (real)LN2_HIGH - whole * (real)LN2_LOW;                               \
                    name##_vector p = r * inverse_factorial[DEGREE] + inverse_factorial[DEGREE - 1];                    \
                    _Pragma("GCC unroll 16")                                                                            \
                    for (int j = DEGREE - 2; j >= 0; j--)                                                               \
                        p = p * r + inverse_factorial[j];                                                               \
                    sum[k] += (name##_vector)((name##_bits)p + ((name##_bits)shifted << FRACTION_BITS));                \
                }                                                                                                       \
        }                                                                                                               \
        double total = 0;                                                                                               \
        for (size_t k = 0; k < STREAMS; k++)                                                                            \
            for (size_t lane = 0; lane < lanes; lane++)                                                                 \
                total += sum[k][lane];                                                                                  \
        return total;                                                                                                   \
    }

/* log(2) in two parts: Cody and Waite, Software Manual for the Elementary Functions, 1980. */
DEFINE_EXP_SUM(exp_sum_float32, float, int32_t, 23, 12582912.0f, 0.693359375f, -2.12194440e-4f, 6)
DEFINE_EXP_SUM(exp_sum_float64, double, int64_t, 52, 6755399441055744.0, 0.693145751953125, 1.42860682030941723212e-6, 12)
