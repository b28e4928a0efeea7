# cython: cdivision=True
# The functions of one row that other modules cimport (_kernels.pxd), for both dtypes from one text.
from cython cimport floating
from libc.math cimport exp, isfinite
from libc.stdint cimport int64_t

from ._job cimport own_dtype, rescaled
from ._primitives cimport CE_EXP, CE_STORED, ce_chosen_f32, ce_chosen_f64, ce_primitives, ce_tail_if_finite
from ._request cimport F32


cdef inline const ce_primitives *primitives(const floating *dtype) noexcept nogil:
    return ce_chosen_f32 if own_dtype(dtype) == F32 else ce_chosen_f64


cdef inline void row_stats(const floating *x, Py_ssize_t n, double *row_max, double *tail) noexcept nogil:
    cdef const ce_primitives *f = primitives(x)
    cdef Py_ssize_t j
    f.rows_max(x, 0, 1, n, row_max)
    f.rows_exp_sum(x, 0, NULL, 0, 1, n, CE_STORED, row_max, 1, 1, x, tail)
    tail[0] = ce_tail_if_finite(tail[0], row_max[0])
    if not isfinite(row_max[0]) and row_max[0] < 0:
        for j in range(n):
            if x[j] != x[j]:
                return
        tail[0] = -1


cdef inline void merged_stats(double *row_max, double *tail, double other_row_max, double other_tail) noexcept nogil:
    if other_row_max > row_max[0]:
        tail[0] = other_tail + rescaled(1 + tail[0], row_max[0], other_row_max, 1)
        row_max[0] = other_row_max
    else:
        tail[0] += rescaled(1 + other_tail, other_row_max, row_max[0], 1)


cdef inline double label_loss(double row_max, double tail, double x_label) noexcept nogil:
    cdef double mass = 1, linear = row_max - x_label, log_total, loss
    ce_chosen_f64.losses(1, &row_max, &tail, &mass, &linear, 1, 0, &log_total, &loss)
    return loss


cdef inline double row_loss(const floating *x, Py_ssize_t n, int64_t label) noexcept nogil:
    cdef double row_max, tail
    row_stats(x, n, &row_max, &tail)
    return label_loss(row_max, tail, x[label])


cdef inline void row_from_stats(const floating *src, int form, Py_ssize_t n, Py_ssize_t label, double e_label,
                                double row_max, double tail, double upstream, floating *grad) noexcept nogil:
    """The gradient from logits or stored exponentials."""
    cdef const ce_primitives *f = primitives(src)
    cdef double zero = 0, one = 1, log_total, loss, a, exact_grad
    f.coefficients(1, &row_max, &tail, &one, &zero, 1, 0, &one, &zero, &e_label, &upstream, &log_total, &loss, &a,
                   &exact_grad, NULL, NULL)
    f.rows_grad(src, 0, grad, 0, 1, n, form, &row_max, 1, &a, &zero, NULL, &label, &exact_grad, 0, 0)


cdef inline double row_loss_and_grad(const floating *x, Py_ssize_t n, Py_ssize_t label, double upstream,
                                     floating *grad) noexcept nogil:
    cdef const ce_primitives *f = primitives(x)
    cdef double row_max, tail, x_label = x[label]
    f.rows_max(x, 0, 1, n, &row_max)
    f.rows_exp_sum(x, 0, grad, 0, 1, n, CE_STORED, &row_max, 1, 1, x, &tail)
    tail = ce_tail_if_finite(tail, row_max)
    row_from_stats(grad, CE_STORED, n, label, grad[label]/f.exp_one, row_max, tail, upstream, grad)
    return label_loss(row_max, tail, x_label)


cdef inline void row_backward(const floating *x, Py_ssize_t n, int64_t label, double row_max, double tail,
                              double upstream, floating *grad) noexcept nogil:
    if 0 <= label < n:
        row_from_stats(x, CE_EXP, n, label, exp(x[label] - row_max), row_max, tail, upstream, grad)
    else:
        row_from_stats(x, CE_EXP, n, -1, 0, row_max, tail, upstream, grad)
