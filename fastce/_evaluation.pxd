# cython: cdivision=True
# What the rows of an evaluation add up to.
from cython cimport floating
from libc.math cimport ceil
from libc.string cimport memset

from ._job cimport Sum, add
from ._request cimport F32, Request, computed_dtype

cdef enum:
    BINS = 15               # intervals of the confidence: (0, 1/BINS] is the first

cdef struct Tally:
    Sum entropy             # over rows
    Sum confidence
    double bins[3][BINS]    # rows, rows whose label is predicted, sums of the confidence; without rows that have NaN

cdef inline void tally_as(const Request *request, const floating *dtype, Tally *t) noexcept nogil:
    cdef const floating *entropies = <const floating *>request.entropies
    cdef const floating *confidences = <const floating *>request.confidences
    cdef Py_ssize_t i, k
    for i in range(request.rows):
        add(&t.entropy, entropies[i])
        add(&t.confidence, confidences[i])
        if request.ranks[i] >= 0:
            k = <Py_ssize_t>ceil(<double>confidences[i]*BINS) - 1
            t.bins[0][k] += 1
            t.bins[1][k] += request.ranks[i] == 0
            t.bins[2][k] += confidences[i]

cdef inline void tally(const Request *request, Tally *t) noexcept nogil:
    """Adds up what EVALUATE has written."""
    memset(t, 0, sizeof(t[0]))
    if computed_dtype(request.logits.dtype) == F32:
        tally_as(request, <const float *>NULL, t)
    else:
        tally_as(request, <const double *>NULL, t)
