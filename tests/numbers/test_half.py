"""float16 and bfloat16: losses within the contract of float32, and gradients rounded once from within it."""

from __future__ import annotations

import numpy as np
import pytest
from functions import F32, FAMILIES, INDEX, ONE_TERM, over
from isa import AVAILABLE, computed_with
from oracle import OPTION_ULPS, assert_rounded, assert_within, needs_longdouble
from rows import ARRANGEMENTS, confident

import fastce

pytestmark = needs_longdouble

F16 = np.float16
BF16 = getattr(pytest.importorskip("ml_dtypes"), "bfloat16")  # noqa: B009  -- its stub is not needed
halves = pytest.mark.parametrize("dtype", [F16, BF16], ids=["float16", "bfloat16"])
SHAPES = [(1, 1), (7, 3), (33, 10), (200, 17), (300, 50), (5, 300), (9, 1000), (3, 4097), (2, 9000), (3, 40000)]


def given_to(family, x, dtype, labels=None, **options):
    """The arguments, one of them in half precision, and the exact values for its numbers."""
    x = x.astype(dtype)
    arrays = list(family.arguments(x.astype(F32), labels, **options))
    at = len(arrays) - 1 if family.names[-1] == "y" else 0
    arrays[at] = arrays[at].astype(dtype)
    wide = list(arrays)
    wide[at] = arrays[at].astype(F32)
    return arrays, wide


