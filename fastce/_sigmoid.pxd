# cython: cdivision=True
# The two-term form of independent classes, p = 1/(1 + exp(-x)).
#
# Every element is computed alone, so a piece may be any elements that are near each other in memory: some rows, a part
# of a long row, or, where it is the rows that are contiguous, some rows of one class.
from cython cimport floating

from libc.string cimport memcpy

from ._blocks cimport evenly_spaced, gather, row_at
from ._job cimport BY_COLUMNS, Job, Plan, Sum, add, own_dtype, set_sum, value
from ._primitives cimport ce_chosen_f64, ce_primitives
from ._request cimport F32, F64, Matrix, Request, matrix

cdef enum:
    PIECE = 1024                # elements of a piece, at most
    ACROSS = 64                 # where so many rows are contiguous, a piece is rows of one class
    ALONE = 64                  # classes from which a row with a sample_weight is a piece of its own
    SIGMOID_SCRATCH = 13*PIECE  # seven blocks in the dtype, and three in float64

cdef struct Piece:
    # Rows i to i + rows - 1, classes j to j + classes - 1: all classes, or one row, or one class.
    Py_ssize_t i
    Py_ssize_t j
    Py_ssize_t rows
    Py_ssize_t classes

# -- Pieces

cdef inline bint is_even(const Matrix *a, const Piece *p, Py_ssize_t *stride) noexcept nogil:
    """Whether the elements of a piece are at one distance from each other in a matrix, which is then set."""
    stride[0] = a.class_stride if p.classes > 1 else a.row_stride
    return p.rows == 1 or (evenly_spaced(a, p.i, p.rows) == p.rows
                           and (p.classes == 1 or a.row_stride == p.classes*a.class_stride))

cdef inline const floating *load_piece(const Matrix *a, const Piece *p, floating *scratch) noexcept nogil:
    """The numbers of a piece, contiguous: where they lie, or gathered into scratch."""
    cdef const char *src = row_at(a, p.i) + p.j*a.class_stride
    cdef Py_ssize_t stride, r
    if is_even(a, p, &stride):
        if stride == sizeof(floating) and a.dtype == own_dtype(scratch):
            return <const floating *>src
        gather(a.dtype, src, stride, p.rows*p.classes, scratch, 1)
    else:
        for r in range(p.rows):
            src = row_at(a, p.i + r) + p.j*a.class_stride
            gather(a.dtype, src, a.class_stride, p.classes, scratch + r*p.classes, 1)
    return scratch

cdef inline floating *place_of_piece(const Matrix *a, const Piece *p, floating *scratch) noexcept nogil:
    """Where the numbers of a piece are computed: in their place, or in scratch."""
    cdef Py_ssize_t stride
    if is_even(a, p, &stride) and stride == sizeof(floating):
        return <floating *>(row_at(a, p.i) + p.j*a.class_stride)
    return scratch

cdef inline void scatter(const floating *src, Py_ssize_t n, char *dst, Py_ssize_t stride) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(n):
        (<floating *>(dst + k*stride))[0] = src[k]

cdef inline void store_piece(const Matrix *a, const Piece *p, const floating *src) noexcept nogil:
    """Writes the numbers of a piece, unless they are in their place already."""
    cdef char *dst = row_at(a, p.i) + p.j*a.class_stride
    cdef Py_ssize_t stride, r
    if <const char *>src == dst:
        return
    if is_even(a, p, &stride):
        scatter(src, p.rows*p.classes, dst, stride)
    else:
        for r in range(p.rows):
            scatter(src + r*p.classes, p.classes, row_at(a, p.i + r) + p.j*a.class_stride, a.class_stride)

# -- What elements are multiplied by

