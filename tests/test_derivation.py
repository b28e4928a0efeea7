"""The derivation that the documentation tells, from scores to gradient: its examples run and print what they show, and
its claims about p - c hold beyond the one row that it shows."""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pytest

import fastce

CHECKOUT = Path(__file__).resolve().parent.parent
HEADING = "## From scores to gradient\n"


def _page() -> tuple[Path, str]:
    """The text from the heading to the next one of its level, in the README or a page beside the sources."""
    for path in (CHECKOUT / "README.md", *sorted(CHECKOUT.glob("*/*.md"))):
        _, found, text = path.read_text(encoding="utf-8").partition(HEADING)
        if found:
            return path, text.partition("\n## ")[0]
    raise AssertionError(f"no README.md or */*.md of {CHECKOUT} has the heading {HEADING.strip()!r}")


def test_examples_print_what_is_shown():
    path, text = _page()
    example = doctest.DocTestParser().get_doctest(text.replace("```", ""), {}, HEADING.strip("# \n"), str(path), 0)
    assert len([e for e in example.examples if e.want]) >= 10
    failures: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(example, out=failures.append)
    assert not runner.failures, "".join(failures)


def _slope(loss, z):
    """4th-order central differences."""
    h, slope = 1e-3, np.empty_like(z)
    for at in np.ndindex(z.shape):
        step = np.zeros_like(z)
        step[at] = h
        slope[at] = (8 * (loss(z + step) - loss(z - step)) - (loss(z + 2 * step) - loss(z - 2 * step))) / (12 * h)
    return slope


def _case(classes, seed):
    rng = np.random.default_rng(seed)
    z, labels = rng.normal(size=(4, classes)) * 2, rng.integers(0, classes, 4)
    return z, labels, fastce.one_hot(labels, classes, dtype=np.float64)


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_softmax_with_one_term_is_p_minus_c(classes):
    z, labels, c = _case(classes, 1)
    p = fastce.softmax(z)
    slope = _slope(lambda z: fastce.cross_entropy(z, labels, reduction="sum"), z)
    np.testing.assert_allclose(slope, p - c, atol=1e-9)
    np.testing.assert_allclose(fastce.cross_entropy_grad(z, labels, reduction="sum"), p - c, atol=1e-14)
    np.testing.assert_allclose(fastce.softmax_grad(-c / p, p), p - c, atol=1e-13)


@pytest.mark.parametrize("classes", [1, 2, 3, 10])
def test_sigmoid_with_two_terms_is_p_minus_c(classes):
    z, _, c = _case(classes, 2)
    p = 1 / (1 + np.exp(-z))
    slope = _slope(lambda z: fastce.binary_cross_entropy(z, c, reduction="sum"), z)
    np.testing.assert_allclose(slope, p - c, atol=1e-9)
    _, grad = fastce.binary_cross_entropy_with_grad(z, c, reduction="sum")
    np.testing.assert_allclose(grad, p - c, atol=1e-14)


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_softmax_with_two_terms_needs_the_whole_jacobian(classes):
    z, _, c = _case(classes, 3)
    p = fastce.softmax(z)
    by_p = -c / p + (1 - c) / (1 - p)
    _, grad = fastce.binary_cross_entropy_with_grad(z, c, activation="softmax", reduction="sum")
    np.testing.assert_allclose(fastce.softmax_grad(by_p, p), grad, atol=1e-13)
    slope = _slope(lambda z: fastce.binary_cross_entropy(z, c, activation="softmax", reduction="sum"), z)
    np.testing.assert_allclose(slope, grad, atol=1e-9)
    diagonal = by_p * p * (1 - p)
    np.testing.assert_allclose(diagonal, p - c, atol=1e-14)
    if classes == 2:
        np.testing.assert_allclose(grad, 2 * (p - c), atol=1e-14)
        return
    best = (grad * diagonal).sum(axis=1, keepdims=True) / (diagonal**2).sum(axis=1, keepdims=True)
    assert np.abs(grad - best * diagonal).max() > 0.1, "no multiple of p - c"
