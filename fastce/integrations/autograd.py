"""fastce as a primitive of HIPS autograd: `cross_entropy` can be differentiated with respect to the logits.

Used in place of `fastce.cross_entropy` in functions that autograd traces. Derivatives are of first order.
"""

from __future__ import annotations

from typing import Any

from autograd.extend import defvjp, primitive
from autograd.tracer import isbox

from .. import cross_entropy as numpy_cross_entropy
from .. import cross_entropy_grad

__all__ = ["cross_entropy"]


def cross_entropy(logits: Any, targets: Any, **options: Any) -> Any:
    """`fastce.cross_entropy`, differentiable with respect to the logits.

    Parameters
    ----------
    logits, targets : array_like
        As in `fastce.cross_entropy`.
    **options
        Those of `fastce.cross_entropy`, but for `return_stats`.

    Returns
    -------
    loss : scalar or ndarray
        As `fastce.cross_entropy` returns it.

    Raises
    ------
    TypeError, ValueError, IndexError
        As in `fastce.cross_entropy`; `return_stats`; autograd differentiates with respect to something that is not the
        logits, or a second time.

    Notes
    -----
    The vector-Jacobian product is `fastce.cross_entropy_grad`, with the upstream that autograd hands over (autograd's
    tutorial, "Extend Autograd by defining your own primitives").

    Examples
    --------
    >>> import autograd, autograd.numpy as np
    >>> from fastce.integrations.autograd import cross_entropy
    >>> x, labels = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 1])
    >>> loss = lambda w: cross_entropy(np.dot(x, w), labels)
    >>> autograd.grad(loss)(np.zeros((2, 2)))
    array([[-0.25,  0.25],
           [ 0.25, -0.25]])
    """
    if "return_stats" in options:
        raise TypeError("return_stats is not an option here: the loss alone can be differentiated")
    for name, value in [("targets", targets), *options.items()]:
        if isbox(value):
            raise TypeError(f"{name} is differentiated by autograd, but the gradient is that of the logits alone")
    return _cross_entropy(logits, targets, **options)


@primitive
def _cross_entropy(logits: Any, targets: Any, **options: Any) -> Any:
    return numpy_cross_entropy(logits, targets, **options)


def _vjp(loss: Any, logits: Any, targets: Any, **options: Any) -> Any:
    if isbox(logits):  # traced once more: the result would pass for a constant
        raise TypeError("cross_entropy is differentiated twice by autograd, but has first derivatives only")
    return lambda upstream: cross_entropy_grad(logits, targets, **options, upstream=upstream)


defvjp(_cross_entropy, _vjp, argnums=(0,))
