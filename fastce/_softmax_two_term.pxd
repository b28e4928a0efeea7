# cython: cdivision=True
# The two-term form of a softmax, with its full Jacobian. With t the first maximum, m the runner-up, f_j = exp(x_j - m),
# r = exp(m - x_t), tail = r*sum f, s = 1 + tail, the odds o_j = p_j/(1 - p_j) = r*f_j/(s - r*f_j),
# h_j = b_j*o_j - a_j and H = sum h_j, where the sums are over j != t:
#
#     loss   = sum a_j*(log1p(tail) + (x_t - x_j)) + a_t*log1p(tail) + sum b_j*log1p(o_j) + b_t*log1p(1/tail)
#     grad_t = (b_t - a_t*tail - H)/s
#     grad_j = h_j - f_j*(r*(H - a_t) + b_t/sum f)/s
#
# Nothing divides by tail, which may underflow, and no two large numbers are subtracted. reference.py derives it.
#
# A group of rows and a block of their classes are copied into scratch: as a tile, or as rows, which are padded to whole
# vectors. The gradient is copied back. If one block holds all classes, it is loaded once.
from cython cimport floating
from libc.math cimport INFINITY
from libc.string cimport memcpy, memset

from ._blocks cimport block, gather, load_tile, row_at, scatter, store_tile
from ._job cimport BY_ROWS, Job, weight_of
from ._primitives cimport CE_MAX_LANES, CE_TWO_TERM_ROWS, ce_chosen_f64, ce_fetched, ce_primitives, ce_two_term
from ._request cimport F64, Matrix

cdef enum:
    TWO_TERM_SIZE = 16384      # numbers in a block
    WIDE = 2048             # float64 targets of float32 logits that are converted at a time
    TWO_TERM_SCRATCH = 3*TWO_TERM_SIZE + 7*CE_TWO_TERM_ROWS

cdef inline Py_ssize_t whole_vectors(Py_ssize_t n) noexcept nogil:
    return (n + CE_MAX_LANES - 1)/CE_MAX_LANES*CE_MAX_LANES

cdef inline Py_ssize_t two_term_group(int path, Py_ssize_t classes) noexcept nogil:
    """How many rows are worked on at a time. One block of them holds all classes, if it can."""
    cdef Py_ssize_t fitting = TWO_TERM_SIZE/whole_vectors(classes), group = CE_TWO_TERM_ROWS
    if path == BY_ROWS:
        return min(max(fitting, 1), group)
    while group*classes > TWO_TERM_SIZE and group > CE_MAX_LANES:
        group -= 2*CE_MAX_LANES     # see plan_units
    return group

cdef struct TwoTerm:
    Py_ssize_t start                # of the rows
    Py_ssize_t count
    Py_ssize_t classes              # in a block
    bint one_block
    Py_ssize_t first_max[CE_TWO_TERM_ROWS]     # the class; -1: none
    ce_two_term c

# -- Between arrays and scratch

cdef inline Py_ssize_t place(const TwoTerm *t, Py_ssize_t p, Py_ssize_t k) noexcept nogil:
    """Where class k of row p is in a block."""
    return p*t.c.pitch + k if t.c.along else k*t.c.pitch + p

cdef inline void load(const ce_primitives *f, const TwoTerm *t, const Matrix *a, Py_ssize_t j, Py_ssize_t n,
                      floating pad, floating *dst) noexcept nogil:
    """n classes from class j on."""
    cdef const floating *src
    cdef floating *row
    cdef Py_ssize_t p, k
    if not t.c.along:
        load_tile(f, a, t.start, t.count, j, n, t.c.pitch, dst)
        return
    for p in range(t.count):
        row = dst + p*t.c.pitch
        src = block(a, t.start + p, j, n, row)
        if src != row:
            memcpy(row, src, n*sizeof(floating))
        for k in range(n, t.c.pitch):
            row[k] = pad

