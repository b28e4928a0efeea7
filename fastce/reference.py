"""Softmax cross-entropy in plain NumPy: the definition of what fastce computes, and the baseline of its benchmarks.

The functions take and return what their namesakes in `fastce` do, but have no ``num_threads``. They check no
arguments, need only NumPy and share no code with the rest of the package. They use the formulas of textbooks, so the
last digits are not accurate: the loss of a confident row is 0.

In the loss of a row ``x`` with ``C`` classes, ``-log(p[j])`` is multiplied by a number ``q[j]``:

* class index ``t``: ``q[j] = weight[j] * label_smoothing / C``, plus ``weight[t] * (1 - label_smoothing)`` at ``t``;
* probabilities ``c``: ``q[j] = weight[j] * ((1 - label_smoothing) * c[j] + label_smoothing / C)``.

Let ``x`` be capped to ``softcap * tanh(x / softcap)`` and divided by the temperature, ``lse = log(sum(exp(x)))``,
``p = exp(x - lse)`` and ``mass = sum(q)``. The loss of the row is ``mass * lse - sum(q * x) + z_loss * lse**2`` and its
gradient with respect to this ``x`` is ``(mass + 2 * z_loss * lse) * p - q``. Both are multiplied by the sample weight
of the row. The gradient with respect to the logits is divided by the temperature too, and multiplied by
``1 - tanh(logits / softcap)**2``. float16 and bfloat16 logits are computed in float32.
"""

from typing import NamedTuple

import numpy as np

__all__ = [
    "BlockStats", "CrossEntropyLoss", "EvaluatedRows", "Evaluation", "LinearCrossEntropyLoss", "LinearGrads",
    "SoftmaxStats", "binary_cross_entropy", "binary_cross_entropy_with_grad", "block_stats", "cross_entropy",
    "cross_entropy_grad", "cross_entropy_grad_hess", "cross_entropy_hvp", "cross_entropy_with_grad", "entropy",
    "entropy_with_grad", "evaluate", "evaluate_linear", "grad_from_stats", "kl_divergence", "kl_divergence_with_grad",
    "linear_cross_entropy", "linear_cross_entropy_with_grad", "log_softmax", "log_softmax_grad", "logsumexp",
    "loss_from_stats", "merge_stats", "one_hot", "predict", "softmax", "softmax_grad"]  # fmt: skip


class SoftmaxStats(NamedTuple):
    """Two numbers of each row that the backward pass needs; see `fastce.SoftmaxStats`.

    Examples
    --------
    >>> cross_entropy(np.zeros((1, 4)), np.array([0]), return_stats=True)[1]
    SoftmaxStats(row_max=array([0.]), tail=array([3.]))
    """

    row_max: np.ndarray
    tail: np.ndarray  # the sum of exp((x - row_max) / temperature) over all classes except the first maximum


def cross_entropy(logits, targets, *, weight=None, sample_weight=None, ignore_index=-100, label_smoothing=0.0,
                  z_loss=0.0, temperature=1.0, softcap=None, reduction="mean", normalizer=None, axis=-1,
                  return_stats=False):  # fmt: skip
    """Softmax cross-entropy of ``logits``; see `fastce.cross_entropy`.

    Examples
    --------
    >>> float(cross_entropy(np.zeros((2, 4)), np.array([0, 3])))  # log(4)
    1.3862943611198906
    """
    loss, _, stats = _run(logits, targets, weight, sample_weight, ignore_index, label_smoothing, z_loss, temperature,
                          softcap, reduction, normalizer, axis, with_grad=False, return_stats=return_stats)  # fmt: skip
    return (loss, stats) if return_stats else loss


def cross_entropy_with_grad(logits, targets, *, weight=None, sample_weight=None, ignore_index=-100, label_smoothing=0.0,
                            z_loss=0.0, temperature=1.0, softcap=None, reduction="mean", normalizer=None, axis=-1,
                            return_stats=False, upstream=1.0, subnormals="keep", out=None):  # fmt: skip
    """Loss and gradient with respect to ``logits``; see `fastce.cross_entropy_with_grad`.

    Examples
    --------
    >>> cross_entropy_with_grad(np.zeros((1, 4)), np.array([2]))[1]
    array([[ 0.25,  0.25, -0.75,  0.25]])
    """
    results = _run(logits, targets, weight, sample_weight, ignore_index, label_smoothing, z_loss, temperature, softcap,
                   reduction, normalizer, axis, upstream, subnormals, out, return_stats=return_stats)  # fmt: skip
    return results if return_stats else results[:2]


def cross_entropy_grad(logits, targets, *, weight=None, sample_weight=None, ignore_index=-100, label_smoothing=0.0,
                       z_loss=0.0, temperature=1.0, softcap=None, reduction="mean", normalizer=None, axis=-1,
                       upstream=1.0, subnormals="keep", out=None, stats=None):  # fmt: skip
    """Gradient alone, from the ``stats`` of the forward pass if they are given; see `fastce.cross_entropy_grad`.

    Examples
    --------
    >>> cross_entropy_grad(np.zeros((1, 4)), np.array([2]), upstream=2.0)
    array([[ 0.5,  0.5, -1.5,  0.5]])
    """
    return _run(logits, targets, weight, sample_weight, ignore_index, label_smoothing, z_loss, temperature, softcap,
                reduction, normalizer, axis, upstream, subnormals, out, stats)[1]  # fmt: skip


class CrossEntropyLoss:
    """The loss as a layer, with the options of `cross_entropy`; see `fastce.CrossEntropyLoss`.

    Examples
    --------
    >>> float(CrossEntropyLoss(reduction="sum")(np.zeros((1, 2)), np.array([1])))  # log(2)
    0.6931471805599453
    """

    def __init__(self, *, subnormals="keep", **options):
        self._options, self._subnormals = options, subnormals

    def __call__(self, logits, targets, **options):
        """The loss. Options given here replace those of the layer, for this call and its `backward`.

        Examples
        --------
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
        >>> ce = CrossEntropyLoss()
        >>> loss = ce(np.zeros((1, 2)), np.array([1]))
        >>> ce.backward(upstream=3.0)
        array([[ 1.5, -1.5]])
        """
        logits, targets, options, stats = self._saved
        return cross_entropy_grad(logits, targets, **options, upstream=upstream, subnormals=self._subnormals, out=out,
                                  stats=stats)  # fmt: skip


