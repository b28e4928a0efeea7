"""Temperatures far from 1, in rows that are hard: confident, shifted, masked. The bounds are those without temperature,
with the gaps of the divided logits. Every combination with other options is in test_options.py."""

from __future__ import annotations

import numpy as np
import pytest
from functions import F32, F64, FAMILIES, MAPS, ONE_TERM, check, dtypes, over
from isa import AVAILABLE, computed_with
from oracle import OPTION_ULPS, assert_within, needs_longdouble
from rows import GAPS, check_arranged, confident, on_grid

import fastce

pytestmark = needs_longdouble

WITH_TEMPERATURE = [family for family in FAMILIES if "temperature" in family.options]
OF_LOGITS = [*ONE_TERM, MAPS]
TEMPERATURES = [0.7, 3.0, 0.5, 1e-3, 1e-15, 1e15]
CLASSES = [2, 9, 130, 5000]
temperatures = pytest.mark.parametrize("temperature", TEMPERATURES)


def hot_rows(classes, temperature, dtype):
    """Rows whose divided logits have gaps of every size, and their most probable class."""
    gaps = GAPS[dtype][:: 1 if classes < 1000 else 40]
    x, top = confident(gaps, classes, F64)
    with np.errstate(over="ignore"):
        return (x * temperature).astype(dtype), top


@dtypes
@over(OF_LOGITS)
@pytest.mark.parametrize("classes", CLASSES)
@temperatures
def test_confident_rows(temperature, classes, family, dtype):
    x, top = hot_rows(classes, temperature, dtype)
    for labels in (top, (top + 1) % classes, None):
        check_arranged(family, family.arguments(x, labels), temperature=temperature, more=1)


@dtypes
@over(ONE_TERM)
@pytest.mark.parametrize("classes", [3, 65, 5000])
@temperatures
def test_confident_rows_with_options(temperature, classes, family, dtype):
    """Weighted smoothing, where maxima that are not the label cancel too, and the z-loss of the divided logits."""
    x, top = hot_rows(classes, temperature, dtype)
    weight = (np.random.default_rng(6).random(classes) + 0.1).astype(dtype)
    for options in ({"weight": weight, "label_smoothing": 0.1}, {"label_smoothing": 0.1}, {"z_loss": 1e-3}):
        for labels in (top, (top + 1) % classes):
            arrays = family.arguments(x, labels)
            check_arranged(family, arrays, more=OPTION_ULPS + 1, temperature=temperature, **options)


@dtypes
@over(OF_LOGITS)
@pytest.mark.parametrize("offset", [1e6, -1e6, 1e3])
@pytest.mark.parametrize("temperature", [0.7, 3.0, 0.5, 1e-2])
def test_shifted_rows(temperature, offset, family, dtype):
    """The differences are divided, not the logits, so an offset costs no accuracy."""
    rng = np.random.default_rng(11)
    for classes in (10, 70, 5000):
        _, x = on_grid(rng.normal(0, 9, (150 if classes < 1000 else 3, classes)), offset, dtype)
        check_arranged(family, family.arguments(x), more=1, temperature=temperature)


@dtypes
@over(OF_LOGITS)
@temperatures
def test_masked_classes(temperature, family, dtype):
    for classes in (3, 40, 300, 5000):
        x = np.random.default_rng(1).normal(0, 3 * temperature, (9, classes)).astype(dtype)
        x[:, ::2] = -np.inf
        x[3] = -np.inf
        x[4, 1] = np.nan
        x[5, 1] = np.inf
        labels = np.full(9, 1)
        labels[6] = 0  # a masked label
        check_arranged(family, family.arguments(x, labels), more=1, temperature=temperature)


# The quotients 1/T in float32 and what they leave, which is nearly nothing here: its float32 must not be 0.
def test_masked_classes_where_the_quotient_is_nearly_exact():
    for temperature in (1 / float(F32(1.3e-12)), 1 / float(F32(0.7)), 1 / float(F32(2.1e-15))):
        x = np.array([[0, -np.inf, 1, -np.inf]], F32)
        p = fastce.softmax(x, temperature=temperature)
        assert (p[0, [1, 3]] == 0).all()
        assert p.sum() == pytest.approx(1, rel=1e-6)


@dtypes
def test_stats_hold_the_logits_maximum(dtype):
    x, top = hot_rows(70, 0.7, dtype)
    stats = fastce.cross_entropy(x, top, temperature=0.7, return_stats=True)[1]
    np.testing.assert_array_equal(stats.row_max, x.max(axis=1))
    want = MAPS.exact(x, temperature=0.7)
    lse = stats.row_max.astype(F64) / 0.7 + np.log1p(stats.tail.astype(F64))
    assert_within(lse.astype(dtype), want.lse, more=1)


@dtypes
def test_limits(dtype):
    """Low temperatures tend to a one-hot row, high ones to equal probabilities."""
    x = np.array([[0.5, -3, 7, 7.5]], dtype)
    np.testing.assert_array_equal(fastce.softmax(x, temperature=1e-15), [[0, 0, 0, 1]])
    np.testing.assert_allclose(fastce.softmax(x, temperature=1e15), [[0.25] * 4], rtol=1e-14)
    loss, grad = fastce.cross_entropy_with_grad(x, [3], temperature=1e-15)
    assert loss == 0 and not grad.any()


@pytest.mark.parametrize("isa", AVAILABLE)
def test_every_instruction_set(isa, tmp_path):
    cases, calls = [], []
    for dtype, classes, temperature in ((d, c, t) for d in (F32, F64) for c in (3, 17, 65, 1000) for t in (0.7, 3.0)):
        x, top = hot_rows(classes, temperature, dtype)
        for family in OF_LOGITS:
            arrays = family.arguments(x, (top + 1) % classes)
            want = family.exact(*arrays, temperature=temperature)
            options = {"temperature": temperature} | ({"reduction": "none"} if family.is_loss else {})
            for function in family.functions:
                calls.append((function.name, arrays, options))
                cases.append((function.returns, want, f"{function.id}, {classes} classes of {np.dtype(dtype)}: "))
    for got, (names, want, about) in zip(computed_with(isa, calls, tmp_path), cases, strict=True):
        for name, value in zip(names, got if len(names) > 1 else (got,), strict=True):
            number = getattr(want, name)
            assert_within(value, number, about + name, more=1)


@dtypes
@over(WITH_TEMPERATURE)
def test_random_temperatures(family, dtype):
    rng = np.random.default_rng(3)
    for temperature in np.exp(rng.uniform(-8, 8, 12)).tolist():
        for shape in ((33, 10), (20, 70), (2, 5000)):
            x = rng.normal(0, 10 * temperature, shape).astype(dtype)
            check(family, family.arguments(x), temperature=temperature, more=1)


def test_temperature_of_the_layer():
    x, labels = np.random.default_rng(0).normal(size=(4, 6)), np.array([1, 2, 3, 4])
    ce = fastce.CrossEntropyLoss(temperature=2.0)
    assert ce(x, labels) == fastce.cross_entropy(x, labels, temperature=2.0)
    np.testing.assert_array_equal(ce.backward(), fastce.cross_entropy_grad(x, labels, temperature=2.0))
    assert ce(x, labels, temperature=3.0) == fastce.cross_entropy(x, labels, temperature=3.0)
    np.testing.assert_array_equal(ce.backward(), fastce.cross_entropy_grad(x, labels, temperature=3.0))
