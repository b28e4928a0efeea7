/* Primitives of entropies and ranks. d is (x - row_max) / temperature. */

/* d as a factor of exp(d), so that 0 * inf is 0. The exponential of anything below is 0. */
CE_INLINE VEC FN(bounded)(VEC d) { return MAX(d, SET1(-1000)); }

CE_INLINE void FN(two_exps)(const VEC *d, VEC *v)
{
    if (TOGETHER == 1) {
        v[0] = FN(exp)(d[0]);
        v[1] = FN(exp)(d[1]);
    } else {
        FN(exps)(d, v, 2);
    }
}

/* The gradient from d and the stored exponential e. It is formed of e before e is rounded to a subnormal number. */
CE_INLINE VEC FN(entropy_grad)(VEC d, VEC e, VEC minus_a, VEC mean)
{
    return minus_a * (e * (FN(bounded)(d) + mean) * SET1(EXP_UNSCALE));
}

/* ----- Vectors along the classes ----- */

CE_INLINE void FN(row_entropy)(const T *x, T *e, Py_ssize_t n, T shift_, const FN(inverse) * inverse, int excluded,
                               const T *next, double *tail, double *gap_dot)
{
    const VEC shift = SET1(shift_), zero = SET1(0);
    ONES ones = ONES_ZERO; /* the terms exp(0) are counted apart, because the others may be tiny */
    VEC sum[2] = {zero, zero}, gaps[2] = {zero, zero};
    ACC acc = ACC_ZERO, gap_acc = ACC_ZERO;
    Py_ssize_t i = 0;
#define ADD(k, d, v)                                     \
    do {                                                 \
        ADD_OR_COUNT(d, v, sum[k], ones);                \
        gaps[k] = FMA(v, FN(bounded)(d), gaps[k]);       \
        ADD_NOW(sum[k]);                                 \
        ADD_NOW(gaps[k]);                                \
        ADD_NOW(ones);                                   \
    } while (0)
#define FLUSH()                                   \
    do {                                          \
        ACC_ADD(acc, sum[0] + sum[1]);            \
        ACC_ADD(gap_acc, gaps[0] + gaps[1]);      \
        sum[0] = sum[1] = zero;                   \
        gaps[0] = gaps[1] = zero;                 \
    } while (0)
#define ADD_TWO(i)                                                          \
    do {                                                                    \
        const VEC d[2] = {FN(cooled)(LOAD(x + (i)) - shift, inverse),       \
                          FN(cooled)(LOAD(x + (i) + LANES) - shift, inverse)}; \
        VEC v[2];                                                           \
        FN(two_exps)(d, v);                                                 \
        if (e) {                                                            \
            STORE(e + (i), v[0]);                                           \
            STORE(e + (i) + LANES, v[1]);                                   \
        }                                                                   \
        ADD(0, d[0], v[0]);                                                 \
        ADD(1, d[1], v[1]);                                                 \
    } while (0)
#define ADD_UPTO(k, m, load)                                                \
    do {                                                                    \
        const VEC d = FN(cooled)((load) - shift, inverse), v = FN(exp)(d);  \
        if (e)                                                              \
            FN(store_upto)(e + i, v, m);                                    \
        ADD(k, d, v);                                                       \
        i += (m);                                                           \
    } while (0)
    for (; i + 8 * LANES <= n; i += 8 * LANES) {
        for (int k = 0; k < 8 * LANES; k += CE_CACHE_LINE / sizeof(T))
            CE_PREFETCH(next + i + k);
        for (int k = 0; k < 8 * LANES; k += 2 * LANES)
            ADD_TWO(i + k);
        FLUSH(); /* each has at most four terms */
    }
    for (; i + 2 * LANES <= n; i += 2 * LANES)
        ADD_TWO(i);
    if (i + LANES <= n)
        ADD_UPTO(0, LANES, LOAD(x + i));
    if (i < n)
        ADD_UPTO(1, n - i, LOAD_PART(x + i, n - i, (T)-INFINITY));
    FLUSH();
#undef ADD
#undef ADD_TWO
#undef ADD_UPTO
#undef FLUSH
    *tail = ACC_SUM(acc) * EXP_UNSCALE + (COUNTED(ones) - excluded);
    *gap_dot = -ACC_SUM(gap_acc) * EXP_UNSCALE;
}

CE_INLINE void FN(rows_entropy_)(const void *x, Py_ssize_t x_row_stride, void *e, Py_ssize_t e_row_stride,
                                 Py_ssize_t rows, Py_ssize_t n, const double *shift, const FN(inverse) * inverse,
                                 int excluded, const void *next, double *tail, double *gap_dot)
{
    for (Py_ssize_t r = 0; r < rows; r++)
        FN(row_entropy)(ce_at(x, r * x_row_stride), e ? ce_at(e, r * e_row_stride) : NULL, n, (T)shift[r], inverse,
                        excluded, ce_at(next, r * x_row_stride), tail + r, gap_dot + r);
}

