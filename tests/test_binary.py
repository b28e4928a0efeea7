"""The two-term form -sum c log p + (1-c) log(1-p): values by hand, accuracy against exact ones up to |z| of 10,000 and
beyond, finite differences, PyTorch's and SciPy's numbers, properties of any input, special numbers, every kind of
array, shared memory, wrong calls, instruction sets and threads. What is by hand or about special numbers holds for the
NumPy reference as well, and is asserted of both."""

from __future__ import annotations

import math
import warnings
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import fastce
import fastce.reference

from .isa import AVAILABLE, computed_with
from .oracle import (
    CONTRACT_ULPS,
    LD,
    OPTION_ULPS,
    assert_binary,
    assert_room,
    exact_binary,
    exact_binary_row,
    needs_longdouble,
)
from .test_arrays import LAYOUTS, NOT_ONE_STRIDE, SAME_MEMORY, SHIFTS, WALKABLE, peak_bytes

F32, F64 = np.float32, np.float64
INF, NAN = math.inf, math.nan
DTYPES = [F32, F64]
ACTIVATIONS = ["sigmoid", "softmax"]
SHAPES = [(1, 1), (7, 3), (33, 10), (200, 17), (5, 300), (3, 4097)]
CLASSES = [2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 129, 1000, 4097]
GAPS = {F32: np.arange(1, 86), F64: np.arange(1, 701)}
BY_HAND = {F32: 2e-6, F64: 4e-15}  # a handful of roundings of numbers near 1
INFINITE_GAPS = [110.0, 800.0, 2e3, 1e4]  # where exp(-gap) is 0 in float32, or in either

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "f64"])
activations = pytest.mark.parametrize("activation", ACTIVATIONS)


@pytest.fixture(params=[fastce, fastce.reference], ids=["fastce", "reference"])
def bce(request):
    return request.param


def _close(got, want, dtype):
    np.testing.assert_allclose(got, want, rtol=BY_HAND[dtype], atol=BY_HAND[dtype])


def numbers(shape, dtype=F32, seed=0):
    return np.random.default_rng(seed).uniform(-7, 7, shape).astype(dtype)


def soft_targets(shape, dtype=F32, seed=1):
    """In [0, 1], some of them 0 and 1."""
    return np.clip(np.random.default_rng(seed).uniform(-0.4, 1.4, shape), 0, 1).astype(dtype)


def check(logits, targets, *, more=0, **options):
    """Unreduced losses and their gradient within the contract, fused and alone. Returns the exact ones."""
    options |= {"reduction": "none"}
    want = exact_binary(logits, targets, **options)
    loss, grad = fastce.binary_cross_entropy_with_grad(logits, targets, **options)
    assert_binary(loss, grad, want, more=more)
    forward = {name: value for name, value in options.items() if name != "upstream"}
    assert_binary(fastce.binary_cross_entropy(logits, targets, **forward), None, want, more=more)
    return want


# ---------------------------------------------------------------------------------------------------------------------
# By hand
# ---------------------------------------------------------------------------------------------------------------------


@dtypes
class TestSigmoidByHand:
    # sigmoid([0, log 3, -log 3, log 9]) is
    p = np.array([0.5, 0.75, 0.25, 0.9])

    def logits(self, dtype):
        return np.log(np.array([[1, 3, 1 / 3, 9]])).astype(dtype)

    def test_losses_of_elements(self, bce, dtype):
        c = np.array([[1, 1, 0, 0]], dtype)
        loss, grad = bce.binary_cross_entropy_with_grad(self.logits(dtype), c, reduction="none")
        _close(loss, [-np.log([0.5, 0.75, 0.75, 0.1])], dtype)
        _close(grad, self.p - c, dtype)

    def test_soft_targets(self, bce, dtype):
        c = np.array([[0.5, 0.25, 1, 0.125]], dtype)
        loss, grad = bce.binary_cross_entropy_with_grad(self.logits(dtype), c, reduction="none")
        _close(loss, -(c * np.log(self.p) + (1 - c) * np.log(1 - self.p)), dtype)
        _close(grad, self.p - c, dtype)

    def test_mean_is_over_all_elements(self, bce, dtype):
        c = np.array([[1, 1, 0, 0], [0, 0, 1, 1]], dtype)
        x = np.repeat(self.logits(dtype), 2, axis=0)
        losses = -np.log(np.where(c == 1, self.p, 1 - self.p))
        loss, grad = bce.binary_cross_entropy_with_grad(x, c)
        _close(loss, losses.sum() / 8, dtype)
        _close(grad, (self.p - c) / 8, dtype)
        loss, grad = bce.binary_cross_entropy_with_grad(x, c, normalizer=2.5, upstream=-3)
        _close(loss, losses.sum() / 2.5, dtype)
        _close(grad, -3 * (self.p - c) / 2.5, dtype)
        loss, grad = bce.binary_cross_entropy_with_grad(x, c, reduction="sum")
        _close(loss, losses.sum(), dtype)
        _close(grad, self.p - c, dtype)

    def test_weights_multiply_and_do_not_count(self, bce, dtype):
        """As in PyTorch: the mean's denominator is the number of elements, whatever the weights."""
        c = np.array([[1, 1, 0, 0], [0, 0, 1, 1]], dtype)
        x = np.repeat(self.logits(dtype), 2, axis=0)
        losses = -np.log(np.where(c == 1, self.p, 1 - self.p))
        weight, sample_weight = np.array([1, 2, 3, 4], dtype), np.array([2, 0.5], dtype)
        factor = weight * sample_weight[:, None]
        loss, grad = bce.binary_cross_entropy_with_grad(x, c, weight=weight, sample_weight=sample_weight)
        _close(loss, (factor * losses).sum() / 8, dtype)
        _close(grad, factor * (self.p - c) / 8, dtype)

    def test_pos_weight_multiplies_the_first_term(self, bce, dtype):
        c, positive = np.array([[1, 0.5, 0, 0.25]], dtype), np.array([2, 3, 4, 0], dtype)
        loss, grad = bce.binary_cross_entropy_with_grad(self.logits(dtype), c, pos_weight=positive, reduction="none")
        _close(loss, -(positive * c * np.log(self.p) + (1 - c) * np.log(1 - self.p)), dtype)
        _close(grad, (1 - c) * self.p - positive * c * (1 - self.p), dtype)

    def test_upstream_of_each_element(self, bce, dtype):
        c, upstream = np.array([[1, 1, 0, 0]], dtype), np.array([[1, -2, 0, 3]], dtype)
        given = {"reduction": "none", "upstream": upstream}
        loss, grad = bce.binary_cross_entropy_with_grad(self.logits(dtype), c, **given)
        _close(loss, [-np.log([0.5, 0.75, 0.75, 0.1])], dtype)
        _close(grad, upstream * (self.p - c), dtype)
        _, grad = bce.binary_cross_entropy_with_grad(self.logits(dtype), c, reduction="none", upstream=2)
        _close(grad, 2 * (self.p - c), dtype)

    def test_classes_on_another_axis(self, bce, dtype):
        x, c = self.logits(dtype).T, np.array([[1], [0], [1], [0.5]], dtype)
        weight, positive = np.array([1, 2, 3, 4], dtype), np.array([4, 3, 2, 1], dtype)
        given = {"weight": weight, "pos_weight": positive, "sample_weight": np.array([2], dtype)}
        loss, grad = bce.binary_cross_entropy_with_grad(x, c, **given, axis=0)
        other, other_grad = bce.binary_cross_entropy_with_grad(x.T, c.T, **given)
        _close(loss, other, dtype)
        _close(grad, other_grad.T, dtype)

    def test_is_the_one_term_form_of_two_classes(self, bce, dtype):
        """sigmoid(z) is the second of softmax([0, z])."""
        z = np.linspace(-30, 30, 13).astype(dtype)
        both = np.stack([np.zeros_like(z), z], axis=1)
        losses = bce.cross_entropy(both, np.ones(13, np.int64), reduction="none")
        _close(bce.binary_cross_entropy(z[:, None], np.ones((13, 1)), reduction="none")[:, 0], losses, dtype)


