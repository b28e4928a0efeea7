# cython: cdivision=True
# Tiles: vectors across rows, for few classes or for logits whose rows are contiguous (axis != -1). A group of rows and
# some of their classes (a block) are copied into scratch, where rows are contiguous, and the gradient is copied back.
from cython cimport floating
from libc.math cimport INFINITY, exp
from libc.string cimport memcpy, memset

from ._blocks cimport base_block, load_logits, load_tile, logit_of, row_at, store_tile, times_slope, write_stats
from ._curvature cimport begin_hess, begin_hvp, flush_result
from ._job cimport (
    GROUP, TILE_SIZE, Job, Plan, State, add_label, coefficients, exponentials, moved, rescaled, weight_of,
)
from ._primitives cimport (
    CE_BY_ELEMENT, CE_DIFFERENCE, CE_EXP, CE_MAX_LANES, CE_ONES, CE_STORED, ce_primitives,
)
from ._request cimport CROSS_ENTROPY, LOG_SOFTMAX, Matrix

cdef struct TileSum:
    # One of the state's sums.
    double *total                   # in the state
    double lost[GROUP]              # what the additions lost, see Sum
    double part[GROUP]              # the sums of a block, except of the first one

cdef struct Tile:
    Py_ssize_t start                # of its rows
    Py_ssize_t count
    Py_ssize_t width                # count, rounded up to whole vectors
    Py_ssize_t classes              # in a block
    Py_ssize_t chunk                # classes of it that are loaded, or stored, at a time
    bint read_blocks                # the state depends on more than what is given and the labels' logits
    bint one_block
    bint keep                       # tile_state leaves the only block and its base in scratch
    bint store_exp                  # and replaces its logits by their exponentials
    bint from_exp                   # the gradient is computed from exponentials, in store_exp or later
    bint pick_labels                # the labels' logits and exponentials are picked from the only block
    # In scratch, of the logits' dtype:
    void *x                         # a block of logits
    void *base                      # and its targets
    void *slope                     # and the derivatives of the softcap, or NULL
    void *grad                      # a chunk of the gradient
    void *other                     # and of the diagonal of the Hessian, or of the vectors
    void *row_max                   # these have one number for each row
    void *row_max_before            # of the blocks before
    void *a
    void *b
    void *label                     # the label, counted from the block's first class
    void *label_grad
    void *maximum                   # what is in x where the only maximum is
    void *max_grad
    void *hess_a                    # second derivatives: their coefficients,
    void *hess_b
    void *v_at_max                  # the vector's number at the maximum, or the diagonal there
    void *max_others                # weighted_smoothing: other_q of the maximum
    TileSum tail
    TileSum mass
    TileSum linear
    TileSum rest
    double d_label[GROUP]           # x - row_max of the labels, where they are picked

cdef inline Py_ssize_t tile_scratch(const Plan *plan) noexcept nogil:
    """The numbers of the plan's dtype that `tiles` needs."""
    cdef Py_ssize_t tiles = 1 + (plan.base_kind == CE_BY_ELEMENT) + plan.with_slopes
    cdef Py_ssize_t chunks = (plan.chunk < plan.tile) + (plan.with_hess or plan.with_hvp)
    return tiles*plan.tile + chunks*max(plan.chunk, GROUP) + 12*GROUP

cdef inline double *to_add(TileSum *sum, Py_ssize_t j) noexcept nogil:
    """Where the sums of the block that begins with class j are written before add_block."""
    return sum.total if j == 0 else sum.part

cdef inline void add_block(const ce_primitives *f, TileSum *sum, Py_ssize_t j, Py_ssize_t n) noexcept nogil:
    if j > 0:
        f.add_compensated(sum.total, sum.lost, sum.part, n)

