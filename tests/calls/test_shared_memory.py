"""Arguments that share memory with `out` or with each other: results are those of separate arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from calling import BY_NAME, F32, SHAPES, Case, each_case
from layouts import NOT_ONE_STRIDE, SAME_MEMORY, SHIFTS, WALKABLE, shifted_pair

import fastce


def writes_whole(case: Case) -> bool:
    return case.out is not None and case.results[case.out] == "whole"


def like_out(case: Case) -> list[str]:
    """The arguments that have the shape and dtype of `out`, so that they may be passed as `out`."""
    return [name for name, shape in case.arguments.items() if shape == "whole"]


def check_out(case: Case, arguments: dict[str, Any], out: np.ndarray, want: dict[str, Any], about: object = "") -> None:
    got = case(arguments, out=out)
    assert got[case.out] is out, about
    case.assert_same(got, want, about)


@pytest.mark.parametrize("layout", WALKABLE)
@each_case(writes_whole)
def test_in_place(case: Case, layout: str) -> None:
    for shape in [*SHAPES, (300, 64), (100, 65)]:
        plain = case.make(shape)
        want = case(plain)
        for name in like_out(case):
            array = WALKABLE[layout](plain[name].copy())
            check_out(case, plain | {name: array}, array, want, f"of {name}, {shape}")


@pytest.mark.parametrize("layout", NOT_ONE_STRIDE)
@each_case(writes_whole)
def test_in_place_in_three_dimensions(case: Case, layout: str) -> None:
    for shape in [(4, 5, 3), (3, 50, 10), (2, 7, 300), (4, 1, 70)]:
        plain = case.make(shape)
        want = case(plain)
        for name in like_out(case):
            array = NOT_ONE_STRIDE[layout](plain[name].copy())
            check_out(case, plain | {name: array}, array, want, f"of {name}, {shape}")


@pytest.mark.parametrize("axis", [0, 1, 2])
@each_case(writes_whole)
def test_in_place_on_every_axis(case: Case, axis: int) -> None:
    plain = case.make((20, 30, 40), axis=axis)
    want = case(plain, axis=axis)
    for name in like_out(case):
        array = plain[name].copy()
        got = case(plain | {name: array}, axis=axis, out=array)
        assert got[case.out] is array
        case.assert_same(got, want, f"of {name}")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "name",
    ["cross_entropy_with_grad, labels", "softmax", "log_softmax", "binary_cross_entropy_with_grad, softmax"],
)
def test_in_place_when_large(name: str, threads: int) -> None:
    """So large that results may be stored past the caches."""
    case = BY_NAME[name]
    plain = case.make((70, 130_000))
    want = case(plain, num_threads=threads)
    got = case(plain, out=plain[case.main], num_threads=threads)
    assert got[case.out] is plain[case.main]
    case.assert_same(got, want)


@pytest.mark.parametrize("forward", [True, False], ids=["out behind", "out before"])
@pytest.mark.parametrize("shift", SHIFTS)
@each_case(writes_whole)
def test_out_shifted_against_an_argument(case: Case, shift: str, forward: bool) -> None:
    for shape in [(33, 10), (300, 3), (9, 300), (3, 9000)]:
        plain = case.make(shape)
        want = case(plain)
        for name in like_out(case):
            pair = shifted_pair(shape, SHIFTS[shift](*shape))
            array, out = pair if forward else pair[::-1]
            array[...] = plain[name]
            check_out(case, plain | {name: array}, out, want, f"of {name}, {shape}")


@pytest.mark.parametrize("view", SAME_MEMORY)
@pytest.mark.parametrize("n", [1, 5, 40, 300])
@each_case(writes_whole)
def test_out_is_the_memory_of_an_argument_in_another_order(case: Case, n: int, view: str) -> None:
    plain = case.make((n, n))
    want = case(plain)
    for name in like_out(case):
        array = plain[name].copy()
        out = SAME_MEMORY[view](array)
        assert np.shares_memory(out, array)
        check_out(case, plain | {name: array}, out, want, f"of {name}")


@pytest.mark.parametrize("columns", [(np.s_[:, 0::2], np.s_[:, 1::2]), (np.s_[:, :10], np.s_[:, 10:])], ids=str)
@each_case(writes_whole)
def test_out_between_the_columns_of_an_argument(case: Case, columns: Any) -> None:
    plain = case.make((33, 10))
    want = case(plain)
    for name in like_out(case):
        both = np.zeros((33, 20), F32)
        array, out = (both[index] for index in columns)
        array[...] = plain[name]
        check_out(case, plain | {name: array}, out, want, f"of {name}")
        assert np.array_equal(array, plain[name]), f"{name} was modified"


@pytest.mark.parametrize("offset", [0, 4, 60, -1])
@pytest.mark.parametrize("kind", ["i1", "u2", "i4", "i8"])
@each_case(lambda case: writes_whole(case) and case.targets == "labels")
def test_out_shares_memory_with_the_labels(case: Case, kind: str, offset: int) -> None:
    for shape in [(40, 10), (40, 300), (300, 10), (300, 50)]:  # the labels of few rows are all read at first
        plain = case.make(shape)
        plain["targets"] = np.abs(plain["targets"]) % 10
        want = case(plain)
        out = np.zeros(shape, F32)
        items = out.view(kind).ravel()
        start = offset * 8 // items.itemsize if offset >= 0 else items.size - shape[0]
        labels = items[start : start + shape[0]]
        labels[...] = plain["targets"]
        check_out(case, plain | {"targets": labels}, out, want, f"{shape}")


# Where in `out` a vector lies: its first numbers, its first column, its last numbers.
PLACES: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "start": lambda out, n: out.ravel()[:n],
    "column": lambda out, n: out[:n, 0],
    "end": lambda out, n: out.ravel()[-n:],
}


@pytest.mark.parametrize("place", PLACES)
@each_case(lambda case: writes_whole(case) and not {"row", "class"}.isdisjoint(case.arguments.values()))
def test_out_shares_memory_with_a_vector(case: Case, place: str) -> None:
    for shape in [(40, 10), (40, 40), (300, 300)]:
        plain = case.make(shape)
        want = case(plain)
        for name, vector in plain.items():
            if vector.ndim != 1 or vector.dtype != F32:
                continue
            for in_place in (False, True):  # the second: the vector lies in the logits too
                out = plain[case.main].copy() if in_place else np.ones(shape, F32)
                shared = PLACES[place](out, vector.size)
                assert np.shares_memory(shared, out)
                shared[...] = vector
                arguments = plain | ({case.main: out} if in_place else {}) | {name: shared}
                if in_place:
                    separate = {key: a.copy() for key, a in arguments.items()}
                    check_out(case, arguments, out, case(separate), f"of {name}, {shape}, in place")
                else:
                    check_out(case, arguments, out, want, f"of {name}, {shape}")


@pytest.mark.parametrize("shape", [(40, 10), (6, 300), (3, 4097), (3, 9000)])
@each_case(lambda case: writes_whole(case) and len(like_out(case)) > 1)
def test_several_arguments_and_out_are_one_array(case: Case, shape: tuple[int, int]) -> None:
    plain = case.make(shape)
    array = np.abs(plain[like_out(case)[-1]])  # some of them are probabilities
    together = plain | dict.fromkeys(like_out(case), array)
    want = case({name: a.copy() for name, a in together.items()})
    check_out(case, together, array, want)


@pytest.mark.parametrize("place", [np.s_[:, 0], np.s_[:, -1], np.s_[0, :], np.s_[-1, ::-1]], ids=str)
@pytest.mark.parametrize("n", [5, 40, 300])
def test_logsumexp_into_its_own_logits(n: int, place: Any) -> None:
    case = BY_NAME["logsumexp"]
    plain = case.make((n, n))
    want = case(plain)
    check_out(case, plain, plain["x"][place], want)


@each_case(lambda case: len(case.arguments) > 1)
def test_arguments_may_share_memory_with_each_other(case: Case) -> None:
    plain = case.make((10, 10))
    square = plain["targets"] if case.targets in ("probabilities", "both terms") else plain[case.main]
    square = np.abs(square)
    shared: dict[str, np.ndarray] = {}
    for name, array in plain.items():
        shared[name] = array if array.dtype.kind != "f" else square if array.ndim == 2 else square[0]
    case.assert_same(case(shared), case({name: a.copy() for name, a in shared.items()}), bitwise=True)


def test_layer_writes_over_the_logits_it_has_seen() -> None:
    """`backward` takes the statistics of the forward, and the logits themselves as `out`."""
    for shape in SHAPES:
        case = BY_NAME["CrossEntropyLoss, labels"]
        logits, targets = case.make(shape).values()
        want = fastce.cross_entropy_grad(logits, targets)
        ce = fastce.CrossEntropyLoss()
        ce(logits, targets)
        assert ce.backward(out=logits) is logits
        case.assert_same({"grad": logits}, {"grad": want})
