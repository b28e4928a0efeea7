"""The Kullback-Leibler divergence: the signatures and docstrings of its functions. _kernels.pyx runs the calls."""

from __future__ import annotations

from typing import Any

from ._kernels import function
from ._stats import Array


@function("kl_divergence", "loss")
def kl_divergence(
    logits: Any,
    target_logits: Any,
    *,
    targets: str = "logits",
    temperature: float = 1.0,
    softcap: float | None = None,
    sample_weight: Any = None,
    reduction: str = "mean",
    normalizer: float | None = None,
    axis: int = -1,
    num_threads: int | None = None,
) -> Any:
    """Kullback-Leibler divergence of a softmax from targets, as in knowledge distillation.

    Parameters
    ----------
    logits : array_like
        Scores x of the student, with the classes on `axis`; dtypes as in `cross_entropy`. A logit of -inf masks its
        class. A row that contains NaN or +inf, or only -inf, has loss NaN.
    target_logits : array_like
        Scores t of the teacher, of the shape of `logits` and any real dtype; computed in the dtype of `logits`. The
        same rules hold for their rows. With ``targets="probabilities"``, the targets themselves.
    targets : {"logits", "probabilities"}, default "logits"
        What `target_logits` are: with "logits", q = softmax(t/temperature); with "probabilities", q is what is given.
        Its rows need not sum to 1. A negative number gives NaN in its row.
    temperature : float, default 1.0
        Logits are divided by it, in [1e-15, 1e15]. Probabilities are not changed.
    softcap : float, optional
        As in `cross_entropy`: ``softcap*tanh(x/softcap)`` takes the place of x, and of t. Default: none.
    sample_weight : array_like of the rows' shape, optional
        A factor of each row's loss, finite and >= 0. Default: ones.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides the sum of the losses by `normalizer`; "none" returns the loss of each row.
    normalizer : float, optional
        What "mean" divides by, > 0. Default: the sum of `sample_weight`, or the number of rows. This is PyTorch's
        ``reduction="batchmean"``. If it is 0, the mean is NaN and the gradient is 0.
    axis : int, default -1
        The axis of the classes.
    num_threads : int, optional
        As in `cross_entropy`.

    Returns
    -------
    loss : scalar or ndarray
        In nats, in the dtype of the logits (float64 for integers). Sums over rows are accumulated in float64. With
        ``reduction="none"``, an array of the rows' shape.

    Raises
    ------
    TypeError
        An argument is None or a masked array, or its dtype is not accepted.
    ValueError
        A shape does not fit; an option is out of its range; there are no classes.

    See Also
    --------
    kl_divergence_with_grad : Loss and gradient in one pass.
    cross_entropy : For fixed probability targets it has the same gradient, and options such as label smoothing.

    Notes
    -----
    With p = softmax(x/temperature) and 0*log(0) = 0 the loss is ``sum(q*(log(q) - log(p)))``. Where p is 0 and q is
    not, it is infinite.

    With ``u = log(p) - log(q)`` it is computed as ``sum(q*(exp(u) - 1 - u))``, which is the same because p and q have
    the same sum. Every term is >= 0, so the loss is never negative, equal logits have the loss 0 exactly, and the loss
    of nearly equal logits keeps its relative accuracy. The error is at most eps times
    ``sum(8*abs(q*u) + d*(abs(p - q) + abs(q*u)))``, where d is how far a class is below the maxima of both rows,
    divided by the temperature. With probabilities of the sum m, ``8*m*abs(log(m))`` comes in addition. Neither p nor
    q is formed as an array.

    Hinton, Vinyals and Dean (2015), "Distilling the knowledge in a neural network", multiply the loss of a temperature
    T by T**2, so that its gradient does not become smaller as T grows. That factor is not applied here: multiply the
    loss by it, and pass ``upstream=T**2`` for the gradient.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> student, teacher = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
    >>> round(float(fastce.kl_divergence(student, teacher)), 6)
    0.130812
    >>> round(float(fastce.kl_divergence(student, [[0.25, 0.75]], targets="probabilities")), 6)
    0.130812
    >>> float(fastce.kl_divergence(teacher, teacher))
    0.0
    """


@function("kl_divergence", "loss", "array")
def kl_divergence_with_grad(
    logits: Any,
    target_logits: Any,
    *,
    targets: str = "logits",
    temperature: float = 1.0,
    softcap: float | None = None,
    sample_weight: Any = None,
    reduction: str = "mean",
    normalizer: float | None = None,
    axis: int = -1,
    num_threads: int | None = None,
    upstream: Any = 1.0,
    out: Array | None = None,
) -> Any:
    """`kl_divergence` and its gradient with respect to the logits, in one pass.

    Parameters
    ----------
    logits, target_logits : array_like
        As in `kl_divergence`.
    targets, temperature, softcap, sample_weight, reduction, normalizer, axis, num_threads : optional
        As in `kl_divergence`.
    upstream : float or array_like, default 1.0
        Gradient of the final objective with respect to the loss, a factor of the result: a scalar, or with
        ``reduction="none"`` a scalar or an array of the rows' shape.
    out : ndarray, optional
        As in `cross_entropy_with_grad`.

    Returns
    -------
    loss : scalar or ndarray
        As `kl_divergence` returns it.
    grad : ndarray
        Of the shape and memory order of the logits, and their dtype (float64 for integers); `out` if it is given. There
        is no gradient with respect to the targets.

    Raises
    ------
    TypeError, ValueError
        As in `kl_divergence`; `upstream` or `out` does not fit. Nothing has been written to `out` then.

    Notes
    -----
    With p, q and u as in `kl_divergence`::

        grad = sample_weight * upstream / denominator / temperature * (sum(q)*p - q)

    The difference p - q is computed as ``q*(exp(u) - 1)`` where p and q are nearly equal. With `softcap` the gradient
    is multiplied by ``1 - tanh(x/softcap)**2``, as in `cross_entropy_with_grad`.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> student, teacher = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
    >>> loss, grad = fastce.kl_divergence_with_grad(student, teacher)
    >>> grad.round(6)
    array([[ 0.25, -0.25]])
    >>> T = 2.0  # the gradient of T**2 times the loss at that temperature
    >>> fastce.kl_divergence_with_grad(student, teacher, temperature=T, upstream=T**2)[1].round(6)
    array([[ 0.267949, -0.267949]])
    """
