"""The derivation that the documentation tells, from scores to gradient: its examples run and print what they show, and
its claims about p - c hold beyond the one row that it shows."""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pytest
from rows import slope

import fastce

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = CHECKOUT / ".docs" / "from_scores_to_gradient.md"


@pytest.mark.skipif(not (CHECKOUT / "fastce").is_dir(), reason="the page is part of a checkout")
def test_examples_print_what_is_shown():
    text = PAGE.read_text(encoding="utf-8").replace("```", "")
    example = doctest.DocTestParser().get_doctest(text, {}, PAGE.stem, str(PAGE), 0)
    assert len([e for e in example.examples if e.want]) >= 10
    failures: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(example, out=failures.append)
    assert not runner.failures, "".join(failures)


def _case(classes, seed):
    rng = np.random.default_rng(seed)
    z, labels = rng.normal(size=(4, classes)) * 2, rng.integers(0, classes, 4)
    return z, labels, fastce.one_hot(labels, classes, dtype=np.float64)


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_softmax_with_one_term_is_p_minus_c(classes):
    z, labels, c = _case(classes, 1)
    p = fastce.softmax(z)
    by_losses = slope(lambda z: fastce.cross_entropy(z, labels, reduction="sum"), z)
    np.testing.assert_allclose(by_losses, p - c, atol=1e-9)
    np.testing.assert_allclose(fastce.cross_entropy_grad(z, labels, reduction="sum"), p - c, atol=1e-14)
    np.testing.assert_allclose(fastce.softmax_grad(-c / p, p), p - c, atol=1e-13)


@pytest.mark.parametrize("classes", [1, 2, 3, 10])
def test_sigmoid_with_two_terms_is_p_minus_c(classes):
    z, _, c = _case(classes, 2)
    p = 1 / (1 + np.exp(-z))
    by_losses = slope(lambda z: fastce.binary_cross_entropy(z, c, reduction="sum"), z)
    np.testing.assert_allclose(by_losses, p - c, atol=1e-9)
    _, grad = fastce.binary_cross_entropy_with_grad(z, c, reduction="sum")
    np.testing.assert_allclose(grad, p - c, atol=1e-14)


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_softmax_with_two_terms_needs_the_whole_jacobian(classes):
    z, _, c = _case(classes, 3)
    p = fastce.softmax(z)
    by_p = -c / p + (1 - c) / (1 - p)
    _, grad = fastce.binary_cross_entropy_with_grad(z, c, activation="softmax", reduction="sum")
    np.testing.assert_allclose(fastce.softmax_grad(by_p, p), grad, atol=1e-13)
    by_losses = slope(lambda z: fastce.binary_cross_entropy(z, c, activation="softmax", reduction="sum"), z)
    np.testing.assert_allclose(by_losses, grad, atol=1e-9)
    diagonal = by_p * p * (1 - p)
    np.testing.assert_allclose(diagonal, p - c, atol=1e-14)
    if classes == 2:
        np.testing.assert_allclose(grad, 2 * (p - c), atol=1e-14)
        return
    best = (grad * diagonal).sum(axis=1, keepdims=True) / (diagonal**2).sum(axis=1, keepdims=True)
    assert np.abs(grad - best * diagonal).max() > 0.1, "no multiple of p - c"
