"""Conversions of arguments that the frame cannot use as they are, and the errors that it raises.

Called by _kernels.pyx. Nothing here writes to an array that it was given.
"""

from __future__ import annotations

import operator
import sys
from typing import Any

import numpy as np

F32, F64, I64 = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.int64)
LARGEST_INT64 = np.iinfo(np.int64).max

Array = np.ndarray[Any, np.dtype[Any]]


def bound(face: Any, names: tuple[str, ...], arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, Any]:
    """All positional arguments of a call, where some are given by keyword, and the options. Raises what Python raises
    for a call that the signature of `face` does not allow."""
    face(*arguments, **options)
    options = dict(options)
    return arguments + tuple(options.pop(name) for name in names[len(arguments) :]), options


def is_masked(value: Any) -> bool:
    """Whether a value is a masked array, or a sequence that holds one."""
    if isinstance(value, (list, tuple)):
        return any(map(is_masked, value))
    return isinstance(value, np.ndarray) and type(value) is not np.ndarray and isinstance(value, np.ma.MaskedArray)


def is_bfloat16(dtype: Any) -> bool:
    """Whether it is the bfloat16 of ml_dtypes, which need not be installed."""
    return bool(dtype.itemsize == 2 and dtype.name == "bfloat16")


def computed_dtype(dtype: Any) -> Any:
    """What logits of that dtype are computed in."""
    return F32 if dtype.itemsize == 2 else dtype


def bits_of(array: Array) -> Array:
    """The same memory as unsigned integers. NumPy exports no buffer of bfloat16 numbers."""
    return array.view(np.uint16)


# What other libraries put in an array's place to differentiate a function. Their integrations can be differentiated.
TRACED = {
    ("autograd", "Box"): "is differentiated by autograd",
    ("jax", "Tracer"): "is traced by JAX",
    ("torch", "Tensor"): "requires grad",
}


def refuse_traced(name: str, value: Any) -> None:
    """Raise if an array made of `value` would be a constant to the library that differentiates it."""
    if type(value).__module__ in ("builtins", "numpy"):
        return
    for cls in type(value).__mro__:
        library = cls.__module__.partition(".")[0]
        if problem := TRACED.get((library, cls.__name__)):
            if library == "torch" and not (value.requires_grad and sys.modules["torch"].is_grad_enabled()):
                return
            instead = f", or pass {name}.detach()" if library == "torch" else ""
            raise TypeError(f"{name} {problem}: use {__package__}.integrations.{library}{instead}")


def as_array(name: str, value: Any) -> Array:
    """`value` as a plain ndarray of real numbers or bools."""
    if type(value) is np.ndarray:
        array = value
    elif value is None:
        raise TypeError(f"{name} is None, expected an array")
    else:
        refuse_traced(name, value)
        masked = is_masked(value)  # NumPy would warn of a list of masked elements
        try:
            array = np.empty(0) if masked else np.asanyarray(value)
        except (TypeError, ValueError) as error:  # ragged lists; tensors that NumPy cannot read
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{name} cannot be made an array: {error}") from None
        if masked or is_masked(array):
            raise TypeError(
                f"{name} is a masked array, whose mask would be lost; fill it, or use ignore_index or sample_weight"
            )
        array = np.asarray(array)
    if array.dtype.kind not in "fiub" and not is_bfloat16(array.dtype):
        if array.dtype.kind == "O" and not array.ndim:  # NumPy found nothing to iterate over
            raise TypeError(f"{name} is {type(value).__name__}, expected an array of real numbers")
        raise TypeError(f"{name} has dtype {array.dtype}, expected real numbers")
    return array


def converted(array: Array, dtype: Any) -> Array:
    if np.can_cast(array.dtype, dtype):
        return array.astype(dtype, copy=False)
    with np.errstate(all="ignore"):  # infinite in the narrower dtype, as in the kernels, without a warning
        return array.astype(dtype)


def flush(array: Array) -> None:
    """What subnormals="flush" does, in place; the kernels do it by themselves."""
    smallest = 2.0**-100 if array.dtype == F32 else 2.0**-900
    with np.errstate(all="ignore"):
        np.copysign(0, array, out=array, where=np.abs(array) < smallest)


def contiguous(array: Array, dtype: Any) -> Array:
    """The numbers of an array in C order, in one dimension."""
    return np.ascontiguousarray(converted(array, dtype)).reshape(-1)


def as_real(name: str, value: Any) -> Array:
    """`value` as an aligned native array of a dtype that the kernels read. bfloat16 becomes float32."""
    array = as_array(name, value)
    return converted(array, F32) if is_bfloat16(array.dtype) else readable(array)


def readable(array: Array) -> Array:
    """An array as an aligned native one of a dtype that the kernels read."""
    dtype = array.dtype
    if dtype.kind == "f" and dtype.itemsize > 8:
        return converted(array, F64)
    if not dtype.isnative:
        return array.astype(dtype.newbyteorder("="))
    return array if array.flags.aligned else array.copy(order="K")


