"""Entropies and their gradients: temperatures, confident rows, special values, rows without a result. The tests of all
functions (values on a grid, options, layouts, threads, errors) take them from functions.py and calling.py."""

from __future__ import annotations

import itertools
import math

import mpmath
import numpy as np
import pytest
from functions import DTYPES, ENTROPY, F32, F64, check, dtypes, numbers
from isa import AVAILABLE, computed_with
from oracle import LD, assert_within, needs_longdouble
from oracle_entropy import exact_entropy, exact_entropy_row
from rows import GAPS, SUBNORMAL_GAPS, check_arranged, confident, slope

import fastce
from fastce import reference

INF, NAN = math.inf, math.nan
CLASSES = [1, 2, 3, 10, 40, 41, 57, 65, 300, 4097, 9000]  # tiles, short rows, long rows
TEMPERATURES = [1.0, 0.7, 3.0, 1e-3, 1e3]


@needs_longdouble
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_oracle_is_the_definition(temperature: float) -> None:
    rng = np.random.default_rng(0)
    rows = [
        rng.normal(size=5) * 4,
        np.array([0, 300.0, 1]),
        np.array([0, 740.0]),
        np.zeros(4),
        np.array([-INF, 0, 1, 1]),
    ]
    for x in rows:
        want = exact_entropy(x, temperature=temperature)
        entropy, grad = exact_entropy_row(x, temperature)
        for got, exact in [(want.loss.value, entropy), *zip(want.grad.value, grad, strict=True)]:
            with mpmath.workdps(50):
                number = mpmath.mpf(np.format_float_scientific(LD(got), precision=40))
                assert abs(number - exact) <= abs(exact) * 1e-16 + mpmath.mpf("1e-330")


