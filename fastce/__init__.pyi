# Types of the public names, more precise than where they are defined: what a call returns depends on `reduction`,
# `return_stats` and the dtype of the logits. The other options are keys of TypedDicts, each in one place; their
# defaults are in the docstrings. tests/calls/test_types.py compares names and defaults with what is there at run time.
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, TypedDict, TypeVar, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import reference as reference

# fmt: off
__all__ = [
    "BlockStats", "CrossEntropyLoss", "EvaluatedRows", "Evaluation", "LinearCrossEntropyLoss", "LinearGrads",
    "SoftmaxStats", "binary_cross_entropy", "binary_cross_entropy_with_grad", "block_stats", "cross_entropy",
    "cross_entropy_grad", "cross_entropy_grad_hess", "cross_entropy_hvp", "cross_entropy_with_grad", "entropy",
    "entropy_with_grad", "evaluate", "evaluate_linear", "grad_from_stats", "kl_divergence", "kl_divergence_with_grad",
    "linear_cross_entropy", "linear_cross_entropy_with_grad", "log_softmax", "log_softmax_grad", "logsumexp",
    "loss_from_stats", "merge_stats", "one_hot", "predict", "reference", "show_config", "softmax", "softmax_grad",
]
__version__: Final[str]

_F = TypeVar("_F", np.float32, np.float64)
_Out = TypeVar("_Out", bound=NDArray[Any])
_Buffer = NDArray[_F] | None
_Floating = np.floating[Any]  # float32 or float64, where the type of the logits does not tell
_Number = float | np.floating[Any] | np.integer[Any]
_Scalar = Literal["mean", "sum"]
_Rows = Literal["none"]
_No = Literal[False]
_Subnormals = Literal["keep", "flush"]

class _Call(TypedDict, total=False):
    axis: int
    num_threads: int | None

class _Softmax(_Call, total=False):
    temperature: float
    softcap: float | None

class _SeveralAxes(TypedDict, total=False):
    temperature: float
    axis: int | tuple[int, ...] | None
    num_threads: int | None

class _Capped(_SeveralAxes, total=False):
    softcap: float | None

class _Probabilities(_SeveralAxes, total=False):
    subnormals: _Subnormals

class _CappedProbabilities(_Capped, total=False):
    subnormals: _Subnormals

class _Loss(_Call, total=False):
    weight: ArrayLike | None
    sample_weight: ArrayLike | None
    normalizer: float | None

class _OfLabels(TypedDict, total=False):
    weight: ArrayLike | None
    sample_weight: ArrayLike | None
    normalizer: float | None
    ignore_index: int | None
    label_smoothing: float
    z_loss: float
    temperature: float
    softcap: float | None
    num_threads: int | None

class _CrossEntropy(_OfLabels, total=False):
    axis: int

class _Linear(_OfLabels, total=False):
    linear_bias: ArrayLike | None
    chunk_bytes: int | None

class _AnyLinear(_Linear, total=False):
    reduction: _Scalar | _Rows

class _EvaluateLinear(TypedDict, total=False):
    linear_bias: ArrayLike | None
    top_k: int | Iterable[int]
    temperature: float
    softcap: float | None
    ignore_index: int | None
    num_threads: int | None
    chunk_bytes: int | None

class _AnyReduction(_CrossEntropy, total=False):
    reduction: _Scalar | _Rows

class _TwoTerm(_Loss, total=False):
    activation: Literal["sigmoid", "softmax"]
    pos_weight: ArrayLike | None

class _Divergence(_Softmax, total=False):
    targets: Literal["logits", "probabilities"]
    sample_weight: ArrayLike | None
    normalizer: float | None

class _Entropy(_Softmax, total=False):
    sample_weight: ArrayLike | None
    normalizer: float | None

class _EntropyGrad(_Entropy, total=False):
    subnormals: _Subnormals

class _Evaluate(_Softmax, total=False):
    top_k: int | Iterable[int]
    ignore_index: int | None

class _CrossEntropyGrad(_CrossEntropy, total=False):
    subnormals: _Subnormals

class _AnyGrad(_AnyReduction, total=False):
    subnormals: _Subnormals

class _BinaryGrad(_TwoTerm, total=False):
    subnormals: _Subnormals

