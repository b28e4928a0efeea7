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

__all__ = [
    "CrossEntropyLoss",
    "SoftmaxStats",
    "cross_entropy",
    "cross_entropy_grad",
    "cross_entropy_with_grad",
    "reference",
    "show_config",
]
