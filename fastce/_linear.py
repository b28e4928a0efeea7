"""Cross-entropy of a linear layer's output, ``hidden @ weight.T + bias``, whose logits never exist as a whole.

Rows are done in chunks. The logits of a chunk become its gradient in place, and the products are BLAS's, through
`numpy.matmul`. Everything else is done by the public functions for arrays of logits, with all of their options.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from . import _checks
from ._checks import Array
from ._cross_entropy import cross_entropy, cross_entropy_with_grad
from ._evaluation import EvaluatedRows, evaluate
from ._stats import SoftmaxStats

CHUNK_BYTES = 128 * 2**20
BLOCK_BYTES = 4 * 2**20  # of a gradient: what is added to it at a time stays in the cache
FEW_ROWS = 256  # in smaller chunks, OpenMP's threads and those of BLAS would wait for each other too often
SUMMED_ROWS = 64  # are added in the dtype, then in float64
LARGEST = float(np.finfo(np.float64).max)
OPTIONS = [  # of cross_entropy, in the order of its signature
    p
    for p in inspect.signature(cross_entropy).parameters.values()
    if p.kind is p.KEYWORD_ONLY and p.name not in ("axis", "return_stats")  # these have no meaning here
]
NAMES = frozenset(p.name for p in OPTIONS)


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
        self.labels = self.labels.reshape(-1)  # a copy, if need be, of one number for each row
        self.chunk_bytes = CHUNK_BYTES if chunk_bytes is None else _checks.as_count("chunk_bytes", chunk_bytes)
        self.flat = self.hidden.reshape(self.labels.size, self.features) if _collapses(self.hidden) else None
        if self.flat is not None and not _is_read_by_blas(self.flat):
            self.flat = None
        if not _is_read_by_blas(self.weight):
            self.weight = np.ascontiguousarray(self.weight)  # once, not for each chunk

    def no_logits(self) -> Array:
        """In the shape of the logits; a call on it checks its other arguments."""
        return np.broadcast_to(np.zeros((), self.dtype), (*self.lead, self.classes))

    def check_labels(self, **options: Any) -> None:
        """Rows of weight 0 are not computed, so this checks labels and options alone."""
        nothing = np.zeros(self.lead)
        cross_entropy(self.no_logits(), self.labels.reshape(self.lead), sample_weight=nothing, **options)

    def rows_kept(self, ignore_index: int | None) -> Array:
        """Whether each label is not ignored."""
        return (
            np.ones(self.labels.size, bool) if ignore_index is None else np.asarray(self.labels != ignore_index, bool)
        )

    def keep(self, kept: Array) -> None:
        """Only these rows count."""
        self.kept = None if kept.all() else np.flatnonzero(kept)
        self.rows = kept.size if self.kept is None else self.kept.size

    def chunks(self, more_copies: int = 0) -> Iterator[Any]:
        """The rows of each chunk: a slice, or the numbers of those that count.

        Beside its logits, a chunk may need copies of its rows of `hidden`, and more arrays of that shape."""
        copies = more_copies + (2 if self.flat is None else self.kept is not None)
        row_bytes = max((self.classes + copies * self.features) * self.dtype.itemsize, 1)
        count = -(-self.rows // max(self.chunk_bytes // row_bytes, 1))
        for k in range(count):
            part = slice(k * self.rows // count, (k + 1) * self.rows // count)
            yield part if self.kept is None else self.kept[part]

    def at(self, rows: Any) -> Any:
        """An index of these rows in arrays of the shape of `hidden`."""
        numbers = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
        return np.unravel_index(numbers, self.lead) if self.lead else (np.newaxis,)

    def hidden_of(self, rows: Any, scratch: _Scratch) -> Array:
        """Rows of `hidden`: a view of a slice if BLAS can read it, else a copy."""
        if self.flat is None:
            return np.ascontiguousarray(self.hidden[self.at(rows)])
        if isinstance(rows, slice):
            return self.flat[rows]
        copy = scratch.array("hidden", (rows.size, self.features), self.dtype)
        return np.take(self.flat, rows, axis=0, out=copy, mode="clip")  # with another mode it would be buffered

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


def _is_read_by_blas(matrix: Array) -> bool:
    """Whether BLAS reads and writes a matrix where it lies: rows or columns are contiguous and do not overlap."""
    if matrix.flags.c_contiguous:
        return True
    return any(
        m.strides[1] == m.itemsize and m.strides[0] % m.itemsize == 0 and m.strides[0] >= m.shape[1] * m.itemsize
        for m in (matrix, matrix.T)
    )


def _by_row(name: str, value: Any) -> Array:
    """One float64 for each row."""
    return _checks.contiguous(_checks.as_real(name, value), _checks.F64)


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
        sample_weight, self.reduction = options.pop("sample_weight", None), options.get("reduction", "mean")
        layer.check_labels(**options)
        by_row = {"sample_weight": sample_weight, "reduction": self.reduction, "upstream": upstream}
        first = np.broadcast_to(np.int8(0), layer.lead)  # of one class
        cross_entropy_with_grad(layer.no_logits()[..., :1], first, **by_row)

        self.arguments = [linear_bias, targets, sample_weight, options.get("weight"), upstream]
        self.num_threads, self.options = options.pop("num_threads", None), options
        self.sample_weight = None if sample_weight is None else _by_row("sample_weight", sample_weight)
        self.upstream = upstream if np.ndim(upstream) == 0 else _by_row("upstream", upstream)
        self.stats: SoftmaxStats | None = None
        kept = layer.rows_kept(options.get("ignore_index", -100))
        if self.sample_weight is not None:
            kept &= self.sample_weight != 0
        layer.keep(kept)
        self.loss_of_none = 0.0
        if self.reduction == "mean" and options.get("normalizer") is None:
            denominator = self.mean_weight()
            self.options = options | {"normalizer": min(denominator, LARGEST)}
            if denominator == 0:  # rows with a class of weight 0, or none
                self.loss_of_none = np.nan
                layer.keep(np.zeros_like(kept))

    def mean_weight(self) -> float:
        """What a mean divides by: the sum of the weights of the rows that count."""
        layer, weight = self.layer, self.options.get("weight")
        if weight is None and self.sample_weight is None:
            return float(layer.rows)
        rows = slice(None) if layer.kept is None else layer.kept
        by_row = np.ones(layer.rows) if weight is None else _by_row("weight", weight)[layer.labels[rows]]
        with np.errstate(all="ignore"):
            if self.sample_weight is not None:
                by_row *= self.sample_weight[rows]
            return float(by_row.sum())

    def options_of(self, rows: Any, count: int) -> dict[str, Any]:
        """Those of a chunk. Means of chunks have the denominator of all rows."""
        options = self.options | {"num_threads": self.layer.threads(count, self.num_threads)}
        return options if self.sample_weight is None else options | {"sample_weight": self.sample_weight[rows]}

    def reduced(self, each_chunk: Callable[[Any], Any], more_copies: int = 0) -> Any:
        """The loss of all rows from what a function returns for the rows of each chunk."""
        layer = self.layer
        with np.errstate(all="ignore"):  # what NaN and infinities become is the same without a warning
            if self.reduction == "none":
                losses = np.zeros(layer.labels.size, layer.dtype)
                for rows in layer.chunks(more_copies):
                    losses[rows] = each_chunk(rows)
                return losses.reshape(layer.lead)
            total = np.float64(self.loss_of_none)
            for rows in layer.chunks(more_copies):
                total += each_chunk(rows)
            return layer.dtype.type(total)

    def keep_stats(self) -> None:
        """Have the stats of all rows. Those of rows that are not multiplied are those of no classes."""
        rows, dtype = self.layer.labels.size, self.layer.dtype
        self.stats = SoftmaxStats(np.full(rows, -np.inf, dtype), np.full(rows, -1.0, dtype))

    def rows_stats(self) -> SoftmaxStats:
        assert self.stats is not None
        return SoftmaxStats(*(part.reshape(self.layer.lead)[()] for part in self.stats))

    def of_chunk(self, function: Callable[..., Any], logits: Array, rows: Any, **more: Any) -> Any:
        """What `cross_entropy` or `cross_entropy_with_grad` returns for the logits of a chunk, without the stats."""
        options = self.options_of(rows, len(logits)) | more
        if self.stats is None:
            return function(logits, self.layer.labels[rows], **options)
        *results, stats = function(logits, self.layer.labels[rows], **options, return_stats=True)
        for whole, part in zip(self.stats, stats, strict=True):
            whole[rows] = part
        return results if len(results) > 1 else results[0]

    def forward(self, scratch: _Scratch) -> Any:
        layer = self.layer

        def loss(rows: Any) -> Any:
            return self.of_chunk(cross_entropy, layer.logits(layer.hidden_of(rows, scratch), scratch), rows)

        return self.reduced(loss)

    def with_grad(self, scratch: _Scratch, out: LinearGrads, accumulate: bool) -> Any:
        layer = self.layer
        sums = _Sums(layer, scratch, out, accumulate)

        def loss(rows: Any) -> Any:
            hidden = layer.hidden_of(rows, scratch)
            logits = layer.logits(hidden, scratch)
            upstream = self.upstream if np.ndim(self.upstream) == 0 else self.upstream[rows]
            more = {"upstream": upstream, "subnormals": "flush", "out": logits}
            value, grad = self.of_chunk(cross_entropy_with_grad, logits, rows, **more)
            sums.add(rows, hidden, grad)
            return value

        value = self.reduced(loss, more_copies=not sums.direct)
        sums.finish()
        return value


class _Sums:
    """The gradients of a linear layer, to which chunks are added."""

    def __init__(self, layer: _Layer, scratch: _Scratch, out: LinearGrads, accumulate: bool) -> None:
        self.layer, self.scratch, self.out, self.accumulate = layer, scratch, out, accumulate
        self.empty = not accumulate  # nothing has been added to the weight's gradient
        self.bias = None if out.bias is None else np.zeros(layer.classes)
        # Whether the product for a chunk is written where it belongs.
        self.direct = not accumulate and layer.kept is None and out.hidden.flags.c_contiguous
        if not accumulate and (layer.kept is not None or not layer.rows):
            out.hidden[...] = 0
        if not accumulate and not layer.rows:
            out.weight[...] = 0

    def add(self, rows: Any, hidden: Array, grad: Array) -> None:
        layer, out = self.layer, self.out
        if self.direct:
            np.matmul(grad, layer.weight, out=out.hidden.reshape(layer.rows, layer.features)[rows])
        else:
            product = self.scratch.array("grad", (len(grad), layer.features), layer.dtype)
            np.matmul(grad, layer.weight, out=product)
            numbers = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
            for some in self.blocks(len(grad)):
                at = layer.at(numbers[some])
                if self.accumulate:
                    product[some] += out.hidden[at]
                out.hidden[at] = product[some]
        self.add_weight(hidden, grad)
        if self.bias is not None:
            for start in range(0, len(grad), SUMMED_ROWS):
                self.bias += grad[start : start + SUMMED_ROWS].sum(axis=0)

    def add_weight(self, hidden: Array, grad: Array) -> None:
        layer, weight = self.layer, self.out.weight
        if self.empty and _is_read_by_blas(weight):
            np.matmul(grad.T, hidden, out=weight)
        else:
            for some in self.blocks(layer.classes):
                block = self.scratch.array("block", (some.stop - some.start, layer.features), layer.dtype)
                np.matmul(grad[:, some].T, hidden, out=block)
                if self.empty:
                    weight[some] = block
                else:
                    weight[some] += block
        self.empty = False

    def blocks(self, count: int) -> Iterator[slice]:
        """So many rows of features in blocks that stay in the cache."""
        step = max(BLOCK_BYTES // max(self.layer.features * self.layer.dtype.itemsize, 1), 1)
        return (slice(start, min(start + step, count)) for start in range(0, count, step))

    def finish(self) -> None:
        if self.bias is not None and self.out.bias is not None:
            with np.errstate(all="ignore"):  # infinite in float32
                self.out.bias[...] = self.bias + self.out.bias if self.accumulate else self.bias


def _checked_out(layer: _Layer, out: Any, accumulate: bool, arguments: Iterable[Any] = ()) -> LinearGrads:
    """Buffers for the gradients: the caller's, or new ones. None shares memory with another or with an argument."""
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
        for array in arguments:
            if isinstance(array, np.ndarray) and np.shares_memory(buffers[name], array):
                raise ValueError(f"out.{name} shares memory with an argument")
    return out