def _run(logits, targets, weight, sample_weight, ignore_index, label_smoothing, z_loss, temperature, softcap,
         reduction, normalizer, axis, upstream=1.0, subnormals="keep", out=None, stats=None, with_grad=True,
         return_stats=False):  # fmt: skip
    """Loss, gradient and statistics."""
    if out is not None:
        targets, weight, sample_weight, upstream = _unshared(out, targets, weight, sample_weight, upstream)
        stats = stats and _unshared(out, *stats)
    plain = weight is sample_weight is normalizer is stats is None and not (label_smoothing or z_loss or return_stats)
    plain = plain and reduction != "none" and axis == -1 and type(logits) is type(targets) is np.ndarray
    plain = plain and temperature == 1 and softcap is None and subnormals == "keep"
    with np.errstate(all="ignore"):
        if plain and logits.dtype in (np.float32, np.float64) and logits.ndim == 2 and targets.ndim == 1:
            if 0 < len(targets) == np.count_nonzero(targets != ignore_index):
                return _plain(logits, targets, reduction, upstream, out, with_grad)

        x, g, grad = _classes_last(logits, out, axis)
        x, slope = _capped(x, softcap)
        base, label, added, mass, share, ignored = _targets(targets, weight, ignore_index, label_smoothing, axis, g)
        if sample_weight is not None:
            ignored = ignored | (np.asarray(sample_weight) == 0)
        m = np.maximum.reduce(x, axis=-1, keepdims=True) if stats is None else np.asarray(stats[0])[..., None]
        empty = return_stats and np.isneginf(x).all(axis=-1)  # seen before `out`, which may be the logits, is written
        _shifted(x, m, temperature, g)
        linear = 0 if base is None else _dot(base, g)
        if label is not None:
            linear += _times(added, g[label])
        np.exp(g, out=g)
        if return_stats:
            first_max, others = np.argmax(x, axis=-1, keepdims=True), g.copy()
            np.put_along_axis(others, first_max, np.take_along_axis(g, first_max, -1) - 1, -1)  # 1 - 1, or NaN
            tail = np.add.reduce(others, axis=-1)
            tail = np.where(empty, tail.dtype.type(-1), tail)
            stats = SoftmaxStats(m[..., 0], tail)
        s = np.add.reduce(g, axis=-1, keepdims=True) if stats is None else 1 + np.asarray(stats[1])[..., None]
        log_s = np.log(s)  # lse is m / temperature + log_s
        loss, factor = mass * log_s - linear, mass
        if z_loss:
            lse = m / g.dtype.type(temperature) + log_s
            loss += z_loss * lse**2
            factor = mass + 2 * z_loss * lse
        loss[ignored] = 0
        loss, scale = _reduce(loss, share, sample_weight, reduction, normalizer, np.asarray(upstream) / temperature,
                              axis)  # fmt: skip
        if scale is None:
            g[...] = 0
        elif with_grad and label is None:
            g *= factor / s  # p is g / s
            g -= base
            g *= scale
        elif with_grad:
            g *= factor * scale / s
            if base is not None:
                g -= base * scale
            g[label] -= added * scale
        if with_grad:
            if slope is not None:
                g *= slope
            g[ignored] = 0
            _flush(g, subnormals)
    return loss[..., 0] if reduction == "none" else loss, _stored(grad, logits, out), stats


def _plain(x, t, reduction, upstream, out, with_grad):
    """The short program that is left of `_run` for class indices without options."""
    g = np.empty_like(x) if out is None else out
    rows = np.arange(len(t))
    np.subtract(x, np.maximum.reduce(x, axis=1, keepdims=True), out=g)
    x_t = g[rows, t]
    np.exp(g, out=g)
    s = np.add.reduce(g, axis=1)
    total = np.add.reduce(np.log(s) - x_t, dtype=np.float64)
    denominator = len(t) if reduction == "mean" else 1
    if with_grad:
        scale = g.dtype.type(upstream / denominator)
        g *= (scale / s)[:, None]
        g[rows, t] -= scale
    return g.dtype.type(total / denominator), g, None


def _arrays(x, out):
    """`x` as floating-point numbers, and `out` or a new array of its shape."""
    x = np.asarray(x)
    if _is_half(x.dtype):  # computed in float32, see _stored
        x, out = x.astype(np.float32), None
    elif x.dtype.kind != "f":
        x = x.astype(np.float64)
    return x, np.empty_like(x, dtype=x.dtype.newbyteorder("="), subok=False) if out is None else out


def _classes_last(logits, out, axis):
    """Logits and gradient with the classes on the last axis, and the gradient in the shape of the logits."""
    x, grad = _arrays(logits, out)
    return (x, grad, grad) if axis == -1 else (np.moveaxis(x, axis, -1), np.moveaxis(grad, axis, -1), grad)


def _is_half(dtype):
    """float16, or the bfloat16 of ml_dtypes."""
    return dtype == np.float16 or dtype.name == "bfloat16"


def _stored(grad, logits, out):
    """What was computed for half-precision logits, in their dtype."""
    dtype = np.asarray(logits).dtype
    if not _is_half(dtype):
        return grad
    out = np.empty_like(grad, dtype=dtype) if out is None else out
    with np.errstate(all="ignore"):
        out[...] = grad
    return out


def _capped(x, softcap):
    """softcap * tanh(x / softcap), where -inf and +inf stay what they are, and its derivative."""
    if softcap is None:
        return x, None
    y = x / x.dtype.type(softcap)
    return np.where(np.isinf(x), x, x.dtype.type(softcap) * np.tanh(y)), 1 / np.cosh(y) ** 2


def _shifted(x, m, temperature, out):
    """(x - m) / temperature, written to `out`."""
    np.subtract(x, m, out=out)
    if temperature != 1:
        np.divide(out, out.dtype.type(temperature), out=out)


def _flush(g, subnormals):
    """With "flush", small numbers become 0, with their sign: their products with others might be subnormal."""
    if subnormals == "flush":
        np.copysign(0, g, out=g, where=np.abs(g) < (2.0**-100 if g.dtype == np.float32 else 2.0**-900))


def _unshared(out, *arrays):
    """The arrays, with copies of those that share memory with `out`."""
    return [np.array(a) if isinstance(a, np.ndarray) and np.may_share_memory(a, out) else a for a in arrays]