class _Block(_Call, total=False):
    weight: ArrayLike | None
    ignore_index: int | None
    label_smoothing: float
    temperature: float
    softcap: float | None

class SoftmaxStats(NamedTuple):
    row_max: NDArray[Any]
    tail: NDArray[Any]

class BlockStats(NamedTuple):
    row_max: NDArray[np.float64]
    tail: NDArray[np.float64]
    mass: NDArray[np.float64]
    linear: NDArray[np.float64]

# Where a result is a scalar or an array and no type tells which, it is the commoner of the two or Any. A union of both
# would refuse logsumexp(x)[:, None]. Any alone, as in NumPy's reductions, would refuse nothing.
@overload
def cross_entropy(logits: NDArray[_F], targets: ArrayLike, *, reduction: _Scalar = "mean", return_stats: _No = False,
                  **options: Unpack[_CrossEntropy]) -> _F: ...
@overload
def cross_entropy(logits: NDArray[_F], targets: ArrayLike, *, reduction: _Rows, return_stats: _No = False,
                  **options: Unpack[_CrossEntropy]) -> NDArray[_F]: ...
@overload
def cross_entropy(logits: NDArray[_F], targets: ArrayLike, *, reduction: _Scalar = "mean", return_stats: Literal[True],
                  **options: Unpack[_CrossEntropy]) -> tuple[_F, SoftmaxStats]: ...
@overload
def cross_entropy(logits: NDArray[_F], targets: ArrayLike, *, reduction: _Rows, return_stats: Literal[True],
                  **options: Unpack[_CrossEntropy]) -> tuple[NDArray[_F], SoftmaxStats]: ...
@overload
def cross_entropy(logits: ArrayLike, targets: ArrayLike, *, reduction: _Scalar = "mean", return_stats: _No = False,
                  **options: Unpack[_CrossEntropy]) -> _Floating: ...
@overload
def cross_entropy(logits: ArrayLike, targets: ArrayLike, *, reduction: _Rows, return_stats: _No = False,
                  **options: Unpack[_CrossEntropy]) -> NDArray[_Floating]: ...
@overload
def cross_entropy(logits: ArrayLike, targets: ArrayLike, *, reduction: _Scalar = "mean", return_stats: Literal[True],
                  **options: Unpack[_CrossEntropy]) -> tuple[_Floating, SoftmaxStats]: ...
@overload
def cross_entropy(logits: ArrayLike, targets: ArrayLike, *, reduction: _Rows, return_stats: Literal[True],
                  **options: Unpack[_CrossEntropy]) -> tuple[NDArray[_Floating], SoftmaxStats]: ...
@overload  # `return_stats` is a variable
def cross_entropy(logits: ArrayLike, targets: ArrayLike, *, return_stats: bool,
                  **options: Unpack[_AnyReduction]) -> Any: ...
@overload
def cross_entropy_with_grad(logits: NDArray[_F], targets: ArrayLike, *, reduction: _Scalar = "mean",
                            upstream: _Number = 1.0, out: _Buffer[_F] = None, return_stats: _No = False,
                            **options: Unpack[_CrossEntropyGrad]) -> tuple[_F, NDArray[_F]]: ...
@overload
def cross_entropy_with_grad(logits: NDArray[_F], targets: ArrayLike, *, reduction: _Rows, upstream: ArrayLike = 1.0,
                            out: _Buffer[_F] = None, return_stats: _No = False,
                            **options: Unpack[_CrossEntropyGrad]) -> tuple[NDArray[_F], NDArray[_F]]: ...
@overload
def cross_entropy_with_grad(logits: ArrayLike, targets: ArrayLike, *, reduction: _Scalar = "mean",
                            upstream: _Number = 1.0, out: _Buffer[Any] = None, return_stats: _No = False,
                            **options: Unpack[_CrossEntropyGrad]) -> tuple[_Floating, NDArray[_Floating]]: ...
@overload
def cross_entropy_with_grad(logits: ArrayLike, targets: ArrayLike, *, reduction: _Rows, upstream: ArrayLike = 1.0,
                            out: _Buffer[Any] = None, return_stats: _No = False,
                            **options: Unpack[_CrossEntropyGrad]) -> tuple[NDArray[_Floating], NDArray[_Floating]]: ...
