"""Every way to call fastce wrongly: the right exception, a message that names the argument, what was expected and what
came, and an `out` that nothing was written to. And the calls that look wrong but are not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import fastce

ROWS, CLASSES = 20, 10
RNG = np.random.default_rng(3)
LOGITS = RNG.standard_normal((ROWS, CLASSES), dtype=np.float32)
LABELS = RNG.integers(CLASSES, size=ROWS)
PROBABILITIES = np.full((ROWS, CLASSES), 1 / CLASSES, np.float32)
SENTINEL = 12345.0
COMMON = {
    "weight",
    "sample_weight",
    "ignore_index",
    "label_smoothing",
    "z_loss",
    "reduction",
    "normalizer",
    "axis",
    "num_threads",
}
ACCEPTS = {
    "cross_entropy": COMMON,
    "cross_entropy_with_grad": COMMON | {"upstream", "out"},
    "cross_entropy_grad": COMMON | {"upstream", "out", "stats"},
    "CrossEntropyLoss": COMMON,
}


def layer(logits: Any, targets: Any, **options: Any) -> Any:
    return fastce.CrossEntropyLoss(**options)(logits, targets)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "cross_entropy": fastce.cross_entropy,
    "cross_entropy_with_grad": fastce.cross_entropy_with_grad,
    "cross_entropy_grad": fastce.cross_entropy_grad,
    "CrossEntropyLoss": layer,
}


def labels_with(value: int, at: int = 17, dtype: Any = np.int64) -> np.ndarray:
    labels = LABELS.astype(dtype)
    labels[at] = value
    return labels


def weights_with(value: float, size: int = CLASSES) -> np.ndarray:
    weights = np.ones(size)
    weights[3] = value
    return weights


def masked(values: np.ndarray) -> np.ma.MaskedArray:
    return np.ma.masked_array(values, mask=np.zeros(values.shape, bool))


def unaligned(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    itemsize = np.dtype(dtype).itemsize
    return np.zeros(int(np.prod(shape)) * itemsize + 1, np.uint8)[1:].view(dtype).reshape(shape)


def read_only(shape: tuple[int, ...]) -> np.ndarray:
    out = np.zeros(shape, np.float32)
    out.flags.writeable = False
    return out


def stats(row_max: Any, tail: Any = None) -> Any:
    return fastce.SoftmaxStats(row_max, row_max if tail is None else tail)


class Text:
    """An object that NumPy cannot see as a number."""


f4, f8 = np.float32, np.float64
per_row, per_class = np.ones(ROWS, f4), np.ones(CLASSES, f4)

# What is passed, what is raised, what the message says. Keyed by argument, so that every id says what is wrong.
WRONG: dict[str, list[tuple[str, dict[str, Any], type[Exception], str]]] = {
    "logits": [
        ("None", {"logits": None}, TypeError, r"logits .*None"),
        ("masked", {"logits": masked(LOGITS)}, TypeError, r"logits .*mask"),
        ("object", {"logits": LOGITS.astype(object)}, TypeError, r"logits .*object"),
        ("strings", {"logits": LOGITS.astype(str)}, TypeError, r"logits .*<U"),
        ("complex", {"logits": LOGITS.astype(complex)}, TypeError, r"logits .*complex128"),
        ("float16", {"logits": LOGITS.astype(np.float16)}, TypeError, r"logits .*float16.*float32"),
        ("longdouble", {"logits": LOGITS.astype(np.longdouble)}, TypeError, r"logits .*(float128|longdouble|float96)"),
        ("dates", {"logits": LOGITS.astype("m8[s]")}, TypeError, r"logits .*timedelta64"),
        ("records", {"logits": np.zeros((ROWS, CLASSES), [("a", f4)])}, TypeError, r"logits "),
        ("a text", {"logits": "logits"}, TypeError, r"logits "),
        ("an object", {"logits": Text()}, TypeError, r"logits is Text, expected an array"),
        ("ragged", {"logits": [[1.0, 2.0], [3.0]]}, (TypeError, ValueError), r"logits "),
        ("0-d", {"logits": f4(1), "targets": 0}, ValueError, r"logits .*dimension"),
        ("no classes", {"logits": np.zeros((ROWS, 0), f4)}, ValueError, r"logits .*class"),
    ],
    "targets": [
        ("None", {"targets": None}, TypeError, r"targets .*None"),
        ("masked", {"targets": masked(LABELS)}, TypeError, r"targets .*mask"),
        ("float labels", {"targets": LABELS.astype(f8)}, TypeError, r"targets .*float64.*astype"),
        ("float16 labels", {"targets": LABELS.astype(np.float16)}, TypeError, r"targets .*float16.*astype"),
        ("bool labels", {"targets": LABELS > 4}, TypeError, r"targets .*bool"),
        ("object labels", {"targets": LABELS.astype(object)}, TypeError, r"targets .*object"),
        ("complex labels", {"targets": LABELS.astype(complex)}, TypeError, r"targets .*complex128"),
        ("strings", {"targets": LABELS.astype(str)}, TypeError, r"targets .*<U"),
        ("ragged", {"targets": [[1], [2, 3]]}, (TypeError, ValueError), r"targets "),
        ("too few", {"targets": LABELS[:-1]}, ValueError, r"targets .*\(19,\).*\(20, 10\)"),
        ("a column", {"targets": LABELS[:, None]}, ValueError, r"targets .*\(20, 1\).*\(20, 10\)"),
        ("a scalar", {"targets": 3}, ValueError, r"targets .*\(\).*\(20, 10\)"),
        ("transposed", {"targets": PROBABILITIES.T}, ValueError, r"targets .*\(10, 20\).*\(20, 10\)"),
        ("complex rows", {"targets": PROBABILITIES.astype(complex)}, TypeError, r"targets .*complex128"),
        ("object rows", {"targets": PROBABILITIES.astype(object)}, TypeError, r"targets .*object"),
        ("masked rows", {"targets": masked(PROBABILITIES)}, TypeError, r"targets .*mask"),
    ],
    "labels": [
        (
            "as documented",
            {"targets": labels_with(12)},
            IndexError,
            r"^targets\[17\] is 12, out of range for 10 classes \(ignore_index is -100\)$",
        ),
        ("just above", {"targets": labels_with(10)}, IndexError, r"^targets\[17\] is 10, out of range for 10 classes"),
        ("negative", {"targets": labels_with(-1)}, IndexError, r"^targets\[17\] is -1, out of range"),
        ("two", {"targets": np.where(np.arange(ROWS) % 9 == 3, 99, LABELS)}, IndexError, r"^targets\[3\] is 99,"),
        ("int8", {"targets": labels_with(-100, dtype=np.int8), "ignore_index": 5}, IndexError, r"\[17\] is -100, .*5"),
        ("uint8", {"targets": labels_with(255, dtype=np.uint8)}, IndexError, r"^targets\[17\] is 255, out of range"),
        ("uint8 as -100", {"targets": labels_with(156, dtype=np.uint8)}, IndexError, r"^targets\[17\] is 156, out of"),
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
        ("int64 min", {"targets": labels_with(-(2**63))}, IndexError, r"^targets\[17\] is -9223372036854775808, out"),
        ("2**32", {"targets": labels_with(2**32)}, IndexError, r"^targets\[17\] is 4294967296, out of range"),
        (
            "byte-swapped",
            {"targets": labels_with(12).astype(">i8" if np.little_endian else "<i8")},
            IndexError,
            r"^targets\[17\] is 12, out",
        ),
        ("a list", {"targets": labels_with(12).tolist()}, IndexError, r"^targets\[17\] is 12, out"),
        (
            "two dimensions",
            {"logits": np.zeros((4, 6, 10), f4), "targets": np.where(np.arange(24).reshape(4, 6) == 23, -7, 0)},
            IndexError,
            r"^targets\[3, 5\] is -7, out of range for 10 classes",
        ),
        (
            "axis 1",
            {"logits": np.zeros((4, 3, 6), f4), "targets": np.full((4, 6), 3), "axis": 1},
            IndexError,
            r"^targets\[0, 0\] is 3, out of range for 3 classes",
        ),
        ("scalar", {"logits": LOGITS[0], "targets": 11}, IndexError, r"^targets is 11, out of range for 10 classes"),
        (
            "nothing ignored",
            {"targets": labels_with(-100), "ignore_index": None},
            IndexError,
            r"^targets\[17\] is -100, out of range for 10 classes \(ignore_index is None\)$",
        ),
    ],
    "weight": [
        ("a scalar", {"weight": 2.0}, ValueError, r"weight .*\(\).*\(10,\)"),
        ("per row", {"weight": per_row}, ValueError, r"weight .*\(20,\).*\(10,\)"),
        ("two dimensions", {"weight": per_class[None]}, ValueError, r"weight .*\(1, 10\).*\(10,\)"),
        ("complex", {"weight": per_class * 1j}, TypeError, r"weight .*complex"),
        ("object", {"weight": per_class.astype(object)}, TypeError, r"weight .*object"),
        ("Nones", {"weight": [None] * CLASSES}, TypeError, r"weight .*object"),
        ("ragged", {"weight": [[1], [2, 3]]}, (TypeError, ValueError), r"weight "),
        ("strings", {"weight": ["a"] * CLASSES}, TypeError, r"weight .*<U"),
        ("masked", {"weight": masked(per_class)}, TypeError, r"weight .*mask"),
        ("NaN", {"weight": weights_with(np.nan)}, ValueError, r"weight\[3\] is nan"),
        ("infinite", {"weight": weights_with(np.inf)}, ValueError, r"weight\[3\] is inf"),
        ("negative", {"weight": weights_with(-0.5)}, ValueError, r"weight\[3\] is -0\.5"),
        ("beyond float32", {"weight": weights_with(1e300)}, ValueError, r"weight\[3\] is 1e\+300.*finite in float32"),
    ],
    "sample_weight": [
        ("a scalar", {"sample_weight": 2.0}, ValueError, r"sample_weight .*\(\).*\(20,\)"),
        ("per class", {"sample_weight": per_class}, ValueError, r"sample_weight .*\(10,\).*\(20,\)"),
        ("a column", {"sample_weight": per_row[:, None]}, ValueError, r"sample_weight .*\(20, 1\).*\(20,\)"),
        ("complex", {"sample_weight": per_row * 1j}, TypeError, r"sample_weight .*complex"),
        ("masked", {"sample_weight": masked(per_row)}, TypeError, r"sample_weight .*mask"),
        ("NaN", {"sample_weight": weights_with(np.nan, ROWS)}, ValueError, r"sample_weight\[3\] is nan"),
        ("infinite", {"sample_weight": weights_with(np.inf, ROWS)}, ValueError, r"sample_weight\[3\] is inf"),
        ("negative", {"sample_weight": weights_with(-2, ROWS)}, ValueError, r"sample_weight\[3\] is -2"),
    ],
    "ignore_index": [
        ("a float", {"ignore_index": 1.0}, TypeError, r"ignore_index .*(1\.0|float)"),
        ("a text", {"ignore_index": "1"}, TypeError, r"ignore_index .*('1'|str)"),
        ("an array", {"ignore_index": np.array([1, 2])}, TypeError, r"ignore_index "),
    ],
    "label_smoothing": [
        ("above", {"label_smoothing": 1.5}, ValueError, r"label_smoothing .*1\.5"),
        ("below", {"label_smoothing": -0.1}, ValueError, r"label_smoothing .*-0\.1"),
        ("NaN", {"label_smoothing": np.nan}, ValueError, r"label_smoothing .*nan"),
        ("None", {"label_smoothing": None}, TypeError, r"label_smoothing is None, expected a number"),
        ("a text", {"label_smoothing": "0.1"}, TypeError, r"label_smoothing .*('0.1'|str|<U)"),
        ("an array", {"label_smoothing": per_class}, ValueError, r"label_smoothing .*\(10,\)"),
        ("complex", {"label_smoothing": 1j}, TypeError, r"label_smoothing .*(1j|complex)"),
    ],
    "z_loss": [
        ("negative", {"z_loss": -1e-4}, ValueError, r"z_loss .*-0\.0001"),
        ("NaN", {"z_loss": np.nan}, ValueError, r"z_loss .*nan"),
        ("infinite", {"z_loss": np.inf}, ValueError, r"z_loss .*inf"),
        ("too large for a float", {"z_loss": 10**400}, (ValueError, OverflowError), r"z_loss "),
        ("None", {"z_loss": None}, TypeError, r"z_loss .*None"),
        ("a text", {"z_loss": "0"}, TypeError, r"z_loss .*('0'|str|<U)"),
    ],
    "reduction": [
        ("unknown", {"reduction": "avg"}, ValueError, r"reduction .*'avg'.*mean.*sum.*none|reduction .*mean.*'avg'"),
        ("upper case", {"reduction": "Mean"}, ValueError, r"reduction .*'Mean'"),
        ("None", {"reduction": None}, (TypeError, ValueError), r"reduction .*None"),
        ("a list", {"reduction": ["mean"]}, (TypeError, ValueError), r"reduction "),
        ("an array", {"reduction": np.array(["mean", "sum"])}, (TypeError, ValueError), r"reduction "),
    ],
    "normalizer": [
        ("zero", {"normalizer": 0}, ValueError, r"normalizer .*\b0"),
        ("negative", {"normalizer": -3.0}, ValueError, r"normalizer .*-3"),
        ("NaN", {"normalizer": np.nan}, ValueError, r"normalizer .*nan"),
        ("infinite", {"normalizer": np.inf}, ValueError, r"normalizer .*inf"),
        ("a text", {"normalizer": "4"}, TypeError, r"normalizer .*('4'|str|<U)"),
        ("of a sum", {"normalizer": 4.0, "reduction": "sum"}, ValueError, r"normalizer .*'sum'"),
        ("an array", {"normalizer": per_row}, ValueError, r"normalizer .*\(20,\)"),
    ],
    "axis": [
        ("too large", {"axis": 2}, ValueError, r"axis .*2"),
        ("too small", {"axis": -3}, ValueError, r"axis .*-3"),
        ("huge", {"axis": 2**70}, ValueError, r"axis "),
        ("a float", {"axis": 1.0}, TypeError, r"axis .*(1\.0|float)"),
        ("the default as a float", {"axis": -1.0}, TypeError, r"axis .*(-1\.0|float)"),
        ("an array", {"axis": np.array([0, 1])}, TypeError, r"axis "),
        ("None", {"axis": None}, TypeError, r"axis .*None"),
        ("a bool", {"axis": True}, TypeError, r"axis .*True"),
        ("a tuple", {"axis": (1,)}, TypeError, r"axis .*(\(1,\)|tuple)"),
    ],
    "num_threads": [
        (repr(value), {"num_threads": value}, ValueError, rf"num_threads .*{found}")
        for value, found in [(0, "0"), (-1, "-1"), (True, "True"), (1.5, r"1\.5"), ("2", "'2'"), (np.nan, "nan")]
    ],
    "upstream": [
        ("None", {"upstream": None}, TypeError, r"upstream .*None"),
        ("a text", {"upstream": "1"}, TypeError, r"upstream .*('1'|str|<U)"),
        ("complex", {"upstream": 1j}, TypeError, r"upstream .*complex"),
        ("masked", {"upstream": masked(per_row), "reduction": "none"}, TypeError, r"upstream .*mask"),
        ("too large for a float", {"upstream": 10**400}, (ValueError, OverflowError), r"upstream "),
        ("ragged", {"upstream": [[1], [2, 3]], "reduction": "none"}, (TypeError, ValueError), r"upstream "),
        ("per row of a mean", {"upstream": per_row}, ValueError, r"upstream .*\(20,\)"),
        ("per row of a sum", {"upstream": per_row, "reduction": "sum"}, ValueError, r"upstream .*\(20,\)"),
        ("too few", {"upstream": per_row[1:], "reduction": "none"}, ValueError, r"upstream .*\(19,\).*\(20,\)"),
        ("a column", {"upstream": per_row[:, None], "reduction": "none"}, ValueError, r"upstream .*\(20, 1\)"),
    ],
    "out": [
        ("a list", {"out": LOGITS.tolist()}, TypeError, r"out .*list"),
        ("a number", {"out": 0.0}, TypeError, r"out .*float"),
        ("masked", {"out": masked(LOGITS.copy())}, TypeError, r"^out .*MaskedArray"),
        (
            "another dtype",
            {"out": np.zeros((ROWS, CLASSES), f8)},
            ValueError,
            r"^out has dtype float64, expected float32 to match logits",
        ),
        (
            "too wide for integers",
            {"logits": LOGITS.astype(int), "out": np.zeros((ROWS, CLASSES), f4)},
            ValueError,
            r"^out has dtype float32, expected float64",
        ),
        ("another shape", {"out": np.zeros((CLASSES, ROWS), f4)}, ValueError, r"^out .*\(10, 20\).*\(20, 10\)"),
        ("flat", {"out": np.zeros(ROWS * CLASSES, f4)}, ValueError, r"^out .*\(200,\).*\(20, 10\)"),
        ("read-only", {"out": read_only((ROWS, CLASSES))}, ValueError, r"^out .*(read-only|writ)"),
        ("byte-swapped", {"out": np.zeros((ROWS, CLASSES), f4).astype(">f4")}, ValueError, r"^out .*(byte|>f4)"),
        ("unaligned", {"out": unaligned((ROWS, CLASSES))}, ValueError, r"^out .*align"),
        (
            "one row for all",
            {"out": np.lib.stride_tricks.as_strided(np.zeros(CLASSES, f4), (ROWS, CLASSES), (0, 4))},
            ValueError,
            r"^out .*overlap",
        ),
        (
            "a sliding window",
            {"out": np.lib.stride_tricks.as_strided(np.zeros(ROWS + CLASSES, f4), (ROWS, CLASSES), (4, 4))},
            ValueError,
            r"^out .*overlap",
        ),
    ],
    "stats": [
        ("a number", {"stats": 5}, TypeError, r"stats .*(int|5)"),
        ("one array", {"stats": per_row}, TypeError, r"stats "),
        ("masked", {"stats": stats(masked(per_row))}, TypeError, r"stats.*mask"),
        ("Nones", {"stats": stats(None, None)}, TypeError, r"stats.*None"),
        ("too few", {"stats": stats(per_row[1:])}, ValueError, r"stats.*\(19,\).*\(20,\)"),
        ("tail too short", {"stats": stats(per_row, per_row[1:])}, ValueError, r"stats.*tail.*\(19,\).*\(20,\)"),
        ("another dtype", {"stats": stats(per_row.astype(f8))}, (TypeError, ValueError), r"stats.*float64.*float32"),
        ("complex", {"stats": stats(per_row * 1j)}, (TypeError, ValueError), r"stats.*complex"),
    ],
}


def _cases() -> Iterator[Any]:
    for argument, entries in WRONG.items():
        for what, keywords, error, message in entries:
            for name, accepted in ACCEPTS.items():
                if set(keywords) <= accepted | {"logits", "targets"}:
                    yield pytest.param(name, keywords, error, message, id=f"{argument}: {what}-{name}")


@pytest.mark.parametrize("name, keywords, error, message", list(_cases()))
def test_wrong_argument_is_named_and_nothing_is_written(
    name: str, keywords: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {"logits": LOGITS, "targets": LABELS} | keywords
    before = LOGITS.tobytes(), LABELS.tobytes(), PROBABILITIES.tobytes()
    out = arguments.get("out")
    if "out" in ACCEPTS[name] and out is None and isinstance(arguments["logits"], np.ndarray):
        # What would be the right buffer, had the rest been right.
        dtype = arguments["logits"].dtype
        out = arguments["out"] = np.zeros(arguments["logits"].shape, dtype if dtype.kind == "f" else f8)
    if isinstance(out, np.ndarray) and out.flags.writeable:
        out[...] = SENTINEL
    kept = np.array(out)
    with pytest.raises(error, match=message):
        FUNCTIONS[name](**arguments)
    assert np.array_equal(np.array(out), kept)
    assert (LOGITS.tobytes(), LABELS.tobytes(), PROBABILITIES.tobytes()) == before


@pytest.mark.parametrize("name", ["cross_entropy", "cross_entropy_with_grad", "cross_entropy_grad"])
def test_options_are_keywords_only_and_unknown_ones_refused(name: str) -> None:
    function = FUNCTIONS[name]
    with pytest.raises(TypeError, match="positional"):
        function(LOGITS, LABELS, None)
    with pytest.raises(TypeError, match="wieght"):
        function(LOGITS, LABELS, wieght=None)
    with pytest.raises(TypeError, match="targets"):
        function(LOGITS)


def test_unknown_option_of_the_layer_is_refused_when_it_is_made() -> None:
    with pytest.raises(TypeError, match="wieght"):
        fastce.CrossEntropyLoss(wieght=None)


def test_backward_before_forward_says_so() -> None:
    with pytest.raises(RuntimeError, match="backward.*(call|forward)|(call|forward).*backward"):
        fastce.CrossEntropyLoss().backward()


@pytest.mark.parametrize(
    "keywords, error, message",
    [
        ({"upstream": None}, TypeError, r"upstream .*None"),
        ({"upstream": per_row}, ValueError, r"upstream .*\(20,\)"),
        ({"out": np.zeros((ROWS, CLASSES))}, ValueError, r"^out has dtype float64, expected float32"),
    ],
)
def test_errors_of_the_layers_backward(keywords: dict[str, Any], error: type[Exception], message: str) -> None:
    ce = fastce.CrossEntropyLoss()
    ce(LOGITS, LABELS)
    with pytest.raises(error, match=message):
        ce.backward(**keywords)


@pytest.mark.parametrize("mode", ["dict", 3])
def test_show_config_names_its_modes(mode: Any) -> None:
    with pytest.raises(ValueError, match=r"mode .*dicts"):
        fastce.show_config(mode=mode)


# ---------------------------------------------------------------------------------------------------------------------
# What looks wrong and is not
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [ROWS, 10**6, 2**31, 2**40, 2**70, np.int64(2), np.uint8(1)])
def test_any_number_of_threads_is_taken(threads: int) -> None:
    loss, grad = fastce.cross_entropy_with_grad(LOGITS, LABELS, num_threads=threads)
    expected_loss, expected = fastce.cross_entropy_with_grad(LOGITS, LABELS, num_threads=1)
    assert loss == expected_loss
    assert grad.tobytes() == expected.tobytes()


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
    expected = fastce.cross_entropy(LOGITS, LABELS, ignore_index=None, reduction="none")
    if ignored:
        labels[4] = dtype(ignore_index)
        expected[4] = 0
    losses = fastce.cross_entropy(LOGITS, labels, ignore_index=ignore_index, reduction="none")
    assert losses.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.uint64])
def test_a_label_that_wraps_to_ignore_index_is_kept(dtype: type) -> None:
    logits = RNG.standard_normal((3, 200), dtype=np.float32)
    labels = np.array([156 if dtype == np.uint8 else 100, 1, 2]).astype(dtype)  # uint8 156 has the bits of int8 -100
    losses = fastce.cross_entropy(logits, labels, reduction="none")
    assert (losses > 0).all()


def test_ignored_labels_need_not_be_in_range() -> None:
    labels = labels_with(-7, 2)
    labels[17] = -7
    losses = fastce.cross_entropy(LOGITS, labels, ignore_index=-7, reduction="none")
    assert np.flatnonzero(losses == 0).tolist() == [2, 17]


def test_out_whose_strides_interleave_without_overlap_is_taken() -> None:
    logits = LOGITS[:2, :3]
    for shape, strides in [((2, 3), (12, 8)), ((2, 3), (4, 8)), ((1, 3), (0, 4)), ((2, 1), (4, 0))]:
        part = np.s_[: shape[0], : shape[1]]
        out = np.lib.stride_tricks.as_strided(np.zeros(8, f4), shape, strides)
        labels = [0, 1 % shape[1]][: shape[0]]
        assert fastce.cross_entropy_grad(logits[part], labels, out=out) is out
        np.testing.assert_array_equal(out, fastce.cross_entropy_grad(logits[part].copy(), labels))


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_matrices_and_other_subclasses_are_plain_arrays_here() -> None:
    class Tagged(np.ndarray):
        pass

    expected = fastce.cross_entropy_with_grad(LOGITS, LABELS)
    for logits in (np.matrix(LOGITS), LOGITS.view(Tagged)):
        loss, grad = fastce.cross_entropy_with_grad(logits, LABELS.view(Tagged))
        assert loss == expected[0]
        assert type(loss) is np.float32
        assert type(grad) is np.ndarray
        assert grad.tobytes() == expected[1].tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("classes", [3, 10, 300])
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
def test_no_warning_leaks_whatever_the_logits_hold(dtype: type, classes: int, kind: str) -> None:
    logits = np.zeros((8, classes), dtype)
    logits[0], logits[1], logits[2], logits[3, 0] = np.nan, np.inf, -np.inf, -np.inf
    logits[4, 1], logits[5], logits[6, 0] = np.finfo(dtype).max, -np.finfo(dtype).max, np.finfo(dtype).tiny
    targets: Any = np.array([0, 0, 0, 0, 0, 0, 0, -100])
    if kind == "probabilities":
        targets = np.eye(classes)[targets * (targets > 0)]
    options: dict[str, Any] = {"weight": np.linspace(0, 1, classes), "label_smoothing": 0.1, "z_loss": 1e-3}
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        for keywords in ({}, options, options | {"reduction": "none"}, {"reduction": "sum"}):
            fastce.cross_entropy_with_grad(logits, targets, **keywords)
            loss, stats = fastce.cross_entropy(logits, targets, **keywords, return_stats=True)
            fastce.cross_entropy_grad(logits, targets, **keywords, stats=stats)
        assert np.isnan(fastce.cross_entropy(logits[:0], targets[:0]))
        if kind == "labels":
            loss, grad = fastce.cross_entropy_with_grad(logits, np.full(8, -100))
            assert np.isnan(loss)
            assert not grad.any()
