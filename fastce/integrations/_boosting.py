"""Gradient and diagonal hessian of softmax cross-entropy, as gradient boosting libraries want them: used by lightgbm.py
and xgboost.py, which have the libraries' signatures. It needs no other library than NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import cross_entropy, cross_entropy_grad


def grad_and_hess(scores: Any, labels: Any, sample_weight: Any, hess_factor: float) -> Any:
    """``weight*(p - onehot(label))`` and ``hess_factor*weight*p*(1 - p)``, in shape and memory order those of `scores`.

    Where p is near 1, neither ``p - 1`` nor ``1 - p`` is formed by subtraction: both come from tail/(1 + tail). Labels
    may be floats that hold integers.
    """
    if scores.ndim != 2:
        raise ValueError(f"scores has shape {scores.shape}, expected (rows, classes): is num_class set?")
    with np.errstate(invalid="ignore"):
        index = np.asarray(labels).astype(np.int64)
    if not np.array_equal(index, labels):
        raise ValueError("labels are not integers: this objective is for class indices")
    with np.errstate(all="ignore"):  # scores that are infinite give NaN, without a warning
        return _computed(scores, index, sample_weight, hess_factor)


def _computed(scores: Any, index: Any, sample_weight: Any, hess_factor: float) -> Any:
    _, stats = cross_entropy(scores, index, ignore_index=None, reduction="sum", return_stats=True)
    grad = cross_entropy_grad(scores, index, ignore_index=None, reduction="sum", stats=stats)
    # The gradient is p, but at the label it is p - 1. Where another class has p > 1/2, 1 - p would cancel.
    hess = grad - grad * grad
    rows = np.arange(len(index))
    share = 1 / (1 + stats.tail)
    x_label = scores[rows, index]
    hess[rows, index] = -grad[rows, index] * (np.exp(x_label - stats.row_max) * share)
    wrong = np.flatnonzero((stats.tail < 1) & (x_label < stats.row_max))
    hess[wrong, grad[wrong].argmax(axis=1)] = stats.tail[wrong] * share[wrong] ** 2
    hess *= hess_factor
    if sample_weight is not None and np.size(sample_weight):
        weight = np.asarray(sample_weight, dtype=scores.dtype)[:, None]
        grad *= weight
        hess *= weight
    return grad, hess
