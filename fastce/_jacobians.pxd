# cython: cdivision=True
# Products of an upstream gradient with the Jacobians of softmax and log-softmax.
from cython cimport floating

from ._blocks cimport block, grad_block, store_block
from ._job cimport BLOCK, Job, Sum, add, set_sum, value
from ._primitives cimport CE_EXP, ce_primitives
from ._request cimport LOG_SOFTMAX_GRAD

cdef inline void jacobian_row(const Job *job, Py_ssize_t i, floating *scratch) noexcept nogil:
    """Row i of the product of upstream u with the Jacobian of y. Softmax: y*(u - sum u*y). Log-softmax:
    u - exp(y)*sum u."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef const floating *y
    cdef const floating *u
    cdef floating *dst
    cdef bint of_log = job.request.operation == LOG_SOFTMAX_GRAD
    cdef Py_ssize_t j, n
    cdef Sum total
    cdef double zero = 0, minus_one = -1, minus_sum
    set_sum(&total, 0)
    for j from 0 <= j < job.request.classes by BLOCK:
        n = min(job.request.classes - j, BLOCK)
        u = block(&job.request.upstream, i, j, n, scratch + BLOCK)
        add(&total, f.row_sum(u, n) if of_log else f.row_dot(u, block(&job.request.y, i, j, n, scratch), n))
    minus_sum = -value(&total)
    for j from 0 <= j < job.request.classes by BLOCK:
        n = min(job.request.classes - j, BLOCK)
        y = block(&job.request.y, i, j, n, scratch)
        u = block(&job.request.upstream, i, j, n, scratch + BLOCK)
        dst = grad_block(job, i, j, scratch + 2*BLOCK)
        if of_log:
            f.rows_grad(y, 0, dst, 0, 1, n, CE_EXP, &zero, &minus_sum, &minus_one, u, NULL, NULL, False)
        else:
            f.row_scale(y, u, dst, n, value(&total))
        store_block(job, i, j, n, dst)
