# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
# cython: embedsignature=False, freethreading_compatible=True
"""The algorithm: softmax cross-entropy of rows, forward and backward.

Called by _api.py only, which has checked every argument: nothing here fails but for want of memory, nothing is checked
twice, and nothing is written before the call into here. The functions at the end of the file take arrays (typed
memoryviews), fill a `Job` and run it; everything above them is `noexcept nogil` and sees pointers.

A row has `classes` logits x. Its state is row_max = max x and tail = sum over j != argmax of exp(x_j - row_max): the
maximum's own term, 1, is kept out of the sum, so that log1p(tail) and tail/(1 + tail) stay exact to the last digits
when the row is confident. With q the row's targets (weights and smoothing included), Q = sum q, lse = logsumexp(x):

    loss   = Q*log1p(tail) + sum_j q_j*(row_max - x_j) + z_loss*lse^2          every term >= 0
    grad_j = scale * ((Q + 2*z_loss*lse)*p_j - q_j),    p_j = exp(x_j - row_max)/(1 + tail)
           = a*e_j - b*v_j        v: nothing, ones, one number a class, or the target row

Two kernels compute this. `rows` runs its vectors along the classes of one row. `tiles` runs them across positions, for
few classes or contiguous positions (axis != -1): it copies up to 128 positions x some classes into scratch, positions
contiguous, and back. Both cut long rows into blocks that stay in cache, so that a forward reads each logit once from
memory, and a gradient is computed from logits that are still near.

Rows are worked on in units whose number depends on the shapes alone; each unit adds its losses in order, and the units'
sums are added in order: the result is the same to the bit for every number of threads.
"""
cimport cython
from cython cimport floating
from cython.parallel cimport prange, threadid
from libc.math cimport INFINITY, NAN, exp, isfinite, log1p
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset


cdef extern from "_simd.h" nogil:
    enum: CE_BROADCAST, CE_BY_CLASS, CE_BY_ELEMENT, CE_ISA_COUNT
    ctypedef struct ce_primitives:
        double (*row_max)(const void *x, Py_ssize_t n) noexcept nogil
        Py_ssize_t (*row_find)(const void *x, Py_ssize_t n, double value) noexcept nogil
        double (*row_exp_sum)(const void *x, void *e, Py_ssize_t n, double shift, Py_ssize_t skip,
                              const void *next) noexcept nogil
        double (*row_gap_dot)(const void *x, const void *v, Py_ssize_t n, double shift) noexcept nogil
        double (*row_sum)(const void *v, Py_ssize_t n) noexcept nogil
        void (*row_affine)(void *q, const void *v, Py_ssize_t n, double slope, double offset) noexcept nogil
        void (*row_grad)(const void *src, void *g, Py_ssize_t n, int is_logits, double shift, double a, double b,
                         const void *v, int stream) noexcept nogil
        void (*tile_max)(const void *x, Py_ssize_t classes, Py_ssize_t width, void *m) noexcept nogil
        void (*tile_exp_sum)(const void *x, void *e, Py_ssize_t classes, Py_ssize_t width, const void *m,
                             const double *drop, double *sum) noexcept nogil
        void (*tile_gap_dot)(const void *x, const void *v, int kind, Py_ssize_t classes, Py_ssize_t width,
                             const void *m, double *sum) noexcept nogil
        void (*tile_sum)(const void *v, Py_ssize_t classes, Py_ssize_t width, const void *x, const void *m,
                         double *sum) noexcept nogil
        void (*tile_grad)(const void *src, void *g, Py_ssize_t classes, Py_ssize_t width, int is_logits,
                          const void *m, const void *a, const void *b, const void *v, int kind, const void *mark,
                          const void *at_mark) noexcept nogil
        void (*log1p)(double *t, Py_ssize_t n) noexcept nogil
        Py_ssize_t (*labels_kept)(const int64_t *labels, Py_ssize_t n, int64_t classes, int64_t ignored,
                                  int has_ignored) noexcept nogil
    ctypedef struct ce_isa:
        const char *name
        const ce_primitives *f32
        const ce_primitives *f64
    const ce_isa ce_isas[]
    int ce_isa_runs_here(int i) noexcept

cdef extern from "_threads.h" nogil:
    int ce_openmp_version() noexcept
    int ce_watch_forks() noexcept
    int ce_must_be_serial() noexcept
    int ce_automatic_threads(int quota) noexcept

cdef extern from *:
    """
    #if defined(__clang__)
    #define CE_COMPILER "clang " __clang_version__
    #elif defined(__GNUC__)
    #define CE_COMPILER "gcc " __VERSION__
    #elif defined(_MSC_VER)
    #define CE_STRING_(x) #x
    #define CE_STRING(x) CE_STRING_(x)
    #define CE_COMPILER "msvc " CE_STRING(_MSC_VER)
    #else
    #define CE_COMPILER "unknown"
    #endif
    """
    const char *CE_COMPILER


# ---------------------------------------------------------------------------------------------------------------------
# What a call computes
# ---------------------------------------------------------------------------------------------------------------------