@overload
def cross_entropy_with_grad(logits: NDArray[_F], targets: ArrayLike, *, reduction: _Scalar = "mean",
                            upstream: _Number = 1.0, out: _Buffer[_F] = None, return_stats: Literal[True],
                            **options: Unpack[_CrossEntropyGrad]) -> tuple[_F, NDArray[_F], SoftmaxStats]: ...
@overload
def cross_entropy_with_grad(logits: NDArray[_F], targets: ArrayLike, *, reduction: _Rows, upstream: ArrayLike = 1.0,
                            out: _Buffer[_F] = None, return_stats: Literal[True],
                            **options: Unpack[_CrossEntropyGrad]) -> tuple[NDArray[_F], NDArray[_F], SoftmaxStats]: ...
@overload
def cross_entropy_with_grad(logits: ArrayLike, targets: ArrayLike, *, reduction: _Scalar = "mean",
                            upstream: _Number = 1.0, out: _Buffer[Any] = None, return_stats: Literal[True],
                            **options: Unpack[_CrossEntropyGrad]
                            ) -> tuple[_Floating, NDArray[_Floating], SoftmaxStats]: ...
@overload
def cross_entropy_with_grad(logits: ArrayLike, targets: ArrayLike, *, reduction: _Rows, upstream: ArrayLike = 1.0,
                            out: _Buffer[Any] = None, return_stats: Literal[True],
                            **options: Unpack[_CrossEntropyGrad]
                            ) -> tuple[NDArray[_Floating], NDArray[_Floating], SoftmaxStats]: ...
@overload
def cross_entropy_grad(logits: NDArray[_F], targets: ArrayLike, *, upstream: ArrayLike = 1.0, out: _Buffer[_F] = None,
                       stats: SoftmaxStats | None = None, **options: Unpack[_AnyGrad]) -> NDArray[_F]: ...
@overload
def cross_entropy_grad(logits: ArrayLike, targets: ArrayLike, *, upstream: ArrayLike = 1.0, out: _Buffer[Any] = None,
                       stats: SoftmaxStats | None = None, **options: Unpack[_AnyGrad]) -> NDArray[_Floating]: ...

@overload
def cross_entropy_grad_hess(logits: NDArray[_F], targets: ArrayLike, *, upstream: ArrayLike = 1.0,
                            out: tuple[NDArray[_F], NDArray[_F]] | None = None,
                            **options: Unpack[_AnyGrad]) -> tuple[NDArray[_F], NDArray[_F]]: ...
@overload
def cross_entropy_grad_hess(logits: ArrayLike, targets: ArrayLike, *, upstream: ArrayLike = 1.0,
                            out: tuple[NDArray[Any], NDArray[Any]] | None = None,
                            **options: Unpack[_AnyGrad]) -> tuple[NDArray[_Floating], NDArray[_Floating]]: ...
@overload
def cross_entropy_hvp(logits: NDArray[_F], targets: ArrayLike, vectors: ArrayLike, *, upstream: ArrayLike = 1.0,
                      out: _Buffer[_F] = None, **options: Unpack[_AnyGrad]) -> NDArray[_F]: ...
@overload
def cross_entropy_hvp(logits: ArrayLike, targets: ArrayLike, vectors: ArrayLike, *, upstream: ArrayLike = 1.0,
                      out: _Buffer[Any] = None, **options: Unpack[_AnyGrad]) -> NDArray[_Floating]: ...