def as_logits(name: str, value: Any, keep_integers: bool) -> Array:
    """`value` as an aligned native array of floats that the kernels read; integers and bools as float64 unless they are
    kept."""
    array = as_array(name, value)
    dtype = array.dtype
    if dtype.kind == "f" and dtype.itemsize > 8:
        raise TypeError(
            f"{name} has dtype {dtype}, expected float64 or float32 (computed as they are), float16 or bfloat16 "
            f"(computed as float32), or integers or bools (computed as float64); cast it: {name}.astype(np.float64)"
        )
    if dtype.kind in "iub" and not keep_integers:
        return array.astype(F64)
    return readable(array)


def as_targets(value: Any, shape: tuple[int, ...], name: str) -> Array:
    """Targets as an aligned native array. Floats that are no probabilities are left as they are, for the error."""
    array = as_array(name, value)
    if not array.size and not isinstance(value, np.ndarray):
        array = array.astype(I64)  # NumPy makes an empty list float64
    if array.dtype.kind == "f" and array.shape != shape:
        return array
    return readable(array)


def as_axis(axis: Any, ndim: int) -> int:
    """`axis` counted from the first."""
    try:
        if isinstance(axis, bool):  # an int to Python, but a slip here; NumPy's bool has no index
            raise TypeError
        at = operator.index(axis)
    except TypeError:
        raise TypeError(f"axis is {axis!r}, expected an int") from None
    if not -ndim <= at < ndim:
        raise ValueError(f"axis is {at}, out of range for {ndim} dimension{'s' * (ndim != 1)}")
    return at % ndim


def as_axes(axis: Any, ndim: int) -> tuple[int, ...]:
    """The axes that a tuple of ints, an int or None, which means all of them, stands for; counted from the first."""
    if axis is None:
        return tuple(range(ndim))
    axes = tuple(as_axis(one, ndim) for one in (axis if isinstance(axis, tuple) else (axis,)))
    if len(set(axes)) < len(axes):
        raise ValueError(f"axis is {axis}, which names an axis more than once")
    return axes


def as_index(name: str, value: Any) -> int:
    try:
        if isinstance(value, bool):  # an int to Python, but a slip here
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}, expected an int or None") from None


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


def as_threads(value: Any) -> int:
    try:
        return min(as_count("num_threads", value), 2**31 - 1)
    except (TypeError, ValueError):
        raise ValueError(f"num_threads is {value!r}, expected None (automatic) or an int >= 1") from None


