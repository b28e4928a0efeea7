"""Infinities, NaN, masked classes, ignored rows, absent rows, weights of zero: every rule holds for the NumPy reference
as well, and is asserted of both."""

from __future__ import annotations

import math

import numpy as np
import pytest
from functions import (
    F32,
    F64,
    FAMILIES,
    FUNCTIONS,
    INDEX,
    LOSSES,
    MAPS,
    PROBABILITIES,
    PRODUCTS,
    TWO_TERM,
    dtypes,
    numbers,
    over,
)
from isa import AVAILABLE, computed_with

INF, NAN = math.inf, math.nan
BY_HAND = {F32: 1e-6, F64: 2e-15}  # a handful of roundings of numbers near 1
TWO_TERMS = {"activation": "softmax", "reduction": "none"}
widths = pytest.mark.parametrize("width", [4, 100, 5000])  # kernels differ: few classes, one block, several blocks


def _close(got, want, dtype):
    np.testing.assert_allclose(got, want, rtol=BY_HAND[dtype], atol=BY_HAND[dtype])


def _row(width, fill, special):
    """A row of nothing but `fill`, except where `special` says otherwise."""
    row = np.full(width, fill, float)
    for position, value in special.items():
        row[position] = value
    return row


# ---------------------------------------------------------------------------------------------------------------------
# Rows without a result
# ---------------------------------------------------------------------------------------------------------------------

# name: what the row holds, and its logsumexp. SciPy and PyTorch say the same of that: an empty sum has the logarithm
# -inf, a sum with an infinite term +inf.
BAD_ROWS = {
    "NaN": ({2: NAN}, NAN),
    "inf": ({0: INF}, INF),
    "two inf": ({1: INF, 3: INF}, INF),
    "inf and -inf": ({1: INF, 2: -INF}, INF),
    "inf and NaN": ({1: INF, 2: NAN}, NAN),
    "-inf and NaN": ({0: -INF, 2: NAN}, NAN),
    "all -inf": (None, -INF),
}


@dtypes
@widths
@over([INDEX, PROBABILITIES, TWO_TERM, MAPS])
@pytest.mark.parametrize("held", BAD_ROWS)
def test_bad_rows_are_nan_and_alone(package, held, family, width, dtype):
    special, lse = BAD_ROWS[held]
    row = np.full(width, -INF) if special is None else _row(width, 0.5, special)
    rng = np.random.default_rng(6)
    x, labels = rng.normal(size=(9, width)).astype(dtype), rng.integers(0, width, 9)

    def results(x, labels):
        return [
            result
            for function in family.functions
            for result in function(*family.arguments(x, labels), package=package).items()
        ]

    good = results(x, labels)
    for i in (0, 4, 8):
        others = np.arange(9) != i
        for label in (0,) if family is MAPS else (0, 1, 2, width - 1):
            bad, at = x.copy(), labels.copy()
            bad[i], at[i] = row, label
            for (name, got), (_, want) in zip(results(bad, at), good, strict=True):
                np.testing.assert_array_equal(got[i], lse if name == "lse" else NAN)
                np.testing.assert_array_equal(got[others], want[others])
            if family in (INDEX, PROBABILITIES):
                given = family.arguments(bad, at)
                forward, stats = package.cross_entropy(*given, reduction="none", return_stats=True)
                grad = package.cross_entropy_grad(*given, reduction="none", stats=stats)
                assert np.isnan(forward[i]) and np.isnan(grad[i]).all() and np.isfinite(grad[others]).all()
    if family is not MAPS:
        for reduction in ("mean", "sum"):
            assert np.isnan(
                family.functions[0](*family.arguments(bad, at), package=package, reduction=reduction)["loss"]
            )


