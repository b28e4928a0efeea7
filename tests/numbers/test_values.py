"""Values of every function on a grid of shapes and dtypes against the exact ones; dtypes of labels and logits; sums of
many rows and of large numbers."""

from __future__ import annotations

import numpy as np
import pytest
from functions import F32, F64, FAMILIES, INDEX, assert_same_bits, check, dtypes, over
from oracle import needs_longdouble

import fastce

INF = np.inf
LABEL_DTYPES = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]


# ---------------------------------------------------------------------------------------------------------------------
# The grid
# ---------------------------------------------------------------------------------------------------------------------

# Around the widths of the vectors (4 to 16), of the kernels for few classes (64) and of blocks of classes (2048, 4096).
CLASSES = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 1000, 2047, 2048, 2049, 4095, 4097, 50257]
LEADING = {
    1: [(), (1,), (1, 1)],
    2: [(2,), (1, 2, 1)],
    3: [(3,), (3, 1)],
    17: [(17,)],
    130: [(130,), (13, 10), (5, 2, 13)],
}
MOST_LOGITS = {INDEX: 1 << 17}  # of one case: longdouble is slow
MOST_LOGITS_OF_OTHERS = 1 << 15


def _grid_case(family, dtype, rows, classes, axis):
    """Arrays of so many rows. Leading dimensions, spread and dtype of the labels differ from case to case."""
    seed = rows * 100_003 + classes
    rng = np.random.default_rng(seed)
    lead = LEADING[rows][seed % len(LEADING[rows])]
    x = (rng.normal(size=(*lead, classes)) * (1, 4, 20)[seed % 3] + rng.normal(size=(*lead, 1)) * 90).astype(dtype)
    x = np.ascontiguousarray(np.moveaxis(x, -1, axis))
    if not family.has_labels:
        return family.arguments(x, axis=axis, seed=seed)
    label_dtype = LABEL_DTYPES[(seed + seed // 8) % len(LABEL_DTYPES)]
    labels = rng.integers(0, min(classes, np.iinfo(label_dtype).max + 1), lead).astype(label_dtype)
    return family.arguments(x, labels, axis=axis, seed=seed)


@needs_longdouble
@dtypes
@over(FAMILIES)
@pytest.mark.parametrize("classes", CLASSES)
def test_grid_against_exact_values(classes, family, dtype):
    most = MOST_LOGITS.get(family, MOST_LOGITS_OF_OTHERS)
    for rows in sorted({rows if rows * classes <= most else 2 for rows in LEADING}):
        for axis in (-1, 0) if rows in (3, 130) else (-1,):
            arrays = _grid_case(family, dtype, rows, classes, axis)
            want = check(family, arrays, axis=axis)
            assert_same_bits(family, arrays, axis=axis)
            for function in family.functions:
                for value in function(*arrays, axis=axis).values():
                    assert value.dtype == dtype
            if family is not INDEX:  # test_options.py has reductions of the others
                continue
            for reduction in ("mean", "sum"):
                check(family, arrays, axis=axis, reduction=reduction, more=1)
                assert_same_bits(family, arrays, axis=axis, reduction=reduction)
                for function in family.functions[:2]:
                    assert type(function(*arrays, axis=axis, reduction=reduction)["loss"]) is dtype
            _assert_stats_are_right(arrays, want, axis)


def _assert_stats_are_right(arrays, want, axis):
    logits = arrays[0]
    _, stats = fastce.cross_entropy(*arrays, axis=axis, reduction="none", return_stats=True, num_threads=2)
    np.testing.assert_array_equal(stats.row_max, logits.max(axis=axis))
    assert stats.tail.shape == want.tail.shape and stats.tail.dtype == logits.dtype
    options = {"axis": axis, "reduction": "none", "stats": stats}
    one, two = (fastce.cross_entropy_grad(*arrays, **options, num_threads=n) for n in (1, 2))
    np.testing.assert_array_equal(one, two)


# ---------------------------------------------------------------------------------------------------------------------
# Dtypes of labels and logits
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [5, 100])
@pytest.mark.parametrize("label_dtype", LABEL_DTYPES)
def test_every_integer_dtype_of_labels(label_dtype, classes):
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(40, classes)).astype(F32)
    labels = rng.integers(0, classes, 40)
    expected = fastce.cross_entropy_with_grad(logits, labels)
    for given in (labels.astype(label_dtype), labels.astype(np.dtype(label_dtype).newbyteorder())):
        loss, grad = fastce.cross_entropy_with_grad(logits, given)
        assert loss == expected[0]
        np.testing.assert_array_equal(grad, expected[1])


