# Part of _kernels.pyx. What else is computed row by row: products with Jacobians, the two-term forms.

cdef inline void put(const Job *job, Py_ssize_t i, Py_ssize_t j, Py_ssize_t n, const floating *src) noexcept nogil:
    """g[i, j:j + n] = src, unless it is there already."""
    cdef char *grad = position(&job.g, i) + j*job.g.by_class
    cdef Py_ssize_t k
    if <char *>src != grad:
        for k in range(n):
            (<floating *>(grad + k*job.g.by_class))[0] = src[k]


cdef inline floating *place(const Job *job, Py_ssize_t i, Py_ssize_t j, floating *scratch) noexcept nogil:
    """Where a block of the gradient is put together: in its place, or in scratch."""
    if job.g.by_class == sizeof(floating):
        return <floating *>position(&job.g, i) + j
    return scratch


cdef void row_vjp(const Job *job, Py_ssize_t i, floating *scratch) noexcept nogil:
    """Row i of the product of an upstream gradient u (the job's targets) with the Jacobian of y (its logits):
    softmax: y*(u - sum u*y); log-softmax: u - exp(y)*sum u."""
    cdef const ce_primitives *f = primitives(scratch)
    cdef const char *row = position(&job.x, i)
    cdef const floating *y
    cdef const floating *u
    cdef floating *dst
    cdef bint of_log = job.output == LOG_SOFTMAX_GRAD
    cdef Py_ssize_t j, n, b, blocks = (job.classes + BLOCK - 1)/BLOCK
    cdef Sum total
    cdef double zero = 0, minus_one = -1, minus_sum
    set_sum(&total, 0)
    for b in range(blocks):
        j = b*BLOCK
        n = min(job.classes - j, BLOCK)
        u = v_block(job, i, j, n, scratch + BLOCK)
        add(&total, f.row_sum(u, n) if of_log else f.row_dot(u, logits_block(job, row, j, n, scratch), n))
    minus_sum = -value(&total)
    for b in range(blocks):
        j = b*BLOCK
        n = min(job.classes - j, BLOCK)
        y = logits_block(job, row, j, n, scratch)
        u = v_block(job, i, j, n, scratch + BLOCK)
        dst = place(job, i, j, scratch + 2*BLOCK)
        if of_log:
            f.rows_grad(y, 0, dst, 0, 1, n, CE_EXP, &zero, &minus_sum, &minus_one, u, NULL, NULL, False)
        else:
            f.row_scale(y, u, dst, n, value(&total))
        put(job, i, j, n, dst)


cdef enum:
    SMALL = 256                     # elements of the two-term forms that are worked on at a time, in float64


cdef void two_term_block(const Job *job, Py_ssize_t i, Py_ssize_t j, Py_ssize_t n, double *x, double *a,
                         double *b) noexcept nogil:
    """Logits, and the weights a = w*pos_weight*c of -log(p) and b = w*(1 - c) of -log(1 - p)."""
    cdef Py_ssize_t k
    cdef double c
    gather(job.x_type, position(&job.x, i) + j*job.x.by_class, job.x.by_class, n, x, 1)
    gather(job.c_type, position(&job.c, i) + j*job.c.by_class, job.c.by_class, n, a, 1)
    for k in range(n):
        c = a[k]
        b[k] = 1 - c
        if job.pos_weight != NULL:
            a[k] = c*job.pos_weight[j + k]
        if job.weight != NULL:
            a[k] *= job.weight[j + k]
            b[k] *= job.weight[j + k]


cdef double sigmoid_row(const Job *job, Py_ssize_t i, double scale, floating *scratch) noexcept nogil:
    """Row i of the two-term form of independent classes; returns the sum of its losses."""
    cdef const ce_primitives *f = primitives(scratch)
    cdef double x64[SMALL]
    cdef double a64[SMALL]
    cdef double b64[SMALL]
    cdef double sample = 1 if job.sample == NULL else job.sample[i]
    cdef bint with_grad = job.g.data != NULL
    # Targets of the logits' dtype without weights are a as they are, and b is 1 - a.
    cdef bint ready = job.c_ready and job.weight == NULL and job.pos_weight == NULL
    cdef const floating *z
    cdef const floating *a = scratch
    cdef const floating *b = NULL
    cdef floating *grad = NULL
    cdef floating *loss
    cdef Py_ssize_t j = 0, n, k
    cdef Sum total
    set_sum(&total, 0)
    while j < job.classes:
        n = min(job.classes - j, BLOCK if ready else SMALL)
        z = logits_block(job, position(&job.x, i), j, n, scratch + BLOCK)
        if ready:
            a = <const floating *>(position(&job.c, i)) + j
        else:
            two_term_block(job, i, j, n, x64, a64, b64)
            f.narrow(a64, n, scratch)
            f.narrow(b64, n, scratch + SMALL)
            b = scratch + SMALL
        if with_grad:
            grad = place(job, i, j, scratch + 2*BLOCK)
        loss = NULL if job.losses == NULL else (<floating *>job.losses) + i*job.classes + j
        add(&total, f.row_sigmoid(z, a, b, n, scale, loss, grad))
        if loss != NULL and job.sample != NULL:
            for k in range(n):
                loss[k] = <floating>(loss[k]*sample)
        if with_grad:
            if job.elementwise != NULL:
                for k in range(n):
                    grad[k] = <floating>(grad[k]*job.elementwise[i*job.classes + j + k])
            put(job, i, j, n, grad)
        j += n
    return sample*value(&total)


