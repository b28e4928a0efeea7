"""The exact values that the other tests compare with are exact: the longdouble forms agree with the definitions, which
are written out at several hundred digits. And they allow no larger errors than the contract's table does."""

from __future__ import annotations

import itertools

import mpmath
import numpy as np
import pytest
from functions import F32, F64, INDEX, MAPS, PROBABILITIES, SIGMOID, TWO_TERM, dtypes
from oracle import LD, exact, exact_binary, exact_binary_row, exact_row, exact_softmax, needs_longdouble
from rows import GAPS, confident

pytestmark = needs_longdouble

ROOM = np.finfo(F64).eps / 50  # a fiftieth of what is to be measured
HARD_GAPS = {F32: [0.5, 5, 20, 85, 100], F64: [0.5, 5, 20, 85, 300, 700]}


def _assert_close(number, true, room=ROOM, *, divided=False):
    """Relative to the terms that the number is made of. Exponents that are divided by a temperature are rounded."""
    sizes = number.size + divided * number.extra
    for mine, size, at_length in zip(np.ravel(number.value), np.ravel(sizes), true, strict=True):
        with mpmath.workdps(30):
            assert abs(mine - LD(mpmath.nstr(+at_length, 30))) <= room * size


@dtypes
@pytest.mark.parametrize("kind", ["index", "probabilities"])
def test_one_term_form_agrees_with_the_definition(kind, dtype):
    x, top = confident(HARD_GAPS[dtype], 5, dtype)
    weight = np.random.default_rng(1).random(5).astype(dtype)
    targets = top if kind == "index" else np.eye(5)[top]
    smoothing = {"label_smoothing": 0.1, "weight": weight, "z_loss": 0.01}
    for options in ({}, {"weight": weight}, smoothing, {"temperature": 0.7}, smoothing | {"temperature": 3.0}):
        divided = "temperature" in options
        want = exact(x, targets, reduction="none", **options)
        for i, row in enumerate(x):
            loss, grad = exact_row(row, targets[i], digits=800, **options)
            _assert_close(want.loss.rearranged(lambda a, i=i: a[i]), [loss], divided=divided)
            _assert_close(want.grad.rearranged(lambda a, i=i: a[i]), grad, divided=divided)


@dtypes
def test_softmax_agrees_with_the_definition(dtype):
    x, _ = confident(HARD_GAPS[dtype], 5, dtype)
    for row, temperature in itertools.product(x, (1.0, 0.7, 3.0)):
        want = exact_softmax(row, temperature=temperature)
        with mpmath.workdps(800):
            exps = [mpmath.exp(mpmath.mpf(float(v)) / mpmath.mpf(temperature)) for v in row]
            p = [e / mpmath.fsum(exps) for e in exps]
            logp, lse = [mpmath.log(v) for v in p], mpmath.log(mpmath.fsum(exps))
        divided = temperature != 1
        _assert_close(want.p, p, divided=divided)
        _assert_close(want.logp, logp, divided=divided)
        _assert_close(want.lse, [lse], divided=divided)


@dtypes
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_two_term_form_agrees_with_the_definition(activation, dtype):
    """The Jacobian to the letter, targets that are right, wrong, soft and several."""
    rng = np.random.default_rng(1)
    rows, tops = confident([0.0, *HARD_GAPS[dtype]], 5, dtype)
    for x, top in zip(rows, tops, strict=True):
        for c in (np.eye(5)[top], np.eye(5)[top - 1], rng.random(5), np.array([0, 1, 1, 0, 1])):
            every = [{}, {"weight": rng.random(5)}, {"pos_weight": rng.random(5), "weight": rng.random(5)}]
            for options in every[: 3 if activation == "sigmoid" else 2]:
                want = exact_binary(x, c.astype(dtype), activation=activation, reduction="none", **options)
                losses, grad = exact_binary_row(x, c.astype(dtype), activation=activation, **options)
                _assert_close(want.loss, losses)
                _assert_close(want.grad, grad)


@pytest.mark.parametrize("gap", [2e3, 1e4])
def test_two_term_form_agrees_with_the_definition_where_exp_underflows(gap):
    x = np.array([0.5, gap, 0.0])
    for c in np.eye(3):
        want = exact_binary(x, c, activation="softmax", reduction="none")
        losses, grad = exact_binary_row(x, c, activation="softmax", digits=int(gap) + 50)
        _assert_close(want.loss, losses, 1e-17)
        _assert_close(want.grad, grad, 1e-17)


@dtypes
def test_errors_are_relative_to_the_numbers_themselves(dtype):
    """Without options the terms of a number have one sign, but for the two-term form of a softmax: there they do where
    the row is right and confident."""

    def assert_size_is_value(number):
        np.testing.assert_allclose(number.size.astype(F64), np.abs(number.value).astype(F64), rtol=1e-15)

    x, top = confident(GAPS[dtype], 6, dtype)
    want = INDEX.exact(x, top)
    np.testing.assert_array_equal(want.gap, GAPS[dtype])
    for family in (INDEX, PROBABILITIES, SIGMOID):
        want = family.exact(*family.arguments(x, top))
        assert_size_is_value(want.loss)
        assert_size_is_value(want.grad)
    want = MAPS.exact(x)
    assert_size_is_value(want.p)
    assert_size_is_value(want.logp)
    want = TWO_TERM.exact(*TWO_TERM.arguments(x, top))
    assert_size_is_value(want.loss)
    assert (want.grad.size < 3 * np.abs(want.grad.value))[5:].all()


@dtypes
def test_confident_rows_are_hard(dtype):
    """What others round to 0 is not 0."""
    x, top = confident(GAPS[dtype], 6, dtype)
    for family in (INDEX, TWO_TERM):
        losses = family.exact(*family.arguments(x, top)).loss.value
        assert losses.min() > 0 and losses[-1] < 1e-30
    assert -1e-30 < MAPS.exact(x).logp.value.max() < 0
