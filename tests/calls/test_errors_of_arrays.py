"""Wrong arrays: every function raises the right error. Its message names the argument, what was expected and what came.
Nothing is written."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from wrong_calls import (
    CLASSES,
    F32,
    F64,
    KINDS,
    LABELS,
    LOGITS,
    LOSSES,
    PER_CLASS,
    PER_ROW,
    PROBABILITIES,
    ROWS,
    TWO_TERM,
    Entry,
    Function,
    assert_refused,
    each_wrong_call,
    masked,
    with_value,
)

import fastce

ONE_TERM, PRODUCT, SIGMOID, SOFTMAX = (frozenset([kind]) for kind in ("one term", "product", "sigmoid", "softmax"))
TypeOrValueError = (TypeError, ValueError)


class Text:
    """An object that NumPy cannot see as a number."""


def labels_with(value: int, at: int = 17, dtype: Any = np.int64) -> np.ndarray:
    labels = LABELS.astype(dtype)
    labels[at] = value
    return labels


def probabilities_with(value: float) -> np.ndarray:
    targets = PROBABILITIES.copy()
    targets[17, 3] = value
    return targets


class Masked:
    """What is no array, but becomes a masked one."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = masked(values)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.values


# Entries that are wrong for any argument that is an array of numbers: the argument, the right array.
def not_numbers(name: str, right: np.ndarray) -> list[Entry]:
    says = "{main}" if name == "main" else name
    return [
        ("None", {name: None}, TypeError, f"^{says} .*None"),
        ("masked", {name: masked(right)}, TypeError, f"^{says} .*mask"),
        ("masked in a list", {name: [masked(right)]}, TypeError, f"^{says} .*mask"),
        ("masked elements", {name: [np.ma.masked] * ROWS}, TypeError, f"^{says} .*mask"),
        ("masked as an array", {name: Masked(right)}, TypeError, f"^{says} .*mask"),
        ("objects", {name: right.astype(object)}, TypeError, f"^{says} .*object"),
        ("strings", {name: right.astype(str)}, TypeError, f"^{says} .*<U"),
        ("complex", {name: right.astype(complex)}, TypeError, f"^{says} .*complex128"),
        ("dates", {name: right.astype("m8[s]")}, TypeError, f"^{says} .*timedelta64"),
        ("records", {name: np.zeros(right.shape, [("a", F32)])}, TypeError, f"^{says} "),
        ("a text", {name: "numbers"}, TypeError, f"^{says} "),
        ("an object", {name: Text()}, TypeError, f"^{says} is Text, expected an array"),
        ("a dict", {name: {0: right}}, TypeError, f"^{says} is dict, expected an array"),
        ("a generator", {name: (row for row in right)}, TypeError, f"^{says} is generator, expected an array"),
        ("ragged", {name: [[1.0, 2.0], [3.0]]}, TypeOrValueError, f"^{says} "),
    ]


# Where long doubles are no longer than doubles, they are float64.
LONGDOUBLE: list[Entry] = [
    ("longdouble", {"main": LOGITS.astype(np.longdouble)}, TypeError, "^{main} .*(float128|longdouble|float96)")
][: np.dtype(np.longdouble).itemsize > 8]

