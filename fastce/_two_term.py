"""Cross-entropy with both terms, -sum(c*log(p) + (1 - c)*log(1 - p)), for sigmoid and softmax: checks, then one call of
the kernels. Errors are raised here, before anything is written; see _api.py."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import _kernels
from ._api import _REDUCTIONS, _scalar, _targets_of, _threads
from ._arrays import (
    F64,
    Array,
    as_array,
    as_axis,
    as_logits,
    as_number,
    as_weights,
    check_out,
    native,
    order_of,
    same_memory,
)

_two_term = {dtype: _kernels.two_term[name] for dtype, name in ((np.float32, "float"), (np.float64, "double"))}


def _run(
    logits: Any,
    targets: Any,
    activation: Any,
    pos_weight: Any,
    weight: Any,
    sample_weight: Any,
    reduction: Any,
    normalizer: Any,
    axis: Any,
    num_threads: Any,
    with_grad: bool = False,
    upstream: Any = 1.0,
    out: Any = None,
) -> tuple[Any, Array | None]:
    x = as_logits(logits)
    if not x.ndim:
        raise ValueError("logits is a scalar, expected at least one dimension: the classes")
    axis = as_axis(axis, x.ndim)
    classes = x.shape[axis]
    if not classes:
        raise ValueError(f"logits has shape {x.shape}: no classes on axis {axis}")
    if not isinstance(activation, str) or activation not in ("sigmoid", "softmax"):
        raise ValueError(f"activation is {activation!r}, expected 'sigmoid' or 'softmax'")
    softmax = activation == "softmax"
    if not isinstance(reduction, str) or reduction not in _REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}, expected 'mean', 'sum' or 'none'")
    threads = _threads(num_threads)
    c = as_array("targets", targets)
    row_shape = x.shape[:axis] + x.shape[axis + 1 :]
    if c.shape != x.shape:
        hint = "; class indices become such rows with one_hot" if c.shape == row_shape else ""
        raise ValueError(f"targets has shape {c.shape}, expected {x.shape} to match logits{hint}")
    if c.dtype == np.bool_:
        c = c.view(np.uint8)
    elif c.dtype.newbyteorder("=") not in _targets_of:
        c = c.astype(F64)
    c = native(c)
    positions = x.size // classes
    order = order_of(x, axis)
    if weight is not None:
        weight = native(np.ascontiguousarray(as_weights("weight", weight, (classes,), "one for each class", x.dtype)))
    if pos_weight is not None:
        if softmax:
            raise ValueError("pos_weight belongs to activation='sigmoid'")
        pos_weight = as_weights("pos_weight", pos_weight, (classes,), "one for each class", x.dtype)
        pos_weight = native(np.ascontiguousarray(pos_weight))
    sample = None
    if sample_weight is not None:
        sample = order.by_position(as_weights("sample_weight", sample_weight, row_shape, "one for each row"))
    if normalizer is not None:
        if reduction != "mean":
            raise ValueError(f"normalizer is what a mean divides by; reduction is {reduction!r}")
        normalizer = as_number("normalizer", normalizer)
        if not 0 < normalizer < math.inf:
            raise ValueError(f"normalizer is {normalizer}, expected a finite number > 0")

    result_shape = row_shape if softmax else x.shape
    up, factor, grad, target = None, 1.0, None, None
    if with_grad:
        if reduction == "none" and not isinstance(upstream, (float, int)):
            array = as_array("upstream", upstream)
            if array.shape not in ((), result_shape):
                raise ValueError(f"upstream has shape {array.shape}, expected a scalar or {result_shape}")
            array = np.broadcast_to(array, result_shape).astype(F64, copy=False)
            up = order.by_position(array) if softmax else _by_element(order, array)
        else:
            factor = as_number("upstream", upstream)
        if out is not None:
            check_out(out, x)

    denominator = 1.0
    if reduction == "mean":
        count = (positions if sample is None else float(sample.sum())) if softmax else x.size
        denominator = normalizer or float(count)
    if with_grad:
        grad = target = np.empty_like(x, subok=False) if out is None else out
        inputs = (c, weight, pos_weight, sample, up)
        if out is not None and (
            (np.may_share_memory(out, x) and not same_memory(out, x))
            or any(a is not None and np.may_share_memory(out, a) for a in inputs)
        ):
            target = np.empty_like(x, subok=False)
        if not denominator:
            target.fill(0)
    losses = np.empty(positions if softmax else x.size, x.dtype) if reduction == "none" else None
    total = 0.0
    if positions:
        g = order.rows(target) if target is not None and denominator else (None, None)
        operand = _targets_of[c.dtype](*order.rows(c))
        rows = order.rows(x)
        total = _two_term[x.dtype.type](
            rows[0],
            rows[1],
            positions,
            operand,
            softmax,
            weight,
            pos_weight,
            factor / denominator if denominator else 0.0,
            sample,
            up,
            losses,
            g[0],
            g[1],
            threads,
        )
    if grad is not None and target is not grad:
        grad[...] = target
    if losses is None:
        return _scalar(x.dtype, total / denominator if denominator else math.nan), grad
    if softmax:
        return order.to_caller(losses, row_shape), grad
    result = np.empty(x.shape, x.dtype)
    ordered = result if order.axes is None else result.transpose(order.axes)
    ordered[...] = losses.reshape(ordered.shape)
    return result, grad


def _by_element(order: Any, array: Array) -> Array:
    """Flat, positions in order, classes last."""
    if order.axes is not None:
        array = array.transpose(order.axes)
    return native(np.ascontiguousarray(array)).reshape(-1)


def binary_cross_entropy(
    logits: Any,
    targets: Any,
    *,
    activation: str = "sigmoid",
    pos_weight: Any = None,
    weight: Any = None,
    sample_weight: Any = None,
    reduction: str = "mean",
    normalizer: float | None = None,
    axis: int = -1,
    num_threads: int | None = None,
) -> Any:
    """The two-term form ``-sum(c*log(p) + (1 - c)*log(1 - p))``, from logits.

    Parameters
    ----------
    logits : array_like
        Scores z, classes on `axis`; dtypes as in `cross_entropy`. One dimension is one row: n rows of one class have
        the shape (n, 1).
    targets : array_like
        Targets c, of the same shape; any real, integer or bool dtype. Usually in [0, 1], which is not checked.
    activation : {"sigmoid", "softmax"}, default "sigmoid"
        ``p = 1/(1 + exp(-z))``, every element for itself; or ``p = softmax(z)`` along `axis`.
    pos_weight : array_like of shape (classes,), optional
        Factor of the first term of each class, as in PyTorch, finite and >= 0; sigmoid only.
    weight : array_like of shape (classes,), optional
        Factor of both terms of each class, finite and >= 0.
    sample_weight : array_like of the rows' shape, optional
        Factor of each row, finite and >= 0.
    reduction : {"mean", "sum", "none"}, default "mean"
        What "mean" divides by: with sigmoid the number of elements (PyTorch's rule), with softmax the sum of
        `sample_weight`, or the number of rows. "none" returns the losses of elements, or with softmax of rows.
    normalizer : float, optional
        What "mean" divides by instead, > 0.
    axis : int, default -1
        The axis of the classes.
    num_threads : int, optional
        As in `cross_entropy`.

    Returns
    -------
    loss : scalar or ndarray
        In nats, in the dtype of the logits (float64 for integers); summed in float64. For ``reduction="none"`` an array
        of the shape of the logits, or with softmax of the rows.

    Raises
    ------
    TypeError
        An argument is None or a masked array, or has a dtype that is not accepted.
    ValueError
        A shape does not fit; an option is out of its range; `pos_weight` with softmax; no classes.

    See Also
    --------
    cross_entropy : The one-term form, for rows of which one class is right.

    Notes
    -----
    Sigmoid: with ``a = weight*pos_weight*c`` and ``b = weight*(1 - c)`` the loss is
    ``(a + b)*log1p(exp(-|z|)) + (b if z > 0 else a)*|z|``, the form of TensorFlow's
    ``sigmoid_cross_entropy_with_logits``; `pos_weight` and the mean are those of PyTorch's
    ``binary_cross_entropy_with_logits``. Softmax: ``sum(a*(log1p(tail) + max - z) + b*log1p(p/(1 - p)))``, with
    ``tail`` as in `SoftmaxStats`.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> round(float(fastce.binary_cross_entropy(np.zeros(2), [0, 1])), 6)  # log(2)
    0.693147
    >>> round(float(fastce.binary_cross_entropy(np.zeros(2), [0, 1], activation="softmax")), 6)  # 2*log(2)
    1.386294
    """
    return _run(
        logits, targets, activation, pos_weight, weight, sample_weight, reduction, normalizer, axis, num_threads
    )[0]


def binary_cross_entropy_with_grad(
    logits: Any,
    targets: Any,
    *,
    activation: str = "sigmoid",
    pos_weight: Any = None,
    weight: Any = None,
    sample_weight: Any = None,
    reduction: str = "mean",
    normalizer: float | None = None,
    axis: int = -1,
    num_threads: int | None = None,
    upstream: Any = 1.0,
    out: Array | None = None,
) -> tuple[Any, Array]:
    """`binary_cross_entropy` and its gradient with respect to the logits.

    Parameters
    ----------
    logits, targets : array_like
        As in `binary_cross_entropy`.
    activation, pos_weight, weight, sample_weight, reduction, normalizer, axis, num_threads : optional
        As in `binary_cross_entropy`.
    upstream : float or array_like, default 1.0
        Gradient of the final objective with respect to the loss: a scalar, or for ``reduction="none"`` also an array of
        the shape of the losses.
    out : ndarray, optional
        As in `cross_entropy_with_grad`.

    Returns
    -------
    loss : scalar or ndarray
        As `binary_cross_entropy` returns it.
    grad : ndarray
        Shape and memory order of the logits, and their dtype (float64 for integers); `out` if given.

    Raises
    ------
    TypeError, ValueError
        As in `binary_cross_entropy`; `upstream` or `out` does not fit. Before anything is written to `out`.

    Notes
    -----
    Sigmoid: ``weight*(p - c)`` where `pos_weight` is not given, computed as ``(1 - c)*p - c*(1 - p)`` so that neither
    factor is rounded away: Bishop (2006), "Pattern recognition and machine learning", equation 4.91. Softmax: with
    ``g = weight*(-c/p + (1 - c)/(1 - p))`` it is ``p*(g - sum(g*p))``, the chain rule through the Jacobian of equation
    4.106, which is not ``p - c``: see "From scores to gradient" in the documentation. It is computed from the odds
    ``p/(1 - p)``, with no division by a p or 1 - p that may be 0. One class that is not masked, with c other than 1,
    has no gradient: NaN.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> fastce.binary_cross_entropy_with_grad(np.zeros(2), [0, 1], reduction="sum")[1]
    array([ 0.5, -0.5])
    """
    loss, grad = _run(
        logits, targets, activation, pos_weight, weight, sample_weight, reduction, normalizer, axis, num_threads,
        True, upstream, out,
    )  # fmt: skip
    assert grad is not None
    return loss, grad
