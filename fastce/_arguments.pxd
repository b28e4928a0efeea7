# cython: cdivision=True
# The arguments of one call as they become a request: arrays are held through the buffer protocol, and checked.
#
# An array that is plain, aligned and in native byte order is used where it lies. _checks.py converts all others, and
# makes the errors; it is reached through `Arguments`, because a .pxd cannot import Python modules.
from cpython.buffer cimport PyBUF_RECORDS_RO, PyBuffer_Release, PyObject_GetBuffer
from cpython.object cimport PyObject
from libc.math cimport ilogb, ldexp
from libc.stdlib cimport free

from ._blocks cimport counted_labels, mean_weight
from ._layout cimport (
    Axes, as_matrix, axes_of, dtype_of, is_aligned, is_c_contiguous, overlap, rows_of, same_memory, same_shape,
)
from ._request cimport (
    BF16, CROSS_ENTROPY, EVALUATE, F16, F32, F64, LOGSUMEXP, NO_DTYPE, SIGMOID_TWO_TERM, U64, Matrix, Request,
    computed_dtype, is_half, takes_half,
)

cdef enum:              # the arrays of a call
    INPUT, TARGETS, INT64_LABELS, UPSTREAM, WEIGHT, POS_WEIGHT, SAMPLE_WEIGHT, ROW_MAX, TAIL, VECTORS, OUT, OUT_HESS,
    RESULT, RESULT_HESS, ARRAYS

cdef enum:              # reductions
    MEAN, SUM, NONE


cdef struct Arguments:
    PyObject *checks                # the module _checks
    PyObject *ndarray               # numpy.ndarray
    PyObject *input_name            # "logits", "x" or "y"
    PyObject *targets_name          # "targets", "target_logits" or "labels"
    bint is_product                 # the arguments are upstream and y; else logits, or logits and targets
    bint with_hess                  # out is a pair
    bint with_curvature             # second derivatives are computed, which are not of float16 and bfloat16
    bint integers                   # integer logits are not converted to float64
    bint converted                  # view[INPUT] is the caller's array in float32, and so is the result at first
    PyObject *dtype                 # of the result in the shape of the logits, or y
    PyObject *out                   # as it was given, or NULL
    PyObject *out_hess              # the second one
    Py_buffer view[ARRAYS]          # obj is NULL where there is no such array; view[INPUT] is the logits or y
    void *blocks[ARRAYS]            # offsets that the matrix of an array points to
    Axes axes
    PyObject *ignore_index          # as it was given, or NULL
    int reduction
    double normalizer               # 0: not given
    double denominator
    bint return_stats
    bint return_rows
    Request request


cdef inline void release(Arguments *a) noexcept:
    cdef int k
    for k in range(ARRAYS):
        if <PyObject *>a.view[k].obj != NULL:
            PyBuffer_Release(&a.view[k])
        free(a.blocks[k])


cdef inline object checks(Arguments *a):
    return <object>a.checks


cdef inline int hold(Arguments *a, int at, object array, int flags) except -1:
    PyBuffer_Release(&a.view[at])
    PyObject_GetBuffer(array, &a.view[at], flags)
    return 0


cdef inline int take(Arguments *a, int at, object value) except -1:
    """Hold a plain, aligned, native array and return its dtype. For anything else, hold nothing: NO_DTYPE."""
    cdef int dtype = NO_DTYPE
    if type(value) is not <object>a.ndarray:
        return NO_DTYPE
    try:
        hold(a, at, value, PyBUF_RECORDS_RO)
        dtype = dtype_of(&a.view[at])
    except (BufferError, TypeError, ValueError):    # a dtype that the buffer protocol does not know
        return NO_DTYPE
    if dtype == NO_DTYPE or not is_aligned(&a.view[at]):
        PyBuffer_Release(&a.view[at])
        return NO_DTYPE
    return dtype


cdef inline object exported(Arguments *a, object array):
    """An array that the buffer protocol knows: of bfloat16 numbers, their bits."""
    return checks(a).bits_of(array) if checks(a).is_bfloat16(array.dtype) else array


cdef inline int take_half(Arguments *a, int at, object array) except -1:
    """The same for an array that _checks.py has made, which may contain bfloat16 numbers."""
    cdef int dtype = take(a, at, array)
    if dtype == NO_DTYPE and checks(a).is_bfloat16(array.dtype):
        take(a, at, checks(a).bits_of(array))
        return BF16
    return dtype


cdef inline int take_converted(Arguments *a, int at, object array, str name) except -1:
    """The same, where it cannot be anything else."""
    cdef int dtype = take_half(a, at, array)
    if dtype == NO_DTYPE:
        raise TypeError(f"{name} has dtype {array.dtype}, which cannot be read")
    return dtype


cdef inline int take_real(Arguments *a, int at, object value, str name) except -1:
    """Hold an array-like of any real dtype, converted if it must be."""
    cdef int dtype = take(a, at, value)
    return dtype if dtype != NO_DTYPE else take_converted(a, at, checks(a).as_real(name, value), name)


