"""Exact values for the tests to compare against, and the error that the contract allows in each number.

`exact`, `exact_softmax`, `exact_softmax_grad`, `exact_log_softmax_grad` and `exact_binary` are vectorised in longdouble
and free of cancellation. `exact_row` and `exact_binary_row` compute one row from the definition, at several hundred
digits, and show that the others are right. None shares code with fastce or its reference. All take options as fastce
takes them, and assume that the options are valid."""

from __future__ import annotations

from collections.abc import Callable
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

# ---------------------------------------------------------------------------------------------------------------------
# What the contract allows
# ---------------------------------------------------------------------------------------------------------------------

CONTRACT_ULPS = 4  # the constant of the accuracy contract: errors are at most (4 + gap) eps
OPTION_ULPS = 4  # q = w*((1-eps)*c + eps/C) takes four more roundings, each at most eps/2; sample weight, denominator,
# upstream and their product take four more
TWO_TERM_ULPS = CONTRACT_ULPS + 4  # of the softmax form: four more for the odds p/(1-p), and for their sum over classes
VJP_ULPS = 8  # the sum over classes as CONTRACT_ULPS; exponential, product, difference and rounding as much again


class Number(NamedTuple):
    """Exact numbers, in longdouble. An error of (ulps*size + extra)*eps, and of `floor` steps of the subnormal grid, is
    allowed."""

    value: np.ndarray
    size: np.ndarray  # the sum of the sizes of the terms of the formula, which roundings are relative to
    extra: np.ndarray  # the size times what exp and log of the terms add: the gap, or the distance from the maximum
    floor: Any = 2  # gradual underflow: steps that each term may be off by, and the rounding of the result
    ulps: float = CONTRACT_ULPS

    def rearranged(self, by: Callable[[np.ndarray], np.ndarray]) -> Number:
        value, size, extra, floor = (by(a) if np.ndim(a) else a for a in self[:4])
        return Number(value, size, extra, floor, self.ulps)

    def reduced(self, factor: Any, dtype: Any) -> Number:
        """The sum times a factor. It is accumulated in float64, in order."""
        eps = np.finfo(dtype if np.dtype(dtype).kind == "f" else np.float64).eps
        size, factor_size = self.size.sum(), np.abs(factor)
        drift = self.value.size * np.finfo(np.float64).eps / eps * size
        return Number(
            self.value.sum() * factor, size * factor_size, (self.extra.sum() + drift) * factor_size, 0, self.ulps
        )


def assert_within(got: Any, want: Number, what: str = "result", *, more: float = 0) -> None:
    """Every number within what is allowed, with so many ulps more. Integers and bools are equal."""
    got = np.asarray(got)
    assert got.shape == want.value.shape, f"{what}: shape {got.shape}, expected {want.value.shape}"
    if got.dtype.kind != "f":
        np.testing.assert_array_equal(got, want.value, err_msg=what)
        return
    info = np.finfo(got.dtype)
    with np.errstate(all="ignore"):
        allowed = ((want.ulps + more) * want.size + want.extra) * LD(info.eps)
        allowed = allowed + want.floor * LD(info.smallest_subnormal)
        error = np.abs(got - want.value)
        wrong = ~(error <= allowed)
        if not wrong.any():
            return
        wrong &= (got != want.value.astype(got.dtype)) & ~(np.isnan(got) & np.isnan(want.value))
    if wrong.any():
        ratio = np.where(wrong, error / allowed, -1)
        worst = np.unravel_index(np.argmax(np.where(np.isnan(ratio), np.inf, ratio)), got.shape)
        raise AssertionError(
            f"{what} {tuple(map(int, worst))}: {got[worst]!r}, expected {want.value[worst]!r}; the error is "
            f"{float(ratio[worst]):.3g} times what is allowed ({int(wrong.sum())} of {wrong.size} wrong)"
        )


HALVES = {"float16": (10, -14), "bfloat16": (7, -126)}  # bits of the fraction, the smallest normal exponent


def _half_ulp(value: np.ndarray, dtype: Any) -> np.ndarray:
    """Half of the distance of the dtype's numbers at a value."""
    bits, smallest = HALVES[np.dtype(dtype).name]
    with np.errstate(divide="ignore"):
        exponent = np.maximum(np.floor(np.log2(np.abs(value).astype(float))), smallest)
    return 2.0 ** (exponent - bits - 1)


