/* What Cython sees of the C code: one table of vector primitives for each dtype and instruction set. */
#ifndef FASTCE_PRIMITIVES_H
#define FASTCE_PRIMITIVES_H

/* Sums of gaps, row_max - x, that no target multiplies are in this unit: those of numbers that stand for -inf may be more
 * than the dtype holds, though their part of the loss is not. 2^20 gaps of the largest float64 do not overflow, and what
 * a float32 gap loses by underflow is nothing after a division by the lowest temperature. */
#define CE_GAP_UNIT 0x1p-22

enum { CE_MAX_LANES = 16 }; /* of the widest vector; every vector's lanes divide it */

/* How `base` is laid out: all ones, one number for each class, or one for each element. */
enum { CE_ONES = 0, CE_BY_CLASS = 1, CE_BY_ELEMENT = 2 };

/* How a gradient's e is made of its source: src / exp_one, exp(src - shift) or src - shift. */
enum { CE_STORED = 0, CE_EXP = 1, CE_DIFFERENCE = 2 };

enum { CE_TWO_TERM_ROWS = 112 }; /* that are worked on at a time, at most */

/* Sums of each row, and what their additions lost. */
typedef struct {
    double total[CE_TWO_TERM_ROWS], lost[CE_TWO_TERM_ROWS];
} ce_row_sums;

/* What is fetched into the cache: as many rows and classes as are worked on meanwhile. Where classes are contiguous,
 * class_stride is the size of a number. Strides of 0 fetch nothing more than data. */
typedef struct {
    const char *data;
    Py_ssize_t row_stride, class_stride;
    int contiguous;
} ce_fetched;

/* The two-term form of a softmax: some rows, and a block of their classes. What is scaled is multiplied by
 * CE_ODDS_ONE. */
enum { CE_ODDS_ONE = 1 << 24 };
typedef struct {
    Py_ssize_t rows;
    Py_ssize_t pitch; /* numbers from a class to the next, or if `along` from a row to the next */
    int along;        /* the classes of a row are contiguous, and padded to whole vectors: x with -inf, c with 0 */
    ce_fetched next_x, next_c, dst; /* the next group's logits and targets, and the place of this group's gradient */
    /* Of the dtype, one number for each element: */
    void *x;           /* logits, then stored exponentials of x - second */
    void *c;           /* targets */
    const void *not_c; /* 1 - c; may be NULL */
    void *h;           /* weight * ((1 - c) * odds - c), scaled, then the gradient; may be not_c */
    /* For each class: */
    const void *weight; /* may be NULL */
    /* For each row: */
    void *row_max;   /* the maximum */
    void *second;    /* the runner-up */
    void *first_max; /* where in the last block a larger maximum was found, or -1 */
    void *ratio;     /* exp(second - row_max), scaled */
    void *total;     /* exp_one * (1 + tail) */
    void *scale;     /* of the gradient */
    void *slope;     /* what the gradient subtracts for each exponential */
    /* In float64, sums of all but the first maximum: */
    ce_row_sums exp;     /* of the exponentials, */
    ce_row_sums a_sum;   /* a = weight * c, scaled, */
    ce_row_sums gap;     /* a * (row_max - x), scaled, */
    ce_row_sums h_sum;   /* h, */
    ce_row_sums log_sum; /* and weight * (1 - c) * log(1 + odds), scaled */
    /* And one number for each row: */
    double a_max[CE_TWO_TERM_ROWS], b_max[CE_TWO_TERM_ROWS]; /* a and weight * (1 - c) of the first maximum */
    double grad_max[CE_TWO_TERM_ROWS];                       /* and its gradient */
    double factor[CE_TWO_TERM_ROWS], sample[CE_TWO_TERM_ROWS]; /* of the gradient, of the loss */
    double tail[CE_TWO_TERM_ROWS];                             /* scaled; NaN if the row has no result */
    double loss[CE_TWO_TERM_ROWS];
    double below; /* gradients smaller than this become 0; 0: none */
} ce_two_term;

/* KL(q || p) with p = softmax(x / temperature): some rows, and a block of their classes. What is scaled is multiplied
 * by CE_ODDS_ONE. */
enum { CE_DIVERGENCE_ROWS = 112 }; /* that are worked on at a time, at most */
typedef struct {
    Py_ssize_t rows;
    int along;     /* the classes of a row are contiguous, else the rows of a class, padded to whole vectors */
    int of_logits; /* q = softmax(t / temperature), else t is temperature * log(e_t) and q = e_t / mass */
    double temperature;
    /* Of the dtype, one number for each element. Steps are bytes from row to row if `along`, else from class to class.
     * grad is NULL if it is not wanted, and may be one of the others. */
    const void *x, *t;
    const void *e_x, *e_t; /* stored exponentials, NULL to compute them; or e_t are the targets */
    void *grad;
    Py_ssize_t x_step, t_step, e_x_step, e_t_step, grad_step;
    /* For each row, of the dtype; u is ((x - x_shift) - (t - t_shift) - gap) / temperature - offset: */
    void *x_shift, *t_shift, *gap, *offset;
    void *x_top, *t_top;       /* x_max and t_max */
    void *p_factor, *q_factor; /* scaled p and q are these times e_x and e_t */
    void *scale;               /* of the gradient */
    /* For each row, in float64: */
    double x_max[CE_DIVERGENCE_ROWS], x_tail[CE_DIVERGENCE_ROWS]; /* of the logits */
    double t_max[CE_DIVERGENCE_ROWS], t_tail[CE_DIVERGENCE_ROWS]; /* of the target logits, else 0 and mass - 1 */
    double mass[CE_DIVERGENCE_ROWS], mass_lost[CE_DIVERGENCE_ROWS]; /* sum of targets that are no logits, two words */
    double factor[CE_DIVERGENCE_ROWS];                            /* of the gradient, without mass */
    double loss[CE_DIVERGENCE_ROWS];
    ce_row_sums sum; /* of q * (exp(u) - 1 - u) with u = log(p) - log(q), scaled */
} ce_divergence;

/* What numbers can be converted from: the dtypes of _request.pxd, in that order. */
enum {
    CE_FROM_I8 = 1, CE_FROM_I16, CE_FROM_I32, CE_FROM_I64, CE_FROM_U8, CE_FROM_U16, CE_FROM_U32, CE_FROM_U64,
    CE_FROM_F32, CE_FROM_F64, CE_FROM_F16, CE_FROM_BF16
};

typedef struct {
    double exp_one; /* Stored exponentials are multiplied by this power of 2. */
#define PRIMITIVE(type, name, parameters) type(*name) parameters;
#define SHARED PRIMITIVE
#define SINGLE PRIMITIVE
#include "primitives.inc"
} ce_primitives;

#endif