cdef inline int set_matrix(Arguments *a, int at, int dtype, Matrix *m) except -1:
    if as_matrix(&a.view[at], &a.axes, dtype, a.request.rows, m, &a.blocks[at]) != 0:
        raise MemoryError(f"no memory for the offsets of {a.request.rows} rows")
    return 0


cdef inline const void *by_row(Arguments *a, int at, int dtype, int wanted) except? NULL:
    """The numbers of an array by row: contiguous, in the order in which rows are counted, of the wanted dtype."""
    cdef Matrix m
    if dtype == wanted and a.axes.sorted and is_c_contiguous(&a.view[at]):
        return a.view[at].buf
    set_matrix(a, at, dtype, &m)
    if dtype != wanted or m.blocks != NULL or (m.row_stride != a.view[at].itemsize and a.request.rows > 1):
        array = a.view[at].obj.transpose(row_axes(a))
        hold(a, at, checks(a).contiguous(array, checks(a).F32 if wanted == F32 else checks(a).F64), PyBUF_RECORDS_RO)
    return a.view[at].buf


cdef inline int stored_dtype(Arguments *a) noexcept:
    """The dtype of the logits, or y, and of what the kernels write in their shape."""
    return a.request.y.dtype if a.is_product else a.request.logits.dtype


cdef inline int input_dtype(Arguments *a) noexcept:
    """What the logits, or y, are computed in: the dtype of losses and stats."""
    return computed_dtype(stored_dtype(a))


cdef inline object numbers_dtype(Arguments *a):
    """The same as a NumPy dtype."""
    return checks(a).F32 if input_dtype(a) == F32 else checks(a).F64


cdef inline tuple row_shape(Arguments *a):
    cdef tuple shape = a.view[INPUT].obj.shape
    return shape[:a.axes.class_axis] + shape[a.axes.class_axis + 1:]


cdef inline list row_axes(Arguments *a):
    """The axes of an array by row, in the order in which rows are counted."""
    return [a.axes.order[k] - (a.axes.order[k] > a.axes.class_axis) for k in range(a.axes.ndim - 1)]

# --- Positional arguments --------------------------------------------------------------------------------------------


cdef inline object set_input(Arguments *a, object value, PyObject *axis):
    """The logits, or y, and how their rows are counted. Returns an array of them, in the dtype of the result."""
    cdef str name = <str>a.input_name
    cdef int dtype = take(a, INPUT, value), at
    cdef Py_buffer *view = &a.view[INPUT]
    cdef Request *r = &a.request
    if dtype != F32 and dtype != F64 and (dtype == NO_DTYPE or dtype == F16 or not a.integers):
        if dtype != F16:
            value = checks(a).as_logits(name, value, a.integers)
            dtype = take_converted(a, INPUT, value, name)
        a.converted = is_half(dtype) and (a.with_curvature or not takes_half(r.operation))
        if a.converted:
            dtype = take_converted(a, INPUT, checks(a).converted(value, checks(a).F32), name)
    if view.ndim == 0:
        raise ValueError(f"{name} is a scalar, expected at least one dimension: the classes")
    at = view.ndim - 1 if axis == NULL else checks(a).as_axis(<object>axis, view.ndim)
    if view.shape[at] == 0 and r.operation != LOGSUMEXP:       # the logarithm of an empty sum is -inf
        raise ValueError(f"{name} has shape {value.shape}: no classes on axis {at}")
    r.classes, r.rows, a.axes = view.shape[at], rows_of(view, at), axes_of(view, at)
    set_matrix(a, INPUT, dtype, &r.y if a.is_product else &r.logits)
    return value


cdef inline int set_targets(Arguments *a, object value) except -1:
    """Class indices or probabilities, told apart by their shape."""
    cdef int dtype = take(a, TARGETS, value)
    cdef const Py_buffer *view = &a.view[TARGETS]
    cdef bint may_be_labels = a.request.operation == CROSS_ENTROPY or a.request.operation == EVALUATE
    cdef bint may_be_rows = a.request.operation != EVALUATE
    cdef str name = <str>a.targets_name
    if dtype == NO_DTYPE:
        value = checks(a).as_targets(value, a.view[INPUT].obj.shape, name)
        dtype = take_half(a, TARGETS, value)
    if dtype == NO_DTYPE:
        raise checks(a).targets_error(value, a.view[INPUT].obj.shape, a.axes.class_axis, may_be_labels, may_be_rows,
                                      name)
    if may_be_rows and same_shape(view, &a.view[INPUT], -1):
        return set_matrix(a, TARGETS, dtype, &a.request.targets)
    if (not may_be_labels or dtype >= F32 or view.format[0] == b"?"
            or not same_shape(view, &a.view[INPUT], a.axes.class_axis)):
        raise checks(a).targets_error(value, a.view[INPUT].obj.shape, a.axes.class_axis, may_be_labels, may_be_rows,
                                      name)
    return set_matrix(a, TARGETS, dtype, &a.request.labels)


