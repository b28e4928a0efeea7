# cython: cdivision=True
# Rows: vectors along the classes. A long row is cut into blocks that stay in the cache, so that a forward reads each
# logit from memory once, and a gradient is computed from logits that are still near.
from cython cimport floating
from libc.math cimport INFINITY, exp
from libc.string cimport memset

from ._blocks cimport base_block, block, evenly_spaced, grad_block, next_block, row_at, store_block
from ._job cimport (
    BLOCK, Job, State, Sum, add, add_label, cancels_at_maximum, coefficients, moved, rescaled, set_sum, shift_of,
    value,
)
from ._primitives cimport CE_BY_ELEMENT, CE_DIFFERENCE, CE_EXP, CE_STORED, ce_primitives, ce_tail_if_finite
from ._request cimport CROSS_ENTROPY, LOG_SOFTMAX

cdef enum:
    LOGITS_IN_TURNS = 2048      # of rows that are computed together

cdef struct RowSums:
    # The state of the blocks of a row so far.
    double row_max
    Sum tail
    Sum mass
    Sum linear
    Sum rest                    # mass without the target of the first maximum

cdef inline Py_ssize_t add_exponentials(const Job *job, Py_ssize_t i, Py_ssize_t j, Py_ssize_t n, const floating *x,
                                        floating *e, bint find_max, RowSums *sums) noexcept nogil:
    """Adds a block of logits, from class j on, to row_max and tail, and writes its exponentials to e unless NULL.
    Returns where in the block the row's first maximum so far is, -1 if it is in another block or not find_max."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef const floating *next = next_block(job, i, j + n, x)
    cdef double block_max, part, shift = shift_of(sums.row_max)
    f.rows_max(x, 0, 1, n, &block_max)
    if not block_max > sums.row_max:
        f.rows_exp_sum(x, 0, e, 0, 1, n, CE_STORED, &shift, 0, next, &part)
        add(&sums.tail, part)
        return -1
    f.rows_exp_sum(x, 0, e, 0, 1, n, CE_STORED, &block_max, 1, next, &part)
    if j == 0:
        set_sum(&sums.tail, part)
    else:
        set_sum(&sums.tail, rescaled(1 + value(&sums.tail), sums.row_max, block_max))
        add(&sums.tail, part)
        add(&sums.linear, moved(value(&sums.mass), sums.row_max, block_max))
    sums.row_max = block_max
    return f.row_find(x, n, block_max) if find_max else -1

cdef inline void add_base(const Job *job, Py_ssize_t i, Py_ssize_t j, Py_ssize_t n, const floating *x,
                          Py_ssize_t first_max, RowSums *sums, double *q, floating *scratch) noexcept nogil:
    """Adds the base of a block, from class j on, to mass, linear and rest. first_max is what add_exponentials returned;
    if it is in this block and base is the target row, its target is written to q."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef const floating *base = base_block(job, i, j, n, scratch)
    cdef double part
    if job.plan.with_loss:
        add(&sums.linear, job.plan.base_scale*f.row_gap_dot(x, base, n, shift_of(sums.row_max)))
    if job.plan.base_kind == CE_BY_ELEMENT and first_max >= 0:
        sums.rest = sums.mass
        add(&sums.rest, f.row_sum(base, first_max))
        add(&sums.rest, f.row_sum(base + first_max + 1, n - first_max - 1))
        sums.mass = sums.rest
        add(&sums.mass, base[first_max])
        q[0] = base[first_max]
    else:
        part = job.plan.base_scale*(n if base == NULL else f.row_sum(base, n))
        add(&sums.mass, part)
        add(&sums.rest, part)

