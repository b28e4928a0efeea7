# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
# cython: embedsignature=False, freethreading_compatible=True
"""What Python and other Cython modules call. The algorithm is in _run.pxd and what it cimports."""
from cpython.buffer cimport PyBUF_RECORDS, PyBUF_RECORDS_RO, PyBuffer_Release, PyObject_GetBuffer
from cython cimport floating
from libc.math cimport exp, isfinite
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from ._blocks cimport counted_labels, number
from ._job cimport own_dtype, rescaled
from ._primitives cimport (
    CE_EXP, CE_ISA_COUNT, CE_STORED, ce_automatic_threads, ce_choose, ce_chosen_f32, ce_chosen_f64, ce_isas,
    ce_limit_threads, ce_openmp_version, ce_primitives, ce_tail_if_finite, ce_watch_forks,
)
from ._request cimport (
    F32, F64, I8, I16, I32, I64, LOG_SOFTMAX, LOG_SOFTMAX_GRAD, LOGSUMEXP, SIGMOID_TWO_TERM, SOFTMAX, SOFTMAX_GRAD,
    SOFTMAX_TWO_TERM, U8, U16, U32, U64, defaults, matrix,
)
from ._run cimport execute

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
# What other Cython modules call (_kernels.pxd)
# ---------------------------------------------------------------------------------------------------------------------

cdef int run(const Request *request) noexcept nogil:
    return execute(request)


cdef Py_ssize_t count_labels(const Matrix *labels, Py_ssize_t rows, Py_ssize_t classes, int64_t ignore_index,
                             bint has_ignore_index) noexcept nogil:
    return counted_labels(labels, rows, classes, ignore_index, has_ignore_index)


cdef inline const ce_primitives *primitives(const floating *dtype) noexcept nogil:
    return ce_chosen_f32 if own_dtype(dtype) == F32 else ce_chosen_f64


cdef inline void row_stats(const floating *x, Py_ssize_t n, double *row_max, double *tail) noexcept nogil:
    cdef const ce_primitives *f = primitives(x)
    cdef Py_ssize_t j
    f.rows_max(x, 0, 1, n, row_max)
    f.rows_exp_sum(x, 0, NULL, 0, 1, n, CE_STORED, row_max, 1, x, tail)
    tail[0] = ce_tail_if_finite(tail[0], row_max[0])
    if not isfinite(row_max[0]) and row_max[0] < 0:
        for j in range(n):
            if x[j] != x[j]:
                return
        tail[0] = -1


cdef void merge_stats(double *row_max, double *tail, double other_row_max, double other_tail) noexcept nogil:
    if other_row_max > row_max[0]:
        tail[0] = other_tail + rescaled(1 + tail[0], row_max[0], other_row_max)
        row_max[0] = other_row_max
    else:
        tail[0] += rescaled(1 + other_tail, other_row_max, row_max[0])


cdef double loss_from_stats(double row_max, double tail, double x_label) noexcept nogil:
    cdef double mass = 1, linear = row_max - x_label, log_total, loss
    ce_chosen_f64.losses(1, &row_max, &tail, &mass, &linear, 0, &log_total, &loss)
    return loss


cdef inline double row_loss(const floating *x, Py_ssize_t n, int64_t label) noexcept nogil:
    cdef double row_max, tail
    row_stats(x, n, &row_max, &tail)
    return loss_from_stats(row_max, tail, x[label])


cdef inline void row_from_stats(const floating *src, int form, Py_ssize_t n, Py_ssize_t label, double e_label,
                                double row_max, double tail, double upstream, floating *grad) noexcept nogil:
    """The gradient from logits or stored exponentials."""
    cdef const ce_primitives *f = primitives(src)
    cdef double zero = 0, one = 1, log_total, loss, a, exact_grad
    f.coefficients(1, &row_max, &tail, &one, &zero, 0, &one, &zero, &e_label, &upstream, &log_total, &loss, &a,
                   &exact_grad)
    f.rows_grad(src, 0, grad, 0, 1, n, form, &row_max, &a, &zero, NULL, &label, &exact_grad, 0)


cdef inline double row_loss_and_grad(const floating *x, Py_ssize_t n, Py_ssize_t label, double upstream,
                                     floating *grad) noexcept nogil:
    cdef const ce_primitives *f = primitives(x)
    cdef double row_max, tail, x_label = x[label]
    f.rows_max(x, 0, 1, n, &row_max)
    f.rows_exp_sum(x, 0, grad, 0, 1, n, CE_STORED, &row_max, 1, x, &tail)
    tail = ce_tail_if_finite(tail, row_max)
    row_from_stats(grad, CE_STORED, n, label, grad[label]/f.exp_one, row_max, tail, upstream, grad)
    return loss_from_stats(row_max, tail, x_label)


