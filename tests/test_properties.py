"""What holds for any input, drawn by hypothesis: shifts, permutations of classes and of rows, gradients that sum to
zero, blocks of classes that merge, linearity in targets and weights. Tolerances are the contract's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import fastce

from .oracle import CONTRACT_ULPS, OPTION_ULPS, assert_gradient, assert_losses, exact, needs_longdouble

SETTINGS = settings(max_examples=120, deadline=None, derandomize=True)
DTYPES = st.sampled_from([np.float32, np.float64])


@st.composite
def calls(draw, min_classes=1, kinds=("index", "probabilities"), finite=False):
    """Logits of (n, C), of numbers near 0, large, repeated or masked; targets of either kind."""
    dtype = draw(DTYPES)
    width = np.finfo(dtype).bits
    rows, classes = draw(st.integers(1, 6)), draw(st.integers(min_classes, 12) | st.sampled_from([63, 64, 65, 66, 130]))
    numbers = st.floats(-60, 60, width=width) | st.sampled_from([0.0, -0.0, 1.0, 1e-6, 500.0, -500.0, 1e4])
    if not finite:
        numbers |= st.just(-np.inf)
    fill = st.floats(-3, 3, width=width)
    numbers = numbers.map(lambda value: float(dtype(value)))
    logits = draw(hnp.arrays(dtype, (rows, classes), elements=numbers, fill=fill))
    logits[:, 0] = np.where(np.isfinite(logits[:, 0]), logits[:, 0], 0)  # a class that is not masked
    if draw(st.sampled_from(kinds)) == "index":
        return logits, draw(hnp.arrays(np.int64, rows, elements=st.integers(0, classes - 1)))
    share = st.floats(0, 1, width=width) | st.just(0.0)
    return logits, draw(hnp.arrays(dtype, (rows, classes), elements=share))


def _probabilities(targets, classes, dtype):
    return targets if targets.ndim == 2 else np.eye(classes, dtype=dtype)[targets]


@needs_longdouble
@SETTINGS
@given(calls(), st.sampled_from([0.0, 0.1]), st.sampled_from([0.0, 1e-3]), st.booleans())
def test_any_call_is_within_the_contract(call, smoothing, z_loss, fortran):
    logits, targets = call
    options = {"label_smoothing": smoothing, "z_loss": z_loss, "reduction": "none"}
    if fortran:
        logits = np.asfortranarray(logits)
    want = exact(logits, targets, **options)
    loss, grad = fastce.cross_entropy_with_grad(logits, targets, **options)
    assert_losses(loss, want, ulps=CONTRACT_ULPS + OPTION_ULPS)
    assert_gradient(grad, want, ulps=CONTRACT_ULPS + OPTION_ULPS)
    assert (loss >= 0).all()


@SETTINGS
@given(calls(), st.integers(-(2**10), 2**10))
def test_a_shift_changes_nothing(call, shift):
    """Of logits that stay exact: multiples of 1/64 below 2^11 in size. The same to the bit, for x - row_max is."""
    logits, targets = call
    logits = np.clip(np.round(logits * 64) / 64, -512, 512)
    loss, grad = fastce.cross_entropy_with_grad(logits, targets, reduction="none")
    shifted = logits + logits.dtype.type(shift)
    assert (shifted - logits == shift).all()
    moved, moved_grad = fastce.cross_entropy_with_grad(shifted, targets, reduction="none")
    np.testing.assert_array_equal(moved, loss)
    np.testing.assert_array_equal(moved_grad, grad)


@SETTINGS
@given(calls(), st.sampled_from([0.0, 0.3]))
def test_gradient_of_a_row_sums_to_zero(call, smoothing):
    """A shift changes no loss, so the gradient has no component along it."""
    logits, targets = call
    grad = fastce.cross_entropy_grad(logits, targets, reduction="none", label_smoothing=smoothing)
    dtype = logits.dtype.type
    c = (1 - smoothing) * _probabilities(targets, logits.shape[1], dtype) + smoothing / logits.shape[1]
    # each element has the error of its own two terms, whose sizes sum to Q each; far from the maximum the error of p is
    # (4 + d) eps p, and d*exp(-d) < 1
    room = 2 * (CONTRACT_ULPS + OPTION_ULPS + 1) * np.finfo(dtype).eps * (c.sum(axis=1) + 1)
    assert (np.abs(grad.astype(np.float64).sum(axis=1)) <= room * np.sqrt(logits.shape[1])).all()


@SETTINGS
@given(calls(), st.randoms(use_true_random=False))
def test_rows_are_independent(call, random):
    """In any order, and each alone: the same to the bit."""
    logits, targets = call
    order = list(range(len(logits)))
    random.shuffle(order)
    loss, grad = fastce.cross_entropy_with_grad(logits, targets, reduction="none")
    shuffled, shuffled_grad = fastce.cross_entropy_with_grad(logits[order], targets[order], reduction="none")
    np.testing.assert_array_equal(shuffled, loss[order])
    np.testing.assert_array_equal(shuffled_grad, grad[order])
    for i in order:
        alone, alone_grad = fastce.cross_entropy_with_grad(logits[i], targets[i], reduction="none")
        np.testing.assert_array_equal(alone, loss[i])
        np.testing.assert_array_equal(alone_grad, grad[i])


@needs_longdouble
@SETTINGS
@given(calls(), st.randoms(use_true_random=False))
def test_classes_may_be_permuted(call, random):
    logits, targets = call
    order = list(range(logits.shape[1]))
    random.shuffle(order)
    moved = targets[:, order] if targets.ndim == 2 else np.argsort(order)[targets]
    want = exact(logits, targets, reduction="none")
    loss, grad = fastce.cross_entropy_with_grad(logits[:, order], moved, reduction="none")
    assert_losses(loss, want, ulps=CONTRACT_ULPS + OPTION_ULPS)
    assert_gradient(grad[:, np.argsort(order)], want, ulps=CONTRACT_ULPS + OPTION_ULPS)


@SETTINGS
@given(calls(min_classes=2, finite=True), st.data())
def test_stats_of_two_blocks_of_classes_merge(call, data):
    """The state is associative: with a's maximum the larger, a.tail + (1 + b.tail)*exp(b.row_max - a.row_max)."""
    logits, _ = call
    cut = data.draw(st.integers(1, logits.shape[1] - 1))
    labels = np.zeros(len(logits), int)

    def stats_of(block):
        return fastce.cross_entropy(block, labels, return_stats=True)[1]

    whole, a, b = stats_of(logits), stats_of(logits[:, :cut]), stats_of(logits[:, cut:])
    swap = a.row_max < b.row_max
    max_a, max_b = np.where(swap, b.row_max, a.row_max), np.where(swap, a.row_max, b.row_max)
    tail_a, tail_b = np.where(swap, b.tail, a.tail), np.where(swap, a.tail, b.tail)
    merged = tail_a + (1 + tail_b) * np.exp(max_b - max_a)
    np.testing.assert_array_equal(max_a, whole.row_max)
    info = np.finfo(logits.dtype)
    room = (2 * CONTRACT_ULPS + np.abs(max_b - max_a)) * info.eps
    assert (np.abs(merged - whole.tail) <= room * whole.tail + logits.shape[1] * info.smallest_subnormal).all()


