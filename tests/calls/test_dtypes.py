"""Dtypes of the arguments, and what is taken for an array: lists, subclasses, objects with __array__. For every
function."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from calling import BY_NAME, DTYPES, F32, F64, Case, each_case
from layouts import LAYOUTS, Tagged, unaligned

import fastce

SHAPE = (33, 10)
INTEGERS = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"]
REALS = ["f2", "f4", "f8", "i1", "u1", "i8", "u8", "?"]
PRODUCTS = ("softmax_grad", "log_softmax_grad")
STATS = ("row_max", "tail")  # they have the dtype of the logits, and are not converted


def kinds_of(case: Case, name: str) -> list[str]:
    """The dtypes that an argument may have beside the dtype of the result."""
    if name == case.main or name in STATS:
        return []
    return INTEGERS if name == "targets" and case.targets == "labels" else REALS


def values_for(kind: str, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Numbers that every dtype of that kind holds exactly."""
    rng = np.random.default_rng(2)
    if name == "targets":
        return rng.integers(0, 2, shape) if kind not in ("f2", "f4", "f8") else rng.integers(0, 5, shape) / 4
    return rng.integers(0, 2, shape) if kind == "?" else rng.integers(1, 60, shape)


@pytest.mark.parametrize("layout", LAYOUTS)
@each_case(lambda case: len(case.arguments) > 1)
def test_dtype_of_an_argument_changes_no_result(case: Case, layout: str) -> None:
    for shape in (SHAPE, (5, 300), (4, 6, 10)):
        arguments = case.make(shape)
        for name in case.arguments:
            for kind in kinds_of(case, name):
                if name == "targets" and case.targets == "labels":
                    plain = np.abs(arguments[name]) % 10
                else:
                    plain = values_for(kind, arguments[name].shape, name).astype(F32)
                want = case(arguments | {name: plain})
                array = LAYOUTS[layout](plain.astype(kind))
                got = case(arguments | {name: array})
                # Weights, labels and the upstream of a loss become int64 or float64 first. Others are read as they are.
                converted = case.arguments[name] != "whole" or (name == "upstream" and case.name not in PRODUCTS)
                bitwise = converted or (layout == "contiguous" and case.name in PRODUCTS)
                case.assert_same(got, want, f"of {name} as {kind}, {shape}", bitwise=bitwise)
                np.testing.assert_array_equal(array, plain, err_msg=f"{name} was modified")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(230, 3), (230, 10), (230, 33), (113, 100), (7, 120)])
def test_targets_are_converted_in_stretches(shape: tuple[int, int], dtype: type) -> None:
    """As many rows as fit into a buffer are converted at a time, wherever their numbers are."""
    rng = np.random.default_rng(3)
    x, targets = rng.standard_normal(shape).astype(dtype), rng.integers(0, 2, shape)
    loss, grad = fastce.cross_entropy_with_grad(x, targets.astype(dtype), label_smoothing=0.1)
    for kind in ("?", "i1", "u2", "i4", "i8", "u8", "f4", "f8"):
        wide = np.zeros((shape[0] * 2, shape[1] * 2 + 1), kind)
        for part in (np.s_[::2, :-1:2], np.s_[::-2, -2::-2], np.s_[: shape[0], 1 : shape[1] + 1]):
            wide[part] = targets
            for given in (wide[part], targets.astype(kind), np.asfortranarray(targets.astype(kind))):
                got_loss, got_grad = fastce.cross_entropy_with_grad(x, given, label_smoothing=0.1)
                np.testing.assert_array_equal(got_loss, loss)
                np.testing.assert_array_equal(got_grad, grad)


