# cython: cdivision=True
# The entropy of p = softmax(x/temperature) and its gradient; and the evaluation of logits by their labels, which needs
# the same sums. With d_j = (x_j - row_max)/temperature, tail as elsewhere and gap_dot = sum_j exp(d_j)*-d_j:
#
#     mean    = gap_dot/(1 + tail)                  the mean of -d under p
#     entropy = log1p(tail) + mean                  both terms are >= 0
#     grad_j  = -scale*p_j*(d_j + mean)             scale contains 1/temperature; at the maximum d_j is 0
#
# Like cross-entropy it is computed along the classes of rows, or across rows in tiles. Every logit is read from memory
# once, and once more for the gradient of long rows.
from cython cimport floating
from libc.math cimport INFINITY, exp, isnan
from libc.string cimport memcpy

from ._blocks cimport (
    grad_block, load_logits, logit_of, logits_block, next_block, slope_block, store_block, store_tile, times_slope,
)
from ._job cimport BLOCK, BY_TILES, GROUP, Job, Plan, State, Sum, add, set_sum, shift_of, value
from ._primitives cimport CE_MAX_LANES, ce_primitives, ce_tail_if_finite
from ._request cimport ENTROPY, EVALUATE
from ._rows cimport Rows, load_rows, rows_together

cdef struct EntropySums:
    # The state of the blocks of a row so far.
    double row_max
    Sum tail
    Sum gap_dot

cdef inline bint is_entropy(int operation) noexcept nogil:
    """Whether it is an operation of this file."""
    return operation == ENTROPY or operation == EVALUATE

cdef inline Py_ssize_t entropy_scratch(const Plan *plan) noexcept nogil:
    """The numbers of the logits' dtype that `entropies` needs."""
    return plan.tile*(2 if plan.with_slopes else 1) + 11*GROUP if plan.path == BY_TILES else 3*BLOCK

cdef inline void begin_entropy(EntropySums *sums) noexcept nogil:
    sums.row_max = -INFINITY
    set_sum(&sums.tail, -1)         # of no class, so that 1 + tail is 0
    set_sum(&sums.gap_dot, 0)

cdef inline void add_entropy(EntropySums *sums, double row_max, double tail, double gap_dot,
                             double temperature) noexcept nogil:
    """Adds the sums of a block, whose d are differences from row_max: the largest logit so far. If it is in this block,
    tail excludes it."""
    cdef double gap, total, root
    if row_max > sums.row_max:
        # All exponentials so far are multiplied by exp(-gap), in two steps, because gap_dot may be a normal number
        # where exp(-gap) is not. A gap beyond that makes them 0.
        gap, total = (row_max - sums.row_max)/temperature, 1 + value(&sums.tail)
        root = exp(-gap/2)
        set_sum(&sums.gap_dot, (value(&sums.gap_dot) + total*gap)*root*root if root > 0 else total*0)
        set_sum(&sums.tail, total*root*root)
        sums.row_max = row_max
    add(&sums.tail, tail)
    add(&sums.gap_dot, gap_dot)

cdef inline void set_entropy(const EntropySums *sums, State *s, Py_ssize_t r) noexcept nogil:
    s.row_max[r], s.tail[r], s.linear[r] = sums.row_max, value(&sums.tail), value(&sums.gap_dot)

cdef inline void finish_entropies(State *s, Py_ssize_t r, Py_ssize_t n) noexcept nogil:
    """The coefficients of n rows from r on, whose sums are complete: linear becomes the mean."""
    cdef double share
    cdef Py_ssize_t p
    for p in range(r, r + n):
        s.tail[p] = ce_tail_if_finite(s.tail[p], s.row_max[p])
        share = 1/(1 + s.tail[p])
        s.mass[p], s.linear[p], s.a[p] = 1, s.linear[p]*share, s.scale[p]*share

# -- Rows

cdef inline void rank_block(const Job *job, Py_ssize_t i, Py_ssize_t j, Py_ssize_t n, const floating *x, bint first,
                            bint new_max, State *s, Py_ssize_t r) noexcept nogil:
    """Adds a block of row i, from class j on, to the rank of its label. A new maximum is in this block."""
    cdef Py_ssize_t rank = job.plan.primitives.row_rank(x, n, s.label[r] - j, s.x_label[r])
    job.request.ranks[i] = rank if first else job.request.ranks[i] + rank
    if new_max and job.request.first_max != NULL:
        job.request.first_max[i] = j + max(job.plan.primitives.row_find(x, n, s.row_max[r]), 0)

