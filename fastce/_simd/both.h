/* Compiles the primitives for one instruction set: those that both dtypes share, and the others for each of them.
 *
 * Exponentials are computed and stored times EXP_ONE = 2^EXP_BIAS, see exp in vector_math.h. */
#define CE_TAG shared
#include "states.h"
#undef CE_TAG

#define CE_TAG f32
#define CE_F32 1
#define T float
#define EXP_BIAS 64
#define EXP_ONE CE_CAT3(0x1p+, EXP_BIAS, f)
#define EXP_UNSCALE CE_CAT3(0x1p-, EXP_BIAS, f)
#include "dtype.h"

#define CE_TAG f64
#define CE_F32 0
#define T double
#define EXP_BIAS 128
#define EXP_ONE CE_CAT3(0x1p+, EXP_BIAS, )
#define EXP_UNSCALE CE_CAT3(0x1p-, EXP_BIAS, )
#include "dtype.h"