cdef inline void row_backward(const floating *x, Py_ssize_t n, int64_t label, double row_max, double tail,
                              double upstream, floating *grad) noexcept nogil:
    if 0 <= label < n:
        row_from_stats(x, CE_EXP, n, label, exp(x[label] - row_max), row_max, tail, upstream, grad)
    else:
        row_from_stats(x, CE_EXP, n, -1, 0, row_max, tail, upstream, grad)


cdef void softmax_stats_f32(const float *x, Py_ssize_t classes, double *row_max, double *tail) noexcept nogil:
    row_stats(x, classes, row_max, tail)


cdef void softmax_stats_f64(const double *x, Py_ssize_t classes, double *row_max, double *tail) noexcept nogil:
    row_stats(x, classes, row_max, tail)


cdef double row_loss_f32(const float *x, Py_ssize_t classes, int64_t label) noexcept nogil:
    return row_loss(x, classes, label)


cdef double row_loss_f64(const double *x, Py_ssize_t classes, int64_t label) noexcept nogil:
    return row_loss(x, classes, label)


cdef double row_loss_and_grad_f32(const float *x, Py_ssize_t classes, int64_t label, double upstream,
                                  float *grad) noexcept nogil:
    return row_loss_and_grad(x, classes, label, upstream, grad)


cdef double row_loss_and_grad_f64(const double *x, Py_ssize_t classes, int64_t label, double upstream,
                                  double *grad) noexcept nogil:
    return row_loss_and_grad(x, classes, label, upstream, grad)


cdef void row_grad_f32(const float *x, Py_ssize_t classes, int64_t label, double row_max, double tail, double upstream,
                       float *grad) noexcept nogil:
    row_backward(x, classes, label, row_max, tail, upstream, grad)


cdef void row_grad_f64(const double *x, Py_ssize_t classes, int64_t label, double row_max, double tail, double upstream,
                       double *grad) noexcept nogil:
    row_backward(x, classes, label, row_max, tail, upstream, grad)


# ---------------------------------------------------------------------------------------------------------------------
# What Python calls
# ---------------------------------------------------------------------------------------------------------------------

cdef inline void set_matrix(Matrix *a, void *data, int dtype, const Py_ssize_t[::1] blocks, Py_ssize_t rows_per_block,
                            Py_ssize_t row_stride, Py_ssize_t class_stride) noexcept:
    a[0] = matrix(data, dtype, row_stride, class_stride)
    if blocks is not None:
        a.blocks, a.rows_per_block = &blocks[0], rows_per_block


cdef void run_request(const Request *request) except *:
    cdef int status
    with nogil:
        status = run(request)
    if status == -1:
        raise MemoryError(f"no memory to work on {request.rows} rows of {request.classes} classes")
    if status != 0:
        raise RuntimeError(status)


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
    cdef Matrix a = matrix(&labels[0], I64, sizeof(int64_t), 0)
    return count_labels(&a, labels.shape[0], classes, 0 if ignored is None else ignored, ignored is not None)


