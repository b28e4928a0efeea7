"""The public functions: check everything, choose, call the kernels once.

Every error is raised here (or in _arrays.py), before anything is written. The kernels get rows and flat arrays that
need no further checks.
"""

from __future__ import annotations

import math
import operator
import os
import platform
import sys
from typing import Any, NamedTuple

import numpy as np

from . import __version__, _kernels
from ._arrays import (
    F32,
    F64,
    Array,
    as_array,
    as_axis,
    as_labels,
    as_logits,
    as_number,
    as_weights,
    at_index,
    check_out,
    native,
    order_of,
    same_memory,
)

_REDUCTIONS = ("mean", "sum", "none")
_F32_OVERFLOW = 2.0**128 - 2.0**103  # what rounds to a float32 infinity begins here
_LAST, _OFF, _ONE, _USUAL = -1, 0.0, 1.0, -100  # defaults, recognised by their identity
# Chosen once: finding the right one at each call takes longer than many a call.
_ndarray, _empty_like, _float32, _float64 = np.ndarray, np.empty_like, np.float32, np.float64
_run_f32, _run_f64 = _kernels.cross_entropy["float"], _kernels.cross_entropy["double"]
_run_plain = _kernels.plain
_targets_of = {
    np.dtype(name): _kernels.targets[signature]
    for name, signature in [(f"{u}int{b}", f"{u}int{b}_t") for u in ("", "u") for b in (8, 16, 32, 64)]
    + [("float32", "float"), ("float64", "double")]
}


class SoftmaxStats(NamedTuple):
    """State of each row's softmax: all that a backward needs, and an associative summary of any block of classes.

    Parameters
    ----------
    row_max : ndarray
        The largest logit of each row; shape of the logits without their class axis, dtype of the logits.
    tail : ndarray
        ``sum(exp(x - row_max))`` over all classes of the row but (one of) the largest. Same shape and dtype. NaN where
        the row holds NaN or +inf, or nothing but -inf.

    Notes
    -----
    ``logsumexp = row_max + log1p(tail)``. Two blocks of classes of one row merge: with ``a.row_max >= b.row_max``,
    ``row_max = a.row_max`` and ``tail = a.tail + (1 + b.tail) * exp(b.row_max - a.row_max)``: Milakov and Gimelshein
    (2018), "Online normalizer calculation for softmax", with the maximum's own term taken out.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> loss, stats = fastce.cross_entropy(np.array([[2.0, 2.0, 2.0]]), np.array([0]), return_stats=True)
    >>> stats.row_max, stats.tail
    (array([2.]), array([2.]))
    """

    row_max: Array
    tail: Array


def _quota() -> int:
    """CPUs that the control group's quota amounts to, rounded up; 0 when there is none."""
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:  # version 2
            quota, period = file.read().split()
    except (OSError, ValueError):
        try:
            with open("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") as file:  # version 1
                quota = file.read()
            with open("/sys/fs/cgroup/cpu/cpu.cfs_period_us") as file:
                period = file.read()
        except OSError:
            return 0
    try:
        return max(0, math.ceil(int(quota) / int(period)))
    except (ValueError, ZeroDivisionError):
        return 0  # "max", or -1: no limit


def _select_isa() -> str:
    """The instruction set that FASTCE_ISA asks for, or the best there is."""
    wish = os.environ.get("FASTCE_ISA")
    chosen = _kernels.select(wish or None)
    if chosen is None:
        raise ImportError(
            f"FASTCE_ISA is {wish!r}, expected one that this build and this processor have: "
            f"{', '.join(_kernels.available())}"
        )
    return str(chosen)


_kernels.limit_threads(_quota())
_ISA = _select_isa()


def _threads(num_threads: Any) -> int:
    """The number to ask the kernels for; 0 is automatic."""
    if num_threads is None:
        return 0
    if type(num_threads) is int and 0 < num_threads < 2**31:
        return num_threads
    try:
        if isinstance(num_threads, (bool, np.bool_)):
            raise TypeError
        count = operator.index(num_threads)
    except TypeError:
        count = 0
    if count < 1:
        raise ValueError(f"num_threads is {num_threads!r}, expected None (automatic) or an int >= 1")
    return min(count, 2**31 - 1)


