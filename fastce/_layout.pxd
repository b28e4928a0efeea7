# cython: cdivision=True
# How the buffers of N-dimensional arrays become matrices of rows and classes. Nothing here raises.
#
# A row is a position along all axes but the class axis. Rows are counted in the order of the logits' memory, so that a
# kernel walks any dense array from its first byte to its last, however its axes are ordered.
from libc.stdint cimport int16_t
from libc.stdlib cimport malloc

from ._request cimport F16, F32, F64, I8, I16, I32, I64, NO_DTYPE, U8, U16, U32, U64, Matrix


cdef enum:
    MAX_DIMENSIONS = 64             # NumPy's limit


cdef struct Axes:
    # The axes of the logits.
    int ndim
    int class_axis
    int order[MAX_DIMENSIONS]       # the other axes, outermost first: the order in which rows are counted
    bint sorted                     # they are in the order of the array's own axes


cdef struct Span:
    # The bytes that an array occupies.
    size_t first
    size_t end


cdef inline bint is_native(char byte_order) noexcept nogil:
    cdef int16_t one = 1
    cdef bint little_endian = (<const char *>&one)[0] == 1
    return byte_order == b"@" or byte_order == b"=" or (byte_order == b"<" and little_endian) or (
        byte_order == b">" and not little_endian)


cdef inline int dtype_of(const Py_buffer *a) noexcept nogil:
    """The dtype of a buffer in native byte order; NO_DTYPE for any other kind of buffer. Bools are U8."""
    cdef const char *format = a.format + 1 if is_native(a.format[0]) else a.format
    cdef char code = format[0]
    if code == 0 or format[1] != 0:
        return NO_DTYPE
    if code == b"f":
        return F32
    if code == b"d":
        return F64
    if code == b"e":
        return F16
    if code == b"b" or code == b"h" or code == b"i" or code == b"l" or code == b"q":
        return I8 if a.itemsize == 1 else I16 if a.itemsize == 2 else I32 if a.itemsize == 4 else I64
    if code == b"B" or code == b"H" or code == b"I" or code == b"L" or code == b"Q" or code == b"?":
        return U8 if a.itemsize == 1 else U16 if a.itemsize == 2 else U32 if a.itemsize == 4 else U64
    return NO_DTYPE


cdef inline bint is_aligned(const Py_buffer *a) noexcept nogil:
    cdef size_t bits = <size_t>a.buf
    cdef int k
    for k in range(a.ndim):
        if a.shape[k] == 0:
            return True
        if a.shape[k] > 1:
            bits |= <size_t>a.strides[k]
    return bits % <size_t>a.itemsize == 0


cdef inline bint is_c_contiguous(const Py_buffer *a) noexcept nogil:
    cdef Py_ssize_t stride = a.itemsize
    cdef int k
    for k in range(a.ndim - 1, -1, -1):
        if a.shape[k] != 1 and a.strides[k] != stride:
            return False
        stride *= a.shape[k]
    return True


cdef inline bint is_dense(const Py_buffer *a) noexcept nogil:
    """Whether an array has no gaps, in C or Fortran order."""
    cdef Py_ssize_t stride = a.itemsize
    cdef int k
    if is_c_contiguous(a):
        return True
    for k in range(a.ndim):
        if a.shape[k] != 1 and a.strides[k] != stride:
            return False
        stride *= a.shape[k]
    return True


cdef inline bint same_shape(const Py_buffer *a, const Py_buffer *b, int without) noexcept nogil:
    """Whether a has the shape of b. Axis `without` of b is left out, unless it is -1."""
    cdef int k, ndim = 0
    for k in range(b.ndim):
        if k != without:
            if ndim >= a.ndim or a.shape[ndim] != b.shape[k]:
                return False
            ndim += 1
    return a.ndim == ndim