static void FN(rows_entropy)(const void *x, Py_ssize_t x_row_stride, void *e, Py_ssize_t e_row_stride, Py_ssize_t rows,
                             Py_ssize_t n, const double *shift, double temperature, int excluded, const void *next,
                             double *tail, double *gap_dot)
{
    const FN(inverse) cool = FN(inverse_of)(temperature);
#define SUMS(e, inverse) \
    FN(rows_entropy_)(x, x_row_stride, e, e_row_stride, rows, n, shift, inverse, excluded, next, tail, gap_dot)
    if (temperature == 1)
        e ? SUMS(e, NULL) : SUMS(NULL, NULL);
    else
        e ? SUMS(e, &cool) : SUMS(NULL, &cool);
#undef SUMS
}

CE_INLINE void FN(row_entropy_grad)(const T *x, const T *e, T *grad, Py_ssize_t n, T shift_,
                                    const FN(inverse) * inverse, T a_, T mean_, T below_, const int stream)
{
    const VEC shift = SET1(shift_), minus_a = SET1(-a_), mean = SET1(mean_), below = SET1(below_);
    Py_ssize_t i = stream ? FN(to_line)(grad, n) : 0;
#define GRAD(v, e_v)                                                              \
    do {                                                                          \
        const VEC d = FN(cooled)((v) - shift, inverse);                           \
        t = FN(entropy_grad)(d, e ? (e_v) : FN(exp)(d), minus_a, mean);           \
        if (below_ > 0)                                                           \
            t = FLUSHED(t, below);                                                \
    } while (0)
    VEC t;
    if (i) {
        GRAD(LOAD_PART(x, i, 0), LOAD_PART(e, i, 0));
        STORE_PART(grad, t, i);
    }
    for (; i + LANES <= n; i += LANES) {
        GRAD(LOAD(x + i), LOAD(e + i));
        if (stream)
            STREAM(grad + i, t);
        else
            STORE(grad + i, t);
    }
    if (i < n) {
        GRAD(LOAD_PART(x + i, n - i, 0), LOAD_PART(e + i, n - i, 0));
        STORE_PART(grad + i, t, n - i);
    }
#undef GRAD
}

CE_INLINE void FN(rows_entropy_grad_)(const void *x, Py_ssize_t x_row_stride, const void *e, Py_ssize_t e_row_stride,
                                      void *grad, Py_ssize_t grad_row_stride, Py_ssize_t rows, Py_ssize_t n,
                                      const double *shift, const FN(inverse) * inverse, const double *a,
                                      const double *mean, double below, const int stream)
{
    for (Py_ssize_t r = 0; r < rows; r++)
        FN(row_entropy_grad)(ce_at(x, r * x_row_stride), e ? ce_at(e, r * e_row_stride) : NULL,
                             ce_at(grad, r * grad_row_stride), n, (T)shift[r], inverse, (T)a[r], (T)mean[r], (T)below,
                             stream);
}

static void FN(rows_entropy_grad)(const void *x, Py_ssize_t x_row_stride, const void *e, Py_ssize_t e_row_stride,
                                  void *grad, Py_ssize_t grad_row_stride, Py_ssize_t rows, Py_ssize_t n,
                                  const double *shift, double temperature, const double *a, const double *mean,
                                  double below, int stream)
{
    const FN(inverse) cool = FN(inverse_of)(temperature), *inverse = temperature == 1 ? NULL : &cool;
#define GRADS(e, inverse, stream)                                                                                  \
    FN(rows_entropy_grad_)(x, x_row_stride, e, e_row_stride, grad, grad_row_stride, rows, n, shift, inverse, a,    \
                           mean, below, stream)
    if (e)
        inverse ? GRADS(e, &cool, 0) : GRADS(e, NULL, 0); /* of rows that are so short that they are not streamed */
    else if (stream)
        inverse ? GRADS(NULL, &cool, 1) : GRADS(NULL, NULL, 1);
    else
        inverse ? GRADS(NULL, &cool, 0) : GRADS(NULL, NULL, 0);
#undef GRADS
}

/* Adds 1 to `above` where v is larger than `than`, or with `or_equal` not smaller. NaN is neither. */
#define ADD_IF_ABOVE(v, than, or_equal, above)                                      \
    do {                                                                            \
        const VEC larger_ = MAX(v, than);                                           \
        VEC below_ = SET1(0);                                                       \
        if (or_equal)                                                               \
            ADD_BY_EQ(larger_, v, SET1(1), above, SET1(1), below_);                 \
        else                                                                        \
            ADD_BY_EQ(larger_, than, SET1(1), below_, SET1(1), above);              \
        (void)below_;                                                               \
    } while (0)

CE_INLINE Py_ssize_t FN(count_above)(const T *x, Py_ssize_t n, T value, const int or_equal)
{
    const VEC than = SET1(value);
    VEC a0 = SET1(0), a1 = a0, a2 = a0, a3 = a0;
    Py_ssize_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        ADD_IF_ABOVE(LOAD(x + i), than, or_equal, a0);
        ADD_IF_ABOVE(LOAD(x + i + LANES), than, or_equal, a1);
        ADD_IF_ABOVE(LOAD(x + i + 2 * LANES), than, or_equal, a2);
        ADD_IF_ABOVE(LOAD(x + i + 3 * LANES), than, or_equal, a3);
    }
    for (; i + LANES <= n; i += LANES)
        ADD_IF_ABOVE(LOAD(x + i), than, or_equal, a0);
    if (i < n)
        ADD_IF_ABOVE(LOAD_PART(x + i, n - i, (T)NAN), than, or_equal, a1);
    return (Py_ssize_t)TOTAL((a0 + a1) + (a2 + a3));
}

