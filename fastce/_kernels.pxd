# What other Cython modules may cimport. All of it is called without the GIL.
#
#     from fastce._kernels cimport F32, I64, Request, defaults, matrix, run
#
#     cdef double total
#     cdef Request request
#     defaults(&request)
#     request.rows, request.classes = x.shape[0], x.shape[1]
#     request.logits = matrix(&x[0, 0], F32, x.strides[0], x.strides[1])
#     request.labels = matrix(&labels[0], I64, labels.strides[0], 0)
#     request.grad = matrix(&grad[0, 0], F32, grad.strides[0], grad.strides[1])
#     request.total = &total
#     status = run(&request)
#
# The formulas are those of the Python functions, to the same accuracy. _request.pxd describes every field of a request.
#
# Shapes. A matrix has `rows` rows of `classes` numbers at fixed distances in bytes, as in memoryviews (x.strides).
# Distances may be negative or 0. classes >= 1. weight and pos_weight have one number for each class, sample_weight one
# for each row. These and all outputs except grad are contiguous. Pointers and distances are aligned to the type.
#
# Dtypes. Logits are F32, F64, or for operations that `takes_half` allows F16 and BF16, which are computed in F32; grad
# has their dtype. Losses, row_max and tail are F64 for F64, else F32.
#
# Values. Weights are finite and >= 0, label_smoothing is in [0, 1], z_loss >= 0. None of this is checked.
#
# Aliasing. grad may be the logits themselves, or for *_GRAD y or upstream (the same pointer and strides). Otherwise no
# output may overlap an input, another output or itself. Inputs must not change while the function runs. If another
# thread does write to the labels, results are undefined, but no memory outside the matrices is touched.
#
# Errors. Nothing is raised. `run` returns 0, or one of these, and then it has written nothing:
#     1    a label is neither in [0, classes) nor ignore_index
#     2    the request is of another version of fastce, or the operation does not take it: a matrix that it needs is
#          missing or has another dtype, or losses are wanted although stats are given
#     -1   there is no memory for the scratch space (some 100 KB for each thread)
#
# Threads. Any number of threads may call any of these functions at once. With num_threads 0 fastce chooses, 1 starts no
# threads. Inside another parallel region, and in a forked child, one thread is used. Results do not depend on the
# number of threads. The functions of one row use only the calling thread and allocate nothing.
from libc.stdint cimport int64_t

from ._request cimport (
    ARGMAX, BF16, CROSS_ENTROPY, F16, F32, F64, I8, I16, I32, I64, LOG_SOFTMAX, LOG_SOFTMAX_GRAD, LOGSUMEXP,
    SIGMOID_TWO_TERM, SOFTMAX, SOFTMAX_GRAD, SOFTMAX_TWO_TERM, U8, U16, U32, U64, Matrix, Request, defaults, matrix,
)

# -- Any number of rows

# Computes what is asked for. Rows labelled ignore_index have loss 0 and gradient 0 and may hold anything. total is the
# sum of sample_weight*loss. For a mean, divide it and request.scale by the sum of weight[label]*sample_weight over the
# rows that are not ignored, or without weights by their number.
cdef int run(const Request *request) noexcept nogil

# That number: how many labels are not ignore_index; -1 if one of those is outside [0, classes). Stored in
# request.counted it spares `run` the same pass.
cdef Py_ssize_t count_labels(const Matrix *labels, Py_ssize_t rows, Py_ssize_t classes, int64_t ignore_index,
                             bint has_ignore_index) noexcept nogil

# -- One row
# x has contiguous classes. label is in [0, classes).

# The state of a softmax: row_max = max x and tail = sum of exp(x_j - row_max) over all classes but (one of) the
# largest. logsumexp = row_max + log1p(tail), and the probability of class j is exp(x_j - row_max)/(1 + tail). NaN and
# +inf make tail NaN. For a row of only -inf, row_max is -inf and tail -1.
cdef void softmax_stats_f32(const float *x, Py_ssize_t classes, double *row_max, double *tail) noexcept nogil
cdef void softmax_stats_f64(const double *x, Py_ssize_t classes, double *row_max, double *tail) noexcept nogil

# Merges the states of two parts of a row's classes into the first. The state of no class is -inf and -1.
cdef void merge_stats(double *row_max, double *tail, double other_row_max, double other_tail) noexcept nogil

# The loss -log p of the class `label`, from the state of the row and the logit x_label.
cdef double loss_from_stats(double row_max, double tail, double x_label) noexcept nogil

# The loss of a row.
cdef double row_loss_f32(const float *x, Py_ssize_t classes, int64_t label) noexcept nogil
cdef double row_loss_f64(const double *x, Py_ssize_t classes, int64_t label) noexcept nogil

# The loss of a row and upstream times its gradient, p - (1 at the label). grad may be x.
cdef double row_loss_and_grad_f32(const float *x, Py_ssize_t classes, int64_t label, double upstream,
                                  float *grad) noexcept nogil
cdef double row_loss_and_grad_f64(const double *x, Py_ssize_t classes, int64_t label, double upstream,
                                  double *grad) noexcept nogil

# The gradient of some classes of a row, from the state of all its classes. label is counted from the first of these
# classes and may lie outside them. grad may be x.
cdef void row_grad_f32(const float *x, Py_ssize_t classes, int64_t label, double row_max, double tail, double upstream,
                       float *grad) noexcept nogil
cdef void row_grad_f64(const double *x, Py_ssize_t classes, int64_t label, double row_max, double tail, double upstream,
                       double *grad) noexcept nogil
