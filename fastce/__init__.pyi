# Types of the public names, more precise than where they are defined: what a call returns depends on `reduction`,
# `return_stats` and the dtype of the logits. tests/calls/test_types.py compares this with what is there at run time.
from typing import Any, Final, Literal, NamedTuple, TypedDict, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import reference as reference

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
__version__: Final[str]

_F = TypeVar("_F", np.float32, np.float64)
_Floating = np.floating[Any]  # float32 or float64, where the type of the logits does not tell
_Scalar = Literal["mean", "sum"]
_Rows = Literal["none"]

class SoftmaxStats(NamedTuple):
    row_max: NDArray[Any]
    tail: NDArray[Any]

# fmt: off
@overload
def cross_entropy(
    logits: NDArray[_F], targets: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int | None = -100, label_smoothing: float = 0.0,
    z_loss: float = 0.0, reduction: _Scalar = "mean", normalizer: float | None = None, axis: int = -1,
    return_stats: Literal[False] = False, num_threads: int | None = None,
) -> _F: ...
@overload
def cross_entropy(
    logits: NDArray[_F], targets: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int | None = -100, label_smoothing: float = 0.0,
    z_loss: float = 0.0, reduction: _Rows, normalizer: float | None = None, axis: int = -1,
    return_stats: Literal[False] = False, num_threads: int | None = None,
) -> NDArray[_F]: ...
@overload
def cross_entropy(
    logits: NDArray[_F], targets: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int | None = -100, label_smoothing: float = 0.0,
    z_loss: float = 0.0, reduction: _Scalar = "mean", normalizer: float | None = None, axis: int = -1,
    return_stats: Literal[True], num_threads: int | None = None,
) -> tuple[_F, SoftmaxStats]: ...
@overload
def cross_entropy(
    logits: NDArray[_F], targets: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int | None = -100, label_smoothing: float = 0.0,
    z_loss: float = 0.0, reduction: _Rows, normalizer: float | None = None, axis: int = -1,
    return_stats: Literal[True], num_threads: int | None = None,
) -> tuple[NDArray[_F], SoftmaxStats]: ...
@overload
def cross_entropy(
    logits: ArrayLike, targets: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int | None = -100, label_smoothing: float = 0.0,
    z_loss: float = 0.0, reduction: _Scalar = "mean", normalizer: float | None = None, axis: int = -1,
    return_stats: Literal[False] = False, num_threads: int | None = None,
) -> _Floating: ...
@overload
def cross_entropy(
    logits: ArrayLike, targets: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int | None = -100, label_smoothing: float = 0.0,
    z_loss: float = 0.0, reduction: _Rows, normalizer: float | None = None, axis: int = -1,
    return_stats: Literal[False] = False, num_threads: int | None = None,
) -> NDArray[_Floating]: ...
@overload
def cross_entropy(
    logits: ArrayLike, targets: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int | None = -100, label_smoothing: float = 0.0,
    z_loss: float = 0.0, reduction: _Scalar = "mean", normalizer: float | None = None, axis: int = -1,
    return_stats: Literal[True], num_threads: int | None = None,
) -> tuple[_Floating, SoftmaxStats]: ...
@overload
def cross_entropy(
    logits: ArrayLike, targets: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int | None = -100, label_smoothing: float = 0.0,
    z_loss: float = 0.0, reduction: _Rows, normalizer: float | None = None, axis: int = -1,
    return_stats: Literal[True], num_threads: int | None = None,
) -> tuple[NDArray[_Floating], SoftmaxStats]: ...
@overload  # `reduction` and `return_stats` are variables
def cross_entropy(
    logits: ArrayLike, targets: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int | None = -100, label_smoothing: float = 0.0,
    z_loss: float = 0.0, reduction: str = "mean", normalizer: float | None = None, axis: int = -1,
    return_stats: bool = False, num_threads: int | None = None,
) -> Any: ...

