"""The softcap in NumPy, for what is composed of several calls: ``softcap*tanh(x/softcap)`` and its derivative."""

from __future__ import annotations

import numpy as np

from ._softmax import logsumexp
from ._stats import Array


def capped(x: Array, softcap: float) -> Array:
    """The capped logits, in the memory order of x: to the bit as in the kernels, for their differences may be 0."""
    if not x.ndim:
        x = x.reshape(1)
        return capped(x, softcap).reshape(())
    z: Array = logsumexp(x[..., None], softcap=softcap, out=np.empty_like(x))  # that of one class is its logit
    return z


def tanh_and_slope(x: Array, softcap: float) -> tuple[Array, Array]:
    """t = tanh(x/softcap) and 1 - t**2, which does not cancel."""
    with np.errstate(all="ignore"):
        e = np.exp(-2 * np.abs(x / softcap))
        t = np.copysign(-np.expm1(-2 * np.abs(x / softcap)) / (1 + e), x)
        return t, 4 * e / (1 + e) ** 2
