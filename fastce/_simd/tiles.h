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

CE_INLINE void FN(widen_vec)(double *dst, VEC v)
{
#if CE_F32
    ACC acc = ACC_ZERO;
    ACC_ADD(acc, v);
    ACC_STORE(dst, acc);
#else
    STORE(dst, v);
#endif
}

CE_INLINE void FN(tile_exp_sum_)(const T *x, T *e, Py_ssize_t classes, Py_ssize_t width, const T *row_max,
                                 const T *row_max_before, const T *label_, double *sum, double *d_label,
                                 double *e_label, const char *next, Py_ssize_t next_class_stride, const char *dst,
                                 Py_ssize_t dst_class_stride, const int store, const int labelled)
{
    for (Py_ssize_t r = 0; r < width; r += LANES) {
        const VEC shift = FN(tile_shift)(row_max + r), zero = SET1(0);
        const VEC label = labelled ? LOAD(label_ + r) : zero;
        /* The terms exp(0) are counted apart, because the others may be tiny. A new maximum is excluded. */
        VEC ones = SELECT_EQ(LOAD(row_max + r), LOAD(row_max_before + r), zero, SET1(-1));
        VEC d_at = zero, e_at = SET1(EXP_ONE), jv = zero;
        ACC acc = ACC_ZERO;
        double part[LANES];
        T count[LANES];
        Py_ssize_t j = 0;
        while (j < classes) {
            VEC even = zero, odd = zero; /* at most four terms each before they are added to acc */
#define TERM(some)                                                                  \
    do {                                                                            \
        const VEC d = LOAD(x + j * width + r) - shift;                              \
        const VEC v = FN(exp)(d);                                                   \
        CE_PREFETCH(next + j * next_class_stride + r * (Py_ssize_t)sizeof(T));      \
        CE_PREFETCH_WRITE(dst + j * dst_class_stride + r * (Py_ssize_t)sizeof(T));  \
        if (store)                                                                  \
            STORE(e + j * width + r, v);                                            \
        ADD_BY_EQ(d, zero, SET1(1), ones, v, some);                                 \
        if (labelled) {                                                             \
            d_at = SELECT_EQ(label, jv, d, d_at);                                   \
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
            FN(widen_vec)(d_label + r, d_at);
            FN(widen_vec)(e_label + r, e_at);
            for (int k = 0; k < LANES; k++)
                e_label[r + k] *= EXP_UNSCALE;
        }
    }
}

static void FN(tile_exp_sum)(const void *x, void *e, Py_ssize_t classes, Py_ssize_t width, const void *row_max,
                             const void *row_max_before, const void *label, double *sum, double *d_label,
                             double *e_label, const void *next, Py_ssize_t next_class_stride, void *dst,
                             Py_ssize_t dst_class_stride)
{
#define TILE_EXP_SUM(e, store, labelled)                                                                \
    FN(tile_exp_sum_)(x, e, classes, width, row_max, row_max_before, label, sum, d_label, e_label, next, \
                      next_class_stride, dst, dst_class_stride, store, labelled)
    if (e && label)
        TILE_EXP_SUM(e, 1, 1);
    else if (e)
        TILE_EXP_SUM(e, 1, 0);
    else if (label)
        TILE_EXP_SUM(NULL, 0, 1);
    else
        TILE_EXP_SUM(NULL, 0, 0);
#undef TILE_EXP_SUM
}

/* The numbers of base for class j; at is the index of the element. */
CE_INLINE VEC FN(tile_base)(const T *base, const int base_kind, Py_ssize_t j, Py_ssize_t at)
{
    return base_kind == CE_ONES ? SET1(1) : base_kind == CE_BY_CLASS ? SET1(base[j]) : LOAD(base + at);
}

CE_INLINE void FN(tile_gap_dot_)(const T *x, const T *base, const int base_kind, Py_ssize_t classes, Py_ssize_t width,
                                 const T *row_max, double *sum)
{
    for (Py_ssize_t r = 0; r < width; r += LANES) {
        const VEC shift = FN(tile_shift)(row_max + r);
        ACC acc = ACC_ZERO;
        for (Py_ssize_t j = 0; j < classes; j++) {
            const Py_ssize_t at = j * width + r;
            ACC_ADD(acc, FN(gap_term)(FN(tile_base)(base, base_kind, j, at), shift - LOAD(x + at)));
        }
        ACC_STORE(sum + r, acc);
    }
}

static void FN(tile_gap_dot)(const void *x, const void *base, int base_kind, Py_ssize_t classes, Py_ssize_t width,
                             const void *row_max, double *sum)
{
    if (base_kind == CE_ONES)
        FN(tile_gap_dot_)(x, base, CE_ONES, classes, width, row_max, sum);
    else if (base_kind == CE_BY_CLASS)
        FN(tile_gap_dot_)(x, base, CE_BY_CLASS, classes, width, row_max, sum);
    else
        FN(tile_gap_dot_)(x, base, CE_BY_ELEMENT, classes, width, row_max, sum);
}

static void FN(tile_sum)(const void *base_, Py_ssize_t classes, Py_ssize_t width, const void *x_, const void *row_max_,
                         double *sum)
{
    const T *base = base_, *x = x_, *row_max = row_max_;
    for (Py_ssize_t r = 0; r < width; r += LANES) {
        ACC acc = ACC_ZERO;
        for (Py_ssize_t j = 0; j < classes; j++) {
            const Py_ssize_t at = j * width + r;
            VEC t = LOAD(base + at);
            if (x)
                t = SELECT_EQ(LOAD(x + at), LOAD(row_max + r), SET1(0), t);
            ACC_ADD(acc, t);
        }
        ACC_STORE(sum + r, acc);
    }
}

CE_INLINE void FN(tile_grad_)(const T *src, T *grad, Py_ssize_t classes, Py_ssize_t width, const int form,
                              const T *row_max, const T *a_, const T *b_, const T *base, const int base_kind,
                              const T *exact_class_, const T *exact_grad_)
{
    for (Py_ssize_t r = 0; r < width; r += LANES) {
        const VEC shift = form == CE_STORED ? SET1(0) : LOAD(row_max + r), a = LOAD(a_ + r), b = LOAD(b_ + r);
        const VEC exact_class = LOAD(exact_class_ + r), exact_grad = LOAD(exact_grad_ + r);
        VEC jv = SET1(0);
        for (Py_ssize_t j = 0; j < classes; j++) {
            const Py_ssize_t at = j * width + r;
            const VEC s = LOAD(src + at);
            const VEC t = FN(grad)(s, form, shift, a, b * FN(tile_base)(base, base_kind, j, at));
            STORE(grad + at, SELECT_EQ(base_kind == CE_BY_ELEMENT ? s : jv, exact_class, exact_grad, t));
            jv = jv + SET1(1);
        }
    }
}

static void FN(tile_grad)(const void *src, void *grad, Py_ssize_t classes, Py_ssize_t width, int form,
                          const void *row_max, const void *a, const void *b, const void *base, int base_kind,
                          const void *exact_class, const void *exact_grad)
{
#define TILE_GRAD(form, kind) \
    FN(tile_grad_)(src, grad, classes, width, form, row_max, a, b, base, kind, exact_class, exact_grad)
    if (form == CE_DIFFERENCE)
        TILE_GRAD(CE_DIFFERENCE, CE_ONES);
    else if (base_kind == CE_ONES)
        form == CE_EXP ? TILE_GRAD(CE_EXP, CE_ONES) : TILE_GRAD(CE_STORED, CE_ONES);
    else if (base_kind == CE_BY_CLASS)
        form == CE_EXP ? TILE_GRAD(CE_EXP, CE_BY_CLASS) : TILE_GRAD(CE_STORED, CE_BY_CLASS);
    else
        form == CE_EXP ? TILE_GRAD(CE_EXP, CE_BY_ELEMENT) : TILE_GRAD(CE_STORED, CE_BY_ELEMENT);
#undef TILE_GRAD
}
