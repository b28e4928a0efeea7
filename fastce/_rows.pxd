# cython: cdivision=True
# Rows: vectors along the classes. Short rows are computed several at a time.
from cython cimport floating

from ._blocks cimport (
    base_block, block, evenly_spaced, logits_block, place_of, row_at, size_of, slope_block, store_block, store_to,
    write_maxima, write_stats, write_tails,
)
from ._curvature cimport begin_hess, begin_hvp, flush_result
from ._job cimport (
    BLOCK, Job, State, add_label, cancels_at_maximum, coefficients, exponentials, set_exact_src, set_first_max,
)
from ._long_rows cimport finish_row, row_state, row_zero_grad
from ._primitives cimport (
    CE_BY_ELEMENT, CE_DIFFERENCE, CE_EXP, CE_STORED, ce_primitives, ce_tail_if_finite,
)
from ._request cimport LOG_SOFTMAX, Matrix

cdef enum:
    LOGITS_IN_TURNS = 2048      # of short rows that are computed together

# -- Short rows: they have one block

cdef struct Rows:
    # Evenly spaced rows that are computed together. Each is contiguous; the steps are the bytes from row to row.
    Py_ssize_t start
    Py_ssize_t count
    const char *x
    Py_ssize_t x_step
    const char *base                # NULL for ones, or if it is not used
    Py_ssize_t base_step
    char *grad                      # where the gradient is computed, or NULL
    Py_ssize_t grad_step
    void *slope                     # the derivatives of the softcap, or NULL
    void *spare                     # scratch for one block of numbers
    int form                        # the gradient is computed from x (CE_EXP), or from what was stored in its place

cdef inline Py_ssize_t rows_on_end(const Job *job, const Matrix *a, Py_ssize_t count) noexcept nogil:
    """How many of `count` evenly spaced rows follow each other as their classes do."""
    return count if a.row_stride == job.request.classes*a.class_stride else 1

cdef inline void load_rows(const Job *job, Rows *rows, floating *scratch) noexcept nogil:
    """Finds the numbers of rows where they lie, or gathers them into scratch, where the gradient replaces them."""
    cdef Py_ssize_t n = job.request.classes, size = sizeof(floating), step, p
    cdef floating *x = scratch
    cdef floating *base = scratch + BLOCK
    cdef floating *slope = slope_block(job, scratch + 2*BLOCK)
    rows.x, rows.x_step, rows.slope = row_at(&job.request.logits, rows.start), job.request.logits.row_stride, slope
    if not job.plan.logits_ready:
        rows.x, rows.x_step, step = <char *>x, n*size, rows_on_end(job, &job.request.logits, rows.count)
        for p from 0 <= p < rows.count by step:
            logits_block(job, rows.start + p, 0, step*n, x + p*n, slope + p*n if slope != NULL else NULL)
    rows.base, rows.base_step = NULL, 0
    if job.plan.base_scale != 0:
        rows.base = <const char *>base_block(job, rows.start, 0, n, base)
    if job.plan.base_kind == CE_BY_ELEMENT:
        rows.base_step = n*size if rows.base == <char *>base else job.request.targets.row_stride
        for p in range(1, rows.count if rows.base == <char *>base else 0):
            base_block(job, rows.start + p, 0, n, base + p*n)
    rows.spare = scratch + 3*BLOCK
    rows.grad, rows.grad_step = NULL, 0
    if job.plan.with_grad:
        rows.grad, rows.grad_step = <char *>x, n*size
        if job.plan.grad_ready and not job.plan.with_hvp:
            rows.grad, rows.grad_step = row_at(&job.request.grad, rows.start), job.request.grad.row_stride
    rows.form = CE_STORED
    if job.request.operation == LOG_SOFTMAX:
        rows.form = CE_DIFFERENCE
    elif job.request.stats_given:
        rows.form = CE_EXP

cdef inline void add_base_of_rows(const Job *job, const Rows *rows, State *s, Py_ssize_t r) noexcept nogil:
    cdef bint by_element = job.plan.base_kind == CE_BY_ELEMENT
    cdef Py_ssize_t p
    if job.plan.base_scale == 0 or not (job.plan.with_loss or by_element):
        return
    job.plan.primitives.rows_base(
        rows.x, rows.x_step, rows.base, rows.base_step, rows.count, job.request.classes, s.row_max + r,
        job.plan.slope, job.plan.offset, s.linear + r if job.plan.with_loss else NULL,
        s.rest + r if by_element else NULL, s.q + r)
    for p in range(r, r + rows.count):
        s.linear[p] *= job.plan.gap_scale
        s.mass[p] = s.rest[p] + s.q[p]

