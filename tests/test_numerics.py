"""The accuracy contract, asserted: relative errors of (4 + gap) eps in the loss and at the label, (4 + |x_j - row_max|)
eps in every other element of the gradient; on confident rows, at large offsets, over a million classes, down into the
subnormal numbers, with every option on, and in both memory layouts that the kernels treat differently."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

import fastce

from .oracle import (
    CONTRACT_ULPS,
    LD,
    OPTION_ULPS,
    Exact,
    assert_gradient,
    assert_losses,
    exact,
    exact_row,
    needs_longdouble,
)

pytestmark = needs_longdouble

F32, F64 = np.float32, np.float64
GAPS = {F32: np.arange(1, 86), F64: np.arange(1, 701)}
SUBNORMAL_GAPS = {F32: np.linspace(85, 103, 73), F64: np.linspace(706, 744, 153)}
CLASSES = [2, 3, 4, 9, 17, 64, 65, 130]


def _rows(x):
    return x, {}


def _fortran(x):
    return np.asfortranarray(x), {}


def _axis0(x):
    return np.ascontiguousarray(x.T), {"axis": 0}


def _middle(x):
    """As (1, C, n): classes on the middle axis, contiguous positions."""
    return np.ascontiguousarray(x.T)[None], {"axis": 1}


LAYOUTS = [_rows, _fortran, _axis0, _middle]
dtypes = pytest.mark.parametrize("dtype", [F32, F64], ids=["f32", "f64"])
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__.strip("_"))


def _targets_like(logits, targets, axis):
    """Labels of n rows, or probabilities of (n, C), in the shape that goes with the logits."""
    if np.ndim(targets) == 2:
        return np.moveaxis(np.asarray(targets), -1, axis).reshape(logits.shape)
    return np.reshape(targets, np.delete(logits.shape, axis))


def _check(x, targets, layout, *, ulps=CONTRACT_ULPS, **options) -> Exact:
    """Loss and gradient of every row of x within the contract; returns the exact ones."""
    logits, where = layout(x)
    axis = where.get("axis", -1)
    targets = _targets_like(logits, targets, axis)
    if np.ndim(options.get("sample_weight")):
        options["sample_weight"] = np.reshape(options["sample_weight"], np.delete(logits.shape, axis))
    options |= where | {"reduction": "none"}
    want = exact(logits, targets, **options)
    loss, grad = fastce.cross_entropy_with_grad(logits, targets, **options)
    assert_losses(loss, want, ulps=ulps)
    assert_gradient(grad, want, ulps=ulps, axis=axis)
    forward, stats = fastce.cross_entropy(logits, targets, **options, return_stats=True)
    assert_losses(forward, want, ulps=ulps)
    backward = fastce.cross_entropy_grad(logits, targets, **options, stats=stats)
    assert_gradient(backward, want, ulps=ulps + 1, axis=axis)  # stats are rounded once
    return want


def _confident(gaps, classes, dtype, rng=None):
    """One row for each gap: the maximum stands anywhere, the others lie at 0 (or spread downwards from it)."""
    x = np.zeros((len(gaps), classes), dtype)
    if rng is not None:
        x[:, :] = -rng.exponential(2, x.shape)
        x -= x.max(axis=1, keepdims=True)
    top = np.arange(len(gaps)) * 7 % classes
    at = np.arange(len(gaps)), top
    if rng is not None:  # the runner-up stays at 0
        x[at[0], (top + 1) % classes] = 0
    x[at] = gaps
    return x, top


# ---------------------------------------------------------------------------------------------------------------------
# The oracle itself
# ---------------------------------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("kind", ["index", "probabilities"])
def test_oracle_agrees_with_the_definition(kind, dtype):
    """The longdouble tail form against p = exp(x)/sum(exp(x)) at 400 digits, from gap 1 to 700."""
    rng = np.random.default_rng(1)
    gaps = np.array([0.5, 5, 20, 85, 300, 700] if dtype is F64 else [0.5, 5, 20, 85, 100])
    x, top = _confident(gaps, 5, dtype, rng)
    weight = rng.random(5).astype(dtype)
    room = np.finfo(F64).eps / 50  # a fiftieth of what is to be measured
    targets = top if kind == "index" else np.eye(5)[top]
    for options in ({}, {"weight": weight}, {"label_smoothing": 0.1, "weight": weight, "z_loss": 0.01}):
        want = exact(x, targets, reduction="none", **options)
        for i, row in enumerate(x):
            loss, grad = exact_row(row, targets[i], **options)
            assert abs(want.rows[i] - LD(mpmath.nstr(loss, 30))) <= room * want.row_scale[i]
            for j, value in enumerate(grad):
                assert abs(want.grad[i, j] - LD(mpmath.nstr(value, 30))) <= room * want.grad_scale[i, j]


@dtypes
def test_oracle_allows_no_more_than_the_table_says(dtype):
    """Without options an error is relative to the number itself: the loss, and each element of the gradient."""
    x, top = _confident(GAPS[dtype], 6, dtype, np.random.default_rng(2))
    want = exact(x, top, reduction="none")
    np.testing.assert_allclose(want.row_scale.astype(F64), want.rows.astype(F64), rtol=1e-15)
    np.testing.assert_allclose(want.grad_scale.astype(F64), np.abs(want.grad).astype(F64), rtol=1e-15)
    np.testing.assert_array_equal(want.gap, GAPS[dtype])


# ---------------------------------------------------------------------------------------------------------------------
# The table
# ---------------------------------------------------------------------------------------------------------------------


@dtypes
@layouts
@pytest.mark.parametrize("classes", CLASSES)
def test_confident_rows(classes, layout, dtype):
    for rng in (None, np.random.default_rng(3)):
        x, top = _confident(GAPS[dtype], classes, dtype, rng)
        want = _check(x, top, layout)
        assert want.rows.min() > 0 and want.rows[..., -1].max() < 1e-30  # what others round to 0
        wrong = (top + 1) % classes
        want = _check(x, wrong, layout)
        # the target is not the argmax: the table's bound for the loss is 4 eps
        logits, where = layout(x)
        labels = _targets_like(logits, wrong, where.get("axis", -1))
        losses = fastce.cross_entropy(logits, labels, reduction="none", **where)
        assert_losses(losses, want, gap=0)


@dtypes
@layouts
@pytest.mark.parametrize("classes", [2, 5, 65, 1000])
@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4, 1e6, 1e8, -1e4, -1e8])
def test_offsets(offset, classes, layout, dtype):
    """A constant that is exact in the dtype changes no bound: the logits are multiples of the offset's last place."""
    rng = np.random.default_rng(4)
    grid = float(max(np.spacing(dtype(abs(offset) * 2)), np.spacing(dtype(64))))
    x = np.round(-rng.exponential(4, (150, classes)) / grid) * grid
    x[:, 0] = 0
    shifted = (x + offset).astype(dtype)
    assert (shifted.astype(F64) - offset == x).all()
    labels = rng.integers(0, classes, 150)
    labels[::2] = 0
    _check(shifted, labels, layout)
    plain = fastce.cross_entropy(x.astype(dtype), labels, reduction="none")
    np.testing.assert_allclose(
        fastce.cross_entropy(shifted, labels, reduction="none"), plain, rtol=10 * np.finfo(dtype).eps, atol=0
    )