def _targets(targets, weight, ignore_index, label_smoothing, axis, g):
    """The targets as ``q``: `base`, or 0 if it is None, and at the index `label`, if there is one, also `added`.

    Then the sum of ``q``, what each row adds to the denominator of the mean, and the mask of the ignored rows.
    """
    dtype, targets = g.dtype.type, np.asarray(targets)
    hot, uniform = dtype(1 - label_smoothing), dtype(label_smoothing / g.shape[-1])
    weight = dtype(1) if weight is None else np.asarray(weight, dtype)
    if targets.ndim == g.ndim:  # probabilities
        base = np.moveaxis(targets, axis, -1).astype(dtype, copy=False)
        if label_smoothing:
            base = base * hot + uniform
        if weight.ndim:
            base = base * weight
        mass = np.add.reduce(base, axis=-1, keepdims=True)
        return base, None, None, mass, np.ones_like(mass), np.False_

    ignored = targets == ignore_index
    t = np.where(ignored, 0, targets)[..., None]
    weight_t = weight[t] if weight.ndim else weight
    added, base = weight_t * hot, uniform * weight if label_smoothing else None
    mass = added if base is None else added + uniform * (np.add.reduce(weight) if weight.ndim else g.shape[-1])
    rows = (np.arange(len(t))[:, None],) if t.ndim == 2 else np.indices(t.shape, sparse=True)[:-1]
    return base, (*rows, t), added, mass, np.where(ignored[..., None], 0, weight_t), ignored


def _dot(q, shifted):
    """The sum of q * (x - m) over the classes."""
    if np.ndim(q) == 0:
        return q * np.add.reduce(shifted, axis=-1, keepdims=True)
    sums = np.einsum("...j,...j->...", shifted, q)[..., None]
    if np.isnan(sums).any():  # 0 times infinity, or NaN in the row: rare, so tested for afterwards
        sums = np.add.reduce(_times(q, shifted), axis=-1, keepdims=True)
    return sums


def _times(factor, value):
    """The product, where 0 times infinity is 0."""
    return np.where(factor == 0, 0, factor * value)


def _reduce(loss, share, sample_weight, reduction, normalizer, upstream, axis):
    """The reduced loss and the factor of its gradient, which is None for the mean of nothing."""
    dtype, scale, denominator = loss.dtype.type, np.asarray(upstream, loss.dtype), 1
    scale = np.moveaxis(scale, axis, -1) if scale.ndim == loss.ndim else scale[..., None]
    if sample_weight is not None:
        sample_weight = np.asarray(sample_weight, dtype)[..., None]
        loss, share, scale = _times(sample_weight, loss), share * sample_weight, scale * sample_weight
    if reduction == "none":
        return loss, scale
    if reduction == "mean":
        denominator = normalizer or np.add.reduce(share, axis=None, dtype=np.float64)
    if not denominator:
        return dtype(np.nan), None
    return dtype(np.add.reduce(loss, axis=None, dtype=np.float64) / denominator), scale / dtype(denominator)


# Second derivatives. With factor = mass + 2 * z_loss * lse, the Hessian of a row's loss with respect to x / temperature
# is factor * (diag(p) - p p^T) + 2 * z_loss * p p^T.


def cross_entropy_grad_hess(logits, targets, *, weight=None, sample_weight=None, ignore_index=-100, label_smoothing=0.0,
                            z_loss=0.0, temperature=1.0, softcap=None, reduction="mean", normalizer=None, axis=-1,
                            upstream=1.0, subnormals="keep", out=None):  # fmt: skip
    """Gradient and the diagonal of the Hessian; see `fastce.cross_entropy_grad_hess`.

    Examples
    --------
    >>> cross_entropy_grad_hess(np.zeros((1, 2)), np.array([1]))
    (array([[ 0.5, -0.5]]), array([[0.25, 0.25]]))
    """
    options = (weight, sample_weight, ignore_index, label_smoothing, z_loss, temperature, softcap, reduction,
               normalizer, axis, upstream)  # fmt: skip
    grad = _run(_arrays(logits, None)[0], targets, *options)[1]
    p, factor, scale, ignored, cap = _curvature(logits, targets, *options)
    with np.errstate(all="ignore"):
        hess = _finished(factor * p * (1 - p) + 2 * z_loss * p**2, scale, ignored, temperature, axis)
        if cap is not None:
            slope, bend = cap
            hess = _times(hess, slope**2) + _times(grad, bend)
    for result in (grad, hess):
        _flush(result, subnormals)
    grad, hess = _stored(grad, logits, None), _stored(hess, logits, None)
    if out is None:
        return grad, hess
    for array, result in zip(out, (grad, hess), strict=True):
        array[...] = result
    return out


def cross_entropy_hvp(logits, targets, vectors, *, weight=None, sample_weight=None, ignore_index=-100,
                      label_smoothing=0.0, z_loss=0.0, temperature=1.0, softcap=None, reduction="mean", normalizer=None,
                      axis=-1, upstream=1.0, subnormals="keep", out=None):  # fmt: skip
    """The Hessian times vectors; see `fastce.cross_entropy_hvp`.

    Examples
    --------
    >>> cross_entropy_hvp(np.zeros((1, 2)), np.array([1]), np.array([[1.0, 0.0]]))
    array([[ 0.25, -0.25]])
    """
    options = (weight, sample_weight, ignore_index, label_smoothing, z_loss, temperature, softcap, reduction,
               normalizer, axis, upstream)  # fmt: skip
    p, factor, scale, ignored, cap = _curvature(logits, targets, *options)
    with np.errstate(all="ignore"):
        v = np.asarray(vectors).astype(p.dtype)
        inner = np.moveaxis(v if cap is None else _times(cap[0], v), axis, -1)
        mean = np.add.reduce(_times(p, inner), axis=-1, keepdims=True)
        product = factor * _times(p, inner - mean) + 2 * z_loss * p * mean
        product = _finished(product, scale, ignored, temperature, axis)
        if cap is not None:
            slope, bend = cap
            grad = _run(_arrays(logits, None)[0], targets, *options)[1]
            product = _times(product, slope) + _times(_times(grad, bend), v)
        _flush(product, subnormals)
    product = _stored(product, logits, None)
    if out is None:
        return product
    out[...] = product
    return out


