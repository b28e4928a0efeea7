# cython: cdivision=True
# The plan of a request: how it is computed. No other file chooses.
from ._blocks cimport size_of
from ._divergence cimport divergence_scratch
from ._entropy cimport entropy_scratch, is_entropy
from ._job cimport BLOCK, BY_COLUMNS, BY_PARTS, BY_ROWS, BY_TILES, GROUP, TILE_SIZE, Plan
from ._primitives cimport (
    CE_BY_CLASS, CE_BY_ELEMENT, CE_GAP_UNIT, CE_MAX_LANES, CE_ONES, ce_automatic_threads, ce_chosen_f32, ce_chosen_f64,
    ce_must_be_serial,
)
from ._request cimport (
    ARGMAX, BF16, CROSS_ENTROPY, EVALUATE, F32, F64, I8, KL_OF_LOGITS, KL_OF_PROBABILITIES, LOG_SOFTMAX,
    LOG_SOFTMAX_GRAD, SIGMOID_TWO_TERM, SOFTMAX, SOFTMAX_GRAD, SOFTMAX_TWO_TERM, U64, Matrix, Request, computed_dtype,
    is_half, takes_half, takes_softcap,
)
from ._sigmoid cimport ACROSS, SIGMOID_SCRATCH
from ._softmax_two_term cimport TWO_TERM_SCRATCH, two_term_group
from ._tiles cimport tile_scratch

cdef enum:
    TILES_BEAT_ROWS = 40        # up to so many contiguous classes tiles are faster than rows,
    TILES_BEAT_GATHERED = 56    # up to so many if rows are gathered,
    TILES_BEAT_GIVEN = 24       # up to so many if stats are given and base is not the target row,
    TILES_BEAT_TWO_TERM = 80    # and up to so many for the two-term form of a softmax
    MIN_TILE_WIDTH = 48         # when there are enough rows
    STRIP_BYTES = 5 << 17       # tiles of contiguous rows: 640 KiB, of the second-level cache
    CHUNK = 2048                # numbers of such a tile between the arrays and the first-level cache
    COLUMN_GROUP = 4096         # rows of a unit that is worked on where it lies: shorter runs of memory are slower
    UNIT_LOGITS = 32768         # in a unit of work, about 10 us
    STREAM_STRIPS = 1 << 22     # gradients of contiguous rows from this size on (4 MiB) are written past the caches,
    STREAM_BYTES = 3 << 23      # and those of long rows from this size on (24 MiB)
    PART = 4*BLOCK              # classes of a part of a row
    FEW_ROWS = 64               # up to so many long rows are divided
    PARTS_LOGITS = 1 << 20      # of rows whose parts are computed together, so that the gradient finds them in a cache
    MAX_THREADS = 256

cdef inline bint is_product(const Request *request) noexcept nogil:
    return request.operation == SOFTMAX_GRAD or request.operation == LOG_SOFTMAX_GRAD

cdef inline bint is_divergence(const Request *request) noexcept nogil:
    return request.operation == KL_OF_LOGITS or request.operation == KL_OF_PROBABILITIES

cdef inline const Matrix *main_input(const Request *request) noexcept nogil:
    """What the operation is a function of. Its dtype is that of grad."""
    if is_product(request):
        return &request.y
    return &request.logits

cdef inline bint has_curvature(const Request *r) noexcept nogil:
    """Whether a request may ask for second derivatives: their diagonal beside the gradient, or their products alone."""
    return (r.operation == CROSS_ENTROPY and (r.hess.data == NULL or r.grad.data != NULL) and not r.stats_given
            and (r.vectors.data == NULL
                 or (r.hess.data == NULL and r.total == NULL and r.losses == NULL)))

cdef inline bint takes_labels(int operation) noexcept nogil:
    return operation == CROSS_ENTROPY or operation == EVALUATE

