# Part of _kernels.pyx. Tiles: vectors across positions.

cdef struct Tile:
    Py_ssize_t start                # of its positions
    Py_ssize_t count
    Py_ssize_t width                # count, rounded up to whole vectors
    Py_ssize_t most                 # classes in a block


cdef void load_v_tile(const Job *job, const Tile *tile, Py_ssize_t j, Py_ssize_t n, floating *v) noexcept nogil:
    """The targets of a tile, weighted and smoothed."""
    cdef Py_ssize_t k
    load_tile(&job.c, job.c_type, tile.start, tile.count, j, n, tile.width, v)
    if job.keep != 1 or job.uniform != 0 or job.weight != NULL:
        for k in range(n):
            primitives(v).row_affine(v + k*tile.width, NULL, tile.width, job.keep*weight_of(job, j + k),
                                     job.uniform*weight_of(job, j + k))


cdef inline void accumulate(const ce_primitives *f, bint first, double *total, double *lost, const double *term,
                            Py_ssize_t n) noexcept nogil:
    if first:
        memcpy(total, term, n*sizeof(double))
        memset(lost, 0, n*sizeof(double))
    else:
        f.add_compensated(total, lost, term, n)


cdef void grow(State *s, double *lost_tail, double *lost_mass, double *lost_linear, double *lost_rest,
               const floating *before, const floating *row_max, Py_ssize_t width) noexcept nogil:
    """Re-bases the state of the blocks so far from the maxima `before` to row_max."""
    cdef Py_ssize_t p
    for p in range(width):
        if row_max[p] > before[p]:
            s.tail[p] = (1 + s.tail[p] + lost_tail[p])*(exp(<double>before[p] - row_max[p]) if before[p] > -INFINITY else 0)
            s.linear[p] += times(s.mass[p], <double>row_max[p] - (before[p] if before[p] > -INFINITY else 0))
            s.rest[p], lost_rest[p] = s.mass[p], lost_mass[p]
            lost_tail[p] = 0


cdef void tile_state(const Job *job, const Tile *tile, State *s, bint keep, floating *scratch) noexcept nogil:
    """row_state for a tile. With `keep`, the logits of its only block are replaced by their exponentials."""
    cdef const ce_primitives *f = primitives(scratch)
    cdef floating *x = scratch
    cdef floating *v = scratch + TILE
    cdef floating *row_max = scratch + 2*TILE
    cdef floating *before = row_max + GROUP
    cdef floating *lanes = before + GROUP
    cdef floating *label = NULL
    cdef floating *by_class
    cdef char *next
    cdef char *dst
    cdef bint by_element = job.v_kind == CE_BY_ELEMENT, given = job.stats_given
    # One block: the labels' logits and exponentials are picked up on the way.
    cdef bint pick = job.labels != NULL and not given and job.classes <= tile.most
    cdef double sums[GROUP]
    cdef double d_label[GROUP]
    cdef double lost[4][GROUP]
    cdef double v_sum, x_t
    cdef Py_ssize_t width = tile.width, count = tile.count, p, j = 0, n, t, next_step, dst_step
    if given:
        memset(row_max, 0, width*sizeof(floating))
        memcpy(row_max, (<const floating *>job.row_max) + tile.start, count*sizeof(floating))
        memset(s.tail, 0, width*sizeof(double))
        f.widen((<const floating *>job.tail) + tile.start, count, s.tail)
    else:
        for p in range(width):
            row_max[p] = -INFINITY
    if pick:
        memset(lanes, 0, width*sizeof(floating))
        f.label_lanes(job.labels + tile.start, count, 0, lanes)
        label = lanes
    memset(s.linear, 0, width*sizeof(double))
    if not pick:
        s.alike = False
        memset(s.mass, 0, width*sizeof(double))
        memset(s.rest, 0, width*sizeof(double))
        memset(lost, 0, sizeof(lost))
    while j < job.classes and (by_element or not given):
        n = min(job.classes - j, tile.most)
        load_tile(&job.x, own_type(scratch), tile.start, count, j, n, width, x)
        if not given:
            memcpy(before, row_max, width*sizeof(floating))
            f.tile_max(x, n, width, row_max)
            if j > 0:
                grow(s, lost[0], lost[1], lost[2], lost[3], before, row_max, width)
        if by_element:
            load_v_tile(job, tile, j, n, v)
            f.tile_sum(v, n, width, NULL, NULL, sums)
            accumulate(f, j == 0, s.mass, lost[1], sums, width)
            f.tile_sum(v, n, width, x, row_max, sums)
            accumulate(f, j == 0, s.rest, lost[3], sums, width)
        elif job.v_scale != 0 and not pick:
            v_sum = job.v_scale*(n if job.smooth == NULL else f.row_sum((<floating *>job.smooth) + j, n))
            for p in range(width):
                sums[p] = v_sum
            accumulate(f, j == 0, s.mass, lost[1], sums, width)
        if job.v_scale != 0 and job.with_loss:
            by_class = NULL if job.smooth == NULL else (<floating *>job.smooth) + j
            f.tile_gap_dot(x, v if by_element else by_class, job.v_kind, n, width, row_max, sums)
            for p in range(width):
                sums[p] *= job.v_scale
            accumulate(f, j == 0, s.linear, lost[2], sums, width)
        if not given:
            # What comes next: the tile's other classes, or the next tile's first; and the gradient of these.
            next, next_step = <char *>x, 0
            if job.x.by_position == sizeof(floating):
                if j + n < job.classes:
                    next, next_step = position(&job.x, tile.start) + (j + n)*job.x.by_class, job.x.by_class
                elif tile.start + count < job.positions:
                    next, next_step = position(&job.x, tile.start + count), job.x.by_class
            dst, dst_step = <char *>x, 0
            if keep and job.g.by_position == sizeof(floating):
                dst, dst_step = position(&job.g, tile.start), job.g.by_class
            f.tile_exp_sum(x, x if keep else NULL, n, width, row_max, before, label, sums, d_label, s.e,
                           next, next_step, dst, dst_step)
            accumulate(f, j == 0, s.tail, lost[0], sums, width)
        j += n
    f.widen_state(row_max, count, s.row_max, s.tail, s.linear, job.keep,
             d_label if pick and job.weight == NULL and job.keep != 0 else NULL)
    if job.labels == NULL:
        for p in range(count):
            s.e[p] = 1
            if job.output != CROSS_ENTROPY:
                s.mass[p], s.rest[p], s.q[p] = 1, 1, 0
    elif pick and job.weight == NULL:
        if not s.alike:
            for p in range(min(GROUP, job.positions)):
                s.q[p] = job.keep + job.uniform
                s.rest[p] = job.smooth_mass - job.uniform
                s.mass[p] = job.smooth_mass + job.keep
            s.alike = True
    else:
        s.alike = False
        for p in range(count):
            if not is_ignored(job, tile.start + p):
                t = job.labels[tile.start + p]
                x_t = (<const floating *>(position(&job.x, tile.start + p) + t*job.x.by_class))[0]
                add_label(job, t, x_t, s.e[p] if pick else exp(x_t - s.row_max[p]), s, p)


