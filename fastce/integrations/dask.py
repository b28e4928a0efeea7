"""fastce on dask arrays: logits that need not be in memory at once, nor on one machine, in chunks along the rows and
along the classes.

Results are lazy. Where the classes are in one chunk, one task computes the loss and the gradient of a chunk in one
pass. Where they are in several, the states of the chunks are merged in a tree, and a second task computes each chunk's
gradient from the merged state. Denominators are those of all rows. Each task uses one thread unless `num_threads` says
otherwise, because Dask runs several tasks at a time.
"""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np

from .. import EvaluatedRows
from .. import evaluate as evaluate_numpy
from .. import log_softmax as log_softmax_numpy
from .. import logsumexp as logsumexp_numpy
from .. import predict as predict_numpy
from .. import softmax as softmax_numpy
from . import _dask_tasks as tasks
from ._dask import Logits, Loss, along

__all__ = ["cross_entropy", "cross_entropy_with_grad", "evaluate", "log_softmax", "logsumexp", "predict", "softmax"]


def cross_entropy(
    logits: da.Array,
    targets: Any,
    *,
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
    num_threads: int | None = 1,
) -> da.Array:
    """`fastce.cross_entropy` of a dask array.

    Parameters
    ----------
    logits : dask array
        Scores of one or more dimensions, with the classes on `axis`. The chunks may have unknown sizes along the rows.
    targets : dask array or array_like
        As in `fastce.cross_entropy`. It is brought into the chunks of the logits.
    weight, sample_weight : dask array or array_like, optional
        As in `fastce.cross_entropy`.
    ignore_index, label_smoothing, z_loss, temperature, softcap : optional
        As in `fastce.cross_entropy`.
    reduction, normalizer, axis : optional
        As in `fastce.cross_entropy`.
    num_threads : int or None, default 1
        The number of threads of each task.

    Returns
    -------
    loss : dask array
        Of no dimensions; with ``reduction="none"``, of the shape of the rows and in their chunks.

    Raises
    ------
    TypeError, ValueError
        As in `fastce.cross_entropy`, for what can be known without computing; `logits` is not a dask array; chunks have
        unknown sizes along the classes, or along the rows of arrays that are not in the same number of chunks. What is
        wrong with the numbers in arrays, such as a class index that is out of range, is raised when they are computed.

    See Also
    --------
    cross_entropy_with_grad : Loss and gradient in one task.

    Notes
    -----
    Where the classes are in several chunks, the state of each chunk is merged into that of its rows: Milakov and
    Gimelshein (2018), "Online normalizer calculation for softmax". The formula is that of `fastce.SoftmaxStats`.

    Examples
    --------
    >>> import dask.array as da, numpy as np
    >>> from fastce.integrations.dask import cross_entropy
    >>> logits = da.zeros((1000, 8), chunks=(100, 4))
    >>> loss = cross_entropy(logits, np.arange(1000) % 8)
    >>> print(f"{loss.compute():.6f}")  # log(8)
    2.079442
    """
    call = Loss(
        logits,
        targets,
        {
            "weight": weight,
            "sample_weight": sample_weight,
            "ignore_index": ignore_index,
            "label_smoothing": label_smoothing,
            "z_loss": z_loss,
            "temperature": temperature,
            "softcap": softcap,
            "reduction": reduction,
            "normalizer": normalizer,
            "axis": axis,
            "num_threads": num_threads,
        },
    )
    return call.loss()