cdef inline void load_base_tile(const Job *job, const Tile *tile, const State *s, Py_ssize_t j, Py_ssize_t n,
                                floating *base) noexcept nogil:
    """The targets of a block, weighted and smoothed; 0 for ignored rows, which may hold NaN."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef double weight
    cdef Py_ssize_t k, p
    load_tile(f, &job.request.targets, tile.start, tile.count, j, n, tile.width, base)
    for k in range(n if job.weight != NULL else 0):
        weight = weight_of(job, j + k)
        f.row_affine(base + k*tile.width, NULL, tile.width, job.plan.hot*weight, job.plan.uniform*weight,
                     base + k*tile.width)
    if job.weight == NULL and job.plan.uniform != 0:
        f.row_affine(base, NULL, n*tile.width, job.plan.hot, job.plan.uniform, base)
    for p in range(tile.count if s.ignored > 0 else 0):
        if s.label[p] < 0:
            for k in range(n):
                base[k*tile.width + p] = 0

cdef inline void begin_tile(const Job *job, Tile *tile, State *s, floating *row_max) noexcept nogil:
    """The state of no class, or with stats_given what is known of it."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef Py_ssize_t width = tile.width, p
    tile.tail.total, tile.mass.total, tile.linear.total, tile.rest.total = s.tail, s.mass, s.linear, s.rest
    if job.request.stats_given:
        memset(row_max, 0, width*sizeof(floating))
        memcpy(row_max, (<const floating *>job.request.row_max) + tile.start, tile.count*sizeof(floating))
        memset(s.tail, 0, width*sizeof(double))
        f.widen((<const floating *>job.request.tail) + tile.start, tile.count, s.tail)
        for p in range(tile.count if s.ignored > 0 else 0):
            if s.label[p] < 0:
                row_max[p] = INFINITY           # no exponential of what an ignored row holds overflows
    else:
        for p in range(width):
            row_max[p] = -INFINITY
    memset(s.linear, 0, width*sizeof(double))
    if job.plan.weighted_smoothing:
        memset(tile.max_others, 0, width*sizeof(floating))
    if tile.pick_labels:
        f.label_lanes(s.label, tile.count, 0, tile.label)
    else:
        memset(s.mass, 0, width*sizeof(double))
        memset(s.rest, 0, width*sizeof(double))
    if not tile.one_block:
        memset(tile.tail.lost, 0, width*sizeof(double))
        memset(tile.mass.lost, 0, width*sizeof(double))
        memset(tile.linear.lost, 0, width*sizeof(double))
        memset(tile.rest.lost, 0, width*sizeof(double))

cdef inline void load_block(const Job *job, const Tile *tile, Py_ssize_t j, Py_ssize_t n, Py_ssize_t at,
                            floating *x) noexcept nogil:
    """Loads the logits of n classes from j on, and their slopes: those of class `at` of a block, and of the next."""
    cdef Py_ssize_t skipped = at*tile.width
    load_logits(job, tile.start, tile.count, j, n, tile.width, x + skipped,
                <floating *>tile.slope + skipped if tile.slope != NULL else NULL)

