/* OpenMP where there is one, what must be known before entering a parallel region, and how blocks are shared in it. */
#ifndef FASTXENT_THREADS_H
#define FASTXENT_THREADS_H

#include <stddef.h>
#include <stdint.h>
#include <time.h>
#ifdef _MSC_VER
#include <intrin.h>
#endif

#ifdef _OPENMP
#include <omp.h>
#define FX_OPENMP 1
static int fx_max_threads(void) { return omp_get_max_threads(); }
static int fx_thread_limit(void) { return omp_get_thread_limit(); }
static int fx_in_parallel(void) { return omp_in_parallel(); }
#else
#define FX_OPENMP 0
static int fx_max_threads(void) { return 1; }
static int fx_thread_limit(void) { return 1; }
static int fx_in_parallel(void) { return 0; }
#endif

/* OpenMP's dynamic schedule knows no end but the last block, and Microsoft's OpenMP no atomic capture. */
static ptrdiff_t fx_take(ptrdiff_t *next, ptrdiff_t n)
{
#if defined(_MSC_VER) && !defined(__clang__) && defined(_WIN64)
    return (ptrdiff_t)_InterlockedExchangeAdd64((volatile __int64 *)next, n);
#elif defined(_MSC_VER) && !defined(__clang__)
    return (ptrdiff_t)_InterlockedExchangeAdd((volatile long *)next, (long)n);
#else
    return __atomic_fetch_add(next, n, __ATOMIC_RELAXED);
#endif
}

static int64_t fx_milliseconds(void)
{
    struct timespec now;
#ifdef CLOCK_MONOTONIC
    clock_gettime(CLOCK_MONOTONIC, &now);
#else
    timespec_get(&now, TIME_UTC);
#endif
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* libgomp hangs when a process that has run a parallel region forks and the child opens another one (GCC bugs 52303,
 * 58378): its pool's threads do not exist in the child. The pool is shared by all users of the library, so there is no
 * knowing whether one has run: a forked child stays serial. */
static int fx_forked = 0;

#if FX_OPENMP && !defined(_WIN32)
#include <pthread.h>
static void fx_in_child(void) { fx_forked = 1; }
static void fx_watch_forks(void) { pthread_atfork(0, 0, fx_in_child); }
#else
static void fx_watch_forks(void) {}
#endif

#endif
