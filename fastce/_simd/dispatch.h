/* The vector primitives for every instruction set of this build, and the choice of one set. Cython includes this file.
 *
 * The primitives (primitives.inc) are loops over contiguous numbers; the algorithm is in the Cython files. The loops
 * are written once, in terms of a small vocabulary of vector operations. They are compiled for each instruction set
 * and dtype, with the vocabulary of that set; scalar.h explains it. The set is chosen when the module is imported.
 *
 * Everything is static, so that two copies of fastce can live in one process. */
#ifndef FASTCE_DISPATCH_H
#define FASTCE_DISPATCH_H

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>
#ifdef __SSE2__
#define CE_BASELINE "sse2.h" /* the vocabulary of what the compiler may assume of every processor */
#endif
#ifndef _MSC_VER /* not clang-cl: its immintrin.h has only the intrinsics that the command line's flags allow */
#define CE_X86 1
#include <cpuid.h>
#endif
#elif defined(__aarch64__) && (defined(__GNUC__) || defined(__clang__))
#include <arm_neon.h>
#define CE_BASELINE "neon.h"
#endif
#ifndef CE_BASELINE
#define CE_BASELINE "scalar.h"
#endif

#if defined(__GNUC__) || defined(__clang__)
#define CE_INLINE static inline __attribute__((always_inline, unused))
#define CE_NOINLINE __attribute__((noinline))
#define CE_PREFETCH(p) __builtin_prefetch(p)
#define CE_PREFETCH_WRITE(p) __builtin_prefetch(p, 1)
#define CE_FIRST_BIT(bits) __builtin_ctz(bits)
#define CE_ASSERT(condition, message) _Static_assert(condition, message)
#else
#define CE_INLINE static __inline
#define CE_NOINLINE
#define CE_PREFETCH(p) ((void)(p))
#define CE_PREFETCH_WRITE(p) ((void)(p))
CE_INLINE int CE_FIRST_BIT(unsigned bits)
{
    int k = 0;
    while (!(bits >> k & 1))
        k++;
    return k;
}
/* A declaration may be repeated and makes no symbol. Its array would have a negative size. */
#define CE_ASSERT(condition, message) extern char ce_assert[(condition) ? 1 : -1]
#endif
#ifdef _MSC_VER
#define restrict __restrict
#endif

#define CE_FN_(name, isa, tag) name##_##isa##_##tag
#define CE_FN(name, isa, tag) CE_FN_(name, isa, tag)
#define FN(name) CE_FN(name, CE_ISA, CE_TAG) /* the name of a function in one compilation of the loops */

#define CE_PRAGMA(x) _Pragma(#x)
#if defined(__clang__)
#define CE_TARGET_BEGIN(features) \
    CE_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define CE_TARGET_END _Pragma("clang attribute pop")
#elif defined(__GNUC__)
#define CE_TARGET_BEGIN(features) _Pragma("GCC push_options") CE_PRAGMA(GCC target(features))
#define CE_TARGET_END _Pragma("GCC pop_options")
#endif

enum { CE_CACHE_LINE = 64 };

#include "primitives.h"

/* p + offset, in bytes. */
CE_INLINE void *ce_at(const void *p, Py_ssize_t offset) { return (char *)p + offset; }

/* tail, or NaN if row_max is infinite: then every class is masked, or a logit is +inf. */
CE_INLINE double ce_tail_if_finite(double tail, double row_max) { return tail + 0 * row_max; }

/* Completes the state of a row that lacks only its label, whose weight is given and whose logit is row_max + d.
 * Unless rest_at_max is NULL, rest is complete already, and rest_at_max lacks only the label too. */
CE_INLINE void ce_add_label(double weight, double d, double hot, double uniform, double smoothing_mass, double *mass,
                            double *linear, double *q, double *rest, double *rest_at_max)
{
    const double hot_weight = hot * weight;
    *mass = smoothing_mass + hot_weight;
    *linear -= hot_weight == 0 ? 0 : hot_weight * d;
    *q = (hot + uniform) * weight;
    if (rest_at_max)
        *rest_at_max += hot_weight;
    else
        *rest = smoothing_mass - uniform * weight;
}

/* total + lost += term: adds term to total, and the rounding error of that to lost (Knuth's TwoSum). TYPE is the type
 * of all three: a number or a vector. */
#define CE_ADD_COMPENSATED(TYPE, total, lost, term)                     \
    do {                                                                \
        const TYPE v_ = (term), t_ = (total) + v_, z_ = t_ - (total);   \
        (lost) = (lost) + (((total) - (t_ - z_)) + (v_ - z_));          \
        (total) = t_;                                                   \
    } while (0)

#include "half.h"

#define CE_ISA baseline
#define CE_VOCABULARY CE_BASELINE
#include "both.h"

#ifdef CE_X86
#define CE_ISA avx2
#define CE_VOCABULARY "avx2.h"
CE_TARGET_BEGIN("avx2,fma,f16c")
#include "both.h"
CE_TARGET_END

#define CE_ISA avx512
#define CE_VOCABULARY "avx512.h"
CE_TARGET_BEGIN("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c")
#include "both.h"
CE_TARGET_END
#endif

/* Whether this processor and its operating system run an instruction set. */
static int ce_always(void) { return 1; }
#ifdef CE_X86
static int ce_has_f16c(void) /* not every compiler knows its name */
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && c >> 29 & 1;
}
static int ce_has_avx2(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && ce_has_f16c();
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
    const ce_primitives *f32, *f64;
} ce_isa;

/* The instruction sets of this build, best first. */
static const ce_isa ce_isas[] = {
#ifdef CE_X86
    {"avx512", ce_has_avx512, &table_avx512_f32, &table_avx512_f64},
    {"avx2", ce_has_avx2, &table_avx2_f32, &table_avx2_f64},
#endif
    {"baseline", ce_always, &table_baseline_f32, &table_baseline_f64},
};
enum { CE_ISA_COUNT = sizeof ce_isas / sizeof *ce_isas };

/* The tables in use. NULL until ce_choose was called, once, when the module is imported. */
static const ce_primitives *ce_chosen_f32, *ce_chosen_f64;

/* Chooses ce_isas[isa]. Returns 0, or -1 if there is no such set or it does not run here. */
CE_INLINE int ce_choose(int isa)
{
    if (isa < 0 || isa >= (int)CE_ISA_COUNT || !ce_isas[isa].runs_here())
        return -1;
    ce_chosen_f32 = ce_isas[isa].f32;
    ce_chosen_f64 = ce_isas[isa].f64;
    return 0;
}

#endif