@dtypes
@widths
@over(PRODUCTS)
def test_nan_stays_in_its_row_of_a_product(package, family, width, dtype):
    upstream, y = family.arguments(np.ones((3, width), dtype), seed=7)
    (function,) = family.functions
    good = function(upstream, y, package=package)["grad"]
    spoilt = np.repeat(y[None], 3, axis=0)
    spoilt[2, 1] = NAN
    for i, at in enumerate((0, width - 1, slice(None))):
        bad = upstream.copy()
        if i < 2:
            bad[1, at] = NAN
        got = function(bad, spoilt[i], package=package)["grad"]
        assert np.isnan(got[1]).all()
        np.testing.assert_array_equal(got[[0, 2]], good[[0, 2]])


@dtypes
@widths
@pytest.mark.parametrize("order", ["C", "F"])
def test_infinite_upstream_of_a_product(package, order, width, dtype):
    """The sum is infinite, not NaN, wherever in the row the element is."""
    y = np.full((3, width), 1 / width, dtype, order)
    for at in {0, width // 2, width - 2, width - 1}:
        upstream = np.zeros((3, width), dtype, order)
        upstream[1, at] = INF
        expected = np.zeros((3, width))
        expected[1] = -INF
        expected[1, at] = NAN
        np.testing.assert_array_equal(package.softmax_grad(upstream, y), expected)
        np.testing.assert_array_equal(package.log_softmax_grad(upstream, -y), expected)


@dtypes
class TestSpecialElementsOfSigmoid:
    @pytest.mark.parametrize(
        "z, c, loss, grad",
        [
            (INF, 1, 0, 0),
            (INF, 0, INF, 1),
            (INF, 0.25, INF, 0.75),
            (-INF, 0, 0, 0),
            (-INF, 1, INF, -1),
            (-INF, 0.25, INF, -0.25),
            (NAN, 0, NAN, NAN),
            (NAN, 1, NAN, NAN),
            (0, NAN, NAN, NAN),
        ],
    )
    @pytest.mark.parametrize("width", [1, 4, 40, 5000])
    def test_elements(self, package, dtype, width, z, c, loss, grad):
        x, targets = np.full((2, width), 0.5, dtype), np.full((2, width), 0.5, dtype)
        good, good_grad = package.binary_cross_entropy_with_grad(x, targets, reduction="none")
        for at in {0, width // 2, width - 1}:
            given, t = x.copy(), targets.copy()
            given[1, at], t[1, at] = z, c
            losses, grads = package.binary_cross_entropy_with_grad(given, t, reduction="none")
            np.testing.assert_array_equal(losses[1, at], dtype(loss))
            np.testing.assert_array_equal(grads[1, at], dtype(grad))
            others = np.ones(x.shape, bool)
            others[1, at] = False
            np.testing.assert_array_equal(losses[others], good[others])
            np.testing.assert_array_equal(grads[others], good_grad[others])
            total = package.binary_cross_entropy(given, t, reduction="sum")
            assert np.isnan(total) if np.isnan(loss) else np.isinf(total) == np.isinf(loss)


# ---------------------------------------------------------------------------------------------------------------------
# Masked classes
# ---------------------------------------------------------------------------------------------------------------------


@dtypes
@widths
class TestSpecialMaskedClasses:
    """Of -inf: they have no probability."""

    def test_softmax(self, package, width, dtype):
        x = np.full((3, width), -INF, dtype)
        x[:, 1], x[1:, width - 1], x[2, 0] = 2, 2, 2
        for i, classes in enumerate(([1], [1, width - 1], [0, 1, width - 1])):
            p = np.zeros(width)
            p[classes] = 1 / len(classes)
            _close(package.softmax(x)[i], p, dtype)
            assert (package.softmax(x)[i][p == 0] == 0).all()
            logp = package.log_softmax(x)[i]
            assert (logp[p == 0] == -INF).all()
            _close(logp[classes], -math.log(len(classes)), dtype)
            _close(package.logsumexp(x)[i], 2 + math.log(len(classes)), dtype)

    def test_products(self, package, width, dtype):
        upstream, y = np.full((2, width), 3, dtype), np.zeros((2, width), dtype)
        upstream[:, 1], upstream[:, 2] = 1, 5
        y[:, 1:3] = 0.5
        grad = package.softmax_grad(upstream, y)
        _close(grad[:, 1:3], [[-1, 1]] * 2, dtype)
        assert (np.delete(grad, [1, 2], axis=1) == 0).all()
        upstream[:, 0], upstream[:, 3:] = 0, 0
        with np.errstate(divide="ignore"):
            grad = package.log_softmax_grad(upstream, np.log(y))
        _close(grad[:, 1:3], [[-2, 2]] * 2, dtype)
        assert (np.delete(grad, [1, 2], axis=1) == 0).all()

    def test_cross_entropy(self, package, width, dtype):
        logits = np.full((3, width), -INF, dtype)
        logits[:, 1], logits[:, width - 1] = 2, 2
        loss, grad = package.cross_entropy_with_grad(logits, np.array([1, width - 1, 1]), reduction="none")
        _close(loss, [math.log(2)] * 3, dtype)
        expected = np.zeros((3, width))
        expected[[0, 1, 2], [1, width - 1, 1]] = -0.5
        expected[[0, 1, 2], [width - 1, 1, width - 1]] = 0.5
        _close(grad, expected, dtype)

    def test_masked_label_costs_infinity_and_has_a_finite_gradient(self, package, width, dtype):
        logits = np.zeros((2, width), dtype)
        logits[0, 3] = -INF
        loss, grad = package.cross_entropy_with_grad(logits, np.array([3, 3]), reduction="none")
        assert loss[0] == INF and np.isfinite(loss[1])
        expected = np.full(width, 1 / (width - 1))
        expected[3] = -1
        _close(grad[0], expected, dtype)
        assert package.cross_entropy(logits, np.array([3, 3])) == INF

    def test_zero_probability_of_a_masked_class_adds_nothing(self, package, width, dtype):
        logits = np.full((2, width), -INF, dtype)
        logits[:, 1:3] = 0
        c = np.zeros((2, width), dtype)
        c[:, 1], c[0, 2], c[1, 3] = 0.5, 0.5, 0.5
        loss, grad = package.cross_entropy_with_grad(logits, c, reduction="none")
        _close(loss[0], math.log(2), dtype)
        assert loss[1] == INF
        np.testing.assert_array_equal(grad[0], np.zeros(width))
        np.testing.assert_array_equal(grad[1], _row(width, 0.0, {2: 0.5, 3: -0.5}))

    def test_zero_weight_of_a_masked_class_adds_nothing(self, package, width, dtype):
        logits = np.zeros((2, width), dtype)
        logits[:, 2] = -INF
        weight = np.ones(width, dtype)
        weight[2] = 0
        for smoothing in (0.0, 0.1):
            loss, grad = package.cross_entropy_with_grad(
                logits, np.array([0, 2]), weight=weight, label_smoothing=smoothing, reduction="none"
            )
            # q is smoothing/width for each of the width - 1 classes that weigh, and the label's share where it weighs
            uniform = smoothing * (width - 1) / width
            expected = [(1 - smoothing + uniform) * math.log(width - 1), uniform * math.log(width - 1)]
            np.testing.assert_allclose(loss, expected, rtol=20 * BY_HAND[dtype])  # sums of `width` terms
            assert np.isfinite(grad).all() and (grad[:, 2] == 0).all()
        assert package.cross_entropy(logits, np.array([0, 1]), label_smoothing=0.1) == INF

    def test_two_term_form(self, package, width, dtype):
        """A target of 0 there costs nothing and moves nothing."""
        x, c = np.full((2, width), -INF, dtype), np.zeros((2, width), dtype)
        x[:, 1], x[:, width - 1] = 2, 2
        c[[0, 1], [1, width - 1]] = 1
        loss, grad = package.binary_cross_entropy_with_grad(x, c, **TWO_TERMS)
        _close(loss, [2 * math.log(2)] * 2, dtype)
        expected = np.zeros((2, width))
        expected[[0, 1], [1, width - 1]], expected[[0, 1], [width - 1, 1]] = -1, 1
        _close(grad, expected, dtype)
        assert (grad[expected == 0] == 0).all()

    def test_two_term_form_with_a_masked_target(self, package, width, dtype):
        x, c = np.zeros((2, width), dtype), np.zeros((2, width), dtype)
        x[0, 3] = -INF
        c[:, 3] = 1
        loss, grad = package.binary_cross_entropy_with_grad(x, c, **TWO_TERMS)
        assert loss[0] == INF and np.isfinite(loss[1])
        # the limit: h is -1 there and 1/(n-1) at the n = width - 1 others, whose p is 1/n
        n = width - 1
        expected = np.full(width, 1 / (n - 1) - (n / (n - 1) - 1) / n)
        expected[3] = -1
        _close(grad[0], expected, dtype)

    def test_two_term_form_of_the_only_class(self, package, width, dtype):
        x, c = np.full((3, width), -INF, dtype), np.zeros((3, width), dtype)
        x[:, 2] = 5
        c[:, 2] = [1, 1, 0.5]
        c[1, 3] = 0.25
        loss, grad = package.binary_cross_entropy_with_grad(x, c, **TWO_TERMS)
        np.testing.assert_array_equal(loss, [0, INF, INF])
        assert (grad[0] == 0).all()
        expected = np.zeros(width)
        expected[2], expected[3] = 0.25, -0.25
        np.testing.assert_array_equal(grad[1], expected)
        assert np.isnan(grad[2]).all()

    def test_zero_weight_takes_an_infinite_term_of_the_two_term_form_away(self, package, width, dtype):
        x, c, weight = np.zeros((1, width), dtype), np.zeros((1, width), dtype), np.ones(width, dtype)
        x[0, 3], c[0, 3], weight[3] = -INF, 1, 0
        loss, grad = package.binary_cross_entropy_with_grad(x, c, weight=weight, **TWO_TERMS)
        n = width - 1
        _close(loss, [-n * math.log1p(-1 / n)], dtype)
        _close(grad, np.zeros((1, width)), dtype)


@dtypes
def test_zero_weights_take_infinite_elements_of_sigmoid_away(package, dtype):
    x, c = np.array([[-INF, INF, 0]], dtype), np.array([[1, 0, 1]], dtype)
    weight = np.array([0, 0, 1], dtype)
    loss, grad = package.binary_cross_entropy_with_grad(x, c, weight=weight, reduction="sum")
    _close(loss, math.log(2), dtype)
    np.testing.assert_array_equal(grad, [[0, 0, -0.5]])
    x, c = np.array([[-INF, 0, 0]], dtype), np.array([[0.5, 1, 0]], dtype)
    positive = np.array([0, 1, 1], dtype)
    loss, grad = package.binary_cross_entropy_with_grad(x, c, pos_weight=positive, reduction="sum")
    _close(loss, 2 * math.log(2), dtype)
    np.testing.assert_array_equal(grad, [[0, -0.5, 0.5]])


@dtypes
def test_one_class_that_is_not_certain_costs_infinity(package, dtype):
    loss, grad = package.binary_cross_entropy_with_grad(
        np.zeros((2, 1), dtype), np.array([[0], [0.5]]), activation="softmax", reduction="none"
    )
    np.testing.assert_array_equal(loss, [INF, INF])
    assert np.isnan(grad).all()


# ---------------------------------------------------------------------------------------------------------------------
# Ignored and absent rows
# ---------------------------------------------------------------------------------------------------------------------


@dtypes
@widths
@pytest.mark.parametrize("held", [NAN, INF, -INF])
def test_ignored_rows_may_hold_anything(package, width, dtype, held):
    rng = np.random.default_rng(7)
    logits = rng.normal(size=(20, width)).astype(dtype)
    labels = rng.integers(0, width, 20)
    labels[[0, 7, 19]] = -100
    logits[[0, 7, 19]] = held
    options = {"weight": rng.random(width).astype(dtype), "label_smoothing": 0.1, "z_loss": 1e-3}
    kept = labels >= 0
    for given in ({}, options):
        for reduction in ("none", "sum", "mean"):
            loss, grad = package.cross_entropy_with_grad(logits, labels, reduction=reduction, **given)
            alone, alone_grad = package.cross_entropy_with_grad(
                logits[kept], labels[kept], reduction=reduction, **given
            )
            assert (grad[~kept] == 0).all()
            _close(grad[kept], alone_grad, dtype)
            _close(loss[kept] if reduction == "none" else loss, alone, dtype)
            _, stats = package.cross_entropy(logits, labels, reduction=reduction, return_stats=True, **given)
            again = package.cross_entropy_grad(logits, labels, reduction=reduction, stats=stats, **given)
            assert (again[~kept] == 0).all() and np.isfinite(again).all()
            if reduction == "none":
                assert (loss[~kept] == 0).all()


@dtypes
@pytest.mark.parametrize("isa", AVAILABLE)
def test_every_instruction_set(isa, dtype, tmp_path):
    """An instruction for the larger of two numbers returns the first or the second where one of them is NaN."""
    calls, kept = [], np.arange(20) % 3 > 0
    for width in (4, 100):
        logits, labels = numbers((20, width), dtype), np.where(kept, np.arange(20) % width, -100)
        logits[~kept], logits[1, 0], logits[2, 1], logits[4, -1] = NAN, NAN, INF, -INF
        calls.append(("cross_entropy_with_grad", (logits, labels), {"reduction": "none"}))
        calls.append(("softmax", (logits,), {}))
    results = computed_with(isa, calls, tmp_path)
    bad = np.isin(np.arange(20), (1, 2))
    for (loss, grad), p in zip(results[::2], results[1::2], strict=True):
        assert (loss[~kept] == 0).all() and (grad[~kept] == 0).all()
        assert np.isnan(loss[bad]).all() and np.isnan(grad[bad]).all() and np.isnan(p[~kept | bad]).all()
        assert np.isfinite(loss[kept & ~bad]).all() and np.isfinite(grad[kept & ~bad]).all()
        assert np.isfinite(p[kept & ~bad]).all()


@pytest.mark.parametrize("label_dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"])
def test_ignore_index_at_the_ends_of_each_label_dtype(package, label_dtype):
    """-100 does not wrap into an unsigned dtype (156 is a class), and the extremes of each dtype can be ignored."""
    logits = np.random.default_rng(4).normal(size=(3, 200))
    labels = np.array([1, 100, 2], label_dtype)
    if np.iinfo(label_dtype).max >= 156:
        labels[1] = 156
        assert package.cross_entropy(logits, labels, reduction="none")[1] > 0
    for ignored in (np.iinfo(label_dtype).max, np.iinfo(label_dtype).min):
        labels[1] = ignored
        loss = package.cross_entropy(logits, labels, reduction="none", ignore_index=int(ignored))
        np.testing.assert_array_equal(loss == 0, [False, True, False])


@dtypes
@over(FUNCTIONS)
@pytest.mark.parametrize("shape", [(0, 3), (0, 100), (0, 1), (2, 0, 3), (2, 0, 1), (0, 5, 3)])
def test_no_rows(package, shape, function, dtype):
    family = function.family
    arrays = [
        np.zeros(shape[:-1], int) if n == "targets" and family is INDEX else np.zeros(shape, dtype)
        for n in family.names
    ]
    for name, got in function(*arrays, package=package).items():
        assert got.dtype == dtype
        assert got.shape == (shape[:-1] if name == "lse" or (name == "loss" and family.by_row) else shape)
    if "loss" in function.returns:
        for reduction, expected in (("sum", 0), ("mean", NAN)):
            got = function(*arrays, package=package, reduction=reduction)
            np.testing.assert_array_equal(got["loss"], expected)
            assert type(got["loss"]) is dtype and got.get("grad", np.zeros(shape)).shape == shape
        assert function(*arrays, package=package, reduction="mean", normalizer=5)["loss"] == 0
    if function.name == "cross_entropy":
        _, stats = package.cross_entropy(*arrays, return_stats=True)
        assert stats.row_max.shape == stats.tail.shape == shape[:-1]


@dtypes
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 0.1}], ids=["plain", "options"])
def test_mean_of_nothing_is_nan_and_its_gradient_zero(package, dtype, options):
    logits = np.random.default_rng(8).normal(size=(3, 4)).astype(dtype)
    labels = np.full(3, -100)
    loss, grad = package.cross_entropy_with_grad(logits, labels, **options)
    assert np.isnan(loss) and type(loss) is dtype
    np.testing.assert_array_equal(grad, np.zeros((3, 4)))
    np.testing.assert_array_equal(package.cross_entropy_grad(logits, labels, **options), np.zeros((3, 4)))
    assert package.cross_entropy(logits, labels, reduction="sum", **options) == 0
    assert package.cross_entropy(logits, labels, normalizer=2, **options) == 0


