/* Vector vocabulary: AVX-512 F, DQ, BW, VL. */
#define CE_LOW_BITS(n) ((1u << (n)) - 1u)
#if CE_F32
#define VEC __m512
#define LANES 16
#define LOAD(p) _mm512_loadu_ps(p)
#define STORE(p, v) _mm512_storeu_ps(p, v)
#define STREAM(p, v) _mm512_stream_ps(p, v)
#define LOAD_PART(p, n, fill) _mm512_mask_loadu_ps(SET1(fill), (__mmask16)CE_LOW_BITS(n), p)
#define STORE_PART(p, v, n) _mm512_mask_storeu_ps(p, (__mmask16)CE_LOW_BITS(n), v)
#define SET1(s) _mm512_set1_ps(s)
#define FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#define FMSUB(a, b, c) _mm512_fmsub_ps(a, b, c)
#define MAX(x, m) _mm512_max_ps(x, m) /* m where x is NaN */
#define SELECT_EQ(a, b, x, y) _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ), x)
#define ADD_BY_EQ(a, b, x, where, y, unless)                             \
    do {                                                                \
        const __mmask16 equal_ = _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ);   \
        where = _mm512_mask_add_ps(where, equal_, where, x);            \
        unless = _mm512_mask_add_ps(unless, ~equal_, unless, y);        \
    } while (0)
#define EQ_BITS(a, b) ((unsigned)_mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ))
#define LARGEST(v) _mm512_reduce_max_ps(v)
#define TOTAL(v) _mm512_reduce_add_ps(v)
#define ALIGN_FROM 96

typedef struct {
    __m512d low, high;
} CE_CAT3(acc, CE_ISA, CE_TAG);
#define ACC CE_CAT3(acc, CE_ISA, CE_TAG)
#define ACC_ZERO {_mm512_setzero_pd(), _mm512_setzero_pd()}
#define ACC_ADD(acc, v)                                                     \
    do {                                                                    \
        const VEC v_ = (v);                                                 \
        acc.low += _mm512_cvtps_pd(_mm512_castps512_ps256(v_));             \
        acc.high += _mm512_cvtps_pd(_mm512_extractf32x8_ps(v_, 1));         \
    } while (0)
#define ACC_STORE(p, acc) (_mm512_storeu_pd(p, acc.low), _mm512_storeu_pd((p) + 8, acc.high))
#define ACC_SUM(acc) _mm512_reduce_add_pd(acc.low + acc.high)

#define EXP_STEPS 16
/* The bits of 2^EXP_BIAS * 2^(k/16), less k << 19: adding 16n << 19 gives those of 2^EXP_BIAS * 2^n, normal for every
 * n >= -190. */
static const uint32_t FN(roots)[16] = {
    0x5f800000u, 0x5f7daac3u, 0x5f7b95c2u, 0x5f79c3d3u, 0x5f7837f0u, 0x5f76f532u, 0x5f75fed7u, 0x5f75583fu,
    0x5f7504f3u, 0x5f7508a4u, 0x5f75672au, 0x5f76248cu, 0x5f7744fdu, 0x5f78ccdfu, 0x5f7ac0c7u, 0x5f7d257du,
};
CE_INLINE VEC FN(exp_scale)(VEC d, VEC cut, VEC z, VEC p)
{
    const __m512i steps = _mm512_castps_si512(z);
    const __m512i root = _mm512_permutexvar_epi32(steps, _mm512_loadu_si512(FN(roots)));
    const VEC scale = _mm512_castsi512_ps(_mm512_add_epi32(root, _mm512_slli_epi32(steps, 19)));
    return _mm512_maskz_fmadd_ps(_mm512_cmp_ps_mask(d, cut, _CMP_NLT_UQ), scale, p, scale);
}
#else
#define VEC __m512d
#define LANES 8
#define LOAD(p) _mm512_loadu_pd(p)
#define STORE(p, v) _mm512_storeu_pd(p, v)
#define STREAM(p, v) _mm512_stream_pd(p, v)
#define LOAD_PART(p, n, fill) _mm512_mask_loadu_pd(SET1(fill), (__mmask8)CE_LOW_BITS(n), p)
#define STORE_PART(p, v, n) _mm512_mask_storeu_pd(p, (__mmask8)CE_LOW_BITS(n), v)
#define SET1(s) _mm512_set1_pd(s)
#define FMA(a, b, c) _mm512_fmadd_pd(a, b, c)
#define FMSUB(a, b, c) _mm512_fmsub_pd(a, b, c)
#define MAX(x, m) _mm512_max_pd(x, m)
#define SELECT_EQ(a, b, x, y) _mm512_mask_mov_pd(y, _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ), x)
#define ADD_BY_EQ(a, b, x, where, y, unless)                             \
    do {                                                                \
        const __mmask8 equal_ = _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ);   \
        where = _mm512_mask_add_pd(where, equal_, where, x);            \
        unless = _mm512_mask_add_pd(unless, ~equal_, unless, y);        \
    } while (0)
#define EQ_BITS(a, b) ((unsigned)_mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ))
#define LARGEST(v) _mm512_reduce_max_pd(v)
#define TOTAL(v) _mm512_reduce_add_pd(v)
#define ALIGN_FROM 48


#define EXP_STEPS 16
/* The same, less k << 48; n >= -1150 */
static const uint64_t FN(roots)[16] = {
    0x47f0000000000000u, 0x47efb5586cf9890fu, 0x47ef72b83c7d517bu, 0x47ef387a6e756238u,
    0x47ef06fe0a31b715u, 0x47eedea64c123422u, 0x47eebfdad5362a27u, 0x47eeab07dd485429u,
    0x47eea09e667f3bcdu, 0x47eea11473eb0187u, 0x47eeace5422aa0dbu, 0x47eec49182a3f090u,
    0x47eee89f995ad3adu, 0x47ef199bdd85529cu, 0x47ef5818dcfba487u, 0x47efa4afa2a490dau,
};
CE_INLINE VEC FN(exp_scale)(VEC d, VEC cut, VEC z, VEC p)
{
    const __m512i steps = _mm512_castpd_si512(z);
    const __m512i root =
        _mm512_permutex2var_epi64(_mm512_loadu_si512(FN(roots)), steps, _mm512_loadu_si512(FN(roots) + 8));
    const VEC scale = _mm512_castsi512_pd(_mm512_add_epi64(root, _mm512_slli_epi64(steps, 48)));
    return _mm512_maskz_fmadd_pd(_mm512_cmp_pd_mask(d, cut, _CMP_NLT_UQ), scale, p, scale);
}
#endif
#include "_simd_transpose.h"
