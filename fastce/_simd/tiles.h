/* Primitives of tiles: the vectors run across the rows. */

static void FN(tile_max)(const void *x_, Py_ssize_t classes, Py_ssize_t width, void *row_max_)
{
    const T *x = x_;
    T *row_max = row_max_;
    for (Py_ssize_t r = 0; r < width; r += LANES) {
        VEC largest = LOAD(row_max + r);
        for (Py_ssize_t j = 0; j < classes; j++)
            largest = MAX(LOAD(x + j * width + r), largest);
        STORE(row_max + r, largest);
    }
}

/* What is subtracted from the logits: 0 for a row without finite logits, so that -inf - -inf is not formed. */
CE_INLINE VEC FN(tile_shift)(const T *row_max)
{
    return SELECT_EQ(LOAD(row_max), SET1((T)-INFINITY), SET1(0), LOAD(row_max));
}

/* dst[k] = v[k] - w[k], in float64. */
CE_INLINE void FN(widen_difference)(double *dst, VEC v, VEC w)
{
#if CE_F32
    ACC acc = ACC_ZERO;
    ACC_ADD(acc, v);
    ACC_ADD(acc, SET1(0) - w);
    ACC_STORE(dst, acc);
#else
    STORE(dst, v - w);
#endif
}

CE_INLINE void FN(tile_exp_sum_)(const T *x, T *e, Py_ssize_t classes, Py_ssize_t width, const T *row_max,
                                 const T *row_max_before, const FN(inverse) * inverse, const T *label_, double *sum,
                                 double *d_label, double *e_label, const char *next, Py_ssize_t next_class_stride,
                                 const char *dst, Py_ssize_t dst_class_stride, const int store, const int labelled)
{
    for (Py_ssize_t r = 0; r < width; r += LANES) {
        const VEC shift = FN(tile_shift)(row_max + r), zero = SET1(0);
        const VEC label = labelled ? LOAD(label_ + r) : zero;
        /* The terms exp(0) are counted apart, because the others may be tiny. A new maximum is excluded. */
        VEC ones = SELECT_EQ(LOAD(row_max + r), LOAD(row_max_before + r), zero, SET1(-1));
        VEC x_at = shift, e_at = SET1(EXP_ONE), jv = zero;
        ACC acc = ACC_ZERO;
        double part[LANES];
        T count[LANES];
        Py_ssize_t j = 0;
        while (j < classes) {
            VEC even = zero, odd = zero; /* at most four terms each before they are added to acc */
#define TERM(some)                                                                  \
    do {                                                                            \
        const VEC logit = LOAD(x + j * width + r);                                  \
        const VEC z = FN(cooled)(logit - shift, inverse), v = FN(exp)(z);           \
        CE_PREFETCH(next + j * next_class_stride + r * (Py_ssize_t)sizeof(T));      \
        CE_PREFETCH_WRITE(dst + j * dst_class_stride + r * (Py_ssize_t)sizeof(T));  \
        if (store)                                                                  \
            STORE(e + j * width + r, v);                                            \
        ADD_BY_EQ(z, zero, SET1(1), ones, v, some);                                 \
        if (labelled) {                                                             \
            x_at = SELECT_EQ(label, jv, logit, x_at);                               \
            e_at = SELECT_EQ(label, jv, v, e_at);                                   \
            jv = jv + SET1(1);                                                      \
        }                                                                           \
        j++;                                                                        \
    } while (0)
            if (j + 8 <= classes) {
                TERM(even); TERM(odd); TERM(even); TERM(odd);
                TERM(even); TERM(odd); TERM(even); TERM(odd);
            } else {
                while (j + 1 < classes) {
                    TERM(even); TERM(odd);
                }
                if (j < classes)
                    TERM(even);
            }
#undef TERM
            ACC_ADD(acc, even + odd);
        }
        ACC_STORE(part, acc);
        STORE(count, ones);
        for (int k = 0; k < LANES; k++)
            sum[r + k] = part[k] * EXP_UNSCALE + count[k];
        if (labelled) {
            FN(widen_difference)(d_label + r, x_at, shift);
            FN(widen_difference)(e_label + r, e_at, zero);
            for (int k = 0; k < LANES; k++)
                e_label[r + k] *= EXP_UNSCALE;
        }
    }
}

