/* Vector vocabulary of a vector of one: plain C, for processors and compilers that have no vocabulary of their own. */
#define VEC T
#define LANES 1
#define LOAD(p) (*(p))
#define STORE(p, v) (*(p) = (v))
#define STREAM(p, v) STORE(p, v)
#define SET1(s) ((T)(s))
#define FMA(a, b, c) ((a) * (b) + (c))
#define FMSUB(a, b, c) ((a) * (b) - (c))
#define MAX(x, m) ((x) > (m) ? (x) : (m)) /* m where x is NaN */
#define SELECT_EQ(a, b, x, y) ((a) == (b) ? (x) : (y))
#define EQ_BITS(a, b) ((unsigned)((a) == (b)))
#if CE_F32
#define ACC double
#define ACC_ZERO 0
#define ACC_ADD(acc, v) (acc += (v))
#define ACC_STORE(p, acc) (*(p) = (acc))
#endif
#define EXP_STEPS 1
CE_INLINE VEC FN(exp_scale)(VEC d, VEC cut, VEC z, VEC p)
{
#if CE_F32
    uint32_t bits; /* 2^EXP_BIAS * 2^n, normal for every n >= -190 */
    memcpy(&bits, &z, sizeof bits);
    bits = (bits << 23) + ((127u + 64u) << 23);
#else
    uint64_t bits; /* 2^EXP_BIAS * 2^n, normal for every n >= -1150 */
    memcpy(&bits, &z, sizeof bits);
    bits = (bits << 52) + ((uint64_t)(1023 + 128) << 52);
#endif
    T scale;
    memcpy(&scale, &bits, sizeof scale);
    return d < cut ? (T)0 : FMA(scale, p, scale);
}
