"""Logits that are hard to get right, options for them, the ways in which they may lie in memory, and the slope of a
loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from functions import F32, F64, Family, check

GAPS = {F32: np.arange(1, 86), F64: np.arange(1, 701)}  # exp(-gap) is a normal number
SUBNORMAL_GAPS = {F32: np.linspace(85, 103, 73), F64: np.linspace(706, 744, 153)}


def confident(
    gaps: Any, classes: int, dtype: Any, *, spread: bool = True, seed: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """One row for each gap, and its most probable class, which stands anywhere. The runner-up is 0, and so are the
    others, unless they spread downwards from it."""
    x = np.zeros((len(gaps), classes))
    rows, top = np.arange(len(gaps)), np.arange(len(gaps)) * 7 % classes
    if spread:
        x -= np.random.default_rng(3).exponential(2, x.shape)
        x -= x.max(axis=1, keepdims=True)
        x[rows, (top + 1) % classes] = 0
    x[rows, top] = gaps
    return x.astype(dtype), top


def on_grid(x: np.ndarray, offset: float, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """The logits in multiples of the offset's last place, so that nothing is rounded, without the offset and with."""
    grid = float(max(np.spacing(dtype(abs(offset) * 2)), np.spacing(dtype(64))))
    x = np.round(x / grid) * grid
    shifted = (x + offset).astype(dtype)
    assert (shifted.astype(F64) - offset == x).all()
    return x.astype(dtype), shifted


def options_of(family: Family, x: np.ndarray, name: str = "all") -> dict[str, Any]:
    """One of the options of the family, or all of them. Those for each class or row have random numbers."""
    rng = np.random.default_rng(6)
    rows, classes = x.shape
    every = {
        "weight": (rng.random(classes) + 0.1).astype(x.dtype),
        "pos_weight": rng.random(classes).astype(x.dtype) * 9,
        "sample_weight": (rng.random(rows) + 0.1).astype(x.dtype),
        "upstream": rng.normal(size=rows if family.by_row else x.shape).astype(x.dtype),
        "label_smoothing": 0.1,
        "z_loss": 1e-3,
    }
    return {key: value for key, value in every.items() if key in family.options and name in (key, "all")}


class Arrangement(NamedTuple):
    of: Callable[[np.ndarray], np.ndarray]  # of arrays of (n, C) as they lie in memory
    axis: int

    def back(self, a: np.ndarray) -> np.ndarray:
        """A result of this arrangement, as if classes had been last."""
        if a.ndim == 1 or (a.ndim == 2 and self.axis == 1):
            return a.ravel()
        return a.T if self.axis == 0 else np.moveaxis(a, self.axis, -1).reshape(-1, a.shape[self.axis])


# The kernels differ for classes that lie together and for rows that do.
ARRANGEMENTS = {
    "rows": Arrangement(np.ascontiguousarray, -1),
    "Fortran": Arrangement(np.asfortranarray, -1),
    "axis 0": Arrangement(lambda a: np.ascontiguousarray(a.T), 0),
    "middle axis": Arrangement(lambda a: np.ascontiguousarray(a.T)[None], 1),
}


def check_arranged(
    family: Family,
    arrays: tuple[np.ndarray, ...],
    *,
    ways: tuple[str, ...] = tuple(ARRANGEMENTS),
    copied: tuple[str, ...] = ("x", "y", "logits"),
    **options: Any,
) -> Any:
    """`check` of n rows in each arrangement. Arrays that are not `copied` lie as they did. Options that hold a number
    for each row or element go along. Returns the exact values."""
    more = options.pop("more", 0)
    shape = arrays[-1].shape if arrays[-1].ndim == 2 else arrays[0].shape
    want, right = family.exact(*arrays, **options), {}
    for name in ways:
        way = ARRANGEMENTS[name]

        def arranged(a: Any, copy: bool = False, way: Arrangement = way) -> Any:
            if np.shape(a) not in (shape, shape[:1]):
                return a
            if a.ndim == 1:
                return a[None] if way.axis == 1 else a
            if copy:
                return way.of(a)
            return {-1: a, 0: a.T, 1: a.T[None]}[way.axis]

        given = tuple(arranged(a, n in copied) for n, a in zip(family.names, arrays, strict=True))
        # the weight of a class stays, though there may be as many classes as rows
        moved = {k: v if k in ("weight", "pos_weight") else arranged(v) for k, v in options.items()}
        check(
            family, given, want=want, right=right, back=way.back, about=f"{name}, ", more=more, axis=way.axis, **moved
        )
    return want


def slope(f: Callable[[np.ndarray], Any], x: np.ndarray) -> np.ndarray:
    """The derivative of f(x), or of its sum, by each element of x: central differences of the fourth order. The error
    of the method is h^4/30 times the fifth derivative, that of rounding is eps*f/h: below 1e-12 for numbers near 1."""
    h, result = 1e-3, np.empty_like(x)
    for at in np.ndindex(x.shape):
        total: Any = 0.0
        for steps, factor in ((1, 8), (-1, -8), (2, -1), (-2, 1)):
            moved = x.copy()
            moved[at] += steps * h
            total += factor * f(moved)
        result[at] = np.sum(total) / (12 * h)
    return result