def _curvature(logits, targets, weight, sample_weight, ignore_index, label_smoothing, z_loss, temperature, softcap,
               reduction, normalizer, axis, upstream):  # fmt: skip
    """Probabilities, the factor of ``diag(p) - p p^T``, that of the results and the ignored rows. With a softcap also
    its derivative, and what the gradient is multiplied by in the second derivatives."""
    x, p, _ = _classes_last(logits, None, axis)
    _, _, _, mass, share, ignored = _targets(targets, weight, ignore_index, label_smoothing, axis, p)
    if sample_weight is not None:
        ignored = ignored | (np.asarray(sample_weight) == 0)
    softmax(x, temperature=temperature, softcap=softcap, out=p)
    with np.errstate(all="ignore"):
        lse = logsumexp(x, temperature=temperature, softcap=softcap)[..., None] if z_loss else 0
        factor = mass + 2 * z_loss * lse if z_loss else mass
        _, scale = _reduce(np.zeros_like(share, p.dtype), share, sample_weight, reduction, normalizer, upstream, axis)
        cap = None
        if softcap is not None:
            bend = -2 / x.dtype.type(softcap) * np.tanh(x / x.dtype.type(softcap))
            cap = np.moveaxis(_capped(x, softcap)[1], -1, axis), np.moveaxis(bend, -1, axis)
    return p, factor, scale, ignored, cap


def _finished(result, scale, ignored, temperature, axis):
    result = np.zeros_like(result) if scale is None else result * (scale / result.dtype.type(temperature**2))
    result[ignored] = 0
    return np.moveaxis(result, -1, axis)


# Softmax, one-hot rows and prediction. A class is masked if its logit is -inf.
#   the row contains              softmax        log_softmax     logsumexp   predict
#   masked and other classes      0 if masked    -inf if masked  finite      not a masked class
#   only masked classes           NaN            NaN             -inf        0
#   +inf, but no NaN              NaN            NaN             +inf        the first +inf
#   NaN                           NaN            NaN             NaN         the first NaN


def softmax(x, *, temperature=1.0, softcap=None, axis=-1, subnormals="keep", out=None):
    """``exp(x) / sum(exp(x))`` of ``x / temperature``; see `fastce.softmax`.

    Examples
    --------
    >>> softmax(np.log([1.0, 3.0]))
    array([0.25, 0.75])
    """
    x, y = _arrays(logits := x, out)
    with np.errstate(all="ignore"):
        x, _ = _capped(x, softcap)
        _shifted(x, np.maximum.reduce(x, axis=axis, keepdims=True), temperature, y)
        np.exp(y, out=y)
        y /= np.add.reduce(y, axis=axis, keepdims=True)
        _flush(y, subnormals)
    return _stored(y, logits, out)


def log_softmax(x, *, temperature=1.0, softcap=None, axis=-1, out=None):
    """``x - log(sum(exp(x)))`` of ``x / temperature``; see `fastce.log_softmax`.

    Examples
    --------
    >>> np.exp(log_softmax(np.log([1.0, 3.0])))
    array([0.25, 0.75])
    """
    x, y = _arrays(logits := x, out)
    with np.errstate(all="ignore"):
        x, _ = _capped(x, softcap)
        _shifted(x, np.maximum.reduce(x, axis=axis, keepdims=True), temperature, y)
        y -= np.log(np.add.reduce(np.exp(y), axis=axis, keepdims=True))
    return _stored(y, logits, out)


def logsumexp(x, *, temperature=1.0, softcap=None, axis=-1, keepdims=False, out=None):
    """``log(sum(exp(x)))`` of ``x / temperature``; see `fastce.logsumexp`.

    Examples
    --------
    >>> float(logsumexp(np.zeros(4)))  # log(4)
    1.3862943611198906
    """
    x, e = _arrays(x, None)
    with np.errstate(all="ignore"):
        x, _ = _capped(x, softcap)
        m = np.maximum.reduce(x, axis=axis, keepdims=True, initial=-np.inf)
        m = np.where(np.isfinite(m), m, e.dtype.type(0))  # then the sum is 0, inf or NaN
        _shifted(x, m, temperature, e)
        np.exp(e, out=e)
        lse = m / e.dtype.type(temperature) + np.log(np.add.reduce(e, axis=axis, keepdims=True))
    lse = (lse if keepdims else np.squeeze(lse, axis))[()]
    if out is None:
        return lse
    out[...] = lse
    return out


def softmax_grad(upstream, y, *, temperature=1.0, axis=-1, subnormals="keep", out=None):
    """``y * (upstream - sum(upstream * y)) / temperature`` for ``y = softmax(x)``; see `fastce.softmax_grad`.

    Examples
    --------
    >>> softmax_grad(np.array([1.0, 0.0]), np.array([0.25, 0.75]))
    array([ 0.1875, -0.1875])
    """
    y, g = _arrays(given := y, out)
    u = np.asarray(upstream, g.dtype)
    with np.errstate(all="ignore"):
        np.multiply(y, u - np.add.reduce(u * y, axis=axis, keepdims=True), out=g)
        g /= g.dtype.type(temperature)
        _flush(g, subnormals)
    return _stored(g, given, out)


def log_softmax_grad(upstream, y, *, temperature=1.0, axis=-1, subnormals="keep", out=None):
    """``(upstream - exp(y) * sum(upstream)) / temperature`` for ``y = log_softmax(x)``; see `fastce.log_softmax_grad`.

    Examples
    --------
    >>> log_softmax_grad(np.array([1.0, 0.0]), np.log([0.25, 0.75]))
    array([ 0.75, -0.75])
    """
    y, g = _arrays(given := y, out)
    u = np.asarray(upstream, g.dtype)
    with np.errstate(all="ignore"):
        np.subtract(u, np.exp(y) * np.add.reduce(u, axis=axis, keepdims=True), out=g)
        g /= g.dtype.type(temperature)
        _flush(g, subnormals)
    return _stored(g, given, out)


def one_hot(labels, num_classes, *, dtype=np.float32, axis=-1):
    """Rows of zeros with a one at the label; see `fastce.one_hot`.

    Examples
    --------
    >>> one_hot(np.array([2]), 3)
    array([[0., 0., 1.]], dtype=float32)
    """
    return np.moveaxis(np.asarray(labels)[..., None] == np.arange(num_classes), -1, axis).astype(dtype)


def predict(logits, *, axis=-1):
    """The most probable class; see `fastce.predict`.

    Examples
    --------
    >>> predict(np.array([[0.1, 2.0, -1.0], [3.0, 3.0, 0.0]]))
    array([1, 0])
    """
    return np.argmax(logits, axis=axis)


# The entropy, and evaluation. A masked class adds nothing to the entropy, and its gradient is 0. A row that contains
# NaN or +inf, or only masked classes, has entropy NaN, and its label has no rank.