cdef inline const char *next_rows(const Job *job, const Rows *rows, Py_ssize_t size) noexcept nogil:
    """As much memory as the rows take in the plan's dtype, to be fetched meanwhile: the rows that follow, or, where
    they are not contiguous, rows.x."""
    cdef const Matrix *logits = &job.request.logits
    cdef Py_ssize_t stored = size_of(logits.dtype), more = rows.count*(size/stored)
    if (rows.start + rows.count + more > job.request.rows or logits.class_stride != stored
            or not (job.plan.logits_ready or logits.row_stride == job.request.classes*stored)):
        return rows.x
    return row_at(logits, rows.start) + rows.count*logits.row_stride

cdef inline void add_exponentials_of_rows(const Job *job, const Rows *rows, State *s, Py_ssize_t r,
                                          const floating *dtype) noexcept nogil:
    """Computes tail and the labels' exponentials, and stores what the gradient is computed from."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef const char *next = next_rows(job, rows, sizeof(floating))
    cdef Py_ssize_t p
    f.rows_exp_sum(rows.x, rows.x_step, rows.grad, rows.grad_step, rows.count, job.request.classes, rows.form,
                   s.row_max + r, job.request.temperature, 1, next, s.tail + r)
    for p in range(rows.count if job.plan.with_labels and rows.grad != NULL else 0):
        s.e[r + p] = (<floating *>(rows.grad + p*rows.grad_step))[s.label[r + p]]/f.exp_one

cdef inline void look_up_stats(const Job *job, const Rows *rows, State *s, Py_ssize_t r,
                               const floating *dtype) noexcept nogil:
    """Sets row_max and tail to what is given, and computes the labels' exponentials, in float64."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef Py_ssize_t p
    f.widen((<const floating *>job.request.row_max) + rows.start, rows.count, s.row_max + r)
    f.widen((<const floating *>job.request.tail) + rows.start, rows.count, s.tail + r)
    if job.plan.with_labels:
        for p in range(r, r + rows.count):
            s.e[p] = s.x_label[p] - s.row_max[p]
        exponentials(s.e + r, rows.count, job.request.temperature, s.e + r)

