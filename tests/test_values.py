"""Values of the core: by hand, on a grid of shapes and dtypes against the exact ones, with infinities, NaN, ignored and
absent rows. What is by hand or about special numbers holds for the NumPy reference as well, and is asserted of both."""

from __future__ import annotations

import math

import numpy as np
import pytest

import fastce
import fastce.reference

from .oracle import CONTRACT_ULPS, assert_gradient, assert_losses, exact, exact_row, needs_longdouble

DTYPES = [np.float32, np.float64]
LABEL_DTYPES = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]
# Around the widths of the vectors (4 to 16), of the kernels for few classes (64) and of blocks of classes (2048, 4096).
CLASSES = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 1000, 2047, 2048, 2049, 4095, 4097, 50257]
ROWS = [1, 2, 3, 17, 130]
LEADING = {
    1: [(), (1,), (1, 1)],
    2: [(2,), (1, 2, 1)],
    3: [(3,), (3, 1)],
    17: [(17,)],
    130: [(130,), (13, 10), (5, 2, 13)],
}
MOST_LOGITS = 1 << 18  # of one case: longdouble is slow

# A handful of roundings: enough for sums of four terms, and for the textbook formulas where nothing cancels.
BY_HAND = {np.float32: 1e-6, np.float64: 2e-15}


@pytest.fixture(params=[fastce, fastce.reference], ids=["fastce", "reference"])
def ce(request):
    return request.param


def _close(got, want, dtype):
    np.testing.assert_allclose(got, want, rtol=BY_HAND[dtype], atol=BY_HAND[dtype])


