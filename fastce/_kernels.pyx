# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
# cython: embedsignature=False, freethreading_compatible=True
"""The frame: a call of a public function, from Python objects to a `Request`, and from its outputs to Python objects.

The public functions are signatures and docstrings (_cross_entropy.py, _two_term.py, _softmax.py). `function` binds each of them
to an operation. The section "Rules" says what each option does to a call. An option that is not given costs nothing. A
signature that contains an option without a rule is refused at import, so no option can be accepted and ignored.

Arrays are seen through the buffer protocol. An array that is plain, aligned and in native byte order is used where it lies.
_checks.py converts all others and makes the errors. Nothing is written before everything is checked.
"""
cimport cython
from cpython.buffer cimport (
    PyBUF_RECORDS, PyBUF_RECORDS_RO, PyBUF_SIMPLE, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.object cimport PyObject
from libc.float cimport DBL_MAX, FLT_MAX
from libc.math cimport NAN
from libc.stdint cimport INT64_MAX, INT64_MIN, int64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

import functools

import numpy

from . import _checks
from ._stats import SoftmaxStats

from ._blocks cimport counted_labels, labels_at, mean_weight
from ._layout cimport (
    Axes, as_matrix, axes_of, dtype_of, is_aligned, is_c_contiguous, is_dense, overlap, rows_of, same_memory, same_shape,
)
from ._primitives cimport (
    CE_COMPILER, CE_ISA_COUNT, ce_automatic_threads, ce_choose, ce_isas, ce_limit_threads, ce_openmp_version,
    ce_watch_forks,
)
from ._request cimport (
    CROSS_ENTROPY, F32, F64, LOG_SOFTMAX, LOG_SOFTMAX_GRAD, LOGSUMEXP, NO_DTYPE, SIGMOID_TWO_TERM, SOFTMAX, SOFTMAX_GRAD,
    SOFTMAX_TWO_TERM, U64, defaults, matrix,
)
from ._row_functions cimport label_loss, merged_stats, row_backward, row_loss, row_loss_and_grad, row_stats
from ._run cimport execute

cdef object ndarray = numpy.ndarray, empty = numpy.empty, empty_like = numpy.empty_like
cdef object float32 = numpy.float32, float64 = numpy.float64, new_tuple = tuple.__new__
cdef object MISSING = object()

cdef enum:              # the arrays of a call
    INPUT, TARGETS, UPSTREAM, WEIGHT, POS_WEIGHT, SAMPLE_WEIGHT, ROW_MAX, TAIL, OUT, RESULT, ARRAYS

cdef enum:              # what a function returns
    LOSS = 1, ARRAY = 2

cdef enum:
    PREDICT = 100       # an operation of the frame alone

cdef dict OPERATIONS = {
    "cross_entropy": CROSS_ENTROPY, "two_term": SIGMOID_TWO_TERM, "softmax": SOFTMAX, "log_softmax": LOG_SOFTMAX,
    "logsumexp": LOGSUMEXP, "softmax_grad": SOFTMAX_GRAD, "log_softmax_grad": LOG_SOFTMAX_GRAD, "predict": PREDICT,
}


@cython.final
cdef class Function:
    """What the frame knows of a public function."""
    cdef object face            # the Python function that has its signature and docstring
    cdef tuple arguments        # the names of its positional arguments
    cdef dict options           # the number of the rule of each of its options
    cdef int operation
    cdef int returns            # LOSS, ARRAY or both
    cdef str reduction          # the default; "none" for a function that has no such option
    cdef bint is_product        # of an upstream gradient and a Jacobian: its arguments are upstream and y


@cython.final
@cython.freelist(8)
@cython.no_gc           # nothing that it refers to refers to it
cdef class Call:
    """One call: its arguments as they become a request, and what it will return."""
    cdef Function function
    cdef Request request
    cdef Axes axes
    cdef Py_buffer view[ARRAYS]
    cdef void *blocks[ARRAYS]           # offsets that the matrix of an array points to
    cdef PyObject *ignore_index         # as it was given, or NULL
    cdef object input                   # the logits, or y, as they are computed
    cdef object targets
    cdef object out                     # the caller's buffer, or None
    cdef object grad                    # what the kernels write to: `out`, or a new array
    cdef object losses
    cdef object stats
    cdef str reduction
    cdef bint return_stats
    cdef double normalizer              # 0: not given
    cdef double denominator
    cdef double total

    def __dealloc__(self):
        cdef int k
        for k in range(ARRAYS):
            if <PyObject *>self.view[k].obj != NULL:
                PyBuffer_Release(&self.view[k])
            if self.blocks[k] != NULL:
                free(self.blocks[k])

    # -- Arrays

    cdef int hold(self, int at, object array, int flags) except -1:
        PyBuffer_Release(&self.view[at])
        PyObject_GetBuffer(array, &self.view[at], flags)
        return 0

    cdef int take(self, int at, object value) except -1:
        """Hold a plain, aligned, native array and return its dtype. For anything else, hold nothing: NO_DTYPE."""
        cdef int dtype = NO_DTYPE
        if type(value) is not ndarray:
            return NO_DTYPE
        try:
            self.hold(at, value, PyBUF_RECORDS_RO)
            dtype = dtype_of(&self.view[at])
        except (BufferError, TypeError, ValueError):    # a dtype that the buffer protocol does not know
            return NO_DTYPE
        if dtype == NO_DTYPE or not is_aligned(&self.view[at]):
            PyBuffer_Release(&self.view[at])
            return NO_DTYPE
        return dtype

    cdef int take_real(self, int at, object value, str name) except -1:
        """Hold an array-like of any real dtype, converted if it must be."""
        cdef int dtype = self.take(at, value)
        return dtype if dtype != NO_DTYPE else self.take(at, _checks.as_real(name, value))

    cdef int set_matrix(self, int at, int dtype, Matrix *m) except -1:
        if as_matrix(&self.view[at], &self.axes, dtype, self.request.rows, m, &self.blocks[at]) != 0:
            raise MemoryError(f"no memory for the offsets of {self.request.rows} rows")
        return 0

    cdef const void *by_row(self, int at, int dtype, int wanted) except? NULL:
        """The numbers of an array by row: contiguous, in the order in which rows are counted, of the wanted dtype."""
        cdef Matrix m
        self.set_matrix(at, dtype, &m)
        if dtype != wanted or m.blocks != NULL or (m.row_stride != self.view[at].itemsize and self.request.rows > 1):
            array = self.view[at].obj.transpose(self.row_axes())
            self.hold(at, _checks.contiguous(array, float32 if wanted == F32 else float64), PyBUF_RECORDS_RO)
        return self.view[at].buf

    cdef int input_dtype(self) noexcept:
        return self.request.y.dtype if self.function.is_product else self.request.logits.dtype

    cdef tuple row_shape(self):
        cdef tuple shape = self.input.shape
        return shape[:self.axes.class_axis] + shape[self.axes.class_axis + 1:]

    cdef list row_axes(self):
        """The axes of an array by row, in the order in which rows are counted."""
        return [self.axes.order[k] - (self.axes.order[k] > self.axes.class_axis) for k in range(self.axes.ndim - 1)]

    cdef object new_result(self, bint by_class, void **data):
        """A new array by row, or by row and class: in the order in which rows are counted, classes last."""
        cdef Py_buffer view
        cdef list order
        if self.axes.sorted and not by_class:
            array = empty(self.row_shape(), self.input.dtype)
        else:
            order = [self.axes.order[k] for k in range(self.axes.ndim - 1)] + [self.axes.class_axis]
            shape = [self.input.shape[k] for k in order]
            array = empty(shape if by_class else shape[:self.axes.ndim - 1], self.input.dtype)
            order = order if by_class else self.row_axes()
            array = array.transpose([order.index(k) for k in range(len(order))])
        PyObject_GetBuffer(array, &view, PyBUF_STRIDES | PyBUF_WRITABLE)
        data[0] = view.buf
        PyBuffer_Release(&view)
        return array

    cdef object new_array(self):
        """A new array of the shape and memory order of the logits."""
        if is_c_contiguous(&self.view[INPUT]):      # the usual case; empty_like takes three times as long
            return empty(self.input.shape, self.input.dtype)
        return empty_like(self.input)

    # -- Positional arguments

    cdef int set_input(self, object value, PyObject *axis) except -1:
        """The logits, or y, and how their rows are counted."""
        cdef str name = self.function.arguments[self.function.is_product]
        cdef int dtype = self.take(INPUT, value), at
        cdef Py_buffer *view = &self.view[INPUT]
        cdef Request *r = &self.request
        if dtype != F32 and dtype != F64 and (dtype == NO_DTYPE or self.function.operation != PREDICT):
            value = _checks.as_logits(name, value, self.function.operation == PREDICT)
            dtype = self.take(INPUT, value)
        if view.ndim == 0:
            raise ValueError(f"{name} is a scalar, expected at least one dimension: the classes")
        at = view.ndim - 1 if axis == NULL else _checks.as_axis(<object>axis, view.ndim)
        if view.shape[at] == 0:
            raise ValueError(f"{name} has shape {value.shape}: no classes on axis {at}")
        r[0] = defaults()
        r.operation, r.classes, r.rows = self.function.operation, view.shape[at], rows_of(view, at)
        self.input, self.axes, self.reduction, self.denominator = value, axes_of(view, at), self.function.reduction, 1
        self.set_matrix(INPUT, dtype, &r.y if self.function.is_product else &r.logits)
        return 0

    cdef int set_targets(self, object value) except -1:
        """Class indices or probabilities, told apart by their shape."""
        cdef int dtype = self.take(TARGETS, value)
        cdef const Py_buffer *view = &self.view[TARGETS]
        cdef bint may_be_labels = self.request.operation == CROSS_ENTROPY
        if dtype == NO_DTYPE:
            value = _checks.as_targets(value, self.input.shape)
            dtype = self.take(TARGETS, value)
        self.targets = value
        if dtype == NO_DTYPE:
            raise _checks.targets_error(value, self.input.shape, self.axes.class_axis, may_be_labels)
        if same_shape(view, &self.view[INPUT], -1):
            return self.set_matrix(TARGETS, dtype, &self.request.targets)
        if (not may_be_labels or dtype >= F32 or view.format[0] == b"?"
                or not same_shape(view, &self.view[INPUT], self.axes.class_axis)):
            raise _checks.targets_error(value, self.input.shape, self.axes.class_axis, may_be_labels)
        return self.set_matrix(TARGETS, dtype, &self.request.labels)

    cdef int set_upstream(self, object value) except -1:
        """One number for each row, or for each element."""
        cdef bint by_class = self.request.operation == SIGMOID_TWO_TERM or self.function.is_product
        cdef int wanted = self.input_dtype() if self.function.is_product else F64
        cdef int dtype = self.take_real(UPSTREAM, value, "upstream")
        cdef const Py_buffer *view = &self.view[UPSTREAM]
        if view.ndim == 0 and not self.function.is_product:
            self.request.scale = view.obj
            return 0
        if not same_shape(view, &self.view[INPUT], -1 if by_class else self.axes.class_axis):
            raise _checks.upstream_error(view.obj, self.input.shape if by_class else self.row_shape(),
                                         self.function.is_product)
        if dtype != wanted:
            dtype = self.take(UPSTREAM, _checks.converted(view.obj, float32 if wanted == F32 else float64))
        return self.set_matrix(UPSTREAM, dtype, &self.request.upstream)

    # -- What follows from the arguments

    cdef int set_denominator(self) except -1:
        """Count the labels, and find what a mean divides by."""
        cdef Request *r = &self.request
        if r.labels.data != NULL:
            ignored = r.ignore_index if self.ignore_index == NULL else <object>self.ignore_index
            if r.labels.dtype == U64 and not r.has_ignore_index and ignored is not None:    # int64 does not hold it
                self.set_matrix(TARGETS, self.take(TARGETS, _checks.as_int64(self.targets, ignored)), &r.labels)
                r.ignore_index, r.has_ignore_index = -1, True
            r.counted = counted_labels(&r.labels, r.rows, r.classes, r.ignore_index, r.has_ignore_index)
            if r.counted < 0:
                raise _checks.label_error(self.targets, r.classes, ignored)
        if self.reduction == "mean":
            self.denominator = self.normalizer if self.normalizer != 0 else mean_weight(r)
            r.scale = r.scale/self.denominator if self.denominator != 0 else 0
        return 0

    cdef bint out_overlaps(self) noexcept:
        """Whether `out` shares memory with an argument, except where each element is read before it is written."""
        cdef int k
        for k in range(OUT):
            if <PyObject *>self.view[k].obj != NULL and overlap(&self.view[OUT], &self.view[k]):
                if not ((k == INPUT or self.function.is_product) and same_memory(&self.view[OUT], &self.view[k])):
                    return True
        return False

    cdef int make_results(self) except -1:
        """The arrays that the kernels write to: the caller's, or new ones."""
        cdef Request *r = &self.request
        cdef int at = OUT
        if self.function.returns & ARRAY:
            if self.out is None or self.out_overlaps():
                at, self.grad = RESULT, self.new_array()
                self.hold(RESULT, self.grad, PyBUF_STRIDES | PyBUF_WRITABLE)
            else:
                self.grad = self.out
            if self.denominator != 0:
                self.set_matrix(at, self.input_dtype(), &r.grad)
            else:
                self.grad.fill(0)
        if self.function.returns & LOSS:
            if self.reduction == "none":
                self.losses = self.new_result(r.operation == SIGMOID_TWO_TERM, &r.losses)
            else:
                r.total = &self.total
        if self.return_stats:
            row_max = self.new_result(False, &r.row_max)
            self.stats = new_tuple(SoftmaxStats, (row_max, self.new_result(False, &r.tail)))
        return 0

    cdef object results(self):
        cdef double loss = self.total
        value, result = self.losses, self.grad
        if self.out is not None and self.out is not result:
            result = self.out
            result[...] = value if self.grad is None else self.grad
        if not self.function.returns & LOSS:
            return result
        if self.function.operation == LOGSUMEXP:
            return result if result is not None else value[()] if self.axes.ndim == 1 else value
        if value is None:
            if self.reduction == "mean":
                loss = loss/self.denominator if self.denominator != 0 else NAN
            value = float32(<float>loss) if self.input_dtype() == F32 else float64(loss)
        if self.function.returns & ARRAY:
            return value, result
        return (value, self.stats) if self.return_stats else value


cdef tuple present(object first, object second):
    return tuple([value for value in (first, second) if value is not MISSING])


cdef object run_call(Function function, object first, object second, dict options):
    cdef Call call
    cdef PyObject *given[MAX_RULES]
    cdef int k, status = 0
    if first is MISSING or (second is MISSING) != (len(function.arguments) == 1):
        arguments, options = _checks.bound(function.face, function.arguments, present(first, second), options)
        first = arguments[0]
        second = arguments[1] if len(arguments) == 2 else MISSING
    if function.operation == PREDICT and not options and is_plain_logits(first):
        return first.argmax(-1)
    memset(given, 0, sizeof(given))
    for name, value in options.items():
        number = function.options.get(name)
        if number is None:
            function.face(*present(first, second), **options)   # raises what Python raises for an unknown option
        given[<int>number] = <PyObject *>value
    call = Call.__new__(Call)
    call.function = function
    call.set_input(second if function.is_product else first, given[AXIS])
    if function.operation == PREDICT:
        return call.input.argmax(call.axes.class_axis)
    if function.is_product:
        call.set_upstream(first)
    elif second is not MISSING:
        call.set_targets(second)
    for k in range(AXIS + 1, rule_count):
        if given[k] != NULL:
            rules[k](call, <object>given[k])
    call.set_denominator()
    call.make_results()
    if call.request.rows > 0:
        with nogil:
            status = execute(&call.request)
    if status != 0:
        raise MemoryError(f"no memory to work on {call.request.rows} rows of {call.request.classes} classes")
    return call.results()


def function(str operation, *returns):
    """A decorator: bind a signature with a docstring to an operation.

    Parameters
    ----------
    operation : str
        A key of OPERATIONS.
    *returns
        "loss", "array" or both.

    Raises
    ------
    TypeError
        The signature contains an option for which there is no rule.
    """
    def bind(face):
        cdef Function f = Function.__new__(Function)
        f.face, f.operation = face, OPERATIONS[operation]
        f.arguments = face.__code__.co_varnames[:face.__code__.co_argcount]
        f.returns = LOSS*("loss" in returns) | ARRAY*("array" in returns)
        f.is_product = f.operation == SOFTMAX_GRAD or f.operation == LOG_SOFTMAX_GRAD
        f.options = {}
        for name in face.__kwdefaults__:
            if name not in rule_names:
                raise TypeError(f"{face.__name__} has an option {name!r}, for which there is no rule")
            f.options[name] = rule_names.index(name)
        f.reduction = face.__kwdefaults__.get("reduction", "none")

        def call(first=MISSING, second=MISSING, /, **options):     # no *arguments: a call without a tuple is faster
            return run_call(f, first, second, options)

        return functools.update_wrapper(call, face)
    return bind


# --- Rules -------------------------------------------------------------------------------------------------------------
# What each option does to a call. They run in the order of `rule_names`, and only for options that are given: without
# them a call is what the defaults in the signatures say.

ctypedef int (*Rule)(Call call, object value) except -1

cdef enum:
    AXIS = 0, MAX_RULES = 32

cdef list rule_names = []
cdef Rule rules[MAX_RULES]
cdef int rule_count = 0


cdef int rule(str name, Rule apply) except -1:
    global rule_count
    rules[rule_count] = apply
    rule_names.append(name)
    rule_count += 1
    return 0


cdef double number(str name, object value, double least, double most, str expected) except? -1:
    cdef double x = value if type(value) is float else _checks.as_number(name, value)
    if not least <= x <= most:
        raise ValueError(f"{name} is {x}, expected {expected}")
    return x


cdef const double *weights(Call call, int at, object value, str name, bint by_row) except? NULL:
    """Finite numbers >= 0, one for each row or each class."""
    cdef int dtype = call.take_real(at, value, name)
    cdef const Py_buffer *view = &call.view[at]
    cdef Py_ssize_t i, n = call.request.rows if by_row else call.request.classes
    cdef double largest = FLT_MAX if call.input_dtype() == F32 and not by_row else DBL_MAX
    cdef const double *numbers
    if by_row and same_shape(view, &call.view[INPUT], call.axes.class_axis):
        numbers = <const double *>call.by_row(at, dtype, F64)
    elif not by_row and view.ndim == 1 and view.shape[0] == n:
        if dtype != F64 or view.strides[0] != sizeof(double):
            call.hold(at, _checks.contiguous(view.obj, float64), PyBUF_RECORDS_RO)
        numbers = <const double *>view.buf
    else:
        raise _checks.weight_shape_error(name, view.obj, call.row_shape() if by_row else (n,), by_row)
    for i in range(n):
        if not 0 <= numbers[i] <= largest:
            raise _checks.weight_error(name, value, float32 if largest == FLT_MAX else float64)
    return numbers


cdef int axis_rule(Call call, object value) except -1:
    return 0            # `set_input` takes it: the rules of other options need the shape of a row


cdef int activation_rule(Call call, object value) except -1:
    if not isinstance(value, str) or value not in ("sigmoid", "softmax"):
        raise ValueError(f"activation is {value!r}, expected 'sigmoid' or 'softmax'")
    call.request.operation = SOFTMAX_TWO_TERM if value == "softmax" else SIGMOID_TWO_TERM
    return 0


cdef int reduction_rule(Call call, object value) except -1:
    if not isinstance(value, str) or value not in ("mean", "sum", "none"):
        raise ValueError(f"reduction is {value!r}, expected 'mean', 'sum' or 'none'")
    call.reduction = str(value)
    return 0


cdef int num_threads_rule(Call call, object value) except -1:
    call.request.num_threads = 0 if value is None else _checks.as_threads(value)
    return 0


cdef int weight_rule(Call call, object value) except -1:
    if value is not None:
        call.request.weight = weights(call, WEIGHT, value, "weight", False)
    return 0


cdef int pos_weight_rule(Call call, object value) except -1:
    if value is not None:
        if call.request.operation != SIGMOID_TWO_TERM:
            raise ValueError("pos_weight belongs to activation='sigmoid'")
        call.request.pos_weight = weights(call, POS_WEIGHT, value, "pos_weight", False)
    return 0


cdef int sample_weight_rule(Call call, object value) except -1:
    if value is not None:
        call.request.sample_weight = weights(call, SAMPLE_WEIGHT, value, "sample_weight", True)
    return 0


cdef int ignore_index_rule(Call call, object value) except -1:
    if value is not None and type(value) is not int:
        _checks.as_index("ignore_index", value)
    call.ignore_index = <PyObject *>value
    call.request.has_ignore_index = value is not None and INT64_MIN <= value <= INT64_MAX
    if call.request.has_ignore_index:
        call.request.ignore_index = value
    return 0


cdef int label_smoothing_rule(Call call, object value) except -1:
    call.request.label_smoothing = number("label_smoothing", value, 0, 1, "a number in [0, 1]")
    return 0


cdef int z_loss_rule(Call call, object value) except -1:
    call.request.z_loss = number("z_loss", value, 0, DBL_MAX, "a finite number >= 0")
    return 0


cdef int normalizer_rule(Call call, object value) except -1:
    if value is not None:
        if call.reduction != "mean":
            raise ValueError(f"normalizer is what a mean divides by; reduction is {call.reduction!r}")
        call.normalizer = number("normalizer", value, 5e-324, DBL_MAX, "a finite number > 0")
    return 0


cdef int upstream_rule(Call call, object value) except -1:
    if call.reduction == "none" and not isinstance(value, (float, int)):
        return call.set_upstream(value)
    call.request.scale = value if type(value) is float else _checks.as_number("upstream", value)
    return 0


cdef int stats_rule(Call call, object value) except -1:
    cdef int k, dtype
    if value is None:
        return 0
    if not isinstance(value, tuple) or len(value) != 2:
        raise TypeError(f"stats is {type(value).__name__}, expected the SoftmaxStats that the forward returned")
    for k in range(2):
        dtype = call.take_real(ROW_MAX + k, value[k], "stats.tail" if k else "stats.row_max")
        if dtype != call.input_dtype() or not same_shape(&call.view[ROW_MAX + k], &call.view[INPUT], call.axes.class_axis):
            raise _checks.stats_error("stats.tail" if k else "stats.row_max", call.view[ROW_MAX + k].obj,
                                      call.row_shape(), call.input)
        call.by_row(ROW_MAX + k, dtype, dtype)
    call.request.stats_given = True
    call.request.row_max, call.request.tail = call.view[ROW_MAX].buf, call.view[TAIL].buf
    return 0


cdef int out_rule(Call call, object value) except -1:
    cdef Py_buffer *view = &call.view[OUT]
    cdef int without = call.axes.class_axis if call.function.operation == LOGSUMEXP else -1
    cdef bint fits = False
    if value is None:
        return 0
    if type(value) is ndarray:
        try:
            call.hold(OUT, value, PyBUF_RECORDS)
            fits = (dtype_of(view) == call.input_dtype() and is_aligned(view) and is_dense(view)
                    and same_shape(view, &call.view[INPUT], without))
        except (BufferError, TypeError, ValueError):
            pass        # read-only, or a dtype that the buffer protocol does not know
    if not fits:
        name = call.function.arguments[call.function.is_product]
        _checks.check_out(value, call.input.shape if without < 0 else call.row_shape(), call.input.dtype,
                          name if without < 0 else f"{name} without its class axis")
        call.hold(OUT, value, PyBUF_RECORDS)
    call.out = value
    return 0


cdef int return_stats_rule(Call call, object value) except -1:
    call.return_stats = value
    return 0


rule("axis", axis_rule)
rule("activation", activation_rule)
rule("reduction", reduction_rule)
rule("num_threads", num_threads_rule)
rule("weight", weight_rule)
rule("pos_weight", pos_weight_rule)
rule("sample_weight", sample_weight_rule)
rule("ignore_index", ignore_index_rule)
rule("label_smoothing", label_smoothing_rule)
rule("z_loss", z_loss_rule)
rule("normalizer", normalizer_rule)
rule("upstream", upstream_rule)
rule("stats", stats_rule)
rule("out", out_rule)
rule("return_stats", return_stats_rule)


# --- Predictions and one-hot rows ---------------------------------------------------------------------------------------

cdef bint is_plain_logits(object value):
    """Whether NumPy's own argmax along the last axis is what `predict` is: logits with at least one class."""
    cdef Py_buffer view
    cdef bint plain
    if type(value) is not ndarray:
        return False
    try:
        PyObject_GetBuffer(value, &view, PyBUF_RECORDS_RO)
    except (BufferError, TypeError, ValueError):
        return False
    plain = dtype_of(&view) >= F32 and view.ndim > 0 and view.shape[view.ndim - 1] > 0
    PyBuffer_Release(&view)
    return plain


def set_ones(rows, labels, Py_ssize_t classes, Py_ssize_t inner, one):
    """Copy `one` to rows[..., label, ...] for each label. All arrays are in C order, and `inner` elements of `rows` follow
    each class. Return False, and write nothing, if a label is not a class."""
    cdef Call call = Call.__new__(Call)
    cdef int dtype = call.take(TARGETS, labels)
    cdef const Py_buffer *view = &call.view[TARGETS]
    cdef Py_ssize_t i, n = view.len/view.itemsize, at
    cdef int64_t scratch
    cdef Matrix m = matrix(view.buf, dtype, view.itemsize, 0)
    call.hold(RESULT, rows, PyBUF_WRITABLE)
    call.hold(OUT, one, PyBUF_SIMPLE)
    if counted_labels(&m, n, classes, 0, False) < 0:
        return False
    for i in range(n):
        at = (i/inner*classes + labels_at(&m, i, 1, 0, &scratch)[0])*inner + i % inner
        memcpy(<char *>call.view[RESULT].buf + at*call.view[OUT].len, call.view[OUT].buf, call.view[OUT].len)
    return True


# --- What the package reads and sets when it is imported ------------------------------------------------------------------

def limit_threads(int quota):
    """No call uses more threads than this by itself; 0: no limit."""
    ce_limit_threads(quota)


def automatic_threads():
    """How many threads a large call from this thread would use."""
    return ce_automatic_threads()


def available():
    """The instruction sets that this processor runs, best first."""
    return [ce_isas[i].name.decode() for i in range(CE_ISA_COUNT) if ce_isas[i].runs_here()]


def select(name):
    """Selects an instruction set by its name, or the best one for None. Returns its name, or None if it is not there."""
    cdef int i
    for i in range(CE_ISA_COUNT):
        if ce_isas[i].runs_here() and (name is None or ce_isas[i].name.decode() == name):
            ce_choose(i)
            return ce_isas[i].name.decode()
    return None


openmp = str(ce_openmp_version()) if ce_openmp_version() else None
compiler = CE_COMPILER.decode()
ce_watch_forks()


# --- What other Cython modules cimport (_kernels.pxd) -----------------------------------------------------------------

cdef int run(const Request *request) noexcept nogil:
    return execute(request)


cdef Py_ssize_t count_labels(const Matrix *labels, Py_ssize_t rows, Py_ssize_t classes, int64_t ignore_index,
                             bint has_ignore_index) noexcept nogil:
    return counted_labels(labels, rows, classes, ignore_index, has_ignore_index)


cdef void merge_stats(double *row_max, double *tail, double other_row_max, double other_tail) noexcept nogil:
    merged_stats(row_max, tail, other_row_max, other_tail)


cdef double loss_from_stats(double row_max, double tail, double x_label) noexcept nogil:
    return label_loss(row_max, tail, x_label)


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