class CrossEntropyLoss:
    def __init__(self, *, subnormals: _Subnormals = "keep", reuse_grad: bool = False,
                 **options: Unpack[_AnyReduction]) -> None: ...
    @overload
    def __call__(self, logits: NDArray[_F], targets: ArrayLike, *, reduction: _Scalar,
                 **options: Unpack[_CrossEntropy]) -> _F: ...
    @overload
    def __call__(self, logits: NDArray[_F], targets: ArrayLike, *, reduction: _Rows,
                 **options: Unpack[_CrossEntropy]) -> NDArray[_F]: ...
    @overload
    def __call__(self, logits: NDArray[_F], targets: ArrayLike, **options: Unpack[_AnyReduction]) -> _F | Any: ...
    @overload
    def __call__(self, logits: ArrayLike, targets: ArrayLike, *, reduction: _Scalar,
                 **options: Unpack[_CrossEntropy]) -> _Floating: ...
    @overload
    def __call__(self, logits: ArrayLike, targets: ArrayLike, *, reduction: _Rows,
                 **options: Unpack[_CrossEntropy]) -> NDArray[_Floating]: ...
    @overload
    def __call__(self, logits: ArrayLike, targets: ArrayLike, **options: Unpack[_AnyReduction]) -> _Floating | Any: ...
    def backward(self, upstream: ArrayLike = 1.0, *, out: NDArray[Any] | None = None) -> NDArray[_Floating]: ...

@overload
def binary_cross_entropy(logits: NDArray[_F], targets: ArrayLike, *, reduction: _Scalar = "mean",
                         **options: Unpack[_TwoTerm]) -> _F: ...
@overload
def binary_cross_entropy(logits: NDArray[_F], targets: ArrayLike, *, reduction: _Rows,
                         **options: Unpack[_TwoTerm]) -> NDArray[_F]: ...
@overload
def binary_cross_entropy(logits: ArrayLike, targets: ArrayLike, *, reduction: _Scalar = "mean",
                         **options: Unpack[_TwoTerm]) -> _Floating: ...
@overload
def binary_cross_entropy(logits: ArrayLike, targets: ArrayLike, *, reduction: _Rows,
                         **options: Unpack[_TwoTerm]) -> NDArray[_Floating]: ...
@overload
def binary_cross_entropy_with_grad(logits: NDArray[_F], targets: ArrayLike, *, reduction: _Scalar = "mean",
                                   upstream: _Number = 1.0, out: _Buffer[_F] = None,
                                   **options: Unpack[_BinaryGrad]) -> tuple[_F, NDArray[_F]]: ...
@overload
def binary_cross_entropy_with_grad(logits: NDArray[_F], targets: ArrayLike, *, reduction: _Rows,
                                   upstream: ArrayLike = 1.0, out: _Buffer[_F] = None,
                                   **options: Unpack[_BinaryGrad]) -> tuple[NDArray[_F], NDArray[_F]]: ...
@overload
def binary_cross_entropy_with_grad(logits: ArrayLike, targets: ArrayLike, *, reduction: _Scalar = "mean",
                                   upstream: _Number = 1.0, out: _Buffer[Any] = None,
                                   **options: Unpack[_BinaryGrad]) -> tuple[_Floating, NDArray[_Floating]]: ...
@overload
def binary_cross_entropy_with_grad(logits: ArrayLike, targets: ArrayLike, *, reduction: _Rows,
                                   upstream: ArrayLike = 1.0, out: _Buffer[Any] = None,
                                   **options: Unpack[_BinaryGrad]) -> tuple[NDArray[_Floating], NDArray[_Floating]]: ...
@overload
def kl_divergence(logits: NDArray[_F], target_logits: ArrayLike, *, reduction: _Scalar = "mean",
                  **options: Unpack[_Divergence]) -> _F: ...
@overload
def kl_divergence(logits: NDArray[_F], target_logits: ArrayLike, *, reduction: _Rows,
                  **options: Unpack[_Divergence]) -> NDArray[_F]: ...
@overload
def kl_divergence(logits: ArrayLike, target_logits: ArrayLike, *, reduction: _Scalar = "mean",
                  **options: Unpack[_Divergence]) -> _Floating: ...
@overload
def kl_divergence(logits: ArrayLike, target_logits: ArrayLike, *, reduction: _Rows,
                  **options: Unpack[_Divergence]) -> NDArray[_Floating]: ...
@overload
def kl_divergence_with_grad(logits: NDArray[_F], target_logits: ArrayLike, *, reduction: _Scalar = "mean",
                            upstream: _Number = 1.0, out: _Buffer[_F] = None,
                            **options: Unpack[_Divergence]) -> tuple[_F, NDArray[_F]]: ...
