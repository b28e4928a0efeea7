/* The loops, once for every (instruction set, dtype): T is the dtype, VEC a vector of LANES of them, FN(name) the
 * function's name in this compilation. Vectors are an implementation detail: a function's result for a given input
 * depends on the instruction set, never on alignment or on who calls it. */

/* 2^EXP_BIAS * exp(d) for d <= 0 (NaN stays NaN): with n = d*log2(e) rounded to a multiple of 1/EXP_STEPS and
 * r = d - n*ln(2), exp(d) = 2^n * (1 + r + r^2*Q(r)). Q is minimax for |r| <= ln(2)/(2*EXP_STEPS) (Lawson's algorithm at
 * 40 digits). The factor makes it a normal number down to EXP_CUT, so that sums of terms which are not normal are exact to
 * the last digits all the same; multiplying by EXP_UNSCALE rounds once, with gradual underflow. Below EXP_CUT, where 2^20
 * terms are nothing to the smallest subnormal, the result is set to 0 without an underflow operation, which processors are
 * slow at: masked logits cost nothing. */
#if CE_F32
#define LOG2E 0x1.715476p+0f
#define ROUNDER (0x1.8p+23f / EXP_STEPS) /* adding it rounds to a multiple of 1/EXP_STEPS, left in the low bits */
#define EXP_CUT -131.0f /* 2^EXP_BIAS * exp(-131) is normal */
#else
#define LOG2E 0x1.71547652b82fep+0
#define ROUNDER (0x1.8p+52 / EXP_STEPS)
#define EXP_CUT -796.0
#endif

CE_INLINE VEC FN(exp)(VEC d)
{
    const VEC rounder = SET1(ROUNDER);
    const VEC z = FMA(d, SET1(LOG2E), rounder);
    const VEC n = z - rounder;
#if CE_F32 && EXP_STEPS > 1
    /* float32(ln 2) is ln 2 to 28.4 bits, so with a fused multiply-add one step is enough. */
    const VEC r = FMA(n, SET1(-0x1.62e43p-1f), d);
#elif CE_F32
    const VEC r = FMA(n, SET1(-0x1.7f7d1cp-20f), FMA(n, SET1(-0x1.62e4p-1f), d));
#elif EXP_STEPS > 1
    /* float64(ln 2) is ln 2 to 54.7 bits: d, which x - row_max has rounded to 53, loses little more. */
    const VEC r = FMA(n, SET1(-0x1.62e42fefa39efp-1), d);
#else
    const VEC r = FMA(n, SET1(-0x1.a39ef35793c76p-33), FMA(n, SET1(-0x1.62e42feep-1), d));
#endif
#if CE_F32 && EXP_STEPS == 16 /* error of the polynomial: 0.013 eps */
    const VEC q = FMA(r, SET1(0x1.55564ap-3f), SET1(0x1.00022p-1f));
#elif CE_F32 && EXP_STEPS == 8 /* 0.22 eps */
    const VEC q = FMA(r, SET1(0x1.5558a6p-3f), SET1(0x1.00087cp-1f));
#elif CE_F32 && EXP_STEPS == 1 /* 0.03 eps */
    VEC q = FMA(r, SET1(0x1.6a2454p-10f), SET1(0x1.123a2p-7f));
    q = FMA(r, q, SET1(0x1.5558f2p-5f));
    q = FMA(r, q, SET1(0x1.555492p-3f));
    q = FMA(r, q, SET1(0x1.fffffcp-2f));
#elif !CE_F32 && EXP_STEPS == 16 /* 0.05 eps */
    VEC q = FMA(r, SET1(0x1.6c14c7ce4db17p-10), SET1(0x1.11123afcd49c0p-7));
    q = FMA(r, q, SET1(0x1.55555558fcc27p-5));
    q = FMA(r, q, SET1(0x1.555555548f1f4p-3));
    q = FMA(r, q, SET1(0x1.fffffffffffb9p-2));
#elif !CE_F32 && EXP_STEPS == 1 /* 0.05 eps */
    VEC q = FMA(r, SET1(0x1.ad9641515b7bap-26), SET1(0x1.28ad95ecdadedp-22));
    q = FMA(r, q, SET1(0x1.71df170af496ep-19));
    q = FMA(r, q, SET1(0x1.a01999e7b13e2p-16));
    q = FMA(r, q, SET1(0x1.a01a01309a454p-13));
    q = FMA(r, q, SET1(0x1.6c16c18436645p-10));
    q = FMA(r, q, SET1(0x1.1111111126a2ep-7));
    q = FMA(r, q, SET1(0x1.5555555550854p-5));
    q = FMA(r, q, SET1(0x1.55555555554fep-3));
    q = FMA(r, q, SET1(0x1.000000000000ap-1));
#else
#error "no polynomial for this EXP_STEPS"
#endif
    return FN(exp_scale)(d, SET1(EXP_CUT), z, FMA(r * r, q, r));
}
#undef LOG2E
#undef ROUNDER
#undef EXP_CUT

#ifndef ADD_BY_EQ /* adds x to `where` in the lanes where a == b, y to `unless` in the others */
#define ADD_BY_EQ(a, b, x, where, y, unless)                \
    do {                                                    \
        where = where + SELECT_EQ(a, b, x, SET1(0));        \
        unless = unless + SELECT_EQ(a, b, SET1(0), y);      \
    } while (0)