def _scalar(dtype: np.dtype[Any], value: float) -> Any:
    if dtype is F32:
        if abs(value) >= _F32_OVERFLOW:  # NumPy would warn of it
            value = math.copysign(math.inf, value)
        return np.float32(value)
    return np.float64(value)


def _count(
    labels: Array | None, kept: int, weight: Array | None, sample: Array | None, ignored: int | None, positions: int
) -> float:
    """What a mean divides by: the weight of the rows that count."""
    if labels is None:
        return float(positions if sample is None else sample.sum())
    if weight is None and sample is None:
        return float(kept)
    keep = slice(None) if kept == positions else labels != ignored
    if weight is None:
        return float(sample[keep].sum())  # type: ignore[index]
    by_row = weight[labels[keep]]
    return float((by_row if sample is None else by_row * sample[keep]).sum())


def _label_error(targets: Array, classes: int, ignored: int | None) -> IndexError:
    wrong = (targets < 0) | (targets >= classes)
    if ignored is not None:
        wrong &= targets != ignored
    at = tuple(np.argwhere(wrong)[0].tolist())
    return IndexError(
        f"{at_index('targets', at)} is {targets[at]}, out of range for {classes} classes (ignore_index is {ignored})"
    )


def _plain(
    logits: Any, targets: Any, reduction: Any, num_threads: Any, with_grad: bool, out: Any = None
) -> tuple[Any, Array | None] | None:
    """Loss and gradient, when all but these arguments are the defaults and these are of the commonest kind.

    None if they are not, or anything is wrong with them: then the general way has the answer, or the error.
    """
    if type(logits) is not _ndarray or type(targets) is not _ndarray or (out is not None and type(out) is not _ndarray):
        return None
    if type(reduction) is not str or (reduction != "mean" and reduction != "sum"):
        return None
    if num_threads is None:
        num_threads = 0
    elif type(num_threads) is not int or not 0 < num_threads < 2**31:
        return None
    grad = out
    if with_grad and out is None:
        grad = _empty_like(logits)
    loss = _run_plain(logits, targets, grad, _USUAL, reduction == "mean", num_threads)
    return None if loss is None else ((_float32 if logits.itemsize == 4 else _float64)(loss), grad)


