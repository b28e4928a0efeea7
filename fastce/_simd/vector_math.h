/* What the loops share: exp and log1p of vectors, accumulators, parts of vectors. */

#if CE_F32
#define EPSILON FLT_EPSILON
#define LOG2E 0x1.715476p+0f
#define ROUNDER (0x1.8p+23f / EXP_STEPS) /* Adding it rounds to a multiple of 1/EXP_STEPS, counted in the low bits. */
#define EXP_CUT (-131)
#define SMALLEST_EXPONENT (-126)
#else
#define EPSILON DBL_EPSILON
#define LOG2E 0x1.71547652b82fep+0
#define ROUNDER (0x1.8p+52 / EXP_STEPS)
#define EXP_CUT (-796)
#define SMALLEST_EXPONENT (-1022)
#endif
CE_ASSERT(EXP_BIAS * 1000 + EXP_CUT * 1443 > SMALLEST_EXPONENT * 1000, "EXP_ONE * exp(EXP_CUT) is a normal number");

/* EXP_ONE * exp(d) of `count` vectors, 1 or 2, for d <= 0. NaN stays NaN.
 *
 * Let n be d*log2(e), rounded to a multiple of 1/EXP_STEPS, and r = d - n*ln(2). Then exp(d) = 2^n * exp(r), and
 * exp(r) is computed as 1 + r + r^2*Q(r). The polynomial Q is nearly minimax for |r| <= ln(2)/(2*EXP_STEPS).
 * bench/minimax.py measures the errors given below and finds such coefficients. The vocabulary's exp_scale multiplies
 * by 2^n and EXP_ONE.
 *
 * EXP_ONE keeps the results normal down to d = EXP_CUT, so sums of exponentials are accurate even if the exponentials
 * themselves would be subnormal. Multiplying by EXP_UNSCALE rounds once, with gradual underflow. Below EXP_CUT the
 * result is 0: the sum of 2^20 such terms is less than the smallest subnormal number. No operation underflows there,
 * because underflow is slow on many processors. Masked logits (-inf) therefore cost no more than others.
 *
 * Two vectors take turns at every step, because each step of one waits for the step before. The coefficients c of Q
 * begin with that of the highest power. */
CE_INLINE void FN(exps)(const VEC *d, VEC *e, const int count)
{
#define EACH for (int k = 0; k < count; k++)
    const VEC rounder = SET1(ROUNDER);
    VEC z[2], n[2], r[2], p[2];
    EACH z[k] = FMA(d[k], SET1(LOG2E), rounder);
    EACH n[k] = z[k] - rounder;
#if CE_F32 && EXP_STEPS > 1
    /* float32(ln 2) is ln 2 to 28.4 bits, so one step is enough, with a fused multiply-add. */
#define LN2 0x1.62e43p-1f
    EACH r[k] = FMA(n[k], SET1(-LN2), d[k]);
#elif CE_F32
    EACH r[k] = FMA(n[k], SET1(-0x1.7f7d1cp-20f), FMA(n[k], SET1(-0x1.62e4p-1f), d[k]));
#elif EXP_STEPS > 1
    /* float64(ln 2) is ln 2 to 54.7 bits. d = x - row_max was rounded to 53 bits and loses little more here. */
#define LN2 0x1.62e42fefa39efp-1
    EACH r[k] = FMA(n[k], SET1(-LN2), d[k]);
#else
    EACH r[k] = FMA(n[k], SET1(-0x1.a39ef35793c76p-33), FMA(n[k], SET1(-0x1.62e42feep-1), d[k]));
#endif
#if CE_F32 && EXP_STEPS == 16 /* error 0.0135 eps (python bench/minimax.py) */
    const VEC c[] = {SET1(0x1.55564ap-3f), SET1(0x1.00022p-1f)};
#elif CE_F32 && EXP_STEPS == 8 /* error 0.217 eps */
    const VEC c[] = {SET1(0x1.5558a6p-3f), SET1(0x1.00087cp-1f)};
#elif CE_F32 && EXP_STEPS == 1 /* error 0.0305 eps */
    const VEC c[] = {SET1(0x1.6a2454p-10f), SET1(0x1.123a2p-7f),
                     SET1(0x1.5558f2p-5f), SET1(0x1.555492p-3f), SET1(0x1.fffffcp-2f)};
#elif !CE_F32 && EXP_STEPS == 16 /* error 0.0525 eps */
    const VEC c[] = {SET1(0x1.6c14c7ce4db17p-10), SET1(0x1.11123afcd49c0p-7),
                     SET1(0x1.55555558fcc27p-5), SET1(0x1.555555548f1f4p-3), SET1(0x1.fffffffffffb9p-2)};
#elif !CE_F32 && EXP_STEPS == 2 /* error 0.0698 eps */
    const VEC c[] = {SET1(0x1.71a9b57b00831p-19), SET1(0x1.a06fe7bd7ea6fp-16),
                     SET1(0x1.a01a18305a004p-13), SET1(0x1.6c16b8dcde999p-10), SET1(0x1.1111110f0d731p-7),
                     SET1(0x1.5555555600194p-5), SET1(0x1.555555555589ap-3), SET1(0x1.ffffffffffefcp-2)};
#elif !CE_F32 && EXP_STEPS == 1 /* error 0.05 eps */
    const VEC c[] = {SET1(0x1.ad9641515b7bap-26), SET1(0x1.28ad95ecdadedp-22),
                     SET1(0x1.71df170af496ep-19), SET1(0x1.a01999e7b13e2p-16), SET1(0x1.a01a01309a454p-13),
                     SET1(0x1.6c16c18436645p-10), SET1(0x1.1111111126a2ep-7), SET1(0x1.5555555550854p-5),
                     SET1(0x1.55555555554fep-3), SET1(0x1.000000000000ap-1)};
#else
#error "no polynomial for this EXP_STEPS"
#endif
    enum { COUNT = sizeof c / sizeof *c };
    EACH {
        /* Even and odd powers are summed apart, in half as many steps that wait for each other. */
        const VEC square = r[k] * r[k];
        VEC q0 = c[0], q1 = c[1];
        for (int j = 2; j < COUNT; j += 2) {
            q0 = FMA(square, q0, c[j]);
            if (j + 1 < COUNT)
                q1 = FMA(square, q1, c[j + 1]);
        }
        p[k] = FMA(square, COUNT % 2 ? FMA(r[k], q1, q0) : FMA(r[k], q0, q1), r[k]);
    }
    EACH e[k] = FN(exp_scale)(d[k], SET1((T)EXP_CUT), z[k], p[k]);
#undef EACH
}

