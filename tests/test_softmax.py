"""softmax, log_softmax, logsumexp and the vector-Jacobian products: values by hand, accuracy against exact ones on
confident rows, at offsets and over many classes, special numbers, SciPy's and PyTorch's numbers, properties of any
input, every kind of array, shared memory, wrong calls, instruction sets and threads. What is by hand or about special
numbers holds for the NumPy reference as well, and is asserted of both."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.lib.stride_tricks import as_strided

import fastce
import fastce.reference

from .isa import AVAILABLE, computed_with
from .oracle import (
    LD,
    assert_room,
    exact_log_softmax_grad,
    exact_softmax,
    exact_softmax_grad,
    needs_longdouble,
)
from .test_arrays import BITWISE, LAYOUTS, NOT_ONE_STRIDE, SAME_MEMORY, SHIFTS, WALKABLE, peak_bytes
from .test_values import CLASSES

F32, F64 = np.float32, np.float64
INF, NAN = math.inf, math.nan
DTYPES = [F32, F64]
MAPS = ["softmax", "log_softmax"]  # the shape of x in, the shape of x out
PRODUCTS = ["softmax_grad", "log_softmax_grad"]
EVERY = [*MAPS, "logsumexp", *PRODUCTS]
SHAPES = [(1, 1), (7, 3), (33, 10), (200, 17), (5, 300), (3, 4097), (2, 9000)]
WIDTHS = [4, 100, 5000]  # kernels differ with the number of classes: few, one block, several blocks
GAPS = {F32: np.arange(1, 86), F64: np.arange(1, 701)}
BY_HAND = {F32: 1e-6, F64: 2e-15}  # a handful of roundings of numbers near 1

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "f64"])


@pytest.fixture(params=[fastce, fastce.reference], ids=["fastce", "reference"])
def sm(request):
    return request.param


def _close(got, want, dtype):
    np.testing.assert_allclose(got, want, rtol=BY_HAND[dtype], atol=BY_HAND[dtype])


def numbers(shape, dtype=F32, seed=0):
    return np.random.default_rng(seed).uniform(-7, 7, shape).astype(dtype)


def call(name, x, **options):
    """Any of them on x; the products at y = softmax(x) or log_softmax(x), with some upstream."""
    if name in PRODUCTS:
        return getattr(fastce, name)(upstream_like(x), y_of(name, x), **options)
    return getattr(fastce, name)(x, **options)


def y_of(name, x):
    y = np.exp(x.astype(F64) - 7)
    y /= y.sum(axis=-1, keepdims=True)
    return (y if name == "softmax_grad" else np.log(y)).astype(x.dtype)


def upstream_like(x):
    return numbers(x.shape, x.dtype, seed=x.shape[-1])


def check_row_maps(x, *, axis=-1, **options):
    """softmax, log_softmax and logsumexp of x within the contract."""
    want = exact_softmax(x, axis=axis)
    assert_room(fastce.softmax(x, axis=axis, **options), want.p, want.p_room, "softmax at")
    room = want.logp_room
    assert_room(fastce.log_softmax(x, axis=axis, **options), want.logp, room, "log_softmax at", floor=x.shape[axis])
    assert_room(fastce.logsumexp(x, axis=axis, **options), want.lse, want.lse_room, "logsumexp of row")
    return want


def check_products(upstream, y, log_y, *, axis=-1, **options):
    got = fastce.softmax_grad(upstream, y, axis=axis, **options)
    assert_room(got, *exact_softmax_grad(upstream, y, axis=axis), "softmax_grad at")
    got = fastce.log_softmax_grad(upstream, log_y, axis=axis, **options)
    assert_room(got, *exact_log_softmax_grad(upstream, log_y, axis=axis), "log_softmax_grad at")


def check(name, got, x, axis=-1):
    """One of `call`'s results, within the contract. The products take classes last."""
    if name in PRODUCTS:
        exact = exact_softmax_grad if name == "softmax_grad" else exact_log_softmax_grad
        assert_room(got, *exact(upstream_like(x), y_of(name, x)), f"{name} at")
        return
    want = exact_softmax(x, axis=axis)
    number, room = {
        "softmax": (want.p, want.p_room),
        "log_softmax": (want.logp, want.logp_room),
        "logsumexp": (want.lse, want.lse_room),
    }[name]
    assert_room(got, number, room, f"{name} at")


# ---------------------------------------------------------------------------------------------------------------------
# By hand
# ---------------------------------------------------------------------------------------------------------------------