cdef inline void load_classes(const Job *job, Tile *tile, Py_ssize_t j, Py_ssize_t n, floating *x,
                              floating *row_max) noexcept nogil:
    """Loads a block of n classes from j on and updates row_max, unless the stats are given. Its maxima are taken of one
    chunk after the other, which is in the first-level cache."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef Py_ssize_t k, m
    memcpy(tile.row_max_before, row_max, tile.width*sizeof(floating))
    for k from 0 <= k < n by tile.chunk:
        m = min(n - k, tile.chunk)
        load_block(job, tile, j + k, m, k, x)
        if not job.request.stats_given:
            f.tile_max(x + k*tile.width, m, tile.width, row_max)

cdef inline void raise_maxima(Tile *tile, State *s, double temperature, const floating *row_max) noexcept nogil:
    """Updates the sums of the blocks before one that has updated row_max."""
    cdef const floating *before = <const floating *>tile.row_max_before
    cdef Py_ssize_t p
    for p in range(tile.width):
        if row_max[p] > before[p]:
            s.tail[p] = rescaled(1 + s.tail[p] + tile.tail.lost[p], before[p], row_max[p], temperature)
            s.linear[p] += moved(s.mass[p], before[p], row_max[p])
            s.rest[p], tile.rest.lost[p], tile.tail.lost[p] = s.mass[p], tile.mass.lost[p], 0

cdef inline void add_tile_base(const Job *job, Tile *tile, State *s, Py_ssize_t j, Py_ssize_t n,
                               floating *scratch) noexcept nogil:
    """Adds the base of a block to mass, rest and linear. Scratch is tile.base."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef const floating *base = scratch
    cdef const floating *others = NULL
    cdef double *linear = to_add(&tile.linear, j) if job.plan.with_loss else NULL
    cdef double *mass = to_add(&tile.mass, j)
    cdef double part
    cdef Py_ssize_t width = tile.width, p
    if job.plan.base_kind == CE_BY_ELEMENT:
        load_base_tile(job, tile, s, j, n, scratch)
        f.tile_sums(tile.x, base, n, width, tile.row_max, mass, to_add(&tile.rest, j), linear)
        add_block(f, &tile.mass, j, width)
        add_block(f, &tile.rest, j, width)
    else:
        base = base_block(job, 0, j, n, scratch)
        if not tile.pick_labels:
            part = job.plan.base_scale*(n if base == NULL else f.row_sum(base, n))
            for p in range(width):
                mass[p] = part
            add_block(f, &tile.mass, j, width)
        if linear != NULL or base != NULL:
            if base != NULL:
                others = (<const floating *>job.narrow_other_q) + j
            f.tile_gap_dot(tile.x, base, others, n, width, tile.row_max, to_add(&tile.linear, j), tile.max_others)
    if linear != NULL:
        for p in range(width):
            linear[p] *= job.plan.gap_scale
        add_block(f, &tile.linear, j, width)

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
    cdef bint next_to = logits.dtype == job.plan.dtype and logits.row_stride == size
    if next_to and j + n < job.request.classes:
        next, next_stride = row_at(logits, tile.start) + (j + n)*logits.class_stride, logits.class_stride
    elif next_to and stop < job.request.rows:
        next, next_stride = row_at(logits, stop), logits.class_stride
    if (tile.store_exp and grad.dtype == job.plan.dtype and grad.row_stride == size and n*tile.width <= TILE_SIZE
            and not job.plan.stream):
        dst, dst_stride = row_at(grad, tile.start), grad.class_stride
    job.plan.primitives.tile_exp_sum(
        tile.x, tile.x if tile.store_exp else NULL, n, tile.width, tile.row_max, tile.row_max_before,
        job.request.temperature, tile.label if tile.pick_labels else NULL, to_add(&tile.tail, j), tile.d_label, s.e,
        next, next_stride, dst, dst_stride)
    add_block(job.plan.primitives, &tile.tail, j, tile.width)

