# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
# cython: embedsignature=False, freethreading_compatible=True
"""The algorithm: softmax cross-entropy of rows, forward and backward, and what else is made of a softmax.

Called by _api.py, _softmax.py and _two_term.py only, which have checked every argument: nothing here fails but for want
of memory, nothing is checked twice, and nothing is written before the call into here. The functions at the end of the file take arrays (typed
memoryviews), fill a `Job` and run it; everything above them is `noexcept nogil` and sees pointers.

A row has `classes` logits x. Its state is row_max = max x and tail = sum over j != argmax of exp(x_j - row_max): the
maximum's own term, 1, is kept out of the sum, so that log1p(tail) and tail/(1 + tail) stay exact to the last digits
when the row is confident. With q the row's targets (weights and smoothing included), Q = sum q, lse = logsumexp(x):

    loss   = Q*log1p(tail) + sum_j q_j*(row_max - x_j) + z_loss*lse^2          every term >= 0
    grad_j = scale * ((Q + 2*z_loss*lse)*p_j - q_j),    p_j = exp(x_j - row_max)/(1 + tail)
           = a*e_j - b*v_j        v: nothing, ones, one number a class, or the target row

Two kernels compute this. `rows` runs its vectors along the classes of one row. `tiles` runs them across positions, for
few classes or contiguous positions (axis != -1): it copies up to 112 positions x some classes into scratch, positions
contiguous, and back. Both cut long rows into blocks that stay in cache, so that a forward reads each logit once from
memory, and a gradient is computed from logits that are still near.

Rows are worked on in units whose number depends on the shapes alone; each unit adds its losses in order, and the units'
sums are added in order: the result is the same to the bit for every number of threads.
"""
from cython cimport floating
from cython.parallel cimport prange, threadid
from libc.math cimport INFINITY, NAN, exp, isfinite, log, log1p
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset


cdef extern from "_simd.h" nogil:
    enum: CE_BROADCAST, CE_BY_CLASS, CE_BY_ELEMENT, CE_KEPT, CE_EXP, CE_DIFFERENCE, CE_ISA_COUNT
    ctypedef struct ce_primitives:
        double one
        void (*rows_max)(const void *x, Py_ssize_t x_step, Py_ssize_t rows, Py_ssize_t n, double *m) noexcept nogil
        Py_ssize_t (*row_find)(const void *x, Py_ssize_t n, double value) noexcept nogil
        void (*rows_exp_sum)(const void *x, Py_ssize_t x_step, void *e, Py_ssize_t e_step, Py_ssize_t rows, Py_ssize_t n,
                             const double *shift, int without, const void *next, double *sum) noexcept nogil
        double (*row_gap_dot)(const void *x, const void *v, Py_ssize_t n, double shift) noexcept nogil
        double (*row_sum)(const void *v, Py_ssize_t n) noexcept nogil
        double (*row_dot)(const void *u, const void *v, Py_ssize_t n) noexcept nogil
        void (*row_scale)(const void *y, const void *u, void *g, Py_ssize_t n, double shift) noexcept nogil
        void (*row_affine)(void *q, const void *v, Py_ssize_t n, double slope, double offset) noexcept nogil
        void (*rows_grad)(const void *src, Py_ssize_t src_step, void *g, Py_ssize_t g_step, Py_ssize_t rows, Py_ssize_t n,
                          int form, const double *shift, const double *a, const double *b, const void *v,
                          const Py_ssize_t *mark, const double *at_mark, int stream) noexcept nogil
        double (*row_sigmoid)(const void *z, const void *a, const void *b, Py_ssize_t n, double scale, void *loss,
                              void *grad) noexcept nogil
        void (*tile_max)(const void *x, Py_ssize_t classes, Py_ssize_t width, void *m) noexcept nogil
        void (*tile_exp_sum)(const void *x, void *e, Py_ssize_t classes, Py_ssize_t width, const void *m,
                             const void *before, const void *label, double *sum, double *d_label,
                             double *e_label, const void *next, Py_ssize_t next_step, void *dst,
                             Py_ssize_t dst_step) noexcept nogil
        void (*tile_gap_dot)(const void *x, const void *v, int kind, Py_ssize_t classes, Py_ssize_t width,
                             const void *m, double *sum) noexcept nogil
        void (*tile_sum)(const void *v, Py_ssize_t classes, Py_ssize_t width, const void *x, const void *m,
                         double *sum) noexcept nogil
        void (*tile_grad)(const void *src, void *g, Py_ssize_t classes, Py_ssize_t width, int form,
                          const void *m, const void *a, const void *b, const void *v, int kind, const void *mark,
                          const void *at_mark) noexcept nogil
        void (*transpose)(const void *src, Py_ssize_t src_step, Py_ssize_t rows, Py_ssize_t columns, void *dst,
                          Py_ssize_t dst_step) noexcept nogil
        void (*copy_runs)(const void *src, Py_ssize_t src_step, Py_ssize_t runs, Py_ssize_t n, void *dst,
                          Py_ssize_t dst_step) noexcept nogil
        void (*label_lanes)(const int64_t *labels, Py_ssize_t n, int64_t first, void *label) noexcept nogil
        void (*narrow)(const double *src, Py_ssize_t n, void *to) noexcept nogil
        void (*widen)(const void *src, Py_ssize_t n, double *to) noexcept nogil
        void (*add)(double *total, double *lost, const double *term, Py_ssize_t n) noexcept nogil
        void (*coefficients)(Py_ssize_t n, const double *tail, const double *mass, const double *q,
                             const double *rest, const double *e, const double *slope, const double *scale,
                             double *a, double *at_target) noexcept nogil
        void (*losses)(Py_ssize_t n, const double *tail, const double *mass, const double *linear,
                       double *log_total, double *loss) noexcept nogil
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
    GROUP = 112         # positions whose state is held at a time, at most
    BLOCK = 4096        # classes of a row that are worked on at a time: 16 or 32 KiB
    SHORT = 2048        # classes of short rows that take turns
    TILE = 8192         # numbers in a tile
    LANES = 16          # a tile's width is a multiple of this, the widest vector
    NARROW = 48         # the least width of a tile when there are positions enough
    FEW = 40            # up to so many contiguous classes, `tiles` is faster than `short_rows`,
    FEW_SINGLE = 128    # or than one row after the other
    UNIT = 32768        # logits in a unit of work, about 10 us
    STREAM_BYTES = 3 << 23      # gradients of this size or more (24 MiB) are written past the caches
    MOST_THREADS = 256

