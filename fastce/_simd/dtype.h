/* Compiles the primitives for one dtype and one instruction set, and makes their table. T is the dtype, and VEC a
 * vector of LANES numbers of it. The results depend on the instruction set, but never on the alignment of the
 * arguments. */
#include CE_VOCABULARY

CE_ASSERT(LANES <= CE_MAX_LANES, "the width of a tile and the tables of lane numbers are made for CE_MAX_LANES");
CE_ASSERT(LANES >= 1 && (LANES & (LANES - 1)) == 0, "LANES is a power of 2: lanes are added by halves");
CE_ASSERT(sizeof(VEC) == LANES * sizeof(T), "a vector is LANES numbers of memory");

#include "vector_math.h"
#include "rows.h"
#include "tiles.h"
#include "curvature.h"
#include "two_term.h"
#include "elements.h"
#include "jacobians.h"
#include "argmax.h"
#include "entropy.h"
#include "copies.h"
#include "divergence.h"

static const ce_primitives FN(table) = {
    EXP_ONE,
#define PRIMITIVE(type, name, parameters) FN(name),
#define SHARED(type, name, parameters) CE_FN(name, CE_ISA, shared),
#define SINGLE(type, name, parameters) CE_FN(name, CE_ISA, f32),
#include "primitives.inc"
};

#include "undef.h"
