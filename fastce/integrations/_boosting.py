"""Gradient and diagonal hessian of softmax cross-entropy, as gradient boosting libraries want them: used by lightgbm.py
and xgboost.py, which have the libraries' signatures. It needs no other library than NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import cross_entropy_grad_hess


def grad_and_hess(scores: Any, labels: Any, sample_weight: Any, hess_factor: float) -> Any:
    """``weight*(p - onehot(label))`` and ``hess_factor*weight*p*(1 - p)``, in shape and memory order those of `scores`.

    Labels may be floats that hold integers.
    """
    if scores.ndim != 2:
        raise ValueError(f"scores has shape {scores.shape}, expected (rows, classes): is num_class set?")
    with np.errstate(invalid="ignore"):
        index = np.asarray(labels).astype(np.int64)
    if not np.array_equal(index, labels):
        raise ValueError("labels are not integers: this objective is for class indices")
    grad, hess = cross_entropy_grad_hess(
        scores,
        index,
        sample_weight=sample_weight if np.size(sample_weight) and sample_weight is not None else None,
        ignore_index=None,
        reduction="sum",
    )
    with np.errstate(invalid="ignore"):  # of scores that are infinite
        hess *= hess_factor
    return grad, hess