static void FN(tile_exp_sum)(const void *x, void *e, Py_ssize_t classes, Py_ssize_t width, const void *row_max,
                             const void *row_max_before, double temperature, const void *label, double *sum,
                             double *d_label, double *e_label, const void *next, Py_ssize_t next_class_stride,
                             void *dst, Py_ssize_t dst_class_stride)
{
    const FN(inverse) cool = FN(inverse_of)(temperature), *inverse = temperature == 1 ? NULL : &cool;
#define SUMS(inverse, store, labelled)                                                                              \
    FN(tile_exp_sum_)(x, e, classes, width, row_max, row_max_before, inverse, label, sum, d_label, e_label, next,   \
                      next_class_stride, dst, dst_class_stride, store, labelled)
#define SUMS_WITH(inverse)                                                                                          \
    (e ? label ? SUMS(inverse, 1, 1) : SUMS(inverse, 1, 0) : label ? SUMS(inverse, 0, 1) : SUMS(inverse, 0, 0))
    inverse ? SUMS_WITH(&cool) : SUMS_WITH(NULL);
#undef SUMS_WITH
#undef SUMS
}

/* Does `add(sum)` for each class, `sum` being even or odd in turns, and `flush` after every four classes: neither has
 * more than two terms then, or three at the end. */
#define FOUR_AT_A_TIME(classes, add, flush)             \
    do {                                                \
        Py_ssize_t left_ = (classes);                   \
        for (; left_ >= 4; left_ -= 4) {                \
            add(even); add(odd); add(even); add(odd);   \
            flush;                                      \
        }                                               \
        for (; left_ > 0; left_--)                      \
            add(even);                                  \
        flush;                                          \
    } while (0)

CE_INLINE void FN(tile_gap_dot_)(const T *x, const T *base, const T *others, Py_ssize_t classes, Py_ssize_t width,
                                 const T *row_max, double *sum, T *found_, const int base_kind)
{
    for (Py_ssize_t r = 0; r < width; r += LANES) {
        const VEC shift = FN(tile_shift)(row_max + r), scaled = shift * SET1((T)CE_GAP_UNIT), zero = SET1(0);
        VEC even = zero, odd = zero, found = base_kind == CE_ONES ? zero : LOAD(found_ + r);
        ACC acc = ACC_ZERO;
        Py_ssize_t j = 0;
#define ADD(some)                                                       \
    do {                                                                \
        const VEC logit = LOAD(x + j * width + r);                      \
        if (base_kind == CE_ONES) {                                     \
            some = some + FN(unit_gap)(logit, scaled);                  \
        } else {                                                        \
            const VEC gap = shift - logit;                              \
            some = some + FN(gap_term)(SET1(base[j]), gap);             \
            found = SELECT_EQ(gap, zero, SET1(others[j]), found);       \
        }                                                               \
        j++;                                                            \
    } while (0)
#define FLUSH                      \
    do {                           \
        ACC_ADD(acc, even + odd);  \
        even = odd = zero;         \
    } while (0)
        FOUR_AT_A_TIME(classes, ADD, FLUSH);
#undef ADD
#undef FLUSH
        ACC_STORE(sum + r, acc);
        if (base_kind == CE_BY_CLASS)
            STORE(found_ + r, found);
    }
}

static void FN(tile_gap_dot)(const void *x, const void *base, const void *others, Py_ssize_t classes,
                             Py_ssize_t width, const void *row_max, double *sum, void *found)
{
    if (base)
        FN(tile_gap_dot_)(x, base, others, classes, width, row_max, sum, found, CE_BY_CLASS);
    else
        FN(tile_gap_dot_)(x, NULL, NULL, classes, width, row_max, sum, NULL, CE_ONES);
}

