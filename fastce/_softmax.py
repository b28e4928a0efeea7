"""Softmax and its relatives: their signatures and docstrings. _kernels.pyx runs the calls."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import _checks
from ._kernels import function, set_ones
from ._stats import Array

Axis = int | tuple[int, ...] | None
ONE = np.ones((), np.float32)


@function("softmax", "array")
def softmax(
    x: Any,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    axis: Axis = -1,
    subnormals: str = "keep",
    out: Array | None = None,
    num_threads: int | None = None,
) -> Any:
    """Probabilities ``exp(x) / sum(exp(x))``.

    Parameters
    ----------
    x : array_like
        Logits of one or more dimensions, with the classes on `axis`; dtypes as in `cross_entropy`. -inf gives 0. A row
        that contains NaN or +inf, or only -inf, gives NaN.
    temperature : float, default 1.0
        What the logits are divided by, in [1e-15, 1e15]: the probabilities are those of ``x/temperature``.
    softcap : float, optional
        As in `cross_entropy`: the probabilities are those of ``softcap*tanh(x/softcap)``. Default: none.
    axis : int, tuple of ints or None, default -1
        The axis of the classes. The elements of several axes together, or of the whole array for None, are the classes
        of one row. The default of SciPy is None.
    subnormals : {"keep", "flush"}, default "keep"
        "flush" makes probabilities smaller than 2**-100 (float64: 2**-900) 0; see `cross_entropy_with_grad`.
    out : ndarray, optional
        Buffer of the shape of `x` and the dtype of the result, writeable, aligned, in native byte order. It may be `x`
        itself. If it overlaps an input in any other way, the result is the same as without overlap.
    num_threads : int, optional
        As in `cross_entropy`.

    Returns
    -------
    p : ndarray
        Of the shape and memory order of `x`, and its dtype (float64 for integers and bools); `out` if it is given.

    Raises
    ------
    TypeError
        `x` is None or a masked array, or its dtype is not accepted; `axis` is none of what is named above; `out` is not
        an ndarray.
    ValueError
        `x` has no classes, or it is a scalar and `axis` an int; `axis` is out of range or names an axis twice; `out` or
        `num_threads` does not fit. Nothing has been written then.

    See Also
    --------
    softmax_grad : Its gradient.
    cross_entropy : The loss, which needs no probabilities.

    Notes
    -----
    ``p = exp((x - max)/temperature)/(1 + tail)`` with ``tail`` as in `SoftmaxStats`. Bridle (1990), "Probabilistic
    interpretation of feedforward classification network outputs".

    Examples
    --------
    >>> import numpy as np, fastce
    >>> fastce.softmax(np.log([1.0, 3.0])).round(6)
    array([0.25, 0.75])
    >>> fastce.softmax(np.log([[1.0, 2.0], [3.0, 4.0]]), axis=None).round(6)  # as scipy.special.softmax without `axis`
    array([[0.1, 0.2],
           [0.3, 0.4]])
    >>> fastce.softmax(np.log([1.0, 9.0]), temperature=2.0).round(6)  # the square roots, divided by their sum
    array([0.25, 0.75])
    >>> fastce.softmax(np.float32([0, -80]), subnormals="flush")  # not 1.8e-35
    array([1., 0.], dtype=float32)
    """


@function("log_softmax", "array")
def log_softmax(
    x: Any,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    axis: Axis = -1,
    out: Array | None = None,
    num_threads: int | None = None,
) -> Any:
    """Log-probabilities ``x - logsumexp(x)``, which are not rounded to 0 where a row is confident.

    Parameters
    ----------
    x : array_like
        Logits, as in `softmax`; but -inf gives -inf.
    temperature, softcap : optional
        As in `softmax`.
    axis : int, tuple of ints or None, default -1
        The axis of the classes, as in `softmax`.
    out : ndarray, optional
        As in `softmax`.
    num_threads : int, optional
        As in `cross_entropy`.

    Returns
    -------
    logp : ndarray
        In nats. Of the shape and memory order of `x`, and its dtype (float64 for integers and bools); `out` if it is
        given.

    Raises
    ------
    TypeError, ValueError
        As in `softmax`.

    See Also
    --------
    log_softmax_grad : Its gradient.

    Notes
    -----
    ``(x - max)/temperature - log1p(tail)``, with ``tail`` as in `SoftmaxStats`: Blanchard, Higham and Higham (2021),
    "Accurately computing the log-sum-exp and softmax functions".

    Examples
    --------
    >>> import numpy as np, fastce
    >>> print(f"{fastce.log_softmax(np.float32([20, 0, 0, 0]))[0]:.5e}")  # SciPy: 0
    -6.18346e-09
    """


@function("logsumexp", "loss")
def logsumexp(
    x: Any,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    axis: Axis = -1,
    keepdims: bool = False,
    out: Array | None = None,
    num_threads: int | None = None,
) -> Any:
    """``log(sum(exp(x)))``.

    Parameters
    ----------
    x : array_like
        Logits, as in `softmax`; but a row of only -inf, or without classes, gives -inf, and +inf without NaN
        gives +inf.
    temperature : float, default 1.0
        As in `softmax`: ``log(sum(exp(x/temperature)))``.
    softcap : float, optional
        As in `softmax`.
    axis : int, tuple of ints or None, default -1
        The axis of the classes, as in `softmax`.
    keepdims : bool, default False
        The axes of the classes stay, with length 1, so that the result can be subtracted from `x`.
    out : ndarray, optional
        Buffer of the shape and dtype of the result; otherwise as in `softmax`.
    num_threads : int, optional
        As in `cross_entropy`.

    Returns
    -------
    lse : scalar or ndarray
        In nats. Of the shape of `x` without `axis`, or with length 1 there; a scalar if no dimension is left; in the
        dtype that `x` is computed in. `out` if it is given.

    Raises
    ------
    TypeError, ValueError
        As in `softmax`.

    Notes
    -----
    ``max/temperature + log1p(tail)``, with ``tail`` as in `SoftmaxStats`, added in float64: Blanchard, Higham and
    Higham (2021), "Accurately computing the log-sum-exp and softmax functions".

    Examples
    --------
    >>> import numpy as np, fastce
    >>> round(float(fastce.logsumexp(np.array([1e6, 1e6]))), 6)  # 1e6 + log(2)
    1000000.693147
    >>> x = np.log([[1.0, 2.0], [3.0, 4.0]])
    >>> fastce.logsumexp(x, axis=(0, 1), keepdims=True).round(6)  # log(10)
    array([[2.302585]])
    """


@function("softmax_grad", "array")
def softmax_grad(
    upstream: Any,
    y: Any,
    *,
    temperature: float = 1.0,
    axis: Axis = -1,
    subnormals: str = "keep",
    out: Array | None = None,
    num_threads: int | None = None,
) -> Any:
    """Gradient with respect to x, given the gradient with respect to ``y = softmax(x)``.

    Parameters
    ----------
    upstream : array_like
        Gradient with respect to `y`, of its shape and any real dtype; it is converted to the dtype of `y`.
    y : array_like
        What `softmax` returned; dtypes as in `softmax`. Whether these are probabilities is not checked.
    temperature : float, default 1.0
        That of the `softmax` that returned `y`; the result is divided by it.
    axis : int, tuple of ints or None, default -1
        The axis of the classes, as in `softmax`.
    subnormals : {"keep", "flush"}, default "keep"
        As in `cross_entropy_with_grad`.
    out : ndarray, optional
        As in `softmax`, of the shape and dtype of `y`; it may be `y` or `upstream` itself.
    num_threads : int, optional
        As in `cross_entropy`.

    Returns
    -------
    grad : ndarray
        Of the shape and memory order of `y`, and its dtype (float64 for integers and bools); `out` if it is given.

    Raises
    ------
    TypeError, ValueError
        As in `softmax`; `upstream` is of another shape.

    Notes
    -----
    The product of `upstream` with the Jacobian ``diag(y) - y y^T``: ``y*(upstream - sum(upstream*y))/temperature``.
    Bishop (2006), "Pattern recognition and machine learning", equation 4.106.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> fastce.softmax_grad([1.0, 0.0], np.array([0.5, 0.5]))
    array([ 0.25, -0.25])
    """


@function("log_softmax_grad", "array")
def log_softmax_grad(
    upstream: Any,
    y: Any,
    *,
    temperature: float = 1.0,
    axis: Axis = -1,
    subnormals: str = "keep",
    out: Array | None = None,
    num_threads: int | None = None,
) -> Any:
    """Gradient with respect to x, given the gradient with respect to ``y = log_softmax(x)``.

    Parameters
    ----------
    upstream : array_like
        Gradient with respect to `y`, as in `softmax_grad`.
    y : array_like
        What `log_softmax` returned, as in `softmax_grad`.
    temperature : float, default 1.0
        That of the `log_softmax` that returned `y`; the result is divided by it.
    axis : int, tuple of ints or None, default -1
        The axis of the classes, as in `softmax`.
    subnormals : {"keep", "flush"}, default "keep"
        As in `cross_entropy_with_grad`.
    out : ndarray, optional
        As in `softmax_grad`.
    num_threads : int, optional
        As in `cross_entropy`.

    Returns
    -------
    grad : ndarray
        As `softmax_grad` returns it.

    Raises
    ------
    TypeError, ValueError
        As in `softmax_grad`.

    Notes
    -----
    The product of `upstream` with the Jacobian ``I - 1 exp(y)^T``: ``(upstream - exp(y)*sum(upstream))/temperature``.
    It follows from the Jacobian of `softmax_grad` and ``d log(p) = dp/p``.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> fastce.log_softmax_grad([1.0, 0.0], np.log([0.5, 0.5]))
    array([ 0.5, -0.5])
    """


def one_hot(labels: Any, num_classes: int, *, dtype: Any = np.float32, axis: int = -1) -> Array:
    """Rows that are 1 at the label and 0 elsewhere.

    Parameters
    ----------
    labels : array_like
        Class indices, of any integer dtype and any shape.
    num_classes : int
        The number of classes, >= 1.
    dtype : dtype, default float32
        The dtype of the result: numbers or bool.
    axis : int, default -1
        The axis of the result that contains the classes.

    Returns
    -------
    rows : ndarray
        Of the shape of `labels` with `num_classes` inserted at `axis`.

    Raises
    ------
    TypeError
        `labels` are not integers; `num_classes` or `axis` is not an int; `dtype` is neither numbers nor bool.
    ValueError
        `num_classes` < 1; `axis` is out of range.
    IndexError
        A label is outside ``[0, num_classes)``. There is no `ignore_index`.

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
    indices = _checks.as_labels("labels", labels)
    classes = _checks.as_count("num_classes", num_classes)
    one = ONE if dtype is np.float32 else np.array(1, dtype)
    if one.dtype.kind not in "biufc":
        raise TypeError(f"dtype is {one.dtype}, expected one of numbers or bools")
    at = _checks.as_axis(axis, indices.ndim + 1)
    shape = indices.shape
    rows = np.zeros((*shape[:at], classes, *shape[at:]), one.dtype)
    if not set_ones(rows, indices, classes, math.prod(shape[at:]), one):
        raise _checks.label_error(indices, classes, None, "labels")
    return rows


@function("predict")
def predict(logits: Any, *, axis: int = -1, num_threads: int | None = None) -> Any:
    """The most probable class of each row: the first index of its maximum.

    Parameters
    ----------
    logits : array_like
        Logits or probabilities, with the classes on `axis`; dtypes as in `softmax`, but integers are compared as they
        are. NaN counts as a maximum, as in `numpy.argmax`.
    axis : int, default -1
        The axis of the classes.
    num_threads : int, optional
        As in `cross_entropy`. Integers are compared by NumPy, in one thread.

    Returns
    -------
    labels : intp or ndarray of intp
        Of the shape of `logits` without `axis`.

    Raises
    ------
    TypeError, ValueError
        As in `softmax`.

    Notes
    -----
    ``argmax(x) = argmax(softmax(x))``, which minimises the expected number of errors: Bishop (2006), "Pattern
    recognition and machine learning", section 1.5.1.

    Examples
    --------
    >>> import fastce
    >>> fastce.predict([[0.1, 2.0, 0.3], [1.0, 0.0, 1.0]])
    array([1, 0])
    """
