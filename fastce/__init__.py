"""Softmax cross-entropy for NumPy arrays, forward and backward, at the cost of a memory copy."""

__version__ = "0.1.0"

from . import reference
from ._api import (
    CrossEntropyLoss,
    SoftmaxStats,
    cross_entropy,
    cross_entropy_grad,
    cross_entropy_with_grad,
    show_config,
)
from ._softmax import log_softmax, log_softmax_grad, logsumexp, one_hot, predict, softmax, softmax_grad
from ._two_term import binary_cross_entropy, binary_cross_entropy_with_grad

__all__ = [
    "CrossEntropyLoss",
    "SoftmaxStats",
    "binary_cross_entropy",
    "binary_cross_entropy_with_grad",
    "cross_entropy",
    "cross_entropy_grad",
    "cross_entropy_with_grad",
    "log_softmax",
    "log_softmax_grad",
    "logsumexp",
    "one_hot",
    "predict",
    "reference",
    "show_config",
    "softmax",
    "softmax_grad",
]