CE_INLINE VEC FN(exp)(VEC d)
{
    VEC e;
    FN(exps)(&d, &e, 1);
    return e;
}

#ifdef QUOTIENT
typedef struct {
    double temperature, itself; /* and 1/temperature */
} FN(inverse);

CE_INLINE FN(inverse) FN(inverse_of)(double temperature)
{
    return (FN(inverse)){temperature, 1 / temperature};
}
#else
/* What LN2/ln(2) differs from 1 by. Where ln(2) is subtracted in two steps, that is nothing. */
#ifndef LN2
#define LN2_ERROR 0
#elif CE_F32
#define LN2_ERROR 2.7478e-9
#else
#define LN2_ERROR (-3.3457e-17)
#endif

/* 1/temperature as a sum of two numbers, multiplied by LN2/ln(2): the quotients are rounded to 24 or 53 bits already,
 * and `exps` would add to their error. */
typedef struct {
    VEC high, low;
} FN(inverse);

/* `low` is positive in the dtype, so that a difference of -inf times either is -inf. */
CE_INLINE FN(inverse) FN(inverse_of)(double temperature)
{
    T high = (T)(1 / temperature), low = (T)((fma(-(double)high, temperature, 1) + LN2_ERROR) / temperature);
    if (low <= 0) {
        high *= 1 - EPSILON;
        low = (T)((fma(-(double)high, temperature, 1) + LN2_ERROR) / temperature);
    }
    return (FN(inverse)){SET1(high), SET1(low)};
}

#define QUOTIENT(d, inverse) FMA(d, (inverse)->high, (d) * (inverse)->low)
#endif

/* d divided by the temperature, rounded once. `inverse` is NULL for a temperature of 1. */
CE_INLINE VEC FN(cooled)(VEC d, const FN(inverse) * inverse)
{
    if (inverse)
        d = QUOTIENT(d, inverse);
    return d;
}

#undef LN2
#undef LN2_ERROR
#undef LOG2E
#undef ROUNDER
#undef EXP_CUT
#undef SMALLEST_EXPONENT

/* k * log(1 + e) for 0 <= e <= 1, with a relative error below 2 eps, from s = k*e/(2 + e) and z = (s/k)^2. It is
 * 2*atanh(e/(2 + e)) for k = 1, and atanh(s) is computed as s + s^3*Q(s^2), with a nearly minimax polynomial Q. */