def _cross_entropy(
    logits: Any,
    targets: Any,
    weight: Any,
    sample_weight: Any,
    ignore_index: Any,
    label_smoothing: Any,
    z_loss: Any,
    reduction: Any,
    normalizer: Any,
    axis: Any,
    num_threads: Any,
    *,
    with_loss: bool = True,
    with_grad: bool = False,
    return_stats: bool = False,
    upstream: Any = 1.0,
    out: Any = None,
    stats: Any = None,
) -> tuple[Any, Array | None, SoftmaxStats | None]:
    """Loss, gradient and statistics, as far as they are asked for."""
    x = as_logits(logits)
    dtype, shape = x.dtype, x.shape
    if not shape:
        raise ValueError("logits is a scalar, expected at least one dimension: the classes")
    axis = len(shape) - 1 if axis is _LAST else as_axis(axis, len(shape))
    classes = shape[axis]
    if not classes:
        raise ValueError(f"logits has shape {shape}: no classes on axis {axis}")
    row_shape = shape[:axis] + shape[axis + 1 :]
    positions = x.size // classes
    if not isinstance(reduction, str) or reduction not in _REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}, expected 'mean', 'sum' or 'none'")
    threads = _threads(num_threads)

    c = as_array("targets", targets)
    is_labels = c.shape == row_shape
    if not is_labels and c.shape != shape:
        raise ValueError(
            f"targets has shape {c.shape}, expected {row_shape} (class indices) or {shape} (probabilities) "
            f"for logits of shape {shape} with classes on axis {axis}"
        )
    if ignore_index is not None:
        try:
            ignore_index = operator.index(ignore_index)
        except TypeError:
            raise TypeError(f"ignore_index is {ignore_index!r}, expected an int or None") from None

    # -- options
    smoothing = as_number("label_smoothing", label_smoothing)
    if not 0 <= smoothing <= 1:
        raise ValueError(f"label_smoothing is {smoothing}, expected a number in [0, 1]")
    z = as_number("z_loss", z_loss)
    if not 0 <= z < math.inf:
        raise ValueError(f"z_loss is {z}, expected a finite number >= 0")
    if weight is not None:
        weight = native(np.ascontiguousarray(as_weights("weight", weight, (classes,), "one for each class", dtype)))
    sample = None
    order = order_of(x, axis)
    if sample_weight is not None:
        sample = order.by_position(as_weights("sample_weight", sample_weight, row_shape, "one for each row"))
    if normalizer is not None:
        if reduction != "mean":
            raise ValueError(f"normalizer is what a mean divides by; reduction is {reduction!r}")
        normalizer = as_number("normalizer", normalizer)
        if not 0 < normalizer < math.inf:
            raise ValueError(f"normalizer is {normalizer}, expected a finite number > 0")

    # -- targets
    labels = operand = ignored = None
    kept = positions
    if is_labels:
        if not c.size and not isinstance(targets, np.ndarray):
            c = c.astype(np.int64)  # an empty list has no dtype to speak of
        labels, ignored = as_labels(c, ignore_index)
        labels = order.by_position(labels)
        if positions:
            kept = _kernels.labels_kept(labels, classes, ignored)
            if kept < 0:
                raise _label_error(c, classes, ignore_index)
    else:
        if c.dtype not in _targets_of:
            c = c.view(np.uint8) if c.dtype == np.bool_ else c.astype(dtype if c.dtype.kind == "f" else F64)
        c = native(c)

    # -- the gradient's scale and buffer
    up = None
    factor = 1.0
    grad = target = None
    if with_grad:
        if reduction == "none" and not isinstance(upstream, (float, int)):
            up_array = as_array("upstream", upstream)
            if up_array.shape not in ((), row_shape):
                raise ValueError(
                    f"upstream has shape {up_array.shape}, expected a scalar or {row_shape}: one for each row"
                )
            up = order.by_position(np.broadcast_to(up_array, row_shape).astype(F64, copy=False))
        else:
            factor = as_number("upstream", upstream)
        if out is not None:
            check_out(out, x)

    row_max = tail = None
    if stats is not None:
        row_max, tail = _given_stats(stats, x, row_shape)
        row_max, tail = order.by_position(row_max), order.by_position(tail)

    # -- all is well
    denominator = 1.0
    if reduction == "mean":
        denominator = normalizer or _count(labels, kept, weight, sample, ignored, positions)
    if with_grad:
        if out is None:
            grad = target = np.empty_like(x, subok=False)
        else:
            grad = target = out
            inputs = (c if labels is None else labels, weight, sample, up, row_max, tail)
            if (np.may_share_memory(out, x) and not same_memory(out, x)) or any(
                a is not None and np.may_share_memory(out, a) for a in inputs
            ):
                target = np.empty_like(x)
        if not denominator:
            target.fill(0)
    if not stats and return_stats:
        row_max, tail = np.empty(positions, dtype), np.empty(positions, dtype)
    losses = np.empty(positions, dtype) if with_loss and reduction == "none" else None
    total = 0.0
    backward = with_grad and denominator != 0
    if positions and (with_loss or backward):
        if labels is None:
            operand = _targets_of[c.dtype](*order.rows(c))
        rows = order.rows(x)
        grad_rows = order.rows(target) if backward and target is not None else (None, None)
        total = (_run_f32 if dtype is F32 else _run_f64)(
            rows[0],
            rows[1],
            positions,
            labels,
            operand,
            ignored,
            weight,
            None if weight is None else weight.astype(dtype, copy=False),
            smoothing,
            z,
            factor / denominator if denominator else 0.0,
            sample,
            up,
            with_loss,
            losses,
            row_max,
            tail,
            stats is not None,
            threads,
            grad_rows[0],
            grad_rows[1],
        )
    if target is not grad:
        grad[...] = target  # type: ignore[index]

    loss: Any = None
    if losses is not None:
        loss = order.to_caller(losses, row_shape)
    elif with_loss:
        loss = _scalar(dtype, total / denominator if denominator else math.nan)
    new_stats = None
    if return_stats and row_max is not None and tail is not None:
        new_stats = SoftmaxStats(order.to_caller(row_max, row_shape), order.to_caller(tail, row_shape))
    return loss, grad, new_stats


