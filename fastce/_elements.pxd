# Operations that are computed element by element in one or a few passes over each row: products with the Jacobians of
# softmax and log-softmax, and the two-term forms.
from cython cimport floating
from libc.math cimport INFINITY, NAN, exp, isfinite, log, log1p

from ._blocks cimport block, gather, grad_block, row_at, store_block
from ._job cimport BLOCK, Job, Sum, add, set_sum, times, value
from ._primitives cimport CE_EXP, ce_primitives
from ._request cimport LOG_SOFTMAX_GRAD, SIGMOID_TWO_TERM, SOFTMAX_TWO_TERM, Matrix

cdef enum:
    TWO_TERM_BLOCK = 256        # classes of the two-term forms that are worked on at a time, in float64


# --- Products with Jacobians -------------------------------------------------------------------------------------------

cdef inline void jacobian_row(const Job *job, Py_ssize_t i, floating *scratch) noexcept nogil:
    """Row i of the product of upstream u with the Jacobian of y. Softmax: y*(u - sum u*y). Log-softmax:
    u - exp(y)*sum u."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef const floating *y
    cdef const floating *u
    cdef floating *dst
    cdef bint of_log = job.request.operation == LOG_SOFTMAX_GRAD
    cdef Py_ssize_t j = 0, n
    cdef Sum total
    cdef double zero = 0, minus_one = -1, minus_sum
    set_sum(&total, 0)
    while j < job.request.classes:
        n = min(job.request.classes - j, BLOCK)
        u = block(&job.request.upstream, i, j, n, scratch + BLOCK)
        add(&total, f.row_sum(u, n) if of_log else f.row_dot(u, block(&job.request.y, i, j, n, scratch), n))
        j += n
    minus_sum = -value(&total)
    j = 0
    while j < job.request.classes:
        n = min(job.request.classes - j, BLOCK)
        y = block(&job.request.y, i, j, n, scratch)
        u = block(&job.request.upstream, i, j, n, scratch + BLOCK)
        dst = grad_block(job, i, j, scratch + 2*BLOCK)
        if of_log:
            f.rows_grad(y, 0, dst, 0, 1, n, CE_EXP, &zero, &minus_sum, &minus_one, u, NULL, NULL, False)
        else:
            f.row_scale(y, u, dst, n, value(&total))
        store_block(job, i, j, n, dst)
        j += n


# --- Two-term forms ----------------------------------------------------------------------------------------------------

cdef inline void two_term_block(const Job *job, Py_ssize_t i, Py_ssize_t j, Py_ssize_t n, double *x, double *a,
                                double *b) noexcept nogil:
    """Logits, and the factors a = weight*pos_weight*c of -log(p) and b = weight*(1 - c) of -log(1 - p)."""
    cdef const Matrix *logits = &job.request.logits
    cdef const Matrix *targets = &job.request.targets
    cdef const double *weight = job.request.weight
    cdef const double *pos_weight = job.request.pos_weight
    cdef Py_ssize_t k
    cdef double c
    gather(logits.dtype, row_at(logits, i) + j*logits.class_stride, logits.class_stride, n, x, 1)
    gather(targets.dtype, row_at(targets, i) + j*targets.class_stride, targets.class_stride, n, a, 1)
    for k in range(n):
        c = a[k]
        b[k] = 1 - c
        if pos_weight != NULL:
            a[k] = c*pos_weight[j + k]
        if weight != NULL:
            a[k] *= weight[j + k]
            b[k] *= weight[j + k]


cdef inline double sigmoid_row(const Job *job, Py_ssize_t i, double scale, floating *scratch) noexcept nogil:
    """Row i of the two-term form of independent classes. Returns the sum of its losses."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef const Matrix *upstream = &job.request.upstream
    cdef double x64[TWO_TERM_BLOCK]
    cdef double a64[TWO_TERM_BLOCK]
    cdef double b64[TWO_TERM_BLOCK]
    cdef double sample = 1 if job.request.sample_weight == NULL else job.request.sample_weight[i]
    cdef const floating *z
    cdef const floating *a = scratch
    cdef const floating *b = NULL       # 1 - a
    cdef floating *grad = NULL
    cdef floating *loss = NULL
    cdef const char *factor
    cdef Py_ssize_t j = 0, n, k
    cdef Sum total
    set_sum(&total, 0)
    while j < job.request.classes:
        n = min(job.request.classes - j, BLOCK if job.plan.targets_ready else TWO_TERM_BLOCK)
        z = block(&job.request.logits, i, j, n, scratch + BLOCK)
        if job.plan.targets_ready:
            a = block(&job.request.targets, i, j, n, scratch)
        else:
            two_term_block(job, i, j, n, x64, a64, b64)
            f.narrow(a64, n, scratch)
            f.narrow(b64, n, scratch + TWO_TERM_BLOCK)
            b = scratch + TWO_TERM_BLOCK
        if job.plan.with_grad:
            grad = grad_block(job, i, j, scratch + 2*BLOCK)
        if job.request.losses != NULL:
            loss = (<floating *>job.request.losses) + i*job.request.classes + j
        add(&total, f.row_sigmoid(z, a, b, n, scale, loss, grad))
        if loss != NULL and job.request.sample_weight != NULL:
            for k in range(n):
                loss[k] = <floating>(loss[k]*sample)
        if job.plan.with_grad:
            if upstream.data != NULL:
                factor = row_at(upstream, i) + j*upstream.class_stride
                for k in range(n):
                    grad[k] = <floating>(grad[k]*(<const double *>(factor + k*upstream.class_stride))[0])
            store_block(job, i, j, n, grad)
        j += n
    return sample*value(&total)