@pytest.mark.parametrize("kind", ["f8", "f2", "i4", "u1", ">f4"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_have_the_dtype_of_y(name: str, kind: str) -> None:
    case = BY_NAME[name]
    for dtype in DTYPES:
        arguments = case.make((6, 5), dtype)
        upstream = np.arange(30).reshape(6, 5) % 7
        want = case(arguments | {"upstream": upstream.astype(dtype)})
        got = case(arguments | {"upstream": upstream.astype(kind)})
        assert got["grad"].dtype == dtype
        case.assert_same(got, want, bitwise=True)


@pytest.mark.parametrize("name", PRODUCTS)
def test_upstream_that_overflows_the_dtype_of_y_is_infinite_without_a_warning(name: str) -> None:
    y = BY_NAME[name].make((2, 5))["y"]
    large = np.ones(y.shape)
    large[0, 1] = 1e300
    function = getattr(fastce, name)
    got = function(large, y)
    assert not np.isfinite(got[0]).any()
    assert got[1].tobytes() == function(np.ones_like(y), y)[1].tobytes()


@pytest.mark.parametrize("kind", ["?", *INTEGERS])
@each_case()
def test_integers_and_bools_are_computed_in_float64(case: Case, kind: str) -> None:
    arguments = case.make((6, 5), F64)
    main = np.random.default_rng(0).integers(0, 2, (6, 5)).astype(kind)
    if "row_max" in arguments:
        arguments |= fastce.cross_entropy(main, arguments["targets"], return_stats=True)[1]._asdict()
    want = case(arguments | {case.main: main.astype(F64)})
    got = case(arguments | {case.main: main})
    case.assert_same(got, want, bitwise=True)
    for layout, lay_out in LAYOUTS.items():
        laid_out = lay_out(main)
        case.assert_same(case(arguments | {case.main: laid_out}), want, layout)
        np.testing.assert_array_equal(laid_out, main)
    for name, shape in case.results.items():
        assert got[name].dtype == (np.intp if name in case.places else F64)
        if shape == "one":
            assert type(got[name]) is F64
    if case.out:
        out = np.zeros_like(want[case.out])
        got = case(arguments | {case.main: main}, out=out)
        assert got[case.out] is out
        case.assert_same(got, want, bitwise=True)


@pytest.mark.parametrize("dtype", DTYPES)
@each_case()
def test_equal_dtypes_need_not_be_the_same_object(case: Case, dtype: Any) -> None:
    plain = case.make((5, 4), dtype)
    want = case(plain)
    for convert in (
        lambda a: pickle.loads(pickle.dumps(a)),
        lambda a: a.astype(a.dtype.newbyteorder("=")),
        lambda a: a.view(np.dtype(a.dtype.type, metadata={"a": 1})),
    ):
        got = case({name: convert(a) for name, a in plain.items()})
        case.assert_same(got, want, bitwise=True)
        if case.out:
            out = convert(np.zeros_like(want[case.out]))
            assert case(plain, out=out)[case.out] is out
            np.testing.assert_array_equal(out, want[case.out])


# ---------------------------------------------------------------------------------------------------------------------
# What is taken for an array
# ---------------------------------------------------------------------------------------------------------------------


@each_case()
def test_lists_are_arrays(case: Case) -> None:
    plain = case.make((3, 4), F64)
    want = case(plain)
    case.assert_same(case({name: a if name in STATS else a.tolist() for name, a in plain.items()}), want, bitwise=True)
    for name in set(plain) - set(STATS):
        case.assert_same(case(plain | {name: plain[name].tolist()}), want, f"of {name}", bitwise=True)


def test_lists_of_integers_and_empty_lists() -> None:
    assert fastce.cross_entropy([[0, 0]], [1]) == np.log(2)
    assert fastce.cross_entropy(np.zeros((0, 5)), [], reduction="sum") == 0


@each_case()
def test_objects_with_an_array_method_are_arrays(case: Case) -> None:
    class Wrapped:
        def __init__(self, array: np.ndarray) -> None:
            self.array = array

        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            return self.array

    plain = case.make((6, 5))
    case.assert_same(case({name: Wrapped(a) for name, a in plain.items()}), case(plain), bitwise=True)


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("subclass", [Tagged, np.matrix])
@each_case()
def test_results_of_subclasses_are_plain_arrays(case: Case, subclass: type) -> None:
    plain = case.make((20, 10))
    want = case(plain)
    for names in [list(plain), *([name] for name in plain)]:  # all arguments, then one at a time
        views = {name: plain[name].view(subclass) for name in names if subclass is Tagged or plain[name].ndim == 2}
        got = case(plain | views)
        case.assert_same(got, want, f"of {names}", bitwise=True)
        for name in want:
            assert type(got[name]) is type(want[name]), f"{name} of {names}"


@each_case(lambda case: any(shape in ("row", "class") for shape in case.arguments.values()))
def test_vectors_that_are_not_aligned(case: Case) -> None:
    plain = case.make((6, 3), F64)
    odd = {name: unaligned(a) for name, a in plain.items() if a.ndim == 1}
    case.assert_same(case(plain | odd), case(plain), bitwise=True)
