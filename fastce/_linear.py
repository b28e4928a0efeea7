"""Cross-entropy of a linear layer's output, ``hidden @ weight.T + bias``, whose logits never exist as a whole.

Rows are done in chunks. The logits of a chunk become its gradient in place, and the products are BLAS's, through
`numpy.matmul`. Everything else is done by the public functions for arrays of logits, with all of their options.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from . import _checks
from ._checks import Array
from ._cross_entropy import cross_entropy, cross_entropy_with_grad
from ._evaluation import EvaluatedRows, evaluate

# Of the logits of a chunk by default: fewer rows make products slower, and new memory costs page faults.
CHUNK_ROWS, LEAST_BYTES, MOST_BYTES = 1024, 64 * 2**20, 256 * 2**20
BLOCK_BYTES = 2 * 2**20  # of the weight's gradient: what is added to it at a time stays in the cache
FEW_ROWS = 256  # in smaller chunks, OpenMP's threads and those of BLAS would wait for each other too often
SUMMED_ROWS = 64  # are added in the dtype, then in float64
OF_ARRAYS = ("axis", "return_stats")  # options of cross_entropy that have no meaning here


class LinearGrads(NamedTuple):
    """The gradients of a loss of ``hidden @ weight.T + bias``, or buffers for them.

    Parameters
    ----------
    hidden : ndarray
        Of the shape of `hidden`.
    weight : ndarray
        Of the shape of `linear_weight`: (classes, features).
    bias : ndarray or None
        Of shape (classes,). None: there is no bias.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> hidden, weight = np.ones((1, 2)), np.zeros((2, 2))
    >>> _, grads = fastce.linear_cross_entropy_with_grad(hidden, weight, [1])
    >>> grads.weight
    array([[ 0.5,  0.5],
           [-0.5, -0.5]])
    """

    hidden: Array
    weight: Array
    bias: Array | None


class _Scratch:
    """Arrays by name. Memory that was used before is used again."""

    def __init__(self) -> None:
        self._memory: dict[str, Array] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        size = int(np.prod(shape))
        memory = self._memory.get(name)
        if memory is None or memory.dtype != dtype or memory.size < size:
            self._memory.pop(name, None)  # before the new one is made
            memory = self._memory[name] = np.empty(size, dtype)
        return memory[:size].reshape(shape)


def _as_floats(name: str, value: Any, dtype: Any = None) -> Array:
    """An array of floats that BLAS multiplies."""
    array = _checks.as_array(name, value)
    if array.dtype.kind != "f" or array.dtype.itemsize not in (4, 8):
        raise TypeError(
            f"{name} has dtype {array.dtype}, expected float32 or float64; cast it: {name}.astype(np.float32)"
        )
    array = _checks.readable(array)
    if dtype is not None and array.dtype != dtype:
        raise TypeError(f"{name} has dtype {array.dtype}, expected {dtype} to match hidden")
    return array


class _Layer:
    """A linear layer with its labels, checked: what is multiplied, and which rows count."""

    def __init__(
        self, hidden: Any, linear_weight: Any, linear_bias: Any, labels: Any, name: str, chunk_bytes: int | None
    ) -> None:
        self.hidden = _as_floats("hidden", hidden)
        self.dtype = self.hidden.dtype
        self.weight = _as_floats("linear_weight", linear_weight, self.dtype)
        if self.weight.ndim != 2:
            raise ValueError(f"linear_weight has shape {self.weight.shape}, expected (classes, features)")
        self.classes, self.features = self.weight.shape
        if not self.hidden.ndim:
            raise ValueError("hidden is a scalar, expected at least one dimension: the features")
        if self.hidden.shape[-1] != self.features:
            raise ValueError(
                f"hidden has shape {self.hidden.shape}, expected {self.features} features on the last axis to match "
                f"linear_weight of shape {self.weight.shape}"
            )
        self.lead = self.hidden.shape[:-1]
        self.bias = None
        if linear_bias is not None:
            self.bias = _checks.converted(_checks.as_real("linear_bias", linear_bias), self.dtype)
            if self.bias.shape != (self.classes,):
                raise ValueError(f"linear_bias has shape {self.bias.shape}, expected {(self.classes,)}")
        self.labels = _checks.as_targets(labels, (*self.lead, self.classes), name)
        if self.labels.shape != self.lead:
            raise ValueError(
                f"{name} has shape {self.labels.shape}, expected {self.lead}: a class index for each row of hidden"
            )
        usual = min(max(CHUNK_ROWS * self.classes * self.dtype.itemsize, LEAST_BYTES), MOST_BYTES)
        self.chunk_bytes = usual if chunk_bytes is None else _checks.as_count("chunk_bytes", chunk_bytes)
        if not (self.weight.flags.c_contiguous or self.weight.flags.f_contiguous):
            self.weight = np.ascontiguousarray(self.weight)  # once, not for each chunk

    def no_logits(self) -> Array:
        """In the shape of the logits; a call on it checks its other arguments."""
        return np.broadcast_to(np.zeros((), self.dtype), (*self.lead, self.classes))

    def keep(self, kept: Array) -> None:
        """Only these rows count."""
        self.kept = None if kept.all() else np.flatnonzero(kept)
        self.rows = kept.size if self.kept is None else self.kept.size

    def chunks(self) -> Iterator[Any]:
        """The rows of each chunk: a slice, or the numbers of those that count."""
        row_bytes = (self.classes + 2 * self.features * (self.kept is not None)) * self.dtype.itemsize
        count = -(-self.rows * row_bytes // max(self.chunk_bytes, row_bytes))
        for k in range(count):
            part = slice(k * self.rows // count, (k + 1) * self.rows // count)
            yield part if self.kept is None else self.kept[part]

    def rows_of(self, array: Array, rows: Any, scratch: _Scratch, name: str) -> Array:
        """Rows of `hidden`, or of an array of its shape: a view of a slice if it can be, else a copy."""
        flat = array.reshape(-1, self.features) if _collapses(array) else None
        if flat is not None and isinstance(rows, slice):
            return flat[rows]
        if isinstance(rows, slice):
            rows = np.arange(rows.start, rows.stop)
        copy = scratch.array(name, (rows.size, self.features), self.dtype)
        if flat is not None:
            return np.take(flat, rows, axis=0, out=copy, mode="clip")
        copy[...] = array[np.unravel_index(rows, self.lead)]
        return copy

    def logits(self, hidden: Array, scratch: _Scratch) -> Array:
        logits = scratch.array("logits", (len(hidden), self.classes), self.dtype)
        np.matmul(hidden, self.weight.T, out=logits)
        if self.bias is not None:
            logits += self.bias
        return logits

    def threads(self, rows: int, num_threads: int | None) -> int | None:
        return 1 if num_threads is None and rows < FEW_ROWS else num_threads


def _collapses(array: Array) -> bool:
    """Whether all axes but the last can be one axis without a copy."""
    lead = [(n, s) for n, s in zip(array.shape[:-1], array.strides, strict=False) if n != 1]
    return all(s == n_next * s_next for (_, s), (n_next, s_next) in zip(lead, lead[1:], strict=False))


def _at(rows: Any, array: Any) -> Array:
    """Those rows of an array by row."""
    flat: Array = np.ravel(array)[rows]
    return flat


def _part(rows: Any, value: Any) -> Any:
    """The same where there may be one number for all rows."""
    return value if np.ndim(value) == 0 else _at(rows, value)


class _Loss:
    """One call of `linear_cross_entropy_with_grad`: a layer, and options of `cross_entropy`, all checked."""

    def __init__(
        self,
        hidden: Any,
        linear_weight: Any,
        targets: Any,
        *,
        linear_bias: Any = None,
        chunk_bytes: int | None = None,
        upstream: Any = 1.0,
        **options: Any,
    ) -> None:
        layer = self.layer = _Layer(hidden, linear_weight, linear_bias, targets, "targets", chunk_bytes)
        self.sample_weight = options.pop("sample_weight", None)
        self.reduction, normalizer = options.get("reduction", "mean"), options.pop("normalizer", None)
        # Rows of weight 0 are not computed, so this checks labels and options alone. The rest is checked for one class.
        nothing = np.zeros(layer.lead)
        cross_entropy(layer.no_logits(), layer.labels, sample_weight=nothing, normalizer=normalizer, **options)
        one = {"sample_weight": self.sample_weight, "reduction": self.reduction, "upstream": upstream}
        cross_entropy_with_grad(np.zeros((*layer.lead, 1), layer.dtype), np.zeros(layer.lead, int), **one)

        self.num_threads = options.pop("num_threads", None)
        self.options = options | {"reduction": "none" if self.reduction == "none" else "sum"}
        self.upstream, self.denominator = upstream, 1.0
        ignored = options.get("ignore_index", -100)
        kept = np.ones(layer.labels.size, bool) if ignored is None else np.ravel(layer.labels != ignored)
        if self.sample_weight is not None:
            kept &= np.ravel(self.sample_weight) != 0
        layer.keep(kept)
        if self.reduction == "mean":
            self.denominator = self.mean_weight(kept) if normalizer is None else float(normalizer)

    def mean_weight(self, kept: Array) -> float:
        """What a mean divides by: the sum of the weights of the rows that count."""
        weight, labels = self.options.get("weight"), self.layer.labels
        if weight is None and self.sample_weight is None:
            return float(np.count_nonzero(kept))
        by_row = np.ones(kept.sum()) if weight is None else np.asarray(weight, np.float64)[np.ravel(labels)[kept]]
        return float((by_row * (1 if self.sample_weight is None else _at(kept, self.sample_weight))).sum())

    def options_of(self, rows: Any, count: int) -> dict[str, Any]:
        """Those of a chunk."""
        options = self.options | {"num_threads": self.layer.threads(count, self.num_threads)}
        return options if self.sample_weight is None else options | {"sample_weight": _at(rows, self.sample_weight)}

    def reduced(self, each_chunk: Callable[[Any], Any]) -> Any:
        """The loss of all rows from what a function returns for the rows of each chunk."""
        if self.reduction == "none":
            losses = np.zeros(self.layer.labels.size, self.layer.dtype)
            for rows in self.layer.chunks():
                losses[rows] = each_chunk(rows)
            return losses.reshape(self.layer.lead)
        total = np.float64(0)
        for rows in self.layer.chunks():
            total += each_chunk(rows)
        with np.errstate(all="ignore"):
            return self.layer.dtype.type(total / self.denominator if self.denominator else np.nan)

    def forward(self, scratch: _Scratch) -> Any:
        layer = self.layer

        def loss(rows: Any) -> Any:
            logits = layer.logits(layer.rows_of(layer.hidden, rows, scratch, "hidden"), scratch)
            return cross_entropy(logits, _at(rows, layer.labels), **self.options_of(rows, len(logits)))

        return self.reduced(loss)

    def with_grad(self, scratch: _Scratch, out: LinearGrads, accumulate: bool) -> Any:
        layer = self.layer
        scale = 1 / self.denominator if self.denominator else 0.0
        upstream = self.upstream * scale if np.ndim(self.upstream) == 0 else self.upstream
        sums = _Sums(layer, scratch, out, accumulate)

        def loss(rows: Any) -> Any:
            hidden = layer.rows_of(layer.hidden, rows, scratch, "hidden")
            logits = layer.logits(hidden, scratch)
            options = self.options_of(rows, len(logits)) | {"upstream": _part(rows, upstream)}
            value, grad = cross_entropy_with_grad(
                logits, _at(rows, layer.labels), subnormals="flush", out=logits, **options
            )
            sums.add(rows, hidden, grad)
            return value

        value = self.reduced(loss)
        sums.finish()
        return value


class _Sums:
    """The gradients of a linear layer, to which chunks are added."""

    def __init__(self, layer: _Layer, scratch: _Scratch, out: LinearGrads, accumulate: bool) -> None:
        self.layer, self.scratch, self.out, self.accumulate = layer, scratch, out, accumulate
        self.empty = not accumulate  # nothing has been added to the weight's gradient
        self.bias = None if out.bias is None else np.zeros(layer.classes)
        if not accumulate and (layer.kept is not None or not layer.rows):
            out.hidden[...] = 0
        if not accumulate and not layer.rows:
            out.weight[...] = 0

    def add(self, rows: Any, hidden: Array, grad: Array) -> None:
        layer, out = self.layer, self.out
        direct = isinstance(rows, slice) and not self.accumulate and out.hidden.flags.c_contiguous
        if direct:
            np.matmul(grad, layer.weight, out=out.hidden.reshape(-1, layer.features)[rows])
        else:
            product = self.scratch.array("grad", (len(grad), layer.features), layer.dtype)
            np.matmul(grad, layer.weight, out=product)
            if isinstance(rows, slice):
                rows = np.arange(rows.start, rows.stop)
            at = np.unravel_index(rows, layer.lead) if layer.lead else (...,)
            out.hidden[at] = out.hidden[at] + product if self.accumulate else product
        self.add_weight(hidden, grad)
        if self.bias is not None:
            for start in range(0, len(grad), SUMMED_ROWS):
                self.bias += grad[start : start + SUMMED_ROWS].sum(axis=0)

    def add_weight(self, hidden: Array, grad: Array) -> None:
        layer, weight = self.layer, self.out.weight
        if self.empty and weight.flags.c_contiguous:
            np.matmul(grad.T, hidden, out=weight)
        else:
            step = max(BLOCK_BYTES // max(layer.features * layer.dtype.itemsize, 1), 1)
            for start in range(0, layer.classes, step):
                some = slice(start, min(start + step, layer.classes))
                block = self.scratch.array("block", (some.stop - start, layer.features), layer.dtype)
                np.matmul(grad[:, some].T, hidden, out=block)
                if self.empty:
                    weight[some] = block
                else:
                    weight[some] += block
        self.empty = False

    def finish(self) -> None:
        if self.bias is not None and self.out.bias is not None:
            self.out.bias[...] = self.bias + self.out.bias if self.accumulate else self.bias


def _checked_out(layer: _Layer, out: Any, accumulate: bool) -> LinearGrads:
    """Buffers for the gradients: the caller's, or new ones."""
    if out is None:
        if accumulate:
            raise ValueError("accumulate is True without out: there is nothing to add to")
        return LinearGrads(
            np.empty(layer.hidden.shape, layer.dtype),
            np.empty(layer.weight.shape, layer.dtype),
            None if layer.bias is None else np.empty(layer.classes, layer.dtype),
        )
    if not isinstance(out, LinearGrads):
        raise TypeError(f"out is {type(out).__name__}, expected LinearGrads")
    wanted = {"hidden": layer.hidden.shape, "weight": layer.weight.shape}
    wanted |= {} if layer.bias is None else {"bias": (layer.classes,)}
    if layer.bias is None and out.bias is not None:
        raise ValueError("out.bias is given, but there is no linear_bias")
    buffers = {name: getattr(out, name) for name in wanted}
    for name, shape in wanted.items():
        _checks.check_out(buffers[name], shape, layer.dtype, "hidden", f"out.{name}")
    inputs = {"hidden": layer.hidden, "linear_weight": layer.weight}
    names = list(buffers)
    for k, name in enumerate(names):
        others = {f"out.{other}": buffers[other] for other in names[k + 1 :]} | inputs
        for other, array in others.items():
            if np.shares_memory(buffers[name], array):
                raise ValueError(f"out.{name} and {other} share memory")
    return out