cdef inline void row_state(const Job *job, Py_ssize_t i, State *s, Py_ssize_t r, floating *e,
                           floating *scratch) noexcept nogil:
    """Computes the state r, of row i, and writes the row's exponentials to e unless NULL. With stats_given, row_max and
    tail are not computed but looked up, and only what else is needed is read."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef const floating *x
    cdef bint by_element = job.plan.base_kind == CE_BY_ELEMENT, given = job.request.stats_given
    # Where the maximum is matters only if its target may be large too. Of labels without weights, only the label's is.
    cdef bint find_max = by_element or job.plan.weighted_smoothing
    cdef Py_ssize_t j, n, k
    cdef RowSums sums
    cdef double x_label
    sums.row_max = -INFINITY
    set_sum(&sums.tail, -1)         # of no class, so that 1 + tail is 0
    set_sum(&sums.mass, 0)
    set_sum(&sums.linear, 0)
    set_sum(&sums.rest, 0)
    s.first_max[r], s.q[r], s.e[r] = -1, 0, 1
    if given:
        sums.row_max = (<const floating *>job.request.row_max)[i]
        set_sum(&sums.tail, (<const floating *>job.request.tail)[i])
    for j from 0 <= j < (job.request.classes if find_max or not given else 0) by BLOCK:
        n = min(job.request.classes - j, BLOCK)
        x = block(&job.request.logits, i, j, n, scratch)
        if not given:
            k = add_exponentials(job, i, j, n, x, e, find_max, &sums)
        else:
            k = f.row_find(x, n, sums.row_max) if s.first_max[r] < 0 else -1
        if k >= 0:
            s.first_max[r] = j + k
        if job.plan.base_scale != 0:
            add_base(job, i, j, n, x, k, &sums, s.q + r, scratch + BLOCK)
    s.row_max[r], s.tail[r] = sums.row_max, ce_tail_if_finite(value(&sums.tail), sums.row_max)
    s.mass[r], s.linear[r], s.rest[r] = value(&sums.mass), value(&sums.linear), value(&sums.rest)
    s.exact_class[r] = s.first_max[r]
    if job.request.operation != CROSS_ENTROPY:      # p and log(p): no class has a target, and their sum counts as 1
        s.mass[r], s.rest[r], s.exact_class[r] = 1, 1, -1
    if job.plan.weighted_smoothing:
        s.rest_at_max[r] = job.other_q[max(s.first_max[r], 0)]
    if job.plan.with_labels and s.label[r] >= 0:
        k = s.label[r]
        x_label = (<const floating *>(row_at(&job.request.logits, i) + k*job.request.logits.class_stride))[0]
        add_label(job, x_label, e[k]/f.exp_one if e != NULL else exp(x_label - sums.row_max), s, r)

cdef inline void row_grad(const Job *job, Py_ssize_t i, State *s, Py_ssize_t r, const floating *e,
                          floating *scratch) noexcept nogil:
    """The gradient of row i, from its exponentials in e or, when that is NULL, from its logits again."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef const floating *src = e
    cdef floating *dst
    cdef bint stream = job.plan.stream and job.request.grad.class_stride == sizeof(floating)
    cdef Py_ssize_t j, n, exact_class
    cdef int form = CE_DIFFERENCE if job.request.operation == LOG_SOFTMAX else CE_EXP if e == NULL else CE_STORED
    coefficients(job, s, r, 1)
    for j from 0 <= j < job.request.classes by BLOCK:
        n = min(job.request.classes - j, BLOCK)
        if e == NULL:
            src = block(&job.request.logits, i, j, n, scratch)
        dst = grad_block(job, i, j, scratch + 2*BLOCK)
        exact_class = s.exact_class[r] - j if j <= s.exact_class[r] < j + n else -1
        f.rows_grad(src, 0, dst, 0, 1, n, form, s.row_max + r, s.a + r, s.b + r,
                    base_block(job, i, j, n, scratch + BLOCK), &exact_class, s.exact_grad + r, stream)
        store_block(job, i, j, n, dst)
    if cancels_at_maximum(job, s, r) and s.first_max[r] >= 0:
        scratch[0] = <floating>s.grad_at_max[r]
        store_block(job, i, s.first_max[r], 1, scratch)

cdef inline void row_zero_grad(const Job *job, Py_ssize_t i, floating *scratch) noexcept nogil:
    cdef floating *dst
    cdef Py_ssize_t j, n
    for j from 0 <= j < job.request.classes by BLOCK:
        n = min(job.request.classes - j, BLOCK)
        dst = grad_block(job, i, j, scratch)
        memset(dst, 0, n*sizeof(floating))
        store_block(job, i, j, n, dst)

