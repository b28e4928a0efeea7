"""Second derivatives of softmax cross-entropy: the signatures and docstrings. _kernels.pyx runs the calls, except those
with a softcap. They are composed here, by the chain rule, of calls without it and of the gradient.

With t = tanh(x/softcap) the capped logits are softcap*t, their derivative is s = 1 - t**2 and their second derivative
-2*t*s/softcap. The gradient contains s once, so that the Hessian is s_i*H_ij*s_j, where H is that of the loss by the
capped logits, plus the diagonal matrix of -2*t/softcap times the gradient.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _checks
from ._cross_entropy import cross_entropy_grad
from ._kernels import function
from ._softcap import capped, tanh_and_slope
from ._stats import Array


def _copied(array: Any, logits: Array) -> Array:
    """In the dtype that the logits are computed in, and in the memory order of results."""
    copy = np.empty_like(logits, dtype=_checks.computed_dtype(logits.dtype))
    with np.errstate(all="ignore"):
        copy[...] = array
    return copy


def _times(a: Array, b: Array | float) -> Array:
    """The product, where 0 times anything is 0: of ignored rows, and of masked classes."""
    with np.errstate(all="ignore"):
        return np.where((a == 0) | (b == 0), 0, a * b)


def _sum(a: Array, b: Array) -> Array:
    with np.errstate(all="ignore"):
        return a + b


def _finished(result: Array, logits: Array, subnormals: str, out: Array | None) -> Array:
    """The result in the dtype of the logits, in `out` if it is given."""
    if subnormals == "flush":
        _checks.flush(result)
    if out is None:
        return _checks.converted(result, logits.dtype)
    with np.errstate(all="ignore"):
        out[...] = result
    return out


def _capped_grad_hess(
    logits: Array, targets: Any, *, softcap: float, subnormals: str = "keep", out: Any = None, **options: Any
) -> tuple[Array, Array]:
    x = _copied(logits, logits)
    t, s = tanh_and_slope(x, softcap)
    grad = cross_entropy_grad(x, targets, softcap=softcap, **options)
    _, hess = cross_entropy_grad_hess(capped(x, softcap), targets, **options)
    hess = _sum(_times(_times(hess, s), s), _times(_times(grad, t), -2 / softcap))
    grad_out, hess_out = (None, None) if out is None else out
    return _finished(grad, logits, subnormals, grad_out), _finished(hess, logits, subnormals, hess_out)


def _capped_hvp(
    logits: Array,
    targets: Any,
    vectors: Any,
    *,
    softcap: float,
    subnormals: str = "keep",
    out: Array | None = None,
    **options: Any,
) -> Array:
    x = _copied(logits, logits)
    t, s = tanh_and_slope(x, softcap)
    v = _copied(vectors, logits)
    grad = cross_entropy_grad(x, targets, softcap=softcap, **options)
    product = cross_entropy_hvp(capped(x, softcap), targets, _times(s, v), **options)
    of_slope = _times(_times(_times(grad, t), -2 / softcap), v)
    return _finished(_sum(_times(product, s), of_slope), logits, subnormals, out)


@function("cross_entropy", "array", "hess", capped=_capped_grad_hess)
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
    softcap: float | None = None,
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
    weight, sample_weight, ignore_index, label_smoothing, z_loss, temperature, softcap : optional
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
    its z from the largest, or at the largest the distance to the next.

    With `softcap`, hess is multiplied by ``s**2``, where ``s = 1 - tanh(x/softcap)**2``, and
    ``2*tanh(x/softcap)/softcap*grad`` is subtracted. These two terms may cancel: the error is relative to the sum of
    their absolute values. Such a call takes several passes.

    Friedman (2001), "Greedy function approximation:
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


@function("cross_entropy", "array", capped=_capped_hvp)
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
    softcap: float | None = None,
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
    weight, sample_weight, ignore_index, label_smoothing, z_loss, temperature, softcap : optional
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
    as at masked classes, an infinite v counts for nothing. In float32, v may be as large as 1e28.

    With `softcap` and s as in `cross_entropy_grad_hess`, ``s*v`` takes the place of v, the product is multiplied by s,
    and ``2*tanh(x/softcap)/softcap*grad*v`` is subtracted. Errors are relative to the sum of the absolute values of all
    terms. Such a call takes several passes.

    Pearlmutter (1994),
    "Fast exact multiplication by the Hessian"; Schraudolph (2002), "Fast curvature matrix-vector products for
    second-order gradient descent", for models whose logits are not linear.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> fastce.cross_entropy_hvp(np.array([[0.0, 0.0]]), [1], np.array([[1.0, 0.0]]))
    array([[ 0.25, -0.25]])
    """