CE_INLINE void FN(tile_sums_)(const T *x, const T *base, Py_ssize_t classes, Py_ssize_t width, const T *row_max,
                              double *mass, double *rest, double *gap_dot, const int with_gaps)
{
    for (Py_ssize_t r = 0; r < width; r += LANES) {
        const VEC shift = FN(tile_shift)(row_max + r), zero = SET1(0);
        VEC even = zero, odd = zero, at_max = zero, gaps_even = zero, gaps_odd = zero;
        ACC acc_rest = ACC_ZERO, acc_max = ACC_ZERO, acc_gaps = ACC_ZERO;
        Py_ssize_t at = r;
#define ADD(some)                                                    \
    do {                                                             \
        const VEC gap = shift - LOAD(x + at), t = LOAD(base + at);   \
        ADD_BY_EQ(gap, zero, t, at_max, t, some);                    \
        if (with_gaps)                                               \
            gaps_##some = gaps_##some + FN(gap_term)(t, gap);        \
        at += width;                                                 \
    } while (0)
#define FLUSH                                          \
    do {                                               \
        ACC_ADD(acc_rest, even + odd);                 \
        ACC_ADD(acc_max, at_max);                      \
        if (with_gaps)                                 \
            ACC_ADD(acc_gaps, gaps_even + gaps_odd);   \
        even = odd = at_max = zero;                    \
        gaps_even = gaps_odd = zero;                   \
    } while (0)
        FOUR_AT_A_TIME(classes, ADD, FLUSH);
#undef ADD
#undef FLUSH
        ACC_STORE(rest + r, acc_rest);
        ACC_STORE(mass + r, acc_max);
        for (int k = 0; k < LANES; k++)
            mass[r + k] += rest[r + k];
        if (with_gaps)
            ACC_STORE(gap_dot + r, acc_gaps);
    }
}
#undef FOUR_AT_A_TIME

static void FN(tile_sums)(const void *x, const void *base, Py_ssize_t classes, Py_ssize_t width, const void *row_max,
                          double *mass, double *rest, double *gap_dot)
{
    if (gap_dot)
        FN(tile_sums_)(x, base, classes, width, row_max, mass, rest, gap_dot, 1);
    else
        FN(tile_sums_)(x, base, classes, width, row_max, mass, rest, NULL, 0);
}

/* The numbers of base for class j; at is the index of the element. */
CE_INLINE VEC FN(tile_base)(const T *base, const int base_kind, Py_ssize_t j, Py_ssize_t at)
{
    return base_kind == CE_ONES ? SET1(1) : base_kind == CE_BY_CLASS ? SET1(base[j]) : LOAD(base + at);
}

CE_INLINE void FN(tile_grad_)(const T *src, T *grad, Py_ssize_t classes, Py_ssize_t width, const int form,
                              const T *row_max, const FN(inverse) * inverse, const T *a_, const T *b_, const T *base,
                              const int base_kind, const T *label_, const T *label_grad_, const T *maximum_,
                              const T *max_grad_, const int flush, double below_, int any_large)
{
    const int labelled = base_kind != CE_BY_ELEMENT, cancels = base_kind != CE_ONES;
    const VEC zero = SET1(0), below = SET1((T)below_);
    for (Py_ssize_t r = 0; r < width; r += LANES) {
        const VEC shift = form == CE_STORED ? zero : LOAD(row_max + r), b = LOAD(b_ + r);
        const VEC label = labelled ? LOAD(label_ + r) : zero, label_grad = labelled ? LOAD(label_grad_ + r) : zero;
        const VEC maximum = cancels ? LOAD(maximum_ + r) : zero, max_grad = cancels ? LOAD(max_grad_ + r) : zero;
        const VEC least = flush == FN(flush_exponentials) ? FN(least)(LOAD(a_ + r), below_) : zero;
        VEC a = LOAD(a_ + r), unscale = SET1(EXP_UNSCALE), jv = zero;
        if (any_large)
            unscale = FN(unscale)(&a);
        for (Py_ssize_t j = 0; j < classes; j++) {
            const Py_ssize_t at = j * width + r;
            const VEC s = LOAD(src + at), minus = b * FN(tile_base)(base, base_kind, j, at);
            VEC t;
            if (form == CE_DIFFERENCE) {
                t = FN(grad)(s, CE_DIFFERENCE, shift, inverse, unscale, a, minus, flush, least);
            } else {
                VEC e = s;
                if (form == CE_EXP)
                    e = FN(exp)(FN(cooled)(s - shift, inverse));
                if (flush != FN(flush_exponentials))
                    e = MAX(e, zero); /* replaces NaN by 0 */
                t = FN(grad)(e, CE_STORED, shift, NULL, unscale, a, minus, flush, least);
            }
            if (flush == FN(flush_gradients))
                t = FLUSHED(t, below);
            if (cancels)
                t = SELECT_EQ(s, maximum, max_grad, t);
            if (labelled) {
                t = SELECT_EQ(jv, label, label_grad, t);
                jv = jv + SET1(1);
            }
            STORE(grad + at, t);
        }
    }
}

