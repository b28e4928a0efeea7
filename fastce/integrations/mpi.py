"""Softmax cross-entropy of logits that are spread over the processes of MPI: by class, by row, or both.

Each process has the logits of a contiguous part of the classes, in the order of the ranks of `comm`. Labels count from
the first class of all, and are the same on these processes. A call takes two collective operations, which carry 8 and
32 bytes for each row. If rows are spread too, over `rows_comm`, a third one adds two numbers.

Install mpi4py with any MPI, for example ``pip install mpi4py mpich``, and start ``mpiexec -n 4 python program.py``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from mpi4py import MPI

from .. import _checks
from .._cross_entropy import cross_entropy as whole_cross_entropy
from .._cross_entropy import cross_entropy_with_grad as whole_cross_entropy_with_grad
from .._merging import Block, BlockStats, block_grad, block_stats, counted_rows, losses_of_stats, no_classes, row_shares
from .._stats import Array

__all__ = ["Classes", "cross_entropy", "cross_entropy_with_grad"]


class Classes:
    """The classes of each process. One is made for all calls, so that they need not ask each other again.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
        The processes that have the classes of the same rows.
    count : int
        The number of classes of this process; it may be 0.

    Attributes
    ----------
    offset : int
        The number of the first class of this process.
    total : int
        The number of classes of all processes.

    Raises
    ------
    TypeError, ValueError
        `count` is no int >= 0. All processes raise, once one does.

    Notes
    -----
    It is a collective operation: all processes of `comm` make one at the same time.

    Examples
    --------
    >>> from mpi4py import MPI
    >>> from fastce.integrations import mpi
    >>> mpi.Classes(MPI.COMM_SELF, 10).total
    10
    """

    def __init__(self, comm: MPI.Comm, count: int) -> None:
        self.comm = comm
        problem: Exception | None = None
        try:
            if count != 0:
                _checks.as_count("count", count)
        except (TypeError, ValueError) as error:
            problem, count = error, -1
        counts = np.empty(comm.size, np.int64)
        comm.Allgather(np.array([count], np.int64), counts)
        _raise_together(problem, counts < 0)
        self.count, self.offset, self.total = int(count), int(counts[: comm.rank].sum()), int(counts.sum())


def _raise_together(problem: Exception | None, failed: Array) -> None:
    """Raise what this process has found wrong, or that others have."""
    if problem is not None:
        raise problem
    if failed.any():
        raise RuntimeError(f"process {int(np.flatnonzero(failed)[0])} of comm raised an error; see its traceback")


class _Call(NamedTuple):
    """What a process knows before it asks the others."""

    logits: Array
    labels: Array
    block: Block
    stats: BlockStats
    counted: Array
    share: float  # what its rows add to the denominator of the mean


def _as_classes(comm: Any, logits: Any, axis: Any) -> Classes:
    if isinstance(comm, Classes):
        return comm
    try:
        count = _checks.as_logits("logits", logits, True).shape[axis]
    except Exception:  # the same error is raised where the other processes learn of it
        count = 0
    return Classes(comm, count)


def _prepared(
    classes: Classes,
    logits: Any,
    labels: Any,
    *,
    weight: Any,
    sample_weight: Any,
    ignore_index: int | None,
    label_smoothing: float,
    z_loss: float,
    temperature: float,
    softcap: float | None,
    reduction: str,
    normalizer: float | None,
    axis: int,
    num_threads: int | None,
    upstream: Any,
) -> _Call:
    """The state of the classes of this process. Raises every error that a call may raise."""
    x = _checks.as_logits("logits", logits, False)
    if not x.ndim:
        raise ValueError("logits is a scalar, expected at least one dimension: the classes")
    axis = _checks.as_axis(axis, x.ndim)
    rows = x.shape[:axis] + x.shape[axis + 1 :]
    if x.shape[axis] != classes.count:
        raise ValueError(f"logits has shape {x.shape}, expected {classes.count} classes on axis {axis}")
    # For no rows this checks the options, for one class what there is for each row.
    whole_cross_entropy(
        np.zeros((0, classes.total), x.dtype), np.zeros(0, int), weight=weight, ignore_index=ignore_index,
        label_smoothing=label_smoothing, z_loss=z_loss, temperature=temperature, softcap=softcap, reduction=reduction,
        normalizer=normalizer, num_threads=num_threads,
    )  # fmt: skip
    whole_cross_entropy_with_grad(
        np.zeros((*rows, 1), x.dtype), np.zeros(rows, int), sample_weight=sample_weight, reduction=reduction,
        upstream=upstream,
    )  # fmt: skip
    t = _checks.as_array("labels", labels)
    if t.shape != rows:
        raise ValueError(f"labels has shape {t.shape}, expected {rows}: the shape of logits without axis {axis}")
    t = _checks.as_labels("labels", t)
    counted = counted_rows(t, classes.total, ignore_index, sample_weight, "labels")
    part = None if weight is None else np.asarray(weight, np.float64)[classes.offset : classes.offset + classes.count]
    block = Block(
        classes.offset, classes.total, part, ignore_index, label_smoothing, temperature, softcap, axis, num_threads
    )
    stats = block_stats(x, t, block) if classes.count else no_classes(rows)
    share = float(row_shares(t, classes.total, ignore_index, weight, sample_weight).sum())
    return _Call(x, t, block, stats, counted, share)


def _merged(comm: MPI.Comm, call: _Call | None, problem: Exception | None, rows: tuple[int, ...]) -> BlockStats:
    """The state of all classes, on each process. With a problem, all processes raise an error."""
    size = int(np.prod(rows))
    # Of the maxima, of which NaN becomes +inf, which makes a row NaN too; and the number of a process with a problem.
    largest = np.full(size + 1, -np.inf)
    if problem is not None:
        largest[size] = comm.rank
    elif call is not None:
        row_max = np.ravel(call.stats.row_max)
        largest[:size] = np.where(np.isnan(row_max), np.inf, row_max)
    comm.Allreduce(MPI.IN_PLACE, largest, MPI.MAX)
    if problem is not None:
        raise problem
    assert call is not None
    if largest[size] >= 0:
        raise RuntimeError(f"process {int(largest[size])} of comm raised an error; see its traceback")

    row_max, tail, mass, linear = (np.ravel(part) for part in call.stats)
    top, sums = largest[:size], np.empty((4, size))
    with np.errstate(all="ignore"):
        is_top = row_max == top  # the tail of each of them leaves its own maximum out
        gap = np.where(is_top, 0.0, top - row_max)
        sums[0] = np.where(is_top, tail, (1 + tail) * np.exp(-gap / call.block.temperature))
        sums[1] = is_top
        sums[2] = mass
        sums[3] = linear + np.where((mass == 0) | (row_max == -np.inf), 0.0, mass * gap)
        comm.Allreduce(MPI.IN_PLACE, sums, MPI.SUM)
        tail = sums[0] + (sums[1] - 1)
        tail = np.where(top == np.inf, np.nan, tail)
    return BlockStats(*(part.reshape(rows) for part in (top, tail, sums[2], sums[3])))


def _add_rows(rows_comm: Any, total: float, denominator: float, failed: bool) -> tuple[float, float]:
    """The sums over all processes that have other rows. They all raise an error if one has failed."""
    if rows_comm is None:
        return total, denominator
    numbers = np.array([total, denominator, failed], np.float64)
    rows_comm.Allreduce(MPI.IN_PLACE, numbers, MPI.SUM)
    if numbers[2] and not failed:
        raise RuntimeError("another process of rows_comm raised an error; see its traceback")
    return float(numbers[0]), float(numbers[1])


def _run(
    logits: Any, labels: Any, comm: Any, rows_comm: Any, subnormals: str | None, options: dict[str, Any]
) -> tuple[Any, Array | None]:
    """Loss and gradient; without `subnormals`, the loss alone."""
    classes = _as_classes(comm, logits, options["axis"])
    call: _Call | None = None
    problem: Exception | None = None
    try:
        call = _prepared(classes, logits, labels, **options)
        if subnormals not in ("keep", "flush", None):
            raise ValueError(f"subnormals is {subnormals!r}, expected 'keep' or 'flush'")
    except Exception as error:  # the others must learn of it, or they would wait for ever
        problem = error
    try:
        stats = _merged(classes.comm, call, problem, np.shape(labels))
    except Exception:
        _add_rows(rows_comm, 0.0, 0.0, True)
        raise
    assert call is not None
    sample_weight, reduction = options["sample_weight"], options["reduction"]
    weights = np.where(call.counted, 1.0 if sample_weight is None else np.asarray(sample_weight, np.float64), 0.0)
    with np.errstate(all="ignore"):
        losses = np.where(
            weights == 0, 0.0, losses_of_stats(stats, options["z_loss"], call.block.temperature) * weights
        )
        total, share = _add_rows(rows_comm, float(losses.sum()), call.share, False)
        denominator = 1.0
        if reduction == "mean":
            denominator = share if options["normalizer"] is None else float(options["normalizer"])
        dtype = _checks.F64 if call.logits.dtype.kind in "iub" else _checks.computed_dtype(call.logits.dtype)
        loss: Any = losses.astype(dtype)
        if reduction != "none":
            loss = dtype.type(total / denominator if denominator else np.nan)
        if subnormals is None:
            return loss, None
        scale = weights * np.asarray(options["upstream"], np.float64) * (1 / denominator if denominator else 0.0)
    if not classes.count:
        return loss, np.zeros_like(call.logits)
    grad = block_grad(call.logits, call.labels, stats, call.block, scale, call.counted, options["z_loss"], subnormals)
    return loss, grad


def cross_entropy(
    logits: Any,
    labels: Any,
    *,
    comm: MPI.Comm | Classes,
    rows_comm: MPI.Comm | None = None,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    reduction: str = "mean",
    normalizer: float | None = None,
    axis: int = -1,
    num_threads: int | None = None,
) -> Any:
    """Softmax cross-entropy of logits whose classes, or rows, are spread over processes.

    Parameters
    ----------
    logits : array_like
        This process's part of the classes, on `axis`. The parts follow each other in the order of the ranks of `comm`.
        They may have different numbers of classes, and some may have none.
    labels : array_like
        Class indices, counted from the first class of all; the same on all processes of `comm`.
    comm : mpi4py.MPI.Comm or Classes
        The processes that have the classes of these rows. `Classes` saves a third collective operation, of 8 bytes for
        each process. If each process has all classes, pass ``MPI.COMM_SELF``.
    rows_comm : mpi4py.MPI.Comm, optional
        The processes that have other rows, for the sum or the mean over all of them. Default: there are none.
    weight : array_like of shape (classes of all processes,), optional
        As in `fastce.cross_entropy`.
    sample_weight, ignore_index, label_smoothing, z_loss, temperature, softcap : optional
        As in `fastce.cross_entropy`.
    reduction, normalizer, axis, num_threads : optional
        As in `fastce.cross_entropy`. With `rows_comm`, "mean" is that over the rows of all its processes.

    Returns
    -------
    loss : scalar or ndarray
        As `fastce.cross_entropy` of all logits returns it, on every process.

    Raises
    ------
    TypeError, ValueError, IndexError
        As in `fastce.cross_entropy`.
    RuntimeError
        Another process has raised one of them. No process is left waiting.

    Notes
    -----
    Each process computes the state of its classes (``row_max``, ``tail`` and two sums over the targets, see
    `fastce.SoftmaxStats`). One operation finds the maxima, the other one adds the rest, moved to these maxima: 40 bytes
    a row together. Megatron-LM (Shoeybi et al., 2019) takes three operations, and one more for label smoothing.

    Examples
    --------
    >>> import numpy as np
    >>> from mpi4py import MPI
    >>> from fastce.integrations import mpi
    >>> round(float(mpi.cross_entropy(np.zeros((2, 4)), [0, 3], comm=MPI.COMM_SELF)), 6)
    1.386294
    """
    options = {
        "weight": weight, "sample_weight": sample_weight, "ignore_index": ignore_index, "axis": axis,
        "label_smoothing": label_smoothing, "z_loss": z_loss, "temperature": temperature, "softcap": softcap,
        "reduction": reduction, "normalizer": normalizer, "num_threads": num_threads, "upstream": 1.0,
    }  # fmt: skip
    return _run(logits, labels, comm, rows_comm, None, options)[0]


def cross_entropy_with_grad(
    logits: Any,
    labels: Any,
    *,
    comm: MPI.Comm | Classes,
    rows_comm: MPI.Comm | None = None,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    reduction: str = "mean",
    normalizer: float | None = None,
    axis: int = -1,
    num_threads: int | None = None,
    upstream: Any = 1.0,
    subnormals: str = "keep",
) -> tuple[Any, Array]:
    """`cross_entropy` and its gradient with respect to the logits of this process.

    Parameters
    ----------
    logits, labels : array_like
        As in `cross_entropy`.
    comm : mpi4py.MPI.Comm or Classes
        As in `cross_entropy`.
    rows_comm : mpi4py.MPI.Comm, optional
        As in `cross_entropy`.
    weight, sample_weight, ignore_index, label_smoothing, z_loss, temperature, softcap : optional
        As in `cross_entropy`.
    reduction, normalizer, axis, num_threads : optional
        As in `cross_entropy`.
    upstream : float or array_like, default 1.0
        As in `fastce.cross_entropy_with_grad`; the same on all processes of `comm`.
    subnormals : {"keep", "flush"}, default "keep"
        As in `fastce.cross_entropy_with_grad`.

    Returns
    -------
    loss : scalar or ndarray
        As `cross_entropy` returns it.
    grad : ndarray
        Of the shape and memory order of `logits`, and their dtype (float64 for integers). The gradient needs no further
        communication.

    Raises
    ------
    TypeError, ValueError, IndexError, RuntimeError
        As in `cross_entropy`.

    Examples
    --------
    >>> import numpy as np
    >>> from mpi4py import MPI
    >>> from fastce.integrations import mpi
    >>> mpi.cross_entropy_with_grad(np.zeros((1, 2)), [1], comm=mpi.Classes(MPI.COMM_SELF, 2))[1]
    array([[ 0.5, -0.5]])
    """
    options = {
        "weight": weight, "sample_weight": sample_weight, "ignore_index": ignore_index, "axis": axis,
        "label_smoothing": label_smoothing, "z_loss": z_loss, "temperature": temperature, "softcap": softcap,
        "reduction": reduction, "normalizer": normalizer, "num_threads": num_threads, "upstream": upstream,
    }  # fmt: skip
    loss, grad = _run(logits, labels, comm, rows_comm, subnormals, options)
    assert grad is not None
    return loss, grad