def _literal(p, c, w):
    """Loss and gradient of a softmax row as the chain rule says, the whole Jacobian."""
    loss = -(w * (c * np.log(p) + (1 - c) * np.log(1 - p))).sum()
    return loss, (np.diag(p) - np.outer(p, p)) @ (w * (-c / p + (1 - c) / (1 - p)))


@dtypes
class TestSoftmaxByHand:
    p = np.array([0.1, 0.2, 0.3, 0.4])

    def logits(self, dtype):
        return np.log(np.array([[1, 2, 3, 4]])).astype(dtype)

    def test_one_hot(self, bce, dtype):
        loss, grad = bce.binary_cross_entropy_with_grad(self.logits(dtype), [[0, 0, 1, 0]], activation="softmax")
        _close(loss, -np.log(0.9 * 0.8 * 0.3 * 0.6), dtype)
        # h = [1/9, 1/4, -1, 2/3], its sum 1/36, grad = h - p/36
        _close(grad, [np.array([1 / 9, 1 / 4, -1, 2 / 3]) - self.p / 36], dtype)

    def test_equal_logits(self, bce, dtype):
        loss, grad = bce.binary_cross_entropy_with_grad(np.zeros((1, 3), dtype), [[1, 0, 0]], activation="softmax")
        _close(loss, math.log(3) - 2 * math.log(2 / 3), dtype)
        _close(grad, [[-1, 0.5, 0.5]], dtype)

    def test_two_classes_are_two_times_the_one_term_form(self, bce, dtype):
        x, labels = np.array([[0.5, -1], [3, 7], [2, 2]], dtype), np.array([0, 1, 1])
        c = np.eye(2, dtype=dtype)[labels]
        loss, grad = bce.binary_cross_entropy_with_grad(x, c, activation="softmax")
        once, grad_once = bce.cross_entropy_with_grad(x, labels)
        _close(loss, 2 * once, dtype)
        _close(grad, 2 * grad_once, dtype)

    def test_one_class(self, bce, dtype):
        given = {"activation": "softmax", "reduction": "none"}
        loss, grad = bce.binary_cross_entropy_with_grad(np.array([[3], [-2]], dtype), [[1], [1]], **given)
        assert (loss == 0).all() and (grad == 0).all()

    @pytest.mark.parametrize("c", [[0, 0, 0, 0], [1, 1, 1, 1], [0.5, 0, 1, 0.25], [0, 1, 1, 0]])
    def test_any_targets(self, bce, dtype, c):
        """They need not sum to 1."""
        w = np.array([1, 2, 0.5, 3])
        loss, grad = bce.binary_cross_entropy_with_grad(
            self.logits(dtype), np.array([c], dtype), activation="softmax", weight=w.astype(dtype)
        )
        want, want_grad = _literal(self.p, np.array(c), w)
        _close(loss, want, dtype)
        _close(grad, [want_grad], dtype)

    def test_reductions_are_over_rows(self, bce, dtype):
        x = np.concatenate([self.logits(dtype), self.logits(dtype)[:, ::-1]])
        c = np.array([[0, 0, 1, 0], [1, 0, 0, 0]], dtype)
        (one, one_grad), (two, two_grad) = _literal(self.p, c[0], 1), _literal(self.p[::-1], c[1], 1)
        losses, grads = np.array([one, two]), np.array([one_grad, two_grad])
        sample_weight = np.array([3, 0.5], dtype)
        call = bce.binary_cross_entropy_with_grad
        for options, factor in (
            ({"reduction": "mean"}, np.array([0.5, 0.5])),
            ({"reduction": "sum"}, np.array([1, 1])),
            ({"reduction": "mean", "normalizer": 5.0}, np.array([0.2, 0.2])),
            ({"reduction": "mean", "sample_weight": sample_weight}, sample_weight / 3.5),
            ({"reduction": "mean", "sample_weight": sample_weight, "normalizer": 4}, sample_weight / 4),
            ({"reduction": "sum", "sample_weight": sample_weight, "upstream": 2}, sample_weight),
        ):
            loss, grad = call(x, c, activation="softmax", **options)
            _close(loss, factor @ losses, dtype)
            _close(grad, options.get("upstream", 1) * factor[:, None] * grads, dtype)
        upstream = np.array([-1, 2], dtype)
        loss, grad = call(x, c, activation="softmax", reduction="none", sample_weight=sample_weight, upstream=upstream)
        _close(loss, sample_weight * losses, dtype)
        _close(grad, (sample_weight * upstream)[:, None] * grads, dtype)

    def test_class_weights_do_not_count_in_the_mean(self, bce, dtype):
        weight = np.full(4, 3, dtype)
        given = {"activation": "softmax"}
        plain = bce.binary_cross_entropy(self.logits(dtype), [[0, 0, 1, 0]], **given)
        _close(bce.binary_cross_entropy(self.logits(dtype), [[0, 0, 1, 0]], weight=weight, **given), 3 * plain, dtype)

    def test_axis(self, bce, dtype):
        x = np.concatenate([self.logits(dtype), self.logits(dtype)[:, ::-1]])
        c = np.array([[0, 0, 1, 0], [1, 0, 0, 0]], dtype)
        given = {"activation": "softmax", "weight": np.array([1, 2, 3, 4], dtype)}
        loss, grad = bce.binary_cross_entropy_with_grad(x, c, **given)
        other, other_grad = bce.binary_cross_entropy_with_grad(x.T, c.T, **given, axis=0)
        _close(other, loss, dtype)
        _close(other_grad, grad.T, dtype)


# ---------------------------------------------------------------------------------------------------------------------
# The accuracy contract
# ---------------------------------------------------------------------------------------------------------------------


def _rounded(number):
    with mpmath.workdps(30):
        return LD(mpmath.nstr(+number, 30))


@needs_longdouble
@dtypes
@activations
def test_oracle_agrees_with_the_definition(activation, dtype):
    """The longdouble forms against p, log p and the Jacobian to the letter, at 800 digits, from gap 0.5 to 700."""
    rng = np.random.default_rng(1)
    room = np.finfo(F64).eps / 50  # a fiftieth of what is to be measured
    for gap in (0.0, 0.5, 5, 20, 85, *((300, 700) if dtype is F64 else ())):
        x = -rng.exponential(2, 5)
        x[rng.integers(5)] = gap
        x = x.astype(dtype)
        top = np.argmax(x)
        for c in (np.eye(5)[top], np.eye(5)[top - 1], rng.random(5), np.array([0, 1, 1, 0, 1])):
            c = c.astype(dtype)
            for options in ({}, {"weight": rng.random(5)}, {"pos_weight": rng.random(5), "weight": rng.random(5)}):
                if activation == "softmax" and "pos_weight" in options:
                    continue
                want = exact_binary(x, c, activation=activation, reduction="none", **options)
                losses, grad = exact_binary_row(x, c, activation=activation, **options)
                for mine, true, size in zip(np.ravel(want.parts), losses, np.ravel(want.parts_size), strict=True):
                    assert abs(mine - _rounded(true)) <= room * size
                for mine, true, size in zip(want.grad, grad, want.grad_size, strict=True):
                    assert abs(mine - _rounded(true)) <= room * size


@needs_longdouble
@pytest.mark.parametrize("gap", [2e3, 1e4])
def test_oracle_agrees_with_the_definition_where_exp_underflows(gap):
    x = np.array([0.5, gap, 0.0])
    for c in np.eye(3):
        want = exact_binary(x, c, activation="softmax", reduction="none")
        losses, grad = exact_binary_row(x, c, activation="softmax", digits=int(gap) + 50)
        assert abs(want.parts - _rounded(losses[0])) <= 1e-17 * want.parts_size
        for mine, true, size in zip(want.grad, grad, want.grad_size, strict=True):
            assert abs(mine - _rounded(true)) <= 1e-17 * size