# ---------------------------------------------------------------------------------------------------------------------
# By hand
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
class TestByHand:
    # softmax(log [1, 2, 3, 4]) is [1, 2, 3, 4]/10
    def logits(self, dtype):
        return np.log(np.array([[1, 2, 3, 4]], dtype))

    p = np.array([0.1, 0.2, 0.3, 0.4])

    def test_equal_logits(self, ce, dtype):
        loss, grad = ce.cross_entropy_with_grad(np.zeros((2, 4), dtype), np.array([0, 3]))
        _close(loss, math.log(4), dtype)
        np.testing.assert_array_equal(grad, [[-0.375, 0.125, 0.125, 0.125], [0.125, 0.125, 0.125, -0.375]])

    def test_one_class_costs_nothing(self, ce, dtype):
        loss, grad = ce.cross_entropy_with_grad(np.array([[3.5], [-2.0]], dtype), np.array([0, 0]))
        assert loss == 0
        np.testing.assert_array_equal(grad, [[0], [0]])

    def test_index(self, ce, dtype):
        loss, grad = ce.cross_entropy_with_grad(self.logits(dtype), np.array([2]))
        _close(loss, math.log(10 / 3), dtype)
        _close(grad, [self.p - [0, 0, 1, 0]], dtype)

    def test_upstream_scales_the_gradient_alone(self, ce, dtype):
        loss, grad = ce.cross_entropy_with_grad(self.logits(dtype), np.array([2]), upstream=-2.0)
        _close(loss, math.log(10 / 3), dtype)
        _close(grad, [-2 * (self.p - [0, 0, 1, 0])], dtype)

    def test_upstream_of_each_row(self, ce, dtype):
        logits = np.repeat(self.logits(dtype), 2, axis=0)
        upstream = np.array([3.0, -0.5], dtype)
        loss, grad = ce.cross_entropy_with_grad(logits, np.array([0, 1]), reduction="none", upstream=upstream)
        _close(loss, [math.log(10), math.log(5)], dtype)
        _close(grad, [3 * (self.p - [1, 0, 0, 0]), -0.5 * (self.p - [0, 1, 0, 0])], dtype)

    def test_class_weights_divide_the_mean(self, ce, dtype):
        logits = np.repeat(self.logits(dtype), 2, axis=0)
        weight = np.array([1, 3, 5, 7], dtype)
        loss, grad = ce.cross_entropy_with_grad(logits, np.array([0, 1]), weight=weight)
        _close(loss, (math.log(10) + 3 * math.log(5)) / 4, dtype)
        _close(grad, [(self.p - [1, 0, 0, 0]) / 4, 3 * (self.p - [0, 1, 0, 0]) / 4], dtype)

    def test_sample_weights_divide_the_mean(self, ce, dtype):
        logits = np.repeat(self.logits(dtype), 2, axis=0)
        loss, grad = ce.cross_entropy_with_grad(logits, np.array([0, 1]), sample_weight=np.array([1, 4], dtype))
        _close(loss, (math.log(10) + 4 * math.log(5)) / 5, dtype)
        _close(grad, [(self.p - [1, 0, 0, 0]) / 5, 4 * (self.p - [0, 1, 0, 0]) / 5], dtype)

    def test_normalizer_divides_the_mean_instead(self, ce, dtype):
        logits = np.repeat(self.logits(dtype), 2, axis=0)
        loss, grad = ce.cross_entropy_with_grad(
            logits, np.array([0, 1]), sample_weight=np.array([1, 4], dtype), normalizer=16
        )
        _close(loss, (math.log(10) + 4 * math.log(5)) / 16, dtype)
        _close(grad, [(self.p - [1, 0, 0, 0]) / 16, 4 * (self.p - [0, 1, 0, 0]) / 16], dtype)

    def test_label_smoothing_takes_from_the_label_and_gives_to_all(self, ce, dtype):
        loss, grad = ce.cross_entropy_with_grad(self.logits(dtype), np.array([2]), label_smoothing=0.4)
        c = np.array([0.1, 0.1, 0.7, 0.1])
        _close(loss, -(c * np.log(self.p)).sum(), dtype)
        _close(grad, [self.p - c], dtype)

    def test_full_smoothing_forgets_the_label(self, ce, dtype):
        losses = [ce.cross_entropy(self.logits(dtype), np.array([t]), label_smoothing=1.0) for t in range(4)]
        _close(losses, [-np.log(self.p).mean()] * 4, dtype)

    def test_weights_apply_after_smoothing(self, ce, dtype):
        weight = np.array([1, 3, 5, 7], dtype)
        loss, grad = ce.cross_entropy_with_grad(
            self.logits(dtype), np.array([2]), label_smoothing=0.4, weight=weight, reduction="sum"
        )
        q = weight * [0.1, 0.1, 0.7, 0.1]
        _close(loss, -(q * np.log(self.p)).sum(), dtype)
        _close(grad, [q.sum() * self.p - q], dtype)

    def test_z_loss_adds_the_square_of_lse(self, ce, dtype):
        loss, grad = ce.cross_entropy_with_grad(self.logits(dtype), np.array([2]), z_loss=0.5)
        lse = math.log(10)
        _close(loss, math.log(10 / 3) + 0.5 * lse**2, dtype)
        _close(grad, [self.p - [0, 0, 1, 0] + lse * self.p], dtype)

    def test_probabilities_need_not_sum_to_one(self, ce, dtype):
        c = np.array([[0.5, 0, 1.5, 1]], dtype)
        loss, grad = ce.cross_entropy_with_grad(self.logits(dtype), c)
        _close(loss, 0.5 * math.log(10) + 1.5 * math.log(10 / 3) + math.log(10 / 4), dtype)
        _close(grad, 3 * self.p - c, dtype)

    def test_ignored_rows_are_not_counted(self, ce, dtype):
        logits = np.repeat(self.logits(dtype), 3, axis=0)
        loss, grad = ce.cross_entropy_with_grad(logits, np.array([0, -100, 1]))
        _close(loss, (math.log(10) + math.log(5)) / 2, dtype)
        _close(grad, [(self.p - [1, 0, 0, 0]) / 2, [0] * 4, (self.p - [0, 1, 0, 0]) / 2], dtype)

    def test_ignore_index_may_be_a_class_or_none(self, ce, dtype):
        logits = np.repeat(self.logits(dtype), 2, axis=0)
        labels = np.array([0, 1])
        _close(ce.cross_entropy(logits, labels, ignore_index=1), math.log(10), dtype)
        _close(ce.cross_entropy(logits, labels, ignore_index=None), math.log(50) / 2, dtype)

    def test_stats_are_the_maximum_and_the_rest(self, ce, dtype):
        _, stats = ce.cross_entropy(self.logits(dtype), np.array([2]), return_stats=True)
        _close(stats.row_max, [math.log(4)], dtype)
        _close(stats.tail, [6 / 4], dtype)
        _close(stats.row_max + np.log1p(stats.tail), [math.log(10)], dtype)

    def test_ties_of_the_maximum_count_in_the_tail(self, ce, dtype):
        _, stats = ce.cross_entropy(np.array([[2, 2, 2]], dtype), np.array([0]), return_stats=True)
        assert (stats.row_max, stats.tail) == (2, 2)


