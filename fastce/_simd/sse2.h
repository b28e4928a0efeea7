/* Vocabulary: SSE2, which every x86-64 processor has. It has no fused multiply-add. */
#if CE_F32
#define VEC __m128
#define LANES 4
#define MM(name) _mm_##name##_ps /* the intrinsic for the dtype */
#else
#define VEC __m128d
#define LANES 2
#define MM(name) _mm_##name##_pd
#endif
#define LOAD(p) MM(loadu)(p)
#define STORE(p, v) MM(storeu)(p, v)
#define STREAM(p, v) MM(stream)(p, v)
#define SET1(s) MM(set1)(s)
#define FMA(a, b, c) ((a) * (b) + (c))
#define FMSUB(a, b, c) ((a) * (b) - (c))
#define MAX(x, m) MM(max)(x, m)
#define SELECT_EQ(a, b, x, y) FN(select_eq)(a, b, x, y)
#define EQ_BITS(a, b) ((unsigned)MM(movemask)(MM(cmpeq)(a, b)))
#define TIMES_FROM(least, s, factor) MM(and)(MM(cmpge)(s, least), (s) * (factor))
#define FLUSHED(v, below) FN(flushed)(v, below)
CE_INLINE VEC FN(flushed)(VEC v, VEC below)
{
    const VEC sign = SET1((T)-0.0), keep = MM(cmpnlt)(MM(andnot)(sign, v), below);
    return MM(and)(v, MM(or)(keep, sign));
}
CE_INLINE VEC FN(select_eq)(VEC a, VEC b, VEC x, VEC y)
{
    const VEC equal = MM(cmpeq)(a, b);
    return MM(or)(MM(and)(equal, x), MM(andnot)(equal, y));
}

#if CE_F32
#define WIDE __m128d
#define WIDEN_LOW(v) _mm_cvtps_pd(v)
#define WIDEN_HIGH(v) _mm_cvtps_pd(_mm_movehl_ps(v, v))
#define WIDE_STORE(p, v) _mm_storeu_pd(p, v)
#define QUOTIENT(d, inverse) FN(rounded_product)(d, _mm_set1_pd((inverse)->itself))
CE_INLINE VEC FN(rounded_product)(VEC d, WIDE by)
{
    return _mm_movelh_ps(_mm_cvtpd_ps(WIDEN_LOW(d) * by), _mm_cvtpd_ps(WIDEN_HIGH(d) * by));
}
#else
#define QUOTIENT(d, inverse) ((d) / SET1((inverse)->temperature))
#endif

#define EXP_STEPS 1
CE_INLINE VEC FN(exp_scale)(VEC d, VEC cut, VEC z, VEC p)
{
#if CE_F32
    const VEC scale = _mm_castsi128_ps(
        _mm_add_epi32(_mm_slli_epi32(_mm_castps_si128(z), 23), _mm_set1_epi32((127 + EXP_BIAS) << 23)));
#else
    const VEC scale = _mm_castsi128_pd(
        _mm_add_epi64(_mm_slli_epi64(_mm_castpd_si128(z), 52), _mm_set1_epi64x((long long)(1023 + EXP_BIAS) << 52)));
#endif
    return MM(andnot)(MM(cmplt)(d, cut), FMA(scale, p, scale));
}

#define SQUARE LANES
CE_INLINE void FN(transpose_square)(const T *src, Py_ssize_t src_stride, T *dst, Py_ssize_t dst_stride)
{
    VEC row[SQUARE];
    for (int k = 0; k < SQUARE; k++)
        row[k] = LOAD((const T *)ce_at(src, k * src_stride));
#if CE_F32
    _MM_TRANSPOSE4_PS(row[0], row[1], row[2], row[3]);
#else
    const VEC low = _mm_unpacklo_pd(row[0], row[1]);
    row[1] = _mm_unpackhi_pd(row[0], row[1]);
    row[0] = low;
#endif
    for (int k = 0; k < SQUARE; k++)
        STORE((T *)ce_at(dst, k * dst_stride), row[k]);
}
