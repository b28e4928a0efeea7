"""Exact entropies of softmax(x/temperature) and their gradients, and the error that their contract allows.

`exact_entropy` is vectorised in longdouble and free of cancellation. `exact_entropy_row` computes one row from the
definition, at several hundred digits, and shows that the other is right. None shares code with fastce or its
reference."""

from __future__ import annotations

from typing import Any, NamedTuple

import mpmath
import numpy as np
from oracle import LD, Number, _capped, _product

# Four as for every sum and logarithm of the contract; four more for the products with the gaps, and their sum.
ENTROPY_ULPS = 8


class ExactEntropy(NamedTuple):
    loss: Number  # after the reduction
    grad: Number


def exact_entropy(
    logits: np.ndarray,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    sample_weight: Any = None,
    reduction: str = "mean",
    normalizer: float | None = None,
    axis: int = -1,
    upstream: Any = 1.0,
) -> ExactEntropy:
    """H = log1p(tail) + m with m = sum_j p_j*gap_j, and its derivative by x_j, p_j*(gap_j - m)/temperature; gaps are
    those from the maximum, divided by the temperature. Allowed are (8 + D) eps of H and (8 + D + 2*gap_j) eps of
    p_j*(gap_j + m)/temperature, where D is the mean gap weighted by p_j*gap_j: exp(-gap) is off by gap/2 eps.

    The error of capped logits, `moved`, changes p and the gaps. The gap at the maximum stays 0, unless another logit is
    so near that it may become the maximum."""
    with np.errstate(all="ignore"):
        x = np.moveaxis(np.asarray(logits), axis, -1).astype(LD, order="C")
        lead, classes = x.shape[:-1], x.shape[-1]
        dtype = logits.dtype if np.asarray(logits).dtype.kind == "f" else np.dtype(np.float64)
        x, cap_slope, moved, of_slope, near = _capped(x, softcap, dtype)
        moved = moved / LD(temperature)
        top = np.argmax(x, axis=-1, keepdims=True)
        largest = np.take_along_axis(x, top, -1)
        gaps = (largest - x) / LD(temperature)
        masked = gaps == np.inf
        e = np.exp(-gaps)
        gaps[masked] = 0
        others = np.where(np.arange(classes) == top, 0, e)
        tail = others.sum(axis=-1, keepdims=True)
        mean = (e * gaps).sum(axis=-1, keepdims=True) / (1 + tail)
        mean_gap = (e * gaps**2).sum(axis=-1, keepdims=True) / (1 + tail)
        mean_gap = np.where(mean > 0, mean_gap / mean, 0)
        p = e / (1 + tail)
        value = (np.log1p(tail) + mean)[..., 0]
        slope, size = p * (gaps - mean) / LD(temperature), p * (gaps + mean) / LD(temperature)
        share = np.where(gaps * LD(temperature) > near, 1, tail / (1 + tail)) + tail / (1 + tail)
        second = np.where(np.arange(classes) == top, -np.inf, x).max(axis=-1, keepdims=True)
        share = np.where(largest - second <= near, 2, share)
        of_gaps = moved * p * share / LD(temperature)
        bad = (~np.isfinite(largest) | np.isnan(x).any(axis=-1, keepdims=True))[..., 0]
        value[bad] = slope[bad] = size[bad] = np.nan

        weight = np.ones(lead, LD) if sample_weight is None else np.asarray(sample_weight).astype(LD)
        value[weight == 0] = slope[weight == 0] = size[weight == 0] = 0  # whatever the logits are
        value = value * weight
        rows = Number(value, value, (mean_gap + moved)[..., 0] * value, 2 + classes * weight, ENTROPY_ULPS)
        factor = LD(1)
        if reduction == "mean":
            denominator = weight.sum() if normalizer is None else LD(normalizer)
            factor = 1 / denominator if denominator else LD(0)
        loss = rows if reduction == "none" else rows.reduced(factor if factor else LD(np.nan), logits.dtype)
        slope = slope if factor else np.zeros_like(slope)
        scale = _product(weight[..., None], (np.asarray(upstream).astype(LD) * factor)[..., None] * cap_slope)
        size = size * np.abs(scale)
        extra = (mean_gap + 2 * gaps + moved + of_slope) * size + of_gaps * np.abs(scale)
        floor = 2 + np.abs(scale) / LD(temperature) * (1 + classes * p)
        grad = Number(slope * scale, size, extra, floor, ENTROPY_ULPS)
        return ExactEntropy(loss, grad.rearranged(lambda a: np.moveaxis(a, -1, axis)))


def exact_entropy_row(logits: Any, temperature: float = 1.0, digits: int = 800) -> tuple[mpmath.mpf, list[mpmath.mpf]]:
    """-sum p*log(p) of one row and its gradient, -p*(log(p) + H)/temperature, with p by its definition."""
    with mpmath.workdps(digits):
        z = [mpmath.mpf(float(v)) / mpmath.mpf(float(temperature)) for v in logits]
        exps = [mpmath.exp(v) for v in z]
        total = mpmath.fsum(exps)
        p = [v / total for v in exps]
        log_p = [v - mpmath.log(total) if q else mpmath.mpf(0) for v, q in zip(z, p, strict=True)]
        entropy = -mpmath.fsum(q * v for q, v in zip(p, log_p, strict=True))
        return entropy, [-q * (v + entropy) / float(temperature) for q, v in zip(p, log_p, strict=True)]