@overload
def kl_divergence_with_grad(logits: NDArray[_F], target_logits: ArrayLike, *, reduction: _Rows,
                            upstream: ArrayLike = 1.0, out: _Buffer[_F] = None,
                            **options: Unpack[_Divergence]) -> tuple[NDArray[_F], NDArray[_F]]: ...
@overload
def kl_divergence_with_grad(logits: ArrayLike, target_logits: ArrayLike, *, reduction: _Scalar = "mean",
                            upstream: _Number = 1.0, out: _Buffer[Any] = None,
                            **options: Unpack[_Divergence]) -> tuple[_Floating, NDArray[_Floating]]: ...
@overload
def kl_divergence_with_grad(logits: ArrayLike, target_logits: ArrayLike, *, reduction: _Rows,
                            upstream: ArrayLike = 1.0, out: _Buffer[Any] = None,
                            **options: Unpack[_Divergence]) -> tuple[NDArray[_Floating], NDArray[_Floating]]: ...
@overload
def softmax(x: NDArray[_F], *, out: _Buffer[_F] = None, **options: Unpack[_CappedProbabilities]) -> NDArray[_F]: ...
@overload
def softmax(x: ArrayLike, *, out: _Buffer[Any] = None,
            **options: Unpack[_CappedProbabilities]) -> NDArray[_Floating]: ...
@overload
def log_softmax(x: NDArray[_F], *, out: _Buffer[_F] = None, **options: Unpack[_Capped]) -> NDArray[_F]: ...
@overload
def log_softmax(x: ArrayLike, *, out: _Buffer[Any] = None, **options: Unpack[_Capped]) -> NDArray[_Floating]: ...
@overload
def softmax_grad(upstream: ArrayLike, y: NDArray[_F], *, out: _Buffer[_F] = None,
                 **options: Unpack[_Probabilities]) -> NDArray[_F]: ...
@overload
def softmax_grad(upstream: ArrayLike, y: ArrayLike, *, out: _Buffer[Any] = None,
                 **options: Unpack[_Probabilities]) -> NDArray[_Floating]: ...
@overload
def log_softmax_grad(upstream: ArrayLike, y: NDArray[_F], *, out: _Buffer[_F] = None,
                     **options: Unpack[_Probabilities]) -> NDArray[_F]: ...
@overload
def log_softmax_grad(upstream: ArrayLike, y: ArrayLike, *, out: _Buffer[Any] = None,
                     **options: Unpack[_Probabilities]) -> NDArray[_Floating]: ...
@overload
def logsumexp(x: ArrayLike, *, out: _Out, keepdims: bool = False, **options: Unpack[_Capped]) -> _Out: ...
@overload
def logsumexp(x: NDArray[_F], *, out: None = None, keepdims: Literal[True],
              **options: Unpack[_Capped]) -> NDArray[_F]: ...
@overload
def logsumexp(x: ArrayLike, *, out: None = None, keepdims: Literal[True],
              **options: Unpack[_Capped]) -> NDArray[_Floating]: ...
@overload
def logsumexp(x: NDArray[_F], *, out: None = None, keepdims: bool = False,
              **options: Unpack[_Capped]) -> NDArray[_F] | Any: ...
@overload
def logsumexp(x: ArrayLike, *, out: None = None, keepdims: bool = False,
              **options: Unpack[_Capped]) -> NDArray[_Floating] | Any: ...
@overload
def entropy(logits: NDArray[_F], *, reduction: _Scalar = "mean", **options: Unpack[_Entropy]) -> _F: ...
@overload
def entropy(logits: NDArray[_F], *, reduction: _Rows, **options: Unpack[_Entropy]) -> NDArray[_F]: ...
@overload
def entropy(logits: ArrayLike, *, reduction: _Scalar = "mean", **options: Unpack[_Entropy]) -> _Floating: ...
@overload
def entropy(logits: ArrayLike, *, reduction: _Rows, **options: Unpack[_Entropy]) -> NDArray[_Floating]: ...
@overload
def entropy_with_grad(logits: NDArray[_F], *, reduction: _Scalar = "mean", upstream: _Number = 1.0,
                      out: _Buffer[_F] = None, **options: Unpack[_EntropyGrad]) -> tuple[_F, NDArray[_F]]: ...
