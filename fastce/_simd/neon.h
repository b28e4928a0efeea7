/* Vocabulary: NEON, which every aarch64 processor has. */
#if CE_F32
#define VEC float32x4_t
#define LANES 4
#define MM(name) name##_f32
#else
#define VEC float64x2_t
#define LANES 2
#define MM(name) name##_f64
#endif
#define LOAD(p) MM(vld1q)(p)
#define STORE(p, v) MM(vst1q)(p, v)
#define STREAM(p, v) STORE(p, v)
#define SET1(s) MM(vdupq_n)(s)
#define FMA(a, b, c) MM(vfmaq)(c, a, b)
#define FMSUB(a, b, c) MM(vfmaq)(-(c), a, b)
#define MAX(x, m) MM(vmaxnmq)(x, m)
#define SELECT_EQ(a, b, x, y) MM(vbslq)(MM(vceqq)(a, b), x, y)

#define TIMES_FROM(least, s, factor) MM(vbslq)(MM(vcgeq)(s, least), (s) * (factor), SET1(0))
#define FLUSHED(v, below) FN(flushed)(v, below)
CE_INLINE VEC FN(flushed)(VEC v, VEC below)
{
#if CE_F32
    const uint32x4_t size = vandq_u32(vcaltq_f32(v, below), vdupq_n_u32(0x7fffffffu));
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(v), size));
#else
    const uint64x2_t size = vandq_u64(vcaltq_f64(v, below), vdupq_n_u64(0x7fffffffffffffffu));
    return vreinterpretq_f64_u64(vbicq_u64(vreinterpretq_u64_f64(v), size));
#endif
}

#define EXP_STEPS 1
#if CE_F32
static const uint32_t FN(lane_bits)[LANES] = {1, 2, 4, 8};
#define EQ_BITS(a, b) ((unsigned)vaddvq_u32(vandq_u32(vceqq_f32(a, b), vld1q_u32(FN(lane_bits)))))

#define FROM_F16(p) vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)))
#define TO_F16(p, v) vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v)))
#define WIDE float64x2_t
#define WIDEN_LOW(v) vcvt_f64_f32(vget_low_f32(v))
#define WIDEN_HIGH(v) vcvt_high_f64_f32(v)
#define WIDE_STORE(p, v) vst1q_f64(p, v)

CE_INLINE VEC FN(exp_scale)(VEC d, VEC cut, VEC z, VEC p)
{
    const VEC scale = vreinterpretq_f32_u32(
        vaddq_u32(vshlq_n_u32(vreinterpretq_u32_f32(z), 23), vdupq_n_u32((127u + EXP_BIAS) << 23)));
    const uint32x4_t bits = vreinterpretq_u32_f32(FMA(scale, p, scale));
    return vreinterpretq_f32_u32(vbicq_u32(bits, vcltq_f32(d, cut)));
}
#else
static const uint64_t FN(lane_bits)[LANES] = {1, 2};
#define EQ_BITS(a, b) ((unsigned)vaddvq_u64(vandq_u64(vceqq_f64(a, b), vld1q_u64(FN(lane_bits)))))

CE_INLINE VEC FN(exp_scale)(VEC d, VEC cut, VEC z, VEC p)
{
    const VEC scale = vreinterpretq_f64_u64(
        vaddq_u64(vshlq_n_u64(vreinterpretq_u64_f64(z), 52), vdupq_n_u64((uint64_t)(1023 + EXP_BIAS) << 52)));
    const uint64x2_t bits = vreinterpretq_u64_f64(FMA(scale, p, scale));
    return vreinterpretq_f64_u64(vbicq_u64(bits, vcltq_f64(d, cut)));
}
#endif

#define SQUARE LANES
CE_INLINE void FN(transpose_square)(const T *src, Py_ssize_t src_stride, T *dst, Py_ssize_t dst_stride)
{
#define ROW(k) LOAD((const T *)ce_at(src, (k) * src_stride))
#define OUT(k, v) STORE((T *)ce_at(dst, (k) * dst_stride), v)
#if CE_F32
    const float32x4x2_t ab = vtrnq_f32(ROW(0), ROW(1)), cd = vtrnq_f32(ROW(2), ROW(3));
    OUT(0, vcombine_f32(vget_low_f32(ab.val[0]), vget_low_f32(cd.val[0])));
    OUT(1, vcombine_f32(vget_low_f32(ab.val[1]), vget_low_f32(cd.val[1])));
    OUT(2, vcombine_f32(vget_high_f32(ab.val[0]), vget_high_f32(cd.val[0])));
    OUT(3, vcombine_f32(vget_high_f32(ab.val[1]), vget_high_f32(cd.val[1])));
#else
    const VEC a = ROW(0), b = ROW(1);
    OUT(0, vtrn1q_f64(a, b));
    OUT(1, vtrn2q_f64(a, b));
#endif
#undef ROW
#undef OUT
}
