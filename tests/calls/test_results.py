"""What functions return: types, dtypes and shapes, `out` itself, and the results of arrays without rows."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from calling import CASES, DTYPES, F32, Case, each_case, takes_out
from layouts import AWKWARD

import fastce

ONE_TERM = [case for case in CASES if case.name.startswith(("cross_entropy", "CrossEntropyLoss"))]


@pytest.mark.parametrize("dtype", DTYPES)
@each_case()
def test_types_of_the_results(case: Case, dtype: type) -> None:
    for shape in [(7,), (3, 7), (2, 1, 2, 3, 7), (1,) * 6 + (7,)]:
        plain = case.make(shape, dtype)
        swapped = {
            name: a if name in ("row_max", "tail") else a.astype(a.dtype.newbyteorder()) for name, a in plain.items()
        }
        for arguments in (plain, swapped, {name: np.asarray(a, order="F") for name, a in plain.items()}):
            for name, result in case(arguments).items():
                own = np.intp if name in case.places else dtype
                assert result.dtype == np.dtype(own) and result.dtype.isnative, name
                assert np.shape(result) == case.shape_of(name, shape), name
                if case.results[name] == "whole":
                    assert type(result) is np.ndarray and result.flags.writeable, name
                    assert not any(np.shares_memory(result, a) for a in arguments.values()), name
                elif case.results[name] == "one":
                    assert type(result) is own, name
                elif result.ndim:
                    assert type(result) is np.ndarray, name


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", DTYPES)
@each_case(lambda case: case.results.get("loss") == "one")
def test_mean_and_sum_are_scalars_of_the_dtype_of_the_logits(case: Case, dtype: type, reduction: str) -> None:
    arguments = case.make((6, 5), dtype)
    assert type(case(arguments, reduction=reduction)["loss"]) is dtype
    swapped = {case.main: arguments[case.main].astype(arguments[case.main].dtype.newbyteorder())}
    assert type(case(arguments | swapped, reduction=reduction)["loss"]) is dtype


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_statistics_are_named(reduction: str) -> None:
    logits, labels = np.zeros((6, 5)), np.zeros(6, int)
    _, stats = fastce.cross_entropy(logits, labels, reduction=reduction, return_stats=True)
    assert type(stats) is fastce.SoftmaxStats
    assert stats._fields == ("row_max", "tail")
    assert isinstance(stats, tuple)
    assert stats[0] is stats.row_max and stats[1] is stats.tail


@each_case(takes_out)
def test_out_is_returned_itself(case: Case) -> None:
    arguments = case.make((6, 5))
    like = np.zeros(case.shape_of(case.out, (6, 5)), F32)
    for out in (like, np.asfortranarray(like), AWKWARD["subclass"](like)):
        assert case(arguments, out=out)[case.out] is out
    one_row = case.make((7,))
    out = np.zeros(case.shape_of(case.out, (7,)), F32)
    got = case(one_row, out=out)
    assert got[case.out] is out
    case.assert_same(got, case(one_row), bitwise=True)


# ---------------------------------------------------------------------------------------------------------------------
# No rows, one class
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 5), (0, 1), (3, 0, 5), (0, 3, 5), (2, 0, 4, 5)])
@pytest.mark.parametrize("dtype", DTYPES)
@each_case()
def test_no_rows(case: Case, shape: tuple[int, ...], dtype: type) -> None:
    arguments = case.make(shape, dtype)
    got = case(arguments)
    for name, result in got.items():
        assert np.shape(result) == case.shape_of(name, shape), name
        assert result.dtype == (np.intp if name in case.places else dtype), name
        if case.results[name] == "one":
            assert np.isnan(result) and type(result) is dtype, "the mean of nothing"
    if case.results.get("loss") == "one":
        total = case(arguments, reduction="sum")["loss"]
        assert total == 0 and type(total) is dtype
    if case.out:
        out = np.zeros(case.shape_of(case.out, shape), dtype)
        assert case(arguments, out=out)[case.out] is out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 5, 1000])
def test_one_class_has_no_loss(rows: int, dtype: type) -> None:
    logits, labels = np.linspace(-7, 7, rows, dtype=dtype)[:, None], np.zeros(rows, np.int64)
    for targets, reduction in itertools.product((labels, np.ones((rows, 1))), ("mean", "none")):
        options: dict[str, Any] = {"reduction": reduction}
        loss, grad = fastce.cross_entropy_with_grad(logits, targets, **options)
        assert not np.any(loss)
        assert not grad.any()
        assert not np.any(fastce.cross_entropy(logits, targets, **options))