def assert_rounded(got: Any, want: Number, dtype: Any, what: str, more: float = 0) -> None:
    """Float32 results within what is allowed; those of a dtype of half precision within half an ulp of one that is."""
    if got.dtype == np.float32:
        assert_within(got, want, what, more=more)
        return
    assert got.dtype == dtype, what
    eps = np.finfo(np.float32).eps
    with np.errstate(all="ignore"):
        allowed = ((want.ulps + more) * want.size + want.extra) * eps + want.floor * 2.0**-149
        error = np.abs(got.astype(want.value.dtype) - want.value)
        allowed = allowed + _half_ulp(np.abs(want.value) + allowed, dtype)
        same = got == want.value.astype(np.float32).astype(dtype)  # infinities too
    wrong = ~((error <= allowed) | same | (np.isnan(got.astype(np.float32)) & np.isnan(want.value)))
    assert not wrong.any(), f"{what}: {np.argwhere(wrong)[0]}, {got[wrong][0]} for {want.value[wrong][0]}"


# ---------------------------------------------------------------------------------------------------------------------
# What all forms share
# ---------------------------------------------------------------------------------------------------------------------


def _classes_last(a: Any, axis: int) -> np.ndarray:
    """In longdouble and contiguous: NumPy sums pairwise along contiguous axes alone."""
    return np.moveaxis(np.asarray(a), axis, -1).astype(LD, order="C")


def _state(x: np.ndarray, temperature: Any = 1) -> tuple[np.ndarray, ...]:
    """row_max, tail, exp((x - row_max)/temperature), the gap of x/temperature to the runner-up (0 when there is none),
    the first argmax."""
    top = np.argmax(x, axis=-1, keepdims=True)
    m = np.take_along_axis(x, top, -1)
    e = np.exp((x - m) / temperature)
    np.put_along_axis(e, top, 0, -1)
    tail = e.sum(axis=-1, keepdims=True)
    np.put_along_axis(e, top, 1, -1)
    others = x.copy()
    np.put_along_axis(others, top, -np.inf, -1)
    gap = (m - others.max(axis=-1, keepdims=True)) / temperature
    return m, tail, e, np.where(np.isfinite(gap), gap, 0), top


def _capped(x: np.ndarray, softcap: float | None, dtype: Any) -> tuple[np.ndarray, ...]:
    """c*tanh(x/c), but infinities stay; its derivative; what the errors of both add, in eps: to an exponential or a
    distance, where each logit is off by 2 eps, and to the derivative; and within which distance two logits may change
    places."""
    if softcap is None:
        nothing = np.zeros((*x.shape[:-1], 1), LD)
        return x, nothing + 1, nothing, nothing, nothing
    y = np.abs(x) / LD(softcap)
    z = np.where(np.isinf(x), x, np.sign(x) * LD(softcap) * np.tanh(y))
    moved = 4 * np.abs(_finite(z)).max(axis=-1, keepdims=True)
    return z, 1 / np.cosh(y) ** 2, moved, 4 + _finite(y), 2 * moved * LD(np.finfo(dtype).eps)


def _without_number(x: np.ndarray, m: np.ndarray) -> np.ndarray:
    """Rows whose result is NaN: they hold NaN, +inf or nothing but -inf."""
    return (~np.isfinite(m) | np.isnan(x).any(axis=-1, keepdims=True))[..., 0]


def _sum_of_others(q: np.ndarray) -> np.ndarray:
    """The sum of each row but for this element, which Q - q would round to nothing where q is nearly all of Q."""
    others = np.zeros_like(q)
    others[:, 1:] += np.cumsum(q[:, :-1], axis=1)
    others[:, :-1] += np.cumsum(q[:, :0:-1], axis=1)[:, ::-1]
    return others


def _finite(a: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(a), a, 0)


# ---------------------------------------------------------------------------------------------------------------------
# Cross-entropy
# ---------------------------------------------------------------------------------------------------------------------


class Exact(NamedTuple):
    """What one call should return. Per-row arrays have the shape of logits without `axis`."""

    loss: Number  # after the reduction
    grad: Number
    rows: Number  # each row's loss, sample weight included
    row_max: np.ndarray
    tail: np.ndarray
    gap: np.ndarray  # row_max - the largest other logit, divided by the temperature


