"""The same numbers from other people's programs: PyTorch on random combinations of all its options, the ONNX operators'
test cases, optax's and SciPy's published tables, scikit-learn's multinomial loss. Each runs where its package is
installed and is skipped with that reason elsewhere. Tolerances are those of the peers, which lose digits to p - 1."""

from __future__ import annotations

import importlib
import warnings

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracle import assert_within, exact, needs_longdouble

import fastce

F32, F64 = np.float32, np.float64


def _peer(name):
    """The module, or a skip that says what is missing. Importing a peer may warn; that is its own business."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"compares with {name}, which is not installed", exc_type=ImportError)


# ---------------------------------------------------------------------------------------------------------------------
# PyTorch
# ---------------------------------------------------------------------------------------------------------------------


@st.composite
def torch_calls(draw):
    """Arguments of torch's cross_entropy: (C,), (N, C) or (N, C, d1, ..., dk) logits, both kinds of targets."""
    classes = draw(st.integers(1, 9) | st.sampled_from([16, 33, 65, 130]))
    positions = draw(st.lists(st.integers(1, 4), max_size=3))
    shape = [classes] if draw(st.integers(0, 5)) == 0 else [draw(st.integers(1, 5)), classes, *positions]
    dtype = draw(st.sampled_from([F32, F64]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale, offset = draw(st.sampled_from([0.1, 1, 5, 20])), draw(st.integers(-30, 30))
    logits = (rng.normal(size=shape) * scale + offset).astype(dtype)
    axis = 0 if len(shape) == 1 else 1
    options = {
        "weight": rng.uniform(0.1, 3, classes).astype(dtype) if draw(st.booleans()) else None,
        "label_smoothing": draw(st.sampled_from([0.0, 0.0, 0.1, 0.5, 1.0])),
        "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
    }
    if draw(st.booleans()):
        targets = rng.integers(0, classes, np.delete(shape, axis))
        options["ignore_index"] = draw(st.sampled_from([-100, -1, 0, classes - 1, classes + 7]))
        ignored = rng.random(targets.shape) < draw(st.sampled_from([0, 0.3, 1]))
        targets = np.where(ignored, options["ignore_index"], targets)
    else:
        targets = rng.random(shape).astype(dtype)
        if draw(st.booleans()):
            targets /= targets.sum(axis=axis, keepdims=True)
    upstream = draw(st.floats(-3, 3))
    if options["reduction"] == "none":
        upstream = rng.normal(size=np.delete(shape, axis))
    order = draw(st.sampled_from("CF"))
    return np.asarray(logits, order=order), targets, options, upstream, axis


EVERYTHING = {"weight": np.array([0.5, 2, 1]), "label_smoothing": 0.2, "reduction": "mean", "ignore_index": 1}
SEGMENTATION = np.linspace(-4, 4, 36).reshape(2, 3, 2, 3)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(call=torch_calls())
@example(call=(SEGMENTATION, np.arange(12).reshape(2, 2, 3) % 3, EVERYTHING, 0.5, 1))
def test_torch_on_all_its_options(call):
    torch = _peer("torch")
    logits, targets, options, upstream, axis = call
    dtype = logits.dtype
    x = torch.from_numpy(np.ascontiguousarray(logits)).requires_grad_()
    theirs = torch.nn.functional.cross_entropy(
        x,
        torch.from_numpy(np.asarray(targets)),
        **options | {"weight": None if options["weight"] is None else torch.from_numpy(options["weight"])},
    )
    (their_grad,) = torch.autograd.grad(theirs, x, torch.as_tensor(upstream, dtype=x.dtype).expand_as(theirs))
    loss, grad = fastce.cross_entropy_with_grad(logits, targets, **options, axis=axis, upstream=upstream)

    if options["reduction"] == "mean" and np.isnan(loss):  # the mean of nothing; their gradient is then NaN
        assert (np.asarray(targets) == options["ignore_index"]).all() and np.isnan(theirs.item())
        assert (grad == 0).all()
        return
    # their cancellation: eps of the largest logit, of lse and of Q, in every term
    mass = np.sum(targets, axis=axis).max() if np.ndim(targets) == logits.ndim else 1
    heaviest = 1 if options["weight"] is None else options["weight"].max()
    room = 8 * np.finfo(dtype).eps * (10 + np.abs(logits).max()) * (1 + mass) * heaviest
    rows = logits.size / logits.shape[axis] if options["reduction"] == "sum" else 1
    np.testing.assert_allclose(loss, theirs.detach().numpy(), rtol=16 * np.finfo(dtype).eps, atol=room * rows)
    size = np.abs(upstream).max()
    np.testing.assert_allclose(grad, their_grad.numpy(), rtol=16 * np.finfo(dtype).eps, atol=room * size)


def test_torch_differs_on_ignored_rows_that_hold_nan():
    """A documented difference: there the gradient of such a row is NaN, here it is 0."""
    torch = _peer("torch")
    logits, labels = np.array([[1.0, 2.0], [np.nan, 0.0]]), np.array([0, -100])
    x = torch.from_numpy(logits).requires_grad_()
    torch.nn.functional.cross_entropy(x, torch.from_numpy(labels)).backward()
    loss, grad = fastce.cross_entropy_with_grad(logits, labels)
    assert loss == pytest.approx(np.log1p(np.e), rel=1e-15)
    assert np.isnan(x.grad.numpy()[1]).any() and (grad[1] == 0).all()


# ---------------------------------------------------------------------------------------------------------------------
# ONNX
# ---------------------------------------------------------------------------------------------------------------------

# How many cases the operators had when this was written; all of them apply. (The suite's "_expanded" cases are the same
# numbers for a graph of simpler operators, which is nothing that a function could run.)
ONNX_CASES = {"SoftmaxCrossEntropyLoss": 34, "NegativeLogLikelihoodLoss": 18}
ONNX_MODULES = {
    "SoftmaxCrossEntropyLoss": "softmax_cross_entropy_loss",
    "NegativeLogLikelihoodLoss": "negativeloglikelihoodloss",
}


def _onnx_cases(operator, monkeypatch):
    """Name, attributes, inputs and outputs of each case: the suite's modules hand them to `expect` when imported."""
    _peer("onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        suite = importlib.import_module("onnx.backend.test.case.node")
        helper = importlib.import_module("onnx.helper")
        cases = []
        monkeypatch.setattr(
            suite, "expect", lambda node, inputs, outputs, name, **_: cases.append((name, node, inputs, outputs))
        )
        monkeypatch.delitem(importlib.sys.modules, f"{suite.__name__}.{ONNX_MODULES[operator]}", raising=False)
        importlib.import_module(f"{suite.__name__}.{ONNX_MODULES[operator]}")
    return [
        (name, {a.name: helper.get_attribute_value(a) for a in node.attribute}, inputs, outputs)
        for name, node, inputs, outputs in cases
        if node.op_type == operator
    ]


def _onnx_options(attributes, weight=None):
    reduction = attributes.get("reduction", b"mean").decode()
    return {"weight": weight, "ignore_index": attributes.get("ignore_index"), "reduction": reduction, "axis": 1}


def _softmax_cross_entropy_loss(attributes, logits, labels, weight=None):
    loss = fastce.cross_entropy(logits, labels, **_onnx_options(attributes, weight))
    _, stats = fastce.cross_entropy(logits, np.zeros_like(labels), axis=1, return_stats=True)
    return loss, logits - np.expand_dims(stats.row_max + np.log1p(stats.tail), 1)


def _negative_log_likelihood_loss(attributes, log_p, labels, weight=None):
    """Beside a class at 64 the others, at most 1, have no probability: the loss is 64 - x there, less that of x = 0."""
    options = _onnx_options(attributes, None if weight is None else np.append(weight, 0))
    far = np.full_like(log_p[:, :1], 64, dtype=F64)
    at_x, at_0 = (np.concatenate([x.astype(F64), far], axis=1) for x in (log_p, np.zeros_like(log_p)))
    return (fastce.cross_entropy(at_x, labels, **options) - fastce.cross_entropy(at_0, labels, **options),)


@pytest.mark.parametrize(
    "operator, adapter",
    [
        ("SoftmaxCrossEntropyLoss", _softmax_cross_entropy_loss),
        ("NegativeLogLikelihoodLoss", _negative_log_likelihood_loss),
    ],
)
def test_onnx_operator_cases(operator, adapter, monkeypatch):
    cases = _onnx_cases(operator, monkeypatch)
    assert len(cases) >= ONNX_CASES[operator]
    for name, attributes, inputs, outputs in cases:
        got = adapter(attributes, *inputs)
        assert len(outputs) <= len(got), name
        for ours, theirs in zip(got, outputs, strict=False):
            assert np.shape(ours) == np.shape(theirs), name
            # their values are computed in float32, with sums of up to 6480 rows
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6, err_msg=name)


# ---------------------------------------------------------------------------------------------------------------------
# optax: its published table, which needs no package
# ---------------------------------------------------------------------------------------------------------------------

INF = np.inf
# optax/losses/_classification_test.py, SafeSoftmaxCrossEntropyTest: logits, targets, loss to about six digits
OPTAX = [
    ([10.0, 1.0, -2.0], [0.0, 1.0, 0.0], 9.00013),
    ([1.0, 4.0, 0.2], [1.0, 0.0, 0.0], 3.0696733),
    ([-INF, 0.0, 0.0], [0.0, 0.5, 0.5], 0.693147),
    ([-INF, 0.0, 0.0], [0.4, 0.3, 0.3], INF),
    ([-INF, 0.0, -INF], [0.0, 1.0, 0.0], 0.0),
]


@pytest.mark.parametrize("dtype", [F32, F64])
def test_optax_table_of_masked_logits(dtype):
    logits, targets, expected = (np.array(column, dtype) for column in zip(*OPTAX, strict=True))
    loss, grad = fastce.cross_entropy_with_grad(logits, targets, reduction="none")
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert np.isfinite(grad).all()
    one_hot = [0, 1, 4]
    labels = targets[one_hot].argmax(axis=1)
    np.testing.assert_allclose(
        fastce.cross_entropy(logits[one_hot], labels, reduction="none"), expected[one_hot], rtol=1e-6
    )


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("size", [5, 10, 100])
def test_optax_mask_equals_leaving_the_classes_out(size, dtype):
    """optax's test_mask: the loss over a subset of classes is that of -inf in the others."""
    rng = np.random.default_rng(size)
    logits, targets = rng.normal(size=size).astype(dtype), rng.dirichlet(np.ones(size)).astype(dtype)
    kept = rng.random(size) < 0.5
    loss, grad = fastce.cross_entropy_with_grad(logits[kept], targets[kept])
    masked, masked_grad = fastce.cross_entropy_with_grad(
        np.where(kept, logits, dtype(-INF)), np.where(kept, targets, dtype(0))
    )
    eps = float(np.finfo(dtype).eps)
    assert masked == pytest.approx(loss, rel=8 * eps)
    np.testing.assert_allclose(masked_grad[kept], grad, rtol=0, atol=8 * eps)
    assert (masked_grad[~kept] == 0).all()


# ---------------------------------------------------------------------------------------------------------------------
# SciPy
# ---------------------------------------------------------------------------------------------------------------------

# scipy/special/tests/test_log_softmax.py: logits, log_softmax
FROM_0_TO_3 = [-3.4401896985611953, -2.4401896985611953, -1.4401896985611953, -0.44018969856119533]
SCIPY = [
    ([1000.0, 1.0], [0.0, -999.0]),
    ([0.0, 1.0, 2.0, 3.0], FROM_0_TO_3),
    ([1000.0, 1001.0, 1002.0, 1003.0], FROM_0_TO_3),
]


@pytest.mark.parametrize("logits, log_softmax", SCIPY)
def test_scipy_table_of_log_softmax(logits, log_softmax):
    for label, expected in enumerate(log_softmax):
        assert fastce.cross_entropy(np.array(logits), label) == pytest.approx(-expected, rel=4e-16)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("scale", [1, 100, 1e4])
def test_scipy_log_softmax_and_logsumexp(scale, dtype):
    special = _peer("scipy.special")
    logits = (np.random.default_rng(1).normal(size=(30, 20)) * scale).astype(dtype)
    labels = np.arange(30) % 20
    loss, stats = fastce.cross_entropy(logits, labels, reduction="none", return_stats=True)
    tolerance = {"rtol": 8 * np.finfo(dtype).eps, "atol": 8 * np.finfo(dtype).eps * np.abs(logits).max()}
    np.testing.assert_allclose(-loss, special.log_softmax(logits, axis=1)[np.arange(30), labels], **tolerance)
    np.testing.assert_allclose(stats.row_max + np.log1p(stats.tail), special.logsumexp(logits, axis=1), **tolerance)


# ---------------------------------------------------------------------------------------------------------------------
# scikit-learn
# ---------------------------------------------------------------------------------------------------------------------


@needs_longdouble
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("weighted", [False, True])
def test_scikit_learn_multinomial_loss(weighted, order, dtype):
    """Rows of gradient boosting and of logistic regression: scores in either order, sample weights."""
    losses = _peer("sklearn._loss")
    rng = np.random.default_rng(2)
    logits = np.asarray(rng.normal(size=(60, 7)) * 5, dtype, order=order)
    labels = rng.integers(0, 7, 60)
    sample_weight = rng.uniform(0.1, 2, 60).astype(dtype) if weighted else None
    theirs, their_grad = losses.HalfMultinomialLoss(n_classes=7).loss_gradient(
        labels.astype(dtype), logits, sample_weight=sample_weight
    )
    options = {"sample_weight": sample_weight, "reduction": "none"}
    loss, grad = fastce.cross_entropy_with_grad(logits, labels, **options)
    tolerance = {"rtol": 8 * np.finfo(dtype).eps, "atol": 32 * np.finfo(dtype).eps}
    np.testing.assert_allclose(loss, theirs, **tolerance)
    np.testing.assert_allclose(grad, their_grad, **tolerance)
    # and where both differ from the exact values, it is by less here
    want = exact(logits, labels, **options)
    assert_within(loss, want.loss, "loss of row")
    assert_within(grad, want.grad, "gradient", more=1)  # one more rounding: the sample weight
    assert np.abs(loss - want.loss.value).max() <= np.abs(theirs - want.loss.value).max()