cdef inline void add_labels(const Job *job, const Tile *tile, State *s) noexcept nogil:
    """Completes the states, where labels have weights. An ignored row gets some state."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef double weight[GROUP]
    cdef Py_ssize_t p
    for p in range(tile.count):
        weight[p] = job.request.weight[max(s.label[p], 0)]
        if job.plan.weighted_smoothing:
            s.rest[p] = job.other_q[max(s.label[p], 0)]
    f.add_labels(tile.count, weight, tile.d_label, job.plan.hot, job.plan.uniform, job.smoothing_mass, s.mass,
                 s.linear, s.q, s.rest, s.rest_at_max if job.plan.weighted_smoothing else NULL)

cdef inline void tile_state(const Job *job, Tile *tile, State *s, floating *x) noexcept nogil:
    """Computes the state of a tile's rows. What row_state says of stats_given holds here too."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef bint given = job.request.stats_given, same_targets = job.request.weight == NULL and tile.pick_labels
    cdef Py_ssize_t j, n, p
    cdef double x_label
    begin_tile(job, tile, s, <floating *>tile.row_max)
    for j from 0 <= j < (job.request.classes if tile.read_blocks else 0) by tile.classes:
        n = min(job.request.classes - j, tile.classes)
        load_classes(job, tile, j, n, x, <floating *>tile.row_max)
        if not given and j > 0:
            raise_maxima(tile, s, job.request.temperature, <const floating *>tile.row_max)
        if job.plan.base_scale != 0:
            add_tile_base(job, tile, s, j, n, <floating *>tile.base)
        if not given:
            add_tile_exponentials(job, tile, s, j, n, sizeof(floating))
        elif tile.pick_labels:
            for p in range(tile.count):
                tile.d_label[p] = x[max(s.label[p], 0)*tile.width + p] - <double>(<floating *>tile.row_max)[p]
            exponentials(tile.d_label, tile.count, job.request.temperature, s.e)
    f.widen_state(tile.row_max, tile.count, s.row_max, s.tail, s.linear, job.plan.hot,
                  tile.d_label if same_targets and job.plan.hot != 0 else NULL)
    if job.plan.weighted_smoothing:
        f.widen(tile.max_others, tile.count, s.rest_at_max)
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
    elif tile.pick_labels:
        add_labels(job, tile, s)
    else:
        for p in range(tile.count):
            if s.label[p] >= 0:
                x_label = logit_of(job, tile.start + p, s.label[p], x)
                add_label(job, x_label, exp((x_label - s.row_max[p])/job.request.temperature), s, p)
    s.same_targets = same_targets

cdef inline void narrow_padded(const ce_primitives *f, const Tile *tile, const double *src,
                               floating *dst) noexcept nogil:
    cdef Py_ssize_t p
    f.narrow(src, tile.count, dst)
    for p in range(tile.count, tile.width):
        dst[p] = 0

cdef inline void narrow_curvature(const ce_primitives *f, const Tile *tile, State *s, const double *at_max,
                                  const floating *dtype) noexcept nogil:
    """Fills hess_a, hess_b and v_at_max."""
    narrow_padded(f, tile, s.hess_a, <floating *>tile.hess_a)
    narrow_padded(f, tile, s.hess_b, <floating *>tile.hess_b)
    narrow_padded(f, tile, at_max, <floating *>tile.v_at_max)

