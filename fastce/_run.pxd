# cython: cdivision=True
# A request, from its plan to its results.
#
# There are three ways to compute. Rows (_rows.pxd) run vectors along the classes, several short rows in turns. Tiles
# (_tiles.pxd) run them across rows. The operations that are no function of a row's state have files of their own.
#
# Rows are worked on in units. The number of units depends on the shapes alone. Each unit adds its losses in order, and
# the sums of the units are added in order, so the result is the same to the bit for every number of threads.
from cython cimport floating
from cython.parallel cimport prange, threadid
from libc.math cimport isfinite
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from ._blocks cimport counted_labels, row_at, settle_group
from ._jacobians cimport jacobian_row
from ._job cimport (
    BLOCK, BY_ELEMENTS, BY_ROWS, BY_TILES, GROUP, TILE_SIZE, Job, Plan, State, Sum, add, set_sum, value,
)
from ._primitives cimport (
    CE_BY_CLASS, CE_BY_ELEMENT, CE_MAX_LANES, CE_ONES, ce_automatic_threads, ce_chosen_f32, ce_chosen_f64,
    ce_must_be_serial, ce_primitives,
)
from ._request cimport (
    CROSS_ENTROPY, F32, F64, I8, LOG_SOFTMAX, LOG_SOFTMAX_GRAD, LOGSUMEXP, SIGMOID_TWO_TERM, SOFTMAX, SOFTMAX_GRAD,
    SOFTMAX_TWO_TERM, U64, Matrix, Request,
)
from ._rows cimport rows
from ._sigmoid cimport sigmoid_row
from ._softmax_two_term cimport softmax_row
from ._tiles cimport TILE_SCRATCH, tiles

cdef enum:
    TILES_BEAT_ROWS = 40        # up to so many contiguous classes tiles are faster than rows,
    TILES_BEAT_GATHERED = 56    # up to so many if rows are gathered,
    TILES_BEAT_GIVEN = 4        # and up to so many if stats are given and base is not the target row
    MIN_TILE_WIDTH = 48         # when there are enough rows
    UNIT_LOGITS = 32768         # in a unit of work, about 10 us
    STREAM_BYTES = 3 << 23      # gradients of long rows from this size on (24 MiB) are written past the caches
    MAX_THREADS = 256

# -- Choices

cdef inline const Matrix *main_input(const Request *request) noexcept nogil:
    """What the operation is a function of. Its dtype is that of the results."""
    if request.operation == SOFTMAX_GRAD or request.operation == LOG_SOFTMAX_GRAD:
        return &request.y
    return &request.logits

cdef inline bint is_computable(const Request *r) noexcept nogil:
    """Whether the matrices that the operation needs are there, with dtypes that it takes."""
    cdef int operation = r.operation, dtype = main_input(r).dtype
    cdef bint product = operation == SOFTMAX_GRAD or operation == LOG_SOFTMAX_GRAD
    cdef bint with_labels = operation == CROSS_ENTROPY and r.labels.data != NULL
    cdef bint with_targets = not with_labels and (
        operation == CROSS_ENTROPY or operation == SIGMOID_TWO_TERM or operation == SOFTMAX_TWO_TERM)
    return (CROSS_ENTROPY <= operation <= SOFTMAX_TWO_TERM and (dtype == F32 or dtype == F64)
            and (r.grad.dtype == dtype if r.grad.data != NULL else not product)
            and (r.upstream.dtype == (dtype if product else F64) if r.upstream.data != NULL else not product)
            and (not with_labels or I8 <= r.labels.dtype <= U64) and (not with_targets or I8 <= r.targets.dtype <= F64)
            and (not r.stats_given or (r.row_max != NULL and r.tail != NULL and r.total == NULL and r.losses == NULL)))

