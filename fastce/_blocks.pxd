# cython: cdivision=True
# Between arrays and scratch: blocks of rows, tiles, labels.
from cython cimport floating
from libc.math cimport INFINITY
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from ._job cimport Job, State, Sum, add, own_dtype, set_sum, value
from ._primitives cimport (
    CE_BY_CLASS, CE_MAX_LANES, CE_ONES, ce_chosen_f32, ce_chosen_f64, ce_from_bf16, ce_from_f16, ce_primitives,
)
from ._request cimport F16, F32, F64, I8, I16, I32, I64, SIGMOID_TWO_TERM, U8, U16, U32, U64, Matrix, Request, is_half

cdef fused number:
    int8_t
    int16_t
    int32_t
    int64_t
    uint8_t
    uint16_t
    uint32_t
    uint64_t
    float
    double

cdef fused scratch_number:
    int64_t
    float
    double

cdef inline char *row_at(const Matrix *a, Py_ssize_t i) noexcept nogil:
    if a.blocks == NULL:
        return a.data + i*a.row_stride
    return a.data + a.blocks[i / a.rows_per_block] + (i % a.rows_per_block)*a.row_stride

cdef inline Py_ssize_t evenly_spaced(const Matrix *a, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    """How many of n rows from i on are row_stride apart."""
    return n if a.blocks == NULL else min(n, a.rows_per_block - i % a.rows_per_block)

cdef inline void gather_as(const number *dtype, const char *src, Py_ssize_t stride, Py_ssize_t n, scratch_number *dst,
                           Py_ssize_t step) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(n):
        dst[k*step] = <scratch_number>(<const number *>(src + k*stride))[0]

cdef inline void gather_half(int dtype, const char *src, Py_ssize_t stride, Py_ssize_t n, scratch_number *dst,
                             Py_ssize_t step) noexcept nogil:
    cdef Py_ssize_t k
    cdef uint16_t bits
    if scratch_number is float:
        if stride == 2 and step == 1:
            ce_chosen_f32.convert(dtype, src, n, dst)
            return
    for k in range(n):
        bits = (<const uint16_t *>(src + k*stride))[0]
        dst[k*step] = <scratch_number>(ce_from_f16(bits) if dtype == F16 else ce_from_bf16(bits))

cdef inline void gather(int dtype, const char *src, Py_ssize_t stride, Py_ssize_t n, scratch_number *dst,
                        Py_ssize_t step) noexcept nogil:
    """dst[k*step] = the k-th number of that dtype at src."""
    if is_half(dtype): gather_half(dtype, src, stride, n, dst, step)
    elif dtype == F32: gather_as(<const float *>NULL, src, stride, n, dst, step)
    elif dtype == F64: gather_as(<const double *>NULL, src, stride, n, dst, step)
    elif dtype == I8: gather_as(<const int8_t *>NULL, src, stride, n, dst, step)
    elif dtype == I16: gather_as(<const int16_t *>NULL, src, stride, n, dst, step)
    elif dtype == I32: gather_as(<const int32_t *>NULL, src, stride, n, dst, step)
    elif dtype == I64: gather_as(<const int64_t *>NULL, src, stride, n, dst, step)
    elif dtype == U8: gather_as(<const uint8_t *>NULL, src, stride, n, dst, step)
    elif dtype == U16: gather_as(<const uint16_t *>NULL, src, stride, n, dst, step)
    elif dtype == U32: gather_as(<const uint32_t *>NULL, src, stride, n, dst, step)
    elif dtype == U64: gather_as(<const uint64_t *>NULL, src, stride, n, dst, step)

cdef inline void scatter(int dtype, const floating *src, Py_ssize_t n, char *dst, Py_ssize_t stride,
                         bint stream) noexcept nogil:
    """The k-th number of that dtype at dst = src[k], which is rounded to F16 or BF16. With stream, contiguous ones of
    these are written past the caches."""
    cdef uint16_t bits[512]
    cdef Py_ssize_t k, j, m
    if dtype == own_dtype(src):
        for k in range(n):
            (<floating *>(dst + k*stride))[0] = src[k]
        return
    if floating is float:
        if stride == 2:
            ce_chosen_f32.to_half(dtype, src, n, dst, stream)
            return
        for j from 0 <= j < n by 512:
            m = min(n - j, 512)
            ce_chosen_f32.to_half(dtype, src + j, m, bits, False)
            for k in range(m):
                (<uint16_t *>(dst + (j + k)*stride))[0] = bits[k]

cdef inline Py_ssize_t size_of(int dtype) noexcept nogil:
    """The bytes of a number."""
    if dtype == I8 or dtype == U8:
        return 1
    if dtype == I16 or dtype == U16 or is_half(dtype):
        return 2
    return 4 if dtype == I32 or dtype == U32 or dtype == F32 else 8

# -- Targets

cdef inline bint may_be_wrong(const Matrix *a, Py_ssize_t start, Py_ssize_t stop, Py_ssize_t first,
                              Py_ssize_t last) noexcept nogil:
    """Whether one of the targets of rows start to stop - 1 and classes first to last - 1 is negative, infinite or NaN,
    or -0, which is right."""
    cdef Py_ssize_t size = size_of(a.dtype), i = start, n, k
    cdef const ce_primitives *f = ce_chosen_f64
    cdef uint64_t limit = <uint64_t>1 << (8*size - 1)       # the sign
    cdef const char *at
    cdef bint wrong = False
    if a.dtype == U8 or a.dtype == U16 or a.dtype == U32 or a.dtype == U64:
        return False
    # Infinity: the sign without the lowest bit of the exponent.
    if a.dtype == F32:
        limit -= <uint64_t>1 << 23
    elif a.dtype == F64:
        limit -= <uint64_t>1 << 52
    elif is_half(a.dtype):
        limit -= <uint64_t>1 << (10 if a.dtype == F16 else 7)
    while i < stop:
        n, at = evenly_spaced(a, i, stop - i), row_at(a, i) + first*a.class_stride
        if a.class_stride == size and a.row_stride == (last - first)*size:
            wrong |= f.largest_bits(at, n*(last - first), size) >= limit
        elif a.class_stride == size:
            for k in range(n):
                wrong |= f.largest_bits(at + k*a.row_stride, last - first, size) >= limit
        elif a.row_stride == size:
            for k in range(last - first):
                wrong |= f.largest_bits(at + k*a.class_stride, n, size) >= limit
        else:
            for k in range(n*(last - first)):
                wrong |= f.largest_bits(at + k/(last - first)*a.row_stride + k % (last - first)*a.class_stride, 1,
                                        size) >= limit
        i += n
    return wrong

# -- Rows

cdef inline const floating *block(const Matrix *a, Py_ssize_t i, Py_ssize_t j, Py_ssize_t n,
                                  floating *scratch) noexcept nogil:
    """n numbers of row i from class j on, contiguous: where they lie, or gathered into scratch."""
    cdef const char *src = row_at(a, i) + j*a.class_stride
    if a.class_stride == sizeof(floating) and a.dtype == own_dtype(scratch):
        return <const floating *>src
    if a.class_stride == size_of(a.dtype):
        if floating is float:
            ce_chosen_f32.convert(a.dtype, src, n, scratch)
        else:
            ce_chosen_f64.convert(a.dtype, src, n, scratch)
    else:
        gather(a.dtype, src, a.class_stride, n, scratch, 1)
    return scratch

cdef inline const floating *capped(const Job *job, const floating *x, Py_ssize_t n, floating *scratch,
                                   floating *slope) noexcept nogil:
    """n logits: x, or with a softcap what is made of them in scratch, which may be x. Then slope receives the
    derivatives, unless it is NULL."""
    if job.request.softcap == 0:
        return x
    job.plan.primitives.softcap(x, n, job.request.softcap, scratch, slope)
    return scratch

cdef inline const floating *logits_block(const Job *job, Py_ssize_t i, Py_ssize_t j, Py_ssize_t n, floating *scratch,
                                         floating *slope) noexcept nogil:
    """n logits of row i from class j on, contiguous: where they lie, or in scratch. With a softcap they are capped, and
    unless slope is NULL, it receives the derivatives."""
    return capped(job, block(&job.request.logits, i, j, n, scratch), n, scratch, slope)

cdef inline floating *slope_block(const Job *job, floating *scratch) noexcept nogil:
    """Where the derivatives of the softcap are, if the gradient is multiplied by them; else NULL."""
    return scratch if job.plan.with_slopes else NULL

cdef inline double logit_of(const Job *job, Py_ssize_t i, Py_ssize_t j, const floating *dtype) noexcept nogil:
    """The logit of row i and class j."""
    cdef floating scratch
    return logits_block(job, i, j, 1, &scratch, NULL)[0]

cdef inline bint holds_nan(const Job *job, Py_ssize_t i, const floating *dtype) noexcept nogil:
    cdef Py_ssize_t j
    cdef double x
    for j in range(job.request.classes):
        x = logit_of(job, i, j, dtype)
        if x != x:
            return True
    return False

cdef inline void write_maxima(const Job *job, Py_ssize_t i, Py_ssize_t count, const double *row_max,
                              const floating *dtype) noexcept nogil:
    """Writes row_max of rows from i on, if it was asked for, and where the logits are only -inf, tail = -1, that of no
    classes. So these rows change nothing that they are merged with. To be called while the logits are still there."""
    cdef floating *tail = <floating *>job.request.tail
    cdef Py_ssize_t p
    if job.request.row_max != NULL:
        job.plan.primitives.narrow(row_max, count, (<floating *>job.request.row_max) + i)
    for p in range(count if tail != NULL else 0):
        tail[i + p] = -1 if row_max[p] == -INFINITY and not holds_nan(job, i + p, dtype) else 0

cdef inline void write_tails(const Job *job, Py_ssize_t i, Py_ssize_t count, const double *tail,
                             const floating *dtype) noexcept nogil:
    """Writes tail where `write_maxima` has not."""
    cdef floating *dst = <floating *>job.request.tail
    cdef Py_ssize_t p
    for p in range(count if dst != NULL else 0):
        if dst[i + p] != -1:
            dst[i + p] = <floating>tail[p]

cdef inline void write_stats(const Job *job, Py_ssize_t i, Py_ssize_t count, const State *s, Py_ssize_t r,
                             const floating *dtype) noexcept nogil:
    """Both, if they are results."""
    if not job.request.stats_given:
        write_maxima(job, i, count, s.row_max + r, dtype)
        write_tails(job, i, count, s.tail + r, dtype)

cdef inline const floating *next_block(const Job *job, Py_ssize_t i, Py_ssize_t j, const floating *x) noexcept nogil:
    """The logits that are read after the block x of row i, which ends before class j; x if they do not lie ready."""
    cdef const Matrix *logits = &job.request.logits
    if not job.plan.logits_ready:
        return x
    if j < job.request.classes:
        return <const floating *>row_at(logits, i) + j
    return <const floating *>row_at(logits, i + 1) if i + 1 < job.request.rows else x

cdef inline const floating *base_block(const Job *job, Py_ssize_t i, Py_ssize_t j, Py_ssize_t n,
                                       floating *scratch) noexcept nogil:
    """base of row i, n classes from class j on, contiguous; NULL for ones. Of targets, what plan.slope and plan.offset
    are applied to."""
    cdef const floating *targets
    if job.plan.base_kind == CE_ONES:
        return NULL
    if job.plan.base_kind == CE_BY_CLASS:
        return (<const floating *>job.smoothing) + j
    targets = block(&job.request.targets, i, j, n, scratch)
    if job.weight == NULL:
        return targets
    job.plan.primitives.row_affine(targets, (<const floating *>job.weight) + j, n, job.plan.hot, job.plan.uniform,
                                   scratch)
    return scratch

cdef inline floating *place_of(const Matrix *a, Py_ssize_t i, Py_ssize_t j, floating *scratch) noexcept nogil:
    """Where a block of row i of a result, from class j on, is computed: in its place, or in scratch."""
    if a.dtype == own_dtype(scratch) and a.class_stride == sizeof(floating):
        return <floating *>row_at(a, i) + j
    return scratch

cdef inline void store_to(const Matrix *a, Py_ssize_t i, Py_ssize_t j, Py_ssize_t n,
                          const floating *src) noexcept nogil:
    """a[i, j:j + n] = src, unless it is there already."""
    cdef char *dst = row_at(a, i) + j*a.class_stride
    if <const char *>src != dst:
        scatter(a.dtype, src, n, dst, a.class_stride, False)

cdef inline floating *grad_block(const Job *job, Py_ssize_t i, Py_ssize_t j, floating *scratch) noexcept nogil:
    """Where a block of row i of the gradient, from class j on, is computed: in its place, or in scratch. There it may
    replace the logits."""
    if job.plan.grad_ready:
        return <floating *>row_at(&job.request.grad, i) + j
    return scratch

cdef inline void times_slope(const Job *job, const floating *grad, const floating *slope, Py_ssize_t n,
                             floating *product) noexcept nogil:
    job.plan.primitives.row_affine(grad, slope, n, 1, -0.0, product)
    if job.request.flush_below > 0:
        job.plan.primitives.flush_small(product, n, job.request.flush_below)

cdef inline void store_block(const Job *job, Py_ssize_t i, Py_ssize_t j, Py_ssize_t n, floating *src,
                             const floating *slope) noexcept nogil:
    """grad[i, j:j + n] = src, unless it is there already. Unless slope is NULL, src is multiplied by it."""
    cdef const Matrix *grad = &job.request.grad
    cdef char *dst = row_at(grad, i) + j*grad.class_stride
    if slope != NULL:
        times_slope(job, src, slope, n, src)
    if <const char *>src != dst:
        scatter(grad.dtype, src, n, dst, grad.class_stride, job.plan.stream)

# -- Tiles

cdef enum:
    GATHERED = 2048     # numbers that are gathered before they are transposed

cdef inline void transpose_gathered(const ce_primitives *f, const Matrix *a, const char *src, Py_ssize_t rows,
                                    Py_ssize_t classes, Py_ssize_t width, floating *tile) noexcept nogil:
    """tile[k, p] = number k of row p, where rows at src are row_stride apart."""
    cdef floating gathered[GATHERED]
    cdef Py_ssize_t size = sizeof(floating), most = min(classes, <Py_ssize_t>GATHERED/CE_MAX_LANES)
    cdef Py_ssize_t step = GATHERED/most, j, p, k, m, n
    for j from 0 <= j < classes by most:
        m = min(most, classes - j)
        for p from 0 <= p < rows by step:
            n = min(step, rows - p)
            if m == classes and a.row_stride == classes*a.class_stride:
                gather(a.dtype, src + p*a.row_stride, a.class_stride, n*classes, gathered, 1)
            else:
                for k in range(n):
                    gather(a.dtype, src + (p + k)*a.row_stride + j*a.class_stride, a.class_stride, m, gathered + k*m, 1)
            f.transpose(gathered, m*size, n, m, tile + j*width + p, width*size)

cdef inline void load_tile(const ce_primitives *f, const Matrix *a, Py_ssize_t i, Py_ssize_t count, Py_ssize_t j,
                           Py_ssize_t classes, Py_ssize_t width, floating *tile) noexcept nogil:
    """tile[k, p] = a[i + p, j + k], and 0 for count <= p < width."""
    cdef Py_ssize_t p = 0, k, run, size = sizeof(floating)
    cdef bint own = a.dtype == own_dtype(tile)
    cdef const char *src
    while p < count:
        src = row_at(a, i + p) + j*a.class_stride
        run = evenly_spaced(a, i + p, count - p)
        if own and a.row_stride == size:
            f.load_runs(src, a.class_stride, classes, run, tile + p, width*size)
        elif own and a.class_stride == size:
            f.transpose(src, a.row_stride, run, classes, tile + p, width*size)
        elif 0 < a.row_stride < a.class_stride:
            for k in range(classes):
                gather(a.dtype, src + k*a.class_stride, a.row_stride, run, tile + k*width + p, 1)
        else:
            transpose_gathered(f, a, src, run, classes, width, tile + p)
        p += run
    if count < width:
        for k in range(classes):
            memset(tile + k*width + count, 0, (width - count)*size)

cdef inline void load_logits(const Job *job, Py_ssize_t i, Py_ssize_t count, Py_ssize_t j, Py_ssize_t classes,
                             Py_ssize_t width, floating *tile, floating *slope) noexcept nogil:
    """The same for logits. With a softcap they are capped, and slope receives the derivatives, unless it is NULL."""
    load_tile(job.plan.primitives, &job.request.logits, i, count, j, classes, width, tile)
    capped(job, tile, classes*width, tile, slope)

cdef inline void store_half_tile(const ce_primitives *f, const Matrix *a, char *dst, Py_ssize_t rows,
                                 Py_ssize_t classes, Py_ssize_t width, const floating *tile) noexcept nogil:
    """number k of row p = tile[k, p], rounded, where rows at dst are row_stride apart."""
    cdef floating gathered[GATHERED]
    cdef Py_ssize_t size = sizeof(floating), most = min(classes, <Py_ssize_t>GATHERED/CE_MAX_LANES)
    cdef Py_ssize_t step = GATHERED/most, j, p, k, m, n
    if a.row_stride == 2:
        for k in range(classes):
            scatter(a.dtype, tile + k*width, rows, dst + k*a.class_stride, 2, False)
        return
    for j from 0 <= j < classes by most:
        m = min(most, classes - j)
        for p from 0 <= p < rows by step:
            n = min(step, rows - p)
            f.transpose(tile + j*width + p, width*size, m, n, gathered, m*size)
            if m == classes and a.row_stride == classes*a.class_stride:
                scatter(a.dtype, gathered, n*classes, dst + p*a.row_stride, a.class_stride, False)
            else:
                for k in range(n):
                    scatter(a.dtype, gathered + k*m, m, dst + (p + k)*a.row_stride + j*a.class_stride, a.class_stride,
                            False)

cdef inline void store_tile(const ce_primitives *f, const Matrix *a, Py_ssize_t i, Py_ssize_t count, Py_ssize_t j,
                            Py_ssize_t classes, Py_ssize_t width, const floating *tile, bint stream) noexcept nogil:
    """a[i + p, j + k] = tile[k, p]. With stream, contiguous rows that are not rounded are written past the caches."""
    cdef Py_ssize_t p = 0, k, r, run, size = sizeof(floating)
    cdef char *dst
    while p < count:
        dst = row_at(a, i + p) + j*a.class_stride
        run = evenly_spaced(a, i + p, count - p)
        if is_half(a.dtype):
            store_half_tile(f, a, dst, run, classes, width, tile + p)
        elif a.row_stride == size:
            f.store_runs(tile + p, width*size, classes, run, dst, a.class_stride, stream)
        elif a.class_stride == size:
            f.transpose(tile + p, width*size, classes, run, dst, a.row_stride)
        else:
            for r in range(run):
                for k in range(classes):
                    (<floating *>(dst + r*a.row_stride + k*a.class_stride))[0] = tile[k*width + p + r]
        p += run

# -- Labels

cdef inline bint labels_ready(const Matrix *labels) noexcept nogil:
    return labels.dtype == I64 and labels.row_stride == sizeof(int64_t) and labels.blocks == NULL

cdef inline const int64_t *labels_at(const Matrix *labels, Py_ssize_t i, Py_ssize_t n, int64_t ignore_index,
                                     int64_t *scratch) noexcept nogil:
    """n labels from row i on, as contiguous int64: where they lie, or converted into scratch."""
    cdef Py_ssize_t p = 0, run
    if labels_ready(labels):
        return <const int64_t *>labels.data + i
    while p < n:
        run = evenly_spaced(labels, i + p, n - p)
        gather(labels.dtype, row_at(labels, i + p), labels.row_stride, run, scratch + p, 1)
        p += run
    for p in range(n if labels.dtype == U64 else 0):
        if scratch[p] < 0:          # more than int64 holds: no class, and not ignored either
            scratch[p] = -2 if ignore_index == -1 else -1
    return scratch

cdef inline Py_ssize_t counted_labels(const Matrix *labels, Py_ssize_t rows, Py_ssize_t classes, int64_t ignore_index,
                                      bint has_ignore_index) noexcept nogil:
    """How many labels are not ignored; -1 if one of those is outside [0, classes)."""
    cdef int64_t scratch[512]
    cdef Py_ssize_t i, n = rows if labels_ready(labels) else 512, count, counted = 0
    for i from 0 <= i < rows by n:
        count = min(n, rows - i)
        count = ce_chosen_f32.count_labels(labels_at(labels, i, count, ignore_index, scratch), count, classes,
                                           ignore_index, has_ignore_index)
        if count < 0:
            return -1
        counted += count
    return counted

cdef inline void settle_group(const Job *job, Py_ssize_t start, Py_ssize_t count, State *s) noexcept nogil:
    """Reads the labels of a group, once. They were checked before, but another thread may write to them meanwhile: what
    is no class counts as ignored. Only s.label is used as an index, so nothing is read or written out of bounds.

    Rows whose sample_weight is 0 are ignored too. Where rows have targets, s.label tells which these are."""
    cdef const Request *request = job.request
    cdef Py_ssize_t p
    s.ignored = 0
    if job.plan.with_labels:
        s.ignored = count - job.plan.primitives.settle_labels(
            labels_at(&request.labels, start, count, request.ignore_index, s.label), count, request.classes,
            request.ignore_index, request.has_ignore_index, s.label)
    for p in range(count if request.sample_weight != NULL else 0):
        if not job.plan.with_labels:
            s.label[p] = 0
        if request.sample_weight[start + p] == 0 and s.label[p] >= 0:
            s.label[p] = -1
            s.ignored += 1

cdef inline double mean_weight(const Request *request) noexcept nogil:
    """What the mean of a request's losses divides by."""
    cdef double weight[512]
    cdef int64_t scratch[512]
    cdef const int64_t *label
    cdef Py_ssize_t i = 0, n, p
    cdef Sum total, part[4]
    if request.operation == SIGMOID_TWO_TERM:
        return <double>request.rows*request.classes
    if request.sample_weight == NULL and (request.labels.data == NULL or request.weight == NULL):
        return request.rows if request.labels.data == NULL else request.counted
    # Each weight is added with compensation. The sum is then the exact one, rounded, but for rare cases, and so is that
    # of the sums of parts.
    for p in range(4):
        set_sum(&part[p], 0)
    while i < request.rows:
        n = min(request.rows - i, 512)
        for p in range(n):
            weight[p] = 1 if request.sample_weight == NULL else request.sample_weight[i + p]
        if request.labels.data != NULL:
            label = labels_at(&request.labels, i, n, request.ignore_index, scratch)
            ce_chosen_f32.settle_labels(label, n, request.classes, request.ignore_index, request.has_ignore_index,
                                        scratch)
            for p in range(n):
                weight[p] *= request.weight[max(scratch[p], 0)] if request.weight != NULL else 1
            ce_chosen_f64.zero_ignored(scratch, n, weight)
        for p in range(n, (n + 3) & -4):
            weight[p] = 0
        for p in range(0, n, 4):
            add(&part[0], weight[p])
            add(&part[1], weight[p + 1])
            add(&part[2], weight[p + 2])
            add(&part[3], weight[p + 3])
        i += n
    total = part[0]
    for p in range(1, 4):
        add(&total, part[p].total)
        total.lost += part[p].lost
    return value(&total)