WRONG: dict[str, tuple[frozenset[str], list[Entry]]] = {
    "logits, x or y": (
        KINDS,
        [
            *not_numbers("main", LOGITS),
            *LONGDOUBLE,
            ("a scalar", {"main": F32(1)}, ValueError, "^{main} .*dimension"),
            ("a number", {"main": 1.5}, ValueError, "^{main} .*dimension"),
        ],
    ),
    "logits or y": (
        KINDS - {"rows"},  # an empty sum has a logarithm
        [
            ("no classes", {"main": np.zeros((ROWS, 0), F32)}, ValueError, "^{main} .*class"),
            ("no classes or rows", {"main": np.zeros((0, 0), F32)}, ValueError, "^{main} .*class"),
        ],
    ),
    "logits": (
        LOSSES,
        [
            ("a scalar with its target", {"logits": F32(1), "targets": 0}, ValueError, "^logits .*dimension"),
            (
                "no classes with their targets",
                {"logits": LOGITS[:, :0], "targets": PROBABILITIES[:, :0]},
                ValueError,
                "^logits .*class",
            ),
        ],
    ),
    "class indices": (
        ONE_TERM,
        [
            *not_numbers("targets", LABELS),
            ("floats", {"targets": LABELS.astype(F64)}, TypeError, "^targets .*float64.*astype"),
            ("float16", {"targets": LABELS.astype(np.float16)}, TypeError, "^targets .*float16.*astype"),
            ("bools", {"targets": LABELS > 4}, TypeError, "^targets .*bool"),
            ("too few", {"targets": LABELS[:-1]}, ValueError, r"^targets .*\(19,\).*\(20, 10\)"),
            ("a column", {"targets": LABELS[:, None]}, ValueError, r"^targets .*\(20, 1\).*\(20, 10\)"),
            ("a scalar", {"targets": 3}, ValueError, r"^targets .*\(\).*\(20, 10\)"),
        ],
    ),
    "probabilities": (
        ONE_TERM,
        [
            ("transposed", {"targets": PROBABILITIES.T}, ValueError, r"^targets .*\(10, 20\).*\(20, 10\)"),
            ("complex", {"targets": PROBABILITIES.astype(complex)}, TypeError, "^targets .*complex128"),
            ("objects", {"targets": PROBABILITIES.astype(object)}, TypeError, "^targets .*object"),
            ("masked", {"targets": masked(PROBABILITIES)}, TypeError, "^targets .*mask"),
            (
                "negative",
                {"targets": probabilities_with(-0.5)},
                ValueError,
                r"^targets\[17, 3\] is -0\.5, expected pro",
            ),
            ("NaN", {"targets": probabilities_with(np.nan)}, ValueError, r"^targets\[17, 3\] is nan, expected pro"),
            ("infinite", {"targets": probabilities_with(np.inf)}, ValueError, r"^targets\[17, 3\] is inf, .*finite"),
            ("logits", {"targets": -np.abs(LOGITS)}, ValueError, r"^targets\[0, 0\] is -.*, expected probabilities"),
            (
                "of ints",
                {"targets": labels_with(-1)[:, None] + 0 * LOGITS.astype(int)},
                ValueError,
                r"\[17, 0\] is -1,",
            ),
        ],
    ),
    "targets of both terms": (
        TWO_TERM,
        [
            *not_numbers("targets", PROBABILITIES),
            ("class indices", {"targets": LABELS}, ValueError, r"^targets .*\(20,\).*\(20, 10\).*one_hot"),
            ("transposed", {"targets": PROBABILITIES.T}, ValueError, r"^targets .*\(10, 20\).*\(20, 10\)"),
            ("a scalar", {"targets": 1.0}, ValueError, r"^targets .*\(\).*\(20, 10\)"),
            ("a column", {"targets": PROBABILITIES[:, :1]}, ValueError, r"^targets .*\(20, 1\).*\(20, 10\)"),
        ],
    ),
    "labels": (
        frozenset(["evaluate"]),
        [
            *not_numbers("labels", LABELS),
            ("floats", {"labels": LABELS.astype(F64)}, TypeError, "^labels .*float64.*astype"),
            ("bools", {"labels": LABELS > 4}, TypeError, "^labels .*bool"),
            (
                "too few",
                {"labels": LABELS[:-1]},
                ValueError,
                r"^labels .*\(19,\), expected \(20,\) \(class indices\) for",
            ),
            ("probabilities", {"labels": PROBABILITIES}, ValueError, r"^labels .*\(20, 10\), expected \(20,\)"),
            (
                "out of range",
                {"labels": labels_with(12)},
                IndexError,
                r"^labels\[17\] is 12, out of range for 10 classes \(ignore_index is -100\)$",
            ),
        ],
    ),
    "a label": (
        ONE_TERM,
        [
            (
                "as documented",
                {"targets": labels_with(12)},
                IndexError,
                r"^targets\[17\] is 12, out of range for 10 classes \(ignore_index is -100\)$",
            ),
            (
                "nothing ignored",
                {"targets": labels_with(-100), "ignore_index": None},
                IndexError,
                r"^targets\[17\] is -100, out of .* \(ignore_index is None\); pass ignore_index=-100",
            ),
            (
                "just above",
                {"targets": labels_with(10)},
                IndexError,
                r"^targets\[17\] is 10, out of range for 10 classes",
            ),
            (
                "negative",
                {"targets": labels_with(-1)},
                IndexError,
                r"^targets\[17\] is -1, .*; pass ignore_index=-1 if",
            ),
            (
                "NaN",
                {"targets": np.where(LABELS == LABELS[4], np.nan, 0.0)},
                TypeError,
                r"\] is nan, which is no class$",
            ),
            (
                "of another axis",
                {"logits": np.zeros((2, 5, 4)), "targets": np.zeros((2, 4), int)},
                ValueError,
                r"^targets has shape \(2, 4\), .*; did you mean axis=1\?$",
            ),
            (
                "in a column",
                {"targets": LABELS[:, None]},
                ValueError,
                r"^targets has shape \(20, 1\), .*; did you mean targets\.reshape\(\(20,\)\)\?$",
            ),
            ("two", {"targets": np.where(np.arange(ROWS) % 9 == 3, 99, LABELS)}, IndexError, r"^targets\[3\] is 99,"),
            ("all", {"targets": np.arange(45, 65)}, IndexError, r"^targets\[0\] is 45,"),
            (
                "int8",
                {"targets": labels_with(-100, dtype=np.int8), "ignore_index": 5},
                IndexError,
                r"\[17\] is -100, .*5",
            ),
            (
                "uint8",
                {"targets": labels_with(255, dtype=np.uint8)},
                IndexError,
                r"^targets\[17\] is 255, out of range",
            ),
            (
                "uint8 as -100",
                {"targets": labels_with(156, dtype=np.uint8)},
                IndexError,
                r"^targets\[17\] is 156, out of",
            ),
            (
                "uint64 as -100",
                {"targets": labels_with(2**64 - 100, dtype=np.uint64)},
                IndexError,
                r"^targets\[17\] is 18446744073709551516, out of range",
            ),
            (
                "uint64 2**63",
                {"targets": labels_with(2**63, dtype=np.uint64)},
                IndexError,
                r"^targets\[17\] is 9223372036854775808, out of range",
            ),
            (
                "int64 min",
                {"targets": labels_with(-(2**63))},
                IndexError,
                r"^targets\[17\] is -9223372036854775808, out",
            ),
            (
                "int64 max",
                {"targets": labels_with(2**63 - 1)},
                IndexError,
                r"^targets\[17\] is 9223372036854775807, out",
            ),
            ("2**32", {"targets": labels_with(2**32)}, IndexError, r"^targets\[17\] is 4294967296, out of range"),
            (
                "byte-swapped",
                {"targets": labels_with(12).astype(np.dtype(np.int64).newbyteorder())},
                IndexError,
                r"^targets\[17\] is 12, out",
            ),
            ("a list", {"targets": labels_with(12).tolist()}, IndexError, r"^targets\[17\] is 12, out"),
            ("reversed", {"targets": labels_with(12)[::-1]}, IndexError, r"^targets\[2\] is 12, out"),
            (
                "two dimensions",
                {"logits": np.zeros((4, 6, 10), F32), "targets": np.where(np.arange(24).reshape(4, 6) == 23, -7, 0)},
                IndexError,
                r"^targets\[3, 5\] is -7, out of range for 10 classes",
            ),
            (
                "Fortran order",
                {
                    "logits": np.zeros((4, 6, 10), F32, order="F"),
                    "targets": np.where(np.arange(24).reshape(4, 6) % 6 == 5, -7, 0),
                },
                IndexError,
                r"^targets\[0, 5\] is -7, out of range for 10 classes",
            ),
            (
                "axis 1",
                {"logits": np.zeros((4, 3, 6), F32), "targets": np.full((4, 6), 3), "axis": 1},
                IndexError,
                r"^targets\[0, 0\] is 3, out of range for 3 classes",
            ),
            ("scalar", {"logits": LOGITS[0], "targets": 11}, IndexError, "^targets is 11, out of range for 10 classes"),
        ],
    ),
    "weight": (
        LOSSES,
        [
            *[entry for entry in not_numbers("weight", PER_CLASS) if entry[0] != "None"],
            ("a scalar", {"weight": 2.0}, ValueError, r"^weight .*\(\).*\(10,\)"),
            ("per row", {"weight": PER_ROW}, ValueError, r"^weight .*\(20,\).*\(10,\)"),
            ("per element", {"weight": np.ones((ROWS, CLASSES))}, ValueError, r"^weight .*\(20, 10\).*\(10,\)"),
            ("two dimensions", {"weight": PER_CLASS[None]}, ValueError, r"^weight .*\(1, 10\).*\(10,\)"),
            ("Nones", {"weight": [None] * CLASSES}, TypeError, "^weight .*object"),
            ("a list of strings", {"weight": ["a"] * CLASSES}, TypeError, "^weight .*<U"),
            ("NaN", {"weight": with_value(np.nan)}, ValueError, r"^weight\[3\] is nan"),
            ("infinite", {"weight": with_value(np.inf)}, ValueError, r"^weight\[3\] is inf"),
            ("negative", {"weight": with_value(-0.5)}, ValueError, r"^weight\[3\] is -0\.5"),
            ("beyond float32", {"weight": with_value(1e39)}, ValueError, r"^weight\[3\] is 1e\+39.*finite in float32"),
            ("far beyond", {"weight": with_value(1e300)}, ValueError, r"^weight\[3\] is 1e\+300.*finite in float32"),
        ],
    ),
    "sample_weight": (
        LOSSES,
        [
            *[entry for entry in not_numbers("sample_weight", PER_ROW) if entry[0] != "None"],
            ("a scalar", {"sample_weight": 2.0}, ValueError, r"^sample_weight .*\(\).*\(20,\)"),
            ("per class", {"sample_weight": PER_CLASS}, ValueError, r"^sample_weight .*\(10,\).*\(20,\)"),
            ("per element", {"sample_weight": np.ones((20, 10))}, ValueError, r"^sample_weight .*\(20, 10\).*\(20,\)"),
            ("a column", {"sample_weight": PER_ROW[:, None]}, ValueError, r"^sample_weight .*\(20, 1\).*\(20,\)"),
            ("NaN", {"sample_weight": with_value(np.nan, ROWS)}, ValueError, r"^sample_weight\[3\] is nan"),
            ("infinite", {"sample_weight": with_value(np.inf, ROWS)}, ValueError, r"^sample_weight\[3\] is inf"),
            ("negative", {"sample_weight": with_value(-2, ROWS)}, ValueError, r"^sample_weight\[3\] is -2"),
        ],
    ),
    "sample_weight in two dimensions": (
        ONE_TERM,
        [
            (
                "negative",
                {
                    "logits": np.zeros((4, 5, 10), F32),
                    "targets": np.zeros((4, 5), int),
                    "sample_weight": np.where(np.arange(20) == 16, -2, 1).reshape(4, 5),
                },
                ValueError,
                r"^sample_weight\[3, 1\] is -2",
            )
        ],
    ),
    "pos_weight": (
        SIGMOID,
        [
            *[entry for entry in not_numbers("pos_weight", PER_CLASS) if entry[0] != "None"],
            ("a scalar", {"pos_weight": 2.0}, ValueError, r"^pos_weight .*\(\).*\(10,\)"),
            ("per row", {"pos_weight": PER_ROW}, ValueError, r"^pos_weight .*\(20,\).*\(10,\)"),
            ("NaN", {"pos_weight": with_value(np.nan)}, ValueError, r"^pos_weight\[3\] is nan"),
            ("negative", {"pos_weight": with_value(-1)}, ValueError, r"^pos_weight\[3\] is -1\.0"),
            ("beyond float32", {"pos_weight": with_value(1e39)}, ValueError, r"^pos_weight\[3\] is 1e\+39.*in float32"),
        ],
    ),
    "pos_weight of softmax": (
        SOFTMAX,
        [
            ("right for sigmoid", {"pos_weight": PER_CLASS}, ValueError, "^pos_weight .*sigmoid"),
            ("wrong for both", {"pos_weight": with_value(-1)}, ValueError, "^pos_weight "),
        ],
    ),
    "upstream of one number": (
        LOSSES,
        [
            ("None", {"upstream": None}, TypeError, "^upstream .*None"),
            ("a text", {"upstream": "1"}, TypeError, "^upstream .*('1'|str|<U)"),
            ("complex", {"upstream": 1j}, TypeError, "^upstream .*complex"),
            ("too large for a float", {"upstream": 10**400}, (ValueError, OverflowError), "^upstream "),
            ("per row of a mean", {"upstream": PER_ROW}, ValueError, r"^upstream .*\(20,\)"),
            ("per row of a sum", {"upstream": PER_ROW, "reduction": "sum"}, ValueError, r"^upstream .*\(20,\)"),
            ("None of none", {"upstream": None, "reduction": "none"}, TypeError, "^upstream .*None"),
            ("masked", {"upstream": masked(PER_ROW), "reduction": "none"}, TypeError, "^upstream .*mask"),
            ("ragged", {"upstream": [[1], [2, 3]], "reduction": "none"}, TypeOrValueError, "^upstream "),
            ("complex of none", {"upstream": PER_ROW * 1j, "reduction": "none"}, TypeError, "^upstream .*complex"),
        ],
    ),
    "upstream of each row": (
        ONE_TERM | SOFTMAX | {"entropy", "divergence"},
        [
            ("too few", {"upstream": PER_ROW[1:], "reduction": "none"}, ValueError, r"^upstream .*\(19,\).*\(20,\)"),
            ("a column", {"upstream": PER_ROW[:, None], "reduction": "none"}, ValueError, r"^upstream .*\(20, 1\)"),
            ("of elements", {"upstream": LOGITS, "reduction": "none"}, ValueError, r"^upstream .*\(20, 10\).*\(20,\)"),
        ],
    ),
    "upstream of each element": (
        SIGMOID,
        [("of rows", {"upstream": PER_ROW, "reduction": "none"}, ValueError, r"^upstream .*\(20,\).*\(20, 10\)")],
    ),
    "upstream of a product": (
        PRODUCT,
        [
            *not_numbers("upstream", LOGITS),
            ("a scalar", {"upstream": F32(1)}, ValueError, r"^upstream .*\(\).*\(20, 10\)"),
            *[
                (str(shape), {"upstream": np.ones(shape, F32)}, ValueError, rf"^upstream .*\({shape[0]}.*\(20, 10\)")
                for shape in [(20,), (10,), (20, 1), (1, 10), (10, 20), (1, 20, 10), (20, 0)]
            ],
        ],
    ),
}


