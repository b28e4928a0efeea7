"""The functions for rows whose classes are in several blocks. They check their arguments; `_merging.py` computes."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _checks, _merging
from ._cross_entropy import cross_entropy, cross_entropy_with_grad
from ._merging import Block, BlockStats
from ._stats import Array


def _block(
    logits: Any,
    targets: Any,
    class_offset: Any,
    num_classes: Any,
    weight: Any,
    ignore_index: Any,
    axis: Any,
    num_threads: Any,
    **options: Any,
) -> tuple[Array, Array, Block]:
    """Logits, targets and options of a block, all checked."""
    x = _checks.as_logits("logits", logits, False)
    if not x.ndim:
        raise ValueError("logits is a scalar, expected at least one dimension: the classes")
    axis = _checks.as_axis(axis, x.ndim)
    rows, classes = x.shape[:axis] + x.shape[axis + 1 :], x.shape[axis]
    total, offset = _checks.as_count("num_classes", num_classes), _checks.as_index("class_offset", class_offset)
    if offset < 0 or offset + classes > total:
        raise ValueError(
            f"class_offset is {offset} and logits of shape {x.shape} has {classes} classes on axis {axis}, which are "
            f"not within 0 and {total} (num_classes)"
        )
    # For no rows, this checks the options.
    nothing = np.zeros((0, total), x.dtype)
    cross_entropy_with_grad(
        nothing, np.zeros(0, int), weight=weight, ignore_index=ignore_index, num_threads=num_threads, **options
    )
    t = _checks.as_targets(targets, x.shape, "targets")
    if t.shape != x.shape:
        if t.shape != rows or t.dtype.kind not in "iu":
            raise _checks.targets_error(t, x.shape, axis, True, True, "targets")
        _merging.counted_rows(t, total, ignore_index)
    of_block = None if weight is None else np.asarray(weight, np.float64)[offset : offset + classes]
    state = {name: options[name] for name in ("label_smoothing", "temperature", "softcap")}
    return x, t, Block(offset, total, of_block, ignore_index, axis=axis, num_threads=num_threads, **state)


def _as_stats(name: str, stats: Any, shape: tuple[int, ...] | None = None) -> BlockStats:
    """Four float64 arrays of one shape: that given, or that of the first."""
    if not isinstance(stats, tuple) or len(stats) != len(BlockStats._fields):
        raise TypeError(f"{name} is {type(stats).__name__}, expected BlockStats")
    parts = []
    for field, value in zip(BlockStats._fields, stats, strict=True):
        part = _checks.as_real(f"{name}.{field}", value).astype(np.float64, copy=False)
        shape = part.shape if shape is None else shape
        if part.shape != shape:
            raise ValueError(f"{name}.{field} has shape {part.shape}, expected {shape}: one number for each row")
        parts.append(part)
    return BlockStats(*parts)


def block_stats(
    logits: Any,
    targets: Any,
    *,
    class_offset: int,
    num_classes: int,
    weight: Any = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    axis: int = -1,
    num_threads: int | None = None,
) -> BlockStats:
    """The state of a block of each row's classes, from which the loss and the gradient of whole rows follow.

    Use it where the classes of a row are on several machines or in several files. Compute the state of each block,
    merge them with `merge_stats`, and pass the result to `loss_from_stats` and `grad_from_stats`.

    Parameters
    ----------
    logits : array_like
        Those of consecutive classes, on `axis`. There may be no classes.
    targets : array_like
        Class indices, of the shape of `logits` without `axis`, which count from the first class of the whole rows.
        Those outside the block add nothing to its state. Or probabilities of the classes of the block, of the shape
        of `logits`.
    class_offset : int
        The number of the first class of the block.
    num_classes : int
        The number of classes of the whole rows.
    weight : array_like of shape (num_classes,), optional
        As in `cross_entropy`, for all classes.
    ignore_index, label_smoothing, temperature, softcap, axis, num_threads : optional
        As in `cross_entropy`.

    Returns
    -------
    stats : BlockStats
        The state, in float64.

    Raises
    ------
    TypeError, ValueError, IndexError
        As in `cross_entropy`; the block is not within `num_classes`.

    See Also
    --------
    fastce.integrations.mpi : The same over the processes of MPI.
    fastce.integrations.dask : The same for the chunks of dask arrays.

    Notes
    -----
    With q as in `cross_entropy`, ``row_max = max(x)``, ``tail = sum(exp((x - row_max)/temperature)) - 1``,
    ``mass = sum(q)`` and ``linear = sum(q*(row_max - x))``, where the maximum's own term is left out of the sum of
    exponentials. All calls for the same rows must have the same options.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> logits, labels = np.array([[1.0, 2.0, 5.0], [0.0, 3.0, 0.0]]), np.array([2, 0])
    >>> a = fastce.block_stats(logits[:, :2], labels, class_offset=0, num_classes=3)
    >>> b = fastce.block_stats(logits[:, 2:], labels, class_offset=2, num_classes=3)
    >>> loss = fastce.loss_from_stats(fastce.merge_stats(a, b), labels)
    >>> bool(np.allclose(loss, fastce.cross_entropy(logits, labels, reduction="none")))
    True
    """
    x, t, block = _block(
        logits, targets, class_offset, num_classes, weight, ignore_index, axis, num_threads,
        label_smoothing=label_smoothing, temperature=temperature, softcap=softcap,
    )  # fmt: skip
    return _merging.block_stats(x, t, block)


def merge_stats(a: BlockStats, b: BlockStats, *, temperature: float = 1.0) -> BlockStats:
    """The state of the classes of two blocks.

    Parameters
    ----------
    a, b : BlockStats
        The states of different blocks of the same rows. Both may be merged ones.
    temperature : float, default 1.0
        That of the states.

    Returns
    -------
    stats : BlockStats
        The state of the classes of both. Exchanging `a` and `b` does not change a bit of it.

    Raises
    ------
    TypeError, ValueError
        A state is not one, or they do not have the same shape; `temperature` is no finite number > 0.

    Notes
    -----
    Where ``a.row_max`` is the larger one, and ``gap = a.row_max - b.row_max``::

        tail = a.tail + (1 + b.tail)*exp(-gap/temperature)
        linear = a.linear + b.linear + b.mass*gap

    This is the update of Milakov and Gimelshein (2018), "Online normalizer calculation for softmax", for `SoftmaxStats`
    with two more sums.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> logits, labels = np.zeros((1, 5)), np.array([4])
    >>> a = fastce.block_stats(logits[:, :2], labels, class_offset=0, num_classes=5)
    >>> b = fastce.block_stats(logits[:, 2:], labels, class_offset=2, num_classes=5)
    >>> fastce.merge_stats(a, b)
    BlockStats(row_max=array([0.]), tail=array([4.]), mass=array([1.]), linear=array([0.]))
    """
    _check_losses(temperature=temperature)
    a = _as_stats("a", a)
    return _merging.merge_stats(a, _as_stats("b", b, a.row_max.shape), float(temperature))


def loss_from_stats(
    stats: BlockStats, targets: Any, *, ignore_index: int | None = -100, z_loss: float = 0.0, temperature: float = 1.0
) -> Any:
    """The loss of each row, from the merged state of all its classes.

    Parameters
    ----------
    stats : BlockStats
        The merged state of the blocks of all classes.
    targets : array_like
        The class indices, for those that are ignored; or the probabilities of any block, of which none are.
    ignore_index, z_loss, temperature : optional
        As in `cross_entropy`.

    Returns
    -------
    loss : ndarray or scalar
        One float64 for each row. It is 0 in rows that are ignored.

    Raises
    ------
    TypeError, ValueError
        An argument has another type or shape than said above, or an option another value than `cross_entropy` accepts.

    Notes
    -----
    ``loss = mass*log1p(tail) + linear/temperature + z_loss*logsumexp(x/temperature)**2``

    Examples
    --------
    >>> import numpy as np, fastce
    >>> stats = fastce.block_stats(np.zeros((1, 4)), [3], class_offset=0, num_classes=4)
    >>> round(float(fastce.loss_from_stats(stats, [3])[0]), 6)
    1.386294
    """
    _check_losses(ignore_index=ignore_index, z_loss=z_loss, temperature=temperature)
    stats = _as_stats("stats", stats)
    shape, t = stats.row_max.shape, _checks.as_array("targets", targets)
    losses = _merging.losses_of_stats(stats, float(z_loss), float(temperature))
    if t.ndim == len(shape) + 1:
        return losses[()]
    if t.shape != shape:
        raise ValueError(f"targets has shape {t.shape}, expected {shape}: a class index for each row")
    t = _checks.as_labels("targets", t)
    return losses[()] if ignore_index is None else np.where(t == ignore_index, 0.0, losses)[()]


def grad_from_stats(
    logits: Any,
    targets: Any,
    stats: BlockStats,
    *,
    class_offset: int,
    num_classes: int,
    weight: Any = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    axis: int = -1,
    num_threads: int | None = None,
    upstream: Any = 1.0,
    subnormals: str = "keep",
) -> Array:
    """The gradient with respect to the logits of a block, from the merged state of all classes.

    Parameters
    ----------
    logits, targets : array_like
        As in `block_stats`.
    stats : BlockStats
        The merged state of the blocks of all classes.
    class_offset, num_classes : int
        As in `block_stats`.
    weight, ignore_index, label_smoothing : optional
        As in `block_stats`, with the same values.
    z_loss : float, default 0.0
        As in `cross_entropy`.
    temperature, softcap, axis, num_threads : optional
        As in `block_stats`, with the same values.
    upstream : float or array_like, default 1.0
        Gradient of the final objective with respect to the losses of the rows: a scalar, or one number for each row.
        For a mean it is 1 divided by the number of rows that are not ignored.
    subnormals : {"keep", "flush"}, default "keep"
        As in `cross_entropy_with_grad`.

    Returns
    -------
    grad : ndarray
        Of the shape of `logits`, and their dtype (float64 for integers).

    Raises
    ------
    TypeError, ValueError, IndexError
        As in `block_stats`; `stats`, `z_loss`, `upstream` or `subnormals` does not fit.

    Notes
    -----
    With ``p = exp((x - row_max)/temperature)/(1 + tail)`` and the derivative s of the capped logits::

        grad = upstream*((mass + 2*z_loss*logsumexp(x/temperature))*p - q)*s/temperature

    Examples
    --------
    >>> import numpy as np, fastce
    >>> logits, labels = np.zeros((1, 4)), np.array([3])
    >>> stats = fastce.block_stats(logits, labels, class_offset=0, num_classes=4)
    >>> fastce.grad_from_stats(logits[:, 2:], labels, stats, class_offset=2, num_classes=4)
    array([[ 0.25, -0.75]])
    """
    x, t, block = _block(
        logits, targets, class_offset, num_classes, weight, ignore_index, axis, num_threads,
        label_smoothing=label_smoothing, temperature=temperature, softcap=softcap, z_loss=z_loss, subnormals=subnormals,
    )  # fmt: skip
    shape = x.shape[: block.axis] + x.shape[block.axis + 1 :]
    if t.ndim == x.ndim:  # for `block_stats`, `cross_entropy` checks them
        _checks.check_probabilities("targets", t, None, block.axis)
    merged = _as_stats("stats", stats, shape)
    one_class = np.broadcast_to(np.zeros((), x.dtype), (*shape, 1)), np.broadcast_to(np.zeros((), np.int8), shape)
    cross_entropy_with_grad(*one_class, reduction="none", upstream=upstream)  # checks upstream
    scale = np.broadcast_to(np.asarray(upstream, np.float64), shape)
    counted = np.ones(shape, bool)
    if t.ndim < x.ndim:
        counted = _merging.counted_rows(t, block.num_classes, ignore_index)
    if not x.size:
        return np.zeros_like(x)
    return _merging.block_grad(x, t, merged, block, scale, counted, float(z_loss), subnormals)


def _check_losses(**options: Any) -> None:
    """Raise what `cross_entropy` raises for such options."""
    cross_entropy(np.zeros((0, 1)), np.zeros(0, int), **options)