#endif

#ifndef ALIGN_FROM
#define ALIGN_FROM PTRDIFF_MAX
#endif

#ifndef LOAD_PART /* the first n < LANES of a vector, without touching what lies behind them */
CE_INLINE VEC FN(load_part)(const T *p, Py_ssize_t n, T fill)
{
    T buffer[LANES];
    for (int k = 0; k < LANES; k++)
        buffer[k] = k < n ? p[k] : fill;
    return LOAD(buffer);
}
CE_INLINE void FN(store_part)(T *p, VEC v, Py_ssize_t n)
{
    T buffer[LANES];
    STORE(buffer, v);
    for (int k = 0; k < LANES && k < n; k++)
        p[k] = buffer[k];
}
#define LOAD_PART(p, n, fill) FN(load_part)(p, n, fill)
#define STORE_PART(p, v, n) FN(store_part)(p, v, n)
#endif

CE_INLINE VEC FN(load_upto)(const T *p, Py_ssize_t n, T fill)
{
    return n >= LANES ? LOAD(p) : LOAD_PART(p, n, fill);
}
CE_INLINE void FN(store_upto)(T *p, VEC v, Py_ssize_t n)
{
    if (n >= LANES)
        STORE(p, v);
    else
        STORE_PART(p, v, n);
}

