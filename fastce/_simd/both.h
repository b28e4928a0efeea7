/* Compiles the primitives for one instruction set: those that both dtypes share, and the others for each dtype.
 *
 * EXP_ONE is 2^EXP_BIAS and EXP_UNSCALE its reciprocal: exp in vector_math.h returns EXP_ONE times the exponential. */
#define CE_TAG shared
#include "states.h"
#undef CE_TAG

#define CE_TAG f32
#define CE_F32 1
#define T float
#define EXP_BIAS 64
#define EXP_ONE 0x1p+64f
#define EXP_UNSCALE 0x1p-64f
#include "dtype.h"

#define CE_TAG f64
#define CE_F32 0
#define T double
#define EXP_BIAS 128
#define EXP_ONE 0x1p+128
#define EXP_UNSCALE 0x1p-128
#include "dtype.h"

#undef CE_VOCABULARY
#undef CE_ISA
