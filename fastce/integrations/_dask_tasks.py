"""What the tasks of dask.py compute: functions of NumPy arrays, which are blocks of dask arrays. _dask.py builds the
graph that calls them.

Where Dask sums over an axis that has one block, it hands over a list that holds this block. It could concatenate
instead, but that would copy each block.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import _merging, cross_entropy, cross_entropy_with_grad, evaluate, log_softmax, logsumexp, predict, softmax
from .._merging import Block, BlockStats

STATE = len(BlockStats._fields)


def only(value: Any) -> Any:
    """A block, out of the lists that hold it."""
    while isinstance(value, list):
        (value,) = value
    return value


def leaves(value: Any) -> list[Any]:
    """All blocks, out of the lists that hold them."""
    return [leaf for part in value for leaf in leaves(part)] if isinstance(value, list) else [value]


def located(task: Callable[..., Any]) -> Callable[..., Any]:
    """A task whose first argument is the place of its rows: the index of the first one, with None where the sizes of
    the blocks are not known, and the number of the block. Its errors name the index in the whole array."""

    @functools.wraps(task)
    def run(place: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return task(*map(only, arguments), **options)
        except (IndexError, ValueError) as error:
            raise type(error)(_in_the_whole_array(str(error), *place)) from None

    return run


def _in_the_whole_array(text: str, starts: tuple[int | None, ...], number: tuple[int, ...]) -> str:
    found = re.match(r"(targets|labels|sample_weight|upstream)\[([\d, ]+)\]", text)
    if found is None or None in starts:
        return f"{text} (in the block {number} of the rows)"
    index = [int(k) + (start or 0) for k, start in zip(found[2].split(","), starts, strict=True)]
    return f"{found[1]}[{', '.join(map(str, index))}]{text[found.end() :]}"


def first(pair: Any) -> Any:
    return only(pair)[0]


def second(pair: Any) -> Any:
    return only(pair)[1]


# --- Sums over all rows -----------------------------------------------------------------------------------------------


def _pairs(*pairs: Any, ndim: int) -> Any:
    """Sums of a block and what their rounding lost, in turn on the last axis, after `ndim` others."""
    return np.array(pairs, np.float64).reshape((1,) * ndim + (-1,))


@located
def shares(labels: Any, sample_weight: Any, weight: Any, *, num_classes: int, ignore_index: Any, ndim: int) -> Any:
    """What the rows of a block add to the denominator."""
    return _pairs(_merging.row_shares(labels, num_classes, ignore_index, weight, sample_weight), ndim=ndim)


def counts(targets: Any, *, axis: int) -> Any:
    """`shares` of rows that nothing but their number is known of."""
    shape = only(targets).shape
    return _pairs((math.prod(shape[:axis] + shape[axis + 1 :]), 0), ndim=len(shape) - 1)


def _sums(losses: Any, rows: tuple[int, ...], labels: Any, sample_weight: Any, weight: Any, options: Any) -> Any:
    """The sum of losses and, if the loss is divided by it, the sum of shares."""
    if not options["with_share"]:
        return _pairs((losses, 0), ndim=len(rows))
    share: Any = (math.prod(rows), 0)
    if labels is not None or sample_weight is not None:
        share = _merging.row_shares(labels, options["num_classes"], options["ignore_index"], weight, sample_weight)
    return _pairs((losses, 0), share, ndim=len(rows))


def sum_of_sums(x: Any, axis: Any = None, keepdims: Any = None) -> Any:
    """The sums of several blocks."""
    sums = [_exact(pairs) for pairs in np.moveaxis(x.reshape(-1, x.shape[-1] // 2, 2), 1, 0)]
    return _pairs(*sums, ndim=x.ndim - 1)


def _exact(pairs: Any) -> tuple[float, float]:
    if not np.isfinite(pairs).all():
        with np.errstate(all="ignore"):
            return float(np.add.reduce(pairs, axis=None)), 0.0
    numbers = pairs.ravel().tolist()
    total = math.fsum(numbers)
    return total, math.fsum([*numbers, -total])


def total(x: Any, axis: Any = None, keepdims: Any = None, *, denominator: float | None, result: Any) -> Any:
    """All that `sum_of_sums` left as one number, divided by the denominator or by the second sum."""
    sums = sum_of_sums(x).ravel()  # rounded: what was lost is in sums[1] and sums[3]
    divisor = sums[2] if denominator is None else denominator
    with np.errstate(all="ignore"):
        return result.type(sums[0] / divisor if divisor else np.nan)


# --- Classes in one block ---------------------------------------------------------------------------------------------


@located
def loss(
    x: Any,
    targets: Any,
    sample_weight: Any,
    weight: Any,
    *,
    axis: int,
    reduction: str,
    with_share: bool,
    num_classes: int,
    **options: Any,
) -> Any:
    """The losses of rows, or sums."""
    more = {"weight": weight, "sample_weight": sample_weight, "reduction": reduction, "axis": axis}
    value = cross_entropy(x, targets, **more, **options)
    if reduction == "none":
        return value
    labels = targets if targets.ndim < x.ndim else None
    of_share = {"with_share": with_share, "num_classes": num_classes, "ignore_index": options["ignore_index"]}
    return _sums(value, x.shape[:axis] + x.shape[axis + 1 :], labels, sample_weight, weight, of_share)


@located
def loss_and_grad(
    x: Any,
    targets: Any,
    sample_weight: Any,
    weight: Any,
    denominator: Any,
    upstream: Any,
    *,
    reduction: str,
    **options: Any,
) -> tuple[Any, Any]:
    """Both in one pass. The losses are summed, and divided by the denominator, unless they are those of rows."""
    nothing = reduction == "mean" and not denominator > 0
    if reduction == "mean" and not nothing:
        options["normalizer"] = float(denominator)
    if nothing:  # all rows have a weight of 0
        reduction, upstream = "sum", 0.0
    options |= {"sample_weight": sample_weight, "weight": weight, "reduction": reduction, "upstream": upstream}
    value, grad = cross_entropy_with_grad(x, targets, **options)
    if nothing:
        grad[...] = 0
    if reduction == "none":
        return value, grad
    return _pairs((np.nan if nothing else value, 0), ndim=x.ndim - 1), grad


# --- Classes in several blocks ----------------------------------------------------------------------------------------


def _block(class_offset: int, weight: Any, options: dict[str, Any]) -> Block:
    _merging.check_weights("weight", weight)
    return Block(class_offset, weight=weight, **{name: options[name] for name in Block._fields if name in options})


def _as_state(stats: BlockStats, axis: int) -> Any:
    """One array of a state, with its numbers on the first axis, and one class."""
    return np.expand_dims(np.stack(stats), axis + 1)


def _as_stats(state: Any, axis: int) -> BlockStats:
    return BlockStats(*(state.squeeze(axis + 1)))


def block_state(starts: Any, x: Any, targets: Any, weight: Any, *, axis: int, **options: Any) -> Any:
    """The state of a block of classes, which starts at these rows and classes."""
    of_block = _block(starts[axis], only(weight), {**options, "axis": axis})
    return _as_state(_merging.block_stats(x, only(targets), of_block), axis)


def merged_states(parts: Any, axis: Any = None, keepdims: Any = None, *, class_axis: int, temperature: float) -> Any:
    """The state of several blocks of classes, which are in lists."""
    states = [_as_stats(part, class_axis) for part in leaves(parts)]
    return _as_state(
        functools.reduce(functools.partial(_merging.merge_stats, temperature=temperature), states), class_axis
    )


def _counted(labels: Any, sample_weight: Any, shape: tuple[int, ...], options: dict[str, Any]) -> Any:
    _merging.check_weights("sample_weight", sample_weight)
    if labels is not None:
        return _merging.counted_rows(labels, options["num_classes"], options["ignore_index"], sample_weight)
    return np.ones(shape, bool) if sample_weight is None else np.asarray(sample_weight) != 0


@located
def loss_of_states(
    state: Any,
    labels: Any,
    sample_weight: Any,
    weight: Any,
    *,
    reduction: str,
    axis: int,
    z_loss: float,
    temperature: float,
    result: Any,
    **options: Any,
) -> Any:
    """The losses of rows, or sums, from merged states and the weights of all classes."""
    stats = _as_stats(state, axis)
    counted = _counted(labels, sample_weight, stats.tail.shape, options)
    losses = _merging.losses_of_stats(stats, z_loss, temperature)
    with np.errstate(all="ignore"):
        losses = np.where(counted, losses if sample_weight is None else losses * sample_weight, 0.0)
        if reduction == "none":
            return losses.astype(result)
        return _sums(losses.sum(), losses.shape, labels, sample_weight, weight, options)


@located
def grad_of_states(
    starts: Any,
    x: Any,
    targets: Any,
    weight: Any,
    state: Any,
    sample_weight: Any,
    denominator: Any,
    upstream: Any,
    *,
    axis: int,
    reduction: str,
    z_loss: float,
    subnormals: str,
    **options: Any,
) -> Any:
    """The gradient of a block, from the merged states of its rows."""
    stats = _as_stats(state, axis)
    shape = stats.tail.shape
    counted = _counted(targets if targets.ndim < x.ndim else None, sample_weight, shape, options)
    if reduction == "mean":
        counted &= bool(denominator > 0)
        upstream = upstream / float(denominator) if denominator > 0 else 0.0
    scale = np.broadcast_to(np.asarray(upstream, np.float64), shape)
    if sample_weight is not None:
        scale = scale * sample_weight
    of_block = _block(starts[axis], weight, {**options, "axis": axis})
    return _merging.block_grad(x, targets, stats, of_block, scale, counted, z_loss, subnormals)


def logsumexp_of_states(state: Any, *, axis: int, temperature: float, result: Any, keepdims: bool) -> Any:
    lse = _merging.lse_of_stats(_as_stats(only(state), axis), temperature).astype(result)
    return np.expand_dims(lse, axis) if keepdims else lse


def softmax_of_states(x: Any, state: Any, *, axis: int, subnormals: str, **options: Any) -> Any:
    of_block = _block(0, None, {**options, "axis": axis})
    return _merging.block_softmax(x, _as_stats(only(state), axis), of_block, subnormals)


def log_softmax_of_states(x: Any, state: Any, *, axis: int, **options: Any) -> Any:
    of_block = _block(0, None, {**options, "axis": axis})
    return _merging.block_log_softmax(x, _as_stats(only(state), axis), of_block)


# --- Functions of the same name, for whole rows -----------------------------------------------------------------------


def softmax_of_rows(x: Any, **options: Any) -> Any:
    return softmax(x, **options)


def log_softmax_of_rows(x: Any, **options: Any) -> Any:
    return log_softmax(x, **options)


def logsumexp_of_rows(x: Any, **options: Any) -> Any:
    return logsumexp(only(x), **options)


def predict_of_rows(x: Any, **options: Any) -> Any:
    return predict(only(x), **options)


@located
def evaluate_rows(x: Any, labels: Any, **options: Any) -> tuple[Any, Any]:
    """The evaluation and, if wanted, what each row is evaluated by."""
    found = evaluate(x, labels, **options)
    return found if isinstance(found, tuple) else (found, None)


def sum_of_evaluations(parts: Any, axis: Any = None, keepdims: Any = None) -> Any:
    return sum(leaves(parts))


def field(pair: Any, *, attribute: str) -> Any:
    return getattr(only(pair)[1], attribute)
