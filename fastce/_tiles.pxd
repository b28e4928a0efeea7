# cython: cdivision=True
# Tiles: vectors across rows, for few classes or for logits whose rows are contiguous (axis != -1). A group of rows and
# some of their classes (a block) are copied into scratch, where rows are contiguous, and the gradient is copied back.
from cython cimport floating
from libc.math cimport INFINITY, exp
from libc.string cimport memcpy, memset

from ._blocks cimport base_block, load_tile, row_at, store_tile
from ._job cimport (
    GROUP, TILE_SIZE, Job, Plan, State, add_label, cancels_at_maximum, coefficients, grad_at_maximum, moved, rescaled,
    weight_of,
)
from ._primitives cimport CE_BY_ELEMENT, CE_DIFFERENCE, CE_EXP, CE_MAX_LANES, CE_STORED, ce_primitives
from ._request cimport CROSS_ENTROPY, LOG_SOFTMAX, Matrix

cdef struct Tile:
    Py_ssize_t start                # of its rows
    Py_ssize_t count
    Py_ssize_t width                # count, rounded up to whole vectors
    Py_ssize_t classes              # in a block
    Py_ssize_t chunk                # classes of it that are loaded, or stored, at a time
    bint keep                       # there is one block, which is loaded once
    bint store_exp                  # there is one block, whose logits are replaced by their exponentials
    bint pick_labels                # there is one block, and the labels' logits and exponentials are picked from it
    # In scratch, of the logits' dtype:
    void *x                         # a block of logits
    void *base                      # and its targets
    void *grad                      # a chunk of the gradient
    void *row_max                   # these have one number for each row
    void *row_max_before            # of the blocks before
    void *a
    void *b
    void *exact_class               # the label; or if base is by element, the value of x where the gradient may cancel
    void *exact_grad
    double lost_tail[GROUP]         # what the additions to the state's sums lost, see Sum
    double lost_mass[GROUP]
    double lost_linear[GROUP]
    double lost_rest[GROUP]
    double part[GROUP]              # sums of a block
    double d_label[GROUP]           # x - row_max of the labels, where they are picked

cdef inline Py_ssize_t tile_scratch(const Plan *plan) noexcept nogil:
    """The numbers of the logits' dtype that `tiles` needs."""
    cdef Py_ssize_t bases = plan.tile if plan.base_kind == CE_BY_ELEMENT else 0
    return plan.tile + bases + (max(plan.chunk, GROUP) if plan.chunk < plan.tile else 0) + 6*GROUP

cdef inline void add_part(const ce_primitives *f, bint first, double *total, double *lost, const double *part,
                          Py_ssize_t n) noexcept nogil:
    if first:
        memcpy(total, part, n*sizeof(double))
        memset(lost, 0, n*sizeof(double))
    else:
        f.add_compensated(total, lost, part, n)

cdef inline void load_base_tile(const Job *job, const Tile *tile, Py_ssize_t j, Py_ssize_t n,
                                floating *base) noexcept nogil:
    """The targets of a block, weighted and smoothed."""
    cdef Py_ssize_t k
    load_tile(job.plan.primitives, &job.request.targets, tile.start, tile.count, j, n, tile.width, base)
    if job.plan.hot != 1 or job.plan.uniform != 0 or job.weight != NULL:
        for k in range(n):
            job.plan.primitives.row_affine(base + k*tile.width, NULL, tile.width, job.plan.hot*weight_of(job, j + k),
                                           job.plan.uniform*weight_of(job, j + k))