@each_wrong_call(WRONG)
def test_wrong_array_is_named_and_nothing_is_written(
    function: Function, arguments: dict[str, Any], error: Any, message: str
) -> None:
    assert_refused(function, arguments, error, message)


def stats(row_max: Any, tail: Any = None) -> Any:
    return fastce.SoftmaxStats(row_max, row_max if tail is None else tail)


WRONG_STATS: list[tuple[str, Any, Any, str]] = [
    ("a number", 5, TypeError, "stats .*(int|5)"),
    ("one array", PER_ROW, TypeError, "stats "),
    ("three arrays", (PER_ROW, PER_ROW, PER_ROW), TypeError, "stats "),
    ("masked", stats(masked(PER_ROW)), TypeError, "stats.*mask"),
    ("Nones", stats(None, None), TypeError, "stats.*None"),
    ("too few", stats(PER_ROW[1:]), ValueError, r"stats.*\(19,\).*\(20,\)"),
    ("tail too short", stats(PER_ROW, PER_ROW[1:]), ValueError, r"stats.*tail.*\(19,\).*\(20,\)"),
    ("another dtype", stats(PER_ROW.astype(F64)), TypeOrValueError, "stats.*float64.*float32"),
    ("complex", stats(PER_ROW * 1j), TypeOrValueError, "stats.*complex"),
]