def exact(
    logits: np.ndarray,
    targets: np.ndarray,
    *,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    reduction: str = "mean",
    normalizer: float | None = None,
    axis: int = -1,
    upstream: Any = 1.0,
) -> Exact:
    """The tail form, one formula for every option. With T = temperature and lse of x/T:

    loss   = Q*log1p(tail) + sum_j q_j*(row_max - x_j)/T + z_loss*lse^2
    grad_j = (p_j*(Q - q_j + 2*z_loss*lse) - q_j*(1 - p_j))/T
    """
    with np.errstate(all="ignore"):
        x = _classes_last(logits, axis)
        lead, classes = x.shape[:-1], x.shape[-1]
        x = x.reshape(-1, classes)
        z, t = LD(z_loss), LD(temperature)
        dtype = logits.dtype if logits.dtype.kind == "f" else np.dtype(np.float64)
        x, slope, moved, of_slope, near = _capped(x, softcap, dtype)
        moved = moved / t
        sample = np.ones(len(x), LD)
        if sample_weight is not None:
            sample = np.broadcast_to(np.asarray(sample_weight), lead).astype(LD).ravel()
        rows_of_targets = np.ndim(targets) == np.ndim(logits)
        targets = _classes_last(targets, axis).reshape(-1, classes) if rows_of_targets else np.ravel(targets)
        q, rest, ignored, counts = _target_masses(targets, x.shape, weight, LD(label_smoothing), ignore_index)
        mass, counts = q.sum(axis=-1, keepdims=True), counts * sample
        ignored = ignored | (sample == 0)

        m, tail, e, gap, top = _state(x, t)
        p, other_p = e / (1 + tail), (1 + tail - e) / (1 + tail)
        np.put_along_axis(other_p, top, tail / (1 + tail), -1)
        log_s = np.log1p(tail)
        lse, lse_size = m / t + log_s, np.abs(m / t) + log_s

        distance = (m - x) / t
        terms = np.where(q == 0, 0, q * distance)
        losses = (mass * log_s)[:, 0] + terms.sum(axis=1) + (z * lse * lse)[:, 0]
        size = np.abs(mass * log_s)[:, 0] + np.abs(terms).sum(axis=1) + (2 * abs(z * lse) * lse_size)[:, 0]
        of_p, of_q = p * (rest if z == 0 else rest + 2 * z * lse), q * other_p
        grad = of_p - of_q
        grad_size = p * (np.abs(rest) if z == 0 else np.abs(rest) + 2 * abs(z) * lse_size) + np.abs(of_q)
        # Each exponential, and each q, may be off by a step of the subnormal grid; then it is multiplied, and rounded.
        reach = _finite(distance)
        floor = np.abs(sample) * (classes * (np.abs(mass)[:, 0] + 1) + np.where(q != 0, reach, 0).sum(axis=1))
        steps = np.where(distance == 0, classes, 1)  # at the maximum the sum of the others' exponentials counts
        grad_floor = steps * (1 + (np.abs(mass) + 2 * abs(z) * lse_size) / (1 + tail))

        bad = _without_number(x, m)
        for a in (losses, grad, size, grad_size):
            a[bad] = np.nan
        losses, size = losses * sample, size * np.abs(sample)
        losses[ignored] = size[ignored] = 0
        extra = gap[:, 0] * size
        if softcap is not None:
            # A target at the maximum is at the distance 0, unless another logit is so near that it may become the
            # maximum.
            distant = q.copy()
            np.put_along_axis(distant, top, np.where(gap * t <= near, np.take_along_axis(q, top, -1), 0), -1)
            of_cap = (mass * tail / (1 + tail) + np.abs(distant).sum(axis=1, keepdims=True) + 2 * abs(z * lse)) * moved
            extra = extra + np.where(ignored, 0, (of_cap[:, 0] * np.abs(sample)))
        rows = Number(losses, size, extra, floor + 2)

        loss, factor = rows.rearranged(lambda a: a.reshape(lead)), LD(1)
        if reduction == "mean":
            denominator = counts.sum() if normalizer is None else LD(normalizer)
            factor = 1 / denominator if denominator else LD(0)
            loss = rows.reduced(factor if denominator else LD(np.nan), logits.dtype)
        elif reduction == "sum":
            loss = rows.reduced(LD(1), logits.dtype)
        up = np.broadcast_to(np.asarray(upstream), lead).astype(LD).ravel()
        scale = (sample * up * factor / t)[:, None] * slope
        grad, grad_size, grad_floor = grad * scale, grad_size * np.abs(scale), grad_floor * np.abs(scale) + 2
        uncounted = ignored | (factor == 0)  # nothing counts in the mean
        grad[uncounted] = grad_size[uncounted] = 0
        # An element at the maximum is -q*(1-p), whose error grows with the gap to the runner-up instead. A masked class
        # has p = 0, exactly.
        reach = np.where(reach == 0, gap, reach)
        if softcap is not None:
            reach = reach + moved + of_slope
        whole = Number(grad, grad_size, reach * grad_size, grad_floor)
        return Exact(
            loss,
            whole.rearranged(lambda a: np.moveaxis(a.reshape(*lead, classes), -1, axis)),
            rows.rearranged(lambda a: a.reshape(lead)),
            *(a.reshape(lead) for a in (m, tail, gap)),
        )


