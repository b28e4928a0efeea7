# cython: cdivision=True
# Second derivatives of cross-entropy, of rows: the diagonal of the Hessian, and its products with vectors. With
# k = mass + 2*z_loss*lse and u = exp(x - row_max),
#
#     hess_j = scale * (k*p_j*(1 - p_j) + 2*z_loss*p_j^2)                         = u_j*(a - b*u_j)
#     hvp_j  = scale * p_j*(k*(v_j - mean v) + 2*z_loss*mean v), mean v = sum p v = u_j*(a*(v_j - v_at_max) + b)
#
# Both are computed from stored exponentials. At the only maximum 1 - p is tail/(1 + tail). The mean is that of
# v - v_at_max, plus v_at_max: the maximum adds nothing to the first, so that it keeps its relative accuracy in a
# confident row. The gradient's scale contains the temperature once; the coefficients contain it once more.
from cython cimport floating

from ._blocks cimport block, logits_block, place_of, store_to
from ._job cimport BLOCK, Job, State, Sum, add, set_sum, shift_of, value
from ._primitives cimport CE_STORED, ce_primitives

cdef inline void begin_hess(const Job *job, State *s, Py_ssize_t r, Py_ssize_t count) noexcept nogil:
    """What the diagonals of states from r on are computed from, after the coefficients of their gradients."""
    job.plan.primitives.hess_coefficients(count, s.tail + r, s.scale + r, s.a + r, job.request.temperature,
                                          job.request.z_loss, s.hess_a + r, s.hess_b + r, s.hess_at_max + r)

cdef inline void begin_hvp(const Job *job, State *s, Py_ssize_t r, Py_ssize_t count) noexcept nogil:
    """The same for products, where v_at_max and spread are known."""
    job.plan.primitives.hvp_coefficients(count, s.tail + r, s.scale + r, s.a + r, job.request.temperature,
                                         job.request.z_loss, s.v_at_max + r, s.spread + r, s.hess_a + r, s.hess_b + r)

cdef inline void flush_result(const Job *job, floating *result, Py_ssize_t n) noexcept nogil:
    """What the primitives of the gradient do by themselves."""
    if job.request.flush_below > 0:
        job.plan.primitives.flush_small(result, n, job.request.flush_below)

# -- Long rows

cdef inline void block_exponentials(const Job *job, const floating *x, Py_ssize_t n, double row_max,
                                    floating *e) noexcept nogil:
    """Stores the exponentials of a block of logits x; e may be x."""
    cdef double unused, shift = shift_of(row_max)
    job.plan.primitives.rows_exp_sum(x, 0, e, 0, 1, n, CE_STORED, &shift, job.request.temperature, 0, x, &unused)

cdef inline void block_hess(const Job *job, Py_ssize_t i, Py_ssize_t j, Py_ssize_t n, const State *s, Py_ssize_t r,
                            floating *e) noexcept nogil:
    """The diagonal of a block of row i from class j on, from its exponentials, whose place is lost."""
    cdef floating *dst = place_of(&job.request.hess, i, j, e)
    job.plan.primitives.rows_hess(e, 0, dst, 0, 1, n, s.hess_a + r, s.hess_b + r, s.exact_src + r, s.hess_at_max + r)
    flush_result(job, dst, n)
    store_to(&job.request.hess, i, j, n, dst)

cdef inline void row_hvp(const Job *job, Py_ssize_t i, Py_ssize_t first_max, State *s, Py_ssize_t r,
                         floating *scratch) noexcept nogil:
    """The product of row i, whose largest logit is at first_max (-1: there is none), in two more passes."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef const floating *v
    cdef floating *e = scratch + BLOCK
    cdef floating *dst
    cdef Py_ssize_t classes = job.request.classes, j, n
    cdef Sum spread
    cdef bint last
    s.v_at_max[r] = block(&job.request.vectors, i, max(first_max, 0), 1, scratch)[0]
    set_sum(&spread, 0)
    for last in range(2):
        for j from 0 <= j < classes by BLOCK:
            n = min(classes - j, BLOCK)
            block_exponentials(job, logits_block(job, i, j, n, scratch, NULL), n, s.row_max[r], e)
            v = block(&job.request.vectors, i, j, n, scratch)
            if last:
                dst = place_of(&job.request.grad, i, j, e)
                f.rows_hvp(e, 0, v, 0, dst, 0, 1, n, s.v_at_max + r, s.hess_a + r, s.hess_b + r)
                flush_result(job, dst, n)
                store_to(&job.request.grad, i, j, n, dst)
            else:
                add(&spread, f.row_spread(e, v, n, s.v_at_max[r], v))
        s.spread[r] = value(&spread)
        begin_hvp(job, s, r, 1)
