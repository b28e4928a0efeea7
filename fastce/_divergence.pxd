# cython: cdivision=True
# The Kullback-Leibler divergence KL(q || p) = sum q*log(q/p) of p = softmax(x/T) and q = softmax(t/T), or of targets q.
#
# Let u = log(p) - log(q). Because p and q have the same sum,
#
#     loss   = sum_j q_j*(exp(u_j) - 1 - u_j)         every term is >= 0, and 0 where p and q are equal
#     grad_j = scale * (p_j - q_j),   p_j - q_j = q_j*(exp(u_j) - 1)
#
# The difference of the logarithms of both sums, which is part of every u, has a rounding error. The derivative of the
# loss with respect to it is sum(q) - sum(p), which is 0, so the error counts only by its square. For |u| <= 1/2 a
# polynomial gives exp(u) - 1 - u, and elsewhere p - q - q*u does not cancel much.
#
# Targets c that are no logits have the mass m = sum c. With q = c/m and t = T*log(c) the loss is
# m*(KL(q || p) + log(m)), and the gradient is that of q multiplied by m.
from cython cimport floating
from libc.math cimport INFINITY
from libc.string cimport memcpy

from ._blocks cimport (
    block, capped, evenly_spaced, grad_block, load_logits, load_tile, logits_block, next_block, row_at, slope_block,
    store_block, store_tile, times_slope,
)
from ._job cimport BLOCK, BY_TILES, GROUP, Job, Plan, State, Sum, add, rescaled, set_sum, value
from ._long_rows cimport RowSums, add_exponentials, begin_sums
from ._primitives cimport CE_STORED, ce_divergence, ce_primitives
from ._request cimport KL_OF_LOGITS, Matrix
from ._softmax_two_term cimport whole_vectors

cdef enum:
    DIVERGENCE_TURNS = 2048     # logits of short rows that are computed together
    WIDE = 256                  # float64 numbers that are worked on at a time, a power of 2
    OF_ROWS = 12*GROUP          # scratch for what there is one of for each row

cdef struct Divergence:
    # A group of rows.
    ce_divergence c
    Py_ssize_t start
    Py_ssize_t count
    Py_ssize_t width            # BY_TILES: count, rounded up to whole vectors

cdef inline Py_ssize_t divergence_scratch(const Plan *plan) noexcept nogil:
    """The numbers of the logits' dtype that `divergences` needs."""
    return OF_ROWS + (4 + plan.with_slopes)*plan.tile if plan.path == BY_TILES else OF_ROWS + 6*BLOCK

cdef inline void set_rows(const Job *job, ce_divergence *c, const double *scale, Py_ssize_t rows, Py_ssize_t used,
                          floating *scratch) noexcept nogil:
    """Rows, of which the last are not used, and the scratch for what there is one of for each."""
    cdef Py_ssize_t p
    c.rows, c.temperature, c.of_logits = rows, job.request.temperature, job.request.operation == KL_OF_LOGITS
    c.along, c.grad = job.plan.path != BY_TILES, NULL
    c.x_shift, c.t_shift, c.gap = scratch, scratch + GROUP, scratch + 2*GROUP
    c.offset, c.p_factor, c.q_factor = scratch + 3*GROUP, scratch + 4*GROUP, scratch + 5*GROUP
    c.scale, c.x_top, c.t_top = scratch + 6*GROUP, scratch + 7*GROUP, scratch + 8*GROUP
    for p in range(rows):
        c.factor[p] = scale[p] if p < used else 0
    for p in range(0 if c.of_logits else rows):
        c.t_max[p] = 0