@overload
def cross_entropy_with_grad(
    logits: NDArray[_F], targets: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int | None = -100, label_smoothing: float = 0.0,
    z_loss: float = 0.0, reduction: _Scalar = "mean", normalizer: float | None = None, axis: int = -1,
    num_threads: int | None = None, upstream: float = 1.0, out: NDArray[_F] | None = None,
) -> tuple[_F, NDArray[_F]]: ...
@overload
def cross_entropy_with_grad(
    logits: NDArray[_F], targets: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int | None = -100, label_smoothing: float = 0.0,
    z_loss: float = 0.0, reduction: _Rows, normalizer: float | None = None, axis: int = -1,
    num_threads: int | None = None, upstream: ArrayLike = 1.0, out: NDArray[_F] | None = None,
) -> tuple[NDArray[_F], NDArray[_F]]: ...
@overload
def cross_entropy_with_grad(
    logits: ArrayLike, targets: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int | None = -100, label_smoothing: float = 0.0,
    z_loss: float = 0.0, reduction: _Scalar = "mean", normalizer: float | None = None, axis: int = -1,
    num_threads: int | None = None, upstream: float = 1.0, out: NDArray[Any] | None = None,
) -> tuple[_Floating, NDArray[_Floating]]: ...
@overload
def cross_entropy_with_grad(
    logits: ArrayLike, targets: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int | None = -100, label_smoothing: float = 0.0,
    z_loss: float = 0.0, reduction: _Rows, normalizer: float | None = None, axis: int = -1,
    num_threads: int | None = None, upstream: ArrayLike = 1.0, out: NDArray[Any] | None = None,
) -> tuple[NDArray[_Floating], NDArray[_Floating]]: ...
@overload
def cross_entropy_with_grad(
    logits: ArrayLike, targets: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int | None = -100, label_smoothing: float = 0.0,
    z_loss: float = 0.0, reduction: str, normalizer: float | None = None, axis: int = -1,
    num_threads: int | None = None, upstream: ArrayLike = 1.0, out: NDArray[Any] | None = None,
) -> tuple[Any, NDArray[_Floating]]: ...

@overload
def cross_entropy_grad(
    logits: NDArray[_F], targets: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int | None = -100, label_smoothing: float = 0.0,
    z_loss: float = 0.0, reduction: str = "mean", normalizer: float | None = None, axis: int = -1,
    num_threads: int | None = None, upstream: ArrayLike = 1.0, out: NDArray[_F] | None = None,
    stats: SoftmaxStats | None = None,
) -> NDArray[_F]: ...
@overload
def cross_entropy_grad(
    logits: ArrayLike, targets: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int | None = -100, label_smoothing: float = 0.0,
    z_loss: float = 0.0, reduction: str = "mean", normalizer: float | None = None, axis: int = -1,
    num_threads: int | None = None, upstream: ArrayLike = 1.0, out: NDArray[Any] | None = None,
    stats: SoftmaxStats | None = None,
) -> NDArray[_Floating]: ...

class CrossEntropyLoss:
    def __init__(
        self, *, weight: ArrayLike | None = None, sample_weight: ArrayLike | None = None,
        ignore_index: int | None = -100, label_smoothing: float = 0.0, z_loss: float = 0.0, reduction: str = "mean",
        normalizer: float | None = None, axis: int = -1, num_threads: int | None = None,
    ) -> None: ...
    def __call__(
        self, logits: ArrayLike, targets: ArrayLike, *, weight: ArrayLike | None = ...,
        sample_weight: ArrayLike | None = ..., ignore_index: int | None = ..., label_smoothing: float = ...,
        z_loss: float = ..., reduction: str = ..., normalizer: float | None = ..., axis: int = ...,
        num_threads: int | None = ...,
    ) -> Any: ...
    def backward(self, upstream: ArrayLike = 1.0, *, out: NDArray[Any] | None = None) -> NDArray[_Floating]: ...
# fmt: on

class _Config(TypedDict):
    version: str
    isa: str
    isa_available: list[str]
    openmp: str | None
    threads: int
    compiler: str
    python: str
    numpy: str

@overload
def show_config(mode: Literal["stdout"] = "stdout") -> None: ...
@overload
def show_config(mode: Literal["dicts"]) -> _Config: ...

_Activation = Literal["sigmoid", "softmax"]