@dtypes
class TestByHand:
    p = np.array([0.1, 0.2, 0.3, 0.4])

    def logits(self, dtype):
        return np.log(np.array([[1, 2, 3, 4]], dtype))

    def test_shares_of_one(self, sm, dtype):
        _close(sm.softmax(self.logits(dtype)), [self.p], dtype)
        _close(sm.log_softmax(self.logits(dtype)), [np.log(self.p)], dtype)
        _close(sm.logsumexp(self.logits(dtype)), [math.log(10)], dtype)

    def test_equal_logits(self, sm, dtype):
        x = np.full((2, 4), 3, dtype)
        np.testing.assert_array_equal(sm.softmax(x), np.full((2, 4), 0.25))
        _close(sm.log_softmax(x), np.full((2, 4), -math.log(4)), dtype)
        _close(sm.logsumexp(x), [3 + math.log(4)] * 2, dtype)

    def test_one_class(self, sm, dtype):
        x = np.array([[3.5], [-2.0]], dtype)
        np.testing.assert_array_equal(sm.softmax(x), [[1], [1]])
        np.testing.assert_array_equal(sm.log_softmax(x), [[0], [0]])
        np.testing.assert_array_equal(sm.logsumexp(x), [3.5, -2])
        np.testing.assert_array_equal(sm.softmax_grad(x, np.ones_like(x)), [[0], [0]])
        np.testing.assert_array_equal(sm.log_softmax_grad(x, np.zeros_like(x)), [[0], [0]])

    def test_gradient_of_one_probability(self, sm, dtype):
        upstream = np.array([[1, 0, 0, 0]], dtype)
        _close(sm.softmax_grad(upstream, self.p[None].astype(dtype)), [[0.09, -0.02, -0.03, -0.04]], dtype)
        log_p = np.log(self.p[None]).astype(dtype)
        _close(sm.log_softmax_grad(upstream, log_p), [[0.9, -0.2, -0.3, -0.4]], dtype)

    def test_gradient_of_a_sum(self, sm, dtype):
        """The probabilities sum to 1 whatever the logits: no gradient. Their logarithms do not."""
        upstream = np.ones((1, 4), dtype)
        _close(sm.softmax_grad(upstream, self.p[None].astype(dtype)), np.zeros((1, 4)), dtype)
        _close(sm.log_softmax_grad(upstream, np.log(self.p[None]).astype(dtype)), 1 - 4 * self.p[None], dtype)

    def test_axis(self, sm, dtype):
        x = np.log(np.array([[1, 2], [3, 6]], dtype))
        _close(sm.softmax(x, axis=0), [[0.25, 0.25], [0.75, 0.75]], dtype)
        _close(sm.log_softmax(x, axis=0), np.log([[0.25, 0.25], [0.75, 0.75]]), dtype)
        _close(sm.logsumexp(x, axis=0), np.log([4, 8]), dtype)
        upstream, y = np.eye(2, dtype=dtype), np.array([[0.25, 0.25], [0.75, 0.75]], dtype)
        _close(sm.softmax_grad(upstream, y, axis=0), [[3 / 16, -3 / 16], [-3 / 16, 3 / 16]], dtype)
        _close(sm.log_softmax_grad(upstream, np.log(y), axis=0), [[0.75, -0.25], [-0.75, 0.25]], dtype)

    def test_one_dimension(self, sm, dtype):
        x = self.logits(dtype)[0]
        assert sm.softmax(x).shape == (4,)
        assert np.shape(sm.logsumexp(x)) == ()
        _close(sm.logsumexp(x), math.log(10), dtype)


def test_published_values():
    """float32, as SciPy and PyTorch return them: 0 for the first, 17 for the second, which is off by 5e-8 of 17."""
    got = fastce.log_softmax(np.array([20, 0, 0, 0], F32))[0]
    assert float(got) == pytest.approx(-6.18346e-09, rel=5e-6)
    assert float(got) == pytest.approx(-math.log1p(3 * math.exp(-20)), rel=24 * 2**-23)
    assert float(fastce.log_softmax(np.array([700.0, 0.0]))[0]) == pytest.approx(-math.exp(-700), rel=704 * 2**-52)
    assert fastce.logsumexp(np.full(8, 1e8)) == 1e8 + math.log(8)
    assert fastce.logsumexp(np.array([-1e8, -1e8])) == -1e8 + math.log(2)
    np.testing.assert_allclose(fastce.log_softmax(np.full(8, 1e8, F32)), -math.log(8), rtol=4 * np.finfo(F32).eps)


# ---------------------------------------------------------------------------------------------------------------------
# The accuracy contract
# ---------------------------------------------------------------------------------------------------------------------


def _confident(gaps, classes, dtype, seed=3):
    """One row for each gap: the maximum stands anywhere, the runner-up at 0, the others spread downwards from it."""
    x = -np.random.default_rng(seed).exponential(2, (len(gaps), classes))
    x -= x.max(axis=1, keepdims=True)
    rows, top = np.arange(len(gaps)), np.arange(len(gaps)) * 7 % classes
    x[rows, (top + 1) % classes] = 0
    x[rows, top] = gaps
    return x.astype(dtype)


@needs_longdouble
@dtypes
def test_oracle_agrees_with_the_definition(dtype):
    gaps = [0.5, 5, 20, 85, 300, 700] if dtype is F64 else [0.5, 5, 20, 85, 100]
    x = _confident(gaps, 5, dtype)
    want = exact_softmax(x)
    room = np.finfo(F64).eps / 50  # a fiftieth of what is to be measured
    for i, row in enumerate(x):
        with mpmath.workdps(400):
            exps = [mpmath.exp(mpmath.mpf(float(v))) for v in row]
            total = mpmath.fsum(exps)
            p, logp = [e / total for e in exps], [mpmath.log(e / total) for e in exps]
            got = [want.lse[i], *want.p[i], *want.logp[i]]
            for mine, true in zip(got, [mpmath.log(total), *p, *logp], strict=True):
                assert abs(mine - LD(mpmath.nstr(true, 30))) <= room * abs(mine)


@needs_longdouble
@dtypes
@pytest.mark.parametrize("classes", [2, 3, 4, 9, 17, 64, 65, 130])
@pytest.mark.parametrize("axis", [-1, 0])
def test_confident_rows(axis, classes, dtype):
    x = _confident(GAPS[dtype], classes, dtype)
    x = x if axis == -1 else np.ascontiguousarray(x.T)
    want = check_row_maps(x, axis=axis)
    assert -1e-30 < want.logp.max() < 0  # what others round to 0
    y, log_y = want.p.astype(dtype), want.logp.astype(dtype)
    rng = np.random.default_rng(1)
    check_products(rng.normal(size=x.shape).astype(dtype), y, log_y, axis=axis)
    one_hot = np.moveaxis(np.eye(classes, dtype=dtype)[np.argmax(x, axis=axis)], -1, axis)
    check_products(one_hot, y, log_y, axis=axis)


@needs_longdouble
@dtypes
@pytest.mark.parametrize("classes", [2, 5, 65, 1000])
@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4, 1e6, 1e8, -1e4, -1e8])
@pytest.mark.parametrize("axis", [-1, 0])
def test_offsets(axis, offset, classes, dtype):
    """A constant that is exact in the dtype changes no bound: the logits are multiples of the offset's last place."""
    grid = float(max(np.spacing(dtype(abs(offset) * 2)), np.spacing(dtype(64))))
    x = np.round(-np.random.default_rng(4).exponential(4, (60, classes)) / grid) * grid
    x[:, 0] = 0
    shifted = (x + offset).astype(dtype)
    assert (shifted.astype(F64) - offset == x).all()
    check_row_maps(shifted if axis == -1 else np.ascontiguousarray(shifted.T), axis=axis)
    tolerance = 10 * np.finfo(dtype).eps
    for f in (fastce.softmax, fastce.log_softmax):
        np.testing.assert_allclose(f(shifted), f(x.astype(dtype)), rtol=tolerance, atol=0)


