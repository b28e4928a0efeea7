"""Exact values for the tests to compare against, and the error that the contract allows at each number. `exact`,
`exact_softmax` and `exact_binary` are vectorised in longdouble and cancellation-free; `exact_row` and
`exact_binary_row` compute one row from the definition at several hundred digits and are what shows that the others are
right. None shares code with fastce or its reference. All take options as fastce takes them, and assume that they are
valid."""

from __future__ import annotations

from typing import Any, NamedTuple

import mpmath
import numpy as np
import pytest

LD = np.longdouble
HAS_LONGDOUBLE = np.finfo(LD).nmant >= 63
needs_longdouble = pytest.mark.skipif(
    not HAS_LONGDOUBLE,
    reason=f"exact values need a longdouble of 64 bits or more, this platform's has {np.finfo(LD).nmant + 1}",
)


class Exact(NamedTuple):
    """What one call should return, in longdouble. Per-row arrays have the shape of logits without `axis`."""

    loss: Any  # after the reduction
    rows: np.ndarray  # each row's loss, sample weight included
    grad: np.ndarray  # shape of the logits
    row_max: np.ndarray
    tail: np.ndarray
    gap: np.ndarray  # row_max - the largest other logit
    row_scale: np.ndarray  # what an error in `rows` is relative to: the sum of the sizes of the terms of the formula
    grad_scale: np.ndarray  # the same for `grad`
    distance: np.ndarray  # row_max - x, what the error of exp(x - row_max) grows with
    row_floor: np.ndarray  # what gradual underflow may cost in `rows` at least, in smallest subnormal numbers
    grad_floor: np.ndarray  # the same for `grad`