@halves
@over(FAMILIES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(shape, family, dtype):
    x = np.random.default_rng(0).uniform(-7, 7, shape)
    for name, way in ARRANGEMENTS.items():
        arrays, wide = given_to(family, x, dtype)
        want = family.exact(*wide)
        shaped = [way.of(a) if a.shape == x.shape else a[None] if way.axis == 1 else a for a in arrays]
        for function in family.functions:
            for result, value in function(*shaped, axis=way.axis).items():
                number = getattr(want, result)
                assert_rounded(way.back(value).reshape(number.value.shape), number, dtype, f"{function.id}, {name}")


@halves
@over(ONE_TERM)
@pytest.mark.parametrize("classes", [9, 130, 5000])
def test_options_and_stats(classes, family, dtype):
    rng = np.random.default_rng(1)
    x = rng.uniform(-9, 9, (40 if classes < 1000 else 3, classes))
    weight, sample = rng.random(classes).astype(F32), rng.random(len(x)).astype(F32)
    arrays, wide = given_to(family, x, dtype)
    for options in (
        {"label_smoothing": 0.1, "weight": weight, "z_loss": 1e-2},
        {"sample_weight": sample, "reduction": "mean", "upstream": 2.0**10},
        {"temperature": 0.7, "reduction": "mean", "normalizer": 3.0},
        {"softcap": 5.0, "label_smoothing": 0.1},
    ):
        want = family.exact(*wide, **options)
        for function in family.functions:
            taken = function.taken(options)
            for result, value in function(*arrays, **taken).items():
                assert_rounded(value, getattr(want, result), dtype, f"{function.id}, {options}", OPTION_ULPS)
        forward = {k: v for k, v in options.items() if k != "upstream"}
        _, stats = fastce.cross_entropy(*arrays, return_stats=True, **forward)
        assert stats.row_max.dtype == stats.tail.dtype == F32
        grad = fastce.cross_entropy_grad(*arrays, stats=stats, **({"reduction": "none"} | options))
        assert_rounded(grad, want.grad, dtype, f"from stats, {options}", OPTION_ULPS + 1)


@halves
def test_confident_rows(dtype):
    """Where p rounds to 1 in half precision, the loss and the gradient of the label are not 0."""
    x, top = confident(np.arange(1, 16), 30, F32)
    arrays, wide = given_to(INDEX, x, dtype, top)
    want = INDEX.exact(*wide)
    loss, grad = fastce.cross_entropy_with_grad(*arrays, reduction="none")
    assert (loss > 0).all()
    assert_within(loss, want.loss)
    assert_rounded(grad, want.grad, dtype, "grad")
    # What is too small for float16 is kept by a large factor, which is applied before rounding.
    _, grad = fastce.cross_entropy_with_grad(*arrays, reduction="none", upstream=2.0**12)
    assert_rounded(grad, INDEX.exact(*wide, upstream=2.0**12).grad, dtype, "scaled grad")
    assert (np.abs(grad[np.arange(15), top].astype(F32)) > 0).all()


def every_number(dtype):
    return np.arange(1 << 16, dtype=np.uint16).view(dtype)


@pytest.mark.parametrize("isa", AVAILABLE)
@halves
def test_every_number_is_converted_exactly(dtype, isa, tmp_path):
    """In rows, in tiles and alone, as logits and as targets. Results that are exactly representable come back."""
    x = every_number(dtype)
    wide = x.astype(F32)
    classes = [1, 64]
    calls = []
    for n in classes:
        rows = np.full((x.size, n), -np.inf, F32).astype(dtype)
        rows[:, 0] = x
        calls.append(("cross_entropy", (rows, np.zeros(x.size, int)), {"return_stats": True}))
    finite = np.isfinite(wide)
    # log_softmax of one number and a far larger one is their difference, which is representable with 0.
    pairs = np.zeros((x.size, 2), dtype)
    pairs[:, 0] = np.where(wide < -200, wide, -np.inf).astype(dtype)
    calls.append(("log_softmax", (pairs,), {}))
    results = computed_with(isa, calls, tmp_path)
    for _, stats in results[:2]:
        np.testing.assert_array_equal(stats.row_max[finite], wide[finite])
        assert (stats.row_max[wide == np.inf] == np.inf).all()
        assert np.isnan(stats.tail[np.isnan(wide)]).all()
    np.testing.assert_array_equal(results[2][:, 0], pairs[:, 0])


@pytest.mark.parametrize("isa", AVAILABLE)
@halves
def test_results_are_rounded_to_nearest_even(dtype, isa, tmp_path):
    """The same numbers as NumPy and ml_dtypes make of float32 results, subnormal ones and infinities included."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 9, (200, 40)).astype(dtype)
    labels = rng.integers(40, size=200)
    calls = []
    for scale in (2.0**-24, 2.0**-14, 1.0, 2.0**15, 2.0**20, 2.0**127):
        for logits in (x, x.astype(F32)):
            options = {"upstream": scale, "reduction": "sum"}
            calls.append(("cross_entropy_grad", (logits, labels), options))
            calls.append(("cross_entropy_grad", (logits.T.copy(), labels), options | {"axis": 0}))
            calls.append(("cross_entropy_grad", (np.tile(logits, 200)[:2], labels[:2]), options))
    results = computed_with(isa, calls, tmp_path)
    for k in range(0, len(results), 6):
        for half, single in zip(results[k : k + 3], results[k + 3 : k + 6], strict=True):
            with np.errstate(over="ignore"):
                np.testing.assert_array_equal(half.view(np.uint16), single.astype(dtype).view(np.uint16))


@halves
@pytest.mark.parametrize("classes", [5, 100, 5000])
def test_special_values(classes, dtype):
    x = np.random.default_rng(1).normal(0, 3, (9, classes)).astype(dtype)
    x[:, 2] = -np.inf
    x[3], x[4, 1], x[5, 1] = -np.inf, np.nan, np.inf
    labels = np.array([1, -100, 0, 1, 1, 1, 2, 0, -100])
    x[8] = np.nan
    for options in ({}, {"label_smoothing": 0.1}, {"softcap": 5.0}):
        loss, grad = fastce.cross_entropy_with_grad(x, labels, reduction="none", **options)
        wide = fastce.cross_entropy_with_grad(x.astype(F32), labels, reduction="none", **options)
        np.testing.assert_array_equal(loss, wide[0])
        np.testing.assert_array_equal(grad.astype(F32), wide[1].astype(dtype).astype(F32))
        assert not grad[1].astype(F32).any() and not grad[8].astype(F32).any()