def _target_masses(
    targets: np.ndarray, shape: tuple[int, ...], weight: Any, eps: Any, ignore_index: int | None
) -> tuple[np.ndarray, ...]:
    """q, the sum of q over the other classes, which rows are ignored, and what each counts for in the mean."""
    rows, classes = shape
    w = np.ones(classes, LD) if weight is None else np.asarray(weight).astype(LD)
    if targets.ndim == 2:
        q = w * ((1 - eps) * targets + eps / classes)
        return q, _sum_of_others(q), np.zeros(rows, bool), np.ones(rows, LD)
    at, ignored = np.arange(rows), np.zeros(rows, bool) if ignore_index is None else targets == ignore_index
    t = np.where(ignored, 0, targets).astype(np.intp)
    smooth, hot = w * eps / classes, (1 - eps) * w[t]
    q = np.broadcast_to(smooth, shape).copy()
    q[at, t] += hot
    others = _sum_of_others(smooth[None])[0]
    rest = others + hot[:, None]
    rest[at, t] = others[t]
    return q, rest, ignored, np.where(ignored, 0, w[t])


def exact_row(
    logits: Any,
    target: Any,
    *,
    weight: Any = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    digits: int = 400,
) -> tuple[mpmath.mpf, list[mpmath.mpf]]:
    """Loss and gradient of one row by the definition, p = exp(z)/sum(exp(z)) with z = x/T, at so many digits that
    nothing cancels: 400 hold a probability of exp(-800) beside 1. `target` is an index or the row's probabilities."""
    with mpmath.workdps(digits):
        t = mpmath.mpf(float(temperature))
        x, slope = [mpmath.mpf(float(v)) for v in logits], [mpmath.mpf(1)] * len(logits)
        if softcap is not None:
            tanh = [mpmath.tanh(v / mpmath.mpf(softcap)) for v in x]
            slope = [(1 - v**2 if mpmath.isfinite(u) else mpmath.mpf(0)) for u, v in zip(x, tanh, strict=True)]
            x = [v * softcap if mpmath.isfinite(u) else u for u, v in zip(x, tanh, strict=True)]
        x = [v / t for v in x]
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
        grad = [((mass + 2 * float(z_loss) * lse) * pj - qj) / t * sj for qj, pj, sj in zip(q, p, slope, strict=True)]
        return loss, grad


# ---------------------------------------------------------------------------------------------------------------------
# Softmax and its relatives
# ---------------------------------------------------------------------------------------------------------------------


class ExactSoftmax(NamedTuple):
    p: Number
    logp: Number
    lse: Number


class ExactProduct(NamedTuple):
    grad: Number


def exact_softmax(
    x: np.ndarray, *, temperature: float = 1.0, softcap: float | None = None, axis: int = -1
) -> ExactSoftmax:
    """The tail form: p = exp(d)/(1 + tail), log p = -(log1p(tail) - d), where d = (x - row_max)/T, and lse from both
    terms. Allowed are (4 + |d|) eps in p; in log p (4 + gap) eps at the row's maximum, 4 eps elsewhere; in lse 4 eps of
    row_max/T and (4 + gap) eps of log1p(tail)."""
    with np.errstate(all="ignore"):
        dtype = x.dtype if x.dtype.kind == "f" else np.dtype(np.float64)
        x = _classes_last(x, axis)
        t = LD(temperature)
        x, _, moved, _, _ = _capped(x, softcap, dtype)
        moved = moved / t
        m, tail, e, gap, _ = _state(x, t)
        distance, log_s = (m - x) / t, np.log1p(tail)
        p, logp, lse = e / (1 + tail), -(log_s + distance), m / t + log_s
        logp_size = np.where(np.isfinite(logp), -logp, 0)
        logp_extra = np.where(distance == 0, gap, 0) * logp_size + moved * np.where(distance == 0, tail / (1 + tail), 1)
        lse_size = np.abs(m / t) + log_s
        p_extra = (_finite(distance) + moved) * p
        bad = _without_number(x, m)
        p[bad] = logp[bad] = np.nan
        lse[bad] = m[bad]

        def whole(a: np.ndarray) -> np.ndarray:
            return np.moveaxis(a, -1, axis)

        return ExactSoftmax(
            Number(p, p, p_extra).rearranged(whole),
            Number(logp, logp_size, logp_extra, x.shape[-1]).rearranged(whole),
            Number(lse, lse_size, gap * log_s + moved).rearranged(lambda a: a[..., 0]),
        )


