# cython: cdivision=True
# Long rows are cut into blocks that stay in the cache, so that a forward reads each logit from memory once, and a
# gradient is computed from logits that are still near.
#
# Few long rows are divided among the threads: each row is cut into parts, whose sums are added in their order. Where it
# is cut depends on the shape alone, so the result is the same to the bit for every number of threads.
from cython cimport floating
from libc.math cimport INFINITY, exp
from libc.string cimport memset

from ._blocks cimport (
    base_block, grad_block, logit_of, logits_block, next_block, place_of, slope_block, store_block, store_to,
)
from ._curvature cimport begin_hess, block_exponentials, block_hess, row_hvp
from ._job cimport (
    BLOCK, Job, State, Sum, add, add_label, cancels_at_maximum, coefficients, moved, rescaled, set_exact_src,
    set_first_max, set_sum, shift_of, value,
)
from ._primitives cimport CE_BY_ELEMENT, CE_DIFFERENCE, CE_EXP, CE_STORED, ce_primitives, ce_tail_if_finite
from ._request cimport CROSS_ENTROPY, LOG_SOFTMAX, Matrix

cdef struct RowSums:
    # The state of the blocks of a row so far. The mass of base is rest + top.
    double row_max
    Sum tail
    Sum linear
    Sum rest
    Sum top                         # base at the maximum

cdef inline void begin_sums(RowSums *sums) noexcept nogil:
    sums.row_max = -INFINITY
    set_sum(&sums.tail, -1)         # of no class, so that 1 + tail is 0
    set_sum(&sums.linear, 0)
    set_sum(&sums.rest, 0)
    set_sum(&sums.top, 0)

cdef inline void raise_maximum(RowSums *sums, double larger, double temperature) noexcept nogil:
    """The sums for a larger maximum, which is in another block. All exponentials count in tail now."""
    set_sum(&sums.tail, rescaled(1 + value(&sums.tail), sums.row_max, larger, temperature))
    add(&sums.rest, value(&sums.top))
    set_sum(&sums.top, 0)
    add(&sums.linear, moved(value(&sums.rest), sums.row_max, larger))
    sums.row_max = larger

cdef inline void add_sums(RowSums *sums, const RowSums *other, double temperature) noexcept nogil:
    """Adds the sums of the blocks that follow."""
    cdef RowSums more = other[0]
    if more.row_max > sums.row_max:
        raise_maximum(sums, more.row_max, temperature)
    elif more.row_max < sums.row_max:
        raise_maximum(&more, sums.row_max, temperature)
    else:
        add(&more.tail, 1)          # its maximum is another one
    add(&sums.tail, value(&more.tail))
    add(&sums.linear, value(&more.linear))
    add(&sums.rest, value(&more.rest))
    add(&sums.top, value(&more.top))

cdef inline void add_exponentials(const Job *job, Py_ssize_t n, const floating *x, const floating *next,
                                  RowSums *sums) noexcept nogil:
    """Adds a block of logits to row_max and tail. What is read next is fetched meanwhile."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef double block_max, part, shift = shift_of(sums.row_max), temperature = job.request.temperature
    f.rows_max(x, 0, 1, n, &block_max)
    if not block_max > sums.row_max:
        f.rows_exp_sum(x, 0, NULL, 0, 1, n, CE_STORED, &shift, temperature, 0, next, &part)
        add(&sums.tail, part)
        return
    f.rows_exp_sum(x, 0, NULL, 0, 1, n, CE_STORED, &block_max, temperature, 1, next, &part)
    raise_maximum(sums, block_max, temperature)
    add(&sums.tail, part)

cdef inline void add_base(const Job *job, Py_ssize_t i, Py_ssize_t j, Py_ssize_t n, const floating *x, RowSums *sums,
                          floating *scratch) noexcept nogil:
    """Adds the base of a block, from class j on, to linear, rest and top. Its logits were added before."""
    cdef const floating *base = base_block(job, i, j, n, scratch)
    cdef double shift = shift_of(sums.row_max), linear, rest = n, top = 0
    job.plan.primitives.rows_base(x, 0, base, 0, 1, n, &shift, job.plan.slope, job.plan.offset,
                                  &linear if job.plan.with_loss else NULL,
                                  &rest if base != NULL else NULL, &top)
    if job.plan.with_loss:
        add(&sums.linear, job.plan.gap_scale*linear)
    add(&sums.rest, job.plan.base_scale*rest)
    add(&sums.top, top)

cdef inline Py_ssize_t first_maximum(const Job *job, Py_ssize_t i, double row_max, floating *scratch) noexcept nogil:
    """The first class of row i whose logit is row_max, or -1."""
    cdef Py_ssize_t j, n, k
    for j from 0 <= j < job.request.classes by job.plan.block:
        n = min(job.request.classes - j, job.plan.block)
        k = job.plan.primitives.row_find(logits_block(job, i, j, n, scratch, NULL), n, row_max)
        if k >= 0:
            return j + k
    return -1

cdef inline bint is_read(const Job *job) noexcept nogil:
    """Whether the state depends on more logits than the label's."""
    return job.plan.base_kind == CE_BY_ELEMENT or not job.request.stats_given