@dtypes
@pytest.mark.parametrize("layout", [_rows, _axis0], ids=["rows", "axis0"])
@pytest.mark.parametrize("power", [0, 2, 6, 10, 14, 18, 20])
def test_many_classes(power, layout, dtype):
    """Equal terms are rounded alike, so that nothing averages out: a float32 running sum drifts by C/2 eps."""
    classes = 1 << power
    rng = np.random.default_rng(power)
    x = np.zeros((4, classes), dtype)
    x[1] = rng.normal(size=classes)
    x[2, classes // 3] = 20.3 + np.log(classes)  # exp(-gap) is not a number of few bits
    x[3] = -0.1
    x[3, 0] = 0
    if power == 20:
        x = x[2:]  # the constant rows
    labels = np.argmax(x, axis=1)
    _check(x, labels, layout)
    if power <= 16:
        _check(x, np.full(len(x), classes - 1), layout)


@dtypes
@layouts
@pytest.mark.parametrize("classes", CLASSES)
def test_random_rows_and_every_label(classes, layout, dtype):
    rng = np.random.default_rng(5)
    n = 2 * classes + 133
    x = (rng.normal(size=(n, classes)) * rng.choice([0.1, 1, 10, 30], (n, 1))).astype(dtype)
    _check(x, np.arange(len(x)) % classes, layout)


@dtypes
@layouts
@pytest.mark.parametrize("classes", [2, 4, 9, 65, 130])
def test_underflow_is_gradual(classes, layout, dtype):
    """Past the smallest normal number errors are a few of the smallest subnormal, and nothing is flushed to zero."""
    gaps = SUBNORMAL_GAPS[dtype]
    x, top = _confident(gaps, classes, dtype)
    logits, where = layout(x)
    axis = where.get("axis", -1)
    labels = _targets_like(logits, top, axis)
    loss, grad = fastce.cross_entropy_with_grad(logits, labels, reduction="none", **where)
    want = exact(logits, labels, reduction="none", **where)
    step = LD(np.finfo(dtype).smallest_subnormal)
    bound = (CONTRACT_ULPS + want.gap) * LD(np.finfo(dtype).eps)
    # the loss and the label's element are sums of classes - 1 terms, each rounded by up to a step, then themselves
    at_label = classes
    assert (np.abs(loss - want.rows) <= bound * want.rows + at_label * step).all()
    allowed = np.expand_dims(bound, axis) * np.abs(want.grad) + np.where(want.distance == 0, at_label, 2) * step
    assert (np.abs(grad - want.grad) <= allowed).all()
    exact_is_not_zero = np.abs(want.grad) > 2 * step
    assert (grad[exact_is_not_zero] != 0).all() and (loss[want.rows > at_label * step] != 0).all()
    assert ((np.abs(grad) > 0) & (np.abs(grad) < np.finfo(dtype).tiny)).any()


@dtypes
@layouts
def test_upstream_and_weights_keep_small_gradients(layout, dtype):
    """Factors multiply the finished number: a gradient of 1e-33 (f32) is as accurate after scaling up as before."""
    x, top = _confident(GAPS[dtype][::5], 7, dtype)
    logits, where = layout(x)
    axis = where.get("axis", -1)
    labels = _targets_like(logits, top, axis)
    for upstream in (2.0**20, 0.3, 2.0**-10):
        want = exact(logits, labels, reduction="sum", upstream=upstream, **where)
        grad = fastce.cross_entropy_grad(logits, labels, reduction="sum", upstream=upstream, **where)
        assert_gradient(grad, want, axis=axis, ulps=CONTRACT_ULPS + 1)


# ---------------------------------------------------------------------------------------------------------------------
# The same with options
# ---------------------------------------------------------------------------------------------------------------------


def _options(name, rows, classes, dtype):
    rng = np.random.default_rng(6)
    every = {
        "weight": (rng.random(classes) + 0.1).astype(dtype),
        "sample_weight": (rng.random(rows) + 0.1).astype(dtype),
        "label_smoothing": 0.1,
        "z_loss": 1e-3,
    }
    return every if name == "all" else {name: every[name]}


option_names = pytest.mark.parametrize("name", ["weight", "sample_weight", "label_smoothing", "z_loss", "all"])


@dtypes
@layouts
@option_names
@pytest.mark.parametrize("classes", [2, 9, 65, 130])
def test_confident_rows_with_options(classes, name, layout, dtype):
    x, top = _confident(GAPS[dtype], classes, dtype, np.random.default_rng(7))
    options = _options(name, len(x), classes, dtype)
    for labels in (top, (top + 1) % classes):
        _check(x, labels, layout, ulps=CONTRACT_ULPS + OPTION_ULPS, **options)


@dtypes
@layouts
@pytest.mark.parametrize("classes", [2, 9, 65, 130])
def test_confident_rows_with_one_hot_targets(classes, layout, dtype):
    """A one-hot row is its index: p - c at the target must not cancel either."""
    x, top = _confident(GAPS[dtype], classes, dtype, np.random.default_rng(8))
    for labels in (top, (top + 1) % classes):
        one_hot = np.zeros(x.shape, dtype)
        one_hot[np.arange(len(x)), labels] = 1
        _check(x, one_hot, layout)
        _check(x, one_hot, layout, ulps=CONTRACT_ULPS + OPTION_ULPS, **_options("weight", len(x), classes, dtype))


@dtypes
@layouts
@option_names
@pytest.mark.parametrize("classes", [3, 65, 5000])
def test_probabilities_with_options(classes, name, layout, dtype):
    """Targets near the prediction, far from it, and nearly one-hot: 1e-6 and less beside nearly 1."""
    rng = np.random.default_rng(9)
    n = 60 if classes < 1000 else 6
    x = (rng.normal(size=(n, classes)) * rng.choice([1, 10], (n, 1))).astype(dtype)
    c = np.exp(x - x.max(axis=1, keepdims=True)) ** rng.choice([1, 3], (n, 1))
    c[::3] = rng.random((len(c[::3]), classes))
    c = (c / c.sum(axis=1, keepdims=True)).astype(dtype)
    _check(x, c, layout, ulps=CONTRACT_ULPS + OPTION_ULPS, **_options(name, n, classes, dtype))


@dtypes
@pytest.mark.parametrize("layout", [_rows, _axis0], ids=["rows", "axis0"])
@pytest.mark.parametrize("power", [10, 14, 18])
@pytest.mark.parametrize("kind", ["index", "probabilities"])
def test_many_classes_with_options(kind, power, layout, dtype):
    classes = 1 << power
    rng = np.random.default_rng(10)
    x = rng.normal(size=(2, classes)).astype(dtype)
    x[1] = -0.1
    x[1, classes // 3] = 0
    targets = np.argmax(x, axis=1) if kind == "index" else np.full(x.shape, 1 / 3 / classes, dtype)
    _check(x, targets, layout, ulps=CONTRACT_ULPS + OPTION_ULPS, **_options("all", 2, classes, dtype))


@dtypes
@layouts
@pytest.mark.parametrize("offset", [1e4, 1e8, -1e8])
def test_offsets_with_options(offset, layout, dtype):
    rng = np.random.default_rng(11)
    grid = float(max(np.spacing(dtype(abs(offset) * 2)), np.spacing(dtype(64))))
    x = (np.round(rng.normal(0, 9, (150, 10)) / grid) * grid + offset).astype(dtype)
    labels = rng.integers(0, 10, 150)
    _check(x, labels, layout, ulps=CONTRACT_ULPS + OPTION_ULPS, **_options("all", 150, 10, dtype))


@dtypes
@layouts
@pytest.mark.parametrize("classes", [3, 65, 130])
def test_weight_on_few_classes(classes, layout, dtype):
    """All but one class weigh little or nothing: what smoothing leaves to the others is not Q - q, rounded."""
    x, top = _confident(GAPS[dtype], classes, dtype)
    weight = np.full(classes, 1e-9, dtype)
    weight[1:3] = 1, 0
    for labels in (top, (top + 1) % classes):
        for smoothing in (1e-6, 0.5):
            options = {"weight": weight, "label_smoothing": smoothing}
            _check(x, labels, layout, ulps=CONTRACT_ULPS + OPTION_ULPS, **options)


@layouts
@pytest.mark.parametrize("classes, gap", [(1000, 88.0), (1000, 94.0), (2**18, 95.0), (2**18, 99.0)])
def test_sums_of_terms_below_the_smallest_normal_number(classes, gap, layout):
    """Each exponential is subnormal or nearly so, and rounded alone would lose its digits; their sum is normal."""
    x = np.full((1, classes), -gap, F32)
    x[0, 0] = 0
    tail = (classes - 1) * np.exp(-LD(F32(gap)))
    assert tail > np.finfo(F32).tiny
    logits, where = layout(x)
    labels = np.zeros(np.delete(logits.shape, where.get("axis", -1)), int)
    loss, grad = fastce.cross_entropy_with_grad(logits, labels, **where)
    bound = (4 + gap) * np.finfo(F32).eps
    assert abs(loss / tail - 1) <= bound
    assert abs(-grad.ravel()[0] / tail - 1) <= bound
