"""Values that a reader can check: small numbers by hand, published ones. What is by hand holds for the NumPy
reference as well, and is asserted of both."""

from __future__ import annotations

import math

import numpy as np
import pytest
from functions import F32, F64, dtypes
from oracle import CONTRACT_ULPS, exact_row

import fastce

INF = math.inf
# A handful of roundings: enough for sums of four terms, and for the textbook formulas where nothing cancels.
BY_HAND = {F32: 1e-6, F64: 2e-15}
P = np.array([0.1, 0.2, 0.3, 0.4])


def _close(got, want, dtype):
    np.testing.assert_allclose(got, want, rtol=BY_HAND[dtype], atol=BY_HAND[dtype])


def of_shares(dtype):
    """Logits whose softmax is P."""
    return np.log(np.array([[1, 2, 3, 4]], dtype))


# ---------------------------------------------------------------------------------------------------------------------
# By hand
# ---------------------------------------------------------------------------------------------------------------------


@dtypes
class TestCrossEntropyByHand:
    def test_equal_logits(self, package, dtype):
        loss, grad = package.cross_entropy_with_grad(np.zeros((2, 4), dtype), np.array([0, 3]))
        _close(loss, math.log(4), dtype)
        np.testing.assert_array_equal(grad, [[-0.375, 0.125, 0.125, 0.125], [0.125, 0.125, 0.125, -0.375]])

    def test_one_class_costs_nothing(self, package, dtype):
        loss, grad = package.cross_entropy_with_grad(np.array([[3.5], [-2.0]], dtype), np.array([0, 0]))
        assert loss == 0
        np.testing.assert_array_equal(grad, [[0], [0]])

    def test_index(self, package, dtype):
        loss, grad = package.cross_entropy_with_grad(of_shares(dtype), np.array([2]))
        _close(loss, math.log(10 / 3), dtype)
        _close(grad, [P - [0, 0, 1, 0]], dtype)

    def test_upstream_scales_the_gradient_alone(self, package, dtype):
        loss, grad = package.cross_entropy_with_grad(of_shares(dtype), np.array([2]), upstream=-2.0)
        _close(loss, math.log(10 / 3), dtype)
        _close(grad, [-2 * (P - [0, 0, 1, 0])], dtype)

    def test_upstream_of_each_row(self, package, dtype):
        logits = np.repeat(of_shares(dtype), 2, axis=0)
        upstream = np.array([3.0, -0.5], dtype)
        loss, grad = package.cross_entropy_with_grad(logits, np.array([0, 1]), reduction="none", upstream=upstream)
        _close(loss, [math.log(10), math.log(5)], dtype)
        _close(grad, [3 * (P - [1, 0, 0, 0]), -0.5 * (P - [0, 1, 0, 0])], dtype)

    def test_class_weights_divide_the_mean(self, package, dtype):
        logits = np.repeat(of_shares(dtype), 2, axis=0)
        weight = np.array([1, 3, 5, 7], dtype)
        loss, grad = package.cross_entropy_with_grad(logits, np.array([0, 1]), weight=weight)
        _close(loss, (math.log(10) + 3 * math.log(5)) / 4, dtype)
        _close(grad, [(P - [1, 0, 0, 0]) / 4, 3 * (P - [0, 1, 0, 0]) / 4], dtype)

    def test_sample_weights_divide_the_mean(self, package, dtype):
        logits = np.repeat(of_shares(dtype), 2, axis=0)
        loss, grad = package.cross_entropy_with_grad(logits, np.array([0, 1]), sample_weight=np.array([1, 4], dtype))
        _close(loss, (math.log(10) + 4 * math.log(5)) / 5, dtype)
        _close(grad, [(P - [1, 0, 0, 0]) / 5, 4 * (P - [0, 1, 0, 0]) / 5], dtype)

    def test_normalizer_divides_the_mean_instead(self, package, dtype):
        logits = np.repeat(of_shares(dtype), 2, axis=0)
        loss, grad = package.cross_entropy_with_grad(
            logits, np.array([0, 1]), sample_weight=np.array([1, 4], dtype), normalizer=16
        )
        _close(loss, (math.log(10) + 4 * math.log(5)) / 16, dtype)
        _close(grad, [(P - [1, 0, 0, 0]) / 16, 4 * (P - [0, 1, 0, 0]) / 16], dtype)

    def test_label_smoothing_takes_from_the_label_and_gives_to_all(self, package, dtype):
        loss, grad = package.cross_entropy_with_grad(of_shares(dtype), np.array([2]), label_smoothing=0.4)
        c = np.array([0.1, 0.1, 0.7, 0.1])
        _close(loss, -(c * np.log(P)).sum(), dtype)
        _close(grad, [P - c], dtype)

    def test_full_smoothing_forgets_the_label(self, package, dtype):
        losses = [package.cross_entropy(of_shares(dtype), np.array([t]), label_smoothing=1.0) for t in range(4)]
        _close(losses, [-np.log(P).mean()] * 4, dtype)

    def test_weights_apply_after_smoothing(self, package, dtype):
        weight = np.array([1, 3, 5, 7], dtype)
        loss, grad = package.cross_entropy_with_grad(
            of_shares(dtype), np.array([2]), label_smoothing=0.4, weight=weight, reduction="sum"
        )
        q = weight * [0.1, 0.1, 0.7, 0.1]
        _close(loss, -(q * np.log(P)).sum(), dtype)
        _close(grad, [q.sum() * P - q], dtype)

    def test_z_loss_adds_the_square_of_lse(self, package, dtype):
        loss, grad = package.cross_entropy_with_grad(of_shares(dtype), np.array([2]), z_loss=0.5)
        lse = math.log(10)
        _close(loss, math.log(10 / 3) + 0.5 * lse**2, dtype)
        _close(grad, [P - [0, 0, 1, 0] + lse * P], dtype)

    def test_probabilities_need_not_sum_to_one(self, package, dtype):
        c = np.array([[0.5, 0, 1.5, 1]], dtype)
        loss, grad = package.cross_entropy_with_grad(of_shares(dtype), c)
        _close(loss, 0.5 * math.log(10) + 1.5 * math.log(10 / 3) + math.log(10 / 4), dtype)
        _close(grad, 3 * P - c, dtype)

    def test_ignored_rows_are_not_counted(self, package, dtype):
        logits = np.repeat(of_shares(dtype), 3, axis=0)
        loss, grad = package.cross_entropy_with_grad(logits, np.array([0, -100, 1]))
        _close(loss, (math.log(10) + math.log(5)) / 2, dtype)
        _close(grad, [(P - [1, 0, 0, 0]) / 2, [0] * 4, (P - [0, 1, 0, 0]) / 2], dtype)

    def test_ignore_index_may_be_a_class_or_none(self, package, dtype):
        logits = np.repeat(of_shares(dtype), 2, axis=0)
        labels = np.array([0, 1])
        _close(package.cross_entropy(logits, labels, ignore_index=1), math.log(10), dtype)
        _close(package.cross_entropy(logits, labels, ignore_index=None), math.log(50) / 2, dtype)

    def test_stats_are_the_maximum_and_the_rest(self, package, dtype):
        _, stats = package.cross_entropy(of_shares(dtype), np.array([2]), return_stats=True)
        _close(stats.row_max, [math.log(4)], dtype)
        _close(stats.tail, [6 / 4], dtype)
        _close(stats.row_max + np.log1p(stats.tail), [math.log(10)], dtype)

    def test_ties_of_the_maximum_count_in_the_tail(self, package, dtype):
        _, stats = package.cross_entropy(np.array([[2, 2, 2]], dtype), np.array([0]), return_stats=True)
        assert (stats.row_max, stats.tail) == (2, 2)


