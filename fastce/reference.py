"""Softmax cross-entropy in plain NumPy: the definition of what fastce computes, and the baseline of its benchmarks.

Read it to see what an option means, run it to see what a good NumPy program costs. It uses the formulas of the
textbooks (``lse = m + log(sum exp(x - m))``, ``grad = p - q``), shares no code with the rest of the package and needs
nothing but NumPy. The functions take and return what their namesakes in `fastce` do, except ``num_threads``, which does
not exist here. Valid input is assumed: nothing is checked. Being the textbook's, the results are not accurate to the
last digits: a confident row's loss is 0 here.

Each row is turned into ``q``, the numbers that multiply ``-log p`` in its loss:

* class index ``t``: ``q[j] = weight[j] * label_smoothing / C``, plus ``weight[t] * (1 - label_smoothing)`` at ``t``,
* probabilities ``c``: ``q[j] = weight[j] * ((1 - label_smoothing) * c[j] + label_smoothing / C)``.

With ``Q = sum(q)`` the loss is ``Q * lse - sum(q * x) + z_loss * lse**2``, and its gradient
``(Q + 2 * z_loss * lse) * p - q``, both times the row's sample weight.
"""

from typing import NamedTuple

import numpy as np

__all__ = [
    "CrossEntropyLoss",
    "SoftmaxStats",
    "binary_cross_entropy",
    "binary_cross_entropy_with_grad",
    "cross_entropy",
    "cross_entropy_grad",
    "cross_entropy_with_grad",
    "log_softmax",
    "log_softmax_grad",
    "logsumexp",
    "one_hot",
    "predict",
    "softmax",
    "softmax_grad",
]


class SoftmaxStats(NamedTuple):
    """What the backward pass needs of each row.

    Parameters
    ----------
    row_max : ndarray
        The largest logit.
    tail : ndarray
        The sum of ``exp(x - row_max)`` over every class but the first that attains the maximum. ``logsumexp`` is
        ``row_max + log1p(tail)``.

    Examples
    --------
    >>> import numpy as np
    >>> loss, stats = cross_entropy(np.zeros((1, 4)), np.array([0]), return_stats=True)
    >>> stats.row_max, stats.tail
    (array([0.]), array([3.]))
    """

    row_max: np.ndarray
    tail: np.ndarray


def cross_entropy(
    logits,
    targets,
    *,
    weight=None,
    sample_weight=None,
    ignore_index=-100,
    label_smoothing=0.0,
    z_loss=0.0,
    reduction="mean",
    normalizer=None,
    axis=-1,
    return_stats=False,
):
    """Softmax cross-entropy of ``logits``; see `fastce.cross_entropy`.

    Examples
    --------
    >>> import numpy as np
    >>> float(cross_entropy(np.zeros((2, 4)), np.array([0, 3])))  # log(4)
    1.3862943611198906
    """
    options = weight is not None or sample_weight is not None or label_smoothing or z_loss or return_stats
    if not options and _is_plain(logits, targets, ignore_index, reduction, normalizer, axis):
        return _plain(logits, targets, np.empty_like(logits), reduction, None)
    with np.errstate(all="ignore"):
        x, e, _ = _views(logits, None, axis)
        aim = _aim(x, targets, weight, ignore_index, label_smoothing, axis)
        m = np.maximum.reduce(x, axis=-1, keepdims=True)
        np.subtract(x, m, out=e)
        qx = _q_dot(aim, e)
        np.exp(e, out=e)
        if return_stats:
            top = np.argmax(x, axis=-1, keepdims=True)
            np.put_along_axis(e, top, np.take_along_axis(e, top, -1) - 1, axis=-1)  # 1 - 1, or NaN stays NaN
            tail = np.add.reduce(e, axis=-1, keepdims=True)
            s = 1 + tail
        else:
            s = np.add.reduce(e, axis=-1, keepdims=True)
        loss = _row_losses(aim, m, s, qx, z_loss, sample_weight)
        loss = _reduced(loss, reduction, _denominator(aim, sample_weight, reduction, normalizer))
    return (loss, SoftmaxStats(m[..., 0], tail[..., 0])) if return_stats else loss


