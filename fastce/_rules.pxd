# cython: cdivision=True
# Rules: what each option does to a call. A rule runs only where its option is given; without it a call is what the
# default in the signature says. A signature may contain exactly the options that `add_rules` lists.
from cpython.buffer cimport PyBUF_RECORDS, PyBUF_RECORDS_RO
from cpython.object cimport PyObject
from libc.float cimport DBL_MAX, FLT_MAX
from libc.limits cimport INT_MAX
from libc.stdint cimport INT64_MAX, INT64_MIN

from ._arguments cimport (
    INPUT, MEAN, NONE, OUT, OUT_HESS, POS_WEIGHT, ROW_MAX, SAMPLE_WEIGHT, SUM, TAIL, WEIGHT, Arguments, by_row, checks,
    exported, hold, input_dtype, numbers_dtype, row_shape, set_upstream, stored_dtype, take_real,
)
from ._layout cimport dtype_of, is_aligned, is_dense, overlap, same_shape
from ._request cimport F32, F64, KL_OF_LOGITS, KL_OF_PROBABILITIES, LOGSUMEXP, SIGMOID_TWO_TERM, SOFTMAX_TWO_TERM


# What is smaller than this becomes 0 with subnormals="flush". The product of a larger number and one of at least 2^-26,
# or 2^-122, is no subnormal number either: 2^-126 and 2^-1022 are the smallest normal ones.
cdef extern from *:
    """
    #define CE_FLUSH_F32 0x1p-100
    #define CE_FLUSH_F64 0x1p-900
    """
    const double FLUSH_F32 "CE_FLUSH_F32"
    const double FLUSH_F64 "CE_FLUSH_F64"


cdef inline double number(Arguments *a, str name, object value, double least, double most, str expected) except? -1:
    cdef double x = value if type(value) is float else checks(a).as_number(name, value)
    if not least <= x <= most:
        raise ValueError(f"{name} is {x}, expected {expected}")
    return x


cdef inline const double *weights(Arguments *a, int at, object value, str name, bint of_rows) except? NULL:
    """Finite numbers >= 0, one for each row or each class."""
    cdef int dtype = take_real(a, at, value, name)
    cdef const Py_buffer *view = &a.view[at]
    cdef Py_ssize_t i, n = a.request.rows if of_rows else a.request.classes
    cdef double largest = FLT_MAX if input_dtype(a) == F32 and not of_rows else DBL_MAX
    cdef const double *numbers
    if of_rows and same_shape(view, &a.view[INPUT], a.axes.class_axis):
        numbers = <const double *>by_row(a, at, dtype, F64)
    elif not of_rows and view.ndim == 1 and view.shape[0] == n:
        if dtype != F64 or view.strides[0] != sizeof(double):
            hold(a, at, checks(a).contiguous(view.obj, checks(a).F64), PyBUF_RECORDS_RO)
        numbers = <const double *>view.buf
    else:
        raise checks(a).weight_shape_error(name, view.obj, row_shape(a) if of_rows else (n,), of_rows)
    for i in range(n):
        if not 0 <= numbers[i] <= largest:
            raise checks(a).weight_error(name, value, checks(a).F32 if largest == FLT_MAX else checks(a).F64)
    return numbers


cdef inline int axis_rule(Arguments *a, object value) except -1:
    return 0            # `set_input` reads it: the rules of other options need the shape of a row


cdef inline int keepdims_rule(Arguments *a, object value) except -1:
    return 0            # `run_call` reads it


cdef inline int activation_rule(Arguments *a, object value) except -1:
    if not isinstance(value, str) or value not in ("sigmoid", "softmax"):
        raise ValueError(f"activation is {value!r}, expected 'sigmoid' or 'softmax'")
    a.request.operation = SOFTMAX_TWO_TERM if value == "softmax" else SIGMOID_TWO_TERM
    return 0


cdef inline int targets_rule(Arguments *a, object value) except -1:
    if not isinstance(value, str) or value not in ("logits", "probabilities"):
        raise ValueError(f"targets is {value!r}, expected 'logits' or 'probabilities'")
    a.request.operation = KL_OF_LOGITS if value == "logits" else KL_OF_PROBABILITIES
    return 0