def exact(
    logits: np.ndarray,
    targets: np.ndarray,
    *,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
    normalizer: float | None = None,
    axis: int = -1,
    upstream: Any = 1.0,
) -> Exact:
    """The tail form, design's one formula for every option:

    loss   = Q*log1p(tail) + sum_j q_j*(row_max - x_j) + z_loss*lse^2
    grad_j = p_j*(Q - q_j + 2*z_loss*lse) - q_j*(1 - p_j)
    """
    with np.errstate(all="ignore"):
        x = np.moveaxis(np.asarray(logits), axis, -1).astype(
            LD, order="C"
        )  # NumPy sums pairwise along contiguous axes alone
        lead, classes = x.shape[:-1], x.shape[-1]
        x = x.reshape(-1, classes)
        rows = np.arange(len(x))
        eps, z = LD(label_smoothing), LD(z_loss)
        w = np.ones(classes, LD) if weight is None else np.asarray(weight).astype(LD)
        sample = np.ones(len(x), LD)
        if sample_weight is not None:
            sample = np.broadcast_to(np.asarray(sample_weight), lead).astype(LD).ravel()

        # q, the sum of q over the other classes, and what the row counts for in the mean
        ignored = np.zeros(len(x), bool)
        targets = np.asarray(targets)
        if targets.ndim == np.ndim(logits):
            c = np.moveaxis(targets, axis, -1).reshape(-1, classes).astype(LD, order="C")
            q = w * ((1 - eps) * c + eps / classes)
            mass = q.sum(axis=1, keepdims=True)
            rest = _sum_of_others(q)
            counts = sample
        else:
            labels = targets.ravel()
            if ignore_index is not None:
                ignored = labels == ignore_index
            t = np.where(ignored, 0, labels).astype(np.intp)
            smooth = w * eps / classes
            hot = (1 - eps) * w[t]
            q = np.broadcast_to(smooth, x.shape).copy()
            q[rows, t] += hot
            mass = (smooth.sum() + hot)[:, None]
            rest = _sum_of_others(smooth[None])[0] + hot[:, None]
            rest[rows, t] = _sum_of_others(smooth[None])[0, t]
            counts = np.where(ignored, 0, w[t] * sample)

        # the state of the row
        top = np.argmax(x, axis=1)
        m = x[rows, top][:, None]
        e = np.exp(x - m)
        e[rows, top] = 0
        tail = e.sum(axis=1, keepdims=True)
        others = x.copy()
        others[rows, top] = -np.inf
        gap = m - others.max(axis=1, keepdims=True, initial=-np.inf)
        gap[~np.isfinite(gap)] = 0  # one class, or all others masked: nothing is rounded
        e[rows, top] = 1
        p, other_p = e / (1 + tail), (1 + tail - e) / (1 + tail)
        other_p[rows, top] = (tail / (1 + tail))[:, 0]
        log_s = np.log1p(tail)
        lse = m + log_s

        distance = m - x
        terms = np.where(q == 0, 0, q * distance)
        losses = (mass * log_s)[:, 0] + terms.sum(axis=1) + (z * lse * lse)[:, 0]
        lse_size = np.abs(m) + log_s  # what lse is rounded relative to
        row_scale = np.abs(mass * log_s)[:, 0] + np.abs(terms).sum(axis=1) + (2 * abs(z * lse) * lse_size)[:, 0]
        grad = p * (rest + 2 * z * lse) - q * other_p
        grad_scale = p * (np.abs(rest) + 2 * abs(z) * lse_size) + np.abs(q) * other_p

        bad = ~(np.isfinite(m[:, 0]) & ~np.isnan(x).any(axis=1))
        for a in (losses, grad, row_scale, grad_scale):
            a[bad] = np.nan
        # Each exponential, and each q, may be off by a step of the subnormal grid; then it is multiplied, and rounded.
        finite = np.where(np.isfinite(distance), distance, 0)
        row_floor = np.abs(sample) * (classes * (np.abs(mass)[:, 0] + 1) + np.where(q != 0, finite, 0).sum(axis=1)) + 2
        steps = np.where(distance == 0, classes, 1)  # at the maximum the sum of the others' exponentials counts
        grad_floor = steps * (1 + (np.abs(mass) + 2 * abs(z) * lse_size) / (1 + tail))
        losses *= sample
        row_scale *= np.abs(sample)
        losses[ignored] = 0
        row_scale[ignored] = 0

        loss: Any = losses.reshape(lead)
        factor = LD(1)
        if reduction == "mean":
            denominator = counts.sum() if normalizer is None else LD(normalizer)
            loss, factor = losses.sum() / denominator, (1 / denominator if denominator else LD(0))
        elif reduction == "sum":
            loss = losses.sum()
        up = np.broadcast_to(np.asarray(upstream), lead).astype(LD).ravel()
        scale = (sample * up * factor)[:, None]
        grad, grad_scale, grad_floor = grad * scale, grad_scale * np.abs(scale), grad_floor * np.abs(scale) + 2
        grad[ignored] = 0
        grad_scale[ignored] = 0

        def whole(a: np.ndarray) -> np.ndarray:
            return np.moveaxis(a.reshape(*lead, classes), -1, axis)

        def by_row(a: np.ndarray) -> np.ndarray:
            return a.reshape(lead)

        return Exact(
            loss,
            by_row(losses),
            whole(grad),
            by_row(m),
            by_row(tail),
            by_row(gap),
            by_row(row_scale),
            whole(grad_scale),
            whole(finite),  # a masked class has p = 0, exactly
            by_row(row_floor),
            whole(grad_floor),
        )


def _sum_of_others(q: np.ndarray) -> np.ndarray:
    """The sum of each row but for this element, which Q - q would round to nothing where q is nearly all of Q."""
    others = np.zeros_like(q)
    others[:, 1:] += np.cumsum(q[:, :-1], axis=1)
    others[:, :-1] += np.cumsum(q[:, :0:-1], axis=1)[:, ::-1]
    return others


def exact_row(
    logits: Any,
    target: Any,
    *,
    weight: Any = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    digits: int = 400,
) -> tuple[mpmath.mpf, list[mpmath.mpf]]:
    """Loss and gradient of one row by the definition, p = exp(x)/sum(exp(x)), at so many digits that nothing cancels:
    400 hold a probability of exp(-800) beside 1. `target` is an index or the row's probabilities."""
    with mpmath.workdps(digits):
        x = [mpmath.mpf(float(v)) for v in logits]
        classes = len(x)
        eps = mpmath.mpf(float(label_smoothing))
        c = [int(j == target) for j in range(classes)] if np.ndim(target) == 0 else [float(v) for v in target]
        w = [1.0] * classes if weight is None else [float(v) for v in weight]
        q = [mpmath.mpf(wj) * ((1 - eps) * mpmath.mpf(cj) + eps / classes) for wj, cj in zip(w, c, strict=True)]
        exps = [mpmath.exp(v) for v in x]
        total = mpmath.fsum(exps)
        lse = mpmath.log(total)
        p = [v / total for v in exps]
        loss = mpmath.fsum(-qj * mpmath.log(pj) for qj, pj in zip(q, p, strict=True) if qj) + float(z_loss) * lse**2
        mass = mpmath.fsum(q)
        grad = [(mass + 2 * float(z_loss) * lse) * pj - qj for qj, pj in zip(q, p, strict=True)]
        return loss, grad


