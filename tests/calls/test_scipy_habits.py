"""softmax, log_softmax and logsumexp in place of those of scipy.special: several class axes, `keepdims`, scalars.

The first part has the cases of SciPy's own tests (scipy/special/tests/test_logsumexp.py), with ``axis=None`` where they
leave it out, and without complex numbers and the options `b` and `return_sign`, which fastce does not have."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from functions import F32, F64, MAPS, PRODUCTS, Family, check, dtypes, numbers
from layouts import LAYOUTS, peak_bytes

import fastce
import fastce.reference

close = partial(np.testing.assert_allclose, rtol=1e-13, atol=0, strict=True)
equal = partial(np.testing.assert_array_equal, strict=True)
softmax, log_softmax, logsumexp = (
    partial(function, axis=None) for function in (fastce.softmax, fastce.log_softmax, fastce.logsumexp)
)

# ---------------------------------------------------------------------------------------------------------------------
# SciPy's cases
# ---------------------------------------------------------------------------------------------------------------------


class TestLogSumExp:
    def test_empty_sum(self) -> None:
        assert logsumexp([]) == -np.inf
        equal(fastce.logsumexp(np.zeros((3, 0), F32)), np.full(3, -np.inf, F32))
        equal(fastce.logsumexp(np.zeros((2, 0, 3)), axis=1, keepdims=True), np.full((2, 1, 3), -np.inf))
        equal(fastce.logsumexp(np.zeros((2, 0, 3)), axis=(1, 2)), np.full(2, -np.inf))
        equal(fastce.logsumexp(np.zeros((0, 3))), np.zeros(0))

    def test_sum_that_does_not_overflow(self) -> None:
        a = np.arange(200.0)
        close(logsumexp(a), np.log(np.exp(a).sum()))

    def test_large_numbers(self) -> None:
        close(logsumexp([1000.0, 1000.0]), F64(1000 + math.log(2)))
        close(logsumexp(np.full(1000, 10000)), F64(10000 + math.log(1000)))

    def test_many_small_numbers(self) -> None:
        x = np.full((2, 1_000_000), 1e-40)
        close(np.exp(logsumexp(np.log(x))), x.sum())
        for axis in (0, 1):
            close(np.exp(fastce.logsumexp(np.log(x), axis=axis)), x.sum(axis=axis))

    @pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
    def test_special_values(self, value: float) -> None:
        equal(logsumexp(np.array([value])), F64(value))
        equal(logsumexp(np.array([value, value])), F64(value))

    def test_different_magnitudes_on_the_axes(self) -> None:
        a = np.array([[1e10, 1e-10], [-1e10, -np.inf]])
        close(fastce.logsumexp(a, axis=-1), np.array([1e10, -1e10]))
        close(fastce.logsumexp(a, axis=-1, keepdims=True), np.array([[1e10], [-1e10]]))
        close(fastce.logsumexp(a, axis=(-1, -2)), F64(1e10))

    @pytest.mark.parametrize(("axis", "shape"), [(2, (1, 2, 4)), ((1, 3), (1, 3))])
    def test_shape(self, axis: Any, shape: tuple[int, ...]) -> None:
        assert fastce.logsumexp(np.ones((1, 2, 3, 4)), axis=axis).shape == shape

    @pytest.mark.parametrize("argument", [1, [1, 2, 3]])
    def test_array_likes(self, argument: Any) -> None:
        assert logsumexp(argument) == logsumexp(np.atleast_1d(argument))
        close(logsumexp([1000, 1000]), F64(1000 + math.log(2)))

    @pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64"])
    def test_dtypes(self, dtype: str) -> None:
        wanted = np.dtype(dtype if dtype.startswith("f") else "float64").type(1000 + math.log(2))
        close(logsumexp(np.array([1000, 1000], dtype)), wanted)

    def test_much_larger_element(self) -> None:  # SciPy's issue 18295
        close(logsumexp([0.0, -40.0]), np.logaddexp(0.0, -40.0))

    @pytest.mark.parametrize(("x", "y"), list(itertools.product([-np.inf, np.inf], repeat=2)))
    def test_infinite_elements(self, x: float, y: float) -> None:  # issue 22601
        equal(logsumexp([x, y]), F64(max(x, y)))

    def test_arguments_are_not_written_to(self) -> None:
        a = np.array([5.0, 4.0])
        logsumexp(a)
        equal(a, np.array([5.0, 4.0]))


ROW = np.arange(4.0)
SOFTMAX_OF_ROW = np.array([0.03205860328008499, 0.08714431874203256, 0.23688281808991013, 0.6439142598879722])
LOG_SOFTMAX_OF_ROW = np.array([-3.4401896985611953, -2.4401896985611953, -1.4401896985611953, -0.44018969856119533])


class TestSoftmax:
    def test_rows(self) -> None:
        close(softmax([1000.0, 0, 0, 0]), np.array([1.0, 0, 0, 0]))
        close(softmax([1.0, 1.0]), np.array([0.5, 0.5]))
        close(softmax([0.0, 1.0]), np.array([1, np.e]) / (1 + np.e))

    @pytest.mark.parametrize("offset", [0, 100])
    def test_translation(self, offset: float) -> None:
        close(softmax(ROW + offset), SOFTMAX_OF_ROW)

    def test_whole_array(self) -> None:
        close(softmax(ROW.reshape(2, 2)), SOFTMAX_OF_ROW.reshape(2, 2))

    def test_axes(self) -> None:
        a = np.array([[1000.0, 0], [1000, 0]])
        close(fastce.softmax(a, axis=0), np.full((2, 2), 0.5))
        close(fastce.softmax(a, axis=1), np.array([[1.0, 0], [1, 0]]))

    def test_wide_range(self) -> None:
        x = np.array([[-25.0, 0, 25, 50], [1, 325, 749, 750]])
        confident = [2.678636961770877e-33, 1.9287498479371314e-22, 1.3887943864771144e-11, 0.999999999986112]
        wanted = np.array([confident, [0, 1.9444526359919372e-185, 0.2689414213699951, 0.7310585786300048]])
        # The first number of the second row is 4.5e-326, which float64 does not have.
        close(fastce.softmax(x, axis=1), wanted)
        close(fastce.softmax(x.T, axis=0), wanted.T)
        close(fastce.softmax(x.reshape(2, 2, 2), axis=(1, 2)), wanted.reshape(2, 2, 2))

    def test_array_likes_and_scalars(self) -> None:
        close(softmax(np.array([1000, 0, 0, 0])), np.array([1.0, 0, 0, 0]))
        close(softmax([1000, 0, 0, 0]), np.array([1.0, 0, 0, 0]))
        close(softmax(1000), F64(1))


class TestLogSoftmax:
    def test_rows(self) -> None:
        for argument in (np.array([1000.0, 1]), np.array([1000, 1]), [1000, 1]):
            close(log_softmax(argument), np.array([0.0, -999]))
        close(log_softmax(1.0), F64(0))

    @pytest.mark.parametrize("offset", [0, 100])
    def test_translation(self, offset: float) -> None:
        close(log_softmax(ROW + offset), LOG_SOFTMAX_OF_ROW)

    def test_axes(self) -> None:
        a = np.array([[1000.0, 1], [1000, 1]])
        close(fastce.log_softmax(a, axis=0), np.full((2, 2), np.log(0.5)))
        close(fastce.log_softmax(a, axis=1), np.array([[0.0, -999], [0, -999]]))

    def test_several_dimensions(self) -> None:
        x, wanted = np.arange(8.0).reshape(2, 4), np.tile(LOG_SOFTMAX_OF_ROW, (2, 1))
        close(fastce.log_softmax(x, axis=1), wanted)
        close(fastce.log_softmax(x.T, axis=0), wanted.T)
        close(fastce.log_softmax(x.reshape(2, 2, 2), axis=(1, 2)), wanted.reshape(2, 2, 2))
        close(log_softmax(ROW.reshape(2, 2)), LOG_SOFTMAX_OF_ROW.reshape(2, 2))


# ---------------------------------------------------------------------------------------------------------------------
# Several class axes, in every layout, against the exact values of the folded array
# ---------------------------------------------------------------------------------------------------------------------

SHAPE = (3, 4, 2, 5)
AXES: list[Any] = [None, (), *itertools.chain(*(itertools.combinations(range(4), n) for n in (1, 2, 3, 4))), (-1, 0)]
FUNCTIONS = {name: getattr(fastce, name) for name in ("softmax", "log_softmax", "logsumexp")}
GRADIENTS = {name: getattr(fastce, name) for name in ("softmax_grad", "log_softmax_grad")}
REFERENCE = {name: getattr(fastce.reference, name) for name in {**FUNCTIONS, **GRADIENTS}}


def normal(axis: Any, ndim: int) -> tuple[int, ...]:
    return tuple(range(ndim)) if axis is None else tuple(k % ndim for k in axis)


def folded(a: np.ndarray, axis: Any) -> np.ndarray:
    """The class axes as the last one."""
    axes = normal(axis, a.ndim)
    rows = [k for k in range(a.ndim) if k not in axes]
    classes = math.prod(a.shape[k] for k in axes)
    return a.transpose([*rows, *axes]).reshape([a.shape[k] for k in rows] + [classes])


@pytest.mark.parametrize("axis", [axis for axis in AXES if axis != ()], ids=str)
@pytest.mark.parametrize("family", [MAPS, *PRODUCTS], ids=lambda family: family.name)
@dtypes
def test_accuracy(family: Family, axis: Any, dtype: Any) -> None:
    flat = family.arguments(folded(numbers(SHAPE, dtype), axis))
    order = [*(k for k in range(4) if k not in normal(axis, 4)), *normal(axis, 4)]
    arrays = tuple(
        a.reshape([SHAPE[k] for k in order]).transpose([order.index(k) for k in range(4)]).copy() for a in flat
    )
    for temperature in (1.0, 0.7):
        want = family.exact(*flat, temperature=temperature)
        back = lambda a: folded(a, axis) if a.shape == SHAPE else a  # noqa: E731
        check(family, arrays, want=want, back=back, axis=axis, temperature=temperature)


@pytest.mark.parametrize("axis", [None, (), (0, 1), (2, 3), (0, 2), (3, 0, 1)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, axis: Any) -> None:
    """Results differ by rounding only, and what other functions return has the memory order of the argument."""
    x, u = numbers(SHAPE), numbers(SHAPE, seed=5)
    laid_out = LAYOUTS[layout](x.copy())
    before = laid_out.tobytes()
    for name, function in FUNCTIONS.items():
        got = function(laid_out, axis=axis)
        np.testing.assert_allclose(got, function(x, axis=axis), rtol=2e-6, atol=0, strict=True)
        if name != "logsumexp":
            usual = np.empty_like(laid_out, dtype=laid_out.dtype.newbyteorder("="), subok=False)
            assert got.strides == usual.strides
    for function in GRADIENTS.values():
        np.testing.assert_allclose(function(u, laid_out, axis=axis), function(u, x, axis=axis), rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(function(laid_out, u, axis=axis), function(x, u, axis=axis), rtol=2e-5, atol=2e-5)
    assert laid_out.tobytes() == before


@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("name", [*FUNCTIONS, *GRADIENTS])
def test_reference(name: str, axis: Any) -> None:
    arrays = (numbers(SHAPE, F64),) if name in FUNCTIONS else (numbers(SHAPE, F64), fastce.softmax(numbers(SHAPE, F64)))
    options: list[dict[str, Any]] = [{}, {"temperature": 0.7}]
    options += [{"keepdims": True}] if name == "logsumexp" else []
    for given in options:
        ours, theirs = getattr(fastce, name)(*arrays, axis=axis, **given), REFERENCE[name](*arrays, axis=axis, **given)
        assert type(ours) is type(theirs)
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-13, strict=True)
        out = np.full_like(theirs, 7)
        assert REFERENCE[name](*arrays, axis=axis, **given, out=out) is out
        equal(out, np.asarray(theirs))


@pytest.mark.parametrize("axis", [*AXES, 0, 2, -1], ids=str)
@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "?"])
def test_scipy_gives_the_same(axis: Any, dtype: str) -> None:
    special = pytest.importorskip("scipy.special", reason="SciPy is not installed")
    x = numbers(SHAPE).astype(dtype)
    y = x.astype(F64) if dtype == "?" else x  # SciPy takes no bools
    tolerance = {"rtol": 2e-5 if dtype == "f4" else 1e-13, "atol": 1e-6 if dtype == "f4" else 1e-15}
    for name, function in FUNCTIONS.items():
        np.testing.assert_allclose(
            function(x, axis=axis), getattr(special, name)(y, axis=axis), **tolerance, strict=True
        )
    for keepdims in (False, True):
        ours, theirs = (f(a, axis=axis, keepdims=keepdims) for f, a in ((fastce.logsumexp, x), (special.logsumexp, y)))
        assert type(ours) is type(theirs)
        np.testing.assert_allclose(ours, theirs, **tolerance, strict=True)


@pytest.mark.parametrize("order", ["C", "F"])
def test_no_copy_where_the_axes_follow_each_other(order: str) -> None:
    x = np.ones((50, 100, 200), F32, order=order)
    out = np.empty_like(x)
    for axis in (None, (0, 1), (1, 2)):
        for call in (
            lambda axis=axis: fastce.softmax(x, axis=axis, out=out),
            lambda axis=axis: fastce.logsumexp(x, axis=axis),
        ):
            call()
            assert peak_bytes(call) < x.nbytes / 2


# ---------------------------------------------------------------------------------------------------------------------
# out, keepdims, threads, scalars
# ---------------------------------------------------------------------------------------------------------------------

BUFFERS: dict[str, Callable[[tuple[int, ...]], np.ndarray]] = {
    "C": lambda shape: np.full(shape, 7, F32),
    "F": lambda shape: np.full(shape, 7, F32, order="F"),
    "strided": lambda shape: np.full([2 * n for n in shape], 7, F32)[(..., *(slice(None, None, 2) for _ in shape))],
    "reversed": lambda shape: np.full(shape, 7, F32)[(..., *(slice(None, None, -1) for _ in shape))],
}


@pytest.mark.parametrize("axis", [None, (), (0, 1), (2, 3), (0, 2), (3, 0, 1), 1], ids=str)
@pytest.mark.parametrize("buffer", BUFFERS)
def test_out(axis: Any, buffer: str) -> None:
    x, u = numbers(SHAPE), numbers(SHAPE, seed=5)
    kept = x.copy(), u.copy()
    calls = {name: partial(function, x, axis=axis) for name, function in FUNCTIONS.items()}
    calls["keepdims"] = partial(fastce.logsumexp, x, axis=axis, keepdims=True)
    calls |= {name: partial(function, u, x, axis=axis) for name, function in GRADIENTS.items()}
    for call in calls.values():
        wanted = call()
        out = BUFFERS[buffer](np.shape(wanted))
        assert call(out=out) is out
        np.testing.assert_allclose(out, wanted, rtol=2e-6, atol=1e-6)
        equal(x, kept[0])
        equal(u, kept[1])


@pytest.mark.parametrize("axis", [None, (), (0, 1), (2, 3), (0, 2), (3, 0, 1)], ids=str)
@pytest.mark.parametrize("order", ["C", "F"])
def test_in_place_and_overlapping_out(axis: Any, order: str) -> None:
    x, u = np.asarray(numbers(SHAPE), order=order), numbers(SHAPE, seed=5)
    for name in ("softmax", "log_softmax"):
        a = x.copy(order="K")
        assert FUNCTIONS[name](a, axis=axis, out=a) is a
        equal(a, FUNCTIONS[name](x, axis=axis))
        whole = np.empty((4, *SHAPE[1:]), F32)
        whole[1:] = x
        equal(FUNCTIONS[name](whole[1:], axis=axis, out=whole[:-1]), FUNCTIONS[name](x.copy("C"), axis=axis))
    for function in GRADIENTS.values():
        wanted = function(u, x, axis=axis)
        for at in (0, 1):
            arrays = [u.copy(order="K"), x.copy(order="K")]
            assert function(*arrays, axis=axis, out=arrays[at]) is arrays[at]
            np.testing.assert_allclose(arrays[at], wanted, rtol=1e-5, atol=1e-5)
    a = x.copy(order="K")  # a result by row that lies in the argument
    lse = fastce.logsumexp(x, axis=axis, keepdims=True)
    window = a[tuple(slice(0, n) for n in lse.shape)]
    equal(fastce.logsumexp(a, axis=axis, keepdims=True, out=window), lse)


@pytest.mark.parametrize("axis", [None, (0, 1), (1, 2), (0, 2)], ids=str)
def test_number_of_threads(axis: Any) -> None:
    x = numbers((30, 40, 300))
    for function in FUNCTIONS.values():
        bits = {function(x, axis=axis, num_threads=n).tobytes() for n in (None, 1, 2, 3)}
        assert len(bits) == 1


@pytest.mark.parametrize("keepdims", [True, 1, np.True_])
def test_keepdims(keepdims: Any) -> None:
    x = numbers(SHAPE)
    for axis in (*AXES, -1, 0, np.int8(2)):
        lse = fastce.logsumexp(x, axis=axis, keepdims=keepdims)
        axes = normal((axis,) if isinstance(axis, (int, np.integer)) else axis, 4)
        assert lse.shape == tuple(1 if k in axes else n for k, n in enumerate(SHAPE))
        equal(lse.ravel(), np.ravel(fastce.logsumexp(x, axis=axis)))
    assert fastce.logsumexp(x, keepdims=False).shape == SHAPE[:-1]


@pytest.mark.parametrize("axis", [None, ()])
def test_scalars(axis: Any) -> None:
    for x in (5, 5.0, F32(5), np.array(5.0), np.array(5.0, F32)):
        dtype = F32 if isinstance(x, (F32, np.ndarray)) and x.dtype == F32 else F64
        for name, value in {"softmax": 1, "log_softmax": 0, "logsumexp": 5}.items():
            got = FUNCTIONS[name](x, axis=axis)
            assert type(got) is dtype and got == value
            out = np.empty((), dtype)
            assert FUNCTIONS[name](x, axis=axis, out=out) is out and out == value
        for function in GRADIENTS.values():
            assert type(function(2.0, x, axis=axis)) is dtype
    assert np.isnan(softmax(np.nan)) and np.isnan(softmax(np.inf)) and logsumexp(np.inf) == np.inf


def test_special_values_stay_in_their_rows() -> None:
    x = numbers(SHAPE)
    x[1, 2, 0, 3], x[2, 0, 1] = np.nan, -np.inf
    p = fastce.softmax(x, axis=(1, 2))
    rows = np.isnan(p).any(axis=(1, 2))
    assert np.isnan(p[1, :, :, 3]).all() and rows.sum() == 1
    assert (p[2, 0, 1] == 0).all()
    only = np.full((2, 2, 3), -np.inf)
    only[0] = 0
    np.testing.assert_array_equal(fastce.logsumexp(only, axis=(1, 2)), [pytest.approx(math.log(6)), -np.inf])


# ---------------------------------------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------------------------------------

X = numbers((3, 4))


@pytest.mark.parametrize(
    ("axis", "error", "says"),
    [
        ((0, 0), ValueError, r"^axis is \(0, 0\), which names an axis more than once"),
        ((0, -2), ValueError, r"^axis is \(0, -2\), which names an axis more than once"),
        ((0, 2), ValueError, "^axis is 2, out of range for 2 dimensions"),
        ((-3,), ValueError, "^axis is -3, out of range for 2 dimensions"),
        ((0.0, 1), TypeError, "^axis is 0.0, expected an int"),
        ((True, 0), TypeError, "^axis is True, expected an int"),
        ((None,), TypeError, "^axis is None, expected an int"),
        ([0, 1], TypeError, r"^axis is \[0, 1\], expected an int"),
    ],
)
@pytest.mark.parametrize("name", [*FUNCTIONS, *GRADIENTS])
def test_wrong_axes(name: str, axis: Any, error: Any, says: str) -> None:
    arrays = (X,) if name in FUNCTIONS else (X, X)
    out = np.full(X.shape, 7, F32)
    with pytest.raises(error, match=says):
        getattr(fastce, name)(*arrays, axis=axis, out=out)
    assert (out == 7).all()


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_no_classes(name: str) -> None:
    for axis in (None, (0, 1), (1,)):
        with pytest.raises(ValueError, match=r"^x has shape \(3, 0\): no classes on axis "):
            FUNCTIONS[name](np.zeros((3, 0)), axis=axis)
    with pytest.raises(ValueError, match="^y has shape"):
        fastce.softmax_grad(np.zeros((3, 0)), np.zeros((3, 0)), axis=None)
    assert FUNCTIONS[name](np.zeros((2, 0, 3)), axis=(0, 2)).shape == (2, 0, 3)


def test_wrong_arrays() -> None:
    with pytest.raises(ValueError, match=r"^out has shape \(3, 4\), expected \(1, 1\) to match x with its class axes"):
        fastce.logsumexp(X, axis=None, keepdims=True, out=np.empty((3, 4), F32))
    with pytest.raises(ValueError, match=r"^out has shape \(3,\), expected \(\) to match x without its class axes"):
        fastce.logsumexp(X, axis=None, out=np.empty(3, F32))
    with pytest.raises(ValueError, match="^out has dtype float64, expected float32 to match x"):
        fastce.softmax(X, axis=None, out=np.empty(X.shape))
    with pytest.raises(ValueError, match=r"^upstream has shape \(3,\), expected \(3, 4\) to match y"):
        fastce.softmax_grad(X[:, 0], X, axis=None)
    with pytest.raises(TypeError, match="^x has dtype complex128"):
        fastce.softmax([1j, 2], axis=None)
    with pytest.raises(ValueError, match="^num_threads is 0"):
        fastce.softmax(X, axis=None, num_threads=0)
    for name in ("cross_entropy", "binary_cross_entropy", "predict"):
        with pytest.raises(TypeError, match=r"^axis is \(0, 1\), expected an int"):
            getattr(fastce, name)(*([X] if name == "predict" else [X, X]), axis=(0, 1))
    with pytest.raises(TypeError, match="keepdims"):
        fastce.softmax(X, keepdims=True)  # type: ignore[call-overload]