def _with_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Show the options of `cross_entropy` in the signature."""
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    at = next(k for k, p in enumerate(own) if p.name == "chunk_bytes")
    function.__signature__ = signature.replace(parameters=own[:at] + OPTIONS + own[at:])  # type: ignore[attr-defined]
    return function


def _refuse_unknown(name: str, options: dict[str, Any]) -> None:
    if unknown := options.keys() - NAMES:
        raise TypeError(f"{name}() got an unexpected keyword argument {min(unknown)!r}")


@_with_options
def linear_cross_entropy(
    hidden: Any,
    linear_weight: Any,
    targets: Any,
    *,
    linear_bias: Any = None,
    chunk_bytes: int | None = None,
    return_stats: bool = False,
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
        How much memory the logits of a chunk may take, unless they are those of one row. Default: 128 MiB. Chunks of
        fewer than 256 rows make the matrix products slower.
    return_stats : bool, default False
        Whether to return the stats of the rows too.

    Returns
    -------
    loss : scalar or ndarray
        As `cross_entropy` of the logits returns it.
    stats : SoftmaxStats
        With `return_stats`: as `cross_entropy` returns them. Rows that are not multiplied have those of no classes,
        -inf and -1.

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
    The memory that is needed beside the arguments and the result is at most ``1.25*chunk_bytes`` plus 24 MiB, if a
    chunk holds a row, for up to half a million rows or classes, and if the rows or the columns of `linear_weight` are
    contiguous. Rows that are ignored, or whose `sample_weight` is 0, are not multiplied. Losses of chunks are added in
    float64.

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
    if not return_stats:
        return call.forward(_Scratch())
    call.keep_stats()
    return call.forward(_Scratch()), call.rows_stats()


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
    return_stats: bool = False,
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
    return_stats : bool, default False
        As in `linear_cross_entropy`.

    Returns
    -------
    loss : scalar or ndarray
        As `linear_cross_entropy` returns it.
    grads : LinearGrads
        The gradients; `out` if it is given.
    stats : SoftmaxStats
        With `return_stats`: as `linear_cross_entropy` returns them.

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
    grads = _checked_out(call.layer, out, accumulate, call.arguments)
    if return_stats:
        call.keep_stats()
        return call.with_grad(_Scratch(), grads, accumulate), grads, call.rows_stats()
    return call.with_grad(_Scratch(), grads, accumulate), grads


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
    layer.check_labels(ignore_index=ignore_index)
    layer.keep(layer.rows_kept(ignore_index))
    scratch, by_row = _Scratch(), [np.zeros(layer.labels.size, part.dtype) for part in of_none]
    for whole, name in zip(by_row, EvaluatedRows._fields, strict=True):
        if name in ("rank", "predicted"):
            whole.fill(-1)
    for rows in layer.chunks():
        with np.errstate(all="ignore"):
            logits = layer.logits(layer.hidden_of(rows, scratch), scratch)
        threads = layer.threads(len(logits), num_threads)
        part, parts = evaluate(logits, layer.labels[rows], num_threads=threads, return_rows=True, **options)
        total = total + part
        for whole, some in zip(by_row, parts, strict=True):
            whole[rows] = some
    if not return_rows:
        return total
    return total, EvaluatedRows(*(whole.reshape(layer.lead)[()] for whole in by_row))


_OF_LAYER = {
    name: p
    for name, p in inspect.signature(linear_cross_entropy).parameters.items()
    if p.kind is p.KEYWORD_ONLY and name not in ("linear_bias", "return_stats")
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
        self._saved = None  # its gradients are let go before there are new ones
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
        arguments, options, layer, saved = self._saved
        grads: LinearGrads | None = saved
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
            if buffer is None or grad is None:
                continue
            if not accumulate:
                np.multiply(grad, factor, out=buffer)
            else:
                buffer += grad if factor == 1 else grad * factor
        return out