@each_wrong_call({"stats": (ONE_TERM, [(what, {"stats": given}, *rest) for what, given, *rest in WRONG_STATS])})
def test_wrong_stats(function: Function, arguments: dict[str, Any], error: Any, message: str) -> None:
    assert_refused(function, arguments, error, message)


# ---------------------------------------------------------------------------------------------------------------------
# What looks wrong and is not
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype, ignore_index, ignored",
    [
        (np.uint8, 255, True),
        (np.uint8, -1, False),  # no label of that type is -1
        (np.int8, -1, True),
        (np.int16, -(2**15), True),
        (np.uint16, 2**16 - 1, True),
        (np.int32, 2**31 - 1, True),
        (np.int64, -(2**63), True),
        (np.uint64, 2**63, True),
        (np.uint64, 2**64 - 100, True),
        (np.int64, 2**64 - 100, False),
        (np.int64, 2**70, False),
        (np.int64, np.int8(-100), True),
        (np.uint8, np.uint64(255), True),
    ],
)
def test_ignore_index_is_compared_by_value(dtype: type, ignore_index: int, ignored: bool) -> None:
    labels = LABELS.astype(dtype)
    want = fastce.cross_entropy(LOGITS, LABELS, ignore_index=None, reduction="none")
    if ignored:
        labels[4] = dtype(ignore_index)
        want[4] = 0
    losses = fastce.cross_entropy(LOGITS, labels, ignore_index=ignore_index, reduction="none")
    assert losses.tobytes() == want.tobytes()


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.uint64])
def test_a_label_with_the_bits_of_ignore_index_is_not_ignored(dtype: type) -> None:
    logits = np.random.default_rng(3).standard_normal((3, 200), dtype=F32)
    labels = np.array([156 if dtype == np.uint8 else 100, 1, 2]).astype(dtype)  # uint8 156 has the bits of int8 -100
    losses = fastce.cross_entropy(logits, labels, reduction="none")
    assert (losses > 0).all()