def _given_stats(stats: Any, x: Array, row_shape: tuple[int, ...]) -> tuple[Array, Array]:
    if not isinstance(stats, tuple) or len(stats) != 2:
        raise TypeError(f"stats is {type(stats).__name__}, expected the SoftmaxStats that the forward returned")
    arrays = []
    for name, value in zip(SoftmaxStats._fields, stats, strict=True):
        array = as_array(f"stats.{name}", value)
        if array.shape != row_shape:
            raise ValueError(
                f"stats.{name} has shape {array.shape}, expected {row_shape} for logits of shape {x.shape}"
            )
        if array.dtype != x.dtype:
            raise ValueError(f"stats.{name} has dtype {array.dtype}, expected {x.dtype} to match logits")
        arrays.append(native(array))
    return arrays[0], arrays[1]


def cross_entropy(
    logits: Any,
    targets: Any,
    *,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = _USUAL,
    label_smoothing: float = _OFF,
    z_loss: float = _OFF,
    reduction: str = "mean",
    normalizer: float | None = None,
    axis: int = _LAST,
    return_stats: bool = False,
    num_threads: int | None = None,
) -> Any:
    """Softmax cross-entropy of logits against class indices or probabilities.

    Parameters
    ----------
    logits : array_like
        Unnormalised log-probabilities x, classes on `axis`, any number of other dimensions ("rows"). float32 and
        float64 are computed in their own precision, integers and bools as float64. Any strides, alignment and byte
        order; never modified. -inf masks a class. NaN, +inf or nothing but -inf makes that row's loss NaN.
    targets : array_like
        Class indices, integers of the shape of `logits` without `axis`; or probabilities c, real numbers or bools of
        the shape of `logits`. Rows of probabilities need not sum to 1.
    weight : array_like of shape (classes,), optional
        Weight w of each class, finite and >= 0. Default: ones.
    sample_weight : array_like of the rows' shape, optional
        What each row's loss is multiplied by, finite and >= 0. Default: ones.
    ignore_index : int or None, default -100
        Rows with this class index have loss and gradient 0, whatever their logits hold, and count nowhere. It may be a
        class or not. Has no meaning for probabilities.
    label_smoothing : float, default 0.0
        Smoothing eps in [0, 1]: targets become ``(1 - eps)*c + eps/classes``. For the convention that spreads eps over
        the other classes, eps/(classes - 1) each, pass ``eps*classes/(classes - 1)``.
    z_loss : float, default 0.0
        Factor >= 0 of ``logsumexp(x)**2``, which is added to each row's loss.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides the sum by `normalizer`; "none" returns each row's loss.
    normalizer : float, optional
        What "mean" divides by, > 0: for gradients accumulated over parts of a batch. Default: for class indices the sum
        of ``weight[target] * sample_weight`` over the rows not ignored, for probabilities the sum of `sample_weight`
        (with neither option: the number of rows). When that is 0, the mean is NaN and the gradient 0.
    axis : int, default -1
        The axis of `logits` that holds the classes.
    return_stats : bool, default False
        Also return a `SoftmaxStats`, which saves `cross_entropy_grad` half its work.
    num_threads : int, optional
        Threads to use, >= 1 (at most one for each unit of work of some 30000 logits, and 256). Default: one for small
        arrays, else as many as OpenMP would use, and no more than the process's CPU affinity and quota allow. Results
        are the same to the bit for every number.

    Returns
    -------
    loss : scalar or ndarray
        In nats, in the dtype of the logits (float64 for integers); summed over rows in float64. An array of the rows'
        shape for ``reduction="none"``.
    stats : SoftmaxStats
        With `return_stats`.

    Raises
    ------
    TypeError
        An argument is None or a masked array, or has a dtype that is not accepted; class indices that are not integers.
    ValueError
        A shape does not fit; an option is out of its range; no classes.
    IndexError
        A class index outside ``[0, classes)`` that is not `ignore_index`.

    See Also
    --------
    cross_entropy_with_grad : Loss and gradient in one pass.
    cross_entropy_grad : The gradient alone.
    CrossEntropyLoss : Both as a layer.
    binary_cross_entropy : The two-term form.

    Notes
    -----
    With ``q = w*((1 - eps)*c + eps/classes)``, c one-hot for class indices, ``logp = x - logsumexp(x)`` and 0*inf = 0::

        loss = -sum(q*logp) + z_loss*logsumexp(x)**2

    computed as ``sum(q)*log1p(tail) + sum(q*(row_max - x)) + z_loss*lse**2``, where ``tail`` sums ``exp(x - row_max)``
    over all classes but the largest: every term is >= 0 and none is rounded away, so the loss of a confident row keeps
    its relative accuracy. For class indices without `sample_weight` this is PyTorch's ``cross_entropy`` (``z_loss``
    aside); PyTorch gives NaN gradients on ignored rows that hold NaN, fastce 0. See Bridle (1990), "Probabilistic
    interpretation of feedforward classification network outputs"; Blanchard, Higham and Higham (2021), "Accurately
    computing the log-sum-exp and softmax functions", for log1p; Szegedy et al. (2016), "Rethinking the Inception
    architecture for computer vision", for label smoothing; Chowdhery et al. (2022), "PaLM: scaling language modeling
    with pathways", for the z-loss.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> logits = np.array([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    >>> labels = np.array([0, 2])
    >>> round(float(fastce.cross_entropy(logits, labels)), 6)
    0.669079
    >>> fastce.cross_entropy(logits, labels, reduction="none").round(6)
    array([0.239545, 1.098612])
    >>> print(f"{fastce.cross_entropy(np.float32([[20, 0, 0, 0]]), [0]):.5e}")  # log(1 + 3*exp(-20)), not 0
    6.18346e-09
    """
    if (
        weight is sample_weight is normalizer is None
        and label_smoothing is _OFF
        and z_loss is _OFF
        and axis is _LAST
        and ignore_index is _USUAL
        and not return_stats
    ):
        plain = _plain(logits, targets, reduction, num_threads, False)
        if plain is not None:
            return plain[0]
    loss, _, stats = _cross_entropy(
        logits, targets, weight, sample_weight, ignore_index, label_smoothing, z_loss, reduction, normalizer, axis,
        num_threads, return_stats=return_stats,
    )  # fmt: skip
    return (loss, stats) if return_stats else loss