@SETTINGS
@given(calls(kinds=("index",)), st.sampled_from([0.0, 0.2]))
def test_an_index_is_its_one_hot_row(call, smoothing):
    logits, labels = call
    one_hot = np.eye(logits.shape[1], dtype=logits.dtype)[labels]
    options = {"label_smoothing": smoothing, "reduction": "none"}
    loss, grad = fastce.cross_entropy_with_grad(logits, labels, **options)
    other, other_grad = fastce.cross_entropy_with_grad(logits, one_hot, **options)
    eps = np.finfo(logits.dtype).eps
    finite = np.where(np.isfinite(logits), logits, 0)
    gap = np.ptp(finite, axis=1).max()  # at least the gap between the two largest
    # one bound of the contract for each of the two
    np.testing.assert_allclose(other, loss, rtol=2 * (CONTRACT_ULPS + OPTION_ULPS + gap) * eps, atol=1e-44)
    np.testing.assert_allclose(other_grad, grad, rtol=0, atol=2 * (CONTRACT_ULPS + OPTION_ULPS) * eps)


@SETTINGS
@given(calls(kinds=("probabilities",), finite=True), st.floats(0, 4), st.floats(0, 4))
def test_linear_in_the_targets(call, a, b):
    logits, c = call
    logits, c = logits.astype(np.float64), c.astype(np.float64)
    d = np.roll(c, 1, axis=1)

    def both(targets):
        return fastce.cross_entropy_with_grad(logits, targets, reduction="none")

    (loss_c, grad_c), (loss_d, grad_d), (loss, grad) = both(c), both(d), both(a * c + b * d)
    np.testing.assert_allclose(loss, a * loss_c + b * loss_d, rtol=1e-13, atol=1e-300)
    size = (a * c + b * d).sum(axis=1, keepdims=True)
    assert (np.abs(grad - (a * grad_c + b * grad_d)) <= 1e-14 * size + 1e-300).all()  # subnormal targets are rounded


