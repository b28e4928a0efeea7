/* Vocabulary: a vector of one number, in plain C. For processors and compilers that have no vocabulary of their own.
 *
 * What the words of a vocabulary mean is written here. It is compiled twice, with CE_F32 1 (T is float) and 0 (double).
 * Words that only float32 vectors of several lanes need:
 *     WIDE            a vector of LANES/2 float64 numbers
 *     WIDEN_LOW(v), WIDEN_HIGH(v), WIDE_STORE(p, w)     the lower and the upper half of v as a WIDE; stores a WIDE
 * Optional words, which vector_math.h replaces or does without where they are missing:
 *     ADD_BY_EQ(a, b, x, where, y, unless)    add x to `where` in the lanes where a == b, y to `unless` in the others
 *     ADD_OR_COUNT(d, y, sum, ones)           where d is 0, count it in `ones`, which is of type ONES and begins with
 *                                             ONES_ZERO; add y to `sum` in the other lanes. COUNTED(ones) is how many
 *     QUOTIENT(d, inverse)    d / inverse->temperature, rounded once. Needed where FMA is not fused
 *     ADD_NOW(sum)    tells the compiler to compute `sum` where this is written
 *     TOGETHER        how many vectors take turns when exponentials are computed: 1 or 2. Registers must suffice
 *     LOAD_PART(p, n, fill), STORE_PART(p, v, n)   only the first n < LANES numbers, no memory after them
 *     FROM_F16(p), TO_F16(p, v)       float16 numbers at p as a float32 vector; rounds to nearest even and stores
 *     STREAM_F16(p, v), STREAM_BF16(p, v)     the same past the caches; p is aligned to half a vector
 *     LARGEST(v), TOTAL(v), ACC_SUM(acc)      over the lanes
 *     ALIGN_FROM      the length from which rows are worked on in aligned vectors
 *     SQUARE          with transpose_square(src, src_stride, dst, dst_stride) for SQUARE x SQUARE numbers */
#define VEC T /* must know + - * / */
#define LANES 1
#define LOAD(p) (*(p))
#define STORE(p, v) (*(p) = (v))
#define STREAM(p, v) STORE(p, v) /* past the caches; p is aligned to a vector */
#define SET1(s) ((T)(s))
#define FMA(a, b, c) ((a) * (b) + (c)) /* fused where that is fast */
#define FMSUB(a, b, c) ((a) * (b) - (c))
#define QUOTIENT(d, inverse) ((T)((d) / (inverse)->temperature))
#define MAX(x, m) ((x) > (m) ? (x) : (m)) /* m where x is NaN */
#define SELECT_EQ(a, b, x, y) ((a) == (b) ? (x) : (y)) /* in each lane */
#define EQ_BITS(a, b) ((unsigned)((a) == (b))) /* bit k: lane k */
#define FLUSHED(v, below) (fabs(v) < (below) ? copysign((T)0, v) : (v)) /* 0 with its sign where |v| < below */
#define TIMES_FROM(least, s, factor) ((s) >= (least) ? (s) * (factor) : 0) /* s * factor where s >= least, else 0 */

#define EXP_STEPS 1 /* a power of 2 for which vector_math.h has a polynomial */

/* EXP_ONE * 2^n * (1 + p), or 0 where d < cut; NaN where d is NaN. The low bits of z are n * EXP_STEPS, in two's
 * complement. It is called for every n; where d >= cut, EXP_ONE * 2^n is normal. */
CE_INLINE VEC FN(exp_scale)(VEC d, VEC cut, VEC z, VEC p)
{
#if CE_F32
    uint32_t bits;
    memcpy(&bits, &z, sizeof bits);
    bits = (bits << 23) + ((127u + EXP_BIAS) << 23);
#else
    uint64_t bits;
    memcpy(&bits, &z, sizeof bits);
    bits = (bits << 52) + ((uint64_t)(1023 + EXP_BIAS) << 52);
#endif
    T scale;
    memcpy(&scale, &bits, sizeof scale);
    return d < cut ? (T)0 : FMA(scale, p, scale);
}
