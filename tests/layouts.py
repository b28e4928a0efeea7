"""Ways an array may lie in memory, and arrays that share memory with others. For the tests of calls: a result must not
depend on them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np

Layout = Callable[[np.ndarray], np.ndarray]


def view_within(a: np.ndarray, place: Callable[[tuple[int, ...]], tuple[tuple[int, ...], Any]]) -> np.ndarray:
    """A view of a larger array. The rest of it is NaN or the largest integer, so that reading it changes results.

    `place` takes the shape of `a`; it returns the shape of the larger array and the index of the view."""
    shape, index = place(a.shape)
    if a.dtype.kind in "fV":  # of bfloat16 it is V
        rest: Any = np.nan
    else:
        rest = True if a.dtype.kind == "b" else np.iinfo(a.dtype).max
    whole = np.full(shape, rest, a.dtype)
    whole[index] = a
    return whole[index]


def read_only(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a.flags.writeable = False
    return a


def unaligned(a: np.ndarray) -> np.ndarray:
    b = np.empty(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    b[...] = a
    assert not b.flags.aligned or a.dtype.itemsize == 1
    return b


def field_of_records(a: np.ndarray) -> np.ndarray:
    records = np.zeros(a.shape, np.dtype([("tag", "i1"), ("value", a.dtype)]))
    records["value"] = a
    return records["value"]


def all_reversed(a: np.ndarray) -> np.ndarray:
    flip = (slice(None, None, -1),) * a.ndim
    return a[flip].copy()[flip]


class Tagged(np.ndarray):
    pass


# Each function returns an array equal to its argument that lies differently in memory. The first group is computed
# without a copy. The second is copied first, or is not ordinary in another way.
WALKABLE: dict[str, Layout] = {
    "contiguous": np.ascontiguousarray,
    "Fortran": np.asfortranarray,
    "every second row": lambda a: view_within(a, lambda s: ((2 * s[0], *s[1:]), np.s_[::2])),
    "every third column": lambda a: view_within(a, lambda s: ((*s[:-1], 3 * s[-1]), np.s_[..., ::3])),
    "steps both ways": lambda a: (
        view_within(a.T, lambda s: ((3 * s[0], *(2 * n for n in s[1:])), (np.s_[::3], *(np.s_[::2] for _ in s[1:])))).T
    ),
    "a window": lambda a: view_within(a, lambda s: (tuple(n + 3 for n in s), tuple(slice(1, n + 1) for n in s))),
    "rows reversed": lambda a: a[::-1].copy()[::-1],
    "columns reversed": lambda a: a[..., ::-1].copy()[..., ::-1],
    "all reversed": all_reversed,
    "Fortran reversed": lambda a: all_reversed(a.T).T,
}
AWKWARD: dict[str, Layout] = {
    "read-only": read_only,
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "byte-swapped Fortran": lambda a: np.asfortranarray(a).astype(a.dtype.newbyteorder(), order="K"),
    "unaligned": unaligned,
    "unaligned, Fortran": lambda a: unaligned(a.T).T,
    "field of records": field_of_records,
    "subclass": lambda a: a.copy().view(Tagged),
}
LAYOUTS = WALKABLE | AWKWARD
# The rows of these are contiguous, aligned and native, or are copied to such rows. The same code computes the same
# numbers, so results are equal to the bit.
BITWISE = ["read-only", "every second row", "rows reversed", "a window", "byte-swapped", "unaligned", "subclass"]

# Three dimensions, classes last, whose rows cannot be reached with one stride (except "Fortran" with some shapes).
NOT_ONE_STRIDE: dict[str, Layout] = {
    "all but the last step": lambda a: view_within(a, lambda s: ((s[0], s[1] + 1, s[2]), np.s_[:, :-1])),
    "leading axes swapped": lambda a: np.swapaxes(np.swapaxes(a, 0, 1).copy(), 0, 1),
    "classes first": lambda a: np.moveaxis(np.moveaxis(a, -1, 0).copy(), 0, -1),
    "classes in the middle": lambda a: np.swapaxes(np.swapaxes(a, 1, 2).copy(), 1, 2),
    "one axis reversed": lambda a: a[:, ::-1].copy()[:, ::-1],
    "steps of two": lambda a: view_within(a, lambda s: ((s[0], 2 * s[1], 2 * s[2]), np.s_[:, ::2, ::2])),
    "Fortran": np.asfortranarray,
}

# Other views of the memory of a square matrix.
SAME_MEMORY: dict[str, Layout] = {
    "rows reversed": lambda a: a[::-1],
    "columns reversed": lambda a: a[:, ::-1],
    "transposed": lambda a: a.T,
    "in Fortran order": lambda a: a.ravel().reshape(a.shape, order="F"),
}

# By how many elements one matrix lies behind another of the same shape in one buffer.
SHIFTS: dict[str, Callable[[int, int], int]] = {
    "one element": lambda rows, classes: 1,
    "a vector": lambda rows, classes: 16,
    "a row": lambda rows, classes: classes,
    "a row and a half": lambda rows, classes: classes + classes // 2,
    "half of the array": lambda rows, classes: rows * classes // 2,
    "all but one element": lambda rows, classes: rows * classes - 1,
    "side by side": lambda rows, classes: rows * classes,
}


def shifted_pair(shape: tuple[int, ...], by: int, dtype: Any = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays in one buffer, the second `by` elements behind the first."""
    size = int(np.prod(shape))
    both = np.full(size + by, 7, dtype)
    return both[:size].reshape(shape), both[by:].reshape(shape)


def peak_bytes(call: Callable[[], object]) -> int:
    """The most memory that NumPy and Python had allocated at a time during the call."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
