# cython: cdivision=True
# What the rows of an evaluation add up to.
from cython cimport floating
from libc.math cimport ceil
from libc.string cimport memset

from ._primitives cimport ce_chosen_f32, ce_chosen_f64
from ._request cimport F32, Request

cdef enum:
    BINS = 15               # intervals of the confidence: (0, 1/BINS] is the first

cdef struct Tally:
    double entropy          # sums over rows
    double confidence
    double bins[3][BINS]    # rows, rows whose label is predicted, and sums of the confidence; without rows that have NaN

cdef inline void tally_as(const Request *request, const floating *confidences, Tally *t) noexcept nogil:
    cdef Py_ssize_t i, k
    for i in range(request.rows):
        if request.ranks[i] >= 0:
            k = <Py_ssize_t>ceil(<double>confidences[i]*BINS) - 1
            t.bins[0][k] += 1
            t.bins[1][k] += request.ranks[i] == 0
            t.bins[2][k] += confidences[i]

cdef inline void tally(const Request *request, Tally *t) noexcept nogil:
    """Adds up what EVALUATE has written."""
    memset(t, 0, sizeof(t[0]))
    if request.logits.dtype == F32:
        t.entropy = ce_chosen_f32.row_sum(request.entropies, request.rows)
        t.confidence = ce_chosen_f32.row_sum(request.confidences, request.rows)
        tally_as(request, <const float *>request.confidences, t)
    else:
        t.entropy = ce_chosen_f64.row_sum(request.entropies, request.rows)
        t.confidence = ce_chosen_f64.row_sum(request.confidences, request.rows)
        tally_as(request, <const double *>request.confidences, t)