@needs_longdouble
@dtypes
@pytest.mark.parametrize("power", [0, 2, 6, 10, 14, 18, 20])
def test_many_classes(power, dtype):
    """Equal terms are rounded alike, so that nothing averages out: a float32 running sum drifts by C/2 eps."""
    classes = 1 << power
    x = np.full((2, classes), -0.1, dtype)
    x[0, 0] = 0
    x[1, classes // 3] = 20.3 + np.log(classes)
    want = check_row_maps(x)
    y, log_y = want.p.astype(dtype), want.logp.astype(dtype)
    check_products(np.full(x.shape, 1 / 3, dtype), y, log_y)
    if power <= 14:
        check_row_maps(np.ascontiguousarray(x.T), axis=0)
        check_products(np.full(x.shape[::-1], 1 / 3, dtype), y.T.copy(), log_y.T.copy(), axis=0)


@needs_longdouble
@dtypes
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("rows", [1, 3, 130])
def test_grid_against_exact_values(rows, classes, dtype):
    if rows * classes > 1 << 17:
        rows = 2
    rng = np.random.default_rng(rows * 100_003 + classes)
    x = (rng.normal(size=(rows, classes)) * 8 + rng.normal(size=(rows, 1)) * 90).astype(dtype)
    for axis in (-1, 0):
        given = x if axis == -1 else np.ascontiguousarray(x.T)
        want = check_row_maps(given, axis=axis)
        upstream = rng.normal(size=given.shape).astype(dtype)
        check_products(upstream, want.p.astype(dtype), want.logp.astype(dtype), axis=axis)


@needs_longdouble
@dtypes
@pytest.mark.parametrize("classes", [2, 9, 65, 130])
def test_underflow_is_gradual(classes, dtype):
    """Down to the smallest subnormal nothing is flushed to zero."""
    gaps = {F32: np.linspace(85, 103, 73), F64: np.linspace(706, 744, 153)}[dtype]
    x = np.zeros((len(gaps), classes), dtype)
    x[:, -1] = gaps
    want = exact_softmax(x)
    p = fastce.softmax(x)
    assert_room(p, want.p, want.p_room, "softmax at")
    assert (p > 0).all()
    tiny = np.finfo(dtype).tiny
    assert (p[:, 0] < tiny).any()
    logp = fastce.log_softmax(x)
    # a sum of classes - 1 terms, each rounded by up to half a step
    step = (classes + 1) / 2 * LD(np.finfo(dtype).smallest_subnormal)
    error = np.abs(logp - want.logp)
    assert (error <= want.logp_room * np.finfo(dtype).eps + step).all()
    assert (logp[:, -1][want.logp[:, -1] < -step] != 0).all()


# Textbook formulas lose digits to cancellation: a few eps of numbers of size 10, in sums of 12.
TEXTBOOK = {F32: 2e-5, F64: 4e-14}


@needs_longdouble
@dtypes
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_reference_is_right(axis, dtype):
    x, upstream = numbers((4, 12, 5), dtype), numbers((4, 12, 5), dtype, seed=1)
    want = exact_softmax(x, axis=axis)
    y, log_y = want.p.astype(dtype), want.logp.astype(dtype)
    twin = fastce.reference
    for function, arguments, number in (
        (twin.softmax, (x,), want.p),
        (twin.log_softmax, (x,), want.logp),
        (twin.logsumexp, (x,), want.lse),
        (twin.softmax_grad, (upstream, y), exact_softmax_grad(upstream, y, axis=axis)[0]),
        (twin.log_softmax_grad, (upstream, log_y), exact_log_softmax_grad(upstream, log_y, axis=axis)[0]),
    ):
        got = function(*arguments, axis=axis)
        assert got.dtype == dtype
        np.testing.assert_allclose(got, number.astype(dtype), rtol=TEXTBOOK[dtype], atol=TEXTBOOK[dtype])
        out = np.empty_like(got)
        assert function(*arguments, axis=axis, out=out) is out
        np.testing.assert_array_equal(out, got)
        if function is not twin.logsumexp:
            for i, argument in enumerate(arguments):  # in place of either
                given = [*arguments[:i], argument.copy(), *arguments[i + 1 :]]
                assert function(*given, axis=axis, out=given[i]) is given[i]
                np.testing.assert_array_equal(given[i], got)


@dtypes
@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("classes", [3, 70])
def test_products_are_derivatives(name, classes, dtype):
    """4th-order central differences, in float64, of sum(upstream * softmax(x))."""
    rng = np.random.default_rng(5)
    x, upstream = rng.normal(size=(3, classes)).astype(dtype).astype(F64), rng.normal(size=(3, classes))
    forward = getattr(fastce, name.removesuffix("_grad"))
    grad = getattr(fastce, name)(upstream, forward(x))
    h = 1e-3  # the method's error is h^4/30 times the fifth derivative, rounding is eps*value/h: each below 1e-11
    for i, j in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i, j] = h
        difference = 8 * (forward(x + step) - forward(x - step)) - (forward(x + 2 * step) - forward(x - 2 * step))
        assert (upstream * difference).sum() / (12 * h) == pytest.approx(grad[i, j], abs=1e-10)