cdef inline void take_logarithms(const Job *job, const floating *targets, Py_ssize_t n, floating *logs) noexcept nogil:
    """temperature times the logarithms of targets."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef double wide[WIDE]
    cdef double wide_logs[WIDE]
    cdef Py_ssize_t k, m
    for k from 0 <= k < n by WIDE:
        m = min(n - k, WIDE)
        f.widen(targets + k, m, wide)
        f.logarithms(wide, m, job.request.temperature, wide_logs)
        f.narrow(wide_logs, m, logs + k)

cdef inline void add_mass(const Job *job, const floating *targets, Py_ssize_t n, Sum *mass) noexcept nogil:
    """Adds the targets of a row to its mass. Nothing is lost but in `lost`, because an error of the mass would count in
    full: WIDE sums at first, which are then added by halves."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef double wide[WIDE]
    cdef double total[WIDE]
    cdef double lost[WIDE]
    cdef Py_ssize_t k, p, m, width = 1
    while width < min(n, <Py_ssize_t>WIDE):
        width *= 2
    for p in range(width):
        total[p], lost[p] = 0, 0
    for k from 0 <= k < n by WIDE:
        m = min(n - k, WIDE)
        f.widen(targets + k, m, wide)
        f.add_compensated(total, lost, wide, m)
    while width > 1:
        width /= 2
        f.add_compensated(total, lost, total + width, width)
        for p in range(width):
            lost[p] += lost[p + width]
    add(mass, total[0])
    mass.lost += lost[0]

cdef inline void set_mass(ce_divergence *c, Py_ssize_t p, double total, double lost) noexcept nogil:
    """The mass in two words, the first of which is the sum rounded once."""
    c.mass[p] = total + lost
    c.mass_lost[p], c.t_tail[p] = lost - (c.mass[p] - total), c.mass[p] - 1

# -- Rows: vectors along the classes

cdef inline const floating *targets_block(const Job *job, Py_ssize_t i, Py_ssize_t j, Py_ssize_t n,
                                          floating *scratch) noexcept nogil:
    """n targets of row i from class j on, or target logits, which are capped as the logits are."""
    cdef const floating *targets = block(&job.request.targets, i, j, n, scratch)
    return capped(job, targets, n, scratch, NULL) if job.request.operation == KL_OF_LOGITS else targets

cdef inline void load_row_block(const Job *job, Divergence *d, Py_ssize_t j, Py_ssize_t n,
                                floating *scratch) noexcept nogil:
    """Finds n classes from j on of evenly spaced rows where they lie, or copies them into scratch; and where their
    exponentials, or the logarithms of targets, will be. Derivatives of the softcap are behind the gradient."""
    cdef ce_divergence *c = &d.c
    cdef const Matrix *x = &job.request.logits
    cdef const Matrix *targets = &job.request.targets
    cdef Py_ssize_t size = sizeof(floating), pitch = whole_vectors(n), p
    cdef floating *logs = scratch + BLOCK
    cdef floating *e_t = scratch + 3*BLOCK
    cdef floating *slope = slope_block(job, scratch + 5*BLOCK)
    cdef const floating *row
    c.x, c.x_step = logits_block(job, d.start, j, n, scratch, slope), x.row_stride
    if c.x == scratch:
        c.x_step = pitch*size
        for p in range(1, d.count):
            logits_block(job, d.start + p, j, n, scratch + p*pitch, slope + p*pitch if slope != NULL else NULL)
    scratch = logs if c.of_logits else e_t
    row = targets_block(job, d.start, j, n, scratch)
    c.t, c.t_step = row, targets.row_stride
    if row == scratch:
        c.t_step = pitch*size
        for p in range(1, d.count):
            targets_block(job, d.start + p, j, n, scratch + p*pitch)
    c.e_t, c.e_t_step = e_t, pitch*size
    if not c.of_logits:
        c.e_t, c.e_t_step = c.t, c.t_step
        c.t, c.t_step = logs, pitch*size
    c.e_x, c.e_x_step = logs + BLOCK, pitch*size

cdef inline const floating *row_of(const void *a, Py_ssize_t step, Py_ssize_t p, const floating *dtype) noexcept nogil:
    return <const floating *>(<const char *>a + p*step)

cdef inline void set_row_grads(const Job *job, Divergence *d, Py_ssize_t j, floating *scratch) noexcept nogil:
    """Where a block of the gradient is computed: in its place, or in scratch. What is written past the caches is
    computed in scratch too, because vectors are not aligned to its place."""
    cdef ce_divergence *c = &d.c
    if not job.plan.with_grad:
        return
    c.grad, c.grad_step = grad_block(job, d.start, j, scratch), job.request.grad.row_stride
    if job.plan.stream:
        c.grad = scratch
    if c.grad == scratch:
        c.grad_step = c.e_x_step