cdef inline bint is_computable(const Request *r) noexcept nogil:
    """Whether the matrices that the operation needs are there, with dtypes that it takes."""
    cdef int operation = r.operation, dtype = main_input(r).dtype
    cdef bint product = is_product(r)
    cdef bint with_labels = takes_labels(operation) and r.labels.data != NULL
    cdef bint with_targets = not with_labels and (
        operation == CROSS_ENTROPY or operation == SIGMOID_TWO_TERM or operation == SOFTMAX_TWO_TERM
        or is_divergence(r))
    return (CROSS_ENTROPY <= operation <= KL_OF_PROBABILITIES and F32 <= dtype <= BF16 and r.temperature > 0
            and (operation != ARGMAX or r.first_max != NULL)
            and (operation != EVALUATE or (with_labels and r.ranks != NULL and r.entropies != NULL
                                           and r.confidences != NULL))
            and (takes_half(operation) or not is_half(dtype)) and (takes_softcap(operation) or r.softcap == 0)
            and (r.grad.dtype == dtype if r.grad.data != NULL else not product)
            and (r.upstream.dtype == (dtype if product else F64) if r.upstream.data != NULL else not product)
            and (not with_labels or I8 <= r.labels.dtype <= U64) and (not with_targets or I8 <= r.targets.dtype <= BF16)
            and (r.hess.data == NULL or r.hess.dtype == dtype) and (r.vectors.data == NULL or r.vectors.dtype == dtype)
            and (r.hess.data == NULL and r.vectors.data == NULL
                 or (has_curvature(r) and not is_half(dtype) and r.softcap == 0))
            and (not r.stats_given or (r.row_max != NULL and r.tail != NULL and r.total == NULL and r.losses == NULL)))

cdef inline void plan_base(const Request *request, Plan *p) noexcept nogil:
    """What base is, which the labels or targets and their options decide."""
    cdef bint weighted = request.weight != NULL
    p.hot, p.uniform, p.slope, p.offset = 1, 0, 1, 0
    p.with_labels = takes_labels(request.operation) and request.labels.data != NULL
    if request.operation == CROSS_ENTROPY:
        p.hot, p.uniform = 1 - request.label_smoothing, request.label_smoothing/request.classes
        if not p.with_labels:
            p.base_kind, p.base_scale = CE_BY_ELEMENT, 1
            if not weighted:
                p.slope, p.offset = p.hot, p.uniform
        elif weighted and p.uniform != 0:
            p.weighted_smoothing, p.base_kind, p.base_scale = True, CE_BY_CLASS, 1
        else:
            p.base_kind, p.base_scale = CE_ONES, p.uniform
    p.gap_scale = p.base_scale/CE_GAP_UNIT if p.base_kind == CE_ONES else p.base_scale

cdef inline Py_ssize_t rows_in_block(const Request *r) noexcept nogil:
    return r.logits.rows_per_block if r.logits.blocks != NULL else r.rows

cdef inline bint classes_contiguous(const Matrix *a) noexcept nogil:
    return a.class_stride == size_of(a.dtype)

cdef inline bint rows_contiguous(const Matrix *a) noexcept nogil:
    return a.row_stride == size_of(a.dtype) and (a.blocks == NULL or a.rows_per_block >= CE_MAX_LANES)

cdef inline int path_of(const Request *r, int base_kind) noexcept nogil:
    cdef Py_ssize_t few_classes = TILES_BEAT_ROWS
    cdef const Matrix *x = main_input(r)
    cdef const Matrix *u = &r.upstream if is_product(r) else x
    cdef const Matrix *grad = &r.grad if is_product(r) or (r.operation != ARGMAX and r.grad.data != NULL) else x
    cdef bint along_classes = classes_contiguous(x) and classes_contiguous(grad)
    cdef bint along_rows = (not classes_contiguous(x) and x.row_stride == size_of(x.dtype)
                            and rows_in_block(r) >= CE_MAX_LANES)
    if r.operation == SIGMOID_TWO_TERM:
        return BY_COLUMNS if along_rows and rows_in_block(r) >= ACROSS else BY_ROWS
    if is_product(r) or r.operation == ARGMAX:      # where the matrices lie, if they lie alike
        if along_classes and classes_contiguous(u):
            return BY_ROWS
        if rows_contiguous(x) and rows_contiguous(u) and rows_contiguous(grad):
            return BY_COLUMNS
        return BY_TILES
    if r.operation == SOFTMAX_TWO_TERM:
        return BY_TILES if along_rows or r.classes <= TILES_BEAT_TWO_TERM else BY_ROWS
    if not along_classes:
        few_classes = TILES_BEAT_GATHERED
    elif r.stats_given and base_kind != CE_BY_ELEMENT:
        few_classes = TILES_BEAT_GIVEN
    if along_rows or r.classes <= few_classes:
        return BY_TILES
    if is_divergence(r) or is_entropy(r.operation) or r.vectors.data != NULL:
        return BY_ROWS
    return BY_PARTS if r.rows <= FEW_ROWS and r.classes >= 2*PART else BY_ROWS