# ---------------------------------------------------------------------------------------------------------------------
# Infinities, NaN, absent rows
# ---------------------------------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("width", WIDTHS)
class TestSpecialNumbers:
    def test_masked_classes_have_no_probability(self, sm, width, dtype):
        x = np.full((3, width), -INF, dtype)
        x[:, 1], x[1:, width - 1], x[2, 0] = 2, 2, 2
        for i, classes in enumerate(([1], [1, width - 1], [0, 1, width - 1])):
            p = np.zeros(width)
            p[classes] = 1 / len(classes)
            _close(sm.softmax(x)[i], p, dtype)
            assert (sm.softmax(x)[i][p == 0] == 0).all()
            logp = sm.log_softmax(x)[i]
            assert (logp[p == 0] == -INF).all()
            _close(logp[classes], -math.log(len(classes)), dtype)
            _close(sm.logsumexp(x)[i], 2 + math.log(len(classes)), dtype)

    @pytest.mark.parametrize(
        "held, lse",
        [
            ({2: NAN}, NAN),
            ({0: INF}, INF),
            ({1: INF, 3: INF}, INF),
            ({1: INF, 2: -INF}, INF),
            ({1: INF, 2: NAN}, NAN),
            ({1: -INF, 2: NAN}, NAN),
            (None, -INF),
        ],
        ids=["NaN", "inf", "two inf", "inf and -inf", "inf and NaN", "-inf and NaN", "all -inf"],
    )
    def test_bad_rows_are_nan_and_alone(self, sm, width, dtype, held, lse):
        row = np.full(width, 0.5 if held else -INF)
        for position, value in (held or {}).items():
            row[position] = value
        x = np.random.default_rng(6).normal(size=(9, width)).astype(dtype)
        good = [sm.softmax(x), sm.log_softmax(x), sm.logsumexp(x)]
        for i in (0, 4, 8):
            given, others = x.copy(), np.arange(9) != i
            given[i] = row
            got = [sm.softmax(given), sm.log_softmax(given), sm.logsumexp(given)]
            assert np.isnan(got[0][i]).all() and np.isnan(got[1][i]).all()
            np.testing.assert_array_equal(got[2][i], lse)
            for mine, want in zip(got, good, strict=True):
                np.testing.assert_array_equal(mine[others], want[others])

    def test_products_of_masked_classes(self, sm, width, dtype):
        upstream, y = np.full((2, width), 3, dtype), np.zeros((2, width), dtype)
        upstream[:, 1], upstream[:, 2] = 1, 5
        y[:, 1:3] = 0.5
        grad = sm.softmax_grad(upstream, y)
        _close(grad[:, 1:3], [[-1, 1]] * 2, dtype)
        assert (np.delete(grad, [1, 2], axis=1) == 0).all()
        upstream[:, 0], upstream[:, 3:] = 0, 0
        with np.errstate(divide="ignore"):
            grad = sm.log_softmax_grad(upstream, np.log(y))
        _close(grad[:, 1:3], [[-2, 2]] * 2, dtype)
        assert (np.delete(grad, [1, 2], axis=1) == 0).all()

    @pytest.mark.parametrize("name", PRODUCTS)
    def test_nan_stays_in_its_row(self, sm, width, dtype, name):
        y = np.full((3, width), 1 / width if name == "softmax_grad" else -math.log(width), dtype)
        upstream = np.random.default_rng(7).normal(size=y.shape).astype(dtype)
        good = getattr(sm, name)(upstream, y)
        for at in (0, width - 1):
            bad = upstream.copy()
            bad[1, at] = NAN
            got = getattr(sm, name)(bad, y)
            assert np.isnan(got[1]).all()
            np.testing.assert_array_equal(got[[0, 2]], good[[0, 2]])
            bad = y.copy()
            bad[1] = NAN
            got = getattr(sm, name)(upstream, bad)
            assert np.isnan(got[1]).all()
            np.testing.assert_array_equal(got[[0, 2]], good[[0, 2]])


@dtypes
@pytest.mark.parametrize("shape", [(0, 5), (3, 0, 5), (2, 0, 1)])
def test_no_rows(sm, shape, dtype):
    x = np.zeros(shape, dtype)
    assert sm.logsumexp(x).shape == shape[:-1]
    assert sm.logsumexp(x).dtype == dtype
    results = [sm.softmax(x), sm.log_softmax(x), sm.softmax_grad(x, x), sm.log_softmax_grad(x, x)]
    for result in results:
        assert result.shape == shape
        assert result.dtype == dtype


# ---------------------------------------------------------------------------------------------------------------------
# Peers
# ---------------------------------------------------------------------------------------------------------------------


def _peer(name):
    """The module, or a skip that says what is missing. Importing a peer may warn; that is its own business."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"compares with {name}, which is not installed", exc_type=ImportError)


@dtypes
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("masked", [0, 0.3])
def test_scipy(masked, axis, dtype):
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
@pytest.mark.parametrize("name", MAPS)
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
# Any input
# ---------------------------------------------------------------------------------------------------------------------

SETTINGS = settings(max_examples=120, deadline=None, derandomize=True)


@st.composite
def logits(draw, masked=True):
    """(n, C), of numbers near 0, large, repeated or masked; every row has a number."""
    dtype = draw(st.sampled_from(DTYPES))
    width = np.finfo(dtype).bits
    shape = draw(st.integers(1, 6)), draw(st.integers(1, 12) | st.sampled_from([63, 64, 65, 66, 130]))
    values = st.floats(-60, 60, width=width) | st.sampled_from([0.0, -0.0, 1.0, 1e-6, 500.0, -500.0, 1e4])
    if masked:
        values |= st.just(-INF)
    values = values.map(lambda value: float(dtype(value)))
    x = draw(hnp.arrays(dtype, shape, elements=values, fill=st.floats(-3, 3, width=width)))
    x[np.isneginf(x).all(axis=1), 0] = 0
    return x


@needs_longdouble
@SETTINGS
@given(x=logits())
def test_any_logits_are_within_the_contract(x):
    check_row_maps(x)
    check_row_maps(np.asfortranarray(x))
    check_row_maps(np.ascontiguousarray(x.T), axis=0)


@SETTINGS
@given(x=logits())
def test_rows_sum_to_one(x):
    p = fastce.softmax(x)
    assert ((p >= 0) & (p <= 1)).all()
    # an element at distance d is within (4 + d) eps, and exp(-d)*d sums to at most 1 + log C of the whole
    room = (6 + np.log(x.shape[1])) * np.finfo(x.dtype).eps
    np.testing.assert_allclose(p.sum(axis=1, dtype=LD).astype(F64), 1, rtol=0, atol=room)
    last, logp = np.log(F64(np.finfo(x.dtype).smallest_subnormal)), fastce.log_softmax(x)
    assert (logp[p == 0] < last).all() and (logp[p > 0] > last - 1).all()  # half a step is rounded up: log 2


@SETTINGS
@given(x=logits())
def test_logarithms_and_exponentials_agree(x):
    logp, lse = fastce.log_softmax(x), np.asarray(fastce.logsumexp(x))
    assert (logp <= 0).all()
    eps = np.finfo(x.dtype).eps
    distance = np.where(np.isfinite(logp), -logp, 0)
    p = fastce.softmax(x)
    assert (np.abs(np.exp(logp.astype(F64)) - p) <= (10 + 2 * distance) * eps * p + 2 * np.finfo(x.dtype).tiny).all()
    m = x.max(axis=1)
    assert (lse >= m).all()
    assert (lse <= m + np.log(x.shape[1]) + 8 * eps * (np.abs(m) + 5)).all()


@SETTINGS
@given(x=logits(), shift=st.integers(-1000, 1000))
def test_shifts_change_nothing(x, shift):
    """By a multiple of the logits' last place, so that the shifted ones are exact."""
    eps = np.finfo(x.dtype).eps
    x = np.where(np.isneginf(x), x, np.round(x.astype(F64) / 2**-8) * 2**-8).astype(x.dtype)
    moved = x + x.dtype.type(shift)
    distance = x.max(axis=1, keepdims=True) - x
    room = 2 * (4 + np.where(np.isfinite(distance), distance, 0)) * eps
    tiny = 4 * np.finfo(x.dtype).smallest_subnormal
    p = fastce.softmax(x)
    assert (np.abs(fastce.softmax(moved) - p) <= room * p + tiny).all()
    logp, other = fastce.log_softmax(x), fastce.log_softmax(moved)
    finite = np.isfinite(logp)
    np.testing.assert_array_equal(finite, np.isfinite(other))
    gap = x.max(axis=1) - np.sort(x, axis=1)[:, -2:].min(axis=1)
    room = np.broadcast_to(2 * (4 + np.where(np.isfinite(gap), gap, 0))[:, None] * eps, x.shape)
    assert (np.abs(other[finite] - logp[finite]) <= room[finite] * -logp[finite] + 64 * tiny).all()