cdef inline void store_row_grads(const Job *job, const Divergence *d, Py_ssize_t j, Py_ssize_t n,
                                 floating *scratch) noexcept nogil:
    """Multiplies the gradient by the derivatives of the softcap, and copies it from scratch, if it is there."""
    cdef const Matrix *grad = &job.request.grad
    cdef floating *row
    cdef Py_ssize_t p
    if d.c.grad != scratch and not job.plan.with_slopes:
        return
    for p in range(d.count):
        row = <floating *>(<char *>d.c.grad + p*d.c.grad_step)
        if job.plan.with_slopes:
            times_slope(job, row, scratch + BLOCK + p*whole_vectors(n), n, row)
        if d.c.grad != scratch:
            continue
        if job.plan.stream and grad.class_stride == sizeof(floating):
            job.plan.primitives.store_runs(row, 0, 1, n, row_at(grad, d.start + p) + j*grad.class_stride, 0, True)
        else:
            store_block(job, d.start + p, j, n, row, NULL)

cdef inline const char *next_rows(const Matrix *a, const char *x, Py_ssize_t x_step, Py_ssize_t start,
                                  Py_ssize_t count, Py_ssize_t rows) noexcept nogil:
    """What is read after `count` rows at x, if it is as far from each other; else x."""
    if start + 2*count <= rows and x == row_at(a, start):
        return x + count*x_step
    return x

cdef inline void short_rows(const Job *job, Divergence *d, floating *scratch) noexcept nogil:
    """Divergence and gradient of rows that have one block."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef ce_divergence *c = &d.c
    cdef Py_ssize_t n = job.request.classes, rows = job.request.rows, p
    cdef Sum mass
    load_row_block(job, d, 0, n, scratch)
    f.rows_max(c.x, c.x_step, d.count, n, c.x_max)
    f.rows_exp_sum(c.x, c.x_step, <void *>c.e_x, c.e_x_step, d.count, n, CE_STORED, c.x_max, c.temperature, 1,
                   next_rows(&job.request.logits, <const char *>c.x, c.x_step, d.start, d.count, rows), c.x_tail)
    if c.of_logits:
        f.rows_max(c.t, c.t_step, d.count, n, c.t_max)
        f.rows_exp_sum(c.t, c.t_step, <void *>c.e_t, c.e_t_step, d.count, n, CE_STORED, c.t_max, c.temperature, 1,
                       next_rows(&job.request.targets, <const char *>c.t, c.t_step, d.start, d.count, rows), c.t_tail)
    else:
        for p in range(d.count):
            set_sum(&mass, 0)
            add_mass(job, row_of(c.e_t, c.e_t_step, p, scratch), n, &mass)
            set_mass(c, p, mass.total, mass.lost)
            take_logarithms(job, row_of(c.e_t, c.e_t_step, p, scratch), n,
                            <floating *>row_of(c.t, c.t_step, p, scratch))
    f.divergence_begin(c)
    set_row_grads(job, d, 0, scratch + 4*BLOCK)
    f.divergence(c, n)
    store_row_grads(job, d, 0, n, scratch + 4*BLOCK)
    f.divergence_finish(c)

cdef inline void long_row(const Job *job, Divergence *d, floating *scratch) noexcept nogil:
    """Divergence and gradient of a row of several blocks. Its exponentials are computed twice, which costs less than
    storing and reading them."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef ce_divergence *c = &d.c
    cdef RowSums x_sums, t_sums
    cdef Sum mass
    cdef Py_ssize_t classes = job.request.classes, j, n
    cdef const floating *x
    cdef const floating *t
    cdef double unused
    begin_sums(&x_sums)
    begin_sums(&t_sums)
    set_sum(&mass, 0)
    for j from 0 <= j < classes by BLOCK:
        n = min(classes - j, BLOCK)
        x = logits_block(job, d.start, j, n, scratch, NULL)
        add_exponentials(job, n, x, next_block(job, d.start, j + n, x), &x_sums)
        t = targets_block(job, d.start, j, n, scratch)
        if c.of_logits:
            add_exponentials(job, n, t, t + n if t != scratch and j + n < classes else t, &t_sums)
        else:
            add_mass(job, t, n, &mass)
    c.x_max[0], c.x_tail[0] = x_sums.row_max, value(&x_sums.tail)
    if c.of_logits:
        c.t_max[0], c.t_tail[0] = t_sums.row_max, value(&t_sums.tail)
    else:
        set_mass(c, 0, mass.total, mass.lost)
    f.divergence_begin(c)
    for j from 0 <= j < classes by BLOCK:
        n = min(classes - j, BLOCK)
        load_row_block(job, d, j, n, scratch)
        if c.of_logits:
            c.e_x = NULL
        else:
            f.rows_exp_sum(c.x, 0, <void *>c.e_x, 0, 1, n, CE_STORED, c.x_max, c.temperature, 0, c.x, &unused)
            take_logarithms(job, <const floating *>c.e_t, n, <floating *>c.t)
        set_row_grads(job, d, j, scratch + 4*BLOCK)
        f.divergence(c, n)
        store_row_grads(job, d, j, n, scratch + 4*BLOCK)
    f.divergence_finish(c)