def cross_entropy_with_grad(
    logits: da.Array,
    targets: Any,
    *,
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
    num_threads: int | None = 1,
    upstream: Any = 1.0,
    subnormals: str = "keep",
) -> tuple[da.Array, da.Array]:
    """`fastce.cross_entropy_with_grad` of a dask array.

    Parameters
    ----------
    logits : dask array
        As in `cross_entropy`.
    targets, weight, sample_weight : dask array or array_like
        As in `cross_entropy`.
    ignore_index, label_smoothing, z_loss, temperature, softcap : optional
        As in `fastce.cross_entropy`.
    reduction, normalizer, axis : optional
        As in `fastce.cross_entropy`.
    num_threads : int or None, default 1
        The number of threads of each task.
    upstream : float, dask array or array_like, default 1.0
        As in `fastce.cross_entropy_with_grad`.
    subnormals : {"keep", "flush"}, default "keep"
        As in `fastce.cross_entropy_with_grad`.

    Returns
    -------
    loss : dask array
        As `cross_entropy` returns it.
    grad : dask array
        Of the shape and chunks of the logits. Where the classes are in one chunk, its blocks hold what
        `fastce.cross_entropy_with_grad` of the whole array returns; otherwise that to rounding.

    Raises
    ------
    TypeError, ValueError
        As in `cross_entropy`.

    Notes
    -----
    The formulas are those of `fastce.cross_entropy_with_grad`. Compute what follows from both results in one call,
    ``dask.compute(loss, product)``, so that the logits are read once. Where the classes are in several chunks, the
    gradient with respect to the logits of probabilities or smoothed targets is a difference p - q, which is rounded
    relative to p.

    Examples
    --------
    >>> import dask, dask.array as da, numpy as np
    >>> from fastce.integrations.dask import cross_entropy_with_grad
    >>> logits = da.zeros((4, 2), chunks=(2, 2))
    >>> loss, grad = cross_entropy_with_grad(logits, np.array([0, 1, 1, 1]))
    >>> grad
    dask.array<fastce-grad, shape=(4, 2), dtype=float64, chunksize=(2, 2), chunktype=numpy.ndarray>
    >>> loss, bias = dask.compute(loss, grad.sum(axis=0))
    >>> bias
    array([ 0.25, -0.25])
    """
    call = Loss(
        logits,
        targets,
        {
            "weight": weight,
            "sample_weight": sample_weight,
            "ignore_index": ignore_index,
            "label_smoothing": label_smoothing,
            "z_loss": z_loss,
            "temperature": temperature,
            "softcap": softcap,
            "reduction": reduction,
            "normalizer": normalizer,
            "axis": axis,
            "num_threads": num_threads,
            "upstream": upstream,
            "subnormals": subnormals,
        },
    )
    return call.loss_and_grad()


def logsumexp(
    x: da.Array,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    axis: int = -1,
    keepdims: bool = False,
    num_threads: int | None = 1,
) -> da.Array:
    """`fastce.logsumexp` of a dask array.

    Parameters
    ----------
    x : dask array
        Logits, as in `cross_entropy`.
    temperature, softcap : optional
        As in `fastce.logsumexp`.
    axis : int, default -1
        The axis of the classes.
    keepdims : bool, default False
        As in `fastce.logsumexp`.
    num_threads : int or None, default 1
        The number of threads of each task.

    Returns
    -------
    lse : dask array
        As `fastce.logsumexp` returns it, in the chunks of the rows.

    Raises
    ------
    TypeError, ValueError
        As in `cross_entropy`.

    Notes
    -----
    The formula is that of `fastce.logsumexp`.

    Examples
    --------
    >>> import dask.array as da
    >>> from fastce.integrations.dask import logsumexp
    >>> logsumexp(da.zeros((2, 8), chunks=(1, 4))).compute().round(6)  # log(8)
    array([2.079442, 2.079442])
    """
    at = Logits("x", x, axis)
    options: dict[str, Any] = {"temperature": temperature, "softcap": softcap, "num_threads": num_threads}
    dtype = logsumexp_numpy(at.empty(), axis=at.axis, **options).dtype
    out = at.rows
    more: dict[str, Any] = {"axis": at.axis, "keepdims": bool(keepdims)}
    if keepdims:
        out, more["adjust_chunks"] = at.axes, {at.axis: 1}
    if at.whole:
        return at.blockwise(tasks.logsumexp_of_rows, "logsumexp", dtype, out, at.x, at.axes, **options, **more)
    states, axes = at.states(**options), at.state_axes
    more |= {"temperature": temperature, "result": dtype}
    return at.blockwise(tasks.logsumexp_of_states, "logsumexp", dtype, out, states, axes, **more)


