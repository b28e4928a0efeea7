/* Second derivatives of cross-entropy, from stored exponentials. _curvature.pxd has the formulas. */

/* Stores `value`, an expression for the elements i, i + 1, ...: LANES of them, or the first m = n < LANES. The first
 * and last vector overlap the aligned ones and are stored after them. They are computed before, because `dst` may be
 * what the value is made of. */
#define STORE_ROW(dst, n, value)                                                 \
    do {                                                                         \
        Py_ssize_t i = 0;                                                        \
        if (n < LANES) {                                                         \
            const Py_ssize_t m = n;                                              \
            STORE_PART(dst, value, n);                                           \
        } else {                                                                 \
            const Py_ssize_t m = LANES, head = FN(to_aligned)(dst, n);           \
            const VEC first = value;                                             \
            i = n - LANES;                                                       \
            const VEC last = value;                                              \
            for (i = head; i + LANES <= n; i += LANES)                           \
                STORE(dst + i, value);                                           \
            if (i < n)                                                           \
                STORE(dst + n - LANES, last);                                    \
            if (head)                                                            \
                STORE(dst, first);                                               \
        }                                                                        \
    } while (0)

/* e*(a - b*e), or `exact` where e == at. */
CE_INLINE VEC FN(hess)(VEC e, VEC a, VEC minus_b, VEC at, VEC exact)
{
    const VEC u = e * SET1(EXP_UNSCALE);
    return SELECT_EQ(e, at, exact, u * FMA(minus_b, u, a));
}

CE_INLINE void FN(row_hess)(const T *e, T *hess, Py_ssize_t n, T a_, T b_, T exact_src, T exact_)
{
    const VEC a = SET1(a_), minus_b = SET1(-b_), at = SET1(exact_src), exact = SET1(exact_);
    STORE_ROW(hess, n, FN(hess)(FN(load_upto)(e + i, m), a, minus_b, at, exact));
}

static void FN(rows_hess)(const void *e, Py_ssize_t e_row_stride, void *hess, Py_ssize_t hess_row_stride,
                          Py_ssize_t rows, Py_ssize_t n, const double *a, const double *b, const double *exact_src,
                          const double *exact_hess)
{
    for (Py_ssize_t r = 0; r < rows; r++)
        FN(row_hess)(ce_at(e, r * e_row_stride), ce_at(hess, r * hess_row_stride), n, (T)a[r], (T)b[r],
                     (T)exact_src[r], (T)exact_hess[r]);
}

static void FN(tile_hess)(const void *e_, void *hess_, Py_ssize_t classes, Py_ssize_t width, const void *a_,
                          const void *b_, const void *maximum_, const void *max_hess_)
{
    const T *e = e_, *maximum = maximum_, *max_hess = max_hess_;
    T *hess = hess_;
    const VEC zero = SET1(0);
    for (Py_ssize_t r = 0; r < width; r += LANES) {
        const VEC a = LOAD((const T *)a_ + r), minus_b = zero - LOAD((const T *)b_ + r);
        const VEC at = LOAD(maximum + r), exact = LOAD(max_hess + r);
        for (Py_ssize_t j = 0; j < classes; j++) { /* MAX replaces NaN by 0 */
            const Py_ssize_t k = j * width + r;
            STORE(hess + k, FN(hess)(MAX(LOAD(e + k), zero), a, minus_b, at, exact));
        }
    }
}

/* The root of the scale of stored exponentials. Terms that are multiplied by it neither overflow, up to differences of
 * 2^95 or 2^959, nor become subnormal where exponentials are small, which would be slow. */
#if CE_F32
#define HALF_UNSCALE 0x1p-32f
#else
#define HALF_UNSCALE 0x1p-64
#endif

/* A term of the sum of e*(v - at), scaled. */
CE_INLINE VEC FN(spread_term)(VEC e, VEC v, VEC at) { return FN(gap_term)(e * SET1(HALF_UNSCALE), v - at); }