cdef inline void plan_threads(const Request *request, Plan *p) noexcept nogil:
    # ARGMAX is so fast that threads pay only where there is more to do.
    cdef Py_ssize_t least = (16 if request.operation == ARGMAX else 2)*UNIT_LOGITS
    p.threads = request.num_threads
    if ce_must_be_serial():
        p.threads = 1
    elif request.num_threads <= 0:
        p.automatic = True
        p.threads = 1 if request.rows*request.classes < least else ce_automatic_threads()

cdef inline void plan_tile(const Request *request, int size, Plan *p) noexcept nogil:
    """The size of a tile. It depends on the shapes, strides and options alone."""
    cdef Py_ssize_t classes = request.classes, stored = size_of(request.logits.dtype)
    cdef bint strips = (request.logits.row_stride == stored and request.logits.class_stride != stored
                        and (request.grad.data == NULL or request.grad.row_stride == stored))
    p.tile = TILE_SIZE
    if strips:
        # From class to class it is far, often by a power of 2, so that the classes of a row fall on each other in the
        # cache. Therefore each logit is read once, if the tile can hold all classes, and in long runs.
        p.tile = STRIP_BYTES/size
        # There are so many tiles.
        p.tile /= 1 + (p.base_kind == CE_BY_ELEMENT or is_divergence(request)) + p.with_slopes
        if p.tile/classes >= MIN_TILE_WIDTH:
            p.group = min(GROUP, p.tile/classes/CE_MAX_LANES*CE_MAX_LANES)
        p.tile = max(min(p.tile, p.group*classes), TILE_SIZE)
    # A tile that holds all classes need not compute its exponentials twice; one of few rows wastes memory lines. An odd
    # number of lines from class to class, so that they do not fall on each other in the cache.
    while p.group*classes > p.tile and not strips and p.group > MIN_TILE_WIDTH:
        p.group -= 2*CE_MAX_LANES
    p.chunk = CHUNK if strips else p.tile

cdef inline void plan_units(const Request *request, int size, Plan *p) noexcept nogil:
    """Groups and units. Where losses are added, they depend on the shapes and strides alone, never on the number of
    threads."""
    cdef Py_ssize_t rows = request.rows, classes = request.classes
    p.group, p.unit = GROUP, max(UNIT_LOGITS/classes, 1)
    if request.operation == SOFTMAX_TWO_TERM:
        p.group = two_term_group(p.path, classes)
    elif p.path == BY_TILES:
        plan_tile(request, size, p)
    if p.path == BY_TILES:
        if p.chunk == p.tile:
            p.unit = max(p.unit, rows/16)
        if p.unit > p.group or p.chunk < p.tile:
            p.unit = max(UNIT_LOGITS/classes, p.group)/p.group*p.group
        else:
            p.unit = (p.unit + CE_MAX_LANES - 1)/CE_MAX_LANES*CE_MAX_LANES
    elif request.operation == SOFTMAX_TWO_TERM:
        p.unit = max(p.unit/p.group, 1)*p.group
    elif p.path == BY_COLUMNS and request.operation != SIGMOID_TWO_TERM:
        p.unit = (rows + p.threads - 1)/p.threads
        p.unit = p.group = min((p.unit + CE_MAX_LANES - 1)/CE_MAX_LANES*CE_MAX_LANES, <Py_ssize_t>COLUMN_GROUP)
    p.units = (rows + p.unit - 1)/p.unit
    if p.path == BY_PARTS:
        p.part, p.parts = PART, (classes + PART - 1)/PART
        p.unit = min(rows, max(PARTS_LOGITS/classes, 1))
        p.units = p.unit*p.parts
    if p.path == BY_COLUMNS and request.operation == SIGMOID_TWO_TERM:
        rows = rows_in_block(request)   # as much memory on end as possible
        p.unit = min(rows, UNIT_LOGITS)
        p.unit_classes = min(max(UNIT_LOGITS/rows, 1), classes)
        p.units = request.rows/rows*((classes + p.unit_classes - 1)/p.unit_classes)*((rows + p.unit - 1)/p.unit)

