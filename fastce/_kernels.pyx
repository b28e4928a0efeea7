# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
# cython: embedsignature=False, freethreading_compatible=True
"""The algorithm: softmax cross-entropy of rows, forward and backward, and what else is made of a softmax.

Called by _api.py, _softmax.py and _two_term.py, which have checked every argument, and by modules that cimport it and
answer for theirs: nothing here fails but for want of memory, and nothing is checked twice. The functions at the end of
the file take arrays, fill a `Job` and run it; everything above them is `noexcept nogil` and sees pointers.

A row has `classes` logits x. Its state is row_max = max x and tail = sum over j != argmax of exp(x_j - row_max): the
maximum's own term, 1, is kept out of the sum, so that log1p(tail) and tail/(1 + tail) stay exact to the last digits
when the row is confident. With q the row's targets (weights and smoothing included), Q = sum q, lse = logsumexp(x):

    loss   = Q*log1p(tail) + sum_j q_j*(row_max - x_j) + z_loss*lse^2          every term >= 0
    grad_j = scale * ((Q + 2*z_loss*lse)*p_j - q_j),    p_j = exp(x_j - row_max)/(1 + tail)
           = a*e_j - b*v_j        v: nothing, ones, one number a class, or the target row

Two kernels compute this. `rows` (_rows.pxi) runs its vectors along the classes, several short rows by turns. `tiles`
(_tiles.pxi) runs them across positions, for few classes or contiguous positions (axis != -1): it copies up to 112 positions
x some classes into scratch, positions contiguous, and back. Both cut long rows into blocks that stay in cache, so that a
forward reads each logit once from memory, and a gradient is computed from logits that are still near.

Rows are worked on in units whose number depends on the shapes alone; each unit adds its losses in order, and the units'
sums are added in order: the result is the same to the bit for every number of threads.
"""
from cpython.buffer cimport PyBUF_RECORDS, PyBUF_RECORDS_RO, PyBuffer_Release, PyObject_GetBuffer
from cython cimport floating
from cython.parallel cimport prange, threadid
from libc.math cimport INFINITY, NAN, exp, isfinite, log, log1p
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset


