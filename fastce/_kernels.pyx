# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
# cython: embedsignature=False, freethreading_compatible=True
"""The frame: a call of a public function, from Python objects to a `Request` and from its outputs to Python objects.

The public functions are signatures and docstrings (_cross_entropy.py, _two_term.py, _softmax.py); `function` binds each to an
operation. What an option does to a call stands in `rules`, one C function for each. An option that is not given costs
nothing. A signature that has an option without a rule is refused when the package is imported, so that no option can be
accepted and ignored.

Arrays are seen through the buffer protocol. An array that is plain, aligned and in native byte order is used where it lies.
_checks.py converts everything else, and makes the errors. Nothing is written before everything is checked.
"""
cimport cython
from cpython.buffer cimport (
    PyBUF_RECORDS, PyBUF_RECORDS_RO, PyBUF_SIMPLE, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.object cimport PyObject
from libc.float cimport DBL_MAX, FLT_MAX
from libc.math cimport INFINITY, NAN
from libc.stdint cimport INT64_MAX, INT64_MIN, int64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

import functools

import numpy

from . import _checks
from ._stats import SoftmaxStats

from ._blocks cimport counted_labels, labels_at, mean_weight
from ._layout cimport Axes, as_matrix, axes_of, dtype_of, is_aligned, is_dense, overlap, same_memory, same_shape
from ._primitives cimport (
    CE_ISA_COUNT, ce_automatic_threads, ce_choose, ce_isas, ce_limit_threads, ce_openmp_version, ce_watch_forks,
)
from ._request cimport (
    CROSS_ENTROPY, F32, F64, LOG_SOFTMAX, LOG_SOFTMAX_GRAD, LOGSUMEXP, NO_DTYPE, SIGMOID_TWO_TERM, SOFTMAX, SOFTMAX_GRAD,
    SOFTMAX_TWO_TERM, U64, defaults, matrix,
)
from ._row_functions cimport label_loss, merged_stats, row_backward, row_loss, row_loss_and_grad, row_stats
from ._run cimport execute

cdef extern from *:
    """
    #if defined(__clang__)
    #define CE_COMPILER "clang " __clang_version__
    #elif defined(__GNUC__)
    #define CE_COMPILER "gcc " __VERSION__
    #elif defined(_MSC_VER)
    #define CE_STRING_(x) #x
    #define CE_STRING(x) CE_STRING_(x)
    #define CE_COMPILER "msvc " CE_STRING(_MSC_VER)
    #else
    #define CE_COMPILER "unknown"
    #endif
    """
    const char *CE_COMPILER


cdef object ndarray = numpy.ndarray, empty = numpy.empty, empty_like = numpy.empty_like
cdef object float32 = numpy.float32, float64 = numpy.float64, new_tuple = tuple.__new__

cdef enum:              # the arrays of a call
    INPUT, TARGETS, UPSTREAM, WEIGHT, POS_WEIGHT, SAMPLE_WEIGHT, ROW_MAX, TAIL, OUT, RESULT, ARRAYS

cdef enum:              # reductions
    MEAN, SUM, NONE

cdef enum:              # what a function returns
    LOSS = 1, ARRAY = 2

cdef enum:              # an operation of the frame alone
    PREDICT = 100

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
    cdef int reduction          # the default
    cdef bint is_product        # of an upstream gradient and a Jacobian: its arguments are upstream and y


@cython.final
@cython.freelist(8)
cdef class Call:
    """One call: its arguments on their way to a request, and what will be returned."""
    cdef Function function
    cdef Request request
    cdef Axes axes
    cdef Py_buffer view[ARRAYS]
    cdef void *blocks[ARRAYS]           # offsets that a matrix points to
    cdef object input                   # the logits, or y, as they are computed
    cdef object targets
    cdef object out                     # the caller's buffer, or None
    cdef object grad                    # what the kernels write to: `out`, or a new array
    cdef object losses
    cdef object stats
    cdef object ignore_index            # as it was given
    cdef bint return_stats
    cdef int reduction
    cdef double normalizer              # 0: not given
    cdef double denominator
    cdef double total

    def __dealloc__(self):
        cdef int k
        for k in range(ARRAYS):
            PyBuffer_Release(&self.view[k])
            free(self.blocks[k])

    cdef int hold(self, int at, object array, int flags) except -1:
        PyBuffer_Release(&self.view[at])
        PyObject_GetBuffer(array, &self.view[at], flags)
        return 0

    cdef int take(self, int at, object value) except -1:
        """Holds a plain, aligned, native array and returns its dtype; NO_DTYPE, and nothing is held, for anything else."""
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
        """Holds an array-like of any real dtype, converted if it must be."""
        cdef int dtype = self.take(at, value)
        return dtype if dtype != NO_DTYPE else self.take(at, _checks.as_real(name, value))

    cdef int set_matrix(self, int at, int dtype, Matrix *m) except -1:
        if as_matrix(&self.view[at], &self.axes, dtype, self.request.rows, m, &self.blocks[at]) != 0:
            raise MemoryError(f"no memory for the places of {self.request.rows} rows")
        return 0

    cdef int input_dtype(self) noexcept:
        return self.request.y.dtype if self.function.is_product else self.request.logits.dtype

    cdef tuple row_shape(self):
        cdef tuple shape = self.input.shape
        return shape[:self.axes.class_axis] + shape[self.axes.class_axis + 1:]

    cdef list row_axes(self):
        """The axes of an array by row, in the order in which rows are counted."""
        return [self.axes.order[k] - (self.axes.order[k] > self.axes.class_axis) for k in range(self.axes.ndim - 1)]

    cdef void *by_row(self, int at, int dtype, int wanted) except? NULL:
        """The numbers of an array by row: contiguous, in the order in which rows are counted, of the wanted dtype."""
        cdef Matrix m
        self.set_matrix(at, dtype, &m)
        if dtype != wanted or m.blocks != NULL or (m.row_stride != self.view[at].itemsize and self.request.rows > 1):
            array = self.view[at].obj.transpose(self.row_axes())
            self.hold(at, _checks.contiguous(array, float32 if wanted == F32 else float64), PyBUF_RECORDS_RO)
        return self.view[at].buf

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

    cdef int set_input(self, object value, object axis) except -1:
        """The logits, or y, and how their rows are counted."""
        cdef str name = self.function.arguments[self.function.is_product]
        cdef int dtype = self.take(INPUT, value), at
        cdef Py_buffer *view = &self.view[INPUT]
        if dtype != F32 and dtype != F64 and (dtype == NO_DTYPE or self.function.operation != PREDICT):
            value = _checks.as_logits(name, value, self.function.operation == PREDICT)
            dtype = self.take(INPUT, value)
        if view.ndim == 0:
            raise ValueError(f"{name} is a scalar, expected at least one dimension: the classes")
        at = view.ndim - 1 if axis is None else _checks.as_axis(axis, view.ndim)
        if view.shape[at] == 0:
            raise ValueError(f"{name} has shape {value.shape}: no classes on axis {at}")
        self.input, self.axes = value, axes_of(view, at)
        self.request = defaults()
        self.request.operation = self.function.operation
        self.request.classes, self.request.rows = view.shape[at], view.len/view.itemsize/view.shape[at]
        self.reduction, self.denominator, self.ignore_index = self.function.reduction, 1, self.request.ignore_index
        self.set_matrix(INPUT, dtype, &self.request.y if self.function.is_product else &self.request.logits)
        return 0

    cdef int set_targets(self, object value) except -1:
        """Class indices or probabilities, told apart by their shape."""
        cdef int dtype = self.take(TARGETS, value)
        cdef const Py_buffer *view = &self.view[TARGETS]
        if dtype == NO_DTYPE:
            value = _checks.as_targets(value, self.input.shape)
            dtype = self.take(TARGETS, value)
        self.targets = value
        if same_shape(view, &self.view[INPUT], -1):
            self.set_matrix(TARGETS, dtype, &self.request.targets)
        elif (self.request.operation == CROSS_ENTROPY and dtype < F32 and view.format[0] != b"?"
                and same_shape(view, &self.view[INPUT], self.axes.class_axis)):
            self.set_matrix(TARGETS, dtype, &self.request.labels)
        else:
            raise _checks.targets_error(value, self.input.shape, self.axes.class_axis,
                                        self.request.operation == CROSS_ENTROPY)
        return 0

    cdef int set_upstream(self, object value) except -1:
        """One number for each row, or for each element."""
        cdef bint by_class = self.request.operation == SIGMOID_TWO_TERM or self.function.is_product
        cdef int wanted = self.input_dtype() if self.function.is_product else F64
        cdef int dtype = self.take_real(UPSTREAM, value, "upstream")
        if not same_shape(&self.view[UPSTREAM], &self.view[INPUT], -1 if by_class else self.axes.class_axis):
            if self.view[UPSTREAM].ndim == 0 and not self.function.is_product:
                self.request.scale = self.view[UPSTREAM].obj
                return 0
            raise _checks.upstream_error(self.view[UPSTREAM].obj, self.input.shape if by_class else self.row_shape(),
                                         self.function.is_product)
        if dtype != wanted:
            array = _checks.converted(self.view[UPSTREAM].obj, float32 if wanted == F32 else float64)
            dtype = self.take(UPSTREAM, array)
        self.set_matrix(UPSTREAM, dtype, &self.request.upstream)
        return 0

    cdef int set_denominator(self) except -1:
        """Counts the labels, and finds what a mean divides by."""
        cdef Request *r = &self.request
        if r.labels.data != NULL:
            if r.labels.dtype == U64 and not r.has_ignore_index and self.ignore_index is not None:  # it may be > INT64_MAX
                self.targets = _checks.as_int64(self.targets, self.ignore_index)
                self.set_matrix(TARGETS, self.take(TARGETS, self.targets), &r.labels)
                r.ignore_index, r.has_ignore_index = -1, True
            r.counted = count_labels(&r.labels, r.rows, r.classes, r.ignore_index, r.has_ignore_index)
            if r.counted < 0:
                raise _checks.label_error(self.targets, r.classes, self.ignore_index)
        if self.reduction == MEAN:
            self.denominator = self.normalizer if self.normalizer != 0 else mean_weight(r)
            r.scale = r.scale/self.denominator if self.denominator != 0 else 0
        return 0

    cdef bint out_overlaps(self) noexcept:
        """Whether `out` shares memory with an argument that is read after something was written to `out`."""
        cdef int k
        for k in range(OUT):
            if <PyObject *>self.view[k].obj != NULL and overlap(&self.view[OUT], &self.view[k]):
                if not ((k == INPUT or self.function.is_product) and same_memory(&self.view[OUT], &self.view[k])):
                    return True
        return False

    cdef int make_results(self) except -1:
        """The arrays that the kernels write to: the caller's, or new ones."""
        cdef Request *r = &self.request
        if self.function.returns & ARRAY:
            if self.out is None or self.out_overlaps():
                self.grad = empty_like(self.input)
            else:
                self.grad = self.out
            if self.denominator != 0:
                self.hold(RESULT, self.grad, PyBUF_STRIDES | PyBUF_WRITABLE)
                self.set_matrix(RESULT, self.input_dtype(), &r.grad)
            else:
                self.grad.fill(0)
        if self.function.returns & LOSS:
            if self.reduction == NONE:
                self.losses = self.new_result(r.operation == SIGMOID_TWO_TERM, &r.losses)
            else:
                r.total = &self.total
        if self.return_stats:
            row_max = self.new_result(False, &r.row_max)
            self.stats = new_tuple(SoftmaxStats, (row_max, self.new_result(False, &r.tail)))
        return 0

    cdef object results(self):
        cdef double loss = self.total
        result = self.grad
        if self.out is not None and self.out is not result:
            result = self.out
            result[...] = self.losses if self.grad is None else self.grad
        if not self.function.returns & LOSS:
            return result
        if self.function.operation == LOGSUMEXP:
            return result if result is not None else self.losses[()] if self.axes.ndim == 1 else self.losses
        if self.losses is not None:
            value = self.losses
        else:
            if self.reduction == MEAN:
                loss = loss/self.denominator if self.denominator != 0 else NAN
            value = float32(<float>loss) if self.input_dtype() == F32 else float64(loss)
        if self.function.returns & ARRAY:
            return value, result
        return (value, self.stats) if self.return_stats else value


cdef object run_call(Function function, tuple arguments, dict options):
    cdef Call call = Call.__new__(Call)
    cdef PyObject *given[MAX_RULES]
    cdef int k, status = 0
    if len(arguments) != len(function.arguments):
        arguments, options = _checks.bound(function.face, function.arguments, arguments, options)
    memset(given, 0, sizeof(given))
    for name, value in options.items():
        number = function.options.get(name)
        if number is None:
            function.face(*arguments, **options)    # raises what Python raises for an unknown option
        given[<int>number] = <PyObject *>value
    call.function = function
    call.set_input(arguments[function.is_product], None if given[AXIS] == NULL else <object>given[AXIS])
    if function.operation == PREDICT:
        return call.input.argmax(call.axes.class_axis)
    if function.is_product:
        call.set_upstream(arguments[0])
    elif len(arguments) == 2:
        call.set_targets(arguments[1])
    for k in range(len(rule_names)):
        if given[k] != NULL:
            rules[k](call, <object>given[k])
    call.set_denominator()
    call.make_results()
    if call.request.rows > 0:
        with nogil:
            status = run(&call.request)
    if status != 0:
        raise MemoryError(f"no memory to work on {call.request.rows} rows of {call.request.classes} classes")
    return call.results()


def function(str operation, *returns):
    """A decorator: binds a signature with a docstring to an operation.

    Parameters
    ----------
    operation
        A key of OPERATIONS.
    returns
        "loss", "array" or both.

    Raises
    ------
    TypeError
        The signature has an option for which there is no rule.
    """
    def bind(face):
        cdef Function f = Function.__new__(Function)
        names = face.__code__.co_varnames
        f.face, f.arguments, f.operation = face, names[:face.__code__.co_argcount], OPERATIONS[operation]
        f.returns = LOSS*("loss" in returns) | ARRAY*("array" in returns)
        f.is_product = f.operation in (SOFTMAX_GRAD, LOG_SOFTMAX_GRAD)
        f.options = {}
        for name in face.__kwdefaults__:
            if name not in rule_names:
                raise TypeError(f"{face.__name__} has an option {name!r}, for which there is no rule")
            f.options[name] = rule_names.index(name)
        f.reduction = MEAN if "reduction" in f.options else NONE

        def call(*arguments, **options):
            return run_call(f, arguments, options)

        return functools.update_wrapper(call, face)
    return bind


# --- The rules ---------------------------------------------------------------------------------------------------------
# What each option does to a call. Rules run in this order, and those of options that are not given do not run: the
# defaults in the signatures are what a call is without them.

ctypedef int (*Rule)(Call call, object value) except -1

cdef enum:
    AXIS = 0, MAX_RULES = 32

cdef list rule_names = []
cdef Rule rules[MAX_RULES]


cdef int rule(str name, Rule apply) except -1:
    rules[len(rule_names)] = apply
    rule_names.append(name)
    return 0


cdef double number(str name, object value) except? -1:
    return <double>value if type(value) is float else _checks.as_number(name, value)


cdef int axis_rule(Call call, object value) except -1:
    return 0            # set_input has used it


cdef int activation_rule(Call call, object value) except -1:
    if value == "softmax":
        call.request.operation = SOFTMAX_TWO_TERM
    elif value != "sigmoid":
        raise ValueError(f"activation is {value!r}, expected 'sigmoid' or 'softmax'")
    return 0


cdef int reduction_rule(Call call, object value) except -1:
    if value == "mean":
        call.reduction = MEAN
    elif value == "sum":
        call.reduction = SUM
    elif value == "none":
        call.reduction = NONE
    else:
        raise ValueError(f"reduction is {value!r}, expected 'mean', 'sum' or 'none'")
    return 0


cdef int num_threads_rule(Call call, object value) except -1:
    if value is not None:
        call.request.num_threads = _checks.as_threads(value)
    return 0


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
    call.ignore_index = value if value is None or type(value) is int else _checks.as_index("ignore_index", value)
    call.request.has_ignore_index = value is not None and INT64_MIN <= call.ignore_index <= INT64_MAX
    if call.request.has_ignore_index:
        call.request.ignore_index = call.ignore_index
    return 0


cdef int label_smoothing_rule(Call call, object value) except -1:
    cdef double eps = number("label_smoothing", value)
    if not 0 <= eps <= 1:
        raise ValueError(f"label_smoothing is {eps}, expected a number in [0, 1]")
    call.request.label_smoothing = eps
    return 0


cdef int z_loss_rule(Call call, object value) except -1:
    cdef double z_loss = number("z_loss", value)
    if not 0 <= z_loss < INFINITY:
        raise ValueError(f"z_loss is {z_loss}, expected a finite number >= 0")
    call.request.z_loss = z_loss
    return 0


cdef int normalizer_rule(Call call, object value) except -1:
    cdef double normalizer
    if value is None:
        return 0
    if call.reduction != MEAN:
        raise ValueError("normalizer is what a mean divides by; reduction is not 'mean'")
    normalizer = number("normalizer", value)
    if not 0 < normalizer < INFINITY:
        raise ValueError(f"normalizer is {normalizer}, expected a finite number > 0")
    call.normalizer = normalizer
    return 0


cdef int upstream_rule(Call call, object value) except -1:
    if call.reduction == NONE and not isinstance(value, (float, int)):
        return call.set_upstream(value)
    call.request.scale = number("upstream", value)
    return 0


cdef int stats_rule(Call call, object value) except -1:
    cdef int k, dtype
    if value is None:
        return 0
    if not isinstance(value, tuple) or len(value) != 2:
        raise TypeError(f"stats is {type(value).__name__}, expected the SoftmaxStats that the forward returned")
    for k in range(2):
        name = f"stats.{SoftmaxStats._fields[k]}"
        dtype = call.take_real(ROW_MAX + k, value[k], name)
        _checks.check_stats(name, call.view[ROW_MAX + k].obj, call.row_shape(), call.input)
        call.by_row(ROW_MAX + k, dtype, dtype)
    call.request.stats_given = True
    call.request.row_max, call.request.tail = call.view[ROW_MAX].buf, call.view[TAIL].buf
    return 0


cdef int out_rule(Call call, object value) except -1:
    cdef Py_buffer *view = &call.view[OUT]
    cdef bint by_row = call.function.operation == LOGSUMEXP
    if value is None:
        return 0
    if type(value) is ndarray and value.flags.writeable:
        call.hold(OUT, value, PyBUF_RECORDS)
    if (<PyObject *>view.obj == NULL or dtype_of(view) != call.input_dtype() or not is_aligned(view) or not is_dense(view)
            or not same_shape(view, &call.view[INPUT], call.axes.class_axis if by_row else -1)):
        name = call.function.arguments[call.function.is_product]
        _checks.check_out(value, call.row_shape() if by_row else call.input.shape, call.input.dtype,
                          f"{name} without its class axis" if by_row else name)
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


# --- One-hot rows ------------------------------------------------------------------------------------------------------

def set_ones(rows, labels, Py_ssize_t classes, Py_ssize_t inner, one):
    """Sets rows[..., label, ...] to `one` at each label, for C-contiguous arrays whose class axis is followed by `inner`
    elements. Returns False, and has written nothing, if a label is no class."""
    cdef Call call = Call.__new__(Call)
    cdef int dtype = call.take(TARGETS, labels)
    cdef const Py_buffer *view = &call.view[TARGETS]
    cdef Py_ssize_t i, n = view.len/view.itemsize, at, itemsize = one.itemsize
    cdef int64_t[64] scratch
    cdef Matrix m = matrix(view.buf, dtype, view.itemsize, 0)
    cdef const int64_t *label
    call.hold(RESULT, rows, PyBUF_WRITABLE)
    call.hold(OUT, one, PyBUF_SIMPLE)
    if n > 0 and counted_labels(&m, n, classes, 0, False) < 0:
        return False
    for i in range(n):
        label = labels_at(&m, i, 1, 0, scratch)
        at = (i/inner*classes + label[0])*inner + i % inner
        memcpy(<char *>call.view[RESULT].buf + at*itemsize, call.view[OUT].buf, itemsize)
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