cdef enum:              # what a job writes
    CROSS_ENTROPY, SOFTMAX, LOG_SOFTMAX, LOGSUMEXP, SOFTMAX_GRAD, LOG_SOFTMAX_GRAD, SIGMOID_FORM, SOFTMAX_FORM

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
    int output
    Py_ssize_t positions
    Py_ssize_t classes
    Matrix x                        # logits
    Matrix g                        # gradient; data is NULL for a forward
    const int64_t *labels           # class indices, or NULL: then
    Matrix c                        # probability targets of dtype c_type
    int c_type
    int x_type                      # two-term forms: the dtype of the logits
    const double *elementwise       # SIGMOID_FORM: upstream by element, or NULL for ones
    bint c_ready                    # c can be used as q where it lies
    int64_t ignored
    bint has_ignored
    const double *weight            # by class, or NULL for ones
    const double *pos_weight        # SIGMOID_FORM: the same, of the targets alone
    const void *weight_t            # the same in the dtype of the logits
    double keep                     # 1 - label_smoothing
    double uniform                  # label_smoothing/classes
    const void *smooth              # labels only: uniform*weight in the dtype of the logits, NULL without a weight
    double smooth_mass              # labels only: sum over j of uniform*weight_j
    const double *others            # with smooth: sum over k != j of weight_k, by class j
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
    bint alike                      # rows need no targets but their labels: `short_rows` may take them
    bint stream
    Py_ssize_t group                # positions worked on at a time: the width of a tile
    Py_ssize_t unit                 # positions in a unit
    double *unit_sums

cdef struct Sum:
    # A float64 sum and what its additions lost.
    double total
    double lost

cdef struct State:
    # The state of up to GROUP positions, and what follows from it.
    double row_max[GROUP]
    double tail[GROUP]
    double mass[GROUP]              # Q
    double linear[GROUP]            # sum_j q_j*(row_max - x_j)
    Py_ssize_t top[GROUP]           # the first maximum (rows only), -1 while that is not known
    Py_ssize_t target[GROUP]        # the label, or the maximum: where p - q may cancel (rows only)
    double q[GROUP]                 # its target,
    double rest[GROUP]              # Q - q, not formed by subtraction,
    double e[GROUP]                 # and its exp(x - row_max)
    bint alike                      # mass, q and rest are set, and the same for every label
    double slope[GROUP]             # d(z_loss*lse^2)/d(lse)
    double scale[GROUP]             # of the gradient
    double x[GROUP]                 # the label's logit (rows only)
    double a[GROUP]                 # the gradient's factor of e,
    double b[GROUP]                 # and of v,
    double at_target[GROUP]         # and its value at the target
    double log_total[GROUP]         # log(1 + tail)
    double loss[GROUP]


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


