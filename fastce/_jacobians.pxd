# cython: cdivision=True
# Products of an upstream gradient u with the Jacobians of y: y*(u - sum u*y) for y = softmax(x), and u - exp(y)*sum u
# for y = log_softmax(x).
from cython cimport floating

from ._blocks cimport evenly_spaced, load_tile, row_at, store_tile
from ._job cimport BY_ROWS, BY_TILES, GROUP, TILE_SIZE, Job
from ._primitives cimport CE_MAX_LANES, ce_primitives
from ._request cimport LOG_SOFTMAX_GRAD, Matrix, Request

cdef enum:
    STREAM_RUN = 512        # rows of a class: the ends of shorter runs cost more than is saved

cdef inline bint of_log(const Job *job) noexcept nogil:
    return job.request.operation == LOG_SOFTMAX_GRAD

cdef inline Py_ssize_t evenly_spaced_in_all(const Request *request, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    """How many of n rows from i on are evenly spaced in each of the three matrices."""
    n = evenly_spaced(&request.y, i, n)
    n = evenly_spaced(&request.upstream, i, n)
    return evenly_spaced(&request.grad, i, n)

cdef inline void jacobian_rows(const Job *job, Py_ssize_t i, Py_ssize_t count) noexcept nogil:
    """Evenly spaced rows whose classes are contiguous."""
    cdef const Request *r = job.request
    job.plan.primitives.rows_jacobian(row_at(&r.y, i), r.y.row_stride, row_at(&r.upstream, i), r.upstream.row_stride,
                                      row_at(&r.grad, i), r.grad.row_stride, count, r.classes, of_log(job),
                                      job.plan.scale, r.flush_below)

cdef inline void jacobian_columns(const Job *job, Py_ssize_t i, Py_ssize_t count, floating *scratch) noexcept nogil:
    """Contiguous rows, at most the plan's group: where they lie, because copies of them would cost more."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef const Request *r = job.request
    cdef const char *y = row_at(&r.y, i)
    cdef const char *u = row_at(&r.upstream, i)
    cdef floating *minus_sum = scratch + 2*job.plan.group*sizeof(double)/sizeof(floating)
    f.columns_jacobian_sum(y, r.y.class_stride, u, r.upstream.class_stride, r.classes, count, of_log(job), True,
                           scratch, minus_sum)
    f.columns_jacobian(y, r.y.class_stride, u, r.upstream.class_stride, row_at(&r.grad, i), r.grad.class_stride,
                       r.classes, count, of_log(job), minus_sum, job.plan.scale, r.flush_below,
                       job.plan.stream and count >= STREAM_RUN)

cdef inline void jacobian_tile(const Job *job, Py_ssize_t i, Py_ssize_t count, floating *scratch) noexcept nogil:
    """At most GROUP rows of any layout. Their blocks are copied twice, for the sums and for the products."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef const Request *r = job.request
    cdef Py_ssize_t width = (count + CE_MAX_LANES - 1)/CE_MAX_LANES*CE_MAX_LANES, stride = width*sizeof(floating)
    cdef Py_ssize_t j, n
    cdef floating *y = scratch
    cdef floating *u = scratch + TILE_SIZE
    cdef floating *acc = scratch + 2*TILE_SIZE
    cdef floating *minus_sum = acc + 2*GROUP*sizeof(double)/sizeof(floating)
    cdef bint products
    for products in range(2):
        for j from 0 <= j < r.classes by TILE_SIZE/width:
            n = min(r.classes - j, TILE_SIZE/width)
            load_tile(f, &r.y, i, count, j, n, width, y)
            load_tile(f, &r.upstream, i, count, j, n, width, u)
            if products:
                f.columns_jacobian(y, stride, u, stride, y, stride, n, width, of_log(job), minus_sum, job.plan.scale,
                                   r.flush_below, False)
                store_tile(f, &r.grad, i, count, j, n, width, y, False)
            else:
                f.columns_jacobian_sum(y, stride, u, stride, n, width, of_log(job), j == 0, acc, minus_sum)

cdef inline void jacobians(const Job *job, Py_ssize_t start, Py_ssize_t stop, floating *scratch) noexcept nogil:
    """The products of a unit."""
    cdef Py_ssize_t count
    while start < stop:
        if job.plan.path == BY_TILES:
            count = min(stop - start, job.plan.group)
            jacobian_tile(job, start, count, scratch)
        else:
            count = evenly_spaced_in_all(job.request, start, min(stop - start, job.plan.group))
            if job.plan.path == BY_ROWS:
                jacobian_rows(job, start, count)
            else:
                jacobian_columns(job, start, count, scratch)
        start += count