cdef inline void load_wide(const Job *job, const TwoTerm *t, Py_ssize_t j, Py_ssize_t n, floating *c,
                           floating *not_c) noexcept nogil:
    """float64 targets of float32 logits: 1 - c is formed before c is rounded."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef const Matrix *targets = &job.request.targets
    cdef double wide[WIDE]
    cdef Py_ssize_t step = WIDE if t.c.along else WIDE/t.c.pitch, p, k, some, numbers, at
    for p in range(t.count if t.c.along else 1):
        for k from 0 <= k < n by step:
            some = min(n - k, step)
            if t.c.along:
                gather(targets.dtype, row_at(targets, t.start + p) + (j + k)*targets.class_stride,
                       targets.class_stride, some, wide, 1)
                numbers = some
            else:
                load_tile(ce_chosen_f64, targets, t.start, t.count, j + k, some, t.c.pitch, wide)
                numbers = some*t.c.pitch
            at = place(t, p, k)
            f.narrow(wide, numbers, c + at)
            ce_chosen_f64.row_affine(wide, NULL, numbers, -1, 1, wide)
            f.narrow(wide, numbers, not_c + at)
        if t.c.along:
            for k in range(n, t.c.pitch):
                c[place(t, p, k)], not_c[place(t, p, k)] = 0, 0

cdef inline void load_block(const Job *job, TwoTerm *t, Py_ssize_t j, Py_ssize_t n, bint with_logits, floating *x,
                            floating *c, floating *not_c) noexcept nogil:
    """n classes from class j on, without the rows' first maxima, whose targets are kept."""
    cdef Py_ssize_t p, k, at
    cdef double weight
    if with_logits:
        load(job.plan.primitives, t, &job.request.logits, j, n, <floating>-INFINITY, x)
    if t.c.not_c == NULL:
        load(job.plan.primitives, t, &job.request.targets, j, n, <floating>0, c)
    else:
        load_wide(job, t, j, n, c, not_c)
    if job.weight != NULL:
        t.c.weight = (<const floating *>job.weight) + j
    for p in range(t.count):
        k = t.first_max[p] - j
        if 0 <= k < n:
            at, weight = place(t, p, k), weight_of(job, j + k)
            t.c.a_max[p] = weight*c[at]
            t.c.b_max[p] = weight*(1 - <double>c[at] if t.c.not_c == NULL else not_c[at])
            x[at], c[at] = -INFINITY, 0

cdef inline void store(const Job *job, const TwoTerm *t, Py_ssize_t j, Py_ssize_t n,
                       const floating *grad) noexcept nogil:
    cdef const Matrix *dst = &job.request.grad
    cdef Py_ssize_t p
    if not t.c.along:
        store_tile(job.plan.primitives, dst, t.start, t.count, j, n, t.c.pitch, grad, False)
        return
    for p in range(t.count):
        if dst.class_stride == sizeof(floating):
            memcpy(row_at(dst, t.start + p) + j*dst.class_stride, grad + p*t.c.pitch, n*sizeof(floating))
        else:
            scatter(dst.dtype, grad + p*t.c.pitch, n, row_at(dst, t.start + p) + j*dst.class_stride,
                    dst.class_stride, False)

cdef inline void set_fetched(const TwoTerm *t, const Matrix *a, Py_ssize_t i, Py_ssize_t size,
                             ce_fetched *fetched) noexcept nogil:
    """The rows from i on, if vectors of them lie in memory as they lie in a block."""
    cdef bint contiguous = a.class_stride == size and (t.c.along or a.row_stride == t.classes*size)
    if a.data != NULL and a.blocks == NULL and (contiguous or (a.row_stride == size and not t.c.along)):
        fetched.data, fetched.contiguous = row_at(a, i), contiguous
        fetched.row_stride, fetched.class_stride = a.row_stride, a.class_stride

cdef inline void set_all_fetched(const Job *job, TwoTerm *t, const floating *scratch) noexcept nogil:
    cdef const Matrix *targets = &job.request.targets
    cdef Py_ssize_t next = t.start + t.count, size = sizeof(floating)
    memset(&t.c.next_x, 0, sizeof(ce_fetched))
    t.c.next_x.data = <const char *>scratch
    t.c.next_c, t.c.dst = t.c.next_x, t.c.next_x
    if t.one_block:
        set_fetched(t, &job.request.grad, t.start, size, &t.c.dst)
        if next < job.request.rows:
            set_fetched(t, &job.request.logits, next, size, &t.c.next_x)
            set_fetched(t, targets, next, min(targets.row_stride, targets.class_stride), &t.c.next_c)

# -- From logits to the gradient

