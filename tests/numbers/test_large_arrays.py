"""Results of large arrays are written past the caches, by code that small arrays do not reach."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from functions import F32, FUNCTIONS, Function, numbers, over

import fastce

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


def zeros_on_disk(path: Any, shape: tuple[int, int], dtype: Any) -> np.ndarray:
    """A memory map of a file without contents, which takes no space on the disk."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 1.5 * size:
        pytest.skip(f"needs {1.5 * size / 2**30:.0f} GiB of memory")
    path.touch()
    os.truncate(path, size)
    return np.memmap(path, dtype, "r+", shape=shape)


WIDE, TALL = (1, 2**31 + 7), (2**24 + 1, 128)


ON_REQUEST = pytest.mark.skipif("FASTCE_LARGE" not in os.environ, reason="takes long; set FASTCE_LARGE=1")


@pytest.mark.slow
@pytest.mark.parametrize("shape", [WIDE, pytest.param(TALL, marks=ON_REQUEST)], ids=str)
def test_more_than_2_to_31_logits(shape: tuple[int, int], tmp_path: Any) -> None:
    """Few logits are not 0: the last ones of the first and of the last row, and labels are there."""
    rows, classes = shape
    x = zeros_on_disk(tmp_path / "logits", shape, np.float16)
    x[0, -1] = x[-1, -1] = 9
    loss = fastce.cross_entropy(x, np.full(rows, classes - 1, np.uint32), reduction="sum")
    ends = np.log(classes - 1 + np.exp(9.0)) - 9
    assert loss == pytest.approx(ends if rows == 1 else 2 * ends + (rows - 2) * np.log(classes), rel=1e-6)


@pytest.mark.slow
@ON_REQUEST
@pytest.mark.parametrize("shape", [WIDE, (5, 2**29)], ids=str)
def test_gradients_of_more_than_2_to_31_logits(shape: tuple[int, int], tmp_path: Any) -> None:
    rows, classes = shape
    x = zeros_on_disk(tmp_path / "logits", shape, np.float16)
    x[0, -1] = x[-1, -1] = 9
    assert fastce.predict(x)[-1] == classes - 1
    labels = np.full(rows, classes - 1)
    fastce.cross_entropy_with_grad(x, labels, out=x, upstream=1024.0, reduction="sum")
    p = np.exp(9) / (classes - 1 + np.exp(9.0))
    assert float(x[-1, -1]) == pytest.approx(-1024 * (1 - p), rel=1e-3)