def entropy(logits, *, temperature=1.0, softcap=None, sample_weight=None, reduction="mean", normalizer=None,
            axis=-1):  # fmt: skip
    """``-sum(p * log(p))`` with ``p = softmax(logits / temperature)``; see `fastce.entropy`.

    Examples
    --------
    >>> float(entropy(np.zeros((2, 4))))  # log(4)
    1.3862943611198906
    """
    return entropy_with_grad(logits, temperature=temperature, softcap=softcap, sample_weight=sample_weight,
                             reduction=reduction, normalizer=normalizer, axis=axis)[0]  # fmt: skip


def entropy_with_grad(logits, *, temperature=1.0, softcap=None, sample_weight=None, reduction="mean", normalizer=None,
                      axis=-1, upstream=1.0, subnormals="keep", out=None):  # fmt: skip
    """Entropy and gradient with respect to ``logits``; see `fastce.entropy_with_grad`.

    Notes
    -----
    The derivative of ``-sum(p * log(p))`` by a logit is ``-p * (log(p) + entropy) / temperature``.

    Examples
    --------
    >>> entropy_with_grad(np.log([[1.0, 3.0]]))[1].round(4)
    array([[ 0.206, -0.206]])
    """
    x, g, grad = _classes_last(logits, out, axis)
    if out is not None:
        sample_weight, upstream = _unshared(out, sample_weight, upstream)
    with np.errstate(all="ignore"):
        x, slope_of_cap = _capped(x, softcap)
        np.divide(x, g.dtype.type(temperature), out=g)
        p, logp = softmax(g), log_softmax(g)
        loss = -np.add.reduce(_times(p, logp), axis=-1, keepdims=True)
        slope = _times(p, logp + loss) * g.dtype.type(-1 / temperature)
        loss, scale = _reduce(loss, np.ones_like(loss), sample_weight, reduction, normalizer, upstream, axis)
        g[...] = 0 if scale is None else slope * scale
        if softcap is not None:
            g[...] = _times(g, slope_of_cap)
        _flush(g, subnormals)
    return loss[..., 0] if reduction == "none" else loss, _stored(grad, logits, out)


class BlockStats(NamedTuple):
    """The state of a block of classes; see `fastce.BlockStats`.

    Examples
    --------
    >>> block_stats(np.zeros((1, 2)), np.array([1]), class_offset=0, num_classes=2)
    BlockStats(row_max=array([0.]), tail=array([1.]), mass=array([1.]), linear=array([0.]))
    """

    row_max: np.ndarray
    tail: np.ndarray
    mass: np.ndarray
    linear: np.ndarray


def block_stats(logits, targets, *, class_offset, num_classes, weight=None, ignore_index=-100, label_smoothing=0.0,
                temperature=1.0, softcap=None, axis=-1):  # fmt: skip
    """The state of a block of classes; see `fastce.block_stats`.

    Examples
    --------
    >>> block_stats(np.zeros((1, 2)), np.array([3]), class_offset=0, num_classes=5).mass
    array([0.])
    """
    x, q, _, _ = _block(
        logits, targets, class_offset, num_classes, weight, ignore_index, label_smoothing, softcap, axis
    )
    with np.errstate(all="ignore"):
        row_max = np.maximum.reduce(x, axis=-1, keepdims=True, initial=-np.inf)
        distance = np.where(row_max == -np.inf, 0, row_max) - x
        tail = np.add.reduce(np.exp(-distance / temperature), axis=-1) - 1
        linear = np.add.reduce(_times(q, distance), axis=-1)
    return BlockStats(row_max[..., 0], tail, np.add.reduce(q, axis=-1), linear)


def merge_stats(a, b, *, temperature=1.0):
    """The state of the classes of both blocks; see `fastce.merge_stats`.

    Examples
    --------
    >>> one = block_stats(np.zeros((1, 1)), np.array([0]), class_offset=0, num_classes=2)
    >>> other = block_stats(np.zeros((1, 1)), np.array([0]), class_offset=1, num_classes=2)
    >>> merge_stats(one, other).tail
    array([1.])
    """
    with np.errstate(all="ignore"):
        row_max = np.maximum(a.row_max, b.row_max)
        total, linear = np.zeros(row_max.shape), np.zeros(row_max.shape)
        for part in (a, b):
            gap = np.where(part.row_max == -np.inf, 0, row_max - part.row_max)
            total = total + (1 + part.tail) * np.exp(-gap / temperature)
            linear = linear + part.linear + _times(part.mass, gap)
    return BlockStats(row_max, total - 1, a.mass + b.mass, linear)


def loss_from_stats(stats, targets, *, ignore_index=-100, z_loss=0.0, temperature=1.0):
    """The loss of each row; see `fastce.loss_from_stats`.

    Examples
    --------
    >>> stats = block_stats(np.zeros((1, 4)), np.array([3]), class_offset=0, num_classes=4)
    >>> loss_from_stats(stats, np.array([3])).round(6)
    array([1.386294])
    """
    with np.errstate(all="ignore"):
        log_total = np.log(np.where(stats.row_max == -np.inf, np.nan, 1 + stats.tail))
        loss = stats.mass * log_total + stats.linear / temperature
        if z_loss:
            loss = loss + z_loss * (stats.row_max / temperature + log_total) ** 2
    labels = np.ndim(targets) == np.ndim(stats.row_max)
    return np.where(np.asarray(targets) == ignore_index, 0, loss)[()] if labels else loss[()]


def grad_from_stats(logits, targets, stats, *, class_offset, num_classes, weight=None, ignore_index=-100,
                    label_smoothing=0.0, z_loss=0.0, temperature=1.0, softcap=None, axis=-1, upstream=1.0,
                    subnormals="keep"):  # fmt: skip
    """The gradient of a block; see `fastce.grad_from_stats`.

    Examples
    --------
    >>> stats = block_stats(np.zeros((1, 4)), np.array([3]), class_offset=0, num_classes=4)
    >>> grad_from_stats(np.zeros((1, 2)), np.array([3]), stats, class_offset=2, num_classes=4)
    array([[ 0.25, -0.75]])
    """
    x, q, slope, ignored = _block(logits, targets, class_offset, num_classes, weight, ignore_index, label_smoothing,
                                  softcap, axis)  # fmt: skip
    row_max, tail, mass, _ = (np.asarray(part)[..., None] for part in stats)
    with np.errstate(all="ignore"):
        total = np.where(row_max == -np.inf, np.nan, 1 + tail)
        factor = mass + 2 * z_loss * (row_max / temperature + np.log(total)) if z_loss else mass
        grad = factor * np.exp((x - row_max) / temperature) / total - q
        grad = grad * (np.asarray(upstream)[..., None] / temperature)
        if slope is not None:
            grad = _times(grad, slope)
        grad[ignored] = 0
        dtype = np.asarray(logits).dtype
        grad = np.moveaxis(grad.astype(dtype if dtype.kind not in "iub" else np.float64), -1, axis)
        _flush(grad, subnormals)
    return grad


