# cython: cdivision=True
# A request, from its plan to its results.
#
# What depends on a row's state is computed in two ways: rows (_rows.pxd) run vectors along the classes, and tiles
# (_tiles.pxd) run them across rows. The other operations have files of their own.
#
# Rows are worked on in units. Where losses are added, the number of units depends on the shapes alone. Each unit adds
# its losses in order, and the sums of the units are added in order, so the result is the same to the bit for every
# number of threads.
from cython cimport floating
from libc.math cimport isfinite
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from ._argmax cimport argmax
from ._blocks cimport counted_labels, holds_nan, may_be_wrong, row_at, settle_group, write_stats
from ._divergence cimport divergences
from ._entropy cimport entropies, is_entropy
from ._jacobians cimport jacobians
from ._job cimport BY_PARTS, BY_TILES, Job, Plan, State, Sum, add, cool, set_sum, value
from ._long_rows cimport RowSums, begin_grad, is_read, part_grad, part_sums, row_zero_grad, set_states
from ._plan cimport MAX_THREADS, is_computable, is_divergence, is_product, main_input, make_plan, takes_labels
from ._primitives cimport CE_BY_ELEMENT, ce_chosen_f64, ce_primitives, ce_run_units, ce_unit
from ._request cimport (
    ARGMAX, CROSS_ENTROPY, ENTROPY, F32, LOGSUMEXP, SIGMOID_TWO_TERM, SOFTMAX_TWO_TERM, Matrix, Request, computed_dtype,
)
from ._rows cimport rows
from ._sigmoid cimport sigmoid_unit
from ._softmax_two_term cimport softmax_two_term
from ._tiles cimport tiles

# -- Units

cdef inline void begin_state(const Job *job, Py_ssize_t count, State *s) noexcept nogil:
    """What a state is assumed to hold before the first group."""
    cdef Py_ssize_t p
    s.same_targets = False
    for p in range(count):
        s.scale[p], s.b[p] = job.plan.scale, 0

cdef inline void set_scale(const Job *job, Py_ssize_t start, Py_ssize_t count, State *s) noexcept nogil:
    """What the gradients of a group's rows are multiplied by."""
    cdef const Request *request = job.request
    cdef const Matrix *upstream = &request.upstream
    cdef bint by_row = upstream.data != NULL and (
        request.operation == CROSS_ENTROPY or request.operation == SOFTMAX_TWO_TERM or request.operation == ENTROPY
        or is_divergence(request))
    cdef double scale = job.plan.scale
    cdef Py_ssize_t p
    for p in range(count if request.sample_weight != NULL or by_row else 0):
        s.scale[p] = scale
    for p in range(count if request.sample_weight != NULL else 0):
        s.scale[p] *= request.sample_weight[start + p]
    for p in range(count if by_row else 0):
        s.scale[p] *= (<const double *>row_at(upstream, start + p))[0]

cdef inline void add_losses(const Job *job, Py_ssize_t start, Py_ssize_t count, State *s, Sum *total,
                            const floating *dtype) noexcept nogil:
    """Writes a group's losses if they were asked for, and adds them to total."""
    cdef const Request *request = job.request
    cdef const ce_primitives *f = job.plan.primitives
    cdef Py_ssize_t p
    if request.sample_weight != NULL:
        for p in range(count):
            s.loss[p] *= request.sample_weight[start + p]
    if s.ignored > 0:
        f.zero_ignored(s.label, count, s.loss)
    if request.losses != NULL:
        f.narrow(s.loss, count, (<floating *>request.losses) + start)
    add(total, ce_chosen_f64.row_sum(s.loss, count))

cdef inline void write_losses(const Job *job, Py_ssize_t start, Py_ssize_t count, State *s, Sum *total,
                              const floating *dtype) noexcept nogil:
    """Computes a group's losses if they were asked for, writes them, and adds them to total."""
    cdef const Request *request = job.request
    cdef const ce_primitives *f = job.plan.primitives
    cdef Py_ssize_t p
    if not job.plan.with_loss:
        return
    if not job.plan.with_grad:          # else `coefficients` has computed them
        cool(job, s, 0, count)
        f.losses(count, s.row_max, s.tail, s.mass, s.linear, request.temperature, request.z_loss, s.log_total,
                 s.loss)
    if request.operation == LOGSUMEXP:
        for p in range(count):
            s.loss[p] = s.row_max[p]/request.temperature + s.log_total[p]
            if not isfinite(s.row_max[p]) and not holds_nan(job, start + p, dtype):
                s.loss[p] = s.row_max[p]
    add_losses(job, start, count, s, total, dtype)

