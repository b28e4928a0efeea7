"""Second derivatives of softmax cross-entropy: the signatures and docstrings. _kernels.pyx runs the calls."""

from __future__ import annotations

from typing import Any

from ._kernels import function
from ._stats import Array


@function("cross_entropy", "array", "hess")
def cross_entropy_grad_hess(
    logits: Any,
    targets: Any,
    *,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    reduction: str = "mean",
    normalizer: float | None = None,
    axis: int = -1,
    num_threads: int | None = None,
    upstream: Any = 1.0,
    subnormals: str = "keep",
    out: tuple[Array, Array] | None = None,
) -> Any:
    """The gradient of `cross_entropy` and the diagonal of its Hessian with respect to the logits, in one pass.

    This is what gradient boosting asks for at each step.

    Parameters
    ----------
    logits, targets : array_like
        As in `cross_entropy`.
    weight, sample_weight, ignore_index, label_smoothing, z_loss, temperature : optional
        As in `cross_entropy`.
    reduction, normalizer, axis, num_threads : optional
        As in `cross_entropy`.
    upstream : float or array_like, default 1.0
        As in `cross_entropy_with_grad`, a factor of both results.
    subnormals : {"keep", "flush"}, default "keep"
        As in `cross_entropy_with_grad`, for both results.
    out : tuple of two ndarrays, optional
        Buffers for both results, as in `cross_entropy_with_grad`. Either may be `logits` itself; they may not share
        memory with each other.

    Returns
    -------
    grad : ndarray
        As `cross_entropy_grad` returns it.
    hess : ndarray
        The diagonal, of the same shape, memory order and dtype.

    Raises
    ------
    TypeError, ValueError, IndexError
        As in `cross_entropy_with_grad`. Nothing has been written to `out` then.

    See Also
    --------
    cross_entropy_hvp : The whole Hessian times a vector.

    Notes
    -----
    With ``z = x/temperature``, p = softmax(z), q as in `cross_entropy` and ``k = sum(q) + 2*z_loss*logsumexp(z)``::

        hess = sample_weight * upstream / denominator * (k*p*(1 - p) + 2*z_loss*p**2) / temperature**2

    At the largest logit ``1 - p`` is computed as ``tail/(1 + tail)``, so that the diagonal of a confident row is not
    rounded to 0. Without `z_loss` the error of each number is at most ``(6 + d)*eps`` of it, where d is the distance of
    its z from the largest, or at the largest the distance to the next. Friedman (2001), "Greedy function approximation:
    a gradient boosting machine", algorithm 6, where the diagonal is ``p*(1 - p)``.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> grad, hess = fastce.cross_entropy_grad_hess(np.array([[0.0, 0.0]]), [1])
    >>> grad
    array([[ 0.5, -0.5]])
    >>> hess
    array([[0.25, 0.25]])
    """


@function("cross_entropy", "array")
def cross_entropy_hvp(
    logits: Any,
    targets: Any,
    vectors: Any,
    *,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    reduction: str = "mean",
    normalizer: float | None = None,
    axis: int = -1,
    num_threads: int | None = None,
    upstream: Any = 1.0,
    subnormals: str = "keep",
    out: Array | None = None,
) -> Any:
    """The Hessian of `cross_entropy` with respect to the logits, times vectors.

    The Hessian consists of one matrix for each row, and each is multiplied by the vector of its row. They are not
    formed. Second-order solvers, such as Newton-CG, ask for such products.

    Parameters
    ----------
    logits, targets : array_like
        As in `cross_entropy`.
    vectors : array_like
        Of the shape of `logits` and any real dtype or bool. It is converted to the dtype of the logits.
    weight, sample_weight, ignore_index, label_smoothing, z_loss, temperature : optional
        As in `cross_entropy`.
    reduction, normalizer, axis, num_threads : optional
        As in `cross_entropy`.
    upstream : float or array_like, default 1.0
        As in `cross_entropy_with_grad`.
    subnormals : {"keep", "flush"}, default "keep"
        As in `cross_entropy_with_grad`.
    out : ndarray, optional
        As in `cross_entropy_with_grad`. It may also be `vectors` itself.

    Returns
    -------
    product : ndarray
        Of the shape and memory order of the logits, and their dtype (float64 for integers); `out` if it is given.

    Raises
    ------
    TypeError, ValueError, IndexError
        As in `cross_entropy_with_grad`; `vectors` does not fit. Nothing has been written to `out` then.

    See Also
    --------
    cross_entropy_grad_hess : The gradient and the diagonal of the Hessian.

    Notes
    -----
    With ``z = x/temperature``, p = softmax(z), q as in `cross_entropy`, ``k = sum(q) + 2*z_loss*logsumexp(z)`` and
    ``mean = sum(p*v)``::

        product = sample_weight * upstream / denominator * p*(k*(v - mean) + 2*z_loss*mean) / temperature**2

    ``v - mean`` is computed from the differences w of v to its number at the largest logit, as ``w - sum(p*w)``.
    Therefore nothing cancels in confident rows: without `z_loss` errors are at most ``(8 + d)*eps`` of
    ``p*(abs(w) + sum(p*abs(w)))``, with d as in `cross_entropy_grad_hess`, and d of each term in the sum. Where p is 0,
    as at masked classes, an infinite v counts for nothing. In float32, v may be as large as 1e28. Pearlmutter (1994),
    "Fast exact multiplication by the Hessian"; Schraudolph (2002), "Fast curvature matrix-vector products for
    second-order gradient descent", for models whose logits are not linear.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> fastce.cross_entropy_hvp(np.array([[0.0, 0.0]]), [1], np.array([[1.0, 0.0]]))
    array([[ 0.25, -0.25]])
    """