@SETTINGS
@given(x=logits(), seed=st.integers(0, 99))
def test_order_of_classes_does_not_matter(x, seed):
    order = np.random.default_rng(seed).permutation(x.shape[1])
    p = fastce.softmax(x)
    distance = x.max(axis=1, keepdims=True) - x
    room = 2 * (4 + np.where(np.isfinite(distance), distance, 0)) * np.finfo(x.dtype).eps
    got = fastce.softmax(x[:, order])
    assert (np.abs(got - p[:, order]) <= (room * p)[:, order] + 4 * np.finfo(x.dtype).smallest_subnormal).all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(x=logits(masked=False))
def test_jacobians(x):
    """Applied to the unit vectors the products are the Jacobian: p_j*((j == k) - p_k), symmetric, with rows that sum to
    zero; and (j == k) - p_k for the logarithm."""
    x = x[:1, :40]
    classes = x.shape[1]
    p, logp = (np.repeat(f(x), classes, axis=0) for f in (fastce.softmax, fastce.log_softmax))
    unit = np.eye(classes, dtype=x.dtype)
    eps, tiny = np.finfo(x.dtype).eps, np.finfo(x.dtype).tiny
    jacobian = fastce.softmax_grad(unit, p).astype(F64)
    p = p.astype(F64)
    np.testing.assert_allclose(jacobian, jacobian.T, rtol=16 * eps, atol=tiny)
    np.testing.assert_allclose(jacobian, p[0] * (unit - p.T), rtol=16 * eps, atol=16 * eps * p.max())
    np.testing.assert_allclose(jacobian.sum(axis=1), 0, atol=(16 + classes) * eps)
    assert (np.diag(jacobian) >= -16 * eps).all()
    of_logs = fastce.log_softmax_grad(unit, logp)
    np.testing.assert_allclose(of_logs, unit - p[0], rtol=0, atol=(16 + 2 * 40) * eps)


# ---------------------------------------------------------------------------------------------------------------------
# Every kind of array
# ---------------------------------------------------------------------------------------------------------------------


@needs_longdouble
@dtypes
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_changes_no_result(layout, shape, dtype):
    plain = numbers(shape, dtype)
    x = LAYOUTS[layout](plain)
    check_row_maps(x)
    y, log_y = (LAYOUTS[layout](y_of(name, plain)) for name in PRODUCTS)
    upstream = LAYOUTS[layout](upstream_like(plain))
    check_products(upstream, y, log_y)
    for argument in (y, log_y):  # one argument laid out so, the other plain
        check_products(upstream_like(plain), argument, argument)
        check_products(upstream, argument.copy(), argument.copy())
    if layout in BITWISE:
        for name in (*MAPS, "logsumexp"):
            assert getattr(fastce, name)(x).tobytes() == getattr(fastce, name)(plain).tobytes()
    np.testing.assert_array_equal(x, plain)
    np.testing.assert_array_equal(upstream, upstream_like(plain))
    np.testing.assert_array_equal(y, y_of("softmax_grad", plain))


@needs_longdouble
@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_of_out_changes_no_result(layout, shape, name):
    x = numbers(shape)
    out = LAYOUTS[layout](np.full(shape[:-1] if name == "logsumexp" else shape, 9, F32))
    if layout in WALKABLE or layout == "subclass":
        around = out if out.base is None else out.base
        untouched = np.isnan(around).sum()
        assert call(name, x, out=out) is out
        check(name, out, x)
        assert np.isnan(around).sum() == untouched, "written beside out"
    else:  # read-only, byte-swapped or unaligned: refused
        with pytest.raises(ValueError, match="^out "):
            call(name, x, out=out)


@needs_longdouble
@pytest.mark.parametrize("shape", [(4, 5, 3), (3, 50, 10), (2, 7, 300), (4, 1, 70)])
@pytest.mark.parametrize("layout", NOT_ONE_STRIDE)
def test_three_dimensions_whose_rows_have_no_common_stride(layout, shape):
    plain = numbers(shape)
    x = NOT_ONE_STRIDE[layout](plain)
    for axis in (-1, 0, 1):
        check_row_maps(x, axis=axis)
    y, log_y = (y_of(name, plain) for name in PRODUCTS)
    rearranged = [NOT_ONE_STRIDE[layout](a) for a in (upstream_like(plain), y, log_y)]
    check_products(*rearranged)
    check_products(rearranged[0], y, log_y)
    check_products(upstream_like(plain), *rearranged[1:])
    np.testing.assert_array_equal(x, plain)
    for name in MAPS:
        got = NOT_ONE_STRIDE[layout](plain.copy())
        assert call(name, got, out=got) is got
        check(name, got, plain)