# float32: logits, label, loss. PyTorch, JAX, scikit-learn and scipy.special.log_softmax return 0 for the first three
# losses, and 0 (once -1.19e-07) for the gradient at the label, which is the loss with its sign changed; JAX and
# scikit-learn return 1.0625 for the last.
PEERS_GET_WRONG = [
    ([20, 0, 0, 0], 0, 6.18346e-09),
    ([117, 100, 100, 100], 0, 1.24198e-07),
    ([80, 0, 0, 0], 0, 5.41455e-35),
    ([1e6, 1e6 - 0.5, 1e6 - 1, 1e6], 0, 1.09005),
]


@pytest.mark.parametrize("logits, label, published", PEERS_GET_WRONG)
def test_what_peers_get_wrong(logits, label, published):
    x = np.array([logits], np.float32)
    loss, grad = fastce.cross_entropy_with_grad(x, np.array([label]))
    true_loss, true_grad = exact_row(x[0], label)
    assert float(true_loss) == pytest.approx(published, rel=5e-6)  # half a unit of the sixth digit
    others = np.delete(x[0], label)
    gap = max(float(x[0, label] - others.max()), 0)
    bound = (CONTRACT_ULPS + gap) * np.finfo(np.float32).eps
    assert abs(loss - float(true_loss)) <= bound * float(true_loss)
    assert abs(grad[0, label] - float(true_grad[label])) <= bound * abs(float(true_grad[label]))


# ---------------------------------------------------------------------------------------------------------------------
# The grid
# ---------------------------------------------------------------------------------------------------------------------