def as_count(name: str, value: Any) -> int:
    """An int >= 1."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}, expected an int >= 1") from None
    if count < 1:
        raise ValueError(f"{name} is {value}, expected an int >= 1")
    return count


def as_labels(name: str, value: Any) -> Array:
    """Integers in C order, aligned and native."""
    array = as_array(name, value)
    if not array.size and not isinstance(value, np.ndarray):
        array = array.astype(I64)  # NumPy makes an empty list float64
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} has dtype {array.dtype}, expected integers; cast them: {name}.astype(np.int64)")
    flags = array.flags
    if flags.c_contiguous and flags.aligned and array.dtype.isnative:
        return array
    return np.asarray(readable(array), order="C")  # np.ascontiguousarray would add an axis to a single label


def as_int64(labels: Array, ignored: int) -> Array:
    """uint64 labels as int64: -1 where they are ignored, the largest int64 where int64 cannot hold them."""
    wide = np.where(labels > np.uint64(LARGEST_INT64), LARGEST_INT64, labels.astype(I64))
    return wide if ignored < 0 or ignored >= 2**64 else np.where(labels == np.uint64(ignored), -1, wide)


def place(name: str, wrong: Array) -> tuple[str, tuple[int, ...]]:
    """The first place where an array is wrong, as it is written and as an index."""
    at = tuple(np.argwhere(wrong)[0].tolist())
    return (f"{name}[{', '.join(map(str, at))}]" if at else name), at


def label_error(labels: Array, classes: int, ignored: int | None, name: str) -> IndexError:
    wrong = (labels < 0) | (labels >= classes)
    if ignored is not None:
        wrong &= labels != ignored
    if not wrong.any():  # another thread has written to them meanwhile
        return IndexError(f"{name} were out of range for {classes} classes while they were checked")
    where, at = place(name, wrong)
    note = "" if name == "labels" and ignored is None else f" (ignore_index is {ignored})"
    if note and labels[at] < 0:
        note += f"; pass ignore_index={labels[at]} if it marks rows that do not count"
    return IndexError(f"{where} is {labels[at]}, out of range for {classes} classes{note}")


def targets_error(
    targets: Array, shape: tuple[int, ...], axis: int, may_be_labels: bool, may_be_rows: bool, name: str
) -> Exception:
    row_shape = shape[:axis] + shape[axis + 1 :]
    if not may_be_labels:
        hint = "; class indices become such rows with one_hot"
        hint = hint if targets.shape == row_shape and name == "targets" else ""
        return ValueError(f"{name} has shape {targets.shape}, expected {shape} to match logits{hint}")
    if targets.shape == row_shape:
        return TypeError(
            f"{name} has dtype {targets.dtype} and the shape of class indices, which are integers; "
            f"{cast(targets, name)}"
        )
    rows = f" or {shape} (probabilities)" if may_be_rows else ""
    return ValueError(
        f"{name} has shape {targets.shape}, expected {row_shape} (class indices){rows} "
        f"for logits of shape {shape} with classes on axis {axis}{shape_hint(targets, shape, row_shape, name)}"
    )


def check_probabilities(name: str, targets: Any, sample_weight: Any, axis: int) -> None:
    """They are finite and not negative, except in rows that do not count."""
    array = as_real(name, targets)
    wrong = ~((array >= 0) & (array < np.inf))
    if sample_weight is not None:
        wrong &= np.expand_dims(as_real("sample_weight", sample_weight) != 0, axis)
    if wrong.any():
        where, at = place(name, wrong)
        raise ValueError(f"{where} is {array[at]}, expected probabilities, which are finite numbers >= 0")


def cast(targets: Array, name: str) -> str:
    """How floats become class indices."""
    wrong = ~np.isfinite(targets) if targets.dtype.kind == "f" else np.zeros(targets.shape, bool)
    if not wrong.any():
        return f"cast them: {name}.astype(np.int64)"
    where, at = place(name, wrong)
    return f"{where} is {targets[at]}, which is no class"


def shape_hint(targets: Array, shape: tuple[int, ...], row_shape: tuple[int, ...], name: str) -> str:
    """What may be meant by class indices of another shape."""
    axes = [k for k in range(len(shape)) if targets.shape == shape[:k] + shape[k + 1 :]]
    if axes:
        return f"; did you mean axis={axes[0]}?"
    if targets.size and [n for n in targets.shape if n != 1] == [n for n in row_shape if n != 1]:
        return f"; did you mean {name}.reshape({row_shape})?"
    return ""


def upstream_error(upstream: Array, expected: tuple[int, ...], of_product: bool) -> ValueError:
    if of_product:
        return ValueError(f"upstream has shape {upstream.shape}, expected {expected} to match y")
    return ValueError(f"upstream has shape {upstream.shape}, expected a scalar or {expected}")


def vectors_error(vectors: Array, expected: tuple[int, ...]) -> ValueError:
    return ValueError(f"vectors has shape {vectors.shape}, expected {expected} to match logits")


def weight_shape_error(name: str, weight: Array, expected: tuple[int, ...], by_row: bool) -> ValueError:
    meaning = "one for each row" if by_row else "one for each class"
    return ValueError(f"{name} has shape {weight.shape}, expected {expected}: {meaning}")


def weight_error(name: str, weight: Any, dtype: Any) -> ValueError:
    weight = as_real(name, weight).astype(F64)
    where, at = place(name, ~((weight >= 0) & (weight <= float(np.finfo(dtype).max))))
    finite = "finite numbers" if dtype == F64 else "numbers finite in float32"
    return ValueError(f"{where} is {weight[at]}, expected {finite} >= 0")


def stats_error(
    name: str, array: Array, shape: tuple[int, ...], shape_of_logits: tuple[int, ...], dtype: Any
) -> ValueError:
    if array.shape != shape:
        return ValueError(f"{name} has shape {array.shape}, expected {shape} for logits of shape {shape_of_logits}")
    return ValueError(f"{name} has dtype {array.dtype}, expected {dtype} to match logits")


def check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], what: str, name: str) -> Array:
    """`out` as a plain ndarray, which can take a result of that shape and dtype; these are those of `what`."""
    if not issubclass(type(out), np.ndarray) or isinstance(out, np.ma.MaskedArray):
        raise TypeError(f"{name} is {type(out).__name__}, expected numpy.ndarray")
    array: Array = np.asarray(out)  # what a subclass says of itself need not be true
    if array.dtype != dtype:
        raise ValueError(f"{name} has dtype {array.dtype}, expected {dtype} to match {what}")
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, expected {shape} to match {what}")
    if not array.flags.writeable:
        raise ValueError(f"{name} is read-only")
    if not array.dtype.isnative:
        raise ValueError(f"{name} has dtype {array.dtype.str}, expected native byte order")
    if not array.flags.aligned:
        raise ValueError(f"{name} is not aligned in memory")
    if overlaps_itself(array):
        raise ValueError(f"{name} overlaps itself: its strides are {array.strides} for shape {array.shape}")
    return array


def check_apart(out: tuple[Array, Array]) -> None:
    """Two arrays share no memory. The ranges of their addresses overlap."""
    if np.shares_memory(*out):
        raise ValueError("out[0] and out[1] share memory")


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