cdef enum:
    GROUP = 128         # positions whose state is held at a time, and the width of a tile
    BLOCK = 4096        # classes of a row that are worked on at a time: 16 or 32 KiB
    TILE = 8192         # numbers in a tile: at most 64 classes for 128 positions
    LANES = 16          # a tile's width is a multiple of this, the widest vector
    FEW = 64            # up to so many contiguous classes, `tiles` is faster than `rows`
    UNIT = 32768        # logits in a unit of work, about 10 us
    STREAM_BYTES = 1 << 25      # gradients of this size or more are written past the caches
    MOST_THREADS = 256

cdef enum:              # dtypes of probability targets
    I8, I16, I32, I64, U8, U16, U32, U64, F32, F64

cdef struct Matrix:
    # Position i, class j is at data + blocks[i / per_block] + (i % per_block)*by_position + j*by_class (bytes).
    char *data
    const Py_ssize_t *blocks
    Py_ssize_t per_block
    Py_ssize_t by_position
    Py_ssize_t by_class

cdef struct Job:
    Py_ssize_t positions
    Py_ssize_t classes
    Matrix x                        # logits
    Matrix g                        # gradient; data is NULL for a forward
    const int64_t *labels           # class indices, or NULL: then
    Matrix c                        # probability targets of dtype c_type
    int c_type
    bint c_ready                    # c can be used as q where it lies
    int64_t ignored
    bint has_ignored
    const double *weight            # by class, or NULL for ones
    const void *weight_t            # the same in the dtype of the logits
    double keep                     # 1 - label_smoothing
    double uniform                  # label_smoothing/classes
    const void *smooth              # labels only: uniform*weight in the dtype of the logits, NULL without a weight
    double smooth_mass              # labels only: sum over j of uniform*weight_j
    double v_scale                  # q is v_scale*v, where v is the smooth weights, ones, or the target row
    int v_kind                      # how v is laid out: CE_BROADCAST (ones), CE_BY_CLASS or CE_BY_ELEMENT
    double z_loss
    double factor                   # of every gradient
    const double *sample            # weight of each position, or NULL for ones
    const double *upstream          # by position, or NULL for ones
    bint with_loss
    void *losses                    # by position, or NULL
    void *row_max                   # by position, or NULL
    void *tail
    bint stats_given                # row_max and tail are read, not written
    bint by_tiles
    bint stream
    Py_ssize_t unit                 # positions in a unit
    double *unit_sums

cdef struct Sum:
    # A float64 sum and what its additions lost.
    double total
    double lost

cdef struct Row:
    # The state of a row.
    double row_max
    double tail
    double mass                     # Q
    double linear                   # sum_j q_j*(row_max - x_j)
    Py_ssize_t target               # the label, or the (first) maximum: where p - q may cancel; -1 if there is none
    double q                        # its target
    double rest                     # Q - q, not formed by subtraction


cdef const ce_primitives *primitives_f32 = NULL
cdef const ce_primitives *primitives_f64 = NULL


cdef inline const ce_primitives *primitives(const floating *dtype) noexcept nogil:
    if floating is float:
        return primitives_f32
    else:
        return primitives_f64


cdef inline char *position(const Matrix *a, Py_ssize_t i) noexcept nogil:
    if a.blocks == NULL:
        return a.data + i*a.by_position
    return a.data + a.blocks[i / a.per_block] + (i % a.per_block)*a.by_position


cdef inline double times(double q, double gap) noexcept nogil:
    # 0 * inf is 0: a class that does not count adds nothing, however improbable it is.
    return 0.0 if q == 0 else q*gap


cdef inline double weight_of(const Job *job, Py_ssize_t t) noexcept nogil:
    return 1.0 if job.weight == NULL else job.weight[t]


cdef inline bint is_ignored(const Job *job, Py_ssize_t i) noexcept nogil:
    return job.has_ignored and job.labels != NULL and job.labels[i] == job.ignored


cdef inline double lse_slope(const Job *job, const Row *row) noexcept nogil:
    """d(z_loss*lse^2)/d(lse)."""
    return 0.0 if job.z_loss == 0 else 2*job.z_loss*(row.row_max + log1p(row.tail))


cdef inline void add_label(const Job *job, Py_ssize_t t, double x_t, Row *row) noexcept nogil:
    """Completes a state that lacks only its label t, whose logit is x_t."""
    cdef double weight = weight_of(job, t)
    row.target = t
    row.q = (job.keep + job.uniform)*weight
    row.rest = job.smooth_mass - job.uniform*weight
    row.mass = job.smooth_mass + job.keep*weight
    row.linear += times(job.keep*weight, row.row_max - x_t)


cdef inline double grad_at_target(const Row *row, double e, double slope) noexcept nogil:
    """(Q + slope)*p - q at row.target, whose exp(x - row_max) is e. Where p may be near 1, p - 1 is -tail/(1 + tail)."""
    cdef double total = 1 + row.tail
    if e == 1 and row.tail < 1:
        return (row.rest - row.mass*(row.tail/total)) + slope/total
    return (row.mass + slope)*(e/total) - row.q