def exact_softmax_grad(upstream: Any, y: np.ndarray, *, temperature: float = 1.0, axis: int = -1) -> ExactProduct:
    """The vector-Jacobian product from y = softmax(x/T) as given."""
    u, y = _classes_last(upstream, axis), _classes_last(y, axis)
    with np.errstate(all="ignore"):
        grad = y * (u - (u * y).sum(axis=-1, keepdims=True))
        size = np.abs(y) * (np.abs(u) + np.abs(u * y).sum(axis=-1, keepdims=True))
        grad, size = grad / LD(temperature), size / LD(temperature)
    number = Number(grad, size, np.zeros_like(size), ulps=VJP_ULPS)
    return ExactProduct(number.rearranged(lambda a: np.moveaxis(a, -1, axis)))


def exact_log_softmax_grad(upstream: Any, y: np.ndarray, *, temperature: float = 1.0, axis: int = -1) -> ExactProduct:
    """The vector-Jacobian product from y = log_softmax(x/T) as given."""
    u, y = _classes_last(upstream, axis), _classes_last(y, axis)
    with np.errstate(all="ignore"):
        p = np.exp(y)
        grad = u - p * u.sum(axis=-1, keepdims=True)
        share = p * np.abs(u).sum(axis=-1, keepdims=True)
        grad, share, u = grad / LD(temperature), share / LD(temperature), u / LD(temperature)
    number = Number(grad, np.abs(u) + share, np.abs(_finite(y)) * share, ulps=VJP_ULPS)
    return ExactProduct(number.rearranged(lambda a: np.moveaxis(a, -1, axis)))


# ---------------------------------------------------------------------------------------------------------------------
# The two-term form
# ---------------------------------------------------------------------------------------------------------------------


class ExactBinary(NamedTuple):
    """What one call should return. Elements at a distance z from 0 (sigmoid), or from the row's maximum (softmax), are
    allowed that many eps more."""

    loss: Number  # after the reduction
    grad: Number
    parts: Number  # what is reduced: losses of elements (sigmoid) or rows (softmax), sample weights included


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
        x, c = _classes_last(logits, axis), _classes_last(targets, axis)
        one = np.ones(x.shape[-1], LD)
        w = one if weight is None else np.asarray(weight).astype(LD)
        a = w * c * (one if pos_weight is None else np.asarray(pos_weight).astype(LD))
        b = w * (1 - c)
        parts, size, extra, grad, grad_size, grad_extra = (_sigmoid_terms if sigmoid else _softmax_terms)(x, a, b)
        sample = LD(1) if sample_weight is None else np.asarray(sample_weight).astype(LD)[..., None]
        parts, size, extra = (_product(sample, v) for v in (parts, size, extra))

        if reduction == "mean":
            denominator = LD(parts.size) if sigmoid else (np.ones(parts.shape, LD) * sample).sum()
            denominator = denominator if normalizer is None else LD(normalizer)
            factor = 1 / denominator if denominator else LD(0)
            loss_factor = factor if denominator else LD(np.nan)
        else:
            loss_factor = factor = LD(1)
        up = np.asarray(upstream).astype(LD)
        if up.ndim:
            up = np.moveaxis(up, axis, -1) if sigmoid else up[..., None]
        scale = factor * up * sample
        grad = np.where(sample == 0, 0, grad * scale) if factor else np.zeros_like(grad)
        heaviest = max(1.0, *(float(np.max(np.abs(v), initial=1)) for v in (a, b, sample, scale)))
        floor = 2 + 2 * heaviest * (1 if sigmoid else x.shape[-1])  # a step for each class that a sum runs over
        ulps = CONTRACT_ULPS if sigmoid else TWO_TERM_ULPS

        def whole(v: np.ndarray) -> np.ndarray:
            return np.moveaxis(v, -1, axis)

        part = Number(parts, size, extra, floor, ulps).rearranged(whole if sigmoid else lambda v: v[..., 0])
        elements = Number(grad, grad_size * np.abs(scale), grad_extra * np.abs(scale), floor, ulps).rearranged(whole)
        return ExactBinary(part if reduction == "none" else part.reduced(loss_factor, logits.dtype), elements, part)


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
    reach = _finite(np.abs(z))
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
    reach = np.where(distance == 0, gap, _finite(distance))
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

    bad = _without_number(x, m)
    parts[bad] = np.nan
    grad[bad | ((tail == 0) & (b_top != 0))[..., 0]] = np.nan
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
