"""Calls of the public API with the types they promise. Checked by test_types.py with `mypy --strict`: assert_type fails
on another type, and a `type: ignore` on a line that has no error is an error. It is not imported."""

from typing import Any, Literal, assert_type

import numpy as np
from numpy.typing import NDArray

import fastce

x32: NDArray[np.float32] = np.zeros((2, 3), dtype=np.float32)
x64: NDArray[np.float64] = np.zeros((2, 3))
labels: NDArray[np.int64] = np.zeros(2, dtype=np.int64)
settings: dict[str, Any] = {"z_loss": 1e-4}


def a_reduction() -> Literal["mean", "sum", "none"]:
    return "mean"


def a_word() -> str:
    return "mean"


def a_choice() -> bool:
    return True


# the forward: by reduction, return_stats, dtype
assert_type(fastce.cross_entropy(x32, labels), np.float32)
assert_type(fastce.cross_entropy(x64, labels, reduction="sum"), np.float64)
assert_type(fastce.cross_entropy(x32, labels, reduction="none"), NDArray[np.float32])
assert_type(fastce.cross_entropy(x64, labels, return_stats=True), tuple[np.float64, fastce.SoftmaxStats])
assert_type(
    fastce.cross_entropy(x32, labels, reduction="none", return_stats=True),
    tuple[NDArray[np.float32], fastce.SoftmaxStats],
)
assert_type(fastce.cross_entropy([[0.0, 1.0]], [1]), np.floating[Any])
assert_type(fastce.cross_entropy([[0, 1]], [[0.5, 0.5]], reduction="none"), NDArray[np.floating[Any]])
assert_type(fastce.cross_entropy(x32, labels, reduction=a_reduction()), np.float32 | NDArray[np.float32])
assert_type(fastce.cross_entropy(x32, labels, return_stats=a_choice()), Any)
assert_type(
    fastce.cross_entropy(
        x64,
        x64,
        weight=[1, 2, 3],
        sample_weight=np.ones(2),
        ignore_index=None,
        label_smoothing=0.1,
        z_loss=1e-4,
        normalizer=2,
        axis=1,
        num_threads=1,
    ),
    np.float64,
)
fastce.cross_entropy(x64, x64, **settings)

# loss and gradient, gradient
assert_type(
    fastce.cross_entropy_with_grad(x32, labels, return_stats=True),
    tuple[np.float32, NDArray[np.float32], fastce.SoftmaxStats],
)
assert_type(fastce.cross_entropy_with_grad(x32, labels, out=x32), tuple[np.float32, NDArray[np.float32]])
assert_type(
    fastce.cross_entropy_with_grad(x64, labels, reduction="none", upstream=[1, 2]),
    tuple[NDArray[np.float64], NDArray[np.float64]],
)
assert_type(fastce.cross_entropy_with_grad([[0.0]], [0]), tuple[np.floating[Any], NDArray[np.floating[Any]]])
assert_type(
    fastce.cross_entropy_with_grad(x64, labels, upstream=np.float32(2), z_loss=1e-4),
    tuple[np.float64, NDArray[np.float64]],
)
_, stats = fastce.cross_entropy(x32, labels, return_stats=True)
assert_type(stats.row_max, NDArray[Any])
assert_type(fastce.cross_entropy_grad(x32, labels, stats=stats, upstream=0.5), NDArray[np.float32])
assert_type(fastce.cross_entropy_grad(x64, labels, reduction=a_reduction(), upstream=x64[:, 0]), NDArray[np.float64])
assert_type(fastce.cross_entropy_grad([[0, 1]], [0]), NDArray[np.floating[Any]])