# ---------------------------------------------------------------------------------------------------------------------
# Softmax and its relatives
# ---------------------------------------------------------------------------------------------------------------------


VJP_ULPS = 8  # the sum over classes as CONTRACT_ULPS; exponential, product, difference and rounding as much again


class ExactSoftmax(NamedTuple):
    """Of each element and, for lse, row, in longdouble. `*_room` is what an error may be, in units of eps."""

    p: np.ndarray
    p_room: np.ndarray
    logp: np.ndarray
    logp_room: np.ndarray
    lse: np.ndarray
    lse_room: np.ndarray


def exact_softmax(x: np.ndarray, *, axis: int = -1) -> ExactSoftmax:
    """The tail form: p = exp(x - row_max)/(1 + tail), log p = -(log1p(tail) + (row_max - x)), and lse from both terms.
    Allowed are (4 + row_max - x) eps in p; in log p (4 + gap) eps at the row's maximum, 4 eps elsewhere; in lse 4 eps
    of row_max and (4 + gap) eps of log1p(tail)."""
    with np.errstate(all="ignore"):
        x = np.moveaxis(np.asarray(x), axis, -1).astype(LD, order="C")
        m, tail, e, gap, _ = _state(x)
        distance = m - x
        room = CONTRACT_ULPS + np.where(np.isfinite(distance), distance, 0)
        log_s = np.log1p(tail)
        p, logp, lse = e / (1 + tail), -(log_s + distance), m + log_s
        logp_room = (CONTRACT_ULPS + np.where(distance == 0, gap, 0)) * np.where(np.isfinite(logp), -logp, 0)
        lse_room = CONTRACT_ULPS * np.abs(m) + (CONTRACT_ULPS + gap) * log_s
        bad = ~np.isfinite(m) | np.isnan(x).any(axis=-1, keepdims=True)
        for a in (p, logp):
            a[np.broadcast_to(bad, a.shape)] = np.nan
        lse[bad] = m[bad]

        def whole(a: np.ndarray) -> np.ndarray:
            return np.moveaxis(a, -1, axis)

        return ExactSoftmax(whole(p), whole(room * p), whole(logp), whole(logp_room), lse[..., 0], lse_room[..., 0])


