/* Products of an upstream gradient u with the Jacobian of y, which are a sum over the classes and then one step for
 * each element. y = softmax(x): y * (u - sum u*y). y = log_softmax(x): u - exp(y) * sum u. */

/* sum + the term of an element. */
CE_INLINE VEC FN(add_jacobian_term)(VEC y, VEC u, VEC sum, const int of_log)
{
    if (of_log)
        return u + sum;
    return FMA(u, y, sum);
}

/* scale times the product, from minus the sum of the terms. */
CE_INLINE VEC FN(jacobian)(VEC y, VEC u, VEC minus_sum, VEC scale, const int of_log, const int flush, VEC below)
{
    VEC product;
    if (of_log)
        product = scale * FMA(minus_sum, FN(exp)(y) * SET1(EXP_UNSCALE), u);
    else
        product = scale * (y * (u + minus_sum));
    if (flush)
        product = FLUSHED(product, below);
    return product;
}

/* ----- Vectors along the classes ----- */

/* The sum of the terms of n >= LANES elements. */
CE_INLINE double FN(row_jacobian_sum)(const T *y, const T *u, Py_ssize_t n, const int of_log)
{
    const VEC zero = SET1(0);
    VEC even = zero, odd = zero; /* at most five terms each before they are added to acc */
    ACC acc = ACC_ZERO;
    Py_ssize_t i = 0;
#define ADD(sum, k) sum = FN(add_jacobian_term)(LOAD(y + i + (k) * LANES), LOAD(u + i + (k) * LANES), sum, of_log)
    for (; i + 8 * LANES <= n; i += 8 * LANES) {
        ADD(even, 0); ADD(odd, 1); ADD(even, 2); ADD(odd, 3);
        ADD(even, 4); ADD(odd, 5); ADD(even, 6); ADD(odd, 7);
        ACC_ADD(acc, even + odd);
        even = odd = zero;
    }
    for (; i + LANES <= n; i += LANES) {
        ADD(even, 0);
        const VEC sum = odd; /* the two take turns */
        odd = even;
        even = sum;
    }
#undef ADD
    if (i < n) { /* The last vector overlaps the one before it. Multiplying by 0 would not remove infinite terms. */
        const VEC term = FN(add_jacobian_term)(LOAD(y + n - LANES), LOAD(u + n - LANES), zero, of_log);
        even = even + SELECT_EQ(LOAD(FN(edge) + CE_MAX_LANES - LANES + n - i), zero, zero, term);
    }
    ACC_ADD(acc, even + odd);
    return ACC_SUM(acc);
}

CE_INLINE void FN(row_jacobian)(const T *y, const T *u, T *grad, Py_ssize_t n, T scale_, const int of_log,
                                const int flush, T below_)
{
    const VEC scale = SET1(scale_), below = SET1(below_);
    if (n < LANES) {
        const VEC y_part = LOAD_PART(y, n, 0), u_part = LOAD_PART(u, n, 0);
        ACC acc = ACC_ZERO;
        ACC_ADD(acc, FN(add_jacobian_term)(y_part, u_part, SET1(0), of_log));
        STORE_PART(grad, FN(jacobian)(y_part, u_part, SET1((T)-ACC_SUM(acc)), scale, of_log, flush, below), n);
        return;
    }
    const VEC minus_sum = SET1((T)-FN(row_jacobian_sum)(y, u, n, of_log));
#define PRODUCT(i) FN(jacobian)(LOAD(y + (i)), LOAD(u + (i)), minus_sum, scale, of_log, flush, below)
    /* The first and last vector overlap the aligned ones and are stored after them. They are computed now, because grad
     * may be y or u. */
    const Py_ssize_t head = FN(to_aligned)(grad, n), rest = (n - head) % LANES;
    const VEC first = head ? PRODUCT(0) : minus_sum, last = rest ? PRODUCT(n - LANES) : minus_sum;
    for (Py_ssize_t i = head; i + LANES <= n; i += LANES)
        STORE(grad + i, PRODUCT(i));
    if (rest)
        STORE(grad + n - LANES, last);
    if (head)
        STORE(grad, first);
#undef PRODUCT
}

static void FN(rows_jacobian)(const void *y, Py_ssize_t y_row_stride, const void *u, Py_ssize_t u_row_stride,
                              void *grad, Py_ssize_t grad_row_stride, Py_ssize_t rows, Py_ssize_t n, int of_log,
                              double scale, double below)
{
    /* A loop for each kind: what depends on the kind alone stays in registers from row to row. */
#define ROWS(of_log, flush) \
    for (Py_ssize_t r = 0; r < rows; r++) \
        FN(row_jacobian)(ce_at(y, r * y_row_stride), ce_at(u, r * u_row_stride), ce_at(grad, r * grad_row_stride), n, \
                         (T)scale, of_log, flush, (T)below)
    if (of_log && below > 0)
        ROWS(1, 1);
    else if (of_log)
        ROWS(1, 0);
    else if (below > 0)
        ROWS(0, 1);
    else
        ROWS(0, 0);
#undef ROWS
}

/* ----- Vectors across the rows ----- */

