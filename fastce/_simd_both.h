/* Compiles _simd_body.h for float32 and float64 on the vocabulary of one instruction set. */
#define CE_F32 1
#define CE_TAG f32
#define T float
#define EXP_ONE 0x1p+64f /* 2^EXP_BIAS, see exp in _simd_body.h */
#define EXP_UNSCALE 0x1p-64f
#include CE_VOCABULARY
#include "_simd_body.h"
#include "_simd_undef.h"
#undef EXP_UNSCALE
#undef EXP_ONE
#undef T
#undef CE_TAG
#undef CE_F32

#define CE_F32 0
#define CE_TAG f64
#define T double
#define EXP_ONE 0x1p+128
#define EXP_UNSCALE 0x1p-128
#include CE_VOCABULARY
#include "_simd_body.h"
#include "_simd_undef.h"
#undef EXP_UNSCALE
#undef EXP_ONE
#undef T
#undef CE_TAG
#undef CE_F32