def cross_entropy(
    const floating[:, :] x, const Py_ssize_t[::1] x_blocks, Py_ssize_t positions, const int64_t[::1] labels,
    Targets targets, ignored, const double[::1] weight, const floating[::1] weight_t, double smoothing, double z_loss,
    double factor, const double[::1] sample, const double[::1] upstream, bint with_loss, floating[::1] losses,
    floating[::1] row_max, floating[::1] tail, bint stats_given, int threads, floating[:, :] g,
    const Py_ssize_t[::1] g_blocks,
):
    cdef Request request
    cdef double total = 0
    cdef int dtype = own_dtype(<floating *>NULL)
    defaults(&request)
    request.rows, request.classes = positions, x.shape[1]
    set_matrix(&request.logits, <void *>&x[0, 0], dtype, x_blocks, x.shape[0], x.strides[0], x.strides[1])
    if g is not None:
        set_matrix(&request.grad, &g[0, 0], dtype, g_blocks, g.shape[0], g.strides[0], g.strides[1])
    request.label_smoothing, request.z_loss, request.scale = smoothing, z_loss, factor
    if weight is not None:
        request.weight = &weight[0]
    request.has_ignore_index = ignored is not None
    if labels is not None:
        request.labels = matrix(&labels[0], I64, sizeof(int64_t), 0)
        if ignored is not None:
            request.ignore_index = ignored
        request.counted = positions
    else:
        set_matrix(&request.targets, targets.data, targets.dtype, targets.blocks, targets.per_block,
                   targets.by_position, targets.by_class)
    if with_loss:
        request.total = &total
    if sample is not None:
        request.sample_weight = &sample[0]
    if upstream is not None:
        request.upstream = matrix(&upstream[0], F64, sizeof(double), 0)
    if losses is not None:
        request.losses = &losses[0]
    if row_max is not None:
        request.row_max = &row_max[0]
    if tail is not None:
        request.tail = &tail[0]
    request.stats_given, request.num_threads = stats_given, threads
    run_request(&request)
    return total


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
    cdef Request request
    cdef Py_ssize_t kept, n = x.shape[0]
    cdef int status
    defaults(&request)
    request.labels = matrix(labels.buf, I64, sizeof(int64_t), 0)
    kept = count_labels(&request.labels, n, x.shape[1], ignored, True)
    if kept <= 0:
        return 1
    request.rows, request.classes = n, x.shape[1]
    request.counted, request.ignore_index, request.num_threads = kept, ignored, threads
    request.logits = matrix(x.buf, own_dtype(dtype), x.strides[0], x.strides[1])
    if g != NULL:
        request.grad = matrix(g.buf, own_dtype(dtype), g.strides[0], g.strides[1])
    request.scale = 1.0/kept if mean else 1
    request.total = loss
    status = run(&request)
    if status != 0:
        return status
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
    const floating[:, :] x, const Py_ssize_t[::1] x_blocks, Py_ssize_t positions, bint log, floating[:, :] y,
    const Py_ssize_t[::1] y_blocks, floating[::1] lse, int threads,
):
    cdef Request request
    cdef int dtype = own_dtype(<floating *>NULL)
    defaults(&request)
    request.rows, request.classes, request.num_threads = positions, x.shape[1], threads
    set_matrix(&request.logits, <void *>&x[0, 0], dtype, x_blocks, x.shape[0], x.strides[0], x.strides[1])
    if y is not None:
        request.operation = LOG_SOFTMAX if log else SOFTMAX
        set_matrix(&request.grad, &y[0, 0], dtype, y_blocks, y.shape[0], y.strides[0], y.strides[1])
    else:
        request.operation, request.losses = LOGSUMEXP, &lse[0]
    run_request(&request)


def vector_jacobian(
    const floating[:, :] y, const Py_ssize_t[::1] y_blocks, Py_ssize_t positions, Targets upstream, bint log,
    floating[:, :] g, const Py_ssize_t[::1] g_blocks, int threads,
):
    cdef Request request
    cdef int dtype = own_dtype(<floating *>NULL)
    defaults(&request)
    request.operation = LOG_SOFTMAX_GRAD if log else SOFTMAX_GRAD
    request.rows, request.classes, request.num_threads = positions, y.shape[1], threads
    set_matrix(&request.y, <void *>&y[0, 0], dtype, y_blocks, y.shape[0], y.strides[0], y.strides[1])
    set_matrix(&request.upstream, upstream.data, upstream.dtype, upstream.blocks, upstream.per_block,
               upstream.by_position, upstream.by_class)
    set_matrix(&request.grad, &g[0, 0], dtype, g_blocks, g.shape[0], g.strides[0], g.strides[1])
    run_request(&request)


def two_term(
    const floating[:, :] x, const Py_ssize_t[::1] x_blocks, Py_ssize_t positions, Targets targets, bint softmax,
    const double[::1] weight, const double[::1] pos_weight, double factor, const double[::1] sample,
    const double[::1] upstream, floating[::1] losses, floating[:, :] g, const Py_ssize_t[::1] g_blocks, int threads,
):
    cdef Request request
    cdef double total = 0
    cdef int dtype = own_dtype(<floating *>NULL)
    defaults(&request)
    request.operation = SOFTMAX_TWO_TERM if softmax else SIGMOID_TWO_TERM
    request.rows, request.classes, request.scale, request.num_threads = positions, x.shape[1], factor, threads
    set_matrix(&request.logits, <void *>&x[0, 0], dtype, x_blocks, x.shape[0], x.strides[0], x.strides[1])
    set_matrix(&request.targets, targets.data, targets.dtype, targets.blocks, targets.per_block,
               targets.by_position, targets.by_class)
    if g is not None:
        set_matrix(&request.grad, &g[0, 0], dtype, g_blocks, g.shape[0], g.strides[0], g.strides[1])
    if weight is not None:
        request.weight = &weight[0]
    if pos_weight is not None:
        request.pos_weight = &pos_weight[0]
    if sample is not None:
        request.sample_weight = &sample[0]
    if upstream is not None:
        request.upstream = matrix(&upstream[0], F64, sizeof(double)*(1 if softmax else request.classes), sizeof(double))
    if losses is not None:
        request.losses = &losses[0]
    request.total = &total
    run_request(&request)
    return total


def limit_threads(int quota):
    """No call uses more threads than this by itself; 0: no limit."""
    ce_limit_threads(quota)


def automatic_threads():
    """How many threads a large call from this thread would use."""
    return ce_automatic_threads()


def select(name):
    """Chooses an instruction set by name, or the best when that is None; returns its name, or None if it is not here."""
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