cdef inline const floating *by_class(const ce_primitives *f, const double *weight, const Piece *p,
                                     floating *scratch) noexcept nogil:
    """The number of its class for each element of a piece; NULL for ones."""
    cdef Py_ssize_t n = p.rows*p.classes, filled = p.classes, more
    if weight == NULL:
        return NULL
    f.narrow(weight + p.j, p.classes, scratch)
    while filled < n:
        more = min(filled, n - filled)
        memcpy(scratch + filled, scratch, more*sizeof(floating))
        filled += more
    return scratch

cdef inline const double *by_row(const double *weight, const Piece *p, double *scratch) noexcept nogil:
    """The number of its row for each element of a piece."""
    cdef Py_ssize_t r, k
    if p.classes == 1:
        return weight + p.i
    for r in range(p.rows):
        for k in range(p.classes):
            scratch[r*p.classes + k] = weight[p.i + r]
    return scratch

cdef inline void multiply(const floating *y, const double *factor, double scale, Py_ssize_t n,
                          double *product) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(n):
        product[k] = y[k]*(scale*factor[k])

# -- Losses and gradient

cdef inline double sigmoid_piece(const Job *job, const Piece *p, const floating *positive, const floating *weight,
                                 floating *scratch) noexcept nogil:
    """A piece, with pos_weight and weight by element. Returns the sum of its losses."""
    cdef const Request *request = job.request
    cdef const ce_primitives *f = job.plan.primitives
    cdef Matrix losses = matrix(request.losses, own_dtype(scratch), request.classes*sizeof(floating), sizeof(floating))
    cdef Py_ssize_t n = p.rows*p.classes, k
    cdef double *factors = <double *>(scratch + 7*PIECE)
    cdef double *product = factors + PIECE
    cdef const double *numbers
    cdef const double *loss_factor = NULL
    cdef const double *grad_factor = NULL
    cdef const floating *target
    cdef floating *other = NULL
    cdef floating *grad = NULL
    cdef floating *loss = NULL
    cdef double sample = 1, scale = request.scale, total
    if request.targets.dtype == F64 and own_dtype(scratch) == F32:      # 1 - c is formed before c is rounded
        numbers = load_piece(&request.targets, p, product)
        target, other = scratch + PIECE, scratch + 2*PIECE
        f.narrow(numbers, n, scratch + PIECE)
        for k in range(n):
            other[k] = <floating>(1 - numbers[k])
    else:
        target = load_piece(&request.targets, p, scratch + PIECE)
    if request.sample_weight != NULL:
        if p.rows == 1:
            sample = request.sample_weight[p.i]
            scale *= sample
        else:
            loss_factor = grad_factor = by_row(request.sample_weight, p, factors)
    if job.plan.with_grad:
        grad = place_of_piece(&request.grad, p, scratch + 3*PIECE)
        if request.upstream.data != NULL:
            numbers = load_piece(&request.upstream, p, product + PIECE)
            if grad_factor != NULL:
                multiply(numbers, grad_factor, 1, n, product + PIECE)
                numbers = product + PIECE
            grad_factor = numbers
    if request.losses != NULL:
        loss = place_of_piece(&losses, p, scratch + 4*PIECE)
    elif loss_factor != NULL:
        loss = scratch + 4*PIECE
    total = f.row_sigmoid(load_piece(&request.logits, p, scratch), target, other, positive, weight, n,
                          scale if grad_factor == NULL else 1, loss, grad)
    if loss_factor != NULL:
        multiply(loss, loss_factor, 1, n, product)
        for k in range(n):
            if loss_factor[k] == 0:     # the loss may be infinite or NaN
                product[k] = 0
        total = ce_chosen_f64.row_sum(product, n)
        if request.losses != NULL:
            f.narrow(product, n, loss)
    elif sample != 1:
        total = 0 if sample == 0 else total*sample
        for k in range(n if loss != NULL else 0):
            loss[k] = <floating>(loss[k]*sample)
    if job.plan.with_grad and grad_factor != NULL:
        multiply(grad, grad_factor, scale, n, product)
        f.narrow(product, n, grad)
    for k in range(n if sample == 0 else 0):        # they may be infinite or NaN
        if loss != NULL:
            loss[k] = 0
        if grad != NULL:
            grad[k] = 0
    for k in range(n if loss_factor != NULL and grad != NULL else 0):
        if loss_factor[k] == 0:
            grad[k] = 0
    if request.losses != NULL:
        store_piece(&losses, p, loss)
    if job.plan.with_grad:
        if request.flush_below > 0:
            f.flush_small(grad, n, request.flush_below)
        store_piece(&request.grad, p, grad)
    return total

