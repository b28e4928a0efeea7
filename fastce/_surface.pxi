# Part of _kernels.pyx. What _kernels.pxd offers to other modules, for the two dtypes from one text.

cdef inline void row_stats(const floating *x, Py_ssize_t n, double *row_max, double *tail) noexcept nogil:
    cdef const ce_primitives *f = primitives(x)
    cdef Py_ssize_t j
    f.rows_max(x, 0, 1, n, row_max)
    f.rows_exp_sum(x, 0, NULL, 0, 1, n, CE_STORED, row_max, 1, x, tail)
    if not isfinite(row_max[0]):
        tail[0] = NAN
        if row_max[0] < 0:
            for j in range(n):
                if x[j] != x[j]:
                    return
            tail[0] = -1


cdef void merge_stats(double *row_max, double *tail, double other_row_max, double other_tail) noexcept nogil:
    cdef double more = row_max[0], less = other_row_max, more_tail = tail[0], less_tail = other_tail
    if less > more:
        more, less, more_tail, less_tail = less, more, less_tail, more_tail
    row_max[0] = more
    tail[0] = more_tail + (1 + less_tail)*(exp(less - more) if less > -INFINITY else 0)


cdef double loss_from_stats(double row_max, double tail, double x_label) noexcept nogil:
    cdef double one = 1, gap = row_max - x_label, log_total, loss
    ce_chosen_f64.losses(1, &row_max, &tail, &one, &gap, 0, &log_total, &loss)
    return loss


cdef inline double row_loss(const floating *x, Py_ssize_t n, int64_t label) noexcept nogil:
    cdef double row_max, tail
    row_stats(x, n, &row_max, &tail)
    return loss_from_stats(row_max, tail, x[label])


cdef inline void row_from_stats(const floating *src, int form, Py_ssize_t n, Py_ssize_t label, double e_label,
                                double row_max, double tail, double upstream, floating *grad) noexcept nogil:
    """The gradient from logits or kept exponentials."""
    cdef const ce_primitives *f = primitives(src)
    cdef double zero = 0, one = 1, log_total, loss, a, at_label
    f.coefficients(1, &row_max, &tail, &one, &zero, 0, &one, &zero, &e_label, &upstream, &log_total, &loss, &a, &at_label)
    f.rows_grad(src, 0, grad, 0, 1, n, form, &row_max, &a, &zero, NULL, &label, &at_label, 0)


cdef inline double row_loss_and_grad(const floating *x, Py_ssize_t n, Py_ssize_t label, double upstream,
                                     floating *grad) noexcept nogil:
    cdef const ce_primitives *f = primitives(x)
    cdef double row_max, tail, x_label = x[label]
    f.rows_max(x, 0, 1, n, &row_max)
    f.rows_exp_sum(x, 0, grad, 0, 1, n, CE_STORED, &row_max, 1, x, &tail)
    tail += 0*row_max               # NaN where every class is masked, or at +inf
    row_from_stats(grad, CE_STORED, n, label, grad[label]/f.exp_one, row_max, tail, upstream, grad)
    return loss_from_stats(row_max, tail, x_label)


cdef inline void row_backward(const floating *x, Py_ssize_t n, int64_t label, double row_max, double tail,
                              double upstream, floating *grad) noexcept nogil:
    if 0 <= label < n:
        row_from_stats(x, CE_EXP, n, label, exp(x[label] - row_max), row_max, tail, upstream, grad)
    else:
        row_from_stats(x, CE_EXP, n, -1, 0, row_max, tail, upstream, grad)


cdef Py_ssize_t count_labels(const int64_t *labels, Py_ssize_t rows, Py_ssize_t classes,
                             int64_t ignore_index) noexcept nogil:
    return ce_chosen_f32.count_labels(labels, rows, classes, ignore_index, True)


cdef inline int batch(
    const floating *logits, Py_ssize_t rows, Py_ssize_t classes, Py_ssize_t row_step, Py_ssize_t class_step,
    const int64_t *labels, int64_t ignore_index, const double *weight, const double *sample_weight,
    double label_smoothing, double z_loss, double factor, const double *upstream, floating *grad,
    Py_ssize_t grad_row_step, Py_ssize_t grad_class_step, double *total, floating *losses, const floating *row_max,
    const floating *tail, bint stats_given, int num_threads) noexcept nogil:
    cdef Job job
    cdef Py_ssize_t kept
    cdef double unwanted
    if total != NULL:
        total[0] = 0
    else:
        total = &unwanted
    if rows <= 0 or classes <= 0:
        return 0
    kept = count_labels(labels, rows, classes, ignore_index)
    if kept < 0:
        return 1
    memset(&job, 0, sizeof(job))
    job.positions, job.classes = rows, classes
    job.labels = labels
    job.x.data, job.x.per_block, job.x.by_position, job.x.by_class = <char *>logits, rows, row_step, class_step
    if grad != NULL:
        job.g.data, job.g.per_block, job.g.by_position, job.g.by_class = <char *>grad, rows, grad_row_step, grad_class_step
    set_label_options(&job, label_smoothing, z_loss, factor)
    job.weight = weight
    job.ignored, job.has_ignored = ignore_index, kept < rows
    job.sample = sample_weight
    job.upstream = upstream
    job.with_loss, job.losses = total != &unwanted or losses != NULL, losses
    job.row_max, job.tail, job.stats_given = <void *>row_max, <void *>tail, stats_given
    return execute(&job, <floating *>NULL, max(num_threads, 0), total)



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


