/* Primitives of rows: the vectors run along the classes. */

static void FN(rows_max)(const void *x_, Py_ssize_t x_row_stride, Py_ssize_t rows, Py_ssize_t n, double *row_max)
{
    const T none = (T)-INFINITY;
    for (Py_ssize_t r = 0; r < rows; r++) {
        const T *x = ce_at(x_, r * x_row_stride);
        VEC m0 = SET1(none), m1 = m0, m2 = m0, m3 = m0;
        if (n < LANES) {
            m0 = MAX(LOAD_PART(x, n, none), m0);
        } else {
            Py_ssize_t i = FN(to_aligned)(x, n);
            m0 = MAX(LOAD(x), m0); /* the first and last vector may overlap the others */
            m1 = MAX(LOAD(x + n - LANES), m1);
            for (; i + 4 * LANES <= n; i += 4 * LANES) {
                m0 = MAX(LOAD(x + i), m0);
                m1 = MAX(LOAD(x + i + LANES), m1);
                m2 = MAX(LOAD(x + i + 2 * LANES), m2);
                m3 = MAX(LOAD(x + i + 3 * LANES), m3);
            }
            for (; i + LANES <= n; i += LANES)
                m2 = MAX(LOAD(x + i), m2);
        }
        row_max[r] = 0.0 + LARGEST(MAX(MAX(m1, m0), MAX(m2, m3))); /* -0 becomes +0: MAX may return either */
    }
}

static Py_ssize_t FN(row_find)(const void *x_, Py_ssize_t n, double value)
{
    const T *x = x_;
    const VEC wanted = SET1((T)value);
    Py_ssize_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        const unsigned bits = EQ_BITS(LOAD(x + i), wanted);
        if (bits)
            return i + CE_FIRST_BIT(bits);
    }
    for (; i < n; i++)
        if (x[i] == (T)value)
            return i;
    return -1;
}

/* Adds the exponentials v to sum, or counts them where their exponents d are 0. Unless e is NULL, e receives either. */
CE_INLINE void FN(add_exp)(VEC d, VEC v, T *e, const int form, VEC *sum, ONES *ones)
{
    if (e)
        STORE(e, form == CE_STORED ? v : d);
    ADD_OR_COUNT(d, v, *sum, *ones);
    ADD_NOW(*sum);
    ADD_NOW(*ones);
}

CE_INLINE void FN(add_one_exp)(const T *x, VEC shift, const FN(inverse) * inverse, T *e, const int form, VEC *sum,
                               ONES *ones)
{
    const VEC d = FN(cooled)(LOAD(x) - shift, inverse);
    FN(add_exp)(d, FN(exp)(d), e, form, sum, ones);
}

CE_INLINE void FN(add_two_exp)(const T *x, VEC shift, const FN(inverse) * inverse, T *e, const int form, VEC *even,
                               VEC *odd, ONES *ones)
{
    T *next_e = e ? e + LANES : NULL;
    if (TOGETHER == 1) {
        FN(add_one_exp)(x, shift, inverse, e, form, even, ones);
        FN(add_one_exp)(x + LANES, shift, inverse, next_e, form, odd, ones);
    } else {
        const VEC d[2] = {FN(cooled)(LOAD(x) - shift, inverse), FN(cooled)(LOAD(x + LANES) - shift, inverse)};
        VEC v[2];
        FN(exps)(d, v, 2);
        FN(add_exp)(d[0], v[0], e, form, even, ones);
        FN(add_exp)(d[1], v[1], next_e, form, odd, ones);
    }
}

