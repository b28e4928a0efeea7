"""Exact softmax cross-entropy for the tests to compare against, and the error that the contract allows at each number.
`exact` is vectorised in longdouble and cancellation-free; `exact_row` computes one row from the definition at several
hundred digits and is what shows that `exact` is right. Neither shares code with fastce or its reference. Both take
options as fastce takes them, and assume that they are valid."""

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