cdef inline void add_label(const Job *job, Py_ssize_t t, double x_t, double e_t, State *s,
                           Py_ssize_t r) noexcept nogil:
    """Completes the state of position r, which lacks only its label t, whose logit is x_t and exp(x_t - row_max) e_t."""
    cdef double weight = weight_of(job, t)
    s.target[r] = t
    s.q[r] = (job.keep + job.uniform)*weight
    s.rest[r] = job.smooth_mass - job.uniform*weight if job.others == NULL else job.uniform*job.others[t]
    s.mass[r] = job.smooth_mass + job.keep*weight
    s.linear[r] += times(job.keep*weight, s.row_max[r] - x_t)
    s.e[r] = e_t


cdef inline void coefficients(const Job *job, State *s, Py_ssize_t r, Py_ssize_t n,
                              const ce_primitives *f) noexcept nogil:
    """a and at_target of n positions from r on."""
    cdef Py_ssize_t p
    if job.z_loss != 0:
        for p in range(r, r + n):
            s.slope[p] = 2*job.z_loss*(s.row_max[p] + log1p(s.tail[p]))
    f.coefficients(n, s.tail + r, s.mass + r, s.q + r, s.rest + r, s.e + r, s.slope + r, s.scale + r, s.a + r,
                   s.at_target + r)


cdef inline bint needs_top(const Job *job, const State *s, Py_ssize_t r) noexcept nogil:
    """Whether p - q may cancel at a maximum that is not the label: where weights leave smoothing little but there."""
    return job.smooth != NULL and s.tail[r] < 1 and s.e[r] < 1


cdef inline double grad_at_top(const Job *job, const State *s, Py_ssize_t r, Py_ssize_t top, Py_ssize_t label,
                               const ce_primitives *f) noexcept nogil:
    """The gradient there."""
    cdef double q = job.uniform*job.weight[top], rest = job.uniform*job.others[top] + job.keep*job.weight[label]
    cdef double e = 1, a, at_top
    f.coefficients(1, s.tail + r, s.mass + r, &q, &rest, &e, s.slope + r, s.scale + r, &a, &at_top)
    return at_top


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
    cdef floating *weight = NULL
    if job.v_kind == CE_BROADCAST:
        return NULL
    if job.v_kind == CE_BY_CLASS:
        return (<const floating *>job.smooth) + j
    row = position(&job.c, i) + j*job.c.by_class
    if job.c_ready:
        return <const floating *>row
    gather(job.c_type, row, job.c.by_class, n, scratch, 1)
    if job.weight != NULL:
        weight = (<floating *>job.weight_t) + j
    if job.keep != 1 or job.uniform != 0 or job.weight != NULL:
        primitives(scratch).row_affine(scratch, weight, n, job.keep, job.uniform)
    return scratch