cdef extern from "_simd/dispatch.h" nogil:
    enum: CE_ONES, CE_BY_CLASS, CE_BY_ELEMENT, CE_STORED, CE_EXP, CE_DIFFERENCE, CE_ISA_COUNT
    ctypedef struct ce_primitives:
        double exp_one
        void (*rows_max)(const void *x, Py_ssize_t x_row_stride, Py_ssize_t rows, Py_ssize_t n,
                         double *row_max) noexcept nogil
        Py_ssize_t (*row_find)(const void *x, Py_ssize_t n, double value) noexcept nogil
        void (*rows_exp_sum)(const void *x, Py_ssize_t x_row_stride, void *e, Py_ssize_t e_row_stride,
                             Py_ssize_t rows, Py_ssize_t n, int form, const double *shift, int excluded,
                             const void *next, double *sum) noexcept nogil
        double (*row_gap_dot)(const void *x, const void *base, Py_ssize_t n, double shift) noexcept nogil
        double (*row_sum)(const void *x, Py_ssize_t n) noexcept nogil
        double (*row_dot)(const void *x, const void *y, Py_ssize_t n) noexcept nogil
        void (*rows_grad)(const void *src, Py_ssize_t src_row_stride, void *grad, Py_ssize_t grad_row_stride,
                          Py_ssize_t rows, Py_ssize_t n, int form, const double *shift, const double *a,
                          const double *b, const void *base, const Py_ssize_t *exact_class, const double *exact_grad,
                          int stream) noexcept nogil
        void (*tile_max)(const void *x, Py_ssize_t classes, Py_ssize_t width, void *row_max) noexcept nogil
        void (*tile_exp_sum)(const void *x, void *e, Py_ssize_t classes, Py_ssize_t width, const void *row_max,
                             const void *row_max_before, const void *label, double *sum, double *d_label,
                             double *e_label, const void *next, Py_ssize_t next_class_stride, void *dst,
                             Py_ssize_t dst_class_stride) noexcept nogil
        void (*tile_gap_dot)(const void *x, const void *base, int base_kind, Py_ssize_t classes, Py_ssize_t width,
                             const void *row_max, double *sum) noexcept nogil
        void (*tile_sum)(const void *base, Py_ssize_t classes, Py_ssize_t width, const void *x, const void *row_max,
                         double *sum) noexcept nogil
        void (*tile_grad)(const void *src, void *grad, Py_ssize_t classes, Py_ssize_t width, int form,
                          const void *row_max, const void *a, const void *b, const void *base, int base_kind,
                          const void *exact_class, const void *exact_grad) noexcept nogil
        void (*row_affine)(void *q, const void *weight, Py_ssize_t n, double slope, double offset) noexcept nogil
        void (*row_scale)(const void *y, const void *upstream, void *grad, Py_ssize_t n, double shift) noexcept nogil
        double (*row_sigmoid)(const void *z, const void *a, const void *b, Py_ssize_t n, double scale, void *loss,
                              void *grad) noexcept nogil
        void (*transpose)(const void *src, Py_ssize_t src_stride, Py_ssize_t rows, Py_ssize_t columns, void *dst,
                          Py_ssize_t dst_stride) noexcept nogil
        void (*copy_runs)(const void *src, Py_ssize_t src_stride, Py_ssize_t runs, Py_ssize_t n, void *dst,
                          Py_ssize_t dst_stride) noexcept nogil
        void (*label_lanes)(const int64_t *labels, Py_ssize_t n, int64_t first, void *lanes) noexcept nogil
        void (*narrow)(const double *src, Py_ssize_t n, void *dst) noexcept nogil
        void (*widen)(const void *src, Py_ssize_t n, double *dst) noexcept nogil
        void (*widen_state)(const void *src, Py_ssize_t n, double *row_max, double *tail, double *linear, double hot,
                            const double *d_label) noexcept nogil
        void (*add_compensated)(double *total, double *lost, const double *term, Py_ssize_t n) noexcept nogil
        void (*losses)(Py_ssize_t n, const double *row_max, const double *tail, const double *mass,
                       const double *linear, double z_loss, double *log_total, double *loss) noexcept nogil
        void (*coefficients)(Py_ssize_t n, const double *row_max, const double *tail, const double *mass,
                             const double *linear, double z_loss, const double *q, const double *rest,
                             const double *e, const double *scale, double *log_total, double *loss, double *a,
                             double *exact_grad) noexcept nogil
        Py_ssize_t (*count_labels)(const int64_t *labels, Py_ssize_t n, int64_t classes, int64_t ignored,
                                   int has_ignored) noexcept nogil
        void (*settle_labels)(const int64_t *labels, Py_ssize_t n, int64_t classes, int64_t ignored, int has_ignored,
                              int64_t *settled) noexcept nogil
    ctypedef struct ce_isa:
        const char *name
        int (*runs_here)() noexcept
        const ce_primitives *f32
        const ce_primitives *f64
    const ce_isa ce_isas[]
    const ce_primitives *ce_chosen_f32
    const ce_primitives *ce_chosen_f64
    int ce_choose(int isa) noexcept

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
    FEW = 40            # up to so many contiguous classes `tiles` is faster than rows that take turns,
    FEW_SINGLE = 128    # and up to so many faster than one row after the other
    UNIT = 32768        # logits in a unit of work, about 10 us
    STREAM_BYTES = 3 << 23      # gradients of this size or more (24 MiB), of long rows, are written past the caches
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
    int v_kind                      # how v is laid out: CE_ONES (ones), CE_BY_CLASS or CE_BY_ELEMENT
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
    double scale[GROUP]             # of the gradient
    double x[GROUP]                 # the label's logit (rows only)
    double a[GROUP]                 # the gradient's factor of e,
    double b[GROUP]                 # and of v,
    double at_target[GROUP]         # and its value at the target
    double log_total[GROUP]         # log(1 + tail)
    double loss[GROUP]