cdef inline void plan_base(const Request *request, int size, Plan *p) noexcept nogil:
    """What base is, which the labels or targets and their options decide."""
    cdef bint weighted = request.weight != NULL
    p.hot, p.uniform, p.slope, p.offset = 1, 0, 1, 0
    if request.operation == CROSS_ENTROPY:
        p.hot, p.uniform = 1 - request.label_smoothing, request.label_smoothing/request.classes
        p.with_labels = request.labels.data != NULL
        if not p.with_labels:
            p.base_kind, p.base_scale = CE_BY_ELEMENT, 1
            if not weighted:
                p.slope, p.offset = p.hot, p.uniform
        elif weighted and p.uniform != 0:
            p.weighted_smoothing, p.base_kind, p.base_scale = True, CE_BY_CLASS, 1
        else:
            p.base_kind, p.base_scale = CE_ONES, p.uniform
    p.targets_ready = (request.targets.dtype == main_input(request).dtype and request.targets.class_stride == size
                       and p.hot == 1 and not weighted and request.pos_weight == NULL)

cdef inline void plan_units(const Request *request, Plan *p) noexcept nogil:
    """Groups and units. They depend on the shapes alone, never on the number of threads."""
    cdef Py_ssize_t rows = request.rows, classes = request.classes
    # A tile that holds all classes need not compute its exponentials twice; one of few rows wastes memory lines. An odd
    # number of lines from class to class, so that they do not fall on each other in the cache.
    p.group = GROUP
    while p.path == BY_TILES and p.group*classes > TILE_SIZE and p.group > MIN_TILE_WIDTH:
        p.group -= 2*CE_MAX_LANES
    p.unit = max(UNIT_LOGITS/classes, 1)
    if p.path == BY_TILES:
        p.unit = max(p.unit, rows/16)
        if p.unit > p.group:
            p.unit = max(UNIT_LOGITS/classes, p.group)/p.group*p.group
        else:
            p.unit = (p.unit + CE_MAX_LANES - 1)/CE_MAX_LANES*CE_MAX_LANES
    p.units = (rows + p.unit - 1)/p.unit

cdef inline void make_plan(const Request *request, Plan *p) noexcept nogil:
    """Chooses how a request with at least one row is computed. p is zero before. No other function chooses."""
    cdef const Matrix *x = main_input(request)
    cdef const Matrix *grad = &request.grad
    cdef Py_ssize_t logits = request.rows*request.classes
    cdef int operation = request.operation, size = sizeof(float) if x.dtype == F32 else sizeof(double)
    cdef bint contiguous = x.class_stride == size
    cdef Py_ssize_t few_classes = TILES_BEAT_ROWS
    p.primitives = ce_chosen_f32 if x.dtype == F32 else ce_chosen_f64
    p.with_loss, p.with_grad = request.total != NULL or request.losses != NULL, grad.data != NULL
    plan_base(request, size, p)
    if not contiguous or (p.with_grad and grad.class_stride != size):
        few_classes = TILES_BEAT_GATHERED
    elif request.stats_given and p.base_kind != CE_BY_ELEMENT:
        few_classes = TILES_BEAT_GIVEN
    # In place the lines are in the cache already; and short rows are written in bursts that wait for the memory.
    p.stream = grad.data != x.data and request.classes > BLOCK and logits >= STREAM_BYTES/size
    if operation != CROSS_ENTROPY and operation != SOFTMAX and operation != LOG_SOFTMAX and operation != LOGSUMEXP:
        p.path = BY_ELEMENTS
    elif (request.classes <= few_classes
            or (x.row_stride == size and not contiguous
                and (request.rows if x.blocks == NULL else x.rows_per_block) >= CE_MAX_LANES)):
        p.path = BY_TILES
    else:
        p.path = BY_ROWS
    plan_units(request, p)
    p.scratch = TILE_SCRATCH if p.path == BY_TILES else 3*BLOCK
    if ce_must_be_serial():
        p.threads = 1
    elif request.num_threads > 0:
        p.threads = request.num_threads
    else:
        p.threads = 1 if logits < 2*UNIT_LOGITS else ce_automatic_threads()
    p.threads = <int>min(p.threads, p.units, MAX_THREADS)

