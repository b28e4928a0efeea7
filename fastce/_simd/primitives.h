/* What Cython sees of the C code: one table of vector primitives for each dtype and instruction set. */
#ifndef FASTCE_PRIMITIVES_H
#define FASTCE_PRIMITIVES_H

enum { CE_MAX_LANES = 16 }; /* of the widest vector; every vector's lanes divide it */

/* How `base` is laid out: all ones, one number for each class, or one for each element. */
enum { CE_ONES = 0, CE_BY_CLASS = 1, CE_BY_ELEMENT = 2 };

/* How a gradient's e is made of its source: src / exp_one, exp(src - shift) or src - shift. */
enum { CE_STORED = 0, CE_EXP = 1, CE_DIFFERENCE = 2 };

/* What numbers can be converted from: the dtypes of _request.pxd, in that order. */
enum {
    CE_FROM_I8 = 1, CE_FROM_I16, CE_FROM_I32, CE_FROM_I64, CE_FROM_U8, CE_FROM_U16, CE_FROM_U32, CE_FROM_U64,
    CE_FROM_F32, CE_FROM_F64
};

typedef struct {
    double exp_one; /* Stored exponentials are multiplied by this power of 2. */
#define PRIMITIVE(type, name, parameters) type(*name) parameters;
#define SHARED PRIMITIVE
#include "primitives.inc"
} ce_primitives;

#endif