cdef inline void sums_of(const Job *job, Py_ssize_t i, Py_ssize_t start, Py_ssize_t stop, RowSums *sums,
                         floating *scratch) noexcept nogil:
    """The sums of classes start to stop - 1 of row i. With stats_given, row_max and tail are not computed but looked
    up."""
    cdef const floating *x
    cdef bint given = job.request.stats_given
    cdef Py_ssize_t j, n
    begin_sums(sums)
    if given:
        sums.row_max = (<const floating *>job.request.row_max)[i]
        set_sum(&sums.tail, (<const floating *>job.request.tail)[i])
    for j from start <= j < stop by job.plan.block:
        n = min(stop - j, job.plan.block)
        x = logits_block(job, i, j, n, scratch, NULL)
        if not given:
            add_exponentials(job, n, x, next_block(job, i, j + n, x), sums)
        if job.plan.base_scale != 0 and (job.plan.with_loss or job.plan.base_kind == CE_BY_ELEMENT):
            add_base(job, i, j, n, x, sums, scratch + BLOCK)

cdef inline void set_state(const Job *job, Py_ssize_t i, const RowSums *sums, State *s, Py_ssize_t r,
                           floating *scratch) noexcept nogil:
    """The state r, of row i, from the sums of all its classes."""
    cdef double x_label
    s.row_max[r], s.tail[r] = sums.row_max, ce_tail_if_finite(value(&sums.tail), sums.row_max)
    s.linear[r], s.rest[r], s.q[r] = value(&sums.linear), value(&sums.rest), value(&sums.top)
    s.mass[r], s.e[r], s.exact_class[r], s.first_max[r], s.rest_at_max[r] = s.rest[r] + s.q[r], 1, -1, -1, 0
    if job.request.operation != CROSS_ENTROPY:      # of p and log(p): no class has a target, and their sum counts as 1
        s.mass[r], s.rest[r], s.q[r] = 1, 1, 0
    if job.plan.with_labels and s.label[r] >= 0:
        x_label = logit_of(job, i, s.label[r], scratch)
        s.e[r] = exp((x_label - sums.row_max)/job.request.temperature)
        if job.plan.with_grad and cancels_at_maximum(job, s, r):
            set_first_max(job, first_maximum(job, i, sums.row_max, scratch), s, r)
        add_label(job, x_label, s.e[r], s, r)

cdef inline void row_state(const Job *job, Py_ssize_t i, State *s, Py_ssize_t r, floating *scratch) noexcept nogil:
    """Computes the state r, of row i."""
    cdef RowSums sums
    sums_of(job, i, 0, job.request.classes if is_read(job) else 0, &sums, scratch)
    set_state(job, i, &sums, s, r, scratch)

cdef inline void begin_grad(const Job *job, State *s, Py_ssize_t r, Py_ssize_t count) noexcept nogil:
    """What the gradients of rows are computed from, besides their logits."""
    coefficients(job, s, r, count)
    set_exact_src(job, s, r, count, CE_STORED if job.plan.with_hess else CE_EXP)
    if job.plan.with_hess:
        begin_hess(job, s, r, count)

