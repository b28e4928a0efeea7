"""Softmax cross-entropy for NumPy arrays, forward and backward in one call, accurate to the last digits."""

from ._config import __version__ as __version__  # before all others: it says what to do where nothing is built
from ._config import show_config

# isort: split
from . import reference
from ._block_stats import block_stats, grad_from_stats, loss_from_stats, merge_stats
from ._cross_entropy import CrossEntropyLoss, cross_entropy, cross_entropy_grad, cross_entropy_with_grad
from ._curvature import cross_entropy_grad_hess, cross_entropy_hvp
from ._divergence import kl_divergence, kl_divergence_with_grad
from ._entropy import entropy, entropy_with_grad
from ._evaluation import EvaluatedRows, Evaluation, evaluate
from ._linear import (
    LinearCrossEntropyLoss,
    LinearGrads,
    evaluate_linear,
    linear_cross_entropy,
    linear_cross_entropy_with_grad,
)
from ._merging import BlockStats
from ._softmax import log_softmax, log_softmax_grad, logsumexp, one_hot, predict, softmax, softmax_grad
from ._stats import SoftmaxStats
from ._two_term import binary_cross_entropy, binary_cross_entropy_with_grad

__all__ = [
    "BlockStats",
    "CrossEntropyLoss",
    "EvaluatedRows",
    "Evaluation",
    "LinearCrossEntropyLoss",
    "LinearGrads",
    "SoftmaxStats",
    "binary_cross_entropy",
    "binary_cross_entropy_with_grad",
    "block_stats",
    "cross_entropy",
    "cross_entropy_grad",
    "cross_entropy_grad_hess",
    "cross_entropy_hvp",
    "cross_entropy_with_grad",
    "entropy",
    "entropy_with_grad",
    "evaluate",
    "evaluate_linear",
    "grad_from_stats",
    "kl_divergence",
    "kl_divergence_with_grad",
    "linear_cross_entropy",
    "linear_cross_entropy_with_grad",
    "log_softmax",
    "log_softmax_grad",
    "logsumexp",
    "loss_from_stats",
    "merge_stats",
    "one_hot",
    "predict",
    "reference",
    "show_config",
    "softmax",
    "softmax_grad",
]
