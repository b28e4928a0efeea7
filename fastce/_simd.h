/* Vector primitives of fastce: loops over contiguous numbers, and nothing else.
 *
 * The algorithm that calls them (_kernels.pyx) sees one table of functions for each dtype. The text of the loops is
 * _simd_body.h; it is compiled once for each (instruction set, dtype) on top of a small vocabulary of vector operations,
 * _simd_<instruction set>.h. The instruction set is chosen once, when the module is
 * imported.
 *
 * Everything is static: two copies of fastce can live in one process.
 */
#ifndef FASTCE_SIMD_H
#define FASTCE_SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>
#ifdef __SSE2__
#define CE_SSE2 1
#endif
#ifndef _MSC_VER /* clang-cl, whose immintrin.h holds no more than what its flags allow everywhere */
#define CE_X86 1
#endif
#elif defined(__aarch64__) && (defined(__GNUC__) || defined(__clang__))
#define CE_NEON 1
#include <arm_neon.h>
#endif

#if defined(__GNUC__) || defined(__clang__)
#define CE_INLINE static inline __attribute__((always_inline, unused))
#define CE_PREFETCH(p) __builtin_prefetch(p)
#define CE_PREFETCH_WRITE(p) __builtin_prefetch(p, 1)
#define CE_FIRST_BIT(bits) __builtin_ctz(bits)
#else
#define CE_INLINE static __inline
#define CE_PREFETCH(p) ((void)(p))
#define CE_PREFETCH_WRITE(p) ((void)(p))
CE_INLINE int CE_FIRST_BIT(unsigned bits)
{
    int k = 0;
    while (!(bits >> k & 1))
        k++;
    return k;
}
#endif
#ifdef _MSC_VER
#define restrict __restrict
#endif
enum { CE_CACHE_LINE = 64 };

enum { CE_BROADCAST = 0, CE_BY_CLASS = 1, CE_BY_ELEMENT = 2 };
/* What e[i] is, of which a * e[i] - b * v[i] is made: src[i]/one, exp(src[i] - shift) or src[i] - shift. */
enum { CE_KEPT = 0, CE_EXP = 1, CE_DIFFERENCE = 2 };

/* What each function computes. Untyped pointers are to numbers of the table's dtype. Tiles are (classes, width) in C
 * order, width a multiple of 16; arrays indexed by p have `width` entries.
 * The error of a sum does not grow with its length. */
