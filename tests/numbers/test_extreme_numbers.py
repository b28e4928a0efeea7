"""Results that the dtype holds though numbers on the way to them would not be: large logits that stand for -inf, labels
far from the maximum, subnormal probabilities times a large factor. And rows that do not count, whatever they hold."""

from __future__ import annotations

import numpy as np
import pytest
from functions import F32, F64, INDEX, LOSSES, ONE_TERM, PROBABILITIES, check, dtypes, over
from oracle import OPTION_ULPS, needs_longdouble
from rows import ARRANGEMENTS, check_arranged

import fastce

# ---------------------------------------------------------------------------------------------------------------------
# Large logits
# ---------------------------------------------------------------------------------------------------------------------


def masked_by_the_smallest_number(classes, dtype):
    x = np.full((3, classes), np.finfo(dtype).min, dtype)
    x[:, 0] = 1
    x[1, 1:3] = 2, 0
    return x


@needs_longdouble
@dtypes
@pytest.mark.parametrize("classes", [3, 8, 40, 128, 5000, 40_000])
def test_sums_of_large_gaps(classes, dtype):
    """Each class adds a share of (row_max - x) to the loss, and the shares add up to less than one of the gaps."""
    x = masked_by_the_smallest_number(classes, dtype)
    uniform = np.full(x.shape, 1 / classes / 2, dtype)
    for options in ({"label_smoothing": 0.1}, {"label_smoothing": 0.1, "weight": np.linspace(0.5, 1, classes)}):
        check_arranged(INDEX, (x, np.array([0, 1, 0])), more=OPTION_ULPS, **options)
    check_arranged(PROBABILITIES, (x, uniform), more=OPTION_ULPS)
    check_arranged(PROBABILITIES, (x, uniform), more=OPTION_ULPS, label_smoothing=0.1, weight=np.full(classes, 0.5))


