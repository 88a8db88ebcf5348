/* Every kernel, with every buffer against a page that may not be touched: a byte read or written outside ends the call.
 *
 * Built as a shared library and handed the tables of the extension that is installed, so that what is tested is what is
 * shipped. Buffers end where their last page ends, or begin where their first one does; what is between an array's
 * elements may be read, as it is the caller's. */
#define _GNU_SOURCE
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "kernels.h"

enum { LOGITS, TARGET, SAMPLE_WEIGHT, POS_WEIGHT, LOSS, GRAD, HESS, CLASS_WEIGHT, SCRATCH, BUFFERS };
static const char *BUFFER_NAMES[] = {"logits", "target", "sample_weight", "pos_weight", "loss", "grad", "hess", "class_weight",
                                     "scratch"};
static char *begin[BUFFERS], *end[BUFFERS]; /* of the pages of a buffer, between its guards */
static size_t page, most_bytes;
static char running[512];
/* Of the array that was placed last in the target's pages. */
static char *target_begin;
static size_t target_bytes;

static void on_fault(int number, siginfo_t *info, void *context)
{
    (void)context;
    const char *at = info->si_addr;
    char text[256];
    int n = snprintf(text, sizeof text, "guard-pages: signal %d at %p\n", number, (const void *)at);
    for (int i = 0; i < BUFFERS; i++)
        if (at >= begin[i] - most_bytes && at < end[i] + most_bytes && (at < begin[i] || at >= end[i]))
            n = snprintf(text, sizeof text, "guard-pages: %ld bytes %s the pages of %s\n",
                         (long)(at < begin[i] ? begin[i] - at : at - end[i]), at < begin[i] ? "before" : "past", BUFFER_NAMES[i]);
    if (write(2, text, (size_t)n) < 0 || write(2, running, strlen(running)) < 0) _exit(3);
    _exit(2);
}

