# cython: cdivision=True
# What the three ways to compute have in common: the plan, the state of rows, and the formulas for both.
#
# A row has `classes` logits x. Its state is row_max = max x and tail = sum over j != argmax of exp(x_j - row_max). The
# maximum's own term, 1, is left out of the sum, so that log1p(tail) and tail/(1 + tail) keep their relative accuracy
# when the row is confident. Let q be the row's targets with weights and smoothing, mass = sum q and lse = logsumexp(x):
#
#     loss   = mass*log1p(tail) + sum_j q_j*(row_max - x_j) + z_loss*lse^2            every term is >= 0
#     grad_j = scale * ((mass + 2*z_loss*lse)*p_j - q_j),   p_j = exp(x_j - row_max)/(1 + tail)
#            = a*exp(x_j - row_max) - b*base_j
#
# q_j is base_scale*base_j, plus hot*weight_j where j is the row's label. base is nothing, ones, one number for each
# class, or the target row. Where p_j - q_j may cancel (exact_class: the label or the maximum), another formula is used.
#
# With k = mass + 2*z_loss*lse, the Hessian is scale * (k*(diag(p) - p p^T) + 2*z_loss*p p^T) (_curvature.pxd).
from cython cimport floating
from libc.math cimport INFINITY, exp, isfinite
from libc.stdint cimport int64_t

from ._primitives cimport CE_STORED, ce_add_label, ce_chosen_f64, ce_primitives
from ._request cimport F32, F64, LOG_SOFTMAX, Request

cdef enum:
    GROUP = 112         # rows whose state is held at a time, at most
    BLOCK = 4096        # classes of a row that are worked on at a time, at most: 16 or 32 KiB
    TILE_SIZE = 8192    # numbers in a tile, unless its rows are contiguous in the arrays too

cdef enum:              # paths: each is one way to compute
    BY_ROWS             # vectors along the classes (_rows.pxd)
    BY_TILES            # vectors across rows (_tiles.pxd)
    BY_PARTS            # few long rows, each divided among the threads (_long_rows.pxd)
    BY_COLUMNS          # vectors across rows, where they lie (_jacobians.pxd, _argmax.pxd, _sigmoid.pxd)

cdef struct Plan:
    # How a request is computed. _plan.pxd chooses.
    const ce_primitives *primitives # for the dtype
    int path
    bint stream                     # the gradient is written past the caches
    bint with_labels
    bint with_loss
    bint with_grad
    bint with_hess                  # and the diagonal of the Hessian
    bint with_hvp                   # instead of the gradient, the Hessian times vectors
    int dtype                       # F32 or F64: what is computed in
    bint logits_ready               # they are used where they lie
    bint with_slopes                # it is multiplied by the derivatives of the softcap
    bint grad_ready                 # it is computed where it lies
    bint weighted_smoothing         # labels with smoothing and weights: base is uniform*weight
    double hot                      # 1 - label_smoothing
    double uniform                  # label_smoothing/classes
    int base_kind                   # CE_ONES, CE_BY_CLASS or CE_BY_ELEMENT
    double base_scale               # 0: there is no base
    double gap_scale                # what sums of base*(row_max - x) are multiplied by
    double scale                    # of all gradients
    double slope                    # rows of targets are read as slope*target + offset, if there are no weights
    double offset
    Py_ssize_t group                # rows worked on at a time: the width of a tile
    Py_ssize_t tile                 # numbers in a tile
    Py_ssize_t chunk                # of them that are loaded, or stored, at a time
    Py_ssize_t block                # classes of a long row that are worked on at a time
    Py_ssize_t part                 # BY_PARTS: classes in a unit of work
    Py_ssize_t parts                # of a row
    Py_ssize_t unit                 # rows in a unit of work; BY_PARTS: rows whose parts are computed together
    Py_ssize_t unit_classes         # SIGMOID_TWO_TERM, BY_COLUMNS: classes in a unit
    Py_ssize_t units
    int threads
    bint automatic                  # their number: fewer may be used
    Py_ssize_t scratch              # numbers of the dtype for each thread

cdef struct Sum:
    # A float64 sum and what its additions lost.
    double total
    double lost