def cross_entropy_with_grad(
    logits,
    targets,
    *,
    weight=None,
    sample_weight=None,
    ignore_index=-100,
    label_smoothing=0.0,
    z_loss=0.0,
    reduction="mean",
    normalizer=None,
    axis=-1,
    upstream=1.0,
    out=None,
):
    """Loss and gradient with respect to ``logits``; see `fastce.cross_entropy_with_grad`.

    Examples
    --------
    >>> import numpy as np
    >>> loss, grad = cross_entropy_with_grad(np.zeros((1, 4)), np.array([2]))
    >>> grad
    array([[ 0.25,  0.25, -0.75,  0.25]])
    """
    if out is not None:
        targets, weight, sample_weight, upstream = _apart(out, targets, weight, sample_weight, upstream)
    options = weight is not None or sample_weight is not None or label_smoothing or z_loss
    if not options and _is_plain(logits, targets, ignore_index, reduction, normalizer, axis):
        grad = np.empty_like(logits) if out is None else out
        return _plain(logits, targets, grad, reduction, upstream), grad
    with np.errstate(all="ignore"):
        x, g, grad = _views(logits, out, axis)
        aim = _aim(x, targets, weight, ignore_index, label_smoothing, axis)
        m = np.maximum.reduce(x, axis=-1, keepdims=True)
        np.subtract(x, m, out=g)
        qx = _q_dot(aim, g)
        np.exp(g, out=g)
        s = np.add.reduce(g, axis=-1, keepdims=True)
        denominator = _denominator(aim, sample_weight, reduction, normalizer)
        _finish_grad(g, aim, m, s, z_loss, sample_weight, upstream, denominator)
        loss = _reduced(_row_losses(aim, m, s, qx, z_loss, sample_weight), reduction, denominator)
    return loss, grad


def cross_entropy_grad(
    logits,
    targets,
    *,
    weight=None,
    sample_weight=None,
    ignore_index=-100,
    label_smoothing=0.0,
    z_loss=0.0,
    reduction="mean",
    normalizer=None,
    axis=-1,
    upstream=1.0,
    out=None,
    stats=None,
):
    """Gradient alone; see `fastce.cross_entropy_grad`. With ``stats`` the maximum and the sum are not formed again.

    Examples
    --------
    >>> import numpy as np
    >>> cross_entropy_grad(np.zeros((1, 4)), np.array([2]), upstream=2.0)
    array([[ 0.5,  0.5, -1.5,  0.5]])
    """
    if out is not None:
        targets, weight, sample_weight, upstream = _apart(out, targets, weight, sample_weight, upstream)
        stats = stats and _apart(out, *stats)
    with np.errstate(all="ignore"):
        x, g, grad = _views(logits, out, axis)
        aim = _aim(x, targets, weight, ignore_index, label_smoothing, axis)
        m = np.maximum.reduce(x, axis=-1, keepdims=True) if stats is None else np.asarray(stats[0])[..., None]
        np.subtract(x, m, out=g)
        np.exp(g, out=g)
        s = np.add.reduce(g, axis=-1, keepdims=True) if stats is None else 1 + np.asarray(stats[1])[..., None]
        denominator = _denominator(aim, sample_weight, reduction, normalizer)
        _finish_grad(g, aim, m, s, z_loss, sample_weight, upstream, denominator)
    return grad


class CrossEntropyLoss:
    """The layer form; see `fastce.CrossEntropyLoss`. Options are those of `cross_entropy`.

    Examples
    --------
    >>> import numpy as np
    >>> ce = CrossEntropyLoss(reduction="sum")
    >>> logits, labels = np.zeros((1, 2)), np.array([1])
    >>> float(ce(logits, labels))  # log(2)
    0.6931471805599453
    >>> ce.backward()
    array([[ 0.5, -0.5]])
    """

    def __init__(self, **options):
        self._options = options

    def __call__(self, logits, targets, **options):
        """The loss. Options given here replace the layer's for this call and its `backward`.

        Examples
        --------
        >>> import numpy as np
        >>> float(CrossEntropyLoss()(np.zeros((1, 2)), np.array([1]), reduction="sum"))  # log(2)
        0.6931471805599453
        """
        options = self._options | options
        loss, stats = cross_entropy(logits, targets, **options, return_stats=True)
        self._saved = logits, targets, options, stats
        return loss

    def backward(self, upstream=1.0, *, out=None):
        """Gradient with respect to the logits of the last call.

        Examples
        --------
        >>> import numpy as np
        >>> ce = CrossEntropyLoss()
        >>> loss = ce(np.zeros((1, 2)), np.array([1]))
        >>> ce.backward(upstream=3.0)
        array([[ 1.5, -1.5]])
        """
        logits, targets, options, stats = self._saved
        return cross_entropy_grad(logits, targets, **options, upstream=upstream, out=out, stats=stats)


