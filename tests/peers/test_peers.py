"""The same numbers from other libraries: PyTorch on random combinations of all its options, the test cases of the ONNX
operators, tables that optax and SciPy publish, the multinomial loss of scikit-learn. Each test is skipped where its
package is not installed. Tolerances are those of the peers, which lose digits to cancellation, as in p - 1."""

from __future__ import annotations

import importlib
import warnings

import numpy as np
import pytest
from functions import DTYPES, dtypes, numbers, soft_targets
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracle import assert_within, exact, needs_longdouble
from oracle_curvature import exact_grad_hess

import fastce

F32, F64 = np.float32, np.float64
INF, NAN = np.inf, np.nan


def _peer(name):
    """The module. Skips the test if it is not installed. Warnings of its import are ignored."""
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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "ignore_index": 1, "reduction": "sum"}], ids=str)
@dtypes
def test_torch_compile(options, dtype):
    """The loss and its gradient as one compiled function, as the benchmarks call it."""
    torch = _peer("torch")
    logits = numbers((60, 40), dtype)
    labels = np.arange(60) % 40

    def loss_of(x, targets):
        return torch.nn.functional.cross_entropy(x, targets, **options)

    torch._dynamo.reset()
    compiled = torch.compile(torch.func.grad_and_value(loss_of), dynamic=False, fullgraph=True)
    try:
        their_grad, theirs = compiled(torch.from_numpy(logits), torch.from_numpy(labels))
    except Exception as error:  # there are many reasons, and each has its own class
        pytest.skip(f"torch.compile fails here: {type(error).__name__}: {error}")
    loss, grad = fastce.cross_entropy_with_grad(logits, labels, **options)
    eps = np.finfo(dtype).eps
    assert float(loss) == pytest.approx(theirs.item(), rel=float(1e3 * eps))
    np.testing.assert_allclose(grad, their_grad.numpy(), rtol=1e3 * eps, atol=1e2 * eps)


def test_torch_differs_on_ignored_rows_that_hold_nan():
    """A documented difference: the gradient of such a row is NaN in PyTorch, and 0 here."""
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
    # Where both differ from the exact values, fastce differs less.
    want = exact(logits, labels, **options)
    assert_within(loss, want.loss)
    assert_within(grad, want.grad, more=1)  # one more rounding: the sample weight
    assert np.abs(loss - want.loss.value).max() <= np.abs(theirs - want.loss.value).max()

    theirs = losses.HalfMultinomialLoss(n_classes=7).gradient_hessian(labels.astype(dtype), logits, sample_weight)
    mine = fastce.cross_entropy_grad_hess(logits, labels, **options)
    for got, their_result, number in zip(mine, theirs, exact_grad_hess(logits, labels, **options), strict=True):
        np.testing.assert_allclose(got, their_result, **tolerance)
        assert_within(got, number, more=1)
        assert np.abs(got - number.value).max() <= np.abs(their_result - number.value).max()


# ---------------------------------------------------------------------------------------------------------------------
# softmax, log_softmax, logsumexp and their gradients: SciPy and PyTorch
# ---------------------------------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("masked", [0, 0.3])
def test_scipy_softmax_log_softmax_and_logsumexp(masked, axis, dtype):
    scipy = _peer("scipy.special")
    rng = np.random.default_rng(8)
    x = (rng.normal(size=(4, 5, 6)) * 5).astype(dtype)
    x[rng.random(x.shape) < masked] = -INF
    tolerance = {"rtol": 60 * np.finfo(dtype).eps, "atol": 8 * np.finfo(dtype).eps}  # theirs: (|x| + log C) eps
    with np.errstate(all="ignore"):
        theirs = scipy.softmax(x, axis), scipy.log_softmax(x, axis), scipy.logsumexp(x, axis)
    np.testing.assert_allclose(fastce.softmax(x, axis=axis), theirs[0], **tolerance)
    np.testing.assert_allclose(fastce.log_softmax(x, axis=axis), theirs[1], **tolerance)
    np.testing.assert_allclose(fastce.logsumexp(x, axis=axis), theirs[2], **tolerance)


def test_scipy_and_torch_on_logsumexp_of_infinities():
    """All three say that an empty sum has the logarithm -inf, and a sum with an infinite term +inf."""
    x = np.array([[-INF, -INF], [INF, 0], [INF, -INF], [INF, INF], [NAN, INF]])
    want = [-INF, INF, INF, INF, NAN]
    np.testing.assert_array_equal(fastce.logsumexp(x), want)
    np.testing.assert_array_equal(_peer("scipy.special").logsumexp(x, axis=-1), want)
    torch = _peer("torch")
    np.testing.assert_array_equal(torch.logsumexp(torch.from_numpy(x), -1).numpy(), want)