cdef inline void add(Sum *s, double term) noexcept nogil:
    cdef double total = s.total + term, z = total - s.total
    s.lost += (s.total - (total - z)) + (term - z)
    s.total = total


cdef inline double value(const Sum *s) noexcept nogil:
    return s.total + s.lost if isfinite(s.total) else s.total


cdef inline void set_sum(Sum *s, double total) noexcept nogil:
    s.total, s.lost = total, 0


# ---------------------------------------------------------------------------------------------------------------------
# Between arrays and scratch
# ---------------------------------------------------------------------------------------------------------------------

cdef fused number:
    int8_t
    int16_t
    int32_t
    int64_t
    uint8_t
    uint16_t
    uint32_t
    uint64_t
    float
    double


cdef inline void gather_as(const number *dtype, const char *src, Py_ssize_t stride, Py_ssize_t n, floating *dst,
                           Py_ssize_t step) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(n):
        dst[k*step] = <floating>(<const number *>(src + k*stride))[0]


cdef void gather(int dtype, const char *src, Py_ssize_t stride, Py_ssize_t n, floating *dst,
                 Py_ssize_t step) noexcept nogil:
    """dst[k*step] = the k-th number of that dtype at src."""
    if dtype == F32:
        gather_as(<const float *>NULL, src, stride, n, dst, step)
    elif dtype == F64:
        gather_as(<const double *>NULL, src, stride, n, dst, step)
    elif dtype == I8:
        gather_as(<const int8_t *>NULL, src, stride, n, dst, step)
    elif dtype == I16:
        gather_as(<const int16_t *>NULL, src, stride, n, dst, step)
    elif dtype == I32:
        gather_as(<const int32_t *>NULL, src, stride, n, dst, step)
    elif dtype == I64:
        gather_as(<const int64_t *>NULL, src, stride, n, dst, step)
    elif dtype == U8:
        gather_as(<const uint8_t *>NULL, src, stride, n, dst, step)
    elif dtype == U16:
        gather_as(<const uint16_t *>NULL, src, stride, n, dst, step)
    elif dtype == U32:
        gather_as(<const uint32_t *>NULL, src, stride, n, dst, step)
    elif dtype == U64:
        gather_as(<const uint64_t *>NULL, src, stride, n, dst, step)


cdef inline int own_type(const floating *dtype) noexcept nogil:
    if floating is float:
        return F32
    else:
        return F64


cdef inline const floating *logits_block(const Job *job, const char *row, Py_ssize_t j, Py_ssize_t n,
                                         floating *scratch) noexcept nogil:
    """n logits from class j on, contiguous: where they lie, or gathered into scratch."""
    row += j*job.x.by_class
    if job.x.by_class == sizeof(floating):
        return <const floating *>row
    gather(own_type(scratch), row, job.x.by_class, n, scratch, 1)
    return scratch


cdef inline const floating *block_after(const Job *job, Py_ssize_t i, Py_ssize_t j, const floating *x) noexcept nogil:
    """Where the logits lie that are read after the block x of row i that ends before class j; x if not contiguous."""
    if job.x.by_class != sizeof(floating):
        return x
    if j < job.classes:
        return <const floating *>position(&job.x, i) + j
    return <const floating *>position(&job.x, i + 1) if i + 1 < job.positions else x


cdef inline const floating *v_block(const Job *job, Py_ssize_t i, Py_ssize_t j, Py_ssize_t n,
                                    floating *scratch) noexcept nogil:
    """v of row i, n classes from class j on, contiguous; NULL for ones."""
    cdef const char *row
    cdef const floating *weight = NULL
    if job.v_kind == CE_BROADCAST:
        return NULL
    if job.v_kind == CE_BY_CLASS:
        return (<const floating *>job.smooth) + j
    row = position(&job.c, i) + j*job.c.by_class
    if job.c_ready:
        return <const floating *>row
    gather(job.c_type, row, job.c.by_class, n, scratch, 1)
    if job.weight != NULL:
        weight = (<const floating *>job.weight_t) + j
    if job.keep != 1 or job.uniform != 0 or job.weight != NULL:
        primitives(scratch).row_affine(scratch, weight, n, job.keep, job.uniform)
    return scratch


cdef void load_tile(const Matrix *a, int dtype, Py_ssize_t i, Py_ssize_t count, Py_ssize_t j, Py_ssize_t classes,
                    Py_ssize_t width, floating *tile) noexcept nogil:
    """tile[k, p] = a[i + p, j + k], 0 for count <= p < width."""
    cdef Py_ssize_t p = 0, k, run, room = sizeof(floating)
    cdef const char *src
    while p < count:
        src = position(a, i + p) + j*a.by_class
        run = count - p
        if a.blocks != NULL and a.per_block - (i + p) % a.per_block < run:
            run = a.per_block - (i + p) % a.per_block
        if a.by_position == room and dtype == own_type(tile):
            for k in range(classes):
                memcpy(tile + k*width + p, src + k*a.by_class, run*room)
        elif a.by_position < a.by_class and 0 < a.by_position:
            for k in range(classes):
                gather(dtype, src + k*a.by_class, a.by_position, run, tile + k*width + p, 1)
        else:
            for k in range(run):
                gather(dtype, src + k*a.by_position, a.by_class, classes, tile + p + k, width)
        p += run
    if count < width:
        for k in range(classes):
            memset(tile + k*width + count, 0, (width - count)*room)