@SETTINGS
@given(calls(), st.floats(-100, 100), st.sampled_from(["mean", "sum", "none"]))
def test_gradient_is_linear_in_upstream(call, upstream, reduction):
    logits, targets = call
    grad = fastce.cross_entropy_grad(logits, targets, reduction=reduction)
    scaled = fastce.cross_entropy_grad(logits, targets, reduction=reduction, upstream=upstream)
    eps, least = np.finfo(logits.dtype).eps, np.finfo(logits.dtype).smallest_subnormal
    c = _probabilities(targets, logits.shape[1], logits.dtype)
    room = 8 * eps * abs(upstream) * (np.abs(grad) + c.sum(axis=1, keepdims=True) + c) + 200 * least
    assert (np.abs(scaled - upstream * grad.astype(np.float64)) <= room).all()


@SETTINGS
@given(calls(), st.sampled_from([0.0, 0.1]), st.sampled_from([0.0, 0.01]))
def test_reductions_agree(call, smoothing, z_loss):
    logits, targets = call
    options = {"label_smoothing": smoothing, "z_loss": z_loss}
    rows = fastce.cross_entropy(logits, targets, **options, reduction="none")
    total = fastce.cross_entropy(logits, targets, **options, reduction="sum")
    mean = fastce.cross_entropy(logits, targets, **options)
    rel = 4 * float(np.finfo(logits.dtype).eps)
    assert float(total) == pytest.approx(float(rows.astype(np.float64).sum()), rel=rel)
    assert float(mean) == pytest.approx(float(rows.astype(np.float64).sum()) / len(rows), rel=rel)


@SETTINGS
@given(calls(), st.integers(1, 12))
def test_smoothing_is_a_mixture_of_targets(call, tenths):
    """label_smoothing = eps is (1 - eps) of the loss, plus eps of that of the uniform distribution."""
    logits, targets = call
    classes = logits.shape[1]
    eps = min(tenths / 10, 1.0)
    targets = _probabilities(targets, classes, np.float64)
    logits = logits.astype(np.float64)
    uniform = np.full(logits.shape, 1 / classes)
    got = fastce.cross_entropy(logits, targets, label_smoothing=eps, reduction="none")
    plain, even = (fastce.cross_entropy(logits, c, reduction="none") for c in (targets, uniform))
    with np.errstate(invalid="ignore"):
        expected = np.where(eps == 1, 0, (1 - eps) * plain) + eps * even
    np.testing.assert_allclose(got, expected, rtol=1e-13)


# ---------------------------------------------------------------------------------------------------------------------
# Any size, any layout, any options
# ---------------------------------------------------------------------------------------------------------------------