# The two-term form of a softmax, with its full Jacobian, in float64. With t the first maximum, m the runner-up,
# f_j = exp(x_j - m), r = exp(m - x_t), tail = r*sum f, s = 1 + tail, the odds o_j = p_j/(1 - p_j) = r*f_j/(s - r*f_j),
# h_j = b_j*o_j - a_j and H = sum h_j, where the sums are over j != t:
#
#     loss   = sum a_j*(log1p(tail) + (x_t - x_j)) + a_t*log1p(tail) + sum b_j*log1p(o_j) + b_t*log1p(1/tail)
#     grad_t = (b_t - a_t*tail - H)/s
#     grad_j = h_j - f_j*(r*(H - a_t) + b_t/sum f)/s
#
# Nothing divides by tail, which may underflow, and no two large numbers are subtracted. reference.py derives it.

cdef struct TwoTermRow:
    Py_ssize_t first_max            # t
    double row_max                  # x_t
    double second                   # m; -inf if no other class counts
    double a                        # a_t
    double b                        # b_t
    double ratio                    # r
    double tail
    double log_total                # log1p(tail)
    Sum others                      # sum f
    Sum h                           # H
    Sum loss
    bint bad                        # the row holds NaN or +inf, or only -inf


cdef inline void two_term_maxima(const Job *job, Py_ssize_t i, TwoTermRow *row) noexcept nogil:
    """The maximum and the runner-up."""
    cdef double x[TWO_TERM_BLOCK]
    cdef double a[TWO_TERM_BLOCK]
    cdef double b[TWO_TERM_BLOCK]
    cdef Py_ssize_t j = 0, n, k
    row.first_max, row.row_max, row.second, row.a, row.b, row.bad = -1, -INFINITY, -INFINITY, 0, 0, False
    while j < job.request.classes:
        n = min(job.request.classes - j, TWO_TERM_BLOCK)
        two_term_block(job, i, j, n, x, a, b)
        for k in range(n):
            if x[k] != x[k]:
                row.bad = True
            if x[k] > row.row_max:
                row.second, row.row_max, row.first_max, row.a, row.b = row.row_max, x[k], j + k, a[k], b[k]
            elif x[k] > row.second:
                row.second = x[k]
        j += n
    row.bad = row.bad or not isfinite(row.row_max)
    row.ratio = exp(row.second - row.row_max) if row.second > -INFINITY else 0