CE_INLINE double FN(row_exp_sum)(const T *x, T *e, Py_ssize_t n, T shift_, const FN(inverse) * inverse, int excluded,
                                 const T *next, const int form)
{
    const VEC shift = SET1(shift_), zero = SET1(0);
    ONES ones = ONES_ZERO; /* the terms exp(0) are counted apart, because the others may be tiny */
    VEC even = zero, odd = zero;
    ACC acc = ACC_ZERO;
    if (n < LANES) {
        const VEC d = FN(cooled)(LOAD_PART(x, n, (T)-INFINITY) - shift, inverse), v = FN(exp)(d);
        if (e)
            STORE_PART(e, form == CE_STORED ? v : d, n);
        FN(add_exp)(d, v, NULL, form, &even, &ones);
    } else {
        /* The last vector overlaps the one before it. It is loaded now, because e may be x. */
        const VEC last = LOAD(x + n - LANES);
        Py_ssize_t i = 0;
        for (; i + 8 * LANES <= n; i += 8 * LANES) {
            for (int k = 0; k < 8 * LANES; k += CE_CACHE_LINE / sizeof(T))
                CE_PREFETCH(next + i + k);
            for (int k = 0; k < 8 * LANES; k += 2 * LANES)
                FN(add_two_exp)(x + i + k, shift, inverse, e ? e + i + k : NULL, form, &even, &odd, &ones);
            ACC_ADD(acc, even + odd); /* `even` and `odd` have at most five terms each */
            even = odd = zero;
        }
        for (; i + 2 * LANES <= n; i += 2 * LANES)
            FN(add_two_exp)(x + i, shift, inverse, e ? e + i : NULL, form, &even, &odd, &ones);
        if (i + LANES <= n) {
            FN(add_one_exp)(x + i, shift, inverse, e ? e + i : NULL, form, &even, &ones);
            const VEC sum = odd; /* the two take turns */
            odd = even;
            even = sum;
            i += LANES;
        }
        if (i < n) {
            const VEC edge = LOAD(FN(edge) + CE_MAX_LANES - LANES + n - i);
            const VEC d = FN(cooled)(last - shift, inverse), v = FN(exp)(d);
            if (e)
                STORE(e + n - LANES, form == CE_STORED ? v : d);
            /* Lanes that were added before are made negative, so that they are not counted again. */
            FN(add_exp)(d - (SET1(1) - edge), v * edge, NULL, form, &even, &ones);
        }
    }
    ACC_ADD(acc, even + odd);
    return ACC_SUM(acc) * EXP_UNSCALE + (COUNTED(ones) - excluded);
}

CE_INLINE void FN(rows_exp_sum_)(const void *x, Py_ssize_t x_row_stride, void *e, Py_ssize_t e_row_stride,
                                 Py_ssize_t rows, Py_ssize_t n, const int form, const double *shift,
                                 const FN(inverse) * inverse, int excluded, const void *next, double *sum)
{
    for (Py_ssize_t r = 0; r < rows; r++)
        sum[r] = FN(row_exp_sum)(ce_at(x, r * x_row_stride), e ? ce_at(e, r * e_row_stride) : NULL, n, (T)shift[r],
                                 inverse, excluded, ce_at(next, r * x_row_stride), form);
}

static void FN(rows_exp_sum)(const void *x, Py_ssize_t x_row_stride, void *e, Py_ssize_t e_row_stride, Py_ssize_t rows,
                             Py_ssize_t n, int form, const double *shift, double temperature, int excluded,
                             const void *next, double *sum)
{
#define SUMS(e, form, inverse) \
    FN(rows_exp_sum_)(x, x_row_stride, e, e_row_stride, rows, n, form, shift, inverse, excluded, next, sum)
#define SUMS_BY_FORM(inverse)                        \
    (!e                  ? SUMS(NULL, CE_STORED, inverse) \
     : form == CE_STORED ? SUMS(e, CE_STORED, inverse)    \
                         : SUMS(e, CE_DIFFERENCE, inverse))
    if (temperature == 1) {
        SUMS_BY_FORM(NULL);
    } else {
        const FN(inverse) inverse = FN(inverse_of)(temperature);
        SUMS_BY_FORM(&inverse);
    }
#undef SUMS_BY_FORM
#undef SUMS
}

/* Returns the sum of a term for each of n numbers. `term` is an expression for the terms i, i + 1, ...: LANES of them,
 * or the first m if m < LANES, and then the other lanes are 0. Eight vectors are added as a tree: three roundings. */
