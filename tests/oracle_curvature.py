"""Exact second derivatives of cross-entropy, as oracle.py has exact losses and gradients: vectorised in longdouble and
free of cancellation, and of one row from the definition at several hundred digits."""

from __future__ import annotations

from typing import Any, NamedTuple

import mpmath
import numpy as np
from oracle import (
    CONTRACT_ULPS,
    LD,
    Number,
    _capped,
    _classes_last,
    _finite,
    _product,
    _state,
    _target_masses,
    _without_number,
    exact,
)

HESS_ULPS = CONTRACT_ULPS + 2  # two more for the product of p and 1 - p
HVP_ULPS = CONTRACT_ULPS + 4  # four more for differences of v, their sum, and the step from both to the product


class ExactGradHess(NamedTuple):
    grad: Number
    hess: Number


class ExactHvp(NamedTuple):
    hvp: Number


class _Rows(NamedTuple):
    """What both are computed from, by row and class."""

    x: np.ndarray
    p: np.ndarray
    other_p: np.ndarray  # 1 - p
    k: np.ndarray
    k_size: np.ndarray
    z: Any
    scale: np.ndarray
    reach: np.ndarray  # the distance from the maximum, or the gap there
    top: np.ndarray
    ignored: np.ndarray
    bad: np.ndarray
    lead: tuple[int, ...]
    slope: np.ndarray  # of the capped logits, and the derivative of its logarithm
    bend: np.ndarray
    moved: np.ndarray
    of_slope: np.ndarray


def _rows(
    logits: Any,
    targets: Any,
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
) -> _Rows:
    x = _classes_last(logits, axis)
    lead, classes = x.shape[:-1], x.shape[-1]
    x = x.reshape(-1, classes)
    sample = np.ones(len(x), LD)
    if sample_weight is not None:
        sample = np.broadcast_to(np.asarray(sample_weight), lead).astype(LD).ravel()
    rows_of_targets = np.ndim(targets) == np.ndim(logits)
    targets = _classes_last(targets, axis).reshape(-1, classes) if rows_of_targets else np.ravel(targets)
    q, _, ignored, counts = _target_masses(targets, x.shape, weight, LD(label_smoothing), ignore_index)
    ignored = ignored | (sample == 0)
    dtype = logits.dtype if np.asarray(logits).dtype.kind == "f" else np.dtype(np.float64)
    bend = np.zeros_like(x) if softcap is None else -2 * np.tanh(x / LD(softcap)) / LD(softcap)
    x, slope, moved, of_slope, _ = _capped(x, softcap, dtype)
    moved = moved / LD(temperature)
    m, tail, e, gap, top = _state(x, LD(temperature))
    p, other_p = e / (1 + tail), (1 + tail - e) / (1 + tail)
    np.put_along_axis(other_p, top, tail / (1 + tail), -1)
    log_s, z, mass = np.log1p(tail), LD(z_loss), q.sum(axis=-1, keepdims=True)
    factor = LD(1)
    if reduction == "mean":
        denominator = (counts * sample).sum() if normalizer is None else LD(normalizer)
        factor = 1 / denominator if denominator else LD(0)
    up = np.broadcast_to(np.asarray(upstream), lead).astype(LD).ravel()
    distance, m_over_t = _finite((m - x) / LD(temperature)), m / LD(temperature)
    return _Rows(
        x, p, other_p, mass + 2 * z * (m_over_t + log_s), np.abs(mass) + 2 * abs(z) * (np.abs(m_over_t) + log_s), z,
        (sample * up * factor)[:, None] / LD(temperature) ** 2, np.where(distance == 0, gap, distance),
        top, ignored | (factor == 0), _without_number(x, m), lead, slope, bend, moved, of_slope,
    )  # fmt: skip


def _whole(rows: _Rows, a: np.ndarray, axis: int) -> np.ndarray:
    """An array by row and class in the shape of the logits."""
    return np.moveaxis(a.reshape(*rows.lead, rows.x.shape[-1]), -1, axis)


def _number(rows: _Rows, value: Any, size: Any, extra: Any, floor: Any, ulps: float, axis: int) -> Number:
    scale = np.abs(rows.scale)
    value, size, extra = value * rows.scale, size * scale, extra * scale
    for a in (value, size):
        a[rows.bad] = np.nan
        a[rows.ignored] = 0
    number = Number(value, size, extra, floor * scale + 2, ulps)
    return number.rearranged(lambda a: _whole(rows, a, axis))


def _bent(number: Number, grad: Number, factor: np.ndarray) -> Number:
    """The number plus the gradient times a factor, which comes from the second derivative of the softcap."""
    size = np.abs(factor)
    return Number(
        number.value + _product(grad.value, factor),
        number.size + _product(grad.size, size),
        number.extra + _product(grad.extra + 8 * grad.size, size),
        number.floor + np.where(np.isfinite(size), size, 0) * grad.floor,
        number.ulps,
    )