typedef struct {
    /* What exponentials are multiplied by where they are kept: a power of 2. */
    double one;
    /* m[r] = the largest of n numbers of each row, NaN passed over; -inf for none. Rows are x_step bytes apart. */
    void (*rows_max)(const void *x, Py_ssize_t x_step, Py_ssize_t rows, Py_ssize_t n, double *m);
    /* The first i with x[i] == value, or -1. */
    Py_ssize_t (*row_find)(const void *x, Py_ssize_t n, double value);
    /* sum[r] = sum over i of exp(x[r, i] - shift[r]), x[r, i] <= shift[r], but for `without` terms exp(0). Unless e is NULL,
     * `one` times the exponentials are written to it (form CE_KEPT) or the exponents (CE_DIFFERENCE). Meanwhile as many rows at `next` are brought into the cache. */
    void (*rows_exp_sum)(const void *x, Py_ssize_t x_step, void *e, Py_ssize_t e_step, Py_ssize_t rows, Py_ssize_t n,
                         int form, const double *shift, int without, const void *next, double *sum);
    /* sum of v[i] * (shift - x[i]), where 0 * inf is 0; v = NULL stands for ones. */
    double (*row_gap_dot)(const void *x, const void *v, Py_ssize_t n, double shift);
    /* sum of v[i]. */
    double (*row_sum)(const void *v, Py_ssize_t n);
    /* sum of u[i] * v[i]. */
    double (*row_dot)(const void *u, const void *v, Py_ssize_t n);
    /* g[i] = y[i] * (u[i] - shift). */
    void (*row_scale)(const void *y, const void *u, void *g, Py_ssize_t n, double shift);
    /* q[i] = (slope * q[i] + offset) * v[i]; v = NULL stands for ones. */
    void (*row_affine)(void *q, const void *v, Py_ssize_t n, double slope, double offset);
    /* g[r, i] = a[r] * e[r, i] - b[r] * v[i], v = NULL stands for ones, e as `form` says with shift[r]; but at_mark[r]
     * where i == mark[r], unless mark is NULL. stream: write past the caches. */
    void (*rows_grad)(const void *src, Py_ssize_t src_step, void *g, Py_ssize_t g_step, Py_ssize_t rows, Py_ssize_t n,
                      int form, const double *shift, const double *a, const double *b, const void *v,
                      const Py_ssize_t *mark, const double *at_mark, int stream);
    /* Elements z with p = 1/(1 + exp(-z)); b = NULL stands for 1 - a. loss[i] = -a[i]*log(p) - b[i]*log(1 - p), with
     * 0 * inf as 0, of which the sum is returned; grad[i] = scale * its derivative. loss and grad may be NULL. */
    double (*row_sigmoid)(const void *z, const void *a, const void *b, Py_ssize_t n, double scale, void *loss, void *grad);
    /* m[p] = max(m[p], x[j, p] over j), NaN passed over. */
    void (*tile_max)(const void *x, Py_ssize_t classes, Py_ssize_t width, void *m);
    /* sum[p] = sum over j of exp(x[j, p] - m[p]), less one term exp(0) where m[p] > before[p]; `one` times the
     * exponentials are written to e unless it is NULL. Where label[p] is a j, d_label[p] = x[j, p] - m[p] and e_label[p] is its
     * exponential; label may be NULL. An m[p] of -inf counts as 0. Meanwhile as many numbers are brought into the cache
     * from `next`, rows next_step bytes apart, and from `dst` for writing. */
    void (*tile_exp_sum)(const void *x, void *e, Py_ssize_t classes, Py_ssize_t width, const void *m,
                         const void *before, const void *label, double *sum, double *d_label, double *e_label,
                         const void *next, Py_ssize_t next_step, void *dst, Py_ssize_t dst_step);
    /* sum[p] = sum over j of v * (m[p] - x[j, p]), where 0 * inf is 0 and an m[p] of -inf counts as 0;
     * v is 1, v[j] or v[j, p] as `kind` says. */
    void (*tile_gap_dot)(const void *x, const void *v, int kind, Py_ssize_t classes, Py_ssize_t width, const void *m,
                         double *sum);
    /* sum[p] = sum over j of v[j, p], without those where x[j, p] == m[p] unless x is NULL. */
    void (*tile_sum)(const void *v, Py_ssize_t classes, Py_ssize_t width, const void *x, const void *m, double *sum);
    /* g[j, p] = a[p] * e[j, p] - b[p] * v, v as in tile_gap_dot, e as in row_grad, shift m[p]; but at_mark[p] where j
     * (v by element: src[j, p]) == mark[p]. */
    void (*tile_grad)(const void *src, void *g, Py_ssize_t classes, Py_ssize_t width, int form, const void *m,
                      const void *a, const void *b, const void *v, int kind, const void *mark, const void *at_mark);
    /* dst[k, r] = src[r, k]: the rows of src and of dst are by_row and by_class bytes apart. */
    void (*transpose)(const void *src, Py_ssize_t src_step, Py_ssize_t rows, Py_ssize_t columns, void *dst,
                      Py_ssize_t dst_step);
    /* dst[k, r] = src[k, r] for `runs` runs k of n numbers; they are src_step and dst_step bytes apart. */
    void (*copy_runs)(const void *src, Py_ssize_t src_step, Py_ssize_t runs, Py_ssize_t n, void *dst,
                      Py_ssize_t dst_step);
    /* label[p] = labels[p] - first, in the dtype. */
    void (*label_lanes)(const int64_t *labels, Py_ssize_t n, int64_t first, void *label);

    /* Those below work on one float64 for each position; they do not depend on the dtype.
     * to[p] = the numbers of `from` */
    void (*narrow)(const double *from, Py_ssize_t n, void *to);
    void (*widen)(const void *from, Py_ssize_t n, double *to);
    /* row_max[p] = from[p]; tail[p] becomes NaN where that is infinite; and unless d_label is NULL,
     * linear[p] -= keep * d_label[p]. */
    void (*settle)(const void *from, Py_ssize_t n, double *row_max, double *tail, double *linear, double keep,
                   const double *d_label);
    /* total[p] + lost[p] += term[p], keeping what the addition loses. */
    void (*add)(double *total, double *lost, const double *term, Py_ssize_t n);
    /* As `losses`; and with slope = 2 * z_loss * lse,
     * a = scale * (mass + slope) / (1 + tail), and at_target = scale * ((mass + slope)*p - q) where p = e/(1 + tail) is
     * the probability of a class whose target is q, and rest is mass - q. Where p may be near 1, p - 1 is not formed:
     * it is -tail/(1 + tail). */
    void (*coefficients)(Py_ssize_t n, const double *row_max, const double *tail, const double *mass,
                         const double *linear, double z_loss, const double *q, const double *rest, const double *e,
                         const double *scale, double *log_total, double *loss, double *a, double *at_target);
    /* log_total = log(1 + tail), tail >= 0; loss = mass * log_total + linear + z_loss * lse^2, lse = row_max + log_total. */
    void (*losses)(Py_ssize_t n, const double *row_max, const double *tail, const double *mass, const double *linear,
                   double z_loss, double *log_total, double *loss);
    /* How many labels are not `ignored` (if has_ignored); -1 when one of those is outside [0, classes). */
    Py_ssize_t (*labels_kept)(const int64_t *labels, Py_ssize_t n, int64_t classes, int64_t ignored, int has_ignored);
} ce_primitives;