#define RETURN_SUM(n, term)                                                                     \
    ACC acc = ACC_ZERO;                                                                         \
    Py_ssize_t i = 0;                                                                           \
    while (i + 8 * LANES <= (n)) {                                                              \
        const Py_ssize_t m = LANES;                                                             \
        VEC t[8];                                                                               \
        for (int k = 0; k < 8; k++, i += m)                                                     \
            t[k] = (term);                                                                      \
        ACC_ADD(acc, ((t[0] + t[1]) + (t[2] + t[3])) + ((t[4] + t[5]) + (t[6] + t[7])));        \
    }                                                                                           \
    for (; i < (n); i += LANES) {                                                               \
        const Py_ssize_t m = (n) - i;                                                           \
        ACC_ADD(acc, term);                                                                     \
    }                                                                                           \
    return ACC_SUM(acc)

static double FN(row_sum)(const void *x_, Py_ssize_t n)
{
    const T *x = x_;
    RETURN_SUM(n, FN(load_upto)(x + i, m));
}
#undef RETURN_SUM

CE_INLINE VEC FN(affine)(const int on, VEC slope, VEC v, VEC offset)
{
    if (on)
        v = FMA(slope, v, offset);
    return v;
}

/* A row of rows_base. linear, or rest and top, are NULL where they are not computed. */
CE_INLINE void FN(row_base)(const T *x, const T *base, Py_ssize_t n, T shift_, T slope_, T offset_, double *linear,
                            double *rest, double *top)
{
    const VEC shift = SET1(shift_), scaled = SET1(shift_ * (T)CE_GAP_UNIT), zero = SET1(0);
    const VEC slope = SET1(slope_), offset = SET1(offset_);
    VEC gap[2] = {zero, zero}, others[2] = {zero, zero}, at_shift[2] = {zero, zero};
    ACC linear_acc = ACC_ZERO, rest_acc = ACC_ZERO, top_acc = ACC_ZERO;
#define TERM(k, load, load_base)                                            \
    do {                                                                    \
        const VEC v = (load), c = (load_base);                              \
        if (linear && base)                                                 \
            gap[k] = gap[k] + FN(gap_term)(c, shift - v);                   \
        else if (linear)                                                    \
            gap[k] = gap[k] + FN(gap_term)(c, FN(unit_gap)(v, scaled));     \
        if (rest)                                                           \
            ADD_BY_EQ(shift - v, zero, c, at_shift[k], c, others[k]);       \
    } while (0)
#define AFFINE(load) FN(affine)(rest != NULL, slope, load, offset)
#define WHOLE(k, i)                                                         \
    do {                                                                    \
        if (base)                                                           \
            TERM(k, LOAD(x + (i)), AFFINE(LOAD(base + (i))));               \
        else                                                                \
            gap[k] = gap[k] + FN(unit_gap)(LOAD(x + (i)), scaled);          \
    } while (0)
#define ADD_TERMS()                                                         \
    do {                                                                    \
        if (linear)                                                         \
            ACC_ADD(linear_acc, gap[0] + gap[1]);                           \
        if (rest) {                                                         \
            ACC_ADD(rest_acc, others[0] + others[1]);                       \
            ACC_ADD(top_acc, at_shift[0] + at_shift[1]);                    \
        }                                                                   \
    } while (0)
    if (n < LANES) {
        VEC q = LOAD_PART(FN(edge) + CE_MAX_LANES, n, 0); /* ones */
        if (base)
            q = q * AFFINE(LOAD_PART(base, n, 0));
        TERM(0, LOAD_PART(x, n, shift_), q);
    } else {
        Py_ssize_t i = 0;
        for (; i + 8 * LANES <= n; i += 8 * LANES) {
            for (int k = 0; k < 8; k++)
                WHOLE(k % 2, i + k * LANES);
            ADD_TERMS(); /* every sum has at most five terms */
            gap[0] = gap[1] = others[0] = others[1] = at_shift[0] = at_shift[1] = zero;
        }
        for (; i + 2 * LANES <= n; i += 2 * LANES) {
            WHOLE(0, i);
            WHOLE(1, i + LANES);
        }
        if (i + LANES <= n) {
            WHOLE(0, i);
            i += LANES;
        }
        if (i < n) { /* the last vector overlaps the one before it */
            const VEC edge = LOAD(FN(edge) + CE_MAX_LANES - LANES + n - i);
            VEC q = edge;
            if (base)
                q = SELECT_EQ(edge, zero, zero, AFFINE(LOAD(base + n - LANES)));
            TERM(1, LOAD(x + n - LANES), q);
        }
    }
    ADD_TERMS();
#undef TERM
#undef AFFINE
#undef WHOLE
#undef ADD_TERMS
    if (linear)
        *linear = ACC_SUM(linear_acc);
    if (rest) {
        *rest = ACC_SUM(rest_acc);
        *top = ACC_SUM(top_acc);
    }
}

