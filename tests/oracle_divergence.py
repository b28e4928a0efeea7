"""Exact Kullback-Leibler divergences for the tests to compare against, and the error that is allowed in them. As in
oracle.py, the form in longdouble shares no code with fastce, and the definition at several hundred digits shows that it
is right."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import mpmath
import numpy as np
from oracle import LD, Number, _capped, _classes_last, _finite, _product, _state, _without_number

DIVERGENCE_ULPS = 8  # p, q and u have two roundings each besides those of exp; product, difference and sum as many


def _mass_minus_1(targets: np.ndarray) -> np.ndarray:
    """Exactly, and then rounded to two numbers: its error would count in full."""
    rows = targets.astype(np.float64)
    finite = np.isfinite(rows).all(axis=1)
    high = [math.fsum([*row, -1]) if number else np.nan for row, number in zip(rows, finite, strict=True)]
    low = [
        math.fsum([*row, -1, -first]) if number else np.nan
        for row, number, first in zip(rows, finite, high, strict=True)
    ]
    return (np.array(high, LD) + np.array(low, LD))[:, None]


def _excess(u: np.ndarray) -> np.ndarray:
    """exp(u) - 1 - u, by its series where that cancels."""
    small, series = np.where(np.abs(u) < 0.1, u, 0), np.zeros_like(u)
    for k in range(16, 1, -1):
        series = (series + 1) * small / k
    return np.where(np.abs(u) < 0.1, series * small, np.expm1(u) - u)


class ExactDivergence(NamedTuple):
    loss: Number  # after the reduction
    grad: Number
    rows: Number  # each row's loss, sample weight included


def exact_divergence(
    logits: np.ndarray,
    target_logits: np.ndarray,
    *,
    targets: str = "logits",
    temperature: float = 1.0,
    softcap: float | None = None,
    sample_weight: Any = None,
    reduction: str = "mean",
    normalizer: float | None = None,
    axis: int = -1,
    upstream: Any = 1.0,
) -> ExactDivergence:
    """With u = log p - log q and the mass m of the targets, m*(sum_j q_j*(exp(u_j) - 1 - u_j) + log m), and its
    gradient m*(p - q)/T.

    Allowed in a row are 8 eps of sum |m*q*u'| + m*|log m|, where u' = log p - log(m*q), and the distances of the logits
    from their maxima times |p - q| and the terms, because u and the exponentials are that inexact. In the gradient, 8
    eps and these distances of p and q; of 1 - p and 1 - q at the maximum of both, where the gaps to the runners-up take
    the place of distances. Capped logits are `moved` by their error, which changes u, p and q."""
    with np.errstate(all="ignore"):
        x, t, T = _classes_last(logits, axis), _classes_last(target_logits, axis), LD(temperature)
        lead, classes = x.shape[:-1], x.shape[-1]
        x, t = x.reshape(-1, classes), t.reshape(-1, classes)
        dtype = logits.dtype if np.asarray(logits).dtype.kind == "f" else np.dtype(np.float64)
        x, slope, x_moved, of_slope, _ = _capped(x, softcap, dtype)
        t, _, t_moved, _, _ = _capped(t, softcap if targets == "logits" else None, dtype)
        x_moved, t_moved = x_moved / T, t_moved / T
        xm, x_tail, e_x, x_gap, _ = _state(x, T)
        p, x_distance = e_x / (1 + x_tail), (xm - x) / T
        if targets == "logits":
            tm, t_tail, e_t, t_gap, _ = _state(t, T)
            q, t_distance, mass, log_mass = e_t / (1 + t_tail), (tm - t) / T, np.ones_like(xm), np.zeros_like(xm)
            more = x_tail - t_tail
            log_ratio = np.where(more >= 0, np.log1p(more / (1 + t_tail)), -np.log1p(-more / (1 + x_tail)))
            bad = _without_number(x, xm) | _without_number(t, tm)
        else:
            mass = t.sum(axis=-1, keepdims=True)
            log_mass = np.where(mass == 0, 0, np.where(mass < 0.5, np.log(mass), np.log1p(_mass_minus_1(t))))
            q, t_distance, t_gap = np.where(mass == 0, 0, t / mass), -np.log(t), LD(0)
            log_ratio = np.log1p(x_tail) - log_mass
            bad = _without_number(x, xm) | np.isnan(t_distance).any(axis=-1) | ~np.isfinite(mass)[..., 0]
        u = (t_distance - x_distance) - log_ratio
        nearly_equal = np.abs(u) < 1
        difference = np.where(nearly_equal, q * np.expm1(u), p - q)
        excess = np.where(nearly_equal, q * _excess(u), p - q - q * u)
        excess[q == 0], difference[q == 0] = p[q == 0], p[q == 0]
        empty = np.ravel(mass == 0) & ~bad
        losses = np.where(empty, 0, mass[..., 0] * (excess.sum(axis=-1) + np.ravel(log_mass)))
        size = mass * np.abs(_product(q, u - log_mass)).sum(axis=-1, keepdims=True) + mass * np.abs(log_mass)
        distance = _finite(x_distance) + _finite(t_distance)
        extra = mass * ((np.abs(difference) + excess) * distance).sum(axis=-1, keepdims=True)
        # Of the first order by the derivatives of the loss, and what is left where they are 0.
        extra += mass * (x_moved + t_moved) * np.abs(difference).sum(axis=-1, keepdims=True) + t_moved * size
        extra += mass * (x_moved + t_moved) ** 2 * LD(np.finfo(dtype).eps)

        both = (x_distance == 0) & (t_distance == 0) & (targets == "logits")
        grad_size = p + q
        if targets == "logits":
            rest = x_tail / (1 + x_tail) + t_tail / (1 + t_tail)
            grad_size = np.where(both, np.maximum(p, q) * rest, grad_size)
        reach = p * _finite(x_distance) + q * _finite(t_distance) + np.minimum(p, q) * distance
        reach = np.where(both, (x_gap + t_gap) * grad_size, reach) + (x_moved + t_moved + of_slope) * grad_size
        grad = mass * difference

        for a in (losses, grad, size, grad_size):
            a[bad] = np.nan
        sample = np.ones(len(x), LD)
        if sample_weight is not None:
            sample = np.broadcast_to(np.asarray(sample_weight), lead).astype(LD).ravel()
        for a in (losses, grad, size, grad_size, extra, reach):
            a[sample == 0] = 0  # whatever the logits are
        rows = Number(losses * sample, size[:, 0] * sample, extra[:, 0] * sample, 2 + 2 * sample, DIVERGENCE_ULPS)

        loss, factor = rows.rearranged(lambda a: a.reshape(lead)), LD(1)
        if reduction == "mean":
            denominator = sample.sum() if normalizer is None else LD(normalizer)
            factor = 1 / denominator if denominator else LD(0)
            loss = rows.reduced(factor if denominator else LD(np.nan), logits.dtype)
        elif reduction == "sum":
            loss = rows.reduced(LD(1), logits.dtype)
        up = np.broadcast_to(np.asarray(upstream), lead).astype(LD).ravel()
        grad = grad if factor else np.zeros_like(grad)
        scale = _product(sample[:, None], (up * factor / T)[:, None] * slope)
        by_size = np.abs(scale) * mass
        number = Number(grad * scale, grad_size * by_size, reach * by_size, 2 + 2 * by_size, DIVERGENCE_ULPS)
        return ExactDivergence(
            loss,
            number.rearranged(lambda a: np.moveaxis(np.broadcast_to(a, x.shape).reshape(*lead, classes), -1, axis)),
            rows.rearranged(lambda a: a.reshape(lead)),
        )


def exact_divergence_row(
    logits: Any, target_logits: Any, *, targets: str = "logits", temperature: float = 1.0, digits: int = 400
) -> tuple[mpmath.mpf, list[mpmath.mpf]]:
    """Divergence and gradient of one row by the definition, sum q*log(q/p), at so many digits that nothing cancels."""
    with mpmath.workdps(digits):
        T = mpmath.mpf(float(temperature))

        def softmax(z: Any) -> list[mpmath.mpf]:
            exps = [mpmath.exp(mpmath.mpf(float(v)) / T) for v in z]
            return [e / mpmath.fsum(exps) for e in exps]

        p = softmax(logits)
        q = softmax(target_logits) if targets == "logits" else [mpmath.mpf(float(v)) for v in target_logits]
        mass = mpmath.fsum(q)
        loss = mpmath.fsum(b * mpmath.log(b / a) for a, b in zip(p, q, strict=True) if b)
        return loss, [(mass * a - b) / T for a, b in zip(p, q, strict=True)]
