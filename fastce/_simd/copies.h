/* Primitives that copy: between arrays and tiles, and between the dtype and float64. */

/* dst[i] = src[i] for n numbers; strides in bytes. Four numbers a turn: a loop of one is so short that its speed depends
 * on where it lies in memory. */
static CE_NOINLINE void FN(copy_strided)(const void *src, Py_ssize_t src_stride, void *dst, Py_ssize_t dst_stride,
                                         Py_ssize_t n)
{
#define SRC(i) *(const T *)ce_at(src, (i) * src_stride)
#define DST(i) *(T *)ce_at(dst, (i) * dst_stride)
    Py_ssize_t i = 0;
    for (; i + 4 <= n; i += 4) {
        const T a = SRC(i), b = SRC(i + 1), c = SRC(i + 2), d = SRC(i + 3);
        DST(i) = a;
        DST(i + 1) = b;
        DST(i + 2) = c;
        DST(i + 3) = d;
    }
    for (; i < n; i++)
        DST(i) = SRC(i);
#undef SRC
#undef DST
}

/* SQUARE x SQUARE numbers at a time are transposed in registers. The last squares overlap those before. */
static void FN(transpose)(const void *src, Py_ssize_t src_stride, Py_ssize_t rows, Py_ssize_t columns, void *dst,
                          Py_ssize_t dst_stride)
{
    const Py_ssize_t size = sizeof(T);
#ifdef SQUARE
    if (rows >= SQUARE && columns >= SQUARE) {
        for (Py_ssize_t r = 0; r < rows; r += SQUARE) {
            const Py_ssize_t row = r + SQUARE <= rows ? r : rows - SQUARE;
            for (Py_ssize_t k = 0; k < columns; k += SQUARE) {
                const Py_ssize_t column = k + SQUARE <= columns ? k : columns - SQUARE;
                FN(transpose_square)(ce_at(src, row * src_stride + column * size), src_stride,
                                     ce_at(dst, column * dst_stride + row * size), dst_stride);
            }
        }
        return;
    }
#endif
    if (columns < rows) {
        for (Py_ssize_t k = 0; k < columns; k++)
            FN(copy_strided)(ce_at(src, k * size), src_stride, ce_at(dst, k * dst_stride), size, rows);
    } else {
        for (Py_ssize_t r = 0; r < rows; r++)
            FN(copy_strided)(ce_at(src, r * src_stride), size, ce_at(dst, r * size), dst_stride, columns);
    }
}

/* How far ahead runs of n numbers are fetched: about 2 KiB of them. The processor does not, where they are on different
 * pages. Few runs are near already. */
CE_INLINE Py_ssize_t FN(ahead)(Py_ssize_t runs, Py_ssize_t n, Py_ssize_t stride)
{
    return runs < 16 ? 0 : (2048 / (n * (Py_ssize_t)sizeof(T)) + 1) * stride;
}

static void FN(load_runs)(const void *src_, Py_ssize_t src_stride, Py_ssize_t runs, Py_ssize_t n, void *dst_,
                          Py_ssize_t dst_stride)
{
    const Py_ssize_t ahead = FN(ahead)(runs, n, src_stride);
    for (Py_ssize_t k = 0; k < runs; k++) {
        const T *src = ce_at(src_, k * src_stride);
        T *dst = ce_at(dst_, k * dst_stride);
        Py_ssize_t i = 0;
        for (; i + LANES <= n; i += LANES) {
            CE_PREFETCH(ce_at(src + i, ahead));
            STORE(dst + i, LOAD(src + i));
        }
        for (; i < n; i++)
            dst[i] = src[i];
    }
}

/* Lines that are written only in part are not streamed, because each would be read and written by itself. */
CE_INLINE void FN(stream_run)(const T *src, Py_ssize_t n, T *dst)
{
    enum { LINE = CE_CACHE_LINE / sizeof(T) };
    Py_ssize_t i = 0, before = (Py_ssize_t)(-(uintptr_t)dst % CE_CACHE_LINE / sizeof(T));
    for (; i < before && i < n; i++)
        dst[i] = src[i];
    for (; i + LINE <= n; i += LINE)
        for (int k = 0; k < LINE; k += LANES)
            STREAM(dst + i + k, LOAD(src + i + k));
    for (; i < n; i++)
        dst[i] = src[i];
}

static void FN(store_runs)(const void *src_, Py_ssize_t src_stride, Py_ssize_t runs, Py_ssize_t n, void *dst_,
                           Py_ssize_t dst_stride, int stream)
{
    const Py_ssize_t ahead = FN(ahead)(runs, n, dst_stride);
    for (Py_ssize_t k = 0; k < runs; k++) {
        const T *src = ce_at(src_, k * src_stride);
        T *dst = ce_at(dst_, k * dst_stride);
        Py_ssize_t i = 0;
        if (stream && (uintptr_t)dst % sizeof(T) == 0) {
            CE_PREFETCH_WRITE(ce_at(dst, ahead));
            CE_PREFETCH_WRITE(ce_at(dst + n - 1, ahead));
            FN(stream_run)(src, n, dst);
            continue;
        }
        for (; i + LANES <= n; i += LANES) {
            CE_PREFETCH_WRITE(ce_at(dst + i, ahead));
            STORE(dst + i, LOAD(src + i));
        }
        for (; i < n; i++)
            dst[i] = src[i];
    }
}