/* The sum of the terms of up to four classes, for m rows. */
CE_INLINE VEC FN(column_terms)(const T *y, Py_ssize_t y_stride, const T *u, Py_ssize_t u_stride, Py_ssize_t classes,
                               Py_ssize_t m, const int of_log)
{
    VEC sum = SET1(0), odd = sum;
#define TERM(k, sum)                                                                    \
    FN(add_jacobian_term)(FN(load_upto)((const T *)ce_at(y, (k) * y_stride), m),        \
                          FN(load_upto)((const T *)ce_at(u, (k) * u_stride), m), sum, of_log)
    if (classes >= 4) {
        sum = TERM(0, sum);
        odd = TERM(1, odd);
        sum = TERM(2, sum);
        odd = TERM(3, odd);
        return sum + odd;
    }
    for (Py_ssize_t k = 0; k < classes; k++)
        sum = TERM(k, sum);
#undef TERM
    return sum;
}

CE_INLINE void FN(columns_jacobian_sum_)(const T *y, Py_ssize_t y_stride, const T *u, Py_ssize_t u_stride,
                                         Py_ssize_t classes, Py_ssize_t n, const int of_log, int first, ACC *acc,
                                         T *minus_sum)
{
    const ACC none = ACC_ZERO;
    for (Py_ssize_t k = 0; first && k * LANES < n; k++)
        acc[k] = none;
    /* A few classes of all rows, then the next: memory is read in long runs. */
    for (Py_ssize_t j = 0; j < classes; j += 4) {
        const T *y_row = ce_at(y, j * y_stride), *u_row = ce_at(u, j * u_stride);
        ACC *at = acc;
        Py_ssize_t r = 0;
        for (; r + LANES <= n; r += LANES, at++)
            ACC_ADD((*at), FN(column_terms)(y_row + r, y_stride, u_row + r, u_stride, classes - j, LANES, of_log));
        if (r < n)
            ACC_ADD((*at), FN(column_terms)(y_row + r, y_stride, u_row + r, u_stride, classes - j, n - r, of_log));
    }
    for (Py_ssize_t r = 0; r < n; r += LANES) {
        double sum[LANES];
        ACC_STORE(sum, acc[r / LANES]);
        for (int k = 0; k < LANES; k++)
            minus_sum[r + k] = (T)-sum[k];
    }
}

static void FN(columns_jacobian_sum)(const void *y, Py_ssize_t y_class_stride, const void *u, Py_ssize_t u_class_stride,
                                     Py_ssize_t classes, Py_ssize_t n, int of_log, int first, void *acc,
                                     void *minus_sum)
{
    CE_ASSERT(sizeof(ACC) <= LANES * 2 * sizeof(double), "the caller has memory for two float64 numbers for each row");
    if (of_log)
        FN(columns_jacobian_sum_)(y, y_class_stride, u, u_class_stride, classes, n, 1, first, acc, minus_sum);
    else
        FN(columns_jacobian_sum_)(y, y_class_stride, u, u_class_stride, classes, n, 0, first, acc, minus_sum);
}

CE_INLINE void FN(column_jacobian)(const T *y, const T *u, T *grad, Py_ssize_t n, const T *minus_sum, T scale_,
                                   const int of_log, const int flush, T below_, const int stream)
{
    const VEC scale = SET1(scale_), below = SET1(below_);
#define PRODUCT(m) \
    FN(jacobian)(FN(load_upto)(y + r, m), FN(load_upto)(u + r, m), FN(load_upto)(minus_sum + r, m), scale, of_log, \
                 flush, below)
    const Py_ssize_t head = stream ? FN(to_line)(grad, n) : 0;
    Py_ssize_t r = 0;
    if (head)
        STORE_PART(grad, PRODUCT(head), head);
    for (r = head; r + LANES <= n; r += LANES) {
        if (stream)
            STREAM(grad + r, PRODUCT(LANES));
        else
            STORE(grad + r, PRODUCT(LANES));
    }
    if (r < n)
        STORE_PART(grad + r, PRODUCT(n - r), n - r);
#undef PRODUCT
}

static void FN(columns_jacobian)(const void *y_, Py_ssize_t y_class_stride, const void *u_, Py_ssize_t u_class_stride,
                                 void *grad_, Py_ssize_t grad_class_stride, Py_ssize_t classes, Py_ssize_t n,
                                 int of_log, const void *minus_sum, double scale, double below, int stream)
{
    for (Py_ssize_t j = 0; j < classes; j++) {
        const T *y = ce_at(y_, j * y_class_stride), *u = ce_at(u_, j * u_class_stride);
        T *grad = ce_at(grad_, j * grad_class_stride);
#define COLUMN(of_log, flush, stream) \
    FN(column_jacobian)(y, u, grad, n, minus_sum, (T)scale, of_log, flush, (T)below, stream)
#define COLUMN_BY_FLUSH(of_log, stream) (below > 0 ? COLUMN(of_log, 1, stream) : COLUMN(of_log, 0, stream))
        if (of_log)
            stream ? COLUMN_BY_FLUSH(1, 1) : COLUMN_BY_FLUSH(1, 0);
        else
            stream ? COLUMN_BY_FLUSH(0, 1) : COLUMN_BY_FLUSH(0, 0);
#undef COLUMN_BY_FLUSH
#undef COLUMN
    }
}
