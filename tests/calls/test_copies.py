"""Arrays that can be walked by strides are not copied: the memory that a call allocates is that of its results, and
little more."""

from __future__ import annotations

import numpy as np
import pytest
from calling import BY_NAME, F64, Case, each_case
from layouts import NOT_ONE_STRIDE, WALKABLE, Layout, peak_bytes, unaligned

from fastce import reference

# Of the bytes of the logits: vectors in the order of the rows, and scratch.
SMALL_CHANGE = 0.3


def assert_no_copy(case: Case, shape: tuple[int, ...], layout: Layout) -> None:
    plain = case.make(shape, F64)
    arguments = {name: layout(a) if a.ndim == len(shape) else a for name, a in plain.items()}
    main = arguments[case.main]
    options = {"reduction": "mean"} if case.results.get("loss") == "whole" else {}
    results = case(arguments, **options)
    allowed = sum(np.asarray(part).nbytes for name, part in results.items() if name != case.out)
    allowed += SMALL_CHANGE * main.nbytes
    if case.out is None:
        assert peak_bytes(lambda: case(arguments, **options)) < allowed
        return
    out = results[case.out]
    assert peak_bytes(lambda: case(arguments, out=out, **options)) < allowed
    if case.results[case.out] == "whole":
        assert peak_bytes(lambda: case(arguments, out=main, **options)) < allowed, "in place"


# With a softcap, second derivatives are composed of several calls.
COMPOSED = ("cross_entropy_hvp, labels, softcap", "cross_entropy_grad_hess, labels, softcap")
computed_here = each_case(lambda case: "options" not in case.name and case.name not in COMPOSED)


@pytest.mark.parametrize("layout", WALKABLE)
@pytest.mark.parametrize("shape", [(40_000, 10), (400, 1000)])
@computed_here
def test_walkable_arrays_are_not_copied(case: Case, shape: tuple[int, int], layout: str) -> None:
    assert_no_copy(case, shape, WALKABLE[layout])


@pytest.mark.parametrize("layout", [name for name in NOT_ONE_STRIDE if name != "Fortran"])
@computed_here
def test_rows_without_a_common_stride_are_not_copied(case: Case, layout: str) -> None:
    assert_no_copy(case, (50, 80, 100), NOT_ONE_STRIDE[layout])


def test_a_copy_would_be_noticed() -> None:
    case = BY_NAME["cross_entropy, labels"]
    logits, labels = case.make((400, 1000), F64).values()
    assert peak_bytes(lambda: reference.cross_entropy(logits, labels)) >= logits.nbytes
    assert peak_bytes(lambda: case({"logits": unaligned(logits), "targets": labels})) >= logits.nbytes