cdef inline Py_ssize_t scratch_of(const Request *request, const Plan *p) noexcept nogil:
    if request.operation == SIGMOID_TWO_TERM:
        return SIGMOID_SCRATCH
    if request.operation == SOFTMAX_TWO_TERM:
        return TWO_TERM_SCRATCH
    if is_divergence(request):
        return divergence_scratch(p)
    if is_entropy(request.operation):
        return entropy_scratch(p)
    if p.path == BY_COLUMNS:
        return 5*p.group
    if is_product(request) or request.operation == ARGMAX:
        return 2*TILE_SIZE + 5*GROUP if p.path == BY_TILES else 0
    return tile_scratch(p) if p.path == BY_TILES else 4*BLOCK

cdef inline bint is_streamed(const Request *request, const Plan *p, Py_ssize_t bytes) noexcept nogil:
    """Whether the gradient, of so many bytes, is written past the caches. In place the lines are there already."""
    cdef const char *grad = request.grad.data
    if grad == main_input(request).data or grad == request.vectors.data:
        return False
    if is_product(request):             # y, upstream and the product together are as large
        return grad != request.upstream.data and 3*bytes >= STREAM_BYTES
    if p.chunk < p.tile:
        return bytes >= STREAM_STRIPS
    return request.classes > BLOCK and bytes >= STREAM_BYTES    # short rows are bursts that wait for the memory

cdef inline void make_plan(const Request *request, Plan *p) noexcept nogil:
    """Chooses how a request with at least one row is computed. p is zero before."""
    cdef const Matrix *x = main_input(request)
    cdef int size
    p.dtype = computed_dtype(x.dtype)
    size = size_of(p.dtype)
    p.primitives = ce_chosen_f32 if p.dtype == F32 else ce_chosen_f64
    p.logits_ready = request.logits.dtype == p.dtype and request.logits.class_stride == size and request.softcap == 0
    p.scale = request.scale if request.operation == SOFTMAX else request.scale/request.temperature
    p.with_loss, p.with_grad = request.total != NULL or request.losses != NULL, request.grad.data != NULL
    p.with_hess, p.with_hvp = request.hess.data != NULL, p.with_grad and request.vectors.data != NULL
    # Blocks that are converted share the first-level cache with what they are made of.
    p.block = BLOCK if request.logits.dtype == p.dtype and request.softcap == 0 else BLOCK/2
    p.with_slopes = (p.with_grad and request.softcap != 0 and request.operation != SOFTMAX
                     and request.operation != LOG_SOFTMAX)
    p.grad_ready = request.grad.dtype == p.dtype and request.grad.class_stride == size
    plan_base(request, p)
    p.path = path_of(request, p.base_kind)
    plan_threads(request, p)
    plan_units(request, size, p)
    p.threads = <int>min(p.threads, p.units, MAX_THREADS)
    p.scratch = scratch_of(request, p)
    p.stream = is_streamed(request, p, request.rows*request.classes*size)
    if p.with_slopes and p.path != BY_TILES:
        p.stream = False        # the gradient of rows is multiplied by them where it lies
