"""The entropy of a softmax: the signatures and docstrings of its functions. _kernels.pyx runs the calls."""

from __future__ import annotations

from typing import Any

from ._kernels import function
from ._stats import Array


@function("entropy", "loss")
def entropy(
    logits: Any,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    sample_weight: Any = None,
    reduction: str = "mean",
    normalizer: float | None = None,
    axis: int = -1,
    num_threads: int | None = None,
) -> Any:
    """The entropy ``-sum(p*log(p))`` of ``p = softmax(logits/temperature)``, without gradient.

    Parameters
    ----------
    logits : array_like
        Scores x of one or more dimensions, with the classes on `axis`; dtypes as in `cross_entropy`. A logit of -inf
        masks its class, which adds nothing to the entropy. A row that contains NaN or +inf, or only -inf, has entropy
        NaN.
    temperature : float, default 1.0
        What the logits are divided by, in [1e-15, 1e15].
    softcap : float, optional
        As in `cross_entropy`: ``softcap*tanh(x/softcap)`` takes the place of x. Default: none.
    sample_weight : array_like of the rows' shape, optional
        A factor of each row's entropy, finite and >= 0. Default: ones.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides the sum of the entropies by `normalizer`; "none" returns the entropy of each row.
    normalizer : float, optional
        What "mean" divides by, > 0. Default: the sum of `sample_weight`; without it, the number of rows.
    axis : int, default -1
        The axis of `logits` that contains the classes.
    num_threads : int, optional
        As in `cross_entropy`.

    Returns
    -------
    entropy : scalar or ndarray
        In nats, in the dtype of the logits (float64 for integers). Sums over rows are accumulated in float64. With
        ``reduction="none"``, an array of the rows' shape.

    Raises
    ------
    TypeError, ValueError
        As in `cross_entropy`.

    See Also
    --------
    entropy_with_grad : Entropy and gradient in one pass.
    evaluate : Mean entropy, loss and accuracies in one pass.

    Notes
    -----
    Shannon (1948), "A mathematical theory of communication". With ``d = (x - max(x))/temperature`` and ``tail`` as in
    `SoftmaxStats`, of the logits divided by the temperature, it is computed as
    ``log1p(tail) + sum(exp(d)*-d)/(1 + tail)``. Every term is >= 0, so the entropy of a confident row keeps its
    relative accuracy: the error is at most ``(8 + D)*eps`` times the entropy. Here eps is the machine epsilon of the
    dtype, and ``D = sum(p*d**2)/sum(p*-d)`` is a mean of -d, near the gap to the runner-up if the row is confident.
    Logits that are capped add up to ``4*max(abs(x))*eps/temperature``, where x are the capped logits.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> float(fastce.entropy(np.zeros((2, 4))))  # log(4)
    1.3862943611198906
    >>> print(f"{fastce.entropy(np.float32([[50, 0, 0, 0]])):.5e}")  # not 0
    2.95099e-20
    """


@function("entropy", "loss", "array")
def entropy_with_grad(
    logits: Any,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    sample_weight: Any = None,
    reduction: str = "mean",
    normalizer: float | None = None,
    axis: int = -1,
    num_threads: int | None = None,
    upstream: Any = 1.0,
    subnormals: str = "keep",
    out: Array | None = None,
) -> Any:
    """`entropy` and its gradient with respect to the logits, in one pass.

    Parameters
    ----------
    logits : array_like
        As in `entropy`.
    temperature, softcap, sample_weight, reduction, normalizer, axis, num_threads : optional
        As in `entropy`.
    upstream : float or array_like, default 1.0
        Gradient of the final objective with respect to the entropy, a factor of the result: a scalar, or with
        ``reduction="none"`` a scalar or an array of the rows' shape. An entropy bonus has a negative one.
    subnormals : {"keep", "flush"}, default "keep"
        "flush" makes small numbers of the gradient 0; see `cross_entropy_with_grad`.
    out : ndarray, optional
        Buffer for the gradient, as in `cross_entropy_with_grad`. It may be `logits` itself.

    Returns
    -------
    entropy : scalar or ndarray
        As `entropy` returns it.
    grad : ndarray
        Of the shape and memory order of the logits, and their dtype (float64 for integers); `out` if it is given.

    Raises
    ------
    TypeError, ValueError
        As in `cross_entropy_with_grad`.

    Notes
    -----
    With p = softmax(x/temperature) and H the entropy of a row::

        grad = sample_weight * upstream / denominator * -p*(log(p) + H)/temperature

    With d and D as in `entropy`, ``log(p) + H`` is computed as ``d + m``, where m is the mean of -d under p. These two
    terms may cancel. The error of an element, without the factors before p, is at most ``(8 + D + 2*abs(d))*eps`` times
    ``p*(abs(d) + m)``. At the largest logit d is 0 and nothing cancels. The gradient of a masked class is 0. With
    `softcap` it is multiplied by ``1 - tanh(x/softcap)**2``, as in `cross_entropy_with_grad`.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> H, grad = fastce.entropy_with_grad(np.log([[1.0, 3.0]]))
    >>> print(round(float(H), 6), grad.round(6))
    0.562335 [[ 0.20599 -0.20599]]
    """