@dtypes
@over(LOSSES)
def test_mean_of_rows_without_weight(package, family, dtype):
    """The mean of nothing is NaN, its gradient zero. Only the elements of the sigmoid form still count."""
    arrays = family.arguments(numbers((3, 4), dtype), np.arange(3))
    for function in family.functions:
        got = function(*arrays, package=package, reduction="mean", sample_weight=np.zeros(3))
        np.testing.assert_array_equal(got.get("loss", NAN), NAN if family.by_row or "loss" not in got else 0)
        assert (got.get("grad", np.zeros(1)) == 0).all()


@dtypes
@over([family for family in FAMILIES if "sample_weight" in family.options])
@pytest.mark.parametrize("shape", [(40, 5), (200, 40), (40, 300), (3, 9000)], ids=str)
@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_of_weight_0_may_hold_anything(order, shape, family, dtype):
    arrays = [np.array(a, order=order) for a in family.arguments(numbers(shape, dtype))]
    arrays[0][1], arrays[0][2] = NAN, INF
    weight = np.ones(shape[0])
    weight[1:3] = 0
    for function in family.functions:
        for reduction in ("none", "mean"):
            for name, value in function(*arrays, sample_weight=weight, reduction=reduction).items():
                assert np.isfinite(value).all(), name
                assert np.ndim(value) == 0 or (value[1:3] == 0).all(), name


