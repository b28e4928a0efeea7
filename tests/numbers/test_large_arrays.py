"""Results of large arrays are written past the caches, by code that small arrays do not reach."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from functions import F32, FUNCTIONS, Function, numbers, over

CLASSES = 5003  # of a long row. It is odd, so the rows begin at every distance from a cache line
ROWS = 1400  # 28 MB in float32
PART = 100  # rows that are few enough not to be written past the caches
WITH_ARRAY = [function for function in FUNCTIONS if function.out and function.name != "logsumexp"]


@pytest.mark.slow
@pytest.mark.parametrize("smoothed", [False, True], ids=["plain", "smoothed"])
@pytest.mark.parametrize("order", ["C", "F"])
@over(WITH_ARRAY)
def test_a_large_array_has_the_results_of_its_parts(function: Function, order: str, smoothed: bool) -> None:
    options: dict[str, Any] = {}
    if smoothed:
        options = function.taken({"label_smoothing": 0.1, "weight": np.linspace(0.5, 1.5, CLASSES)})
        if not options:
            pytest.skip("has no such options")
    x = np.asarray(numbers((ROWS, CLASSES), F32), order=order)
    arrays = function.family.arguments(x)
    if function.family.name == "index":  # every place in the first and last vectors of a row, and some in between
        arrays[1][:] = np.resize([*range(70), *range(CLASSES - 70, CLASSES), *range(2000, 2040)], ROWS)
    arrays = tuple(np.asarray(a, order=order) for a in arrays)
    if "reduction" in function.options:
        options["reduction"] = "sum"
    got = function(*arrays, **options)[function.out]
    for start in range(0, ROWS, PART):
        want = function(*(a[start : start + PART] for a in arrays), **options)[function.out]
        close = {"rtol": 1e-5, "atol": 1e-6 * float(abs(want).max())}  # tiles of other widths add in another order
        np.testing.assert_allclose(got[start : start + PART], want, **close, err_msg=f"rows from {start} on")
