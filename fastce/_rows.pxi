# Part of _kernels.pyx. Rows: vectors along the classes.

cdef void row_state(const Job *job, Py_ssize_t i, State *s, Py_ssize_t r, floating *e,
                    floating *scratch) noexcept nogil:
    """The state r of row i, block by block: each block comes from memory once. Writes the exponentials to e unless NULL.
    With stats_given, row_max and tail are not computed but looked up, and only what else is needed is read."""
    cdef const ce_primitives *f = primitives(scratch)
    cdef const char *row = position(&job.x, i)
    cdef const floating *x
    cdef const floating *v
    cdef bint by_element = job.v_kind == CE_BY_ELEMENT, given = job.stats_given
    # Where the maximum is matters only if its target may be large too: labels without weights know that of theirs.
    cdef bint find_top = by_element or job.smooth != NULL
    cdef Py_ssize_t j = 0, n, k
    cdef double row_max = -INFINITY, shift = 0, block_max, v_sum, x_k, part
    cdef Sum tail, mass, linear, rest
    set_sum(&tail, -1)          # of no class, so that 1 + tail is 0
    set_sum(&mass, 0)
    set_sum(&linear, 0)
    set_sum(&rest, 0)
    s.top[r], s.q[r], s.e[r] = -1, 0, 1
    if given:
        row_max = (<const floating *>job.row_max)[i]
        set_sum(&tail, (<const floating *>job.tail)[i])
    while j < job.classes and (by_element or job.smooth != NULL or not given):
        n = min(job.classes - j, BLOCK)
        x = logits_block(job, row, j, n, scratch)
        k = -1                  # where this block holds the first maximum of all so far
        if given:
            k = f.row_find(x, n, row_max) if s.top[r] < 0 else -1
        else:
            f.rows_max(x, 0, 1, n, &block_max)
            if block_max > row_max:
                k = f.row_find(x, n, block_max) if find_top else -1
                f.rows_exp_sum(x, 0, e, 0, 1, n, CE_STORED, &block_max, 1, block_after(job, i, j + n, x), &part)
                if j == 0:
                    set_sum(&tail, part)
                else:
                    set_sum(&tail, (1 + value(&tail))*exp(row_max - block_max))
                    add(&tail, part)
                    add(&linear, times(value(&mass), block_max - shift))
                row_max = shift = block_max
            else:
                f.rows_exp_sum(x, 0, e, 0, 1, n, CE_STORED, &shift, 0, block_after(job, i, j + n, x), &part)
                add(&tail, part)
        if k >= 0:
            s.top[r] = j + k
        if job.v_scale != 0:
            v = v_block(job, i, j, n, scratch + BLOCK)
            if job.with_loss:
                add(&linear, job.v_scale*f.row_gap_dot(x, v, n, shift))
            if by_element and k >= 0:
                rest = mass
                add(&rest, f.row_sum(v, k))
                add(&rest, f.row_sum(v + k + 1, n - k - 1))
                mass = rest
                add(&mass, v[k])
                s.q[r] = v[k]
            else:
                v_sum = job.v_scale*(n if v == NULL else f.row_sum(v, n))
                add(&mass, v_sum)
                add(&rest, v_sum)
        j += n
    s.row_max[r] = row_max
    s.tail[r] = value(&tail) if isfinite(row_max) else NAN     # every class masked, or +inf
    s.mass[r], s.linear[r], s.rest[r] = value(&mass), value(&linear), value(&rest)
    s.target[r] = s.top[r]
    if job.output != CROSS_ENTROPY:     # p and log p: of a target that is one and nothing
        s.mass[r], s.rest[r], s.target[r] = 1, 1, -1
    if job.labels != NULL and not is_ignored(job, i):
        k = job.labels[i]
        x_k = (<const floating *>(row + k*job.x.by_class))[0]
        add_label(job, k, x_k, e[k]/f.exp_one if e != NULL else exp(x_k - row_max), s, r)