def softmax(
    x: da.Array,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    axis: int = -1,
    subnormals: str = "keep",
    num_threads: int | None = 1,
) -> da.Array:
    """`fastce.softmax` of a dask array.

    Parameters
    ----------
    x : dask array
        Logits, as in `cross_entropy`.
    temperature, softcap : optional
        As in `fastce.softmax`.
    axis : int, default -1
        The axis of the classes.
    subnormals : {"keep", "flush"}, default "keep"
        As in `fastce.softmax`.
    num_threads : int or None, default 1
        The number of threads of each task.

    Returns
    -------
    p : dask array
        Of the shape and chunks of `x`.

    Raises
    ------
    TypeError, ValueError
        As in `cross_entropy`.

    Notes
    -----
    The formula is that of `fastce.softmax`. If the classes are in several chunks, two tasks use each chunk.

    Examples
    --------
    >>> import dask.array as da, numpy as np
    >>> from fastce.integrations.dask import softmax
    >>> softmax(da.from_array(np.log([[1.0, 3.0]]), chunks=(1, 1))).compute().round(6)
    array([[0.25, 0.75]])
    """
    options = {"temperature": temperature, "softcap": softcap, "num_threads": num_threads}
    ways = tasks.softmax_of_rows, tasks.softmax_of_states
    return _of_each_class(x, axis, "softmax", softmax_numpy, ways, options, subnormals=subnormals)


def _of_each_class(
    x: Any, axis: Any, name: str, function: Any, ways: tuple[Any, Any], options: dict[str, Any], **more: Any
) -> da.Array:
    """A result in the shape of x, by a task for blocks of whole rows, or by one for blocks and merged states."""
    at = Logits("x", x, axis)
    more["axis"] = at.axis
    dtype, arrays = function(at.empty(), **options, **more).dtype, [at.x, at.axes]
    if not at.whole:
        arrays += [at.states(**options), at.state_axes]
        more["num_classes"] = at.classes
    return at.blockwise(ways[not at.whole], name, dtype, at.axes, *arrays, **options, **more)


def log_softmax(
    x: da.Array,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    axis: int = -1,
    num_threads: int | None = 1,
) -> da.Array:
    """`fastce.log_softmax` of a dask array.

    Parameters
    ----------
    x : dask array
        Logits, as in `cross_entropy`.
    temperature, softcap : optional
        As in `fastce.log_softmax`.
    axis : int, default -1
        The axis of the classes.
    num_threads : int or None, default 1
        The number of threads of each task.

    Returns
    -------
    logp : dask array
        Of the shape and chunks of `x`.

    Raises
    ------
    TypeError, ValueError
        As in `cross_entropy`.

    Notes
    -----
    The formula is that of `fastce.log_softmax`. If the classes are in several chunks, two tasks use each chunk.

    Examples
    --------
    >>> import dask.array as da
    >>> from fastce.integrations.dask import log_softmax
    >>> log_softmax(da.zeros((1, 4), chunks=(1, 2))).compute().round(6)  # log(1/4)
    array([[-1.386294, -1.386294, -1.386294, -1.386294]])
    """
    options = {"temperature": temperature, "softcap": softcap, "num_threads": num_threads}
    ways = tasks.log_softmax_of_rows, tasks.log_softmax_of_states
    return _of_each_class(x, axis, "log-softmax", log_softmax_numpy, ways, options)


