"""The state of a row's softmax, as the public functions return and take it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class SoftmaxStats(NamedTuple):
    """The state of each row's softmax.

    It is all that the backward pass needs, and a mergeable summary of any block of classes.

    Parameters
    ----------
    row_max : ndarray
        The largest logit of each row. It has the shape of the logits without their class axis, and their dtype.
    tail : ndarray
        ``sum(exp((x - row_max)/temperature))`` over all classes of the row except (one of) the largest. It has the same
        shape and dtype. It is NaN where the row contains NaN or +inf. It is -1 where the row contains only -inf.

    Notes
    -----
    `row_max` is a logit and not divided by the temperature: ``logsumexp = row_max/temperature + log1p(tail)``. Two
    blocks of classes of one row merge: with ``a.row_max >= b.row_max``, ``row_max = a.row_max`` and
    ``tail = a.tail + (1 + b.tail) * exp((b.row_max - a.row_max)/temperature)``. This is the update of Milakov and
    Gimelshein (2018), "Online normalizer calculation for softmax", without the maximum's own term.

    Examples
    --------
    >>> import numpy as np, fastce
    >>> loss, stats = fastce.cross_entropy(np.array([[2.0, 2.0, 2.0]]), np.array([0]), return_stats=True)
    >>> stats.row_max, stats.tail
    (array([2.]), array([2.]))
    """

    row_max: Array
    tail: Array
