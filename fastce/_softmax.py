"""softmax and its relatives, one-hot rows, predictions: checks, then one call of the kernels. Errors are raised here,
before anything is written; see _api.py."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from . import _kernels
from ._api import _targets_of, _threads
from ._arrays import Array, Order, as_array, as_axis, as_logits, at_index, check_out, native, order_of, same_memory

_softmax = {dtype: _kernels.softmax[name] for dtype, name in ((np.float32, "float"), (np.float64, "double"))}
_vjp = {dtype: _kernels.vector_jacobian[name] for dtype, name in ((np.float32, "float"), (np.float64, "double"))}


def _classes(name: str, x: Array, axis: Any) -> Order:
    if not x.ndim:
        raise ValueError(f"{name} is a scalar, expected at least one dimension: the classes")
    axis = as_axis(axis, x.ndim)
    if not x.shape[axis]:
        raise ValueError(f"{name} has shape {x.shape}: no classes on axis {axis}")
    return order_of(x, axis)


def _write(out: Any, x: Array, what: str, others: tuple[Array, ...], compute: Callable[[Array], None]) -> Array:
    """Computes into `out` or a new array; by way of another where `out` overlaps an input other than exactly."""
    if out is None:
        result = np.empty_like(x, subok=False)
    else:
        check_out(out, x, what)
        result = out
        if any(np.may_share_memory(out, a) and not same_memory(out, a) for a in (x, *others)):
            result = np.empty_like(x, subok=False)
    if x.size:
        compute(result)
    if out is not None and result is not out:
        out[...] = result
    return result if out is None else out


def _normalized(x: Any, axis: Any, out: Any, num_threads: Any, log: bool) -> Array:
    x = as_logits(x, "x")
    order = _classes("x", x, axis)
    threads = _threads(num_threads)

    def compute(y: Array) -> None:
        positions = x.size // x.shape[order.axis]
        _softmax[x.dtype.type](*order.rows(x), positions, log, *order.rows(y), None, threads)

    return _write(out, x, "x", (), compute)


def softmax(x: Any, *, axis: int = -1, out: Array | None = None, num_threads: int | None = None) -> Array:
    """Probabilities ``exp(x) / sum(exp(x))``.

    Parameters
    ----------
    x : array_like
        Logits of one dimension or more, classes on `axis`; float32 and float64 in their own precision, integers and
        bools as float64. -inf gives 0; NaN, +inf or nothing but -inf makes that row NaN.
    axis : int, default -1
        The axis of the classes.
    out : ndarray, optional
        Buffer of the shape of `x` and the dtype of the result, writeable, aligned, native byte order. It may be `x`
        itself; any other overlap is computed as if there were none.
    num_threads : int, optional
        As in `cross_entropy`.

    Returns
    -------
    p : ndarray
        Shape and memory order of `x`, and its dtype (float64 for integers and bools); `out` if given.

    Raises
    ------
    TypeError
        `x` is None or a masked array, or has a dtype that is not accepted; `axis` is no int; `out` is no ndarray.
    ValueError
        `x` is a scalar or has no classes; `axis` is out of range; `out` or `num_threads` does not fit. Before anything
        is written.

    See Also
    --------
    softmax_grad : Its gradient.
    cross_entropy : The loss, which needs no probabilities.

    Notes
    -----
    ``p = exp(x - max)/(1 + tail)`` with ``tail`` as in `SoftmaxStats`. Bridle (1990), "Probabilistic interpretation of
    feedforward classification network outputs".

    Examples
    --------
    >>> import numpy as np, fastce
    >>> fastce.softmax(np.log([1.0, 3.0])).round(6)
    array([0.25, 0.75])
    """
    return _normalized(x, axis, out, num_threads, False)


def log_softmax(x: Any, *, axis: int = -1, out: Array | None = None, num_threads: int | None = None) -> Array:
    """Log-probabilities ``x - logsumexp(x)``, not rounded to 0 where a row is confident.

    Parameters
    ----------
    x : array_like
        Logits, as in `softmax`; but -inf gives -inf.
    axis : int, default -1
        The axis of the classes.
    out : ndarray, optional
        As in `softmax`.
    num_threads : int, optional
        As in `cross_entropy`.

    Returns
    -------
    logp : ndarray
        In nats. Shape and memory order of `x`, and its dtype (float64 for integers and bools); `out` if given.

    Raises
    ------
    TypeError, ValueError
        As in `softmax`.

    See Also
    --------
    log_softmax_grad : Its gradient.

    Notes
    -----
    ``(x - max) - log1p(tail)``, with ``tail`` as in `SoftmaxStats`: Blanchard, Higham and Higham (2021), "Accurately
    computing the log-sum-exp and softmax functions".

    Examples
    --------
    >>> import numpy as np, fastce
    >>> print(f"{fastce.log_softmax(np.float32([20, 0, 0, 0]))[0]:.5e}")  # SciPy: 0
    -6.18346e-09
    """
    return _normalized(x, axis, out, num_threads, True)


def logsumexp(x: Any, *, axis: int = -1, out: Array | None = None, num_threads: int | None = None) -> Any:
    """``log(sum(exp(x)))``.

    Parameters
    ----------
    x : array_like
        Logits, as in `softmax`; but nothing but -inf gives -inf, and +inf without NaN gives +inf.
    axis : int, default -1
        The axis of the classes.
    out : ndarray, optional
        Buffer of the shape of `x` without `axis` and the dtype of the result; else as in `softmax`.
    num_threads : int, optional
        As in `cross_entropy`.

    Returns
    -------
    lse : scalar or ndarray
        In nats. Shape of `x` without `axis`, a scalar where no dimension is left; dtype of `x` (float64 for integers
        and bools). `out` if given.

    Raises
    ------
    TypeError, ValueError
        As in `softmax`.

    Notes
    -----
    ``max + log1p(tail)``, with ``tail`` as in `SoftmaxStats`, finished in float64: Blanchard, Higham and Higham (2021),
    "Accurately computing the log-sum-exp and softmax functions".

    Examples
    --------
    >>> import numpy as np, fastce
    >>> round(float(fastce.logsumexp(np.array([1e6, 1e6]))), 6)  # 1e6 + log(2)
    1000000.693147
    """
    x = as_logits(x, "x")
    order = _classes("x", x, axis)
    shape = x.shape[: order.axis] + x.shape[order.axis + 1 :]
    threads = _threads(num_threads)
    if out is not None:
        check_out(out, np.broadcast_to(x.dtype.type(0), shape), "x without its class axis")
    positions = x.size // x.shape[order.axis]
    flat = np.empty(positions, x.dtype)
    if positions:
        _softmax[x.dtype.type](*order.rows(x), positions, False, None, None, flat, threads)
    result = order.to_caller(flat, shape)
    if out is None:
        return result if shape else result[()]
    out[...] = result
    return out


def _pulled_back(upstream: Any, y: Any, axis: Any, out: Any, num_threads: Any, log: bool) -> Array:
    y = as_logits(y, "y")
    order = _classes("y", y, axis)
    u = as_array("upstream", upstream)
    if u.shape != y.shape:
        raise ValueError(f"upstream has shape {u.shape}, expected {y.shape} to match y")
    if u.dtype != y.dtype:
        with np.errstate(over="ignore"):  # infinite in the dtype of y, without a warning, as the kernels' own overflow
            u = u.astype(y.dtype)
    u = native(u)
    threads = _threads(num_threads)

    def compute(g: Array) -> None:
        positions = y.size // y.shape[order.axis]
        operand = _targets_of[u.dtype](*order.rows(u))
        _vjp[y.dtype.type](*order.rows(y), positions, operand, log, *order.rows(g), threads)

    return _write(out, y, "y", (u,), compute)


def softmax_grad(
    upstream: Any, y: Any, *, axis: int = -1, out: Array | None = None, num_threads: int | None = None
) -> Array:
    """Gradient with respect to x, given the gradient with respect to ``y = softmax(x)``.

    Parameters
    ----------
    upstream : array_like
        Gradient with respect to `y`, of its shape; any real dtype, converted to that of `y`.
    y : array_like
        What `softmax` returned; dtypes as in `softmax`. It is not checked to be probabilities.
    axis : int, default -1
        The axis of the classes.
    out : ndarray, optional
        As in `softmax`, of the shape and dtype of `y`; it may be `y` or `upstream` itself.
    num_threads : int, optional
        As in `cross_entropy`.

    Returns
    -------
    grad : ndarray
        Shape and memory order of `y`, and its dtype (float64 for integers and bools); `out` if given.

    Raises
    ------
    TypeError, ValueError
        As in `softmax`; `upstream` of another shape.

    Notes
    -----
    The product of `upstream` with the Jacobian ``diag(y) - y y^T``: ``y*(upstream - sum(upstream*y))``. Bishop (2006),
    "Pattern recognition and machine learning", equation 4.106.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> fastce.softmax_grad([1.0, 0.0], np.array([0.5, 0.5]))
    array([ 0.25, -0.25])
    """
    return _pulled_back(upstream, y, axis, out, num_threads, False)


def log_softmax_grad(
    upstream: Any, y: Any, *, axis: int = -1, out: Array | None = None, num_threads: int | None = None
) -> Array:
    """Gradient with respect to x, given the gradient with respect to ``y = log_softmax(x)``.

    Parameters
    ----------
    upstream : array_like
        Gradient with respect to `y`, of its shape; any real dtype, converted to that of `y`.
    y : array_like
        What `log_softmax` returned; dtypes as in `softmax`. It is not checked to be log-probabilities.
    axis : int, default -1
        The axis of the classes.
    out : ndarray, optional
        As in `softmax_grad`.
    num_threads : int, optional
        As in `cross_entropy`.

    Returns
    -------
    grad : ndarray
        Shape and memory order of `y`, and its dtype (float64 for integers and bools); `out` if given.

    Raises
    ------
    TypeError, ValueError
        As in `softmax_grad`.

    Notes
    -----
    The product of `upstream` with the Jacobian ``I - 1 exp(y)^T``: ``upstream - exp(y)*sum(upstream)``, which follows
    from that of `softmax_grad` and ``d log(p) = dp/p``.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> fastce.log_softmax_grad([1.0, 0.0], np.log([0.5, 0.5]))
    array([ 0.5, -0.5])
    """
    return _pulled_back(upstream, y, axis, out, num_threads, True)


def one_hot(labels: Any, num_classes: int, *, dtype: Any = np.float32, axis: int = -1) -> Array:
    """Rows that are 1 at the label and 0 elsewhere.

    Parameters
    ----------
    labels : array_like
        Class indices of any integer dtype, any shape.
    num_classes : int
        How many classes there are, >= 1.
    dtype : dtype, default float32
        Of the result: any of numbers or bools.
    axis : int, default -1
        Where the result has its classes.

    Returns
    -------
    rows : ndarray
        Shape of `labels` with `num_classes` inserted at `axis`.

    Raises
    ------
    TypeError
        Labels that are not integers; `num_classes` or `axis` no int; a `dtype` of something else.
    ValueError
        `num_classes` < 1; `axis` out of range.
    IndexError
        A label outside ``[0, num_classes)``. There is no `ignore_index`.

    Notes
    -----
    ``rows[k] = 1 if k == label else 0``: the "1-of-K coding" of Bishop (2006), "Pattern recognition and machine
    learning", chapter 4.

    Examples
    --------
    >>> import fastce
    >>> fastce.one_hot([2, 0], 3)
    array([[0., 0., 1.],
           [1., 0., 0.]], dtype=float32)
    """
    indices = as_array("labels", labels)
    if not indices.size and not isinstance(labels, np.ndarray):
        indices = indices.astype(np.int64)  # an empty list has no dtype to speak of
    if indices.dtype.kind not in "iu":
        raise TypeError(f"labels has dtype {indices.dtype}, expected integers; cast them: labels.astype(np.int64)")
    try:
        if isinstance(num_classes, (bool, np.bool_)):
            raise TypeError
        classes = operator.index(num_classes)
    except TypeError:
        raise TypeError(f"num_classes is {num_classes!r}, expected an int >= 1") from None
    if classes < 1:
        raise ValueError(f"num_classes is {classes}, expected an int >= 1")
    if np.dtype(dtype).kind not in "biufc":
        raise TypeError(f"dtype is {np.dtype(dtype)}, expected one of numbers or bools")
    at = as_axis(axis, indices.ndim + 1)
    wrong = (indices < 0) | (indices >= classes)
    if wrong.any():
        first = tuple(np.argwhere(wrong)[0].tolist())
        raise IndexError(f"{at_index('labels', first)} is {indices[first]}, out of range for {classes} classes")
    rows = np.zeros((*indices.shape[:at], classes, *indices.shape[at:]), dtype)
    np.put_along_axis(rows, np.expand_dims(indices.astype(np.intp), at), 1, at)
    return rows


def predict(logits: Any, *, axis: int = -1) -> Any:
    """The most probable class of each row: the first index of its maximum.

    Parameters
    ----------
    logits : array_like
        Logits or probabilities, classes on `axis`; dtypes as in `softmax`. NaN counts as a maximum, as in
        `numpy.argmax`.
    axis : int, default -1
        The axis of the classes.

    Returns
    -------
    labels : intp or ndarray of intp
        Shape of `logits` without `axis`.

    Raises
    ------
    TypeError, ValueError
        As in `softmax`.

    Notes
    -----
    ``argmax(x) = argmax(softmax(x))``, which makes the fewest errors: Bishop (2006), "Pattern recognition and machine
    learning", section 1.5.1.

    Examples
    --------
    >>> import fastce
    >>> fastce.predict([[0.1, 2.0, 0.3], [1.0, 0.0, 1.0]])
    array([1, 0])
    """
    x = as_logits(logits)
    return np.argmax(x, axis=_classes("logits", x, axis).axis)
