/* Vector vocabulary: NEON, what every aarch64 has. */
#if CE_F32
#define VEC float32x4_t
#define LANES 4
#define LOAD(p) vld1q_f32(p)
#define STORE(p, v) vst1q_f32(p, v)
#define SET1(s) vdupq_n_f32(s)
#define FMA(a, b, c) vfmaq_f32(c, a, b)
#define FMSUB(a, b, c) vfmaq_f32(-(c), a, b)
#define MAX(x, m) vmaxnmq_f32(x, m) /* the number, where one is NaN */
#define SELECT_EQ(a, b, x, y) vbslq_f32(vceqq_f32(a, b), x, y)
static const uint32_t FN(lane_bits)[4] = {1, 2, 4, 8};
#define EQ_BITS(a, b) ((unsigned)vaddvq_u32(vandq_u32(vceqq_f32(a, b), vld1q_u32(FN(lane_bits)))))

typedef struct {
    float64x2_t low, high;
} CE_CAT3(acc, CE_ISA, CE_TAG);
#define ACC CE_CAT3(acc, CE_ISA, CE_TAG)
#define ACC_ZERO {vdupq_n_f64(0), vdupq_n_f64(0)}
#define ACC_ADD(acc, v)                                     \
    do {                                                    \
        const VEC v_ = (v);                                 \
        acc.low += vcvt_f64_f32(vget_low_f32(v_));          \
        acc.high += vcvt_high_f64_f32(v_);                  \
    } while (0)
#define ACC_STORE(p, acc) (vst1q_f64(p, acc.low), vst1q_f64((p) + 2, acc.high))

#define EXP_STEPS 1
CE_INLINE VEC FN(exp_scale)(VEC d, VEC cut, VEC z, VEC p)
{
    /* 2^EXP_BIAS * 2^n, normal for every n >= -190 */
    const VEC scale = vreinterpretq_f32_u32(
        vaddq_u32(vshlq_n_u32(vreinterpretq_u32_f32(z), 23), vdupq_n_u32((127u + 64u) << 23)));
    const uint32x4_t bits = vreinterpretq_u32_f32(FMA(scale, p, scale));
    return vreinterpretq_f32_u32(vbicq_u32(bits, vcltq_f32(d, cut)));
}

#define SQUARE 4
CE_INLINE void FN(transpose_square)(const T *src, Py_ssize_t src_step, T *dst, Py_ssize_t dst_step)
{
#define ROW(k) LOAD((const T *)((const char *)src + (k) * src_step))
#define OUT(k, low, high) STORE((T *)((char *)dst + (k) * dst_step), vcombine_f32(low, high))
    const float32x4x2_t ab = vtrnq_f32(ROW(0), ROW(1)), cd = vtrnq_f32(ROW(2), ROW(3));
    OUT(0, vget_low_f32(ab.val[0]), vget_low_f32(cd.val[0]));
    OUT(1, vget_low_f32(ab.val[1]), vget_low_f32(cd.val[1]));
    OUT(2, vget_high_f32(ab.val[0]), vget_high_f32(cd.val[0]));
    OUT(3, vget_high_f32(ab.val[1]), vget_high_f32(cd.val[1]));
#undef ROW
#undef OUT
}
#else
#define VEC float64x2_t
#define LANES 2
#define LOAD(p) vld1q_f64(p)
#define STORE(p, v) vst1q_f64(p, v)
#define SET1(s) vdupq_n_f64(s)
#define FMA(a, b, c) vfmaq_f64(c, a, b)
#define FMSUB(a, b, c) vfmaq_f64(-(c), a, b)
#define MAX(x, m) vmaxnmq_f64(x, m)
#define SELECT_EQ(a, b, x, y) vbslq_f64(vceqq_f64(a, b), x, y)
static const uint64_t FN(lane_bits)[2] = {1, 2};
#define EQ_BITS(a, b) ((unsigned)vaddvq_u64(vandq_u64(vceqq_f64(a, b), vld1q_u64(FN(lane_bits)))))


#define EXP_STEPS 1
CE_INLINE VEC FN(exp_scale)(VEC d, VEC cut, VEC z, VEC p)
{
    /* 2^EXP_BIAS * 2^n, normal for every n >= -1150 */
    const VEC scale = vreinterpretq_f64_u64(
        vaddq_u64(vshlq_n_u64(vreinterpretq_u64_f64(z), 52), vdupq_n_u64((uint64_t)(1023 + 128) << 52)));
    const uint64x2_t bits = vreinterpretq_u64_f64(FMA(scale, p, scale));
    return vreinterpretq_f64_u64(vbicq_u64(bits, vcltq_f64(d, cut)));
}

#define SQUARE 2
CE_INLINE void FN(transpose_square)(const T *src, Py_ssize_t src_step, T *dst, Py_ssize_t dst_step)
{
    const VEC a = LOAD(src), b = LOAD((const T *)((const char *)src + src_step));
    STORE(dst, vtrn1q_f64(a, b));
    STORE((T *)((char *)dst + dst_step), vtrn2q_f64(a, b));
}
#endif
#define TRANSPOSE(src, src_step, dst, dst_step) FN(transpose_square)(src, src_step, dst, dst_step)
#define STREAM(p, v) STORE(p, v)