def _block(logits, targets, class_offset, num_classes, weight, ignore_index, label_smoothing, softcap, axis):
    """Capped logits of a block in float64, with the classes last, its part of ``q``, the derivative of the capped
    logits, and the mask of the ignored rows."""
    x, slope = _capped(np.moveaxis(np.asarray(logits), axis, -1).astype(np.float64), softcap)
    targets, numbers = np.asarray(targets), class_offset + np.arange(x.shape[-1])
    weight = np.ones(x.shape[-1]) if weight is None else np.asarray(weight, np.float64)[numbers]
    labels = targets.ndim < x.ndim
    hot = targets[..., None] == numbers if labels else np.moveaxis(targets, axis, -1)
    ignored = targets == ignore_index if labels else np.zeros(x.shape[:-1], bool)
    return x, weight * ((1 - label_smoothing) * hot + label_smoothing / num_classes), slope, ignored


class LinearGrads(NamedTuple):
    """Gradients of a loss of ``hidden @ weight.T + bias``; see `fastce.LinearGrads`.

    Examples
    --------
    >>> linear_cross_entropy_with_grad(np.ones((1, 1)), np.zeros((2, 1)), np.array([1]))[1].weight
    array([[ 0.5],
           [-0.5]])
    """

    hidden: np.ndarray
    weight: np.ndarray
    bias: np.ndarray | None


def linear_cross_entropy(hidden, linear_weight, targets, *, linear_bias=None, weight=None, sample_weight=None,
                         ignore_index=-100, label_smoothing=0.0, z_loss=0.0, temperature=1.0, softcap=None,
                         reduction="mean", normalizer=None, return_stats=False):  # fmt: skip
    """`cross_entropy` of ``hidden @ linear_weight.T + linear_bias``; see `fastce.linear_cross_entropy`.

    Examples
    --------
    >>> round(float(linear_cross_entropy(np.ones((1, 2)), np.zeros((2, 2)), np.array([1]))), 6)
    0.693147
    """
    logits = _logits(hidden, linear_weight, linear_bias)
    loss, stats = cross_entropy(logits, targets, weight=weight, sample_weight=sample_weight, ignore_index=ignore_index,
                                label_smoothing=label_smoothing, z_loss=z_loss, temperature=temperature,
                                softcap=softcap, reduction=reduction, normalizer=normalizer,
                                return_stats=True)  # fmt: skip
    return (loss, _of_counted_rows(stats, targets, ignore_index, sample_weight)) if return_stats else loss


def linear_cross_entropy_with_grad(hidden, linear_weight, targets, *, linear_bias=None, weight=None, sample_weight=None,
                                   ignore_index=-100, label_smoothing=0.0, z_loss=0.0, temperature=1.0, softcap=None,
                                   reduction="mean", normalizer=None, upstream=1.0, out=None, accumulate=False,
                                   return_stats=False):  # fmt: skip
    """Loss and gradients; see `fastce.linear_cross_entropy_with_grad`.

    Examples
    --------
    >>> linear_cross_entropy_with_grad(np.ones((1, 2)), np.zeros((2, 2)), np.array([1]))[1].weight
    array([[ 0.5,  0.5],
           [-0.5, -0.5]])
    """
    logits = _logits(hidden, linear_weight, linear_bias)
    loss, g, stats = _run(logits, targets, weight, sample_weight, ignore_index, label_smoothing, z_loss, temperature,
                          softcap, reduction, normalizer, -1, upstream, "flush", return_stats=True)  # fmt: skip
    rows, features = g.reshape(-1, g.shape[-1]), np.reshape(hidden, (-1, np.shape(hidden)[-1]))
    kept = rows.any(axis=-1)  # of ignored rows, whose hidden states may be NaN, the gradient is 0
    bias = None if linear_bias is None else np.add.reduce(rows, axis=0)
    grads = LinearGrads(np.matmul(g, linear_weight), np.matmul(rows[kept].T, features[kept]), bias)
    if out is not None:
        for array, grad in zip(out, grads, strict=True):
            if grad is not None:
                array[...] = array + grad if accumulate else grad
    results = loss, grads if out is None else out, _of_counted_rows(stats, targets, ignore_index, sample_weight)
    return results if return_stats else results[:2]


class LinearCrossEntropyLoss:
    """`linear_cross_entropy` as a layer, with its options; see `fastce.LinearCrossEntropyLoss`.

    Examples
    --------
    >>> ce = LinearCrossEntropyLoss(reduction="sum")
    >>> round(float(ce(np.ones((1, 2)), np.zeros((2, 2)), np.array([1]))), 6)  # log(2)
    0.693147
    """

    def __init__(self, **options):
        self._options = options

    def __call__(self, hidden, linear_weight, targets, *, linear_bias=None, **options):
        """The loss. Options given here replace those of the layer, for this call and its `backward`.

        Examples
        --------
        >>> ce = LinearCrossEntropyLoss()
        >>> round(float(ce(np.ones((1, 2)), np.zeros((2, 2)), np.array([1]))), 6)  # log(2)
        0.693147
        """
        options = self._options | options | {"linear_bias": linear_bias}
        self._saved = (hidden, linear_weight, targets), options
        return linear_cross_entropy(hidden, linear_weight, targets, **options)

    def backward(self, upstream=1.0, *, out=None, accumulate=False):
        """Gradients of the loss of the last call.

        Examples
        --------
        >>> ce = LinearCrossEntropyLoss()
        >>> loss = ce(np.ones((1, 2)), np.zeros((2, 2)), np.array([1]))
        >>> ce.backward(upstream=2.0).weight
        array([[ 1.,  1.],
               [-1., -1.]])
        """
        arguments, options = self._saved
        return linear_cross_entropy_with_grad(*arguments, **options, upstream=upstream, out=out,
                                              accumulate=accumulate)[1]  # fmt: skip


def _of_counted_rows(stats, targets, ignore_index, sample_weight):
    """The statistics, where rows that do not count have those of no classes."""
    counted = (np.asarray(targets) != ignore_index) & (sample_weight is None or np.asarray(sample_weight) != 0)
    return SoftmaxStats(np.where(counted, stats.row_max, stats.row_max.dtype.type(-np.inf)),
                        np.where(counted, stats.tail, stats.tail.dtype.type(-1)))  # fmt: skip