cdef inline void begin_tile(const Job *job, Tile *tile, State *s, floating *row_max) noexcept nogil:
    """The state of no class, or with stats_given what is known of it."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef Py_ssize_t width = tile.width, p
    if job.request.stats_given:
        memset(row_max, 0, width*sizeof(floating))
        memcpy(row_max, (<const floating *>job.request.row_max) + tile.start, tile.count*sizeof(floating))
        memset(s.tail, 0, width*sizeof(double))
        f.widen((<const floating *>job.request.tail) + tile.start, tile.count, s.tail)
    else:
        for p in range(width):
            row_max[p] = -INFINITY
    memset(s.linear, 0, width*sizeof(double))
    if tile.pick_labels:
        memset(tile.exact_class, 0, width*sizeof(floating))
        f.label_lanes(s.label, tile.count, 0, tile.exact_class)
    else:
        memset(s.mass, 0, width*sizeof(double))
        memset(s.rest, 0, width*sizeof(double))
        memset(tile.lost_mass, 0, width*sizeof(double))
        memset(tile.lost_linear, 0, width*sizeof(double))
        memset(tile.lost_rest, 0, width*sizeof(double))

cdef inline void load_classes(const Job *job, Tile *tile, Py_ssize_t j, Py_ssize_t n, floating *x,
                              floating *row_max) noexcept nogil:
    """Loads a block of n classes from j on and updates row_max, unless the stats are given. Its maxima are taken of one
    chunk after the other, which is in the first-level cache."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef Py_ssize_t k, m
    memcpy(tile.row_max_before, row_max, tile.width*sizeof(floating))
    for k from 0 <= k < n by tile.chunk:
        m = min(n - k, tile.chunk)
        load_tile(f, &job.request.logits, tile.start, tile.count, j + k, m, tile.width, x + k*tile.width)
        if not job.request.stats_given:
            f.tile_max(x + k*tile.width, m, tile.width, row_max)

cdef inline void raise_maxima(Tile *tile, State *s, const floating *row_max) noexcept nogil:
    """Updates the sums of the blocks before one that has updated row_max."""
    cdef const floating *before = <const floating *>tile.row_max_before
    cdef Py_ssize_t p
    for p in range(tile.width):
        if row_max[p] > before[p]:
            s.tail[p] = rescaled(1 + s.tail[p] + tile.lost_tail[p], before[p], row_max[p])
            s.linear[p] += moved(s.mass[p], before[p], row_max[p])
            s.rest[p], tile.lost_rest[p], tile.lost_tail[p] = s.mass[p], tile.lost_mass[p], 0