@needs_longdouble
@pytest.mark.parametrize("axis", [0, 1, 2, 3, -2, -4])
@pytest.mark.parametrize("layout", ["contiguous", "Fortran", "every second row", "all reversed", "unaligned"])
def test_every_axis_of_every_layout(layout, axis):
    plain = numbers((3, 4, 5, 6))
    x = LAYOUTS[layout](plain)
    want = check_row_maps(x, axis=axis)
    rng = np.random.default_rng(1)
    check_products(rng.normal(size=x.shape), want.p.astype(F32), want.logp.astype(F32), axis=axis)
    for name, number, room in (("softmax", want.p, want.p_room), ("log_softmax", want.logp, want.logp_room)):
        got = getattr(fastce, name)(x, axis=axis)
        assert got.strides == np.empty_like(x).strides
        out = np.zeros_like(x) if layout == "unaligned" else LAYOUTS[layout](np.zeros_like(plain))
        assert getattr(fastce, name)(x, axis=axis, out=out) is out
        assert_room(out, number, room, f"{name} at")
    rows = fastce.logsumexp(x, axis=axis)
    out = LAYOUTS["all reversed"](np.zeros_like(rows))
    assert fastce.logsumexp(x, axis=axis, out=out) is out
    np.testing.assert_array_equal(out, rows)


@needs_longdouble
@pytest.mark.parametrize("axes", ["rows", "classes", "both"])
def test_broadcast_arrays(axes):
    small = {"rows": (1, 10), "classes": (33, 1), "both": (1, 1)}[axes]
    x = np.broadcast_to(numbers(small), (33, 10))
    assert 0 in x.strides
    check_row_maps(x)
    check_products(x, np.broadcast_to(F32(0.1), (33, 10)), np.broadcast_to(F32(-2), (33, 10)))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("kind", ["?", "i1", "u2", "i8", "u8"])
def test_integers_and_bools_are_computed_in_float64(kind, name):
    x = np.random.default_rng(0).integers(0, 2, (6, 5)).astype(kind)
    arguments = (x, x) if name in PRODUCTS else (x,)
    expected = getattr(fastce, name)(*(a.astype(F64) for a in arguments))
    got = getattr(fastce, name)(*arguments)
    assert got.dtype == F64
    assert got.tobytes() == expected.tobytes()
    out = np.zeros_like(expected)
    assert getattr(fastce, name)(*arguments, out=out) is out
    assert out.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", PRODUCTS)
def test_product_has_the_dtype_of_y(name):
    y = y_of(name, numbers((6, 5)))
    upstream = np.arange(30).reshape(6, 5) % 7
    expected = getattr(fastce, name)(upstream.astype(F32), y)
    for kind in ("f8", "f2", "i4", "u1", ">f4"):
        got = getattr(fastce, name)(upstream.astype(kind), y)
        assert got.dtype == F32
        assert got.tobytes() == expected.tobytes()
    assert getattr(fastce, name)(upstream.astype(F32), y.astype(F64)).dtype == F64


@pytest.mark.parametrize("name", PRODUCTS)
def test_upstream_too_large_for_the_dtype_of_y_is_infinite_without_a_warning(name):
    y = y_of(name, numbers((2, 5)))
    large = np.ones(y.shape)
    large[0, 1] = 1e300
    got = getattr(fastce, name)(large, y)
    assert not np.isfinite(got[0]).any()
    assert got[1].tobytes() == getattr(fastce, name)(np.ones_like(y), y)[1].tobytes()


@pytest.mark.parametrize("name", EVERY)
def test_lists_are_arrays(name):
    x = numbers((3, 4), F64)
    arguments = (x, y_of(name, x)) if name in PRODUCTS else (x,)
    got = getattr(fastce, name)(*(a.tolist() for a in arguments))
    assert got.tobytes() == getattr(fastce, name)(*arguments).tobytes()


@pytest.mark.parametrize("mode", ["r", "c", "r+"])
def test_memory_mapped(tmp_path: Path, mode: Any) -> None:
    x = numbers((40, 30))
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode=mode)
    for name in (*MAPS, "logsumexp"):
        got = getattr(fastce, name)(mapped)
        assert type(got) is np.ndarray
        assert got.tobytes() == getattr(fastce, name)(x).tobytes()
    if mode == "r+":  # over the logits, into the file
        assert fastce.softmax(mapped, out=mapped) is mapped
        mapped.flush()
        assert np.load(tmp_path / "x.npy").tobytes() == fastce.softmax(x).tobytes()


@dtypes
@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 1, 2, 3, 7), (1,) * 6 + (7,)])
def test_types_and_shapes_of_the_results(shape, dtype):
    x = numbers(shape, dtype)
    for array in (x, x.astype(x.dtype.newbyteorder()), np.asfortranarray(x)):
        for name in (*MAPS, *PRODUCTS):
            got = call(name, array)
            assert type(got) is np.ndarray
            assert got.shape == shape
            assert got.dtype == np.dtype(dtype) and got.dtype.isnative
            assert got.flags.writeable
            assert not np.shares_memory(got, array)
        rows = fastce.logsumexp(array)
        assert np.shape(rows) == shape[:-1]
        assert rows.dtype == np.dtype(dtype) and rows.dtype.isnative
    if len(shape) == 1:
        out = np.zeros((), dtype)
        assert fastce.logsumexp(x, out=out) is out
        assert out == fastce.logsumexp(x)


# ---------------------------------------------------------------------------------------------------------------------
# Shared memory, copies
# ---------------------------------------------------------------------------------------------------------------------


@needs_longdouble
@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("shape", [*SHAPES, (300, 64), (100, 65)])
@pytest.mark.parametrize("layout", WALKABLE)
def test_in_place(layout, shape, name):
    plain = numbers(shape)
    x = WALKABLE[layout](plain.copy())
    assert getattr(fastce, name)(x, out=x) is x
    check(name, x, plain)