# -- Units

cdef inline void set_scale(const Job *job, Py_ssize_t start, Py_ssize_t count, State *s) noexcept nogil:
    """What the gradients of a group's rows are multiplied by."""
    cdef const Request *request = job.request
    cdef const Matrix *upstream = &request.upstream
    cdef bint by_row = upstream.data != NULL and (
        request.operation == CROSS_ENTROPY or request.operation == SOFTMAX_TWO_TERM)
    cdef Py_ssize_t p
    for p in range(count if request.sample_weight != NULL or by_row else 0):
        s.scale[p] = request.scale
        if request.sample_weight != NULL:
            s.scale[p] *= request.sample_weight[start + p]
        if by_row:
            s.scale[p] *= (<const double *>row_at(upstream, start + p))[0]

cdef inline bint holds_nan(const Job *job, Py_ssize_t i, const floating *dtype) noexcept nogil:
    cdef const char *row = row_at(&job.request.logits, i)
    cdef Py_ssize_t j
    cdef floating x
    for j in range(job.request.classes):
        x = (<const floating *>(row + j*job.request.logits.class_stride))[0]
        if x != x:
            return True
    return False

cdef inline void write_results(const Job *job, Py_ssize_t start, Py_ssize_t count, State *s, Sum *total,
                               const floating *dtype) noexcept nogil:
    """Writes what was asked for of a group's rows, except the gradient, and adds their losses to total."""
    cdef const Request *request = job.request
    cdef const ce_primitives *f = job.plan.primitives
    cdef Py_ssize_t p
    if request.row_max != NULL and not request.stats_given:
        f.narrow(s.row_max, count, (<floating *>request.row_max) + start)
    if request.tail != NULL and not request.stats_given:
        f.narrow(s.tail, count, (<floating *>request.tail) + start)
    if not job.plan.with_loss:
        return
    if not job.plan.with_grad:          # else `coefficients` has computed them
        f.losses(count, s.row_max, s.tail, s.mass, s.linear, request.z_loss, s.log_total, s.loss)
    if request.operation == LOGSUMEXP:
        for p in range(count):
            s.loss[p] = s.row_max[p] + s.log_total[p]
            if not isfinite(s.row_max[p]) and not holds_nan(job, start + p, dtype):
                s.loss[p] = s.row_max[p]
    if request.sample_weight != NULL:
        for p in range(count):
            s.loss[p] *= request.sample_weight[start + p]
    if s.ignored > 0:
        for p in range(count):
            if s.label[p] < 0:
                s.loss[p] = 0
    if request.losses != NULL:
        f.narrow(s.loss, count, (<floating *>request.losses) + start)
    add(total, ce_chosen_f64.row_sum(s.loss, count))

cdef inline double element_row(const Job *job, Py_ssize_t i, double scale, floating *scratch) noexcept nogil:
    """Row i of an operation that is no function of the row's state. Returns the sum of its losses."""
    if job.request.operation == SIGMOID_TWO_TERM:
        return sigmoid_row(job, i, scale, scratch)
    if job.request.operation == SOFTMAX_TWO_TERM:
        return softmax_row(job, i, scale, scratch)
    jacobian_row(job, i, scratch)
    return 0

cdef inline void run_unit(const Job *job, Py_ssize_t unit, floating *scratch) noexcept nogil:
    cdef Py_ssize_t start = unit*job.plan.unit, stop = min(start + job.plan.unit, job.request.rows), count, p
    cdef State s
    cdef Sum total
    set_sum(&total, 0)
    s.same_targets = False
    for p in range(min(job.plan.group, stop - start)):
        s.scale[p], s.b[p] = job.request.scale, 0
    while start < stop:
        count = min(stop - start, job.plan.group)
        set_scale(job, start, count, &s)
        if job.plan.path == BY_ELEMENTS:
            for p in range(count):
                add(&total, element_row(job, start + p, s.scale[p], scratch))
        else:
            settle_group(job, start, count, &s)
            if job.plan.path == BY_TILES:
                tiles(job, start, count, &s, scratch)
            else:
                rows(job, start, count, &s, scratch)
            write_results(job, start, count, &s, &total, scratch)
        start += count
    job.unit_sums[unit] = value(&total)

