"""Second derivatives: every combination of options against exact values, the oracle against the definition,
differences of gradients, special values, and the pair of arrays that `out` may be."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from functions import CURVATURE, DTYPES, F32, F64, check, combinations, dtypes, numbers, over
from oracle import LD, OPTION_ULPS, assert_within, needs_longdouble
from oracle_curvature import exact_grad_hess, exact_hessian_row, exact_hvp
from rows import GAPS, check_arranged, confident, slope

import fastce

INF, NAN = np.inf, np.nan
HVP = [family for family in CURVATURE if "vectors" in family.names]
# Tiles; rows; rows in several blocks, and divided among threads.
SHAPES = [(130, 3), (130, 30), (6, 90), (3, 4500), (2, 33000)]
LABELLED = ("hess_index", "hvp_index")


def options_of(chosen, shape, dtype):
    rng = np.random.default_rng(5)
    vectors = {"weight": rng.random(shape[1]).astype(dtype), "sample_weight": rng.random(shape[0]).astype(dtype)}
    return {key: vectors.get(key, value) for key, value in chosen.items()}


@needs_longdouble
@dtypes
@over(CURVATURE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_combination_of_options(shape, family, dtype):
    every = list(combinations(family))
    step = 1 if shape[1] < 100 else 7  # longdouble is slow
    arrays = family.arguments(numbers(shape, dtype))
    for chosen in every[:: step if shape[1] < 10_000 else 31]:
        options = options_of(chosen, shape, dtype)
        for way in (np.ascontiguousarray, np.asfortranarray):
            given = tuple(way(a) for a in arrays)
            check(family, given, more=OPTION_ULPS, about=f"{chosen}, ", reduction="mean", **options)


@needs_longdouble
@dtypes
@over(CURVATURE)
@pytest.mark.parametrize("classes", [2, 5, 70])
def test_confident_rows_keep_their_relative_accuracy(classes, family, dtype):
    x, top = confident(GAPS[dtype], classes, dtype)
    for label in (top, (top + 1) % classes):
        want = check_arranged(family, family.arguments(x, label), more=OPTION_ULPS, temperature=1.25)
        for name in ("hess", "hvp"):
            if hasattr(want, name):
                assert np.all(getattr(want, name).value != 0)


@needs_longdouble
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_oracle_against_the_definition(z_loss, temperature):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(6, 4)) * np.array([[1], [1], [10], [10], [100], [300]])
    v, weight, options = rng.normal(size=x.shape), rng.random(4), {"z_loss": z_loss, "temperature": temperature}
    for targets in (rng.integers(0, 4, 6), rng.random((6, 4))):
        for more in ({}, {"weight": weight, "label_smoothing": 0.3}):
            hess = exact_grad_hess(x, targets, reduction="sum", **options, **more).hess
            product = exact_hvp(x, targets, v, reduction="sum", **options, **more).hvp
            for i, row in enumerate(x):
                matrix = exact_hessian_row(row, targets[i], **options, **more)
                diagonal = [float(matrix[j][j]) for j in range(4)]
                with mpmath.workdps(400):
                    times_v = [float(mpmath.fdot(row_of, v[i].tolist())) for row_of in matrix]
                np.testing.assert_allclose(hess.value[i].astype(F64), diagonal, rtol=1e-14)
                room = 1e-15 * product.size[i].astype(F64)
                np.testing.assert_array_less(np.abs(product.value[i].astype(F64) - times_v), room + 1e-300)


@over([family for family in CURVATURE if family.name in LABELLED])
def test_they_are_the_slopes_of_the_gradient(family):
    x, v = numbers((4, 5), F64) / 4, numbers((4, 5), F64, 3)
    labels = np.array([1, 0, -100, 4])
    options = {"weight": [1, 2, 0.5, 1, 3], "label_smoothing": 0.2, "z_loss": 0.3, "sample_weight": [1, 2, 1, 0.5]}
    hess = fastce.cross_entropy_grad_hess(x, labels, **options)[1]
    product = fastce.cross_entropy_hvp(x, labels, v, **options)
    for j in range(5):
        by_x = slope(lambda x, j=j: fastce.cross_entropy_grad(x, labels, **options)[:, j], x)
        np.testing.assert_allclose(hess[:, j], by_x[:, j], rtol=0, atol=1e-11)
        np.testing.assert_allclose(product[:, j], (by_x * v).sum(axis=1), rtol=0, atol=1e-10)


@dtypes
@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("classes", [3, 30, 90, 4500])
def test_special_logits(classes, order, dtype):
    x = np.full((8, classes), -INF, dtype, order=order)
    x[:, :2] = 0
    x[1] = -INF  # nothing but masked classes
    x[2, 2], x[3, 2] = NAN, INF
    x[4] = NAN  # an ignored row
    x[5, 1] = -INF  # one class that is not masked
    labels = np.array([0, 0, 0, 0, -100, 0, 0, 0])
    v = np.array(numbers(x.shape, dtype), order=order)
    v[0, 2:], v[4], v[6, 2] = INF, NAN, NAN  # where p is 0; in the ignored row; where p is 0
    v[7, 0] = INF
    for z_loss in (0, 0.1):
        grad, hess = fastce.cross_entropy_grad_hess(x, labels, reduction="sum", z_loss=z_loss)
        product = fastce.cross_entropy_hvp(x, labels, v, reduction="sum", z_loss=z_loss)
        np.testing.assert_array_equal(grad, fastce.cross_entropy_grad(x, labels, reduction="sum", z_loss=z_loss))
        for result in (hess, product):
            assert np.isnan(result[1:4]).all()
            assert (result[4] == 0).all()
            assert (result[[0, 5, 6], 2:] == 0).all()
            assert np.isfinite(result[[0, 5, 6]]).all()
            assert (result[5, 1:] == 0).all()
        assert (hess[[0, 6], :2] > 0).all()
        assert not np.isfinite(product[7, :2]).any()
        if z_loss == 0:
            assert (hess[[0, 6, 7], :2] == 0.25).all()
            assert (hess[5] == 0).all() and (product[5] == 0).all()


@dtypes
@pytest.mark.parametrize("classes", [3, 90, 4500])
@pytest.mark.parametrize("exponent", [-1, -0.5, 0, 0.5, 0.7])
def test_vectors_of_any_size(exponent, classes, dtype):
    """In rows that are confident and in others."""
    info = np.finfo(dtype)
    size = float(info.smallest_normal) ** 0.75 if exponent < 0 else float(info.max) ** exponent
    x = numbers((20, classes), dtype)
    x[::2, 1] = 30
    v = numbers(x.shape, dtype, 4) / 7 * dtype(size)
    labels = np.arange(20) % classes
    want = exact_hvp(x, labels, v, reduction="sum").hvp
    for way in (np.ascontiguousarray, np.asfortranarray):
        assert_within(fastce.cross_entropy_hvp(way(x), labels, way(v), reduction="sum"), want)


@dtypes
@pytest.mark.parametrize("classes", [1, 3, 90, 4500])
def test_a_vector_of_equal_numbers_gives_nothing(classes, dtype):
    """A shift of all logits does not change the loss without z_loss."""
    x = numbers((5, classes), dtype) * 5
    v = np.full_like(x, 1e5 / 3)
    assert (fastce.cross_entropy_hvp(x, np.zeros(5, int), v) == 0).all()
    assert (fastce.cross_entropy_hvp(x, np.zeros(5, int), v, z_loss=0.1) != 0).any()


@pytest.mark.parametrize("shape", [*SHAPES, (1, 70_000)], ids=str)
@over(CURVATURE)
def test_bits_do_not_depend_on_threads_or_alignment(shape, family):
    arrays = family.arguments(numbers(shape))
    (function,) = family.functions
    moved = []
    for a in arrays:
        buffer = np.zeros(a.size + 1, a.dtype)
        buffer[1:] = a.ravel()
        moved.append(buffer[1:].reshape(a.shape))
    want = function(*arrays, num_threads=1)
    for given, num_threads in ((arrays, 2), (arrays, 5), (moved, 1)):
        for name, value in function(*given, num_threads=num_threads).items():
            assert value.tobytes() == want[name].tobytes()


@dtypes
@pytest.mark.parametrize("given", ["f4", "f8", ">f8", "i4", "?", "u1", "f2", "longdouble"])
def test_vectors_of_any_real_dtype(given, dtype):
    x, labels = numbers((40, 9), dtype), np.arange(40) % 9
    v = np.round(numbers(x.shape)).astype(given)
    got = fastce.cross_entropy_hvp(x, labels, v)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, fastce.cross_entropy_hvp(x, labels, v.astype(dtype)))
    np.testing.assert_array_equal(got, fastce.cross_entropy_hvp(x, labels, v.tolist()))


def test_vectors_are_checked():
    x, labels = numbers((4, 3)), np.zeros(4, int)
    out = np.full_like(x, 7)
    for vectors, error, message in (
        (x[:, :2], ValueError, r"vectors has shape \(4, 2\), expected \(4, 3\) to match logits"),
        (x[0], ValueError, r"vectors has shape \(3,\)"),
        (1.0, ValueError, r"vectors has shape \(\)"),
        (None, TypeError, "vectors is None"),
        (x.astype(complex), TypeError, "vectors has dtype complex128"),
        (np.ma.masked_array(x), TypeError, "vectors is a masked array"),
    ):
        with pytest.raises(error, match=message):
            fastce.cross_entropy_hvp(x, labels, vectors, out=out)
    for arguments in ((), (x,), (x, labels), (x, labels, x, x)):
        with pytest.raises(TypeError, match="argument"):
            fastce.cross_entropy_hvp(*arguments)
    assert (out == 7).all()
    np.testing.assert_array_equal(
        fastce.cross_entropy_hvp(vectors=x, targets=labels, logits=x), fastce.cross_entropy_hvp(x, labels, x)
    )


# ---------------------------------------------------------------------------------------------------------------------
# The pair `out`
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (200, 17), (5, 300), (3, 9000)], ids=str)
def test_either_of_the_pair_may_be_the_logits(shape, order):
    x = np.asarray(numbers(shape), order=order)
    labels = np.arange(shape[0]) % shape[1]
    want = fastce.cross_entropy_grad_hess(x, labels)
    other = np.empty_like(x)
    strided = np.empty((*shape, 2), x.dtype)
    for make in (
        lambda own: (own, other),
        lambda own: (other, own),
        lambda own: (other[::-1, ::-1], own),
        lambda own: (strided[..., 0], strided[..., 1]),  # interleaved
        lambda own: (np.empty_like(x, order="CF"[order == "C"]), other),
    ):
        own = x.copy(order="K")
        pair = make(own)
        got = fastce.cross_entropy_grad_hess(own, labels, out=pair)
        assert got[0] is pair[0] and got[1] is pair[1]
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)


def test_either_of_the_pair_may_overlap_an_input():
    x, labels = numbers((6, 5)), np.arange(6) % 5
    want = fastce.cross_entropy_grad_hess(x, labels)
    for k in (0, 1):
        memory = np.zeros(40, F32)
        own, shifted = memory[:30].reshape(6, 5), memory[3:33].reshape(6, 5)
        own[...] = x
        pair = [np.empty_like(x), np.empty_like(x)]
        pair[k] = shifted
        for a, b in zip(fastce.cross_entropy_grad_hess(own, labels, out=tuple(pair)), want, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_pair_is_checked():
    x, labels = numbers((4, 3)), np.zeros(4, int)
    a, b = np.full_like(x, 7), np.full_like(x, 7)
    read_only = b.copy()
    read_only.flags.writeable = False
    for out, error, message in (
        (a, TypeError, r"out is ndarray, expected a tuple of two arrays: \(grad, hess\)"),
        ([a, b], TypeError, "out is list, expected a tuple"),
        ((a,), TypeError, "expected a tuple of two arrays"),
        ((a, b, b), TypeError, "expected a tuple of two arrays"),
        ((a, None), TypeError, r"out\[1\] is NoneType, expected numpy.ndarray"),
        ((a[:2], b), ValueError, r"out\[0\] has shape \(2, 3\), expected \(4, 3\)"),
        ((a, b.astype(F64)), ValueError, r"out\[1\] has dtype float64, expected float32"),
        ((a, read_only), ValueError, r"out\[1\] is read-only"),
        ((a, a), ValueError, r"out\[0\] and out\[1\] share memory"),
        ((a, a[::-1]), ValueError, r"out\[0\] and out\[1\] share memory"),
    ):
        with pytest.raises(error, match=message):
            fastce.cross_entropy_grad_hess(x, labels, out=out)
        assert (a == 7).all() and (b == 7).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_kept_gives_zeros(dtype):
    x = np.full((3, 4), NAN, dtype)
    labels = np.full(3, -100)
    for result in (*fastce.cross_entropy_grad_hess(x, labels), fastce.cross_entropy_hvp(x, labels, x)):
        assert result.dtype == dtype and (result == 0).all()
    empty = np.zeros((0, 4), dtype)
    for result in (
        *fastce.cross_entropy_grad_hess(empty, labels[:0]),
        fastce.cross_entropy_hvp(empty, labels[:0], empty),
    ):
        assert result.shape == (0, 4)


def test_the_sum_of_a_product_is_zero():
    """Of exact numbers: each row of the Hessian sums to 0 without z_loss."""
    x, v = numbers((50, 12), F64), numbers((50, 12), F64, 2)
    product = fastce.cross_entropy_hvp(x, np.arange(50) % 12, v).astype(LD)
    np.testing.assert_allclose(product.sum(axis=1).astype(F64), 0, atol=1e-16)


@dtypes
def test_a_sum_of_infinities_is_no_error_with_a_softcap(dtype):
    x, labels = numbers((4, 3), dtype), np.zeros(4, int)
    with np.errstate(all="raise"):
        for upstream in (np.inf, -np.inf, np.nan):
            options = {"softcap": 5.0, "upstream": upstream, "reduction": "sum"}
            _, hess = fastce.cross_entropy_grad_hess(x, labels, **options)
            product = fastce.cross_entropy_hvp(x, labels, np.full_like(x, 2), **options)
            assert not np.isfinite(hess).any() and not np.isfinite(product).any()