def _is_plain(logits, targets, ignore_index, reduction, normalizer, axis):
    """Nothing but rows of native floats, an index for each, none ignored, and one number asked for."""
    return (
        axis == -1
        and normalizer is None
        and reduction != "none"
        and type(logits) is type(targets) is np.ndarray
        and logits.ndim == 2
        and targets.ndim == 1
        and logits.dtype in (np.float32, np.float64)
        and len(targets)
        and not (ignore_index is not None and np.count_nonzero(targets == ignore_index))
    )


def _plain(x, t, g, reduction, upstream):
    """The short program that this is without options. `g` becomes the gradient, unless `upstream` is None."""
    rows = np.arange(len(t))
    with np.errstate(all="ignore"):
        np.subtract(x, np.maximum.reduce(x, axis=1, keepdims=True), out=g)
        x_t = g[rows, t]
        np.exp(g, out=g)
        s = np.add.reduce(g, axis=1)
        total = np.add.reduce(np.log(s) - x_t, dtype=np.float64)
        if reduction == "mean":
            total /= len(t)
        if upstream is not None:
            scale = g.dtype.type(upstream / len(t) if reduction == "mean" else upstream)
            g *= (scale / s)[:, None]
            g[rows, t] -= scale
    return g.dtype.type(total)


class _Aim(NamedTuple):
    """The targets as ``q``: ``base``, broadcast over rows and classes (None: 0), plus ``hot`` at the index ``at``."""

    at: tuple[np.ndarray, ...] | None  # None: probability targets, all of q is in base
    hot: np.ndarray | float
    base: np.ndarray | float | None
    total: np.ndarray | float  # Q, the sum of q over classes
    ignored: np.ndarray | None  # rows that count nowhere; None: there are none
    share: np.ndarray | float  # what each row adds to the denominator of the mean: weight[t], or 1
    rows: int


def _views(logits, out, axis):
    """Logits and gradient with the classes moved to the last axis, and the gradient in the caller's shape."""
    x = np.asarray(logits)
    if x.dtype.kind != "f":
        x = x.astype(np.float64)
    grad = np.empty_like(x, dtype=x.dtype.newbyteorder("="), subok=False) if out is None else out
    if axis in (-1, x.ndim - 1):
        return x, grad, grad
    return np.moveaxis(x, axis, -1), np.moveaxis(grad, axis, -1), grad


def _apart(out, *arrays):
    """Copies of those arrays that share memory with `out`, which is about to be overwritten."""
    return [np.array(a) if isinstance(a, np.ndarray) and np.may_share_memory(a, out) else a for a in arrays]