cdef inline void row_grad(const Job *job, Py_ssize_t i, const State *s, Py_ssize_t r, Py_ssize_t start, Py_ssize_t stop,
                          floating *scratch) noexcept nogil:
    """The gradient of classes start to stop - 1 of row i. The exponentials are computed again, which costs less than
    storing and reading them."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef const floating *x
    cdef const floating *base
    cdef floating *dst
    cdef floating *slope = slope_block(job, scratch + 2*BLOCK)
    cdef floating *e = scratch + 3*BLOCK
    cdef bint with_hess = job.plan.with_hess
    cdef bint stream = job.plan.stream and job.plan.grad_ready and not with_hess
    cdef Py_ssize_t j, n, exact_class
    cdef int form = CE_DIFFERENCE if job.request.operation == LOG_SOFTMAX else CE_STORED if with_hess else CE_EXP
    for j from start <= j < stop by job.plan.block:
        n = min(stop - j, job.plan.block)
        x = logits_block(job, i, j, n, scratch, slope)
        if with_hess:
            block_exponentials(job, x, n, s.row_max[r], e)
            x = e
        base = base_block(job, i, j, n, scratch + BLOCK)
        dst = grad_block(job, i, j, scratch)
        if job.plan.base_kind == CE_BY_ELEMENT:
            f.rows_grad_by_element(x, 0, base, 0, dst, 0, 1, n, form, s.row_max + r, job.request.temperature, s.a + r,
                                   s.b + r, job.plan.slope, job.plan.offset, s.exact_src + r, s.exact_grad + r,
                                   job.request.flush_below, stream)
        else:
            exact_class = s.exact_class[r] - j if j <= s.exact_class[r] < j + n else -1
            f.rows_grad(x, 0, dst, 0, 1, n, form, s.row_max + r, job.request.temperature, s.a + r, s.b + r, base,
                        &exact_class, s.exact_grad + r, job.request.flush_below, stream)
        if j <= s.first_max[r] < j + n:
            dst[s.first_max[r] - j] = <floating>s.grad_at_max[r]
        store_block(job, i, j, n, dst, slope)
        if with_hess:
            block_hess(job, i, j, n, s, r, e)

cdef inline void zero_row(const Matrix *a, Py_ssize_t i, Py_ssize_t start, Py_ssize_t stop,
                          floating *scratch) noexcept nogil:
    """a[i, start:stop] = 0."""
    cdef floating *dst
    cdef Py_ssize_t j, n
    for j from start <= j < stop by BLOCK:
        n = min(stop - j, BLOCK)
        dst = place_of(a, i, j, scratch)
        memset(dst, 0, n*sizeof(floating))
        store_to(a, i, j, n, dst)

cdef inline void row_zero_grad(const Job *job, Py_ssize_t i, Py_ssize_t start, Py_ssize_t stop,
                               floating *scratch) noexcept nogil:
    zero_row(&job.request.grad, i, start, stop, scratch)
    if job.plan.with_hess:
        zero_row(&job.request.hess, i, start, stop, scratch)

cdef inline void finish_row(const Job *job, Py_ssize_t i, State *s, Py_ssize_t r, floating *scratch) noexcept nogil:
    """What is asked for of row i besides its loss, from its state."""
    begin_grad(job, s, r, 1)
    if job.plan.with_hvp:
        row_hvp(job, i, first_maximum(job, i, s.row_max[r], scratch), s, r, scratch)
    else:
        row_grad(job, i, s, r, 0, job.request.classes, scratch)

# -- Parts of few long rows

cdef inline bint is_skipped(const Job *job, const State *s, Py_ssize_t r) noexcept nogil:
    """Whether a row is ignored and its logits are not even read."""
    return (s.ignored > 0 and s.label[r] < 0
            and (job.request.stats_given or (job.request.row_max == NULL and job.request.tail == NULL)))

cdef inline void part_sums(const Job *job, Py_ssize_t unit, floating *scratch) noexcept nogil:
    cdef Py_ssize_t r = unit/job.plan.parts, start = unit % job.plan.parts*job.plan.part
    if not is_skipped(job, job.state, r):
        sums_of(job, job.first_row + r, start, min(start + job.plan.part, job.request.classes),
                <RowSums *>job.sums + unit, scratch)

cdef inline void part_grad(const Job *job, Py_ssize_t unit, floating *scratch) noexcept nogil:
    cdef Py_ssize_t r = unit/job.plan.parts, start = unit % job.plan.parts*job.plan.part
    cdef Py_ssize_t stop = min(start + job.plan.part, job.request.classes)
    if job.state.ignored > 0 and job.state.label[r] < 0:
        row_zero_grad(job, job.first_row + r, start, stop, scratch)
    else:
        row_grad(job, job.first_row + r, job.state, r, start, stop, scratch)

cdef inline void set_states(const Job *job, Py_ssize_t count, State *s, floating *scratch) noexcept nogil:
    """The states of rows from the sums of their parts."""
    cdef RowSums *sums = <RowSums *>job.sums
    cdef Py_ssize_t r, k
    for r in range(count):
        if is_skipped(job, s, r):
            s.tail[r] = s.mass[r] = s.linear[r] = s.row_max[r] = s.rest[r] = s.q[r] = s.rest_at_max[r] = 0
            s.exact_class[r], s.first_max[r] = -1, -1
        elif not is_read(job):
            row_state(job, job.first_row + r, s, r, scratch)
        else:
            for k in range(1, job.plan.parts):
                add_sums(sums, sums + k, job.request.temperature)
            if job.request.stats_given:
                set_sum(&sums.tail, (<const floating *>job.request.tail)[job.first_row + r])
            set_state(job, job.first_row + r, sums, s, r, scratch)
        sums += job.plan.parts