cdef inline Py_ssize_t short_entropies(const Job *job, Py_ssize_t i, Py_ssize_t count, State *s, Py_ssize_t r,
                                       floating *scratch) noexcept nogil:
    """Entropies and gradients of rows of one block, as many as can be computed together. Returns how many."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef Py_ssize_t n = job.request.classes, e_step, p
    cdef double temperature = job.request.temperature
    cdef const floating *x
    cdef char *e
    cdef Rows rows
    rows.start, rows.count = i, rows_together(job, i, count, s, r)
    load_rows(job, &rows, scratch)
    e, e_step = rows.grad, rows.grad_step
    if rows.grad == rows.x:             # in place: the logits are needed again
        e, e_step = <char *>(scratch + BLOCK), n*sizeof(floating)
    f.rows_max(rows.x, rows.x_step, rows.count, n, s.row_max + r)
    for p in range(rows.count if job.plan.with_labels else 0):
        x = <const floating *>(rows.x + p*rows.x_step)
        s.x_label[r + p] = x[s.label[r + p]]
        rank_block(job, i + p, 0, n, x, True, True, s, r + p)
    f.rows_entropy(rows.x, rows.x_step, e, e_step, rows.count, n, s.row_max + r, temperature, 1,
                   rows.x + (rows.count*rows.x_step if i + 2*rows.count <= job.request.rows else 0), s.tail + r,
                   s.linear + r)
    finish_entropies(s, r, rows.count)
    if job.plan.with_grad:
        f.rows_entropy_grad(rows.x, rows.x_step, e, e_step, rows.grad, rows.grad_step, rows.count, n, s.row_max + r,
                            temperature, s.a + r, s.linear + r, job.request.flush_below, False)
        for p in range(rows.count):
            store_block(job, i + p, 0, n, <floating *>(rows.grad + p*rows.grad_step),
                        <floating *>rows.slope + p*n if rows.slope != NULL else NULL)
    return rows.count

cdef inline void long_entropy(const Job *job, Py_ssize_t i, State *s, Py_ssize_t r, floating *scratch) noexcept nogil:
    """The sums of row i, block by block, and its gradient."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef Py_ssize_t j, n, classes = job.request.classes
    cdef double temperature = job.request.temperature, shift, tail, gap_dot
    cdef const floating *x
    cdef floating *slope = slope_block(job, scratch + BLOCK)
    cdef floating *dst
    cdef bint new_max
    cdef EntropySums sums
    begin_entropy(&sums)
    if job.plan.with_labels:
        s.x_label[r] = logit_of(job, i, s.label[r], scratch)
    for j from 0 <= j < classes by BLOCK:
        n = min(classes - j, BLOCK)
        x = logits_block(job, i, j, n, scratch, NULL)
        f.rows_max(x, 0, 1, n, s.row_max + r)
        new_max = s.row_max[r] > sums.row_max
        if not new_max:
            s.row_max[r] = sums.row_max
        shift = shift_of(s.row_max[r])
        if job.plan.with_labels:
            rank_block(job, i, j, n, x, j == 0, new_max or j == 0, s, r)
        f.rows_entropy(x, 0, NULL, 0, 1, n, &shift, temperature, new_max, next_block(job, i, j + n, x), &tail, &gap_dot)
        add_entropy(&sums, s.row_max[r], tail, gap_dot, temperature)
    set_entropy(&sums, s, r)
    finish_entropies(s, r, 1)
    for j from 0 <= j < (classes if job.plan.with_grad else 0) by BLOCK:
        n = min(classes - j, BLOCK)
        x = logits_block(job, i, j, n, scratch, slope)
        dst = grad_block(job, i, j, scratch + 2*BLOCK)
        f.rows_entropy_grad(x, 0, NULL, 0, dst, 0, 1, n, s.row_max + r, temperature, s.a + r, s.linear + r,
                            job.request.flush_below, job.plan.stream and dst != scratch + 2*BLOCK)
        store_block(job, i, j, n, dst, slope)