cdef inline Py_ssize_t run_of(const Matrix *a, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    """How many of n positions from i on are at one distance from each other."""
    return n if a.blocks == NULL else min(n, a.per_block - i % a.per_block)


cdef void load_tile(const Matrix *a, int dtype, Py_ssize_t i, Py_ssize_t count, Py_ssize_t j, Py_ssize_t classes,
                    Py_ssize_t width, floating *tile) noexcept nogil:
    """tile[k, p] = a[i + p, j + k], 0 for count <= p < width."""
    cdef Py_ssize_t p = 0, k, run, room = sizeof(floating)
    cdef bint own = dtype == own_type(tile)
    cdef const char *src
    while p < count:
        src = position(a, i + p) + j*a.by_class
        run = run_of(a, i + p, count - p)
        if own and a.by_position == room:
            primitives(tile).copy_runs(src, a.by_class, classes, run, tile + p, width*room)
        elif own and a.by_class == room:
            primitives(tile).transpose(src, a.by_position, run, classes, tile + p, width*room)
        elif 0 < a.by_position < a.by_class:
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
        run = run_of(a, i + p, count - p)
        if a.by_position == room:
            primitives(tile).copy_runs(tile + p, width*room, classes, run, dst, a.by_class)
        elif a.by_class == room:
            primitives(tile).transpose(tile + p, width*room, classes, run, dst, a.by_position)
        else:
            for r in range(run):
                for k in range(classes):
                    (<floating *>(dst + r*a.by_position + k*a.by_class))[0] = tile[k*width + p + r]
        p += run


# ---------------------------------------------------------------------------------------------------------------------
# Rows: vectors along the classes
# ---------------------------------------------------------------------------------------------------------------------

cdef inline void set_b(const Job *job, State *s, Py_ssize_t r, Py_ssize_t n, const ce_primitives *f) noexcept nogil:
    """The coefficients of n positions from r on, whose state is complete."""
    cdef Py_ssize_t p
    coefficients(job, s, r, n, f)
    if job.output == LOG_SOFTMAX:
        f.losses(n, s.tail + r, s.mass + r, s.linear + r, s.b + r, s.loss + r)
        for p in range(r, r + n):
            s.a[p] = 1
    else:
        for p in range(r, r + n):
            s.b[p] = s.scale[p]*job.v_scale


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
                f.rows_exp_sum(x, 0, e, 0, 1, n, &block_max, 1, block_after(job, i, j + n, x), &part)
                if j == 0:
                    set_sum(&tail, part)
                else:
                    set_sum(&tail, (1 + value(&tail))*exp(row_max - block_max))
                    add(&tail, part)
                    add(&linear, times(value(&mass), block_max - shift))
                row_max = shift = block_max
            else:
                f.rows_exp_sum(x, 0, e, 0, 1, n, &shift, 0, block_after(job, i, j + n, x), &part)
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
        add_label(job, k, x_k, e[k]/f.one if e != NULL else exp(x_k - row_max), s, r)


cdef void short_rows(const Job *job, Py_ssize_t start, Py_ssize_t count, State *s, Py_ssize_t r,
                     floating *scratch) noexcept nogil:
    """State r on and gradient of some rows of one block each, which take turns at every step: so one row's loads and
    arithmetic fill the gaps that the end of another's leaves. For contiguous classes and v that is nothing or ones."""
    cdef const ce_primitives *f = primitives(scratch)
    cdef const char *x = position(&job.x, start)
    cdef char *g = NULL
    cdef char *e = NULL
    cdef Py_ssize_t n = job.classes, x_step = job.x.by_position, e_step = 0, p, t
    cdef bint with_grad = job.g.data != NULL
    if with_grad and job.output != LOG_SOFTMAX:
        # The exponentials are put where the gradient will be, unless that is written past the caches.
        e, e_step = position(&job.g, start), job.g.by_position
        if job.stream or job.g.by_class != sizeof(floating):
            e, e_step = <char *>scratch, n*sizeof(floating)
    f.rows_max(x, x_step, count, n, s.row_max + r)
    for p in range(r, r + count):
        s.linear[p], s.target[p], s.mass[p], s.rest[p], s.q[p] = 0, -1, 1, 1, 0
    if job.v_scale != 0 and job.with_loss:
        for p in range(count):
            s.linear[r + p] = job.v_scale*f.row_gap_dot(x + p*x_step, NULL, n, s.row_max[r + p])
    if job.labels != NULL:
        for p in range(count):      # before e may overwrite them
            s.x[r + p] = (<const floating *>(x + p*x_step))[job.labels[start + p]]
    f.rows_exp_sum(x, x_step, e, e_step, count, n, s.row_max + r, 1,
                   x + count*x_step if start + 2*count <= job.positions else x, s.tail + r)
    for p in range(r, r + count):
        s.tail[p] += 0*s.row_max[p]         # NaN where every class is masked, or at +inf
    if job.labels != NULL:
        for p in range(count):
            t = job.labels[start + p]
            add_label(job, t, s.x[r + p], 0 if e == NULL else (<floating *>(e + p*e_step))[t]/f.one, s, r + p)
    if not with_grad:
        return
    set_b(job, s, r, count, f)
    g = position(&job.g, start)
    if job.output == LOG_SOFTMAX:
        f.rows_grad(x, x_step, g, job.g.by_position, count, n, CE_DIFFERENCE, s.row_max + r, s.a + r, s.b + r, NULL,
                    NULL, NULL, job.stream)
    else:
        f.rows_grad(e, e_step, g, job.g.by_position, count, n, CE_KEPT, s.row_max + r, s.a + r, s.b + r, NULL,
                    s.target + r, s.at_target + r, job.stream)


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
    cdef int form = CE_DIFFERENCE if job.output == LOG_SOFTMAX else CE_EXP if e == NULL else CE_KEPT
    set_b(job, s, r, 1, f)
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
    # A row of one block leaves its exponentials in scratch; those of longer rows are computed again, for less than it
    # costs to bring them back.
    cdef floating *e = NULL
    if with_grad and job.classes <= BLOCK and not job.stats_given and job.output != LOG_SOFTMAX:
        e = scratch + 2*BLOCK
    while r < count:
        if is_ignored(job, start + r):
            if job.row_max == NULL:         # its logits are not even read
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


cdef inline void accumulate(const ce_primitives *f, bint first, double *total, double *lost, const double *term,
                            Py_ssize_t n) noexcept nogil:
    if first:
        memcpy(total, term, n*sizeof(double))
        memset(lost, 0, n*sizeof(double))
    else:
        f.add(total, lost, term, n)


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
    f.widen(row_max, count, s.row_max)
    for p in range(count):
        s.tail[p] += 0*s.row_max[p]         # NaN where every class is masked, or at +inf
    if job.labels == NULL:
        for p in range(count):
            s.e[p] = 1
            if job.output != CROSS_ENTROPY:
                s.mass[p], s.rest[p], s.q[p] = 1, 1, 0
    elif pick and job.weight == NULL:
        if not s.alike:
            for p in range(GROUP):
                s.q[p] = job.keep + job.uniform
                s.rest[p] = job.smooth_mass - job.uniform
                s.mass[p] = job.smooth_mass + job.keep
            s.alike = True
        if job.keep != 0:
            for p in range(count):
                s.linear[p] -= job.keep*d_label[p]
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
    cdef int form = CE_KEPT if kept else CE_EXP
    cdef Py_ssize_t width = tile.width, count = tile.count, p, j = 0, n, k, n_tops
    coefficients(job, s, 0, count, f)
    memset(a, 0, 4*GROUP*sizeof(floating))
    f.narrow(s.a, count, a)
    f.narrow(s.at_target, count, at_mark)
    if job.output == LOG_SOFTMAX:
        form = CE_DIFFERENCE
        f.losses(count, s.tail, s.mass, s.linear, s.log_total, s.loss)
        f.narrow(s.log_total, count, b)
        for p in range(count):
            a[p] = 1
    elif job.v_scale != 0:
        for p in range(count):
            b[p] = <floating>(s.scale[p]*job.v_scale)
    for p in range(width if job.output != CROSS_ENTROPY else 0):
        mark[p] = -1            # no class
    if by_element:
        for p in range(width):
            mark[p] = INFINITY
            if p < count and s.tail[p] < 1:
                mark[p] = <floating>f.one if kept else row_max[p]
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
                        if x[k*width + p] == (f.one if kept else row_max[p]):
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


# ---------------------------------------------------------------------------------------------------------------------
# Other functions of a row
# ---------------------------------------------------------------------------------------------------------------------

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


# ---------------------------------------------------------------------------------------------------------------------
# Units of work, threads
# ---------------------------------------------------------------------------------------------------------------------

cdef bint holds_nan(const Job *job, Py_ssize_t i, const floating *dtype) noexcept nogil:
    cdef const char *row = position(&job.x, i)
    cdef Py_ssize_t j
    cdef floating x
    for j in range(job.classes):
        x = (<const floating *>(row + j*job.x.by_class))[0]
        if x != x:
            return True
    return False


cdef void finish(const Job *job, Py_ssize_t start, Py_ssize_t count, State *s, Sum *total,
                 const floating *dtype) noexcept nogil:
    """Writes what was asked for of a group's positions, and adds their losses to total."""
    cdef const ce_primitives *f = primitives(dtype)
    cdef double lse
    cdef Py_ssize_t p
    if job.row_max != NULL and not job.stats_given:
        f.narrow(s.row_max, count, (<floating *>job.row_max) + start)
        f.narrow(s.tail, count, (<floating *>job.tail) + start)
    if not job.with_loss:
        return
    f.losses(count, s.tail, s.mass, s.linear, s.log_total, s.loss)
    if job.output == LOGSUMEXP:
        for p in range(count):
            s.loss[p] = s.row_max[p] + s.log_total[p]
            if not isfinite(s.row_max[p]) and not holds_nan(job, start + p, dtype):
                s.loss[p] = s.row_max[p]
    if job.z_loss != 0:
        for p in range(count):
            lse = s.row_max[p] + s.log_total[p]
            s.loss[p] += job.z_loss*lse*lse
    if job.sample != NULL:
        for p in range(count):
            s.loss[p] *= job.sample[start + p]
    if job.has_ignored:
        for p in range(count):
            if is_ignored(job, start + p):
                s.loss[p] = 0
    if job.losses != NULL:
        f.narrow(s.loss, count, (<floating *>job.losses) + start)
    add(total, primitives_f64.row_sum(s.loss, count))


cdef void run_unit(const Job *job, Py_ssize_t u, floating *scratch) noexcept nogil:
    cdef Py_ssize_t start = u*job.unit, stop = min(start + job.unit, job.positions), count, p
    cdef State s
    cdef Sum total
    set_sum(&total, 0)
    s.alike = False
    for p in range(GROUP):
        s.scale[p], s.slope[p] = job.factor, 0
    while start < stop:
        count = min(stop - start, job.group)
        if job.sample != NULL or job.upstream != NULL:
            for p in range(count):
                s.scale[p] = job.factor
                if job.sample != NULL:
                    s.scale[p] *= job.sample[start + p]
                if job.upstream != NULL:
                    s.scale[p] *= job.upstream[start + p]
        if job.output >= SOFTMAX_GRAD:
            for p in range(start, start + count):
                if job.output == SIGMOID_FORM:
                    add(&total, sigmoid_row(job, p, s.scale[p - start], scratch))
                elif job.output == SOFTMAX_FORM:
                    add(&total, softmax_row(job, p, s.scale[p - start], scratch))
                else:
                    row_vjp(job, p, scratch)
            start += count
            continue
        if job.by_tiles:
            tiles(job, start, count, &s, scratch)
        else:
            rows(job, start, count, &s, scratch)
        finish(job, start, count, &s, &total, scratch)
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
# What Python calls
# ---------------------------------------------------------------------------------------------------------------------

cdef double execute(Job *job, const floating *dtype, int threads, int quota) except? -1:
    """Runs a job that lacks only what follows from it, and returns the sum of its losses."""
    cdef Py_ssize_t positions = job.positions, classes = job.classes, j, units, room
    cdef bint smooth = job.labels != NULL and job.weight != NULL and job.uniform != 0
    cdef char *memory
    cdef floating *scratch
    cdef double *others
    cdef Sum total
    # In place the lines are in the cache already.
    job.stream = job.g.data != job.x.data and positions*classes >= STREAM_BYTES/<Py_ssize_t>sizeof(floating)
    job.alike = (job.v_kind == CE_BROADCAST and not smooth and not job.stats_given
                 and job.x.by_class == sizeof(floating)
                 and (job.g.data == NULL or job.g.by_class == sizeof(floating)))
    job.by_tiles = job.output < SOFTMAX_GRAD and (classes <= (FEW if job.alike else FEW_SINGLE) or (
        job.x.by_position == sizeof(floating) and job.x.by_class != sizeof(floating) and job.x.per_block >= LANES))
    # A tile that holds all classes need not compute its exponentials twice; one of few positions wastes memory lines. An
    # odd number of lines from class to class, so that they do not fall on each other in the cache.
    job.group = GROUP
    while job.by_tiles and job.group*classes > TILE and job.group > NARROW:
        job.group -= 2*LANES
    # The units depend on the shapes alone, never on the number of threads.
    job.unit = UNIT/classes if UNIT/classes > 0 else 1
    if job.by_tiles:
        if job.unit < positions/16:
            job.unit = positions/16
        if job.unit > job.group:
            job.unit = max(UNIT/classes, job.group)/job.group*job.group
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
    memory = <char *>malloc(64 + (threads*room + classes*smooth)*sizeof(floating)
                            + (units + classes*smooth)*sizeof(double))
    if memory == NULL:
        raise MemoryError(f"fastce needs {threads*room*sizeof(floating)} bytes of scratch memory")
    scratch = <floating *>(memory + (64 - <size_t>memory % 64))
    job.unit_sums = <double *>(scratch + threads*room)
    if smooth:
        job.v_kind, job.v_scale = CE_BY_CLASS, 1
        others = job.unit_sums + units
        job.others = others
        job.smooth = <floating *>(others + classes)
        set_sum(&total, 0)
        for j in range(classes):
            others[j] = value(&total)
            add(&total, job.weight[j])
            (<floating *>job.smooth)[j] = <floating>(job.uniform*job.weight[j])
        job.smooth_mass = job.uniform*value(&total)
        set_sum(&total, 0)
        for j in range(classes - 1, -1, -1):
            others[j] += value(&total)
            add(&total, job.weight[j])
    with nogil:
        run(job, units, threads, scratch, room)
    set_sum(&total, 0)
    for j in range(units):
        add(&total, job.unit_sums[j])
    free(memory)
    return value(&total)


cdef inline void set_matrix(Matrix *a, void *data, const Py_ssize_t[::1] blocks, Py_ssize_t per_block,
                            Py_ssize_t by_position, Py_ssize_t by_class) noexcept:
    a.data, a.per_block, a.by_position, a.by_class = <char *>data, per_block, by_position, by_class
    if blocks is not None:
        a.blocks = &blocks[0]


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
    cdef Py_ssize_t classes = x.shape[1]
    memset(&job, 0, sizeof(job))
    job.positions, job.classes = positions, classes
    set_matrix(&job.x, <void *>&x[0, 0], x_blocks, x.shape[0], x.strides[0], x.strides[1])
    if g is not None:
        set_matrix(&job.g, &g[0, 0], g_blocks, g.shape[0], g.strides[0], g.strides[1])
    job.keep, job.uniform = 1 - smoothing, smoothing/classes
    if weight is not None:
        job.weight, job.weight_t = &weight[0], &weight_t[0]
    if labels is not None:
        job.labels = &labels[0]
        if ignored is not None:
            job.has_ignored, job.ignored = True, ignored
        job.v_kind, job.v_scale, job.smooth_mass = CE_BROADCAST, job.uniform, smoothing
    else:
        set_matrix(&job.c, targets.data, targets.blocks, targets.per_block, targets.by_position, targets.by_class)
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
    return execute(&job, <floating *>NULL, threads, quota)


def plain(
    const floating[:, :] x,             # IN
    const int64_t[:] labels,            # IN   one for each row; not checked yet
    ignored,                            #      an int of 64 bits
    bint mean,
    double upstream,
    floating[:, :] g,                   # OUT  gradient, or None
    int threads,                        #      0: automatic
    int quota,
):
    """The call that is made most: rows and their class indices, no options, the mean or the sum of the losses.

    Returns None, and has written nothing, when that is not what it was given: shapes that do not fit, arrays that are
    empty or not aligned, labels that are not contiguous or out of range, or all of them ignored.
    """
    cdef Job job
    cdef Py_ssize_t kept
    cdef double total
    if x.shape[0] != labels.shape[0] or x.shape[0] == 0 or x.shape[1] == 0 or labels.strides[0] != sizeof(int64_t):
        return None
    memset(&job, 0, sizeof(job))
    job.positions, job.classes = x.shape[0], x.shape[1]
    job.labels, job.ignored = &labels[0], ignored
    job.x.data = <char *>&x[0, 0]
    job.x.per_block, job.x.by_position, job.x.by_class = x.shape[0], x.strides[0], x.strides[1]
    if (<size_t>job.x.data | job.x.by_position | job.x.by_class) % sizeof(floating) or <size_t>job.labels % sizeof(int64_t):
        return None
    kept = primitives_f32.labels_kept(job.labels, job.positions, job.classes, job.ignored, True)
    if kept <= 0:
        return None
    job.has_ignored = kept < job.positions
    if g is not None:
        job.g.data = <char *>&g[0, 0]
        job.g.per_block, job.g.by_position, job.g.by_class = g.shape[0], g.strides[0], g.strides[1]
    job.keep, job.with_loss, job.v_kind = 1, True, CE_BROADCAST
    job.factor = upstream/kept if mean else upstream
    total = execute(&job, <floating *>NULL, threads, quota)
    return total/kept if mean else total


def softmax(
    const floating[:, :] x,             # IN   the first block of rows
    const Py_ssize_t[::1] x_blocks,     # IN   as in cross_entropy
    Py_ssize_t positions,
    bint log,                           #      log-softmax
    floating[:, :] y,                   # OUT  or None: then
    const Py_ssize_t[::1] y_blocks,     # IN
    floating[::1] lse,                  # OUT  logsumexp by position
    int threads,
    int quota,
):
    """softmax, log-softmax or logsumexp of every row; y may be x itself."""
    cdef Job job
    memset(&job, 0, sizeof(job))
    job.positions, job.classes, job.factor, job.v_kind = positions, x.shape[1], 1, CE_BROADCAST
    set_matrix(&job.x, <void *>&x[0, 0], x_blocks, x.shape[0], x.strides[0], x.strides[1])
    if y is not None:
        job.output = LOG_SOFTMAX if log else SOFTMAX
        set_matrix(&job.g, &y[0, 0], y_blocks, y.shape[0], y.strides[0], y.strides[1])
    else:
        job.output, job.with_loss, job.losses = LOGSUMEXP, True, &lse[0]
    execute(&job, <floating *>NULL, threads, quota)


def vector_jacobian(
    const floating[:, :] y,             # IN   softmax or log-softmax
    const Py_ssize_t[::1] y_blocks,
    Py_ssize_t positions,
    Targets upstream,                   # IN   of the dtype of y
    bint log,
    floating[:, :] g,                   # OUT
    const Py_ssize_t[::1] g_blocks,
    int threads,
    int quota,
):
    """The gradient with respect to x of y = softmax(x) or log_softmax(x); g may be y or upstream itself."""
    cdef Job job
    memset(&job, 0, sizeof(job))
    job.output = LOG_SOFTMAX_GRAD if log else SOFTMAX_GRAD
    job.positions, job.classes, job.keep, job.v_kind = positions, y.shape[1], 1, CE_BY_ELEMENT
    set_matrix(&job.x, <void *>&y[0, 0], y_blocks, y.shape[0], y.strides[0], y.strides[1])
    set_matrix(&job.c, upstream.data, upstream.blocks, upstream.per_block, upstream.by_position, upstream.by_class)
    job.c_type, job.c_ready = upstream.dtype, upstream.by_class == sizeof(floating)
    set_matrix(&job.g, &g[0, 0], g_blocks, g.shape[0], g.strides[0], g.strides[1])
    execute(&job, <floating *>NULL, threads, quota)


def two_term(
    const floating[:, :] x,             # IN   the first block of rows
    const Py_ssize_t[::1] x_blocks,
    Py_ssize_t positions,
    Targets targets,                    # IN
    bint softmax,                       #      the activation: softmax of a row, or sigmoid of an element
    const double[::1] weight,           # IN   by class, or None
    const double[::1] pos_weight,       # IN   by class, or None
    double factor,                      #      of the gradient
    const double[::1] sample,           # IN   by position, or None
    const double[::1] upstream,         # IN   by position (sigmoid: by element), or None
    floating[::1] losses,               # OUT  by position (sigmoid: by element), or None
    floating[:, :] g,                   # OUT  gradient, or None
    const Py_ssize_t[::1] g_blocks,
    int threads,
    int quota,
):
    """Runs -sum c*log(p) + (1 - c)*log(1 - p) over every row; returns the float64 sum, weighted by `sample`."""
    cdef Job job
    memset(&job, 0, sizeof(job))
    job.output = SOFTMAX_FORM if softmax else SIGMOID_FORM
    job.positions, job.classes, job.factor, job.x_type = positions, x.shape[1], factor, own_type(<floating *>NULL)
    set_matrix(&job.x, <void *>&x[0, 0], x_blocks, x.shape[0], x.strides[0], x.strides[1])
    set_matrix(&job.c, targets.data, targets.blocks, targets.per_block, targets.by_position, targets.by_class)
    job.c_type = targets.dtype
    job.c_ready = targets.dtype == own_type(<floating *>NULL) and targets.by_class == sizeof(floating)
    if g is not None:
        set_matrix(&job.g, &g[0, 0], g_blocks, g.shape[0], g.strides[0], g.strides[1])
    if weight is not None:
        job.weight = &weight[0]
    if pos_weight is not None:
        job.pos_weight = &pos_weight[0]
    if sample is not None:
        job.sample = &sample[0]
    if upstream is not None and softmax:
        job.upstream = &upstream[0]
    elif upstream is not None:
        job.elementwise = &upstream[0]
    if losses is not None:
        job.losses = &losses[0]
    return execute(&job, <floating *>NULL, threads, quota)


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