@pytest.mark.parametrize("classes", [2, 8, 70, 5000])
@pytest.mark.parametrize("axis", [0, -1])
def test_a_label_further_from_the_maximum_than_the_dtype_holds(classes, axis):
    """The row's loss is infinite in float32. The mean of it and two others is not."""
    x = np.zeros((3, classes), F32)
    x[0, 0], x[0, 1] = 3e38, -3e38
    labels = np.array([1, 0, 0])
    x = np.ascontiguousarray(x.T) if axis == 0 else x
    loss, grad = fastce.cross_entropy_with_grad(x, labels, axis=axis)
    assert loss == pytest.approx(2e38, rel=1e-6)
    assert np.isfinite(grad).all()
    rows = fastce.cross_entropy(x, labels, axis=axis, reduction="none")
    assert np.isposinf(rows[0])
    np.testing.assert_allclose(rows[1:], np.log(classes), rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Subnormal probabilities
# ---------------------------------------------------------------------------------------------------------------------

SCALES = {F32: [2.0**16, 2.0**30, 2.0**-20, 1e-30], F64: [2.0**40, 2.0**80, 2.0**-40, 1e-250]}


@needs_longdouble
@dtypes
@over(ONE_TERM)
@pytest.mark.parametrize("classes", [3, 40, 70, 5000])
def test_large_factors_of_subnormal_probabilities(classes, family, dtype):
    """The probability is not rounded before it is multiplied."""
    gaps = np.arange(88, 104) if dtype is F32 else np.arange(709, 745)
    x = np.full((len(gaps), classes), -np.inf, dtype)
    x[:, 0], x[:, 1], x[:, 2] = gaps, 0, 0.3
    for upstream in SCALES[dtype]:
        arrays = family.arguments(x, np.zeros(len(gaps), int))
        for name, way in ARRANGEMENTS.items():
            given = tuple(way.of(a) if a.shape == x.shape else a[None] if way.axis == 1 else a for a in arrays)
            for function in family.functions[1:]:
                got = function(*given, upstream=upstream, reduction="sum", axis=way.axis)["grad"]
                want = family.exact(*arrays, upstream=upstream, reduction="sum").grad
                got, others = way.back(got), slice(1, 3)  # the label's is 1 - p, from the sum of the others
                room = ((8 + gaps[:, None]) * np.finfo(dtype).eps).astype(np.longdouble)
                room = room * np.abs(want.value[:, others]) + 2 * np.finfo(dtype).smallest_subnormal
                assert (np.abs(got[:, others] - want.value[:, others]) <= room).all(), f"{name}, {function.id}"


@dtypes
def test_large_factors_from_stats(dtype):
    gap, upstream = (98, 2.0**16) if dtype is F32 else (725, 2.0**40)
    for classes in (3, 70, 5000):
        x = np.full((1, classes), -np.inf, dtype)
        x[0, :3] = gap, 0, 0.3
        stats = fastce.cross_entropy(x, [0], return_stats=True)[1]
        got = fastce.cross_entropy_grad(x, [0], upstream=upstream, stats=stats)
        p = np.exp(x.astype(np.longdouble) - gap)
        room = (gap + 8) * np.finfo(dtype).eps
        np.testing.assert_allclose(got[0, 1:].astype(np.longdouble), (p * upstream)[0, 1:], rtol=room)


# ---------------------------------------------------------------------------------------------------------------------
# Rows that do not count
# ---------------------------------------------------------------------------------------------------------------------


def spoiled(family, shape, dtype):
    """Rows that count, and the same with others that hold NaN or infinite numbers."""
    rng = np.random.default_rng(shape[1])
    x = rng.normal(0, 3, shape).astype(dtype)
    arrays = [a.copy() for a in family.arguments(x)]
    if family is INDEX:
        arrays[1][arrays[1] < 0] = 0
    sample = np.ones(shape[0])
    dead = np.arange(shape[0]) % 3 == 1
    sample[dead] = 0
    bad = [a.copy() for a in arrays]
    special = [np.nan, np.inf, -np.inf]
    for k, i in enumerate(np.flatnonzero(dead)):
        if k % 5 == 4:
            bad[0][i, :] = -np.inf
        elif k % 5 == 3 and family is not INDEX:
            bad[1][i, shape[1] // 2] = special[k % 3]
        else:
            bad[0][i, k % shape[1]] = special[k % 3]
    return arrays, bad, sample, dead


@dtypes
@over(LOSSES)
@pytest.mark.parametrize("shape", [(20, 3), (33, 70), (9, 300), (9, 5000), (6, 40_000)], ids=str)
def test_rows_of_sample_weight_0_do_not_count(shape, family, dtype):
    arrays, bad, sample, dead = spoiled(family, shape, dtype)
    for name, way in ARRANGEMENTS.items():
        if shape[1] > 5000 and name != "rows":
            continue

        def arranged(some, way=way):
            return tuple(way.of(a) if a.shape == shape else a[None] if way.axis == 1 else a for a in some)

        weights = sample[None] if way.axis == 1 else sample
        for options in (
            {},
            {"label_smoothing": 0.1},
            {"weight": np.linspace(0.5, 2, shape[1]), "label_smoothing": 0.1},
        ):
            options = {k: v for k, v in options.items() if k in family.options}
            for reduction in ("none", "mean"):
                for function in family.functions:
                    given = options | {"sample_weight": weights, "axis": way.axis, "reduction": reduction}
                    want = function(*arranged(arrays), **given)
                    for threads in (1, 2):
                        got = function(*arranged(bad), **given, num_threads=threads)
                        for result in want:
                            np.testing.assert_array_equal(
                                got[result], want[result], err_msg=f"{name}, {function.id}, {result}"
                            )
                    for result in ("loss", "grad"):
                        if result in got and np.ndim(got[result]):
                            rows = way.back(got[result])
                            assert (rows.reshape(shape[0], -1)[dead] == 0).all()


@dtypes
@over(ONE_TERM)
@pytest.mark.parametrize("shape", [(20, 3), (33, 70), (9, 5000)], ids=str)
def test_rows_of_sample_weight_0_from_stats_and_in_place(shape, family, dtype):
    arrays, bad, sample, _ = spoiled(family, shape, dtype)
    stats = fastce.cross_entropy(*bad, sample_weight=sample, return_stats=True)[1]
    want = fastce.cross_entropy_grad(*arrays, sample_weight=sample)
    got = fastce.cross_entropy_grad(*bad, sample_weight=sample, stats=stats)
    np.testing.assert_allclose(got, want, rtol=100 * np.finfo(dtype).eps, atol=np.finfo(dtype).eps)
    assert fastce.cross_entropy_grad(*bad, sample_weight=sample, out=bad[0]) is bad[0]
    np.testing.assert_array_equal(bad[0], want)


@over(LOSSES)
def test_rows_of_sample_weight_0_in_the_reference(family):
    arrays, bad, sample, _ = spoiled(family, (12, 6), F64)
    for function in family.functions:
        want = function(*arrays, package=fastce.reference, sample_weight=sample)
        got = function(*bad, package=fastce.reference, sample_weight=sample)
        for name in want:
            np.testing.assert_allclose(got[name], want[name], rtol=1e-14, atol=1e-16, err_msg=function.id)


def test_a_label_with_a_sample_weight_of_0_is_still_checked():
    with pytest.raises(IndexError, match=r"^targets\[1\] is 7"):
        fastce.cross_entropy(np.zeros((2, 3)), [0, 7], sample_weight=[1, 0])


@needs_longdouble
@dtypes
@over(LOSSES)
def test_sample_weights_of_which_some_are_0(family, dtype):
    x = np.random.default_rng(2).normal(size=(40, 12)).astype(dtype)
    sample = np.arange(40) % 4 / 2
    for reduction in ("mean", "sum", "none"):
        check(family, family.arguments(x), more=OPTION_ULPS, sample_weight=sample, reduction=reduction)


@dtypes
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"label_smoothing": 0.1, "z_loss": 1e-3}], ids=str)
@pytest.mark.parametrize("power", [-1074, -1030, -136, -100, 100, 127, 1023])
def test_a_mean_does_not_depend_on_the_size_of_weights(power, options, dtype):
    """Nothing overflows or is lost among subnormal numbers on the way."""
    rng = np.random.default_rng(12)
    x, labels = rng.standard_normal((5, 4)).astype(dtype), np.array([0, 3, 1, -100, 2])
    rows, classes = np.array([1.0, 0.5, 0.0, 1.0, 0.25]), np.array([1.0, 0.25, 1.0, 0.5])
    if power == -1074:
        rows, classes = np.ceil(rows), np.ones(4)
    for name, weights, targets in (
        ("sample_weight", rows, labels), ("sample_weight", rows, np.full((5, 4), 0.25)), ("weight", classes, labels),
    ):  # fmt: skip
        if name == "weight" and (options.get("z_loss") or (dtype is F32 and power > 127)):
            continue  # its z_loss counts as much as in a mean of weights near 1; float32 does not hold such weights
        want, wanted_grad = fastce.cross_entropy_with_grad(x, targets, **{name: weights}, **options)
        got, grad = fastce.cross_entropy_with_grad(x, targets, **{name: np.ldexp(weights, power)}, **options)
        np.testing.assert_allclose(got, want, rtol=8 * np.finfo(dtype).eps)
        np.testing.assert_allclose(grad, wanted_grad, rtol=64 * np.finfo(dtype).eps, atol=np.finfo(dtype).eps)


def test_z_loss_counts_as_much_beside_small_weights():
    """It does not contain the class weights, but their sum divides it."""
    x, labels = np.array([[1.0, 2.0, 4.0]]), np.array([1])
    lse = float(fastce.logsumexp(x)[0])
    for size in (1e-30, 1e30):
        got = fastce.cross_entropy(x, labels, weight=np.full(3, size), z_loss=0.1)
        np.testing.assert_allclose(got, lse - 2 + 0.1 * lse**2 / size, rtol=1e-14)