@dtypes
class TestSoftmaxByHand:
    def test_shares_of_one(self, package, dtype):
        _close(package.softmax(of_shares(dtype)), [P], dtype)
        _close(package.log_softmax(of_shares(dtype)), [np.log(P)], dtype)
        _close(package.logsumexp(of_shares(dtype)), [math.log(10)], dtype)

    def test_equal_logits(self, package, dtype):
        x = np.full((2, 4), 3, dtype)
        np.testing.assert_array_equal(package.softmax(x), np.full((2, 4), 0.25))
        _close(package.log_softmax(x), np.full((2, 4), -math.log(4)), dtype)
        _close(package.logsumexp(x), [3 + math.log(4)] * 2, dtype)

    def test_one_class(self, package, dtype):
        x = np.array([[3.5], [-2.0]], dtype)
        np.testing.assert_array_equal(package.softmax(x), [[1], [1]])
        np.testing.assert_array_equal(package.log_softmax(x), [[0], [0]])
        np.testing.assert_array_equal(package.logsumexp(x), [3.5, -2])
        np.testing.assert_array_equal(package.softmax_grad(x, np.ones_like(x)), [[0], [0]])
        np.testing.assert_array_equal(package.log_softmax_grad(x, np.zeros_like(x)), [[0], [0]])

    def test_gradient_of_one_probability(self, package, dtype):
        upstream = np.array([[1, 0, 0, 0]], dtype)
        _close(package.softmax_grad(upstream, P[None].astype(dtype)), [[0.09, -0.02, -0.03, -0.04]], dtype)
        log_p = np.log(P[None]).astype(dtype)
        _close(package.log_softmax_grad(upstream, log_p), [[0.9, -0.2, -0.3, -0.4]], dtype)

    def test_gradient_of_a_sum(self, package, dtype):
        """The probabilities sum to 1 whatever the logits: no gradient. Their logarithms do not."""
        upstream = np.ones((1, 4), dtype)
        _close(package.softmax_grad(upstream, P[None].astype(dtype)), np.zeros((1, 4)), dtype)
        _close(package.log_softmax_grad(upstream, np.log(P[None]).astype(dtype)), 1 - 4 * P[None], dtype)

    def test_axis(self, package, dtype):
        x = np.log(np.array([[1, 2], [3, 6]], dtype))
        _close(package.softmax(x, axis=0), [[0.25, 0.25], [0.75, 0.75]], dtype)
        _close(package.log_softmax(x, axis=0), np.log([[0.25, 0.25], [0.75, 0.75]]), dtype)
        _close(package.logsumexp(x, axis=0), np.log([4, 8]), dtype)
        upstream, y = np.eye(2, dtype=dtype), np.array([[0.25, 0.25], [0.75, 0.75]], dtype)
        _close(package.softmax_grad(upstream, y, axis=0), [[3 / 16, -3 / 16], [-3 / 16, 3 / 16]], dtype)
        _close(package.log_softmax_grad(upstream, np.log(y), axis=0), [[0.75, -0.25], [-0.75, 0.25]], dtype)

    def test_one_dimension(self, package, dtype):
        x = of_shares(dtype)[0]
        assert package.softmax(x).shape == (4,)
        assert np.shape(package.logsumexp(x)) == ()
        _close(package.logsumexp(x), math.log(10), dtype)