# ---------------------------------------------------------------------------------------------------------------------
# predict
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row, at",
    [
        ([0, INF, INF], 1),
        ([-INF, -INF, -INF], 0),
        ([0, NAN, 9], 1),
        ([INF, 0, NAN], 2),
        ([NAN, INF, NAN], 0),
        ([-INF, -INF, -5], 2),
    ],
)
@pytest.mark.parametrize("width", [3, 100, 5000])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_special_numbers_of_predict(package, dtype, width, row, at):
    """NaN counts as the largest, as in np.argmax."""
    logits = np.full((2, width), -INF, dtype)
    logits[:, -3:] = row
    if row != [-INF, -INF, -INF]:
        at += width - 3
    np.testing.assert_array_equal(package.predict(logits), [at, at])
    np.testing.assert_array_equal(package.predict(logits.T, axis=0), [at, at])


@dtypes
@widths
@pytest.mark.parametrize("values", [[-1, -0.0, 0.0], [-INF, 1], [-INF, 0, INF], [*range(30), NAN], [-INF, INF, NAN]])
def test_predict_is_argmax_wherever_the_largest_is(package, values, width, dtype):
    """Equal numbers in all lanes and blocks, in rows, across rows, and in copies of tiles."""
    x = np.random.default_rng(width).choice(values, (37, width)).astype(dtype)
    x[0], x[1] = -INF, np.finfo(dtype).max
    x[1, width // 2 :] *= -1  # their sum may overflow
    want = np.argmax(x, axis=-1)
    np.testing.assert_array_equal(package.predict(x), want)
    np.testing.assert_array_equal(package.predict(np.asfortranarray(x)), want)
    np.testing.assert_array_equal(package.predict(np.repeat(x, 2, axis=1)[:, ::2]), want)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0, 5)])
def test_no_rows_of_predict(package, shape):
    got = package.predict(np.zeros(shape))
    assert got.shape == shape[:-1] and got.dtype == np.intp
