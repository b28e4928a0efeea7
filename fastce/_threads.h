/* How many threads a call may use. Without OpenMP the answer is always 1. */
#ifndef FASTCE_THREADS_H
#define FASTCE_THREADS_H

#ifdef _OPENMP
#include <omp.h>
#else
#define omp_get_max_threads() 1
#define omp_in_parallel() 0
#endif

#if defined(__linux__)
#include <sched.h>
#endif

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#define CE_CAN_FORK 1
#endif

/* OpenMP's version date, or 0. */
static int ce_openmp_version(void)
{
#ifdef _OPENMP
    return _OPENMP;
#else
    return 0;
#endif
}

/* OpenMP's threads do not survive fork, and libgomp waits for them for ever: a forked child computes on one thread. */
static volatile int ce_is_forked_child = 0;
#ifdef CE_CAN_FORK
static void ce_mark_forked_child(void) { ce_is_forked_child = 1; }
#endif
static int ce_watch_forks(void)
{
#ifdef CE_CAN_FORK
    return pthread_atfork(NULL, NULL, ce_mark_forked_child);
#else
    return 0;
#endif
}

/* CPUs that the calling thread may run on, or 0 when that is not known. */
static int ce_affinity(void)
{
#if defined(__linux__) && defined(CPU_COUNT)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        return CPU_COUNT(&set);
#endif
    return 0;
}

static int ce_must_be_serial(void) { return ce_is_forked_child || omp_in_parallel(); }

/* The CPUs that the control group's quota amounts to; 0: no limit. Set once, when the package is imported. */
static int ce_quota = 0;
static void ce_limit_threads(int quota) { ce_quota = quota; }

/* The automatic number. OMP_NUM_THREADS, omp_set_num_threads and threadpoolctl change what omp_get_max_threads returns in
 * the calling thread, so it is called each time. */
static int ce_automatic_threads(void)
{
    int threads, cpus;
    if (ce_must_be_serial())
        return 1;
    threads = omp_get_max_threads();
    cpus = ce_affinity();
    if (cpus > 0 && cpus < threads)
        threads = cpus;
    if (ce_quota > 0 && ce_quota < threads)
        threads = ce_quota;
    return threads < 1 ? 1 : threads;
}

#endif