@needs_longdouble
@pytest.mark.parametrize("argument", ["upstream", "y", "both"])
@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", ["contiguous", "Fortran", "columns reversed", "every third column"])
def test_products_in_place(layout, shape, name, argument):
    x = numbers(shape)
    y = WALKABLE[layout](y_of(name, x))
    upstream = y if argument == "both" else WALKABLE[layout](upstream_like(x))
    exact = exact_softmax_grad if name == "softmax_grad" else exact_log_softmax_grad
    want = exact(upstream, y)
    out = upstream if argument == "upstream" else y
    assert getattr(fastce, name)(upstream, y, out=out) is out
    assert_room(out, *want, f"{name} at")


@needs_longdouble
@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_in_place_on_every_axis(axis, name):
    plain = numbers((20, 30, 40))
    x = plain.copy()
    assert getattr(fastce, name)(x, axis=axis, out=x) is x
    check(name, x, plain, axis)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("threads", [1, 2])
def test_in_place_when_large(threads, name):
    x = np.random.default_rng(0).standard_normal((70, 130_000), dtype=F32)  # past where stores may bypass the caches
    expected = getattr(fastce, name)(x, num_threads=threads)
    assert getattr(fastce, name)(x, out=x, num_threads=threads) is x
    np.testing.assert_allclose(x, expected, rtol=44 * np.finfo(F32).eps, atol=0)