@overload
def entropy_with_grad(logits: NDArray[_F], *, reduction: _Rows, upstream: ArrayLike = 1.0, out: _Buffer[_F] = None,
                      **options: Unpack[_EntropyGrad]) -> tuple[NDArray[_F], NDArray[_F]]: ...
@overload
def entropy_with_grad(logits: ArrayLike, *, reduction: _Scalar = "mean", upstream: _Number = 1.0,
                      out: _Buffer[Any] = None,
                      **options: Unpack[_EntropyGrad]) -> tuple[_Floating, NDArray[_Floating]]: ...
@overload
def entropy_with_grad(logits: ArrayLike, *, reduction: _Rows, upstream: ArrayLike = 1.0, out: _Buffer[Any] = None,
                      **options: Unpack[_EntropyGrad]) -> tuple[NDArray[_Floating], NDArray[_Floating]]: ...
@overload
def evaluate(logits: ArrayLike, labels: ArrayLike, *, return_rows: _No = False,
             **options: Unpack[_Evaluate]) -> Evaluation: ...
@overload
def evaluate(logits: ArrayLike, labels: ArrayLike, *, return_rows: Literal[True],
             **options: Unpack[_Evaluate]) -> tuple[Evaluation, EvaluatedRows]: ...
@overload  # `return_rows` is a variable
def evaluate(logits: ArrayLike, labels: ArrayLike, *, return_rows: bool, **options: Unpack[_Evaluate]) -> Any: ...
@overload
def linear_cross_entropy(hidden: NDArray[_F], linear_weight: ArrayLike, targets: ArrayLike, *,
                         reduction: _Scalar = "mean", return_stats: _No = False, **options: Unpack[_Linear]) -> _F: ...
@overload
def linear_cross_entropy(hidden: NDArray[_F], linear_weight: ArrayLike, targets: ArrayLike, *, reduction: _Rows,
                         return_stats: _No = False, **options: Unpack[_Linear]) -> NDArray[_F]: ...
@overload
def linear_cross_entropy(hidden: ArrayLike, linear_weight: ArrayLike, targets: ArrayLike, *,
                         reduction: _Scalar = "mean", return_stats: _No = False,
                         **options: Unpack[_Linear]) -> _Floating: ...
@overload
def linear_cross_entropy(hidden: ArrayLike, linear_weight: ArrayLike, targets: ArrayLike, *, reduction: _Rows,
                         return_stats: _No = False, **options: Unpack[_Linear]) -> NDArray[_Floating]: ...
@overload
def linear_cross_entropy(hidden: NDArray[_F], linear_weight: ArrayLike, targets: ArrayLike, *,
                         reduction: _Scalar = "mean", return_stats: Literal[True],
                         **options: Unpack[_Linear]) -> tuple[_F, SoftmaxStats]: ...
@overload
def linear_cross_entropy(hidden: NDArray[_F], linear_weight: ArrayLike, targets: ArrayLike, *, reduction: _Rows,
                         return_stats: Literal[True],
                         **options: Unpack[_Linear]) -> tuple[NDArray[_F], SoftmaxStats]: ...
@overload
def linear_cross_entropy(hidden: ArrayLike, linear_weight: ArrayLike, targets: ArrayLike, *,
                         reduction: _Scalar = "mean", return_stats: Literal[True],
                         **options: Unpack[_Linear]) -> tuple[_Floating, SoftmaxStats]: ...
@overload
def linear_cross_entropy(hidden: ArrayLike, linear_weight: ArrayLike, targets: ArrayLike, *, reduction: _Rows,
                         return_stats: Literal[True],
                         **options: Unpack[_Linear]) -> tuple[NDArray[_Floating], SoftmaxStats]: ...
@overload  # `return_stats` is a variable
def linear_cross_entropy(hidden: ArrayLike, linear_weight: ArrayLike, targets: ArrayLike, *, return_stats: bool,
                         **options: Unpack[_AnyLinear]) -> Any: ...
@overload
def linear_cross_entropy_with_grad(hidden: NDArray[_F], linear_weight: ArrayLike, targets: ArrayLike, *,
                                   reduction: _Scalar = "mean", upstream: _Number = 1.0, out: LinearGrads | None = None,
                                   accumulate: bool = False, return_stats: _No = False,
                                   **options: Unpack[_Linear]) -> tuple[_F, LinearGrads]: ...