cdef inline int set_upstream(Arguments *a, object value) except -1:
    """One number for each row, or for each element."""
    cdef bint by_class = a.request.operation == SIGMOID_TWO_TERM or a.is_product
    cdef int wanted = input_dtype(a) if a.is_product else F64
    cdef int dtype = take_real(a, UPSTREAM, value, "upstream")
    cdef const Py_buffer *view = &a.view[UPSTREAM]
    if view.ndim == 0 and not a.is_product:
        a.request.scale = view.obj
        return 0
    if not same_shape(view, &a.view[INPUT], -1 if by_class else a.axes.class_axis):
        raise checks(a).upstream_error(view.obj, a.view[INPUT].obj.shape if by_class else row_shape(a),
                                     a.is_product)
    if dtype != wanted:
        array = checks(a).converted(view.obj, checks(a).F32 if wanted == F32 else checks(a).F64)
        dtype = take_converted(a, UPSTREAM, array, "upstream")
    return set_matrix(a, UPSTREAM, dtype, &a.request.upstream)


cdef inline int set_vectors(Arguments *a, object value) except -1:
    """What the Hessian is multiplied by: one number for each element."""
    cdef int wanted = a.request.logits.dtype, dtype = take_real(a, VECTORS, value, "vectors")
    cdef const Py_buffer *view = &a.view[VECTORS]
    if not same_shape(view, &a.view[INPUT], -1):
        raise checks(a).vectors_error(view.obj, a.view[INPUT].obj.shape)
    if dtype != wanted:
        array = checks(a).converted(view.obj, checks(a).F32 if wanted == F32 else checks(a).F64)
        dtype = take_converted(a, VECTORS, array, "vectors")
    return set_matrix(a, VECTORS, dtype, &a.request.vectors)

# --- What follows from the arguments ---------------------------------------------------------------------------------


cdef inline int brought_to_one(Arguments *a, int at, const double **weights, Py_ssize_t n) except? 9999:
    """Multiply weights by a power of two that brings the largest to 1 or above, below 2. Returns its exponent."""
    cdef double largest = 0
    cdef int exponent
    cdef Py_ssize_t i
    for i in range(n):
        largest = max(largest, weights[0][i])
    if largest == 0:
        return 0
    exponent = -ilogb(largest)
    hold(a, at, checks(a).as_array("weights", [ldexp(weights[0][i], exponent) for i in range(n)]), PyBUF_RECORDS_RO)
    weights[0] = <const double *>a.view[at].buf
    return exponent


cdef inline int scale_weights(Arguments *a) except -1:
    """Scale the weights that a mean divides by, which does not change the mean. Else their sum, or a weight divided by
    it, could overflow, and small weights would be rounded as subnormal numbers."""
    cdef Request *r = &a.request
    if r.sample_weight != NULL:
        brought_to_one(a, SAMPLE_WEIGHT, &r.sample_weight, r.rows)
    if r.weight != NULL and r.labels.data != NULL:
        r.z_loss = ldexp(r.z_loss, brought_to_one(a, WEIGHT, &r.weight, r.classes))
    return 0


cdef inline int set_denominator(Arguments *a) except -1:
    """Count the labels, and find what a mean divides by."""
    cdef Request *r = &a.request
    if r.labels.data != NULL:
        ignored = r.ignore_index if a.ignore_index == NULL else <object>a.ignore_index
        if r.labels.dtype == U64 and not r.has_ignore_index and ignored is not None:    # int64 does not hold it
            array = checks(a).as_int64(a.view[TARGETS].obj, ignored)
            set_matrix(a, INT64_LABELS, take_converted(a, INT64_LABELS, array, <str>a.targets_name), &r.labels)
            r.ignore_index, r.has_ignore_index = -1, True
        r.counted = counted_labels(&r.labels, r.rows, r.classes, r.ignore_index, r.has_ignore_index)
        if r.counted < 0:
            raise checks(a).label_error(a.view[TARGETS].obj, r.classes, ignored, <str>a.targets_name)
    if a.reduction == MEAN:
        a.denominator = a.normalizer if a.normalizer != 0 else mean_weight(r)
        if a.normalizer == 0 and not 2.0**-64 <= a.denominator <= 2.0**64:
            scale_weights(a)
            a.denominator = mean_weight(r)
        r.scale = r.scale/a.denominator if a.denominator != 0 else 0
    return 0


cdef inline bint out_overlaps(Arguments *a, int at) noexcept:
    """Whether `out` shares memory with an argument, except where each element is read before it is written."""
    cdef int k
    for k in range(OUT):
        if <PyObject *>a.view[k].obj != NULL and overlap(&a.view[at], &a.view[k]):
            if not ((k == INPUT or k == VECTORS or a.is_product) and same_memory(&a.view[at], &a.view[k])):
                return True
    return False
