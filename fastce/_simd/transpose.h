/* Part of the vocabularies of AVX2 and AVX-512: squares of 8 x 8 float32 or 4 x 4 float64 numbers, transposed by AVX2
 * shuffles. */
#if CE_F32
#define SQUARE 8
CE_INLINE void FN(transpose_square)(const T *src, Py_ssize_t src_stride, T *dst, Py_ssize_t dst_stride)
{
#define HALVES(i, k) \
    _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps((const T *)ce_at(src, (i) * src_stride) + (k))), \
                         _mm_loadu_ps((const T *)ce_at(src, ((i) + 4) * src_stride) + (k)), 1)
#define OUT(i, v) _mm256_storeu_ps((T *)ce_at(dst, (i) * dst_stride), v)
#define QUARTER(r0, r1, r2, r3, first)                                                                           \
    do {                                                                                                         \
        const __m256 a_ = r0, b_ = r1, c_ = r2, d_ = r3;                                                         \
        const __m256 ab0 = _mm256_unpacklo_ps(a_, b_), ab1 = _mm256_unpackhi_ps(a_, b_);                         \
        const __m256 cd0 = _mm256_unpacklo_ps(c_, d_), cd1 = _mm256_unpackhi_ps(c_, d_);                         \
        OUT(first + 0, _mm256_shuffle_ps(ab0, cd0, 0x44));                                                       \
        OUT(first + 1, _mm256_shuffle_ps(ab0, cd0, 0xee));                                                       \
        OUT(first + 2, _mm256_shuffle_ps(ab1, cd1, 0x44));                                                       \
        OUT(first + 3, _mm256_shuffle_ps(ab1, cd1, 0xee));                                                       \
    } while (0)
    QUARTER(HALVES(0, 0), HALVES(1, 0), HALVES(2, 0), HALVES(3, 0), 0);
    QUARTER(HALVES(0, 4), HALVES(1, 4), HALVES(2, 4), HALVES(3, 4), 4);
#undef HALVES
#undef OUT
#undef QUARTER
}
#else
#define SQUARE 4
CE_INLINE void FN(transpose_square)(const T *src, Py_ssize_t src_stride, T *dst, Py_ssize_t dst_stride)
{
#define HALVES(i, k) \
    _mm256_insertf128_pd(_mm256_castpd128_pd256(_mm_loadu_pd((const T *)ce_at(src, (i) * src_stride) + (k))), \
                         _mm_loadu_pd((const T *)ce_at(src, ((i) + 2) * src_stride) + (k)), 1)
#define OUT(i, v) _mm256_storeu_pd((T *)ce_at(dst, (i) * dst_stride), v)
    const __m256d a = HALVES(0, 0), b = HALVES(1, 0), c = HALVES(0, 2), d = HALVES(1, 2);
    OUT(0, _mm256_unpacklo_pd(a, b));
    OUT(1, _mm256_unpackhi_pd(a, b));
    OUT(2, _mm256_unpacklo_pd(c, d));
    OUT(3, _mm256_unpackhi_pd(c, d));
#undef HALVES
#undef OUT
}
#endif
