"""`one_hot`: labels of any layout and dtype, rows of any dtype and axis, wrong calls. (`predict` is in the tables that
other tests take their functions from.)"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from layouts import LAYOUTS

import fastce
import fastce.reference

LABEL_DTYPES = ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i4", ">u8"]


@pytest.fixture(params=[fastce, fastce.reference], ids=["fastce", "reference"])
def package(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize("kind", LABEL_DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_and_dtype_of_labels(layout: str, kind: str) -> None:
    plain = np.random.default_rng(0).integers(0, 100, (7, 11))
    labels = LAYOUTS[layout](plain.astype(kind))
    hot = fastce.one_hot(labels, 100)
    np.testing.assert_array_equal(hot, np.eye(100)[plain])
    assert type(hot) is np.ndarray
    np.testing.assert_array_equal(labels, plain)


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "i1", "i8", "u1", "?", "c8", ">f4"])
def test_dtype_of_rows(package: Any, dtype: str) -> None:
    hot = package.one_hot(np.array([1, 0]), 2, dtype=dtype)
    assert hot.dtype == dtype
    np.testing.assert_array_equal(hot, [[0, 1], [1, 0]])
    assert package.one_hot(np.array([1, 0]), 2, dtype=np.dtype(dtype).type).dtype == np.dtype(dtype).newbyteorder("=")
    assert package.one_hot([1], 2).dtype == np.float32


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
@pytest.mark.parametrize("shape", [(4, 5), (1, 5), (0, 5)])
def test_axis_is_that_of_the_result(package: Any, shape: tuple[int, int], axis: int) -> None:
    labels = np.random.default_rng(1).integers(0, 6, shape)
    hot = package.one_hot(labels, 6, axis=axis)
    assert hot.shape == (*shape[: axis % 3], 6, *shape[axis % 3 :])
    np.testing.assert_array_equal(np.moveaxis(hot, axis, -1), np.eye(6)[labels])


def test_result_can_be_written_to(package: Any) -> None:
    for axis in (-1, 0):
        hot = package.one_hot(np.array([1, 0]), 2, axis=axis)
        hot += 1
        assert hot.sum() == 6


@pytest.mark.parametrize("shape", [(0,), (3, 0)])
def test_no_labels(package: Any, shape: tuple[int, ...]) -> None:
    hot = package.one_hot(np.zeros(shape, int), 4)
    assert hot.shape == (*shape, 4)
    assert hot.dtype == np.float32


@pytest.mark.parametrize("labels, shape", [([], (0, 3)), ((), (0, 3)), ([[], []], (2, 0, 3))], ids=repr)
def test_no_labels_in_a_sequence_without_a_dtype(labels: Any, shape: tuple[int, ...]) -> None:
    assert fastce.one_hot(labels, 3).shape == shape


WRONG_LABELS: dict[str, tuple[Any, Any, str]] = {
    "too large": ([0, 1, 9, 8, 10, 12], IndexError, r"^labels\[4\] is 10, out of range for 10 classes"),
    "negative": ([[0, 1], [-1, 3]], IndexError, r"^labels\[1, 0\] is -1, out of range for 10 classes"),
    "a scalar": (10, IndexError, r"^labels is 10, out of range for 10 classes"),
    "ignored": (np.array([0, -100]), IndexError, r"^labels\[1\] is -100, out of range for 10 classes"),
    "uint8": (np.array([200], np.uint8), IndexError, r"^labels\[0\] is 200, out of range"),
    "uint64": (np.array([2**64 - 1], np.uint64), IndexError, r"^labels\[0\] is 18446744073709551615, out of range"),
    "floats": (np.array([0.0, 1.0]), TypeError, "^labels .*float64"),
    "bools": (np.array([True]), TypeError, "^labels .*bool"),
    "None": (None, TypeError, "^labels .*None"),
    "masked": (np.ma.masked_array([1, 2], mask=False), TypeError, "^labels .*mask"),
    "objects": (np.array([1, 2], object), TypeError, "^labels .*object"),
    "complex": (np.array([1 + 0j]), TypeError, "^labels .*complex128"),
    "text": ("3", TypeError, "^labels "),
}


@pytest.mark.parametrize("wrong", WRONG_LABELS)
def test_wrong_labels(wrong: str) -> None:
    labels, error, says = WRONG_LABELS[wrong]
    with pytest.raises(error, match=says):
        fastce.one_hot(labels, 10)


@pytest.mark.parametrize(
    "options, error, says",
    [
        ({"num_classes": 0}, ValueError, "num_classes .*0"),
        ({"num_classes": -3}, ValueError, "num_classes .*-3"),
        ({"num_classes": 3.0}, TypeError, "num_classes .*3.0"),
        ({"num_classes": True}, TypeError, "num_classes .*True"),
        ({"num_classes": None}, TypeError, "num_classes .*None"),
        ({"axis": 2}, ValueError, "axis .*2"),
        ({"axis": -3}, ValueError, "axis .*-3"),
        ({"axis": 0.5}, TypeError, "axis .*0.5"),
        ({"axis": True}, TypeError, "axis .*True"),
        ({"dtype": "no such"}, TypeError, "no such"),
        ({"dtype": object}, TypeError, "dtype .*object"),
        ({"dtype": "U3"}, TypeError, "dtype .*<U3"),
    ],
    ids=str,
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        fastce.one_hot(np.array([0, 1]), **({"num_classes": 2} | options))


@pytest.mark.parametrize("dtype", [">i8", "<i8", "i1"])
def test_a_single_label_of_any_byte_order(dtype: str) -> None:
    label = np.array(1, dtype)
    np.testing.assert_array_equal(fastce.one_hot(label, 3), [0, 1, 0])
    stats = fastce.block_stats(np.zeros(3), label, class_offset=0, num_classes=3)
    assert fastce.loss_from_stats(stats, label).shape == ()
