"""The README's table of differences to PyTorch: what each row says of both is what they do."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastce

torch = pytest.importorskip("torch", reason="torch is not installed")

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
NAN, INF = np.nan, np.inf
X = np.random.default_rng(8).normal(size=(4, 3))
LABELS = np.array([0, 2, 1, 2])
WEIGHT = np.array([0.5, 2.0, 3.0])
SAMPLE_WEIGHT = np.array([1.0, 0.25, 3.0, 0.5])
ROWS = fastce.cross_entropy(X, LABELS, reduction="none")
MASKED = np.array([[0.0, 1.0, -INF]])


def theirs(x: Any, targets: Any, **options: Any) -> tuple[float, np.ndarray]:
    leaf = torch.from_numpy(np.array(x)).requires_grad_()
    options = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    loss = torch.nn.functional.cross_entropy(leaf, torch.from_numpy(np.array(targets)), **options)
    loss.backward()
    return loss.item(), leaf.grad.numpy()


def class_axis() -> None:
    """The same shapes, which fit both axes, and another number. Other shapes are refused, with the axis to pass."""
    x, labels = np.random.default_rng(9).normal(size=(2, 5, 5)), np.arange(10).reshape(2, 5) % 5
    their_loss, their_grad = theirs(x, labels)
    loss, grad = fastce.cross_entropy_with_grad(x, labels, axis=1)
    np.testing.assert_allclose(loss, their_loss, rtol=1e-14)
    np.testing.assert_allclose(grad, their_grad, rtol=1e-12, atol=1e-16)
    assert abs(fastce.cross_entropy(x, labels) / their_loss - 1) > 0.01
    with pytest.raises(ValueError, match=r"did you mean axis=1\?"):
        fastce.cross_entropy(np.zeros((2, 5, 4)), np.zeros((2, 4), int))


def mean_of_labels() -> None:
    labels = np.where(np.arange(4) == 1, -100, LABELS)
    kept = np.array([0, 2, 3])
    weight = WEIGHT[labels[kept]]
    want = (weight * ROWS[kept]).sum()
    assert theirs(X, labels, weight=WEIGHT)[0] == pytest.approx(want / weight.sum())
    got = fastce.cross_entropy(X, labels, weight=WEIGHT)
    assert got == pytest.approx(want / weight.sum())
    got = fastce.cross_entropy(X, labels, weight=WEIGHT, sample_weight=SAMPLE_WEIGHT)
    weight = weight * SAMPLE_WEIGHT[kept]
    assert got == pytest.approx((weight * ROWS[kept]).sum() / weight.sum())


def mean_of_probabilities() -> None:
    hot = np.eye(3)[LABELS]
    want = WEIGHT[LABELS] * ROWS
    assert theirs(X, hot, weight=WEIGHT)[0] == pytest.approx(want.mean())
    assert fastce.cross_entropy(X, hot, weight=WEIGHT) == pytest.approx(want.mean())
    got = fastce.cross_entropy(X, hot, weight=WEIGHT, sample_weight=SAMPLE_WEIGHT)
    assert got == pytest.approx((SAMPLE_WEIGHT * want).sum() / SAMPLE_WEIGHT.sum())


def no_weight() -> None:
    """Not the same as no rows: if every row is ignored, both have a gradient of 0."""
    weight = np.array([0.0, 1.0, 1.0])
    loss, grad = theirs(X, np.zeros(4, int), weight=weight)
    assert np.isnan(loss) and np.isnan(grad).all()
    loss, grad = fastce.cross_entropy_with_grad(X, np.zeros(4, int), weight=weight)
    assert np.isnan(loss) and (grad == 0).all()
    for function in (theirs, fastce.cross_entropy_with_grad):
        loss, grad = function(X, np.full(4, -100))
        assert np.isnan(loss) and (grad == 0).all()


def ignored_nan() -> None:
    labels = np.array([-100, 2, 1, 2])
    for value in (NAN, INF):
        x = X.copy()
        x[0, 1] = value
        loss, grad = theirs(x, labels)
        assert np.isfinite(loss) and np.isnan(grad[0]).any()
        loss, grad = fastce.cross_entropy_with_grad(x, labels)
        assert np.isfinite(loss) and (grad[0] == 0).all()


def masked_zero() -> None:
    targets = np.array([[0.25, 0.75, 0.0]])
    assert np.isnan(theirs(MASKED, targets)[0])
    assert fastce.cross_entropy(MASKED, targets) == fastce.cross_entropy(MASKED[:, :2], targets[:, :2])


def wrong_probabilities() -> None:
    for value in (-0.5, NAN, INF):
        targets = np.full((4, 3), 1 / 3)
        targets[1, 2] = value
        theirs(X, targets)  # a number, or NaN
        with pytest.raises(ValueError, match=r"targets\[1, 2\] is .*, expected probabilities"):
            fastce.cross_entropy(X, targets)


CHECKS: dict[str, Callable[[], None]] = {
    "class axis of logits": class_axis,
    "mean with class indices": mean_of_labels,
    "mean with probabilities": mean_of_probabilities,
    "weights of the rows not ignored sum to 0": no_weight,
    "ignored rows contain NaN or inf": ignored_nan,
    "probability 0 where the logit is -inf": masked_zero,
    "a probability is negative or not finite": wrong_probabilities,
}


def test_every_row_of_the_table_is_checked() -> None:
    (table,) = re.findall(r"^\| \| PyTorch \| fastce \|\n\|---\|---\|---\|\n((?:\|.*\n)+)", README, flags=re.MULTILINE)
    rows = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines()]
    assert rows[0] == "class axis of logits", "what changes numbers silently is told first"
    assert set(rows) <= CHECKS.keys()


@pytest.mark.parametrize("row", CHECKS)
def test_what_a_row_says_is_so(row: str) -> None:
    CHECKS[row]()