cdef void short_rows(const Job *job, Py_ssize_t start, Py_ssize_t count, State *s, Py_ssize_t r,
                     const floating *dtype) noexcept nogil:
    """State r on and gradient of some rows of one block each, which take turns at every step: so one row's loads and
    arithmetic fill the gaps that the end of another's leaves. For contiguous classes and v that is nothing or ones."""
    cdef const ce_primitives *f = primitives(dtype)
    cdef const char *x = position(&job.x, start)
    cdef char *e = NULL
    cdef Py_ssize_t n = job.classes, x_step = job.x.by_position, e_step = 0, p, t
    cdef bint with_grad = job.g.data != NULL
    cdef int form = CE_DIFFERENCE if job.output == LOG_SOFTMAX else CE_STORED
    if with_grad:
        e, e_step = position(&job.g, start), job.g.by_position      # where the gradient will be
    f.rows_max(x, x_step, count, n, s.row_max + r)
    for p in range(r, r + count):
        s.linear[p], s.target[p], s.mass[p], s.rest[p], s.q[p] = 0, -1, 1, 1, 0
    if job.v_scale != 0 and job.with_loss:
        for p in range(count):
            s.linear[r + p] = job.v_scale*f.row_gap_dot(x + p*x_step, NULL, n, s.row_max[r + p])
    if job.labels != NULL:
        for p in range(count):      # before e may overwrite them
            s.x[r + p] = (<const floating *>(x + p*x_step))[job.labels[start + p]]
    f.rows_exp_sum(x, x_step, e, e_step, count, n, form, s.row_max + r, 1,
                   x + count*x_step if start + 2*count <= job.positions else x, s.tail + r)
    for p in range(r, r + count):
        s.tail[p] += 0*s.row_max[p]         # NaN where every class is masked, or at +inf
    if job.labels != NULL:
        for p in range(count):
            t = job.labels[start + p]
            add_label(job, t, s.x[r + p], 0 if e == NULL else (<floating *>(e + p*e_step))[t]/f.exp_one, s, r + p)
    if not with_grad:
        return
    coefficients(job, s, r, count, f)
    if job.output == LOG_SOFTMAX:
        for p in range(r, r + count):
            s.x[p] = 0              # the exponents are differences already
        f.rows_grad(e, e_step, e, e_step, count, n, form, s.x + r, s.a + r, s.b + r, NULL, NULL, NULL, False)
    else:
        f.rows_grad(e, e_step, e, e_step, count, n, form, s.row_max + r, s.a + r, s.b + r, NULL, s.target + r,
                    s.at_target + r, False)


cdef void row_grad(const Job *job, Py_ssize_t i, State *s, Py_ssize_t r, const floating *e,
                   floating *scratch) noexcept nogil:
    """The gradient of row i, from its exponentials in e or, when that is NULL, from its logits again."""
    cdef const ce_primitives *f = primitives(scratch)
    cdef const char *row = position(&job.x, i)
    cdef char *grad = position(&job.g, i)
    cdef const floating *src = e
    cdef floating *dst
    cdef bint direct = job.g.by_class == sizeof(floating)
    cdef Py_ssize_t j = 0, n, k, mark
    cdef int form = CE_DIFFERENCE if job.output == LOG_SOFTMAX else CE_EXP if e == NULL else CE_STORED
    coefficients(job, s, r, 1, f)
    while j < job.classes:
        n = min(job.classes - j, BLOCK)
        if e == NULL:
            src = logits_block(job, row, j, n, scratch)
        dst = (<floating *>grad) + j if direct else scratch + 2*BLOCK
        mark = s.target[r] - j if j <= s.target[r] < j + n else -1
        f.rows_grad(src, 0, dst, 0, 1, n, form, s.row_max + r, s.a + r, s.b + r, v_block(job, i, j, n, scratch + BLOCK),
                    &mark, s.at_target + r, direct and job.stream)
        if not direct:
            for k in range(n):
                (<floating *>(grad + (j + k)*job.g.by_class))[0] = dst[k]
        j += n
    if needs_top(job, s, r) and s.top[r] >= 0:
        (<floating *>(grad + s.top[r]*job.g.by_class))[0] = <floating>grad_at_top(job, s, r, s.top[r], s.target[r], f)


cdef void row_zero_grad(const Job *job, Py_ssize_t i, const floating *dtype) noexcept nogil:
    cdef char *grad = position(&job.g, i)
    cdef Py_ssize_t j
    if job.g.by_class == sizeof(floating):
        memset(grad, 0, job.classes*sizeof(floating))
    else:
        for j in range(job.classes):
            (<floating *>(grad + j*job.g.by_class))[0] = 0


cdef inline Py_ssize_t kept_run(const Job *job, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    """How many of n rows from i on, the first of which is not ignored, come before one that is."""
    cdef Py_ssize_t k = 1
    while k < n and not is_ignored(job, i + k):
        k += 1
    return k


cdef void rows(const Job *job, Py_ssize_t start, Py_ssize_t count, State *s, floating *scratch) noexcept nogil:
    cdef bint with_grad = job.g.data != NULL
    cdef Py_ssize_t r = 0, n, most = 1 if job.classes > SHORT else SHORT/job.classes
    # A row of one block leaves its exponentials where its gradient will be, or in scratch when the logits that may lie there
    # are read again; those of longer rows are computed again, for less than it costs to bring them back.
    cdef floating *e = NULL
    if with_grad and job.classes <= BLOCK and not job.stats_given and job.output != LOG_SOFTMAX:
        e = scratch + 2*BLOCK
    while r < count:
        if is_ignored(job, start + r):
            if job.row_max == NULL and job.tail == NULL:    # its logits are not even read
                s.tail[r] = s.mass[r] = s.linear[r] = s.row_max[r] = 0
            else:
                row_state(job, start + r, s, r, e, scratch)
            if with_grad:
                row_zero_grad(job, start + r, scratch)
            r += 1
        elif job.alike and job.classes <= BLOCK:
            n = run_of(&job.x, start + r, count - r)
            if with_grad:
                n = run_of(&job.g, start + r, n)
            n = min(n, most)
            if job.has_ignored:
                n = kept_run(job, start + r, n)
            short_rows(job, start + r, n, s, r, scratch)
            r += n
        else:
            row_state(job, start + r, s, r, e, scratch)
            if with_grad:
                row_grad(job, start + r, s, r, e, scratch)
            r += 1