# the layer, whose own reduction its type does not tell
layer = fastce.CrossEntropyLoss(reduction="sum", weight=np.ones(3), reuse_grad=True)
assert_type(layer(x32, labels, label_smoothing=0.1), np.float32 | Any)
assert_type(layer([[0.0, 1.0]], [1]), np.floating[Any] | Any)
assert_type(layer(x32, labels, reduction="mean"), np.float32)
assert_type(layer(x64, labels, reduction="none", axis=1), NDArray[np.float64])
assert_type(layer([[0.0, 1.0]], [1], reduction="none"), NDArray[np.floating[Any]])
assert_type(layer.backward(2.0), NDArray[np.floating[Any]])
total: np.float64 = layer(x64, labels)

# the two-term form
assert_type(fastce.binary_cross_entropy(x32, x32, pos_weight=[1, 2, 3], activation="sigmoid"), np.float32)
assert_type(fastce.binary_cross_entropy(x64, x64, reduction="none"), NDArray[np.float64])
assert_type(fastce.binary_cross_entropy([0.0], [1]), np.floating[Any])
assert_type(fastce.kl_divergence(x32, x64, temperature=2.0), np.float32)
assert_type(fastce.kl_divergence(x64, x32, targets="probabilities", reduction="none"), NDArray[np.float64])
assert_type(fastce.kl_divergence_with_grad(x32, x32), tuple[np.float32, NDArray[np.float32]])
assert_type(
    fastce.binary_cross_entropy_with_grad(x32, x32, activation="softmax", out=x32),
    tuple[np.float32, NDArray[np.float32]],
)
assert_type(
    fastce.binary_cross_entropy_with_grad(x64, x64, reduction="none", upstream=x64),
    tuple[NDArray[np.float64], NDArray[np.float64]],
)

# softmax and its relatives
assert_type(fastce.softmax(x32, axis=0, out=x32, num_threads=1), NDArray[np.float32])
assert_type(fastce.log_softmax([0, 1]), NDArray[np.floating[Any]])
assert_type(fastce.softmax_grad([[1.0, 2.0, 3.0]], x64), NDArray[np.float64])
assert_type(fastce.log_softmax_grad(x64, x32), NDArray[np.float32])
assert_type(fastce.logsumexp(x32), NDArray[np.float32] | Any)
assert_type(fastce.logsumexp([0, 1]), NDArray[np.floating[Any]] | Any)
assert_type(fastce.logsumexp(x32, axis=0, out=x32[0, :]), NDArray[np.float32])
assert_type(fastce.logsumexp(x32, axis=None, keepdims=True), NDArray[np.float32])
assert_type(fastce.logsumexp([0, 1], keepdims=True), NDArray[np.floating[Any]])
assert_type(fastce.softmax(x32, axis=None), NDArray[np.float32])
assert_type(fastce.log_softmax_grad(x64, x32, axis=(0, -1)), NDArray[np.float32])
assert_type(fastce.predict(x64, axis=0, num_threads=2), NDArray[np.intp] | Any)
assert_type(fastce.one_hot(labels, 3, dtype=np.float64), NDArray[Any])
x64 - fastce.logsumexp(x64)[:, None]
rows: NDArray[np.intp] = fastce.predict(x64)
float(fastce.logsumexp(x64[0]))

# the configuration
assert_type(fastce.show_config(mode="dicts")["isa_available"], list[str])
fastce.show_config()
assert_type(fastce.__version__, str)

# a linear layer: by reduction and the dtype of the hidden states
assert_type(fastce.linear_cross_entropy(x32, x32, labels, softcap=30.0, chunk_bytes=2**20), np.float32)
assert_type(fastce.linear_cross_entropy(x64, x64, labels, reduction="none"), NDArray[np.float64])
assert_type(fastce.linear_cross_entropy([[0.0]], [[0.0]], [0]), np.floating[Any])
linear_loss, linear_grads = fastce.linear_cross_entropy_with_grad(x32, x32, labels, linear_bias=[0, 0])
assert_type(linear_loss, np.float32)
assert_type(linear_grads, fastce.LinearGrads)
assert_type(
    fastce.linear_cross_entropy_with_grad(
        x64, x64, labels, reduction="none", upstream=[1, 2], out=linear_grads, accumulate=True
    ),
    tuple[NDArray[np.float64], fastce.LinearGrads],
)
linear = fastce.LinearCrossEntropyLoss(chunk_bytes=2**20, label_smoothing=0.1)
assert_type(linear(x32, x32, labels, reduction="sum", linear_bias=[0, 0]), np.float32)
assert_type(linear(x64, x64, labels, reduction="none"), NDArray[np.float64])
assert_type(linear.backward(2.0, out=linear_grads), fastce.LinearGrads)
assert_type(fastce.evaluate_linear(x32, x32, labels, top_k=[1, 2]), fastce.Evaluation)
assert_type(fastce.evaluate_linear(x32, x32, labels, return_rows=True), tuple[fastce.Evaluation, fastce.EvaluatedRows])