cdef struct State:
    # The state of a group's rows and what follows from it. It is written only as far as it is needed.
    int64_t label[GROUP]            # -1 where the row is ignored; without labels it is set only if a row is
    Py_ssize_t ignored              # how many rows are
    double row_max[GROUP]
    double tail[GROUP]
    double mass[GROUP]              # sum q
    double linear[GROUP]            # sum_j q_j*(row_max - x_j)
    double q[GROUP]                 # of exact_class,
    double rest[GROUP]              # mass - q, not formed by subtraction,
    double e[GROUP]                 # and exp(x - row_max)
    bint same_targets               # mass, q and rest are set already: they are the same for every label
    double scale[GROUP]             # of the gradient
    double a[GROUP]
    double b[GROUP]
    double log_total[GROUP]         # log(1 + tail)
    double loss[GROUP]
    double exact_grad[GROUP]        # the gradient of exact_class
    double rest_at_max[GROUP]       # weighted_smoothing: mass - q of the maximum,
    double grad_at_max[GROUP]       # and its gradient, if it is the only maximum and not the label
    # Second derivatives only; primitives.inc says what these are:
    double hess_a[GROUP]
    double hess_b[GROUP]
    double hess_at_max[GROUP]
    double v_at_max[GROUP]          # the vector's number at a maximum
    double spread[GROUP]            # the sum of exp(x - row_max)*(v - v_at_max)
    # BY_ROWS only:
    Py_ssize_t exact_class[GROUP]   # where p - q may cancel: the label; -1: nowhere
    Py_ssize_t first_max[GROUP]     # the first class whose logit is row_max, if p - q may cancel there too; else -1
    double x_label[GROUP]           # the label's logit
    double exact_src[GROUP]         # of base by element: what exact_class is known by, instead

cdef struct Job:
    # What the kernels get.
    const Request *request
    Plan plan
    const void *weight              # for targets: weight in the dtype of the logits
    const void *smoothing           # weighted_smoothing: uniform*weight in the dtype of the logits; else NULL
    const double *other_q           # weighted_smoothing: for each class, the sum of uniform*weight of the other classes
    const void *narrow_other_q      # the same in the dtype of the logits
    double smoothing_mass           # for labels: sum over j of uniform*weight_j
    double *unit_sums               # of the losses
    void *scratch                   # of all threads
    char *wrong                     # for each thread, whether it met targets that may be wrong; NULL: nothing is checked
    bint only_checks                # nothing is computed yet
    # BY_PARTS:
    Py_ssize_t first_row            # of those whose parts are computed
    State *state                    # of these rows
    void *sums                      # of each part: RowSums of _long_rows.pxd
    bint grads                      # whether the gradients are computed, or the sums

cdef inline int own_dtype(const floating *dtype) noexcept nogil:
    if floating is float:
        return F32
    else:
        return F64

# -- Sums

cdef inline void set_sum(Sum *s, double total) noexcept nogil:
    s.total, s.lost = total, 0

cdef inline void add(Sum *s, double term) noexcept nogil:
    cdef double total = s.total + term, z = total - s.total
    s.lost += (s.total - (total - z)) + (term - z)
    s.total = total

cdef inline double value(const Sum *s) noexcept nogil:
    return s.total + s.lost if isfinite(s.total) else s.total

# -- States of parts of a row

cdef inline double times(double q, double gap) noexcept nogil:
    # 0 * inf is 0: a class that does not count adds nothing, however improbable it is.
    return 0.0 if q == 0 else q*gap

cdef inline double shift_of(double row_max) noexcept nogil:
    """What logits are compared with. A maximum of -inf counts as 0, because -inf - -inf would be NaN."""
    return row_max if row_max > -INFINITY else 0

cdef inline double rescaled(double sum_exp, double row_max, double larger, double temperature) noexcept nogil:
    """A sum of exp((x - row_max)/temperature) as the same sum of exp((x - larger)/temperature)."""
    return sum_exp*exp((row_max - larger)/temperature) if row_max > -INFINITY else sum_exp*0

cdef inline double moved(double mass, double row_max, double larger) noexcept nogil:
    """What is added to sum q*(row_max - x) when the maximum becomes larger."""
    return times(mass, larger - shift_of(row_max))