cdef inline void entropies_of_rows(const Job *job, Py_ssize_t start, Py_ssize_t count, State *s,
                                   floating *scratch) noexcept nogil:
    cdef Py_ssize_t r = 0
    while r < count:
        if s.ignored > 0 and s.label[r] < 0:    # its logits are not even read
            s.row_max[r], s.tail[r], s.linear[r], s.mass[r], s.x_label[r] = 0, 0, 0, 1, 0
        elif job.request.classes <= BLOCK:
            r += short_entropies(job, start + r, count - r, s, r, scratch)
            continue
        else:
            long_entropy(job, start + r, s, r, scratch)
        r += 1

# -- Tiles

cdef struct EntropyTile:
    Py_ssize_t start                # of its rows
    Py_ssize_t count
    Py_ssize_t width                # count, rounded up to whole vectors
    # In scratch, of the logits' dtype, one number for each row:
    void *row_max
    void *row_max_before
    void *a
    void *mean
    void *x_label
    void *label                     # counted from the block's first class
    void *rank                      # what a block adds to it
    void *largest                   # for columns_argmax, which needs room for three numbers more

cdef inline void narrow_padded(const Job *job, const EntropyTile *tile, const double *src,
                               floating *dst) noexcept nogil:
    cdef Py_ssize_t p
    job.plan.primitives.narrow(src, tile.count, dst)
    for p in range(tile.count, tile.width):
        dst[p] = 0

cdef inline void rank_tile(const Job *job, const EntropyTile *tile, Py_ssize_t j, Py_ssize_t n, const floating *x,
                           const floating *rank, const State *s) noexcept nogil:
    """Adds a block, from class j on, to the ranks of the labels, and to the places of the maxima."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef Py_ssize_t *ranks = job.request.ranks + tile.start
    cdef Py_ssize_t p
    f.label_lanes(s.label, tile.count, j, tile.label)
    f.tile_rank(x, n, tile.width, tile.label, tile.x_label, tile.rank)
    for p in range(tile.count):
        ranks[p] = <Py_ssize_t>rank[p] + (ranks[p] if j > 0 else 0)
    if job.request.first_max != NULL:
        f.columns_argmax(x, tile.width*sizeof(floating), j, n, tile.count, job.request.first_max + tile.start,
                         tile.largest, (<floating *>tile.largest) + GROUP)

cdef inline void sums_of_tile(const Job *job, const EntropyTile *tile, Py_ssize_t block, floating *x, floating *slope,
                              floating *row_max, State *s) noexcept nogil:
    """The sums of a tile's rows. The last block, of so many classes, stays in x, and its derivatives of the softcap in
    slope."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef Py_ssize_t classes = job.request.classes, j, n, p
    cdef double temperature = job.request.temperature
    cdef double tail[GROUP]
    cdef double gap_dot[GROUP]
    cdef EntropySums sums[GROUP]
    for p in range(tile.width):
        row_max[p] = -INFINITY
    for p in range(tile.width if block < classes else 0):
        begin_entropy(sums + p)
    for j from 0 <= j < classes by block:
        n = min(classes - j, block)
        memcpy(tile.row_max_before, row_max, tile.width*sizeof(floating))
        load_logits(job, tile.start, tile.count, j, n, tile.width, x, slope)
        f.tile_max(x, n, tile.width, row_max)
        if job.plan.with_labels:
            rank_tile(job, tile, j, n, x, <const floating *>tile.rank, s)
        if block >= classes:
            f.tile_entropy(x, n, tile.width, row_max, tile.row_max_before, temperature, s.tail, s.linear)
            f.widen(row_max, tile.count, s.row_max)
            return
        f.tile_entropy(x, n, tile.width, row_max, tile.row_max_before, temperature, tail, gap_dot)
        for p in range(tile.count):
            add_entropy(sums + p, row_max[p], tail[p], gap_dot[p], temperature)
    for p in range(tile.count):
        set_entropy(sums + p, s, p)