static int make_buffers(size_t bytes)
{
    page = (size_t)sysconf(_SC_PAGESIZE);
    most_bytes = (bytes + page - 1) / page * page;
    for (int i = 0; i < BUFFERS; i++) {
        /* As much again on either side, so that strides that lead astray meet a guard too. */
        char *all = mmap(NULL, 3 * most_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (all == MAP_FAILED || mprotect(all + most_bytes, most_bytes, PROT_READ | PROT_WRITE)) return 0;
        begin[i] = all + most_bytes, end[i] = begin[i] + most_bytes;
    }
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    return !sigaction(SIGSEGV, &action, NULL) && !sigaction(SIGBUS, &action, NULL);
}

static size_t size_of_type(int type)
{
    static const unsigned char sizes[] = {1, 2, 4, 8, 1, 2, 4, 8, 2, 2, 4, 8};
    return sizes[type];
}

static uint32_t state = 1;
static uint32_t random_bits(void) { return state = state * 1664525u + 1013904223u, state >> 8; }

/* A number of any type: labels below n_classes, everything else in [0, 1). */
static void put(char *place, int type, int64_t n_classes)
{
    const double real = (random_bits() % 1000) / 1000.0;
    const int64_t label = (int64_t)(random_bits() % (uint32_t)(n_classes < 120 ? n_classes : 120));
    const float single = (float)real;
    uint32_t bits;
    uint16_t half;
    memcpy(&bits, &single, 4);
    switch (type) {
    case FX_FLOAT64: memcpy(place, &real, 8); break;
    case FX_FLOAT32: memcpy(place, &single, 4); break;
    case FX_BFLOAT16: half = (uint16_t)(bits >> 16), memcpy(place, &half, 2); break;
    case FX_FLOAT16: half = (uint16_t)(random_bits() % 0x3c00), memcpy(place, &half, 2); break;
    default: memcpy(place, &label, size_of_type(type)); /* little endian, as all machines with levels are */
    }
}

/* n of them, repeated: the kernels do not care, and random numbers take longer than they do. */
static void fill(char *first, int type, int64_t n, int64_t n_classes)
{
    enum { PERIOD = 61 };
    const size_t size = size_of_type(type);
    const int64_t own = n < PERIOD ? n : PERIOD;
    for (int64_t i = 0; i < own; i++) put(first + (size_t)i * size, type, n_classes);
    for (int64_t done = own, part; done < n; done += part) {
        part = n - done < done ? n - done : done;
        memcpy(first + (size_t)done * size, first, (size_t)part * size);
    }
}

/* Axes from the innermost on, with a gap of one element behind the innermost runs, or none; backwards, or not. */
typedef struct {
    int rows_innermost, gap, backwards;
} LAYOUT;

static const LAYOUT LAYOUTS[] = {{0, 0, 0}, {1, 0, 0}, {0, 1, 0}, {1, 1, 0}, {0, 0, 1}, {1, 0, 1}};
enum { N_LAYOUTS = sizeof LAYOUTS / sizeof *LAYOUTS };

/* An array [outer][inner][klass] (klass 1 where there is none) at the end or the beginning of its pages. */
static fx_array placed(int buffer, int type, int64_t outer, int64_t inner, int64_t klass, LAYOUT layout, int at_end, int64_t n_classes)
{
    fx_array array = {NULL, 0, 0, 0};
    const int64_t fast = layout.rows_innermost ? inner : klass, slow = layout.rows_innermost ? klass : inner;
    const int64_t run = fast + layout.gap, plane = run * slow + layout.gap;
    const size_t size = size_of_type(type);
    array.inner = layout.rows_innermost ? 1 : run;
    array.klass = layout.rows_innermost ? run : 1;
    array.outer = plane;
    /* From the first element to the last: no gap at either end. */
    const int64_t extent = (outer - 1) * array.outer + (inner - 1) * array.inner + (klass - 1) * array.klass + 1;
    if ((size_t)extent * size > most_bytes) fprintf(stderr, "guard-pages: %s is too large\n", BUFFER_NAMES[buffer]), exit(3);
    char *first = at_end ? end[buffer] - (size_t)extent * size : begin[buffer];
    fill(first, type, extent, n_classes);
    array.data = first;
    if (buffer == TARGET) target_begin = first, target_bytes = (size_t)extent * size;
    if (layout.backwards) {
        array.data = first + (size_t)(extent - 1) * size;
        array.outer = -array.outer, array.inner = -array.inner, array.klass = -array.klass;
    }
    return array;
}

typedef struct {
    const char *name;
    int task, inputs, target_type; /* target_type -1: none; -2: any integer; -3: any floating */
    double smoothing;
} KIND;

static const KIND KINDS[] = {
    {"cross_entropy", FX_CROSS_ENTROPY, FX_LOGITS, -2, 0},
    {"cross_entropy smoothed", FX_CROSS_ENTROPY, FX_LOGITS, -2, 0.1},
    {"cross_entropy soft", FX_CROSS_ENTROPY, FX_LOGITS, -3, 0},
    {"cross_entropy of log_probs", FX_CROSS_ENTROPY, FX_LOG_PROBS, -2, 0.1},
    {"cross_entropy of probs", FX_CROSS_ENTROPY, FX_PROBS, -3, 0},
    {"focal", FX_FOCAL, FX_LOGITS, -2, 0},
    {"focal soft", FX_FOCAL, FX_LOGITS, -3, 0.1},
    {"softmax", FX_SOFTMAX, FX_LOGITS, -1, 0},
    {"log_softmax", FX_LOG_SOFTMAX, FX_LOGITS, -1, 0},
    {"logsumexp", FX_LOGSUMEXP, FX_LOGITS, -1, 0},
    {"binary_cross_entropy", FX_BINARY_CROSS_ENTROPY, FX_LOGITS, -2, 0},
    {"binary_cross_entropy soft", FX_BINARY_CROSS_ENTROPY, FX_LOGITS, -3, 0.1},
    {"binary_cross_entropy of probs", FX_BINARY_CROSS_ENTROPY, FX_PROBS, -3, 0},
    {"binary_focal", FX_BINARY_FOCAL, FX_LOGITS, -2, 0},
    {"binary_focal soft", FX_BINARY_FOCAL, FX_LOGITS, -3, 0},
    {"sigmoid", FX_SIGMOID, FX_LOGITS, -1, 0},
    {"log_sigmoid", FX_LOG_SIGMOID, FX_LOGITS, -1, 0},
};
enum { N_KINDS = sizeof KINDS / sizeof *KINDS };

/* One call: `choice` picks what is wanted, the types, the options and where the buffers lie. */
static void call(const fx_table *table, int real_type, const KIND *kind, int64_t outer, int64_t inner, int64_t klass,
                 LAYOUT layout, uint32_t choice)
{
    const int elementwise = kind->task >= FX_BINARY_CROSS_ENTROPY, activation = kind->target_type == -1;
    const int at_end = choice & 1, in_place = (choice >> 1 & 7) == 0, want = (int)((choice >> 4) % 3);
    const int real = real_type == FX_FLOAT64 ? FX_FLOAT64 : FX_FLOAT32;
    const LAYOUT plain = {0, 0, 0}, across = {!layout.rows_innermost, 0, 0};
    fx_job job;
    memset(&job, 0, sizeof job);
    snprintf(running, sizeof running, "guard-pages: %s, %s, real type %d, %ld x %ld x %ld, layout %d%d%d, choice %u\n",
             table->level, kind->name, real_type, (long)outer, (long)inner, (long)klass, layout.rows_innermost, layout.gap,
             layout.backwards, choice);
    job.n_outer = outer, job.n_inner = inner, job.n_classes = klass;
    job.task = kind->task, job.inputs = kind->inputs, job.real_type = real_type, job.label_smoothing = kind->smoothing;
    job.divisor = 3, job.gamma = 2, job.alpha = choice >> 8 & 1 ? 0.25 : -1;
    job.logits = placed(LOGITS, real_type, outer, inner, klass, layout, at_end, klass);
    if (want > 0 && kind->task != FX_LOGSUMEXP)
        job.grad = in_place ? job.logits : placed(GRAD, real_type, outer, inner, klass, choice >> 9 & 1 ? layout : across, at_end, klass);
    if (activation && !job.grad.data && kind->task != FX_LOGSUMEXP) job.grad = job.logits;
    if (want > 1 && !activation) job.hess = placed(HESS, real_type, outer, inner, klass, choice >> 10 & 1 ? layout : across, at_end, klass);
    if (kind->task == FX_LOGSUMEXP || (!activation && choice >> 11 & 1))
        job.loss = placed(LOSS, real_type, outer, inner, elementwise ? klass : 1, elementwise ? layout : plain, at_end, klass);
    if (kind->target_type == -2) {
        job.target_type = (int)((choice >> 12) % 8);
        const LAYOUT rows = {0, (choice >> 13) & 1, 0};
        job.target = placed(TARGET, job.target_type, outer, inner, elementwise ? klass : 1, elementwise ? layout : rows, at_end,
                            elementwise ? 2 : klass);
    } else if (kind->target_type == -3) {
        job.target_type = FX_FLOAT16 + (int)((choice >> 12) % 4);
        job.target = placed(TARGET, job.target_type, outer, inner, klass, choice >> 14 & 1 ? layout : across, at_end, klass);
    }
    if (!activation && choice >> 16 & 1) {
        job.sample_weight_type = choice >> 17 & 1 ? FX_FLOAT32 : FX_FLOAT64;
        job.sample_weight = placed(SAMPLE_WEIGHT, job.sample_weight_type, outer, inner, elementwise ? klass : 1,
                                   elementwise ? layout : plain, at_end, klass);
    }
    if (kind->task == FX_BINARY_CROSS_ENTROPY && choice >> 18 & 1)
        job.pos_weight = placed(POS_WEIGHT, real, outer, inner, klass, layout, at_end, klass);
    if ((kind->task == FX_CROSS_ENTROPY || kind->task == FX_FOCAL) && choice >> 18 & 1)
        job.class_weight = placed(CLASS_WEIGHT, real, 1, 1, klass, plain, at_end, klass).data;
    if (choice >> 19 & 1) job.has_ignore_index = 1, job.ignore_index = klass / 2;
    if (elementwise && !job.has_ignore_index && !activation && choice >> 20 & 1) job.unsurveyed = 1;

    table->plan(&job);
    if (job.scratch_bytes > most_bytes) fprintf(stderr, "guard-pages: too much scratch\n"), exit(3);
    /* Scratch memory begins at a multiple of FX_ALIGNMENT. */
    char *scratch = at_end ? end[SCRATCH] - job.scratch_bytes / FX_ALIGNMENT * FX_ALIGNMENT : begin[SCRATCH];
    int flaws = 0;
    for (int64_t block = 0; block < job.n_blocks; block++)
        if (!activation) (void)table->survey(&job, block, &flaws);
    if (flaws) fprintf(stderr, "%sguard-pages: flaws %d in good arguments\n", running, flaws), exit(2);
    for (int64_t block = 0; block < job.n_blocks; block++) (void)table->compute(&job, block, scratch);
    if (job.target_type >= FX_FLOAT16 || activation || job.unsurveyed) return;
    /* Labels that another thread has changed since the survey: the kernels clamp them. */
    memset(target_begin, choice >> 21 & 1 ? 0xFF : 0x7F, target_bytes);
    for (int64_t block = 0; block < job.n_blocks; block++) (void)table->compute(&job, block, scratch);
}

static void run_classes(const fx_table *table, int real_type, int64_t from, int64_t to, long *calls)
{
    static const int64_t ROWS[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33};
    const int lanes = table->lanes;
    for (int k = 0; k < N_KINDS; k++)
        for (int l = 0; l < N_LAYOUTS; l++)
            for (int64_t klass = from; klass < to; klass++) {
                /* Of the numbers of rows, one below a vector, one above it and one far beyond, in turn. */
                const int64_t rows = ROWS[random_bits() % (sizeof ROWS / sizeof *ROWS)];
                const int64_t more = lanes + 1 + random_bits() % (uint32_t)(3 * lanes);
                call(table, real_type, &KINDS[k], 1, rows, klass, LAYOUTS[l], random_bits() << 8 ^ random_bits());
                call(table, real_type, &KINDS[k], 1, klass < 70 ? more : 3, klass, LAYOUTS[l], random_bits() << 8 ^ random_bits());
                call(table, real_type, &KINDS[k], 2, klass < 20 ? 5 * more : 2, klass, LAYOUTS[l], random_bits() << 8 ^ random_bits());
                *calls += 3;
            }
}

/* Few classes and every number of rows: the tails of tiles and of elements. */
static void run_rows(const fx_table *table, int real_type, int64_t most_rows, long *calls)
{
    static const int64_t CLASSES[] = {1, 2, 3, 10, 17, 33, 40};
    for (int k = 0; k < N_KINDS; k++)
        for (int l = 0; l < N_LAYOUTS; l++)
            for (int64_t rows = 1; rows <= most_rows; rows++) {
                call(table, real_type, &KINDS[k], 1, rows, CLASSES[random_bits() % 7], LAYOUTS[l], random_bits() << 8 ^ random_bits());
                ++*calls;
            }
}

/* Long rows and many rows, past the edges of chunks and blocks. */
static void run_large(const fx_table *table, int real_type, long *calls)
{
    static const int64_t SIZES[][2] = {{1, 1023}, {3, 1024}, {2, 1025}, {1, 2047}, {2, 2048}, {3, 2049}, {1, 3500}, {2, 4097},
                                       {1025, 3}, {2049, 2}, {513, 17}, {300, 40}, {4099, 1}, {1, 8200}, {100, 129}};
    for (int k = 0; k < N_KINDS; k++)
        for (int s = 0; s < (int)(sizeof SIZES / sizeof *SIZES); s++) {
            call(table, real_type, &KINDS[k], 1, SIZES[s][0], SIZES[s][1], LAYOUTS[random_bits() % N_LAYOUTS],
                 random_bits() << 8 ^ random_bits());
            ++*calls;
        }
}

/* The number of calls, or -1; a fault ends the process. */
long run_guarded(const fx_level *levels, int64_t *stream_bytes, int64_t most_classes, uint32_t seed)
{
    static const int TYPES[] = {FX_FLOAT32, FX_FLOAT64, FX_FLOAT16, FX_BFLOAT16};
    long calls = 0;
    state = seed;
    if (!make_buffers(8 << 20)) return -1;
    const int64_t stream_from = *stream_bytes;
    for (const fx_level *level = levels; level->level; level++) {
#if defined(__x86_64__)
        __builtin_cpu_init();
        if (!strcmp(level->level, "avx512") && !__builtin_cpu_supports("avx512vl")) continue;
        if (!strcmp(level->level, "avx2") && !__builtin_cpu_supports("avx2")) continue;
#endif
        for (int t = 0; t < 4; t++)
            for (int stream = 0; stream < 2; stream++) {
                const fx_table *table = TYPES[t] == FX_FLOAT64 ? level->float64 : level->float32;
                *stream_bytes = stream ? 1 : INT64_MAX;
                run_classes(table, TYPES[t], 1, most_classes + 1, &calls);
                run_rows(table, TYPES[t], most_classes, &calls);
                run_large(table, TYPES[t], &calls);
            }
    }
    *stream_bytes = stream_from;
    return calls;
}

/* A kernel that reads one byte too far, to show that this is found. */
static void plan_one_block(fx_job *job) { job->n_blocks = 1; }
static double survey_nothing(const fx_job *job, int64_t block, int *flaws) { return (void)job, (void)block, (void)flaws, 1; }
static double read_too_far(const fx_job *job, int64_t block, void *scratch)
{
    (void)job, (void)block, (void)scratch;
    return *(volatile char *)end[LOGITS];
}

long run_faulty(void)
{
    const fx_table table = {"faulty", 1, plan_one_block, survey_nothing, read_too_far, NULL};
    const LAYOUT plain = {0, 0, 0};
    if (!make_buffers(1 << 20)) return -1;
    call(&table, FX_FLOAT32, &KINDS[0], 1, 2, 3, plain, 1);
    return 1;
}