static const T FN(iota)[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

/* Sums of many float32 are float64 sums of a few; sums of many float64 keep what each addition loses (Knuth's TwoSum).
 * Either way the error does not grow with their length. */
#if !CE_F32
typedef struct {
    VEC total, lost;
} CE_CAT3(acc, CE_ISA, CE_TAG);
#define ACC CE_CAT3(acc, CE_ISA, CE_TAG)
#define ACC_ZERO {SET1(0), SET1(0)}
#define ACC_ADD(acc, v)                                                 \
    do {                                                                \
        const VEC v_ = (v), t_ = acc.total + v_, z_ = t_ - acc.total;   \
        acc.lost = acc.lost + ((acc.total - (t_ - z_)) + (v_ - z_));    \
        acc.total = t_;                                                 \
    } while (0)
CE_INLINE void FN(acc_store)(double *p, ACC acc)
{
    double lost[LANES];
    STORE(p, acc.total);
    STORE(lost, acc.lost);
    for (int k = 0; k < LANES; k++)
        p[k] += lost[k] == lost[k] ? lost[k] : 0; /* NaN once the total is infinite */
}
#define ACC_STORE(p, acc) FN(acc_store)(p, acc)
#endif

#ifndef ACC_SUM
CE_INLINE double FN(acc_sum)(ACC acc)
{
    double part[LANES];
    ACC_STORE(part, acc);
    for (int width = LANES / 2; width >= 1; width /= 2)
        for (int k = 0; k < width; k++)
            part[k] += part[k + width];
    return part[0];
}
#define ACC_SUM(acc) FN(acc_sum)(acc)
#endif
#ifndef TOTAL
CE_INLINE T FN(total)(VEC v)
{
    T part[LANES], sum = 0;
    STORE(part, v);
    for (int k = 0; k < LANES; k++)
        sum += part[k];
    return sum;
}
#define TOTAL(v) FN(total)(v)
#endif

/* Elements before the first aligned vector. A vector that straddles two cache lines takes two accesses; short rows are
 * not worth the partial vector. */
CE_INLINE Py_ssize_t FN(to_line)(const T *p, Py_ssize_t n)
{
    const Py_ssize_t head = (Py_ssize_t)(-(uintptr_t)p % sizeof(VEC) / sizeof(T));
    return head < n ? head : n;
}
CE_INLINE Py_ssize_t FN(to_aligned)(const T *p, Py_ssize_t n)
{
    return n >= ALIGN_FROM ? FN(to_line)(p, n) : 0;
}

/* Eight vectors are added as a tree: three roundings. */
enum { FN(CHUNK) = 8 * LANES };
CE_INLINE VEC FN(tree)(const VEC *v)
{
    return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
}

#ifndef LARGEST
CE_INLINE T FN(largest)(VEC v)
{
    T part[LANES];
    STORE(part, v);
    for (int width = LANES / 2; width >= 1; width /= 2)
        for (int k = 0; k < width; k++)
            part[k] = part[k + width] > part[k] ? part[k + width] : part[k];
    return part[0];
}
#define LARGEST(v) FN(largest)(v)
#endif

static void FN(rows_max)(const void *x_, Py_ssize_t x_step, Py_ssize_t rows, Py_ssize_t n, double *m)
{
    const T none = (T)-INFINITY;
    for (Py_ssize_t r = 0; r < rows; r++) {
        const T *x = (const T *)((const char *)x_ + r * x_step);
        VEC m0 = SET1(none), m1 = m0, m2 = m0, m3 = m0;
        if (n < LANES) {
            m0 = MAX(LOAD_PART(x, n, none), m0);
        } else {
            Py_ssize_t i = FN(to_aligned)(x, n);
            m0 = MAX(LOAD(x), m0); /* the ends may overlap the rest */
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
        m[r] = 0.0 + LARGEST(MAX(MAX(m1, m0), MAX(m2, m3))); /* +0 where +0 and -0 are the largest */
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

/* LANES of it from 16 - LANES + k on: 1 in the last k lanes. */
static const T FN(edge)[2 * 16] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

CE_INLINE double FN(row_exp_sum)(const T *x, T *e, Py_ssize_t n, T shift_, int without, const T *next,
                                 const int form)
{
    const VEC shift = SET1(shift_), zero = SET1(0);
    VEC ones = zero; /* terms exp(0) are counted apart: the rest may be tiny */
    VEC even = zero, odd = zero;
    ACC acc = ACC_ZERO;
#define TERM(sum, load, store, weight, weighted)             \
    do {                                                     \
        const VEC d = (load) - shift, v = FN(exp)(d);        \
        if (e) {                                             \
            const VEC kept = form == CE_KEPT ? v : d;        \
            store;                                           \
        }                                                    \
        ADD_BY_EQ(d, zero, weight, ones, weighted, sum);     \
    } while (0)
#define WHOLE(sum, k) TERM(sum, LOAD(x + i + (k) * LANES), STORE(e + i + (k) * LANES, kept), SET1(1), v)
#define END(sum, loaded, at, edge) TERM(sum, loaded, STORE(e + (at), kept), edge, v * (edge))
    if (n < LANES) {
        TERM(even, LOAD_PART(x, n, (T)-INFINITY), STORE_PART(e, kept, n), SET1(1), v);
    } else {
        /* The last vector overlaps the one before and is stored after it: so it is loaded now, for e may be x. */
        const VEC last = LOAD(x + n - LANES);
        Py_ssize_t i = 0;
        for (; i + 8 * LANES <= n; i += 8 * LANES) {
            for (int k = 0; k < 8 * LANES; k += CE_CACHE_LINE / sizeof(T))
                CE_PREFETCH(next + i + k);
            WHOLE(even, 0); /* at most five terms a sum */
            WHOLE(odd, 1);
            WHOLE(even, 2);
            WHOLE(odd, 3);
            WHOLE(even, 4);
            WHOLE(odd, 5);
            WHOLE(even, 6);
            WHOLE(odd, 7);
            ACC_ADD(acc, even + odd);
            even = odd = zero;
        }
        for (; i + LANES <= n; i += LANES) {
            WHOLE(even, 0);
            const VEC sum = odd; /* each of the two gets every second vector */
            odd = even;
            even = sum;
        }
        if (i < n)
            END(even, last, n - LANES, LOAD(FN(edge) + 16 - LANES + n - i));
    }
    ACC_ADD(acc, even + odd);
#undef TERM
#undef WHOLE
#undef END
    return ACC_SUM(acc) * EXP_UNSCALE + (TOTAL(ones) - without);
}

static void FN(rows_exp_sum)(const void *x, Py_ssize_t x_step, void *e, Py_ssize_t e_step, Py_ssize_t rows,
                             Py_ssize_t n, int form, const double *shift, int without, const void *next, double *sum)
{
    for (Py_ssize_t r = 0; r < rows; r++) {
        const T *row = (const T *)((const char *)x + r * x_step);
        const T *then = (const T *)((const char *)next + r * x_step);
        T *kept = e ? (T *)((char *)e + r * e_step) : NULL;
        if (!e)
            sum[r] = FN(row_exp_sum)(row, NULL, n, (T)shift[r], without, then, CE_KEPT);
        else if (form == CE_KEPT)
            sum[r] = FN(row_exp_sum)(row, kept, n, (T)shift[r], without, then, CE_KEPT);
        else
            sum[r] = FN(row_exp_sum)(row, kept, n, (T)shift[r], without, then, CE_DIFFERENCE);
    }
}

CE_INLINE VEC FN(gap_term)(VEC v, VEC gap)
{
    return SELECT_EQ(v, SET1(0), SET1(0), v * gap);
}

static double FN(row_gap_dot)(const void *x_, const void *v_, Py_ssize_t n, double shift_)
{
    const T *x = x_, *v = v_;
    const VEC shift = SET1((T)shift_);
    ACC acc = ACC_ZERO;
    Py_ssize_t i = 0;
    for (; i + FN(CHUNK) <= n; i += FN(CHUNK)) {
        VEC t[8];
        for (int k = 0; k < 8; k++) {
            t[k] = shift - LOAD(x + i + k * LANES);
            if (v)
                t[k] = FN(gap_term)(LOAD(v + i + k * LANES), t[k]);
        }
        ACC_ADD(acc, FN(tree)(t));
    }
    for (; i < n; i += LANES) {
        VEC t = shift - FN(load_upto)(x + i, n - i, (T)shift_);
        if (v)
            t = FN(gap_term)(FN(load_upto)(v + i, n - i, 0), t);
        else if (n - i < LANES) /* inf - inf in the lanes that are not there */
            t = LOAD_PART((const T *)&t, n - i, 0);
        ACC_ADD(acc, t);
    }
    return ACC_SUM(acc);
}

static double FN(row_sum)(const void *v_, Py_ssize_t n)
{
    const T *v = v_;
    ACC acc = ACC_ZERO;
    Py_ssize_t i = 0;
    for (; i + FN(CHUNK) <= n; i += FN(CHUNK)) {
        VEC t[8];
        for (int k = 0; k < 8; k++)
            t[k] = LOAD(v + i + k * LANES);
        ACC_ADD(acc, FN(tree)(t));
    }
    for (; i < n; i += LANES)
        ACC_ADD(acc, FN(load_upto)(v + i, n - i, 0));
    return ACC_SUM(acc);
}

static void FN(row_affine)(void *q_, const void *v_, Py_ssize_t n, double slope, double offset)
{
    T *q = q_;
    const T *v = v_;
    for (Py_ssize_t i = 0; i < n; i += LANES) {
        VEC t = FMA(SET1((T)slope), FN(load_upto)(q + i, n - i, 0), SET1((T)offset));
        if (v)
            t = t * FN(load_upto)(v + i, n - i, 0);
        FN(store_upto)(q + i, t, n - i);
    }
}

CE_INLINE VEC FN(grad)(VEC s, const int form, VEC shift, VEC a, VEC b)
{
    if (form == CE_EXP)
        return FMSUB(a, FN(exp)(s - shift) * SET1(EXP_UNSCALE), b);
    if (form == CE_DIFFERENCE)
        return FMSUB(a, s - shift, b);
    return FMSUB(a, s * SET1(EXP_UNSCALE), b);
}

CE_INLINE void FN(row_grad)(const T *src, T *g, Py_ssize_t n, const int form, T shift_, T a_, T b_, const T *v,
                            Py_ssize_t mark, T at_mark, const int stream)
{
    const VEC shift = SET1(shift_), a = SET1(a_), b = SET1(b_);
#define GRAD(load, v_load) FN(grad)(load, form, shift, a, b * (v ? (v_load) : SET1(1)))
    if (stream || n < LANES) {
        Py_ssize_t i = stream ? FN(to_line)(g, n) : 0;
        const int in_head = mark < i;
        if (i)
            STORE_PART(g, GRAD(LOAD_PART(src, i, 0), LOAD_PART(v, i, 0)), i);
        for (; i + LANES <= n; i += LANES) {
            VEC t = GRAD(LOAD(src + i), LOAD(v + i));
            /* Not stored again afterwards: that would fetch the line from memory. */
            if ((size_t)(mark - i) < LANES)
                t = SELECT_EQ(LOAD(FN(iota)), SET1((T)(mark - i)), SET1(at_mark), t);
            STREAM(g + i, t);
        }
        if (i < n)
            STORE_PART(g + i, GRAD(LOAD_PART(src + i, n - i, 0), LOAD_PART(v + i, n - i, 0)), n - i);
        if (mark >= 0 && (in_head || mark >= i))
            g[mark] = at_mark;
    } else {
        /* The ends overlap the aligned vectors and are stored after them: so they are computed now, for g may be src or v. */
        const VEC first = GRAD(LOAD(src), LOAD(v)), last = GRAD(LOAD(src + n - LANES), LOAD(v + n - LANES));
        const Py_ssize_t head = FN(to_aligned)(g, n);
        Py_ssize_t i = head;
        for (; i + LANES <= n; i += LANES)
            STORE(g + i, GRAD(LOAD(src + i), LOAD(v + i)));
        if (i < n)
            STORE(g + n - LANES, last);
        if (head)
            STORE(g, first);
        if (mark >= 0)
            g[mark] = at_mark;
    }
#undef GRAD
}

static void FN(rows_grad)(const void *src, Py_ssize_t src_step, void *g, Py_ssize_t g_step, Py_ssize_t rows,
                          Py_ssize_t n, int form, const double *shift, const double *a, const double *b, const void *v,
                          const Py_ssize_t *mark, const double *at_mark, int stream)
{
    for (Py_ssize_t r = 0; r < rows; r++) {
        const T *from = (const T *)((const char *)src + r * src_step);
        T *to = (T *)((char *)g + r * g_step);
#define ROW_GRAD(form, v, stream)                                                                                  \
    FN(row_grad)(from, to, n, form, (T)shift[r], (T)a[r], (T)b[r], v, mark ? mark[r] : -1, mark ? (T)at_mark[r] : 0, \
                 stream)
#define ROW_GRAD_FORM(v, stream)                \
    do {                                        \
        if (form == CE_EXP)                     \
            ROW_GRAD(CE_EXP, v, stream);        \
        else if (form == CE_KEPT)               \
            ROW_GRAD(CE_KEPT, v, stream);       \
        else                                    \
            ROW_GRAD(CE_DIFFERENCE, v, stream); \
    } while (0)
        if (v && stream)
            ROW_GRAD_FORM(v, 1);
        else if (v)
            ROW_GRAD_FORM(v, 0);
        else if (stream)
            ROW_GRAD_FORM(NULL, 1);
        else
            ROW_GRAD_FORM(NULL, 0);
#undef ROW_GRAD_FORM
#undef ROW_GRAD
    }
}

static double FN(row_dot)(const void *u_, const void *v_, Py_ssize_t n)
{
    const T *u = u_, *v = v_;
    ACC acc = ACC_ZERO;
    Py_ssize_t i = 0;
    for (; i + FN(CHUNK) <= n; i += FN(CHUNK)) {
        VEC t[8];
        for (int k = 0; k < 8; k++)
            t[k] = LOAD(u + i + k * LANES) * LOAD(v + i + k * LANES);
        ACC_ADD(acc, FN(tree)(t));
    }
    for (; i < n; i += LANES)
        ACC_ADD(acc, FN(load_upto)(u + i, n - i, 0) * FN(load_upto)(v + i, n - i, 0));
    return ACC_SUM(acc);
}

static void FN(row_scale)(const void *y_, const void *u_, void *g_, Py_ssize_t n, double shift)
{
    const T *y = y_, *u = u_;
    T *g = g_;
    for (Py_ssize_t i = 0; i < n; i += LANES) {
        const VEC t = FN(load_upto)(u + i, n - i, 0) - SET1((T)shift);
        FN(store_upto)(g + i, FN(load_upto)(y + i, n - i, 0) * t, n - i);
    }
}

/* log(1 + e) for 0 <= e <= 1, to a relative error below 2 eps: 2*atanh(s), s = e/(2 + e), |s| <= 1/3; the series in s^2
 * is minimax (Lawson's algorithm; 0.04 eps in float32, 0.006 eps in float64). */
CE_INLINE VEC FN(log1p_unit)(VEC e)
{
    const VEC s = e / (SET1(2) + e), z = s * s;
#if CE_F32
    VEC q = FMA(z, SET1(0x1.1ee10ap-3f), SET1(0x1.1ebb4ap-3f));
    q = FMA(z, q, SET1(0x1.99d222p-3f));
    q = FMA(z, q, SET1(0x1.555502p-2f));
#else
    VEC q = FMA(z, SET1(0x1.5c737a5c60548p-4), SET1(0x1.55b73975871fbp-5));
    q = FMA(z, q, SET1(0x1.efd6ce7e4ed6dp-5));
    q = FMA(z, q, SET1(0x1.1067de9028d65p-4));
    q = FMA(z, q, SET1(0x1.3b1dd961ff64ep-4));
    q = FMA(z, q, SET1(0x1.745cb41abefe2p-4));
    q = FMA(z, q, SET1(0x1.c71c741b9f079p-4));
    q = FMA(z, q, SET1(0x1.249249208e466p-3));
    q = FMA(z, q, SET1(0x1.99999999a0708p-3));
    q = FMA(z, q, SET1(0x1.5555555555535p-2));
#endif
    return SET1(2) * FMA(s * z, q, s);
}

CE_INLINE double FN(row_sigmoid_)(const T *z_, const T *a_, const T *b_, Py_ssize_t n, T scale, T *loss_, T *grad)
{
    const VEC zero = SET1(0), one = SET1(1);
    ACC acc = ACC_ZERO;
    for (Py_ssize_t i = 0; i < n; i += LANES) {
        const VEC z = FN(load_upto)(z_ + i, n - i, 0), a = FN(load_upto)(a_ + i, n - i, 0);
        VEC b = one - a;
        if (b_)
            b = FN(load_upto)(b_ + i, n - i, 0);
        const VEC up = MAX(z, zero), down = MAX(zero - z, zero);
        /* NaN, which MAX passes over, comes back as exp(NaN) */
        const VEC e = FN(exp)(SELECT_EQ(z, z, zero - (up + down), z)) * SET1(EXP_UNSCALE);
        const VEC large = one / (one + e), small = e * large;
        if (grad) {
            const VEC p = SELECT_EQ(up, z, large, small), other = SELECT_EQ(up, z, small, large);
            FN(store_upto)(grad + i, SET1(scale) * (b * p - a * other), n - i);
        }
        VEC loss = (a + b) * FN(log1p_unit)(e) + (FN(gap_term)(b, up) + FN(gap_term)(a, down));
        if (loss_)
            FN(store_upto)(loss_ + i, loss, n - i);
        if (n - i < LANES) {
            T part[LANES];
            STORE(part, loss);
            loss = LOAD_PART(part, n - i, 0);
        }
        ACC_ADD(acc, loss);
    }
    return ACC_SUM(acc);
}

static double FN(row_sigmoid)(const void *z, const void *a, const void *b, Py_ssize_t n, double scale, void *loss,
                              void *grad)
{
    return grad ? FN(row_sigmoid_)(z, a, b, n, (T)scale, loss, grad) : FN(row_sigmoid_)(z, a, b, n, 0, loss, NULL);
}

static void FN(tile_max)(const void *x_, Py_ssize_t classes, Py_ssize_t width, void *m_)
{
    const T *x = x_;
    T *m = m_;
    for (Py_ssize_t p = 0; p < width; p += LANES) {
        VEC top = LOAD(m + p);
        for (Py_ssize_t j = 0; j < classes; j++)
            top = MAX(LOAD(x + j * width + p), top);
        STORE(m + p, top);
    }
}

CE_INLINE VEC FN(tile_shift)(const T *m)
{
    return SELECT_EQ(LOAD(m), SET1((T)-INFINITY), SET1(0), LOAD(m));
}

CE_INLINE void FN(widen_vec)(double *to, VEC v)
{
#if CE_F32
    ACC acc = ACC_ZERO;
    ACC_ADD(acc, v);
    ACC_STORE(to, acc);
#else
    STORE(to, v);
#endif
}

CE_INLINE void FN(tile_exp_sum_)(const T *x, T *e, Py_ssize_t classes, Py_ssize_t width, const T *m, const T *before,
                                 const T *label_, double *sum, double *d_label, double *e_label, const char *next,
                                 Py_ssize_t next_step, const char *dst, Py_ssize_t dst_step, const int keep,
                                 const int labelled)
{
    for (Py_ssize_t p = 0; p < width; p += LANES) {
        const VEC shift = FN(tile_shift)(m + p), zero = SET1(0);
        const VEC label = labelled ? LOAD(label_ + p) : zero;
        /* Terms exp(0) are counted apart: one of them is left out where the maximum is new, and the rest may be tiny. */
        VEC ones = SELECT_EQ(LOAD(m + p), LOAD(before + p), zero, SET1(-1));
        VEC d_at = zero, e_at = SET1(EXP_ONE), jv = zero;
        ACC acc = ACC_ZERO;
        double part[LANES];
        T count[LANES];
        Py_ssize_t j = 0;
        while (j < classes) {
            VEC even = zero, odd = zero; /* four terms each, at most */
#define TERM(some)                                                                  \
    do {                                                                            \
        const VEC d = LOAD(x + j * width + p) - shift;                              \
        const VEC v = FN(exp)(d);                                                   \
        CE_PREFETCH(next + j * next_step + p * (Py_ssize_t)sizeof(T));              \
        CE_PREFETCH_WRITE(dst + j * dst_step + p * (Py_ssize_t)sizeof(T));          \
        if (keep)                                                                   \
            STORE(e + j * width + p, v);                                            \
        ADD_BY_EQ(d, zero, SET1(1), ones, v, some);                                 \
        if (labelled) {                                                             \
            d_at = SELECT_EQ(label, jv, d, d_at);                                   \
            e_at = SELECT_EQ(label, jv, v, e_at);                                   \
            jv = jv + SET1(1);                                                      \
        }                                                                           \
        j++;                                                                        \
    } while (0)
            if (j + 8 <= classes) {
                TERM(even);
                TERM(odd);
                TERM(even);
                TERM(odd);
                TERM(even);
                TERM(odd);
                TERM(even);
                TERM(odd);
            } else {
                while (j + 1 < classes) {
                    TERM(even);
                    TERM(odd);
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
            sum[p + k] = part[k] * EXP_UNSCALE + count[k];
        if (labelled) {
            FN(widen_vec)(d_label + p, d_at);
            FN(widen_vec)(e_label + p, e_at);
            for (int k = 0; k < LANES; k++)
                e_label[p + k] *= EXP_UNSCALE;
        }
    }
}

static void FN(tile_exp_sum)(const void *x, void *e, Py_ssize_t classes, Py_ssize_t width, const void *m,
                             const void *before, const void *label, double *sum, double *d_label, double *e_label,
                             const void *next, Py_ssize_t next_step, void *dst, Py_ssize_t dst_step)
{
#define TILE_EXP_SUM(e, keep, labelled)                                                                               \
    FN(tile_exp_sum_)(x, e, classes, width, m, before, label, sum, d_label, e_label, next, next_step, dst, dst_step,  \
                      keep, labelled)
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

CE_INLINE VEC FN(tile_value)(const T *v, const int kind, Py_ssize_t j, Py_ssize_t at)
{
    return kind == CE_BROADCAST ? SET1(1) : kind == CE_BY_CLASS ? SET1(v[j]) : LOAD(v + at);
}

CE_INLINE void FN(tile_gap_dot_)(const T *x, const T *v, const int kind, Py_ssize_t classes, Py_ssize_t width,
                                 const T *m, double *sum)
{
    for (Py_ssize_t p = 0; p < width; p += LANES) {
        const VEC shift = FN(tile_shift)(m + p);
        ACC acc = ACC_ZERO;
        for (Py_ssize_t j = 0; j < classes; j++) {
            const Py_ssize_t at = j * width + p;
            ACC_ADD(acc, FN(gap_term)(FN(tile_value)(v, kind, j, at), shift - LOAD(x + at)));
        }
        ACC_STORE(sum + p, acc);
    }
}

static void FN(tile_gap_dot)(const void *x, const void *v, int kind, Py_ssize_t classes, Py_ssize_t width,
                             const void *m, double *sum)
{
    if (kind == CE_BROADCAST)
        FN(tile_gap_dot_)(x, v, CE_BROADCAST, classes, width, m, sum);
    else if (kind == CE_BY_CLASS)
        FN(tile_gap_dot_)(x, v, CE_BY_CLASS, classes, width, m, sum);
    else
        FN(tile_gap_dot_)(x, v, CE_BY_ELEMENT, classes, width, m, sum);
}

static void FN(tile_sum)(const void *v_, Py_ssize_t classes, Py_ssize_t width, const void *x_, const void *m_,
                         double *sum)
{
    const T *v = v_, *x = x_, *m = m_;
    for (Py_ssize_t p = 0; p < width; p += LANES) {
        ACC acc = ACC_ZERO;
        for (Py_ssize_t j = 0; j < classes; j++) {
            const Py_ssize_t at = j * width + p;
            VEC t = LOAD(v + at);
            if (x)
                t = SELECT_EQ(LOAD(x + at), LOAD(m + p), SET1(0), t);
            ACC_ADD(acc, t);
        }
        ACC_STORE(sum + p, acc);
    }
}

CE_INLINE void FN(tile_grad_)(const T *src, T *g, Py_ssize_t classes, Py_ssize_t width, const int form,
                              const T *m, const T *a_, const T *b_, const T *v, const int kind, const T *mark_,
                              const T *at_mark_)
{
    for (Py_ssize_t p = 0; p < width; p += LANES) {
        const VEC shift = form == CE_KEPT ? SET1(0) : LOAD(m + p), a = LOAD(a_ + p), b = LOAD(b_ + p);
        const VEC mark = LOAD(mark_ + p), at_mark = LOAD(at_mark_ + p);
        VEC jv = SET1(0);
        for (Py_ssize_t j = 0; j < classes; j++) {
            const Py_ssize_t at = j * width + p;
            const VEC s = LOAD(src + at);
            const VEC t = FN(grad)(s, form, shift, a, b * FN(tile_value)(v, kind, j, at));
            STORE(g + at, SELECT_EQ(kind == CE_BY_ELEMENT ? s : jv, mark, at_mark, t));
            jv = jv + SET1(1);
        }
    }
}

static void FN(tile_grad)(const void *src, void *g, Py_ssize_t classes, Py_ssize_t width, int form, const void *m,
                          const void *a, const void *b, const void *v, int kind, const void *mark,
                          const void *at_mark)
{
#define TILE_GRAD(form, kind) FN(tile_grad_)(src, g, classes, width, form, m, a, b, v, kind, mark, at_mark)
    if (form == CE_DIFFERENCE)
        TILE_GRAD(CE_DIFFERENCE, CE_BROADCAST);
    else if (kind == CE_BROADCAST)
        form ? TILE_GRAD(CE_EXP, CE_BROADCAST) : TILE_GRAD(CE_KEPT, CE_BROADCAST);
    else if (kind == CE_BY_CLASS)
        form ? TILE_GRAD(CE_EXP, CE_BY_CLASS) : TILE_GRAD(CE_KEPT, CE_BY_CLASS);
    else
        form ? TILE_GRAD(CE_EXP, CE_BY_ELEMENT) : TILE_GRAD(CE_KEPT, CE_BY_ELEMENT);
#undef TILE_GRAD
}

/* Squares of SQUARE x SQUARE are transposed in registers; the last ones of a row or column overlap those before. */
static void FN(transpose)(const void *src_, Py_ssize_t src_step, Py_ssize_t rows, Py_ssize_t columns, void *dst_,
                          Py_ssize_t dst_step)
{
    const char *src = src_;
    char *dst = dst_;
#define SRC(r, k) (const T *)(src + (r) * src_step + (k) * (Py_ssize_t)sizeof(T))
#define DST(r, k) (T *)(dst + (k) * dst_step + (r) * (Py_ssize_t)sizeof(T))
#ifdef SQUARE
    if (rows >= SQUARE && columns >= SQUARE) {
        for (Py_ssize_t r = 0; r < rows; r += SQUARE) {
            const Py_ssize_t row = r + SQUARE <= rows ? r : rows - SQUARE;
            for (Py_ssize_t k = 0; k < columns; k += SQUARE) {
                const Py_ssize_t column = k + SQUARE <= columns ? k : columns - SQUARE;
                TRANSPOSE(SRC(row, column), src_step, DST(row, column), dst_step);
            }
        }
        return;
    }
#endif
    if (columns < rows) {
        for (Py_ssize_t k = 0; k < columns; k++)
            for (Py_ssize_t r = 0; r < rows; r++)
                *DST(r, k) = *SRC(r, k);
    } else {
        for (Py_ssize_t r = 0; r < rows; r++)
            for (Py_ssize_t k = 0; k < columns; k++)
                *DST(r, k) = *SRC(r, k);
    }
#undef SRC
#undef DST
}

static void FN(copy_runs)(const void *src_, Py_ssize_t src_step, Py_ssize_t runs, Py_ssize_t n, void *dst_,
                          Py_ssize_t dst_step)
{
    for (Py_ssize_t k = 0; k < runs; k++) {
        const T *src = (const T *)((const char *)src_ + k * src_step);
        T *dst = (T *)((char *)dst_ + k * dst_step);
        Py_ssize_t i = 0;
        for (; i + LANES <= n; i += LANES)
            STORE(dst + i, LOAD(src + i));
        for (; i < n; i++)
            dst[i] = src[i];
    }
}

static void FN(label_lanes)(const int64_t *labels, Py_ssize_t n, int64_t first, void *label_)
{
    T *label = label_;
    for (Py_ssize_t i = 0; i < n; i++)
        label[i] = (T)(labels[i] - first);
}

static void FN(narrow)(const double *from, Py_ssize_t n, void *to_)
{
    T *to = to_;
    for (Py_ssize_t i = 0; i < n; i++)
        to[i] = (T)from[i];
}

static void FN(widen)(const void *from_, Py_ssize_t n, double *to)
{
    const T *from = from_;
    for (Py_ssize_t i = 0; i < n; i++)
        to[i] = from[i];
}

static void FN(settle)(const void *row_max_, Py_ssize_t n, double *restrict row_max, double *restrict tail,
                       double *restrict linear, double keep, const double *restrict d_label)
{
    const T *from = row_max_;
    for (Py_ssize_t i = 0; i < n; i++) {
        row_max[i] = from[i];
        tail[i] += 0 * row_max[i];
    }
    for (Py_ssize_t i = 0; d_label && i < n; i++)
        linear[i] -= keep * d_label[i];
}

#if CE_F32 /* what does not depend on the dtype: plain C that compilers vectorise */
static void FN(add)(double *restrict total, double *restrict lost, const double *restrict term, Py_ssize_t n)
{
    for (Py_ssize_t i = 0; i < n; i++) {
        const double t = total[i] + term[i], z = t - total[i];
        lost[i] += (total[i] - (t - z)) + (term[i] - z);
        total[i] = t;
    }
}

/* log(1 + t), t >= 0: with u = 1 + t = 2^k * (1 + f), 1 + f in [sqrt(1/2), sqrt(2)), and c what rounding u lost,
 * log(1 + t) = k*ln(2) + log(1 + f) + c/u; log(1 + f) as in FreeBSD's e_log.c. Error below 1.5 ulp. And 1/u. */
CE_INLINE double FN(log1p)(double t, double *share)
{
    const uint64_t sqrt_half = 0x3fe6a09e667f3bcdu, two52 = 0x4330000000000000u;
    const double u = 1.0 + t;
    uint64_t bits, k, mantissa;
    double kd, f;
    memcpy(&bits, &u, sizeof bits);
    k = (bits - sqrt_half) >> 52;
    mantissa = bits - (k << 52);
    k |= two52;
    memcpy(&f, &mantissa, sizeof f);
    memcpy(&kd, &k, sizeof kd);
    kd -= 0x1p52;
    f -= 1.0;
    /* one division for all quotients */
    const double d = 2.0 + f, r = 1.0 / (d * u), about = d * r;
    const double c = (t - (u - 1.0)) * about;
    const double s = f * (u * r), z = s * s, w = z * z, half = 0.5 * f * f;
    const double even = w * (3.999999999940941908e-01 + w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01));
    const double odd = z * (6.666666666666735130e-01 +
                            w * (2.857142874366239149e-01 +
                                 w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01)));
    *share = about + about * (1.0 - u * about);
    return kd * 6.93147180369123816490e-01 -
           ((half - (s * (half + (even + odd)) + (kd * 1.90821492927058770002e-10 + c))) - f);
}

CE_INLINE double FN(loss)(double log_total, double row_max, double mass, double linear, double z_loss)
{
    const double lse = row_max + log_total;
    return mass * log_total + linear + (z_loss ? z_loss * lse * lse : 0);
}

static void FN(losses)(Py_ssize_t n, const double *restrict row_max, const double *restrict tail,
                       const double *restrict mass, const double *restrict linear, double z_loss,
                       double *restrict log_total, double *restrict loss)
{
    for (Py_ssize_t i = 0; i < n; i++) {
        double share;
        log_total[i] = FN(log1p)(tail[i], &share);
        loss[i] = FN(loss)(log_total[i], row_max[i], mass[i], linear[i], z_loss);
    }
}

static void FN(coefficients)(Py_ssize_t n, const double *restrict row_max, const double *restrict tail,
                             const double *restrict mass, const double *restrict linear, double z_loss,
                             const double *restrict q, const double *restrict rest, const double *restrict e,
                             const double *restrict scale, double *restrict log_total, double *restrict loss,
                             double *restrict a, double *restrict at_target)
{
    for (Py_ssize_t i = 0; i < n; i++) {
        double share;
        const double log_i = FN(log1p)(tail[i], &share);
        const double slope = z_loss ? 2 * z_loss * (row_max[i] + log_i) : 0; /* of z_loss * lse^2 */
        const double sure = (rest[i] - mass[i] * (tail[i] * share)) + slope * share;
        const double unsure = (mass[i] + slope) * (e[i] * share) - q[i];
        log_total[i] = log_i;
        loss[i] = FN(loss)(log_i, row_max[i], mass[i], linear[i], z_loss);
        a[i] = scale[i] * ((mass[i] + slope) * share);
        /* Of two or more maxima each has p <= 1/2. */
        at_target[i] = scale[i] * (((e[i] == 1.0) & (tail[i] < 1.0)) ? sure : unsure);
    }
}

static Py_ssize_t FN(labels_kept)(const int64_t *labels, Py_ssize_t n, int64_t classes, int64_t ignored,
                                  int has_ignored)
{
    int64_t kept = 0, wrong = 0;
    for (Py_ssize_t i = 0; i < n; i++) {
        const int64_t t = labels[i], keep = !has_ignored | (t != ignored);
        kept += keep;
        wrong |= keep & ((t < 0) | (t >= classes));
    }
    return wrong ? -1 : (Py_ssize_t)kept;
}
#endif

#define SHARED(name) CE_CAT3(name, CE_ISA, f32)
static const ce_primitives FN(table) = {
    EXP_ONE,
    FN(rows_max),     FN(row_find),      FN(rows_exp_sum),  FN(row_gap_dot), FN(row_sum),
    FN(row_dot),      FN(row_scale),     FN(row_affine),       FN(rows_grad),    FN(row_sigmoid),  FN(tile_max),
    FN(tile_exp_sum), FN(tile_gap_dot),  FN(tile_sum),         FN(tile_grad),   FN(transpose),
    FN(copy_runs),    FN(label_lanes),   FN(narrow),           FN(widen),       FN(settle),
    SHARED(add),      SHARED(coefficients), SHARED(losses), SHARED(labels_kept),
};
#undef SHARED
