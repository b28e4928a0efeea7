# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
# cython: embedsignature=False, freethreading_compatible=True
"""The frame: a call of a public function, from Python objects to a `Request`, and from its outputs to Python objects.

The public functions are signatures and docstrings (_cross_entropy.py, _two_term.py, _softmax.py). `function` binds each
of them to an operation. _arguments.pxd takes the positional arguments, and _rules.pxd says what each option does to a
call. An option that is not given costs nothing. A signature that contains an option without a rule is refused at
import, so no option can be accepted and ignored. Nothing is written before everything is checked.
"""
cimport cython
from cpython.buffer cimport (
    PyBUF_RECORDS_RO, PyBUF_SIMPLE, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.object cimport PyObject
from libc.math cimport INFINITY, NAN
from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset

import functools

import numpy

from . import _axes, _checks
from ._stats import SoftmaxStats

from ._arguments cimport (
    INPUT, NONE, MEAN, OUT, OUT_HESS, RESULT, RESULT_HESS, TARGETS, Arguments, hold, input_dtype, numbers_dtype,
    out_overlaps, release, row_axes, row_shape, set_denominator, set_input, set_matrix, set_targets, set_upstream,
    set_vectors, stored_dtype, take,
)
from ._blocks cimport counted_labels, labels_at
from ._evaluation cimport BINS, Tally, tally
from ._job cimport value as sum_of
from ._layout cimport dtype_of, is_c_contiguous
from ._primitives cimport (
    CE_COMPILER, CE_ISA_COUNT, ce_automatic_threads, ce_choose, ce_isas, ce_limit_threads, ce_openmp_version,
    ce_pause, ce_watch_forks,
)
from ._request cimport (
    ARGMAX, BF16, CROSS_ENTROPY, ENTROPY, EVALUATE, F32, KL_OF_LOGITS, LOG_SOFTMAX, LOG_SOFTMAX_GRAD, LOGSUMEXP,
    SIGMOID_TWO_TERM, SOFTMAX, SOFTMAX_GRAD,
    defaults, matrix,
)
from ._row_functions cimport label_loss, merged_stats, row_backward, row_loss, row_loss_and_grad, row_stats
from ._rules cimport AXIS, KEEPDIMS, MAX_RULES, Rule, add_rules
from ._run cimport CHECKED_BEFORE, CHECKED_MEANWHILE, UNCHECKED, execute

cdef object ndarray = numpy.ndarray, empty = numpy.empty, empty_like = numpy.empty_like
cdef object float32 = numpy.float32, float64 = numpy.float64, intp = numpy.dtype(numpy.intp)
cdef object new_tuple = tuple.__new__, stats_type = SoftmaxStats
cdef object MISSING = object()

cdef enum:
    BRIEF = 512             # so few logits take less time than to release the GIL and to take it again

cdef enum:              # what a function returns
    LOSS = 1, ARRAY = 2, HESS = 4

cdef dict OPERATIONS = {
    "cross_entropy": CROSS_ENTROPY, "two_term": SIGMOID_TWO_TERM, "softmax": SOFTMAX, "log_softmax": LOG_SOFTMAX,
    "logsumexp": LOGSUMEXP, "softmax_grad": SOFTMAX_GRAD, "log_softmax_grad": LOG_SOFTMAX_GRAD, "predict": ARGMAX,
    "entropy": ENTROPY, "evaluate": EVALUATE,
    "kl_divergence": KL_OF_LOGITS,
}

cdef Rule rules[MAX_RULES]
cdef list rule_names = []
add_rules(rules, rule_names)


@cython.final
cdef class Function:
    """What the frame knows of a public function."""
    cdef object face            # the Python function that has its signature and docstring
    cdef object public          # what users call
    cdef tuple arguments        # the names of its positional arguments,
    cdef int count              # and how many there are
    cdef dict options           # the number of the rule of each of its options
    cdef int operation
    cdef int returns            # LOSS, ARRAY or both; or ARRAY and HESS
    cdef int reduction          # the default: MEAN, or NONE for a function that has no such option
    cdef object capped          # computes a call with a softcap, where the kernels do not; or None
    cdef bint is_product        # of an upstream gradient and a Jacobian: its arguments are upstream and y
    cdef bint folds             # it takes several class axes


@cython.final
@cython.freelist(8)
@cython.no_gc           # nothing that it refers to refers to it
cdef class Call:
    """One call: its arguments, and what it will return."""
    cdef Function function
    cdef Arguments a
    cdef object input           # the logits, or y
    cdef object dtype           # of the result in their shape
    cdef object out             # the caller's buffer, or None
    cdef object out_hess        # the second one
    cdef object grad            # what the kernels write to: `out`, or a new array
    cdef object hess
    cdef object losses
    cdef object classes         # what `predict` returns
    cdef object ranks           # of `evaluate`, and the next two
    cdef object entropies
    cdef object confidences
    cdef object stats
    cdef double total

    def __dealloc__(self):
        release(&self.a)

    cdef int take_arguments(self, object first, object second, object third, PyObject **given) except -1:
        cdef Arguments *a = &self.a
        cdef int k
        a.checks, a.ndarray = <PyObject *>_checks, <PyObject *>ndarray
        a.is_product, a.integers = self.function.is_product, self.function.operation == ARGMAX
        a.with_hess = self.function.returns & HESS
        a.with_curvature = a.with_hess or self.function.count > 2
        a.input_name = <PyObject *>self.function.arguments[a.is_product]
        a.targets_name = <PyObject *>self.function.arguments[self.function.count > 1]
        defaults(&a.request)
        a.request.operation, a.reduction, a.denominator = self.function.operation, self.function.reduction, 1
        self.input = set_input(a, second if a.is_product else first, given[AXIS])
        self.dtype = self.input.dtype
        a.dtype = <PyObject *>self.dtype
        if a.is_product:
            set_upstream(a, first)
        elif second is not MISSING:
            set_targets(a, second)
            if third is not MISSING:
                set_vectors(a, third)
        for k in range(AXIS + 1, <int>len(rule_names)):
            if given[k] != NULL:
                rules[k](a, <object>given[k])
        set_denominator(a)
        self.out = <object>a.out if a.out != NULL else None
        self.out_hess = <object>a.out_hess if a.out_hess != NULL else None
        return 0

    cdef object new_array(self):
        """A new array of the shape and memory order of the logits, and the dtype that the kernels see."""
        array = self.a.view[INPUT].obj
        if is_c_contiguous(&self.a.view[INPUT]):        # the usual case, where empty is faster than empty_like
            return empty(array.shape, array.dtype)
        return empty_like(array)

    cdef object stored(self, object array):
        """A new array that the kernels wrote to, in the dtype of the logits."""
        if self.a.converted:
            return _checks.converted(array, self.dtype)
        return array.view(self.dtype) if stored_dtype(&self.a) == BF16 else array

    cdef object new_result(self, bint by_class, object dtype, void **data):
        """A new array by row, or by row and class: in the order in which rows are counted, classes last."""
        cdef Py_buffer view
        cdef list order
        if self.a.axes.sorted and not by_class:
            array = empty(self.a.request.rows if self.a.axes.ndim == 2 else row_shape(&self.a), dtype)
        else:
            order = [self.a.axes.order[k] for k in range(self.a.axes.ndim - 1)] + [self.a.axes.class_axis]
            shape = [self.input.shape[k] for k in order]
            array = empty(shape if by_class else shape[:self.a.axes.ndim - 1], dtype)
            order = order if by_class else row_axes(&self.a)
            array = array.transpose([order.index(k) for k in range(len(order))])
        PyObject_GetBuffer(array, &view, PyBUF_STRIDES | PyBUF_WRITABLE)
        data[0] = view.buf
        PyBuffer_Release(&view)
        return array

    cdef object whole_result(self, object out, int out_at, int result_at, Matrix *m):
        """What a result of the shape of the logits is written to: the caller's array, or a new one."""
        cdef Arguments *a = &self.a
        cdef int at = out_at
        array = out
        if out is None or a.converted or out_overlaps(a, out_at):
            at, array = result_at, self.new_array()
            hold(a, at, array, PyBUF_STRIDES | PyBUF_WRITABLE)
        if a.denominator != 0:
            set_matrix(a, at, stored_dtype(a), m)
        else:
            array.fill(0)
        return array

    cdef int make_results(self) except -1:
        """The arrays that the kernels write to: the caller's, or new ones."""
        cdef Arguments *a = &self.a
        cdef Request *r = &a.request
        if self.function.returns & ARRAY:
            self.grad = self.whole_result(self.out, OUT, RESULT, &r.grad)
        if self.function.returns & HESS:
            self.hess = self.whole_result(self.out_hess, OUT_HESS, RESULT_HESS, &r.hess)
        if self.function.returns & LOSS:
            if a.reduction == NONE:
                self.losses = self.new_result(r.operation == SIGMOID_TWO_TERM, numbers_dtype(a), &r.losses)
                if r.classes == 0:
                    self.losses.fill(-INFINITY)
            else:
                r.total = &self.total
        if r.operation == EVALUATE:
            r.total = &self.total
            self.ranks = self.new_result(False, intp, <void **>&r.ranks)
            self.entropies = self.new_result(False, numbers_dtype(a), &r.entropies)
            self.confidences = self.new_result(False, numbers_dtype(a), &r.confidences)
        if a.return_stats:
            row_max = self.new_result(False, numbers_dtype(a), &r.row_max)
            self.stats = new_tuple(stats_type, (row_max, self.new_result(False, numbers_dtype(a), &r.tail)))
        if r.operation == ARGMAX or a.return_rows:
            self.classes = self.new_result(False, intp, <void **>&r.first_max)
        return 0

    cdef tuple evaluation(self):
        """The sums of an evaluation, its bins, and the arrays by row."""
        cdef Tally t
        cdef Py_buffer view
        tally(&self.a.request, &t)
        bins = empty((3, BINS))
        PyObject_GetBuffer(bins, &view, PyBUF_WRITABLE)
        memcpy(view.buf, t.bins, sizeof(t.bins))
        PyBuffer_Release(&view)
        sums = {"loss": self.total, "entropy": sum_of(&t.entropy), "confidence": sum_of(&t.confidence)}
        rows = self.losses, self.ranks, self.classes, self.entropies, self.confidences
        return self.a.request.counted, sums, bins, rows

    cdef object results(self):
        cdef Arguments *a = &self.a
        cdef double loss = self.total
        value, result = self.losses, self.grad
        if self.function.operation == ARGMAX:
            return self.classes[()] if a.axes.ndim == 1 else self.classes
        if self.function.operation == EVALUATE:
            return self.evaluation()
        if result is not None and result is not self.out:
            result = self.stored(result)
        if self.out is not None and self.out is not result:
            self.out[...] = value if result is None else result
            result = self.out
        if self.function.returns & HESS:
            if self.hess is not self.out_hess:
                self.hess = self.stored(self.hess)
            if self.out_hess is not None and self.out_hess is not self.hess:
                self.out_hess[...] = self.hess
                self.hess = self.out_hess
            return result, self.hess
        if not self.function.returns & LOSS:
            return result
        if self.function.operation == LOGSUMEXP:
            return result if result is not None else value[()] if a.axes.ndim == 1 else value
        if value is None:
            if a.reduction == MEAN:
                loss = loss/a.denominator if a.denominator != 0 else NAN
            value = float32(<float>loss) if input_dtype(a) == F32 else float64(loss)
        if self.function.returns & ARRAY:
            return (value, result, self.stats) if a.return_stats else (value, result)
        return (value, self.stats) if a.return_stats else value


cdef tuple present(object first, object second, object third):
    return tuple([value for value in (first, second, third) if value is not MISSING])


cdef inline bint is_folded(PyObject **given):
    """Whether the class axes are not one int, or are kept."""
    if given[KEEPDIMS] != NULL and <object>given[KEEPDIMS]:
        return True
    return given[AXIS] != NULL and (<object>given[AXIS] is None or isinstance(<object>given[AXIS], tuple))


cdef object run_call(Function function, object first, object second, object third, dict options):
    cdef Call call
    cdef PyObject *given[MAX_RULES]
    cdef int status = 0, check = UNCHECKED
    if (first is not MISSING) + (second is not MISSING) + (third is not MISSING) != function.count:
        arguments, options = _checks.bound(function.face, function.arguments, present(first, second, third), options)
        first, second, third = (arguments + (MISSING, MISSING))[:3]
    memset(given, 0, sizeof(given))
    for name, value in options.items():
        number = function.options.get(name)
        if number is None:
            function.face(*present(first, second, third), **options)    # raises TypeError: an unknown option
        given[<int>number] = <PyObject *>value
    if function.folds and is_folded(given):
        return _axes.call_folded(function.public, function.arguments[function.is_product],
                                 function.operation == LOGSUMEXP, present(first, second, third), **options)
    call = Call.__new__(Call)
    call.function = function
    call.take_arguments(first, second, third, given)
    if function.capped is not None and call.a.request.softcap != 0:
        return function.capped(call.input, *present(first, second, third)[1:], **options)
    if function.operation == ARGMAX and input_dtype(&call.a) < F32:     # integers are compared as they are
        return call.input.argmax(call.a.axes.class_axis)
    call.make_results()
    if function.operation == CROSS_ENTROPY and call.a.request.targets.data != NULL:
        check = CHECKED_MEANWHILE if call.a.out == NULL and call.a.out_hess == NULL else CHECKED_BEFORE
    if call.a.request.rows*call.a.request.classes > BRIEF:
        with nogil:
            status = execute(&call.a.request, check)
    elif call.a.request.rows > 0 and call.a.request.classes > 0:
        status = execute(&call.a.request, check)
    if status == 3:
        _checks.check_probabilities(function.arguments[1], second, options.get("sample_weight"),
                                    call.a.axes.class_axis)
        status = execute(&call.a.request, UNCHECKED)
    if status != 0:
        raise MemoryError(f"no memory to work on {call.a.request.rows} rows of {call.a.request.classes} classes")
    return call.results()


def function(str operation, *returns, capped=None):
    """A decorator: bind a signature with a docstring to an operation.

    Parameters
    ----------
    operation : str
        A key of OPERATIONS.
    *returns
        "loss", "array" or both; or "array" and "hess".
    capped : callable, optional
        What is called with the logits, and the other arguments as they were given, if there is a softcap. All of them
        have been checked before.

    Raises
    ------
    TypeError
        The signature contains an option for which there is no rule.
    """
    def bind(face):
        cdef Function f = Function.__new__(Function)
        f.face, f.operation, f.capped = face, OPERATIONS[operation], capped
        f.arguments = face.__code__.co_varnames[:face.__code__.co_argcount]
        f.count = len(f.arguments)
        f.returns = LOSS*("loss" in returns) | ARRAY*("array" in returns) | HESS*("hess" in returns)
        f.is_product = f.operation == SOFTMAX_GRAD or f.operation == LOG_SOFTMAX_GRAD
        f.folds = f.is_product or f.operation in (SOFTMAX, LOG_SOFTMAX, LOGSUMEXP)
        f.options = {}
        for name in face.__kwdefaults__:
            if name not in rule_names:
                raise TypeError(f"{face.__name__} has an option {name!r}, for which there is no rule")
            f.options[name] = rule_names.index(name)
        f.reduction = MEAN if "reduction" in f.options else NONE

        def call(first=MISSING, second=MISSING, /, **options):     # no *arguments: a call without a tuple is faster
            return run_call(f, first, second, MISSING, options)

        def call_with_three(first=MISSING, second=MISSING, third=MISSING, /, **options):
            return run_call(f, first, second, third, options)

        f.public = functools.update_wrapper(call_with_three if f.count == 3 else call, face)
        return f.public
    return bind


# --- One-hot rows ----------------------------------------------------------------------------------------------------

def set_ones(rows, labels, Py_ssize_t classes, Py_ssize_t inner, one):
    """Copy `one` to rows[..., label, ...] for each label. All arrays are in C order, and `inner` elements of `rows`
    follow each class. Return False, and write nothing, if a label is not a class."""
    cdef Call call = Call.__new__(Call)
    cdef const Py_buffer *view = &call.a.view[TARGETS]
    cdef Py_ssize_t i, n, at
    cdef int64_t scratch = 0
    cdef Matrix m
    hold(&call.a, TARGETS, labels, PyBUF_RECORDS_RO)
    n, m = view.len/view.itemsize, matrix(view.buf, dtype_of(view), view.itemsize, 0)
    hold(&call.a, RESULT, rows, PyBUF_WRITABLE)
    hold(&call.a, OUT, one, PyBUF_SIMPLE)
    if counted_labels(&m, n, classes, 0, False) < 0:
        return False
    for i in range(n):
        at = (i/inner*classes + labels_at(&m, i, 1, 0, &scratch)[0])*inner + i % inner
        memcpy(<char *>call.a.view[RESULT].buf + at*call.a.view[OUT].len, call.a.view[OUT].buf, call.a.view[OUT].len)
    return True


# --- What the package reads and sets when it is imported -------------------------------------------------------------

def limit_threads(int quota):
    """No call uses more threads than this by itself; 0: no limit."""
    ce_limit_threads(quota)


def automatic_threads():
    """How many threads a large call from this thread would use."""
    return ce_automatic_threads()


def pause():
    """Seconds of computing for which large calls from this thread still use one thread."""
    return max(ce_pause(), 0.0)


def available():
    """The instruction sets that this processor runs, best first."""
    return [ce_isas[i].name.decode() for i in range(CE_ISA_COUNT) if ce_isas[i].runs_here()]


def select(name):
    """Select an instruction set by its name, or the best one for None. Return its name, or None if it is missing."""
    cdef int i
    for i in range(CE_ISA_COUNT):
        if ce_isas[i].runs_here() and (name is None or ce_isas[i].name.decode() == name):
            ce_choose(i)
            return ce_isas[i].name.decode()
    return None


openmp = str(ce_openmp_version()) if ce_openmp_version() else None
compiler = CE_COMPILER.decode()
ce_watch_forks()


# --- What other Cython modules cimport (_kernels.pxd) ----------------------------------------------------------------

cdef int run(const Request *request) noexcept nogil:
    return execute(request, UNCHECKED)


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
