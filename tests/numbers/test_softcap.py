"""softcap: the capped logits and their derivative to a relative bound wherever they are, and rows that are hard. Every
combination with other options is in test_options.py."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from functions import (
    CURVATURE,
    DIVERGENCES,
    ENTROPY,
    F32,
    F64,
    FAMILIES,
    MAPS,
    ONE_TERM,
    check,
    dtypes,
    numbers,
    over,
)
from isa import AVAILABLE, computed_with
from oracle import LD, OPTION_ULPS, assert_within, exact, exact_row, needs_longdouble
from rows import GAPS, check_arranged, confident, slope

import fastce

pytestmark = needs_longdouble

WITH_SOFTCAP = [family for family in FAMILIES if "softcap" in family.options]
CAPS = [5.0, 30.0, 50.3, 1e-3, 1e4, 1e-15, 1e15]
CLASSES = [2, 9, 130, 5000]
caps = pytest.mark.parametrize("cap", CAPS)


def every_size(dtype, cap):
    """Logits from far below the cap to far above it, of both signs."""
    y = np.concatenate([10.0 ** np.linspace(-6, 1.4, 1500), np.linspace(0.3, 2, 1500)])
    return (np.concatenate([y, -y]) * cap).astype(dtype)


@dtypes
@caps
@pytest.mark.parametrize("classes", [1, 100])
def test_capped_logits_are_within_two_eps(classes, cap, dtype):
    """row_max is the capped logit where all other classes are masked."""
    x = every_size(dtype, cap)
    rows = np.full((x.size, classes), -np.inf, dtype)
    rows[:, 0] = x
    got = fastce.cross_entropy(rows, np.zeros(x.size, int), softcap=cap, return_stats=True)[1].row_max
    want = LD(cap) * np.tanh(x.astype(LD) / LD(cap))
    error = np.abs(got - want) / np.abs(want) / np.finfo(dtype).eps
    assert error.max() < 2
    np.testing.assert_array_equal(np.sign(got), np.sign(x))


@dtypes
@caps
@pytest.mark.parametrize("classes", [2, 128])
def test_derivative_does_not_cancel(classes, cap, dtype):
    """Equal logits have equal probabilities, whatever the cap makes of them: the gradient is the derivative."""
    x = every_size(dtype, cap)
    rows = np.repeat(x[:, None], classes, axis=1)
    grad = fastce.cross_entropy_grad(rows, np.zeros(x.size, int), softcap=cap, reduction="sum", upstream=classes)
    y = np.abs(x.astype(LD)) / LD(cap)
    want = 1 / np.cosh(y) ** 2
    error = np.abs(grad[:, 1] - want) / want / np.finfo(dtype).eps
    assert (error <= 4 + y).all()
    assert (grad[:, 1] > 0).all()


@dtypes
@over(WITH_SOFTCAP)
@pytest.mark.parametrize("classes", CLASSES)
@caps
def test_confident_rows(cap, classes, family, dtype):
    fewer = 1 if family in (*ONE_TERM, MAPS) else 12  # their slopes and capped logits are those of the others
    x, top = confident(GAPS[dtype][:: fewer * (1 if classes < 1000 else 40)], classes, F64)
    for times in (1, cap / 20):
        with np.errstate(over="ignore"):
            z = (x * times).astype(dtype)
        for labels in (top, (top + 1) % classes, None):
            check_arranged(family, family.arguments(z, labels), softcap=cap, more=1)


@dtypes
@over(ONE_TERM)
@pytest.mark.parametrize("classes", [3, 65, 5000])
@pytest.mark.parametrize("cap", [5.0, 50.3])
def test_confident_rows_with_options(cap, classes, family, dtype):
    x, top = confident(GAPS[dtype][:: 1 if classes < 1000 else 40], classes, dtype)
    weight = (np.random.default_rng(6).random(classes) + 0.1).astype(dtype)
    for options in ({"weight": weight, "label_smoothing": 0.1}, {"temperature": 0.7}, {"z_loss": 1e-3}):
        for labels in (top, (top + 1) % classes):
            check_arranged(family, family.arguments(x, labels), more=OPTION_ULPS + 2, softcap=cap, **options)


@dtypes
@over(WITH_SOFTCAP)
def test_special_values(family, dtype):
    """-inf masks its class, where the derivative is 0; +inf and NaN make the row NaN."""
    for classes in (3, 40, 300, 5000):
        x = np.random.default_rng(1).normal(0, 9, (9, classes)).astype(dtype)
        x[:, ::2] = -np.inf
        x[3] = -np.inf
        x[4, 1] = np.nan
        x[5, 1] = np.inf
        labels = np.full(9, 1)
        check_arranged(family, family.arguments(x, labels), more=1, softcap=5.0)


@dtypes
def test_a_masked_label_has_no_gradient(dtype):
    x = np.array([[-np.inf, 1, 2]], dtype)
    loss, grad = fastce.cross_entropy_with_grad(x, [0], softcap=5.0)
    assert loss == np.inf
    assert grad[0, 0] == 0
    assert (grad[0, 1:] > 0).all()


@dtypes
@pytest.mark.parametrize("classes", [5, 100, 5000, 40000])
def test_ignored_rows_may_hold_anything(classes, dtype):
    x = np.random.default_rng(0).normal(0, 5, (6, classes)).astype(dtype)
    labels = np.array([1, -100, 2, -100, 3, -100])
    want = fastce.cross_entropy_with_grad(x, labels, softcap=5.0)
    x[1], x[3], x[5] = np.nan, np.inf, -np.inf
    for a, options in ((x, {}), (np.asfortranarray(x), {}), (x, {"label_smoothing": 0.1})):
        loss, grad = fastce.cross_entropy_with_grad(a, labels, softcap=5.0, **options)
        assert not grad[1::2].any()
        assert np.isfinite(loss)
        if not options:
            np.testing.assert_allclose(loss, want[0], rtol=1e-5)
            np.testing.assert_allclose(grad, want[1], rtol=1e-5, atol=1e-7)


@dtypes
@pytest.mark.parametrize("classes", [5, 100, 5000, 40000])
@pytest.mark.parametrize("order", ["C", "F"])
def test_in_place(order, classes, dtype):
    """The derivative is of the logits, which the gradient replaces."""
    rng = np.random.default_rng(0)
    x = np.array(rng.normal(0, 5, (150 if classes < 1000 else 3, classes)), dtype, order=order)
    labels, weight = rng.integers(classes, size=len(x)), rng.random(classes)
    for options in ({}, {"label_smoothing": 0.1}, {"label_smoothing": 0.1, "weight": weight}):
        want = fastce.cross_entropy_with_grad(x, labels, softcap=5.0, **options)
        stats = fastce.cross_entropy(x, labels, softcap=5.0, return_stats=True, **options)[1]
        from_stats = fastce.cross_entropy_grad(x, labels, softcap=5.0, stats=stats, **options)
        for num_threads in (1, 2):
            out = x.copy(order="K")
            loss, grad = fastce.cross_entropy_with_grad(
                out, labels, softcap=5.0, out=out, num_threads=num_threads, **options
            )
            assert grad is out
            assert loss == want[0]
            np.testing.assert_array_equal(grad, want[1])
            out = x.copy(order="K")
            fastce.cross_entropy_grad(
                out, labels, softcap=5.0, stats=stats, out=out, num_threads=num_threads, **options
            )
            np.testing.assert_array_equal(out, from_stats)


@dtypes
@over([family for family in WITH_SOFTCAP if family not in ONE_TERM and family is not MAPS])
@pytest.mark.parametrize("classes", [5, 100, 5000])
@pytest.mark.parametrize("order", ["C", "F"])
def test_others_in_place(order, classes, family, dtype):
    x = np.array(numbers((150 if classes < 1000 else 3, classes), dtype), order=order)
    arrays = [np.array(a, order=order) for a in family.arguments(x)]
    function = family.functions[-1]
    want = function(*arrays, softcap=5.0)
    for num_threads in (1, 2):
        out = x.copy(order="K")
        pair = (out, np.empty_like(out)) if "hess" in want else out
        got = function(out, *arrays[1:], softcap=5.0, out=pair, num_threads=num_threads)
        assert got["hvp" if "hvp" in got else "grad"] is out
        for name, value in want.items():
            np.testing.assert_array_equal(got[name], value)


@dtypes
@pytest.mark.parametrize("classes", [5, 100, 5000])
def test_subnormals_are_flushed_after_the_derivative(classes, dtype):
    """A gradient that is large enough may be too small when it is multiplied by the derivative."""
    x = np.zeros((150 if classes < 1000 else 3, classes), dtype)
    x[:, 0] = np.linspace(1, 80, len(x))
    smallest = 2.0**-100 if dtype is F32 else 2.0**-900
    for a in (x, np.asfortranarray(x)):
        for scale in (1.0, smallest * 1e3):
            options = {"softcap": 2.0, "reduction": "sum", "upstream": scale}
            want = fastce.cross_entropy_grad(a, np.ones(len(x), int), **options)
            got = fastce.cross_entropy_grad(a, np.ones(len(x), int), subnormals="flush", **options)
            np.testing.assert_array_equal(got, np.where(np.abs(want) < smallest, 0, want))
        assert (got == 0).any() and (got != 0).any()


@pytest.mark.parametrize("isa", AVAILABLE)
def test_every_instruction_set(isa, tmp_path):
    cases, calls = [], []
    for dtype, classes, cap in ((d, c, t) for d in (F32, F64) for c in (3, 17, 65, 1000) for t in (5.0, 50.3)):
        for family in WITH_SOFTCAP:
            fewer = 1 if family in (*ONE_TERM, MAPS) or classes < 100 else 30
            x, top = confident(GAPS[dtype][::fewer], classes, dtype)
            arrays = family.arguments(x, (top + 1) % classes)
            want = family.exact(*arrays, softcap=cap)
            options = family.fixed | {"softcap": cap} | ({"reduction": "none"} if family.is_reduced else {})
            for function in family.functions:
                calls.append((function.name, arrays, options))
                cases.append((function.returns, want, f"{function.id}, {classes} classes of {np.dtype(dtype)}: "))
        z = every_size(dtype, cap)
        calls.append(("cross_entropy", (z[:, None], np.zeros(z.size, int)), {"softcap": cap, "return_stats": True}))
        cases.append(("", (z, cap), ""))
    for got, (names, want, about) in zip(computed_with(isa, calls, tmp_path), cases, strict=True):
        if not names:
            z, cap = want
            capped = LD(cap) * np.tanh(z.astype(LD) / LD(cap))
            assert (np.abs(got[1].row_max - capped) < 2 * np.finfo(z.dtype).eps * np.abs(capped)).all()
            continue
        for name, value in zip(names, got if len(names) > 1 else (got,), strict=True):
            assert_within(value, getattr(want, name), about + name, more=1)


@dtypes
@over(WITH_SOFTCAP)
def test_random_caps(family, dtype):
    rng = np.random.default_rng(3)
    for cap in np.exp(rng.uniform(-3, 5, 12)).tolist():
        for shape in ((33, 10), (20, 70), (2, 5000)):
            x = rng.normal(0, 2 * cap, shape).astype(dtype)
            check(family, family.arguments(x), softcap=cap, more=1)


@over([ENTROPY, *DIVERGENCES, *CURVATURE])
def test_gradients_are_slopes(family):
    """Of what is checked above against values with the same formula of the derivative."""
    x = numbers((4, 5), F64) / 3
    _, *rest = family.arguments(x)
    options = {"softcap": 3.0, "temperature": 0.7, "reduction": "sum"}
    if family in CURVATURE:
        got = family.functions[0](x, *rest, **options)
        for j in range(5):
            by_x = slope(lambda x, j=j: fastce.cross_entropy_grad(x, rest[0], **options)[:, j], x)
            if "hess" in got:
                np.testing.assert_allclose(got["hess"][:, j], by_x[:, j], rtol=0, atol=1e-10)
            else:
                np.testing.assert_allclose(got["hvp"][:, j], (by_x * rest[1]).sum(axis=1), rtol=0, atol=1e-10)
        return
    forward, fused = family.functions
    by_x = slope(lambda x: forward(x, *rest, **options)["loss"], x)
    np.testing.assert_allclose(fused(x, *rest, **options)["grad"], by_x, rtol=0, atol=1e-10)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_exact_values_agree_with_the_definition(temperature):
    x, top = confident([0.5, 5, 20, 85], 5, F64)
    x[1, 0] = -np.inf
    for cap in (3.0, 50.0):
        options = {"softcap": cap, "temperature": temperature, "z_loss": 0.01}
        want = exact(x, top, reduction="none", label_smoothing=0.0, **options)
        for i, row in enumerate(x):
            loss, grad = exact_row(row, top[i], **options)
            sizes = [(want.loss.value[i], loss, want.loss.size[i] + want.loss.extra[i])]
            for j in range(5):
                sizes.append((want.grad.value[i, j], grad[j], want.grad.size[i, j] + want.grad.extra[i, j]))
            for mine, true, size in sizes:
                with mpmath.workdps(30):
                    assert abs(mine - LD(mpmath.nstr(+true, 30))) <= np.finfo(F64).eps / 50 * size


def test_no_cap_is_the_limit_of_large_caps():
    x, labels = np.random.default_rng(0).normal(0, 3, (9, 20)), np.arange(9)
    want = fastce.cross_entropy_with_grad(x, labels)
    got = fastce.cross_entropy_with_grad(x, labels, softcap=1e9)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-13)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-13)
    np.testing.assert_array_equal(fastce.softmax(x, softcap=None), MAPS.functions[0](x)["p"])


def test_softcap_of_the_layer():
    x, labels = np.random.default_rng(0).normal(size=(4, 6)), np.array([1, 2, 3, 4])
    ce = fastce.CrossEntropyLoss(softcap=2.0)
    assert ce(x, labels) == fastce.cross_entropy(x, labels, softcap=2.0)
    np.testing.assert_array_equal(ce.backward(), fastce.cross_entropy_grad(x, labels, softcap=2.0))
