"""Results are the same to the bit for every number of threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from calling import DTYPES, Case, each_case

SHAPES = [
    *[(1, 1), (2, 3), (7, 10), (129, 10), (3000, 7), (5000, 3), (33, 64), (257, 130), (65, 1000), (33, 4500)],
    *[(3, 50257), (1, 40_000)],
]
LARGE = [(2000, 1000), (1, 2**20)]  # for cross-entropy
THREADS = [2, 3, 7, None]


def assert_same_bits(case: Case, arguments: dict[str, np.ndarray], about: str, **options: Any) -> None:
    want = case(arguments, num_threads=1, **options)
    for num_threads in THREADS:
        got = case(arguments, num_threads=num_threads, **options)
        case.assert_same(got, want, f"{about}, num_threads={num_threads}", bitwise=True)


@pytest.mark.parametrize("dtype", DTYPES)
@each_case()
def test_results_do_not_depend_on_the_number_of_threads(case: Case, dtype: type) -> None:
    for shape in SHAPES + (LARGE if case.name.startswith("cross_entropy") else []):
        arguments = case.make(shape, dtype)
        for reduction in ["mean", "sum", "none"] if case.results.get("loss") == "one" else [None]:
            options = {"reduction": reduction} if reduction else {}
            about = f"{shape}, reduction={reduction}"
            assert_same_bits(case, arguments, about, **options)
            if shape not in LARGE:
                fortran = {name: np.asarray(a, order="F") for name, a in arguments.items()}
                assert_same_bits(case, fortran, f"{about}, Fortran order", **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1, 2])
@each_case()
def test_results_on_every_axis_do_not_depend_on_the_number_of_threads(case: Case, axis: int, dtype: type) -> None:
    assert_same_bits(case, case.make((130, 21, 67), dtype, axis), f"axis={axis}", axis=axis)


@each_case()
def test_more_threads_than_rows(case: Case) -> None:
    arguments = case.make((3, 70_000), np.float64)
    case.assert_same(case(arguments, num_threads=64), case(arguments, num_threads=1), bitwise=True)