cdef inline void zero_ignored_rows(const Job *job, Py_ssize_t start, Py_ssize_t count, const State *s,
                                   floating *scratch) noexcept nogil:
    """Gradients of 0, where those of a group were computed without regard to ignored rows."""
    cdef Py_ssize_t p
    for p in range(count if s.ignored > 0 and job.plan.with_grad else 0):
        if s.label[p] < 0:
            row_zero_grad(job, start + p, 0, job.request.classes, scratch)

cdef enum:              # whether targets are checked for numbers that are negative, infinite or NaN
    UNCHECKED
    CHECKED_MEANWHILE   # each unit before it is computed, which brings them into the cache
    CHECKED_BEFORE      # all of them before anything is written

cdef inline void check_unit(const Job *job, Py_ssize_t unit, int thread) noexcept nogil:
    cdef Py_ssize_t start = unit*job.plan.unit, stop = min(start + job.plan.unit, job.request.rows)
    cdef Py_ssize_t first = 0, last = job.request.classes
    if job.plan.path == BY_PARTS:
        start, first = job.first_row + unit/job.plan.parts, unit % job.plan.parts*job.plan.part
        stop, last = start + 1, min(first + job.plan.part, last)
    if may_be_wrong(&job.request.targets, start, stop, first, last):
        job.wrong[thread] = True

cdef inline void run_unit(const Job *job, Py_ssize_t unit, int thread, const floating *dtype) noexcept nogil:
    cdef Py_ssize_t start = unit*job.plan.unit, stop = min(start + job.plan.unit, job.request.rows), count, p
    cdef floating *scratch = <floating *>job.scratch + thread*job.plan.scratch
    cdef int operation = job.request.operation
    cdef State s
    cdef Sum total
    if job.wrong != NULL and not job.grads:
        check_unit(job, unit, thread)
    if job.only_checks:
        return
    if job.plan.path == BY_PARTS:
        if job.grads:
            part_grad(job, unit, scratch)
        else:
            part_sums(job, unit, scratch)
        return
    job.unit_sums[unit] = 0
    if is_product(job.request):
        jacobians(job, start, stop, scratch)
        return
    if operation == ARGMAX:
        argmax(job, start, stop, scratch)
        return
    if operation == SIGMOID_TWO_TERM:
        job.unit_sums[unit] = sigmoid_unit(job, unit, scratch)
        return
    set_sum(&total, 0)
    begin_state(job, min(job.plan.group, stop - start), &s)
    while start < stop:
        count = min(stop - start, job.plan.group)
        set_scale(job, start, count, &s)
        if operation == SOFTMAX_TWO_TERM:
            add(&total, softmax_two_term(job, start, count, s.scale, scratch))
        else:
            settle_group(job, start, count, &s)
            if is_divergence(job.request) or is_entropy(operation):
                if is_entropy(operation):
                    entropies(job, start, count, &s, scratch)
                else:
                    divergences(job, start, count, &s, scratch)
                zero_ignored_rows(job, start, count, &s, scratch)
                add_losses(job, start, count, &s, &total, scratch)
            else:
                if job.plan.path == BY_TILES:
                    tiles(job, start, count, &s, scratch)
                else:
                    rows(job, start, count, &s, scratch)
                write_losses(job, start, count, &s, &total, scratch)
        start += count
    job.unit_sums[unit] = value(&total)

cdef inline void run_unit_f32(const void *job, Py_ssize_t unit, int thread) noexcept nogil:
    run_unit(<const Job *>job, unit, thread, <const float *>NULL)

cdef inline void run_unit_f64(const void *job, Py_ssize_t unit, int thread) noexcept nogil:
    run_unit(<const Job *>job, unit, thread, <const double *>NULL)

cdef inline ce_unit unit_function(const floating *dtype) noexcept nogil:
    return run_unit_f32 if floating is float else run_unit_f64

cdef inline double run_parts(Job *job, floating *scratch) noexcept nogil:
    """Few long rows: the sums of their parts, the states, and the parts of the gradient. Returns the sum of losses."""
    cdef const Plan *plan = &job.plan
    cdef State s
    cdef Sum total
    cdef Py_ssize_t start, count
    set_sum(&total, 0)
    begin_state(job, plan.unit, &s)
    job.state = &s
    for start from 0 <= start < job.request.rows by plan.unit:
        count = min(plan.unit, job.request.rows - start)
        job.first_row, job.grads = start, False
        set_scale(job, start, count, &s)
        settle_group(job, start, count, &s)
        if is_read(job):
            ce_run_units(unit_function(scratch), job, count*plan.parts, plan.threads, plan.automatic)
        set_states(job, count, &s, scratch)
        write_stats(job, start, count, &s, 0, scratch)
        if plan.with_grad:
            begin_grad(job, &s, 0, count)
            job.grads = True
            ce_run_units(unit_function(scratch), job, count*plan.parts, plan.threads, plan.automatic)
        write_losses(job, start, count, &s, &total, scratch)
    return value(&total)