static void FN(rows_base)(const void *x, Py_ssize_t x_row_stride, const void *base, Py_ssize_t base_row_stride,
                          Py_ssize_t rows, Py_ssize_t n, const double *shift, double slope, double offset,
                          double *linear, double *rest, double *top)
{
#define ROW_BASE(base, linear, rest, top) \
    FN(row_base)(row, base, n, (T)shift[r], (T)slope, (T)offset, linear, rest, top)
    for (Py_ssize_t r = 0; r < rows; r++) {
        const T *row = ce_at(x, r * x_row_stride);
        const T *base_row = base ? ce_at(base, r * base_row_stride) : NULL;
        if (!base)
            ROW_BASE(NULL, linear + r, NULL, NULL);
        else if (!rest)
            ROW_BASE(base_row, linear + r, NULL, NULL);
        else if (!linear)
            ROW_BASE(base_row, NULL, rest + r, top + r);
        else
            ROW_BASE(base_row, linear + r, rest + r, top + r);
    }
#undef ROW_BASE
}

/* a*e - b, with e made of s as `form` says. Exponentials are multiplied by `unscale`. */
CE_INLINE VEC FN(grad)(VEC s, const int form, VEC shift, const FN(inverse) * inverse, VEC unscale, VEC a, VEC b,
                       const int flush, VEC least)
{
    if (form != CE_STORED)
        s = FN(cooled)(s - shift, inverse);
    if (form == CE_EXP)
        s = FN(exp)(s);
    if (form == CE_DIFFERENCE)
        return FMSUB(a, s, b);
    if (flush == FN(flush_exponentials)) /* What is NaN becomes 0. Then a is NaN, or the row is ignored. */
        return FMSUB(a, TIMES_FROM(least, s, unscale), b);
    return FMSUB(a, s * unscale, b);
}

/* The same with base, which is a factor of b, or by element `factor * base` in addition, and `exact` where s == at. */
CE_INLINE VEC FN(row_grad_at)(VEC s, VEC base, const int form, VEC shift, const FN(inverse) * inverse, VEC unscale,
                              VEC a, VEC b, const int by_element, VEC factor, VEC at, VEC exact, const int flush,
                              VEC below, VEC least)
{
    VEC t;
    if (by_element)
        t = SELECT_EQ(s, at, exact, FMA(factor, base, FN(grad)(s, form, shift, inverse, unscale, a, b, flush, least)));
    else
        t = FN(grad)(s, form, shift, inverse, unscale, a, b * base, flush, least);
    if (flush == FN(flush_gradients))
        t = FLUSHED(t, below);
    return t;
}

