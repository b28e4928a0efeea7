"""Cross-entropy with both terms: the signatures and docstrings of its functions. _kernels.pyx runs the calls."""

from __future__ import annotations

from typing import Any

from ._kernels import function
from ._stats import Array


@function("two_term", "loss")
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
    """The two-term form ``-sum(c*log(p) + (1 - c)*log(1 - p))`` of logits and targets.

    Parameters
    ----------
    logits : array_like
        Scores z, with the classes on `axis`; dtypes as in `cross_entropy`. One dimension is one row: n rows of one
        class have the shape (n, 1).
    targets : array_like
        Targets c, of the same shape and any real dtype or bool. They are usually in [0, 1]; this is not checked.
    activation : {"sigmoid", "softmax"}, default "sigmoid"
        ``p = 1/(1 + exp(-z))`` of each element, or ``p = softmax(z)`` along `axis`.
    pos_weight : array_like of shape (classes,), optional
        A factor of the first term of each class, as in PyTorch, finite and >= 0; for sigmoid only.
    weight : array_like of shape (classes,), optional
        A factor of both terms of each class, finite and >= 0.
    sample_weight : array_like of the rows' shape, optional
        A factor of each row, finite and >= 0. Rows with 0 do not count, as in `cross_entropy`.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the number of elements for sigmoid (PyTorch's rule), and by the sum of `sample_weight` or the
        number of rows for softmax. "none" returns the losses of the elements, or of the rows for softmax.
    normalizer : float, optional
        What "mean" divides by instead, > 0.
    axis : int, default -1
        The axis of the classes.
    num_threads : int, optional
        As in `cross_entropy`.

    Returns
    -------
    loss : scalar or ndarray
        In nats, in the dtype of the logits (float64 for integers). Sums are accumulated in float64. With
        ``reduction="none"``, an array of the shape of the logits, or of the rows for softmax.

    Raises
    ------
    TypeError
        An argument is None or a masked array, or its dtype is not accepted.
    ValueError
        A shape does not fit; an option is out of its range; `pos_weight` with softmax; there are no classes.

    See Also
    --------
    cross_entropy : The one-term form, for rows with one true class.

    Notes
    -----
    Sigmoid: with ``a = weight*pos_weight*c`` and ``b = weight*(1 - c)`` the loss is
    ``(a + b)*log1p(exp(-|z|)) + (b if z > 0 else a)*|z|``, the form of TensorFlow's
    ``sigmoid_cross_entropy_with_logits``. `pos_weight` and the mean are those of PyTorch's
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


@function("two_term", "loss", "array")
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
    subnormals: str = "keep",
    out: Array | None = None,
) -> Any:
    """`binary_cross_entropy` and its gradient with respect to the logits.

    Parameters
    ----------
    logits, targets : array_like
        As in `binary_cross_entropy`.
    activation, pos_weight, weight, sample_weight, reduction, normalizer, axis, num_threads : optional
        As in `binary_cross_entropy`.
    upstream : float or array_like, default 1.0
        Gradient of the final objective with respect to the loss: a scalar, or with ``reduction="none"`` a scalar or an
        array of the shape of the losses.
    subnormals : {"keep", "flush"}, default "keep"
        As in `cross_entropy_with_grad`.
    out : ndarray, optional
        As in `cross_entropy_with_grad`.

    Returns
    -------
    loss : scalar or ndarray
        As `binary_cross_entropy` returns it.
    grad : ndarray
        Of the shape and memory order of the logits, and their dtype (float64 for integers); `out` if it is given.

    Raises
    ------
    TypeError, ValueError
        As in `binary_cross_entropy`; `upstream` or `out` does not fit. Nothing has been written to `out` then.

    Notes
    -----
    Sigmoid: ``weight*(p - c)`` without `pos_weight`, computed as ``(1 - c)*p - c*(1 - p)`` so that neither factor is
    rounded away: Bishop (2006), "Pattern recognition and machine learning", equation 4.91. Softmax: with
    ``g = weight*(-c/p + (1 - c)/(1 - p))`` it is ``p*(g - sum(g*p))``, the chain rule through the Jacobian of equation
    4.106. This is not ``p - c``: see "From scores to gradient" in the documentation. It is computed from the odds
    ``p/(1 - p)`` and never divides by a p or 1 - p that may be 0. Where only one class is not masked and its c is not
    1, the gradient does not exist: it is NaN.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> fastce.binary_cross_entropy_with_grad(np.zeros(2), [0, 1], reduction="sum")[1]
    array([ 0.5, -0.5])
    """