cdef inline void add_tile_base(const Job *job, Tile *tile, State *s, Py_ssize_t j, Py_ssize_t n,
                               floating *scratch) noexcept nogil:
    """Adds the base of a block to mass, rest and linear. Scratch is tile.base."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef const floating *base = scratch
    cdef double mass
    cdef Py_ssize_t width = tile.width, p
    if job.plan.base_kind == CE_BY_ELEMENT:
        load_base_tile(job, tile, j, n, scratch)
        f.tile_sum(base, n, width, NULL, NULL, tile.part)
        add_part(f, j == 0, s.mass, tile.lost_mass, tile.part, width)
        f.tile_sum(base, n, width, tile.x, tile.row_max, tile.part)
        add_part(f, j == 0, s.rest, tile.lost_rest, tile.part, width)
    else:
        base = base_block(job, 0, j, n, scratch)
        if not tile.pick_labels:
            mass = job.plan.base_scale*(n if base == NULL else f.row_sum(base, n))
            for p in range(width):
                tile.part[p] = mass
            add_part(f, j == 0, s.mass, tile.lost_mass, tile.part, width)
    if job.plan.with_loss:
        f.tile_gap_dot(tile.x, base, job.plan.base_kind, n, width, tile.row_max, tile.part)
        for p in range(width):
            tile.part[p] *= job.plan.base_scale
        add_part(f, j == 0, s.linear, tile.lost_linear, tile.part, width)

cdef inline void add_tile_exponentials(const Job *job, Tile *tile, State *s, Py_ssize_t j, Py_ssize_t n,
                                       Py_ssize_t size) noexcept nogil:
    """Adds the exponentials of a block to tail. Meanwhile what is read next (the tile's other classes, or
    the next tile) is fetched into the cache, and so is the place of a small gradient. The logits' dtype has `size`
    bytes."""
    cdef const Matrix *logits = &job.request.logits
    cdef const Matrix *grad = &job.request.grad
    cdef void *next = tile.x
    cdef void *dst = tile.x
    cdef Py_ssize_t next_stride = 0, dst_stride = 0, stop = tile.start + tile.count
    if logits.row_stride == size and j + n < job.request.classes:
        next, next_stride = row_at(logits, tile.start) + (j + n)*logits.class_stride, logits.class_stride
    elif logits.row_stride == size and stop < job.request.rows:
        next, next_stride = row_at(logits, stop), logits.class_stride
    if tile.store_exp and grad.row_stride == size and n*tile.width <= TILE_SIZE and not job.plan.stream:
        dst, dst_stride = row_at(grad, tile.start), grad.class_stride
    job.plan.primitives.tile_exp_sum(
        tile.x, tile.x if tile.store_exp else NULL, n, tile.width, tile.row_max, tile.row_max_before,
        tile.exact_class if tile.pick_labels else NULL, tile.part, tile.d_label, s.e, next, next_stride, dst,
        dst_stride)
    add_part(job.plan.primitives, j == 0, s.tail, tile.lost_tail, tile.part, tile.width)

cdef inline void tile_state(const Job *job, Tile *tile, State *s, floating *x) noexcept nogil:
    """Computes the state of a tile's rows. What row_state says of stats_given holds here too."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef const Matrix *logits = &job.request.logits
    cdef bint by_element = job.plan.base_kind == CE_BY_ELEMENT, given = job.request.stats_given
    cdef bint same_targets = job.request.weight == NULL and tile.pick_labels
    cdef Py_ssize_t j, n, p
    cdef double x_label
    begin_tile(job, tile, s, <floating *>tile.row_max)
    for j from 0 <= j < (job.request.classes if by_element or not given else 0) by tile.classes:
        n = min(job.request.classes - j, tile.classes)
        load_classes(job, tile, j, n, x, <floating *>tile.row_max)
        if not given and j > 0:
            raise_maxima(tile, s, <const floating *>tile.row_max)
        if job.plan.base_scale != 0:
            add_tile_base(job, tile, s, j, n, <floating *>tile.base)
        if not given:
            add_tile_exponentials(job, tile, s, j, n, sizeof(floating))
    f.widen_state(tile.row_max, tile.count, s.row_max, s.tail, s.linear, job.plan.hot,
                  tile.d_label if same_targets and job.plan.hot != 0 else NULL)
    if not job.plan.with_labels:
        for p in range(tile.count):
            s.e[p] = 1
            if job.request.operation != CROSS_ENTROPY:      # see row_state
                s.mass[p], s.rest[p], s.q[p] = 1, 1, 0
    elif same_targets:
        for p in range(0 if s.same_targets else min(GROUP, job.request.rows)):
            s.q[p] = job.plan.hot + job.plan.uniform
            s.rest[p] = job.smoothing_mass - job.plan.uniform
            s.mass[p] = job.smoothing_mass + job.plan.hot
    else:
        for p in range(tile.count):
            if s.label[p] >= 0:
                x_label = (<const floating *>(row_at(logits, tile.start + p) + s.label[p]*logits.class_stride))[0]
                add_label(job, x_label, s.e[p] if tile.pick_labels else exp(x_label - s.row_max[p]), s, p)
    s.same_targets = same_targets

cdef inline void narrow_padded(const ce_primitives *f, const Tile *tile, const double *src,
                               floating *dst) noexcept nogil:
    f.narrow(src, tile.count, dst)
    memset(dst + tile.count, 0, (tile.width - tile.count)*sizeof(floating))

