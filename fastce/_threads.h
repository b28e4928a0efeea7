/* How many threads a call uses, and the loop that they share. Without OpenMP there is always one thread. */
#ifndef FASTCE_THREADS_H
#define FASTCE_THREADS_H

#ifdef _OPENMP
#include <omp.h>
#else
#define omp_get_max_threads() 1
#define omp_get_thread_num() 0
#define omp_in_parallel() 0
#endif

#if defined(__linux__)
#include <sched.h>
#endif

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <time.h>
#define CE_CAN_FORK 1
#endif

#ifdef _MSC_VER
#define CE_THREAD_LOCAL __declspec(thread)
#else
#define CE_THREAD_LOCAL __thread
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

/* ----- Whether threads pay -----
 *
 * Where other programs use the processors too, threads can make a call a hundred times slower: OpenMP ends a loop only
 * when all of its threads have run, and one of them may have to wait for its turn. So calls with an automatic number of
 * threads are observed. A call is slower than one thread would have been if it took longer than its threads computed,
 * all together. Then the next calls use one thread: at first for as long as was lost, and for twice as long each time
 * that threads lose again. Results do not depend on it. Each thread that calls has its own record. */
static CE_THREAD_LOCAL struct {
    double pause;       /* seconds of computing for which calls still use one thread */
    double patience;    /* how many times a loss the next pause is as long as */
    double slowdown;    /* the time that calls on one thread take, divided by what they compute: their median */
} ce_record = {0, 1, 1};

static double ce_pause(void) { return ce_record.pause; }

/* Seconds since some moment. Not the thread's own clock: to read that, Linux brings its accounts up to date, and may
 * find that it is another thread's turn. */
static double ce_now(void)
{
#if defined(_OPENMP)
    return omp_get_wtime();
#else
    return 0;
#endif
}

#define CE_SHORTEST_WAIT 2e-4 /* seconds */
enum { CE_MOST_PATIENCE = 64, CE_LONGEST_PAUSE = 1 };

static void ce_record_call(int threads, double elapsed, double computed)
{
    const double lost = elapsed - ce_record.slowdown * computed;
    if (threads == 1) {
        ce_record.pause -= computed;
        ce_record.slowdown *= lost > 0 ? 1.1 : ce_record.slowdown > 1.1 ? 1 / 1.1 : 1;
    } else if (lost > 0) {
        ce_record.pause = lost * ce_record.patience < CE_LONGEST_PAUSE ? lost * ce_record.patience : CE_LONGEST_PAUSE;
        ce_record.patience = ce_record.patience < CE_MOST_PATIENCE ? 2 * ce_record.patience : CE_MOST_PATIENCE;
    } else {
        ce_record.patience = ce_record.patience > 1 ? ce_record.patience / 2 : 1;
    }
}

/* ----- The loop ----- */

typedef void (*ce_unit)(const void *job, Py_ssize_t unit, int thread);

/* The calling thread's part of the loop. Returns the seconds that it computed. If a unit took far longer than another,
 * the thread had to wait for a processor meanwhile, and the unit counts as the shortest one. */
static double ce_share_units(ce_unit run, const void *job, Py_ssize_t units)
{
    double computed = 0, shortest = 1, before = ce_now();
    Py_ssize_t unit;
#ifdef _OPENMP
#pragma omp for schedule(dynamic, 1) nowait
#endif
    for (unit = 0; unit < units; unit++) {
        double now, seconds;
        run(job, unit, omp_get_thread_num());
        now = ce_now();
        seconds = now - before;
        before = now;
        if (seconds < shortest)
            shortest = seconds;
        computed += seconds < 4 * shortest + CE_SHORTEST_WAIT ? seconds : shortest;
    }
    return computed;
}

/* run(job, unit, thread) for all units, each on one of so many threads; `thread` is its number. With `automatic`, one
 * thread does it during a pause.
 *
 * This is not Cython's prange: inside a function that needs no GIL, prange calls the interpreter to find out whether
 * the GIL is held, which ends the process after a subinterpreter has existed. */
static void ce_run_units(ce_unit run, const void *job, Py_ssize_t units, int threads, int automatic)
{
    double start, computed = 0;
    if (threads == 1) {
        Py_ssize_t unit;
        for (unit = 0; unit < units; unit++)
            run(job, unit, 0);
        return;
    }
    start = ce_now();
    if (automatic && ce_record.pause > 0)
        threads = 1;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(+ : computed)
#endif
    computed += ce_share_units(run, job, units);
    if (automatic)
        ce_record_call(threads, ce_now() - start, computed);
}

#endif