/* A row of rows_grad, or of rows_grad_by_element. */
CE_INLINE void FN(row_grad)(const T *src, T *grad, Py_ssize_t n, const int form, T shift_, const FN(inverse) * inverse,
                            T a_, T b_, const T *base, Py_ssize_t exact_class, const int by_element, T slope_,
                            T offset_, T exact_src, T exact_grad, const int flush, double below_, const int stream)
{
    const VEC shift = SET1(shift_), b = SET1(by_element ? b_ * offset_ : b_), exact = SET1(exact_grad);
    const VEC factor = SET1(-b_ * slope_), at = SET1(exact_src), below = SET1((T)below_);
    const VEC least = flush == FN(flush_exponentials) ? FN(least)(SET1(a_), below_) : shift;
    VEC a = SET1(a_), unscale = form == CE_DIFFERENCE ? a : FN(unscale)(&a);
#define GRAD(load, load_base) FN(row_grad_at)(load, base ? (load_base) : SET1(1), form, shift, inverse, unscale, a, b, \
                                              by_element, factor, at, exact, flush, below, least)
    if (stream || n < LANES) {
        Py_ssize_t i = stream ? FN(to_line)(grad, n) : 0;
        const int in_head = exact_class < i;
        if (i)
            STORE_PART(grad, GRAD(LOAD_PART(src, i, 0), LOAD_PART(base, i, 0)), i);
        for (; i + LANES <= n; i += LANES) {
            VEC t = GRAD(LOAD(src + i), LOAD(base + i));
            /* Storing it afterwards would fetch the line back from memory. */
            if ((size_t)(exact_class - i) < LANES)
                t = SELECT_EQ(LOAD(FN(iota)), SET1((T)(exact_class - i)), exact, t);
            STREAM(grad + i, t);
        }
        if (i < n)
            STORE_PART(grad + i, GRAD(LOAD_PART(src + i, n - i, 0), LOAD_PART(base + i, n - i, 0)), n - i);
        if (exact_class >= 0 && (in_head || exact_class >= i))
            grad[exact_class] = exact_grad;
    } else {
        /* The first and last vector overlap the aligned ones and are stored after them. They are computed now, because
         * grad may be src or base. */
        const VEC first = GRAD(LOAD(src), LOAD(base)), last = GRAD(LOAD(src + n - LANES), LOAD(base + n - LANES));
        const Py_ssize_t head = FN(to_aligned)(grad, n);
        Py_ssize_t i = head;
        for (; i + LANES <= n; i += LANES)
            STORE(grad + i, GRAD(LOAD(src + i), LOAD(base + i)));
        if (i < n)
            STORE(grad + n - LANES, last);
        if (head)
            STORE(grad, first);
        if (exact_class >= 0)
            grad[exact_class] = exact_grad;
    }
#undef GRAD
}

CE_INLINE void FN(rows_grad_)(const void *src, Py_ssize_t src_row_stride, void *grad, Py_ssize_t grad_row_stride,
                              Py_ssize_t rows, Py_ssize_t n, const int form, const double *shift,
                              const FN(inverse) * inverse, const double *a, const double *b, const void *base,
                              const Py_ssize_t *exact_class, const double *exact_grad, const int flush,
                              double below, const int stream)
{
    for (Py_ssize_t r = 0; r < rows; r++)
        FN(row_grad)(ce_at(src, r * src_row_stride), ce_at(grad, r * grad_row_stride), n, form, (T)shift[r], inverse,
                     (T)a[r], (T)b[r], base, exact_class ? exact_class[r] : -1, 0, 0, 0, 0,
                     exact_class ? (T)exact_grad[r] : 0, flush, below, stream);
}