CE_INLINE VEC FN(log1p_scaled)(VEC s, VEC z)
{
#if CE_F32 /* error 0.0484 eps (python bench/minimax.py) */
    VEC q = FMA(z, SET1(0x1.1ee10ap-3f), SET1(0x1.1ebb4ap-3f));
    q = FMA(z, q, SET1(0x1.99d222p-3f));
    q = FMA(z, q, SET1(0x1.555502p-2f));
#else /* error 0.008 eps */
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

/* tanh(y)/y - 1 for |y| <= 5/8, from u = y^2: u*Q(u) with a nearly minimax polynomial Q. */
CE_INLINE VEC FN(tanh_excess)(VEC u)
{
#if CE_F32 /* error 0.038 eps of tanh(y) (python bench/minimax.py) */
    VEC q = FMA(u, SET1(-0x1.750ce4p-8f), SET1(0x1.51f8cep-6f));
    q = FMA(u, q, SET1(-0x1.b835a4p-5f));
    q = FMA(u, q, SET1(0x1.1106f6p-3f));
    q = FMA(u, q, SET1(-0x1.555532p-2f));
#else /* error 0.046 eps */
    VEC q = FMA(u, SET1(-0x1.0d98b40df1eeap-16), SET1(0x1.4389c0de2354p-14));
    q = FMA(u, q, SET1(-0x1.df523bf98618fp-13));
    q = FMA(u, q, SET1(0x1.3365ac4d150a9p-11));
    q = FMA(u, q, SET1(-0x1.7d689382b152dp-10));
    q = FMA(u, q, SET1(0x1.d6cf26874fddp-9));
    q = FMA(u, q, SET1(-0x1.226e161fce8c9p-7));
    q = FMA(u, q, SET1(0x1.664f477a63ac8p-6));
    q = FMA(u, q, SET1(-0x1.ba1ba1b503b01p-5));
    q = FMA(u, q, SET1(0x1.111111110ac94p-3));
    q = FMA(u, q, SET1(-0x1.55555555554ffp-2));
#endif
    return u * q;
}

/* Stored exponentials are multiplied by EXP_UNSCALE, which may round them to subnormal numbers, and by a. Where a is
 * more than 1, which would multiply the rounding error, it is multiplied by EXP_UNSCALE instead. Returns what the
 * exponentials are multiplied by. */
CE_INLINE VEC FN(unscale)(VEC *a)
{
    const VEC one = SET1(1), factor = SET1(EXP_UNSCALE), size = MAX(*a, SET1(0) - *a), large = MAX(size, one);
    *a = *a * SELECT_EQ(large, size, factor, one);
    return SELECT_EQ(large, size, one, factor);
}

/* How gradients a*e - b*base that are smaller than `below` are found. */
enum {
    FN(keep_all),
    FN(flush_exponentials), /* b is 0: the exponentials e are compared, which are not negative, with below/|a| */
    FN(flush_gradients)
};

/* Of rows with the same base for all classes. Where b is large, no difference from it is small, unless it is 0. */
CE_INLINE int FN(way_to_flush)(double below, double largest_b, double smallest_b)
{
    if (!(below > 0) || smallest_b * (EPSILON * EPSILON / 8) >= below)
        return FN(keep_all);
    return largest_b == 0 ? FN(flush_exponentials) : FN(flush_gradients);
}

/* The smallest stored exponential that is not flushed: rounded up. */
CE_INLINE VEC FN(least)(VEC a, double below)
{
    return SET1((T)(below * EXP_ONE * (1 + 4 * EPSILON))) / MAX(a, SET1(0) - a);
}

/* The gap between x and a maximum that is multiplied by CE_GAP_UNIT already, in that unit. */
CE_INLINE VEC FN(unit_gap)(VEC x, VEC scaled_max) { return FMA(x, SET1((T)-CE_GAP_UNIT), scaled_max); }

/* exp(u) - 1 - u for |u| <= 1/2, with square = u^2, computed as u^2*Q(u) with a nearly minimax polynomial Q. */
CE_INLINE VEC FN(excess)(VEC u, VEC square)
{
#if CE_F32 /* error 0.253 eps (python bench/minimax.py) */
    const VEC c[] = {SET1(0x1.a0a99p-13f), SET1(0x1.6e5934p-10f), SET1(0x1.11121ep-7f),
                     SET1(0x1.5553f2p-5f), SET1(0x1.555554p-3f),  SET1(0x1p-1f)};
#else /* error 0.016 eps */
    const VEC c[] = {SET1(0x1.61d899702cf23p-33), SET1(0x1.20113ecca526dp-29), SET1(0x1.ae643e6c6dea2p-26),
                     SET1(0x1.27e4602c23a49p-22), SET1(0x1.71de3a52fe7c7p-19), SET1(0x1.a01a01e9ffce5p-16),
                     SET1(0x1.a01a01a00f5a4p-13), SET1(0x1.6c16c16c07e21p-10), SET1(0x1.1111111111195p-7),
                     SET1(0x1.5555555555572p-5),  SET1(0x1.5555555555555p-3),  SET1(0x1p-1)};
#endif
    enum { COUNT = sizeof c / sizeof *c };
    VEC odd = c[0], even = c[1];
    for (int j = 2; j < COUNT; j += 2) {
        odd = FMA(square, odd, c[j]);
        even = FMA(square, even, c[j + 1]);
    }
    return square * FMA(u, odd, even);
}

/* base * gap, where 0 * inf is 0. */
CE_INLINE VEC FN(gap_term)(VEC base, VEC gap) { return SELECT_EQ(base, SET1(0), SET1(0), base * gap); }

/* ----- Defaults of the optional words of a vocabulary ----- */

#ifndef ADD_BY_EQ
#define ADD_BY_EQ(a, b, x, where, y, unless)                \
    do {                                                    \
        where = where + SELECT_EQ(a, b, x, SET1(0));        \
        unless = unless + SELECT_EQ(a, b, SET1(0), y);      \
    } while (0)
#endif

#ifndef ADD_OR_COUNT
#define ONES VEC
#define ONES_ZERO SET1(0)
#define ADD_OR_COUNT(d, y, sum, ones) ADD_BY_EQ(d, SET1(0), SET1(1), ones, y, sum)
#define COUNTED(ones) TOTAL(ones)
#endif

#ifndef ADD_NOW
#define ADD_NOW(sum) ((void)0)
#endif

#ifndef TOGETHER
#define TOGETHER 1
#endif

#ifndef ALIGN_FROM
#define ALIGN_FROM PTRDIFF_MAX
#endif

#ifndef LOAD_PART
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

/* ----- Accumulators -----
 * Each lane has a float64 sum whose error does not grow with the number of terms: float32 numbers are added in
 * float64, and float64 numbers together with what the additions lose. */
#if CE_F32 && LANES > 1
typedef struct {
    WIDE low, high;
} FN(acc);
#define ACC FN(acc)
#define ACC_ZERO {{0}, {0}}
#define ACC_ADD(acc, v)             \
    do {                            \
        const VEC v_ = (v);         \
        acc.low += WIDEN_LOW(v_);   \
        acc.high += WIDEN_HIGH(v_); \
    } while (0)
#define ACC_STORE(p, acc) (WIDE_STORE(p, acc.low), WIDE_STORE((p) + LANES / 2, acc.high))
#elif CE_F32
#define ACC double
#define ACC_ZERO 0
#define ACC_ADD(acc, v) (acc += (v))
#define ACC_STORE(p, acc) (*(p) = (acc))
#else
typedef struct {
    VEC total, lost;
} FN(acc);
#define ACC FN(acc)
#define ACC_ZERO {SET1(0), SET1(0)}
#define ACC_ADD(acc, v) CE_ADD_COMPENSATED(VEC, acc.total, acc.lost, v)
CE_INLINE void FN(acc_store)(double *p, ACC acc)
{
    double lost[LANES];
    STORE(p, acc.total);
    STORE(lost, acc.lost);
    for (int k = 0; k < LANES; k++)
        p[k] += lost[k] == lost[k] ? lost[k] : 0; /* NaN if the total is infinite */
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

/* A whole vector, or only its first n numbers if n < LANES: loaded, stored, or taken from a vector. The other lanes
 * become 0 and are not stored. */
CE_INLINE VEC FN(load_upto)(const T *p, Py_ssize_t n) { return n >= LANES ? LOAD(p) : LOAD_PART(p, n, 0); }
CE_INLINE void FN(store_upto)(T *p, VEC v, Py_ssize_t n)
{
    if (n >= LANES)
        STORE(p, v);
    else
        STORE_PART(p, v, n);
}
CE_INLINE VEC FN(first_lanes)(VEC v, Py_ssize_t n)
{
    T part[LANES];
    if (n >= LANES)
        return v;
    STORE(part, v);
    return LOAD_PART(part, n, 0);
}

/* The number of elements before the first aligned vector, at most n. */
CE_INLINE Py_ssize_t FN(to_line)(const T *p, Py_ssize_t n)
{
    const Py_ssize_t head = (Py_ssize_t)(-(uintptr_t)p % sizeof(VEC) / sizeof(T));
    return head < n ? head : n;
}
/* The same if alignment pays, else 0. A vector that straddles two cache lines takes two accesses, but a short row loses
 * more by the additional vector at its start. */
CE_INLINE Py_ssize_t FN(to_aligned)(const T *p, Py_ssize_t n) { return n >= ALIGN_FROM ? FN(to_line)(p, n) : 0; }

/* The number of each lane. */
static const T FN(iota)[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
CE_ASSERT(sizeof FN(iota) == CE_MAX_LANES * sizeof(T), "iota numbers the lanes of the widest vector");

/* The vector that begins at edge[CE_MAX_LANES - LANES + k] is 1 in its last k lanes and 0 in the others. */
static const T FN(edge)[] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                             1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
CE_ASSERT(sizeof FN(edge) == 2 * CE_MAX_LANES * sizeof(T), "edge has room for the widest vector, all 0 or all 1");
