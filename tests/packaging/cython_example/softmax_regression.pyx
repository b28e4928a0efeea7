# cython: language_level=3, boundscheck=False, wraparound=False
"""Softmax regression by gradient descent, as a module that cimports fastce: every step runs without the GIL.

The parameters theta are (classes, features + 1), the last column the bias; the loss is the mean over the rows.
"""
from libc.math cimport log1p
from libc.stdint cimport int64_t

from fastce._kernels cimport (
    F64, I64, Matrix, Request, count_labels, defaults, loss_from_stats, matrix, merge_stats, row_grad_f64,
    row_loss_and_grad_f64, row_loss_f64, run, softmax_stats_f64,
)


cdef void scores(const double[:, ::1] x, const double[:, ::1] theta, double[:, ::1] z) noexcept nogil:
    cdef Py_ssize_t i, j, k, features = x.shape[1]
    for i in range(x.shape[0]):
        for j in range(theta.shape[0]):
            z[i, j] = theta[j, features]
            for k in range(features):
                z[i, j] += theta[j, k]*x[i, k]


cdef void step(const double[:, ::1] x, const double[:, ::1] dz, double rate, double[:, ::1] theta) noexcept nogil:
    cdef Py_ssize_t i, j, k, features = x.shape[1]
    for i in range(x.shape[0]):
        for j in range(theta.shape[0]):
            theta[j, features] -= rate*dz[i, j]
            for k in range(features):
                theta[j, k] -= rate*dz[i, j]*x[i, k]


def fit(const double[:, ::1] x, const int64_t[::1] labels, double[:, ::1] theta, double[:, ::1] z, double[::1] losses,
        double rate, int threads=1):
    """Takes losses.shape[0] steps, updates theta and fills losses; z is room for the scores (rows, classes)."""
    cdef Py_ssize_t rows = z.shape[0], classes = z.shape[1], t
    cdef int status = 0
    cdef Request request
    if not (x.shape[0] == labels.shape[0] == rows and theta.shape[0] == classes and theta.shape[1] == x.shape[1] + 1):
        raise ValueError("shapes do not fit")
    if rows == 0 or classes == 0:
        raise ValueError("nothing to fit")
    defaults(&request)
    request.rows, request.classes = rows, classes
    request.logits = matrix(&z[0, 0], F64, z.strides[0], z.strides[1])
    request.labels = matrix(&labels[0], I64, labels.strides[0], 0)
    request.grad = request.logits           # in place: z becomes the gradient
    request.has_ignore_index = False
    request.scale = 1.0/rows                # of the mean
    request.num_threads = threads
    with nogil:
        for t in range(losses.shape[0]):
            scores(x, theta, z)
            request.total = &losses[t]
            status = run(&request)
            if status != 0:
                break
            losses[t] /= rows
            step(x, z, rate, theta)
    if status == 1:
        raise IndexError(f"a label is not in [0, {classes})")
    if status != 0:
        raise MemoryError()


def by_rows(const double[:, ::1] z, const int64_t[::1] labels, double[:, ::1] grad):
    """The sum of the losses and its gradient, row by row."""
    cdef Py_ssize_t i
    cdef double total = 0
    cdef Matrix targets = matrix(&labels[0], I64, labels.strides[0], 0)
    if count_labels(&targets, z.shape[0], z.shape[1], 0, False) < 0:
        raise IndexError("a label is out of range")
    with nogil:
        for i in range(z.shape[0]):
            total += row_loss_and_grad_f64(&z[i, 0], z.shape[1], labels[i], 1.0, &grad[i, 0])
    return total


def in_two_parts(const double[::1] z, int64_t label, Py_ssize_t cut, double[::1] grad):
    """(loss, the same of the whole row, logsumexp) of a row whose classes lie in two places, and its gradient."""
    cdef double row_max = 0, tail = 0, other_row_max = 0, other_tail = 0, loss
    with nogil:
        softmax_stats_f64(&z[0], cut, &row_max, &tail)
        softmax_stats_f64(&z[cut], z.shape[0] - cut, &other_row_max, &other_tail)
        merge_stats(&row_max, &tail, other_row_max, other_tail)
        loss = loss_from_stats(row_max, tail, z[label])
        row_grad_f64(&z[0], cut, label, row_max, tail, 1.0, &grad[0])
        row_grad_f64(&z[cut], z.shape[0] - cut, label - cut, row_max, tail, 1.0, &grad[cut])
    return loss, row_loss_f64(&z[0], z.shape[0], label), row_max + log1p(tail)


def forward_then_backward(const double[:, :] z, const int64_t[::1] labels, const double[::1] weight,
                          const double[::1] sample_weight, double[::1] row_max, double[::1] tail, double[:, :] grad):
    """The sum of the weighted losses, label 0 ignored; then the gradient from the statistics that the forward stored."""
    cdef double total = 0
    cdef int status
    cdef Request request
    defaults(&request)
    request.rows, request.classes = z.shape[0], z.shape[1]
    request.logits = matrix(&z[0, 0], F64, z.strides[0], z.strides[1])
    request.labels = matrix(&labels[0], I64, labels.strides[0], 0)
    request.ignore_index = 0
    request.weight, request.sample_weight = &weight[0], &sample_weight[0]
    request.label_smoothing, request.z_loss = 0.1, 1e-3
    request.row_max, request.tail, request.total = &row_max[0], &tail[0], &total
    with nogil:
        status = run(&request)
        if status == 0:
            request.total, request.stats_given = NULL, True
            request.grad = matrix(&grad[0, 0], F64, grad.strides[0], grad.strides[1])
            status = run(&request)
    if status != 0:
        raise IndexError("a label is out of range") if status == 1 else MemoryError()
    return total