cdef inline void exponentials(const double *d, Py_ssize_t n, double temperature, double *e) noexcept nogil:
    """e[p] = exp(d[p]/temperature), where d[p] <= 0."""
    cdef double zero = 0, unused
    cdef Py_ssize_t p
    ce_chosen_f64.rows_exp_sum(d, 0, e, 0, 1, n, CE_STORED, &zero, temperature, 0, d, &unused)
    for p in range(n):
        e[p] /= ce_chosen_f64.exp_one

# -- From state to loss and gradient

cdef inline double weight_of(const Job *job, Py_ssize_t j) noexcept nogil:
    return 1.0 if job.request.weight == NULL else job.request.weight[j]

cdef inline void add_label(const Job *job, double x_label, double e_label, State *s, Py_ssize_t r) noexcept nogil:
    """Completes the state r, which lacks only its label; e_label is exp(x_label - row_max). With weighted_smoothing,
    rest_at_max is the maximum's other_q before."""
    cdef const Plan *plan = &job.plan
    cdef Py_ssize_t label = s.label[r]
    if plan.weighted_smoothing:
        s.rest[r] = job.other_q[label]
    ce_add_label(weight_of(job, label), x_label - s.row_max[r], plan.hot, plan.uniform, job.smoothing_mass, s.mass + r,
                 s.linear + r, s.q + r, s.rest + r, s.rest_at_max + r if plan.weighted_smoothing else NULL)
    s.exact_class[r], s.e[r] = label, e_label

cdef inline void cool(const Job *job, State *s, Py_ssize_t r, Py_ssize_t n) noexcept nogil:
    """Divides linear, which is a sum of gaps between logits, by the temperature. It is done apart from the sum of the
    loss, because compilers contract a sum of two products in either way, and not everywhere in the same."""
    cdef Py_ssize_t p
    for p in range(r, r + n if job.request.temperature != 1 else r):
        s.linear[p] /= job.request.temperature

cdef inline void coefficients(const Job *job, State *s, Py_ssize_t r, Py_ssize_t n) noexcept nogil:
    """Computes loss if it is wanted, a, b, exact_grad and grad_at_max of n states from r on, which are complete."""
    cdef bint with_log = job.plan.with_loss or job.request.z_loss != 0 or job.request.operation == LOG_SOFTMAX
    cdef Py_ssize_t p
    cool(job, s, r, n)
    job.plan.primitives.coefficients(
        n, s.row_max + r, s.tail + r, s.mass + r, s.linear + r, job.request.temperature, job.request.z_loss, s.q + r,
        s.rest + r, s.e + r, s.scale + r, s.log_total + r, s.loss + r if with_log else NULL, s.a + r, s.exact_grad + r,
        s.rest_at_max + r, s.grad_at_max + r if job.plan.weighted_smoothing else NULL)
    if job.request.flush_below > 0:
        ce_chosen_f64.flush_small(s.exact_grad + r, n, job.request.flush_below)
    if job.request.flush_below > 0 and job.plan.weighted_smoothing:
        ce_chosen_f64.flush_small(s.grad_at_max + r, n, job.request.flush_below)
    if job.request.operation == LOG_SOFTMAX:
        for p in range(r, r + n):
            s.a[p], s.b[p] = 1, s.log_total[p]
    elif job.plan.base_scale != 0:
        for p in range(r, r + n):
            s.b[p] = s.scale[p]*job.plan.base_scale

cdef inline bint cancels_at_maximum(const Job *job, const State *s, Py_ssize_t r) noexcept nogil:
    """Whether p - q may cancel at a maximum that is not the label: weighted smoothing can make its q large too."""
    return job.plan.weighted_smoothing and s.tail[r] < 1 and s.e[r] < 1

cdef inline void set_exact_src(const Job *job, State *s, Py_ssize_t r, Py_ssize_t count, int form) noexcept nogil:
    """Of base by element: what the maxima are known by of which there is only one, and whose p - q may cancel."""
    cdef Py_ssize_t p
    for p in range(r, r + count):
        s.exact_src[p] = INFINITY
        if s.tail[p] < 1:
            s.exact_src[p] = job.plan.primitives.exp_one if form == CE_STORED else s.row_max[p]

cdef inline void set_first_max(const Job *job, Py_ssize_t first_max, State *s, Py_ssize_t r) noexcept nogil:
    """Notes where the maximum is, and what else there is of the row's targets: of the label, add_label adds that."""
    s.first_max[r] = first_max
    s.rest_at_max[r] = job.other_q[max(first_max, 0)]