@dtypes
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_torch_forward_and_backward(name, axis, dtype):
    torch = _peer("torch")
    rng = np.random.default_rng(9)
    x, upstream = (rng.normal(size=(4, 70, 6)).astype(dtype) for _ in range(2))
    theirs_x = torch.from_numpy(x).requires_grad_()
    theirs = getattr(torch.nn.functional, name)(theirs_x, dim=axis)
    theirs.backward(torch.from_numpy(upstream))
    y = getattr(fastce, name)(x, axis=axis)
    tolerance = {"rtol": 60 * np.finfo(dtype).eps, "atol": 60 * np.finfo(dtype).eps}
    np.testing.assert_allclose(y, theirs.detach().numpy(), **tolerance)
    grad = getattr(fastce, f"{name}_grad")(upstream, y, axis=axis)
    np.testing.assert_allclose(grad, theirs_x.grad.numpy(), **tolerance)


# ---------------------------------------------------------------------------------------------------------------------
# The two-term form: PyTorch and SciPy
# ---------------------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([0.1, 1, 5, 30]),
    hard=st.booleans(),
    weighted=st.booleans(),
    positive=st.booleans(),
    reduction=st.sampled_from(["mean", "sum", "none"]),
)
def test_torch_binary_cross_entropy_on_all_its_options(seed, shape, dtype, scale, hard, weighted, positive, reduction):
    torch = _peer("torch")
    rng = np.random.default_rng(seed)
    z, c = (rng.normal(size=shape) * scale).astype(dtype), rng.random(shape).astype(dtype)
    c = np.round(c) if hard else c
    options = {"reduction": reduction}
    if weighted:  # theirs broadcasts: along the last axis it is that of the classes
        options["weight"] = rng.uniform(0.1, 3, shape[-1]).astype(dtype)
    if positive:
        options["pos_weight"] = rng.uniform(0.1, 3, shape[-1]).astype(dtype)
    upstream = rng.normal(size=shape) if reduction == "none" else rng.normal()
    x = torch.from_numpy(z).requires_grad_()
    tensors = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(x, torch.from_numpy(c), **tensors)
    (their_grad,) = torch.autograd.grad(theirs, x, torch.as_tensor(upstream, dtype=x.dtype).expand_as(theirs))
    loss, grad = fastce.binary_cross_entropy_with_grad(z, c, **options, upstream=upstream)
    eps = np.finfo(dtype).eps
    room = 16 * eps * (1 + np.abs(z).max()) * 9  # their cancellation; weights of up to 3, twice
    elements = z.size if reduction == "sum" else 1
    np.testing.assert_allclose(loss, theirs.detach().numpy(), rtol=16 * eps, atol=room * elements)
    np.testing.assert_allclose(grad, their_grad.numpy(), rtol=16 * eps, atol=room * np.abs(upstream).max())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_torch_derives_the_two_term_form_of_softmax(axis):
    """Automatic differentiation of the formula as it is written, where it is stable enough: float64, |z| < 4."""
    torch = _peer("torch")
    rng = np.random.default_rng(8)
    z, c = rng.uniform(-4, 4, (5, 6, 7)), rng.random((5, 6, 7))
    x, t = torch.from_numpy(z).requires_grad_(), torch.from_numpy(c)
    p = torch.softmax(x, dim=axis)
    theirs = -(t * p.log() + (1 - t) * (1 - p).log()).sum(dim=axis).mean()
    theirs.backward()
    loss, grad = fastce.binary_cross_entropy_with_grad(z, c, activation="softmax", axis=axis)
    assert loss == pytest.approx(theirs.item(), rel=1e-13)
    np.testing.assert_allclose(grad, x.grad.numpy(), rtol=1e-11, atol=1e-14)


@dtypes
def test_scipy_two_term_form(dtype):
    special = _peer("scipy.special")
    z, c = numbers((40, 12), dtype), soft_targets((40, 12), dtype)
    eps = np.finfo(dtype).eps
    wide, c_wide = z.astype(F64), c.astype(F64)
    got, grad = fastce.binary_cross_entropy_with_grad(z, c, reduction="none")
    losses = -c_wide * special.log_expit(wide) - (1 - c_wide) * special.log_expit(-wide)
    np.testing.assert_allclose(got, losses, rtol=20 * eps, atol=0)
    np.testing.assert_allclose(grad, special.expit(wide) - c_wide, rtol=20 * eps, atol=20 * eps)
    p = special.softmax(wide, axis=1)
    losses = -(special.xlogy(c_wide, p) + special.xlog1py(1 - c_wide, -p)).sum(axis=1)
    got = fastce.binary_cross_entropy(z, c, activation="softmax", reduction="none")
    np.testing.assert_allclose(got, losses, rtol=30 * eps, atol=0)
