"""Calls of the public API with the types they promise. Checked by test_types.py with `mypy --strict`: assert_type fails
on another type, and a `type: ignore` on a line that has no error is an error. It is not imported."""

from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import fastce

x32: NDArray[np.float32] = np.zeros((2, 3), dtype=np.float32)
x64: NDArray[np.float64] = np.zeros((2, 3))
labels: NDArray[np.int64] = np.zeros(2, dtype=np.int64)
reduction: str = "mean"
wanted: bool = True

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
assert_type(fastce.cross_entropy(x32, labels, reduction=reduction), Any)
assert_type(fastce.cross_entropy(x32, labels, return_stats=wanted), Any)
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

# loss and gradient, gradient
assert_type(fastce.cross_entropy_with_grad(x32, labels, out=x32), tuple[np.float32, NDArray[np.float32]])
assert_type(
    fastce.cross_entropy_with_grad(x64, labels, reduction="none", upstream=[1, 2]),
    tuple[NDArray[np.float64], NDArray[np.float64]],
)
assert_type(fastce.cross_entropy_with_grad([[0.0]], [0]), tuple[np.floating[Any], NDArray[np.floating[Any]]])
assert_type(
    fastce.cross_entropy_with_grad(x64, labels, reduction=reduction, upstream=x64[:, 0]),
    tuple[Any, NDArray[np.floating[Any]]],
)
_, stats = fastce.cross_entropy(x32, labels, return_stats=True)
assert_type(stats.row_max, NDArray[Any])
assert_type(fastce.cross_entropy_grad(x32, labels, stats=stats, upstream=0.5), NDArray[np.float32])
assert_type(fastce.cross_entropy_grad([[0, 1]], [0]), NDArray[np.floating[Any]])

# the layer, the configuration
layer = fastce.CrossEntropyLoss(reduction="sum", weight=np.ones(3))
assert_type(layer.backward(2.0), NDArray[np.floating[Any]])
layer(x32, labels, label_smoothing=0.1)
assert_type(fastce.show_config(mode="dicts")["isa_available"], list[str])
fastce.show_config()
assert_type(fastce.__version__, str)

# what a checker should complain of
fastce.cross_entropy(x32, labels, reduce="mean")  # type: ignore[call-overload]
fastce.cross_entropy(x32, labels, axis="last")  # type: ignore[call-overload]
fastce.cross_entropy_with_grad(x32, labels, upstream=[1, 2])  # type: ignore[call-overload]
fastce.cross_entropy_grad(x32, labels, stats=(x32, x32))  # type: ignore[call-overload]
fastce.CrossEntropyLoss(return_stats=True)  # type: ignore[call-arg]
layer(x32, labels, smoothing=0.1)  # type: ignore[call-arg]
fastce.show_config(mode="json")  # type: ignore[call-overload]
fastce.show_config(mode="dicts")["cpu"]  # type: ignore[typeddict-item]
