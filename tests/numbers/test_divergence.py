"""The Kullback-Leibler divergence where it is hard: nearly equal and confident rows, masked classes, shifted logits,
targets that do not sum to 1. What every function must do is tested in the other files too."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from functions import DIVERGENCE, DIVERGENCES, F32, F64, RELATIVE_ENTROPY, check, dtypes, over
from oracle import LD, needs_longdouble
from oracle_divergence import exact_divergence, exact_divergence_row
from rows import GAPS, check_arranged, confident

import fastce

INF = np.inf
ROOM = np.finfo(F64).eps / 50


def softmax(t):
    e = np.exp(t - t.max(axis=-1, keepdims=True).astype(LD))
    return (e / e.sum(axis=-1, keepdims=True)).astype(t.dtype)


def targets_of(family, t):
    return t if family is DIVERGENCE else softmax(t)


def _assert_close(number, true):
    sizes = np.ravel(number.size + number.extra)
    for mine, size, at_length in zip(np.ravel(number.value), sizes, true, strict=True):
        with mpmath.workdps(30):
            assert abs(mine - LD(mpmath.nstr(+at_length, 30))) <= ROOM * size


@needs_longdouble
@dtypes
@over(DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 3.0, 0.3])
def test_exact_values_agree_with_the_definition(temperature, family, dtype):
    rng = np.random.default_rng(0)
    x, _ = confident([0.5, 5, 20, 60], 5, dtype)
    for t in (x + rng.normal(0, 1e-3, x.shape), x[::-1] * 0.5, rng.normal(0, 3, x.shape)):
        targets = targets_of(family, t.astype(dtype))
        options = {"temperature": temperature, "reduction": "none"}
        want = family.exact(x, targets, **options)
        for i in range(len(x)):
            loss, grad = exact_divergence_row(x[i], targets[i], **family.fixed, temperature=temperature)
            _assert_close(want.loss.rearranged(lambda a, i=i: a[i]), [loss])
            _assert_close(want.grad.rearranged(lambda a, i=i: a[i]), grad)


@dtypes
@pytest.mark.parametrize("classes", [1, 3, 17, 100, 5000])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.7])
def test_equal_logits_give_exactly_zero(temperature, classes, dtype):
    x = np.random.default_rng(classes).normal(0, 5, (9, classes)).astype(dtype)
    if classes > 1:
        x[0, classes // 2] = -INF
    for a in (x, np.asfortranarray(x)):
        loss, grad = fastce.kl_divergence_with_grad(a, a.copy(), temperature=temperature, reduction="none")
        assert (loss == 0).all() and (grad == 0).all()
        if classes == 1:
            other = a + dtype(3.3)
            loss, grad = fastce.kl_divergence_with_grad(a, other, temperature=temperature, reduction="none")
            assert (loss == 0).all() and (grad == 0).all()


@needs_longdouble
@dtypes
@over(DIVERGENCES)
@pytest.mark.parametrize("classes", [2, 10, 1000, 5000])
@pytest.mark.parametrize("step", [1.0, 1e-2, 1e-4, 1e-6, 1e-12])
def test_nearly_equal_rows(step, classes, family, dtype):
    rng = np.random.default_rng(classes)
    x = rng.normal(0, 3, (6, classes)).astype(dtype)
    t = (x + step * rng.normal(size=x.shape)).astype(dtype)
    for temperature in (1.0, 2.0):
        check_arranged(family, (x, targets_of(family, t)), temperature=temperature, copied=family.names)


@needs_longdouble
@dtypes
@pytest.mark.parametrize("step", [1e-1, 1e-3])
def test_nearly_equal_logits_keep_their_relative_accuracy(step, dtype):
    """As far as their differences do: the divergence is about their variance, of which the terms are much larger."""
    rng = np.random.default_rng(1)
    x = rng.normal(0, 3, (20, 100)).astype(dtype)
    t = (x + step * rng.normal(size=x.shape)).astype(dtype)
    want = exact_divergence(x, t, reduction="none").loss.value
    got = fastce.kl_divergence(x, t, reduction="none")
    assert (np.abs(got - want) <= 8 * np.finfo(dtype).eps * want).all()


@needs_longdouble
@dtypes
@over(DIVERGENCES)
@pytest.mark.parametrize("classes", [2, 10, 60, 300])
def test_confident_rows(classes, family, dtype):
    x, _ = confident(GAPS[dtype], classes, dtype)
    for t in (x[::-1], x * dtype(1.01), x * dtype(0.5), np.zeros_like(x), np.roll(x, 1, axis=1)):
        check_arranged(family, (x, targets_of(family, t)), copied=family.names)


@needs_longdouble
@dtypes
@over(DIVERGENCES)
@pytest.mark.parametrize("classes", [5, 300, 5000])
def test_shifted_logits(classes, family, dtype):
    """Differences from the maxima are exact, whatever both rows have been shifted by."""
    rng = np.random.default_rng(3)
    x, t = (np.round(rng.normal(0, 3, (8, classes)) * 64) / 64 for _ in range(2))
    for shift in (0.0, 0.5, 1000.0, -3000.0):
        moved = (x + shift).astype(dtype)
        want = family.exact(x.astype(dtype), targets_of(family, t.astype(dtype)))
        check(family, (moved, targets_of(family, t.astype(dtype))), want=want)


@needs_longdouble
@dtypes
@over(DIVERGENCES)
@pytest.mark.parametrize("classes", [3, 20, 100, 5000])
def test_masked_classes(classes, family, dtype):
    rng = np.random.default_rng(4)
    x, t = rng.normal(0, 2, (6, classes)).astype(dtype), rng.normal(0, 2, (6, classes)).astype(dtype)
    x[0, 1] = t[0, 1] = -INF  # of both
    t[1, 1] = -INF  # the target is 0
    x[2, 1] = -INF  # the divergence is infinite
    x[3], t[4] = -INF, -INF  # no number
    x[3, 0] = 5
    if family is RELATIVE_ENTROPY:
        t[4, 0] = 1
    targets = targets_of(family, t)
    check_arranged(family, (x, targets), copied=family.names)
    loss = fastce.kl_divergence(x, targets, **family.fixed, reduction="none")
    assert loss[2] == INF and loss[3] == INF
    assert np.isfinite(loss[[0, 1, 5]]).all() and (np.isnan(loss[4]) or family is RELATIVE_ENTROPY)


@dtypes
@over(DIVERGENCES)
@pytest.mark.parametrize("classes", [4, 100, 5000])
@pytest.mark.parametrize("value", [np.nan, INF])
def test_what_is_no_number_stays_in_its_row(value, classes, family, dtype):
    rng = np.random.default_rng(5)
    x, t = rng.normal(size=(5, classes)).astype(dtype), rng.normal(size=(5, classes)).astype(dtype)
    t = targets_of(family, t)
    right = fastce.kl_divergence_with_grad(x, t, **family.fixed, reduction="none")
    for a, row in ((x, 1), (t, 3)):
        a[row, classes - 1] = value
    for order in (np.ascontiguousarray, np.asfortranarray):
        loss, grad = fastce.kl_divergence_with_grad(order(x), order(t), **family.fixed, reduction="none")
        for row in range(5):
            if row in (1, 3):
                assert np.isnan(loss[row]) and np.isnan(grad[row]).all()
            else:
                np.testing.assert_allclose(loss[row], right[0][row], rtol=1e-5)
                np.testing.assert_allclose(grad[row], right[1][row], rtol=1e-3)


@dtypes
@pytest.mark.parametrize("classes", [3, 100, 5000])
def test_negative_targets_give_nan(classes, dtype):
    x = np.random.default_rng(6).normal(size=(3, classes)).astype(dtype)
    c = softmax(x[::-1])
    c[1, 2] *= -1
    loss = fastce.kl_divergence(x, c, targets="probabilities", reduction="none")
    np.testing.assert_array_equal(np.isnan(loss), [False, True, False])


@needs_longdouble
@dtypes
@pytest.mark.parametrize("classes", [3, 20, 100, 5000])
def test_targets_of_any_mass(classes, dtype):
    """Rows of counts, of nothing and of parts of probabilities."""
    rng = np.random.default_rng(7)
    x = rng.normal(0, 2, (7, classes)).astype(dtype)
    c = softmax(rng.normal(0, 2, (7, classes)).astype(dtype)) * np.array([[1], [1000], [0.5], [0], [1e-20], [2], [1]])
    c[6] = 0
    c[6, 1] = 1
    c = c.astype(dtype)
    check_arranged(RELATIVE_ENTROPY, (x, c), copied=RELATIVE_ENTROPY.names)
    loss, grad = fastce.kl_divergence_with_grad(x, c, targets="probabilities", reduction="none")
    assert loss[3] == 0 and (grad[3] == 0).all()
    np.testing.assert_allclose(loss[6], fastce.cross_entropy(x[6:], [1]), rtol=8 * np.finfo(dtype).eps)


@dtypes
@pytest.mark.parametrize("classes", [1, 3, 100, 5000])
def test_rows_without_targets_are_no_numbers_if_their_logits_are_none(classes, dtype):
    x = np.zeros((5, classes), dtype)
    x[0, classes // 2], x[1, classes // 2], x[2] = np.nan, INF, -INF
    c = np.zeros_like(x)
    for way in (np.ascontiguousarray, np.asfortranarray):
        loss, grad = fastce.kl_divergence_with_grad(way(x), c, targets="probabilities", reduction="none")
        np.testing.assert_array_equal(loss, [np.nan] * 3 + [0] * 2)
        assert np.isnan(grad[:3]).all() and (grad[3:] == 0).all()


@dtypes
@pytest.mark.parametrize("other", [np.float16, F32, F64, np.int32, np.bool_, ">f4", np.longdouble])
@pytest.mark.parametrize("classes", [5, 100, 5000])
def test_target_logits_of_any_dtype(classes, other, dtype):
    rng = np.random.default_rng(8)
    x, t = rng.normal(size=(6, classes)).astype(dtype), np.round(rng.normal(0, 2, (6, classes))).astype(other)
    want = fastce.kl_divergence_with_grad(x, t.astype(dtype))
    for order in ("C", "F"):
        loss, grad = fastce.kl_divergence_with_grad(x, np.asarray(t, order=order))
        assert loss == want[0]
        np.testing.assert_array_equal(grad, want[1])


@dtypes
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_gradient_is_that_of_cross_entropy(temperature, dtype):
    """Of the same targets: the entropy of the targets does not depend on the logits."""
    rng = np.random.default_rng(9)
    x, t = rng.normal(size=(40, 30)).astype(dtype), rng.normal(size=(40, 30)).astype(dtype)
    c = fastce.softmax(t, temperature=temperature)
    room = {"rtol": 0, "atol": 20 * np.finfo(dtype).eps}
    _, want = fastce.cross_entropy_with_grad(x, c, temperature=temperature, reduction="sum")
    for given, targets in ((t, "logits"), (c, "probabilities")):
        options = {"temperature": temperature, "reduction": "sum", "targets": targets}
        np.testing.assert_allclose(fastce.kl_divergence_with_grad(x, given, **options)[1], want, **room)


def test_distillation_multiplies_by_the_squared_temperature():
    """The gradient of T^2 times the loss tends to (x - t - mean)/classes as T grows."""
    rng = np.random.default_rng(10)
    x, t = rng.normal(size=(3, 5)), rng.normal(size=(3, 5))
    T = 1e4
    _, grad = fastce.kl_divergence_with_grad(x, t, temperature=T, upstream=T**2, reduction="sum")
    d = x - t
    np.testing.assert_allclose(grad, (d - d.mean(axis=1, keepdims=True)) / 5, rtol=1e-3)


@dtypes
@over(DIVERGENCES)
@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_extreme_temperatures(scale, family, dtype):
    rng = np.random.default_rng(11)
    x, t = rng.normal(size=(4, 7)), rng.normal(size=(4, 7))
    c = t if family is DIVERGENCE else softmax(t)
    want = fastce.kl_divergence(x, c, **family.fixed, reduction="none")
    given = [(a * scale).astype(dtype) for a in (x, t)]
    got = fastce.kl_divergence(
        given[0], given[1] if family is DIVERGENCE else c, **family.fixed, temperature=scale, reduction="none"
    )
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("targets", ["logit", None, 1, "Probabilities"])
def test_what_targets_are_must_be_known(targets):
    with pytest.raises(ValueError, match="expected 'logits' or 'probabilities'"):
        fastce.kl_divergence(np.zeros((2, 3)), np.zeros((2, 3)), targets=targets)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"target_logits has shape \(2,\), expected \(2, 3\) to match logits"):
        fastce.kl_divergence(np.zeros((2, 3)), [0, 1])
    with pytest.raises(TypeError, match="target_logits is None"):
        fastce.kl_divergence(np.zeros((2, 3)), None)
    with pytest.raises(TypeError, match="target_logits has dtype complex128"):
        fastce.kl_divergence(np.zeros((2, 3)), np.zeros((2, 3), complex))