cdef inline void begin_tile_grad(const Job *job, const Tile *tile, State *s, floating *exact_class) noexcept nogil:
    """Fills a, b, exact_grad and, unless it depends on the block or is there already, exact_class."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef const floating *row_max = <const floating *>tile.row_max
    cdef Py_ssize_t p
    coefficients(job, s, 0, tile.count)
    narrow_padded(f, tile, s.a, <floating *>tile.a)
    narrow_padded(f, tile, s.b, <floating *>tile.b)
    narrow_padded(f, tile, s.exact_grad, <floating *>tile.exact_grad)
    if job.plan.base_kind == CE_BY_ELEMENT:     # wherever a maximum is that has most of the probability
        for p in range(tile.width):
            exact_class[p] = INFINITY
            if p < tile.count and s.tail[p] < 1:
                exact_class[p] = <floating>f.exp_one if tile.store_exp else row_max[p]
    elif not tile.pick_labels:
        for p in range(tile.width):
            exact_class[p] = -1                 # no class

cdef inline Py_ssize_t exact_maxima(const Job *job, const Tile *tile, State *s, Py_ssize_t j, Py_ssize_t n,
                                    const floating *x, Py_ssize_t *at, double *exact_grad) noexcept nogil:
    """Where in a block maxima are whose gradient may cancel, and their gradient. Returns how many."""
    cdef floating maximum
    cdef Py_ssize_t found = 0, p, k
    for p in range(tile.count):
        if s.label[p] >= 0 and cancels_at_maximum(job, s, p):
            maximum = (<floating *>tile.row_max)[p]
            if tile.store_exp:
                maximum = <floating>job.plan.primitives.exp_one
            for k in range(n):
                if x[k*tile.width + p] == maximum:
                    at[found], exact_grad[found] = k*tile.width + p, grad_at_maximum(job, s, p, j + k)
                    found += 1
                    break
    return found

cdef inline void tile_grad(const Job *job, Tile *tile, State *s, floating *x) noexcept nogil:
    """The gradient of a tile's rows, from the exponentials that tile_state stored or from the logits again."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef const floating *base = <const floating *>tile.base
    cdef floating *src = x
    cdef floating *grad
    cdef int form = CE_DIFFERENCE if job.request.operation == LOG_SOFTMAX else CE_STORED if tile.store_exp else CE_EXP
    cdef Py_ssize_t maxima[GROUP]
    cdef Py_ssize_t width = tile.width, p, j, n, k, found = 0
    begin_tile_grad(job, tile, s, <floating *>tile.exact_class)
    for j from 0 <= j < job.request.classes by tile.chunk:
        n = min(job.request.classes - j, tile.chunk)
        if tile.keep:
            src = x + j*width
        else:
            load_tile(f, &job.request.logits, tile.start, tile.count, j, n, width, src)
        if job.plan.base_kind != CE_BY_ELEMENT:
            base = base_block(job, 0, j, n, <floating *>tile.base)
        elif tile.keep:
            base = (<const floating *>tile.base) + j*width
        else:
            load_base_tile(job, tile, j, n, <floating *>tile.base)
        if job.plan.with_labels and (j > 0 or not tile.pick_labels):       # else they are there already
            f.label_lanes(s.label, tile.count, j, tile.exact_class)
        if job.plan.weighted_smoothing:
            found = exact_maxima(job, tile, s, j, n, src, maxima, tile.part)
        grad = src if tile.grad == NULL else <floating *>tile.grad
        f.tile_grad(src, grad, n, width, form, tile.row_max, tile.a, tile.b, base, job.plan.base_kind,
                    tile.exact_class, tile.exact_grad)
        for k in range(found):
            grad[maxima[k]] = <floating>tile.part[k]
        for p in range(tile.count if s.ignored > 0 else 0):
            if s.label[p] < 0:
                for k in range(n):
                    grad[k*width + p] = 0
        store_tile(f, &job.request.grad, tile.start, tile.count, j, n, width, grad, job.plan.stream)

cdef inline void tiles(const Job *job, Py_ssize_t start, Py_ssize_t count, State *s, floating *scratch) noexcept nogil:
    """State and gradient of a group."""
    cdef bint one_block
    cdef Tile tile
    tile.start, tile.count = start, count
    tile.width = (count + CE_MAX_LANES - 1)/CE_MAX_LANES*CE_MAX_LANES
    tile.classes = job.plan.tile/tile.width
    tile.chunk = tile.classes if job.plan.chunk == job.plan.tile else max(job.plan.chunk/tile.width, 1)
    one_block = job.request.classes <= tile.classes and not job.request.stats_given
    tile.keep = one_block
    tile.store_exp = one_block and job.plan.with_grad and job.request.operation != LOG_SOFTMAX
    tile.pick_labels = one_block and job.plan.with_labels
    tile.row_max, tile.row_max_before, tile.a = scratch, scratch + GROUP, scratch + 2*GROUP
    tile.b, tile.exact_class, tile.exact_grad = scratch + 3*GROUP, scratch + 4*GROUP, scratch + 5*GROUP
    scratch += 6*GROUP
    tile.grad = NULL
    if job.plan.chunk < job.plan.tile:
        tile.grad, scratch = scratch, scratch + max(job.plan.chunk, GROUP)
    tile.x, tile.base = scratch, scratch + job.plan.tile
    tile_state(job, &tile, s, <floating *>tile.x)
    if job.plan.with_grad:
        tile_grad(job, &tile, s, <floating *>tile.x)