@needs_longdouble
@dtypes
class TestSigmoidAccuracy:
    def z(self, dtype):
        z = np.concatenate([[0, 1e-30, 1e-7, 0.1], np.linspace(0.5, 120, 240), np.geomspace(120, 1e4, 60), [1e30]])
        return np.concatenate([-z[::-1], z]).astype(dtype)[:, None]

    @pytest.mark.parametrize("target", [0.0, 1.0])
    def test_from_the_middle_to_ten_thousand(self, dtype, target):
        """With targets of 0 and 1 errors are relative to the number itself."""
        z = self.z(dtype)
        want = check(z, np.full_like(z, target))
        np.testing.assert_allclose(want.parts_size.astype(F64), want.parts.astype(F64), rtol=1e-15)
        np.testing.assert_allclose(want.grad_size.astype(F64), np.abs(want.grad).astype(F64), rtol=1e-15)
        assert not np.isinf(fastce.binary_cross_entropy(z, np.full_like(z, target), reduction="none")).any()

    def test_gradient_of_a_confident_element_is_not_zero(self, dtype):
        """p - 1 is 0 there. It is -sigmoid(-z), down to the smallest subnormal."""
        z = np.linspace(10, 100 if dtype is F32 else 740, 91).astype(dtype)[:, None]
        loss, grad = fastce.binary_cross_entropy_with_grad(z, np.ones_like(z), reduction="sum")
        assert (grad < 0).all() and loss > 0
        want = -np.exp(-z.astype(LD)) / (1 + np.exp(-z.astype(LD)))
        assert_room(grad, want, (CONTRACT_ULPS + z) * -want, "gradient")
        loss, grad = fastce.binary_cross_entropy_with_grad(-z, np.zeros_like(z), reduction="none")
        assert (grad > 0).all() and (loss > 0).all()

    @pytest.mark.parametrize("classes", CLASSES)
    def test_soft_targets(self, dtype, classes):
        rng = np.random.default_rng(2)
        z = (rng.normal(size=(25, classes)) * rng.choice([0.1, 1, 10, 100], (25, 1))).astype(dtype)
        check(z, soft_targets(z.shape, dtype))
        check(z, rng.random(z.shape) < 0.5)

    @pytest.mark.parametrize("name", ["pos_weight", "weight", "sample_weight", "upstream", "all"])
    def test_options(self, dtype, name):
        rng = np.random.default_rng(3)
        z = (rng.normal(size=(60, 17)) * rng.choice([1, 10, 100], (60, 1))).astype(dtype)
        every = {
            "pos_weight": rng.random(17).astype(dtype) * 9,
            "weight": rng.random(17).astype(dtype),
            "sample_weight": rng.random(60).astype(dtype),
            "upstream": rng.normal(size=(60, 17)).astype(dtype),
        }
        options = every if name == "all" else {name: every[name]}
        for c in (soft_targets(z.shape, dtype), z > 0, z < 0):
            check(z, c, more=OPTION_ULPS, **options)

    def test_targets_near_one_of_higher_precision(self, dtype):
        """1 - c is formed before c is rounded: float32 logits with float64 targets keep the second term."""
        z = np.linspace(-5, 50, 56).astype(dtype)[:, None]
        c = np.full(z.shape, 1 - 1e-10)
        want = exact_binary(z, c, reduction="none")
        loss, grad = fastce.binary_cross_entropy_with_grad(z, c, reduction="none")
        # c itself may be rounded to the logits' dtype; 1 - c may be rounded, not lost
        room = (CONTRACT_ULPS + 2) * want.parts_size + want.parts_extra
        assert_room(loss, want.parts, room, "loss")
        assert_room(grad, want.grad, (CONTRACT_ULPS + 2) * want.grad_size + want.grad_extra, "gradient")


def _confident(gaps, classes, dtype, seed=3):
    """One row for each gap: the maximum stands anywhere, the runner-up at 0, the others spread downwards from it."""
    x = -np.random.default_rng(seed).exponential(2, (len(gaps), classes))
    x -= x.max(axis=1, keepdims=True)
    rows, top = np.arange(len(gaps)), np.arange(len(gaps)) * 7 % classes
    x[rows, (top + 1) % classes] = 0
    x[rows, top] = gaps
    return x.astype(dtype), top