cdef inline const ce_primitives *primitives(const floating *dtype) noexcept nogil:
    if floating is float:
        return ce_chosen_f32
    else:
        return ce_chosen_f64


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
    """Losses, a, b and at_target of n positions from r on, whose state is complete."""
    cdef Py_ssize_t p
    f.coefficients(n, s.row_max + r, s.tail + r, s.mass + r, s.linear + r, job.z_loss, s.q + r, s.rest + r, s.e + r,
                   s.scale + r, s.log_total + r, s.loss + r, s.a + r, s.at_target + r)
    if job.output == LOG_SOFTMAX:
        for p in range(r, r + n):
            s.a[p], s.b[p] = 1, s.log_total[p]
    elif job.v_scale != 0:
        for p in range(r, r + n):
            s.b[p] = s.scale[p]*job.v_scale


cdef inline bint needs_top(const Job *job, const State *s, Py_ssize_t r) noexcept nogil:
    """Whether p - q may cancel at a maximum that is not the label: where weights leave smoothing little but there."""
    return job.smooth != NULL and s.tail[r] < 1 and s.e[r] < 1


cdef inline double grad_at_top(const Job *job, const State *s, Py_ssize_t r, Py_ssize_t top, Py_ssize_t label,
                               const ce_primitives *f) noexcept nogil:
    """The gradient there."""
    cdef double q = job.uniform*job.weight[top], rest = job.uniform*job.others[top] + job.keep*job.weight[label]
    cdef double e = 1, log_total, loss, a, at_top
    f.coefficients(1, s.row_max + r, s.tail + r, s.mass + r, s.linear + r, job.z_loss, &q, &rest, &e, s.scale + r,
                   &log_total, &loss, &a, &at_top)
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
    if job.v_kind == CE_ONES:
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

include "_rows.pxi"


# ---------------------------------------------------------------------------------------------------------------------
# Tiles: vectors across positions
# ---------------------------------------------------------------------------------------------------------------------

include "_tiles.pxi"


# ---------------------------------------------------------------------------------------------------------------------
# Other functions of a row
# ---------------------------------------------------------------------------------------------------------------------

include "_row_functions.pxi"


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
    cdef Py_ssize_t p
    if job.row_max != NULL and not job.stats_given:
        f.narrow(s.row_max, count, (<floating *>job.row_max) + start)
    if job.tail != NULL and not job.stats_given:
        f.narrow(s.tail, count, (<floating *>job.tail) + start)
    if not job.with_loss:
        return
    if job.g.data == NULL:          # else `coefficients` has computed them
        f.losses(count, s.row_max, s.tail, s.mass, s.linear, job.z_loss, s.log_total, s.loss)
    if job.output == LOGSUMEXP:
        for p in range(count):
            s.loss[p] = s.row_max[p] + s.log_total[p]
            if not isfinite(s.row_max[p]) and not holds_nan(job, start + p, dtype):
                s.loss[p] = s.row_max[p]
    if job.sample != NULL:
        for p in range(count):
            s.loss[p] *= job.sample[start + p]
    if job.has_ignored:
        for p in range(count):
            if is_ignored(job, start + p):
                s.loss[p] = 0
    if job.losses != NULL:
        f.narrow(s.loss, count, (<floating *>job.losses) + start)
    add(total, ce_chosen_f64.row_sum(s.loss, count))


cdef void run_unit(const Job *job, Py_ssize_t u, floating *scratch) noexcept nogil:
    cdef Py_ssize_t start = u*job.unit, stop = min(start + job.unit, job.positions), count, p
    cdef State s
    cdef Sum total
    set_sum(&total, 0)
    s.alike = False
    for p in range(min(GROUP, stop - start)):
        s.scale[p], s.b[p] = job.factor, 0
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
# One call
# ---------------------------------------------------------------------------------------------------------------------