@dtypes
class TestSigmoidWithTwoTermsByHand:
    # sigmoid([0, log 3, -log 3, log 9]) is
    p = np.array([0.5, 0.75, 0.25, 0.9])

    def logits(self, dtype):
        return np.log(np.array([[1, 3, 1 / 3, 9]])).astype(dtype)

    def test_losses_of_elements(self, package, dtype):
        c = np.array([[1, 1, 0, 0]], dtype)
        loss, grad = package.binary_cross_entropy_with_grad(self.logits(dtype), c, reduction="none")
        _close(loss, [-np.log([0.5, 0.75, 0.75, 0.1])], dtype)
        _close(grad, self.p - c, dtype)

    def test_soft_targets(self, package, dtype):
        c = np.array([[0.5, 0.25, 1, 0.125]], dtype)
        loss, grad = package.binary_cross_entropy_with_grad(self.logits(dtype), c, reduction="none")
        _close(loss, -(c * np.log(self.p) + (1 - c) * np.log(1 - self.p)), dtype)
        _close(grad, self.p - c, dtype)

    def test_mean_is_over_all_elements(self, package, dtype):
        c = np.array([[1, 1, 0, 0], [0, 0, 1, 1]], dtype)
        x = np.repeat(self.logits(dtype), 2, axis=0)
        losses = -np.log(np.where(c == 1, self.p, 1 - self.p))
        loss, grad = package.binary_cross_entropy_with_grad(x, c)
        _close(loss, losses.sum() / 8, dtype)
        _close(grad, (self.p - c) / 8, dtype)
        loss, grad = package.binary_cross_entropy_with_grad(x, c, normalizer=2.5, upstream=-3)
        _close(loss, losses.sum() / 2.5, dtype)
        _close(grad, -3 * (self.p - c) / 2.5, dtype)
        loss, grad = package.binary_cross_entropy_with_grad(x, c, reduction="sum")
        _close(loss, losses.sum(), dtype)
        _close(grad, self.p - c, dtype)

    def test_weights_multiply_and_do_not_count(self, package, dtype):
        """As in PyTorch: the mean's denominator is the number of elements, whatever the weights."""
        c = np.array([[1, 1, 0, 0], [0, 0, 1, 1]], dtype)
        x = np.repeat(self.logits(dtype), 2, axis=0)
        losses = -np.log(np.where(c == 1, self.p, 1 - self.p))
        weight, sample_weight = np.array([1, 2, 3, 4], dtype), np.array([2, 0.5], dtype)
        factor = weight * sample_weight[:, None]
        loss, grad = package.binary_cross_entropy_with_grad(x, c, weight=weight, sample_weight=sample_weight)
        _close(loss, (factor * losses).sum() / 8, dtype)
        _close(grad, factor * (self.p - c) / 8, dtype)

    def test_pos_weight_multiplies_the_first_term(self, package, dtype):
        c, positive = np.array([[1, 0.5, 0, 0.25]], dtype), np.array([2, 3, 4, 0], dtype)
        loss, grad = package.binary_cross_entropy_with_grad(
            self.logits(dtype), c, pos_weight=positive, reduction="none"
        )
        _close(loss, -(positive * c * np.log(self.p) + (1 - c) * np.log(1 - self.p)), dtype)
        _close(grad, (1 - c) * self.p - positive * c * (1 - self.p), dtype)

    def test_upstream_of_each_element(self, package, dtype):
        c, upstream = np.array([[1, 1, 0, 0]], dtype), np.array([[1, -2, 0, 3]], dtype)
        given = {"reduction": "none", "upstream": upstream}
        loss, grad = package.binary_cross_entropy_with_grad(self.logits(dtype), c, **given)
        _close(loss, [-np.log([0.5, 0.75, 0.75, 0.1])], dtype)
        _close(grad, upstream * (self.p - c), dtype)
        _, grad = package.binary_cross_entropy_with_grad(self.logits(dtype), c, reduction="none", upstream=2)
        _close(grad, 2 * (self.p - c), dtype)

    def test_classes_on_another_axis(self, package, dtype):
        x, c = self.logits(dtype).T, np.array([[1], [0], [1], [0.5]], dtype)
        weight, positive = np.array([1, 2, 3, 4], dtype), np.array([4, 3, 2, 1], dtype)
        given = {"weight": weight, "pos_weight": positive, "sample_weight": np.array([2], dtype)}
        loss, grad = package.binary_cross_entropy_with_grad(x, c, **given, axis=0)
        other, other_grad = package.binary_cross_entropy_with_grad(x.T, c.T, **given)
        _close(loss, other, dtype)
        _close(grad, other_grad.T, dtype)

    def test_is_the_one_term_form_of_two_classes(self, package, dtype):
        """sigmoid(z) is the second of softmax([0, z])."""
        z = np.linspace(-30, 30, 13).astype(dtype)
        both = np.stack([np.zeros_like(z), z], axis=1)
        losses = package.cross_entropy(both, np.ones(13, np.int64), reduction="none")
        _close(package.binary_cross_entropy(z[:, None], np.ones((13, 1)), reduction="none")[:, 0], losses, dtype)