cdef inline int reduction_rule(Arguments *a, object value) except -1:
    if not isinstance(value, str) or value not in ("mean", "sum", "none"):
        raise ValueError(f"reduction is {value!r}, expected 'mean', 'sum' or 'none'")
    a.reduction = MEAN if value == "mean" else SUM if value == "sum" else NONE
    return 0


cdef inline int num_threads_rule(Arguments *a, object value) except -1:
    if value is not None:
        a.request.num_threads = value if type(value) is int and 0 < value <= INT_MAX else checks(a).as_threads(value)
    return 0


cdef inline int weight_rule(Arguments *a, object value) except -1:
    if value is not None:
        a.request.weight = weights(a, WEIGHT, value, "weight", False)
    return 0


cdef inline int pos_weight_rule(Arguments *a, object value) except -1:
    if value is not None:
        if a.request.operation != SIGMOID_TWO_TERM:
            raise ValueError("pos_weight belongs to activation='sigmoid'")
        a.request.pos_weight = weights(a, POS_WEIGHT, value, "pos_weight", False)
    return 0


cdef inline int sample_weight_rule(Arguments *a, object value) except -1:
    if value is not None:
        a.request.sample_weight = weights(a, SAMPLE_WEIGHT, value, "sample_weight", True)
    return 0


cdef inline int ignore_index_rule(Arguments *a, object value) except -1:
    if value is not None and type(value) is not int:
        checks(a).as_index("ignore_index", value)
    a.ignore_index = <PyObject *>value
    a.request.has_ignore_index = value is not None and INT64_MIN <= value <= INT64_MAX
    if a.request.has_ignore_index:
        a.request.ignore_index = value
    return 0


cdef inline int label_smoothing_rule(Arguments *a, object value) except -1:
    a.request.label_smoothing = number(a, "label_smoothing", value, 0, 1, "a number in [0, 1]")
    return 0


cdef inline int z_loss_rule(Arguments *a, object value) except -1:
    a.request.z_loss = number(a, "z_loss", value, 0, DBL_MAX, "a finite number >= 0")
    return 0


cdef inline int softcap_rule(Arguments *a, object value) except -1:
    if value is not None:
        a.request.softcap = number(a, "softcap", value, 1e-15, 1e15, "None or a number in [1e-15, 1e15]")
    return 0


cdef inline int temperature_rule(Arguments *a, object value) except -1:
    a.request.temperature = number(a, "temperature", value, 1e-15, 1e15, "a number in [1e-15, 1e15]")
    return 0


cdef inline int subnormals_rule(Arguments *a, object value) except -1:
    if not isinstance(value, str) or value not in ("keep", "flush"):
        raise ValueError(f"subnormals is {value!r}, expected 'keep' or 'flush'")
    if value == "flush":
        a.request.flush_below = FLUSH_F32 if input_dtype(a) == F32 else FLUSH_F64
    return 0


cdef inline int normalizer_rule(Arguments *a, object value) except -1:
    if value is not None:
        if a.reduction != MEAN:
            reduction = "sum" if a.reduction == SUM else "none"
            raise ValueError(f"normalizer is what a mean divides by; reduction is {reduction!r}")
        a.normalizer = number(a, "normalizer", value, 5e-324, DBL_MAX, "a finite number > 0")
    return 0


cdef inline int upstream_rule(Arguments *a, object value) except -1:
    if a.reduction == NONE and not isinstance(value, (float, int)):
        return set_upstream(a, value)
    a.request.scale = value if type(value) is float else checks(a).as_number("upstream", value)
    return 0


cdef inline int stats_rule(Arguments *a, object value) except -1:
    cdef int k, dtype
    if value is None:
        return 0
    if not isinstance(value, tuple) or len(value) != 2:
        raise TypeError(f"stats is {type(value).__name__}, expected the SoftmaxStats that the forward returned")
    for k in range(2):
        dtype = take_real(a, ROW_MAX + k, value[k], "stats.tail" if k else "stats.row_max")
        if dtype != input_dtype(a) or not same_shape(&a.view[ROW_MAX + k], &a.view[INPUT], a.axes.class_axis):
            raise checks(a).stats_error("stats.tail" if k else "stats.row_max", a.view[ROW_MAX + k].obj, row_shape(a),
                                        a.view[INPUT].obj.shape, numbers_dtype(a))
        by_row(a, ROW_MAX + k, dtype, dtype)
    a.request.stats_given = True
    a.request.row_max, a.request.tail = a.view[ROW_MAX].buf, a.view[TAIL].buf
    return 0