cdef void store_tile(const Matrix *a, Py_ssize_t i, Py_ssize_t count, Py_ssize_t j, Py_ssize_t classes,
                     Py_ssize_t width, const floating *tile) noexcept nogil:
    """a[i + p, j + k] = tile[k, p]"""
    cdef Py_ssize_t p = 0, k, r, run, room = sizeof(floating)
    cdef char *dst
    while p < count:
        dst = position(a, i + p) + j*a.by_class
        run = count - p
        if a.blocks != NULL and a.per_block - (i + p) % a.per_block < run:
            run = a.per_block - (i + p) % a.per_block
        if a.by_position == room:
            for k in range(classes):
                memcpy(dst + k*a.by_class, tile + k*width + p, run*room)
        else:
            for r in range(run):
                for k in range(classes):
                    (<floating *>(dst + r*a.by_position + k*a.by_class))[0] = tile[k*width + p + r]
        p += run


# ---------------------------------------------------------------------------------------------------------------------
# Rows: vectors along the classes
# ---------------------------------------------------------------------------------------------------------------------

cdef void row_state(const Job *job, Py_ssize_t i, Row *state, floating *e, floating *scratch) noexcept nogil:
    """The state of row i, block by block: each block comes from memory once. Writes the exponentials to e unless NULL.
    With stats_given, row_max and tail are not computed but looked up, and only what else is needed is read."""
    cdef const ce_primitives *f = primitives(scratch)
    cdef const char *row = position(&job.x, i)
    cdef const floating *x
    cdef const floating *v
    cdef const floating *next
    cdef bint by_element = job.v_kind == CE_BY_ELEMENT, given = job.stats_given
    cdef Py_ssize_t j = 0, n, k
    cdef double row_max = -INFINITY, shift = 0, block_max, v_sum
    cdef Sum tail, mass, linear, rest
    set_sum(&tail, -1)          # of no class, so that 1 + tail is 0
    set_sum(&mass, 0)
    set_sum(&linear, 0)
    set_sum(&rest, 0)
    state.target, state.q = -1, 0
    if given:
        row_max = (<const floating *>job.row_max)[i]
        set_sum(&tail, (<const floating *>job.tail)[i])
    while j < job.classes and (by_element or not given):
        n = min(job.classes - j, BLOCK)
        x = logits_block(job, row, j, n, scratch)
        k = -1                  # where this block holds the first maximum of all so far
        if given:
            k = f.row_find(x, n, row_max) if state.target < 0 else -1
        else:
            next = block_after(job, i, j + n, x)
            block_max = f.row_max(x, n)
            if block_max > row_max:
                k = f.row_find(x, n, block_max)
                set_sum(&tail, (1 + value(&tail))*exp(row_max - block_max))
                add(&tail, f.row_exp_sum(x, e, n, block_max, k, next))
                add(&linear, times(value(&mass), block_max - shift))
                row_max = shift = block_max
            else:
                add(&tail, f.row_exp_sum(x, e, n, shift, -1, next))
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
                state.target, state.q = j + k, v[k]
            else:
                v_sum = job.v_scale*(n if v == NULL else f.row_sum(v, n))
                add(&mass, v_sum)
                add(&rest, v_sum)
        j += n
    state.row_max = row_max
    state.tail = value(&tail) if isfinite(row_max) else NAN     # every class masked, or +inf
    state.mass, state.linear, state.rest = value(&mass), value(&linear), value(&rest)
    if job.labels != NULL and not is_ignored(job, i):
        add_label(job, job.labels[i], (<const floating *>(row + job.labels[i]*job.x.by_class))[0], state)


cdef void row_grad(const Job *job, Py_ssize_t i, const Row *state, double scale, const floating *e,
                   floating *scratch) noexcept nogil:
    """The gradient of row i, from its exponentials in e or, when that is NULL, from its logits again."""
    cdef const ce_primitives *f = primitives(scratch)
    cdef const char *row = position(&job.x, i)
    cdef char *grad = position(&job.g, i)
    cdef const floating *src = e
    cdef floating *dst
    cdef bint in_place = job.g.by_class == sizeof(floating)
    cdef Py_ssize_t j = 0, n, k
    cdef double slope = lse_slope(job, state), e_t = 1
    cdef double a = scale*(state.mass + slope)/(1 + state.tail), b = scale*job.v_scale
    if state.target >= 0:
        e_t = exp((<const floating *>(row + state.target*job.x.by_class))[0] - state.row_max)
    while j < job.classes:
        n = min(job.classes - j, BLOCK)
        if e == NULL:
            src = logits_block(job, row, j, n, scratch)
        dst = (<floating *>grad) + j if in_place else scratch + 2*BLOCK
        f.row_grad(src, dst, n, e == NULL, state.row_max, a, b, v_block(job, i, j, n, scratch + BLOCK),
                   in_place and job.stream)
        if not in_place:
            for k in range(n):
                (<floating *>(grad + (j + k)*job.g.by_class))[0] = dst[k]
        j += n
    if state.target >= 0:
        (<floating *>(grad + state.target*job.g.by_class))[0] = <floating>(scale*grad_at_target(state, e_t, slope))


