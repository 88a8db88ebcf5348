/* OpenMP where there is one, and what must be known before entering a parallel region. */
#ifndef FASTXENT_THREADS_H
#define FASTXENT_THREADS_H

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