cdef inline void two_term_sums(const Job *job, Py_ssize_t i, TwoTermRow *row) noexcept nogil:
    """The sum f and what follows from it, then H and the loss."""
    cdef double x[TWO_TERM_BLOCK]
    cdef double a[TWO_TERM_BLOCK]
    cdef double b[TWO_TERM_BLOCK]
    cdef double f, odds, log_odds
    cdef Py_ssize_t j = 0, n, k
    cdef bint alone = not row.second > -INFINITY
    while j < job.request.classes and not alone:
        n = min(job.request.classes - j, TWO_TERM_BLOCK)
        two_term_block(job, i, j, n, x, a, b)
        for k in range(n):
            if j + k != row.first_max:
                add(&row.others, exp(x[k] - row.second))
        j += n
    row.tail = row.ratio*value(&row.others)
    row.log_total = log1p(row.tail)
    j = 0
    while j < job.request.classes:
        n = min(job.request.classes - j, TWO_TERM_BLOCK)
        two_term_block(job, i, j, n, x, a, b)
        for k in range(n):
            if j + k != row.first_max:
                f = 0 if alone else exp(x[k] - row.second)
                odds = row.ratio*f/((1 + row.tail) - row.ratio*f)
                add(&row.h, times(b[k], odds) - a[k])
                add(&row.loss, times(a[k], (row.row_max - x[k]) + row.log_total))
                add(&row.loss, times(b[k], log1p(odds)))
        j += n
    add(&row.loss, times(row.a, row.log_total))
    if row.b != 0:              # log(1/tail), also where tail underflows
        log_odds = INFINITY
        if not alone:
            log_odds = log1p(1/row.tail) if row.tail > 1e-300 else (row.row_max - row.second) - log(value(&row.others))
        add(&row.loss, row.b*log_odds)


cdef inline void two_term_grad(const Job *job, Py_ssize_t i, double scale, const TwoTermRow *row,
                               floating *scratch) noexcept nogil:
    cdef double x[TWO_TERM_BLOCK]
    cdef double a[TWO_TERM_BLOCK]
    cdef double b[TWO_TERM_BLOCK]
    cdef double f, s = 1 + row.tail, h = value(&row.h), grad
    cdef double common = (row.ratio*(h - row.a) + (row.b/value(&row.others) if row.b != 0 else 0))/s
    cdef Py_ssize_t j = 0, n, k
    cdef bint alone = not row.second > -INFINITY, bad = row.bad or (alone and row.b != 0)
    while j < job.request.classes:
        n = min(job.request.classes - j, TWO_TERM_BLOCK)
        two_term_block(job, i, j, n, x, a, b)
        for k in range(n):
            if bad:
                grad = NAN
            elif j + k == row.first_max:
                grad = (row.b - row.a*row.tail - h)/s
            else:
                f = 0 if alone else exp(x[k] - row.second)
                grad = times(b[k], row.ratio*f/(s - row.ratio*f)) - a[k] - times(f, common)
            scratch[k] = <floating>(scale*grad)
        store_block(job, i, j, n, scratch)
        j += n


cdef inline double softmax_row(const Job *job, Py_ssize_t i, double scale, floating *scratch) noexcept nogil:
    """Row i of the two-term form of a softmax. Returns its loss."""
    cdef TwoTermRow row
    cdef double sample = 1 if job.request.sample_weight == NULL else job.request.sample_weight[i]
    set_sum(&row.others, 0)
    set_sum(&row.h, 0)
    set_sum(&row.loss, 0)
    row.tail = row.log_total = 0
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


cdef inline double element_row(const Job *job, Py_ssize_t i, double scale, floating *scratch) noexcept nogil:
    """Row i of an operation of this file. Returns the sum of its losses."""
    if job.request.operation == SIGMOID_TWO_TERM:
        return sigmoid_row(job, i, scale, scratch)
    if job.request.operation == SOFTMAX_TWO_TERM:
        return softmax_row(job, i, scale, scratch)
    jacobian_row(job, i, scratch)
    return 0