def cross_entropy_with_grad(
    logits: Any,
    targets: Any,
    *,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = _USUAL,
    label_smoothing: float = _OFF,
    z_loss: float = _OFF,
    reduction: str = "mean",
    normalizer: float | None = None,
    axis: int = _LAST,
    num_threads: int | None = None,
    upstream: Any = _ONE,
    out: Array | None = None,
) -> tuple[Any, Array]:
    """`cross_entropy` and its gradient with respect to the logits, in one pass over them.

    Parameters
    ----------
    logits, targets : array_like
        As in `cross_entropy`.
    weight, sample_weight, ignore_index, label_smoothing, z_loss, reduction, normalizer, axis, num_threads : optional
        As in `cross_entropy`.
    upstream : float or array_like, default 1.0
        Gradient of the final objective with respect to the loss, which the result is multiplied by: a scalar, or for
        ``reduction="none"`` a scalar or an array of the rows' shape.
    out : ndarray, optional
        Buffer for the gradient: shape and dtype of the logits, writeable, aligned, native byte order. It may be
        `logits` itself; any other overlap is computed as if there were none.

    Returns
    -------
    loss : scalar or ndarray
        As `cross_entropy` returns it.
    grad : ndarray
        Shape and memory order of the logits, and their dtype (float64 for integers); `out` if given.

    Raises
    ------
    TypeError, ValueError, IndexError
        As in `cross_entropy`; `upstream` or `out` does not fit. Before anything is written to `out`.

    Notes
    -----
    With p = softmax(x), q as in `cross_entropy`, Q = sum(q)::

        grad = sample_weight * upstream / denominator * ((Q + 2*z_loss*logsumexp(x))*p - q)

    the ``p - c`` of Bishop (2006), "Pattern recognition and machine learning", equation 4.109, with every option. At
    the largest logit ``p - 1`` is computed as ``-tail/(1 + tail)``, so that a confident row's gradient is not rounded
    to 0.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> logits = np.array([[0.0, 0.0], [0.0, 0.0]])
    >>> loss, grad = fastce.cross_entropy_with_grad(logits, np.array([0, 1]))
    >>> round(float(loss), 6)  # log(2)
    0.693147
    >>> grad
    array([[-0.25,  0.25],
           [ 0.25, -0.25]])
    """
    if (
        weight is sample_weight is normalizer is None
        and label_smoothing is _OFF
        and z_loss is _OFF
        and axis is _LAST
        and ignore_index is _USUAL
        and upstream is _ONE
    ):
        plain = _plain(logits, targets, reduction, num_threads, True, out)
        if plain is not None:
            return plain  # type: ignore[return-value]
    loss, grad, _ = _cross_entropy(
        logits, targets, weight, sample_weight, ignore_index, label_smoothing, z_loss, reduction, normalizer, axis,
        num_threads, with_grad=True, upstream=upstream, out=out,
    )  # fmt: skip
    assert grad is not None
    return loss, grad


