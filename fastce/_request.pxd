# What a call asks for. Nothing here depends on how it is computed. Other modules cimport it through _kernels.pxd.
#
# `defaults(&request)` starts a request. It stores the size, because `run` refuses a request that was compiled against
# another version of this file. Then set `operation`, `rows`, `classes` and the matrices that are read and written.
from libc.stdint cimport int64_t
from libc.string cimport memset

cdef enum:              # operations
    CROSS_ENTROPY       # -sum q*log(softmax(x)), of labels or targets
    SOFTMAX             # softmax(x), written to grad
    LOG_SOFTMAX         # log(softmax(x)), written to grad
    LOGSUMEXP           # log(sum(exp(x))) of each row, written to losses
    SOFTMAX_GRAD        # upstream times the Jacobian of y = softmax(x)
    LOG_SOFTMAX_GRAD    # the same for y = log(softmax(x))
    SIGMOID_TWO_TERM    # -sum c*log(p) + (1 - c)*log(1 - p) with p = 1/(1 + exp(-x))
    SOFTMAX_TWO_TERM    # the same with p = softmax(x)
    ARGMAX              # where the largest x of each row is, written to first_max
    ENTROPY             # -sum p*log(p) with p = softmax(x)
    EVALUATE            # -log(p) of labels, and what is written to ranks, first_max, entropies and confidences
    KL_OF_LOGITS        # sum q*log(q/p) with p = softmax(x) and q = softmax(targets)
    KL_OF_PROBABILITIES # sum c*log(c/p) of targets c

cdef enum:              # dtypes
    NO_DTYPE, I8, I16, I32, I64, U8, U16, U32, U64, F32, F64, F16, BF16

cdef struct Matrix:
    # Row i, class j lies at data + i*row_stride + j*class_stride (bytes; strides may be negative or 0). With blocks, at
    # data + blocks[i / rows_per_block] + (i % rows_per_block)*row_stride + j*class_stride.
    char *data
    Py_ssize_t row_stride
    Py_ssize_t class_stride
    const Py_ssize_t *blocks        # NULL: all rows are one block
    Py_ssize_t rows_per_block
    int dtype

cdef struct Request:
    size_t size                     # sizeof(Request)
    int operation
    Py_ssize_t rows
    Py_ssize_t classes
    # Inputs. The dtype of the logits is that of grad. Losses, row_max and tail are of the dtype that is computed in:
    # F64 for F64, else F32. `takes_half` says which operations take logits of F16 and BF16.
    Matrix logits
    Matrix labels                   # one integer for each row, of any integer dtype; class_stride is not used
    Matrix targets                  # where labels.data is NULL: one number for each element, of any dtype
    Matrix vectors                  # CROSS_ENTROPY: grad becomes the Hessian times these, which have the logits' dtype
    Matrix y                        # *_GRAD: what the forward returned, in place of the logits
    # Gradient of the objective with respect to the result, NULL for ones: one F64 for each row, for SIGMOID_TWO_TERM
    # for each element. For *_GRAD, which need it, one number of the dtype of y for each element.
    Matrix upstream
    int64_t ignore_index            # rows with this label have loss 0 and gradient 0
    bint has_ignore_index
    Py_ssize_t counted              # what count_labels returned for these labels, or -1: `run` calls it
    const double *weight            # by class; NULL stands for ones
    const double *pos_weight        # by class, a factor of the targets of SIGMOID_TWO_TERM; NULL stands for ones
    const double *sample_weight     # by row; NULL stands for ones
    double label_smoothing
    double z_loss
    double temperature              # the logits are divided by it, except for *_TWO_TERM; not 0
    double softcap                  # before that they become softcap*tanh(x/softcap), if the operation `takes_softcap`,
                                    # and so do the target logits of KL_OF_LOGITS; 0: they do not
    double scale                    # a factor of the gradient
    double flush_below              # what of grad is smaller than this becomes 0 with its sign; 0: nothing does
    bint stats_given                # row_max and tail are inputs, which a forward wrote; then only grad is computed
    int num_threads                 # 0: automatic
    # Outputs; NULL where they are not wanted. All but grad and hess are contiguous.
    Matrix grad
    Matrix hess                     # CROSS_ENTROPY with grad: the diagonal of the Hessian
    double *total                   # the sum of sample_weight*loss
    void *losses                    # sample_weight*loss by row (SIGMOID_TWO_TERM: by element)
    void *row_max                   # by row: max x
    void *tail                      # by row: the sum of exp(x - row_max) over all classes except (one of) the largest
    Py_ssize_t *first_max           # ARGMAX, which needs it, EVALUATE, by row: the first NaN or, without NaN, the first
                                    # maximum
    # EVALUATE, which needs them, by row. Where the label is ignored ranks and first_max are -1, and all else is 0.
    Py_ssize_t *ranks               # how many classes are before the label if they are sorted by falling x, those with
                                    # the same x by number; -1 where the loss is NaN
    void *entropies
    void *confidences               # max p

cdef inline bint is_half(int dtype) noexcept nogil:
    return dtype == F16 or dtype == BF16

cdef inline int computed_dtype(int dtype) noexcept nogil:
    """What numbers of a dtype are computed in."""
    return F32 if is_half(dtype) else dtype

cdef inline bint takes_half(int operation) noexcept nogil:
    return (operation == CROSS_ENTROPY or operation == SOFTMAX or operation == LOG_SOFTMAX or operation == LOGSUMEXP
            or operation == ENTROPY or operation == EVALUATE)

cdef inline bint takes_softcap(int operation) noexcept nogil:
    return takes_half(operation) or operation == KL_OF_LOGITS or operation == KL_OF_PROBABILITIES

cdef inline void defaults(Request *request) noexcept nogil:
    """Sets the default options of fastce.cross_entropy, for the sum of the losses; no inputs, no outputs."""
    memset(request, 0, sizeof(request[0]))
    request.size, request.operation, request.scale, request.temperature = sizeof(request[0]), CROSS_ENTROPY, 1, 1
    request.ignore_index, request.has_ignore_index, request.counted = -100, True, -1

cdef inline Matrix matrix(const void *data, int dtype, Py_ssize_t row_stride, Py_ssize_t class_stride) noexcept nogil:
    """Rows and classes at fixed distances in bytes, as in memoryviews. Labels have a class_stride of 0."""
    cdef Matrix a
    a.data, a.dtype = <char *>data, dtype
    a.row_stride, a.class_stride = row_stride, class_stride
    a.blocks, a.rows_per_block = NULL, 0
    return a