cdef inline void begin_tile_grad(const Job *job, const Tile *tile, State *s, floating *label) noexcept nogil:
    """Fills a, b and, where they are used, label_grad, maximum and max_grad; and label if there are none."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef double value[GROUP]
    cdef Py_ssize_t p
    coefficients(job, s, 0, tile.count)
    if s.ignored > 0:
        f.zero_ignored(s.label, tile.count, s.a)
        f.zero_ignored(s.label, tile.count, s.b)
        f.zero_ignored(s.label, tile.count, s.exact_grad)
        if job.plan.weighted_smoothing:
            f.zero_ignored(s.label, tile.count, s.grad_at_max)
    narrow_padded(f, tile, s.a, <floating *>tile.a)
    narrow_padded(f, tile, s.b, <floating *>tile.b)
    narrow_padded(f, tile, s.exact_grad, <floating *>tile.label_grad)
    if job.plan.base_kind != CE_ONES or job.plan.with_hess:
        # Two or more maxima have a tail of at least 1, and their gradient does not cancel.
        for p in range(tile.count):
            value[p] = f.exp_one if tile.from_exp else s.row_max[p]
            value[p] = value[p] if s.tail[p] < 1 else INFINITY
        narrow_padded(f, tile, value, <floating *>tile.maximum)
        narrow_padded(f, tile, &s.grad_at_max[0] if job.plan.with_labels else &s.exact_grad[0],
                      <floating *>tile.max_grad)
    for p in range(0 if job.plan.with_labels else tile.width):
        label[p] = -1                   # no class
    if job.plan.with_hess:
        begin_hess(job, s, 0, tile.count)
        if s.ignored > 0:
            f.zero_ignored(s.label, tile.count, s.hess_a)
            f.zero_ignored(s.label, tile.count, s.hess_b)
            f.zero_ignored(s.label, tile.count, s.hess_at_max)
        narrow_curvature(f, tile, s, s.hess_at_max, label)

cdef inline void tile_exponentials(const Job *job, const Tile *tile, Py_ssize_t n, floating *x) noexcept nogil:
    """Replaces n classes of logits by their exponentials, where row_max is known."""
    cdef double unused[GROUP]
    job.plan.primitives.tile_exp_sum(x, x, n, tile.width, tile.row_max, tile.row_max, job.request.temperature, NULL,
                                     unused, NULL, NULL, x, 0, x, 0)

cdef inline void tile_grad(const Job *job, Tile *tile, State *s, floating *x) noexcept nogil:
    """The gradient of a tile's rows, from the exponentials that tile_state stored or from the logits."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef const floating *base = <const floating *>tile.base
    cdef floating *src = x
    cdef floating *grad
    cdef int form = CE_DIFFERENCE if job.request.operation == LOG_SOFTMAX else CE_STORED if tile.from_exp else CE_EXP
    cdef Py_ssize_t width = tile.width, j, n
    begin_tile_grad(job, tile, s, <floating *>tile.label)
    for j from 0 <= j < job.request.classes by tile.chunk:
        n = min(job.request.classes - j, tile.chunk)
        if tile.keep:
            src = x + j*width
        else:
            load_block(job, tile, j, n, 0, src)
            if tile.from_exp:
                tile_exponentials(job, tile, n, src)
        if job.plan.with_hess:
            f.tile_hess(src, tile.other, n, width, tile.hess_a, tile.hess_b, tile.maximum, tile.v_at_max)
            flush_result(job, <floating *>tile.other, n*width)
            store_tile(f, &job.request.hess, tile.start, tile.count, j, n, width, <const floating *>tile.other,
                       job.plan.stream)
        if job.plan.base_kind != CE_BY_ELEMENT:
            base = base_block(job, 0, j, n, <floating *>tile.base)
        elif tile.keep:
            base = (<const floating *>tile.base) + j*width
        else:
            load_base_tile(job, tile, s, j, n, <floating *>tile.base)
        if job.plan.with_labels and (j > 0 or not tile.pick_labels):       # else they are there already
            f.label_lanes(s.label, tile.count, j, tile.label)
        grad = src if tile.grad == NULL else <floating *>tile.grad
        f.tile_grad(src, grad, n, width, form, tile.row_max, job.request.temperature, tile.a, tile.b, base,
                    job.plan.base_kind, tile.label, tile.label_grad, tile.maximum, tile.max_grad,
                    job.request.flush_below)
        if tile.slope != NULL:
            times_slope(job, grad, <floating *>tile.slope + (j*width if tile.keep else 0), n*width, grad)
        store_tile(f, &job.request.grad, tile.start, tile.count, j, n, width, grad, job.plan.stream)