static void FN(rows_grad)(const void *src, Py_ssize_t src_row_stride, void *grad, Py_ssize_t grad_row_stride,
                          Py_ssize_t rows, Py_ssize_t n, int form, const double *shift, double temperature,
                          const double *a, const double *b, const void *base, const Py_ssize_t *exact_class,
                          const double *exact_grad, double below, int stream)
{
    const FN(inverse) cool = FN(inverse_of)(temperature), *inverse = temperature == 1 ? NULL : &cool;
    double smallest_b = INFINITY, largest_b = 0;
    for (Py_ssize_t r = 0; below > 0 && r < rows; r++) {
        const double size = fabs(b[r]);
        smallest_b = size < smallest_b ? size : smallest_b;
        largest_b = size > largest_b ? size : largest_b;
    }
    const int flush = FN(way_to_flush)(below, base ? 1 : largest_b, base ? 0 : smallest_b);
#define GRADS(form, inverse, base, flush, stream)                                                                     \
    FN(rows_grad_)(src, src_row_stride, grad, grad_row_stride, rows, n, form, shift, inverse, a, b, base, exact_class, \
                   exact_grad, flush, below, stream)
#define GRADS_BY_FLUSH(form, inverse, base, stream)                                                        \
    (flush == FN(keep_all) ? GRADS(form, inverse, base, FN(keep_all), stream)                              \
                           : GRADS(form, inverse, base, FN(flush_gradients), stream))
#define GRADS_BY_BASE(form, inverse, stream)                                                               \
    (base                            ? GRADS_BY_FLUSH(form, inverse, base, stream)                         \
     : flush == FN(flush_exponentials) ? GRADS(form, inverse, NULL, FN(flush_exponentials), stream)        \
                                     : GRADS_BY_FLUSH(form, inverse, NULL, stream))
#define DIFFERENCES(inverse, stream) GRADS(CE_DIFFERENCE, inverse, NULL, FN(keep_all), stream)
#define GRADS_BY_STREAM(form, inverse) \
    (stream ? GRADS_BY_BASE(form, inverse, 1) : GRADS_BY_BASE(form, inverse, 0))
    if (form == CE_STORED)
        GRADS_BY_BASE(CE_STORED, NULL, 0); /* for rows that are so short that they are not streamed */
    else if (form == CE_EXP)
        inverse ? GRADS_BY_STREAM(CE_EXP, &cool) : GRADS_BY_STREAM(CE_EXP, NULL);
    else if (inverse)
        stream ? DIFFERENCES(&cool, 1) : DIFFERENCES(&cool, 0);
    else
        stream ? DIFFERENCES(NULL, 1) : DIFFERENCES(NULL, 0);
#undef DIFFERENCES
#undef GRADS_BY_STREAM
#undef GRADS_BY_BASE
#undef GRADS_BY_FLUSH
#undef GRADS
}

CE_INLINE void FN(rows_grad_by_element_)(const void *src, Py_ssize_t src_row_stride, const void *base,
                                         Py_ssize_t base_row_stride, void *grad, Py_ssize_t grad_row_stride,
                                         Py_ssize_t rows, Py_ssize_t n, const int form, const double *shift,
                                         const FN(inverse) * inverse, const double *a, const double *b, double slope,
                                         double offset, const double *exact_src, const double *exact_grad,
                                         const int flush, double below, const int stream)
{
    for (Py_ssize_t r = 0; r < rows; r++)
        FN(row_grad)(ce_at(src, r * src_row_stride), ce_at(grad, r * grad_row_stride), n, form, (T)shift[r], inverse,
                     (T)a[r], (T)b[r], ce_at(base, r * base_row_stride), -1, 1, (T)slope, (T)offset, (T)exact_src[r],
                     (T)exact_grad[r], flush, below, stream);
}

static void FN(rows_grad_by_element)(const void *src, Py_ssize_t src_row_stride, const void *base,
                                     Py_ssize_t base_row_stride, void *grad, Py_ssize_t grad_row_stride,
                                     Py_ssize_t rows, Py_ssize_t n, int form, const double *shift, double temperature,
                                     const double *a, const double *b, double slope, double offset,
                                     const double *exact_src, const double *exact_grad, double below, int stream)
{
    const FN(inverse) cool = FN(inverse_of)(temperature), *inverse = temperature == 1 ? NULL : &cool;
#define GRADS(form, inverse, flush, stream)                                                                       \
    FN(rows_grad_by_element_)(src, src_row_stride, base, base_row_stride, grad, grad_row_stride, rows, n, form,    \
                              shift, inverse, a, b, slope, offset, exact_src, exact_grad, flush, below, stream)
#define GRADS_BY_FLUSH(form, inverse, stream)                                \
    (below > 0 ? GRADS(form, inverse, FN(flush_gradients), stream)           \
               : GRADS(form, inverse, FN(keep_all), stream))
    if (form == CE_STORED)
        GRADS_BY_FLUSH(CE_STORED, NULL, 0); /* as in rows_grad */
    else if (inverse)
        stream ? GRADS_BY_FLUSH(CE_EXP, &cool, 1) : GRADS_BY_FLUSH(CE_EXP, &cool, 0);
    else
        stream ? GRADS_BY_FLUSH(CE_EXP, NULL, 1) : GRADS_BY_FLUSH(CE_EXP, NULL, 0);
#undef GRADS_BY_FLUSH
#undef GRADS
}