cdef inline void raise_maxima(const Job *job, TwoTerm *t, Py_ssize_t j, Py_ssize_t n, floating *x, floating *row_max,
                              floating *second, const floating *found) noexcept nogil:
    """Updates the maximum and the runner-up with the classes of a block."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef Py_ssize_t stride = t.c.pitch*sizeof(floating), p, k
    cdef double largest[CE_TWO_TERM_ROWS]
    if not t.c.along:
        f.two_term_maxima(&t.c, n)
        for p in range(t.count):
            if found[p] >= 0:
                t.first_max[p] = j + <Py_ssize_t>found[p]
        return
    f.rows_max(x, stride, t.count, n, largest)
    for p in range(t.count):
        if largest[p] > row_max[p]:
            k = f.row_find(x + p*t.c.pitch, n, largest[p])
            second[p], row_max[p], t.first_max[p] = row_max[p], <floating>largest[p], j + k
            x[p*t.c.pitch + k] = -INFINITY
    f.rows_max(x, stride, t.count, n, largest)
    for p in range(t.count):
        second[p] = max(second[p], <floating>largest[p])

cdef inline void two_term_state(const Job *job, TwoTerm *t, floating *x, floating *c, floating *h) noexcept nogil:
    """Everything but the gradients of the classes that are no first maximum."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef floating *row_max = <floating *>t.c.row_max
    cdef floating *second = <floating *>t.c.second
    cdef Py_ssize_t j, n, p
    for p in range(t.c.rows):
        row_max[p], second[p], t.first_max[p], t.c.a_max[p], t.c.b_max[p] = -INFINITY, -INFINITY, -1, 0, 0
    for j from 0 <= j < job.request.classes by t.classes:
        n = min(job.request.classes - j, t.classes)
        load(f, t, &job.request.logits, j, n, <floating>-INFINITY, x)
        raise_maxima(job, t, j, n, x, row_max, second, <const floating *>t.c.first_max)
    memset(&t.c.exp, 0, 5*sizeof(t.c.exp))      # all sums
    for j from 0 <= j < job.request.classes by t.classes:
        n = min(job.request.classes - j, t.classes)
        load_block(job, t, j, n, not t.one_block, x, c, h)
        f.two_term_sums(&t.c, n, t.one_block)
    f.two_term_total(&t.c)
    for j from 0 <= j < job.request.classes by t.classes:
        n = min(job.request.classes - j, t.classes)
        if not t.one_block:
            load_block(job, t, j, n, True, x, c, h)
        f.two_term_odds(&t.c, n, t.one_block, True)
    f.two_term_finish(&t.c)
    if job.request.flush_below > 0:
        ce_chosen_f64.flush_small(t.c.grad_max, t.c.rows, job.request.flush_below)

cdef inline void two_term_grad(const Job *job, TwoTerm *t, floating *x, floating *c, floating *h) noexcept nogil:
    cdef const ce_primitives *f = job.plan.primitives
    cdef Py_ssize_t j, n, p, k
    for j from 0 <= j < job.request.classes by t.classes:
        n = min(job.request.classes - j, t.classes)
        if not t.one_block:
            load_block(job, t, j, n, True, x, c, h)
            f.two_term_odds(&t.c, n, False, False)
        f.two_term_grad(&t.c, n)
        for p in range(t.count):
            k = t.first_max[p] - j
            if 0 <= k < n:
                h[place(t, p, k)] = <floating>t.c.grad_max[p]
            for k in range(n if t.c.sample[p] == 0 else 0):     # it may hold NaN
                h[place(t, p, k)] = 0
        store(job, t, j, n, h)

cdef inline double softmax_two_term(const Job *job, Py_ssize_t start, Py_ssize_t count, const double *scale,
                                    floating *scratch) noexcept nogil:
    """The two-term form of a group of rows. Returns the sum of their losses."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef floating *x = scratch
    cdef floating *c = scratch + TWO_TERM_SIZE
    cdef floating *h = scratch + 2*TWO_TERM_SIZE
    cdef floating *rows = scratch + 3*TWO_TERM_SIZE
    cdef TwoTerm t
    cdef Py_ssize_t step = CE_TWO_TERM_ROWS, p
    t.start, t.count, t.c.below = start, count, job.request.flush_below
    t.c.along = job.plan.path == BY_ROWS
    if t.c.along:
        t.classes = min(job.request.classes, TWO_TERM_SIZE)
        t.c.rows, t.c.pitch = count, whole_vectors(t.classes)
    else:
        t.c.rows = t.c.pitch = whole_vectors(count)
        t.classes = min(job.request.classes, TWO_TERM_SIZE/t.c.pitch)
    t.one_block = t.classes == job.request.classes
    t.c.x, t.c.c, t.c.h, t.c.weight = x, c, h, NULL
    t.c.not_c = h if floating is float and job.request.targets.dtype == F64 else NULL
    t.c.row_max, t.c.second, t.c.first_max = rows, rows + step, rows + 2*step
    t.c.ratio, t.c.total, t.c.scale, t.c.slope = rows + 3*step, rows + 4*step, rows + 5*step, rows + 6*step
    for p in range(t.c.rows):
        t.c.factor[p], t.c.sample[p] = 0, 0
    for p in range(count):
        t.c.factor[p] = scale[p]
        t.c.sample[p] = 1 if job.request.sample_weight == NULL else job.request.sample_weight[start + p]
    set_all_fetched(job, &t, scratch)
    two_term_state(job, &t, x, c, h)
    if job.request.losses != NULL:
        f.narrow(t.c.loss, count, (<floating *>job.request.losses) + start)
    if job.plan.with_grad:
        two_term_grad(job, &t, x, c, h)
    return ce_chosen_f64.row_sum(t.c.loss, count)