def _state(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """row_max, tail, exp(x - row_max), the gap to the runner-up (0 when there is none), the first argmax."""
    top = np.argmax(x, axis=-1, keepdims=True)
    m = np.take_along_axis(x, top, -1)
    e = np.exp(x - m)
    np.put_along_axis(e, top, 0, -1)
    tail = e.sum(axis=-1, keepdims=True)
    np.put_along_axis(e, top, 1, -1)
    others = x.copy()
    np.put_along_axis(others, top, -np.inf, -1)
    gap = m - others.max(axis=-1, keepdims=True)
    return m, tail, e, np.where(np.isfinite(gap), gap, 0), top


def exact_softmax_grad(upstream: Any, y: np.ndarray, *, axis: int = -1) -> tuple[np.ndarray, np.ndarray]:
    """The vector-Jacobian product from y = softmax(x) as given, and the room of its terms."""
    u, y = (np.moveaxis(np.asarray(a), axis, -1).astype(LD, order="C") for a in (upstream, y))
    with np.errstate(all="ignore"):
        grad = y * (u - (u * y).sum(axis=-1, keepdims=True))
        size = np.abs(y) * (np.abs(u) + np.abs(u * y).sum(axis=-1, keepdims=True))
    return np.moveaxis(grad, -1, axis), np.moveaxis(VJP_ULPS * size, -1, axis)


def exact_log_softmax_grad(upstream: Any, y: np.ndarray, *, axis: int = -1) -> tuple[np.ndarray, np.ndarray]:
    """The vector-Jacobian product from y = log_softmax(x) as given, and the room of its terms."""
    u, y = (np.moveaxis(np.asarray(a), axis, -1).astype(LD, order="C") for a in (upstream, y))
    with np.errstate(all="ignore"):
        p = np.exp(y)
        grad = u - p * u.sum(axis=-1, keepdims=True)
        share = p * np.abs(u).sum(axis=-1, keepdims=True)
        room = VJP_ULPS * (np.abs(u) + share) + np.where(np.isfinite(y), np.abs(y), 0) * share
    return np.moveaxis(grad, -1, axis), np.moveaxis(room, -1, axis)


# ---------------------------------------------------------------------------------------------------------------------
# The two-term form
# ---------------------------------------------------------------------------------------------------------------------


class ExactBinary(NamedTuple):
    """What one call should return, in longdouble. Each number comes with the sum of the sizes of its terms, which
    roundings are relative to, and with that sum weighted by what exp and log of the terms add, in eps: |z|, or the
    distance from the row's maximum."""

    loss: Any  # after the reduction
    parts: np.ndarray  # what is reduced: losses of elements (sigmoid) or rows (softmax), sample weights included
    parts_size: np.ndarray
    parts_extra: np.ndarray
    grad: np.ndarray
    grad_size: np.ndarray
    grad_extra: np.ndarray
    ulps: float  # roundings that each number may show, relative to its size
    floor: float  # steps of the subnormal grid: one for each class that a sum runs over, times the weights


def exact_binary(
    logits: np.ndarray,
    targets: np.ndarray,
    *,
    activation: str = "sigmoid",
    pos_weight: Any = None,
    weight: Any = None,
    sample_weight: Any = None,
    reduction: str = "mean",
    normalizer: float | None = None,
    axis: int = -1,
    upstream: Any = 1.0,
) -> ExactBinary:
    """-sum_j w_j*[pos_weight_j*c_j*log p_j + (1-c_j)*log(1-p_j)]. Sigmoid: -log(1-p) = max(z,0) + log1p(exp(-|z|)).
    Softmax: 1-p is the share of the other classes, -log(1-p) = log1p(p/(1-p))."""
    sigmoid = activation == "sigmoid"
    with np.errstate(all="ignore"):
        x, c = (np.moveaxis(np.asarray(v), axis, -1).astype(LD, order="C") for v in (logits, targets))
        one = np.ones(x.shape[-1], LD)
        w = one if weight is None else np.asarray(weight).astype(LD)
        a = w * c * (one if pos_weight is None else np.asarray(pos_weight).astype(LD))
        b = w * (1 - c)
        if sigmoid:
            parts, size, extra, grad, grad_size, grad_extra = _sigmoid_terms(x, a, b)
        else:
            parts, size, extra, grad, grad_size, grad_extra = _softmax_terms(x, a, b)
        sample = LD(1) if sample_weight is None else np.asarray(sample_weight).astype(LD)[..., None]
        parts, size, extra = parts * sample, size * sample, extra * sample

        factor, loss = LD(1), np.moveaxis(parts, -1, axis) if sigmoid else parts[..., 0]
        if reduction == "mean":
            denominator = LD(parts.size) if sigmoid else (np.ones(parts.shape, LD) * sample).sum()
            denominator = denominator if normalizer is None else LD(normalizer)
            loss, factor = parts.sum() / denominator, 1 / denominator if denominator else LD(0)
        elif reduction == "sum":
            loss = parts.sum()
        up = np.asarray(upstream).astype(LD)
        if up.ndim:
            up = np.moveaxis(up, axis, -1) if sigmoid else up[..., None]
        scale = factor * up * sample
        grad, grad_size, grad_extra = grad * scale, grad_size * np.abs(scale), grad_extra * np.abs(scale)
        if not factor:
            grad = np.zeros_like(grad)

        def whole(v: np.ndarray) -> np.ndarray:
            return np.moveaxis(v, -1, axis)

        def part(v: np.ndarray) -> np.ndarray:
            return whole(v) if sigmoid else v[..., 0]

        heaviest = max(1.0, *(float(np.max(np.abs(v), initial=1)) for v in (a, b, sample, scale)))
        return ExactBinary(
            loss,
            part(parts),
            part(size),
            part(extra),
            whole(grad),
            whole(grad_size),
            whole(grad_extra),
            # softmax: four more for the odds p/(1-p), and for their sum over the classes
            CONTRACT_ULPS if sigmoid else CONTRACT_ULPS + 4,
            2 + 2 * heaviest * (1 if sigmoid else x.shape[-1]),
        )


def _product(factor: np.ndarray, value: np.ndarray) -> np.ndarray:
    """0 * inf = 0: a term whose factor is 0 is not there."""
    return np.where(factor == 0, 0, factor * value)


def _sigmoid_terms(z: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, ...]:
    t = np.exp(-np.abs(z))
    rest = np.log1p(t)
    up, down = np.maximum(z, 0) + rest, np.maximum(-z, 0) + rest  # -log(1-p), -log p
    p = np.where(z > 0, 1, t) / (1 + t)
    not_p = np.where(z > 0, t, 1) / (1 + t)
    terms = (_product(a, down), _product(b, up))
    loss = terms[0] + terms[1]
    size = np.abs(terms[0]) + np.abs(terms[1])
    grad_size = np.abs(b) * p + np.abs(a) * not_p
    reach = np.where(np.isfinite(z), np.abs(z), 0)
    # a term that is |z| plus something smaller has no error of exp; one that is exp(-|z|) has
    tiny = np.abs(_product(np.where(z > 0, a, b), rest))
    return loss, size, reach * tiny, b * p - a * not_p, grad_size, reach * grad_size


def _softmax_terms(x: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, ...]:
    """h_j = p_j*dE/dp_j = b_j*odds_j - a_j, grad_k = h_k*(1-p_k) - p_k*(sum of the other h): the Jacobian in full. The
    argmax's odds 1/tail would overflow where the tail underflows, which longdouble reaches at a gap of 11355."""
    m, tail, e, gap, top = _state(x)
    s = 1 + tail
    rest = s - e  # p_j <= 1/2 unless j is the argmax
    np.put_along_axis(rest, top, tail, -1)
    p, not_p, odds = e / s, rest / s, e / rest
    distance = m - x

    minus_log_p = np.log1p(tail) + distance
    minus_log_not_p = np.log1p(odds)
    terms = _product(a, minus_log_p), _product(b, minus_log_not_p)
    parts = (terms[0] + terms[1]).sum(axis=-1, keepdims=True)
    sizes = np.abs(terms[0]) + np.abs(terms[1])
    reach = np.where(np.isfinite(distance), distance, 0)
    reach = np.where(distance == 0, gap, reach)
    # log p away from the maximum is mostly the distance itself, which is exact; the others are as inexact as exp
    extra = np.where(np.arange(x.shape[-1]) == top, sizes, np.abs(terms[1]))

    odd = _product(b, odds)
    h = odd - a
    h_size = np.abs(odd) + np.abs(a)
    # p_k*h_j as a whole, since p_k/tail is finite where 1/tail is not
    share = _product(np.take_along_axis(b, top, -1), e / tail) / s  # p_k * (b_t/tail)
    np.put_along_axis(share, top, 0, -1)
    np.put_along_axis(h, top, 0, -1)
    np.put_along_axis(h_size, top, 0, -1)
    others, others_size = h.sum(axis=-1, keepdims=True), h_size.sum(axis=-1, keepdims=True)
    a_top, b_top = np.take_along_axis(a, top, -1), np.take_along_axis(b, top, -1)
    rest_of_h = _sum_of_others(h.reshape(-1, h.shape[-1])).reshape(h.shape)
    grad = h * not_p - p * (rest_of_h - a_top) - share
    grad_size = h_size * not_p + p * (others_size - h_size + np.abs(a_top)) + np.abs(share)
    np.put_along_axis(grad, top, (b_top - a_top * tail - others) / s, -1)
    np.put_along_axis(grad_size, top, (np.abs(b_top) + np.abs(a_top) * tail + others_size) / s, -1)

    bad = ~np.isfinite(m) | np.isnan(x).any(axis=-1, keepdims=True)
    parts[bad] = np.nan
    grad[(bad | ((tail == 0) & (b_top != 0)))[..., 0]] = np.nan
    return (
        parts,
        sizes.sum(axis=-1, keepdims=True),
        (reach * extra).sum(axis=-1, keepdims=True),
        grad,
        grad_size,
        reach * grad_size,
    )


def exact_binary_row(
    logits: Any,
    targets: Any,
    *,
    activation: str = "sigmoid",
    pos_weight: Any = None,
    weight: Any = None,
    digits: int = 800,
) -> tuple[list[mpmath.mpf], list[mpmath.mpf]]:
    """Losses of a row (each element's for sigmoid, one for softmax) and their gradient, literally: p by its definition,
    dE/dp_j = -c_j/p_j + (1-c_j)/(1-p_j) times the whole Jacobian dp_j/dz_k, at so many digits that nothing cancels."""
    with mpmath.workdps(digits):
        z, c = [mpmath.mpf(float(v)) for v in logits], [mpmath.mpf(float(v)) for v in targets]
        n = range(len(z))
        w = [mpmath.mpf(1 if weight is None else float(weight[j])) for j in n]
        positive = [mpmath.mpf(1 if pos_weight is None else float(pos_weight[j])) for j in n]
        if activation == "sigmoid":
            p = [1 / (1 + mpmath.exp(-v)) for v in z]
            jacobian = [[p[j] * (1 - p[j]) if j == k else mpmath.mpf(0) for k in n] for j in n]
        else:
            exps = [mpmath.exp(v) for v in z]
            p = [v / mpmath.fsum(exps) for v in exps]
            jacobian = [[p[j] * (int(j == k) - p[k]) for k in n] for j in n]
        losses = [-w[j] * (positive[j] * c[j] * mpmath.log(p[j]) + (1 - c[j]) * mpmath.log(1 - p[j])) for j in n]
        if activation == "softmax":
            losses = [mpmath.fsum(losses)]
        by_p = [w[j] * (-positive[j] * c[j] / p[j] + (1 - c[j]) / (1 - p[j])) for j in n]
        return losses, [mpmath.fsum(by_p[j] * jacobian[j][k] for j in n) for k in n]


# ---------------------------------------------------------------------------------------------------------------------
# What the contract allows
# ---------------------------------------------------------------------------------------------------------------------

CONTRACT_ULPS = 4  # the constant of the accuracy contract: errors are at most (4 + gap) eps
OPTION_ULPS = 4  # q = w*((1-eps)*c + eps/C) takes four more roundings, each at most eps/2; sample weight, denominator,
# upstream and their product take four more


def assert_losses(got: Any, want: Exact, *, ulps: float = CONTRACT_ULPS, gap: Any = None) -> None:
    """Per-row losses within (ulps + gap)*eps of the exact ones; underflow is gradual."""
    got = np.asarray(got)
    gap = want.gap if gap is None else gap
    _assert_within(got, want.rows, (ulps + gap) * want.row_scale, want.row_floor, "loss of row")


def assert_gradient(got: Any, want: Exact, *, ulps: float = CONTRACT_ULPS, gap: Any = None, axis: int = -1) -> None:
    """Every element within (ulps + distance)*eps of the exact one, relative to the terms that it is made of. An
    element at the maximum is -q*(1-p), whose error grows with the gap to the runner-up instead."""
    gap = np.expand_dims(want.gap if gap is None else gap, axis)
    distance = np.where(want.distance == 0, gap, want.distance)
    _assert_within(np.asarray(got), want.grad, (ulps + distance) * want.grad_scale, want.grad_floor, "gradient")


def _assert_within(got: np.ndarray, want: np.ndarray, ulps: np.ndarray, floor: np.ndarray, what: str) -> None:
    assert got.shape == want.shape, f"{what}: shape {got.shape}, expected {want.shape}"
    info = np.finfo(got.dtype)
    allowed = ulps * LD(info.eps) + floor * LD(info.smallest_subnormal)
    with np.errstate(all="ignore"):
        same = (got == want.astype(got.dtype)) | (np.isnan(got) & np.isnan(want))
        error = np.abs(got.astype(LD) - want)
        wrong = ~same & ~(error <= allowed)
    if wrong.any():
        ratio = np.where(wrong, error / allowed, -1)
        worst = np.unravel_index(np.argmax(np.where(np.isnan(ratio), np.inf, ratio)), got.shape)
        raise AssertionError(
            f"{what} {tuple(map(int, worst))}: {got[worst]!r}, expected {want[worst]!r}; the error is "
            f"{float(ratio[worst]):.3g} times what is allowed ({int(wrong.sum())} of {wrong.size} wrong)"
        )


def assert_room(got: Any, want: np.ndarray, room: np.ndarray, what: str, *, floor: float = 2) -> None:
    """Every number within `room` eps of the exact one, or so many steps of the subnormal grid."""
    _assert_within(np.asarray(got), np.asarray(want), np.asarray(room), np.asarray(floor), what)


def assert_binary(loss: Any, grad: Any, want: ExactBinary, *, more: float = 0) -> None:
    """Unreduced losses and the gradient, with so many ulps more for options. Either may be None."""
    ulps = want.ulps + more
    if loss is not None:
        room = ulps * want.parts_size + want.parts_extra
        assert_room(loss, want.parts, room, "two-term loss of", floor=want.floor)
    if grad is not None:
        room = ulps * want.grad_size + want.grad_extra
        assert_room(grad, want.grad, room, "two-term gradient", floor=want.floor)
