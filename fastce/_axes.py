"""Calls with several class axes, with all axes or none, or with `keepdims`: their arrays are folded into rows and one
class axis, and what is returned is unfolded. Called by _kernels.pyx; a call with one class axis does not come here."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from . import _checks
from ._checks import Array


class Fold:
    """How arrays of the shape of `x` become rows and classes, with the classes on `axis`."""

    def __init__(self, x: Array, axes: tuple[int, ...]) -> None:
        self.shape = x.shape
        self.classes = math.prod(x.shape[k] for k in axes)
        # The order of the classes does not matter. This one needs no copy of arrays in C or Fortran order.
        by_stride = sorted(range(x.ndim), key=lambda k: (-abs(x.strides[k]), k))
        self.axes = [k for k in by_stride if k in axes]
        self.rows = [k for k in range(x.ndim) if k not in axes]
        # What lies side by side in memory does so in a copy too, so that copies are fast.
        self.axis = 0 if by_stride and by_stride[-1] not in axes else -1
        self.order = self.axes + self.rows if self.axis == 0 else self.rows + self.axes

    def needs_copy(self, a: Array) -> bool:
        axes = [k for k in self.axes if a.shape[k] != 1]
        return any(a.strides[j] != a.strides[k] * a.shape[k] for j, k in itertools.pairwise(axes))

    def __call__(self, a: Array) -> Array:
        rows = [self.shape[k] for k in self.rows]
        return a.transpose(self.order).reshape([self.classes, *rows] if self.axis == 0 else [*rows, self.classes])

    def undo(self, a: Array) -> Array:
        return a.reshape([self.shape[k] for k in self.order]).transpose(np.argsort(self.order))

    def reduced_shape(self, keepdims: bool) -> tuple[int, ...]:
        if keepdims:
            return tuple(1 if k in self.axes else n for k, n in enumerate(self.shape))
        return tuple(self.shape[k] for k in self.rows)


def call_folded(
    call: Callable[..., Any],
    name: str,
    reduces: bool,
    arguments: tuple[Any, ...],
    *,
    axis: Any = -1,
    keepdims: Any = False,
    out: Any = None,
    **options: Any,
) -> Any:
    """``call(*arguments, axis=axis, keepdims=keepdims, out=out, **options)``, by a call with one class axis.

    The last argument is called `name`. The function `reduces` it to one number for each row, or it returns an array of
    its shape."""
    x = _checks.as_logits(name, arguments[-1], False)
    fold = Fold(x, _checks.as_axes(axis, x.ndim))
    if fold.classes == 0 and not reduces:
        raise ValueError(f"{name} has shape {x.shape}: no classes on axis {axis}")
    shape = fold.reduced_shape(bool(keepdims)) if reduces else x.shape
    if out is not None:
        without = "without its class axes" if not keepdims else "with its class axes of length 1"
        dtype = _checks.computed_dtype(x.dtype) if reduces else x.dtype
        _checks.check_out(out, shape, dtype, f"{name} {without}" if reduces else name, "out")
    options["axis"], folded = fold.axis, [fold(x)]
    if len(arguments) == 2:
        upstream = _checks.as_real("upstream", arguments[0])
        if upstream.shape != x.shape:
            raise _checks.upstream_error(upstream, x.shape, True)
        folded.insert(0, fold(upstream))
    if reduces:
        values = np.reshape(call(*folded, **options), shape)
        if out is not None:
            out[...] = values
            return out
        return values if shape else values[()]
    result = np.empty_like(x) if out is None else out
    if not fold.needs_copy(result):
        call(*folded, out=fold(result), **options)
    else:
        of_its_own = not np.may_share_memory(folded[-1], x)  # a copy that may be overwritten
        result[...] = fold.undo(call(*folded, out=folded[-1] if of_its_own else None, **options))
    return result if shape or out is not None else result[()]
