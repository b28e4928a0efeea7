# cython: cdivision=True
# The two-term form of a softmax, with its full Jacobian, in float64. With t the first maximum, m the runner-up,
# f_j = exp(x_j - m), r = exp(m - x_t), tail = r*sum f, s = 1 + tail, the odds o_j = p_j/(1 - p_j) = r*f_j/(s - r*f_j),
# h_j = b_j*o_j - a_j and H = sum h_j, where the sums are over j != t:
#
#     loss   = sum a_j*(log1p(tail) + (x_t - x_j)) + a_t*log1p(tail) + sum b_j*log1p(o_j) + b_t*log1p(1/tail)
#     grad_t = (b_t - a_t*tail - H)/s
#     grad_j = h_j - f_j*(r*(H - a_t) + b_t/sum f)/s
#
# Nothing divides by tail, which may underflow, and no two large numbers are subtracted. reference.py derives it.
from cython cimport floating
from libc.math cimport INFINITY, NAN, exp, isfinite, log, log1p

from ._blocks cimport store_block
from ._job cimport Job, Sum, add, set_sum, times, value
from ._sigmoid cimport TWO_TERM_BLOCK, Elements, load_elements

cdef struct TwoTermRow:
    Py_ssize_t first_max            # t
    double row_max                  # x_t
    double second                   # m
    bint alone                      # m is -inf: all other classes are masked
    bint bad                        # the row holds NaN or +inf, or only -inf
    double a                        # a_t
    double b                        # b_t
    double ratio                    # r
    double tail
    Sum others                      # sum f
    Sum h                           # H
    Sum loss

cdef inline void two_term_maxima(const Job *job, Py_ssize_t i, TwoTermRow *row) noexcept nogil:
    """The maximum and the runner-up."""
    cdef Elements e
    cdef Py_ssize_t j, k
    row.first_max, row.row_max, row.second, row.a, row.b, row.bad = -1, -INFINITY, -INFINITY, 0, 0, False
    for j from 0 <= j < job.request.classes by TWO_TERM_BLOCK:
        load_elements(job, i, j, &e)
        for k in range(e.n):
            if e.x[k] != e.x[k]:
                row.bad = True
            if e.x[k] > row.row_max:
                row.second, row.row_max, row.first_max, row.a, row.b = row.row_max, e.x[k], j + k, e.a[k], e.b[k]
            elif e.x[k] > row.second:
                row.second = e.x[k]
    row.bad = row.bad or not isfinite(row.row_max)
    row.alone = not row.second > -INFINITY
    row.ratio = 0 if row.alone else exp(row.second - row.row_max)

cdef inline void two_term_sums(const Job *job, Py_ssize_t i, TwoTermRow *row) noexcept nogil:
    """The sum f and what follows from it, then H and the loss."""
    cdef Elements e
    cdef double f, odds, log_odds, log_total
    cdef Py_ssize_t j, k
    for j from 0 <= j < (0 if row.alone else job.request.classes) by TWO_TERM_BLOCK:
        load_elements(job, i, j, &e)
        for k in range(e.n):
            if j + k != row.first_max:
                add(&row.others, exp(e.x[k] - row.second))
    row.tail = row.ratio*value(&row.others)
    log_total = log1p(row.tail)
    for j from 0 <= j < job.request.classes by TWO_TERM_BLOCK:
        load_elements(job, i, j, &e)
        for k in range(e.n):
            if j + k != row.first_max:
                f = 0 if row.alone else exp(e.x[k] - row.second)
                odds = row.ratio*f/((1 + row.tail) - row.ratio*f)
                add(&row.h, times(e.b[k], odds) - e.a[k])
                add(&row.loss, times(e.a[k], (row.row_max - e.x[k]) + log_total))
                add(&row.loss, times(e.b[k], log1p(odds)))
    add(&row.loss, times(row.a, log_total))
    if row.b != 0:                  # log1p(1/tail), also where tail underflows
        log_odds = INFINITY
        if not row.alone:
            log_odds = log1p(1/row.tail) if row.tail > 1e-300 else (row.row_max - row.second) - log(value(&row.others))
        add(&row.loss, row.b*log_odds)

cdef inline void two_term_grad(const Job *job, Py_ssize_t i, double scale, const TwoTermRow *row,
                               floating *scratch) noexcept nogil:
    cdef Elements e
    cdef double f, grad, s = 1 + row.tail, h = value(&row.h)
    cdef double common = (row.ratio*(h - row.a) + (row.b/value(&row.others) if row.b != 0 else 0))/s
    cdef Py_ssize_t j, k
    cdef bint bad = row.bad or (row.alone and row.b != 0)
    for j from 0 <= j < job.request.classes by TWO_TERM_BLOCK:
        load_elements(job, i, j, &e)
        for k in range(e.n):
            if bad:
                grad = NAN
            elif j + k == row.first_max:
                grad = (row.b - row.a*row.tail - h)/s
            else:
                f = 0 if row.alone else exp(e.x[k] - row.second)
                grad = times(e.b[k], row.ratio*f/(s - row.ratio*f)) - e.a[k] - times(f, common)
            scratch[k] = <floating>(scale*grad)
        store_block(job, i, j, e.n, scratch)

cdef inline double softmax_row(const Job *job, Py_ssize_t i, double scale, floating *scratch) noexcept nogil:
    """Row i of the two-term form of a softmax. Returns its loss."""
    cdef TwoTermRow row
    cdef double sample = 1 if job.request.sample_weight == NULL else job.request.sample_weight[i]
    set_sum(&row.others, 0)
    set_sum(&row.h, 0)
    set_sum(&row.loss, 0)
    row.tail = 0
    two_term_maxima(job, i, &row)
    if row.bad:
        set_sum(&row.loss, NAN)
    else:
        two_term_sums(job, i, &row)
    if job.request.losses != NULL:
        (<floating *>job.request.losses)[i] = <floating>(sample*value(&row.loss))
    if job.plan.with_grad:
        two_term_grad(job, i, scale, &row, scratch)
    return sample*value(&row.loss)