@overload
def linear_cross_entropy_with_grad(hidden: NDArray[_F], linear_weight: ArrayLike, targets: ArrayLike, *,
                                   reduction: _Rows, upstream: ArrayLike = 1.0, out: LinearGrads | None = None,
                                   accumulate: bool = False, return_stats: _No = False,
                                   **options: Unpack[_Linear]) -> tuple[NDArray[_F], LinearGrads]: ...
@overload
def linear_cross_entropy_with_grad(hidden: ArrayLike, linear_weight: ArrayLike, targets: ArrayLike, *,
                                   reduction: _Scalar = "mean", upstream: _Number = 1.0, out: LinearGrads | None = None,
                                   accumulate: bool = False, return_stats: _No = False,
                                   **options: Unpack[_Linear]) -> tuple[_Floating, LinearGrads]: ...
@overload
def linear_cross_entropy_with_grad(hidden: ArrayLike, linear_weight: ArrayLike, targets: ArrayLike, *, reduction: _Rows,
                                   upstream: ArrayLike = 1.0, out: LinearGrads | None = None, accumulate: bool = False,
                                   return_stats: _No = False,
                                   **options: Unpack[_Linear]) -> tuple[NDArray[_Floating], LinearGrads]: ...
@overload
def linear_cross_entropy_with_grad(hidden: NDArray[_F], linear_weight: ArrayLike, targets: ArrayLike, *,
                                   reduction: _Scalar = "mean", upstream: _Number = 1.0, out: LinearGrads | None = None,
                                   accumulate: bool = False, return_stats: Literal[True],
                                   **options: Unpack[_Linear]) -> tuple[_F, LinearGrads, SoftmaxStats]: ...
@overload
def linear_cross_entropy_with_grad(hidden: NDArray[_F], linear_weight: ArrayLike, targets: ArrayLike, *,
                                   reduction: _Rows, upstream: ArrayLike = 1.0, out: LinearGrads | None = None,
                                   accumulate: bool = False, return_stats: Literal[True],
                                   **options: Unpack[_Linear]) -> tuple[NDArray[_F], LinearGrads, SoftmaxStats]: ...
@overload
def linear_cross_entropy_with_grad(hidden: ArrayLike, linear_weight: ArrayLike, targets: ArrayLike, *,
                                   reduction: _Scalar = "mean", upstream: _Number = 1.0, out: LinearGrads | None = None,
                                   accumulate: bool = False, return_stats: Literal[True],
                                   **options: Unpack[_Linear]) -> tuple[_Floating, LinearGrads, SoftmaxStats]: ...
@overload
def linear_cross_entropy_with_grad(hidden: ArrayLike, linear_weight: ArrayLike, targets: ArrayLike, *, reduction: _Rows,
                                   upstream: ArrayLike = 1.0, out: LinearGrads | None = None, accumulate: bool = False,
                                   return_stats: Literal[True],
                                   **options: Unpack[_Linear],
                                   ) -> tuple[NDArray[_Floating], LinearGrads, SoftmaxStats]: ...
@overload  # `return_stats` is a variable
def linear_cross_entropy_with_grad(hidden: ArrayLike, linear_weight: ArrayLike, targets: ArrayLike, *,
                                   upstream: ArrayLike = 1.0, out: LinearGrads | None = None, accumulate: bool = False,
                                   return_stats: bool, **options: Unpack[_AnyLinear]) -> Any: ...
@overload
def evaluate_linear(hidden: ArrayLike, linear_weight: ArrayLike, labels: ArrayLike, *, return_rows: _No = False,
                    **options: Unpack[_EvaluateLinear]) -> Evaluation: ...
@overload
def evaluate_linear(hidden: ArrayLike, linear_weight: ArrayLike, labels: ArrayLike, *, return_rows: Literal[True],
                    **options: Unpack[_EvaluateLinear]) -> tuple[Evaluation, EvaluatedRows]: ...
@overload  # `return_rows` is a variable
def evaluate_linear(hidden: ArrayLike, linear_weight: ArrayLike, labels: ArrayLike, *, return_rows: bool,
                    **options: Unpack[_EvaluateLinear]) -> Any: ...