cdef void row_zero_grad(const Job *job, Py_ssize_t i, const floating *dtype) noexcept nogil:
    cdef char *grad = position(&job.g, i)
    cdef Py_ssize_t j
    if job.g.by_class == sizeof(floating):
        memset(grad, 0, job.classes*sizeof(floating))
    else:
        for j in range(job.classes):
            (<floating *>(grad + j*job.g.by_class))[0] = 0


cdef void rows(const Job *job, Py_ssize_t start, Py_ssize_t count, Row *states, const double *scale,
               floating *scratch) noexcept nogil:
    cdef bint with_grad = job.g.data != NULL, ignored
    cdef Py_ssize_t r
    # A row of one block leaves its exponentials in scratch; those of longer rows are computed again, for less than it
    # costs to bring them back.
    cdef floating *e = NULL
    if with_grad and job.classes <= BLOCK and not job.stats_given:
        e = scratch + 2*BLOCK
    for r in range(count):
        ignored = is_ignored(job, start + r)
        if ignored and job.row_max == NULL:     # its logits are not even read
            memset(&states[r], 0, sizeof(Row))
        else:
            row_state(job, start + r, &states[r], e, scratch)
        if with_grad and ignored:
            row_zero_grad(job, start + r, scratch)
        elif with_grad:
            row_grad(job, start + r, &states[r], scale[r], e, scratch)


# ---------------------------------------------------------------------------------------------------------------------
# Tiles: vectors across positions
# ---------------------------------------------------------------------------------------------------------------------

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


cdef void tile_state(const Job *job, const Tile *tile, Row *states, double *e_t, bint keep,
                     floating *scratch) noexcept nogil:
    """row_state for a tile. With `keep`, the logits of its only block are replaced by their exponentials. e_t is that of
    the label."""
    cdef const ce_primitives *f = primitives(scratch)
    cdef floating *x = scratch
    cdef floating *v = scratch + TILE
    cdef floating *row_max = scratch + 2*TILE
    cdef floating *before = row_max + GROUP
    cdef floating *shift = before + GROUP       # row_max, or 0 while that is -inf
    cdef bint by_element = job.v_kind == CE_BY_ELEMENT, given = job.stats_given
    cdef double drop[GROUP]
    cdef double sums[GROUP]
    cdef Sum tail[GROUP]
    cdef Sum mass[GROUP]
    cdef Sum linear[GROUP]
    cdef Sum rest[GROUP]
    cdef double v_sum, x_t
    cdef Py_ssize_t width = tile.width, p, j = 0, n, t
    memset(tail, 0, width*sizeof(Sum))
    memset(mass, 0, width*sizeof(Sum))
    memset(linear, 0, width*sizeof(Sum))
    memset(rest, 0, width*sizeof(Sum))
    for p in range(width):
        row_max[p] = -INFINITY
        if given:
            row_max[p] = (<const floating *>job.row_max)[tile.start + p] if p < tile.count else 0
            tail[p].total = (<const floating *>job.tail)[tile.start + p] if p < tile.count else 0
        shift[p] = row_max[p]
    while j < job.classes and (by_element or not given):
        n = min(job.classes - j, tile.most)
        load_tile(&job.x, own_type(scratch), tile.start, tile.count, j, n, width, x)
        if not given:
            memcpy(before, row_max, width*sizeof(floating))
            f.tile_max(x, n, width, row_max)
            for p in range(width):
                drop[p] = row_max[p] > before[p]
                if j > 0 and row_max[p] > before[p]:
                    set_sum(&tail[p], (1 + value(&tail[p]))*(
                        exp(<double>before[p] - row_max[p]) if before[p] > -INFINITY else 0))
                    add(&linear[p], times(value(&mass[p]), <double>row_max[p] - shift[p]))
                    rest[p] = mass[p]
                shift[p] = row_max[p] if row_max[p] > -INFINITY else 0
        if by_element:
            load_v_tile(job, tile, j, n, v)
            f.tile_sum(v, n, width, NULL, NULL, sums)
            for p in range(width):
                add(&mass[p], sums[p])
            f.tile_sum(v, n, width, x, shift, sums)
            for p in range(width):
                add(&rest[p], sums[p])
        elif job.v_scale != 0:
            v_sum = job.v_scale*(n if job.smooth == NULL else f.row_sum((<const floating *>job.smooth) + j, n))
            for p in range(width):
                add(&mass[p], v_sum)
        if job.v_scale != 0 and job.with_loss:
            f.tile_gap_dot(x, v if by_element else v_block(job, 0, j, n, v), job.v_kind, n, width, shift, sums)
            for p in range(width):
                add(&linear[p], job.v_scale*sums[p])
        if not given:
            f.tile_exp_sum(x, x if keep else NULL, n, width, shift, drop, sums)
            for p in range(width):
                add(&tail[p], sums[p])
        j += n
    for p in range(tile.count):
        states[p].row_max = row_max[p]
        states[p].tail = value(&tail[p]) if isfinite(row_max[p]) else NAN
        states[p].mass, states[p].linear, states[p].rest = value(&mass[p]), value(&linear[p]), value(&rest[p])
        states[p].q, states[p].target = 0, -1
        e_t[p] = 1
        if job.labels != NULL and not is_ignored(job, tile.start + p):
            t = job.labels[tile.start + p]
            x_t = (<const floating *>(position(&job.x, tile.start + p) + t*job.x.by_class))[0]
            add_label(job, t, x_t, &states[p])
            if job.g.data != NULL:
                e_t[p] = x[t*width + p] if keep else exp(x_t - states[p].row_max)