cdef inline double sigmoid_along(const Job *job, Py_ssize_t start, Py_ssize_t stop, floating *scratch) noexcept nogil:
    """Rows start to stop - 1: several short ones, or a part of a long one at a time."""
    cdef Py_ssize_t classes = job.request.classes, parts = (classes + PIECE - 1)/PIECE, i, j
    cdef Py_ssize_t rows = PIECE/classes if parts == 1 else 1, step = (classes + parts - 1)/parts
    if job.request.sample_weight != NULL and classes >= ALONE:
        rows = 1
    cdef const floating *positive = NULL
    cdef const floating *weight = NULL
    cdef Piece p
    cdef Sum total
    set_sum(&total, 0)
    for i from start <= i < stop by rows:
        p.i, p.rows = i, min(rows, stop - i)
        for j from 0 <= j < classes by step:
            p.j, p.classes = j, min(step, classes - j)
            if i == start or parts > 1:         # else they are those of the piece before
                positive = by_class(job.plan.primitives, job.request.pos_weight, &p, scratch + 5*PIECE)
                weight = by_class(job.plan.primitives, job.request.weight, &p, scratch + 6*PIECE)
            add(&total, sigmoid_piece(job, &p, positive, weight, scratch))
    return value(&total)

cdef inline double sigmoid_across(const Job *job, Py_ssize_t start, Py_ssize_t stop, Py_ssize_t first, Py_ssize_t last,
                                  floating *scratch) noexcept nogil:
    """Classes first to last - 1 of rows start to stop - 1, which are evenly spaced."""
    cdef const floating *positive = NULL
    cdef const floating *weight = NULL
    cdef Py_ssize_t i, j
    cdef Piece p
    cdef Sum total
    set_sum(&total, 0)
    for j in range(first, last):
        p.j, p.classes = j, 1
        for i from start <= i < stop by PIECE:
            p.i, p.rows = i, min(PIECE, stop - i)
            if i == start:
                positive = by_class(job.plan.primitives, job.request.pos_weight, &p, scratch + 5*PIECE)
                weight = by_class(job.plan.primitives, job.request.weight, &p, scratch + 6*PIECE)
            add(&total, sigmoid_piece(job, &p, positive, weight, scratch))
    return value(&total)

cdef inline double sigmoid_unit(const Job *job, Py_ssize_t unit, floating *scratch) noexcept nogil:
    """A unit of work. Returns the sum of its losses."""
    cdef const Request *request = job.request
    cdef const Plan *plan = &job.plan
    cdef Py_ssize_t block = request.rows, parts, start, first
    if plan.path != BY_COLUMNS:
        start = unit*plan.unit
        return sigmoid_along(job, start, min(start + plan.unit, block), scratch)
    # Units are counted in the order of memory: blocks of rows, then classes, then rows.
    if request.logits.blocks != NULL:
        block = request.logits.rows_per_block
    parts = (block + plan.unit - 1)/plan.unit
    start, unit = unit % parts*plan.unit, unit/parts
    parts = (request.classes + plan.unit_classes - 1)/plan.unit_classes
    first, unit = unit % parts*plan.unit_classes, unit/parts
    return sigmoid_across(job, unit*block + start, unit*block + min(start + plan.unit, block), first,
                          min(first + plan.unit_classes, request.classes), scratch)
