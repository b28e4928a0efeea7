/* Vocabulary: AVX2, FMA and F16C. */
#if CE_F32
#define VEC __m256
#define LANES 8
#define MM(name) _mm256_##name##_ps
#else
#define VEC __m256d
#define LANES 4
#define MM(name) _mm256_##name##_pd
#endif
#define LOAD(p) MM(loadu)(p)
#define STORE(p, v) MM(storeu)(p, v)
#define STREAM(p, v) MM(stream)(p, v)
#define SET1(s) MM(set1)(s)
#define FMA(a, b, c) MM(fmadd)(a, b, c)
#define FMSUB(a, b, c) MM(fmsub)(a, b, c)
#define MAX(x, m) MM(max)(x, m)
#define SELECT_EQ(a, b, x, y) MM(blendv)(y, x, MM(cmp)(a, b, _CMP_EQ_OQ))
#define ADD_BY_EQ(a, b, x, where, y, unless)               \
    do {                                                   \
        const VEC equal_ = MM(cmp)(a, b, _CMP_EQ_OQ);      \
        where = where + MM(and)(equal_, x);                \
        unless = unless + MM(andnot)(equal_, y);           \
    } while (0)
/* Else gcc adds the terms of several vectors later, and has no registers for them meanwhile. */
#define ADD_NOW(sum) __asm__("" : "+x"(sum))
#define EQ_BITS(a, b) ((unsigned)MM(movemask)(MM(cmp)(a, b, _CMP_EQ_OQ)))

#define TIMES_FROM(least, s, factor) MM(and)(MM(cmp)(s, least, _CMP_GE_OQ), (s) * (factor))
#define FLUSHED(v, below) FN(flushed)(v, below)
CE_INLINE VEC FN(flushed)(VEC v, VEC below)
{
    const VEC sign = SET1((T)-0.0), keep = MM(cmp)(MM(andnot)(sign, v), below, _CMP_NLT_UQ);
    return MM(and)(v, MM(or)(keep, sign));
}

#if CE_F32
#define FROM_F16(p) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p)))
#define TO_F16(p, v) _mm_storeu_si128((__m128i *)(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT))
#define STREAM_F16(p, v) _mm_stream_si128((__m128i *)(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT))
#define STREAM_BF16(p, v) _mm_stream_si128((__m128i *)(p), FN(to_bf16)(v))
CE_INLINE __m128i FN(to_bf16)(VEC v)
{
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i nearest = _mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7fff));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(1 << 22));
    const __m256i halves = _mm256_srli_epi32(
        _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(nearest), _mm256_castsi256_ps(quiet),
                                             _mm256_cmp_ps(v, v, _CMP_UNORD_Q))), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
}
#define WIDE __m256d
#define WIDEN_LOW(v) _mm256_cvtps_pd(_mm256_castps256_ps128(v))
#define WIDEN_HIGH(v) _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1))
#define WIDE_STORE(p, v) _mm256_storeu_pd(p, v)

#define EXP_STEPS 8
/* The bits of EXP_ONE * 2^(k/8), minus k << 20. n * EXP_STEPS << 20 is added, whose low bits are k. */
static const uint32_t FN(roots)[EXP_STEPS] = {
    0x5f800000u, 0x5f7b95c2u, 0x5f7837f0u, 0x5f75fed7u, 0x5f7504f3u, 0x5f75672au, 0x5f7744fdu, 0x5f7ac0c7u,
};
CE_ASSERT(EXP_BIAS == 64, "the first of the roots is EXP_ONE");
CE_INLINE VEC FN(exp_scale)(VEC d, VEC cut, VEC z, VEC p)
{
    const __m256i steps = _mm256_castps_si256(z);
    const __m256i root = _mm256_permutevar8x32_epi32(_mm256_loadu_si256((const __m256i *)FN(roots)), steps);
    const VEC scale = _mm256_castsi256_ps(_mm256_add_epi32(root, _mm256_slli_epi32(steps, 20)));
    return _mm256_andnot_ps(_mm256_cmp_ps(d, cut, _CMP_LT_OQ), FMA(scale, p, scale));
}
#else
#define TOGETHER 2
#define EXP_STEPS 2
/* The bits of EXP_ONE * 2^(k/2), minus k << 51. n * EXP_STEPS << 51 is added, whose low bit is k. */
#define ROOTS 0x47f0000000000000u, 0x47eea09e667f3bcdu
static const uint64_t FN(roots)[LANES] = {ROOTS, ROOTS};
#undef ROOTS
CE_ASSERT(EXP_BIAS == 128, "the first of the roots is EXP_ONE");
CE_INLINE VEC FN(exp_scale)(VEC d, VEC cut, VEC z, VEC p)
{
    const __m256i steps = _mm256_castpd_si256(z);
    /* Bit 1 of the index chooses within 128 bits. */
    const VEC root = _mm256_permutevar_pd(LOAD((const double *)FN(roots)), _mm256_add_epi64(steps, steps));
    const VEC scale = _mm256_castsi256_pd(_mm256_add_epi64(_mm256_castpd_si256(root), _mm256_slli_epi64(steps, 51)));
    return _mm256_andnot_pd(_mm256_cmp_pd(d, cut, _CMP_LT_OQ), FMA(scale, p, scale));
}
#endif
#include "transpose.h"