def _literal(p, c, w):
    """Loss and gradient of a softmax row as the chain rule says, the whole Jacobian."""
    loss = -(w * (c * np.log(p) + (1 - c) * np.log(1 - p))).sum()
    return loss, (np.diag(p) - np.outer(p, p)) @ (w * (-c / p + (1 - c) / (1 - p)))


@dtypes
class TestSoftmaxWithTwoTermsByHand:
    def test_one_hot(self, package, dtype):
        loss, grad = package.binary_cross_entropy_with_grad(of_shares(dtype), [[0, 0, 1, 0]], activation="softmax")
        _close(loss, -np.log(0.9 * 0.8 * 0.3 * 0.6), dtype)
        # h = [1/9, 1/4, -1, 2/3], its sum 1/36, grad = h - p/36
        _close(grad, [np.array([1 / 9, 1 / 4, -1, 2 / 3]) - P / 36], dtype)

    def test_equal_logits(self, package, dtype):
        loss, grad = package.binary_cross_entropy_with_grad(np.zeros((1, 3), dtype), [[1, 0, 0]], activation="softmax")
        _close(loss, math.log(3) - 2 * math.log(2 / 3), dtype)
        _close(grad, [[-1, 0.5, 0.5]], dtype)

    def test_two_classes_are_two_times_the_one_term_form(self, package, dtype):
        x, labels = np.array([[0.5, -1], [3, 7], [2, 2]], dtype), np.array([0, 1, 1])
        c = np.eye(2, dtype=dtype)[labels]
        loss, grad = package.binary_cross_entropy_with_grad(x, c, activation="softmax")
        once, grad_once = package.cross_entropy_with_grad(x, labels)
        _close(loss, 2 * once, dtype)
        _close(grad, 2 * grad_once, dtype)

    def test_one_class(self, package, dtype):
        given = {"activation": "softmax", "reduction": "none"}
        loss, grad = package.binary_cross_entropy_with_grad(np.array([[3], [-2]], dtype), [[1], [1]], **given)
        assert (loss == 0).all() and (grad == 0).all()

    @pytest.mark.parametrize("c", [[0, 0, 0, 0], [1, 1, 1, 1], [0.5, 0, 1, 0.25], [0, 1, 1, 0]])
    def test_any_targets(self, package, dtype, c):
        """They need not sum to 1."""
        w = np.array([1, 2, 0.5, 3])
        loss, grad = package.binary_cross_entropy_with_grad(
            of_shares(dtype), np.array([c], dtype), activation="softmax", weight=w.astype(dtype)
        )
        want, want_grad = _literal(P, np.array(c), w)
        _close(loss, want, dtype)
        _close(grad, [want_grad], dtype)

    def test_reductions_are_over_rows(self, package, dtype):
        x = np.concatenate([of_shares(dtype), of_shares(dtype)[:, ::-1]])
        c = np.array([[0, 0, 1, 0], [1, 0, 0, 0]], dtype)
        (one, one_grad), (two, two_grad) = _literal(P, c[0], 1), _literal(P[::-1], c[1], 1)
        losses, grads = np.array([one, two]), np.array([one_grad, two_grad])
        sample_weight = np.array([3, 0.5], dtype)
        call = package.binary_cross_entropy_with_grad
        for options, factor in (
            ({"reduction": "mean"}, np.array([0.5, 0.5])),
            ({"reduction": "sum"}, np.array([1, 1])),
            ({"reduction": "mean", "normalizer": 5.0}, np.array([0.2, 0.2])),
            ({"reduction": "mean", "sample_weight": sample_weight}, sample_weight / 3.5),
            ({"reduction": "mean", "sample_weight": sample_weight, "normalizer": 4}, sample_weight / 4),
            ({"reduction": "sum", "sample_weight": sample_weight, "upstream": 2}, sample_weight),
        ):
            loss, grad = call(x, c, activation="softmax", **options)
            _close(loss, factor @ losses, dtype)
            _close(grad, options.get("upstream", 1) * factor[:, None] * grads, dtype)
        upstream = np.array([-1, 2], dtype)
        loss, grad = call(x, c, activation="softmax", reduction="none", sample_weight=sample_weight, upstream=upstream)
        _close(loss, sample_weight * losses, dtype)
        _close(grad, (sample_weight * upstream)[:, None] * grads, dtype)

    def test_class_weights_do_not_count_in_the_mean(self, package, dtype):
        weight = np.full(4, 3, dtype)
        given = {"activation": "softmax"}
        plain = package.binary_cross_entropy(of_shares(dtype), [[0, 0, 1, 0]], **given)
        _close(package.binary_cross_entropy(of_shares(dtype), [[0, 0, 1, 0]], weight=weight, **given), 3 * plain, dtype)

    def test_axis(self, package, dtype):
        x = np.concatenate([of_shares(dtype), of_shares(dtype)[:, ::-1]])
        c = np.array([[0, 0, 1, 0], [1, 0, 0, 0]], dtype)
        given = {"activation": "softmax", "weight": np.array([1, 2, 3, 4], dtype)}
        loss, grad = package.binary_cross_entropy_with_grad(x, c, **given)
        other, other_grad = package.binary_cross_entropy_with_grad(x.T, c.T, **given, axis=0)
        _close(other, loss, dtype)
        _close(other_grad, grad.T, dtype)