# -- One call

cdef inline void set_other_q(const double *weight, Py_ssize_t classes, double uniform, double *others,
                             floating *narrow, double *mass) noexcept nogil:
    """others[j] and narrow[j] = uniform*the sum of all weights but weight[j], not formed by subtraction.
    mass = uniform*the sum of all."""
    cdef Py_ssize_t j
    cdef Sum total
    set_sum(&total, 0)
    for j in range(classes):
        others[j] = value(&total)
        add(&total, weight[j])
    mass[0] = uniform*value(&total)
    set_sum(&total, 0)
    for j in range(classes - 1, -1, -1):
        others[j] = uniform*(others[j] + value(&total))
        narrow[j] = <floating>others[j]
        add(&total, weight[j])

cdef inline bint is_any_wrong(const Job *job) noexcept nogil:
    cdef int k
    for k in range(job.plan.threads if job.wrong != NULL else 0):
        if job.wrong[k]:
            return True
    return False

cdef inline int run_as(const Request *request, int check, const floating *dtype) noexcept nogil:
    """Runs a request that was checked and whose labels were counted."""
    cdef char wrong[MAX_THREADS]
    cdef Job job
    cdef Py_ssize_t classes = request.classes, weights, others, sums, j
    cdef bint by_element
    cdef char *memory
    cdef floating *scratch
    cdef floating *weight
    cdef Sum total
    memset(&job, 0, sizeof(job))
    job.request = request
    make_plan(request, &job.plan)
    # All the memory that a run needs: scratch of each thread, aligned to cache lines, the sums of the units, and one
    # number for each class where labels are smoothed with weights (also that of the others) or targets have weights.
    others = classes if job.plan.weighted_smoothing else 0
    by_element = job.plan.base_kind == CE_BY_ELEMENT or request.operation == SOFTMAX_TWO_TERM
    weights = classes if others or (by_element and request.weight != NULL) else 0
    sums = job.plan.units*(sizeof(RowSums)/sizeof(double) if job.plan.path == BY_PARTS else 1)
    memory = <char *>malloc(64 + (job.plan.threads*job.plan.scratch + weights + others)*sizeof(floating)
                            + (sums + others)*sizeof(double))
    if memory == NULL:
        return -1
    scratch = <floating *>(memory + (64 - <size_t>memory % 64))
    job.unit_sums = <double *>(scratch + job.plan.threads*job.plan.scratch)
    job.smoothing_mass = request.label_smoothing
    if weights:
        weight = <floating *>(job.unit_sums + sums + others)
        for j in range(weights):
            weight[j] = <floating>((job.plan.uniform if others else 1)*request.weight[j])
        if others:
            job.smoothing, job.other_q, job.narrow_other_q = weight, job.unit_sums + sums, weight + classes
            set_other_q(request.weight, classes, job.plan.uniform, job.unit_sums + sums, weight + classes,
                        &job.smoothing_mass)
        else:
            job.weight = weight
    job.scratch = scratch
    if check != UNCHECKED:
        job.wrong = wrong
        memset(wrong, 0, job.plan.threads)
    if check == CHECKED_BEFORE:
        job.only_checks = True
        ce_run_units(unit_function(dtype), &job,
                     request.rows*job.plan.parts if job.plan.path == BY_PARTS else job.plan.units, job.plan.threads,
                     job.plan.automatic)
        if is_any_wrong(&job):
            free(memory)
            return 3
        job.only_checks, job.wrong = False, NULL
    if job.plan.path == BY_PARTS:
        job.sums = job.unit_sums
        set_sum(&total, run_parts(&job, scratch))
    else:
        ce_run_units(unit_function(dtype), &job, job.plan.units, job.plan.threads, job.plan.automatic)
        set_sum(&total, 0)
        for j in range(job.plan.units):
            add(&total, job.unit_sums[j])
    if request.total != NULL:
        request.total[0] = value(&total)
    free(memory)
    return 3 if is_any_wrong(&job) else 0

cdef inline int execute(const Request *request, int check) noexcept nogil:
    """Computes what is asked for. See `run` in _kernels.pxd for the result; 3: the targets may be wrong."""
    if request.size != sizeof(Request) or not is_computable(request):
        return 2
    if request.rows <= 0 or request.classes <= 0:
        if request.total != NULL:
            request.total[0] = 0
        return 0
    if takes_labels(request.operation) and request.labels.data != NULL and request.counted < 0:
        if counted_labels(&request.labels, request.rows, request.classes, request.ignore_index,
                          request.has_ignore_index) < 0:
            return 1
    if computed_dtype(main_input(request).dtype) == F32:
        return run_as(request, check, <const float *>NULL)
    return run_as(request, check, <const double *>NULL)