def _logits(hidden, linear_weight, linear_bias):
    with np.errstate(all="ignore"):
        logits = np.matmul(np.asarray(hidden), np.transpose(linear_weight))
        return logits if linear_bias is None else logits + np.asarray(linear_bias, logits.dtype)


class EvaluatedRows(NamedTuple):
    """What each row is evaluated by; see `fastce.EvaluatedRows`.

    Examples
    --------
    >>> evaluate(np.eye(2), np.array([0, 0]), return_rows=True)[1].rank
    array([0, 1])
    """

    log_probability: np.ndarray
    rank: np.ndarray
    predicted: np.ndarray
    entropy: np.ndarray
    confidence: np.ndarray


class Evaluation(NamedTuple):
    """Means over the rows that are not ignored; see `fastce.Evaluation`. This one cannot be added to another.

    Examples
    --------
    >>> evaluate(np.eye(2), np.array([0, 0])).accuracy
    0.5
    """

    rows: int
    loss: float
    perplexity: float
    accuracy: float
    top_k: dict[int, float]
    entropy: float
    confidence: float
    calibration_error: float


def evaluate(logits, labels, *, top_k=(1, 5), temperature=1.0, softcap=None, ignore_index=-100, axis=-1,
             return_rows=False):  # fmt: skip
    """Loss, accuracies, entropy and calibration of ``logits``; see `fastce.evaluate`.

    Examples
    --------
    >>> evaluate(np.zeros((1, 4)), np.array([2]), top_k=(2, 3)).top_k
    {2: 0.0, 3: 1.0}
    """
    x, labels = np.moveaxis(np.asarray(logits), axis, -1), np.asarray(labels)
    kept = labels != ignore_index
    t = np.where(kept, labels, 0)[..., None]
    with np.errstate(all="ignore"):
        x, _ = _capped(x, softcap)
        z = x / (x.dtype.type(temperature) if x.dtype.kind == "f" else temperature)
        p, logp = softmax(z), np.take_along_axis(log_softmax(z), t, -1)[..., 0]
        entropies, confidence = entropy(z, reduction="none"), p.max(-1)
        x_t = np.take_along_axis(x, t, -1)
        rank = np.add.reduce((x > x_t) | ((x == x_t) & (np.arange(x.shape[-1]) < t)), axis=-1)
        rank = np.where(kept & ~np.isnan(confidence), rank, -1)
    rows = EvaluatedRows(np.where(kept, logp, 0), rank, np.where(kept, predict(x), -1), np.where(kept, entropies, 0),
                         np.where(kept, confidence, 0))  # fmt: skip
    n = int(np.count_nonzero(kept))

    def mean(values):
        return float(np.add.reduce(values, axis=None, dtype=np.float64)) / n if n else float("nan")

    loss, error = mean(0 - rows.log_probability), 0.0
    bins = np.ceil(rows.confidence * 15)  # bin b holds the confidences in ((b - 1) / 15, b / 15]
    for b in range(1, 16):
        error += np.abs(np.add.reduce(((rank == 0) - rows.confidence)[bins == b], axis=None, dtype=np.float64))
    confidence = mean(rows.confidence)
    result = Evaluation(n, loss, float(np.exp(loss)), mean(rank == 0),
                        {k: mean((rank >= 0) & (rank < k)) for k in np.atleast_1d(top_k).tolist()}, mean(rows.entropy),
                        confidence, float(error) / n if n and confidence == confidence else float("nan"))  # fmt: skip
    return (result, rows) if return_rows else result


def evaluate_linear(hidden, linear_weight, labels, *, linear_bias=None, top_k=(1, 5), temperature=1.0, softcap=None,
                    ignore_index=-100, return_rows=False):  # fmt: skip
    """`evaluate` of ``hidden @ linear_weight.T + linear_bias``; see `fastce.evaluate_linear`.

    Examples
    --------
    >>> evaluate_linear(np.eye(3), np.eye(3), np.array([0, 1, 1]), top_k=3).top_k
    {3: 1.0}
    """
    logits = _logits(hidden, linear_weight, linear_bias)
    return evaluate(logits, labels, top_k=top_k, temperature=temperature, softcap=softcap, ignore_index=ignore_index,
                    return_rows=return_rows)  # fmt: skip


# The two-term form, with a = weight * pos_weight * c and b = weight * (1 - c).
#   sigmoid, an element           loss                    gradient
#   z = +inf                      0 if b = 0, else inf    b, the limit
#   z = -inf                      0 if a = 0, else inf    -a, the limit
#   z or c is NaN                 NaN                     NaN
#
#   softmax, a row                loss                    gradient
#   class j is masked             inf if a[j] > 0         -a[j] at j, finite elsewhere
#   all but class t are masked    0 if b[t] = 0           -a elsewhere, the sum of a elsewhere at t
#   (or there is one class)       inf if b[t] > 0         NaN in the whole row: the limit depends on the direction
#   only -inf, or +inf, or NaN    NaN                     NaN in the whole row


def binary_cross_entropy(logits, targets, *, activation="sigmoid", pos_weight=None, weight=None, sample_weight=None,
                         reduction="mean", normalizer=None, axis=-1):  # fmt: skip
    """``-sum(c * log(p) + (1 - c) * log(1 - p))``; see `fastce.binary_cross_entropy`.

    Examples
    --------
    >>> float(binary_cross_entropy(np.zeros((2, 3)), np.eye(2, 3)))  # log(2)
    0.6931471805599453
    """
    return binary_cross_entropy_with_grad(logits, targets, activation=activation, pos_weight=pos_weight, weight=weight,
                                          sample_weight=sample_weight, reduction=reduction, normalizer=normalizer,
                                          axis=axis)[0]  # fmt: skip


