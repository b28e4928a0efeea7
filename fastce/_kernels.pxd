# What other Cython modules may cimport: plain functions for float32 (_f32) and float64 (_f64), without the GIL.
#
#     from fastce._kernels cimport cross_entropy_with_grad_f32
#
# The formulas are those of fastce.cross_entropy, to the same accuracy: see its docstring.
#
# Shapes. logits are `rows` rows of `classes` numbers, classes >= 1: row i, class j lies row_step*i + class_step*j bytes
# from the pointer, as in memoryviews (x.strides); steps may be negative. labels[i] is the class of row i. weight has one
# number for each class, sample_weight and upstream one for each row, all contiguous, finite, and the weights >= 0; NULL
# stands for ones. The functions of one row take contiguous classes.
#
# Aliasing. grad may be the logits themselves (the same pointer and steps); it may overlap nothing else, nor itself. No
# other output may overlap anything. Pointers are aligned to their type. The logits are written to by no one meanwhile.
#
# Errors. Nothing is raised. Batches return 0, or one of these, and then have written nothing:
#     1    a label is neither in [0, classes) nor ignore_index
#     -1   no memory for the scratch space (some 100 KB a thread)
# Other arguments are not checked: label_smoothing is in [0, 1], z_loss >= 0, the label of one row in [0, classes).
#
# Threads. Any number of threads may call any of these at once. num_threads: 0 chooses as fastce does, 1 starts no threads;
# inside another parallel region, and in a forked child, it is 1. Results do not depend on it. The functions of one row
# use the calling thread alone and allocate nothing.
from libc.stdint cimport int64_t

# --- One row -----------------------------------------------------------------------------------------------------------

# The state of a softmax: row_max = max x and tail = sum of exp(x_j - row_max) over all classes but (one of) the largest.
# logsumexp = row_max + log1p(tail), and the probability of class j is exp(x_j - row_max)/(1 + tail). NaN and +inf make
# tail NaN; of nothing but -inf row_max is -inf and tail -1.
cdef void softmax_stats_f32(const float *x, Py_ssize_t classes, double *row_max, double *tail) noexcept nogil
cdef void softmax_stats_f64(const double *x, Py_ssize_t classes, double *row_max, double *tail) noexcept nogil

# The state of a row from those of two parts of its classes, in place of the first. Of no class at all it is -inf and -1.
cdef void merge_stats(double *row_max, double *tail, double other_row_max, double other_tail) noexcept nogil

# The loss -log p of the class `label`, from the state of the row and the logit x_label.
cdef double loss_from_stats(double row_max, double tail, double x_label) noexcept nogil

# The loss of a row.
cdef double row_loss_f32(const float *x, Py_ssize_t classes, int64_t label) noexcept nogil
cdef double row_loss_f64(const double *x, Py_ssize_t classes, int64_t label) noexcept nogil

# The loss of a row and upstream times its gradient, p - (1 at the label); grad may be x.
cdef double row_loss_and_grad_f32(const float *x, Py_ssize_t classes, int64_t label, double upstream,
                                  float *grad) noexcept nogil
cdef double row_loss_and_grad_f64(const double *x, Py_ssize_t classes, int64_t label, double upstream,
                                  double *grad) noexcept nogil

# The gradient alone, of these classes of a row whose state (of all its classes) is given; label is counted from the first
# of these classes, and may lie outside them. grad may be x.
cdef void row_grad_f32(const float *x, Py_ssize_t classes, int64_t label, double row_max, double tail, double upstream,
                       float *grad) noexcept nogil
cdef void row_grad_f64(const double *x, Py_ssize_t classes, int64_t label, double row_max, double tail, double upstream,
                       double *grad) noexcept nogil

# --- Batches of rows -----------------------------------------------------------------------------------------------------
# Rows labelled ignore_index have loss 0 and gradient 0 and may hold anything. total is the sum of sample_weight*loss in
# float64: a mean divides it, and the gradient's factor, by the sum of weight[label]*sample_weight over the rows kept, or
# by their number (`labels_kept`). Outputs that are NULL are not wanted.

# How many labels differ from ignore_index; -1 if one of those is outside [0, classes).
cdef Py_ssize_t count_labels(const int64_t *labels, Py_ssize_t rows, Py_ssize_t classes,
                             int64_t ignore_index) noexcept nogil

# Forward: total, the rows' losses and the rows' states.
cdef int cross_entropy_f32(
    const float *logits, Py_ssize_t rows, Py_ssize_t classes, Py_ssize_t row_step, Py_ssize_t class_step,
    const int64_t *labels, int64_t ignore_index, const double *weight, const double *sample_weight,
    double label_smoothing, double z_loss, double *total, float *losses, float *row_max, float *tail,
    int num_threads) noexcept nogil
cdef int cross_entropy_f64(
    const double *logits, Py_ssize_t rows, Py_ssize_t classes, Py_ssize_t row_step, Py_ssize_t class_step,
    const int64_t *labels, int64_t ignore_index, const double *weight, const double *sample_weight,
    double label_smoothing, double z_loss, double *total, double *losses, double *row_max, double *tail,
    int num_threads) noexcept nogil

# Forward and backward in one pass. Row i of grad is factor*sample_weight[i]*upstream[i] times the gradient of its loss.
cdef int cross_entropy_with_grad_f32(
    const float *logits, Py_ssize_t rows, Py_ssize_t classes, Py_ssize_t row_step, Py_ssize_t class_step,
    const int64_t *labels, int64_t ignore_index, const double *weight, const double *sample_weight,
    double label_smoothing, double z_loss, double factor, const double *upstream,
    float *grad, Py_ssize_t grad_row_step, Py_ssize_t grad_class_step, double *total, float *losses,
    int num_threads) noexcept nogil
cdef int cross_entropy_with_grad_f64(
    const double *logits, Py_ssize_t rows, Py_ssize_t classes, Py_ssize_t row_step, Py_ssize_t class_step,
    const int64_t *labels, int64_t ignore_index, const double *weight, const double *sample_weight,
    double label_smoothing, double z_loss, double factor, const double *upstream,
    double *grad, Py_ssize_t grad_row_step, Py_ssize_t grad_class_step, double *total, double *losses,
    int num_threads) noexcept nogil

# Backward alone, from the states that a forward wrote.
cdef int cross_entropy_grad_f32(
    const float *logits, Py_ssize_t rows, Py_ssize_t classes, Py_ssize_t row_step, Py_ssize_t class_step,
    const int64_t *labels, int64_t ignore_index, const double *weight, const double *sample_weight,
    double label_smoothing, double z_loss, double factor, const double *upstream,
    const float *row_max, const float *tail, float *grad, Py_ssize_t grad_row_step, Py_ssize_t grad_class_step,
    int num_threads) noexcept nogil
cdef int cross_entropy_grad_f64(
    const double *logits, Py_ssize_t rows, Py_ssize_t classes, Py_ssize_t row_step, Py_ssize_t class_step,
    const int64_t *labels, int64_t ignore_index, const double *weight, const double *sample_weight,
    double label_smoothing, double z_loss, double factor, const double *upstream,
    const double *row_max, const double *tail, double *grad, Py_ssize_t grad_row_step, Py_ssize_t grad_class_step,
    int num_threads) noexcept nogil
