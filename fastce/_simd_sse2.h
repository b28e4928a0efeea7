/* Vector vocabulary: SSE2, what every x86-64 has. No fused multiply-add. */
#define FMA(a, b, c) ((a) * (b) + (c))
#define FMSUB(a, b, c) ((a) * (b) - (c))
#if CE_F32
#define VEC __m128
#define LANES 4
#define LOAD(p) _mm_loadu_ps(p)
#define STORE(p, v) _mm_storeu_ps(p, v)
#define STREAM(p, v) _mm_stream_ps(p, v)
#define SET1(s) _mm_set1_ps(s)
#define MAX(x, m) _mm_max_ps(x, m) /* m where x is NaN */
#define EQ_BITS(a, b) ((unsigned)_mm_movemask_ps(_mm_cmpeq_ps(a, b)))
CE_INLINE VEC FN(select_eq)(VEC a, VEC b, VEC x, VEC y)
{
    const VEC equal = _mm_cmpeq_ps(a, b);
    return _mm_or_ps(_mm_and_ps(equal, x), _mm_andnot_ps(equal, y));
}

typedef struct {
    __m128d low, high;
} CE_CAT3(acc, CE_ISA, CE_TAG);
#define ACC CE_CAT3(acc, CE_ISA, CE_TAG)
#define ACC_ZERO {_mm_setzero_pd(), _mm_setzero_pd()}
#define ACC_ADD(acc, v)                                      \
    do {                                                     \
        const VEC v_ = (v);                                  \
        acc.low += _mm_cvtps_pd(v_);                         \
        acc.high += _mm_cvtps_pd(_mm_movehl_ps(v_, v_));     \
    } while (0)
#define ACC_STORE(p, acc) (_mm_storeu_pd(p, acc.low), _mm_storeu_pd((p) + 2, acc.high))

#define EXP_STEPS 1
CE_INLINE VEC FN(exp_scale)(VEC d, VEC cut, VEC z, VEC p)
{
    /* 2^EXP_BIAS * 2^n, normal for every n >= -190 */
    const VEC scale = _mm_castsi128_ps(
        _mm_add_epi32(_mm_slli_epi32(_mm_castps_si128(z), 23), _mm_set1_epi32((127 + 64) << 23)));
    return _mm_andnot_ps(_mm_cmplt_ps(d, cut), FMA(scale, p, scale));
}

#define SQUARE 4
CE_INLINE void FN(transpose_square)(const T *src, Py_ssize_t src_step, T *dst, Py_ssize_t dst_step)
{
    VEC row[SQUARE];
    for (int k = 0; k < SQUARE; k++)
        row[k] = LOAD((const T *)((const char *)src + k * src_step));
    _MM_TRANSPOSE4_PS(row[0], row[1], row[2], row[3]);
    for (int k = 0; k < SQUARE; k++)
        STORE((T *)((char *)dst + k * dst_step), row[k]);
}
#else
#define VEC __m128d
#define LANES 2
#define LOAD(p) _mm_loadu_pd(p)
#define STORE(p, v) _mm_storeu_pd(p, v)
#define STREAM(p, v) _mm_stream_pd(p, v)
#define SET1(s) _mm_set1_pd(s)
#define MAX(x, m) _mm_max_pd(x, m)
#define EQ_BITS(a, b) ((unsigned)_mm_movemask_pd(_mm_cmpeq_pd(a, b)))
CE_INLINE VEC FN(select_eq)(VEC a, VEC b, VEC x, VEC y)
{
    const VEC equal = _mm_cmpeq_pd(a, b);
    return _mm_or_pd(_mm_and_pd(equal, x), _mm_andnot_pd(equal, y));
}


#define EXP_STEPS 1
CE_INLINE VEC FN(exp_scale)(VEC d, VEC cut, VEC z, VEC p)
{
    /* 2^EXP_BIAS * 2^n, normal for every n >= -1150 */
    const VEC scale = _mm_castsi128_pd(
        _mm_add_epi64(_mm_slli_epi64(_mm_castpd_si128(z), 52), _mm_set1_epi64x((long long)(1023 + 128) << 52)));
    return _mm_andnot_pd(_mm_cmplt_pd(d, cut), FMA(scale, p, scale));
}

#define SQUARE 2
CE_INLINE void FN(transpose_square)(const T *src, Py_ssize_t src_step, T *dst, Py_ssize_t dst_step)
{
    const VEC a = LOAD(src), b = LOAD((const T *)((const char *)src + src_step));
    STORE(dst, _mm_unpacklo_pd(a, b));
    STORE((T *)((char *)dst + dst_step), _mm_unpackhi_pd(a, b));
}
#endif
#define TRANSPOSE(src, src_step, dst, dst_step) FN(transpose_square)(src, src_step, dst, dst_step)
#define SELECT_EQ(a, b, x, y) FN(select_eq)(a, b, x, y)