cdef inline void find_maxima(const Job *job, const Rows *rows, State *s, Py_ssize_t r) noexcept nogil:
    """Where maxima are whose p - q may cancel though they are not the label."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef const char *src = rows.x if rows.form == CE_EXP else rows.grad
    cdef Py_ssize_t step = rows.x_step if rows.form == CE_EXP else rows.grad_step, p
    for p in range(rows.count):
        if cancels_at_maximum(job, s, r + p):
            set_first_max(job, f.row_find(src + p*step, job.request.classes,
                                          f.exp_one if rows.form == CE_STORED else s.row_max[r + p]), s, r + p)

cdef inline void state_of_rows(const Job *job, const Rows *rows, State *s, Py_ssize_t r,
                               const floating *dtype) noexcept nogil:
    """Computes the states from r on. What is needed of the logits is read before the gradient may overwrite them."""
    cdef Py_ssize_t stop = r + rows.count, p
    for p in range(r, stop):        # of p and log(p): no class has a target, and their sum counts as 1
        s.linear[p], s.mass[p], s.rest[p], s.q[p], s.e[p] = 0, 1, 1, 0, 1
        s.exact_class[p], s.first_max[p], s.rest_at_max[p] = -1, -1, 0
    if not job.request.stats_given:
        job.plan.primitives.rows_max(rows.x, rows.x_step, rows.count, job.request.classes, s.row_max + r)
        write_maxima(job, rows.start, rows.count, s.row_max + r, dtype)
    for p in range(rows.count if job.plan.with_labels else 0):
        s.x_label[r + p] = (<const floating *>(rows.x + p*rows.x_step))[s.label[r + p]]
    if job.request.stats_given:
        look_up_stats(job, rows, s, r, dtype)
    add_base_of_rows(job, rows, s, r)
    if not job.request.stats_given:
        add_exponentials_of_rows(job, rows, s, r, dtype)
    for p in range(r, stop):
        s.tail[p] = ce_tail_if_finite(s.tail[p], s.row_max[p])
    if not job.request.stats_given:
        write_tails(job, rows.start, rows.count, s.tail + r, dtype)
    if job.plan.with_grad and job.plan.weighted_smoothing:
        find_maxima(job, rows, s, r)
    for p in range(r, stop if job.plan.with_labels else 0):
        add_label(job, s.x_label[p], s.e[p], s, p)

cdef inline void store_rows(const Job *job, const Rows *rows, const floating *dtype) noexcept nogil:
    """Multiplies the gradient by the derivatives of the softcap, and copies it from scratch, if it is there."""
    cdef Py_ssize_t n = job.request.classes, step = rows_on_end(job, &job.request.grad, rows.count), p
    cdef floating *slope = <floating *>rows.slope
    for p from 0 <= p < (0 if job.plan.grad_ready and slope == NULL else rows.count) by step:
        store_block(job, rows.start + p, 0, step*n, <floating *>(rows.grad + p*rows.grad_step),
                    slope + p*n if slope != NULL else NULL)

cdef inline void hess_of_rows(const Job *job, const Rows *rows, State *s, Py_ssize_t r,
                              const floating *dtype) noexcept nogil:
    """The diagonal of the Hessian, from the exponentials that are stored in the gradient's place."""
    cdef const Matrix *hess = &job.request.hess
    cdef Py_ssize_t n = job.request.classes, step = hess.row_stride, p
    cdef floating *dst = <floating *>row_at(hess, rows.start)
    if hess.class_stride != sizeof(floating):
        dst, step = <floating *>rows.spare, n*sizeof(floating)
    begin_hess(job, s, r, rows.count)
    set_exact_src(job, s, r, rows.count, CE_STORED)
    job.plan.primitives.rows_hess(rows.grad, rows.grad_step, dst, step, rows.count, n, s.hess_a + r, s.hess_b + r,
                                  s.exact_src + r, s.hess_at_max + r)
    for p in range(rows.count):
        dst = place_of(hess, rows.start + p, 0, <floating *>rows.spare + p*n)
        flush_result(job, dst, n)
        store_to(hess, rows.start + p, 0, n, dst)

cdef inline void hvp_of_rows(const Job *job, const Rows *rows, State *s, Py_ssize_t r,
                             const floating *dtype) noexcept nogil:
    """The Hessian times the vectors, from the exponentials that are stored in scratch."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef const Matrix *grad = &job.request.grad
    cdef const floating *v = <const floating *>row_at(&job.request.vectors, rows.start)
    cdef floating *e = <floating *>rows.grad
    cdef floating *dst = <floating *>row_at(grad, rows.start)
    cdef Py_ssize_t n = job.request.classes, size = sizeof(floating), p
    cdef Py_ssize_t step = job.request.vectors.row_stride/size, dst_step = grad.row_stride, next = 0
    coefficients(job, s, r, rows.count)
    if job.request.vectors.class_stride != size:
        v, step = <const floating *>rows.spare, n
        for p in range(rows.count):
            block(&job.request.vectors, rows.start + p, 0, n, <floating *>rows.spare + p*n)
    elif rows.start + 2*rows.count <= job.request.rows:
        next = rows.count*step
    if grad.class_stride != size:
        dst, dst_step = e, rows.grad_step
    for p in range(rows.count):
        s.v_at_max[r + p] = v[p*step + max(f.row_find(e + p*n, n, f.exp_one), 0)]
        s.spread[r + p] = f.row_spread(e + p*n, v + p*step, n, s.v_at_max[r + p], v + p*step + next)
    begin_hvp(job, s, r, rows.count)
    f.rows_hvp(e, rows.grad_step, v, step*size, dst, dst_step, rows.count, n, s.v_at_max + r, s.hess_a + r,
               s.hess_b + r)
    for p in range(rows.count):
        dst = place_of(grad, rows.start + p, 0, e + p*n)
        flush_result(job, dst, n)
        store_to(grad, rows.start + p, 0, n, dst)

cdef inline void grad_of_rows(const Job *job, const Rows *rows, State *s, Py_ssize_t r,
                              const floating *dtype) noexcept nogil:
    """The gradient from the states from r on."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef const char *src = rows.x if rows.form == CE_EXP else rows.grad
    cdef const double *shift = s.row_max
    cdef double temperature = job.request.temperature
    cdef floating *dst
    cdef Py_ssize_t src_step = rows.x_step if rows.form == CE_EXP else rows.grad_step, n = job.request.classes, p
    coefficients(job, s, r, rows.count)
    if job.plan.with_hess:
        hess_of_rows(job, rows, s, r, dtype)
    if rows.form == CE_DIFFERENCE:
        shift, temperature = s.x_label, 1
        for p in range(r, r + rows.count):
            s.x_label[p] = 0        # what is stored are quotients of differences already
    if job.plan.base_kind == CE_BY_ELEMENT:
        set_exact_src(job, s, r, rows.count, rows.form)
        f.rows_grad_by_element(src, src_step, rows.base, rows.base_step, rows.grad, rows.grad_step, rows.count, n,
                               rows.form, s.row_max + r, temperature, s.a + r, s.b + r, job.plan.slope, job.plan.offset,
                               s.exact_src + r, s.exact_grad + r, job.request.flush_below, False)
    else:
        f.rows_grad(src, src_step, rows.grad, rows.grad_step, rows.count, n, rows.form, shift + r, temperature, s.a + r,
                    s.b + r, rows.base, s.exact_class + r, s.exact_grad + r, job.request.flush_below, False)
    for p in range(rows.count if job.plan.weighted_smoothing else 0):
        if s.first_max[r + p] >= 0:
            dst = <floating *>(rows.grad + p*rows.grad_step)
            dst[s.first_max[r + p]] = <floating>s.grad_at_max[r + p]
    store_rows(job, rows, dtype)