cdef int cpu_quota = 0              # of the control group; 0: none. Set when the package is imported


cdef int execute(Job *job, const floating *dtype, int threads, double *sum_of_losses) noexcept nogil:
    """Runs a job that lacks only what follows from it; -1, and nothing was written, when there is no memory."""
    cdef Py_ssize_t positions = job.positions, classes = job.classes, j, units, room
    cdef bint smooth = job.labels != NULL and job.weight != NULL and job.uniform != 0
    cdef char *memory
    cdef floating *scratch
    cdef double *others
    cdef Sum total
    # In place the lines are in the cache already; and short rows are written in bursts that wait for the memory.
    job.stream = (job.g.data != job.x.data and classes > BLOCK
                  and positions*classes >= STREAM_BYTES/<Py_ssize_t>sizeof(floating))
    job.alike = (job.v_kind == CE_ONES and not smooth and not job.stats_given
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
        threads = 1 if positions*classes < 2*UNIT else ce_automatic_threads(cpu_quota)
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
        return -1
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
    run(job, units, threads, scratch, room)
    set_sum(&total, 0)
    for j in range(units):
        add(&total, job.unit_sums[j])
    free(memory)
    sum_of_losses[0] = value(&total)
    return 0


cdef double execute_without_gil(Job *job, const floating *dtype, int threads) except? -1:
    cdef double total = 0
    cdef int failed
    with nogil:
        failed = execute(job, dtype, threads, &total)
    if failed:
        raise MemoryError(f"no memory to work on {job.positions} rows of {job.classes} classes")
    return total


cdef inline void set_label_options(Job *job, double smoothing, double z_loss, double factor) noexcept nogil:
    """What a job with labels has of numbers; classes is set."""
    job.keep, job.uniform, job.z_loss, job.factor = 1 - smoothing, smoothing/job.classes, z_loss, factor
    job.v_kind, job.v_scale, job.smooth_mass = CE_ONES, job.uniform, smoothing


# ---------------------------------------------------------------------------------------------------------------------
# What other Cython modules call
# ---------------------------------------------------------------------------------------------------------------------

include "_surface.pxi"


# ---------------------------------------------------------------------------------------------------------------------
# What Python calls
# ---------------------------------------------------------------------------------------------------------------------

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
    return ce_chosen_f32.count_labels(&labels[0], labels.shape[0], classes, 0 if ignored is None else ignored,
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
    set_label_options(&job, smoothing, z_loss, factor)
    if weight is not None:
        job.weight, job.weight_t = &weight[0], &weight_t[0]
    if labels is not None:
        job.labels = &labels[0]
        if ignored is not None:
            job.has_ignored, job.ignored = True, ignored
    else:
        set_matrix(&job.c, targets.data, targets.blocks, targets.per_block, targets.by_position, targets.by_class)
        job.c_type = targets.dtype
        job.c_ready = (targets.dtype == own_type(<floating *>NULL) and targets.by_class == sizeof(floating)
                       and smoothing == 0 and weight is None)
        job.v_kind, job.v_scale = CE_BY_ELEMENT, 1
    job.with_loss = with_loss
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
    return execute_without_gil(&job, <floating *>NULL, threads)


cdef struct Span:
    # The bytes that a matrix occupies.
    size_t first
    size_t end


cdef inline Span span(const Py_buffer *a) noexcept nogil:
    cdef Span s
    cdef int k
    s.first = s.end = <size_t>a.buf
    for k in range(a.ndim):
        if a.strides[k] < 0:
            s.first += (a.shape[k] - 1)*a.strides[k]
        else:
            s.end += (a.shape[k] - 1)*a.strides[k]
    s.end += a.itemsize
    return s


cdef inline bint overlap(Span a, Span b) noexcept nogil:
    return a.first < b.end and b.first < a.end


cdef inline bint is_dense(const Py_buffer *a) noexcept nogil:
    """Whether a matrix has no gaps, in C or Fortran order."""
    return ((a.strides[1] == a.itemsize and a.strides[0] == a.shape[1]*a.itemsize)
            or (a.strides[0] == a.itemsize and a.strides[1] == a.shape[0]*a.itemsize))


cdef inline bint is_of(const Py_buffer *a, char code, Py_ssize_t itemsize, int ndim) noexcept nogil:
    """Whether an array is of that native type (by the struct module's code), with so many dimensions, and aligned."""
    cdef size_t bits = <size_t>a.buf
    cdef int k
    if a.format[0] != code or a.format[1] != 0 or a.itemsize != itemsize or a.ndim != ndim:
        return False
    for k in range(ndim):
        bits |= <size_t>a.strides[k]
    return bits % itemsize == 0


cdef inline int run_plain(const floating *dtype, const Py_buffer *x, const Py_buffer *labels, const Py_buffer *g, bint mean,
                          int64_t ignored, int threads, double *loss) noexcept nogil:
    cdef Job job
    cdef Py_ssize_t kept, n = x.shape[0]
    kept = count_labels(<const int64_t *>labels.buf, n, x.shape[1], ignored)
    if kept <= 0:
        return 1
    memset(&job, 0, sizeof(job))
    job.positions, job.classes = n, x.shape[1]
    job.labels, job.ignored, job.has_ignored = <const int64_t *>labels.buf, ignored, kept < n
    job.x.data, job.x.per_block, job.x.by_position, job.x.by_class = <char *>x.buf, n, x.strides[0], x.strides[1]
    if g != NULL:
        job.g.data, job.g.per_block, job.g.by_position, job.g.by_class = <char *>g.buf, n, g.strides[0], g.strides[1]
    set_label_options(&job, 0, 0, 1.0/kept if mean else 1)
    job.with_loss = True
    if execute(&job, dtype, threads, loss) != 0:
        return -1
    loss[0] = <floating>(loss[0]/kept if mean else loss[0])     # so that NumPy has no overflow to warn of
    return 0


def plain(logits, labels, g, int64_t ignored, bint mean, int threads):
    """The call that is made most: rows and their class indices, no options, the mean or the sum of the losses, rounded to
    the logits' dtype.

    The arguments are arrays of any kind, not checked yet; g is the gradient's buffer or None. Returns None, and has
    written nothing, when they are not of the commonest kind: float32 or float64 logits in two dimensions, contiguous
    int64 labels, all native and aligned; g dense and apart from the labels, and from the logits too unless it is the
    same memory. And when a label is wrong, or all are ignored. Their buffers are taken without a memoryview around each:
    of the time of a small call that is a tenth.
    """
    cdef Py_buffer x, t, out
    cdef int status = 1, held = 0
    cdef double loss = 0
    try:
        PyObject_GetBuffer(logits, &x, PyBUF_RECORDS_RO)
        held = 1
        PyObject_GetBuffer(labels, &t, PyBUF_RECORDS_RO)
        held = 2
        if g is not None:
            PyObject_GetBuffer(g, &out, PyBUF_RECORDS)
            held = 3
        status = run_buffers(&x, &t, NULL if g is None else &out, mean, ignored, threads, &loss)
    except (BufferError, TypeError, ValueError):    # NumPy has no buffer of that kind to give
        pass
    finally:
        if held > 0:
            PyBuffer_Release(&x)
        if held > 1:
            PyBuffer_Release(&t)
        if held > 2:
            PyBuffer_Release(&out)
    if status < 0:
        raise MemoryError("no memory for scratch space")
    return loss if status == 0 else None


cdef int run_buffers(const Py_buffer *x, const Py_buffer *labels, const Py_buffer *g, bint mean, int64_t ignored,
                     int threads, double *loss) noexcept:
    cdef int status
    cdef char code = x.format[0]
    if not (is_of(x, b"f", sizeof(float), 2) or is_of(x, b"d", sizeof(double), 2)):
        return 1
    if not (is_of(labels, b"l" if sizeof(long) == sizeof(int64_t) else b"q", sizeof(int64_t), 1)):
        return 1
    if x.shape[0] != labels.shape[0] or x.shape[0] == 0 or x.shape[1] == 0 or labels.strides[0] != sizeof(int64_t):
        return 1
    if g != NULL:
        if not is_of(g, code, x.itemsize, 2) or g.shape[0] != x.shape[0] or g.shape[1] != x.shape[1] or not is_dense(g):
            return 1
        if overlap(span(g), span(labels)):
            return 1
        if overlap(span(g), span(x)) and (g.buf != x.buf or g.strides[0] != x.strides[0] or g.strides[1] != x.strides[1]):
            return 1
    with nogil:
        if code == b"f":
            status = run_plain(<float *>NULL, x, labels, g, mean, ignored, threads, loss)
        else:
            status = run_plain(<double *>NULL, x, labels, g, mean, ignored, threads, loss)
    return status


def softmax(
    const floating[:, :] x,             # IN   the first block of rows
    const Py_ssize_t[::1] x_blocks,     # IN   as in cross_entropy
    Py_ssize_t positions,
    bint log,                           #      log-softmax
    floating[:, :] y,                   # OUT  or None: then
    const Py_ssize_t[::1] y_blocks,     # IN
    floating[::1] lse,                  # OUT  logsumexp by position
    int threads,
):
    """softmax, log-softmax or logsumexp of every row; y may be x itself."""
    cdef Job job
    memset(&job, 0, sizeof(job))
    job.positions, job.classes, job.factor, job.v_kind = positions, x.shape[1], 1, CE_ONES
    set_matrix(&job.x, <void *>&x[0, 0], x_blocks, x.shape[0], x.strides[0], x.strides[1])
    if y is not None:
        job.output = LOG_SOFTMAX if log else SOFTMAX
        set_matrix(&job.g, &y[0, 0], y_blocks, y.shape[0], y.strides[0], y.strides[1])
    else:
        job.output, job.with_loss, job.losses = LOGSUMEXP, True, &lse[0]
    execute_without_gil(&job, <floating *>NULL, threads)


def vector_jacobian(
    const floating[:, :] y,             # IN   softmax or log-softmax
    const Py_ssize_t[::1] y_blocks,
    Py_ssize_t positions,
    Targets upstream,                   # IN   of the dtype of y
    bint log,
    floating[:, :] g,                   # OUT
    const Py_ssize_t[::1] g_blocks,
    int threads,
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
    execute_without_gil(&job, <floating *>NULL, threads)


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
    return execute_without_gil(&job, <floating *>NULL, threads)


def limit_threads(int quota):
    """No call uses more threads than this by itself; 0: no limit."""
    global cpu_quota
    cpu_quota = quota


def automatic_threads():
    """How many threads a large call from this thread would use."""
    return ce_automatic_threads(cpu_quota)


def select(name):
    """Chooses an instruction set by name, or the best when that is None; returns whether there is such a one here."""
    cdef int i
    for i in range(CE_ISA_COUNT):
        if ce_isas[i].runs_here() and (name is None or ce_isas[i].name.decode() == name):
            ce_choose(i)
            return ce_isas[i].name.decode()
    return None


def available():
    """The instruction sets this processor runs, best first."""
    return [ce_isas[i].name.decode() for i in range(CE_ISA_COUNT) if ce_isas[i].runs_here()]


openmp = str(ce_openmp_version()) if ce_openmp_version() else None
compiler = CE_COMPILER.decode()
ce_watch_forks()