def _aim(x, targets, weight, ignore_index, eps, axis):
    dtype, classes = x.dtype.newbyteorder("="), x.shape[-1]
    targets = np.asarray(targets)
    if weight is not None:
        weight = np.asarray(weight, dtype)
    if targets.ndim == x.ndim:  # probabilities
        q = np.asarray(np.moveaxis(targets, axis, -1), dtype)
        if eps:
            q = q * dtype.type(1 - eps)
            q += dtype.type(eps / classes)
        if weight is not None:
            q = q * weight
        return _Aim(None, 0.0, q, np.add.reduce(q, axis=-1, keepdims=True), None, 1.0, q.size // classes)

    t = targets[..., None]
    ignored = None
    if ignore_index is not None:
        ignored = t == ignore_index
        if np.count_nonzero(ignored):
            t = np.where(ignored, 0, t)
        else:
            ignored = None
    rows = (np.arange(len(t))[:, None],) if t.ndim == 2 else np.indices(t.shape, sparse=True)[:-1]
    weight_t = 1.0 if weight is None else weight[t]
    hot, base, total = weight_t, None, weight_t
    if eps:
        hot = weight_t * dtype.type(1 - eps)
        base = dtype.type(eps / classes) * (1 if weight is None else weight)
        total = hot + (eps if weight is None else np.add.reduce(base))
    return _Aim((*rows, t), hot, base, total, ignored, weight_t, t.size)


def _q_dot(aim, shifted):
    """Sum of q * (x - m) over the classes of each row, where 0 * -inf is 0."""
    if aim.at is None:
        qx = _dot(shifted, aim.base)
    elif np.ndim(aim.hot) == 0 and aim.hot:
        qx = shifted[aim.at] * aim.hot
    else:
        qx = np.where(aim.hot == 0, 0, shifted[aim.at] * aim.hot)
    if aim.at is not None and aim.base is not None:
        qx += _dot(shifted, aim.base)
    return qx


def _dot(shifted, q):
    if np.ndim(q) == 0:
        return np.add.reduce(shifted, axis=-1, keepdims=True) * q
    sums = np.einsum("...j,...j->...", shifted, q)[..., None]
    if np.isnan(sums).any():  # an infinity met a zero, or the row holds NaN: rare, so tested for afterwards
        sums = np.add.reduce(np.where(q == 0, 0, shifted * q), axis=-1, keepdims=True)
    return sums


def _row_losses(aim, m, s, qx, z_loss, sample_weight):
    loss = np.log(s)
    square = z_loss * (m + loss) ** 2 if z_loss else None
    loss *= aim.total
    loss -= qx
    if z_loss:
        loss += square
    if sample_weight is not None:
        loss *= np.asarray(sample_weight, loss.dtype)[..., None]
    if aim.ignored is not None:
        loss[aim.ignored] = 0
    return loss[..., 0]


def _denominator(aim, sample_weight, reduction, normalizer):
    if reduction != "mean":
        return 1
    if normalizer is not None:
        return normalizer
    count = aim.share if sample_weight is None else aim.share * np.asarray(sample_weight, np.float64)[..., None]
    if np.ndim(count) == 0:
        return aim.rows if aim.ignored is None else aim.rows - np.count_nonzero(aim.ignored)
    return np.add.reduce(count if aim.ignored is None else count[~aim.ignored], axis=None, dtype=np.float64)


def _reduced(loss, reduction, denominator):
    if reduction == "none":
        return loss
    total = np.add.reduce(loss, axis=None, dtype=np.float64)
    return loss.dtype.type(total / denominator if denominator else np.nan)


def _finish_grad(g, aim, m, s, z_loss, sample_weight, upstream, denominator):
    """Turn g = exp(x - m) into the gradient."""
    if not denominator:  # the mean of nothing has none
        g[...] = 0
        return
    scale = upstream
    if np.ndim(upstream):
        scale = np.asarray(upstream, g.dtype)[..., None]
    if sample_weight is not None:
        scale = scale * np.asarray(sample_weight, g.dtype)[..., None]
    if denominator != 1:
        scale = scale / denominator
    if np.ndim(scale) == 0:
        scale = g.dtype.type(scale)

    a = aim.total + 2 * z_loss * (m + np.log(s)) if z_loss else aim.total
    if np.ndim(aim.base) < 2:
        g *= a * scale / s
        if aim.base is not None:
            g -= aim.base * scale
        g[aim.at] -= aim.hot * scale
    else:
        g *= a / s
        g -= aim.base
        g *= scale
    if aim.ignored is not None:
        g[aim.ignored[..., 0]] = 0


# ---------------------------------------------------------------------------------------------------------------------
# The steps one by one: softmax, one-hot rows, prediction
# ---------------------------------------------------------------------------------------------------------------------
#
# What becomes of a row x with special numbers (a masked class is one whose logit is -inf):
#
#   holds                         softmax        log_softmax     logsumexp   predict
#   masked classes, not only      0 there        -inf there      finite      never these
#   nothing but -inf              NaN            NaN             -inf        0
#   +inf, no NaN                  NaN            NaN             +inf        the first +inf
#   NaN                           NaN            NaN             NaN         the first NaN


def softmax(x, *, axis=-1, out=None):
    """``exp(x) / sum(exp(x))``; see `fastce.softmax`.

    Examples
    --------
    >>> import numpy as np
    >>> softmax(np.log([1.0, 3.0]))
    array([0.25, 0.75])
    """
    x, y, result = _views(x, out, axis)
    with np.errstate(all="ignore"):
        np.subtract(x, np.maximum.reduce(x, axis=-1, keepdims=True), out=y)
        np.exp(y, out=y)
        y /= np.add.reduce(y, axis=-1, keepdims=True)
    return result


def log_softmax(x, *, axis=-1, out=None):
    """``x - logsumexp(x)``; see `fastce.log_softmax`.

    Examples
    --------
    >>> import numpy as np
    >>> np.exp(log_softmax(np.log([1.0, 3.0])))
    array([0.25, 0.75])
    """
    x, y, result = _views(x, out, axis)
    with np.errstate(all="ignore"):
        np.subtract(x, np.maximum.reduce(x, axis=-1, keepdims=True), out=y)
        y -= np.log(np.add.reduce(np.exp(y), axis=-1, keepdims=True))
    return result


def logsumexp(x, *, axis=-1, out=None):
    """``log(sum(exp(x)))``; see `fastce.logsumexp`.

    Examples
    --------
    >>> import numpy as np
    >>> float(logsumexp(np.zeros(4)))  # log(4)
    1.3862943611198906
    """
    x = np.asarray(x)
    if x.dtype.kind != "f":
        x = x.astype(np.float64)
    x = np.moveaxis(x, axis, -1)
    with np.errstate(all="ignore"):
        m = np.maximum.reduce(x, axis=-1, keepdims=True)
        m[~np.isfinite(m)] = 0  # then the sum itself is 0, inf or NaN
        s = np.add.reduce(np.exp(x - m), axis=-1)
        return np.add(m[..., 0], np.log(s), out=out)


def softmax_grad(upstream, y, *, axis=-1, out=None):
    """``y * (upstream - sum(upstream * y))`` for ``y = softmax(x)``; see `fastce.softmax_grad`.

    Examples
    --------
    >>> import numpy as np
    >>> softmax_grad(np.array([1.0, 0.0]), np.array([0.25, 0.75]))
    array([ 0.1875, -0.1875])
    """
    y, g, grad = _views(y, out, axis)
    u = np.moveaxis(np.asarray(upstream, g.dtype), axis, -1)
    with np.errstate(all="ignore"):
        np.multiply(y, u - np.einsum("...j,...j->...", u, y)[..., None], out=g)
    return grad


def log_softmax_grad(upstream, y, *, axis=-1, out=None):
    """``upstream - exp(y) * sum(upstream)`` for ``y = log_softmax(x)``; see `fastce.log_softmax_grad`.

    Examples
    --------
    >>> import numpy as np
    >>> log_softmax_grad(np.array([1.0, 0.0]), np.log([0.25, 0.75]))
    array([ 0.75, -0.75])
    """
    y, g, grad = _views(y, out, axis)
    u = np.moveaxis(np.asarray(upstream, g.dtype), axis, -1)
    with np.errstate(all="ignore"):
        np.subtract(u, np.exp(y) * np.add.reduce(u, axis=-1, keepdims=True), out=g)
    return grad


def one_hot(labels, num_classes, *, dtype=np.float32, axis=-1):
    """Rows of zeros with a one at the label; see `fastce.one_hot`.

    Examples
    --------
    >>> import numpy as np
    >>> one_hot(np.array([2, 0]), 3)
    array([[0., 0., 1.],
           [1., 0., 0.]], dtype=float32)
    """
    labels = np.asarray(labels)
    hot = np.zeros((*labels.shape, num_classes), dtype)
    np.put_along_axis(hot, labels[..., None].astype(np.intp), 1, axis=-1)
    return np.moveaxis(hot, -1, axis)


def predict(logits, *, axis=-1):
    """The most probable class; see `fastce.predict`.

    Examples
    --------
    >>> import numpy as np
    >>> predict(np.array([[0.1, 2.0, -1.0], [3.0, 3.0, 0.0]]))
    array([1, 0])
    """
    return np.argmax(logits, axis=axis)


# ---------------------------------------------------------------------------------------------------------------------
# The two-term form
# ---------------------------------------------------------------------------------------------------------------------
#
# What it makes of special numbers, with a = weight*pos_weight*c and b = weight*(1 - c):
#
#   sigmoid, element              loss                    gradient
#   z = +inf                      0 if b = 0, else inf    b, the limit
#   z = -inf                      0 if a = 0, else inf    -a, the limit
#   z or c is NaN                 NaN                     NaN
#
#   softmax, row                  loss                    gradient
#   masked class j                inf if a[j] > 0         -a[j] at j; finite elsewhere
#   one class t is not masked     0 if b[t] = 0           -a elsewhere, their sum at t: 0 where c is 0 and 1
#   (or there is one class)       inf if b[t] > 0         NaN in the whole row: it has no direction
#   nothing but -inf, +inf, NaN   NaN                     NaN in the whole row


def binary_cross_entropy(
    logits,
    targets,
    *,
    activation="sigmoid",
    pos_weight=None,
    weight=None,
    sample_weight=None,
    reduction="mean",
    normalizer=None,
    axis=-1,
):
    """``-sum(c * log(p) + (1 - c) * log(1 - p))``; see `fastce.binary_cross_entropy`.

    Examples
    --------
    >>> import numpy as np
    >>> float(binary_cross_entropy(np.zeros((2, 3)), np.eye(2, 3)))  # log(2)
    0.6931471805599453
    """
    return _two_term(
        logits, targets, activation, pos_weight, weight, sample_weight, reduction, normalizer, axis, None, None
    )[0]


def binary_cross_entropy_with_grad(
    logits,
    targets,
    *,
    activation="sigmoid",
    pos_weight=None,
    weight=None,
    sample_weight=None,
    reduction="mean",
    normalizer=None,
    axis=-1,
    upstream=1.0,
    out=None,
):
    """Loss and gradient with respect to ``logits``; see `fastce.binary_cross_entropy_with_grad`.

    Notes
    -----
    Write ``a = weight * pos_weight * c`` and ``b = weight * (1 - c)``.

    With ``activation="sigmoid"``, ``-log p = softplus(-z)``, ``-log(1 - p) = softplus(z)`` and
    ``softplus(z) = max(z, 0) + log1p(exp(-abs(z)))``. The gradient ``p - c`` is kept as ``b * p - a * (1 - p)``, with
    ``1 - p = sigmoid(-z)``.

    With ``activation="softmax"`` every ``p[j]`` depends on every logit. The chain rule through the softmax's Jacobian,
    ``dp[j]/dz[k] = p[j] * ((j == k) - p[k])``, gives

        ``grad[k] = h[k] - p[k] * sum(h)``,    ``h[j] = p[j] * dE/dp[j] = b[j] * p[j] / (1 - p[j]) - a[j]``.

    Let ``t`` be the first class that attains the maximum, ``others`` be the rest and ``m2`` their maximum, and

        ``f[j] = exp(z[j] - m2)`` for others, ``T = sum(f)``, ``r = exp(m2 - z[t])``, ``tail = r * T``, ``s = 1 + tail``

    Then ``p[t] = 1 / s``, ``1 - p[t] = tail / s`` and ``p[j] = r * f[j] / s``. The odds ``o = p / (1 - p)`` are
    ``o[t] = 1 / tail`` and, as ``p[j] <= 1/2`` elsewhere, ``o[j] = r * f[j] / (s - r * f[j])`` loses nothing; always
    ``-log(1 - p) = log1p(o)``. With ``h[j] = b[j] * o[j] - a[j]`` and ``H = sum(h)`` over others,

        ``E       = sum(a * (log1p(tail) + z[t] - z)) + sum(b * log1p(o))``
        ``grad[t] = (b[t] - a[t] * tail - H) / s``
        ``grad[j] = h[j] - f[j] * (r * (H - a[t]) + b[t] / T) / s``.

    Nothing is divided by ``tail`` but in ``log1p(1 / tail)``, which where `tail` underflows is
    ``z[t] - m2 - log(T)``. As ``p[t]`` goes to 1, ``grad[j]`` goes to ``(weight[t] + weight[j]) * p[j]`` when
    ``c[t]`` is 1 and the others 0, and ``grad[t]`` to minus their sum: twice the published ``p - c`` at equal weights.
    When another ``c[k]`` is 1, ``grad[t]`` goes to ``weight[t] + weight[k]`` and ``grad[j]`` to
    ``-a[j] - weight[t] * f[j] / T``. With two classes, equal weights and ``c`` that sums to 1 it is ``2 * (p - c)``
    everywhere, with more classes no fixed multiple of it.

    Examples
    --------
    >>> import numpy as np
    >>> loss, grad = binary_cross_entropy_with_grad(np.zeros((1, 4)), np.eye(1, 4), reduction="sum")
    >>> grad
    array([[-0.5,  0.5,  0.5,  0.5]])
    >>> loss, grad = binary_cross_entropy_with_grad(np.zeros((1, 3)), np.eye(1, 3), activation="softmax")
    >>> grad
    array([[-1. ,  0.5,  0.5]])
    """
    if out is not None:
        targets, weight, pos_weight, sample_weight, upstream = _apart(
            out, targets, weight, pos_weight, sample_weight, upstream
        )
    return _two_term(
        logits, targets, activation, pos_weight, weight, sample_weight, reduction, normalizer, axis, upstream, out
    )


def _two_term(
    logits, targets, activation, pos_weight, weight, sample_weight, reduction, normalizer, axis, upstream, out
):
    """Loss and gradient; without `upstream` no gradient."""
    x = np.asarray(logits)
    if x.dtype.kind != "f":
        x = x.astype(np.float64)
    x = np.moveaxis(x, axis, -1)
    dtype = x.dtype.newbyteorder("=")
    c = np.moveaxis(np.asarray(targets), axis, -1)
    c = c.astype(np.result_type(c, dtype), copy=False)  # 1 - c is formed before anything of c is rounded
    a, b = np.asarray(c, dtype), np.asarray(1 - c, dtype)
    if pos_weight is not None:
        a = a * np.asarray(pos_weight, dtype)
    if weight is not None:
        a, b = a * np.asarray(weight, dtype), b * np.asarray(weight, dtype)

    with np.errstate(all="ignore"):
        of_each = _of_elements if activation == "sigmoid" else _of_rows
        loss, g = of_each(x, a, b, upstream is not None)  # loss: of each element, or of each row as a column
        factor = None if sample_weight is None else np.asarray(sample_weight, dtype)[..., None]
        if factor is not None:
            loss *= factor
        denominator = 1
        if reduction == "mean":
            denominator = normalizer or (loss.size if factor is None or activation == "sigmoid" else factor.sum())

        grad = None
        if upstream is not None:
            scale = np.asarray(upstream, dtype)
            if scale.ndim:
                scale = np.moveaxis(scale, axis, -1) if activation == "sigmoid" else scale[..., None]
            scale = scale / dtype.type(denominator) if denominator else dtype.type(0)
            g *= scale if factor is None else scale * factor
            if not denominator:
                g[...] = 0
            grad = np.empty_like(logits, dtype, subok=False) if out is None else out
            np.moveaxis(grad, axis, -1)[...] = g
        if reduction == "none":
            return (np.moveaxis(loss, -1, axis) if activation == "sigmoid" else loss[..., 0]), grad
        return _reduced(loss, reduction, denominator), grad


def _of_elements(z, a, b, with_grad):
    t = np.exp(-np.abs(z))
    loss = (a + b) * np.log1p(t) + _times(np.where(z > 0, b, a), np.abs(z))
    if not with_grad:
        return loss, None
    large, small = 1 / (1 + t), t / (1 + t)
    return loss, np.where(z > 0, b * large - a * small, b * small - a * large)


def _of_rows(x, a, b, with_grad):
    top = np.argmax(x, axis=-1, keepdims=True)
    m, a_top, b_top = (np.take_along_axis(v, top, -1) for v in (x, a, b))
    f = x.astype(m.dtype.newbyteorder("="))
    np.put_along_axis(f, top, -np.inf, -1)
    m2 = np.maximum.reduce(f, axis=-1, keepdims=True)
    f -= np.where(np.isneginf(m2), 0, m2)
    np.exp(f, out=f)
    T = np.add.reduce(f, axis=-1, keepdims=True)
    r = np.exp(m2 - m)
    tail = r * T
    s = 1 + tail
    odds = r * f / (s - r * f)  # 0 at the top, where it is 1 / tail

    top_term = np.where(tail > 1e-30, np.log1p(1 / tail), m - m2 - np.log(T))
    loss = _times(a, (m - x) + np.log1p(tail)) + _times(b, np.log1p(odds))
    np.put_along_axis(loss, top, a_top * np.log1p(tail) + _times(b_top, top_term), -1)
    loss = np.add.reduce(loss, axis=-1, keepdims=True)
    bad = ~np.isfinite(m)
    loss[bad] = np.nan
    if not with_grad:
        return loss, None

    h = b * odds - a
    np.put_along_axis(h, top, 0, -1)
    H = np.add.reduce(h, axis=-1, keepdims=True)
    g = h - f * ((r * (H - a_top) + np.where(b_top == 0, 0, b_top / T)) / s)
    np.put_along_axis(g, top, (b_top - a_top * tail - H) / s, -1)
    g[(bad | ((T == 0) & (b_top != 0)))[..., 0]] = np.nan
    return loss, g


def _times(factor, value):
    """Their product, where nothing times infinity is nothing."""
    return np.where(factor == 0, 0, factor * value)
