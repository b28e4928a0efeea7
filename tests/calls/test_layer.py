"""`CrossEntropyLoss`, the layer: its options, its errors, and what it remembers of the last call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastce

LOGITS = np.random.default_rng(3).standard_normal((20, 10), dtype=np.float32)
LABELS = np.random.default_rng(4).integers(10, size=20)


def test_options_of_a_call_replace_those_of_the_layer_for_that_call() -> None:
    ce = fastce.CrossEntropyLoss(reduction="sum", label_smoothing=0.1)
    losses = ce(LOGITS, LABELS, reduction="none")
    np.testing.assert_array_equal(losses, fastce.cross_entropy(LOGITS, LABELS, reduction="none", label_smoothing=0.1))
    upstream = np.linspace(0, 1, 20)
    grad = ce.backward(upstream)
    options = {"reduction": "none", "label_smoothing": 0.1, "upstream": upstream}
    want = fastce.cross_entropy_grad(LOGITS, LABELS, **options)
    np.testing.assert_allclose(grad, want, rtol=1e-6, atol=1e-7)
    assert ce(LOGITS, LABELS) == fastce.cross_entropy(LOGITS, LABELS, reduction="sum", label_smoothing=0.1)


def test_backward_may_be_called_again_and_is_that_of_the_last_call() -> None:
    ce = fastce.CrossEntropyLoss()
    ce(LOGITS[:5], LABELS[:5])
    ce(LOGITS, LABELS)
    grad = ce.backward()
    assert grad.shape == LOGITS.shape
    np.testing.assert_array_equal(ce.backward(), grad)
    np.testing.assert_array_equal(ce.backward(2.0), 2 * grad)
    np.testing.assert_array_equal(ce.backward(upstream=2.0), 2 * grad)


def test_the_layer_shows_its_options() -> None:
    assert repr(fastce.CrossEntropyLoss()) == "CrossEntropyLoss()"
    assert repr(fastce.CrossEntropyLoss(reduction="sum", axis=1)) == "CrossEntropyLoss(reduction='sum', axis=1)"


def test_unknown_options_are_refused_when_the_layer_is_made_and_when_it_is_called() -> None:
    with pytest.raises(TypeError, match="wieght"):
        fastce.CrossEntropyLoss(wieght=None)
    for option in ("return_stats", "upstream", "out", "stats"):
        with pytest.raises(TypeError, match=option):
            fastce.CrossEntropyLoss(**{option: None})
    with pytest.raises(TypeError, match="wieght"):
        fastce.CrossEntropyLoss()(LOGITS, LABELS, wieght=None)


def test_backward_before_the_first_call_says_so() -> None:
    with pytest.raises(RuntimeError, match="backward.*(call|forward|loss)|(call|forward).*backward"):
        fastce.CrossEntropyLoss().backward()


@pytest.mark.parametrize(
    "keywords, error, message",
    [
        ({"upstream": None}, TypeError, r"^upstream .*None"),
        ({"upstream": np.ones(20)}, ValueError, r"^upstream .*\(20,\)"),
        ({"out": np.zeros((20, 10))}, ValueError, r"^out has dtype float64, expected float32"),
        ({"out": LOGITS.tolist()}, TypeError, r"^out .*list"),
    ],
)
def test_errors_of_backward(keywords: dict[str, Any], error: type[Exception], message: str) -> None:
    ce = fastce.CrossEntropyLoss()
    ce(LOGITS, LABELS)
    with pytest.raises(error, match=message):
        ce.backward(**keywords)