def cross_entropy_grad(
    logits: Any,
    targets: Any,
    *,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = _USUAL,
    label_smoothing: float = _OFF,
    z_loss: float = _OFF,
    reduction: str = "mean",
    normalizer: float | None = None,
    axis: int = _LAST,
    num_threads: int | None = None,
    upstream: Any = 1.0,
    out: Array | None = None,
    stats: SoftmaxStats | None = None,
) -> Array:
    """The gradient of `cross_entropy` with respect to the logits.

    Parameters
    ----------
    logits, targets : array_like
        As in `cross_entropy`.
    weight, sample_weight, ignore_index, label_smoothing, z_loss, reduction, normalizer, axis, num_threads : optional
        As in `cross_entropy`.
    upstream : float or array_like, default 1.0
        As in `cross_entropy_with_grad`.
    out : ndarray, optional
        As in `cross_entropy_with_grad`.
    stats : SoftmaxStats, optional
        What ``cross_entropy(logits, ..., return_stats=True)`` returned for the same logits and axis: spares the pass
        that finds each row's maximum and sum. They are not checked against the logits.

    Returns
    -------
    grad : ndarray
        As `cross_entropy_with_grad` returns it.

    Raises
    ------
    TypeError, ValueError, IndexError
        As in `cross_entropy_with_grad`; `stats` of another shape or dtype.

    Notes
    -----
    The formula is that of `cross_entropy_with_grad`. With `stats`, the maximum and ``tail`` are given.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> logits, labels = np.array([[0.0, 0.0]]), np.array([0])
    >>> loss, stats = fastce.cross_entropy(logits, labels, return_stats=True)
    >>> fastce.cross_entropy_grad(logits, labels, stats=stats)
    array([[-0.5,  0.5]])
    """
    _, grad, _ = _cross_entropy(
        logits, targets, weight, sample_weight, ignore_index, label_smoothing, z_loss, reduction, normalizer, axis,
        num_threads, with_loss=False, with_grad=True, upstream=upstream, out=out, stats=stats,
    )  # fmt: skip
    assert grad is not None
    return grad