cdef void tile_grad(const Job *job, const Tile *tile, const Row *states, const double *scale, const double *e_t,
                    bint kept, floating *scratch) noexcept nogil:
    """row_grad for a tile, from the exponentials that tile_state kept or from the logits again."""
    cdef const ce_primitives *f = primitives(scratch)
    cdef floating *x = scratch
    cdef floating *v_tile = scratch + TILE
    cdef floating *shift = scratch + 2*TILE
    cdef floating *a = shift + GROUP
    cdef floating *b = a + GROUP
    cdef floating *mark = b + GROUP             # what stands at a maximum that holds most of the probability ...
    cdef floating *at_mark = mark + GROUP       # ... and the gradient there
    cdef const floating *v
    cdef double at_target[GROUP]
    cdef double slope
    cdef bint by_element = job.v_kind == CE_BY_ELEMENT
    cdef Py_ssize_t width = tile.width, p, j = 0, n, k, t
    for p in range(width):
        a[p] = b[p] = at_mark[p] = 0
        mark[p] = INFINITY
    for p in range(tile.count):
        slope = lse_slope(job, &states[p])
        shift[p] = <floating>states[p].row_max
        a[p] = <floating>(scale[p]*(states[p].mass + slope)/(1 + states[p].tail))
        b[p] = <floating>(scale[p]*job.v_scale)
        at_target[p] = scale[p]*grad_at_target(&states[p], e_t[p], slope)
        if states[p].tail < 1:
            mark[p] = 1 if kept else shift[p]
            at_mark[p] = <floating>at_target[p]
    while j < job.classes:
        n = min(job.classes - j, tile.most)
        if by_element:
            v = v_tile
            if not kept:
                load_v_tile(job, tile, j, n, v_tile)
        else:
            v = v_block(job, 0, j, n, v_tile)
        if not kept:
            load_tile(&job.x, own_type(scratch), tile.start, tile.count, j, n, width, x)
        f.tile_grad(x, x, n, width, not kept, shift, a, b, v, job.v_kind, mark, at_mark)
        if job.labels != NULL:
            for p in range(tile.count):
                t = job.labels[tile.start + p]
                if is_ignored(job, tile.start + p):
                    for k in range(n):
                        x[k*width + p] = 0
                elif j <= t < j + n:
                    x[(t - j)*width + p] = <floating>at_target[p]
        store_tile(&job.g, tile.start, tile.count, j, n, width, x)
        j += n


cdef void tiles(const Job *job, Py_ssize_t start, Py_ssize_t count, Row *states, const double *scale,
                floating *scratch) noexcept nogil:
    cdef double e_t[GROUP]
    cdef bint with_grad = job.g.data != NULL, keep
    cdef Tile tile
    tile.start, tile.count = start, count
    tile.width = (count + LANES - 1)/LANES*LANES
    tile.most = TILE/tile.width
    keep = with_grad and job.classes <= tile.most and not job.stats_given
    tile_state(job, &tile, states, e_t, keep, scratch)
    if with_grad:
        tile_grad(job, &tile, states, scale, e_t, keep, scratch)


# ---------------------------------------------------------------------------------------------------------------------
# Units of work, threads
# ---------------------------------------------------------------------------------------------------------------------

cdef void finish(const Job *job, Py_ssize_t start, Py_ssize_t count, const Row *states, Sum *total,
                 const floating *dtype) noexcept nogil:
    """Writes what was asked for of a group's positions, and adds their losses to total."""
    cdef double log_total[GROUP]
    cdef double loss
    cdef Py_ssize_t p
    if job.row_max != NULL and not job.stats_given:
        for p in range(count):
            (<floating *>job.row_max)[start + p] = <floating>states[p].row_max
            (<floating *>job.tail)[start + p] = <floating>states[p].tail
    if not job.with_loss:
        return
    for p in range(count):
        log_total[p] = states[p].tail
    primitives(dtype).log1p(log_total, count)
    for p in range(count):
        loss = states[p].mass*log_total[p] + states[p].linear
        if job.z_loss != 0:
            loss += job.z_loss*(states[p].row_max + log_total[p])*(states[p].row_max + log_total[p])
        if job.sample != NULL:
            loss *= job.sample[start + p]
        if is_ignored(job, start + p):
            loss = 0
        if job.losses != NULL:
            (<floating *>job.losses)[start + p] = <floating>loss
        add(total, loss)


