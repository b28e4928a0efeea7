"""States of blocks of classes in NumPy: rows whose classes are in several blocks, on other workers or not in memory at
once. The state of each block is computed, the states are merged, and the loss and each block's gradient follow from the
merged state. `_block_stats.py` makes this public; the integrations that distribute rows' classes use it too.

With q as in `cross_entropy`, the state of some classes is ``row_max``, ``tail`` (see `SoftmaxStats`), ``mass = sum(q)``
and ``linear = sum(q*(row_max - x))``, all in float64. The last two do not contain the temperature. That of no classes
is (-inf, -1, 0, 0). These are the formulas of `State` in _job.pxd, for arrays of rows.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from . import _checks
from ._cross_entropy import cross_entropy, cross_entropy_grad
from ._softcap import capped, tanh_and_slope
from ._stats import Array, SoftmaxStats

PIECE = 1 << 16  # as many numbers of a block as stay in cache while they are worked on
WIDER = np.finfo(np.longdouble).nmant > np.finfo(np.float64).nmant  # and sums in it are faster than math.fsum


class BlockStats(NamedTuple):
    """The state of a block of classes of each row, in float64: what `block_stats` returns and `merge_stats` merges.

    With the numbers q of `cross_entropy`, which ``-log(p)`` is multiplied by, and sums over the classes of the block:

    Parameters
    ----------
    row_max : ndarray
        The largest logit. It is NaN if a logit is NaN, and -inf if there is none.
    tail : ndarray
        ``sum(exp((x - row_max)/temperature)) - 1``. It is -1 if there is no logit, or only -inf.
    mass : ndarray
        ``sum(q)``.
    linear : ndarray
        ``sum(q*(row_max - x))``.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> fastce.block_stats(np.zeros((1, 0)), [3], class_offset=0, num_classes=9)
    BlockStats(row_max=array([-inf]), tail=array([-1.]), mass=array([0.]), linear=array([0.]))
    """

    row_max: Array
    tail: Array
    mass: Array
    linear: Array


class Block(NamedTuple):
    """Which classes a block holds, and the options that its state depends on."""

    class_offset: int  # the number of its first class
    num_classes: int  # of the whole rows
    weight: Any = None  # of the classes of the block
    ignore_index: int | None = -100
    label_smoothing: float = 0.0
    temperature: float = 1.0
    softcap: float | None = None
    axis: int = -1
    num_threads: int | None = None

    def weights(self, classes: int) -> Array:
        return np.ones(classes) if self.weight is None else np.asarray(self.weight, np.float64)


def counted_rows(
    labels: Array, num_classes: int, ignore_index: int | None, sample_weight: Any = None, name: str = "targets"
) -> Array:
    """Which rows count. Raises what `cross_entropy` raises for labels that are out of range."""
    ignored = np.zeros(labels.shape, bool) if ignore_index is None else labels == ignore_index
    if (((labels < 0) | (labels >= num_classes)) & ~ignored).any():
        raise _checks.label_error(labels, num_classes, ignore_index, name)
    return ~ignored if sample_weight is None else ~ignored & (np.asarray(sample_weight) != 0)


def check_weights(name: str, weight: Any) -> None:
    """Raise what `cross_entropy` raises for weights that are no finite numbers >= 0."""
    if weight is not None and not ((weight >= 0) & (weight < np.inf)).all():
        raise _checks.weight_error(name, weight, _checks.F64)


def row_shares(
    labels: Array | None, num_classes: int, ignore_index: int | None, weight: Any, sample_weight: Any
) -> Array:
    """What rows add to the denominator of the mean: the sum, and what its rounding to float64 lost."""
    share: Any = None
    if sample_weight is not None:
        check_weights("sample_weight", sample_weight)
        share = np.asarray(sample_weight, np.float64)
    if labels is not None:
        counted = counted_rows(labels, num_classes, ignore_index)
        if weight is not None:
            of_labels = np.asarray(weight, np.float64)[np.where(counted, labels, 0).astype(np.int64)]
            share = of_labels if share is None else of_labels * share
        if share is None:
            return np.array([np.count_nonzero(counted), 0.0])
        share = np.where(counted, share, 0.0)
    if WIDER:
        total = np.add.reduce(share, axis=None, dtype=np.longdouble)
        return np.array([total, total - np.float64(total)], np.float64)
    numbers = share.ravel().tolist()
    total = math.fsum(numbers)
    return np.array([total, math.fsum([*numbers, -total])])


def no_classes(shape: tuple[int, ...]) -> BlockStats:
    """The state of a block without classes, which changes nothing that it is merged with."""
    return BlockStats(np.full(shape, -np.inf), np.full(shape, -1.0), np.zeros(shape), np.zeros(shape))


def block_stats(logits: Array, targets: Array | None, block: Block) -> BlockStats:
    """The state of a block.

    Labels count from the first class of the whole rows, and those of other blocks and out of range add nothing.
    Probabilities are those of the block. Without targets, mass and linear are 0.
    """
    axis = _checks.as_axis(block.axis, logits.ndim)
    shape = logits.shape[:axis] + logits.shape[axis + 1 :]
    classes = logits.shape[axis]
    if classes == 0:
        return no_classes(shape)
    has_labels = targets is not None and targets.ndim < logits.ndim
    # fastce's loss of the block is mass*log1p(tail) + linear/temperature. It is no larger than the loss of the row, so
    # that what remains without the first term is accurate to a rounding of the latter.
    uniform = block.label_smoothing / block.num_classes
    base_scale = uniform * classes
    options: dict[str, Any] = {
        "temperature": block.temperature,
        "softcap": block.softcap,
        "axis": axis,
        "num_threads": block.num_threads,
        "reduction": "none",
        "return_stats": True,
    }
    if targets is None or has_labels:  # of labels, only what all classes have; the rest is added below
        nothing = np.broadcast_to(np.zeros((), np.int8), shape)
        smoothed = {"weight": block.weight, "label_smoothing": 1.0} if uniform else {}
        loss, stats = cross_entropy(logits, nothing, ignore_index=None, **smoothed, **options)
        mass = np.full(shape, uniform * block.weights(classes).sum() if uniform and has_labels else 0.0)
    else:
        hot = 1 - block.label_smoothing
        base_scale += hot
        smoothing = min(uniform * classes / base_scale, 1.0)
        loss, stats = cross_entropy(logits, targets, weight=block.weight, label_smoothing=smoothing, **options)
        weight = block.weights(classes)
        of_targets = np.einsum("...j,j->...", np.moveaxis(targets, axis, -1), weight, dtype=np.float64)
        mass = hot * of_targets + uniform * weight.sum()

    row_max, tail = (np.asarray(part, np.float64) for part in stats)
    linear = np.zeros(shape)
    with np.errstate(all="ignore"):
        if base_scale:
            linear = block.temperature * (base_scale * np.asarray(loss, np.float64) - mass * np.log1p(tail))
            linear = np.where(mass == 0, 0.0, linear)
        if not np.isfinite(row_max + tail).all():
            row_max, tail, linear = _of_special_rows(np.moveaxis(logits, axis, -1), row_max, tail, mass, linear)
        if targets is not None and has_labels:
            local, inside = _local(targets, classes, block)
            added = _hot(local, inside, classes, block)
            x_label = _capped(
                _classes_last(logits, axis)[_places(inside, local)].astype(_computed(logits)), block.softcap
            )
            largest = row_max[inside]
            gap = np.where(largest == -np.inf, 0.0, largest) - x_label
            mass[inside] += added
            linear[inside] += np.where(added == 0, 0.0, added * gap)
    return BlockStats(row_max, tail, mass, linear)


def _of_special_rows(x: Array, row_max: Array, tail: Array, mass: Array, linear: Array) -> tuple[Array, Array, Array]:
    """The state where some rows hold NaN or +inf, or only -inf. `row_max` tells which it is."""
    row_max = np.where(np.isnan(tail) & np.isfinite(row_max), np.nan, row_max)
    infinite = np.isinf(row_max)
    row_max[infinite] = np.where(np.isnan(x[infinite]).any(axis=-1), np.nan, row_max[infinite])
    return row_max, tail, np.where((row_max == -np.inf) & (mass != 0), mass * np.inf, linear)


def _local(labels: Array, classes: int, block: Block) -> tuple[Array, Array]:
    """The labels counted from the first class of the block, 0 for those of others; and which are of the block."""
    inside = (labels >= block.class_offset) & (labels < block.class_offset + classes)
    if block.ignore_index is not None:
        inside &= labels != block.ignore_index
    return np.where(inside, labels, 0).astype(np.int64) - np.where(inside, block.class_offset, 0), inside


def _hot(local: Array, inside: Array, classes: int, block: Block) -> Array:
    """What labels of the block add to q."""
    return block.weights(classes)[local[inside]] * (1 - block.label_smoothing)


def _classes_last(x: Array, axis: int) -> Array:
    """With at least one axis before that of the classes."""
    return x[None] if x.ndim == 1 else np.moveaxis(x, axis, -1)


def _places(rows: Array, classes: Array) -> tuple[Array, ...]:
    """Where the classes of some rows are, with the classes last."""
    return *np.nonzero(np.atleast_1d(rows)), classes[rows]


def _computed(logits: Array) -> Any:
    """The dtype that they are computed in."""
    return np.dtype(np.float64) if logits.dtype.kind in "iub" else _checks.computed_dtype(logits.dtype)


def _stored(array: Array, logits: Array) -> Array:
    """A result in the dtype of the logits, if that is of floats."""
    return array if logits.dtype.kind in "iub" else _checks.converted(array, logits.dtype)


def _capped(x: Array, softcap: float | None) -> Array:
    """The logits as the kernels see them."""
    return x if softcap is None else capped(x, softcap)


def _slope(x: Array, softcap: float | None) -> Any:
    """The derivative of `_capped`."""
    return 1.0 if softcap is None else tanh_and_slope(x, softcap)[1]


def merge_stats(a: BlockStats, b: BlockStats, temperature: float = 1.0) -> BlockStats:
    """The state of the classes of both. The order of the two does not change a bit."""
    with np.errstate(all="ignore"):
        a_first = (a.row_max > b.row_max) | ((a.row_max == b.row_max) & (a.tail >= b.tail))
        a_first |= np.isnan(a.row_max) & ~np.isnan(b.row_max)
        larger, smaller = (np.where(a_first, x, y) for x, y in ((a.row_max, b.row_max), (b.row_max, a.row_max)))
        gap = np.where(larger > smaller, larger - smaller, 0.0)
        others = 1 + np.where(a_first, b.tail, a.tail)
        tail = np.where(a_first, a.tail, b.tail) + others * np.exp(-gap / temperature)
        # A maximum of -inf is compared with as if it were 0: what it adds to linear is 0 or infinite already.
        mass = np.where(a_first, b.mass, a.mass)
        moved = np.where((mass == 0) | (smaller == -np.inf), 0.0, mass * gap)
        linear = np.where(a_first, a.linear, b.linear) + (np.where(a_first, b.linear, a.linear) + moved)
        return BlockStats(larger, tail, a.mass + b.mass, linear)


def log_totals(stats: BlockStats) -> Array:
    """``log1p(tail)``, and NaN for rows of nothing but -inf."""
    with np.errstate(all="ignore"):
        return np.log1p(np.where(stats.row_max == -np.inf, np.nan, stats.tail))


def lse_of_stats(stats: BlockStats, temperature: float = 1.0) -> Array:
    """The logsumexp of merged states, as `logsumexp` returns it."""
    with np.errstate(all="ignore"):
        lse = stats.row_max / temperature + np.log1p(stats.tail)
    return np.where(np.isposinf(stats.row_max), np.inf, lse)


def losses_of_stats(stats: BlockStats, z_loss: float = 0.0, temperature: float = 1.0) -> Array:
    """The loss of each row, without its sample weight."""
    log_total = log_totals(stats)
    with np.errstate(all="ignore"):
        loss = stats.mass * log_total + stats.linear / temperature
        return loss + z_loss * (stats.row_max / temperature + log_total) ** 2 if z_loss else loss


def block_grad(
    logits: Array,
    targets: Array,
    stats: BlockStats,
    block: Block,
    scale: Array,
    counted: Array,
    z_loss: float = 0.0,
    subnormals: str = "keep",
) -> Array:
    """The gradient of a block, from the merged state of the whole rows.

    Each row is multiplied by `scale`. The gradient of a row that is not `counted` is 0. Labels may be those of other
    blocks.
    """
    axis = _checks.as_axis(block.axis, logits.ndim)
    has_labels = targets.ndim < logits.ndim
    if has_labels:
        local, inside = _local(targets, logits.shape[axis], block)
    else:
        local, inside = np.zeros(counted.shape, np.int64), np.zeros(counted.shape, bool)
    with np.errstate(all="ignore"):
        factor = stats.mass
        if z_loss:
            factor = factor + 2 * z_loss * (stats.row_max / block.temperature + log_totals(stats))
        a = np.where(counted, scale * factor, 0.0)
    grad, x = _times_softmax(logits, stats, block, axis, a, local, inside, counted, subnormals)
    uniform = block.label_smoothing / block.num_classes
    base = None
    if uniform or not has_labels:
        base = block.weights(logits.shape[axis]) / block.temperature
    with np.errstate(all="ignore"):
        if has_labels and (uniform or z_loss):
            inside &= counted
            at = _places(inside, local)
            value = a[inside] - scale[inside] * _hot(local, inside, logits.shape[axis], block)
            slope = _slope(_classes_last(x, axis)[at].astype(np.float64), block.softcap)
            _classes_last(grad, axis)[at] += (value / block.temperature * slope).astype(grad.dtype)
        if base is not None:
            subtracted = np.where(counted, scale, 0.0)
            of_targets = None if has_labels else _classes_last(targets, axis)
            g = _classes_last(grad, axis)
            _subtract(g, _classes_last(x, axis), of_targets, np.atleast_1d(subtracted), base, uniform, block)
    if base is not None and subnormals == "flush":
        _checks.flush(grad)
    return _stored(grad, logits)


def _times_softmax(
    logits: Array,
    stats: BlockStats,
    block: Block,
    axis: int,
    a: Array,
    local: Array,
    inside: Array,
    counted: Array,
    subnormals: str,
) -> tuple[Array, Array]:
    """``a/temperature*p``, times the slope of the softcap, less a/temperature at labels of the block, and the logits as
    they were computed. Those of half precision are converted, so that what is added to the result is not rounded."""
    x = logits.astype(_computed(logits), copy=False)
    row_max, tail = stats.row_max, np.where(stats.row_max == -np.inf, np.nan, stats.tail)
    with np.errstate(all="ignore"):
        rounded = SoftmaxStats(row_max.astype(x.dtype), tail.astype(x.dtype))
    grad: Array = cross_entropy_grad(
        x,
        np.where(counted, local, -1),
        stats=rounded,
        ignore_index=-1,
        reduction="none",
        upstream=a,
        temperature=block.temperature,
        softcap=block.softcap,
        subnormals=subnormals,
        axis=axis,
        num_threads=block.num_threads,
    )
    # The kernel's formula needs a label. Where it is not of the block, the first class stands for it, and is set here.
    outside = counted & ~inside
    if outside.any():
        first = np.moveaxis(x, axis, -1)[..., 0]
        capped = _capped(first, block.softcap).astype(np.float64)
        with np.errstate(all="ignore"):
            value = a * (np.exp((capped - row_max) / block.temperature) / (1 + tail))
            value = value / block.temperature * _slope(first.astype(np.float64), block.softcap)
            value = np.asarray(value, grad.dtype)
            if subnormals == "flush":
                _checks.flush(value)
            np.copyto(np.moveaxis(grad, axis, -1)[..., 0], value, where=outside)
    return grad, x


def _subtract(
    grad: Array, x: Array, targets: Array | None, scale: Array, base: Array, uniform: float, block: Block
) -> None:
    """Subtract ``scale*base*(hot*targets + uniform)``, times the slope of the softcap. The classes are last."""
    dtype = grad.dtype
    scale, base, hot = scale.astype(dtype), base.astype(dtype), dtype.type(1 - block.label_smoothing)
    step = max(1, PIECE // max(1, grad[:1].size))
    buffer = np.empty_like(grad[:step], order="C")
    for start in range(0, len(grad), step):
        rows = slice(start, start + step)
        part = buffer[: len(grad[rows])]
        if targets is None:
            np.multiply(scale[rows][..., None], base * dtype.type(uniform), out=part)
        else:
            np.multiply(targets[rows], hot, out=part, casting="same_kind")
            part += dtype.type(uniform)
            part *= base
            part *= scale[rows][..., None]
            np.copyto(part, 0.0, where=(scale[rows] == 0)[..., None])  # rows that do not count may hold NaN
        if block.softcap is not None:
            part *= np.nan_to_num(_slope(x[rows], dtype.type(block.softcap)))
        grad[rows] -= part


def block_softmax(logits: Array, stats: BlockStats, block: Block, subnormals: str = "keep") -> Array:
    """The probabilities of a block, from the merged state of the whole rows."""
    axis = _checks.as_axis(block.axis, logits.ndim)
    x = logits
    if block.softcap is not None:
        x = _capped(logits.astype(_computed(logits)), block.softcap)
    shape = stats.row_max.shape
    nowhere = np.zeros(shape, bool)
    times = np.full(shape, block.temperature)  # which the gradient is divided by
    p, _ = _times_softmax(
        x, stats, block._replace(softcap=None), axis, times, np.zeros(shape, np.int64), nowhere, ~nowhere, subnormals
    )
    return _stored(p, logits)


def block_log_softmax(logits: Array, stats: BlockStats, block: Block) -> Array:
    """The log-probabilities of a block, from the merged state of the whole rows."""
    axis = _checks.as_axis(block.axis, logits.ndim)
    dtype = _computed(logits)
    row_max = np.expand_dims(stats.row_max, axis).astype(dtype)
    log_total = np.expand_dims(log_totals(stats), axis).astype(dtype)
    with np.errstate(all="ignore"):
        x = logits.astype(dtype)
        if block.softcap is not None:
            x = _capped(x, block.softcap)
        x -= row_max
        if block.temperature != 1:
            x /= dtype.type(block.temperature)
        x -= log_total
    return _stored(x, logits)