def binary_cross_entropy_with_grad(logits, targets, *, activation="sigmoid", pos_weight=None, weight=None,
                                   sample_weight=None, reduction="mean", normalizer=None, axis=-1, upstream=1.0,
                                   subnormals="keep", out=None):  # fmt: skip
    """Loss and gradient with respect to ``logits``; see `fastce.binary_cross_entropy_with_grad`.

    Notes
    -----
    Let ``a = weight * pos_weight * c`` and ``b = weight * (1 - c)``. With ``activation="sigmoid"`` the gradient is
    ``b * p - a * (1 - p)``, which is ``p - c`` without weights. With ``activation="softmax"`` it is ``h - p * sum(h)``,
    where ``h = b * p / (1 - p) - a``. "From scores to gradient" in the documentation derives both.

    Examples
    --------
    >>> binary_cross_entropy_with_grad(np.zeros((1, 4)), np.eye(1, 4), reduction="sum")[1]
    array([[-0.5,  0.5,  0.5,  0.5]])
    >>> binary_cross_entropy_with_grad(np.zeros((1, 3)), np.eye(1, 3), activation="softmax")[1]
    array([[-1. ,  0.5,  0.5]])
    """
    z, g, grad = _classes_last(logits, out, axis)
    dtype, c, sigmoid = g.dtype, np.moveaxis(np.asarray(targets), axis, -1), activation == "sigmoid"
    c = c.astype(np.result_type(c, dtype), copy=False)  # 1 - c is formed before c is rounded
    weight, pos_weight = (np.asarray(1 if w is None else w, dtype) for w in (weight, pos_weight))
    a, b = c.astype(dtype) * weight * pos_weight, (1 - c).astype(dtype) * weight
    with np.errstate(all="ignore"):
        loss, slope = (_sigmoid_terms if sigmoid else _softmax_terms)(z.astype(dtype), a, b)
        if sigmoid and normalizer is None:  # the mean is over all elements, whatever their weights
            normalizer = loss.size
        loss, scale = _reduce(loss, np.ones_like(loss), sample_weight, reduction, normalizer, upstream, axis)
        g[...] = 0 if scale is None else slope * scale
        if sample_weight is not None:
            g[np.asarray(sample_weight) == 0] = 0
        _flush(g, subnormals)
    if reduction == "none":
        loss = np.moveaxis(loss, -1, axis) if sigmoid else loss[..., 0]
    return loss, _stored(grad, logits, out)


def _sigmoid_terms(z, a, b):
    """Loss and gradient of each element."""
    e = np.exp(-np.abs(z))
    loss = (a + b) * np.log1p(e) + _times(np.where(z > 0, b, a), np.abs(z))
    return loss, np.where(z > 0, b - a * e, b * e - a) / (1 + e)


def _softmax_terms(z, a, b):
    """Loss and gradient of each row. There is no division by a p or a 1 - p that may be 0."""
    t = np.argmax(z, axis=-1, keepdims=True)
    others = np.arange(z.shape[-1]) != t
    z_t, a_t, b_t = (np.take_along_axis(values, t, axis=-1) for values in (z, a, b))
    second = np.maximum.reduce(z, axis=-1, keepdims=True, where=others, initial=-np.inf)
    f = np.where(others & (z > -np.inf), np.exp(z - second), 0)
    f_sum, r = np.add.reduce(f, axis=-1, keepdims=True), np.exp(second - z_t)
    tail = r * f_sum  # p[t] is 1 / (1 + tail), the other p are r * f / (1 + tail)
    s, log_s = 1 + tail, np.log1p(tail)
    odds = r * f / (s - r * f)  # p / (1 - p) of the others
    loss = np.add.reduce(_times(a, z_t - z + log_s) + _times(b, np.log1p(odds)), axis=-1, keepdims=True)
    loss += _times(b_t, log_s + (z_t - second) - np.log(f_sum))  # -log(1 - p[t])
    h = np.where(others, b * odds - a, 0)
    h_sum = np.add.reduce(h, axis=-1, keepdims=True)
    grad_of_others = h - f * (r * (h_sum - a_t) + _times(b_t, 1 / f_sum)) / s
    grad = np.where(others, grad_of_others, (b_t - a_t * tail - h_sum) / s)
    finite = np.isfinite(z_t)
    return np.where(finite, loss, np.nan), np.where(finite & ((f_sum > 0) | (b_t == 0)), grad, np.nan)


# The Kullback-Leibler divergence, with p = softmax(x / temperature) and q = softmax(t / temperature), or given.
#   class j                       loss                    gradient
#   q[j] = 0                      adds nothing            p[j] * sum(q)
#   p[j] = 0, q[j] > 0            inf                     -q[j]
#   a row of x or t that contains NaN or +inf, or only -inf, has NaN


def kl_divergence(logits, target_logits, *, targets="logits", temperature=1.0, softcap=None, sample_weight=None,
                  reduction="mean", normalizer=None, axis=-1):  # fmt: skip
    """``sum(q * (log(q) - log(p)))``; see `fastce.kl_divergence`.

    Examples
    --------
    >>> round(float(kl_divergence(np.zeros((1, 2)), np.log([[0.25, 0.75]]))), 6)
    0.130812
    """
    return kl_divergence_with_grad(logits, target_logits, targets=targets, temperature=temperature, softcap=softcap,
                                   sample_weight=sample_weight, reduction=reduction, normalizer=normalizer,
                                   axis=axis)[0]  # fmt: skip


def kl_divergence_with_grad(logits, target_logits, *, targets="logits", temperature=1.0, softcap=None,
                            sample_weight=None, reduction="mean", normalizer=None, axis=-1, upstream=1.0,
                            out=None):  # fmt: skip
    """Loss and gradient with respect to ``logits``; see `fastce.kl_divergence_with_grad`.

    Examples
    --------
    >>> kl_divergence_with_grad(np.zeros((1, 2)), np.log([[0.25, 0.75]]))[1].round(6)
    array([[ 0.25, -0.25]])
    """
    x, g, grad = _classes_last(logits, out, axis)
    t = np.moveaxis(np.asarray(target_logits), axis, -1).astype(g.dtype)
    with np.errstate(all="ignore"):
        x, slope = _capped(x, softcap)
        log_p = log_softmax(x, temperature=temperature)
        log_q = log_softmax(t, temperature=temperature, softcap=softcap) if targets == "logits" else np.log(t)
        q = np.exp(log_q) if targets == "logits" else t
        loss = np.add.reduce(_times(q, log_q - log_p), axis=-1, keepdims=True)
        loss, scale = _reduce(loss, np.ones_like(loss), sample_weight, reduction, normalizer,
                              np.asarray(upstream) / temperature, axis)  # fmt: skip
        mass = np.add.reduce(q, axis=-1, keepdims=True)
        g[...] = 0 if scale is None else (mass * np.exp(log_p) - q) * scale
        if softcap is not None:
            g[...] = _times(g, slope)
    return loss[..., 0] if reduction == "none" else loss, _stored(grad, logits, out)