cdef void run_unit(const Job *job, Py_ssize_t u, floating *scratch) noexcept nogil:
    cdef Py_ssize_t start = u*job.unit, stop = min(start + job.unit, job.positions), count, p
    cdef Row states[GROUP]
    cdef double scale[GROUP]
    cdef Sum total
    set_sum(&total, 0)
    while start < stop:
        count = min(stop - start, GROUP)
        for p in range(count):
            scale[p] = job.factor
            if job.sample != NULL:
                scale[p] *= job.sample[start + p]
            if job.upstream != NULL:
                scale[p] *= job.upstream[start + p]
        if job.by_tiles:
            tiles(job, start, count, states, scale, scratch)
        else:
            rows(job, start, count, states, scale, scratch)
        finish(job, start, count, states, &total, scratch)
        start += count
    job.unit_sums[u] = value(&total)


cdef void run(const Job *job, Py_ssize_t units, int threads, floating *scratch, Py_ssize_t room) noexcept nogil:
    cdef Py_ssize_t u
    if threads == 1:
        for u in range(units):
            run_unit(job, u, scratch)
    else:
        for u in prange(units, num_threads=threads, schedule="dynamic", chunksize=1):
            run_unit(job, u, scratch + threadid()*room)


# ---------------------------------------------------------------------------------------------------------------------
# What _api.py calls
# ---------------------------------------------------------------------------------------------------------------------

cdef class Targets:
    """A (positions, classes) view of probability targets of any `number` dtype; made by `targets`."""
    cdef object array
    cdef char *data
    cdef Py_ssize_t per_block
    cdef Py_ssize_t by_position
    cdef Py_ssize_t by_class
    cdef int dtype
    cdef const Py_ssize_t[::1] blocks


def targets(const number[:, :] array, const Py_ssize_t[::1] blocks):
    """A `Targets`: `array` is the first block of rows, `blocks` the byte offsets of all blocks from it (None: the only)."""
    cdef Targets t = Targets()
    t.array = array
    t.data = <char *>&array[0, 0]
    t.per_block, t.by_position, t.by_class = array.shape[0], array.strides[0], array.strides[1]
    t.blocks = blocks
    if number is int8_t:
        t.dtype = I8
    elif number is int16_t:
        t.dtype = I16
    elif number is int32_t:
        t.dtype = I32
    elif number is int64_t:
        t.dtype = I64
    elif number is uint8_t:
        t.dtype = U8
    elif number is uint16_t:
        t.dtype = U16
    elif number is uint32_t:
        t.dtype = U32
    elif number is uint64_t:
        t.dtype = U64
    elif number is float:
        t.dtype = F32
    else:
        t.dtype = F64
    return t


def labels_kept(const int64_t[::1] labels, int64_t classes, ignored):
    """How many labels differ from `ignored` (an int of 64 bits, or None); -1 if one of those is outside [0, classes)."""
    return primitives_f32.labels_kept(&labels[0], labels.shape[0], classes, 0 if ignored is None else ignored,
                                      ignored is not None)