cdef inline double odds_log(double tail, double gap, double log_others) noexcept nogil:
    """-log(1 - p) of the maximum, whose odds are 1/tail; gap = row_max - the runner-up."""
    return log1p(1/tail) if tail > 1e-300 else gap - log_others


cdef double softmax_row(const Job *job, Py_ssize_t i, double scale, floating *scratch) noexcept nogil:
    """Row i of the two-term form of a softmax, with its full Jacobian, in float64; returns its loss.

    With t the first maximum, m2 the runner-up, f_j = exp(x_j - m2), r = exp(m2 - x_t), tail = r*sum f, s = 1 + tail,
    the odds o_j = p_j/(1 - p_j) = r*f_j/(s - r*f_j), h_j = b_j*o_j - a_j and H = sum h_j, sums over j != t:

        loss   = sum a_j*(log1p(tail) + (x_t - x_j)) + a_t*log1p(tail) + sum b_j*log1p(o_j) + b_t*log1p(1/tail)
        grad_t = (b_t - a_t*tail - H)/s
        grad_j = h_j - f_j*(r*(H - a_t) + b_t/sum f)/s

    Nothing divides by tail, which may underflow, and no two large numbers are subtracted.
    """
    cdef double x[SMALL]
    cdef double a[SMALL]
    cdef double b[SMALL]
    cdef double top = -INFINITY, second = -INFINITY, a_t = 0, b_t = 0, r, s, f, o, tail, log_total, common
    cdef Py_ssize_t t = -1, j, n, k, block, blocks = (job.classes + SMALL - 1)/SMALL
    cdef bint bad = False
    cdef Sum others, h, loss
    cdef double sample = 1 if job.sample == NULL else job.sample[i]
    set_sum(&others, 0)
    set_sum(&h, 0)
    set_sum(&loss, 0)
    for block in range(blocks):
        j = block*SMALL
        n = min(job.classes - j, SMALL)
        two_term_block(job, i, j, n, x, a, b)
        for k in range(n):
            if x[k] != x[k]:
                bad = True
            if x[k] > top:
                second, top, t, a_t, b_t = top, x[k], j + k, a[k], b[k]
            elif x[k] > second:
                second = x[k]
    bad = bad or not isfinite(top)
    r = exp(second - top) if second > -INFINITY else 0
    for block in range(blocks if second > -INFINITY and not bad else 0):
        j = block*SMALL
        n = min(job.classes - j, SMALL)
        two_term_block(job, i, j, n, x, a, b)
        for k in range(n):
            if j + k != t:
                add(&others, exp(x[k] - second))
    tail = r*value(&others)
    s, log_total = 1 + tail, log1p(tail)
    for block in range(blocks if not bad else 0):
        j = block*SMALL
        n = min(job.classes - j, SMALL)
        two_term_block(job, i, j, n, x, a, b)
        for k in range(n):
            if j + k != t:
                f = exp(x[k] - second) if second > -INFINITY else 0
                o = r*f/(s - r*f)
                add(&h, times(b[k], o) - a[k])
                add(&loss, times(a[k], (top - x[k]) + log_total))
                add(&loss, times(b[k], log1p(o)))
    if not bad:
        add(&loss, times(a_t, log_total))
        if b_t != 0:
            add(&loss, b_t*(odds_log(tail, top - second, log(value(&others))) if second > -INFINITY else INFINITY))
    else:
        set_sum(&loss, NAN)
    if job.losses != NULL:
        (<floating *>job.losses)[i] = <floating>(sample*value(&loss))
    if job.g.data != NULL:
        bad = bad or (second == -INFINITY and b_t != 0)
        common = (r*(value(&h) - a_t) + (b_t/value(&others) if b_t != 0 else 0))/s
        for block in range(blocks):
            j = block*SMALL
            n = min(job.classes - j, SMALL)
            two_term_block(job, i, j, n, x, a, b)
            for k in range(n):
                if bad:
                    o = NAN
                elif j + k == t:
                    o = (b_t - a_t*tail - value(&h))/s
                else:
                    f = exp(x[k] - second) if second > -INFINITY else 0
                    o = times(b[k], r*f/(s - r*f)) - a[k] - times(f, common)
                scratch[k] = <floating>(scale*o)
            put(job, i, j, n, scratch)
    return sample*value(&loss)