def _grid_case(dtype, rows, classes):
    """Logits of so many rows, and labels. Leading dimensions, spread and label dtype differ from case to case."""
    seed = rows * 100_003 + classes
    rng = np.random.default_rng(seed)
    lead = LEADING[rows][seed % len(LEADING[rows])]
    logits = (rng.normal(size=(*lead, classes)) * (1, 4, 20)[seed % 3] + rng.normal(size=(*lead, 1)) * 90).astype(dtype)
    label_dtype = LABEL_DTYPES[(seed + seed // 8) % len(LABEL_DTYPES)]
    labels = rng.integers(0, min(classes, np.iinfo(label_dtype).max + 1), lead).astype(label_dtype)
    return logits, labels


@needs_longdouble
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_grid_against_exact_values(dtype, classes, rows):
    if rows * classes > MOST_LOGITS:
        rows = 3
    logits, labels = _grid_case(dtype, rows, classes)
    eps = np.finfo(dtype).eps
    want = exact(logits, labels, reduction="none")
    loss, grad = fastce.cross_entropy_with_grad(logits, labels, reduction="none", num_threads=1)
    assert loss.dtype == grad.dtype == dtype and loss.shape == labels.shape
    assert_losses(loss, want)
    assert_gradient(grad, want)

    # the forward alone, the backward alone and more threads: the same to the bit
    forward, stats = fastce.cross_entropy(logits, labels, reduction="none", return_stats=True, num_threads=2)
    np.testing.assert_array_equal(forward, loss)
    np.testing.assert_array_equal(fastce.cross_entropy(logits, labels, reduction="none", num_threads=1), loss)
    np.testing.assert_array_equal(fastce.cross_entropy_grad(logits, labels, reduction="none", num_threads=2), grad)
    # stats are rounded to the logits' dtype
    with_stats = fastce.cross_entropy_grad(logits, labels, reduction="none", stats=stats, num_threads=1)
    assert_gradient(with_stats, want, ulps=CONTRACT_ULPS + 1)
    np.testing.assert_array_equal(
        fastce.cross_entropy_grad(logits, labels, reduction="none", stats=stats, num_threads=2), with_stats
    )
    np.testing.assert_array_equal(stats.row_max, logits.max(axis=-1))
    assert stats.tail.shape == labels.shape and stats.tail.dtype == dtype

    for reduction in ("mean", "sum"):
        one, one_grad = fastce.cross_entropy_with_grad(logits, labels, reduction=reduction, num_threads=1)
        two, two_grad = fastce.cross_entropy_with_grad(logits, labels, reduction=reduction, num_threads=2)
        assert type(one) is type(two) is dtype
        assert one == two == fastce.cross_entropy(logits, labels, reduction=reduction, num_threads=2)
        np.testing.assert_array_equal(one_grad, two_grad)
        exact_sum = want.rows.sum()
        wanted = exact_sum / max(rows, 1) if reduction == "mean" else exact_sum
        # every term's own bound, the float64 sum over rows, the final division and rounding
        allowed = ((CONTRACT_ULPS + want.gap) * want.rows).sum() / exact_sum * eps if exact_sum else 0
        allowed += rows * np.finfo(np.float64).eps + eps
        assert abs(one - wanted) <= allowed * wanted
        assert_gradient(one_grad, exact(logits, labels, reduction=reduction), ulps=CONTRACT_ULPS + 1)


@needs_longdouble
@pytest.mark.parametrize("classes", [5, 100])
@pytest.mark.parametrize("label_dtype", LABEL_DTYPES)
def test_every_integer_dtype_of_labels(label_dtype, classes):
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(40, classes)).astype(np.float32)
    labels = rng.integers(0, classes, 40)
    expected = fastce.cross_entropy_with_grad(logits, labels)
    for given in (labels.astype(label_dtype), labels.astype(np.dtype(label_dtype).newbyteorder())):
        loss, grad = fastce.cross_entropy_with_grad(logits, given)
        assert loss == expected[0]
        np.testing.assert_array_equal(grad, expected[1])


@pytest.mark.parametrize("label_dtype", LABEL_DTYPES)
def test_ignore_index_at_the_ends_of_each_label_dtype(ce, label_dtype):
    """-100 does not wrap into an unsigned dtype (156 is a class), and the extremes of each dtype can be ignored."""
    logits = np.random.default_rng(4).normal(size=(3, 200))
    labels = np.array([1, 100, 2], label_dtype)
    if np.iinfo(label_dtype).max >= 156:
        labels[1] = 156
        assert ce.cross_entropy(logits, labels, reduction="none")[1] > 0
    for ignored in (np.iinfo(label_dtype).max, np.iinfo(label_dtype).min):
        labels[1] = ignored
        loss = ce.cross_entropy(logits, labels, reduction="none", ignore_index=int(ignored))
        np.testing.assert_array_equal(loss == 0, [False, True, False])


def test_integer_and_bool_logits_are_float64(ce):
    labels = np.array([1, 0])
    for logits in (np.array([[1, 5], [2, -3]]), np.array([[True, False], [False, True]]), [[1, 2], [3, 4]]):
        loss, grad = ce.cross_entropy_with_grad(logits, labels)
        expected = ce.cross_entropy_with_grad(np.asarray(logits, np.float64), labels)
        assert loss.dtype == grad.dtype == np.float64
        assert loss == expected[0]
        np.testing.assert_array_equal(grad, expected[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("classes", [3, 70])
def test_finite_differences(dtype, reduction, classes):
    """The gradient is that of the loss that is returned: 4th-order central differences, in float64."""
    rng = np.random.default_rng(5)
    logits, labels = rng.normal(size=(4, classes)).astype(dtype).astype(np.float64), rng.integers(0, classes, 4)
    labels[2] = -100
    upstream = rng.normal(size=4) if reduction == "none" else 1.5
    grad = fastce.cross_entropy_grad(logits, labels, reduction=reduction, upstream=upstream)
    h = 1e-3  # the method's error is h^4/30 times the fifth derivative, rounding is eps*loss/h: each below 1e-12

    def objective(x):
        return np.sum(fastce.cross_entropy(x, labels, reduction=reduction) * upstream)

    for i, j in np.ndindex(logits.shape):
        step = np.zeros_like(logits)
        step[i, j] = h
        difference = 8 * (objective(logits + step) - objective(logits - step))
        difference -= objective(logits + 2 * step) - objective(logits - 2 * step)
        assert difference / (12 * h) == pytest.approx(grad[i, j], abs=1e-11)


# ---------------------------------------------------------------------------------------------------------------------
# Infinities, NaN, ignored and absent rows
# ---------------------------------------------------------------------------------------------------------------------

INF, NAN = math.inf, math.nan
# Kernels differ with the number of classes: few, one block, several blocks.
WIDTHS = [4, 100, 5000]


def _row(width, fill, **special):
    row = np.full(width, fill)
    for position, value in special.items():
        row[int(position[1:])] = value
    return row


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
class TestSpecialNumbers:
    def test_masked_classes_have_no_probability(self, ce, width, dtype):
        logits = np.full((3, width), -INF, dtype)
        logits[:, 1], logits[:, width - 1] = 2, 2
        loss, grad = ce.cross_entropy_with_grad(logits, np.array([1, width - 1, 1]), reduction="none")
        _close(loss, [math.log(2)] * 3, dtype)
        expected = np.zeros((3, width))
        expected[[0, 1, 2], [1, width - 1, 1]] = -0.5
        expected[[0, 1, 2], [width - 1, 1, width - 1]] = 0.5
        _close(grad, expected, dtype)

    def test_masked_target_costs_infinity_and_has_a_finite_gradient(self, ce, width, dtype):
        logits = np.zeros((2, width), dtype)
        logits[0, 3] = -INF
        loss, grad = ce.cross_entropy_with_grad(logits, np.array([3, 3]), reduction="none")
        assert loss[0] == INF and np.isfinite(loss[1])
        expected = np.full(width, 1 / (width - 1))
        expected[3] = -1
        _close(grad[0], expected, dtype)
        assert ce.cross_entropy(logits, np.array([3, 3])) == INF

    @pytest.mark.parametrize("bad", [{"_2": NAN}, {"_0": INF}, {"_1": INF, "_3": INF}, {"_1": INF, "_2": -INF}, None])
    def test_bad_rows_are_nan_and_alone(self, ce, width, dtype, bad):
        row = _row(width, 0.5, **bad) if bad else np.full(width, -INF)
        rng = np.random.default_rng(6)
        logits = rng.normal(size=(9, width)).astype(dtype)
        labels = rng.integers(0, width, 9)
        expected = ce.cross_entropy_with_grad(logits, labels, reduction="none")
        for i in (0, 4, 8):
            for label in (0, 1, 2, width - 1):
                given, at = logits.copy(), labels.copy()
                given[i], at[i] = row, label
                loss, grad = ce.cross_entropy_with_grad(given, at, reduction="none")
                forward, stats = ce.cross_entropy(given, at, reduction="none", return_stats=True)
                with_stats = ce.cross_entropy_grad(given, at, reduction="none", stats=stats)
                assert np.isnan(loss[i]) and np.isnan(forward[i])
                assert np.isnan(grad[i]).all() and np.isnan(with_stats[i]).all()
                others = np.arange(9) != i
                np.testing.assert_array_equal(loss[others], expected[0][others])
                np.testing.assert_array_equal(grad[others], expected[1][others])
                assert np.isfinite(with_stats[others]).all()
        assert np.isnan(ce.cross_entropy(given, at)) and np.isnan(ce.cross_entropy(given, at, reduction="sum"))

    @pytest.mark.parametrize("held", [NAN, INF, -INF])
    def test_ignored_rows_may_hold_anything(self, ce, width, dtype, held):
        rng = np.random.default_rng(7)
        logits = rng.normal(size=(20, width)).astype(dtype)
        labels = rng.integers(0, width, 20)
        labels[[0, 7, 19]] = -100
        logits[[0, 7, 19]] = held
        options = {"weight": rng.random(width).astype(dtype), "label_smoothing": 0.1, "z_loss": 1e-3}
        kept = labels >= 0
        for given in ({}, options):
            for reduction in ("none", "sum", "mean"):
                loss, grad = ce.cross_entropy_with_grad(logits, labels, reduction=reduction, **given)
                alone, alone_grad = ce.cross_entropy_with_grad(logits[kept], labels[kept], reduction=reduction, **given)
                assert (grad[~kept] == 0).all()
                _close(grad[kept], alone_grad, dtype)
                _close(loss[kept] if reduction == "none" else loss, alone, dtype)
                _, stats = ce.cross_entropy(logits, labels, reduction=reduction, return_stats=True, **given)
                again = ce.cross_entropy_grad(logits, labels, reduction=reduction, stats=stats, **given)
                assert (again[~kept] == 0).all() and np.isfinite(again).all()
                if reduction == "none":
                    assert (loss[~kept] == 0).all()

    def test_zero_probability_of_a_masked_class_adds_nothing(self, ce, width, dtype):
        logits = np.full((2, width), -INF, dtype)
        logits[:, 1:3] = 0
        c = np.zeros((2, width), dtype)
        c[:, 1], c[0, 2], c[1, 3] = 0.5, 0.5, 0.5
        loss, grad = ce.cross_entropy_with_grad(logits, c, reduction="none")
        _close(loss[0], math.log(2), dtype)
        assert loss[1] == INF
        np.testing.assert_array_equal(grad[0], np.zeros(width))
        np.testing.assert_array_equal(grad[1], _row(width, 0.0, _2=0.5, _3=-0.5))

    def test_zero_weight_of_a_masked_class_adds_nothing(self, ce, width, dtype):
        logits = np.zeros((2, width), dtype)
        logits[:, 2] = -INF
        weight = np.ones(width, dtype)
        weight[2] = 0
        for smoothing in (0.0, 0.1):
            loss, grad = ce.cross_entropy_with_grad(
                logits, np.array([0, 2]), weight=weight, label_smoothing=smoothing, reduction="none"
            )
            # q is smoothing/width for each of the width - 1 classes that weigh, and the label's share where it weighs
            uniform = smoothing * (width - 1) / width
            expected = [(1 - smoothing + uniform) * math.log(width - 1), uniform * math.log(width - 1)]
            np.testing.assert_allclose(loss, expected, rtol=20 * BY_HAND[dtype])  # sums of `width` terms
            assert np.isfinite(grad).all() and (grad[:, 2] == 0).all()
        assert ce.cross_entropy(logits, np.array([0, 1]), label_smoothing=0.1) == INF


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 3), (0, 100), (2, 0, 3), (0, 5, 3)])
def test_no_rows(ce, dtype, shape):
    logits = np.empty(shape, dtype)
    for targets in (np.empty(shape[:-1], np.int64), np.empty(shape, dtype)):
        for reduction, expected in (("sum", 0), ("mean", NAN)):
            loss, grad = ce.cross_entropy_with_grad(logits, targets, reduction=reduction)
            np.testing.assert_array_equal(loss, expected)
            assert type(loss) is dtype and grad.shape == shape and grad.dtype == dtype
        loss, stats = ce.cross_entropy(logits, targets, reduction="none", return_stats=True)
        assert loss.shape == stats.row_max.shape == stats.tail.shape == shape[:-1] and loss.dtype == dtype
        assert ce.cross_entropy(logits, targets, normalizer=5) == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 0.1}], ids=["plain", "options"])