def exact_grad_hess(logits: Any, targets: Any, *, axis: int = -1, **options: Any) -> ExactGradHess:
    """hess = k*p*(1 - p) + 2*z_loss*p^2, and with a softcap s^2 times that plus bend*grad"""
    with np.errstate(all="ignore"):
        r = _rows(logits, targets, axis=axis, **options)
        value = r.k * r.p * r.other_p + 2 * r.z * r.p**2
        size = r.k_size * r.p * r.other_p + 2 * r.z * r.p**2
        # At the maximum the sum of the others' exponentials counts.
        floor = (1 + r.k_size) * np.where(r.p == r.p.max(axis=-1, keepdims=True), r.x.shape[-1], 1)
        grad = exact(logits, targets, axis=axis, **options).grad
        extra = (r.reach + r.moved + 2 * r.of_slope) * size + 2 * r.z * r.moved * r.p * r.other_p
        s = r.slope**2
        hess = _number(r, value * s, size * s, extra * s, floor * s + 2, HESS_ULPS, axis)
        if options.get("softcap") is not None:
            hess = _bent(hess, grad, _whole(r, r.bend, axis))
        return ExactGradHess(grad, hess)


def exact_hvp(logits: Any, targets: Any, vectors: Any, *, axis: int = -1, **options: Any) -> ExactHvp:
    """hvp = p*(k*(w - mean w) + 2*z_loss*(v_max + mean w)) with w = v - v_max, where 0*inf = 0. With a softcap s times
    that of s*v, plus bend*grad*v."""
    with np.errstate(all="ignore"):
        r = _rows(logits, targets, axis=axis, **options)
        dtype = logits.dtype if np.asarray(logits).dtype.kind == "f" else np.float64
        v = _classes_last(np.asarray(vectors).astype(dtype), axis).reshape(r.x.shape)
        given, v = v, _product(r.slope, v)
        v_max = np.take_along_axis(v, r.top, -1)
        off = np.broadcast_to(r.of_slope, v.shape) * np.abs(v)
        off = np.where(r.p == 0, 0, off) + np.take_along_axis(off, r.top, -1)
        w = np.where(r.p == 0, 0, v - v_max)
        parts, spread = r.p * w, r.p * np.abs(w)
        mean, mean_size = parts.sum(axis=-1, keepdims=True), spread.sum(axis=-1, keepdims=True)
        mean_extra = (r.reach * spread).sum(axis=-1, keepdims=True)
        value = r.p * (r.k * (w - mean) + 2 * r.z * (v_max + mean))
        slope = r.k_size + 2 * r.z
        inner = slope * (np.abs(w) + mean_size) + 2 * r.z * np.abs(v_max)
        extra = r.p * ((r.reach + r.moved + r.of_slope) * inner + slope * (mean_extra + r.moved * mean_size))
        extra = extra + r.p * (slope * (off + (r.p * off).sum(axis=-1, keepdims=True)) + 2 * r.z * r.moved * inner)
        floor = 1 + inner + slope * np.abs(w).sum(axis=-1, keepdims=True)
        s = r.slope
        hvp = _number(r, value * s, r.p * inner * s, extra * s, floor * s, HVP_ULPS, axis)
        if options.get("softcap") is None:
            return ExactHvp(hvp)
        grad = exact(logits, targets, axis=axis, **options).grad
        return ExactHvp(_bent(hvp, grad, _whole(r, _product(given, r.bend), axis)))


def exact_hessian_row(
    logits: Any,
    target: Any,
    *,
    weight: Any = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    digits: int = 400,
) -> list[list[mpmath.mpf]]:
    """The Hessian of one row's loss from the definition: the derivative of (mass + 2*z_loss*lse)*p - q."""
    with mpmath.workdps(digits):
        t, z = mpmath.mpf(float(temperature)), mpmath.mpf(float(z_loss))
        x = [mpmath.mpf(float(v)) / t for v in logits]
        n = range(len(x))
        eps = mpmath.mpf(float(label_smoothing))
        c = [int(j == target) for j in n] if np.ndim(target) == 0 else [float(v) for v in target]
        w = [1.0] * len(x) if weight is None else [float(v) for v in weight]
        mass = mpmath.fsum(mpmath.mpf(w[j]) * ((1 - eps) * mpmath.mpf(c[j]) + eps / len(x)) for j in n)
        exps = [mpmath.exp(v) for v in x]
        total = mpmath.fsum(exps)
        p, lse = [e / total for e in exps], mpmath.log(total)
        by_class = [[p[i] * (int(i == j) - p[j]) for j in n] for i in n]  # d p_i / d x_j
        return [[((mass + 2 * z * lse) * by_class[i][j] + 2 * z * p[j] * p[i]) / t**2 for j in n] for i in n]
