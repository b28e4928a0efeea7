/* Compiles _simd_body.h for float32 and float64 on the vocabulary of one instruction set. */
#define CE_F32 1
#define CE_TAG f32
#define T float
#include CE_VOCABULARY
#include "_simd_body.h"
#include "_simd_undef.h"
#undef T
#undef CE_TAG
#undef CE_F32

#define CE_F32 0
#define CE_TAG f64
#define T double
#include CE_VOCABULARY
#include "_simd_body.h"
#include "_simd_undef.h"
#undef T
#undef CE_TAG
#undef CE_F32