static Py_ssize_t FN(row_rank)(const void *x_, Py_ssize_t n, Py_ssize_t label, double value)
{
    const T *x = x_;
    const Py_ssize_t before = label < 0 ? 0 : label < n ? label : n;
    const Py_ssize_t after = 0 <= label && label < n ? label + 1 : before;
    return FN(count_above)(x, before, (T)value, 1) + FN(count_above)(x + after, n - after, (T)value, 0);
}

/* ----- Vectors across the rows ----- */

CE_INLINE void FN(tile_entropy_)(const T *x, Py_ssize_t classes, Py_ssize_t width, const T *row_max,
                                 const T *row_max_before, const FN(inverse) * inverse, double *tail, double *gap_dot)
{
    for (Py_ssize_t r = 0; r < width; r += LANES) {
        const VEC shift = FN(tile_shift)(row_max + r), zero = SET1(0);
        /* A new maximum is excluded. */
        VEC ones = SELECT_EQ(LOAD(row_max + r), LOAD(row_max_before + r), zero, SET1(-1));
        ACC acc = ACC_ZERO, gap_acc = ACC_ZERO;
        T count[LANES];
        for (Py_ssize_t j = 0; j < classes;) {
            const Py_ssize_t stop = j + 4 < classes ? j + 4 : classes;
            VEC sum = zero, gaps = zero; /* at most four terms each */
            for (; j < stop; j++) {
                const VEC d = FN(cooled)(LOAD(x + j * width + r) - shift, inverse), v = FN(exp)(d);
                ADD_BY_EQ(d, zero, SET1(1), ones, v, sum);
                gaps = FMA(v, FN(bounded)(d), gaps);
            }
            ACC_ADD(acc, sum);
            ACC_ADD(gap_acc, gaps);
        }
        ACC_STORE(tail + r, acc);
        ACC_STORE(gap_dot + r, gap_acc);
        STORE(count, ones);
        for (int k = 0; k < LANES; k++) {
            tail[r + k] = tail[r + k] * EXP_UNSCALE + count[k];
            gap_dot[r + k] *= -EXP_UNSCALE;
        }
    }
}

static void FN(tile_entropy)(const void *x, Py_ssize_t classes, Py_ssize_t width, const void *row_max,
                             const void *row_max_before, double temperature, double *tail, double *gap_dot)
{
    const FN(inverse) cool = FN(inverse_of)(temperature);
    if (temperature == 1)
        FN(tile_entropy_)(x, classes, width, row_max, row_max_before, NULL, tail, gap_dot);
    else
        FN(tile_entropy_)(x, classes, width, row_max, row_max_before, &cool, tail, gap_dot);
}

CE_INLINE void FN(tile_entropy_grad_)(T *x, Py_ssize_t classes, Py_ssize_t width, const T *row_max,
                                      const FN(inverse) * inverse, const T *a, const T *mean_)
{
    for (Py_ssize_t r = 0; r < width; r += LANES) {
        const VEC shift = LOAD(row_max + r), minus_a = SET1(0) - LOAD(a + r), mean = LOAD(mean_ + r);
        for (Py_ssize_t j = 0; j < classes; j++) {
            const VEC d = FN(cooled)(LOAD(x + j * width + r) - shift, inverse);
            STORE(x + j * width + r, FN(entropy_grad)(d, FN(exp)(d), minus_a, mean));
        }
    }
}

static void FN(tile_entropy_grad)(void *x, Py_ssize_t classes, Py_ssize_t width, const void *row_max,
                                  double temperature, const void *a, const void *mean)
{
    const FN(inverse) cool = FN(inverse_of)(temperature);
    if (temperature == 1)
        FN(tile_entropy_grad_)(x, classes, width, row_max, NULL, a, mean);
    else
        FN(tile_entropy_grad_)(x, classes, width, row_max, &cool, a, mean);
}

static void FN(tile_rank)(const void *x_, Py_ssize_t classes, Py_ssize_t width, const void *label_, const void *value_,
                          void *rank_)
{
    const T *x = x_, *label = label_, *value = value_;
    T *rank = rank_;
    for (Py_ssize_t r = 0; r < width; r += LANES) {
        const VEC than = LOAD(value + r), own = LOAD(label + r), zero = SET1(0);
        VEC above = zero, jv = zero;
        for (Py_ssize_t j = 0; j < classes; j++) {
            const VEC v = LOAD(x + j * width + r);
            VEC equal = zero;
            ADD_IF_ABOVE(own, jv, 0, equal);
            ADD_IF_ABOVE(v, than, 0, above);
            above = above + SELECT_EQ(v, than, equal, zero);
            jv = jv + SET1(1);
        }
        STORE(rank + r, above);
    }
}
#undef ADD_IF_ABOVE