cdef inline Py_ssize_t rows_together(const Job *job, Py_ssize_t i, Py_ssize_t n, const State *s,
                                     Py_ssize_t r) noexcept nogil:
    """How many of n rows from i on, the first of which is not ignored, can be computed together."""
    cdef Py_ssize_t k = 1
    n = min(evenly_spaced(&job.request.logits, i, n), max(LOGITS_IN_TURNS/job.request.classes, 1))
    if job.plan.with_grad:
        n = evenly_spaced(&job.request.grad, i, n)
    if job.plan.base_kind == CE_BY_ELEMENT:
        n = evenly_spaced(&job.request.targets, i, n)
    if job.plan.with_hess:
        n = evenly_spaced(&job.request.hess, i, n)
    if job.plan.with_hvp:
        n = evenly_spaced(&job.request.vectors, i, n)
    if s.ignored == 0:
        return n
    while k < n and s.label[r + k] >= 0:
        k += 1
    return k

cdef inline Py_ssize_t short_rows(const Job *job, Py_ssize_t start, Py_ssize_t count, State *s, Py_ssize_t r,
                                  floating *scratch) noexcept nogil:
    """State and gradient of rows, as many as can be computed together. They take turns at every step: one row's loads
    and arithmetic fill the gaps that the end of another's leaves. Returns how many."""
    cdef Rows rows
    rows.start, rows.count = start, rows_together(job, start, count, s, r)
    load_rows(job, &rows, scratch)
    state_of_rows(job, &rows, s, r, scratch)
    if job.plan.with_hvp:
        hvp_of_rows(job, &rows, s, r, scratch)
    elif job.plan.with_grad:
        grad_of_rows(job, &rows, s, r, scratch)
    return rows.count

# -- Groups

cdef inline void rows(const Job *job, Py_ssize_t start, Py_ssize_t count, State *s, floating *scratch) noexcept nogil:
    """State and gradient of a group."""
    cdef Py_ssize_t r = 0, classes = job.request.classes
    while r < count:
        if s.ignored > 0 and s.label[r] < 0:
            if job.request.row_max == NULL and job.request.tail == NULL:    # its logits are not even read
                s.tail[r] = s.mass[r] = s.linear[r] = s.row_max[r] = 0
            else:
                row_state(job, start + r, s, r, scratch)
                write_stats(job, start + r, 1, s, r, scratch)
            if job.plan.with_grad:
                row_zero_grad(job, start + r, 0, classes, scratch)
        elif classes <= BLOCK:
            r += short_rows(job, start + r, count - r, s, r, scratch)
            continue
        else:
            row_state(job, start + r, s, r, scratch)
            write_stats(job, start + r, 1, s, r, scratch)
            if job.plan.with_grad:
                finish_row(job, start + r, s, r, scratch)
        r += 1
