"""one_hot and predict: the way from labels to rows of probabilities and from logits back to labels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from layouts import LAYOUTS

import fastce
import fastce.reference

INF, NAN = math.inf, math.nan
LABEL_DTYPES = ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i4", ">u8"]
SETTINGS = settings(max_examples=150, deadline=None, derandomize=True)


@pytest.fixture(params=[fastce, fastce.reference], ids=["fastce", "reference"])
def package(request):
    return request.param


# ---------------------------------------------------------------------------------------------------------------------
# one_hot
# ---------------------------------------------------------------------------------------------------------------------


def test_by_hand(package):
    hot = package.one_hot(np.array([2, 0, 1, 2]), 3)
    np.testing.assert_array_equal(hot, [[0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    assert hot.dtype == np.float32
    np.testing.assert_array_equal(package.one_hot(1, 3), [0, 1, 0])
    np.testing.assert_array_equal(package.one_hot([[0], [1]], 2), [[[1, 0]], [[0, 1]]])
    np.testing.assert_array_equal(package.one_hot(np.array([0, 0]), 1), [[1], [1]])


@pytest.mark.parametrize("kind", LABEL_DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_and_dtype_of_labels(layout, kind):
    plain = np.random.default_rng(0).integers(0, 100, (7, 11))
    labels = LAYOUTS[layout](plain.astype(kind))
    hot = fastce.one_hot(labels, 100)
    np.testing.assert_array_equal(hot, np.eye(100)[plain])
    assert type(hot) is np.ndarray
    np.testing.assert_array_equal(labels, plain)


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "i1", "i8", "u1", "?"])
def test_every_dtype_of_rows(package, dtype):
    hot = package.one_hot(np.array([1, 0]), 2, dtype=dtype)
    assert hot.dtype == dtype
    np.testing.assert_array_equal(hot, [[0, 1], [1, 0]])
    assert package.one_hot(np.array([1, 0]), 2, dtype=np.dtype(dtype).type).dtype == dtype


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
@pytest.mark.parametrize("shape", [(4, 5), (1, 5), (0, 5)])
def test_axis_is_that_of_the_result(package, shape, axis):
    labels = np.random.default_rng(1).integers(0, 6, shape)
    hot = package.one_hot(labels, 6, axis=axis)
    assert hot.shape == (*shape[: axis % 3], 6, *shape[axis % 3 :])
    np.testing.assert_array_equal(np.moveaxis(hot, axis, -1), np.eye(6)[labels])


def test_result_can_be_written_to(package):
    for axis in (-1, 0):
        hot = package.one_hot(np.array([1, 0]), 2, axis=axis)
        hot += 1
        assert hot.sum() == 6


@pytest.mark.parametrize("shape", [(0,), (3, 0)])
def test_no_labels(package, shape):
    hot = package.one_hot(np.zeros(shape, int), 4)
    assert hot.shape == (*shape, 4)
    assert hot.dtype == np.float32


def test_rows_are_targets():
    """A one-hot row is its label: to the one-term form, and to `predict`."""
    rng = np.random.default_rng(2)
    logits, labels = rng.normal(size=(50, 7)), rng.integers(0, 7, 50)
    loss, grad = fastce.cross_entropy_with_grad(logits, labels)
    hot_loss, hot_grad = fastce.cross_entropy_with_grad(logits, fastce.one_hot(labels, 7))
    assert hot_loss == pytest.approx(float(loss), rel=1e-14)
    np.testing.assert_allclose(hot_grad, grad, rtol=1e-13)


@pytest.mark.parametrize("labels, shape", [([], (0, 3)), ((), (0, 3)), ([[], []], (2, 0, 3))], ids=repr)
def test_no_labels_in_a_sequence_without_a_dtype(labels, shape):
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
def test_wrong_labels(wrong):
    labels, error, says = WRONG_LABELS[wrong]
    with pytest.raises(error, match=says):
        fastce.one_hot(labels, 10)


@pytest.mark.parametrize(
    "options, error, says",
    [
        ({"num_classes": 0}, ValueError, "num_classes .*0"),
        ({"num_classes": -3}, ValueError, "num_classes .*-3"),
        ({"num_classes": 3.0}, TypeError, "num_classes .*3.0"),
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
def test_wrong_options(options, error, says):
    with pytest.raises(error, match=says):
        fastce.one_hot(np.array([0, 1]), **({"num_classes": 2} | options))


# ---------------------------------------------------------------------------------------------------------------------
# predict
# ---------------------------------------------------------------------------------------------------------------------


def test_first_maximum_by_hand(package):
    logits = np.array([[1, 3, 2], [5, 0, 5], [-1, -1, -1], [-INF, -2, -3], [0, -0.0, 0]])
    got = package.predict(logits)
    np.testing.assert_array_equal(got, [1, 0, 0, 1, 0])
    assert got.dtype == np.intp
    np.testing.assert_array_equal(package.predict(logits, axis=0), [1, 0, 1])
    assert package.predict(logits[0]) == 1
    assert np.shape(package.predict(logits[0])) == ()


@pytest.mark.parametrize(
    "row, at",
    [
        ([0, INF, INF], 1),
        ([-INF, -INF, -INF], 0),
        ([0, NAN, 9], 1),
        ([INF, 0, NAN], 2),
        ([NAN, INF, NAN], 0),
        ([-INF, -INF, -5], 2),
    ],
)
@pytest.mark.parametrize("width", [3, 100, 5000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_special_numbers(package, dtype, width, row, at):
    """NaN counts as the largest, as in np.argmax."""
    logits = np.full((2, width), -INF, dtype)
    logits[:, -3:] = row
    if row != [-INF, -INF, -INF]:
        at += width - 3
    np.testing.assert_array_equal(package.predict(logits), [at, at])
    np.testing.assert_array_equal(package.predict(logits.T, axis=0), [at, at])


@pytest.mark.parametrize("kind", ["f4", "f8", "i1", "i8", "u8", "?", ">f4", ">i2"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_and_dtype_of_logits(layout, kind):
    plain = np.random.default_rng(3).integers(0, 2 if kind == "?" else 100, (33, 40)).astype(kind)
    logits = LAYOUTS[layout](plain)
    got = fastce.predict(logits)
    assert type(got) is np.ndarray and got.dtype == np.intp
    np.testing.assert_array_equal(got, np.argmax(plain, axis=1))
    np.testing.assert_array_equal(fastce.predict(logits, axis=0), np.argmax(plain, axis=0))
    np.testing.assert_array_equal(logits, plain)


@SETTINGS
@given(
    logits=hnp.arrays(
        st.sampled_from([np.float32, np.float64]),
        hnp.array_shapes(min_dims=1, max_dims=4, max_side=9),
        elements=st.sampled_from([-INF, -1.0, -0.0, 0.0, 1.0, 2.0, INF, NAN]),
    ),
    data=st.data(),
)
def test_predict_is_argmax(logits, data):
    axis = data.draw(st.integers(-logits.ndim, logits.ndim - 1))
    np.testing.assert_array_equal(fastce.predict(logits, axis=axis), np.argmax(logits, axis=axis))
    finite = np.nan_to_num(logits, posinf=9, neginf=-9)
    np.testing.assert_array_equal(
        np.take_along_axis(
            fastce.softmax(finite, axis=axis), np.expand_dims(fastce.predict(finite, axis=axis), axis), axis
        ),
        fastce.softmax(finite, axis=axis).max(axis=axis, keepdims=True),
    )


@SETTINGS
@given(
    labels=hnp.arrays(
        st.sampled_from(LABEL_DTYPES), hnp.array_shapes(min_dims=0, max_dims=3), elements=st.integers(0, 11)
    ),
    classes=st.integers(12, 40),
    data=st.data(),
)
def test_round_trip(labels, classes, data):
    """predict(one_hot(labels)) is labels; each row has a one, and the sum of ones is the count of labels."""
    axis = data.draw(st.integers(-labels.ndim - 1, labels.ndim))
    hot = fastce.one_hot(labels, classes, axis=axis)
    assert hot.shape[axis] == classes
    np.testing.assert_array_equal(fastce.predict(hot, axis=axis), labels)
    np.testing.assert_array_equal(hot.sum(axis=axis), np.ones(labels.shape))
    assert ((hot == 0) | (hot == 1)).all()


@pytest.mark.parametrize("shape", [(0, 5), (3, 0, 5)])
def test_no_rows(package, shape):
    got = package.predict(np.zeros(shape))
    assert got.shape == shape[:-1] and got.dtype == np.intp


@pytest.mark.parametrize(
    "logits, options, error, says",
    [
        (None, {}, TypeError, "logits .*None"),
        (np.ma.masked_array([1.0, 2], mask=False), {}, TypeError, "logits .*mask"),
        (np.array([1, 2], object), {}, TypeError, "logits .*object"),
        (np.array([1 + 1j]), {}, TypeError, "logits .*complex128"),
        (np.zeros((3, 0)), {}, ValueError, "logits .*class"),
        (1.5, {}, ValueError, "logits .*dimension"),
        (np.zeros((3, 2)), {"axis": 2}, ValueError, "axis .*2"),
        (np.zeros((3, 2)), {"axis": 0.0}, TypeError, "axis .*0.0"),
        (np.zeros((3, 2)), {"axis": None}, TypeError, "axis .*None"),
    ],
    ids=["None", "masked", "object", "complex", "no classes", "scalar", "axis", "float axis", "no axis"],
)
def test_wrong_calls(logits, options, error, says):
    with pytest.raises(error, match=f"^{says}"):
        fastce.predict(logits, **options)
