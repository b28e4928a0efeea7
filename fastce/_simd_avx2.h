/* Vector vocabulary: AVX2 and FMA. */
#if CE_F32
#define VEC __m256
#define LANES 8
#define LOAD(p) _mm256_loadu_ps(p)
#define STORE(p, v) _mm256_storeu_ps(p, v)
#define STREAM(p, v) _mm256_stream_ps(p, v)
#define SET1(s) _mm256_set1_ps(s)
#define FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
#define FMSUB(a, b, c) _mm256_fmsub_ps(a, b, c)
#define MAX(x, m) _mm256_max_ps(x, m) /* m where x is NaN */
#define SELECT_EQ(a, b, x, y) _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_EQ_OQ))
#define ADD_BY_EQ(a, b, x, where, y, unless)                          \
    do {                                                             \
        const VEC equal_ = _mm256_cmp_ps(a, b, _CMP_EQ_OQ);           \
        where = where + _mm256_and_ps(equal_, x);                    \
        unless = unless + _mm256_andnot_ps(equal_, y);               \
    } while (0)
#define EQ_BITS(a, b) ((unsigned)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)))

typedef struct {
    __m256d low, high;
} CE_CAT3(acc, CE_ISA, CE_TAG);
#define ACC CE_CAT3(acc, CE_ISA, CE_TAG)
#define ACC_ZERO {_mm256_setzero_pd(), _mm256_setzero_pd()}
#define ACC_ADD(acc, v)                                                     \
    do {                                                                    \
        const VEC v_ = (v);                                                 \
        acc.low += _mm256_cvtps_pd(_mm256_castps256_ps128(v_));             \
        acc.high += _mm256_cvtps_pd(_mm256_extractf128_ps(v_, 1));          \
    } while (0)
#define ACC_STORE(p, acc) (_mm256_storeu_pd(p, acc.low), _mm256_storeu_pd((p) + 4, acc.high))

#define EXP_STEPS 8
/* The bits of 2^EXP_BIAS * 2^(k/8), less k << 20: adding 8n << 20 gives those of 2^EXP_BIAS * 2^n, normal for every n >= -190. */
static const uint32_t FN(roots)[8] = {
    0x5f800000u, 0x5f7b95c2u, 0x5f7837f0u, 0x5f75fed7u, 0x5f7504f3u, 0x5f75672au, 0x5f7744fdu, 0x5f7ac0c7u,
};
CE_INLINE VEC FN(exp_scale)(VEC d, VEC cut, VEC z, VEC p)
{
    const __m256i steps = _mm256_castps_si256(z);
    const __m256i root = _mm256_permutevar8x32_epi32(_mm256_loadu_si256((const __m256i *)FN(roots)), steps);
    const VEC scale = _mm256_castsi256_ps(_mm256_add_epi32(root, _mm256_slli_epi32(steps, 20)));
    return _mm256_andnot_ps(_mm256_cmp_ps(d, cut, _CMP_LT_OQ), FMA(scale, p, scale));
}
#else
#define VEC __m256d
#define LANES 4
#define LOAD(p) _mm256_loadu_pd(p)
#define STORE(p, v) _mm256_storeu_pd(p, v)
#define STREAM(p, v) _mm256_stream_pd(p, v)
#define SET1(s) _mm256_set1_pd(s)
#define FMA(a, b, c) _mm256_fmadd_pd(a, b, c)
#define FMSUB(a, b, c) _mm256_fmsub_pd(a, b, c)
#define MAX(x, m) _mm256_max_pd(x, m)
#define SELECT_EQ(a, b, x, y) _mm256_blendv_pd(y, x, _mm256_cmp_pd(a, b, _CMP_EQ_OQ))
#define ADD_BY_EQ(a, b, x, where, y, unless)                          \
    do {                                                             \
        const VEC equal_ = _mm256_cmp_pd(a, b, _CMP_EQ_OQ);           \
        where = where + _mm256_and_pd(equal_, x);                    \
        unless = unless + _mm256_andnot_pd(equal_, y);               \
    } while (0)
#define EQ_BITS(a, b) ((unsigned)_mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_EQ_OQ)))


#define EXP_STEPS 1
CE_INLINE VEC FN(exp_scale)(VEC d, VEC cut, VEC z, VEC p)
{
    /* 2^EXP_BIAS * 2^n, normal for every n >= -1150 */
    const __m256i bits = _mm256_add_epi64(_mm256_slli_epi64(_mm256_castpd_si256(z), 52),
                                          _mm256_set1_epi64x((long long)(1023 + 128) << 52));
    const VEC scale = _mm256_castsi256_pd(bits);
    return _mm256_andnot_pd(_mm256_cmp_pd(d, cut, _CMP_LT_OQ), FMA(scale, p, scale));
}
#endif
#include "_simd_transpose.h"
