"""Evaluation of logits by their labels: what it returns, and its sums over rows. _kernels.pyx runs the calls."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from . import _checks
from ._kernels import function
from ._stats import Array


class EvaluatedRows(NamedTuple):
    """What each row is evaluated by. All arrays have the shape of the labels.

    Parameters
    ----------
    log_probability : ndarray
        The log-probability of the label, in the dtype of the logits. 0 where the label is ignored.
    rank : ndarray of intp
        The number of classes before the label, if they are sorted by falling logits and those with the same logit by
        their number. 0: the label is the predicted class. -1: the label is ignored, or the row has no probabilities
        (it contains NaN or +inf, or only -inf).
    predicted : ndarray of intp
        The most probable class, as `predict` returns it. -1 where the label is ignored.
    entropy : ndarray
        As `entropy` returns it. 0 where the label is ignored.
    confidence : ndarray
        The largest probability. 0 where the label is ignored.

    Examples
    --------
    >>> import fastce
    >>> _, rows = fastce.evaluate([[2.0, 1.0, 0.0], [2.0, 2.0, 0.0]], [1, 1], return_rows=True)
    >>> rows.rank, rows.predicted
    (array([1, 1]), array([0, 0]))
    """

    log_probability: Array
    rank: Array
    predicted: Array
    entropy: Array
    confidence: Array


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """How well logits predict labels. ``a + b`` is the evaluation of the rows of both, and so is ``sum([a, b])``.

    The attributes below are means over the rows whose label is not ignored, NaN if there are none.

    Parameters
    ----------
    rows : int
        The number of rows whose label is not ignored.
    sums : mapping of str to float
        Over these rows: of their "loss", "entropy" and "confidence".
    hits : mapping of int to int
        For each k, the number of rows whose label is among the k classes with the largest logits.
    right : int
        The number of rows whose label is the predicted class.
    bins : ndarray of shape (3, 15)
        For each of 15 equal intervals of the confidence, (0, 1/15] to (14/15, 1]: the number of rows, of those whose
        label is the predicted class, and the sum of the confidences.

    Attributes
    ----------
    loss : float
        The mean cross-entropy, in nats.
    perplexity : float
        ``exp(loss)``.
    accuracy : float
        The share of rows whose label is the predicted class.
    top_k : dict of int to float
        For each k, the share of rows whose label is among the k classes with the largest logits.
    entropy : float
        The mean entropy of the probabilities.
    confidence : float
        The mean of the largest probability.
    calibration_error : float
        The expected calibration error: the mean over rows of ``abs(accuracy - confidence)`` of the bin that the row is
        in.

    See Also
    --------
    evaluate : Makes one.

    Notes
    -----
    Counts of parts add up to those of the whole. Sums are float64, so that of parts may differ from that of the whole
    in the last digits.

    Examples
    --------
    >>> import fastce
    >>> parts = [fastce.evaluate([[2.0, 1.0]], [0], top_k=1), fastce.evaluate([[0.0, 1.0]], [0], top_k=1)]
    >>> sum(parts).accuracy
    0.5
    """

    rows: int
    sums: Mapping[str, float]
    hits: Mapping[int, int]
    right: int
    bins: Array

    def _mean(self, total: float) -> float:
        return float(total) / self.rows if self.rows else math.nan

    @property
    def loss(self) -> float:
        return self._mean(self.sums["loss"])

    @property
    def perplexity(self) -> float:
        return float(np.exp(np.float64(self.loss))) if self.loss < 709 else self.loss * math.inf

    @property
    def accuracy(self) -> float:
        return self._mean(self.right)

    @property
    def top_k(self) -> dict[int, float]:
        return {k: self._mean(count) for k, count in self.hits.items()}

    @property
    def entropy(self) -> float:
        return self._mean(self.sums["entropy"])

    @property
    def confidence(self) -> float:
        return self._mean(self.sums["confidence"])

    @property
    def calibration_error(self) -> float:
        if math.isnan(self.sums["confidence"]):
            return math.nan
        return self._mean(np.abs(self.bins[1] - self.bins[2]).sum())

    def __add__(self, other: Any) -> Evaluation:
        if not isinstance(other, Evaluation):
            return NotImplemented
        if self.hits.keys() != other.hits.keys():
            raise ValueError(f"top_k is {(*self.hits,)} and {(*other.hits,)}: evaluations of the same k can be added")
        return Evaluation(
            self.rows + other.rows,
            {name: total + other.sums[name] for name, total in self.sums.items()},
            {k: count + other.hits[k] for k, count in self.hits.items()},
            self.right + other.right,
            self.bins + other.bins,
        )

    def __radd__(self, other: Any) -> Evaluation:
        return self if isinstance(other, int) and other == 0 else NotImplemented  # what `sum` begins with

    def __repr__(self) -> str:
        names = ("loss", "perplexity", "accuracy", "entropy", "confidence", "calibration_error")
        means = ", ".join(f"{name}={getattr(self, name):.6g}" for name in names)
        top_k = ", ".join(f"{k}: {share:.6g}" for k, share in self.top_k.items())
        return f"Evaluation(rows={self.rows}, {means}, top_k={{{top_k}}})"


@function("evaluate", "loss")
def _evaluated(
    logits: Any,
    labels: Any,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    ignore_index: int | None = -100,
    axis: int = -1,
    return_rows: bool = False,
    num_threads: int | None = None,
) -> Any:
    """The number of labels that are not ignored, the sums and bins of `Evaluation`, and by row the loss, the rank of
    the label, the predicted class (None without `return_rows`), the entropy and the confidence."""


def _as_top_k(top_k: Any) -> list[int]:
    several = isinstance(top_k, Iterable) and not isinstance(top_k, str) and getattr(top_k, "ndim", 1) != 0
    return sorted({_checks.as_count("top_k", k) for k in (top_k if several else (top_k,))})


def evaluate(
    logits: Any,
    labels: Any,
    *,
    top_k: Any = (1, 5),
    temperature: float = 1.0,
    softcap: float | None = None,
    ignore_index: int | None = -100,
    axis: int = -1,
    return_rows: bool = False,
    num_threads: int | None = None,
) -> Any:
    """Loss, accuracies, entropy and calibration of logits, in one pass over them.

    Parameters
    ----------
    logits : array_like
        Scores of one or more dimensions, with the classes on `axis`, as in `cross_entropy`.
    labels : array_like
        Class indices, of any integer dtype and the shape of `logits` without `axis`.
    top_k : int or iterable of ints, default (1, 5)
        The k of the top-k accuracies, >= 1. They may be larger than the number of classes.
    temperature : float, default 1.0
        What the logits are divided by, in [1e-15, 1e15].
    softcap : float, optional
        As in `cross_entropy`: ``softcap*tanh(x/softcap)`` takes the place of x, for ranks and predictions too. Far
        beyond the cap, logits become equal. Default: none.
    ignore_index : int or None, default -100
        Rows with this class index count nowhere, whatever their logits are.
    axis : int, default -1
        The axis of `logits` that contains the classes.
    return_rows : bool, default False
        Whether to return `EvaluatedRows` too.
    num_threads : int, optional
        As in `cross_entropy`.

    Returns
    -------
    evaluation : Evaluation
        Means over the rows that are not ignored. Those of chunks are added with ``+``.
    rows : EvaluatedRows
        With `return_rows`.

    Raises
    ------
    TypeError, ValueError, IndexError
        As in `cross_entropy`; `top_k` contains something else than ints >= 1.

    Notes
    -----
    The perplexity is ``exp(loss)``, and the calibration error is ``sum(n*abs(accuracy - confidence)) / rows`` over 15
    bins of the confidence that contain n rows each: the expected calibration error of Guo et al. (2017), "On
    calibration of modern neural networks". A temperature that was fitted to held-out data lowers it.

    Equal logits are ranked by their class, the lower one first, as `predict` does it. A row that contains NaN or +inf,
    or only -inf, counts as wrong, and makes the means of loss, entropy and confidence NaN.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> logits = np.log([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4], [0.2, 0.5, 0.3]])
    >>> result = fastce.evaluate(logits, [0, 1, 2], top_k=(1, 2))
    >>> result.top_k
    {1: 0.3333333333333333, 2: 0.6666666666666666}
    >>> round(result.perplexity, 6)
    2.513158
    """
    ks = _as_top_k(top_k)
    counted, sums, bins, (losses, rank, predicted, entropy, confidence) = _evaluated(
        logits,
        labels,
        temperature=temperature,
        softcap=softcap,
        ignore_index=ignore_index,
        axis=axis,
        return_rows=return_rows,
        num_threads=num_threads,
    )
    without = rank.size - int(bins[0].sum())  # ranks of -1
    hits = {k: int(np.count_nonzero(rank < k)) - without for k in ks}
    evaluation = Evaluation(counted, sums, hits, int(bins[1].sum()), bins)
    if not return_rows:
        return evaluation
    rows = (part[()] for part in (0 - losses, rank, predicted, entropy, confidence))  # scalars for logits of one row
    return evaluation, EvaluatedRows(*rows)