cdef inline Span span_of(const Py_buffer *a) noexcept nogil:
    cdef Span s
    cdef int k
    s.first = s.end = <size_t>a.buf
    for k in range(a.ndim):
        if a.shape[k] == 0:
            s.end = s.first
            return s
        if a.strides[k] < 0:
            s.first += (a.shape[k] - 1)*a.strides[k]
        else:
            s.end += (a.shape[k] - 1)*a.strides[k]
    s.end += a.itemsize
    return s


cdef inline bint overlap(const Py_buffer *a, const Py_buffer *b) noexcept nogil:
    """Whether the memory of two arrays may overlap."""
    cdef Span s = span_of(a), t = span_of(b)
    return s.first < t.end and t.first < s.end


cdef inline bint same_memory(const Py_buffer *a, const Py_buffer *b) noexcept nogil:
    """Whether two arrays of one shape and dtype are the same element for element."""
    cdef int k
    for k in range(a.ndim):
        if a.strides[k] != b.strides[k]:
            return False
    return a.buf == b.buf


cdef inline Py_ssize_t rows_of(const Py_buffer *logits, int class_axis) noexcept nogil:
    cdef Py_ssize_t rows = 1
    cdef int k
    for k in range(logits.ndim):
        rows *= 1 if k == class_axis else logits.shape[k]
    return rows


cdef inline Py_ssize_t length(Py_ssize_t stride) noexcept nogil:
    return -stride if stride < 0 else stride


cdef inline Axes axes_of(const Py_buffer *logits, int class_axis) noexcept nogil:
    cdef Axes axes
    cdef int k, at, n = 0
    axes.ndim, axes.class_axis, axes.sorted = logits.ndim, class_axis, True
    for k in range(logits.ndim):
        if k == class_axis:
            continue
        at = n          # insertion sort: axes of equal strides keep their order
        while at > 0 and length(logits.strides[axes.order[at - 1]]) < length(logits.strides[k]):
            axes.order[at] = axes.order[at - 1]
            at -= 1
        axes.order[at] = k
        axes.sorted = axes.sorted and at == n
        n += 1
    return axes


cdef inline int as_matrix(const Py_buffer *a, const Axes *axes, int dtype, Py_ssize_t rows, Matrix *m,
                          void **blocks) noexcept nogil:
    """Describes an array that has the shape of the logits, or that shape without the class axis. Rows at more than one
    distance need an array of offsets, which is allocated and left at `blocks`. Returns -1 where memory lacks."""
    cdef bint by_class = a.ndim == axes.ndim
    cdef Py_ssize_t strides[MAX_DIMENSIONS]
    cdef Py_ssize_t shape[MAX_DIMENSIONS]
    cdef Py_ssize_t index[MAX_DIMENSIONS]
    cdef Py_ssize_t count = 1, offset = 0, b
    cdef Py_ssize_t *offsets
    cdef int k, at, outer = axes.ndim - 1
    for k in range(outer):
        at = axes.order[k]
        if not by_class and at > axes.class_axis:
            at -= 1
        strides[k], shape[k], index[k] = a.strides[at], a.shape[at], 0
    m.data, m.dtype = <char *>a.buf, dtype
    m.class_stride = a.strides[axes.class_axis] if by_class else 0
    m.row_stride = 0
    while outer > 0:    # axes whose rows are at one distance from each other count as one
        if shape[outer - 1] != 1:
            if count != 1 and strides[outer - 1] != count*m.row_stride:
                break
            if count == 1:
                m.row_stride = strides[outer - 1]
            count *= shape[outer - 1]
        outer -= 1
    m.blocks, m.rows_per_block = NULL, count
    if outer == 0 or rows == 0:
        return 0
    offsets = <Py_ssize_t *>malloc(rows/count*sizeof(Py_ssize_t))
    if offsets == NULL:
        return -1
    for b in range(rows/count):
        offsets[b] = offset
        k = outer - 1
        while k >= 0:   # the next position along the outer axes
            index[k] += 1
            offset += strides[k]
            if index[k] < shape[k]:
                break
            offset -= shape[k]*strides[k]
            index[k] = 0
            k -= 1
    m.blocks, blocks[0] = offsets, offsets
    return 0