def test_mean_of_nothing_is_nan_and_its_gradient_zero(ce, dtype, options):
    logits = np.random.default_rng(8).normal(size=(3, 4)).astype(dtype)
    labels = np.full(3, -100)
    loss, grad = ce.cross_entropy_with_grad(logits, labels, **options)
    assert np.isnan(loss) and type(loss) is dtype
    np.testing.assert_array_equal(grad, np.zeros((3, 4)))
    np.testing.assert_array_equal(ce.cross_entropy_grad(logits, labels, **options), np.zeros((3, 4)))
    assert ce.cross_entropy(logits, labels, reduction="sum", **options) == 0
    assert ce.cross_entropy(logits, labels, normalizer=2, **options) == 0


def test_one_row_without_leading_dimensions(ce):
    """A vector of logits and one label: every reduction of one row is that row."""
    logits = np.array([0.5, -1.0, 2.0])
    expected, expected_grad = ce.cross_entropy_with_grad(logits[None], np.array([1]))
    for reduction in ("mean", "sum", "none"):
        for label in (1, np.array(1), np.uint8(1)):
            loss, grad = ce.cross_entropy_with_grad(logits, label, reduction=reduction)
            assert np.shape(loss) == () and loss == expected
            np.testing.assert_array_equal(grad, expected_grad[0])


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    "more, fits", [(0, True), (2.0**102, True), (2.0**103, False), (2.0**106, False), (2e38, False)]
)
def test_sum_beyond_float32_is_infinite_without_a_warning(more, fits, sign):
    """It is added up in float64. Of targets that are not probabilities, the loss may be negative."""
    largest = float(np.finfo(np.float32).max)  # 2^128 - 2^104; from 2^128 - 2^103 on, float32 rounds to infinity
    logits = np.array([[0, -1024], [0, -1024]], np.float32)
    targets = np.array([[0, sign * largest / 1024], [0, sign * more / 1024]])
    got = fastce.cross_entropy(logits, targets, reduction="sum")
    assert got == sign * (largest if fits else math.inf)


@pytest.mark.parametrize("dtype", DTYPES)
def test_mean_is_accumulated_in_float64(ce, dtype):
    """2^17 equal losses: a float32 running sum would drift by thousands of eps."""
    rows = 1 << 17
    logits = np.broadcast_to(np.array([0.3, 0.1, 0.7], dtype), (rows, 3))
    labels = np.zeros(rows, np.int64)
    one = ce.cross_entropy(logits[:1], labels[:1])
    assert abs(ce.cross_entropy(logits, labels) - one) <= 2 * np.finfo(dtype).eps * one
    total = ce.cross_entropy(logits, labels, reduction="sum")
    # a float64 sum in order may drift by its own eps at each row
    drift = rows * np.finfo(np.float64).eps if dtype is np.float64 else 0
    assert abs(total / rows - one) <= (2 * np.finfo(dtype).eps + drift) * one
