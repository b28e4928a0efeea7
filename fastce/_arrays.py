"""What fastce accepts as an array, and how the kernels see it: checks with messages, conversions, and views as rows.

Used by _api.py. Nothing here writes to an array it was given, and nothing copies an aligned native array of a dtype
that the kernels compute in.
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import numpy as np

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)
I64 = np.dtype(np.int64)
INT64 = np.iinfo(np.int64)
LARGEST = {dtype: float(np.finfo(dtype).max) for dtype in (F32, F64)}

Array = np.ndarray[Any, np.dtype[Any]]


def as_array(name: str, value: Any) -> Array:
    """`value` as a plain ndarray of numbers or bools."""
    if type(value) is np.ndarray:
        array = value
    elif value is None:
        raise TypeError(f"{name} is None, expected an array")
    elif isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name} is a masked array, whose mask would be lost; fill it, or use ignore_index or sample_weight"
        )
    else:
        try:
            array = np.asarray(value)
        except (TypeError, ValueError) as error:  # ragged lists; tensors that NumPy cannot read
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{name} cannot be made an array: {error}") from None
    if array.dtype.kind not in "fiub":
        if array.dtype.kind == "O" and not array.ndim:  # NumPy found nothing to iterate over
            raise TypeError(f"{name} is {type(value).__name__}, expected an array of real numbers")
        raise TypeError(f"{name} has dtype {array.dtype}, expected real numbers")
    return array


def native(array: Array) -> Array:
    """The array itself if it is aligned and in native byte order, else a copy that is."""
    if not array.dtype.isnative:
        return array.astype(array.dtype.newbyteorder("="))
    return array if array.flags.aligned else array.copy()


def as_logits(value: Any, name: str = "logits") -> Array:
    """`value` as float32 or float64, aligned, native; integers and bools as float64."""
    array = as_array(name, value)
    dtype = array.dtype
    if dtype is F32 or dtype is F64:
        return native(array)
    if dtype.kind in "iub":
        return array.astype(F64)
    if dtype.kind == "f" and dtype.itemsize in (4, 8):
        return native(array).view(F32 if dtype.itemsize == 4 else F64)  # equal dtypes need not be the same object
    raise TypeError(
        f"{name} has dtype {dtype}, expected float32 or float64 (computed as they are), or integers or bools "
        f"(computed as float64); cast it: {name}.astype(np.float32)"
    )


def as_axis(axis: Any, ndim: int) -> int:
    """`axis` counted from the first."""
    try:
        if isinstance(axis, bool):  # an int to Python, a slip to whoever wrote it; np.bool has no index
            raise TypeError
        at = operator.index(axis)
    except TypeError:
        raise TypeError(f"axis is {axis!r}, expected an int") from None
    if not -ndim <= at < ndim:
        raise ValueError(f"axis is {at}, out of range for {ndim} dimension{'s' * (ndim != 1)}")
    return at % ndim


def as_number(name: str, value: Any) -> float:
    """A real scalar."""
    if isinstance(value, (float, int)):
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{name} is too large for a float64") from None
    if value is None:
        raise TypeError(f"{name} is None, expected a number")
    array = as_array(name, value)
    if array.ndim:
        raise ValueError(f"{name} has shape {array.shape}, expected a scalar")
    return float(array)


def as_weights(name: str, value: Any, shape: tuple[int, ...], meaning: str, dtype: np.dtype[Any] = F64) -> Array:
    """Weights as float64: not negative, finite in the `dtype` that they are used in."""
    array = as_array(name, value)
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, expected {shape}: {meaning}")
    array = array.astype(F64, copy=False)
    wrong = ~((array >= 0) & (array <= LARGEST[dtype]))
    if wrong.any():
        at = tuple(np.argwhere(wrong)[0].tolist())
        finite = "finite numbers" if dtype is F64 else f"numbers finite in {dtype}"
        raise ValueError(f"{at_index(name, at)} is {array[at]}, expected {finite} >= 0")
    return array


def as_labels(array: Array, ignored: int | None) -> tuple[Array, int | None]:
    """Integer labels as int64, C order; and `ignored` as int64 or None when no such label can be told from the rest."""
    if array.dtype.kind not in "iu":
        raise TypeError(
            f"targets has dtype {array.dtype} and the shape of class indices, which are integers; "
            "cast them: targets.astype(np.int64)"
        )
    if array.dtype.kind == "u" and array.dtype.itemsize == 8 and array.size and array.max() > INT64.max:
        # No class has such a number, and it must not wrap round to one that is ignored.
        large = array > np.uint64(INT64.max)
        if ignored is not None and ignored > INT64.max and (array[large] == np.uint64(ignored)).all():
            return np.where(large, -1, array.astype(I64)), -1
        return np.where(large, INT64.max, array.astype(I64)), ignored
    if ignored is not None and not INT64.min <= ignored <= INT64.max:
        ignored = None
    return array.astype(I64, order="C", copy=False), ignored


def at_index(name: str, at: tuple[int, ...]) -> str:
    return f"{name}[{', '.join(map(str, at))}]" if at else name


def check_out(out: Any, like: Array, what: str = "logits") -> None:
    """`out` can take a result of the shape and dtype of `like`."""
    if type(out) is not np.ndarray:
        if not isinstance(out, np.ndarray) or isinstance(out, np.ma.MaskedArray):
            raise TypeError(f"out is {type(out).__name__}, expected numpy.ndarray")
    if out.dtype != like.dtype:
        raise ValueError(f"out has dtype {out.dtype}, expected {like.dtype} to match {what}")
    if out.shape != like.shape:
        raise ValueError(f"out has shape {out.shape}, expected {like.shape} to match {what}")
    flags = out.flags
    if not flags.writeable:
        raise ValueError("out is read-only")
    if not out.dtype.isnative:
        raise ValueError(f"out has dtype {out.dtype.str}, expected native byte order")
    if not flags.aligned:
        raise ValueError("out is not aligned in memory")
    if not (flags.c_contiguous or flags.f_contiguous) and overlaps_itself(out):
        raise ValueError(f"out overlaps itself: its strides are {out.strides} for shape {out.shape}")


def overlaps_itself(array: Array) -> bool:
    """Whether two elements share memory."""
    if array.size <= 1:
        return False
    reach = array.itemsize
    for stride, length in sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if stride < reach:
            break
        reach += stride * (length - 1)
    else:
        return False
    # Strides that interleave: only the addresses themselves can tell.
    addresses = np.zeros(array.shape, dtype=np.int64)
    for k, (stride, length) in enumerate(zip(array.strides, array.shape, strict=True)):
        addresses += (np.arange(length) * stride).reshape((-1,) + (1,) * (array.ndim - 1 - k))
    gaps = np.diff(np.sort(addresses, axis=None))
    return bool((gaps < array.itemsize).any())


def same_memory(a: Array, b: Array) -> bool:
    """Whether two arrays of one shape and dtype are element for element the same."""
    return a is b or (a.strides == b.strides and a.__array_interface__["data"][0] == b.__array_interface__["data"][0])


class Rows(NamedTuple):
    """An array as the kernels walk it: blocks of rows with one distance between rows, classes last."""

    first: Array  # (rows in a block, classes), a view
    blocks: Array | None  # byte offset of each block from the first; None when there is one


class Order(NamedTuple):
    """How positions (all axes but the classes') are counted: in the order of the logits' memory."""

    axis: int
    ndim: int  # of the logits
    axes: tuple[int, ...] | None  # the logits' axes, positions in order, then classes; None: as they are
    inverse: tuple[int, ...] | None  # from positions in order back to the caller's

    def rows(self, array: Array) -> Rows:
        """A view of an array of the logits' shape."""
        if self.axes is not None:
            array = array.transpose(self.axes)
        if array.ndim == 2:
            return Rows(array, None)
        classes, count, step, outer = array.shape[-1], 1, 0, array.ndim - 1
        while outer > 0:
            length, stride = array.shape[outer - 1], array.strides[outer - 1]
            if length != 1 and count != 1 and stride != count * step:
                break
            if length != 1:
                step = stride if count == 1 else step
                count *= length
            outer -= 1
        if outer == 0:
            return Rows(array.reshape(count, classes), None)
        offsets = np.zeros((), dtype=np.intp)
        for length, stride in zip(array.shape[:outer], array.strides[:outer], strict=True):
            offsets = np.add.outer(offsets, np.arange(length, dtype=np.intp) * stride)
        return Rows(array[(0,) * outer].reshape(count, classes), offsets.reshape(-1))

    def by_position(self, array: Array) -> Array:
        """An array of one number for each position, flat, in order."""
        if self.inverse is not None:
            array = array.transpose(np.argsort(self.inverse))
        return native(np.ascontiguousarray(array)).reshape(-1)

    def to_caller(self, flat: Array, shape: tuple[int, ...]) -> Array:
        """The way back: `flat` as an array of `shape`."""
        if self.inverse is None:
            return flat.reshape(shape)
        return flat.reshape([shape[k] for k in np.argsort(self.inverse)]).transpose(self.inverse)


def order_of(array: Array, axis: int) -> Order:
    ndim = array.ndim
    if ndim <= 2:
        return Order(axis, ndim, None if axis == ndim - 1 else (1, 0), None)
    strides = array.strides
    positions = [k for k in range(ndim) if k != axis]
    ordered = sorted(positions, key=lambda k: -abs(strides[k]))
    if ordered == positions:
        return Order(axis, ndim, None if axis == ndim - 1 else (*positions, axis), None)
    rank = {k: i for i, k in enumerate(ordered)}
    return Order(axis, ndim, (*ordered, axis), tuple(rank[k] for k in positions))