cdef void tile_grad(const Job *job, const Tile *tile, State *s, bint kept, floating *scratch) noexcept nogil:
    """row_grad for a tile, from the exponentials that tile_state kept or from the logits again."""
    cdef const ce_primitives *f = primitives(scratch)
    cdef floating *x = scratch
    cdef floating *v_tile = scratch + TILE
    cdef floating *row_max = scratch + 2*TILE
    cdef floating *a = row_max + GROUP
    cdef floating *b = a + GROUP
    cdef floating *mark = b + GROUP             # where the gradient is ...
    cdef floating *at_mark = mark + GROUP       # ... this: at the label, or at a maximum that holds most of the probability
    cdef const floating *v = v_tile
    cdef bint by_element = job.v_kind == CE_BY_ELEMENT
    cdef Py_ssize_t tops[GROUP]
    cdef double at_tops[GROUP]
    cdef int form = CE_STORED if kept else CE_EXP
    cdef Py_ssize_t width = tile.width, count = tile.count, p, j = 0, n, k, n_tops
    coefficients(job, s, 0, count, f)
    if count < width:
        memset(a, 0, 4*GROUP*sizeof(floating))
    f.narrow(s.a, count, a)
    f.narrow(s.b, count, b)
    f.narrow(s.at_target, count, at_mark)
    if job.output == LOG_SOFTMAX:
        form = CE_DIFFERENCE
    for p in range(width if job.output != CROSS_ENTROPY else 0):
        mark[p] = -1            # no class
    if by_element:
        for p in range(width):
            mark[p] = INFINITY
            if p < count and s.tail[p] < 1:
                mark[p] = <floating>f.exp_one if kept else row_max[p]
    while j < job.classes:
        n = min(job.classes - j, tile.most)
        if not by_element:
            v = v_block(job, 0, j, n, v_tile)
            if job.labels != NULL:
                f.label_lanes(job.labels + tile.start, count, j, mark)
        elif not kept:
            load_v_tile(job, tile, j, n, v_tile)
        if not kept:
            load_tile(&job.x, own_type(scratch), tile.start, count, j, n, width, x)
        n_tops = 0
        if job.smooth != NULL:
            for p in range(count):
                if needs_top(job, s, p) and not is_ignored(job, tile.start + p):
                    for k in range(n):
                        if x[k*width + p] == (f.exp_one if kept else row_max[p]):
                            tops[n_tops] = k*width + p
                            at_tops[n_tops] = grad_at_top(job, s, p, j + k, job.labels[tile.start + p], f)
                            n_tops += 1
                            break
        f.tile_grad(x, x, n, width, form, row_max, a, b, v, job.v_kind, mark, at_mark)
        for k in range(n_tops):
            x[tops[k]] = <floating>at_tops[k]
        if job.has_ignored:
            for p in range(count):
                if is_ignored(job, tile.start + p):
                    for k in range(n):
                        x[k*width + p] = 0
        store_tile(&job.g, tile.start, count, j, n, width, x)
        j += n


cdef void tiles(const Job *job, Py_ssize_t start, Py_ssize_t count, State *s, floating *scratch) noexcept nogil:
    cdef bint with_grad = job.g.data != NULL, keep
    cdef Tile tile
    tile.start, tile.count = start, count
    tile.width = (count + LANES - 1)/LANES*LANES
    tile.most = TILE/tile.width
    keep = with_grad and job.classes <= tile.most and not job.stats_given and job.output != LOG_SOFTMAX
    tile_state(job, &tile, s, keep, scratch)
    if with_grad:
        tile_grad(job, &tile, s, keep, scratch)
