"""Every kind of array that may be passed as logits, targets and out: the results are those of a plain contiguous array,
inputs are never modified, no copy is made that need not be, and memory may be shared in any way."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layouts import (
    AWKWARD,
    BITWISE,
    LAYOUTS,
    NOT_ONE_STRIDE,
    SAME_MEMORY,
    SHIFTS,
    WALKABLE,
    peak_bytes,
    unaligned,
)
from numpy.lib.stride_tricks import as_strided

import fastce
from fastce import reference

# Two kernels (vectors along the classes, vectors across rows) may compute the same array in two layouts. Each is within
# (4 + |x_j - row_max|)*eps of the truth and the logits below span 14 at most, so two are within 36 eps; options add 8.
TWO_KERNELS_EPS = 44
SHAPES = [(1, 1), (7, 3), (33, 10), (200, 17), (5, 300), (3, 4097), (2, 9000)]
DTYPES = [np.float32, np.float64]


def numbers(shape: tuple[int, ...], dtype: Any = np.float64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-7, 7, shape).astype(dtype)


def labels_for(shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    """Class indices for logits of that shape, classes last; some ignored."""
    labels = np.random.default_rng(seed).integers(shape[-1], size=shape[:-1])
    if labels.size > 4:
        labels.flat[3] = -100
    return labels


def assert_same(got: Any, expected: Any) -> None:
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    tolerance = TWO_KERNELS_EPS * np.finfo(expected.dtype).eps
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_of_logits_changes_no_result(layout: str, shape: tuple[int, int], dtype: type) -> None:
    plain, labels = numbers(shape, dtype), labels_for(shape)
    logits = LAYOUTS[layout](plain)
    expected = [
        *fastce.cross_entropy_with_grad(plain, labels),
        *fastce.cross_entropy(plain, labels, reduction="none", return_stats=True),
    ]
    loss, grad = fastce.cross_entropy_with_grad(logits, labels)
    losses, stats = fastce.cross_entropy(logits, labels, reduction="none", return_stats=True)
    got = [loss, grad, losses, stats]
    if layout in BITWISE:
        for mine, want in zip(got, expected, strict=True):
            assert np.asarray(mine).tobytes() == np.asarray(want).tobytes()
    assert_same(loss, expected[0])
    assert_same(grad, expected[1])
    assert_same(losses, expected[2])
    assert_same(stats.row_max, expected[3].row_max)
    assert_same(stats.tail, expected[3].tail)
    assert_same(fastce.cross_entropy_grad(logits, labels, stats=stats), expected[1])
    assert np.array_equal(logits, plain), "the logits were modified"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_of_out_changes_no_result(layout: str, shape: tuple[int, int]) -> None:
    logits, labels = numbers(shape, np.float32), labels_for(shape)
    expected = fastce.cross_entropy_grad(logits, labels)
    out = LAYOUTS[layout](np.full(shape, 9, np.float32))
    if layout in WALKABLE or layout == "subclass":
        around = out if out.base is None else out.base
        untouched = np.isnan(around).sum()
        assert fastce.cross_entropy_grad(logits, labels, out=out) is out
        assert_same(out, expected)
        assert np.isnan(around).sum() == untouched, "written beside out"
    else:  # read-only, byte-swapped or unaligned: refused
        with pytest.raises(ValueError, match="^out "):
            fastce.cross_entropy_grad(logits, labels, out=out)


@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_and_dtype_of_labels_change_no_result(layout: str, kind: str) -> None:
    logits = numbers((4, 6, 10), np.float32)
    plain = np.abs(labels_for(logits.shape)) % 10
    labels = LAYOUTS[layout](plain.astype(kind))
    expected = fastce.cross_entropy_with_grad(logits, plain)
    loss, grad = fastce.cross_entropy_with_grad(logits, labels)
    assert loss == expected[0]
    assert grad.tobytes() == expected[1].tobytes()
    assert np.array_equal(labels, plain), "the labels were modified"


@pytest.mark.parametrize("kind", ["f4", "f8", "f2", "i1", "u8", "?"])
@pytest.mark.parametrize("shape", [(33, 10), (5, 300)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_and_dtype_of_probabilities_change_no_result(layout: str, shape: tuple[int, int], kind: str) -> None:
    logits = numbers(shape, np.float32)
    whole = np.random.default_rng(2).integers(0, 3 if kind != "?" else 2, shape)
    plain = whole.astype(np.float32) / (4 if kind[0] == "f" else 1)  # exact in every dtype
    targets = LAYOUTS[layout](plain.astype(kind))
    expected = fastce.cross_entropy_with_grad(logits, plain)
    loss, grad = fastce.cross_entropy_with_grad(logits, targets)
    assert_same(loss, expected[0])
    # Where p*Q and c nearly cancel, the kernels differ by so much of the larger one.
    np.testing.assert_allclose(grad, expected[1], rtol=1e-5, atol=TWO_KERNELS_EPS * 2**-23 / shape[0])
    assert np.array_equal(targets, plain.astype(kind)), "the targets were modified"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("argument", ["weight", "sample_weight", "upstream"])
@pytest.mark.parametrize("kind", ["f4", "f8", "i4", "?"])
def test_layout_and_dtype_of_vectors_change_no_result(argument: str, layout: str, kind: str) -> None:
    logits, labels = numbers((33, 10), np.float32), labels_for((33, 10))
    size = 10 if argument == "weight" else 33
    plain = np.arange(size) % 2.0 if kind == "?" else 1.0 + np.arange(size)
    vector = LAYOUTS[layout](plain.astype(kind))
    expected = fastce.cross_entropy_grad(logits, labels, reduction="none", **{argument: plain})
    got = fastce.cross_entropy_grad(logits, labels, reduction="none", **{argument: vector})
    assert got.tobytes() == expected.tobytes()
    assert np.array_equal(vector, plain), f"{argument} was modified"


@pytest.mark.parametrize("mode", ["r", "c", "r+"])
def test_memory_mapped_logits(tmp_path: Path, mode: Any) -> None:
    logits, labels = numbers((40, 30), np.float32), labels_for((40, 30))
    np.save(tmp_path / "logits.npy", logits)
    np.save(tmp_path / "labels.npy", labels)
    mapped = np.load(tmp_path / "logits.npy", mmap_mode=mode)
    loss, grad = fastce.cross_entropy_with_grad(mapped, np.load(tmp_path / "labels.npy", mmap_mode="r"))
    expected_loss, expected = fastce.cross_entropy_with_grad(logits, labels)
    assert loss == expected_loss
    assert grad.tobytes() == expected.tobytes()
    assert type(grad) is np.ndarray
    if mode == "r+":  # the gradient into the file, over the logits
        assert fastce.cross_entropy_grad(mapped, labels, out=mapped) is mapped
        mapped.flush()
        assert np.load(tmp_path / "logits.npy").tobytes() == expected.tobytes()


def test_lists_are_arrays() -> None:
    logits = numbers((3, 4))
    expected = fastce.cross_entropy_with_grad(logits, np.array([1, 0, 3]))
    loss, grad = fastce.cross_entropy_with_grad(logits.tolist(), [1, 0, 3])
    assert loss == expected[0]
    assert grad.tobytes() == expected[1].tobytes()
    assert fastce.cross_entropy([[0, 0]], [1]) == np.log(2)
    rows = np.eye(4)[[1, 0, 3]]
    assert fastce.cross_entropy(logits.tolist(), rows.tolist()) == fastce.cross_entropy(logits, rows)


def test_whatever_numpy_takes_for_an_array_is_one() -> None:
    class Wrapped:
        def __init__(self, array: np.ndarray) -> None:
            self.array = array

        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            return self.array

    logits, labels = numbers((6, 5), np.float32), labels_for((6, 5))
    expected = fastce.cross_entropy_with_grad(logits, labels)
    loss, grad = fastce.cross_entropy_with_grad(Wrapped(logits), Wrapped(labels))
    assert loss == expected[0]
    assert grad.tobytes() == expected[1].tobytes()
    assert fastce.cross_entropy(np.zeros((0, 5)), [], reduction="sum") == 0


@pytest.mark.parametrize("kind", ["?", "i1", "u2", "i8", "u8"])
def test_integers_and_bools_are_computed_in_float64(kind: str) -> None:
    logits, labels = np.random.default_rng(0).integers(0, 2, (6, 5)).astype(kind), np.arange(6) % 5
    expected_loss, expected = fastce.cross_entropy_with_grad(logits.astype(np.float64), labels)
    loss, grad = fastce.cross_entropy_with_grad(logits, labels)
    assert type(loss) is np.float64
    assert loss == expected_loss
    assert grad.dtype == np.float64
    assert grad.tobytes() == expected.tobytes()
    out = np.zeros((6, 5))
    assert fastce.cross_entropy_grad(logits, labels, out=out) is out
    assert out.tobytes() == expected.tobytes()


# ---------------------------------------------------------------------------------------------------------------------
# Broadcast arrays, more dimensions, empty ones
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(33, 10), (6, 300)])
@pytest.mark.parametrize("axes", ["rows", "classes", "both"])
def test_broadcast_logits(shape: tuple[int, int], axes: str) -> None:
    small = {"rows": (1, shape[1]), "classes": (shape[0], 1), "both": (1, 1)}[axes]
    logits = np.broadcast_to(numbers(small, np.float32), shape)
    assert 0 in logits.strides
    expected = fastce.cross_entropy_with_grad(logits.copy(), labels_for(shape))
    loss, grad = fastce.cross_entropy_with_grad(logits, labels_for(shape))
    assert_same(loss, expected[0])
    assert_same(grad, expected[1])
    assert grad.strides == np.empty_like(logits).strides
    assert 0 not in grad.strides


def test_broadcast_targets_and_upstream() -> None:
    logits = numbers((33, 10), np.float32)
    one_label, one_row = np.broadcast_to(np.int64(3), 33), np.broadcast_to(np.float32(0.1), (33, 10))
    for targets in (one_label, one_row):
        upstream = np.broadcast_to(np.float32(0.5), 33)
        got = fastce.cross_entropy_grad(logits, targets, reduction="none", upstream=upstream)
        expected = fastce.cross_entropy_grad(logits, targets.copy(), reduction="none", upstream=0.5)
        assert_same(got, expected)


@pytest.mark.parametrize("options", [{}, {"weight": 1, "label_smoothing": 0.1, "z_loss": 1e-3}], ids=["", "options"])
@pytest.mark.parametrize("shape", [(4, 5, 3), (3, 50, 10), (2, 7, 300), (1, 5, 10), (4, 1, 70)])
@pytest.mark.parametrize("layout", NOT_ONE_STRIDE)
def test_three_dimensions_whose_rows_have_no_common_stride(
    layout: str, shape: tuple[int, int, int], options: dict[str, Any]
) -> None:
    if options:
        options = options | {"weight": np.linspace(0.5, 2, shape[-1])}
    plain, labels = numbers(shape, np.float32), labels_for(shape)
    expected = fastce.cross_entropy_with_grad(plain.reshape(-1, shape[-1]), labels.ravel(), **options)
    logits = NOT_ONE_STRIDE[layout](plain)
    loss, grad = fastce.cross_entropy_with_grad(logits, labels, **options)
    assert_same(loss, expected[0])
    scale = np.abs(expected[1]).max()
    tolerance = TWO_KERNELS_EPS * np.finfo(np.float32).eps
    np.testing.assert_allclose(grad, expected[1].reshape(shape), rtol=tolerance, atol=tolerance * scale * bool(options))
    assert grad.strides == np.empty_like(logits).strides
    losses = fastce.cross_entropy(logits, labels, reduction="none", **options)
    assert losses.shape == shape[:-1]
    flat = fastce.cross_entropy(plain.reshape(-1, shape[-1]), labels.ravel(), reduction="none", **options)
    assert_same(losses.ravel(), flat)
    assert np.array_equal(logits, plain)


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -2, -4])
@pytest.mark.parametrize("layout", ["contiguous", "Fortran", "every second row", "all reversed", "unaligned"])
def test_every_axis_of_every_layout(layout: str, axis: int) -> None:
    plain = numbers((3, 4, 5, 6), np.float32)
    logits = LAYOUTS[layout](plain)
    classes_last = np.ascontiguousarray(np.moveaxis(plain, axis, -1))
    labels = labels_for(classes_last.shape)
    expected_loss, expected = fastce.cross_entropy_with_grad(classes_last, labels)
    loss, grad = fastce.cross_entropy_with_grad(logits, labels, axis=axis)
    assert_same(loss, expected_loss)
    assert_same(np.moveaxis(grad, axis, -1), expected)
    assert grad.strides == np.empty_like(logits).strides
    out = LAYOUTS[layout](np.zeros_like(plain)) if layout != "unaligned" else np.zeros_like(plain)
    assert fastce.cross_entropy_grad(logits, labels, axis=axis, out=out) is out
    assert_same(np.moveaxis(out, axis, -1), expected)


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7), (2, 1, 2, 3, 7), (1,) * 6 + (7,)])
def test_any_number_of_dimensions(shape: tuple[int, ...]) -> None:
    logits, labels = numbers(shape, np.float32), labels_for(shape)
    expected = fastce.cross_entropy_with_grad(logits.reshape(-1, 7), labels.reshape(-1))
    targets = labels if labels.ndim else int(labels)
    loss, grad = fastce.cross_entropy_with_grad(logits, targets)
    assert loss == expected[0]
    assert grad.shape == shape
    assert grad.tobytes() == expected[1].tobytes()
    losses, stats = fastce.cross_entropy(logits, targets, reduction="none", return_stats=True)
    assert np.shape(losses) == np.shape(stats.row_max) == np.shape(stats.tail) == shape[:-1]


@pytest.mark.parametrize("kind", ["labels", "probabilities"])
@pytest.mark.parametrize("shape", [(0, 5), (0, 1), (3, 0, 5), (0, 3, 5), (2, 0, 4, 5)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_rows(shape: tuple[int, ...], kind: str, dtype: type) -> None:
    logits = np.zeros(shape, dtype)
    targets = np.zeros(shape[:-1], np.int64) if kind == "labels" else np.zeros(shape)
    mean, grad = fastce.cross_entropy_with_grad(logits, targets)
    assert np.isnan(mean)
    assert type(mean) is dtype
    assert grad.shape == shape
    assert grad.dtype == dtype
    total = fastce.cross_entropy(logits, targets, reduction="sum")
    assert total == 0
    assert type(total) is dtype
    losses, stats = fastce.cross_entropy(logits, targets, reduction="none", return_stats=True)
    assert losses.shape == stats.row_max.shape == shape[:-1]
    assert losses.dtype == stats.tail.dtype == dtype
    assert fastce.cross_entropy_grad(logits, targets, out=grad) is grad


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 5, 1000])
def test_one_class_has_no_loss(rows: int, dtype: type) -> None:
    logits, labels = numbers((rows, 1), dtype), np.zeros(rows, np.int64)
    loss, grad = fastce.cross_entropy_with_grad(logits, labels)
    assert loss == 0
    assert not grad.any()
    assert not fastce.cross_entropy(logits, labels, reduction="none").any()


# ---------------------------------------------------------------------------------------------------------------------
# What is returned
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("swapped", [False, True])
def test_types_of_the_results(dtype: type, swapped: bool) -> None:
    logits, labels = numbers((6, 5), dtype), labels_for((6, 5))
    if swapped:
        logits = logits.astype(logits.dtype.newbyteorder())
    for reduction in ("mean", "sum"):
        loss, grad = fastce.cross_entropy_with_grad(logits, labels, reduction=reduction)
        assert type(loss) is dtype
        assert type(fastce.cross_entropy(logits, labels, reduction=reduction)) is dtype
        assert type(grad) is np.ndarray
        assert grad.dtype == np.dtype(dtype)
        assert grad.dtype.isnative
        assert grad.flags.writeable
    losses, stats = fastce.cross_entropy(logits, labels, reduction="none", return_stats=True)
    for result in (losses, *stats):
        assert type(result) is np.ndarray
        assert result.dtype == np.dtype(dtype)
        assert result.dtype.isnative
        assert result.shape == (6,)
    assert isinstance(stats, fastce.SoftmaxStats)


@pytest.mark.parametrize("layout", WALKABLE)
def test_gradient_keeps_the_memory_order_of_the_logits(layout: str) -> None:
    logits = WALKABLE[layout](numbers((6, 5), np.float32))
    like = np.empty_like(logits)
    _, fused = fastce.cross_entropy_with_grad(logits, labels_for((6, 5)))
    assert fused.strides == like.strides
    assert fastce.cross_entropy_grad(logits, labels_for((6, 5))).strides == like.strides
    assert not np.shares_memory(fused, logits)


def test_out_is_returned_itself() -> None:
    logits, labels = numbers((6, 5), np.float32), labels_for((6, 5))
    for out in (np.empty_like(logits), np.asfortranarray(logits), AWKWARD["subclass"](logits)):
        assert fastce.cross_entropy_with_grad(logits, labels, out=out)[1] is out
        assert fastce.cross_entropy_grad(logits, labels, out=out) is out
    ce = fastce.CrossEntropyLoss()
    ce(logits, labels)
    out = np.empty_like(logits)
    assert ce.backward(out=out) is out


# ---------------------------------------------------------------------------------------------------------------------
# Shared memory
# ---------------------------------------------------------------------------------------------------------------------

TARGETS = ["labels", "probabilities"]
LARGE = (70, 130_000)  # 36 MB of gradient in float32: past where stores may bypass the caches


def targets_for(kind: str, shape: tuple[int, ...]) -> np.ndarray:
    return labels_for(shape) if kind == "labels" else np.abs(numbers(shape, np.float32, seed=5)) / 9


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 1e-3}], ids=["plain", "options"])
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("shape", [*SHAPES, (300, 64), (100, 65)])
@pytest.mark.parametrize("layout", WALKABLE)
def test_in_place(layout: str, shape: tuple[int, int], kind: str, options: dict[str, Any]) -> None:
    plain, targets = numbers(shape, np.float32), targets_for(kind, shape)
    for function in (fastce.cross_entropy_with_grad, fastce.cross_entropy_grad):
        logits = WALKABLE[layout](plain)
        expected = function(logits.copy(order="K"), targets, **options)
        got = function(logits, targets, out=logits, **options)
        if function is fastce.cross_entropy_with_grad:
            assert_same(got[0], expected[0])
            got, expected = got[1], expected[1]
        assert got is logits
        scale = np.abs(expected).max()
        tolerance = TWO_KERNELS_EPS * np.finfo(np.float32).eps
        atol = 0 if kind == "labels" and not options else tolerance * scale
        np.testing.assert_allclose(logits, expected, rtol=tolerance, atol=atol)


def test_in_place_with_stats() -> None:
    for shape in SHAPES:
        logits, labels = numbers(shape, np.float32), labels_for(shape)
        expected = fastce.cross_entropy_grad(logits, labels)
        _, stats = fastce.cross_entropy(logits, labels, return_stats=True)
        assert fastce.cross_entropy_grad(logits, labels, stats=stats, out=logits) is logits
        assert_same(logits, expected)


@pytest.mark.parametrize("layout", NOT_ONE_STRIDE)
@pytest.mark.parametrize("shape", [(3, 50, 10), (2, 7, 300)])
def test_in_place_in_three_dimensions(layout: str, shape: tuple[int, int, int]) -> None:
    plain, labels = numbers(shape, np.float32), labels_for(shape)
    expected = fastce.cross_entropy_grad(plain, labels)
    logits = NOT_ONE_STRIDE[layout](plain)
    assert fastce.cross_entropy_grad(logits, labels, out=logits) is logits
    assert_same(logits, expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_in_place_on_every_axis(axis: int) -> None:
    logits = numbers((20, 30, 40), np.float32)
    labels = labels_for(np.moveaxis(logits, axis, -1).shape)
    expected = fastce.cross_entropy_grad(logits.copy(), labels, axis=axis)
    assert fastce.cross_entropy_grad(logits, labels, axis=axis, out=logits) is logits
    assert_same(logits, expected)


@pytest.mark.parametrize("threads", [1, 2])
def test_in_place_when_large(threads: int) -> None:
    logits = np.random.default_rng(0).standard_normal(LARGE, dtype=np.float32)
    labels = labels_for(LARGE)
    loss, expected = fastce.cross_entropy_with_grad(logits, labels, num_threads=threads)
    in_place_loss, grad = fastce.cross_entropy_with_grad(logits, labels, out=logits, num_threads=threads)
    assert grad is logits
    assert_same(in_place_loss, loss)
    assert_same(grad, expected)


@pytest.mark.parametrize("forward", [True, False], ids=["out behind", "out before"])
@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("shape", [(33, 10), (300, 3), (9, 300), (3, 9000)])
def test_out_shifted_against_the_logits(shape: tuple[int, int], shift: str, forward: bool) -> None:
    size, by = shape[0] * shape[1], SHIFTS[shift](*shape)
    both = np.full(size + by, 7, np.float32)
    logits, out = (both[:size], both[by:]) if forward else (both[by:], both[:size])
    logits, out = logits.reshape(shape), out.reshape(shape)
    logits[...] = numbers(shape, np.float32)
    labels = labels_for(shape)
    loss, expected = fastce.cross_entropy_with_grad(logits.copy(), labels)
    got, grad = fastce.cross_entropy_with_grad(logits, labels, out=out)
    assert grad is out
    assert_same(got, loss)
    assert_same(out, expected)


@pytest.mark.parametrize("view", SAME_MEMORY)
@pytest.mark.parametrize("n", [1, 5, 40, 300])
def test_out_is_the_logits_memory_in_another_order(n: int, view: str) -> None:
    logits, labels = numbers((n, n), np.float32), labels_for((n, n))
    expected = fastce.cross_entropy_grad(logits.copy(), labels)
    out = SAME_MEMORY[view](logits)
    assert np.shares_memory(out, logits)
    assert fastce.cross_entropy_grad(logits, labels, out=out) is out
    assert_same(out, expected)


def test_out_between_the_logits() -> None:
    for columns in (np.s_[:, 0::2], np.s_[:, 1::2]), (np.s_[:, :10], np.s_[:, 10:]):
        both = np.zeros((33, 20), np.float32)
        logits, out = (both[index] for index in columns)
        logits[...] = plain = numbers((33, 10), np.float32)
        expected = fastce.cross_entropy_grad(plain, labels_for((33, 10)))
        fastce.cross_entropy_grad(logits, labels_for((33, 10)), out=out)
        assert_same(out, expected)
        assert np.array_equal(logits, plain), "the logits were modified"


@pytest.mark.parametrize("offset", [0, 4, 60, -1])
@pytest.mark.parametrize("shape", [(40, 10), (40, 300)])
@pytest.mark.parametrize("kind", ["i1", "u2", "i4", "i8"])
def test_out_shares_memory_with_the_labels(kind: str, shape: tuple[int, int], offset: int) -> None:
    logits, plain = numbers(shape, np.float32), np.abs(labels_for(shape)) % 10
    out = np.zeros(shape, np.float32)
    items = out.view(kind).ravel()
    start = offset * 8 // items.itemsize if offset >= 0 else items.size - plain.size
    labels = items[start : start + plain.size]
    labels[...] = plain
    expected_loss, expected = fastce.cross_entropy_with_grad(logits, plain)
    loss, _ = fastce.cross_entropy_with_grad(logits, labels, out=out)
    assert loss == expected_loss
    assert_same(out, expected)


@pytest.mark.parametrize("shift", [0, 1, 10, 200])
@pytest.mark.parametrize("shape", [(40, 10), (6, 300), (3, 9000)])
def test_out_shares_memory_with_the_probabilities(shape: tuple[int, int], shift: int) -> None:
    logits, plain = numbers(shape, np.float32), targets_for("probabilities", shape)
    size = plain.size
    both = np.zeros(size + shift, np.float32)
    targets, out = both[shift:].reshape(shape), both[:size].reshape(shape)
    targets[...] = plain
    expected_loss, expected = fastce.cross_entropy_with_grad(logits, plain)
    loss, _ = fastce.cross_entropy_with_grad(logits, targets, out=out)
    assert_same(loss, expected_loss)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=TWO_KERNELS_EPS * 2**-23 * scale)


def test_logits_targets_and_out_are_one_array() -> None:
    for shape in [(40, 10), (6, 300), (3, 9000)]:
        logits = np.abs(numbers(shape, np.float32))
        expected = fastce.cross_entropy_grad(logits.copy(), logits.copy())
        fastce.cross_entropy_grad(logits, logits, out=logits)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=TWO_KERNELS_EPS * 2**-23 * scale)


# Where in `out` (or, in place, in the logits) an argument lies: its first numbers, its first column, its last row.
PLACES = {
    "start": lambda out, n: out.ravel()[:n],
    "column": lambda out, n: out[:n, 0],
    "end": lambda out, n: out.ravel()[-n:],
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("argument", ["weight", "sample_weight", "upstream", "row_max", "tail"])
@pytest.mark.parametrize("shape", [(40, 10), (40, 40), (300, 300)])
def test_out_shares_memory_with_a_vector(argument: str, place: str, shape: tuple[int, int]) -> None:
    logits, labels, out = numbers(shape, np.float32), labels_for(shape), np.ones(shape, np.float32)
    _, stats = fastce.cross_entropy(logits, labels, return_stats=True)
    n = shape[1] if argument == "weight" else shape[0]
    plain = 1 + np.arange(n, dtype=np.float32) / n
    if argument in stats._fields:
        plain = getattr(stats, argument)
    shared = PLACES[place](out, n)
    assert np.shares_memory(shared, out)
    shared[...] = plain

    def options(value: np.ndarray) -> dict[str, Any]:
        if argument in stats._fields:
            return {"reduction": "none", "stats": stats._replace(**{argument: value})}
        return {"reduction": "none", argument: value}

    expected = fastce.cross_entropy_grad(logits, labels, **options(plain))
    fastce.cross_entropy_grad(logits, labels, **options(shared), out=out)
    assert_same(out, expected)


def test_logits_may_be_shared_with_anything_read_only() -> None:
    square = np.abs(numbers((10, 10), np.float32))
    vector = square[0]
    expected = fastce.cross_entropy(square.copy(), square.copy(), weight=vector.copy(), sample_weight=vector.copy())
    assert fastce.cross_entropy(square, square, weight=vector, sample_weight=vector) == expected


# ---------------------------------------------------------------------------------------------------------------------
# Copies
# ---------------------------------------------------------------------------------------------------------------------

SMALL_CHANGE = 0.3  # of the logits' bytes: per-row arrays, scratch


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("layout", WALKABLE)
@pytest.mark.parametrize("shape", [(40_000, 10), (400, 1000)])
def test_walkable_logits_are_not_copied(shape: tuple[int, int], layout: str, kind: str) -> None:
    logits, targets = WALKABLE[layout](numbers(shape, np.float64)), targets_for(kind, shape)
    out = np.empty_like(logits)
    fastce.cross_entropy_with_grad(logits[:2], targets[:2])
    calls: list[Callable[[], object]] = [
        lambda: fastce.cross_entropy(logits, targets),
        lambda: fastce.cross_entropy_with_grad(logits, targets, out=out),
        lambda: fastce.cross_entropy_grad(logits, targets, out=out),
        lambda: fastce.cross_entropy_grad(logits, targets, out=logits),
    ]
    for call in calls:
        assert peak_bytes(call) < SMALL_CHANGE * logits.nbytes


@pytest.mark.parametrize("layout", [name for name in NOT_ONE_STRIDE if name != "Fortran"])
def test_logits_with_more_than_one_stride_of_rows_are_not_copied(layout: str) -> None:
    logits = NOT_ONE_STRIDE[layout](numbers((50, 80, 100), np.float64))
    labels = labels_for(logits.shape)
    assert peak_bytes(lambda: fastce.cross_entropy(logits, labels)) < SMALL_CHANGE * logits.nbytes
    out = np.empty_like(logits)
    call = lambda: fastce.cross_entropy_with_grad(logits, labels, out=out)  # noqa: E731
    assert peak_bytes(call) < SMALL_CHANGE * logits.nbytes


def test_a_copy_would_be_noticed() -> None:
    logits = numbers((400, 1000), np.float64)
    assert peak_bytes(lambda: reference.cross_entropy(logits, labels_for(logits.shape))) >= logits.nbytes
    assert peak_bytes(lambda: fastce.cross_entropy(unaligned(logits), labels_for(logits.shape))) >= logits.nbytes


def test_as_strided_logits_that_overlap_themselves() -> None:
    windows = as_strided(numbers((100,), np.float32), (60, 40), (4, 4), writeable=False)
    assert_same(
        fastce.cross_entropy_grad(windows, labels_for((60, 40))),
        fastce.cross_entropy_grad(windows.copy(), labels_for((60, 40))),
    )


# ---------------------------------------------------------------------------------------------------------------------
# The common call: a shorter way to the same result, or the same error
# ---------------------------------------------------------------------------------------------------------------------

GENERAL = float("0")  # no z_loss either, but not the default itself


def outcome(logits: Any, labels: Any, options: dict[str, Any]) -> tuple[Any, ...]:
    """All there is to see of a call: types and bits of the results, or the error."""
    try:
        loss, grad = fastce.cross_entropy_with_grad(logits, labels, **options)
    except Exception as error:
        return type(error), str(error)
    return type(loss), loss.tobytes(), type(grad).__name__, grad.dtype, grad.strides, grad.tobytes()


def assert_both_ways(make: Callable[[], tuple[Any, Any, dict[str, Any]]]) -> None:
    common, general = make(), make()
    with np.errstate(all="raise"):
        assert outcome(*common) == outcome(*general[:2], general[2] | {"z_loss": GENERAL})
    for mine, theirs in zip([*common[:2], common[2].get("out")], [*general[:2], general[2].get("out")], strict=True):
        assert (mine is None) == (theirs is None)
        assert mine is None or np.asarray(mine).tobytes() == np.asarray(theirs).tobytes()


@pytest.mark.parametrize("shape", [(1, 1), (6, 50), (200, 30), (3, 5000)])
@pytest.mark.parametrize("of_out", [None, *LAYOUTS])
@pytest.mark.parametrize("of_logits", LAYOUTS)
def test_common_call_takes_or_leaves_every_layout(of_logits: str, of_out: str | None, shape: tuple[int, int]) -> None:
    def make() -> tuple[Any, Any, dict[str, Any]]:
        options = {} if of_out is None else {"out": LAYOUTS[of_out](np.full(shape, 9, np.float32))}
        return LAYOUTS[of_logits](numbers(shape, np.float32)), labels_for(shape), options

    assert_both_ways(make)


@pytest.mark.parametrize("out", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "max", None])
@pytest.mark.parametrize(
    "labels",
    [
        np.arange(6), np.arange(6, dtype=np.int32), np.arange(6, dtype=np.uint64), np.arange(6, dtype=">i8"),
        np.arange(6.0), np.arange(12)[::2], np.arange(6)[::-1], np.broadcast_to(np.int64(3), 6), np.arange(5),
        np.array(3), np.arange(6).reshape(2, 3), np.arange(6).astype("M8[s]"), np.arange(6).astype(object),
        np.zeros(6, [("t", "i8")]), np.zeros(6, [("t", "i8"), ("u", "i1")])["t"], unaligned(np.arange(6)),
        np.eye(6, 50), np.arange(45, 51), np.arange(-1, 5), np.full(6, -100), np.array([-100, 1, 2, 3, 4, -100]),
        np.array([0, 1, 2, 3, 4, 2**63 - 1]), np.array([0, 1, 2, 3, 4, -(2**63)]), None, list(range(6)),
    ],
    ids=str,
)  # fmt: skip
def test_common_call_takes_or_leaves_all_labels(labels: Any, reduction: Any, out: bool) -> None:
    def make() -> tuple[Any, Any, dict[str, Any]]:
        options = {"out": np.full((6, 50), 9, np.float32)} if out else {}
        return numbers((6, 50), np.float32), labels, options | {"reduction": reduction}

    assert_both_ways(make)


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", ">f4", "c8", "i1", "i8", "u8", "?", "M8[s]", "S4", "f4,f4"])
@pytest.mark.parametrize("shape", [(6, 50), (0, 50), (6, 0), (1, 6, 50), (50,), ()])
@pytest.mark.parametrize("out", [None, "f4", "f8", "same"])
def test_common_call_takes_or_leaves_every_dtype(kind: str, shape: tuple[int, ...], out: str | None) -> None:
    def make() -> tuple[Any, Any, dict[str, Any]]:
        logits = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(kind)
        buffer = logits if out == "same" else None if out is None else np.full(shape, 9, out)
        return logits, np.zeros(shape[:-1], np.int64), {} if out is None else {"out": buffer}

    assert_both_ways(make)


@pytest.mark.parametrize("stride", [3, 2**62, -(2**63)])
def test_stride_of_a_single_row_means_nothing(stride: int) -> None:
    def make() -> tuple[Any, Any, dict[str, Any]]:
        logits, out = (as_strided(numbers((50,), np.float32), (1, 50), (stride, 4)) for _ in range(2))
        return logits, np.array([3]), {"out": out}

    assert_both_ways(make)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [1, 10, 41, 48, 65, 96, 97, 131, 300, 2047, 2049, 4096, 4099])
def test_place_in_memory_changes_no_bit(classes: int, dtype: type) -> None:
    """Where vectors begin, and whether the ends of rows overlap them, is not seen in any result."""
    shape = (9, classes)
    plain, labels = numbers(shape, dtype), labels_for(shape)
    plain[0, : classes // 2] = plain[1] = plain[2, -1] = -np.inf
    plain[5, classes // 2] = np.nan

    def at(offset: int) -> np.ndarray:
        room = np.empty(plain.size + 32, dtype)
        begin = -room.ctypes.data // room.itemsize % 16 + offset
        a = room[begin : begin + plain.size].reshape(shape)
        a[...] = plain
        return a

    def results(offset: int, out: np.ndarray | None) -> list[Any]:
        logits = at(offset)
        stats = fastce.cross_entropy(logits, labels, return_stats=True)[1]
        alone = [fastce.softmax(logits), fastce.log_softmax(logits), fastce.logsumexp(logits), *stats]
        return [*alone, *fastce.cross_entropy_with_grad(logits, labels, out=logits if out is None else out)]

    expected = results(0, at(0))
    for offset in range(1, 16):
        for got in (results(offset, None), results(offset, at(7 * offset % 16))):
            for mine, want in zip(got, expected, strict=True):
                np.testing.assert_array_equal(mine, want)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_dtypes_need_not_be_one_object(dtype) -> None:
    x, labels = np.random.default_rng(2).standard_normal((5, 4)).astype(dtype), np.arange(5) % 4
    want, want_grad = fastce.cross_entropy_with_grad(x, labels)
    for same in (
        pickle.loads(pickle.dumps(x)),
        x.astype(x.dtype.newbyteorder("=")),
        x.view(np.dtype(dtype, metadata={"a": 1})),
    ):
        loss, grad = fastce.cross_entropy_with_grad(same, labels)
        assert type(loss) is dtype and loss == want
        np.testing.assert_array_equal(grad, want_grad)


def misaligned(array: np.ndarray) -> np.ndarray:
    room = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype)
    room[...] = array
    assert not room.flags.aligned
    return room


def test_vectors_that_are_not_aligned() -> None:
    rng = np.random.default_rng(3)
    x, labels = rng.standard_normal((6, 3)), rng.integers(0, 3, 6)
    vectors = {"weight": rng.uniform(1, 2, 3), "sample_weight": rng.uniform(1, 2, 6), "upstream": rng.uniform(1, 2, 6)}
    want = fastce.cross_entropy_with_grad(x, labels, reduction="none", **vectors)
    odd = {name: misaligned(vector) for name, vector in vectors.items()}
    got = fastce.cross_entropy_with_grad(x, misaligned(labels), reduction="none", **odd)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)