# what a checker should complain of
fastce.cross_entropy(x32, labels, reduce="mean")  # type: ignore[call-overload]
fastce.cross_entropy(x32, labels, axis="last")  # type: ignore[call-overload]
fastce.cross_entropy(x32, labels, reduction="avg")  # type: ignore[call-overload]
fastce.cross_entropy(x32, labels, reduction="avg", return_stats=a_choice())  # type: ignore[call-overload]
fastce.cross_entropy(x32, labels, reduction=a_word())  # type: ignore[call-overload]
fastce.cross_entropy(x32, labels, activation="sigmoid")  # type: ignore[call-overload]
fastce.cross_entropy_with_grad(x32, labels, reduction="avg")  # type: ignore[call-overload]
fastce.cross_entropy_with_grad(x32, labels, upstream=[1, 2])  # type: ignore[call-overload]
fastce.cross_entropy_grad(x32, labels, reduction="avg")  # type: ignore[call-overload]
fastce.cross_entropy_grad(x32, labels, stats=(x32, x32))  # type: ignore[call-overload]
fastce.CrossEntropyLoss(return_stats=True)  # type: ignore[call-arg]
fastce.CrossEntropyLoss(reduction="avg")  # type: ignore[arg-type]
layer(x32, labels, smoothing=0.1)  # type: ignore[call-overload]
layer(x32, labels, reduction="avg")  # type: ignore[call-overload]
layer(x32, labels).median()  # type: ignore[union-attr]
fastce.binary_cross_entropy(x32, x32, reduction="avg")  # type: ignore[call-overload]
fastce.binary_cross_entropy(x32, x32, activation="tanh")  # type: ignore[call-overload]
fastce.binary_cross_entropy(x32, x32, label_smoothing=0.1)  # type: ignore[call-overload]
fastce.kl_divergence(x32, x32, targets="logit")  # type: ignore[call-overload]
fastce.binary_cross_entropy_with_grad(x32, x32, reduction="avg")  # type: ignore[call-overload]
fastce.binary_cross_entropy_with_grad(x32, x32, activation="tanh")  # type: ignore[call-overload]
fastce.softmax(x32, dim=0)  # type: ignore[call-overload]
fastce.softmax(x32, keepdims=True)  # type: ignore[call-overload]
fastce.softmax(x32, axis=[0, 1])  # type: ignore[call-overload]
fastce.predict(x32, axis=None)  # type: ignore[arg-type]
fastce.entropy(x32, axis=None)  # type: ignore[call-overload]
fastce.logsumexp(x32).median()  # type: ignore[union-attr]
fastce.predict(x32).median()  # type: ignore[union-attr]
fastce.show_config(mode="json")  # type: ignore[call-overload]
fastce.show_config(mode="dicts")["cpu"]  # type: ignore[typeddict-item]
fastce.linear_cross_entropy(x32, x32, labels, axis=0)  # type: ignore[call-overload]
fastce.linear_cross_entropy_with_grad(x32, x32, labels, out=(x32, x32, None))  # type: ignore[call-overload]
fastce.LinearCrossEntropyLoss(linear_bias=x32)  # type: ignore[call-arg]
