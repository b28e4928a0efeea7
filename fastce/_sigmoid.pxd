# cython: cdivision=True
# The two-term form of independent classes, p = 1/(1 + exp(-x)).
from cython cimport floating

from ._blocks cimport block, gather, grad_block, row_at, store_block
from ._job cimport BLOCK, Job, Sum, add, set_sum, value
from ._primitives cimport ce_primitives
from ._request cimport Matrix

cdef enum:
    TWO_TERM_BLOCK = 256        # classes of the two-term forms that are worked on at a time, in float64

cdef struct Elements:
    # Logits of a block, and the factors a = weight*pos_weight*c of -log(p) and b = weight*(1 - c) of -log(1 - p).
    Py_ssize_t n
    double x[TWO_TERM_BLOCK]
    double a[TWO_TERM_BLOCK]
    double b[TWO_TERM_BLOCK]

cdef inline void load_elements(const Job *job, Py_ssize_t i, Py_ssize_t j, Elements *e) noexcept nogil:
    """Row i from class j on."""
    cdef const Matrix *logits = &job.request.logits
    cdef const Matrix *targets = &job.request.targets
    cdef const double *weight = job.request.weight
    cdef const double *pos_weight = job.request.pos_weight
    cdef Py_ssize_t k
    cdef double c
    e.n = min(job.request.classes - j, TWO_TERM_BLOCK)
    gather(logits.dtype, row_at(logits, i) + j*logits.class_stride, logits.class_stride, e.n, e.x, 1)
    gather(targets.dtype, row_at(targets, i) + j*targets.class_stride, targets.class_stride, e.n, e.a, 1)
    for k in range(e.n):
        c = e.a[k]
        e.b[k] = 1 - c
        if pos_weight != NULL:
            e.a[k] = c*pos_weight[j + k]
        if weight != NULL:
            e.a[k] *= weight[j + k]
            e.b[k] *= weight[j + k]

cdef inline double sigmoid_row(const Job *job, Py_ssize_t i, double scale, floating *scratch) noexcept nogil:
    """Row i of the two-term form of independent classes. Returns the sum of its losses."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef const Matrix *upstream = &job.request.upstream
    cdef bint ready = job.plan.targets_ready
    cdef double sample = 1 if job.request.sample_weight == NULL else job.request.sample_weight[i]
    cdef const floating *a = scratch
    cdef const floating *b = NULL if ready else scratch + TWO_TERM_BLOCK       # NULL: 1 - a
    cdef floating *grad = NULL
    cdef floating *loss = NULL
    cdef const char *factor
    cdef Py_ssize_t step = BLOCK if ready else TWO_TERM_BLOCK, j, n, k
    cdef Elements e
    cdef Sum total
    set_sum(&total, 0)
    for j from 0 <= j < job.request.classes by step:
        n = min(job.request.classes - j, step)
        if ready:
            a = block(&job.request.targets, i, j, n, scratch)
        else:
            load_elements(job, i, j, &e)
            f.narrow(e.a, n, scratch)
            f.narrow(e.b, n, scratch + TWO_TERM_BLOCK)
        if job.plan.with_grad:
            grad = grad_block(job, i, j, scratch + 2*BLOCK)
        if job.request.losses != NULL:
            loss = (<floating *>job.request.losses) + i*job.request.classes + j
        add(&total, f.row_sigmoid(block(&job.request.logits, i, j, n, scratch + BLOCK), a, b, n, scale, loss, grad))
        for k in range(n if loss != NULL and job.request.sample_weight != NULL else 0):
            loss[k] = <floating>(loss[k]*sample)
        if job.plan.with_grad:
            if upstream.data != NULL:
                factor = row_at(upstream, i) + j*upstream.class_stride
                for k in range(n):
                    grad[k] = <floating>(grad[k]*(<const double *>(factor + k*upstream.class_stride))[0])
            store_block(job, i, j, n, grad)
    return sample*value(&total)