def _with_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Show the options of `cross_entropy` in the signature."""
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    given = inspect.signature(cross_entropy).parameters.values()
    options = [p for p in given if p.kind is p.KEYWORD_ONLY and p.name not in OF_ARRAYS]
    at = next((k for k, p in enumerate(own) if p.name == "chunk_bytes"), len(own))
    function.__signature__ = signature.replace(parameters=own[:at] + options + own[at:])  # type: ignore[attr-defined]
    return function


def _refuse_unknown(name: str, options: dict[str, Any]) -> None:
    known = inspect.signature(cross_entropy).parameters
    for option in options:
        if option not in known or option in (*OF_ARRAYS, "logits", "targets"):
            raise TypeError(f"{name}() got an unexpected keyword argument {option!r}")


@_with_options
def linear_cross_entropy(
    hidden: Any,
    linear_weight: Any,
    targets: Any,
    *,
    linear_bias: Any = None,
    chunk_bytes: int | None = None,
    **options: Any,
) -> Any:
    """Softmax cross-entropy of ``hidden @ linear_weight.T + linear_bias``, in chunks of rows.

    The logits of a vocabulary may take gigabytes. Here they never exist as a whole.

    Parameters
    ----------
    hidden : array_like of shape (..., features)
        What the linear layer is applied to, of dtype float32 or float64.
    linear_weight : array_like of shape (classes, features)
        Of the dtype of `hidden`.
    targets : array_like of shape (...)
        Class indices, of any integer dtype.
    linear_bias : array_like of shape (classes,), optional
        Converted to the dtype of `hidden`. Default: none.
    weight, sample_weight, ignore_index, label_smoothing, z_loss, temperature, softcap : optional
        As in `cross_entropy`.
    reduction, normalizer, num_threads : optional
        As in `cross_entropy`. The number of threads of the matrix products is that of NumPy's BLAS. In chunks of fewer
        than 256 rows the default is one thread.
    chunk_bytes : int, optional
        How much memory the logits of a chunk may take, unless they are those of one row. Default: what 1024 rows take,
        but at least 64 and at most 256 MiB. Chunks of fewer than 512 rows make the matrix products slower.

    Returns
    -------
    loss : scalar or ndarray
        As `cross_entropy` of the logits returns it.

    Raises
    ------
    TypeError, ValueError, IndexError
        As in `cross_entropy`; an array has another dtype or shape than said above.

    See Also
    --------
    linear_cross_entropy_with_grad : Loss and gradients.
    evaluate_linear : Accuracies and more.

    Notes
    -----
    The memory that is needed beside the arguments and the result is at most ``1.25*chunk_bytes`` plus 24 MiB, if that
    holds one row, and if `linear_weight` is in C or Fortran order. Rows that are ignored, or whose `sample_weight` is
    0, are not multiplied. Losses of chunks are added in float64.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> rng = np.random.default_rng(0)
    >>> hidden, weight = rng.standard_normal((6, 4)), rng.standard_normal((10, 4))
    >>> labels = np.array([1, 2, 3, 4, 5, -100])
    >>> loss = fastce.linear_cross_entropy(hidden, weight, labels)
    >>> bool(np.isclose(loss, fastce.cross_entropy(hidden @ weight.T, labels)))
    True
    """
    _refuse_unknown("linear_cross_entropy", options)
    call = _Loss(hidden, linear_weight, targets, linear_bias=linear_bias, chunk_bytes=chunk_bytes, **options)
    return call.forward(_Scratch())


@_with_options
def linear_cross_entropy_with_grad(
    hidden: Any,
    linear_weight: Any,
    targets: Any,
    *,
    linear_bias: Any = None,
    chunk_bytes: int | None = None,
    upstream: Any = 1.0,
    out: LinearGrads | None = None,
    accumulate: bool = False,
    **options: Any,
) -> Any:
    """`linear_cross_entropy` and its gradients with respect to the hidden states, the weight and the bias.

    Parameters
    ----------
    hidden, linear_weight, targets : array_like
        As in `linear_cross_entropy`.
    linear_bias : array_like of shape (classes,), optional
        As in `linear_cross_entropy`.
    weight, sample_weight, ignore_index, label_smoothing, z_loss, temperature, softcap : optional
        As in `cross_entropy`.
    reduction, normalizer, num_threads, chunk_bytes : optional
        As in `linear_cross_entropy`.
    upstream : float or array_like, default 1.0
        Gradient of the final objective with respect to the loss, a factor of the results: a scalar, or with
        ``reduction="none"`` a scalar or an array of the rows' shape.
    out : LinearGrads, optional
        Buffers for the gradients, of the shapes and the dtype of what they are gradients of. They may not share memory
        with each other or with the arguments.
    accumulate : bool, default False
        Whether the gradients are added to what `out` contains, as for the parts of a batch.

    Returns
    -------
    loss : scalar or ndarray
        As `linear_cross_entropy` returns it.
    grads : LinearGrads
        The gradients; `out` if it is given.

    Raises
    ------
    TypeError, ValueError, IndexError
        As in `linear_cross_entropy`; `upstream` or `out` does not fit. Nothing has been written to `out` then.

    Notes
    -----
    With the gradient g with respect to the logits, of shape (rows, classes)::

        grads.hidden = g @ linear_weight
        grads.weight = g.T @ hidden
        grads.bias = g.sum(axis=0)

    Numbers of g that are smaller than ``2**-100`` (float64: ``2**-900``) are 0. Matrix products of subnormal numbers
    would be up to 95 times slower. The logits of each chunk are overwritten by its g, and memory is bounded as in
    `linear_cross_entropy`. Sums over the rows of a chunk are those of BLAS; the bias's are float64. This is the scheme
    of Liger-Kernel: Hsu et al. (2024), "Liger Kernel: efficient Triton kernels for LLM training".

    Examples
    --------
    >>> import numpy as np, fastce
    >>> hidden, weight, bias = np.ones((2, 3)), np.zeros((4, 3)), np.zeros(4)
    >>> loss, grads = fastce.linear_cross_entropy_with_grad(hidden, weight, [0, 1], linear_bias=bias)
    >>> grads.bias
    array([-0.25, -0.25,  0.25,  0.25])

    Micro-batches whose gradients are added:

    >>> for k in range(2):
    ...     _ = fastce.linear_cross_entropy_with_grad(
    ...         hidden[k : k + 1], weight, [k], normalizer=2,
    ...         out=fastce.LinearGrads(grads.hidden[k : k + 1], grads.weight, None), accumulate=k > 0)
    >>> grads.weight[:, 0]
    array([-0.25, -0.25,  0.25,  0.25])
    """
    _refuse_unknown("linear_cross_entropy_with_grad", options)
    call = _Loss(
        hidden, linear_weight, targets, linear_bias=linear_bias, chunk_bytes=chunk_bytes, upstream=upstream, **options
    )
    grads = _checked_out(call.layer, out, accumulate)
    return call.with_grad(_Scratch(), grads, accumulate), grads if out is None else out


def evaluate_linear(
    hidden: Any,
    linear_weight: Any,
    labels: Any,
    *,
    linear_bias: Any = None,
    top_k: Any = (1, 5),
    temperature: float = 1.0,
    softcap: float | None = None,
    ignore_index: int | None = -100,
    return_rows: bool = False,
    num_threads: int | None = None,
    chunk_bytes: int | None = None,
) -> Any:
    """`evaluate` of ``hidden @ linear_weight.T + linear_bias``, in chunks of rows.

    Parameters
    ----------
    hidden, linear_weight : array_like
        As in `linear_cross_entropy`.
    labels : array_like of shape (...)
        Class indices, of any integer dtype.
    linear_bias : array_like of shape (classes,), optional
        As in `linear_cross_entropy`.
    top_k, temperature, softcap, ignore_index, return_rows : optional
        As in `evaluate`.
    num_threads, chunk_bytes : int, optional
        As in `linear_cross_entropy`.

    Returns
    -------
    evaluation : Evaluation
        As `evaluate` returns it.
    rows : EvaluatedRows
        With `return_rows`.

    Raises
    ------
    TypeError, ValueError, IndexError
        As in `evaluate` and `linear_cross_entropy`.

    Notes
    -----
    The logits of each chunk are those of ``hidden @ linear_weight.T + linear_bias``, and the evaluations of chunks are
    added. A pass over the logits costs little beside the product that makes them.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> fastce.evaluate_linear(np.eye(3), np.eye(3), [0, 1, 1]).accuracy
    0.6666666666666666
    """
    options = {"top_k": top_k, "temperature": temperature, "softcap": softcap, "ignore_index": ignore_index}
    layer = _Layer(hidden, linear_weight, linear_bias, labels, "labels", chunk_bytes)
    total, of_none = evaluate(
        np.zeros((0, layer.classes), layer.dtype),
        np.zeros(0, int),
        num_threads=num_threads,
        return_rows=True,
        **options,
    )
    # Rows of weight 0 are not computed: this checks the labels.
    cross_entropy(layer.no_logits(), layer.labels, sample_weight=np.zeros(layer.lead), ignore_index=ignore_index)
    layer.keep(np.ones(layer.labels.size, bool))
    scratch, parts = _Scratch(), [of_none]
    for rows in layer.chunks():
        logits = layer.logits(layer.rows_of(layer.hidden, rows, scratch, "hidden"), scratch)
        threads = layer.threads(len(logits), num_threads)
        part, by_row = evaluate(logits, _at(rows, layer.labels), num_threads=threads, return_rows=True, **options)
        total = total + part
        if return_rows:
            parts.append(by_row)
    if not return_rows:
        return total
    return total, EvaluatedRows(*(np.concatenate(a).reshape(layer.lead)[()] for a in zip(*parts, strict=True)))


_OF_LAYER = {
    name: p
    for name, p in inspect.signature(linear_cross_entropy).parameters.items()
    if p.kind is p.KEYWORD_ONLY and name != "linear_bias"
}


class LinearCrossEntropyLoss:
    """`linear_cross_entropy_with_grad` as a layer: call it for the loss, then call `backward` for the gradients.

    Parameters
    ----------
    weight, sample_weight, ignore_index, label_smoothing, z_loss, temperature, softcap : optional
        As in `cross_entropy`.
    reduction, normalizer, num_threads, chunk_bytes : optional
        As in `linear_cross_entropy`.

    Raises
    ------
    TypeError
        There is no option of that name.

    Notes
    -----
    Unless the reduction is "none", the gradients are computed with the loss, so that logits are computed once.
    `backward` multiplies them by `upstream`; with 1 it returns the same arrays each time. For the loss alone call
    `linear_cross_entropy`. With "none" `backward` computes the logits again. The layer keeps references to its
    arguments, not copies.

    The memory of a chunk is kept for the next call. It is neither copied nor pickled with the layer.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> ce = fastce.LinearCrossEntropyLoss(reduction="sum")
    >>> loss = ce(np.ones((1, 2)), np.zeros((2, 2)), [1])
    >>> ce.backward().hidden
    array([[0., 0.]])
    """

    __signature__ = inspect.Signature([*_OF_LAYER.values()])

    def __init__(self, **options: Any) -> None:
        self._options = self._checked(options)
        self._forget()

    def _forget(self) -> None:
        self._scratch = _Scratch()
        self._saved: tuple[Any, ...] | None = None  # arguments and options of the last call, and its gradients

    def _checked(self, options: dict[str, Any]) -> dict[str, Any]:
        if unknown := options.keys() - _OF_LAYER:
            known = ", ".join(sorted(_OF_LAYER))
            raise TypeError(f"LinearCrossEntropyLoss has no option {min(unknown)!r}; it has {known}")
        return options

    def __getstate__(self) -> dict[str, Any]:
        return {"_options": self._options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def __repr__(self) -> str:
        return f"LinearCrossEntropyLoss({', '.join(f'{name}={value!r}' for name, value in self._options.items())})"

    def __call__(
        self, hidden: Any, linear_weight: Any, targets: Any, *, linear_bias: Any = None, **options: Any
    ) -> Any:
        """The loss.

        Parameters
        ----------
        hidden, linear_weight, targets, linear_bias : array_like
            As in `linear_cross_entropy`.
        **options
            Replace the layer's options for this call and its `backward`.

        Returns
        -------
        loss : scalar or ndarray
            As `linear_cross_entropy` returns it.

        Raises
        ------
        TypeError, ValueError, IndexError
            As in `linear_cross_entropy`; there is no option of that name.

        Examples
        --------
        >>> import numpy as np, fastce
        >>> ce = fastce.LinearCrossEntropyLoss()
        >>> round(float(ce(np.ones((1, 2)), np.zeros((2, 2)), [1])), 6)
        0.693147
        """
        options = self._options | self._checked(options)
        options["linear_bias"] = linear_bias
        call = _Loss(hidden, linear_weight, targets, **options)
        if call.reduction == "none":
            grads, loss = None, call.forward(self._scratch)
        else:
            grads = _checked_out(call.layer, None, False)
            loss = call.with_grad(self._scratch, grads, False)
        self._saved = (hidden, linear_weight, targets), options, call.layer, grads
        return loss

    def backward(self, upstream: Any = 1.0, *, out: LinearGrads | None = None, accumulate: bool = False) -> LinearGrads:
        """The gradients of the last call's loss.

        Parameters
        ----------
        upstream : float or array_like, default 1.0
            As in `linear_cross_entropy_with_grad`.
        out : LinearGrads, optional
            As in `linear_cross_entropy_with_grad`.
        accumulate : bool, default False
            As in `linear_cross_entropy_with_grad`.

        Returns
        -------
        grads : LinearGrads
            As `linear_cross_entropy_with_grad` returns it.

        Raises
        ------
        RuntimeError
            The layer has not been called yet.
        TypeError, ValueError
            As in `linear_cross_entropy_with_grad`.

        Examples
        --------
        >>> import numpy as np, fastce
        >>> ce = fastce.LinearCrossEntropyLoss()
        >>> loss = ce(np.ones((1, 2)), np.zeros((2, 2)), [1])
        >>> ce.backward(upstream=2.0).weight
        array([[ 1.,  1.],
               [-1., -1.]])
        """
        if self._saved is None:
            raise RuntimeError("backward called before the loss was computed")
        arguments, options, layer = self._saved[:3]
        grads: LinearGrads | None = self._saved[3]
        if grads is None:
            more = {"upstream": upstream, "out": out, "accumulate": accumulate}
            computed: LinearGrads = linear_cross_entropy_with_grad(*arguments, **options, **more)[1]
            return computed
        factor = layer.dtype.type(_checks.as_number("upstream", upstream))
        if out is None and not accumulate:
            if factor == 1:
                return grads
            bias = None if grads.bias is None else grads.bias * factor
            return LinearGrads(grads.hidden * factor, grads.weight * factor, bias)
        out = _checked_out(layer, out, accumulate)
        for buffer, grad in zip(out, grads, strict=True):
            if buffer is not None:
                buffer[...] = buffer + grad * factor if accumulate else grad * factor
        return out