static void FN(label_lanes)(const int64_t *labels, Py_ssize_t n, int64_t first, void *lanes)
{
    for (Py_ssize_t r = 0; r < n; r++)
        ((T *)lanes)[r] = (T)(labels[r] - first);
}

/* The last vectors of the two functions that follow may overlap those before. */
CE_INLINE void FN(from_half)(int from, const uint16_t *restrict src, Py_ssize_t n, T *restrict dst)
{
#ifdef FROM_F16
    if (from == CE_FROM_F16 && n >= LANES) {
        for (Py_ssize_t i = 0; i + LANES <= n; i += LANES)
            STORE(dst + i, FROM_F16(src + i));
        STORE(dst + n - LANES, FROM_F16(src + n - LANES));
        return;
    }
#endif
    if (from == CE_FROM_F16)
        for (Py_ssize_t i = 0; i < n; i++)
            dst[i] = ce_from_f16(src[i]);
    else
        for (Py_ssize_t i = 0; i < n; i++)
            dst[i] = ce_from_bf16(src[i]);
}

#if CE_F32
CE_INLINE void FN(round_halves)(int to, const float *restrict src, Py_ssize_t n, uint16_t *restrict dst)
{
#ifdef TO_F16
    if (to == CE_FROM_F16 && n >= LANES) {
        for (Py_ssize_t i = 0; i + LANES <= n; i += LANES)
            TO_F16(dst + i, LOAD(src + i));
        TO_F16(dst + n - LANES, LOAD(src + n - LANES));
        return;
    }
#endif
    if (to == CE_FROM_F16)
        for (Py_ssize_t i = 0; i < n; i++)
            dst[i] = ce_to_f16(src[i]);
    else
        for (Py_ssize_t i = 0; i < n; i++)
            dst[i] = ce_to_bf16(src[i]);
}

static void FN(to_half)(int to, const float *src, Py_ssize_t n, void *dst_, int stream)
{
    uint16_t *dst = dst_;
    Py_ssize_t i = 0;
#ifdef STREAM_F16
    enum { LINE = CE_CACHE_LINE / sizeof(uint16_t) };
    if (stream && n >= LINE) { /* whole lines, see stream_run */
        i = (Py_ssize_t)(-(uintptr_t)dst % CE_CACHE_LINE / sizeof(uint16_t));
        FN(round_halves)(to, src, i, dst);
        for (; i + LINE <= n; i += LINE)
            for (int k = 0; k < LINE; k += LANES)
                if (to == CE_FROM_F16)
                    STREAM_F16(dst + i + k, LOAD(src + i + k));
                else
                    STREAM_BF16(dst + i + k, LOAD(src + i + k));
    }
#else
    (void)stream;
#endif
    FN(round_halves)(to, src + i, n - i, dst + i);
}
#endif

static void FN(convert)(int from, const void *src, Py_ssize_t n, void *dst)
{
    T *restrict to = dst;
#define CONVERT(code, type)                          \
    case code:                                       \
        for (Py_ssize_t i = 0; i < n; i++)           \
            to[i] = (T)((const type *)src)[i];       \
        break;
    switch (from) {
        CONVERT(CE_FROM_I8, int8_t)
        CONVERT(CE_FROM_I16, int16_t)
        CONVERT(CE_FROM_I32, int32_t)
        CONVERT(CE_FROM_I64, int64_t)
        CONVERT(CE_FROM_U8, uint8_t)
        CONVERT(CE_FROM_U16, uint16_t)
        CONVERT(CE_FROM_U32, uint32_t)
        CONVERT(CE_FROM_U64, uint64_t)
        CONVERT(CE_FROM_F32, float)
        CONVERT(CE_FROM_F64, double)
    case CE_FROM_F16:
    case CE_FROM_BF16:
        FN(from_half)(from, src, n, dst);
    }
#undef CONVERT
}

static void FN(narrow)(const double *src, Py_ssize_t n, void *dst)
{
    for (Py_ssize_t r = 0; r < n; r++)
        ((T *)dst)[r] = (T)src[r];
}

static void FN(widen)(const void *src, Py_ssize_t n, double *dst)
{
    for (Py_ssize_t r = 0; r < n; r++)
        dst[r] = ((const T *)src)[r];
}

static void FN(widen_state)(const void *src_, Py_ssize_t n, double *restrict row_max, double *restrict tail,
                            double *restrict linear, double hot, const double *restrict d_label)
{
    const T *src = src_;
    for (Py_ssize_t r = 0; r < n; r++) {
        row_max[r] = src[r];
        tail[r] = ce_tail_if_finite(tail[r], row_max[r]);
    }
    for (Py_ssize_t r = 0; d_label && r < n; r++)
        linear[r] -= hot * d_label[r];
}
