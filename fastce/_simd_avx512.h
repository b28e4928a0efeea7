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
#define ADD_WHERE_EQ(acc, a, b, y) _mm512_mask_add_ps(acc, _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ), acc, y)
#define ADD_UNLESS_EQ(acc, a, b, y) _mm512_mask_add_ps(acc, _mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ), acc, y)
#define EQ_BITS(a, b) ((unsigned)_mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ))

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

#define EXP_STEPS 16
static const float FN(roots)[2][16] = { /* 2^(k/16), and that times 2^EXP_BIAS */
    {
        0x1p+0f, 0x1.0b5586p+0f, 0x1.172b84p+0f, 0x1.2387a6p+0f,
        0x1.306fep+0f, 0x1.3dea64p+0f, 0x1.4bfdaep+0f, 0x1.5ab07ep+0f,
        0x1.6a09e6p+0f, 0x1.7a1148p+0f, 0x1.8ace54p+0f, 0x1.9c4918p+0f,
        0x1.ae89fap+0f, 0x1.c199bep+0f, 0x1.d5818ep+0f, 0x1.ea4afap+0f,
    },
    {
        0x1p+64f, 0x1.0b5586p+64f, 0x1.172b84p+64f, 0x1.2387a6p+64f,
        0x1.306fep+64f, 0x1.3dea64p+64f, 0x1.4bfdaep+64f, 0x1.5ab07ep+64f,
        0x1.6a09e6p+64f, 0x1.7a1148p+64f, 0x1.8ace54p+64f, 0x1.9c4918p+64f,
        0x1.ae89fap+64f, 0x1.c199bep+64f, 0x1.d5818ep+64f, 0x1.ea4afap+64f,
    },
};
CE_INLINE VEC FN(exp_scale)(VEC d, VEC cut, VEC z, VEC n, VEC p, const int scaled)
{
    const VEC root = _mm512_permutexvar_ps(_mm512_castps_si512(z), LOAD(FN(roots)[scaled]));
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(d, cut, _CMP_NLT_UQ), FMA(root, p, root), n);
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
#define ADD_WHERE_EQ(acc, a, b, y) _mm512_mask_add_pd(acc, _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ), acc, y)
#define ADD_UNLESS_EQ(acc, a, b, y) _mm512_mask_add_pd(acc, _mm512_cmp_pd_mask(a, b, _CMP_NEQ_UQ), acc, y)
#define EQ_BITS(a, b) ((unsigned)_mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ))


#define EXP_STEPS 16
static const double FN(roots)[2][16] = { /* 2^(k/16), and that times 2^EXP_BIAS */
    {
        0x1p+0, 0x1.0b5586cf9890fp+0, 0x1.172b83c7d517bp+0, 0x1.2387a6e756238p+0,
        0x1.306fe0a31b715p+0, 0x1.3dea64c123422p+0, 0x1.4bfdad5362a27p+0, 0x1.5ab07dd485429p+0,
        0x1.6a09e667f3bcdp+0, 0x1.7a11473eb0187p+0, 0x1.8ace5422aa0dbp+0, 0x1.9c49182a3f090p+0,
        0x1.ae89f995ad3adp+0, 0x1.c199bdd85529cp+0, 0x1.d5818dcfba487p+0, 0x1.ea4afa2a490dap+0,
    },
    {
        0x1p+128, 0x1.0b5586cf9890fp+128, 0x1.172b83c7d517bp+128, 0x1.2387a6e756238p+128,
        0x1.306fe0a31b715p+128, 0x1.3dea64c123422p+128, 0x1.4bfdad5362a27p+128, 0x1.5ab07dd485429p+128,
        0x1.6a09e667f3bcdp+128, 0x1.7a11473eb0187p+128, 0x1.8ace5422aa0dbp+128, 0x1.9c49182a3f090p+128,
        0x1.ae89f995ad3adp+128, 0x1.c199bdd85529cp+128, 0x1.d5818dcfba487p+128, 0x1.ea4afa2a490dap+128,
    },
};
CE_INLINE VEC FN(exp_scale)(VEC d, VEC cut, VEC z, VEC n, VEC p, const int scaled)
{
    const VEC root = _mm512_permutex2var_pd(LOAD(FN(roots)[scaled]), _mm512_castpd_si512(z), LOAD(FN(roots)[scaled] + 8));
    return _mm512_maskz_scalef_pd(_mm512_cmp_pd_mask(d, cut, _CMP_NLT_UQ), FMA(root, p, root), n);
}
#endif
#include "_simd_transpose.h"