static void FN(tile_grad)(const void *src, void *grad, Py_ssize_t classes, Py_ssize_t width, int form,
                          const void *row_max, double temperature, const void *a, const void *b, const void *base,
                          int base_kind, const void *label, const void *label_grad, const void *maximum,
                          const void *max_grad, double below)
{
    const FN(inverse) cool = FN(inverse_of)(temperature), *inverse = temperature == 1 ? NULL : &cool;
    const VEC zero = SET1(0), infinity = SET1((T)INFINITY);
    VEC largest_a = zero, largest_b = zero, minus_smallest_b = zero - infinity;
    for (Py_ssize_t r = 0; r < width; r += LANES) {
        const VEC a_r = LOAD((const T *)a + r);
        largest_a = MAX(MAX(a_r, zero - a_r), largest_a);
    }
    const int any_large = form != CE_DIFFERENCE && LARGEST(largest_a) > 1; /* see FN(unscale) */
    int flush = below > 0 ? FN(flush_gradients) : FN(keep_all);
    if (below > 0 && base_kind == CE_ONES) {
        for (Py_ssize_t r = 0; r < width; r += LANES) {
            const VEC b_r = LOAD((const T *)b + r), size = MAX(b_r, zero - b_r);
            const VEC minus_size = SELECT_EQ(LOAD((const T *)a + r), zero, zero - infinity, zero - size); /* ignored */
            largest_b = MAX(size, largest_b);
            minus_smallest_b = MAX(minus_size, minus_smallest_b);
        }
        flush = FN(way_to_flush)(below, LARGEST(largest_b), -LARGEST(minus_smallest_b));
    }
#define GRAD(form, kind, inverse, flush)                                                                        \
    FN(tile_grad_)(src, grad, classes, width, form, row_max, inverse, a, b, base, kind, label, label_grad, maximum, \
                   max_grad, flush, below, any_large)
#define GRAD_BY_FLUSH(form, kind, inverse)                                                               \
    (flush == FN(flush_exponentials) && kind == CE_ONES ? GRAD(form, CE_ONES, inverse, FN(flush_exponentials)) \
     : flush == FN(keep_all)                            ? GRAD(form, kind, inverse, FN(keep_all))              \
                                                        : GRAD(form, kind, inverse, FN(flush_gradients)))
#define GRAD_BY_FORM(kind)                                      \
    (form == CE_STORED ? GRAD_BY_FLUSH(CE_STORED, kind, NULL)   \
     : inverse         ? GRAD_BY_FLUSH(CE_EXP, kind, &cool)     \
                       : GRAD_BY_FLUSH(CE_EXP, kind, NULL))
    if (form == CE_DIFFERENCE)
        inverse ? GRAD(CE_DIFFERENCE, CE_ONES, &cool, FN(keep_all)) : GRAD(CE_DIFFERENCE, CE_ONES, NULL, FN(keep_all));
    else if (base_kind == CE_ONES)
        GRAD_BY_FORM(CE_ONES);
    else if (base_kind == CE_BY_CLASS)
        GRAD_BY_FORM(CE_BY_CLASS);
    else
        GRAD_BY_FORM(CE_BY_ELEMENT);
#undef GRAD_BY_FORM
#undef GRAD_BY_FLUSH
#undef GRAD
}
