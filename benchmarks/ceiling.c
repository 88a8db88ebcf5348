/* The memory ceiling: what a loop that does no arithmetic reaches on the same arrays with the same threads.
 *
 * (a) Two loops for copying. An ordinary store first reads the line that it overwrites; a streaming store does not,
 *     but leaves the caches cold. Which is faster depends on the size of the array and on the machine, so both are
 *     measured and the faster one is the ceiling. Two for reading as well: beyond the caches, four streams keep more
 *     prefetchers at work than one (measured: 40 against 28 GB/s on 131 MB, the same on 26 MB).
 * (b) The copy is written with vectors and not with memcpy, which may choose either kind of store by itself.
 * (c) Each thread gets one contiguous part, as an OpenMP static schedule does.
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

#define DEFINE_COPY(name, STORE, FENCE)                                        \
    void name(char *to, const char *from, size_t bytes, int threads)           \
    {                                                                          \
        size_t head = head_of(to, bytes), lines = (bytes - head) / LINE;       \
        memmove(to, from, head);                                               \
        _Pragma("omp parallel num_threads(threads)")                           \
        {                                                                      \
            size_t first, last, i;                                             \
            share(lines, &first, &last);                                       \
            for (i = first; i < last; i++) {                                   \
                char *target = to + head + LINE * i;                           \
                line value = *(const unaligned_line *)(from + head + LINE * i); \
                STORE;                                                         \
            }                                                                  \
            FENCE;                                                             \
        }                                                                      \
        head += LINE * lines;                                                  \
        memmove(to + head, from + head, bytes - head);                         \
    }

#if defined(__x86_64__)
#define FENCE _mm_sfence()
#else
#define FENCE (void)0
#endif

DEFINE_COPY(copy_stored, *(line *)target = value, (void)0)
DEFINE_COPY(copy_streamed, stream(target, value), FENCE)