cdef inline Py_ssize_t together(const Job *job, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    """How many of n rows from i on can be computed together."""
    if job.request.classes > BLOCK:
        return 1
    n = min(evenly_spaced(&job.request.logits, i, n), max(DIVERGENCE_TURNS/job.request.classes, 1))
    if job.plan.with_grad:
        n = evenly_spaced(&job.request.grad, i, n)
    return evenly_spaced(&job.request.targets, i, n)

# -- Tiles: vectors across rows

cdef struct TileSums:
    # Tails of a tile's logits, or of its target logits, so far.
    double *tail
    double lost[GROUP]
    double part[GROUP]          # the sums of a block

cdef inline void add_tile_sums(const Job *job, TileSums *sums, Py_ssize_t j, Py_ssize_t n, Py_ssize_t width,
                               const floating *x, floating *e, floating *row_max, floating *before) noexcept nogil:
    """Adds a block of n classes from j on. Its exponentials are stored in e, unless it is NULL."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef double temperature = job.request.temperature
    cdef Py_ssize_t p
    for p in range(width if j == 0 else 0):
        row_max[p], sums.lost[p] = -INFINITY, 0
    memcpy(before, row_max, width*sizeof(floating))
    f.tile_max(x, n, width, row_max)
    for p in range(width if j > 0 else 0):
        if row_max[p] > before[p]:
            sums.tail[p] = rescaled(1 + sums.tail[p] + sums.lost[p], before[p], row_max[p], temperature)
            sums.lost[p] = 0
    f.tile_exp_sum(x, e, n, width, row_max, before, temperature, NULL, &sums.part[0] if j > 0 else sums.tail, NULL,
                   NULL, x, 0, <void *>x, 0)
    if j > 0:
        f.add_compensated(sums.tail, sums.lost, sums.part, width)

cdef inline void add_tile_mass(const Job *job, ce_divergence *c, const floating *targets, Py_ssize_t n,
                               Py_ssize_t width) noexcept nogil:
    """Adds a block of targets to the masses."""
    cdef double wide[GROUP]
    cdef Py_ssize_t k
    for k in range(n):
        job.plan.primitives.widen(targets + k*width, width, wide)
        job.plan.primitives.add_compensated(c.mass, c.mass_lost, wide, width)

cdef inline void load_tiles(const Job *job, const Divergence *d, Py_ssize_t j, Py_ssize_t n, floating *x,
                            floating *slope, floating *targets) noexcept nogil:
    """Loads n classes from j on."""
    load_logits(job, d.start, d.count, j, n, d.width, x, slope)
    load_tile(job.plan.primitives, &job.request.targets, d.start, d.count, j, n, d.width, targets)
    if d.c.of_logits:
        capped(job, targets, n*d.width, targets, NULL)

cdef inline void tile_state(const Job *job, Divergence *d, floating *x, floating *slope, floating *targets,
                            floating *e_x, floating *e_t, floating *row_max) noexcept nogil:
    """Maxima, the logits' at row_max, and sums of all blocks. The last block stays in x, slope and targets, its
    exponentials in e_x and e_t."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef ce_divergence *c = &d.c
    cdef TileSums x_sums, t_sums
    cdef floating *t_max = row_max + GROUP
    cdef floating *before = row_max + 2*GROUP
    cdef Py_ssize_t j, n, p, width = d.width, most = job.plan.tile/width
    x_sums.tail, t_sums.tail = c.x_tail, c.t_tail
    for p in range(0 if c.of_logits else width):
        c.mass[p], c.mass_lost[p] = 0, 0
    for j from 0 <= j < job.request.classes by most:
        n = min(job.request.classes - j, most)
        load_tiles(job, d, j, n, x, slope, targets)
        add_tile_sums(job, &x_sums, j, n, width, x, e_x, row_max, before)
        if c.of_logits:
            add_tile_sums(job, &t_sums, j, n, width, targets, e_t, t_max, before)
        else:
            add_tile_mass(job, c, targets, n, width)
    f.widen(row_max, width, c.x_max)
    for p in range(width):
        c.x_tail[p] += x_sums.lost[p]
    if c.of_logits:
        f.widen(t_max, width, c.t_max)
        for p in range(width):
            c.t_tail[p] += t_sums.lost[p]
    for p in range(0 if c.of_logits else width):
        c.t_max[p] = 0
        set_mass(c, p, c.mass[p], c.mass_lost[p])

cdef inline void divergence_of_tile(const Job *job, Divergence *d, floating *scratch) noexcept nogil:
    """Divergence and gradient of rows of any layout. The gradient is computed in the logits' place in scratch."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef ce_divergence *c = &d.c
    cdef Py_ssize_t classes = job.request.classes, width = d.width, most = job.plan.tile/width
    cdef Py_ssize_t chunk = min(max(job.plan.chunk/width, 1), most), j, k, m
    cdef floating *x = scratch
    cdef floating *t = scratch + job.plan.tile
    cdef floating *e_x = scratch + 2*job.plan.tile
    cdef floating *e_t = scratch + 3*job.plan.tile
    cdef floating *targets = t if c.of_logits else e_t
    cdef floating *slope = slope_block(job, scratch + 4*job.plan.tile)
    cdef floating *row_max = scratch + divergence_scratch(&job.plan) - 3*GROUP
    cdef double unused[GROUP]
    cdef bint stored = classes <= chunk, one_block = classes <= most
    tile_state(job, d, x, slope, targets, e_x if stored else NULL, e_t if stored else NULL, row_max)
    f.divergence_begin(c)
    c.x_step = c.t_step = c.e_x_step = c.e_t_step = c.grad_step = width*sizeof(floating)
    for j from 0 <= j < classes by chunk:
        m, k = min(classes - j, chunk), j*width if one_block else 0
        if not one_block:
            load_tiles(job, d, j, m, x, slope, targets)
        if not stored and not c.of_logits:
            f.tile_exp_sum(x + k, e_x + k, m, width, row_max, row_max, c.temperature, NULL, unused, NULL, NULL, x, 0, x,
                           0)
        if not c.of_logits:
            take_logarithms(job, e_t + k, m*width, t + k)
        c.x, c.t, c.e_x, c.e_t = x + k, t + k, e_x + k, e_t + k
        if not stored and c.of_logits:
            c.e_x = NULL
        c.grad = x + k if job.plan.with_grad else NULL
        f.divergence(c, m)
        if slope != NULL:
            times_slope(job, x + k, slope + k, m*width, x + k)
        if job.plan.with_grad:
            store_tile(f, &job.request.grad, d.start, d.count, j, m, width, x + k, job.plan.stream)
    f.divergence_finish(c)

# -- Groups

cdef inline void divergences(const Job *job, Py_ssize_t start, Py_ssize_t count, State *s,
                             floating *scratch) noexcept nogil:
    """Losses and gradient of a group."""
    cdef Divergence d
    cdef floating *rows = scratch + divergence_scratch(&job.plan) - OF_ROWS
    cdef Py_ssize_t r = 0
    while r < count:
        d.start, d.count = start + r, count - r
        if job.plan.path == BY_TILES:
            d.width = whole_vectors(count)
            set_rows(job, &d.c, s.scale, d.width, count, rows)
            divergence_of_tile(job, &d, scratch)
        else:
            d.count = together(job, start + r, count - r)
            set_rows(job, &d.c, s.scale + r, d.count, d.count, rows)
            if job.request.classes <= BLOCK:
                short_rows(job, &d, scratch)
            else:
                long_row(job, &d, scratch)
        memcpy(s.loss + r, d.c.loss, d.count*sizeof(double))
        r += d.count