def cross_entropy(
    const floating[:, :] x,             # IN   the first block of rows
    const Py_ssize_t[::1] x_blocks,     # IN   byte offsets of the blocks from the first; None: there is one block
    Py_ssize_t positions,               #      rows in all, >= 1
    const int64_t[::1] labels,          # IN   checked class indices, or None:
    Targets targets,                    # IN   then the targets
    ignored,                            #      an int of 64 bits, or None
    const double[::1] weight,           # IN   by class, or None
    const floating[::1] weight_t,       # IN   the same in the logits' dtype
    double smoothing,
    double z_loss,
    double factor,                      #      of the gradient
    const double[::1] sample,           # IN   weight by position, or None
    const double[::1] upstream,         # IN   by position, or None
    bint with_loss,
    floating[::1] losses,               # OUT  by position, or None
    floating[::1] row_max,              # OUT  by position, or None; IN when stats_given
    floating[::1] tail,                 # OUT  as row_max
    bint stats_given,
    int threads,                        #      0: automatic
    int quota,                          #      CPUs of the control group's quota, 0: none
    floating[:, :] g,                   # OUT  gradient, or None
    const Py_ssize_t[::1] g_blocks,     # IN   as x_blocks
):
    """Runs forward, backward or both over every row, and returns the float64 sum of the losses, weighted by `sample`.

    All arrays were checked by the caller; g may be x itself and may not overlap anything else.
    """
    cdef Job job
    cdef Py_ssize_t j, units, room, classes = x.shape[1]
    cdef char *memory
    cdef floating *scratch
    cdef Sum total
    memset(&job, 0, sizeof(job))
    job.positions, job.classes = positions, classes
    job.x.data = <char *>&x[0, 0]
    if x_blocks is not None:
        job.x.blocks = &x_blocks[0]
    job.x.per_block, job.x.by_position, job.x.by_class = x.shape[0], x.strides[0], x.strides[1]
    if g is not None:
        job.g.data = <char *>&g[0, 0]
        if g_blocks is not None:
            job.g.blocks = &g_blocks[0]
        job.g.per_block, job.g.by_position, job.g.by_class = g.shape[0], g.strides[0], g.strides[1]
    job.keep, job.uniform = 1 - smoothing, smoothing/classes
    if weight is not None:
        job.weight, job.weight_t = &weight[0], &weight_t[0]
    if labels is not None:
        job.labels = &labels[0]
        if ignored is not None:
            job.has_ignored, job.ignored = True, ignored
        job.v_kind, job.v_scale, job.smooth_mass = CE_BROADCAST, job.uniform, smoothing
    else:
        job.c.data = targets.data
        if targets.blocks is not None:
            job.c.blocks = &targets.blocks[0]
        job.c.per_block, job.c.by_position, job.c.by_class = targets.per_block, targets.by_position, targets.by_class
        job.c_type = targets.dtype
        job.c_ready = (targets.dtype == own_type(<floating *>NULL) and targets.by_class == sizeof(floating)
                       and smoothing == 0 and weight is None)
        job.v_kind, job.v_scale = CE_BY_ELEMENT, 1
    job.z_loss, job.factor, job.with_loss = z_loss, factor, with_loss
    if sample is not None:
        job.sample = &sample[0]
    if upstream is not None:
        job.upstream = &upstream[0]
    if losses is not None:
        job.losses = &losses[0]
    if row_max is not None:
        job.row_max = &row_max[0]
    if tail is not None:
        job.tail = &tail[0]
    job.stats_given = stats_given
    job.stream = positions*classes >= STREAM_BYTES/<Py_ssize_t>sizeof(floating)
    job.by_tiles = classes <= FEW or (job.x.by_position == sizeof(floating) and job.x.by_class != sizeof(floating)
                                      and job.x.per_block >= LANES)
    # The units depend on the shapes alone, never on the number of threads.
    job.unit = UNIT/classes if UNIT/classes > 0 else 1
    if job.by_tiles:
        if job.unit < positions/16:
            job.unit = positions/16
        if job.unit > GROUP:
            job.unit = (UNIT/classes if UNIT/classes > GROUP else GROUP)/GROUP*GROUP
        else:
            job.unit = (job.unit + LANES - 1)/LANES*LANES
    units = (positions + job.unit - 1)/job.unit

    if ce_must_be_serial():
        threads = 1
    elif threads == 0:
        threads = 1 if positions*classes < 2*UNIT else ce_automatic_threads(quota)
    if threads > units:
        threads = <int>units
    if threads > MOST_THREADS:
        threads = MOST_THREADS

    # All the memory a run needs: for each thread three blocks or two tiles and the state of a tile; the units' sums;
    # the weights of the smoothing. Aligned to cache lines.
    room = 2*TILE + 8*GROUP if job.by_tiles else 3*BLOCK
    memory = <char *>malloc(64 + (threads*room + classes*(weight is not None))*sizeof(floating) + units*sizeof(double))
    if memory == NULL:
        raise MemoryError(f"fastce needs {threads*room*sizeof(floating)} bytes of scratch memory")
    scratch = <floating *>(memory + (64 - <size_t>memory % 64))
    job.unit_sums = <double *>(scratch + threads*room)
    if labels is not None and weight is not None and smoothing != 0:
        job.v_kind, job.v_scale = CE_BY_CLASS, 1
        job.smooth = <floating *>(job.unit_sums + units)
        set_sum(&total, 0)
        for j in range(classes):
            add(&total, weight[j])
            (<floating *>job.smooth)[j] = <floating>(job.uniform*weight[j])
        job.smooth_mass = job.uniform*value(&total)
    with nogil:
        run(&job, units, threads, scratch, room)
    set_sum(&total, 0)
    for j in range(units):
        add(&total, job.unit_sums[j])
    free(memory)
    return value(&total)


def automatic_threads(int quota):
    """How many threads a large call from this thread would use."""
    return ce_automatic_threads(quota)


def select(name):
    """Chooses an instruction set by name, or the best when that is None; returns whether there is such a one here."""
    global primitives_f32, primitives_f64
    cdef int i
    for i in range(CE_ISA_COUNT):
        if ce_isa_runs_here(i) and (name is None or ce_isas[i].name.decode() == name):
            primitives_f32, primitives_f64 = ce_isas[i].f32, ce_isas[i].f64
            return ce_isas[i].name.decode()
    return None


def available():
    """The instruction sets this processor runs, best first."""
    return [ce_isas[i].name.decode() for i in range(CE_ISA_COUNT) if ce_isa_runs_here(i)]


openmp = str(ce_openmp_version()) if ce_openmp_version() else None
compiler = CE_COMPILER.decode()
ce_watch_forks()