cdef inline void entropies_of_tile(const Job *job, Py_ssize_t start, Py_ssize_t count, State *s,
                                   floating *scratch) noexcept nogil:
    cdef const ce_primitives *f = job.plan.primitives
    cdef Py_ssize_t classes = job.request.classes, block, j, n, p
    cdef floating *x = scratch + 11*GROUP
    cdef floating *slope = slope_block(job, x + job.plan.tile)
    cdef EntropyTile tile
    tile.start, tile.count = start, count
    tile.width = (count + CE_MAX_LANES - 1)/CE_MAX_LANES*CE_MAX_LANES
    tile.row_max, tile.row_max_before = scratch, scratch + GROUP
    tile.a, tile.mean = scratch + 2*GROUP, scratch + 3*GROUP
    tile.x_label, tile.label, tile.rank = scratch + 4*GROUP, scratch + 5*GROUP, scratch + 6*GROUP
    tile.largest = scratch + 7*GROUP
    block = job.plan.tile/tile.width
    for p in range(count if job.plan.with_labels else 0):
        s.x_label[p] = logit_of(job, start + p, max(s.label[p], 0), scratch)
    if job.plan.with_labels:
        narrow_padded(job, &tile, s.x_label, scratch + 4*GROUP)
    sums_of_tile(job, &tile, block, x, slope, scratch, s)
    finish_entropies(s, 0, count)
    if not job.plan.with_grad:
        return
    narrow_padded(job, &tile, s.a, scratch + 2*GROUP)
    narrow_padded(job, &tile, s.linear, scratch + 3*GROUP)
    for j from 0 <= j < classes by block:
        n = min(classes - j, block)
        if block < classes:
            load_logits(job, start, count, j, n, tile.width, x, slope)
        f.tile_entropy_grad(x, n, tile.width, tile.row_max, job.request.temperature, tile.a, tile.mean)
        if slope != NULL:
            times_slope(job, x, slope, n*tile.width, x)
        elif job.request.flush_below > 0:
            f.flush_small(x, n*tile.width, job.request.flush_below)
        store_tile(f, &job.request.grad, start, count, j, n, tile.width, x, job.plan.stream)

# -- Groups

cdef inline void write_values(const Job *job, Py_ssize_t start, Py_ssize_t count, State *s, double *values,
                              floating *dst) noexcept nogil:
    """dst[start:start + count] = values, but 0 where the row is ignored. NULL: not wanted."""
    if dst != NULL:
        if s.ignored > 0:
            job.plan.primitives.zero_ignored(s.label, count, values)
        job.plan.primitives.narrow(values, count, dst + start)

cdef inline void set_places(const Job *job, Py_ssize_t i, State *s, Py_ssize_t r, const floating *dtype) noexcept nogil:
    """The rank and first_max of a row that is ignored or has no probabilities: -1, but first_max of the latter is the
    first NaN, if there is NaN."""
    cdef Py_ssize_t j
    job.request.ranks[i] = -1
    if job.request.first_max == NULL:
        return
    if s.label[r] < 0:
        job.request.first_max[i] = -1
        return
    for j in range(job.request.classes):
        if isnan(logit_of(job, i, j, dtype)):
            job.request.first_max[i] = j
            return

cdef inline void finish_evaluation(const Job *job, Py_ssize_t start, Py_ssize_t count, State *s,
                                   const floating *dtype) noexcept nogil:
    """Writes what a group's rows are evaluated by, and makes s.loss their losses."""
    cdef double temperature = job.request.temperature
    cdef Py_ssize_t p
    write_values(job, start, count, s, s.loss, <floating *>job.request.entropies)
    for p in range(count):
        s.loss[p] = s.log_total[p] + (s.row_max[p] - s.x_label[p])/temperature
        s.e[p] = 1/(1 + s.tail[p])
        if s.label[p] < 0 or isnan(s.tail[p]):
            set_places(job, start + p, s, p, dtype)
    write_values(job, start, count, s, s.e, <floating *>job.request.confidences)

cdef inline void entropies(const Job *job, Py_ssize_t start, Py_ssize_t count, State *s,
                           floating *scratch) noexcept nogil:
    """Entropies and gradients of a group, or its evaluation. s.loss becomes what is added to the total."""
    if job.plan.path == BY_TILES:
        entropies_of_tile(job, start, count, s, scratch)
    else:
        entropies_of_rows(job, start, count, s, scratch)
    job.plan.primitives.losses(count, s.row_max, s.tail, s.mass, s.linear, 1, 0, s.log_total, s.loss)
    if job.request.operation == EVALUATE:
        finish_evaluation(job, start, count, s, scratch)
