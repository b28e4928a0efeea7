"""Wrong options and a wrong `out`: every function raises the right error. Its message names the option, what was
expected and what came. Nothing is written."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from calling import CASES, DTYPES, Case, each_case, takes_out
from layouts import unaligned
from numpy.lib.stride_tricks import as_strided
from wrong_calls import (
    CLASSES,
    F32,
    FUNCTIONS,
    KINDS,
    LOGITS,
    LOSSES,
    PER_CLASS,
    PER_ROW,
    ROWS,
    TWO_TERM,
    Entry,
    Function,
    assert_refused,
    each_wrong_call,
    masked,
)

import fastce

ONE_TERM = frozenset(["one term"])
TypeOrValueError = (TypeError, ValueError)
NO_NUMBERS_OF_THREADS = {0: "0", -1: "-1", True: "True", 1.5: r"1\.5", 0.5: r"0\.5", "2": "'2'", np.nan: "nan"}

WRONG: dict[str, tuple[frozenset[str], list[Entry]]] = {
    "ignore_index": (
        ONE_TERM | {"evaluate"},
        [
            ("a float", {"ignore_index": 1.0}, TypeError, r"^ignore_index .*(1\.0|float)"),
            ("a text", {"ignore_index": "1"}, TypeError, "^ignore_index .*('1'|str)"),
            ("a bool", {"ignore_index": True}, TypeError, "^ignore_index is True, expected an int or None"),
            ("an array", {"ignore_index": np.array([1, 2])}, TypeError, "^ignore_index "),
        ],
    ),
    "label_smoothing": (
        ONE_TERM,
        [
            ("above", {"label_smoothing": 1.5}, ValueError, r"^label_smoothing .*1\.5"),
            ("below", {"label_smoothing": -0.1}, ValueError, r"^label_smoothing .*-0\.1"),
            ("NaN", {"label_smoothing": np.nan}, ValueError, "^label_smoothing .*nan"),
            ("None", {"label_smoothing": None}, TypeError, "^label_smoothing is None, expected a number"),
            ("a text", {"label_smoothing": "0.1"}, TypeError, "^label_smoothing .*('0.1'|str|<U)"),
            ("an array", {"label_smoothing": PER_CLASS}, ValueError, r"^label_smoothing .*\(10,\)"),
            ("complex", {"label_smoothing": 1j}, TypeError, "^label_smoothing .*(1j|complex)"),
        ],
    ),
    "z_loss": (
        ONE_TERM,
        [
            ("negative", {"z_loss": -1e-4}, ValueError, r"^z_loss .*-0\.0001"),
            ("NaN", {"z_loss": np.nan}, ValueError, "^z_loss .*nan"),
            ("infinite", {"z_loss": np.inf}, ValueError, "^z_loss .*inf"),
            ("too large for a float", {"z_loss": 10**400}, (ValueError, OverflowError), "^z_loss "),
            ("None", {"z_loss": None}, TypeError, "^z_loss .*None"),
            ("a text", {"z_loss": "0"}, TypeError, "^z_loss .*('0'|str|<U)"),
        ],
    ),
    "temperature": (
        ONE_TERM | {"map", "rows", "product", "entropy", "evaluate", "divergence"},
        [
            ("zero", {"temperature": 0}, ValueError, r"^temperature is 0\.0, expected a number in \[1e-15, 1e15\]"),
            ("negative", {"temperature": -1.0}, ValueError, r"^temperature is -1\.0"),
            ("too small", {"temperature": 1e-31}, ValueError, "^temperature is 1e-31"),
            ("too large", {"temperature": 1e31}, ValueError, r"^temperature is 1e\+31"),
            ("NaN", {"temperature": np.nan}, ValueError, "^temperature is nan"),
            ("infinite", {"temperature": np.inf}, ValueError, "^temperature is inf"),
            ("None", {"temperature": None}, TypeError, "^temperature is None, expected a number"),
            ("a text", {"temperature": "1"}, TypeError, "^temperature .*('1'|str|<U)"),
            ("an array", {"temperature": PER_CLASS}, ValueError, r"^temperature .*\(10,\)"),
        ],
    ),
    "softcap": (
        ONE_TERM | {"map", "rows", "entropy", "evaluate", "divergence"},
        [
            ("zero", {"softcap": 0}, ValueError, r"^softcap is 0\.0, expected None or a number in \[1e-15, 1e15\]"),
            ("negative", {"softcap": -1.0}, ValueError, r"^softcap is -1\.0"),
            ("NaN", {"softcap": np.nan}, ValueError, "^softcap is nan"),
            ("infinite", {"softcap": np.inf}, ValueError, "^softcap is inf"),
            ("a text", {"softcap": "1"}, TypeError, "^softcap .*('1'|str|<U)"),
            ("an array", {"softcap": PER_CLASS}, ValueError, r"^softcap .*\(10,\)"),
        ],
    ),
    "subnormals": (
        LOSSES | {"map", "product"},
        [
            ("unknown", {"subnormals": "zero"}, ValueError, "^subnormals is 'zero', expected 'keep' or 'flush'"),
            ("None", {"subnormals": None}, ValueError, "^subnormals is None"),
            ("a bool", {"subnormals": True}, ValueError, "^subnormals is True"),
        ],
    ),
    "reduction": (
        LOSSES,
        [
            ("unknown", {"reduction": "avg"}, ValueError, "^reduction .*'avg'.*'mean', 'sum' or 'none'"),
            ("upper case", {"reduction": "Mean"}, ValueError, "^reduction .*'Mean'"),
            ("None", {"reduction": None}, TypeOrValueError, "^reduction .*None"),
            ("a list", {"reduction": ["mean"]}, TypeOrValueError, "^reduction "),
            ("an array", {"reduction": np.array(["mean", "sum"])}, TypeOrValueError, "^reduction "),
        ],
    ),
    "normalizer": (
        LOSSES,
        [
            ("zero", {"normalizer": 0}, ValueError, r"^normalizer .*\b0"),
            ("negative", {"normalizer": -3.0}, ValueError, "^normalizer .*-3"),
            ("NaN", {"normalizer": np.nan}, ValueError, "^normalizer .*nan"),
            ("infinite", {"normalizer": np.inf}, ValueError, "^normalizer .*inf"),
            ("a text", {"normalizer": "4"}, TypeError, "^normalizer .*('4'|str|<U)"),
            ("of a sum", {"normalizer": 4.0, "reduction": "sum"}, ValueError, "^normalizer .*'sum'"),
            ("of none", {"normalizer": 4.0, "reduction": "none"}, ValueError, "^normalizer .*'none'"),
            ("an array", {"normalizer": PER_ROW}, ValueError, r"^normalizer .*\(20,\)"),
        ],
    ),
    "top_k": (
        frozenset(["evaluate"]),
        [
            ("zero", {"top_k": 0}, ValueError, "^top_k is 0, expected an int >= 1"),
            ("zero among others", {"top_k": (1, 0)}, ValueError, "^top_k is 0"),
            ("a float", {"top_k": 1.0}, TypeError, r"^top_k is 1\.0"),
            ("a bool", {"top_k": True}, TypeError, "^top_k is True"),
            ("a text", {"top_k": "1"}, TypeError, "^top_k is '1'"),
            ("None", {"top_k": None}, TypeError, "^top_k is None"),
        ],
    ),
    "activation": (
        TWO_TERM,
        [
            ("unknown", {"activation": "relu"}, ValueError, "^activation .*'relu'.*'sigmoid'.*'softmax'"),
            ("None", {"activation": None}, ValueError, "^activation .*None.*'sigmoid'.*'softmax'"),
            ("a list", {"activation": ["sigmoid"]}, TypeOrValueError, "^activation "),
        ],
    ),
    "axis": (
        KINDS,
        [
            ("too large", {"axis": 2}, ValueError, "^axis .*2"),
            ("too small", {"axis": -3}, ValueError, "^axis .*-3"),
            ("huge", {"axis": 2**70}, ValueError, "^axis "),
            ("a float", {"axis": 1.0}, TypeError, r"^axis .*(1\.0|float)"),
            ("the default as a float", {"axis": -1.0}, TypeError, r"^axis .*(-1\.0|float)"),
            ("an array", {"axis": np.array([0, 1])}, TypeError, "^axis "),
            ("a bool", {"axis": True}, TypeError, "^axis .*True"),
            ("a list", {"axis": [1]}, TypeError, r"^axis .*(\[1\]|list)"),
        ],
    ),
    "several axes": (  # calls/test_scipy_habits.py has those of the other functions
        KINDS - {"map", "rows", "product"},
        [
            ("None", {"axis": None}, TypeError, "^axis .*None"),
            ("a tuple", {"axis": (1,)}, TypeError, r"^axis .*(\(1,\)|tuple)"),
        ],
    ),
    "num_threads": (
        KINDS,
        [
            (repr(value), {"num_threads": value}, ValueError, f"^num_threads .*{found}")
            for value, found in NO_NUMBERS_OF_THREADS.items()
        ],
    ),
}


def test_every_option_has_wrong_values() -> None:
    """Those of arrays and stats are in test_errors_of_arrays.py, those of `out` below; return_stats, return_rows and
    keepdims have none."""
    elsewhere = {"targets", "weight", "pos_weight", "sample_weight", "upstream", "stats", "out"}
    elsewhere |= {"return_stats", "return_rows", "keepdims"}
    options = {name for function in FUNCTIONS.values() for name in function.options}
    assert sorted(options - elsewhere - WRONG.keys()) == []


@each_wrong_call(WRONG)
def test_wrong_option_is_named_and_nothing_is_written(
    function: Function, arguments: dict[str, Any], error: Any, message: str
) -> None:
    assert_refused(function, arguments, error, message)


def read_only(shape: tuple[int, ...]) -> np.ndarray:
    out = np.zeros(shape, F32)
    out.flags.writeable = False
    return out


# Buffers for a result of the shape (20, 10), or (20,) for logsumexp: what is wrong, the buffer, error, message.
WRONG_OUT: list[tuple[str, Any, Any, str]] = [
    ("a list", lambda s: np.zeros(s).tolist(), TypeError, "^out .*list"),
    ("a number", lambda s: 0.0, TypeError, "^out .*float"),
    ("masked", lambda s: masked(np.zeros(s, F32)), TypeError, "^out .*MaskedArray"),
    ("another dtype", np.zeros, ValueError, "^out has dtype float64, expected float32 to match {main}"),
    ("integers", lambda s: np.zeros(s, np.int32), ValueError, "^out has dtype int32, expected float32"),
    ("another shape", lambda s: np.zeros((*s[:-1], s[-1] + 1), F32), ValueError, "^out .*{wrong}.*{right}"),
    ("more dimensions", lambda s: np.zeros((*s, 1), F32), ValueError, "^out .*{wrong}.*{right}"),
    ("flat", lambda s: np.zeros(ROWS * CLASSES, F32), ValueError, "^out .*{wrong}.*{right}"),
    ("transposed", lambda s: np.zeros((CLASSES, ROWS), F32), ValueError, "^out .*{wrong}.*{right}"),
    ("read-only", read_only, ValueError, "^out .*(read-only|writ)"),
    ("byte-swapped", lambda s: np.zeros(s, np.dtype(F32).newbyteorder()), ValueError, "^out .*(byte|[<>]f4)"),
    ("unaligned", lambda s: unaligned(np.zeros(s, F32)), ValueError, "^out .*align"),
    (
        "one row for all",
        lambda s: as_strided(np.zeros(CLASSES, F32), s, (0, 4)[: len(s)]),
        ValueError,
        "^out .*overlap",
    ),
    ("windows", lambda s: as_strided(np.zeros(99, F32), s, (4, 4) if len(s) > 1 else (2,)), ValueError, "^out "),
    ("broadcast", lambda s: np.broadcast_to(np.zeros(1, F32), s), ValueError, "^out "),
]


@pytest.mark.parametrize("what, make, error, message", WRONG_OUT, ids=[wrong[0] for wrong in WRONG_OUT])
@pytest.mark.parametrize("function", [f for f in FUNCTIONS.values() if "out" in f.options], ids=lambda f: f.name)
def test_wrong_out(function: Function, what: str, make: Any, error: Any, message: str) -> None:
    right = (ROWS,) if function.kind == "rows" else (ROWS, CLASSES)
    out = make(right)

    def in_pattern(shape: tuple[int, ...]) -> str:
        return str(shape).replace("(", r"\(").replace(")", r"\)")

    message = message.replace("{main}", function.main).replace("{right}", in_pattern(right))
    assert_refused(function, {"out": out}, error, message.replace("{wrong}", in_pattern(np.shape(out))))


@pytest.mark.parametrize("function", [f for f in FUNCTIONS.values() if "out" in f.options], ids=lambda f: f.name)
def test_out_for_integers_is_float64(function: Function) -> None:
    arguments = {
        function.main: LOGITS.astype(int),
        "out": np.zeros((ROWS, CLASSES)[: 1 + (function.kind != "rows")], F32),
    }
    assert_refused(function, arguments, ValueError, "^out has dtype float32, expected float64")


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=lambda f: f.name)
def test_options_are_keywords_only_and_unknown_ones_are_refused(function: Function) -> None:
    positional = [value for name, value in function.right.items() if name != "activation"]
    with pytest.raises(TypeError, match="positional"):
        function.call(*positional, None)
    with pytest.raises(TypeError, match="wieght"):
        function.call(*positional, wieght=None)
    with pytest.raises(TypeError, match=list(function.right)[-1] if len(positional) == 1 else "target|labels|y"):
        function.call(*positional[:-1])


@pytest.mark.parametrize("function", [f for f in FUNCTIONS.values() if f.kind in TWO_TERM], ids=lambda f: f.name)
def test_options_of_the_one_term_form_are_not_taken(function: Function) -> None:
    for option in ("ignore_index", "label_smoothing", "z_loss", "return_stats"):
        with pytest.raises(TypeError, match=option):
            function.call(**function.right, **{option: 0})


@pytest.mark.parametrize("name", ["cross_entropy", "binary_cross_entropy", "predict"])
def test_options_of_the_gradient_are_not_taken_by_the_others(name: str) -> None:
    arguments = [LOGITS] if name == "predict" else [LOGITS, LOGITS]
    for option in ("upstream", "out"):
        with pytest.raises(TypeError, match=option):
            getattr(fastce, name)(*arguments, **{option: 1.0})


@pytest.mark.parametrize("mode", ["dict", 3])
def test_show_config_names_its_modes(mode: Any) -> None:
    with pytest.raises(ValueError, match=r"mode .*dicts"):
        fastce.show_config(mode=mode)


# ---------------------------------------------------------------------------------------------------------------------
# What looks wrong and is not
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [ROWS, 10**6, 2**31, 2**40, 2**70, np.int64(2), np.uint8(1)], ids=repr)
@each_case()
def test_any_number_of_threads_is_taken(case: Case, threads: int) -> None:
    arguments = case.make((ROWS, CLASSES))
    case.assert_same(case(arguments, num_threads=threads), case(arguments, num_threads=1), bitwise=True)


@each_case(lambda case: takes_out(case) and case.results[case.out] == "whole")
def test_out_whose_strides_interleave_without_overlap_is_taken(case: Case) -> None:
    for shape, strides in [((2, 3), (12, 8)), ((2, 3), (4, 8)), ((1, 3), (0, 4)), ((2, 1), (4, 0))]:
        plain = case.make(shape)
        out = as_strided(np.zeros(8, F32), shape, strides)
        got = case(plain, out=out)
        assert got[case.out] is out
        case.assert_same(got, case(plain))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [3, 10, 300])
def test_no_warning_whatever_the_logits_hold(classes: int, dtype: Any) -> None:
    special = np.zeros((8, classes), dtype)
    special[0], special[1], special[2], special[3, 0] = np.nan, np.inf, -np.inf, -np.inf
    special[4, 1], special[5], special[6, 0] = np.finfo(dtype).max, -np.finfo(dtype).max, np.finfo(dtype).tiny
    labels = np.array([0, 0, 0, 0, 0, 0, 0, -100])
    every: dict[str, Any] = {"weight": np.linspace(0, 1, classes), "label_smoothing": 0.1, "z_loss": 1e-3}
    tiny: dict[str, Any] = {"weight": np.full(classes, 1e-300), "sample_weight": np.full(8, 1e-320)}
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        for case in CASES:
            arguments = case.make((8, classes), dtype) | {case.main: special}
            if case.targets == "labels":
                arguments["targets"] = labels
            elif case.targets:
                arguments["targets"] = np.eye(classes, dtype=dtype)[np.maximum(labels, 0)]
            if "row_max" in arguments:
                arguments |= fastce.cross_entropy(special, labels, return_stats=True)[1]._asdict()
            reductions = ["mean", "sum", "none"] if case.results.get("loss") == "one" else [None]
            for reduction in reductions:
                case(arguments, **({"reduction": reduction} if reduction else {}))
                if case.targets in ("labels", "probabilities") and not {"weight", "rank"} & {*arguments, *case.results}:
                    for options in (every, tiny):
                        case(arguments, **options, **({"reduction": reduction} if reduction else {}))
        assert np.isnan(fastce.cross_entropy(special[:0], labels[:0]))
        loss, grad = fastce.cross_entropy_with_grad(special, np.full(8, -100))
        assert np.isnan(loss)
        assert not grad.any()