#define CE_CAT3_(a, b, c) a##_##b##_##c
#define CE_CAT3(a, b, c) CE_CAT3_(a, b, c)
#define FN(name) CE_CAT3(name, CE_ISA, CE_TAG)

#if defined(__clang__)
#define CE_PRAGMA(x) _Pragma(#x)
#define CE_TARGET_BEGIN(features) \
    CE_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define CE_TARGET_END _Pragma("clang attribute pop")
#elif defined(__GNUC__)
#define CE_PRAGMA(x) _Pragma(#x)
#define CE_TARGET_BEGIN(features) _Pragma("GCC push_options") CE_PRAGMA(GCC target(features))
#define CE_TARGET_END _Pragma("GCC pop_options")
#endif

/* The baseline: whatever the compiler may assume of the processor anyway. */
#ifdef CE_SSE2
#define CE_BASELINE_VOCABULARY "_simd_sse2.h"
#elif defined(CE_NEON)
#define CE_BASELINE_VOCABULARY "_simd_neon.h"
#else
#define CE_BASELINE_VOCABULARY "_simd_scalar.h"
#endif

#define CE_ISA baseline
#define CE_VOCABULARY CE_BASELINE_VOCABULARY
#include "_simd_both.h"
#undef CE_VOCABULARY
#undef CE_ISA

#ifdef CE_X86
#define CE_ISA avx2
#define CE_VOCABULARY "_simd_avx2.h"
CE_TARGET_BEGIN("avx2,fma")
#include "_simd_both.h"
CE_TARGET_END
#undef CE_VOCABULARY
#undef CE_ISA

#define CE_ISA avx512
#define CE_VOCABULARY "_simd_avx512.h"
CE_TARGET_BEGIN("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")
#include "_simd_both.h"
CE_TARGET_END
#undef CE_VOCABULARY
#undef CE_ISA
#endif

/* The instruction sets this build has, best first, and whether this processor (and its operating system) runs them. */
static int ce_always(void) { return 1; }
#ifdef CE_X86
static int ce_has_avx2(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
static int ce_has_avx512(void)
{
    return ce_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}
#endif

typedef struct {
    const char *name;
    int (*runs_here)(void);
    const ce_primitives *f32;
    const ce_primitives *f64;
} ce_isa;

static const ce_isa ce_isas[] = {
#ifdef CE_X86
    {"avx512", ce_has_avx512, &table_avx512_f32, &table_avx512_f64},
    {"avx2", ce_has_avx2, &table_avx2_f32, &table_avx2_f64},
#endif
    {"baseline", ce_always, &table_baseline_f32, &table_baseline_f64},
};
enum { CE_ISA_COUNT = sizeof ce_isas / sizeof *ce_isas };

#endif