cdef inline void run_units(const Job *job, floating *scratch) noexcept nogil:
    cdef Py_ssize_t unit
    if job.plan.threads == 1:               # no parallel region
        for unit in range(job.plan.units):
            run_unit(job, unit, scratch)
    else:
        for unit in prange(job.plan.units, num_threads=job.plan.threads, schedule="dynamic", chunksize=1):
            run_unit(job, unit, scratch + threadid()*job.plan.scratch)

# -- One call

cdef inline void set_other_weights(const double *weight, Py_ssize_t classes, double uniform, double *others,
                                   double *mass) noexcept nogil:
    """others[j] = the sum of all weights but weight[j], not formed by subtraction. mass = uniform*the sum of all."""
    cdef Py_ssize_t j
    cdef Sum total
    set_sum(&total, 0)
    for j in range(classes):
        others[j] = value(&total)
        add(&total, weight[j])
    mass[0] = uniform*value(&total)
    set_sum(&total, 0)
    for j in range(classes - 1, -1, -1):
        others[j] += value(&total)
        add(&total, weight[j])

cdef inline int run_as(const Request *request, const floating *dtype) noexcept nogil:
    """Runs a request that was checked and whose labels were counted."""
    cdef Job job
    cdef Py_ssize_t classes = request.classes, weights, others, j
    cdef char *memory
    cdef floating *scratch
    cdef floating *weight
    cdef Sum total
    memset(&job, 0, sizeof(job))
    job.request = request
    make_plan(request, &job.plan)
    # All the memory that a run needs: scratch of each thread, aligned to cache lines, the sums of the units, and one
    # number for each class where labels are smoothed with weights (also the other weights) or targets have weights.
    others = classes if job.plan.weighted_smoothing else 0
    weights = classes if others or (job.plan.base_kind == CE_BY_ELEMENT and request.weight != NULL) else 0
    memory = <char *>malloc(64 + (job.plan.threads*job.plan.scratch + weights)*sizeof(floating)
                            + (job.plan.units + others)*sizeof(double))
    if memory == NULL:
        return -1
    scratch = <floating *>(memory + (64 - <size_t>memory % 64))
    job.unit_sums = <double *>(scratch + job.plan.threads*job.plan.scratch)
    job.smoothing_mass = request.label_smoothing
    if weights:
        weight = <floating *>(job.unit_sums + job.plan.units + others)
        for j in range(weights):
            weight[j] = <floating>((job.plan.uniform if others else 1)*request.weight[j])
        if others:
            job.smoothing, job.other_weights = weight, job.unit_sums + job.plan.units
            set_other_weights(request.weight, classes, job.plan.uniform, job.unit_sums + job.plan.units,
                              &job.smoothing_mass)
        else:
            job.weight = weight
    run_units(&job, scratch)
    if request.total != NULL:
        set_sum(&total, 0)
        for j in range(job.plan.units):
            add(&total, job.unit_sums[j])
        request.total[0] = value(&total)
    free(memory)
    return 0

cdef inline int execute(const Request *request) noexcept nogil:
    """Computes what is asked for. See `run` in _kernels.pxd for the result."""
    if request.size != sizeof(Request) or not is_computable(request):
        return 2
    if request.rows <= 0 or request.classes <= 0:
        if request.total != NULL:
            request.total[0] = 0
        return 0
    if request.operation == CROSS_ENTROPY and request.labels.data != NULL and request.counted < 0:
        if counted_labels(&request.labels, request.rows, request.classes, request.ignore_index,
                          request.has_ignore_index) < 0:
            return 1
    if main_input(request).dtype == F32:
        return run_as(request, <const float *>NULL)
    return run_as(request, <const double *>NULL)