@pytest.mark.parametrize("label_dtype", LABEL_DTYPES)
def test_ignore_index_at_the_ends_of_each_label_dtype(package, label_dtype):
    """-100 does not wrap into an unsigned dtype (156 is a class), and the extremes of each dtype can be ignored."""
    logits = np.random.default_rng(4).normal(size=(3, 200))
    labels = np.array([1, 100, 2], label_dtype)
    if np.iinfo(label_dtype).max >= 156:
        labels[1] = 156
        assert package.cross_entropy(logits, labels, reduction="none")[1] > 0
    for ignored in (np.iinfo(label_dtype).max, np.iinfo(label_dtype).min):
        labels[1] = ignored
        loss = package.cross_entropy(logits, labels, reduction="none", ignore_index=int(ignored))
        np.testing.assert_array_equal(loss == 0, [False, True, False])


INTEGERS = {
    "int": np.array([[1, 5], [2, -3]]),
    "bool": np.array([[True, False], [False, True]]),
    "list": [[1, 2], [3, 4]],
}


@over(FAMILIES)
@pytest.mark.parametrize("kind", INTEGERS)
def test_integer_and_bool_logits_are_float64(package, kind, family):
    targets = np.array([1, 0] if family is INDEX else [[0, 1], [1, 0]])
    others = {"targets": targets, "upstream": np.array([[1, 0], [2, 3]])}
    arrays = [others.get(name, INTEGERS[kind]) for name in family.names]
    wide = [a if name == "targets" else np.asarray(a, F64) for name, a in zip(family.names, arrays, strict=True)]
    for function in family.functions:
        got, want = function(*arrays, package=package), function(*wide, package=package)
        for name in got:
            assert got[name].dtype == F64
            np.testing.assert_array_equal(got[name], want[name])


def test_one_row_without_leading_dimensions(package):
    """A vector of logits and one label: every reduction of one row is that row."""
    logits = np.array([0.5, -1.0, 2.0])
    expected, expected_grad = package.cross_entropy_with_grad(logits[None], np.array([1]))
    for reduction in ("mean", "sum", "none"):
        for label in (1, np.array(1), np.uint8(1)):
            loss, grad = package.cross_entropy_with_grad(logits, label, reduction=reduction)
            assert np.shape(loss) == () and loss == expected
            np.testing.assert_array_equal(grad, expected_grad[0])


@pytest.mark.parametrize(
    "more, fits", [(0, True), (2.0**102, True), (2.0**103, False), (2.0**106, False), (2e38, False)]
)
def test_sum_beyond_float32_is_infinite_without_a_warning(more, fits):
    """It is added up in float64."""
    largest = float(np.finfo(F32).max)  # 2^128 - 2^104; from 2^128 - 2^103 on, float32 rounds to infinity
    logits = np.array([[0, -1024], [0, -1024]], F32)
    targets = np.array([[0, largest / 1024], [0, more / 1024]])
    got = fastce.cross_entropy(logits, targets, reduction="sum")
    assert got == (largest if fits else INF)


@dtypes
def test_mean_is_accumulated_in_float64(package, dtype):
    """2^17 equal losses: a float32 running sum would drift by thousands of eps."""
    rows = 1 << 17
    logits = np.broadcast_to(np.array([0.3, 0.1, 0.7], dtype), (rows, 3))
    labels = np.zeros(rows, np.int64)
    one = package.cross_entropy(logits[:1], labels[:1])
    assert abs(package.cross_entropy(logits, labels) - one) <= 2 * np.finfo(dtype).eps * one
    total = package.cross_entropy(logits, labels, reduction="sum")
    # a float64 sum in order may drift by its own eps at each row
    drift = rows * np.finfo(F64).eps if dtype is F64 else 0
    assert abs(total / rows - one) <= (2 * np.finfo(dtype).eps + drift) * one


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_rows_of_one_hot_are_targets(reduction):
    """Of the one-term form they are their labels."""
    rng = np.random.default_rng(2)
    logits, labels = rng.normal(size=(50, 7)), rng.integers(0, 7, 50)
    loss, grad = fastce.cross_entropy_with_grad(logits, labels, reduction=reduction)
    hot_loss, hot_grad = fastce.cross_entropy_with_grad(logits, fastce.one_hot(labels, 7), reduction=reduction)
    np.testing.assert_allclose(hot_loss, loss, rtol=1e-14)
    np.testing.assert_allclose(hot_grad, grad, rtol=1e-13)
