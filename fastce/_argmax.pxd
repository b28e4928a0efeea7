# cython: cdivision=True
# Where the largest logit of each row is.
from cython cimport floating

from ._blocks cimport evenly_spaced, load_tile, row_at
from ._job cimport BY_ROWS, BY_TILES, GROUP, TILE_SIZE, Job
from ._primitives cimport CE_MAX_LANES, ce_primitives
from ._request cimport Matrix

cdef enum:
    CLASSES_AT_A_TIME = 1 << 22     # where rows are contiguous: float32 counts so many

cdef inline void argmax_columns(const Job *job, Py_ssize_t i, Py_ssize_t count, floating *scratch) noexcept nogil:
    """Contiguous rows, at most the plan's group, where they lie."""
    cdef const Matrix *x = &job.request.logits
    cdef Py_ssize_t j
    for j from 0 <= j < job.request.classes by CLASSES_AT_A_TIME:
        job.plan.primitives.columns_argmax(
            row_at(x, i) + j*x.class_stride, x.class_stride, j, min(job.request.classes - j, CLASSES_AT_A_TIME), count,
            job.request.first_max + i, scratch, scratch + job.plan.group)

cdef inline void argmax_tile(const Job *job, Py_ssize_t i, Py_ssize_t count, floating *scratch) noexcept nogil:
    """At most GROUP rows of any layout, in copies."""
    cdef const ce_primitives *f = job.plan.primitives
    cdef Py_ssize_t width = (count + CE_MAX_LANES - 1)/CE_MAX_LANES*CE_MAX_LANES, j, n
    cdef floating *largest = scratch + TILE_SIZE
    for j from 0 <= j < job.request.classes by TILE_SIZE/width:
        n = min(job.request.classes - j, TILE_SIZE/width)
        load_tile(f, &job.request.logits, i, count, j, n, width, scratch)
        f.columns_argmax(scratch, width*sizeof(floating), j, n, count, job.request.first_max + i, largest,
                         largest + GROUP)

cdef inline void argmax(const Job *job, Py_ssize_t start, Py_ssize_t stop, floating *scratch) noexcept nogil:
    """Where the largest logits of a unit's rows are."""
    cdef const Matrix *x = &job.request.logits
    cdef Py_ssize_t count
    while start < stop:
        count = min(stop - start, job.plan.group)
        if job.plan.path == BY_TILES:
            argmax_tile(job, start, count, scratch)
        else:
            count = evenly_spaced(x, start, count)
            if job.plan.path == BY_ROWS:
                job.plan.primitives.rows_argmax(row_at(x, start), x.row_stride, count, job.request.classes,
                                                job.request.first_max + start)
            else:
                argmax_columns(job, start, count, scratch)
        start += count