@needs_longdouble
@pytest.mark.parametrize("forward", [True, False], ids=["out behind", "out before"])
@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("shape", [(33, 10), (300, 3), (3, 9000)])
def test_out_shifted_against_an_argument(shape, shift, forward):
    size, by = shape[0] * shape[1], SHIFTS[shift](*shape)
    plain = numbers(shape)

    def buffers(content: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        both = np.full(size + by, 7, F32)
        given, out = (both[:size], both[by:]) if forward else (both[by:], both[:size])
        given, out = given.reshape(shape), out.reshape(shape)
        given[...] = content
        return given, out

    for name in MAPS:
        given, out = buffers(plain)
        assert getattr(fastce, name)(given, out=out) is out
        check(name, out, plain)
    for name in PRODUCTS:
        upstream, y = upstream_like(plain), y_of(name, plain)
        given, out = buffers(y)
        getattr(fastce, name)(upstream, given, out=out)
        check(name, out, plain)
        given, out = buffers(upstream)
        getattr(fastce, name)(given, y, out=out)
        check(name, out, plain)


@needs_longdouble
@pytest.mark.parametrize("view", SAME_MEMORY)
@pytest.mark.parametrize("n", [1, 5, 40, 300])
def test_out_is_the_same_memory_in_another_order(n, view):
    plain = numbers((n, n))
    for name in MAPS:
        x = plain.copy()
        out = SAME_MEMORY[view](x)
        assert np.shares_memory(out, x)
        assert getattr(fastce, name)(x, out=out) is out
        check(name, out, plain)
    for name in PRODUCTS:
        y = y_of(name, plain)
        getattr(fastce, name)(upstream_like(plain), y, out=SAME_MEMORY[view](y))
        check(name, SAME_MEMORY[view](y), plain)


@needs_longdouble
@pytest.mark.parametrize("place", [np.s_[:, 0], np.s_[:, -1], np.s_[0, :], np.s_[-1, ::-1]], ids=str)
@pytest.mark.parametrize("n", [5, 40, 300])
def test_logsumexp_into_its_own_logits(n, place):
    plain = numbers((n, n))
    x = plain.copy()
    out = x[place]
    assert fastce.logsumexp(x, out=out) is out
    check("logsumexp", out, plain)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("layout", WALKABLE)
@pytest.mark.parametrize("shape", [(40_000, 10), (400, 1000)])
def test_walkable_arrays_are_not_copied(shape, layout, name):
    x = WALKABLE[layout](numbers(shape, F64))
    arguments = (x, WALKABLE[layout](y_of(name, x))) if name in PRODUCTS else (x,)
    out = np.empty(shape[:-1]) if name == "logsumexp" else np.empty_like(x)
    function = getattr(fastce, name)
    function(*(a[:2] for a in arguments), out=out[:2])
    small_change = 0.3 * x.nbytes  # per-row arrays, scratch
    assert peak_bytes(lambda: function(*arguments, out=out)) < small_change
    if name != "logsumexp":
        assert peak_bytes(lambda: function(*arguments, out=arguments[0])) < small_change


# ---------------------------------------------------------------------------------------------------------------------
# Wrong calls
# ---------------------------------------------------------------------------------------------------------------------

X = numbers((20, 10))


def _unaligned(shape, dtype=F32):
    return np.zeros(int(np.prod(shape)) * np.dtype(dtype).itemsize + 1, np.uint8)[1:].view(dtype).reshape(shape)


def _read_only(shape):
    out = np.zeros(shape, F32)
    out.flags.writeable = False
    return out


WRONG_INPUT: dict[str, tuple[Any, Any, str]] = {
    "None": (None, TypeError, "None"),
    "masked": (np.ma.masked_array(X, mask=False), TypeError, "mask"),
    "object": (X.astype(object), TypeError, "object"),
    "complex": (X.astype(complex), TypeError, "complex128"),
    "float16": (X.astype(np.float16), TypeError, "float16.*float32"),
    "longdouble": (X.astype(np.longdouble), TypeError, "(float128|longdouble|float96)|float64"),
    "strings": (X.astype(str), TypeError, "<U"),
    "a dict": ({0: X}, TypeError, "is dict, expected an array"),
    "a generator": ((row for row in X), TypeError, "is generator, expected an array"),
    "a scalar": (F32(1), ValueError, "dimension"),
    "no classes": (np.zeros((20, 0), F32), ValueError, "class"),
    "ragged": ([[1.0, 2.0], [3.0]], (TypeError, ValueError), ""),
}
WRONG_OPTION: dict[str, tuple[dict[str, Any], Any, str]] = {
    "axis too large": ({"axis": 2}, ValueError, "axis .*2"),
    "axis too small": ({"axis": -3}, ValueError, "axis .*-3"),
    "axis float": ({"axis": 1.0}, TypeError, "axis .*1.0"),
    "axis None": ({"axis": None}, TypeError, "axis .*None"),
    "axis bool": ({"axis": True}, TypeError, "axis .*True"),
    "no threads": ({"num_threads": 0}, ValueError, "num_threads .*0"),
    "bool threads": ({"num_threads": True}, ValueError, "num_threads .*True"),
    "half a thread": ({"num_threads": 0.5}, ValueError, "num_threads .*0.5"),
}
WRONG_OUT: dict[str, tuple[Callable[[tuple[int, ...]], Any], Any, str]] = {
    "a list": (lambda s: np.zeros(s).tolist(), TypeError, "list"),
    "masked": (lambda s: np.ma.masked_array(np.zeros(s, F32), mask=False), TypeError, "Masked"),
    "dtype": (lambda s: np.zeros(s), ValueError, "float64, expected float32"),
    "shape": (lambda s: np.zeros((*s[:-1], s[-1] + 1), F32), ValueError, "shape .*expected"),
    "dimensions": (lambda s: np.zeros((*s, 1), F32), ValueError, "shape .*expected"),
    "read-only": (_read_only, ValueError, "read-only"),
    "byte order": (lambda s: np.zeros(s, np.dtype(F32).newbyteorder()), ValueError, "dtype"),
    "unaligned": (_unaligned, ValueError, "aligned"),
    "overlaps itself": (lambda s: as_strided(np.zeros(99, F32), s, (4,) * len(s)), ValueError, "overlaps itself"),
    "broadcast": (lambda s: np.broadcast_to(np.zeros(1, F32), s), ValueError, ""),
}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("wrong", WRONG_INPUT)
def test_wrong_input(wrong, name):
    value, error, says = WRONG_INPUT[wrong]
    if name in PRODUCTS:
        with pytest.raises(error, match=rf"(?s)^y .*{says}"):
            getattr(fastce, name)(X, value)
    else:
        with pytest.raises(error, match=rf"(?s)^x .*{says}"):
            getattr(fastce, name)(value)


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("wrong", [w for w in WRONG_INPUT if w not in ("float16", "longdouble")])
def test_wrong_upstream(wrong, name):
    value, error, says = WRONG_INPUT[wrong]
    says = says if wrong in ("None", "masked", "object", "complex", "strings", "a dict", "a generator") else ""
    with pytest.raises(error, match=rf"(?s)^upstream .*{says}"):
        getattr(fastce, name)(value, X)


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("shape", [(20,), (10,), (20, 1), (1, 10), (10, 20), (1, 20, 10)])
def test_upstream_of_another_shape(shape, name):
    with pytest.raises(ValueError) as raised:
        getattr(fastce, name)(np.ones(shape, F32), X)
    assert "upstream" in str(raised.value)
    assert str(shape) in str(raised.value) and "(20, 10)" in str(raised.value)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("wrong", WRONG_OPTION)
def test_wrong_option_and_untouched_out(wrong, name):
    options, error, says = WRONG_OPTION[wrong]
    out = np.full(20 if name == "logsumexp" else (20, 10), 12345, F32)
    with pytest.raises(error, match=rf"^{says}"):
        call(name, X, out=out, **options)
    assert (out == 12345).all()


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("wrong", WRONG_OUT)
def test_wrong_out(wrong, name):
    make, error, says = WRONG_OUT[wrong]
    if name == "logsumexp" and wrong == "overlaps itself":
        out: Any = as_strided(np.zeros(1, F32), (20,), (0,))
    else:
        out = make((20,) if name == "logsumexp" else (20, 10))
    before = np.array(out)
    with pytest.raises(error, match=rf"^out .*{says}"):
        call(name, X, out=out)
    np.testing.assert_array_equal(np.array(out), before)


# ---------------------------------------------------------------------------------------------------------------------
# Threads and instruction sets
# ---------------------------------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("shape", [(1, 40_000), (3000, 7), (257, 130), (33, 4500)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_results_do_not_depend_on_the_number_of_threads(order, shape, name, dtype):
    x = np.asarray(numbers(shape, dtype), order=order)
    arguments = (upstream_like(x), y_of(name, x)) if name in PRODUCTS else (x,)
    function = getattr(fastce, name)
    expected = function(*arguments, num_threads=1).tobytes()
    for num_threads in (2, 3, 7, None):
        assert function(*arguments, num_threads=num_threads).tobytes() == expected, f"num_threads={num_threads}"


@needs_longdouble
@pytest.mark.parametrize("isa", AVAILABLE)
def test_every_instruction_set_is_accurate(isa, tmp_path):
    """Classes along rows and across them; and the first of a row confident."""
    cases, calls = [], []
    sizes = (1, 2, 3, 7, 8, 9, 16, 17, 33, 65, 1000, 5003)
    for seed, (dtype, classes) in enumerate((dtype, size) for dtype in DTYPES for size in sizes):
        x = (numbers((21 if classes < 1000 else 3, classes), dtype, seed) * 3).astype(dtype)
        x[0, classes // 2] = 80
        for axis in (-1, 0):
            x = x if axis == -1 else np.ascontiguousarray(x.T)
            want = exact_softmax(x, axis=axis)
            upstream = numbers(x.shape, dtype, seed + 1)
            y, log_y = want.p.astype(dtype), want.logp.astype(dtype)
            options = {"axis": axis}
            for name, arguments, number, room in (
                ("softmax", (x,), want.p, want.p_room),
                ("log_softmax", (x,), want.logp, want.logp_room),
                ("logsumexp", (x,), want.lse, want.lse_room),
                ("softmax_grad", (upstream, y), *exact_softmax_grad(upstream, y, axis=axis)),
                ("log_softmax_grad", (upstream, log_y), *exact_log_softmax_grad(upstream, log_y, axis=axis)),
            ):
                calls.append((name, arguments, options))
                cases.append((number, room, f"{name}, {classes} classes of {np.dtype(dtype)} on axis {axis}, at"))
    for got, (number, room, what) in zip(computed_with(isa, calls, tmp_path), cases, strict=True):
        assert_room(got, number, room, what)
