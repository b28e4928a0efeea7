"""`CrossEntropyLoss`, the layer: its options, its errors, and what it remembers of the last call."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastce
from fastce._cross_entropy import _FEW_LOGITS

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
    assert repr(fastce.CrossEntropyLoss(reuse_grad=True, axis=1)) == "CrossEntropyLoss(axis=1, reuse_grad=True)"


def test_unknown_options_are_refused_when_the_layer_is_made_and_when_it_is_called() -> None:
    with pytest.raises(TypeError, match="wieght"):
        fastce.CrossEntropyLoss(wieght=None)
    for option in ("return_stats", "upstream", "out", "stats"):
        with pytest.raises(TypeError, match=option):
            fastce.CrossEntropyLoss(**{option: None})
    with pytest.raises(TypeError, match="wieght"):
        fastce.CrossEntropyLoss()(LOGITS, LABELS, wieght=None)
    with pytest.raises(TypeError, match="reuse_grad"):  # an option of the layer, not of a call
        fastce.CrossEntropyLoss()(LOGITS, LABELS, reuse_grad=True)


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


@pytest.mark.parametrize("rows", [_FEW_LOGITS // 10, _FEW_LOGITS // 10 + 1], ids=["few", "many"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_backward_is_that_of_the_function_on_both_sides_of_the_limit(rows: int, reduction: str) -> None:
    """Below _FEW_LOGITS the layer does not keep the statistics of the rows."""
    rng = np.random.default_rng(5)
    logits, labels = rng.standard_normal((rows, 10), dtype=np.float32), rng.integers(10, size=rows)
    upstream = rng.random(rows) if reduction == "none" else 0.5
    ce = fastce.CrossEntropyLoss(reduction=reduction)
    loss, grad = fastce.cross_entropy_with_grad(logits, labels, reduction=reduction, upstream=upstream)
    np.testing.assert_array_equal(ce(logits, labels), loss)
    np.testing.assert_allclose(ce.backward(upstream), grad, rtol=1e-5, atol=1e-7)


# --- reuse_grad -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [np.copy, np.asfortranarray, lambda a: a[::2, ::-1], lambda a: a.astype(">f4")])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_backward_writes_to_the_array_of_the_last_one(make: Callable[[Any], Any], reduction: str) -> None:
    logits = make(LOGITS)
    labels = LABELS[: len(logits)]
    fresh = fastce.CrossEntropyLoss(reduction=reduction)
    ce = fastce.CrossEntropyLoss(reduction=reduction, reuse_grad=True)
    grads = []
    for k, upstream in enumerate((1.0, 2.0)):
        logits = make(LOGITS + k)
        assert ce(logits, labels) is not None and fresh(logits, labels) is not None
        grads.append(ce.backward(upstream))
        want = fresh.backward(upstream)
        np.testing.assert_array_equal(grads[-1], want)
        assert grads[-1].strides == want.strides and grads[-1].dtype == want.dtype
    assert grads[0] is grads[1]


@pytest.mark.parametrize(
    "other",
    [LOGITS[:10], LOGITS.astype(np.float64), np.asfortranarray(LOGITS), LOGITS.tolist()],
    ids=["rows", "dtype", "order", "list"],
)
def test_another_shape_dtype_or_order_gets_a_new_array(other: Any) -> None:
    ce = fastce.CrossEntropyLoss(reuse_grad=True)
    ce(LOGITS, LABELS)
    first = ce.backward()
    kept = first.copy()
    ce(other, LABELS[: len(other)])
    second = ce.backward()
    assert not np.may_share_memory(first, second)
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_allclose(second, fastce.cross_entropy_grad(other, LABELS[: len(other)]), rtol=1e-5, atol=1e-7)


def test_lists_get_a_new_array_each_time() -> None:
    ce = fastce.CrossEntropyLoss(reuse_grad=True)
    ce(LOGITS.tolist(), LABELS)
    assert ce.backward() is not ce.backward()


def test_out_takes_precedence_over_the_array_of_the_layer() -> None:
    ce = fastce.CrossEntropyLoss(reuse_grad=True)
    ce(LOGITS, LABELS)
    first = ce.backward()
    kept = first.copy()
    out = np.zeros_like(LOGITS)
    assert ce.backward(2.0, out=out) is out
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(out, 2 * kept)
    assert ce.backward(3.0) is first


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_of_a_layer_have_neither_its_last_call_nor_its_array(duplicate: Callable[[Any], Any]) -> None:
    ce = fastce.CrossEntropyLoss(reduction="sum", reuse_grad=True)
    before = len(pickle.dumps(ce))
    ce(LOGITS, LABELS)
    first = ce.backward()
    assert before == len(pickle.dumps(ce))
    other = duplicate(ce)
    assert repr(other) == repr(ce)
    with pytest.raises(RuntimeError):
        other.backward()
    other(LOGITS, LABELS)
    second = other.backward()
    assert not np.may_share_memory(first, second)
    np.testing.assert_array_equal(first, second)
    assert other.backward() is second


def test_an_error_leaves_the_array_of_the_layer() -> None:
    ce = fastce.CrossEntropyLoss(reuse_grad=True)
    ce(LOGITS, LABELS)
    first = ce.backward()
    with pytest.raises(ValueError, match="upstream"):
        ce.backward(np.ones(20))
    assert ce.backward() is first