@dtypes
@pytest.mark.parametrize("gap", [3e4, 1e10, 1e30])
def test_two_term_form_of_a_softmax_where_longdouble_underflows(package, gap, dtype):
    """The other three share what the maximum does not have."""
    x, third = np.array([[0, gap, 0, 0]], dtype), 1 / 3
    for label, (loss, grad) in enumerate(
        [
            (2 * gap, [-1 - third, 2, -third, -third]),
            (0, [0, 0, 0, 0]),
            (2 * gap, [-third, 2, -1 - third, -third]),
            (2 * gap, [-third, 2, -third, -1 - third]),
        ]
    ):
        c = np.eye(4, dtype=dtype)[[label]]
        got, got_grad = package.binary_cross_entropy_with_grad(x, c, activation="softmax")
        assert got == pytest.approx(loss, rel=1e-4)  # log 3 less
        _close(got_grad, [grad], dtype)


class TestOneHotAndPredictByHand:
    def test_one_hot(self, package):
        hot = package.one_hot(np.array([2, 0, 1, 2]), 3)
        np.testing.assert_array_equal(hot, [[0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
        assert hot.dtype == F32
        np.testing.assert_array_equal(package.one_hot(1, 3), [0, 1, 0])
        np.testing.assert_array_equal(package.one_hot([[0], [1]], 2), [[[1, 0]], [[0, 1]]])
        np.testing.assert_array_equal(package.one_hot(np.array([0, 0]), 1), [[1], [1]])

    def test_first_maximum_is_predicted(self, package):
        logits = np.array([[1, 3, 2], [5, 0, 5], [-1, -1, -1], [-INF, -2, -3], [0, -0.0, 0]])
        got = package.predict(logits)
        np.testing.assert_array_equal(got, [1, 0, 0, 1, 0])
        assert got.dtype == np.intp
        np.testing.assert_array_equal(package.predict(logits, axis=0), [1, 0, 1])
        assert package.predict(logits[0]) == 1
        assert np.shape(package.predict(logits[0])) == ()


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
    x = np.array([logits], F32)
    loss, grad = fastce.cross_entropy_with_grad(x, np.array([label]))
    true_loss, true_grad = exact_row(x[0], label)
    assert float(true_loss) == pytest.approx(published, rel=5e-6)  # half a unit of the sixth digit
    others = np.delete(x[0], label)
    gap = max(float(x[0, label] - others.max()), 0)
    bound = (CONTRACT_ULPS + gap) * np.finfo(F32).eps
    assert abs(loss - float(true_loss)) <= bound * float(true_loss)
    assert abs(grad[0, label] - float(true_grad[label])) <= bound * abs(float(true_grad[label]))


def test_what_peers_get_wrong_in_log_softmax():
    """SciPy and PyTorch return 0 for the first. At offsets of 1e8 they lose log(8)."""
    got = fastce.log_softmax(np.array([20, 0, 0, 0], F32))[0]
    assert float(got) == pytest.approx(-6.18346e-09, rel=5e-6)
    assert float(got) == pytest.approx(-math.log1p(3 * math.exp(-20)), rel=24 * 2**-23)
    assert float(fastce.log_softmax(np.array([700.0, 0.0]))[0]) == pytest.approx(-math.exp(-700), rel=704 * 2**-52)
    assert fastce.logsumexp(np.full(8, 1e8)) == 1e8 + math.log(8)
    assert fastce.logsumexp(np.array([-1e8, -1e8])) == -1e8 + math.log(2)
    np.testing.assert_allclose(fastce.log_softmax(np.full(8, 1e8, F32)), -math.log(8), rtol=4 * np.finfo(F32).eps)