class CrossEntropyLoss:
    """`cross_entropy` as a layer: call it for the loss, then `backward` for the gradient.

    Parameters
    ----------
    **options
        Those of `cross_entropy`, but for `return_stats`.

    Raises
    ------
    TypeError
        An option has no such name.

    Notes
    -----
    The layer keeps references to the logits and targets of its last call, not copies: change them before `backward`
    and the gradient is that of a mixture.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> ce = fastce.CrossEntropyLoss(reduction="sum")
    >>> round(float(ce(np.zeros((1, 2)), np.array([1]))), 6)
    0.693147
    >>> ce.backward()
    array([[ 0.5, -0.5]])
    """

    _names = frozenset(cross_entropy.__kwdefaults__ or ()) - {"return_stats"}

    def __init__(self, **options: Any) -> None:
        self._options = self._checked(options)
        self._saved: tuple[Any, ...] | None = None

    def _checked(self, options: dict[str, Any]) -> dict[str, Any]:
        if unknown := options.keys() - self._names:
            raise TypeError(f"CrossEntropyLoss has no option {min(unknown)!r}; it has {', '.join(sorted(self._names))}")
        return options

    def __repr__(self) -> str:
        return f"CrossEntropyLoss({', '.join(f'{name}={value!r}' for name, value in self._options.items())})"

    def __call__(self, logits: Any, targets: Any, **options: Any) -> Any:
        """The loss.

        Parameters
        ----------
        logits, targets : array_like
            As in `cross_entropy`.
        **options
            Replace the layer's for this call and its `backward`.

        Returns
        -------
        loss : scalar or ndarray
            As `cross_entropy` returns it.

        Raises
        ------
        TypeError, ValueError, IndexError
            As in `cross_entropy`; an option has no such name.

        Examples
        --------
        >>> import numpy as np, fastce
        >>> ce = fastce.CrossEntropyLoss()
        >>> ce(np.zeros((1, 2)), [1], reduction="none").round(6)
        array([0.693147])
        """
        options = self._options | self._checked(options)
        loss, stats = cross_entropy(logits, targets, **options, return_stats=True)
        self._saved = logits, targets, options, stats
        return loss

    def backward(self, upstream: Any = 1.0, *, out: Array | None = None) -> Array:
        """The gradient of the last call's loss with respect to its logits.

        Parameters
        ----------
        upstream : float or array_like, default 1.0
            As in `cross_entropy_with_grad`.
        out : ndarray, optional
            As in `cross_entropy_with_grad`.

        Returns
        -------
        grad : ndarray
            As `cross_entropy_with_grad` returns it.

        Raises
        ------
        RuntimeError
            The layer has not been called yet.
        TypeError, ValueError
            As in `cross_entropy_with_grad`.

        Examples
        --------
        >>> import numpy as np, fastce
        >>> ce = fastce.CrossEntropyLoss()
        >>> loss = ce(np.zeros((1, 2)), [1])
        >>> ce.backward(upstream=3.0)
        array([[ 1.5, -1.5]])
        """
        if self._saved is None:
            raise RuntimeError("backward called before the loss was computed")
        logits, targets, options, stats = self._saved
        return cross_entropy_grad(logits, targets, **options, upstream=upstream, out=out, stats=stats)


def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """What this build of fastce is and uses here.

    Parameters
    ----------
    mode : {"stdout", "dicts"}, default "stdout"
        Print it, or return it.

    Returns
    -------
    config : dict or None
        With ``mode="dicts"``: version, isa (the instruction set in use; the environment variable FASTCE_ISA chooses
        another before the import), isa_available (best first), openmp (version date, None without), threads (what a
        large call would use), compiler, python, numpy.

    Raises
    ------
    ValueError
        Unknown `mode`.

    Examples
    --------
    >>> import fastce
    >>> fastce.show_config(mode="dicts")["isa"] in ("avx512", "avx2", "baseline")
    True
    """
    config = {
        "version": __version__,
        "isa": _ISA,
        "isa_available": _kernels.available(),
        "openmp": _kernels.openmp,
        "threads": _kernels.automatic_threads(),
        "compiler": _kernels.compiler,
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    if mode == "dicts":
        return config
    if mode != "stdout":
        raise ValueError(f"mode is {mode!r}, expected 'stdout' or 'dicts'")
    for name, value in config.items():
        sys.stdout.write(f"{name + ':':15}{', '.join(value) if isinstance(value, list) else value}\n")
    return None