def predict(logits: da.Array, *, axis: int = -1, num_threads: int | None = 1) -> da.Array:
    """`fastce.predict` of a dask array.

    Parameters
    ----------
    logits : dask array
        Logits or probabilities, as in `cross_entropy`.
    axis : int, default -1
        The axis of the classes.
    num_threads : int or None, default 1
        The number of threads of each task. If the classes are in several chunks, NumPy compares them, in one thread.

    Returns
    -------
    labels : dask array of intp
        Of the shape of the rows, in their chunks.

    Raises
    ------
    TypeError, ValueError
        As in `cross_entropy`.

    Notes
    -----
    ``argmax(x)``, as `fastce.predict`.

    Examples
    --------
    >>> import dask.array as da
    >>> from fastce.integrations.dask import predict
    >>> predict(da.eye(3, chunks=2)).compute()
    array([0, 1, 2])
    """
    at = Logits("logits", logits, axis)
    predict_numpy(at.empty(), axis=at.axis, num_threads=num_threads)
    if at.whole:
        options = {"axis": at.axis, "num_threads": num_threads}
        return at.blockwise(tasks.predict_of_rows, "predict", np.intp, at.rows, at.x, at.axes, **options)
    return at.argmax()


def evaluate(
    logits: da.Array,
    labels: Any,
    *,
    top_k: Any = (1, 5),
    temperature: float = 1.0,
    softcap: float | None = None,
    ignore_index: int | None = -100,
    axis: int = -1,
    return_rows: bool = False,
    num_threads: int | None = 1,
) -> Any:
    """`fastce.evaluate` of a dask array.

    Parameters
    ----------
    logits : dask array
        As in `cross_entropy`. Where the classes are in several chunks, they are brought into one, with fewer rows, so
        that chunks do not get larger.
    labels : dask array or array_like
        Class indices, of any integer dtype and the shape of `logits` without `axis`.
    top_k, temperature, softcap, ignore_index : optional
        As in `fastce.evaluate`.
    axis : int, default -1
        The axis of the classes.
    return_rows : bool, default False
        Whether to return `EvaluatedRows` too.
    num_threads : int or None, default 1
        The number of threads of each task.

    Returns
    -------
    evaluation : Delayed
        ``evaluation.compute()`` is a `fastce.Evaluation`, ``evaluation.accuracy.compute()`` one of its attributes.
    rows : EvaluatedRows
        With `return_rows`: of dask arrays.

    Raises
    ------
    TypeError, ValueError
        As in `cross_entropy` and `fastce.evaluate`.

    Notes
    -----
    Evaluations of chunks are added in a tree.

    Examples
    --------
    >>> import dask.array as da
    >>> from fastce.integrations.dask import evaluate
    >>> evaluation = evaluate(da.eye(3, chunks=2), [0, 1, 1])
    >>> round(evaluation.compute().accuracy, 6)
    0.666667
    """
    at = Logits("logits", logits, axis).of_whole_rows()
    expected = f"{at.row_shape} (class indices) for logits of shape {at.x.shape}"
    labels = along("labels", labels, at.row_chunks, expected)
    options = {
        "top_k": top_k,
        "temperature": temperature,
        "softcap": softcap,
        "ignore_index": ignore_index,
        "axis": at.axis,
        "num_threads": num_threads,
    }
    nothing = np.empty((0,) * len(at.rows), labels.dtype)
    _, of_rows = evaluate_numpy(at.empty(), nothing, return_rows=True, **options)
    arrays = [at.places, at.rows, at.x, at.axes, labels, at.rows]
    options["return_rows"] = bool(return_rows)
    pairs = at.blockwise(tasks.evaluate_rows, "evaluate", object, at.rows, *arrays, **options)
    evaluation = at.sum_of_evaluations(at.blockwise(tasks.first, "evaluation", object, at.rows, pairs, at.rows))
    if not return_rows:
        return evaluation
    rows = EvaluatedRows(
        *(
            at.blockwise(tasks.field, name, getattr(of_rows, name).dtype, at.rows, pairs, at.rows, attribute=name)
            for name in EvaluatedRows._fields
        )
    )
    return evaluation, rows