@needs_longdouble
@dtypes
class TestSoftmaxAccuracy:
    @pytest.mark.parametrize("classes", [2, 3, 4, 9, 17, 64, 65, 130])
    @pytest.mark.parametrize("axis", [-1, 0])
    def test_confident_rows(self, dtype, classes, axis):
        x, top = _confident(GAPS[dtype], classes, dtype)
        for label in (top, (top + 1) % classes, (top + 2) % classes):
            c = np.eye(classes, dtype=dtype)[label]
            if axis == 0:
                check(np.ascontiguousarray(x.T), np.ascontiguousarray(c.T), activation="softmax", axis=0)
            else:
                want = check(x, c, activation="softmax")
        if axis == -1 and classes > 2:
            c = np.eye(classes, dtype=dtype)[top]
            want = check(x, c, activation="softmax")
            assert 0 < want.parts[-1] < 1e-30  # what others round to 0
            # right and confident: terms have one sign where it counts, errors are relative to the number itself
            assert (want.grad_size < 3 * np.abs(want.grad))[5:].all()

    @pytest.mark.parametrize("classes", [2, 3, 9, 65, 130])
    @pytest.mark.parametrize("gap", INFINITE_GAPS)
    def test_where_the_tail_underflows(self, dtype, classes, gap):
        """p is 1 and 1 - p is 0 in the dtype; log(1-p) is not -inf, nor is p/(1-p) inf."""
        x, top = _confident(np.array([gap]), classes, dtype)
        for c in (np.eye(classes, dtype=dtype), soft_targets((classes, classes), dtype)):
            rows = np.repeat(x, classes, axis=0)
            want = check(rows, c, activation="softmax")
            assert np.isfinite(want.parts).all() and np.isfinite(want.grad).all()
        wrong = np.eye(classes, dtype=dtype)[(top + 1) % classes]
        loss, grad = fastce.binary_cross_entropy_with_grad(x, wrong, activation="softmax", reduction="none")
        # gap for the label; for the maximum gap - log(sum of the others), which lies within log(classes) below
        assert 2 * gap - math.log(classes) <= loss[0] * (1 + 1e-6) and loss[0] <= 2 * gap * (1 + 1e-6)
        assert grad[0, top[0]] == pytest.approx(2, rel=1e-6)
        assert grad.sum() == pytest.approx(0, abs=1e-5)

    @pytest.mark.parametrize("classes", CLASSES)
    def test_random_rows_and_targets(self, dtype, classes):
        rng = np.random.default_rng(classes)
        n = 40 if classes < 1000 else 6
        x = (rng.normal(size=(n, classes)) * rng.choice([0.1, 1, 10, 30], (n, 1))).astype(dtype)
        one_hot = np.eye(classes, dtype=dtype)[rng.integers(0, classes, n)]
        for c in (one_hot, soft_targets(x.shape, dtype), rng.random(x.shape) < 0.1, np.zeros_like(x), np.ones_like(x)):
            check(x, c, activation="softmax")
            check(np.ascontiguousarray(x.T), np.ascontiguousarray(c.T), activation="softmax", axis=0)

    @pytest.mark.parametrize("name", ["weight", "sample_weight", "upstream", "all"])
    @pytest.mark.parametrize("classes", [3, 17, 130])
    def test_options(self, dtype, classes, name):
        x, top = _confident(GAPS[dtype][::4], classes, dtype)
        rng = np.random.default_rng(4)
        every = {
            "weight": rng.random(classes).astype(dtype),
            "sample_weight": rng.random(len(x)).astype(dtype),
            "upstream": rng.normal(size=len(x)).astype(dtype),
        }
        options = {"activation": "softmax"} | (every if name == "all" else {name: every[name]})
        eye = np.eye(classes, dtype=dtype)
        for c in (eye[top], eye[(top + 1) % classes], soft_targets(x.shape, dtype)):
            check(x, c, more=OPTION_ULPS, **options)

    @pytest.mark.parametrize("offset", [1e4, 1e8, -1e4, -1e8])
    def test_offsets(self, dtype, offset):
        grid = float(max(np.spacing(dtype(abs(offset) * 2)), np.spacing(dtype(64))))
        x = (np.round(np.random.default_rng(5).normal(0, 9, (60, 10)) / grid) * grid + offset).astype(dtype)
        check(x, np.eye(10, dtype=dtype)[np.arange(60) % 10], activation="softmax")
        check(x, soft_targets(x.shape, dtype), activation="softmax")

    @pytest.mark.parametrize("power", [10, 14, 17])
    def test_many_classes(self, dtype, power):
        classes = 1 << power
        x = np.full((2, classes), -0.1, dtype)
        x[0, 0], x[1, classes // 3] = 0, 20.3 + np.log(classes)
        c = np.zeros_like(x)
        c[:, classes // 3] = 1
        check(x, c, activation="softmax")
        check(x, np.full_like(x, 1 / classes), activation="softmax")


@dtypes
@pytest.mark.parametrize("gap", [3e4, 1e10, 1e30])
def test_softmax_form_far_beyond(bce, gap, dtype):
    """Where longdouble underflows as well. The other three share what the maximum does not have."""
    x, third = np.array([[0, gap, 0, 0]], dtype), 1 / 3
    for label, (loss, grad) in enumerate(
        [
            (2 * gap, [-1 - third, 2, -third, -third]),
            (0, [0, 0, 0, 0]),
            (2 * gap, [-third, 2, -1 - third, -third]),
            (2 * gap, [-third, 2, -third, -1 - third]),
        ]
    ):
        c = np.eye(4, dtype=dtype)[[label]]
        got, got_grad = bce.binary_cross_entropy_with_grad(x, c, activation="softmax")
        assert got == pytest.approx(loss, rel=1e-4)  # log 3 less
        _close(got_grad, [grad], dtype)


@needs_longdouble
@dtypes
@activations
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("shape", [(1, 3), (130, 17), (13, 10, 40), (3000, 5)])
def test_reductions_are_those_of_the_elements(shape, reduction, activation, dtype):
    rng = np.random.default_rng(6)
    x, c = numbers(shape, dtype), soft_targets(shape, dtype)
    options = {"activation": activation, "reduction": reduction}
    for weights in ({}, {"weight": rng.random(shape[-1]), "sample_weight": rng.random(shape[:-1])}):
        want = exact_binary(x, c, **options, **weights, upstream=0.7)
        loss, grad = fastce.binary_cross_entropy_with_grad(x, c, **options, **weights, upstream=0.7)
        assert type(loss) is dtype
        assert fastce.binary_cross_entropy(x, c, **options, **weights) == loss
        room = (want.ulps + OPTION_ULPS) * want.parts_size.sum() + want.parts_extra.sum()
        room = room / want.parts.sum() * np.finfo(dtype).eps + want.parts.size * np.finfo(F64).eps
        assert abs(loss - want.loss) <= room * want.loss
        assert_binary(None, grad, want, more=OPTION_ULPS)


# Textbook formulas: a few eps of numbers of size 10, in sums of 30 rows.
TEXTBOOK = {F32: 4e-5, F64: 8e-14}


@needs_longdouble
@dtypes
@activations
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reference_is_right(reduction, axis, activation, dtype):
    rng = np.random.default_rng(10)
    shape = (5, 4, 6)
    rest = np.delete(shape, axis)
    x, c = numbers(shape, dtype), soft_targets(shape, dtype)
    options: dict[str, Any] = {"activation": activation, "reduction": reduction, "axis": axis}
    options |= {"weight": rng.random(shape[axis]).astype(dtype), "sample_weight": rng.random(rest).astype(dtype)}
    if activation == "sigmoid":
        options["pos_weight"] = rng.random(shape[axis]).astype(dtype)
    upstream: Any = 0.75
    if reduction == "none":
        upstream = rng.normal(size=shape if activation == "sigmoid" else rest).astype(dtype)
    want = exact_binary(x, c, **options, upstream=upstream)
    loss = fastce.reference.binary_cross_entropy(x, c, **options)
    call = fastce.reference.binary_cross_entropy_with_grad
    fused, grad = call(x, c, **options, upstream=upstream)
    close = {"rtol": TEXTBOOK[dtype], "atol": TEXTBOOK[dtype]}
    np.testing.assert_allclose(fused, np.asarray(want.loss).astype(dtype), **close)
    np.testing.assert_allclose(grad, want.grad.astype(dtype), **close)
    np.testing.assert_array_equal(loss, fused)
    assert loss.dtype == fused.dtype == grad.dtype == dtype
    for i in (0, 1):  # in place of the logits, of the targets
        given = [x.copy(), c.copy()]
        assert call(*given, **options, upstream=upstream, out=given[i])[1] is given[i]
        np.testing.assert_array_equal(given[i], grad)


# ---------------------------------------------------------------------------------------------------------------------
# Derivatives, peers
# ---------------------------------------------------------------------------------------------------------------------


@activations
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("classes", [2, 3, 40])
def test_finite_differences(classes, reduction, activation):
    """The gradient is that of the loss that is returned: 4th-order central differences, every target and weight."""
    rng = np.random.default_rng(7)
    x, c = rng.normal(size=(3, classes)), rng.random((3, classes))
    c[0] = np.eye(classes)[-1]
    options = {"activation": activation, "reduction": reduction, "weight": rng.random(classes) + 0.5}
    options["sample_weight"] = rng.random(3)
    if activation == "sigmoid":
        options["pos_weight"] = rng.random(classes) * 3
    upstream = 1.5
    if reduction == "none":
        upstream = rng.normal(size=x.shape if activation == "sigmoid" else 3)
    _, grad = fastce.binary_cross_entropy_with_grad(x, c, upstream=upstream, **options)
    h = 1e-3  # the method's error is h^4/30 times the fifth derivative, rounding is eps*loss/h: each below 1e-10

    def objective(x):
        return np.sum(fastce.binary_cross_entropy(x, c, **options) * upstream)

    for i, j in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i, j] = h
        difference = 8 * (objective(x + step) - objective(x - step))
        difference -= objective(x + 2 * step) - objective(x - 2 * step)
        assert difference / (12 * h) == pytest.approx(grad[i, j], abs=1e-9)


def _peer(name):
    """The module, or a skip that says what is missing. Importing a peer may warn; that is its own business."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"compares with {name}, which is not installed", exc_type=ImportError)


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
def test_torch_on_all_its_options(seed, shape, dtype, scale, hard, weighted, positive, reduction):
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
def test_torch_derives_the_softmax_form(axis):
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
def test_scipy(dtype):
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


# ---------------------------------------------------------------------------------------------------------------------
# Any input
# ---------------------------------------------------------------------------------------------------------------------

SETTINGS = settings(max_examples=120, deadline=None, derandomize=True)


@st.composite
def calls(draw, masked=True):
    """Logits of (n, C), of numbers near 0, large, repeated or masked; targets of (n, C), many of them 0 and 1."""
    dtype = draw(st.sampled_from(DTYPES))
    width = np.finfo(dtype).bits
    shape = draw(st.integers(1, 5)), draw(st.integers(2, 12) | st.sampled_from([63, 64, 65, 130]))
    values = st.floats(-60, 60, width=width) | st.sampled_from([0.0, -0.0, 1.0, 1e-6, 500.0, -500.0, 1e4])
    if masked:
        values |= st.just(-INF)
    values = values.map(lambda value: float(dtype(value)))
    x = draw(hnp.arrays(dtype, shape, elements=values, fill=st.floats(-3, 3, width=width)))
    x[np.isneginf(x).all(axis=1), 0] = 0
    numbers = st.sampled_from([0.0, 1.0]) | st.floats(0, 1, width=width)
    return x, draw(hnp.arrays(dtype, shape, elements=numbers, fill=st.just(0.0)))


@needs_longdouble
@SETTINGS
@given(call=calls())
def test_anything_is_within_the_contract(call):
    x, c = call
    for activation in ACTIVATIONS:
        check(x, c, activation=activation)
        check(np.asfortranarray(x), c, activation=activation)
        check(np.ascontiguousarray(x.T), np.ascontiguousarray(c.T), activation=activation, axis=0)


@SETTINGS
@given(call=calls(masked=False), shift=st.integers(-500, 500))
def test_softmax_form_ignores_shifts_and_its_gradient_sums_to_zero(call, shift):
    x, c = call
    x = (np.round(x.astype(F64) / 2**-8) * 2**-8).astype(x.dtype)
    options = {"activation": "softmax", "reduction": "none"}
    loss, grad = fastce.binary_cross_entropy_with_grad(x, c, **options)
    moved, moved_grad = fastce.binary_cross_entropy_with_grad(x + x.dtype.type(shift), c, **options)
    reach = np.ptp(x, axis=1)
    room = 2 * (8 + reach) * np.finfo(x.dtype).eps
    tiny = 400 * np.finfo(x.dtype).smallest_subnormal
    assert (np.abs(moved - loss) <= room * loss + tiny).all()
    # the terms of the gradient: each class has up to 1 from its own target, the maximum up to all of them
    size = 3 + c.sum(axis=1) + 2 * x.shape[1]
    assert (np.abs(moved_grad - grad) <= (room * size)[:, None]).all()
    assert (np.abs(grad.sum(axis=1, dtype=F64)) <= room * size).all()
    assert (loss >= 0).all()


@SETTINGS
@given(call=calls(masked=False), data=st.data())
def test_sigmoid_form_is_elementwise(call, data):
    x, c = call
    losses, grad = fastce.binary_cross_entropy_with_grad(x, c, reduction="none")
    at = data.draw(st.integers(0, x.shape[0] - 1)), data.draw(st.integers(0, x.shape[1] - 1))
    other = x.copy()
    other[at] = data.draw(st.sampled_from([-3.0, 0.5, 800.0, NAN, INF]))
    changed, changed_grad = fastce.binary_cross_entropy_with_grad(other, c, reduction="none")
    same = np.ones(x.shape, bool)
    same[at] = False
    np.testing.assert_array_equal(changed[same], losses[same])
    np.testing.assert_array_equal(changed_grad[same], grad[same])


@SETTINGS
@given(call=calls(masked=False))
def test_sigmoid_form_is_symmetric(call):
    """sigmoid(-z) = 1 - sigmoid(z): negated logits with swapped targets are the same problem."""
    x, c = call
    c = np.round(c * 256) / c.dtype.type(256)  # 1 - c is exact
    losses, grad = fastce.binary_cross_entropy_with_grad(x, c, reduction="none")
    mirrored, mirrored_grad = fastce.binary_cross_entropy_with_grad(-x, 1 - c, reduction="none")
    eps, tiny = np.finfo(x.dtype).eps, 4 * np.finfo(x.dtype).smallest_subnormal
    np.testing.assert_allclose(mirrored, losses, rtol=8 * eps, atol=tiny)
    np.testing.assert_allclose(mirrored_grad, -grad, rtol=8 * eps, atol=8 * eps)
    hard = (c == 0) | (c == 1)
    np.testing.assert_allclose(mirrored_grad[hard], -grad[hard], rtol=8 * eps, atol=tiny)


# ---------------------------------------------------------------------------------------------------------------------
# Infinities, NaN, absent rows
# ---------------------------------------------------------------------------------------------------------------------


@dtypes
class TestSigmoidSpecialNumbers:
    @pytest.mark.parametrize(
        "z, c, loss, grad",
        [
            (INF, 1, 0, 0),
            (INF, 0, INF, 1),
            (INF, 0.25, INF, 0.75),
            (-INF, 0, 0, 0),
            (-INF, 1, INF, -1),
            (-INF, 0.25, INF, -0.25),
            (NAN, 0, NAN, NAN),
            (NAN, 1, NAN, NAN),
            (0, NAN, NAN, NAN),
        ],
    )
    @pytest.mark.parametrize("width", [1, 4, 40, 5000])
    def test_elements(self, bce, dtype, width, z, c, loss, grad):
        x, targets = np.full((2, width), 0.5, dtype), np.full((2, width), 0.5, dtype)
        good, good_grad = bce.binary_cross_entropy_with_grad(x, targets, reduction="none")
        for at in {0, width // 2, width - 1}:
            given, t = x.copy(), targets.copy()
            given[1, at], t[1, at] = z, c
            losses, grads = bce.binary_cross_entropy_with_grad(given, t, reduction="none")
            np.testing.assert_array_equal(losses[1, at], dtype(loss))
            np.testing.assert_array_equal(grads[1, at], dtype(grad))
            others = np.ones(x.shape, bool)
            others[1, at] = False
            np.testing.assert_array_equal(losses[others], good[others])
            np.testing.assert_array_equal(grads[others], good_grad[others])
            total = bce.binary_cross_entropy(given, t, reduction="sum")
            assert np.isnan(total) if np.isnan(loss) else np.isinf(total) == np.isinf(loss)

    def test_zero_weights_take_an_infinite_term_away(self, bce, dtype):
        x, c = np.array([[-INF, INF, 0]], dtype), np.array([[1, 0, 1]], dtype)
        weight = np.array([0, 0, 1], dtype)
        loss, grad = bce.binary_cross_entropy_with_grad(x, c, weight=weight, reduction="sum")
        _close(loss, math.log(2), dtype)
        np.testing.assert_array_equal(grad, [[0, 0, -0.5]])
        x, c = np.array([[-INF, 0, 0]], dtype), np.array([[0.5, 1, 0]], dtype)
        positive = np.array([0, 1, 1], dtype)
        loss, grad = bce.binary_cross_entropy_with_grad(x, c, pos_weight=positive, reduction="sum")
        _close(loss, 2 * math.log(2), dtype)
        np.testing.assert_array_equal(grad, [[0, -0.5, 0.5]])


@dtypes
@pytest.mark.parametrize("width", [4, 100, 5000])
class TestSoftmaxSpecialNumbers:
    given = {"activation": "softmax", "reduction": "none"}

    def test_masked_classes(self, bce, width, dtype):
        """A target of 0 there costs nothing and moves nothing."""
        x, c = np.full((2, width), -INF, dtype), np.zeros((2, width), dtype)
        x[:, 1], x[:, width - 1] = 2, 2
        c[[0, 1], [1, width - 1]] = 1
        loss, grad = bce.binary_cross_entropy_with_grad(x, c, **self.given)
        _close(loss, [2 * math.log(2)] * 2, dtype)
        expected = np.zeros((2, width))
        expected[[0, 1], [1, width - 1]], expected[[0, 1], [width - 1, 1]] = -1, 1
        _close(grad, expected, dtype)
        assert (grad[expected == 0] == 0).all()

    def test_target_on_a_masked_class(self, bce, width, dtype):
        x, c = np.zeros((2, width), dtype), np.zeros((2, width), dtype)
        x[0, 3] = -INF
        c[:, 3] = 1
        loss, grad = bce.binary_cross_entropy_with_grad(x, c, **self.given)
        assert loss[0] == INF and np.isfinite(loss[1])
        # the limit: h is -1 there and 1/(n-1) at the n = width - 1 others, whose p is 1/n
        n = width - 1
        expected = np.full(width, 1 / (n - 1) - (n / (n - 1) - 1) / n)
        expected[3] = -1
        _close(grad[0], expected, dtype)

    def test_only_one_class_left(self, bce, width, dtype):
        x, c = np.full((3, width), -INF, dtype), np.zeros((3, width), dtype)
        x[:, 2] = 5
        c[:, 2] = [1, 1, 0.5]
        c[1, 3] = 0.25
        loss, grad = bce.binary_cross_entropy_with_grad(x, c, **self.given)
        np.testing.assert_array_equal(loss, [0, INF, INF])
        assert (grad[0] == 0).all()
        expected = np.zeros(width)
        expected[2], expected[3] = 0.25, -0.25
        np.testing.assert_array_equal(grad[1], expected)
        assert np.isnan(grad[2]).all()

    @pytest.mark.parametrize(
        "held", [{2: NAN}, {0: INF}, {1: INF, 3: INF}, {1: INF, 2: -INF}, {0: -INF, 2: NAN}, None], ids=str
    )
    def test_bad_rows_are_nan_and_alone(self, bce, width, dtype, held):
        rng = np.random.default_rng(9)
        x, c = rng.normal(size=(5, width)).astype(dtype), np.eye(width, dtype=dtype)[rng.integers(0, width, 5)]
        good, good_grad = bce.binary_cross_entropy_with_grad(x, c, **self.given)
        row = np.full(width, 0.5 if held else -INF)
        for position, value in (held or {}).items():
            row[position] = value
        for i in (0, 2, 4):
            for label in (0, 1, 2, width - 1):
                bad, t, others = x.copy(), c.copy(), np.arange(5) != i
                bad[i], t[i] = row, np.arange(width) == label
                loss, grad = bce.binary_cross_entropy_with_grad(bad, t, **self.given)
                assert np.isnan(loss[i]) and np.isnan(grad[i]).all()
                np.testing.assert_array_equal(loss[others], good[others])
                np.testing.assert_array_equal(grad[others], good_grad[others])

    def test_zero_weights_take_an_infinite_term_away(self, bce, width, dtype):
        x, c, weight = np.zeros((1, width), dtype), np.zeros((1, width), dtype), np.ones(width, dtype)
        x[0, 3], c[0, 3], weight[3] = -INF, 1, 0
        loss, grad = bce.binary_cross_entropy_with_grad(x, c, weight=weight, **self.given)
        n = width - 1
        _close(loss, [-n * math.log1p(-1 / n)], dtype)
        _close(grad, np.zeros((1, width)), dtype)


@dtypes
def test_one_class_that_is_not_certain_costs_infinity(bce, dtype):
    loss, grad = bce.binary_cross_entropy_with_grad(
        np.zeros((2, 1), dtype), np.array([[0], [0.5]]), activation="softmax", reduction="none"
    )
    np.testing.assert_array_equal(loss, [INF, INF])
    assert np.isnan(grad).all()


@dtypes
@activations
@pytest.mark.parametrize("shape", [(0, 5), (0, 1), (3, 0, 5)])
def test_no_rows(bce, shape, activation, dtype):
    x = np.zeros(shape, dtype)
    mean, grad = bce.binary_cross_entropy_with_grad(x, x, activation=activation)
    assert np.isnan(mean)
    assert grad.shape == shape and grad.dtype == dtype
    assert bce.binary_cross_entropy(x, x, activation=activation, reduction="sum") == 0
    losses = bce.binary_cross_entropy(x, x, activation=activation, reduction="none")
    assert losses.shape == (shape if activation == "sigmoid" else shape[:-1])
    assert losses.dtype == dtype


def test_mean_of_rows_without_weight(bce):
    """Softmax form: the mean of nothing is NaN, its gradient zero. Sigmoid form: the elements still count."""
    x, c = numbers((3, 4), F64), np.eye(3, 4)
    nothing = np.zeros(3)
    loss, grad = bce.binary_cross_entropy_with_grad(x, c, activation="softmax", sample_weight=nothing)
    assert np.isnan(loss) and (grad == 0).all()
    loss, grad = bce.binary_cross_entropy_with_grad(x, c, sample_weight=nothing)
    assert loss == 0 and (grad == 0).all()


# ---------------------------------------------------------------------------------------------------------------------
# Every kind of array
# ---------------------------------------------------------------------------------------------------------------------


@needs_longdouble
@activations
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_of_logits_and_targets_changes_no_result(layout, shape, activation):
    plain, plain_c = numbers(shape), soft_targets(shape)
    if shape[-1] == 1 and activation == "softmax":
        plain_c = np.ones_like(plain)
    x, c = LAYOUTS[layout](plain), LAYOUTS[layout](plain_c)
    for pair in ((x, plain_c), (plain, c), (x, c)):
        check(*pair, activation=activation)
    np.testing.assert_array_equal(x, plain)
    np.testing.assert_array_equal(c, plain_c)
    _, grad = fastce.binary_cross_entropy_with_grad(x, c, activation=activation)
    if layout in WALKABLE:
        assert grad.strides == np.empty_like(x).strides


@needs_longdouble
@activations
@pytest.mark.parametrize("kind", ["f4", "f8", "f2", "i1", "u1", "i8", "u8", "?", ">f4", ">f8", ">i4"])
@dtypes
def test_dtype_of_targets_changes_no_result(dtype, kind, activation):
    x = numbers((33, 10), dtype)
    whole = np.random.default_rng(2).integers(0, 2 if np.dtype(kind).kind in "biu" else 5, x.shape)
    plain = whole / (1 if np.dtype(kind).kind in "biu" else 4)  # exact in every dtype, as is 1 - c
    check(x, plain.astype(kind), activation=activation)
    expected = fastce.binary_cross_entropy_with_grad(x, plain.astype(dtype), activation=activation)
    loss, grad = fastce.binary_cross_entropy_with_grad(x, plain.astype(kind), activation=activation)
    assert type(loss) is dtype and grad.dtype == dtype
    np.testing.assert_allclose(loss, expected[0], rtol=8 * np.finfo(dtype).eps)


@activations
@pytest.mark.parametrize("argument", ["weight", "pos_weight", "sample_weight", "upstream"])
@pytest.mark.parametrize("kind", ["f4", "f8", "i4", "?"])
@pytest.mark.parametrize("layout", ["contiguous", "byte-swapped", "unaligned", "all reversed", "every third column"])
def test_layout_and_dtype_of_options_change_no_result(layout, kind, argument, activation):
    if argument == "pos_weight" and activation == "softmax":
        return  # refused: see below
    x, c = numbers((33, 10)), soft_targets((33, 10))
    shape = {"weight": (10,), "pos_weight": (10,), "sample_weight": (33,), "upstream": (33, 10)}[argument]
    if argument == "upstream" and activation == "softmax":
        shape = (33,)
    plain = (np.arange(np.prod(shape)) % 2).reshape(shape)
    vector = LAYOUTS[layout](plain.astype(kind))
    options = {"activation": activation, "reduction": "none"}
    expected = fastce.binary_cross_entropy_with_grad(x, c, **options, **{argument: plain.astype(F64)})
    got = fastce.binary_cross_entropy_with_grad(x, c, **options, **{argument: vector})
    for mine, want in zip(got, expected, strict=True):
        assert mine.tobytes() == want.tobytes()
    np.testing.assert_array_equal(vector, plain)


@needs_longdouble
@activations
@pytest.mark.parametrize("axis", [0, 1, 2, 3, -2, -4])
@pytest.mark.parametrize("layout", ["contiguous", "Fortran", "every second row", "all reversed", "unaligned"])
def test_every_axis_of_every_layout(layout, axis, activation):
    plain, c = numbers((3, 4, 5, 6)), soft_targets((3, 4, 5, 6))
    x = LAYOUTS[layout](plain)
    rest = np.delete(plain.shape, axis)
    options: dict[str, Any] = {"activation": activation, "axis": axis}
    options["weight"] = np.linspace(0.5, 2, plain.shape[axis])
    options["sample_weight"] = numbers(rest, F64) ** 2
    upstream = numbers(plain.shape if activation == "sigmoid" else rest, F64, seed=3)
    if activation == "sigmoid":
        options["pos_weight"] = np.linspace(2, 0.5, plain.shape[axis])
    want = check(x, c, more=OPTION_ULPS, **options, upstream=upstream)
    out = np.zeros_like(x) if layout == "unaligned" else LAYOUTS[layout](np.zeros_like(plain))
    given = {"reduction": "none", "upstream": upstream, "out": out}
    assert fastce.binary_cross_entropy_with_grad(x, c, **options, **given)[1] is out
    assert_binary(None, out, want, more=OPTION_ULPS)


@needs_longdouble
@activations
@pytest.mark.parametrize("shape", [(4, 5, 3), (3, 50, 10), (2, 7, 300), (4, 1, 70)])
@pytest.mark.parametrize("layout", NOT_ONE_STRIDE)
def test_three_dimensions_whose_rows_have_no_common_stride(layout, shape, activation):
    plain, plain_c = numbers(shape), soft_targets(shape)
    x, c = NOT_ONE_STRIDE[layout](plain), NOT_ONE_STRIDE[layout](plain_c)
    for pair in ((x, plain_c), (plain, c), (x, c)):
        check(*pair, activation=activation)
        if activation == "sigmoid" or 1 not in shape:
            check(*pair, activation=activation, axis=1)
    np.testing.assert_array_equal(x, plain)
    np.testing.assert_array_equal(c, plain_c)


@activations
@pytest.mark.parametrize("kind", ["?", "i1", "u2", "i8"])
def test_integer_and_bool_logits_are_float64(kind, activation):
    x, c = np.random.default_rng(0).integers(0, 2, (6, 5)).astype(kind), np.eye(6, 5)
    expected, expected_grad = fastce.binary_cross_entropy_with_grad(x.astype(F64), c, activation=activation)
    loss, grad = fastce.binary_cross_entropy_with_grad(x, c, activation=activation)
    assert type(loss) is F64 and grad.dtype == F64
    assert loss == expected and grad.tobytes() == expected_grad.tobytes()
    loss, grad = fastce.binary_cross_entropy_with_grad(x.tolist(), c.tolist(), activation=activation)
    assert loss == expected and grad.tobytes() == expected_grad.tobytes()


@activations
@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 1, 2, 3, 7), (1,) * 6 + (7,)])
def test_any_number_of_dimensions(shape, activation):
    x, c = numbers(shape), soft_targets(shape)
    options = {"activation": activation}
    loss, grad = fastce.binary_cross_entropy_with_grad(x, c, **options)
    flat, flat_grad = fastce.binary_cross_entropy_with_grad(x.reshape(-1, 7), c.reshape(-1, 7), **options)
    assert loss == flat and grad.shape == shape
    assert grad.tobytes() == flat_grad.tobytes()
    losses = fastce.binary_cross_entropy(x, c, reduction="none", **options)
    assert np.shape(losses) == (shape if activation == "sigmoid" else shape[:-1])


@needs_longdouble
@activations
@pytest.mark.parametrize("axes", ["rows", "classes", "both"])
def test_broadcast_arrays(axes, activation):
    small = {"rows": (1, 10), "classes": (33, 1), "both": (1, 1)}[axes]
    x, c = np.broadcast_to(numbers(small), (33, 10)), np.broadcast_to(soft_targets(small), (33, 10))
    assert 0 in x.strides
    check(x, c, activation=activation)
    upstream = np.broadcast_to(F32(0.5), (33, 10) if activation == "sigmoid" else 33)
    check(x, c, activation=activation, upstream=upstream)


# ---------------------------------------------------------------------------------------------------------------------
# Shared memory, copies
# ---------------------------------------------------------------------------------------------------------------------


def _in_place_case(shape, activation):
    x, c = numbers(shape), soft_targets(shape)
    if shape[-1] == 1 and activation == "softmax":
        c = np.ones_like(x)
    options = {"activation": activation, "reduction": "none"}
    return x, c, options, exact_binary(x, c, **options)


@needs_longdouble
@activations
@pytest.mark.parametrize("shape", [*SHAPES, (300, 64), (100, 65)])
@pytest.mark.parametrize("layout", WALKABLE)
def test_in_place_of_logits_and_of_targets(layout, shape, activation):
    plain, plain_c, options, want = _in_place_case(shape, activation)
    x, c = WALKABLE[layout](plain.copy()), WALKABLE[layout](plain_c.copy())
    loss, grad = fastce.binary_cross_entropy_with_grad(x, plain_c, out=x, **options)
    assert grad is x
    assert_binary(loss, grad, want)
    loss, grad = fastce.binary_cross_entropy_with_grad(plain, c, out=c, **options)
    assert grad is c
    assert_binary(loss, grad, want)


@needs_longdouble
@activations
@pytest.mark.parametrize("forward", [True, False], ids=["out behind", "out before"])
@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("shape", [(33, 10), (300, 3), (3, 4097)])
def test_out_shifted_against_an_argument(shape, shift, forward, activation):
    size, by = shape[0] * shape[1], SHIFTS[shift](*shape)
    plain, plain_c, options, want = _in_place_case(shape, activation)
    for argument in ("logits", "targets"):
        both = np.full(size + by, 7, F32)
        given, out = (both[:size], both[by:]) if forward else (both[by:], both[:size])
        given, out = given.reshape(shape), out.reshape(shape)
        given[...] = plain if argument == "logits" else plain_c
        arguments = (given, plain_c) if argument == "logits" else (plain, given)
        loss, _ = fastce.binary_cross_entropy_with_grad(*arguments, out=out, **options)
        assert_binary(loss, out, want)


@needs_longdouble
@activations
@pytest.mark.parametrize("view", SAME_MEMORY)
@pytest.mark.parametrize("n", [5, 40, 300])
def test_out_is_the_same_memory_in_another_order(n, view, activation):
    plain, plain_c, options, want = _in_place_case((n, n), activation)
    x, c = plain.copy(), plain_c.copy()
    loss, out = fastce.binary_cross_entropy_with_grad(x, plain_c, out=SAME_MEMORY[view](x), **options)
    assert_binary(loss, out, want)
    loss, out = fastce.binary_cross_entropy_with_grad(plain, c, out=SAME_MEMORY[view](c), **options)
    assert_binary(loss, out, want)


@needs_longdouble
@activations
@pytest.mark.parametrize("argument", ["weight", "pos_weight", "sample_weight", "upstream"])
@pytest.mark.parametrize("shape", [(40, 40), (300, 300)])
def test_out_shares_memory_with_an_option(shape, argument, activation):
    if argument == "pos_weight" and activation == "softmax":
        return  # refused: see below
    x, c, options, _ = _in_place_case(shape, activation)
    places = [np.s_[0], np.s_[-1], np.s_[:, 0]]
    if argument == "upstream" and activation == "sigmoid":
        places = [np.s_[:]]
    for place in places:
        out = np.ones(shape, F32)
        shared = out[place]
        shared[...] = plain = 1 + np.arange(shared.size, dtype=F32).reshape(shared.shape) / shared.size
        want = exact_binary(x, c, **options, **{argument: plain})
        loss, _ = fastce.binary_cross_entropy_with_grad(x, c, out=out, **options, **{argument: shared})
        assert_binary(loss, out, want, more=OPTION_ULPS)


@needs_longdouble
@activations
def test_logits_targets_and_out_are_one_array(activation):
    for shape in [(40, 10), (6, 300), (3, 4097)]:
        x = soft_targets(shape)
        want = exact_binary(x, x, activation=activation, reduction="none")
        loss, _ = fastce.binary_cross_entropy_with_grad(x, x, out=x, activation=activation, reduction="none")
        assert_binary(loss, x, want)


@activations
@pytest.mark.parametrize("layout", WALKABLE)
@pytest.mark.parametrize("shape", [(40_000, 10), (400, 1000)])
def test_walkable_arrays_are_not_copied(shape, layout, activation):
    x, c = WALKABLE[layout](numbers(shape, F64)), WALKABLE[layout](soft_targets(shape, F64))
    out = np.empty_like(x)
    function = fastce.binary_cross_entropy_with_grad
    function(x[:2], c[:2], activation=activation)
    small_change = 0.3 * x.nbytes  # per-row arrays, scratch
    assert peak_bytes(lambda: fastce.binary_cross_entropy(x, c, activation=activation)) < small_change
    assert peak_bytes(lambda: function(x, c, activation=activation, out=out)) < small_change
    assert peak_bytes(lambda: function(x, c, activation=activation, out=x)) < small_change


# ---------------------------------------------------------------------------------------------------------------------
# Wrong calls
# ---------------------------------------------------------------------------------------------------------------------

X, C = numbers((20, 10)), soft_targets((20, 10))


def _at(size, value):
    vector = np.ones(size)
    vector[3] = value
    return vector


def _read_only():
    out = np.zeros((20, 10), F32)
    out.flags.writeable = False
    return out


WRONG: dict[str, tuple[dict[str, Any], Any, str]] = {
    "logits None": ({"logits": None}, TypeError, "logits .*None"),
    "logits masked": ({"logits": np.ma.masked_array(X, mask=False)}, TypeError, "logits .*mask"),
    "logits float16": ({"logits": X.astype(np.float16)}, TypeError, "logits .*float16.*float32"),
    "logits complex": ({"logits": X.astype(complex)}, TypeError, "logits .*complex128"),
    "logits scalar": ({"logits": F32(1), "targets": F32(1)}, ValueError, "logits .*dimension"),
    "no classes": ({"logits": X[:, :0], "targets": C[:, :0]}, ValueError, "logits .*class"),
    "targets None": ({"targets": None}, TypeError, "targets .*None"),
    "targets masked": ({"targets": np.ma.masked_array(C, mask=False)}, TypeError, "targets .*mask"),
    "targets object": ({"targets": C.astype(object)}, TypeError, "targets .*object"),
    "targets complex": ({"targets": C.astype(complex)}, TypeError, "targets .*complex128"),
    "class indices": ({"targets": np.zeros(20, int)}, ValueError, r"targets .*\(20,\).*\(20, 10\).*one_hot"),
    "targets transposed": ({"targets": C.T}, ValueError, r"targets .*\(10, 20\).*\(20, 10\)"),
    "targets scalar": ({"targets": 1.0}, ValueError, r"targets .*\(\).*\(20, 10\)"),
    "targets column": ({"targets": C[:, :1]}, ValueError, r"targets .*\(20, 1\).*\(20, 10\)"),
    "activation": ({"activation": "relu"}, ValueError, "activation .*'relu'.*'sigmoid'.*'softmax'"),
    "activation None": ({"activation": None}, ValueError, "activation .*None.*'sigmoid'.*'softmax'"),
    "activation list": ({"activation": ["sigmoid"]}, (TypeError, ValueError), "activation "),
    "pos_weight of rows": ({"activation": "softmax", "pos_weight": np.ones(10)}, ValueError, "pos_weight .*sigmoid"),
    "pos_weight shape": ({"pos_weight": np.ones(20)}, ValueError, r"pos_weight .*\(20,\).*\(10,\)"),
    "pos_weight scalar": ({"pos_weight": 2.0}, ValueError, r"pos_weight .*\(\).*\(10,\)"),
    "pos_weight negative": ({"pos_weight": _at(10, -1)}, ValueError, r"pos_weight\[3\] is -1.0"),
    "pos_weight NaN": ({"pos_weight": _at(10, NAN)}, ValueError, r"pos_weight\[3\] is nan"),
    "pos_weight large": ({"pos_weight": _at(10, 1e39)}, ValueError, r"pos_weight\[3\] is 1e\+39.*finite in float32"),
    "weight large": ({"weight": _at(10, 1e39)}, ValueError, r"weight\[3\] is 1e\+39.*finite in float32"),
    "weight shape": ({"weight": np.ones((20, 10))}, ValueError, r"weight .*\(20, 10\).*\(10,\)"),
    "weight infinite": ({"weight": _at(10, INF)}, ValueError, r"weight\[3\] is inf"),
    "weight complex": ({"weight": np.ones(10, complex)}, TypeError, "weight .*complex128"),
    "sample_weight shape": ({"sample_weight": np.ones((20, 10))}, ValueError, r"sample_weight .*\(20, 10\).*\(20,\)"),
    "sample_weight negative": ({"sample_weight": _at(20, -2)}, ValueError, r"sample_weight\[3\] is -2.0"),
    "reduction": ({"reduction": "average"}, ValueError, "reduction .*'average'.*'mean', 'sum' or 'none'"),
    "normalizer and sum": ({"reduction": "sum", "normalizer": 2}, ValueError, "normalizer "),
    "normalizer zero": ({"normalizer": 0}, ValueError, "normalizer .*0"),
    "normalizer NaN": ({"normalizer": NAN}, ValueError, "normalizer .*nan"),
    "normalizer array": ({"normalizer": np.ones(2)}, ValueError, r"normalizer .*\(2,\)"),
    "axis": ({"axis": 2}, ValueError, "axis .*2"),
    "axis float": ({"axis": 0.0}, TypeError, "axis .*0.0"),
    "num_threads": ({"num_threads": 0}, ValueError, "num_threads .*0"),
}
WRONG_GRADIENT: dict[str, tuple[dict[str, Any], Any, str]] = {
    "upstream of a mean": ({"upstream": np.ones(20)}, ValueError, r"upstream .*\(20,\).*scalar"),
    "upstream None": ({"upstream": None}, TypeError, "upstream .*None"),
    "upstream of rows": ({"upstream": np.ones(20), "reduction": "none"}, ValueError, r"upstream .*\(20,\).*\(20, 10\)"),
    "upstream of elements": (
        {"upstream": np.ones((20, 10)), "reduction": "none", "activation": "softmax"},
        ValueError,
        r"upstream .*\(20, 10\).*\(20,\)",
    ),
    "upstream complex": ({"upstream": C.astype(complex), "reduction": "none"}, TypeError, "upstream .*complex"),
    "out list": ({"out": X.tolist()}, TypeError, "out .*list"),
    "out dtype": ({"out": np.zeros((20, 10))}, ValueError, "out .*float64, expected float32"),
    "out shape": ({"out": np.zeros((10, 20), F32)}, ValueError, r"out .*\(10, 20\).*\(20, 10\)"),
    "out read-only": ({"out": _read_only()}, ValueError, "out .*read-only"),
    "out overlapping": (
        {"out": np.lib.stride_tricks.as_strided(np.zeros(99, F32), (20, 10), (4, 4))},
        ValueError,
        "out .*overlap",
    ),
}


@activations
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_call_and_untouched_out(wrong, activation):
    given, error, says = WRONG[wrong]
    if activation == "softmax" and wrong.startswith("pos_weight"):
        says = "pos_weight "
    arguments = {"logits": X, "targets": C, "activation": activation} | given
    with pytest.raises(error, match=rf"(?s)^{says}"):
        fastce.binary_cross_entropy(**arguments)
    out = np.full((20, 10), 12345, F32)
    with pytest.raises(error, match=rf"(?s)^{says}"):
        fastce.binary_cross_entropy_with_grad(**arguments, out=out)
    assert (out == 12345).all()


@pytest.mark.parametrize("wrong", WRONG_GRADIENT)
def test_wrong_gradient_call(wrong):
    given, error, says = WRONG_GRADIENT[wrong]
    with pytest.raises(error, match=rf"(?s)^{says}"):
        fastce.binary_cross_entropy_with_grad(**({"logits": X, "targets": C} | given))


def test_options_of_the_one_term_form_are_not_taken():
    for option in ("ignore_index", "label_smoothing", "z_loss", "return_stats"):
        with pytest.raises(TypeError, match=option):
            fastce.binary_cross_entropy(X, C, **{option: 0})
    with pytest.raises(TypeError, match="upstream"):
        fastce.binary_cross_entropy(X, C, upstream=1.0)


# ---------------------------------------------------------------------------------------------------------------------
# Threads and instruction sets
# ---------------------------------------------------------------------------------------------------------------------


@dtypes
@activations
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("shape", [(1, 40_000), (3000, 7), (257, 130), (33, 4500)])
def test_results_do_not_depend_on_the_number_of_threads(shape, reduction, activation, dtype):
    for order in "CF":
        x, c = (np.asarray(a, order=order) for a in (numbers(shape, dtype), soft_targets(shape, dtype)))
        options = {"activation": activation, "reduction": reduction}
        expected = fastce.binary_cross_entropy_with_grad(x, c, num_threads=1, **options)
        for num_threads in (2, 3, 7, None):
            got = fastce.binary_cross_entropy_with_grad(x, c, num_threads=num_threads, **options)
            forward = fastce.binary_cross_entropy(x, c, num_threads=num_threads, **options)
            assert got[0].tobytes() == forward.tobytes() == expected[0].tobytes(), f"num_threads={num_threads}"
            assert got[1].tobytes() == expected[1].tobytes(), f"num_threads={num_threads}"


@needs_longdouble
@pytest.mark.parametrize("isa", AVAILABLE)
def test_every_instruction_set_is_accurate(isa, tmp_path):
    cases, todo = [], []
    sizes = (2, 3, 7, 8, 9, 16, 17, 33, 65, 1000, 4097)
    for seed, (dtype, classes) in enumerate((dtype, size) for dtype in DTYPES for size in sizes):
        n = 21 if classes < 1000 else 3
        x, c = (numbers((n, classes), dtype, seed) * 3).astype(dtype), soft_targets((n, classes), dtype, seed)
        x[:2, classes // 2], c[0], c[1] = 80, np.arange(classes) == classes // 2, np.arange(classes) == 0
        for activation in ACTIVATIONS:
            for axis in (-1, 0):
                arguments = (x, c) if axis == -1 else (np.ascontiguousarray(x.T), np.ascontiguousarray(c.T))
                options = {"activation": activation, "axis": axis, "reduction": "none"}
                todo.append(("binary_cross_entropy_with_grad", arguments, options))
                cases.append(exact_binary(*arguments, **options))
    for (loss, grad), want in zip(computed_with(isa, todo, tmp_path), cases, strict=True):
        assert_binary(loss, grad, want)
