/* Vocabulary: AVX-512 F, DQ, BW and VL. */
#if CE_F32
#define VEC __m512
#define LANES 16
#define MASK __mmask16
#define MM(name) _mm512_##name##_ps
#define EQUAL(a, b) _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ)
#define UNEQUAL(a, b) _mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ)
#define LESS(a, b) _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ)
#define LESS_EQUAL(a, b) _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ)
#define ALIGN_FROM 96
#else
#define VEC __m512d
#define LANES 8
#define MASK __mmask8
#define MM(name) _mm512_##name##_pd
#define EQUAL(a, b) _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ)
#define UNEQUAL(a, b) _mm512_cmp_pd_mask(a, b, _CMP_NEQ_UQ)
#define LESS(a, b) _mm512_cmp_pd_mask(a, b, _CMP_LT_OQ)
#define LESS_EQUAL(a, b) _mm512_cmp_pd_mask(a, b, _CMP_LE_OQ)
#define ALIGN_FROM 48
#endif
#define LOW_BITS(n) ((MASK)((1u << (n)) - 1u))
#define LOAD(p) MM(loadu)(p)
#define STORE(p, v) MM(storeu)(p, v)
#define STREAM(p, v) MM(stream)(p, v)
#define LOAD_PART(p, n, fill) MM(mask_loadu)(SET1(fill), LOW_BITS(n), p)
#define STORE_PART(p, v, n) MM(mask_storeu)(p, LOW_BITS(n), v)
#define SET1(s) MM(set1)(s)
#define FMA(a, b, c) MM(fmadd)(a, b, c)
#define FMSUB(a, b, c) MM(fmsub)(a, b, c)
#define MAX(x, m) MM(max)(x, m)
#define SELECT_EQ(a, b, x, y) MM(mask_mov)(y, EQUAL(a, b), x)
#define ADD_BY_EQ(a, b, x, where, y, unless)                  \
    do {                                                      \
        const MASK equal_ = EQUAL(a, b);                      \
        where = MM(mask_add)(where, equal_, where, x);        \
        unless = MM(mask_add)(unless, ~equal_, unless, y);    \
    } while (0)
/* Sums of bits are counted outside the vector units, which have enough to do. */
#define ONES int
#define ONES_ZERO 0
#define ADD_OR_COUNT(d, y, sum, ones)                         \
    do {                                                      \
        const MASK other_ = UNEQUAL(d, SET1(0));              \
        sum = MM(mask_add)(sum, other_, sum, y);              \
        ones += LANES - __builtin_popcount(other_);           \
    } while (0)
#define COUNTED(ones) (ones)
#define EQ_BITS(a, b) ((unsigned)EQUAL(a, b))
#define TIMES_FROM(least, s, factor) MM(maskz_mul)(LESS_EQUAL(least, s), s, factor)
#define FLUSHED(v, below) FN(flushed)(v, below)
CE_INLINE VEC FN(flushed)(VEC v, VEC below)
{
    const VEC sign = SET1((T)-0.0);
    return MM(mask_and)(v, LESS(MM(andnot)(sign, v), below), v, sign);
}
#define LARGEST(v) MM(reduce_max)(v)
#define TOTAL(v) MM(reduce_add)(v)

#define TOGETHER 2
#define EXP_STEPS 16
#if CE_F32
#define FROM_F16(p) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(p)))
#define TO_F16(p, v) _mm256_storeu_si256((__m256i *)(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT))
#define STREAM_F16(p, v) _mm256_stream_si256((__m256i *)(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT))
#define STREAM_BF16(p, v) _mm256_stream_si256((__m256i *)(p), FN(to_bf16)(v))
CE_INLINE __m256i FN(to_bf16)(VEC v)
{
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i nearest = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(1 << 22));
    return _mm512_cvtepi32_epi16(
        _mm512_srli_epi32(_mm512_mask_mov_epi32(nearest, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), quiet), 16));
}
#define WIDE __m512d
#define WIDEN_LOW(v) _mm512_cvtps_pd(_mm512_castps512_ps256(v))
#define WIDEN_HIGH(v) _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1))
#define WIDE_STORE(p, v) _mm512_storeu_pd(p, v)
#define ACC_SUM(acc) _mm512_reduce_add_pd(acc.low + acc.high)

/* The bits of EXP_ONE * 2^(k/16), minus k << 19. n * EXP_STEPS << 19 is added, whose low bits are k. */
static const uint32_t FN(roots)[EXP_STEPS] = {
    0x5f800000u, 0x5f7daac3u, 0x5f7b95c2u, 0x5f79c3d3u, 0x5f7837f0u, 0x5f76f532u, 0x5f75fed7u, 0x5f75583fu,
    0x5f7504f3u, 0x5f7508a4u, 0x5f75672au, 0x5f76248cu, 0x5f7744fdu, 0x5f78ccdfu, 0x5f7ac0c7u, 0x5f7d257du,
};
CE_ASSERT(EXP_BIAS == 64, "the first of the roots is EXP_ONE");
CE_INLINE VEC FN(exp_scale)(VEC d, VEC cut, VEC z, VEC p)
{
    const __m512i steps = _mm512_castps_si512(z);
    const __m512i root = _mm512_permutexvar_epi32(steps, _mm512_loadu_si512(FN(roots)));
    const VEC scale = _mm512_castsi512_ps(_mm512_add_epi32(root, _mm512_slli_epi32(steps, 19)));
    return _mm512_maskz_fmadd_ps(_mm512_cmp_ps_mask(d, cut, _CMP_NLT_UQ), scale, p, scale);
}
#else
/* The bits of EXP_ONE * 2^(k/16), minus k << 48. n * EXP_STEPS << 48 is added, whose low bits are k. */
static const uint64_t FN(roots)[EXP_STEPS] = {
    0x47f0000000000000u, 0x47efb5586cf9890fu, 0x47ef72b83c7d517bu, 0x47ef387a6e756238u,
    0x47ef06fe0a31b715u, 0x47eedea64c123422u, 0x47eebfdad5362a27u, 0x47eeab07dd485429u,
    0x47eea09e667f3bcdu, 0x47eea11473eb0187u, 0x47eeace5422aa0dbu, 0x47eec49182a3f090u,
    0x47eee89f995ad3adu, 0x47ef199bdd85529cu, 0x47ef5818dcfba487u, 0x47efa4afa2a490dau,
};
CE_ASSERT(EXP_BIAS == 128, "the first of the roots is EXP_ONE");
CE_INLINE VEC FN(exp_scale)(VEC d, VEC cut, VEC z, VEC p)
{
    const __m512i steps = _mm512_castpd_si512(z);
    const __m512i root =
        _mm512_permutex2var_epi64(_mm512_loadu_si512(FN(roots)), steps, _mm512_loadu_si512(FN(roots) + 8));
    const VEC scale = _mm512_castsi512_pd(_mm512_add_epi64(root, _mm512_slli_epi64(steps, 48)));
    return _mm512_maskz_fmadd_pd(_mm512_cmp_pd_mask(d, cut, _CMP_NLT_UQ), scale, p, scale);
}
#endif
#include "transpose.h"