# fmt: off
@overload
def softmax(
    x: NDArray[_F], *, axis: int = -1, out: NDArray[_F] | None = None, num_threads: int | None = None,
) -> NDArray[_F]: ...
@overload
def softmax(
    x: ArrayLike, *, axis: int = -1, out: NDArray[Any] | None = None, num_threads: int | None = None,
) -> NDArray[_Floating]: ...
@overload
def log_softmax(
    x: NDArray[_F], *, axis: int = -1, out: NDArray[_F] | None = None, num_threads: int | None = None,
) -> NDArray[_F]: ...
@overload
def log_softmax(
    x: ArrayLike, *, axis: int = -1, out: NDArray[Any] | None = None, num_threads: int | None = None,
) -> NDArray[_Floating]: ...
def logsumexp(
    x: ArrayLike, *, axis: int = -1, out: NDArray[Any] | None = None, num_threads: int | None = None,
) -> Any: ...
@overload
def softmax_grad(
    upstream: ArrayLike, y: NDArray[_F], *, axis: int = -1, out: NDArray[_F] | None = None,
    num_threads: int | None = None,
) -> NDArray[_F]: ...
@overload
def softmax_grad(
    upstream: ArrayLike, y: ArrayLike, *, axis: int = -1, out: NDArray[Any] | None = None,
    num_threads: int | None = None,
) -> NDArray[_Floating]: ...
@overload
def log_softmax_grad(
    upstream: ArrayLike, y: NDArray[_F], *, axis: int = -1, out: NDArray[_F] | None = None,
    num_threads: int | None = None,
) -> NDArray[_F]: ...
@overload
def log_softmax_grad(
    upstream: ArrayLike, y: ArrayLike, *, axis: int = -1, out: NDArray[Any] | None = None,
    num_threads: int | None = None,
) -> NDArray[_Floating]: ...
def one_hot(labels: ArrayLike, num_classes: int, *, dtype: Any = ..., axis: int = -1) -> NDArray[Any]: ...
def predict(logits: ArrayLike, *, axis: int = -1) -> Any: ...
@overload
def binary_cross_entropy(
    logits: NDArray[_F], targets: ArrayLike, *, activation: _Activation = "sigmoid",
    pos_weight: ArrayLike | None = None, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    reduction: _Scalar = "mean", normalizer: float | None = None, axis: int = -1, num_threads: int | None = None,
) -> _F: ...
@overload
def binary_cross_entropy(
    logits: NDArray[_F], targets: ArrayLike, *, activation: _Activation = "sigmoid",
    pos_weight: ArrayLike | None = None, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    reduction: _Rows, normalizer: float | None = None, axis: int = -1, num_threads: int | None = None,
) -> NDArray[_F]: ...
@overload
def binary_cross_entropy(
    logits: ArrayLike, targets: ArrayLike, *, activation: _Activation = "sigmoid",
    pos_weight: ArrayLike | None = None, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    reduction: _Scalar = "mean", normalizer: float | None = None, axis: int = -1, num_threads: int | None = None,
) -> _Floating: ...
@overload
def binary_cross_entropy(
    logits: ArrayLike, targets: ArrayLike, *, activation: _Activation = "sigmoid",
    pos_weight: ArrayLike | None = None, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    reduction: _Rows, normalizer: float | None = None, axis: int = -1, num_threads: int | None = None,
) -> NDArray[_Floating]: ...
@overload
def binary_cross_entropy_with_grad(
    logits: NDArray[_F], targets: ArrayLike, *, activation: _Activation = "sigmoid",
    pos_weight: ArrayLike | None = None, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    reduction: _Scalar = "mean", normalizer: float | None = None, axis: int = -1, num_threads: int | None = None,
    upstream: ArrayLike = 1.0, out: NDArray[_F] | None = None,
) -> tuple[_F, NDArray[_F]]: ...
@overload
def binary_cross_entropy_with_grad(
    logits: NDArray[_F], targets: ArrayLike, *, activation: _Activation = "sigmoid",
    pos_weight: ArrayLike | None = None, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    reduction: _Rows, normalizer: float | None = None, axis: int = -1, num_threads: int | None = None,
    upstream: ArrayLike = 1.0, out: NDArray[_F] | None = None,
) -> tuple[NDArray[_F], NDArray[_F]]: ...
@overload
def binary_cross_entropy_with_grad(
    logits: ArrayLike, targets: ArrayLike, *, activation: _Activation = "sigmoid",
    pos_weight: ArrayLike | None = None, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    reduction: _Scalar = "mean", normalizer: float | None = None, axis: int = -1, num_threads: int | None = None,
    upstream: ArrayLike = 1.0, out: NDArray[Any] | None = None,
) -> tuple[_Floating, NDArray[_Floating]]: ...
@overload
def binary_cross_entropy_with_grad(
    logits: ArrayLike, targets: ArrayLike, *, activation: _Activation = "sigmoid",
    pos_weight: ArrayLike | None = None, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    reduction: _Rows, normalizer: float | None = None, axis: int = -1, num_threads: int | None = None,
    upstream: ArrayLike = 1.0, out: NDArray[Any] | None = None,
) -> tuple[NDArray[_Floating], NDArray[_Floating]]: ...
# fmt: on