cdef inline void rows_in_turns(const Job *job, Py_ssize_t start, Py_ssize_t count, State *s, Py_ssize_t r,
                               const floating *dtype) noexcept nogil:
    """State and gradient of short rows that are evenly spaced, each of one block, which take turns at every step: one
    row's loads and arithmetic fill the gaps that the end of another's leaves. Classes are contiguous, and base is
    nothing or ones."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef const char *x = row_at(&job.request.logits, start)
    cdef char *e = NULL             # the exponentials are stored where the gradient will be
    cdef Py_ssize_t n = job.request.classes, x_step = job.request.logits.row_stride, e_step = 0, p
    cdef int form = CE_DIFFERENCE if job.request.operation == LOG_SOFTMAX else CE_STORED
    if job.plan.with_grad:
        e, e_step = row_at(&job.request.grad, start), job.request.grad.row_stride
    f.rows_max(x, x_step, count, n, s.row_max + r)
    for p in range(r, r + count):
        s.linear[p], s.exact_class[p], s.mass[p], s.rest[p], s.q[p] = 0, -1, 1, 1, 0
    if job.plan.base_scale != 0 and job.plan.with_loss:
        for p in range(count):
            s.linear[r + p] = job.plan.base_scale*f.row_gap_dot(x + p*x_step, NULL, n, s.row_max[r + p])
    if job.plan.with_labels:
        for p in range(count):      # before e may overwrite them
            s.x_label[r + p] = (<const floating *>(x + p*x_step))[s.label[r + p]]
    f.rows_exp_sum(x, x_step, e, e_step, count, n, form, s.row_max + r, 1,
                   x + count*x_step if start + 2*count <= job.request.rows else x, s.tail + r)
    for p in range(r, r + count):
        s.tail[p] = ce_tail_if_finite(s.tail[p], s.row_max[p])
    if job.plan.with_labels:
        for p in range(count):
            add_label(job, s.x_label[r + p],
                      0 if e == NULL else (<floating *>(e + p*e_step))[s.label[r + p]]/f.exp_one, s, r + p)
    if e == NULL:
        return
    coefficients(job, s, r, count)
    if form == CE_DIFFERENCE:
        for p in range(r, r + count):
            s.x_label[p] = 0        # what is stored are differences already
        f.rows_grad(e, e_step, e, e_step, count, n, form, s.x_label + r, s.a + r, s.b + r, NULL, NULL, NULL, False)
    else:
        f.rows_grad(e, e_step, e, e_step, count, n, form, s.row_max + r, s.a + r, s.b + r, NULL, s.exact_class + r,
                    s.exact_grad + r, False)

cdef inline Py_ssize_t rows_for_turns(const Job *job, Py_ssize_t i, Py_ssize_t n, const State *s,
                                      Py_ssize_t r) noexcept nogil:
    """How many of n rows from i on, the first of which is not ignored, can be computed together."""
    cdef Py_ssize_t k = 1
    n = min(evenly_spaced(&job.request.logits, i, n), max(LOGITS_IN_TURNS/job.request.classes, 1))
    if job.plan.with_grad:
        n = evenly_spaced(&job.request.grad, i, n)
    if s.ignored == 0:
        return n
    while k < n and s.label[r + k] >= 0:
        k += 1
    return k

cdef inline void rows(const Job *job, Py_ssize_t start, Py_ssize_t count, State *s, floating *scratch) noexcept nogil:
    """State and gradient of a group."""
    cdef bint one_block = job.request.classes <= BLOCK, with_grad = job.plan.with_grad
    cdef Py_ssize_t r = 0, n
    # A row of one block stores its exponentials, in scratch because its logits are read again and the gradient may be
    # in their place. Those of longer rows are computed again, which costs less than reading them again.
    cdef floating *e = NULL
    if with_grad and one_block and not job.request.stats_given and job.request.operation != LOG_SOFTMAX:
        e = scratch + 2*BLOCK
    while r < count:
        n = 1
        if s.ignored > 0 and s.label[r] < 0:
            if job.request.row_max == NULL and job.request.tail == NULL:    # its logits are not even read
                s.tail[r] = s.mass[r] = s.linear[r] = s.row_max[r] = 0
            else:
                row_state(job, start + r, s, r, e, scratch)
            if with_grad:
                row_zero_grad(job, start + r, scratch)
        elif job.plan.rows_take_turns and one_block:
            n = rows_for_turns(job, start + r, count - r, s, r)
            rows_in_turns(job, start + r, n, s, r, scratch)
        else:
            row_state(job, start + r, s, r, e, scratch)
            if with_grad:
                row_grad(job, start + r, s, r, e, scratch)
        r += n