cdef inline void tile_hvp(const Job *job, Tile *tile, State *s, floating *x) noexcept nogil:
    """The Hessian times the vectors: of each vector the number at the maximum, the sum of its differences from that,
    and the product. The vectors are loaded for each of them, unless all classes are in one chunk."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef floating *e = x
    cdef floating *v = <floating *>tile.other
    cdef floating *dst
    cdef Py_ssize_t width = tile.width, j, n, p, k
    cdef int step
    coefficients(job, s, 0, tile.count)
    memset(tile.v_at_max, 0, width*sizeof(floating))
    memset(tile.linear.lost, 0, width*sizeof(double))
    tile.linear.total = s.spread
    for step in range(3):
        if step == 2:
            f.widen(tile.v_at_max, tile.count, s.v_at_max)
            begin_hvp(job, s, 0, tile.count)
            narrow_curvature(f, tile, s, s.v_at_max, x)
        for j from 0 <= j < job.request.classes by tile.chunk:
            n = min(job.request.classes - j, tile.chunk)
            if tile.keep:
                e = x + j*width
            else:
                load_tile(f, &job.request.logits, tile.start, tile.count, j, n, width, e)
                tile_exponentials(job, tile, n, e)
            if step == 0 or job.request.classes > tile.chunk:
                load_tile(f, &job.request.vectors, tile.start, tile.count, j, n, width, v)
            if step == 0:
                f.tile_pick(e, v, n, width, tile.v_at_max)
            elif step == 1:
                f.tile_spread(e, v, n, width, tile.v_at_max, to_add(&tile.linear, j))
                add_block(f, &tile.linear, j, width)
            else:
                dst = e if tile.grad == NULL else <floating *>tile.grad
                f.tile_hvp(e, v, dst, n, width, tile.v_at_max, tile.hess_a, tile.hess_b)
                flush_result(job, dst, n*width)
                for p in range(tile.count if s.ignored > 0 else 0):
                    for k in range(n if s.label[p] < 0 else 0):
                        dst[k*width + p] = 0
                store_tile(f, &job.request.grad, tile.start, tile.count, j, n, width, dst, job.plan.stream)

cdef inline void tiles(const Job *job, Py_ssize_t start, Py_ssize_t count, State *s, floating *scratch) noexcept nogil:
    """State and gradient of a group."""
    cdef bint given = job.request.stats_given
    cdef Tile tile
    tile.start, tile.count = start, count
    tile.width = (count + CE_MAX_LANES - 1)/CE_MAX_LANES*CE_MAX_LANES
    tile.classes = job.plan.tile/tile.width
    tile.chunk = tile.classes if job.plan.chunk == job.plan.tile else max(job.plan.chunk/tile.width, 1)
    tile.one_block = job.request.classes <= tile.classes
    tile.pick_labels = tile.one_block and job.plan.with_labels
    tile.read_blocks = not given or tile.pick_labels or job.plan.base_kind != CE_ONES
    tile.keep = tile.one_block and tile.read_blocks
    tile.store_exp = tile.keep and not given and job.plan.with_grad and job.request.operation != LOG_SOFTMAX
    tile.from_exp = tile.store_exp or job.plan.with_hess
    tile.row_max, tile.row_max_before, tile.a, tile.b = scratch, scratch + GROUP, scratch + 2*GROUP, scratch + 3*GROUP
    tile.label, tile.label_grad, scratch = scratch + 4*GROUP, scratch + 5*GROUP, scratch + 6*GROUP
    tile.maximum, tile.max_grad, tile.max_others = scratch, scratch + GROUP, scratch + 2*GROUP
    scratch += 3*GROUP
    tile.hess_a, tile.hess_b, tile.v_at_max = scratch, scratch + GROUP, scratch + 2*GROUP
    scratch += 3*GROUP
    tile.grad, tile.other = NULL, NULL
    if job.plan.with_hess or job.plan.with_hvp:
        tile.other, scratch = scratch, scratch + max(job.plan.chunk, GROUP)
    if job.plan.chunk < job.plan.tile:
        tile.grad, scratch = scratch, scratch + max(job.plan.chunk, GROUP)
    tile.x, tile.base, scratch = scratch, scratch + job.plan.tile, scratch + job.plan.tile
    if job.plan.base_kind == CE_BY_ELEMENT:
        scratch += job.plan.tile
    tile.slope = scratch if job.plan.with_slopes else NULL
    tile_state(job, &tile, s, <floating *>tile.x)
    write_stats(job, start, count, s, 0, scratch)
    if job.plan.with_hvp:
        tile_hvp(job, &tile, s, <floating *>tile.x)
    elif job.plan.with_grad:
        tile_grad(job, &tile, s, <floating *>tile.x)
