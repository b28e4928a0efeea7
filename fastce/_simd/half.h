/* float16 and bfloat16 numbers, given by their bits, to and from float32. Compilers vectorise loops over them. */

CE_INLINE float ce_as_float(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

CE_INLINE uint32_t ce_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

CE_INLINE float ce_from_bf16(uint16_t half) { return ce_as_float((uint32_t)half << 16); }

CE_INLINE float ce_from_f16(uint16_t half)
{
    /* With the exponent where float32 has it, but 112 too small. The fraction of a subnormal number counts from 2^-14:
     * that is added as a first digit, and subtracted. */
    const uint32_t bits = (half & 0x7fffu) << 13;
    const uint32_t subnormal = ce_bits(ce_as_float(bits + (113u << 23)) - 0x1p-14f);
    const uint32_t normal = bits + (bits >= 31u << 23 ? 224u << 23 : 112u << 23); /* infinities and NaN */
    return ce_as_float((bits < 1u << 23 ? subnormal : normal) | (half & 0x8000u) << 16);
}

CE_INLINE uint16_t ce_to_bf16(float x)
{
    const uint32_t bits = ce_bits(x), nearest = bits + 0x7fffu + (bits >> 16 & 1);
    return (uint16_t)((x == x ? nearest : bits | 1u << 22) >> 16);
}

CE_INLINE uint16_t ce_to_f16(float x)
{
    const uint32_t all = ce_bits(x), bits = all & 0x7fffffffu;
    /* The addition of 1/2 rounds to the multiples of 2^-24, which float16 counts below 2^-14. */
    const uint32_t subnormal = ce_bits(ce_as_float(bits) + 0.5f) - (126u << 23);
    const uint32_t normal = (bits - (112u << 23) + 0xfffu + (bits >> 13 & 1)) >> 13;
    const uint32_t large = bits > 255u << 23 ? 0x7e00u : 0x7c00u;
    return (uint16_t)((bits >= 143u << 23 ? large : bits < 113u << 23 ? subnormal : normal) | (all >> 16 & 0x8000u));
}