cdef inline int set_out(Arguments *a, int at, object value, str label) except -1:
    cdef Py_buffer *view = &a.view[at]
    cdef int without = a.axes.class_axis if a.request.operation == LOGSUMEXP else -1
    cdef int dtype = stored_dtype(a) if without < 0 else input_dtype(a)
    cdef bint fits = False
    if at == OUT:
        a.out = <PyObject *>value
    else:
        a.out_hess = <PyObject *>value
    if type(value) is <object>a.ndarray:
        try:
            hold(a, at, value, PyBUF_RECORDS)
            fits = (dtype_of(view) == dtype and not a.converted and is_aligned(view) and is_dense(view)
                    and same_shape(view, &a.view[INPUT], without))
        except (BufferError, TypeError, ValueError):
            pass        # read-only, or a dtype that the buffer protocol does not know
    if not fits:
        name = <object>a.input_name
        plain = checks(a).check_out(value, a.view[INPUT].obj.shape if without < 0 else row_shape(a),
                                    <object>a.dtype if without < 0 else numbers_dtype(a), name if without < 0 else
                                    f"{name} without its class axis", label)
        hold(a, at, exported(a, plain), PyBUF_RECORDS)
    return 0


cdef inline int out_rule(Arguments *a, object value) except -1:
    if value is None:
        return 0
    if not a.with_hess:
        return set_out(a, OUT, value, "out")
    if not isinstance(value, tuple) or len(value) != 2:
        raise TypeError(f"out is {type(value).__name__}, expected a tuple of two arrays: (grad, hess)")
    set_out(a, OUT, value[0], "out[0]")
    set_out(a, OUT_HESS, value[1], "out[1]")
    if overlap(&a.view[OUT], &a.view[OUT_HESS]):
        checks(a).check_apart(value)
    return 0


cdef inline int return_stats_rule(Arguments *a, object value) except -1:
    a.return_stats = value
    return 0


cdef inline int return_rows_rule(Arguments *a, object value) except -1:
    a.return_rows = value
    return 0


# --- The list of all rules -------------------------------------------------------------------------------------------

ctypedef int (*Rule)(Arguments *a, object value) except -1

cdef enum:
    AXIS = 0, KEEPDIMS = 1, MAX_RULES = 32


cdef inline int add_rule(Rule *rules, list names, str name, Rule rule) except -1:
    rules[len(names)] = rule
    names.append(name)
    return 0


cdef inline int add_rules(Rule *rules, list names) except -1:
    """The rules and the names of their options, in the order in which they run. The first are AXIS and
    KEEPDIMS."""
    add_rule(rules, names, "axis", axis_rule)
    add_rule(rules, names, "keepdims", keepdims_rule)
    add_rule(rules, names, "activation", activation_rule)
    add_rule(rules, names, "targets", targets_rule)
    add_rule(rules, names, "reduction", reduction_rule)
    add_rule(rules, names, "num_threads", num_threads_rule)
    add_rule(rules, names, "weight", weight_rule)
    add_rule(rules, names, "pos_weight", pos_weight_rule)
    add_rule(rules, names, "sample_weight", sample_weight_rule)
    add_rule(rules, names, "ignore_index", ignore_index_rule)
    add_rule(rules, names, "label_smoothing", label_smoothing_rule)
    add_rule(rules, names, "z_loss", z_loss_rule)
    add_rule(rules, names, "temperature", temperature_rule)
    add_rule(rules, names, "softcap", softcap_rule)
    add_rule(rules, names, "subnormals", subnormals_rule)
    add_rule(rules, names, "normalizer", normalizer_rule)
    add_rule(rules, names, "upstream", upstream_rule)
    add_rule(rules, names, "stats", stats_rule)
    add_rule(rules, names, "out", out_rule)
    add_rule(rules, names, "return_stats", return_stats_rule)
    add_rule(rules, names, "return_rows", return_rows_rule)
    return 0