static double FN(row_spread)(const void *e_, const void *v_, Py_ssize_t n, double at_, const void *next_)
{
    const T *e = e_, *v = v_, *next = next_;
    const VEC at = SET1((T)at_);
    ACC acc = ACC_ZERO;
    Py_ssize_t i = 0;
#define TERM(k) FN(spread_term)(LOAD(e + i + (k) * LANES), LOAD(v + i + (k) * LANES), at)
    for (; i + 8 * LANES <= n; i += 8 * LANES) {
        for (int k = 0; k < 8 * LANES; k += CE_CACHE_LINE / sizeof(T))
            CE_PREFETCH(next + i + k);
        ACC_ADD(acc, ((TERM(0) + TERM(1)) + (TERM(2) + TERM(3))) + ((TERM(4) + TERM(5)) + (TERM(6) + TERM(7))));
    }
    for (; i + LANES <= n; i += LANES)
        ACC_ADD(acc, TERM(0));
#undef TERM
    if (i < n)
        ACC_ADD(acc, FN(spread_term)(LOAD_PART(e + i, n - i, 0), LOAD_PART(v + i, n - i, 0), at));
    return ACC_SUM(acc) * HALF_UNSCALE;
}

static void FN(tile_pick)(const void *e_, const void *v_, Py_ssize_t classes, Py_ssize_t width, void *at_)
{
    const T *e = e_, *v = v_;
    T *at = at_;
    for (Py_ssize_t r = 0; r < width; r += LANES) {
        VEC found = LOAD(at + r);
        for (Py_ssize_t j = 0; j < classes; j++)
            found = SELECT_EQ(LOAD(e + j * width + r), SET1(EXP_ONE), LOAD(v + j * width + r), found);
        STORE(at + r, found);
    }
}

static void FN(tile_spread)(const void *e_, const void *v_, Py_ssize_t classes, Py_ssize_t width, const void *at_,
                            double *sum)
{
    const T *e = e_, *v = v_;
    for (Py_ssize_t r = 0; r < width; r += LANES) {
        const VEC at = LOAD((const T *)at_ + r);
        ACC acc = ACC_ZERO;
        for (Py_ssize_t j = 0; j < classes; j += 4) { /* at most four terms before they are added to acc */
            const Py_ssize_t stop = j + 4 < classes ? j + 4 : classes;
            VEC some = SET1(0);
            for (Py_ssize_t k = j; k < stop; k++)
                some = some + FN(spread_term)(LOAD(e + k * width + r), LOAD(v + k * width + r), at);
            ACC_ADD(acc, some);
        }
        ACC_STORE(sum + r, acc);
        for (int k = 0; k < LANES; k++)
            sum[r + k] *= HALF_UNSCALE;
    }
}
#undef HALF_UNSCALE

/* e*(a*(v - at) + b). Where e is 0 an infinite v counts for nothing, but the result is NaN where a is. */
CE_INLINE VEC FN(hvp)(VEC e, VEC v, VEC at, VEC a, VEC b)
{
    const VEC u = e * SET1(EXP_UNSCALE);
    return u * SELECT_EQ(u, SET1(0), a, FMA(a, v - at, b));
}

CE_INLINE void FN(row_hvp)(const T *e, const T *v, T *dst, Py_ssize_t n, T at_, T a_, T b_)
{
    const VEC at = SET1(at_), a = SET1(a_), b = SET1(b_);
    STORE_ROW(dst, n, FN(hvp)(FN(load_upto)(e + i, m), FN(load_upto)(v + i, m), at, a, b));
}

static void FN(rows_hvp)(const void *e, Py_ssize_t e_row_stride, const void *v, Py_ssize_t v_row_stride, void *dst,
                         Py_ssize_t dst_row_stride, Py_ssize_t rows, Py_ssize_t n, const double *at, const double *a,
                         const double *b)
{
    for (Py_ssize_t r = 0; r < rows; r++)
        FN(row_hvp)(ce_at(e, r * e_row_stride), ce_at(v, r * v_row_stride), ce_at(dst, r * dst_row_stride), n,
                    (T)at[r], (T)a[r], (T)b[r]);
}

static void FN(tile_hvp)(const void *e_, const void *v_, void *dst_, Py_ssize_t classes, Py_ssize_t width,
                         const void *at_, const void *a_, const void *b_)
{
    const T *e = e_, *v = v_;
    T *dst = dst_;
    for (Py_ssize_t r = 0; r < width; r += LANES) {
        const VEC at = LOAD((const T *)at_ + r), a = LOAD((const T *)a_ + r), b = LOAD((const T *)b_ + r);
        for (Py_ssize_t j = 0; j < classes; j++) {
            const Py_ssize_t k = j * width + r;
            STORE(dst + k, FN(hvp)(LOAD(e + k), LOAD(v + k), at, a, b));
        }
    }
}
#undef STORE_ROW