@needs_longdouble
@dtypes
@pytest.mark.parametrize("classes", CLASSES)
def test_temperatures_and_options(classes: int, dtype: type) -> None:
    rng = np.random.default_rng(classes)
    n = 133 if classes < 100 else 5
    x = (rng.normal(size=(n, classes)) * rng.choice([0.01, 1, 10, 50], (n, 1))).astype(dtype)
    x[::3, :: max(classes // 2, 2)] = -INF  # masked
    x[::3, -1] = 1
    weights = {"sample_weight": rng.random(n), "upstream": rng.normal(size=n)}
    for temperature in TEMPERATURES:
        check_arranged(ENTROPY, (x,), temperature=temperature)
        check_arranged(ENTROPY, (x,), temperature=temperature, **weights, more=4)


@needs_longdouble
@dtypes
@pytest.mark.parametrize("classes", [2, 5, 65, 5000])
def test_confident_rows_keep_their_digits(classes: int, dtype: type) -> None:
    """Down to where the entropy itself is subnormal: there it is right to the last place of the subnormal numbers."""
    gaps = np.concatenate([GAPS[dtype], SUBNORMAL_GAPS[dtype]])[:: 1 if classes < 100 else 9]
    x, _ = confident(gaps, classes, dtype, spread=False)
    check_arranged(ENTROPY, (x,))
    assert (fastce.entropy(x, reduction="none") > 0).all()


@pytest.mark.parametrize("classes", [2, 100, 9000])
@pytest.mark.parametrize("dtype, gap", [(F32, 107), (F64, 750)], ids=["f32", "f64"])
def test_the_entropy_is_not_0_where_it_is_a_number_but_the_probability_is_not(
    dtype: type, gap: int, classes: int
) -> None:
    x = np.full((2, classes), -INF, dtype)
    x[:, 0] = 0
    x[0, -1] = x[1, 1] = gap  # in the last block, and in the first
    assert dtype(np.exp(-LD(gap))) == 0
    want = dtype(gap * np.exp(-LD(gap)))
    got = fastce.entropy(x, reduction="none")
    assert want > 0
    np.testing.assert_allclose(got, [want, want], atol=2 * np.finfo(dtype).smallest_subnormal, rtol=0)


BAD_ROWS = {
    "NaN": {2: NAN},
    "inf": {0: INF},
    "two inf": {1: INF, 3: INF},
    "NaN and -inf": {0: -INF, 2: NAN},
    "masked": None,
}


@dtypes
@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("width", [4, 100, 5000])
@pytest.mark.parametrize("bad", BAD_ROWS)
def test_rows_without_probabilities_give_nan_in_no_other_row(bad: str, width: int, axis: int, dtype: type) -> None:
    x = np.zeros((3, width), dtype)
    x[1] = -INF if BAD_ROWS[bad] is None else 1
    for at, value in (BAD_ROWS[bad] or {}).items():
        x[1, at] = value
    x = np.ascontiguousarray(x if axis == -1 else x.T)
    for package in (fastce, reference):
        entropy, grad = package.entropy_with_grad(x, axis=axis, reduction="none")
        grad = np.moveaxis(grad, axis, -1)
        assert np.isnan(entropy[1]) and np.isnan(grad[1]).all()
        np.testing.assert_allclose(entropy[[0, 2]], np.log(width), rtol=1e-4)
        assert (np.abs(grad[[0, 2]]) < 1e-6).all()


@dtypes
@pytest.mark.parametrize("width", [4, 100, 5000])
def test_masked_classes_count_nothing(width: int, dtype: type) -> None:
    x = np.full((2, width), -INF, dtype)
    x[0, 1], x[1, [0, 2]] = 3, [1, 1]
    for package in (fastce, reference):
        entropy, grad = package.entropy_with_grad(x, reduction="none", temperature=0.5)
        np.testing.assert_allclose(entropy, [0, np.log(2)], rtol=1e-6)
        assert (grad[:, 3:] == 0).all() and (np.abs(grad) < 1e-6).all()


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_the_gradient_is_the_slope_of_the_entropy(temperature: float) -> None:
    x = numbers((3, 5), F64)
    for function in (fastce.entropy, reference.entropy):
        _, grad = fastce.entropy_with_grad(x, temperature=temperature, reduction="sum")
        want = slope(lambda z, f=function: f(z, temperature=temperature, reduction="none"), x)
        np.testing.assert_allclose(grad, want, rtol=1e-8, atol=1e-10)


@dtypes
def test_temperature_divides_the_logits(dtype: type) -> None:
    """A power of two divides exactly."""
    x = numbers((7, 300), dtype)
    entropy, grad = fastce.entropy_with_grad(x, temperature=4.0)
    want, want_grad = fastce.entropy_with_grad(x / dtype(4))
    np.testing.assert_allclose(entropy, want, rtol=8 * np.finfo(dtype).eps)
    np.testing.assert_allclose(grad, want_grad / 4, rtol=60 * np.finfo(dtype).eps, atol=1e-9)


def test_no_rows_and_a_mean_of_nothing(package) -> None:
    assert math.isnan(package.entropy(np.zeros((0, 3))))
    assert package.entropy(np.zeros((0, 3)), reduction="sum") == 0
    entropy, grad = package.entropy_with_grad(np.zeros((2, 3)), sample_weight=[0, 0])
    assert math.isnan(entropy) and (grad == 0).all()


@dtypes
@pytest.mark.parametrize("shape", [(1000, 10), (3, 9000), (40, 300)])
def test_in_place_and_threads_give_the_same_bits(shape: tuple[int, int], dtype: type) -> None:
    x = numbers(shape, dtype)
    for axis, temperature in itertools.product((0, 1), (1.0, 0.7)):
        options = {"axis": axis, "temperature": temperature, "reduction": "mean"}
        want = fastce.entropy_with_grad(x, **options, num_threads=1)
        for threads in (2, 3):
            out = x.copy()
            got = fastce.entropy_with_grad(out, **options, num_threads=threads, out=out)
            assert got[1] is out and got[0] == want[0]
            np.testing.assert_array_equal(out, want[1])


@needs_longdouble
@dtypes
def test_large_gradients_written_past_the_caches(dtype: type) -> None:
    """Where rows begin within a vector, too."""
    base = numbers((1, 1600 * 4100 + 3), dtype)[0]
    x = base[3:].reshape(1600, 4100)
    out = np.full(x.size + 5, NAN, dtype)
    grad = out[1:-4].reshape(x.shape)
    fastce.entropy_with_grad(x, out=grad, reduction="sum")
    check(ENTROPY, (x[:3],))
    want = fastce.entropy_with_grad(x[:3], reduction="sum")[1]
    np.testing.assert_array_equal(grad[:3], want)
    assert np.isnan(out[0]) and np.isnan(out[-4:]).all() and not np.isnan(grad).any()


@needs_longdouble
@pytest.mark.parametrize("isa", AVAILABLE)
def test_every_instruction_set_is_accurate(isa: str, tmp_path) -> None:
    calls, wants = [], []
    for dtype, classes, temperature in itertools.product(DTYPES, (1, 3, 17, 65, 1000, 5003), (1.0, 0.7)):
        x = (numbers((21 if classes < 1000 else 3, classes), dtype) * 3).astype(dtype)
        x[:2, classes // 2] = 80
        for axis in (-1, 0):
            options = {"axis": axis, "temperature": temperature, "reduction": "none"}
            given = x if axis == -1 else np.ascontiguousarray(x.T)
            calls.append(("entropy_with_grad", (given,), options))
            wants.append(exact_entropy(given, **options))
    for got, want in zip(computed_with(isa, calls, tmp_path), wants, strict=True):
        assert_within(got[0], want.loss, "entropy")
        assert_within(got[1], want.grad, "gradient")