CLASSES = [1, 2, 3, 5, 8, 13, 40, 63, 64, 65, 100, 300, 2050, 4097, 9000]


def _random_call(rng):
    """Sizes around those at which kernels change (64 classes, groups of 128 positions, blocks of 4096 classes)."""
    dtype = rng.choice([np.float32, np.float64])
    classes = int(rng.choice(CLASSES, p=[0.075] * 12 + [0.1 / 3] * 3))
    ndim = int(rng.integers(1, 5))
    lead = rng.integers(1, 5, ndim - 1).tolist()
    if lead and classes < 400 and rng.random() < 0.4:
        lead[rng.integers(len(lead))] = int(rng.integers(100, 300))
    axis = int(rng.integers(ndim))
    shape = [*lead[:axis], classes, *lead[axis:]]

    x = rng.normal(size=shape) * rng.choice([0.01, 1, 10, 40])
    match rng.integers(5):
        case 0:
            x = np.round(x)
        case 1:
            x[rng.random(shape) < 0.5] = -np.inf
        case 2:
            x += np.where(rng.random(shape) < 1 / classes, rng.choice([10, 50, 300]), 0)
        case 3:
            x += rng.choice([1e3, -1e5, 1e7])
    x = x.astype(dtype)
    match rng.integers(4):
        case 0:
            x = np.asfortranarray(x)
        case 1:
            x = np.repeat(x, 2, axis=axis)[tuple(slice(None, None, 2 if i == axis else 1) for i in range(ndim))]
        case 2:
            x = np.flip(x)

    options = {"axis": axis, "reduction": "none", "upstream": rng.choice([1, -2, 0.125])}
    if rng.random() < 0.5:
        options["upstream"] = rng.normal(size=lead).astype(dtype)
    if rng.random() < 0.4:
        options["weight"] = rng.uniform(0.1, 2, classes).astype(dtype)
    if rng.random() < 0.3:
        options["sample_weight"] = rng.random(lead).astype(dtype)
    if rng.random() < 0.4:
        options["label_smoothing"] = float(rng.choice([1e-6, 0.1, 0.5, 1]))
    if rng.random() < 0.3:
        options["z_loss"] = float(rng.choice([1e-4, 0.1]))

    if rng.random() < 0.5:
        return x, np.where(rng.random(lead) < 0.1, -100, rng.integers(0, classes, lead)), options
    c = (rng.random(shape) * (rng.random(shape) < rng.choice([0.1, 1]))).astype(dtype)
    return x, np.asfortranarray(c) if rng.random() < 0.3 else c, options


@needs_longdouble
@pytest.mark.parametrize("seed", range(30))
def test_random_calls_are_within_the_contract(seed):
    rng = np.random.default_rng(seed)
    for case in range(30):
        x, targets, options = _random_call(rng)
        axis = options["axis"]
        want = exact(x, targets, **options)
        forward_options = {key: value for key, value in options.items() if key != "upstream"}
        try:
            loss, grad = fastce.cross_entropy_with_grad(x, targets, **options, num_threads=1)
            forward, stats = fastce.cross_entropy(x, targets, **forward_options, return_stats=True, num_threads=2)
            with_stats = fastce.cross_entropy_grad(x, targets, **options, stats=stats, num_threads=2)
            np.testing.assert_array_equal(forward, loss)
            assert_losses(loss, want, ulps=CONTRACT_ULPS + OPTION_ULPS)
            assert_gradient(grad, want, ulps=CONTRACT_ULPS + OPTION_ULPS, axis=axis)
            assert_gradient(with_stats, want, ulps=CONTRACT_ULPS + OPTION_ULPS + 1, axis=axis)
        except AssertionError as error:
            said = {key: value if np.ndim(value) == 0 else "array" for key, value in options.items()}
            error.add_note(f"case {case}: {x.dtype} {x.shape}, strides {x.strides}, targets {targets.shape}, {said}")
            raise