def test_ignored_labels_need_not_be_in_range() -> None:
    labels = labels_with(-7, 2)
    labels[17] = -7
    losses = fastce.cross_entropy(LOGITS, labels, ignore_index=-7, reduction="none")
    assert np.flatnonzero(losses == 0).tolist() == [2, 17]


STORED = ["f2", "f4", "f8", ">f4", "i1", "i2", "i4", "i8"]
SHAPES: list[tuple[tuple[int, ...], int]] = [((30, 10), 1), ((3, 70000), 1), ((300, 300), 1), ((4, 6, 5, 3), 1)]


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("shape, axis", SHAPES, ids=str)
def test_negative_or_infinite_probabilities_are_found_wherever_they_are(
    shape: tuple[int, ...], axis: int, dtype: str
) -> None:
    """In every storage and memory order, whether the result is a new array or one that may not be written to."""
    logits, right = np.zeros(shape, F32), np.ones(shape, dtype)
    right[(0,) * len(shape)] = 0
    places = [(0,) * len(shape), tuple(n - 1 for n in shape), tuple(n // 2 for n in shape)]
    orders = {"C": np.ascontiguousarray, "F": np.asfortranarray, "strided": lambda a: np.repeat(a, 2, -1)[..., ::2]}
    for name, order in orders.items():
        targets = order(right)
        out = np.full_like(logits, 7)
        call = partial(fastce.cross_entropy_with_grad, logits, targets, axis=axis)
        want = call()[1]
        np.testing.assert_array_equal(call(out=out)[1], want)
        for at in places:
            for wrong in [-1] if targets.dtype.kind == "i" else [-1, -1e-7, np.inf, -np.inf, np.nan]:
                kept, targets[at], out[...] = targets[at], wrong, 7
                for options in ({}, {"out": out}, {"num_threads": 2}):
                    with pytest.raises(ValueError, match=rf"^targets\[{', '.join(map(str, at))}\] is .*probabilities"):
                        call(**options)
                assert (out == 7).all(), name
                targets[at] = kept


def test_probabilities_that_are_negative_zeros_or_do_not_count_are_right() -> None:
    targets = PROBABILITIES.copy()
    targets[4] = [-0.0] * 9 + [1]
    want = fastce.cross_entropy_with_grad(LOGITS, np.abs(targets))
    for out in (None, np.empty_like(LOGITS)):
        for got, expected in zip(fastce.cross_entropy_with_grad(LOGITS, targets, out=out), want, strict=True):
            np.testing.assert_array_equal(got, expected)
    counts = PER_ROW.copy()
    counts[17] = 0
    options = {"sample_weight": counts, "reduction": "none"}
    want = fastce.cross_entropy_with_grad(LOGITS, targets, **options)
    for value in (-1, np.nan, np.inf):
        targets[17] = value
        for out in (None, np.empty_like(LOGITS)):
            got = fastce.cross_entropy_with_grad(LOGITS, targets, out=out, **options)
            np.testing.assert_array_equal(got[0], want[0])
            np.testing.assert_array_equal(got[1], want[1])


def test_what_else_probabilities_may_be() -> None:
    """They need not sum to 1, so a mask of 0 and 255 is 255 times one of 0 and 1. No label is compared with
    `ignore_index`. Targets of the two-term form may be any numbers."""
    mask = np.eye(CLASSES, dtype=np.uint8)[LABELS]
    loss, grad = fastce.cross_entropy_with_grad(LOGITS, mask * 255)
    want, want_grad = fastce.cross_entropy_with_grad(LOGITS, mask)
    np.testing.assert_allclose(loss, 255 * want, rtol=1e-6)
    np.testing.assert_allclose(grad, 255 * want_grad, rtol=1e-5)
    for ignored in (0, 1, None):
        assert fastce.cross_entropy(LOGITS, mask, ignore_index=ignored) == want
    outside = (
        fastce.binary_cross_entropy(np.float64([[1]]), [[-1]]),
        fastce.binary_cross_entropy(np.float64([[1]]), [[3]]),
    )
    np.testing.assert_allclose(outside, [np.log1p(np.e) + 1, np.log1p(np.e) - 3])


class Claims(np.ndarray):
    """An array that tells another shape and dtype than it has."""

    shape = property(lambda self: (ROWS, CLASSES))  # type: ignore[assignment]
    dtype = property(lambda self: np.dtype(F32))  # type: ignore[assignment]


class SaysItIsAnArray:
    __class__ = np.ndarray  # type: ignore[assignment]


@pytest.mark.parametrize("real", [((2, CLASSES), F32), ((ROWS, CLASSES), np.int8)], ids=["shape", "dtype"])
def test_out_is_what_it_is_and_not_what_it_says(real: tuple[tuple[int, ...], Any]) -> None:
    memory = np.full(2 * ROWS * CLASSES, 7, real[1])
    out = memory[: int(np.prod(real[0]))].reshape(real[0]).view(Claims)
    assert out.shape == LOGITS.shape and out.dtype == LOGITS.dtype
    for call in (
        lambda: fastce.softmax(LOGITS, out=out),
        lambda: fastce.cross_entropy_with_grad(LOGITS, LABELS, out=out),
        lambda: fastce.cross_entropy_grad_hess(LOGITS, LABELS, out=(out, np.empty_like(LOGITS))),
        lambda: fastce.cross_entropy_grad_hess(LOGITS, LABELS, out=(np.empty_like(LOGITS), out)),
    ):
        with pytest.raises(ValueError, match=r"^out.* has (shape|dtype)"):
            call()
    assert (memory == 7).all()


def test_an_object_that_says_it_is_an_array_is_none() -> None:
    with pytest.raises(TypeError, match="^logits "):
        fastce.CrossEntropyLoss()(SaysItIsAnArray(), LABELS)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="^out is SaysItIsAnArray, expected numpy.ndarray"):
        fastce.softmax(LOGITS, out=SaysItIsAnArray())  # type: ignore[call-overload]