def block_stats(logits: ArrayLike, targets: ArrayLike, *, class_offset: int, num_classes: int,
                **options: Unpack[_Block]) -> BlockStats: ...
def merge_stats(a: BlockStats, b: BlockStats, *, temperature: float = 1.0) -> BlockStats: ...
def loss_from_stats(stats: BlockStats, targets: ArrayLike, *, ignore_index: int | None = -100, z_loss: float = 0.0,
                    temperature: float = 1.0) -> NDArray[np.float64] | Any: ...
@overload
def grad_from_stats(logits: NDArray[_F], targets: ArrayLike, stats: BlockStats, *, class_offset: int, num_classes: int,
                    z_loss: float = 0.0, upstream: ArrayLike = 1.0, subnormals: _Subnormals = "keep",
                    **options: Unpack[_Block]) -> NDArray[_F]: ...
@overload
def grad_from_stats(logits: ArrayLike, targets: ArrayLike, stats: BlockStats, *, class_offset: int, num_classes: int,
                    z_loss: float = 0.0, upstream: ArrayLike = 1.0, subnormals: _Subnormals = "keep",
                    **options: Unpack[_Block]) -> NDArray[_Floating]: ...
def predict(logits: ArrayLike, *, axis: int = -1, num_threads: int | None = None) -> NDArray[np.intp] | Any: ...
def one_hot(labels: ArrayLike, num_classes: int, *, dtype: Any = ..., axis: int = -1) -> NDArray[Any]: ...
# fmt: on

class LinearGrads(NamedTuple):
    hidden: NDArray[Any]
    weight: NDArray[Any]
    bias: NDArray[Any] | None

class LinearCrossEntropyLoss:
    def __init__(
        self, *, chunk_bytes: int | None = None, reduction: _Scalar | _Rows = "mean", **options: Unpack[_OfLabels]
    ) -> None: ...
    @overload
    def __call__(
        self,
        hidden: NDArray[_F],
        linear_weight: ArrayLike,
        targets: ArrayLike,
        *,
        reduction: _Scalar,
        **options: Unpack[_Linear],
    ) -> _F: ...
    @overload
    def __call__(
        self,
        hidden: NDArray[_F],
        linear_weight: ArrayLike,
        targets: ArrayLike,
        *,
        reduction: _Rows,
        **options: Unpack[_Linear],
    ) -> NDArray[_F]: ...
    @overload
    def __call__(
        self, hidden: NDArray[_F], linear_weight: ArrayLike, targets: ArrayLike, **options: Unpack[_AnyLinear]
    ) -> _F | Any: ...
    @overload
    def __call__(
        self, hidden: ArrayLike, linear_weight: ArrayLike, targets: ArrayLike, **options: Unpack[_AnyLinear]
    ) -> _Floating | Any: ...
    def backward(
        self, upstream: ArrayLike = 1.0, *, out: LinearGrads | None = None, accumulate: bool = False
    ) -> LinearGrads: ...

class EvaluatedRows(NamedTuple):
    log_probability: NDArray[Any]
    rank: NDArray[np.intp]
    predicted: NDArray[np.intp]
    entropy: NDArray[Any]
    confidence: NDArray[Any]

@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    rows: int
    sums: Mapping[str, float]
    hits: Mapping[int, int]
    right: int
    bins: NDArray[np.float64]
    @property
    def loss(self) -> float: ...
    @property
    def perplexity(self) -> float: ...
    @property
    def accuracy(self) -> float: ...
    @property
    def top_k(self) -> dict[int, float]: ...
    @property
    def entropy(self) -> float: ...
    @property
    def confidence(self) -> float: ...
    @property
    def calibration_error(self) -> float: ...
    def __add__(self, other: Evaluation) -> Evaluation: ...
    def __radd__(self, other: Literal[0]) -> Evaluation: ...

class _Config(TypedDict):
    version: str
    isa: str
    isa_available: list[str]
    openmp: str | None
    threads: int
    pause: float
    compiler: str
    python: str
    numpy: str

@overload
def show_config(mode: Literal["stdout"] = "stdout") -> None: ...
@overload
def show_config(mode: Literal["dicts"]) -> _Config: ...