cdef int cross_entropy_f32(
    const float *logits, Py_ssize_t rows, Py_ssize_t classes, Py_ssize_t row_step, Py_ssize_t class_step,
    const int64_t *labels, int64_t ignore_index, const double *weight, const double *sample_weight,
    double label_smoothing, double z_loss, double *total, float *losses, float *row_max, float *tail,
    int num_threads) noexcept nogil:
    return batch(logits, rows, classes, row_step, class_step, labels, ignore_index, weight, sample_weight,
                 label_smoothing, z_loss, 1, NULL, <float *>NULL, 0, 0, total, losses, row_max, tail, False, num_threads)


cdef int cross_entropy_f64(
    const double *logits, Py_ssize_t rows, Py_ssize_t classes, Py_ssize_t row_step, Py_ssize_t class_step,
    const int64_t *labels, int64_t ignore_index, const double *weight, const double *sample_weight,
    double label_smoothing, double z_loss, double *total, double *losses, double *row_max, double *tail,
    int num_threads) noexcept nogil:
    return batch(logits, rows, classes, row_step, class_step, labels, ignore_index, weight, sample_weight,
                 label_smoothing, z_loss, 1, NULL, <double *>NULL, 0, 0, total, losses, row_max, tail, False, num_threads)


cdef int cross_entropy_with_grad_f32(
    const float *logits, Py_ssize_t rows, Py_ssize_t classes, Py_ssize_t row_step, Py_ssize_t class_step,
    const int64_t *labels, int64_t ignore_index, const double *weight, const double *sample_weight,
    double label_smoothing, double z_loss, double factor, const double *upstream,
    float *grad, Py_ssize_t grad_row_step, Py_ssize_t grad_class_step, double *total, float *losses,
    int num_threads) noexcept nogil:
    return batch(logits, rows, classes, row_step, class_step, labels, ignore_index, weight, sample_weight,
                 label_smoothing, z_loss, factor, upstream, grad, grad_row_step, grad_class_step, total, losses,
                 <float *>NULL, <float *>NULL, False, num_threads)


cdef int cross_entropy_with_grad_f64(
    const double *logits, Py_ssize_t rows, Py_ssize_t classes, Py_ssize_t row_step, Py_ssize_t class_step,
    const int64_t *labels, int64_t ignore_index, const double *weight, const double *sample_weight,
    double label_smoothing, double z_loss, double factor, const double *upstream,
    double *grad, Py_ssize_t grad_row_step, Py_ssize_t grad_class_step, double *total, double *losses,
    int num_threads) noexcept nogil:
    return batch(logits, rows, classes, row_step, class_step, labels, ignore_index, weight, sample_weight,
                 label_smoothing, z_loss, factor, upstream, grad, grad_row_step, grad_class_step, total, losses,
                 <double *>NULL, <double *>NULL, False, num_threads)


cdef int cross_entropy_grad_f32(
    const float *logits, Py_ssize_t rows, Py_ssize_t classes, Py_ssize_t row_step, Py_ssize_t class_step,
    const int64_t *labels, int64_t ignore_index, const double *weight, const double *sample_weight,
    double label_smoothing, double z_loss, double factor, const double *upstream,
    const float *row_max, const float *tail, float *grad, Py_ssize_t grad_row_step, Py_ssize_t grad_class_step,
    int num_threads) noexcept nogil:
    return batch(logits, rows, classes, row_step, class_step, labels, ignore_index, weight, sample_weight,
                 label_smoothing, z_loss, factor, upstream, grad, grad_row_step, grad_class_step, NULL, <float *>NULL,
                 row_max, tail, True, num_threads)


cdef int cross_entropy_grad_f64(
    const double *logits, Py_ssize_t rows, Py_ssize_t classes, Py_ssize_t row_step, Py_ssize_t class_step,
    const int64_t *labels, int64_t ignore_index, const double *weight, const double *sample_weight,
    double label_smoothing, double z_loss, double factor, const double *upstream,
    const double *row_max, const double *tail, double *grad, Py_ssize_t grad_row_step, Py_ssize_t grad_class_step,
    int num_threads) noexcept nogil:
    return batch(logits, rows, classes, row_step, class_step, labels, ignore_index, weight, sample_weight,
                 label_smoothing, z_loss, factor, upstream, grad, grad_row_step, grad_class_step, NULL, <double *>NULL,
                 row_max, tail, True, num_threads)
